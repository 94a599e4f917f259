"""Every family of cells is complete: CONTRIBUTING.md, "Add a cell", lists the places where it stands."""

import pkgutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import jaxrnn
from jaxrnn import cells, configuration
from jaxrnn.cells import FAMILIES
from tests.support.in_numpy import step_of
from tests.support.registry import CELLS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
OTHERS = ("attend", "regularize", "products")  # which make a cell of another; the products of rules
FILES = [m.name for m in pkgutil.iter_modules(cells.__path__) if not m.name.startswith("_") and m.name not in OTHERS]


def records_of(cell: jaxrnn.Cell) -> set[str]:
    """The names of the records of parameters and states, those inside them included."""
    shapes = jax.eval_shape(lambda key: (cell.init(key, 2), cell.initial_state()), jax.random.key(0))
    found, parts = set(), list(shapes)
    while parts:
        part = parts.pop()
        if hasattr(part, "_fields"):
            found.add(type(part).__name__)
            parts += part
    return found


def missing(file: str) -> Iterator[str]:
    """What the family of a file of jaxrnn/cells/ lacks, in words."""
    families = [family for family in FAMILIES if family.factory.__module__ == f"jaxrnn.cells.{file}"]
    if not families:
        yield f"jaxrnn/cells/__init__.py: FAMILIES has no row for the factory of jaxrnn/cells/{file}.py"
    for family in families:
        name = family.factory.__name__
        names = {name, f"{name}_step"}.union(*map(records_of, [family.factory(2), *forms_of(family)]))
        for package, expected in ((cells, {*names, family.config.__name__}), (jaxrnn, names)):
            for lacked in sorted(expected - set(package.__all__)):
                yield f"{package.__name__.replace('.', '/')}/__init__.py: __all__ has no {lacked!r}"
        rows = [row for row in CELLS if factory_of(row) == name]
        if not rows:
            yield f"tests/support/registry.py: CELLS has no row made by {name}"
        for row in rows:
            try:
                step_of(row)
            except LookupError as error:
                yield str(error)
        if not any(f"`{name}`" in line for line in README if line.startswith("|")):
            yield f"README.md: the table of cells has no `{name}`"


def factory_of(row: str) -> str | None:
    """The name of the factory of a row of the registry; `None` if jaxrnn does not have it."""
    try:
        return CELLS[row]().config.factory
    except AttributeError:
        return None


def forms_of(family: cells.Family) -> list[jaxrnn.Cell]:
    return [family.factory(2, **options) for options in family.forms.values()]


@pytest.mark.parametrize("file", FILES)
def test_family_of_a_file_is_complete(file):
    lacked = list(missing(file))
    assert not lacked, "\n".join(lacked)


def test_every_family_is_the_config_of_its_own_factory_and_can_be_described():
    assert len(FILES) >= 5
    assert len({family.config for family in FAMILIES}) == len({family.factory for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        cell = family.factory(2)
        assert type(cell.config) is family.config
        assert family.config.factory == family.factory.__name__
        assert configuration.build(configuration.describe(cell)) == cell
