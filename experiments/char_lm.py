"""Trains a language model of characters on any text, and continues a prompt.

    python -m experiments.char_lm                                    # tiny-shakespeare
    python -m experiments.char_lm --text novel.txt --out results/novel
    python -m experiments.char_lm sample --prompt "ROMEO:" --length 400

A network reads one character a step and predicts the next. The text is read as several parallel streams, in
windows. The gradient ends at the window, and the state continues (truncated back-propagation through time).
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import loss_curves
from experiments.command.messages import complain
from experiments.command.options import among, at_most, check_seed, check_total, positive, read_options, share
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets.text import Text, decode, encode, load_text
from experiments.models import language
from experiments.models.cells import check_heads, label_of
from experiments.models.saved import FILE, Saved, check_writing, load_model, model_of, save_model
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_learned, check_runs, keeper_of, seeds_of
from experiments.training.sizes import check_training


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """A language model of characters.

    The model is written to OUT/model.safetensors. To go on after a prompt with it: python -m experiments.char_lm sample
    --help. In Python: networks, params = jaxrnn.load("OUT/model.safetensors").
    """

    text: Path | None = None
    """Any text file in UTF-8; by default tiny-shakespeare."""
    data_dir: Path | None = None
    """Where tiny-shakespeare is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    cell: str = "lstm"
    """rnn, lstm, gru, min_gru, min_lstm, rg_lru, lru or slstm."""
    hidden_size: int = 256
    """Hidden units of each layer."""
    num_heads: int = 1
    """Heads of rnn, lstm, gru or slstm: blocks of each recurrent matrix. Divides the hidden units; 1 is dense."""
    layers: int = 1
    """Recurrent layers."""
    embedding: int = 64
    """Entries of a character's vector."""
    dropout: float = 0.3
    """The share of vectors' and outputs' entries dropped in training."""
    epochs: int = 15
    """Passes over the training text."""
    batch_size: int = 64
    """Streams side by side."""
    window: int = 64
    """Steps through which the gradient flows."""
    learning_rate: float = 4e-3
    """Adam's first, which falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    patience: int | None = None
    """Epochs without a better validation loss after which to stop."""
    save_every: int | None = 1
    """Epochs from one checkpoint to the next."""
    out: Path = Path("results/char_lm")
    """The folder for results.json, the model, curves, logs and checkpoints."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Continues a prompt with a trained model."""

    model: Path = Path("results/char_lm")
    """The folder that a training wrote."""
    prompt: str = "\n"
    """The text to continue; its characters must be in the training text."""
    length: int = 400
    """Characters to write."""
    temperature: float = 0.8
    """Below 1 likelier characters, above 1 more daring ones."""
    samples: int = 1
    """How many texts."""
    seed: int = 0
    """Of the choices."""


QUICK = {"epochs": 2, "hidden_size": 32, "batch_size": 256, "window": 50, "save_every": None}
STREAMS = 32  # of the validation text, side by side
PUBLISHED = {  # by cell: a loss, and what our run differs in
    "min_gru": ("1.548 (Feng 2024, a larger model)", "a smaller model"),
    "min_lstm": ("1.555 (Feng 2024, a larger model)", "a smaller model"),
}
SAMPLE = 400  # characters, in the record and on the screen


def load(config: Config) -> Text:
    return load_text(config.text, config.data_dir, config.window)


def check(config: Config) -> None:
    names = ("hidden_size", "layers", "embedding", "epochs", "batch_size", "window", "learning_rate", "clip_norm")
    positive(config, *names, "patience")
    at_most(config, "layers", language.MOST_LAYERS, "each of which is compiled by itself")
    among(config, "cell", list(language.LAYERS))
    check_heads(config.cell, config.hidden_size, config.num_heads)
    share(config, "dropout")
    text = load(config)
    for part, streams, option in ((text.training, config.batch_size, "--batch-size"), (text.validation, STREAMS, "")):
        if len(part) // streams < config.window + 1:
            among_them = f", in {streams} streams side by side ({option})" if option else f", in {streams} streams"
            raise ValueError(
                f"--window {config.window} is more than the text has: {len(part):,} characters{among_them}"
            )
    check_total("--epochs", config.epochs, language.steps_an_epoch(text.training, config.batch_size, config.window))
    check_runs(config, {"": about(text)})

    def task(layers: int) -> Task:
        model = model_of(len(text.alphabet), {**dataclasses.asdict(config), "layers": layers})
        return language.text_task(model, text.training, config.batch_size, config.window)

    check_training(config, task(1), deeper=task(2) if config.layers > 1 else None)


def about(text: Text) -> dict[str, Any]:
    """What a resumed run must share with the run before it, beside its options."""
    return {"alphabet": text.alphabet, "characters": [len(text.training), len(text.validation)]}


def train(config: Config, text: Text, devices: Devices, show: Show) -> Course:
    model = model_of(len(text.alphabet), dataclasses.asdict(config))
    epoch = language.steps_an_epoch(text.training, config.batch_size, config.window)
    steps = config.epochs * epoch
    validation = language.text_loss(model, text.validation, STREAMS, config.window, platform_of(devices))
    return fit(
        language.text_task(model, text.training, config.batch_size, config.window),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=steps),
        seeds_of(config),
        Settings(steps, evaluate_every=epoch, minimise="validation", patience=config.patience),
        lambda params: {"validation": validation(params)},
        devices,
        show,
        keeper_of(config, "", about(text)),
    )


def written(saved: Saved, prompt: str, *, length: int, temperature: float, samples: int, seed: int) -> list[str]:
    """Continuations of a prompt, without the prompt."""
    alphabet = "".join(saved.symbols)
    tokens = jnp.repeat(jnp.asarray(encode(alphabet, prompt))[:, None], samples, 1)
    free = jnp.full((length, samples), -1, jnp.int32)
    key = jax.random.key(seed)
    found = language.write(saved.model, saved.params, tokens, free, jnp.float32(temperature), key)
    return [decode(alphabet, column) for column in np.asarray(found).T]


def run(config: Config) -> Result:
    text = load(config)
    total = config.epochs * language.steps_an_epoch(text.training, config.batch_size, config.window)
    job = Job(total, functools.partial(train, config, text))
    course = side_by_side({config.cell: job}, devices=devices_of(config))[config.cell]
    check_learned(course, "validation")
    save_model(config.out, "char_lm", dataclasses.asdict(config), tuple(text.alphabet), course.params)
    saved, best = load_model(config.out, "char_lm"), course.best_of("validation")
    start = text.alphabet[0]
    (sample,) = written(saved, start, length=SAMPLE, temperature=0.8, samples=1, seed=config.seed)
    print_table(config, course, best)
    print(sample)
    heads = f" in {config.num_heads} heads" if config.num_heads > 1 else ""
    title = f"{config.cell.upper()} of {config.hidden_size} units{heads}, layers: {config.layers}"
    curves = {"training": np.stack([found.loss for found in course.history]), "validation": course.metric("validation")}
    record = {
        "parameters": course.parameters,
        "characters": {"train": len(text.training), "validation": len(text.validation), "symbols": len(text.alphabet)},
        "seconds": course.seconds,
        "seeds": list(seeds_of(config)),
        "validation_nats": best.tolist(),
        "validation_bits": (best / np.log(2)).tolist(),
        "validation_nats_by_epoch": course.metric("validation").round(5).tolist(),
        "train_nats_by_epoch": curves["training"].round(5).tolist(),
        "sample": sample,
    }
    return record, lambda: loss_curves(config.out / "learning_curves", title, "nats per character", curves)


def print_table(config: Config, course: Course, best: np.ndarray) -> None:
    table = Table(title=f"{config.cell}: the best epoch on the validation text, read in {STREAMS} streams")
    for column in ("seed", "nats per character", "bits per character", "parameters", "minutes"):
        table.add_column(column, justify="right")
    for seed, value in zip(seeds_of(config), best, strict=True):
        minutes = f"{course.seconds / 60:.1f}"
        table.add_row(str(seed), f"{value:.4f}", f"{value / np.log(2):.4f}", f"{course.parameters:,}", minutes)
    Console().print(table)


def sample(arguments: Sequence[str]) -> int:
    """The command `sample`: writes to stdout."""
    config = read_options("char_lm sample", SampleConfig, arguments)
    try:
        positive(config, "length", "temperature", "samples")
        check_seed(config.seed)
        saved = load_model(config.model, "char_lm")
        strange = sorted(set(config.prompt) - set(saved.symbols))
        if strange or not config.prompt:
            got = f"{strange[0]!r}" if strange else "nothing"
            raise ValueError(f"--prompt expected characters of the text that was learned, got {got}")
        check_writing(saved, len(config.prompt) + config.length, config.samples, ("--length", "--samples", "--prompt"))
    except (ValueError, OSError) as error:
        return complain("char_lm", error)
    options = {name: getattr(config, name) for name in ("length", "temperature", "samples", "seed")}
    for text in written(saved, config.prompt, **options):
        print(f"{config.prompt}{text}".lstrip("\n"))
    return 0


def rows(record: Record) -> Iterator[Row]:
    """The row of a record in the table of results."""
    config = record["config"]
    size = f"{config['layers']} layer{'s' if config['layers'] > 1 else ''}, {config['epochs']} epochs"
    label = label_of(config["cell"], config.get("num_heads", 1))  # absent from records of earlier versions
    what = f"tiny-shakespeare, {label}, {size}: validation nats a character"
    published, differs = PUBLISHED.get(config["cell"], ("1.55 (minLSTM, Feng 2024)", "another network"))
    obtained = mean_over_seeds(record["validation_nats"], 4)
    yield Row(what, record["parameters"], record["seconds"] / 60, obtained, published, differs)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["sample"]:
        return sample(given[1:])
    writes = ("learning_curves", FILE)
    return run_script("char_lm", Config, run, check=check, quick=QUICK, writes=writes, arguments=given)


if __name__ == "__main__":
    sys.exit(main())
