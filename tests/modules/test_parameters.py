"""Parameters of the modules: names, loading, initialisation, PyTorch's state dicts, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn.modules import LSTM, GRUCell, LSTMCell, RNNCell
from tests.support.modules import KINDS, XS, randomised, rngs
from tests.support.registry import H, I, assert_close, assert_equal, gap, random_like


def test_parameters_have_the_names_of_the_functional_api():
    module = LSTM(I, H, 2, bidirectional=True, layer_norm=True, rngs=rngs())
    assert isinstance(module.layers[1].backward.w_x, nnx.Param)
    assert isinstance(module.layers[0].forward.norm.scale_c, nnx.Param)
    assert module.layers[0].forward.peephole is None
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module))}
    leaves = jax.tree_util.tree_leaves_with_path(module.params)
    assert paths == {"layers." + jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}
    assert jaxrnn.count_params(module.params) == sum(a.size for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert nnx.state(GRUCell(I, H, rngs=rngs()), nnx.Param)["b_hn"].shape == (H,)
    assert "network" not in repr(module)


def test_load_replaces_and_casts_parameters():
    module = LSTM(I, H, proj_size=2, layer_norm=True, param_dtype=jnp.bfloat16, rngs=rngs())
    assert {p.dtype.name for p in jax.tree.leaves(module.params)} == {"bfloat16"}
    params = random_like(3, module.params, jnp.float32)
    module.load(jax.tree.map(np.asarray, params))
    assert_equal(module.params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))


def test_refused_load_changes_nothing(unhooked):
    module = LSTM(I, H, 2, bidirectional=True, rngs=rngs())
    before, last = module.params, module.params[1]
    wrong = (random_like(3, before[0], jnp.float32), last._replace(backward=last.backward._replace(b=None)))
    with pytest.raises(ValueError, match=r"LSTM.load: params\[1\].backward.b expected an array, got None"):
        module.load(wrong)
    assert_equal(module.params, before)


@pytest.mark.parametrize("kind", KINDS)
def test_default_parameters_have_the_range_of_pytorch(kind):
    units = 64
    module = KINDS[kind](32, units, bidirectional=True, rngs=rngs(), **({"proj_size": 5} if kind == "lstm" else {}))
    for leaf in jax.tree.leaves(module.params):
        bound = 1 / units**0.5
        assert 0.9 * bound < float(jnp.abs(leaf).max()) <= bound
        assert float(leaf.std()) == pytest.approx(bound / 3**0.5, rel=0.2)
    draws = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(module.params)}
    assert len(draws) == len(jax.tree.leaves(module.params))


def test_parameters_follow_seeds_and_initialisers():
    same, other = (LSTM(I, H, 2, rngs=nnx.Rngs(params=seed)).params for seed in (0, 1))
    assert_equal(LSTM(I, H, 2, rngs=nnx.Rngs(params=0, dropout=9)).params, same)
    assert gap(other, same) > 0.1
    (params,) = LSTM(
        I, H, proj_size=2, peephole=True, layer_norm=True, rngs=rngs(), kernel_init=jax.nn.initializers.constant(2.0),
        recurrent_init=jaxrnn.initializers.orthogonal(), bias_init=jaxrnn.initializers.gate_bias(f=1.0),
    ).params  # fmt: skip
    assert (np.asarray(params.w_x) == 2).all()
    np.testing.assert_allclose(params.w_proj.T @ params.w_proj, np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(params.b, np.repeat([0, 1, 0, 0], H))
    assert (np.asarray(params.peephole) == 0).all()
    assert (np.asarray(params.norm.scale_x) == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_load_torch_restores_to_torch(kind):
    first, second = (KINDS[kind](I, H, 2, bidirectional=True, rngs=rngs(seed)) for seed in (0, 1))
    weights = first.to_torch("encoder")
    assert weights["encoder.weight_ih_l1_reverse"].shape == ({"rnn": 1, "lstm": 4, "gru": 3}[kind] * H, 2 * H)
    second.load_torch(weights, "encoder")
    assert_equal(second.params, first.params)
    cell, again = ({"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}[kind](I, H, rngs=rngs(seed)) for seed in (0, 1))
    again.load_torch(cell.to_torch())
    assert_equal(again.params, cell.params)


def mesh_of(n):
    return Mesh(np.asarray(jax.devices()[:n]), ("model",))


@pytest.mark.parametrize("source", ["initialisers", "metadata"])
def test_sharding_metadata_reaches_the_params(source):
    columns, vector, mesh = (None, "model"), ("model",), mesh_of(4)
    options = {
        "initialisers": {
            "kernel_init": nnx.with_partitioning(jax.nn.initializers.lecun_normal(), columns),
            "recurrent_init": nnx.with_partitioning(jaxrnn.initializers.orthogonal(), columns, note="w_h"),
            "bias_init": nnx.with_partitioning(jaxrnn.initializers.gate_bias(f=1.0), vector),
        },
        "metadata": {
            "kernel_metadata": {"out_sharding": columns},
            "recurrent_metadata": {"out_sharding": columns, "note": "w_h"},
            "bias_metadata": {"out_sharding": vector},
        },
    }[source]
    plain = {name: getattr(init, "__wrapped__", init) for name, init in options.items() if name.endswith("init")}
    with jax.set_mesh(mesh):
        module = LSTM(I, H, bidirectional=True, proj_size=2, rngs=rngs(), **options)
        layer = module.layers[0].backward
        specs = nnx.get_partition_spec(nnx.state(module))["layers"][0]["backward"]
        assert specs["w_x"].get_value() == specs["w_h"].get_value() == PartitionSpec(*columns)
        assert specs["b"].get_value() == PartitionSpec(*vector)
        assert specs["w_proj"].get_value() == PartitionSpec()
        shardings = nnx.get_named_sharding(nnx.state(module), mesh)["layers"][0]["forward"]
        assert shardings["b"].get_value() == NamedSharding(mesh, PartitionSpec(*vector))
        assert [getattr(layer, name).get_metadata().get("note") for name in ("w_x", "w_h", "b")] == [None, "w_h", None]
        single = LSTM(I, H, bidirectional=True, proj_size=2, rngs=rngs(), **plain)
        assert_close(jax.device_get(module.params), jax.device_get(single.params), "float32")
        module.load(randomised(single).params)
        assert layer.w_x[...].sharding.shard_shape(layer.w_x.shape) == (I, H)
        sharded = jax.device_get(nnx.jit(lambda module, xs: module(xs))(module, XS))
    assert_close(sharded, jax.device_get(single(XS)), "float32")
