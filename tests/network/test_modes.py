"""The seven modes of a recurrent network, each as the call that a user writes, against a loop in NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support import in_numpy
from tests.support.programs import TOLERANCE_OF_SLOPE, slope
from tests.support.registry import LENGTHS, B, H, I, T, assert_close, numpy_of, random_like

WORDS = 5
SOME = LENGTHS > 0
VALID = np.arange(T)[:, None] < LENGTHS


def random_params(seed, model, features=I):
    shapes = jax.eval_shape(lambda key: model.init(key, features), jax.random.key(0))
    return random_like(seed, shapes, jnp.float64, scale=0.6)


def zeros(size=H):
    return np.zeros((B, size))


@pytest.fixture
def xs(x64):
    return random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)


def test_one_to_one_is_one_step(xs):
    """Each input has one output, which depends on no other input."""
    cell = jaxrnn.gru(H)
    params = random_params(0, cell)
    state, y = cell.step(params, cell.initial_state((B,), jnp.float64), xs[0])
    assert_close((state, y), in_numpy.step("gru", params, zeros(), xs[0]))


@pytest.mark.parametrize("draws", [False, True], ids=["most probable", "sampled"])
def test_one_to_many_is_generation(draws, x64):
    """From one input, each output determines the next input."""
    net = jaxrnn.stack([jaxrnn.gru(H)])
    params = random_params(0, net, WORDS)
    read_out = random_like(3, jax.ShapeDtypeStruct((H, WORDS), jnp.float64), jnp.float64)
    start = jax.nn.one_hot(np.arange(B) % WORDS, WORDS, dtype=jnp.float64)

    def next_word(y, key):
        logits = y @ read_out
        words = jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits)
        return jax.nn.one_hot(words, WORDS, dtype=jnp.float64)

    key = jax.random.key(2) if draws else None
    initial = net.initial_state((B,), jnp.float64)
    states, ys, words = jaxrnn.generate(net, params, initial, start, next_word, T, key, return_inputs=True)
    state, x = zeros(), np.asarray(start)
    for t in range(T):
        state, y = in_numpy.step("gru", params[0], state, x)
        assert_close(ys[t], y)
        # A drawn word is any; the most probable one follows from the output.
        x = np.asarray(words[t]) if draws else np.eye(WORDS)[np.argmax(y @ np.asarray(read_out), -1)]
        np.testing.assert_array_equal(words[t], x)
        np.testing.assert_array_equal(np.sort(x), np.eye(WORDS)[np.full(B, WORDS - 1)])  # one word each
    assert_close(states, (state,))
    assert len(np.unique(np.argmax(words, -1), axis=0)) > 1  # the words of all steps are not the same


def test_many_to_one_is_the_last_output_of_each_sequence(xs):
    net = jaxrnn.stack([jaxrnn.lstm(H)])
    params = random_params(0, net)
    states, ys = net.unroll(params, xs, lengths=LENGTHS)
    label = jaxrnn.last_output(ys, LENGTHS)
    for k, length in enumerate(LENGTHS):
        start = jaxrnn.LSTMState(np.zeros(H), np.zeros(H))
        final, _, _ = in_numpy.unroll("lstm", params[0], xs[:length, k], start)
        assert_close((label[k], states[0].h[k]), (final.h, final.h))


def test_aligned_many_to_many_is_one_output_for_each_input(xs):
    net = jaxrnn.stack([jaxrnn.rnn(H)])
    params = random_params(0, net)
    _, ys = net.unroll(params, xs, lengths=LENGTHS)
    assert_close(ys, in_numpy.unroll("rnn", params[0], xs, zeros(), mask=VALID)[1])


def test_bidirectional_reads_each_sequence_from_both_ends(xs):
    net = jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True)
    params = random_params(0, net)
    _, ys = net.unroll(params, xs, lengths=LENGTHS)
    label = jaxrnn.last_output(ys, LENGTHS, bidirectional=True)
    ahead, back = (
        in_numpy.unroll("gru", way, xs, zeros(), mask=VALID, reverse=bool(k)) for k, way in enumerate(params[0])
    )
    assert_close(ys, np.concatenate([ahead[1], back[1]], -1))
    assert_close(label, np.concatenate([ahead[0], back[0]], -1))


def test_deep_network_reads_the_outputs_of_the_layer_below(xs):
    net = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.rnn(H - 1), jaxrnn.gru(H)])
    params = random_params(0, net)
    states, ys = net.unroll(params, xs, lengths=LENGTHS)
    out, finals = numpy_of(xs), []
    for kind, own, size in zip(("gru", "rnn", "gru"), params, (H, H - 1, H), strict=True):
        final, out, _ = in_numpy.unroll(kind, own, out, zeros(size), mask=VALID)
        finals.append(final)
    assert_close((states, ys), (tuple(finals), out))


# The encoder-decoder


def encoder_decoder():
    """Encoder, decoder, their parameters with those of the read-out, and the target as one-hot words."""
    encoder, decoder = jaxrnn.stack([jaxrnn.gru(H)]), jaxrnn.stack([jaxrnn.gru(H)])
    read_out = random_like(3, jax.ShapeDtypeStruct((H, WORDS), jnp.float64), jnp.float64)
    params = {"encoder": random_params(0, encoder), "decoder": random_params(4, decoder, WORDS), "read_out": read_out}
    target = np.eye(WORDS)[np.random.default_rng(5).integers(0, WORDS, (T + 1, B))]  # the first word is the start
    return encoder, decoder, params, target


def cost_of(encoder, decoder, params, xs, target):
    """The mean cross-entropy with teacher forcing: the decoder reads the target one step late."""
    meaning, _ = encoder.unroll(params["encoder"], xs, lengths=LENGTHS)
    _, ys = decoder.unroll(params["decoder"], target[:-1], meaning)
    return -jnp.mean(jnp.sum(target[1:] * jax.nn.log_softmax(ys @ params["read_out"]), -1))


def cost_in_numpy(params, xs, target):
    params = in_numpy.as_float64(params)
    meaning, _, _ = in_numpy.unroll("gru", params["encoder"][0], xs, zeros(), mask=VALID)
    _, ys, _ = in_numpy.unroll("gru", params["decoder"][0], target[:-1], meaning)
    logits = ys @ params["read_out"]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(target[1:] * logits).sum(-1).mean()


def test_encoder_decoder_costs_what_a_loop_in_numpy_costs(xs):
    *nets, params, target = encoder_decoder()
    cost = cost_of(*nets, params, xs, target)
    np.testing.assert_allclose(cost, cost_in_numpy(params, xs, target), rtol=1e-13)
    assert abs(cost - np.log(WORDS)) > 0.1  # a read-out of zeros would cost that, whatever the encoder says


def test_decoder_starts_from_what_the_encoder_read(xs):
    """An input of a sequence changes that sequence's cost, unless it is padding."""
    *nets, params, target = encoder_decoder()
    by_input = np.abs(jax.grad(lambda xs: cost_of(*nets, params, xs, target))(xs)).max(-1)
    assert by_input[VALID].min() > 1e-6
    assert by_input[~VALID].max() == 0


@pytest.mark.parametrize("field", ["w_x", "w_h", "b", "b_hn"])
def test_gradients_of_the_encoder_equal_finite_differences(field, xs):
    """The cost reaches the encoder through the decoder's initial state alone."""
    *nets, params, target = encoder_decoder()
    gradient = jax.grad(lambda params: cost_of(*nets, params, xs, target))(params)["encoder"][0]
    found = np.asarray(getattr(gradient, field))
    assert np.abs(found).max() > 1e-3
    value, rng = np.asarray(getattr(params["encoder"][0], field)), np.random.default_rng(6)
    for _ in range(3):
        direction = rng.standard_normal(value.shape)

        def along(h, direction=direction):
            moved = params["encoder"][0]._replace(**{field: value + h * direction})
            return cost_in_numpy({**params, "encoder": (moved,)}, xs, target)

        expected = slope(along)
        assert abs(expected) > 1e-4
        # A cost of about 2 is rounded to 4e-16, which divided by the step of 2e-4 is 2e-12.
        np.testing.assert_allclose(np.vdot(found, direction), expected, rtol=TOLERANCE_OF_SLOPE, atol=4e-12)
