"""Reads ONNX models and their arrays from untrusted files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx


class Source(NamedTuple):
    """A model and its origin."""

    where: str  # the function that reads it, for messages
    label: str  # of the model, in messages
    model: Any
    folder: Path | None  # of arrays outside the model


def require_onnx(where: str) -> Any:
    """The package `onnx`, which only the interop extra installs."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f'{where}: needs the package onnx; pip install "jaxrnn[interop]"') from error
    return onnx


def read_model(where: str, model: Any) -> Source:
    """The given `ModelProto`, or the one in a file."""
    onnx = require_onnx(where)
    if isinstance(model, onnx.ModelProto):
        return Source(where, "the model", model, None)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"{where}: model expected an onnx.ModelProto or a path, got {type(model).__name__}")
    from google.protobuf.message import DecodeError

    path = Path(model)
    content, parsed = path.read_bytes(), onnx.ModelProto()
    try:
        parsed.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(
            f"{where}: file {str(path)!r} expected an ONNX model, got {len(content)} bytes that are none; "
            "is it truncated, or a pickle, which would not be run?"
        ) from error
    if not parsed.HasField("graph") or not parsed.opset_import:
        raise ValueError(
            f"{where}: file {str(path)!r} expected an ONNX model, got one without a graph or an operator set; "
            "is it truncated, or another kind of file?"
        )
    return Source(where, f"file {str(path)!r}", parsed, path.resolve().parent)


def tensor_array(source: Source, tensor: "onnx.TensorProto") -> np.ndarray:
    """The array of an initialiser, which may lie in a file beside the model."""
    onnx = require_onnx(source.where)
    name = f"{source.where}: tensor {tensor.name!r} of {source.label}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_location(name, source.folder, tensor)
    try:
        return onnx.numpy_helper.to_array(tensor, base_dir=str(source.folder or ""))
    except Exception as error:  # onnx has no error of its own for arrays that cannot be read
        raise ValueError(
            f"{name} expected {list(tensor.dims)} numbers, got something else; "
            f"is the file truncated or corrupted? ({type(error).__name__}: {error})"
        ) from error


def _check_location(name: str, folder: Path | None, tensor: "onnx.TensorProto") -> None:
    """Raises unless data outside the model is in its folder, with links resolved."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if folder is None:
        raise ValueError(f"{name} expected its data in the model, got them in {location!r}; give the path of the model")
    if "\0" in location or not (folder / location).resolve().is_relative_to(folder):
        raise ValueError(f"{name} expected its data in the folder of the model, got {location!r}, which is outside")
    if not (folder / location).is_file():
        raise ValueError(f"{name} expected its data in {location!r} beside the model, got no such file")
