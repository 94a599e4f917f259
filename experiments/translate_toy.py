"""Reads a sequence to its end, then writes another: an encoder and a decoder, trained on sums or reversals.

    python -m experiments.translate_toy
    python -m experiments.translate_toy --task reversal --size 12 --cell gru

The encoder reads "57+168" digit by digit and the decoder writes "225". It is given only the encoder's last
states. Sources have different lengths; one in ten, chosen by a hash of it, is never trained on.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import loss_curves
from experiments.command.options import among, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets import translation
from experiments.datasets.translation import BEGIN, LANGUAGES, PAD, Language, Pairs
from experiments.models.functional import Functional, functional
from experiments.models.language import LAYERS
from experiments.models.readout import readout_module
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import CALLED, check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """An encoder and a decoder."""

    task: str = "addition"
    """addition of two numbers in digits, or reversal of a string."""
    size: int = 3
    """The most digits of each number, or symbols of a string."""
    cell: str = "lstm"
    """rnn, lstm, gru, min_gru, min_lstm, rg_lru or lru, of encoder and decoder."""
    hidden_size: int = 128
    """Hidden units of each."""
    embedding: int = 16
    """Entries of a symbol's vector."""
    steps: int = 8000
    """Updates."""
    batch_size: int = 128
    """Pairs a step, drawn anew in each."""
    learning_rate: float = 3e-3
    """Adam's first, which falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    evaluate_every: int = 500
    """Updates from one evaluation to the next."""
    out: Path = Path("results/translate_toy")
    """The folder for results.json, curves, logs and checkpoints."""


QUICK = {"steps": 300, "evaluate_every": 100, "hidden_size": 64, "batch_size": 64}
TEST_PAIRS = 2000
SHOWN = 6


class EncoderDecoder(nnx.Module):
    """Two recurrent networks; the second begins with the states in which the first ended."""

    def __init__(self, cell: str, symbols: int, embedding: int, hidden_size: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(symbols, embedding, rngs=rngs)
        self.encoder = LAYERS[cell](embedding, hidden_size, rngs=rngs)
        self.decoder = LAYERS[cell](embedding, hidden_size, rngs=rngs)
        self.readout = readout_module(hidden_size, symbols, "softmax", rngs)

    def read(self, sources: jax.Array, lengths: jax.Array) -> Any:
        """The states after sources `(T, B)`."""
        return self.encoder(self.embedding(sources), lengths=lengths)[1]

    def write(self, states: Any, symbols: jax.Array) -> tuple[jax.Array, Any]:
        """Logits `(U, B, V)` of what follows each of `(U, B)` symbols, and the last states."""
        ys, states = self.decoder(self.embedding(symbols), states)
        return self.readout.logits(ys), states

    def translate(self, sources: jax.Array, lengths: jax.Array, steps: int) -> jax.Array:
        """The likeliest symbol at each step, every one being read before the next is written: `(U, B)`."""

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            states, symbol = carry
            logits, states = self.write(states, symbol[None])
            symbol = logits[0].argmax(-1).astype(symbol.dtype)
            return (states, symbol), symbol

        begin = jnp.full(sources.shape[1:], BEGIN, sources.dtype)
        return jax.lax.scan(step, (self.read(sources, lengths), begin), None, length=steps)[1]


def loss_of(model: EncoderDecoder, pairs: Pairs) -> jax.Array:
    """Nats per symbol of the targets, each read before the next is asked for (teacher forcing)."""
    targets = pairs.targets.T
    read = jnp.concatenate([jnp.full_like(targets[:1], BEGIN), targets[:-1]])
    logits, _ = model.write(model.read(pairs.sources.T, pairs.lengths), read)
    each = jaxrnn.readout_loss(logits, targets)
    counted = targets != PAD
    return jnp.sum(jnp.where(counted, each, jnp.zeros_like(each))) / jnp.sum(counted).astype(each.dtype)


def model_of(config: Config) -> Functional[EncoderDecoder]:
    symbols = translation.symbols(LANGUAGES[config.task])
    return functional(lambda rngs: EncoderDecoder(config.cell, symbols, config.embedding, config.hidden_size, rngs))


def task_of(config: Config, model: Functional[EncoderDecoder]) -> Task:
    def batch(seed: int, step: int) -> Pairs:
        return translation.draw_pairs(LANGUAGES[config.task], config.size, config.batch_size, (seed, step))

    def loss(params: Any, carry: Any, batch: Pairs, key: jax.Array) -> tuple[jax.Array, Any]:
        return loss_of(model.bind(params), batch), carry

    return Task(model.init, loss, batch, examples=config.batch_size)


def test_pairs(config: Config) -> Pairs:
    return translation.draw_pairs(LANGUAGES[config.task], config.size, TEST_PAIRS, (config.seed, 0), test=True)


def accuracy_of(model: Functional[EncoderDecoder], pairs: Pairs, platform: str) -> Callable[[Any], dict[str, Any]]:
    """A function of parameters with a first axis of seeds, to the share of test sources translated without error."""

    @functools.partial(population, platform=platform)
    def measured(params: Any, pairs: Pairs) -> dict[str, jax.Array]:
        bound = model.bind(params)
        written = bound.translate(pairs.sources.T, pairs.lengths, pairs.targets.shape[1]).T
        right = (written == pairs.targets) | (pairs.targets == PAD)
        return {"right": jnp.mean(right.all(-1)), "test loss": loss_of(bound, pairs)}

    operands = jax.tree.map(jnp.asarray, pairs)
    return lambda params: measured(params, operands)


def check(config: Config) -> None:
    names = ("size", "hidden_size", "embedding", "steps", "batch_size", "learning_rate", "clip_norm", "evaluate_every")
    positive(config, *names)
    among(config, "task", list(LANGUAGES))
    among(config, "cell", list(LAYERS))
    least, most = LANGUAGES[config.task].sizes
    if not least <= config.size <= most:
        raise ValueError(f"--size of {config.task} expected {least} to {most}, got {config.size}")
    check_runs(config, {"": {}})
    task = task_of(dataclasses.replace(config, batch_size=1), model_of(config))
    called = min(CALLED, config.steps, config.evaluate_every)
    check_training(config, task, shapes_of(task.batch(0, 0), config.batch_size), steps_per_call=called)


def train(config: Config, pairs: Pairs, devices: Devices, show: Show) -> Course:
    model = model_of(config)
    return fit(
        task_of(config, model),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=config.steps),
        seeds_of(config),
        Settings(config.steps, config.evaluate_every),
        accuracy_of(model, pairs, platform_of(devices)),
        devices,
        show,
        keeper_of(config, "", {}),
    )


def examples(config: Config, pairs: Pairs, params: Any) -> list[dict[str, str]]:
    """Some test sources with the first seed's translations."""
    language: Language = LANGUAGES[config.task]
    pairs = jax.tree.map(lambda leaf: leaf[:SHOWN], pairs)
    bound = model_of(config).bind(jax.tree.map(lambda leaf: leaf[0], params))
    translate = jax.jit(functools.partial(bound.translate, steps=pairs.targets.shape[1]))
    written = np.asarray(translate(pairs.sources.T, pairs.lengths))
    return [
        {
            "source": translation.decode(language, source[:length]),
            "target": translation.decode(language, target),
            "written": translation.decode(language, own),
        }
        for source, length, target, own in zip(*pairs, written.T, strict=True)
    ]


def run(config: Config) -> Result:
    name, pairs = f"{config.task}, {config.cell}", test_pairs(config)
    job = Job(config.steps, functools.partial(train, config, pairs))
    course = side_by_side({name: job}, devices=devices_of(config))[name]
    right, shown = course.metric("right"), examples(config, pairs, course.params)
    table = Table(title=f"{name}: sources that were never trained on")
    for column in ("source", "target", "written"):
        table.add_column(column, justify="right")
    for example in shown:
        table.add_row(*example.values())
    Console().print(table)
    shares = ", ".join(f"{100 * share:.1f} %" for share in right[-1])
    print(f"Right to the last symbol, of {TEST_PAIRS:,}, by seed: {shares}; {course.parameters:,} parameters")
    curves = {"wrong translations": 1 - right}
    record = {
        "parameters": course.parameters,
        "seconds": course.seconds,
        "seeds": list(seeds_of(config)),
        "right": right[-1].tolist(),
        "right_by_evaluation": right.round(5).tolist(),
        "steps": [found.step for found in course.history],
        "examples": shown,
    }
    stem = config.out / "learning_curves"
    return record, lambda: loss_curves(stem, name, "share of test sources", curves, x="evaluation")


def rows(record: Record) -> Iterator[Row]:
    """The row of a record in the table of results."""
    what = f"{record['config']['task']}: translations right to the last symbol, %"
    obtained = mean_over_seeds(record["right"], 1, 100)
    yield Row(what, record["parameters"], record["seconds"] / 60, obtained, "-", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(
        "translate_toy", Config, run, check=check, quick=QUICK, writes=("learning_curves",), arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
