"""Every place that splits a random key, or seeds a generator, gives independent draws to what it names.

A draw is observed where it comes out: in parameters, in masks, or in numbers that a stub draws from the key it is given.
Two draws from one key have the same bits, so that their correlation is near 1, whatever their distributions.
"""

import ast
import inspect
import itertools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from experiments import forecast, long_sequence, polyphonic_music, translate_toy
from experiments.datasets import batching, translation
from experiments.datasets.images import Images
from experiments.gradient_flow import gain, powers
from experiments.memory_tasks.problems import PROBLEMS, held_out_batch, training_batch
from experiments.models import language
from experiments.models.functional import Functional
from experiments.models.problems import digits
from experiments.models.readout import init_readout
from experiments.training.loop import Task, begin, training
from jaxrnn import LSTMState, analysis, initializers, modules
from jaxrnn.cells import FAMILIES
from tests.experiments.test_shared_batches import TASKS
from tests.support.compilation import compiled_quickly  # noqa: F401
from tests.support.registry import quick_jit

KEY = jax.random.key(0)
H = 64
UNIFORM = {
    "kernel_init": initializers.torch_uniform(),
    "recurrent_init": initializers.torch_uniform(),
    "bias_init": initializers.torch_uniform_bias(),
}


def drawn_by(factory):
    """The initialisers that a factory takes."""
    wanted = {**UNIFORM, "gate_init": UNIFORM["kernel_init"]}
    return {name: init for name, init in wanted.items() if name in inspect.signature(factory).parameters}


def assert_independent(draws):
    """Asserts that no two of the named draws are correlated in the entries that both have."""
    for (one, a), (other, b) in itertools.combinations(draws.items(), 2):
        a, b = np.ravel(a), np.ravel(b)
        n = min(a.size, b.size)
        assert n >= H, (one, other)  # the bound below is then 0.6
        found = np.corrcoef(a[:n], b[:n])[0, 1]
        assert abs(found) < 4.8 / np.sqrt(n), (one, other, found)


def uniform(key, *shape):
    return np.asarray(jax.random.uniform(key, shape))


def blocks(name, tree, size=H):
    """Every array of a tree that is drawn, cut into the blocks of its gates."""
    draws = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = np.asarray(leaf)
        count = leaf.shape[-1] // size if leaf.shape[-1] % size == 0 else 1
        for k, block in enumerate(np.split(leaf, count, -1)):
            if block.std():
                draws[f"{name}{jax.tree_util.keystr(path)}, block {k}"] = block
    return draws


# Initial parameters


@pytest.mark.parametrize("cell", [
    *(family.factory(H, **drawn_by(family.factory)) for family in FAMILIES), jaxrnn.lstm(H, projection_size=H // 2, **UNIFORM),
], ids=repr)  # fmt: skip
def test_parameters_of_a_cell_and_their_gates_are_drawn_independently(cell):
    """The input has as many features as there are units, so that one key would make equal matrices."""
    params = quick_jit(lambda key: cell.init(key, H))(KEY)
    assert all(leaf.std() > 0 for leaf in jax.tree.leaves(params))
    assert_independent(blocks("", params))


def test_layers_and_directions_are_drawn_independently():
    net = jaxrnn.stack([jaxrnn.rnn(H, **UNIFORM)] * 3, bidirectional=True)
    draws = blocks("", quick_jit(lambda key: net.init(key, H))(KEY))
    assert len(draws) == 3 * 2 * 3
    assert_independent(draws)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "MinGRU", "MinLSTM"])
def test_parameters_of_modules_are_drawn_independently(kind):
    """Two modules and two cells draw from the streams of one `Rngs`."""
    rngs = nnx.Rngs(0)
    layers = [getattr(modules, kind)(H, H, 2, bidirectional=True, rngs=rngs) for _ in range(2)]
    cells = [getattr(modules, f"{kind}Cell")(H, H, rngs=rngs) for _ in range(2)]
    draws = {}
    for k, module in enumerate((*layers, *cells)):
        draws |= blocks(f"module {k}", module.params)
    assert_independent(draws)


def test_carry_of_a_module_is_drawn_independently():
    cell, rngs = modules.LSTMCell(2, H, rngs=nnx.Rngs(0)), nnx.Rngs(carry=1)
    first, second = (cell.initialize_carry((40, 2), rngs, jax.nn.initializers.normal()) for _ in range(2))
    assert_independent({"first h": first.h, "first c": first.c, "second h": second.h, "second c": second.c})


# Noise


@pytest.mark.parametrize("bidirectional", [False, True])
def test_noise_of_layers_and_directions_and_dropout_between_them_are_drawn_independently(bidirectional):
    """The cells output 1, so that the inputs of a layer show the dropout below it, and draw from the key they are given."""
    seen, features = [], 4 * (1 + bidirectional)

    def sample(key, params, xs):
        seen.append((key, xs))
        return params, xs

    cell = jaxrnn.rnn(4, activation="relu")._replace(sample=sample)
    net = jaxrnn.stack([cell] * 4, bidirectional=bidirectional, dropout=0.5)
    shapes = jax.eval_shape(lambda key: net.init(key, features), KEY)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1.0 if leaf.ndim == 1 else 0.0), shapes)
    net.unroll(params, jnp.ones((20, 10, features)), key=KEY)
    places = list(itertools.product(range(4), ("forward", "backward")[: 1 + bidirectional]))
    draws = {f"noise {place}": uniform(key, *xs.shape) for place, (key, xs) in zip(places, seen, strict=True)}
    for (layer, direction), (_, xs) in zip(places, seen, strict=True):
        if layer and direction == "forward":
            assert set(np.unique(xs)) == {0, 2}
            draws[f"dropout below layer {layer}"] = xs
    assert len(draws) == 4 * (1 + bidirectional) + 3
    assert_independent(draws)


def test_masks_of_a_regularised_cell_are_drawn_independently():
    """All masks are of one size; those of zoneout are new at every step."""
    batch, time = 32, 4
    cell = jaxrnn.regularize(jaxrnn.lstm(H), input_dropout=0.5, recurrent_dropout=0.5, dropconnect=0.5, zoneout=0.5)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(lambda key: cell.init(key, H), KEY))
    params, xs = cell.sample(KEY, params, jnp.ones((time, batch, H)))
    draws = {"input": xs.x[0] > 0, "recurrent": params.w_h.keep, "connections": params.w_h.w > 0}
    for t in range(time):
        draws |= {f"h held at step {t}": xs.hold.h[t], f"c held at step {t}": xs.hold.c[t]}
    assert all(0.4 < np.mean(draw) < 0.6 for draw in draws.values())
    assert_independent(draws)


def test_dropout_of_modules_is_drawn_independently():
    """Two modules of one `Rngs` have streams of their own, and every call draws anew."""
    rngs = nnx.Rngs(0)
    first, second = (modules.GRU(2, 3, 2, dropout=0.5, rngs=rngs) for _ in range(2))
    streams = {"first": first.rngs, "second": second.rngs, "rngs": rngs.params}
    assert_independent(
        {f"{name}, call {k}": uniform(stream(), 400) for k in range(2) for name, stream in streams.items()}
    )


# Generation and analysis


def test_steps_of_a_generation_are_drawn_independently():
    cell = jaxrnn.gru(3)
    params, start = cell.init(KEY, H), jnp.zeros((20, H))
    draw = lambda y, key: jax.random.uniform(key, start.shape)  # noqa: E731
    *_, inputs = jaxrnn.generate(cell, params, cell.initial_state((20,)), start, draw, 6, KEY, return_inputs=True)
    assert_independent({f"step {t}": x for t, x in enumerate(inputs)} | {"the key itself": uniform(KEY, 20, H)})


@pytest.mark.parametrize("norms", [analysis.tangent_norms, analysis.cotangent_norms])
def test_parts_of_a_random_direction_are_drawn_independently(norms):
    """The step maps (h, c) to (h - c, c - h): a direction whose parts are equal has the image 0."""

    def step(params, state, x):
        after = LSTMState(state.h - state.c, state.c - state.h)
        return after, after.h

    cell = jaxrnn.Cell(lambda key, size: jnp.zeros(()), jaxrnn.lstm(H).initial_state, step)
    found = norms(cell, jnp.zeros(()), jnp.zeros((1, 3, 1)), key=KEY)
    np.testing.assert_allclose(found, np.log(np.sqrt(2)), atol=0.3)  # 2 |h - c|² = 2 - 4 h · c


def test_parameters_of_a_readout_are_drawn_independently():
    normal = jax.nn.initializers.normal(1.0)
    v, c = jaxrnn.readout(1600, kernel_init=normal, bias_init=normal).init(KEY, 1)
    assert_independent({"v": v[0], "c": c})
    draw = {"kernel_init": normal, "bias_init": normal, "rngs": nnx.Rngs(0)}
    module = jaxrnn.modules.Readout(1, 1600, **draw)
    assert_independent({"v": module.v[0], "c": module.c[...]})


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
    "language": lambda rngs: language.LanguageModel(H, "gru", H, H, 2, 0.5, rngs),
    "music": lambda rngs: polyphonic_music.Composer("lstm", H, 0.5, rngs),
    "translation": lambda rngs: translate_toy.EncoderDecoder("rnn", H, H, H, rngs),
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
    return forecast.task_of(forecast.Config(), jaxrnn.gru(2), prepared, 99).batch


def batches_of_text():
    model = language.language_model(5, cell="gru", embedding=2, hidden_size=2, layers=1, dropout=0.0)
    of_a_step = language.text_task(model, np.random.default_rng(0).integers(0, 5, 5000), 2, 700).batch
    return lambda seed, epoch: of_a_step(seed, 3 * epoch)  # three windows an epoch


def batches_of_images():
    """A step is an epoch: of 50 images 40 are for training."""
    images = np.arange(50.0).reshape(50, 1, 1), np.arange(50)
    return digits(40, Images(*images, *images)).batch


LENGTHS = np.arange(64)
BATCHES = {
    **{name: lambda name=name: TASKS[name]().batch for name in TASKS},
    "digits, by epoch": batches_of_images,
    "polyphonic_music": batches_of_music,
    "forecast": batches_of_forecast,
    "text": batches_of_text,
    "translation": lambda: translate_toy.task_of(translate_toy.Config(), types.SimpleNamespace(init=None)).batch,
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
    pairs = [
        translation.draw_pairs(translation.LANGUAGES["reversal"], 6, 50, (0, 0), test=test) for test in (False, True)
    ]
    sources = [{tuple(source) for source in part.sources} for part in pairs]
    assert not sources[0] & sources[1]


# All places

SPLITS = {"split", "fold_in", "fork", "default_rng"}
PLACES = {
    "jaxrnn/cells/_family.py": {"init_params"},
    "jaxrnn/cells/rg_lru.py": {"_init"},
    "jaxrnn/initializers.py": {"draw_gates", "draw_biases"},
    "jaxrnn/network.py": {"_init", "_unroll", "_split_key"},
    "jaxrnn/cells/regularize.py": {"_sample"},
    "jaxrnn/readouts.py": {"_init"},
    "jaxrnn/generation.py": {"generate.step"},
    "jaxrnn/modules/_base.py": {"Recurrent.__init__"},
    "jaxrnn/analysis/directions.py": {"_direction"},
    "experiments/models/readout.py": {"init_readout"},
    "experiments/models/language.py": {"LanguageModel.__call__", "text_task.batch", "write"},
    "experiments/polyphonic_music.py": {"Composer.__call__", "task_of.batch"},
    "experiments/training/loop.py": {"begin.one", "training.one"},
    "experiments/gradient_flow/gain.py": {"draws"},
    "experiments/gradient_flow/powers.py": {"draw", "raise_to_powers"},
    "experiments/long_sequence.py": {"functions_of.init", "oscillations"},
    "experiments/gradient_flow/task.py": {"sequence_batch"},
    "experiments/models/problems.py": {"_images", "next_character.batch"},
    "experiments/memory_tasks/problems.py": {"held_out_batch", "training_batch"},
    "experiments/datasets/batching.py": {"_order"},
    "experiments/datasets/translation.py": {"draw_pairs"},
    "experiments/forecast.py": {"task_of.batch"},
    "experiments/lstm_vs_gru/plan.py": {"adding.examples"},
}
# One draw of a fixed seed, or shapes alone.
SINGLE = {
    "experiments/bptt_by_hand/compare.py", "experiments/bptt_by_hand/figure.py",
    "jaxrnn/analysis/lyapunov.py", "jaxrnn/interop/_onnx_chain.py", "experiments/benchmarks/_problem.py",
    "experiments/benchmarks/_scaling_counts.py", "experiments/gradient_flow/measure.py",
    "experiments/lstm_vs_gru/__main__.py", "experiments/sequential_images.py",
    "experiments/parallel_in_time/iterations.py", "experiments/parallel_in_time/times.py",
}  # fmt: skip


def places_in(tree, path=()):
    """The functions that split a key or seed a generator, by their names within the file."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found |= places_in(node, (*path, node.name))
            continue
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in SPLITS:
            owner = ast.unparse(called.value)
            if owner in ("jax.random", "np.random", "random") or called.attr == "fork":
                found.add(".".join(path))
        found |= places_in(node, path)
    return found


def test_every_place_that_splits_a_key_is_tested():
    root, found = Path(__file__).parents[1], {}
    for file in sorted(path for folder in ("jaxrnn", "experiments") for path in (root / folder).rglob("*.py")):
        if places := places_in(ast.parse(file.read_text())):
            found[file.relative_to(root).as_posix()] = places
    assert {file: places for file, places in found.items() if file not in SINGLE} == PLACES
    assert set(found) >= SINGLE
