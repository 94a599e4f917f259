"""The memory of a cell that attends, bound for one call; and its attention weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._describe import cut
from jaxrnn._types import AnyArray, Cell, Params, State
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells import _attend_rule as rules
from jaxrnn.cells._attention import Memory
from jaxrnn.cells._step import cast_floating
from jaxrnn.cells.attend import Sizes, check_unbound, plan_of, sizes_of
from jaxrnn.layers import Direction, check_layers, directions, from_directions, run_layers, walk
from jaxrnn.network import Network
from jaxrnn.sequence.arguments import check_cell
from jaxrnn.sequence.masking import mask_of_lengths, only, replace, resets_on_entry, shifted
from jaxrnn.sequence.unroll import unroll


def with_memory(
    model: Cell | Network,
    params: Params,
    memory: Float[AnyArray, "*B S M"],
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "*B S"] | None = None,
    compute_dtype: Any = None,
) -> Params:
    """The parameters of a cell from :func:`attend` with a memory for one call: batch first, `(*B, S, M)`.

    The keys are projected here, once, and not in a loop over time. It is an ordinary function of JAX: call it
    inside the loss, and differentiate by `params` and `memory`. What it returns goes to `unroll`, `step` and
    `generate` in the place of `params`, for as many calls as have this memory.

    Args:
        model: a cell from :func:`attend`, or a network from :func:`stack`, of which all layers that attend get
            the memory.
        params: its parameters.
        memory: `(*B, S, M)`, such as the outputs of an encoder with the batch first, `jnp.moveaxis(ys, 0, -2)`.
            Its batch axes are the last ones of the batch: a memory `(B, S, M)` serves beams `(K, B)`, and one
            of `(S, M)` any batch. S may be 0.
        lengths: `(*B,)` integers in 0..S: position s is padding where s >= length. Padding is not read: NaN there
            reaches neither values nor gradients. With a length of 0 the weights and the context are zero.
            Concrete values outside are refused, traced ones clamped.
        mask: `(*B, S)` booleans, false at padding, the general form of `lengths`; give one of the two.
        compute_dtype: dtype of the operands of the keys' product, as in :func:`unroll`.

    Returns:
        `params` with the memory in them, in the dtype of `params` and `memory` together.

    Raises:
        TypeError, ValueError: for a cell that does not attend, params that are not the cell's, a memory of
            another shape or dtype, and wrong lengths.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> encoder, decoder = jaxrnn.gru(8), jaxrnn.attend(jaxrnn.gru(8), memory_size=8, score="dot")
        >>> params = {"encoder": encoder.init(jax.random.key(0), 3), "decoder": decoder.init(jax.random.key(1), 5)}
        >>> def loss(params, source, lengths, target):
        ...     final, ys = jaxrnn.unroll(encoder, params["encoder"], source, lengths=lengths)
        ...     bound = jaxrnn.with_memory(decoder, params["decoder"], jnp.moveaxis(ys, 0, 1), lengths=lengths)
        ...     start = decoder.initial_state((4,))._replace(cell=final)
        ...     return jnp.sum(jaxrnn.unroll(decoder, bound, target, start)[1] ** 2)
        >>> gradients = jax.grad(loss)(params, jnp.ones((7, 4, 3)), jnp.array([7, 3, 1, 5]), jnp.ones((6, 4, 5)))
        >>> gradients["decoder"].w_c.shape
        (16, 8)
    """
    where = "with_memory"
    memory = _checks.floating(where, "memory", memory)
    if memory.ndim < 2:
        raise ValueError(f"{where}: memory expected shape (*B, S, M), got {memory.shape}")
    valid = _valid(where, memory, lengths, mask)
    compute_dtype = None if compute_dtype is None else _checks.float_dtype(where, "compute_dtype", compute_dtype)
    if not isinstance(model, Network):
        check_cell(where, model, "model")
        return _bound(where, _sizes(where, model), params, memory, valid, compute_dtype)
    check_layers(where, "params", params, model.layers)
    if not any(sizes_of(way.cell) for ways in walk(model.layers) for way in ways):
        raise ValueError(f"{where}: model expected a layer from jaxrnn.attend, got {_checks.describe(model)}")

    def bound(way: Direction) -> Params:
        sizes, (own,) = sizes_of(way.cell), way.parts
        return own if sizes is None else _bound(where, sizes, own, memory, valid, compute_dtype)

    return tuple(from_directions([bound(way) for way in ways]) for ways in walk(model.layers, params))


def _sizes(where: str, cell: Any) -> Sizes:
    sizes = sizes_of(cell)
    if sizes is None:
        raise TypeError(f"{where}: model expected a cell from jaxrnn.attend, got {_checks.describe(cell)}")
    return sizes


def _valid(where: str, memory: Array, lengths: Any, mask: Any) -> Array | None:
    """Which positions are not padding."""
    batch, size = memory.shape[:-2], memory.shape[-2]
    if lengths is not None and mask is not None:
        raise ValueError(f"{where}: lengths and mask were both given, expected one; a mask says all that lengths can")
    if lengths is not None:
        lengths = _checks.sequence_lengths(
            where, lengths, size, batch, most="S", hint="a memory is (*B, S, M), the batch first"
        )
        return jnp.moveaxis(mask_of_lengths(lengths, size), 0, -1)
    if mask is None:
        return None
    mask = _checks.array(where, "mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{where}: mask expected booleans, got {_checks.describe(mask)}")
    if mask.shape != (*batch, size):
        raise ValueError(f"{where}: mask expected shape (*B, S) = {(*batch, size)}, got {mask.shape}")
    return mask


def _bound(where: str, sizes: Sizes, params: Any, memory: Array, valid: Array | None, compute_dtype: Any) -> Params:
    check_unbound(sizes, where, params)
    if memory.shape[-1] != sizes.memory_size:
        raise ValueError(
            f"{where}: memory expected last axis {sizes.memory_size}, the memory_size of {cut(sizes.name, 100)}, "
            f"got shape {memory.shape}"
        )
    floats = [leaf for leaf in jax.tree.leaves(params._replace(memory=None)) if _is_floating(leaf)]
    values = memory.astype(jnp.result_type(memory, *floats))
    if valid is not None:
        values = jnp.where(jnp.broadcast_to(valid[..., None], values.shape), values, jnp.zeros_like(values))
    keys = None
    if params.w_k is not None:
        w_k = jnp.asarray(params.w_k).astype(values.dtype if compute_dtype is None else compute_dtype)
        keys = alg.dot(values, w_k)
    return params._replace(memory=Memory(values, keys, None if valid is None else valid.astype(values.dtype)))


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def attention_weights(
    model: Cell | Network,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
    resets: Bool[AnyArray, "T *B"] | None = None,
    reset_state: State | None = None,
    reverse: bool = False,
) -> Any:
    """The attention weights α of every step, for plots; noise is off.

    A function of its own, so that an output stays one array, which other layers, read-outs and `generate` read.
    It runs the cell once and computes the weights of all steps from the states. Those of a generated sequence
    are those of its inputs: the first, and what `generate(..., return_inputs=True)` gives but for the last.

    Args:
        model: a cell from :func:`attend`, or a network with such layers that reads in one direction.
        params: with the memory in them, from :func:`with_memory`.
        xs, state, lengths, mask, resets, reset_state, reverse: as for :func:`unroll`.

    Returns:
        `(T, *B, S)`, rows that sum to 1, zeros at padding of the memory and at masked steps. Of a network a tuple
        over layers, `None` for one that does not attend.

    Raises:
        TypeError, ValueError: as :func:`unroll` does, and for a model that does not attend.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.attend(jaxrnn.gru(6), memory_size=4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> bound = jaxrnn.with_memory(cell, params, jnp.ones((2, 5, 4)), lengths=jnp.array([5, 2]))
        >>> alpha = jaxrnn.attention_weights(cell, bound, jnp.ones((7, 2, 3)))
        >>> alpha.shape, alpha[0, 1].tolist()  # a memory of equal entries
        ((7, 2, 5), [0.5, 0.5, 0.0, 0.0, 0.0])
    """
    where = "attention_weights"
    options = {"lengths": lengths, "mask": mask, "resets": resets, "reverse": reverse}
    if not isinstance(model, Network):
        check_cell(where, model, "model")
        _sizes(where, model)
        return _run(model, params, xs, state, {**options, "reset_state": reset_state})[1]
    if any(len(directions(layer)) == 2 for layer in model.layers):
        raise ValueError(
            f"{where}: model expected a network that reads in one direction, got {_checks.describe(model)}"
        )
    if not any(sizes_of(cell) for cell in model.layers):
        raise TypeError(f"{where}: model expected a layer from jaxrnn.attend, got {_checks.describe(model)}")
    check_layers(where, "params", params, model.layers)
    none = (None,) * len(model.layers)
    trees = (params, none if state is None else state, none if reset_state is None else reset_state)
    for name, tree in zip(("state", "reset_state"), trees[1:], strict=True):
        check_layers(where, name, tree, model.layers)

    def run(way: Direction, xs: Any) -> tuple[Any, Array]:
        own, start, reset = way.parts
        ys, alpha = _run(way.cell, own, xs, start, {**options, "reset_state": reset})
        return alpha, ys

    kept, _ = run_layers(model, run, xs, *trees)
    return tuple(alpha for (alpha,) in kept)


def _run(cell: Cell, params: Params, xs: Any, state: State | None, options: dict[str, Any]) -> tuple[Array, Any]:
    """Outputs, and weights of a cell that attends."""
    _, ys, after = unroll(cell, params, xs, state, return_states=True, key=None, **options)  # pyright: ignore
    if sizes_of(cell) is None:
        return ys, None
    time, batch_shape = ys.shape[0], ys.shape[1:-1]
    initial = cell.initial_state(batch_shape) if state is None else state
    dtype = ys.dtype
    params, xs, initial = cast_floating(jax.tree.map(jnp.asarray, (params, xs, initial)), dtype)
    before = shifted(initial, after, options["reverse"])
    if options["resets"] is not None:
        reset = options["reset_state"]
        reset = cast_floating(cell.initial_state(batch_shape) if reset is None else reset, dtype)
        over_time = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), reset, before)
        before = replace(resets_on_entry(jnp.asarray(options["resets"]), options["reverse"]), before, over_time)
    valid = options["mask"]
    if options["lengths"] is not None:
        valid = mask_of_lengths(jnp.clip(jnp.asarray(options["lengths"]), 0, time), time)
    alpha = _weights(cell, params, before, only(valid, xs))
    return ys, only(valid, alpha)


def _weights(cell: Cell, params: Params, before: State, xs: Array) -> Array:
    plan = plan_of(cell)
    if plan.rule is not None:
        return rules.weights_of(plan, params, before, xs)
    # a step of one's own may know one batch alone
    return jax.lax.map(lambda now: rules.weights_of(plan, params, *now), (before, xs))
