"""Activations of ONNX's operators, with α, β and clip, against ONNX Runtime, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper

import jaxrnn
from jaxrnn.interop import from_onnx, to_onnx
from jaxrnn.interop._onnx_layout import ACTIVATIONS
from tests.support.onnx_tools import TOLERANCE, attributes_of, model_of, operator, run
from tests.support.registry import gap

T, B, I = 4, 2, 3  # noqa: E741
PARAMETERS = {
    "hard_sigmoid": (0.3, 0.4), "elu": (0.7, None), "leaky_relu": (0.3, None), "thresholded_relu": (0.5, None),
    "scaled_tanh": (1.7, 0.6), "affine": (-0.4, 0.1),
}  # fmt: skip
GATED = {
    "in order": (["HardSigmoid", "LeakyRelu", "LeakyRelu"], [0.3, 0.4, 0.4], [0.6]),
    "the first has none": (["Sigmoid", "HardSigmoid", "HardSigmoid"], [0.3, 0.3], [0.6, 0.6]),
    "default": (["HardSigmoid", "Softsign", "Softsign"], [], []),
    "more than are read": (["Sigmoid", "Tanh", "Tanh"], [0.3], [0.6]),
}


def recurrent(op, directions=1, **attributes):
    """A model of one operator with random weights."""
    given = {name: value for name, value in attributes.items() if value != []}
    one, weights = operator("a", "x", I, op=op, directions=directions, **given)
    model, number = model_of([one], weights, ["a.Y"]), onnx.TensorProto.FLOAT
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", number, [T, B, I]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("a.Y", number, [T, directions, B, 4]))
    return model


def outputs_of(model):
    """Of ONNX Runtime and of the network that was read, for one input."""
    xs = 2 * np.random.default_rng(1).standard_normal((T, B, I)).astype("f4")
    theirs = run(model, {"x": xs})["a.Y"]  # (T, D, B, H)
    network, params = from_onnx(model)
    ys = jax.jit(lambda params, xs: network.unroll(params, xs)[1])(params, jnp.asarray(xs))
    return np.moveaxis(theirs, 1, 2).reshape(T, B, -1), ys, (network, params)


@pytest.mark.parametrize("name", [*ACTIVATIONS, "identity"])
def test_named_activations_are_those_of_onnx(name):
    alpha, beta = PARAMETERS.get(name, (None, None))
    cell = jaxrnn.rnn(4, activation=jaxrnn.Activation(name, alpha, beta, clip=1.5))
    params = jax.tree.map(lambda leaf: leaf * 2, cell.init(jax.random.key(0), I))
    model = to_onnx(cell, params)
    xs = 2 * np.random.default_rng(1).standard_normal((T, B, I)).astype("f4")
    _, ys = jaxrnn.unroll(cell, params, xs)
    assert gap(run(model, {"x": xs})["y"], ys) < TOLERANCE
    again, same = from_onnx(model)
    read = again.layers[0]
    assert read == cell or name == "identity"
    np.testing.assert_allclose(jaxrnn.unroll(read, same[0], xs)[1], ys, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", GATED)
def test_parameters_are_taken_by_the_functions_that_have_them(case):
    names, alpha, beta = GATED[case]
    theirs, ys, _ = outputs_of(recurrent("LSTM", activations=names, activation_alpha=alpha, activation_beta=beta))
    assert gap(theirs, ys) < TOLERANCE


def test_directions_have_activations_of_their_own():
    settings = {"activations": ["HardSigmoid", "Elu", "Sigmoid", "Softplus"], "activation_alpha": [0.25, 0.6]}
    theirs, ys, (network, params) = outputs_of(recurrent("GRU", 2, **settings, activation_beta=[0.5], clip=2.0))
    assert gap(theirs, ys) < TOLERANCE
    layer = network.layers[0]
    assert layer.forward.config.activation == jaxrnn.Activation("elu", 0.6, clip=2.0)
    attributes = attributes_of(to_onnx(network, params).graph.node[0])
    assert [name.decode() for name in attributes["activations"]] == settings["activations"]
    np.testing.assert_allclose(attributes["activation_alpha"], [0.25, 0.6], rtol=1e-7)


@pytest.mark.parametrize("phi", ["hard_sigmoid", jaxrnn.Activation("elu", 1 / 3, clip=2 / 3)], ids=["1/6", "1/3"])
def test_numbers_that_float32_does_not_have_are_those_of_the_model(phi):
    cell = jaxrnn.gru(4, activation=phi, recurrent_activation=phi)
    params = cell.init(jax.random.key(0), I)
    model = to_onnx(cell, params)
    assert to_onnx(cell, params, into=model) == model  # refused if the numbers of the two differ
    assert from_onnx(model)[0].layers[0] == cell or phi != "hard_sigmoid"


REFUSED = {
    "clip of an LSTM": (jaxrnn.lstm(4, activation=jaxrnn.Activation("tanh", clip=1.0)), "with one clip"),
    "clip of both": (
        jaxrnn.lstm(4, **{o: jaxrnn.Activation("tanh", clip=1.0) for o in ("activation", "recurrent_activation")}),
        "without clip, .* but not the memory",
    ),
    "two clips": (jaxrnn.gru(4, activation=jaxrnn.Activation("tanh", clip=1.0)), "activations with one clip"),
    "a function": (jaxrnn.gru(4, recurrent_activation=jax.nn.softmax), "recurrent_activation to be one of tanh"),
    "coupled": (jaxrnn.lstm(4, coupled=True, recurrent_activation="softsign"), r"with σ\(-a\) = 1 - σ\(a\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_operator_cannot_hold_is_refused(case):
    cell, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"to_onnx: .*expected .*{message}"):
        to_onnx(cell, cell.init(jax.random.key(0), I))
