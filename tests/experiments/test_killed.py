"""A training that is killed and resumed many times ends bit for bit like an uninterrupted one."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support import toy

pytestmark = pytest.mark.processes

KILLS = 10
EVERY = 5  # steps from one save to the next
STEPS = 600
OPTIONS = {
    "cell": "gru", "hidden-size": 4, "embedding": 2, "batch-size": 2,
    "steps": STEPS, "evaluate-every": EVERY, "save-every": 1,
}  # fmt: skip

# Imports once, forks a process for each line of arguments, and prints its process ID and then its exit status.
NURSERY = """
import json, os, sys
from tests.support import toy
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(toy.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def nursery(tmp_path):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    root = Path(toy.__file__).parents[2]
    with (tmp_path / "errors").open("w") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], cwd=root, env={**os.environ, **cache}, text=True, **pipes
        )
        with process:
            yield process
            process.stdin.close()


def started(nursery, folder, *more):
    """Starts a training and returns its process ID."""
    nursery.stdin.write(json.dumps([*(f"--{k}={v}" for k, v in OPTIONS.items()), f"--out={folder}", *more]) + "\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


def ended(nursery):
    """Waits for the training and returns its signal or its exit code."""
    status = int(nursery.stdout.readline())
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def running(number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, 0)
        return True
    return False


def steps_of(folder):
    place = folder / "checkpoints"
    return sorted(int(path.name) for path in place.iterdir() if path.name.isdecimal()) if place.is_dir() else []


def arrays_of(folder):
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        found = manager.restore(STEPS, args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))["arrays"]
    return {name: np.asarray(value) for name, value in found.items()}


def seconds_of_a_save(folder):
    """Median seconds from one save to the next."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return float(np.median(np.diff([json.loads(line)["seconds"] for line in lines])))


def kill_in_training(nursery, number, folder, moment):
    """Kills the process `moment` seconds after its first new checkpoint."""
    before, deadline = steps_of(folder), time.monotonic() + 300
    while steps_of(folder) == before and running(number):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)
    assert ended(nursery) == f"signal {int(signal.SIGKILL)}", (
        "the training ended before it was killed; give it more steps"
    )


@pytest.mark.slow
def test_resume_after_random_kills_reproduces_an_uninterrupted_run(nursery, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    started(nursery, alone)
    assert ended(nursery) == 0, (tmp_path / "errors").read_text()
    rng, rhythm, reached, unfinished = random.Random(0), seconds_of_a_save(alone), [0], 0
    for _ in range(KILLS):
        number = started(nursery, killed, *(["--resume"] if steps_of(killed) else []))
        kill_in_training(nursery, number, killed, rng.uniform(0, 4 * rhythm))
        reached.append(steps_of(killed)[-1])
        unfinished += any(not path.name.isdecimal() for path in (killed / "checkpoints").iterdir())
    assert reached == sorted(reached)  # no checkpoint is lost
    assert 0 < reached[1] < reached[-1] < STEPS
    assert unfinished  # some kills interrupted a save
    started(nursery, killed, "--resume")
    assert ended(nursery) == 0, (tmp_path / "errors").read_text()
    assert "damaged" not in (tmp_path / "errors").read_text()
    chex.assert_trees_all_equal(arrays_of(killed), arrays_of(alone))
    lines = [(folder / "log.jsonl").read_text(encoding="utf-8").splitlines() for folder in (killed, alone)]
    steps, others = ([json.loads(line)["step"] for line in part] for part in lines)
    assert steps == others == list(range(EVERY, STEPS + 1, EVERY))
