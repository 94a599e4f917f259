"""The tables of `bptt_by_hand`: every step, every gate, by hand and by JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.bptt_by_hand.compare import LABELS, Comparison, Pair, difference

EQUATIONS = {
    "rnn": "h_t = tanh(a), a = x_t W + h_(t-1) U + b;   δa = δh ⊙ (1 - h²),  δh_(t-1) = δa Uᵀ,  δx = δa Wᵀ",
    "lstm": (
        "C_t = f ⊙ C_(t-1) + i ⊙ c̃,  h_t = o ⊙ tanh(C_t);   δC = δh ⊙ o ⊙ (1 - tanh²(C)) + f_(t+1) ⊙ δC_(t+1),  "
        "δa_f = δC ⊙ C_(t-1) ⊙ f(1-f),  δa_i = δC ⊙ c̃ ⊙ i(1-i),  δa_c̃ = δC ⊙ i ⊙ (1-c̃²),  "
        "δa_o = δh ⊙ tanh(C) ⊙ o(1-o),  δh_(t-1) = Σ δa Uᵀ,  δx = Σ δa Wᵀ"
    ),
    "gru": (
        "h_t = (1 - z) ⊙ h̃ + z ⊙ h_(t-1),  h̃ = tanh(x W_h̃ + b_h̃ + r ⊙ q),  q = h_(t-1) U_h̃ + b_q;   "
        "δa_z = δh ⊙ (h_(t-1) - h̃) ⊙ z(1-z),  δa_h̃ = δh ⊙ (1-z) ⊙ (1-h̃²),  δa_r = δa_h̃ ⊙ q ⊙ r(1-r),  "
        "δq = δa_h̃ ⊙ r,  δh_(t-1) = δh ⊙ z + δa_r U_rᵀ + δa_z U_zᵀ + δq U_h̃ᵀ,  δx = Σ δa Wᵀ"
    ),
}
LOSS = "L = -Σ_t log ŷ_t of the class asked for,  ŷ = softmax(h V + c),  so δh_t begins with (ŷ - y) Vᵀ"
WORDS = ("t", "δ", "quantity", "cell", "compared", "dtype", "")  # columns that hold no numbers
MOST = 6  # entries of an array that a table shows
Both = Mapping[str, Comparison]  # by dtype


def entries(array: np.ndarray, digits: int = 5) -> str:
    """The first entries, row by row."""
    flat = np.round(np.ravel(array), digits) + 0.0  # which makes -0 a 0
    text = " ".join(f"{value:+.{digits}f}" for value in flat[:MOST])
    return text if len(flat) <= MOST else f"{text} …"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right")
    return table


def _pair_columns() -> list[str]:
    return ["by hand", "jax.grad", "difference, float64", "float32"]


def _pair_cells(wide: Pair, narrow: Pair, key: str, at: int | None = None) -> list[str]:
    def one(pair: Pair) -> Pair:
        return pair if at is None else Pair({key: pair.hand[key][at]}, {key: pair.jax[key][at]})

    values = (one(wide).hand[key], one(wide).jax[key])
    return [*map(entries, values), f"{difference(one(wide), key):.1e}", f"{difference(one(narrow), key):.1e}"]


def print_cell(console: Console, name: str, both: Both, by_slopes: Mapping[str, np.ndarray]) -> None:
    """The forward vectors, δ from the last step to the first, and the weights' gradients."""
    wide, narrow = both["float64"], both["float32"]
    console.print(f"[bold]{LABELS[name]}[/bold]   {EQUATIONS[name]}", highlight=False)
    table = _table("Forward, at each step", ["t", *wide.forward.jax])
    steps = len(next(iter(wide.forward.hand.values())))
    for t in range(steps):
        table.add_row(str(t + 1), *(entries(wide.forward.hand[key][t], 4) for key in wide.forward.jax))
    console.print(table)
    table = _table("Backward, from the last step to the first", ["t", "δ", *_pair_columns()])
    for t in reversed(range(steps)):
        for k, key in enumerate(wide.steps.hand):
            cells = _pair_cells(wide.steps, narrow.steps, key, t)
            table.add_row("" if k else str(t + 1), key, *cells, end_section=k == len(wide.steps.hand) - 1)
    console.print(table)
    table = _table(
        "Gradients of the weights: sums over the steps", ["quantity", *_pair_columns(), "finite differences"]
    )
    for key in wide.weights.hand:
        by_difference = f"{np.abs(wide.weights.hand[key] - by_slopes[key]).max():.1e}"
        table.add_row(key, *_pair_cells(wide.weights, narrow.weights, key), by_difference)
    for key in wide.read.hand:
        table.add_row(key, *_pair_cells(wide.read, narrow.read, key), "")
    console.print(table)


def print_readouts(console: Console, wide: Mapping[str, Pair], narrow: Mapping[str, Pair]) -> None:
    """The read-outs alone."""
    for kind, symbol in (("sigmoid", "σ"), ("softmax", "softmax")):
        table = _table(f"Read-out ŷ = {symbol}(h V + c) with cross-entropy", ["quantity", *_pair_columns()])
        for key in wide[kind].hand:
            table.add_row(key, *_pair_cells(wide[kind], narrow[kind], key))
        console.print(table)


def print_layers(console: Console, wide: Mapping[str, Pair], narrow: Mapping[str, Pair]) -> None:
    """The errors between layers, at the last step and the first."""
    table = _table("Two layers: the error handed down", ["cell", "t", "quantity", *_pair_columns()])
    for name, pair in wide.items():
        for key, values in pair.hand.items():
            for t in dict.fromkeys((len(values) - 1, 0)):
                table.add_row(LABELS[name], str(t + 1), key, *_pair_cells(pair, narrow[name], key, t))
    console.print(table)


def print_summary(console: Console, largest: Sequence[Mapping[str, Any]]) -> None:
    """The largest difference of each part."""
    table = _table("The largest difference of all entries", ["compared", "dtype", "difference", "bound", ""])
    for row in largest:
        verdict = "differs: " + ", ".join(row["differ"]) if row["differ"] else "equal"
        table.add_row(row["compared"], row["dtype"], f"{row['difference']:.1e}", f"{row['bound']:.0e}", verdict)
    console.print(table)
