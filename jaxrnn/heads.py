"""Parameters of cells with heads as those of dense cells, and back.

The recurrent matrix of a cell with N heads of D = H/N units is block-diagonal. `w_h (N, D, G*D)`
holds the blocks, with the G gates of a head side by side. The dense `w_h (H, G*H)` of the same
function has zeros between the blocks of each gate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn._types import PyTree
from jaxrnn.cells import FAMILIES

RECORDS = tuple(
    type(family.config(1).shapes(1)) for family in FAMILIES if hasattr(family.config, "num_heads")
)  # of the parameters of cells that may have heads


def merge_heads(params: PyTree) -> PyTree:
    """The same function without heads: every block-diagonal `w_h` written as a dense matrix with zeros.

    Peers that have no heads, such as PyTorch, Keras and ONNX, can hold the result.

    Args:
        params: of a cell, such as :class:`LSTMParams`, or any pytree that holds them, such as those of a network.

    Returns:
        The same tree; each `w_h (N, D, G*D)` is `(H, G*H)`, and everything else is as it was.

    Raises:
        ValueError: for a tree without heads.
        NotImplementedError: for layer normalisation by head, which no dense cell has.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.gru(8, num_heads=2).init(jax.random.key(0), 3)
        >>> jaxrnn.merge_heads(params).w_h.shape
        (8, 24)
    """
    where = "merge_heads"

    def merged(record: Any) -> Any:
        if getattr(record.w_h, "ndim", 0) != 3:
            return record
        if getattr(record, "norm", None) is not None:
            raise NotImplementedError(
                f"{where}: params expected a cell without layer normalisation, got {type(record).__name__} with norm; "
                "each head is normalised by itself, which a dense cell does not do"
            )
        return record._replace(w_h=dense(jnp.asarray(record.w_h)))

    def is_headed(record: Any) -> bool:
        return getattr(record.w_h, "ndim", 0) == 3

    return _changed(where, params, merged, is_headed, "a cell with heads")


def split_heads(params: PyTree, num_heads: int) -> PyTree:
    """The same function with heads: the inverse of :func:`merge_heads`.

    Args:
        params: of a cell, such as :class:`LSTMParams`, or any pytree that holds them. In each dense `w_h` all
            entries between units of different heads are exactly zero.
        num_heads: N, which divides each H.

    Returns:
        The same tree; each `w_h (H, G*H)` is `(N, D, G*D)`, and everything else is as it was.

    Raises:
        TypeError: under `jax.jit`, where entries cannot be read.
        ValueError: for entries between heads that are not zero, a tree without dense recurrent matrices, or a size
            that `num_heads` does not divide.
        NotImplementedError: for a projection or layer normalisation, with which the function is another.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.gru(8, num_heads=2).init(jax.random.key(0), 3)
        >>> dense = jaxrnn.merge_heads(params)
        >>> bool((jaxrnn.split_heads(dense, 2).w_h == params.w_h).all())
        True
    """
    where = "split_heads"
    num_heads = _checks.size(where, "num_heads", num_heads)
    if num_heads < 2:
        raise ValueError(f"{where}: num_heads expected at least 2, got {num_heads}; a dense cell has one head")

    def split(record: Any) -> Any:
        for name in ("norm", "w_proj"):
            if getattr(record, name, None) is not None:
                raise NotImplementedError(
                    f"{where}: params expected a cell without projection and layer normalisation, "
                    f"got {type(record).__name__} with {name}"
                )
        return record._replace(w_h=blocks(where, record.w_h, num_heads))

    def is_dense(record: Any) -> bool:
        return getattr(record.w_h, "ndim", 0) == 2

    return _changed(where, params, split, is_dense, "a cell with a dense recurrent matrix")


def _changed(
    where: str, params: PyTree, change: Callable[[Any], Any], applies: Callable[[Any], bool], expected: str
) -> PyTree:
    """The tree with `change` made to each record to which it applies; raises if there is none."""

    def is_record(node: Any) -> bool:
        return isinstance(node, RECORDS)

    nodes = _checks.leaves(where, "params", params, is_leaf=is_record)
    if not any(is_record(node) and applies(node) for node in nodes):
        raise ValueError(f"{where}: params expected those of {expected}, got {_checks.describe(params)}")
    return jax.tree.map(
        lambda node: change(node) if is_record(node) and applies(node) else node, params, is_leaf=is_record
    )


def dense(w_h: Float[Array, "N D GD"]) -> Float[Array, "H GH"]:
    """The block-diagonal matrix of these blocks, with gates side by side over all units."""
    heads, size, columns = w_h.shape
    by_gate = w_h.reshape(heads, size, columns // size, size)
    whole = jnp.zeros((heads, size, columns // size, heads, size), w_h.dtype)
    at = jnp.arange(heads)
    return whole.at[at, :, :, at, :].set(by_gate).reshape(heads * size, heads * columns)


def blocks(where: str, w_h: Any, heads: int) -> Float[Array, "N D GD"]:
    """The blocks of a dense matrix whose other entries are zero."""
    if isinstance(w_h, Tracer):
        raise TypeError(f"{where}: params.w_h expected an array with values, got a tracer; call it outside of jax.jit")
    rows, columns = w_h.shape
    if rows % heads or columns % rows:
        raise ValueError(
            f"{where}: num_heads expected a number that divides the H of params.w_h (H, G*H), "
            f"got {heads} and shape {tuple(w_h.shape)}"
        )
    size, gates = rows // heads, columns // rows
    whole = np.asarray(w_h).reshape(heads, size, gates, heads, size)
    same = np.eye(heads, dtype=bool)[:, None, None, :, None]
    between = np.count_nonzero(np.where(same, 0, whole))
    if between:
        raise ValueError(
            f"{where}: params.w_h expected zeros between the units of different heads, got {between} other entries "
            f"in shape {tuple(w_h.shape)} for {heads} heads; the cell is dense"
        )
    at = np.arange(heads)
    return jnp.asarray(whole[at, :, :, at, :].reshape(heads, size, gates * size))
