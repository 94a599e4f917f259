"""What runs when no implementation is named: what was measured to be the fastest, else the default.

A row of `MEASURED` stands for figures committed in `experiments/benchmarks/results/`. There are none for any GPU
yet, so that everywhere `unroll` takes "bptt", or "scan" for a cell that has no rule.

The choice is made while tracing, for the device of concrete inputs or else the default device of the
process. A program that is traced on one platform and lowered for another, as by `jax.export` or with inputs
placed elsewhere, must name "bptt" or "scan", which run everywhere, once there are rows; "cudnn" and "pallas" are
refused where that device cannot run them.

What is chosen here must serve every transformation of JAX that the default serves, because nobody can see
from inside which will come: no row may name "cudnn", which has to be asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.backends.calls import Call, made_of, rows_of
from jaxrnn.backends.capability import reason_against

ANY = 2**62


class Measured(NamedTuple):
    """An implementation, and where it was measured to be faster than "bptt"; bounds are inclusive."""

    implementation: str
    device: str  # part of the device's kind, as "H200"
    factory: str  # of the cell, as "lstm"
    dtype: str  # as "float32"
    record: str  # the file of figures
    steps: tuple[int, int] = (1, ANY)
    rows: tuple[int, int] = (1, ANY)
    hidden: tuple[int, int] = (1, ANY)


MEASURED: tuple[Measured, ...] = ()


def _applies(row: Measured, call: Call) -> bool:
    factories = {config.factory for config in made_of(call.cell)}
    asked = call.options["compute_dtype"] or call.dtype
    hidden = jax.tree.leaves(call.state)[-1].shape[-1]
    bounds = ((row.steps, call.sizes[0]), (row.rows, rows_of(call)), (row.hidden, hidden))
    return (
        row.device in call.device.kind
        and factories == {row.factory}
        and jnp.dtype(asked) == jnp.dtype(row.dtype)
        and all(low <= size <= high for (low, high), size in bounds)
    )


def choose(call: Call, measured: Sequence[Measured] = MEASURED) -> str:
    """The first row that applies and whose implementation can serve the call; else the default."""
    for row in measured:
        if _applies(row, call) and reason_against(row.implementation, call) is None:
            return row.implementation
    return "scan" if reason_against("bptt", call) else "bptt"
