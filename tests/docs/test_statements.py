"""Sentences of the pages are true: each is computed anew from code or record, in `tests/docs/statements/`."""

import pytest

from tests.docs.statements import STATEMENTS, Statement, benchmarks, experiments, library, pages, spaced, text_of

MODULES = (library, pages, experiments, benchmarks)


@pytest.mark.parametrize("statement", STATEMENTS, ids=[f"{each.page}: {each.name}" for each in STATEMENTS])
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
