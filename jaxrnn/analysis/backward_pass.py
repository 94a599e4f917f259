"""The hand-written backward pass of a cell, opened: every cotangent of every step, in the papers' symbols.

With δv for ∂L/∂v, from the last step to the first:

    δh_t = ȳ_t + (δh_t from step t+1)             ȳ_t is the gradient of the loss itself by y_t
    δa_t = δ of each gate's pre-activation, by the cell's own `Rule.backward`
    δx_t = Σ over gates of δa_t W_xᵀ              the error that the layer below gets
    ∂L/∂θ = Σ_t of the use of θ in step t

and for an LSTM, with the total derivative by the memory, through h_t and through all later steps:

    δC_t = δh_t ⊙ o_t ⊙ (1 - tanh²(C_t)) + f_{t+1} ⊙ δC_{t+1}

The loop is that of `implementation="bptt"`, which keeps nothing of it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, AnyCell, Gates, Params, PyTree, Rule, State, Tape
from jaxrnn.analysis._families import (
    Values,
    declared_gates,
    deltas_of,
    gates_of_rule,
    has_own_equations,
    own_deltas,
    own_residual,
    part_of_gate,
)
from jaxrnn.analysis._trajectory import check_floating, check_inputs, scalar
from jaxrnn.cells import LSTMParams
from jaxrnn.cells._activation import phis_of
from jaxrnn.cells._affine import is_affine, times
from jaxrnn.cells.lstm import hidden
from jaxrnn.layers import Direction, check_layers, from_directions, run_layers, unmerged, walk
from jaxrnn.network import Network
from jaxrnn.sequence.arguments import Given, check_cell, validate
from jaxrnn.sequence.implementations.bptt import (
    Bptt,
    cotangents_of,
    entering_states,
    place_of_output,
    prepared_params,
    run_forward,
    step_back,
)
from jaxrnn.sequence.masking import only
from jaxrnn.sequence.request import Inputs, Options

WHERE = "backward_pass"


class BackwardPass(NamedTuple):
    """The backward pass of a loss through every step.

    For a network every field but the loss is a tuple over layers, with
    :class:`jaxrnn.Bidirectional` where a layer reads both ways.
    """

    loss: Float[Array, ""]
    states: State  # δs_t (T, *B, ·), each part with the other parts held fixed: δh_t, and of an LSTM the carry of c
    cell_state: Float[Array, "T *B H"] | None  # δC_t of an LSTM, through h_t too; None for other cells
    pre_activations: (
        Any  # δa_t of each gate (T, *B, H), by name; of a rule of your own without `Gates`, what its `backward` returns
    )
    inputs: PyTree  # δx_t (T, *B, I)
    initial_state: State  # δs_0 (*B, ·)
    reset_state: State | None  # the sum over resets, (*B, ·)
    weights: Params  # ∂L/∂θ
    by_gate: (
        dict[str, Params] | None
    )  # the part of ∂L/∂θ that is one gate's, by name; None for one of your own without `Gates`, or `NamedTuple` of θ
    contributions: Params | None  # the part of ∂L/∂θ that is one step's, (T, ·)


def backward_pass(
    net_or_cell: Network | AnyCell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    loss: Callable[[State, Array], Array],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
    resets: Bool[AnyArray, "T *B"] | None = None,
    reset_state: State | None = None,
    reverse: bool = False,
    truncate: int | None = None,
    clip_gradient: float | None = None,
    contributions: bool = False,
) -> BackwardPass:
    """Back-propagation through time with all that it computes on the way.

    It runs the cell's hand-written rule, in the loop that `unroll` differentiates with, and returns what
    that loop throws away. Numbers are plain: over many steps they may underflow or overflow.
    :func:`gradient_flow` gives logarithms of norms that do not.

    `states` and `cell_state` are two quantities. `states` holds ∂L/∂s_t with the parts of the state as independent
    variables. Its h is δh_t of the papers. Its c is only what later steps read of the memory,
    f_{t+1} ⊙ δC_{t+1} in the plain LSTM: zero at the last step of a loss that reads h.
    `gradient_flow(...).log_state_norms.c` is the log of its norm. `cell_state` is δC_t of the papers,
    the total derivative, in which h_t depends on C_t.

    Costs a run and its backward pass, O(T B G H (I + H)), and T B (G + 3) H numbers; with
    `contributions=True` also T copies of the weights' gradients, each summed over the batch.

    Args:
        net_or_cell: a network from :func:`jaxrnn.stack`, or a cell, whose cells have a rule. Dropout and noise are off.
        params: its parameters, floating-point.
        xs: `(T, *B, I)`, floating-point, time first.
        loss: `(final_state, ys) -> scalar`, of what the unroll of the network or cell returns.
        state: the state before the first step read; for a network a tuple over its layers.
        lengths, mask, resets, reset_state, reverse, truncate, clip_gradient: as for :func:`jaxrnn.unroll`. A masked
            step has δa, δx and contributions of zero, and passes the cotangent of its state on.
        contributions: also returns each step's contribution to the gradient of each weight.

    Returns:
        :class:`BackwardPass`. Gates are named as by :func:`gate_values`; the only one of a simple network is h.
        A GRU with the reset after the product also has δq, of q = h_{t-1} W_hn + b_hn. A cell whose step is
        s_t = a_t ⊙ s_{t-1} + b_t has δa_t and δb_t in the place of the gates'. Where the output is no part of
        the state, as that of an LRU, `states` lacks what comes through y_t, and δb_t has it. In `by_gate`, a
        weight that belongs to no gate, such as a projection, is `None`. At masked steps `cell_state` is
        the carry alone. It is `None` under zoneout, where h_t is not a function of C_t.

    Raises:
        TypeError, ValueError: for what :func:`jaxrnn.unroll` refuses, parameters that are not floating-point, or a
            loss that is not a scalar.
        NotImplementedError: for a cell without a rule, for which :func:`gradient_flow` gives norms, or one placed
            on several devices.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
        >>> found = analysis.backward_pass(cell, params, xs, lambda final, ys: jnp.sum(ys[-1] ** 2))
        >>> found.cell_state.shape, list(found.pre_activations), found.by_gate["f"].w_h.shape
        ((5, 2, 4), ['i', 'f', 'g', 'o'], (4, 4))
        >>> float(abs(found.states.c[-1]).max()), bool(abs(found.cell_state[-1]).max() > 0)
        (0.0, True)

    References:
        Werbos 1990, "Backpropagation through time"; Goodfellow et al. 2016, section 10.2.2;
        Greff et al. 2017, arXiv:1503.04069, appendix A, for the LSTM's δ.
    """
    _checks.function(WHERE, "loss", loss, "of (final_state, ys)")
    contributions = _checks.boolean(WHERE, "contributions", contributions)
    given = Given(lengths, mask, resets, reset_state, reverse, truncate=truncate, clip_gradient=clip_gradient)
    check_floating(WHERE, params)
    if isinstance(net_or_cell, Network):
        return _of_network(net_or_cell, params, xs, loss, state, given, contributions)
    run = _run(net_or_cell, params, xs, state, given)
    value, (dfinal, dys) = jax.value_and_grad(scalar(WHERE, loss), (0, 1))(run.final, run.ys)
    return _back(run, value, dfinal, dys, contributions)


# ---- one cell, in one direction


class _Run(NamedTuple):
    """A direction of a layer after its forward pass."""

    options: Options
    gates: Gates | None  # that a cell of the user's own declares
    inputs: Inputs
    tape: Tape
    final: State
    ys: Array  # zeros at masked steps


def _run(cell: Any, params: Params, xs: Any, state: Any, given: Given) -> _Run:
    check_cell(WHERE, cell)
    check_inputs(WHERE, xs)
    if not isinstance(cell.rule, Rule):
        raise NotImplementedError(
            f"{WHERE}: cell expected one with a rule, whose backward pass is written by hand, got {cell!r}; "
            "gradient_flow measures any cell"
        )
    request = validate(cell, params, xs, state, given, WHERE)
    reason = Bptt().unsupported(request)
    if request.options.placement is not None:
        reason = "it runs on one device; give the cell itself, and arrays that are on one"
    if reason is not None:
        raise NotImplementedError(f"{WHERE}: this call of {request.name} is not supported; {reason}")
    inputs = request.inputs._replace(xs=only(request.inputs.mask, request.inputs.xs))
    return _Run(request.options, declared_gates(WHERE, cell), inputs, *_forward(request.options, inputs))


@functools.partial(jax.jit, static_argnums=0)
def _forward(options: Options, inputs: Inputs) -> tuple[Tape, State, Array]:
    final, ys, after, residual = run_forward(options, inputs, True, True)
    return Tape(entering_states(options, inputs, after), after, residual), final, only(inputs.mask, ys)


ORDER = "irfzgnqoh"  # of the names of gates in a result; others come last


def _back(run: _Run, value: Array, dfinal: State, dys: Array, keep: bool) -> BackwardPass:
    _, _, inputs, tape, final, ys = run
    dfinal, dys = (jax.tree.map(lambda d, v: d.astype(v.dtype), *pair) for pair in ((dfinal, final), (dys, ys)))
    found = _back_in_time(run.options, run.gates, keep, inputs, tape, value, dfinal, only(inputs.mask, dys))
    if run.gates is None and found.by_gate is None:
        return found
    gates, by_gate = map(_in_order, (found.pre_activations, found.by_gate))
    return found._replace(pre_activations=gates, by_gate=by_gate)


def _in_order(tree: Any) -> Any:
    """A dictionary by gate in the usual order; jit has sorted it by name."""
    if not isinstance(tree, dict):
        return tree
    return {name: tree[name] for name in sorted(tree, key=lambda name: (name not in ORDER, ORDER.find(name)))}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _back_in_time(
    options: Options,
    declared: Gates | None,
    keep: bool,
    inputs: Inputs,
    tape: Tape,
    value: Array,
    dfinal: State,
    dys: Array,
) -> BackwardPass:
    rule, params = options.rule, inputs.params
    step = functools.partial(step_back, options, prepared_params(options, inputs))
    zeros = jax.tree.map(jnp.zeros_like, inputs.reset_state)
    over_time = (tape, dys, None, inputs.mask, inputs.resets, inputs.borders)
    (dinitial, dreset), (dstates, delta) = jax.lax.scan(step, (dfinal, zeros), over_time, reverse=not options.reverse)
    dparams, dxs = cotangents_of((params, inputs.xs), rule.accumulate(params, inputs.xs, tape, delta))

    known = gates_of_rule(params, rule, declared)
    if declared is None:
        gates: Any = delta if known is None else deltas_of(known, delta)
    else:
        gates = own_deltas(WHERE, declared, delta, dys.shape[:-1])
    if is_affine(rule):
        gates = {"a": times(delta[0], tape.before), "b": delta[0]}
    states, is_record = _with_output(rule, inputs, dstates, dys), hasattr(params, "_fields")
    return BackwardPass(
        loss=value,
        states=states,
        cell_state=_cell_state(rule, params, tape, inputs.mask, states, gates),
        pre_activations=gates,
        inputs=dxs,
        initial_state=dinitial,
        reset_state=dreset,
        weights=dparams,
        by_gate=None if known is None or not is_record else {g: part_of_gate(known, g, dparams) for g in known.blocks},
        contributions=_by_step(rule, inputs, tape, delta) if keep else None,
    )


def _with_output(rule: Rule, inputs: Inputs, dstates: State, dys: Array) -> State:
    """δs_t with the loss's own gradient by y_t in it, where the output is a part of the state."""
    place = None

    def step(params: Params, state: State, x: Array) -> Any:
        nonlocal place
        after, y, _ = rule.forward(params, state, rule.project(params, x))
        place = place_of_output(after, y)
        return y

    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs.xs)
    jax.eval_shape(step, inputs.params, inputs.state, x)
    leaves, structure = jax.tree.flatten(dstates)
    if place is not None:
        leaves[place] = leaves[place] + dys
    return jax.tree.unflatten(structure, leaves)


def _cell_state(rule: Rule, params: Params, tape: Tape, mask: Any, states: State, gates: Values) -> Array | None:
    """δC_t: the carry, and what comes through h_t, and with peepholes through o_t."""
    is_own_equation = has_own_equations((rule.forward, rule.accumulate))
    if not isinstance(params, LSTMParams) or is_own_equation or own_residual(tape.residual) is not tape.residual:
        return None
    phis = phis_of(rule.forward)
    assert phis is not None
    _, pull = jax.vjp(lambda c: hidden(phis, params, tape.residual.o, c), tape.after.c)
    (through,) = pull(states.h)
    if params.peephole is not None:
        through = through + gates["o"] * jnp.broadcast_to(params.peephole[-1], through.shape)
    return states.c + only(mask, through)


def _by_step(rule: Rule, inputs: Inputs, tape: Tape, delta: PyTree) -> Params:
    """Each step's part of ∂L/∂θ."""

    def one(now: Any) -> Params:
        x, tape, delta = jax.tree.map(lambda leaf: leaf[None], now)
        return rule.accumulate(inputs.params, x, tape, delta)[0]

    found = jax.lax.map(one, (inputs.xs, tape, delta))
    return jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), found, inputs.params)


# ---- the layers of a network


def _of_network(
    net: Network, params: Params, xs: Any, loss: Callable, states: Any, given: Given, keep: bool
) -> BackwardPass:
    xs = check_inputs(WHERE, xs)
    reverse = _checks.boolean(WHERE, "reverse", given.reverse)
    trees = {"params": params, "state": states, "reset_state": given.reset_state}
    for name, tree in trees.items():
        if tree is not None:
            check_layers(WHERE, name, tree, net.layers)
    none = tuple(from_directions([None] * len(ways)) for ways in walk(net.layers))
    if reverse and any(len(ways) == 2 for ways in walk(net.layers)):
        raise ValueError(
            f"{WHERE}: reverse expected False for a bidirectional network, which reads both ways; got True"
        )

    def run(way: Direction, xs: Any) -> tuple[_Run, Array]:
        own, state, reset = way.parts
        found = _run(way.cell, own, xs, state, given._replace(reset_state=reset, reverse=reverse or way.reverse))
        return found, found.ys

    layers, ys = run_layers(net, run, xs, *(none if tree is None else tree for tree in trees.values()))
    finals = tuple(from_directions([each.final for each in runs]) for runs in layers)
    value, (dfinals, dys) = jax.value_and_grad(scalar(WHERE, loss), (0, 1))(finals, ys)
    of_final, found = [[way.parts[0] for way in ways] for ways in walk(net.layers, dfinals)], []
    for k in range(len(layers) - 1, -1, -1):
        parts = unmerged(net.merge, [each.ys for each in layers[k]], dys)
        backs = [
            _back(each, value, dfinal, part, keep)
            for each, dfinal, part in zip(layers[k], of_final[k], parts, strict=True)
        ]
        found.insert(0, [from_directions(values) for values in zip(*backs, strict=True)])
        errors = [back.inputs.astype(dys.dtype) for back in backs] + ([dys] if net.residual and k else [])
        dys = functools.reduce(jnp.add, errors)
    _, *fields = (tuple(values) for values in zip(*found, strict=True))
    return BackwardPass(value, *fields)  # pyright: ignore[reportArgumentType]
