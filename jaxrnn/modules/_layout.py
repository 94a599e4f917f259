"""Converts sequences and states between PyTorch's layout and that of the functional API."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._types import State
from jaxrnn.cells import LSTMState
from jaxrnn.layers import directions, from_directions
from jaxrnn.network import Network


def time_first(where: str, xs: Any, input_size: int, batch_first: bool) -> Array:
    """`(T, *B, I)` of a module's input, checked."""
    xs = _checks.floating(where, "xs", xs)
    shape = "(*B, T, I)" if batch_first else "(T, *B, I)"
    if xs.ndim < 2:
        raise ValueError(f"{where}: xs expected shape {shape}, got {xs.shape}; a sequence of scalars has I = 1")
    if xs.shape[-1] != input_size:
        raise ValueError(
            f"{where}: xs expected shape {shape} with I = input_size = {input_size}, got {xs.shape}; "
            "features are the last axis"
        )
    return jnp.moveaxis(xs, -2, 0) if batch_first else xs


def module_layout(ys: Array, batch_first: bool) -> Array:
    """The outputs `(T, *B, ·)` in a module's layout."""
    return jnp.moveaxis(ys, 0, -2) if batch_first else ys


def steps_time_first(where: str, name: str, value: Any, steps: tuple[int, ...], batch_first: bool) -> Array | None:
    """A boolean for every step, from a module's layout to `(T, *B)`, which is `steps`; checked."""
    if value is None:
        return None
    if batch_first:
        value, shape = _checks.array(where, name, value), (*steps[1:], steps[0])
        if value.shape != shape:
            raise ValueError(
                f"{where}: {name} expected shape (*B, T) = {shape}, got {value.shape}; "
                "batch_first is True, and it is not broadcast"
            )
        value = jnp.moveaxis(value, -1, 0)
    return _checks.step_mask(where, name, value, steps)


def stack_states(states: State) -> Any:
    """`(L*D, *B, ·)` from states by layer; the row of a layer and direction is layer * D + direction."""
    rows = [row for layer in states for row in directions(layer)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def module_states(states: State) -> Any:
    """States by layer as a module returns them: those of an LSTM are a plain tuple."""
    hx = stack_states(states)
    return tuple(hx) if isinstance(hx, LSTMState) else hx


def unstack_states(where: str, network: Network, hx: Any, batch_shape: tuple[int, ...], batch_first: bool) -> State:
    """States by layer from `h_0`, or `(h_0, c_0)` of an LSTM, checked; `None` stays `None`."""
    if hx is None:
        return None
    expected = jax.eval_shape(lambda: stack_states(network.initial_state(batch_shape)))
    hint = "batch_first does not touch it" if batch_first else "is xs batch-major, or the state that of another batch?"
    if hasattr(expected, "_fields"):
        names = [f"{field}_0" for field in expected._fields]
        order = f"({', '.join(names)})"
        if not isinstance(hx, (tuple, list)) or len(hx) != len(names):
            raise TypeError(f"{where}: hx expected the tuple {order}, got {_checks.describe(hx)}")
        hint = f"the order is {order}; {hint}"
        hx = type(expected)(*(_rows(where, *one, hint) for one in zip(names, hx, expected, strict=True)))
    else:
        if isinstance(hx, (tuple, list)):
            raise TypeError(f"{where}: hx expected the array h_0, got {_checks.describe(hx)}; only an LSTM has a c_0")
        hx = _rows(where, "hx", hx, expected, hint)

    rows = itertools.count()

    def next_row() -> Any:
        n = next(rows)
        return jax.tree.map(lambda a: a[n], hx)

    return tuple(from_directions([next_row() for _ in directions(layer)]) for layer in network.layers)


def _rows(where: str, name: str, value: Any, expected: Any, hint: str) -> Array:
    if jnp.issubdtype(expected.dtype, jnp.complexfloating):
        value = _checks.complex_array(where, name, value)
    else:
        value = _checks.floating(where, name, value)
    if value.shape != expected.shape:
        raise ValueError(f"{where}: {name} expected shape (L*D, *B, ·) = {expected.shape}, got {value.shape}; {hint}")
    return value
