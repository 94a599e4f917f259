"""`bptt_by_hand` prints the derivative by hand beside that of JAX, and ends with 1 if any of them differ."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.bptt_by_hand import __main__ as script
from experiments.bptt_by_hand import compare, equations, figure

SMALL = ("--steps", "2", "--figure-steps", "4")


@pytest.fixture
def run(tmp_path, capsys):
    """A function of arguments: the exit code, the record and what was printed."""

    def call(*arguments):
        code = script.main([*SMALL, *arguments, "--out", str(tmp_path)])
        return code, json.loads((tmp_path / "results.json").read_text(encoding="utf-8")), capsys.readouterr().out

    return call


def test_everything_is_equal(run, tmp_path):
    code, record, said = run()
    assert code == 0
    assert record["differ"] == []
    wide = [part for part in record["parts"] if part["dtype"] == "float64"]
    exact = [part["difference"] for part in wide if "finite" not in part["compared"]]
    assert max(exact) <= 1e-12
    assert {part["compared"].split(",")[0] for part in wide} == {"RNN", "LSTM", "GRU", "read-out"}
    assert (tmp_path / "bptt_by_hand.png").stat().st_size > 10_000
    for words in ("f δC of t+1", "δa_c̃", "∂L/∂U_f", "∂L/∂b_q", "(ŷ - y) Vᵀ", "δx, to the layer below"):
        assert words in said


def planted(cell, changed):
    """A cell whose hand-written backward pass returns something else."""

    def backward(params, tape, dstate, dy):
        return changed(*cell.rule.backward(params, tape, dstate, dy))

    return cell._replace(rule=cell.rule._replace(backward=backward))


def negated(tree):
    return jax.tree.map(jnp.negative, tree)


def one_gate(before, delta):
    """The sign of the first gate's δ alone."""
    first, *rest = jax.tree.leaves(delta)
    half = jnp.where(jnp.arange(first.shape[-1]) < 2, -first, first)
    return before, jax.tree.unflatten(jax.tree.structure(delta), [half, *rest])


@pytest.mark.parametrize("name", compare.CELLS)
def test_a_wrong_sign_in_the_rule_ends_with_1(name, run, monkeypatch):
    make = compare.CELLS[name]
    monkeypatch.setitem(compare.CELLS, name, lambda size: planted(make(size), one_gate))
    code, record, said = run("--cells", name)
    assert code == 1
    assert {part["compared"] for part in record["differ"]} >= {f"{compare.LABELS[name]}, weights"}
    assert "differs: " in said


@pytest.mark.parametrize("name", compare.CELLS)
def test_every_kind_of_error_is_seen(name, x64):
    """A wrong sign of what goes back in time, or of what the weights get, is seen in what depends on it."""
    cell = compare.CELLS[name](2)
    given = compare.problem(cell, compare.Sizes(2, 2, 2, 2), 0, jnp.float64)
    back = compare.compare(name, planted(cell, lambda before, delta: (negated(before), delta)), given)
    assert "δh" in compare.differing(back.steps, 1e-12)
    assert compare.differing(back.forward, 1e-12) == []
    weights = compare.compare(name, planted(cell, lambda before, delta: (before, negated(delta))), given)
    assert compare.differing(weights.weights, 1e-12) == list(weights.weights.hand)
    nothing = compare.compare(
        name, planted(cell, lambda before, delta: (before, jax.tree.map(lambda d: d * jnp.nan, delta))), given
    )
    assert compare.differing(nothing.weights, 1e-12) == list(nothing.weights.hand)
    assert compare.differing(compare.compare(name, cell, given).weights, 1e-12) == []


def test_equations_are_those_of_the_cells(x64):
    """The loss written down once more equals that of the library, and differs if an equation does."""
    for name, make in compare.CELLS.items():
        cell = make(3)
        given = compare.problem(cell, compare.Sizes(4, 2, 3, 2), 1, jnp.float64)
        state = cell.initial_state((1,), jnp.float64)
        added = {key: jnp.zeros((4, 1, 2 if key == "x" else 3)) for key in equations.NAMES[name]}
        total, _ = equations.cost(name, given.params, given.read, state, given.xs, given.labels, added)
        loss = compare.loss_of(given)(*jaxrnn.unroll(cell, given.params, given.xs))
        np.testing.assert_allclose(total, loss, rtol=1e-14)


def test_figure_splits_the_gradient_of_the_memory_into_two_paths():
    """They add up where one of them is all there is: at the last step, and one step before it without recurrence."""
    found = figure.paths("forget bias 1", 12, 0)
    np.testing.assert_allclose(found.highway[-1], found.memory[-1])
    assert found.others[-1] < 1e-15
    assert (found.memory <= found.highway + found.others + 1e-12).all()
    assert figure.paths("chrono biases", 12, 0).highway[0] > 5 * found.highway[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cells", "lstm-chrono"), "--cells expected rnn, lstm"),
        (("--outputs", "1"), "--outputs expected at least 2 classes, got 1"),
        (("--steps", "33"), "--steps expected at most 32"),
        (("--hidden-size", "0"), "--hidden-size expected a positive number, got 0"),
        (("--figure-steps", "3000"), "--figure-steps expected at most 2,000"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, words, tmp_path, capsys):
    assert script.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
