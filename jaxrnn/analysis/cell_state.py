"""The Jacobian of an LSTM's memory, ∂c_t/∂c_{t-1}, split into four terms.

With h_{t-1} = o_{t-1} ⊙ tanh(c_{t-1}), the output gate o_{t-1} held fixed, the gates of step t are
functions of c_{t-1} alone, and c_t = f ⊙ c_{t-1} + i ⊙ g gives

    ∂c_t/∂c_{t-1} = diag(f) + diag(c_{t-1}) ∂f/∂c_{t-1} + diag(g) ∂i/∂c_{t-1} + diag(i) ∂g/∂c_{t-1}

In the plain LSTM, with J = o_{t-1} ⊙ (1 - tanh²(c_{t-1})) and W_h of each gate,

    ∂f/∂c_{t-1} = diag(f(1-f)) W_hfᵀ diag(J)    ∂i/∂c_{t-1} = diag(i(1-i)) W_hiᵀ diag(J)
    ∂g/∂c_{t-1} = diag(1-g²) W_hgᵀ diag(J)

The derivatives of the gates are those of the cell's own rule, in every variant: a projection
stands between J and W_h, peepholes add their diagonal to f and i, coupled gates have ∂i = -∂f,
and layer normalisation adds its own derivative.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Params, PyTree, Rule, State
from jaxrnn.analysis._families import Values, gates_of_params, has_own_equations, own_residual
from jaxrnn.analysis._trajectory import Steps, batched, check_reduce, per_sequence, trajectory
from jaxrnn.cells import LSTMParams, LSTMState
from jaxrnn.cells._activation import phis_of
from jaxrnn.cells.lstm import hidden
from jaxrnn.sequence.masking import select


class CellStateTerms(NamedTuple):
    """The terms of ∂c_t/∂c_{t-1}, each `(T - 1, *B, H, H)` unless reduced."""

    highway: PyTree  # diag(f)
    forget: PyTree  # through f
    input: PyTree  # through i
    candidate: PyTree  # through g


def cell_state_jacobian_terms(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    reduce: Callable[[Array], PyTree] | None = None,
) -> CellStateTerms:
    """The four terms of ∂c_t/∂c_{t-1} of an LSTM: the highway, and the paths through f, i and g.

    highway   diag(f)                         forget     diag(c_{t-1}) ∂f/∂c_{t-1}
    input     diag(g) ∂i/∂c_{t-1}             candidate  diag(i) ∂g/∂c_{t-1}

    along h_{t-1} = o_{t-1} ⊙ tanh(c_{t-1}) with o_{t-1} held fixed. Their sum is the derivative of
    c_t by c_{t-1} along that path. Entry [i, j] is the derivative of c_t's entry i by c_{t-1}'s
    entry j. The first step has no o before it, so there are T - 1 terms, or none where T is 0:
    entry t is the derivative of the memory after step t + 1 by that after step t.

    Variants: with a projection the path goes through W_p. Peepholes of f and i belong to those
    terms; that of o is held fixed with o. With coupled gates the input term is that of 1 - f.
    With layer normalisation the path includes the normalisation of c and of h W_h.

    The result holds 4 T B H² numbers and costs H forward derivatives of every step, O(T B G H³).
    Where that does not fit, `reduce` each term as it is computed: O(B G H²), one step at a time.

    Args:
        cell: an LSTM, in any variant, ablated or not.
        params, xs, state: as for :func:`state_jacobians`.
        lengths: `(*B,)` integers in 0..T. At a masked step the memory is held: the highway is
            the identity and the other terms are zeros.
        reduce: a pure function of one `(H, H)` term, called inside the loop, such as
            `lambda term: jnp.linalg.norm(term, 2)`.

    Returns:
        :class:`CellStateTerms`.

    Raises:
        TypeError, ValueError: for what :func:`jaxrnn.unroll` refuses.
        NotImplementedError: for a cell that is not an LSTM, and for one with zoneout, where h is
            not o ⊙ tanh(c).

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (6, 2, 3))
        >>> terms = analysis.cell_state_jacobian_terms(cell, params, xs)
        >>> terms.highway.shape
        (5, 2, 4, 4)
        >>> norms = analysis.cell_state_jacobian_terms(cell, params, xs, reduce=lambda term: jnp.linalg.norm(term, 2))
        >>> norms.forget.shape
        (5, 2)
    """
    where = "cell_state_jacobian_terms"
    check_reduce(where, reduce, "of one term")
    rule = getattr(cell, "rule", None)
    if not isinstance(params, LSTMParams) or rule is None or has_own_equations(rule):
        got = type(params).__name__ if hasattr(params, "_fields") else _checks.describe(params)
        raise NotImplementedError(
            f"{where}: cell expected an LSTM of this library with its params, "
            f"got {_checks.describe(cell)} and params {got}"
        )
    run = trajectory(where, cell, params, xs, state, lengths)
    return _terms(cell.rule, _checks.describe(cell), reduce, run.params, run.steps)


def _gates(rule: Rule, name: str, params: LSTMParams, state: LSTMState, xs: Float[Array, "*B I"]) -> Values:
    where = "cell_state_jacobian_terms"
    residual = rule.forward(params, state, rule.project(params, xs))[2]
    if own_residual(residual) is not residual:
        raise NotImplementedError(
            f"{where}: cell expected an LSTM without zoneout, got {name}; the h that zoneout mixes is not o ⊙ tanh(c)"
        )
    return gates_of_params(where, params).values(residual)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _terms(rule: Rule, name: str, reduce: Callable | None, params: LSTMParams, steps: Steps) -> CellStateTerms:
    o = _gates(rule, name, params, steps.before, steps.xs)["o"]
    phis = phis_of(rule.forward)
    assert phis is not None

    def at(now: tuple[Array, Steps]) -> CellStateTerms:
        o_before, (before, x, valid) = now

        def gates(c: Float[Array, "H"]) -> tuple[Array, Array, Array]:
            found = _gates(rule, name, params, LSTMState(hidden(phis, params, o_before, c), c), x)
            return found["f"], found["i"], found["g"]

        (f, i, g), (df, di, dg) = gates(before.c), jax.jacfwd(gates)(before.c)
        terms = CellStateTerms(jnp.diag(f), before.c[:, None] * df, g[:, None] * di, i[:, None] * dg)
        held = CellStateTerms(jnp.eye(f.shape[0], dtype=f.dtype), *(jnp.zeros_like(df),) * 3)
        terms = select(valid, terms, held)
        return terms if reduce is None else CellStateTerms(*map(reduce, terms))

    flat = per_sequence(steps)
    later = jax.tree.map(lambda leaf: leaf[1:], flat)
    made = jax.lax.map(jax.vmap(at), (o.reshape(*flat.xs.shape[:2], o.shape[-1])[:-1], later))
    return batched(made, steps)
