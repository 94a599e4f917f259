"""What the backward pass keeps: equal gradients, and the memory that is promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.registry import SCENARIOS, T, assert_close, gap, loss_of, make, run, weighed

CHOICES = ["gates", "sqrt", 1, 4, T, T + 3]
# Every form whose backward reads a residual of its own kind.
CASES = [("rnn-callable", True), ("lstm-all", False), ("gru-layer-norm", True), ("lstm-regularized", False)]


@pytest.mark.parametrize(("name", "reverse"), CASES, ids=lambda value: str(value))
def test_gradients_are_the_same(name, reverse, x64, monkeypatch):
    """Segments of 4 in 6 steps leave two over; masks, resets, windows and noise go through them."""
    monkeypatch.setattr("jaxrnn.sequence.bptt.GATES_SEGMENT", 4)
    case = make(name)
    operands = (case.params, case.xs, case.state, make(name, seed=7).state)
    options = {**SCENARIOS["mask-resets"], "reverse": reverse, "truncate": 3, "key": jax.random.key(1)}

    def gradients(checkpoint):
        loss = loss_of(case, None, checkpoint=checkpoint, **options)
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*operands)

    expected = gradients(None)
    for checkpoint in ("gates", 4):
        assert_close(gradients(checkpoint), expected)


@pytest.mark.parametrize("checkpoint", CHOICES)
def test_every_choice_serves_values_and_gradients(checkpoint, x64):
    case = make("gru")
    grads = [
        jax.jit(jax.grad(loss_of(case, None, checkpoint=c), (0, 1, 2)))(case.params, case.xs, case.state)
        for c in (checkpoint, None)
    ]
    assert_close(*grads)
    assert_close(run(case, checkpoint=checkpoint, return_states=True), run(case, return_states=True))


@pytest.mark.parametrize(("implementation", "checkpoint"), [("scan", 2), ("scan", "sqrt"), ("reference", "gates")])
def test_other_implementations_take_it_too(implementation, checkpoint, x64):
    case = make("lstm")
    loss = loss_of(case, implementation, checkpoint=checkpoint)
    got = jax.jit(jax.grad(loss, (0, 1, 2)))(case.params, case.xs, case.state)
    assert_close(got, jax.jit(jax.grad(loss_of(case, None), (0, 1, 2)))(case.params, case.xs, case.state))


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("checkpoint", ["gates", "sqrt", 3])
def test_short_sequences(time, checkpoint):
    case = make("lstm", (2,), time)
    assert gap(run(case, checkpoint=checkpoint), run(case)) < 1e-6
    grads = [
        jax.jit(jax.grad(loss_of(case, None, checkpoint=c), (0, 1, 2)))(case.params, case.xs, case.state)
        for c in (checkpoint, None)
    ]
    assert_close(*grads, "float32")


def test_stacks_and_second_derivatives(x64):
    net = jaxrnn.stack([jaxrnn.gru(3)], bidirectional=True)
    params, xs = net.init(jax.random.key(0), 3, jnp.float64), make("gru", (2,)).xs

    def loss(checkpoint, xs):
        return weighed(net.unroll(params, xs, lengths=np.asarray([6, 3]), checkpoint=checkpoint))

    products = [
        jax.jit(lambda xs, c=c: jax.jvp(jax.grad(lambda xs: loss(c, xs)), (xs,), (jnp.ones_like(xs),))[1])(xs)
        for c in ("gates", 4, None)
    ]
    assert_close(products[0], products[2])
    assert_close(products[1], products[2])


def temporary_memory(checkpoint):
    """Bytes of a train step beyond its operands and results, as the compiler counts them."""
    cell = jaxrnn.lstm(32)
    params, xs = cell.init(jax.random.key(0), 16), jax.ShapeDtypeStruct((2048, 8, 16), jnp.float32)

    def loss(params, xs):
        _, ys = jaxrnn.unroll(cell, params, xs, checkpoint=checkpoint)
        return jnp.mean(ys**2)

    compiled = jax.jit(jax.grad(loss)).lower(params, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_what_is_promised():
    """At T = 2,048: the bounds of the documentation, against what `None` takes."""
    everything = temporary_memory(None)
    assert temporary_memory("gates") <= 0.6 * everything
    assert temporary_memory("sqrt") <= 0.15 * everything
    assert temporary_memory(64) <= 0.15 * everything


@pytest.mark.parametrize(("checkpoint", "error", "message"), [
    ("all", ValueError, "unroll: checkpoint expected None, 'gates', 'sqrt' or a number of steps; got 'all'"),
    (0, ValueError, "unroll: checkpoint expected a positive integer, got 0"),
    (2.0, TypeError, "unroll: checkpoint expected a positive integer, got float"),
    (True, TypeError, "unroll: checkpoint expected a positive integer, got bool"),
])  # fmt: skip
def test_bad_input(checkpoint, error, message, unhooked):
    with pytest.raises(error, match=message):
        run(make("gru"), checkpoint=checkpoint)


def test_gates_without_a_rule_are_refused(unhooked):
    with pytest.raises(NotImplementedError, match="checkpoint 'gates' cannot serve implementation 'scan'"):
        run(make("gru"), checkpoint="gates", implementation="scan")
