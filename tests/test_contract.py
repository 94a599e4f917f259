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
from tests.registry import CELLS, LENGTHS, SCENARIOS, B, H, I, T, assert_close, bits, gap, loss_of, make, run, weighed

# Tests of one cell run in one process, so that what is compiled once serves them all.
cells = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CELLS])
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


# One cell of each kind of driver path, for what need not be seen on every variant.
families = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group(name))
        for name in ("rnn-tanh", "lstm", "gru", "gru-reset-before")
    ],
)


@functools.cache
def compiled(name, implementation, reverse):
    """Value and gradients of `loss_of`, with masks, resets and the emphasis as arguments."""

    def f(params, xs, state, reset_state, options, emphasis):
        loss = loss_of(make(name), implementation, emphasis, reverse=reverse, **options)
        return jax.value_and_grad(loss, (0, 1, 2, 3))(params, xs, state, reset_state)

    return jax.jit(f)


def both_gradients(name, reverse, options, emphasis=(1.0, 1.0, 1.0)):
    """By hand, and by JAX through the plain scan: of parameters, inputs, initial and reset state."""
    case = make(name)
    reset_state = make(name, seed=7).state if "resets" in options else None
    operands = (case.params, case.xs, case.state, reset_state, options, emphasis)
    return [compiled(name, implementation, reverse)(*operands) for implementation in ("bptt", "scan")]


@cells
@reverses
@pytest.mark.parametrize("scenario", ["plain", "mask-resets"])
def test_gradients_equal_autodiff(name, scenario, reverse, x64):
    """From outputs, states and final state together."""
    by_hand, by_jax = both_gradients(name, reverse, SCENARIOS[scenario])
    assert_close(by_hand, by_jax)
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in jax.tree.leaves(by_hand))


@cells
@reverses
def test_gradients_of_each_cotangent_alone(name, reverse, x64):
    """A gradient from one kind of output must not hide behind the others."""
    for emphasis in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        assert_close(*both_gradients(name, reverse, SCENARIOS["mask-resets"], emphasis))


@cells
@reverses
def test_gradients_with_lengths_0_1_and_t(name, reverse, x64):
    mask = np.arange(T)[:, None] < LENGTHS
    assert_close(*both_gradients(name, reverse, {**SCENARIOS["mask-resets"], "mask": mask}))


@cells
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_gradients_with_any_pattern_of_masks_and_resets(name, data):
    patterns = hnp.arrays(np.bool_, (T, B))
    with jax.enable_x64(True):
        options = {"mask": data.draw(patterns), "resets": data.draw(patterns)}
        assert_close(*both_gradients(name, data.draw(st.booleans()), options))


@cells
def test_gradients_equal_finite_differences(name, x64):
    case, reset_state = make(name), make(name, seed=7).state
    loss = jax.jit(loss_of(case, None, **SCENARIOS["mask-resets"]))
    check_grads(loss, (case.params, case.xs, case.state, reset_state), order=1, modes=["rev"])


@cells
@reverses
@pytest.mark.parametrize("scenario", ["lengths", "mask-resets"])
def test_scan_and_default_equal_the_python_loop(name, scenario, reverse, x64):
    case = make(name)._replace(options={**SCENARIOS[scenario], "reverse": reverse, "return_states": True})
    expected = run(case, implementation="reference")
    assert_close(run(case), expected)
    assert_close(run(case, implementation="scan"), expected)


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


EPISODES = (0, 2, 7, 9)  # where three episodes begin, and the end


def whole_and_apart(name, reverse):
    """Three episodes end to end in one unroll, and each in an unroll of its own."""
    case = make(name, batch_shape=(2,), time=EPISODES[-1])
    resets = np.zeros((EPISODES[-1], 2), bool)
    resets[list(EPISODES[:-1])] = True

    def whole(params, xs):
        return jaxrnn.unroll(case.cell, params, xs, resets=resets, reverse=reverse)

    def apart(params, xs):
        runs = [
            jaxrnn.unroll(case.cell, params, xs[a:b], reverse=reverse, implementation="scan")
            for a, b in itertools.pairwise(EPISODES)
        ]
        return runs[0 if reverse else -1][0], jnp.concatenate([ys for _, ys in runs])

    return case, whole, apart


@cells
@reverses
def test_resets_equal_separate_episodes(name, reverse, x64):
    case, whole, apart = whole_and_apart(name, reverse)
    assert_close(*[jax.jit(f)(case.params, case.xs) for f in (whole, apart)])


@families
@reverses
def test_gradients_across_resets_equal_separate_episodes(name, reverse, x64):
    case, whole, apart = whole_and_apart(name, reverse)
    grads = [
        jax.jit(jax.grad(lambda p, xs, f=f: weighed(f(p, xs)), (0, 1)))(case.params, case.xs) for f in (whole, apart)
    ]
    assert_close(*grads)


@cells
def test_poison_in_padding_is_never_read(name, x64):
    case = make(name)._replace(options={"lengths": LENGTHS})
    padding = (jnp.arange(T, dtype=jnp.int32)[:, None] >= LENGTHS[None])[..., None]
    f = jax.jit(jax.value_and_grad(loss_of(case, None), (0, 1, 2)))
    clean = f(case.params, case.xs, case.state)
    for poison in (np.nan, np.inf):
        dirty = f(case.params, jnp.where(padding, poison, case.xs), case.state)
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
@pytest.mark.parametrize(("batch_shape", "time"), [((), 3), ((2, 3), 2), ((0,), 2), ((2,), 0)])
def test_any_batch_rank_any_time(name, batch_shape, time):
    """No batch axis, several, an empty one; no steps at all."""
    case = make(name, batch_shape, time)
    options = {
        "resets": bits(1, (time, *batch_shape), 0.5),
        "lengths": np.random.default_rng(0).integers(0, time + 1, batch_shape, np.int32),
        "return_states": True,
    }
    got = run(case, **options)
    assert_close(got, jax.jit(lambda: run(case, implementation="reference", **options))(), "float32")
    assert got[1].shape[:-1] == (time, *batch_shape)
    if time == 0:
        assert gap(run(case)[0], case.state) == 0.0


@families
@pytest.mark.parametrize(("batch_shape", "time"), [((), 3), ((2, 3), 2), ((0,), 2), ((2,), 0)])
def test_gradients_of_any_batch_rank_any_time(name, batch_shape, time):
    case = make(name, batch_shape, time)
    resets = bits(1, (time, *batch_shape), 0.5)
    grads = [
        jax.jit(jax.grad(loss_of(case, implementation, resets=resets), (0, 1, 2)))(case.params, case.xs, case.state)
        for implementation in ("bptt", "scan")
    ]
    assert_close(*grads, "float32")


@families
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


@families
def test_gradient_of_traced_lengths_clamps(name):
    """Traced lengths cannot be refused; beyond T they read all, below 0 nothing."""
    case = make(name)
    traced = jax.jit(lambda lengths: run(case, lengths=lengths))(jnp.asarray([T + 3, -2, 1, 4, T], jnp.int32))
    assert_close(traced, run(case, lengths=LENGTHS), "float32")


@cells
def test_dtypes_in_are_dtypes_out(name):
    """All in bfloat16: values near those of float32, gradients in bfloat16 too."""
    case = make(name, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (case.params, case.xs, case.state))
    got = run(case, lengths=LENGTHS, return_states=True)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(got))
    expected = jaxrnn.unroll(case.cell, *wide, lengths=LENGTHS, return_states=True)
    assert_close(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), got), expected, "bfloat16")
    grads = jax.eval_shape(jax.grad(loss_of(case, None), (0, 1, 2)), case.params, case.xs, case.state)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(grads))


@families
def test_state_is_cast_to_the_result(name):
    case = make(name)
    narrow = jax.tree.map(lambda s: s.astype(jnp.bfloat16), case.state)
    final, ys = run(case._replace(state=narrow))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((final, ys))} == {"float32"}


@cells
def test_compute_dtype(name):
    """Products in bfloat16; states in float32, outputs in the dtype of the input."""
    case = make(name)
    got = run(case, return_states=True, compute_dtype=jnp.bfloat16)
    assert 1e-5 < gap(got, run(case, return_states=True)) <= TOLERANCE_COMPUTE
    narrow = case._replace(xs=case.xs.astype(jnp.bfloat16))
    final, ys = jax.eval_shape(lambda: run(narrow, compute_dtype=jnp.bfloat16))
    assert ys.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(final)} == {"float32"}


@families
def test_gradients_in_compute_dtype(name):
    """In the dtype of the parameters, near the exact ones."""
    case = make(name)
    operands = (case.params, case.xs, case.state)
    exact, by_hand, by_jax = (
        jax.jit(jax.grad(loss_of(case, implementation, compute_dtype=dtype), (0, 1, 2)))(*operands)
        for implementation, dtype in (("bptt", None), ("bptt", jnp.bfloat16), ("scan", jnp.bfloat16))
    )
    assert 1e-5 < gap(by_hand, exact) <= TOLERANCE_COMPUTE
    assert gap(by_jax, exact) <= TOLERANCE_COMPUTE


# Products rounded to 8 bits over six steps. Measured: values 0.001 to 0.021, gradients 0.003 to 0.023.
TOLERANCE_COMPUTE = 4e-2


@cells
def test_input_size_and_hidden_size_are_read_from_params(name):
    case = make(name)
    assert case.params.w_x.shape[0] == I
    assert jax.tree.leaves(case.cell.initial_state((2, 3)))[-1].shape == (2, 3, H)
