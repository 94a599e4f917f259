"""The independently recurrent network (Li et al. 2018): h_t = φ(x_t W_x + w_h ⊙ h_{t-1} + b).

A simple recurrent network whose recurrent matrix is diagonal, so that each unit remembers
by itself and layers do the mixing. The equations and their derivative are those of
rnn.py, where a vector `w_h` stands for the diagonal matrix:

    δa_t = δh_t ⊙ φ'(a_t)    δh_{t-1} = δa_t ⊙ w_h    δw_h = Σ h_{t-1} ⊙ δa_t
"""

import dataclasses
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell
from jaxrnn.cells._activation import AnyActivation, checked_activation
from jaxrnn.cells._family import FamilyConfig, dims, make_cell, step_of
from jaxrnn.cells.rnn import GATES, rule_for
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers


class IndRNNParams(NamedTuple):
    """Parameters of :func:`indrnn`; `w_h` is the diagonal of the recurrent matrix."""

    w_x: Float[Array, "I H"]
    w_h: Float[Array, "H"]
    b: Float[Array, "H"] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class IndRNNConfig(FamilyConfig):
    """The options of :func:`indrnn`."""

    factory: ClassVar[str] = "indrnn"
    gates: ClassVar = GATES
    use_bias: bool = True
    activation: AnyActivation = "relu"

    def shapes(self, input_size: int) -> IndRNNParams:
        h = self.hidden_size
        return IndRNNParams(dims(input_size, h), dims(h), dims(h) if self.use_bias else None)


def indrnn_step(
    params: IndRNNParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"], activation: AnyActivation = "relu"
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of an independently recurrent network.

    h_t = φ(x_t W_x + w_h ⊙ h_{t-1} + b),  y_t = h_t

    Args:
        params: `w_x (I, H)`, `w_h (H,)`, `b (H,)` or `None`.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        activation: φ: a name, a :class:`jaxrnn.Activation` or a callable, as in :func:`rnn`.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype, shape or activation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.indrnn(3).init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.indrnn_step(params, jnp.zeros(3), jnp.ones(2))
        >>> h.shape
        (3,)

    References:
        Li, Li, Cook, Zhu & Gao 2018, arXiv:1803.04831, equation 2.

    Differs from:
        1. PyTorch, Keras and Flax have none.
    """
    activation = checked_activation("indrnn_step", activation)
    _checks.params_record("indrnn_step", params, IndRNNParams)
    config = IndRNNConfig(_checks.columns("indrnn_step", params, "w_x"))
    return step_of("indrnn_step", config, rule_for("indrnn", activation), params, state, x)


def indrnn(
    hidden_size: int,
    *,
    use_bias: bool = True,
    activation: AnyActivation = "relu",
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.uniform(1.0),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """An independently recurrent network: a cell whose equations are those of :func:`indrnn_step`.

    It has H(I + 2) parameters. A unit's memory of t steps ago is weighed by w_h^t, so that
    |w_h| <= 2^(1/T) keeps a gradient over T steps within a factor of 2 (section 3.2 of the
    paper): clip `w_h` there after each update, with `optax.projections.projection_box`.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        activation: a name, a :class:`jaxrnn.Activation` or a callable, as in :func:`rnn`.
        kernel_init: draws `w_x`.
        recurrent_init: draws `w_h`, of shape `(H,)`; by default U(0, 1).
        bias_init: draws `b`, whose only gate is named "h".

    Returns:
        A :class:`Cell` with :class:`IndRNNParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, or an unknown activation.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.indrnn(128).init(jax.random.key(0), 28).w_h.shape
        (128,)
    """
    activation = checked_activation("indrnn", activation)
    config = IndRNNConfig(
        _checks.size("indrnn", "hidden_size", hidden_size),
        _checks.boolean("indrnn", "use_bias", use_bias),
        activation,
    )
    draw = Initializers(kernel_init, recurrent_init, bias_init)
    return make_cell(config, Bound(indrnn_step, activation=activation), rule_for("indrnn", activation), draw)
