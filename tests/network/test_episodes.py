"""States between episodes: a step with `reset_state` is a step of `unroll` with `resets`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.registry import assert_close, quick_jit

T, B, I = 7, 3, 2  # noqa: E741
MODELS = {
    "gru": jaxrnn.gru(4),
    "lstm": jaxrnn.lstm(4, projection_size=3),
    "min_gru": jaxrnn.min_gru(4),
    "stack": jaxrnn.stack([jaxrnn.lstm(4), jaxrnn.gru(3)]),
}


def unrolled(model, params, xs, state, **options):
    if isinstance(model, jaxrnn.Network):
        return model.unroll(params, xs, state, **options)
    return jaxrnn.unroll(model, params, xs, state, **options)


def random_state(model, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), model.initial_state((B,), jnp.float64)
    )


@pytest.mark.parametrize("name", MODELS)
def test_steps_with_resets_equal_unroll(name, x64):
    """From the first step on, by `step` and by `unroll` with one step; gradients too."""
    model, rng = MODELS[name], np.random.default_rng(0)
    params = model.init(jax.random.key(0), I, jnp.float64)
    xs = jnp.asarray(rng.standard_normal((T, B, I)))
    resets = jnp.asarray(rng.random((T, B)) < 0.4).at[0].set(jnp.array([True, False, True]))
    start, new = random_state(model, 1), random_state(model, 2)

    def whole(params, start, new):
        return unrolled(model, params, xs, start, resets=resets, reset_state=new)

    def by_steps(params, start, new):
        def step(state, now):
            x, reset = now
            return model.step(params, jaxrnn.reset_state(model, state, reset, new), x)

        return jax.lax.scan(step, start, (xs, resets))

    def by_single_steps(params, start, new):
        def step(state, now):
            x, reset = now
            state, ys = unrolled(model, params, x[None], state, resets=reset[None], reset_state=new)
            return state, ys[0]

        return jax.lax.scan(step, start, (xs, resets))

    def differentiated(f):
        value = lambda *own: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(f(*own)))  # noqa: E731
        return quick_jit(lambda *own: (f(*own), jax.grad(value, (0, 1, 2))(*own)))(params, start, new)

    expected = differentiated(whole)
    assert_close(differentiated(by_steps), expected)
    assert_close(differentiated(by_single_steps), expected)
    zeros = model.initial_state((B,), jnp.float64)
    assert_close(jaxrnn.reset_state(model, start, resets[0]), jaxrnn.reset_state(model, start, resets[0], zeros))


def test_nan_of_an_episode_that_ended_does_not_pass():
    found = jaxrnn.reset_state(jaxrnn.gru(2), jnp.full((2, 2), jnp.nan), jnp.array([True, False]))
    assert np.isnan(np.asarray(found)).tolist() == [[False, False], [True, True]]


def test_truncated_states_have_no_gradient():
    cell = MODELS["lstm"]
    params, xs = cell.init(jax.random.key(0), I), jnp.ones((4, B, I))

    def last(params, xs, cut):
        state, _ = jaxrnn.unroll(cell, params, xs[:2])
        return jaxrnn.unroll(cell, params, xs[2:], jaxrnn.truncate(state) if cut else state)[1][-1].sum()

    through, cut = (jax.grad(last, 1)(params, xs, each) for each in (False, True))
    assert np.abs(through[:2]).min() > 0
    assert np.abs(cut[:2]).max() == 0
    assert_close(cut[2:], through[2:], "float32")


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: jaxrnn.reset_state(None, 0, 0), TypeError, "reset_state: model expected a cell or a network, got None"),
        (lambda: jaxrnn.reset_state(MODELS["gru"], jnp.ones((3, 4)), jnp.ones(3)), TypeError, "resets expected booleans"),
        (
            lambda: jaxrnn.reset_state(MODELS["gru"], jnp.ones((2, 4)), jnp.ones(3, bool)),
            ValueError,
            r"reset_state: state expected float32\[3, 4\], got float32\[2, 4\]",
        ),
        (
            lambda: jaxrnn.reset_state(MODELS["lstm"], jnp.ones((3, 4)), jnp.ones(3, bool)),
            TypeError,
            "reset_state: state expected",
        ),
        (lambda: jaxrnn.truncate("abc"), TypeError, "truncate: state expected arrays of numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, kind, said):
    with pytest.raises(kind, match=said):
        call()


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("name", MODELS)
def test_a_size_in_the_place_of_a_shape_is_refused_in_words(name):
    with pytest.raises(TypeError, match=r"batch_shape expected a tuple of sizes, got int 4; write \(4,\) for one axis"):
        MODELS[name].initial_state(4)
