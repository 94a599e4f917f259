"""What all families of cells share: from the options of a cell to its parameters, its checks and its record."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn._types import Cell, CellConfig, Params, Rule, State
from jaxrnn.cells._step import checked_step, vary_over_batch, zeros_state
from jaxrnn.initializers import Initializers, draw, draw_biases, draw_gates, draw_heads

# What draws a parameter. The others start as constants: scales at 1, offsets and peepholes at 0.
ROLES = {"w_x": "kernel", "w_h": "recurrent", "b": "bias", "b_hn": "bias", "w_proj": "recurrent"}


def dims(*sizes: int) -> Any:
    """A shape, in the place of an array of it."""
    return sizes


def recurrent_dims(hidden_size: int, gates: int, num_heads: int) -> Any:
    """The shape of `w_h`: `(H, G*H)`, or with several heads the blocks `(N, D, G*D)`, D = H/N."""
    if num_heads == 1:
        return dims(hidden_size, gates * hidden_size)
    size = hidden_size // num_heads
    return dims(num_heads, size, gates * size)


def checked_heads(where: str, num_heads: Any, hidden_size: int) -> int:
    """`num_heads` as an int that divides H."""
    num_heads = _checks.size(where, "num_heads", num_heads)
    if hidden_size % num_heads:
        raise ValueError(
            f"{where}: num_heads expected a number that divides hidden_size = {hidden_size}, got {num_heads}; "
            "every head has the same number of units"
        )
    return num_heads


@dataclasses.dataclass(frozen=True, repr=False)
class FamilyConfig(CellConfig):
    """The options of a cell whose parameters are one record."""

    hidden_size: int

    gates: ClassVar[Any]  # the names of the gates, in the order of their blocks
    in_one_unit: ClassVar[tuple[str, ...]] = ()  # parts of the state that have a meaning only together

    def shapes(self, input_size: int) -> Any:
        """The record of the parameters with shapes for arrays; `None` is what the cell does not have."""
        raise TypeError(f"{type(self).__name__} has no parameters")

    @property
    def output_features(self) -> int:
        """The size of the output."""
        return self.hidden_size

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
        """The state before the first step: zeros."""
        return zeros_state(self.hidden_size, batch_shape, dtype)


class Family(NamedTuple):
    """Cells whose parameters are one record, as the rest of the library knows them."""

    factory: Callable[..., Cell]
    config: type[FamilyConfig]
    forms: Mapping[str, Mapping[str, Any]] = {}  # by title: options with which an implementation may refuse the cell
    by_units: bool = True  # whether every unit owns columns of each parameter, so that units can be sharded


def make_cell(config: FamilyConfig, step: Any, rule: Rule, initializers: Initializers) -> Cell:
    """The cell of these options."""
    for field in dataclasses.fields(initializers):
        name, value = f"{field.name}_init", getattr(initializers, field.name)
        _checks.function(config.factory, name, value, "such as those of jaxrnn.initializers or jax.nn.initializers")
    return Cell(
        init=Bound(init_params, config, initializers),
        initial_state=Bound(initial_state, config),
        step=step,
        rule=rule,
        check=Bound(check_params, config),
        name=repr(config),
        config=config,
        output_size=config.output_features,
    )


def initial_state(config: FamilyConfig, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
    """`config.initial_state` of checked arguments, as a function that compares by value."""
    where = f"{config.factory}.initial_state"
    batch_shape = _checks.batch_shape(where, batch_shape)
    return vary_over_batch(config.initial_state(batch_shape, _checks.float_dtype(where, "dtype", dtype)))


def init_params(
    config: FamilyConfig, initializers: Initializers, key: Array, input_size: int, dtype: Any = None
) -> Params:
    """Parameters, each field that can be drawn from a key of its own."""
    where = f"{config.factory}.init"
    input_size = _checks.size(where, "input_size", input_size)
    dtype = _checks.float_dtype(where, "dtype", dtype)
    shapes = config.shapes(input_size)
    drawn = [name for name in shapes._fields if name in ROLES]
    keys = dict(zip(drawn, jax.random.split(_checks.key(where, "key", key), len(drawn)), strict=True))

    def field(name: str, shape: Any) -> Any:
        if shape is None:
            return None
        if hasattr(shape, "_fields"):
            return type(shape)(*map(field, shape._fields, shape))
        if name not in ROLES:
            return (jnp.ones if name.startswith("scale") else jnp.zeros)(shape, dtype)
        role, key = ROLES[name], keys[name]
        initializer, at = getattr(initializers, role), f"{where}: {role}_init"
        if role == "bias":
            biases = draw_biases(at, initializer, key, config.gates, config.hidden_size, dtype)
            return biases[-shape[0] :]  # `b_hn` is the last gate's
        if len(shape) == 1:
            return draw(at, initializer, key, shape, dtype)
        if len(shape) == 3:
            return draw_heads(at, initializer, key, shape, dtype)
        blocks = max(1, shape[1] // config.hidden_size)
        return draw_gates(at, initializer, key, blocks, (shape[0], shape[1] // blocks), dtype)

    return type(shapes)(*map(field, shapes._fields, shapes))


def step_of(where: str, config: FamilyConfig, rule: Rule, params: Params, state: State, x: Any) -> tuple[State, Array]:
    """One step of the cell that these parameters describe; `config` has all that they may have."""
    return checked_step(where, Bound(check_params_of_step, config), config.initial_state, rule, params, state, x)


def check_params(config: FamilyConfig, where: str, params: Any, input_shape: tuple[int, ...]) -> None:
    """Raises unless `params` are those of the cell, and fit inputs of that shape."""
    _check(config, where, params, input_shape, may_lack=False)


def check_params_of_step(config: FamilyConfig, where: str, params: Any, input_shape: tuple[int, ...]) -> None:
    """As `check_params`, for a step, whose optional parameters may be absent."""
    _check(config, where, params, input_shape, may_lack=True)


def _check_heads(config: Any, where: str, w_h: Any) -> None:
    """Raises if `w_h` has the shape of the same cell with another number of heads."""
    shape: Any = getattr(w_h, "shape", ())
    n = config.num_heads
    if len(shape) not in (2, 3) or (len(shape) == 3) == (n > 1):
        return
    given = "the dense matrix" if len(shape) == 2 else f"the blocks of {shape[0]} heads"
    cell = f"{config.factory}({config.hidden_size}{f', num_heads={shape[0]}' if len(shape) == 3 else ''})"
    change = f"jaxrnn.split_heads(params, {n})" if n > 1 else "jaxrnn.merge_heads(params)"
    expected = recurrent_dims(config.hidden_size, len(config.gates), n)
    raise ValueError(
        f"{where}: params.w_h expected shape {expected}, got {tuple(shape)}, {given}; "
        f"use {cell} for these parameters, or change them by {change}"
    )


def _check(config: FamilyConfig, where: str, params: Any, input_shape: tuple[int, ...], may_lack: bool) -> None:
    def check_present(params: Any, shapes: Any) -> None:
        _checks.params_record(where, params, type(shapes))
        present = {name: shape is not None for name, shape in zip(shapes._fields, shapes, strict=True)}
        given = {name: is_there for name, is_there in present.items() if not is_there or not may_lack}
        _checks.params_presence(where, params, given)

    def check_shapes(params: Any, shapes: Any) -> None:
        arrays = {}
        for name, shape in zip(shapes._fields, shapes, strict=True):
            value = getattr(params, name)
            if value is not None and hasattr(shape, "_fields"):
                check_present(value, shape)
                check_shapes(value, shape)
            elif value is not None:
                arrays[name] = shape
        _checks.params_shapes(where, params, arrays)

    check_present(params, config.shapes(1))
    if hasattr(config, "num_heads") and _checks.is_array(params.w_h):
        _check_heads(config, where, params.w_h)
    _checks.input_features(where, input_shape, params.w_x)
    check_shapes(params, config.shapes(input_shape[-1]))
