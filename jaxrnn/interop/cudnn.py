"""cuDNN's flat weights, as `jax.experimental.rnn` reads them.

For each pseudo-layer fwd0, rev0, fwd1, ...: W_ih (GH, in), W_hh (GH, H); then for each of
them b_ih (GH,), b_hh (GH,). Gates are in our order.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxrnn import _checks
from jaxrnn._types import Params
from jaxrnn.interop import _layouts as lay
from jaxrnn.interop import _mappings as maps
from jaxrnn.layers import Bidirectional

PEER = "cuDNN"
KINDS = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "rnn", "rnn_relu": "rnn"}


def _layout(kind: str) -> dict[str, lay.Part]:
    gates = lay.all_gates(kind)
    return {
        "W_ih": lay.Part("w_x", gates, transposed=True),
        "W_hh": lay.Part("w_h", gates, transposed=True),
        "b_ih": lay.Part("b_x", gates),
        "b_hh": lay.Part("b_h", gates),
    }


def _places(kind: str, layers: list[lay.Sizes]) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Pseudo-layer, name and shape of each weight, in the order of the array."""
    layout = _layout(kind)
    for names in (("W_ih", "W_hh"), ("b_ih", "b_hh")):
        for (k, sizes), name in itertools.product(enumerate(layers), names):
            yield k, name, lay.part_shape(sizes, layout[name])


def from_cudnn(
    flat: Any,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    kind: str = "lstm",
    num_heads: int = 1,
) -> Params:
    """The parameters in cuDNN's flat array.

    The two biases become one, their sum, except for a GRU's n, whose second bias is `b_hn`.

    Args:
        flat: one axis, as :func:`jax.experimental.rnn.init_lstm_weight` makes it.
        input_size: I, of the first layer.
        hidden_size: H.
        num_layers: L.
        bidirectional: whether every layer reads in both directions.
        kind: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        num_heads: N; with more than 1 every `w_h` is returned as the blocks `(N, D, G*D)` of N heads, if all
            entries between units of different heads are exactly zero.

    Returns:
        The network's tuple over layers. The dtype is kept.

    Raises:
        TypeError, ValueError: for an array of another length, dtype or number of axes, and for
            sizes that are not positive integers.

    Example:
        >>> import jax, jaxrnn
        >>> from jax.experimental import rnn
        >>> flat = rnn.init_lstm_weight(jax.random.key(0), 3, 4, 2, False)
        >>> params = jaxrnn.interop.from_cudnn(flat, 3, 4, num_layers=2)
        >>> params[1].w_x.shape
        (4, 16)

    References:
        The layout is that of :func:`jax.experimental.rnn.unpack_lstm_weights`. MIOpen, on AMD's
        devices, has its LSTM gates in another order, i f o g:
        :func:`jax.experimental.rnn.swap_lstm_gates`.
    """
    where = "from_cudnn"
    _checks.one_of(where, "kind", kind, tuple(KINDS))
    record = KINDS[kind]
    input_size = _checks.size(where, "input_size", input_size)
    hidden_size = _checks.size(where, "hidden_size", hidden_size)
    num_layers = _checks.size(where, "num_layers", num_layers)
    directions = 2 if _checks.boolean(where, "bidirectional", bidirectional) else 1
    array = maps.as_numpy(where, "flat", flat)
    maps.check_dtype(where, "flat", array)
    # The length is known before the list of layers, which may be too long to make.
    rows = directions * lay.GATES[record] * hidden_size
    total = rows * (input_size + hidden_size + 2)
    total += (num_layers - 1) * rows * (directions * hidden_size + hidden_size + 2)
    cause = "are input_size, hidden_size, num_layers, bidirectional and kind those of the network?"
    maps.check_shape(where, "flat", array, (total,), cause)
    features = [input_size, *[directions * hidden_size] * (num_layers - 1)]
    layers = [lay.Sizes(record, size, hidden_size) for size in features for _ in range(directions)]
    places = _places(record, layers)
    pieces: list[dict[str, np.ndarray]] = [{} for _ in layers]
    offset = 0
    for k, name, shape in places:
        size = math.prod(shape)
        pieces[k][name] = array[offset : offset + size].reshape(shape)
        offset += size
    records = [_record(where, sizes, piece) for sizes, piece in zip(layers, pieces, strict=True)]
    if directions == 2:
        records = [Bidirectional(*pair) for pair in zip(records[::2], records[1::2], strict=True)]
    return lay.by_head(where, tuple(records), num_heads)


def _record(where: str, sizes: lay.Sizes, pieces: dict[str, np.ndarray]) -> Params:
    fields = lay.gather(maps.Entries(where, "", ".", pieces), _layout(sizes.kind), sizes)
    return lay.record(where, sizes.kind, lay.fold_biases(sizes.kind, fields))


def to_cudnn(params: Params) -> jax.Array:
    """The flat array of the cuDNN network that computes the same.

    The bias becomes b_ih, zeros where there is none; b_hh is zeros, except for a GRU's n, where
    it is `b_hn`. The parameters of a GRU without biases do not show whether it resets before or
    after the product; cuDNN resets after it.
    The blocks of heads are written as the block-diagonal matrix of the same function, zeros included.

    Args:
        params: a network's tuple over layers, or one record.

    Returns:
        A JAX array of one axis that owns its memory. `jax.experimental.rnn.lstm` needs float32.

    Raises:
        TypeError, ValueError: for what this layout cannot hold: projections, peepholes, coupled
            gates, layer normalisation, a GRU that resets before the product, layers that
            differ in kind, size, directions or dtype, and directions that are not merged by
            concatenation.

    Example:
        >>> import jax, jaxrnn
        >>> net = jaxrnn.stack([jaxrnn.lstm(4)], bidirectional=True)
        >>> jaxrnn.interop.to_cudnn(net.init(jax.random.key(0), 3)).shape
        (288,)
    """
    where = "to_cudnn"
    layers = lay.read_layers(where, (params,) if lay.is_record(params) else params, PEER)
    lay.check_alike(where, layers, PEER)
    every = [layer for directions in layers for layer in directions]
    for layer in every:
        lay.check_reset(where, layer, PEER, after=True)
    dtypes = {str(array.dtype) for layer in every for array in layer.fields.values()}
    if len(dtypes) > 1:
        raise TypeError(f"{where}: params expected one dtype, got {' and '.join(sorted(dtypes))}; it is one array")
    kind = every[0].sizes.kind
    entries = [lay.scatter(lay.unfold_biases(lay.with_bias(layer)), _layout(kind)) for layer in every]
    places = _places(kind, [layer.sizes for layer in every])
    return maps.to_jax(where, "params", np.concatenate([entries[k][name].ravel() for k, name, _ in places]))
