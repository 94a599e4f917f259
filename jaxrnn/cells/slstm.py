"""The LSTM with scalar memory, exponential gates and a normaliser, sLSTM (Beck et al. 2024).

With ã = x_t W_x + h_{t-1} W_h + b split into the gates i f z o. With heads W_h is block-diagonal.

    log f' = log σ(ã_f), or ã_f             z = tanh(ã_z)             o = σ(ã_o)
    m_t = max(ã_i, m_{t-1} + log f')        i = exp(ã_i - m_t)        f = exp(log f' + m_{t-1} - m_t)
    c_t = f ⊙ c_{t-1} + i ⊙ z               n_t = f ⊙ n_{t-1} + i     h_t = o ⊙ c_t / n_t

Where n_{t-1} = 0 the memory is empty: m_t = ã_i and f = 0, whatever c_{t-1} and m_{t-1} are. That is the
first step, and the step after a reset. m keeps i and f at most 1, and n at least 1.

c and n are in units of exp(m): C = c exp(m) and N = n exp(m) are those of the form without m, and h is
the same for every choice of m. So no derivative needs to go through the maximum, and none does. m_t is a
constant to the gradient, and so are the units of c_t and n_t.

Backward, with δv for ∂L/∂v, δh_t, δc_t and δn_t the cotangents from the output and from step t+1 together,
and r = c_t / n_t:

    δa_o = δh_t ⊙ r ⊙ o(1-o)                δc_t ← δc_t + δh_t ⊙ o / n_t        δn_t ← δn_t - δh_t ⊙ o ⊙ r / n_t
    δa_i = i ⊙ (δc_t ⊙ z + δn_t)            δa_z = δc_t ⊙ i ⊙ (1-z²)
    δm_{t-1} = f ⊙ (δc_t ⊙ c_{t-1} + δn_t ⊙ n_{t-1})                            δa_f = δm_{t-1} ⊙ σ(-ã_f), or δm_{t-1}
    δc_{t-1} = δc_t ⊙ f                     δn_{t-1} = δn_t ⊙ f                 δh_{t-1} = δa W_hᵀ

    δW_x = Σ x_tᵀ δa_t     δW_h = Σ h_{t-1}ᵀ δa_t     δb = Σ δa_t     δx_t = δa_t W_xᵀ

δm_{t-1} reaches an initial or a reset state. A step drops it, because its own m_t is a constant.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._family import FamilyConfig, checked_heads, dims, make_cell, recurrent_dims, step_of
from jaxrnn.cells._step import zeros_state
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("i", "f", "z", "o")
FORGET_GATES = ("sigmoid", "exponential")


class SLSTMParams(NamedTuple):
    """Parameters of :func:`slstm`; gates side by side in the order i f z o.

    With N heads `w_h` is `(N, D, GD)`, D = H/N, the gates of a head side by side.
    """

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "H GH"] | Float[Array, "N D GD"]
    b: Float[Array, "GH"] | None = None


class SLSTMState(NamedTuple):
    """The output h; the memory c and the normaliser n in units of exp(m); the stabiliser m."""

    h: Float[Array, "*B H"]
    c: Float[Array, "*B H"]
    n: Float[Array, "*B H"]
    m: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True, repr=False)
class SLSTMConfig(FamilyConfig):
    """The options of :func:`slstm`."""

    factory: ClassVar[str] = "slstm"
    gates: ClassVar = GATES
    in_one_unit: ClassVar = ("c", "n", "m")
    forget_gate: str = "sigmoid"
    use_bias: bool = True
    num_heads: int = 1

    def shapes(self, input_size: int) -> SLSTMParams:
        h, w_h = self.hidden_size, recurrent_dims(self.hidden_size, 4, self.num_heads)
        return SLSTMParams(dims(input_size, 4 * h), w_h, dims(4 * h) if self.use_bias else None)

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> SLSTMState:
        return SLSTMState(*(zeros_state(self.hidden_size, batch_shape, dtype) for _ in SLSTMState._fields))


class _Gates(NamedTuple):
    """The gates of a step."""

    i: Array
    f: Array
    z: Array
    o: Array
    slope: Array | None  # of log f' in ã_f; `None` is 1


def _project(params: SLSTMParams, xs: Float[Array, "*B I"]) -> tuple[Array, ...]:
    return tuple(alg.split(alg.add(alg.dot(xs, params.w_x), params.b), 4))


def _forward(forget_gate: str, params: SLSTMParams, state: SLSTMState, zs: tuple[Array, ...]):
    products = alg.split(alg.dot(state.h, params.w_h), 4)
    a_i, a_f, a_z, a_o = (z + a for z, a in zip(zs, products, strict=True))  # (*B, H) each
    if forget_gate == "exponential":
        log_f, slope = a_f, None
    else:
        log_f, slope = jax.nn.log_sigmoid(a_f), jax.nn.sigmoid(-a_f)
    kept, is_empty = log_f + state.m, state.n == 0
    m = jax.lax.stop_gradient(jnp.where(is_empty, a_i, jnp.maximum(a_i, kept)))
    i = jnp.exp(a_i - m)
    f = jnp.exp(jnp.where(is_empty, -jnp.inf, kept - m))  # selected before exp, whose slope could be infinite
    z, o = jnp.tanh(a_z), jax.nn.sigmoid(a_o)
    c, n = _memory(state, i, f, z)
    h = o * (c / n)
    return SLSTMState(h, c, n, m), h, _Gates(i, f, z, o, slope)


def _memory(before: SLSTMState, i: Array, f: Array, z: Array) -> tuple[Array, Array]:
    """c_t and n_t."""
    return f * before.c + i * z, f * before.n + i


def _backward(params: SLSTMParams, tape: Tape, dstate: SLSTMState, dy: Float[Array, "*B H"]):
    i, f, z, o, slope = tape.residual
    c, n = _memory(tape.before, i, f, z)  # those of `tape.after` are the held ones at a masked step, where n may be 0
    read = c / n
    dh = dstate.h + dy
    dread = dh * o / n
    dc, dn = dstate.c + dread, dstate.n - dread * read
    dm_before = f * (dc * tape.before.c + dn * tape.before.n)
    da_f = dm_before if slope is None else dm_before * slope
    das = (i * (dc * z + dn), da_f, dc * i * alg.tanh_slope(z), dh * read * alg.sigmoid_slope(o))
    da = jnp.concatenate(das, axis=-1)  # (*B, 4H)
    return SLSTMState(alg.dot_transposed(da, params.w_h), dc * f, dn * f, dm_before), da


def _accumulate(params: SLSTMParams, xs: Float[Array, "T *B I"], tape: Tape, da: Float[Array, "T *B GH"]):
    dparams = SLSTMParams(
        w_x=alg.outer(xs, da, params.w_x),
        w_h=alg.outer(tape.before.h, da, params.w_h),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


RULES = {
    forget_gate: Rule(
        project=_project,
        forward=Bound(_forward, forget_gate),
        backward=_backward,
        accumulate=_accumulate,
        matrices=("w_x", "w_h"),
        prepare=Bound(alg.transpose, ("w_h",)),
    )
    for forget_gate in FORGET_GATES
}


def slstm_step(
    params: SLSTMParams, state: SLSTMState, x: Float[AnyArray, "*B I"], forget_gate: str = "sigmoid"
) -> tuple[SLSTMState, Float[Array, "*B H"]]:
    """One step of an LSTM with scalar memory, exponential gates and a normaliser.

    m_t = max(ã_i, m_{t-1} + log f')        log f' = log σ(ã_f), or ã_f
    i = exp(ã_i - m_t),  f = exp(log f' + m_{t-1} - m_t)
    c_t = f ⊙ c_{t-1} + i ⊙ tanh(ã_z),  n_t = f ⊙ n_{t-1} + i,  h_t = σ(ã_o) ⊙ c_t / n_t
    with ã = x W_x + h_{t-1} W_h + b

    Where n_{t-1} = 0, as in the initial state, m_t = ã_i and f = 0. From states that the cell
    made, n_t is at least 1 and |h_t| is at most 1, however large ã is.

    Gradients are those at a constant m_t. They are exact for functions of h, and of states that
    a later step reads, because h does not depend on the choice of m. Of a loss that reads c, n or
    m itself, the part that goes through m_t is missing: read c / n, in which m cancels. Where
    n_{t-1} = 0 the derivatives by c_{t-1}, n_{t-1} and m_{t-1} are 0.

    Args:
        params: `w_x (I, 4H)`, `w_h (H, 4H)`, `b (4H,)` or `None`, gates in the order i f z o.
            With N heads `w_h` is `(N, D, 4D)`, D = H/N.
        state: `SLSTMState(h, c, n, m)`, `(*B, H)` each, n not negative; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        forget_gate: "sigmoid" or "exponential", the f' whose logarithm is added to m.

    Returns:
        The state after the step and the output h_t, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape, or an unknown `forget_gate`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.slstm(4, num_heads=2)
        >>> params = cell.init(jax.random.key(0), 2)
        >>> state, y = jaxrnn.slstm_step(params, cell.initial_state(), jnp.ones(2))
        >>> state.n
        Array([1., 1., 1., 1.], dtype=float32)

    References:
        Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter & Hochreiter 2024,
        arXiv:2405.04517, section 2.2 and appendix A. m is its stabiliser state, i and f its i' and f'.

    Differs from:
        1. The authors' code keeps h, c, n and m in one array; here they are read by name.
        2. PyTorch, Keras and Flax have none.
    """
    where = "slstm_step"
    _checks.one_of(where, "forget_gate", forget_gate, FORGET_GATES)
    _checks.params_record(where, params, SLSTMParams)
    hidden, heads = _checks.units(where, params, "w_h")
    return step_of(where, SLSTMConfig(hidden, forget_gate, num_heads=heads), RULES[forget_gate], params, state, x)


def slstm(
    hidden_size: int,
    *,
    num_heads: int = 1,
    forget_gate: str = "sigmoid",
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = jax.nn.initializers.zeros,
    bias_init: BiasInitializer | Initializer | None = None,
) -> Cell:
    """An LSTM with scalar memory, exponential gates and a normaliser: the equations are those of :func:`slstm_step`.

    It has 4H(I + H/N + 1) parameters. The paper's block around it (normalisation, a gated
    MLP, a residual connection) is composed in the README, under "Residual blocks".

    Args:
        hidden_size: H, the number of units.
        num_heads: N, which divides H. The recurrent matrix is block-diagonal: `w_h (N, D, 4D)`, D = H/N,
            with the gates of a head side by side. A unit reads the units of its own head alone.
        forget_gate: "sigmoid", or "exponential". The paper allows both, and its authors' code has "sigmoid".
        use_bias: whether there is a `b`.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H, H)` of `w_h`, with heads `(D, D)`; zeros, as the authors' code.
        bias_init: draws `b`. By default it is `initializers.powerlaw_forget(num_heads)`, as in the authors'
            code: the forget gates of a head start from 5 to -7.

    Returns:
        A :class:`Cell` with :class:`SLSTMParams`, whose state is an :class:`SLSTMState`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, heads that do not divide it, or an
            unknown `forget_gate`.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.slstm(256, num_heads=4).init(jax.random.key(0), 28).w_h.shape
        (4, 64, 256)
    """
    hidden_size = _checks.size("slstm", "hidden_size", hidden_size)
    num_heads = checked_heads("slstm", num_heads, hidden_size)
    _checks.one_of("slstm", "forget_gate", forget_gate, FORGET_GATES)
    config = SLSTMConfig(hidden_size, forget_gate, _checks.boolean("slstm", "use_bias", use_bias), num_heads)
    bias_init = initializers.powerlaw_forget(num_heads) if bias_init is None else bias_init
    step = Bound(slstm_step, forget_gate=forget_gate)
    return make_cell(config, step, RULES[forget_gate], Initializers(kernel_init, recurrent_init, bias_init))
