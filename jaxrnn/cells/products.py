"""The products with a weight that a rule of one's own is written in.

With them a rule has what the library's rules have: operands in `compute_dtype`, DropConnect and
recurrent dropout of :func:`jaxrnn.regularize`, blocks of heads, and weights whose columns are
sharded over devices. A driver may hand a rule a weight that is no array, but one of those; `@` does
not know them.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._algebra import Dropped, Sharded, Transposed, Weight

WEIGHT = "of shape (N, M), (N,) or (heads, D, G*D)"


def dot(x: Inexact[Array, "*B N"], w: Weight) -> Inexact[Array, "*B M"]:
    """The product x w of a weight of a cell, over the last axis of x.

    Args:
        x: `(*B, N)`, floating-point, any leading axes.
        w: a field of a cell's parameters: a matrix `(N, M)`, a vector `(N,)` for a diagonal matrix, or the
            blocks `(heads, D, G*D)` of a block-diagonal matrix, N = heads * D, the gates of a head side by side.
            `unroll` may have put a weight in its place that drops units or is sharded.

    Returns:
        `(*B, M)` in the dtype of x, M = G*N with blocks. The operands are rounded to the dtype of w, and the product
        accumulates in that of x: `compute_dtype` gives a bfloat16 w.

    Raises:
        TypeError, ValueError: for something that is no weight, or x of another size.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.dot(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
        (2, 4)

    Differs from:
        1. `x @ w`, which promotes both operands to the wider dtype, and fails for a weight that drops units.
    """
    _check_weight("dot", w)
    _check_last("dot", "x", x, alg.units(w), w)
    return alg.dot(x, w)


def dot_transposed(d: Inexact[Array, "*B M"], w: Weight) -> Inexact[Array, "*B N"]:
    """The product d wᵀ: the cotangent of x in `dot(x, w)`.

    Args:
        d: `(*B, M)`, the cotangent of the product.
        w: as in :func:`jaxrnn.dot`, or what :func:`jaxrnn.prepare_transposed` made of it.

    Returns:
        `(*B, N)` in the dtype of d.

    Raises:
        TypeError, ValueError: for something that is no weight, or d of another size.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.dot_transposed(jnp.ones((2, 4)), jnp.ones((3, 4))).shape
        (2, 3)
    """
    _check_weight("dot_transposed", w)
    _check_last("dot_transposed", "d", d, _columns(w), w)
    return alg.dot_transposed(d, w)


def weight_gradient(x: Inexact[Array, "*B N"], d: Inexact[Array, "*B M"], w: Weight) -> Array:
    """The sum Σ xᵀ d over all leading axes: the cotangent of w in `dot(x, w)`, for `Rule.accumulate`.

    Args:
        x: `(*B, N)`, what the product read.
        d: `(*B, M)`, its cotangent, with the same leading axes.
        w: the weight, as in :func:`jaxrnn.dot`.

    Returns:
        An array in the shape of the weight's matrix, and the dtype of d.

    Raises:
        TypeError, ValueError: for something that is no weight, or x or d of other sizes.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.weight_gradient(jnp.ones((5, 2, 3)), jnp.ones((5, 2, 4)), jnp.ones((3, 4)))[0].tolist()
        [10.0, 10.0, 10.0, 10.0]
    """
    where = "weight_gradient"
    _check_weight(where, w)
    if isinstance(w, Transposed):
        raise TypeError(f"{where}: w expected the weight itself, got its transpose; accumulate gets it in its params")
    _check_last(where, "x", x, alg.units(w), w)
    _check_last(where, "d", d, _columns(w), w)
    if x.shape[:-1] != d.shape[:-1]:
        raise ValueError(f"{where}: x and d expected the same leading axes, got {x.shape} and {d.shape}")
    return alg.outer(x, d, w)


def weight_columns(w: Weight, start: int, stop: int) -> Weight:
    """The columns of some gates of a weight, where a rule multiplies them with something else than the rest.

    Args:
        w: the weight, as in :func:`jaxrnn.dot`, or what :func:`jaxrnn.prepare_transposed` made of it.
        start, stop: the first column, and the one after the last; with blocks of heads those of whole gates.

    Returns:
        A weight, for the products of this module.

    Raises:
        TypeError, ValueError: for something that is no weight, or columns that it does not have.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.weight_columns(jnp.ones((2, 6)), 4, 6).shape
        (2, 2)
    """
    where = "weight_columns"
    _check_weight(where, w)
    last, count = _columns(w), alg.heads(w)
    if not all(map(_checks.is_integer, (start, stop))) or not 0 <= start < stop <= last:
        raise ValueError(
            f"{where}: start and stop expected integers with 0 <= start < stop <= {last}, got {start!r} and {stop!r}"
        )
    if start % count or stop % count:
        raise ValueError(
            f"{where}: start and stop expected columns of whole gates of {count} heads, got {start} and {stop}"
        )
    return alg.columns(w, int(start), int(stop))


def prepare_transposed(*names: str) -> Any:
    """A `Rule.prepare` that transposes matrices in memory once, before the loop of the backward pass.

    Inside the loop a product with a matrix as it stands is faster than one with its transpose.

    Args:
        names: of the fields of the parameters that `Rule.backward` gives to :func:`jaxrnn.dot_transposed`. A field
            that is `None` stays so.

    Returns:
        `(params) -> params`.

    Raises:
        TypeError: for names that are not strings, or none.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.prepare_transposed("w_h") == jaxrnn.gru(4).rule.prepare
        True
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"prepare_transposed: names expected those of fields of params, got {_checks.describe(names)}")
    return Bound(alg.transpose, names)


def _columns(w: Any) -> int:
    """M."""
    if isinstance(w, Transposed):
        return w.w.shape[-2] * alg.heads(w)
    matrix = w.w if isinstance(w, (Dropped, Sharded)) else w
    return matrix.shape[-1] * alg.heads(w)


def _array(w: Any) -> Any:
    return w.w if isinstance(w, (Dropped, Sharded, Transposed)) else w


def _check_weight(where: str, w: Any) -> None:
    matrix = _array(w)
    if not _checks.is_array(matrix) or not jnp.issubdtype(matrix.dtype, jnp.inexact):
        raise TypeError(f"{where}: w expected a floating-point weight {WEIGHT}, got {_checks.describe(w)}")
    if matrix.ndim not in (1, 2, 3):
        raise ValueError(f"{where}: w expected a weight {WEIGHT}, got shape {matrix.shape}")


def _check_last(where: str, name: str, x: Any, size: int, w: Any) -> None:
    if not _checks.is_array(x) or not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{where}: {name} expected a floating-point array, got {_checks.describe(x)}")
    if not x.ndim or x.shape[-1] != size:
        raise ValueError(f"{where}: {name} expected a last axis of {size}, as w has, got shape {x.shape}")
    if jnp.iscomplexobj(x) != jnp.iscomplexobj(_array(w)):  # it would be rounded to the dtype of w
        raise TypeError(
            f"{where}: {name} and w expected both real or both complex, got {x.dtype} and {_array(w).dtype}"
        )
