"""Every row of MIGRATION.md's table for Flax, executed against NNX and Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxrnn
from jaxrnn import LSTMState, interop, modules
from tests.support.migration import LENGTHS, B, H, I, T, Table, assert_same, drawn

TABLE = Table("Flax")
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}  # a SimpleCell computes in float32 by default
VALID = np.arange(T)[:, None] < LENGTHS  # (T, B)
LSTM = jaxrnn.lstm(H)
pytestmark = pytest.mark.usefixtures("x64", "settings_of_users")


@pytest.mark.parametrize("row", TABLE.rows, ids=[row.key for row in TABLE.rows])
def test_row_holds(row):
    TABLE.run(row)


def test_every_row_has_a_test():
    TABLE.check()


def cell_of(kind="LSTMCell", size=I, seed=0, **options):
    """A cell of Flax with random biases."""
    cell = getattr(nnx, kind)(size, H, **DOUBLE, **options, rngs=nnx.Rngs(seed))
    weights = nnx.state(cell, nnx.Param)
    rng = np.random.default_rng(seed)
    nnx.update(cell, jax.tree.map(lambda w: jnp.asarray(0.6 * rng.standard_normal(w.shape)), weights))
    return cell


def params_in(model):
    return interop.from_nnx(nnx.state(model, nnx.Param))


def first(xs):
    """Batch-major to time-major and back."""
    return np.swapaxes(np.asarray(xs), 0, 1)


XS = drawn(1, T, B, I)


@TABLE.row("`nnx.RNN(nnx.LSTMCell(I, H, rngs=rngs))`")
def _():
    theirs = nnx.RNN(cell_of(), return_carry=True)
    cell = modules.LSTMCell(I, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell.load(params_in(theirs))
    (c, h), expected = theirs(first(XS), seq_lengths=LENGTHS)
    carry, ys = nnx.RNN(cell, return_carry=True)(first(XS), seq_lengths=LENGTHS)
    assert isinstance(carry, LSTMState)
    for got, wanted in ((ys, expected), (carry.h, h), (carry.c, c)):
        assert_same(got, wanted)


@TABLE.row("`jaxrnn.modules.LSTM(I, H, batch_first=True, rngs=rngs)`")
def _():
    below, above = cell_of(), cell_of(size=2 * H, seed=1)
    both = [
        nnx.Bidirectional(nnx.RNN(cell), nnx.RNN(cell_of(size=size, seed=seed)))
        for cell, size, seed in ((below, I, 2), (above, 2 * H, 3))
    ]
    lstm = modules.LSTM(
        I, H, num_layers=2, bidirectional=True, batch_first=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    lstm.load(params_in(nnx.Sequential(*both)))
    output, (h_n, c_n) = lstm(first(XS))
    assert_same(output, both[1](both[0](first(XS))))
    assert h_n.shape == c_n.shape == (4, B, H)


@TABLE.row("`jaxrnn.unroll(jaxrnn.lstm(H), params, xs)`")
def _():
    theirs = nnx.RNN(cell_of())
    assert_same(first(jaxrnn.unroll(LSTM, params_in(theirs), XS)[1]), theirs(first(XS)))


@TABLE.row("`nnx.GRUCell`, `linen.GRUCell`")
def _():
    theirs = nnx.RNN(cell_of("GRUCell"))
    params = params_in(theirs)
    assert not np.asarray(params.b_hn).any()
    assert_same(first(jaxrnn.unroll(jaxrnn.gru(H), params, XS)[1]), theirs(first(XS)))
    module = linen.RNN(linen.GRUCell(H, param_dtype=jnp.float64))
    shapes = jax.eval_shape(module.init, jax.random.key(0), first(XS))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda w: jnp.asarray(0.6 * rng.standard_normal(w.shape)), shapes)
    params = interop.from_linen(variables)
    assert np.asarray(params.b_hn).all()
    assert_same(first(jaxrnn.unroll(jaxrnn.gru(H), params, XS)[1]), module.apply(variables, first(XS)))
    cell = modules.GRUCell(I, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell.load(params)
    assert_same(nnx.RNN(cell)(first(XS)), module.apply(variables, first(XS)))


@TABLE.row("`nnx.SimpleCell`")
def _():
    for ours, activation in (("tanh", jnp.tanh), ("relu", jax.nn.relu), (jnp.sin, jnp.sin)):
        theirs = nnx.RNN(cell_of("SimpleCell", activation_fn=activation))
        params, expected = params_in(theirs), theirs(first(XS))
        assert_same(first(jaxrnn.unroll(jaxrnn.rnn(H, activation=ours), params, XS)[1]), expected)
        cell = modules.RNNCell(I, H, nonlinearity=ours, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        cell.load(params)
        assert_same(nnx.RNN(cell)(first(XS)), expected)


@TABLE.row("`nnx.OptimizedLSTMCell`")
def _():
    theirs = nnx.RNN(cell_of("OptimizedLSTMCell"))
    params = params_in(theirs)
    assert params.w_x.shape == (I, 4 * H)
    assert_same(first(jaxrnn.unroll(LSTM, params, XS)[1]), theirs(first(XS)))


@TABLE.row("`time_major=False` by default")
def _():
    cell = cell_of()
    theirs, params = nnx.RNN(cell), params_in(nnx.RNN(cell))
    module = modules.LSTM(I, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    module.load((params,))
    assert_same(module(XS)[0], first(theirs(first(XS))))
    assert_same(module(XS)[0], nnx.RNN(cell, time_major=True)(XS))
    many = drawn(2, T, 2, 3, I)  # (T, *B, I)
    assert_same(jaxrnn.unroll(LSTM, params, many)[1][:, 1, 2], nnx.RNN(cell)(many[None, :, 1, 2])[0])


@TABLE.row("`ys`, with `return_carry=True` `(carry, ys)`")
def _():
    cell = cell_of()
    params = params_in(nnx.RNN(cell))
    (c, h), ys = nnx.RNN(cell, return_carry=True)(first(XS))
    state, ours = jaxrnn.unroll(LSTM, params, XS)
    module = modules.LSTM(I, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    module.load((params,))
    output, (h_n, c_n) = module(XS)
    for got, wanted in ((ours, first(ys)), (state.h, h), (state.c, c), (output, first(ys)), (h_n[0], h), (c_n[0], c)):
        assert_same(got, wanted)


@TABLE.row("`seq_lengths=`")
def _():
    theirs = nnx.RNN(cell_of(), return_carry=True)
    params = params_in(theirs)
    (c, h), expected = theirs(first(XS), seq_lengths=LENGTHS)
    xs = np.where(VALID[..., None], XS, np.nan)
    state, ys = jaxrnn.unroll(LSTM, params, xs, lengths=LENGTHS)
    assert_same(np.asarray(ys)[VALID], np.asarray(expected).swapaxes(0, 1)[VALID])
    assert not np.asarray(ys)[~VALID].any()
    assert_same(state.h, h)
    assert_same(state.c, c)
    start = LSTMState(*drawn(2, 2, B, H))
    for of_xs in (xs, np.full_like(xs, np.nan)):
        empty = jaxrnn.unroll(LSTM, params, of_xs, start, lengths=0 * LENGTHS)[0]
        np.testing.assert_array_equal(empty.h, start.h)
        np.testing.assert_array_equal(empty.c, start.c)
    gradient = jax.grad(lambda p: jnp.sum(jaxrnn.unroll(LSTM, p, xs, lengths=LENGTHS)[1] ** 2))(params)
    clean = jax.grad(lambda p: jnp.sum(jaxrnn.unroll(LSTM, p, XS, lengths=LENGTHS)[1] ** 2))(params)
    assert_same(gradient.w_x, clean.w_x)


@TABLE.row("`reverse=True, keep_order=True`")
def _():
    theirs = nnx.RNN(cell_of(), reverse=True, keep_order=True)
    params = params_in(theirs)
    assert_same(first(jaxrnn.unroll(LSTM, params, XS, reverse=True)[1]), theirs(first(XS)))
    _, ys = jaxrnn.unroll(LSTM, params, XS, reverse=True, lengths=LENGTHS)
    expected = np.asarray(theirs(first(XS), seq_lengths=LENGTHS)).swapaxes(0, 1)
    assert_same(np.asarray(ys)[VALID], expected[VALID])


@TABLE.row("`nnx.Bidirectional(a, b, merge_fn=f)`")
def _():
    merges = {
        "concat": lambda a, b: jnp.concatenate([a, b], -1),
        "sum": jnp.add,
        "mul": jnp.multiply,
        "average": lambda a, b: (a + b) / 2,
        jnp.subtract: jnp.subtract,
    }
    a, b = nnx.RNN(cell_of()), nnx.RNN(cell_of(seed=1))
    for ours, merge in merges.items():
        theirs = nnx.Bidirectional(a, b, merge_fn=merge)
        net = jaxrnn.stack([LSTM], bidirectional=True, merge=ours)
        params = (jaxrnn.Bidirectional(params_in(a), params_in(b)),)
        assert_same(first(net.unroll(params, XS)[1]), theirs(first(XS)))


@TABLE.row("`nnx.Sequential(rnn, rnn)`")
def _():
    model = nnx.Sequential(nnx.RNN(cell_of()), nnx.RNN(cell_of(size=H, seed=1)))
    params, expected = params_in(model), model(first(XS))
    assert_same(first(jaxrnn.stack([LSTM, LSTM]).unroll(params, XS)[1]), expected)
    module = modules.LSTM(I, H, num_layers=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    module.load(params)
    assert_same(first(module(XS)[0]), expected)
    below = model.layers[0](first(XS))
    residual = jaxrnn.stack([LSTM, LSTM], residual=True).unroll(params, XS)[1]
    assert_same(first(residual), below + expected)
    net = jaxrnn.stack([LSTM, LSTM], dropout=0.5)
    assert_same(first(net.unroll(params, XS, key=None)[1]), expected)
    assert np.abs(first(net.unroll(params, XS, key=jax.random.key(0))[1]) - expected).max() > 0.01


@TABLE.row("`cell.initialize_carry((B, I))`")
def _():
    for kind, ours in (("LSTMCell", LSTM), ("GRUCell", jaxrnn.gru(H)), ("SimpleCell", jaxrnn.rnn(H))):
        carry = cell_of(kind).initialize_carry((B, I), nnx.Rngs(0))
        state = ours.initial_state((B,))
        cell = getattr(modules, kind.replace("Simple", "RNN"))(I, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        for made in (state, cell.initialize_carry((B, I), nnx.Rngs(0))):
            for got, wanted in zip(jax.tree.leaves(made), jax.tree.leaves(carry), strict=True):
                np.testing.assert_array_equal(got, wanted)


@TABLE.row("`kernel_init`, `recurrent_kernel_init`, `bias_init`")
def _():
    of = jax.nn.initializers.constant
    theirs = nnx.LSTMCell(
        I, H, **DOUBLE, rngs=nnx.Rngs(0), kernel_init=of(0.1), recurrent_kernel_init=of(0.2), bias_init=of(0.3)
    )
    expected = nnx.RNN(theirs)(first(XS))
    for bias in (jaxrnn.initializers.gate_bias(0.3), of(0.3)):
        options = {"kernel_init": of(0.1), "recurrent_init": of(0.2), "bias_init": bias}
        cell = jaxrnn.lstm(H, **options)
        assert_same(first(jaxrnn.unroll(cell, cell.init(jax.random.key(0), I), XS)[1]), expected)
        module = modules.LSTM(I, H, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        assert_same(first(module(XS)[0]), expected)
    np.testing.assert_array_equal(LSTM.init(jax.random.key(0), I).b, np.repeat([0.0, 1.0, 0.0, 0.0], H))
    plain = modules.LSTM(400, 400, rngs=nnx.Rngs(0)).params[0]
    for w in (plain.w_x, plain.w_h, plain.b):
        w, bound = np.asarray(w, np.float64), 1 / 400**0.5  # U(-1/√H, 1/√H), as torch.nn.RNNBase.reset_parameters
        assert bound * 0.99 < np.abs(w).max() <= bound * (1 + 1e-6)
        assert abs(w.mean()) < bound / 10
        assert abs(w.std() * 3**0.5 / bound - 1) < 0.05


@TABLE.row("`linen` modules")
def _():
    module = linen.RNN(linen.LSTMCell(H, param_dtype=jnp.float64))
    variables = module.init(jax.random.key(0), first(XS))
    params = interop.from_linen(variables)
    expected = module.apply(variables, first(XS))
    assert_same(first(jaxrnn.unroll(LSTM, params, XS)[1]), expected)
    bridged = nnx.bridge.ToLinen(modules.LSTM, args=(I, H))
    with jax.enable_x64(False):
        xs = XS.astype(np.float32)
        ours = bridged.init(jax.random.key(0), xs)
        output, _ = bridged.apply(ours, xs)
        own = jaxrnn.LSTMParams(**ours["params"]["layers"][0])
        assert_same(jaxrnn.unroll(LSTM, own, xs)[1], output)
