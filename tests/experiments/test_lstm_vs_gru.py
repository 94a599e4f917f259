"""LSTM against GRU: sizes by budget, the adding problem, tuning, timing, and a small run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lstm_vs_gru import __main__ as lstm_vs_gru
from experiments.lstm_vs_gru import plan
from experiments.lstm_vs_gru.heads import equal_seconds, heads_lines
from experiments.lstm_vs_gru.plan import adding, parameters_of, planned, sized
from experiments.lstm_vs_gru.tables import tables_of_heads
from tests.support.training import optax_promotes

# Sizes


GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def count(cell, inputs, hidden, outputs, heads=1):
    return GATES[cell] * hidden * (inputs + hidden // heads + 1) + hidden * (cell == "gru") + (hidden + 1) * outputs


@pytest.mark.parametrize(("cell", "heads"), [("rnn", 1), ("lstm", 1), ("gru", 1), ("lstm", 2), ("gru", 4)])
def test_model_size_is_the_nearest_to_its_budget(cell, heads):
    problem = adding(10, 4)
    assert parameters_of(problem, cell, 8, heads) == count(cell, 2, 8, 1, heads)
    for budget in (1, 100, 1234, 5000):
        found = sized(problem, "adding", cell, budget, heads)
        assert (found.num_heads, found.hidden_size % heads) == (heads, 0)
        counts = {hidden: count(cell, 2, hidden, 1, heads) for hidden in range(heads, 40 * heads + 80, heads)}
        assert abs(found.parameters - budget) == min(abs(n - budget) for n in counts.values())
        assert found.parameters == counts[found.hidden_size]


def test_unreachable_budget_is_refused():
    problems = {"adding": adding(10, 4)}
    models = planned(problems, ("rnn", "lstm"), (300, 2000), 0.05)
    assert [(model.budget, model.cell) for model in models] == [
        (2000, "rnn"),
        (2000, "lstm"),
        (300, "rnn"),
        (300, "lstm"),
    ]
    with pytest.raises(
        ValueError, match=r"--budgets 100 is not met within 5 % by lstm on adding: 117 parameters with 4 "
    ):
        planned(problems, ("rnn", "lstm"), (100,), 0.05)
    models = planned(problems, ("gru",), (2000,), 0.05, (1, 4, 4))
    assert [(model.num_heads, model.hidden_size) for model in models] == [(1, 24), (4, 44)]
    with pytest.raises(
        ValueError, match=r"by gru on adding: \d+ parameters with 8 units in 4 heads; give a larger one"
    ):
        planned(problems, ("gru",), (100,), 0.05, (4,))


# Adding


def test_adding_target_is_the_sum_of_the_marked_numbers():
    problem = adding(20, 50)
    for examples in (problem.batch(0, 0), problem.test):
        numbers, marks = examples.xs[..., 0], examples.xs[..., 1]
        np.testing.assert_array_equal(marks.sum(1), 2)
        sums = [sum(numbers[k, t] for t in range(20) if marks[k, t] == 1) for k in range(len(marks))]
        np.testing.assert_allclose(examples.targets, sums, rtol=1e-6)
    assert (problem.batch(0, 0).xs != problem.batch(0, 1).xs).any()
    assert (problem.batch(0, 0).xs != problem.batch(1, 0).xs).any()
    assert (problem.validation.xs != problem.test.xs).any()
    assert problem.test.xs.shape == (1000, 20, 2)


def test_adding_scores_equal_hand_computation():
    found = adding(10, 4).scores(jnp.array([[1.0], [0.5], [0.7]]), jnp.array([1.03, 0.55, 0.7]))
    np.testing.assert_allclose(found["loss"], (0.03**2 + 0.05**2) / 3, rtol=1e-4)
    np.testing.assert_allclose(found["error"], 1 / 3, rtol=1e-6)
    assert plan.TOLERATED == 0.04


# Tuning and timing


def test_first_below_finds_the_first_good_evaluation():
    values = np.array([[3.0, 3.0, 1.0], [1.0, 4.0, 5.0], [0.5, 2.5, 9.0]])
    assert lstm_vs_gru.first_below(values, [10, 20, 30], 1.0) == [20, None, 10]


def test_best_rate_has_the_lowest_finite_loss():
    assert lstm_vs_gru.best_rate({0.1: float("nan"), 0.03: 2.0, 0.01: 1.0, 0.003: float("inf")}) == 0.01
    assert lstm_vs_gru.best_rate({0.1: 0.5, 0.03: float("nan")}) == 0.1


def test_rates_are_chosen_by_the_last_validation_loss_of_another_seed(monkeypatch):
    models = [lstm_vs_gru.Model("adding", cell, 100, 4, 117) for cell in ("lstm", "gru")]
    asked = []

    def trained(config, tasks, plans, seeds, looks):
        asked.append((plans, list(seeds)))
        losses = {
            ("lstm", 0.1): [0.1, 3.0],
            ("lstm", 0.01): [5.0, 2.0],
            ("gru", 0.1): [9.0, 1.0],
            ("gru", 0.01): [0.0, 4.0],
        }
        return {
            (model, rate): lstm_vs_gru.Trained(
                {"validation": {"loss": [[loss] for loss in losses[model.cell, rate]]}}, lambda: None
            )
            for model, rate in plans
        }

    monkeypatch.setattr(lstm_vs_gru, "trained", trained)
    config = lstm_vs_gru.Config(learning_rates=(0.1, 0.01, 0.1), seed=7, seeds=3)
    found = lstm_vs_gru.tuned(config, {}, models)
    assert found == {models[0]: {0.1: 3.0, 0.01: 2.0}, models[1]: {0.1: 1.0, 0.01: 4.0}}
    assert [lstm_vs_gru.best_rate(found[model]) for model in models] == [0.01, 0.1]
    assert asked == [([(model, rate) for model in models for rate in (0.1, 0.01)], [10])]
    assert lstm_vs_gru.tuned(lstm_vs_gru.Config(learning_rates=(0.1,)), {}, models) == {}


def test_timed_calls_take_turns(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(lstm_vs_gru.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    found = lstm_vs_gru.timed({"a": call("a", 1.0), "b": call("b", 2.0), "c": call("c", 4.0)}, 6)
    assert found == {"a": [1.0] * 6, "b": [2.0] * 6, "c": [4.0] * 6}
    rounds = ["".join(order[k : k + 3]) for k in range(0, 21, 3)]
    assert {"".join(sorted(turn)) for turn in rounds} == {"abc"}
    assert len(set(rounds[1:])) > 1  # the order changes


def test_lstm_and_gru_are_compared_at_equal_budgets():
    def record(cell, budget, losses, seconds, heads=1):
        speed = {"min": seconds, "median": 9.0}
        own = {"test": {"loss": losses}, "seconds_per_update": speed}
        return {"task": "text", "cell": cell, "budget": budget, "num_heads": heads, **own}

    records = [
        record("gru", 10, [0.0, 0.0], 7.0, heads=2),
        record("lstm", 10, [9.0, 9.0], 7.0, heads=2),
        record("rnn", 10, [5.0, 5.0], 1.0),
        record("lstm", 10, [1.0, 4.0], 3.0),
        record("gru", 10, [2.0, 3.0], 2.0),
        record("lstm", 20, [1.0, 1.0], 3.0),
    ]
    (found,) = lstm_vs_gru.compared(records)
    assert found == {
        "task": "text", "budget": 10, "loss_difference": [-1.0, 1.0], "seeds_gru_better": 1, "seconds_ratio": 1.5,
    }  # fmt: skip


# Heads


def test_equal_seconds_are_so_many_updates_of_the_dense_cell():
    def model(cell, heads, budget=100, task="text"):
        return lstm_vs_gru.Model(task, cell, budget, 8, 101, heads)

    seconds = {
        model("gru", 1): 2.0,
        model("gru", 4): 3.0,
        model("gru", 8): 1.0,
        model("gru", 2): 9000.0,
        model("gru", 4, budget=200): 1.0,
        model("lstm", 4): 1.0,
        model("gru", 4, task="adding"): 1.0,
    }
    found = equal_seconds(seconds, 600, 10)
    assert found == {model("gru", 4): 400, model("gru", 8): 1200, model("gru", 2): 10}


def test_heads_are_compared_with_the_dense_cell_of_their_task():
    def run(task, heads, losses, seconds, **more):
        own = {"cell": "gru", "budget": 1000, "hidden_size": 10 * heads, "parameters": 1001, "learning_rate": 0.03}
        speed = {"min": seconds, "median": 9.0}
        return {**own, "task": task, "num_heads": heads, "test": {"loss": losses}, "seconds_per_update": speed, **more}

    anew = {"updates": 1250, "test": {"loss": [0.5, 2.0]}}
    record = {
        "runs": [
            run("adding", 1, [5.0, 5.0], 7.0),
            run("digits", 1, [1.0, 2.0], 0.002),
            run("digits", 4, [0.5, 1.5], 0.003, at_equal_seconds=anew),
        ]
    }
    *_, first, second, third = tables_of_heads(record)["heads"].splitlines()
    assert first == "| digits | GRU | 10 | 1,001 | 2.0 | 1.500 ± 0.707 (0.03) | - | - |"
    row = (
        "| digits | GRU, 4 heads | 40 | 1,001 | 3.0 (1.50) | 1.000 ± 0.707 (0.03) | 1.250 ± 1.061 (1,250) | 2, 1 of 2 |"
    )
    assert second == row
    assert third.startswith("| adding | GRU | 10 |")
    (line,) = heads_lines(record["runs"])
    assert "40 units, beside 10 without: an update takes 1.50 times as long" in line
    assert "better in 2 of 2 seeds after equal updates, in 1 after equal seconds (1,250 updates" in line


# The script


def test_small_run_with_heads_trains_them_anew(tmp_path, capsys, monkeypatch):
    asked = []
    options = {"updates": 10, "batch-size": 4, "adding-steps": 3, "seeds": 1, "rounds": 1, "budgets": 200, "looks": 1}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += ["--tasks", "adding", "--cells", "gru", "--learning-rates", "0.05", f"--out={tmp_path}"]
    monkeypatch.setattr(lstm_vs_gru, "TOLERANCE", 0.3)
    monkeypatch.setattr(lstm_vs_gru, "equal_seconds", lambda seconds, *given: asked.append(given) or {max(seconds): 20})
    with optax_promotes():
        assert lstm_vs_gru.main([*arguments, "--num-heads", "2", "1"]) == 0
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    dense, headed = record["runs"]
    assert [(run["num_heads"], run["hidden_size"]) for run in record["runs"]] == [(1, 6), (2, 8)]
    assert headed["parameters"] == count("gru", 2, 8, 1, 2)
    assert headed["updates"] == [10]
    assert headed["at_equal_seconds"]["updates"] == 20
    longer, shorter = headed["at_equal_seconds"]["test"]["loss"], headed["test"]["loss"]
    assert abs(longer[0] / shorter[0] - 1) > 1e-3  # other devices may round differently
    assert "at_equal_seconds" not in dense
    assert asked == [(10, lstm_vs_gru.CALL)]
    assert "GRU, 2 heads, 8 units, beside 6 without" in capsys.readouterr().out


def test_small_run_writes_its_results(tmp_path, capsys):
    out = tmp_path / "out"
    options = {
        "budgets": 100, "updates": 100, "batch-size": 16, "adding-steps": 4, "seeds": 2, "seed": 5,
        "rounds": 2, "out": out,
    }  # fmt: skip
    with optax_promotes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm_vs_gru, "TOLERANCE", 0.3)
        arguments = [f"--{name}={value}" for name, value in options.items()]
        arguments += ["--tasks", "adding", "--cells", "lstm", "gru", "--learning-rates", "0.05"]
        assert lstm_vs_gru.main(arguments) == 0
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(run["cell"], run["hidden_size"]) for run in record["runs"]] == [("lstm", 4), ("gru", 4)]
    for run in record["runs"]:
        assert run["parameters"] == count(run["cell"], 2, run["hidden_size"], 1)
        assert (run["learning_rate"], run["tuning"]) == (0.05, {})
        assert run["updates"] == list(range(10, 101, 10))
        losses = np.array(run["validation"]["loss"])
        assert losses.shape == (10, 2)
        assert np.all(losses[-1] < 0.5 * losses[0])
        np.testing.assert_allclose(
            run["test"]["loss"], losses[-1], rtol=0.25
        )  # test sequences differ from those of validation
        assert run["test"]["loss"] != losses[-1].tolist()
        assert 0 < run["seconds_per_update"]["min"] <= run["seconds_per_update"]["median"] < 1
    (found,) = record["lstm_against_gru"]
    lstm, gru = record["runs"]
    np.testing.assert_allclose(found["loss_difference"], np.subtract(lstm["test"]["loss"], gru["test"]["loss"]))
    assert sorted(file.name for file in out.iterdir()) == ["lstm_vs_gru.png", "lstm_vs_gru.svg", "results.json"]
    assert "an LSTM update takes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--seeds 0", "--seeds expected a positive number, got 0"),
        ("--seed -1", "--seed expected a number that is not negative, got -1"),
        ("--updates 0", "--updates"),
        ("--budgets -5", "--budgets expected a positive number, got -5"),
        ("--budgets", "--budgets expected one or more numbers, got nothing"),
        ("--learning-rates", "--learning-rates expected one or more numbers, got nothing"),
        ("--tasks adding --budgets 20", "--budgets 20 is not met within 2 %"),
        ("--learning-rates 0.1 inf", "--learning-rates expected a positive number, got inf"),
        ("--rounds 0", "--rounds"),
        ("--looks 0", "--looks"),
        ("--num-heads 4 0", "--num-heads expected a positive number, got 0"),
        ("--num-heads", "--num-heads expected one or more numbers, got nothing"),
        ("--tasks adding --num-heads 64 --budgets 2000", "256 units in 64 heads; give a larger one"),
        ("--adding-steps 1", "--adding-steps expected at least 2, got 1"),
        ("--tasks copy", "--tasks expected digits, text, adding; got copy"),
        ("--cells mgu", "--cells expected rnn, lstm, gru; got mgu"),
        ("--tasks text --text nowhere.txt", "cannot read the text nowhere.txt"),
        ("--tasks text --data-dir nowhere", "experiments.datasets get tiny-shakespeare --data-dir nowhere"),
        ("--tasks digits --batch-size 2000", "--batch-size 2000 is more than the 1154 training images"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lstm_vs_gru, "side_by_side", lambda *_: pytest.fail("trained"))
    assert lstm_vs_gru.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lstm_vs_gru: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()
