"""Lower bounds of the time of a program on a device: operations, bytes and steps, at speeds measured there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks._problem import FORMS, Shape, operations
from experiments.benchmarks._turns import compiled, take_turns

STEP_US = 2.0  # a barrier over the whole chip, once a step; a kernel whose state stays in one block needs none


class Speeds(NamedTuple):
    """Of a device, in one dtype."""

    flops: float  # operations a second of a large matrix product
    bytes: float  # read and written a second by a large copy


class Floor(NamedTuple):
    """Milliseconds below which a task cannot be, each by itself."""

    operations_ms: float
    bytes_ms: float
    steps_ms: float


def measure_speeds(dtype: str, size: int, megabytes: int, calls: int = 5) -> Speeds:
    """The best of several calls, on the default device and with the default precision of products."""
    a = jnp.ones((size, size), jnp.bfloat16 if dtype == "bf16" else jnp.float32)
    copied = jnp.ones((megabytes, 2**18), jnp.float32)
    programs = {"product": compiled(jnp.matmul, a, a), "copy": compiled(lambda array: array + 1, copied)}
    for program in programs.values():
        jax.block_until_ready(program.call())
    taken = {name: 1e-3 * min(ms) for name, ms in take_turns({n: p.call for n, p in programs.items()}, calls).items()}
    return Speeds(2 * size**3 / taken["product"], 2 * copied.nbytes / taken["copy"])


def traffic(form: str, shape: Shape, task: str, width: int) -> float:
    """Bytes that must pass through memory once: inputs, outputs, weights; in training also what the backward pass
    reads again (state, gates and outputs' cotangents of every step) and the gradients. `width` is of an operand."""
    steps, batch, features, hidden = shape
    gates = FORMS[form].gates
    weights = (features + hidden) * gates * hidden
    forward = steps * batch * (features + hidden) + weights
    if task == "forward":
        return float(width * forward)
    kept = steps * batch * (gates + 2) * hidden
    return float(width * (2 * forward + 2 * kept + weights))


def floor_of(form: str, shape: Shape, task: str, dtype: str, speeds: Speeds) -> Floor:
    """Of one task."""
    passes = 1 if task == "forward" else 2
    return Floor(
        1e3 * operations(form, shape, task) / speeds.flops,
        1e3 * traffic(form, shape, task, 2 if dtype == "bf16" else 4) / speeds.bytes,
        1e-3 * STEP_US * passes * shape.steps,
    )
