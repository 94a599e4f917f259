"""Runs networks that others trained and published, by jaxrnn and by their own engines.

    python -m experiments.datasets get g2p-en silero-vad nsnet2
    python -m experiments.real_models

For each model it prints the answer of its engine and that of jaxrnn, the largest difference of the numbers that
they are decided from, and the time of both, measured in turns; ONNX Runtime has one thread.
The exit code is 1 if a decision differs, or a number by more than 1e-5.
The packages that the models come in are read, never installed or run.
"""

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxrnn
from experiments.command.devices import DeviceOptions
from experiments.command.messages import complain
from experiments.command.options import among, at_most, check_seed, positive
from experiments.command.script import Result, run_script
from experiments.datasets._sources import DataSet, Package
from experiments.datasets.pretrained import G2P, NETWORKS, NSNET2, SILERO, load_g2p, load_model
from experiments.real_models import denoiser, g2p, runtime, vad
from experiments.real_models.audio import speech, with_noise
from experiments.real_models.compare import TOLERANCE, Comparison, Model, agrees, compared, record_of
from experiments.real_models.tables import times_of

MODELS = tuple(source.name for source in NETWORKS)
SOURCES = {source.name: source for source in NETWORKS}
FAINT, LOUD = 0.005, 0.05  # standard deviations of the noise that silero-vad and NSNet2 hear


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """Published networks by jaxrnn and by their own engines; exits with 1 if they differ."""

    models: tuple[str, ...] = MODELS
    """Which models: any of g2p-en, silero-vad, nsnet2."""
    seconds: int = 30
    """How much audio is drawn for silero-vad and nsnet2."""
    repeats: int = 20
    """Turns of each engine, after one that warms it up."""
    data_dir: Path | None = None
    """Where the models are; otherwise the folder in JAXRNN_DATA, otherwise the user's cache."""
    seed: int = 0
    """Of the audio."""
    out: Path = Path("results/real_models")
    """The folder for results.json."""
    quick: bool = False
    """Less audio and fewer turns."""


QUICK = {"seconds": 5, "repeats": 3}


class Prepared(NamedTuple):
    """A model with its input, and what is told of a comparison."""

    model: Model
    tell: Callable[[Comparison], dict[str, Any]]  # prints both answers, and returns more for the record


def prepare_g2p(config: Config) -> Prepared:
    weights = load_g2p(config.data_dir)

    def tell(found: Comparison) -> dict[str, Any]:
        table = Table("word", "NumPy, one word at a time", "jaxrnn, all words at once")
        for word, theirs, ours in zip(g2p.WORDS, found.engine.decisions, found.ours.decisions, strict=True):
            table.add_row(word, theirs, ours)
        Console(width=130).print(table)
        answers = dict(zip(g2p.WORDS, found.ours.decisions, strict=True))
        known = [word for word, said in g2p.PUBLISHED.items() if answers[word] == said]
        print(f"as the page of the package says: {', '.join(known) or 'none'}")
        return {
            "published": len(g2p.PUBLISHED),
            "as_published": len(known),
            "rounding": g2p.rounding(weights, g2p.WORDS),
        }

    return Prepared(g2p.model_of(weights), tell)


def prepare_vad(config: Config) -> Prepared:
    model = vad.model_of(
        load_model(SILERO, config.data_dir), with_noise(speech(config.seconds, config.seed), FAINT, config.seed)
    )

    def tell(found: Comparison) -> dict[str, Any]:
        answers = {model.engine: found.engine, "jaxrnn": found.ours}
        stretches = {who: vad.stretches(answer.decisions) for who, answer in answers.items()}
        for who, each in stretches.items():
            print(f"speech by {who}, seconds: {', '.join(f'{a:.1f}-{b:.1f}' for a, b in each) or 'none'}")
        return {"positive": sum(found.engine.decisions), "stretches": [len(each) for each in stretches.values()]}

    return Prepared(model, tell)


def prepare_denoiser(config: Config) -> Prepared:
    clean = speech(config.seconds, config.seed)
    noisy = with_noise(clean, LOUD, config.seed)

    def tell(found: Comparison) -> dict[str, Any]:
        before, theirs = denoiser.improvement(found.engine.values, clean, noisy)
        _, ours = denoiser.improvement(found.ours.values, clean, noisy)
        print(f"signal to noise: {before:.4f} dB, cleaned by ONNX Runtime {theirs:.4f} dB, by jaxrnn {ours:.4f} dB")
        return {"positive": sum(found.engine.decisions), "decibels": [before, theirs, ours]}

    return Prepared(denoiser.model_of(load_model(NSNET2, config.data_dir), noisy), tell)


PREPARE: dict[str, Callable[[Config], Prepared]] = {
    G2P.name: prepare_g2p,
    SILERO.name: prepare_vad,
    NSNET2.name: prepare_denoiser,
}


def package_of(source: DataSet) -> str:
    """The package that a model comes in, with its version."""
    (package,) = (way for way in source.ways if isinstance(way, Package))
    return package.spec


def check(config: Config) -> None:
    """Raises a `ValueError` or `OSError` in one line for options or files that cannot be run, before any work."""
    positive(config, "seconds", "repeats")
    at_most(config, "seconds", 3600, "an hour")
    check_seed(config.seed)
    among(config, "models", MODELS)
    runtime.check_installed()
    for name in config.models:
        load_g2p(config.data_dir) if name == G2P.name else load_model(SOURCES[name], config.data_dir)


def run(config: Config) -> Result:
    rows = []
    for name in dict.fromkeys(config.models):
        print(f"\n{name}: {SOURCES[name].about}, {SOURCES[name].licence}")
        prepared = PREPARE[name](config)
        found = compared(prepared.model, config.repeats)
        row = {**record_of(prepared.model, found), **prepared.tell(found)}
        row |= {"licence": SOURCES[name].licence, "package": package_of(SOURCES[name]), "agrees": agrees(found)}
        print(f"{row['decides']} decided alike: {row['equal']:,} of {row['decisions']:,}")
        print(f"{row['values']}, largest difference of {row['compared']:,}: {row['difference']:.1e}")
        if found.milliseconds:
            print(f"microseconds a {row['timed']}, least and median: {times_of(row)}")
        rows.append(row)
    engines = {name: importlib.metadata.version(name) for name in runtime.PACKAGES}
    versions = {"jaxrnn": jaxrnn.__version__, "jax": jax.__version__, "numpy": np.__version__} | engines
    print(f"\nversions: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return {"models": rows, "engines": engines, "tolerance": TOLERANCE}, lambda: None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a model differs from its engine."""
    differing: list[str] = []

    def noted(config: Config) -> Result:
        record, draw = run(config)
        differing.extend(row["model"] for row in record["models"] if not row["agrees"])
        return record, draw

    code = run_script("real_models", Config, noted, check=check, quick=QUICK, arguments=arguments)
    if differing:
        complain("real_models", f"differs from its own engine: {', '.join(differing)}")
    return code or (1 if differing else 0)


if __name__ == "__main__":
    sys.exit(main())
