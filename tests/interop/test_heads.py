"""Cells with heads in other libraries: written as the block-diagonal matrix, which computes the same, and read back."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import interop
from jaxrnn.interop.onnx_export import to_onnx
from jaxrnn.interop.onnx_import import from_onnx
from tests.support.onnx_tools import TOLERANCE, assert_same_network, run
from tests.support.peers import peer
from tests.support.registry import gap, random_like

H, I, T, B = 4, 3, 5, 2  # noqa: E741
FACTORIES = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru, "rnn": jaxrnn.rnn}


@functools.cache
def network_of(kind, **options):
    """Two layers of 2 heads, and random params."""
    net = jaxrnn.stack([FACTORIES[kind](H, num_heads=2, **options)] * 2)
    params = random_like(0, jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0)), jnp.float32)
    return net, params


XS = np.asarray(jax.random.normal(jax.random.key(1), (T, B, I)))


def block_matrix(w_h):
    """The dense matrix, entry by entry."""
    heads, size, columns = w_h.shape
    gates, found = columns // size, np.zeros((heads * size, heads * columns), w_h.dtype)
    for n in range(heads):
        for g in range(gates):
            at = g * heads * size + n * size
            found[n * size : (n + 1) * size, at : at + size] = w_h[n, :, g * size : (g + 1) * size]
    return found


@pytest.mark.parametrize("kind", FACTORIES)
def test_pytorch_and_onnxruntime_compute_the_same_with_the_block_matrix(kind):
    peer("torch", "onnxruntime")
    import torch

    net, params = network_of(kind)
    _, ys = jax.jit(lambda params: net.unroll(params, jnp.asarray(XS)))(params)
    weights = interop.to_torch(params)
    np.testing.assert_array_equal(weights["weight_hh_l1"].T, block_matrix(np.asarray(params[1].w_h)))
    module = getattr(torch.nn, kind.upper())(I, H, 2)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    theirs = module(torch.from_numpy(XS.copy()))[0].detach().numpy()
    assert gap(theirs, ys) < TOLERANCE
    model = to_onnx(net, params)
    assert gap(run(model, {"x": XS})["y"], ys) < TOLERANCE
    assert_same_network((net, params), from_onnx(model, num_heads=2), tolerance=0)
    dense, merged = from_onnx(model)
    assert [cell.config.num_heads for cell in dense.layers] == [1, 1]
    chex.assert_trees_all_equal(jaxrnn.split_heads(merged, 2), params)
    chex.assert_trees_all_equal(interop.from_torch(weights, num_heads=2), params)


def converted(peer, kind, params, **options):
    """What a library's converters make of params, written and read."""
    if peer == "cudnn":
        options |= {"num_layers": len(params), "kind": {"rnn": "rnn_tanh"}.get(kind, kind)}
        return interop.from_cudnn(interop.to_cudnn(params), I, H, **options)
    return getattr(interop, f"from_{peer}")(getattr(interop, f"to_{peer}")(params), **options)


@pytest.mark.parametrize("peer", ["torch", "keras", "nnx", "linen", "haiku", "equinox", "cudnn"])
def test_converters_write_the_block_matrix_and_read_it_as_heads_where_asked(peer):
    kind = "rnn" if peer in ("nnx", "haiku") else "gru"
    _, params = network_of(kind)
    params = params[0] if peer == "equinox" else params
    chex.assert_trees_all_equal(converted(peer, kind, params), jaxrnn.merge_heads(params))
    chex.assert_trees_all_equal(converted(peer, kind, params, num_heads=2), params)
    where = f"from_{peer}: "
    own = jax.tree.map(lambda leaf: leaf + 1, jaxrnn.merge_heads(params))
    with pytest.raises(ValueError, match=rf"{where}params.*w_h expected zeros between the units of different heads"):
        converted(peer, kind, own, num_heads=2)
    with pytest.raises(ValueError, match=f"{where}num_heads expected a number that divides the H of params"):
        converted(peer, kind, own, num_heads=3)
    with pytest.raises(ValueError, match=f"{where}num_heads expected a positive integer, got 0"):
        converted(peer, kind, own, num_heads=0)


def test_variants_with_heads_survive_onnx_and_what_it_lacks_is_refused():
    cell = jaxrnn.lstm(H, num_heads=2, peephole=True, coupled=True)
    params = random_like(0, jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0)), jnp.float32)
    network, read = from_onnx(to_onnx(cell, params), num_heads=2)
    assert network.layers == (cell,)
    chex.assert_trees_all_equal(read, (params,))
    dense = to_onnx(jaxrnn.lstm(H), jaxrnn.lstm(H).init(jax.random.key(0), I))
    with pytest.raises(ValueError, match=r"from_onnx: node 'layer_0.*': input R .* expected zeros between the units"):
        from_onnx(dense, num_heads=2)
    projected = jaxrnn.lstm(H, projection_size=2)
    with pytest.raises(ValueError, match=r"from_onnx: node .*: num_heads expected 1, got 2; its projection mixes"):
        from_onnx(to_onnx(projected, projected.init(jax.random.key(0), I)), num_heads=2)
    net, params = network_of("gru", layer_norm=True)
    with pytest.raises(ValueError, match="to_torch: params.* expected None, .*; PyTorch has no layer normalisation"):
        interop.to_torch(params)
    with pytest.raises(ValueError, match="to_onnx: params.* expected a cell without layer normalisation"):
        to_onnx(net, params)
    wrong = network_of("gru")[1][0]
    with pytest.raises(ValueError, match=r"to_torch: params.w_h expected shape \(N, D, G\*D\), got \(2, 2, 5\)"):
        interop.to_torch(wrong._replace(w_h=wrong.w_h[..., :5]))
    wide = jaxrnn.lstm(H, projection_size=2).init(jax.random.key(0), I)
    with pytest.raises(ValueError, match=r"to_torch: params\[0\].w_proj expected None, .*mixes the units of all heads"):
        interop.to_torch((wide._replace(w_h=jnp.ones((2, 2, 8))),))
