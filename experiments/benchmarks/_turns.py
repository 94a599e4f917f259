"""Compiles and times contestants, and measures how fast the machine multiplies matrices."""

import contextlib
import os
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

TURN_MS = 10.0  # a turn is as many calls as begin within this
TASKS = ("forward", "train")
Name = TypeVar("Name")


class Program(NamedTuple):
    """One task of one contestant, ready to run. The call may return before the device has finished."""

    call: Callable[[], Any]
    compile_s: float | None = None  # tracing and compiling; None where nothing is compiled
    temporary_bytes: int | None = None  # the memory beside arguments and results, as reported by XLA


class Timing(NamedTuple):
    """One contestant at one task."""

    cell: str
    shape: str
    task: str
    contestant: str
    compile_s: float | None
    min_ms: float
    median_ms: float


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(devices: int = 1) -> None:
    """Makes so many CPU devices of JAX, and compiles anew whatever an earlier run has kept.

    Only the first use of JAX in a process can decide this; afterwards its devices stay as they are.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)
        jax.config.update("jax_enable_compilation_cache", False)


def compiled(function: Callable[..., Any], *arguments: Any) -> Program:
    """`function` of JAX arrays, compiled for these arguments."""
    begin = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    analysis = executable.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return Program(lambda: executable(*arguments), seconds, temporary)


def take_turns(calls: dict[Name, Callable[[], Any]], rounds: int, turn_ms: float = TURN_MS) -> dict[Name, list[float]]:
    """Milliseconds of every call. In a round every contestant has one turn, in an order that changes.

    Quick calls are repeated within a turn: the first finds the caches full of what its
    predecessor left, and the predecessor's threads still awake.
    """
    shuffle = random.Random(0).shuffle
    milliseconds: dict[Name, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            end = time.perf_counter() + 1e-3 * turn_ms
            while True:
                begin = time.perf_counter()
                jax.block_until_ready(calls[name]())
                now = time.perf_counter()
                milliseconds[name].append(1e3 * (now - begin))
                if now >= end:
                    break
    return milliseconds


def matrix_product_peak(size: int = 2048, calls: int = 10) -> float:
    """Operations a second of a float32 product of two (size, size) matrices: the best of several calls."""
    a = jnp.ones((size, size), jnp.float32)
    product = compiled(jnp.matmul, a, a)
    jax.block_until_ready(product.call())
    return 2e3 * size**3 / min(take_turns({"product": product.call}, calls)["product"])
