"""The attention of a few words, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.command.figures import STYLE, save_figure


class Attention(NamedTuple):
    """Where a decoder looks while it writes a word."""

    word: str
    symbols: Sequence[str]  # U, what is written
    weights: np.ndarray  # (U, T)


def draw_attention(stem: Path, title: str, words: Sequence[Attention]) -> None:
    """Draws the weights of each word: a row for each phoneme that is written, a column for each letter."""
    sizes = [len(own.word) for own in words]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        height = 1.2 + 0.26 * max(len(own.symbols) for own in words)
        figure = Figure(figsize=(1.2 + 0.33 * sum(sizes), height), layout="constrained")
        axes = figure.subplots(1, len(words), squeeze=False, width_ratios=sizes)[0]
        for axis, own in zip(axes, words, strict=True):
            axis.imshow(own.weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(own.word)), list(own.word))
            axis.set_yticks(range(len(own.symbols)), list(own.symbols), fontsize=9)
            axis.tick_params(length=0)
        axes[0].set_ylabel("written")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        save_figure(figure, stem)
