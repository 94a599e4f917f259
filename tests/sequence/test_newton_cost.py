"""What Newton's method for all steps at once costs: the operations made one after another, and memory."""

import math

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from experiments.benchmarks._depth import depth
from jaxrnn import analysis
from jaxrnn.sequence.implementations import newton_solve
from tests.sequence.test_newton_convergence import PLAIN, at_first, convergence
from tests.support.registry import quick_jit


def compiled(call, implementation):
    cell, params, xs = call
    loss = lambda params, xs: jnp.sum(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1] ** 2)  # noqa: E731
    return quick_jit(jax.grad(loss)).lower(params, xs).compile()


def test_sequential_depth_is_a_fiftieth_of_the_loop():
    """Forward and backward, of 10,000 steps, with the iterations that it takes, and twice the levels of each scan."""
    time = 10_000
    call = at_first("gru", 4, time, jnp.float32, batch=1)
    loop = depth(compiled(call, "bptt").as_text(), 0)
    assert 2 * time <= loop <= 2.2 * time
    iterations = int(convergence(*call).iterations.max())
    assert iterations <= 5
    found = depth(compiled(call, "newton").as_text(), iterations)
    levels = 2 * math.ceil(math.log2(time))
    assert 50 * (found + (iterations + 1) * levels) <= loop


def temporary_bytes(call, newton, task):
    """What a compiled forward pass, or a gradient, takes beside arguments and results."""
    cell, params, xs = call
    forward = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation=newton)[1]  # noqa: E731
    if task == "gradient":
        program = lambda params, xs: jax.vjp(forward, params, xs)[1](jnp.ones((*xs.shape[:-1], 32)))  # noqa: E731
    else:
        program = forward
    return quick_jit(program).lower(params, xs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("jacobian", "task"), [("full", "forward"), ("diagonal", "forward"), ("full", "gradient"), ("diagonal", "gradient")]
)
def test_memory_is_as_stated(name, jacobian, task):
    """Of one window, within 1.3 times: D (Z + 2D) numbers a step and sequence, and 7 Z for the diagonal forward."""
    hidden, time, batch = 32, 64, 8
    call = at_first(name, hidden, time, jnp.float32, batch=batch)
    gates, size = {"rnn": (1, hidden), "gru": (3, hidden), "lstm": (4, 2 * hidden)}[name]
    projected = gates * hidden
    stated = 7 * projected if (jacobian, task) == ("diagonal", "forward") else size * (projected + 2 * size)
    measured = temporary_bytes(call, jaxrnn.Newton(jacobian=jacobian, window=time), task) / (4 * time * batch)
    assert stated / 1.3 <= measured <= 1.3 * stated


def test_windows_keep_the_jacobians_within_the_stated_memory():
    cell, params, xs = at_first("gru", 16, 9_000, jnp.float32, batch=4)
    stated = 4 * 4 * 16 * (48 + 32)  # bytes of a step
    windows = []

    def call(params, xs):
        found = analysis.newton_convergence(cell, params, xs)
        windows.append(found.window)
        return found.iterations

    found = jax.eval_shape(call, params, xs)
    assert found.shape[0] == math.ceil(9_000 / (newton_solve.MEMORY // stated))
    assert newton_solve.MEMORY == 64 * 2**20
    assert windows[0] * stated <= newton_solve.MEMORY
