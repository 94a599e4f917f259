"""The experiment `gradient_flow`: its task, measures against hand computations, claims, results and refusals."""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.gradient_flow import claims, clipping, gain, measure, powers, tables, task
from experiments.gradient_flow.clipping import Change
from experiments.gradient_flow.markdown import tables as tables_of
from experiments.models.readout import Readout

EXACT = 1e-9  # float64, products of some tens of steps


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax does not run under strict promotion, and the threads of a run ignore context managers."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def linear(hidden_size):
    return jaxrnn.rnn(hidden_size, activation=lambda a: a)


# ---- the task


def test_symbol_appears_only_at_the_first_step():
    labels = jnp.array([2, 0, 3])
    xs = np.asarray(task.sequences(jax.random.key(0), labels, 400))
    np.testing.assert_array_equal(xs[:, 0, :4], np.eye(4)[[2, 0, 3]])
    assert not xs[:, 1:, :4].any()
    assert abs(xs[..., 4].mean()) < 0.1
    assert abs(xs[..., 4].std() - 1) < 0.1


def test_lengths_are_log_uniform():
    labels, lengths = task.sequence_batch(500, 4000, False, seed=3, step=1)
    assert (lengths.min(), lengths.max()) == (2, 500)
    for quarter in (0.25, 0.5, 0.75):  # quartiles of log-uniform lengths from 2 to 500
        assert np.mean(lengths < 2 * (501 / 2) ** quarter) == pytest.approx(quarter, abs=0.05)
    assert set(labels) == {0, 1, 2, 3}
    again = task.sequence_batch(500, 4000, False, seed=3, step=1)
    np.testing.assert_array_equal(again[1], lengths)
    assert not np.array_equal(task.sequence_batch(500, 4000, False, seed=3, step=2)[1], lengths)
    np.testing.assert_array_equal(task.sequence_batch(7, 5, True, seed=0, step=0)[1], [7] * 5)


def remembers():
    """A linear network whose state keeps the symbol."""
    w_x = jnp.eye(5, 4)
    return linear(4), Readout(jaxrnn.RNNParams(w_x, jnp.eye(4), jnp.zeros(4)), 9 * jnp.eye(4), jnp.zeros(4))


def test_remembering_network_has_the_expected_error_and_loss():
    cell, model = remembers()
    error = jax.jit(functools.partial(task.test_error, cell, 12))
    assert float(error(model)) == 0
    labels, lengths = jnp.array([1, 3]), jnp.array([12, 5])
    loss = jax.jit(functools.partial(task.cross_entropy, cell, 12))(model, labels, lengths, jax.random.key(0))
    assert float(loss) == pytest.approx(math.log(1 + 3 * math.exp(-9)), rel=1e-3)
    forgets = model._replace(cell=model.cell._replace(w_h=jnp.zeros((4, 4))))
    assert float(error(forgets)) == pytest.approx(0.75)


# ---- measures of norms by step


def test_slope_is_the_median_over_sequences():
    back = np.arange(9, -1, -1.0)[:, None]  # T - t
    logs = back * np.array([-0.5, -0.3, 0.2]) + np.array([1.0, -2, 5])
    assert measure.slope(logs) == pytest.approx(-0.3)
    logs[:4, 0] = -np.inf  # this gradient vanishes on its way back
    assert measure.slope(logs[:, :1]) == pytest.approx(-0.5)
    assert math.isnan(measure.slope(np.full((5, 2), -np.inf)))


def test_largest_growth_is_over_one_backward_step():
    logs = np.array([[-np.inf, 3.0], [2.0, 2.5], [1.9, 4.0]])
    assert measure.largest_growth(logs) == pytest.approx(0.5)
    assert measure.largest_growth(logs[:, :1]) == pytest.approx(0.1)


def test_shares_measure_the_last_tenth_and_ninety_percent():
    weights = np.array([1.0] * 18 + [2.0, 10.0])
    share, count = measure.shares(np.log(weights) + 800)
    assert share == pytest.approx(12 / 30)
    assert count == 17  # 10 + 2 + 15 = 27 of 30
    assert measure.shares(np.log(weights[::-1]))[0] == pytest.approx(2 / 30)


def test_rest_of_gradient_excludes_the_last_tenth():
    contributions = np.zeros((20, 2, 2))
    contributions[0, 0, 0], contributions[17, 0, 0], contributions[18, 1, 1] = 1e200, 2e200, 4e200
    log_norm, rest = measure.rest_of_gradient(contributions)
    assert log_norm == pytest.approx(math.log(5) + 200 * math.log(10))
    assert rest == pytest.approx(3 / 5)


@pytest.fixture(scope="module")
def measured():
    """Measures of a linear network whose W_h is 0.8 times an orthogonal matrix, at T = 40."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    arrays: Any = rng.standard_normal((5, 4)), 0.8 * q, np.zeros(4), rng.standard_normal((4, 4)), np.zeros(4)
    model = Readout(jaxrnn.RNNParams(*arrays[:3]), *arrays[3:])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return model, measure.measure(linear(4), model, 40, 8, seed=5)


def test_scaled_rotation_has_its_scale_as_every_rate(measured):
    _, flow = measured
    rate = math.log(0.8)
    for value in (flow.slope, flow.lyapunov, flow.largest_growth, *flow.spectrum["h"]):
        assert value == pytest.approx(rate, abs=EXACT)
    assert (flow.log_c, flow.slope_c, flow.keep, flow.terms) == (None,) * 4
    assert measure.candidate(flow.spectrum) == flow.spectrum["h"]


def test_weight_gradient_equals_that_of_the_loss(measured, x64):
    model, flow = measured
    labels = task.balanced_labels(8)
    xs = task.sequences(jax.random.fold_in(jax.random.key(5), 1), labels, 40)

    def loss(w_h):
        h = jnp.zeros((8, 4))
        for x in jnp.swapaxes(xs, 0, 1):
            h = x @ model.cell.w_x + h @ w_h + model.cell.b
        logits = h @ model.v + model.c
        return jnp.mean(jax.nn.logsumexp(logits, 1) - logits[jnp.arange(8), labels])

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(model.cell.w_h))
    assert flow.log_weight_gradient == pytest.approx(float(jnp.log(jnp.linalg.norm(gradient))), abs=EXACT)
    assert 0.4 < flow.last_tenth < 1  # it is 1 - 0.8^4 = 0.59 for states of equal norms
    assert 0.2 < flow.without_last_tenth < 0.8


def test_highway_of_an_lstm_without_weights_is_its_forget_gate(x64):
    cell = jaxrnn.lstm(3, bias_init=jaxrnn.initializers.gate_bias(f=2.0))
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 5))
    params = params._replace(b=params.b.at[3:6].set(jnp.array([2.0, 1.0, 3.0])))
    xs = jnp.ones((6, 2, 5))
    f = 1 / (1 + np.exp(-np.array([2.0, 1.0, 3.0])))
    assert measure.kept(cell, params, xs) == pytest.approx((np.log(f).mean(), np.log(f[2])), abs=EXACT)
    terms = measure.term_sizes(cell, params, xs)
    assert terms["highway"] == pytest.approx((f[2], np.sqrt(np.mean(f**2))), abs=EXACT)
    assert [terms[name] for name in ("forget", "input", "candidate")] == [(0, 0)] * 3


def test_candidate_selects_the_block_of_the_candidate():
    blocks = {"i": (1.0, 1.0), "f": (2.0, 2.0), "g": (3.0, 3.0), "o": (4.0, 4.0)}
    assert measure.candidate(blocks) == (3, 3)
    assert measure.candidate({"r": (1.0, 1.0), "z": (2.0, 2.0), "n": (5.0, 5.0)}) == (5, 5)


# ---- the gain of W_h


def test_gain_scan_of_linear_networks_equals_the_closed_form(monkeypatch):
    monkeypatch.setattr(gain, "ACTIVATIONS", {"linear": lambda a: a})
    monkeypatch.setattr(gain, "saturate", lambda *_: None)
    found = gain.scan(6, 200, 3, range(2, 4))
    np.testing.assert_allclose(found.gains, [0.5, 1, 2])
    logs = np.log(found.gains)[:, None]
    slopes = {scan.matrix: scan.slopes for scan in found.scans}
    np.testing.assert_allclose(slopes["orthogonal"], np.tile(logs, (1, 2)), atol=EXACT)
    np.testing.assert_allclose(
        slopes["Gaussian"], logs + found.log_radius["Gaussian"], atol=0.03
    )  # the slope approaches the spectral radius slowly
    np.testing.assert_allclose(found.log_radius["orthogonal"], 0, atol=EXACT)
    assert (found.log_radius["Gaussian"] < -0.1).all()


def test_norms_at_large_gains_are_those_of_the_jacobians(monkeypatch):
    monkeypatch.setattr(gain, "LARGE_GAINS", np.array([1.0, 8.0]))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        drawn = [gain.draws(5, 30, seed) for seed in (3, 4)]
        found = gain.saturate(jaxrnn.rnn(5), drawn)
    assert found.slopes.shape == (2, 2)
    for place, value in enumerate((1.0, 8.0)):
        for seed, one in enumerate(drawn):
            w_h, w_x = value * np.asarray(one.matrices["orthogonal"]), np.asarray(one.params.w_x)
            norms = []
            for b in range(gain.SEQUENCES):
                states, h = [], np.zeros(5)
                for x in np.asarray(one.xs[:, b]):
                    h = np.tanh(x @ w_x + h @ w_h)
                    states.append(h)
                norms += [np.linalg.norm(np.diag(1 - h**2) @ w_h.T, 2) for h in states]
            assert found.largest_norm[place, seed] == pytest.approx(np.log(max(norms)), abs=1e-6)
            assert found.median_norm[place, seed] == pytest.approx(np.median(np.log(norms)), abs=1e-6)
    assert (found.largest_growth <= found.largest_norm + EXACT).all()
    assert (found.slopes[1] < found.largest_growth[1]).all()


# ---- powers of W_h


def test_powers_of_normal_matrices_follow_singular_values_and_others_the_radius():
    found = {of.kind: of for of in powers.raise_to_powers(8, range(1, 3))}
    n, sigma = np.arange(1, powers.POWERS + 1), math.log(1.5)
    for kind in ("symmetric", "rotations"):
        np.testing.assert_allclose(found[kind].rates, sigma, atol=EXACT)
        np.testing.assert_allclose(found[kind].log_radius, sigma, atol=EXACT)
    gaussian = found["Gaussian"]
    np.testing.assert_allclose(gaussian.rates[:, 0], sigma, atol=EXACT)
    np.testing.assert_allclose(gaussian.rates[:, -1], gaussian.log_radius, atol=0.1)
    for seed, key in enumerate((1, 2)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(key), 2), 3)
        with jax.enable_x64(True):
            w = powers.draw("Gaussian", 8, keys[2])
        logs = [np.log(np.linalg.norm(np.linalg.matrix_power(w, t), 2)) for t in n]
        np.testing.assert_allclose(gaussian.rates[seed], logs / n, atol=1e-8)
    assert found["symmetric"].errors.max() < 1e-12
    assert found["rotations"].errors[:, 1:].mean() > 0.5
    assert gaussian.errors[:, 1:].mean() > 0.5
    for of in found.values():
        assert of.errors[:, 0].max() < 1e-12


def test_sum_of_singular_vectors_is_compared_with_the_power():
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])  # its singular values are 1, so that the sum is itself at every power
    np.testing.assert_allclose(powers.errors_of_sum(swap)[:4], [0, 2, 0, 2], atol=1e-12)


# ---- clipping


def test_wall_loss_equals_that_of_one_unit():
    cell = jaxrnn.rnn(1, activation="sigmoid")
    for w, b in ((5.5, -2.0), (3.0, -3.0)):
        h = 1 / (1 + math.exp(-0.5))
        for _ in range(50):
            h = 1 / (1 + math.exp(-(w * h + b)))
        assert float(clipping.wall_loss(cell, jnp.array([w, b]))) == pytest.approx((h - 0.7) ** 2, rel=1e-4)


def test_descent_takes_clipped_and_unclipped_steps():
    def steep(point):
        return 50 * jnp.sum(point**2)

    start = jnp.array([3.0, 4.0])
    rows = np.asarray(clipping.descend(steep, start, Change("norm", 0.1), updates=3))
    np.testing.assert_allclose(rows[0], [3, 4, 1250, 500], rtol=1e-6)
    np.testing.assert_allclose(rows[1, :2], [3 - 0.5 * 0.1 * 0.6, 4 - 0.5 * 0.1 * 0.8], rtol=1e-6)
    for change, step in (
        (Change("none", None), [300, 400]),
        (Change("each step", 0.1), [300, 400]),  # it is the loss that clips
        (Change("value", 350.0), [300, 350]),
        (Change("raised", 1000.0), [600, 800]),
        (Change("raised", 5.0), [3, 4]),
    ):
        rows = np.asarray(clipping.descend(steep, start, change, updates=2))
        np.testing.assert_allclose(rows[1, :2], start - 0.5 * np.float32(step), rtol=1e-6, err_msg=str(change))
    points = np.array([[5, -2], [5, 1.6], [5, -6.1], [11.1, -2], [-1.1, -2], [10.9, -5.9]])
    np.testing.assert_array_equal(clipping.outside(points), [False, True, True, True, True, False])


def test_gradient_of_the_wall_is_clipped_at_each_step():
    cell, point = jaxrnn.rnn(1, activation="sigmoid"), (5.5, -2.0)
    states = [1 / (1 + math.exp(-0.5))]
    for _ in range(50):
        states.append(1 / (1 + math.exp(-(point[0] * states[-1] + point[1]))))
    for clip in (None, 1e-3):
        cotangent, expected = 2 * (states[-1] - 0.7), np.zeros(2)
        for before, after in zip(states[-2::-1], states[:0:-1], strict=True):
            inside = cotangent * after * (1 - after)
            expected += [inside * before, inside]
            cotangent = inside * point[0] if clip is None else np.clip(inside * point[0], -clip, clip)
        found = jax.jit(jax.grad(lambda p, clip=clip: clipping.wall_loss(cell, p, clip)))(jnp.array(point))
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_thresholds_are_scanned_where_the_gradient_explodes():
    found = clipping.settings_of((0.1, 1.0))
    main = [("none", None), ("norm", 1.0), ("value", 1.0), ("each step", 1.0), ("raised", 1.0)]
    assert found["vanishing"] == main
    assert found["exploding"] == [*main, ("norm", 0.1), ("value", 0.1), ("each step", 0.1)]


def test_networks_start_from_their_gain(monkeypatch):
    monkeypatch.setattr(clipping, "settings_of", lambda _: {"exploding": [Change("norm", 1e-9)]})  # params stay
    monkeypatch.setattr(clipping, "EVERY", 2)
    told = []
    (found,) = clipping.train_clipped(5, 8, 4, 4, (), range(2), (), lambda done, note: told.append(done))
    np.testing.assert_array_equal(found.updates, [2, 4])
    assert told[-1] == 4
    assert found.losses.shape == (2, 2)
    np.testing.assert_allclose(found.norms[1], found.norms[0], rtol=1e-4)

    cell = jaxrnn.rnn(5)
    model = clipping.with_gain(task.make_task(cell, 5, 8, 4), 1.5).init(jax.random.split(jax.random.key(0))[0])
    np.testing.assert_allclose(model.cell.w_h.T @ model.cell.w_h, 2.25 * np.eye(5), atol=1e-5)
    labels, lengths = task.sequence_batch(8, clipping.LOOKED_AT, False, 10**6, 0)
    gradient = jax.jit(jax.grad(functools.partial(task.cross_entropy, cell, 8)))(
        model, labels, lengths, jax.random.key(10**6)
    )
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    assert found.norms[0, 0] == pytest.approx(math.sqrt(squares), rel=1e-4)


# ---- tables and the script


def test_tables_format_means_and_spreads():
    assert tables.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert tables.spread([1.0], 1) == "1.0"
    assert tables.spread([-math.inf, -1.0]) == "-∞"
    assert tables.spread(None) == tables.spread([math.nan]) == "–"


def gains_of(seeds):
    gains = np.array([0.5, 1, 2])
    slopes = np.tile([[-0.1], [0.1], [0.3]], (1, seeds))  # in floats the mean of three times 0.1 is not 0.1
    scans = [gain.Scan(name, kind, slopes) for name in gain.ACTIVATIONS for kind in gain.MATRICES]
    saturation = gain.Saturation(gains, *[slopes] * 5)
    return gain.Gains(gains, {kind: np.zeros(seeds) for kind in gain.MATRICES}, scans, saturation)


def wall_of():
    way = np.tile([5.0, -2.0, 0.1, 1.0], (3, 1))
    grid = np.linspace(0, 0.4, 9).reshape(3, 3)
    flung = {"none": 0.5, "norm": 0.0, "value": 0.0, "each step": 0.0}
    return clipping.Wall(np.linspace(3, 7, 3), np.linspace(-3.5, -1, 3), grid, dict.fromkeys(flung, way), flung)


def descents_of():
    return [
        clipping.Descent(
            case,
            change,
            np.array([10, 20]),
            np.full((2, 2), 2.0 if (case, change.name) == ("exploding", "none") else 0.1),
            np.ones((2, 2)),
            np.full(2, 0.75),
        )
        for case, changes in clipping.settings_of((1.0,)).items()
        for change in changes
    ]


def test_run_writes_what_it_measured(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradient_flow, "scan", lambda *_: gains_of(3))
    monkeypatch.setattr(gradient_flow, "climb_wall", lambda _: wall_of())
    monkeypatch.setattr(gradient_flow, "train_clipped", lambda *_: descents_of())
    monkeypatch.setattr(gradient_flow, "raise_to_powers", lambda *_: [
        powers.Powers(kind, np.zeros(2), np.zeros((2, powers.POWERS)), np.zeros((2, powers.POWERS)))
        for kind in powers.KINDS
    ])  # fmt: skip
    models, seen = [], []

    def standing_in(cell, model, length, batch_size, seed):
        assert (length, batch_size, model.cell.w_h.dtype) == (24, 4, np.float64)
        back = np.arange(length - 1, -1, -1.0)[:, None]
        rates = -0.1 * seed - 0.01 * len(seen) + np.array([0, 0.01, 0.05])
        flow = measured[1]._replace(log_h=2 + back * rates, slope=float(rates[1]), lyapunov=float(rates[2]))
        models.append(model.cell.w_h)
        seen.append(flow)
        return flow

    monkeypatch.setattr(gradient_flow, "measure", standing_in)
    options = ["--cells", "rnn", "--length", "24", "--hidden-size", "5", "--updates", "3", "--seeds", "2"]
    assert gradient_flow.main([*options, "--seed", "7", "--batch-size", "4", "--out", str(tmp_path)]) == 0

    record = json.loads((tmp_path / "results.json").read_text())
    before, after = record["flows"]
    assert (before["stage"], after["stage"]) == gradient_flow.STAGES
    assert before["measured"]["slope_h"] == pytest.approx([flow.slope for flow in seen[:2]], rel=1e-3)
    assert after["measured"]["lyapunov"] == pytest.approx([flow.lyapunov for flow in seen[2:]], rel=1e-3)
    assert before["measured"] != after["measured"]
    assert before["predicted"]["log_spectral_radius"] == pytest.approx([math.log(0.8)] * 2, rel=1e-3)
    for first, last in zip(models[:2], models[2:], strict=True):  # orthogonal, and after three steps of Adam at 0.003
        np.testing.assert_allclose(first @ first.T, np.eye(5), atol=1e-5)
        assert 0.002 < np.abs(last - first).max() < 0.01
    assert not np.allclose(models[0], models[1])
    assert all(0 <= error <= 1 for error in before["error"] + after["error"])
    curve = before["curve"]
    assert (record["steps_back"][0], record["steps_back"][-1], curve["median"][0]) == (0, 23, 0)
    far = [np.median(flow.log_h[0] - flow.log_h[-1]) / math.log(10) for flow in seen[:2]]
    assert curve["median"][-1] == pytest.approx(np.median(far), rel=1e-2)
    assert (curve["lowest"][-1], curve["highest"][-1]) == pytest.approx((min(far), max(far)), rel=1e-2)
    assert before["measured"]["log10_first_over_last"] == pytest.approx(far, rel=1e-3)
    verdicts = {claim.claim: claim.holds for claim in claims.claims(record)}
    assert verdicts["clipping does not cure vanishing"] is True
    assert verdicts["clipping by norm cures explosion"] is True
    assert "tanh RNN" in capsys.readouterr().out
    assert [len(markdown.splitlines()) for markdown in tables_of(record).values()][:2] == [3, 3]
    for curve in (before["curve"], after["curve"]):  # figures omit infinite values
        curve["median"][-3:] = [-math.inf] * 3
    record["flows"].append({**after, "curve": gradient_flow.curve_of([])})
    gradient_flow.draw_flow(tmp_path / "gradient_flow", 24, record)
    for name in ("gradient_flow", "spectrum", "clipping"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()[:500]


def test_sequences_without_a_gradient_are_skipped(measured):
    log_h = np.array([[-np.inf, -6.0, -np.inf], [-1.0, -4.0, -np.inf], [1.0, 0.0, -np.inf]]) * math.log(10)
    flow = measured[1]._replace(log_h=log_h[:, 1:])
    np.testing.assert_allclose(gradient_flow.relative(flow), [-6, -4, 0])
    dead = flow._replace(log_h=log_h[:, 2:])
    assert np.isnan(gradient_flow.relative(dead)).all()
    assert gradient_flow.curve_of([flow, dead])["median"] == [0, -4, -6]
    assert gradient_flow.curve_of([dead])["median"] == []
    dying = flow._replace(log_h=log_h[:, :1])  # this gradient vanishes before the first step
    assert gradient_flow.curve_of([dying])["median"] == [0, -2, -np.inf]


def test_rounded_keeps_significant_digits():
    assert gradient_flow.rounded([np.array([1.23456, 1e-7]), (12345.6,)]) == [[1.235, 1e-7], [12350.0]]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--length", "19"], "gradient_flow: --length expected at least 20 steps"),
    (["--length", "0"], "gradient_flow: --length expected a positive number, got 0"),
    (["--hidden-size", "-3"], "--hidden-size expected a positive number, got -3"),
    (["--cells", "lstmm"], "--cells expected rnn, "),
    (["--cells", "min_gru"], "gru, gru-chrono; got min_gru"),  # it has no recurrent weights
    (["--gains", "4"], "--gains expected an odd number of at least 3, got 4"),
    (["--learning-rate", "0"], "--learning-rate expected a positive number, got 0"),
    (["--seeds", "0"], "--seeds expected a positive number"),
    (["--seed", "-1"], "--seed expected a number that is not negative, got -1"),
    (["--clipping-updates", "0"], "--clipping-updates expected a positive number"),
    (["--out", "/dev/null/x"], "cannot write into"),
])  # fmt: skip
def test_bad_options_are_refused_in_one_line(arguments, message, capsys):
    assert gradient_flow.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
