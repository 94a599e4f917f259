"""Every example of the documentation runs and gives the outputs that it shows."""

import doctest
import importlib
import os
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support import in_numpy
from tests.support.peers import peer

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is first imported, or it looks for TensorFlow

ROOT = Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn.")]
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
MIGRATION = (ROOT / "MIGRATION.md").read_text(encoding="utf-8")


@pytest.fixture
def default_promotion():
    """The defaults of JAX instead of the strict settings of these tests."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, default_promotion):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_have_examples():
    public = [getattr(jaxrnn, name) for name in jaxrnn.__all__]
    functions = [f for f in public if callable(f) and not isinstance(f, type)]
    assert len(functions) >= 7
    for f in functions:
        assert ">>>" in f.__doc__, f.__name__
        assert "Raises:" in f.__doc__, f.__name__


def compare_encoder_decoder(names):
    """The cost is that of a loop in NumPy, for the encoder's parameters on the page and for others."""
    params, xs, target = in_numpy.as_float64((names["params"], names["xs"], names["target"]))
    late = np.concatenate([np.asarray(names["start"])[None], target[:-1]])
    valid = np.arange(len(xs))[:, None] < np.asarray(names["lengths"])
    zeros, costs = np.zeros((16, 32)), []
    for scale in (1.0, 0.5):
        (encoder,) = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params["encoder"])
        meaning, _, _ = in_numpy.unroll("gru", encoder, xs, zeros, mask=valid)
        _, ys, _ = in_numpy.unroll("gru", params["net"][0], late, meaning)
        logits = ys @ params["read_out"]
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        costs.append(-(target * log_probabilities).sum(-1).mean())
        moved = {**names["params"], "encoder": jax.tree.map(jnp.float32, (encoder,))}
        assert names["cost"](moved) == pytest.approx(costs[-1], rel=1e-6)  # measured at 2e-7
    assert abs(costs[0] - costs[1]) > 5e-4
    assert abs(costs[0] - np.log(12)) > 5e-3  # the cost of a read-out of zeros
    for leaf in jax.tree.leaves(names["gradients"]["encoder"]):
        assert np.abs(leaf).max() > 1e-4


def compare_residual_block(names):
    """Both blocks are those of NumPy's equations, with the recurrence by the loop in NumPy."""
    normal = lambda norm, a: a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...])  # noqa: E731
    linear = lambda layer, a: a @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])  # noqa: E731
    hs = linear(names["embed"], np.asarray(names["xs"], np.float64))
    for block in names["blocks"].layers:
        zeros = jaxrnn.SLSTMState(*np.zeros((4, 16, 32)))
        hs = hs + in_numpy.unroll("slstm-heads", block.mix.params[0], normal(block.norm, hs), zeros)[1]
        gate, value = np.split(linear(block.up, normal(block.norm_of_mlp, hs)), 2, -1)
        hs = hs + linear(block.down, np.asarray(jax.nn.gelu(gate.astype(np.float32)), np.float64) * value)
    np.testing.assert_allclose(names["features"], hs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("default_promotion", "unhooked")
def test_readme_blocks_run():
    """Blocks run in order, in one namespace."""
    assert len(README) == 18
    namespace: dict = {}
    for block in README:
        exec(compile(block, "README.md", "exec"), namespace)
        if "def cost" in block:
            compare_encoder_decoder(namespace)
        if "class ResidualBlock" in block:
            compare_residual_block(namespace)
        if "read.loss" in block:
            logits = np.asarray(namespace["ys"][-1] @ namespace["read_params"].v, np.float64)  # c is zero, the class 0
            wanted = np.log(np.exp(logits).sum(-1)) - logits[:, 0]
            assert namespace["cost"] == pytest.approx(wanted.mean(), rel=1e-5)
        if "label" in namespace and "one_for_each" not in namespace:
            namespace["one_for_each"] = namespace["label"], namespace["both_ends"]
    label, both_ends = namespace["one_for_each"]
    assert label.shape == (16, 128)
    assert np.abs(label).max() > 0.01
    np.testing.assert_array_equal(label, both_ends)
    assert namespace["sampled"].shape == (20, 16, 12)
    assert namespace["ys"].shape == (20, 4, 32)
    assert not namespace["ys"][:, 2].any()
    assert np.isfinite(namespace["flow"].log_state_norms.c[:-1]).all()  # the loss reads h of the last step, and not c
    assert namespace["kept"].shape == (16,)


def torch_answers(theirs, xs, lengths):
    """Answers to packed sequences; PyTorch refuses sequences of length 0 and expects the longest first."""
    import torch

    order = [k for k in np.argsort(-lengths) if lengths[k]]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(xs[:, order]), lengths[order])
    ys, (h, c) = theirs(packed)
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys)
    return order, [a.detach().numpy() for a in (ys, h, c)]


def from_pytorch(theirs, xs, lengths, output, h_n, c_n, states, ys, **_):
    order, answers = torch_answers(theirs, np.asarray(xs), np.asarray(lengths))
    yield from zip((output[:, order], h_n[:, order], c_n[:, order]), answers, strict=True)
    yield ys, output
    yield states[1].backward.c, c_n[3]


def from_flax(theirs, xs, lengths, carry, ys_of_flax, output, h_n, c_n, final, ys, **_):
    (c, h), answers = theirs(xs, seq_lengths=lengths)
    yield ys_of_flax, answers
    for ours in (carry, final):
        yield from ((ours.h, h), (ours.c, c))
    yield from ((h_n[0], h), (c_n[0], c))
    for k, length in enumerate(lengths):
        yield output[k, :length], answers[k, :length]
        yield ys[:length, k], answers[k, :length]


def from_keras(theirs, xs, lengths, label, **_):
    padded = np.where(np.arange(20)[:, None, None] < np.asarray(lengths)[:, None], xs, 0)  # Masking skips these steps
    yield label, theirs(padded.swapaxes(0, 1))


@pytest.mark.peers
@pytest.mark.usefixtures("default_promotion", "unhooked")
@pytest.mark.parametrize(
    ("library", "package", "compare"),
    [("PyTorch", "torch", from_pytorch), ("Flax", "flax", from_flax), ("Keras", "keras", from_keras)],
)
def test_migration_blocks_compute_the_same(library, package, compare):
    """Both libraries compute the same before and after the weights are converted back."""
    peer(package)
    section = re.search(rf"^## From {library}\n(.*?)(?=^## |\Z)", MIGRATION, re.S | re.M)
    (block,) = re.findall(r"```python\n(.*?)```", section[1], re.S)
    *forth, back = block.splitlines()
    namespace: dict = {}
    for lines in (forth, [back]):
        exec(compile("\n".join(lines), "MIGRATION.md", "exec"), namespace)
        compared = list(compare(**namespace))
        assert compared
        for ours, theirs in compared:
            assert np.abs(theirs).max() > 0.01
            np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)  # measured at 2e-7


@pytest.mark.parametrize(
    "page",
    ["README.md", "MIGRATION.md", "docs/mathematics.md", "docs/deploy.md", "docs/own_cells.md", "docs/agents.md"],
)
def test_names_on_the_pages_exist(page):
    names = set(re.findall(r"\bjaxrnn((?:\.[A-Za-z]\w*)+)", (ROOT / page).read_text(encoding="utf-8")))
    assert len(names) >= 8
    for name in names:
        thing = jaxrnn
        for part in name[1:].split("."):
            thing = getattr(thing, part)


def test_readme_tour_is_short():
    assert len([line for line in README[0].splitlines() if line.strip()]) <= 22


def test_readme_names_the_commands_that_ci_runs():
    readme, tests, ci = ((ROOT / path).read_text(encoding="utf-8") for path in ("README.md", ".ci/test", ".ci/run"))
    command = 'python -m pip install -e ".[test]" && python -m pytest -n auto'
    assert command in readme
    assert command in tests
    assert "\nbash .ci/test\n" in ci
