"""What a call with a fault has to answer.

It is refused by a TypeError, ValueError or NotImplementedError that begins with the function's name, names the
entry that is wrong, and has at most 500 characters; or it gives what the call without the fault gives.
"""

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

LONGEST = 500


class Attempt(NamedTuple):
    """A call with a fault in it."""

    what: str  # in words
    where: str  # the function
    names: tuple[str, ...]  # a message has to have one of them; none: any message serves
    call: Callable[[], Any]
    expected: Any = None  # what it gives if it is accepted; `None`: anything
    may_pass: bool = True


def complaint(attempt: Attempt) -> str | None:
    """What is wrong with the answer to an attempt; `None` if it is right."""
    try:
        given = attempt.call()
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and "a path" not in attempt.names:
            return f"raised {type(error).__name__}: {text[:200]}"
        if attempt.where not in text[:40] and not (isinstance(error, OSError) and attempt.where in text):
            return f"does not name the function: {type(error).__name__}: {text[:200]}"
        if len(text) > LONGEST:
            return f"{len(text)} characters: {text[:100]}"
        if "\n" in text:
            return f"several lines: {text[:200]!r}"
        names = [name for name in attempt.names if name != "a path"]
        if names and not any(name in text for name in names):
            return f"names none of {names}: {text[:300]}"
        return None
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error)[:200]}\n{traceback.format_exc()[-600:]}"
    if not attempt.may_pass:
        return "was accepted"
    if attempt.expected is not None and not _equal(given, attempt.expected):
        return "was accepted, with another result"
    return None


def _equal(tree: Any, other: Any) -> bool:
    if jax.tree.structure(tree) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)
