"""The rows of a record in the table of results."""

from collections.abc import Iterator

from experiments.command.report import mean_and_std
from experiments.command.rows import Record, Row

PUBLISHED = "7.63 / 28.61 without alignment, 5.45 / 23.55 with it (Yao & Zweig 2015)"
SPLITS = {"stem": "no inflection of a test word is trained on", "word": "words at random"}


def rows(record: Record) -> Iterator[Row]:
    """Errors with the beam and without."""
    config, minutes = record["config"], record["seconds"] / 60
    seeds = len(record["seeds"])
    ends = "one seed" if seeds == 1 else f"{seeds} seeds"
    for name, how in (("beam", f"beam of {config['beam_size']}"), ("greedy", "greedy")):
        errors = [mean_and_std(record[name][part], 100, 2) for part in ("phoneme_errors", "word_errors")]
        what = f"CMUdict, {SPLITS[config['split']]}, {how}: phoneme / word errors, %"
        differs = "dictionary's version, split, network" if config["split"] == "word" else "a harder split, network"
        yield Row(what, record["parameters"], minutes, f"{errors[0]} / {errors[1]}, {ends}", PUBLISHED, differs)
