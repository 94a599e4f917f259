"""The comparisons of `memory_tasks`: changes of the gradient, biases, and records that are used again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.memory_tasks import __main__ as memory_tasks
from experiments.memory_tasks.plan import CHANGES, Scale, biased, change_of, changed, grid, jobs
from experiments.memory_tasks.problems import PROBLEMS, training_batch
from experiments.memory_tasks.runs import before_clipping, make_task
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import init_readout
from experiments.training.loop import make_optimiser
from tests.support.training import optax_promotes


def test_compared_runs_differ_in_one_setting_and_none_is_trained_twice():
    scale = Scale((5, 6), 32, 100, None, 70)
    runs = grid("copy", ["rnn", "lstm"], [5, 20], scale)
    assert [(run.cell, run.length) for run in runs] == [("rnn", 5), ("rnn", 20), ("lstm", 5), ("lstm", 20)]
    assert {run.clip_norm for run in runs} == {1.0}
    assert all(run.steps == 70 and run.evaluate_every == 50 and run.hidden_size == 64 for run in runs)
    others = changed("copy", ["rnn", "lstm"], 5, scale)
    assert [(run.cell, change_of(run)) for run in others] == [
        (c, change) for c in ("rnn", "lstm") for change in CHANGES
    ]
    assert len(set(others)) == len(others)
    assert set(runs) & set(others) == {runs[0], runs[2]}  # these two are in the grid too
    assert {run.cell for run in changed("copy", ["irnn", "gru"], 5, scale)} == {"irnn"}
    biases = biased("copy", ["lstm"], 5, scale)
    assert [run.cell for run in biases] == ["lstm-b0", "lstm", "lstm-o1", "lstm-f1-o1", "lstm-chrono"]
    assert biased("copy", ["gru"], 5, scale) == []
    together = jobs(dict.fromkeys([*runs, *others, *biases]))
    assert {name: job.total for name, job in together.items()} == {
        "Copy memory, LSTM": 8 * 70, "Copy memory, LSTM, forget bias 0": 70, "Copy memory, LSTM, output bias 1": 70,
        "Copy memory, LSTM, both biases 1": 70, "Copy memory, LSTM, chrono": 70, "Copy memory, tanh RNN": 8 * 70,
    }  # fmt: skip
    assert next(iter(together)) == "Copy memory, LSTM"


def test_biases_are_those_of_the_gates():
    ends = {"lstm-b0": (0, 0), "lstm": (1, 0), "lstm-o1": (0, 1), "lstm-f1-o1": (1, 1)}
    for name, expected in ends.items():
        b = np.asarray(CONTESTANTS[name].make(3, 10).init(jax.random.key(0), 2).b).reshape(4, 3)
        np.testing.assert_array_equal(b, np.outer([0, expected[0], 0, expected[1]], np.ones(3)), err_msg=name)


@pytest.mark.parametrize(("change", "expected"), [
    ("none", [0.0, 3.0, -0.001]),
    ("norm 1", [0.0, 1.0, -0.001 / 3]),
    ("value 1", [0.0, 1.0, -0.001]),
    ("value 0.03", [0.0, 0.03, -0.001]),
    ("each step", [0.0, 3.0, -0.001]),  # it is the loss that clips
    ("norm raised to 1", [0.0, 1.0, -0.001 / 3]),
    ("entries raised to 0.01", [0.0, 1.0, -0.01 / 3]),
])  # fmt: skip
def test_gradient_is_changed_before_the_optimiser(change, expected):
    run = changed("copy", ["rnn"], 5, Scale((0,), 32, 10, None, None))[list(CHANGES).index(change)]
    rule = make_optimiser(1.0, name="sgd", clip_norm=run.clip_norm, before=before_clipping(run))
    gradient = {"w": jnp.float32([0.0, 3.0, -0.001])}
    with optax_promotes():
        updates, _ = jax.jit(rule.update)(gradient, rule.init(gradient))
    np.testing.assert_allclose(updates["w"], -np.float32(expected), rtol=1e-5)


def test_cotangent_of_each_sequence_is_clipped_at_each_step():
    problem, cell = PROBLEMS["adding"], CONTESTANTS["rnn"].make(4, 6)
    batch = training_batch(problem, 6, 3, 0, 0)
    model = init_readout(cell, 4, problem.inputs, problem.outputs, jax.random.key(0))
    bound = 0.05

    def one(x, target):  # of one sequence: the loss, and W_h's gradient by hand
        w_h, states = np.asarray(model.cell.w_h), [np.zeros(4)]
        for step in x:
            states.append(np.tanh(step @ np.asarray(model.cell.w_x) + states[-1] @ w_h + np.asarray(model.cell.b)))
        error = states[-1] @ np.asarray(model.v)[:, 0] + np.asarray(model.c)[0] - target
        back, total = 2 * error * np.asarray(model.v)[:, 0], np.zeros((4, 4))
        for before, after in zip(states[-2::-1], states[:0:-1], strict=True):
            inside = back * (1 - after**2)
            total += np.outer(before, inside)
            back = np.clip(inside @ w_h.T, -bound, bound)
        return total

    expected = np.mean([one(x, target) for x, target in zip(batch.xs, batch.targets, strict=True)], 0)
    for clip, holds in ((bound, True), (None, False)):
        task = make_task(problem, cell, 4, 6, 3, clip)
        found = jax.jit(jax.grad(lambda m, task=task: task.loss(m, (), batch, jax.random.key(0))[0]))(model).cell.w_h
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-6) == holds


@pytest.mark.parametrize("text", ["", "{}", '{"problems": [], "runs": [{"problem": "adding"}]}', None])
def test_files_without_runs_are_not_used_again(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory_tasks, "side_by_side", lambda *_: pytest.fail("trained"))
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    assert memory_tasks.main(["--reuse", str(tmp_path / "old.json"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "memory_tasks: --reuse expected " in said
    assert said.count("\n") == 1
