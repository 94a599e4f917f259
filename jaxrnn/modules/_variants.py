"""Converts PyTorch's arguments to options of the functional cells."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxrnn import _checks
from jaxrnn._describe import cut
from jaxrnn._types import Cell, format_value
from jaxrnn.cells import GRUConfig, LSTMConfig, RNNConfig, lru, rg_lru, slstm
from jaxrnn.cells._activation import checked_activation, checked_activations
from jaxrnn.cells._family import checked_heads
from jaxrnn.layers import Layer, directions


def _heads(where: str, hidden_size: Any, num_heads: Any) -> int:
    """`num_heads`, checked."""
    return checked_heads(where, num_heads, _checks.size(where, "hidden_size", hidden_size))


def rnn_options(where: str, hidden_size: Any, num_heads: Any, nonlinearity: Any) -> dict[str, Any]:
    """Options of :func:`jaxrnn.rnn`."""
    activation = checked_activation(where, nonlinearity, "nonlinearity")
    return {"activation": activation, "num_heads": _heads(where, hidden_size, num_heads)}


def _gated_options(
    where: str, hidden_size: Any, num_heads: Any, activation: Any, recurrent_activation: Any, variants: Mapping
) -> dict[str, Any]:
    """The options that cells with gates share."""
    return {
        **{name: _checks.boolean(where, name, value) for name, value in variants.items()},
        "num_heads": _heads(where, hidden_size, num_heads),
        **checked_activations(where, activation, recurrent_activation),
    }


def lstm_options(
    where: str,
    hidden_size: Any,
    num_heads: Any,
    proj_size: Any,
    activation: Any,
    recurrent_activation: Any,
    **variants: Any,
) -> dict[str, Any]:
    """Options of :func:`jaxrnn.lstm`; a `proj_size` of 0 is no projection, as in PyTorch."""
    options = _gated_options(where, hidden_size, num_heads, activation, recurrent_activation, variants)
    if _checks.is_integer(proj_size) and proj_size == 0:
        return options
    proj_size = _checks.positive_int(where, "proj_size", proj_size)
    if proj_size >= _checks.positive_int(where, "hidden_size", hidden_size):
        raise ValueError(
            f"{where}: proj_size expected less than hidden_size = {hidden_size}, got {proj_size}; 0 is no projection"
        )
    if options["num_heads"] > 1:
        raise ValueError(
            f"{where}: num_heads expected 1 with a projection, got {num_heads} and proj_size = {proj_size}; "
            "the projection mixes the units of all heads"
        )
    return {**options, "projection_size": proj_size}


def gru_options(
    where: str, hidden_size: Any, num_heads: Any, activation: Any, recurrent_activation: Any, **variants: Any
) -> dict[str, Any]:
    """Options of :func:`jaxrnn.gru`."""
    return _gated_options(where, hidden_size, num_heads, activation, recurrent_activation, variants)


def without_recurrent(where: str, factory: Callable[..., Cell], drawing: Mapping[str, Any]) -> Callable[..., Cell]:
    """The factory of a cell that has no recurrent weight, with a `recurrent_init` that draws nothing.

    Raises:
        TypeError: for an option of the recurrent weight.
    """
    _refuse(where, drawing, "recurrent", "recurrent weight")

    def make(hidden_size: int, *, recurrent_init: Any = None, **options: Any) -> Cell:
        return factory(hidden_size, **options)

    return make


def _refuse(where: str, drawing: Mapping[str, Any], role: str, what: str) -> None:
    """Raises for an initialiser or metadata of a parameter that a cell does not have."""
    for name in (f"{role}_init", f"{role}_metadata"):
        if drawing.get(name) is not None:
            got = _checks.describe(drawing[name])
            raise TypeError(f"{where}: {name} expected None, got {got}; the cell has no {what}")


def rg_lru_factory(where: str, drawing: Mapping[str, Any]) -> Callable[..., Cell]:
    """:func:`jaxrnn.rg_lru`, whose gates' blocks are drawn by `kernel_init` too."""

    def make(hidden_size: int, *, kernel_init: Any = None, **options: Any) -> Cell:
        drawn = {} if kernel_init is None else {"kernel_init": kernel_init, "gate_init": kernel_init}
        return rg_lru(hidden_size, **drawn, **options)

    return without_recurrent(where, make, drawing)


def lru_factory(where: str, drawing: Mapping[str, Any]) -> Callable[..., Cell]:
    """:func:`jaxrnn.lru`, drawn as it draws itself unless there is a `kernel_init`; it has no bias."""
    _refuse(where, drawing, "bias", "bias")
    is_given = drawing.get("kernel_init") is not None

    def make(hidden_size: int, *, kernel_init: Any = None, **options: Any) -> Cell:
        drawn = {"kernel_init": kernel_init, "output_init": kernel_init} if is_given and kernel_init is not None else {}
        own = {name: value for name, value in options.items() if name not in ("bias_init", "use_bias")}
        return lru(hidden_size, **drawn, **own)

    return without_recurrent(where, make, drawing)


def slstm_factory(drawing: Mapping[str, Any]) -> Callable[..., Cell]:
    """:func:`jaxrnn.slstm`, drawn as it draws itself but for the initialisers that are given."""
    given = {name for name, value in drawing.items() if value is not None}

    def make(hidden_size: int, **options: Any) -> Cell:
        own = {name: value for name, value in options.items() if not name.endswith("_init") or name in given}
        return slstm(hidden_size, **own)

    return make


def check_torch_has(where: str, layer: Layer) -> None:
    """Raises unless PyTorch has the layer's equations, in what the parameters do not show."""
    config = directions(layer)[0].config
    if isinstance(config, GRUConfig) and not config.reset_after:
        raise ValueError(f"{where}: reset_after expected True, got False; PyTorch's GRU resets after the product")
    for option, only in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        given = getattr(config, option, only)
        if isinstance(config, (LSTMConfig, GRUConfig)) and given != only:
            raise ValueError(
                f"{where}: {option} expected {only!r}, got {cut(format_value(given), 80)}; PyTorch has no other"
            )
    if isinstance(config, RNNConfig) and config.activation not in ("tanh", "relu"):
        raise ValueError(
            f"{where}: nonlinearity expected 'tanh' or 'relu', "
            f"got {cut(format_value(config.activation), 80)}; PyTorch has no other"
        )
