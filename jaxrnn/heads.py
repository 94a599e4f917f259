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

from jaxrnn import _checks
from jaxrnn._describe import cut
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

    def merged(name: str, record: Any) -> Any:
        if getattr(record, "norm", None) is not None:
            raise NotImplementedError(
                f"{where}: {name} expected a cell without layer normalisation, got {type(record).__name__} with norm; "
                "each head is normalised by itself, which a dense cell does not do"
            )
        if _checks.attribute(record.w_x, "ndim") != 2:  # `w_h` then has an axis of layers or of cells, not of heads
            raise ValueError(
                f"{where}: {name}.w_x expected a matrix, got {_checks.describe(record.w_x)}; "
                "of several cells in one array, call it under jax.vmap"
            )
        check_blocks(where, f"{name}.w_h", record.w_h)
        return record._replace(w_h=dense(record.w_h))

    return _changed(where, params, merged, 3, "a cell with heads")


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
    num_heads = _checks.size("split_heads", "num_heads", num_heads)
    if num_heads < 2:
        raise ValueError(f"split_heads: num_heads expected at least 2, got {num_heads}; a dense cell has one head")
    return split("split_heads", params, num_heads)


def split(where: str, params: PyTree, num_heads: int) -> PyTree:
    """What :func:`split_heads` returns, for a function `where`."""

    def changed(name: str, record: Any) -> Any:
        for field in ("norm", "w_proj"):
            if getattr(record, field, None) is not None:
                raise NotImplementedError(
                    f"{where}: {name} expected a cell without projection and layer normalisation, "
                    f"got {type(record).__name__} with {field}; with heads it is another function"
                )
        w_h, name = record.w_h, f"{name}.w_h"
        if isinstance(w_h, Tracer):
            raise TypeError(f"{where}: {name} expected an array with values, got a tracer; call it outside of jax.jit")
        _checks.floating(where, name, w_h)
        taken = blocks(where, name, np.asarray(w_h), num_heads)
        return record._replace(w_h=taken if isinstance(w_h, np.ndarray) else jnp.asarray(taken))

    return _changed(where, params, changed, 2, "a cell with a dense recurrent matrix")


def _changed(where: str, params: PyTree, change: Callable[[str, Any], Any], axes: int, expected: str) -> PyTree:
    """The tree with `change` made to each record whose `w_h` has so many axes; raises if there is none."""

    def is_record(node: Any) -> bool:
        return isinstance(node, RECORDS)

    def applies(node: Any) -> bool:
        return is_record(node) and _checks.attribute(node.w_h, "ndim") == axes

    def changed(path: Any, node: Any) -> Any:
        return change(f"params{cut(jax.tree_util.keystr(path), 80)}", node) if applies(node) else node

    if not any(map(applies, _checks.leaves(where, "params", params, is_leaf=is_record))):
        raise ValueError(f"{where}: params expected those of {expected}, got {_checks.describe(params)}")
    return jax.tree.map_with_path(changed, params, is_leaf=is_record)


def check_blocks(where: str, name: str, w_h: Any) -> None:
    """Raises unless `w_h` has the shape `(N, D, G*D)`."""
    shape = _checks.floating(where, name, w_h).shape
    if 0 in shape or shape[2] % shape[1]:
        raise ValueError(f"{where}: {name} expected shape (N, D, G*D), got {shape}; the gates of a head have D columns")


def dense(w_h: Any) -> Any:
    """The block-diagonal matrix `(H, G*H)` of the blocks `(N, D, G*D)`, with gates side by side over all units.

    A matrix is returned as it is; of NumPy's arrays the result is one of NumPy's.
    """
    if w_h.ndim != 3:
        return w_h
    xp = np if isinstance(w_h, np.ndarray) else jnp
    heads, size, columns = w_h.shape
    by_gate = w_h.reshape(heads, size, columns // size, 1, size)
    same = np.eye(heads, dtype=bool)[:, None, None, :, None]
    return xp.where(same, by_gate, xp.zeros_like(by_gate)).reshape(heads * size, heads * columns)


def blocks(where: str, name: str, w_h: np.ndarray, heads: int) -> np.ndarray:
    """The blocks `(N, D, G*D)` of a dense matrix whose other entries are zero; `name` is that of the matrix."""
    rows, columns = w_h.shape
    if not rows or not columns or rows % heads or columns % rows:
        raise ValueError(
            f"{where}: num_heads expected a number that divides the H of {name} (H, G*H), "
            f"got {heads} and shape {w_h.shape}"
        )
    size, gates = rows // heads, columns // rows
    whole, at = w_h.reshape(heads, size, gates, heads, size), np.arange(heads)
    taken = whole[at, :, :, at, :]
    between = np.count_nonzero(whole) - np.count_nonzero(taken)
    if between:
        raise ValueError(
            f"{where}: {name} expected zeros between the units of different heads, got {between} other entries "
            f"in shape {w_h.shape} for {heads} heads; the cell is dense"
        )
    return taken.reshape(heads, size, gates * size)
