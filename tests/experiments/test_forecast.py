"""The weather: what is read of the file, blocks without leaks, simple forecasts, scores and the network's loss, against hand computation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import jaxrnn
from experiments.datasets import weather
from experiments.forecast import __main__ as forecast
from experiments.forecast import baselines, figure, model, series, tables
from experiments.forecast.model import Normal
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import init_readout

RNG = np.random.default_rng(0)
HEADINGS = "origin,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour"
LINES = (
    "EWR,39.2,26,59,270,10,NA,0,1012,10,2013-01-01T06:00:00Z",
    "JFK,NA,26,59,NA,0,NA,0,NA,10,2013-01-01T06:00:00Z",
    "LGA,40,26,59,90,1048.4,NA,0.1,1012,10,2013-01-01T08:00:00Z",
)


def synthetic(days, lost=()):
    """Weather with a daily wave; hours in `lost` have no measurement."""
    hours = np.datetime64("2013-01-01T06", "h") + np.arange(24 * days)
    values = RNG.uniform(1, 2, (len(hours), 3, len(weather.COLUMNS)))
    clock = (hours.astype(int) - 5) % 24
    values[..., 0] = 50 + 10 * np.sin(2 * np.pi * clock / 24)[:, None] + RNG.normal(0, 1, (len(hours), 3))
    values[list(lost)] = np.nan
    return weather.Weather(hours, values)


# ---- the file


def test_hours_without_a_line_and_impossible_winds_are_missing():
    found = weather.parse_hours("\n".join([HEADINGS, *LINES]), "w.csv")
    assert [str(hour) for hour in found.hours] == ["2013-01-01T06", "2013-01-01T07", "2013-01-01T08"]
    np.testing.assert_array_equal(found.column("temp"), [[39.2, np.nan, np.nan], [np.nan] * 3, [np.nan, np.nan, 40]])
    np.testing.assert_array_equal(found.column("wind_speed")[[0, 2]], [[10, 0, np.nan], [np.nan] * 3])
    assert found.column("precip")[2, 2] == 0.1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (LINES[0], "line 3: EWR at 2013-01-01T06 is twice in it"),
        (LINES[0].replace("EWR", "BOS"), "line 3: BOS at 2013-01-01T06 expected one of EWR, JFK, LGA"),
        (LINES[1].replace("2013-01-01T06", "never"), "line 3: expected an airport, an hour and measurements"),
        (LINES[1].replace("59", "wet"), "line 3: expected an airport, an hour and measurements"),
        ("EWR,1", "line 3: expected an airport, an hour and measurements"),
    ],
)
def test_other_lines_are_refused(line, complaint):
    with pytest.raises(ValueError, match=complaint):
        weather.parse_hours("\n".join([HEADINGS, LINES[0], line]), "w.csv")


# ---- windows


def test_no_window_crosses_a_border_and_no_later_hour_is_read():
    """A change of the weather from any hour on leaves every window that ends before it as it is."""
    year = synthetic(100)
    prepared = series.prepare(year, 72, 24)
    blocks = series.blocks_of(len(year.hours))
    assert {name: len(part) for name, part in blocks.items()} == {"train": 3, "validation": 2, "test": 2}
    covered = sorted(hour for part in blocks.values() for block in part for hour in range(*block))
    assert covered == list(range(len(year.hours)))
    for name, part in blocks.items():
        begins = prepared.begins[name]
        inside = [any(first <= begin - 72 and begin + 24 <= until for first, until in part) for begin in begins]
        assert all(inside)
        assert len(begins) == sum(max(until - first - 95, 0) for first, until in part)
    changed = year._replace(values=year.values.copy())
    hour = 24 * 31  # in the first validation block
    changed.values[hour:] += 5
    other = series.prepare(changed, 72, 24)
    scaled = other._replace(features=prepared.features)
    before = prepared.begins["validation"][prepared.begins["validation"] <= hour]
    np.testing.assert_array_equal(prepared.last[before - 1], scaled.last[before - 1])


def test_scales_and_the_shape_of_a_day_are_of_training_hours_alone():
    year = synthetic(60, lost=(3, 700))
    prepared = series.prepare(year, 72, 24)
    moved = year._replace(values=year.values.copy())
    moved.values[24 * 27 : 24 * 45] *= 3  # the validation and test blocks
    other = series.prepare(moved, 72, 24)
    np.testing.assert_array_equal(prepared.shape, other.shape)
    train = np.arange(24 * 27)
    np.testing.assert_array_equal(prepared.features[train], other.features[train])
    known = np.concatenate([train, np.arange(24 * 45, 24 * 60)])
    noon = [hour for hour in known if (year.hours[hour].astype(int) - 5) % 24 == 12]
    np.testing.assert_allclose(prepared.shape[12], np.nanmean(year.values[noon, :, 0], axis=0))
    np.testing.assert_allclose(np.nanmean(prepared.features[known, 0]), 0, atol=1e-2)


def test_missing_values_are_the_newest_of_the_same_block():
    values = np.array([np.nan, 1.0, np.nan, np.nan, np.nan, 5.0, np.nan])
    found = series.carried(values, [(0, 4), (4, 7)])
    np.testing.assert_array_equal(found, [np.nan, 1, 1, 1, np.nan, 5, 5])


def test_wind_and_calendar_equal_hand_computation():
    speed, direction = np.array([10.0, 10.0, 0.0, 10.0]), np.array([90.0, 180.0, np.nan, np.nan])
    found = series.components(speed, direction)
    np.testing.assert_allclose(found[:3], [[10, 0], [0, -10], [0, 0]], atol=1e-12)
    assert np.isnan(found[3]).all()
    noon = np.datetime64("2013-07-02T17", "h")  # noon in standard time, 182.5 days after the year began
    angle = 2 * np.pi * 182.5 / 365.25
    np.testing.assert_allclose(series.calendar(np.array([noon]))[0], [0, np.sin(angle), -1, np.cos(angle)], atol=1e-9)


# ---- forecasts without a network


def test_rules_and_errors_equal_hand_computation():
    year = synthetic(60)
    prepared = series.prepare(year, 72, 30)
    begins = prepared.begins["test"]
    rules, temperature = baselines.every_rule(prepared, begins), year.values[..., 0]
    for k in (0, 17):
        begin = begins[k]
        for ahead in (0, 23, 24, 29):
            hour = begin + ahead
            assert (rules["last value"][k, ahead] == temperature[begin - 1]).all()
            assert (rules["a day before"][k, ahead] == temperature[hour - (24 if ahead < 24 else 48)]).all()
            shape = prepared.shape[prepared.clock[hour]] - prepared.shape[prepared.clock[begin - 1]]
            np.testing.assert_allclose(rules["last value, mean day"][k, ahead], temperature[begin - 1] + shape)
    said, truth = np.zeros((2, 2, 1)), np.array([[[3.0], [np.nan]], [[4.0], [-5.0]]])
    found = baselines.scores(said, truth)
    assert found["rmse"] == pytest.approx(math.sqrt(50 / 3))
    assert found["mae"] == pytest.approx(4)
    assert found["rmse_by_hour"] == [pytest.approx(math.sqrt(12.5), abs=1e-3), 5]


def test_linear_regression_finds_a_linear_law_and_validation_chooses_its_penalty(monkeypatch):
    """The temperature to come is the base and a multiple of a feature: the smallest penalty is the best one."""
    prepared = series.prepare(synthetic(60), 3, 2)
    truth = prepared.truth.copy()
    for part in prepared.begins.values():
        truth[part] = prepared.base(part)[:, 0] + 2 * prepared.features[part - 1, :1] + 0.5
    own = prepared._replace(horizon=1, truth=truth)
    monkeypatch.setattr(baselines, "PENALTIES", (1e6, 1e-3))
    said, penalty = baselines.linear(own)
    assert penalty == 1e-3
    np.testing.assert_allclose(said["test"][:, 0], truth[own.begins["test"]], atol=1e-3)
    hidden = own._replace(truth=np.where(np.isin(np.arange(len(truth)), own.begins["test"])[:, None], 0, truth))
    np.testing.assert_array_equal(baselines.linear(hidden)[0]["test"], said["test"])  # test hours do not take part


# ---- the network


def test_loss_leaves_out_what_was_not_measured():
    said = Normal(jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 3.0]]))
    wanted = -stats.norm.logpdf(3.0, 1.0, 0.5) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(model.nats(said, jnp.array([[3.0, jnp.nan]])), wanted, rtol=1e-6)
    gradient = jax.grad(lambda mean: model.nats(said._replace(mean=mean), jnp.array([[3.0, jnp.nan]])))(said.mean)
    np.testing.assert_allclose(gradient, [[-8.0, 0.0]], rtol=1e-6)


def test_scores_of_a_distribution_equal_their_definitions():
    said = Normal(np.array([1.0, -2.0, 0.0]), np.array([0.7, 2.0, 1.0]))
    truth = np.array([1.9, -5.0, np.nan])

    def squared(x, k):
        return (stats.norm.cdf(x, said.mean[k], said.deviation[k]) - (x >= truth[k])) ** 2

    wanted = np.mean([integrate.quad(squared, -40, 40, args=(k,), points=[truth[k]], limit=200)[0] for k in (0, 1)])
    np.testing.assert_allclose(model.crps(said, truth), wanted, rtol=1e-4)
    narrow = Normal(said.mean, np.full(3, 1e-6))
    np.testing.assert_allclose(model.crps(narrow, truth), np.nanmean(np.abs(truth - said.mean)), rtol=1e-4)
    normal = Normal(np.zeros(100_000), np.full(100_000, 2.0))
    drawn = RNG.normal(0, 3, 100_000)
    np.testing.assert_allclose(model.stretch(normal, drawn), 1.5, rtol=0.01)
    calibrated = normal._replace(deviation=1.5 * normal.deviation)
    np.testing.assert_allclose(model.coverage(calibrated, drawn), model.INTERVALS, atol=0.01)
    wide = [2 * stats.norm.cdf(stats.norm.ppf(0.5 + share / 2) / 1.5) - 1 for share in model.INTERVALS]
    np.testing.assert_allclose(model.coverage(normal, drawn), wide, atol=0.01)


def test_prediction_reads_the_last_output_and_drops_it_in_training_alone():
    cell, shape = jaxrnn.gru(5), (4, 3)
    params = init_readout(cell, 5, 7, 2 * 4 * 3, jax.random.key(0))
    xs = jnp.asarray(RNG.standard_normal((6, 9, 7), np.float32))
    said = model.predict(cell, params, xs, shape)
    final, _ = jaxrnn.unroll(cell, params.cell, xs.swapaxes(0, 1))
    raw = (np.asarray(final) @ np.asarray(params.v) + np.asarray(params.c)).reshape(6, 2, 4, 3)
    np.testing.assert_allclose(said.mean, raw[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(said.deviation, jax.nn.softplus(raw[:, 1]) + model.LEAST, rtol=1e-5)
    key = jax.random.key(1)
    kept = model.predict(cell, params, xs, shape, key, 0.0)
    np.testing.assert_array_equal(kept.mean, said.mean)
    dropped = jnp.stack([model.predict(cell, params, xs, shape, k, 0.5).mean for k in jax.random.split(key, 400)])
    np.testing.assert_allclose(dropped.mean(0), said.mean, atol=0.15)
    assert dropped.std(0).min() > 0.01


def test_batches_are_windows_of_training_hours_as_corrections_of_the_mean_day():
    prepared = series.prepare(synthetic(60), 12, 4)
    config = forecast.Config(history=12, horizon=4, batch_size=40, noise=0.0)
    xs, ys = forecast.task_of(config, jaxrnn.gru(3), prepared).batch(0, 0)
    windows = prepared.windows(prepared.begins["train"])
    seen = {row.tobytes(): k for k, row in enumerate(windows.xs)}
    places = [seen[row.tobytes()] for row in xs]
    missed = windows.truth - windows.base
    assert prepared.scale == pytest.approx(math.sqrt(np.mean(missed**2)))
    wanted = missed[places] / prepared.scale
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=1e-6)
    loud = dataclasses.replace(config, noise=0.3)
    noisy, _ = forecast.task_of(loud, jaxrnn.gru(3), prepared).batch(0, 0)
    np.testing.assert_allclose(np.std(noisy - xs), 0.3, rtol=0.05)


# ---- what is printed and drawn


def record():
    entry = {"rmse": 4.0, "mae": 3.0, "rmse_by_hour": [1.0] * 12}
    seed = {**entry, "crps": 2.0, "coverage": [0.4, 0.7, 0.8], "calibrated_coverage": [0.5, 0.8, 0.9]}
    return {
        "config": {"cell": "gru", "horizon": 12},
        "regression_parameters": 100,
        "seeds": [0, 1],
        "seconds": 90.0,
        "parameters": 7,
        "baselines": {"last value": {**entry, "rmse": 5.0}, "linear regression": entry},
        "network": [seed, {**seed, "rmse": 4.4, "crps": 2.2}],
        "both": [seed, {**seed, "rmse": 3.8}],
    }


def test_tables_hold_every_forecast_and_interval():
    made = tables.tables(record())
    errors = made["errors"].splitlines()
    assert errors[0] == "| forecast | RMSE | MAE | 1 h | 6 h | 12 h | CRPS |"
    assert errors[2] == "| last value | 5.00 | 3.00 | 1.00 | 1.00 | 1.00 | 3.00 |"
    assert errors[4] == "| GRU | 4.20 ± 0.28 | 3.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 2.10 ± 0.14 |"
    assert errors[5].startswith("| GRU, regression | 3.90 ± 0.14 | 3.00 ± 0.00 |")
    assert made["coverage"].splitlines()[3] == "| GRU, calibrated | 50.0 ± 0.0 | 80.0 ± 0.0 | 90.0 ± 0.0 |"
    alone, both = tables.rows(record())
    assert (alone.parameters, alone.obtained) == (7, "4.20 ± 0.28, 2 seeds")
    assert (both.parameters, both.obtained) == (107, "3.90 ± 0.14, 2 seeds")
    short = list(tables.lines(record(), short=True))
    assert short[2] == ["GRU", "4.20 ± 0.28", "3.00", "1.00", "1.00", "1.00", "2.10"]
    assert tables.best_rule(record())[0] == "linear regression"


def test_figure_draws_one_hour_ahead_as_points(tmp_path):
    year = synthetic(60)
    prepared = series.prepare(year, 12, 1)
    begins = prepared.begins["test"]
    said = Normal(prepared.base(begins), np.ones((len(begins), 1, 3)))
    rules = {figure.BEST: [1.0], "linear regression": [0.9]}
    own = {kind: np.ones((1, 1)) for kind in ("network", "both")}
    paths = figure.draw(tmp_path / "f", CONTESTANTS["gru"], prepared, year.hours, rules, own, said)
    assert all(path.stat().st_size > 5000 for path in paths)
    assert len(set(figure.examples_of(prepared, begins))) == figure.EXAMPLES
