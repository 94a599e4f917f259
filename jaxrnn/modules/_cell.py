"""The base of the modules of cells: one step each, for `nnx.RNN` and `nnx.Bidirectional`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, State
from jaxrnn.episodes import reset_state, truncate
from jaxrnn.initializers import Initializer, draw
from jaxrnn.layers import Layer
from jaxrnn.modules import _weights
from jaxrnn.modules._loading import Loading


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

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
        """The state before the first step of sequences with these batch axes: zeros.

        Args:
            batch_shape: `(*B,)`, a tuple.
            dtype: by default that of the parameters.

        Raises:
            TypeError, ValueError: for what is no tuple of sizes or no floating-point dtype.
        """
        where = f"{type(self).__name__}.initial_state"
        dtype = self.param_dtype if dtype is None else _checks.float_dtype(where, "dtype", dtype)
        return self.cell.initial_state(_checks.batch_shape(where, batch_shape), dtype)

    def reset_state(self, state: State, resets: Bool[AnyArray, "*B"]) -> State:
        """The state with which a step begins: a new one where `resets` are true; see :func:`jaxrnn.reset_state`."""
        return reset_state(self.cell, *_weights.values((state, resets)))

    def truncate(self, state: State) -> State:
        """The same state, through which no gradient flows; see :func:`jaxrnn.truncate`."""
        return truncate(_weights.values(state))

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
