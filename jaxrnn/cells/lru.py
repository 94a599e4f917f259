"""The linear recurrent unit (Orvieto et al. 2023): a complex diagonal recurrence with a real output.

    λ = exp(-exp(ν) + i exp(θ))        γ = exp(γ_log)
    s_t = λ ⊙ s_{t-1} + γ ⊙ (x B)      B = B_re + i B_im
    y_t = Re(s_t C) + x D              C = C_re + i C_im

|λ| < 1 whatever ν is. The step is affine in s_{t-1}, with a_t = λ and b_t = γ ⊙ (x B).

Backward, with δv for JAX's cotangent of v, so that a real loss changes by Re(Σ δv dv):

    δs_t += δy (C_re + i C_im)ᵀ        δC_re = Σ (Re s)ᵀ δy      δC_im = -Σ (Im s)ᵀ δy      δD = Σ xᵀ δy
    δ(log λ) = Σ δa ⊙ λ                δν = -exp(ν) ⊙ Re δ(log λ)      δθ = -exp(θ) ⊙ Im δ(log λ)
    δγ_log = Σ Re(δb ⊙ b)
    δu_re = γ ⊙ Re δb                  δu_im = -γ ⊙ Im δb        of u = x [B_re, B_im]
    δ[B_re, B_im] = Σ xᵀ δu            δx = δu [B_re, B_im]ᵀ + δy Dᵀ
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import Affine, AnyArray, Cell
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._affine import affine_rule
from jaxrnn.cells._family import FamilyConfig, dims, init_params, make_cell, step_of
from jaxrnn.cells._step import zeros_state
from jaxrnn.initializers import Initializer, Initializers, draw, draw_gates

GATES = ("re", "im")  # the blocks of w_x


class LRUParams(NamedTuple):
    """Parameters of :func:`lru`, all real. `w_x` has B_re and B_im side by side, `w_y` has C_re above C_im."""

    w_x: Float[Array, "I GH"]
    w_y: Float[Array, "GH O"]
    d: Float[Array, "I O"]
    nu: Float[Array, "H"]  # log(-log |λ|)
    theta: Float[Array, "H"]  # the log of the phase
    gamma_log: Float[Array, "H"]


@dataclasses.dataclass(frozen=True, repr=False)
class LRUConfig(FamilyConfig):
    """The options of :func:`lru`."""

    factory: ClassVar[str] = "lru"
    gates: ClassVar = GATES
    output_size: int | None = None
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    @property
    def output_features(self) -> int:
        return self.output_size or self.hidden_size

    def shapes(self, input_size: int) -> LRUParams:
        h, out = self.hidden_size, self.output_features
        return LRUParams(dims(input_size, 2 * h), dims(2 * h, out), dims(input_size, out), dims(h), dims(h), dims(h))

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Complex[Array, "*B H"]:
        dtype = jnp.result_type(float) if dtype is None else dtype
        dtype = _checks.complex_dtype("lru.initial_state", "dtype", dtype)
        return zeros_state(self.hidden_size, batch_shape, dtype)


def _lambda(params: LRUParams) -> Complex[Array, "H"]:
    return jnp.exp(jax.lax.complex(-jnp.exp(params.nu), jnp.exp(params.theta)))


def _coefficients(params: LRUParams, xs: Float[Array, "*B I"]):
    re, im = (alg.scale(u, jnp.exp(params.gamma_log)) for u in alg.split(alg.dot(xs, params.w_x), 2))
    b = jax.lax.complex(re, im)
    return jnp.broadcast_to(_lambda(params), b.shape), b, b


def _coefficients_backward(params: LRUParams, xs: Float[Array, "*B I"], b: Array, da: Array, db: Array):
    dlog = alg.total(da) * _lambda(params)
    du = [alg.scale(part, jnp.exp(params.gamma_log)) for part in (db.real, -db.imag)]
    delta = jnp.concatenate(du, axis=-1)  # (*B, 2H)
    dparams = LRUParams(
        w_x=alg.outer(xs, delta, params.w_x),
        w_y=jnp.zeros_like(params.w_y, delta.dtype),
        d=jnp.zeros_like(params.d, delta.dtype),
        nu=-jnp.exp(params.nu) * dlog.real,
        theta=-jnp.exp(params.theta) * dlog.imag,
        gamma_log=alg.total((db * b).real),
    )
    return dparams, alg.dot_transposed(delta, params.w_x)


def _parts(states: Complex[Array, "*B H"]) -> Float[Array, "*B GH"]:
    """What `w_y` multiplies: Re(s C) = Re(s) C_re - Im(s) C_im."""
    return jnp.concatenate([states.real, -states.imag], axis=-1)


def _read(params: LRUParams, states: Array, xs: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    return alg.dot(_parts(states), params.w_y) + alg.dot(xs, params.d)


def _read_backward(params: LRUParams, states: Array, xs: Float[Array, "*B I"], dys: Float[Array, "*B O"]):
    dstates = jax.lax.complex(*alg.split(alg.dot_transposed(dys, params.w_y), 2))
    none = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dys.dtype), params)
    dparams = none._replace(w_y=alg.outer(_parts(states), dys, params.w_y), d=alg.outer(xs, dys, params.d))
    return dstates, dparams, alg.dot_transposed(dys, params.d)


RULE = affine_rule(Affine(_coefficients, _coefficients_backward, _read, _read_backward), matrices=("w_x", "w_y", "d"))


def lru_step(
    params: LRUParams, state: Complex[AnyArray, "*B H"], x: Float[AnyArray, "*B I"]
) -> tuple[Complex[Array, "*B H"], Float[Array, "*B O"]]:
    """One step of a linear recurrent unit.

    λ = exp(-exp(ν) + i exp(θ)),  γ = exp(γ_log)
    s_t = λ ⊙ s_{t-1} + γ ⊙ (x B),  y_t = Re(s_t C) + x D

    Args:
        params: `w_x (I, 2H)`, B_re and B_im side by side; `w_y (2H, O)`, C_re above C_im;
            `d (I, O)`; `nu`, `theta` and `gamma_log`, `(H,)`, which are ν, θ and γ_log.
        state: s_{t-1}, `(*B, H)`, complex; cast to the complex dtype of the result's width.
        x: x_t, `(*B, I)`, float32 or float64.

    Returns:
        s_t, `(*B, H)`, complex64 where `params` and `x` together are float32, complex128 where
        they are float64; and y_t, `(*B, O)`, real.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape, 16-bit dtypes included.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.lru(3).init(jax.random.key(0), 2)
        >>> s, y = jaxrnn.lru_step(params, jnp.zeros(3, complex), jnp.ones(2))
        >>> s.dtype.name, y.dtype.name, y.shape
        ('complex64', 'float32', (3,))

    References:
        Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu & De 2023, arXiv:2303.06349, equation 1,
        section 3 and appendix A.

    Differs from:
        1. The paper: H is its N, the size of the state, and s its x. D is a matrix, as in its
           equation 1; the code in its appendix has a vector, for outputs as wide as inputs.
        2. PyTorch, Keras and Flax have none.
    """
    where = "lru_step"
    _checks.params_record(where, params, LRUParams)
    hidden, outputs = max(1, _checks.columns(where, params, "w_x") // 2), _checks.columns(where, params, "w_y")
    return step_of(where, LRUConfig(hidden, outputs), RULE, params, state, x)


def _normal(variance: float, key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Normal numbers, whose variance is divided by the number of rows."""
    return math.sqrt(variance / max(shape[0], 1)) * jax.random.normal(key, shape, dtype)


def _ring(config: LRUConfig, key: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """ν, θ and γ_log of λ uniform on a ring in the complex plane, where γ = √(1 - |λ|²)."""
    key_radius, key_phase = jax.random.split(key)
    shape, smallest = (config.hidden_size,), float(jnp.finfo(dtype).eps)
    v = jax.random.uniform(key_radius, shape, dtype, smallest, 1.0)
    inner, outer = config.r_min**2, config.r_max**2
    squared = jnp.maximum(inner + (1 - v) * (outer - inner), jnp.finfo(dtype).tiny)  # |λ|²
    rest = (1 - outer) + v * (outer - inner)  # 1 - |λ|², exact where it is small
    log_squared = jnp.where(squared < 0.5, jnp.log(squared), jnp.log1p(-rest))
    phase = config.max_phase * jax.random.uniform(key_phase, shape, dtype, smallest, 1.0)
    return jnp.log(-0.5 * log_squared), jnp.log(phase), 0.5 * jnp.log(rest)


def _init(
    config: LRUConfig,
    initializers: Initializers,
    output_init: Initializer,
    key: Any,
    input_size: Any,
    dtype: Any = None,
) -> LRUParams:
    where = "lru.init"
    _checks.complex_dtype(where, "dtype", _checks.float_dtype(where, "dtype", dtype))
    key_ring, key_y, key_d, key = jax.random.split(_checks.key(where, "key", key), 4)
    params = init_params(config, initializers, key, input_size, dtype)
    dtype, outputs = params.w_x.dtype, params.d.shape[1]
    at = f"{where}: output_init"
    w_y = draw_gates(at, output_init, key_y, 2, (config.hidden_size, outputs), dtype)
    w_y = jnp.concatenate(alg.split(w_y, 2))
    d = draw(at, output_init, key_d, params.d.shape, dtype)
    nu, theta, gamma = _ring(config, key_ring, dtype)
    return params._replace(w_y=w_y, d=d, nu=nu, theta=theta, gamma_log=gamma)


def _check_ring(r_min: Any, r_max: Any, max_phase: Any) -> tuple[float, float, float]:
    """The ring, checked."""
    values = {"r_min": r_min, "r_max": r_max, "max_phase": max_phase}
    r_min, r_max, max_phase = (_checks.number("lru", name, value) for name, value in values.items())
    if not 0 <= r_min < 1:
        raise ValueError(f"lru: r_min expected a number in [0, 1), got {r_min}")
    if not max(r_min, 0.0) <= r_max <= 1 or r_max == 0:
        raise ValueError(f"lru: r_max expected a number above 0, from r_min = {r_min} to 1, got {r_max}")
    if not 0 < max_phase <= 2 * math.pi:
        raise ValueError(f"lru: max_phase expected an angle in (0, 2π], got {max_phase}")
    return r_min, r_max, max_phase


def lru(
    hidden_size: int,
    *,
    output_size: int | None = None,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
    kernel_init: Initializer = Bound(_normal, 0.5),
    output_init: Initializer = Bound(_normal, 1.0),
) -> Cell:
    """A linear recurrent unit: a cell whose equations are those of :func:`lru_step`.

    It has H(2I + 2O + 3) + IO real parameters. Its state is complex and its output real. Its step
    is affine in the state, so that `unroll(..., implementation="associative")` runs all steps in
    parallel. The eigenvalues λ start uniform on the ring r_min <= |λ| <= r_max with a phase from
    0 to `max_phase`, and γ = √(1 - |λ|²) keeps the size of the state. An r_min near 1 and a small
    `max_phase` remember for long.

    Args:
        hidden_size: H, the number of complex units.
        output_size: O, by default H.
        r_min: the smallest |λ| at first.
        r_max: the largest |λ| at first.
        max_phase: the largest phase at first, in radians, at most 2π.
        kernel_init: draws B_re and B_im, by default from N(0, 1/(2I)).
        output_init: draws C_re and C_im, by default from N(0, 1/H), and D, from N(0, 1/I).

    Returns:
        A :class:`Cell` with :class:`LRUParams`, whose state is a complex array `(*B, H)`:
        complex64 for float32, complex128 for float64. There is none for 16-bit dtypes;
        `compute_dtype` gives products in less.

    Raises:
        TypeError, ValueError: for sizes that are not positive integers, or a ring outside the unit disk.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lru(64, r_min=0.9, r_max=0.999)
        >>> params = cell.init(jax.random.key(0), 28)
        >>> radius = jnp.exp(-jnp.exp(params.nu))
        >>> bool((radius >= 0.9).all()), bool((radius <= 0.999).all())
        (True, True)
    """
    size = _checks.size("lru", "hidden_size", hidden_size)
    outputs = None if output_size is None else _checks.size("lru", "output_size", output_size)
    _checks.function("lru", "output_init", output_init, "such as those of jaxrnn.initializers or jax.nn.initializers")
    config = LRUConfig(size, outputs, *_check_ring(r_min, r_max, max_phase))
    drawn = Initializers(kernel_init, initializers.orthogonal(), initializers.gate_bias())
    return make_cell(config, lru_step, RULE, drawn)._replace(init=Bound(_init, config, drawn, output_init))
