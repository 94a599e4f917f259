"""Runs a cell over a sequence and keeps its states, for every function of this package."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxrnn import _checks
from jaxrnn._types import AnyCell, Params, PyTree, State
from jaxrnn.cells._attention import has_memory_of_a_batch
from jaxrnn.cells._step import cast_floating, is_complex
from jaxrnn.network import Network
from jaxrnn.sequence.arguments import check_cell
from jaxrnn.sequence.masking import mask_of_lengths, only, shifted
from jaxrnn.sequence.unroll import unroll

Step = Callable[[Params, State, Array], tuple[State, PyTree]]


class Steps(NamedTuple):
    """All steps of a sequence, leaves `(T, *B, ·)`."""

    before: State  # the state before each step
    xs: Array  # zeros at masked steps
    mask: Bool[Array, "T *B"] | None  # false at masked steps; None: none is masked


class Trajectory(NamedTuple):
    """The run of a cell over a sequence, all in one dtype."""

    params: Params
    steps: Steps
    final: State
    ys: Array  # (T, *B, ·)


def trajectory(
    where: str,
    cell: AnyCell,
    params: Params,
    xs: Any,
    state: State | None = None,
    lengths: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> Trajectory:
    """Runs a cell, without noise, and keeps the states."""
    xs = check_arguments(where, cell, params, xs, state)
    if has_memory_of_a_batch(params):
        raise NotImplementedError(
            f"{where}: params expected one memory (S, M) for all sequences, which are run one by one, got one for each "
            f"sequence, {_checks.describe(params.memory)}; bind that of one sequence, and give its inputs"
        )
    valid = _valid(where, lengths, mask, xs.shape[:-1])
    final, ys, after = _unroll(cell, params, xs, state, lengths=lengths, mask=mask, reverse=reverse)
    dtype, *others = {leaf.dtype for leaf in jax.tree.leaves(after)} or {jnp.dtype(int)}
    if is_complex(after):
        raise NotImplementedError(
            f"{where}: cell expected one whose state is real, got {_checks.describe(cell)}, whose state is complex; "
            "backward_pass gives its cotangents"
        )
    if others or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{where}: cell expected one whose state is floating-point throughout, got {_checks.describe(cell)} with "
            f"{_checks.describe(final)}; only such a state has a Jacobian"
        )
    initial = cell.initial_state(xs.shape[1:-1]) if state is None else state
    params, xs, initial = cast_floating(jax.tree.map(jnp.asarray, (params, xs, initial)), dtype)
    steps = Steps(shifted(initial, after, reverse), only(valid, xs), valid)
    return Trajectory(params, steps, final, ys)


def check_reduce(where: str, reduce: Any, signature: str) -> None:
    """`reduce` is `None`, or a function that programs can be compiled for."""
    if reduce is None:
        return
    _checks.function(where, "reduce", reduce, signature)
    _checks.hashable(where, "reduce", reduce)


def scalar(where: str, loss: Callable[[State, Array], Array]) -> Callable[[State, Array], Array]:
    """The loss, which raises unless it returns a floating-point scalar."""

    def checked(final: State, ys: Array) -> Array:
        value = loss(final, ys)
        is_number = isinstance(value, float) or (_checks.is_array(value) and not value.shape)
        if not is_number or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(f"{where}: loss expected to return a floating-point scalar, got {_checks.describe(value)}")
        return value

    return checked


def check_floating(where: str, params: Any) -> None:
    """Raises unless all parameters are floating-point."""
    _checks.numeric_leaves(where, "params", params)
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(params)):
        raise TypeError(f"{where}: params expected floating-point arrays, got {_checks.describe(params)}")


def check_inputs(where: str, xs: Any) -> Array:
    """`xs` as a floating-point array of two axes at least."""
    xs = _checks.floating(where, "xs", xs)
    if xs.ndim < 2:
        raise ValueError(f"{where}: xs expected shape (T, *B, I), got {xs.shape}; a sequence of scalars has I = 1")
    return xs


def check_arguments(where: str, cell: Any, params: Any, xs: Any, state: Any) -> Array:
    """`xs` as an array; raises unless it is one of inputs of the cell, and params and state are the cell's."""
    if isinstance(cell, Network):
        raise TypeError(
            f"{where}: cell expected a jaxrnn.Cell, got the network {_checks.describe(cell)}; "
            "give one of its layers, with its params and the outputs of the layer below"
        )
    check_cell(where, cell)
    xs = check_inputs(where, xs)
    if cell.check is not None:
        cell.check(where, params, xs.shape)
    _checks.numeric_leaves(where, "params", params)
    if state is not None:
        _checks.state_like(where, "state", state, jax.eval_shape(lambda: cell.initial_state(xs.shape[1:-1])))
    return xs


def _valid(where: str, lengths: Any, mask: Any, shape: tuple[int, ...]) -> Bool[Array, "T *B"] | None:
    """Which steps are valid, from the one of `lengths` and `mask` that is given; the shape is `(T, *B)`."""
    if lengths is None:
        return None if mask is None else _checks.step_mask(where, "mask", mask, shape)
    if mask is not None:
        raise ValueError(f"{where}: lengths and mask were both given, expected one; a mask says all that lengths can")
    return mask_of_lengths(_checks.sequence_lengths(where, lengths, shape[0], shape[1:]), shape[0])


def _unroll(*args: Any, **given: Any) -> tuple[State, PyTree, State]:
    """`unroll` with the states; by "scan" where the derivative by hand does not do, in forward mode."""
    options = {"return_states": True, "key": None, **given}
    try:
        return unroll(*args, **options)  # pyright: ignore[reportReturnType]
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
    return unroll(*args, implementation="scan", **options)  # pyright: ignore[reportReturnType]


def widened(run: Trajectory) -> Trajectory:
    """The run in float32 at least, for logs of lengths: in bfloat16 a sum of 32 and -0.1 is 32."""
    return cast_floating(run, factored_dtype(run.steps.xs.dtype))


def per_sequence(steps: Steps) -> Steps:
    """The batch axes as one: leaves `(T, N, ·)`."""
    axes = steps.xs.ndim - 1
    count = math.prod(steps.xs.shape[1:axes])
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], count, *leaf.shape[axes:]), steps)


def batched(tree: PyTree, steps: Steps) -> Any:
    """Leaves `(T, N, ·)` with the batch axes of `steps` again."""
    batch_shape = steps.xs.shape[1:-1]
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], *batch_shape, *leaf.shape[2:]), tree)


def factored_dtype(dtype: Any) -> Any:
    """The dtype to factorise matrices in, and to add many numbers: JAX has QR and eigenvalues in no narrower one."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def state_size(state: State, leading: int) -> int:
    """S, the entries of the state of one sequence, from leaves with `leading` axes before those of the state."""
    return sum(math.prod(leaf.shape[leading:]) for leaf in jax.tree.leaves(state))


def flat_step(
    step_of_cell: Step, params: Params, state: State, x: Float[Array, "I"]
) -> tuple[Float[Array, "S"], Callable[[Float[Array, "S"]], Float[Array, "S"]]]:
    """The state of one sequence as a vector, and the step from there as a function of vectors.

    The entries are those of the leaves one after another, each row by row: h then c for an LSTM.
    """
    flat, unravel = ravel_pytree(state)

    def step(flat: Float[Array, "S"]) -> Float[Array, "S"]:
        return ravel_pytree(step_of_cell(params, unravel(flat), x)[0])[0].astype(flat.dtype)

    return flat, step
