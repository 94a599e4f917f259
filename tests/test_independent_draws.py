"""Every place that splits a random key, or seeds a generator, gives independent draws to what it names.

A draw is observed where it comes out: in parameters, in masks, or in numbers that a stub draws from the key it is given.
Two draws from one key have the same bits, so that their correlation is near 1, whatever their distributions.
"""

import ast
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import LSTMState, analysis, modules
from jaxrnn.cells import FAMILIES
from tests.support.compilation import compiled_quickly  # noqa: F401
from tests.support.draws import KEY, UNIFORM, H, assert_independent, blocks, drawn_by, uniform
from tests.support.registry import quick_jit

# Initial parameters


@pytest.mark.parametrize("cell", [
    *(family.factory(H, **drawn_by(family.factory)) for family in FAMILIES), jaxrnn.lstm(H, projection_size=H // 2, **UNIFORM),
    jaxrnn.gru(H, num_heads=4, **UNIFORM), jaxrnn.attend(jaxrnn.gru(H, **UNIFORM), H, score_size=H, attention_size=H, kernel_init=UNIFORM["kernel_init"]),
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


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "MinGRU", "MinLSTM", "RGLRU", "LRU", "SLSTM"])
def test_parameters_of_modules_are_drawn_independently(kind):
    """Two modules and two cells draw from the streams of one `Rngs`."""
    rngs, given = nnx.Rngs(0), UNIFORM if kind == "SLSTM" else {}  # whose biases are not drawn by default
    layers = [getattr(modules, kind)(H, H, 2, bidirectional=True, rngs=rngs, **given) for _ in range(2)]
    cells = [getattr(modules, f"{kind}Cell")(H, H, rngs=rngs, **given) for _ in range(2)]
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


# All places

SPLITS = {"split", "fold_in", "fork", "default_rng"}
PLACES = {
    "jaxrnn/cells/_family.py": {"init_params"},
    "jaxrnn/cells/attend.py": {"_init"},
    "jaxrnn/cells/rg_lru.py": {"_init"},
    "jaxrnn/cells/lru.py": {"_init", "_ring"},
    "jaxrnn/initializers.py": {"draw_gates", "draw_heads", "draw_biases"},
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
    "experiments/g2p/examples.py": {"_order"},
    "experiments/g2p/model.py": {"init", "read", "loss_of"},
    "experiments/forecast/__main__.py": {"task_of.batch"},
    "experiments/forecast/airline.py": {"task_of.batch"},
    "experiments/lstm_vs_gru/plan.py": {"adding.examples"},
    "experiments/recurrent_ppo/environments.py": {"advance"},
    "experiments/recurrent_ppo/network.py": {"with_heads.init"},
    "experiments/recurrent_ppo/ppo.py": {
        "begin",
        "rollout",
        "rollout.step",
        "learn",
        "update",
        "updates.some",
        "greedy_returns",
    },
    "experiments/recurrent_ppo/training.py": {"keys_of"},
}
# One draw of a fixed seed, or shapes alone.
SINGLE = {
    "experiments/bptt_by_hand/compare.py", "experiments/bptt_by_hand/figure.py",
    "jaxrnn/analysis/lyapunov.py", "jaxrnn/interop/_onnx_chain.py", "experiments/benchmarks/_problem.py",
    "experiments/benchmarks/_scaling_counts.py", "experiments/gradient_flow/measure.py",
    "experiments/lstm_vs_gru/__main__.py", "experiments/sequential_images.py",
    "experiments/recurrent_ppo/speed.py", "experiments/parallel_in_time/times.py", "experiments/real_models/audio.py", "jaxrnn/testing/numbers.py",
    "jaxrnn/analysis/ablation.py", "jaxrnn/parallel/_own_cells.py",
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
