"""Folds `DequantizeLinear` and `QuantizeLinear` of constants, as ONNX defines them and ONNX Runtime computes them.

`DequantizeLinear` is (x - zero point) scale, in float32 and then in the type of the scale. `QuantizeLinear` is
x / scale, rounded to the nearest integer, halves to the even one, plus the zero point, within the range of its type.
The scale is one number, one for each index of an axis, or one for each block of several.

The weights of ONNX Runtime's `DynamicQuantizeLSTM` are quantised as a whole, or for each row of W and R.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._describe import describe

INTEGERS = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32")
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
SCALES = ("float32", "float16", "bfloat16")
KNOWN = {
    "DequantizeLinear": ("axis", "block_size", "output_dtype"),
    "QuantizeLinear": ("axis", "block_size", "saturate", "output_dtype"),
}


def folded(op: str, arrays: Sequence[np.ndarray], attributes: Mapping[str, Any]) -> np.ndarray | None:
    """The output of the operator; `None` for what ONNX does not define, and for types that are not read here."""
    if len(arrays) not in (2, 3) or not set(attributes) <= set(KNOWN[op]):
        return None
    x, scale, *rest = arrays
    zero = rest[0] if rest else None
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if scale.dtype.name not in SCALES or (zero is not None and zero.shape != scale.shape):
        return None
    output = _dtype(attributes.get("output_dtype", 0))
    if output is None:
        return None
    scales = _spread(scale, x.shape, axis, block)
    zeros = None if zero is None else _spread(zero, x.shape, axis, block)
    if scales is None:
        return None
    if op == "QuantizeLinear":
        return _quantized(x, scales, zeros, output)
    return _dequantized(x, scales, zeros, output or scale.dtype)


def _dtype(number: int) -> Any:
    """The dtype of ONNX's number, "" for 0, which stands for none; `None` for another one."""
    from onnx import helper

    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(number)) if number else ""
    except (KeyError, TypeError, ValueError):
        return None


def _spread(array: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray | None:
    """Scales or zero points so that they broadcast over an array of this shape; `None` if they do not fit it."""
    if array.size == 1 and array.ndim <= 1 and not block:
        return array.reshape(())
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if block:
        blocks = tuple(-(-length // block) if k == axis else length for k, length in enumerate(shape))
        if array.shape != blocks:
            return None
        return np.take(array, np.arange(shape[axis]) // block, axis)
    if array.shape != (shape[axis],):
        return None
    return array.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def _dequantized(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, output: Any) -> np.ndarray | None:
    if (zero is not None and zero.dtype != x.dtype) or output.name not in SCALES:
        return None
    if x.dtype.name in FLOAT8:
        if zero is not None and zero.astype(np.float32).any():
            return None
        shifted = x.astype(np.float32)
    elif x.dtype.name in INTEGERS:
        if zero is not None and x.dtype == np.int32 and zero.any():
            return None
        shifted = (x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))).astype(np.float32)
    else:
        return None
    return (shifted * scale.astype(np.float32)).astype(output)


def _quantized(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, output: Any) -> np.ndarray | None:
    target = output or np.dtype(np.uint8) if zero is None else zero.dtype
    if output and output != target:
        return None
    if target.name not in INTEGERS[:-1] or x.dtype != np.float32 or scale.dtype != np.float32:
        return None
    if not np.isfinite(x).all() or not (scale > 0).all():  # what is not finite depends on the runtime
        return None
    info = jnp.iinfo(target)
    steps = np.rint(x / scale).astype(np.float64) + (0 if zero is None else zero.astype(np.int64))
    return np.clip(steps, int(info.min), int(info.max)).astype(np.int64).astype(target)


def of_lstm(name: str, q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """W or R of a `DynamicQuantizeLSTM` as an LSTM has it, (D, 4H, ·), of the integers `q` (D, ·, 4H).

    Scales and zero points are (D,), or (D, 4H). Raises with `name` for others.
    """
    if q.dtype.name not in ("int8", "uint8") or q.ndim != 3:
        raise ValueError(f"{name} expected int8 or uint8 of three axes, got {describe(q)}")
    shapes = (q.shape[:1], (q.shape[0], q.shape[2]))
    if scale.dtype != np.float32 or scale.shape not in shapes:
        raise ValueError(f"{name} expected scales float32 {shapes[0]} or {shapes[1]}, got {describe(scale)}")
    if zero is not None and (zero.dtype != q.dtype or zero.shape != scale.shape):
        raise ValueError(f"{name} expected zero points {q.dtype} {scale.shape}, as the scales, got {describe(zero)}")
    shifted = q.astype(np.int32) - (0 if zero is None else zero.astype(np.int32).reshape(len(q), 1, -1))
    return (shifted.astype(np.float32) * scale.reshape(len(q), 1, -1)).swapaxes(1, 2)
