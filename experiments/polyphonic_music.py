"""Predicts which keys sound next in chorales of Bach or in folk tunes, with tanh, GRU and LSTM networks.

    python -m experiments.polyphonic_music
    python -m experiments.polyphonic_music --dataset nottingham

A step is the 88 keys of a piano, each sounding or not. The metric is the published one: the negative
log-likelihood of a step, summed over its 88 keys, and averaged over all steps but the first of each piece.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import loss_curves
from experiments.command.options import among, check_total, positive, share
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets.batching import pad, shuffled, steps_per_epoch
from experiments.datasets.music import MUSIC, PITCHES, Music, load_music
from experiments.models.cells import CONTESTANTS
from experiments.models.functional import Functional, functional
from experiments.models.language import LAYERS
from experiments.models.readout import readout_module
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """Polyphonic music."""

    seeds: int = 3
    """How many runs, with --seed and the seeds after it."""
    dataset: str = "jsb"
    """jsb or nottingham."""
    data_dir: Path | None = None
    """Where the set is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    cells: tuple[str, ...] = ("rnn", "gru", "lstm")
    """Any of rnn, gru, lstm."""
    budgets: tuple[int, ...] = (20_000, 300_000)
    """Parameters at most; the number of hidden units follows."""
    epochs: int = 100
    """Passes over the training pieces."""
    batch_size: int = 8
    """Pieces a step."""
    window: int = 80
    """Steps of a piece in a batch: another stretch of it every time."""
    dropout: float | None = None
    """The share of inputs' and outputs' entries dropped in training; by default 0 to 100,000 parameters, 0.2 beyond."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Adam's first, which falls to 0 along a cosine; of several, each network's is chosen on the validation pieces."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    patience: int | None = 20
    """Epochs without a better validation loss in any seed after which to stop."""
    out: Path = Path("results/polyphonic_music")
    """The folder for results.json, curves, logs and checkpoints."""


QUICK = {
    "epochs": 2,
    "seeds": 1,
    "budgets": (20_000,),
    "learning_rates": (1e-2,),
    "cells": ("gru",),
}
BATCH = 32  # pieces, of an evaluation
PUBLISHED = {
    "jsb": "Bai 2018, about 300K: tanh 8.91, GRU 8.43, LSTM 8.45; Chung 2014, about 20K: tanh 9.1, GRU 8.54, LSTM 8.67",
    "nottingham": "Bai 2018, 1M: tanh 4.05, GRU 3.46, LSTM 3.29",
}
PUBLISHED_JSB = {  # by cell, and by whether it has more than 100,000 parameters
    ("rnn", True): "8.91 (Bai 2018, grid-searched)",
    ("gru", True): "8.43 (Bai 2018, grid-searched)",
    ("lstm", True): "8.45 (Bai 2018, grid-searched)",
    ("rnn", False): "9.1 (Chung 2014)",
    ("gru", False): "8.54 (Chung 2014)",
    ("lstm", False): "8.67 (Chung 2014)",
}


class Network(NamedTuple):
    """A row of the table."""

    cell: str
    budget: int
    dropout: float

    @property
    def units(self) -> int:
        return hidden_size_of(self.cell, self.budget)

    @property
    def label(self) -> str:
        return f"{CONTESTANTS[self.cell].label}, {self.budget:,}"


class Composer(nnx.Module):
    """A recurrent layer, and the logit of each key at the next step."""

    def __init__(self, cell: str, hidden_size: int, dropout: float, rngs: nnx.Rngs):
        self.layer = LAYERS[cell](PITCHES, hidden_size, rngs=rngs)
        self.readout = readout_module(hidden_size, PITCHES, "sigmoid", rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, xs: jax.Array, lengths: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits `(T, B, 88)` of what follows each step of `(T, B, 88)`; with a key, entries are dropped."""
        keys = (None, None) if key is None else jax.random.split(key)
        ys, _ = self.layer(self.dropout(xs, deterministic=key is None, rngs=keys[0]), lengths=lengths)
        return self.readout.logits(self.dropout(ys, deterministic=key is None, rngs=keys[1]))


class Pieces(NamedTuple):
    """Pieces side by side, padded."""

    notes: np.ndarray  # (B, T, 88) uint8
    lengths: np.ndarray  # (B,)


def hidden_size_of(cell: str, budget: int) -> int:
    """The most units whose model has no more parameters than the budget; 0 if none has."""

    def parameters(h: int) -> int:
        layer = {
            "rnn": h * (PITCHES + h + 1),
            "lstm": 4 * h * (PITCHES + h + 1),
            "slstm": 4 * h * (PITCHES + h + 1),
            "gru": 3 * h * (PITCHES + h + 1) + h,
            "min_gru": 2 * h * (PITCHES + 1),
            "min_lstm": 3 * h * (PITCHES + 1),
            "rg_lru": h * (PITCHES + 1) + 2 * h * (h + 1) + h,
            "lru": h * (2 * PITCHES + 2 * h + 3) + PITCHES * h,
        }
        return layer[cell] + h * PITCHES + PITCHES

    size = 0
    while parameters(size + 1) <= budget:
        size += 1
    return size


def nats_of(model: Composer, pieces: Pieces, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The sum over all steps but the first of each piece, and their number."""
    notes = jnp.swapaxes(pieces.notes, 0, 1).astype(jnp.float32)
    logits = model(notes[:-1], jnp.maximum(pieces.lengths - 1, 0), key)
    each = jaxrnn.readout_loss(logits, notes[1:], "sigmoid")
    counted = jnp.arange(1, notes.shape[0])[:, None] < pieces.lengths[None, :]
    return jnp.sum(jnp.where(counted, each, jnp.zeros_like(each))), jnp.sum(counted).astype(each.dtype)


def task_of(config: Config, model: Functional[Composer], pieces: Sequence[np.ndarray]) -> Task:
    def batch(seed: int, step: int) -> Pieces:
        rng = np.random.default_rng((seed, step))
        stretches = []
        for k in shuffled(len(pieces), config.batch_size, seed, step):
            first = int(rng.integers(max(1, len(pieces[k]) - config.window + 1)))
            stretches.append(pieces[k][first : first + config.window])
        return Pieces(*pad(stretches, config.window))

    def loss(params: Any, carry: Any, batch: Pieces, key: jax.Array) -> tuple[jax.Array, Any]:
        total, count = nats_of(model.bind(params), batch, key)
        return total / count, carry

    return Task(model.init, loss, batch, examples=config.batch_size)


def evaluation(model: Functional[Composer], pieces: Sequence[np.ndarray], platform: str) -> Callable[[Any], Any]:
    """A function of parameters with a first axis of seeds, to nats per step over whole pieces."""
    in_order = sorted(pieces, key=len)  # so that little is padding
    groups = [Pieces(*pad(in_order[k : k + BATCH])) for k in range(0, len(in_order), BATCH)]

    @functools.partial(population, platform=platform)
    def sums(params: Any, pieces: Pieces) -> tuple[jax.Array, jax.Array]:
        return nats_of(model.bind(params), pieces)

    def measured(params: Any) -> Any:
        found = [sums(params, group) for group in groups]
        return sum(total for total, _ in found) / sum(count for _, count in found)

    return measured


def networks_of(config: Config) -> list[Network]:
    def dropout(budget: int) -> float:
        return (0.2 if budget > 100_000 else 0.0) if config.dropout is None else config.dropout

    return [Network(cell, budget, dropout(budget)) for budget in config.budgets for cell in config.cells]


def search_name(network: Network, rate: float) -> str:
    """The folder of a run that helps to choose a rate."""
    return f"{network.cell}-{network.budget}-{rate:g}"


def check(config: Config) -> None:
    positive(config, "budgets", "epochs", "batch_size", "window", "learning_rates", "clip_norm", "patience")
    among(config, "dataset", list(MUSIC))
    among(config, "cells", list(LAYERS))
    if config.window < 2:
        raise ValueError(f"--window expected at least 2 steps, one to read and one to say; got {config.window}")
    share(config, "dropout")
    for name in ("budgets", "learning_rates"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} expected at least one, got none")
    for cell in config.cells:
        if not hidden_size_of(cell, min(config.budgets)):
            raise ValueError(f"--budgets {min(config.budgets)} is too little for one unit of {cell}")
    music = load_music(MUSIC[config.dataset], config.data_dir)
    check_total("--epochs", config.epochs, steps_per_epoch(len(music.train), config.batch_size))
    networks = networks_of(config)
    finals = {f"{network.cell}-{network.budget}": {} for network in networks}
    searches = {search_name(network, rate): {} for network in networks for rate in rates_to_try(config)}
    check_runs(config, {**finals, **searches}, at_once=len(finals))
    for network in (network for network in networks if network.budget == max(config.budgets)):
        task = task_of(dataclasses.replace(config, window=2), composer(network), music.train)
        batch = shapes_of(task.batch(0, 0), steps=config.window)
        check_training(config, task, batch, jobs=len(finals))


def composer(network: Network) -> Functional[Composer]:
    return functional(lambda rngs: Composer(network.cell, network.units, network.dropout, rngs))


def rates_to_try(config: Config) -> tuple[float, ...]:
    """None where there is no choice."""
    return config.learning_rates if len(config.learning_rates) > 1 else ()


def train(
    config: Config, music: Music, network: Network, rate: float, seeds: range, folder: str, devices: Devices, show: Show
) -> Course:
    model = composer(network)
    epoch = steps_per_epoch(len(music.train), config.batch_size)
    steps, validation = config.epochs * epoch, evaluation(model, music.validation, platform_of(devices))
    return fit(
        task_of(config, model, music.train),
        make_optimiser(rate, clip_norm=config.clip_norm, cosine_steps=steps),
        seeds,
        Settings(steps, evaluate_every=epoch, minimise="validation", patience=config.patience),
        lambda params: {"validation": validation(params)},
        devices,
        show,
        keeper_of(config, folder, {}),
    )


def search(config: Config, music: Music, total: int) -> dict[Network, dict[float, float]]:
    """The first seed's loss on the validation pieces, for every network and rate."""
    pairs = {f"{n.label}, {rate:g}": (n, rate) for n in networks_of(config) for rate in rates_to_try(config)}
    first = seeds_of(config)[:1]
    found = side_by_side(
        {
            name: Job(total, functools.partial(train, config, music, *pair, first, search_name(*pair)))
            for name, pair in pairs.items()
        },
        devices=devices_of(config),
    )
    reached: dict[Network, dict[float, float]] = {}
    for name, (network, rate) in pairs.items():
        reached.setdefault(network, {})[rate] = float(found[name].best_of("validation")[0])
    return reached


def best_rate(config: Config, reached: Mapping[float, float]) -> float:
    """The rate with the least loss; one whose loss was never finite is the worst."""
    return min(config.learning_rates, key=lambda rate: np.nan_to_num(reached.get(rate, 0.0), nan=np.inf))


def run(config: Config) -> Result:
    music, platform = load_music(MUSIC[config.dataset], config.data_dir), platform_of(devices_of(config))
    total = config.epochs * steps_per_epoch(len(music.train), config.batch_size)
    searched = search(config, music, total)
    rates = {network: best_rate(config, searched.get(network, {})) for network in networks_of(config)}
    jobs = {
        n.label: Job(total, functools.partial(train, config, music, n, rate, seeds_of(config), f"{n.cell}-{n.budget}"))
        for n, rate in rates.items()
    }
    found = side_by_side(jobs, devices=devices_of(config))
    runs = []
    for network, rate in rates.items():
        course = found[network.label]
        test = np.asarray(evaluation(composer(network), music.test, platform)(course.params))
        runs.append(
            {
                "cell": network.cell,
                "hidden_size": network.units,
                "parameters": course.parameters,
                "dropout": network.dropout,
                "learning_rate": rate,
                "validation_nats_by_learning_rate": {f"{r:g}": v for r, v in searched.get(network, {}).items()},
                "seeds": list(seeds_of(config)),
                "validation_nats": course.best_of("validation").tolist(),
                "test_nats": test.tolist(),
                "test_nats_mean": float(test.mean()),
                "epochs": len(course.history),
                "seconds": course.seconds,
                "validation_nats_by_epoch": course.metric("validation").round(4).tolist(),
            }
        )
    print_table(config.dataset, runs)
    curves = {network.label: found[network.label].metric("validation") for network in rates}
    title, stem = f"{config.dataset}, validation", config.out / "learning_curves"
    record = {"pieces": [len(part) for part in music], "runs": runs}
    return record, lambda: loss_curves(stem, title, "nats per step", curves)


def print_table(dataset: str, runs: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=f"{dataset}: nats per step at the best epoch on the validation pieces")
    columns = (
        "network",
        "units",
        "parameters",
        "rate",
        "validation",
        "test, by seed",
        "test, mean",
        "epochs",
        "seconds",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for run in runs:
        by_seed = " ".join(f"{value:.3f}" for value in run["test_nats"])
        nats = (f"{np.mean(run['validation_nats']):.3f}", by_seed, f"{run['test_nats_mean']:.3f}")
        size = (str(run["hidden_size"]), f"{run['parameters']:,}", f"{run['learning_rate']:g}")
        table.add_row(CONTESTANTS[run["cell"]].label, *size, *nats, str(run["epochs"]), f"{run['seconds']:.0f}")
    Console(width=120).print(table)
    print(f"Published: {PUBLISHED[dataset]}")


def rows(record: Record) -> Iterator[Row]:
    """The rows of a record of the chorales in the table of results."""
    for run in record["runs"]:
        what = f"JSB, {CONTESTANTS[run['cell']].label}: test nats a step"
        published = PUBLISHED_JSB.get((run["cell"], run["parameters"] > 100_000), "-")
        obtained = mean_over_seeds(run["test_nats"], 3)
        yield Row(what, run["parameters"], run["seconds"] / 60, obtained, published, "optimiser, dropout, search")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "polyphonic_music", Config, run, check=check, quick=QUICK, writes=("learning_curves",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
