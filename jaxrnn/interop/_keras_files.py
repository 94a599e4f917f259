"""Reads the files of Keras with h5py and json alone: nothing in them is executed.

    .keras    a zip of config.json, metadata.json and model.weights.h5
    .h5       HDF5 with the attributes model_config and keras_version, and the weights below model_weights

Weights are named by `weight_names` of each layer in `.h5`, and by the place of each layer in `.keras`:

    layers/lstm/cell/vars/0    layers/bidirectional/forward_layer/cell/vars/0    (kernel, recurrent_kernel, bias)
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn import _files
from jaxrnn._describe import cut, describe, quote
from jaxrnn.interop._keras_layers import Node
from jaxrnn.interop._mappings import said

LEAVES = ("kernel", "recurrent_kernel", "bias")
MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
ROOTS = ("layers", "_layer_checkpoint_dependencies")  # of the weights of Keras 3 and of Keras 2.12 to 2.15
LARGEST_RATIO = 64  # of an array or an entry to the file that holds it: those written by Keras are not compressed
SPARE = 2**20


class File(NamedTuple):
    """An open file of Keras."""

    label: str  # the function and the file, for messages
    config: Any  # or `None`, in a file of weights alone
    version: str | None
    weights: Any  # the group of the weights
    size: int


@contextlib.contextmanager
def opened(where: str, path: str | os.PathLike[str]) -> Iterator[File]:
    """Opens a `.keras` or `.h5` file.

    Raises:
        ValueError: naming the file, if it is of another kind, truncated or corrupted.
        OSError: if it cannot be read.
        ImportError: without h5py.
    """
    h5py, path = _h5py(where), _files.checked_path(where, path)
    label, whole = f"{where}: {_files.shown(path)}", _files.whole(where, path)
    with contextlib.ExitStack() as stack:
        with _guarded(label):
            file = _opened(h5py, stack, label, whole)
        yield file


class _Damaged(Exception):
    """Something in a file that Keras does not write."""


@contextlib.contextmanager
def _guarded(label: str) -> Iterator[None]:
    """Turns the errors of zipfile, json and h5py, which are of any kind, into a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(label):
            raise
        what = cut(str(error), 160) if isinstance(error, _Damaged) else said(error)
        raise ValueError(f"{label}: expected a file of Keras, got one that is damaged: {what}") from error


def _h5py(where: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'{where}: needs the package h5py; pip install "jaxrnn[interop]"') from error
    return h5py


def _opened(h5py: Any, stack: contextlib.ExitStack, label: str, whole: bytes) -> File:
    if whole.startswith(b"\x89HDF"):
        file = stack.enter_context(h5py.File(io.BytesIO(whole), "r"))
        config, version = _text(file, "model_config"), _text(file, "keras_version")
        group = file
        if "model_weights" in file:
            group = _child(h5py, file, "model_weights")
            version = version or _text(group, "keras_version")
        _check_group(h5py, group, "model_weights")
        return File(label, None if config is None else json.loads(config), version, group, len(whole))
    if whole.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            config, about = (json.loads(_member(label, archive, name, len(whole))) for name in MEMBERS[:2])
            weights = _member(label, archive, MEMBERS[2], len(whole))
        version = about.get("keras_version") if isinstance(about, dict) else None
        return File(label, config, version, stack.enter_context(h5py.File(io.BytesIO(weights), "r")), len(whole))
    guess = next((kind for magic, kind in _files.OTHER_FILES.items() if whole.startswith(magic)), "another")
    raise ValueError(f"{label}: expected a .keras or .h5 file of Keras, got {guess}; nothing of it was run")


def _member(label: str, archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """An entry of a zip archive."""
    if name not in archive.namelist():
        raise ValueError(
            f"{label}: expected an archive of Keras, with {', '.join(MEMBERS)}, got no {name}; is it of torch.save or "
            "numpy.savez?"
        )
    info = archive.getinfo(name)
    if info.file_size > LARGEST_RATIO * size + SPARE:
        raise _Damaged(f"{name} has {info.file_size} bytes in an archive of {size}")
    return archive.read(info)


def _text(group: Any, name: str) -> str | None:
    """An attribute that is a text."""
    value = group.attrs.get(name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, (str, type(None))):
        raise _Damaged(f"attribute {name} is {describe(value)}")
    return value


def _names_in(group: Any, attribute: str) -> list[str] | None:
    """An attribute that is a list of texts, which Keras divides if it is long; `None` if there is none."""
    parts = [group.attrs[attribute]] if attribute in group.attrs else []
    while not parts or attribute not in group.attrs:
        if f"{attribute}{len(parts)}" not in group.attrs:
            break
        parts.append(group.attrs[f"{attribute}{len(parts)}"])
    if not parts:
        return None
    found = [name for part in parts for name in np.asarray(part).reshape(-1).tolist()]
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in found]
    if not all(isinstance(name, str) for name in names):
        raise _Damaged(f"attribute {attribute} is {describe(names)}")
    return names


def _child(h5py: Any, group: Any, path: str) -> Any:
    """What lies at a path below a group; raises for links, which may lead to other files."""
    for name in filter(None, path.split("/")):
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise _Damaged(f"{quote(path)} is missing" if link is None else f"{quote(path)} is a link")
        group = group[name]
    return group


def _check_group(h5py: Any, found: Any, path: str) -> None:
    if not isinstance(found, h5py.Group):
        raise _Damaged(f"{quote(path)} is an array, a group was expected")


def _array(h5py: Any, file: File, path: str) -> np.ndarray:
    """An array of a file; raises for numbers outside the file."""
    found = _child(h5py, file.weights, path)
    if not isinstance(found, h5py.Dataset):
        raise _Damaged(f"{quote(path)} is a group, an array was expected")
    if found.is_virtual or found.external:
        raise _Damaged(f"{quote(path)} has its numbers in other files")
    if found.dtype.hasobject or found.nbytes > LARGEST_RATIO * file.size + SPARE:
        raise _Damaged(f"{quote(path)} has {found.nbytes} bytes of {found.dtype} in a file of {file.size}")
    array = np.asarray(found[()])
    return array.view(jnp.bfloat16) if _text(found, "dtype") == "bfloat16" and array.dtype.itemsize == 2 else array


def weights_of(file: File, node: Node) -> tuple[Mapping[str, np.ndarray], bool]:
    """The arrays of a layer by the paths that :func:`from_keras` reads, and whether they are of it alone."""
    h5py = _h5py("from_keras")
    with _guarded(file.label):
        names = _names_in(file.weights, "layer_names")
        if names is not None:
            return _by_names(h5py, file, node, names), len(node.entry.names) <= 1
        root = next((root for root in ROOTS if root in file.weights), None)
        if root is None:
            raise _Damaged("it has no weights")
        return _by_places(h5py, file, node, node.entry.stored.replace("layers/", f"{root}/")), True


def _by_names(h5py: Any, file: File, node: Node, layers: list[str]) -> dict[str, np.ndarray]:
    """From a file in which every weight has a name: those of the layer, or of the model in the model that holds it."""
    names = node.entry.names
    outer = names[0] if names else (layers[0] if len(layers) == 1 else "")
    if outer not in layers:
        raise _Damaged(f"it has no weights of {node.entry.label}")
    found = _names_in(_child(h5py, file.weights, outer), "weight_names")
    if not found:
        raise _Damaged(f"it has no weights of {quote(outer)}")
    return {name: _array(h5py, file, f"{outer}/{name}") for name in found}


def _by_places(h5py: Any, file: File, node: Node, stored: str) -> dict[str, np.ndarray]:
    """From a file in which every layer has a place."""
    arrays: dict[str, np.ndarray] = {}
    for halves in node.layers:
        for half in halves:
            group = f"{stored}/{half.stored}/vars"
            held = _child(h5py, file.weights, group)
            _check_group(h5py, held, group)
            if len(held) not in (2, 3):
                raise _Damaged(f"{quote(group)} holds {len(held)} arrays, a cell has two or three")
            for k, leaf in enumerate(LEAVES[: len(held)]):
                arrays[f"{half.stored}/{leaf}"] = _array(h5py, file, f"{group}/{k}")
    return arrays


def check_configured(file: File) -> None:
    """Raises for a file of weights alone."""
    if file.config is None:
        raise ValueError(
            f"{cut(file.label, 200)}: expected a configuration in the file, got weights alone, as save_weights writes "
            "them; give the layer's or the model's get_config() as config="
        )
