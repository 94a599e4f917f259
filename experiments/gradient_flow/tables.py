"""The tables of `gradient_flow`: prediction and measurement side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command.claims import HEADINGS, Claim
from experiments.gradient_flow.claims import claims, mean

Record = Mapping[str, Any]
WHEN = {"at initialisation": "before", "trained": "trained"}


def print_tables(length: int, record: Record) -> None:
    console = Console(width=160)
    console.print(flow_table(length, record["flows"]))
    if any(flow["cell_state_terms"] for flow in record["flows"]):
        console.print(highway_table(record["flows"]))
    console.print(gain_table(record["gain"]))
    console.print(claim_table(claims(record)))


def spread(values: Any, digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; a dash where there is nothing, -∞ where a gradient is zero."""
    numbers = np.array([value for value in (values or []) if value is not None], float)
    if np.isneginf(numbers).any():
        return "-∞"
    if not len(numbers) or not np.isfinite(numbers).all():
        return "–"
    text = f"{numbers.mean():.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ± {numbers.std(ddof=1):.{digits}f}"


def flow_table(length: int, flows: Sequence[Record]) -> Table:
    seeds = len(flows[0]["error"])
    table = Table(title=f"‖∂L/∂h_t‖ back through {length} steps, natural logs per step, mean ± std of {seeds} seeds")
    for heading in ("cell", "when"):
        table.add_column(heading)
    for heading in (
        "log σ_max",
        "log ρ",
        "log keep, mean (best unit)",
        "slope",
        "Lyapunov exponent",
        "log10 first / last",
        "last tenth, %",
        "log10 ‖∂L/∂W_h‖",
        "error, %",
    ):
        table.add_column(heading, justify="right")
    for flow in flows:
        predicted, measured, weights = flow["predicted"], flow["measured"], flow["weight_gradient"]
        keep = "–"
        if predicted["log_keep_mean"] is not None:
            keep = f"{mean(predicted['log_keep_mean']):.3f} ({mean(predicted['log_keep_best_unit']):.3f})"
        table.add_row(
            flow["label"],
            WHEN[flow["stage"]],
            f"{mean(predicted['log_largest_singular_value']):.2f}",
            f"{mean(predicted['log_spectral_radius']):.2f}",
            keep,
            spread(measured["slope_h"]),
            spread(measured["lyapunov"]),
            f"{mean(measured['log10_first_over_last']):.1f}",
            f"{100 * mean(weights['share_of_last_tenth']):.1f}",
            f"{mean(weights['log10_norm']):.1f}",
            f"{100 * mean(flow['error']):.1f}",
        )
    return table


def highway_table(flows: Sequence[Record]) -> Table:
    """LSTMs alone."""
    table = Table(title="∂c_t/∂c_(t-1), mean spectral norms over steps and seeds (root mean square of the columns)")
    for heading in ("cell", "when"):
        table.add_column(heading)
    for heading in ("diag(f)", "through f", "through i", "through g", "slope of ‖∂L/∂c_t‖", "log f, best unit"):
        table.add_column(heading, justify="right")
    for flow in flows:
        if flow["cell_state_terms"] is None:
            continue
        terms = [f"{spectral:.2f} ({rms:.2f})" for spectral, rms in flow["cell_state_terms"].values()]
        slope, best = flow["measured"]["slope_c"], flow["predicted"]["log_keep_best_unit"]
        table.add_row(flow["label"], WHEN[flow["stage"]], *terms, spread(slope, 4), spread(best, 4))
    return table


def gain_table(gain: Record) -> Table:
    """Every fourth gain, or all where there are few."""
    table = Table(title="Slope of log ‖∂L/∂h_t‖ per step, by the gain of W_h (σ_max), mean over seeds")
    for heading in ("σ_max", "log σ_max"):
        table.add_column(heading, justify="right")
    for scan in gain["slopes"]:
        table.add_column(f"{scan['activation']}, {scan['matrix']}", justify="right")
    count = len(gain["gains"])
    for k in range(0, count, max(1, (count - 1) // 6)):
        values = [f"{mean(scan['by_gain_and_seed'][k]):+.3f}" for scan in gain["slopes"]]
        table.add_row(f"{gain['gains'][k]:.2f}", f"{np.log(gain['gains'][k]):+.3f}", *values)
    radius = {kind: mean(values) for kind, values in gain["log_radius_at_gain_1"].items()}
    table.caption = "log ρ is log σ_max " + ", ".join(f"{value:+.3f} ({kind})" for kind, value in radius.items())
    return table


def claim_table(found: Sequence[Claim]) -> Table:
    table = Table(title="What is claimed, and what came out")
    for heading in HEADINGS:
        table.add_column(heading)
    for one in found:
        table.add_row(one.claim, one.source, one.verdict, one.measured, str(one.seeds))
    return table
