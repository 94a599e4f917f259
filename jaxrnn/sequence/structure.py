"""Whether the functions of a rule of one's own return what the driver unpacks, read off their traces.

A mistake is then named by its part, where a loop would say "too many values to unpack". Rules that
have functions of the library alone are not traced here.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._describe import cut, describe
from jaxrnn._types import Cell, PyTree, Rule, Tape
from jaxrnn.sequence.inspection import is_own
from jaxrnn.sequence.request import Inputs, Options
from jaxrnn.sequence.sharding import varies

Types = PyTree  # of jax.ShapeDtypeStruct


def check_forward(where: str, cell: Cell, inputs: Inputs) -> None:
    """Raises unless `rule.project` and `rule.forward` of a rule of one's own return what they should."""
    rule = cell.rule
    arrays = inputs.params, inputs.state, inputs.xs
    if isinstance(rule, Rule) and inputs.time and not varies(arrays) and is_own(rule):
        _known(_forward, rule, (where, cell.name), arrays)


def check_backward(where: str, options: Options, inputs: Inputs) -> None:
    """Raises unless `rule.backward` and `rule.accumulate` of a rule of one's own return what they should."""
    arrays = inputs.params, inputs.state, inputs.xs
    if inputs.time and not varies(arrays) and is_own(options.rule):  # inside shard_map types say more than shapes
        _known(_backward, options.rule, (where, "the cell"), arrays)


def _known(check: Callable[..., None], rule: Rule, names: tuple[str, str], arrays: PyTree) -> None:
    """`check` of these types, once for all calls."""
    leaves, structure = jax.tree.flatten(arrays)
    _once(check, rule, names, structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))


@functools.lru_cache(maxsize=1024)
def _once(check: Any, rule: Rule, names: tuple[str, str], structure: Any, types: tuple[Any, ...]) -> None:
    check(rule, names, *jax.tree.unflatten(structure, types))


def _at(names: tuple[str, str], part: str) -> str:
    where, cell = names
    return f"{where}: {part} of {cut(cell, 80)}"


def _traced(at: str, f: Callable[..., Any], *types: Types) -> Any:
    """The types that a function of the user's returns; an error that it raises says which function it was."""
    try:
        return jax.eval_shape(f, *types)
    except Exception as error:
        error.add_note(f"{at} was traced with {cut(describe(types), 200)}")
        raise


def _parts(at: str, found: Any, expected: str, count: int) -> tuple[Any, ...]:
    if not isinstance(found, tuple) or len(found) != count:
        got = f"a tuple of {len(found)}" if isinstance(found, tuple) else describe(found)
        raise TypeError(f"{at} expected to return {expected}, got {got}")
    return found


def _same(at: str, name: str, got: Types, wanted: Types, of: str, dtypes: bool = False) -> None:
    """Raises unless `got` has the structure and shapes of `wanted`, and its dtypes if they matter."""
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        raise TypeError(
            f"{at} expected {name} in the structure of {of}, {cut(describe(wanted), 120)}; "
            f"got {cut(describe(got), 120)}"
        )
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        leaf = jax.tree_util.keystr(path)
        if a.shape != b.shape:
            raise ValueError(f"{at} expected {name}{leaf} of shape {b.shape}, as {of} has, got {a.shape}")
        if dtypes and a.dtype != b.dtype:
            raise TypeError(f"{at} expected {name}{leaf} of dtype {b.dtype}, as {of} has, got {a.dtype}")


def _forward(rule: Rule, names: tuple[str, str], params: Types, state: Types, xs: Types) -> None:
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    z = _traced(_at(names, "rule.project"), rule.project, params, x)
    at = _at(names, "rule.forward")
    after, _, _ = _parts(at, _traced(at, rule.forward, params, state, z), "(state, y, residual)", 3)
    _same(at, "the state", after, state, "the state it is given", dtypes=True)


def _backward(rule: Rule, names: tuple[str, str], params: Types, state: Types, xs: Types) -> None:
    """Of one step, with the leading axis that `accumulate` reads."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), xs)
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    after, y, residual = jax.eval_shape(lambda p, s, x: rule.forward(p, s, rule.project(p, x)), params, state, x)
    tape = Tape(state, after, residual)

    def backward(params: Any, *given: Any) -> Any:  # what `prepare` returns need not be arrays
        return rule.backward(params if rule.prepare is None else rule.prepare(params), *given)

    at = _at(names, "rule.backward")
    found = _parts(at, _traced(at, backward, params, tape, after, y), "(dstate_before, delta)", 2)
    _same(at, "dstate_before", found[0], state, "the state")
    at, over_time = _at(names, "rule.accumulate"), lambda tree: jax.tree.map(_with_time, tree)
    found = _traced(at, rule.accumulate, params, one, over_time(tape), over_time(found[1]))
    dparams, dxs = _parts(at, found, "(dparams, dxs)", 2)
    _same(at, "dparams", dparams, params, "params")
    _same(at, "dxs", dxs, one, "xs")


def _with_time(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *jnp.shape(leaf)), leaf.dtype)
