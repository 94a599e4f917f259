"""Refusals of "pallas" and "pallas_interpret", with their reasons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.sequence.implementations.kernels import triton
from jaxrnn.sequence.request import Device
from tests.support.registry import T, make, of_cell, run
from tests.support.requests import ARGUMENTS

POINTWISE = "a kernel needs a cell whose rule has a part that works on every unit by itself"
VECTORS = "the kernels are for cells whose only parameters beside w_x, w_h and b are vectors of H units"
REFUSED = {
    "rnn-callable": POINTWISE,
    "lstm-projection": "a kernel needs a recurrent weight that is one matrix of 4 rows",
    "lstm-peephole": VECTORS,
    "lstm-layer-norm": VECTORS,
    "gru-reset-before": POINTWISE,
    "gru-layer-norm": VECTORS,
    "lstm-regularized": POINTWISE,
    "mgu": POINTWISE,
    "gru-heads": r"it multiplies by one dense w_h, .*; jaxrnn.merge_heads\(params\) writes",
    "indrnn": "a kernel needs a recurrent weight that is one matrix of 4 rows",
}


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_other_cells_are_refused(name, why, is_own):
    case = make(name)
    cell = case.cell._replace(config=None) if is_own else case.cell
    said = rf"^unroll: implementation 'pallas_interpret' does not support this call of .*; {why}"
    with pytest.raises(NotImplementedError, match=said):
        run(case._replace(cell=cell), implementation="pallas_interpret")


def refused(why, case, implementation="pallas_interpret", **options):
    with pytest.raises(NotImplementedError, match=f"'{implementation}' does not support this call of .*; {why}"):
        run(case, implementation=implementation, **options)


@pytest.mark.usefixtures("unhooked")
def test_unsupported_requests_are_refused():
    case = make("gru")
    refused("a CPU: its kernels are for CUDA", case, "pallas")
    refused("bfloat16, float16: states are float32; compute_dtype gives products", make("gru", dtype=jnp.bfloat16))
    products = "the kernels support products in float32, .*, not in float8_e5m2"
    refused(products, case, compute_dtype=jnp.float8_e5m2)
    wide = jaxrnn.rnn(257)
    shapes = jax.eval_shape(lambda key: (wide.init(key, 1), jnp.zeros((2, 1, 1))), jax.random.key(0))
    params, xs = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with pytest.raises(NotImplementedError, match="up to 256 hidden units, not 257"):
        jaxrnn.unroll(wide, params, xs, implementation="pallas_interpret")
    with pytest.raises(TypeError, match="expected 'scan' for forward-mode"):
        jax.jvp(lambda xs: run(case._replace(xs=xs), implementation="pallas_interpret")[1], (case.xs,), (case.xs,))


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("name", [of_cell("gru"), of_cell("lstm"), of_cell("rnn-tanh")])
def test_rules_that_disagree_with_their_pointwise_part_are_refused(name):
    case = make(name)
    rule = case.cell.rule
    mine = lambda *given: rule.backward(*given)  # noqa: E731
    my_forward = lambda *given: rule.forward(*given)  # noqa: E731
    narrow = lambda *given: jax.tree.map(lambda z: z[..., :1], rule.project(*given))  # noqa: E731
    for given, why in (
        ({"pointwise": None}, POINTWISE),
        ({"backward": mine, "pointwise": None}, POINTWISE),
        ({"backward": mine}, "its rule has another `forward` or `backward` than its `pointwise` stands for"),
        ({"forward": my_forward}, "its rule has another `forward` or `backward` than its `pointwise` stands for"),
        ({"project": narrow}, "a kernel needs a `project` that gives . arrays"),
    ):
        refused(why, case._replace(cell=case.cell._replace(rule=rule._replace(**given))))
    copied = case._replace(cell=case.cell._replace(rule=type(rule)(*rule), config=None))
    assert run(copied, implementation="pallas_interpret")[1].shape == (T, *case.xs.shape[1:-1], 4)


@pytest.mark.usefixtures("unhooked")
def test_jax_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(triton, "is_available", lambda: False)
    refused(f"jax {jax.__version__} has no jax.experimental.pallas.triton", make("gru"))


@pytest.mark.usefixtures("unhooked")
def test_float64_is_refused_on_a_gpu(x64, monkeypatch):
    monkeypatch.setattr(ARGUMENTS, "device_of", lambda xs: Device("cuda", "NVIDIA H200"))
    refused("float64: the kernels compute in float32", make("gru"), "pallas")
