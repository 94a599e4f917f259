"""`check_cell` passes right cells, and names the part and the leaf of a planted mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Cell
from jaxrnn.testing import CellFault, check_cell
from tests.support.registry import cell_of, of_cell
from tests.testing import own
from tests.testing.own import CELL, RULE, Params, accumulate, backward, forward, project

pytestmark = pytest.mark.usefixtures("unhooked")

I = 3  # noqa: E741
WITH_RULE = ("init and initial_state", "step", "rule.project and rule.forward", "rule.backward", "rule.accumulate",
             "rule.matrices", "unroll", "dtypes")  # fmt: skip


@pytest.mark.parametrize("name", [of_cell(name) for name in ("lstm-coupled", "gru", "slstm", "min_gru", "lru")])
def test_cells_of_the_library_pass(name):
    assert check_cell(cell_of(name), I) == (cell_of(name).name, WITH_RULE, ())


def test_a_cell_of_ones_own_passes_with_a_rule_and_without():
    report = check_cell(CELL, I)
    assert report.passed == WITH_RULE
    assert str(report).startswith("own passes: init and initial_state; step; rule.project")
    assert report.notes == ("compute_dtype is refused: products widen w_h, w_x",)
    without = check_cell(CELL._replace(rule=None), I)
    assert without.passed == ("init and initial_state", "step", "unroll", "dtypes")
    assert without.notes[0].startswith("no rule: ")


def of_rule(**parts):
    return CELL._replace(rule=RULE._replace(**parts))


def changed(name, f):
    """The rule with an accumulate whose gradient of one parameter is changed."""

    def wrong(params, xs, tape, da):
        dparams, dxs = accumulate(params, xs, tape, da)
        return dparams._replace(**{name: f(getattr(dparams, name))}), dxs

    return of_rule(accumulate=wrong)


def without_recurrent_term(params, tape, dh, dy):
    z, _ = tape.residual
    return (dh + dy) * z, backward(params, tape, dh, dy)[1]


def clipped_delta(params, tape, dh, dy):
    dbefore, da = backward(params, tape, dh, dy)
    return dbefore, jnp.tanh(da)


def missing_slope(params, tape, dh, dy):
    z, n = tape.residual
    dbefore, _ = backward(params, tape, dh, dy)
    dh = dh + dy
    return dbefore, jnp.concatenate([dh * (tape.before - n) * z * (1 - z), dh * (1 - z)], -1)


def of_the_batch(params, h, x):
    h, _ = own.step(params, h, x)
    return (h + (h if h.ndim < 2 else jnp.broadcast_to(h.mean(0), h.shape)),) * 2


MISTAKES = {
    "sign": (of_rule(backward=lambda *given: (-backward(*given)[0], backward(*given)[1])), "rule.backward", ""),
    "missing term": (of_rule(backward=without_recurrent_term), "rule.backward", ""),
    "cotangent not linear": (of_rule(backward=clipped_delta), "rule.backward delta", ""),
    "delta without a slope": (of_rule(backward=missing_slope), "rule.accumulate dparams", "w_x"),
    "only y's cotangent": (of_rule(backward=lambda p, tape, dh, dy: backward(p, tape, 0 * dh, dy)), "rule.backward", ""),
    "three results": (of_rule(backward=lambda *given: (*backward(*given), None)), "rule.backward", ""),
    "forgotten bias": (changed("b", jnp.zeros_like), "rule.accumulate dparams", "b"),
    "mean over steps": (changed("w_h", lambda d: d / 5), "rule.accumulate dparams", "w_h"),
    "transposed": (changed("w_x", jnp.transpose), "rule.accumulate dparams", "w_x"),
    "narrow gradient": (changed("w_x", jnp.float32), "rule.accumulate dparams", "w_x"),
    "gradient of x": (of_rule(accumulate=lambda *g: (accumulate(*g)[0], 2 * accumulate(*g)[1])), "rule.accumulate dxs", ""),
    "another record": (of_rule(accumulate=lambda *g: (tuple(accumulate(*g)[0]), accumulate(*g)[1])), "rule.accumulate dparams", ""),
    "matrices": (of_rule(matrices=("w_x",)), "rule.matrices", "w_h"),
    "no such matrix": (of_rule(matrices=("w_x", "w_h", "u")), "rule.matrices", "u"),
    "forward without its bias": (of_rule(project=lambda params, xs: xs @ params.w_x), "rule.forward", ""),
    "project over time": (of_rule(project=lambda params, xs: jnp.cumsum(project(params, xs), 0)), "rule.project", ""),
    "wrong output": (of_rule(forward=lambda *g: (forward(*g)[0], 2 * forward(*g)[1], forward(*g)[2])), "rule.forward y", ""),
    "two results": (of_rule(forward=lambda *g: forward(*g)[:2]), "rule.forward", ""),
    "error": (of_rule(forward=lambda params, h, a: h @ a), "rule.forward", ""),
    "prepare": (of_rule(prepare=lambda params: params._replace(w_h=params.w_h * 2)), "rule.backward", ""),
    "dtype of init": (CELL._replace(init=lambda key, size, dtype=None: own.init(key, size)), "init", "w_x"),
    "init without dtype": (CELL._replace(init=lambda key, size: own.init(key, size)), "init", ""),
    "batch of the state": (CELL._replace(initial_state=lambda b=(), d=None: own.initial_state((), d)), "initial_state", ""),
    "sequences mixed": (CELL._replace(step=of_the_batch, rule=None), "step", "0"),
    "size of the output": (CELL._replace(output_size=7), "output_size", ""),
    "state in float32": (CELL._replace(step=lambda p, h, x: (jnp.float32(h), h), rule=None), "step", ""),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_named(mistake):
    cell, part, leaf = MISTAKES[mistake]
    with pytest.raises(CellFault, match="^check_cell: own has faults:") as caught:
        check_cell(cell, I)
    faults = caught.value.faults
    assert faults[0].part == part
    assert leaf in {fault.leaf for fault in faults}
    assert all(len(str(fault)) <= 300 and str(fault) in str(caught.value) for fault in faults[:12])


def test_a_mistake_of_one_leaf_is_not_said_of_others():
    with pytest.raises(CellFault) as caught:
        check_cell(changed("b", lambda d: d + 1), I)
    assert [(fault.part, fault.leaf) for fault in caught.value.faults] == [("rule.accumulate dparams", "b")] * 2


def test_given_params_are_those_that_are_checked():
    """A term that is missing is seen only where its parameter is not 0."""
    cell = of_rule(project=lambda params, xs: xs @ params.w_x)
    params = own.init(jax.random.key(0), I)
    assert not np.asarray(params.b).any()
    check_cell(cell._replace(rule=None, step=lambda p, h, x: own.step(p, h, x)), I, params=params)
    with pytest.raises(CellFault, match="rule.forward"):
        check_cell(cell, I, params=params._replace(b=jnp.ones_like(params.b)))


@pytest.mark.parametrize(("given", "message"), [
    ((jaxrnn.gru, I), "check_cell: cell expected a jaxrnn.Cell"),
    ((CELL, 0), "check_cell: input_size expected a positive integer, got 0"),
    ((CELL, "3"), "check_cell: input_size expected a positive integer"),
])  # fmt: skip
def test_odd_arguments_are_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_cell(*given)
    with pytest.raises(ValueError, match="tolerance expected a positive number, got 0"):
        check_cell(CELL, I, tolerance=0)


def test_the_process_keeps_its_precision():
    with pytest.raises(CellFault):
        check_cell(Cell(own.init, own.initial_state, lambda params, h, x: (h,)), I)  # type: ignore
    assert jnp.ones(1).dtype == (jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32)
    assert isinstance(own.init(jax.random.key(0), I), Params)
