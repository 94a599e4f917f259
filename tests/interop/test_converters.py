"""Converters reproduce layouts written by hand, and params of any size survive a round trip.

`test_peers.py` compares with the libraries themselves.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrnn import Bidirectional, GRUParams, LSTMParams, RNNParams, interop

# Layouts written by hand: one unit, one feature, no number twice


def f32(*values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


LSTM = LSTMParams(f32([1, 2, 3, 4]), f32([5, 6, 7, 8]), f32(9, 10, 11, 12))  # i f g o
GRU = GRUParams(f32([1, 2, 3]), f32([4, 5, 6]), f32(7, 8, 9), f32(10))  # r z n
GRU_BEFORE = GRU._replace(b_hn=None)
RNN = RNNParams(f32([1]), f32([2]), f32(3))
PROJECTED = LSTMParams(f32([1] * 8), f32([2] * 8), f32(*range(8)), w_proj=f32([5], [6]))


def torch_names(suffix: str, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return {f"{name}{suffix}": array for name, array in zip(names, arrays, strict=False)}


def column(*values: float) -> np.ndarray:
    return f32(*([value] for value in values))


TORCH_LSTM = (column(1, 2, 3, 4), column(5, 6, 7, 8), f32(9, 10, 11, 12), f32(0, 0, 0, 0))
TORCH_GRU = (column(1, 2, 3), column(4, 5, 6), f32(7, 8, 9), f32(0, 0, 10))
TORCH_RNN = (column(1), column(2), f32(3), f32(0))
TORCH_PROJECTED = (column(*[1] * 8), column(*[2] * 8), f32(*range(8)), f32(*[0] * 8), f32([5, 6]))

LSTM_GATES = {
    "ii.kernel": f32([1]), "if.kernel": f32([2]), "ig.kernel": f32([3]), "io.kernel": f32([4]),
    "hi.kernel": f32([5]), "hf.kernel": f32([6]), "hg.kernel": f32([7]), "ho.kernel": f32([8]),
    "hi.bias": f32(9), "hf.bias": f32(10), "hg.bias": f32(11), "ho.bias": f32(12),
}  # fmt: skip
NNX_LSTM = {name.replace("if.", "if_."): array for name, array in LSTM_GATES.items()}
LINEN_GRU = {
    "ir.kernel": f32([1]), "iz.kernel": f32([2]), "in.kernel": f32([3]),
    "ir.bias": f32(7), "iz.bias": f32(8), "in.bias": f32(9),
    "hr.kernel": f32([4]), "hz.kernel": f32([5]), "hn.kernel": f32([6]), "hn.bias": f32(10),
}  # fmt: skip
HAIKU_LSTM = {"linear/w": f32([1, 3, 2, 4], [5, 7, 6, 8]), "linear/b": f32(9, 11, 9, 12)}
KERAS_LSTM = {"kernel": f32([1, 2, 3, 4]), "recurrent_kernel": f32([5, 6, 7, 8]), "bias": f32(9, 10, 11, 12)}
KERAS_GRU = {"kernel": f32([2, 1, 3]), "recurrent_kernel": f32([5, 4, 6]), "bias": f32([8, 7, 9], [0, 0, 10])}


def below(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in entries.items()}


# Library, our params, its entries by flat names, options for writing, options for reading.
BY_HAND: dict[str, tuple[str, Any, Any, dict, dict]] = {
    "torch-lstm": ("torch", (LSTM,), torch_names("_l0", *TORCH_LSTM), {}, {}),
    "torch-gru": ("torch", (GRU,), torch_names("_l0", *TORCH_GRU), {}, {"kind": "gru"}),
    "torch-rnn": ("torch", (RNN,), torch_names("_l0", *TORCH_RNN), {}, {}),
    "torch-projection": ("torch", (PROJECTED,), torch_names("_l0", *TORCH_PROJECTED), {}, {}),
    "torch-no-bias": ("torch", (GRU._replace(b=None, b_hn=None),), torch_names("_l0", *TORCH_GRU[:2]), {}, {}),
    "torch-cell": ("torch", LSTM, torch_names("", *TORCH_LSTM), {}, {}),
    "torch-directions": (
        "torch", (Bidirectional(RNN, RNN._replace(b=f32(7))),),
        torch_names("_l0", *TORCH_RNN) | torch_names("_l0_reverse", *TORCH_RNN[:2], f32(7), f32(0)), {}, {},
    ),
    "torch-prefix": ("torch", LSTM, below("net.cell.", torch_names("", *TORCH_LSTM)), {"prefix": "net.cell"}, {"prefix": "net.cell."}),
    "keras-lstm": ("keras", LSTM, KERAS_LSTM, {}, {}),
    "keras-rnn": ("keras", RNN, {"kernel": f32([1]), "recurrent_kernel": f32([2]), "bias": f32(3)}, {}, {}),
    "keras-gru": ("keras", GRU, KERAS_GRU, {}, {}),
    "keras-gru-before": ("keras", GRU_BEFORE, KERAS_GRU | {"bias": f32(8, 7, 9)}, {}, {}),
    "keras-stack": (
        "keras", (LSTM, Bidirectional(GRU, LSTM), LSTM),
        below("lstm/lstm_cell/", KERAS_LSTM) | below("bidirectional/forward_gru/gru_cell/", KERAS_GRU)
        | below("bidirectional/backward_lstm/lstm_cell/", KERAS_LSTM) | below("lstm_1/lstm_cell/", KERAS_LSTM), {}, {},
    ),
    "nnx-lstm": ("nnx", LSTM, NNX_LSTM, {}, {}),
    "nnx-lstm-optimized": (
        "nnx", LSTM, {"dense_i.kernel": f32([1, 2, 3, 4]), "dense_h.kernel": f32([5, 6, 7, 8]), "dense_h.bias": f32(9, 10, 11, 12)},
        {"optimized": True}, {},
    ),
    "nnx-gru": (
        "nnx", GRU._replace(b_hn=f32(0)), {"dense_i.kernel": f32([1, 2, 3]), "dense_i.bias": f32(7, 8, 9), "dense_h.kernel": f32([4, 5, 6])}, {}, {},
    ),
    "nnx-rnn": ("nnx", RNN, {"dense_i.kernel": f32([1]), "dense_i.bias": f32(3), "dense_h.kernel": f32([2])}, {}, {}),
    "nnx-stack": (
        "nnx", (LSTM, Bidirectional(LSTM, LSTM)),
        below("layers.0.cell.", NNX_LSTM) | below("layers.1.forward_rnn.cell.", NNX_LSTM) | below("layers.1.backward_rnn.cell.", NNX_LSTM), {}, {},
    ),
    "linen-lstm": ("linen", LSTM, below("params.", LSTM_GATES), {}, {}),
    "linen-gru": ("linen", GRU, below("params.", LINEN_GRU), {}, {}),
    "linen-rnn": ("linen", RNN, {"params.i.kernel": f32([1]), "params.i.bias": f32(3), "params.h.kernel": f32([2])}, {}, {}),
    "linen-stack": (
        "linen", (Bidirectional(GRU, LSTM), GRU),
        below("params.layers_0.forward_rnn.cell.", LINEN_GRU) | below("params.layers_0.backward_rnn.cell.", LSTM_GATES)
        | below("params.layers_1.cell.", LINEN_GRU), {}, {},
    ),
    "haiku-lstm": ("haiku", LSTM, below("net/core/", HAIKU_LSTM), {"prefix": "net/core"}, {"prefix": "net/core/"}),
    "haiku-gru": ("haiku", GRU_BEFORE, {"gru/w_i": f32([-2, 1, 3]), "gru/w_h": f32([-5, 4, 6]), "gru/b": f32(-8, 7, 9)}, {}, {"prefix": "gru"}),
    "haiku-rnn": (
        "haiku", (RNN,), {"vanilla_rnn/linear/w": f32([1]), "vanilla_rnn/linear/b": f32(3), "vanilla_rnn/linear_1/w": f32([2]), "vanilla_rnn/linear_1/b": f32(0)}, {}, {},
    ),
    "haiku-stack": (  # Twelve cores in reverse: their numbers give the order.
        "haiku", tuple(LSTM._replace(b=LSTM.b + n) for n in range(12)),
        {name: array for n in reversed(range(12)) for name, array in below(
            f"lstm_{n}/" if n else "lstm/", {**HAIKU_LSTM, "linear/b": HAIKU_LSTM["linear/b"] + n}).items()}, {}, {},
    ),
    "equinox-lstm": ("equinox", LSTM, {"weight_ih": column(1, 2, 3, 4), "weight_hh": column(5, 6, 7, 8), "bias": f32(9, 10, 11, 12)}, {}, {}),
    "equinox-gru": (
        "equinox", GRU, below("a.", {"weight_ih": column(1, 2, 3), "weight_hh": column(4, 5, 6), "bias": f32(7, 8, 9), "bias_n": f32(10)}),
        {"prefix": "a"}, {"prefix": "a"},
    ),
    "cudnn-lstm": ("cudnn", (LSTM,), f32(*range(1, 13), 0, 0, 0, 0), {}, {}),
    "cudnn-gru": ("cudnn", (GRU,), f32(*range(1, 10), 0, 0, 10), {}, {"kind": "gru"}),
    "cudnn-rnn": (
        "cudnn", (Bidirectional(RNN, RNN), Bidirectional(RNN._replace(w_x=f32([4], [5])), RNN._replace(w_x=f32([6], [7])))),
        f32(1, 2, 1, 2, 4, 5, 2, 6, 7, 2, 3, 0, 3, 0, 3, 0, 3, 0), {}, {"kind": "rnn_relu", "num_layers": 2, "bidirectional": True},
    ),
}  # fmt: skip


def to(library: str, params: Any, **options: Any) -> Any:
    return getattr(interop, f"to_{library}")(params, **options)


def back(library: str, weights: Any, **options: Any) -> Any:
    sizes = {"input_size": 1, "hidden_size": 1} if library == "cudnn" and "input_size" not in options else {}
    return getattr(interop, f"from_{library}")(weights, **sizes, **options)


def flat(library: str, weights: Any) -> dict[str, Any]:
    if not isinstance(weights, Mapping):
        return {"": weights}
    separator = {"haiku": "/", "keras": "/"}.get(library, ".")
    out = {}
    for name, value in weights.items():
        inner = flat(library, value) if isinstance(value, Mapping) else {"": value}
        out |= {f"{name}{separator if rest else ''}{rest}": leaf for rest, leaf in inner.items()}
    return out


def assert_same(a: Any, b: Any) -> None:
    """Checks that structures, shapes, dtypes and values are equal; the sign of a zero may differ."""
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize("name", BY_HAND)
def test_converters_match_layouts_written_by_hand(name):
    library, params, weights, writing, reading = BY_HAND[name]
    written = to(library, params, **writing)
    assert_same(flat(library, written), flat(library, weights))
    read = back(library, weights, **reading)
    assert_same(read, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(read))
    assert_same(back(library, written, **reading), params)  # entries that are written nested are read nested


# Round trips at any size

APPLIES = {
    "torch": lambda kind, config: config["reset_after"] or kind != "gru",
    "keras": lambda kind, config: config["projection"] is None,
    "nnx": lambda kind, config: config["projection"] is None and (config["reset_after"] or kind != "gru"),
    "linen": lambda kind, config: config["projection"] is None and (config["reset_after"] or kind != "gru"),
    "haiku": lambda kind, config: config["projection"] is None and config["directions"] == 1
    and not (kind == "gru" and config["reset_after"]),
    "equinox": lambda kind, config: config["projection"] is None and kind != "rnn" and (config["reset_after"] or kind != "gru"),
    "cudnn": lambda kind, config: config["projection"] is None and (config["reset_after"] or kind != "gru"),
}  # fmt: skip
ALWAYS_BIASED = ("nnx", "linen", "haiku", "cudnn")
DTYPES = (np.dtype("float32"), np.dtype("float16"), np.dtype(jnp.bfloat16))


@st.composite
def configs(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(["rnn", "lstm", "gru"]))
    hidden = draw(st.integers(1, 5))
    projected = kind == "lstm" and hidden > 1 and draw(st.booleans())
    return {
        "kind": kind,
        "input_size": draw(st.integers(1, 4)),
        "hidden": hidden,
        "projection": draw(st.integers(1, hidden - 1)) if projected else None,
        "depth": draw(st.integers(1, 3)),
        "directions": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "reset_after": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def drawn(config: dict[str, Any], library: str) -> tuple[Any, ...]:
    """Draws params of a network as sixteenths in [-4, 4]; adding 1 to these is exact in every dtype."""
    rng = np.random.default_rng(config["seed"])
    draw = lambda *shape: jnp.asarray((rng.integers(-64, 65, shape) / 16).astype(config["dtype"]))  # noqa: E731
    kind, hidden, bias = config["kind"], config["hidden"], config["bias"]
    columns = {"rnn": 1, "lstm": 4, "gru": 3}[kind] * hidden
    output = config["projection"] or hidden

    def record(features: int) -> Any:
        common = (draw(features, columns), draw(output, columns), draw(columns) if bias else None)
        if kind == "rnn":
            return RNNParams(*common)
        if kind == "lstm":
            return LSTMParams(*common, w_proj=draw(hidden, output) if config["projection"] else None)
        b_hn = draw(hidden) if bias and config["reset_after"] else None
        # NNX cannot hold a `b_hn` other than zero.
        return GRUParams(*common, b_hn=np.zeros_like(b_hn) if library == "nnx" and b_hn is not None else b_hn)

    sizes = [config["input_size"], *[config["directions"] * output] * (config["depth"] - 1)]
    if config["directions"] == 1:
        return tuple(record(size) for size in sizes)
    return tuple(Bidirectional(record(size), record(size)) for size in sizes)


def biased(library: str, record: Any) -> Any:
    """The record that is read back: a library that always has biases holds zeros for a missing one."""
    if library not in ALWAYS_BIASED or record.b is not None:
        return record
    zeros = np.zeros(record.w_x.shape[1], record.w_x.dtype)
    record = record._replace(b=zeros)
    return (
        record._replace(b_hn=zeros[: record.w_h.shape[0]]) if hasattr(record, "b_hn") and library != "haiku" else record
    )


def is_record(node: Any) -> bool:
    return isinstance(node, (RNNParams, LSTMParams, GRUParams))


@pytest.mark.parametrize("library", APPLIES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs(), optimized=st.booleans())
def test_params_survive_a_round_trip_exactly(library, config, optimized):
    if not APPLIES[library](config["kind"], config):
        config = {**config, "projection": None, "directions": 1, "reset_after": library != "haiku"}
        config["kind"] = "lstm" if library == "equinox" else config["kind"]
    params = drawn(config, library)
    expected = jax.tree.map(lambda record: biased(library, record), params, is_leaf=is_record)
    if library == "equinox":
        for record in jax.tree.leaves(params, is_leaf=is_record):
            assert_same(back(library, to(library, record)), record)
        return
    writing = {"optimized": optimized} if library == "nnx" else {}
    reading = {}
    if library == "cudnn":
        reading = {
            "input_size": config["input_size"], "hidden_size": config["hidden"], "num_layers": config["depth"],
            "bidirectional": config["directions"] == 2,
            "kind": "rnn_tanh" if config["kind"] == "rnn" else config["kind"],
        }  # fmt: skip
    assert_same(back(library, to(library, params, **writing), **reading), expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=configs())
def test_two_torch_biases_become_their_sum(config):
    """A dict of PyTorch comes back with the sum in the first bias; the second holds b_hn of a GRU, or zeros."""
    config = {**config, "bias": True, "reset_after": True}
    state = to("torch", drawn(config, "torch"))
    rng = np.random.default_rng(config["seed"])
    for name in [name for name in state if name.startswith("bias_hh")]:
        state[name] = (rng.integers(-64, 65, state[name].shape) / 16).astype(config["dtype"])
    folded = dict(state)
    for name in [name for name in state if name.startswith("bias_hh")]:
        first, alone = name.replace("hh", "ih"), np.zeros_like(state[name])
        if config["kind"] == "gru":
            alone[2 * config["hidden"] :] = state[name][2 * config["hidden"] :]
        folded |= {name: alone, first: state[first] + (state[name] - alone)}
    assert_same(to("torch", back("torch", state)), folded)


def test_haiku_rounds_only_the_forget_bias():
    record = LSTM._replace(b=f32(0.1, 0.1, 0.3, 1e-7))
    (back_again,) = back("haiku", to("haiku", record))
    assert_same(back_again._replace(b=record.b), jax.tree.map(jnp.asarray, record)._replace(b=record.b))
    np.testing.assert_array_equal(np.asarray(back_again.b)[[0, 2, 3]], record.b[[0, 2, 3]])
    assert abs(back_again.b[1] - record.b[1]) <= np.finfo(np.float32).eps


def test_haiku_cores_without_a_second_bias_are_read():
    weights = {"linear/w": f32([1]), "linear/b": f32(3), "linear_1/w": f32([2])}
    assert_same(back("haiku", weights), RNN)


def test_equinox_cell_fields_are_accepted():
    """`vars` of a cell holds its sizes and `None` beside the arrays."""
    weights = {"weight_ih": column(1, 2, 3, 4), "weight_hh": column(5, 6, 7, 8), "bias": None}
    fields = {**weights, "input_size": 1, "hidden_size": 1, "use_bias": False}
    assert_same(back("equinox", fields), LSTM._replace(b=None))
    with pytest.raises(
        ValueError, match="from_equinox: entry 'input_size' expected 1, as entry 'weight_ih' has it, got 2"
    ):
        back("equinox", {**fields, "input_size": 2})


# Names, prefixes, memory


def test_names_are_read_nested_flat_or_as_tuples():
    nested = to("nnx", (LSTM,))
    dotted = flat("nnx", nested)
    tuples = {tuple(name.split(".")): value for name, value in dotted.items()}
    for weights in (nested, dotted, tuples):
        assert_same(back("nnx", weights), (jax.tree.map(jnp.asarray, LSTM),))
    for weights in ({"params": LSTM_GATES}, {("params", *n.split(".")): a for n, a in LSTM_GATES.items()}, LSTM_GATES):
        assert_same(back("linen", weights), LSTM)


def test_keras_directions_are_recognised_by_name():
    pair = below("forward_gru/gru_cell/", KERAS_GRU) | below("backward_lstm/lstm_cell/", KERAS_LSTM)
    expected = jax.tree.map(jnp.asarray, (Bidirectional(GRU, LSTM),))
    assert_same(back("keras", pair), expected)
    assert_same(back("keras", below("both/", pair), prefix="both"), expected)
    assert_same(back("keras", below("forward_model/lstm_cell/", KERAS_LSTM)), jax.tree.map(jnp.asarray, (LSTM,)))


@pytest.mark.parametrize(
    ("library", "weights", "prefix"),
    [
        ("torch", below("decoder.lstm.", torch_names("_l0", *TORCH_LSTM)), "decoder.lstm"),
        ("keras", below("model/lstm/", KERAS_LSTM), "model/lstm"),
        ("nnx", below("layers.3.", NNX_LSTM), "layers.3"),
        ("linen", {"params": below("net.", LSTM_GATES), "batch_stats": {"mean": f32(1)}}, "net"),
        ("haiku", below("net/~/lstm/", HAIKU_LSTM), "net/~/lstm"),
        ("equinox", below("cells.0.", {"weight_ih": column(1, 2, 3, 4), "weight_hh": column(5, 6, 7, 8)}), "cells.0"),
    ],
)
def test_prefix_ignores_all_other_entries(library, weights, prefix):
    separator = {"haiku": "/", "keras": "/"}.get(library, ".")
    others = {"head": {"weight": "not even an array"}, prefix + "2" + separator + "bias": np.ones(3, int)}
    read = back(library, {**weights, **others}, prefix=prefix)
    record = read[0] if library == "torch" else read
    assert_same(record._replace(b=None), jax.tree.map(jnp.asarray, LSTM)._replace(b=None))
    with pytest.raises(ValueError, match=f"from_{library}: .* expected entries below '(params.)?nowhere.', got '"):
        back(library, {**weights, **others}, prefix="nowhere")


def aligned(array: np.ndarray) -> np.ndarray:
    """Copies to an address that JAX can use without another copy."""
    buffer = np.empty(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_converted_arrays_share_no_memory():
    weights = torch_names("", *(array.copy() for array in TORCH_LSTM))
    params = back("torch", weights)
    for array in weights.values():
        array[:] = -1
    assert_same(params, LSTM)
    written = to("torch", params)
    assert all(array.flags.writeable and array.flags.c_contiguous for array in written.values())
    for array in written.values():
        array[:] = -1
    assert_same(params, LSTM)
    mine = jax.tree.map(aligned, GRU)
    linen = to("linen", mine)
    for array in jax.tree.leaves(mine):
        array[:] = -1
    assert_same(back("linen", linen), GRU)


def test_float64_weights_survive_a_round_trip(x64):
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64) / 3, LSTM)
    for library in ("torch", "keras", "nnx", "linen", "equinox"):
        assert_same(back(library, to(library, double)), double)
