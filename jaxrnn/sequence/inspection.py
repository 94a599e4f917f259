"""What functions of the user's do inside a cell, read off their traces: an activation, or a whole cell of one's own.

Cells that have functions of the library alone are not traced here.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxrnn._types import Cell, Equations, Rule
from jaxrnn.cells._step import cast_floating
from jaxrnn.sequence.request import Inputs

MOVES = ("transpose", "reshape", "slice", "squeeze", "broadcast_in_dim")  # primitives that do not change numbers


def is_own(value: Any, besides: tuple[type, ...] = ()) -> bool:
    """Whether a function, or a record of functions but one of the types `besides`, has any that is the user's."""
    if isinstance(value, besides):
        return False
    if isinstance(value, functools.partial):
        return is_own((value.func, value.args, tuple(value.keywords.values())), besides)
    if isinstance(value, tuple):
        return any(is_own(one, besides) for one in value)
    return callable(value) and not str(getattr(value, "__module__", "")).startswith("jaxrnn.")


def closes_over_traced_values(cell: Cell, inputs: Inputs) -> bool:
    """Whether the step or the rule reads values that are traced or differentiated, besides its arguments.

    A function with a derivative of its own cannot read such values: JAX would miss their part of the gradient.
    """
    if not inputs.time or not is_own(cell.equations):
        return False
    leaves, structure = jax.tree.flatten((inputs.params, inputs.state, inputs.xs))
    types = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    try:
        _check_closures(cell.equations, structure, types)
    except _ClosesOverTracedValues:
        return True
    except Exception:  # what does not trace here raises its own error where it runs
        return False
    return False


class _ClosesOverTracedValues(Exception):
    """Raised instead of returned, because the cache below then keeps neither the function nor the values."""


@functools.lru_cache(maxsize=1024)
def _check_closures(equations: Equations, structure: Any, types: tuple[Any, ...]) -> None:
    def step(params: Any, state: Any, xs: Any) -> Any:
        x, rule = jax.tree.map(lambda leaf: leaf[0], xs), equations.rule
        by_rule = rule.forward(params, state, rule.project(params, x))[:2] if isinstance(rule, Rule) else None
        return equations.step(params, state, x), by_rule

    constants = jax.make_jaxpr(step)(*jax.tree.unflatten(structure, types)).consts
    if any(isinstance(constant, Tracer) for constant in constants):
        raise _ClosesOverTracedValues


def widened_matrices(cell: Cell, inputs: Inputs, compute_dtype: Any) -> list[str]:
    """The matrices of a rule of one's own that are not multiplied in `compute_dtype`."""
    rule = cell.rule
    if not isinstance(rule, Rule) or not inputs.time or not is_own(rule):
        return []
    names = [name for name in rule.matrices if getattr(inputs.params, name, None) is not None]
    others = inputs.params._replace(**dict.fromkeys(names))
    matrices = {name: cast_floating(getattr(inputs.params, name), compute_dtype) for name in names}

    def products(matrices: dict[str, Any], others: Any, state: Any, xs: Any) -> Any:
        params = others._replace(**matrices)
        return rule.forward(params, state, rule.project(params, jax.tree.map(lambda leaf: leaf[0], xs)))

    jaxpr = jax.make_jaxpr(products)(matrices, others, inputs.state, inputs.xs).jaxpr
    leaves = [name for name in sorted(matrices) for _ in jax.tree.leaves(matrices[name])]
    return sorted(set(_widened(jaxpr, dict(zip(jaxpr.invars, leaves, strict=False)))))


def _widened(jaxpr: Any, names: dict[Any, str]) -> Iterator[str]:
    """The names of variables that are converted, or multiplied with another dtype, inside calls as well."""
    for equation in jaxpr.eqns:
        read = [None if hasattr(atom, "val") else names.get(atom) for atom in equation.invars]
        found = next(filter(None, read), None)
        if found is None:
            continue
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(read):
            yield from _widened(inner, {v: name for v, name in zip(inner.invars, read, strict=True) if name})
        elif equation.primitive.name in MOVES:
            names = {**names, equation.outvars[0]: found}
        elif equation.primitive.name == "convert_element_type" or len(_dtypes(equation.invars)) > 1:
            yield found


def _dtypes(atoms: Any) -> set[Any]:
    dtypes = {atom.aval.dtype for atom in atoms if hasattr(atom.aval, "dtype")}
    return {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
