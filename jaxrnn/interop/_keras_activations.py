"""The activations of Keras's layers by name, with the constants of the version that wrote them."""

from collections.abc import Mapping
from typing import Any

from jaxrnn import _checks
from jaxrnn._describe import cut, describe, quote
from jaxrnn.cells import Activation

SAME = ("tanh", "relu", "sigmoid", "softsign", "softplus", "elu")  # the same function in every version
KNOWN = (*SAME, "linear", "leaky_relu", "hard_sigmoid")
SLOPE = 0.2  # of Keras's leaky_relu, in every version that has one
LAYERS = {"LeakyReLU": ("leaky_relu", ("negative_slope", "alpha"), 0.3), "ELU": ("elu", ("alpha",), 1.0)}
MODULES = ("builtins", "keras", "tf_keras", "tensorflow")  # of Keras's own functions and layers


def activation(where: str, value: Any, keras_major: int | None) -> Any:
    """What `lstm`, `gru` and `rnn` call the activation of a configuration.

    Args:
        where: the function, the layer and the option, for messages.
        value: a name, `None`, or what Keras writes for a function or a layer.
        keras_major: the first number of Keras's version, `None` if the configuration does not tell it.
    """
    if isinstance(value, Mapping):
        return _serialised(where, value, keras_major)
    if value is None or value == "linear":
        return "identity"
    if value == "hard_sigmoid":
        return _hard_sigmoid(where, keras_major)
    if value == "leaky_relu":
        return Activation("leaky_relu", SLOPE)
    if isinstance(value, str) and value in SAME:
        return value
    given = quote(value) if isinstance(value, str) else describe(value)
    raise ValueError(f"{where} expected one of {', '.join(KNOWN)}, got {given}, which is not converted")


def is_of_keras(entry: Mapping[str, Any]) -> bool:
    """Whether an entry with `class_name` tells no module that is not Keras's."""
    module = entry.get("module")
    return module is None or (isinstance(module, str) and module.split(".")[0] in MODULES)


def _hard_sigmoid(where: str, keras_major: int | None) -> Any:
    if keras_major is None:
        raise ValueError(
            f"{where}: hard_sigmoid is clip(0.2 x + 0.5, 0, 1) before Keras 3 and clip(x / 6 + 0.5, 0, 1) since, "
            "expected a configuration that tells its version; put 'keras_version' into it, such as '2.15.0'"
        )
    return "hard_sigmoid" if keras_major >= 3 else Activation("hard_sigmoid", 0.2, 0.5)


def _serialised(where: str, value: Mapping[str, Any], keras_major: int | None) -> Any:
    """An activation that is written as an object: Keras's own functions, and its layers LeakyReLU and ELU."""
    kind, inner = value.get("class_name"), value.get("config")
    is_own = is_of_keras(value)
    if is_own and kind == "function" and isinstance(inner, str) and value.get("registered_name") in (None, "function"):
        return activation(where, inner, keras_major)
    if is_own and kind in LAYERS and isinstance(inner, Mapping):
        name, options, default = LAYERS[str(kind)]
        slope = next((inner[option] for option in options if option in inner), default)
        slope = _checks.number(where, options[0], slope)
        return "relu" if name == "leaky_relu" and slope == 0 else Activation(name, slope)
    given = cut(f"{describe(kind) if not isinstance(kind, str) else kind} {quote(str(inner), 60)}", 120)
    raise ValueError(f"{where} expected one of {', '.join(KNOWN)}, got {given}, which is not converted")
