"""The claims and the tables of experiments/README.md: how they are judged, and that the page has what the records say."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.command.claims import Claim, claims_table, share
from experiments.command.rows import markdown
from experiments.gates import claims as gates
from experiments.gradient_flow import markdown as gradient_flow
from experiments.memory_tasks import claims as memory
from experiments.memory_tasks import markdown as memory_tables
from experiments.memory_tasks.plan import CHANGES, Scale, biased, changed, grid
from experiments.memory_tasks.record import about, as_record, outcomes_of
from experiments.memory_tasks.runs import Outcome

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TABLES = {"gradient_flow": gradient_flow.tables, "memory_tasks": memory_tables.tables, "gates": gates.tables}
SCALE = Scale((0, 1, 2, 3, 4), 32, 500, None, None)


@pytest.mark.parametrize("name", TABLES)
def test_page_has_the_tables_of_the_record(name):
    text = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    record = json.loads((EXPERIMENTS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    made = TABLES[name](record)
    found = dict(re.findall(rf"<!-- table: {name}/(\w+) -->\n\n(.*?)\n\n<!-- end -->", text, re.DOTALL))
    assert {key: found.get(key) for key in made} == made


def test_claims_are_rows_with_a_verdict():
    found = claims_table(
        [Claim("a | b", "S2", None, "1", 5), Claim("c", "S3", True, "2", 1), Claim("d", "", False, "3", 1)]
    )
    assert found.splitlines() == [
        "| claim | source | for or against | measured | seeds |",
        "|---|---|---|---|---|",
        "| a \\| b | S2 | in part | 1 | 5 |",
        "| c | S3 | for | 2 | 1 |",
        "| d |  | against | 3 | 1 |",
    ]
    assert markdown(["x"], []) == "| x |\n|---|"


@pytest.mark.parametrize(("count", "holds"), [(4, True), (3, None), (2, None), (1, False), (0, False)])
def test_share_of_cases_decides(count, holds):
    assert share(count, 4) is holds


# ---- memory_tasks


def outcome(run, steps, losses=(0.01,) * 5):
    solved = np.array([step or 0 for step in steps])
    return Outcome(run, solved, np.array(losses), np.array(losses), 7, 1.0)


def record_of(outcomes):
    by_place = {(one.run.problem, one.run.length): one for one in outcomes}
    return {
        "problems": [about(*place, one) for place, one in by_place.items()],
        "runs": [as_record(one) for one in outcomes],
    }


def order(cell="lstm", length=50):
    return grid("order", [cell], [length], SCALE)[0]


def test_outcomes_survive_the_record():
    runs = changed("order", ["rnn"], 50, SCALE)
    made = [outcome(run, [50, None, 100, 150, None], (0.1, math.inf, 0.2, 0.3, 1.4)) for run in runs]
    record = json.loads(json.dumps(record_of(made)).replace("Infinity", "null"))
    found = outcomes_of(record)
    assert list(found) == runs
    for one, other in zip(found.values(), made, strict=True):
        np.testing.assert_array_equal(one.solved, other.solved)
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.parameters, one.seconds, one.median_sequences) == (7, 1.0, other.median_sequences)


def test_seeds_tell_which_of_two_is_better():
    fast, slow = outcome(order(), [50, 100, 100, 150, 150]), outcome(order(), [200, 250, 250, 300, 350])
    near, failed = outcome(order(), [100, 100, 150, 150, 200]), outcome(order(), [None] * 5, [1.2] * 5)
    worse, chance = outcome(order(), [None] * 5, [1.3] * 5), outcome(order(), [None] * 5, [1.3001] * 5)
    above = [outcome(order(), [None] * 5, [loss] * 5) for loss in (1.4, 1.6)]
    assert memory.compare(*above) == 0
    assert memory.compare(fast, slow) == memory.compare(slow, failed) == memory.compare(failed, worse) == 1
    assert memory.compare(slow, fast) == memory.compare(worse, failed) == -1
    assert memory.compare(fast, near) == memory.compare(fast, fast) == memory.compare(worse, chance) == 0
    some = outcome(order(), [50, 50, None, None, 50], [0.0, 0.0, 1.3, 1.3, 0.0])
    assert memory.compare(some, chance) == 0  # three seeds of five are too few
    np.testing.assert_allclose(memory.ranks(some), [50, 50, 1001.94, 1001.94, 50])
    diverged = outcome(order(), [None] * 5, [math.inf] * 5)
    assert memory.compare(failed, diverged) == 1
    strings = [
        outcome(grid("reber", ["lstm"], [40], SCALE)[0], [None] * 5, [loss] * 5) for loss in (0.5, 0.6, math.inf)
    ]
    assert memory.compare(*strings[:2]) == memory.compare(*strings[1:]) == 1  # the loss of chance is not known


@pytest.mark.parametrize(("told", "helps", "serves"), [
    ([1, 1, 0], True, True), ([1, 0, 0], None, True), ([0, 0, 0], False, True), ([1, 1, -1], None, None),
    ([-1, 0, 0], False, None), ([-1, -1, 0], False, False),
])  # fmt: skip
def test_comparisons_decide_a_claim(told, helps, serves):
    assert memory.helps(told) is helps
    assert memory.serves(told) is serves


def test_claims_about_biases_and_changes_of_the_gradient():
    fast, slow = [50, 100, 100, 150, 150], [200, 250, 250, 300, 350]
    steps = {"lstm-b0": slow, "lstm": fast, "lstm-o1": slow, "lstm-f1-o1": slow, "lstm-chrono": fast}
    outcomes = [outcome(run, steps[run.cell]) for run in biased("order", ["lstm"], 50, SCALE)]
    harmed = ("none", "value 1", "entries raised to 0.01")
    for run, change in zip(changed("order", ["irnn"], 50, SCALE), CHANGES, strict=True):
        outcomes.append(outcome(run, slow if change in harmed else fast))
    record = record_of(outcomes)
    found = {claim.claim: claim for claim in memory.claims(record)}
    expected = {
        "a forget bias of 1 helps (beside both biases 0)": True,
        "an output bias of 1 helps (beside both biases 0)": False,
        "an output bias of 1 helps beside a forget bias of 1": False,
        "chrono biases help (beside a forget bias of 1)": False,
        "clipping by norm (at 1) helps beside none": True,
        "clipping by value at the same θ serves as well as by norm": False,
        "clipping by value at 0.03 serves as well as by norm at 1": True,
        "clipping what each step hands back serves as well as by norm": True,
        "raising small gradients harms memory: the norm, to 1": False,
        "raising small gradients harms memory: the entries, to 0.01": True,
    }
    assert {name: claim.holds for name, claim in found.items()} == expected
    forget = found["a forget bias of 1 helps (beside both biases 0)"].measured
    assert forget.startswith("better in 1 of 1 (order 5/5 after 3,200 beside 5/5 after 8,000), worse in 0 of 1")
    tables = memory_tables.tables(record)
    assert "| Temporal order, 50 steps | IRNN | 5/5, 8,000 | 5/5, 3,200 | 5/5, 8,000 |" in tables["changed"]
    assert "| Temporal order, 50 steps | 5/5, 8,000 | 5/5, 3,200 |" in tables["biased"]


def test_claims_about_networks_at_the_longest_lengths():
    fast, slow = [50, 100, 100, 150, 150], [200, 250, 250, 300, 350]
    steps = {"rnn-sigmoid": slow, "rnn-uniform": slow, "rnn": fast, "irnn": fast, "lstm": slow, "gru": slow}
    made = [outcome(order(cell, length), steps[cell]) for cell in steps for length in (25, 100)]
    gated, irnn, sigmoid = memory.claims(record_of(made))
    assert (gated.holds, irnn.holds, sigmoid.holds) == (False, True, True)
    assert "order (100) 5/5 after 8,000 and 5/5 after 3,200" in gated.measured
    assert sigmoid.measured.startswith("tanh is better in 2 of 2 (order (25) 5/5 after 3,200 beside 5/5 after 8,000; ")
    steps |= {"rnn": slow, "rnn-uniform": slow, "gru": fast}
    gated, _, sigmoid = memory.claims(record_of([outcome(order(cell, 100), steps[cell]) for cell in steps]))
    assert (gated.holds, sigmoid.holds) == (True, False)


# ---- gates


def gates_record(retrained):
    """An LSTM with two seeds, whose gates are fixed in one way and which was trained again without each."""
    losses = {"i": [3.0, 2.0], "f": [4.0, 4.0], "o": [2.0, 3.0]}
    retention = {"quantile_50": [3.0, 5.0], "longer_than_task": [0.0, 0.1]}
    after = {"f": {"saturated": [0.6, 0.7], "retention": retention}, "i": {"saturated": [0.4, 0.6]}}
    intact = {
        "task": "text", "cell": "lstm", "fixed": None, "steps": 100, "test": {"loss": [1.0, 1.0]}, "gates": {"after": after},
        "ablated": {gate: {way: {"loss": of} for way in ("open", "closed", "mean")} for gate, of in losses.items()},
    }  # fmt: skip
    again = [
        {"task": "text", "cell": "lstm", "fixed": [gate, 1.0], "test": {"loss": of}} for gate, of in retrained.items()
    ]
    return {"runs": [intact, *again]}


def test_claims_about_gates_count_their_seeds():
    record = gates_record({"i": [1.0, 1.0], "f": [0.5, 0.5], "o": [0.7, 0.7]})
    saturated, ordered, forget, kept = gates.claims(record)
    assert (saturated.holds, ordered.holds, forget.holds, kept.holds) == (None, False, None, None)
    assert "LSTM f 65, LSTM i 50. More than half in 3 of 4" in saturated.measured
    assert ordered.measured.endswith("next character open 1, closed 1, at its mean 1, trained without 0")
    assert forget.measured.endswith("next character open 2, closed 2, at its mean 2, trained without 0")
    assert (
        kept.measured == "in 1 of 2 models; retention time of the median unit, in steps: next character LSTM 4.0 of 100"
    )
    assert gates.claims(gates_record({}))[2].holds is True
