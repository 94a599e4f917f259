"""A Python loop over the cell's step: slow and obvious, the oracle of every other implementation."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrnn.sequence.implementations.protocol import Implementation
from jaxrnn.sequence.masking import replace, select, with_limited_cotangent
from jaxrnn.sequence.request import CLOSURES, SYMBOLIC_BATCH, Inputs, Options, Outcome, step


@dataclasses.dataclass(frozen=True)
class Reference(Implementation):
    """A Python loop, differentiated by JAX. It keeps all that the backward pass needs, whatever `checkpoint` says."""

    name: ClassVar[str] = "reference"
    is_eager: ClassVar[bool] = True
    supports: ClassVar = frozenset({
        "lengths", "mask", "resets", "reverse", "return_states", 'checkpoint="gates"', "checkpoint=K",
        "compute_dtype", "truncate", "clip_gradient", CLOSURES, "shard_map with its checks", "model_parallel",
        "a batch on an explicit mesh", SYMBOLIC_BATCH, "float32", "float64", "bfloat16, float16", "a complex state",
        "a CPU", "an NVIDIA GPU", "an AMD GPU", "a TPU",
    })  # fmt: skip

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        state, ys, states = inputs.state, [], []
        order = range(inputs.time - 1, -1, -1) if options.reverse else range(inputs.time)
        for t in order:
            border = None if inputs.borders is None else inputs.borders[t]
            state = with_limited_cotangent(options.clip_gradient, border, state)
            if inputs.resets is not None:
                state = replace(inputs.resets[t], state, inputs.reset_state)
            after, y = step(options, inputs.params, state, jax.tree.map(lambda leaf, t=t: leaf[t], inputs.xs))
            state = after if inputs.mask is None else select(inputs.mask[t], after, state)
            ys.append(y)
            states.append(state)
        if not inputs.time:
            return _no_steps(options, inputs)
        if options.reverse:
            ys, states = ys[::-1], states[::-1]
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
        return state, stack(ys), stack(states) if options.return_states else None


def _no_steps(options: Options, inputs: Inputs) -> Outcome:
    """The outcome at T = 0, with outputs of the right shapes and dtypes."""
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs.xs)
    shapes = jax.eval_shape(lambda p, s, x: step(options, p, s, x), inputs.params, inputs.state, first)
    states, ys = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), shapes)
    return inputs.state, ys, states if options.return_states else None
