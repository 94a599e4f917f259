"""Converts functional parameters to a tree of `nnx.Param`s with the same names, and back."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Required, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxrnn import _checks, initializers
from jaxrnn._types import Params
from jaxrnn.initializers import BiasInitializer, Initializer

Metadata = Mapping[str, Any]
MakeParam = Callable[[str, Array], nnx.Param]

# The initialiser and metadata of a parameter; all others start as constants and have no metadata.
ROLES = {"w_x": "kernel", "w_h": "recurrent", "b": "bias", "b_hn": "bias", "v": "kernel", "c": "bias"}


class DrawingOptions(TypedDict, total=False):
    """The keyword arguments of every module for the drawing of its parameters."""

    param_dtype: Any
    kernel_init: Initializer | None
    recurrent_init: Initializer | None
    bias_init: BiasInitializer | Initializer | None
    kernel_metadata: Metadata | None
    recurrent_metadata: Metadata | None
    bias_metadata: Metadata | None
    rngs: Required[nnx.Rngs]


class Role(NamedTuple):
    """The initialiser and the metadata of some of the parameters."""

    init: Any
    metadata: Metadata


def _uniform(units: int) -> Initializer:
    """U(±1/√units), whatever the shape."""
    bound = 1.0 / math.sqrt(units)

    def uniform(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


def _roles(where: str, hidden_size: int, drawing: Mapping[str, Any], num_heads: int) -> dict[str, Role]:
    """The caller's initialisers and metadata, with PyTorch's U(±1/√H) in place of `None`.

    With heads a unit reads H/N units, and the bound of the recurrent weights is that of as many: the products
    h W_h of dense cells and of cells with heads then have equal variance.
    """
    for name in drawing:
        if name not in DrawingOptions.__annotations__:
            raise TypeError(f"{where}.__init__() got an unexpected keyword argument {name!r}")
    recurrent = _uniform(hidden_size // num_heads)
    defaults = {"kernel": _uniform(hidden_size), "recurrent": recurrent, "bias": initializers.torch_uniform_bias()}
    return {name: _role(where, name, default, drawing) for name, default in defaults.items()}


def _role(where: str, name: str, default: Any, drawing: Mapping[str, Any]) -> Role:
    init, metadata = drawing.get(f"{name}_init"), drawing.get(f"{name}_metadata")
    if init is not None:
        _checks.function(where, f"{name}_init", init, "such as those of jaxrnn.initializers or nnx.initializers")
    if metadata is not None and not all(
        isinstance(key, str) for key in _checks.mapping(where, f"{name}_metadata", metadata)
    ):
        raise TypeError(f"{where}: {name}_metadata expected names for keys, got {_checks.describe(metadata)}")
    return Role(default if init is None else init, metadata or {})


def draw(
    where: str,
    rngs: Any,
    hidden_size: int,
    init: Callable[..., Params],
    drawing: Mapping[str, Any],
    num_heads: int = 1,
) -> tuple[Params, MakeParam]:
    """Functional parameters, and a function that makes a `Param` of each of their arrays.

    `init(key, kernel_init=, recurrent_init=, bias_init=)` gets initialisers that return arrays.
    Metadata that the caller's initialisers return as well, as with `nnx.with_partitioning`, is set on
    the `Param`s. `drawing` are the caller's initialisers and metadata, as in :class:`DrawingOptions`.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"{where}: rngs expected flax.nnx.Rngs, such as nnx.Rngs(0), got {_checks.describe(rngs)}")
    roles, wrappings = _roles(where, hidden_size, drawing, num_heads), {}

    def unwrapped(name: str) -> Callable[..., Array]:
        @functools.wraps(roles[name].init)
        def draw(*args: Any) -> Array:
            value = roles[name].init(*args)
            if not isinstance(value, nnx.VariableMetadata):
                return value
            wrappings[name] = value
            return value.raw_value

        return draw

    def make_param(name: str, value: Array) -> nnx.Param:
        role = ROLES.get(name)
        if role is None:
            return nnx.Param(value)
        wrapped = dataclasses.replace(wrappings[role], raw_value=value) if role in wrappings else value
        return nnx.Param(wrapped, **roles[role].metadata)

    return init(rngs.params(), **{f"{name}_init": unwrapped(name) for name in roles}), make_param


def values(tree: Any) -> Any:
    """The tree with the arrays of `nnx.Variable`s in their places, inside tuples and lists as well."""
    if isinstance(tree, nnx.Variable):
        return tree[...]
    if isinstance(tree, (tuple, list)):
        parts = list(map(values, tree))
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


class Weights(nnx.Module):
    """A record of parameters: an `nnx.Param` for each array, `Weights` for each record inside it."""

    def __init__(self, record: Any, make_param: MakeParam):
        attach(self, record, make_param)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def attach(module: Any, record: Any, make_param: MakeParam) -> None:
    """Makes the fields of a record attributes of a module; absent ones stay `None`."""
    module._record = type(record)
    for name, value in zip(record._fields, record, strict=True):
        if value is None:
            setattr(module, name, nnx.data(None))
        else:
            setattr(module, name, Weights(value, make_param) if isinstance(value, tuple) else make_param(name, value))


def detach(module: Any) -> Any:
    """The functional parameters of a module, as a record."""
    values = (getattr(module, name) for name in module._record._fields)
    return module._record(*(None if v is None else detach(v) if isinstance(v, Weights) else v[...] for v in values))


def put(module: Any, record: Any) -> None:
    """Writes a record into the `Param`s of a module, in their dtype and sharding."""
    for name, value in zip(record._fields, record, strict=True):
        param = getattr(module, name)
        if isinstance(param, Weights):
            put(param, value)
        elif param is not None:
            param[...] = jnp.asarray(value, param.dtype)


def check_like(where: str, name: str, params: Any, expected: Any) -> None:
    """Raises unless `params` has the structure, fields and shapes of `expected`, and floating-point arrays."""
    if isinstance(expected, tuple):
        if type(params) is not type(expected) or len(params) != len(expected):
            kind = f"a tuple over {len(expected)} layers" if type(expected) is tuple else type(expected).__name__
            raise TypeError(
                f"{where}: {name} expected {kind}, got {_checks.describe(params)}; "
                "are they the params of another cell, or of another number of layers or directions?"
            )
        fields = [f".{field}" for field in getattr(expected, "_fields", ())] or [f"[{k}]" for k in range(len(expected))]
        for field, value, want in zip(fields, params, expected, strict=True):
            check_like(where, name + field, value, want)
    elif (params is None) != (expected is None):
        kind = "None" if expected is None else "an array"
        raise ValueError(
            f"{where}: {name} expected {kind}, got {_checks.describe(params)}; "
            "are they the params of the same cell in another form?"
        )
    elif expected is not None and _checks.floating(where, name, params).shape != expected.shape:
        change = {3: "split_heads", 2: "merge_heads"}.get(expected.ndim)
        other = f"are they those of other heads? jaxrnn.{change} changes them"
        hint = other if name.endswith(".w_h") and params.ndim != expected.ndim else "is it another size?"
        raise ValueError(f"{where}: {name} expected shape {expected.shape}, got {tuple(params.shape)}; {hint}")
