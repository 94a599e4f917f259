"""The real-gated linear recurrent unit (De et al. 2024), with a linear layer before it.

    u = x W_x + b
    r = σ(u W_r + b_r)        i = σ(u W_i + b_i)        W_r, W_i block-diagonal
    log a = -c r ⊙ softplus(Λ)                          c = 8
    s_t = a ⊙ s_{t-1} + m ⊙ i ⊙ u                       m = √(1 - a²)

The step is affine in s_{t-1}, with b_t = m ⊙ i ⊙ u. 1 - a² is computed as -expm1(2 log a).

Backward, with δv for ∂L/∂v and b_t for the coefficient:

    δm = δb_t ⊙ i ⊙ u         δi = δb_t ⊙ m ⊙ u
    δ(log a) = δa ⊙ a - 2 a² ⊙ δm ⊙ min(1/(2m), 1000)
    δr = -c softplus(Λ) ⊙ δ(log a)                      δΛ = -c σ(Λ) ⊙ Σ r ⊙ δ(log a)
    δa_r = δr ⊙ r(1-r)        δa_i = δi ⊙ i(1-i)        δ[W_r, W_i] = Σ uᵀ [δa_r, δa_i], by block
    δu = δb_t ⊙ m ⊙ i + [δa_r, δa_i] [W_r, W_i]ᵀ
    δW_x = Σ xᵀ δu            δb = Σ δu                 δx = δu W_xᵀ

The slope of the root is bounded by 1000, in the derivative by JAX as well: it is infinite at a = 1.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import Affine, AnyArray, Cell
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._affine import affine_rule
from jaxrnn.cells._family import FamilyConfig, dims, init_params, make_cell, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers, draw_biases, draw_gates

GATES = ("u",)  # the blocks of w_x
SHARPNESS = 8.0  # the paper's c
STEEPEST = 1000.0  # the bound of the slope of the root
SLOWEST = (0.9, 0.999)  # the range of a at r = 1, at first


class RGLRUParams(NamedTuple):
    """Parameters of :func:`rg_lru`. `w_gates` has N blocks with D = H/N inputs, gates side by side in the order r i."""

    w_x: Float[Array, "I H"]
    w_gates: Float[Array, "N D GD"]
    decay: Float[Array, "H"]  # Λ
    b: Float[Array, "H"] | None = None
    b_gates: Float[Array, "GH"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class RGLRUConfig(FamilyConfig):
    """The options of :func:`rg_lru`."""

    factory: ClassVar[str] = "rg_lru"
    gates: ClassVar = GATES
    num_blocks: int = 1
    use_bias: bool = True

    def shapes(self, input_size: int) -> RGLRUParams:
        h, n = self.hidden_size, self.num_blocks
        biases = (dims(h), dims(2 * h)) if self.use_bias else (None, None)
        return RGLRUParams(dims(input_size, h), dims(n, h // n, 2 * (h // n)), dims(h), *biases)


@jax.custom_jvp
def _root(x: Array) -> Array:
    """√x, with a bounded slope."""
    return jnp.sqrt(x)


def _root_slope(root: Array) -> Array:
    """The slope of √x from its value."""
    return 0.5 / jnp.maximum(root, 0.5 / STEEPEST)


@_root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = jnp.sqrt(primals[0])
    return root, tangents[0] * _root_slope(root)


def _coefficients(params: RGLRUParams, xs: Float[Array, "*B I"]):
    u = alg.add(alg.dot(xs, params.w_x), params.b)
    a_r, a_i = alg.split(alg.add(alg.dot(u, params.w_gates), params.b_gates), 2)
    r, i = jax.nn.sigmoid(a_r), jax.nn.sigmoid(a_i)
    log_a = -SHARPNESS * alg.scale(r, jax.nn.softplus(params.decay))
    a, m = jnp.exp(log_a), _root(-jnp.expm1(2 * log_a))
    return a, m * i * u, (u, r, i, a, m)


def _coefficients_backward(
    params: RGLRUParams, xs: Float[Array, "*B I"], kept: tuple[Array, ...], da: Array, db: Array
):
    u, r, i, a, m = kept
    dlog_a = da * a - 2 * a * a * (db * i * u) * _root_slope(m)
    dr = -SHARPNESS * alg.scale(dlog_a, jax.nn.softplus(params.decay))
    da_r, da_i = dr * alg.sigmoid_slope(r), db * m * u * alg.sigmoid_slope(i)
    delta = jnp.concatenate([da_r, da_i], axis=-1)  # (*B, 2H)
    du = db * m * i + alg.dot_transposed(delta, params.w_gates)
    dparams = RGLRUParams(
        w_x=alg.outer(xs, du, params.w_x),
        w_gates=alg.outer(u, delta, params.w_gates),
        decay=-SHARPNESS * jax.nn.sigmoid(params.decay) * alg.total(r * dlog_a),
        b=None if params.b is None else alg.total(du),
        b_gates=None if params.b_gates is None else alg.total(delta),
    )
    return dparams, alg.dot_transposed(du, params.w_x)


RULE = affine_rule(Affine(_coefficients, _coefficients_backward), matrices=("w_x", "w_gates"))


def rg_lru_step(
    params: RGLRUParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a real-gated linear recurrent unit.

    u = x W_x + b,  r = σ(u W_r + b_r),  i = σ(u W_i + b_i),  log a = -8 r ⊙ softplus(Λ)
    s_t = a ⊙ s_{t-1} + √(1 - a²) ⊙ i ⊙ u,  y_t = s_t

    Args:
        params: `w_x (I, H)`, `w_gates (N, D, 2D)` with D = H/N and the blocks of r and i side by
            side, `decay (H,)`, which is Λ, `b (H,)` and `b_gates (2H,)`, or `None`.
        state: s_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.

    Returns:
        s_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.rg_lru(4, num_blocks=2).init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.rg_lru_step(params, jnp.zeros(4), jnp.ones(2))
        >>> h.shape
        (4,)

    References:
        De, Smith, Fernando, Botev et al. 2024, arXiv:2402.19427, section 2.4 and appendix A.

    Differs from:
        1. The paper: u is its x. Its recurrent block has the linear layer u = x W_x + b, and a
           convolution, before the unit; here the layer is a part of the cell, so that I and H may
           differ, and there is no convolution.
        2. PyTorch, Keras and Flax have none.
    """
    _checks.params_record("rg_lru_step", params, RGLRUParams)
    hidden = _checks.columns("rg_lru_step", params, "w_x")
    blocks = getattr(params.w_gates, "shape", ())[:1]
    blocks = blocks[0] if blocks and blocks[0] > 0 and hidden % blocks[0] == 0 else 1
    return step_of("rg_lru_step", RGLRUConfig(hidden, blocks), RULE, params, state, x)


def _decay(key: Array, hidden_size: int, dtype: Any) -> Array:
    """Λ for which a at r = 1 is uniform in `SLOWEST`."""
    drawn = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    a = jax.random.uniform(key, (hidden_size,), drawn, *SLOWEST)
    return jnp.log(jnp.expm1(-jnp.log(a) / SHARPNESS)).astype(dtype)


def _init(
    config: RGLRUConfig,
    initializers: Initializers,
    gate_init: Initializer,
    key: Any,
    input_size: Any,
    dtype: Any = None,
) -> RGLRUParams:
    key_gates, key_biases, key_decay, key = jax.random.split(_checks.key("rg_lru.init", "key", key), 4)
    params = init_params(config, initializers, key, input_size, dtype)
    dtype, hidden = params.w_x.dtype, config.hidden_size
    n, size, _ = params.w_gates.shape
    drawn = draw_gates("rg_lru.init: gate_init", gate_init, key_gates, 2 * n, (size, size), dtype)
    w_gates = jnp.moveaxis(drawn.reshape(size, n, 2 * size), 1, 0)
    params = params._replace(w_gates=w_gates, decay=_decay(key_decay, hidden, dtype))
    if params.b_gates is None:
        return params
    b_gates = draw_biases("rg_lru.init: bias_init", initializers.bias, key_biases, ("r", "i"), hidden, dtype)
    return params._replace(b_gates=b_gates)


def rg_lru(
    hidden_size: int,
    *,
    num_blocks: int = 1,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    gate_init: Initializer = initializers.glorot_uniform(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """A real-gated linear recurrent unit: a cell whose equations are those of :func:`rg_lru_step`.

    It has H(I + 2H/N + 4) parameters. Its step is affine in the state, so that
    `unroll(..., implementation="associative")` runs all steps in parallel. Λ starts where a at
    r = 1 is uniform between 0.9 and 0.999.

    Args:
        hidden_size: H, the number of units.
        num_blocks: N, the blocks of the gates' matrices; it divides H, and 1 is a full matrix.
        use_bias: whether there are a `b` and a `b_gates`.
        kernel_init: draws `w_x`.
        gate_init: draws the blocks `(D, D)` of `w_gates`.
        bias_init: draws `b`, whose only block is u, and `b_gates`, whose blocks are r and i.

    Returns:
        A :class:`Cell` with :class:`RGLRUParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for sizes that are not positive integers, or do not divide.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.rg_lru(256, num_blocks=4).init(jax.random.key(0), 28).w_gates.shape
        (4, 64, 128)
    """
    size = _checks.size("rg_lru", "hidden_size", hidden_size)
    blocks = _checks.size("rg_lru", "num_blocks", num_blocks)
    if size % blocks:
        raise ValueError(f"rg_lru: num_blocks expected a divisor of hidden_size = {size}, got {blocks}")
    _checks.function("rg_lru", "gate_init", gate_init, "such as those of jaxrnn.initializers or jax.nn.initializers")
    config = RGLRUConfig(size, blocks, _checks.boolean("rg_lru", "use_bias", use_bias))
    draw = Initializers(kernel_init, initializers.orthogonal(), bias_init)
    return make_cell(config, rg_lru_step, RULE, draw)._replace(init=Bound(_init, config, draw, gate_init))
