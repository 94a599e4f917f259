"""Every table of results on the pages of the experiments is between marks, and equals what its record gives."""

import copy
import json
import re

import pytest

from experiments import _summary as summary

# The first heading of tables that hold no results
OTHERS = {
    "README.md": ["set"],  # the data
    "benchmarks/README.md": [],
    "../docs/deploy.md": ["you serve from"],  # what to take when
    "benchmarks/SCALING.md": ["what is too large or too slow"],
}


def page(name):
    return (summary.FOLDER / name).read_text(encoding="utf-8")


def records(name):
    """The records of a page that marks name."""
    return sorted({record for record, *_ in summary.MARKED.findall(page(name))})


@pytest.mark.parametrize("name", summary.PAGES)
def test_tables_equal_their_records(name):
    """If this fails, run: python -m experiments summary."""
    assert summary.filled(name, page(name)) == page(name)


@pytest.mark.parametrize("name", summary.PAGES)
def test_every_table_of_results_is_between_marks(name):
    text = page(name)
    before, _, rest = text.partition(summary.BEGIN)
    text = before + rest.partition(summary.END)[2] if rest else text
    bare = summary.MARKED.sub("", text)
    assert "<!--" not in bare
    tables = re.findall(r"^\| *(.*?) *\|.*\n\|(?: *-+ *\|)+$", bare, re.M)
    assert tables == OTHERS[name]


@pytest.mark.parametrize("name", summary.PAGES)
def test_every_table_that_a_script_makes_is_shown(name):
    shown = {(record, table) for record, table, _ in summary.MARKED.findall(page(name))}
    results, tables = summary.PAGES[name]
    assert records(name) == sorted(tables)
    for record, make in tables.items():
        made = make(json.loads((results / f"{record}.json").read_text(encoding="utf-8")))
        assert {(record, table) for table in made} <= shown


@pytest.mark.parametrize("name", summary.PAGES)
def test_tables_depend_on_nothing_but_their_record(name):
    results, tables = summary.PAGES[name]
    for record, make in tables.items():
        given = json.loads((results / f"{record}.json").read_text(encoding="utf-8"))
        before = copy.deepcopy(given)
        first, second = make(given), make(given)
        assert first == second
        assert given == before
        for made in first.values():
            lines = made.splitlines()
            assert len(lines) > 2
            assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
            assert not made.endswith("\n")


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("nothing/train", "table: nothing/train expected a record of gates, gradient_flow"),
        ("gates/nothing", "table: gates/nothing expected a table of saturated, retention"),
    ],
)
def test_unknown_marks_are_named(mark, message):
    with pytest.raises(ValueError, match=message):
        summary.with_tables(f"<!-- table: {mark} -->\n\n| a |\n\n<!-- end -->", summary.PAGES["README.md"])


def test_a_record_may_have_tables_from_several_functions():
    make = summary.joined(lambda record: {"a": record["x"]}, lambda record: {"b": record["y"]})
    assert make({"x": "1", "y": "2"}) == {"a": "1", "b": "2"}


def test_a_value_is_rounded_once():
    """2.3746 is 2.37, but 2.375 and then 2.38 if it is first rounded to three digits."""
    results, tables = summary.PAGES["README.md"]
    record = json.loads((results / "gates.json").read_text(encoding="utf-8"))
    run = next(run for run in record["runs"] if (run["task"], run["cell"], run["fixed"]) == ("text", "lstm", None))
    run["ablated"]["f"]["closed"]["loss"] = [2.3746, 2.3746, 2.3746]
    assert "| next character | forget |" in (made := tables["gates"](record)["lstm"])
    assert made.splitlines()[2].split(" | ")[4] == "2.37 ± 0.00"
