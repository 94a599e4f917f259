"""The table of results in README.md, made from the records in `results/`, so that the two cannot differ."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parents[1]
BEGIN, END = "<!-- made by: python -m experiments summary -->", "<!-- end -->"
HEADINGS = ("command", "what is measured", "parameters", "minutes", "obtained", "published", "differs in")

Record = dict[str, Any]


class Row(NamedTuple):
    """One line of the table."""

    what: str
    parameters: int
    minutes: float
    obtained: str
    published: str
    differs: str = "nothing"


def spread(values: Sequence[float], form: str = "{:.2f}", factor: float = 1.0) -> str:
    """Mean, standard deviation and number of seeds."""
    scaled = factor * np.asarray(values)
    mean = form.format(scaled.mean())
    if len(scaled) == 1:
        return f"{mean}, one seed"
    return f"{mean} ± {form.format(scaled.std(ddof=1))}, {len(scaled)} seeds"


LABELS = {"rnn": "tanh RNN", "gru": "GRU", "lstm": "LSTM"}
READINGS = {"rows": "row by row", "pixels": "pixel by pixel", "permuted": "pixels, permuted"}
IMAGES = {  # published, with 256 units and 20 epochs
    ("mnist", "rows", "lstm"): "98.9 (Atienza, 256 units, 20 epochs)",
    ("mnist", "rows", "rnn"): "98.0 (Atienza, 256 units, 20 epochs)",
}


def _sequential_images(record: Record) -> Iterator[Row]:
    name = record["config"]["dataset"]
    for run in record["runs"]:
        what = f"{name}, {READINGS[run['reading']]}, {LABELS[run['cell']]}: test accuracy, %"
        obtained = spread(run["test_accuracy"], "{:.1f}", 100)
        published = IMAGES.get((name, run["reading"], run["cell"]), "-")
        differs = f"{record['config']['hidden_size']} units, {record['config']['epochs']} epochs"
        yield Row(what, run["parameters"], run["seconds"] / 60, obtained, published, differs)
    baseline = record["logistic_regression"]
    obtained = f"{100 * baseline['accuracy']:.1f}"
    what, minutes = f"{name}, logistic regression of all pixels, %", baseline["seconds"] / 60
    yield Row(what, baseline["parameters"], minutes, obtained, "-", "-")


def _mnist_1d(record: Record) -> Iterator[Row]:
    obtained = spread(record["test_accuracy"], "{:.1f}", 100)
    published = "89.1 to 91.0 (Greydanus & Kobak 2024)"
    differs = "24 parameters fewer: one bias where PyTorch has two"
    yield Row("test accuracy, %", record["parameters"], record["seconds"] / 60, obtained, published, differs)


def _japanese_vowels(record: Record) -> Iterator[Row]:
    obtained = spread(record["test_accuracy"], "{:.1f}", 100)
    published = "95.4 (MathWorks' example, stored re-run)"
    yield Row("test accuracy, %", record["parameters"], record["seconds"] / 60, obtained, published, "initial values")


MUSIC = {
    ("rnn", True): "8.91 (Bai 2018, grid-searched)",
    ("gru", True): "8.43 (Bai 2018, grid-searched)",
    ("lstm", True): "8.45 (Bai 2018, grid-searched)",
    ("rnn", False): "9.1 (Chung 2014)",
    ("gru", False): "8.54 (Chung 2014)",
    ("lstm", False): "8.67 (Chung 2014)",
}


def _polyphonic_music(record: Record) -> Iterator[Row]:
    for run in record["runs"]:
        what = f"JSB, {LABELS[run['cell']]}: test nats a step"
        published = MUSIC[run["cell"], run["parameters"] > 100_000]
        obtained = spread(run["test_nats"], "{:.3f}")
        yield Row(what, run["parameters"], run["seconds"] / 60, obtained, published, "optimiser, dropout, search")


def _char_lm(record: Record) -> Iterator[Row]:
    what, published = "tiny-shakespeare: validation nats a character", "1.55 (minLSTM, Feng 2024)"
    obtained = spread(record["validation_nats"], "{:.4f}")
    yield Row(what, record["parameters"], record["seconds"] / 60, obtained, published, "another network")


def _poems(record: Record) -> Iterator[Row]:
    unigram, minutes = f"{record['unigram_perplexity']:.0f}", record["seconds"] / 60
    obtained = spread(record["test_perplexity"], "{:.1f}")
    yield Row("held-out perplexity", record["parameters"], minutes, obtained, f"single characters: {unigram}", "-")
    shares = " and ".join(f"{100 * record['in_form'][form]:.1f}" for form in ("5", "7"))
    what = "samples in form, %, lines of 5 and 7"
    yield Row(what, record["parameters"], minutes, shares, "-", "-")


def _translate_toy(record: Record) -> Iterator[Row]:
    what = f"{record['config']['task']}: translations right to the last symbol, %"
    obtained = spread(record["right"], "{:.1f}", 100)
    yield Row(what, record["parameters"], record["seconds"] / 60, obtained, "-", "-")


def _forecast(record: Record) -> Iterator[Row]:
    obtained = spread(record["test_rmse"], "{:.1f}")
    naive = ", ".join(f"{name} {error:.1f}" for name, error in record["naive_rmse"].items())
    minutes = record["seconds"] / 60
    yield Row("airline: test RMSE, thousands", record["parameters"], minutes, obtained, f"naive: {naive}", "-")


ROWS: dict[str, Callable[[Record], Iterator[Row]]] = {
    "sequential_images": _sequential_images,
    "sequential_images_mnist": _sequential_images,
    "sequential_images_fashion": _sequential_images,
    "sequential_images_permuted": _sequential_images,
    "mnist_1d": _mnist_1d,
    "japanese_vowels": _japanese_vowels,
    "polyphonic_music": _polyphonic_music,
    "char_lm": _char_lm,
    "poems": _poems,
    "translate_toy": _translate_toy,
    "forecast": _forecast,
}


def table(folder: Path = FOLDER / "results") -> str:
    """Markdown, a row for each result that is there."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for name, rows in ROWS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            for row in rows(record):
                cells = (f"`{record['experiment']}`", row.what, f"{row.parameters:,}", f"{row.minutes:.1f}", *row[3:])
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text: str, made: str) -> str:
    """A text whose table between the two marks is the one that was made."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def write() -> None:
    path = FOLDER / "README.md"
    path.write_text(with_table(path.read_text(encoding="utf-8"), table()), encoding="utf-8")
