"""The memory problems that are tested at other lengths: sequences against brute force, answers, a run, and claims."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.memory_tasks import __main__ as memory_tasks
from experiments.memory_tasks.claims import claims
from experiments.memory_tasks.markdown import tables
from experiments.memory_tasks.plan import TRACKERS, Scale, grid
from experiments.memory_tasks.problems import PROBLEMS, held_out_batch
from experiments.memory_tasks.record import about, as_record, outcomes_of
from experiments.memory_tasks.runs import Beyond, Outcome, answers, beyond, network_of
from experiments.memory_tasks.tracking import GROUPS
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import init_readout
from tests.support.training import optax_promotes

SCALE = Scale((0, 1, 2), 32, 10, None, None)


def test_parity_is_that_of_the_ones_so_far():
    batch = held_out_batch(PROBLEMS["parity"], 9, 50)
    assert set(batch.xs.ravel().tolist()) == {0, 1}
    for bits, targets in zip(batch.xs.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [sum(bits[: t + 1]) % 2 for t in range(9)]


@pytest.mark.parametrize(("name", "symbols"), [("s3", list(itertools.permutations(range(3)))), ("s5", None)])
def test_words_are_composed_permutations(name, symbols):
    batch, objects = held_out_batch(PROBLEMS[name], 12, 60), int(name[1])
    symbols = symbols or [(1, 0, 2, 3, 4), (1, 2, 3, 4, 0)]
    every = sorted(itertools.permutations(range(objects)))
    assert PROBLEMS[name].outputs == len(every) == math.factorial(objects)
    assert PROBLEMS[name].inputs == len(symbols)
    for word, targets in zip(batch.xs, batch.targets, strict=True):
        for t, target in enumerate(targets):
            image = []
            for k in range(objects):  # the last symbol is applied first
                for symbol in word[t::-1]:
                    k = symbols[symbol][k]
                image.append(k)
            assert every[target] == tuple(image)
    assert set(batch.xs.ravel().tolist()) == set(range(len(symbols)))


def test_symbols_of_s5_generate_it():
    found, new = {tuple(range(5))}, [tuple(range(5))]
    while new:
        made = {tuple(p[k] for k in x) for p in new for x in GROUPS["s5"].symbols}
        new = list(made - found)
        found |= made
    assert len(found) == 120


def test_selected_symbols_are_asked_for_in_their_order():
    problem = PROBLEMS["selective_copying"]
    batch = held_out_batch(problem, 9, 300)
    assert batch.xs.shape == (300, 13)
    places = []
    for xs, targets in zip(batch.xs.tolist(), batch.targets.tolist(), strict=True):
        kept = []
        for t, symbol in enumerate(xs[:9]):
            if symbol != 0:
                assert 1 <= symbol <= 8
                kept.append(symbol)
                places.append(t)
        assert len(kept) == 4
        assert [target + 1 for target in targets[9:]] == kept
        assert xs[9:] == [9] * 4
    np.testing.assert_allclose(np.bincount(places), len(places) / 9, rtol=0.3)  # every place is as likely
    assert set(batch.targets[:, 9:].ravel().tolist()) == set(range(8))


def test_errors_and_losses_equal_hand_computation():
    problem = PROBLEMS["parity"]
    batch = held_out_batch(problem, 5, 4)
    found = np.array(jax.nn.one_hot(batch.targets, 2))
    found[1, 2] = found[1, 2, ::-1]
    found[2, 4] = found[2, 4, ::-1]
    np.testing.assert_array_equal(problem.errors(found, batch), [0, 1, 1, 0])
    np.testing.assert_array_equal(problem.late(found, batch), [0, 0, 1, 0])
    problem = PROBLEMS["selective_copying"]
    batch = held_out_batch(problem, 5, 2)
    found = np.array(jax.nn.one_hot(batch.targets, 8))
    found[:, :5] = np.nan  # answers before the signs do not count
    found[1, 6] = np.roll(found[1, 6], 1)
    np.testing.assert_allclose(problem.errors(found, batch), [0, 0.25])
    wrong = math.log(math.e + 7)
    np.testing.assert_allclose(problem.loss(found, batch), wrong - 7 / 8, rtol=1e-6)
    for name in ("s5", "selective_copying"):
        problem = PROBLEMS[name]
        even = held_out_batch(problem, 4, 2)
        logits = jnp.zeros((*even.targets.shape, problem.outputs))
        np.testing.assert_allclose(problem.loss(logits, even), problem.chance(4), rtol=1e-6)


def test_networks_are_stacks_of_two_that_agree_with_the_cell_run_twice():
    (run,) = grid("parity", ["min_gru"], [6], SCALE._replace(hidden_size=3))
    assert (run.layers, run.cosine) == (2, True)
    problem, network = PROBLEMS["parity"], network_of(run)
    batch = held_out_batch(problem, 6, 2)
    model = init_readout(network, 3, 2, 2, jax.random.key(0))
    h = np.asarray(jax.nn.one_hot(batch.xs, 2))
    for layer in model.cell:
        state, outputs = np.zeros((2, 3)), []
        for x in h.transpose(1, 0, 2):
            a_z, n = np.split(x @ np.asarray(layer.w_x) + np.asarray(layer.b), 2, axis=-1)
            z = 1 / (1 + np.exp(-a_z))
            state = (1 - z) * state + z * n
            outputs.append(state)
        h = np.stack(outputs, 1)
    found = answers(problem, network, model, batch)
    np.testing.assert_allclose(found, h @ np.asarray(model.v) + np.asarray(model.c), atol=1e-6)


def test_right_answers_are_counted_at_every_length():
    (run,) = grid("parity", ["gru"], [4], SCALE)
    late = {4: np.zeros((3, 10)), 10: np.eye(3, 10), 20: np.ones((3, 10)), 40: np.zeros((3, 10))}
    scores = lambda batch: {"late": late[batch.xs.shape[1]], "error": np.array([0.5, 0.25, 1.0])}  # noqa: E731
    found = beyond(PROBLEMS["parity"], run, scores)
    assert found.lengths == (4, 10, 20, 40)
    np.testing.assert_allclose(found.right, [[1] * 3, [0.9] * 3, [0] * 3, [1] * 3])
    np.testing.assert_allclose(found.throughout, [[0.5, 0.75, 0]] * 4)


def test_small_run_tests_other_lengths_and_is_used_again(tmp_path, monkeypatch):
    """Two layers of minGRU at 4 steps, whose steps are all used up; the record has all that is drawn."""
    arguments = [
        "--tasks",
        "state_tracking",
        "--groups",
        "s3",
        "--cells",
        "min_gru",
        "--lengths",
        "4",
        "--steps",
        "20",
        "--tests",
        "20",
        "--seeds",
        "2",
    ]
    arguments += ["--hidden-size", "4"]
    with optax_promotes():
        assert memory_tasks.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    (entry,) = record["runs"]
    assert (entry["problem"], entry["layers"], entry["cosine"], entry["learning_rate"]) == ("s3", 2, True, 0.01)
    assert entry["beyond"]["lengths"] == [4, 10, 20, 40]
    assert np.shape(entry["beyond"]["right"]) == np.shape(entry["beyond"]["throughout"]) == (4, 2)
    assert entry["parameters"] == 2 * 4 * 7 + 2 * 4 * 5 + 4 * 6 + 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "results.json",
        "tracking.png",
        "tracking.svg",
    ]
    monkeypatch.setattr(memory_tasks, "side_by_side", lambda *_, **__: pytest.fail("trained"))
    again = [*arguments, "--reuse", str(tmp_path / "out" / "results.json"), "--out", str(tmp_path / "again")]
    assert memory_tasks.main(again) == 0
    found = json.loads((tmp_path / "again" / "results.json").read_text(encoding="utf-8"))
    assert found["runs"] == record["runs"]


def test_a_network_of_every_tracking_cell_has_two_layers():
    for cell in TRACKERS:
        (run,) = grid("parity", [cell], [40], SCALE)
        assert len(network_of(run).layers) == 2
        assert cell in CONTESTANTS


def record_of(problem, right, errors=None):
    """A record of one problem, with shares of right answers at the greatest length by cell."""
    outcomes = []
    for cell, share in right.items():
        (run,) = grid(problem, [cell], [40], SCALE)
        ends = np.array([[0.9] * 3, [0.8] * 3, [0.7] * 3, [share] * 3])
        error = np.full(3, 0.5 if errors is None else errors[cell])
        solved = np.where(error <= PROBLEMS[problem].solved_at, 50, 0)
        found = Outcome(run, solved, error, error, 7, 1.0, beyond=Beyond((40, 100, 200, 400), ends, ends))
        outcomes.append(found)
    return {"problems": [about(problem, 40, outcomes[0])], "runs": [as_record(one) for one in outcomes]}


@pytest.mark.parametrize(("linear", "nonlinear", "verdicts"), [
    ((0.5, 0.6, 0.5), (1.0, 1.0, 1.0), (True, True)),
    ((0.5, 0.7, 0.5), (1.0, 0.998, 0.5), (None, None)),
    ((0.7, 0.8, 1.0), (0.5, 0.9, 0.5), (False, False)),
])  # fmt: skip
def test_claims_about_parity(linear, nonlinear, verdicts):
    cells = ("min_gru", "min_lstm", "rg_lru", "rnn", "lstm", "gru")
    record = record_of("parity", dict(zip(cells, (*linear, *nonlinear), strict=True)))
    cannot, can = claims(record)
    assert (cannot.holds, can.holds) == verdicts
    assert f"minGRU 90.0 at 40 steps, {100 * linear[0]:.1f} at 400 steps" in cannot.measured
    assert "does not track parity" in cannot.claim
    row = tables(record)["tracking"].splitlines()[2]
    assert row.startswith("| Parity, 40 steps | minGRU | 7 | 0/3 | 90.0 (90.0) | 80.0 (80.0) | 70.0 (70.0) |")


@pytest.mark.parametrize(("errors", "verdict"), [
    ({"min_gru": 0.01, "min_lstm": 0.0, "rg_lru": 0.001, "lru": 0.3}, True),
    ({"min_gru": 0.02, "min_lstm": 0.0, "rg_lru": 0.001, "lru": 0.3}, None),
    ({"min_gru": 0.5, "min_lstm": 0.5, "rg_lru": 0.4, "lru": 0.3}, False),
])  # fmt: skip
def test_claim_about_selective_copying(errors, verdict):
    (claim,) = claims(record_of("selective_copying", dict.fromkeys(errors, 0.5), errors))
    assert claim.holds is verdict
    assert f"LRU 0/3, {100 * errors['lru']:.1f} % of symbols wrong" in claim.measured


def test_answers_at_other_lengths_survive_the_record():
    record = record_of("s3", {"gru": 0.1234})
    (found,) = outcomes_of(json.loads(json.dumps(record).replace("Infinity", "null"))).values()
    assert found.beyond.lengths == (40, 100, 200, 400)
    np.testing.assert_array_equal(found.beyond.right[-1], [0.1234] * 3)
    assert (found.run.layers, found.run.cosine) == (2, True)
