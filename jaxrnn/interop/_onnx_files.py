"""Reads ONNX models and their arrays from untrusted files."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrnn._describe import cut, describe, quote
from jaxrnn.interop._mappings import said
from jaxrnn.interop._onnx_graphs import Scope, graphs_of, outermost, scopes

if TYPE_CHECKING:
    import onnx

DEEPEST = 32  # graphs in each other; protobuf, which files are decoded by, reads no more


class Source(NamedTuple):
    """A model and its origin."""

    where: str  # the function that reads it, for messages
    label: str  # of the model, in messages
    model: Any
    folder: Path | None  # of arrays outside the model
    digests: dict[Path, str]  # of the files that were read
    scope: Scope  # the graph that is read

    @property
    def graph(self) -> Any:
        return self.scope.graph


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
        source = Source(where, "the model", model, None, {}, outermost(model))
    elif isinstance(model, (str, os.PathLike)):
        source = _read_file(where, model)
    else:
        raise TypeError(f"{where}: model expected an onnx.ModelProto or a path, got {describe(model)}")
    _check_graphs(source)
    if any(isinstance(text, bytes) for text in _texts(source.model)):  # what protobuf makes of others
        raise ValueError(f"{source.where}: {source.label} expected names in UTF-8, got others; is it corrupted?")
    return source


def _read_file(where: str, given: str | os.PathLike[str]) -> Source:
    onnx = require_onnx(where)
    from google.protobuf.message import DecodeError

    path, content = _content(where, given)
    label, parsed = f"file {quote(str(path), 120)}", onnx.ModelProto()
    try:
        parsed.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(
            f"{where}: {label} expected an ONNX model, got {len(content)} bytes that are none; is it truncated, "
            f"a pickle, which would not be run, or of graphs nested more than {DEEPEST} deep? ({cut(str(error))})"
        ) from error
    if not parsed.HasField("graph") or not parsed.opset_import:
        raise ValueError(
            f"{where}: {label} expected an ONNX model, got one without a graph or an operator set; "
            "is it truncated, or another kind of file?"
        )
    return Source(where, label, parsed, path.resolve().parent, {}, outermost(parsed))


def _content(where: str, given: str | os.PathLike[str]) -> tuple[Path, bytes]:
    """The path and the bytes of a file; errors of the system keep their class and have our name."""
    try:
        path = Path(given)
    except Exception as error:  # a path of the user's own may raise anything
        raise TypeError(f"{where}: model expected a path, got {describe(given)} ({said(error)})") from error
    try:
        return path, path.read_bytes()
    except OSError as error:
        cause = f"{where}: model expected a file that can be read: {cut(error.strerror or str(error))}"
        raise OSError(error.errno, cause, cut(str(path))) from error
    except ValueError as error:  # of characters that no path has
        raise ValueError(f"{where}: model expected a path, got {quote(str(path))} ({said(error)})") from error


def _check_graphs(source: Source) -> None:
    """Raises for graphs too deep in each other for protobuf to copy, and for those that fill the memory."""
    model = source.model
    graphs = [(graph, 1) for graph in (model.graph, *model.functions)]
    graphs += [(graph, 1) for info in model.training_info for graph in (info.algorithm, info.initialization)]
    while graphs:
        graph, depth = graphs.pop()
        if depth > DEEPEST:
            raise ValueError(
                f"{source.where}: {source.label} expected at most {DEEPEST} graphs in each other, as in If and Loop, "
                "got more"
            )
        for node in graph.node:
            for attribute in node.attribute:
                # Onnx's shape inference makes a list of so many numbers.
                if (node.op_type, attribute.name) == ("Split", "num_outputs") and attribute.i > len(node.output):
                    raise ValueError(
                        f"{source.where}: node {quote(node.name)} (Split) attribute num_outputs expected "
                        f"{len(node.output)}, as many as it has outputs, got {attribute.i}"
                    )
            graphs += [(below, depth + 1) for _, below in graphs_of(node)]


def _texts(model: Any) -> Iterator[str | bytes]:
    """The names that a model is read by."""
    yield from (opset.domain for opset in model.opset_import)
    yield from (text for function in model.functions for text in (function.domain, function.name))
    for scope in scopes(model):
        graph, tensors = scope.graph, []
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield from (attribute.name, attribute.ref_attr_name)
                tensors.append(attribute.t)
        if not scope.function or len(scope.graphs) > 1:  # a function itself has no tensors
            tensors += graph.initializer
            yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
        for tensor in tensors:
            yield tensor.name
            yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def attribute_value(source: Source, where: str, attribute: "onnx.AttributeProto") -> Any:
    """The value of an attribute; raises for one that has none of its own."""
    name = f"{where} attribute {cut(attribute.name, 60)}"
    if attribute.ref_attr_name:
        reference = quote(attribute.ref_attr_name, 60)
        raise ValueError(f"{name} expected a value, got a reference to {reference}, as only functions have them")
    try:
        return require_onnx(source.where).helper.get_attribute_value(attribute)
    except Exception as error:  # onnx has no error of its own for attributes that it cannot read
        raise ValueError(
            f"{name} expected a value, got one of a kind that onnx does not read ({said(error)})"
        ) from error


def tensor_array(source: Source, tensor: "onnx.TensorProto") -> np.ndarray:
    """The array of an initialiser, which may lie in a file beside the model."""
    onnx = require_onnx(source.where)
    name = f"{source.where}: tensor {quote(tensor.name)} of {source.label}"
    if min(tensor.dims, default=0) < 0:  # NumPy would take it for a size to be found
        raise ValueError(f"{name} expected sizes of at least 0, got {cut(str(list(tensor.dims)), 60)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(name, source, tensor)
    try:
        return onnx.numpy_helper.to_array(tensor, base_dir=str(source.folder or ""))
    except Exception as error:  # onnx has no error of its own for arrays that cannot be read
        raise ValueError(
            f"{name} expected {cut(str(list(tensor.dims)), 60)} numbers, got something else; "
            f"is the file truncated or corrupted? ({said(error)})"
        ) from error


def _check_external(name: str, source: Source, tensor: "onnx.TensorProto") -> None:
    """Raises unless data outside the model is in its folder, with links resolved, and has its checksum."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:  # readers differ in which of two they take
            raise ValueError(f"{name} expected one {quote(entry.key, 40)} of its external data, got two")
        entries[entry.key] = entry.value
    location, folder = entries.get("location", ""), source.folder
    checksum = entries.get("checksum", "").strip().lower()
    shown = quote(location)
    if folder is None:
        raise ValueError(f"{name} expected its data in the model, got them in {shown}; give the path of the model")
    try:
        path = (folder / location).resolve()
        inside, exists = path.is_relative_to(folder), path.is_file()
        digest = _digest(source, path) if checksum and inside and exists else ""
    except (OSError, ValueError, RuntimeError) as error:  # of names that no file has, and links in a circle
        raise ValueError(f"{name} expected its data in a file that can be read, got {shown} ({said(error)})") from error
    if not inside:
        raise ValueError(f"{name} expected its data in the folder of the model, got {shown}, which is outside")
    if not exists:
        raise ValueError(f"{name} expected its data in {shown} beside the model, got no such file")
    if checksum != digest:
        raise ValueError(
            f"{name} expected {shown} to have the SHA-1 {cut(checksum, 48)}, got {digest}; "
            "is the file corrupted, or of another model?"
        )


def _digest(source: Source, path: Path) -> str:
    """The SHA-1 of a whole file, which ONNX calls its checksum."""
    if path not in source.digests:
        with open(path, "rb") as file:
            source.digests[path] = hashlib.file_digest(file, "sha1").hexdigest()
    return source.digests[path]
