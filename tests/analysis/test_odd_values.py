"""Odd values of every argument of the analysis: rightly accepted, or refused in words that name function and argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis as a
from tests.support.odd_values import faults

T, B, I, H = 4, 3, 2, 5  # noqa: E741
LSTM, GRU = jaxrnn.lstm(H), jaxrnn.gru(H)
NET = jaxrnn.stack([GRU], bidirectional=True)
OWN = jaxrnn.Cell(
    lambda key, input_size, dtype=None: {"w": jnp.ones((input_size, H))},
    lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, H)),
    lambda params, state, x: (jnp.tanh(state + x @ params["w"]),) * 2,
    name="own",
)
XS = jax.random.normal(jax.random.key(1), (T, B, I))
LENGTHS, MASK, KEY = np.asarray([T, 1, 0], np.int32), np.tri(T, B, dtype=bool), jax.random.key(7)
LSTM_STATE = jaxrnn.LSTMState(jnp.ones((B, H)), jnp.ones((B, H)))


def on(cell, **options):
    return {"cell": cell, "params": cell.init(jax.random.key(0), I), "xs": XS, **options}


def flow(model, **options):
    given = on(model, loss=lambda final, ys: jnp.sum(ys**2), contributions=False, **options)
    return {"net_or_cell": given.pop("cell"), **given}


# What is right for an argument. `FORMS` are the good value in another form.
FORMS = {"traced", "in NumPy", "float16", "NaN"}
AXES = {"six axes", "one axis more", "one axis less"}
FUNCTIONS = {"None", "a lambda"}
RIGHT = {
    "params": FORMS,
    "xs": FORMS,
    "state": FORMS | {"None"},
    "reset_state": FORMS | {"None"},
    "lengths": {"None", "traced", "in NumPy", "int8", "int32"},
    "mask": {"None", "traced", "in NumPy", "booleans"},
    "reduce": FUNCTIONS,
    "tangent": FORMS,
    "cotangent": FORMS,
    "key": {"a key", "a raw key", "traced", "in NumPy", "one axis less"},
    "count": {"None"},
    "directions": FORMS,
    "powers": {"0"},
    "value": {"0", "in NumPy", "int8", "int32", "float16", "float8", "one axis less", "numbers"},
    "contributions": {"True"},
    "discard": {"0", "10**12", "10**400"},
}
# Where two arguments do not fit, the words that name the one or the other
WORDS = {
    "cell": ("cell", "params", "gate"),
    "net_or_cell": ("net_or_cell", "cell", "params"),
    "xs": ("xs", "state", "lengths", "mask", "resets"),
}

# The function, arguments of a good call, and what is right there and is not in `RIGHT`
CALLS = {
    "state_jacobians": (a.state_jacobians, on(LSTM, state=LSTM_STATE, lengths=LENGTHS, reduce=jnp.trace), {}),
    "state_jacobians, no options": (a.state_jacobians, on(GRU), {"xs": FORMS | AXES}),
    "jacobian_products": (a.jacobian_products, on(GRU, state=jnp.ones((B, H)), mask=MASK), {}),
    "tangent_norms": (a.tangent_norms, on(LSTM, state=None, tangent=LSTM_STATE, lengths=LENGTHS), {"state": {"None"}}),
    "tangent_norms, drawn": (a.tangent_norms, on(GRU, key=KEY), {"xs": FORMS | AXES}),
    "cotangent_norms": (a.cotangent_norms, on(LSTM, state=LSTM_STATE, cotangent=LSTM_STATE, mask=MASK), {}),
    "cotangent_norms, drawn": (a.cotangent_norms, on(GRU, key=KEY), {"xs": FORMS | AXES}),
    "lyapunov_exponents": (
        a.lyapunov_exponents,
        on(GRU, state=None, count=2, discard=1, lengths=LENGTHS),
        {"state": {"None"}},
    ),
    "lyapunov_exponents, directions": (
        a.lyapunov_exponents,
        on(GRU, directions=jnp.eye(H, 2), mask=MASK),
        {"directions": FORMS | {"None"}},
    ),
    "newton_convergence": (
        a.newton_convergence,
        on(GRU, state=None, newton=None, lengths=LENGTHS, reverse=False),
        {"state": {"None"}, "newton": {"None"}, "reverse": {"True"}},
    ),
    "recurrent_spectrum": (
        a.recurrent_spectrum,
        {"params": LSTM.init(KEY, I), "powers": 2},
        {"params": FORMS | {"params of another cell"}},
    ),
    "gate_values": (a.gate_values, on(LSTM, state=LSTM_STATE, lengths=LENGTHS), {}),
    "gate_statistics": (
        a.gate_statistics,
        on(GRU, state=None, low=0.2, high=0.8, bins=4, mask=MASK),
        {"state": {"None"}},
    ),
    "ablate_gates": (a.ablate_gates, {"cell": LSTM, "gate": "f", "value": np.full(H, 0.5)}, {}),
    "cell_state_jacobian_terms": (
        a.cell_state_jacobian_terms,
        on(LSTM, state=LSTM_STATE, lengths=LENGTHS, reduce=jnp.trace),
        {},
    ),
    "gradient_flow": (a.gradient_flow, flow(LSTM, state=LSTM_STATE, lengths=LENGTHS), {}),
    "gradient_flow, network": (a.gradient_flow, flow(NET, state=None, mask=MASK), {"state": {"None"}}),
    "backward_pass": (
        a.backward_pass,
        flow(LSTM, state=LSTM_STATE, lengths=LENGTHS, resets=MASK, reset_state=LSTM_STATE, reverse=False),
        {"reverse": {"True"}, "resets": RIGHT["mask"] - {"None"}},
    ),
    "backward_pass, network": (
        a.backward_pass,
        flow(NET, state=None, mask=MASK, truncate=2, clip_gradient=0.5),
        {
            "state": {"None"},
            "truncate": {"None", "10**12", "10**400"},
            "clip_gradient": {"None", "2.5", "inf", "10**12", "numbers"},
        },
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_odd_values_are_refused_by_name(what, unhooked):
    call, good, right = CALLS[what]
    found = faults(what.split(",")[0], call, good, accepted={**RIGHT, **right}, words=WORDS)
    assert not found, "\n".join(found)
