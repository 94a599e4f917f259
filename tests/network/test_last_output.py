"""The last output of each sequence, of one direction and of two, against loops in Python, PyTorch and Keras."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import interop
from tests.support import in_numpy
from tests.support.peers import peer
from tests.support.registry import LENGTHS, TOLERANCE, B, T, assert_close, gap, make, random_like, run

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is first imported, or it looks for TensorFlow

I, H = 3, 4  # noqa: E741
SOME = LENGTHS > 0
CELLS = {"SimpleRNN": jaxrnn.rnn, "LSTM": jaxrnn.lstm, "GRU": jaxrnn.gru}
MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], -1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda f, b: (f + b) / 2,
}


def hidden(state):
    return state.h if hasattr(state, "h") else state


def two_ways(cell, layers=1, dtype=jnp.float64, seed=0):
    """A network of two directions, its parameters and inputs."""
    net = jaxrnn.stack([cell] * layers, bidirectional=True)
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = random_like(seed, shapes, dtype, scale=0.6)
    return net, params, random_like(seed + 1, jax.ShapeDtypeStruct((T, B, I), dtype), dtype)


@pytest.fixture
def default_promotion():
    """Other libraries do not run under the strict settings of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_last_output_is_read_at_each_length():
    ys = np.arange(1.0, 1 + T * B, dtype=np.float32).reshape(T, B, 1)
    last = jax.jit(jaxrnn.last_output)
    expected = [[ys[n - 1, k, 0] if n else 0] for k, n in enumerate(LENGTHS)]
    np.testing.assert_array_equal(jaxrnn.last_output(ys, LENGTHS), expected)
    np.testing.assert_array_equal(last(ys, LENGTHS + 100 * (LENGTHS == T)), expected)
    np.testing.assert_array_equal(jaxrnn.last_output(ys), ys[-1])
    assert not np.asarray(jaxrnn.last_output(ys[:0])).any()
    case = make("lstm")
    final, outputs = run(case, lengths=LENGTHS)
    assert_close(np.asarray(last(outputs, LENGTHS))[SOME], np.asarray(final.h)[SOME], "float32")
    gradient = jax.jit(jax.grad(lambda ys: jaxrnn.last_output(ys, LENGTHS).sum()))(ys)
    np.testing.assert_array_equal(np.sum(gradient, (0, 2)), 1.0 * SOME)


def test_two_directions_are_read_at_their_ends():
    ys = np.arange(1.0, 1 + T * B * 4, dtype=np.float32).reshape(T, B, 4)
    both = jax.jit(lambda ys, lengths=None: jaxrnn.last_output(ys, lengths, bidirectional=True))
    expected = [[*ys[n - 1, k, :2], *ys[0, k, 2:]] if n else [0] * 4 for k, n in enumerate(LENGTHS)]
    np.testing.assert_array_equal(both(ys, LENGTHS), expected)
    np.testing.assert_array_equal(both(ys, LENGTHS + 100 * (LENGTHS == T)), expected)
    np.testing.assert_array_equal(both(ys), np.concatenate([ys[-1, :, :2], ys[0, :, 2:]], -1))
    np.testing.assert_array_equal(both(ys[:, 0], np.int32(2)), [*ys[1, 0, :2], *ys[0, 0, 2:]])  # no batch
    assert both(ys[:0], 0 * LENGTHS).shape == (B, 4)
    assert not np.asarray(both(ys[:0])).any()
    gradient = np.asarray(jax.jit(jax.grad(lambda ys: both(ys, LENGTHS).sum()))(ys))
    counted = np.zeros_like(ys)
    for k, n in enumerate(LENGTHS):
        if n:
            counted[n - 1, k, :2] = counted[0, k, 2:] = 1
    np.testing.assert_array_equal(gradient, counted)


def last_in_numpy(cell, params, xs):
    """The last output of a network of two directions for one sequence, in NumPy."""
    start = jax.tree.map(np.asarray, cell.initial_state())
    for layer in params:
        ways = zip(layer, (False, True), strict=True)
        outputs = [
            in_numpy.unroll(str(cell).split("(")[0], own, xs, start, reverse=reverse)[1] for own, reverse in ways
        ]
        xs = np.concatenate(outputs, -1)
    return np.concatenate([xs[-1, :H], xs[0, H:]]) if len(xs) else np.zeros(2 * H)


@pytest.mark.parametrize("kind", CELLS)
def test_two_directions_end_in_their_final_states(kind, x64):
    cell = CELLS[kind](H)
    net, params, xs = two_ways(cell, layers=2)
    states, ys = net.unroll(params, xs, lengths=LENGTHS)
    last = np.asarray(jaxrnn.last_output(ys, LENGTHS, bidirectional=True))
    ends = np.concatenate([hidden(states[-1].forward), hidden(states[-1].backward)], -1)
    np.testing.assert_array_equal(last, np.where(SOME[:, None], ends, 0))
    expected = [last_in_numpy(cell, params, np.asarray(xs)[:n, k]) for k, n in enumerate(LENGTHS)]
    assert gap(last, np.stack(expected)) <= TOLERANCE["float64"]


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_two_directions_end_as_in_torch(kind, x64):
    """PyTorch's h_n of packed sequences."""
    peer("torch")
    import torch

    cell = CELLS["SimpleRNN" if kind == "RNN" else kind](H)
    net, params, xs = two_ways(cell, layers=2)
    theirs = getattr(torch.nn, kind)(I, H, 2, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict({name: torch.from_numpy(w) for name, w in interop.to_torch(params).items()})
    xs, some = torch.from_numpy(np.array(xs)), np.flatnonzero(LENGTHS)  # PyTorch refuses a length of 0
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs[:, some], LENGTHS[some], enforce_sorted=False)
    for given, lengths, at in ((packed, LENGTHS, some), (xs, None, slice(None))):
        h_n = theirs(given)[1]
        h_n = h_n[0] if kind == "LSTM" else h_n
        _, ys = net.unroll(params, xs.numpy(), lengths=lengths)
        last = np.asarray(jaxrnn.last_output(ys, lengths, bidirectional=True))
        assert gap(last[at], torch.cat([h_n[-2], h_n[-1]], -1).detach().numpy()) <= TOLERANCE["float64"]


@pytest.mark.peers
@pytest.mark.parametrize("mode", MERGES)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.usefixtures("default_promotion")
def test_two_directions_end_as_in_keras(kind, mode):
    """Keras without `return_sequences`; `merge_mode` merges the ends, so we merge the halves."""
    peer("keras")
    import keras

    net, params, xs = two_ways(CELLS[kind](H), dtype=jnp.float32)
    theirs = keras.layers.Bidirectional(getattr(keras.layers, kind)(H), merge_mode=mode)
    theirs.build((None, T, I))
    theirs.set_weights(list(interop.to_keras(params).values()))
    mask = np.arange(T) < LENGTHS[:, None]
    for lengths, options in ((LENGTHS, {"mask": jnp.asarray(mask)}), (None, {})):
        expected = np.asarray(theirs(jnp.swapaxes(xs, 0, 1), **options))
        _, ys = net.unroll(params, xs, lengths=lengths)
        last = jaxrnn.last_output(ys, lengths, bidirectional=True)
        forward, backward = np.split(np.asarray(last), 2, axis=-1)
        assert gap(MERGES[mode](forward, backward), expected) <= TOLERANCE["float32"]


REFUSED = {
    "rank": (lambda: jaxrnn.last_output(jnp.ones(3)), ValueError, "last_output: ys expected shape"),
    "lengths": (lambda: jaxrnn.last_output(jnp.ones((3, 2, 1)), np.asarray([4, 0])), ValueError,
                "last_output: lengths expected values from 0 to T = 3, got 4"),
    "odd": (lambda: jaxrnn.last_output(jnp.ones((3, 2, 5)), bidirectional=True), ValueError,
            "last_output: ys expected two halves on its last axis, .*, got 5 entries; is it of one direction, or merged by"),
    "integer": (lambda: jaxrnn.last_output(jnp.ones((3, 2, 4)), bidirectional=1), TypeError,
                "last_output: bidirectional expected True or False, got int 1"),
    "integers": (lambda: jaxrnn.last_output(jnp.ones((3, 2, 4), int)), TypeError, "last_output: ys expected a floating-point array"),
    "states": (lambda: jaxrnn.last_output((jnp.ones((3, 2, 4)),)), TypeError, "last_output: ys expected an array"),
    "traced": (lambda: jax.jit(lambda b: jaxrnn.last_output(jnp.ones((3, 2, 4)), bidirectional=b))(True), TypeError,
               "last_output: bidirectional expected True or False"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case, unhooked):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()
