"""cuDNN's LSTM, through `jax.experimental.rnn`: all steps, layers and directions in one call of one library.

It computes the equations of :func:`jaxrnn.lstm_step`, gates in the same order. Its weights are one
flat array: for each pseudo-layer fwd0, rev0, fwd1, ... W_ih = W_xᵀ (4H, in) and W_hh = W_hᵀ (4H, H), then
for each of them b_ih = b and b_hh = 0, both (4H,). Sequences are batch-first, states
(L times directions, B, H). The derivative is that of `jax.experimental.rnn`.

Packing is a function of the parameters inside the compiled program: it happens once a call, whatever T.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn._types import Cell, PyTree, State
from jaxrnn.cells.lstm import RULE, LSTMParams, LSTMState
from jaxrnn.sequence.masking import select
from jaxrnn.sequence.plan import Inputs, Plan

_ONLY_LSTM = "jax.experimental.rnn has no cell but cuDNN's LSTM"
_PLAIN = "the LSTM of jax.experimental.rnn has no variants"
_IN_ONE_PIECE = "cuDNN runs the whole sequence in one piece, forward and back"

# By the features of `calls.FEATURES`.
_SHARDED = (
    "jax.experimental.rnn does not say which of its results vary over devices, and gradients would be summed wrongly"
)
REFUSES: dict[str, str] = {
    "`gru` with `reset_after=False`": _ONLY_LSTM,
    "`rnn` with an activation of your own": _ONLY_LSTM,
    "`gru`": _ONLY_LSTM,
    "`rnn`": _ONLY_LSTM,
    "`mgu`, `indrnn`": _ONLY_LSTM,
    "a projection": _PLAIN,
    "peepholes": _PLAIN,
    "coupled gates": _PLAIN,
    "layer normalisation": _PLAIN,
    "`regularize`": "nothing can be put between the steps of cuDNN",
    "a rule of your own without `units`": _ONLY_LSTM,
    "a cell of your own with a rule": _ONLY_LSTM,
    "a cell without a rule": _ONLY_LSTM,
    "a state that is not floating-point throughout": _ONLY_LSTM,
    "`mask`": "cuDNN knows lengths, and no masks with holes",
    "`resets`": _IN_ONE_PIECE,
    "`return_states`": "cuDNN gives h of every step, but c of the last alone",
    '`checkpoint="gates"`': "cuDNN decides what is kept for the backward pass",
    "`checkpoint=K`": "cuDNN decides what is kept for the backward pass",
    "`compute_dtype`": "jax.experimental.rnn takes float32; TF32 products are allowed by jax.default_matmul_precision",
    "`truncate`": _IN_ONE_PIECE,
    "`clip_gradient`": _IN_ONE_PIECE,
    "`shard_map` with its checks": f"{_SHARDED}; shard_map(..., check_vma=False) sums nothing by itself, and can serve",
    "`model_parallel`": _SHARDED,
    "a batch on an explicit mesh": _SHARDED,
    "float64": "jax.experimental.rnn takes float32",
    "bfloat16, float16": "jax.experimental.rnn takes float32",
    "a CPU": "cuDNN runs on NVIDIA's GPUs",
    "an AMD GPU": "MIOpen has the gates in another order, and is not wired up",
    "a TPU": "cuDNN runs on NVIDIA's GPUs",
}

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


def turned(xs: Float[Array, "T B F"], lengths: Int[Array, "B"]) -> Float[Array, "T B F"]:
    """Each sequence from its own last step to its first; padding stays where it is."""
    steps = jax.lax.broadcasted_iota(jnp.int32, xs.shape[:2], 0)
    ends = jnp.broadcast_to(lengths, steps.shape)
    order = jnp.where(steps < ends, ends - 1 - steps, steps)
    return jnp.take_along_axis(xs, order[:, :, None], axis=0)


def _records(params: PyTree) -> list[LSTMParams]:
    """Of one layer, or of a network's tuple over layers: pseudo-layers in cuDNN's order."""
    return jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, LSTMParams))


def cudnn(plan: Plan, inputs: Inputs, kernel: Kernel = on_gpu) -> tuple[State, PyTree, State | None]:
    """Final state and outputs, those of two directions side by side; `inputs.mask`, if there is one, is of lengths."""
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
    xs = turned(xs, lengths) if plan.reverse else xs
    at_least_one = jnp.maximum(lengths, 1)  # an empty sequence reads one padding, and keeps its state below
    ys, *after = kernel(xs.swapaxes(0, 1), h_before, c_before, pack(records), at_least_one, sizes)
    ys = ys.swapaxes(0, 1)
    ys = turned(ys, lengths) if plan.reverse else ys
    some = jnp.broadcast_to(lengths > 0, (len(records), rows))
    h, c = (leaf.reshape(-1, *batch_shape, hidden) for leaf in select(some, after, [h_before, c_before]))
    leaves = [leaf for pair in zip(h, c, strict=True) for leaf in pair]
    final = jax.tree.unflatten(jax.tree.structure(inputs.state), leaves)
    return final, ys.reshape(time, *batch_shape, width), None


def _states(state: State) -> list[LSTMState]:
    return jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, LSTMState))


def in_one_call(layers: Sequence[tuple[Cell, ...]]) -> bool:
    """Whether these layers, each of one direction or two, have the form of one call: LSTMs of one size.

    Whether it serves their variants is not asked here.
    """
    cells = [cell for layer in layers for cell in layer]
    if any(cell.rule is not RULE or cell.config is None for cell in cells):
        return False
    sizes = {dict(cell.config.options)["hidden_size"] for cell in cells if cell.config is not None}
    return len(sizes) == 1 and len({len(layer) for layer in layers}) == 1
