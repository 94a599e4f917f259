"""Every row of MIGRATION.md's table for Keras, executed against Keras."""

import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import interop, modules
from tests.support.migration import LENGTHS, B, H, I, T, Table, assert_same, drawn, params_of
from tests.support.peers import peer

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is first imported, or it looks for TensorFlow

TABLE = Table("Keras")
VALID = np.arange(T)[:, None] < LENGTHS  # (T, B)
CELLS = {"LSTM": jaxrnn.lstm, "GRU": jaxrnn.gru, "SimpleRNN": jaxrnn.rnn}
MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average"}
pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("settings_of_users"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.mark.parametrize("row", TABLE.rows, ids=[row.key for row in TABLE.rows])
def test_row_holds(row):
    peer("keras")
    TABLE.run(row)


def test_every_row_has_a_test():
    TABLE.check()


def layer_of(kind="LSTM", units=H, **options):
    import keras

    return getattr(keras.layers, kind)(units, **{"return_sequences": True, **options})


def built(layer, size=I, time=T, seed=0, batch=None):
    """The layer with random weights, biases too."""
    layer.build((batch, time, size))
    rng = np.random.default_rng(seed)
    layer.set_weights([0.6 * rng.standard_normal(w.shape).astype("float32") for w in layer.weights])
    return layer


def weights_of(layer):
    """`layer.get_weights()`, which NumPy 2 warns of."""
    return [np.asarray(w) for w in layer.weights]


def params_in(layer):
    return interop.from_keras({w.path: w for w in layer.weights})


def first(xs):
    """Batch-major to time-major and back."""
    return np.swapaxes(np.asarray(xs), 0, 1)


XS = drawn(1, T, B, I, dtype=np.float32)
KEY = jax.random.key(0)


@TABLE.row("`LSTM(H)`, `GRU(H)`, `SimpleRNN(H)`")
def _():
    for kind, cell in CELLS.items():
        theirs = built(layer_of(kind))
        (params,), expected = params_in(theirs), theirs(first(XS))
        assert jax.tree.map(jnp.shape, cell(H).init(KEY, I)) == jax.tree.map(jnp.shape, params)
        assert_same(first(jaxrnn.unroll(cell(H), params, XS)[1]), expected)
        layer = getattr(modules, kind.replace("Simple", ""))(I, H, batch_first=True, rngs=nnx.Rngs(0))
        layer.load((params,))
        assert_same(layer(first(XS))[0], expected)


@TABLE.row("`Sequential` of such layers, `StackedRNNCells`")
def _():
    import keras

    theirs = built(keras.Sequential([layer_of("GRU"), layer_of("LSTM", 2)]))
    net = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.lstm(2)])
    assert_same(first(net.unroll(params_in(theirs), XS)[1]), theirs(first(XS)))
    cells = keras.layers.StackedRNNCells([keras.layers.GRUCell(H), keras.layers.LSTMCell(2)])
    theirs = built(keras.layers.RNN(cells, return_sequences=True))
    assert_same(first(net.unroll(params_in(theirs), XS)[1]), theirs(first(XS)))


@TABLE.row("`return_sequences`, `return_state`")
def _():
    import keras

    for mask, lengths in ((None, None), (VALID.T, LENGTHS)):
        theirs = built(layer_of("LSTM", return_sequences=False, return_state=True))
        params = params_in(theirs)
        last, h, c = theirs(first(XS), mask=mask)
        states, ys = jaxrnn.stack([jaxrnn.lstm(H)]).unroll(params, XS, lengths=lengths)
        for got, wanted in ((jaxrnn.last_output(ys, lengths), last), (states[-1].h, h), (states[-1].c, c)):
            assert_same(got, wanted)
        if lengths is None:
            assert_same(ys[-1], last)
        both = built(keras.layers.Bidirectional(layer_of("LSTM", return_sequences=False, return_state=True)))
        last, *ends = both(first(XS), mask=mask)
        states, ys = jaxrnn.stack([jaxrnn.lstm(H)], bidirectional=True).unroll(params_in(both), XS, lengths=lengths)
        assert_same(jaxrnn.last_output(ys, lengths, bidirectional=True), last)
        for got, wanted in zip(jax.tree.leaves(states[-1]), ends, strict=True):
            assert_same(got, wanted)
        assert np.abs(np.asarray(jaxrnn.last_output(ys, lengths)) - np.asarray(last)).max() > 0.01  # another value


@TABLE.row("inputs `(B, T, I)`")
def _():
    theirs = built(layer_of("GRU"))
    _, ys = jaxrnn.unroll(jaxrnn.gru(H), params_in(theirs)[0], XS)
    assert ys.shape == (T, B, H)
    for k in range(B):
        assert_same(ys[:, k], theirs(XS[None, :, k])[0])


@TABLE.row("`Masking`, `mask=`")
def _():
    import keras

    holes = np.random.default_rng(3).random((T, B)) < 0.6
    layer = built(layer_of("GRU", return_state=True))
    net, params = jaxrnn.stack([jaxrnn.gru(H)]), params_in(layer)
    for mask, options in ((holes, {"mask": holes}), (VALID, {"lengths": LENGTHS}), (VALID, {"mask": VALID})):
        expected, h = layer(first(XS), mask=mask.T)
        states, ys = net.unroll(params, XS, **options)
        assert_same(np.asarray(ys)[mask], first(expected)[mask])
        assert not np.asarray(ys)[~mask].any()
        assert_same(states[-1], h)
    model = keras.Sequential([keras.layers.Masking(), layer_of("GRU", return_sequences=False)])
    model.build((None, T, I))
    model.set_weights(weights_of(layer))
    padded = np.where(VALID[..., None], XS, 0)
    assert_same(net.unroll(params, XS, lengths=LENGTHS)[0][-1], model(first(padded)))


@TABLE.row('`Bidirectional(layer, merge_mode="ave")`')
def _():
    import keras

    for theirs_name, merge in MERGES.items():
        theirs = built(keras.layers.Bidirectional(layer_of("GRU"), merge_mode=theirs_name))
        params = params_in(theirs)
        net = jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True, merge=merge)
        assert_same(first(net.unroll(params, XS)[1]), theirs(first(XS)))
        ys = np.asarray(net.unroll(params, XS, lengths=LENGTHS)[1])
        assert_same(ys[VALID], first(theirs(first(XS), mask=VALID.T))[VALID])
        ends = keras.layers.Bidirectional(layer_of("GRU", return_sequences=False), merge_mode=theirs_name)
        ends.build((None, T, I))
        ends.set_weights(weights_of(theirs))
        joined = jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True)
        last = jaxrnn.last_output(joined.unroll(params, XS)[1], bidirectional=True)
        forward, backward = jnp.split(last, 2, axis=-1)
        merged = {"concat": last, "sum": forward + backward, "mul": forward * backward, "ave": (forward + backward) / 2}
        assert_same(merged[theirs_name], ends(first(XS)))


@TABLE.row("`go_backwards=True`")
def _():
    theirs = built(layer_of("LSTM", go_backwards=True))
    (params,) = params_in(theirs)
    state, ys = jaxrnn.unroll(jaxrnn.lstm(H), params, XS, reverse=True)
    assert_same(first(ys)[:, ::-1], theirs(first(XS)))
    last = layer_of("LSTM", go_backwards=True, return_sequences=False)
    last.build((None, T, I))
    last.set_weights(weights_of(theirs))
    assert_same(ys[0], last(first(XS)))
    assert_same(state.h, last(first(XS)))


@TABLE.row("`stateful=True`, `reset_states()`")
def _():
    theirs = built(layer_of("GRU", stateful=True), time=3, batch=B)
    net, params = jaxrnn.stack([jaxrnn.gru(H)]), params_in(theirs)
    chunks, states = [XS[:3], XS[3:]], net.initial_state((B,))
    for xs in chunks:
        states, ys = net.unroll(params, xs, states)
        assert_same(first(ys), theirs(first(xs)))
    theirs.reset_states()
    expected = [first(theirs(first(chunks[0])))]
    theirs.reset_states()
    expected.append(first(theirs(first(chunks[1]))))
    resets = np.zeros((T, B), bool)
    resets[3] = True
    assert_same(net.unroll(params, XS, resets=resets)[1], np.concatenate(expected))
    resets[3, 1:] = False  # of one sequence
    ys = np.asarray(net.unroll(params, XS, resets=resets)[1])
    assert_same(ys[:, 0], np.concatenate(expected)[:, 0])
    assert_same(ys[:, 1:], net.unroll(params, XS)[1][:, 1:])


def multiples(ys, plain, kept):
    """Which entries are kept; raises unless each is zero, or that of `plain` times 1 / `kept`."""
    ys, plain = np.asarray(ys), np.asarray(plain)
    is_kept = ys != 0
    np.testing.assert_allclose(ys[is_kept], (plain / kept)[is_kept], rtol=1e-5, atol=1e-6)
    assert 0 < is_kept.mean() < 1
    return is_kept


@TABLE.row("`dropout=`, `recurrent_dropout=`")
def _():
    """h_t = x_t + h_{t-1} of the units and features that are kept, and no others, shows the masks."""
    size, rate = 40, 0.25
    cell = jaxrnn.rnn(size, activation=lambda a: a)
    eye, none = np.eye(size, dtype="float32"), np.zeros((size, size), "float32")
    xs = drawn(2, T, B, size, dtype=np.float32)
    layer = layer_of("SimpleRNN", size, activation=None, use_bias=False, dropout=rate)
    layer.build((None, T, size))
    layer.set_weights([eye, none])
    noisy = jaxrnn.regularize(cell, input_dropout=rate)
    params = jaxrnn.RNNParams(eye, none, np.zeros(size, "float32"))
    for ys in (first(layer(first(xs), training=True)), jaxrnn.unroll(noisy, params, xs, key=KEY)[1]):
        kept = multiples(ys, xs, 1 - rate)
        assert (kept == kept[:1]).all()  # one mask for all steps
        assert (kept[0, 0] != kept[0, 1]).any()  # another for each sequence
    assert_same(jaxrnn.unroll(noisy, params, xs, key=None)[1], xs)
    layer = layer_of("SimpleRNN", size, activation=None, use_bias=False, recurrent_dropout=rate)
    layer.build((None, T, size))
    layer.set_weights([eye, eye])
    noisy = jaxrnn.regularize(cell, recurrent_dropout=rate)
    params = params._replace(w_h=eye)
    start = np.concatenate([xs[:1], np.zeros_like(xs[1:])])
    for ys in (first(layer(first(start), training=True)), jaxrnn.unroll(noisy, params, start, key=KEY)[1]):
        powers = np.asarray(ys)
        np.testing.assert_allclose(powers[0], xs[0], rtol=1e-6)
        kept = [multiples(powers[t], xs[0], (1 - rate) ** t) for t in range(1, T)]
        assert all((mask == kept[0]).all() for mask in kept)
        assert (kept[0][0] != kept[0][1]).any()
    of_gates = layer_of("LSTM", recurrent_dropout=rate).cell.get_recurrent_dropout_mask(xs[0])
    assert len({np.asarray(mask).tobytes() for mask in of_gates}) == 4
    noisy = jaxrnn.regularize(jaxrnn.lstm(H), recurrent_dropout=rate)
    sampled, _ = noisy.sample(KEY, noisy.init(KEY, I), XS)
    assert sampled.w_h.keep.shape == (B, H)


@TABLE.row("a `Dropout` layer between")
def _():
    """The second layer passes on what it reads."""
    import keras

    size, rate = 40, 0.25
    eye, none = np.eye(size, dtype="float32"), np.zeros((size, size), "float32")
    above = jaxrnn.rnn(size, activation=lambda a: a)
    net, below = jaxrnn.stack([jaxrnn.gru(size), above], dropout=rate), built(layer_of("GRU", size))
    params = (params_in(below)[0], jaxrnn.RNNParams(eye, none, np.zeros(size, "float32")))
    passing = layer_of("SimpleRNN", size, activation=None, use_bias=False)
    theirs = keras.Sequential([below, keras.layers.Dropout(rate), passing])
    theirs.build((None, T, I))
    passing.set_weights([eye, none])
    plain = below(first(XS))
    assert_same(first(net.unroll(params, XS, key=None)[1]), theirs(first(XS)))
    for ys in (theirs(first(XS), training=True), first(net.unroll(params, XS, key=KEY)[1])):
        kept = multiples(ys, plain, 1 - rate)
        assert (kept[:, :1] != kept).any()  # drawn anew at every step


@TABLE.row("`unit_forget_bias=True`")
def _():
    for is_one, cell in (
        (True, jaxrnn.lstm(H)),
        (False, jaxrnn.lstm(H, bias_init=jaxrnn.initializers.gate_bias())),
    ):
        theirs = layer_of("LSTM", unit_forget_bias=is_one)
        theirs.build((None, T, I))
        np.testing.assert_array_equal(cell.init(KEY, I).b, params_in(theirs)[0].b)
        assert bool(np.asarray(cell.init(KEY, I).b).any()) == is_one


@TABLE.row("`kernel_initializer`, `recurrent_initializer`")
def _():
    import keras

    of = jax.nn.initializers.constant
    options = {
        "kernel_initializer": keras.initializers.Constant(0.1),
        "recurrent_initializer": keras.initializers.Constant(0.2),
    }
    theirs = layer_of("LSTM", **options)
    theirs.build((None, T, I))
    cell = jaxrnn.lstm(H, kernel_init=of(0.1), recurrent_init=of(0.2))
    assert_same(first(jaxrnn.unroll(cell, cell.init(KEY, I), XS)[1]), theirs(first(XS)))
    size = 64
    drawn_by_us = jaxrnn.lstm(size).init(KEY, size)
    theirs = layer_of("LSTM", size)
    theirs.build((None, T, size))
    (drawn_by_keras,) = params_in(theirs)
    for params, fan_out in ((drawn_by_us, size), (drawn_by_keras, 4 * size)):
        limit = (6 / (size + fan_out)) ** 0.5  # Glorot's, of one gate here, of all gates in Keras
        assert 0.97 * limit < np.abs(np.asarray(params.w_x)).max() <= limit
    gates = np.split(np.asarray(drawn_by_us.w_h), 4, -1)
    for w in gates:
        np.testing.assert_allclose(w.T @ w, np.eye(size), atol=1e-5)
    w = np.asarray(drawn_by_keras.w_h)
    np.testing.assert_allclose(w @ w.T, np.eye(size), atol=1e-5)


@TABLE.row("`GRU(reset_after=True)`")
def _():
    for options in ({}, {"reset_after": True}, {"reset_after": False}):
        theirs = built(layer_of("GRU", **options))
        (params,) = params_in(theirs)
        assert_same(first(jaxrnn.unroll(jaxrnn.gru(H, **options), params, XS)[1]), theirs(first(XS)))
    assert jaxrnn.gru(H).config == jaxrnn.gru(H, reset_after=True).config


@TABLE.row("`activation=`, `recurrent_activation=`")
def _():
    leaky = jaxrnn.Activation("leaky_relu", 0.2)
    for theirs_too, ours in (("relu", "relu"), ("leaky_relu", leaky), ("linear", "identity"), (jnp.sin, jnp.sin)):
        theirs = built(layer_of("SimpleRNN", activation=theirs_too))
        cell = jaxrnn.rnn(H, activation=ours)
        assert_same(first(jaxrnn.unroll(cell, params_in(theirs)[0], XS)[1]), theirs(first(XS)))
    options = {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}
    for kind in ("LSTM", "GRU"):
        theirs = built(layer_of(kind, **options))
        cell = CELLS[kind](H, **options)
        assert_same(first(jaxrnn.unroll(cell, params_in(theirs)[0], XS)[1]), theirs(first(XS)))
    before = jaxrnn.Activation("hard_sigmoid", 0.2, 0.5)
    assert before(jnp.array([-3.0, -1.0, 0.0, 5.0])) == pytest.approx([0, 0.3, 0.5, 1])


@TABLE.row("`RNN(cell)` around your own cell")
def _():
    import keras

    class Minimal(keras.layers.Layer):
        state_size = H

        def build(self, shape):
            self.kernel = self.add_weight(shape=(I, H), initializer="glorot_uniform")

        def call(self, x, states):
            h = 0.9 * states[0] + keras.ops.sin(keras.ops.matmul(x, self.kernel))
            return h, [h]

    theirs = keras.layers.RNN(Minimal(), return_sequences=True)
    theirs.build((None, T, I))

    def step(w, h, x):
        h = 0.9 * h + jnp.sin(x @ w)
        return h, h

    cell = jaxrnn.Cell(
        lambda key, size: jax.random.normal(key, (size, H)), lambda batch=(), dtype=None: jnp.zeros((*batch, H)), step
    )
    assert_same(first(jaxrnn.unroll(cell, jnp.asarray(theirs.cell.kernel), XS)[1]), theirs(first(XS)))


@TABLE.row("`TimeDistributed(Dense(n))`")
def _():
    import keras

    theirs, layer = built(layer_of("GRU")), keras.layers.TimeDistributed(keras.layers.Dense(2))
    expected = built(layer, size=H)(theirs(first(XS)))
    w, b = weights_of(layer)
    _, ys = jaxrnn.unroll(jaxrnn.gru(H), params_in(theirs)[0], XS)
    assert_same(first(ys @ w + b), expected)


@TABLE.row("`layer.weights`")
def _():
    for kind, cell in CELLS.items():
        theirs = built(layer_of(kind))
        (params,) = params_in(theirs)
        kernel = weights_of(theirs)[0]
        if kind == "GRU":
            z, r, n = np.split(kernel, 3, -1)
            np.testing.assert_array_equal(params.w_x, np.concatenate([r, z, n], -1))
        else:
            np.testing.assert_array_equal(params.w_x, kernel)
        own = params_of(jaxrnn.stack([cell(H)]), 3, dtype=jnp.float32)
        theirs.set_weights(list(interop.to_keras(own).values()))
        assert_same(first(jaxrnn.unroll(cell(H), own[0], XS)[1]), theirs(first(XS)))

    gates = {
        "recurrent_activation": "hard_sigmoid"
    }  # which differs by more than rounding, and only the configuration tells
    theirs = built(layer_of("GRU", **gates))
    assert_same(first(jaxrnn.unroll(jaxrnn.gru(H, **gates), params_in(theirs)[0], XS)[1]), theirs(first(XS)))
    alone = first(jaxrnn.unroll(jaxrnn.gru(H), params_in(theirs)[0], XS)[1])
    assert np.abs(alone - theirs(first(XS))).max() > 0.01


@TABLE.row("a layer, a `Sequential`, `.keras`, `.h5`")
def _():
    import keras

    layer = built(layer_of("GRU", reset_after=False, activation="softsign", name="gru"))
    model = keras.Sequential([keras.layers.Input((None, I)), layer, keras.layers.Dense(2)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        for source, prefix in ((layer, ""), (model, "gru"), (path, "gru")):
            network, params = interop.from_keras(source, prefix)
            assert repr(network) == f"stack([gru({H}, reset_after=False, activation='softsign')])"
            assert_same(first(network.unroll(params, XS)[1]), layer(first(XS)))


@TABLE.row("`model.save`, `load_model`")
def _():
    import keras

    theirs = keras.Sequential([keras.Input((T, I)), layer_of("GRU"), layer_of("LSTM", 2)])
    net, params = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.lstm(2)]), params_in(theirs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save(Path(folder) / "model.keras")
        jaxrnn.save(Path(folder) / "net", net, params)
        again = keras.models.load_model(Path(folder) / "model.keras")
        loaded, back = jaxrnn.load(Path(folder) / "net")
    assert_same(first(loaded.unroll(back, XS)[1]), again(first(XS)))
