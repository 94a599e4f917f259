"""The base of `RNN`, `LSTM` and `GRU`: a functional network, its parameters, PyTorch's shapes."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params
from jaxrnn.episodes import reset_state, truncate
from jaxrnn.layers import Layer
from jaxrnn.modules import _layout, _weights
from jaxrnn.modules._loading import Loading
from jaxrnn.modules._weights import DrawingOptions
from jaxrnn.network import MOST_LAYERS, Network, stack
from jaxrnn.sequence import registry
from jaxrnn.sequence.arguments import checkpoint_of
from jaxrnn.sequence.implementations.protocol import Implementation


class LayerOptions(DrawingOptions, total=False):
    """The keyword arguments of every module of layers, beside those of PyTorch and of its cells."""

    checkpoint: str | int | None
    implementation: str | Implementation | None
    compute_dtype: Any
    deterministic: bool


KeySource = nnx.Rngs | nnx.RngStream | Array


class Recurrent(Loading, nnx.Module):
    """A stack of layers of one kind of cell; the base of :class:`RNN`, :class:`LSTM` and :class:`GRU`.

    Attributes:
        network: the functional :class:`jaxrnn.Network` that the module runs. For options that the
            module lacks, such as `truncate`, call `self.network.unroll(self.params, xs, ...)`.
        layers: the `nnx.Param`s of each layer, under the names of the functional API:
            `layers[0].w_x`, or `layers[0].forward.w_x` of a bidirectional module.
        deterministic: whether dropout is off; `train()` and `eval()` set it.
        rngs: the stream that dropout draws from, or `None` if there is none.
    """

    def __init__(
        self,
        factory: Callable[..., Cell],
        options: Mapping[str, Any],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        *,
        checkpoint: str | int | None = None,
        implementation: str | Implementation | None = None,
        compute_dtype: Any = None,
        param_dtype: Any = jnp.float32,
        deterministic: bool = False,
        rngs: nnx.Rngs,
        **drawing: Any,
    ):
        where = type(self).__name__
        self.input_size = _checks.size(where, "input_size", input_size)
        self.hidden_size = _checks.size(where, "hidden_size", hidden_size)
        self.num_layers = _checks.size(where, "num_layers", num_layers, MOST_LAYERS)
        self.bias = _checks.boolean(where, "bias", bias)
        self.batch_first = _checks.boolean(where, "batch_first", batch_first)
        self.dropout = _checks.rate(where, "dropout", dropout)
        self.bidirectional = _checks.boolean(where, "bidirectional", bidirectional)
        self.checkpoint = checkpoint_of(where, checkpoint)
        registry.named(where, implementation)
        self.implementation = implementation
        if compute_dtype is not None:
            _checks.float_dtype(where, "compute_dtype", compute_dtype, narrow=True)
        self.compute_dtype = compute_dtype
        _checks.float_dtype(where, "param_dtype", param_dtype)
        self.param_dtype = param_dtype
        self.deterministic = _checks.boolean(where, "deterministic", deterministic)
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"{where}: dropout = {dropout} does nothing with num_layers = 1; "
                "it acts on the outputs of every layer but the last",
                stacklevel=5,  # past two constructors and the two frames of nnx's own
            )
        self.num_heads: int = options.get("num_heads", 1)
        options = {**options, "use_bias": self.bias}

        def network(**drawn_by: Any) -> Network:
            cells = [factory(self.hidden_size, **options, **drawn_by)] * self.num_layers
            return stack(cells, bidirectional=self.bidirectional, dropout=self.dropout if self._drops else 0.0)

        def init(key: Array, **drawn_by: Any) -> Params:
            return network(**drawn_by).init(key, self.input_size, param_dtype)

        self._network = network()

        params, make_param = _weights.draw(where, rngs, self.hidden_size, init, drawing, self.num_heads)
        self.layers = nnx.List([_weights.Weights(layer, make_param) for layer in params])
        self.rngs: nnx.RngStream | None = nnx.data(None)
        if self._drops and ("dropout" in rngs or "default" in rngs):
            self.rngs = rngs["dropout"].fork()

    @property
    def network(self) -> Network:
        """The functional network that the module runs."""
        return self._network

    @property
    def _drops(self) -> bool:
        return self.dropout > 0 and self.num_layers > 1

    @property
    def params(self) -> Params:
        """The parameters in the form of the functional API, a tuple over layers, for `self.network`."""
        return tuple(_weights.detach(layer) for layer in self.layers)

    def _parts(self) -> tuple[Layer, list[Any]]:
        return self.network.layers[0], list(self.layers)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the options that `nnx.view` can change.

        Args:
            deterministic: whether dropout is off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _dropout_key(self, deterministic: bool | None, rngs: KeySource | None) -> Array | None:
        where = type(self).__name__
        chosen = self.deterministic if deterministic is None else deterministic
        if _checks.boolean(where, "deterministic", chosen) or not self._drops:
            return None
        source = self.rngs if rngs is None else rngs
        if isinstance(source, nnx.Rngs):
            source = source["dropout"]
        if isinstance(source, nnx.RngStream):
            return source()
        if not isinstance(source, jax.Array):
            raise TypeError(
                f"{where}: rngs expected nnx.Rngs, an nnx.RngStream or a key, for dropout, got "
                f"{_checks.describe(source)}; without dropout: eval(), or deterministic=True"
            )
        return source

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Any:
        """The states before the first step, as the module takes and returns them: zeros.

        Args:
            batch_shape: `(*B,)`, a tuple.
            dtype: by default that of the parameters.

        Returns:
            `h_0 (L*D, *B, H)`; of an LSTM the tuple `(h_0, c_0)`.

        Raises:
            TypeError, ValueError: for what is no tuple of sizes or no floating-point dtype.
        """
        where = f"{type(self).__name__}.initial_state"
        dtype = self.param_dtype if dtype is None else _checks.float_dtype(where, "dtype", dtype)
        return _layout.module_states(self.network.initial_state(_checks.batch_shape(where, batch_shape), dtype))

    def reset_state(self, hx: Any, resets: Bool[AnyArray, "*B"]) -> Any:
        """The states with which the next call begins: zeros where an episode begins.

        Between the steps of one call give it `resets` instead.

        Args:
            hx: the states after the call before, as it returned them.
            resets: booleans `(*B,)`: `done` of the step before.

        Raises:
            TypeError, ValueError: for states of a wrong structure or shape, or `resets` that are not booleans.
        """
        where = f"{type(self).__name__}.reset_state"
        hx, resets = _weights.values((hx, resets))
        resets = _checks.step_mask(where, "resets", resets, _checks.array(where, "resets", resets).shape)
        states = _layout.unstack_states(where, self.network, hx, resets.shape, self.batch_first)
        if states is None:
            raise TypeError(f"{where}: hx expected states, got None; a call without states begins with new ones")
        return _layout.module_states(reset_state(self.network, states, resets))

    def truncate(self, hx: Any) -> Any:
        """The same states, through which no gradient flows; see :func:`jaxrnn.truncate`."""
        return truncate(_weights.values(hx))

    def __call__(
        self,
        xs: AnyArray,
        hx: Any = None,
        *,
        lengths: AnyArray | None = None,
        mask: AnyArray | None = None,
        resets: AnyArray | None = None,
        deterministic: bool | None = None,
        rngs: KeySource | None = None,
    ) -> tuple[Array, Any]:
        """Runs the network over sequences.

        Args:
            xs: `(T, *B, I)`, or with `batch_first` `(*B, T, I)`; without a batch `(T, I)`.
            hx: the initial states, by default zeros: `h_0 (L*D, *B, H)`; of an LSTM the tuple
                `(h_0, c_0)`, with a projection of P entries in `h_0`. The row of a layer and
                direction is layer * D + direction. Never batch-first.
            lengths: `(*B,)` integers in 0..T, in any order, instead of PyTorch's packing. Steps
                beyond a length are masked, their outputs are zeros, the final state is that at
                the length, and the backward direction begins there.
            mask: booleans `(T, *B)`, with `batch_first` `(*B, T)`: the general form of
                `lengths`; give one of the two.
            resets: booleans of the same shape, true at the first step of an episode. Zeros
                replace the state between two episodes, in either direction of reading.
            deterministic: whether dropout is off; by default `self.deterministic`.
            rngs: the source of dropout, by default `self.rngs`: `nnx.Rngs`, an `nnx.RngStream`,
                or a key.

        Returns:
            `(output, h_n)`, of an LSTM `(output, (h_n, c_n))`: outputs of all steps, `(T, *B, D*H)`
            in the layout of `xs`, and final states in that of `hx`.

        Raises:
            TypeError, ValueError: for arguments of a wrong type, dtype, shape or structure.
        """
        where = type(self).__name__
        xs, hx, lengths, mask, resets = _weights.values((xs, hx, lengths, mask, resets))
        xs = _layout.time_first(where, xs, self.input_size, self.batch_first)
        time, batch_shape = xs.shape[0], xs.shape[1:-1]
        if lengths is not None:
            lengths = _checks.sequence_lengths(where, lengths, time, batch_shape)
        mask, resets = (
            _layout.steps_time_first(where, name, value, (time, *batch_shape), self.batch_first)
            for name, value in (("mask", mask), ("resets", resets))
        )
        finals, ys = self.network.unroll(
            self.params,
            xs,
            _layout.unstack_states(where, self.network, hx, batch_shape, self.batch_first),
            lengths=lengths,
            mask=mask,
            resets=resets,
            checkpoint=self.checkpoint,
            implementation=self.implementation,
            compute_dtype=self.compute_dtype,
            key=self._dropout_key(deterministic, rngs),
        )
        return _layout.module_layout(ys, self.batch_first), _layout.module_states(finals)
