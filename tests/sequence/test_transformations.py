"""JAX's transformations of the default implementation, and the matrix products in its compiled loops."""

import functools
import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from tests.support import in_numpy
from tests.support.programs import TOLERANCE_OF_SLOPE, by_hand, cotangents_of, operands_of, slope
from tests.support.registry import (
    FAMILIES,
    SCENARIOS,
    T,
    assert_close,
    gap,
    loss_of,
    make,
    numpy_of,
    of_cell,
    quick_jit,
    random_like,
    run,
)

families = pytest.mark.parametrize("name", [of_cell(name) for name in FAMILIES])
MASKED = SCENARIOS["mask-resets"]


@families
def test_vmap_equals_one_call_for_each_member(name, x64):
    """The axis is one of parameters, inputs and states together. Values and gradients are equal."""
    operands, cotangents = operands_of(name), cotangents_of(name)
    others = jax.tree.map(lambda leaf: 0.7 * np.asarray(leaf) + 0.1, operands)
    together = jax.vmap(lambda operands: by_hand(name, operands, cotangents, **MASKED))
    got = quick_jit(together)(jax.tree.map(lambda *leaves: np.stack(leaves), operands, others))
    for k, alone in enumerate((operands, others)):
        of_one = jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], got)
        assert_close(of_one, by_hand(name, alone, cotangents, **MASKED))


@families
def test_vmap_over_lengths_equals_the_equations_in_numpy(name, x64):
    case = make(name, ())
    lengths = np.arange(T + 1, dtype=np.int32)
    got = quick_jit(jax.vmap(lambda n: run(case, lengths=n)))(lengths)
    for n in lengths:
        expected = in_numpy.unroll(name, *case[1:4], mask=np.arange(T) < n)
        assert_close(jax.tree.map(lambda leaf, n=n: np.asarray(leaf)[n], got), expected[:2])


def dot(outcome, cotangents):
    return sum(map(jnp.vdot, jax.tree.leaves(outcome), jax.tree.leaves(cotangents)))


def loss(name, params, xs, state, reset_state):
    """A scalar function whose gradients `by_hand` returns for the same cotangents."""
    case = make(name)._replace(params=params, xs=xs, state=state)
    return dot(run(case, **MASKED, reset_state=reset_state, return_states=True), cotangents_of(name))


@families
def test_hessian_and_its_products_equal_finite_differences(name, x64):
    """The Hessian is by parameters and state together.

    `jax.hessian` is forward over reverse. It equals finite differences of the gradient, and reverse over reverse.
    """
    params, xs, state, reset_state = operands_of(name)
    at, unravel = jax.flatten_util.ravel_pytree((params, state))
    direction = random_like(5, (params, state), at.dtype)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    v = flat(direction)

    def gradient(step):
        params_there, state_there = jax.tree.map(lambda a, b: a + step * np.asarray(b), (params, state), direction)
        operands = (params_there, xs, state_there, reset_state)
        _, (dparams, _, dstate, _) = by_hand(name, operands, cotangents_of(name), **MASKED)
        return flat((dparams, dstate))

    value = lambda at: loss(name, unravel(at)[0], xs, unravel(at)[1], reset_state)  # noqa: E731
    hessian = np.asarray(quick_jit(jax.hessian(value))(at))
    assert gap(hessian @ v, slope(gradient)) <= TOLERANCE_OF_SLOPE
    assert_close(hessian, hessian.T)
    reverse_over_reverse = jax.grad(lambda at: jnp.vdot(jax.grad(value)(at), v))
    assert_close(np.asarray(quick_jit(reverse_over_reverse)(at)), hessian @ v)


@families
def test_unroll_inside_checkpoint_and_scan_keeps_values_and_gradients(name, x64):
    checkpointed = jax.checkpoint(functools.partial(loss, name))

    def twice(*operands):
        return jax.lax.scan(lambda total, _: (total + checkpointed(*operands), None), 0.0, None, length=2)[0]

    value, gradients = quick_jit(jax.value_and_grad(twice, (0, 1, 2, 3)))(*operands_of(name))
    outcome, expected = by_hand(name, operands_of(name), cotangents_of(name), **MASKED)
    assert_close(gradients, jax.tree.map(lambda leaf: 2 * np.asarray(leaf), expected))
    np.testing.assert_allclose(value, 2 * dot(outcome, cotangents_of(name)), rtol=1e-11)


@pytest.mark.devices
@families
def test_sharded_jit_and_shard_map_equal_one_device(name, x64):
    """The batch is sharded over two devices, by `jit` and by `shard_map` with its default checks."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    cell = make(name).cell

    def gradients(params, xs, lengths, resets, cotangents, mean=lambda v: v):
        def loss(params, xs):
            return mean(dot(jaxrnn.unroll(cell, params, xs, lengths=lengths, resets=resets), cotangents))

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    # The two programs get four of the five sequences of a case. The expected values come from all, the fifth masked.
    (params, xs, state, _), (dfinal, dys, dstates) = numpy_of((operands_of(name), cotangents_of(name)))
    lengths, resets = np.asarray([T, 0, 2, 4, 0], np.int32), MASKED["resets"]
    four = lambda tree: jax.tree.map(lambda leaf: leaf[:4], tree)  # noqa: E731
    operands = (params, xs[:, :4], lengths[:4], resets[:, :4], (four(dfinal), dys[:, :4]))
    zeros = jax.tree.map(np.zeros_like, state)
    (final, ys, _), (dparams, dxs, _, _) = by_hand(
        name, (params, xs, zeros, zeros), (dfinal, dys, jax.tree.map(np.zeros_like, dstates)),
        np.arange(T)[:, None] < lengths, resets,
    )  # fmt: skip
    value = dot(four(numpy_of(final)), four(dfinal)) + dot(ys, dys)
    expected = (value, (dparams, np.asarray(dxs)[:, :4]))

    specs = (P(), P(None, "d"), P("d"), P(None, "d"), (P("d"), P(None, "d")))
    placed = jax.device_put(operands, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    assert_close(quick_jit(gradients)(*placed), expected)
    mapped = jax.shard_map(
        functools.partial(gradients, mean=lambda v: jax.lax.psum(v, "d")),
        mesh=mesh, in_specs=specs, out_specs=(P(), (P(), P(None, "d"))),
    )  # fmt: skip
    assert_close(quick_jit(mapped)(*placed), expected)


@families
def test_second_call_traces_nothing(name):
    """The claim holds outside `jit` and inside the `jit` of a caller."""
    case, traces = make(name), []
    rule = case.cell.rule
    counted = rule._replace(forward=lambda *args: (traces.append(1), rule.forward(*args))[1])
    case = case._replace(cell=case.cell._replace(rule=counted))
    run(case)
    first = len(traces)
    assert first
    run(case._replace(xs=case.xs + 1))
    assert len(traces) == first
    f = jax.jit(jax.grad(lambda params, xs: loss_of(case, None)(params, xs, case.state)))
    f(case.params, case.xs)
    first = len(traces)
    f(case.params, case.xs + 1)
    assert len(traces) == first


def test_forward_mode_is_refused_in_favour_of_scan():
    case = make("gru")
    tangent = jnp.ones_like(case.xs)
    for f in (
        lambda xs: run(case._replace(xs=xs))[1],
        jax.vmap(lambda xs: jaxrnn.unroll(case.cell, case.params, xs)[1], 1, 1),
    ):
        with pytest.raises(TypeError, match="unroll: implementation expected 'scan'.*jvp"):
            jax.jvp(f, (case.xs,), (tangent,))
    _, got = jax.jvp(lambda xs: run(case._replace(xs=xs), implementation="scan")[1], (case.xs,), (tangent,))
    step = 1e-2
    ahead, behind = (run(case._replace(xs=case.xs + s * tangent))[1] for s in (step, -step))
    np.testing.assert_allclose(got, (ahead - behind) / (2 * step), atol=2e-3)


def loop_products(text: str) -> list[int]:
    """The number of matrix products in each loop of an optimised HLO module that has any."""
    computations = {}
    for block in re.split(r"\n(?=[%E])", text):
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+)", block)
        if head:
            computations[head.group(1)] = block

    @functools.cache
    def products(name: str) -> int:
        block = computations[name]
        own = len(re.findall(r"= \S+ dot\(|custom_call_target=\"[^\"]*matmul", block))
        called = re.findall(r"(?:calls=|to_apply=)%?([\w.\-]+)", block)
        return own + sum(products(other) for other in called if other in computations)

    bodies = re.findall(r"body=%?([\w.\-]+)", text)
    return sorted(count for count in map(products, bodies) if count)


@pytest.mark.parametrize(("name", "forward", "train"), [
    ("rnn-tanh", [1], [1, 1]), ("lstm", [1], [1, 1]), ("gru", [1], [1, 1]), ("gru-reset-before", [2], [2, 2]),
])  # fmt: skip
def test_compiled_loops_contain_only_recurrent_products(name, forward, train):
    """Input products and weight gradients are outside the loops of the optimised program."""
    case = make(name, (16,), 32)
    operands = (case.params, case.xs, case.state)

    def compiled(f):
        return jax.jit(f).lower(*operands).compile().as_text()

    value = lambda implementation: loss_of(case, implementation)  # noqa: E731
    assert loop_products(compiled(value(None))) == forward
    assert loop_products(compiled(jax.grad(value(None), (0, 1, 2)))) == train
    assert sum(loop_products(compiled(jax.grad(value("scan"), (0, 1, 2))))) > sum(train)
