"""Claims about gradients, each with the measured number that decides it, from a record alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.command.claims import Claim, share

SIMPLE = ("rnn-sigmoid", "rnn", "rnn-uniform", "relu", "irnn")  # whose Jacobian is W_h times a slope of at most 1
ROUNDING = 2e-4  # of numbers kept with four digits
STEEP = -0.05  # a slope that leaves less than 1e-10 after 500 steps
NEAR_ZERO = 0.1  # beside a diag(f) of at most 1
WAYS = ("norm", "value", "each step")  # of clipping
BEFORE, AFTER = "at initialisation", "trained"

Record = Mapping[str, Any]


def mean(values: Any) -> float:
    """Over seeds; NaN where there is nothing."""
    numbers = [value for value in (values or []) if value is not None and np.isfinite(value)]
    return float(np.mean(numbers)) if numbers else float("nan")


def claims(record: Record) -> list[Claim]:
    """All that the record can decide."""
    flows, gain = record["flows"], record["gain"]
    return [
        *_bound(flows),
        *_scan(gain),
        *_damped(gain),
        *_large(gain["large"]),
        *_powers(record["powers"]),
        _exponents(flows),
        _near_steps(flows),
        *_highway(flows),
        *_stored(flows),
        *_sigmoid(flows),
        *_biases(flows),
        *_clipping(record["clipping"]),
    ]


def seeds_of(flows: Sequence[Record]) -> int:
    return len(flows[0]["error"])


def _bound(flows: Sequence[Record]) -> list[Claim]:
    simple = [flow for flow in flows if flow["cell"] in SIMPLE]
    if not simple:
        return []
    excess = max(
        growth - bound
        for flow in simple
        for growth, bound in zip(
            flow["measured"]["largest_growth_in_a_step"], flow["predicted"]["log_largest_singular_value"], strict=True
        )
        if growth is not None  # no gradient that is not zero
    )
    text = f"largest growth of a step less log σ_max: {excess:+.4f} at most"
    claim = "no step of a simple network lets the gradient grow by more than σ_max of `W_h`"
    return [Claim(claim, "documents, S3; Pascanu 2013", excess < ROUNDING, text, seeds_of(flows))]


def slopes_of(gain: Record, activation: str, matrix: str) -> np.ndarray:
    """(gains, seeds)"""
    found = next(s for s in gain["slopes"] if (s["activation"], s["matrix"]) == (activation, matrix))
    return np.array(found["by_gain_and_seed"], float)


def _scan(gain: Record) -> list[Claim]:
    logs = np.log(gain["gains"])
    scans = [(s["activation"], s["matrix"], np.array(s["by_gain_and_seed"], float)) for s in gain["slopes"]]
    seeds = scans[0][2].shape[1]
    below = max(float(slopes[logs < -ROUNDING].max()) for _, _, slopes in scans)
    linear = max(
        np.nanmax(
            np.abs(slopes_of(gain, "linear", kind) - logs[:, None] - np.array(gain["log_radius_at_gain_1"][kind]))
        )
        for kind in gain["log_radius_at_gain_1"]
    )
    above = [(name, kind, slopes[logs > ROUNDING]) for name, kind, slopes in scans]
    orthogonal = {name: np.mean(slopes > 0) for name, kind, slopes in above if kind == "orthogonal"}
    gaussian = {name: np.mean(slopes > 0) for name, kind, slopes in above if kind == "Gaussian"}
    shares = lambda found: ", ".join(f"{name} {100 * value:.0f} %" for name, value in found.items())  # noqa: E731
    return [
        Claim(
            "σ_max < 1: the gradient must vanish",
            "documents, S3; Pascanu 2013",
            below < 0,
            f"slopes of all scanned networks: {below:+.3f} at most",
            seeds,
        ),
        Claim(
            "the gradient of a linear network grows by the spectral radius ρ per step, whatever σ_max",
            "Pascanu 2013",
            bool(linear < 0.05) or None,
            f"slope less log ρ: {linear:.3f} at most",
            seeds,
        ),
        Claim(
            "σ_max > 1: the gradient explodes (orthogonal `W_h`, ρ = σ_max)",
            "documents, S3",
            _all_or_some(orthogonal),
            f"scanned networks above 1 that explode: {shares(orthogonal)}",
            seeds,
        ),
        Claim(
            "σ_max > 1: the gradient explodes (Gaussian `W_h`, ρ near σ_max / 2)",
            "documents, S3",
            _all_or_some(gaussian),
            f"scanned networks above 1 that explode: {shares(gaussian)}",
            seeds,
        ),
    ]


def _all_or_some(shares: Mapping[str, Any]) -> bool | None:
    values = list(shares.values())
    if min(values) == 1:
        return True
    return None if max(values) > 0 else False


def _damped(gain: Record) -> list[Claim]:
    """tanh beside the linear network, on the same matrices and draws."""
    excess = max(
        float(np.max(slopes_of(gain, "tanh", kind) - slopes_of(gain, "linear", kind)))
        for kind in gain["log_radius_at_gain_1"]
    )
    text = f"slope of tanh less that of the linear network on the same `W_h`: {excess:+.3f} at most"
    seeds = slopes_of(gain, "tanh", "orthogonal").shape[1]
    return [Claim("tanh' ≤ 1 damps explosion and speeds vanishing", "documents, S0", excess < 0, text, seeds)]


def _large(large: Record) -> list[Claim]:
    """Of the tanh network on an orthogonal matrix times gains up to 256."""
    gains = np.array(large["gains"])
    norms, median, slopes, growth = (
        np.array(large[name], float) for name in ("largest_norm", "median_norm", "slopes", "largest_growth")
    )
    seeds, last = slopes.shape[1], f"{gains[-1]:g}"
    reached = bool(np.all(np.abs(norms - np.log(gains)[:, None]) < 0.02))
    peak = int(np.argmax(slopes.mean(1)))
    text = (
        f"gains to {last}: the largest norm of a step is {np.exp(norms - np.log(gains)[:, None]).min():.2f} σ_max or "
        f"more in every seed; at {last} the gradient grew by a factor of up to {np.exp(growth[-1].max()):.0f} in a step"
    )
    falls = bool(np.all(slopes[-1] < slopes[peak]))
    rate = (
        f"mean slopes at gains {', '.join(f'{value:g}' for value in gains)}: "
        f"{', '.join(f'{value:+.2f}' for value in slopes.mean(1))}; the largest is {slopes[peak].mean():+.2f} "
        f"({slopes[peak].min():+.2f} to {slopes[peak].max():+.2f}) at {gains[peak]:g}. The median step's norm is "
        f"{np.exp(median.mean(1).max()):.0f} at most, and {np.exp(median[-1].mean()):.2f} at {last}"
    )
    return [
        Claim(
            "`(1 - tanh²) W` is bounded whatever `W`: the norm of every step's Jacobian",
            "documents, S0",
            False if reached else None,
            text,
            seeds,
        ),
        Claim(
            "`(1 - tanh²) W` is bounded whatever `W`: the growth over many steps, orthogonal `W_h`",
            "documents, S0",
            falls,
            rate,
            seeds,
        ),
    ]


def _powers(powers: Record) -> list[Claim]:
    sigma = float(np.log(powers["largest_singular_value"]))
    by = {one["kind"]: one for one in powers["matrices"]}
    last = powers["powers"][-1]
    rates = {kind: np.array(one["log_norm_over_t"], float) for kind, one in by.items()}
    errors = {kind: np.array(one["error_of_the_sum"], float) for kind, one in by.items()}
    off = {kind: float(np.abs(values - sigma).max()) for kind, values in rates.items()}
    wrong = {kind: float(values.max()) for kind, values in errors.items()}
    seeds = rates["Gaussian"].shape[1]
    gaussian = rates["Gaussian"][-1]
    follows = [kind for kind, value in off.items() if value < 1e-3]
    exact = [kind for kind, value in wrong.items() if value < 1e-6]
    source = "documents, S3"
    return [
        Claim(
            "σ_max(W^t) = σ_max(W)^t",
            source,
            share(len(follows), len(by)),
            f"log σ_max(W^{last})/{last} at log σ_max = {sigma:.3f}: symmetric and other normal `W` {sigma:.3f} "
            f"(off by {max(off['symmetric'], off['rotations']):.3f} at most); Gaussian `W`, which is not normal, "
            f"{gaussian.mean():+.3f} ({gaussian.min():+.3f} to {gaussian.max():+.3f}), near log ρ = "
            f"{mean(by['Gaussian']['log_radius']):+.3f}",
            seeds,
        ),
        Claim(
            "W^t = Σ σᵢ^t uᵢ vᵢᵀ",
            source,
            share(len(exact), len(by)),
            f"largest error relative to W^t, t to {last}: symmetric positive definite {wrong['symmetric']:.0e}, normal "
            f"but not symmetric {wrong['rotations']:.1f}, Gaussian {wrong['Gaussian']:.0e}",
            seeds,
        ),
    ]


def _exponents(flows: Sequence[Record]) -> Claim:
    claim, source = "the slope is the largest Lyapunov exponent", "theory of dynamical systems"
    found = [
        (abs(mean(flow["measured"]["slope_h"]) - mean(flow["measured"]["lyapunov"])), flow["label"], flow["stage"])
        for flow in flows
    ]
    found = [one for one in found if np.isfinite(one[0])]
    if not found:
        return Claim(claim, source, None, "nothing finite to compare", seeds_of(flows))
    typical, (worst, label, stage) = float(np.median([one[0] for one in found])), max(found)
    text = f"difference: {typical:.4f} (median), {worst:.4f} at most ({label}, {stage})"
    return Claim(claim, source, worst < 0.02 or None, text, seeds_of(flows))


def _near_steps(flows: Sequence[Record]) -> Claim:
    claim = "where ∂L/∂h_1 vanishes, the gradient of `W_h` does not, but comes from near steps"
    source = "documents, S0 and S4"
    steep = [flow for flow in flows if flow["stage"] == BEFORE and mean(flow["measured"]["slope_h"]) < STEEP]
    if not steep:
        return Claim(claim, source, None, "no network whose gradient vanishes", seeds_of(flows))
    norms = [mean(flow["weight_gradient"]["log10_norm"]) for flow in steep]
    shares = [100 * mean(flow["weight_gradient"]["share_of_last_tenth"]) for flow in steep]
    far = max(mean(flow["measured"]["log10_first_over_last"]) for flow in steep)
    text = (
        f"{len(steep)} networks before training: ∂L/∂h_1 at most 1e{far:.0f} of ∂L/∂h_T, ‖∂L/∂W_h‖ at least "
        f"1e{min(norms):.1f}; from the last tenth of the steps {min(shares):.1f} to {max(shares):.1f} %"
    )
    return Claim(claim, source, min(shares) > 90, text, seeds_of(flows))


def _highway(flows: Sequence[Record]) -> list[Claim]:
    """Of all LSTMs, before and after training."""
    lstms = [flow for flow in flows if flow["cell_state_terms"] is not None]
    if not lstms:
        return []
    others = [max(size[0] for term, size in flow["cell_state_terms"].items() if term != "highway") for flow in lstms]
    small = sum(size < NEAR_ZERO for size in others)
    gains = [mean(flow["measured"]["slope_c"]) - mean(flow["predicted"]["log_keep_best_unit"]) for flow in lstms]
    as_good = sum(gain > -0.005 for gain in gains)
    return [
        Claim(
            "the three other terms of ∂c_t/∂c_(t-1) are near zero beside diag(f)",
            "documents, S0",
            share(small, len(lstms)),
            f"the largest has a spectral norm of {min(others):.2f} to {max(others):.2f}; "
            f"below {NEAR_ZERO} in {small} of {len(lstms)} (every LSTM before and after training)",
            seeds_of(flows),
        ),
        Claim(
            "one open path is enough: ∂L/∂c_t fades no faster than the best unit's f",
            "documents, S4",
            share(as_good, len(lstms)),
            f"slope less log f of that unit: {min(gains):+.3f} to {max(gains):+.3f}; so in {as_good} of {len(lstms)}",
            seeds_of(flows),
        ),
    ]


def _stored(flows: Sequence[Record]) -> list[Claim]:
    """Of trained networks that answer rightly after all steps."""
    right = [flow for flow in flows if flow["stage"] == AFTER and mean(flow["error"]) < 0.01]
    if not right:
        return []
    slopes = {flow["label"]: mean(flow["measured"]["slope_h"]) for flow in right}
    keeping = {label: slope for label, slope in slopes.items() if slope > -0.005}
    listed = lambda found: ", ".join(f"{label} {slope:+.3f}" for label, slope in found.items())  # noqa: E731
    vanishing = {label: slope for label, slope in slopes.items() if label not in keeping}
    text = f"slopes of trained networks with less than 1 % wrong: vanishing {listed(vanishing)}"
    text += f"; not vanishing {listed(keeping)}" if keeping else ""
    claim = "a network that stores robustly has vanishing gradients"
    return [Claim(claim, "Bengio, Simard & Frasconi 1994", share(len(vanishing), len(slopes)), text, seeds_of(flows))]


def _by_cell(flows: Sequence[Record], stage: str) -> dict[str, Record]:
    return {flow["cell"]: flow for flow in flows if flow["stage"] == stage}


def _sigmoid(flows: Sequence[Record]) -> list[Claim]:
    before, after = _by_cell(flows, BEFORE), _by_cell(flows, AFTER)
    if not {"rnn", "rnn-sigmoid"} <= set(before):
        return []
    slopes = {cell: np.array(before[cell]["measured"]["slope_h"], float) for cell in ("rnn", "rnn-sigmoid")}
    wrong = {cell: 100 * mean(after[cell]["error"]) for cell in slopes}
    text = (
        f"slope before training {slopes['rnn-sigmoid'].mean():.2f} with σ, {slopes['rnn'].mean():.2f} with tanh; "
        f"wrong after it {wrong['rnn-sigmoid']:.0f} % and {wrong['rnn']:.0f} %"
    )
    holds = bool(slopes["rnn-sigmoid"].max() < slopes["rnn"].min()) and wrong["rnn-sigmoid"] >= wrong["rnn"]
    return [Claim("tanh rather than σ: its gradient fades less", "documents, S3", holds, text, seeds_of(flows))]


def _biases(flows: Sequence[Record]) -> list[Claim]:
    before, after = _by_cell(flows, BEFORE), _by_cell(flows, AFTER)
    biased = {"lstm-b0": "none", "lstm": "forget", "lstm-o1": "output", "lstm-f1-o1": "both"}
    if not set(biased) <= set(before):
        return []
    slopes = {cell: np.array(before[cell]["measured"]["slope_h"], float) for cell in biased}
    trained = {cell: mean(after[cell]["measured"]["slope_h"]) for cell in biased}
    text = "slope before (after) training: " + ", ".join(
        f"{label} {slopes[cell].mean():.3f} ({trained[cell]:.3f})" for cell, label in biased.items()
    )
    helped = [
        (one, other, bool(slopes[one].min() > slopes[other].max()))
        for one, other in (("lstm", "lstm-b0"), ("lstm-o1", "lstm-b0"), ("lstm-f1-o1", "lstm"))
    ]
    forget, *output = (helps for _, _, helps in helped)
    return [
        Claim(
            "a forget bias of 1 lets the gradient fade less",
            "Gers 2000; Jozefowicz 2015",
            forget,
            text,
            seeds_of(flows),
        ),
        Claim(
            "an output bias of 1 lets the gradient fade less",
            "documents, S2",
            share(sum(output), len(output)),
            text,
            seeds_of(flows),
        ),
    ]


class Trainings(NamedTuple):
    """Gradient descent by case, change of the gradient and θ: means over seeds."""

    losses: dict[Any, float]
    wrong: dict[Any, float]  # %

    def words(self, case: str, changes: Sequence[str]) -> str:
        """The results at a θ of 1."""
        keys = {change: (case, change, None if change == "none" else 1.0) for change in changes}
        return "; ".join(
            f"{change}: loss {self.losses[k]:.3f}, {self.wrong[k]:.0f} % wrong" for change, k in keys.items()
        )

    def exploding(self, change: str) -> dict[float, float]:
        """The wrong answers by θ."""
        found = {key[2]: value for key, value in self.wrong.items() if key[:2] == ("exploding", change)}
        return dict(sorted(found.items()))


def _clipping(clipping: Record) -> list[Claim]:
    by = {(run["case"], run["change"], run["threshold"]): run for run in clipping["training"]}
    found = Trainings(
        {key: mean(run["loss"]) for key, run in by.items()}, {key: 100 * mean(run["error"]) for key, run in by.items()}
    )
    seeds = len(clipping["training"][0]["error"])
    return [_wall(clipping["wall"]), *_clipped(found, seeds), *_raised(found, seeds)]


def _wall(wall: Record) -> Claim:
    flung = wall["flung_off"]
    thrown = ", ".join(f"{change} {100 * part:.0f} %" for change, part in flung.items())
    return Claim(
        "clipping keeps descent at the wall of the loss",
        "Pascanu 2013",
        all(flung[change] < flung["none"] for change in WAYS),
        f"starts on a grid that are thrown far away: {thrown}",
        0,
    )


def _clipped(found: Trainings, seeds: int) -> list[Claim]:
    values = found.exploding("value")
    same = values[1.0] <= found.exploding("norm")[1.0] + 1
    sweep = "; ".join(
        f"{change}: " + ", ".join(f"{wrong:.0f} at {at:g}" for at, wrong in found.exploding(change).items())
        for change in WAYS
    )
    vanishing = {change: found.wrong["vanishing", change, 1.0] for change in WAYS}
    stays = [abs(wrong - found.wrong["vanishing", "none", None]) < 10 for wrong in vanishing.values()]
    return [
        Claim(
            "clipping by norm cures explosion",
            "documents, S2; Pascanu 2013",
            bool(found.losses["exploding", "norm", 1.0] < 0.5 * found.losses["exploding", "none", None]),
            found.words("exploding", ("none", "norm")),
            seeds,
        ),
        Claim(
            "clipping by value at θ serves as well as by norm at the same θ",
            "documents, S2; Mikolov 2012",
            True if same else None if min(values.values()) < 1 else False,
            f"% wrong, exploding network, by θ: {sweep}",
            seeds,
        ),
        Claim(
            "clipping does not cure vanishing",
            "documents, S2; Pascanu 2013",
            all(stays) and vanishing["norm"] > 50,
            found.words("vanishing", ("none", *WAYS)),
            seeds,
        ),
    ]


def _raised(found: Trainings, seeds: int) -> list[Claim]:
    return [
        Claim(
            "raising small gradients (to norm 1) does not cure vanishing",
            "documents, S2",
            found.wrong["vanishing", "raised", 1.0] > 50,
            found.words("vanishing", ("none", "raised")),
            seeds,
        ),
        Claim(
            "raising small gradients harms what clipping alone learns (gradient descent)",
            "documents, S2",
            found.exploding("raised")[1.0] > found.exploding("norm")[1.0] + 1,
            found.words("exploding", ("norm", "raised")),
            seeds,
        ),
    ]
