"""One step each, for `nnx.RNN` and `nnx.Bidirectional`: the cells of the modules of layers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, State
from jaxrnn.cells import gru, lstm, min_gru, min_lstm, rnn
from jaxrnn.initializers import Initializer, draw
from jaxrnn.layers import Layer
from jaxrnn.modules import _weights
from jaxrnn.modules._loading import Loading
from jaxrnn.modules._variants import (
    gru_options,
    lru_factory,
    lstm_options,
    rg_lru_factory,
    rnn_options,
    slstm_factory,
    without_recurrent,
)
from jaxrnn.modules._weights import DrawingOptions


class RecurrentCell(Loading, nnx.RNNCellBase):
    """One step of a functional cell; the base of :class:`RNNCell`, :class:`LSTMCell` and :class:`GRUCell`.

    Its parameters are `nnx.Param`s under the names of the functional API, such as `w_x`.

    Attributes:
        cell: the functional :class:`jaxrnn.Cell`.
    """

    def __init__(
        self,
        factory: Callable[..., Cell],
        options: Mapping[str, Any],
        input_size: int,
        hidden_size: int,
        bias: bool,
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **drawing: Any,
    ):
        where = type(self).__name__
        self.input_size = _checks.size(where, "input_size", input_size)
        self.hidden_size = _checks.size(where, "hidden_size", hidden_size)
        self.bias = _checks.boolean(where, "bias", bias)
        _checks.float_dtype(where, "param_dtype", param_dtype)
        self.param_dtype = param_dtype
        self.num_heads: int = options.get("num_heads", 1)
        options = {**options, "use_bias": self.bias}
        self._cell = factory(self.hidden_size, **options)

        def init(key: Array, **drawn_by: Any) -> Params:
            return factory(self.hidden_size, **options, **drawn_by).init(key, self.input_size, param_dtype)

        params, make_param = _weights.draw(where, rngs, self.hidden_size, init, drawing, self.num_heads)
        _weights.attach(self, params, make_param)

    @property
    def cell(self) -> Cell:
        """The functional cell that computes the step."""
        return self._cell

    @property
    def params(self) -> Params:
        """The parameters in the form of the functional API, for `self.cell`."""
        return _weights.detach(self)

    def _parts(self) -> tuple[Layer, list[Any]]:
        return self.cell, [self]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, carry: State, inputs: Float[AnyArray, "*B I"]
    ) -> tuple[State, Float[Array, "*B H"]]:
        """One step: the state before and x_t `(*B, I)` to the state after and y_t.

        Raises:
            TypeError, ValueError: for a wrong structure, dtype or shape.
        """
        return self.cell.step(self.params, *_weights.values((carry, inputs)))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> State:
        """The state before the first step, in the dtype of the parameters.

        Args:
            input_shape: the shape `(*B, I)` of one step's input.
            rngs: `carry_init` draws from its stream "carry".
            carry_init: draws every array of the state; by default it is zeros.

        Raises:
            TypeError: for a `carry_init` without `rngs`.
        """
        where = f"{type(self).__name__}.initialize_carry"
        input_shape = _checks.axes(where, "input_shape", input_shape)
        if not input_shape:
            raise ValueError(f"{where}: input_shape expected (*B, I), got ()")
        zeros = self.cell.initial_state(input_shape[:-1], self.param_dtype)
        if carry_init is None:
            return zeros
        _checks.function(where, "carry_init", carry_init, "of (key, shape, dtype)")
        stream = rngs["carry"] if isinstance(rngs, nnx.Rngs) else rngs
        if not isinstance(stream, nnx.RngStream):
            raise TypeError(
                f"{where}: rngs expected nnx.Rngs or an nnx.RngStream, as there is a carry_init; "
                f"got {_checks.describe(rngs)}"
            )
        draw_leaf = lambda leaf: draw(f"{where}: carry_init", carry_init, stream(), leaf.shape, leaf.dtype)  # noqa: E731
        return jax.tree.map(draw_leaf, zeros)

    @property
    def num_feature_axes(self) -> int:
        """The axes of the input that are not batch axes."""
        return 1


class LSTMCell(RecurrentCell):
    """One step of a long short-term memory, with the arguments of `torch.nn.LSTMCell`.

    It computes :func:`jaxrnn.lstm_step`, for use in `nnx.RNN` and `nnx.Bidirectional`.
    :class:`LSTM` is faster than `nnx.RNN(LSTMCell(...))`: it computes the input products outside
    the loop, and its backward pass is the hand-written one.

    Args:
        input_size, hidden_size, bias, proj_size, peephole, coupled, layer_norm, num_heads, param_dtype,
            kernel_init, recurrent_init, bias_init, kernel_metadata, recurrent_metadata,
            bias_metadata, rngs: as in :class:`LSTM`.

    Raises:
        TypeError, ValueError: as :class:`LSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = nnx.RNN(jaxrnn.modules.LSTMCell(8, 16, rngs=nnx.Rngs(0)), return_carry=True)
        >>> state, ys = layer(jnp.ones((4, 20, 8)))
        >>> ys.shape, state.c.shape
        ((4, 20, 16), (4, 16))

    Differs from:
        1. Flax: the carry is a :class:`LSTMState` with the fields h and c, not a tuple (c, h).
        2. PyTorch: takes and returns (state, x) and (state, y), the order of `jax.lax.scan`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        proj_size: int = 0,
        peephole: bool = False,
        coupled: bool = False,
        layer_norm: bool = False,
        num_heads: int = 1,
        **options: Unpack[DrawingOptions],
    ):
        variants = {"peephole": peephole, "coupled": coupled, "layer_norm": layer_norm}
        super().__init__(
            lstm, lstm_options("LSTMCell", hidden_size, num_heads, proj_size, **variants),
            input_size, hidden_size, bias, **options,
        )  # fmt: skip
        self.proj_size = proj_size


class GRUCell(RecurrentCell):
    """One step of a gated recurrent unit, with the arguments of `torch.nn.GRUCell`.

    It computes :func:`jaxrnn.gru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, reset_after, layer_norm, num_heads, param_dtype, kernel_init,
            recurrent_init, bias_init, kernel_metadata, recurrent_metadata, bias_metadata,
            rngs: as in :class:`GRU`.

    Raises:
        TypeError, ValueError: as :class:`GRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.GRUCell(8, 16, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. Flax: its GRUCell has no place for `b_hn`, the bias inside the reset.
        2. PyTorch: as :class:`LSTMCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        num_heads: int = 1,
        **options: Unpack[DrawingOptions],
    ):
        super().__init__(
            gru, gru_options("GRUCell", hidden_size, num_heads, reset_after=reset_after, layer_norm=layer_norm),
            input_size, hidden_size, bias, **options,
        )  # fmt: skip


class RNNCell(RecurrentCell):
    """One step of a simple recurrent unit, with the arguments of `torch.nn.RNNCell`.

    It computes :func:`jaxrnn.rnn_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, nonlinearity, num_heads, param_dtype, kernel_init, recurrent_init,
            bias_init, kernel_metadata, recurrent_metadata, bias_metadata, rngs: as in
            :class:`RNN`.

    Raises:
        TypeError, ValueError: as :class:`RNN`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> both = (nnx.RNN(jaxrnn.modules.RNNCell(8, 16, rngs=nnx.Rngs(seed))) for seed in range(2))
        >>> nnx.Bidirectional(*both)(jnp.ones((4, 20, 8))).shape
        (4, 20, 32)

    Differs from:
        1. Flax, PyTorch: as :class:`LSTMCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str | Callable[..., Any] = "tanh",
        *,
        num_heads: int = 1,
        **options: Unpack[DrawingOptions],
    ):
        super().__init__(
            rnn, rnn_options("RNNCell", hidden_size, num_heads, nonlinearity),
            input_size, hidden_size, bias, **options,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class MinGRUCell(RecurrentCell):
    """One step of a minimal GRU.

    It computes :func:`jaxrnn.min_gru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, param_dtype, kernel_init, bias_init, kernel_metadata,
            bias_metadata, rngs: as in :class:`MinGRU`.

    Raises:
        TypeError, ValueError: as :class:`MinGRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.MinGRUCell(8, 16, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Unpack[DrawingOptions]):
        factory = without_recurrent("MinGRUCell", min_gru, options)
        super().__init__(factory, {}, input_size, hidden_size, bias, **options)


class MinLSTMCell(RecurrentCell):
    """One step of a minimal LSTM.

    It computes :func:`jaxrnn.min_lstm_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, param_dtype, kernel_init, bias_init, kernel_metadata,
            bias_metadata, rngs: as in :class:`MinLSTM`.

    Raises:
        TypeError, ValueError: as :class:`MinLSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.MinLSTMCell(8, 16, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Unpack[DrawingOptions]):
        factory = without_recurrent("MinLSTMCell", min_lstm, options)
        super().__init__(factory, {}, input_size, hidden_size, bias, **options)


class RGLRUCell(RecurrentCell):
    """One step of a real-gated linear recurrent unit.

    It computes :func:`jaxrnn.rg_lru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, num_blocks, param_dtype, kernel_init, bias_init,
            kernel_metadata, bias_metadata, rngs: as in :class:`RGLRU`.

    Raises:
        TypeError, ValueError: as :class:`RGLRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.RGLRUCell(8, 16, num_blocks=4, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_blocks: int = 1,
        **options: Unpack[DrawingOptions],
    ):
        factory = rg_lru_factory("RGLRUCell", options)
        super().__init__(factory, {"num_blocks": num_blocks}, input_size, hidden_size, bias, **options)
        self.num_blocks = num_blocks


class LRUCell(RecurrentCell):
    """One step of a linear recurrent unit, whose state is complex and whose output is real.

    It computes :func:`jaxrnn.lru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, output_size, r_min, r_max, max_phase, param_dtype, kernel_init,
            kernel_metadata, rngs: as in :class:`LRU`.

    Raises:
        TypeError, ValueError: as :class:`LRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.LRUCell(8, 16, output_size=8, rngs=nnx.Rngs(0))
        >>> s, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> s.shape, s.dtype.name, y.shape
        ((4, 16), 'complex64', (4, 8))

    Differs from:
        1. PyTorch and Flax have none. There is no `bias`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        output_size: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        **options: Unpack[DrawingOptions],
    ):
        own = {"output_size": output_size, "r_min": r_min, "r_max": r_max, "max_phase": max_phase}
        super().__init__(lru_factory("LRUCell", options), own, input_size, hidden_size, False, **options)
        self.output_size = hidden_size if output_size is None else output_size


class SLSTMCell(RecurrentCell):
    """One step of an LSTM with scalar memory, exponential gates and a normaliser.

    It computes :func:`jaxrnn.slstm_step`; it is used as :class:`LSTMCell` is. Its carry is a
    :class:`jaxrnn.SLSTMState`.

    Args:
        input_size, hidden_size, bias, num_heads, forget_gate, param_dtype, kernel_init,
            recurrent_init, bias_init, kernel_metadata, recurrent_metadata, bias_metadata,
            rngs: as in :class:`SLSTM`.

    Raises:
        TypeError, ValueError: as :class:`SLSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.SLSTMCell(8, 16, num_heads=4, rngs=nnx.Rngs(0))
        >>> state, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> y.shape, state.m.shape
        ((4, 16), (4, 16))

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_heads: int = 1,
        forget_gate: str = "sigmoid",
        **options: Unpack[DrawingOptions],
    ):
        variants = {"num_heads": num_heads, "forget_gate": forget_gate}
        super().__init__(slstm_factory(options), variants, input_size, hidden_size, bias, **options)
        self.forget_gate = forget_gate
