"""Weights in safetensors files, which hold arrays and nothing that could be executed."""

import os

import numpy as np

from jaxrnn import _files


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file, for the converters here.

    Only safetensors files are read; :func:`from_keras` reads `.keras` and `.h5`. To write one from a PyTorch
    checkpoint: `weights = torch.load(old, weights_only=True)`, then `safetensors.torch.save_file(weights, path)`.

    Args:
        path: the file.

    Returns:
        Names to NumPy arrays, bfloat16 and integers included.

    Raises:
        TypeError: for something that is not a path.
        ImportError: without safetensors, which `pip install "jaxrnn[interop]"` installs.
        OSError: for a file that does not exist or cannot be read.
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
