"""One process of the timed comparison: train steps on so many CPU devices, confined to so many cores.

    python -m experiments.benchmarks._scaling_worker DEVICES CORES SECONDS CELL:T,B,I,H ...

prints the milliseconds of every call, as JSON by cell and shape.
"""

import json
import os
import sys
import time

import jax

import jaxrnn
from experiments.benchmarks._problem import make_problem, mean_square, parse_shape
from experiments.benchmarks._turns import compiled, start


def milliseconds(name: str, seconds: float) -> list[float]:
    """Of every call that begins within so many seconds."""
    form, _, text = name.partition(":")
    problem = make_problem(form, parse_shape("shape", text))

    def loss(params, xs, target):
        return mean_square(jaxrnn.unroll(problem.cell, params, xs)[1], target)

    step = jax.value_and_grad(loss)
    if jax.device_count() > 1:
        step = jaxrnn.data_parallel(step, (None, 1, 1))
    call = compiled(step, problem.params, problem.xs, problem.target).call
    jax.block_until_ready(call())
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(1e3 * (time.perf_counter() - begin))
    return found


def main(arguments: list[str]) -> int:
    devices, cores, seconds, *names = arguments
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores for its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    start(int(devices))
    print(json.dumps({name: milliseconds(name, float(seconds)) for name in names}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
