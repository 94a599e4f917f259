"""Proximal policy optimisation of a recurrent network (Schulman 2017), compiled as one program.

After PureJaxRL (Lu et al. 2022): rollouts, advantages and updates are loops inside it. Episodes run side by side
on a batch axis. A minibatch holds whole rollouts, each with the state that it began with, so that
gradients flow back to the start of the rollout or of the episode.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.recurrent_ppo.environments import Environment, advance
from experiments.recurrent_ppo.network import Network, Params, State


class Settings(NamedTuple):
    """What is the same for every network."""

    updates: int
    episodes: int  # side by side
    steps: int  # of a rollout
    discount: float
    learning_rate: float  # the first; it falls to 0 along a line
    entropy: float
    reward_scale: float = 1.0  # rewards are multiplied by it, so that errors of the value are of the policy's order
    epochs: int = 4
    minibatches: int = 4
    trace: float = 0.95  # lambda of the advantages
    clip: float = 0.2
    value_weight: float = 0.5
    clip_norm: float = 0.5


class Steps(NamedTuple):
    """A rollout; leaves `(T, B, ·)`."""

    observations: jax.Array
    resets: jax.Array  # true where the observation begins an episode
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    rewards: jax.Array
    done: jax.Array


class Place(NamedTuple):
    """Where the episodes are: what the next rollout begins with."""

    environment: Any
    network: State
    resets: jax.Array  # (B,): `done` of the step before


class Run(NamedTuple):
    """All that changes in training."""

    params: Params
    optimiser: Any
    place: Place


def optimiser_of(settings: Settings) -> optax.GradientTransformation:
    steps = settings.updates * settings.epochs * settings.minibatches
    rate = optax.linear_schedule(settings.learning_rate, 0.0, steps)
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate, eps=1e-5))


def begin(environment: Environment, network: Network, settings: Settings, key: jax.Array) -> Run:
    """The run before the first update."""
    key_params, key_start = jax.random.split(key)
    params = network.init(key_params)
    start = environment.start(key_start, settings.episodes)
    resets = jnp.ones(settings.episodes, bool)
    place = Place(start, network.initial_state(settings.episodes), resets)
    return Run(params, optimiser_of(settings).init(params), place)


def rollout(
    environment: Environment, network: Network, params: Params, place: Place, steps: int, key: jax.Array
) -> tuple[Place, Steps]:
    """Acts for some steps. An episode that ends is followed by another, at whose first step the state is reset."""

    def step(place: Place, key: jax.Array) -> tuple[Place, Steps]:
        key_action, key_step = jax.random.split(key)
        observations = environment.observe(place.environment)
        state, logits, values = network.act(params, place.network, observations[None], place.resets[None])
        logits, values = logits[0], values[0]
        actions = jax.random.categorical(key_action, logits)
        after, rewards, done = advance(environment, place.environment, actions, key_step)
        taken = Steps(observations, place.resets, actions, of_actions(logits, actions), values, rewards, done)
        return Place(after, state, done), taken

    return jax.lax.scan(step, place, jax.random.split(key, steps))


def of_actions(logits: jax.Array, actions: jax.Array) -> jax.Array:
    """The log-probabilities of actions."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], -1)[..., 0]


def advantages(steps: Steps, last: jax.Array, discount: float, trace: float) -> jax.Array:
    """Generalised advantages `(T, B)` (Schulman 2016). The value after the last step, `last`, is not read where done.

    An episode that a limit of steps ends counts as one that ended.
    """

    def back(carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        later, value_after = carry
        reward, value, done = now
        later = reward + jnp.where(done, 0.0, discount * (value_after + trace * later)) - value
        return (later, value), later

    now = (steps.rewards, steps.values, steps.done)
    return jax.lax.scan(back, (jnp.zeros_like(last), last), now, reverse=True)[1]


def loss_of(
    network: Network, settings: Settings, params: Params, state: State, steps: Steps, gains: jax.Array
) -> jax.Array:
    """The clipped loss of whole rollouts that began with `state`."""
    _, logits, values = network.act(params, state, steps.observations, steps.resets)
    returns = gains + steps.values
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    ratio = jnp.exp(of_actions(logits, steps.actions) - steps.log_probs)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    policy = -jnp.minimum(ratio * gains, clipped * gains).mean()
    value = 0.5 * jnp.square(values - returns).mean()
    log_probs = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return policy + settings.value_weight * value - settings.entropy * entropy


def learn(
    network: Network, settings: Settings, run: Run, state: State, steps: Steps, gains: jax.Array, key: jax.Array
) -> tuple[Params, Any, jax.Array]:
    """Several epochs of updates on one rollout, each minibatch a share of its episodes."""
    optimiser = optimiser_of(settings)

    def minibatch(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
        params, memory = carry
        own = jax.tree.map(lambda leaf: leaf[rows], state)
        taken, own_gains = jax.tree.map(lambda leaf: leaf[:, rows], (steps, gains))
        loss, gradient = jax.value_and_grad(functools.partial(loss_of, network, settings))(
            params, own, taken, own_gains
        )
        changes, memory = optimiser.update(gradient, memory, params)
        changed: Any = optax.apply_updates(params, changes)
        return (changed, memory), loss

    def epoch(carry: tuple[Params, Any], key: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
        order = jax.random.permutation(key, settings.episodes)
        return jax.lax.scan(minibatch, carry, order.reshape(settings.minibatches, -1))

    start = (run.params, run.optimiser)
    (params, memory), losses = jax.lax.scan(epoch, start, jax.random.split(key, settings.epochs))
    return params, memory, losses.mean()


def update(
    environment: Environment, network: Network, settings: Settings, run: Run, key: jax.Array
) -> tuple[Run, dict[str, jax.Array]]:
    """A rollout, and what is learned from it; the metrics are its loss and the mean return of an episode in it."""
    key_rollout, key_learn = jax.random.split(key)
    place, steps = rollout(environment, network, run.params, run.place, settings.steps, key_rollout)
    observations = environment.observe(place.environment)
    last = network.act(run.params, place.network, observations[None], place.resets[None])[2][0]
    reward = steps.rewards.sum() / jnp.maximum(steps.done.sum(), 1)
    steps = steps._replace(rewards=settings.reward_scale * steps.rewards)
    gains = advantages(steps, last, settings.discount, settings.trace)
    params, memory, loss = learn(network, settings, run, run.place.network, steps, gains, key_learn)
    return Run(params, memory, place), {"loss": loss, "reward": reward}


def updates(
    environment: Environment, network: Network, settings: Settings, count: int
) -> Callable[[Run, jax.Array, jax.Array], tuple[Run, dict[str, jax.Array]]]:
    """`(run, key, first) -> (run, metrics (count,))`: the updates from number `first` on, as one loop.

    Update k draws from `fold_in(key, k)`, so that it does not matter in how many calls they are made.
    """

    def some(run: Run, key: jax.Array, first: jax.Array) -> tuple[Run, dict[str, jax.Array]]:
        one = functools.partial(update, environment, network, settings)
        return jax.lax.scan(lambda run, k: one(run, jax.random.fold_in(key, k)), run, first + jnp.arange(count))

    return some


def greedy_returns(
    environment: Environment, network: Network, params: Params, episodes: int, key: jax.Array
) -> jax.Array:
    """The returns `(episodes,)` of new episodes, in which the likeliest action is taken."""
    key_start, key = jax.random.split(key)
    start = environment.start(key_start, episodes)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        place, returns, ended = carry
        observations = environment.observe(place.environment)
        state, logits, _ = network.act(params, place.network, observations[None], place.resets[None])
        after, rewards, done = environment.step(place.environment, logits[0].argmax(-1), key)
        returns = returns + jnp.where(ended, 0.0, rewards)
        return (Place(after, state, jnp.zeros_like(done)), returns, ended | done), None

    place = Place(start, network.initial_state(episodes), jnp.ones(episodes, bool))
    begun = (place, jnp.zeros(episodes), jnp.zeros(episodes, bool))
    return jax.lax.scan(step, begun, jax.random.split(key, environment.steps))[0][1]
