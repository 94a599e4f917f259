"""Files of several networks, read-outs and the arrays beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Bidirectional
from jaxrnn.saving import load, save
from tests.support.odd_values import LONGEST
from tests.support.saving import TINY, assert_same_bits, forge, own_cell, params_of

pytestmark = pytest.mark.usefixtures("unhooked")

NETS = {
    "encoder": jaxrnn.stack([Bidirectional(TINY, jaxrnn.mgu(1))], merge="sum", dropout=0.0),
    "decoders": [jaxrnn.lstm(2, activation=jaxrnn.Activation("hard_sigmoid", 0.2, 0.5)), None],
    "heads": (None, {"tags": jaxrnn.readout(3, activation="softmax"), "value": jaxrnn.readout(1, use_bias=False)}),
}


def numbers(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


PARAMS = {
    "encoder": params_of(NETS["encoder"]),
    "decoders": [params_of(NETS["decoders"][0], jnp.bfloat16, 4), {"scale": numbers(2)}],
    "heads": (
        numbers(2, 3, seed=1),
        {"tags": params_of(NETS["heads"][1]["tags"], input_size=2), "value": params_of(NETS["heads"][1]["value"])},
    ),
    "embedding": numbers(5, 3, dtype=jnp.float16),
    "steps": jnp.array(7),
    "rest": {"none": None, "empty": {}, "list": [], "tuple": (), "parts": [numbers(1), (jnp.array([True]),)]},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_trees_survive_a_round_trip(path):
    save(path, NETS, PARAMS, {"epoch": 2})
    networks, params, metadata = load(path, return_metadata=True)
    assert repr(networks) == repr(NETS)
    assert networks["decoders"][0].config == NETS["decoders"][0].config
    assert networks["heads"][1]["tags"].config == NETS["heads"][1]["tags"].config
    assert networks["heads"][1]["value"] == NETS["heads"][1]["value"]  # also the initialisers, which are the defaults
    assert metadata == {"epoch": 2}
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    assert_same_bits(params, PARAMS)
    assert params["rest"]["none"] is None
    assert (params["rest"]["empty"], params["rest"]["list"], params["rest"]["tuple"]) == ({}, [], ())


def test_read_outs_are_saved_alone_and_compute_the_same(path):
    read = jaxrnn.readout(3, activation="sigmoid")
    params = params_of(read, input_size=2)
    save(path, read, params)
    loaded, back = load(path)
    assert_same_bits(params, back)
    h = numbers(4, 2)
    np.testing.assert_array_equal(loaded.predict(back, h), read.predict(params, h))
    assert loaded == read
    assert load(path, read)[0] is read
    with pytest.raises(ValueError, match="load: network expected the equations of .*sigmoid.*, got readout"):
        load(path, jaxrnn.readout(3))


def test_arrays_without_any_network_are_saved(path):
    save(path, {}, {"a": numbers(2)})
    networks, params = load(path)
    assert networks == {}
    assert_same_bits(params, {"a": numbers(2)})


def test_given_networks_take_the_place_of_those_in_the_file(path):
    save(path, NETS, PARAMS)
    other = NETS["encoder"]._replace(dropout=0.0)
    networks, params = load(path, {"encoder": other})
    assert networks["encoder"] is other
    assert repr(networks) == repr(NETS)
    assert_same_bits(params, PARAMS)
    own = own_cell()
    save(path, {"own": own, "rnn": TINY}, {"own": own.init(None, 5), "rnn": params_of(TINY)}, params_only=True)
    networks, params = load(path, {"own": own, "rnn": TINY})
    assert networks["own"] is own
    assert_same_bits(params["own"], own.init(None, 5))
    with pytest.raises(ValueError, match="load: network: rnn expected one, got None; .* was saved with params_only"):
        load(path, {"own": own})
    with pytest.raises(TypeError, match="save: network: own: cell expected one that the library makes, got own"):
        save(path, {"own": own}, {"own": own.init(None, 5)})


GIVEN = {
    "one network": (TINY, "network expected a dict, as .* holds, got rnn"),
    "another name": ({"net": TINY}, "network expected 'encoder', 'decoders', .*, as .* holds, got 'net'"),
    "one for a list": ({"decoders": TINY}, "network: decoders expected a list, as .* holds, got rnn"),
    "too many": ({"decoders": [None] * 3}, "network: decoders expected 2 entries, as .* holds, got 3"),
    "one for an array": ({"embedding": TINY}, "network: embedding expected None, as .* holds no network there, got rnn"),
    "a dict for one": ({"encoder": {}}, "network: encoder expected one, as .* holds, got an empty dict"),
    "other equations": ({"decoders": [jaxrnn.lstm(2), None]}, "network: decoders.0 expected the equations of .*, lstm"),
    "text": ({"encoder": "rnn"}, "network: encoder expected one, as .* holds, got str 'rnn'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    path = tmp_path_factory.mktemp("genuine") / "model"
    save(path, NETS, PARAMS)
    return path.read_bytes()


@pytest.mark.parametrize("fault", GIVEN)
def test_given_networks_that_do_not_fit_are_refused(fault, path, genuine):
    given, message = GIVEN[fault]
    path.write_bytes(genuine)
    with pytest.raises(ValueError, match=f"^load: {message}") as caught:
        load(path, given)
    assert len(str(caught.value)) <= LONGEST


def test_a_tree_given_for_a_file_of_one_network_is_refused(path):
    save(path, TINY, params_of(TINY))
    with pytest.raises(ValueError, match="load: network expected one, as .* holds, got dict"):
        load(path, {"net": TINY})


# What cannot be saved

ONE = params_of(TINY)
BAD = {
    "no params": (({"a": TINY}, {"b": ONE}), "save: params expected the parameters of 'a', got 'b'"),
    "params of one": (({"a": TINY}, ONE), "save: network expected what params are of, .*, got dict .* and RNNParams"),
    "a tuple for a list": (({"a": [TINY]}, {"a": (ONE,)}), "save: network: a expected what params are of"),
    "too few": (({"a": [TINY]}, {"a": []}), "save: params: a expected 1 entries as the networks are, got 0; None stands"),
    "text": (({"a": "rnn"}, {"a": ONE}), "save: network: a expected one from jaxrnn.stack, .*, got str 'rnn'"),
    "a factory": (({"a": jaxrnn.readout}, {"a": ONE}), r"save: network: a .*; call it: readout\(...\)"),
    "a record of none": (({}, {"a": ONE}), "save: params: a expected an array, or dictionaries, .*; of a network give it"),
    "numbers as names": (({}, {1: numbers(1)}), "save: params expected texts as names, got int 1"),
    "an empty name": (({}, {"": numbers(1)}), "save: params expected texts as names, got str ''"),
    "one name for two": (({}, {"a.b": numbers(1), "a": {"b": numbers(1)}}), "save: params expected leaves with paths"),
    "a number": (({}, {"a": 1.0}), "save: params: a expected an array, got float 1.0"),
    "text beside": (({}, {"a": "x"}), "save: params: a expected an array, got str 'x'"),
    "another shape": (({"a": TINY}, {"a": ONE._replace(b=numbers(2))}), r"save: params: a.b expected shape \(1,\), got \(2,\)"),
    "a missing array": (({"a": TINY}, {"a": ONE._replace(b=None)}), "save: params: expected arrays a.b, got none"),
    "another record": (({"a": TINY}, {"a": ONE._asdict()}), "save: params expected dict of .*RNNParams.*, got dict of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_trees_that_cannot_be_saved_are_refused(fault, path):
    given, message = BAD[fault]
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        save(path, *given)
    assert len(str(caught.value)) <= LONGEST
    assert not path.exists()


def test_containers_too_deep_in_each_other_are_refused(path):
    deep = numbers(1)
    for _ in range(70):
        deep = [deep]
    with pytest.raises(ValueError, match="save: params expected at most 64 containers in each other, got more"):
        save(path, {}, {"a": deep})
    save(path, {}, {"a": numbers(1)})

    def nested(_, entry):
        for _ in range(70):
            entry["configuration"] = {"dict": {"a": entry["configuration"]}}

    forge(path, nested)
    with pytest.raises(
        ValueError, match="load: .*: configuration expected at most 64 containers in each other, got more"
    ):
        load(path)


# Forged files


def at(*names, value):
    """Puts a value at a place of the tree."""

    def change(_, entry):
        inner = entry["configuration"]
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = value

    return change


FORGED = {
    "no tree": (lambda _, e: e.update(configuration=None), "configuration is missing or wrong, got None"),
    "an empty tree": (lambda _, e: e.update(configuration={}), "configuration expected a network, dict, .*, got an empty"),
    "an input size": (lambda _, e: e.update(input_size=3), "input_size is missing or wrong, got int 3"),
    "another node": (at("dict", "encoder", value={"code": "x"}), "configuration: encoder expected a network, dict, list"),
    "a list for a dict": (at("dict", value=[]), "configuration expected a network, dict, .*, got dict"),
    "two nodes": (at("list", value=[]), "configuration expected a network, dict, list"),
    "no input size": (at("dict", "encoder", value={"network": None}), "configuration: encoder expected a network"),
    "a wrong input size": (at("dict", "encoder", "input_size", value=-1), "encoder: input_size is missing or wrong, got int -1"),
    "another input size": (at("dict", "encoder", "input_size", value=9), r"encoder.0.forward.w_x expected shape \(9, 1\), got \(3, 1\)"),
    "a nested name": (at("dict", "embedding", value="pickle"), "configuration: embedding expected a network, dict, .*, got str"),
    "no array": (at("dict", "more", value="array"), "expected arrays more, got none"),
    "an array too many": (at("dict", "embedding", value=None), "expected no arrays embedding, got them"),
    "an unknown read-out": (at("dict", "heads", "tuple", 1, "dict", "tags", "network", "activation", value="sin"), "readout: activation expected one of"),
    "an option of a read-out": (at("dict", "heads", "tuple", 1, "dict", "tags", "network", "colour", value=1), "readout: option expected one of .*; got 'colour'"),
    "a read-out in a stack": (at("dict", "encoder", "network", "cells", value=[{"factory": "readout"}]), "factory expected one of rnn, .*, got str 'readout'"),
    "a huge read-out": (at("dict", "heads", "tuple", 1, "dict", "tags", "network", "output_size", value=2**31), "output_size expected at most"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FORGED)
def test_forged_trees_are_refused(fault, path, genuine):
    change, message = FORGED[fault]
    path.write_bytes(genuine)
    forge(path, change)
    with pytest.raises(ValueError, match=f"^load: .*model.safetensors: .*({message})") as caught:
        load(path)
    assert len(str(caught.value)) <= LONGEST


def test_damaged_trees_are_refused(path):
    save(path, {"a": TINY, "r": jaxrnn.readout(1)}, {"a": ONE, "r": params_of(jaxrnn.readout(1)), "e": numbers(1)})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    broken = [whole[: rng.integers(len(whole))] for _ in range(60)]
    for k in rng.integers(len(whole), size=240):
        broken.append(whole[:k] + bytes([whole[k] ^ int(rng.choice([1, 0x80]))]) + whole[k + 1 :])
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="load: .*model.safetensors: "):
            load(path)
