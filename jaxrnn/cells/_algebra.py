"""The array operations that every cell is written in.

A weight is a matrix `(N, M)`, a vector `(N,)` that stands for a diagonal matrix, the blocks
`(heads, D, G*D)` of a block-diagonal matrix, a :class:`Dropped` or :class:`Sharded` matrix, or in
the backward loop a :class:`Transposed` one.
`dot`, `dot_transposed` and `outer` are a product with it and the two cotangents of that product.
Products take their operands in the dtype of the weight and accumulate in the dtype of the
other operand: weights in bfloat16 with states in float32 give mixed-precision products.

The blocks of a block-diagonal matrix have the gates of their head side by side. What they read
and give is that of the whole matrix: `(*B, H)` and `(*B, G*H)`, H = heads * D, with the units of a
head side by side in each gate. A product is one batched product over the heads: on a CPU it is
faster than one product with the zeros between the blocks, and as fast as one product for each head,
in a program that does not grow with the heads.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact


class Dropped(NamedTuple):
    """A matrix whose input units are dropped, for each sequence its own: x (diag(keep) w)."""

    w: Float[Array, "N M"]
    keep: Bool[Array, "*B N"]


class Sharded(NamedTuple):
    """The columns of a matrix that one of several devices holds, inside `shard_map`.

    The units that the matrix reads are sharded over the same devices. A product gathers them,
    `(*B, N)` from every device's `(*B, N/n)`. Their cotangents are summed over the devices and scattered.
    """

    w: Float[Array, "N M"]
    axis: str  # of the mesh


class Transposed(NamedTuple):
    """The transpose of a weight, in memory, for `dot_transposed` alone.

    A product with a matrix as it stands is faster than one with its transpose.
    """

    w: Float[Array, "M N"]
    keep: Bool[Array, "*B N"] | None
    axis: str | None = None  # of a `Sharded` matrix


Weight = Array | Dropped | Sharded | Transposed


def _kept(x: Array, keep: Array | None) -> Array:
    """The units of x that are kept; `None` keeps all."""
    return x if keep is None else jnp.where(jnp.broadcast_to(keep, x.shape), x, jnp.zeros_like(x))


def _matrix(w: Weight) -> tuple[Array, Array | None]:
    """The array of a weight, and the units it reads, `None` for all."""
    assert not isinstance(w, Transposed)
    if isinstance(w, Sharded):
        return w.w, None
    return (w.w, w.keep) if isinstance(w, Dropped) else (w, None)


def _axis(w: Weight) -> str | None:
    """The mesh axis over which the columns of a weight, and what it reads, are sharded."""
    return w.axis if isinstance(w, (Sharded, Transposed)) else None


def _gathered(x: Array, axis: str | None) -> Array:
    """The last axis of x from all devices."""
    return x if axis is None else lax.all_gather(x, axis, axis=x.ndim - 1, tiled=True)


def _scattered(dx: Array, axis: str | None) -> Array:
    """The transpose of `_gathered`: the sum over all devices, of which each has its part."""
    return dx if axis is None else lax.psum_scatter(dx, axis, scatter_dimension=dx.ndim - 1, tiled=True)


def heads(w: Weight) -> int:
    """The blocks of a block-diagonal matrix; 1 of any other weight."""
    matrix = w.w if isinstance(w, Transposed) else _matrix(w)[0]
    return matrix.shape[0] if matrix.ndim == 3 else 1


def _by_head(x: Float[Array, "*B H"], w: Float[Array, "N D M"]) -> Float[Array, "*B N D"]:
    """The units of each head."""
    return x.reshape(*x.shape[:-1], w.shape[0], w.shape[1])


def _columns_by_head(d: Float[Array, "*B GH"], size: int, count: int) -> Float[Array, "*B N GD"]:
    """The columns of each head, from gates side by side; `size` is D, and `count` N."""
    gates = d.shape[-1] // (size * count)
    d = jnp.moveaxis(d.reshape(*d.shape[:-1], gates, count, size), -2, -3)
    return d.reshape(*d.shape[:-2], gates * size)


def _product_by_head(x: Float[Array, "*B N K"], w: Float[Array, "N K M"], dtype: Any) -> Float[Array, "N *B M"]:
    return lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((x.ndim - 2,), (0,))), preferred_element_type=dtype)


def _gates_side_by_side(a: Float[Array, "N *B GD"], size: int) -> Float[Array, "*B GH"]:
    """The inverse of `_columns_by_head`, from the axes of a product; `size` is D."""
    count, *batch, columns = a.shape
    a = jnp.moveaxis(a.reshape(count, *batch, columns // size, size), 0, -2)
    return a.reshape(*batch, count * columns)


def units(w: Weight) -> int:
    """The units that a weight reads, those on this device for a `Sharded` one."""
    matrix, _ = _matrix(w)
    axis = _axis(w)
    count = matrix.shape[0] * matrix.shape[1] if matrix.ndim == 3 else matrix.shape[0]
    return count // (1 if axis is None else lax.axis_size(axis))


def shape(w: Weight) -> tuple[int, int]:
    """The units that a matrix reads, those on this device for a `Sharded` one, and its columns."""
    return units(w), heads(w) * _matrix(w)[0].shape[-1]


def dot(x: Float[Array, "*B N"], w: Weight) -> Float[Array, "*B M"]:
    """x w, over the last axis of x."""
    matrix, keep = _matrix(w)
    operand = _gathered(_kept(x, keep).astype(matrix.dtype), _axis(w))
    if matrix.ndim == 1:
        return (operand * jnp.broadcast_to(matrix, x.shape)).astype(x.dtype)
    if matrix.ndim == 3:
        a = _product_by_head(_by_head(operand, matrix), matrix, x.dtype)
        return _gates_side_by_side(a, matrix.shape[1])
    return lax.dot_general(operand, matrix, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=x.dtype)


def transpose(names: tuple[str, ...], params: Any) -> Any:
    """`params` with the matrices of these names, where they are not `None`, as :class:`Transposed`."""

    def transposed(w: Weight) -> Weight:
        matrix, keep = _matrix(w)
        return w if matrix.ndim == 1 else Transposed(jnp.swapaxes(matrix, -1, -2), keep, _axis(w))

    present = [name for name in names if getattr(params, name) is not None]
    return params._replace(**{name: transposed(getattr(params, name)) for name in present})


def dot_transposed(d: Float[Array, "*B M"], w: Weight) -> Float[Array, "*B N"]:
    """d wᵀ, over the last axis of d: the cotangent of x in x w."""
    if isinstance(w, Transposed) and w.w.ndim == 3:
        return _kept(_dot_transposed_by_head(d.astype(w.w.dtype), w.w, d.dtype), w.keep)
    if isinstance(w, Transposed):
        return _kept(_scattered(dot(d, w.w), w.axis), w.keep)
    matrix, keep = _matrix(w)
    if matrix.ndim == 3:
        return _kept(_dot_transposed_by_head(d.astype(matrix.dtype), jnp.swapaxes(matrix, 1, 2), d.dtype), keep)
    operand = d.astype(matrix.dtype)
    if matrix.ndim == 1:
        dx = (operand * jnp.broadcast_to(matrix, d.shape)).astype(d.dtype)
    else:
        dx = lax.dot_general(operand, matrix, (((d.ndim - 1,), (1,)), ((), ())), preferred_element_type=d.dtype)
    return _kept(_scattered(dx, _axis(w)), keep)


def _dot_transposed_by_head(d: Float[Array, "*B GH"], w: Float[Array, "N GD D"], dtype: Any) -> Float[Array, "*B H"]:
    """The cotangent of what the blocks read; `w` holds their transposes."""
    count, _, size = w.shape
    return _gates_side_by_side(_product_by_head(_columns_by_head(d, size, count), w, dtype), size)


def outer(x: Float[Array, "*B K"], d: Float[Array, "*B M"], w: Weight) -> Float[Array, "..."]:
    """Σ xᵀ d over all leading axes: the cotangent of w in x w, in the dtype of d. K is N, or N/n for a `Sharded` w."""
    matrix, keep = _matrix(w)
    leading = tuple(range(x.ndim - 1))
    accumulator = d.dtype
    x, d = _gathered(_kept(x, keep).astype(matrix.dtype), _axis(w)), d.astype(matrix.dtype)
    if matrix.ndim == 1:
        return jnp.sum(x.astype(accumulator) * d.astype(accumulator), leading)
    if matrix.ndim == 3:
        by_head = (_by_head(x, matrix), _columns_by_head(d, matrix.shape[1], matrix.shape[0]))
        axes = ((leading, leading), ((x.ndim - 1,), (x.ndim - 1,)))
        return lax.dot_general(*by_head, axes, preferred_element_type=accumulator)
    return lax.dot_general(x, d, ((leading, leading), ((), ())), preferred_element_type=accumulator)


def columns(w: Weight, start: int, stop: int) -> Weight:
    """The columns `start` to `stop` of a weight, whole gates of a block-diagonal one."""
    start, stop = start // heads(w), stop // heads(w)  # in every head
    if isinstance(w, Transposed):
        return w._replace(w=w.w[..., start:stop, :])
    return w._replace(w=w.w[..., start:stop]) if isinstance(w, (Dropped, Sharded)) else w[..., start:stop]


def total(d: Inexact[Array, "*B M"]) -> Inexact[Array, "M"]:
    """Σ d over all leading axes: the cotangent of a bias."""
    return d.sum(tuple(range(d.ndim - 1)), dtype=d.dtype)


def add(a: Float[Array, "*B M"], b: Float[Array, "M"] | None) -> Float[Array, "*B M"]:
    """a + b, b being `None` where the cell has no bias."""
    return a if b is None else a + jnp.broadcast_to(b, a.shape)


def identity(a: Array) -> Array:
    """a."""
    return a


def plus(a: Array | None, b: Array) -> Array:
    """a + b, `None` being nothing to add to."""
    return b if a is None else a + b


def scale(a: Float[Array, "*B M"], s: Float[Array, "M"]) -> Float[Array, "*B M"]:
    """a ⊙ s, for every row of a."""
    return a * jnp.broadcast_to(s, a.shape)


def split(a: Float[Array, "*B GH"], gates: int) -> list[Array]:
    """The blocks of the gates, in order."""
    return jnp.split(a, gates, axis=-1)


def sigmoid_slope(s: Array) -> Array:
    """σ' from the value s = σ(a)."""
    return s * (1 - s)


def relu_slope(y: Array) -> Array:
    """relu' from the value y = max(a, 0); 0 at a = 0."""
    return (y > 0).astype(y.dtype)


def tanh_slope(y: Array) -> Array:
    """tanh' from the value y = tanh(a)."""
    return 1 - y * y
