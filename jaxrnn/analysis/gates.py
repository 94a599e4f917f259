"""The gates of a cell over a sequence: their values, their distribution, their retention time."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, Cell, Gates, Params, Rule, State
from jaxrnn.analysis._families import Values, gates_of_cell, values_of
from jaxrnn.analysis._trajectory import Steps, factored_dtype, trajectory
from jaxrnn.sequence.masking import only

MOST_BINS = 2**16  # of a histogram with H * bins counts


class GateStatistics(NamedTuple):
    """Statistics of one gate, unit by unit, over the valid steps of all sequences."""

    mean: Float[Array, "H"]
    below: Float[Array, "H"]  # the share of values below `low`: closed
    above: Float[Array, "H"]  # the share of values above `high`: open
    histogram: Int[Array, "H bins"]  # counts in bins of equal width over [0, 1]
    retention_time: Float[Array, "H"] | None  # in steps; None for a gate that does not set what is kept


def gate_values(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
) -> Values:
    """The gates and the candidate at every step.

    LSTM i f g o (coupled: i = 1 - f), GRU r z n, MGU f n, in every variant; minGRU z n, minLSTM i f n
    with the gates divided by their sum, RG-LRU i r a, a being the coefficient of the state. sLSTM i f z o,
    with i = exp(ã_i - m_t) and f = exp(log f' + m_{t-1} - m_t): they are in units of exp(m), the larger of
    the two is 1, and f is 0 where the memory was empty. The cell's own rule computes them from the states
    of one run, for all steps in one product.

    Costs one run, and G T B H numbers.

    Args:
        cell: an LSTM, GRU, MGU, sLSTM, minGRU, minLSTM or RG-LRU, or :func:`jaxrnn.regularize` of one, with
            its noise off; or a cell of your own with a rule, that declares its :class:`jaxrnn.Gates`.
        params, xs, state, lengths, mask: as for :func:`state_jacobians`.

    Returns:
        A dictionary of `(T, *B, H)` by name; zeros at masked steps.

    Raises:
        TypeError, ValueError: for what :func:`jaxrnn.unroll` refuses.
        NotImplementedError: for a cell without gates, or a cell of your own that declares none.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> gates = analysis.gate_values(cell, params, jnp.ones((6, 2, 3)))
        >>> list(gates), gates["f"].shape
        (['i', 'f', 'g', 'o'], (6, 2, 4))
    """
    where = "gate_values"
    gates, _ = gates_of_cell(where, cell)
    run = trajectory(where, cell, params, xs, state, lengths, mask)
    values = _values(where, gates, cell.rule, run.params, run.steps)
    order = "irfzgnoa" if cell.gates is None else dict.fromkeys((*gates.blocks, *gates.gates))  # jit sorts by name
    return {name: values[name] for name in order if name in values}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _values(where: str, gates: Gates, rule: Rule, params: Params, steps: Steps) -> Values:
    residual = rule.forward(params, steps.before, rule.project(params, steps.xs))[2]
    return only(steps.mask, values_of(where, gates, residual, steps.xs.shape[:-1]))


def gate_statistics(
    cell: Cell,
    params: Params,
    xs: Float[AnyArray, "T *B I"],
    state: State | None = None,
    *,
    low: float = 0.1,
    high: float = 0.9,
    bins: int = 20,
    lengths: Int[AnyArray, "*B"] | None = None,
    mask: Bool[AnyArray, "T *B"] | None = None,
) -> dict[str, GateStatistics]:
    """How the values of every gate are distributed, and how long the memory is retained.

    The retention time is -1/⟨log f⟩, the number of steps after which 1/e of the memory is left
    if every step keeps a fraction f. It is infinite at f = 1. It belongs to the gate that sets
    what is kept: f of an LSTM or minLSTM, z of a GRU, a of an RG-LRU, f of an MGU, which keeps 1 - f,
    and z of a minGRU, which keeps 1 - z. An sLSTM has none: what a step keeps of c / n depends on n too.

    Costs one run, G T B H numbers for the gates, and `bins` passes over them.

    Args:
        cell, params, xs, state, lengths, mask: as for :func:`gate_values`.
        low, high: a gate is closed below `low` and open above `high`; 0 < low <= high < 1.
        bins: the number of bins of the histogram, at most 65536.

    Returns:
        A dictionary of :class:`GateStatistics` by the name of the gate: i f o, r z, f, z, i f, or r i a.
        The mean over units of a mean is the mean over all values. Without a valid step, means
        and shares are NaN.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`gate_values`; for thresholds out
            of order, or bins that are not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn import analysis
        >>> cell = jaxrnn.lstm(4, use_bias=False)
        >>> params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 3))
        >>> forget = analysis.gate_statistics(cell, params, jnp.ones((6, 2, 3)))["f"]
        >>> float(forget.mean[0]), float(forget.above[0]), round(float(forget.retention_time[0]), 2)
        (0.5, 0.0, 1.44)

    References:
        Karpathy, Johnson & Fei-Fei 2015, arXiv:1506.02078, section 4.3, for the fractions and the
        thresholds; Tallec & Ollivier 2018, arXiv:1804.11188, for the time scale of a gate.
    """
    where = "gate_statistics"
    gates, _ = gates_of_cell(where, cell)
    low, high = _checks.positive_float(where, "low", low), _checks.positive_float(where, "high", high)
    if not low <= high < 1:
        raise ValueError(f"{where}: low and high expected 0 < low <= high < 1, got {low} and {high}")
    bins = _checks.size(where, "bins", bins, MOST_BINS)
    run = trajectory(where, cell, params, xs, state, lengths, mask)
    values = _values(where, gates, cell.rule, run.params, run.steps)
    found = {name: _spread(low, high, bins, values[name], run.steps.mask) for name in gates.gates}
    if gates.kept is None:
        return found
    name, complement = gates.kept
    kept = 1 - values[name] if complement else values[name]
    return found | {name: found[name]._replace(retention_time=_retention_time(kept, run.steps.mask))}


def _counted(values: Float[Array, "T *B H"], mask: Array | None) -> tuple[Array, Array]:
    """Values as `(N, H)`, in a dtype in which N of them can be added, and which of them are of valid steps."""
    rows = values.reshape(-1, values.shape[-1]).astype(factored_dtype(values.dtype))
    valid = jnp.ones(rows.shape[:1], bool) if mask is None else mask.reshape(-1)
    return rows, jnp.broadcast_to(valid[:, None], rows.shape)


def _mean(rows: Float[Array, "N H"], valid: Bool[Array, "N H"]) -> Float[Array, "H"]:
    total = jnp.sum(jnp.where(valid, rows, jnp.zeros_like(rows)), 0)
    return total / jnp.sum(valid, 0).astype(rows.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _spread(low: float, high: float, bins: int, values: Float[Array, "T *B H"], mask: Array | None) -> GateStatistics:
    """All statistics but the retention time."""
    rows, valid = _counted(values, mask)
    share = lambda where: _mean(where.astype(rows.dtype), valid)  # noqa: E731
    bin_of = jnp.clip((rows * bins).astype(jnp.int32), 0, bins - 1)
    counts = jax.lax.map(
        lambda k: jnp.sum(valid & (bin_of == k), 0, dtype=jnp.int32), jnp.arange(bins, dtype=jnp.int32)
    )
    return GateStatistics(_mean(rows, valid), share(rows < low), share(rows > high), counts.T, None)


@jax.jit
def _retention_time(kept: Float[Array, "T *B H"], mask: Array | None) -> Float[Array, "H"]:
    rows, valid = _counted(kept, mask)
    return 1 / jnp.abs(_mean(jnp.log(rows), valid))  # infinite, not -infinite, where the mean is 0
