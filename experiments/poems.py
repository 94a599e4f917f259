"""Learns Tang quatrains and writes new ones, of lines of 5 or 7 characters; after a first line, or as an acrostic.

    python -m experiments.poems
    python -m experiments.poems write --form 7 --first 白日依山盡黃河
    python -m experiments.poems write --form 5 --acrostic 春夏秋冬

A poem is read character by character with its marks, after a symbol for its form. The script reports
the perplexity of held-out poems, beside that of single characters, and how many samples are in form.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import loss_curves
from experiments.command.messages import complain, shown
from experiments.command.options import among, at_most, check_seed, check_total, positive, read_options, share
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.rows import Record, Row, mean_over_seeds
from experiments.command.script import Result, run_script
from experiments.datasets import poems as quatrains
from experiments.datasets.batching import shuffled, steps_per_epoch
from experiments.models import language
from experiments.models.functional import Functional
from experiments.models.saved import FILE, Saved, check_writing, load_model, model_of, save_model
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_learned, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """A language model of Tang quatrains.

    The model is written to OUT/model.safetensors. To write poems with it: python -m experiments.poems write --help.
    In Python: networks, params = jaxrnn.load("OUT/model.safetensors").
    """

    data_dir: Path | None = None
    """Where the poems are; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    cell: str = "lstm"
    """rnn, lstm, gru, min_gru, min_lstm, rg_lru or lru."""
    hidden_size: int = 256
    """Hidden units of each layer."""
    layers: int = 1
    """Recurrent layers."""
    embedding: int = 128
    """Entries of a character's vector."""
    dropout: float = 0.4
    """The share of vectors' and outputs' entries dropped in training."""
    least: int = 5
    """Characters that occur fewer times in the training poems are read and counted as one, the unknown."""
    epochs: int = 10
    """Passes over the training poems."""
    batch_size: int = 64
    """Poems a step."""
    learning_rate: float = 3e-3
    """Adam's first, which falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    patience: int | None = 3
    """Epochs without a better validation loss after which to stop."""
    limit: int | None = None
    """Train on at most so many poems, from all over the collection."""
    save_every: int | None = 1
    """Epochs from one checkpoint to the next."""
    out: Path = Path("results/poems")
    """The folder for results.json, the model, curves, logs and checkpoints."""


@dataclasses.dataclass(frozen=True)
class WriteConfig:
    """Writes quatrains with a trained model."""

    model: Path = Path("results/poems")
    """The folder that a training wrote."""
    form: int = 7
    """Characters of a line, 5 or 7."""
    first: str = ""
    """The first line, or how it begins."""
    acrostic: str = ""
    """Four characters, with which the lines begin."""
    samples: int = 3
    """How many poems."""
    temperature: float = 0.8
    """Below 1 likelier characters, above 1 more daring ones."""
    seed: int = 0
    """Of the choices."""


QUICK = {"epochs": 3, "hidden_size": 64, "embedding": 32, "limit": 1000, "least": 20, "save_every": None}
SAMPLES = 500  # of each form, for the share in correct form
SHOWN = 3  # of each form
TEMPERATURE = 0.8
BANNED = (quatrains.PAD, quatrains.UNKNOWN, quatrains.FIVE, quatrains.SEVEN)  # what no poem is written with
BATCH = 256  # poems, of an evaluation
STEPS_PER_CALL = 10


def load(config: Config) -> tuple[quatrains.Poems, quatrains.Vocabulary]:
    poems = quatrains.load_poems(config.data_dir)
    poems = poems._replace(train=poems.train[:: -(-len(poems.train) // config.limit)] if config.limit else poems.train)
    return poems, quatrains.vocabulary(poems.train, config.least)


def loss_of(
    bound: language.LanguageModel, poems: jax.Array, lengths: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The nats of poems `(B, N)`, all symbols after the first, and how many symbols those are."""
    symbols = poems.T
    logits, _ = bound(symbols[:-1], None, key)
    each = jaxrnn.readout_loss(logits, symbols[1:])
    counted = jnp.arange(1, symbols.shape[0])[:, None] < lengths[None, :]
    return jnp.sum(jnp.where(counted, each, jnp.zeros_like(each))), jnp.sum(counted).astype(each.dtype)


def task_of(config: Config, model: Functional[language.LanguageModel], poems: np.ndarray, lengths: np.ndarray) -> Task:
    def batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = shuffled(len(poems), config.batch_size, seed, step)
        return poems[chosen], lengths[chosen]

    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        poems, lengths = batch
        total, count = loss_of(model.bind(params), poems, lengths, key)
        return total / count, carry

    return Task(model.init, loss, batch, examples=config.batch_size)


def nats_of(
    model: Functional[language.LanguageModel], poems: np.ndarray, lengths: np.ndarray, platform: str
) -> Callable[[Any], jax.Array]:
    """A function of parameters with a first axis of seeds, to nats per symbol."""
    spare = -len(poems) % BATCH
    padded = (
        np.concatenate([poems, np.zeros((spare, poems.shape[1]), poems.dtype)]),
        np.append(lengths, np.zeros(spare, lengths.dtype)),
    )
    operands = [jnp.asarray(part.reshape(-1, BATCH, *part.shape[1:])) for part in padded]

    @functools.partial(population, platform=platform)
    def measured(params: Any, poems: jax.Array, lengths: jax.Array) -> jax.Array:
        totals, counts = jax.lax.map(lambda part: loss_of(model.bind(params), *part), (poems, lengths))
        return jnp.sum(totals) / jnp.sum(counts)

    return lambda params: measured(params, *operands)


def unigram_nats(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], symbols: int) -> float:
    """Nats per symbol of a test part, if each symbol had its share in the training part; one is added to each count."""
    seen, asked = (
        np.concatenate([poem[1:length] for poem, length in zip(*part, strict=True)]) for part in (train, test)
    )
    shares = np.bincount(seen, minlength=symbols) + 1.0
    return float(-np.log(shares / shares.sum())[asked].mean())


def places_of(form: int, first: str, acrostic: str) -> dict[int, str]:
    """Which characters are given, by their place in the text: marks stand between the lines."""
    return {**{k * (form + 1): c for k, c in enumerate(acrostic)}, **dict(enumerate(first))}


def written(
    saved: Saved, form: int, *, first: str = "", acrostic: str = "", samples: int, temperature: float, seed: int
) -> list[str]:
    """Sampled poems with their marks, whether in form or not."""
    places = {symbol: k for k, symbol in enumerate(saved.symbols)}
    forced = np.full((4 * (form + 1) + 1, samples), -1, np.int32)
    for place, character in places_of(form, first, acrostic).items():
        forced[place] = places[character]
    prompt = jnp.full((1, samples), {5: quatrains.FIVE, 7: quatrains.SEVEN}[form], jnp.int32)
    key = jax.random.key(seed)
    operands = (saved.params, prompt, jnp.asarray(forced), jnp.float32(temperature), key)
    found = language.write(saved.model, *operands, banned=BANNED)
    own = quatrains.Vocabulary(saved.symbols, places)
    return [quatrains.decode(own, column) for column in np.asarray(found).T]


def check(config: Config) -> None:
    names = ("hidden_size", "layers", "embedding", "least", "epochs", "batch_size", "learning_rate", "clip_norm")
    positive(config, *names, "patience", "limit")
    at_most(config, "layers", language.MOST_LAYERS, "each of which is compiled by itself")
    among(config, "cell", list(language.LAYERS))
    share(config, "dropout")
    poems, own = load(config)
    check_total("--epochs", config.epochs, steps_per_epoch(len(poems.train), config.batch_size))
    check_runs(config, {"": {}})
    encoded = quatrains.encode_all(own, poems.train[:1])

    def task(layers: int) -> Task:
        model = model_of(len(own.symbols), {**dataclasses.asdict(config), "layers": layers})
        return task_of(dataclasses.replace(config, batch_size=1), model, *encoded)

    batch, deeper = shapes_of(task(1).batch(0, 0), config.batch_size), task(2) if config.layers > 1 else None
    check_training(config, task(1), batch, steps_per_call=STEPS_PER_CALL, deeper=deeper)


def train(config: Config, poems: quatrains.Poems, own: quatrains.Vocabulary, devices: Devices, show: Show) -> Course:
    model = model_of(len(own.symbols), dataclasses.asdict(config))
    epoch = steps_per_epoch(len(poems.train), config.batch_size)
    steps = config.epochs * epoch
    validation = nats_of(model, *quatrains.encode_all(own, poems.validation), platform_of(devices))
    return fit(
        task_of(config, model, *quatrains.encode_all(own, poems.train)),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=steps),
        seeds_of(config),
        Settings(steps, epoch, minimise="validation", patience=config.patience, steps_per_call=STEPS_PER_CALL),
        lambda params: {"validation": validation(params)},
        devices,
        show,
        keeper_of(config, "", {}),
    )


def run(config: Config) -> Result:
    poems, own = load(config)
    total = config.epochs * steps_per_epoch(len(poems.train), config.batch_size)
    job = Job(total, functools.partial(train, config, poems, own))
    course = side_by_side({config.cell: job}, devices=devices_of(config))[config.cell]
    check_learned(course, "validation")
    save_model(config.out, "poems", dataclasses.asdict(config), own.symbols, course.params)
    saved = load_model(config.out, "poems")
    encoded = {part: quatrains.encode_all(own, getattr(poems, part)) for part in ("train", "validation", "test")}
    platform = platform_of(devices_of(config))
    nats = {
        part: np.asarray(nats_of(saved.model, *encoded[part], platform)(course.params))
        for part in ("validation", "test")
    }
    unigram = unigram_nats(encoded["train"], encoded["test"], len(own.symbols))
    options = {"samples": SAMPLES, "temperature": TEMPERATURE}
    samples = {form: written(saved, form, seed=config.seed + form, **options) for form in (5, 7)}
    in_form = {
        form: float(np.mean([quatrains.form(text) == form for text in texts])) for form, texts in samples.items()
    }
    print_table(course, nats["test"], unigram, in_form)
    shown = {form: [text for text in texts if quatrains.form(text) == form][:SHOWN] for form, texts in samples.items()}
    print(*(text for texts in shown.values() for text in texts), sep="\n")
    curves = {"training": np.stack([found.loss for found in course.history]), "validation": course.metric("validation")}
    title = f"Tang quatrains, {config.cell.upper()} of {config.hidden_size} units"
    record = {
        "parameters": course.parameters,
        "poems": {part: len(getattr(poems, part)) for part in encoded},
        "symbols": len(own.symbols),
        "seconds": course.seconds,
        "seeds": list(seeds_of(config)),
        "validation_perplexity": np.exp(nats["validation"]).tolist(),
        "test_perplexity": np.exp(nats["test"]).tolist(),
        "unigram_perplexity": float(np.exp(unigram)),
        "in_form": {str(form): share for form, share in in_form.items()},
        "samples": {str(form): texts for form, texts in shown.items()},
        "validation_nats_by_epoch": course.metric("validation").round(5).tolist(),
        "train_nats_by_epoch": curves["training"].round(5).tolist(),
    }
    return record, lambda: loss_curves(config.out / "learning_curves", title, "nats per character", curves)


def print_table(course: Course, nats: np.ndarray, unigram: float, in_form: Mapping[int, float]) -> None:
    table = Table(title="Poems that were held out, and samples")
    for column in ("perplexity", "of single characters", "5 in form, %", "7 in form, %", "parameters", "minutes"):
        table.add_column(column, justify="right")
    perplexity = " ".join(f"{np.exp(value):.1f}" for value in nats)
    shares = [f"{100 * in_form[form]:.1f}" for form in (5, 7)]
    minutes = f"{course.seconds / 60:.1f}"
    table.add_row(perplexity, f"{np.exp(unigram):.1f}", *shares, f"{course.parameters:,}", minutes)
    Console(width=110).print(table)


def write(arguments: Sequence[str]) -> int:
    """The command `write`: poems on stdout, a line of a poem a line."""
    config = read_options("poems write", WriteConfig, arguments)
    try:
        positive(config, "samples", "temperature")
        check_seed(config.seed)
        among(config, "form", [5, 7])
        if len(config.first) > config.form:
            raise ValueError(f"--first expected at most {config.form} characters, got {len(config.first)}")
        if config.acrostic and len(config.acrostic) != 4:
            raise ValueError(f"--acrostic expected 4 characters, one for each line, got {len(config.acrostic)}")
        if config.first and config.acrostic and config.first[0] != config.acrostic[0]:
            begun = f"{shown(config.first[0])}, {shown(config.acrostic[0])}"
            raise ValueError(f"--first and --acrostic begin differently: {begun}")
        saved = load_model(config.model, "poems")
        strange = sorted(set(config.first + config.acrostic) - set(saved.symbols[len(quatrains.SPECIAL) :]))
        if strange:
            raise ValueError(f"{shown(strange[0])} is not among the characters that were learned; choose another")
        check_writing(saved, 4 * (config.form + 1) + 1, config.samples, ("--samples",))
    except (ValueError, OSError) as error:
        return complain("poems", error)
    options = {name: getattr(config, name) for name in ("first", "acrostic", "samples", "temperature", "seed")}
    poems = written(saved, config.form, **options)
    size = config.form + 1
    print("\n\n".join("\n".join(poem[k : k + size] for k in range(0, len(poem), size)) for poem in poems))
    return 0


def rows(record: Record) -> Iterator[Row]:
    """The rows of a record in the table of results."""
    unigram, minutes = f"{record['unigram_perplexity']:.0f}", record["seconds"] / 60
    obtained = mean_over_seeds(record["test_perplexity"], 1)
    yield Row("held-out perplexity", record["parameters"], minutes, obtained, f"single characters: {unigram}", "-")
    shares = " and ".join(f"{100 * record['in_form'][form]:.1f}" for form in ("5", "7"))
    what = "samples in form, %, lines of 5 and 7"
    yield Row(what, record["parameters"], minutes, shares, "-", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["write"]:
        return write(given[1:])
    writes = ("learning_curves", FILE)
    return run_script("poems", Config, run, check=check, quick=QUICK, writes=writes, arguments=given)


if __name__ == "__main__":
    sys.exit(main())
