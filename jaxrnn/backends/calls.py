"""A call of `unroll` as those who must serve it see it: what is asked, of which cell, on which device."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxrnn._types import Cell, Config, Rule, State
from jaxrnn.cells.gru import RESET_AFTER, RESET_BEFORE
from jaxrnn.cells.lstm import RULE
from jaxrnn.cells.rnn import RULES


class Device(NamedTuple):
    """What a program will run on."""

    platform: str  # cpu, cuda, rocm, tpu or another of JAX's names
    kind: str  # as "NVIDIA H200"


class Call(NamedTuple):
    """One call of `unroll`, checked."""

    cell: Cell
    device: Device
    dtype: Any  # of the states
    sizes: tuple[int, ...]  # T, *B, I
    state: State  # shapes and dtypes of the leaves
    varying: bool  # whether params or xs differ between devices, inside `shard_map`
    options: Mapping[str, Any]  # the keyword arguments of `unroll`


def device_of(xs: Any) -> Device:
    """The device of concrete inputs; while tracing, the one that this process computes on by default.

    Starts JAX's devices if nothing has.
    A program that is traced here and lowered for another platform cannot be foreseen.
    """
    if isinstance(xs, jax.Array) and not isinstance(xs, Tracer):
        device = next(iter(xs.devices()))
    else:
        # A device, a platform's name, or None
        default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        device = default if isinstance(default, jax.Device) else jax.devices(default)[0]
    platform = device.platform
    if platform == "gpu":  # JAX's one name for both makers
        platform = "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return Device(platform, device.device_kind)


def made_of(cell: Cell) -> list[Config]:
    """How the cells were made that a cell consists of; empty for one of the user's own."""

    def parts(config: Config) -> list[Config]:
        inner = config.options[0][1] if config.factory == "stack" else None
        return [config] if inner is None else [part for each in inner for part in parts(each)]

    return [] if cell.config is None else parts(cell.config)


def _made_by(*factories: str) -> Callable[[Call], bool]:
    return lambda call: any(config.factory in factories for config in made_of(call.cell))


def _has(option: str) -> Callable[[Call], bool]:
    """An option of the factory, at any of the cells."""
    return lambda call: any(dict(config.options).get(option) for config in made_of(call.cell))


def _before(call: Call) -> bool:
    return any(c.factory == "gru" and not dict(c.options)["reset_after"] for c in made_of(call.cell))


def _own_activation(call: Call) -> bool:
    return any(c.factory == "rnn" and not isinstance(dict(c.options)["activation"], str) for c in made_of(call.cell))


def _given(option: str) -> Callable[[Call], bool]:
    return lambda call: call.options[option] is not None and call.options[option] is not False


def _of_dtype(*dtypes: Any) -> Callable[[Call], bool]:
    return lambda call: any(call.dtype == dtype for dtype in dtypes)


def _on(*platforms: str) -> Callable[[Call], bool]:
    return lambda call: call.device.platform in platforms


def _without_rule(call: Call) -> bool:
    """A network as a whole has none, its cells have."""
    return call.cell.rule is None and not (call.cell.config is not None and call.cell.config.factory == "stack")


def _expected_rule(config: Config) -> Rule | None:
    """That of a cell of `lstm`, `gru`, or `rnn` with a named activation; `None` of others, which are made for each."""
    if config.factory == "lstm":
        return RULE
    options = dict(config.options)
    if config.factory == "gru":
        return RESET_AFTER if options["reset_after"] else RESET_BEFORE
    named = config.factory == "rnn" and isinstance(options["activation"], str)
    return RULES[options["activation"]] if named else None


def _own(call: Call) -> bool:
    """Not made by the library, or given another rule since."""
    rule, config = call.cell.rule, call.cell.config
    if rule is None or config is None:
        return rule is not None
    return _expected_rule(config) not in (None, rule)


def _own_without_units(call: Call) -> bool:
    return call.cell.rule is not None and call.cell.rule.units is None and _own(call)


def has_units_of_another(call: Call) -> bool:
    """Whether the rule is one of the library's with other functions in it, and the `units` are still the library's."""
    rule = call.cell.rule
    if rule is None or rule.units is None:
        return False
    return any(rule.units is known.units and rule != known for known in (RULE, RESET_AFTER, *RULES.values()))


def _not_floating(call: Call) -> bool:
    return not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(call.state))


# What may be asked, and when it is. The rows of the table of capabilities.
FEATURES: dict[str, Callable[[Call], bool]] = {
    "`lstm`": _made_by("lstm"),
    "`gru`": _made_by("gru"),
    "`rnn`": _made_by("rnn"),
    "`gru` with `reset_after=False`": _before,
    "`rnn` with an activation of your own": _own_activation,
    "`mgu`, `indrnn`": _made_by("mgu", "indrnn"),
    "a projection": _has("projection_size"),
    "peepholes": _has("peephole"),
    "coupled gates": _has("coupled"),
    "layer normalisation": _has("layer_norm"),
    "`regularize`": _made_by("regularize"),
    "a cell of your own with a rule": _own,
    "a rule of your own without `units`": _own_without_units,
    "a cell without a rule": _without_rule,
    "a state that is not floating-point throughout": _not_floating,
    "`lengths`": _given("lengths"),
    "`mask`": _given("mask"),
    "`resets`": _given("resets"),
    "`reverse`": _given("reverse"),
    "`return_states`": _given("return_states"),
    "`checkpoint=\"gates\"`": lambda call: call.options["checkpoint"] == "gates",
    "`checkpoint=K`": lambda call: call.options["checkpoint"] not in (None, "gates"),
    "`compute_dtype`": _given("compute_dtype"),
    "`truncate`": _given("truncate"),
    "`clip_gradient`": _given("clip_gradient"),
    "`shard_map` with its checks": lambda call: call.varying,
    "`model_parallel`": lambda call: call.cell.placement is not None and call.cell.placement.units is not None,
    "a batch on an explicit mesh": lambda call: call.cell.placement is not None and call.cell.placement.units is None,
    "float32": _of_dtype(jnp.float32),
    "float64": _of_dtype(jnp.float64),
    "bfloat16, float16": _of_dtype(jnp.bfloat16, jnp.float16),
    "a CPU": _on("cpu"),
    "an NVIDIA GPU": _on("cuda"),
    "an AMD GPU": _on("rocm"),
    "a TPU": _on("tpu"),
}  # fmt: skip


def rows_of(call: Call) -> int:
    """The sequences of the batch."""
    return math.prod(call.sizes[1:-1])
