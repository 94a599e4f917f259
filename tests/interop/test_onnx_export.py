"""Exported networks compute the same in ONNX Runtime, and survive a round trip through `from_onnx`."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import pytest

import jaxrnn
from jaxrnn import Bidirectional
from jaxrnn.interop.onnx_export import to_onnx
from jaxrnn.interop.onnx_import import from_onnx
from tests.support.onnx_tools import (
    CELLS,
    TOLERANCE,
    assert_model_equals_network,
    assert_same_network,
    attributes_of,
    cell_of,
    random_params,
    run,
)
from tests.support.peers import peer
from tests.support.registry import LENGTHS, B, I, T, gap


@pytest.mark.parametrize("name", [name for name in CELLS if name != "gru-3"])
def test_exported_cells_compute_the_same_in_onnxruntime(name):
    """Both directions, with lengths and initial states; the final state of a sequence of length 0 is its initial state."""
    network = jaxrnn.stack([cell_of(name)], bidirectional=True)
    params = random_params(network)
    model = assert_model_equals_network(network, params, lengths=LENGTHS, initial=True)
    assert_same_network((network, params), from_onnx(model))
    alone, params = cell_of(name), params[0].forward
    again, read = from_onnx(assert_model_equals_network(alone, params))
    assert_same_network(((alone,), (params,)), (again.layers, read))


SEEDS = 24


@functools.cache
def random_network(seed: int) -> jaxrnn.Network:
    """Draws one to three layers of one or two directions, of cells that may differ, with any merge."""
    rng = np.random.default_rng(seed)
    names = ["rnn-relu", "gru", "gru-before", "lstm-peephole", "lstm-coupled", "lstm-projection", "gru-3"]
    draw = lambda: cell_of(names[rng.integers(len(names) - (rng.random() < 0.7))])  # noqa: E731
    layers: list[Any] = []
    for _ in range(1 + seed % 3):
        cell, kind = draw(), rng.integers(3)
        layers.append([cell, Bidirectional(cell, cell), Bidirectional(cell, draw())][kind])
    for residual in (bool(rng.integers(2)), False):
        for merge in (("concat", "sum", "mul", "average")[rng.integers(4)], "concat"):
            try:
                return jaxrnn.stack(layers, merge=merge, residual=residual)
            except ValueError:
                continue  # the sizes of the layers do not match
    raise AssertionError


def joined(network: jaxrnn.Network) -> str:
    """Layers, and those of merge and residual that have an effect."""
    both = any(isinstance(layer, Bidirectional) for layer in network.layers)
    return f"{network.layers} {network.merge if both else ''} {network.residual and len(network.layers) > 1}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_exported_random_networks_compute_the_same_in_onnxruntime(seed):
    network, rng = random_network(seed), np.random.default_rng(100 + seed)
    params = random_params(network, seed)
    reads_one_way = not any(isinstance(layer, Bidirectional) for layer in network.layers)
    options = {
        "lengths": None if rng.random() < 0.2 else rng.integers(0, T + 1, B).astype(np.int32),
        "initial": bool(rng.integers(2)),
        "batch_first": bool(rng.integers(2)),
        "reverse": reads_one_way and bool(rng.integers(2)),
        "opset": int(rng.choice([14, 17, 21])),
    }
    model = assert_model_equals_network(network, params, **options, seed=seed)
    again, read = from_onnx(model, reverse=options["reverse"])
    assert joined(again) == joined(network)
    assert_same_network((network.layers, params), (again.layers, read))


def test_random_networks_cover_every_feature():
    shown = [joined(random_network(seed)) for seed in range(SEEDS)]
    for word in ("concat", "sum", "mul", "average", "True", "projection", "coupled", "peephole", "gru(3)", "before"):
        word = {"before": "reset_after=False"}.get(word, word)
        assert sum(word in name for name in shown) >= 2, word


def test_directions_with_different_activations_become_one_operator():
    network = jaxrnn.stack([Bidirectional(cell_of("rnn"), cell_of("rnn-sigmoid"))])
    params = random_params(network)
    model = to_onnx(network, params)
    (first, *_) = model.graph.node
    assert list(attributes_of(first)["activations"]) == [b"Tanh", b"Sigmoid"]
    assert_same_network((network, params), from_onnx(model))
    xs = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    assert gap(run(model, {"x": xs})["y"], np.asarray(network.unroll(params, xs)[1])) <= TOLERANCE


@pytest.mark.parametrize(("time", "batch"), [(1, 1), (9, 2)])
def test_one_model_runs_on_every_time_and_batch_size(time, batch):
    network = jaxrnn.stack([cell_of("gru"), cell_of("gru")], bidirectional=True)
    params = random_params(network)
    assert_model_equals_network(network, params, time=time, batch=batch)
    assert to_onnx(network, params) == to_onnx(network, jax.tree.map(np.asarray, params))


def test_exported_models_ignore_padding():
    network = jaxrnn.stack([cell_of("lstm"), cell_of("gru")], bidirectional=True, residual=False)
    model = to_onnx(network, random_params(network), lengths=True)
    clean = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    padding = np.arange(T)[:, None] >= LENGTHS
    outcomes = [
        run(model, {"x": xs, "lengths": LENGTHS}) for xs in (clean, np.where(padding[..., None], np.nan, clean))
    ]
    for name, value in outcomes[0].items():
        np.testing.assert_array_equal(outcomes[1][name], value)
    assert not outcomes[0]["y"][padding].any()


def test_input_and_output_names_can_be_chosen():
    network = jaxrnn.stack([cell_of("lstm"), Bidirectional(cell_of("gru"), cell_of("gru-3"))])
    params = random_params(network)
    inputs = ["x", "lengths", "h_0_l0", "c_0_l0", "h_0_l1", "h_0_l1_reverse"]
    outputs = ["y", "h_n_l0", "c_n_l0", "h_n_l1", "h_n_l1_reverse"]
    for names in ({}, {"x": "y", "y": "x", "h_n_l0": "memory", "lengths": "n"}):
        model = to_onnx(network, params, lengths=True, initial_state="inputs", names=names)
        onnx.checker.check_model(model, full_check=True)
        assert [x.name for x in model.graph.input] == [names.get(name, name) for name in inputs]
        assert [y.name for y in model.graph.output] == [names.get(name, name) for name in outputs]
        assert_same_network((network, params), from_onnx(model))
    dims = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert dims == [["time", "batch", I], ["batch"], *[[1, "batch", 4]] * 3, [1, "batch", 3]]


def test_dropout_is_omitted_from_the_model():
    cell = jaxrnn.regularize(cell_of("lstm"), recurrent_dropout=0.5, input_dropout=0.5, dropconnect=0.5)
    plain = jaxrnn.stack([cell_of("lstm"), cell_of("lstm")])
    params = random_params(plain)
    noisy = jaxrnn.stack([cell, cell], dropout=0.5)
    assert to_onnx(noisy, params) == to_onnx(plain, params)


def test_newest_opsets_and_other_dtypes_pass_the_checker():
    """Runtimes may not support them yet, so only the checker of ONNX is asked."""
    network = jaxrnn.stack([cell_of("lstm-all"), cell_of("gru")], bidirectional=True, merge="average", residual=True)
    newest = onnx.defs.onnx_opset_version()
    for dtype, opset in ((jnp.float16, 14), (jnp.bfloat16, 22), (jnp.float32, newest), (jnp.float64, newest)):
        with jax.enable_x64(dtype == jnp.float64):
            params = random_params(network, dtype=dtype)
            model = to_onnx(network, params, lengths=True, initial_state="inputs", opset=opset)
            onnx.checker.check_model(model, full_check=True)
            again, read = from_onnx(model)
            assert repr(again) == repr(network)
            chex.assert_type(jax.tree.leaves(read), dtype)
            assert gap(read[1], params[1]) == 0.0


def test_projections_survive_a_round_trip_up_to_rounding():
    """In float64 the params differ by less than 1e-14."""
    with jax.enable_x64(True):
        network = jaxrnn.stack([cell_of("lstm-all")])
        params = random_params(network, dtype=jnp.float64)
        assert_same_network((network, params), from_onnx(to_onnx(network, params)), 1e-14)


def in_torch(params, xs, lengths):
    """Outputs of an LSTM below a GRU in PyTorch, with our weights."""
    peer("torch")
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    ys = pack_padded_sequence(torch.from_numpy(xs), torch.from_numpy(lengths), enforce_sorted=False)
    for kind, record in zip((torch.nn.LSTM, torch.nn.GRU), params, strict=True):
        module = kind(record.w_x.shape[0], record.w_h.shape[0])
        weights = jaxrnn.interop.to_torch((record,))
        module.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        ys, _ = module(ys)
    return pad_packed_sequence(ys, total_length=T)[0].detach().numpy()


@pytest.mark.peers
def test_trained_network_predicts_the_same_in_onnxruntime_and_torch():
    """The network learns whether the sum of a sequence is positive, and is then exported."""
    network = jaxrnn.stack([cell_of("lstm"), cell_of("gru")])
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((T, 64, I)).astype(np.float32)
    lengths = rng.integers(1, T + 1, 64).astype(np.int32)
    labels = (np.where(np.arange(T)[:, None, None] < lengths[:, None], xs, 0).sum((0, 2)) > 0).astype(np.int32)

    def logits(ys):
        return jaxrnn.last_output(ys, lengths)[:, :2]

    def loss(params):
        scores = 4 * logits(network.unroll(params, xs, lengths=lengths)[1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    optimiser = optax.sgd(0.3, momentum=0.9)

    @jax.jit
    def step(params, state):
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = random_params(network)
    before, state = loss(params), optimiser.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.3 * before
    ours = network.unroll(params, xs, lengths=lengths)[1]
    in_onnx = run(to_onnx(network, params, lengths=True), {"x": xs, "lengths": lengths})["y"]
    for theirs in (in_onnx, in_torch(params, xs, lengths)):
        assert gap(theirs, np.asarray(ours)) <= TOLERANCE
        np.testing.assert_array_equal(logits(jnp.asarray(theirs)).argmax(-1), logits(ours).argmax(-1))
    assert np.mean(np.asarray(logits(ours).argmax(-1)) == labels) > 0.9
