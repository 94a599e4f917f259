"""Every example that the documentation shows runs, and says what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrnn

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn.")]
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def as_users_have_it():
    """JAX's own defaults, not the strict ones of these tests."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, as_users_have_it):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_have_examples():
    public = [getattr(jaxrnn, name) for name in jaxrnn.__all__]
    functions = [f for f in public if callable(f) and not isinstance(f, type)]
    assert len(functions) >= 7
    for f in functions:
        assert ">>>" in f.__doc__, f.__name__
        assert "Raises:" in f.__doc__, f.__name__


@pytest.mark.usefixtures("as_users_have_it", "unhooked")
def test_readme_blocks():
    """The blocks of the README, in order, in one namespace."""
    assert len(README) == 7
    namespace: dict = {}
    for block in README:
        exec(compile(block, "README.md", "exec"), namespace)
        if "label" in namespace and "one_for_each" not in namespace:
            namespace["one_for_each"] = namespace["label"].shape, namespace["both_ends"].shape
    assert namespace["one_for_each"] == ((16, 128), (16, 128))
    assert namespace["sampled"].shape == (20, 16, 12)
    assert namespace["cost"] == pytest.approx(np.log(12), rel=1e-5)  # a read-out of zeros knows nothing
    assert namespace["ys"].shape == (20, 4, 32)
    assert not namespace["ys"][:, 2].any()


def test_tour_is_short():
    assert len([line for line in README[0].splitlines() if line.strip()]) <= 22


def test_readme_names_the_commands_that_ci_runs():
    text, ci = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = 'python -m pip install -e ".[test]" && python -m pytest'
    assert command in text
    assert command in ci
