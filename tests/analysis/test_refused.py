"""Refusals of the analysis, and their messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis as a
from tests.support.registry import random_like

GRU, LSTM, RNN = jaxrnn.gru(4), jaxrnn.lstm(4), jaxrnn.rnn(4)
XS = jnp.ones((5, 2, 3))


@functools.cache
def params_of(cell):
    shapes = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    return random_like(0, shapes, jnp.float32)


def on(function, cell=GRU, xs=XS, **options):
    return lambda: function(cell, params_of(cell), xs, **options)


COUNTING = jaxrnn.Cell(
    lambda key, input_size: jnp.ones((1, 2)),
    lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, 2), jnp.int32),
    lambda params, state, x: (state + 1, x),
    name="counting",
)
ZONED = jaxrnn.regularize(LSTM, zoneout=0.2)


def swapped(params, h, z):
    """A step of a GRU that keeps z and r in the other order."""
    state, y, (r, z, *rest) = GRU.rule.forward(params, h, z)
    return state, y, (z, r, *rest)


OWN_RULE = GRU._replace(rule=GRU.rule._replace(forward=swapped, pointwise=None), name="own")
OWN_LSTM = LSTM._replace(rule=LSTM.rule._replace(project=lambda params, xs: LSTM.rule.project(params, xs)), name="own")


class Unhashable:
    __hash__ = None

    def __call__(self, jacobian):
        return jacobian


flow = lambda loss, cell=GRU, **options: lambda: a.gradient_flow(cell, params_of(cell), XS, loss, **options)  # noqa: E731

REFUSED = {
    "batch-major": (
        on(a.state_jacobians, xs=XS.swapaxes(1, 2)),
        ValueError,
        "state_jacobians: xs has last axis 2, params.w_x expects 3",
    ),
    "not a cell": (
        lambda: a.state_jacobians("gru", None, XS),
        TypeError,
        "state_jacobians: cell expected a jaxrnn.Cell, got str",
    ),
    "lengths": (
        on(a.jacobian_products, lengths=np.asarray([6, 1])),
        ValueError,
        "lengths expected values from 0 to T = 5, got 6",
    ),
    "both": (
        on(a.tangent_norms, lengths=np.ones(2, int), mask=np.ones((5, 2), bool), key=1),
        ValueError,
        "lengths and mask were both",
    ),
    "integer state": (
        lambda: a.state_jacobians(COUNTING, jnp.ones((1, 2)), XS),
        TypeError,
        "state_jacobians: cell expected one whose state is floating-point throughout, got counting",
    ),
    "reduce": (
        on(a.state_jacobians, reduce="norm"),
        TypeError,
        "state_jacobians: reduce expected a function of one Jacobian, got str",
    ),
    "a reduce without hash": (
        on(a.state_jacobians, reduce=Unhashable()),
        TypeError,
        "state_jacobians: reduce expected a function that has a hash, got Unhashable .*; wrap it in a lambda",
    ),
    "gates of an own rule": (
        on(a.gate_values, OWN_RULE),
        NotImplementedError,
        "gate_values: cell expected an LSTM, GRU, MGU, sLSTM, minGRU, minLSTM or RG-LRU, which have gates, with the library's rule, .*; got own",
    ),
    "ablate an own rule": (
        lambda: a.ablate_gates(OWN_RULE, "z", 0.5),
        NotImplementedError,
        "ablate_gates: cell expected .* with the library's rule, .*; got own",
    ),
    "terms of an own rule": (
        on(a.cell_state_jacobian_terms, OWN_LSTM),
        NotImplementedError,
        "cell_state_jacobian_terms: cell expected an LSTM of this library with its params, got own",
    ),
    "a network": (
        lambda: a.tangent_norms(jaxrnn.stack([GRU]), (params_of(GRU),), XS, key=jax.random.key(0)),
        TypeError,
        r"tangent_norms: cell expected a jaxrnn.Cell, got the network stack\(\[gru\(4\)\]\); give one of its layers",
    ),
    "integer weights": (
        lambda: a.recurrent_spectrum(jaxrnn.RNNParams(jnp.ones((2, 2), int), jnp.ones((2, 2), int), None)),
        TypeError,
        r"recurrent_spectrum: params.w_h expected a floating-point array, got int32\[2, 2\]",
    ),
    "gates that do not fit": (
        lambda: a.recurrent_spectrum(jaxrnn.GRUParams(jnp.ones((2, 6)), jnp.ones((3, 6)), None, None)),
        ValueError,
        r"recurrent_spectrum: params.w_h expected shape \(3, 9\), got \(3, 6\)",
    ),
    "params of many layers": (
        lambda: a.recurrent_spectrum(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params_of(GRU))),
        ValueError,
        r"recurrent_spectrum: params.w_x expected 2 axes, got shape \(2, 3, 12\); of several layers",
    ),
    "loss of nothing": (
        flow(lambda final, ys: None),
        TypeError,
        "gradient_flow: loss expected to return a floating-point scalar, got None",
    ),
    "no direction": (on(a.tangent_norms), ValueError, "tangent_norms: expected either tangent or key, got neither"),
    "two directions": (
        on(a.cotangent_norms, cotangent=jnp.ones((2, 4)), key=jax.random.key(0)),
        ValueError,
        "cotangent_norms: expected either cotangent or key, got both",
    ),
    "tangent shape": (
        on(a.tangent_norms, tangent=jnp.ones(4)),
        ValueError,
        r"tangent_norms: tangent expected float32\[2, 4\], got float32\[4\]",
    ),
    "tangent structure": (
        on(a.cotangent_norms, LSTM, cotangent=jnp.ones((2, 4))),
        TypeError,
        "cotangent expected LSTMState",
    ),
    "count": (on(a.lyapunov_exponents, count=5), ValueError, "lyapunov_exponents: count expected at most S = 4"),
    "count 0": (
        on(a.lyapunov_exponents, count=0),
        ValueError,
        "lyapunov_exponents: count expected a positive integer, got 0",
    ),
    "count and directions": (
        on(a.lyapunov_exponents, count=1, directions=jnp.ones((4, 1))),
        ValueError,
        "count and directions were both given",
    ),
    "directions": (
        on(a.lyapunov_exponents, directions=jnp.ones((3, 1))),
        ValueError,
        r"directions expected shape \(S, k\) with S = 4 .*, got \(3, 1\)",
    ),
    "discard": (
        on(a.lyapunov_exponents, discard=-1),
        ValueError,
        "lyapunov_exponents: discard expected a number of steps, at least 0; got -1",
    ),
    "spectrum": (
        lambda: a.recurrent_spectrum((params_of(GRU),)),
        TypeError,
        "recurrent_spectrum: params expected those of one.*got tuple of .*; of a network",
    ),
    "powers": (
        lambda: a.recurrent_spectrum(params_of(GRU), powers=-1),
        ValueError,
        "recurrent_spectrum: powers expected a positive integer, got -1",
    ),
    "powers true": (
        lambda: a.recurrent_spectrum(params_of(GRU), powers=True),
        TypeError,
        "recurrent_spectrum: powers expected a positive integer",
    ),
    "terms of a GRU": (
        on(a.cell_state_jacobian_terms),
        NotImplementedError,
        r"cell_state_jacobian_terms: cell expected an LSTM .* got gru\(4\) and params GRUParams",
    ),
    "terms with zoneout": (
        on(a.cell_state_jacobian_terms, ZONED),
        NotImplementedError,
        "expected an LSTM without zoneout, got regularize.*; the h that zoneout mixes",
    ),
    "terms' reduce": (
        on(a.cell_state_jacobian_terms, LSTM, reduce=2),
        TypeError,
        "cell_state_jacobian_terms: reduce expected a function",
    ),
    "loss": (flow(None), TypeError, r"gradient_flow: loss expected a function of \(final_state, ys\), got None"),
    "loss of a vector": (
        flow(lambda final, ys: ys),
        TypeError,
        r"gradient_flow: loss expected to return a floating-point scalar, got float32\[5, 2, 4\]",
    ),
    "contributions": (
        flow(lambda final, ys: ys.sum(), contributions=1),
        TypeError,
        "gradient_flow: contributions expected True or False, got int 1",
    ),
    "integer params": (
        lambda: a.gradient_flow(
            GRU, jax.tree.map(lambda p: p.astype(int), params_of(GRU)), XS, lambda final, ys: ys.sum()
        ),
        TypeError,
        "gradient_flow: params expected floating-point arrays, got GRUParams",
    ),
    "params of a cell": (
        lambda: a.gradient_flow(jaxrnn.stack([GRU]), params_of(GRU), XS, lambda final, ys: ys.sum()),
        TypeError,
        "gradient_flow: params expected a tuple over 1 layers",
    ),
    "gates of an RNN": (
        on(a.gate_values, RNN),
        NotImplementedError,
        r"gate_values: cell expected an LSTM, GRU, MGU, sLSTM, minGRU, minLSTM or RG-LRU, which have gates, with the library's rule, .*; got rnn\(4\)",
    ),
    "gates of a stack": (
        lambda: a.gate_statistics(jaxrnn.stack([GRU]), None, XS),
        NotImplementedError,
        "gate_statistics: cell expected an LSTM, GRU, MGU, sLSTM, minGRU",
    ),
    "thresholds": (
        on(a.gate_statistics, low=0.9, high=0.1),
        ValueError,
        "gate_statistics: low and high expected 0 < low <= high < 1, got 0.9 and 0.1",
    ),
    "low": (on(a.gate_statistics, low="0.1"), TypeError, "gate_statistics: low expected a positive number, got str"),
    "bins": (on(a.gate_statistics, bins=0), ValueError, "gate_statistics: bins expected a positive integer, got 0"),
    "ablate an RNN": (
        lambda: a.ablate_gates(RNN, "h", 1.0),
        NotImplementedError,
        "ablate_gates: cell expected an LSTM, GRU or MGU, which have gates that read the state",
    ),
    "ablate noise": (
        lambda: a.ablate_gates(ZONED, "f", 1.0),
        NotImplementedError,
        "cell expected one without noise, got regularize.*; ablate it, then regularize",
    ),
    "ablate a candidate": (
        lambda: a.ablate_gates(LSTM, "g", 1.0),
        ValueError,
        r"gate expected one of 'i', 'f', 'o' of lstm\(4\), got 'g'; a candidate",
    ),
    "ablate 1 - f": (
        lambda: a.ablate_gates(jaxrnn.lstm(4, coupled=True), "i", 1.0),
        ValueError,
        "gate expected one of 'f', 'o' of .*, got 'i'; in a coupled LSTM it is 1 - f",
    ),
    "ablate at 2": (
        lambda: a.ablate_gates(GRU, "z", 2),
        ValueError,
        r"ablate_gates: value expected numbers in \[0, 1\], got int 2",
    ),
    "ablate at nan": (
        lambda: a.ablate_gates(GRU, "z", np.nan),
        ValueError,
        r"ablate_gates: value expected numbers in \[0, 1\]",
    ),
    "ablate at open": (
        lambda: a.ablate_gates(GRU, "z", "open"),
        TypeError,
        r"ablate_gates: value expected a number in \[0, 1\] or an array of them, got str 'open'",
    ),
    "ablate at a shape": (
        lambda: a.ablate_gates(GRU, "z", np.ones(3)),
        ValueError,
        r"value expected a number or shape \(H,\) = \(4,\), got \(3,\)",
    ),
    "ablate traced": (
        lambda: jax.jit(lambda v: a.ablate_gates(GRU, "z", v) and v)(jnp.ones(())),
        TypeError,
        "got a traced one; make the cell outside of jit",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_arguments_are_refused(what, unhooked):
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        call()
