"""Every draw of the experiments is independent of the others: of models, seeds, steps and data sets."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from experiments import long_sequence, polyphonic_music
from experiments.datasets import batching
from experiments.datasets.images import Images
from experiments.datasets.weather import Weather
from experiments.forecast import __main__ as forecast
from experiments.forecast import airline
from experiments.forecast.series import prepare
from experiments.g2p import examples as spelling
from experiments.g2p import model as speller
from experiments.gradient_flow import gain, powers
from experiments.memory_tasks.problems import PROBLEMS, held_out_batch, training_batch
from experiments.models import language
from experiments.models.functional import Functional
from experiments.models.problems import digits
from experiments.models.readout import init_readout
from experiments.training.loop import Task, begin, training
from tests.experiments.test_shared_batches import TASKS
from tests.support.compilation import compiled_quickly  # noqa: F401
from tests.support.draws import KEY, UNIFORM, H, assert_independent, blocks, uniform

# Experiments: models


def test_dropout_of_the_language_model_is_drawn_independently():
    seen = {}
    ones = jnp.ones((10, 20, 8))

    def layers(xs, states, deterministic, rngs):
        seen.update({"embedding": xs, "layers": uniform(rngs, *ones.shape)})
        return ones, states

    read = types.SimpleNamespace(logits=lambda ys: ys)
    model = types.SimpleNamespace(dropout=0.5, embedding=lambda tokens: ones, layers=layers, readout=read)
    model._dropped = lambda values, key: language.LanguageModel._dropped(model, values, key)
    seen["readout"] = language.LanguageModel.__call__(model, None, None, KEY)[0]
    assert set(np.unique(seen["embedding"])) == set(np.unique(seen["readout"])) == {0, 2}
    assert_independent(seen)


def test_dropout_of_the_composer_is_drawn_independently():
    seen, ones = {}, jnp.ones((10, 20, 8))

    def layer(xs, lengths):
        seen["inputs"] = xs
        return ones, None

    read = types.SimpleNamespace(logits=lambda ys: ys)
    model = types.SimpleNamespace(dropout=nnx.Dropout(0.5), layer=layer, readout=read)
    seen["outputs"] = polyphonic_music.Composer.__call__(model, ones, None, KEY)
    assert set(np.unique(seen["inputs"])) == set(np.unique(seen["outputs"])) == {0, 2}
    assert_independent(seen)


MODELS = {
    "language": lambda rngs: language.LanguageModel(H, "gru", H, H, 2, 0.5, 1, rngs),
    "music": lambda rngs: polyphonic_music.Composer("lstm", H, 0.5, rngs),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_model_and_models_of_two_keys_are_drawn_independently(name):
    init = language.functional(MODELS[name]).init
    assert_independent(blocks("one", init(jax.random.key(1))) | blocks("other", init(jax.random.key(2))))


def test_cell_and_readout_are_drawn_independently():
    cell = jaxrnn.rnn(H, **UNIFORM)
    assert_independent(blocks("readout", init_readout(cell, H, H, H, KEY)))
    model, _, _ = long_sequence.training(long_sequence.Config(hidden_size=H, features=H), None)
    assert_independent(blocks("", model))


def test_draws_of_the_scan_of_gains_are_drawn_independently():
    """The matrices, the noise, the direction of the loss and the initial parameters, of two seeds."""
    draws = {}
    for seed in range(2):
        drawn = gain.draws(H, H, seed)
        draws |= {f"{kind}, seed {seed}": np.asarray(found) for kind, found in drawn.matrices.items()}
        draws[f"noise, seed {seed}"] = np.asarray(drawn.xs[:, :, -1])
        draws[f"loss, seed {seed}"] = np.asarray(drawn.v)
        draws |= blocks(f"parameters, seed {seed}", drawn.params)
    assert len(draws) == 2 * (len(gain.MATRICES) + 2 + 2)
    assert_independent(draws)


def test_keys_of_the_scan_of_gains_are_different(monkeypatch):
    """Every function that draws is given a key of its own."""
    keys = []

    def drawing(shape):
        def draw(*given, **_):
            keys.extend(np.asarray(jax.random.key_data(one)).tobytes() for one in given if is_key(one))
            return jnp.zeros(shape)

        return draw

    monkeypatch.setattr(gain, "matrix", drawing((3, 3)))
    monkeypatch.setattr(gain, "sequences", drawing((4, 2, 5)))
    monkeypatch.setattr(gain.jax.random, "normal", drawing((3,)))
    monkeypatch.setattr(gain.jaxrnn, "rnn", lambda _: types.SimpleNamespace(init=drawing((3,))))
    for seed in range(2):
        gain.draws(3, 2, seed)
    assert len(keys) == len(set(keys)) == 2 * (len(gain.MATRICES) + 3)


def is_key(value):
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def test_matrices_that_are_taken_to_powers_are_drawn_independently():
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(seed), 2), 3) for seed in range(2)]
    draws = {
        f"{kind}, {seed}": powers.draw(kind, H, keys[seed][place])
        for seed in range(2)
        for place, kind in enumerate(powers.KINDS)
    }
    draws |= {f"{name} less its diagonal": w - np.diag(np.diag(w)) for name, w in draws.items()}
    assert_independent({name: w for name, w in draws.items() if "less" in name})


def test_written_places_are_drawn_independently():
    class Even:
        """A model to which every token is equally likely."""

        def __call__(self, tokens, states):
            return jnp.zeros((*tokens.shape, 50)), states

        def start(self, count):
            return ()

    model = Functional(lambda key: (), lambda params: Even())
    written = language.write(model, (), jnp.zeros((1, 2000), jnp.int32), jnp.full((5, 2000), -1), jnp.float32(1.0), KEY)
    assert_independent({f"place {k}": np.asarray(tokens) for k, tokens in enumerate(written)})


# Experiments: seeds and steps


def test_parameters_and_noise_of_all_seeds_and_steps_are_drawn_independently():
    n, seeds = 400, (3, 4)

    def loss(params, carry, batch, key):
        return jnp.sum(params), jax.random.uniform(key, (n,))

    task = Task(lambda key: jax.random.uniform(key, (n,)), loss, None, 1, carry=np.zeros(n, np.float32))
    optimiser = optax.identity()
    state, run = begin(task, optimiser, seeds), training(task, optimiser, "cpu")
    draws = {f"params of {seed}": np.asarray(own) for seed, own in zip(seeds, state.params, strict=True)}
    draws |= {f"key of {seed}": uniform(key, n) for seed, key in zip(seeds, state.keys, strict=True)}
    for step in range(3):
        state, _ = run(state, np.zeros((1, len(seeds), 1), np.float32))
        draws |= {
            f"noise of {seed}, step {step}": np.asarray(own) for seed, own in zip(seeds, state.carry, strict=True)
        }
    assert_independent(draws)


def batches_of_music():
    """The pieces are equal, so that batches differ by the stretches that are read of them."""
    piece = np.random.default_rng(0).random((5000, polyphonic_music.PITCHES)) < 0.1
    model = types.SimpleNamespace(init=None, bind=None)
    return polyphonic_music.task_of(polyphonic_music.Config(window=20), model, [piece] * 16).batch


def batches_of_forecast():
    rng = np.random.default_rng(0)
    prepared = types.SimpleNamespace(xs=rng.random((99, 7), np.float32), changes=rng.random(99), scale=1.0)
    return airline.task_of(airline.Config(), jaxrnn.gru(2), prepared, 99).batch


def batches_of_weather():
    """Every hour differs, so that the windows of a batch tell where they begin."""
    hours = np.arange("2013-01-01T06", "2013-06-30T06", dtype="datetime64[h]")
    values = np.random.default_rng(0).random((len(hours), 3, 8))
    prepared = prepare(Weather(hours, values), 3, 2)
    return forecast.task_of(forecast.Config(history=3, horizon=2), jaxrnn.gru(2), prepared).batch


def batches_of_text():
    model = language.language_model(5, cell="gru", embedding=2, hidden_size=2, layers=1, dropout=0.0)
    of_a_step = language.text_task(model, np.random.default_rng(0).integers(0, 5, 5000), 2, 700).batch
    return lambda seed, epoch: of_a_step(seed, 3 * epoch)  # three windows an epoch


def batches_of_spelling():
    """Of one bucket, whose five batches of an epoch are one block."""
    words = [(word, ("K", "AE", "T")) for word in map("".join, itertools.product("abcd", repeat=3))]
    return functools.partial(spelling.batch_of, spelling.in_buckets(words), 12)


def test_parts_of_the_speller_are_drawn_independently(monkeypatch):
    """One bank of numbers for parameters; and masks of letters, memory, phonemes and outputs."""
    params = speller.init(speller.model_of({"cell": "gru", "hidden_size": 2 * H, "embedding": H, "dropout": 0.5}), KEY)
    assert_independent({name: draw for name, draw in blocks("", params).items() if draw.std() > 0})
    seen, drop = [], speller._dropped

    def watched(model, values, key):
        seen.append(uniform(key, 400))
        return drop(model, values, key)

    monkeypatch.setattr(speller, "_dropped", watched)
    small = speller.model_of({"cell": "gru", "hidden_size": 4, "embedding": 3, "dropout": 0.5})
    pairs = [("cat", ("K", "AE", "T")), ("at", ("AE", "T"))]
    speller.loss_of(small, speller.init(small, KEY), spelling.encoded(pairs), KEY)
    assert len(seen) == 4
    assert_independent(dict(enumerate(seen)))


def batches_of_images():
    """A step is an epoch: of 50 images 40 are for training."""
    images = np.arange(50.0).reshape(50, 1, 1), np.arange(50)
    return digits(40, Images(*images, *images)).batch


LENGTHS = np.arange(64)
BATCHES = {
    **{name: lambda name=name: TASKS[name]().batch for name in TASKS},
    "digits, by epoch": batches_of_images,
    "polyphonic_music": batches_of_music,
    "forecast": batches_of_weather,
    "forecast airline": batches_of_forecast,
    "text": batches_of_text,
    "spelling": batches_of_spelling,
    "shuffled": lambda: lambda seed, step: batching.shuffled(64, 16, seed, step),
    "shuffled, by epoch": lambda: lambda seed, epoch: batching.shuffled(64, 64, seed, epoch),
    "bucketed": lambda: lambda seed, step: batching.bucketed(LENGTHS, 16, seed, step, 1).indices,
    "bucketed, by epoch": lambda: lambda seed, epoch: batching.bucketed(LENGTHS, 64, seed, epoch, 1).indices,
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_all_seeds_and_steps_differ(name):
    batch = BATCHES[name]()
    drawn = {place: jax.tree.leaves(batch(*place)) for place in itertools.product(range(3), range(3))}
    for (one, a), (other, b) in itertools.combinations(drawn.items(), 2):
        assert not all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), (one, other)


def test_held_out_sequences_are_no_training_sequences():
    """Not even where a length is a seed, and a number of sequences a step."""
    held_out, trained = (
        held_out_batch(PROBLEMS["adding"], 8, 5),
        training_batch(PROBLEMS["adding"], 8, 5, seed=8, step=5),
    )
    assert not np.array_equal(held_out.xs, trained.xs)
