"""Says which keys sound next in chorales of Bach or in folk tunes, with tanh, GRU and LSTM networks.

    python -m experiments.polyphonic_music
    python -m experiments.polyphonic_music --dataset nottingham

A step is the 88 keys of a piano, each sounding or not. The metric is the published one: the negative
log-likelihood of a step, summed over its 88 keys, and averaged over all steps but the first of each piece.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments.command.figures import loss_curves
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.script import among, positive, run_script, share
from experiments.datasets.batching import pad, shuffled, steps_per_epoch
from experiments.datasets.music import MUSIC, PITCHES, Music, load_music
from experiments.models.cells import CONTESTANTS
from experiments.models.functional import Functional, functional
from experiments.models.language import LAYERS
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser, population
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of


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
    dropout: float = 0.2
    """The share of inputs' and outputs' entries dropped in training."""
    learning_rate: float = 3e-3
    """Adam's first, which falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    patience: int | None = 20
    """Epochs without a better validation loss in any seed after which to stop."""
    out: Path = Path("results/polyphonic_music")
    """The folder for results.json, curves, logs and checkpoints."""


QUICK = {"epochs": 2, "seeds": 1, "budgets": (20_000,), "cells": ("gru",)}
BATCH = 32  # pieces, of an evaluation
PUBLISHED = {
    "jsb": "Bai 2018, about 300K: tanh 8.91, GRU 8.43, LSTM 8.45; Chung 2014, about 20K: tanh 9.1, GRU 8.54, LSTM 8.67",
    "nottingham": "Bai 2018, 1M: tanh 4.05, GRU 3.46, LSTM 3.29",
}


class Composer(nnx.Module):
    """A recurrent layer, and the logit of each key at the next step."""

    def __init__(self, cell: str, hidden_size: int, dropout: float, rngs: nnx.Rngs):
        self.layer = LAYERS[cell](PITCHES, hidden_size, rngs=rngs)
        self.readout = nnx.Linear(hidden_size, PITCHES, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, xs: jax.Array, lengths: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits `(T, B, 88)` of what follows each step of `(T, B, 88)`; with a key, entries are dropped."""
        keys = (None, None) if key is None else jax.random.split(key)
        ys, _ = self.layer(self.dropout(xs, deterministic=key is None, rngs=keys[0]), lengths=lengths)
        return self.readout(self.dropout(ys, deterministic=key is None, rngs=keys[1]))


class Pieces(NamedTuple):
    """Pieces side by side, padded."""

    notes: np.ndarray  # (B, T, 88) uint8
    lengths: np.ndarray  # (B,)


def hidden_size_of(cell: str, budget: int) -> int:
    """The most units whose model has no more parameters than the budget; 0 if none has."""
    gates, extra = {"rnn": (1, 0), "gru": (3, 1), "lstm": (4, 0)}[cell]

    def parameters(h: int) -> int:
        return gates * h * (PITCHES + h + 1) + extra * h + h * PITCHES + PITCHES

    size = 0
    while parameters(size + 1) <= budget:
        size += 1
    return size


def nats_of(model: Composer, pieces: Pieces, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The sum over all steps but the first of each piece, and their number."""
    notes = jnp.swapaxes(pieces.notes, 0, 1).astype(jnp.float32)
    logits = model(notes[:-1], jnp.maximum(pieces.lengths - 1, 0), key)
    each = optax.sigmoid_binary_cross_entropy(logits, notes[1:]).sum(-1)
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

    return Task(model.init, loss, batch)


def evaluation(model: Functional[Composer], pieces: Sequence[np.ndarray]) -> Callable[[Any], Any]:
    """Of parameters of several seeds: nats per step over whole pieces."""
    in_order = sorted(pieces, key=len)  # so that little is padding
    groups = [Pieces(*pad(in_order[k : k + BATCH])) for k in range(0, len(in_order), BATCH)]

    @population
    def sums(params: Any, pieces: Pieces) -> tuple[jax.Array, jax.Array]:
        return nats_of(model.bind(params), pieces)

    def measured(params: Any) -> Any:
        found = [sums(params, group) for group in groups]
        return sum(total for total, _ in found) / sum(count for _, count in found)

    return measured


def check(config: Config) -> None:
    positive(config, "budgets", "epochs", "batch_size", "window", "learning_rate", "clip_norm", "patience")
    among(config, "dataset", list(MUSIC))
    among(config, "cells", list(LAYERS))
    if config.window < 2:
        raise ValueError(f"--window expected at least 2 steps, one to read and one to say; got {config.window}")
    share(config, "dropout")
    for cell in config.cells:
        if not hidden_size_of(cell, min(config.budgets, default=0)):
            raise ValueError(f"--budgets {min(config.budgets, default=0)} is too little for one unit of {cell}")
    music = load_music(MUSIC[config.dataset], config.data_dir)
    steps_per_epoch(len(music.train), config.batch_size)
    check_runs(config, {f"{cell}-{budget}": {} for cell in config.cells for budget in config.budgets})


def train(config: Config, music: Music, cell: str, budget: int, show: Show) -> tuple[Course, np.ndarray]:
    """The course, and the test loss of each seed at its best epoch on the validation pieces."""
    size = hidden_size_of(cell, budget)
    model = functional(lambda rngs: Composer(cell, size, config.dropout, rngs))
    epoch = steps_per_epoch(len(music.train), config.batch_size)
    steps, validation = config.epochs * epoch, evaluation(model, music.validation)
    course = fit(
        task_of(config, model, music.train),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=steps),
        seeds_of(config),
        Settings(steps, evaluate_every=epoch, minimise="validation", patience=config.patience),
        lambda params: {"validation": validation(params)},
        show,
        keeper_of(config, f"{cell}-{budget}", {}),
    )
    return course, np.asarray(evaluation(model, music.test)(course.params))


def run(config: Config) -> Mapping[str, Any]:
    music = load_music(MUSIC[config.dataset], config.data_dir)
    total = config.epochs * steps_per_epoch(len(music.train), config.batch_size)
    pairs = {f"{CONTESTANTS[cell].label}, {b:,}": (cell, b) for b in config.budgets for cell in config.cells}
    jobs = {name: Job(total, functools.partial(train, config, music, *pair)) for name, pair in pairs.items()}
    found = side_by_side(jobs)
    table = Table(title=f"{config.dataset}: nats per step at the best epoch on the validation pieces")
    for column in ("network", "units", "parameters", "validation", "test, by seed", "test, mean", "epochs", "seconds"):
        table.add_column(column, justify="left" if column == "network" else "right")
    runs = []
    for name, (course, test) in found.items():
        cell, budget = pairs[name]
        validation = course.best_of("validation")
        record = {
            "cell": cell,
            "hidden_size": hidden_size_of(cell, budget),
            "parameters": course.parameters,
            "seeds": list(seeds_of(config)),
            "validation_nats": validation.tolist(),
            "test_nats": test.tolist(),
            "test_nats_mean": float(test.mean()),
            "epochs": len(course.history),
            "seconds": course.seconds,
            "validation_nats_by_epoch": course.metric("validation").round(4).tolist(),
        }
        runs.append(record)
        by_seed, mean = " ".join(f"{value:.3f}" for value in test), f"{test.mean():.3f}"
        cells = (f"{record['hidden_size']}", f"{course.parameters:,}", f"{validation.mean():.3f}", by_seed, mean)
        table.add_row(CONTESTANTS[cell].label, *cells, str(len(course.history)), f"{course.seconds:.0f}")
    Console(width=120).print(table)
    print(f"Published: {PUBLISHED[config.dataset]}")
    curves = {name: course.metric("validation") for name, (course, _) in found.items()}
    loss_curves(config.out / "learning_curves", f"{config.dataset}, validation", "nats per step", curves)
    return {"pieces": [len(part) for part in music], "runs": runs}


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script("polyphonic_music", Config, run, check=check, quick=QUICK, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
