"""The tables of `gradient_flow` in experiments/README.md, from a record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.command.claims import claims_table
from experiments.command.rows import markdown
from experiments.gradient_flow.claims import AFTER, BEFORE, claims, mean, slopes_of
from experiments.gradient_flow.measure import TERMS
from experiments.gradient_flow.tables import spread

Record = Mapping[str, Any]
NAMES = {"lstm": "LSTM, forget bias 1"}
CHANGES = {"none": "as it is", "raised": "norm clipped and raised"}
KINDS = {
    "symmetric": "symmetric, positive definite",
    "rotations": "normal, not symmetric",
    "Gaussian": "Gaussian entries",
}


def tables(record: Record) -> dict[str, str]:
    """By the names of their marks."""
    return {
        "before": before(record["flows"]),
        "trained": trained(record["flows"]),
        "gains": gains(record["gain"]),
        "large": large(record["gain"]["large"]),
        "powers": powers(record["powers"]),
        "terms": terms(record["flows"]),
        "clipping": clipping(record["clipping"]),
        "claims": claims_table(claims(record)),
    }


def label(flow: Record) -> str:
    return NAMES.get(flow["cell"]) or str(flow["label"])


def finite(values: Sequence[float | None]) -> str:
    """How many seeds, where some have no finite value."""
    count = sum(value is not None for value in values)
    return "" if count == len(values) else f" ({count} seed{'s' if count > 1 else ''})"


def keep(flow: Record) -> str:
    predicted = flow["predicted"]
    if predicted["log_keep_mean"] is None:
        return ""
    return f"{mean(predicted['log_keep_mean']):.3f} ({mean(predicted['log_keep_best_unit']):.3f})"


def exponents(flow: Record) -> tuple[str, str]:
    """The slope and the Lyapunov exponent; of the seeds that have one."""
    slope, lyapunov = flow["measured"]["slope_h"], flow["measured"]["lyapunov"]
    return spread([value for value in slope if value is not None]), f"{mean(lyapunov):+.3f}{finite(lyapunov)}"


def power_of_ten(values: Sequence[float | None]) -> str:
    """Of the mean of logarithms; near 1 as a number."""
    log = mean(values)
    text = f"1e{log:.0f}" if log < -4.5 else f"{10**log:.1g}"
    return text + finite(values)


def before(flows: Sequence[Record]) -> str:
    headings = (
        "cell", "log σ_max", "log ρ", "log keep, mean (best)", "slope of ‖∂L/∂h_t‖", "Lyapunov exponent",
        "‖∂L/∂h_1‖ / ‖∂L/∂h_T‖", "from the last tenth, %",
    )  # fmt: skip
    rows = [
        (
            label(flow),
            f"{mean(flow['predicted']['log_largest_singular_value']):.2f}",
            f"{mean(flow['predicted']['log_spectral_radius']):.2f}",
            keep(flow),
            *exponents(flow),
            power_of_ten(flow["measured"]["log10_first_over_last"]),
            f"{100 * mean(flow['weight_gradient']['share_of_last_tenth']):.1f}",
        )
        for flow in flows
        if flow["stage"] == BEFORE
    ]
    return markdown(headings, rows)


def trained(flows: Sequence[Record]) -> str:
    headings = (
        "cell", "wrong, %", "log σ_max", "log ρ", "log keep, mean (best)", "slope of ‖∂L/∂h_t‖", "Lyapunov exponent"
    )  # fmt: skip
    rows = [
        (
            label(flow),
            f"{100 * mean(flow['error']):.1f}",
            f"{mean(flow['predicted']['log_largest_singular_value']):.2f}",
            f"{mean(flow['predicted']['log_spectral_radius']):.2f}",
            keep(flow),
            *exponents(flow),
        )
        for flow in flows
        if flow["stage"] == AFTER
    ]
    return markdown(headings, rows)


def gains(gain: Record) -> str:
    """Every second gain."""
    activations = list(dict.fromkeys(scan["activation"] for scan in gain["slopes"]))
    rows = []
    for k in range(0, len(gain["gains"]), 2):
        value = gain["gains"][k]
        slopes = [
            f"{slopes_of(gain, name, 'orthogonal')[k].mean():+.3f} ({slopes_of(gain, name, 'Gaussian')[k].mean():+.3f})"
            for name in activations
        ]
        rows.append((f"{value:.2f}", f"{np.log(value):+.3f}", *slopes))
    return markdown(("σ_max", "log σ_max", *activations), rows)


def large(record: Record) -> str:
    headings = (
        "σ_max", "log σ_max", "log of the largest norm of a step's ∂h_t/∂h_(t-1)", "of its median over steps",
        "largest log growth of ‖∂L/∂h_t‖ in a step", "slope of ‖∂L/∂h_t‖", "slope of each seed",
    )  # fmt: skip
    rows = [
        (
            f"{value:g}",
            f"{np.log(value):.3f}",
            *(spread(record[name][k], 2) for name in ("largest_norm", "median_norm", "largest_growth", "slopes")),
            ", ".join(f"{slope:+.2f}" for slope in record["slopes"][k]),
        )
        for k, value in enumerate(record["gains"])
    ]
    return markdown(headings, rows)


def powers(record: Record) -> str:
    rows = []
    for one in record["matrices"]:
        rates = (spread(values, 2) for values in one["log_norm_over_t"])
        rows.append((KINDS[one["kind"]], f"{mean(one['log_radius']):.2f}", *rates))
    return markdown(("`W`", "log ρ", *(f"t = {t}" for t in record["powers"])), rows)


def terms(flows: Sequence[Record]) -> str:
    """Of LSTMs, before and after training."""
    stages: dict[str, dict[str, Record]] = {}
    for flow in flows:
        if flow["cell_state_terms"] is not None:
            stages.setdefault(label(flow), {})[flow["stage"]] = flow
    rows = []
    for name, by_stage in stages.items():
        pair = by_stage[BEFORE], by_stage[AFTER]
        sizes = [" | ".join(f"{flow['cell_state_terms'][term][0]:.2f}" for flow in pair) for term in TERMS]
        slopes = " | ".join(f"{mean(flow['measured']['slope_c']):+.3f}" for flow in pair)
        rows.append((name.removeprefix("LSTM, "), *sizes, slopes))
    return markdown(("LSTM", "diag(f)", "through f", "through i", "through g", "slope of ‖∂L/∂c_t‖"), rows)


def clipping(record: Record) -> str:
    headings = ("network", "gradient", "θ", "loss", "wrong, %")
    rows = [
        (
            {"exploding": "gain 1.5: explodes", "vanishing": "gain 0.5: vanishes"}[run["case"]],
            CHANGES.get(run["change"], f"clipped, {run['change']}"),
            "" if run["threshold"] is None else f"{run['threshold']:g}",
            spread(run["loss"]),
            spread([100 * value for value in run["error"]], 0),
        )
        for run in record["training"]
    ]
    return markdown(headings, rows)
