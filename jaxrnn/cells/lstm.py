"""Long short-term memory (Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000).

With a = x_t W_x + h_{t-1} W_h + b split into the gates i f g o:

    i = σ(a_i)   f = σ(a_f)   g = tanh(a_g)   o = σ(a_o)
    c_t = f ⊙ c_{t-1} + i ⊙ g
    h_t = o ⊙ tanh(c_t)

Backward, with δv for ∂L/∂v and δh_t, δc_t the cotangents from the output and from step
t+1 together:

    δa_o = δh_t ⊙ tanh(c_t) ⊙ o(1-o)
    δc_t ← δc_t + δh_t ⊙ o ⊙ (1 - tanh²(c_t))
    δa_i = δc_t ⊙ g ⊙ i(1-i)
    δa_f = δc_t ⊙ c_{t-1} ⊙ f(1-f)
    δa_g = δc_t ⊙ i ⊙ (1-g²)
    δc_{t-1} = δc_t ⊙ f      δh_{t-1} = δa W_hᵀ
    δW_x = Σ x_tᵀ δa_t       δW_h = Σ h_{t-1}ᵀ δa_t      δb = Σ δa_t      δx_t = δa_t W_xᵀ
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._types import AnyArray, BiasInitializer, Cell, Initializer, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._step import checked_step

GATES = ("i", "f", "g", "o")


class LSTMParams(NamedTuple):
    """Parameters of :func:`lstm`; gates side by side in the order i f g o, what is absent is `None`."""

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "H GH"]
    b: Float[Array, "GH"] | None = None


class LSTMState(NamedTuple):
    """The hidden state h, which is the output, and the cell state c, which is the memory."""

    h: Float[Array, "*B H"]
    c: Float[Array, "*B H"]


def _project(params: LSTMParams, xs: Float[Array, "*B I"]) -> tuple[Array, ...]:
    return tuple(alg.split(alg.add_bias(alg.dot(xs, params.w_x), params.b), 4))


def _forward(params: LSTMParams, state: LSTMState, z: tuple[Array, ...]):
    z_i, z_f, z_g, z_o = z
    a_i, a_f, a_g, a_o = alg.split(alg.dot(state.h, params.w_h), 4)  # (*B, H) each
    i = jax.nn.sigmoid(z_i + a_i)
    f = jax.nn.sigmoid(z_f + a_f)
    g = jnp.tanh(z_g + a_g)
    o = jax.nn.sigmoid(z_o + a_o)
    c = f * state.c + i * g
    h = o * jnp.tanh(c)
    return LSTMState(h, c), h, (i, f, g, o)


def _backward(params: LSTMParams, tape: Tape, dstate: LSTMState, dy: Float[Array, "*B H"]):
    i, f, g, o = tape.residual
    c_before = tape.before.c
    tanh_c = jnp.tanh(tape.after.c)
    dh = dstate.h + dy
    da_o = dh * tanh_c * alg.sigmoid_slope(o)
    dc = dstate.c + dh * o * alg.tanh_slope(tanh_c)
    da_i = dc * g * alg.sigmoid_slope(i)
    da_f = dc * c_before * alg.sigmoid_slope(f)
    da_g = dc * i * alg.tanh_slope(g)
    da = jnp.concatenate([da_i, da_f, da_g, da_o], axis=-1)  # (*B, 4H)
    return LSTMState(h=alg.dot_transposed(da, params.w_h), c=dc * f), da


def _accumulate(params: LSTMParams, xs: Float[Array, "T *B I"], tape: Tape, da: Float[Array, "T *B GH"]):
    dparams = LSTMParams(
        w_x=alg.outer(xs, da, params.w_x.dtype),
        w_h=alg.outer(tape.before.h, da, params.w_h.dtype),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


RULE = Rule(_project, _forward, _backward, _accumulate, matrices=("w_x", "w_h"))


def _zeros(hidden_size: int, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> LSTMState:
    zeros = jnp.zeros((*batch_shape, hidden_size), jnp.result_type(float) if dtype is None else dtype)
    return LSTMState(h=zeros, c=zeros)


def _check(hidden_size: int | None, where: str, params: Any, input_shape: tuple[int, ...]) -> None:
    _checks.params_record(where, params, LSTMParams)
    h = _checks.rows(where, params, "w_h") if hidden_size is None else hidden_size
    _checks.input_features(where, input_shape, params.w_x)
    bias = {} if params.b is None else {"b": (4 * h,)}
    _checks.params_shapes(where, params, {"w_x": (input_shape[-1], 4 * h), "w_h": (h, 4 * h), **bias})


def lstm_step(
    params: LSTMParams, state: LSTMState, x: Float[AnyArray, "*B I"]
) -> tuple[LSTMState, Float[Array, "*B H"]]:
    """One step of a long short-term memory.

    i, f, o = σ(x W_x + h_{t-1} W_h + b)    g = tanh(x W_x + h_{t-1} W_h + b)
    c_t = f ⊙ c_{t-1} + i ⊙ g               h_t = o ⊙ tanh(c_t)

    Args:
        params: `w_x (I, 4H)`, `w_h (H, 4H)`, `b (4H,)` or `None`, gates in the order i f g o.
        state: `LSTMState(h, c)`, each `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.

    Returns:
        `LSTMState(h_t, c_t)` and the output h_t, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(3)
        >>> params = cell.init(jax.random.key(0), 2)
        >>> state, y = jaxrnn.lstm_step(params, cell.initial_state(), jnp.ones(2))
        >>> state.c.shape
        (3,)

    References:
        Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (forget gate);
        Goodfellow et al. 2016, equations 10.40 to 10.44.

    Differs from:
        1. PyTorch: one bias, where `torch.nn.LSTMCell` adds two; kernels are (in, out).
        2. Flax, Haiku: the state is read by name; Flax carries the tuple (c, h), Haiku (h, c).
        3. Keras: its third gate is called c; the order is the same.
    """
    x = _checks.floating("lstm_step", "x", x)
    _check(None, "lstm_step", params, x.shape)
    zeros = functools.partial(_zeros, params.w_h.shape[0])
    return checked_step("lstm_step", RULE, zeros, params, state, x)


def lstm(
    hidden_size: int,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer = initializers.gate_bias(f=1.0),
) -> Cell:
    """A long short-term memory: a cell whose equations are those of :func:`lstm_step`.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there is a `b`.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H, H)` of `w_h`.
        bias_init: draws `b`. By default the forget gate starts at 1 and the others at 0;
            `initializers.gate_bias(f=b)` sets another value, `initializers.chrono(T)`
            spreads the memories over 1 to T steps.

    Returns:
        A :class:`Cell` with :class:`LSTMParams`, whose state is an :class:`LSTMState`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.lstm(256, bias_init=jaxrnn.initializers.chrono(784))
        >>> cell.init(jax.random.key(0), 28).w_x.shape
        (28, 1024)
    """
    hidden_size = _checks.positive_int("lstm", "hidden_size", hidden_size)
    use_bias = _checks.boolean("lstm", "use_bias", use_bias)

    def init(key: Array, input_size: int, dtype: Any = None) -> LSTMParams:
        input_size = _checks.positive_int("lstm.init", "input_size", input_size)
        dtype = jnp.result_type(float) if dtype is None else dtype
        key_x, key_h, key_b = jax.random.split(key, 3)
        return LSTMParams(
            w_x=initializers.draw_gates(kernel_init, key_x, len(GATES), (input_size, hidden_size), dtype),
            w_h=initializers.draw_gates(recurrent_init, key_h, len(GATES), (hidden_size, hidden_size), dtype),
            b=bias_init(key_b, GATES, hidden_size, dtype) if use_bias else None,
        )

    return Cell(
        init=init,
        initial_state=functools.partial(_zeros, hidden_size),
        step=lstm_step,
        rule=RULE,
        check=functools.partial(_check, hidden_size),
        name=f"lstm({hidden_size})",
    )
