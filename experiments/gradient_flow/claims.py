"""Claims of theory about gradients, each with the measured number that decides it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SIMPLE = ("rnn", "rnn-uniform", "relu", "irnn")  # cells whose Jacobian is W_h times a slope of at most 1
ROUNDING = 2e-4  # of numbers kept with four digits
STEEP = -0.05  # a slope that leaves less than 1e-10 after 500 steps
NEAR_ZERO = 0.1  # beside a diag(f) of at most 1

Record = Mapping[str, Any]


def mean(values: Any) -> float:
    """Over seeds; NaN where there is nothing."""
    numbers = [value for value in (values or []) if value is not None and np.isfinite(value)]
    return float(np.mean(numbers)) if numbers else float("nan")


def claims(record: Record) -> list[dict[str, Any]]:
    """Each with `claim`, `measured` in words, and whether it `holds`: True, False, or None for "in part"."""
    flows, gain = record["flows"], record["gain"]
    return [
        *_bound(flows),
        *_scan(gain),
        _exponents(flows),
        _near_steps(flows),
        *_highway(flows),
        *_clipping(record["clipping"]),
    ]


def _claim(claim: str, measured: str, holds: bool | None) -> dict[str, Any]:
    return {"claim": claim, "measured": measured, "holds": holds}


def _bound(flows: Sequence[Record]) -> list[dict[str, Any]]:
    simple = [flow for flow in flows if flow["cell"] in SIMPLE]
    if not simple:
        return []
    excess = max(
        growth - bound
        for flow in simple
        for growth, bound in zip(
            flow["measured"]["largest_growth_in_a_step"], flow["predicted"]["log_largest_singular_value"], strict=True
        )
    )
    text = f"largest growth of a step less log σ_max: {excess:+.4f} at most"
    return [_claim("no step of a simple network lets the gradient grow by more than σ_max", text, excess < ROUNDING)]


def _slopes(gain: Record, activation: str, matrix: str) -> np.ndarray:
    """(gains, seeds)"""
    found = next(s for s in gain["slopes"] if (s["activation"], s["matrix"]) == (activation, matrix))
    return np.array(found["by_gain_and_seed"], float)


def _scan(gain: Record) -> list[dict[str, Any]]:
    logs = np.log(gain["gains"])
    scans = [(s["activation"], s["matrix"], np.array(s["by_gain_and_seed"], float)) for s in gain["slopes"]]
    below = max(float(slopes[logs < -ROUNDING].max()) for _, _, slopes in scans)
    linear = max(
        np.nanmax(np.abs(_slopes(gain, "linear", kind) - logs[:, None] - np.array(gain["log_radius_at_gain_1"][kind])))
        for kind in gain["log_radius_at_gain_1"]
    )
    above = [(name, kind, slopes[logs > ROUNDING]) for name, kind, slopes in scans]
    orthogonal = {name: np.mean(slopes > 0) for name, kind, slopes in above if kind == "orthogonal"}
    normal = {name: np.mean(slopes > 0) for name, kind, slopes in above if kind == "normal"}
    share = lambda found: ", ".join(f"{name} {100 * value:.0f} %" for name, value in found.items())  # noqa: E731
    return [
        _claim(
            "σ_max < 1: the gradient must vanish", f"slopes of all scanned networks: {below:+.3f} at most", below < 0
        ),
        _claim(
            "the linear network grows by the spectral radius ρ per step",
            f"slope less log ρ: {linear:.3f} at most",
            bool(linear < 0.05) or None,
        ),
        _claim(
            "σ_max > 1: the gradient explodes (orthogonal W_h, ρ = σ_max)",
            f"scanned networks that explode: {share(orthogonal)}",
            _all_or_some(orthogonal),
        ),
        _claim(
            "σ_max > 1: the gradient explodes (normal W_h, ρ near σ_max / 2)",
            f"scanned networks that explode: {share(normal)}",
            _all_or_some(normal),
        ),
    ]


def _all_or_some(shares: Mapping[str, Any]) -> bool | None:
    values = list(shares.values())
    if min(values) == 1:
        return True
    return None if max(values) > 0 else False


def _exponents(flows: Sequence[Record]) -> dict[str, Any]:
    found = [
        (abs(mean(flow["measured"]["slope_h"]) - mean(flow["measured"]["lyapunov"])), flow["label"], flow["stage"])
        for flow in flows
    ]
    found = [one for one in found if np.isfinite(one[0])]
    if not found:
        return _claim("the slope is the largest Lyapunov exponent", "nothing finite to compare", None)
    typical, (worst, label, stage) = float(np.median([one[0] for one in found])), max(found)
    text = f"difference: {typical:.4f} (median), {worst:.4f} at most ({label}, {stage})"
    return _claim("the slope is the largest Lyapunov exponent", text, worst < 0.02 or None)


def _near_steps(flows: Sequence[Record]) -> dict[str, Any]:
    claim = "where ∂L/∂h_1 vanishes, the gradient of W_h does not, but comes from near steps"
    steep = [
        flow for flow in flows if flow["stage"] == "at initialisation" and mean(flow["measured"]["slope_h"]) < STEEP
    ]
    if not steep:
        return _claim(claim, "no network whose gradient vanishes", None)
    norms = [mean(flow["weight_gradient"]["log10_norm"]) for flow in steep]
    shares = [100 * mean(flow["weight_gradient"]["share_of_last_tenth"]) for flow in steep]
    far = max(mean(flow["measured"]["log10_first_over_last"]) for flow in steep)
    text = (
        f"{len(steep)} networks before training: ∂L/∂h_1 at most 1e{far:.0f} of ∂L/∂h_T, ‖∂L/∂W_h‖ at least "
        f"1e{min(norms):.1f}; from the last tenth of the steps {min(shares):.1f} to {max(shares):.1f} %"
    )
    return _claim(claim, text, min(shares) > 90)


def _highway(flows: Sequence[Record]) -> list[dict[str, Any]]:
    """Of all LSTMs, before and after training."""
    lstms = [flow for flow in flows if flow["cell_state_terms"] is not None]
    if not lstms:
        return []
    others = [max(size[0] for term, size in flow["cell_state_terms"].items() if term != "highway") for flow in lstms]
    small = sum(size < NEAR_ZERO for size in others)
    gains = [mean(flow["measured"]["slope_c"]) - mean(flow["predicted"]["log_keep_best_unit"]) for flow in lstms]
    as_good = sum(gain > -0.005 for gain in gains)
    return [
        _claim(
            "the three other terms of ∂c_t/∂c_(t-1) are near zero beside diag(f)",
            f"the largest has a spectral norm of {min(others):.2f} to {max(others):.2f}; "
            f"below {NEAR_ZERO} in {small} of {len(lstms)}",
            _share(small, len(lstms)),
        ),
        _claim(
            "one open path is enough: ∂L/∂c_t fades no faster than the best unit's f",
            f"slope less log f of that unit: {min(gains):+.3f} to {max(gains):+.3f}; so in {as_good} of {len(lstms)}",
            _share(as_good, len(lstms)),
        ),
    ]


def _share(count: int, total: int) -> bool | None:
    return True if count == total else None if count else False


def _clipping(clipping: Record) -> list[dict[str, Any]]:
    by = {(run["case"], run["clip"]): run for run in clipping["training"]}
    end = {key: mean(run["losses"][-1]) for key, run in by.items()}
    wrong = {key: mean(run["error"]) for key, run in by.items()}
    flung = clipping["wall"]["flung_off"]
    exploding, vanishing = (
        f"loss {end[case, 'clipped']:.3f} clipped, {end[case, 'not clipped']:.3f} not; "
        f"errors {100 * wrong[case, 'clipped']:.0f} and {100 * wrong[case, 'not clipped']:.0f} %"
        for case in ("exploding", "vanishing")
    )
    return [
        _claim(
            "clipping keeps descent at the wall",
            f"starts flung off: {100 * flung['clipped']:.0f} % clipped, {100 * flung['not clipped']:.0f} % not",
            flung["clipped"] < flung["not clipped"],
        ),
        _claim(
            "clipping cures explosion",
            exploding,
            bool(end["exploding", "clipped"] < 0.5 * end["exploding", "not clipped"]),
        ),
        _claim(
            "clipping does not cure vanishing",
            vanishing,
            bool(
                abs(wrong["vanishing", "clipped"] - wrong["vanishing", "not clipped"]) < 0.1
                and wrong["vanishing", "clipped"] > 0.5
            ),
        ),
    ]
