"""Activations φ, by name or as functions, with their transposed derivative.

A name has a slope φ' written in the value h = φ(a), which the backward pass has at hand. A function of
the user's is traced: where it works on every unit by itself, its slope is computed beside its value.
Where it mixes units, as softmax does, its Jacobian is not diagonal: the pre-activation is kept,
and the backward pass goes through the function itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._elementwise import is_elementwise

Activation = str | Callable[[Array], Array]

# φ, and φ' written in the value h = φ(a).
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "tanh": (jnp.tanh, alg.tanh_slope),
    "relu": (jax.nn.relu, alg.relu_slope),
    "sigmoid": (jax.nn.sigmoid, alg.sigmoid_slope),
}


class Slope(NamedTuple):
    """φ'(a), of a function that works on every unit by itself."""

    slope: Float[Array, "*B H"]


class PreActivation(NamedTuple):
    """a, of a function that mixes units."""

    a: Float[Array, "*B H"]


Kept = Slope | PreActivation | None


def check_activation(where: str, activation: Any) -> None:
    """`activation` is a callable, or a name in `ACTIVATIONS`."""
    _checks.name_or_function(where, "activation", activation, tuple(ACTIVATIONS))
    _checks.hashable(where, "activation", activation)


def mixes_units(activation: Activation, hidden_size: int) -> bool:
    """Whether φ of a unit may depend on other units."""
    if isinstance(activation, str):
        return False
    return not is_elementwise(activation, jax.ShapeDtypeStruct((hidden_size,), jnp.result_type(float)))


def activate(where: str, activation: Activation, a: Float[Array, "*B H"]) -> tuple[Float[Array, "*B H"], Kept]:
    """φ(a), and what `pull_back` needs besides."""
    if isinstance(activation, str):
        return ACTIVATIONS[activation][0](a), None
    phi = _of_each_sequence(where, activation)
    if is_elementwise(phi, jax.ShapeDtypeStruct(a.shape[-1:], a.dtype)):
        h, pullback = jax.vjp(phi, a)
        return h, Slope(pullback(jnp.ones_like(h))[0])
    return phi(a), PreActivation(a)


def pull_back(
    where: str, activation: Activation, h: Float[Array, "*B H"], kept: Kept, dh: Float[Array, "*B H"]
) -> Float[Array, "*B H"]:
    """The cotangent of a."""
    if isinstance(activation, str):
        return dh * ACTIVATIONS[activation][1](h)
    if isinstance(kept, Slope):
        return dh * kept.slope
    assert isinstance(kept, PreActivation)
    return jax.vjp(_of_each_sequence(where, activation), kept.a)[1](dh)[0]


def _of_each_sequence(where: str, activation: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The function of the units of one sequence, over any leading axes: nothing crosses between sequences or steps."""

    def of_one(a: Float[Array, "H"]) -> Float[Array, "H"]:
        h = activation(a)
        _check_result(where, a, h)
        return h.astype(a.dtype)

    return jnp.vectorize(of_one, signature="(h)->(h)")


def _check_result(where: str, a: Array, h: Any) -> None:
    if not _checks.is_array(h) or h.shape != a.shape:
        got = f"one from shape {a.shape} to {h.shape}" if _checks.is_array(h) else f"one to {_checks.describe(h)}"
        raise ValueError(f"{where}: activation expected a function to an array of the same shape, got {got}")
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise TypeError(f"{where}: activation expected a function to real numbers, got one to {_checks.describe(h)}")
