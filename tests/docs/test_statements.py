"""Sentences of the pages are true: each is computed anew from code or record, in `tests/docs/statements/`."""

import re

import pytest

from tests.docs.statements import (
    ROOT,
    STATEMENTS,
    Statement,
    benchmarks,
    experiments,
    gates,
    interfaces,
    library,
    pages,
    parallel_in_time,
    spaced,
    tasks,
    text_of,
)

MODULES = (library, interfaces, pages, experiments, tasks, gates, parallel_in_time, benchmarks)
OTHERS = {".cache", ".venv", "results"}  # folders whose pages are not the project's
PAGES = sorted(
    str(path) for path in (each.relative_to(ROOT) for each in ROOT.rglob("*.md")) if not OTHERS & set(path.parts)
)


SLOW = ("memory_without_checkpoints",)


def case(each: Statement):
    return pytest.param(each, id=f"{each.page}: {each.name}", marks=[pytest.mark.slow] if each.name in SLOW else [])


@pytest.mark.parametrize("statement", [case(each) for each in STATEMENTS])
def test_the_page_says_what_is_so(statement: Statement):
    fragment = spaced(statement.fragment())
    assert len(fragment) > 3
    assert fragment in spaced(text_of(statement.page)), fragment


def test_statements_are_of_all_pages():
    assert len(STATEMENTS) >= 60
    assert len({(each.page, each.name) for each in STATEMENTS}) == len(STATEMENTS)
    assert {each.page for each in STATEMENTS} >= {
        "README.md",
        "CONTRIBUTING.md",
        "MIGRATION.md",
        "CHANGELOG.md",
        "docs/glossary.md",
        "jaxrnn/sequence/implementations/README.md",
        "experiments/README.md",
        "experiments/benchmarks/README.md",
        "experiments/benchmarks/SCALING.md",
    }


def test_a_false_fragment_is_not_found():
    true = next(each for each in STATEMENTS if each.name == "harmonics")
    assert "three harmonics" in true.fragment()
    assert true.fragment().replace("three", "two") not in spaced(text_of(true.page))


def anchors(text):
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_all_pages_have_links_that_are_read():
    assert {"README.md", "docs/mathematics.md", "experiments/README.md"} <= set(PAGES)
    assert anchors("# Gates\n\n## Where each equation is tested\n") == {"gates", "where-each-equation-is-tested"}
