"""The safetensors file of a saved network: arrays by name, and a JSON object.

An array's name is the path of its parameter, such as ``0.forward.w_x``; docs/file_format.md lists them. Of the two
entries of the file's metadata, ``jaxrnn`` is a JSON object, and ``jaxrnn_crc32`` its checksum:

    version         of this layout: 1 for one network, 2 for a tree of networks, read-outs and arrays
    configuration   how the network was made (:mod:`jaxrnn.configuration`), or null; of version 2 the tree
                    (:mod:`jaxrnn._parts`)
    input_size      I; of version 2 null, as each network in the tree has its own
    checksums       the CRC-32 of the bytes of every array, to find which one is corrupted or missing
    metadata        the user's metadata

Reading executes nothing: safetensors holds numbers and text.
"""

import errno
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks
from jaxrnn._describe import cut, describe, listed, quote

VERSIONS = (1, 2)
ENTRY, ENTRY_CHECKSUM = "jaxrnn", "jaxrnn_crc32"
DTYPES = {
    "F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16, "BOOL": jnp.bool_,
    "I64": jnp.int64, "I32": jnp.int32, "I16": jnp.int16, "I8": jnp.int8,
    "U64": jnp.uint64, "U32": jnp.uint32, "U16": jnp.uint16, "U8": jnp.uint8,
}  # fmt: skip
OTHER_FILES = {
    b"\x80": "a Python pickle, which could execute anything",
    b"PK": "a zip archive, as torch.save, Keras and numpy.savez write",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "a NumPy file",
}
NEXT_STEPS = {
    b"PK": "jaxrnn.interop.from_keras reads a .keras file; write others with safetensors, as interop.read says",
    b"\x89HDF": "jaxrnn.interop.from_keras reads it",
}


class Content(NamedTuple):
    """The content of a file."""

    arrays: dict[str, np.ndarray]
    version: int
    configuration: dict[str, Any] | None
    input_size: int | None
    metadata: dict[str, Any]


def checked_path(where: str, path: Any) -> Path:
    """`path` as a Path."""
    expected = f"{where}: path expected a string or a path"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{expected}, got {describe(path)}")
    try:
        text = os.fspath(path)
    except Exception as error:  # a class of the user's own may raise anything
        raise TypeError(f"{expected}, got {describe(path)}, whose __fspath__ fails") from error
    if not isinstance(text, str):
        raise TypeError(f"{expected}, got {describe(path)}, which is a path in bytes")
    if "\0" in text or not _can_be_encoded(text):
        raise ValueError(f"{where}: path expected characters that the name of a file can have, got {quote(text)}")
    return Path(text)


def _can_be_encoded(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def shown(path: str | os.PathLike[str]) -> str:
    """A path in a message, its middle left out if it is long."""
    return cut(str(path), 120)


def _os_error(error: OSError, message: str, path: Path) -> OSError:
    """An error of the same kind with our words; the text of an `OSError` ends with its path."""
    return OSError(error.errno, message, cut(str(path), 300))


def write(where: str, path: Path, content: Content) -> None:
    """Writes a safetensors file with the whole content, or nothing."""
    serialise = _safetensors(where).numpy.save
    checksums = {name: zlib.crc32(array.tobytes()) for name, array in content.arrays.items()}
    rest = {name: part for name, part in content._asdict().items() if name != "arrays"}
    entry = json.dumps({**rest, "checksums": checksums})
    text = serialise(content.arrays, {ENTRY: entry, ENTRY_CHECKSUM: str(zlib.crc32(entry.encode()))})
    write_whole(where, path, text)


def write_whole(where: str, path: Path, content: bytes) -> None:
    """Writes a file with this content, or nothing: written and synced beside `path`, then moved there."""
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder")
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            said = error.strerror or cut(str(error))
            raise _os_error(error, f"{where}: path: {said}; nothing was changed", path) from error
        raise


def read(where: str, path: Path) -> Content:
    """The content of a file, with all checks that do not need its network."""
    arrays, metadata = read_arrays(where, path)
    entry = _entry(where, path, metadata)
    _compare_checksums(f"{where}: {shown(path)}", arrays, entry["checksums"])
    return Content(arrays, *(entry[name] for name in Content._fields[1:]))


def _compare_checksums(where: str, arrays: Mapping[str, np.ndarray], checksums: Mapping[str, Any]) -> None:
    """Raises unless every array has its checksum, and every checksum its array."""
    missing = [quote(name) for name in arrays if name not in checksums]
    if missing:
        raise ValueError(f"{where}: checksums expected one of {listed(missing, 3)}, got none; the file is corrupted")
    extra = [quote(name) for name in checksums if name not in arrays]
    if extra:
        raise ValueError(f"{where}: checksums expected none of {listed(extra, 3)}, got one; is an array missing?")
    for name, array in arrays.items():
        given = checksums[name]
        if type(given) is not int or given != zlib.crc32(array.tobytes()):
            raise ValueError(f"{where}: {quote(name)} does not have its checksum; the file is corrupted")


def whole(where: str, path: Path) -> bytes:
    """The bytes of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _os_error(error, f"{where}: path: {error.strerror or cut(str(error))}", path) from error


def read_arrays(where: str, path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of any safetensors file, in their own dtypes, and its metadata."""
    deserialise = _safetensors(where).deserialize
    content = whole(where, path)
    try:
        tensors = deserialise(content)
    except Exception as error:
        guess = next((kind for magic, kind in OTHER_FILES.items() if content.startswith(magic)), "")
        damaged = f"one that is truncated, corrupted or another ({cut(str(error))})"
        got = f"{guess}; nothing of it was run" if guess else damaged
        step = next((f"; {step}" for magic, step in NEXT_STEPS.items() if content.startswith(magic)), "")
        raise ValueError(f"{where}: {shown(path)}: expected a safetensors file, got {got}{step}") from error
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in DTYPES:
            raise ValueError(
                f"{where}: {shown(path)}: {cut(name, 80)} expected one of {', '.join(DTYPES)}, got {tensor['dtype']}"
            )
        arrays[name] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return arrays, header.get("__metadata__") or {}


def _safetensors(where: str) -> Any:
    """The optional package `safetensors`."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f'{where}: expected safetensors to be installed: pip install "jaxrnn[interop]"') from error
    return safetensors


def _entry(where: str, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object; raises unless it has the entries of the layout, and no others."""
    where = f"{where}: {shown(path)}"
    if ENTRY not in metadata:
        raise ValueError(
            f"{where}: expected a file that jaxrnn.save wrote, got safetensors from elsewhere; "
            "jaxrnn.interop converts other libraries' weights"
        )
    text = metadata[ENTRY]
    if metadata.get(ENTRY_CHECKSUM) != str(zlib.crc32(text.encode())):
        raise ValueError(f"{where}: {ENTRY} in its metadata does not have its checksum; the file is corrupted")
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {ENTRY} in its metadata expected JSON: {cut(str(error))}") from error
    entry = entry if isinstance(entry, dict) else {}
    version: Any = entry.get("version")
    if _checks.is_integer(version) and version > VERSIONS[-1]:
        raise ValueError(
            f"{where}: version expected at most {VERSIONS[-1]}, got {quote(version)}; update jaxrnn, a newer one "
            "wrote it"
        )
    size: Any = entry.get("input_size")
    is_tree = _checks.is_integer(version) and version == 2
    is_size = _checks.is_integer(size) and 1 <= size <= _checks.LARGEST_SIZE
    valid = {
        "version": _checks.is_integer(version) and version in VERSIONS,
        "configuration": isinstance(entry.get("configuration", 0), dict if is_tree else (dict, type(None))),
        "input_size": (size is None and "input_size" in entry) if is_tree else is_size,
        "checksums": isinstance(entry.get("checksums"), dict),
        "metadata": isinstance(entry.get("metadata"), dict),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"{where}: {name} is missing or wrong, got {describe(entry.get(name))}")
    unknown = [quote(name) for name in entry if name not in valid]
    if unknown:
        raise ValueError(f"{where}: expected the entries {', '.join(valid)}; got {listed(unknown, 3)} beside them")
    return entry
