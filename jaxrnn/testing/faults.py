"""What is wrong with a cell, by its part and the leaf, and comparisons that find it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._describe import cut, describe
from jaxrnn._types import PyTree


class Fault(NamedTuple):
    """Something that a part of a cell does wrong.

    Attributes:
        part: the function or the field of the cell: `step`, `rule.backward`, `matrices`, ...
        leaf: where in what the part returns, such as `w_h`; "" for all of it.
        message: what was expected, and what came.
    """

    part: str
    leaf: str
    message: str

    def __str__(self) -> str:
        return cut(f"{self.part}{f', {self.leaf}' if self.leaf else ''}: {self.message}", 300)


class Failed(Exception):
    """A part raised an error, so that nothing after it can be checked."""

    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


def called(part: str, f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)`; an error that it raises is a fault of the part."""
    try:
        return f(*args)
    except Failed:
        raise
    except Exception as error:  # a function of the user's may raise anything
        said = cut(str(error).split("\n", maxsplit=1)[0], 200)
        raise Failed(Fault(part, "", f"raised {type(error).__name__}: {said}")) from error


def parts_of(part: str, found: Any, expected: str, count: int) -> tuple[Any, ...]:
    """The entries of a tuple that a part returned."""
    if not isinstance(found, tuple) or len(found) != count:
        got = f"a tuple of {len(found)}" if isinstance(found, tuple) else describe(found)
        raise Failed(Fault(part, "", f"expected to return {expected}, got {got}"))
    return found


def name_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def structure_faults(part: str, got: PyTree, wanted: PyTree, of: str) -> Iterator[Fault]:
    """Leaves that have another place, shape or dtype than those of `wanted`, which `of` names."""
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        yield Fault(part, "", f"expected the structure of {of}, {describe(wanted)}, got {describe(got)}")
        return
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            yield Fault(part, name_of(path), f"expected shape {jnp.shape(b)} as {of}, got {jnp.shape(a)}")
        elif jnp.result_type(a) != jnp.result_type(b):
            yield Fault(part, name_of(path), f"expected {jnp.result_type(b)} as {of}, got {jnp.result_type(a)}")


def value_faults(part: str, got: PyTree, wanted: PyTree, tolerance: float, of: str) -> Iterator[Fault]:
    """Leaves that differ from those of `wanted` by more than `tolerance` of the largest entry."""
    wrong = list(structure_faults(part, got, wanted, of))
    if wrong:
        yield from wrong
        return
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        gap = gap_of(np.asarray(a), np.asarray(b))
        if not gap <= tolerance:
            yield Fault(part, name_of(path), f"expected {of}, differs by {gap:.1e} of the largest entry")


def gap_of(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest entry of `b`, which counts as 1e-3 at least."""
    if not b.size:
        return 0.0
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))
