"""A recurrent network with a policy and a value, and its twin without memory.

`act` serves both sides of PPO: a rollout calls it with one step, learning with all steps of a rollout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.recurrent_ppo.environments import Environment
from jaxrnn import initializers

Params = dict[str, Any]
State = Any
CELLS = ("memoryless", "gru", "lstm", "min_gru")
LABELS = {"memoryless": "memoryless", "gru": "GRU", "lstm": "LSTM", "min_gru": "minGRU"}


class Network(NamedTuple):
    """Functions of its parameters; T steps, B episodes."""

    init: Callable[[jax.Array], Params]
    initial_state: Callable[[int], State]
    act: Callable[..., tuple[State, jax.Array, jax.Array]]
    """`(params, state, observations (T, B, O), resets (T, B))` -> state, logits `(T, B, A)`, values `(T, B)`"""


def cell_of(name: str, hidden_size: int, remembered: int | None) -> jaxrnn.Cell:
    """A cell by its name; `remembered` steps are what chrono initialisation is for."""
    make = {"gru": jaxrnn.gru, "lstm": jaxrnn.lstm, "min_gru": jaxrnn.min_gru}[name]
    return make(hidden_size, **({} if remembered is None else {"bias_init": initializers.chrono(remembered)}))


def network_of(environment: Environment, name: str, hidden_size: int, remembered: int | None = None) -> Network:
    """The network of a cell, or without memory two layers of tanh units of the same size."""
    if name == "memoryless":
        layer = encoder_of(hidden_size)
        return with_heads(
            environment,
            hidden_size,
            lambda key: layer.init(key, hidden_size),
            lambda count: (),
            lambda params, state, xs, resets: (state, jnp.tanh(layer.logits(params, xs))),
        )
    cell = cell_of(name, hidden_size, remembered)
    return with_heads(
        environment,
        hidden_size,
        lambda key: cell.init(key, hidden_size),
        lambda count: cell.initial_state((count,)),
        lambda params, state, xs, resets: jaxrnn.unroll(cell, params, xs, state, resets=resets),
    )


def encoder_of(hidden_size: int) -> jaxrnn.Readout:
    """A linear layer, whose outputs go through tanh."""
    return jaxrnn.readout(hidden_size, kernel_init=initializers.orthogonal(2**0.5))


def with_heads(
    environment: Environment,
    hidden_size: int,
    init_memory: Callable[[jax.Array], Any],
    initial_state: Callable[[int], State],
    run: Callable[..., tuple[State, jax.Array]],
) -> Network:
    """A layer of tanh units, `run(params, state, xs, resets)`, and a policy and a value that read what it returns."""
    encoder = encoder_of(hidden_size)
    policy = jaxrnn.readout(environment.actions, kernel_init=initializers.orthogonal(0.01))
    value = jaxrnn.readout(1, kernel_init=initializers.orthogonal(1.0))

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        return {
            "encoder": encoder.init(keys[0], environment.observations),
            "memory": init_memory(keys[1]),
            "policy": policy.init(keys[2], hidden_size),
            "value": value.init(keys[3], hidden_size),
        }

    def act(
        params: Params, state: State, observations: jax.Array, resets: jax.Array
    ) -> tuple[State, jax.Array, jax.Array]:
        xs = jnp.tanh(encoder.logits(params["encoder"], observations))
        state, ys = run(params["memory"], state, xs, resets)
        return state, policy.logits(params["policy"], ys), value.logits(params["value"], ys)[..., 0]

    return Network(init, initial_state, act)
