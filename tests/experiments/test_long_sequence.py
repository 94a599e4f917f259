"""The long sequence at its smallest: its record, the choices of `checkpoint`, its data and its refusals."""

import json

import jax
import numpy as np
import pytest

from experiments import long_sequence

SMALL = ["--steps", "40", "--batch-size", "2", "--features", "3", "--hidden-size", "4", "--updates", "3"]


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax does not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def losses(folder, *options):
    assert long_sequence.main([*SMALL, "--out", str(folder), *options]) == 0
    record = json.loads((folder / "results.json").read_text())
    assert record["temporary_bytes"] > 0
    assert record["peak_resident_bytes"] > 2**20
    return record["losses"]


def test_checkpoint_choices_give_the_same_losses(tmp_path):
    first = losses(tmp_path)
    assert first[0] > first[1] > first[2]
    assert len(first) == 3
    for choice in ("none", "7"):
        np.testing.assert_allclose(losses(tmp_path, "--checkpoint", choice), first, rtol=1e-5)


def test_oscillations_repeat_after_their_period():
    config = long_sequence.Config(steps=50, batch_size=2, features=3)
    sequence = np.asarray(long_sequence.oscillations(config))
    assert sequence.shape == (51, 2, 3)
    fast = sequence[:41, :, 0]  # with a period of 10 steps it repeats except for noise
    assert np.corrcoef(fast[:-10].ravel(), fast[10:].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("arguments", "message"), [
    (["--checkpoint", "all"], "long_sequence: --checkpoint expected none, gates, sqrt or a positive number of steps, got all"),
    (["--checkpoint", "0"], "got 0"),
    (["--steps", "0"], "long_sequence: --steps expected a positive number, got 0"),
    (["--batch-size", "-1"], "--batch-size expected a positive number, got -1"),
    (["--out", "/dev/null/x"], "cannot write into"),
])  # fmt: skip
def test_bad_options_are_refused_in_one_line(arguments, message, capsys):
    assert long_sequence.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
