"""Modules with heads: their parameters, their conversion from and to PyTorch, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from tests.support.peers import peer
from tests.support.registry import gap

I, H, N, T, B = 3, 8, 2, 5, 2  # noqa: E741
XS = np.asarray(jax.random.normal(jax.random.key(1), (T, B, I)))


def rngs(seed=0):
    return nnx.Rngs(seed)


@pytest.mark.peers
def test_modules_with_heads_equal_the_functional_network_and_pytorch():
    peer("torch")
    import torch

    ours = GRU(I, H, 2, bidirectional=True, num_heads=N, rngs=rngs())
    assert ours.network == jaxrnn.stack([jaxrnn.gru(H, num_heads=N)] * 2, bidirectional=True)
    assert ours.layers[1].backward.w_h.shape == (N, H // N, 3 * H // N)
    theirs = torch.nn.GRU(I, H, 2, bidirectional=True)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.to_torch().items()})
    expected = theirs(torch.from_numpy(XS.copy()))[0].detach().numpy()
    assert gap(expected, ours(jnp.asarray(XS))[0]) < 1e-6
    again = GRU(I, H, 2, bidirectional=True, num_heads=N, rngs=rngs(1))
    again.load_torch(theirs.state_dict())
    for name in ("w_x", "w_h"):  # the two biases are added, and read back as their sum
        got, wanted = (getattr(module.layers[0].forward, name)[...] for module in (again, ours))
        np.testing.assert_array_equal(got, wanted)
    dense = GRU(I, H, 2, bidirectional=True, rngs=rngs())
    with pytest.raises(ValueError, match=r"from_torch: params\[0\].forward.w_h expected zeros between the units of"):
        again.load_torch(dense.to_torch())
    with pytest.raises(
        ValueError, match=r"GRU.load: params\[0\].*w_h expected shape .*; .* jaxrnn.split_heads changes"
    ):
        again.load(dense.params)
    with pytest.raises(
        ValueError, match=r"GRU.load: params\[0\].*w_h expected shape .*; .* jaxrnn.merge_heads changes"
    ):
        dense.load(again.params)
    dense.load(jaxrnn.merge_heads(again.params))
    assert gap(dense(jnp.asarray(XS))[0], expected) < 1e-6


@pytest.mark.parametrize("make", [LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell])
def test_bounds_of_the_default_initialiser_are_those_of_the_units_that_are_read(make):
    params = make(I, 64, num_heads=16, rngs=rngs()).params
    record = params[0] if type(params) is tuple else params
    for name, units in (("w_x", 64), ("w_h", 4), ("b", 64)):
        largest, bound = float(jnp.abs(getattr(record, name)).max()), units**-0.5
        assert 0.9 * bound < largest <= bound, name


def test_metadata_of_three_axes_are_set_on_the_blocks():
    axes = ("model", None, None)
    init = nnx.with_partitioning(jaxrnn.initializers.orthogonal(), axes)
    with jax.set_mesh(jax.make_mesh((1,), ("model",))):
        for options in ({"recurrent_init": init}, {"recurrent_metadata": {"out_sharding": axes}}):
            cell = LSTMCell(I, H, num_heads=N, rngs=rngs(), **options)
            assert cell.w_h.get_metadata()["out_sharding"] == axes
            assert cell.w_h.shape == (N, H // N, 4 * H // N)


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("make", [LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell])
def test_wrong_heads_are_refused_by_name(make):
    where = make.__name__
    for heads, error, message in (
        (3, ValueError, "expected a number that divides hidden_size = 8, got 3"),
        (0, ValueError, "expected a positive integer, got 0"),
        (True, TypeError, "expected a positive integer, got bool True"),
    ):
        with pytest.raises(error, match=f"^{where}: num_heads {message}"):
            make(I, H, num_heads=heads, rngs=rngs())
    if where.startswith("LSTM"):
        with pytest.raises(ValueError, match=f"^{where}: num_heads expected 1 with a projection, got 2 and proj_size"):
            make(I, H, num_heads=N, proj_size=4, rngs=rngs())


def test_cells_with_heads_run_in_nnx():
    cell = GRUCell(I, H, num_heads=N, rngs=rngs())
    _, wanted = jaxrnn.unroll(cell.cell, cell.params, jnp.asarray(XS))
    chex.assert_trees_all_close(nnx.RNN(cell, time_major=True)(jnp.asarray(XS)), wanted, atol=1e-6)
