"""Writes the tables of results in the pages from the committed records, so that the two cannot differ.

Each script turns its own records into rows of the first table (`rows`) and into tables of its own (`tables`);
here they are collected. A page holds a table between two marks:

    <!-- table: RECORD/NAME -->   ...   <!-- end -->

RECORD is the file of the record without `.json`, NAME one of the tables that the script makes from it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments import (
    char_lm,
    japanese_vowels,
    mnist_1d,
    poems,
    polyphonic_music,
    sequential_images,
)
from experiments.benchmarks import _scaling_tables, _tables
from experiments.command.report import whole_file
from experiments.command.rows import Record, Row
from experiments.forecast import airline
from experiments.forecast.tables import rows as rows_of_weather
from experiments.forecast.tables import tables as tables_of_weather
from experiments.g2p.tables import rows as rows_of_g2p
from experiments.gates.claims import tables as claims_of_gates
from experiments.gates.tables import tables as tables_of_gates
from experiments.gradient_flow.markdown import tables as tables_of_gradient_flow
from experiments.lstm_vs_gru.tables import tables as tables_of_lstm_vs_gru
from experiments.lstm_vs_gru.tables import tables_of_heads
from experiments.memory_tasks.markdown import tables as tables_of_memory_tasks
from experiments.parallel_in_time.tables import tables as tables_of_parallel_in_time
from experiments.real_models.tables import tables as tables_of_real_models
from experiments.recurrent_ppo.tables import tables as tables_of_recurrent_ppo

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- made by: python -m experiments summary -->", "<!-- end -->"
MARKED = re.compile(r"<!-- table: ([\w-]+)/([\w-]+) -->\n(.*?)" + re.escape(END), re.S)
HEADINGS = ("command", "what is measured", "parameters", "minutes", "obtained", "published", "differs in")

T = TypeVar("T")
Tables = Callable[[Record], dict[str, str]]  # of a record, each in Markdown by its name


class Page(NamedTuple):
    """A page with tables."""

    results: Path  # the folder of its records
    tables: Mapping[str, Tables]  # by the name of the record's file


def joined(*makes: Tables) -> Tables:
    """The tables of several functions of one record."""
    return lambda record: {name: made for make in makes for name, made in make(record).items()}


ROWS: dict[str, Callable[[Record], Iterator[Row]]] = {  # by the name of the record's file, in the table's order
    "sequential_images": sequential_images.rows,
    "sequential_images_mnist": sequential_images.rows,
    "sequential_images_fashion": sequential_images.rows,
    "sequential_images_permuted": sequential_images.rows,
    "mnist_1d": mnist_1d.rows,
    "japanese_vowels": japanese_vowels.rows,
    "polyphonic_music": polyphonic_music.rows,
    "char_lm": char_lm.rows,
    "char_lm_min_gru": char_lm.rows,
    "char_lm_min_lstm": char_lm.rows,
    "poems": poems.rows,
    "g2p": rows_of_g2p,
    "forecast": rows_of_weather,
    "forecast_airline": airline.rows,
}

PAGES = {
    "README.md": Page(
        FOLDER / "results",
        {
            "gates": joined(tables_of_gates, claims_of_gates),
            "gradient_flow": tables_of_gradient_flow,
            "lstm_vs_gru": tables_of_lstm_vs_gru,
            "lstm_vs_gru_heads": tables_of_heads,
            "memory_tasks": tables_of_memory_tasks,
            "parallel_in_time": tables_of_parallel_in_time,
            "real_models": tables_of_real_models,
            "recurrent_ppo": tables_of_recurrent_ppo,
            "forecast": tables_of_weather,
        },
    ),
    "benchmarks/README.md": Page(
        FOLDER / "benchmarks" / "results",
        {
            "speed": _tables.of_one_device,
            "speed_two_devices": _tables.of_all_cores,
            "speed_affine": _tables.of_affine,
            "speed_heads": _tables.of_heads,
            "memory": _tables.of_memory,
            "memory_final": _tables.of_memory,
            "latency": _tables.of_latency,
        },
    ),
    "../docs/deploy.md": Page(FOLDER / "benchmarks" / "results", {"latency": _tables.of_one_step}),
    "benchmarks/SCALING.md": Page(FOLDER / "benchmarks" / "results", {"scaling": _scaling_tables.of_scaling}),
}


def table(folder: Path = FOLDER / "results") -> str:
    """The first table in Markdown, with the rows of every record that is in the folder."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for name, rows in ROWS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            lines += of_record(path, lambda record, rows=rows: list(lines_of(record, rows)))
    return "\n".join(lines)


def lines_of(record: Record, rows: Callable[[Record], Iterator[Row]]) -> Iterator[str]:
    """The lines of one record."""
    for row in rows(record):
        cells = (f"`{record['experiment']}`", row.what, f"{row.parameters:,}", f"{row.minutes:.1f}", *row[3:])
        yield f"| {' | '.join(cells)} |"


def of_record(path: Path, make: Callable[[Record], T]) -> T:
    """What `make` returns for the record in a file.

    Raises:
        ValueError: naming the file, if it is no record.
    """
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:  # what is no record can raise any error in the script that reads it
        raise ValueError(f"{path} is no record of a run: {type(error).__name__} {error}") from error


def with_table(text: str, made: str) -> str:
    """The text, with the first table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def with_tables(text: str, page: Page) -> str:
    """The text, with every table between marks replaced.

    Raises:
        ValueError: for a mark that names no record of the page, or no table of the record.
    """
    made: dict[str, dict[str, str]] = {}

    def filled(mark: re.Match[str]) -> str:
        record, name, _ = mark.groups()
        if record not in page.tables:
            raise ValueError(f"table: {record}/{name} expected a record of {', '.join(page.tables)}, got {record}")
        if record not in made:
            made[record] = of_record(page.results / f"{record}.json", page.tables[record])
        if name not in made[record]:
            raise ValueError(f"table: {record}/{name} expected a table of {', '.join(made[record])}, got {name}")
        return f"<!-- table: {record}/{name} -->\n\n{made[record][name]}\n\n{END}"

    return MARKED.sub(filled, text)


def filled(name: str, text: str) -> str:
    """The text of a page, with all its tables made anew."""
    text = with_tables(text, PAGES[name])
    return with_table(text, table()) if BEGIN in text else text


def write() -> None:
    """Replaces the tables in all pages; in none if one cannot be made."""
    texts = {name: filled(name, (FOLDER / name).read_text(encoding="utf-8")) for name in PAGES}
    for name, text in texts.items():
        with whole_file(FOLDER / name) as partial:
            partial.write_text(text, encoding="utf-8")
