"""The parts of a cell on their own: what makes it, its step, and the four functions of its rule."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._types import Cell, Rule, Tape
from jaxrnn.cells._step import cast_floating, is_complex
from jaxrnn.sequence.inspection import has_field, multiplied_fields
from jaxrnn.sequence.request import Inputs
from jaxrnn.testing.faults import Fault, called, name_of, parts_of, structure_faults, value_faults
from jaxrnn.testing.numbers import BATCH, Case


def making_faults(cell: Cell, input_size: int) -> Iterator[Fault]:
    """`init` and `initial_state`: their signatures, shapes and dtypes."""
    key = jax.random.key(0)
    called("init", jax.eval_shape, lambda: cell.init(key, input_size))
    narrow = () if is_complex(called("initial_state", jax.eval_shape, cell.initial_state)) else (jnp.bfloat16,)
    for dtype in (jnp.float64, *narrow):
        params = called("init", jax.eval_shape, lambda dtype=dtype: cell.init(key, input_size, dtype))
        yield from _dtype_faults("init", params, dtype)
        for shape in ((), (3, 2)):
            state = called("initial_state", jax.eval_shape, lambda s=shape, d=dtype: cell.initial_state(s, d))
            yield from _dtype_faults("initial_state", state, dtype)
            for path, leaf in jax.tree.leaves_with_path(state):
                if leaf.shape[: len(shape)] != shape:
                    message = f"expected a shape that starts with batch_shape {shape}, got {leaf.shape}"
                    yield Fault("initial_state", name_of(path), message)


def _dtype_faults(part: str, tree: Any, dtype: Any) -> Iterator[Fault]:
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != dtype:
            yield Fault(
                part, name_of(path), f"expected {jnp.dtype(dtype)} with dtype={jnp.dtype(dtype)}, got {leaf.dtype}"
            )


def step_faults(case: Case, tolerance: float) -> Iterator[Fault]:
    """`step`: the state keeps its structure, and no sequence of a batch reads another."""
    cell, params = case.cell, case.params
    before, x = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (case.before, case.xs))
    found = called("step", jax.jit(cell.step), params, before, x)
    after, y = parts_of("step", found, "(state, y)", 2)
    yield from structure_faults("step", after, before, "the state before")
    for path, leaf in jax.tree.leaves_with_path(y):
        if jnp.shape(leaf)[:1] != (BATCH,):
            yield Fault("step", f"y {name_of(path)}".strip(), f"expected the batch axis first, got {jnp.shape(leaf)}")
        elif cell.output_size is not None and jnp.shape(leaf)[-1] != cell.output_size:
            message = f"expected the last axis of the output of step, {jnp.shape(leaf)[-1]}, got {cell.output_size}"
            yield Fault("output_size", name_of(path), message)
    one = jax.jit(cell.step)
    for b in range(BATCH):
        alone = called("step without a batch axis", one, params, *jax.tree.map(lambda leaf, b=b: leaf[b], (before, x)))
        own = jax.tree.map(lambda leaf, b=b: leaf[b], (after, y))
        yield from value_faults("step", own, tuple(alone), tolerance, "what each sequence of a batch gives alone")


def forward_faults(case: Case, tolerance: float) -> Iterator[Fault]:
    """`rule.project` and `rule.forward`: the same as `step`, of one step and of many."""
    cell, params, rule = case.cell, case.params, case.cell.rule
    assert isinstance(rule, Rule)
    zs = called("rule.project", jax.jit(rule.project), params, case.xs)
    first = called("rule.project", jax.jit(rule.project), params, case.xs[0])
    of_one = jax.tree.map(lambda leaf: leaf[0], zs)
    wrong = list(value_faults("rule.project", of_one, first, tolerance, "of many steps what each gives alone"))
    if wrong:
        yield from wrong
        return
    found = called("rule.forward", jax.jit(rule.forward), params, case.before, zs)
    after, y, _ = parts_of("rule.forward", found, "(state, y, residual)", 3)
    yield from value_faults("rule.forward", after, case.after, tolerance, f"the state that {cell.name}'s step gives")
    yield from value_faults("rule.forward y", y, case.ys, tolerance, f"the output that {cell.name}'s step gives")


def _taped(case: Case) -> tuple[Any, Tape]:
    rule = case.cell.rule
    assert isinstance(rule, Rule)
    zs = rule.project(case.params, case.xs)
    after, _, residual = rule.forward(case.params, case.before, zs)
    return zs, Tape(case.before, after, residual)


def backward_faults(case: Case, tolerance: float) -> Iterator[Fault]:
    """`rule.backward`: the transpose of `forward` in the state, linear in the cotangents."""
    rule, params = case.cell.rule, case.params
    assert isinstance(rule, Rule)
    zs, tape = jax.jit(lambda: _taped(case))()
    z, tape = jax.tree.map(lambda leaf: leaf[0], (zs, tape))
    prepared = params if rule.prepare is None else called("rule.prepare", rule.prepare, params)
    run = jax.jit(lambda *given: rule.backward(prepared, tape, *given))
    y = jax.tree.map(lambda leaf: leaf[0], case.ys)
    first, second = (case.random_like((tape.after, y)) for _ in range(2))
    found = [called("rule.backward", run, *given) for given in (first, second)]
    before, deltas = zip(*(parts_of("rule.backward", each, "(dstate_before, delta)", 2) for each in found), strict=True)
    _, pull = jax.vjp(lambda state: rule.forward(params, state, z)[:2], tape.before)
    for given, got in zip((first, second), before, strict=True):
        (wanted,) = jax.jit(pull)(given)
        yield from value_faults("rule.backward", got, wanted, tolerance, "the derivative of rule.forward by the state")
    both = jax.tree.map(lambda a, b: 2 * a - 3 * b, first, second)
    combined = jax.tree.map(lambda a, b: 2 * a - 3 * b, *zip(before, deltas, strict=True))
    linear = "a function that is linear in (dstate, dy), as a masked step gets zeros"
    for name, got, wanted in zip(("", " delta"), called("rule.backward", run, *both), combined, strict=True):
        yield from value_faults(f"rule.backward{name}", got, wanted, tolerance, linear)


def accumulate_faults(case: Case, tolerance: float) -> Iterator[Fault]:
    """`rule.accumulate`: the derivative by parameters and inputs of many steps whose states are given."""
    rule, params = case.cell.rule, case.params
    assert isinstance(rule, Rule)
    prepared = params if rule.prepare is None else rule.prepare(params)
    cotangents = case.random_like((case.after, case.ys))

    def by_hand(cotangents: Any) -> Any:
        _, tape = _taped(case)
        deltas = jax.lax.map(lambda now: rule.backward(prepared, *now)[1], (tape, *cotangents))
        whole = rule.accumulate(params, case.xs, tape, deltas)
        cut = [jax.tree.map(lambda leaf, s=s: leaf[s], (case.xs, tape, deltas)) for s in (slice(2), slice(2, None))]
        return whole, [rule.accumulate(params, *part) for part in cut]

    def by_autodiff(cotangents: Any) -> Any:
        run = lambda params, xs: rule.forward(params, case.before, rule.project(params, xs))[:2]  # noqa: E731
        return jax.vjp(run, params, case.xs)[1](cotangents)

    whole, segments = called("rule.accumulate", jax.jit(by_hand), cotangents)
    for each in (whole, *segments):
        parts_of("rule.accumulate", each, "(dparams, dxs)", 2)
    for name, got, wanted in zip(("dparams", "dxs"), whole, jax.jit(by_autodiff)(cotangents), strict=True):
        of = "the derivative of rule.forward (given delta by rule.backward)"
        yield from value_faults(f"rule.accumulate {name}", got, wanted, tolerance, of)
    total = jax.tree.map(jnp.add, segments[0][0], segments[1][0])
    yield from value_faults("rule.accumulate dparams", total, whole[0], tolerance, "a sum over segments of steps")


def matrices_faults(case: Case) -> Iterator[Fault]:
    """`rule.matrices`: exactly the parameters that enter matrix products, in the products' dtype."""
    rule, params = case.cell.rule, case.params
    assert isinstance(rule, Rule)
    fields = getattr(params, "_fields", ())
    for name in rule.matrices:
        if not has_field(params, name):
            known = ", ".join(fields) or "none, as params is no NamedTuple"
            yield Fault("rule.matrices", name, f"expected names of fields of params ({known})")
    if fields:
        before = jax.tree.map(lambda leaf: leaf[0], case.before)
        inputs = Inputs(*cast_floating((params, case.xs, before), jnp.float32), None, None, None, None)  # type: ignore
        message = "expected all fields that enter matrix products; compute_dtype skips this one"
        for name in sorted(multiplied_fields(rule, inputs) - set(rule.matrices)):
            yield Fault("rule.matrices", name, message)
