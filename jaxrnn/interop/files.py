"""Weights in files: safetensors, which hold arrays and nothing that could be executed."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

OTHERS = {
    b"PK\x03\x04": "a zip archive, as torch.save, numpy.savez and Keras write them",
    b"\x80": "a pickle, which can execute anything when it is read",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
}
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file, for the converters here.

    Only safetensors files are read. To make one of a PyTorch checkpoint, where it is trusted:
    `safetensors.torch.save_file(module.state_dict(), path)`.

    Args:
        path: of the file.

    Returns:
        Names to NumPy arrays, bfloat16 and integers included.

    Raises:
        ImportError: without safetensors, which `pip install "jaxrnn[interop]"` brings.
        OSError: for a file that is not there or not to be read.
        ValueError: naming a file that is of another format, truncated or corrupted, or an entry
            of a dtype that NumPy does not have. Nothing in the file is executed.

    Example:
        >>> import os, tempfile, numpy as np, jaxrnn
        >>> from safetensors.numpy import save_file
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
        >>> save_file({"weight_hh": np.ones((16, 4), "float32")}, path)
        >>> jaxrnn.interop.read(path)["weight_hh"].shape
        (16, 4)
    """
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise ImportError('read: needs safetensors: pip install "jaxrnn[interop]"') from error
    content = Path(path).read_bytes()
    try:
        entries = deserialize(content)
    except (SafetensorError, ValueError) as error:
        other = next((kind for magic, kind in OTHERS.items() if content.startswith(magic)), None)
        got = (
            f"{other}; nothing in it was executed" if other else "one that is truncated, corrupted or of another format"
        )
        raise ValueError(f"read: {str(path)!r} expected a safetensors file, got {got} ({error})") from error
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"read: {str(path)!r} entry {name!r} expected one of {', '.join(DTYPES)}, got {entry['dtype']}"
            )
    return {name: np.frombuffer(e["data"], DTYPES[e["dtype"]]).reshape(e["shape"]) for name, e in entries}
