"""The table, record and figure of a training whose only metric is "test accuracy"."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.command.figures import loss_curves
from experiments.training.loop import Course

METRIC = "test accuracy"


def print_accuracy(title: str, course: Course, published: str) -> None:
    """Prints the accuracy of every seed after the last step, beside a published one, in percent."""
    accuracy = course.metric(METRIC)[-1]
    table = Table(title=title)
    for column in ("by seed", "mean", "published", "parameters", "seconds"):
        table.add_column(column, justify="right")
    by_seed = " ".join(f"{100 * value:.1f}" for value in accuracy)
    size, seconds = f"{course.parameters:,}", f"{course.seconds:.0f}"
    table.add_row(by_seed, f"{100 * accuracy.mean():.1f}", published, size, seconds)
    Console().print(table)


def accuracy_record(course: Course, seeds: Sequence[int]) -> dict[str, Any]:
    accuracy = course.metric(METRIC)
    return {
        "parameters": course.parameters,
        "seconds": course.seconds,
        "seeds": list(seeds),
        "test_accuracy": accuracy[-1].tolist(),
        "test_accuracy_mean": float(accuracy[-1].mean()),
        "test_accuracy_by_evaluation": accuracy.round(4).tolist(),
        "steps": [found.step for found in course.history],
    }


def draw_accuracy(stem: Path, title: str, course: Course) -> None:
    """Draws the share of wrong answers over evaluations."""
    loss_curves(stem, title, "share of what is tested", {"wrong": 1 - course.metric(METRIC)}, x="evaluation")
