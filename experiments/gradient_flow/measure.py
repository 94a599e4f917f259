"""What `gradient_flow` measures of one network: norms by step, shares by step, spectrum, highway.

All in natural logarithms and float64. The loss reads the last step alone, so that the norm of
∂L/∂h_t, followed back from T, grows by nothing but the transposed Jacobians.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.gradient_flow.task import balanced_labels, sequences
from experiments.models.readout import Readout, read
from jaxrnn import analysis

KEEPS = {"f", "z"}  # the gates that say what is kept
READS = ("h", "g", "n")  # the candidate's block of W_h, which stands for it where there are gates
TERMS = analysis.CellStateTerms._fields


class Flow(NamedTuple):
    """One network, on one batch."""

    log_h: np.ndarray  # (T, B), log ‖∂L/∂h_t‖
    log_c: np.ndarray | None  # (T, B), of an LSTM
    slope: float  # growth a step on the way back, over all steps; the median over sequences
    slope_c: float | None
    largest_growth: float  # in one step of one sequence
    lyapunov: float  # the median over sequences
    log_weight_gradient: float  # log ‖∂L/∂W_h‖
    last_tenth: float  # share of Σ_t ‖δW_t‖ that comes from the last tenth of the steps
    without_last_tenth: float  # ‖Σ of δW_t over the other steps‖ / ‖∂L/∂W_h‖
    nine_tenths_in: int  # the last steps that hold nine tenths of Σ_t ‖δW_t‖
    spectrum: dict[str, tuple[float, float]]  # by gate: log σ_max, log ρ
    keep: tuple[float, float] | None  # log of the gate that keeps: mean, and the mean of the best unit
    terms: dict[str, tuple[float, float]] | None  # of ∂c_t/∂c_{t-1}: mean spectral norm, root mean square of a column


def slope(logs: np.ndarray) -> float:
    """Of the straight line through each column's finite entries, the growth per step from the last to the first.

    The median over the columns; NaN if none has two finite entries.
    """
    steps = np.arange(len(logs))
    found = []
    for column in logs.T:
        finite = np.isfinite(column)
        if finite.sum() > 1:
            found.append(-np.polyfit(steps[finite], column[finite], 1)[0])
    return float(np.median(found)) if found else float("nan")


def largest_growth(logs: np.ndarray) -> float:
    """The largest log ‖δ_t‖ - log ‖δ_{t+1}‖; steps where the gradient is zero do not count."""
    with np.errstate(invalid="ignore"):
        growth = logs[:-1] - logs[1:]
    return float(np.max(growth, where=np.isfinite(growth), initial=-np.inf))


def shares(log_norms: np.ndarray) -> tuple[float, int]:
    """Of the norms by step `(T,)`: the share of the last tenth in their sum, and how many of the last hold 90 %."""
    weights = np.exp(log_norms - log_norms.max())
    total = weights.sum()
    last = -(-len(weights) // 10)
    held = np.cumsum(weights[::-1]) / total
    return float(weights[-last:].sum() / total), int(np.argmax(held >= 0.9 - 1e-12)) + 1


def rest_of_gradient(contributions: np.ndarray) -> tuple[float, float]:
    """Of `(T, ·)` contributions: log ‖their sum‖, and the norm without the last tenth as a share of it."""
    last = -(-len(contributions) // 10)
    whole, rest = contributions.sum(0), contributions[:-last].sum(0)
    largest = np.abs(whole).max()
    norm = np.linalg.norm(whole / largest)
    return float(np.log(largest) + np.log(norm)), float(np.linalg.norm(rest / largest) / norm)


def spectrum_of(params: Any) -> dict[str, tuple[float, float]]:
    with np.errstate(divide="ignore"):
        return {
            gate: (float(np.log(of.singular_values[0])), float(np.log(np.abs(of.eigenvalues[0]))))
            for gate, of in analysis.recurrent_spectrum(params).items()
        }


def candidate(spectrum: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The block that h_{t-1} is read through into the candidate, or into h itself."""
    return next(spectrum[gate] for gate in READS if gate in spectrum)


def kept(cell: jaxrnn.Cell, params: Any, xs: jax.Array) -> tuple[float, float] | None:
    """The mean of log f or log z over steps, sequences and units, and of the unit that keeps best."""
    try:
        gates = analysis.gate_values(cell, params, xs)
    except NotImplementedError:  # a network without gates
        return None
    logs = np.log(np.asarray(next(gates[name] for name in gates if name in KEEPS)))
    return float(logs.mean()), float(logs.mean((0, 1)).max())


def sizes(term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The spectral norm, and the root mean square of the columns' lengths."""
    return jnp.linalg.norm(term, 2), jnp.linalg.norm(term) / jnp.sqrt(jnp.asarray(len(term), term.dtype))


def term_sizes(cell: jaxrnn.Cell, params: Any, xs: jax.Array) -> dict[str, tuple[float, float]]:
    """The mean over the steps of one sequence."""
    terms = analysis.cell_state_jacobian_terms(cell, params, xs[:, 0], reduce=sizes)
    return {
        name: (float(jnp.mean(spectral)), float(jnp.mean(rms)))
        for name, (spectral, rms) in zip(TERMS, terms, strict=True)
    }


def measure(cell: jaxrnn.Cell, model: Readout, length: int, batch_size: int, seed: int) -> Flow:
    """Measures one model, on sequences of T steps that its seed draws."""
    with jax.enable_x64(True):
        labels = balanced_labels(batch_size)
        xs = sequences(jax.random.fold_in(jax.random.key(seed), 1), labels, length)
        return _measure(cell, jax.tree.map(jnp.asarray, model), jnp.swapaxes(xs, 0, 1), labels)


def _measure(cell: jaxrnn.Cell, model: Readout, xs: jax.Array, labels: jax.Array) -> Flow:
    """Measures one model on sequences `(T, B, I)`."""

    def loss(final: Any, ys: jax.Array) -> jax.Array:
        return jaxrnn.readout_loss(read(model, ys[-1]), labels).mean()

    params = model.cell
    flow = analysis.gradient_flow(cell, params, xs, loss, contributions=True)
    norms: Any = flow.log_state_norms
    memory = isinstance(norms, jaxrnn.LSTMState)
    log_h = np.asarray(norms.h if memory else norms)
    log_c = np.asarray(norms.c) if memory else None
    assert flow.contributions is not None
    log_gradient, rest = rest_of_gradient(np.asarray(flow.contributions.w_h))
    last_tenth, held_in = shares(np.asarray(flow.log_weight_norms.w_h))
    exponents = analysis.lyapunov_exponents(cell, params, xs, count=1, discard=len(xs) // 5).exponents
    return Flow(
        log_h=log_h,
        log_c=log_c,
        slope=slope(log_h),
        slope_c=None if log_c is None else slope(log_c),
        largest_growth=largest_growth(log_h),
        lyapunov=float(np.median(np.asarray(exponents))),
        log_weight_gradient=log_gradient,
        last_tenth=last_tenth,
        without_last_tenth=rest,
        nine_tenths_in=held_in,
        spectrum=spectrum_of(params),
        keep=kept(cell, params, xs),
        terms=None if log_c is None else term_sizes(cell, params, xs),
    )
