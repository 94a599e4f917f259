"""Weights behind DequantizeLinear are the numbers that ONNX Runtime computes, to the bit."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from jaxrnn.interop._onnx_quantized import folded
from jaxrnn.interop.onnx_import import from_onnx
from tests.support.onnx_tools import TOLERANCE, model_of, node, operator, run
from tests.support.registry import B, I, T, gap

SHAPE = (2, 16, I)  # of W: two directions, four gates of four units
KINDS: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {  # of scales and zero points
    "one": ((), {}),
    "one with an axis": ((1,), {}),
    "each direction": ((2,), {"axis": 0}),
    "each row": ((16,), {"axis": 1}),
    "each row, the default": ((16,), {}),
    "each column": ((I,), {"axis": -1}),
    "blocks": ((2, 4, I), {"axis": 1, "block_size": 4}),
    "blocks of which the last is short": ((2, 3, I), {"axis": 1, "block_size": 6}),
}


def is_held(dtype: str) -> bool:
    """Whether this onnx makes tensors of a dtype; old releases make none of four bits or eight-bit floats."""
    try:
        return bool(helper.np_dtype_to_tensor_dtype(jnp.dtype(dtype)))
    except ValueError:
        return False


INTEGERS = [dtype for dtype in ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int32") if is_held(dtype)]
FLOAT8 = [dtype for dtype in ("float8_e4m3fn", "float8_e5m2") if is_held(dtype)]


def numbers(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random numbers of the whole range of a dtype."""
    rng = np.random.default_rng(seed)
    if dtype.startswith("float8"):
        return rng.standard_normal(shape).astype(jnp.dtype(dtype))
    info = jnp.iinfo(dtype)
    return rng.integers(int(info.min), int(info.max) + 1, shape).astype(jnp.dtype(dtype))


def scales(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(np.random.default_rng(1).uniform(1e-4, 0.01, shape).astype(dtype))


def by_runtime(made: list[Any], constants: dict[str, np.ndarray], output: str, opset: int) -> np.ndarray:
    """What ONNX Runtime computes, without its optimisations."""
    model = model_of(made, constants, [output], opset)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    running = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return running.run(None, {})[0]


def read_weight(made: list[Any], constants: dict[str, np.ndarray], opset: int) -> np.ndarray:
    """W as `from_onnx` reads it from a model of a bidirectional LSTM, in ONNX's layout."""
    one, weights = operator("a", "x", I)
    held = {name: array for name, array in weights.items() if name != "a.W"}
    _, (layer,) = from_onnx(model_of([*made, one], held | constants, ["a.Y"], opset))
    i, f, g, o = (np.stack([np.split(np.asarray(half.w_x).T, 4)[k] for half in layer]) for k in range(4))
    return np.concatenate([i, o, f, g], axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOAT8])
def test_weights_are_dequantised_as_onnxruntime_does(kind, dtype):
    shape, attributes = KINDS[kind]
    for has_zero in (False, True):
        names = ["q", "s", "z"][: 2 + has_zero]
        zero = (
            np.zeros(shape, jnp.dtype(dtype)) if dtype in ("int32", *FLOAT8) else np.asarray(numbers(dtype, shape, 2))
        )
        constants = {"q": numbers(dtype, SHAPE, 0), "s": scales(shape), "z": zero}
        constants = {name: constants[name] for name in names}
        opset = (
            21 if "block" in kind or dtype in ("int16", "uint16", "int4", "uint4") else 19 if dtype in FLOAT8 else 13
        )
        made = [helper.make_node("DequantizeLinear", names, ["a.W"], **attributes)]
        np.testing.assert_array_equal(read_weight(made, constants, opset), by_runtime(made, constants, "a.W", opset))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_weights_that_a_model_quantises_itself_are_read(kind, dtype):
    """Training for quantised weights leaves both operators behind a weight; halves are rounded to even numbers."""
    shape, attributes = KINDS[kind]
    w = (0.6 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)
    w[0, :8] = scales(()) * (np.arange(8 * I).reshape(8, I) - 10.5).astype(np.float32)
    constants = {"w": w, "s": scales(shape), "z": np.asarray(numbers(dtype, shape, 2))}
    made = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a.W"], **attributes),
    ]
    np.testing.assert_array_equal(read_weight(made, constants, 21), by_runtime(made, constants, "a.W", 21))


def test_scales_of_float16_give_weights_of_float16():
    made = [node("DequantizeLinear", "q s", "y")]
    constants = {"q": numbers("int8", SHAPE, 0), "s": scales((), np.float16)}
    expected = by_runtime(made, constants, "y", 19)
    assert expected.dtype == np.float16
    one, weights = operator("a", "x", I)
    half = {name: array.astype(np.float16) for name, array in weights.items() if name != "a.W"}
    _, (layer,) = from_onnx(model_of([*made, node("Identity", "y", "a.W"), one], half | constants, ["a.Y"], 19))
    np.testing.assert_array_equal(np.asarray(layer.forward.w_x)[:, :4].T, expected[0, :4])


@pytest.mark.parametrize("output", [np.float16, np.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("scale", [np.float16, np.float32], ids=["scale of float16", "scale of float32"])
def test_the_type_of_an_output_may_be_given(scale, output):
    """Opset 23 gives `DequantizeLinear` its `output_dtype`, which also is the precision of the product."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(output))
    arrays = [numbers("int8", SHAPE, 0), scales((16,), scale), numbers("int8", (16,), 2)]
    ours = folded("DequantizeLinear", arrays, {"axis": 1, "output_dtype": number})
    shifted = arrays[0].astype(np.float64) - arrays[2].astype(np.float64)[:, None]
    exact = shifted * arrays[1].astype(np.float64)[:, None]
    assert ours is not None
    assert ours.dtype == output
    np.testing.assert_array_equal(ours, exact.astype(np.float32).astype(output))


def test_the_type_of_a_quantised_tensor_may_be_given():
    x, scale = np.array([-300.0, -1.0, 0.5, 300.0], np.float32), np.float32(1)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(np.int8))
    ours = folded("QuantizeLinear", [x, np.asarray(scale)], {"output_dtype": number})
    assert ours is not None
    assert ours.dtype == np.int8
    assert ours.tolist() == [-128, -1, 0, 127]
    other = [x, np.asarray(scale), np.asarray(np.uint8(3))]
    assert folded("QuantizeLinear", other, {"output_dtype": number}) is None  # a zero point of another type
    assert folded("QuantizeLinear", [x, np.asarray(scale)], {"output_dtype": 999}) is None


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_quantised_networks_compute_what_onnxruntime_does(op):
    """All weights are quantised, some of them joined or transposed afterwards, and a scale is a `Constant`."""
    one, weights = operator("a", "x", I, op=op)
    constants: dict[str, np.ndarray] = {}
    made: list[Any] = [helper.make_node("Constant", [], ["a.W.s"], value_float=0.01)]
    for name, array in weights.items():
        constants[f"{name}.q"] = np.clip(np.rint(array / 0.01), -128, 127).astype(np.int8)
        if name != "a.W":
            constants[f"{name}.s"] = np.float32([0.01, 0.02])
        axis = {} if name == "a.W" else {"axis": 0}
        made += [helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.s"], [f"{name}.d"], **axis)]
        made += [node("Transpose", f"{name}.d", f"{name}.t"), node("Transpose", f"{name}.t", name)]
    model = model_of([*made, one], constants, ["a.Y"], 17)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["t", "b", I]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("a.Y", onnx.TensorProto.FLOAT, ["t", 2, "b", 4]))
    network, params = from_onnx(model)
    xs = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    _, ys = network.unroll(params, xs)
    theirs = run(model, {"x": xs})["a.Y"]
    assert gap(np.stack(np.split(np.asarray(ys), 2, axis=-1), axis=1), theirs) <= TOLERANCE


MALFORMED: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "scales of another axis": ({"s": scales((5,))}, {"axis": 1}),
    "an axis that is not there": ({"s": scales((16,))}, {"axis": 7}),
    "blocks of another size": ({"s": scales((2, 5, I))}, {"axis": 1, "block_size": 4}),
    "blocks of a negative size": ({"s": scales((2, 4, I))}, {"axis": 1, "block_size": -4}),
    "zero points of another shape": ({"z": np.zeros(2, np.int8)}, {}),
    "zero points of another type": ({"z": np.uint8(3)}, {}),
    "a zero point of 32 bits": ({"q": numbers("int32", SHAPE, 0), "z": np.int32(3)}, {}),
    "a zero point of eight-bit floats": ({"q": numbers("float8_e5m2", SHAPE, 0), "z": np.ones((), jnp.float8_e5m2)}, {}),
    "scales of integers": ({"s": np.int32(3)}, {}),
    "floats": ({"q": np.ones(SHAPE, np.float32)}, {}),
    "an attribute of another operator": ({}, {"precision": 1}),
    "an output that is no float": ({}, {"output_dtype": 3}),
}  # fmt: skip


if not FLOAT8:
    del MALFORMED["a zero point of eight-bit floats"]


@pytest.mark.parametrize("what", MALFORMED)
def test_what_onnx_does_not_define_is_not_folded(what):
    changed, attributes = MALFORMED[what]
    constants = {"q": numbers("int8", SHAPE, 0), "s": scales(()), **changed}
    made = [helper.make_node("DequantizeLinear", [*constants], ["a.W"], **attributes)]
    with pytest.raises(
        ValueError, match=r"^from_onnx: node 'a' input W expected a constant, got 'a.W', which the model computes"
    ):
        read_weight(made, {name: np.asarray(array) for name, array in constants.items()}, 21)


def test_numbers_that_are_not_known_are_not_folded():
    made = [node("DequantizeLinear", "q s", "a.W")]
    for constants in ({"q": numbers("int8", SHAPE, 0)}, {"s": scales(())}):
        with pytest.raises(ValueError, match="^from_onnx: node 'a' input W expected a constant, got 'a.W'"):
            read_weight(made, constants, 21)
    infinite = {"w": np.full(SHAPE, np.inf, np.float32), "s": scales(()), "z": np.int8(0)}
    with pytest.raises(ValueError, match="^from_onnx: node 'a' input W expected a constant, got 'a.W'"):
        read_weight([node("QuantizeLinear", "w s z", "q"), node("DequantizeLinear", "q s z", "a.W")], infinite, 21)


def test_activations_that_a_model_quantises_stay_part_of_it():
    """Rounded outputs are not those that the layer above reads in our network."""
    below, weights = operator("a", "x", I, directions=1)
    above, more = operator("b", "xs", 4, directions=1)
    between = [
        node("Squeeze", "a.Y one", "y"),
        node("QuantizeLinear", "y s z", "q"),
        node("DequantizeLinear", "q s z", "xs"),
    ]
    constants = {"one": np.array([1]), "s": np.float32(1e-7), "z": np.int16(0)}
    with pytest.raises(
        ValueError, match="node 'b' expected to read the outputs of 'a', .*'xs' comes from DequantizeLinear"
    ):
        from_onnx(model_of([below, *between, above], weights | more | constants, ["b.Y"], 21))


def test_every_integer_of_a_byte_is_dequantised():
    """All 256 numbers with all zero points of a byte, and several scales."""
    q = np.arange(-128, 128).astype(np.int8)
    for zero, scale in itertools.product((-128, -1, 0, 127), (1.0, 0.1, 3e-39)):
        exact = ((np.arange(-128, 128) - zero).astype(np.float32) * np.float32(scale)).astype(np.float32)
        made = [node("DequantizeLinear", "q s z", "y")]
        constants = {"q": q, "s": np.float32(scale), "z": np.int8(zero)}
        ours = folded("DequantizeLinear", [np.asarray(array) for array in constants.values()], {})
        np.testing.assert_array_equal(ours, exact)
        np.testing.assert_array_equal(ours, by_runtime(made, {k: np.asarray(v) for k, v in constants.items()}, "y", 13))
