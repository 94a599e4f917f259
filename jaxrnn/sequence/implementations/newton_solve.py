"""All states of a sequence at once by Newton's method: the forward pass of `newton.py`.

For a guess S of the states of a window, with f the step of the cell:

    r_t = f(s_{t-1}, x_t) - s_t        J_t = ∂f/∂s at s_{t-1}
    d_t = J_t d_{t-1} + r_t            d_0 = 0: the state that enters the window is right
    S  += ω d

f, r and J of all steps are computed at once, and d by one associative scan. After k iterations
with ω = 1 and the full Jacobian the first k steps are exact. A masked step holds its state: its f is the state
before, its J the identity. At a reset the reset state enters and J = 0.

The entries of a state are those of its leaves one after another: D of them for each sequence.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn._types import Params, PyTree, State, Tape
from jaxrnn.sequence.implementations.bptt import entering_states, place_of_output, prepared_params, run_forward
from jaxrnn.sequence.masking import only, select
from jaxrnn.sequence.request import Inputs, Options, operands

MEMORY = 64 * 2**20  # bytes that the Jacobians of a window may take, see `bytes_of_step`
FEWEST_STEPS = 16  # of a window, also where their Jacobians take more than that
SWEEPS = 8  # steps that the guess of each state has seen, at most a quarter of the window
ROUNDINGS = 16  # the tolerance of a dtype, in units of its epsilon


class Settings(NamedTuple):
    """The options of `Newton`, checked."""

    jacobian: str
    tolerance: float | None
    max_iterations: int
    window: int | None
    damping: float


class Progress(NamedTuple):
    """How the iteration went, by window and sequence; the leading axis is that of the windows."""

    iterations: Int[Array, "windows *B"]
    residuals: Float[Array, "windows k *B"]  # before the first iteration and after each; NaN where none was made
    converged: Bool[Array, "windows *B"]
    by_steps: Bool[Array, "windows"]  # whether the window was run step by step


class _Iterate(NamedTuple):
    """A guess of the states of a window, and what the next iteration reads."""

    count: Int[Array, ""]  # of iterations
    states: State
    tape: Tape
    r: State
    error: Float[Array, "*B"]
    iterations: Int[Array, "*B"]
    history: Float[Array, "k *B"]


# Sizes


def state_size(inputs: Inputs) -> int:
    """D, the entries of the state of one sequence."""
    lead = len(inputs.batch_shape)
    return sum(math.prod(leaf.shape[lead:]) for leaf in jax.tree.leaves(inputs.state))


def bytes_of_step(settings: Settings, options: Options, inputs: Inputs) -> int:
    """What one step of a window takes, of all sequences together, in D entries of the state and Z of the projection.

    The full Jacobian: D (Z + 2D) numbers a sequence. Z D are what `rule.backward` makes on the way, as much as D² for
    an RNN, 3D² for a GRU and 2D² for an LSTM; 2D² are the Jacobian and the copies that the scan halves. The diagonal:
    7 Z numbers. The gradient takes D (Z + 2D) with either, unless it is that of the loop.
    `tests/sequence/test_newton_cost.py` measures them.
    """

    def first() -> PyTree:
        x = jax.tree.map(lambda leaf: leaf[0], inputs.xs)
        return options.rule.project(operands(options, inputs.params), x)

    projected = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(first)))
    size, sequences = state_size(inputs), math.prod(inputs.batch_shape)
    numbers = size * (projected + 2 * size * sequences) if settings.jacobian == "full" else 7 * projected
    return max(1, numbers * jax.tree.leaves(inputs.state)[0].dtype.itemsize)


def window_length(settings: Settings, options: Options, inputs: Inputs) -> int:
    """The steps that are solved at once."""
    longest = settings.window
    if longest is None:
        longest = max(FEWEST_STEPS, MEMORY // bytes_of_step(settings, options, inputs))
    count = -(-inputs.time // min(longest, inputs.time))
    return -(-inputs.time // count)


# Windows


def in_order(reverse: bool, tree: PyTree) -> PyTree:
    """What is over time, in the order of reading; its own inverse."""
    return jax.tree.map(lambda leaf: leaf[::-1], tree) if reverse else tree


def in_windows(tree: PyTree, time: int, size: int, hold: bool = False) -> PyTree:
    """Leaves `(T, ·)` as `(n, size, ·)`; after the last step there are zeros, or its own values with `hold`."""
    count = -(-time // size)

    def leaf(x: Array) -> Array:
        missing = count * size - time
        if missing:
            more = x[-1:] if hold else jnp.zeros_like(x[-1:])
            x = jnp.concatenate([x, jnp.broadcast_to(more, (missing, *x.shape[1:]))])
        return x.reshape(count, size, *x.shape[1:])

    return jax.tree.map(leaf, tree)


def out_of_windows(tree: PyTree, time: int) -> PyTree:
    """The inverse of `in_windows`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:time], tree)


def padded_mask(inputs: Inputs, size: int) -> Array | None:
    """The mask, which the steps added by `in_windows` need: they are masked."""
    if inputs.mask is None and inputs.time % size:
        return jnp.ones((inputs.time, *inputs.batch_shape), bool)
    return inputs.mask


# Jacobians


def flat(tree: State, lead: int) -> Array:
    """The entries of a state side by side, after `lead` axes."""
    return jnp.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in jax.tree.leaves(tree)], axis=-1)


def unflat(entries: Array, like: State) -> State:
    """The inverse of `flat`, with leaves shaped as those of `like`, which has as many leading axes."""
    leaves, structure = jax.tree.flatten(like)
    lead = entries.ndim - 1
    sizes = [math.prod(leaf.shape[lead:]) for leaf in leaves]
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    parts = [entries[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]
    shaped = [part.reshape(*entries.shape[:-1], *leaf.shape[lead:]) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def jacobians(options: Options, prepared: Params, tape: Tape, dys: PyTree, batch_axes: int, full: bool) -> Array:
    """∂s_t/∂s_{t-1} of every step, `(W, *B, D, D)` with [i, j] that of entry i by entry j, or `(W, *B, D)`.

    Masks and resets are not in them. `dys` are zeros like the outputs.
    """
    lead = 1 + batch_axes
    size = sum(math.prod(leaf.shape[lead:]) for leaf in jax.tree.leaves(tape.after))
    dtype = jax.tree.leaves(tape.after)[0].dtype
    basis = jnp.eye(size, dtype=dtype)

    def row(entry: Array) -> Array:
        def of_step(tape: Tape, dy: PyTree) -> State:
            batch = jax.tree.leaves(tape.after)[0].shape[:batch_axes]
            cotangent = unflat(jnp.broadcast_to(entry, (*batch, size)), tape.after)
            return options.rule.backward(prepared, tape, cotangent, dy)[0]

        return flat(jax.vmap(of_step)(tape, dys), lead)

    if full:
        return jax.vmap(row, out_axes=-2)(basis)

    def entry_of_diagonal(entry: Array) -> Array:
        return jnp.sum(jnp.where(entry.reshape((1,) * lead + (-1,)) != 0, row(entry), 0), -1)

    return jnp.moveaxis(jax.lax.map(entry_of_diagonal, basis), 0, -1)


def masked_jacobians(made: Array, mask: Array | None, resets: Array | None, full: bool) -> Array:
    """The Jacobians of steps that may be masked or reset."""
    size = made.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=made.dtype) if full else jnp.ones(size, made.dtype), made.shape)
    made = select(mask, made, identity)
    return made if resets is None else only(~resets, made)


def solve_linear(made: Array, right: Array, full: bool, reverse: bool = False) -> Array:
    """d_t = J_t d_{t-1} + r_t for every t, with d_0 = 0, by an associative scan; `(W, *B, D)`."""

    def combine(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, b), (c, d) = first, second
        if not full:
            return c * a, c * b + d
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        return product(c, a), product(c, b[..., None])[..., 0] + d

    return jax.lax.associative_scan(combine, (made, right), reverse=reverse)[1]


# A window


def _errors(r: State, after: State, batch_axes: int) -> Float[Array, "*B"]:
    """The largest |r_t| of each sequence, relative for each part of the state to its largest entry."""

    def leaf(r: Array, f: Array) -> Array:
        axes = (0, *range(1 + batch_axes, r.ndim))
        return jnp.max(jnp.abs(r), axes) / jnp.maximum(jnp.max(jnp.abs(f), axes), jnp.finfo(f.dtype).tiny)

    return functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(leaf, r, after)))


def tolerance_of(settings: Settings, options: Options, dtype: Any) -> float:
    """The largest relative residual of a solution."""
    if settings.tolerance is not None:
        return settings.tolerance
    compute = dtype if options.compute_dtype is None else options.compute_dtype
    if jnp.finfo(compute).bits < jnp.finfo(dtype).bits:  # f jumps by about half of that from one state to the next
        return float(jnp.finfo(compute).eps)
    return ROUNDINGS * float(jnp.finfo(dtype).eps)


def zeros_of_outputs(options: Options, params: Params, state: State, zs: PyTree) -> PyTree:
    """Zeros like the outputs of all steps."""
    shapes = jax.eval_shape(lambda: options.rule.forward(params, state, zs)[1])
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def step_everywhere(options: Options, inputs: Inputs, zs: PyTree, states: State) -> tuple[Tape, State, PyTree]:
    """The step of the cell at every t, from guesses of the states: its tape, f with masks in it, and the outputs."""
    before = entering_states(options, inputs, states)
    after, ys, residual = options.rule.forward(operands(options, inputs.params), before, zs)
    return Tape(before, after, residual), select(inputs.mask, after, before), ys


def solve_window(
    settings: Settings, options: Options, prepared: Params, inputs: Inputs
) -> tuple[State, PyTree, Progress]:
    """States, outputs and progress of one window, read forward. `inputs.state` enters it."""
    batch_axes, full = len(inputs.batch_shape), settings.jacobian == "full"
    zs = options.rule.project(operands(options, inputs.params), inputs.xs)
    guess = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (inputs.time, *leaf.shape)), inputs.state)
    no_dys = zeros_of_outputs(options, operands(options, inputs.params), guess, zs)
    tolerance = tolerance_of(settings, options, jax.tree.leaves(guess)[0].dtype)

    def look(states: State) -> tuple[Tape, State, Array]:
        tape, after, _ = step_everywhere(options, inputs, zs, states)
        r = jax.tree.map(jnp.subtract, after, states)
        return tape, r, _errors(r, after, batch_axes)

    def is_active(at: _Iterate) -> Array:
        return (at.error > tolerance) & jnp.isfinite(at.error)

    def proceeds(at: _Iterate) -> Array:
        return (at.count < settings.max_iterations) & jnp.any(is_active(at))

    def iterate(at: _Iterate) -> _Iterate:
        made = jacobians(options, prepared, at.tape, no_dys, batch_axes, full)
        made = masked_jacobians(made, inputs.mask, inputs.resets, full)
        d = unflat(settings.damping * solve_linear(made, flat(at.r, 1 + batch_axes), full), at.states)
        active = is_active(at)
        moves = jnp.broadcast_to(active, (inputs.time, *active.shape))
        states = select(moves, jax.tree.map(jnp.add, at.states, d), at.states)
        tape, r, error = look(states)
        history = at.history.at[at.count + 1].set(jnp.where(active, error, jnp.nan))
        return _Iterate(at.count + 1, states, tape, r, error, at.iterations + active.astype(jnp.int32), history)

    sweeps = min(SWEEPS, inputs.time // 4)
    guess = jax.lax.fori_loop(0, sweeps, lambda _, states: step_everywhere(options, inputs, zs, states)[1], guess)
    tape, r, error = look(guess)
    history = jnp.full((1 + settings.max_iterations, *error.shape), jnp.nan, error.dtype).at[0].set(error)
    start = _Iterate(jnp.int32(0), guess, tape, r, error, jnp.zeros(error.shape, jnp.int32), history)
    end = jax.lax.while_loop(proceeds, iterate, start)
    converged = end.error <= tolerance
    solution = select(inputs.mask, end.tape.after, end.tape.before)  # f at the states: nearer by a step, at no cost

    def step_by_step() -> State:
        states = run_forward(options, inputs, True, False)[2]
        assert states is not None
        return states

    solved = jnp.all(converged)
    states = jax.lax.cond(solved, lambda: solution, step_by_step)
    tape, _, ys = step_everywhere(options, inputs, zs, states)
    position = place_of_output(tape.after, ys)
    ys = ys if position is None else jax.tree.leaves(states)[position]
    return states, ys, Progress(end.iterations, end.history, converged, ~solved)


def solve(settings: Settings, options: Options, inputs: Inputs) -> tuple[State, PyTree, State, Progress]:
    """Final state, outputs, states and progress, window after window."""
    size = window_length(settings, options, inputs)
    prepared, reverse = prepared_params(options, inputs), options.reverse
    over_time = in_order(reverse, (inputs.xs, padded_mask(inputs, size), inputs.resets))
    forward = options._replace(reverse=False)

    def window(state: State, steps: Any) -> tuple[State, Any]:
        xs, mask, resets = steps
        here = inputs._replace(state=state, xs=xs, mask=mask, resets=resets, borders=None)
        states, ys, progress = solve_window(settings, forward, prepared, here)
        return jax.tree.map(lambda leaf: leaf[-1], states), (ys, states, progress)

    final, (ys, states, progress) = jax.lax.scan(window, inputs.state, in_windows(over_time, inputs.time, size))
    return final, *in_order(reverse, out_of_windows((ys, states), inputs.time)), progress
