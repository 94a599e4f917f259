"""The modules and cells inside Flax: NNX's transformations, optimisers, checkpoints and wrappers, and Linen."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxrnn
from jaxrnn import Bidirectional, LSTMParams, LSTMState
from jaxrnn.modules import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    RNN,
    SLSTM,
    GRUCell,
    LRUCell,
    LSTMCell,
    MinGRU,
    MinGRUCell,
    MinLSTM,
    MinLSTMCell,
    RGLRUCell,
    RNNCell,
    SLSTMCell,
)
from tests.support.modules import MODULES, SEED, XS, numbers, randomised, rngs
from tests.support.registry import LENGTHS, B, H, I, T, assert_close, assert_equal, gap, random_like

CELLS = {
    "rnn": lambda: RNNCell(I, H, True, "sigmoid", rngs=rngs()),
    "min_gru": lambda: MinGRUCell(I, H, False, rngs=rngs()),
    "min_lstm": lambda: MinLSTMCell(I, H, rngs=rngs()),
    "rg_lru": lambda: RGLRUCell(I, H, False, num_blocks=2, rngs=rngs()),
    "lru": lambda: LRUCell(I, H, output_size=2, rngs=rngs()),
    "slstm": lambda: SLSTMCell(I, H, num_heads=2, rngs=rngs()),
    "lstm": lambda: LSTMCell(I, H, proj_size=2, peephole=True, rngs=rngs()),
    "gru": lambda: GRUCell(I, H, False, reset_after=False, layer_norm=True, rngs=rngs()),
}


@pytest.fixture
def standard_promotion():
    """Allows promotion, which Optax's Adam needs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", ["rnn-relu-two-layers", "lstm-variants"])
def test_merge_restores_a_split_module(name):
    module = MODULES[name][0]()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    again = nnx.merge(graphdef, params)
    assert_equal(again.params, module.params)
    assert_equal(again(XS), module(XS))
    assert gap(nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, params)).params, module.params) == 1.0


class Model(nnx.Module):
    """A model with a recurrent layer and a linear one."""

    def __init__(self, rngs, dropout=0.0):
        self.lstm = LSTM(I, H, 2, dropout=dropout, rngs=rngs)
        self.read_out = nnx.Linear(H, 1, rngs=rngs)

    def __call__(self, xs):
        return self.read_out(self.lstm(xs)[1][0][-1])[..., 0]


def test_training_with_an_optimiser_reduces_the_loss(standard_promotion):
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


def test_orbax_restores_a_saved_state(tmp_path):
    import orbax.checkpoint as ocp

    model = Model(rngs(), dropout=0.1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model, nnx.Param))
        checkpointer.wait_until_finished()
        other = Model(rngs(1), dropout=0.1)
        assert gap(other.lstm.params, model.lstm.params) > 0.1
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(other, nnx.Param))
        nnx.update(other, checkpointer.restore(tmp_path / "state", abstract))
    assert_equal(other.lstm.params, model.lstm.params)


def test_ensemble_under_vmap_equals_each_member():
    make = nnx.vmap(lambda key: RNN(I, H, rngs=nnx.Rngs(key)))
    models = make(jax.random.split(jax.random.key(0), 3))
    ys, h_n = nnx.vmap(lambda model, xs: model(xs), in_axes=(0, None))(models, XS)
    assert ys.shape == (3, T, B, H)
    graphdef, state = nnx.split(models)
    one = nnx.merge(graphdef, jax.tree.map(lambda p: p[1], state))
    assert_close((ys[1], h_n[1]), one(XS), "float32")


def test_bridge_makes_a_linen_module():
    bridged = nnx.bridge.ToLinen(LSTM, args=(I, H), kwargs={"num_layers": 2, "dropout": 0.5})
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    (ys, (h_n, _)), variables = bridged.init_with_output(keys, XS, deterministic=True)
    assert {*variables["params"]["layers"][1]} == {"w_x", "w_h", "b"}
    assert ys.shape == (T, B, H)
    assert h_n.shape == (2, B, H)
    quiet = bridged.apply(variables, XS, deterministic=True)[0]
    assert_equal(quiet, ys)
    noisy = [bridged.apply(variables, XS, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 1, 2)]
    assert_equal(noisy[0], noisy[1])
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


# Cells


@pytest.mark.parametrize("name", CELLS)
def test_cells_in_nnx_rnn_equal_unroll(name):
    cell = randomised(CELLS[name]())
    final, ys = jaxrnn.unroll(cell.cell, cell.params, XS)
    layer = nnx.RNN(cell, return_carry=True, time_major=True)
    assert_close(layer(XS), (final, ys), "float32")
    assert_close(nnx.RNN(cell)(XS.swapaxes(0, 1)), ys.swapaxes(0, 1), "float32")
    state = random_like(5, final, jnp.float32)
    final, ys = jaxrnn.unroll(cell.cell, cell.params, XS, state, lengths=np.maximum(LENGTHS, 1))
    carry, out = layer(XS, initial_carry=state, seq_lengths=np.maximum(LENGTHS, 1))
    valid = (np.arange(T)[:, None] < LENGTHS)[..., None]
    assert_close((carry, jnp.where(valid, out, 0)), (final, jnp.where(valid, ys, 0)), "float32")


def test_cells_in_nnx_bidirectional_equal_a_bidirectional_stack():
    ahead, back = (randomised(GRUCell(I, H, rngs=rngs(seed))) for seed in (0, 1))
    network = jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True)
    states, ys = network.unroll((Bidirectional(ahead.params, back.params),), XS)
    layer = nnx.Bidirectional(nnx.RNN(ahead), nnx.RNN(back), time_major=True, return_carry=True)
    assert_close(layer(XS), (tuple(states[0]), ys), "float32")


def test_cells_initialise_and_read_a_carry():
    cell = LSTMCell(I, H, proj_size=2, param_dtype=jnp.bfloat16, rngs=rngs())
    zeros = cell.initialize_carry((7, B, I))
    assert isinstance(zeros, LSTMState)
    assert (zeros.h.shape, zeros.c.shape, zeros.c.dtype) == ((7, B, 2), (7, B, H), jnp.bfloat16)
    assert cell.num_feature_axes == 1
    drawn = cell.initialize_carry((B, I), rngs(), jax.nn.initializers.normal())
    again = cell.initialize_carry((B, I), nnx.Rngs(carry=SEED), jax.nn.initializers.normal())
    assert_equal(drawn, again)
    drawn = LSTMCell(I, H, rngs=rngs()).initialize_carry((B, I), rngs(), jax.nn.initializers.normal())
    assert gap(drawn.c, drawn.h) > 0.1
    gru = randomised(GRUCell(I, H, rngs=rngs()))
    state = jnp.asarray(numbers(1, B, H))
    assert_equal(gru(state, XS[0]), gru.cell.step(gru.params, state, XS[0]))


def test_gradients_through_nnx_rnn_equal_those_of_unroll():
    cell = randomised(LSTMCell(I, H, rngs=rngs()))
    layer = nnx.RNN(cell, time_major=True)
    gradients = nnx.grad(lambda layer: jnp.sum(layer(XS) ** 2))(layer)
    expected = jax.grad(lambda p: jnp.sum(jaxrnn.unroll(cell.cell, p, XS)[1] ** 2))(cell.params)
    got = LSTMParams(**{name: gradients["cell"][name].get_value() for name in ("w_x", "w_h", "b")})
    assert_close(got, expected, "float32")


def test_variables_are_read_as_their_arrays():
    cell, module = CELLS["gru"](), LSTM(I, H, rngs=rngs())
    h, x = random_like(1, jax.ShapeDtypeStruct((2, H), jnp.float32), jnp.float32), XS[0, :2]
    assert_equal(cell(nnx.Variable(h), nnx.Param(x)), cell(h, x))
    rows = jnp.stack([h])
    lengths = np.asarray([3, 1])
    wrapped = module(nnx.Param(XS[:, :2]), (nnx.Variable(rows), rows), lengths=nnx.Variable(jnp.asarray(lengths)))
    assert_equal(wrapped, module(XS[:, :2], (rows, rows), lengths=lengths))
    module.load(jax.tree.map(lambda leaf: nnx.Param(2 * leaf), module.params))
    assert_equal(module.params[0].b, 2 * LSTM(I, H, rngs=rngs()).params[0].b)


class Agent(nnx.Module):
    def __init__(self, seed):
        self.cell = LSTMCell(I, H, rngs=nnx.Rngs(seed))
        self.memory = GRU(I, H, 2, rngs=nnx.Rngs(seed + 10))


def test_users_modules_are_mapped_over_together():
    online, target = Agent(0), Agent(1)
    mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, target, online)
    expected = 0.9 * np.asarray(target.cell.w_x[...]) + 0.1 * np.asarray(online.cell.w_x[...])
    np.testing.assert_allclose(mixed.cell.w_x[...], expected, rtol=1e-6)
    expected = 0.9 * np.asarray(target.memory.layers[1].b[...]) + 0.1 * np.asarray(online.memory.layers[1].b[...])
    np.testing.assert_allclose(mixed.memory.layers[1].b[...], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "cls",
    [
        RNN,
        LSTM,
        GRU,
        MinGRU,
        MinLSTM,
        RGLRU,
        LRU,
        SLSTM,
        SLSTMCell,
        RNNCell,
        LSTMCell,
        GRUCell,
        MinGRUCell,
        MinLSTMCell,
        RGLRUCell,
        LRUCell,
    ],
)
def test_signature_names_every_keyword(cls):
    parameters = inspect.signature(cls).parameters
    keywords = {"param_dtype", "kernel_init", "recurrent_init", "bias_init", "kernel_metadata", "rngs"}
    keywords |= (
        {"checkpoint", "implementation", "compute_dtype", "deterministic"}
        if not cls.__name__.endswith("Cell")
        else set()
    )
    assert keywords <= set(parameters)
    assert not {p.kind for p in parameters.values()} & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert "rngs" not in defaults
    assert cls(I, H, **{k: v for k, v in defaults.items() if k not in ("input_size", "hidden_size")}, rngs=rngs())
    assert next(iter(inspect.signature(cls(I, H, rngs=rngs())).parameters)) in ("xs", "carry")  # of a call


class Own(LSTM):
    def __init__(self, width, *, seed=0):
        super().__init__(width, width, rngs=nnx.Rngs(seed))


def test_signature_of_a_users_subclass_is_its_own():
    assert list(inspect.signature(Own).parameters) == ["width", "seed"]
    assert list(inspect.signature(type("Same", (GRU,), {})).parameters) == list(inspect.signature(GRU).parameters)


def test_biases_are_drawn_by_initialisers_of_flax():
    module = LSTM(
        I, H, bias_init=nnx.initializers.constant(0.25), kernel_init=nnx.initializers.ones_init(), rngs=rngs()
    )
    assert set(np.asarray(module.params[0].b)) == {0.25}
    assert set(np.asarray(module.params[0].w_x).ravel()) == {1.0}
