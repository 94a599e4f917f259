"""The update-gate network (Collins, Sohl-Dickstein & Sussillo 2017): an RNN whose one gate holds the state.

    g = σ(x W_xg + h_{t-1} W_hg + b_g)
    c = tanh(x W_xc + h_{t-1} W_hc + b_c)
    h_t = g ⊙ h_{t-1} + (1 - g) ⊙ c

Backward, with δv for ∂L/∂v and δh the cotangent of h_t from the output and from step t+1
together:

    δa_g = δh ⊙ (h_{t-1} - c) ⊙ g(1-g)      δa_c = δh ⊙ (1-g) ⊙ (1-c²)
    δh_{t-1} = δh ⊙ g + δa_t W_hᵀ           δW_h = Σ h_{t-1}ᵀ δa_t
    δW_x = Σ x_tᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ    with δa = [δa_g, δa_c]
"""

# ruff: noqa: F722, F821 (the strings are shapes)

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._family import FamilyConfig, dims, make_cell, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers


class UGRNNParams(NamedTuple):
    """Parameters of :func:`ugrnn`; gates side by side in the order g c."""

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "H GH"]
    b: Float[Array, "GH"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class UGRNNConfig(FamilyConfig):
    """The options of :func:`ugrnn`."""

    factory: ClassVar[str] = "ugrnn"
    gates: ClassVar = ("g", "c")
    use_bias: bool = True

    def shapes(self, input_size: int) -> UGRNNParams:
        h = self.hidden_size
        return UGRNNParams(dims(input_size, 2 * h), dims(h, 2 * h), dims(2 * h) if self.use_bias else None)


def _project(params: UGRNNParams, xs: Float[Array, "*B I"]) -> Float[Array, "*B GH"]:
    return alg.add(alg.dot(xs, params.w_x), params.b)


def _forward(params: UGRNNParams, h: Float[Array, "*B H"], z: Float[Array, "*B GH"]):
    a_g, a_c = alg.split(z + alg.dot(h, params.w_h), 2)
    g, c = jax.nn.sigmoid(a_g), jnp.tanh(a_c)
    h = g * h + (1 - g) * c
    return h, h, (g, c)


def _backward(params: UGRNNParams, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    g, c = tape.residual
    dh = dh + dy
    da_g = dh * (tape.before - c) * alg.sigmoid_slope(g)
    da_c = dh * (1 - g) * alg.tanh_slope(c)
    da = jnp.concatenate([da_g, da_c], axis=-1)
    return dh * g + alg.dot_transposed(da, params.w_h), da


def _accumulate(params: UGRNNParams, xs: Float[Array, "T *B I"], tape: Tape, da: Float[Array, "T *B GH"]):
    dparams = UGRNNParams(
        w_x=alg.outer(xs, da, params.w_x),
        w_h=alg.outer(tape.before, da, params.w_h),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


RULE = Rule(_project, _forward, _backward, _accumulate, matrices=("w_x", "w_h"), prepare=Bound(alg.transpose, ("w_h",)))


def ugrnn_step(
    params: UGRNNParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of an update-gate network.

    Args:
        params: `w_x (I, 2H)`, `w_h (H, 2H)`, `b (2H,)` or `None`, gates in the order g c.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.ugrnn(3).init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.ugrnn_step(params, jnp.zeros(3), jnp.ones(2))
        >>> h.shape
        (3,)

    References:
        Collins, Sohl-Dickstein & Sussillo 2017, arXiv:1611.09913.
    """
    _checks.params_record("ugrnn_step", params, UGRNNParams)
    return step_of("ugrnn_step", UGRNNConfig(_checks.rows("ugrnn_step", params, "w_h")), RULE, params, state, x)


def ugrnn(
    hidden_size: int,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """An update-gate network: a cell whose equations are those of :func:`ugrnn_step`.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H, H)` of `w_h`.
        bias_init: draws `b`, whose gates are g and c.

    Returns:
        A :class:`Cell` with :class:`UGRNNParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.ugrnn(256).init(jax.random.key(0), 28).w_h.shape
        (256, 512)
    """
    config = UGRNNConfig(
        _checks.size("ugrnn", "hidden_size", hidden_size), _checks.boolean("ugrnn", "use_bias", use_bias)
    )
    return make_cell(config, ugrnn_step, RULE, Initializers(kernel_init, recurrent_init, bias_init))
