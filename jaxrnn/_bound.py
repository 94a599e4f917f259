"""Functions that compare by value and can be pickled: what the records of the library are made of."""

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any


class Bound(functools.partial):
    """A function with some of its arguments filled in, equal to every other with equal ones.

    Example:
        >>> Bound(max, 1) == Bound(max, 1), Bound(max, 1)(2)
        (True, 2)
    """

    def _key(self) -> tuple[Any, ...]:
        return self.func, self.args, tuple(sorted(self.keywords.items()))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self._key() == other._key() if isinstance(other, Bound) else NotImplemented

    def once(self, name: str, f: Callable[..., Any], *args: Any) -> Any:
        """`f(*args)`, which is computed once for this function: calls of compiled functions ask each time."""
        if name not in self.__dict__:
            self.__dict__[name] = f(*args)
        return self.__dict__[name]

    def __hash__(self) -> int:
        return self.once("hash", lambda: hash(self._key()))

    def __reduce__(self) -> Any:
        keywords = {name: picklable(value) for name, value in self.keywords.items()}
        return _bound, (picklable(self.func), tuple(map(picklable, self.args)), keywords)


def _bound(f: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Bound:
    return Bound(f, *args, **keywords)


class _Reference:
    """Pickles as the name of a function in its module."""

    def __init__(self, module: str, name: str):
        self.path = (module, name)

    def __reduce__(self) -> Any:
        return _find, self.path


def _find(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def picklable(value: Any) -> Any:
    """The value, but a compiled function of a module, such as `jnp.sin`, by its name: pickle looks inside it."""
    if not callable(value) or isinstance(value, (types.FunctionType, type, functools.partial)):
        return value
    path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    try:
        return _Reference(*path) if _find(*path) is value else value  # pyright: ignore[reportArgumentType]
    except (ImportError, AttributeError, TypeError):
        return value
