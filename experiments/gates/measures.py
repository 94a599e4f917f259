"""Statistics of the gates of trained models, and losses without one of them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.models.problems import Problem, testing
from experiments.models.readout import Readout
from experiments.training.loop import Params
from jaxrnn.analysis import GateStatistics, ablate_gates, gate_statistics

SEQUENCES = 256  # on which gates are measured
WAYS = {"open": 1.0, "closed": 0.0, "mean": None}  # None: each unit of each model at its own mean
SAME = 1e-5  # losses that differ by less of themselves are equal: a closed i and a closed o both leave h = 0
CLAIMED = ("f", "i", "o")  # the order in which the gates of an LSTM are said to matter


def of_seed(models: Params, place: int) -> Readout:
    """The model of one seed."""
    return jax.tree.map(lambda leaf: leaf[place], models)


def held_out(problem: Problem) -> np.ndarray:
    """The test sequences on which gates are measured, evenly spread over all of them."""
    count = len(problem.test.xs)
    return problem.test.xs[np.linspace(0, count - 1, min(count, SEQUENCES)).astype(int)]


def trained_on(problem: Problem, seed: int) -> np.ndarray:
    """Training sequences of a seed, as many as `held_out` has."""
    wanted, batches = len(held_out(problem)), []
    while sum(map(len, batches)) < wanted:
        batches.append(problem.batch(seed, len(batches)).xs)
    return np.concatenate(batches)[:wanted]


def statistics(problem: Problem, cell: jaxrnn.Cell, model: Readout, xs: np.ndarray) -> dict[str, GateStatistics]:
    """The statistics of one model's gates on sequences `(N, T, ·)`."""
    time_major = jnp.swapaxes(problem.encode(jnp.asarray(xs)), 0, 1)
    return jax.tree.map(np.asarray, gate_statistics(cell, model.cell, time_major))


def summary(found: Sequence[Mapping[str, GateStatistics]], steps: int) -> dict[str, Any]:
    """Gate by gate over all units: lists over seeds.

    `saturated` is the share of values below 0.1 or above 0.9, `histogram` shares of 20 bins. Of the
    gate that says what is kept: quantiles of the units' retention times, and the share longer than the task.
    """
    gates = {}
    for name in found[0]:
        own = [statistics[name] for statistics in found]
        counts = [gate.histogram.sum(0) for gate in own]
        gates[name] = {
            "mean": [float(gate.mean.mean()) for gate in own],
            "below": [float(gate.below.mean()) for gate in own],
            "above": [float(gate.above.mean()) for gate in own],
            "saturated": [float(gate.below.mean() + gate.above.mean()) for gate in own],
            "histogram": [(count / count.sum()).tolist() for count in counts],
        }
        if own[0].retention_time is not None:
            times = np.stack([np.asarray(gate.retention_time) for gate in own])
            gates[name]["retention"] = {
                f"quantile_{percent}": np.percentile(times, percent, axis=1, method="nearest").tolist()
                for percent in (10, 50, 90)
            } | {"longer_than_task": np.mean(times > steps, 1).tolist()}
    return gates


def before_and_after(problem: Problem, cell: jaxrnn.Cell, before: Params, after: Params) -> dict[str, Any]:
    """Summaries of all seeds' gates on test sequences, before and after training."""
    xs, seeds = held_out(problem), len(jax.tree.leaves(after)[0])
    return {
        when: summary([statistics(problem, cell, of_seed(models, k), xs) for k in range(seeds)], problem.steps)
        for when, models in (("before", before), ("after", after))
    }


def ablations(
    problem: Problem, cell: jaxrnn.Cell, models: Params, seeds: Sequence[int], platform: str
) -> dict[str, Any]:
    """Test scores with one gate fixed, `{gate: {way: {metric: per seed}}}`; means are those of training sequences."""
    means = [
        {
            name: gate.mean
            for name, gate in statistics(problem, cell, of_seed(models, k), trained_on(problem, s)).items()
        }
        for k, s in enumerate(seeds)
    ]

    def fixed(gate: str, value: Any, chosen: Params) -> dict[str, np.ndarray]:
        return jax.tree.map(
            np.asarray, testing(problem, ablate_gates(cell, gate, value), platform)(chosen, problem.test)
        )

    def at_mean(gate: str) -> dict[str, np.ndarray]:
        """A cell for each seed, since the means are a seed's own."""
        own = [
            fixed(gate, means[k][gate], jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], models))
            for k in range(len(seeds))
        ]
        return {metric: np.concatenate([scores[metric] for scores in own]) for metric in own[0]}

    return {
        gate: {
            way: as_lists(at_mean(gate) if value is None else fixed(gate, value, models)) for way, value in WAYS.items()
        }
        for gate in means[0]
    }


def as_lists(scores: Mapping[str, Any]) -> dict[str, list[float]]:
    """Metrics of a population, ready for the record."""
    return {metric: np.asarray(values, float).tolist() for metric, values in scores.items()}


def orders(losses: Mapping[str, Sequence[float]]) -> list[str]:
    """For each seed, the gates in the order of the loss without them, the largest loss first: "f > i = o"."""
    names, found = list(losses), []
    for row in np.stack([losses[name] for name in names], 1):
        order = np.argsort(-row, kind="stable")
        signs = [" = " if np.isclose(row[a], row[b], rtol=SAME) else " > " for a, b in itertools.pairwise(order)]
        found.append("".join(names[k] + sign for k, sign in zip(order, [*signs, ""], strict=True)))
    return found


def verdict(holds: Sequence[bool]) -> str:
    """Whether a claim holds, by the seeds."""
    share = f"{sum(holds)} of {len(holds)} seeds"
    return f"for ({share})" if all(holds) else f"against ({share})" if not any(holds) else f"undecided ({share})"


def saturation_verdicts(after: Mapping[str, Any]) -> dict[str, str]:
    """Whether more than half of a gate's values are below 0.1 or above 0.9."""
    return {name: verdict([share > 0.5 for share in gate["saturated"]]) for name, gate in after.items()}


def order_verdicts(ways: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """Whether an LSTM's gates matter in the claimed order, and whether the forget gate matters most, way by way."""
    found = {}
    for way, losses in ways.items():
        seen = orders(losses)
        found[way] = {
            "orders": seen,
            "forget > input > output": verdict([order == " > ".join(CLAIMED) for order in seen]),
            "forget first": verdict([order.startswith(f"{CLAIMED[0]} >") for order in seen]),
        }
    return found
