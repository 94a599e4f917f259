"""The experiment on gates: tasks, measures against NumPy, verdicts, and a small run."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.datasets.images import split_of_digits
from experiments.datasets.text import as_numbers
from experiments.gates import __main__ as gates
from experiments.gates import measures
from experiments.models import problems
from experiments.models.readout import many_to_one
from jaxrnn.analysis import GateStatistics
from tests.support.training import optax_promotes

RHYME = "Round and round the ragged rock the ragged rascal ran.\n" * 12


# Tasks


def columns(examples):
    """Converts each sequence and its target into a hashable pair."""
    return [(x.tobytes(), int(y)) for x, y in zip(examples.xs, examples.targets, strict=True)]


def test_digits_are_split_into_disjoint_parts():
    images, problem = split_of_digits(), problems.digits(32)
    epoch = [problem.batch(3, step) for step in range(36)]
    seen = [column for batch in epoch for column in columns(batch)]
    assert len(set(seen)) == len(seen) == 36 * 32  # an epoch has each of the 1,154 training images at most once
    given = {
        (image.tobytes(), int(label)) for image, label in zip(images.train_images, images.train_labels, strict=True)
    }
    validation = set(columns(problem.validation))
    assert len(validation) == 288
    assert not validation & set(seen)
    assert set(seen) | validation <= given
    np.testing.assert_array_equal(problem.test.xs[5, :, 0], images.test_images[5].ravel())
    np.testing.assert_array_equal(problem.validation.xs[1, :, 0], images.train_images[9].ravel())
    assert problem.validation.targets[1] == images.train_labels[9]
    assert (problem.steps, problem.input_size, problem.output_size) == (64, 1, 10)


def test_batches_depend_on_seed_and_step():
    text = as_numbers("rhyme", RHYME, 10)
    for problem in (problems.digits(8), problems.next_character(text, 10, 8)):
        first, again, later, other = (problem.batch(*place) for place in ((1, 200), (1, 200), (1, 201), (2, 200)))
        np.testing.assert_array_equal(first.xs, again.xs)
        np.testing.assert_array_equal(first.targets, again.targets)
        assert (first.xs != later.xs).any()
        assert (first.xs != other.xs).any()


def test_targets_are_the_next_characters():
    text = as_numbers("rhyme", RHYME, 10)
    problem = problems.next_character(text, 10, 16)
    xs, targets = problem.batch(0, 0)
    training = "".join(text.alphabet[n] for n in text.training)
    for x, target in zip(xs, targets, strict=True):
        window = "".join(text.alphabet[n] for n in [*x, target[-1]])
        assert window in training
        np.testing.assert_array_equal(x[1:], target[:-1])
    encoded = np.asarray(problem.encode(jnp.asarray(xs)))
    assert encoded.shape == (16, 10, len(text.alphabet)) == (16, 10, problem.input_size)
    np.testing.assert_array_equal(encoded.argmax(-1), xs)
    np.testing.assert_array_equal(encoded.sum(-1), 1)
    assert problem.test.xs.shape == ((len(text.validation) - 1) // 10, 10)


def test_classifier_scores_equal_hand_computation():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    found = problems.classified(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(found["loss"], -(np.log(0.5) + np.log(0.2)) / 2, rtol=1e-6)
    assert found["error"] == 0.5


# Measures


def test_summary_averages_over_all_units():
    def statistics(shift) -> Any:
        of_a_gate: Any = GateStatistics
        histogram = np.array([[2, 0, 0, 8], [0, 5, 5, 0]])
        below, above = np.array([0.25, 0.0]), np.array([0.75, 0.5]) - shift
        return {
            "f": of_a_gate(np.array([0.2, 0.6]), below, above, histogram, np.array([3.0, 4.0 if shift else np.inf])),
            "o": of_a_gate(np.array([0.2, 0.6]) + shift, below, above, histogram, None),
        }

    found = measures.summary([statistics(0), statistics(0.1)], 10)
    np.testing.assert_allclose(found["o"]["mean"], [0.4, 0.5])
    np.testing.assert_allclose(found["o"]["saturated"], [0.125 + 0.625, 0.125 + 0.525])
    np.testing.assert_allclose(found["f"]["histogram"][1], np.array([2, 5, 5, 8]) / 20)
    assert found["f"]["retention"]["longer_than_task"] == [0.5, 0.0]
    assert found["f"]["retention"]["quantile_10"] == [3, 3]
    assert found["f"]["retention"]["quantile_90"] == [np.inf, 4]
    assert "retention" not in found["o"]


@functools.cache
def small_population():
    """A problem of five steps, a GRU of three units, and two sets of params."""
    rng = np.random.default_rng(0)

    def examples(count, key):
        xs = np.random.default_rng(key).normal(size=(count, 5, 2)).astype(np.float32)
        return problems.Examples(xs, (xs[:, 0, 0] > 0).astype(np.int32))

    problem = problems.Problem(
        "sign", "nats", 5, 2, 2, many_to_one, lambda xs: xs, problems.classified,
        lambda seed, step: examples(4, (seed, step)), 4, examples(6, 7), examples(6, 8),
    )  # fmt: skip
    cell = jaxrnn.gru(3)
    models = [problems.initial(problem, cell, 3, jax.random.key(k)) for k in range(2)]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    noise = [jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(models)]
    return problem, cell, jax.tree.unflatten(jax.tree.structure(models), noise)


def gru_in_numpy(model, xs, fixed):
    """Gates of every step and logits of the last; gates in `fixed` have constant values."""
    p, h = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.cell), np.zeros((len(xs), 3))
    sigmoid, seen = lambda a: 1 / (1 + np.exp(-a)), {"r": [], "z": []}
    for x in xs.astype(np.float64).swapaxes(0, 1):
        ax, ah = x @ p.w_x + p.b, h @ p.w_h
        r = fixed.get("r", sigmoid(ax[:, :3] + ah[:, :3])) * np.ones_like(h)
        z = fixed.get("z", sigmoid(ax[:, 3:6] + ah[:, 3:6])) * np.ones_like(h)
        n = np.tanh(ax[:, 6:] + r * (ah[:, 6:] + p.b_hn))
        h = (1 - z) * n + z * h
        seen["r"].append(r)
        seen["z"].append(z)
    return {name: np.stack(values) for name, values in seen.items()}, h @ np.asarray(model.v) + np.asarray(model.c)


def test_ablations_equal_numpy():
    problem, cell, models = small_population()
    found = measures.ablations(problem, cell, models, [10, 11], "cpu")
    assert list(found) == ["r", "z"]
    for k, seed in enumerate([10, 11]):
        model = measures.of_seed(models, k)
        xs = np.concatenate([problem.batch(seed, 0).xs, problem.batch(seed, 1).xs])[:6]  # as many as the test part has
        means = {name: values.mean((0, 1)) for name, values in gru_in_numpy(model, xs, {})[0].items()}
        for gate in ("r", "z"):
            for way, value in {"open": 1.0, "closed": 0.0, "mean": means[gate]}.items():
                _, logits = gru_in_numpy(model, problem.test.xs, {gate: value})
                chosen = logits[np.arange(6), problem.test.targets]
                loss = np.mean(np.log(np.exp(logits).sum(-1)) - chosen)
                np.testing.assert_allclose(found[gate][way]["loss"][k], loss, rtol=1e-4, err_msg=f"{gate} {way}")
                wrong = np.mean(logits.argmax(-1) != problem.test.targets)
                np.testing.assert_allclose(found[gate][way]["error"][k], wrong, atol=1e-6)


def test_gate_summaries_use_held_out_sequences():
    problem, cell, models = small_population()
    trained = jax.tree.map(lambda leaf: 2 * leaf, models)
    found = measures.before_and_after(problem, cell, models, trained)
    for when, population in (("before", models), ("after", trained)):
        for k in range(2):
            seen, _ = gru_in_numpy(measures.of_seed(population, k), problem.test.xs, {})
            for gate in ("r", "z"):
                summary = found[when][gate]
                np.testing.assert_allclose(summary["below"][k], np.mean(seen[gate] < 0.1), atol=1e-6)
                np.testing.assert_allclose(summary["above"][k], np.mean(seen[gate] > 0.9), atol=1e-6)
                np.testing.assert_allclose(
                    summary["histogram"][k], np.histogram(seen[gate], 20, (0, 1))[0] / 90, atol=1e-6
                )
            times = -1 / np.log(seen["z"]).mean((0, 1))
            np.testing.assert_allclose(
                found[when]["z"]["retention"]["longer_than_task"][k], np.mean(times > 5), atol=1e-6
            )
            np.testing.assert_allclose(found[when]["z"]["retention"]["quantile_50"][k], np.median(times), rtol=1e-4)


# Verdicts


def test_orders_and_verdicts_count_seeds():
    losses = {"i": [2.0, 3.0], "f": [5.0, 2.0], "o": [1.0, 1.0]}
    assert measures.orders(losses) == ["f > i > o", "i > f > o"]
    assert measures.orders({"i": [2.0, 2.0], "f": [5.0, 1.0], "o": [2.0, 2.0]}) == ["f > i = o", "i = o > f"]
    assert measures.orders({"i": [4.0], "f": [4.0 + 1e-6], "o": [2.0]}) == ["f = i > o"]
    tied = measures.order_verdicts({"closed": {"i": [4.0], "f": [4.0 + 1e-6], "o": [2.0]}})["closed"]
    assert (tied["forget > input > output"], tied["forget first"]) == ("against (0 of 1 seeds)",) * 2
    found = measures.order_verdicts({"open": losses, "closed": {"i": [2.0], "f": [9.0], "o": [3.0]}})
    assert found["open"]["forget > input > output"] == "undecided (1 of 2 seeds)"
    assert found["open"]["forget first"] == "undecided (1 of 2 seeds)"
    assert found["closed"]["forget > input > output"] == "against (0 of 1 seeds)"
    assert found["closed"]["forget first"] == "for (1 of 1 seeds)"
    shares = {"f": {"saturated": [0.6, 0.7]}, "o": {"saturated": [0.5, 0.6]}, "i": {"saturated": [0.1, 0.2]}}
    assert measures.saturation_verdicts(shares) == {
        "f": "for (2 of 2 seeds)",
        "o": "undecided (1 of 2 seeds)",
        "i": "against (0 of 2 seeds)",
    }


def test_retrained_losses_are_judged_beside_ablated_losses():
    ablated = {
        gate: {way: {"loss": [loss]} for way in gates.WAYS} for gate, loss in (("i", 2.0), ("f", 3.0), ("o", 1.0))
    }
    after = {gate: {"saturated": [0.9]} for gate in "ifo"}
    intact = {"task": "text", "cell": "lstm", "fixed": None, "gates": {"after": after}, "ablated": ablated}
    again = [
        {"task": "text", "cell": "lstm", "fixed": (gate, 1.0), "test": {"loss": [loss]}}
        for gate, loss in (("i", 1.0), ("f", 2.0), ("o", 3.0))
    ]
    elsewhere = {"task": "digits", "cell": "lstm", "fixed": ("i", 1.0), "test": {"loss": [9.0]}}
    found = gates.judged([intact, *again, elsewhere])["text"]["lstm"]["order"]
    assert {way: seen["orders"] for way, seen in found.items()} == {
        "open": ["f > i > o"], "closed": ["f > i > o"], "mean": ["f > i > o"], "retrained": ["o > f > i"],
    }  # fmt: skip


# The script


def test_plan_retrains_without_each_gate():
    plans = gates.runs_of(gates.Config())
    assert len(plans) == 2 * (1 + 3 + 1 + 2)
    assert plans[0] == ("text", "lstm", None)
    assert ("digits", "lstm", ("f", 1.0)) in plans
    assert ("digits", "gru", ("z", 0.0)) in plans
    assert gates.runs_of(gates.Config(tasks=("digits",), cells=("gru",), retrain=())) == [("digits", "gru", None)]


def test_small_run_writes_its_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gates, "WITHOUT", {"gru": {"z": 0.0}})
    path, out = tmp_path / "rhyme.txt", tmp_path / "out"
    path.write_text(RHYME, encoding="utf-8")
    options = {
        "text": path, "window": 10, "hidden-size": 8, "text-updates": 50, "batch-size": 8, "seeds": 1, "seed": 3, "out": out,
    }  # fmt: skip
    with optax_promotes():
        arguments = [f"--{name}={value}" for name, value in options.items()]
        assert gates.main([*arguments, "--tasks", "text", "--cells", "gru", "--retrain", "gru"]) == 0
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    intact, again = record["runs"]
    assert again["fixed"] == ["z", 0.0]
    letters = len(set(RHYME))
    for run in record["runs"]:
        assert run["parameters"] == 3 * 8 * (letters + 8 + 1) + 8 + 8 * letters + letters
        assert run["updates"] == [8, 16, 24, 32, 40, 48, 50]
        assert run["learning_rate"] == 0.03
        assert run["test"]["loss"] == run["validation_loss"][-1]  # validation and test use the same part of the text
        assert run["test"]["loss"][0] < 0.9 * np.log(letters)
    assert intact["ablated"]["z"]["closed"]["loss"] != again["test"]["loss"]
    assert intact["ablated"]["z"]["open"]["loss"] > intact["test"]["loss"]  # the state stays zero
    before, after = (intact["gates"][when]["z"]["mean"][0] for when in ("before", "after"))
    assert abs(after - before) > 1e-3
    assert set(record["verdicts"]["text"]["gru"]) == {"saturated"}
    assert sorted(file.name for file in out.iterdir()) == ["gates.png", "gates.svg", "results.json"]
    assert "retrained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--seeds 0", "--seeds expected a positive number, got 0"),
        ("--seed -1", "--seed expected a number that is not negative, got -1"),
        ("--hidden-size -3", "--hidden-size"),
        ("--text-updates 0", "--text-updates"),
        ("--learning-rate nan", "--learning-rate"),
        ("--tasks mnist", "--tasks expected digits, text; got mnist"),
        ("--cells rnn", "--cells expected lstm, gru; got rnn"),
        ("--cells gru --retrain lstm", "--retrain expected gru; got lstm"),
        ("--tasks digits --batch-size 1155", "--batch-size 1155 is more than the 1154 training images"),
        ("--tasks text --text empty.txt", "empty.txt: the text is empty"),
        ("--tasks text --data-dir nowhere", "experiments.datasets get tiny-shakespeare --data-dir nowhere"),
        ("--tasks digits --out empty.txt/results", "cannot write into empty.txt/results"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    monkeypatch.setattr(gates, "side_by_side", lambda *_: pytest.fail("trained"))
    assert gates.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gates: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()
