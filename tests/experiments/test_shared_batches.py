"""Tasks of the comparisons of cells train the same with sharded batches as on one device."""

import functools

import chex
import jax
import numpy as np
import pytest

from experiments.datasets.text import as_numbers
from experiments.gates import __main__ as gates
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.gradient_flow.task import make_task
from experiments.lstm_vs_gru import __main__ as lstm_vs_gru
from experiments.lstm_vs_gru.plan import adding
from experiments.memory_tasks import __main__ as memory_tasks
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.runs import make_task as memory_task
from experiments.models.cells import CONTESTANTS
from experiments.models.problems import as_task, digits, next_character
from experiments.training import loop
from experiments.training.loop import Settings, fit, make_optimiser
from tests.support.training import optax_promotes

B, HIDDEN, SEEDS, STEPS = 8, 6, (3, 5), 6
TOLERANCE = 1e-5  # in float32


def memory(name):
    problem = PROBLEMS[name]
    length = max(problem.shortest, 10)
    return memory_task(problem, CONTESTANTS["gru"].make(HIDDEN, problem.steps(length)), HIDDEN, length, B)


def learned_by_a_gru(problem):
    return as_task(problem, CONTESTANTS["gru"].make(HIDDEN, problem.steps), HIDDEN)


def text():
    return next_character(as_numbers("rhyme", "the ragged rascal ran round the rugged rock. " * 20, 10), 10, B)


TASKS = {
    **{
        f"memory_tasks: {name}": functools.partial(memory, name) for name in ("adding", "copy", "reber")
    },  # numbers, symbols, and lengths
    "gates and lstm_vs_gru: digits": lambda: learned_by_a_gru(digits(B)),
    "gates and lstm_vs_gru: text": lambda: learned_by_a_gru(text()),
    "lstm_vs_gru: adding": lambda: learned_by_a_gru(adding(10, B, tests=1)),
    "gradient_flow": lambda: make_task(CONTESTANTS["lstm"].make(HIDDEN, 12), HIDDEN, 12, B),
}


@pytest.fixture
def sharing(monkeypatch):
    """Records over how many devices each run shards its batches."""
    found, placing = [], loop.placing

    def counted(devices, examples):
        placed = placing(devices, examples)
        found.append(1 if placed is None else placed.mesh.size)
        return placed

    monkeypatch.setattr(loop, "placing", counted)
    return found


@pytest.mark.devices
@pytest.mark.parametrize("name", TASKS)
def test_sharded_batches_train_the_same_as_one_device(name, sharing):
    task, settings = TASKS[name](), Settings(STEPS, 2, steps_per_call=2)
    with optax_promotes():
        alone, shared = (
            fit(task, make_optimiser(0.01), SEEDS, settings, lambda params: {}, jax.devices()[:count])
            for count in (1, 4)
        )
    assert sharing == [1, 4]
    for one, other in zip(alone.history, shared.history, strict=True):
        np.testing.assert_allclose(other.loss, one.loss, rtol=TOLERANCE)
    chex.assert_trees_all_close(shared.params, alone.params, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", TASKS)
def test_batch_arrays_have_examples_on_the_first_axis(name):
    task = TASKS[name]()
    assert task.examples == B
    chex.assert_tree_shape_prefix(task.batch(3, 2), (B,))


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (memory_tasks, "--tasks order --cells gru --lengths 10 --comparisons"),
        (lstm_vs_gru, "--tasks adding --cells gru --budgets 5000"),
        (gates, "--tasks digits --cells gru --retrain"),
    ],
)
def test_batches_that_the_devices_do_not_divide_are_refused(script, options, capsys, tmp_path):
    assert script.main([*options.split(), "--devices=5", "--batch-size=8", f"--out={tmp_path}"]) == 2
    assert "--batch-size expected a number that 5 devices divide, got 8\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_jobs_of_gradient_flow_share_the_devices(capsys, tmp_path, monkeypatch):
    """Of eight devices four jobs have two each."""
    assert len(gradient_flow.jobs_of(gradient_flow.Config(cells=("rnn",)))) == 5
    monkeypatch.setattr(gradient_flow, "jobs_of", lambda config: dict.fromkeys(range(4)))
    command = ["--cells=rnn", "--devices=8", "--batch-size=7", f"--out={tmp_path}"]
    assert gradient_flow.main(command) == 2
    assert "--batch-size expected a number that 2 devices divide, got 7\n" in capsys.readouterr().err
