"""Trains one network on one task with several seeds, in compiled calls of many updates."""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command.devices import Devices, platform_of
from experiments.command.progress import Show
from experiments.recurrent_ppo import planning, ppo
from experiments.recurrent_ppo.environments import ARMS, PULLS, Bandit, Environment, observe_bandit
from experiments.recurrent_ppo.network import Network, Params
from experiments.training.loop import Course, Evaluation, Keeper, TrainState
from experiments.training.seeds import over_seeds, population

LOOKS = 8  # evaluations of a training, each on so many new episodes:
EPISODES = 128


def calls(first: int, updates: int) -> Iterator[range]:
    """The updates of each compiled call, after which the seeds are evaluated."""
    size = max(1, updates // LOOKS)
    while first < updates:
        yield range(first, min(updates, (first // size + 1) * size))
        first = min(updates, (first // size + 1) * size)


class Keys(NamedTuple):
    """Of one seed. New episodes are drawn with those of the first."""

    start: jax.Array
    updates: jax.Array
    evaluation: jax.Array
    test: jax.Array


def keys_of(seed: int) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed), 4))


def begin(environment: Environment, network: Network, settings: ppo.Settings, seeds: Sequence[int]) -> TrainState:
    """The state of all seeds before the first update."""
    keys = [keys_of(seed) for seed in seeds]
    one = functools.partial(ppo.begin, environment, network, settings)
    runs = jax.jit(lambda keys: jax.lax.map(one, keys))(jnp.stack([own.start for own in keys]))
    return TrainState(jnp.zeros((), jnp.int32), jnp.stack([own.updates for own in keys]), *runs)


def fit(
    environment: Environment,
    network: Network,
    settings: ppo.Settings,
    seeds: Sequence[int],
    devices: Devices,
    show: Show,
    keeper: Keeper,
) -> Course:
    """Trains all seeds, from the start or from what the keeper restores."""
    platform = platform_of(devices)
    course = keeper.restored(Course(begin(environment, network, settings, seeds), None, []))
    start, state = time.perf_counter() - course.seconds, course.state

    @functools.partial(jax.jit, static_argnums=2)
    def advanced(state: TrainState, first: jax.Array, count: int) -> tuple[ppo.Run, dict[str, jax.Array]]:
        some = ppo.updates(environment, network, settings, count)
        one = over_seeds(lambda key, *own: some(ppo.Run(*own), key, first), platform)
        return one(state.keys, *state[2:])

    @functools.partial(population, platform=platform)
    def returns(params: Params, key: jax.Array) -> jax.Array:
        return ppo.greedy_returns(environment, network, params, EPISODES, key).mean()

    for steps in calls(int(state.step), settings.updates):
        runs, metrics = advanced(state, jnp.asarray(steps.start), len(steps))
        state = TrainState(jnp.asarray(steps.stop, jnp.int32), state.keys, *runs)
        found = np.asarray(returns(runs.params, keys_of(seeds[0]).evaluation), np.float64)
        loss = np.asarray(metrics["loss"], np.float64).mean(1)
        seen = Evaluation(steps.stop, time.perf_counter() - start, loss, {"return": found})
        course = Course(state, None, [*course.history, seen])
        show(steps.stop, f"return {found.mean():.4g}")
        keeper.evaluated(course, steps.stop == settings.updates)
    return course


def tested(
    environment: Environment, network: Network, params: Params, episodes: int, seed: int, platform: str
) -> np.ndarray:
    """The mean return of every seed `(seeds,)` on new episodes, with the likeliest actions."""

    @functools.partial(population, platform=platform)
    def returns(params: Params, key: jax.Array) -> jax.Array:
        return ppo.greedy_returns(environment, network, params, episodes, key).mean()

    return np.asarray(returns(params, keys_of(seed).test), np.float64)


def bandit_values(network: Network, params: Params, platform: str) -> np.ndarray:
    """The expected return of every seed's likeliest actions `(seeds,)`, from all sequences of rewards."""
    rewards = planning.every_outcome(PULLS)

    @functools.partial(population, platform=platform)
    def actions(params: Params, rewards: jax.Array) -> jax.Array:
        return greedy_actions(network, params, rewards)

    found = np.asarray(actions(params, jnp.asarray(rewards, jnp.float32)))
    return np.array([planning.expected_return(ARMS, rewards, own) for own in found])


def greedy_actions(network: Network, params: Params, rewards: jax.Array) -> jax.Array:
    """The likeliest actions `(N, pulls)` at the bandit if the pulls give these rewards `(N, pulls)`."""
    count = len(rewards)
    first = Bandit(jnp.zeros((count, ARMS)), jnp.full(count, -1), jnp.zeros(count), jnp.zeros(count, jnp.int32))

    def step(carry: tuple, now: tuple) -> tuple[tuple, jax.Array]:
        state, place = carry
        won, reset = now
        resets = jnp.broadcast_to(reset, (1, count))
        state, logits, _ = network.act(params, state, observe_bandit(place)[None], resets)
        chosen = logits[0].argmax(-1)
        return (state, Bandit(place.chances, chosen, won, place.time + 1)), chosen

    begins = jnp.arange(rewards.shape[1]) == 0
    return jax.lax.scan(step, (network.initial_state(count), first), (rewards.T, begins))[1].T
