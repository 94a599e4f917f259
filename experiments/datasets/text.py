"""A text as numbers, for models that say which character comes next."""

import errno
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.command.messages import shown
from experiments.datasets._files import decoded, read_files
from experiments.datasets._sources import Addresses, DataSet, File

SHAKESPEARE = DataSet(
    "tiny-shakespeare",
    "1,115,394 characters of Shakespeare's plays",
    "public domain",
    "1 MB",
    (File("tinyshakespeare.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),),
    (
        Addresses(
            {
                "tinyshakespeare.txt": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
                "tinyshakespeare/input.txt"
            }
        ),
    ),
)


class Text(NamedTuple):
    """The two parts of a text; each number is a character's place in the alphabet."""

    name: str
    alphabet: str  # what occurs in the training part, in the order of code points
    training: np.ndarray  # (N,), int32
    validation: np.ndarray  # the last tenth of the text


def load_text(path: Path | None, data_dir: Path | None, window: int) -> Text:
    """Any text in UTF-8, or tiny-shakespeare from the data folder if no path is given.

    Raises:
        MissingData: if tiny-shakespeare is not there, naming the command that gets it.
        OSError: if the file cannot be read.
        ValueError: in one line, for a text that cannot be learned from, see `as_numbers`.
    """
    if path is None:
        return as_numbers(SHAKESPEARE.name, read_shakespeare(data_dir), window)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may not end, or gives its content once
            raise OSError(errno.EINVAL, "it is no file")
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the text {shown(path, 200)}: {error.strerror}") from error
    except ValueError as error:  # a path with a zero byte
        raise OSError(f"cannot read the text {shown(path, 200)}: {error}") from error
    return as_numbers(path.name, decoded(content, str(path)), window)


def read_shakespeare(data_dir: Path | None = None) -> str:
    """Tiny-shakespeare, which must be exactly the published file."""
    contents = read_files(SHAKESPEARE, data_dir)
    (file,) = SHAKESPEARE.files
    return decoded(contents[file.name], file.name)


def as_numbers(name: str, text: str, window: int) -> Text:
    """A text in two parts, the last tenth for validation.

    Args:
        name: of the text, for messages.
        text: any characters.
        window: how many characters are read at a time; each part must hold one more, the last to be said.

    Raises:
        ValueError: for an empty text, one that is too short, or a validation part with characters
            that the training part has not.

    Example:
        >>> text = as_numbers("a song", "la la la la la la la", window=1)
        >>> text.alphabet, decode(text.alphabet, text.validation)
        (' al', 'la')
    """
    if not text:
        raise ValueError(f"{name}: the text is empty")
    cut = len(text) * 9 // 10
    if min(cut, len(text) - cut) <= window:
        raise ValueError(
            f"{name}: {len(text)} characters leave {len(text) - cut} for validation, and a window of {window} "
            f"takes {window + 1}; give a longer text or a smaller --window"
        )
    alphabet = "".join(sorted(set(text[:cut])))
    try:
        return Text(name, alphabet, encode(alphabet, text[:cut]), encode(alphabet, text[cut:]))
    except ValueError as error:
        raise ValueError(f"{name}, last tenth: {error}; replace them in the text, or give a longer one") from error


def encode(alphabet: str, text: str) -> np.ndarray:
    """The place of every character in an alphabet, whose order is that of code points, `(N,)`, int32.

    Raises:
        ValueError: naming the characters that are not in it.

    Example:
        >>> encode("abc", "cab").tolist()
        [2, 0, 1]
    """
    points, known = _code_points(text), _code_points(alphabet)
    unseen, counts = np.unique(points[~np.isin(points, known)], return_counts=True)
    if len(unseen):
        shown = ", ".join(repr(chr(point)) for point in unseen[:5]) + (", …" if len(unseen) > 5 else "")
        raise ValueError(
            f"{counts.sum()} of {len(points)} characters do not occur in the training text, {len(unseen)} different "
            f"ones: {shown}"
        )
    return np.searchsorted(known, points).astype(np.int32)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def decode(alphabet: str, numbers: np.ndarray) -> str:
    """The characters at those places.

    Example:
        >>> decode("abc", np.array([2, 0, 1]))
        'cab'
    """
    return "".join(alphabet[number] for number in numbers)


def windows(numbers: np.ndarray, starts: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """What is read, and what comes next at every step: both `(len(starts), window)`."""
    rows = numbers[starts[:, None] + np.arange(window + 1)[None, :]]
    return rows[:, :-1], rows[:, 1:]


def side_by_side_windows(numbers: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """All windows of a text, one beginning where the other ends; what does not fill a window at the end is left out."""
    return windows(numbers, np.arange(0, len(numbers) - window, window), window)
