"""`merge_heads` and `split_heads`: exact in both directions, also inside networks, and refused by name."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.odd_values import faults
from tests.support.registry import random_like

H, I, B = 4, 3, 2  # noqa: E741
NET = jaxrnn.stack(
    [
        jaxrnn.Bidirectional(jaxrnn.lstm(H, num_heads=2, peephole=True), jaxrnn.gru(H, num_heads=2)),
        jaxrnn.mgu(H),
        jaxrnn.min_gru(H),
        jaxrnn.rnn(H, num_heads=4),
    ]
)


def params_of(network, dtype=jnp.float32):
    return random_like(0, jax.eval_shape(lambda key: network.init(key, I), jax.random.key(0)), dtype)


def test_merged_params_compute_the_same_without_heads_and_split_back_exactly():
    params = params_of(NET)
    merged = jax.jit(jaxrnn.merge_heads)(params)
    chex.assert_trees_all_equal(merged, jaxrnn.merge_heads(params))
    dense = jaxrnn.stack(
        [jaxrnn.Bidirectional(jaxrnn.lstm(H, peephole=True), jaxrnn.gru(H)), *NET.layers[1:3], jaxrnn.rnn(H)]
    )
    xs = jax.random.normal(jax.random.key(1), (5, B, I))
    found = [jax.jit(lambda p, net=net: net.unroll(p, xs)[1])(p) for net, p in ((NET, params), (dense, merged))]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"params\[1\].w_h expected zeros between the units of different heads, got 16"
    ):
        jaxrnn.split_heads(merged, 2)
    chex.assert_trees_all_equal(jaxrnn.split_heads(merged[0], 2), params[0])
    chex.assert_trees_all_equal(jaxrnn.split_heads(merged[3], 4), params[3])
    chex.assert_trees_all_equal(merged[1:3], params[1:3])


def test_arrays_of_numpy_and_their_dtypes_are_kept():
    cell = jaxrnn.lstm(H, num_heads=2, coupled=True)
    for dtype in (np.float64, jnp.bfloat16):
        params = jax.tree.map(lambda leaf, dtype=dtype: np.asarray(leaf).astype(dtype), params_of(cell))
        merged = jaxrnn.merge_heads(params)
        back = jaxrnn.split_heads(merged, 2)
        for w_h, shape in ((merged.w_h, (H, 3 * H)), (back.w_h, (2, 2, 6))):
            assert (type(w_h), w_h.dtype, w_h.shape) == (np.ndarray, dtype, shape)
        np.testing.assert_array_equal(back.w_h, params.w_h)


def test_zeros_of_either_sign_lie_between_heads_and_nan_does_not():
    dense = jaxrnn.merge_heads(params_of(jaxrnn.rnn(H, num_heads=2)))
    signed = dense._replace(w_h=jnp.where(dense.w_h == 0, -dense.w_h, dense.w_h))
    chex.assert_trees_all_equal(jaxrnn.split_heads(signed, 2), jaxrnn.split_heads(dense, 2))
    with pytest.raises(ValueError, match=r"params.w_h expected zeros .*, got 1 other entries in shape \(4, 4\)"):
        jaxrnn.split_heads(dense._replace(w_h=dense.w_h.at[0, 3].set(jnp.nan)), 2)


def test_what_has_no_dense_form_is_refused_by_name():
    normal = params_of(jaxrnn.gru(H, num_heads=2, layer_norm=True))
    with pytest.raises(NotImplementedError, match="merge_heads: params expected a cell without layer normalisation"):
        jaxrnn.merge_heads(normal)
    for cell, field in ((jaxrnn.lstm(H, projection_size=2), "w_proj"), (jaxrnn.gru(H, layer_norm=True), "norm")):
        with pytest.raises(NotImplementedError, match=rf"split_heads: params\[0\] expected .* with {field}"):
            jaxrnn.split_heads((params_of(cell),), 2)
    dense = params_of(jaxrnn.gru(H))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), dense, dense)
    with pytest.raises(ValueError, match=r"merge_heads: params.w_x expected a matrix, got float32\[\[?2, 3, 12\]"):
        jaxrnn.merge_heads(stacked)
    with pytest.raises(ValueError, match="merge_heads: params expected those of a cell with heads, got GRUParams"):
        jaxrnn.merge_heads(dense)
    with pytest.raises(ValueError, match="split_heads: params expected those of a cell with a dense recurrent matrix"):
        jaxrnn.split_heads(params_of(jaxrnn.gru(H, num_heads=2)), 2)
    with pytest.raises(ValueError, match=r"split_heads: num_heads expected a number that divides the H of params.w_h"):
        jaxrnn.split_heads(dense, 3)
    with pytest.raises(ValueError, match="split_heads: num_heads expected at least 2, got 1"):
        jaxrnn.split_heads(dense, 1)
    with pytest.raises(TypeError, match="split_heads: params.w_h expected an array with values, got a tracer"):
        jax.jit(lambda params: jaxrnn.split_heads(params, 2))(dense)


@pytest.mark.usefixtures("unhooked")
def test_odd_arguments_are_refused_by_name():
    params = params_of(jaxrnn.gru(H, num_heads=2))
    assert not faults("merge_heads", jaxrnn.merge_heads, {"params": params})
    assert not faults("split_heads", jaxrnn.split_heads, {"params": jaxrnn.merge_heads(params), "num_heads": 2})
