"""Noise in the recurrence: gradients, statistics, and calls without a key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.programs import ALL, NONE, by_hand, cotangents_of, differentiated, operands_of
from tests.support.registry import (
    SCENARIOS,
    H,
    assert_close,
    assert_equal,
    cell_of,
    gap,
    make,
    of_cell,
    quick_jit,
    run,
)

# Keys of a generator with a small program. The tests of statistics use the default one.
KEYS = [jax.random.key(k, impl="unsafe_rbg") for k in (3, 4)]
KEY = jax.random.key(3)
EVERY = {"input_dropout": 0.3, "recurrent_dropout": 0.4, "dropconnect": 0.2, "zoneout": 0.3}
names = ["lstm", "lstm-all", "gru-reset-before", "gru-layer-norm", "indrnn"]


@pytest.mark.parametrize("name", [of_cell(name) for name in names])
def test_gradients_with_all_noise_equal_autodiff(name, x64):
    """Masks, resets, truncation and every noise at once, with one key for "bptt" and the plain scan."""
    cell = jaxrnn.regularize(cell_of(name), **EVERY)
    assert_close(*(
        differentiated(cell, implementation, truncate=4)(
            operands_of(name), *SCENARIOS["mask-resets"].values(), cotangents_of(name), KEYS[0]
        )
        for implementation in ("bptt", "scan")
    ))  # fmt: skip


@pytest.mark.parametrize("noise", EVERY)
@pytest.mark.parametrize("name", [of_cell("lstm"), of_cell("gru")])
def test_each_noise_alone_equals_autodiff_and_the_python_loop(name, noise, x64):
    cell = jaxrnn.regularize(cell_of(name), **{noise: EVERY[noise]})
    operands, cotangents = operands_of(name), cotangents_of(name)
    compiled, by_scan = (differentiated(cell, implementation, reverse=True) for implementation in ("bptt", "scan"))
    noisy, again, other = (compiled(operands, ALL, NONE, cotangents, key) for key in (KEYS[0], *KEYS))
    assert_close(noisy, by_scan(operands, ALL, NONE, cotangents, KEYS[0]))
    assert_equal(noisy, again)
    assert gap(other[0], noisy[0]) > 1e-3
    assert gap(by_hand(name, operands, cotangents, reverse=True)[0], noisy[0]) > 1e-3
    case = make(name)._replace(cell=cell._replace(step=quick_jit(cell.step)))
    loop = run(case, implementation="reference", reverse=True, return_states=True, key=KEYS[0])
    assert_close(noisy[0], loop)


def test_dropout_without_a_key_and_a_key_without_dropout_change_nothing(x64):
    case = make("gru")
    cell = jaxrnn.regularize(case.cell, input_dropout=0.3, recurrent_dropout=0.4, dropconnect=0.2)
    assert_equal(run(case._replace(cell=cell)), run(case), run(case, key=KEY))


def test_zoneout_without_a_key_computes_the_mean(x64):
    case = make("lstm", (), 1)
    cell = jaxrnn.regularize(case.cell, zoneout=jaxrnn.LSTMState(h=0.25, c=0.5))
    (h, c), _ = case.cell.step(case.params, case.state, case.xs[0])
    final, ys = run(case._replace(cell=cell))
    np.testing.assert_allclose(final.h, 0.25 * case.state.h + 0.75 * h, rtol=1e-12)
    np.testing.assert_allclose(final.c, 0.5 * case.state.c + 0.5 * c, rtol=1e-12)
    np.testing.assert_array_equal(ys[0], final.h)


# A linear cell, h_t = x_t w_x + h_{t-1} w_h. SEES copies its input, KEEPS its state, so that outputs show the noise.
LINEAR = jaxrnn.rnn(1, activation=lambda a: a, use_bias=False)
SEES = jaxrnn.RNNParams(jnp.ones((1, 1)), jnp.zeros((1, 1)))
KEEPS = jaxrnn.RNNParams(jnp.zeros((1, 1)), jnp.ones((1, 1)))


def test_input_dropout_is_constant_in_time_and_keeps_the_mean():
    cell = jaxrnn.regularize(LINEAR, input_dropout=0.25)
    _, ys = jaxrnn.unroll(cell, SEES, jnp.ones((5, 40_000, 1)), key=KEY)
    ys = np.asarray(ys[..., 0])
    assert (ys == ys[0]).all()
    assert set(np.unique(ys)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (ys[0] > 0).mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 40_000))
    assert ys.mean() == pytest.approx(1.0, abs=0.02)


def test_recurrent_dropout_drops_the_same_units_at_every_step():
    cell = jaxrnn.regularize(LINEAR, recurrent_dropout=0.5)
    _, ys = jaxrnn.unroll(cell, KEEPS, jnp.zeros((3, 40_000, 1)), jnp.ones((40_000, 1)), key=KEY)
    ys = np.asarray(ys[..., 0])
    assert (ys[0] > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / 200)
    for t in range(3):  # a kept unit doubles at every step, a dropped one is 0
        np.testing.assert_array_equal(ys[t], np.where(ys[0] > 0, 2.0 ** (t + 1), 0.0))


def test_dropconnect_draws_one_matrix_for_all_sequences():
    cell = jaxrnn.rnn(200, activation=lambda a: a, use_bias=False)
    params = jaxrnn.RNNParams(jnp.zeros((1, 200)), jnp.ones((200, 200)))
    dropped = jaxrnn.regularize(cell, dropconnect=0.4)
    _, ys = jaxrnn.unroll(dropped, params, jnp.zeros((1, 3, 1)), jnp.ones((3, 200)), key=KEY)
    ys = np.asarray(ys[0])
    np.testing.assert_array_equal(ys[0], ys[1])
    kept = ys[0] * 0.6 / 200  # the fraction of each column that was kept
    assert kept.mean() == pytest.approx(0.6, abs=0.01)
    assert kept.std() == pytest.approx(np.sqrt(0.6 * 0.4 / 200), rel=0.2)


def test_zoneout_draws_anew_at_every_step():
    cell = jaxrnn.regularize(LINEAR, zoneout=0.3)
    time, batch = 4, 20_000
    xs = jnp.broadcast_to(jnp.arange(1.0, time + 1)[:, None, None], (time, batch, 1))
    _, ys = jaxrnn.unroll(cell, SEES, xs, key=KEY)
    held = np.asarray(ys[..., 0]) != np.arange(1, time + 1)[:, None]
    np.testing.assert_allclose(held.mean(1), 0.3, atol=4 * np.sqrt(0.3 * 0.7 / batch))
    assert abs(np.corrcoef(held[1], held[2])[0, 1]) < 0.03
    mean = np.asarray(jaxrnn.unroll(cell, SEES, xs, key=None)[1])[:, 0, 0]
    np.testing.assert_allclose(np.asarray(ys)[..., 0].mean(1), mean, atol=0.05)


def test_zoneout_of_lstm_has_separate_rates_for_h_and_c():
    case = make("lstm", (5000,), 1)
    cell = jaxrnn.regularize(case.cell, zoneout=jaxrnn.LSTMState(h=0.0, c=0.5))
    state = jaxrnn.LSTMState(*(jnp.full((5000, H), 9.0),) * 2)
    final, _ = jaxrnn.unroll(cell, case.params, case.xs, state, key=KEY)
    assert not (np.asarray(final.h) == 9).any()
    assert (np.asarray(final.c) == 9).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("rates", "error", "message"), [
    ({"input_dropout": 1.0}, ValueError, r"regularize: input_dropout expected a rate in \[0, 1\), got 1.0"),
    ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout expected a rate"),
    ({"dropconnect": float("nan")}, ValueError, "dropconnect expected a rate"),
    ({"zoneout": 1}, ValueError, "zoneout expected a rate"),
    ({"zoneout": "0.1"}, TypeError, "zoneout expected a number"),
    ({"zoneout": (0.1, 0.2)}, TypeError, "zoneout expected a rate, or one for each part of LSTMState"),
    ({"input_dropout": True}, TypeError, "input_dropout expected a number"),
])  # fmt: skip
def test_bad_rates_are_refused(rates, error, message, unhooked):
    with pytest.raises(error, match=message):
        jaxrnn.regularize(jaxrnn.lstm(2), **rates)


def test_cell_without_a_rule_is_refused(unhooked):
    plain = jaxrnn.Cell(*jaxrnn.lstm(2)[:3])
    with pytest.raises(NotImplementedError, match="regularize: cell expected one with a rule"):
        jaxrnn.regularize(plain, zoneout=0.1)


@pytest.mark.parametrize("name", [of_cell("lstm"), of_cell("gru")])
def test_regularised_cell_keeps_its_noise(name, x64):
    """Noise of several kinds is that of one call, whichever way it was added."""
    case = make(name)
    cell = functools.reduce(lambda cell, kind: jaxrnn.regularize(cell, **{kind: EVERY[kind]}), EVERY, case.cell)
    at_once = jaxrnn.regularize(case.cell, **EVERY)
    for key in (None, KEY):
        assert_equal(run(case._replace(cell=cell), key=key), run(case._replace(cell=at_once), key=key))
    assert gap(run(case._replace(cell=cell), key=KEY), run(case)) > 1e-2


def test_rates_of_one_kind_are_those_of_two_draws():
    cell = jaxrnn.regularize(jaxrnn.regularize(LINEAR, input_dropout=0.25), input_dropout=0.5)
    ys = np.asarray(jaxrnn.unroll(cell, SEES, jnp.ones((1, 40_000, 1)), key=KEY)[1])
    assert set(np.unique(ys)) == {np.float32(0), np.float32(1 / (0.75 * 0.5))}
    assert (ys > 0).mean() == pytest.approx(0.75 * 0.5, abs=4 * 0.5 / 200)
    zoned = jaxrnn.regularize(jaxrnn.regularize(LINEAR, zoneout=0.25), zoneout=0.5)
    xs = jnp.ones((1, 40_000, 1))
    held = np.asarray(jaxrnn.unroll(zoned, SEES, xs, key=KEY)[1]) == 0  # the state before is 0
    assert held.mean() == pytest.approx(1 - 0.75 * 0.5, abs=4 * 0.5 / 200)
    np.testing.assert_allclose(jaxrnn.unroll(zoned, SEES, xs, key=None)[1], 0.75 * 0.5, rtol=1e-6)


def test_cell_with_noise_of_its_own_is_refused(unhooked):
    own = LINEAR._replace(sample=lambda key, params, xs: (params, xs + jax.random.normal(key, xs.shape)))
    with pytest.raises(NotImplementedError, match="regularize: cell .* draws noise of its own, which another would"):
        jaxrnn.regularize(own, zoneout=0.1)


def test_forgotten_key_of_a_cell_with_noise_warns():
    case = make("lstm")
    noisy, silent = jaxrnn.regularize(case.cell, zoneout=0.5), jaxrnn.regularize(case.cell)
    message = r"unroll: key was not given, so the noise of regularize\(lstm\(4\), zoneout=0.5\) is off; .*key=None to evaluate"
    with pytest.warns(UserWarning, match=message):
        forgotten = jaxrnn.unroll(noisy, case.params, case.xs)
    assert_equal(forgotten, jaxrnn.unroll(noisy, case.params, case.xs, key=None))
    assert_equal(jaxrnn.unroll(silent, case.params, case.xs), jaxrnn.unroll(case.cell, case.params, case.xs))
    nets = {"noisy": jaxrnn.stack([noisy]), "dropout": jaxrnn.stack([case.cell, jaxrnn.gru(2)], dropout=0.5)}
    for net in nets.values():
        params = net.init(jax.random.key(0), case.xs.shape[-1])
        with pytest.warns(UserWarning, match="stack.unroll: key was not given, so the noise of") as caught:
            net.unroll(params, case.xs)
        assert len(caught) == 1
        net.unroll(params, case.xs, key=None)  # a warning would be an error here
