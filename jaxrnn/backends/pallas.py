"""`pallas`: fused kernels, one launch for a whole sequence, for the RNN, the LSTM and the reset-after GRU.

Around the kernels stands what :mod:`jaxrnn.sequence.bptt` has around its loop: x W_x + b of
all steps is one product before the forward kernel, and the cotangents of parameters and
inputs are the cell's `accumulate` over all steps, after the backward kernel. Between them
lie the state after each step and the gates, unless the plan has those computed anew.

Each program of a kernel runs 16 sequences by itself, so a batch of B keeps ⌈B/16⌉ of a GPU's
multiprocessors busy. Of what H the weights stay on the chip is in
:mod:`jaxrnn.backends.residency`; H goes up to 256.

Products follow `jax.default_matmul_precision` as all of JAX: on a GPU those of float32
operands are in TF32 by default, and with "highest" in float32, as three products of TF32 numbers. All
accumulate in float32.

Differs from `bptt`:
    1. Forward mode of the first derivative is refused as there; second derivatives, in either
       mode, are those of `bptt` itself: only values and gradients come from the kernels.
    2. To the compiler a kernel is opaque: on several devices call it inside `shard_map`,
       or on an explicit mesh, where `unroll` does that itself.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._types import Params, PyTree, State, Tape, Units
from jaxrnn.backends import kernels, residency, triton
from jaxrnn.backends.blocks import Memory, Shape
from jaxrnn.backends.calls import Call, has_units_of_another
from jaxrnn.backends.kernels import Back, Given, OverTime, Written
from jaxrnn.cells import _algebra as alg
from jaxrnn.sequence.bptt import bptt, bptt_backward, bptt_forward, cotangents_of, entering_states
from jaxrnn.sequence.plan import Inputs, Plan, operands, rule_of

_ONLY = "it serves rnn with a named activation, lstm, and gru with reset_after=True"
_PLAIN = "the kernels are for the plain forms of the cells"
_INTERPRETED = "its kernels are for CUDA; 'pallas_interpret' runs them on any platform, slowly"
REFUSES: dict[str, str] = {
    "`gru` with `reset_after=False`": _ONLY,
    "`rnn` with an activation of your own": _ONLY,
    "`mgu`, `indrnn`": _ONLY,
    "a projection": _PLAIN,
    "peepholes": _PLAIN,
    "layer normalisation": _PLAIN,
    "`regularize`": _PLAIN,
    "a rule of your own without `units`": "a kernel needs the part of the rule that goes unit by unit, `Rule.units`",
    "a cell without a rule": _ONLY,
    "a state that is not floating-point throughout": "the kernels compute in float32",
    "`model_parallel`": "a kernel cannot ask another device for its units",
    "bfloat16, float16": "states are float32; compute_dtype gives products in less, with float32 parameters",
}
ON_CUDA: dict[str, str] = {
    "float64": "the kernels compute in float32",
    "a CPU": _INTERPRETED,
    "an AMD GPU": _INTERPRETED,
    "a TPU": _INTERPRETED,
}


def pallas(plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """`bptt` by fused kernels, on a CUDA GPU."""
    return _pallas(plan, inputs, False)


def pallas_interpret(plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """The same kernels interpreted, on any platform: slow, for proofs."""
    return _pallas(plan, inputs, True)


def _pallas(plan: Plan, inputs: Inputs, interpret: bool) -> tuple[State, PyTree, State | None]:
    why = reason_at_run(plan, inputs)
    if why is not None:
        name = "pallas_interpret" if interpret else "pallas"
        raise NotImplementedError(f"unroll: implementation {name!r} cannot serve this call of {plan.cell!r}; {why}")
    return _fused(interpret, plan, inputs) if inputs.xs.size else bptt(plan, inputs)


def reason_at_run(plan: Plan, inputs: Inputs) -> str | None:
    """Why the kernels cannot serve a call that nothing is said against before: what only its arrays tell."""
    params = inputs.params
    variants = {"w_proj": "a projection", "peephole": "peepholes", "norm": "layer normalisation"}
    for field, variant in variants.items():
        if getattr(params, field, None) is not None:
            return f"{variant}: {_PLAIN}"
    w_h, hidden = getattr(params, "w_h", None), jax.tree.leaves(inputs.state)[-1].shape[-1]
    if not isinstance(w_h, jax.Array) or w_h.ndim != 2 or w_h.shape[0] != hidden:
        return f"its recurrent weight is not one matrix of {hidden} rows for all sequences"
    products = operands(plan, params).w_h.dtype.name
    if products not in ("float32", "bfloat16", "float16", "float64"):
        return f"it takes products in float32, bfloat16 or float16, not in {products}"
    return None


def limit(call: Call) -> str | None:
    """Why the kernels cannot serve a call of which no feature is refused: `units` of another rule, H, this JAX."""
    if has_units_of_another(call):
        return (
            "its rule has a field of your own beside the library's `Rule.units`, which do not see it; give units=None"
        )
    hidden = jax.tree.leaves(call.state)[-1].shape[-1]
    if hidden > residency.MOST_UNITS:
        return f"it serves up to {residency.MOST_UNITS} hidden units, not {hidden}"
    return None if triton.is_available() else "this version of JAX has no jax.experimental.pallas.triton"


def _cut(plan: Plan, params: Params) -> residency.Cut | None:
    w_h = operands(plan, params).w_h
    hidden, columns = w_h.shape
    return residency.cut(columns // hidden, hidden, triton.bytes_of_weight(w_h.dtype), residency.shared_memory())


def _units(plan: Plan) -> Units:
    units = rule_of(plan).units
    assert units is not None
    return units


def _shape(plan: Plan, inputs: Inputs) -> tuple[Shape, int]:
    """What the kernels are compiled for, and in how many warps they run."""
    cut = _cut(plan, inputs.params)
    assert cut is not None
    time, *batch, _ = inputs.xs.shape
    hidden, columns = inputs.params.w_h.shape
    sizes = (time, math.prod(batch), hidden, columns // hidden, residency.ROWS, cut.width, cut.resident)
    return Shape(*sizes, plan.reverse, plan.clip_gradient, early=cut.blocks == 1), cut.warps


# One batch axis for the kernels, any number outside.


def _merged(inputs: Inputs, tree: PyTree, lead: int = 1) -> PyTree:
    """Leaves (T, *B, ·), or (*B, ·) with `lead` 0, with one batch axis."""
    axes = inputs.xs.ndim - 2
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:lead], -1, *leaf.shape[lead + axes :]), tree)


def _parted(inputs: Inputs, tree: PyTree, lead: int = 1) -> PyTree:
    """The inverse of `_merged`."""
    batch = inputs.xs.shape[1:-1]
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:lead], *batch, *leaf.shape[lead + 1 :]), tree)


def _flags(inputs: Inputs) -> jax.Array | None:
    """(T, B) of the bits that the kernels read."""
    if inputs.mask is None and inputs.resets is None and inputs.cuts is None:
        return None
    time, *batch, _ = inputs.xs.shape
    flags = jnp.full((time, *batch), kernels.TAKES_PART, jnp.int32)
    if inputs.mask is not None:
        flags = jnp.where(inputs.mask, flags, 0)
    if inputs.resets is not None:
        flags |= jnp.where(inputs.resets, kernels.BEGINS, 0)
    if inputs.cuts is not None:
        flags |= jnp.where(inputs.cuts.reshape(time, *(1 for _ in batch)), kernels.CUTS, 0)
    return flags.reshape(time, -1)


def _given(plan: Plan, inputs: Inputs, steps: Any) -> Given:
    return Given(
        weights=operands(plan, inputs.params).w_h,
        vectors=inputs.params._replace(w_x=None, w_h=None, b=None),
        state=_merged(inputs, inputs.state, 0),
        reset_state=None if inputs.resets is None else _merged(inputs, inputs.reset_state, 0),
        flags=_flags(inputs),
        steps=steps,
    )


def _like(inputs: Inputs, tree: PyTree, *lead: int) -> PyTree:
    """The shapes of arrays as in `tree` with axes before theirs; over a mesh they vary as the inputs do."""
    varying = jax.typeof(inputs.xs).manual_axis_type
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, manual_axis_type=varying), tree)


def _run_forward(interpret: bool, plan: Plan, inputs: Inputs, keep_states: bool, keep_residual: bool) -> Written:
    units, (shape, warps), params = _units(plan), _shape(plan, inputs), operands(plan, inputs.params)
    given = _given(plan, inputs, _merged(inputs, alg.add(alg.dot(inputs.xs, params.w_x), params.b)))
    gates = (units.shown(given.state),) * shape.gates
    _, residual = jax.eval_shape(units.forward, given.vectors, given.state, gates, gates)
    out = Written(
        final=_like(inputs, given.state),
        ys=None if keep_states else _like(inputs, gates[0], shape.time),
        states=_like(inputs, given.state, shape.time) if keep_states else None,
        residual=_like(inputs, residual, shape.time) if keep_residual else None,
    )

    def body(memory: Memory, given: Given, written: Written) -> None:
        kernels.forward(units, shape, memory, given, written)

    out = triton.launch("rnn_forward", body, given, out, shape.programs, warps, interpret)
    ys = units.shown(out.states) if keep_states else out.ys  # the output is not stored twice
    return Written(_parted(inputs, out.final, 0), *_parted(inputs, (ys, out.states, out.residual)))


def _outcome(plan: Plan, out: Written) -> tuple[State, PyTree, State | None]:
    return out.final, out.ys, out.states if plan.return_states else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(interpret: bool, plan: Plan, inputs: Inputs) -> Any:
    """What `bptt_forward` returns, but for the inputs."""
    out = _run_forward(interpret, plan, inputs, True, plan.keep_gates)
    return _outcome(plan, out), out.states, out.residual


@_forward.defjvp
def _forward_jvp(interpret: bool, plan: Plan, primals: Any, tangents: Any) -> Any:
    def plain(inputs: Inputs) -> Any:
        outcome, (_, *saved) = bptt_forward(plan, inputs)
        return outcome, *saved

    return jax.jvp(plain, primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _backward(interpret: bool, plan: Plan, saved: Any, cotangents: Any) -> tuple[Inputs]:
    """What `bptt_backward` returns."""
    (inputs, states, residual), (dfinal, dys, dstates) = saved, cotangents
    rule, units, params = rule_of(plan), _units(plan), operands(plan, inputs.params)
    shape, warps = _shape(plan, inputs)
    before = entering_states(plan, inputs, states)
    if not plan.keep_gates:
        residual = rule.forward(params, before, rule.project(params, inputs.xs))[2]
    after, kept, dys, dstates = _merged(inputs, (states, residual, dys, dstates))
    given = _given(plan, inputs, OverTime(after, kept, dys, dstates, _merged(inputs, dfinal, 0)))
    tape = Tape(given.state, given.state, jax.tree.map(lambda leaf: leaf[0], kept))
    _, dproducts, extra = jax.eval_shape(units.backward, given.vectors, tape, given.state)
    row = jax.ShapeDtypeStruct((shape.batch, shape.gates * shape.hidden), dproducts[0].dtype)
    out = Back(
        dproducts=_like(inputs, row, shape.time),
        extra=_like(inputs, extra, shape.time),
        dstate=_like(inputs, given.state),
        dreset=_like(inputs, given.reset_state),
    )

    def body(memory: Memory, given: Given, back: Back) -> None:
        kernels.backward(units, shape, memory, given, back)

    out = triton.launch("rnn_backward", body, given, out, shape.programs, warps, interpret)
    delta = units.delta(*_parted(inputs, (out.dproducts, out.extra)))
    ds = rule.accumulate(params, inputs.xs, Tape(before, states, residual), delta)
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), ds)
    dstate, dreset = _parted(inputs, (out.dstate, out.dreset), 0)
    return (Inputs(dparams, dxs, dstate, None, None, dreset, None),)


@_backward.defjvp
def _backward_jvp(interpret: bool, plan: Plan, primals: Any, tangents: Any) -> Any:
    return jax.jvp(functools.partial(bptt_backward, plan), primals, tangents)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(interpret: bool, plan: Plan, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    return _outcome(plan, _run_forward(interpret, plan, inputs, plan.return_states, False))


def _fused_forward(interpret: bool, plan: Plan, inputs: Inputs) -> tuple[Any, Any]:
    outcome, states, residual = _forward(interpret, plan, inputs)
    return outcome, (inputs, states, residual)


_fused.defvjp(_fused_forward, _backward)
