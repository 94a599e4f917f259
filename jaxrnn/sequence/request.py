"""What every implementation is handed: a request to run a cell over time, validated.

A request has a static part, :class:`Options`, by whose value programs are compiled, and
arrays, :class:`Inputs`. The rest tells an implementation whether it can run the request.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool

from jaxrnn._types import Equations, LayerRules, Params, Placement, PyTree, Rule, State
from jaxrnn.cells._step import cast_floating

Outcome = tuple[State, PyTree, State | None]  # final state, outputs, and the states after each step if asked for


class Options(NamedTuple):
    """What a program is compiled for: static, compared by value."""

    equations: Equations
    reverse: bool = False
    return_states: bool = False
    checkpoint: str | int | None = None  # None, "gates", "sqrt" or the steps of a segment
    compute_dtype: Any = None  # of the operands of matrix products
    output_dtype: Any = None
    clip_gradient: float | None = None  # the cotangent of the state is clipped to ± this between two steps
    placement: Placement | None = None  # the devices that the work is sharded over
    segment: int | None = 1  # the steps that are projected, and accumulated, at a time; `None` is all
    accumulate_once: bool = False  # after the whole sequence; if not, after every segment

    @property
    def keep_gates(self) -> bool:
        """Whether the backward pass reads stored residuals; if not, it computes them from the states."""
        return self.checkpoint != "gates"

    @property
    def rule(self) -> Rule:
        """The rule, for an implementation that supports only cells that have one."""
        assert isinstance(self.equations.rule, Rule)
        return self.equations.rule


class Inputs(NamedTuple):
    """The arrays of a request, in their final dtypes; masked inputs are zero."""

    params: Params
    xs: PyTree  # leaves (T, *B, ·)
    state: State  # before the first step read
    reset_state: State | None
    mask: Bool[Array, "T *B"] | None  # false where a step is masked
    resets: Bool[Array, "T *B"] | None  # true where `reset_state` replaces the state that enters a step
    borders: Bool[Array, "T"] | None  # true where no gradient leaves a step through the state that enters it

    @property
    def time(self) -> int:
        """T."""
        return jax.tree.leaves(self.xs)[0].shape[0]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """*B."""
        return jax.tree.leaves(self.xs)[0].shape[1:-1]


class Device(NamedTuple):
    """What a program will run on."""

    platform: str  # cpu, cuda, rocm, tpu or another of JAX's names
    kind: str  # such as "NVIDIA H200"


class Request(NamedTuple):
    """One call of `unroll`, validated."""

    options: Options
    inputs: Inputs
    features: frozenset[str]  # everything it asks of an implementation; see `FEATURES`
    device: Device
    name: str  # of the cell, for messages

    @property
    def rule(self) -> Rule | LayerRules | None:
        """The rule of the cell, or those of the layers of a network that runs as one cell."""
        return self.options.equations.rule

    @property
    def dtype(self) -> Any:
        """The dtype of the first part of the state."""
        return jax.tree.leaves(self.inputs.state)[0].dtype

    @property
    def hidden_size(self) -> int:
        """H: the last axis of the last part of the state."""
        return jax.tree.leaves(self.inputs.state)[-1].shape[-1]

    @property
    def sequences(self) -> int:
        """How many sequences the batch has."""
        return math.prod(self.inputs.batch_shape)


# What a request may ask of an implementation, as `Request.features` and the table of implementations name it.
OPTIONS = (
    "lengths",
    "mask",
    "resets",
    "reverse",
    "return_states",
    'checkpoint="gates"',
    "checkpoint=K",
    "compute_dtype",
    "truncate",
    "clip_gradient",
)
CLOSURES = "a function that closes over traced values"
PLACES = ("shard_map with its checks", "model_parallel", "a batch on an explicit mesh")
COMPLEX = "a complex state"
SYMBOLIC_TIME, SYMBOLIC_BATCH = SYMBOLS = ("a symbolic number of steps", "a symbolic batch")  # of `jax.export`
DTYPES = ("float32", "float64", "bfloat16, float16", COMPLEX)
PLATFORMS = {"cpu": "a CPU", "cuda": "an NVIDIA GPU", "rocm": "an AMD GPU", "tpu": "a TPU"}
FEATURES = (*OPTIONS, CLOSURES, *PLACES, *SYMBOLS, *DTYPES, *PLATFORMS.values())


def operands(options: Options, params: Params) -> Params:
    """`params` with the matrices in `compute_dtype`, if there is one."""
    if options.compute_dtype is None:
        return params
    for name in options.rule.matrices:
        params = _cast_field(params, name.split("."), options.compute_dtype)
    return params


def _cast_field(params: Params, path: Sequence[str], dtype: Any) -> Params:
    """`params` with the field at a path in `dtype`, if it is there."""
    name, *rest = path
    value = getattr(params, name)
    if value is None:
        return params
    return params._replace(**{name: _cast_field(value, rest, dtype) if rest else cast_floating(value, dtype)})


def step(options: Options, params: Params, state: State, x: PyTree) -> tuple[State, PyTree]:
    """One step of the cell, its state kept in the dtype it came in."""
    if options.compute_dtype is None:
        after, y = options.equations.step(params, state, x)
    else:
        params = operands(options, params)
        after, y, _ = options.rule.forward(params, state, options.rule.project(params, x))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), y
