"""Messages to the user: one line of at most 500 characters, whatever the values in it are."""

import sys
from collections.abc import Sequence
from typing import Any

LONGEST = 500  # characters of a message


def cut(text: str, longest: int) -> str:
    """The text, its middle left out if it is longer.

    Example:
        >>> cut("abcdefghij", 7)
        'abcd…ij'
    """
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def one_line(text: str, longest: int = LONGEST) -> str:
    r"""The text with its line ends and other unprintable characters written as escapes, and cut.

    Example:
        >>> one_line("two\nlines")
        'two\\nlines'
    """
    text = text if len(text) <= 2 * longest else text[:longest] + text[-longest:]
    return cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), longest)


def shown(value: Any, longest: int = 80) -> str:
    """A value that the user gave, as it is typed; in quotes if it could be mistaken for a part of the message.

    Example:
        >>> shown("gru"), shown("a b"), shown(10**100, 30)
        ('gru', "'a b'", '1000000000000000000…0000000000')
    """
    text = str(value)
    plain = text.isprintable() and text and not any(c.isspace() for c in text)
    return one_line(text if plain else f"'{text}'", longest)


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, which may have many."""
    return (str(error).splitlines() or [""])[0]


def listed(values: Sequence[Any]) -> str:
    """Values with commas between them."""
    return ", ".join(map(shown, values))


def complain(script: str, error: object) -> int:
    """Prints a message in one line on stderr; returns 2, the exit code of what cannot run."""
    print(one_line(f"{script}: {error}"), file=sys.stderr)
    return 2
