"""The simple recurrent network (Elman 1990): h_t = φ(x_t W_x + h_{t-1} W_h + b).

Backward, with δv for ∂L/∂v and δh_t the cotangent of h_t from the output and from step
t+1 together:

    δa_t     = δh_t ⊙ φ'(a_t)
    δh_{t-1} = δa_t W_hᵀ
    δW_x = Σ x_tᵀ δa_t    δW_h = Σ h_{t-1}ᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ
"""

import dataclasses
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell, Params, Pointwise, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._activation import AnyActivation, Phi, checked_activation, is_named
from jaxrnn.cells._family import FamilyConfig, checked_heads, dims, make_cell, recurrent_dims, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("h",)


class RNNParams(NamedTuple):
    """Parameters of :func:`rnn`; a cell without bias has `b=None`, and N heads `w_h (N, D, D)`, D = H/N."""

    w_x: Float[Array, "I H"]
    w_h: Float[Array, "H H"] | Float[Array, "N D D"]
    b: Float[Array, "H"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class RNNConfig(FamilyConfig):
    """The options of :func:`rnn`."""

    factory: ClassVar[str] = "rnn"
    gates: ClassVar = GATES
    use_bias: bool = True
    activation: AnyActivation = "tanh"
    num_heads: int = 1

    def shapes(self, input_size: int) -> RNNParams:
        h, w_h = self.hidden_size, recurrent_dims(self.hidden_size, 1, self.num_heads)
        return RNNParams(dims(input_size, h), w_h, dims(h) if self.use_bias else None)


def _project(params: Params, xs: Float[Array, "*B I"]) -> Float[Array, "*B H"]:
    return alg.add(alg.dot(xs, params.w_x), params.b)


def _forward(phi: Phi, params: Params, h: Float[Array, "*B H"], z: Float[Array, "*B H"]):
    h, kept = _pointwise_forward(phi, params, h, (z,), (alg.dot(h, params.w_h),))
    return h, h, kept


def _backward(phi: Phi, params: Params, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    _, (da,), _ = _pointwise_backward(phi, params, tape, dh + dy)
    return alg.dot_transposed(da, params.w_h), da


def _pointwise_forward(phi: Phi, params: Params, h: Array, zs: tuple[Array, ...], products: tuple[Array, ...]):
    """From x W_x + b and h W_h."""
    return phi(zs[0] + products[0])


def _pointwise_backward(phi: Phi, params: Params, tape: Tape, dh: Float[Array, "*B H"]):
    """δa; the whole cotangent of h_{t-1} goes through the product."""
    return None, (phi.pull_back(tape.after, tape.residual, dh),), ()


def _accumulate(params: Params, xs: Float[Array, "T *B I"], tape: Tape, da: Float[Array, "T *B H"]):
    dparams = params._replace(
        w_x=alg.outer(xs, da, params.w_x),
        w_h=alg.outer(tape.before, da, params.w_h),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


def _delta(da: Array, extra: tuple[()]) -> Array:
    return da


def rule_for(where: str, activation: AnyActivation) -> Rule:
    """The rule of h_t = φ(x_t W_x + h_{t-1} W_h + b); a vector `w_h` is a diagonal matrix."""
    phi = Phi(where, activation)
    forward, backward = Bound(_forward, phi), Bound(_backward, phi)
    pointwise = Pointwise(
        hidden=alg.identity,
        forward=Bound(_pointwise_forward, phi),
        backward=Bound(_pointwise_backward, phi),
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
        pointwise=pointwise if is_named(activation) else None,
    )


def rnn_step(
    params: RNNParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"], activation: AnyActivation = "tanh"
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a simple recurrent network.

    h_t = φ(x_t W_x + h_{t-1} W_h + b),  y_t = h_t

    Args:
        params: `w_x (I, H)`, `w_h (H, H)`, `b (H,)` or `None`. With N heads `w_h` is `(N, D, D)`, D = H/N.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        activation: φ: "tanh", "relu", "sigmoid" or another name of :class:`jaxrnn.Activation`, or one of those; or
            a callable, which is called with the vector `(H,)` of a sequence. It may mix units, as softmax does.

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
        2. PyTorch: supports other activations and any callable, not only "tanh" and "relu".
        3. Keras: returns (state, output), the order of `jax.lax.scan`; Keras returns (output, [state]).
    """
    activation = checked_activation("rnn_step", activation)
    _checks.params_record("rnn_step", params, RNNParams)
    hidden, heads = _checks.units("rnn_step", params, "w_h")
    config = RNNConfig(hidden, num_heads=heads)
    return step_of("rnn_step", config, rule_for("rnn", activation), params, state, x)


def rnn(
    hidden_size: int,
    *,
    use_bias: bool = True,
    activation: AnyActivation = "tanh",
    num_heads: int = 1,
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """A simple recurrent network: a cell whose equations are those of :func:`rnn_step`.

    It has H(I + H/N + 1) parameters; PyTorch's has H more, its second bias.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        activation: "tanh", "relu", "sigmoid" or another name of :class:`jaxrnn.Activation`, or one of those; or
            a callable, which is called with the vector `(H,)` of a sequence. It may mix units, as softmax does.
        num_heads: N, which divides H. The recurrent matrix is block-diagonal: `w_h (N, D, D)`, D = H/N.
            A unit reads the units of its own head alone.
        kernel_init: draws `w_x`.
        recurrent_init: draws `w_h`, with heads each block `(D, D)`. With `initializers.identity()`
            and "relu" the cell is an IRNN (Le et al. 2015).
        bias_init: draws `b`, whose only gate is named "h".

    Returns:
        A :class:`Cell` with :class:`RNNParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, heads that do not divide it, or an
            unknown activation.

    Example:
        >>> import jax, jaxrnn
        >>> irnn = jaxrnn.rnn(100, activation="relu", recurrent_init=jaxrnn.initializers.identity())
        >>> irnn.init(jax.random.key(0), 28).w_h.shape
        (100, 100)
    """
    activation = checked_activation("rnn", activation)
    hidden_size = _checks.size("rnn", "hidden_size", hidden_size)
    config = RNNConfig(
        hidden_size,
        _checks.boolean("rnn", "use_bias", use_bias),
        activation,
        checked_heads("rnn", num_heads, hidden_size),
    )
    draw = Initializers(kernel_init, recurrent_init, bias_init)
    return make_cell(config, Bound(rnn_step, activation=activation), rule_for("rnn", activation), draw)
