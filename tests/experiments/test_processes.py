"""Training over devices and processes gives the same params, and ends if a process is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.command.devices import DeviceOptions, ProcessOptions, check_devices, devices_of
from experiments.command.progress import shares
from experiments.command.report import CannotRun
from experiments.models import saved as saved_models
from experiments.training import placing, runs
from tests.support import toy
from tests.support.distributed_worker import trained
from tests.support.training import optax_promotes

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # measured: 2e-7 and 5e-16
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def start(arguments, folder, **environment):
    """Starts a process that writes its output into a file."""
    with folder.with_suffix(".txt").open("w") as said:
        command = [sys.executable, "-m", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **QUICKLY, **environment}, stdout=said, stderr=subprocess.STDOUT
        )


def workers(folder, count=2, patience=60, **options):
    own = {"coordinator": f"127.0.0.1:{free_port()}", "devices": 2, "processes": 2, **options}
    told = [json.dumps({**own, "process": k}) for k in range(count)]
    return [
        start(["tests.support.distributed_worker", folder, line, patience], folder / f"worker{k}")
        for k, line in enumerate(told)
    ]


@pytest.mark.devices
@pytest.mark.slow
def test_devices_and_processes_train_the_same_parameters(tmp_path):
    several = workers(tmp_path)
    with optax_promotes(), jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            name = str(np.dtype(dtype))
            alone, eight = (jax.tree.leaves(trained(jax.devices()[:count], dtype)) for count in (1, 8))
            for process, end in enumerate(several):
                assert end.wait(300) == 0, (tmp_path / f"worker{process}.txt").read_text()
                with np.load(tmp_path / f"{name}-{process}.npz") as found:
                    apart = [found[f"arr_{k}"] for k in range(len(alone))]
                chex.assert_trees_all_close(apart, alone, rtol=0, atol=TOLERANCE[name])
            chex.assert_trees_all_close(eight, alone, rtol=0, atol=TOLERANCE[name])


def test_processes_that_do_not_meet_report_in_one_line(tmp_path):
    """One process is the first of three, the other the second of two."""
    (first,) = workers(tmp_path, count=1, patience=4, processes=3)
    port = json.loads(first.args[-2])["coordinator"]
    told = json.dumps({"coordinator": port, "devices": 2, "processes": 2, "process": 1})
    second = start(["tests.support.distributed_worker", tmp_path, told, 4], tmp_path / "worker1")
    for k, (process, count) in enumerate(((first, 3), (second, 2))):
        assert process.wait(60) == 2
        said = (tmp_path / f"worker{k}.txt").read_text()
        assert (
            f"{count} processes did not meet within 4 s; was each of them started, with the same --processes?" in said
        )


def test_processes_with_different_options_report_in_one_line(tmp_path):
    both = pair(tmp_path / "run", tmp_path / "said", own=(["--steps=5"], ["--steps=6"]))
    assert [one.wait(120) for one in both] == [2, 2]
    for k in range(2):
        said = (tmp_path / f"said{k}.txt").read_text()
        assert f"toy: process {1 - k} was started with other options than process {k}\n" in said
    assert not (tmp_path / "run").exists()


# ---- one of two processes is killed

STEPS = 300
OPTIONS = {
    "cell": "gru", "hidden-size": 4, "embedding": 2, "batch-size": 4,
    "steps": STEPS, "evaluate-every": 50, "save-every": 1,
}  # fmt: skip


def options():
    return [f"--{name}={value}" for name, value in OPTIONS.items()]


def pair(folder, log, own=((), ())):
    """Starts two processes that find each other by environment variables."""
    where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [
        start(
            ["tests.support.toy", *options(), "--devices=2", f"--out={folder}", *more],
            log.with_name(f"{log.name}{k}"),
            **where,
            JAX_PROCESS_ID=str(k),
        )
        for k, more in enumerate(own)
    ]


def saved(folder):
    place = folder / "checkpoints"
    return sorted(int(path.name) for path in place.iterdir() if path.name.isdecimal()) if place.is_dir() else []


def arrays_of(folder):
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        step = saved(folder)[-1]
        found = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))["arrays"]
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.slow
def test_resume_continues_after_a_process_is_killed(tmp_path):
    folder = tmp_path / "run"
    both = pair(folder, tmp_path / "said")
    deadline = time.monotonic() + 300
    while not saved(folder):
        assert time.monotonic() < deadline
        assert all(one.poll() is None for one in both), (tmp_path / "said0.txt").read_text()
        time.sleep(0.05)
    both[1].send_signal(signal.SIGKILL)
    both[1].wait()
    start = time.monotonic()
    assert both[0].wait(90) != 0
    assert time.monotonic() - start < 60
    reached = saved(folder)[-1]
    assert reached < STEPS
    with optax_promotes():  # one process with one device resumes
        for where, more in ((folder, ["--resume"]), (tmp_path / "alone", [])):
            assert toy.main([*options(), f"--out={where}", "--devices=1", *more]) == 0
    assert saved(folder)[-1] == saved(tmp_path / "alone")[-1] == STEPS
    chex.assert_trees_all_close(arrays_of(folder), arrays_of(tmp_path / "alone"), rtol=0, atol=1e-5)  # measured: 3e-7


# ---- shares of devices and refusals


def test_runs_share_the_devices(monkeypatch):
    assert [len(own) for own in shares(range(8), 3)] == [2, 2, 2]
    assert shares(range(4), 9) == [(0,), (1,), (2,), (3,)]
    assert shares(range(4), 1) == [(0, 1, 2, 3)]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert shares(range(4), 3) == [(0, 1, 2, 3)]


def test_batch_is_sharded_over_as_many_devices_as_divide_it(monkeypatch):
    own = jax.devices()[:4]
    for size, count in ((8, 4), (6, 3), (2, 2), (7, 1)):
        placed = placing.placing(own, size)
        assert (1 if placed is None else placed.mesh.size) == count
    assert placing.placing((), 8) is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CannotRun, match="--batch-size expected a number that 4 devices divide, got 6"):
        placing.placing(own, 6)


def test_processes_may_have_different_numbers_of_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        jax, "local_devices", lambda process_index: [f"{process_index}{k}" for k in range(4 - process_index)]
    )
    assert devices_of(DeviceOptions()) == ("00", "01", "02", "03", "10", "11", "12")
    assert devices_of(DeviceOptions(devices=2)) == ("00", "01", "10", "11")


def test_only_the_first_process_writes_a_model(tmp_path, monkeypatch):
    options = {"cell": "rnn", "embedding": 2, "hidden_size": 2, "layers": 1, "dropout": 0.0}
    model = saved_models.model_of(3, options)
    params = jax.tree.map(
        lambda leaf: np.zeros((1, *leaf.shape), np.float32), jax.eval_shape(model.init, jax.random.key(0))
    )
    for index, written in ((1, []), (0, [saved_models.FILE])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        saved_models.save_model(tmp_path, "poems", options, ("a", "b", "c"), params)
        assert [path.name for path in tmp_path.iterdir()] == written
    with pytest.raises(ValueError, match="is damaged, or not of this script"):
        saved_models.load_model(tmp_path, "char_lm")
    assert saved_models.load_model(tmp_path, "poems").symbols == ("a", "b", "c")


def test_devices_are_the_first_of_every_process():
    assert devices_of(DeviceOptions()) == tuple(jax.devices())
    assert devices_of(DeviceOptions(devices=2)) == tuple(jax.devices()[:2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": 0}, "--devices expected a positive number, got 0"),
        ({"devices": 1025}, "--devices expected at most 1,024, got 1025"),
        ({"devices": 10**12}, "--devices expected at most 2,147,483,647, got 1000000000000"),
        ({"processes": 2}, "--processes expected --coordinator beside it; several processes need all three"),
        ({"coordinator": "a:1", "processes": 2}, "--coordinator expected --process beside it"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "--processes expected a positive number, got 0"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process expected 0 to 1, got 2"),
        ({"coordinator": "a", "processes": 2, "process": 1}, "--coordinator expected host:port, got a"),
        ({"coordinator": ":8", "processes": 2, "process": 1}, "--coordinator expected host:port, got :8"),
        ({"coordinator": "a:65536", "processes": 2, "process": 1}, "--coordinator expected host:port, got a:65536"),
        ({"coordinator": "a\nb", "processes": 2, "process": 1}, r"--coordinator expected host:port, got 'a\\nb'"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_devices(ProcessOptions(**given))


def test_bad_environment_variables_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES expected a number, got 'two'"):
        check_devices(ProcessOptions())
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "5")
    with pytest.raises(ValueError, match="--process expected 0 to 1, got 5"):
        check_devices(ProcessOptions(coordinator="a:1"))


def test_too_many_devices_are_refused(capsys, tmp_path):
    assert toy.main(["--quick", "--devices=9", f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err == "toy: --devices expected at most 8 here, got 9\n"


def test_batch_that_the_devices_do_not_divide_is_refused(capsys, tmp_path):
    assert toy.main(["--quick", "--devices=3", "--batch-size=64", f"--out={tmp_path}"]) == 2
    said = "toy: --batch-size expected a number that 3 devices divide, got 64\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
    runs.check_shares(toy.Config(devices=2, batch_size=7), 2)  # one device per run
    with pytest.raises(ValueError, match="--batch-size expected a number that 2 devices divide, got 7"):
        runs.check_shares(toy.Config(devices=4, batch_size=7), 2)
