"""What reads the outputs of a network, ŷ_t = ψ(h_t V + c), and losses whose derivative by the logits is ŷ - y.

With the logits a_t = h_t V + c, targets y, and sums over the O outputs:

    identity   ŷ = a             L = ½ Σ (ŷ - y)²
    sigmoid    ŷ = σ(a)          L = -Σ (y log ŷ + (1 - y) log(1 - ŷ))
    softmax    ŷ = softmax(a)    L = -Σ y log ŷ

    δa = ŷ - y  (softmax: ŷ Σy - y)      δh = δa Vᵀ      δV = Σ h_tᵀ δa_t      δc = Σ δa_t

The derivative of a loss is written by hand, because that of ŷ cancels in it: it neither overflows nor
divides by ŷ. Both forward and reverse mode use it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, CellConfig
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._step import cast_floating
from jaxrnn.initializers import Initializer, draw

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": alg.identity,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}


class ReadoutParams(NamedTuple):
    """Parameters of :func:`readout`; one without bias has `c=None`."""

    v: Float[Array, "H O"]
    c: Float[Array, "O"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class ReadoutConfig(CellConfig):
    """The options of :func:`readout`."""

    factory: ClassVar[str] = "readout"
    output_size: int
    activation: str = "identity"
    use_bias: bool = True


class Readout(NamedTuple):
    """A read-out as a record of pure functions; made by :func:`readout`.

    Attributes:
        init: ``(key, input_size, dtype=None) -> params``, with H as the input size.
        logits: ``(params, h) -> a``, h V + c: `(*B, H)` to `(*B, O)`.
        predict: ``(params, h) -> ŷ``, ψ of the logits.
        loss: ``(params, h, targets) -> L`` `(*B,)`, as :func:`readout_loss` of the logits.
        name: what messages call it.
        config: how it was made, which :func:`jaxrnn.save` writes.
    """

    init: Callable[..., ReadoutParams]
    logits: Callable[[ReadoutParams, AnyArray], Array]
    predict: Callable[[ReadoutParams, AnyArray], Array]
    loss: Callable[[ReadoutParams, AnyArray, AnyArray], Array]
    name: str
    config: ReadoutConfig | None = None

    def __repr__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: Any) -> "Readout":
        return self  # immutable

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise TypeError(f"{self.name}: a read-out is not called; use its logits, predict or loss, of (params, h)")


def readout(
    output_size: int,
    *,
    activation: str = "identity",
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    bias_init: Initializer = jax.nn.initializers.zeros,
) -> Readout:
    """What reads the outputs of a network: ŷ_t = ψ(h_t V + c), with the loss that belongs to ψ.

    It has O(H + 1) parameters, and works on any leading axes: one output, or all of a sequence.

    Args:
        output_size: O, the number of outputs.
        activation: ψ. "identity" has the squared error for a loss, "sigmoid" the cross-entropy of
            O independent events, "softmax" that of one of O classes.
        use_bias: whether there is a `c`.
        kernel_init: draws `v`.
        bias_init: draws `c`.

    Returns:
        A :class:`Readout`. Read-outs of equal options are equal.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, an unknown activation, or
            softmax of one output, which is 1 whatever the logit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell, read = jaxrnn.gru(16), jaxrnn.readout(10, activation="softmax")
        >>> params = {"cell": cell.init(jax.random.key(0), 8), "read": read.init(jax.random.key(1), 16)}
        >>> def loss(params, xs, labels):
        ...     _, ys = jaxrnn.unroll(cell, params["cell"], xs)
        ...     return read.loss(params["read"], ys[-1], labels).mean()
        >>> gradients = jax.grad(loss)(params, jnp.ones((20, 4, 8)), jnp.array([3, 1, 4, 1]))
        >>> gradients["read"].v.shape
        (16, 10)

    References:
        Goodfellow et al. 2016, equations 10.10 and 10.11, and 10.18 for ŷ - y; section 6.2.2 for the losses.

    Differs from:
        1. PyTorch: `torch.nn.Linear` stores (out, in) and has no loss; `torch.nn.CrossEntropyLoss` takes classes
           on the second axis. Here classes are last.
        2. Keras: `Dense(activation="softmax")` has a loss of probabilities; here losses are of logits.
        3. Flax, Optax: `nnx.Linear` with `optax.softmax_cross_entropy` has the same values.
    """
    output_size = _checks.size("readout", "output_size", output_size)
    check_activation("readout", activation, output_size)
    use_bias = _checks.boolean("readout", "use_bias", use_bias)
    for name, value in (("kernel_init", kernel_init), ("bias_init", bias_init)):
        _checks.function("readout", name, value, "such as those of jaxrnn.initializers or jax.nn.initializers")
    config = ReadoutConfig(output_size, activation, use_bias)
    return Readout(
        init=Bound(_init, output_size, use_bias, kernel_init, bias_init),
        logits=Bound(_logits, output_size),
        predict=Bound(_predict, output_size, activation),
        loss=Bound(_loss_of_outputs, output_size, activation),
        name=repr(config),
        config=config,
    )


def readout_loss(logits: Float[AnyArray, "*B O"], targets: AnyArray, activation: str = "softmax") -> Float[Array, "*B"]:
    """The loss of a read-out from its logits: of each position, summed over the outputs.

    Its derivative by the logits is ŷ - y, written by hand. A mean over the valid steps of padded
    sequences is `jnp.sum(jnp.where(mask, loss, 0)) / jnp.sum(mask)`.

    Args:
        logits: a, `(*B, O)`, floating-point.
        targets: y, `(*B, O)`, real numbers: values for "identity", probabilities for "sigmoid" and "softmax". For
            "softmax" also the classes themselves, integers `(*B,)` in 0..O-1: concrete ones outside are
            refused, the loss of traced ones is NaN and its derivative finite.
        activation: "identity", "sigmoid" or "softmax".

    Returns:
        L `(*B,)` in nats, or in squared units for "identity", in the dtype of the logits.

    Raises:
        TypeError, ValueError: for a wrong dtype or shape, a class outside 0..O-1, or an unknown activation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> loss = lambda a: jaxrnn.readout_loss(a, jnp.array(1))
        >>> a = jnp.log(jnp.array([0.7, 0.2, 0.1]))
        >>> [f"{d:.1f}" for d in jax.grad(loss)(a)]
        ['0.7', '-0.8', '0.1']

    References:
        Bridle 1990, "Training stochastic model recognition algorithms", for softmax; Goodfellow et al. 2016,
        equation 10.18.
    """
    where = "readout_loss"
    logits = _checks.floating(where, "logits", logits)
    if not logits.ndim:
        raise ValueError(f"{where}: logits expected shape (*B, O), got (); a single output has O = 1")
    check_activation(where, activation, logits.shape[-1])
    return _loss(activation, logits, _checked_targets(where, activation, logits, targets))


def check_activation(where: str, activation: Any, output_size: int) -> None:
    """Raises for an unknown activation, and for softmax of one output."""
    _checks.one_of(where, "activation", activation, tuple(ACTIVATIONS))
    if activation == "softmax" and output_size == 1:
        raise ValueError(
            f"{where}: softmax expected at least 2 classes, got 1, whose probability is always 1; "
            "activation='sigmoid' is for one event"
        )


def _checked_targets(where: str, activation: str, logits: Array, targets: Any) -> Array:
    """Targets in the dtype of the logits, or classes."""
    given, targets = targets, _checks.array(where, "targets", targets)
    classes, shapes = logits.shape[-1], [logits.shape]
    is_whole = jnp.issubdtype(targets.dtype, jnp.integer)
    if not is_whole and targets.dtype != jnp.bool_:
        _checks.floating(where, "targets", targets)
    if activation == "softmax" and is_whole:
        shapes.append(logits.shape[:-1])
    if targets.shape not in shapes:
        kinds = f"real numbers {logits.shape}"
        if activation == "softmax":
            kinds += f" or classes {logits.shape[:-1]}, which are integers"
        got = f"shape {targets.shape} and dtype {targets.dtype}"
        raise ValueError(f"{where}: targets expected {kinds}, for logits {logits.shape}, got {got}")
    if targets.shape == logits.shape:
        return targets.astype(logits.dtype)
    if not isinstance(given, Tracer) and targets.size:
        concrete = np.asarray(given)  # what JAX compares while it traces is traced
        least, most = concrete.min(), concrete.max()
        if least < 0 or most >= classes:
            raise ValueError(
                f"{where}: targets expected classes in 0..{classes - 1}, got {least}..{most}; "
                "give padded steps any class, and select the others' losses with jnp.where"
            )
    return targets


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(activation: str, a: Float[Array, "*B O"], y: Float[Array, "*B O"] | Int[Array, "*B"]) -> Float[Array, "*B"]:
    if activation == "identity":
        return jnp.sum(jnp.square(a - y), -1) / 2
    if activation == "sigmoid":
        return jnp.sum(jax.nn.softplus(a) - a * y, -1)
    log_sum = jax.nn.logsumexp(a, -1)
    if y.ndim < a.ndim:
        is_class = (y >= 0) & (y < a.shape[-1])
        chosen = jnp.take_along_axis(a, jnp.where(is_class, y, jnp.zeros_like(y))[..., None], -1)[..., 0]
        return jnp.where(is_class, log_sum - chosen, jnp.full_like(log_sum, jnp.nan))
    return log_sum * jnp.sum(y, -1) - jnp.sum(a * y, -1)


@_loss.defjvp
def _loss_jvp(activation: str, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    a, y = primals
    da, dy = tangents
    loss, predicted = _loss(activation, a, y), ACTIVATIONS[activation](a)
    if y.ndim < a.ndim:
        one_hot = jax.nn.one_hot(y, a.shape[-1], dtype=a.dtype)
        return loss, jnp.sum((predicted - one_hot) * da, -1)
    total = jnp.sum(y, -1, keepdims=True) if activation == "softmax" else jnp.ones((), a.dtype)
    by_a = predicted * jnp.broadcast_to(total, a.shape) - y
    by_y = {"identity": lambda: y - a, "sigmoid": lambda: -a, "softmax": lambda: -jax.nn.log_softmax(a)}[activation]()
    return loss, jnp.sum(by_a * da + by_y * dy, -1)


def _init(
    output_size: int,
    use_bias: bool,
    kernel: Initializer,
    bias: Initializer,
    key: Array,
    input_size: int,
    dtype: Any = None,
) -> ReadoutParams:
    where = "readout.init"
    input_size = _checks.size(where, "input_size", input_size)
    dtype = _checks.float_dtype(where, "dtype", dtype)
    key_v, key_c = jax.random.split(_checks.key(where, "key", key))
    v = draw(f"{where}: kernel_init", kernel, key_v, (input_size, output_size), dtype)
    return ReadoutParams(v, draw(f"{where}: bias_init", bias, key_c, (output_size,), dtype) if use_bias else None)


def _checked(where: str, output_size: int, params: Any, h: Any) -> tuple[ReadoutParams, Array]:
    """Parameters and outputs of a network, in one dtype."""
    _checks.params_record(where, params, ReadoutParams)
    h = _checks.floating(where, "h", h)
    if not h.ndim:
        raise ValueError(f"{where}: h expected shape (*B, H), got ()")
    shapes: dict[str, tuple[int, ...]] = {"v": (_checks.rows(where, params, "v"), output_size)}
    _checks.params_shapes(where, params, shapes if params.c is None else shapes | {"c": (output_size,)})
    if h.shape[-1] != params.v.shape[0]:
        raise ValueError(
            f"{where}: h expected shape (*B, H) with H = {params.v.shape[0]}, as params.v has shape "
            f"{params.v.shape}, got {h.shape}; is it the output of another network?"
        )
    return cast_floating((params, h), jnp.result_type(h, *params[: 1 if params.c is None else 2]))


def _logits(output_size: int, params: ReadoutParams, h: Float[AnyArray, "*B H"]) -> Float[Array, "*B O"]:
    params, h = _checked("readout.logits", output_size, params, h)
    return alg.add(alg.dot(h, params.v), params.c)


def _predict(output_size: int, activation: str, params: ReadoutParams, h: Float[AnyArray, "*B H"]) -> Array:
    return ACTIVATIONS[activation](_logits(output_size, params, h))


def _loss_of_outputs(
    output_size: int, activation: str, params: ReadoutParams, h: Float[AnyArray, "*B H"], targets: AnyArray
) -> Float[Array, "*B"]:
    return readout_loss(_logits(output_size, params, h), targets, activation)
