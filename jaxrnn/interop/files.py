"""Weights in files: safetensors, which hold arrays and nothing that could be executed."""

import os

import numpy as np

from jaxrnn import _files


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file, for the converters here.

    Only safetensors files are read. To make one of a PyTorch checkpoint, where it is trusted:
    `safetensors.torch.save_file(module.state_dict(), path)`.

    Args:
        path: of the file.

    Returns:
        Names to NumPy arrays, bfloat16 and integers included.

    Raises:
        TypeError: for a path that is none.
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
    return _files.read_arrays("read", _files.checked_path("read", path))[0]
