"""The minimal LSTM (Feng et al. 2024): gates that read the input alone and sum to 1, and no cell state.

    i = σ(a_i)    f = σ(a_f)    n = a_n    with [a_i, a_f, a_n] = x W_x + b
    f' = f / (f + i)            i' = i / (f + i) = 1 - f'
    h_t = f' ⊙ h_{t-1} + i' ⊙ n

The step is affine in h_{t-1}, with a = f' and b = i' ⊙ n. f' is computed as σ(d) with
d = log f - log i, which has no quotient of two numbers near 0.

Backward, with δv for ∂L/∂v:

    δn = δb ⊙ i'              δd = (δa - δb ⊙ n) ⊙ f' i'
    δa_f = δd ⊙ (1-f)         δa_i = -δd ⊙ (1-i)
    δW_x = Σ xᵀ δ             δb = Σ δ                       δx = δ W_xᵀ         with δ = [δa_i, δa_f, δn]
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._types import Affine, AnyArray, Cell
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._affine import affine_rule
from jaxrnn.cells._family import FamilyConfig, dims, make_cell, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("i", "f", "n")


class MinLSTMParams(NamedTuple):
    """Parameters of :func:`min_lstm`; blocks side by side in the order i f n."""

    w_x: Float[Array, "I GH"]
    b: Float[Array, "GH"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class MinLSTMConfig(FamilyConfig):
    """The options of :func:`min_lstm`."""

    factory: ClassVar[str] = "min_lstm"
    gates: ClassVar = GATES
    use_bias: bool = True

    def shapes(self, input_size: int) -> MinLSTMParams:
        h = self.hidden_size
        return MinLSTMParams(dims(input_size, 3 * h), dims(3 * h) if self.use_bias else None)


def _coefficients(params: MinLSTMParams, xs: Float[Array, "*B I"]):
    a_i, a_f, n = alg.split(alg.add(alg.dot(xs, params.w_x), params.b), 3)
    d = jax.nn.log_sigmoid(a_f) - jax.nn.log_sigmoid(a_i)
    f, i = jax.nn.sigmoid(d), jax.nn.sigmoid(-d)  # f' and i'
    return f, i * n, (f, i, n, jax.nn.sigmoid(-a_f), jax.nn.sigmoid(-a_i))


def _coefficients_backward(
    params: MinLSTMParams, xs: Float[Array, "*B I"], kept: tuple[Array, ...], da: Array, db: Array
):
    f, i, n, not_f, not_i = kept  # f', i', n, 1 - f, 1 - i
    dd = (da - db * n) * f * i
    delta = jnp.concatenate([-dd * not_i, dd * not_f, db * i], axis=-1)  # (*B, 3H)
    dparams = MinLSTMParams(alg.outer(xs, delta, params.w_x), None if params.b is None else alg.total(delta))
    return dparams, alg.dot_transposed(delta, params.w_x)


RULE = affine_rule(Affine(_coefficients, _coefficients_backward), matrices=("w_x",))


def min_lstm_step(
    params: MinLSTMParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a minimal LSTM.

    i = σ(x W_i + b_i),  f = σ(x W_f + b_f),  n = x W_n + b_n
    h_t = (f ⊙ h_{t-1} + i ⊙ n) / (f + i),  y_t = h_t

    Args:
        params: `w_x (I, 3H)`, `b (3H,)` or `None`, blocks in the order i f n.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.min_lstm(3).init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.min_lstm_step(params, jnp.zeros(3), jnp.ones(2))
        >>> h.shape
        (3,)

    References:
        Feng, Tung, Ahmed, Bengio & Hajimirsadegh 2024, arXiv:2410.01201, section 3.2.

    Differs from:
        1. The paper: n is its h̃. This is its plain form, where h̃ is linear in x. Its log-space
           form, where a function g makes h̃ positive, is not built. The gates always sum to 1,
           as in its section 3.2.3.
        2. PyTorch, Keras and Flax have none.
    """
    _checks.params_record("min_lstm_step", params, MinLSTMParams)
    config = MinLSTMConfig(max(1, _checks.columns("min_lstm_step", params, "w_x") // 3))
    return step_of("min_lstm_step", config, RULE, params, state, x)


def min_lstm(
    hidden_size: int,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """A minimal LSTM: a cell whose equations are those of :func:`min_lstm_step`.

    It has 3H(I + 1) parameters. Its step is affine in the state, so that
    `unroll(..., implementation="associative")` runs all steps in parallel.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        kernel_init: draws each block `(I, H)` of `w_x`.
        bias_init: draws `b`, whose blocks are i, f and n.

    Returns:
        A :class:`Cell` with :class:`MinLSTMParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.min_lstm(256).init(jax.random.key(0), 28).w_x.shape
        (28, 768)
    """
    size = _checks.size("min_lstm", "hidden_size", hidden_size)
    config = MinLSTMConfig(size, _checks.boolean("min_lstm", "use_bias", use_bias))
    return make_cell(config, min_lstm_step, RULE, Initializers(kernel_init, initializers.orthogonal(), bias_init))
