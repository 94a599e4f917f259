"""Writes the table of results in README.md from the records in `results/`, so that the two cannot differ.

Each script turns its own records into rows; here they are collected.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments import (
    char_lm,
    forecast,
    japanese_vowels,
    mnist_1d,
    poems,
    polyphonic_music,
    sequential_images,
    translate_toy,
)
from experiments.command.report import whole_file
from experiments.command.rows import Record, Row

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- made by: python -m experiments summary -->", "<!-- end -->"
HEADINGS = ("command", "what is measured", "parameters", "minutes", "obtained", "published", "differs in")

ROWS: dict[str, Callable[[Record], Iterator[Row]]] = {  # by the name of the record's file, in the table's order
    "sequential_images": sequential_images.rows,
    "sequential_images_mnist": sequential_images.rows,
    "sequential_images_fashion": sequential_images.rows,
    "sequential_images_permuted": sequential_images.rows,
    "mnist_1d": mnist_1d.rows,
    "japanese_vowels": japanese_vowels.rows,
    "polyphonic_music": polyphonic_music.rows,
    "char_lm": char_lm.rows,
    "poems": poems.rows,
    "translate_toy": translate_toy.rows,
    "forecast": forecast.rows,
}


def table(folder: Path = FOLDER / "results") -> str:
    """The table in Markdown, with the rows of every record that is in the folder."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for name, rows in ROWS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            try:
                lines += lines_of(json.loads(path.read_text(encoding="utf-8")), rows)
            except Exception as error:  # what is no record can raise any error in the script that reads it
                raise ValueError(f"{path} is no record of a run: {type(error).__name__} {error}") from error
    return "\n".join(lines)


def lines_of(record: Record, rows: Callable[[Record], Iterator[Row]]) -> Iterator[str]:
    """The lines of one record."""
    for row in rows(record):
        cells = (f"`{record['experiment']}`", row.what, f"{row.parameters:,}", f"{row.minutes:.1f}", *row[3:])
        yield f"| {' | '.join(cells)} |"


def with_table(text: str, made: str) -> str:
    """The text, with the table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def write() -> None:
    """Replaces the table in README.md."""
    path = FOLDER / "README.md"
    text = with_table(path.read_text(encoding="utf-8"), table())
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
