"""A cell that is added as CONTRIBUTING.md, "Add a cell", says passes its tests and can be saved.

A test does it in a copy of the repository, with the update-gate network of `recipe/ugrnn.py`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from jaxrnn.sequence import registry

pytestmark = [pytest.mark.slow, pytest.mark.processes]

ROOT = Path(__file__).parents[2]
PAGE = "jaxrnn/sequence/implementations/README.md"
NUMPY = """
def ugrnn(name, params, h, x):
    p = fields(params)
    g, c = np.split(x @ p["w_x"] + h @ p["w_h"] + p["b"], 2, -1)
    g = sigmoid(g)
    return (g * h + (1 - g) * np.tanh(c),) * 2


"""
ROUND_TRIP = """
import jax, jax.numpy as jnp, jaxrnn
cell = jaxrnn.ugrnn(4, bias_init=jax.nn.initializers.normal())
params = cell.init(jax.random.key(0), 3)
jaxrnn.save("net.safetensors", cell, params)
again, back = jaxrnn.load("net.safetensors")
xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
for a, b in ((params, back), (jaxrnn.unroll(cell, params, xs), jaxrnn.unroll(again, back, xs))):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    print(*(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))
"""


def insert(folder: Path, path: str, *after: tuple[str, str]) -> None:
    """Inserts each text after the only place of another."""
    text = (folder / path).read_text(encoding="utf-8")
    for place, inserted in after:
        assert text.count(place) == 1, (path, place)
        text = text.replace(place, place + inserted)
    (folder / path).write_text(text, encoding="utf-8")


def add_file(folder: Path) -> None:
    shutil.copy(Path(__file__).parent / "recipe" / "ugrnn.py", folder / "jaxrnn" / "cells")


def add_names_of_cells(folder: Path) -> None:
    insert(
        folder,
        "jaxrnn/cells/__init__.py",
        (", rnn, rnn_step\n", "from jaxrnn.cells.ugrnn import UGRNNConfig, UGRNNParams, ugrnn, ugrnn_step\n"),
        ('    "rnn_step",\n', '    "UGRNNConfig", "UGRNNParams", "ugrnn", "ugrnn_step",\n'),
    )


def add_family(folder: Path) -> None:
    insert(folder, "jaxrnn/cells/__init__.py", ("Family(indrnn, IndRNNConfig),\n", "    Family(ugrnn, UGRNNConfig),\n"))


def add_public_names(folder: Path) -> None:
    insert(
        folder,
        "jaxrnn/__init__.py",
        ("    weight_gradient,\n)", "\nfrom jaxrnn.cells import UGRNNParams, ugrnn, ugrnn_step"),
        ('    "rnn_step",\n', '    "UGRNNParams", "ugrnn", "ugrnn_step",\n'),
    )


def add_row(folder: Path) -> None:
    insert(folder, "tests/support/registry.py", (', activation="tanh"),\n', '    "ugrnn": lambda: jaxrnn.ugrnn(H),\n'))


def add_equations(folder: Path) -> None:
    insert(folder, "tests/support/in_numpy.py", ("    return ((1 - f) * h + f * n,) * 2\n\n", NUMPY))
    insert(folder, "tests/support/in_numpy.py", ("\nSTEPS = {", '"ugrnn": ugrnn, '))


def add_to_readme(folder: Path) -> None:
    insert(folder, "README.md", ("| cell | forms |\n|---|---|\n", "| `ugrnn` | update-gate network |\n"))


def add_to_page(folder: Path) -> None:
    printed = run(folder, "-c", "from jaxrnn.sequence import registry; print(registry.table())").stdout.strip()
    text = (folder / PAGE).read_text(encoding="utf-8")
    assert registry.table() in text
    (folder / PAGE).write_text(text.replace(registry.table(), printed), encoding="utf-8")


# The steps of CONTRIBUTING.md, and what is said without each.
RECIPE: dict[Callable[[Path], None], str] = {
    add_file: "No module named 'jaxrnn.cells.ugrnn'",
    add_names_of_cells: "name 'ugrnn' is not defined",
    add_family: "jaxrnn/cells/__init__.py: FAMILIES has no row for the factory of jaxrnn/cells/ugrnn.py",
    add_public_names: "jaxrnn/__init__.py: __all__ has no 'ugrnn_step'",
    add_row: "tests/support/registry.py: CELLS has no row made by ugrnn",
    add_equations: "tests/support/in_numpy.py: STEPS has no 'ugrnn', the first word of the row 'ugrnn'",
    add_to_readme: "README.md: the table of cells has no `ugrnn`",
    add_to_page: f"{PAGE} expected the table that `python -c",
}


def copy_with_cell(folder: Path, left_out: Collection[Callable[[Path], None]] = ()) -> Path:
    """A copy of the repository in which the recipe was followed, but for the steps that are left out."""
    for name in ("jaxrnn", "tests", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for path in (*ROOT.glob("*.md"), ROOT / "pyproject.toml"):
        shutil.copy(path, folder)
    for add in RECIPE:
        if add not in left_out:
            add(folder)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the folder, whose packages it imports, without the settings of this run of pytest."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def run_tests(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-v", *arguments)


def test_cell_added_by_the_recipe_passes_its_tests_and_can_be_saved(tmp_path):
    folder = copy_with_cell(tmp_path)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m pytest ((?:[^\n]|\\\n)+) -k mgu$", page, re.M)
    said = run_tests(folder, *command.replace("\\\n", "").split(), "-k", "ugrnn")
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-1000:]
    passed = set(re.findall(r"::(\w+)\S* PASSED", said.stdout))
    contract = (ROOT / "tests" / "sequence" / "test_contract.py").read_text(encoding="utf-8")
    of_every_cell = re.findall(r"^@(?:cells|pairs)\n(?:@.*\n)*def (\w+)", contract, re.M)
    assert len(of_every_cell) > 12
    assert passed >= {
        *of_every_cell,
        "test_family_of_a_file_is_complete",
        "test_step_equals_its_equations_in_numpy",
        "test_cells_of_equal_options_are_equal",
        "test_rebuilt_cells_of_every_family_are_traced_once",
        "test_odd_options_of_a_factory_are_refused",
        "test_cells_survive_a_round_trip",
        "test_values_and_gradients_equal_one_device",
        "test_recurrent_spectrum_equals_numpy",
        "test_docstring_examples_run",
    }
    said = run(folder, "-c", ROUND_TRIP)
    assert said.stdout.split() == ["True"] * (3 + 2), said.stderr[-1000:]


@pytest.mark.parametrize("steps", [
    {add_file}, {add_names_of_cells}, {add_family}, {add_equations}, {add_public_names, add_row, add_to_readme, add_to_page},
], ids=lambda steps: "-".join(sorted(step.__name__ for step in steps)))  # fmt: skip
def test_steps_that_are_left_out_are_named(steps, tmp_path):
    folder = copy_with_cell(tmp_path, steps)
    said = run(folder, "-c", "import jaxrnn")
    if said.returncode == 0:
        files = ("tests/cells/test_families.py", "tests/sequence/test_registry.py")
        said = run_tests(folder, *files, "-k", "complete or page", "--noconftest")  # its checks of shapes take long
    assert said.returncode != 0
    for step, message in RECIPE.items():
        assert (message in said.stdout + said.stderr) == (step in steps), step.__name__
