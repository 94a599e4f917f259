"""`jax.lax.scan` over the cell's step, products and all inside the loop, with the derivative left to JAX.

It supports forward mode and every other transformation.
"""

import dataclasses
from typing import ClassVar

import jax

from jaxrnn.sequence.implementations.protocol import Implementation
from jaxrnn.sequence.masking import replace, select, with_limited_cotangent
from jaxrnn.sequence.request import CLOSURES, SYMBOLS, Inputs, Options, Outcome, step


@dataclasses.dataclass(frozen=True)
class Scan(Implementation):
    """A plain scan under automatic differentiation."""

    name: ClassVar[str] = "scan"
    supports: ClassVar = frozenset({
        "lengths", "mask", "resets", "reverse", "return_states", "checkpoint=K",
        "compute_dtype", "truncate", "clip_gradient", CLOSURES, "shard_map with its checks", "model_parallel",
        "a batch on an explicit mesh", *SYMBOLS, "float32", "float64", "bfloat16, float16", "a complex state",
        "a CPU", "an NVIDIA GPU", "an AMD GPU", "a TPU",
    })  # fmt: skip
    reasons: ClassVar = {
        'checkpoint="gates"': "only a rule knows which of its values are gates; an integer or 'sqrt' is supported"
    }

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        def body(state, now):
            x, mask, reset, border = now
            state = with_limited_cotangent(options.clip_gradient, border, state)
            before = replace(reset, state, inputs.reset_state)
            after, y = step(options, inputs.params, before, x)
            after = select(mask, after, before)
            return after, (y, after if options.return_states else None)

        over_time = (inputs.xs, inputs.mask, inputs.resets, inputs.borders)
        final, (ys, states) = jax.lax.scan(body, inputs.state, over_time, reverse=options.reverse)
        return final, ys, states
