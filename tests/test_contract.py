"""What every cell keeps, driven by the registry: each property for each cell in each form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

import jaxrnn
from tests.registry import CELLS, LENGTHS, SCENARIOS, B, H, I, T, assert_close, bits, gap, loss_of, make, run

# Tests of one cell run in one process, so that what is compiled once serves them all.
cells = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CELLS])
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@functools.cache
def compiled(name, implementation, reverse):
    """Value and gradients of `loss_of`, with masks and resets as arguments."""

    def f(params, xs, state, reset_state, options):
        case = make(name)._replace(options={**options, "reverse": reverse})
        return jax.value_and_grad(loss_of(case, implementation), (0, 1, 2, 3))(params, xs, state, reset_state)

    return jax.jit(f)


@cells
@reverses
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gradients_equal_autodiff(name, scenario, reverse, x64):
    """Of parameters, inputs, initial and reset state; from outputs, states and final state together."""
    case, options = make(name), SCENARIOS[scenario]
    reset_state = make(name, seed=7).state if "resets" in options else None
    operands = (case.params, case.xs, case.state, reset_state, options)
    by_hand = compiled(name, "bptt", reverse)(*operands)
    assert_close(by_hand, compiled(name, "scan", reverse)(*operands))
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in jax.tree.leaves(by_hand))


@cells
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_pattern_of_masks_and_resets(name, data):
    """Arbitrary patterns, both directions: gradients by hand against autodiff."""
    with jax.enable_x64(True):
        case, reset_state = make(name), make(name, seed=7).state
        reverse = data.draw(st.booleans())
        options = {"mask": data.draw(hnp.arrays(np.bool_, (T, B))), "resets": data.draw(hnp.arrays(np.bool_, (T, B)))}
        operands = (case.params, case.xs, case.state, reset_state, options)
        assert_close(compiled(name, "bptt", reverse)(*operands), compiled(name, "scan", reverse)(*operands))


@cells
@reverses
def test_gradients_equal_finite_differences(name, reverse, x64):
    case, reset_state = make(name), make(name, seed=7).state
    options = {**SCENARIOS["mask-resets"], "reverse": reverse}
    loss = jax.jit(loss_of(case, None, **options))
    check_grads(loss, (case.params, case.xs, case.state, reset_state), order=1, modes=["rev"])


@cells
@reverses
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scan_and_default_equal_the_python_loop(name, scenario, reverse, x64):
    case = make(name)._replace(options={**SCENARIOS[scenario], "reverse": reverse, "return_states": True})
    expected = run(case, implementation="reference")
    assert_close(run(case), expected)
    assert_close(run(case, implementation="scan"), expected)


@cells
@pytest.mark.parametrize("cotangent", ["ys", "states", "final"])
def test_each_cotangent_alone(name, cotangent, x64):
    """A gradient from one kind of output must not hide behind the others."""
    case = make(name)._replace(options=SCENARIOS["mask-resets"])

    def loss(implementation, params, xs, state):
        final, ys, states = run(case._replace(params=params, xs=xs, state=state), return_states=True,
                                implementation=implementation)  # fmt: skip
        chosen = {"ys": ys, "states": states, "final": final}[cotangent]
        return sum(jnp.sum(jnp.sin(leaf) * (k + 1)) for k, leaf in enumerate(jax.tree.leaves(chosen)))

    grads = [
        jax.grad(loss, (1, 2, 3))(implementation, case.params, case.xs, case.state)
        for implementation in ("bptt", "scan")
    ]
    assert_close(*grads)


@cells
@reverses
def test_lengths_equal_unrolls_of_unpadded_sequences(name, reverse, x64):
    case = make(name)
    final, ys = run(case, lengths=LENGTHS, reverse=reverse)
    for k, length in enumerate(np.asarray(LENGTHS)):
        alone = case._replace(xs=case.xs[:length, k], state=jax.tree.map(lambda s, k=k: s[k], case.state))
        final_alone, ys_alone = run(alone, reverse=reverse, implementation="reference")
        assert_close(jax.tree.map(lambda s, k=k: s[k], final), final_alone)
        assert_close(ys[:length, k], ys_alone)
        assert not np.asarray(ys[length:, k]).any()


@cells
@reverses
def test_resets_equal_separate_episodes(name, reverse, x64):
    """Three episodes end to end, in values and in gradients, against three unrolls."""
    case = make(name, batch_shape=(2,), time=9)
    borders = [0, 2, 7, 9]
    resets = jnp.zeros((9, 2), bool).at[jnp.asarray(borders[:-1])].set(True)

    def whole(params, xs):
        final, ys = jaxrnn.unroll(case.cell, params, xs, resets=resets, reverse=reverse)
        return final, ys

    def apart(params, xs):
        episodes = [
            jaxrnn.unroll(case.cell, params, xs[a:b], reverse=reverse, implementation="scan")
            for a, b in itertools.pairwise(borders)
        ]
        final = episodes[0 if reverse else -1][0]
        return final, jnp.concatenate([ys for _, ys in episodes])

    def loss(f):
        return lambda params, xs: sum(jnp.sum(jnp.cos(leaf) * leaf) for leaf in jax.tree.leaves(f(params, xs)))

    assert_close(whole(case.params, case.xs), apart(case.params, case.xs))
    grads = [jax.grad(loss(f), (0, 1))(case.params, case.xs) for f in (whole, apart)]
    assert_close(*grads)


@cells
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_padding_is_never_read(name, poison, x64):
    case = make(name)._replace(options={"lengths": LENGTHS})
    padding = (jnp.arange(T, dtype=jnp.int32)[:, None] >= LENGTHS[None])[..., None]
    poisoned = jnp.where(padding, poison, case.xs)
    f = jax.value_and_grad(loss_of(case, None), (0, 1, 2))
    clean, dirty = f(case.params, case.xs, case.state), f(case.params, poisoned, case.state)
    assert gap(dirty, clean) == 0.0
    assert not np.asarray(jnp.where(padding, dirty[1][1], 0)).any()


@cells
@reverses
def test_length_zero_returns_the_initial_state(name, reverse):
    case = make(name)
    final, ys = run(case, lengths=jnp.zeros(B, jnp.int32), reverse=reverse)
    assert gap(final, case.state) == 0.0
    assert not np.asarray(ys).any()


@cells
@pytest.mark.parametrize(("batch_shape", "time"), [((), 3), ((2, 3), 2), ((0,), 2), ((2,), 0), ((), 0)])
def test_any_batch_rank_any_time(name, batch_shape, time):
    """No batch axis, several, an empty one; no steps at all."""
    case = make(name, batch_shape, time)
    options = {
        "resets": bits(1, (time, *batch_shape), 0.5),
        "lengths": np.random.default_rng(0).integers(0, time + 1, batch_shape, np.int32),
    }
    outcomes = []
    for implementation in ("bptt", "reference"):

        def both(params, xs, state, implementation=implementation):
            here = case._replace(params=params, xs=xs, state=state)
            values = run(here, implementation=implementation, return_states=True, **options)
            return values, jax.grad(loss_of(case, implementation, **options), (0, 1, 2))(params, xs, state)

        outcomes.append(jax.jit(both)(case.params, case.xs, case.state))
    assert_close(*outcomes, "float32")
    assert outcomes[0][0][1].shape[:-1] == (time, *batch_shape)
    if time == 0:
        assert gap(outcomes[0][0][0], case.state) == 0.0


@cells
def test_default_states_are_the_initial_ones(name):
    case = make(name)
    zeros = case.cell.initial_state((B,))
    resets = bits(2, (T, B), 0.3)
    explicit = jaxrnn.unroll(case.cell, case.params, case.xs, zeros, resets=resets, reset_state=zeros)
    assert gap(jaxrnn.unroll(case.cell, case.params, case.xs, resets=resets), explicit) == 0.0


@cells
def test_step_is_one_step_of_unroll(name, x64):
    case = make(name)
    final, ys = run(case._replace(xs=case.xs[:1]))
    assert_close(case.cell.step(case.params, case.state, case.xs[0]), (final, ys[0]))


@cells
def test_gradient_of_traced_lengths_clamps(name):
    """Traced lengths cannot be refused; beyond T they read all, below 0 nothing."""
    case = make(name)
    traced = jax.jit(lambda lengths: run(case, lengths=lengths))(jnp.asarray([T + 3, -2, 1, 4, T], jnp.int32))
    assert_close(traced, run(case, lengths=LENGTHS), "float32")


@cells
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_in_are_dtypes_out(name, dtype):
    case = make(name, dtype=jnp.dtype(dtype))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (case.params, case.xs, case.state))
    got = run(case, lengths=LENGTHS, return_states=True)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(got))
    expected = jaxrnn.unroll(case.cell, *wide, lengths=LENGTHS, return_states=True, implementation="reference")
    assert_close(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), got), expected, dtype)
    grads = jax.grad(loss_of(case, None), (0, 1, 2))(case.params, case.xs, case.state)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(grads))


@cells
def test_state_is_cast_to_the_result(name):
    case = make(name)
    narrow = jax.tree.map(lambda s: s.astype(jnp.bfloat16), case.state)
    final, ys = run(case._replace(state=narrow))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((final, ys))} == {"float32"}


@cells
@pytest.mark.parametrize("implementation", ["bptt", "scan"])
def test_compute_dtype(name, implementation):
    """Products in bfloat16; states in float32, outputs in the dtype of the input, gradients in that of the params."""
    case = make(name)
    exact = jax.value_and_grad(loss_of(case, "scan"), (0, 1, 2))(case.params, case.xs, case.state)
    options = {"compute_dtype": jnp.bfloat16}
    got = jax.value_and_grad(loss_of(case, implementation, **options), (0, 1, 2))(case.params, case.xs, case.state)
    assert gap(got, exact) <= TOLERANCE_COMPUTE
    assert gap(got, exact) > 1e-5
    final, ys = run(case._replace(xs=case.xs.astype(jnp.bfloat16)), implementation=implementation, **options)
    assert ys.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(final)} == {"float32"}


# Measured 0.006 to 0.035 over the registry: six steps of products rounded to 8 bits.
TOLERANCE_COMPUTE = 6e-2


@cells
def test_input_size_and_hidden_size_are_read_from_params(name):
    case = make(name)
    assert case.params.w_x.shape[0] == I
    assert case.cell.initial_state((2, 3)) is not None
    assert jax.tree.leaves(case.cell.initial_state((2, 3)))[-1].shape == (2, 3, H)
