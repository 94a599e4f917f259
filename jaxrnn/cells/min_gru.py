"""The minimal GRU (Feng et al. 2024): a GRU whose gate and candidate read the input alone.

    z = σ(x W_z + b_z)        n = x W_n + b_n
    h_t = (1 - z) ⊙ h_{t-1} + z ⊙ n

The step is affine in h_{t-1}: h_t = a ⊙ h_{t-1} + b with a = 1 - z and b = z ⊙ n.

Backward, with δv for ∂L/∂v:

    δn = δb ⊙ z               δz = δb ⊙ n - δa               δa_z = δz ⊙ z(1-z)
    δW = Σ xᵀ [δa_z, δn]      δ(biases) = Σ [δa_z, δn]       δx = [δa_z, δn] Wᵀ
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._types import Affine, AnyArray, Cell
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._affine import affine_rule
from jaxrnn.cells._family import FamilyConfig, dims, make_cell, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("z", "n")


class MinGRUParams(NamedTuple):
    """Parameters of :func:`min_gru`; blocks side by side in the order z n."""

    w_x: Float[Array, "I GH"]
    b: Float[Array, "GH"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class MinGRUConfig(FamilyConfig):
    """The options of :func:`min_gru`."""

    factory: ClassVar[str] = "min_gru"
    gates: ClassVar = GATES
    use_bias: bool = True

    def shapes(self, input_size: int) -> MinGRUParams:
        h = self.hidden_size
        return MinGRUParams(dims(input_size, 2 * h), dims(2 * h) if self.use_bias else None)


def _coefficients(params: MinGRUParams, xs: Float[Array, "*B I"]):
    a_z, n = alg.split(alg.add(alg.dot(xs, params.w_x), params.b), 2)
    z = jax.nn.sigmoid(a_z)
    return 1 - z, z * n, (z, n)


def _coefficients_backward(
    params: MinGRUParams, xs: Float[Array, "*B I"], kept: tuple[Array, Array], da: Array, db: Array
):
    z, n = kept
    delta = jnp.concatenate([(db * n - da) * alg.sigmoid_slope(z), db * z], axis=-1)  # (*B, 2H)
    dparams = MinGRUParams(alg.outer(xs, delta, params.w_x), None if params.b is None else alg.total(delta))
    return dparams, alg.dot_transposed(delta, params.w_x)


RULE = affine_rule(Affine(_coefficients, _coefficients_backward), matrices=("w_x",))


def min_gru_step(
    params: MinGRUParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a minimal GRU.

    z = σ(x W_z + b_z),  n = x W_n + b_n
    h_t = (1 - z) ⊙ h_{t-1} + z ⊙ n,  y_t = h_t

    Args:
        params: `w_x (I, 2H)`, `b (2H,)` or `None`, blocks in the order z n.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.min_gru(3).init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.min_gru_step(params, jnp.zeros(3), jnp.ones(2))
        >>> h.shape
        (3,)

    References:
        Feng, Tung, Ahmed, Bengio & Hajimirsadegh 2024, arXiv:2410.01201, section 3.1.

    Differs from:
        1. The paper: n is its h̃. This is its plain form, where h̃ is linear in x. Its log-space
           form, where a function g makes h̃ positive, is not built.
        2. PyTorch, Keras and Flax have none.
    """
    _checks.params_record("min_gru_step", params, MinGRUParams)
    config = MinGRUConfig(max(1, _checks.columns("min_gru_step", params, "w_x") // 2))
    return step_of("min_gru_step", config, RULE, params, state, x)


def min_gru(
    hidden_size: int,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """A minimal GRU: a cell whose equations are those of :func:`min_gru_step`.

    It has 2H(I + 1) parameters. Its step is affine in the state, so that
    `unroll(..., implementation="associative")` runs all steps in parallel.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        kernel_init: draws each block `(I, H)` of `w_x`.
        bias_init: draws `b`, whose blocks are z and n.

    Returns:
        A :class:`Cell` with :class:`MinGRUParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.min_gru(256).init(jax.random.key(0), 28).w_x.shape
        (28, 512)
    """
    size = _checks.size("min_gru", "hidden_size", hidden_size)
    config = MinGRUConfig(size, _checks.boolean("min_gru", "use_bias", use_bias))
    return make_cell(config, min_gru_step, RULE, Initializers(kernel_init, initializers.orthogonal(), bias_init))
