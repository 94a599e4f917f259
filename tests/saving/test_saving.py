"""Saved networks and params survive a round trip bit for bit, and compute the same."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

import jaxrnn
from jaxrnn import Bidirectional, LSTMState, configuration
from jaxrnn.cells import RNNConfig
from jaxrnn.saving import load, save
from tests.support.registry import CELLS, H, I, random_like
from tests.support.saving import TINY, assert_same_bits, forge, own_cell, params_of

pytestmark = pytest.mark.usefixtures("unhooked")

GOLDEN = Path(__file__).parents[1] / "golden"
NAMED = [make() for name, make in CELLS.items() if "callable" not in name]
NET = jaxrnn.stack(
    [
        Bidirectional(jaxrnn.gru(4, reset_after=False), jaxrnn.lstm(4, layer_norm=True)),
        jaxrnn.regularize(jaxrnn.lstm(4), recurrent_dropout=0.25, zoneout=LSTMState(h=0.05, c=0.5)),
        jaxrnn.regularize(jaxrnn.regularize(jaxrnn.mgu(4), dropconnect=0.1), zoneout=0.2),
    ],
    merge="sum",
    dropout=0.3,
    residual=True,
)


class OtherConfig(RNNConfig):
    """Config of a cell from another library."""

    factory = "own"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


# Round trips


@pytest.mark.parametrize("cell", NAMED, ids=repr)
def test_cells_survive_a_round_trip(cell, path):
    params = params_of(cell)
    save(path, cell, params)
    loaded, back = load(path)
    assert loaded.config == cell.config
    assert (repr(loaded), hash(loaded.config)) == (repr(cell), hash(cell.config))
    assert_same_bits(params, back)


def test_loaded_network_computes_the_same(path):
    params = params_of(NET)
    save(path, NET, params)
    loaded, back = load(path)
    assert repr(loaded) == repr(NET)
    assert (loaded.merge, loaded.dropout, loaded.residual) == ("sum", 0.3, True)
    assert_same_bits(params, back)
    xs = random_like(1, jax.ShapeDtypeStruct((5, 2, I), jnp.float32), jnp.float32)
    noisy = [
        jax.jit(lambda params, net=net: net.unroll(params, xs, key=jax.random.key(3)))(params) for net in (NET, loaded)
    ]
    assert_same_bits(*noisy)


def test_modules_are_saved_through_their_network(path):
    saved, other = (jaxrnn.modules.GRU(I, H, bidirectional=True, rngs=nnx.Rngs(seed)) for seed in range(2))
    save(path, saved.network, saved.params)
    assert saved.params[0].forward.w_x.tolist() != other.params[0].forward.w_x.tolist()
    other.load(load(path, other.network)[1])
    assert_same_bits(saved.params, other.params)


def test_repr_shows_the_call_that_makes_the_object():
    assert repr(jaxrnn.lstm(256, projection_size=64)) == "lstm(256, projection_size=64)"
    assert repr(jaxrnn.lstm(np.int64(3), peephole=np.True_)) == "lstm(3, peephole=True)"
    assert repr(jaxrnn.gru(3, use_bias=np.False_, reset_after=False)) == "gru(3, use_bias=False, reset_after=False)"
    assert [repr(jaxrnn.rnn(3, activation=a)) for a in ("tanh", "relu", jnp.sin)] == [
        "rnn(3)",
        "rnn(3, activation='relu')",
        "rnn(3, activation=sin)",
    ]
    assert repr(NET) == (
        "stack([Bidirectional(forward=gru(4, reset_after=False), backward=lstm(4, layer_norm=True)), "
        "regularize(lstm(4), recurrent_dropout=0.25, zoneout=LSTMState(h=0.05, c=0.5)), "
        "regularize(regularize(mgu(4), dropconnect=0.1), zoneout=0.2)], merge='sum', dropout=0.3, residual=True)"
    )
    assert repr(jaxrnn.stack([TINY], bidirectional=True, merge=jnp.subtract)).endswith(", merge=subtract)")


def test_file_can_be_read_without_jaxrnn(path):
    net = jaxrnn.stack([jaxrnn.lstm(2), jaxrnn.gru(2, layer_norm=True)], bidirectional=True)
    save(path, net, params_of(net))
    with safetensors.safe_open(path, "numpy") as file:
        names, entry = file.keys(), json.loads(file.metadata()["jaxrnn"])
    lstm, gru = ["b", "w_h", "w_x"], ["b", "b_hn", "norm.scale_h", "norm.scale_x", "w_h", "w_x"]
    assert sorted(names) == [
        f"{k}.{side}.{name}"
        for k, fields in ((0, lstm), (1, gru))
        for side in ("backward", "forward")
        for name in fields
    ]
    assert sorted(entry.pop("checksums")) == sorted(names)
    gru = {"factory": "gru", "hidden_size": 2, "use_bias": True, "reset_after": True, "layer_norm": True}
    activations = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    gru |= {**activations, "num_heads": 1}
    lstm = {"factory": "lstm", "hidden_size": 2, "projection_size": None, "use_bias": True}
    lstm |= {"peephole": False, "coupled": False, "layer_norm": False, **activations, "num_heads": 1}
    assert entry == {
        "version": 1,
        "configuration": {
            "factory": "stack",
            "cells": [{"forward": lstm, "backward": lstm}, {"forward": gru, "backward": gru}],
            "merge": "concat",
            "dropout": 0.0,
            "residual": False,
        },
        "input_size": I,
        "metadata": {},
    }


def test_dtypes_and_special_values_survive_a_round_trip(path, x64):
    net = jaxrnn.stack([jaxrnn.rnn(2), jaxrnn.rnn(2), jaxrnn.rnn(2), jaxrnn.rnn(2)])
    odd = [jnp.nan, -0.0, jnp.inf, 1e-45]
    params = []
    for dtype in (jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16):
        w = jnp.asarray(odd, dtype).reshape(2, 2)
        params.append(jaxrnn.RNNParams(w_x=w, w_h=w.T, b=w[0]))
    by_columns = np.arange(4.0).reshape(2, 2).T
    params[0] = params[0]._replace(w_x=by_columns)
    save(path, net, tuple(params))
    _, back = load(path)
    assert back[0].w_x.tolist() == [[0, 2], [1, 3]]
    assert_same_bits(tuple(params), back)


def test_sharded_arrays_are_gathered(path):
    cell = jaxrnn.gru(4)
    params = params_of(cell, input_size=4)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P("data")))
    save(path, cell, spread)
    assert_same_bits(params, load(path)[1])


def test_metadata_survives_a_round_trip(path):
    metadata = {"epoch": 3, "loss": 0.1, "words": ["a", "é"], "best": None, "nested": {"done": True}}
    save(path, TINY, params_of(TINY), metadata)
    loaded, _, back = load(path, return_metadata=True)
    assert repr(loaded) == "rnn(1)"
    assert back == metadata
    assert back["nested"]["done"] is True


def test_second_save_replaces_the_first_and_keeps_a_symlink(path, tmp_path):
    link = tmp_path / "newest"
    link.symlink_to(path)
    for k in (1, 2):
        save(str(link), TINY, params_of(TINY, input_size=k))
        assert load(path)[1].w_x.shape == (k, 1)
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["net.safetensors", "newest"]


def test_files_of_the_first_version_load_with_the_same_bits(tmp_path):
    """They were written once, by the first version of `save`, and are not made again."""
    for name, lines in json.loads((GOLDEN / "saved.json").read_text(encoding="utf-8")).items():
        (tmp_path / name).write_bytes(base64.b64decode("".join(lines)))
    network, params, metadata = load(tmp_path / "stack", return_metadata=True)
    assert repr(network) == repr(NET)
    assert metadata == {"epoch": 3, "best": None, "words": ["a", "é"]}
    assert_same_bits(params_of(NET), params)
    cell = jaxrnn.lstm(4, projection_size=2, peephole=True, layer_norm=True)
    loaded, params = load(tmp_path / "cell", cell)
    assert loaded is cell
    assert_same_bits(params_of(cell, jnp.bfloat16), params)


def test_noise_around_noise_is_saved_to_the_depth_that_is_loaded(path):
    cells = [TINY]
    for _ in range(configuration.MOST_NESTED + 1):
        cells.append(jaxrnn.regularize(cells[-1], dropconnect=0.1))
    params = params_of(TINY)
    save(path, cells[-2], params)
    assert load(path)[0].config == cells[-2].config
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"save: network: cell.*cell expected at most 64 of regularize around each other"
    ):
        save(path, cells[-1], params)
    assert path.read_bytes() == before


def without_heads(entry):
    """The JSON of a file from before cells could have heads."""
    cells = entry["configuration"]["cells"]
    halves = [half for cell in cells for half in ([cell] if "factory" in cell else cell.values())]
    assert [half.pop("num_heads") for half in halves] == [1] * len(halves)


def test_files_from_before_there_were_heads_load_as_cells_with_one(path):
    net = jaxrnn.stack([jaxrnn.Bidirectional(jaxrnn.rnn(2), jaxrnn.mgu(2)), jaxrnn.lstm(4), jaxrnn.gru(4)])
    params = params_of(net)
    save(path, net, params)
    forge(path, lambda _, entry: without_heads(entry))
    loaded, back = load(path)
    assert configuration.describe(loaded) == configuration.describe(net)
    assert_same_bits(params, back)
    load(path, net)
    with pytest.raises(ValueError, match=r"load: network expected the equations of .*, got stack\(\[.*num_heads=2"):
        load(path, jaxrnn.stack([net.layers[0], jaxrnn.lstm(4, num_heads=2), jaxrnn.gru(4)]))


# Networks without a configuration


def test_custom_cells_are_saved_with_params_only(path):
    cell = own_cell()
    params = cell.init(None, 5)._replace(order=jnp.array([1, 0]))
    save(path, cell, params, {"note": "mine"}, params_only=True)
    loaded, back = load(path, cell)
    assert loaded is cell
    assert_same_bits(params, back)
    assert sorted(safetensors.numpy.load_file(path)) == ["order", "scale", "table.a", "table.on"]
    with pytest.raises(ValueError, match="load: network expected one, got None; .* was saved with params_only"):
        load(path)
    bare = jaxrnn.Cell(lambda key, n: jnp.zeros(n), cell.initial_state, cell.step)
    save(path, bare, jnp.ones(4), params_only=True)
    assert_same_bits(jnp.ones(4), load(path, bare)[1])


def test_networks_without_a_configuration_are_refused(path):
    sin = jaxrnn.rnn(2, activation=jnp.sin)
    cases = [
        (own_cell(), TypeError, "save: network: cell expected one that the library makes, got own"),
        (own_cell()._replace(config=OtherConfig(2)), TypeError, "cell expected one"),
        (sin, ValueError, "save: network: activation expected a name, got sin; a function"),
        (jaxrnn.stack([TINY, sin]), ValueError, r"save: network: layers\[1\].activation expected a name, got sin"),
        (jaxrnn.stack([Bidirectional(TINY, jaxrnn.regularize(sin, dropconnect=0.1))]), ValueError,
         r"layers\[0\].backward.cell.activation expected a name"),
        (jaxrnn.stack([TINY], bidirectional=True, merge=jnp.subtract), ValueError,
         "merge expected a name, got subtract"),
    ]  # fmt: skip
    for network, error, message in cases:
        params = jax.tree.map(jnp.asarray, network.init(jax.random.key(0), 1))
        with pytest.raises(error, match=f"{message}.*params_only=True"):
            save(path, network, params)
        assert not path.exists()
        save(path, network, params, params_only=True)
        assert_same_bits(params, load(path, network)[1])
        path.unlink()


def test_regularized_custom_cell_has_no_configuration():
    class WithRule(NamedTuple):
        w_h: jax.Array

    own = jaxrnn.rnn(2)._replace(init=lambda key, n: WithRule(jnp.ones((2, 2))), config=None)
    assert jaxrnn.regularize(own, dropconnect=0.5).config is None


# Given networks


def test_params_load_into_a_given_network_with_the_same_equations(path):
    saved = jaxrnn.stack([jaxrnn.gru(H, use_bias=False, reset_after=False), jaxrnn.rnn(H)], dropout=0.5)
    params = params_of(saved)
    save(path, saved, params)
    quiet = jaxrnn.stack(
        [
            jaxrnn.regularize(jaxrnn.gru(H, use_bias=False, reset_after=False), recurrent_dropout=0.5),
            jaxrnn.rnn(H, bias_init=jaxrnn.initializers.gate_bias(h=1.0)),
        ]
    )
    loaded, back = load(path, quiet)
    assert loaded is quiet
    assert_same_bits(params, back)
    callable_one = jaxrnn.stack([quiet.layers[0], jaxrnn.rnn(H, activation=jnp.tanh)])
    assert load(path, callable_one)[0] is callable_one  # a callable activation cannot be compared


OTHERS = {
    "form": lambda: [jaxrnn.gru(H, use_bias=False), jaxrnn.rnn(H)],
    "activation": lambda: [jaxrnn.gru(H, use_bias=False, reset_after=False), jaxrnn.rnn(H, activation="relu")],
    "zoneout": lambda: [
        jaxrnn.gru(H, use_bias=False, reset_after=False),
        jaxrnn.regularize(jaxrnn.rnn(H), zoneout=0.1),
    ],
    "size": lambda: [jaxrnn.gru(H, use_bias=False, reset_after=False), jaxrnn.rnn(H + 1)],
    "depth": lambda: [jaxrnn.gru(H, use_bias=False, reset_after=False)],
}


@pytest.mark.parametrize("other", OTHERS)
def test_given_network_with_other_equations_is_refused(other, path):
    saved = jaxrnn.stack([jaxrnn.gru(H, use_bias=False, reset_after=False), jaxrnn.rnn(H)])
    save(path, saved, params_of(saved))
    message = "load: network expected the equations of .*net.safetensors, stack.*, got stack"
    with pytest.raises(ValueError, match=message):
        load(path, jaxrnn.stack(OTHERS[other]()))


def test_given_network_with_other_arrays_is_refused(path):
    net = jaxrnn.stack([jaxrnn.rnn(2, activation=jnp.sin)])
    save(path, net, params_of(net), params_only=True)
    for cells, message in (
        ([jaxrnn.rnn(2, use_bias=False)], "expected no arrays 0.b, got them; is it of another network than stack"),
        ([jaxrnn.rnn(3)], r"0.w_x expected shape \(3, 3\), got \(3, 2\)"),
        ([jaxrnn.rnn(2), jaxrnn.rnn(2)], "expected arrays 1.w_x, 1.w_h, 1.b, got none"),
    ):
        with pytest.raises(ValueError, match=f"load: .*net.safetensors: .*{message}"):
            load(path, jaxrnn.stack(cells))


@pytest.mark.processes
def test_import_of_jaxrnn_loads_no_optional_package():
    code = "import sys, jaxrnn; print(*{'safetensors', 'onnx', 'torch', 'orbax'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.split() == []


# Training state, with Orbax


def test_training_resumes_exactly_from_an_orbax_checkpoint(tmp_path):
    """Params, optimiser state, recurrent states and key are restored into the tree of `eval_shape`."""
    net = jaxrnn.stack([jaxrnn.regularize(jaxrnn.lstm(4), dropconnect=0.2)])
    optimiser = optax.adam(1e-2)
    xs = random_like(1, jax.ShapeDtypeStruct((4, 5, 2, I), jnp.float32), jnp.float32)

    def begin():
        params, key = params_of(net), jax.random.key(0)
        return {"params": params, "optimiser": optimiser.init(params), "states": net.initial_state((2,)), "key": key}

    @jax.jit
    def train(now, xs):
        key, key_now = jax.random.split(now["key"])

        def loss(params):
            states, ys = net.unroll(params, xs, now["states"], key=key_now)
            return jnp.mean((ys - 1) ** 2), states

        gradients, states = jax.grad(loss, has_aux=True)(now["params"])
        with jax.numpy_dtype_promotion("standard"):
            updates, optimiser_state = optimiser.update(gradients, now["optimiser"])
        params = optax.apply_updates(now["params"], updates)
        return {"params": params, "optimiser": optimiser_state, "states": states, "key": key}

    abstract = jax.eval_shape(begin)
    now = begin()
    with ocp.CheckpointManager(tmp_path / "run", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        for step in range(4):
            now = train(now, xs[step])
            manager.save(step, args=ocp.args.StandardSave(now))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        assert manager.all_steps() == [2, 3]
        earlier = manager.restore(2, args=ocp.args.StandardRestore(abstract))
    assert jax.tree.structure(earlier) == jax.tree.structure(abstract)
    assert isinstance(earlier["states"][0], LSTMState)
    assert earlier["params"][0].w_x.tolist() != now["params"][0].w_x.tolist()
    again, last = (
        {**training, "key": jax.random.key_data(training["key"])} for training in (train(earlier, xs[3]), now)
    )
    assert_same_bits(last, again)
