"""The contract of every cell of the registry, under every implementation with a hand-written backward pass.

Most tests call two compiled programs of a cell, one differentiated by hand and one by JAX, or the loop in NumPy.
"""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_vjp

import jaxrnn
from tests.support import in_numpy
from tests.support.programs import (
    NONE,
    PAIRS,
    backward_program,
    by_hand,
    by_jax,
    cotangents_of,
    operands_of,
    program,
    step_of,
)
from tests.support.registry import (
    CELLS,
    COMPLEX,
    FAMILIES,
    LENGTHS,
    SCENARIOS,
    STABILISED,
    B,
    H,
    I,
    T,
    assert_close,
    assert_equal,
    bits,
    gap,
    loss_of,
    make,
    narrowed,
    numpy_of,
    of_cell,
    quick_jit,
    run,
)

cells = pytest.mark.parametrize("name", [of_cell(name) for name in CELLS])
pairs = pytest.mark.parametrize(("name", "implementation"), PAIRS)
families = pytest.mark.parametrize("name", [of_cell(name) for name in FAMILIES])
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])

MASKED = SCENARIOS["mask-resets"]
VALID = np.arange(T)[:, None] < LENGTHS  # the mask of `lengths=LENGTHS`


def of_sequence(k, tree):
    """The state of one sequence of a batch."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[k], tree)


# Gradients


@pairs
@reverses
@pytest.mark.parametrize("scenario", ["plain", "mask-resets"])
def test_gradients_equal_autodiff(name, implementation, scenario, reverse, x64):
    """Final state, outputs and states have cotangents. Gradients are by parameters, inputs, initial and reset state."""
    asked = (name, operands_of(name), cotangents_of(name))
    values, gradients = by_hand(*asked, **SCENARIOS[scenario], reverse=reverse, implementation=implementation)
    assert_close((values, gradients), by_jax(*asked, **SCENARIOS[scenario], reverse=reverse))
    *others, of_reset_state = ([np.abs(leaf).max() for leaf in jax.tree.leaves(part)] for part in gradients)
    assert min(map(min, others)) > 1e-4
    assert min(of_reset_state) > 1e-4 if scenario == "mask-resets" else max(of_reset_state) == 0


@families
@reverses
def test_gradients_without_masks_equal_those_with_every_step_valid(name, reverse, x64):
    """The driver has a path of its own for calls without masks and resets."""
    params, xs, state, _ = operands_of(name)
    without = program(name, "bptt", reverse=reverse)((params, xs, state, None), None, None, cotangents_of(name))
    values, gradients = by_jax(name, operands_of(name), cotangents_of(name), reverse=reverse)
    assert_close(without, (values, (*gradients[:3], None)))


@pairs
@reverses
def test_gradients_of_each_cotangent_alone_equal_autodiff(name, implementation, reverse, x64):
    """Only final state, outputs or states have a cotangent, so that an error in one cannot hide behind the others."""
    for emphasis in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        asked = (name, operands_of(name), cotangents_of(name, emphasis))
        assert_close(
            by_hand(*asked, **MASKED, reverse=reverse, implementation=implementation),
            by_jax(*asked, **MASKED, reverse=reverse),
        )


@pairs
@reverses
def test_gradients_with_lengths_0_1_and_t_equal_autodiff(name, implementation, reverse, x64):
    asked, options = (name, operands_of(name), cotangents_of(name)), {**MASKED, "mask": VALID, "reverse": reverse}
    assert_close(by_hand(*asked, **options, implementation=implementation), by_jax(*asked, **options))


@pairs
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_gradients_with_any_masks_and_resets_equal_autodiff(name, implementation, data):
    patterns = hnp.arrays(np.bool_, (T, B))
    with jax.enable_x64(True):
        asked = (name, operands_of(name), cotangents_of(name))
        options = {"mask": data.draw(patterns), "resets": data.draw(patterns), "reverse": data.draw(st.booleans())}
        assert_close(by_hand(*asked, **options, implementation=implementation), by_jax(*asked, **options))


@cells
@reverses
def test_gradients_equal_finite_differences(name, reverse, x64):
    """The differences are along a random direction of all operands.

    Of a cell whose gradients are at a constant m, they are those of h alone.
    """
    compiled, zeros = backward_program(name, reverse=reverse), numpy_of(cotangents_of(name, (0.0, 0.0, 0.0)))

    def pulled_back(operands, cotangents):
        return compiled(operands, MASKED["mask"], MASKED["resets"], cotangents)

    def read(outcome):
        final, ys, states = numpy_of(outcome)
        return (final.h, ys, states.h) if name in STABILISED else (final, ys, states)

    def whole(cotangents):
        dfinal, dys, dstates = cotangents
        if name not in STABILISED:
            return dfinal, dys, dstates
        return zeros[0]._replace(h=dfinal), dys, zeros[2]._replace(h=dstates)

    def values(*operands):
        return read(pulled_back(operands, zeros)[0])

    def values_and_pullback(*operands):
        return values(*operands), lambda cotangents: numpy_of(pulled_back(operands, whole(cotangents))[1])

    check_vjp(values, values_and_pullback, numpy_of(operands_of(name)))


# Values


@pairs
@reverses
@pytest.mark.parametrize("scenario", ["plain", "lengths", "mask-resets"])
def test_values_equal_the_equations_in_numpy(name, implementation, scenario, reverse, x64):
    """The two differentiated programs return these values beside their gradients."""
    options = {"mask": VALID} if scenario == "lengths" else SCENARIOS[scenario]
    params, xs, state, reset_state = operands = operands_of(name)
    expected = in_numpy.unroll(name, params, xs, state, reset_state=reset_state, reverse=reverse, **options)
    for f in (functools.partial(by_hand, implementation=implementation), by_jax):
        values, _ = f(name, operands, cotangents_of(name), **options, reverse=reverse)
        assert_close(values, expected)


@cells
@reverses
def test_python_loop_equals_the_equations_in_numpy(name, reverse, x64):
    case = make(name)
    case = case._replace(cell=case.cell._replace(step=step_of(name)))
    got = run(case, **MASKED, reverse=reverse, return_states=True, implementation="reference")
    assert_close(got, in_numpy.unroll(name, *case[1:4], **MASKED, reverse=reverse))


@families
@reverses
@pytest.mark.parametrize("implementation", ["scan", "reference"])
def test_scan_and_python_loop_support_lengths(name, reverse, implementation, x64):
    case = make(name)
    if implementation == "reference":
        case = case._replace(cell=case.cell._replace(step=step_of(name)))
    got = run(case, lengths=LENGTHS, reverse=reverse, return_states=True, implementation=implementation)
    assert_close(got, in_numpy.unroll(name, *case[1:4], mask=VALID, reverse=reverse))


@cells
@reverses
def test_padded_batch_equals_unpadded_sequences(name, reverse, x64):
    case = make(name)
    final, ys = run(case, lengths=LENGTHS, reverse=reverse)
    for k, length in enumerate(LENGTHS):
        alone, start = np.asarray(case.xs)[:length, k], of_sequence(k, case.state)
        final_alone, ys_alone, _ = in_numpy.unroll(name, case.params, alone, start, reverse=reverse)
        assert_close(of_sequence(k, final), final_alone)
        assert_close(of_sequence(k, np.swapaxes(ys, 0, 1))[:length], ys_alone)
        assert not np.asarray(ys)[length:, k].any()


EPISODES = (0, 2, 5, T)  # the first steps of three episodes, and the end
BEGINS = NONE | np.isin(np.arange(T), EPISODES)[:, None]


@pairs
@reverses
def test_values_with_resets_equal_separate_episodes(name, implementation, reverse, x64):
    """One unroll of three episodes equals three unrolls from a state of zeros."""
    params, xs, state, _ = operands_of(name)
    zeros = jax.tree.map(np.zeros_like, state)
    (final, ys, _), _ = by_hand(
        name,
        (params, xs, zeros, zeros),
        cotangents_of(name),
        resets=BEGINS,
        reverse=reverse,
        implementation=implementation,
    )
    alone = [in_numpy.unroll(name, params, xs[a:b], zeros, reverse=reverse) for a, b in itertools.pairwise(EPISODES)]
    assert_close(final, alone[0 if reverse else -1][0])
    assert_close(ys, np.concatenate([ys for _, ys, _ in alone]))


def placed(tree, a, b, to=0):
    """Steps a to b of every leaf, moved to step `to`, and zeros at all others."""

    def leaf(x):
        x = np.asarray(x)
        moved = np.zeros_like(x)
        moved[to : to + b - a] = x[a:b]
        return moved

    return jax.tree.map(leaf, tree)


@pairs
@reverses
def test_gradients_with_resets_equal_separate_episodes(name, implementation, reverse, x64):
    """A call for one episode has it at the first steps and masks all others."""
    params, xs, state, reset_state = operands_of(name)
    dfinal, *over_time = numpy_of(cotangents_of(name))
    _, whole = by_hand(
        name, operands_of(name), (dfinal, *over_time), resets=BEGINS, reverse=reverse, implementation=implementation
    )
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), (params, xs, state, reset_state))
    for a, b in itertools.pairwise(EPISODES):
        # Forward, a reset replaces the initial state at step 0. In reverse, the last episode starts from it.
        starts_anew, ends = (not reverse or b < T), (a == 0 if reverse else b == T)
        operands = (params, placed(xs, a, b), reset_state if starts_anew else state, reset_state)
        cotangents = (jax.tree.map(lambda d, ends=ends: ends * d, dfinal), *placed(over_time, a, b))
        mask = NONE | (np.arange(T) < b - a)[:, None]
        _, (dparams, dxs, dstart, _) = by_jax(name, operands, cotangents, mask=mask, reverse=reverse)
        zeros = jax.tree.map(np.zeros_like, numpy_of(dstart))
        dstates = (zeros, dstart) if starts_anew else (dstart, zeros)
        total = jax.tree.map(np.add, total, (dparams, placed(dxs, 0, b - a, to=a), *dstates))
    assert_close(whole, total)


@pairs
@reverses
def test_nan_in_padding_reaches_neither_values_nor_gradients(name, implementation, reverse, x64):
    """NaN and infinity at masked steps change no value and no gradient, in padding and between valid steps."""
    params, xs, *states = operands_of(name)
    for mask in (VALID, MASKED["mask"]):
        options = {"mask": mask, "reverse": reverse}
        clean = by_hand(name, (params, xs, *states), cotangents_of(name), **options, implementation=implementation)
        for value in (np.nan, np.inf):
            padded = np.where(mask[..., None], xs, value)
            got = by_hand(
                name, (params, padded, *states), cotangents_of(name), **options, implementation=implementation
            )
            assert_equal(got, clean)
            assert not np.asarray(got[1][1])[~mask].any()


@pairs
@reverses
def test_zero_length_returns_the_initial_state(name, implementation, reverse, x64):
    operands, dfinal = operands_of(name), cotangents_of(name)[0]
    (final, ys, states), gradients = by_hand(
        name, operands, cotangents_of(name), mask=NONE, reverse=reverse, implementation=implementation
    )
    assert_equal(final, operands[2])
    assert_equal(states, jax.tree.map(lambda leaf: np.broadcast_to(leaf, (T, *leaf.shape)), operands[2]))
    assert not np.asarray(ys).any()
    dparams, dxs, dstate, _ = gradients
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves((dparams, dxs)))
    after_each_step = cotangents_of(name)[2]
    assert_close(dstate, jax.tree.map(lambda d, ds: np.asarray(d) + np.sum(ds, 0), dfinal, after_each_step))


@cells
def test_step_equals_the_first_step_of_unroll(name, x64):
    first = NONE | (np.arange(T) == 0)[:, None]
    (final, ys, _), _ = by_hand(name, operands_of(name), cotangents_of(name), mask=first)
    case = make(name)
    assert_close(step_of(name)(case.params, case.state, np.asarray(case.xs)[0]), (final, np.asarray(ys)[0]))


# Shapes


SHAPES = [((), 3), ((2, 2), 2), ((0,), 2), ((2,), 0)]  # no batch axis, two, an empty one; no steps


@cells
@pytest.mark.parametrize(("batch_shape", "time"), SHAPES)
def test_any_batch_rank_and_time_equal_the_equations_in_numpy(name, batch_shape, time):
    """The case without a batch axis reads in reverse."""
    case = make(name, batch_shape, time)
    lengths = np.random.default_rng(0).integers(0, time + 1, batch_shape, np.int32)
    options = {"resets": bits(1, (time, *batch_shape), 0.5), "reverse": batch_shape == ()}
    called = quick_jit(
        lambda *given: jaxrnn.unroll(case.cell, *given, lengths=lengths, **options, return_states=True, key=None)
    )
    got = called(*case[1:4])
    mask = np.arange(time).reshape(time, *(1 for _ in batch_shape)) < lengths
    expected = in_numpy.unroll(name, *case[1:4], mask=mask, **options)
    assert_close(got, narrowed(expected), "float32")
    assert got[1].shape[:-1] == (time, *batch_shape)
    if time == 0:
        assert_equal(got[0], case.state)


def in_grid(tree, sequences, axes):
    """The sequences of any batch, placed into zeros with the axes (B,), or (T, B) for what is over time."""

    def leaf(x):
        x, grid = np.asarray(x, np.float64), np.zeros((*axes, np.shape(x)[-1]))
        rows = x.reshape(*x.shape[: len(axes) - 1], sequences, x.shape[-1])
        grid[tuple(slice(n) for n in rows.shape)] = rows
        return grid

    return jax.tree.map(leaf, tree)


@families
@pytest.mark.parametrize(("batch_shape", "time"), SHAPES)
def test_gradients_of_any_batch_rank_and_time_equal_autodiff(name, batch_shape, time):
    """A call in float32 equals one in float64 that has the same sequences in a larger, masked batch."""
    case, resets = make(name, batch_shape, time), bits(1, (time, *batch_shape), 0.5)
    operands = (case.params, case.xs, case.state, make(name, batch_shape, seed=7).state)
    dstates = make(name, (time, *batch_shape), seed=8).state
    cotangents = (make(name, batch_shape, seed=9).state, jax.tree.leaves(dstates)[0] * 2, dstates)
    got = program(name, None, jit=jax.jit)(operands, None, resets, cotangents)[1]

    n = math.prod(batch_shape)
    grid = functools.partial(in_grid, sequences=n, axes=(B,))
    steps = functools.partial(in_grid, sequences=n, axes=(T, B))
    mask, resets = (steps(where[..., None])[..., 0] > 0 for where in (np.ones_like(resets), resets))
    params, xs, *states = operands
    wide = (in_numpy.as_float64(params), steps(xs), *map(grid, states))
    with jax.enable_x64(True):
        _, (dparams, dxs, *rest) = by_jax(name, wide, (grid(cotangents[0]), *map(steps, cotangents[1:])), mask, resets)
    expected = (dparams, dxs[:time, :n], *jax.tree.map(lambda leaf: leaf[:n], rest))
    expected = jax.tree.map(lambda leaf, like: np.reshape(leaf, like.shape).astype(np.float32), expected, got)
    assert_close(got, expected, "float32")


# Arguments and dtypes


@families
def test_default_states_equal_the_initial_state(name):
    case = make(name)
    zeros = case.cell.initial_state((B,))
    resets = bits(2, (T, B), 0.3)
    explicit = jaxrnn.unroll(case.cell, case.params, case.xs, zeros, resets=resets, reset_state=zeros)
    assert_equal(jaxrnn.unroll(case.cell, case.params, case.xs, resets=resets), explicit)


@families
def test_traced_lengths_are_clamped(name, x64):
    """Lengths above T read the whole sequence, lengths below 0 nothing. A traced value cannot be refused."""
    case = make(name)
    traced = quick_jit(lambda lengths: run(case, lengths=lengths))(np.asarray([T + 3, -2, 1, 4, T], np.int32))
    assert_close(traced, in_numpy.unroll(name, *case[1:4], mask=VALID)[:2])


@pytest.mark.parametrize("name", [of_cell(name) for name in CELLS if name not in COMPLEX])
def test_bfloat16_operands_give_bfloat16_results(name):
    """Values are near those in float64. Gradients are in bfloat16 too."""
    case = make(name, dtype=jnp.bfloat16)
    got = run(case, lengths=LENGTHS, return_states=True)
    chex.assert_type(jax.tree.leaves(got), jnp.bfloat16)
    expected = in_numpy.unroll(name, *case[1:4], mask=VALID)
    assert_close(in_numpy.as_float64(got), expected, "bfloat16")
    grads = jax.eval_shape(jax.grad(loss_of(case, None), (0, 1, 2)), case.params, case.xs, case.state)
    chex.assert_type(jax.tree.leaves(grads), jnp.bfloat16)


@families
def test_state_is_cast_to_the_dtype_of_the_result(name):
    case = make(name)
    narrow = jax.tree.map(lambda s: s.astype(jnp.bfloat16), case.state)
    final, ys = run(case._replace(state=narrow))
    chex.assert_type(jax.tree.leaves((final, ys)), jnp.float32)


# Products rounded to 8 bits over six steps. Measured: values 0.001 to 0.021, gradients 0.003 to 0.023.
TOLERANCE_COMPUTE = 4e-2


@cells
def test_compute_dtype_rounds_products_and_keeps_dtypes(name):
    """Products are in bfloat16, states in float32 or complex64, and outputs in the dtype of the input."""
    case = make(name)
    final, ys, states = got = run(case, return_states=True, compute_dtype=jnp.bfloat16)
    chex.assert_type(
        jax.tree.leaves((ys, final, states)), [jnp.float32, *2 * [s.dtype for s in jax.tree.leaves(case.state)]]
    )
    exact = in_numpy.unroll(name, *case[1:4])
    assert 1e-5 < gap(in_numpy.as_float64(got), exact) <= TOLERANCE_COMPUTE
    narrow = case._replace(xs=case.xs.astype(jnp.bfloat16))
    final, ys = jax.eval_shape(lambda: run(narrow, compute_dtype=jnp.bfloat16))
    chex.assert_type([ys, *jax.tree.leaves(final)], [jnp.bfloat16, *(s.dtype for s in jax.tree.leaves(case.state))])


@families
def test_gradients_with_compute_dtype_are_near_exact_ones(name):
    """Gradients have the dtype of the parameters."""
    asked = operands_of(name), cotangents_of(name)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), by_jax(name, *in_numpy.as_float64(asked))[1])
    for implementation, jit in (("bptt", jax.jit), ("scan", quick_jit)):
        compiled = program(name, implementation, jit=jit, compute_dtype=jnp.bfloat16)
        got = compiled((*asked[0][:3], None), None, None, asked[1])[1]
        chex.assert_type(jax.tree.leaves(got), jnp.float32)
        assert 1e-5 < gap(got[:3], exact[:3]) <= TOLERANCE_COMPUTE
        if implementation == "bptt":  # sums over steps are in float32: not all fit into bfloat16
            assert all(np.any(leaf.astype(jnp.bfloat16) != leaf) for leaf in numpy_of(jax.tree.leaves(got)))


@cells
def test_params_and_states_have_the_sizes_of_the_cell(name):
    case = make(name)
    assert case.params.w_x.shape[0] == I
    assert jax.tree.leaves(case.cell.initial_state((2, 3)))[-1].shape == (2, 3, H)
