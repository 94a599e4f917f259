"""States of modules between episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.modules import GRU, LRU, LSTM, GRUCell, LSTMCell, MinGRUCell
from tests.support.registry import assert_close, assert_equal

T, B, H = 5, 3, 4
I = 2  # noqa: E741
RESETS = jnp.asarray(np.random.default_rng(0).random((T, B)) < 0.4).at[0, 1].set(True)
XS = jnp.asarray(np.random.default_rng(1).standard_normal((T, B, I)), jnp.float32)


@pytest.mark.parametrize("kind", [LSTM, GRU, LRU])
def test_calls_with_reset_states_equal_one_call_with_resets(kind):
    module = kind(I, H, 2, rngs=nnx.Rngs(0))
    first, hx = module(XS[:2], resets=RESETS[:2])
    assert_equal(module(XS[:2], module.initial_state((B,)), resets=RESETS[:2]), (first, hx))
    ys, final = module(XS[2:3], module.reset_state(hx, RESETS[2]))
    assert_close((ys, final), module(XS[2:3], hx, resets=RESETS[2:3]), "float32")
    assert_equal(module.truncate(hx), hx)


@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, MinGRUCell])
def test_cells_in_a_scan_with_resets_equal_unroll(kind):
    cell = kind(I, H, rngs=nnx.Rngs(0))

    def step(state, now):
        x, resets = now
        return cell(cell.reset_state(state, resets), x)

    found = jax.lax.scan(step, cell.initial_state((B,)), (XS, RESETS))
    assert_close(found, jaxrnn.unroll(cell.cell, cell.params, XS, resets=RESETS), "float32")
    gradient = jax.grad(lambda s: jnp.sum(jax.tree.leaves(cell.truncate(s))[0]))(found[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.usefixtures("unhooked")
def test_bad_input_is_named():
    cell, module = GRUCell(I, H, rngs=nnx.Rngs(0)), LSTM(I, H, rngs=nnx.Rngs(0))
    for each in (cell, module):
        name = type(each).__name__
        with pytest.raises(TypeError, match=rf"{name}.initial_state: batch_shape expected .* int 4; write \(4,\)"):
            each.initial_state(4)
        with pytest.raises(TypeError, match="resets expected booleans"):
            each.reset_state(each.initial_state((B,)), jnp.ones(B))
    with pytest.raises(TypeError, match="LSTM.reset_state: hx expected states, got None"):
        module.reset_state(None, RESETS[0])
    with pytest.raises(ValueError, match=r"LSTM.reset_state: h_0 expected shape|LSTM.reset_state: .*expected shape"):
        module.reset_state(module.initial_state((2,)), RESETS[0])
