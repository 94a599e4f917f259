"""Progress bars at any width, the list and the help of scripts at 80 columns, and what Ctrl-C keeps."""

import importlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from rich.console import Console
from rich.progress import TaskID

import experiments.__main__ as listing
from experiments.command import bars, options, progress, script
from experiments.command.progress import Job, side_by_side
from experiments.command.stopping import STOP, Stopped
from experiments.training.checkpoints import AtStop, Checkpoints
from experiments.training.loop import fit
from tests.support.pulling import ABOUT, ADAM, LONG, TASK, TRAIN_ADAM, distance

NOTE = "loss 0.1234  train 1.234e-05  test accuracy 0.9876"
FIELDS = {"left": None, "state": "", "note": ""}


def lines(width, terminal=True):
    """What is shown of a run that waits, one that compiles, one under way, and one that has ended."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=terminal, color_system=None)
    shown = bars.Bars(console)
    shown.add_task("row by row, tanh RNN", total=100, start=False, **{**FIELDS, "state": "waiting"})
    shown.add_task("row by row, LSTM", total=100, **{**FIELDS, "state": "compiling"})
    shown.add_task("pixel by pixel, LSTM", total=100, completed=50, **{**FIELDS, "left": 3675, "note": NOTE})
    ended = shown.add_task("gru", total=100, **FIELDS)
    shown.update(ended, completed=100, note=NOTE)
    console.print(shown.make_tasks_table(shown.tasks))
    return written.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_label_bar_percent_time_and_last_figure_are_whole_at_any_width(width, terminal):
    waits, compiles, runs, ended = found = lines(width, terminal)
    assert all(len(line) <= width for line in found)
    assert "waiting" in waits
    assert "compiling" in compiles
    assert "%" not in waits + compiles
    assert "50 % 1:01:15" in runs
    assert "100 % " in ended
    for line in (runs, ended):
        assert line.rstrip().endswith(" 0.9876")
        assert line.count("━") >= 2
    assert ended.startswith("gru ")
    assert [line.split()[0][:3] for line in found] == ["row", "row", "pix", "gru"]
    whole = {
        40: ("0.9876",),
        60: ("test accuracy 0.9876",),
        80: ("test accuracy 0.9876",),
        120: (NOTE, "LSTM ", "RNN "),
    }
    for part in whole[width]:
        assert part in runs + waits, part
    assert ("1:01:15 left" in runs) == (width >= 60)


@pytest.mark.parametrize("total", range(24, 130, 7))
def test_parts_of_a_line_never_exceed_the_width(total):
    for label, note in itertools.product(("a", "a" * 40), ("", "loss 1", NOTE)):
        width = bars.widths(total, [label], ["  7 % 00:12"], [note])
        assert sum(width) + 3 <= total
        assert min(width) >= 0
        assert width.bar >= bars.LEAST_BAR
        last = bars.parts_of(note)[-1]
        assert width.note >= min(len(last), total - 11 - 3 - bars.LEAST_BAR - bars.LABEL)


def test_jobs_say_what_they_wait_for(monkeypatch):
    told = []

    class Told(bars.Bars):
        def update(self, task_id, **changes):
            told.append({"task": task_id, **changes})
            super().update(task_id, **changes)

    monkeypatch.setattr(progress, "Bars", lambda: Told(Console(file=io.StringIO())))
    side_by_side({"one": Job(4, lambda devices, show: show(2, "loss 1"))}, devices=jax.devices()[:1])
    states = [change["state"] for change in told if change["task"] == 1 and "state" in change]
    assert states == ["compiling", "", ""]


def test_time_left_is_by_the_speed_since_the_first_report(monkeypatch):
    class Bar:
        def update(self, task, **told):
            assert (told["state"], told["note"]) == ("", "loss 1")
            left.append((told["completed"], told["left"]))

    left, clock = [], iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    bar: Any = Bar()
    show = progress._reports_to(bar, TaskID(0), 1150, threading.Event())
    for done in (1000, 1010, 1060):
        show(done, "loss 1")
    assert left == [(1000, None), (1010, 28), (1060, 6)]


# ---- 80 columns


def test_list_fits_80_columns(capsys):
    listing.main([])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("name", [one.name for one in listing.SCRIPTS])
def test_help_fits_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{name}.__main__")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert not ended.value.code
    said = capsys.readouterr().out.splitlines()
    assert len(said) > 5
    assert max(map(len, said)) <= 80, max(said, key=len)


def test_help_keeps_every_word_of_a_long_description(monkeypatch):
    class Long:
        pass

    Long.__doc__ = "First words.\n\n" + "A sentence that is long. " * 9
    monkeypatch.setenv("COLUMNS", "50")
    text = options.description(Long)
    assert text.split() == Long.__doc__.split()
    assert max(map(len, text.splitlines())) <= 50
    assert all(line.startswith("  ") for line in text.split("\n\n")[1].splitlines()[1:])


# ---- Ctrl-C


def train(**options):
    with jax.numpy_dtype_promotion("standard"):  # Optax's
        return fit(TASK, ADAM, (3, 5), LONG, distance, run=TRAIN_ADAM, **options)


def stopping(after):
    """Reports progress until `after` steps are done, then as if the user had stopped the script."""

    def show(done, note):
        if done >= after:
            STOP.asked.set()
            raise Stopped

    return show


@pytest.fixture
def clean():
    """Nothing has asked for a stop, and SIGINT interrupts, which a process in the background inherits as ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    STOP.begin()
    yield
    STOP.begin()
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("every", [None, 4])
def test_stopped_training_ends_at_its_last_evaluation_and_continues_exactly(every, clean, tmp_path):
    whole = train()

    def keeper():
        return AtStop(tmp_path, ABOUT) if every is None else Checkpoints(tmp_path, ABOUT, resume=False, every=every)

    stopped = train(show=stopping(17), keeper=keeper())
    assert [found.step for found in stopped.history] == [5, 10, 15]
    assert int(stopped.state.step) == 15
    np.asarray(stopped.params["w"])  # its memory was not given to the steps after it
    STOP.keep()
    assert STOP.kept
    again = Checkpoints(tmp_path, ABOUT, resume=True)
    STOP.begin()
    resumed = train(keeper=again)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    assert [found.step for found in resumed.history] == [found.step for found in whole.history]


def test_training_that_is_stopped_before_its_first_evaluation_has_no_result(clean, tmp_path):
    with pytest.raises(Stopped):
        train(show=stopping(1), keeper=AtStop(tmp_path, ABOUT))
    STOP.keep()
    assert not STOP.kept
    assert not list(tmp_path.iterdir())


def interrupted(jobs, begun, count):
    """Runs jobs, and interrupts the main thread as Ctrl-C does once so many of them have begun."""

    def interrupt():
        deadline = time.monotonic() + 20
        while len(begun) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        return side_by_side(jobs, devices=jax.devices()[:1])
    finally:
        thread.join()


def until_stopped(begun, result):
    def work(devices, show):
        begun.append(result)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                show(1, "")
            except Stopped:
                return result
            time.sleep(0.01)
        raise AssertionError("not stopped")

    return work


def test_interrupted_jobs_return_what_they_reached(clean):
    begun = []
    assert interrupted({"a": Job(9, until_stopped(begun, "so far"))}, begun, 1) == {"a": "so far"}
    assert STOP.asked.is_set()
    with pytest.raises(KeyboardInterrupt):  # nothing begins after it
        side_by_side({"b": Job(1, lambda devices, show: begun.append("b"))})
    assert begun == ["so far"]


def test_jobs_that_have_not_begun_leave_no_result(clean):
    begun = []
    jobs = {name: Job(9, until_stopped(begun, name)) for name in "ab"}
    with pytest.raises(KeyboardInterrupt):
        interrupted(jobs, begun, 1)
    assert begun == ["a"]


@pytest.mark.processes
def test_ctrl_c_writes_what_is_there_and_names_the_command_that_goes_on(clean, tmp_path):
    out = tmp_path / "o ut"
    words = ["--readings", "rows", "--cells", "gru", "--seeds", "1", "--hidden-size", "4", "--epochs", "9999"]
    words += ["--out", str(out)]
    command = [sys.executable, "-m", "experiments.sequential_images"]
    root = Path(script.__file__).parents[2]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *words], cwd=root, **pipes) as process:
        deadline = time.monotonic() + 300
        log = out / "rows-gru" / "log.jsonl"
        while not log.is_file() or not log.stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    line = said.splitlines()[-1]
    assert line.startswith("sequential_images: stopped; what it reached is in ")
    assert line.endswith(f"python -m experiments.sequential_images {' '.join(words[:-1])} '{out}' --resume")
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    logged = [json.loads(row)["step"] for row in log.read_text(encoding="utf-8").splitlines()]
    saved = [int(path.name) for path in (log.parent / "checkpoints").iterdir()]
    assert record["stopped"] is True
    assert saved == [logged[-1]]
