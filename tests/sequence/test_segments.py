"""Segments of a sequence: values and gradients stay equal, memory and collectives are bounded."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn.sequence.segments import (
    SEGMENT_ROWS,
    SHORTEST_SEGMENT,
    backward_through,
    forward_through,
    join_time,
    segment_length,
    split_time,
    steps_kept,
)
from tests.support import in_jax, in_numpy
from tests.support.programs import differentiated
from tests.support.registry import (
    CELLS,
    FAMILIES,
    I,
    assert_close,
    bits,
    cell_of,
    gap,
    loss_of,
    make,
    of_cell,
    output_of,
    quick_jit,
    random_like,
    run,
)
from tests.support.requests import request_of, requests_of

ROOT = Path(__file__).parents[2]
SEGMENTS = sys.modules["jaxrnn.sequence.segments"]

# Four segments of 4 steps, and 3 steps left over. Resets are at the first step too.
STEPS, BATCH, SIZE = 19, 3, 4
MASKED = {"mask": bits(4, (STEPS, BATCH), 0.7), "resets": bits(16, (STEPS, BATCH), 0.2)}

reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture
def small_segments(monkeypatch):
    """Segments of 4 steps for the batch of these tests; users have as many at 1,024 rows a segment."""
    monkeypatch.setattr(SEGMENTS, "SEGMENT_ROWS", SIZE * BATCH)
    monkeypatch.setattr(SEGMENTS, "SHORTEST_SEGMENT", SIZE)
    assert segment_length(STEPS, BATCH) == SIZE


def asked_of(name, batch=BATCH, time=STEPS):
    """Operands, and cotangents of final state, outputs and states."""
    operands = (*make(name, (batch,), time)[1:4], make(name, (batch,), seed=7).state)
    dstates, output = make(name, (time, batch), seed=8).state, output_of(make(name, (batch,), time))
    dys = random_like(10, jax.ShapeDtypeStruct((time, *output.shape), output.dtype), output.dtype)
    return operands, (make(name, (batch,), seed=9).state, dys, dstates)


def by_hand(name, mask=None, resets=None, key=None, **options):
    """Values and gradients through segments, and the oracle's."""
    (*operands, reset_state), cotangents = asked_of(name)
    operands = (*operands, reset_state if resets is not None else None)
    got = differentiated(cell_of(name), None, **options)(operands, mask, resets, cotangents, key)
    options.pop("checkpoint", None)
    return got, in_jax.differentiated(name, operands, cotangents, mask=mask, resets=resets, key=key, **options)


# The oracle


@reverses
def test_oracle_equals_the_equations_in_numpy(reverse, x64):
    (params, xs, state, reset_state), cotangents = asked_of("lstm")
    values, _ = in_jax.differentiated(
        "lstm", (params, xs, state, reset_state), cotangents, **MASKED, reverse=reverse, truncate=5, clip_gradient=0.1
    )
    assert_close(values, in_numpy.unroll("lstm", params, xs, state, reset_state=reset_state, **MASKED, reverse=reverse))


# Values and gradients through several segments and a rest


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("name", [of_cell(name) for name in CELLS])
@reverses
def test_gradients_equal_autodiff(name, reverse, x64):
    got, expected = by_hand(name, **MASKED, reverse=reverse)
    assert_close(got, expected)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(got[1])) > 1e-3


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("name", [of_cell(name) for name in FAMILIES])
@reverses
def test_gradients_without_masks_equal_autodiff(name, reverse, x64):
    got, expected = by_hand(name, reverse=reverse)
    assert_close(got, expected)


# With 9, segments of 9 steps are run again, each in two segments of 4 and 1 step left over.
@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [of_cell(name, checkpoint) for name in FAMILIES for checkpoint in ("gates", 9)] + [of_cell("gru", "sqrt")],
)
@reverses
def test_gradients_with_checkpoint_equal_autodiff(name, checkpoint, reverse, x64):
    got, expected = by_hand(name, **MASKED, reverse=reverse, checkpoint=checkpoint)
    assert_close(got, expected)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [of_cell("lstm-all", None), *(of_cell("gru", checkpoint) for checkpoint in (None, "gates", 9))],
)
@reverses
def test_truncated_and_clipped_gradients_equal_autodiff(name, checkpoint, reverse, x64):
    """Windows of 7 steps begin inside segments, and inside the rest."""
    limits = {"truncate": 7, "clip_gradient": 0.5}
    got, expected = by_hand(name, **MASKED, reverse=reverse, checkpoint=checkpoint, **limits)
    assert_close(got, expected)
    for option in limits:  # both change gradients
        operands, cotangents = asked_of(name)
        other = {**limits, "truncate": STEPS} if option == "truncate" else {"truncate": 7}
        _, without = in_jax.differentiated(name, operands, cotangents, **MASKED, reverse=reverse, **other)
        assert gap(without, expected[1]) > 1e-3


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("checkpoint", [None, "gates", 9])
@reverses
@pytest.mark.xdist_group("lstm-regularized")
def test_gradients_with_noise_equal_autodiff(checkpoint, reverse, x64):
    """The noise of every step is split as the inputs are."""
    got, expected = by_hand("lstm-regularized", **MASKED, key=jax.random.key(1), reverse=reverse, checkpoint=checkpoint)
    assert_close(got, expected)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("time", [4, 8, 9, 12, 13])
@reverses
@pytest.mark.xdist_group("gru")
def test_lengths_of_any_sequence_equal_the_equations_in_numpy(time, reverse, x64):
    """One segment, whole segments alone, and rests of one step; lengths end inside segments and at their borders."""
    case, lengths = make("gru", (BATCH,), time), np.asarray([time, 4, time - 2], np.int32)
    resets = bits(2, (time, BATCH), 0.2)
    got = quick_jit(lambda xs: run(case._replace(xs=xs), lengths=lengths, resets=resets, reverse=reverse,
                                   return_states=True))(case.xs)  # fmt: skip
    mask = np.arange(time)[:, None] < lengths
    assert_close(got, in_numpy.unroll("gru", *case[1:4], mask=mask, resets=resets, reverse=reverse))


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("time", [4, 12])
@pytest.mark.parametrize("checkpoint", [None, "gates"])
def test_steps_that_fill_whole_segments_equal_autodiff(time, checkpoint, x64):
    """There are one or three segments of 4, and no rest."""
    case = make("lstm", (BATCH,), time)
    operands = (case.params, case.xs, case.state)
    through = jax.jit(jax.value_and_grad(loss_of(case, None, checkpoint=checkpoint), (0, 1, 2)))(*operands)
    assert_close(through, jax.jit(jax.value_and_grad(loss_of(case, "scan"), (0, 1, 2)))(*operands))


@pytest.mark.parametrize("time", [41, 64])
@reverses
@pytest.mark.xdist_group("gru")
def test_long_batch_in_default_segments_equals_autodiff(time, reverse, x64):
    """A batch of users' size has eight segments by default, or five and one step left over."""
    assert segment_length(time, 128) == 8
    operands, cotangents = asked_of("gru", 128, time)
    masks = {
        "mask": np.arange(time)[:, None] < np.linspace(0, time, 128).astype(int),
        "resets": bits(1, (time, 128), 0.1),
    }
    got = differentiated(cell_of("gru"), None, jit=jax.jit, reverse=reverse)(operands, *masks.values(), cotangents)
    assert_close(got, in_jax.differentiated("gru", operands, cotangents, **masks, reverse=reverse))


@pytest.mark.devices
@pytest.mark.usefixtures("small_segments")
@reverses
@pytest.mark.xdist_group("lstm")
def test_gradients_accumulated_once_equal_autodiff(reverse, x64):
    """With several devices the steps of all segments are accumulated together."""
    got, expected = by_hand("lstm", **MASKED, reverse=reverse)
    assert_close(got, expected)


# One device, and several


def test_tests_run_as_with_one_device_by_default(monkeypatch):
    assert jax.device_count() > 1
    assert not request_of(monkeypatch).options.accumulate_once


@pytest.mark.devices
def test_several_devices_accumulate_once_unless_gates_are_recomputed(monkeypatch):
    assert request_of(monkeypatch).options.accumulate_once
    assert not request_of(monkeypatch, checkpoint="gates").options.accumulate_once


def asked_for(monkeypatch, shape, around=lambda f: f):
    """The options of a traced call with inputs of this shape."""
    case = make("gru", dtype=jnp.float32)
    f = around(lambda xs: jaxrnn.unroll(case.cell, case.params, xs)[1])
    (request,) = requests_of(monkeypatch, lambda _: jax.eval_shape(f, jax.ShapeDtypeStruct((*shape, I), jnp.float32)))
    return request.options


@pytest.mark.devices
def test_shard_map_accumulates_after_every_segment_of_a_device(monkeypatch):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = PartitionSpec(None, "d")
    options = asked_for(monkeypatch, (64, 256), lambda f: jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec))
    assert (options.segment, options.accumulate_once) == (8, False)


def test_segments_count_the_sequences_of_all_batch_axes(monkeypatch):
    assert asked_for(monkeypatch, (64, 2, 64)).segment == asked_for(monkeypatch, (64, 128)).segment == 8
    assert asked_for(monkeypatch, (64,)).segment == 64


@pytest.mark.processes
def test_process_with_one_device_accumulates_after_every_segment():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.one_device"],
        cwd=ROOT, env={**environment, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["devices"], found["accumulate_once"]) == (1, False)
    assert max(found["gaps"].values()) < 1e-11


# Splitting and joining


@pytest.mark.parametrize("time", [1, 3, 4, 8, 10, 11])
@reverses
def test_segments_are_joined_to_the_steps_that_were_split(time, reverse):
    """Steps left over are those read last; a sequence of one segment is all left over."""
    steps = {"a": jnp.arange(time), "b": jnp.arange(2.0 * time).reshape(time, 2)}
    whole, rest = segments = split_time(steps, 4, reverse)
    chex.assert_trees_all_equal(join_time(segments, reverse), steps)
    in_whole = time // 4 * 4 if time > 4 else 0
    assert (whole is None) == (in_whole == 0)
    assert (rest is None) == (in_whole == time)
    if rest is not None:
        left = time - in_whole
        np.testing.assert_array_equal(rest["a"], steps["a"][:left] if reverse else steps["a"][in_whole:])


@pytest.mark.parametrize("time", [3, 8, 11])
@reverses
def test_segments_are_run_in_the_order_of_reading_and_back(time, reverse):
    """Every step is run once; what is made stays at its step."""
    order = range(time - 1, -1, -1) if reverse else range(time)

    def reads(backward):
        def segment(carry, steps):
            def body(carry, step):
                return 3 * carry + step, carry

            return jax.lax.scan(body, carry, steps, reverse=reverse != backward)

        return segment

    for through, steps_read in ((forward_through, order), (backward_through, reversed(order))):
        carry, made = 1, np.zeros(time, np.int32)
        for step in steps_read:
            carry, made[step] = 3 * carry + step, carry
        segments = split_time(jnp.arange(time), 4, reverse)
        got = through(reads(through is backward_through), jnp.int32(1), segments, reverse)
        np.testing.assert_array_equal(got[0], carry)
        np.testing.assert_array_equal(got[1], made)


@pytest.mark.parametrize("rows", [0, 1, 5, 64, 100, 4096])
def test_segment_lengths_divide_the_steps_or_are_near_the_wanted_length(rows):
    wanted = max(SHORTEST_SEGMENT, SEGMENT_ROWS // max(rows, 1))
    for time in [0, 1, 2 * wanted - 1]:
        assert segment_length(time, rows) == max(time, 1)
    assert segment_length(2 * wanted, rows) == wanted
    for time in [2 * wanted, 9973, 10_000, 784, 4 * 101]:
        size = segment_length(time, rows)
        if time >= 2 * wanted:
            assert wanted // 2 <= size <= 2 * wanted
            assert time % size == 0 or not any(time % k == 0 for k in range(wanted // 2, 2 * wanted + 1))
    assert segment_length(784, 64) == 16
    assert segment_length(9973, 64) == 16  # a prime


def test_square_root_keeps_the_fewest_states_and_steps():
    for time in range(1, 200):
        kept = lambda size, time=time: size + math.ceil(time / size)  # noqa: E731
        assert kept(steps_kept("sqrt", time)) == min(map(kept, range(1, time + 1)))


def test_default_needs_at_most_the_memory_of_autodiff():
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


@pytest.mark.devices
def test_gradients_of_a_sharded_batch_are_reduced_outside_loops():
    """T does not change the number of all-reduces."""
    short, long = loops_and_reductions(16), loops_and_reductions(64)
    assert long == short
    assert long[0] > 0
    assert long[1] == 0
