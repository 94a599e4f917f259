"""The same program with Flax's cell: whether it computes the same, and how many environment steps a second it makes."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

import jaxrnn
from experiments.recurrent_ppo import ppo
from experiments.recurrent_ppo.environments import Environment
from experiments.recurrent_ppo.network import Network, Params, cell_of, network_of, with_heads

NAMES = ("unroll", "cell.step", "flax")


class Timed(NamedTuple):
    """Environment steps a second, by the program, and how far the parameters of the programs are apart."""

    steps_per_second: dict[str, dict[str, float]]  # the most and the median
    difference: dict[str, float]  # to the parameters of "unroll" after an update, the largest


def flax_network(environment: Environment, hidden_size: int) -> Network:
    """The network of Flax's `GRUCell`, run by `jax.lax.scan`; parameters as `flax_params` converts them."""
    cell = linen.GRUCell(hidden_size)

    def run(params: Any, state: jax.Array, xs: jax.Array, resets: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(state: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, reset = now
            found: Any = cell.apply(params, jnp.where(reset[:, None], 0.0, state), x)
            return found

        return jax.lax.scan(step, state, (xs, resets))

    def init(key: jax.Array) -> Any:
        return flax_cell_params(cell_of("gru", hidden_size, None).init(key, hidden_size))

    return with_heads(environment, hidden_size, init, lambda count: jnp.zeros((count, hidden_size)), run)


def flax_cell_params(params: Any) -> Any:
    return jax.tree.map(jnp.asarray, jaxrnn.interop.to_linen(params))


def flax_params(params: Params) -> Params:
    """The parameters of a network with our GRU as those of `flax_network`."""
    return {**params, "memory": flax_cell_params(params["memory"])}


def step_network(environment: Environment, hidden_size: int) -> Network:
    """Our network, which takes one step by `cell.step` instead of `unroll`."""
    cell = cell_of("gru", hidden_size, None)

    def run(params: Any, state: Any, xs: jax.Array, resets: jax.Array) -> tuple[Any, jax.Array]:
        if len(xs) > 1:
            return jaxrnn.unroll(cell, params, xs, state, resets=resets)
        state, y = cell.step(params, jnp.where(resets[0, :, None], 0.0, state), xs[0])
        return state, y[None]

    def init(key: jax.Array) -> Any:
        return cell.init(key, hidden_size)

    return with_heads(environment, hidden_size, init, lambda count: cell.initial_state((count,)), run)


def measured(environment: Environment, hidden_size: int, settings: ppo.Settings, rounds: int, count: int) -> Timed:
    """Times so many updates of each program so many rounds, in random order, after one update is compared.

    Args:
        environment: of the task.
        hidden_size: H.
        settings: of the training.
        rounds: of the timing.
        count: of updates in a compiled call.
    """
    ours = network_of(environment, "gru", hidden_size)
    others = step_network(environment, hidden_size), flax_network(environment, hidden_size)
    networks = dict(zip(NAMES, (ours, *others), strict=True))
    start = ppo.begin(environment, ours, settings, jax.random.key(0))
    starts: dict[str, ppo.Run] = dict.fromkeys(NAMES, start)
    params = flax_params(start.params)
    starts["flax"] = start._replace(params=params, optimiser=ppo.optimiser_of(settings).init(params))
    runs = {name: compiled(environment, network, settings, count) for name, network in networks.items()}
    ends = {name: run(starts[name])[0].params for name, run in runs.items()}
    ends = {name: ends[name] if name == "flax" else flax_params(ends[name]) for name in NAMES}
    differences = {name: _apart(ends[name], ends["unroll"]) for name in NAMES if name != "unroll"}
    seconds = timed({name: functools.partial(run, starts[name]) for name, run in runs.items()}, rounds)
    steps = count * settings.steps * settings.episodes
    rates = {name: {"most": steps / min(own), "median": steps / float(np.median(own))} for name, own in seconds.items()}
    return Timed(rates, differences)


def compiled(environment: Environment, network: Network, settings: ppo.Settings, count: int) -> Callable[..., Any]:
    some = ppo.updates(environment, network, settings, count)
    return jax.jit(lambda run: some(run, jax.random.key(1), jnp.asarray(0)))


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds of every call so many rounds, in random order."""
    order, seconds = list(calls), {name: [] for name in calls}
    shuffle = np.random.default_rng(0)
    for _ in range(rounds):
        for k in shuffle.permutation(len(order)):
            start = time.perf_counter()
            jax.block_until_ready(calls[order[k]]())
            seconds[order[k]].append(time.perf_counter() - start)
    return seconds


def _apart(a: Params, b: Params) -> float:
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
