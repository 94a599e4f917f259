"""The gated recurrent unit (Cho et al. 2014), in its two forms.

    r = σ(x W_xr + h_{t-1} W_hr + b_r)    z = σ(x W_xz + h_{t-1} W_hz + b_z)
    reset-after:   q = h_{t-1} W_hn + b_hn      n = tanh(x W_xn + b_n + r ⊙ q)
    reset-before:                               n = tanh(x W_xn + b_n + (r ⊙ h_{t-1}) W_hn)
    h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}

Backward, with δv for ∂L/∂v and δh the cotangent of h_t from the output and from step
t+1 together:

    δa_z = δh ⊙ (h_{t-1} - n) ⊙ z(1-z)      δa_n = δh ⊙ (1-z) ⊙ (1-n²)

    reset-after:
        δa_r = δa_n ⊙ q ⊙ r(1-r)            δq = δa_n ⊙ r
        δh_{t-1} = δh ⊙ z + [δa_r, δa_z, δq] W_hᵀ
        δW_h = Σ h_{t-1}ᵀ [δa_r, δa_z, δq]  δb_hn = Σ δq

    reset-before, with s = r ⊙ h_{t-1}:
        δs = δa_n W_hnᵀ                     δa_r = δs ⊙ h_{t-1} ⊙ r(1-r)
        δh_{t-1} = δh ⊙ z + δs ⊙ r + [δa_r, δa_z] W_h[r,z]ᵀ
        δW_h[r,z] = Σ h_{t-1}ᵀ [δa_r, δa_z]  δW_hn = Σ sᵀ δa_n

    δW_x = Σ x_tᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ    with δa = [δa_r, δa_z, δa_n]
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

GATES = ("r", "z", "n")


class GRUParams(NamedTuple):
    """Parameters of :func:`gru`; gates side by side in the order r z n, what is absent is `None`."""

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "H GH"]
    b: Float[Array, "GH"] | None = None
    b_hn: Float[Array, "H"] | None = None  # the bias inside r ⊙ (h W_hn + b_hn); reset-after alone


def _project(params: GRUParams, xs: Float[Array, "*B I"]) -> tuple[Array, ...]:
    return tuple(alg.split(alg.add_bias(alg.dot(xs, params.w_x), params.b), 3))


def _forward_after(params: GRUParams, h: Float[Array, "*B H"], zs: tuple[Array, ...]):
    z_r, z_z, z_n = zs
    a_r, a_z, a_n = alg.split(alg.dot(h, params.w_h), 3)  # (*B, H) each
    r = jax.nn.sigmoid(z_r + a_r)
    z = jax.nn.sigmoid(z_z + a_z)
    q = alg.add_bias(a_n, params.b_hn)
    n = jnp.tanh(z_n + r * q)
    h = (1 - z) * n + z * h
    return h, h, (r, z, n, q)


def _backward_after(params: GRUParams, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    r, z, n, q = tape.residual
    dh = dh + dy
    da_z = dh * (tape.before - n) * alg.sigmoid_slope(z)
    da_n = dh * (1 - z) * alg.tanh_slope(n)
    da_r = da_n * q * alg.sigmoid_slope(r)
    recurrent = jnp.concatenate([da_r, da_z, da_n * r], axis=-1)  # (*B, 3H), the last block δq
    return dh * z + alg.dot_transposed(recurrent, params.w_h), (recurrent, da_n)


def _accumulate_after(params: GRUParams, xs: Float[Array, "T *B I"], tape: Tape, deltas: tuple[Array, Array]):
    recurrent, da_n = deltas
    hidden = da_n.shape[-1]
    da = jnp.concatenate([recurrent[..., : 2 * hidden], da_n], axis=-1)  # (T, *B, 3H)
    dparams = GRUParams(
        w_x=alg.outer(xs, da, params.w_x.dtype),
        w_h=alg.outer(tape.before, recurrent, params.w_h.dtype),
        b=None if params.b is None else alg.total(da),
        b_hn=None if params.b_hn is None else alg.total(recurrent[..., 2 * hidden :]),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


def _recurrent_blocks(params: GRUParams) -> tuple[Array, Array]:
    """W_h[r,z] (H, 2H) and W_hn (H, H), which meet different inputs in the reset-before form."""
    hidden = params.w_h.shape[0]
    return params.w_h[:, : 2 * hidden], params.w_h[:, 2 * hidden :]


def _forward_before(params: GRUParams, h: Float[Array, "*B H"], zs: tuple[Array, ...]):
    z_r, z_z, z_n = zs
    w_rz, w_n = _recurrent_blocks(params)
    a_r, a_z = alg.split(alg.dot(h, w_rz), 2)
    r = jax.nn.sigmoid(z_r + a_r)
    z = jax.nn.sigmoid(z_z + a_z)
    n = jnp.tanh(z_n + alg.dot(r * h, w_n))
    h = (1 - z) * n + z * h
    return h, h, (r, z, n)


def _backward_before(params: GRUParams, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    r, z, n = tape.residual
    h_before = tape.before
    w_rz, w_n = _recurrent_blocks(params)
    dh = dh + dy
    da_z = dh * (h_before - n) * alg.sigmoid_slope(z)
    da_n = dh * (1 - z) * alg.tanh_slope(n)
    ds = alg.dot_transposed(da_n, w_n)
    da_r = ds * h_before * alg.sigmoid_slope(r)
    da_rz = jnp.concatenate([da_r, da_z], axis=-1)  # (*B, 2H)
    return dh * z + ds * r + alg.dot_transposed(da_rz, w_rz), (da_rz, da_n)


def _accumulate_before(params: GRUParams, xs: Float[Array, "T *B I"], tape: Tape, deltas: tuple[Array, Array]):
    da_rz, da_n = deltas
    r = tape.residual[0]
    da = jnp.concatenate([da_rz, da_n], axis=-1)  # (T, *B, 3H)
    dw_rz = alg.outer(tape.before, da_rz, params.w_h.dtype)
    dw_n = alg.outer(r * tape.before, da_n, params.w_h.dtype)
    dparams = GRUParams(
        w_x=alg.outer(xs, da, params.w_x.dtype),
        w_h=jnp.concatenate([dw_rz, dw_n], axis=-1),
        b=None if params.b is None else alg.total(da),
    )
    return dparams, alg.dot_transposed(da, params.w_x)


RESET_AFTER = Rule(_project, _forward_after, _backward_after, _accumulate_after, matrices=("w_x", "w_h"))
RESET_BEFORE = Rule(_project, _forward_before, _backward_before, _accumulate_before, matrices=("w_x", "w_h"))


def _zeros(hidden_size: int, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Float[Array, "*B H"]:
    return jnp.zeros((*batch_shape, hidden_size), jnp.result_type(float) if dtype is None else dtype)


def _check(hidden_size: int | None, reset_after: bool, where: str, params: Any, input_shape: tuple[int, ...]) -> None:
    _checks.params_record(where, params, GRUParams)
    h = _checks.rows(where, params, "w_h") if hidden_size is None else hidden_size
    _checks.input_features(where, input_shape, params.w_x)
    if params.b_hn is not None and not reset_after:
        raise ValueError(
            f"{where}: params.b_hn expected None with reset_after=False, got an array; are they a reset-after GRU's?"
        )
    shapes = {"w_x": (input_shape[-1], 3 * h), "w_h": (h, 3 * h), "b": (3 * h,), "b_hn": (h,)}
    _checks.params_shapes(where, params, {k: v for k, v in shapes.items() if getattr(params, k) is not None})


def gru_step(
    params: GRUParams, state: Float[AnyArray, "*B H"], x: Float[AnyArray, "*B I"], reset_after: bool = True
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a gated recurrent unit.

    r, z = σ(x W_x + h_{t-1} W_h + b)
    n = tanh(x W_xn + b_n + r ⊙ (h_{t-1} W_hn + b_hn))    reset-after
    n = tanh(x W_xn + b_n + (r ⊙ h_{t-1}) W_hn)           reset-before
    h_t = (1 - z) ⊙ n + z ⊙ h_{t-1},  y_t = h_t

    Args:
        params: `w_x (I, 3H)`, `w_h (H, 3H)`, `b (3H,)` or `None`, gates in the order r z n;
            reset-after also `b_hn (H,)` or `None`.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        reset_after: whether r multiplies the candidate's recurrent product, or h before it.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype or shape, or a `b_hn` with
            `reset_after=False`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(3, reset_after=False)
        >>> params = cell.init(jax.random.key(0), 2)
        >>> h, y = jaxrnn.gru_step(params, jnp.zeros(3), jnp.ones(2), reset_after=False)
        >>> h.shape
        (3,)

    References:
        Cho et al. 2014, arXiv:1406.1078, equations 5 to 8 (reset-before); the reset-after
        form is cuDNN's (Appleyard et al. 2016, arXiv:1604.01946).

    Differs from:
        1. Cho et al. 2014 v3, PyTorch and cuDNN keep the old state where z is 1, as here;
           Chung et al. 2014 and Haiku where it is 0.
        2. PyTorch: the biases of r and z are one; b_n and `b_hn` stay two. Only reset-after there.
        3. Keras: gates in the order z r h.
        4. Flax: its GRUCell has no place for b_hr and b_hz, which are folded into b here.
    """
    reset_after = _checks.boolean("gru_step", "reset_after", reset_after)
    x = _checks.floating("gru_step", "x", x)
    _check(None, reset_after, "gru_step", params, x.shape)
    zeros = functools.partial(_zeros, params.w_h.shape[0])
    return checked_step("gru_step", RESET_AFTER if reset_after else RESET_BEFORE, zeros, params, state, x)


def gru(
    hidden_size: int,
    *,
    use_bias: bool = True,
    reset_after: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer = initializers.gate_bias(),
) -> Cell:
    """A gated recurrent unit: a cell whose equations are those of :func:`gru_step`.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there are `b` and, reset-after, `b_hn`.
        reset_after: PyTorch's and cuDNN's form, one recurrent product a step; `False` is
            Cho's, two products one after the other.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H, H)` of `w_h`.
        bias_init: draws `b`, and `b_hn` as its gate n. `initializers.chrono(T)` spreads
            the memories over 1 to T steps.

    Returns:
        A :class:`Cell` with :class:`GRUParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.gru(256).init(jax.random.key(0), 28).b_hn.shape
        (256,)
    """
    hidden_size = _checks.positive_int("gru", "hidden_size", hidden_size)
    use_bias = _checks.boolean("gru", "use_bias", use_bias)
    reset_after = _checks.boolean("gru", "reset_after", reset_after)

    def init(key: Array, input_size: int, dtype: Any = None) -> GRUParams:
        input_size = _checks.positive_int("gru.init", "input_size", input_size)
        dtype = jnp.result_type(float) if dtype is None else dtype
        key_x, key_h, key_b, key_bhn = jax.random.split(key, 4)
        return GRUParams(
            w_x=initializers.draw_gates(kernel_init, key_x, len(GATES), (input_size, hidden_size), dtype),
            w_h=initializers.draw_gates(recurrent_init, key_h, len(GATES), (hidden_size, hidden_size), dtype),
            b=bias_init(key_b, GATES, hidden_size, dtype) if use_bias else None,
            b_hn=bias_init(key_bhn, GATES, hidden_size, dtype)[2 * hidden_size :] if use_bias and reset_after else None,
        )

    return Cell(
        init=init,
        initial_state=functools.partial(_zeros, hidden_size),
        step=functools.partial(gru_step, reset_after=reset_after),
        rule=RESET_AFTER if reset_after else RESET_BEFORE,
        check=functools.partial(_check, hidden_size, reset_after),
        name=f"gru({hidden_size})",
    )
