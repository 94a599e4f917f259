"""The simple recurrent network (Elman 1990): h_t = φ(x_t W_x + h_{t-1} W_h + b).

Backward, with δv for ∂L/∂v and δh_t the cotangent of h_t from the output and from step
t+1 together:

    δa_t     = δh_t ⊙ φ'(a_t)
    δh_{t-1} = δa_t W_hᵀ
    δW_x = Σ x_tᵀ δa_t    δW_h = Σ h_{t-1}ᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._types import AnyArray, BiasInitializer, Cell, Initializer, Params, Rule, Tape, Units, made_by
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._step import checked_step, zeros_state

GATES = ("h",)

# φ, and φ' written in the value h = φ(a), which the backward pass has at hand.
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "tanh": (jnp.tanh, alg.tanh_slope),
    "relu": (jax.nn.relu, lambda h: (h > 0).astype(h.dtype)),
    "sigmoid": (jax.nn.sigmoid, alg.sigmoid_slope),
}

Activation = str | Callable[[Array], Array]


class RNNParams(NamedTuple):
    """Parameters of :func:`rnn`; a cell without bias has `b=None`."""

    w_x: Float[Array, "I H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, "H"] | None = None


def _project(params: Params, xs: Float[Array, "*B I"]) -> Float[Array, "*B H"]:
    return alg.add(alg.dot(xs, params.w_x), params.b)


def _activate(activation: Activation, a: Float[Array, "*B H"]) -> tuple[Array, Array | None]:
    """φ(a), and φ'(a) where it cannot be had from φ(a)."""
    if isinstance(activation, str):
        return ACTIVATIONS[activation][0](a), None
    h, pullback = jax.vjp(activation, a)
    if h.shape != a.shape:
        raise ValueError(f"rnn: activation expected an elementwise function, got one from shape {a.shape} to {h.shape}")
    return h.astype(a.dtype), pullback(jnp.ones_like(h))[0]


def _forward(activation: Activation, params: Params, h: Float[Array, "*B H"], z: Float[Array, "*B H"]):
    h, slope = _units_forward(activation, params, h, (z,), (alg.dot(h, params.w_h),))
    return h, h, slope


def _backward(activation: Activation, params: Params, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    _, (da,), _ = _units_backward(activation, params, tape, dh + dy)
    return alg.dot_transposed(da, params.w_h), da


def _units_forward(
    activation: Activation, params: Params, h: Array, zs: tuple[Array, ...], products: tuple[Array, ...]
):
    """From x W_x + b and h W_h."""
    return _activate(activation, zs[0] + products[0])


def _units_backward(activation: Activation, params: Params, tape: Tape, dh: Float[Array, "*B H"]):
    """δa; nothing passes by the product."""
    slope = ACTIVATIONS[activation][1](tape.after) if isinstance(activation, str) else tape.residual
    return None, (dh * slope,), ()


def _accumulate(params: Params, xs: Float[Array, "T *B I"], tape: Tape, da: Float[Array, "T *B H"]):
    dparams = params._replace(
        w_x=alg.outer(xs, da, params.w_x),
        w_h=alg.outer(tape.before, da, params.w_h),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


def _rule(activation: Activation) -> Rule:
    return Rule(
        project=_project,
        forward=functools.partial(_forward, activation),
        backward=functools.partial(_backward, activation),
        accumulate=_accumulate,
        matrices=("w_x", "w_h"),
        prepare=functools.partial(alg.turn, ("w_h",)),
        units=_units(activation) if isinstance(activation, str) else None,
    )


def _units(activation: str) -> Units:
    return Units(
        shown=alg.same,
        forward=functools.partial(_units_forward, activation),
        backward=functools.partial(_units_backward, activation),
        received=alg.plus,
        delta=_delta,
    )


def _delta(da: Array, extra: tuple[()]) -> Array:
    return da


RULES = {name: _rule(name) for name in ACTIVATIONS}


def rule_for(activation: Activation) -> Rule:
    """The rule of h_t = φ(x_t W_x + h_{t-1} W_h + b); a vector `w_h` is a diagonal matrix."""
    return RULES[activation] if isinstance(activation, str) else _rule(activation)


def check_activation(where: str, activation: Any) -> None:
    """`activation` is one that this family knows."""
    if not callable(activation):
        _checks.one_of(where, "activation", activation, (*ACTIVATIONS, "a callable"))


def _check_shapes(where: str, params: Any, input_shape: tuple[int, ...], hidden_size: int) -> None:
    _checks.input_features(where, input_shape, params.w_x)
    bias = {} if params.b is None else {"b": (hidden_size,)}
    shapes = {"w_x": (input_shape[-1], hidden_size), "w_h": (hidden_size, hidden_size), **bias}
    _checks.params_shapes(where, params, shapes)


def _check(hidden_size: int, use_bias: bool, where: str, params: Any, input_shape: tuple[int, ...]) -> None:
    _checks.params_record(where, params, RNNParams)
    _checks.params_presence(where, params, {"b": use_bias})
    _check_shapes(where, params, input_shape, hidden_size)


def rnn_step(
    params: RNNParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"], activation: Activation = "tanh"
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a simple recurrent network.

    h_t = φ(x_t W_x + h_{t-1} W_h + b),  y_t = h_t

    Args:
        params: `w_x (I, H)`, `w_h (H, H)`, `b (H,)` or `None`.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        activation: φ: "tanh", "relu", "sigmoid", or an elementwise callable.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype, shape or activation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.rnn(3)
        >>> params = cell.init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.rnn_step(params, jnp.zeros(3), jnp.ones(2))
        >>> h.shape
        (3,)

    References:
        Elman 1990, "Finding structure in time"; Goodfellow et al. 2016, equations 10.8 and 10.9.

    Differs from:
        1. PyTorch: one bias, where `torch.nn.RNNCell` adds two; kernels are (in, out).
        2. PyTorch: "sigmoid" and any callable are taken, not only "tanh" and "relu".
        3. Keras: returns (state, output), the order of `jax.lax.scan`; Keras returns (output, [state]).
    """
    check_activation("rnn_step", activation)
    _checks.params_record("rnn_step", params, RNNParams)
    x = _checks.floating("rnn_step", "x", x)
    hidden_size = _checks.rows("rnn_step", params, "w_h")
    _check_shapes("rnn_step", params, x.shape, hidden_size)
    zeros = functools.partial(zeros_state, hidden_size)
    return checked_step("rnn_step", rule_for(activation), zeros, params, state, x)


def rnn(
    hidden_size: int,
    *,
    use_bias: bool = True,
    activation: Activation = "tanh",
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer = initializers.gate_bias(),
) -> Cell:
    """A simple recurrent network: a cell whose equations are those of :func:`rnn_step`.

    It has H(I + H + 1) parameters; PyTorch's has H more, its second bias.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        activation: "tanh", "relu", "sigmoid", or an elementwise callable.
        kernel_init: draws `w_x`.
        recurrent_init: draws `w_h`. With `initializers.identity()` and "relu" the cell is
            an IRNN (Le et al. 2015).
        bias_init: draws `b`, whose only gate is named "h".

    Returns:
        A :class:`Cell` with :class:`RNNParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, or an unknown activation.

    Example:
        >>> import jax, jaxrnn
        >>> irnn = jaxrnn.rnn(100, activation="relu", recurrent_init=jaxrnn.initializers.identity())
        >>> irnn.init(jax.random.key(0), 28).w_h.shape
        (100, 100)
    """
    hidden_size = _checks.positive_int("rnn", "hidden_size", hidden_size)
    use_bias = _checks.boolean("rnn", "use_bias", use_bias)
    check_activation("rnn", activation)

    def init(key: Array, input_size: int, dtype: Any = None) -> RNNParams:
        input_size = _checks.positive_int("rnn.init", "input_size", input_size)
        dtype = jnp.result_type(float) if dtype is None else dtype
        key_x, key_h, key_b = jax.random.split(key, 3)
        return RNNParams(
            w_x=initializers.draw_gates(kernel_init, key_x, len(GATES), (input_size, hidden_size), dtype),
            w_h=initializers.draw_gates(recurrent_init, key_h, len(GATES), (hidden_size, hidden_size), dtype),
            b=bias_init(key_b, GATES, hidden_size, dtype) if use_bias else None,
        )

    return Cell(
        init=init,
        initial_state=functools.partial(zeros_state, hidden_size),
        step=functools.partial(rnn_step, activation=activation),
        rule=rule_for(activation),
        check=functools.partial(_check, hidden_size, use_bias),
        **made_by(rnn, hidden_size=hidden_size, use_bias=use_bias, activation=activation),
    )
