"""A process as most users start it: with JAX's own number of devices, which on a CPU is one.

    python -m tests.support.one_device

It prints as JSON what `unroll` does there, and how far its gradients are from those of a plain scan.
"""

import json
from typing import Any

import jax
import pytest

from tests.support import in_jax
from tests.support.programs import differentiated
from tests.support.registry import bits, cell_of, gap, make
from tests.support.requests import request_of

TIME, BATCH = 41, 64  # 2,624 rows: two segments of 16 steps, and 9 steps left over


def gap_of_gradients(name: str, reverse: bool) -> float:
    case = make(name, (BATCH,), TIME)
    operands = (*case[1:4], make(name, (BATCH,), seed=7).state)
    cotangents = (make(name, (BATCH,), seed=9).state, make(name, (TIME, BATCH), seed=8).state)
    dfinal, dstates = cotangents
    cotangents = (dfinal, 2 * jax.tree.leaves(dstates)[0], dstates)
    masks = {"mask": bits(4, (TIME, BATCH), 0.8), "resets": bits(5, (TIME, BATCH), 0.1)}
    by_hand = differentiated(cell_of(name), None, jit=jax.jit, reverse=reverse)
    got = by_hand(operands, *masks.values(), cotangents)
    return gap(got, in_jax.differentiated(name, operands, cotangents, **masks, reverse=reverse))


def said() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        options = request_of(patch).options
    with jax.enable_x64(True):
        gaps = {direction: gap_of_gradients("gru", direction == "reverse") for direction in ("forward", "reverse")}
    return {"devices": jax.device_count(), "accumulate_once": options.accumulate_once, "gaps": gaps}


if __name__ == "__main__":
    print(json.dumps(said()))
