"""Flax NNX modules as the pure functions that the training loop takes."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


class Functional(NamedTuple, Generic[Module]):
    """A module split into a function that makes its parameters and one that binds parameters to it."""

    init: Callable[[jax.Array], nnx.State]  # of a random key
    bind: Callable[[Any], Module]  # the module with these parameters


def functional(make: Callable[[nnx.Rngs], Module]) -> Functional[Module]:
    """Splits a module that `make` builds from random streams.

    Only `nnx.Param`s are trained; noise is drawn from a key given to the call, not from a stream of the module.
    """
    graph, _, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)

    def init(key: jax.Array) -> nnx.State:
        return nnx.state(make(nnx.Rngs(key)), nnx.Param)

    def bind(params: nnx.State) -> Module:
        return nnx.merge(graph, params, rest)

    return Functional(init, bind)
