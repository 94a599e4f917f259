"""Whether the units of a cell of one's own can be sharded: its rule on the units of each device, against the whole.

The devices are emulated by `jax.vmap` with a named axis, over which `all_gather` and `psum_scatter` run too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._describe import cut
from jaxrnn._types import Cell, Placement, PyTree, Rule, State, Tape
from jaxrnn.sequence.sharding import is_by_head, join_gates, local_equations, split_gates

MOST_NUMBERS = 2**24  # in the parameters; a larger cell is traced, without numbers
TOLERANCE = 1e-3  # of the largest entry, in float32
PARTS = (
    "the state",
    "the output",
    "the cotangent of the state before",
    "the cotangent of a parameter",
    "the cotangent of x",
)


def check_own_cell(expected: str, cell: Cell, placement: Placement) -> None:
    """Raises unless every device can run its units by the cell's rule, and gives their share of the whole."""
    fault = _fault(cell, placement)
    if fault is not None:
        raise NotImplementedError(f"{expected}, got {_checks.describe(cell)}, {fault}")


def _fault(cell: Cell, placement: Placement) -> str | None:
    """Why the units cannot be sharded, or `None`."""
    if not isinstance(cell.rule, Rule) or cell.sample is not None:
        return "which has no rule, or noise"
    assert placement.hidden is not None
    devices = placement.mesh.shape[placement.hidden]
    if devices == 1:
        return None
    try:
        params = jax.eval_shape(lambda key: cell.init(key, 2), jax.random.key(0))
        if sum(leaf.size for leaf in jax.tree.leaves(params)) > MOST_NUMBERS:
            jax.eval_shape(lambda: _both(cell, placement, devices))
            return None
        with jax.ensure_compile_time_eval():
            whole, shares = _both(cell, placement, devices)
    except Exception as error:  # functions of the user's may raise anything
        said = cut(str(error).split("\n", maxsplit=1)[0], 120)
        return f"whose rule raises {type(error).__name__} on a device's share of the units: {said}"
    for part, a, b in zip(PARTS, whole, shares, strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            if not np.abs(np.asarray(x) - np.asarray(y)).max() <= TOLERANCE * np.abs(np.asarray(x)).max():
                return f"of which {part} differs between {devices} devices and one"
    return None


def _both(cell: Cell, placement: Placement, devices: int) -> tuple[PyTree, PyTree]:
    """One step and its transpose, at random numbers: of the whole, and put together from the devices' shares."""
    rng = np.random.default_rng(0)

    def random(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf + 0.5 * rng.standard_normal(leaf.shape).astype(leaf.dtype), tree)

    rule, own_rule = cell.rule, local_equations(cell.equations, placement).rule
    assert isinstance(rule, Rule)
    assert isinstance(own_rule, Rule)
    params = random(cell.init(jax.random.key(0), 2, jnp.float32))
    state, x = random(cell.initial_state((3,), jnp.float32)), random(jnp.zeros((3, 2), jnp.float32))
    y = jax.eval_shape(lambda: rule.forward(params, state, rule.project(params, x))[1])
    cotangents = random((jax.tree.map(jnp.zeros_like, state), jnp.zeros(y.shape, y.dtype)))
    hidden = jax.tree.leaves(state)[-1].shape[-1]

    def on_device(split: PyTree, state: State, cotangents: PyTree) -> Any:
        *values, dparams, dx = _step(own_rule, join_gates(split, params), state, x, *cotangents)
        return values, split_gates(dparams, hidden // devices), dx

    def share(leaf: Array, whole: Array) -> Array:
        return _by_head(devices, leaf) if is_by_head(whole) else _shared(devices, leaf)

    split = jax.tree.map(share, split_gates(params, hidden), params)
    rest = jax.tree.map(functools.partial(_shared, devices), (state, cotangents))
    values, dparams, dx = jax.vmap(on_device, axis_name=placement.hidden)(split, *rest)
    dparams = jax.tree.map(
        lambda d, whole: d.reshape(whole.shape) if is_by_head(whole) else _together(d), dparams, params
    )
    found = *jax.tree.map(_together, values), join_gates(dparams, params), dx.sum(0)
    return _step(rule, params, state, x, *cotangents), found


def _step(rule: Rule, params: PyTree, state: PyTree, x: Array, dstate: PyTree, dy: Array) -> tuple[PyTree, ...]:
    after, y, residual = rule.forward(params, state, rule.project(params, x))
    tape = Tape(state, after, residual)
    prepared = params if rule.prepare is None else rule.prepare(params)
    before, delta = rule.backward(prepared, tape, dstate, dy)
    one = jax.tree.map(lambda leaf: leaf[None], (x, tape, delta))
    dparams, dx = rule.accumulate(params, *one)
    return after, y, before, dparams, dx[0]


def _by_head(devices: int, leaf: Array) -> Array:
    """Each device's share of the heads."""
    return leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])


def _shared(devices: int, leaf: Array) -> Array:
    """Each device's share of the last axis, with a leading axis of devices."""
    return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], devices, leaf.shape[-1] // devices), -2, 0)


def _together(leaf: Array) -> Array:
    """The inverse of `_shared`."""
    leaf = jnp.moveaxis(leaf, 0, -2)
    return leaf.reshape(*leaf.shape[:-2], leaf.shape[-2] * leaf.shape[-1])
