"""What the page of the experiments says beside its tables; the sections on gradients and memory are tested elsewhere."""

import dataclasses
import importlib
import re
import shlex

import jax
import numpy as np

from experiments import (
    __main__ as listing,
)
from experiments import (
    char_lm,
    japanese_vowels,
    long_sequence,
    mnist_1d,
    poems,
    polyphonic_music,
    sequential_images,
)
from experiments.command import devices
from experiments.datasets import _table
from experiments.lstm_vs_gru import __main__ as lstm_vs_gru
from experiments.real_models import compare, g2p
from tests.docs.statements import ROOT, WORDS, record, says, span, text_of
from tests.experiments import test_processes

PAGE = "experiments/README.md"


def runs(name, **chosen):
    """The runs of a record that agree with all that is chosen."""
    return [run for run in record(name)["runs"] if all(run[key] == value for key, value in chosen.items())]


# How they run


@says(PAGE)
def scripts_without_quick():
    first, second = [script.name for script in listing.SCRIPTS if not script.quick]
    return f"All but `{first}` and `{second}` take `--quick`, for a version of about a minute at most, on two cores."


@says(PAGE)
def scripts_that_use_one_loop():
    without = []
    for script in listing.SCRIPTS:
        folder = ROOT / "experiments" / script.name.replace(".", "/")
        files = list(folder.glob("*.py")) or [folder.with_suffix(".py")]
        if not any(re.search(r"training\.loop import .*\bfit\b", path.read_text(encoding="utf-8")) for path in files):
            without.append(script.name)
    assert [name for name in without if not name.startswith("benchmarks.")] == [
        "bptt_by_hand",
        "recurrent_ppo",
        "parallel_in_time",  # trains by the function of gradient_flow
        "real_models",  # which others trained
        "long_sequence",
        "datasets",
    ]
    return "All scripts that train use one loop, [`training/loop.py`](training/loop.py), except `recurrent_ppo`, `long_sequence` and the benchmarks."


@says(PAGE)
def tolerances_of_shared_batches():
    float32, float64 = (f"{test_processes.TOLERANCE[name]:.0e}".replace("e-0", "e-") for name in ("float32", "float64"))
    return f"parameters differ by rounding alone ({float32} in float32 and {float64} in float64 after 20 updates, `tests/experiments/test_processes.py`"


@says(PAGE)
def tests_that_the_page_names():
    named = set(re.findall(r"`(tests/[\w/.]+)`", text_of(PAGE)))
    assert len(named) >= 3
    assert all((ROOT / path).is_file() for path in named)
    return "the same bits at its end as an uninterrupted one (`tests/experiments/test_killed.py`)"


@says(PAGE)
def patience_of_processes():
    return f"If the processes do not connect within {WORDS[devices.PATIENCE // 60]} minutes, each ends with an error."


@says(PAGE)
def scripts_that_save_by_default():
    saving = [name for name in scripts() if getattr(module(name).Config, "save_every", None)]
    assert saving == ["char_lm", "poems", "g2p"]
    return "with `--save-every N` (by default in `char_lm`, `poems` and `g2p`)"


def scripts():
    return [script.name for script in listing.SCRIPTS if "." not in script.name and script.name != "datasets"]


def module(name):
    place = f"experiments.{name}"
    is_package = (ROOT / "experiments" / name.replace(".", "/")).is_dir()
    return importlib.import_module(f"{place}.__main__" if is_package else place)


def options_of(name):
    """The options of a script, of its sub-commands too."""
    configs = [value for value in vars(module(name)).values() if dataclasses.is_dataclass(value)]
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    return {f"--{field.replace('_', '-')}" for field in fields}


@says(PAGE)
def options_of_the_commands_exist():
    pages = ("README.md", PAGE, "experiments/benchmarks/README.md", "experiments/benchmarks/SCALING.md")
    found = [
        (name, rest)
        for page in pages
        for name, rest in re.findall(r"python -m experiments\.([\w.]+)(.*)", text_of(page))
    ]
    checked = 0
    for name, rest in found:
        if name.rstrip(".") in ("NAME", "datasets"):
            continue
        for word in shlex.split(rest.partition("#")[0].partition("`")[0]):
            if word.startswith("--"):
                assert word.partition("=")[0] in options_of(name.rstrip(".")), (name, word)
                checked += 1
    assert checked > 25
    return "Every script explains its options with `--help`."


# Real tasks


@says(PAGE)
def settings_of_the_images():
    config, rates = sequential_images.Config, {run["cell"]: run["learning_rate"] for run in runs("sequential_images")}
    assert rates["lstm"] == rates["gru"]
    return f"""{config.hidden_size} hidden units, Adam on a gradient clipped to norm {config.clip_norm:.0f}, batches of {config.batch_size},
    {config.epochs} epochs, a cosine from {rates["rnn"]} (tanh) or {rates["lstm"]} (LSTM, GRU) to 0."""


@says(PAGE)
def digits_cannot_rank():
    images = record("sequential_images")["images"]
    return f"one test image is {100 / images['test']:.2f} %"


def epochs_until(reading, accuracy):
    """The first epoch of each cell whose mean accuracy is that, by cell."""
    by_epoch = {
        run["cell"]: np.mean(run["test_accuracy_by_epoch"], 1) for run in runs("sequential_images", reading=reading)
    }
    assert all(len(found) == 40 for found in by_epoch.values())
    return {cell: 1 + int(np.argmax(found >= accuracy)) for cell, found in by_epoch.items()}


@says(PAGE)
def epochs_of_the_readings():
    rows, pixels = (epochs_until(reading, 0.95) for reading in ("rows", "pixels"))
    assert all(pixels[cell] > 3 * rows[cell] for cell in rows)
    assert pixels["rnn"] < min(pixels["lstm"], pixels["gru"])
    return "Reading by pixels takes several times as many epochs, and the gated cells need more of them than the tanh network."


@says(PAGE)
def updates_of_mnist_1d():
    return f"for {mnist_1d.Config.steps:,} updates, without selecting the best parameters. Japanese vowels"


@says(PAGE)
def epochs_of_the_vowels():
    return f"in batches sorted by length, for {japanese_vowels.Config.epochs} epochs"


@says(PAGE)
def settings_of_the_music():
    config = polyphonic_music.Config
    assert record("polyphonic_music")["config"]["epochs"] == config.epochs
    return f"""Batches are {config.window} steps of {config.batch_size} pieces. Training takes {config.epochs} epochs, or stops after
    {config.patience} without improvement on the validation pieces; the best parameters there are tested. Each network has the one of
    {WORDS[len(config.learning_rates)]} learning rates"""


@says(PAGE)
def rare_characters():
    return f"Characters that occur fewer than {WORDS[poems.Config.least]} times are one unknown symbol"


@says(PAGE)
def poems_of_the_record():
    samples = record("poems")["samples"]
    short, long = (re.findall(r"^> (\S+)$", text_of(PAGE), re.M)[:2],)[0]
    assert short in samples["5"]
    assert long in samples["7"]
    return "Two of them:"


@says(PAGE)
def prompts():
    assert {"prompt", "length"} <= {field.name for field in dataclasses.fields(char_lm.SampleConfig)}
    assert {"form", "acrostic"} <= {field.name for field in dataclasses.fields(poems.WriteConfig)}
    return "python -m experiments.poems write --form 7 --acrostic"


# LSTM against GRU


@says(PAGE)
def settings_of_the_comparison():
    found = record("lstm_vs_gru")["config"]
    rates = " ".join(f"{rate:g}" for rate in found["learning_rates"])
    assert found["rounds"] == lstm_vs_gru.Config.rounds
    return f"python -m experiments.lstm_vs_gru --learning-rates {rates} --updates {found['updates']}"


@says(PAGE)
def pairs_of_seeds():
    found = record("lstm_vs_gru")["lstm_against_gru"]
    pairs = sum(len(pair["loss_difference"]) for pair in found)
    assert sum(pair["seeds_gru_better"] for pair in found) == pairs
    return f"The GRU, after so few updates, in all {pairs} pairs of seeds."


@says(PAGE)
def updates_until_adding_is_solved():
    gru = [step for run in runs("lstm_vs_gru", task="adding", cell="gru") for step in run["updates_to_aim"]]
    lstm = runs("lstm_vs_gru", task="adding", cell="lstm")
    solved = sum(step is not None for run in lstm for step in run["updates_to_aim"])
    chance = 1 / 6  # the variance of a sum of two numbers in [0, 1]
    at_chance = sum(abs(loss / chance - 1) < 0.05 for run in lstm for loss in run["test"]["loss"])
    return f"""It solves adding after {min(gru)} to {max(gru)} updates; the LSTM solves it in {WORDS[solved]} of six seeds, and stays at chance
    in {WORDS[at_chance]}"""


@says(PAGE)
def memory_tasks_solve_adding():
    """With up to 3,000 updates, where this comparison has 1,000."""
    (run,) = [
        run
        for run in runs("memory_tasks", problem="adding", cell="lstm", learning_rate=0.01)
        if (str(run["length"]), run["clip_norm"]) == ("100", 1.0)
    ]
    assert run["steps"] == 3 * record("lstm_vs_gru")["config"]["updates"]
    assert None not in run["steps_to_solve"]
    return "(in `memory_tasks`, with three times the updates, in none)"


@says(PAGE)
def places_of_the_tanh_network():
    def order(task, budget):
        found = {run["cell"]: np.mean(run["test"]["loss"]) for run in runs("lstm_vs_gru", task=task, budget=budget)}
        return sorted(found, key=found.get)  # type: ignore[arg-type]

    assert {order(task, budget)[0] for task, budget in (("digits", 5000), ("digits", 20000), ("text", 5000))} == {"rnn"}
    assert order("text", 20000)[-1] == "rnn"
    assert not any(step for run in runs("lstm_vs_gru", task="adding", cell="rnn") for step in run["updates_to_aim"])
    return "It is best on the digits and in the small text model, worst in the large one, and does not learn adding."


@says(PAGE)
def seconds_of_an_update():
    ratios = [pair["seconds_ratio"] for pair in record("lstm_vs_gru")["lstm_against_gru"]]
    return f"an LSTM update takes {span(ratios)} times a GRU's"


def beside_dense():
    """The runs with heads, each with the dense one of its task."""
    found = runs("lstm_vs_gru_heads", num_heads=1)
    return [
        (run, next(dense for dense in found if dense["task"] == run["task"]))
        for run in record("lstm_vs_gru_heads")["runs"]
        if run["num_heads"] > 1
    ]


@says(PAGE)
def settings_of_heads():
    found = record("lstm_vs_gru_heads")["config"]
    assert found["updates"] == lstm_vs_gru.Config.updates == 600
    assert tuple(found["learning_rates"]) == lstm_vs_gru.Config.learning_rates
    assert found["tasks"] == list(lstm_vs_gru.TASKS)
    heads, cells, budgets = (" ".join(map(str, found[name])) for name in ("num_heads", "cells", "budgets"))
    return f"""python -m experiments.lstm_vs_gru --cells {cells} --num-heads {heads} --budgets {budgets} --rounds {found["rounds"]}
    --looks {found["looks"]}"""


@says(PAGE)
def heads_after_equal_updates():
    lower = [
        (own["test"]["loss"], dense["test"]["loss"])
        for own, dense in beside_dense()
        if round(np.mean(own["test"]["loss"]), 4) < round(np.mean(dense["test"]["loss"]), 4)
    ]
    assert all(np.mean(dense) - np.mean(own) < np.std(dense, ddof=1) for own, dense in lower)
    return f"""After equal updates its mean loss is lower in {len(lower)} of {len(beside_dense())} rows, by less than
    the deviation of the seeds."""


@says(PAGE)
def heads_after_equal_seconds():
    pairs = beside_dense()
    for own, dense in pairs:
        assert np.all(np.greater(own["at_equal_seconds"]["test"]["loss"], dense["test"]["loss"]))
    ratios = [own["seconds_per_update"]["min"] / dense["seconds_per_update"]["min"] for own, dense in pairs]
    sizes = [own["hidden_size"] // own["num_heads"] for own, _ in pairs]
    return f"""After equal seconds it is worse with every seed of every row, because an update takes {span(ratios)} times as
    long: the model has as many parameters, but more units, in blocks of {min(sizes)} to {max(sizes)}."""


# Data and the long sequence


@says(PAGE)
def licences_and_sizes():
    rows = dict(
        re.findall(r"^\| `([\w-]+)` \| [^|]* \| ([^|]* \| [^|]*) \|", text_of(PAGE).partition("## Data")[2], re.M)
    )
    assert list(rows) == list(_table.SETS)
    for name, source in _table.SETS.items():
        size = "-" if source.size == "0 MB" else source.size
        assert rows[name] == f"{source.licence} | {size}", name
    return "checks every file against a pinned sha256"


@says(PAGE)
def settings_of_the_long_sequence():
    config = long_sequence.Config
    assert config.checkpoint == "sqrt"
    return f"""An LSTM with {config.hidden_size} units learns to predict a mixture of slow and fast oscillations. Each update goes through
    {config.steps:,} steps of {config.batch_size} sequences"""


@says(PAGE)
def memory_without_checkpoints():
    config = long_sequence.Config()
    shape = (config.steps + 1, config.batch_size, config.features)
    sequence = jax.ShapeDtypeStruct(shape, jax.numpy.float32)

    def temporary(checkpoint):
        model, memory, update = long_sequence.training(config, checkpoint)
        return (
            jax.jit(update, donate_argnums=(0, 1))
            .lower(model, memory, sequence)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax needs them
        times = temporary(None) / temporary("sqrt")
    return f"`--checkpoint none` keeps everything, which takes {times:.1f} times as much."


@says(PAGE)
def figures_of_the_long_sequence():
    found = record("long_sequence")
    first, second = found["losses"]
    return f"""an update took {min(found["seconds"]):.0f} s on two busy cores, and {found["temporary_bytes"] / 2**20:.0f} MiB of temporary
    memory; the process had {found["peak_resident_bytes"] / 2**20:,.0f} MiB at its peak (`results/long_sequence.json`). The loss fell
    from {first:.3f} to {second:.3f} in the first update."""


# Real models


def published(model):
    (row,) = [row for row in record("real_models")["models"] if row["model"] == model]
    return row


@says(PAGE)
def rounding_of_logits():
    row, found = published("g2p-en"), published("g2p-en")["rounding"]
    assert row["published"] == row["as_published"] == len(g2p.PUBLISHED)
    (word,), number = g2p.PUBLISHED, lambda value, digits: f"{value:.{digits}e}".replace("e-0", "e-")
    apart, engine, ours = (number(found[name], 1) for name in ("logits", "engine_from_float64", "ours_from_float64"))
    step = number(np.spacing(np.float32(found["largest"])), 0)
    return f"""Words are spelled alike, `{word}` as on the package's page. Probabilities are compared, since logits reach
    {found["largest"]:.0f}, where float32 has steps of {step}: logits differ by up to {apart}, and from the same loop in float64
    by {engine} (NumPy) and {ours} (jaxrnn)."""


@says(PAGE)
def what_is_heard():
    heard, cleaned, config = published("silero-vad"), published("nsnet2"), record("real_models")["config"]
    first, second = heard["stretches"]
    before, theirs, ours = (f"{db:.1f} dB" for db in cleaned["decibels"])
    assert first == second
    assert theirs == ours
    return f"""In {config["seconds"]} seconds of it both engines hear the same {first} stretches of speech.
    Noise was {before} below the speech before NSNet2 and {ours} after, by both."""


@says(PAGE)
def tolerance_of_real_models():
    assert record("real_models")["tolerance"] == compare.TOLERANCE
    return f"The exit code is 1 if a decision differs, or a number by more than {compare.TOLERANCE:.0e}.".replace(
        "e-0", "e-"
    )
