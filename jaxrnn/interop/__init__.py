"""Converts weights and files from and to other libraries.

Weights are mappings of names to arrays, never pickles. Every entry is checked by name. What a
library cannot hold is refused with the reason.
"""

from jaxrnn.interop.cudnn import from_cudnn, to_cudnn
from jaxrnn.interop.equinox import from_equinox, to_equinox
from jaxrnn.interop.files import read
from jaxrnn.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from jaxrnn.interop.haiku import from_haiku, to_haiku
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.onnx_export import to_onnx
from jaxrnn.interop.onnx_import import from_onnx
from jaxrnn.interop.onnx_nodes import OnnxRecurrent, onnx_recurrent
from jaxrnn.interop.torch import from_torch, to_torch

__all__ = [
    "OnnxRecurrent",
    "from_cudnn",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "from_torch",
    "onnx_recurrent",
    "read",
    "to_cudnn",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_torch",
]
