"""Complex states, and outputs that are read from them: of a cell of one's own, and of the LRU."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.programs import operands_of, slope
from tests.support.registry import (
    SCENARIOS,
    B,
    H,
    I,
    T,
    assert_close,
    cell_of,
    numpy_of,
    quick_jit,
    random_like,
)

MASKED = SCENARIOS["mask-resets"]


class DiagonalParams(NamedTuple):
    """Real parameters of a complex diagonal recurrence."""

    w_x: jax.Array  # (I, 2H): the real part of a complex matrix and the imaginary one
    decay: jax.Array  # (2, H): -log |λ| and the phase
    w_y: jax.Array  # (2H, 2)
    d: jax.Array  # (I, 2)


def as_complex(pair):
    return jax.lax.complex(*jnp.split(pair, 2, -1))


def diagonal_coefficients(params, xs):
    b = as_complex(xs @ params.w_x)
    a = jnp.exp(jax.lax.complex(-(params.decay[0] ** 2), params.decay[1]))
    a = jnp.broadcast_to(a, b.shape)
    return a, b, a


def diagonal_backward(params, xs, a, da, db):
    """In JAX's convention a real loss changes by Re(Σ δb db), so Re b has the cotangent Re δb, and Im b has -Im δb."""
    leading = tuple(range(xs.ndim - 1))
    flat = jnp.concatenate([db.real, -db.imag], -1)
    log_a = jnp.sum(da * a, leading)
    decay = jnp.stack([-2 * params.decay[0] * log_a.real, -log_a.imag])
    dparams = DiagonalParams(jnp.tensordot(xs, flat, (leading, leading)), decay, *map(jnp.zeros_like, params[2:]))
    return dparams, flat @ params.w_x.T


def diagonal_read(params, states, xs):
    return jnp.concatenate([states.real, states.imag], -1) @ params.w_y + xs @ params.d


def diagonal_read_backward(params, states, xs, dys):
    leading = tuple(range(xs.ndim - 1))
    real, imag = jnp.split(dys @ params.w_y.T, 2, -1)
    flat = jnp.concatenate([states.real, states.imag], -1)
    dw, dd = (jnp.tensordot(v, dys, (leading, leading)) for v in (flat, xs))
    dparams = DiagonalParams(*map(jnp.zeros_like, params[:2]), dw, dd)
    return jax.lax.complex(real, -imag), dparams, dys @ params.d.T


def diagonal_step(params, state, x):
    a, b, _ = diagonal_coefficients(params, x)
    state = a * state + b
    return state, diagonal_read(params, state, x)


DIAGONAL = jaxrnn.Cell(
    lambda key, input_size, dtype=None: None,
    lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, H), jnp.result_type(complex)),
    diagonal_step,
    jaxrnn.affine_rule(jaxrnn.Affine(diagonal_coefficients, diagonal_backward, diagonal_read, diagonal_read_backward)),
    name="diagonal",
)


def complex_operands():
    shapes = DiagonalParams(*map(np.empty, ((I, 2 * H), (2, H), (2 * H, 2), (I, 2))))
    params = random_like(0, shapes, jnp.float64, 0.6)
    xs = random_like(1, np.empty((T, B, I)), jnp.float64)
    states = (as_complex(random_like(k, np.empty((B, 2 * H)), jnp.float64)) for k in (2, 3))
    return params, xs, *states


def complex_loss(implementation, params, xs, state, reset_state, cell=DIAGONAL, **options):
    """A loss that reads every output, and both parts of all states."""
    options = {**MASKED, "return_states": True, "implementation": implementation, **options}
    outcome = jaxrnn.unroll(cell, params, xs, state, reset_state=reset_state, **options)
    total = 0.0
    for k, leaf in enumerate(outcome):
        for part, v in enumerate((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)):
            total += jnp.sum(jnp.sin(v) * random_like(10 + 2 * k + part, v, jnp.float64))
    return total


@pytest.mark.parametrize("implementation", ["associative", "bptt"])
@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"truncate": 4}, {"checkpoint": 4, "reverse": True}, {"checkpoint": "gates"}],
    ids=repr,
)  # fmt: skip
def test_gradients_of_complex_states_equal_autodiff(implementation, options, x64):
    operands = complex_operands()
    by_scan = {name: value for name, value in options.items() if name != "checkpoint"}
    gradients = lambda name, given: quick_jit(  # noqa: E731
        jax.value_and_grad(functools.partial(complex_loss, name, **given), (0, 1, 2, 3))
    )(*operands)
    got, expected = gradients(implementation, options), gradients("scan", by_scan)
    parts = lambda tree: jax.tree.map(lambda leaf: np.stack([np.real(leaf), np.imag(leaf)]), tree)  # noqa: E731
    assert_close(parts(got), parts(expected))


def direction_like(unit, v, leaf):
    """A direction of a real leaf, or of a complex one along `unit`."""
    return v * (np.asarray(unit, np.complex128) if jnp.iscomplexobj(leaf) else 1.0)


def moved_loss(loss, operands, steps, h):
    return np.asarray(loss(*jax.tree.map(lambda a, v: np.asarray(a) + h * v, operands, steps)))


@pytest.mark.parametrize("name", ["diagonal", "lru"])
def test_gradients_of_complex_states_equal_finite_differences(name, x64):
    """JAX's gradient by a complex number z is ∂L/∂(Re z) - i ∂L/∂(Im z)."""
    operands, cell = (complex_operands(), DIAGONAL) if name == "diagonal" else (operands_of(name), cell_of(name))
    plain = functools.partial(complex_loss, "associative", cell=cell)
    loss, gradients = quick_jit(plain), quick_jit(jax.grad(plain, (0, 1, 2, 3)))(*operands)
    shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape), operands)
    for seed, unit in ((20, 1.0), (21, 1.0j)):
        of_leaf = functools.partial(direction_like, unit)
        steps = jax.tree.map(of_leaf, numpy_of(random_like(seed, shapes, jnp.float64)), operands)
        expected = slope(functools.partial(moved_loss, loss, operands, steps))
        along = jax.tree.map(lambda d, v: np.real(np.sum(np.asarray(d) * v)), gradients, steps)
        np.testing.assert_allclose(sum(jax.tree.leaves(along)), expected, rtol=1e-9)


def test_clipping_of_a_complex_state_is_refused(x64):
    for name in (None, "bptt", "scan", "associative"):
        with pytest.raises(
            NotImplementedError, match="unroll: clip_gradient expected None for diagonal, whose state is"
        ):
            complex_loss(name, *complex_operands(), clip_gradient=1.0)
