"""cuDNN's LSTM, through `jax.experimental.rnn`: all steps, layers and directions in one call of one library.

It computes the equations of :func:`jaxrnn.lstm_step`, gates in the same order. Its weights are one
flat array: for each pseudo-layer fwd0, rev0, fwd1, ... W_ih = W_xᵀ (4H, in) and W_hh = W_hᵀ (4H, H), then
for each of them b_ih = b and b_hh = 0, both (4H,). Sequences are batch-first, states
(L times directions, B, H). The derivative is that of `jax.experimental.rnn`.

Packing is a function of the parameters inside the compiled program: it happens once a call, whatever T.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn._types import AnyCell, Cell, LayerRules, PyTree, Rule, State
from jaxrnn.cells._activation import phis_of
from jaxrnn.cells.lstm import GATES, RULE, LSTMParams, LSTMState, rule_for
from jaxrnn.sequence.implementations.protocol import BY_HAND, FORWARD_MODE, HEADS, SECOND, VMAP, Implementation
from jaxrnn.sequence.masking import select
from jaxrnn.sequence.request import CLOSURES, Inputs, Options, Outcome, Request

_ONE_CALL = "cuDNN runs the whole sequence in one call, forward and backward"
_KEPT = "cuDNN decides what is kept for the backward pass"
_FLOAT32 = "jax.experimental.rnn supports float32"
_NVIDIA = "cuDNN runs on NVIDIA's GPUs"
_NOT_TRACED = "jax.experimental.rnn has no rule for this transformation"
_SHARDED = (
    "jax.experimental.rnn does not say which of its results vary over devices, and gradients would be summed wrongly"
)

# Settings of `jax.default_matmul_precision` under which a product may be less exact than float32.
TF32_ALLOWED = (None, "default", "high", "bfloat16", "tensorfloat32", "TF32_TF32_F32", "BF16_BF16_F32")


class Sizes(NamedTuple):
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool


# (xs (B, T, I), h (LD, B, H), c (LD, B, H), weights, lengths (B,) in 1..T, sizes) -> (ys (B, T, DH), h, c)
Kernel = Callable[[Array, Array, Array, Array, Array, Sizes], tuple[Array, Array, Array]]


def _library() -> Any:
    """Imported where it is needed: it is experimental, and no other part of this library should stand or fall by it."""
    try:
        from jax.experimental import rnn
    except ImportError as error:
        raise NotImplementedError(
            f"unroll: implementation 'cudnn' needs jax.experimental.rnn, which jax {jax.__version__} does not have"
        ) from error
    return rnn


def on_gpu(xs: Array, h: Array, c: Array, weights: Array, lengths: Array, sizes: Sizes) -> tuple[Array, Array, Array]:
    """The library's call. Its precision is named, so that forward and backward pass have the same."""
    allowed = jax.config.jax_default_matmul_precision in TF32_ALLOWED  # pyright: ignore[reportAttributeAccessIssue]
    precision = jax.lax.Precision.HIGH if allowed else jax.lax.Precision.HIGHEST
    return _library().lstm(
        xs, h, c, weights, lengths,
        sizes.input_size, sizes.hidden_size, sizes.num_layers, 0.0, sizes.bidirectional, precision,
    )  # fmt: skip


def by_reference(
    xs: Array, h: Array, c: Array, weights: Array, lengths: Array, sizes: Sizes
) -> tuple[Array, Array, Array]:
    """What the library says that its call computes, as a scan that runs anywhere."""
    rnn = _library()
    parts = rnn.unpack_lstm_weights(weights, *sizes)
    input_size, hidden_size, num_layers, bidirectional = sizes
    return rnn.lstm_ref(xs, h, c, *parts, lengths, input_size, hidden_size, num_layers, 0.0, bidirectional)


def pack(records: Sequence[LSTMParams]) -> Float[Array, "N"]:
    """The flat weights of pseudo-layers in their order; see the module."""
    matrices = [matrix.T.ravel() for record in records for matrix in (record.w_x, record.w_h)]
    zeros = [jnp.zeros(record.w_x.shape[1:], record.w_x.dtype) for record in records]
    biases = [b for r, zero in zip(records, zeros, strict=True) for b in (zero if r.b is None else r.b, zero)]
    return jnp.concatenate([*matrices, *biases])


def reverse_valid(xs: Float[Array, "T B F"], lengths: Int[Array, "B"]) -> Float[Array, "T B F"]:
    """Each sequence from its own last step to its first; padding keeps its place."""
    steps = jax.lax.broadcasted_iota(jnp.int32, xs.shape[:2], 0)
    ends = jnp.broadcast_to(lengths, steps.shape)
    order = jnp.where(steps < ends, ends - 1 - steps, steps)
    return jnp.take_along_axis(xs, order[:, :, None], axis=0)


def _records(params: PyTree) -> list[LSTMParams]:
    """Of one layer, or of a network's tuple over layers: pseudo-layers in cuDNN's order."""
    return jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, LSTMParams))


def run(options: Options, inputs: Inputs, kernel: Kernel) -> Outcome:
    """Final state and outputs, those of two directions side by side; a mask, if there is one, is that of lengths."""
    records, depth = _records(inputs.params), 1 if isinstance(inputs.params, LSTMParams) else len(inputs.params)
    time, *batch_shape, features = inputs.xs.shape
    rows, hidden = math.prod(batch_shape), records[0].w_h.shape[0]
    sizes = Sizes(features, hidden, depth, len(records) > depth)
    width = 2 * hidden if sizes.bidirectional else hidden
    if not time or not rows:
        return inputs.state, jnp.zeros((time, *batch_shape, width), inputs.xs.dtype), None
    if inputs.mask is None:
        lengths = jnp.full((rows,), time, jnp.int32)
    else:
        lengths = jnp.sum(inputs.mask, 0, dtype=jnp.int32).reshape(rows)
    h_before, c_before = (
        jnp.stack(leaves).reshape(-1, rows, hidden) for leaves in zip(*_states(inputs.state), strict=True)
    )
    xs = inputs.xs.reshape(time, rows, features)
    xs = reverse_valid(xs, lengths) if options.reverse else xs
    at_least_one = jnp.maximum(lengths, 1)  # an empty sequence reads one padded step, and keeps its state below
    ys, *after = kernel(xs.swapaxes(0, 1), h_before, c_before, pack(records), at_least_one, sizes)
    ys = ys.swapaxes(0, 1)
    ys = reverse_valid(ys, lengths) if options.reverse else ys
    is_read = jnp.broadcast_to(lengths > 0, (len(records), rows))
    h, c = (leaf.reshape(-1, *batch_shape, hidden) for leaf in select(is_read, after, [h_before, c_before]))
    leaves = [leaf for pair in zip(h, c, strict=True) for leaf in pair]
    final = jax.tree.unflatten(jax.tree.structure(inputs.state), leaves)
    return final, ys.reshape(time, *batch_shape, width), None


def _states(state: State) -> list[LSTMState]:
    return jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, LSTMState))


def _is_lstm(rule: Any) -> bool:
    """Whether it is the rule of an LSTM, with any activations."""
    phis = phis_of(rule.forward) if isinstance(rule, Rule) else None
    return phis is not None and rule == rule_for(phis.unit.activation, phis.gate.activation)


@dataclasses.dataclass(frozen=True)
class Cudnn(Implementation):
    """The LSTM of NVIDIA's library. `kernel` is the call that does the work."""

    name: ClassVar[str] = "cudnn"
    supports: ClassVar = frozenset({"lengths", "reverse", "float32", "an NVIDIA GPU"})
    reasons: ClassVar = {
        "mask": "cuDNN supports lengths, and no masks with holes",
        "resets": _ONE_CALL,
        "return_states": "cuDNN returns h of every step, but c of the last alone",
        'checkpoint="gates"': _KEPT,
        "checkpoint=K": _KEPT,
        "compute_dtype": f"{_FLOAT32}; jax.default_matmul_precision allows TF32 products",
        "truncate": _ONE_CALL,
        "clip_gradient": _ONE_CALL,
        CLOSURES: "cuDNN calls no function of the user's",
        "shard_map with its checks": f"{_SHARDED}; shard_map(..., check_vma=False) is supported",
        "model_parallel": _SHARDED,
        "a batch on an explicit mesh": _SHARDED,
        "float64": _FLOAT32,
        "bfloat16, float16": _FLOAT32,
        "a CPU": _NVIDIA,
        "an AMD GPU": "MIOpen has the gates in another order, and is not connected",
        "a TPU": _NVIDIA,
    }
    refused_transformations: ClassVar = {SECOND: _NOT_TRACED, FORWARD_MODE: BY_HAND, VMAP: _NOT_TRACED}
    kernel: Kernel = on_gpu

    def unsupported_cell(self, request: Request) -> str | None:
        rule = request.rule
        rules = [rule for layer in rule.layers for rule in layer] if isinstance(rule, LayerRules) else [rule]
        if any(rule != RULE for rule in rules):
            if all(map(_is_lstm, rules)):
                return "cuDNN's LSTM has no activations but tanh and the sigmoid"
            return "jax.experimental.rnn has no cell but cuDNN's LSTM"
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(request.inputs.state)):
            return _FLOAT32
        for record in _records(request.inputs.params):
            if len(record.w_h.shape) != 2:
                return HEADS
            variants = (record.w_proj, record.peephole, record.norm)
            if any(part is not None for part in variants) or record.w_h.shape[1] != len(GATES) * record.w_h.shape[0]:
                return "the LSTM of jax.experimental.rnn has no projection, peepholes, coupled gates or normalisation"
        return None

    def supports_layers(self, layers: Sequence[tuple[AnyCell, ...]]) -> bool:
        """LSTMs of one size, in the same number of directions."""
        cells = [cell for layer in layers for cell in layer]
        if not all(isinstance(cell, Cell) and cell.rule == RULE for cell in cells):
            return False
        sizes = {jax.eval_shape(cell.initial_state).c.shape for cell in cells}
        return len(sizes) == 1 and len({len(layer) for layer in layers}) == 1

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        return run(options, inputs, self.kernel)
