"""One process of the timed comparison: train steps on so many CPU devices, confined to so many cores.

    python -m experiments.benchmarks._scaling_worker DEVICES CORES CELL:T,B,I,H ...

compiles the train steps and prints "ready". Then it reads lines `SECONDS CELL:T,B,I,H`. For each it prints the
milliseconds of every call that begins within so many seconds, as a JSON list. Between its turns it sleeps.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

import jaxrnn
from experiments.benchmarks._problem import make_problem, mean_square, parse_shape
from experiments.benchmarks._turns import compiled, start


def train_step(name: str) -> Callable[[], Any]:
    """A call that is compiled, and has been made once."""
    form, _, text = name.partition(":")
    problem = make_problem(form, parse_shape("shape", text))

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return mean_square(jaxrnn.unroll(problem.cell, params, xs)[1], target)

    step = jax.value_and_grad(loss)
    if jax.device_count() > 1:
        step = jaxrnn.data_parallel(step, (None, 1, 1))
    call = compiled(step, problem.params, problem.xs, problem.target).call
    jax.block_until_ready(call())
    return call


def milliseconds(call: Callable[[], Any], seconds: float) -> list[float]:
    """Of every call that begins within so many seconds, two at least; the first, which wakes the threads, apart."""
    jax.block_until_ready(call())
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(1e3 * (time.perf_counter() - begin))
    return found


def main(arguments: list[str]) -> int:
    devices, cores, *names = arguments
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores for its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    start(int(devices))
    calls = {name: train_step(name) for name in names}
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, name = line.split()
        print(json.dumps(milliseconds(calls[name], float(seconds))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
