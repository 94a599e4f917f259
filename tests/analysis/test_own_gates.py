"""Gates that a cell of one's own declares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from tests.support.own_gru import GATES, Params, forward, own_gru
from tests.testing import own

H, I = 4, 3  # noqa: E741
OWN, LIBRARY = own_gru(H), jaxrnn.gru(H)
KEY = jax.random.key(0)
PARAMS, THEIRS = OWN.init(KEY, I), LIBRARY.init(KEY, I)
XS = jax.random.normal(jax.random.key(1), (6, 2, I))


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_gates_are_those_of_the_library():
    given = {"lengths": np.asarray([6, 3])}
    assert_equal(analysis.gate_values(OWN, PARAMS, XS, **given), analysis.gate_values(LIBRARY, THEIRS, XS, **given))
    assert_equal(
        analysis.gate_statistics(OWN, PARAMS, XS, **given), analysis.gate_statistics(LIBRARY, THEIRS, XS, **given)
    )
    held = jaxrnn.regularize(OWN, zoneout=0.3), jaxrnn.regularize(LIBRARY, zoneout=0.3)
    assert_equal(analysis.gate_values(held[0], PARAMS, XS), analysis.gate_values(held[1], THEIRS, XS))


def test_recurrent_spectrum_is_that_of_the_library():
    assert_equal(analysis.recurrent_spectrum(PARAMS, cell=OWN, powers=2), analysis.recurrent_spectrum(THEIRS, powers=2))
    with pytest.raises(TypeError, match="recurrent_spectrum: params expected those of one of this library's cells"):
        analysis.recurrent_spectrum(PARAMS)
    with pytest.raises(ValueError, match=r"params.w_h expected the columns of 3 gates for 4 units, got \(4, 8\)"):
        analysis.recurrent_spectrum(PARAMS._replace(w_h=PARAMS.w_h[:, :8]), cell=OWN)


@pytest.mark.parametrize("gate", GATES.gates)
def test_ablation_is_that_of_the_library(gate):
    value = np.asarray([0.0, 0.2, 0.7, 1.0])
    results = []
    for cell, params in ((OWN, PARAMS), (LIBRARY, THEIRS)):
        ablated = analysis.ablate_gates(cell, gate, value)
        loss = lambda params, ablated=ablated: jnp.sum(jaxrnn.unroll(ablated, params, XS)[1] ** 2)  # noqa: E731
        results.append(jax.value_and_grad(loss)(params))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_backward_pass_is_that_of_the_library():
    loss = lambda final, ys: jnp.sum(ys**2)  # noqa: E731
    ours, theirs = analysis.backward_pass(OWN, PARAMS, XS, loss), analysis.backward_pass(LIBRARY, THEIRS, XS, loss)
    assert_equal(ours.pre_activations, theirs.pre_activations)
    assert_equal(ours.by_gate, {name: Params(*part[:4]) for name, part in theirs.by_gate.items()})


def shifted(params, h, a):
    """A GRU whose z also depends on h without a weight."""
    return forward(params, h, a + jnp.concatenate([0 * h, h, 0 * h], -1))


def reused(params, h, a):
    """A GRU whose r is added to the preactivation of z."""
    _, _, kept = forward(params, h, a)
    return forward(params, h, a + jnp.concatenate([0 * h, kept.r, 0 * h], -1))


@pytest.mark.parametrize(("wrong", "gate", "named"), [(shifted, "z", "z"), (reused, "r", "z")])
def test_ablation_of_a_gate_that_is_no_sigmoid_of_its_columns_is_refused(wrong, gate, named):
    cell = OWN._replace(rule=OWN.rule._replace(forward=wrong))
    with pytest.raises(NotImplementedError, match=f"fixes the gate '{gate}' .*whose '{named}' then differs"):
        analysis.ablate_gates(cell, gate, 0.3)


BAD = {
    "a tuple of names": (("r", "z"), TypeError, "cell.gates expected a jaxrnn.Gates, got tuple"),
    "a name for names": (
        GATES._replace(blocks="rzn"),
        TypeError,
        "cell.gates.blocks expected a tuple of names, got str 'rzn'",
    ),
    "a name twice": (GATES._replace(blocks=("r", "r", "n")), ValueError, "cell.gates.blocks expected different names"),
    "values that are no function": (GATES._replace(values=None), TypeError, "cell.gates.values expected a function of"),
    "a kept gate that is none": (GATES._replace(kept=("n", False)), ValueError, "cell.gates.kept expected None, or"),
    "a kept gate alone": (GATES._replace(kept="z"), ValueError, "cell.gates.kept expected None, or"),
    "a gate that is missing": (
        GATES._replace(values=lambda kept: {"r": kept.r}),
        ValueError,
        "cell.gates.values expected to return a dictionary with z",
    ),
    "values of one step": (
        GATES._replace(values=lambda kept: {"r": kept.r[0], "z": kept.z}),
        ValueError,
        r"cell.gates.values expected r of shape \(6, 2, H\)",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_wrong_gates_are_refused(what, unhooked):
    gates, error, message = BAD[what]
    with pytest.raises(error, match=f"gate_values: {message}") as raised:
        analysis.gate_values(OWN._replace(gates=gates), PARAMS, XS)
    assert len(str(raised.value)) <= 500


BAD_DELTAS = {
    "a number": (lambda delta: 3, "got int 3"),
    "a block that is missing": (lambda delta: {"r": delta[1], "z": delta[1]}, "got dict of"),
    "no function for other parts": (None, "got tuple of"),
}


@pytest.mark.parametrize("what", BAD_DELTAS)
def test_wrong_deltas_are_refused(what, unhooked):
    deltas, got = BAD_DELTAS[what]
    cell = OWN._replace(gates=GATES._replace(deltas=deltas))
    message = rf"backward_pass: cell.gates.deltas expected a function .* with r, z, n of shape \(6, 2, H\), .*{got}"
    with pytest.raises(TypeError, match=message) as raised:
        analysis.backward_pass(cell, PARAMS, XS, lambda final, ys: jnp.sum(ys))
    assert len(str(raised.value)) <= 500


def test_a_spectrum_of_another_cells_parameters_is_refused(unhooked):
    with pytest.raises(TypeError, match=r"recurrent_spectrum: params expected those of lstm\(4\), got GRUParams"):
        analysis.recurrent_spectrum(THEIRS, cell=jaxrnn.lstm(H))


def test_a_product_that_widens_is_seen_where_a_gate_is_fixed():
    gates = jaxrnn.Gates(("z", "n"), ("z",), lambda kept: {"z": kept[0], "n": kept[1]})
    cell = analysis.ablate_gates(own.CELL._replace(gates=gates), "z", 0.3)
    params = own.init(KEY, I)
    message = "compute_dtype expected a rule that multiplies params.w_h in its own"
    with jax.numpy_dtype_promotion("standard"), pytest.raises(NotImplementedError, match=message):
        jaxrnn.unroll(cell, params, XS, compute_dtype=jnp.bfloat16)
    fixed = analysis.ablate_gates(OWN, "z", 0.3)
    assert jnp.isfinite(jaxrnn.unroll(fixed, PARAMS, XS, compute_dtype=jnp.bfloat16)[1]).all()


def test_ablation_needs_fields_with_columns():
    cell = OWN._replace(init=lambda *given: {"w": OWN.init(*given)})
    with pytest.raises(NotImplementedError, match="ablate_gates: cell expected parameters with fields w_x, w_h and b"):
        analysis.ablate_gates(cell, "r", 0.5)
