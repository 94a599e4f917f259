"""`unroll`: a cell over a sequence. Checks and dtypes here; the running in bptt.py, loops.py and `jaxrnn.backends`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, PyTree, State
from jaxrnn.backends import IMPLEMENTATIONS, Call, choose, device_of, reason_against
from jaxrnn.cells._step import cast_floating
from jaxrnn.sequence.loops import reference
from jaxrnn.sequence.masking import mask_of_lengths, only, resets_on_entry, window_borders
from jaxrnn.sequence.placed import Placed, check_placement, resharded, seen_placement
from jaxrnn.sequence.plan import Inputs, Plan
from jaxrnn.sequence.segments import Segmented, segment_length
from jaxrnn.sequence.varying import check_alike, may_be_sharded, varies, vary_like


def unroll(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
    resets: Bool[AnyArray, "T *B"] | None = None,
    reset_state: State | None = None,
    reverse: bool = False,
    return_states: bool = False,
    checkpoint: str | int | None = None,
    compute_dtype: Any = None,
    implementation: str | None = None,
    truncate: int | None = None,
    clip_gradient: float | None = None,
    key: Array | None = None,
) -> tuple[Any, ...]:
    """Runs a cell over a sequence: s_t, y_t = step(params, s_{t-1}, x_t) for every t.

    Args:
        cell: from :func:`lstm`, :func:`gru`, :func:`rnn`, or a :class:`Cell` of your own.
        params: the cell's parameters.
        xs: `(T, *B, I)`, floating-point, time first. T = 0 and an empty batch are legal.
        state: the state before the first step read; by default `cell.initial_state`. Cast to
            the dtype of the result.
        lengths: `(*B,)` integers in 0..T: step t of a sequence takes part where t < length.
            Concrete values outside are refused, traced ones clamped.
        mask: `(T, *B)` booleans, the general form of `lengths`; give one of the two. Where
            a step takes no part the state is held, the output is zero, the input is not read
            (NaN there reaches neither values nor gradients) and no gradient flows.
        resets: `(T, *B)` booleans, true at the first step of an episode: between t-1 and t
            neither value nor gradient crosses, in either direction of reading, whether or not
            step t takes part.
        reset_state: what replaces a state that would cross, shaped as `state`; by default
            the cell's initial state, which is zeros. Gradients flow into one that is given.
        reverse: read from the last step (with `lengths`: each sequence's own) to the first.
            Outputs stay at their input's position; the final state is that after step 0.
        return_states: also return the state after every step, leaves `(T, *B, ·)`.
        checkpoint: what the backward pass keeps; gradients are the same. `None` keeps what it
            needs: states and gates of every step, (G + 2)TBH numbers for an LSTM or GRU. "gates"
            keeps the states and computes the gates anew, one product for many steps. An
            integer K keeps the state every K steps and runs each segment again, its input
            product included: T/K states and what K steps need. "sqrt" takes K about √T.
        compute_dtype: dtype of the operands of matrix products, such as `jnp.bfloat16`. They
            accumulate in float32, gates and states stay in float32, and outputs come back in
            the dtype of `xs`.
        implementation: `None` chooses; "bptt" is the scan with the hand-written backward;
            "scan" is the scan under plain automatic differentiation, which also serves
            forward mode; "reference" is a Python loop; "cudnn" is the LSTM of NVIDIA's
            library, in float32, with TF32 products where `jax.default_matmul_precision` allows them;
            "pallas" is one kernel for the whole sequence on a CUDA GPU, for rnn, lstm and gru in
            their plain forms, and "pallas_interpret" the same kernel interpreted on any platform,
            for proofs. One that is named serves the call or refuses it.
        truncate: K parts the sequence into windows of K steps, counted from the first step
            read. Values are unchanged; gradients cross every border between two steps but
            those between windows, so they flow back K - 1 steps at most, and into the
            initial state from the first window alone. K >= T changes nothing.
        clip_gradient: limits every entry of the cotangent that a step hands to the state
            before it, the initial one included, to ± this (after Graves 2013,
            arXiv:1308.0850, section 2.1, who limits that of the gates' inputs).
        key: turns on the noise of a cell from :func:`regularize`; without it the cell is
            evaluated. Other cells have none and ignore it. Inside `shard_map`, fold the
            device's index in, or all devices draw the same masks.

    Returns:
        `(final_state, ys)`, or `(final_state, ys, states)` with `return_states`. `ys` is
        `(T, *B, H)`. Everything has the dtype of `params` and `xs` together, unless
        `compute_dtype` is given.

    Raises:
        TypeError, ValueError: for arguments of a wrong type, dtype, shape or structure.
        NotImplementedError: if a named implementation cannot serve the call.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(16)
        >>> params = cell.init(jax.random.key(0), 8)
        >>> xs = jnp.ones((20, 4, 8))
        >>> h, ys = jaxrnn.unroll(cell, params, xs, lengths=jnp.array([20, 7, 1, 0]))
        >>> ys.shape, h.shape
        ((20, 4, 16), (4, 16))

    Differs from:
        1. PyTorch: time first always; lengths need no packing or sorting, and may be 0.
        2. Keras, Flax: a length of 0 gives the initial state; NaN in padding is harmless.
        3. `jax.jvp` and `jax.jacfwd` need `implementation="scan"`; `jax.hessian` does not.
    """
    plan, runner, inputs, out_dtype = _prepare(
        cell, params, xs, state, lengths, mask, resets, reset_state,
        reverse, return_states, checkpoint, compute_dtype, implementation, truncate, clip_gradient, key,
    )  # fmt: skip
    try:
        run = _run if runner is reference else _run_compiled
        final, ys, states = run(runner, plan, out_dtype, inputs)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "unroll: implementation expected 'scan' for forward-mode differentiation (jvp, jacfwd, linearize), "
            f"got {implementation!r}, whose derivative is written by hand for reverse mode"
        ) from error
    return (final, ys, states) if return_states else (final, ys)


def _run(runner: Any, plan: Plan, out_dtype: Any, inputs: Inputs) -> tuple[State, PyTree, State | None]:
    """Selections before and after the loop: their derivatives are JAX's."""
    final, ys, states = runner(plan, inputs._replace(xs=only(inputs.mask, inputs.xs)))
    return final, cast_floating(only(inputs.mask, ys), out_dtype), states


# Compiled here so that a call outside jit does not trace its loop anew every time.
_run_compiled = jax.jit(_run, static_argnums=(0, 1, 2))


def _prepare(
    cell, params, xs, state, lengths, mask, resets, reset_state,
    reverse, return_states, checkpoint, compute_dtype, implementation, truncate, clip_gradient, key,
) -> tuple[Plan, Any, Inputs, Any]:  # fmt: skip
    """Everything checked, and brought to its final dtype."""
    where = "unroll"
    _check_cell(where, cell)
    xs = _checks.floating(where, "xs", xs)
    if xs.ndim < 2:
        raise ValueError(f"{where}: xs expected shape (T, *B, I), got {xs.shape}; a sequence of scalars has I = 1")
    if cell.check is not None:
        cell.check(where, params, xs.shape)
    if cell.placement is not None:
        check_placement(where, cell, xs)
    time, batch_shape = xs.shape[0], xs.shape[1:-1]
    expected = jax.eval_shape(lambda: cell.initial_state(batch_shape))
    for name, given in (("state", state), ("reset_state", reset_state)):
        if given is not None:
            _checks.state_like(where, name, given, expected)
    given_mask, mask = mask, _steps_taking_part(where, lengths, mask, time, batch_shape)
    reverse = _checks.boolean(where, "reverse", reverse)
    checkpoint = _checkpoint(where, checkpoint)
    _checks.one_of(where, "implementation", implementation, (None, *IMPLEMENTATIONS))
    if resets is not None:
        resets = resets_on_entry(_checks.step_mask(where, "resets", resets, (time, *batch_shape)), reverse)
    elif reset_state is not None:
        raise ValueError(f"{where}: reset_state expected None without resets, got {_checks.describe(reset_state)}")
    check_alike(where, xs, **{"lengths" if lengths is not None else "mask": mask}, resets=resets)

    compute_dtype, dtype, out_dtype = dtypes_of(where, cell, params, xs, compute_dtype)
    state = cell.initial_state(batch_shape) if state is None else state
    if resets is not None and reset_state is None:
        reset_state = cell.initial_state(batch_shape)
    if truncate is not None:
        truncate = _checks.positive_int(where, "truncate", truncate)
    if clip_gradient is not None:
        clip_gradient = _checks.positive_float(where, "clip_gradient", clip_gradient)
    return_states = _checks.boolean(where, "return_states", return_states)
    options = {
        "lengths": lengths, "mask": given_mask, "resets": resets, "reverse": reverse, "return_states": return_states,
        "checkpoint": checkpoint, "compute_dtype": compute_dtype, "truncate": truncate, "clip_gradient": clip_gradient,
    }  # fmt: skip
    call = Call(cell, device_of(xs), dtype, xs.shape, expected, varies((params, xs)), options)
    inputs = Inputs(params, xs, state, mask, resets, reset_state, window_borders(time, truncate, reverse))
    inputs = cast_floating(jax.tree.map(jnp.asarray, inputs), dtype)
    if key is not None and cell.sample is not None:
        params, xs = cell.sample(key, inputs.params, inputs.xs)
        inputs = inputs._replace(params=params, xs=xs)
    if cell.placement is None:
        inputs = vary_like(inputs)
        seen = seen_placement(inputs)
        if seen is not None:
            cell, inputs = cell._replace(placement=seen), resharded(inputs, seen)
    runner = _choose(where, implementation, call._replace(cell=cell))
    keep_gates = checkpoint != "gates"
    once = keep_gates and may_be_sharded(inputs)
    segment = segment_length(time, math.prod(batch_shape))
    plan = Plan(cell, reverse, return_states, compute_dtype, clip_gradient, keep_gates, segment, once)
    return plan, runner, inputs, out_dtype


def dtypes_of(where: str, cell: Cell, params: Params, xs: Array, compute_dtype: Any) -> tuple[Any, Any, Any]:
    """The dtype of the operands of products, if one is named; that of states and gates; that of outputs."""
    if compute_dtype is None:
        dtype = jnp.result_type(xs, *_floats(params))
        return None, dtype, dtype
    compute_dtype = _compute_dtype(where, compute_dtype, cell)
    return compute_dtype, _accumulator(compute_dtype), xs.dtype


def _accumulator(compute_dtype: Any) -> Any:
    """The dtype that products of `compute_dtype` accumulate in: float32, unless they are wider."""
    return compute_dtype if jnp.finfo(compute_dtype).bits > 32 else jnp.dtype(jnp.float32)


def _floats(tree: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def _check_cell(where: str, cell: Any) -> None:
    missing = [name for name in Cell._fields if not hasattr(cell, name)]
    if missing:
        raise TypeError(
            f"{where}: cell expected a jaxrnn.Cell, got {type(cell).__name__} without {', '.join(missing)}; "
            "wrap your functions as jaxrnn.Cell(init, initial_state, step)"
        )


def _steps_taking_part(where: str, lengths: Any, mask: Any, time: int, batch_shape: tuple[int, ...]) -> Any:
    if lengths is not None and mask is not None:
        raise ValueError(f"{where}: lengths and mask were both given, expected one; a mask says all that lengths can")
    if lengths is not None:
        return mask_of_lengths(_checks.sequence_lengths(where, lengths, time, batch_shape), time)
    return None if mask is None else _checks.step_mask(where, "mask", mask, (time, *batch_shape))


def _checkpoint(where: str, checkpoint: Any) -> Any:
    if isinstance(checkpoint, str) and checkpoint not in ("gates", "sqrt"):
        raise ValueError(f"{where}: checkpoint expected None, 'gates', 'sqrt' or a number of steps; got {checkpoint!r}")
    if checkpoint is None or isinstance(checkpoint, str):
        return checkpoint
    return _checks.positive_int(where, "checkpoint", checkpoint)


def _choose(where: str, implementation: str | None, call: Call) -> Any:
    """The function that runs the plan, or why the implementation that was named cannot."""
    name, checkpoint = implementation or choose(call), call.options["checkpoint"]
    reason = reason_against(name, call)
    if reason is not None:
        raise NotImplementedError(f"{where}: implementation {name!r} cannot serve this call of {call.cell!r}; {reason}")
    run = IMPLEMENTATIONS[name].run
    if checkpoint not in (None, "gates") and run is not reference:  # a Python loop keeps what it keeps
        run = Segmented(run, checkpoint)
    return run if call.cell.placement is None else Placed(run)


def _compute_dtype(where: str, compute_dtype: Any, cell: Cell) -> Any:
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{where}: compute_dtype expected a floating-point dtype, got {compute_dtype!r}")
    if cell.rule is None or not cell.rule.matrices:
        raise NotImplementedError(
            f"{where}: compute_dtype cannot serve {cell!r}, which has no rule that names its matrices"
        )
    return dtype
