"""The page on deployment: its blocks run in order, each in the process that it says."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxrnn
from tests.support import in_numpy

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.S)
ELSEWHERE = "# another process\n"  # the first line of a block that runs where jaxrnn cannot be imported


def probabilities(params, xs, lengths):
    """Of the page's model, by its equations in NumPy."""
    layers, read_out = in_numpy.as_float64((params["net"], params["read_out"]))
    ys, mask = np.asarray(xs, np.float64), np.arange(len(xs))[:, None] < np.asarray(lengths)
    for layer in layers:
        state = jaxrnn.LSTMState(*np.zeros((2, len(lengths), 16)))
        ys = in_numpy.unroll("lstm", layer, ys, state, mask=mask)[1]
    last = np.where(lengths[:, None] > 0, ys[np.maximum(lengths - 1, 0), np.arange(len(lengths))], 0)
    logits = last @ read_out.v + read_out.c
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.peers
@pytest.mark.usefixtures("settings_of_users")
def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sum(block.startswith(ELSEWHERE) for block in BLOCKS) == 1
    namespace: dict = {}
    for block in BLOCKS:
        if block.startswith(ELSEWHERE):
            blocked = f"import sys\nsys.modules['jaxrnn'] = None  # an import raises\n{block}"
            command = [sys.executable, "-c", blocked]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            assert done.stdout == "(1, 3)\n(7, 4, 8)\n", done.stderr[-2000:]
        else:
            exec(compile(block, "docs/deploy.md", "exec"), namespace)
    expected = probabilities(namespace["params"], namespace["xs"], np.asarray(namespace["lengths"]))
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(namespace["expected"], expected, atol=1e-6)

    def loss(params):
        return -jnp.mean(jnp.log(namespace["classify"](params, namespace["xs"], namespace["lengths"])[:, 0]))

    gradients = jax.tree.leaves(jax.grad(loss)(namespace["params"]))
    for direct, exported in zip(gradients, namespace["gradients"], strict=True):
        np.testing.assert_allclose(exported, direct, atol=1e-6)
        assert np.abs(direct).max() > 1e-4
    artifact = export.deserialize(bytearray((tmp_path / "classifier.jax").read_bytes()))
    assert artifact.platforms == ("cpu", "cuda", "tpu")
    assert not re.search("cudnn|triton|mosaic|pallas", artifact.mlir_module(), re.I)
