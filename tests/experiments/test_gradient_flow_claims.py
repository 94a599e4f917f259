"""The claims of `gradient_flow`: each is judged on both sides of its border."""

import numpy as np

from experiments.gradient_flow import claims, clipping


def flow_of(
    cell="lstm", stage="at initialisation", slope=-0.2, growth=0.0, sigma=0.0, share=0.95, terms=None, keep=-0.1
):
    return {
        "cell": cell,
        "label": cell,
        "stage": stage,
        "error": [0.5],
        "predicted": {"log_largest_singular_value": [sigma], "log_spectral_radius": [sigma],
                      "log_keep_mean": [keep], "log_keep_best_unit": [keep]},
        "measured": {"slope_h": [slope], "slope_c": [slope], "lyapunov": [slope + 0.001],
                     "largest_growth_in_a_step": [growth], "log10_first_over_last": [-40.0]},
        "weight_gradient": {"log10_norm": [0.3], "share_of_last_tenth": [share]},
        "cell_state_terms": terms,
    }  # fmt: skip


def test_bound_claim_detects_a_broken_bound():
    assert claims._bound([flow_of()]) == []  # the claim does not cover gated cells
    (kept,) = claims._bound([flow_of("rnn", growth=-0.1), flow_of("relu", growth=0.2, sigma=0.2)])
    assert kept.holds is True
    (broken,) = claims._bound([flow_of("rnn", growth=0.01)])
    assert broken.holds is False


def test_scan_claims_are_judged_on_both_sides_of_one():
    scans = {"linear": np.log([0.5, 1, 2])[:, None], "tanh": np.array([[-0.8], [-0.2], [-0.1]])}
    record = {
        "gains": [0.5, 1.0, 2.0],
        "log_radius_at_gain_1": {"orthogonal": [0.0], "Gaussian": [-0.7]},
        "slopes": [
            {"activation": name, "matrix": kind, "by_gain_and_seed": (slopes + shift).tolist()}
            for name, slopes in scans.items()
            for kind, shift in (("orthogonal", 0.0), ("Gaussian", -0.7))
        ],
    }
    assert [claim.holds for claim in claims._scan(record)] == [True, True, None, False]
    (damped,) = claims._damped(record)
    assert damped.holds is True
    assert "-0.107 at most" in damped.measured
    record["slopes"][2]["by_gain_and_seed"] = [[0.1], [0.1], [0.1]]  # the tanh network grows at a gain below 1
    record["slopes"][1]["by_gain_and_seed"] = [[-1.0], [-0.7], [0.3]]  # growth exceeds the spectral radius
    assert [claim.holds for claim in claims._scan(record)] == [False, None, True, None]
    assert claims._damped(record)[0].holds is False


def test_near_step_highway_and_exponent_claims_are_judged():
    terms = {"highway": (0.8, 0.7), "forget": (0.05, 0.0), "input": (0.05, 0.0), "candidate": (0.3, 0.1)}
    small = {**terms, "candidate": (0.06, 0.1)}
    assert claims._near_steps([flow_of(), flow_of(slope=-0.01, share=0.1)]).holds is True
    assert claims._near_steps([flow_of(share=0.5)]).holds is False
    assert claims._near_steps([flow_of(slope=0.0)]).holds is None
    near_zero, open_path = claims._highway([flow_of(terms=terms), flow_of(terms=small, slope=-0.05), flow_of("gru")])
    assert (near_zero.holds, open_path.holds) == (None, None)
    assert "0.06 to 0.30" in near_zero.measured
    assert claims._highway([flow_of(terms=small, keep=-0.3)])[1].holds is True
    assert claims._exponents([flow_of()]).holds is True
    other = flow_of()
    other["measured"]["lyapunov"] = [0.5]
    assert claims._exponents([other]).holds is None


def test_claims_about_cells_compare_their_seeds():
    def pair(cell, slope, error=0.5, stages=(claims.BEFORE, claims.AFTER)):
        return [flow_of(cell, stage, slope=slope) | {"error": [error]} for stage in stages]

    (sigmoid,) = claims._sigmoid([*pair("rnn", -0.1, 0.0), *pair("rnn-sigmoid", -1.5)])
    assert sigmoid.holds is True
    assert claims._sigmoid([*pair("rnn", -1.6, 0.0), *pair("rnn-sigmoid", -1.5)])[0].holds is False
    assert claims._sigmoid([*pair("rnn", -0.1, 0.7), *pair("rnn-sigmoid", -1.5)])[0].holds is False
    assert claims._sigmoid(pair("rnn", -0.1)) == []
    lstms = {"lstm-b0": -0.3, "lstm": -0.1, "lstm-o1": -0.2, "lstm-f1-o1": -0.15}
    forget, output = claims._biases([flow for cell, slope in lstms.items() for flow in pair(cell, slope)])
    assert (forget.holds, output.holds) == (True, None)
    lstms |= {"lstm": -0.4, "lstm-o1": -0.31, "lstm-f1-o1": -0.5}
    forget, output = claims._biases([flow for cell, slope in lstms.items() for flow in pair(cell, slope)])
    assert (forget.holds, output.holds) == (False, False)
    (stored,) = claims._stored([*pair("rnn", -0.1, 0.0), *pair("gru", -0.001, 0.0), *pair("relu", -0.1, 0.5)])
    assert stored.holds is None
    assert "rnn -0.100; not vanishing gru -0.001" in stored.measured
    assert claims._stored(pair("rnn", -0.1, 0.0))[0].holds is True
    assert claims._stored(pair("rnn", -0.1, 0.5)) == []


def test_claims_about_large_gains_and_powers_are_judged():
    large = {
        "gains": [1.0, 4.0, 16.0],
        "largest_norm": [[0.0], [1.386], [2.773]],
        "median_norm": [[0.0], [1.3], [0.5]],
        "slopes": [[-0.1], [0.4], [0.1]],
        "largest_growth": [[0.0], [1.0], [2.0]],
    }
    step, rate = claims._large(large)
    assert (step.holds, rate.holds) == (False, True)
    assert "the largest is +0.40 (+0.40 to +0.40) at 4" in rate.measured
    large |= {"slopes": [[-0.1], [0.4], [0.5]], "largest_norm": [[0.0], [1.386], [2.0]]}
    step, rate = claims._large(large)
    assert (step.holds, rate.holds) == (None, False)

    matrices = [
        {"kind": kind, "log_radius": [radius], "log_norm_over_t": [[0.405], [rate]], "error_of_the_sum": [[0.0], [error]]}
        for kind, radius, rate, error in (
            ("symmetric", 0.405, 0.405, 1e-14), ("rotations", 0.405, 0.405, 1.5), ("Gaussian", -0.2, -0.2, 1e9)
        )
    ]  # fmt: skip
    record = {"largest_singular_value": 1.5, "powers": [1, 40], "matrices": matrices}
    largest, whole = claims._powers(record)
    assert (largest.holds, whole.holds) == (None, False)
    assert "-0.200" in largest.measured
    matrices[1]["error_of_the_sum"] = matrices[2]["error_of_the_sum"] = [[0.0], [1e-14]]
    matrices[2]["log_norm_over_t"] = [[0.405], [0.405]]
    assert [claim.holds for claim in claims._powers(record)] == [True, True]


def clipped(**wrong):
    """A record in which all trainings but those named end at 0 % wrong where the gradient explodes."""
    training = []
    for case, changes in clipping.settings_of((0.01, 1.0)).items():
        for change in changes:
            name = f"{change.name.replace(' ', '_')}_{change.threshold}".replace(".", "_")
            error = 0.75 if case == "vanishing" or change.name == "none" else wrong.get(name, 0.0)
            training.append(
                {
                    "case": case,
                    "change": change.name,
                    "threshold": change.threshold,
                    "error": [error],
                    "loss": [2 * error],
                }
            )
    return {"wall": {"flung_off": {"none": 0.2, "norm": 0.0, "value": 0.0, "each step": 0.0}}, "training": training}


def test_claims_about_clipping_are_judged():
    names = ("wall", "cures", "value", "vanishing", "raising vanishing", "harms")
    found = dict(zip(names, claims._clipping(clipped()), strict=True))
    expected = {**dict.fromkeys(names, True), "harms": False}
    assert {name: claim.holds for name, claim in found.items()} == expected
    found = dict(zip(names, claims._clipping(clipped(value_1_0=0.7, raised_1_0=0.3)), strict=True))
    assert {name: claim.holds for name, claim in found.items()} == {**expected, "value": None, "harms": True}
    assert "value: 0 at 0.01, 70 at 1" in found["value"].measured
    found = dict(zip(names, claims._clipping(clipped(norm_1_0=0.7, value_1_0=0.72, value_0_01=0.7)), strict=True))
    assert found["cures"].holds is False
    record = clipped()
    record["wall"]["flung_off"]["value"] = 0.2
    assert claims._clipping(record)[0].holds is False
