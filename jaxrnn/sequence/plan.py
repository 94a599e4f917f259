"""What every way of running a cell over time is handed."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool

from jaxrnn._types import Cell, Params, PyTree, Rule, State
from jaxrnn.cells._step import cast_floating


class Plan(NamedTuple):
    """What shapes the program: static and hashable."""

    cell: Cell
    reverse: bool
    return_states: bool
    compute_dtype: Any
    clip_gradient: float | None  # what a step hands to the one before it is clipped to ± this
    keep_gates: bool  # for the backward pass; if not, they are computed anew from the states
    segment: int  # steps projected, and accumulated, at a time
    accumulate_once: bool  # after the whole sequence; if not, after every segment


class Inputs(NamedTuple):
    """What flows through it: checked, in their final dtypes, padding already zeroed."""

    params: Params
    xs: PyTree  # leaves (T, *B, ·)
    state: State  # before the first step read
    mask: Bool[Array, "T *B"] | None  # which steps take part
    resets: Bool[Array, "T *B"] | None  # which steps are entered with `reset_state`
    reset_state: State | None
    cuts: Bool[Array, "T"] | None  # which steps are entered without a gradient


def rule_of(plan: Plan) -> Rule:
    """The rule of a cell that was chosen because it has one."""
    assert plan.cell.rule is not None
    return plan.cell.rule


def operands(plan: Plan, params: Params) -> Params:
    """`params` with the matrices in `compute_dtype`, if there is one."""
    if plan.compute_dtype is None or plan.cell.rule is None:
        return params
    names = [name for name in plan.cell.rule.matrices if getattr(params, name) is not None]
    return params._replace(**{name: cast_floating(getattr(params, name), plan.compute_dtype) for name in names})


def step(plan: Plan, params: Params, state: State, x: PyTree) -> tuple[State, PyTree]:
    """One step of the cell, its state kept in the dtype it came in."""
    rule = plan.cell.rule
    if plan.compute_dtype is None or rule is None:
        after, y = plan.cell.step(params, state, x)
    else:
        params = operands(plan, params)
        after, y, _ = rule.forward(params, state, rule.project(params, x))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), y
