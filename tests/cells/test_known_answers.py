"""jaxrnn against PyTorch, ONNX Runtime and Keras: their stored answers, and the installed libraries.

The stored answers, or golden files, need no other library. A live test is skipped where its library is missing,
unless JAXRNN_REQUIRE_PEERS is 1. This file converts parameters by itself, and so checks the converters of jaxrnn.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Bidirectional, GRUParams, LSTMParams, LSTMState, RNNParams
from tests.golden import make
from tests.support.peers import peer
from tests.support.registry import assert_equal, gap, quick_jit

# Relative to the largest entry of each array.
TOLERANCE = {"torch": 1e-12, "onnx": 5e-6, "keras": 5e-6}

GOLDEN = {name: make.read(name) for name in make.MAKERS}
LIVE = 24


def golden(name: str) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=key) for key, case in GOLDEN[name].items()])


def ask(name: str, config: dict) -> make.Case:
    """The case that an installed library computes now. Keras needs standard promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return make.MAKERS[name][0](config)


def assert_equals_peer(name: str, ours: dict, theirs: dict) -> None:
    ours = {key: np.asarray(value) for key, value in ours.items()}
    assert {key: a.dtype for key, a in ours.items()} == dict.fromkeys(theirs, np.dtype(make.DTYPES[name]))
    gaps = {key: gap(ours[key], value) for key, value in theirs.items()}
    assert {key: value for key, value in gaps.items() if value > TOLERANCE[name]} == {}


@functools.cache
def cell_of(kind: str, size: int, **options: Any) -> jaxrnn.Cell:
    """One cell for equal arguments, so that tests share compiled programs."""
    return getattr(jaxrnn, kind)(size, **options)


def gates(a: np.ndarray, order: str, ours: str) -> np.ndarray:
    """The gates on the last axis, reordered from `order` to `ours`."""
    blocks = dict(zip(order, np.split(a, len(order), axis=-1), strict=True))
    return np.concatenate([blocks[gate] for gate in ours], axis=-1)


# PyTorch: values, and gradients of its own weights


def torch_network(config: dict) -> jaxrnn.Network:
    kind = config["kind"]
    options = {
        "RNN": {"activation": config["nonlinearity"]},
        "LSTM": {"projection_size": config["proj_size"] or None},
        "GRU": {},
    }[kind]
    cell = cell_of(kind.lower(), config["hidden_size"], use_bias=config["bias"], **options)
    return jaxrnn.stack([cell] * config["num_layers"], bidirectional=config["bidirectional"])


def by_layer(config: dict, make_one: Any) -> tuple[Any, ...]:
    """`make_one(layer, direction)` in the structure of a network."""
    if not config["bidirectional"]:
        return tuple(make_one(k, 0) for k in range(config["num_layers"]))
    return tuple(Bidirectional(make_one(k, 0), make_one(k, 1)) for k in range(config["num_layers"]))


def torch_params(config: dict, inputs: dict) -> Any:
    def one(layer: int, direction: int) -> Any:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        get = lambda name: inputs.get(name + suffix)  # noqa: E731
        w_x, w_h, b_x, b_h = get("weight_ih").T, get("weight_hh").T, get("bias_ih"), get("bias_hh")
        if config["kind"] == "GRU":
            if b_x is None:
                return GRUParams(w_x, w_h)
            both = 2 * config["hidden_size"]
            return GRUParams(w_x, w_h, jnp.concatenate([b_x[:both] + b_h[:both], b_x[both:]]), b_h[both:])
        b = None if b_x is None else b_x + b_h
        if config["kind"] == "RNN":
            return RNNParams(w_x, w_h, b)
        return LSTMParams(w_x, w_h, b, w_proj=get("weight_hr").T if config["proj_size"] else None)

    return by_layer(config, one)


def torch_states(config: dict, inputs: dict) -> Any:
    if not config["initial"]:
        return None
    h, c, directions = inputs["h_0"], inputs.get("c_0"), 1 + config["bidirectional"]

    def one(layer: int, direction: int) -> Any:
        row = layer * directions + direction
        return h[row] if c is None else LSTMState(h[row], c[row])

    return by_layer(config, one)


def torch_outputs(config: dict, states: Any, ys: Any) -> dict:
    """Outputs and final states with PyTorch's names and shapes."""
    flat = jax.tree.leaves(states, is_leaf=lambda s: isinstance(s, LSTMState))
    if config["kind"] == "LSTM":
        return {"ys": ys, "h_n": jnp.stack([s.h for s in flat]), "c_n": jnp.stack([s.c for s in flat])}
    return {"ys": ys, "h_n": jnp.stack(flat)}


def torch_answers(config: dict, inputs: dict, jit: Any) -> tuple[dict, dict]:
    """The outputs of jaxrnn, and the gradients of their weighted sum by PyTorch's weights."""
    network = torch_network(config)
    cotangents = {name[len("cotangent_") :]: a for name, a in inputs.items() if name.startswith("cotangent_")}
    leaves = {name: a for name, a in inputs.items() if not name.startswith("cotangent_")}
    lengths = None if config["lengths"] is None else np.asarray(config["lengths"], np.int32)

    @jit
    def answer(leaves: dict, cotangents: dict, lengths: Any) -> tuple[dict, dict]:
        def outputs(leaves: dict) -> dict:
            params, states = torch_params(config, leaves), torch_states(config, leaves)
            return torch_outputs(config, *network.unroll(params, leaves["xs"], states, lengths=lengths))

        values, pullback = jax.vjp(outputs, leaves)
        return values, pullback(cotangents)[0]

    return answer(leaves, cotangents, lengths)


def assert_equals_torch(case: make.Case, jit: Any = jax.jit) -> None:
    values, gradients = torch_answers(case["config"], case["inputs"], jit)
    assert_equals_peer("torch", values, case["outputs"])
    assert_equals_peer("torch", gradients, case["gradients"])


@golden("torch")
def test_networks_equal_stored_answers_of_pytorch(x64, case):
    assert_equals_torch(case)


@pytest.mark.parametrize("seed", range(LIVE))
def test_networks_equal_live_pytorch(x64, seed):
    peer("torch")
    assert_equals_torch(ask("torch", make.torch_config(seed)), quick_jit)


@golden("torch")
def test_parameter_counts_differ_from_pytorch_by_its_second_biases(case):
    config = case["config"]
    network = torch_network(config)
    params = jax.eval_shape(lambda key: network.init(key, config["input_size"]), jax.random.key(0))
    second = {"RNN": 1, "LSTM": 4, "GRU": 2}[config["kind"]] * config["hidden_size"] if config["bias"] else 0
    layers = config["num_layers"] * (1 + config["bidirectional"])
    assert jaxrnn.count_params(params) + layers * second == case["parameter_count"]


# ONNX Runtime and Keras: values


def onnx_cell(config: dict) -> jaxrnn.Cell:
    options = {
        "RNN": {},
        "LSTM": {"peephole": config["peephole"], "coupled": bool(config["input_forget"])},
        "GRU": {"reset_after": bool(config["linear_before_reset"])},
    }[config["op"]]
    return cell_of(config["op"].lower(), config["hidden_size"], **options)


def onnx_params(config: dict, w: Any, r: Any, b: Any, p: Any) -> Any:
    """Parameters of one direction, from w (GH, I), r (GH, H), b = [Wb; Rb] (2GH,) and p (3H,) or None."""
    w_x, w_h, (b_x, b_h) = w.T, r.T, np.split(b, 2)
    if config["op"] == "RNN":
        return RNNParams(w_x, w_h, b_x + b_h)
    if config["op"] == "GRU":
        w_x, w_h, b_x, b_h = (gates(a, "zrn", "rzn") for a in (w_x, w_h, b_x, b_h))
        if not config["linear_before_reset"]:
            return GRUParams(w_x, w_h, b_x + b_h)
        r_z, b_hn = np.split(b_h, [2 * config["hidden_size"]])
        return GRUParams(w_x, w_h, b_x + np.concatenate([r_z, np.zeros_like(b_hn)]), b_hn)
    peephole = None if p is None else p.reshape(3, -1)[[0, 2, 1]]  # i o f to i f o
    if not config["input_forget"]:
        return LSTMParams(*(gates(a, "iofg", "ifgo") for a in (w_x, w_h, b_x + b_h)), peephole=peephole)
    # ONNX computes f = 1 - i = σ(-a_i), so the preactivation of our f is the negated one of its i.
    sign = np.repeat(np.float32([-1, 1, 1]), config["hidden_size"])
    w_x, w_h, b = (gates(a, "iofg", "igo") * sign for a in (w_x, w_h, b_x + b_h))
    return LSTMParams(w_x, w_h, b, peephole=None if p is None else np.stack([-peephole[0], peephole[2]]))


def onnx_answers(config: dict, inputs: dict) -> dict:
    cell, lengths = onnx_cell(config), np.asarray(config["lengths"], np.int32)
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[config["direction"]]
    p = inputs.get("P", [None, None])
    outcomes = []
    for d, reverse in enumerate(directions):
        params = onnx_params(config, inputs["W"][d], inputs["R"][d], inputs["B"][d], p[d])
        state = LSTMState(inputs["h_0"][d], inputs["c_0"][d]) if config["op"] == "LSTM" else inputs["h_0"][d]
        outcomes.append(jaxrnn.unroll(cell, params, inputs["xs"], state, lengths=lengths, reverse=reverse))
    finals, ys = zip(*outcomes, strict=True)
    ys = np.stack(ys, axis=1)  # (T, D, B, H)
    if config["op"] == "LSTM":
        return {"ys": ys, "h_n": np.stack([s.h for s in finals]), "c_n": np.stack([s.c for s in finals])}
    return {"ys": ys, "h_n": np.stack(finals)}


def keras_answers(config: dict, inputs: dict) -> dict:
    size, use_bias, kind = config["hidden_size"], config["use_bias"], config["layer"]
    w_x, w_h, b = inputs["kernel"], inputs["recurrent_kernel"], inputs.get("bias")
    state: Any = inputs["h_0"]
    if kind == "SimpleRNN":
        cell, params = cell_of("rnn", size, use_bias=use_bias), RNNParams(w_x, w_h, b)
    elif kind == "LSTM":
        cell, params = cell_of("lstm", size, use_bias=use_bias), LSTMParams(w_x, w_h, b)  # same order of gates
        state = LSTMState(inputs["h_0"], inputs["c_0"])
    else:
        cell = cell_of("gru", size, use_bias=use_bias, reset_after=config["reset_after"])
        w_x, w_h = gates(w_x, "zrn", "rzn"), gates(w_h, "zrn", "rzn")
        b, b_hn = None if b is None else gates(b, "zrn", "rzn"), None
        if use_bias and config["reset_after"]:
            (b_x, b_h), both = b, 2 * size
            b, b_hn = np.concatenate([b_x[:both] + b_h[:both], b_x[both:]]), b_h[both:]
        params = GRUParams(w_x, w_h, b, b_hn)
    mask = None if config["mask"] is None else np.asarray(config["mask"], bool)
    final, ys = jaxrnn.unroll(cell, params, inputs["xs"], state, mask=mask, reverse=config["go_backwards"])
    return {"ys": ys, **dict(zip(("h_n", "c_n"), jax.tree.leaves(final), strict=False))}


@golden("onnx")
def test_cells_equal_stored_answers_of_onnx_runtime(case):
    assert_equals_peer("onnx", onnx_answers(case["config"], case["inputs"]), case["outputs"])


@golden("onnx")
def test_cells_equal_live_onnx_runtime(case):
    peer("onnx", "onnxruntime")
    for seed in (11, 12):
        live = ask("onnx", {**case["config"], "seed": seed, "lengths": [1 + seed % 5, 4, 5]})
        assert_equals_peer("onnx", onnx_answers(live["config"], live["inputs"]), live["outputs"])


@golden("keras")
def test_cells_equal_stored_answers_of_keras(case):
    assert_equals_peer("keras", keras_answers(case["config"], case["inputs"]), case["outputs"])


@golden("keras")
def test_cells_equal_live_keras(case):
    peer("keras")
    for seed in (11, 12):
        live = ask("keras", {**case["config"], "seed": seed})
        assert_equals_peer("keras", keras_answers(live["config"], live["inputs"]), live["outputs"])


# Golden files


@pytest.mark.parametrize("name", make.MAKERS)
def test_golden_files_equal_what_peers_answer_now(name):
    """The files contain every config of the script that makes them, with the answers of the installed libraries."""
    peer(*(package for package in make.PACKAGES[name] if package != "jax"))
    assert list(GOLDEN[name]) == [make.label(config) for config in make.MAKERS[name][1]]
    for case in GOLDEN[name].values():
        again = ask(name, case["config"])
        assert_equal(again["inputs"], case["inputs"])
        assert_equals_peer(name, again["outputs"], case["outputs"])
        assert_equals_peer(name, again.get("gradients", {}), case.get("gradients", {}))
