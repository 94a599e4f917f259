"""What functions of the user's do inside a cell, read off their traces: an activation, or a whole cell of one's own.

Cells that have functions of the library alone are not traced here.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxrnn._bound import Bound
from jaxrnn._types import Cell, Equations, Rule, Tape
from jaxrnn.cells._step import cast_floating
from jaxrnn.sequence.request import Inputs

MOVES = ("transpose", "reshape", "slice", "squeeze", "broadcast_in_dim")  # primitives that do not change numbers
UPDATES = ("scatter", "dynamic_update_slice")  # or those of their first operand only, as for a gate that is fixed


def is_own(value: Any, besides: tuple[type, ...] = ()) -> bool:
    """Whether a function, or a record of functions but one of the types `besides`, has any that is the user's."""
    if isinstance(value, besides):
        return False
    if isinstance(value, Bound) and not besides:
        return value.once("is_own", is_own, (value.func, value.args, tuple(value.keywords.values())))
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
    found = {name: _field(inputs.params, name) for name in rule.matrices}
    matrices = {name: cast_floating(value, compute_dtype) for name, value in found.items() if value is not None}
    return sorted(
        {
            read[0]
            for equation, read in (*_uses(*_step(rule, inputs, matrices)), *_uses(*_step_back(rule, inputs, matrices)))
            if equation.primitive.name == "convert_element_type" or len(_dtypes(equation.invars)) > 1
        }
    )


def multiplied_fields(rule: Rule, inputs: Inputs) -> set[str]:
    """The fields of the parameters that enter matrix products, as they are or moved."""
    fields = {name: _field(inputs.params, name) for name in field_names(inputs.params)}
    uses = _uses(*_step(rule, inputs, fields))
    return {name for equation, read in uses if equation.primitive.name == "dot_general" for name in read}


def field_names(params: Any) -> list[str]:
    """The names of the arrays in a record, as `Rule.matrices` has them: "cell.w" is one of a record in it."""
    names = []
    for name in getattr(params, "_fields", ()):
        value = getattr(params, name)
        names += [name] if hasattr(value, "dtype") else [f"{name}.{inner}" for inner in field_names(value)]
    return names


def has_field(params: Any, path: str) -> bool:
    """Whether a record has a field of such a name, which may be `None`."""
    name, _, rest = path.partition(".")
    return name in getattr(params, "_fields", ()) and (not rest or has_field(getattr(params, name), rest))


def _field(params: Any, path: str) -> Any:
    """What stands in a record under such a name; `None` if there is nothing."""
    for name in path.split("."):
        params = getattr(params, name, None)
    return params


def _with_field(params: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return params._replace(**{name: _with_field(getattr(params, name), rest, value) if rest else value})


def _with_fields(params: Any, fields: dict[str, Any]) -> Any:
    for path, value in fields.items():
        params = _with_field(params, path, value)
    return params


Named = tuple[Any, dict[Any, str]]  # a jaxpr, and the fields of the parameters that are variables of it


def _step(rule: Rule, inputs: Inputs, fields: dict[str, Any]) -> Named:
    """`project` and `forward` of one step."""

    def step(params: Any) -> Any:
        x = jax.tree.map(lambda leaf: leaf[0], inputs.xs)
        return rule.forward(params, inputs.state, rule.project(params, x))

    return _traced(step, inputs, fields)


def _step_back(rule: Rule, inputs: Inputs, fields: dict[str, Any]) -> Named:
    """`backward` and `accumulate` of one step."""
    x = jax.tree.map(lambda leaf: leaf[:1], inputs.xs)

    def step(params: Any) -> Any:
        return rule.forward(params, inputs.state, rule.project(params, jax.tree.map(lambda leaf: leaf[0], x)))

    after, y, residual = jax.eval_shape(step, inputs.params)
    types = (Tape(jax.tree.map(jnp.zeros_like, inputs.state), after, residual), after, y)
    tape, dstate, dy = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), types)

    def back(params: Any) -> Any:
        prepared = params if rule.prepare is None else rule.prepare(params)
        before, delta = rule.backward(prepared, tape, dstate, dy)
        return before, rule.accumulate(params, x, *jax.tree.map(lambda leaf: leaf[None], (tape, delta)))

    return _traced(back, inputs, fields)


def _traced(f: Any, inputs: Inputs, fields: dict[str, Any]) -> Named:
    """The jaxpr of a function of parameters with these fields."""
    others = _with_fields(inputs.params, dict.fromkeys(fields))
    jaxpr = jax.make_jaxpr(lambda fields: f(_with_fields(others, fields)))(fields).jaxpr
    leaves = [name for name in sorted(fields) for _ in jax.tree.leaves(fields[name])]
    return jaxpr, dict(zip(jaxpr.invars, leaves, strict=True))


def _uses(jaxpr: Any, names: dict[Any, str]) -> Iterator[tuple[Any, list[str]]]:
    """The equations that read named variables, but for calls, which are looked into, and moves, which are followed."""
    for equation in jaxpr.eqns:
        by_operand = [None if hasattr(atom, "val") else names.get(atom) for atom in equation.invars]
        read = [name for name in by_operand if name is not None]
        if not read:
            continue
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(by_operand):
            yield from _uses(inner, {v: name for v, name in zip(inner.invars, by_operand, strict=True) if name})
        elif equation.primitive.name in MOVES or (equation.primitive.name in UPDATES and by_operand[0] is not None):
            names = {**names, equation.outvars[0]: read[0]}
        else:
            yield equation, read


def _dtypes(atoms: Any) -> set[Any]:
    dtypes = {atom.aval.dtype for atom in atoms if hasattr(atom.aval, "dtype")}
    return {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
