"""A training continues from its checkpoints bit for bit; what is damaged, changed or no checkpoint is passed over."""

import hashlib
import json
import shutil
import types

import numpy as np
import pytest

from experiments.command.report import CannotRun
from experiments.training import checkpoints
from experiments.training.checkpoints import Checkpoints, check_folder
from experiments.training.loop import Settings
from tests.support.pulling import ABOUT, LONG, assert_same, distance, kept, run, stopped_at


@pytest.fixture(scope="module")
def whole():
    return run()


def test_resumed_run_equals_an_uninterrupted_run(whole, tmp_path):
    run(LONG._replace(steps=10), kept(tmp_path, resume=False))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 15, "lo')  # the run was killed while it wrote a line
    assert_same(run(keeper=kept(tmp_path, resume=True)), whole)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    np.testing.assert_array_equal([line["distance"] for line in lines], whole.metric("distance"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["15", "20"]
    again = run(keeper=kept(tmp_path, resume=True))  # no step is left
    assert_same(again, whole)


def damage_bytes(step):
    biggest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    biggest.write_bytes(content)


def cut(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def signed(record):
    """The record with its digest, which the test computes by itself."""
    content = {name: value for name, value in record.items() if name != "digest"}
    return {**content, "digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def rewrite(step, change):
    """Changes the record of a checkpoint."""
    path = step / "record" / "metadata"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def of_other_arrays(step):
    rewrite(step, lambda record: signed({**record, "arrays": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [damage_bytes, cut, of_other_arrays, lambda step: shutil.rmtree(step / "record")],
)
def test_damaged_checkpoint_is_reported_and_the_previous_one_is_used(damage, whole, tmp_path, capsys):
    stopped_at(15, tmp_path)
    damage(tmp_path / "checkpoints" / "15")
    check_folder(tmp_path, ABOUT, resume=True)
    assert_same(run(keeper=kept(tmp_path, resume=True)), whole)
    complaint = capsys.readouterr().err
    assert complaint.startswith("checkpoint 15 is damaged and left out: ")
    assert complaint.count("\n") == 1
    assert not (tmp_path / "checkpoints" / "10").exists()  # only the two newest are kept
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["15", "20"]


def test_resume_continues_from_a_checkpoint_of_every_third_evaluation(tmp_path):
    settings, places = LONG._replace(steps=25), tmp_path / "checkpoints"
    whole = run(settings, kept(tmp_path, resume=False, every=3))
    assert sorted(path.name for path in places.iterdir()) == ["15", "25"]  # the third and the last evaluation
    shutil.rmtree(places / "25")
    assert_same(run(settings, kept(tmp_path, resume=True, every=3)), whole)


def test_seconds_accumulate_over_a_resumed_run(whole):
    half = run(LONG._replace(steps=10))
    half = half._replace(history=[found._replace(seconds=1000.0) for found in half.history])
    found = run(keeper=types.SimpleNamespace(restored=lambda start: half, evaluated=lambda course, last: None))
    assert [evaluation.seconds > 1000 for evaluation in found.history] == [False, False, True, True]
    assert_same(found, whole)


def test_resume_does_not_extend_a_run_that_stopped_early(tmp_path):
    settings = LONG._replace(stop=lambda metrics: True)
    early = run(settings, kept(tmp_path, resume=False))
    assert len(early.history) == 1
    assert_same(run(settings, kept(tmp_path, resume=True)), early)


def test_unfinished_save_is_ignored(whole, tmp_path):
    stopped_at(10, tmp_path)
    place = tmp_path / "checkpoints"
    shutil.copytree(place / "10", place / "15.orbax-checkpoint-tmp-123")
    assert_same(run(keeper=kept(tmp_path, resume=True)), whole)


def test_impossible_resumes_are_refused(tmp_path, monkeypatch):
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
    with pytest.raises(ValueError, match="has cell 'gru', this one 'a{58}…; give"):
        check_folder(tmp_path, {**ABOUT, "cell": "a" * 999}, resume=True)
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
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "10",
        "5",
    ]  # damaged checkpoints are kept


# ---- strays among the checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was killed after step 10."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped_at(10, folder)
    return folder


def a_file(name):
    return lambda place: (place / name).write_text("mine")


def a_folder(name):
    return lambda place: (place / name).mkdir()


def a_copy(step, name):
    def copy(place):
        shutil.copytree(place / step, place / name)
        (place / name / "mine").write_text("mine")

    return copy


def a_copy_of_another_run(place):
    a_copy("10", "400")(place)
    rewrite(place / "400", lambda record: signed({**record, "about": {"cell": "lstm"}}))


STRAYS = {
    "a file where a checkpoint is to be saved": a_file("15"),
    "a file between checkpoints": a_file("7"),
    "a file after the last": a_file("400"),
    "an empty folder": a_folder("15"),
    "a folder with zeros before its number": a_folder("015"),
    "a file with other digits": a_file("١٥"),
    "a copy where a checkpoint is to be saved": a_copy("10", "15"),
    "a copy after the last": a_copy("5", "400"),
    "a copy between checkpoints": a_copy("10", "7"),
    "a copy from another run": a_copy_of_another_run,
    "a copy with zeros before its number": a_copy("10", "010"),
    "a copy with another name": a_copy("10", "10 copy"),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_strays_are_passed_over_and_kept(stray, stopped, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    STRAYS[stray](folder / "checkpoints")
    check_folder(folder, ABOUT, resume=True)
    assert_same(run(keeper=kept(folder, resume=True)), whole)
    left = [path for path in (folder / "checkpoints").iterdir() if path.name not in ("15", "20")]
    if "empty" not in stray:  # which is as good as a damaged checkpoint
        (own,) = left
        assert own.is_file() or not [*own.iterdir()] or (own / "mine").read_text() == "mine"
    assert_same(run(keeper=kept(folder, resume=True)), whole)  # it is passed over again


def test_folder_of_strays_alone_begins_anew(whole, tmp_path):
    place = tmp_path / "checkpoints"
    place.mkdir()
    (place / "5").write_text("mine")
    with pytest.raises(ValueError, match="--resume expected a checkpoint in .*, found none"):
        check_folder(tmp_path, ABOUT, resume=True)
    check_folder(tmp_path, ABOUT, resume=False)
    assert_same(run(keeper=kept(tmp_path, resume=False)), whole)
    assert (place / "5.stray").read_text() == "mine"


# ---- records that were changed


def first_loss(record):
    history = [{**found, "loss": [value + 1e-9 for value in found["loss"]]} for found in record["history"]]
    return {**record, "history": history}


CHANGES = {
    "an empty history": lambda record: {**record, "history": []},
    "a signed empty history": lambda record: signed({**record, "history": []}),
    "a shortened history": lambda record: {**record, "history": record["history"][:1]},
    "a history that is none": lambda record: {**record, "history": None},
    "another loss": first_loss,
    "other evaluations waited": lambda record: {**record, "waited": 1 + record["waited"]},
    "a description that is a list": lambda record: {**record, "about": [1, 2]},
    "a signed description that is a list": lambda record: signed({**record, "about": [1, 2]}),
    "another description": lambda record: {**record, "about": {"cell": "lstm"}},
    "another step": lambda record: {**record, "step": 5},
    "no digest": lambda record: {name: value for name, value in record.items() if name != "digest"},
    "an entry more": lambda record: {**record, "more": 1},
    "a list": lambda record: [record],
    "a number": lambda record: 1,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_record_is_found_and_the_previous_checkpoint_is_used(change, stopped, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    rewrite(folder / "checkpoints" / "10", CHANGES[change])
    check_folder(folder, ABOUT, resume=True)
    assert_same(run(keeper=kept(folder, resume=True)), whole)
    assert capsys.readouterr().err.startswith("checkpoint 10 is damaged and left out: ")


def test_run_whose_records_are_all_changed_is_refused(stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for step in ("5", "10"):
        rewrite(folder / "checkpoints" / step, first_loss)
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged, or of another version"):
        check_folder(folder, ABOUT, resume=True)


def test_digest_covers_names_dtypes_shapes_and_values():
    one = {"a": np.float32([[1, 2], [3, 4]]), "b": np.float32([5])}
    others = [
        {"a": one["a"], "c": one["b"]},
        {"a": one["a"].reshape(4), "b": one["b"]},
        {"a": one["a"].view(np.int32), "b": one["b"]},
        {"a": one["a"] + np.float32([0, 1e-6]), "b": one["b"]},
        {"a": one["a"]},
    ]
    assert len({checkpoints._digest(arrays) for arrays in (one, *others)}) == 1 + len(others)
    assert checkpoints._digest(dict(reversed(one.items()))) == checkpoints._digest(one)
    assert checkpoints._digest({**one, "a": np.asfortranarray(one["a"])}) == checkpoints._digest(one)


# ---- what a run continues with


def away(params):
    """A metric that is least at the first evaluation: the weights only go away from where they are then."""
    return {"distance": -distance(params)["distance"]}


def test_patience_counts_on_when_a_run_is_resumed(tmp_path):
    """The first evaluation is the best. Three later ones that are no better end the training, interrupted or not."""
    settings = Settings(steps=40, evaluate_every=5, minimise="distance", patience=3, steps_per_call=2)
    whole = run(settings, evaluate=away)
    assert (whole.metric("distance").argmin(0) == 0).all()
    assert [found.step for found in whole.history] == [5, 10, 15, 20]
    for step in (10, 15):  # one and two evaluations have been waited
        folder = tmp_path / str(step)
        stopped_at(step, folder, settings, away)
        assert_same(run(settings, kept(folder, resume=True), away), whole)


def test_resumed_run_keeps_the_seconds_before(whole, tmp_path):
    half = run(LONG._replace(steps=10))
    spent = [found._replace(seconds=1000.0 + k) for k, found in enumerate(half.history)]
    Checkpoints(tmp_path, ABOUT, resume=False).save(half._replace(history=spent))
    found = run(keeper=kept(tmp_path, resume=True))
    seconds = [evaluation.seconds for evaluation in found.history]
    assert seconds[:2] == [1000, 1001]
    assert 1001 < seconds[2] < seconds[3] == found.seconds
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["seconds"] for line in lines], seconds, atol=1e-3)
    assert_same(found, whole)


def test_resumed_run_keeps_the_best_parameters_before(tmp_path):
    settings = Settings(steps=20, evaluate_every=5, minimise="distance", steps_per_call=2)
    whole = run(settings, evaluate=away)  # the best are those of the first evaluation
    stopped_at(10, tmp_path, settings, away)
    again = run(settings, kept(tmp_path, resume=True), away)
    np.testing.assert_array_equal(again.params["w"], whole.best.params["w"])
    assert not np.array_equal(again.params["w"], again.state.params["w"])


def test_checkpoints_of_another_run_are_not_continued(stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    with pytest.raises(CannotRun, match="every checkpoint in .* is damaged, or of another version"):
        run(keeper=Checkpoints(folder, {"cell": "lstm"}, resume=True))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "5"]
