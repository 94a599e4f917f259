"""Configurations and files of Keras, of its versions 2 and 3, made and read without Keras; bad ones are refused."""

import base64
import io
import marshal
import subprocess
import sys
import zipfile
from pathlib import Path

import chex
import h5py
import numpy as np
import pytest

from jaxrnn import Activation, interop
from tests.support.fuzzing.answers import Attempt, complaint
from tests.support.keras_files import arrays_of, layer, lstm_file, new_file, old_file, options, sequential

ROOT = Path(__file__).parents[2]
LSTM = {f"lstm/lstm_cell/{name}": array for name, array in arrays_of("LSTM").items()}
OLD_SIGMOID = Activation("hard_sigmoid", 0.2, 0.5)
pytestmark = pytest.mark.usefixtures("unhooked")


def named(path, kind, suffix="", **sizes):
    return {f"{path}/{name}{suffix}": array for name, array in arrays_of(kind, **sizes).items()}


def read(config, weights=LSTM, prefix=""):
    return interop.from_keras(weights, prefix, config=config)


# What is read


def test_the_version_tells_which_hard_sigmoid_it_is(tmp_path):
    hard = options("LSTM", recurrent_activation="hard_sigmoid")
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}}
    for tells, wanted in (
        ({"keras_version": "2.15.0"}, OLD_SIGMOID),
        ({"keras_version": "3.0.0"}, "hard_sigmoid"),
        ({"keras_version": "2.2.4-tf", "seed": None}, OLD_SIGMOID),
        ({"implementation": 1}, OLD_SIGMOID),
        ({"time_major": False}, OLD_SIGMOID),
        ({"zero_output_for_mask": False}, "hard_sigmoid"),
        ({"dtype": policy}, "hard_sigmoid"),
    ):
        (cell,) = read(hard | tells)[0].layers
        assert cell.config.recurrent_activation == wanted, tells
    with pytest.raises(ValueError, match="LSTM: recurrent_activation: hard_sigmoid is clip.* before Keras 3 .*version"):
        read(hard)
    config = sequential(layer("LSTM", recurrent_activation="hard_sigmoid"))
    arrays = arrays_of("LSTM")
    old = old_file(tmp_path / "a.h5", config, {"lstm": named("lstm/lstm_cell", "LSTM", ":0")})
    new = new_file(tmp_path / "a.keras", config, {"layers/lstm/cell": arrays})
    middle = new_file(tmp_path / "b.keras", config, {"_layer_checkpoint_dependencies/lstm/cell": arrays}, "2.13.1")
    for path, wanted in ((old, OLD_SIGMOID), (new, "hard_sigmoid"), (middle, OLD_SIGMOID)):
        network, (params,) = interop.from_keras(path)
        assert network.layers[0].config.recurrent_activation == wanted
        assert params.w_h.tolist() == arrays["recurrent_kernel"].tolist()


def test_files_of_keras_2_are_read(tmp_path):
    old_gru = layer("GRU", "gru_1")
    del old_gru["config"]["reset_after"]  # versions that had no such option reset before the product
    del old_gru["config"]["use_bias"]
    both = {"class_name": "Bidirectional", "config": {"name": "both", "layer": layer("LSTM"), "merge_mode": "sum"}}
    both["config"]["layer"]["config"]["go_backwards"] = False
    halves = named("both/forward_lstm", "LSTM", ":0", input_size=4) | named(
        "both/backward_lstm", "LSTM", input_size=4, seed=1
    )
    gru = named("gru_1", "GRU", ":0")
    gru["gru_1/bias:0"] = gru["gru_1/bias:0"][0]
    layers = {"gru_1": gru, "drop": {}, "both": halves}
    config = sequential(old_gru, layer("Dropout", "drop"), both)
    for given in (config, {**config, "config": config["config"]["layers"]}):  # before 2.2.3 a list
        network, params = interop.from_keras(old_file(tmp_path / "a.h5", given, layers, "2.1.6"))
        assert repr(network) == (
            "stack([gru(4, reset_after=False), Bidirectional(forward=lstm(4), backward=lstm(4))], merge='sum')"
        )
        assert params[1].backward.w_h.tolist() == halves["both/backward_lstm/recurrent_kernel"].tolist()
        z, r, h = np.split(gru["gru_1/kernel:0"], 3, axis=1)
        np.testing.assert_array_equal(params[0].w_x, np.concatenate([r, z, h], axis=1))


def test_names_that_end_in_zero_are_those_without(tmp_path):
    chex.assert_trees_all_equal(
        interop.from_keras({f"{name}:0": array for name, array in LSTM.items()}), interop.from_keras(LSTM), strict=True
    )
    with pytest.raises(ValueError, match="from_keras: entry 'a/kernel' expected once, got it twice, with and without"):
        interop.from_keras({"a/kernel": LSTM["lstm/lstm_cell/kernel"], "a/kernel:0": LSTM["lstm/lstm_cell/kernel"]})


def test_long_lists_of_names_and_bfloat16_are_read(tmp_path):
    path = lstm_file(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        group = file["model_weights/lstm"]
        names = list(group.attrs["weight_names"])
        del group.attrs["weight_names"]
        group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:2], names[2:]
        for name in names:
            bits = (np.asarray(group[name]).view(np.uint32) >> 16).astype(np.uint16)
            del group[name]
            group.create_dataset(name, data=bits).attrs["dtype"] = "bfloat16"
    network, (params,) = interop.from_keras(path)
    assert (repr(network), params.b.dtype.name) == ("stack([lstm(4)])", "bfloat16")
    bits = arrays_of("LSTM")["bias"].view(np.uint32) >> 16
    assert (np.asarray(params.b).view(np.uint16) == bits).all()


def test_heads_are_those_of_the_network():
    blocks = np.kron(np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32))
    weights = {"kernel": np.ones((3, 4), np.float32), "recurrent_kernel": blocks}
    config = options("SimpleRNN", use_bias=False, return_sequences=True, recurrent_initializer=None)
    network, (params,) = interop.from_keras(weights, config=config, num_heads=2)
    assert (repr(network), params.w_h.shape) == ("stack([rnn(4, use_bias=False, num_heads=2)])", (2, 2, 2))


def test_prefix_chooses_among_layers_of_other_kinds():
    table, head = layer("Embedding", "table"), layer("Dense", "head")
    config = sequential(table, layer("GRU", "a"), layer("Masking", "m"), layer("LSTM", "b"), head, layer("LSTM", "c"))
    weights = named("model/a/cell", "GRU") | {"model/head/kernel": 3} | named("model/b/cell", "LSTM", input_size=4)
    assert repr(read(config, weights, "a")[0]) == "stack([gru(4)])"
    network, params = read(config, weights, ["model/b", "a"])
    assert repr(network) == "stack([gru(4), lstm(4)])"
    assert params[1].w_x.shape == (4, 16)
    choices = "; prefix= names one, or a list of those that follow each other, of 'a', 'b', 'c'"
    for prefix, message in (
        ("", f"expected recurrent layers alone, got Embedding 'table', Dense 'head' beside them{choices}"),
        (
            ["a", "b", "c"],
            f"recurrent layers that follow each other, got Dense 'head' between GRU 'a' and LSTM 'c'{choices}",
        ),
        (["a", "c"], "got LSTM 'b' between GRU 'a' and LSTM 'c'"),
        ("lstm", f"prefix expected the name of a layer, got 'lstm'{choices}"),
        ("head", "prefix expected to lead to recurrent layers, got Dense 'head'"),
        (
            "c",
            "weights expected entries below 'c', the name of a layer in the configuration, got 'model/a/cell/kernel'",
        ),
    ):
        with pytest.raises(ValueError, match=f"^from_keras: .*{message}"):
            read(config, weights, prefix)


# Nothing is executed


def test_a_lambda_layer_executes_nothing(tmp_path):
    trace = tmp_path / "it was run"
    spy = compile(f"open({str(trace)!r}, 'w').close()", "spy", "exec")
    function = {"class_name": "__lambda__", "config": {"code": base64.b64encode(marshal.dumps(spy)).decode()}}
    strange = layer("Lambda", "own", function=function)
    config = sequential(layer("LSTM"), strange)
    paths = [
        old_file(tmp_path / "a.h5", config, {"lstm": named("lstm/lstm_cell", "LSTM"), "own": {}}),
        new_file(tmp_path / "a.keras", config, {"layers/lstm/cell": arrays_of("LSTM")}),
    ]
    for path in paths:
        with pytest.raises(ValueError, match="from_keras: expected recurrent layers alone, got Lambda 'own' beside"):
            interop.from_keras(path)
        assert repr(interop.from_keras(path, "lstm")[0]) == "stack([lstm(4)])"
    for activation in (function, {**strange, "module": "keras.layers"}, base64.b64encode(marshal.dumps(spy)).decode()):
        with pytest.raises(ValueError, match="LSTM: activation expected one of tanh, .*which is not converted"):
            read(options("LSTM", activation=activation))
    assert not trace.exists()
    exec(marshal.loads(marshal.dumps(spy)))
    assert trace.exists()  # so it would have been seen


@pytest.mark.processes
def test_files_are_read_without_keras(tmp_path):
    paths = [str(lstm_file(tmp_path / name)) for name in ("a.h5", "a.keras")]
    code = f"""
import sys
for name in ("keras", "tf_keras", "tensorflow"):
    sys.modules[name] = None
import jaxrnn
print([repr(jaxrnn.interop.from_keras(path)[0]) for path in {paths!r}])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split("\n")[0] == "['stack([lstm(4)])', 'stack([lstm(4)])']"


# What is refused

BOTH = {"class_name": "Bidirectional", "config": {"name": "both", "layer": layer("LSTM"), "merge_mode": "concat"}}


def both(**given):
    return {**BOTH, "config": {**BOTH["config"], **given}}


def cells(*parts):
    return {"cell": {"class_name": "StackedRNNCells", "config": {"cells": list(parts)}}}


REFUSED = {
    "nothing": ({}, "config expected the configuration of a recurrent layer or of a model, got one with the entries"),
    "an object": (3, "config expected a configuration of Keras, a dictionary, got int 3"),
    "an old GRU": ({"units": 4, "activation": "tanh", "recurrent_activation": "sigmoid"}, "of an older GRU give"),
    "another layer": (layer("Dense"), "Dense expected one of SimpleRNN, LSTM, GRU, RNN, got 'Dense'"),
    "CuDNN": (layer("CuDNNLSTM"), "CuDNNLSTM expected one of SimpleRNN, LSTM, GRU, RNN, got 'CuDNNLSTM'"),
    "of a package": ({**layer("LSTM"), "module": "own.layers"}, "LSTM expected Keras's own class, got 'own.layers'"),
    "registered": ({**layer("LSTM"), "registered_name": "own>LSTM"}, "LSTM expected Keras's own class, got 'own>LSTM'"),
    "no activation": ({"units": 4, "activation": "tanh", "unit_forget_bias": True}, "recurrent_activation expected an entry"),
    "softmax": (options("LSTM", activation="softmax"), "activation expected one of tanh, .*, got 'softmax', which is not"),
    "a number": (options("LSTM", activation=3), "LSTM: activation expected one of tanh, .*, got int 3, which"),
    "a function": (
        options("LSTM", activation={"class_name": "function", "config": "f", "module": "own"}), "got function 'f', which"),
    "a PReLU": (options("LSTM", activation=layer("PReLU")), "LSTM: activation expected one of .*, got PReLU"),
    "a slope": (options("LSTM", activation=layer("LeakyReLU", negative_slope="a")), "activation: negative_slope expected a number"),
    "backwards": (options("LSTM", go_backwards=True), "go_backwards expected False, got bool True; set it to False .*reverse=True"),
    "no units": (options("LSTM", units=None), "LSTM: units expected a positive integer"),
    "huge units": (options("LSTM", units=10**10), "LSTM: units expected at most"),
    "other units": (options("LSTM", units=5), r"LSTM: w_x expected shape \(3, 20\), got \(3, 16\)"),
    "Keras 1": ({"class_name": "LSTM", "config": {"output_dim": 4}}, "got output_dim, as Keras 1 called it; load the model in Keras 2"),
    "no bias": (options("LSTM", use_bias=False), r"LSTM: b expected shape None, got \(16,\); do use_bias and"),
    "a bias of text": (options("LSTM", use_bias="no"), "LSTM: use_bias expected True or False"),
    "another kind": (options("GRU"), "GRU expected weights of GRUParams, got LSTMParams"),
    "two directions": (BOTH, "Bidirectional expected weights of two directions, got weights of one"),
    "two outputs": (both(merge_mode=None), "Bidirectional: merge_mode expected one of 'concat', 'sum', 'mul', 'ave'; got None"),
    "no layer": (both(layer=3), "Bidirectional: layer expected a class_name and a config, got int 3"),
    "the same way": (both(backward_layer=layer("LSTM")), "backward_layer: go_backwards expected True, got bool False"),
    "the other way": (both(layer=layer("LSTM", go_backwards=True)), "forward LSTM: go_backwards expected False, got bool True"),
    "stacked both ways": (
        both(layer={"class_name": "RNN", "config": cells(*[layer("LSTMCell", **options("LSTM"))] * 2)}),
        "Bidirectional expected one cell in each direction, got 2 stacked ones"),
    "an own cell": ({"cell": layer("Own")}, "RNN: cell expected one of SimpleRNNCell, .*, got 'Own', whose equations"),
    "no cells": (cells(), "RNN: cells expected a list of cells, got an empty list"),
    "a cell of another kind": (cells(layer("Dense")), r"RNN: cells\[0\] expected one of SimpleRNNCell, .*, got 'Dense'"),
    "more layers": (
        cells(*[layer("LSTMCell", **options("LSTM"))] * 2), "RNN expected weights of 2 layers, got those of 1"),
    "no list": (sequential() | {"config": {"layers": 3}}, "layers expected a list, got int 3; is the configuration damaged"),
    "no layers": (sequential(), "config expected a model with recurrent layers, got no layers"),
    "a layer that is none": (sequential(3), r"layers\[0\] expected a class_name and a config, got int 3"),
    "a name that is none": (sequential(layer("LSTM") | {"config": {"name": 3}}), "the name of a layer expected a text, got int 3"),
    "a version": ({**layer("LSTM"), "keras_version": 3}, "keras_version expected a text such as '2.15.0', got int 3"),
    "merges": (
        sequential(both(name="a"), both(name="b", merge_mode="sum")),
        "merge_mode expected 'concat' of Bidirectional 'b', as of Bidirectional 'a', got 'sum'; a network merges in one way"),
    "a branch": (
        {"class_name": "Functional", "config": {"layers": [layer("LSTM", "a"), layer("LSTM", "b")]}},
        "got LSTM 'b', which does not read LSTM 'a' alone; prefix="),
    "called twice": (
        {"class_name": "Functional", "config": {"layers": [{**layer("LSTM", "a"), "inbound_nodes": [[], []]}]}},
        "expected layers that are called once, got LSTM 'a', which is called 2 times; prefix="),
    "two models side by side": (
        {"class_name": "Functional", "config": {"layers": [sequential(layer("LSTM"), name=name) for name in "ab"]}},
        "got LSTM 'b/lstm', which does not read LSTM 'a/lstm' alone; prefix="),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_configurations_that_cannot_be_converted_are_refused(fault):
    config, message = REFUSED[fault]
    with pytest.raises((TypeError, ValueError), match=f"^from_keras: .*{message}") as caught:
        read(config)
    assert len(str(caught.value)) <= 500
    assert "\n" not in str(caught.value)


def test_a_half_of_a_bidirectional_is_known_by_its_name():
    weights = {side: arrays_of("LSTM", seed=seed) for seed, side in enumerate(("forward", "backward"))}
    named = {f"both/{side}_lstm_7/{name}": a for side, own in reversed(weights.items()) for name, a in own.items()}
    (params,) = interop.from_keras(named, config=BOTH)[1]  # the configuration of another instance: no name is in it
    for side, own in weights.items():
        np.testing.assert_array_equal(getattr(params, side).w_x, own["kernel"])


def test_models_too_deep_in_each_other_are_refused():
    config = sequential(layer("LSTM"))
    for _ in range(100):
        config = sequential({**config, "config": {**config["config"], "name": "inner"}})
    with pytest.raises(ValueError, match="from_keras: config expected at most 64 models in each other, got more"):
        read(config)


def test_weights_of_keras_1_are_refused_with_the_next_step():
    with pytest.raises(
        ValueError, match="from_keras: entry 'lstm_1_W_i' expected a kernel.* Keras 1 .*load the model in"
    ):
        interop.from_keras({"lstm_1_W_i": LSTM["lstm/lstm_cell/kernel"]})
    own = {"own/scale_b": 3, **LSTM}  # of another layer, whose name ends as those did
    assert repr(read(sequential(layer("Own", "own"), layer("LSTM")), own, "lstm")[0]) == "stack([lstm(4)])"


def test_prefixes_of_weights_alone_are_strings():
    with pytest.raises(TypeError, match="from_keras: prefix expected a string, got list"):
        interop.from_keras(LSTM, ["lstm"])  # pyright: ignore
    with pytest.raises(
        TypeError, match="from_keras: prefix expected a string beside the configuration of a layer, got"
    ):
        read(options("LSTM"), prefix=["lstm"])
    with pytest.raises(TypeError, match="from_keras: prefix expected a string or a list of strings, got list"):
        read(options("LSTM"), prefix=[3])


# Damaged files


def with_link(file, link):
    del file["model_weights/lstm/lstm/lstm_cell/kernel:0"]
    file["model_weights/lstm/lstm/lstm_cell/kernel:0"] = link


def with_array(file, **options):
    del file["model_weights/lstm/lstm/lstm_cell/kernel:0"]
    file.create_dataset("model_weights/lstm/lstm/lstm_cell/kernel:0", **options)


H5 = {
    "a link to another file": (lambda f: with_link(f, h5py.ExternalLink("/etc/passwd", "/")), "kernel:0' is a link"),
    "a link": (lambda f: with_link(f, h5py.SoftLink("/")), "kernel:0' is a link"),
    "numbers in another file": (
        lambda f: with_array(f, shape=(3, 16), dtype="f4", external=[("/etc/passwd", 0, 192)]), "in other files"),
    "a file that fills the memory": (
        lambda f: with_array(f, shape=(10**6, 10**6), dtype="f4", chunks=(10, 10)), "has 4000000000000 bytes of float32"),
    "texts": (lambda f: with_array(f, data=["a"]), "kernel:0' has .* bytes of object"),
    "integers": (lambda f: with_array(f, data=np.zeros((3, 16), int)), "floating-point array"),
    "another shape": (lambda f: with_array(f, data=np.zeros((3, 15), "f4")), r"expected shape \(3, 16\), got \(3, 15\)"),
    "a missing array": (lambda f: f.pop("model_weights/lstm/lstm/lstm_cell/kernel:0"), "kernel:0' is missing"),
    "an array as a group": (lambda f: (f.pop("model_weights"), f.create_dataset("model_weights", data=[1.0])), "'model_weights' is an array, a group was expected"),
    "no layers": (lambda f: f["model_weights"].attrs.update(layer_names=[b"other"]), "it has no weights of LSTM 'lstm'"),
    "no names of layers": (lambda f: f["model_weights"].attrs.pop("layer_names"), "it has no weights"),
    "no names of weights": (lambda f: f["model_weights/lstm"].attrs.pop("weight_names"), "it has no weights of 'lstm'"),
    "no JSON": (lambda f: f.attrs.update(model_config="{"), "is damaged"),
    "a list": (lambda f: f.attrs.update(model_config="[]"), "config expected a configuration of Keras"),
    "nested JSON": (lambda f: f.attrs.update(model_config="[" * 60_000), "is damaged: RecursionError"),
    "a number for a text": (lambda f: f.attrs.update(model_config=3), "attribute model_config is"),
}  # fmt: skip


@pytest.mark.parametrize("fault", H5)
def test_h5_files_with_faults_are_refused(fault, tmp_path):
    change, message = H5[fault]
    path = lstm_file(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises((ValueError, TypeError), match=f"^from_keras: .*{message}") as caught:
        interop.from_keras(path)
    assert len(str(caught.value)) <= 500


def rezipped(path, **members):
    """The archive with other members; `None` leaves one out."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()} | members
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            if content is not None:
                archive.writestr(name, content)
    path.write_bytes(out.getvalue())


KERAS = {
    "no configuration": ({"config.json": None}, "expected an archive of Keras, .* got no config.json; is it of torch.save"),
    "no weights": ({"model.weights.h5": None}, "got no model.weights.h5"),
    "no JSON": ({"config.json": b"{"}, "is damaged"),
    "no text": ({"config.json": b"\xff\xfe\xff"}, "is damaged: UnicodeDecodeError"),
    "not HDF5": ({"model.weights.h5": b"PK"}, "is damaged"),
    "a bomb": ({"config.json": b" " * 2**26}, "config.json has 67108864 bytes in an archive of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", KERAS)
def test_keras_files_with_faults_are_refused(fault, tmp_path):
    members, message = KERAS[fault]
    path = lstm_file(tmp_path / "a.keras")
    rezipped(path, **members)
    with pytest.raises(ValueError, match=f"^from_keras: .*a.keras: .*{message}") as caught:
        interop.from_keras(path)
    assert len(str(caught.value)) <= 500


def test_other_files_and_missing_ones_are_refused(tmp_path):
    path = tmp_path / "a.keras"
    for content, message in ((b"\x80\x04.", "got a Python pickle.*; nothing of it was run"), (b"", "got another")):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"from_keras: .*a.keras: expected a .keras or .h5 file of Keras, {message}"
        ):
            interop.from_keras(path)
    for bad, error in ((tmp_path / "nowhere.h5", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error, match="from_keras: path: "):
            interop.from_keras(bad)


def test_missing_h5py_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'from_keras: needs the package h5py; pip install "jaxrnn\[interop\]"'):
        interop.from_keras("a.h5")


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_damaged_bytes_are_refused_or_give_networks(suffix, tmp_path):
    path = lstm_file(tmp_path / f"a{suffix}")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    wrong = []
    for k in range(150):
        content = bytearray(whole)
        if k % 3:
            for place in rng.integers(0, len(whole), 1 + k % 5):
                content[place] = rng.integers(256)
        else:
            del content[rng.integers(len(whole)) :]
        path.write_bytes(bytes(content))
        attempt = Attempt(f"{k}", "from_keras", (), lambda: interop.from_keras(path))
        wrong += [f"{k}: {found}"] if (found := complaint(attempt)) else []
    assert not wrong
