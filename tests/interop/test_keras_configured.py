"""Networks read from Keras's layers, models, configurations and files compute what Keras does."""

import functools
import json
import os
from typing import Any

import chex
import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Activation, interop
from tests.support.peers import peer
from tests.support.registry import gap

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is first imported, or it looks for TensorFlow

T, B, I, H = 4, 2, 3, 4  # noqa: E741
TOLERANCE = 5e-6  # of the largest output; measured at 6e-7
# Keras's names, in the order of what they are paired with as an activation of gates.
NAMES = ["tanh", "relu", "sigmoid", "hard_sigmoid", "softsign", "softplus", "elu", "linear", "leaky_relu"]
OURS = {"linear": "identity", "leaky_relu": Activation("leaky_relu", 0.2)}
XS = np.random.default_rng(7).standard_normal((T, B, I)).astype("float32")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def default_promotion():
    """Keras does not run under the strict settings of these tests."""
    peer("keras")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def drawn(layer: Any, seed: int = 0) -> Any:
    """A layer that is built, with random weights, biases too."""
    rng = np.random.default_rng(seed)
    layer.set_weights([0.6 * rng.standard_normal(w.shape).astype("float32") for w in layer.weights])
    return layer


def first(xs: Any) -> np.ndarray:
    """Batch-major to time-major and back."""
    return np.swapaxes(np.asarray(xs), 0, 1)


@functools.cache
def model() -> Any:
    """Every kind of layer, each with activations of its own."""
    import keras

    layers, sequences = keras.layers, {"return_sequences": True}
    halves = layers.LSTM(H, activation="softsign", recurrent_activation="hard_sigmoid", **sequences)
    other = layers.GRU(H, activation="elu", go_backwards=True, name="other", **sequences)
    stacked = [layers.LSTMCell(H, activation="elu"), layers.GRUCell(H, reset_after=False, use_bias=False)]
    return drawn(
        keras.Sequential(
            [
                layers.Input((None, I)),
                layers.Masking(),
                layers.Bidirectional(halves, merge_mode="ave", name="both"),
                layers.Bidirectional(layers.LSTM(H, **sequences), "ave", backward_layer=other, name="two"),
                layers.GRU(H, name="after", activation="softplus", dropout=0.5, **sequences),
                layers.Dropout(0.5),
                layers.GRU(H, name="before", reset_after=False, recurrent_activation="hard_sigmoid", **sequences),
                layers.RNN(layers.StackedRNNCells(stacked), name="cells", **sequences),
                layers.SimpleRNN(H, activation=layers.LeakyReLU(0.3), use_bias=False, name="last", **sequences),
            ],
            name="model",
        )
    )


@functools.cache
def expected() -> tuple[jaxrnn.Network, Any]:
    """What a live model gives; it computes the same."""
    network, params = interop.from_keras(model())
    ours = network.unroll(params, XS, implementation="reference")[1]
    assert gap(np.asarray(ours), first(model()(first(XS)))) <= TOLERANCE
    assert repr(network) == (
        "stack([Bidirectional(forward=lstm(4, activation='softsign', recurrent_activation='hard_sigmoid'), "
        "backward=lstm(4, activation='softsign', recurrent_activation='hard_sigmoid')), "
        "Bidirectional(forward=lstm(4), backward=gru(4, activation='elu')), "
        "gru(4, activation='softplus'), gru(4, reset_after=False, recurrent_activation='hard_sigmoid'), "
        "lstm(4, activation='elu'), gru(4, use_bias=False, reset_after=False), "
        "rnn(4, use_bias=False, activation=Activation('leaky_relu', alpha=0.3))], merge='average')"
    )
    return network, params


def assert_same(found: Any) -> None:
    assert repr(found[0]) == repr(expected()[0])
    chex.assert_trees_all_equal(found[1], expected()[1], strict=True)


# Equal to Keras


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU-before", "SimpleRNN"])
def test_cells_of_every_activation_compute_the_same(kind):
    import keras

    options = {"reset_after": False} if kind == "GRU-before" else {}
    make = getattr(keras.layers, kind.removesuffix("-before") + "Cell")
    rng = np.random.default_rng(1)
    h, c = (rng.standard_normal((B, H)).astype("float32") for _ in range(2))
    for name, gates in zip(NAMES, NAMES[3:] + NAMES[:3], strict=True):
        named = {"activation": name} | ({} if kind == "SimpleRNN" else {"recurrent_activation": gates})
        theirs = make(H, **named, **options)
        theirs.build((B, I))
        network, params = interop.from_keras(drawn(theirs))
        cell, state = network.layers[0], jaxrnn.LSTMState(h=h, c=c) if kind == "LSTM" else h
        wanted = theirs(XS[0], [h, c] if kind == "LSTM" else [h])[0]
        assert gap(np.asarray(cell.step(params[0], state, XS[0])[1]), np.asarray(wanted)) <= TOLERANCE, (name, gates)
        assert cell.config.activation == OURS.get(name, name)
        if kind != "SimpleRNN":
            assert cell.config.recurrent_activation == OURS.get(gates, gates)
        by_config = interop.from_keras({w.path: w for w in theirs.weights}, config=theirs.get_config())
        assert repr(by_config[0]) == repr(network)


def test_live_models_compute_the_same():
    expected()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_give_what_the_live_model_gives(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    model().save(path)
    assert_same(interop.from_keras(path))
    network, params = interop.from_keras(str(path), ["model/after", "before"])
    assert repr(network) == f"stack([{expected()[0].layers[2]}, {expected()[0].layers[3]}])"
    chex.assert_trees_all_equal(params, expected()[1][2:4], strict=True)


def test_every_activation_both_ways_from_every_source(tmp_path):
    import keras

    layers, made = keras.layers, []
    for k, name in enumerate(NAMES):
        kind = (layers.LSTM, layers.GRU, layers.SimpleRNN)[k % 3]
        options = {"activation": name, "return_sequences": True}
        options |= {} if kind is layers.SimpleRNN else {"recurrent_activation": NAMES[k - 3]}
        options |= {"reset_after": k % 2 == 0} if kind is layers.GRU else {}
        made.append(layers.Bidirectional(kind(H, **options), merge_mode="ave", name=name))
    theirs = drawn(keras.Sequential([layers.Input((None, I)), *made], name="all"), 3)
    network, params = interop.from_keras(theirs)
    ours = network.unroll(params, XS, implementation="reference")[1]
    assert np.ptp(ours) > 0.01
    assert gap(np.asarray(ours), first(theirs(first(XS)))) <= TOLERANCE
    found = [way.config.activation for layer in network.layers for way in layer]
    assert found == [OURS.get(name, name) for name in NAMES for _ in range(2)]
    for suffix in ("keras", "h5"):
        theirs.save(tmp_path / f"all.{suffix}")
        again = interop.from_keras(tmp_path / f"all.{suffix}")
        assert repr(again[0]) == repr(network)
        chex.assert_trees_all_equal(again[1], params, strict=True)


def test_configurations_beside_weights_give_what_the_live_model_gives():
    weights = {w.path: w for w in model().weights}
    assert_same(interop.from_keras(weights, config=model().get_config()))
    assert_same(interop.from_keras(dict(sorted(weights.items())), config=model().get_config()))  # names tell the order
    assert_same(interop.from_keras(weights, config=json.loads(model().to_json())))
    (params,) = interop.from_keras(weights, "last", config=model().get_config())[1]
    chex.assert_trees_all_equal(params, expected()[1][-1], strict=True)


def test_files_of_weights_alone_need_the_configuration(tmp_path):
    path = tmp_path / "model.weights.h5"
    model().save_weights(path)
    assert_same(interop.from_keras(path, config=model().get_config()))
    with pytest.raises(ValueError, match=r"from_keras: .*: expected a configuration in the file, .*config="):
        interop.from_keras(path)


def functional(follow: bool = True) -> Any:
    """A model inside a model, with layers of other kinds around the recurrent ones."""
    import keras

    layers = keras.layers
    xs = layers.Input((None, I))
    below = layers.GRU(H, return_sequences=True, name="below")(xs)
    between = layers.Dropout(0.1, name="between")(below)
    above = layers.LSTM(H, return_sequences=True, name="above")(between if follow else layers.Dense(H)(xs))
    inner = keras.Model(xs, [below, above], name="inner")
    tokens = layers.Input((None,), dtype="int32")
    _, ys = inner(layers.Embedding(5, I, name="table")(tokens))
    return drawn(keras.Model(tokens, layers.Dense(2, name="head")(ys), name="outer"))


def test_layers_of_functional_models_are_chosen_by_prefix(tmp_path):
    outer = functional()
    inner = outer.get_layer("inner")
    outer.save(tmp_path / "m.keras")
    outer.save(tmp_path / "m.h5")
    weights = {w.path: w for w in outer.weights}
    network, params = interop.from_keras(outer, ["inner/below", "inner/above"])
    ours = network.unroll(params, XS, implementation="reference")[1]
    assert gap(np.asarray(ours), first(inner(first(XS))[1])) <= TOLERANCE
    for source, config in ((tmp_path / "m.keras", None), (tmp_path / "m.h5", None), (weights, outer.get_config())):
        again = interop.from_keras(source, "inner", config=config)
        assert repr(again[0]) == repr(network)
        chex.assert_trees_all_equal(again[1], params, strict=True)
    with pytest.raises(ValueError, match="from_keras: expected recurrent layers alone, got Embedding 'table', Dense"):
        interop.from_keras(outer)
    with pytest.raises(ValueError, match="got LSTM 'inner/above', which does not read GRU 'inner/below' alone"):
        interop.from_keras(functional(follow=False), ["inner/below", "inner/above"])


def test_layers_that_cannot_be_converted_are_refused():
    import keras

    class Own(keras.layers.LSTM):
        pass

    def tanh(a):
        return a

    layers = keras.layers
    swish = layers.SimpleRNN(H, activation="silu")
    for layer, error, message in (
        (Own(H), TypeError, "of Keras's own class, got Own.*; of a model of your own class"),
        (layers.Dense(H), TypeError, "weights expected one of SimpleRNN, LSTM, .* got Dense"),
        (layers.LSTM(H), ValueError, "LSTM expected weights, got none; build the layer first"),
        (swish, ValueError, "SimpleRNN: activation expected one of tanh, .*, got 'silu', which is not converted"),
        (layers.GRU(H, activation=first), ValueError, "GRU: activation expected one of .*, got 'first', which"),
        (layers.LSTM(H, activation=tanh), ValueError, "LSTM: activation expected a function of Keras, got .* of tests"),
        (
            layers.LSTM(H, go_backwards=True),
            ValueError,
            "LSTM: go_backwards expected False, got bool True; .*reverse=True",
        ),
    ):
        with pytest.raises(error, match=f"from_keras: .*{message}"):
            interop.from_keras(layer)


def test_a_prefix_beside_a_layer_is_its_name_or_refused():
    layer = model().layers[-1]
    assert repr(interop.from_keras(layer, layer.name)) == repr(interop.from_keras(layer))
    with pytest.raises(ValueError, match="prefix expected none beside a layer, got str 'nonsense'; it names layers of"):
        interop.from_keras(layer, "nonsense")
