"""The table of a record."""

from typing import Any

from experiments.command.rows import Record, markdown


def times_of(row: dict[str, Any]) -> str:
    """Least and median microseconds of both."""
    engine, ours = (row["times"][who] for who in ("engine", "ours"))
    theirs = f"{row['engine']} {engine['min_us']:.0f}, {engine['median_us']:.0f}"
    return f"{theirs}; jaxrnn {ours['min_us']:.0f}, {ours['median_us']:.0f}"


def tables(record: Record) -> dict[str, str]:
    """The table of the models in Markdown."""
    headings = (
        "model",
        "of what",
        "its engine",
        "decided alike",
        "largest difference",
        "microseconds, least and median",
    )
    lines = [
        (
            f"`{row['model']}`",
            row["cells"],
            row["engine"],
            f"{row['equal']:,} of {row['decisions']:,} {row['decides']}",
            f"{row['difference']:.1e}, {row['values']}",
            f"a {row['timed']}: {times_of(row)}",
        )
        for row in record["models"]
    ]
    return {"models": markdown(headings, lines)}
