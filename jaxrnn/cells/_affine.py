"""From the affine form of a cell, s_t = a_t ⊙ s_{t-1} + b_t, to its rule for back-propagation through time.

    δs_t     = (δs_t from step t+1) + (cotangent of s_t from y_t)
    δs_{t-1} = a_t ⊙ δs_t      δb_t = δs_t      δa_t = δs_t ⊙ s_{t-1}

Coefficients and their cotangents are computed for many steps at once, outside the loops over time.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._bound import Bound
from jaxrnn._types import Affine, Params, PyTree, Rule, State, Tape


def times(a: State, b: State) -> State:
    """a ⊙ b, leaf by leaf."""
    return jax.tree.map(jnp.multiply, a, b)


def plus(a: State, b: State) -> State:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def read(affine: Affine, params: Params, states: State, xs: PyTree) -> PyTree:
    """The outputs of these steps."""
    return states if affine.read is None else affine.read(params, states, xs)


def read_backward(
    affine: Affine, params: Params, states: State, xs: PyTree, dys: PyTree
) -> tuple[State, tuple[Params, PyTree] | None]:
    """The cotangents of states, and of parameters and inputs; `None` where the output is the state."""
    if affine.read_backward is None:
        return dys, None
    dstates, *others = affine.read_backward(params, states, xs, dys)
    return dstates, (others[0], others[1])


def _project(affine: Affine, params: Params, xs: PyTree) -> PyTree:
    return *affine.coefficients(params, xs), None if affine.read is None else xs


def _forward(affine: Affine, params: Params, state: State, z: PyTree):
    a, b, kept, x = z
    after = plus(times(a, state), b)
    return after, read(affine, params, after, x), (a, kept, x)


def _backward(affine: Affine, params: Params, tape: Tape, dstate: State, dy: PyTree):
    a, _, x = tape.residual
    dread, _ = read_backward(affine, params, tape.after, x, dy)
    dstate = plus(dstate, dread)
    return times(a, dstate), (dstate, None if affine.read is None else dy)


def _accumulate(affine: Affine, params: Params, xs: PyTree, tape: Tape, deltas: PyTree):
    db, dys = deltas
    cotangents = affine.coefficients_backward(params, xs, tape.residual[1], times(db, tape.before), db)
    if affine.read is None:
        return cotangents
    _, of_read = read_backward(affine, params, tape.after, xs, dys)
    return jax.tree.map(jnp.add, cotangents, of_read)


def affine_rule(affine: Any, matrices: tuple[str, ...] = ()) -> Rule:
    """The rule of a cell whose step is affine and diagonal in the state.

    Args:
        affine: the step as a :class:`jaxrnn.Affine`, functions of many steps at once.
        matrices: names of the fields of the parameters that enter matrix products.

    Returns:
        A :class:`Rule` that every implementation with a hand-written backward pass can run.

    Raises:
        TypeError: if `affine` is something else, or has one of `read` and `read_backward` alone.

    Example:
        >>> import jax, jaxrnn
        >>> rule = jaxrnn.min_gru(4).rule
        >>> jaxrnn.affine_rule(rule.affine, rule.matrices) == rule
        True
    """
    if not isinstance(affine, Affine):
        raise TypeError(f"affine_rule: affine expected a jaxrnn.Affine, got {type(affine).__name__}")
    if (affine.read is None) != (affine.read_backward is None):
        raise TypeError("affine_rule: affine expected read and read_backward both, or neither; got one of them")
    parts: Any = (Bound(part, affine) for part in (_project, _forward, _backward, _accumulate))
    return Rule(*parts, matrices=tuple(matrices), affine=affine)


def is_affine(rule: Rule) -> bool:
    """Whether the affine form of a rule stands for its step: `False` if `forward` was replaced by another."""
    return rule.affine is not None and rule.forward == Bound(_forward, rule.affine)
