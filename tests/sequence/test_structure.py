"""A rule that returns something else than it should is named by its part."""

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from tests.support.own_gru import Params, accumulate, backward, forward, own_gru, project

H, I = 4, 3  # noqa: E741
CELL = own_gru(H)
PARAMS, XS = CELL.init(jax.random.key(0), I), jnp.ones((5, 2, I))


def run(implementation=None, **parts):
    cell = CELL._replace(rule=CELL.rule._replace(**parts))
    return jaxrnn.unroll(cell, PARAMS, XS, implementation=implementation)[1].sum()


def differentiate(**parts):
    cell = CELL._replace(rule=CELL.rule._replace(**parts))
    return jax.grad(lambda params: jaxrnn.unroll(cell, params, XS)[1].sum())(PARAMS)


def of_forward(change):
    return lambda p, s, z: change(*forward(p, s, z))


def of_backward(change):
    return lambda p, tape, ds, dy: change(*backward(p, tape, ds, dy))


def of_accumulate(change):
    return lambda p, xs, tape, deltas: change(*accumulate(p, xs, tape, deltas))


MISTAKES = {
    "two parts of forward": (
        run,
        {"forward": of_forward(lambda s, y, kept: (s, y))},
        TypeError,
        r"unroll: rule.forward of own_gru expected to return \(state, y, residual\), got a tuple of 2",
    ),
    "another structure of the state": (
        run,
        {"forward": of_forward(lambda s, y, kept: ((s, s), y, kept))},
        TypeError,
        "unroll: rule.forward of own_gru expected the state in the structure of the state it is given",
    ),
    "another shape of the state": (
        run,
        {"forward": of_forward(lambda s, y, kept: (s[:1], y, kept))},
        ValueError,
        r"rule.forward of own_gru expected the state of shape \(2, 4\), as the state it is given has, got \(1, 4\)",
    ),
    "another dtype of the state": (
        run,
        {"forward": of_forward(lambda s, y, kept: (s.astype(jnp.bfloat16), y, kept))},
        TypeError,
        "rule.forward of own_gru expected the state of dtype float32, as the state it is given has, got bfloat16",
    ),
    "one part of backward": (
        differentiate,
        {"backward": of_backward(lambda before, delta: before)},
        TypeError,
        r"unroll: rule.backward of the cell expected to return \(dstate_before, delta\), got float32\[2, 4\]",
    ),
    "another shape of the cotangent": (
        differentiate,
        {"backward": of_backward(lambda before, delta: (before.sum(0), delta))},
        ValueError,
        r"rule.backward of the cell expected dstate_before of shape \(2, 4\), as the state has, got \(4,\)",
    ),
    "one part of accumulate": (
        differentiate,
        {"accumulate": of_accumulate(lambda dparams, dxs: dparams)},
        TypeError,
        r"rule.accumulate of the cell expected to return \(dparams, dxs\), got a tuple of 4",
    ),
    "a tuple for the parameters": (
        differentiate,
        {"accumulate": of_accumulate(lambda dparams, dxs: (tuple(dparams), dxs))},
        TypeError,
        "rule.accumulate of the cell expected dparams in the structure of params, Params",
    ),
    "a weight of another shape": (
        differentiate,
        {"accumulate": of_accumulate(lambda dparams, dxs: (dparams._replace(w_h=dparams.w_h.T), dxs))},
        ValueError,
        r"rule.accumulate of the cell expected dparams.w_h of shape \(4, 12\), as params has, got \(12, 4\)",
    ),
    "a gradient of one step": (
        differentiate,
        {"accumulate": of_accumulate(lambda dparams, dxs: (dparams, dxs[0]))},
        ValueError,
        r"rule.accumulate of the cell expected dxs of shape \(1, 2, 3\), as xs has, got \(2, 3\)",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_the_part_is_named(what):
    call, parts, error, message = MISTAKES[what]
    with pytest.raises(error, match=message) as raised:
        call(**parts)
    assert len(str(raised.value)) <= 500


def test_an_error_inside_a_part_is_noted():
    def broken(params, xs):
        return project(params, xs)[:, None].reshape(7)

    with pytest.raises(TypeError, match="reshape") as raised:
        run(project=broken)
    assert any(note.startswith("unroll: rule.project of own_gru was traced") for note in raised.value.__notes__)


def test_newton_names_the_part_too():
    with pytest.raises(TypeError, match="unroll: rule.backward of the cell expected to return"):
        run("newton", backward=of_backward(lambda before, delta: before))


def test_a_rule_that_is_right_is_traced_once():
    calls = []

    def counted(params, xs):
        calls.append(xs.shape)
        return project(params, xs)

    cell = CELL._replace(rule=CELL.rule._replace(project=counted))
    jaxrnn.unroll(cell, PARAMS, XS)
    count = len(calls)
    jaxrnn.unroll(cell, PARAMS, XS)
    assert len(calls) == count
    assert isinstance(PARAMS, Params)
