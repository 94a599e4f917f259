"""The tables of `recurrent_ppo` in README.md, from its record."""

from typing import Any

from experiments.command.rows import Record, markdown
from experiments.recurrent_ppo.environments import ENVIRONMENTS
from experiments.recurrent_ppo.plan import Run

DIGITS = {"cart_pole": 0, "chain": 2, "bandit": 3, "repeat_previous": 2}


def tables(record: Record) -> dict[str, str]:
    """The returns of every network, and the speed beside Flax's cell."""
    lines = [row(run) for run in record["runs"]]
    headings = ("task", "network", "parameters", "by seed", "optimum", "environment steps", "seconds")
    return {"returns": markdown(headings, lines), "speed": speed_table(record["speed"])}


def row(run: dict[str, Any]) -> list[str]:
    """One network on one task. At the bandit the return is exact, elsewhere that of new episodes."""
    name = run["environment"]
    found, digits = run.get("exact", run["test"]), DIGITS[name]
    return [
        ENVIRONMENTS[name].label,
        Run(name, run["cell"], run["remembered"]).label,
        f"{run['parameters']:,}",
        ", ".join(f"{value:.{digits}f}" for value in found),
        f"{ENVIRONMENTS[name].optimum:.{digits}f}",
        f"{run['environment_steps']:,}",
        f"{run['seconds']:.0f}",
    ]


def speed_table(speed: dict[str, Any]) -> str:
    """Environment steps a second of training."""
    labels = {
        "unroll": "`unroll` for one step and for all",
        "cell.step": "`cell.step` for one, `unroll` for all",
        "flax": "Flax's `GRUCell` and `lax.scan`",
    }
    most = speed["steps_per_second"]["unroll"]["most"]
    lines = []
    for name, label in labels.items():
        own = speed["steps_per_second"][name]
        lines.append([label, f"{own['most']:,.0f}", f"{own['median']:,.0f}", f"{own['most'] / most:.2f}"])
    return markdown(("program", "steps a second, most", "median", "to the first"), lines)
