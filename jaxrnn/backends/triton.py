"""Kernels handed to Triton, Pallas' compiler for NVIDIA GPUs; interpreted on any platform."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.kernels import Memory


def available() -> bool:
    """Whether this version of JAX has the compiler."""
    try:
        import jax.experimental.pallas.triton  # noqa: F401
    except ImportError:
        return False
    return True


def memory() -> Memory:
    """Reading and writing of blocks."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def load(ref: Any, index: tuple[Any, ...], inside: jax.Array) -> jax.Array:
        return triton.load(ref.at[index], mask=inside, other=jnp.zeros((), ref.dtype))

    def store(ref: Any, index: tuple[Any, ...], inside: jax.Array, value: jax.Array) -> None:
        triton.store(ref.at[index], value, mask=inside)

    return Memory(lambda: pl.program_id(0), load, store)


def launch(body: Any, given: Any, out: Any, programs: int, warps: int, interpret: bool, name: str) -> Any:
    """`body(given, out)` in every program, both being trees of references; returns arrays shaped as `out`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    given_leaves, given_tree = jax.tree.flatten(given)
    out_leaves, out_tree = jax.tree.flatten(out)

    def kernel(*refs: Any) -> None:
        n = len(given_leaves)
        body(given_tree.unflatten(refs[:n]), out_tree.unflatten(refs[n:]))

    call = pl.pallas_call(
        kernel,
        out_shape=out_leaves,
        grid=(programs,),
        interpret=interpret,
        name=name,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    )
    return out_tree.unflatten(call(*given_leaves))


__all__ = ["available", "functools", "launch", "memory"]
