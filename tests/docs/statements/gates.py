"""What the page of the experiments says of gates, beside its tables."""

import re

import numpy as np

from experiments.gates import __main__ as gates
from experiments.gates import measures
from experiments.models.problems import digits
from tests.docs.statements import record, says
from tests.docs.statements.experiments import PAGE, runs


def gate_run(task, cell, fixed=None):
    (found,) = runs("gates", task=task, cell=cell, fixed=fixed)
    return found


@says(PAGE)
def saturated_on_the_text():
    verdicts = record("gates")["verdicts"]
    assert {v for cell in verdicts["text"].values() for v in cell["saturated"].values()} == {"for (3 of 3 seeds)"}
    assert {v for cell in verdicts["digits"].values() for v in cell["saturated"].values()} == {"against (0 of 3 seeds)"}
    return "**True** on the text: more than half of the values of every gate, in 3 of 3 seeds. **False** on the digits, for every gate in every seed"


@says(PAGE)
def nothing_is_saturated_before_training():
    shares = [
        share
        for run in runs("gates", fixed=None)
        for gate in run["gates"]["before"].values()
        for share in gate["saturated"]
    ]
    assert max(shares) < 0.005
    return "Before training it is 0 everywhere"


@says(PAGE)
def no_unit_keeps_as_long_as_the_task():
    for run in runs("gates", fixed=None):
        for gate in run["gates"]["after"].values():
            assert not any(gate.get("retention", {}).get("longer_than_task", []))
    return "No unit of any seed keeps its value for as long as a sequence of the task."


@says(PAGE)
def lost_without_a_gate():
    lost = {}
    for task in ("digits", "text"):
        whole = np.mean(gate_run(task, "lstm")["test"]["loss"])
        for gate in "ifo":
            lost[task, gate] = np.mean(gate_run(task, "lstm", [gate, 1.0])["test"]["loss"]) - whole
    assert max(lost["digits", "i"], lost["digits", "o"]) < 0
    return f"""loses nothing on the digits, and {lost["text", "i"]:.2f} and {lost["text", "o"]:.2f} nats on the text; without the
    forget gate it loses {lost["digits", "f"]:.2f} and {lost["text", "f"]:.2f}."""


@says(PAGE)
def orders_of_gates():
    verdicts = record("gates")["verdicts"]
    orders = [order for task in verdicts.values() for order in task["lstm"]["order"]["retrained"]["orders"]]
    counts = [f"{order} in {orders.count(order)}" for order in ("f > o > i", "f > i > o", "o > f > i")]
    first, *rest = counts
    return f"({first} of {len(orders)} runs, {', '.join(rest)},"


@says(PAGE)
def first_gate():
    order = {task: cells["lstm"]["order"] for task, cells in record("gates")["verdicts"].items()}
    first = {
        (task, way): int(re.search(r"(\d) of", found["forget first"])[1])
        for task, ways in order.items()
        for way, found in ways.items()
    }  # type: ignore[index]
    assert [first["digits", way] for way in ("open", "closed", "retrained")] == [3, 3, 3]
    return f"""The forget gate comes first in 3 of 3 seeds on the digits with every intervention but the mean ({first["digits", "mean"]}), and in
    {first["text", "retrained"]} of 3 on the text when trained without it."""


@says(PAGE)
def settings_of_the_gates():
    config, found = gates.Config, record("gates")["config"]
    for name in ("hidden_size", "batch_size", "digits_updates", "text_updates", "window", "seeds"):
        assert found[name] == getattr(config, name)
    rates = {run["task"]: run["learning_rate"] for run in runs("gates")}
    return f"""{config.hidden_size} hidden units, the cells' own initial values, Adam on a gradient clipped to norm 1, batches of
    {config.batch_size}; digits {config.digits_updates:,} updates from {rates["digits"]}, text {config.text_updates:,} from
    {rates["text"]}, along a cosine to 0"""


@says(PAGE)
def parts_of_the_digits():
    problem = digits(32)
    validation, test = (len(part.xs) for part in (problem.validation, problem.test))
    return f"Digits: {1797 - validation - test:,} training, {validation} validation, {test} test images."


@says(PAGE)
def sequences_that_are_measured():
    return f"Gates are measured on {measures.SEQUENCES} of those sequences"


@says(PAGE)
def errors_on_the_digits():
    here = 100 * np.mean(gate_run("digits", "lstm")["test"]["error"])
    (run,) = runs("sequential_images", reading="pixels", cell="lstm")
    there = 100 * (1 - np.mean(run["test_accuracy"]))
    return f"the LSTM's error on digits is {here:.0f} % here and {there:.0f} % in `sequential_images`"


@says(PAGE)
def minutes_of_the_gates():
    minutes = [run["seconds"] / 60 for run in runs("gates")]
    return (
        f"The trainings of the record took {sum(minutes):.0f} minutes in all, {max(minutes):.0f} of them one training"
    )
