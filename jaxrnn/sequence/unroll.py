"""`unroll`: a cell over a sequence."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from jaxrnn._types import NOT_GIVEN, AnyArray, AnyCell, NotGiven, Params, State
from jaxrnn.sequence.arguments import Given, validate, warn_of_silence
from jaxrnn.sequence.implementations.protocol import FORWARD_MODE, Implementation
from jaxrnn.sequence.registry import choose, run

# How JAX begins its message about a function with a derivative for reverse mode.
FORWARD_MODE_REFUSED = "can't apply forward-mode "


def unroll(
    cell: AnyCell,
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
    implementation: str | Implementation | None = None,
    truncate: int | None = None,
    clip_gradient: float | None = None,
    key: Array | NotGiven | None = NOT_GIVEN,
) -> tuple[Any, ...]:
    """Runs a cell over a sequence: s_t, y_t = step(params, s_{t-1}, x_t) for every t.

    Args:
        cell: from :func:`lstm`, :func:`gru`, :func:`rnn`, or a :class:`Cell` of your own.
        params: the cell's parameters.
        xs: `(T, *B, I)`, floating-point, time first. T = 0 and an empty batch are legal.
        state: the state before the first step read; by default `cell.initial_state`. Cast to
            the dtype of the result.
        lengths: `(*B,)` integers in 0..T: step t of a sequence is masked where t >= length.
            Concrete values outside are refused, traced ones clamped.
        mask: `(T, *B)` booleans, the general form of `lengths`; give one of the two. A step
            is masked where they are false: the state is held, the output is zero, the input
            is not read (NaN there reaches neither values nor gradients) and no gradient flows.
        resets: `(T, *B)` booleans, true at the first step of an episode: between t-1 and t
            neither value nor gradient crosses, in either direction of reading, whether or not
            step t is masked.
        reset_state: what replaces the state at a reset, shaped as `state`; by default
            the cell's initial state, which is zeros. Gradients flow into one that is given.
        reverse: read from the last step (with `lengths`: each sequence's own) to the first.
            Outputs stay at their input's position; the final state is that after step 0.
        return_states: also return the state after every step, leaves `(T, *B, ·)`.
        checkpoint: what the backward pass keeps; gradients are the same. `None` keeps what it
            needs: states and gates of every step, (G + 2)TBH numbers for an LSTM or GRU. "gates"
            keeps the states and recomputes the gates, one product for many steps. An
            integer K keeps the state every K steps and runs each segment again, its input
            product included: T/K states and what K steps need. "sqrt" chooses K about √T.
        compute_dtype: dtype of the operands of matrix products, such as `jnp.bfloat16`. They
            accumulate in float32, gates and states stay in float32, and outputs come back in
            the dtype of `xs`.
        implementation: `None` chooses. "bptt" is the scan with the hand-written backward pass.
            "scan" is the scan under plain automatic differentiation, which also supports
            forward mode. "reference" is a Python loop. "newton" solves all steps at once, see
            :class:`jaxrnn.Newton`, which may be given in its place. "cudnn" is the LSTM of NVIDIA's
            library, in float32, with TF32 products where `jax.default_matmul_precision` allows them.
            "pallas" is one kernel for the whole sequence on a CUDA GPU, for rnn, lstm and gru in
            their plain forms; "pallas_interpret" is the same kernel interpreted on any platform,
            for proofs. A named implementation runs the call or refuses it. An object may be given
            instead of a name (`jaxrnn/sequence/implementations/protocol.py`).
        truncate: K splits the sequence into windows of K steps, counted from the first step
            read. Values are unchanged. No gradient crosses from one window to the one before, so
            gradients flow back K - 1 steps at most, and into the initial state from the first
            window alone. K >= T changes nothing.
        clip_gradient: clips every entry of the cotangent that a step passes to the state
            before it, the initial one included, to ± this (after Graves 2013,
            arXiv:1308.0850, section 2.1, who clips that of the gates' inputs).
        key: turns on the noise of a cell from :func:`regularize`. `None` evaluates such a cell; a
            forgotten key does too, with a warning. Other cells have no noise. Inside `shard_map`,
            fold the device's index in, or all devices draw the same masks.

    Returns:
        `(final_state, ys)`, or `(final_state, ys, states)` with `return_states`. `ys` is
        `(T, *B, H)`. Everything has the dtype of `params` and `xs` together, unless
        `compute_dtype` is given.

    Raises:
        TypeError, ValueError: for arguments of a wrong type, dtype, shape or structure.
        NotImplementedError: if a named implementation does not support the call.

    Warns:
        UserWarning: if no `key` is given to a cell that has noise.

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
        3. `jax.vmap` over sequences with shared weights is the program with a batch axis, and its gradient is as
           fast, for "bptt" and `rnn`, `lstm`, `gru` and `mgu`, without `truncate`, `checkpoint=K` or noise.
           Elsewhere, and in `vmap(grad(f))`, one weight gradient is made for every sequence: put
           sequences on a batch axis (docs/agents.md has figures).
        4. `jax.jvp` and `jax.jacfwd` need `implementation="scan"`; `jax.hessian` does not.
    """
    if key is NOT_GIVEN:
        warn_of_silence("unroll", getattr(cell, "sample", None) is not None, cell)
        key = None
    given = Given(
        lengths, mask, resets, reset_state, reverse, return_states,
        checkpoint, compute_dtype, truncate, clip_gradient, key,
    )  # fmt: skip
    request = validate(cell, params, xs, state, given)
    implementation = choose(request, implementation)
    try:
        final, ys, states = run(implementation, request)
    except TypeError as error:
        if not str(error).startswith(FORWARD_MODE_REFUSED):
            raise
        if FORWARD_MODE not in implementation.refused_transformations:  # a clipped cotangent has no tangent
            raise TypeError(
                f"unroll: clip_gradient expected None for forward-mode differentiation, got {clip_gradient!r}"
            ) from error
        raise TypeError(
            "unroll: implementation expected 'scan' for forward-mode differentiation (jvp, jacfwd, linearize), "
            f"got {implementation.name!r}, whose derivative is written by hand for reverse mode"
        ) from error
    return (final, ys, states) if return_states else (final, ys)
