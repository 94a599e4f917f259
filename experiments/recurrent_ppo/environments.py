"""Four tasks that need memory, as pure functions of many episodes at once; each has a known optimum.

A state holds the axis of the episodes in every leaf, so that a network reads all episodes as one batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = Any


class Environment(NamedTuple):
    """One task; B is the number of episodes."""

    label: str
    observations: int  # numbers in an observation
    actions: int
    steps: int  # the longest episode
    optimum: float  # the best expected return
    start: Callable[[jax.Array, int], State]  # of a key and B
    observe: Callable[[State], jax.Array]  # (B, O)
    step: Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array, jax.Array]]
    """`(state, actions (B,), key) -> (state, rewards (B,), done (B,))`"""


def advance(
    environment: Environment, state: State, actions: jax.Array, key: jax.Array
) -> tuple[State, jax.Array, jax.Array]:
    """A step, after which an episode that ended is replaced by a new one."""
    key_step, key_start = jax.random.split(key)
    state, rewards, done = environment.step(state, actions, key_step)
    fresh = environment.start(key_start, len(done))

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(chosen, fresh, state), rewards, done


# CartPole without velocities

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
FARTHEST, STEEPEST, LONGEST = 2.4, 12 * jnp.pi / 180, 500


class CartPole(NamedTuple):
    """Cart and pole; every leaf `(B,)`."""

    x: jax.Array
    x_dot: jax.Array
    theta: jax.Array
    theta_dot: jax.Array
    time: jax.Array


def start_cart_pole(key: jax.Array, count: int) -> CartPole:
    x, x_dot, theta, theta_dot = jax.random.uniform(key, (4, count), minval=-0.05, maxval=0.05)
    return CartPole(x, x_dot, theta, theta_dot, jnp.zeros(count, jnp.int32))


def observe_cart_pole(state: CartPole) -> jax.Array:
    """The two positions, each divided by where an episode ends. Velocities have to be inferred from several steps."""
    return jnp.stack([state.x / FARTHEST, state.theta / STEEPEST], -1)


def step_cart_pole(state: CartPole, actions: jax.Array, key: jax.Array) -> tuple[CartPole, jax.Array, jax.Array]:
    """The equations of Barto, Sutton & Anderson 1983 without friction, by Euler's method, as in Gym's CartPole-v1."""
    del key
    x, x_dot, theta, theta_dot, time = state
    force = jnp.where(actions == 1, FORCE, -FORCE)
    mass = CART + POLE
    pushed = (force + POLE * HALF_LENGTH * theta_dot**2 * jnp.sin(theta)) / mass
    inertia = HALF_LENGTH * (4.0 / 3.0 - POLE * jnp.cos(theta) ** 2 / mass)
    theta_acc = (GRAVITY * jnp.sin(theta) - jnp.cos(theta) * pushed) / inertia
    x_acc = pushed - POLE * HALF_LENGTH * theta_acc * jnp.cos(theta) / mass
    after = CartPole(
        x + SECONDS * x_dot,
        x_dot + SECONDS * x_acc,
        theta + SECONDS * theta_dot,
        theta_dot + SECONDS * theta_acc,
        time + 1,
    )
    fallen = (jnp.abs(after.x) > FARTHEST) | (jnp.abs(after.theta) > STEEPEST)
    return after, jnp.ones_like(x), fallen | (after.time >= LONGEST)


# A memory chain

REMEMBERED = 100  # steps from the cue to the choice


class Chain(NamedTuple):
    cue: jax.Array  # (B,), 0 or 1
    time: jax.Array


def start_chain(key: jax.Array, count: int) -> Chain:
    return Chain(jax.random.randint(key, (count,), 0, 2), jnp.zeros(count, jnp.int32))


def observe_chain(state: Chain) -> jax.Array:
    """The cue as 1 or -1 at the first step, and 1 at the last, where it has to be chosen."""
    cue = jnp.where(state.time == 0, 2 * state.cue - 1, 0)
    return jnp.stack([cue.astype(jnp.float32), (state.time == REMEMBERED).astype(jnp.float32)], -1)


def step_chain(state: Chain, actions: jax.Array, key: jax.Array) -> tuple[Chain, jax.Array, jax.Array]:
    """A choice of the cue at the last step is rewarded by 1, the other one by -1; other actions do nothing."""
    del key
    last = state.time == REMEMBERED
    rewards = jnp.where(last, jnp.where(actions == state.cue, 1.0, -1.0), 0.0)
    return Chain(state.cue, state.time + 1), rewards, last


# A bandit

ARMS, PULLS = 5, 10


class Bandit(NamedTuple):
    chances: jax.Array  # (B, ARMS), of a reward of 1
    action: jax.Array  # (B,), the last one, -1 before the first
    reward: jax.Array  # (B,)
    time: jax.Array


def start_bandit(key: jax.Array, count: int) -> Bandit:
    chances = jax.random.uniform(key, (count, ARMS))
    return Bandit(chances, jnp.full(count, -1), jnp.zeros(count), jnp.zeros(count, jnp.int32))


def observe_bandit(state: Bandit) -> jax.Array:
    """The last arm, one-hot, and what it gave; zeros before the first pull."""
    return jnp.concatenate([jax.nn.one_hot(state.action, ARMS), state.reward[:, None]], -1)


def step_bandit(state: Bandit, actions: jax.Array, key: jax.Array) -> tuple[Bandit, jax.Array, jax.Array]:
    chances = jnp.take_along_axis(state.chances, actions[:, None], 1)[:, 0]
    rewards = jax.random.bernoulli(key, chances).astype(jnp.float32)
    time = state.time + 1
    return Bandit(state.chances, actions, rewards, time), rewards, time == PULLS


# RepeatPrevious

SUITS, CARDS, BACK = 4, 52, 4


class Cards(NamedTuple):
    deck: jax.Array  # (B, CARDS), the suits
    time: jax.Array


def start_cards(key: jax.Array, count: int) -> Cards:
    decks = jnp.broadcast_to(jnp.arange(CARDS) % SUITS, (count, CARDS))
    return Cards(jax.random.permutation(key, decks, axis=1, independent=True), jnp.zeros(count, jnp.int32))


def observe_cards(state: Cards) -> jax.Array:
    """The suit of the card that is turned up now, one-hot."""
    return jax.nn.one_hot(jnp.take_along_axis(state.deck, state.time[:, None], 1)[:, 0], SUITS)


def step_cards(state: Cards, actions: jax.Array, key: jax.Array) -> tuple[Cards, jax.Array, jax.Array]:
    """The suit of four cards ago is right; right and wrong answers add up to 1 and -1 over an episode."""
    del key
    asked = state.time >= BACK
    suits = jnp.take_along_axis(state.deck, jnp.maximum(state.time - BACK, 0)[:, None], 1)[:, 0]
    each = 1.0 / (CARDS - BACK)
    rewards = jnp.where(asked, jnp.where(actions == suits, each, -each), 0.0)
    done = state.time == CARDS - 1
    return Cards(state.deck, jnp.minimum(state.time + 1, CARDS - 1)), rewards, done


BAYES_OPTIMAL = 6.660  # of the bandit; `planning.py` computes it anew

ENVIRONMENTS = {
    "cart_pole": Environment(
        "CartPole without velocities", 2, 2, LONGEST, 500.0, start_cart_pole, observe_cart_pole, step_cart_pole
    ),
    "chain": Environment("memory chain of 100", 2, 2, REMEMBERED + 1, 1.0, start_chain, observe_chain, step_chain),
    "bandit": Environment(
        "bandit, 5 arms, 10 pulls", ARMS + 1, ARMS, PULLS, BAYES_OPTIMAL, start_bandit, observe_bandit, step_bandit
    ),
    "repeat_previous": Environment(
        "RepeatPrevious, 4 back", SUITS, SUITS, CARDS, 1.0, start_cards, observe_cards, step_cards
    ),
}
