"""The training loop against the same steps in plain Python, and checkpoints from which it goes on bit for bit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _checkpoints, _loop
from experiments._checkpoints import Checkpoints, check_folder
from experiments._logs import Keepers, Log
from experiments._loop import Settings, Task, fit, make_optimiser, population
from experiments._progress import Job, side_by_side
from experiments._report import CannotRun


def pull(params, carry, batch, key):
    """Half the squared distance from a place that moves, is noisy, and depends on what came before."""
    target = batch["to"] + 0.1 * jax.random.normal(key, batch["to"].shape) + 0.01 * carry
    return jnp.sum(jnp.square(params["w"] - target)) / 2, carry + 1


def batch(seed, step):
    return {"to": np.float32([seed, step, seed * step])}


TASK = Task(lambda key: {"w": jax.random.normal(key, (3,))}, pull, batch, carry=np.float32(0))
OPTIMISER = make_optimiser(0.1, name="sgd", clip_norm=None)
SETTINGS = Settings(steps=23, evaluate_every=5, steps_per_call=2)
DISTANCE = population(lambda params, to: jnp.linalg.norm(params["w"] - to))


def distance(params):
    return {"distance": DISTANCE(params, jnp.float32([2.0, 10.0, 20.0]))}


def by_hand(seed, steps):
    """The weights after each step, and the loss of each."""
    key_w, key = jax.random.split(jax.random.key(seed))
    w, seen, losses = np.asarray(jax.random.normal(key_w, (3,))), [], []
    for step in range(steps):
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, step), (3,)))
        error = w - (batch(seed, step)["to"] + 0.1 * noise + 0.01 * step)
        losses.append(np.sum(error**2) / 2)
        w = w - 0.1 * error
        seen.append(w)
    return np.stack(seen), np.asarray(losses)


def test_the_loop_is_that_of_plain_python():
    course = fit(TASK, OPTIMISER, (3, 5), SETTINGS, distance)
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


def test_a_seed_is_not_changed_by_those_beside_it():
    both, alone = (fit(TASK, OPTIMISER, seeds, SETTINGS, distance) for seeds in ((3, 5), (5,)))
    assert (np.asarray(both.params["w"][1]) == alone.params["w"][0]).all()


def test_each_seed_keeps_its_best_and_patience_ends():
    values = iter(np.float32([[3, 3], [2, 4], [5, 5], [1, 6], [7, 7], [8, 8], [9, 0]]))
    seen = []

    def evaluate(params):
        seen.append(np.array(params["w"]))
        return {"value": next(values)}

    course = fit(TASK, OPTIMISER, (0, 1), Settings(100, 5, minimise="value", patience=2), evaluate)
    assert len(course.history) == 6  # the third evaluation waits, the fourth is better, then two wait
    assert (course.params["w"][0] == seen[3][0]).all()
    assert (course.params["w"][1] == seen[0][1]).all()
    assert course.best_of("value").tolist() == [1, 3]


def test_the_aim_ends_a_run_and_the_bar_is_told():
    told = []
    settings = Settings(100, 5, stop=lambda metrics: metrics["value"][0] > 2, steps_per_call=3)
    counts = iter([1.0, 2.0, 3.0])
    course = fit(TASK, OPTIMISER, (0,), settings, lambda params: {"value": [next(counts)]}, lambda n, _: told.append(n))
    assert course.history[-1].step == 15
    assert told == [3, 5, 8, 10, 13, 15, 100]


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_optimisers_clip_warm_up_fall_and_leave_out_what_is_not_finite(name):
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


# ---- checkpoints

ABOUT = {"cell": "gru", "sizes": (3, 4)}
ADAM = make_optimiser(0.1)
LONG = Settings(steps=20, evaluate_every=5, minimise="distance", steps_per_call=2)


def kept(folder, *, resume, every=1):
    return Keepers(Checkpoints(folder, ABOUT, resume=resume, every=every), Log(folder))


def run(settings=LONG, keeper=None):
    with jax.numpy_dtype_promotion("standard"):
        return fit(TASK, ADAM, (3, 5), settings, distance, keeper=keeper)


def assert_same(a, b):
    parts = [
        (_checkpoints._arrays(course), course.best.waited, [f._replace(seconds=0) for f in course.history])
        for course in (a, b)
    ]
    jax.tree.map(np.testing.assert_array_equal, *parts)


@pytest.fixture(scope="module")
def whole():
    return run()


def test_a_run_in_two_halves_is_the_run(whole, tmp_path):
    run(LONG._replace(steps=10), kept(tmp_path, resume=False))
    assert_same(run(keeper=kept(tmp_path, resume=True)), whole)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    np.testing.assert_array_equal([line["distance"] for line in lines], whole.metric("distance"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["15", "20"]
    again = run(keeper=kept(tmp_path, resume=True))  # there is nothing left to do
    assert_same(again, whole)


class Killed(Exception):
    pass


def stopped_at(step, folder):
    def evaluate(params):
        evaluations.append(None)
        if 5 * len(evaluations) > step:
            raise Killed
        return distance(params)

    evaluations = []
    with pytest.raises(Killed), jax.numpy_dtype_promotion("standard"):
        fit(TASK, ADAM, (3, 5), LONG, evaluate, keeper=kept(folder, resume=False))


def damage_bytes(step):
    biggest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    biggest.write_bytes(content)


def cut(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [damage_bytes, cut, lambda step: shutil.rmtree(step / "record")],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(damage, whole, tmp_path, capsys):
    stopped_at(15, tmp_path)
    damage(tmp_path / "checkpoints" / "15")
    check_folder(tmp_path, ABOUT, resume=True)
    assert_same(run(keeper=kept(tmp_path, resume=True)), whole)
    complaint = capsys.readouterr().err
    assert complaint.startswith("checkpoint 15 is damaged and left out: ")
    assert complaint.count("\n") == 1


def test_an_unfinished_save_is_not_a_checkpoint(whole, tmp_path):
    stopped_at(10, tmp_path)
    place = tmp_path / "checkpoints"
    shutil.copytree(place / "10", place / "15.orbax-checkpoint-tmp-123")
    assert_same(run(keeper=kept(tmp_path, resume=True)), whole)


def test_what_cannot_be_resumed_is_refused(tmp_path, monkeypatch):
    check_folder(tmp_path, ABOUT, resume=False)
    with pytest.raises(ValueError, match="--resume expected a checkpoint in .*, found none"):
        check_folder(tmp_path, ABOUT, resume=True)
    stopped_at(10, tmp_path)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run, up to step 10; .*--resume"):
        check_folder(tmp_path, ABOUT, resume=False)
    with pytest.raises(ValueError, match=r"the run in .* has sizes \[3, 4\], this one \[3, 5\]; give the same"):
        check_folder(tmp_path, {**ABOUT, "sizes": (3, 5)}, resume=True)
    with pytest.raises(ValueError, match="has depth None, this one 2"):
        check_folder(tmp_path, {**ABOUT, "depth": 2}, resume=True)
    check_folder(tmp_path, ABOUT, resume=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(CannotRun, match="checkpoints need [0-9,]+ bytes, 100 are free"):
        run(keeper=kept(tmp_path, resume=True))
    monkeypatch.undo()
    for step in (5, 10):
        cut(tmp_path / "checkpoints" / str(step))
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged"):
        check_folder(tmp_path, ABOUT, resume=True)
    with pytest.raises(CannotRun, match="every checkpoint in .* is damaged"):
        run(keeper=kept(tmp_path, resume=True))


# ---- side by side


def test_jobs_run_on_devices_of_their_own():
    def job(number):
        def work(show):
            show(1, "half")
            return number, next(iter(jnp.ones(2).devices()))

        return Job(2, work)

    found = side_by_side({f"job {k}": job(k) for k in range(20)})
    assert [number for number, _ in found.values()] == list(range(20))
    assert {device for _, device in found.values()} <= set(jax.devices())


def test_a_job_that_fails_stops_the_others():
    def fails(show):
        raise ZeroDivisionError("so it goes")

    def goes_on(show):
        while True:
            show(1, "")

    with pytest.raises(ZeroDivisionError, match="so it goes"):
        side_by_side({"fails": Job(1, fails), **{f"other {k}": Job(1, goes_on) for k in range(8)}})


def test_the_calls_of_a_run_meet_its_evaluations():
    assert list(_loop._calls(4, Settings(13, 5, steps_per_call=3))) == [
        range(4, 5),
        range(5, 8),
        range(8, 10),
        range(10, 13),
    ]
