"""`DynamicQuantizeLSTM` of ONNX Runtime is read as the LSTM with its dequantised weights."""

import copy
import functools
import logging
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from jaxrnn.interop import from_onnx, onnx_recurrent, to_onnx
from tests.support.onnx_nested import CLOSE, XS, H, I, by_numpy, by_runtime, model, node, squeeze, tensor
from tests.support.onnx_tools import cell_of, operator, random_params
from tests.support.registry import gap

SIZES = [tensor("x", "t", "b", I)], [tensor("y", "t", "b", 2 * H)]
# Relative to the largest output. ONNX Runtime rounds x and h to 8 bits too, in two layers. Measured: 8.4e-3 with one
# scale, 1.12e-2 with one a channel; its kernels differ between processors.
ROUNDED_ACTIVATIONS = 2e-2


def two_layers() -> onnx.ModelProto:
    """Two bidirectional layers, as PyTorch writes them."""
    nodes, weights = [], {}
    for k, (name, x, features) in enumerate((("a", "x", I), ("b", "xs", 2 * H))):
        made, more = operator(name, x, features, H)
        nodes += [made, node("Transpose", f"{name}.Y", f"t{k}", perm=[0, 2, 1, 3])]
        nodes += [node("Reshape", f"t{k} shape", "y" if k else "xs")]
        weights |= more
    return model(nodes, *SIZES, shape=np.array([0, 0, -1]), **weights)


@functools.cache
def quantised(per_channel: bool, unsigned: bool, folder: Any) -> onnx.ModelProto:
    """The two layers with weights of int8, as onnxruntime's own tool writes them, or of uint8."""
    from onnxruntime.quantization import quantize_dynamic

    paths = [str(folder / name) for name in ("float.onnx", "quantised.onnx")]
    onnx.save(two_layers(), paths[0])
    logging.disable(logging.WARNING)  # it advises to infer shapes before
    try:
        quantize_dynamic(*paths, per_channel=per_channel)
    finally:
        logging.disable(logging.NOTSET)
    made = onnx.load(paths[1])
    for held in made.graph.initializer if unsigned else ():
        array = numpy_helper.to_array(held)
        if array.dtype == np.int8:
            held.CopyFrom(numpy_helper.from_array((array.astype(np.int16) + 128).astype(np.uint8), held.name))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quantised")


@pytest.mark.parametrize("unsigned", [False, True], ids=["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_quantised_operators_are_read_as_their_dequantised_weights(folder, per_channel, unsigned):
    given = quantised(per_channel, unsigned, folder)
    assert [one.kind for one in onnx_recurrent(given)] == ["DynamicQuantizeLSTM"] * 2
    assert [(one.input_size, one.hidden_size) for one in onnx_recurrent(given)] == [(I, H), (2 * H, H)]
    read = from_onnx(given)
    assert repr(read[0]) == repr(from_onnx(two_layers())[0])
    ours = by_numpy(read, XS)
    # The same numbers in ONNX Runtime's own LSTM.
    assert gap(ours, by_runtime(to_onnx(*read), x=XS)) <= CLOSE
    assert gap(ours, by_runtime(given, x=XS)) <= ROUNDED_ACTIVATIONS
    exact = from_onnx(two_layers())[1]
    for theirs, array in zip(jax.tree.leaves(exact), jax.tree.leaves(read[1]), strict=True):
        assert np.abs(np.asarray(array) - np.asarray(theirs)).max() <= np.abs(theirs).max() / 127


def test_scales_of_channels_are_those_of_rows(folder):
    """The rows of W and R have scales of their own, which an array of numbers by hand shows."""
    given = copy.deepcopy(quantised(True, False, folder))
    arrays = {held.name: numpy_helper.to_array(held) for held in given.graph.initializer}
    _, (layer, _) = from_onnx(given)
    q, scale = arrays["a.W_quantized"], arrays["a.W_scale"]
    by_hand = np.array([[q[1, i, row] * scale[1, row] for i in range(I)] for row in range(H)])  # the input gate
    np.testing.assert_allclose(np.asarray(layer.backward.w_x)[:, :H].T, by_hand, rtol=1e-6)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"a.W_quantized": np.ones((2, I, 16), np.float32)},
               r"input W \('a.W_quantized'\) expected int8 or uint8 of three axes, got float32\[2, 3, 16\]"),
    "axes": ({"a.R_quantized": np.ones((2, 16), np.int8)}, r"input R \('a.R_quantized'\) expected int8 or uint8 of three axes"),
    "scales": ({"a.W_scale": np.ones(3, np.float32)},
               r"input W \('a.W_quantized'\) expected scales float32 \(2,\) or \(2, 16\), got float32\[3\]"),
    "zero points": ({"a.W_zero_point": np.ones(2, np.uint8)},
                    r"input W \('a.W_quantized'\) expected zero points int8 \(2, 16\), as the scales, got uint8\[2\]"),
    "not transposed": ({"a.R_quantized": np.ones((2, 16, H), np.int8), "a.R_scale": np.ones(2, np.float32),
                        "a.R_zero_point": np.zeros(2, np.int8)}, r"input R \('a.R_quantized'\) expected shape \(16, 4\), got \(4, 16\)"),
    "no scales": ({"a.W_scale": None}, r"input W_scale expected a constant, got 'a.W_scale', which the model computes"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_quantised_weights_that_are_wrong_are_refused(folder, what):
    changed, message = CHANGES[what]
    given = copy.deepcopy(quantised(True, False, folder))
    kept = [held for held in given.graph.initializer if held.name not in changed]
    del given.graph.initializer[:]
    made = {name: array for name, array in changed.items() if array is not None}
    given.graph.initializer.extend([*kept, *(numpy_helper.from_array(array, name) for name, array in made.items())])
    with pytest.raises(ValueError, match=f"^from_onnx: node 'a_quant'.* {message}") as caught:
        from_onnx(given)
    assert len(str(caught.value)) <= 500


def test_attributes_and_absent_scales_are_refused(folder):
    given = copy.deepcopy(quantised(False, False, folder))
    del given.graph.node[0].input[8:]
    with pytest.raises(
        ValueError, match=r"^from_onnx: node 'a_quant' \(DynamicQuantizeLSTM\) expected an input W_scale"
    ):
        from_onnx(given)
    given = copy.deepcopy(quantised(False, False, folder))
    given.graph.node[0].attribute.add(name="layout", i=1, type=onnx.AttributeProto.INT)
    with pytest.raises(
        ValueError, match=r"^from_onnx: node 'a_quant' \(DynamicQuantizeLSTM\) attribute layout expected"
    ):
        from_onnx(given)


def test_weights_are_not_put_back_into_quantised_operators(folder):
    network = from_onnx(two_layers())[0]
    with pytest.raises(
        ValueError, match="^to_onnx: node 'a_quant' expected an LSTM, got DynamicQuantizeLSTM, whose weights"
    ):
        to_onnx(network, random_params(network), into=quantised(False, False, folder))
    made, weights = operator("a", "x", I, H, directions=1)
    arrays = {
        "q": np.ones((1, 16, I), np.int8),
        "s": np.array(0.1, np.float32),
        "a.R": weights["a.R"],
        "a.B": weights["a.B"],
    }
    nodes = [node("DequantizeLinear", "q s", "a.W"), made, *squeeze("a.Y", "y", 1, 17)]
    given = model(nodes, SIZES[0], [tensor("y", "t", "b", H)], **arrays)
    with pytest.raises(
        ValueError, match=r"^to_onnx: node 'a' input W \('a.W'\) expected .*, got what DequantizeLinear com"
    ):
        to_onnx(cell_of("lstm"), random_params(cell_of("lstm")), into=given)
