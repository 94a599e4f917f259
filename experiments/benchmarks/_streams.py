"""One step at a time, with the state passed from call to call: the cells of jaxrnn and of other libraries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.benchmarks import _peers
from experiments.benchmarks._problem import FORMS, Problem
from experiments.benchmarks._turns import cores
from jaxrnn import interop

Stream = Callable[[], Any]  # reads the next input and returns its output; the state stays inside
Step = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]  # (params, state, x) -> (state, y)


def streaming(step: Step, params: Any, state: Any, xs: jax.Array) -> Stream:
    """Compiled once; each call donates the state it is given. After the last input the first follows."""
    run = jax.jit(step, donate_argnums=1)
    inputs = list(xs)
    carried = {"state": jax.tree.map(jnp.array, state), "next": 0}

    def call() -> jax.Array:
        x = inputs[carried["next"] % len(inputs)]
        carried["state"], y = run(params, carried["state"], x)
        carried["next"] += 1
        return y

    return call


def cell(problem: Problem) -> Stream:
    """`cell.step`."""
    ours = problem.cell
    return streaming(ours.step, problem.params, ours.initial_state((problem.shape.batch,)), problem.xs)


def network(problem: Problem) -> Stream:
    """`step` of a network of one layer."""
    ours = jaxrnn.stack([problem.cell])
    return streaming(ours.step, (problem.params,), ours.initial_state((problem.shape.batch,)), problem.xs)


def zeros(problem: Problem) -> Any:
    """(h, c) or h as plain arrays; zeros, so that the order of the two does not matter."""
    _, batch, _, hidden = problem.shape
    h = jnp.zeros((batch, hidden))
    return (h, h) if FORMS[problem.form].kind == "lstm" else h


def flax(problem: Problem) -> Stream:
    """A cell of `nnx`, split once so that no call walks the module."""
    nnx = _peers.load("flax.nnx")
    graph, params = nnx.split(_peers.flax_cell(problem))
    return streaming(lambda params, state, x: nnx.merge(graph, params)(state, x), params, zeros(problem), problem.xs)


def equinox(problem: Problem) -> Stream:
    """A cell of `eqx.nn`, over the batch by `vmap`."""

    def step(module: Any, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        state = jax.vmap(module)(x, state)
        return state, state[0] if problem.form == "lstm" else state

    return streaming(step, _peers.equinox_cell(problem), zeros(problem), problem.xs)


def torch(problem: Problem) -> Stream:
    """`nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` with all threads."""
    pytorch = _peers.load("torch")
    pytorch.set_num_threads(cores())
    kind, (_, _, features, hidden) = FORMS[problem.form].kind, problem.shape
    module = getattr(pytorch.nn, f"{kind.upper()}Cell")(features, hidden)
    _peers.load_torch(module, interop.to_torch(problem.params))
    inputs = list(pytorch.from_numpy(np.array(problem.xs)))
    carried: dict[str, Any] = {"state": None, "next": 0}

    def call() -> Any:
        with pytorch.inference_mode():
            carried["state"] = module(inputs[carried["next"] % len(inputs)], carried["state"])
        carried["next"] += 1
        return carried["state"][0] if kind == "lstm" else carried["state"]

    return call


# The first is what the others are compared with.
OWN: dict[str, Callable[[Problem], Stream]] = {"cell": cell, "network": network}
OTHERS: dict[str, Callable[[Problem], Stream]] = {"flax": flax, "equinox": equinox, "torch": torch}


def streams_of(problem: Problem, peers: tuple[str, ...]) -> dict[str, Stream]:
    """The streams that support the problem, by name."""
    others = {n: build for n, build in OTHERS.items() if n in peers and problem.form in _peers.PEERS[n].forms}
    return {name: build(problem) for name, build in {**OWN, **others}.items()}
