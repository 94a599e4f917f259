"""The language model: its loss over windows against the whole text, its states, and what it writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _language
from experiments._loop import begin, make_optimiser, training
from tests.test_experiments import optax_promotes

V, B, WINDOW = 5, 3, 4
TEXT = np.random.default_rng(0).integers(0, V, 50)


def made(cell="gru", layers=2, dropout=0.0):
    model = _language.language_model(V, cell=cell, embedding=3, hidden_size=6, layers=layers, dropout=dropout)
    return model, jax.jit(model.init)(jax.random.key(0))


def nats_of(model, params, tokens):
    """Of a text read in one go, token by token; `(N - 1,)`."""
    logits, _ = model.bind(params)(jnp.asarray(tokens[:-1, None], jnp.int32))
    logits = np.asarray(logits[:, 0], np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -logits[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("streams", [1, 3])
def test_the_loss_of_a_text_is_that_of_its_streams(streams):
    model, params = made()
    found = _language.text_loss(model, TEXT, streams, WINDOW)(jax.tree.map(lambda leaf: leaf[None], params))
    length = len(TEXT) // streams
    parts = [nats_of(model, params, TEXT[k * length : (k + 1) * length]) for k in range(streams)]
    np.testing.assert_allclose(found, [np.mean(parts)], rtol=1e-5)


def test_windows_follow_one_another_and_hand_on_their_states():
    model, params = made("lstm")
    task = _language.text_task(model, TEXT, B, WINDOW)
    streams = TEXT[:48].reshape(B, 16).T
    inputs, targets, fresh = zip(*(task.batch(7, step) for step in range(3)), strict=True)
    assert _language.steps_an_epoch(TEXT, B, WINDOW) == 3
    assert [list(f) for f in fresh] == [[True] * B, [False] * B, [False] * B]
    whole = np.concatenate(inputs)
    first = next(k for k in range(4) if (streams[k : k + 12] == whole).all())
    np.testing.assert_array_equal(np.concatenate(targets), streams[first + 1 : first + 13])
    assert task.batch(7, 3)[2].all()
    starts = {tuple(task.batch(seed, 3 * epoch)[0][0]) for seed in range(3) for epoch in range(6)}
    assert len(starts) > 1  # epochs are cut elsewhere
    states = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 9.0), task.carry)  # of another epoch
    losses = []
    for k in range(3):
        batch = tuple(map(jnp.asarray, (inputs[k], targets[k], fresh[k])))
        value, states = task.loss(params, states, batch, None)
        losses.append(value)
    logits, _ = model.bind(params)(jnp.asarray(whole))
    each = _language.nats(logits, jnp.asarray(np.concatenate(targets)))
    np.testing.assert_allclose(losses, np.asarray(each).reshape(3, -1).mean(-1), rtol=1e-5)


def test_it_learns_a_text_that_repeats_itself():
    text = np.tile([0, 1, 2, 1, 3, 4], 40)
    model, _ = made("gru", layers=1)
    task, optimiser = _language.text_task(model, text, B, 8), make_optimiser(0.03)
    with optax_promotes():
        state, run = begin(task, optimiser, [0]), training(task, optimiser)
        batches = [task.batch(0, step) for step in range(60)]
        stacked = [np.stack([batch[k] for batch in batches])[:, None] for k in range(3)]
        state, losses = run(state, tuple(stacked))
    assert losses[0, 0] > 1.5
    assert losses[-1, 0] < 0.3
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    free = jnp.full((7, 1), -1)
    cold = jnp.float32(0.01)
    written = _language.write(model, params, jnp.asarray([[0], [1], [2]]), free, cold, jax.random.key(0))
    assert written[:, 0].tolist() == [1, 3, 4, 0, 1, 2, 1]
    forced = free.at[2].set(3)
    assert _language.write(model, params, jnp.asarray([[0]]), forced, cold, jax.random.key(0))[2, 0] == 3


def test_what_is_written_has_the_model_s_odds():
    model, params = made(layers=1)
    prompt, free = jnp.zeros((1, 4000), int), jnp.full((1, 4000), -1)
    logits = np.asarray(model.bind(params)(prompt[:, :1])[0][0, 0], np.float64)
    for temperature, most_likely in ((1.0, 0), (0.5, 0), (1.0, 2)):
        odds = np.exp(logits / temperature)
        if most_likely:
            odds[np.argsort(odds)[:-most_likely]] = 0
        drawn = _language.write(model, params, prompt, free, jnp.float32(temperature), jax.random.key(1), most_likely)
        shares = np.bincount(np.asarray(drawn[0]), minlength=V) / 4000
        np.testing.assert_allclose(shares, odds / odds.sum(), atol=0.03)


def test_dropout_is_noise_of_the_right_mean_and_only_with_a_key():
    model, params = made(layers=1, dropout=0.4)
    bound = model.bind(params)
    ones = jnp.ones((200, 50, 6))
    dropped = np.asarray(bound._dropped(ones, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.6], rtol=1e-6)
    np.testing.assert_allclose((dropped == 0).mean(), 0.4, atol=0.01)
    tokens = jnp.asarray(TEXT[:12].reshape(4, 3))
    plain, noisy, other = (bound(tokens, None, key)[0] for key in (None, jax.random.key(0), jax.random.key(1)))
    assert not np.allclose(plain, noisy)
    assert not np.allclose(noisy, other)
    np.testing.assert_array_equal(noisy, bound(tokens, None, jax.random.key(0))[0])
