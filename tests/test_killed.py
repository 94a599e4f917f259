"""A training that is killed again and again ends where one ends that was left alone, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import translate_toy

KILLS = 20
STEPS = 4000
OPTIONS = {
    "task": "reversal", "size": 2, "cell": "gru", "hidden-size": 4, "embedding": 2, "batch-size": 2,
    "steps": STEPS, "evaluate-every": 10, "save-every": 1,
}  # fmt: skip


def started(folder, *more):
    command = [
        sys.executable,
        "-m",
        "experiments.translate_toy",
        *(f"--{k}={v}" for k, v in OPTIONS.items()),
        f"--out={folder}",
        *more,
    ]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    root = Path(translate_toy.__file__).parents[1]
    return subprocess.Popen(
        command, cwd=root, env={**os.environ, **cache}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def steps_of(folder):
    place = folder / "checkpoints"
    return sorted(int(path.name) for path in place.iterdir() if path.name.isdecimal()) if place.is_dir() else []


def arrays_of(folder):
    manager = ocp.CheckpointManager((folder / "checkpoints").absolute())
    found = manager.restore(STEPS, args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))["arrays"]
    manager.close()
    return {name: np.asarray(value) for name, value in found.items()}


def kill_in_training(process, folder, moment):
    """SIGKILL so long after the process has begun to save; whether it was still running."""
    before, deadline = steps_of(folder), time.monotonic() + 120
    while steps_of(folder) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(moment)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return running


def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    done = started(alone)
    _, err = done.communicate()
    assert done.returncode == 0, err
    rng, kills, reached = random.Random(0), 0, [0]
    while kills < KILLS:
        process = started(killed, *(["--resume"] if steps_of(killed) else []))
        assert kill_in_training(process, killed, rng.uniform(0, 0.25)), (
            "it ended before it was killed; give it more steps"
        )
        kills += 1
        reached.append(steps_of(killed)[-1])
    assert reached == sorted(reached)  # what was saved is never lost
    assert 0 < reached[1] < reached[-1] < STEPS
    done = started(killed, "--resume")
    _, err = done.communicate()
    assert done.returncode == 0, err
    jax.tree.map(np.testing.assert_array_equal, arrays_of(killed), arrays_of(alone))
    shutil.rmtree(tmp_path / "cache")
