"""What cannot fit the memory is refused before any work, with the bytes that it takes at least."""

import dataclasses
import importlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import char_lm, long_sequence
from experiments.benchmarks import latency, scaling, speed
from experiments.benchmarks import memory as memory_benchmark
from experiments.command import memory, script
from experiments.datasets import poems as quatrains
from experiments.datasets.airline import Series
from experiments.datasets.images import Images
from experiments.datasets.music import Music
from experiments.datasets.vowels import Utterances, Vowels
from experiments.datasets.weather import Weather
from experiments.models import language
from experiments.training import sizes
from experiments.training.loop import Task, begin, make_optimiser, training
from tests.support import toy

BIG = 2 * 10**10  # bytes of an imaginary machine
RNG = np.random.default_rng(0)


def utterances():
    lengths = RNG.integers(7, 30, 54).astype(np.int32)
    return Utterances(np.zeros((54, 29, 12), np.float32), lengths, np.arange(54, dtype=np.int32) % 9)


def quatrain():
    return quatrains.Poem(("白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓"), "，。，。")


WORDS = {f"{a}{b}{c}": [("K", "AE", "T")] for a in "abcdef" for b in "abcdef" for c in "abcdef"}
DATA = {  # in the place of sets that are not here, or slow to make
    "mnist_1d": ("load", lambda *_: Images(np.zeros((4000, 40, 1), np.float32), np.arange(4000) % 10, None, None)),
    "g2p": ("load", lambda *_: [WORDS] * 3),
    "japanese_vowels": ("load_vowels", lambda *_: Vowels(utterances(), utterances())),
    "forecast": ("load_weather", lambda *_: Weather(np.arange(2000).astype("datetime64[h]"), RNG.random((2000, 3, 8)))),
    "forecast.airline": (
        "load_airline",
        lambda *_: Series(
            np.arange("1949-01", "1961-01", dtype="datetime64[M]"), np.arange(100, 244, dtype=np.float32)
        ),
    ),
    "polyphonic_music": ("load_music", lambda *_: Music(*[[np.zeros((90, 88), np.uint8)] * 9] * 3)),
}

# Of every script: options with which it fits, and of these one at a time that does not.
CASES = {
    "sequential_images": ({"cells": ("lstm",)}, {"hidden_size": 10**6, "seeds": 10**9}),
    "mnist_1d": ({}, {"hidden_size": 10**6}),
    "japanese_vowels": ({}, {"hidden_size": 10**6}),
    "polyphonic_music": ({"cells": ("gru",)}, {"budgets": (2 * 10**9, 20_000), "window": 10**8}),
    "char_lm": ({}, {"hidden_size": 10**6, "embedding": 2**31 - 1, "layers": 100}),
    "poems": ({}, {"hidden_size": 10**6, "embedding": 2**31 - 1, "layers": 100}),
    "g2p": ({"batch_size": 4}, {"hidden_size": 10**6, "embedding": 10**9, "seeds": 10**9}),
    "forecast": ({}, {"hidden_size": 10**6, "batch_size": 10**9}),
    "forecast.airline": ({}, {"hidden_size": 10**6, "batch_size": 10**9}),
    "gradient_flow": ({"cells": ("lstm",)}, {"hidden_size": 10**6, "length": 10**8, "batch_size": 5 * 10**4, "gains": 10**8 + 1}),
    "memory_tasks": (
        {"cells": ("lstm",), "comparisons": ()},
        {"hidden_size": 10**6, "lengths": (2**31 - 1,), "batch_size": 10**9, "tests": 2**31 - 1, "seeds": 10**9},
    ),
    "gates": ({"tasks": ("digits",), "cells": ("gru",), "retrain": ()}, {"hidden_size": 10**6, "seeds": 2**31 - 1}),
    "lstm_vs_gru": (
        {"tasks": ("digits", "adding"), "cells": ("lstm",), "budgets": (5_000,)},
        {"adding_steps": 10**9, "budgets": (2**31 - 1,), "seeds": 2**31 - 1},
    ),
    "recurrent_ppo": (
        {"environments": ("bandit",), "cells": ("gru",)},
        {"hidden_size": 10**6, "seeds": 2**31 - 1, "tests": 2**31 - 1},
    ),
    "parallel_in_time": ({}, {"hidden_size": 10**6, "batch_size": 2**31 - 1, "seeds": 10**9, "lengths": (2**31 - 1,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sizes_beyond_the_memory_are_refused_by_every_training_script(name, monkeypatch, tmp_path):
    packages = (
        "forecast",
        "g2p",
        "gradient_flow",
        "memory_tasks",
        "gates",
        "lstm_vs_gru",
        "parallel_in_time",
        "recurrent_ppo",
    )
    module = importlib.import_module(f"experiments.{name}{'.__main__' if name in packages else ''}")
    check = getattr(module, "check", None) or module.checked
    if name in DATA:
        monkeypatch.setattr(module, *DATA[name])
    monkeypatch.setattr(quatrains, "load_poems", lambda *_: quatrains.Poems(*[(quatrain(),) * 70] * 3))
    (tmp_path / "song.txt").write_text("to be, or not to be. " * 1000)
    own = {"text": tmp_path / "song.txt", "window": 20, "batch_size": 8} if name == "char_lm" else {}
    fitting, larger = CASES[name]
    config = module.Config(**own, **fitting, out=tmp_path / "out")
    monkeypatch.setattr(memory, "machine_bytes", lambda: BIG)
    check(config)
    for field, value in larger.items():
        option = f"--{field.replace('_', '-')}"
        if field == "layers":  # of which one and two fit
            config = dataclasses.replace(config, hidden_size=3000)
            check(dataclasses.replace(config, layers=2))
        with pytest.raises(ValueError, match="of memory") as refused:
            check(dataclasses.replace(config, **{field: value}))
        said = str(refused.value)
        found = re.search(
            r"needs at least ([\d,]+) bytes of memory(?:, ([\d,]+) of them for [\w' ]+)?, and the machine has ([\d,]+);",
            said,
        )
        needed, largest, there = (int((part or "0").replace(",", "")) for part in found.groups())
        assert needed > there == BIG
        assert largest == 0 or needed / 4 <= largest <= needed
        assert option in said.partition("give a smaller")[2]
        assert len(said) < 480
    assert not (tmp_path / "out").exists()


def test_gradients_of_every_step_beyond_the_memory_are_refused(monkeypatch, tmp_path):
    """The training of this LSTM fits; of its measurement, the gradient of W_h by step does not."""
    gradient_flow = importlib.import_module("experiments.gradient_flow.__main__")
    monkeypatch.setattr(memory, "machine_bytes", lambda: BIG)
    config = gradient_flow.Config(cells=("lstm",), hidden_size=2000, length=100, seeds=1, out=tmp_path)
    gradient_flow.checked(config)
    with pytest.raises(ValueError, match="needs at least .* give a smaller --length or --hidden-size") as refused:
        gradient_flow.checked(dataclasses.replace(config, length=3000))
    assert f"{8 * 3000 * 2000 * 8000:,} bytes" in str(refused.value)


# ---- how the bytes are counted

CPU = [types.SimpleNamespace(platform="cpu")]
GPUS = 2 * [types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 1000})]


def test_stored_bytes_equal_hand_computation():
    """An embedding, a cell and a read-out, Adam with two moments, and what `apply_if_finite` and Adam count: 13 bytes."""
    h, e, v, seeds, calls = 7, 5, toy.SYMBOLS, 3, 4
    config = toy.Config(cell="rnn", hidden_size=h, embedding=e, batch_size=6)
    task = toy.task_of(config, toy.model_of(config))
    parameters = v * e + h * (e + h + 1) + h * v + v
    sequences = 6 * toy.TIME
    found = sizes.stored_bytes(task, sizes.shapes_of(task.batch(0, 0)), seeds, calls, CPU)
    state = seeds * (3 * 4 * parameters + 13) + 4 * parameters  # and the gradient of one seed
    assert found == {sizes.STATE: state, sizes.BATCHES: 2 * seeds * calls * 4 * sequences}
    one = toy.task_of(dataclasses.replace(config, batch_size=1), toy.model_of(config))
    shapes = sizes.shapes_of(one.batch(0, 0), 6)
    assert shapes == sizes.shapes_of(task.batch(0, 0))
    shared = sizes.stored_bytes(task, shapes, seeds, calls, GPUS)
    assert shared == {sizes.STATE: state, sizes.BATCHES: seeds * calls * 4 * sequences // 2}


def tanh_task(examples=8):
    """Two products and a tanh between them."""

    def loss(params, carry, xs, key):
        return jnp.sum(jnp.tanh(xs @ params["w"]) @ params["v"]), carry

    def init(key):
        return {"w": jnp.zeros((16, 1000)), "v": jnp.zeros((1000, 2))}

    return Task(init, loss, lambda seed, step: np.zeros((examples, 16), np.float32), examples)


def test_kept_bytes_are_those_between_the_products():
    task = tanh_task()
    batch = sizes.shapes_of(task.batch(0, 0), 50)
    states = 4 * 50 * 1000
    assert states <= sizes.kept_bytes(task, batch, 3, CPU) <= 2 * states  # tanh, and perhaps its slope
    assert sizes.kept_bytes(task, batch, 3, GPUS) == 3 * sizes.kept_bytes(task, batch, 3, CPU) // 2


def test_bytes_of_a_recurrent_network_are_at_most_those_that_the_compiler_allocates():
    config = toy.Config(cell="rnn", hidden_size=32, embedding=8, batch_size=16)
    task, seeds, calls = toy.task_of(config, toy.model_of(config)), 2, 3
    batch, optimiser = sizes.shapes_of(task.batch(0, 0)), make_optimiser(1.0)
    with jax.numpy_dtype_promotion("standard"):
        state = jax.eval_shape(lambda: begin(task, optimiser, range(seeds)))
        batches = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((calls, seeds, *leaf.shape), leaf.dtype), batch)
        program = training(task, optimiser, "cpu").lower(state, batches).compile().memory_analysis()
    allocated = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
    needed = sizes.stored_bytes(task, batch, seeds, calls, CPU)
    found = needed[sizes.STATE] + needed[sizes.BATCHES] // 2 + sizes.kept_bytes(task, batch, seeds, CPU)
    assert allocated / 4 < found < allocated - program.alias_size_in_bytes


def test_bytes_of_layers_are_counted_from_two_of_them(monkeypatch):
    text = np.arange(400) % 5

    def task(layers):
        made = {"cell": "gru", "embedding": 3, "hidden_size": 6, "dropout": 0.1}
        return language.text_task(language.language_model(5, layers=layers, **made), text, 4, 7)

    seen = []
    monkeypatch.setattr(sizes, "check_fits", lambda parts, *_: seen.append(parts))
    config = char_lm.Config(layers=5, seeds=2)
    sizes.check_training(config, task(1), deeper=task(2))
    sizes.check_training(config, task(5))
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]


def test_shapes_of_a_batch_can_have_other_sizes():
    batch = {"xs": np.zeros((1, 5, 3), np.float32), "labels": np.zeros((1,), np.int64), "left out": None}
    found = sizes.shapes_of(batch, 10**9, 10**12)
    assert found["xs"].shape == (10**9, 10**12, 3)
    assert found["labels"].shape == (10**9,)
    assert found["labels"].dtype == np.int32  # as JAX has it
    assert sizes.bytes_of(found) == 4 * (3 * 10**21 + 10**9)
    assert sizes.shapes_of(batch)["xs"].shape == (1, 5, 3)


# ---- the memory that there is


def test_memory_is_that_of_the_machine_the_container_or_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: types.SimpleNamespace(total=5000))
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "new", tmp_path / "old"))
    assert memory.machine_bytes() == 5000
    (tmp_path / "new").write_text("max\n")
    assert memory.machine_bytes() == 5000
    (tmp_path / "old").write_text("3000\n")
    assert memory.memory_of(CPU[0]) == memory.memory_of() == ("machine", 3000)
    assert memory.memory_of(GPUS[0]) == ("device", 1000)
    unknown = types.SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert memory.memory_of(unknown) == ("machine", 3000)
    memory.check_fits({"a": 1000, "b": 2000}, ["--a"])
    memory.check_fits({"a": 1000}, ["--a"], GPUS[0])
    with pytest.raises(ValueError, match="of memory") as refused:
        memory.check_fits({"a": 1001, "b": 2000}, ["--a", "--b"])
    said = "this needs at least 3,001 bytes of memory, 2,000 of them for b, and the machine has 3,000; give a smaller --a or --b"
    assert str(refused.value) == said
    with pytest.raises(
        ValueError, match="needs at least 1,001 bytes of memory, and the device has 1,000; give a smaller --a"
    ):
        memory.check_fits({"a": 1001}, ["--a"], GPUS[0])


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 10**6), ("steps", 10**9), ("batch_size", 10**8), ("features", 10**8)]
)
def test_long_sequence_beyond_the_memory_is_refused(field, value, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "machine_bytes", lambda: BIG)
    config = long_sequence.Config(out=tmp_path / "out")
    assert long_sequence.checked(config) == "sqrt"
    (tmp_path / "out").rmdir()
    with pytest.raises(ValueError, match=f"needs at least .* give a smaller .*--{field.replace('_', '-')}"):
        long_sequence.checked(dataclasses.replace(config, **{field: value}))
    assert not (tmp_path / "out").exists()


def test_long_sequence_needs_more_memory_without_checkpoints():
    config = long_sequence.Config(steps=10_000)
    kept = {}
    for checkpoint in (None, "gates", "sqrt"):
        init, loss = long_sequence.functions_of(config, checkpoint)
        task = Task(init, lambda model, carry, xs, key, loss=loss: (loss(model, xs), carry), None, 1)
        sequence = jax.ShapeDtypeStruct((10_001, 8, 16), np.float32)
        kept[checkpoint] = sizes.kept_bytes(task, sequence, 1, CPU)
    assert kept["sqrt"] < kept["gates"] < kept[None]
    outputs = 4 * 10_000 * 8 * 128
    assert kept["gates"] > outputs
    assert kept[None] > 4 * outputs


@pytest.mark.parametrize(
    ("module", "arguments", "shape"),
    [
        (speed, ["--shapes", "8,8,8,1000000"], "--shapes 8,8,8,1000000"),
        (memory_benchmark, ["--hidden", "1000000"], "T,B,I,H 8192,32,128,1000000"),
        (latency, ["--hidden", "64", "1000000"], "--hidden 8,1,1000000,1000000"),
        (latency, ["--sequences", "8,100000000,8,8"], "--sequences 8,100000000,8,8"),
        (scaling, ["--timed", "rnn:8,8,8,1000000"], "--timed 8,8,8,1000000"),
    ],
)
def test_shapes_of_benchmarks_beyond_the_memory_are_refused(module, arguments, shape, monkeypatch, capsys):
    monkeypatch.setattr(memory, "machine_bytes", lambda: BIG)
    monkeypatch.setattr(module, "timed" if module is scaling else "run", lambda *_: pytest.fail("begun"))
    assert module.main(arguments) == 2
    err = capsys.readouterr().err
    assert f"{shape}: this needs at least " in err
    assert err.count("\n") == 1
    steps, batch, features, hidden = map(int, shape.split()[1].split(","))
    gates = 1 if module is scaling else 4
    weights, sequences = gates * hidden * (features + hidden + 1), steps * batch * (features + 2 * hidden)
    assert f"at least {4 * (2 * weights + sequences):,} bytes" in err


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 3 GiB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")],
)
def test_memory_that_runs_out_is_reported_in_one_line(error, monkeypatch, capsys, tmp_path):
    def run(config, *_):
        raise error

    line = str(error).splitlines()[0]
    said = f": out of memory: {line}; give smaller sizes\n"
    assert script.run_script("toy", toy.Config, run, arguments=[f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"toy{said}"
    monkeypatch.setattr(long_sequence, "run", run)
    assert long_sequence.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"long_sequence{said}"
    monkeypatch.setattr(speed, "run", run)
    assert speed.main(["--shapes", "8,8,8,8"]) == 2
    assert capsys.readouterr().err == f"speed{said}"
    monkeypatch.setattr(speed, "run", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        speed.main([])
