"""Segments of a sequence: values and gradients stay equal, memory and collectives are bounded."""

import re
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn.sequence.segments import SEGMENT_ROWS, SHORTEST_SEGMENT, segment_length
from tests.support.programs import by_jax, cotangents_of, differentiated, operands_of
from tests.support.registry import CELLS, SCENARIOS, assert_close, cell_of, loss_of, make, of_cell, random_like

ARGUMENTS = sys.modules["jaxrnn.sequence.arguments"]


@pytest.fixture
def lone_device(monkeypatch):
    """Makes `unroll` believe that there is one device, so that no batch can be sharded."""
    monkeypatch.setattr(ARGUMENTS, "may_be_sharded", lambda inputs: False)


@pytest.fixture
def segments_of_4(lone_device, monkeypatch):
    """Splits six steps into a segment of 4 and a rest of 2."""
    monkeypatch.setattr(ARGUMENTS, "segment_length", lambda time, rows: 4)


@pytest.mark.parametrize(
    ("name", "reverse"),
    [pytest.param(*of_cell(name).values, bool(k % 2), marks=of_cell(name).marks) for k, name in enumerate(CELLS)],
)
def test_gradients_equal_autodiff(name, reverse, x64, segments_of_4):
    asked = operands_of(name), cotangents_of(name)
    masked = SCENARIOS["mask-resets"]
    f = differentiated(cell_of(name), "bptt", reverse=reverse)
    by_hand = f(asked[0], masked["mask"], masked["resets"], asked[1])
    assert_close(by_hand, by_jax(name, *asked, **masked, reverse=reverse))


@pytest.mark.parametrize("time", [4, 12])
@pytest.mark.parametrize("checkpoint", [None, "gates"])
def test_steps_that_fill_whole_segments_equal_autodiff(time, checkpoint, x64, segments_of_4):
    """There are one or three segments of 4, and no rest."""
    case = make("lstm", (2,), time)
    operands = (case.params, case.xs, case.state)
    by_hand = jax.jit(jax.value_and_grad(loss_of(case, None, checkpoint=checkpoint), (0, 1, 2)))(*operands)
    assert_close(by_hand, jax.jit(jax.value_and_grad(loss_of(case, "scan"), (0, 1, 2)))(*operands))


def test_long_batch_in_default_segments_equals_autodiff(x64, lone_device):
    """64 steps of 128 sequences are eight segments by default."""
    case = make("gru", (128,), 64)
    assert segment_length(64, 128) == 8
    operands = (case.params, case.xs, case.state)
    by_hand, by_autodiff = (
        jax.jit(jax.value_and_grad(loss_of(case, name), (0, 1, 2)))(*operands) for name in (None, "scan")
    )
    assert_close(by_hand, by_autodiff)


@pytest.mark.parametrize("rows", [0, 1, 5, 64, 100, 4096])
def test_segment_lengths_divide_the_steps_or_are_near_the_wanted_length(rows):
    wanted = max(SHORTEST_SEGMENT, SEGMENT_ROWS // max(rows, 1))
    for time in [0, 1, 2 * wanted - 1]:
        assert segment_length(time, rows) == max(time, 1)
    for time in [2 * wanted, 9973, 10_000, 784]:
        size = segment_length(time, rows)
        if time >= 2 * wanted:
            assert wanted // 2 <= size <= 2 * wanted
            assert time % size == 0 or not any(time % k == 0 for k in range(wanted // 2, 2 * wanted + 1))
    assert segment_length(784, 64) == 16
    assert segment_length(9973, 64) == 16  # a prime


def test_default_needs_at_most_the_memory_of_autodiff(lone_device):
    cell = jaxrnn.lstm(32)
    params = cell.init(jax.random.key(0), 16)
    xs = jax.ShapeDtypeStruct((2048, 8, 16), jnp.float32)

    def temporary(implementation):
        def loss(params, xs):
            return jnp.mean(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1] ** 2)

        return jax.jit(jax.grad(loss)).lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(None) <= temporary("scan")


def loops_and_reductions(time):
    """The numbers of all-reduces in the training step of a sharded batch, outside loops and inside."""
    cell = jaxrnn.lstm(4)
    shapes = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jax.device_put(random_like(0, shapes, jnp.float32), NamedSharding(mesh, PartitionSpec()))
    xs = jnp.ones((time, 128, 3))
    xs = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "data")))
    loss = lambda params, xs: jnp.mean(jaxrnn.unroll(cell, params, xs)[1] ** 2)  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(params, xs).compile().as_text()
    computations = re.split(r"\n(?=\S)", text)
    counts = {c.split()[0]: len(re.findall(r" all-reduce(?:-start)?\(", c)) for c in computations}
    entry = next(c.split()[0] for c in computations if c.startswith("ENTRY"))
    return counts.pop(entry), sum(counts.values())


def test_gradients_of_a_sharded_batch_are_reduced_outside_loops():
    """T does not change the number of all-reduces."""
    short, long = loops_and_reductions(16), loops_and_reductions(64)
    assert long == short
    assert long[0] > 0
    assert long[1] == 0
