"""The tables of `parallel_in_time` in README.md, and its claims, from its record alone."""

from experiments.command.claims import Claim, claims_table, share
from experiments.command.rows import Record, markdown
from experiments.models.cells import CONTESTANTS

STEPS = 10_000  # at which the depth is judged
FEWER = 50  # times, that the depth must be smaller
LOOPS = {"gru, Newton": "gru, loop", "min_gru, associative scan": "min_gru, loop"}


def tables(record: Record) -> dict[str, str]:
    """Every table by its name."""
    return {"iterations": _iterations(record), "times": _times(record), "claims": claims_table(claims(record))}


def _iterations(record: Record) -> str:
    """Of every gain: exponent, mean iterations of the windows that converged, and how many were run step by step."""
    lines = []
    for run in record["iterations"]:
        for trained in (False, True):
            points = [point for point in run["points"] if point["trained"] == trained]
            cells = []
            for point in points:
                mean = "-" if point["iterations"] is None else f"{point['iterations']:.1f}"
                cells.append(f"{point['exponent']:+.2f}: {mean} ({point['by_steps']}/{point['windows']})")
            lines.append([CONTESTANTS[run["cell"]].label, "trained" if trained else "at first", *cells])
    gains = [f"{point['gain']:g}" for point in record["iterations"][0]["points"] if not point["trained"]]
    return markdown(["cell", "weights", *(f"gain {gain}" for gain in gains)], lines)


def _times(record: Record) -> str:
    """Depth, and least and median milliseconds, with the least as a ratio to that of the same cell's loop."""
    rows = {(row["way"], row["steps"]): row for row in record["times"]}
    lines = []
    for (way, steps), row in rows.items():
        if "min_ms" in row:
            loop = rows[LOOPS.get(way, way), steps]["min_ms"]
            ratio = f" ({row['min_ms'] / loop:.2f})" if way in LOOPS else ""
            ms = [f"{row['min_ms']:,.3g}{ratio}", f"{row['median_ms']:,.3g}"]
        else:
            ms = ["differs from the loop", "-"]
        lines.append([f"{steps:,}", way, f"{row['depth']:,}", *ms, f"{row['difference']:.0e}"])
    return markdown(["T", "cell and implementation", "depth", "ms, least (to the loop)", "ms, median", "apart"], lines)


def claims(record: Record) -> list[Claim]:
    """All that the record can decide."""
    seeds = record["config"]["seeds"]
    points = [point for run in record["iterations"] for point in run["points"]]
    below = [point for point in points if point["exponent"] < 0]
    above = [point for point in points if point["exponent"] > 0]
    solved = sum(point["by_steps"] == 0 for point in below)
    fell = sum(point["by_steps"] > 0 for point in above)
    most = max((point["most"] for point in below if point["most"] is not None), default=0)
    text = (
        f"exponent below 0: all windows converged in {solved} of {len(below)} settings, in {most} iterations at most; "
        f"above 0: windows were run step by step in {fell} of {len(above)}"
    )
    found = [Claim("the largest Lyapunov exponent predicts convergence", "Gonzalez 2025",
                   share(solved + fell, len(points)), text, seeds)]  # fmt: skip
    rows = {(row["way"], row["steps"]): row for row in record["times"]}
    times = {way: rows[loop, STEPS]["depth"] / rows[way, STEPS]["depth"] for way, loop in LOOPS.items()
             if (way, STEPS) in rows}  # fmt: skip
    if times:
        said = ", ".join(f"{way} {value:,.0f} times" for way, value in times.items())
        found.append(Claim("the sequential depth is a fraction of the loop's", "Lim 2023; Feng 2024",
                           share(sum(value >= FEWER for value in times.values()), len(times)),
                           f"at T = {STEPS:,}, forward and backward: {said} smaller", 0))  # fmt: skip
    for way, source in (("gru, Newton", "Lim 2023, on a GPU"), ("min_gru, associative scan", "Feng 2024, on a GPU")):
        ratios = {steps: row["min_ms"] / rows[LOOPS[way], steps]["min_ms"] for (name, steps), row in rows.items()
                  if name == way and "min_ms" in row}  # fmt: skip
        said = ", ".join(f"{ratio:.2f} at T = {steps:,}" for steps, ratio in ratios.items())
        found.append(Claim(f"{way.split(', ')[1]} is faster than the loop", source,
                           share(sum(ratio < 1 for ratio in ratios.values()), len(ratios)),
                           f"on a CPU, its time divided by the loop's: {said}", 0))  # fmt: skip
    return found
