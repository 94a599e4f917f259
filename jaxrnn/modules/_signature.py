"""The signature of a module's constructor, with its shared keywords spelled out for `help` and editors."""

import inspect
from typing import Any, Required, get_args, get_origin


class Signature:
    """What `inspect.signature` reads of a class; its instances keep the signature of their `__call__`."""

    def __init__(self, signature: inspect.Signature):
        self.signature = signature

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return self.signature


def spelled_out(cls: type) -> Signature:
    """The signature of `cls.__init__`, with the keywords of `**options: Unpack[...]` one by one.

    Their defaults are those of the base classes' constructors; `None` where these have none.
    """
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    last = parameters[-1] if parameters else None
    if last is not None and last.kind is inspect.Parameter.VAR_KEYWORD:
        options: Any = next(iter(getattr(last.annotation, "__args__", ())), None)
        if hasattr(options, "__required_keys__"):
            parameters[-1:] = [
                _keyword(cls, name, kind, options.__required_keys__) for name, kind in options.__annotations__.items()
            ]
    return Signature(inspect.Signature(parameters))


def _keyword(cls: type, name: str, annotation: Any, required: frozenset[str]) -> inspect.Parameter:
    annotation = get_args(annotation)[0] if get_origin(annotation) is Required else annotation
    default = inspect.Parameter.empty if name in required else None
    for base in cls.__mro__[1:]:
        given = inspect.signature(base.__init__).parameters.get(name) if "__init__" in vars(base) else None
        if given is not None:
            default = given.default
            break
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
