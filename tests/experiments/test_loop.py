"""The training loop equals the same steps in plain Python; the options and keepers of its runs; jobs side by side."""

import json
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.command.progress import Job, side_by_side
from experiments.command.report import CannotRun
from experiments.training import logs, loop
from experiments.training.checkpoints import Checkpoints
from experiments.training.gradients import raise_entries, raise_global_norm
from experiments.training.logs import TensorBoard
from experiments.training.loop import Settings, fit, make_optimiser, training
from experiments.training.runs import RunOptions, check_learned, check_runs, keeper_of
from tests.support.pulling import ADAM, LONG, TASK, TRAIN_ADAM, batch, distance

OPTIMISER = make_optimiser(0.1, name="sgd", clip_norm=None)
SETTINGS = Settings(steps=23, evaluate_every=5, steps_per_call=2)
TRAIN = training(TASK, OPTIMISER, "cpu")  # compiled once for calls of one and two steps


def by_hand(seed, steps):
    """Weights and loss of each step in NumPy."""
    key_w, key = jax.random.split(jax.random.key(seed))
    w, seen, losses = np.asarray(jax.random.normal(key_w, (3,))), [], []
    for step in range(steps):
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, step), (3,)))
        error = w - (batch(seed, step)["to"] + 0.1 * noise + 0.01 * step)
        losses.append(np.sum(error**2) / 2)
        w = w - 0.1 * error
        seen.append(w)
    return np.stack(seen), np.asarray(losses)


def test_fit_equals_a_plain_python_loop():
    course = fit(TASK, OPTIMISER, (3, 5), SETTINGS, distance, run=TRAIN)
    assert [found.step for found in course.history] == [5, 10, 15, 20, 23]
    assert int(course.state.step) == 23
    for k, seed in enumerate((3, 5)):
        weights, losses = by_hand(seed, 23)
        np.testing.assert_allclose(course.params["w"][k], weights[-1], rtol=1e-5)
        wanted = [part.mean() for part in np.split(losses, [5, 10, 15, 20])]
        np.testing.assert_allclose([found.loss[k] for found in course.history], wanted, rtol=1e-5)
        far = np.linalg.norm(weights[[4, 9, 14, 19, 22]] - [2, 10, 20], axis=-1)
        np.testing.assert_allclose(course.metric("distance")[:, k], far, rtol=1e-5)
        assert course.best_of("distance")[k] == course.metric("distance")[:, k].min()
    assert list(course.state.carry) == [23, 23]
    assert course.parameters == 3
    seconds = [found.seconds for found in course.history]
    assert 0 < seconds[0] < seconds[-1] == course.seconds


def test_seed_is_unaffected_by_other_seeds():
    settings = Settings(4, 2, steps_per_call=2)
    both, alone = (fit(TASK, OPTIMISER, seeds, settings, distance, run=TRAIN) for seeds in ((3, 5), (5,)))
    assert (np.asarray(both.params["w"][1]) == alone.params["w"][0]).all()


def test_each_seed_keeps_its_best_params_and_patience_stops_training():
    values = iter(np.float32([[3, 3], [2, 4], [5, 5], [1, 6], [7, 7], [8, 8], [9, 0]]))
    seen = []

    def evaluate(params):
        seen.append(np.array(params["w"]))
        return {"value": next(values)}

    settings = Settings(100, 5, minimise="value", patience=2, steps_per_call=2)
    course = fit(TASK, OPTIMISER, (0, 1), settings, evaluate, run=TRAIN)
    assert len(course.history) == 6  # the fourth is the best of seed 0, then patience ends
    assert (course.params["w"][0] == seen[3][0]).all()
    assert (course.params["w"][1] == seen[0][1]).all()
    assert course.best_of("value").tolist() == [1, 3]
    assert course.best.values.tolist() == [1, 3]


def test_metrics_that_are_never_finite_are_not_the_best(tmp_path):
    values = iter(np.float32([[np.nan, 5], [np.inf, np.nan], [np.nan, 7]]))
    settings = Settings(6, 2, minimise="value", steps_per_call=2)
    keeper = Checkpoints(tmp_path, {}, resume=False)
    course = fit(TASK, OPTIMISER, (0, 1), settings, lambda params: {"value": next(values)}, keeper=keeper, run=TRAIN)
    again = Checkpoints(tmp_path, {}, resume=True).restored(course)
    np.testing.assert_array_equal(again.metric("value"), [[np.nan, 5], [np.inf, np.nan], [np.nan, 7]])
    assert again.best.values.tolist() == course.best.values.tolist()
    np.testing.assert_array_equal(course.best_of("value"), [np.inf, 5])
    assert course.best.values.tolist() == [np.inf, 5]
    assert (course.params["w"][0] == loop.begin(TASK, OPTIMISER, (0,)).params["w"][0]).all()
    with pytest.raises(CannotRun, match="the value loss was never a finite number; give a smaller --learning-rate"):
        check_learned(course, "value")
    check_learned(course._replace(history=[f._replace(metrics={"value": np.ones(2)}) for f in course.history]), "value")
    nothing = course._replace(history=[f._replace(metrics={"value": np.full(2, np.nan)}) for f in course.history])
    assert np.isnan(nothing.best_of("value")).all()


def test_stop_condition_ends_a_run_and_progress_is_reported():
    told = []
    settings = Settings(100, 5, stop=lambda metrics: metrics["value"][0] > 2, steps_per_call=2)
    counts = iter([1.0, 2.0, 3.0])

    def evaluate(params):
        return {"value": [next(counts), 0.0]}

    def show(done, note):
        told.append(done)
        notes.append(note)

    notes = []
    course = fit(TASK, OPTIMISER, (0, 1), settings, evaluate, show=show, run=TRAIN)
    assert course.history[-1].step == 15
    assert told == [2, 4, 5, 7, 9, 10, 12, 14, 15, 100]
    assert notes[2].split()[0] == "loss"
    assert notes[3].endswith("value 0.5")  # mean over both seeds


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_optimisers_clip_warm_up_decay_and_skip_nonfinite_gradients(name):
    rule = {"adam": optax.adam, "adamw": optax.adamw, "rmsprop": optax.rmsprop, "sgd": optax.sgd}[name]
    rate = lambda step: min(step / 4, 0.5 * (1 + np.cos(np.pi * max(0, step - 4) / 16)))  # noqa: E731
    ours = make_optimiser(0.3, name=name, clip_norm=2.0, cosine_steps=20, warmup_steps=4)
    params = {"w": jnp.float32([1.0, 2.0])}
    memory, own, update = ours.init(params), rule(0.3).init(params), jax.jit(ours.update)
    plain = jax.jit(lambda gradient, memory, params, rate: rule(rate).update(gradient, memory, params))
    with jax.numpy_dtype_promotion("standard"):
        for step in range(12):
            gradient = np.float32([3.0 + step, -4.0])
            updates, memory = update({"w": jnp.asarray(gradient)}, memory, params)
            clipped = gradient * min(1.0, 2.0 / np.linalg.norm(gradient))
            wanted, own = plain({"w": jnp.asarray(clipped)}, own, params, 0.3 * rate(step))
            np.testing.assert_allclose(updates["w"], wanted["w"], rtol=1e-4, atol=1e-7)
            params = optax.apply_updates(params, updates)
            none, memory = update({"w": jnp.float32([np.nan, 1.0])}, memory, params)
            assert not np.asarray(none["w"]).any()


def test_small_gradients_are_raised_and_zero_stays_zero():
    for change, given, expected in (
        (raise_global_norm(10.0), [3.0, 4.0], [6.0, 8.0]),
        (raise_global_norm(2.0), [3.0, 4.0], [3.0, 4.0]),
        (raise_global_norm(2.0), [0.0, 0.0], [0.0, 0.0]),
        (raise_entries(3.5), [3.0, -4.0], [3.5, -4.0]),
        (raise_entries(3.5), [0.0, -1e-9], [0.0, -3.5]),
    ):
        gradient = {"a": jnp.float32(given[:1]), "b": jnp.float32(given[1:])}
        found, _ = change.update(gradient, change.init(gradient))
        np.testing.assert_allclose([found["a"][0], found["b"][0]], expected, rtol=1e-6)
    ours = make_optimiser(1.0, name="sgd", clip_norm=1.0, before=raise_entries(2.0))
    updates, _ = jax.jit(ours.update)({"w": jnp.float32([1.0, 0.0])}, ours.init({"w": jnp.zeros(2)}))
    np.testing.assert_allclose(updates["w"], [-1.0, 0.0], rtol=1e-6)  # raised to 2, then clipped


# ---- options of runs and their keepers


def test_resume_requires_the_same_options_and_folder(tmp_path):
    options = RunOptions(out=tmp_path, save_every=2)
    with jax.numpy_dtype_promotion("standard"):
        for name in ("a", ""):
            keeper = keeper_of(options, name, {"alphabet": "abc"})
            fit(TASK, ADAM, (3, 5), LONG._replace(steps=10), distance, keeper=keeper, run=TRAIN_ADAM)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "checkpoints", "log.jsonl"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]
    names = {"a": {"alphabet": "abc"}, "b": {}}  # b has not begun
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run, up to step 10"):
        check_runs(options, names)
    again = RunOptions(out=tmp_path, resume=True, quick=True)
    check_runs(again, names)
    with pytest.raises(ValueError, match="has seed 0, this one 1; "):
        check_runs(RunOptions(out=tmp_path, resume=True, seed=1), names)
    with pytest.raises(ValueError, match="has alphabet 'abc', this one None; "):
        check_runs(again, {"a": {}})
    with pytest.raises(ValueError, match="--resume expected checkpoints in .*, found none"):
        check_runs(again, {"b": {}})
    check_runs(options, {"b": {}})
    start = fit(TASK, ADAM, (3, 5), LONG._replace(steps=0), distance, run=TRAIN_ADAM)
    assert int(keeper_of(again, "a", names["a"]).restored(start).state.step) == 10
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]  # the log goes on too
    assert keeper_of(again, "b", {}).restored(start) is start


def test_tensorboard_receives_every_number_of_every_seed(monkeypatch, tmp_path):
    class SummaryWriter:
        def __init__(self, folder, **options):
            begun.append(options)
            self.name, self.flush = folder.rsplit("/", 1)[-1], lambda: None

        def add_scalar(self, *told):
            heard.append((self.name, *told))

    heard, begun = [], []
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    keeper = TensorBoard(tmp_path, range(3, 5))
    keeper.restored(types.SimpleNamespace(state=types.SimpleNamespace(step=0)))
    keeper.restored(types.SimpleNamespace(state=types.SimpleNamespace(step=6)))
    assert begun == [{}, {}, {"purge_step": 7}, {"purge_step": 7}]
    metrics = {"value": np.array([3.0, 4.0])}
    found = loop.Evaluation(7, 0.5, np.array([1.0, 2.0]), metrics)
    keeper.evaluated(loop.Course(None, None, [found]), last=False)
    assert heard == [
        ("seed 3", "loss", 1, 7),
        ("seed 4", "loss", 2, 7),
        ("seed 3", "value", 3, 7),
        ("seed 4", "value", 4, 7),
    ]
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'expected the package tensorboardX; pip install "jaxrnn\[tensorboard\]"'):
        check_runs(RunOptions(out=tmp_path, tensorboard=True), {"": {}})


# ---- jobs side by side


def test_jobs_run_on_separate_devices():
    def job(number):
        def work(devices, show):
            show(1, "half")
            (used,) = jnp.ones(2).devices()
            assert devices == (used,)
            return number, used

        return Job(2, work)

    found = side_by_side({f"job {k}": job(k) for k in range(20)})
    assert [number for number, _ in found.values()] == list(range(20))
    assert {device for _, device in found.values()} <= set(jax.devices())


def test_failing_job_stops_the_others():
    def fails(devices, show):
        raise ZeroDivisionError("so it goes")

    def goes_on(devices, show):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            show(1, "")
        outlived.append(1)

    outlived = []
    others = {f"other {k}": Job(1, goes_on) for k in range(8)}
    with pytest.raises(ZeroDivisionError, match="so it goes"):
        side_by_side({"first": Job(1, goes_on), "fails": Job(1, fails), **others})
    assert not outlived


def test_calls_of_a_run_end_at_its_evaluations():
    assert list(loop._calls(4, Settings(13, 5, steps_per_call=3))) == [
        range(4, 5),
        range(5, 8),
        range(8, 10),
        range(10, 13),
    ]
