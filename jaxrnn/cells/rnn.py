"""The simple recurrent network (Elman 1990): h_t = φ(x_t W_x + h_{t-1} W_h + b).

Backward, with δv for ∂L/∂v and δh_t the cotangent of h_t from the output and from step
t+1 together:

    δa_t     = δh_t ⊙ φ'(a_t)
    δh_{t-1} = δa_t W_hᵀ
    δW_x = Σ x_tᵀ δa_t    δW_h = Σ h_{t-1}ᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell, Params, Pointwise, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._family import FamilyConfig, dims, make_cell, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("h",)

# φ, and φ' written in the value h = φ(a), which the backward pass has at hand.
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "tanh": (jnp.tanh, alg.tanh_slope),
    "relu": (jax.nn.relu, alg.relu_slope),
    "sigmoid": (jax.nn.sigmoid, alg.sigmoid_slope),
}

Activation = str | Callable[[Array], Array]


class RNNParams(NamedTuple):
    """Parameters of :func:`rnn`; a cell without bias has `b=None`."""

    w_x: Float[Array, "I H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, "H"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class RNNConfig(FamilyConfig):
    """The options of :func:`rnn`."""

    factory: ClassVar[str] = "rnn"
    gates: ClassVar = GATES
    use_bias: bool = True
    activation: Activation = "tanh"

    def shapes(self, input_size: int) -> RNNParams:
        h = self.hidden_size
        return RNNParams(dims(input_size, h), dims(h, h), dims(h) if self.use_bias else None)


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
    h, slope = _pointwise_forward(activation, params, h, (z,), (alg.dot(h, params.w_h),))
    return h, h, slope


def _backward(activation: Activation, params: Params, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    _, (da,), _ = _pointwise_backward(activation, params, tape, dh + dy)
    return alg.dot_transposed(da, params.w_h), da


def _pointwise_forward(
    activation: Activation, params: Params, h: Array, zs: tuple[Array, ...], products: tuple[Array, ...]
):
    """From x W_x + b and h W_h."""
    return _activate(activation, zs[0] + products[0])


def _pointwise_backward(activation: Activation, params: Params, tape: Tape, dh: Float[Array, "*B H"]):
    """δa; the whole cotangent of h_{t-1} goes through the product."""
    slope = ACTIVATIONS[activation][1](tape.after) if isinstance(activation, str) else tape.residual
    return None, (dh * slope,), ()


def _accumulate(params: Params, xs: Float[Array, "T *B I"], tape: Tape, da: Float[Array, "T *B H"]):
    dparams = params._replace(
        w_x=alg.outer(xs, da, params.w_x),
        w_h=alg.outer(tape.before, da, params.w_h),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


def _delta(da: Array, extra: tuple[()]) -> Array:
    return da


def rule_for(activation: Activation) -> Rule:
    """The rule of h_t = φ(x_t W_x + h_{t-1} W_h + b); a vector `w_h` is a diagonal matrix."""
    forward, backward = Bound(_forward, activation), Bound(_backward, activation)
    pointwise = Pointwise(
        hidden=alg.identity,
        forward=Bound(_pointwise_forward, activation),
        backward=Bound(_pointwise_backward, activation),
        add_to_hidden=alg.plus,
        delta=_delta,
        stands_for=(forward, backward),
    )
    return Rule(
        project=_project,
        forward=forward,
        backward=backward,
        accumulate=_accumulate,
        matrices=("w_x", "w_h"),
        prepare=Bound(alg.transpose, ("w_h",)),
        pointwise=pointwise if isinstance(activation, str) else None,
    )


def check_activation(where: str, activation: Any) -> None:
    """`activation` is a callable, or a name in `ACTIVATIONS`."""
    _checks.name_or_function(where, "activation", activation, tuple(ACTIVATIONS))


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
        2. PyTorch: supports "sigmoid" and any callable, not only "tanh" and "relu".
        3. Keras: returns (state, output), the order of `jax.lax.scan`; Keras returns (output, [state]).
    """
    check_activation("rnn_step", activation)
    _checks.params_record("rnn_step", params, RNNParams)
    config = RNNConfig(_checks.rows("rnn_step", params, "w_h"))
    return step_of("rnn_step", config, rule_for(activation), params, state, x)


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
    check_activation("rnn", activation)
    config = RNNConfig(
        _checks.positive_int("rnn", "hidden_size", hidden_size),
        _checks.boolean("rnn", "use_bias", use_bias),
        activation,
    )
    draw = Initializers(kernel_init, recurrent_init, bias_init)
    return make_cell(config, Bound(rnn_step, activation=activation), rule_for(activation), draw)
