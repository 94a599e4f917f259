"""The Flax NNX modules: the functional API in PyTorch's shapes, and what NNX does with modules."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn import Bidirectional, LSTMParams, LSTMState
from jaxrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from tests.support.modules import MASK, RESETS, SEED, XS, numbers, rngs
from tests.support.registry import LENGTHS, B, H, I, T, assert_close, gap, random_like

# Every argument of each module in some row, with the functional network it must be.
MODULES = {
    "rnn": (lambda: RNN(I, H, rngs=rngs()), lambda: jaxrnn.stack([jaxrnn.rnn(H)])),
    "rnn-relu-two-layers": (
        lambda: RNN(I, H, 2, "relu", False, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.rnn(H, activation="relu", use_bias=False)] * 2),
    ),
    "lstm-both-ways-projected": (
        lambda: LSTM(I, H, 2, True, False, 0.0, True, 2, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.lstm(H, projection_size=2)] * 2, bidirectional=True),
    ),
    "lstm-variants": (
        lambda: LSTM(I, H, peephole=True, coupled=True, layer_norm=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.lstm(H, peephole=True, coupled=True, layer_norm=True)]),
    ),
    "gru-both-ways": (
        lambda: GRU(I, H, bidirectional=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True),
    ),
    "gru-variants": (
        lambda: GRU(I, H, bias=False, reset_after=False, layer_norm=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.gru(H, use_bias=False, reset_after=False, layer_norm=True)]),
    ),
}
KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
CELLS = {
    "rnn": lambda: RNNCell(I, H, True, "sigmoid", rngs=rngs()),
    "lstm": lambda: LSTMCell(I, H, proj_size=2, peephole=True, rngs=rngs()),
    "gru": lambda: GRUCell(I, H, False, reset_after=False, layer_norm=True, rngs=rngs()),
}


@pytest.fixture
def as_users_have_it():
    """Optax's Adam is not written for the strict promotion of these tests."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def randomised(module):
    """With random parameters throughout: scales and peepholes too."""
    module.load(jax.tree.map(lambda p: 0.5 * p, random_like(7, module.params, jnp.float32)))
    return module


def initial(module, *batch, seed=2):
    """Random initial states in PyTorch's shapes."""
    rows = module.num_layers * (1 + module.bidirectional)
    h = numbers(seed, rows, *batch, getattr(module, "proj_size", 0) or module.hidden_size)
    return (h, numbers(seed + 1, rows, *batch, module.hidden_size)) if isinstance(module, LSTM) else h


def by_layer(module, hx):
    """Initial states as the functional API has them, written out by hand."""
    one = lambda n: LSTMState(hx[0][n], hx[1][n]) if isinstance(hx, tuple) else hx[n]  # noqa: E731
    if module.bidirectional:
        return tuple(Bidirectional(one(2 * k), one(2 * k + 1)) for k in range(module.num_layers))
    return tuple(one(k) for k in range(module.num_layers))


def flat(states):
    """The reverse: final states in PyTorch's shapes."""
    rows = [s for layer in states for s in (layer if isinstance(layer, Bidirectional) else [layer])]
    if isinstance(rows[0], LSTMState):
        return jnp.stack([s.h for s in rows]), jnp.stack([s.c for s in rows])
    return jnp.stack(rows)


# ---- the mathematics is the functional API's


@pytest.mark.parametrize("name", MODULES)
def test_module_is_the_functional_network(name):
    module = randomised(MODULES[name][0]())
    assert repr(module.network) == repr(MODULES[name][1]())  # which says all of it; this one is compiled already
    for hx, options in ((None, {"lengths": LENGTHS}), (initial(module, B), {"mask": MASK, "resets": RESETS})):
        states = None if hx is None else by_layer(module, hx)
        states, ys = module.network.unroll(module.params, XS, states, **options)
        assert gap(module(XS, hx, **options), (ys, flat(states))) == 0.0


@pytest.mark.parametrize("name", ["lstm-both-ways-projected", "gru-both-ways"])
def test_batch_first_moves_time_and_leaves_states(name):
    module = randomised(MODULES[name][0]())
    hx = initial(module, B)
    ys, finals = module(XS, hx, mask=MASK, resets=RESETS)
    turned = copy.copy(module)
    turned.batch_first = True
    got = turned(XS.swapaxes(0, 1), hx, mask=MASK.T, resets=RESETS.T)
    assert gap(got, (ys.swapaxes(0, 1), finals)) == 0.0
    by_length = turned(XS.swapaxes(0, 1), hx, lengths=LENGTHS)
    assert gap(by_length[1], module(XS, hx, lengths=LENGTHS)[1]) == 0.0
    alone = jax.tree.map(lambda a: a[:, 0], hx)
    first = turned(XS[:, 0], alone, mask=MASK[:, 0], resets=RESETS[:, 0])  # no batch: time is first either way
    assert_close(first, (ys[:, 0], jax.tree.map(lambda a: a[:, 0], finals)), "float32")


def test_any_number_of_batch_axes():
    module = randomised(LSTM(I, H, 2, batch_first=True, rngs=rngs()))
    xs, hx = numbers(3, 2, B, T, I), initial(module, 2, B)
    ys, (h_n, c_n) = module(xs, hx, lengths=np.stack([LENGTHS, LENGTHS[::-1]]), resets=np.stack([RESETS.T] * 2))
    assert ys.shape == (2, B, T, H)
    second = tuple(a[:, 1] for a in hx)
    alone = module(xs[1], second, lengths=LENGTHS[::-1].copy(), resets=RESETS.T)
    assert_close((ys[1], (h_n[:, 1], c_n[:, 1])), alone, "float32")


def test_chunks_of_a_stream_carry_the_state():
    module = randomised(LSTM(I, H, 2, rngs=rngs()))
    whole = module(XS, initial(module, B))
    first, hx = module(XS[:2], initial(module, B))
    second, hx = module(XS[2:], hx)
    assert_close((jnp.concatenate([first, second]), hx), whole, "float32")


def test_how_it_runs_is_handed_on(unhooked):
    build = lambda **options: randomised(LSTM(I, H, 2, rngs=rngs(), **options))  # noqa: E731
    exact = build()(XS)
    assert_close(build(implementation="scan")(XS), exact, "float32")
    assert_close(build(implementation="reference", checkpoint=2)(XS), exact, "float32")
    mixed = build(compute_dtype=jnp.bfloat16)(XS)
    assert 1e-4 < gap(mixed, exact) < 0.05
    with pytest.raises(ValueError, match="implementation expected one of"):
        build(implementation="fast")(XS)
    with pytest.raises(NotImplementedError, match='checkpoint="gates": only a rule knows'):
        build(implementation="scan", checkpoint="gates")(XS)


def test_equal_configurations_share_what_is_compiled():
    split = lambda seed, **options: nnx.split(GRU(I, H, 2, rngs=rngs(seed), **options))  # noqa: E731
    (first, state), (second, _), (other, _) = split(0), split(1), split(0, reset_after=False)
    assert first == second
    assert hash(first) == hash(second)
    assert first != other
    traces = []

    @jax.jit
    def run(state, xs):
        traces.append(1)
        return nnx.merge(first, state)(xs)[0]

    once = nnx.jit(lambda module, xs: (traces.append(2), module(xs)[0])[1])
    assert_close(once(GRU(I, H, 2, rngs=rngs(0)), XS), run(state, XS), "float32")
    once(GRU(I, H, 2, rngs=rngs(1)), XS)
    assert sorted(traces) == [1, 2]


# ---- parameters


def test_parameters_are_params_under_the_names_of_the_functional_api():
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


@pytest.mark.parametrize("name", ["rnn-relu-two-layers", "lstm-variants"])
def test_split_and_merge_give_the_module_back(name):
    module = MODULES[name][0]()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    again = nnx.merge(graphdef, params)
    assert gap(again.params, module.params) == 0.0
    assert gap(again(XS), module(XS)) == 0.0
    assert gap(nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, params)).params, module.params) == 1.0


def test_load_puts_parameters_in_and_casts_them():
    module = LSTM(I, H, proj_size=2, layer_norm=True, param_dtype=jnp.bfloat16, rngs=rngs())
    assert {p.dtype.name for p in jax.tree.leaves(module.params)} == {"bfloat16"}
    params = random_like(3, module.params, jnp.float32)
    module.load(jax.tree.map(np.asarray, params))
    assert gap(module.params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)) == 0.0


def test_a_load_that_is_refused_changes_nothing(unhooked):
    module = LSTM(I, H, 2, bidirectional=True, rngs=rngs())
    before, last = module.params, module.params[1]
    wrong = (random_like(3, before[0], jnp.float32), last._replace(backward=last.backward._replace(b=None)))
    with pytest.raises(ValueError, match=r"LSTM.load: params\[1\].backward.b expected an array, got NoneType"):
        module.load(wrong)
    assert gap(module.params, before) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_start_as_those_of_pytorch(kind):
    units = 64
    module = KINDS[kind](32, units, bidirectional=True, rngs=rngs(), **({"proj_size": 5} if kind == "lstm" else {}))
    for leaf in jax.tree.leaves(module.params):
        bound = 1 / units**0.5
        assert 0.9 * bound < float(jnp.abs(leaf).max()) <= bound
        assert float(leaf.std()) == pytest.approx(bound / 3**0.5, rel=0.2)
    draws = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(module.params)}
    assert len(draws) == len(jax.tree.leaves(module.params))


def test_seeds_and_initialisers():
    same, other = (LSTM(I, H, 2, rngs=nnx.Rngs(params=seed)).params for seed in (0, 1))
    assert gap(LSTM(I, H, 2, rngs=nnx.Rngs(params=0, dropout=9)).params, same) == 0.0
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


# ---- PyTorch's weights, without PyTorch


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_out_and_in(kind):
    first, second = (KINDS[kind](I, H, 2, bidirectional=True, rngs=rngs(seed)) for seed in (0, 1))
    weights = first.to_torch("encoder")
    assert weights["encoder.weight_ih_l1_reverse"].shape == ({"rnn": 1, "lstm": 4, "gru": 3}[kind] * H, 2 * H)
    second.load_torch(weights, "encoder")
    assert gap(second.params, first.params) == 0.0
    cell, again = ({"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}[kind](I, H, rngs=rngs(seed)) for seed in (0, 1))
    again.load_torch(cell.to_torch())
    assert gap(again.params, cell.params) == 0.0


# ---- what NNX does with modules


@pytest.mark.parametrize("name", ["lstm-variants", "gru-both-ways"])
def test_gradients_are_those_of_the_functional_network(name):
    module = randomised(MODULES[name][0]())
    network = module.network
    weigh = lambda ys: jnp.sum(jnp.sin(ys))  # noqa: E731
    value, gradients = nnx.jit(nnx.value_and_grad(lambda m: weigh(m(XS, lengths=LENGTHS)[0])))(module)
    expected = jax.value_and_grad(lambda p: weigh(network.unroll(p, XS, lengths=LENGTHS)[1]))(module.params)
    assert isinstance(jax.tree.leaves(gradients, is_leaf=lambda v: isinstance(v, nnx.Param))[0], nnx.Param)
    graphdef, _ = nnx.split(module)
    assert_close((value, nnx.merge(graphdef, gradients).params), expected, "float32")


class Model(nnx.Module):
    """A layer among others."""

    def __init__(self, rngs, dropout=0.0):
        self.lstm = LSTM(I, H, 2, dropout=dropout, rngs=rngs)
        self.read_out = nnx.Linear(H, 1, rngs=rngs)

    def __call__(self, xs):
        return self.read_out(self.lstm(xs)[1][0][-1])[..., 0]


def test_training_with_an_optimiser_reduces_the_loss(as_users_have_it):
    model = Model(rngs(), dropout=0.1)
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)
    target = XS[0, :, 0] - XS[-1, :, 1]
    loss = lambda model: jnp.mean((model(XS) - target) ** 2)  # noqa: E731

    @nnx.jit
    def update(model, optimizer):
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(update(model, optimizer)) for _ in range(60)]
    model.eval()
    assert float(loss(model)) < 0.1 * losses[0]
    assert int(model.lstm.rngs.count[...]) == 60


def test_orbax_gives_the_state_back(tmp_path):
    import orbax.checkpoint as ocp

    model = Model(rngs(), dropout=0.1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model, nnx.Param))
        checkpointer.wait_until_finished()
        other = Model(rngs(1), dropout=0.1)
        assert gap(other.lstm.params, model.lstm.params) > 0.1
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(other, nnx.Param))
        nnx.update(other, checkpointer.restore(tmp_path / "state", abstract))
    assert gap(other.lstm.params, model.lstm.params) == 0.0


def test_an_ensemble_under_vmap():
    make = nnx.vmap(lambda key: RNN(I, H, rngs=nnx.Rngs(key)))
    models = make(jax.random.split(jax.random.key(0), 3))
    ys, h_n = nnx.vmap(lambda model, xs: model(xs), in_axes=(0, None))(models, XS)
    assert ys.shape == (3, T, B, H)
    graphdef, state = nnx.split(models)
    one = nnx.merge(graphdef, jax.tree.map(lambda p: p[1], state))
    assert_close((ys[1], h_n[1]), one(XS), "float32")


# ---- sharding


def mesh_of(n):
    return Mesh(np.asarray(jax.devices()[:n]), ("model",))


@pytest.mark.parametrize("way", ["initialisers", "metadata"])
def test_sharding_metadata_reaches_the_params(way):
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
    }[way]
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


# ---- Linen


def test_linen_gets_it_through_the_bridge():
    bridged = nnx.bridge.ToLinen(LSTM, args=(I, H), kwargs={"num_layers": 2, "dropout": 0.5})
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    (ys, (h_n, _)), variables = bridged.init_with_output(keys, XS, deterministic=True)
    assert {*variables["params"]["layers"][1]} == {"w_x", "w_h", "b"}
    assert ys.shape == (T, B, H)
    assert h_n.shape == (2, B, H)
    quiet = bridged.apply(variables, XS, deterministic=True)[0]
    assert gap(quiet, ys) == 0.0
    noisy = [bridged.apply(variables, XS, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 1, 2)]
    assert gap(noisy[0], noisy[1]) == 0.0
    assert gap(noisy[0], noisy[2]) > 1e-3
    assert gap(noisy[0], quiet) > 1e-3

    class Both(linen.Module):
        @linen.compact
        def __call__(self, xs):
            _, h_n = nnx.bridge.ToLinen(GRU, args=(I, H))(xs)
            return linen.Dense(1)(h_n[-1])

    variables = Both().init(jax.random.key(0), XS)
    gradients = jax.grad(lambda params: Both().apply({"params": params}, XS).sum())(variables["params"])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


# ---- dropout


def test_train_and_eval_turn_dropout_on_and_off():
    module = randomised(LSTM(I, H, 2, dropout=0.5, rngs=rngs()))
    quiet = module.network.unroll(module.params, XS)[1]
    assert gap(module(XS)[0], quiet) > 1e-2  # training is the start, as in PyTorch
    module.eval()
    assert module.deterministic is True
    assert gap(module(XS)[0], quiet) == 0.0
    assert gap(module(XS, deterministic=False)[0], quiet) > 1e-2
    module.train()
    assert gap(module(XS, deterministic=True)[0], quiet) == 0.0
    assert gap(nnx.view(module, deterministic=True)(XS)[0], quiet) == 0.0
    assert gap(module(XS)[0], module(XS)[0]) > 1e-2  # fresh each time
    assert gap(LSTM(I, H, 2, dropout=0.5, deterministic=True, rngs=rngs())(XS)[0], quiet) > 0  # other weights
    assert gap(LSTM(I, H, 2, dropout=0.5, deterministic=True, rngs=rngs())(XS), LSTM(I, H, 2, rngs=rngs())(XS)) == 0.0


def test_dropout_draws_from_what_it_is_given():
    module = randomised(LSTM(I, H, 2, dropout=0.5, rngs=rngs()))
    key = jax.random.key(3)
    ys = module(XS, rngs=key)[0]
    assert gap(ys, module.network.unroll(module.params, XS, key=key)[1]) == 0.0
    count = int(module.rngs.count[...])
    drawn = [module(XS, rngs=source)[0] for source in (nnx.Rngs(dropout=5), nnx.Rngs(5).default, nnx.Rngs(default=5))]
    assert gap(drawn[0], drawn[1]) == gap(drawn[1], drawn[2]) == 0.0
    assert int(module.rngs.count[...]) == count
    assert gap(module(XS)[0], drawn[0]) > 1e-2
    twins = [LSTM(I, H, 2, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=seed))(XS)[0] for seed in (1, 1, 2)]
    assert gap(twins[0], twins[1]) == 0.0
    assert gap(twins[0], twins[2]) > 1e-2
    stepped = nnx.jit(lambda module, xs: module(xs)[0])
    assert gap(stepped(module, XS), stepped(module, XS)) > 1e-2  # the stream moves on under jit


def test_without_dropout_there_is_no_stream():
    for module in (GRU(I, H, 2, rngs=rngs()), GRU(I, H, 2, dropout=0.5, rngs=nnx.Rngs(params=0))):
        assert module.rngs is None
        assert not jax.tree.leaves(nnx.state(module, nnx.RngState))
    with pytest.warns(UserWarning, match="GRU: dropout = 0.5 does nothing with num_layers = 1"):
        single = GRU(I, H, dropout=0.5, rngs=rngs())
    assert single.rngs is None
    assert gap(single(XS), GRU(I, H, rngs=rngs())(XS)) == 0.0


# ---- cells


@pytest.mark.parametrize("name", CELLS)
def test_cells_fit_nnx_rnn(name):
    cell = randomised(CELLS[name]())
    final, ys = jaxrnn.unroll(cell.cell, cell.params, XS)
    layer = nnx.RNN(cell, return_carry=True, time_major=True)
    assert_close(layer(XS), (final, ys), "float32")
    assert_close(nnx.RNN(cell)(XS.swapaxes(0, 1)), ys.swapaxes(0, 1), "float32")
    state = random_like(5, final, jnp.float32)
    final, ys = jaxrnn.unroll(cell.cell, cell.params, XS, state, lengths=np.maximum(LENGTHS, 1))
    carry, out = layer(XS, initial_carry=state, seq_lengths=np.maximum(LENGTHS, 1))
    taking_part = np.arange(T)[:, None] < LENGTHS
    assert_close((carry, jnp.where(taking_part[..., None], out, 0)), (final, jnp.where(taking_part[..., None], ys, 0)),
                 "float32")  # fmt: skip


def test_cells_fit_nnx_bidirectional():
    ahead, back = (randomised(GRUCell(I, H, rngs=rngs(seed))) for seed in (0, 1))
    network = jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True)
    states, ys = network.unroll((Bidirectional(ahead.params, back.params),), XS)
    layer = nnx.Bidirectional(nnx.RNN(ahead), nnx.RNN(back), time_major=True, return_carry=True)
    assert_close(layer(XS), (tuple(states[0]), ys), "float32")


def test_cells_start_from_a_carry():
    cell = LSTMCell(I, H, proj_size=2, param_dtype=jnp.bfloat16, rngs=rngs())
    zeros = cell.initialize_carry((7, B, I))
    assert isinstance(zeros, LSTMState)
    assert (zeros.h.shape, zeros.c.shape, zeros.c.dtype) == ((7, B, 2), (7, B, H), jnp.bfloat16)
    assert cell.num_feature_axes == 1
    drawn = cell.initialize_carry((B, I), rngs(), jax.nn.initializers.normal())
    again = cell.initialize_carry((B, I), nnx.Rngs(carry=SEED), jax.nn.initializers.normal())
    assert gap(drawn, again) == 0.0
    drawn = LSTMCell(I, H, rngs=rngs()).initialize_carry((B, I), rngs(), jax.nn.initializers.normal())
    assert gap(drawn.c, drawn.h) > 0.1
    gru = randomised(GRUCell(I, H, rngs=rngs()))
    state = jnp.asarray(numbers(1, B, H))
    assert gap(gru(state, XS[0]), gru.cell.step(gru.params, state, XS[0])) == 0.0


def test_gradients_through_nnx_rnn_are_those_of_the_hand_written_pass():
    cell = randomised(LSTMCell(I, H, rngs=rngs()))
    layer = nnx.RNN(cell, time_major=True)
    gradients = nnx.grad(lambda layer: jnp.sum(layer(XS) ** 2))(layer)
    expected = jax.grad(lambda p: jnp.sum(jaxrnn.unroll(cell.cell, p, XS)[1] ** 2))(cell.params)
    got = LSTMParams(**{name: gradients["cell"][name].get_value() for name in ("w_x", "w_h", "b")})
    assert_close(got, expected, "float32")
