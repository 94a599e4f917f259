"""The gradient of a loss over time: its norm at every step, and each step's contribution to each weight.

Back-propagation through time, one derivative of the cell's step after another:

    δs_t = ȳ_t + (δs_t from step t+1)        (δθ_t, δs_{t-1}, δx_t) = the transposed derivative of step t, of δs_t
    ∂L/∂θ = Σ_t δθ_t

Each sequence carries its cotangent as a vector of length 1 and the log of its length, so that
nothing overflows or vanishes. The δx_t pass through the layers of a network in the same form.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, AnyCell, Params, PyTree, State
from jaxrnn.analysis._logscale import (
    Scaled,
    at_one_scale,
    log_norm,
    normalised,
    plus,
    share,
    times,
    unscaled,
)
from jaxrnn.analysis._trajectory import (
    Step,
    Steps,
    Trajectory,
    check_floating,
    check_inputs,
    scalar,
    trajectory,
    widened,
)
from jaxrnn.cells._step import cast_floating
from jaxrnn.layers import Direction, check_layers, from_directions, run_layers, unmerged, walk
from jaxrnn.network import Network
from jaxrnn.sequence.implementations.bptt import place_of_output
from jaxrnn.sequence.masking import only, select

WHERE = "gradient_flow"


class GradientFlow(NamedTuple):
    """The gradient of a loss, step by step; logs are natural.

    For a network every field but the loss is a tuple over layers, with
    :class:`jaxrnn.Bidirectional` where a layer reads both ways.
    """

    loss: Float[Array, ""]
    log_state_norms: State  # log ‖∂L/∂s_t‖ for each part of the state, (T, *B)
    log_weight_norms: Params  # log ‖δθ_t‖ for each array of the parameters, (T,)
    contributions: Params | None  # δθ_t themselves, (T, ·)


def gradient_flow(
    net_or_cell: Network | AnyCell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    loss: Callable[[State, Array], Array],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
    contributions: bool = False,
) -> GradientFlow:
    """The gradient of a loss by the state after every step, and each weight's gradient split by step.

    ∂L/∂s_t is the derivative by the state after step t, with its parts as independent variables:
    the gradient by the initial state if the sequence began there. Where the output is a part of
    the state, as is the h of every cell of this library, it includes the loss's own gradient by
    y_t. A weight's gradient is the sum over t of the contributions of its use in step t.

    For an LSTM `log_state_norms.c` is thus of what later steps alone read of the memory, f_{t+1} ⊙ δC_{t+1} in
    the plain form: -inf at the last step of a loss that reads h. The papers' δC_t, the derivative through h_t and
    all later steps, is another quantity: `cell_state` of :func:`backward_pass`.

    Costs a run and one backward derivative of every step, O(T B G H (I + H)), and the memory of
    the states. The norms are computed step by step; `contributions=True` holds T copies of the
    weights' gradients, each summed over the batch.

    Args:
        net_or_cell: a network from :func:`jaxrnn.stack`, or a cell. Dropout and noise are off.
        params: its parameters.
        xs: `(T, *B, I)`, floating-point, time first.
        loss: `(final_state, ys) -> scalar`, of what the unroll of the network or cell returns.
        state: the state before the first step; for a network a tuple over its layers.
        lengths: `(*B,)` integers in 0..T.
        mask: `(T, *B)` booleans, the general form of `lengths`; give one of the two. A masked
            step contributes nothing to the weights; the gradient by its state is still returned.
        contributions: also returns the contributions, beside their norms.

    Returns:
        :class:`GradientFlow`. The log of a norm of 0 is -inf. Contributions are plain numbers and
        may overflow where their logs do not. For a layer that reads backward, entry t is for the
        state after it has read step t.

    Raises:
        TypeError, ValueError: for what :func:`jaxrnn.unroll` refuses, a state or parameters that
            are not floating-point, or a loss that is not a scalar.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.rnn(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (500, 2, 3))
        >>> flow = analysis.gradient_flow(cell, params, xs, lambda final, ys: jnp.sum(final**2), contributions=True)
        >>> flow.log_state_norms.shape, bool((flow.log_state_norms[0] < -50).all())
        ((500, 2), True)
        >>> flow.log_weight_norms.w_h.shape, flow.contributions.w_h.shape
        ((500,), (500, 4, 4))

    References:
        Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, equations 3 to 5, whose "temporal
        components" split the gradient further, by pairs of steps.
    """
    _checks.function(WHERE, "loss", loss, "of (final_state, ys)")
    contributions = _checks.boolean(WHERE, "contributions", contributions)
    check_floating(WHERE, params)
    if isinstance(net_or_cell, Network):
        return _of_network(net_or_cell, params, xs, loss, state, lengths, mask, contributions)
    run = trajectory(WHERE, net_or_cell, params, xs, state, lengths, mask)
    value, (dfinal, dys) = jax.value_and_grad(scalar(WHERE, loss), (0, 1))(run.final, run.ys)
    found, _ = _back(net_or_cell.step, False, contributions, run, dfinal, _plain(dys, run.steps))
    return GradientFlow(value, *found)


def _plain(dys: PyTree, steps: Steps) -> Scaled:
    """Cotangents at scale 1."""
    return Scaled(dys, jnp.zeros(steps.xs.shape[:-1], steps.xs.dtype))


# ---- one cell, in one direction


def _state_norms(dstate: State, dy: Array, position: int | None, log_scale: Array) -> State:
    """The logs of the norms of ∂L/∂s_t, part by part."""
    leaves, structure = jax.tree.flatten(dstate)
    if position is not None:
        leaves[position] = leaves[position] + dy
    return jax.tree.unflatten(structure, [log_scale + log_norm(leaf, log_scale.ndim) for leaf in leaves])


def _back(
    step_of_cell: Step, reverse: bool, keep: bool, run: Trajectory, dfinal: State, dys: Scaled
) -> tuple[tuple[State, Params, Params | None], Scaled]:
    """The norms, the contributions if they are to be kept, and the cotangents of xs."""
    wide = widened(run)
    dfinal, dys = cast_floating((dfinal, dys), wide.steps.xs.dtype)
    (norms, weight_norms, kept), dxs = _back_in_time(step_of_cell, reverse, keep, wide.params, wide.steps, dfinal, dys)
    if kept is not None:
        kept = jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), kept, run.params)
    return (norms, weight_norms, kept), dxs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _back_in_time(
    step_of_cell: Step, reverse: bool, keep: bool, params: Params, steps: Steps, dfinal: State, dys: Scaled
) -> tuple[tuple[State, Params, Params | None], Scaled]:
    """`_back`, with everything in one dtype."""

    def body(carry: Scaled, now: tuple[Steps, Scaled]) -> tuple[Scaled, Any]:
        (before, x, mask), dy = now
        position = None

        def step(params: Params, state: State, x: Array) -> tuple[State, PyTree]:
            nonlocal position
            after, y = step_of_cell(params, state, x)
            position = place_of_output(after, y)
            return after, y

        _, pull = jax.vjp(step, params, before, x)
        (dstate, dy), log_scale = at_one_scale(carry, dy)
        norms = _state_norms(dstate, dy, position, log_scale)
        dparams, dbefore, dx = pull((only(mask, dstate), dy))
        dbefore = select(mask, dbefore, dstate)

        largest = log_scale if mask is None else jnp.where(mask, log_scale, -jnp.inf)
        if largest.ndim:  # sequences are added, each at its own scale; a masked one has the weight 0
            own, largest = largest, jnp.max(largest, initial=-jnp.inf)
            weight = share(own, jnp.broadcast_to(largest, own.shape))
            dparams, _, _ = pull((times(dstate, weight), times(dy, weight)))
        weight_norms = jax.tree.map(lambda leaf: largest + log_norm(leaf, 0), dparams)
        kept = jax.tree.map(lambda leaf: unscaled(leaf, largest), dparams) if keep else None
        return normalised(Scaled(dbefore, log_scale)), (norms, weight_norms, kept, Scaled(dx, log_scale))

    batch_shape = steps.xs.shape[1:-1]
    start = normalised(Scaled(dfinal, jnp.zeros(batch_shape, steps.xs.dtype)))
    dys = normalised(dys._replace(value=only(steps.mask, dys.value)))
    _, (norms, weight_norms, kept, dxs) = jax.lax.scan(body, start, (steps, dys), reverse=not reverse)
    return (norms, weight_norms, kept), dxs


# ---- the layers of a network


class _Run(NamedTuple):
    """A direction of a layer, and its run."""

    way: Direction
    run: Trajectory


def _of_network(
    net: Network, params: Params, xs: Any, loss: Callable, states: Any, lengths: Any, mask: Any, keep: bool
) -> GradientFlow:
    xs = check_inputs(WHERE, xs)
    check_layers(WHERE, "params", params, net.layers)
    if states is not None:
        check_layers(WHERE, "state", states, net.layers)
    states = net.initial_state(xs.shape[1:-1]) if states is None else states

    def run(way: Direction, xs: Any) -> tuple[_Run, Array]:
        own, state = way.parts
        found = trajectory(WHERE, way.cell, own, xs, state, lengths, mask, way.reverse)
        return _Run(way, found), found.ys

    layers, ys = run_layers(net, run, xs, params, states)
    finals = tuple(from_directions([each.run.final for each in runs]) for runs in layers)
    value, (dfinals, dys) = jax.value_and_grad(scalar(WHERE, loss), (0, 1))(finals, ys)
    dys, found = _plain(dys, layers[-1][0].run.steps), []
    of_final = [[way.parts[0] for way in ways] for ways in walk(net.layers, dfinals)]

    def parts_of(runs: list[_Run], dys: Scaled) -> list[Scaled]:
        outputs = [each.run.ys for each in runs]
        return [Scaled(part, dys.log_scale) for part in unmerged(net.merge, outputs, dys.value)]

    for k in range(len(layers) - 1, -1, -1):
        backs = [
            _back(each.way.cell.step, each.way.reverse, keep, each.run, dfinal, part)
            for each, dfinal, part in zip(layers[k], of_final[k], parts_of(layers[k], dys), strict=True)
        ]
        found.insert(0, [from_directions(parts) for parts in zip(*(own for own, _ in backs), strict=True)])
        dys = plus(*(dxs for _, dxs in backs), *([dys] if net.residual and k else []))
    norms, weights, contributions = (tuple(values) for values in zip(*found, strict=True))
    return GradientFlow(value, norms, weights, contributions if keep else None)
