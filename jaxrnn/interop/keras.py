"""Keras: `SimpleRNN`, `LSTM`, `GRU`, their cells, and `Bidirectional`: weights, layers, models and files.

The modules `_keras_*` read weights by name, configurations, and files.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np

from jaxrnn._types import Params
from jaxrnn.interop import _keras_configured as configured
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.interop._keras_weights import layout_of, read_layers, read_weights
from jaxrnn.network import Network

PEER = "Keras"
NAMES = {"rnn": "simple_rnn", "lstm": "lstm", "gru": "gru"}


class KerasLayer(Protocol):
    """A layer, a cell or a model of Keras."""

    @property
    def weights(self) -> Sequence[Any]: ...
    def get_config(self) -> dict[str, Any]: ...


@overload
def from_keras(weights: Mapping[str, Any], prefix: str = "", *, config: None = None, num_heads: int = 1) -> Params: ...
@overload
def from_keras(
    weights: Mapping[str, Any],
    prefix: str | Sequence[str] = "",
    *,
    config: Mapping[str, Any],
    num_heads: int = 1,
) -> tuple[Network, Params]: ...
@overload
def from_keras(
    weights: str | os.PathLike[str] | KerasLayer,
    prefix: str | Sequence[str] = "",
    *,
    config: Mapping[str, Any] | None = None,
    num_heads: int = 1,
) -> tuple[Network, Params]: ...
def from_keras(
    weights: Mapping[str, Any] | str | os.PathLike[str] | KerasLayer,
    prefix: str | Sequence[str] = "",
    *,
    config: Mapping[str, Any] | None = None,
    num_heads: int = 1,
) -> Any:
    """The network and the parameters of a layer, a model or a file of Keras; of weights alone, the parameters.

    | given | returned |
    |---|---|
    | a mapping of weights | params |
    | a mapping of weights, and `config` | `(network, params)` |
    | a layer, a cell or a model of Keras | `(network, params)` |
    | the path of a `.keras` or `.h5` file | `(network, params)` |

    **Weights alone** do not tell activations. The columns of `recurrent_kernel` tell the kind: H for a
    SimpleRNN, 3H for a GRU, 4H for an LSTM. A GRU's bias (2, 3H) is that of `reset_after=True` and gives a
    `b_hn`; one of (3H,) is that of `reset_after=False`, for `jaxrnn.gru(H, reset_after=False)`. They compute
    what Keras does if the layer has the defaults of Keras 3 and of tf.keras 2: tanh, and the sigmoid for
    gates. The default for gates was `hard_sigmoid` = clip(0.2 x + 0.5, 0, 1) in Keras 1, in standalone
    Keras 2 and in tf.keras of TensorFlow 1: give the configuration of such a layer.

    **With the configuration** the cells have the layer's activations, biases and form of GRU. Consecutive
    layers become one network. `hard_sigmoid` is that of the version that wrote the file, or of the module of
    the layer; of a bare configuration, `keras_version` in it tells, or the entries that only Keras 2 has
    (`implementation`, `time_major`) or only Keras 3 (`seed`, `zero_output_for_mask`).

    What is not part of inference is ignored: dropout, regularisers, initialisers, `Dropout` and `Masking`
    between. Pass the mask or the lengths to `unroll`, and states from call to call for `stateful`. All outputs
    and states are returned, whatever `return_sequences` says: see :func:`last_output`. A dtype policy is ignored
    too: `unroll` computes in the dtypes of weights and inputs.

    Args:
        weights: paths to arrays: `{w.path: w for w in layer.weights}` of a layer or of a model that has only
            recurrent layers; a ":0" at the end is ignored. Or a layer, a cell, a Sequential or functional
            model of Keras. Or the path of a file, which is read by h5py and json: no Keras is imported, and no
            code in it, as of a Lambda layer, is run.
        prefix: of weights alone, or with the configuration of one layer: the beginning of the paths, such as
            "sequential/lstm"; other entries are ignored. With a model: the name of a layer, as "lstm" or
            "encoder/lstm" in a model "encoder" inside, or a list of names of layers that follow each other;
            layers around them are ignored.
        config: `get_config()` of the layer or model, or what `to_json()` holds. Beside a path it is that of a
            file of weights alone.
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The network's tuple over layers, in the order of the mapping or the model, with a `Bidirectional` where
        a path continues with `forward_` and `backward_`. Dtypes are kept. With a configuration `(network,
        params)`, the network a :func:`stack` also for a single cell. Of weights alone, names without a path
        ("kernel", "recurrent_kernel", "bias", after the prefix) give the record alone.

    Raises:
        TypeError, ValueError: naming the entry that is missing, unexpected, or of a wrong shape or dtype; for a
            `Bidirectional` of stacked cells, or, of weights alone, with a `backward_layer` of another name; for
            float64 where JAX does not enable it. Naming the layer: for activations, classes and `merge_mode`
            that are not converted, `go_backwards`, layers of other kinds around or between those that are
            converted, and a `hard_sigmoid` of an unknown version. For a file that is damaged.
        OSError: for a file that cannot be read.
        ImportError: without h5py, for a path; `pip install "jaxrnn[interop]"` installs it.

    Example:
        >>> import numpy as np, jaxrnn
        >>> weights = {"lstm/lstm_cell/kernel": np.ones((3, 16)), "lstm/lstm_cell/recurrent_kernel": np.ones((4, 16))}
        >>> weights = {path: w.astype("float32") for path, w in weights.items()}
        >>> (params,) = jaxrnn.interop.from_keras(weights)
        >>> params.w_x.shape, jaxrnn.interop.from_keras(weights, "lstm/lstm_cell").w_x.shape
        ((3, 16), (3, 16))
        >>> options = {"units": 4, "activation": "softsign", "recurrent_activation": "sigmoid", "use_bias": False}
        >>> network, params = jaxrnn.interop.from_keras(weights, config={"class_name": "LSTM", "config": options})
        >>> network
        stack([lstm(4, use_bias=False, activation='softsign')])

    Differs from:
        1. Keras: a layer with `go_backwards` is refused; here it is an option of `unroll`, and outputs stay at the
           position of their input.
        2. Keras: whether a GRU without biases resets before or after the product is not among
           the weights; `reset_after` of :func:`gru` sets it. The configuration tells.
    """
    where = "from_keras"
    prefix = configured.check_prefix(where, prefix, config, weights)
    if isinstance(weights, Mapping):
        if config is not None:
            return configured.from_mapping(where, weights, prefix, config, num_heads)
        return lay.by_head(where, read_layers(read_weights(where, weights, str(prefix))), num_heads)
    read = configured.from_file if configured.is_path(weights) else configured.from_object
    return read(where, weights, prefix, config, num_heads)


def to_keras(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of the Keras layers that compute the same.

    A GRU with `b_hn` is one with `reset_after=True`, a GRU with `b` alone one with
    `reset_after=False`. Layers may differ in kind and size, and directions may be merged in any
    way. The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: a network's tuple over layers, or one record.
        prefix: the beginning of the paths.

    Returns:
        Paths to NumPy arrays that own their memory, in the order of Keras. Keras numbers its
        layers from the start of the program, so rely on the order, not on the paths:
        `layer.set_weights(list(to_keras(params).values()))`, for one layer, one
        `Bidirectional`, or a model that has only these layers. A record's names have no path.

    Raises:
        TypeError, ValueError: for what Keras cannot hold: projections, peepholes, coupled gates,
            layer normalisation.

    Example:
        >>> import jax, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.gru(4)])
        >>> weights = jaxrnn.interop.to_keras(net.init(jax.random.key(0), 3))
        >>> [(path, w.shape) for path, w in weights.items()][2]
        ('gru/gru_cell/bias', (2, 12))
    """
    where = "to_keras"
    prefix = maps.join_prefix(where, prefix, "/")
    if lay.is_record(params):
        return _entries(prefix, lay.read_record(where, "params", params, PEER, in_jax=False))
    entries: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for directions in lay.read_layers(where, params, PEER, in_jax=False):
        kinds = [NAMES[layer.sizes.kind] for layer in directions]
        base = kinds[0] if len(kinds) == 1 else "bidirectional"
        count = counts.get(base, 0)
        counts[base] = count + 1
        path = f"{base}_{count}/" if count else f"{base}/"
        halves = [""] if len(kinds) == 1 else [f"forward_{kinds[0]}/", f"backward_{kinds[1]}/"]
        for layer, kind, half in zip(directions, kinds, halves, strict=True):
            entries |= _entries(f"{prefix}{path}{half}{kind}_cell/", layer)
    return entries


def _entries(prefix: str, layer: lay.Layer) -> dict[str, np.ndarray]:
    kind = layer.sizes.kind
    if kind == "gru" and "b_hn" in layer.fields:
        entries = lay.scatter(lay.unfold_biases(layer), layout_of(kind, "two"))
        entries["bias"] = np.stack([entries.pop("bias[0]"), entries.pop("bias[1]")])
    else:
        entries = lay.scatter(layer, layout_of(kind, "one" if "b" in layer.fields else None))
    return {prefix + name: maps.to_numpy(array) for name, array in entries.items()}
