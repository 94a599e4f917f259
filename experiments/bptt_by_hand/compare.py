"""The derivative by hand, and the same by JAX: values by name, for one cell and one dtype."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxrnn
from experiments.bptt_by_hand import equations
from jaxrnn import analysis

CELLS: dict[str, Callable[[int], jaxrnn.Cell]] = {"rnn": jaxrnn.rnn, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
LABELS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
SYMBOLS = {  # the library's names of gates, as the documents write them
    "rnn": {"h": ""},
    "lstm": {"f": "f", "i": "i", "g": "c̃", "o": "o"},
    "gru": {"r": "r", "z": "z", "n": "h̃"},
}
BOUNDS = {"float64": 1e-12, "float32": 1e-5}  # of any difference between the two
BOUND_OF_SLOPES = 1e-8  # of finite differences, in float64
STEP = 1e-3  # of finite differences of fourth order


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a comparison."""

    steps: int
    input_size: int
    hidden_size: int
    outputs: int


class Problem(NamedTuple):
    """What is differentiated: `(T, B, ·)` sequences with B = 1."""

    params: Any
    read: jaxrnn.ReadoutParams
    xs: jax.Array
    labels: jax.Array  # (T, B) classes


class Pair(NamedTuple):
    """Quantities by name, arrays, computed in two ways."""

    hand: dict[str, Any]
    jax: dict[str, Any]


def pair(hand: dict[str, Any], by_jax: dict[str, Any]) -> Pair:
    """A pair whose names keep their order through jit, which sorts those of other dictionaries."""
    return Pair(OrderedDict(hand), OrderedDict((key, by_jax[key]) for key in hand))


class Comparison(NamedTuple):
    """One cell in one dtype."""

    forward: Pair  # the vectors of each step (T, B, ·): by the library, and by the equations
    steps: Pair  # δ of each step (T, B, ·)
    weights: Pair  # ∂L/∂θ by gate
    read: Pair  # ∂L/∂V and ∂L/∂c


def problem(cell: jaxrnn.Cell, sizes: Sizes, seed: int, dtype: Any) -> Problem:
    """Random parameters, inputs and classes, the same in every dtype."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, sizes.input_size), jax.random.key(0))
    drawn = lambda shape, scale=1.0: jnp.asarray(scale * rng.standard_normal(shape), dtype)  # noqa: E731
    params = jax.tree.map(lambda leaf: drawn(leaf.shape, 0.7), shapes)
    read = jaxrnn.ReadoutParams(drawn((sizes.hidden_size, sizes.outputs)), drawn((sizes.outputs,)))
    xs = drawn((sizes.steps, 1, sizes.input_size))
    return Problem(params, read, xs, jnp.asarray(rng.integers(0, sizes.outputs, (sizes.steps, 1))))


def loss_of(given: Problem) -> Callable[[Any, jax.Array], jax.Array]:
    """The sum of the read-out's losses over the steps, whose derivative by the logits is ŷ - y."""
    read = jaxrnn.readout(given.read.v.shape[-1], activation="softmax")
    return lambda final, ys: read.loss(given.read, ys, given.labels).sum()


def compare(name: str, cell: jaxrnn.Cell, given: Problem) -> Comparison:
    """All quantities of one cell, by hand and by JAX."""
    return jax.device_get(jax.jit(functools.partial(_compare, name, cell))(given))


def _compare(name: str, cell: jaxrnn.Cell, given: Problem) -> Comparison:
    found = analysis.backward_pass(cell, given.params, given.xs, loss_of(given))
    state = cell.initial_state(given.xs.shape[1:-1], given.xs.dtype)
    added = {key: _zeros_like(key, given) for key in equations.NAMES[name]}
    cost = functools.partial(equations.cost, name)
    (by_params, by_read, by_added), vectors = jax.grad(cost, (0, 1, 5), has_aux=True)(
        given.params, given.read, state, given.xs, given.labels, added
    )
    forward = {key: jnp.stack([step[key] for step in vectors]) for key in equations.VECTORS[name]}
    assert found.by_gate is not None
    return Comparison(
        pair(_forward_of(name, cell, given), forward),
        pair(_steps_of(name, found), {_delta(key): value for key, value in by_added.items()}),
        pair(_by_gate(name, found.by_gate), _by_gate(name, _split(by_params, list(SYMBOLS[name])))),
        pair(_read_by_hand(cell, given), {"∂L/∂V": by_read.v, "∂L/∂c": by_read.c}),
    )


def _zeros_like(key: str, given: Problem) -> jax.Array:
    hidden = given.read.v.shape[0]
    return jnp.zeros(given.xs.shape if key == "x" else (*given.xs.shape[:-1], hidden), given.xs.dtype)


def _delta(key: str) -> str:
    return {"carry": "f δC of t+1"}.get(key, f"δ{key}")


def _steps_of(name: str, found: analysis.BackwardPass) -> dict[str, Any]:
    """δ of each step by hand, under the names of what is added in the equations."""
    values = {"h": found.states, "x": found.inputs}
    if isinstance(found.states, jaxrnn.LSTMState):
        values |= {"h": found.states.h, "carry": found.states.c, "C": found.cell_state}
    for gate, delta in found.pre_activations.items():
        symbol = SYMBOLS[name].get(gate, gate)
        values["q" if gate == "q" else f"a_{symbol}" if symbol else "a"] = delta
    return {_delta(key): values[key] for key in equations.NAMES[name]}


def _forward_of(name: str, cell: jaxrnn.Cell, given: Problem) -> dict[str, Any]:
    """The vectors of each step by the library."""
    _, ys, states = jaxrnn.unroll(cell, given.params, given.xs, return_states=True)
    found = {"h": ys}
    if name != "rnn":
        gates = analysis.gate_values(cell, given.params, given.xs)
        found |= {symbol: gates[gate] for gate, symbol in SYMBOLS[name].items()}
    if isinstance(states, jaxrnn.LSTMState):
        found["C"] = states.c
    if isinstance(given.params, jaxrnn.GRUParams):
        before, b_q = jnp.concatenate([jnp.zeros_like(ys[:1]), ys[:-1]]), given.params.b_hn
        assert b_q is not None
        found["q"] = before @ jnp.split(given.params.w_h, 3, -1)[2] + jnp.broadcast_to(b_q, before.shape)
    return {key: found[key] for key in equations.VECTORS[name]}


def _split(params: Any, gates: list[str]) -> dict[str, Any]:
    """The part of each gate, by its columns in the order of the library."""
    order = [gate for gate in ("i", "r", "z", "f", "g", "n", "o", "h") if gate in gates]
    parts = [jnp.split(leaf, len(order), axis=-1) for leaf in params[:3]]
    split = {gate: type(params)(*(part[k] for part in parts)) for k, gate in enumerate(order)}
    if isinstance(params, jaxrnn.GRUParams):
        split["n"] = split["n"]._replace(b_hn=params.b_hn)
    return split


def _by_gate(name: str, by_gate: dict[str, Any]) -> dict[str, Any]:
    """W reads x, U reads h."""
    found = {}
    for gate, symbol in SYMBOLS[name].items():
        letters = {"w_x": "W", "w_h": "U", "b": "b", "b_hn": "b_q"}
        for field, value in by_gate[gate]._asdict().items():
            if field in letters and value is not None:
                letter = letters[field] + (f"_{symbol}" if symbol and field != "b_hn" else "")
                found[f"∂L/∂{letter}"] = value
    return found


def _read_by_hand(cell: jaxrnn.Cell, given: Problem) -> dict[str, Any]:
    """Σ h_tᵀ (ŷ - y) and Σ (ŷ - y)."""
    _, ys = jaxrnn.unroll(cell, given.params, given.xs)
    read = jaxrnn.readout(given.read.v.shape[-1], activation="softmax")
    predicted = read.predict(given.read, ys)
    error = predicted - jax.nn.one_hot(given.labels, predicted.shape[-1], dtype=predicted.dtype)
    return {"∂L/∂V": jnp.einsum("tbh,tbo->ho", ys, error), "∂L/∂c": error.sum((0, 1))}


def slopes(cell: jaxrnn.Cell, name: str, given: Problem) -> dict[str, Any]:
    """∂L/∂θ by finite differences of the library's own values, one entry after another."""
    flat, restore = ravel_pytree(given.params)
    loss = loss_of(given)

    def value(flat: jax.Array) -> jax.Array:
        return loss(*jaxrnn.unroll(cell, restore(flat), given.xs))

    def by_entry(direction: jax.Array) -> jax.Array:
        near = value(flat + STEP * direction) - value(flat - STEP * direction)
        far = value(flat + 2 * STEP * direction) - value(flat - 2 * STEP * direction)
        return (8 * near - far) / (12 * STEP)

    def by_params() -> dict[str, Any]:
        found = restore(jax.lax.map(by_entry, jnp.eye(len(flat), dtype=flat.dtype)))
        return _by_gate(name, _split(found, list(SYMBOLS[name])))

    return jax.device_get(jax.jit(by_params)())


def readouts(sizes: Sizes, seed: int, dtype: Any) -> dict[str, Pair]:
    """δ of the logits and of h, and ∂L/∂V, for ψ = σ and ψ = softmax: ŷ - y by hand, and JAX on plain logarithms."""
    rng, batch = np.random.default_rng(seed), sizes.steps
    drawn = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    read = jaxrnn.ReadoutParams(drawn(sizes.hidden_size, sizes.outputs), drawn(sizes.outputs))
    h, labels = drawn(batch, sizes.hidden_size), jnp.asarray(rng.integers(0, sizes.outputs, batch))
    events = jnp.asarray(rng.integers(0, 2, (batch, sizes.outputs)), dtype)
    return jax.device_get(jax.jit(_readouts)(read, h, labels, events))


def _readouts(params: jaxrnn.ReadoutParams, h: jax.Array, labels: jax.Array, events: jax.Array) -> dict[str, Pair]:
    found = {}
    assert params.c is not None
    for kind, cost, y in (("sigmoid", equations.sigmoid_cost, events), ("softmax", equations.softmax_cost, labels)):
        predicted = jaxrnn.readout(events.shape[-1], activation=kind).predict(params, h)
        error = predicted - (y if y.ndim == 2 else jax.nn.one_hot(y, events.shape[-1], dtype=h.dtype))
        zeros = jnp.zeros_like(error)  # added to the logits
        by_jax = jax.grad(functools.partial(_total, cost, params.c, y), (0, 1, 2))(zeros, h, params.v)
        by_hand = {"ŷ - y": error, "(ŷ - y) Vᵀ": error @ params.v.T, "hᵀ (ŷ - y)": h.T @ error}
        found[kind] = pair(by_hand, dict(zip(by_hand, by_jax, strict=True)))
    return found


def _total(cost: Any, c: jax.Array, y: jax.Array, added: jax.Array, h: jax.Array, v: jax.Array) -> jax.Array:
    """The sum of a cost over rows, each with a bias of its own."""
    return functools.reduce(jnp.add, [cost(v, c + added[k], h[k : k + 1], y[k : k + 1]) for k in range(len(h))])


def layers(name: str, make: Callable[[int], jaxrnn.Cell], sizes: Sizes, seed: int, dtype: Any) -> Pair:
    """The error that the upper of two layers hands to the lower one, and what it makes of that."""
    lower, upper = make(sizes.hidden_size), make(sizes.hidden_size)
    below = problem(lower, sizes, seed, dtype)
    above = problem(upper, dataclasses.replace(sizes, input_size=sizes.hidden_size), seed + 1, dtype)
    return jax.device_get(jax.jit(functools.partial(_layers, lower, upper))(below, above))


def _layers(lower: jaxrnn.Cell, upper: jaxrnn.Cell, below: Problem, above: Problem) -> Pair:
    loss, net = loss_of(above), jaxrnn.stack([lower, upper])
    found = analysis.backward_pass(net, (below.params, above.params), below.xs, lambda states, ys: loss(None, ys))

    def total(error: jax.Array, xs: jax.Array) -> jax.Array:
        _, ys = jaxrnn.unroll(lower, below.params, xs, implementation="scan")
        return loss(*jaxrnn.unroll(upper, above.params, ys + error, implementation="scan"))

    of_layer, of_input = jax.grad(total, (0, 1))(jnp.zeros_like(found.inputs[1]), below.xs)
    hand = {"δx, to the layer below": found.inputs[1], "δx, to the input": found.inputs[0]}
    return pair(hand, dict(zip(hand, (of_layer, of_input), strict=True)))


def difference(given: Pair, key: str) -> float:
    """The largest of any entry; NaN if either is not a number."""
    return float(np.max(np.abs(np.asarray(given.hand[key], np.float64) - np.asarray(given.jax[key], np.float64))))


def differing(given: Pair, bound: float) -> list[str]:
    """The names of what differs by more than a bound."""
    found = []
    for key in given.hand:
        values = np.asarray(given.hand[key]), np.asarray(given.jax[key])
        try:
            chex.assert_tree_all_finite(values)
            chex.assert_trees_all_close(*values, rtol=0, atol=bound)
        except AssertionError:
            found.append(key)
    return found
