"""The size of gradients at every step, beside the prediction from the spectrum of W_h, before and after training.

    python -m experiments.gradient_flow

Every cell learns which of four symbols came first, many steps of noise ago. Before and after, the
gradient of the last step's loss is measured at all steps. The script also scans the gain of W_h from
vanishing to exploding and takes W_h to powers, and measures the four terms of ∂c_t/∂c_{t-1} of an LSTM, and
clipping.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.command.devices import DeviceOptions, Devices, devices_of, platform_of
from experiments.command.memory import check_fits
from experiments.command.options import among, check_seeds, positive
from experiments.command.progress import Job, Show, side_by_side
from experiments.command.script import Result, run_script
from experiments.gradient_flow.clipping import MAIN, Descent, Wall, climb_wall, settings_of, train_clipped
from experiments.gradient_flow.figures import draw_clipping, draw_flow, draw_spectrum
from experiments.gradient_flow.gain import ACTIVATIONS, LARGE_GAINS, LONGEST, MATRICES, SEQUENCES, Gains, scan
from experiments.gradient_flow.measure import Flow, candidate, measure
from experiments.gradient_flow.powers import SIGMA, Powers, raise_to_powers
from experiments.gradient_flow.tables import print_tables
from experiments.gradient_flow.task import LEARNING_RATE, LEARNING_RATES, by_seed, make_task, test_error, train
from experiments.models.cells import AFFINE, CONTESTANTS
from experiments.training.runs import check_shares
from experiments.training.seeds import population
from experiments.training.sizes import CALLED, check_training, shapes_of

STAGES = ("at initialisation", "trained")
POINTS = 31  # of each curve that is kept
KEPT_POWERS = (1, 2, 5, 10, 20, 40)
GRID = 30  # points along each side of the surface
DRAWN = 75  # updates of each way on it
LN10 = float(np.log(10))


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    """Gradients by step, before and after training, beside the spectral prediction."""

    length: int = 500
    """T, steps from the symbol to the loss."""
    hidden_size: int = 64
    """H, hidden units."""
    cells: tuple[str, ...] = (
        "rnn-sigmoid", "rnn", "rnn-uniform", "relu", "irnn",
        "lstm-b0", "lstm", "lstm-o1", "lstm-f1-o1", "lstm-chrono", "gru",
    )  # fmt: skip
    """Which cells to compare: any of those, or gru-chrono."""
    updates: int = 600
    """Steps of Adam between the two measurements."""
    batch_size: int = 16
    """Sequences in an update, and in a measurement."""
    learning_rate: float | None = None
    """Of every cell; by default 0.003, but 0.01 (sigmoid RNN), 0.0003 (ReLU RNN) and 0.00001 (IRNN)."""
    gains: int = 13
    """How many gains of W_h from 1/2 to 2 are scanned; at least 3, and odd, so that 1 is among them."""
    clipping_updates: int = 300
    """Steps of gradient descent with every change of the gradient."""
    thresholds: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)
    """θ at which the gradient is clipped; 1 is added if it is not among them."""
    seed: int = 0
    """The first seed."""
    seeds: int = 5
    """How many runs, with seeds one after another."""
    out: Path = Path("results/gradient_flow")
    """The folder for results.json and the figures."""
    quick: bool = False
    """A small version of everything, in about a minute at most."""


QUICK = {
    "length": 60,
    "hidden_size": 16,
    "cells": ("rnn", "lstm"),
    "updates": 50,
    "batch_size": 8,
    "gains": 5,
    "clipping_updates": 40,
    "thresholds": (1.0,),
    "seeds": 2,
}


class Run(NamedTuple):
    """One cell, all seeds."""

    cell: str
    errors: dict[str, np.ndarray]  # (seeds,), by stage: the share of wrong answers at T
    flows: dict[str, list[Flow]]  # by stage, one a seed
    learning_rate: float
    seconds: float


EXCLUDED = (*AFFINE, "slstm")  # no W_h to scale; a state of more than h and c, which `measure` does not read


def checked(config: Config) -> None:
    positive(config, "length", "hidden_size", "updates", "batch_size", "learning_rate", "gains", "clipping_updates")
    positive(config, "thresholds")
    check_seeds(config)
    among(config, "cells", tuple(name for name in CONTESTANTS if name not in EXCLUDED))
    if config.length < 20:
        raise ValueError(
            f"--length expected at least 20 steps, of which the last tenth is told apart; got {config.length}"
        )
    if config.gains < 3 or config.gains % 2 == 0:
        raise ValueError(f"--gains expected an odd number of at least 3, got {config.gains}")
    check_shares(config, len(jobs_of(config)))
    check_memory(config)


def check_memory(config: Config) -> None:
    """Raises a `ValueError` in one line if a training, a measurement or the scan cannot fit the memory."""
    double, gains = np.dtype(float).itemsize, max(config.gains, len(LARGE_GAINS)) * entries_of_a_gain(config)
    check_fits({"the scan of gains": double * gains}, ("--gains", "--hidden-size", "--length"))
    for name in dict.fromkeys(config.cells):
        cell = CONTESTANTS[name].make(config.hidden_size, config.length)
        task = make_task(cell, config.hidden_size, config.length, 1)
        batch = shapes_of(task.batch(0, 0), config.batch_size)
        check_training(config, task, batch, jobs=len(jobs_of(config)), steps_per_call=min(CALLED, config.updates))
        w_h = jax.eval_shape(task.init, jax.random.key(0)).cell.w_h
        by_step = double * config.length * w_h.size  # the contributions to its gradient
        check_fits({"the gradients of every step": by_step}, ("--length", "--hidden-size"))


def entries_of_a_gain(config: Config) -> int:
    """The numbers that the scan has for each gain at one time: `W_h`, and the states of all steps."""
    return config.hidden_size * (config.hidden_size + min(config.length, LONGEST) * SEQUENCES)


def seeds_of(config: Config) -> range:
    return range(config.seed, config.seed + config.seeds)


def run_cell(config: Config, name: str, devices: Devices, show: Show) -> Run:
    """Measures, trains, and measures again."""
    start = time.perf_counter()
    cell = CONTESTANTS[name].make(config.hidden_size, config.length)
    task = make_task(cell, config.hidden_size, config.length, config.batch_size)
    errors = population(functools.partial(test_error, cell, config.length), platform_of(devices))
    rate = LEARNING_RATES.get(name, LEARNING_RATE) if config.learning_rate is None else config.learning_rate
    populations, wrong = train(task, errors, rate, seeds_of(config), config.updates, devices, show)
    flows = []
    for models in populations:
        show(config.updates, "measuring")
        flows.append(
            [
                measure(cell, model, config.length, config.batch_size, seed)
                for seed, model in zip(seeds_of(config), by_seed(models), strict=True)
            ]
        )
    return Run(
        name,
        dict(zip(STAGES, wrong, strict=True)),
        dict(zip(STAGES, flows, strict=True)),
        rate,
        time.perf_counter() - start,
    )


def rounded(values: Any, digits: int = 4) -> Any:
    """Numbers as lists, with so many significant digits."""
    if isinstance(values, (list, tuple, np.ndarray)):
        return [rounded(value, digits) for value in values]
    return float(f"{float(values):.{digits}g}")


def relative(flow: Flow) -> np.ndarray:
    """log10 of ‖∂L/∂h_t‖ over ‖∂L/∂h_T‖, `(T,)`: the median over the sequences whose ∂L/∂h_T is not zero."""
    alive = np.isfinite(flow.log_h[-1])
    if not alive.any():
        return np.full(len(flow.log_h), np.nan)
    return np.median(flow.log_h[:, alive] - flow.log_h[-1, alive], 1) / LN10


def steps_back(length: int) -> np.ndarray:
    """The T - t at which curves are kept, from 0 to T - 1."""
    return np.unique(np.linspace(0, length - 1, min(POINTS, length)).round().astype(int))


def curve_of(flows: Sequence[Flow]) -> dict[str, list[float]]:
    """The relative norms at `steps_back`: the median over seeds, and their range; empty if there are none."""
    of_seeds = np.array([curve for curve in map(relative, flows) if not np.isnan(curve).any()])
    if not len(of_seeds):
        return {"median": [], "lowest": [], "highest": []}
    back = of_seeds[:, ::-1][:, steps_back(of_seeds.shape[1])]
    return {
        "median": rounded(np.median(back, 0), 3),
        "lowest": rounded(back.min(0), 3),
        "highest": rounded(back.max(0), 3),
    }


def flow_record(run: Run, stage: str) -> dict[str, Any]:
    """One cell at one stage; lists are over seeds."""
    flows = run.flows[stage]
    gates = flows[0].spectrum

    def each(quantity: Callable[[Flow], Any]) -> Any:
        values = [quantity(flow) for flow in flows]
        return None if values[0] is None else rounded(values)

    return {
        "cell": run.cell,
        "label": CONTESTANTS[run.cell].label,
        "stage": stage,
        "learning_rate": run.learning_rate,
        "error": rounded(run.errors[stage]),
        "predicted": {
            "log_largest_singular_value": each(lambda flow: candidate(flow.spectrum)[0]),
            "log_spectral_radius": each(lambda flow: candidate(flow.spectrum)[1]),
            "log_keep_mean": each(lambda flow: flow.keep and flow.keep[0]),
            "log_keep_best_unit": each(lambda flow: flow.keep and flow.keep[1]),
            "by_gate": {gate: rounded(np.mean([flow.spectrum[gate] for flow in flows], 0)) for gate in gates},
        },
        "measured": {
            "slope_h": each(lambda flow: flow.slope),
            "slope_c": each(lambda flow: flow.slope_c),
            "lyapunov": each(lambda flow: flow.lyapunov),
            "largest_growth_in_a_step": each(lambda flow: flow.largest_growth),
            "log10_first_over_last": each(lambda flow: relative(flow)[0]),
            "dead_at_the_first_step": each(lambda flow: np.mean(np.isneginf(flow.log_h[0]))),
        },
        "weight_gradient": {
            "log10_norm": each(lambda flow: flow.log_weight_gradient / LN10),
            "share_of_last_tenth": each(lambda flow: flow.last_tenth),
            "norm_without_last_tenth": each(lambda flow: flow.without_last_tenth),
            "last_steps_with_nine_tenths": each(lambda flow: flow.nine_tenths_in),
        },
        "cell_state_terms": flows[0].terms
        and {term: rounded(np.mean([(flow.terms or {})[term] for flow in flows], 0)) for term in flows[0].terms},
        "curve": curve_of(flows),
    }


def gain_record(found: Gains) -> dict[str, Any]:
    return {
        "gains": rounded(found.gains),
        "log_radius_at_gain_1": {kind: rounded(values) for kind, values in found.log_radius.items()},
        "slopes": [
            {"activation": scan.activation, "matrix": scan.matrix, "by_gain_and_seed": rounded(scan.slopes, 3)}
            for scan in found.scans
        ],
        "large": {name: rounded(values, 3) for name, values in found.saturation._asdict().items()},
    }


def powers_record(found: Sequence[Powers]) -> dict[str, Any]:
    kept = [t - 1 for t in KEPT_POWERS]
    return {
        "largest_singular_value": SIGMA,
        "powers": list(KEPT_POWERS),
        "matrices": [
            {
                "kind": powers.kind,
                "log_radius": rounded(powers.log_radius),
                "log_norm_over_t": rounded(powers.rates[:, kept].T, 3),
                "error_of_the_sum": rounded(powers.errors[:, kept].T, 2),
            }
            for powers in found
        ],
    }


def clipping_record(wall: Wall, descents: Sequence[Descent]) -> dict[str, Any]:
    return {
        "wall": {
            "weights": rounded(wall.weights),
            "biases": rounded(wall.biases),
            "losses": rounded(wall.losses, 2),
            "flung_off": wall.flung,
            "ways": {name: rounded(way[:DRAWN, :2], 3) for name, way in wall.ways.items()},
        },
        "training": [
            {
                "case": descent.case,
                "change": descent.change.name,
                "threshold": descent.change.threshold,
                "loss": rounded(descent.losses[-1], 3),
                "error": rounded(descent.errors),
                **(curves_of(descent) if descent.change in MAIN else {}),
            }
            for descent in descents
        ],
    }


def curves_of(descent: Descent) -> dict[str, Any]:
    """By update: the median over seeds, and their range."""
    return {
        "updates": descent.updates.tolist(),
        **{
            name: {"median": rounded(np.median(values, 1), 2), "lowest": rounded(values.min(1), 2),
                   "highest": rounded(values.max(1), 2)}
            for name, values in (("losses", descent.losses), ("gradient_norms", descent.norms))
        },
    }  # fmt: skip


def jobs_of(config: Config) -> dict[str, Job]:
    """The slowest first."""
    seeds = seeds_of(config)
    clipping = functools.partial(
        train_clipped,
        config.hidden_size,
        config.length,
        config.batch_size,
        config.clipping_updates,
        config.thresholds,
        seeds,
    )
    cells = {
        CONTESTANTS[name].label: Job(config.updates, functools.partial(run_cell, config, name))
        for name in reversed(dict.fromkeys(config.cells))
    }

    def gains(devices: Devices, show: Show) -> Gains:
        return scan(config.hidden_size, config.length, config.gains, seeds, show)

    def wall(devices: Devices, show: Show) -> Wall:
        found = climb_wall(GRID)
        show(1, "")
        return found

    def powers(devices: Devices, show: Show) -> list[Powers]:
        found = raise_to_powers(config.hidden_size, seeds)
        show(1, "")
        return found

    descents = sum(map(len, settings_of(config.thresholds).values()))
    return {
        "clipping": Job(descents * config.clipping_updates, clipping),
        **cells,
        "gain of W_h": Job(len(ACTIVATIONS) * len(MATRICES), gains),
        "powers of W_h": Job(1, powers),
        "wall": Job(1, wall),
    }


def run(config: Config) -> Result:
    """Everything, the tables, and the record that they and the figures are made from."""
    found = side_by_side(jobs_of(config), devices=devices_of(config))
    runs = [found[CONTESTANTS[name].label] for name in dict.fromkeys(config.cells)]
    record = {
        "steps_back": steps_back(config.length).tolist(),
        "flows": [flow_record(one, stage) for stage in STAGES for one in runs],
        "gain": gain_record(found["gain of W_h"]),
        "powers": powers_record(found["powers of W_h"]),
        "clipping": clipping_record(found["wall"], found["clipping"]),
    }
    print_tables(config.length, record)

    def draw() -> None:
        draw_flow(config.out / "gradient_flow", config.length, record)
        draw_spectrum(config.out / "spectrum", record)
        draw_clipping(config.out / "clipping", record)

    return record, draw


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 with one line on stderr if the command cannot run."""
    figures = ("gradient_flow", "spectrum", "clipping")
    return run_script("gradient_flow", Config, run, check=checked, quick=QUICK, writes=figures, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
