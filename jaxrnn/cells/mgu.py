"""The minimal gated unit (Zhou et al. 2016): a GRU whose one gate both resets and updates.

    f = σ(x W_xf + h_{t-1} W_hf + b_f)
    n = tanh(x W_xn + (f ⊙ h_{t-1}) W_hn + b_n)
    h_t = (1 - f) ⊙ h_{t-1} + f ⊙ n

Backward, with δv for ∂L/∂v, δh the cotangent of h_t from the output and from step t+1
together, and s = f ⊙ h_{t-1}:

    δa_n = δh ⊙ f ⊙ (1-n²)                  δs = δa_n W_hnᵀ
    δa_f = (δh ⊙ (n - h_{t-1}) + δs ⊙ h_{t-1}) ⊙ f(1-f)
    δh_{t-1} = δh ⊙ (1-f) + δs ⊙ f + δa_f W_hfᵀ
    δW_hf = Σ h_{t-1}ᵀ δa_f                 δW_hn = Σ sᵀ δa_n
    δW_x = Σ x_tᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ    with δa = [δa_f, δa_n]
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._family import FamilyConfig, checked_heads, dims, make_cell, recurrent_dims, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("f", "n")


class MGUParams(NamedTuple):
    """Parameters of :func:`mgu`; gates side by side in the order f n.

    With N heads `w_h` is `(N, D, GD)`, D = H/N, the gates of a head side by side.
    """

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "H GH"] | Float[Array, "N D GD"]
    b: Float[Array, "GH"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class MGUConfig(FamilyConfig):
    """The options of :func:`mgu`."""

    factory: ClassVar[str] = "mgu"
    gates: ClassVar = GATES
    use_bias: bool = True
    num_heads: int = 1

    def shapes(self, input_size: int) -> MGUParams:
        h, w_h = self.hidden_size, recurrent_dims(self.hidden_size, 2, self.num_heads)
        return MGUParams(dims(input_size, 2 * h), w_h, dims(2 * h) if self.use_bias else None)


def _recurrent_blocks(params: MGUParams) -> tuple[alg.Weight, alg.Weight]:
    """W_hf and W_hn, which meet different inputs."""
    hidden = params.w_x.shape[1] // 2
    return alg.columns(params.w_h, 0, hidden), alg.columns(params.w_h, hidden, 2 * hidden)


def _project(params: MGUParams, xs: Float[Array, "*B I"]) -> tuple[Array, ...]:
    return tuple(alg.split(alg.add(alg.dot(xs, params.w_x), params.b), 2))


def _forward(params: MGUParams, h: Float[Array, "*B H"], z: tuple[Array, ...]):
    z_f, z_n = z
    w_f, w_n = _recurrent_blocks(params)
    f = jax.nn.sigmoid(z_f + alg.dot(h, w_f))
    n = jnp.tanh(z_n + alg.dot(f * h, w_n))
    h = (1 - f) * h + f * n
    return h, h, (f, n)


def _backward(params: MGUParams, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    f, n = tape.residual
    h_before = tape.before
    w_f, w_n = _recurrent_blocks(params)
    dh = dh + dy
    da_n = dh * f * alg.tanh_slope(n)
    ds = alg.dot_transposed(da_n, w_n)
    da_f = (dh * (n - h_before) + ds * h_before) * alg.sigmoid_slope(f)
    return dh * (1 - f) + ds * f + alg.dot_transposed(da_f, w_f), (da_f, da_n)


def _accumulate(params: MGUParams, xs: Float[Array, "T *B I"], tape: Tape, deltas: tuple[Array, Array]):
    da_f, da_n = deltas
    w_f, w_n = _recurrent_blocks(params)
    da = jnp.concatenate([da_f, da_n], axis=-1)  # (T, *B, 2H)
    dw_h = [alg.outer(tape.before, da_f, w_f), alg.outer(tape.residual[0] * tape.before, da_n, w_n)]
    dparams = MGUParams(
        w_x=alg.outer(xs, da, params.w_x),
        w_h=jnp.concatenate(dw_h, axis=-1),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


RULE = Rule(_project, _forward, _backward, _accumulate, matrices=("w_x", "w_h"), prepare=Bound(alg.transpose, ("w_h",)))


def mgu_step(
    params: MGUParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a minimal gated unit.

    f = σ(x W_xf + h_{t-1} W_hf + b_f)
    n = tanh(x W_xn + (f ⊙ h_{t-1}) W_hn + b_n)
    h_t = (1 - f) ⊙ h_{t-1} + f ⊙ n,  y_t = h_t

    Args:
        params: `w_x (I, 2H)`, `w_h (H, 2H)`, `b (2H,)` or `None`, gates in the order f n.
            With N heads `w_h` is `(N, D, 2D)`, D = H/N.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.mgu(3).init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.mgu_step(params, jnp.zeros(3), jnp.ones(2))
        >>> h.shape
        (3,)

    References:
        Zhou, Wu, Zhang & Zhou 2016, arXiv:1603.09420, table 1.

    Differs from:
        1. Flax: its MGUCell resets after the recurrent product, and keeps the old state where
           f is 1; here, as in the paper, before it, and where f is 0.
        2. PyTorch and Keras have none.
    """
    _checks.params_record("mgu_step", params, MGUParams)
    hidden, heads = _checks.units("mgu_step", params, "w_h")
    return step_of("mgu_step", MGUConfig(hidden, num_heads=heads), RULE, params, state, x)


def mgu(
    hidden_size: int,
    *,
    use_bias: bool = True,
    num_heads: int = 1,
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """A minimal gated unit: a cell whose equations are those of :func:`mgu_step`.

    It has 2H(I + H/N + 1) parameters.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        num_heads: N, which divides H. The recurrent matrix is block-diagonal: `w_h (N, D, 2D)`, D = H/N,
            with the gates of a head side by side. A unit reads the units of its own head alone.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H, H)` of `w_h`, with heads `(D, D)`.
        bias_init: draws `b`, whose gates are f and n.

    Returns:
        A :class:`Cell` with :class:`MGUParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, or heads that do not divide it.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.mgu(256).init(jax.random.key(0), 28).w_h.shape
        (256, 512)
    """
    hidden_size = _checks.size("mgu", "hidden_size", hidden_size)
    use_bias, num_heads = _checks.boolean("mgu", "use_bias", use_bias), checked_heads("mgu", num_heads, hidden_size)
    config = MGUConfig(hidden_size, use_bias, num_heads)
    return make_cell(config, mgu_step, RULE, Initializers(kernel_init, recurrent_init, bias_init))
