"""What the page of the experiments says of time in parallel, beside its tables."""

from tests.docs.statements import record, says

PAGE = "experiments/README.md"


def points_of(trained):
    found = [point for run in record("parallel_in_time")["iterations"] for point in run["points"]]
    return [point for point in found if point["trained"] == trained]


@says(PAGE)
def windows_above_zero():
    points = [point for trained in (False, True) for point in points_of(trained) if point["exponent"] > 0]
    assert points
    assert all(point["by_steps"] == point["windows"] for point in points)
    return "Above 0 every window was run step by step."


@says(PAGE)
def iterations_of_trained_cells():
    points = points_of(True)
    means = [point["iterations"] for point in points]
    most = max(point["by_steps"] for point in points)
    (windows,) = {point["windows"] for point in points}
    return f"""Of the trained cells {min(means):.1f} to {max(means):.1f} iterations solve the windows that converge, and at most
    {most} of {windows} do not."""


@says(PAGE)
def loop_and_newton_on_a_cpu():
    rows = {(row["way"], row["steps"]): row for row in record("parallel_in_time")["times"]}
    least, median = (
        {
            (way, steps): row[key] / rows[f"{way.partition(',')[0]}, loop", steps][key]
            for (way, steps), row in rows.items()
            if not way.endswith("loop")
        }
        for key in ("min_ms", "median_ms")
    )
    assert min(ratio for (_, steps), ratio in least.items() if steps >= 1000) > 1
    assert least["gru, Newton", 100] < 1 < median["gru, Newton", 100]
    return """from T = 1,000 on both take longer than it. At T = 100 the least time of Newton's method is below the loop's and its
    median above."""
