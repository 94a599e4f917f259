"""Triton, through Pallas: how the kernels read and write memory, and how they are launched.

Why Triton and not Mosaic GPU, the other compiler of Pallas:

1. Its products take 16 rows, the sequences of a small batch. Mosaic's take the 64 of a warp group.
2. It multiplies in float32 itself. Mosaic reads float32 as TF32.
3. It supports cards older than Hopper.
4. Its kernels can be interpreted, lowered and compiled on a machine without a GPU.

It keeps what a loop does not change in shared memory by itself. Mosaic could share weights between
a cluster of multiprocessors. JAX deprecates Triton in Pallas from 0.11 on. Another kernel language
would replace this file alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.sequence.implementations.kernels.blocks import Memory


def is_available() -> bool:
    """Whether this JAX has it."""
    try:
        import jax.experimental.pallas.triton  # noqa: F401
    except ImportError:
        return False
    return True


def _memory() -> Memory:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def load(ref: Any, index: tuple[Any, ...], inside: jax.Array) -> jax.Array:
        return triton.load(ref.at[index], mask=inside, other=jnp.zeros((), ref.dtype))

    def store(ref: Any, index: tuple[Any, ...], inside: jax.Array, value: jax.Array) -> None:
        triton.store(ref.at[index], value, mask=inside)

    return Memory(lambda: pl.program_id(0), load, store)


def launch(
    name: str,
    body: Callable[[Memory, Any, Any], None],
    given: Any,
    out: Any,
    programs: int,
    warps: int,
    interpret: bool,
) -> Any:
    """Arrays shaped as `out`, written by `body(memory, given, out)` in every program.

    Inside, the leaves of `given` and `out` are references to the whole arrays. `given.weights`
    are what products are taken with.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    inputs, structure = jax.tree.flatten(given)
    outputs, structure_out = jax.tree.flatten(out)

    def kernel(*refs: Any) -> None:
        body(_memory(), structure.unflatten(refs[: len(inputs)]), structure_out.unflatten(refs[len(inputs) :]))

    call = pl.pallas_call(
        kernel,
        out_shape=outputs,
        grid=(programs,),
        interpret=interpret,
        name=name,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    )
    with jax.default_matmul_precision(_wanted() if interpret else _precision(given.weights.dtype)):
        return structure_out.unflatten(call(*inputs))


def _wanted() -> str | None:
    """What `jax.default_matmul_precision` says."""
    return getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009


def _is_split(dtype: Any) -> bool:
    """Whether products of weights of this dtype are to be those of float32 itself."""
    precision = _wanted()
    return jnp.dtype(dtype) == jnp.float32 and precision in ("highest", "float32")


def bytes_of_weight(dtype: Any) -> int:
    """What a weight takes in shared memory: split into two TF32 numbers, twice its size."""
    return jnp.dtype(dtype).itemsize * (2 if _is_split(dtype) else 1)


def _precision(dtype: Any) -> Any:
    """That of JAX, but float32 itself as three products in TF32.

    Multiplied number by number, it takes programs so long that they compile for minutes.
    """
    return "TF32_TF32_F32_X3" if _is_split(dtype) else _wanted()
