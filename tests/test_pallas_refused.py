"""What the fused kernels do not serve, and the reasons they give."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.backends import triton
from jaxrnn.backends.calls import Device
from tests.registry import T, make, of_cell, run

UNROLL = sys.modules["jaxrnn.sequence.unroll"]

REFUSED = {
    "rnn-callable": "rnn with an activation of your own: it serves rnn with a named activation",
    "lstm-projection": "a projection: the kernels are for the plain forms",
    "lstm-peephole": "peepholes: the kernels are for the plain forms",
    "lstm-layer-norm": "layer normalisation: the kernels are for the plain forms",
    "gru-reset-before": "gru with reset_after=False: it serves .* gru with reset_after=True",
    "gru-layer-norm": "layer normalisation: the kernels are for the plain forms",
    "lstm-regularized": "regularize: the kernels are for the plain forms",
    "mgu": "mgu, indrnn: it serves",
    "indrnn": "mgu, indrnn: it serves",
}


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_cells_that_are_refused(name, why, unhooked):
    said = rf"^unroll: implementation 'pallas_interpret' cannot serve this call of .*; {why}"
    with pytest.raises(NotImplementedError, match=said):
        run(make(name), implementation="pallas_interpret")


def test_calls_that_are_refused(unhooked):
    case = make("gru")
    with pytest.raises(NotImplementedError, match="'pallas' cannot serve .* gru.4.*; a CPU: its kernels are for CUDA"):
        run(case, implementation="pallas")
    with pytest.raises(
        NotImplementedError, match="bfloat16, float16: states are float32; compute_dtype gives products"
    ):
        run(make("gru", dtype=jnp.bfloat16), implementation="pallas_interpret")
    with pytest.raises(
        NotImplementedError,
        match="'pallas_interpret' cannot serve this call of gru.4.; it takes products in float32, .* not in float8_e5m2",
    ):
        run(case, implementation="pallas_interpret", compute_dtype=jnp.float8_e5m2)
    wide = jaxrnn.rnn(257)
    params, xs = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda key: (wide.init(key, 1), jnp.zeros((2, 1, 1))), jax.random.key(0)),
    )
    with pytest.raises(NotImplementedError, match="up to 256 hidden units, not 257"):
        jaxrnn.unroll(wide, params, xs, implementation="pallas_interpret")
    with pytest.raises(TypeError, match="expected 'scan' for forward-mode"):
        jax.jvp(lambda xs: run(case._replace(xs=xs), implementation="pallas_interpret")[1], (case.xs,), (case.xs,))


@pytest.mark.parametrize("name", [of_cell("gru"), of_cell("lstm"), of_cell("rnn-tanh")])
def test_rules_that_are_refused(name, unhooked):
    """A kernel calls `units`: what else of a rule was replaced, it would not see."""
    case = make(name)
    rule = case.cell.rule
    mine = lambda *given: rule.backward(*given)  # noqa: E731
    for given, why in (
        (
            {"units": None},
            "a rule of your own without units: a kernel needs the part of the rule that goes unit by unit",
        ),
        ({"backward": mine, "units": None}, "a rule of your own without units: a kernel needs the part"),
        (
            {"backward": mine},
            "its rule has a field of your own beside the library's `Rule.units`, which do not see it",
        ),
    ):
        for config in (case.cell.config, None):
            own = case._replace(cell=case.cell._replace(rule=rule._replace(**given), config=config))
            said = f"^unroll: implementation 'pallas_interpret' cannot serve this call of .*; {why}"
            with pytest.raises(NotImplementedError, match=said):
                run(own, implementation="pallas_interpret")
    copied = case._replace(cell=case.cell._replace(rule=type(rule)(*rule), config=None))
    assert run(copied, implementation="pallas_interpret")[1].shape == (T, *case.xs.shape[1:-1], 4)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lstm-projection", "a projection: the kernels"),
        ("lstm-peephole", "peepholes: the kernels"),
        ("lstm-layer-norm", "layer normalisation: the kernels"),
        ("indrnn", "its recurrent weight is not one matrix of 4 rows for all sequences"),
    ],
)
def test_cells_of_ones_own_are_known_by_their_arrays(name, why, unhooked):
    case = make(name)
    own = case._replace(cell=case.cell._replace(config=None))
    with pytest.raises(
        NotImplementedError, match=f"implementation 'pallas_interpret' cannot serve this call of .*; {why}"
    ):
        run(own, implementation="pallas_interpret")


def test_a_version_of_jax_without_triton_is_refused(unhooked, monkeypatch):
    monkeypatch.setattr(triton, "is_available", lambda: False)
    with pytest.raises(NotImplementedError, match="this version of JAX has no jax.experimental.pallas.triton"):
        run(make("gru"), implementation="pallas_interpret")


def test_float64_is_for_the_interpreter_alone(unhooked, x64, monkeypatch):
    monkeypatch.setattr(UNROLL, "device_of", lambda xs: Device("cuda", "NVIDIA H200"))
    with pytest.raises(NotImplementedError, match="float64: the kernels compute in float32"):
        run(make("gru"), implementation="pallas")
