"""The experiment on time in parallel: the count of sequential steps, the summary, what is timed, and the claims."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks._depth import depth
from experiments.parallel_in_time import iterations, tables, times
from jaxrnn.analysis import NewtonConvergence


def depth_of(f, *operands, **options):
    return depth(jax.jit(f).lower(*operands).compile().as_text(), **options)


def test_depth_is_the_trips_of_loops_times_what_they_hold():
    loop = lambda x, n: jax.lax.scan(lambda c, _: (jnp.sin(c @ c), None), x, None, length=n)[0]  # noqa: E731
    nested = lambda x: jax.lax.scan(lambda c, _: (loop(c, 5), None), x, None, length=7)[0]  # noqa: E731
    x = jnp.ones((3, 3))
    assert depth_of(lambda x: x + 1, x) == 0
    assert depth_of(lambda x: loop(loop(x, 40), 11), x) == 51
    assert depth_of(nested, x) == 35
    unknown = lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 2, lambda c: loop(c, 5) + 1, x)  # noqa: E731
    assert depth_of(unknown, x, iterations=3) == 15
    either = lambda x: jax.lax.cond(x[0, 0] > 2, lambda: loop(x, 9), lambda: loop(x, 4))  # noqa: E731
    assert depth_of(either, x) == 4


def found(iterations_of, by_steps):
    counts = np.asarray(iterations_of)
    return NewtonConvergence(counts, np.zeros((len(counts), 21, 2)), counts < 20, np.asarray(by_steps), 8)


def test_summary_counts_windows_and_leaves_out_those_run_step_by_step():
    seeds = [
        (np.array([[-0.2], [-0.4]]), found([[2, 4], [20, 3]], [False, True])),
        (np.array([[0.2], [0.4]]), found([[3, 5], [2, 2]], [False, False])),
    ]
    assert iterations.summary(seeds) == {
        "exponent": 0.0, "windows": 4, "by_steps": 1, "iterations": 3.0, "most": 5,
    }  # fmt: skip
    none = iterations.summary([(np.array([[1.0]]), found([[20, 20]], [True]))])
    assert (none["iterations"], none["most"], none["by_steps"]) == (None, None, 1)


@pytest.fixture
def ways(monkeypatch):
    """Programs that are not compiled; the associative scan is wrong at 20 steps."""

    def prepared(config, way, steps):
        outcome = np.ones(2) + (0.1 if (way, steps) == ("min_gru, associative scan", 20) else 0)
        return times.Way(lambda: None, 1 if way in tables.LOOPS else steps, outcome)

    monkeypatch.setattr(times, "prepared", prepared)
    monkeypatch.setattr(times, "take_turns", lambda calls, rounds: {way: [2.0, 1.0, 4.0] for way in calls})


@pytest.mark.usefixtures("ways")
def test_what_differs_from_the_loop_is_not_timed():
    rows = times.timed(types.SimpleNamespace(lengths=(20, 50), rounds=3), lambda *_: None)
    assert [(row["way"], row["steps"]) for row in rows if "min_ms" not in row] == [("min_gru, associative scan", 20)]
    assert {(row["min_ms"], row["median_ms"]) for row in rows if "min_ms" in row} == {(1.0, 2.0)}


def record(exponents, fell, depths, ms):
    points = [
        {"trained": False, "gain": 1.0 + k, "exponent": e, "windows": 4, "by_steps": f, "iterations": 3.0, "most": 4}
        for k, (e, f) in enumerate(zip(exponents, fell, strict=True))
    ]
    rows = [
        {"way": way, "steps": 10_000, "depth": depths[k], "difference": 0.0, "min_ms": ms[k], "median_ms": ms[k]}
        for k, way in enumerate(times.WAYS)
    ]
    return {"config": {"seeds": 3}, "iterations": [{"cell": "rnn", "points": points}], "times": rows}


def test_claims_are_judged_by_the_record():
    made = tables.claims(record([-0.5, -0.1, 0.2], [0, 0, 2], [20_000, 400, 20_000, 401], [1.0, 10.0, 1.0, 3.0]))
    assert [claim.holds for claim in made] == [True, None, False, False]
    assert "all windows converged in 2 of 2 settings, in 4 iterations at most" in made[0].measured
    assert "10.00 at T = 10,000" in made[2].measured
    made = tables.claims(record([-0.5, 0.1], [1, 0], [20_000, 400, 20_000, 40], [1.0, 0.5, 1.0, 0.2]))
    assert [claim.holds for claim in made] == [False, True, True, True]
    shown = tables.tables(record([-0.5], [1], [20_000, 400, 20_000, 40], [1.0, 0.5, 1.0, 0.2]))
    assert "-0.50: 3.0 (1/4)" in shown["iterations"]
    assert "| 10,000 | gru, Newton | 400 | 0.5 (0.50) | 0.5 | 0e+00 |" in shown["times"]
