"""Activations φ, by name or as functions, with their transposed derivative.

A name has a slope φ' written in the value h = φ(a), which the backward pass has at hand. A function of
the user's is traced: where it works on every unit by itself, its slope is computed beside its value.
Where it mixes units, as softmax does, its Jacobian is not diagonal: the pre-activation is kept,
and the backward pass goes through the function itself.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn import _checks
from jaxrnn._bound import picklable
from jaxrnn._types import AnyArray
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._elementwise import is_elementwise


class Named(NamedTuple):
    """An activation with a name: φ(a), φ' written in h = φ(a), both of α and β as well, and their defaults."""

    value: Callable[[Array, Any, Any], Array]
    slope: Callable[[Array, Any, Any], Array]
    alpha: float | None = None  # None: φ has no α
    beta: float | None = None


def _clamp(a: Array, low: float, high: float) -> Array:
    return lax.clamp(lax.full((), low, a.dtype), a, lax.full((), high, a.dtype))


def _inside(h: Array) -> Array:
    return ((h > 0) & (h < 1)).astype(h.dtype)


NAMED: dict[str, Named] = {
    "tanh": Named(lambda a, *_: jnp.tanh(a), lambda h, *_: alg.tanh_slope(h)),
    "relu": Named(lambda a, *_: jax.nn.relu(a), lambda h, *_: alg.relu_slope(h)),
    "sigmoid": Named(lambda a, *_: jax.nn.sigmoid(a), lambda h, *_: alg.sigmoid_slope(h)),
    "hard_sigmoid": Named(lambda a, α, β: _clamp(α * a + β, 0.0, 1.0), lambda h, α, _: α * _inside(h), 1 / 6, 0.5),
    "softsign": Named(lambda a, *_: jax.nn.soft_sign(a), lambda h, *_: (1 - jnp.abs(h)) ** 2),
    "softplus": Named(lambda a, *_: jax.nn.softplus(a), lambda h, *_: -jnp.expm1(-h)),
    "elu": Named(lambda a, α, _: jax.nn.elu(a, α), lambda h, α, _: jnp.where(h > 0, 1, h + α).astype(h.dtype), 1.0),
    "leaky_relu": Named(
        lambda a, α, _: jax.nn.leaky_relu(a, α), lambda h, α, _: jnp.where(h >= 0, 1, α).astype(h.dtype), 0.01
    ),
    "thresholded_relu": Named(
        lambda a, α, _: jnp.where(a > α, a, 0).astype(a.dtype), lambda h, *_: alg.relu_slope(h), 1.0
    ),
    "scaled_tanh": Named(lambda a, α, β: α * jnp.tanh(β * a), lambda h, α, β: β * (α - h * h / α), 1.0, 1.0),
    "affine": Named(lambda a, α, β: α * a + β, lambda h, α, _: jnp.full_like(h, α), 1.0, 0.0),
    "identity": Named(lambda a, *_: a, lambda h, *_: jnp.ones_like(h)),
}


@dataclasses.dataclass(frozen=True, repr=False)
class Activation:
    """An activation φ that has a name, with its parameters α and β, and a bound of what it reads.

    ====================  ==============================  =========  =========
    name                  φ(a)                            default α  default β
    ====================  ==============================  =========  =========
    `tanh`                tanh(a)
    `relu`                max(a, 0)
    `sigmoid`             1/(1 + e^-a)
    `hard_sigmoid`        αa + β, clipped to [0, 1]       1/6        1/2
    `softsign`            a/(1 + |a|)
    `softplus`            log(1 + e^a)
    `elu`                 a if a > 0, else α(e^a - 1)     1
    `leaky_relu`          a if a > 0, else αa             0.01
    `thresholded_relu`    a if a > α, else 0              1
    `scaled_tanh`         α tanh(βa)                      1          1
    `affine`              αa + β                          1          0
    `identity`            a
    ====================  ==============================  =========  =========

    Cells take the name alone where α and β have their default values and there is no clip.

    Args:
        name: one of the table.
        alpha: α, positive but for `affine`; `None` is the default.
        beta: β, likewise, of any sign.
        clip: C > 0: φ reads a clipped to [-C, C]; `None` does not clip.

    Raises:
        TypeError, ValueError: for another name, or a parameter that the activation does not have.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> hard_sigmoid = jaxrnn.Activation("hard_sigmoid", alpha=0.2, beta=0.5)
        >>> hard_sigmoid(jnp.array([-3.0, 0.0, 2.5])).tolist()
        [0.0, 0.5, 1.0]
        >>> jaxrnn.lstm(64, recurrent_activation=hard_sigmoid)
        lstm(64, recurrent_activation=Activation('hard_sigmoid', alpha=0.2))

    Differs from:
        1. Keras before 3, ONNX: their `hard_sigmoid` has α = 0.2. That of Keras 3, JAX and PyTorch has α = 1/6.
        2. Keras 3: its `leaky_relu` has α = 0.2. That of ONNX, JAX and PyTorch has α = 0.01.
        3. JAX: at the edges of `hard_sigmoid` and of `clip` the slope is 0.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        _checks.one_of("Activation", "name", self.name, tuple(NAMED))
        object.__setattr__(self, "name", str(self.name))
        for option, default in (("alpha", NAMED[self.name].alpha), ("beta", NAMED[self.name].beta)):
            given = getattr(self, option)
            if given is not None and default is None:
                raise ValueError(
                    f"Activation: {option} expected None, got {_checks.describe(given)}; {self.name} has none"
                )
            if given is not None:
                default = _finite(option, given, is_positive=option == "alpha" and self.name != "affine")
            object.__setattr__(self, option, default)
        if self.clip is not None:
            object.__setattr__(self, "clip", _finite("clip", self.clip, is_positive=True))

    def __repr__(self) -> str:
        known = NAMED[self.name]
        options = {"alpha": (self.alpha, known.alpha), "beta": (self.beta, known.beta), "clip": (self.clip, None)}
        words = [f"{option}={given!r}" for option, (given, default) in options.items() if given != default]
        return f"Activation({', '.join([repr(self.name), *words])})"

    def __call__(self, a: Float[AnyArray, "..."]) -> Float[Array, "..."]:
        a = _checks.floating("Activation", "a", a)
        return NAMED[self.name].value(self._clipped(a), self.alpha, self.beta)

    def _clipped(self, a: Array) -> Array:
        return a if self.clip is None else _clamp(a, -self.clip, self.clip)

    def slope(self, h: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
        """φ' from the value h = φ(a), of an activation without clip."""
        return NAMED[self.name].slope(h, self.alpha, self.beta)


def _finite(option: str, value: Any, is_positive: bool) -> float:
    check = _checks.positive_float if is_positive else _checks.number
    number = check("Activation", option, value)
    if not math.isfinite(number):
        raise ValueError(f"Activation: {option} expected a finite number, got {number}")
    return number


AnyActivation = str | Activation | Callable[[Array], Array]


class Slope(NamedTuple):
    """φ'(a), of a function that works on every unit by itself."""

    slope: Float[Array, "*B H"]


class PreActivation(NamedTuple):
    """a, of a function that mixes units."""

    a: Float[Array, "*B H"]


Kept = Slope | PreActivation | None


def checked_activation(where: str, activation: Any, option: str = "activation") -> AnyActivation:
    """`activation`, which is a callable or a name; one of the library's with its default parameters as its name."""
    if isinstance(activation, Activation):
        return activation.name if activation == Activation(activation.name) else activation
    _checks.name_or_function(where, option, activation, tuple(NAMED))
    _checks.hashable(where, option, activation)
    return activation


def checked_activations(where: str, activation: Any, recurrent_activation: Any) -> dict[str, Any]:
    """Those of a cell with gates, by the names of its options."""
    given = {"activation": activation, "recurrent_activation": recurrent_activation}
    return {option: checked_activation(where, value, option) for option, value in given.items()}


def is_named(activation: AnyActivation) -> bool:
    """Whether it is one of the library's, which works on every unit by itself."""
    return isinstance(activation, (str, Activation))


def mixes_units(activation: AnyActivation, hidden_size: int) -> bool:
    """Whether φ of a unit may depend on other units."""
    if isinstance(activation, (str, Activation)):
        return False
    return not is_elementwise(activation, jax.ShapeDtypeStruct((hidden_size,), jnp.result_type(float)))


class Phi(NamedTuple):
    """φ of a cell, and the cell and the option that messages name."""

    where: str
    activation: AnyActivation
    option: str = "activation"

    def __reduce__(self) -> Any:
        return Phi, (self.where, picklable(self.activation), self.option)

    def __call__(self, a: Float[Array, "*B H"]) -> tuple[Float[Array, "*B H"], Kept]:
        """φ(a), and what `pull_back` needs besides."""
        named = self._named
        if named is not None:
            h, clip = named(a), named.clip
            return h, None if clip is None else Slope(named.slope(h) * (jnp.abs(a) < clip).astype(h.dtype))
        phi = self._of_each_sequence
        if is_elementwise(phi, jax.ShapeDtypeStruct(a.shape[-1:], a.dtype)):
            h, pullback = jax.vjp(phi, a)
            return h, Slope(pullback(jnp.ones_like(h))[0])
        return phi(a), PreActivation(a)

    def pull_back(self, h: Float[Array, "*B H"], kept: Kept, dh: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
        """The cotangent of a."""
        if isinstance(kept, Slope):
            return dh * kept.slope
        if isinstance(kept, PreActivation):
            return jax.vjp(self._of_each_sequence, kept.a)[1](dh)[0]
        assert self._named is not None
        return dh * self._named.slope(h)

    @property
    def _named(self) -> Activation | None:
        """φ, if it is one of the library's."""
        if isinstance(self.activation, str):
            return Activation(self.activation)
        return self.activation if isinstance(self.activation, Activation) else None

    def _of_each_sequence(self, a: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
        """φ of the units of one sequence, over any leading axes: nothing crosses between sequences or steps."""

        def of_one(a: Float[Array, "H"]) -> Float[Array, "H"]:
            assert callable(self.activation)
            h = self.activation(a)
            _check_result(self.where, self.option, a, h)
            return h.astype(a.dtype)

        return jnp.vectorize(of_one, signature="(h)->(h)")(a)


class GatePhis(NamedTuple):
    """φ of the gates, and of what the cell writes and reads."""

    gate: Phi
    unit: Phi

    @property
    def are_named(self) -> bool:
        """Whether both are the library's."""
        return all(is_named(phi.activation) for phi in self)


def gate_phis(where: str, activation: AnyActivation, recurrent_activation: AnyActivation) -> GatePhis:
    """Those of a cell with these options."""
    return GatePhis(Phi(where, recurrent_activation, "recurrent_activation"), Phi(where, activation))


def phis_of(functions: Any) -> GatePhis | None:
    """Those that a function or a record of functions is bound to, or `None`."""
    if isinstance(functions, GatePhis):
        return functions
    if isinstance(functions, functools.partial):
        return phis_of((functions.func, functions.args, tuple(functions.keywords.values())))
    if isinstance(functions, tuple):
        return next(filter(None, map(phis_of, functions)), None)
    return None


def _check_result(where: str, option: str, a: Array, h: Any) -> None:
    if not _checks.is_array(h) or h.shape != a.shape:
        got = f"one from shape {a.shape} to {h.shape}" if _checks.is_array(h) else f"one to {_checks.describe(h)}"
        raise ValueError(f"{where}: {option} expected a function to an array of the same shape, got {got}")
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise TypeError(f"{where}: {option} expected a function to real numbers, got one to {_checks.describe(h)}")
