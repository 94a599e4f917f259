"""Sequential depth and time of the loop, of associative scans and of Newton's method, over T.

What is timed is the value and the gradient, with respect to the parameters, of the mean square of all outputs.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.benchmarks._depth import depth
from experiments.benchmarks._problem import difference
from experiments.benchmarks._turns import take_turns
from experiments.command.progress import Show
from jaxrnn import analysis

WAYS = {  # by name: the cell and the implementation; the loop of a cell comes before what is compared with it
    "gru, loop": ("gru", "bptt"),
    "gru, Newton": ("gru", "newton"),
    "min_gru, loop": ("min_gru", "bptt"),
    "min_gru, associative scan": ("min_gru", "associative"),
}
TOLERANCE = 1e-4  # float32, of the largest entry of an array: sums over T are taken in another order
INPUTS = 8


class Way(NamedTuple):
    """A compiled program."""

    call: Callable[[], Any]
    depth: int
    outcome: Any


def prepared(config: Any, way: str, time: int) -> Way:
    """Compiles one way, counts its depth and calls it once."""
    name, implementation = WAYS[way]
    cell = getattr(jaxrnn, name)(config.time_hidden)
    key_params, key_xs = jax.random.split(jax.random.key(config.seed))
    params = cell.init(key_params, INPUTS, jnp.float32)
    xs = jax.random.normal(key_xs, (time, config.time_batch, INPUTS), jnp.float32)

    def loss(params: Any, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, ys = jaxrnn.unroll(cell, params, xs, implementation=implementation)
        return jnp.mean(jnp.square(ys)), ys

    def call(params: Any, xs: jax.Array) -> Any:
        (value, ys), gradients = jax.value_and_grad(loss, has_aux=True)(params, xs)
        return value, ys, gradients

    executable = jax.jit(call).lower(params, xs).compile()
    iterations, windows, steps = 0, 1, time
    if implementation == "newton":
        found = analysis.newton_convergence(cell, params, xs)
        iterations, windows, steps = int(found.iterations.max()), len(found.by_steps), found.window
        if bool(found.by_steps.any()):
            raise RuntimeError(f"parallel_in_time: a window of {time} steps at initial weights did not converge")
    scans = {"newton": windows * (iterations + 1), "associative": 2}.get(implementation, 0)
    levels = 2 * math.ceil(math.log2(steps)) * scans
    text = executable.as_text() or ""
    return Way(lambda: executable(params, xs), depth(text, iterations) + levels, executable(params, xs))


def timed(config: Any, show: Show) -> list[dict[str, Any]]:
    """Every T: differences from the loop first; then the times of those that are equal to it, in turn."""
    rows = []
    for place, time in enumerate(config.lengths):
        show(place, f"T = {time:,}")
        ways = {way: prepared(config, way, time) for way in WAYS}
        loops = {WAYS[way][0]: found.outcome for way, found in ways.items() if WAYS[way][1] == "bptt"}
        apart = {way: difference(found.outcome, loops[WAYS[way][0]]) for way, found in ways.items()}
        right = {way: ways[way].call for way, value in apart.items() if value <= TOLERANCE}
        taken = take_turns(right, config.rounds)
        for way, found in ways.items():
            ms = {"min_ms": min(taken[way]), "median_ms": statistics.median(taken[way])} if way in taken else {}
            ms = {name: float(f"{value:.4g}") for name, value in ms.items()}
            rows.append({"way": way, "steps": time, "depth": found.depth, "difference": apart[way], **ms})
    return rows
