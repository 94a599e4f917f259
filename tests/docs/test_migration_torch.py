"""Every row of MIGRATION.md's table for PyTorch, executed against PyTorch."""

import inspect
import pickle
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import LSTMState, interop, modules
from tests.support import in_numpy
from tests.support.migration import LENGTHS, B, H, I, T, Table, assert_same, drawn
from tests.support.peers import peer

TABLE = Table("PyTorch")
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64", "settings_of_users")]


@pytest.mark.parametrize("row", TABLE.rows, ids=[row.key for row in TABLE.rows])
def test_row_holds(row):
    peer("torch")
    TABLE.run(row)


def test_every_row_has_a_test():
    TABLE.check()


def theirs_of(kind="LSTM", *sizes, **options):
    import torch

    torch.manual_seed(0)
    return getattr(torch.nn, kind)(*(sizes or (I, H)), **options, dtype=torch.float64)


def ours_of(theirs, kind="LSTM", **options):
    """A module of ours with the same options and weights."""
    made = getattr(modules, kind)(I, H, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    made.load_torch(theirs.state_dict())
    return made


def tensor(array):
    import torch

    return torch.from_numpy(np.array(array))


def array(tensor):
    return tensor.detach().numpy()


XS = drawn(1, T, B, I)


@TABLE.row("`nn.LSTM(I, H, ...)`, `nn.GRU`, `nn.RNN`")
def _():
    import torch

    shared = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    assert [name for name in inspect.signature(torch.nn.RNNBase.__init__).parameters if name in shared] == shared
    for kind, options, position in (
        ("LSTM", {"proj_size": 2}, 7),
        ("GRU", {}, 3),
        ("RNN", {"nonlinearity": "relu"}, 3),
    ):
        names = list(inspect.signature(getattr(modules, kind).__init__).parameters)[1:]
        expected = list(shared)
        expected[position:position] = options
        assert names[: len(expected)] == expected
        options |= {"num_layers": 2, "bidirectional": True, "batch_first": True}
        theirs = theirs_of(kind, **options)
        ours = ours_of(theirs, kind, **options)
        assert_same(ours(XS.swapaxes(0, 1))[0], array(theirs(tensor(XS.swapaxes(0, 1)))[0]))
        kept = 2 * 2 * H if kind == "GRU" else 0  # b_hn of each layer and direction counts on
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
        more = sum(p.numel() for p in theirs.parameters()) - jaxrnn.count_params(ours.params)
        assert more == 2 * 2 * gates * H - kept


@TABLE.row("`jaxrnn.stack([jaxrnn.lstm(H)] * num_layers, bidirectional=..., dropout=...)`")
def _():
    theirs = theirs_of(num_layers=2, bidirectional=True, dropout=0.5).eval()
    net = jaxrnn.stack([jaxrnn.lstm(H)] * 2, bidirectional=True, dropout=0.5)
    assert_same(net.unroll(interop.from_torch(theirs.state_dict()), XS, key=None)[1], array(theirs(tensor(XS))[0]))
    below, above = theirs_of("GRU"), theirs_of("LSTM", H, 2)
    mixed = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.lstm(2)])
    params = tuple(interop.from_torch(layer.state_dict())[0] for layer in (below, above))
    assert_same(mixed.unroll(params, XS)[1], array(above(below(tensor(XS))[0])[0]))


@TABLE.row("`nn.LSTMCell`, `cell(x, (h, c))`")
def _():
    theirs, cell = theirs_of("LSTMCell"), jaxrnn.lstm(H)
    h, c = drawn(2, 2, B, H)
    state, y = cell.step(interop.from_torch(theirs.state_dict()), LSTMState(h, c), XS[0])
    for ours, after in zip((state.h, state.c), theirs(tensor(XS[0]), (tensor(h), tensor(c))), strict=True):
        assert_same(ours, array(after))
    np.testing.assert_array_equal(y, state.h)


@TABLE.row("`output, (h_n, c_n) = lstm(xs, (h_0, c_0))`")
def _():
    theirs = theirs_of(num_layers=2, bidirectional=True)
    h_0, c_0 = drawn(2, 2, 4, B, H)
    output, (h_n, c_n) = theirs(tensor(XS), (tensor(h_0), tensor(c_0)))
    ours = ours_of(theirs, num_layers=2, bidirectional=True)
    for got, expected in zip(jax.tree.leaves(ours(XS, (h_0, c_0))), (output, h_n, c_n), strict=True):
        assert_same(got, array(expected))
    states = tuple(jaxrnn.Bidirectional(LSTMState(h_0[k], c_0[k]), LSTMState(h_0[k + 1], c_0[k + 1])) for k in (0, 2))
    states, ys = ours.network.unroll(ours.params, XS, states)
    for got, expected in ((ys, output), (states[-1].forward.h, h_n[2]), (states[-1].backward.h, h_n[3])):
        assert_same(got, array(expected))
    one = theirs_of()
    states, _ = jaxrnn.stack([jaxrnn.lstm(H)]).unroll(interop.from_torch(one.state_dict()), XS)
    assert_same(states[-1].h, array(one(tensor(XS))[1][0][-1]))


def packed(theirs, xs, lengths):
    """PyTorch's padded outputs and final states of packed sequences."""
    import torch

    sequences = torch.nn.utils.rnn.pack_padded_sequence(tensor(xs), lengths, enforce_sorted=False)
    ys, h_n = theirs(sequences)
    return array(torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=T)[0]), h_n


@TABLE.row("`pack_padded_sequence`, `pad_packed_sequence`")
def _():
    theirs = theirs_of("GRU", num_layers=2, bidirectional=True)
    ours, (ys, h_n) = ours_of(theirs, "GRU", num_layers=2, bidirectional=True), packed(theirs, XS, LENGTHS)
    output, ours_h_n = ours(XS, lengths=LENGTHS)
    assert_same(output, ys)
    assert_same(ours_h_n, array(h_n))
    output, ours_h_n = ours(XS, lengths=LENGTHS - 1)  # one is 0
    padding = np.arange(T)[:, None] >= LENGTHS - 1
    assert not np.asarray(output)[padding].any()
    some = LENGTHS > 1
    ys, _ = packed(theirs, XS[:, some], LENGTHS[some] - 1)
    assert_same(output[:, some], ys)
    assert not np.asarray(ours_h_n)[:, ~some].any()


@TABLE.row("`h_n[-1]` after packing")
def _():
    for bidirectional in (False, True):
        theirs = theirs_of("GRU", bidirectional=bidirectional)
        h_n = packed(theirs, XS, LENGTHS)[1]
        net = jaxrnn.stack([jaxrnn.gru(H)], bidirectional=bidirectional)
        params = interop.from_torch(theirs.state_dict())
        _, ys = net.unroll(params, XS, lengths=LENGTHS)
        last = jaxrnn.last_output(ys, LENGTHS, bidirectional=bidirectional)
        assert_same(last, np.concatenate(array(h_n[-2:]), -1))
        _, ys = net.unroll(params, XS, lengths=0 * LENGTHS)
        assert not np.asarray(jaxrnn.last_output(ys, 0 * LENGTHS, bidirectional=bidirectional)).any()


@TABLE.row("`state.detach()` between chunks")
def _():
    import torch

    theirs, chunk = theirs_of("GRU"), 3
    params, net = interop.from_torch(theirs.state_dict()), jaxrnn.stack([jaxrnn.gru(H)])
    state, loss = None, 0
    for k in range(0, T, chunk):
        ys, state = theirs(tensor(XS[k : k + chunk]), state)
        state, loss = state.detach(), loss + torch.sin(ys).sum()
    loss.backward()
    expected = interop.from_torch({name: p.grad for name, p in theirs.named_parameters()})

    def chunk_loss(params, xs, states, **options):
        states, ys = net.unroll(params, xs, states, **options)
        return jnp.sin(ys).sum(), states

    gradient_of = jax.jit(jax.grad(chunk_loss, has_aux=True), static_argnames="truncate")
    states, total = net.initial_state((B,)), jax.tree.map(jnp.zeros_like, params)
    for k in range(0, T, chunk):
        gradient, states = gradient_of(params, XS[k : k + chunk], states)
        total = jax.tree.map(jnp.add, total, gradient)
    in_one_call, _ = gradient_of(params, XS, net.initial_state((B,)), truncate=chunk)
    whole, _ = gradient_of(params, XS, net.initial_state((B,)))
    for ours in (total[0], in_one_call[0]):
        for name in ("w_x", "w_h"):  # PyTorch's two biases have one gradient each
            assert_same(getattr(ours, name), getattr(expected[0], name))
            assert np.abs(getattr(ours, name) - getattr(whole[0], name)).max() > 0.01


@TABLE.row("`module.train()`, `module.eval()`")
def _():
    """The second layer passes on what it reads: outputs of the first, or zeros, or their quotients by 1 - rate."""
    import torch

    torch.manual_seed(0)
    rate, square = 0.25, {"num_layers": 2, "nonlinearity": "relu", "bias": False, "dropout": 0.25}
    theirs = torch.nn.RNN(H, H, **square, dtype=torch.float64)
    with torch.no_grad():
        for name, w in theirs.named_parameters():
            w.copy_(torch.eye(H) if name == "weight_ih_l1" else 0 * w if name == "weight_hh_l1" else w)
    ours = modules.RNN(H, H, **square, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    ours.load_torch(theirs.state_dict())
    xs, params = drawn(1, T, B, H), ours.params
    theirs.eval()
    ours.eval()
    plain = array(theirs(tensor(xs))[0])
    for quiet in (ours(xs)[0], ours.network.unroll(params, xs, key=None)[1]):
        assert_same(quiet, plain)
    theirs.train()
    ours.train()
    key = jax.random.key(0)
    for noisy in (array(theirs(tensor(xs))[0]), ours(xs)[0], ours.network.unroll(params, xs, key=key)[1]):
        kept, some = np.asarray(noisy) != 0, plain > 0
        np.testing.assert_allclose(np.asarray(noisy)[kept], plain[kept] / (1 - rate), rtol=1e-12)
        assert abs(kept[some].mean() - (1 - rate)) < 0.2
        assert (kept[1:] != kept[:-1])[some[1:] & some[:-1]].any()  # drawn anew at every step


def trained(theirs, torch_optimiser, optimiser, steps=2):
    """PyTorch's parameters and ours after some steps of training, both in our form."""
    import torch

    target, cell = drawn(3, T, B, H), jaxrnn.lstm(H, use_bias=hasattr(theirs, "bias_ih_l0"))
    (params,) = interop.from_torch(theirs.state_dict())
    gradient_of = jax.jit(jax.grad(lambda params: jnp.sum((jaxrnn.unroll(cell, params, XS)[1] - target) ** 2)))
    state = optimiser.init(params)
    for _ in range(steps):
        torch_optimiser.zero_grad()
        torch.sum((theirs(tensor(XS))[0] - tensor(target)) ** 2).backward()
        gradient = gradient_of(params)
        for ours, name in ((gradient.w_x, "weight_ih_l0"), (gradient.w_h, "weight_hh_l0")):
            assert_same(ours.T, array(getattr(theirs, name).grad))
        torch_optimiser.step()
        updates, state = optimiser.update(gradient, state)
        params = optax.apply_updates(params, updates)
    return interop.from_torch(theirs.state_dict())[0], params


@TABLE.row("`loss.backward()`, `torch.optim`")
def _():
    import torch

    theirs = theirs_of(bias=False)
    expected, params = trained(theirs, torch.optim.Adam(theirs.parameters(), lr=0.1), optax.adam(0.1))
    assert_same(params.w_x, expected.w_x)
    assert_same(params.w_h, expected.w_h)
    theirs = theirs_of()
    matrices = [theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0]  # one bias is trained, as here
    expected, params = trained(theirs, torch.optim.SGD(matrices, lr=0.01), optax.sgd(0.01))
    assert_same(params.b, expected.b)
    theirs = theirs_of()
    before = interop.from_torch(theirs.state_dict())[0].b
    expected, params = trained(theirs, torch.optim.SGD(theirs.parameters(), lr=0.01), optax.sgd(0.01), steps=1)
    assert_same(2 * (params.b - before), expected.b - before)  # both biases take the step


@TABLE.row("`torch.autocast`")
def _():
    """In NumPy: what enters a product is rounded to bfloat16, all else is in float32."""
    import torch

    theirs = theirs_of().float()
    (params,), xs = interop.from_torch(theirs.state_dict()), XS.astype(np.float32)
    state, ys, states = jaxrnn.unroll(jaxrnn.lstm(H), params, xs, compute_dtype=jnp.bfloat16, return_states=True)
    chex.assert_type(jax.tree.leaves((state, ys, states)), jnp.float32)
    rounded = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64)  # noqa: E731
    h = c = np.zeros((B, H))
    expected = []
    for x in xs:
        a = rounded(x) @ rounded(params.w_x) + rounded(h) @ rounded(params.w_h) + params.b
        a_i, a_f, a_g, a_o = np.split(a, 4, -1)
        c = in_numpy.sigmoid(a_f) * c + in_numpy.sigmoid(a_i) * np.tanh(a_g)
        h = in_numpy.sigmoid(a_o) * np.tanh(c)
        expected.append(h)
    np.testing.assert_allclose(ys, expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs_too = theirs(tensor(xs))[0].float()
    full = jaxrnn.unroll(jaxrnn.lstm(H), params, xs)[1]
    apart = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max()  # noqa: E731
    assert 1e-4 < apart(ys, full) < 0.02
    assert apart(ys, array(theirs_too)) < 0.02


@TABLE.row("`module.load_state_dict(weights)`")
def _():
    import torch

    model = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"rnn": theirs_of()}), "head": torch.nn.Linear(H, 2)})
    theirs, weights = model["encoder"]["rnn"], model.state_dict()
    expected = array(theirs(tensor(XS))[0])
    ours = modules.LSTM(I, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    ours.load_torch(weights, prefix="encoder.rnn")
    assert_same(ours(XS)[0], expected)
    params = interop.from_torch(weights, prefix="encoder.rnn")
    assert_same(jaxrnn.stack([jaxrnn.lstm(H)]).unroll(params, XS)[1], expected)
    other = theirs_of()
    other.load_state_dict({name: torch.from_numpy(w) for name, w in interop.to_torch(params).items()})
    assert_same(expected, array(other(tensor(XS))[0]))


@TABLE.row("`weight_ih_l0 (GH, I)`, `bias_ih_l0`, `bias_hh_l0`")
def _():
    for kind in ("LSTM", "GRU", "RNN"):
        theirs = theirs_of(kind)
        (params,) = interop.from_torch(theirs.state_dict())
        np.testing.assert_array_equal(params.w_x, array(theirs.weight_ih_l0).T)
        np.testing.assert_array_equal(params.w_h, array(theirs.weight_hh_l0).T)
        b_x, b_h = array(theirs.bias_ih_l0), array(theirs.bias_hh_l0)
        if kind == "GRU":
            np.testing.assert_array_equal(params.b_hn, b_h[-H:])
            b_h[-H:] = 0
        assert_same(params.b, b_x + b_h)


@TABLE.row("`jaxrnn.lstm(H, num_heads=N)`, `jaxrnn.interop.from_torch(weights, num_heads=N)`")
def _():
    cell, theirs = jaxrnn.lstm(4, num_heads=2), theirs_of("LSTM", I, 4)
    params = cell.init(jax.random.key(0), I, jnp.float64)
    weights = interop.to_torch((params,))
    theirs.load_state_dict({name: tensor(leaf) for name, leaf in weights.items()})
    assert_same(jaxrnn.unroll(cell, params, XS)[1], array(theirs(tensor(XS))[0]))
    w_hi = weights["weight_hh_l0"][:4]
    assert not w_hi[:2, 2:].any()
    assert not w_hi[2:, :2].any()
    assert w_hi[:2, :2].all()
    assert w_hi[2:, 2:].all()
    chex.assert_trees_all_equal(interop.from_torch(theirs.state_dict(), num_heads=2), (params,))


@TABLE.row("`torch.save`, `torch.load`")
def _():
    theirs = theirs_of("GRU", num_layers=2)
    expected, ours = array(theirs(tensor(XS))[0]), ours_of(theirs, "GRU", num_layers=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        jaxrnn.save(path, jaxrnn.stack([jaxrnn.gru(H)] * 2), interop.from_torch(theirs.state_dict()))
        net, params = jaxrnn.load(path)
        assert_same(net.unroll(params, XS)[1], expected)
        jaxrnn.save(path, ours.network, ours.params)
        net, params = jaxrnn.load(path)
        assert_same(net.unroll(params, XS)[1], expected)
        with pytest.raises(Exception):  # noqa: B017, PT011
            pickle.loads(path.read_bytes())
