"""The record that all memory problems are drawn as."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Sequences of a batch, with examples on the first axis."""

    xs: Any  # (B, T) symbols, or (B, T, I) numbers
    targets: Any  # (B,), or (B, T) if every step answers
    lengths: Any = None  # (B,), where they differ
    legal: Any = None  # (B, T, symbols): which may follow
    distance: Any = None  # (B,): steps from what is to be remembered to where it is asked for
    attractors: Any = None  # (B,): what could be mistaken for it in between
