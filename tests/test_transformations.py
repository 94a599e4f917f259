"""JAX's transformations on the default implementation, and what the compiled program holds."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from tests.registry import SCENARIOS, T, assert_close, loss_of, make, random_like, run

families = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group(name))
        for name in ("rnn-tanh", "lstm", "gru", "gru-reset-before")
    ],
)
OPTIONS = SCENARIOS["mask-resets"]


@families
def test_vmap(name, x64):
    """Over parameters and inputs at once, values and gradients, against one call for each."""
    cases = [make(name, (2,), 3, seed=seed) for seed in (0, 10)]
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *(case[k] for case in cases)) for k in (1, 2, 3)]
    f = jax.value_and_grad(loss_of(cases[0], None, lengths=np.asarray([3, 1])), (0, 1, 2))
    together = jax.jit(jax.vmap(f))(*stacked)
    for k, case in enumerate(cases):
        alone = jax.jit(f)(case.params, case.xs, case.state)
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], together), alone)


@families
def test_vmap_over_lengths(name):
    case = make(name, ())
    lengths = jnp.arange(T + 1, dtype=jnp.int32)
    _, ys = jax.vmap(lambda n: run(case, lengths=n))(lengths)
    for n in range(T + 1):
        assert_close(ys[n], run(case, lengths=np.int32(n))[1], "float32")


@families
def test_hessian_and_hessian_vector_products(name, x64):
    """Reverse over reverse, forward over reverse, and jax.hessian, against plain autodiff."""
    case = make(name, (2,), 3)
    options = {"lengths": np.asarray([3, 2]), "resets": np.asarray([[0, 0], [0, 1], [1, 0]], bool)}
    v = random_like(5, case.params, jnp.float64)

    def products(implementation):
        loss = loss_of(case, implementation, **options)
        gradient = jax.grad(loss)
        dot = lambda p: sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient(p, case.xs, case.state)),  # noqa: E731
                                                           jax.tree.leaves(v), strict=True))  # fmt: skip
        forward_over_reverse = jax.jvp(lambda p: gradient(p, case.xs, case.state), (case.params,), (v,))[1]
        return forward_over_reverse, jax.grad(dot)(case.params), jax.hessian(loss, 2)(case.params, case.xs, case.state)

    assert_close(jax.jit(products, static_argnums=0)("bptt"), jax.jit(products, static_argnums=0)("scan"))


@families
def test_checkpoint_and_scan_around_it(name, x64):
    case = make(name)
    loss = loss_of(case, None, **OPTIONS)
    operands = (case.params, case.xs, case.state)
    plain = jax.jit(jax.value_and_grad(loss))(*operands)
    assert_close(jax.jit(jax.value_and_grad(jax.checkpoint(loss)))(*operands), plain)

    def twice(params, xs, state):
        return jax.lax.scan(lambda total, _: (total + loss(params, xs, state), None), 0.0, None, length=2)[0]

    value, gradient = jax.jit(jax.value_and_grad(twice))(*operands)
    assert_close((value, gradient), jax.tree.map(lambda leaf: 2 * leaf, plain))


@families
def test_sharded_jit_and_shard_map(name, x64):
    """The batch over two devices: by jit's partitioner, and by shard_map with its default checks."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    case = make(name, (4,))
    lengths = np.asarray([T, 0, 2, 4], np.int32)

    def gradients(params, xs, lengths, resets, mean=lambda v: v):
        def loss(params, xs):
            final, ys = jaxrnn.unroll(case.cell, params, xs, lengths=lengths, resets=resets)
            return mean(jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(final)))

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    resets = np.zeros((T, 4), bool)
    resets[3, 1:] = True
    operands = (case.params, case.xs, lengths, resets)
    expected = jax.jit(gradients)(*operands)
    specs = (P(), P(None, "d"), P("d"), P(None, "d"))
    placed = [jax.device_put(leaf, NamedSharding(mesh, spec)) for leaf, spec in zip(operands, specs, strict=True)]
    assert_close(jax.jit(gradients)(*placed), expected)
    mapped = jax.shard_map(
        functools.partial(gradients, mean=lambda v: jax.lax.psum(v, "d")),
        mesh=mesh, in_specs=specs, out_specs=(P(), (P(), P(None, "d"))),
    )  # fmt: skip
    assert_close(jax.jit(mapped)(*placed), expected)


@families
def test_second_call_traces_nothing(name):
    """Neither inside the caller's jit nor outside of any: a cell is traced once."""
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


def test_forward_mode_says_what_to_use():
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
    """How many matrix products each loop of an optimised HLO module holds, loops without any left out."""
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
def test_compiled_loops_hold_the_recurrent_products_alone(name, forward, train):
    """Input products and weight gradients stand outside the loops, as the optimised program shows."""
    case = make(name, (16,), 32)
    operands = (case.params, case.xs, case.state)

    def compiled(f):
        return jax.jit(f).lower(*operands).compile().as_text()

    value = lambda implementation: loss_of(case, implementation)  # noqa: E731
    assert loop_products(compiled(value(None))) == forward
    assert loop_products(compiled(jax.grad(value(None), (0, 1, 2)))) == train
    assert sum(loop_products(compiled(jax.grad(value("scan"), (0, 1, 2))))) > sum(train)
