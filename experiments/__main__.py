"""Lists the experiments, and writes the tables of results on the pages from the committed records.

python -m experiments
python -m experiments --help
python -m experiments summary
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.command.messages import complain, shown


class Script(NamedTuple):
    """A row of the list."""

    name: str
    about: str
    minutes: str  # on two cores
    quick: bool = True  # whether it takes --quick


SCRIPTS = (
    Script("bptt_by_hand", "the hand-written gradient beside jax.grad, step by step and gate by gate", "0.3"),
    Script("sequential_images", "images read by rows, by pixels or in a random order", "2"),
    Script("mnist_1d", "MNIST-1D by the published protocol", "3"),
    Script("japanese_vowels", "speakers by their vowels: lengths, both directions", "2"),
    Script("polyphonic_music", "chorales of Bach and folk tunes, key by key", "15"),
    Script("char_lm", "learns any text by its characters; `char_lm sample` goes on after a prompt", "6"),
    Script("poems", "learns Tang quatrains; `poems write` writes new ones", "9"),
    Script("g2p", "spelling to phonemes with attention; `g2p say` pronounces words", "15"),
    Script("forecast", "a day of weather by the hour; `forecast airline`: passengers by the month", "3"),
    Script("gradient_flow", "where gradients vanish or explode, beside what spectra predict", "8"),
    Script(
        "memory_tasks",
        "adding, copying, order, grammar and agreement over long stretches, parity, words of groups",
        "35",
    ),
    Script("recurrent_ppo", "agents with memory: PPO on four tasks with known optima, beside one without", "10"),
    Script("gates", "what trained gates do, and which of them matter", "4"),
    Script("lstm_vs_gru", "equal parameters: quality and seconds side by side", "7"),
    Script("parallel_in_time", "Newton's iterations beside Lyapunov exponents; depth and time of three ways", "10"),
    Script("real_models", "published networks by jaxrnn and by their own engines, side by side", "0.5"),
    Script("long_sequence", "trains an LSTM through 100,000 steps at once", "0.5", quick=False),
    Script("benchmarks.speed", "forward, train step and compilation beside five other libraries", "10 to 30"),
    Script("benchmarks.memory", "memory of a train step over T, by what is kept and by library", "1"),
    Script("benchmarks.latency", "one streaming step, and long sequences without a gradient", "2"),
    Script("benchmarks.gpu", "on a GPU: right first, then timed beside PyTorch, Flax and the floor", "30"),
    Script("benchmarks.scaling", "what many devices exchange, counted, timed and on paper", "3"),
    Script("datasets", "lists and gets the data", "0", quick=False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for any argument but `summary` and `--help`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["summary"]:
        from experiments import _summary  # imports every script, which the list does not need

        try:
            _summary.write()
        except (ValueError, OSError) as error:
            return complain("experiments", error)
        return 0
    if given and given not in (["--help"], ["-h"]):
        hint = "run one as python -m experiments.NAME"
        return complain("experiments", f"expected nothing or summary, got {shown(given[0])}; {hint}")
    table = Table(title="python -m experiments.NAME; each explains its options with --help", title_justify="left")
    table.add_column("NAME", no_wrap=True)
    table.add_column("what it does")
    table.add_column("minutes", justify="right", no_wrap=True)
    for script in SCRIPTS:
        table.add_row(script.name, script.about, script.minutes)
    Console(width=80).print(table)
    print("Minutes are those on two cores. All take --quick, for a version of about a")
    print(f"minute at most, but {', '.join(script.name for script in SCRIPTS if not script.quick)}.")
    print("Commands of scripts explain their options too:")
    print("  python -m experiments.char_lm sample --help")
    print("  python -m experiments.poems write --help")
    print("  python -m experiments.g2p say --help")
    print("  python -m experiments.forecast airline --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
