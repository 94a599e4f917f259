"""The gated recurrent unit (Cho et al. 2014), in its two forms.

    r = σ(x W_xr + h_{t-1} W_hr + b_r)    z = σ(x W_xz + h_{t-1} W_hz + b_z)
    reset-after:   q = h_{t-1} W_hn + b_hn      n = φ(x W_xn + b_n + r ⊙ q)
    reset-before:                               n = φ(x W_xn + b_n + (r ⊙ h_{t-1}) W_hn)
    h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}

σ is the sigmoid and φ is tanh, or the activations that the options name.
Layer normalisation: x_t W_x and each recurrent product (one reset-after, two reset-before)
are normalised over all their entries and scaled; their cotangents go back through that. With
heads W_h is block-diagonal, and a product is normalised over the entries of each head.

Backward, with δv for ∂L/∂v and δh the cotangent of h_t from the output and from step
t+1 together:

    δa_z = δh ⊙ (h_{t-1} - n) ⊙ σ'_z        δa_n = δh ⊙ (1-z) ⊙ φ'_n     σ'_z = z(1-z), φ'_n = 1-n²

    reset-after:
        δa_r = δa_n ⊙ q ⊙ σ'_r              δq = δa_n ⊙ r
        δh_{t-1} = δh ⊙ z + [δa_r, δa_z, δq] W_hᵀ
        δW_h = Σ h_{t-1}ᵀ [δa_r, δa_z, δq]  δb_hn = Σ δq

    reset-before, with s = r ⊙ h_{t-1}:
        δs = δa_n W_hnᵀ                     δa_r = δs ⊙ h_{t-1} ⊙ σ'_r
        δh_{t-1} = δh ⊙ z + δs ⊙ r + [δa_r, δa_z] W_h[r,z]ᵀ
        δW_h[r,z] = Σ h_{t-1}ᵀ [δa_r, δa_z]  δW_hn = Σ sᵀ δa_n

    δW_x = Σ x_tᵀ δa_t    δb = Σ δa_t    δx_t = δa_t W_xᵀ    with δa = [δa_r, δa_z, δa_n]
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._types import AnyArray, Cell, Pointwise, Rule, Tape
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells import _layer_norm as ln
from jaxrnn.cells._activation import AnyActivation, GatePhis, checked_activations, gate_phis
from jaxrnn.cells._family import FamilyConfig, checked_heads, dims, make_cell, recurrent_dims, step_of
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("r", "z", "n")


class GRUNorm(NamedTuple):
    """Layer normalisation of a GRU, by head: scales of x W_x and of the recurrent products."""

    scale_x: Float[Array, "GH"]
    scale_h: Float[Array, "GH"]


class GRUParams(NamedTuple):
    """Parameters of :func:`gru`; gates side by side in the order r z n, what is absent is `None`.

    With N heads `w_h` is `(N, D, GD)`, D = H/N, the gates of a head side by side.
    """

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "H GH"] | Float[Array, "N D GD"]
    b: Float[Array, "GH"] | None = None
    b_hn: Float[Array, "H"] | None = None  # the bias inside r ⊙ (h W_hn + b_hn); reset-after alone
    norm: GRUNorm | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class GRUConfig(FamilyConfig):
    """The options of :func:`gru`."""

    factory: ClassVar[str] = "gru"
    gates: ClassVar = GATES
    use_bias: bool = True
    reset_after: bool = True
    layer_norm: bool = False
    num_heads: int = 1
    activation: AnyActivation = "tanh"
    recurrent_activation: AnyActivation = "sigmoid"

    def shapes(self, input_size: int) -> GRUParams:
        h, stacked = self.hidden_size, dims(3 * self.hidden_size)
        return GRUParams(
            w_x=dims(input_size, 3 * h),
            w_h=recurrent_dims(h, 3, self.num_heads),
            b=stacked if self.use_bias else None,
            b_hn=dims(h) if self.use_bias and self.reset_after else None,
            norm=GRUNorm(stacked, stacked) if self.layer_norm else None,
        )


def _scale_x(params: GRUParams) -> Array | None:
    return None if params.norm is None else params.norm.scale_x


def _scale_h(params: GRUParams) -> Array | None:
    return None if params.norm is None else params.norm.scale_h


def _project(params: GRUParams, xs: Float[Array, "*B I"]) -> tuple[Array, ...]:
    a, _ = ln.product(xs, params.w_x, _scale_x(params), 3, alg.heads(params.w_h))
    return tuple(alg.split(alg.add(a, params.b), 3))


def _accumulate_input(params: GRUParams, xs: Float[Array, "T *B I"], da: Float[Array, "T *B GH"]) -> tuple[Any, ...]:
    """δW_x, δb, δscale_x and δx from δa, in both forms."""
    db = None if params.b is None else alg.total(da)
    if params.norm is None:
        return alg.outer(xs, da, params.w_x), db, None, alg.dot_transposed(da, params.w_x)
    _, product = ln.product(xs, params.w_x, params.norm.scale_x, 3, alg.heads(params.w_h))
    dproduct = ln.product_backward(da, params.norm.scale_x, product, 3)
    dscale = alg.total(da * product.value)
    return alg.outer(xs, dproduct, params.w_x), db, dscale, alg.dot_transposed(dproduct, params.w_x)


class _Gates(NamedTuple):
    """The gates of a step, and what their backward pass needs besides."""

    r: Array
    z: Array
    n: Array
    inner: Any  # reset-after: q, and the normalised h W_h or None; reset-before: the normalised products
    kept: tuple[Any, ...]  # of the slopes of r z n


def _forward_after(phis: GatePhis, params: GRUParams, h: Float[Array, "*B H"], zs: tuple[Array, ...]):
    a, product = ln.product(h, params.w_h, _scale_h(params), 3, alg.heads(params.w_h))
    h, gates = _pointwise_forward(phis, params, h, zs, tuple(alg.split(a, 3)))
    return h, h, gates._replace(inner=(gates.inner[0], product))


def _pointwise_forward(
    phis: GatePhis, params: GRUParams, h: Float[Array, "*B H"], zs: tuple[Array, ...], products: tuple[Array, ...]
):
    """From the gates' shares of x W_x + b and h W_h."""
    (z_r, z_z, z_n), (a_r, a_z, a_n) = zs, products  # (*B, H) each
    r, kept_r = phis.gate(z_r + a_r)
    z, kept_z = phis.gate(z_z + a_z)
    q = alg.add(a_n, params.b_hn)
    n, kept_n = phis.unit(z_n + r * q)
    return (1 - z) * n + z * h, _Gates(r, z, n, (q, None), (kept_r, kept_z, kept_n))


def _backward_after(phis: GatePhis, params: GRUParams, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    dpast, dproducts, extra = _pointwise_backward(phis, params, tape, dh + dy)
    recurrent = jnp.concatenate(dproducts, axis=-1)  # (*B, 3H)
    _, product = tape.residual.inner
    dproduct = ln.product_backward(recurrent, _scale_h(params), product, 3)
    return dpast + alg.dot_transposed(dproduct, params.w_h), (recurrent, *extra)


def _pointwise_backward(phis: GatePhis, params: GRUParams, tape: Tape, dh: Float[Array, "*B H"]):
    """The cotangent of h_{t-1} beside the product, [δa_r, δa_z, δq], and δa_n."""
    r, z, n, (q, _), (kept_r, kept_z, kept_n) = tape.residual
    da_z = phis.gate.pull_back(z, kept_z, dh * (tape.before - n))
    da_n = phis.unit.pull_back(n, kept_n, dh * (1 - z))
    da_r = phis.gate.pull_back(r, kept_r, da_n * q)
    return dh * z, (da_r, da_z, da_n * r), (da_n,)


def _accumulate_after(params: GRUParams, xs: Float[Array, "T *B I"], tape: Tape, deltas: tuple[Array, Array]):
    recurrent, da_n = deltas
    _, product = tape.residual.inner
    da_r, da_z, dq = alg.split(recurrent, 3)
    dw_x, db, dscale_x, dxs = _accumulate_input(params, xs, jnp.concatenate([da_r, da_z, da_n], axis=-1))
    dproduct = ln.product_backward(recurrent, _scale_h(params), product, 3)
    dparams = GRUParams(
        w_x=dw_x,
        w_h=alg.outer(tape.before, dproduct, params.w_h),
        b=db,
        b_hn=None if params.b_hn is None else alg.total(dq),
        norm=None if params.norm is None else GRUNorm(dscale_x, alg.total(recurrent * product.value)),
    )
    return dparams, dxs


def _recurrent_blocks(params: GRUParams):
    """W_h[r,z] (H, 2H) and W_hn (H, H), which meet different inputs in the reset-before form, and their scales."""
    hidden = params.w_x.shape[1] // 3
    scale = _scale_h(params)
    s_rz, s_n = (None, None) if scale is None else (scale[: 2 * hidden], scale[2 * hidden :])
    return alg.columns(params.w_h, 0, 2 * hidden), s_rz, alg.columns(params.w_h, 2 * hidden, 3 * hidden), s_n


def _forward_before(phis: GatePhis, params: GRUParams, h: Float[Array, "*B H"], zs: tuple[Array, ...]):
    z_r, z_z, z_n = zs
    w_rz, s_rz, w_n, s_n = _recurrent_blocks(params)
    heads = alg.heads(params.w_h)
    a_rz, product_rz = ln.product(h, w_rz, s_rz, 2, heads)
    a_r, a_z = alg.split(a_rz, 2)
    r, kept_r = phis.gate(z_r + a_r)
    z, kept_z = phis.gate(z_z + a_z)
    a_n, product_n = ln.product(r * h, w_n, s_n, 1, heads)
    n, kept_n = phis.unit(z_n + a_n)
    h = (1 - z) * n + z * h
    return h, h, _Gates(r, z, n, (product_rz, product_n), (kept_r, kept_z, kept_n))


def _backward_before(phis: GatePhis, params: GRUParams, tape: Tape, dh: Float[Array, "*B H"], dy: Float[Array, "*B H"]):
    r, z, n, (product_rz, product_n), (kept_r, kept_z, kept_n) = tape.residual
    h_before = tape.before
    w_rz, s_rz, w_n, s_n = _recurrent_blocks(params)
    dh = dh + dy
    da_z = phis.gate.pull_back(z, kept_z, dh * (h_before - n))
    da_n = phis.unit.pull_back(n, kept_n, dh * (1 - z))
    ds = alg.dot_transposed(ln.product_backward(da_n, s_n, product_n), w_n)
    da_r = phis.gate.pull_back(r, kept_r, ds * h_before)
    da_rz = jnp.concatenate([da_r, da_z], axis=-1)  # (*B, 2H)
    dproduct_rz = ln.product_backward(da_rz, s_rz, product_rz, 2)
    return dh * z + ds * r + alg.dot_transposed(dproduct_rz, w_rz), (da_rz, da_n)


def _accumulate_before(params: GRUParams, xs: Float[Array, "T *B I"], tape: Tape, deltas: tuple[Array, Array]):
    da_rz, da_n = deltas
    r, (product_rz, product_n) = tape.residual.r, tape.residual.inner
    w_rz, s_rz, w_n, s_n = _recurrent_blocks(params)
    dw_x, db, dscale_x, dxs = _accumulate_input(params, xs, jnp.concatenate([da_rz, da_n], axis=-1))
    dw_rz = alg.outer(tape.before, ln.product_backward(da_rz, s_rz, product_rz, 2), w_rz)
    dw_n = alg.outer(r * tape.before, ln.product_backward(da_n, s_n, product_n), w_n)
    norm = None
    if params.norm is not None:
        dscale_h = [alg.total(da_rz * product_rz.value), alg.total(da_n * product_n.value)]
        norm = GRUNorm(dscale_x, jnp.concatenate(dscale_h))
    return GRUParams(w_x=dw_x, w_h=jnp.concatenate([dw_rz, dw_n], axis=-1), b=db, norm=norm), dxs


def _delta_after(recurrent: Float[Array, "T *B GH"], extra: tuple[Array]) -> tuple[Array, Array]:
    return recurrent, *extra


def rule_for(reset_after: bool, activation: AnyActivation, recurrent_activation: AnyActivation) -> Rule:
    """The rule of a form with these activations."""
    phis = gate_phis("gru", activation, recurrent_activation)
    transpose = Bound(alg.transpose, ("w_h",))
    if not reset_after:
        forward, backward = Bound(_forward_before, phis), Bound(_backward_before, phis)
        return Rule(_project, forward, backward, _accumulate_before, ("w_x", "w_h"), transpose)
    forward, backward = Bound(_forward_after, phis), Bound(_backward_after, phis)
    pointwise = Pointwise(
        hidden=alg.identity,
        forward=Bound(_pointwise_forward, phis),
        backward=Bound(_pointwise_backward, phis),
        add_to_hidden=alg.plus,
        delta=_delta_after,
        stands_for=(forward, backward),
    )
    shared = pointwise if phis.are_named else None
    return Rule(_project, forward, backward, _accumulate_after, ("w_x", "w_h"), transpose, shared)


def gru_step(
    params: GRUParams,
    state: Float[AnyArray, "*B H"],
    x: Float[AnyArray, "*B I"],
    reset_after: bool = True,
    activation: AnyActivation = "tanh",
    recurrent_activation: AnyActivation = "sigmoid",
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """One step of a gated recurrent unit.

    r, z = σ(x W_x + h_{t-1} W_h + b)
    n = φ(x W_xn + b_n + r ⊙ (h_{t-1} W_hn + b_hn))    reset-after
    n = φ(x W_xn + b_n + (r ⊙ h_{t-1}) W_hn)           reset-before
    h_t = (1 - z) ⊙ n + z ⊙ h_{t-1},  y_t = h_t

    Args:
        params: `w_x (I, 3H)`, `w_h (H, 3H)`, `b (3H,)` or `None`, gates in the order r z n;
            reset-after also `b_hn (H,)` or `None`. `norm` holds the scales of layer
            normalisation: x W_x and each recurrent product are normalised and scaled.
            With N heads `w_h` is `(N, D, 3D)`, D = H/N.
        state: h_{t-1}, `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        reset_after: whether r multiplies the candidate's recurrent product, or h before it.
        activation: φ: a name, a :class:`jaxrnn.Activation`, or a callable, which is called with the vector `(H,)`
            of a sequence.
        recurrent_activation: σ, the activation of the gates; likewise.

    Returns:
        h_t twice: as the state and as the output, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype, shape or activation, or a `b_hn` with
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
        form is cuDNN's (Appleyard et al. 2016, arXiv:1604.01946). Layer normalisation: Ba,
        Kiros & Hinton 2016, arXiv:1607.06450, which normalises r and z apart from n.

    Differs from:
        1. Cho et al. 2014 v3, PyTorch and cuDNN keep the old state where z is 1, as here;
           Chung et al. 2014 and Haiku where it is 0.
        2. PyTorch: the biases of r and z are one; b_n and `b_hn` stay two. Only reset-after there.
        3. Keras: gates in the order z r h.
        4. Flax: its GRUCell has no place for b_hr and b_hz, which are folded into b here.
    """
    reset_after = _checks.boolean("gru_step", "reset_after", reset_after)
    activations = checked_activations("gru_step", activation, recurrent_activation)
    _checks.params_record("gru_step", params, GRUParams)
    hidden, heads = _checks.units("gru_step", params, "w_h")
    config = GRUConfig(hidden, reset_after=reset_after, layer_norm=True, num_heads=heads)
    return step_of("gru_step", config, rule_for(reset_after, **activations), params, state, x)


def gru(
    hidden_size: int,
    *,
    use_bias: bool = True,
    reset_after: bool = True,
    layer_norm: bool = False,
    num_heads: int = 1,
    activation: AnyActivation = "tanh",
    recurrent_activation: AnyActivation = "sigmoid",
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(),
) -> Cell:
    """A gated recurrent unit: a cell whose equations are those of :func:`gru_step`.

    It has 3H(I + H/N + 1) parameters, and H more with `b_hn`. PyTorch's has 2H more than that,
    its second biases of r and z.

    Args:
        hidden_size: H, the number of units.
        use_bias: whether there are `b` and, reset-after, `b_hn`.
        reset_after: PyTorch's and cuDNN's form, one recurrent product a step; `False` is
            Cho's, two products one after the other.
        layer_norm: whether x W_x and the recurrent products are normalised, by head. Scales start at 1.
        num_heads: N, which divides H. The recurrent matrix is block-diagonal: `w_h (N, D, 3D)`, D = H/N,
            with the gates of a head side by side. A unit reads the units of its own head alone.
        activation: φ, the activation of the candidate n: a name or a :class:`jaxrnn.Activation`; or a callable,
            which is called with the vector `(H,)` of a sequence and may mix units.
        recurrent_activation: σ, the activation of the gates; likewise.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H, H)` of `w_h`, with heads `(D, D)`.
        bias_init: draws `b`, and `b_hn` as its gate n. `initializers.chrono(T)` spreads
            the memories over 1 to T steps.

    Returns:
        A :class:`Cell` with :class:`GRUParams`, whose state is an array `(*B, H)`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, heads that do not divide it, or an
            unknown activation.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.gru(256, num_heads=8).init(jax.random.key(0), 28).w_h.shape
        (8, 32, 96)
        >>> jaxrnn.gru(256).init(jax.random.key(0), 28).b_hn.shape
        (256,)
    """
    hidden_size = _checks.size("gru", "hidden_size", hidden_size)
    activations = checked_activations("gru", activation, recurrent_activation)
    config = GRUConfig(
        hidden_size,
        _checks.boolean("gru", "use_bias", use_bias),
        _checks.boolean("gru", "reset_after", reset_after),
        _checks.boolean("gru", "layer_norm", layer_norm),
        checked_heads("gru", num_heads, hidden_size),
        **activations,
    )
    step = Bound(gru_step, reset_after=config.reset_after, **activations)
    rule = rule_for(config.reset_after, **activations)
    return make_cell(config, step, rule, Initializers(kernel_init, recurrent_init, bias_init))
