"""English spelling to phonemes: an encoder reads the letters both ways, a decoder attends to them and writes.

    python -m experiments.g2p
    python -m experiments.g2p say recurrent networks
    python -m experiments.g2p --split word

The words are those of the CMU Pronouncing Dictionary, stress left out. The script reports phoneme and word
errors on words that were never trained on, written greedily and by beam search.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command.devices import Devices, devices_of, platform_of
from experiments.command.figures import loss_curves
from experiments.command.options import among, at_most, check_total, positive, share
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.report import mean_and_std
from experiments.command.script import Result, run_script
from experiments.datasets.cmudict import By, Pronunciation, Words, load_cmudict
from experiments.g2p.examples import (
    BLOCK,
    LONGEST,
    MOST_LETTERS,
    Examples,
    batch_of,
    decoded,
    encoded,
    encoded_words,
    in_buckets,
    pairs_of,
    steps_per_epoch,
)
from experiments.g2p.figure import Attention, draw_attention
from experiments.g2p.model import CELLS, SYMBOLS, Model, beams, greedy, init, loss_of, model_of, weights
from experiments.g2p.saved import FILE, load_model, save_model
from experiments.g2p.say import SayConfig as SayConfig
from experiments.g2p.say import say
from experiments.g2p.scores import Errors, errors_of
from experiments.training.loop import Course, Settings, Task, fit, make_optimiser
from experiments.training.runs import RunOptions, check_learned, check_runs, keeper_of, seeds_of
from experiments.training.seeds import population
from experiments.training.sizes import check_training, shapes_of


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """An encoder and a decoder with attention.

    The model is written to OUT/model.safetensors. To pronounce words with it: python -m experiments.g2p say --help.
    In Python: networks, params = jaxrnn.load("OUT/model.safetensors").
    """

    data_dir: Path | None = None
    """Where the dictionary is; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    split: str = "stem"
    """stem: inflections of one stem are in one part; word: each word is in a part by itself."""
    cell: str = "lstm"
    """lstm or gru."""
    hidden_size: int = 256
    """Hidden units of the decoder; each direction of the encoder has half of them."""
    embedding: int = 64
    """Entries of a letter's or phoneme's vector."""
    dropout: float = 0.2
    """The share of vectors', memory's and outputs' entries dropped in training."""
    epochs: int = 12
    """Passes over the training words."""
    batch_size: int = 256
    """Pronunciations a step."""
    buckets: int = 8
    """Kinds of batches, of words of like lengths; each is compiled by itself."""
    learning_rate: float = 2e-3
    """Adam's highest, which rises over half an epoch and falls to 0 along a cosine."""
    clip_norm: float = 1.0
    """Longest norm of the gradient of all parameters together."""
    beam_size: int = 5
    """Hypotheses that the search keeps."""
    length_penalty: float = 0.0
    """The power of GNMT's length normalisation."""
    limit: int | None = None
    """Train and test on at most so many words, from all over the dictionary."""
    save_every: int | None = 1
    """Epochs from one checkpoint to the next."""
    out: Path = Path("results/g2p")
    """The folder for results.json, the model, figures, logs and checkpoints."""


QUICK = {
    **{"epochs": 4, "hidden_size": 64, "embedding": 32, "limit": 4000, "batch_size": 32, "buckets": 2},
    **{"learning_rate": 5e-3, "save_every": None},
}
BATCH = 512  # words of an evaluation
SHOWN = ("knight", "education", "thoroughly")  # their attention is drawn, whether they were trained on or not
EXAMPLES = 8  # test words in the record


def load(config: Config) -> list[dict[str, list[Pronunciation]]]:
    """The words for training, validation and testing."""
    parts = load_cmudict(cast(By, config.split), config.data_dir)
    if config.limit is None:
        return list(parts)
    return [dict(list(words.items())[:: -(-len(words) // config.limit)]) for words in parts]


def task_of(config: Config, model: Model, buckets: Sequence[Examples]) -> Task:
    def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        total, count = loss_of(model, params, Examples(*batch), key)
        return total / count, carry

    batch = functools.partial(batch_of, buckets, config.batch_size)
    return Task(functools.partial(init, model), loss, batch, examples=config.batch_size)


def in_parts(arrays: Sequence[np.ndarray]) -> list[jax.Array]:
    """The arrays with a first axis of parts of BATCH words, the last one filled with copies of the first word."""
    spare = -len(arrays[0]) % BATCH
    full = [np.concatenate([own, np.repeat(own[:1], spare, 0)]) for own in arrays]
    return [jnp.asarray(own.reshape(-1, BATCH, *own.shape[1:])) for own in full]


def writing(
    write: Callable[[Any, jax.Array, jax.Array], jax.Array], words: Words, platform: str
) -> Callable[[Any], list[list[Pronunciation]]]:
    """A function of parameters with a first axis of seeds, to the pronunciations of all words that each seed writes."""
    operands = in_parts(encoded_words(list(words), MOST_LETTERS))

    @functools.partial(population, platform=platform)
    def written(params: Any, sources: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax.lax.map(lambda part: write(params, *part), (sources, lengths))

    def of_seeds(params: Any) -> list[list[Pronunciation]]:
        found = np.asarray(written(params, *operands))
        flat = found.reshape(len(found), -1, found.shape[-1])[:, : len(words)]
        return [[decoded(own) for own in seed] for seed in flat.tolist()]

    return of_seeds


def nats_of(model: Model, words: Words, platform: str) -> Callable[[Any], jax.Array]:
    """A function of parameters with a first axis of seeds, to nats per symbol of all pronunciations."""
    examples = encoded(pairs_of(words))
    operands = in_parts(examples)
    real = np.arange(operands[0].shape[0] * BATCH).reshape(-1, BATCH) < len(examples.lengths)
    operands[3] = jnp.where(real, operands[3], 0)  # copies are not counted

    @functools.partial(population, platform=platform)
    def measured(params: Any, *parts: jax.Array) -> jax.Array:
        totals, counts = jax.lax.map(lambda part: loss_of(model, params, Examples(*part)), parts)
        return jnp.sum(totals) / jnp.sum(counts)

    return lambda params: measured(params, *operands)


def check(config: Config) -> None:
    names = ("hidden_size", "embedding", "epochs", "batch_size", "buckets", "learning_rate", "clip_norm", "beam_size")
    positive(config, *names, "limit")
    among(config, "cell", list(CELLS))
    among(config, "split", ["stem", "word"])
    share(config, "dropout")
    if config.hidden_size % 2:
        raise ValueError(f"--hidden-size expected an even number, half for each direction, got {config.hidden_size}")
    at_most(config, "beam_size", SYMBOLS**2, "more hypotheses than two symbols have")
    if not 0 <= config.length_penalty <= 10:
        raise ValueError(f"--length-penalty expected a number from 0 to 10, got {config.length_penalty}")
    buckets = in_buckets(pairs_of(load(config)[0]), config.buckets)
    check_total("--epochs", config.epochs, steps_per_epoch(buckets, config.batch_size))
    check_runs(config, {"": {}})
    task = task_of(dataclasses.replace(config, batch_size=1), model_of(dataclasses.asdict(config)), buckets)
    batch = shapes_of(Examples(*(part[:1] for part in buckets[-1])), config.batch_size)
    check_training(config, task, batch, steps_per_call=BLOCK)


def train(config: Config, train: Words, validation: Words, devices: Devices, show: Show) -> Course:
    model, buckets = model_of(dataclasses.asdict(config)), in_buckets(pairs_of(train), config.buckets)
    epoch = steps_per_epoch(buckets, config.batch_size)
    steps = config.epochs * epoch
    nats = nats_of(model, validation, platform_of(devices))
    written = writing(functools.partial(greedy, model), validation, platform_of(devices))

    def evaluate(params: Any) -> dict[str, Any]:
        errors = [errors_of(own, list(validation.values())) for own in written(params)]
        return {
            "validation": nats(params),
            "phoneme errors": [own.phonemes for own in errors],
            "word errors": [own.words for own in errors],
        }

    return fit(
        task_of(config, model, buckets),
        make_optimiser(config.learning_rate, clip_norm=config.clip_norm, cosine_steps=steps, warmup_steps=epoch // 2),
        seeds_of(config),
        Settings(steps, epoch, minimise="word errors", steps_per_call=BLOCK),
        evaluate,
        devices,
        show,
        keeper_of(config, "", {}),
    )


Tested = tuple[list[list[Pronunciation]], list[Errors]]  # of each seed: what it writes for each word, and its errors


def tested(config: Config, model: Model, params: Any, test: Words) -> dict[str, Tested]:
    """What each seed writes for the test words, greedily and by beam search, and its errors."""
    platform, references = platform_of(devices_of(config)), list(test.values())

    def best(params: Any, sources: jax.Array, lengths: jax.Array) -> jax.Array:
        return beams(model, params, sources, lengths, config.beam_size, config.length_penalty)[0][:, 0]

    found = {}
    for name, write in (("greedy", functools.partial(greedy, model)), ("beam", best)):
        written = writing(write, test, platform)(params)
        found[name] = written, [errors_of(own, references) for own in written]
    return found


def run(config: Config) -> Result:
    words, validation, test = load(config)
    model = model_of(dataclasses.asdict(config))
    total = config.epochs * steps_per_epoch(in_buckets(pairs_of(words), config.buckets), config.batch_size)
    job = Job(total, functools.partial(train, config, words, validation))
    course = side_by_side({config.cell: job}, devices=devices_of(config))[config.cell]
    check_learned(course, "validation")
    save_model(config.out, dataclasses.asdict(config), course.params)
    found = tested(config, model, course.params, test)
    written = dict(list(zip(test, found["beam"][0][0], strict=True))[:: max(1, len(test) // EXAMPLES)])
    print_table(course, {name: errors for name, (_, errors) in found.items()}, config)
    for word, own in list(written.items())[:EXAMPLES]:
        wanted = " or ".join(map(" ".join, test[word]))
        print(f"{word}  {' '.join(own)}{'' if own in test[word] else f', expected {wanted}'}")
    record = {
        "parameters": course.parameters,
        "words": {"train": len(words), "validation": len(validation), "test": len(test)},
        "pronunciations": len(pairs_of(words)),
        "not_trained_on": sum(max(len(w), len(p) + 1) > LONGEST for w, p in pairs_of(words)),
        "seconds": course.seconds,
        "seeds": list(seeds_of(config)),
        **{name: scores_of(errors) for name, (_, errors) in found.items()},
        "examples": {word: " ".join(own) for word, own in list(written.items())[:EXAMPLES]},
        "validation_nats_by_epoch": course.metric("validation").round(5).tolist(),
        "validation_phoneme_errors_by_epoch": course.metric("phoneme errors").round(5).tolist(),
        "validation_word_errors_by_epoch": course.metric("word errors").round(5).tolist(),
        "train_nats_by_epoch": np.stack([own.loss for own in course.history]).round(5).tolist(),
    }
    return record, functools.partial(draw, config, course)


def scores_of(errors: Sequence[Errors]) -> dict[str, list[float]]:
    return {"phoneme_errors": [own.phonemes for own in errors], "word_errors": [own.words for own in errors]}


def draw(config: Config, course: Course) -> None:
    """Learning curves, and the attention of the saved model."""
    curves = {name: course.metric(name) for name in ("word errors", "phoneme errors")}
    title = f"Spelling to phonemes, {config.cell.upper()} of {config.hidden_size} units"
    loss_curves(config.out / "learning_curves", title, "share of validation words and phonemes", curves)
    model, params = load_model(config.out)
    tokens = np.asarray(jax.jit(greedy, static_argnums=0)(model, params, *encoded_words(SHOWN)))
    own = encoded([(word, decoded(row)) for word, row in zip(SHOWN, tokens.tolist(), strict=True)])
    alpha = np.asarray(jax.jit(weights, static_argnums=0)(model, params, own))
    shown = [
        Attention(word, (*decoded(row), "end"), alpha[k, : own.target_lengths[k], : len(word)])
        for k, (word, row) in enumerate(zip(SHOWN, tokens.tolist(), strict=True))
    ]
    draw_attention(config.out / "attention", "Where the decoder attends, by what it writes", shown)


def print_table(course: Course, found: Mapping[str, Sequence[Errors]], config: Config) -> None:
    table = Table(title="Words that were never trained on")
    for column in ("", "phoneme errors, %", "word errors, %"):
        table.add_column(column, justify="right")
    for name, errors in found.items():
        scores = scores_of(errors).values()
        table.add_row(name, *(mean_and_std(values, 100, 2) for values in scores))
    table.add_row("Yao & Zweig 2015, encoder and decoder", "7.63", "28.61")
    table.add_row("Yao & Zweig 2015, with alignment", "5.45", "23.55")
    console = Console(width=80)
    console.print(table)
    split = "theirs is a split at random" if config.split == "stem" else "theirs is another split at random"
    print(f"{course.parameters:,} parameters, {course.seconds / 60:.1f} minutes; {split}")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["say"]:
        return say(given[1:])
    writes = ("learning_curves", "attention", FILE)
    return run_script("g2p", Config, run, check=check, quick=QUICK, writes=writes, arguments=given)


if __name__ == "__main__":
    sys.exit(main())
