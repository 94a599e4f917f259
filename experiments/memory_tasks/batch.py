"""The record that all memory problems are drawn as."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Sequences side by side, time first."""

    xs: Any  # (T, B) symbols, or (T, B, I) numbers
    targets: Any  # (B,), or (T, B) if every step answers
    lengths: Any = None  # (B,), where they differ
    legal: Any = None  # (T, B, symbols): which may follow
    distance: Any = None  # (B,): steps from what is to be remembered to where it is asked for
    attractors: Any = None  # (B,): what could be mistaken for it in between
