"""`pallas`: fused kernels, one launch for a whole sequence, for every cell whose rule has a `pointwise` part.

Around the kernels it does what `bptt` does around its loop: the rule's `project` of all steps is
one product before the forward kernel, and the cotangents of parameters and inputs are the
rule's `accumulate` over all steps, after the backward kernel. Between them lie the state after
each step and the gates; with `checkpoint="gates"` the gates are recomputed.

Each program of a kernel runs 16 sequences by itself, so a batch of B keeps ⌈B/16⌉ of a GPU's
multiprocessors busy. `kernels/tiling.py` computes for which H the weights stay on the chip; H goes
up to 256.

Products follow `jax.default_matmul_precision` as all of JAX: on a GPU those of float32
operands are in TF32 by default, and with "highest" in float32, as three products of TF32 numbers. All
accumulate in float32.

Differs from `bptt`:
    1. Second derivatives, in either mode, are those of `bptt` itself: only values and gradients
       come from the kernels.
    2. The compiler cannot see into a kernel: on several devices call it inside `shard_map`,
       or on an explicit mesh, where `unroll` does that itself.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn._types import Params, Pointwise, PyTree, Rule, Tape
from jaxrnn.sequence.implementations.bptt import bptt, bptt_backward, bptt_forward, cotangents_of, entering_states
from jaxrnn.sequence.implementations.kernels import bodies, tiling, triton
from jaxrnn.sequence.implementations.kernels.blocks import Memory, Shape
from jaxrnn.sequence.implementations.kernels.bodies import Back, Given, OverTime, Written
from jaxrnn.sequence.implementations.protocol import BY_HAND, FORWARD_MODE, HEADS, Implementation
from jaxrnn.sequence.request import Inputs, Options, Outcome, Request, operands

_ON_CUDA = "its kernels are for CUDA; 'pallas_interpret' runs them on any platform, slowly"
_IN_FLOAT32 = "the kernels compute in float32"
PRODUCTS = ("float32", "bfloat16", "float16", "float64")  # dtypes of the operands of products


@dataclasses.dataclass(frozen=True)
class PallasInterpret(Implementation):
    """The kernels interpreted, on any platform: slow, for proofs."""

    name: ClassVar[str] = "pallas_interpret"
    supports: ClassVar = frozenset({
        "lengths", "mask", "resets", "reverse", "return_states", 'checkpoint="gates"', "checkpoint=K",
        "compute_dtype", "truncate", "clip_gradient", "shard_map with its checks", "a batch on an explicit mesh",
        "float32", "float64", "a CPU", "an NVIDIA GPU", "an AMD GPU", "a TPU",
    })  # fmt: skip
    reasons: ClassVar = {
        "model_parallel": "a kernel cannot read the units of another device",
        "float64": _IN_FLOAT32,
        "bfloat16, float16": "states are float32; compute_dtype gives products in less, with float32 parameters",
        "a CPU": _ON_CUDA,
        "an AMD GPU": _ON_CUDA,
        "a TPU": _ON_CUDA,
    }
    refused_transformations: ClassVar = {FORWARD_MODE: BY_HAND}
    interpret: ClassVar[bool] = True

    def unsupported_cell(self, request: Request) -> str | None:
        rule = request.rule
        if not isinstance(rule, Rule) or rule.pointwise is None:
            return "a kernel needs a cell whose rule has a part that works on every unit by itself, `Rule.pointwise`"
        if rule.pointwise.stands_for != (rule.forward, rule.backward):
            return "its rule has another `forward` or `backward` than its `pointwise` stands for; give pointwise=None"
        return _unsupported_arrays(request.options, request.inputs, request.hidden_size)

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        return _fused(self.interpret, options, *inputs) if inputs.xs.size else bptt(options, *inputs)


@dataclasses.dataclass(frozen=True)
class Pallas(PallasInterpret):
    """The kernels compiled for a CUDA GPU."""

    name: ClassVar[str] = "pallas"
    supports: ClassVar = PallasInterpret.supports - {"float64", "a CPU", "an AMD GPU", "a TPU"}
    interpret: ClassVar[bool] = False


def _unsupported_arrays(options: Options, inputs: Inputs, hidden: int) -> str | None:
    """Why the kernels do not support these sizes and parameters."""
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(inputs.state)):
        return _IN_FLOAT32
    w_h = getattr(inputs.params, "w_h", None)
    if len(getattr(w_h, "shape", ())) == 3:
        return HEADS
    if not isinstance(w_h, jax.Array | jax.ShapeDtypeStruct) or len(w_h.shape) != 2 or w_h.shape[0] != hidden:
        return f"a kernel needs a recurrent weight that is one matrix of {hidden} rows for all sequences"
    if any(leaf.shape != (hidden,) for leaf in jax.tree.leaves(_vectors(inputs.params))):
        return "the kernels are for cells whose only parameters beside w_x, w_h and b are vectors of H units"
    gates = jax.tree.leaves(jax.eval_shape(options.rule.project, inputs.params, inputs.xs))
    if len(gates) != w_h.shape[1] // hidden or any(z.shape != (*inputs.xs.shape[:-1], hidden) for z in gates):
        return f"a kernel needs a `project` that gives {w_h.shape[1] // hidden} arrays (T, *B, H), one for each gate"
    products = operands(options, inputs.params).w_h.dtype.name
    if products not in PRODUCTS:
        return f"the kernels support products in {', '.join(PRODUCTS)}, not in {products}"
    if hidden > tiling.MOST_UNITS:
        return f"the kernels support up to {tiling.MOST_UNITS} hidden units, not {hidden}"
    return None if triton.is_available() else f"jax {jax.__version__} has no jax.experimental.pallas.triton"


def _vectors(params: Params) -> Params:
    """The parameters that a kernel reads unit by unit."""
    return params._replace(**{name: None for name in ("w_x", "w_h", "b") if hasattr(params, name)})


def _tiling(options: Options, params: Params) -> tiling.Tiling:
    w_h = operands(options, params).w_h
    hidden, columns = w_h.shape
    found = tiling.tiling(columns // hidden, hidden, triton.bytes_of_weight(w_h.dtype), tiling.shared_memory())
    assert found is not None
    return found


def _pointwise(options: Options) -> Pointwise:
    assert options.rule.pointwise is not None
    return options.rule.pointwise


def _shape(options: Options, inputs: Inputs) -> tuple[Shape, int]:
    """What the kernels are compiled for, and in how many warps they run."""
    found = _tiling(options, inputs.params)
    hidden, columns = inputs.params.w_h.shape
    sizes = (inputs.time, math.prod(inputs.batch_shape), hidden, columns // hidden)
    tiles = (tiling.ROWS, found.width, found.resident)
    return Shape(*sizes, *tiles, options.reverse, options.clip_gradient, early=found.blocks == 1), found.warps


# One batch axis for the kernels, any number outside.


def _merge_batch(inputs: Inputs, tree: PyTree, lead: int = 1) -> PyTree:
    """Leaves (T, *B, ·), or (*B, ·) with `lead` 0, with one batch axis."""
    axes = inputs.xs.ndim - 2
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:lead], -1, *leaf.shape[lead + axes :]), tree)


def _split_batch(inputs: Inputs, tree: PyTree, lead: int = 1) -> PyTree:
    """The inverse of `_merge_batch`."""
    batch = inputs.xs.shape[1:-1]
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:lead], *batch, *leaf.shape[lead + 1 :]), tree)


def _flags(inputs: Inputs) -> jax.Array | None:
    """(T, B) of the bits that the kernels read."""
    if inputs.mask is None and inputs.resets is None and inputs.borders is None:
        return None
    steps = (inputs.time, *inputs.batch_shape)
    flags = jnp.full(steps, bodies.VALID, jnp.int32)
    if inputs.mask is not None:
        flags = jnp.where(inputs.mask, flags, 0)
    if inputs.resets is not None:
        flags |= jnp.where(inputs.resets, bodies.RESET, 0)
    if inputs.borders is not None:
        flags |= jnp.where(inputs.borders.reshape(-1, *(1 for _ in steps[1:])), bodies.BORDER, 0)
    return flags.reshape(steps[0], -1)


def _given(options: Options, inputs: Inputs, steps: Any) -> Given:
    return Given(
        weights=operands(options, inputs.params).w_h,
        vectors=_vectors(inputs.params),
        state=_merge_batch(inputs, inputs.state, 0),
        reset_state=None if inputs.resets is None else _merge_batch(inputs, inputs.reset_state, 0),
        flags=_flags(inputs),
        steps=steps,
    )


def _like(inputs: Inputs, tree: PyTree, *lead: int) -> PyTree:
    """The shapes of arrays as in `tree` with axes before theirs; over a mesh they vary as the inputs do."""
    varying = jax.typeof(inputs.xs).manual_axis_type
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, manual_axis_type=varying), tree)


def _run_forward(interpret: bool, options: Options, inputs: Inputs, keep_states: bool, keep_residual: bool) -> Written:
    pointwise, (shape, warps) = _pointwise(options), _shape(options, inputs)
    zs = tuple(jax.tree.leaves(options.rule.project(operands(options, inputs.params), inputs.xs)))
    given = _given(options, inputs, _merge_batch(inputs, zs))
    gates = (pointwise.hidden(given.state),) * shape.gates
    _, residual = jax.eval_shape(pointwise.forward, given.vectors, given.state, gates, gates)
    out = Written(
        final=_like(inputs, given.state),
        ys=None if keep_states else _like(inputs, gates[0], shape.time),
        states=_like(inputs, given.state, shape.time) if keep_states else None,
        residual=_like(inputs, residual, shape.time) if keep_residual else None,
    )

    def body(memory: Memory, given: Given, written: Written) -> None:
        bodies.forward(pointwise, shape, memory, given, written)

    out = triton.launch("rnn_forward", body, given, out, shape.programs, warps, interpret)
    ys = pointwise.hidden(out.states) if keep_states else out.ys  # the output is not stored twice
    return Written(_split_batch(inputs, out.final, 0), *_split_batch(inputs, (ys, out.states, out.residual)))


def _outcome(options: Options, out: Written) -> Outcome:
    return out.final, out.ys, out.states if options.return_states else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(interpret: bool, options: Options, inputs: Inputs) -> Any:
    """What `bptt_forward` returns, but for the inputs."""
    out = _run_forward(interpret, options, inputs, True, options.keep_gates)
    return _outcome(options, out), out.states, out.residual


@_forward.defjvp
def _forward_jvp(interpret: bool, options: Options, primals: Any, tangents: Any) -> Any:
    def plain(inputs: Inputs) -> Any:
        outcome, (_, *saved) = bptt_forward(options, *inputs)
        return outcome, *saved

    return jax.jvp(plain, primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _backward(interpret: bool, options: Options, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """What `bptt_backward` returns."""
    (inputs, states, residual), (dfinal, dys, dstates) = saved, cotangents
    rule, pointwise, params = options.rule, _pointwise(options), operands(options, inputs.params)
    shape, warps = _shape(options, inputs)
    before = entering_states(options, inputs, states)
    if not options.keep_gates:
        residual = rule.forward(params, before, rule.project(params, inputs.xs))[2]
    after, kept, dys, dstates = _merge_batch(inputs, (states, residual, dys, dstates))
    given = _given(options, inputs, OverTime(after, kept, dys, dstates, _merge_batch(inputs, dfinal, 0)))
    tape = Tape(given.state, given.state, jax.tree.map(lambda leaf: leaf[0], kept))
    _, dproducts, extra = jax.eval_shape(pointwise.backward, given.vectors, tape, given.state)
    row = jax.ShapeDtypeStruct((shape.batch, shape.gates * shape.hidden), dproducts[0].dtype)
    out = Back(
        dproducts=_like(inputs, row, shape.time),
        extra=_like(inputs, extra, shape.time),
        dstate=_like(inputs, given.state),
        dreset=_like(inputs, given.reset_state),
    )

    def body(memory: Memory, given: Given, back: Back) -> None:
        bodies.backward(pointwise, shape, memory, given, back)

    out = triton.launch("rnn_backward", body, given, out, shape.programs, warps, interpret)
    delta = pointwise.delta(*_split_batch(inputs, (out.dproducts, out.extra)))
    ds = rule.accumulate(params, inputs.xs, Tape(before, states, residual), delta)
    dparams, dxs = cotangents_of((inputs.params, inputs.xs), ds)
    dstate, dreset = _split_batch(inputs, (out.dstate, out.dreset), 0)
    return dparams, dxs, dstate, dreset, None, None, None


@_backward.defjvp
def _backward_jvp(interpret: bool, options: Options, primals: Any, tangents: Any) -> Any:
    return jax.jvp(functools.partial(bptt_backward, options), primals, tangents)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(interpret: bool, options: Options, *arrays: Any) -> Outcome:
    out = _run_forward(interpret, options, Inputs(*arrays), options.return_states, False)
    return _outcome(options, out)


def _fused_forward(interpret: bool, options: Options, *arrays: Any) -> tuple[Any, Any]:
    inputs = Inputs(*arrays)
    outcome, states, residual = _forward(interpret, options, inputs)
    return outcome, (inputs, states, residual)


_fused.defvjp(_fused_forward, _backward)
