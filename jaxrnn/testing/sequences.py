"""A cell over time: the implementations that run it against a Python loop over `step`."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Rule
from jaxrnn.cells._step import cast_floating, is_complex
from jaxrnn.sequence.inspection import widened_matrices
from jaxrnn.sequence.request import Inputs
from jaxrnn.sequence.unroll import unroll
from jaxrnn.testing.faults import Fault, called, name_of, value_faults
from jaxrnn.testing.numbers import BATCH, TIME, Case

MASK = np.asarray([[1, 1], [1, 0], [0, 1], [1, 1], [1, 0]], bool)
RESETS = np.asarray([[0, 1], [0, 0], [1, 0], [0, 1], [0, 0]], bool)
SCENARIOS: dict[str, dict[str, Any]] = {
    "mask and resets": {"mask": MASK, "resets": RESETS, "return_states": True},
    "reverse, lengths and segments": {"reverse": True, "lengths": np.asarray([TIME, 2]), "checkpoint": 2},
}


def sequence_faults(case: Case, tolerance: float) -> Iterator[Fault]:
    """Values and gradients of `unroll`, with what an implementation does around a step."""
    rule = case.cell.rule
    names = ["scan"] + (["bptt"] if isinstance(rule, Rule) else [])
    names += ["associative"] if isinstance(rule, Rule) and rule.affine is not None else []
    first = jax.tree.map(lambda leaf: leaf[0], case.before)
    for scenario, options in SCENARIOS.items():
        wanted = called(f"unroll, {scenario}", _differentiated, case, first, options, "reference")
        for name in names:
            got = called(f"unroll by {name}, {scenario}", _differentiated, case, first, options, name)
            of = "what a loop over step gives, differentiated by JAX"
            yield from value_faults(f"unroll by {name}, {scenario}", got, wanted, tolerance, of)


def _differentiated(case: Case, first: Any, options: dict[str, Any], implementation: str) -> dict[str, Any]:
    """Values, and gradients of a loss of all of them, by name."""
    given = dict(options)
    if "resets" in given:
        given["reset_state"] = jax.tree.map(lambda leaf: leaf[1], case.before)
    if implementation == "reference":
        given.pop("checkpoint", None)
    xs = jnp.where(MASK[..., None], case.xs, jnp.nan) if "mask" in options else case.xs

    def loss(params: Any, xs: Any, state: Any) -> Any:
        found = unroll(case.cell, params, xs, state, implementation=implementation, key=None, **given)
        return sum(jnp.sum(jnp.sin(jnp.abs(leaf))) for leaf in jax.tree.leaves(found)), found

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, values), gradients = run(case.params, xs, first)
    return {"values": values, **dict(zip(("dparams", "dxs", "dstate"), gradients, strict=True))}


def dtype_faults(case: Case) -> Iterator[Fault]:
    """Outputs and gradients in the dtype of parameters and inputs."""
    cell = case.cell
    for dtype in (jnp.float32,) if is_complex(case.before) else (jnp.float32, jnp.bfloat16):
        params, xs = cast_floating((case.params, case.xs), dtype)

        def loss(params: Any, xs: Any) -> Any:
            ys = unroll(cell, params, xs, key=None)[1]
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(ys)), ys

        part = f"unroll in {jnp.dtype(dtype).name}"
        gradients, ys = called(part, jax.eval_shape, jax.grad(loss, (0, 1), has_aux=True), params, xs)
        for path, leaf in jax.tree.leaves_with_path({"ys": ys, "gradients": gradients}):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != dtype:
                yield Fault(part, name_of(path), f"expected outputs and gradients in that dtype, got {leaf.dtype}")


def notes(case: Case) -> Iterator[str]:
    """What the cell does not support, without being wrong."""
    rule = case.cell.rule
    if not isinstance(rule, Rule):
        yield "no rule: the gradient is that of JAX through the scan, and compute_dtype rounds all parameters"
    elif hasattr(case.params, "_fields"):
        first = jax.tree.map(lambda leaf: leaf[0], case.before)
        params, xs, state = cast_floating((case.params, case.xs, first), jnp.float32)
        inputs = Inputs(params, xs, state, None, None, None, None)
        with jax.numpy_dtype_promotion("standard"):  # a strict one refuses a product that widens
            widened = widened_matrices(case.cell, inputs, jnp.bfloat16)
        if widened:
            yield f"compute_dtype is refused: products widen {', '.join(widened)}"


assert MASK.shape == RESETS.shape == (TIME, BATCH)
