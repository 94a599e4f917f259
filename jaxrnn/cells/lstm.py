"""Long short-term memory (Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000).

With a = x_t W_x + h_{t-1} W_h + b split into the gates i f g o; in brackets what only a
variant has:

    i = σ(a_i [+ p_i ⊙ c_{t-1}])     f = σ(a_f [+ p_f ⊙ c_{t-1}])     g = φ(a_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g        o = σ(a_o [+ p_o ⊙ c_t])
    m_t = o ⊙ φ(u_t)                 u_t = c_t [normalised, scaled and offset]
    h_t = m_t [W_p]

σ is the sigmoid and φ is tanh, or the activations that the options name.
Coupled gates: i = 1 - f, and there are three, f g o. Layer normalisation: x_t W_x and
h_{t-1} W_h are each normalised over all their G*H entries and scaled, c_t over its H. With
heads W_h is block-diagonal, and all three are normalised over the entries of each head.

Backward, with δv for ∂L/∂v and δh_t, δc_t the cotangents from the output and from step
t+1 together:

    δm   = δh_t [W_pᵀ]
    δa_o = δm ⊙ φ(u_t) ⊙ σ'_o        σ'_o = o(1-o), and likewise for i and f
    δu   = δm ⊙ o ⊙ φ'(u_t)          φ'(u_t) = 1 - tanh²(u_t), and φ'_g = 1 - g²
    δc_t ← δc_t + δu [through the normalisation] [+ δa_o ⊙ p_o]
    δa_i = δc_t ⊙ g ⊙ σ'_i           δa_f = δc_t ⊙ c_{t-1} ⊙ σ'_f           δa_g = δc_t ⊙ i ⊙ φ'_g
    coupled:                         δa_f = δc_t ⊙ (c_{t-1} - g) ⊙ σ'_f
    δc_{t-1} = δc_t ⊙ f [+ δa_i ⊙ p_i + δa_f ⊙ p_f]      δh_{t-1} = δa [through the normalisation] W_hᵀ

    δW_x = Σ x_tᵀ δa_t     δW_h = Σ h_{t-1}ᵀ δa_t     δb = Σ δa_t     δx_t = δa_t W_xᵀ
    δW_p = Σ m_tᵀ δh_t     δp_i = Σ δa_i ⊙ c_{t-1}    δp_f = Σ δa_f ⊙ c_{t-1}    δp_o = Σ δa_o ⊙ c_t
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
from jaxrnn.cells._step import zeros_state
from jaxrnn.initializers import BiasInitializer, Initializer, Initializers

GATES = ("i", "f", "g", "o")
COUPLED_GATES = ("f", "g", "o")


class LSTMNorm(NamedTuple):
    """Layer normalisation of an LSTM, by head: scales of x W_x and h W_h, scale and offset of c."""

    scale_x: Float[Array, "GH"]
    scale_h: Float[Array, "GH"]
    scale_c: Float[Array, "H"]
    offset_c: Float[Array, "H"]


class LSTMParams(NamedTuple):
    """Parameters of :func:`lstm`; gates side by side in the order i f g o, coupled f g o.

    What is absent is `None`, and its presence is the configuration. H is the rows of
    `w_h`, or of `w_proj` where there is one; coupled is known by 3H columns. With N heads
    `w_h` is `(N, D, GD)`, D = H/N, the gates of a head side by side.
    """

    w_x: Float[Array, "I GH"]
    w_h: Float[Array, "HorP GH"] | Float[Array, "N D GD"]
    b: Float[Array, "GH"] | None = None
    w_proj: Float[Array, "H P"] | None = None
    peephole: Float[Array, "gates H"] | None = None  # i f o; coupled f o
    norm: LSTMNorm | None = None


class LSTMState(NamedTuple):
    """The hidden state h, which is the output, and the cell state c, which is the memory."""

    h: Float[Array, "*B H"]  # P with a projection
    c: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True, repr=False)
class LSTMConfig(FamilyConfig):
    """The options of :func:`lstm`."""

    factory: ClassVar[str] = "lstm"
    projection_size: int | None = None
    use_bias: bool = True
    peephole: bool = False
    coupled: bool = False
    layer_norm: bool = False
    num_heads: int = 1
    activation: AnyActivation = "tanh"
    recurrent_activation: AnyActivation = "sigmoid"

    @property
    def gates(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return COUPLED_GATES if self.coupled else GATES

    def shapes(self, input_size: int) -> LSTMParams:
        p, h, gates = self.projection_size, self.hidden_size, len(self.gates)
        stacked = dims(gates * h)
        return LSTMParams(
            w_x=dims(input_size, gates * h),
            w_h=dims(p, gates * h) if p else recurrent_dims(h, gates, self.num_heads),
            b=stacked if self.use_bias else None,
            w_proj=None if p is None else dims(h, p),
            peephole=dims(gates - 1, h) if self.peephole else None,
            norm=LSTMNorm(stacked, stacked, dims(h), dims(h)) if self.layer_norm else None,
        )

    @property
    def output_features(self) -> int:
        return self.projection_size or self.hidden_size

    def initial_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> LSTMState:
        sizes = (self.output_features, self.hidden_size)
        return LSTMState(*(zeros_state(size, batch_shape, dtype) for size in sizes))


class _Gates(NamedTuple):
    """The gates of a step, the normalised h W_h where there is one, and what the slopes of i f g o need besides."""

    i: Array | None  # None: coupled, 1 - f
    f: Array
    g: Array
    o: Array
    product: Any  # Normalised, or None
    kept: tuple[Any, ...]


class _Delta(NamedTuple):
    """What the accumulation reads of a step's backward pass."""

    a: Array  # δa (*B, GH)
    h: Any  # δh, for W_p, or None
    u: Any  # δu, for the norm of c, or None


def _gates_of(params: LSTMParams) -> int:
    hidden, _ = alg.shape(params.w_h if params.w_proj is None else params.w_proj)
    return alg.shape(params.w_h)[1] // hidden


def _peepholes(params: LSTMParams) -> tuple[Array | None, Array | None, Array | None]:
    """p_i, p_f, p_o."""
    if params.peephole is None:
        return None, None, None
    return (None, *params.peephole) if params.peephole.shape[0] == 2 else tuple(params.peephole)  # type: ignore


def _peep(a: Array, p: Array | None, c: Array) -> Array:
    """a + p ⊙ c."""
    return a if p is None else a + alg.scale(c, p)


def _project(params: LSTMParams, xs: Float[Array, "*B I"]) -> tuple[Array, ...]:
    a, _ = _input_product(params, xs)
    return tuple(alg.split(alg.add(a, params.b), _gates_of(params)))


def _input_product(params: LSTMParams, xs: Float[Array, "*B I"]) -> tuple[Array, Any]:
    """x W_x, normalised if there is a norm, and what its derivative needs."""
    scale = None if params.norm is None else params.norm.scale_x
    return ln.product(xs, params.w_x, scale, _gates_of(params), alg.heads(params.w_h))


def _forward(phis: GatePhis, params: LSTMParams, state: LSTMState, z: tuple[Array, ...]):
    scale_h, heads = None if params.norm is None else params.norm.scale_h, alg.heads(params.w_h)
    a, product = ln.product(state.h, params.w_h, scale_h, len(z), heads)
    after, gates = _pointwise_forward(phis, params, state, z, tuple(alg.split(a, len(z))))
    return after, after.h, gates._replace(product=product)


def _pointwise_forward(
    phis: GatePhis, params: LSTMParams, state: LSTMState, z: tuple[Array, ...], a: tuple[Array, ...]
):
    """From the gates' shares of x W_x + b and h W_h."""
    p_i, p_f, p_o = _peepholes(params)
    *a_i, a_f, a_g, a_o = (z_k + a_k for z_k, a_k in zip(z, a, strict=True))  # (*B, H) each
    f, kept_f = phis.gate(_peep(a_f, p_f, state.c))
    i, kept_i = phis.gate(_peep(a_i[0], p_i, state.c)) if a_i else (None, None)
    g, kept_g = phis.unit(a_g)
    c = f * state.c + (1 - f if i is None else i) * g
    o, kept_o = phis.gate(_peep(a_o, p_o, c))
    gates = _Gates(i, f, g, o, None, (kept_i, kept_f, kept_g, kept_o))
    return LSTMState(hidden(phis, params, o, c), c), gates


def hidden(
    phis: GatePhis, params: LSTMParams, o: Float[Array, "*B H"], c: Float[Array, "*B H"]
) -> Float[Array, "*B HorP"]:
    """h_t, from o and c_t."""
    m = _m(phis, params, o, c)
    return m if params.w_proj is None else alg.dot(m, params.w_proj)


def _m(phis: GatePhis, params: LSTMParams, o: Array, c: Array) -> Array:
    """m_t, from o and c_t."""
    return o * phis.unit(_memory_read(params, c)[0])[0]


def _memory_read(params: LSTMParams, c: Float[Array, "*B H"]) -> tuple[Array, Any]:
    """u, which the output gate reads: c, normalised if there is a norm."""
    if params.norm is None:
        return c, None
    kept = ln.normalise(c, heads=alg.heads(params.w_h))
    return alg.add(alg.scale(kept.value, params.norm.scale_c), params.norm.offset_c), kept


def _backward(phis: GatePhis, params: LSTMParams, tape: Tape, dstate: LSTMState, dy: Float[Array, "*B H"]):
    dbefore, das, (dh, du) = _pointwise_backward(phis, params, tape, _add_to_hidden(dstate, dy))
    da = jnp.concatenate(das, axis=-1)  # (*B, GH)
    scale_h = None if params.norm is None else params.norm.scale_h
    dproduct = ln.product_backward(da, scale_h, tape.residual.product, len(das))
    return _add_to_hidden(dbefore, alg.dot_transposed(dproduct, params.w_h)), _Delta(da, dh, du)


def _add_to_hidden(dstate: LSTMState, dh: Array) -> LSTMState:
    return dstate._replace(h=alg.plus(dstate.h, dh))


def _pointwise_backward(phis: GatePhis, params: LSTMParams, tape: Tape, dstate: LSTMState):
    """δc_{t-1}, δa by gate, and what the accumulation needs of a variant."""
    i, f, g, o, _, (kept_i, kept_f, kept_g, kept_o) = tape.residual
    p_i, p_f, p_o = _peepholes(params)
    c_before = tape.before.c
    u, normalised = _memory_read(params, tape.after.c)
    m, kept_m = phis.unit(u)

    dh = dstate.h
    dm = dh if params.w_proj is None else alg.dot_transposed(dh, params.w_proj)
    da_o = phis.gate.pull_back(o, kept_o, dm * m)
    du = phis.unit.pull_back(m, kept_m, dm * o)
    through = du if params.norm is None else ln.normalise_backward(normalised, alg.scale(du, params.norm.scale_c))
    dc = _peep(dstate.c + through, p_o, da_o)
    da_f = phis.gate.pull_back(f, kept_f, dc * (c_before - g if i is None else c_before))
    da_g = phis.unit.pull_back(g, kept_g, dc * (1 - f if i is None else i))
    da_i = [] if i is None else [phis.gate.pull_back(i, kept_i, dc * g)]
    dc_before = _peep(dc * f, p_f, da_f)
    if da_i:
        dc_before = _peep(dc_before, p_i, da_i[0])
    extra = (None if params.w_proj is None else dh, None if params.norm is None else du)
    return LSTMState(None, dc_before), (*da_i, da_f, da_g, da_o), extra  # type: ignore


def _accumulate(phis: GatePhis, params: LSTMParams, xs: Float[Array, "T *B I"], tape: Tape, delta: _Delta):
    da, product = delta.a, tape.residual.product
    norm = params.norm
    scale_x, scale_h = (None, None) if norm is None else norm[:2]
    _, product_x = _input_product(params, xs) if norm is not None else (None, None)
    gates = _gates_of(params)
    da_x = ln.product_backward(da, scale_x, product_x, gates)
    da_h = ln.product_backward(da, scale_h, product, gates)
    dparams = LSTMParams(
        w_x=alg.outer(xs, da_x, params.w_x),
        w_h=alg.outer(tape.before.h, da_h, params.w_h),
        b=None if params.b is None else alg.total(da),
        w_proj=None if params.w_proj is None else _accumulate_projection(phis, params, tape, delta.h),
        peephole=None if params.peephole is None else _accumulate_peephole(params, tape, da),
        norm=None if norm is None else _accumulate_norm(params, tape, delta, product_x),
    )
    return dparams, alg.dot_transposed(da_x, params.w_x)


def _accumulate_projection(phis: GatePhis, params: LSTMParams, tape: Tape, dh: Array) -> Array:
    assert params.w_proj is not None
    return alg.outer(_m(phis, params, tape.residual.o, tape.after.c), dh, params.w_proj)


def _accumulate_peephole(params: LSTMParams, tape: Tape, da: Float[Array, "T *B GH"]) -> Array:
    *da_i, da_f, _, da_o = alg.split(da, _gates_of(params))
    by_gate = [*(d * tape.before.c for d in (*da_i, da_f)), da_o * tape.after.c]
    return jnp.stack([alg.total(d) for d in by_gate])


def _accumulate_norm(params: LSTMParams, tape: Tape, delta: _Delta, product_x: Any) -> LSTMNorm:
    normalised = ln.normalise(tape.after.c, heads=alg.heads(params.w_h))
    return LSTMNorm(
        scale_x=alg.total(delta.a * product_x.value),
        scale_h=alg.total(delta.a * tape.residual.product.value),
        scale_c=alg.total(delta.u * normalised.value),
        offset_c=alg.total(delta.u),
    )


def _hidden_of(state: LSTMState) -> Array:
    return state.h


def _delta(da: Float[Array, "T *B GH"], extra: tuple[Any, Any]) -> _Delta:
    return _Delta(da, *extra)


def rule_for(activation: AnyActivation, recurrent_activation: AnyActivation) -> Rule:
    """The rule of the cells with these activations."""
    phis = gate_phis("lstm", activation, recurrent_activation)
    forward, backward = Bound(_forward, phis), Bound(_backward, phis)
    pointwise = Pointwise(
        hidden=_hidden_of,
        forward=Bound(_pointwise_forward, phis),
        backward=Bound(_pointwise_backward, phis),
        add_to_hidden=_add_to_hidden,
        delta=_delta,
        stands_for=(forward, backward),
    )
    return Rule(
        project=_project,
        forward=forward,
        backward=backward,
        accumulate=Bound(_accumulate, phis),
        matrices=("w_x", "w_h", "w_proj"),
        prepare=Bound(alg.transpose, ("w_h", "w_proj")),
        pointwise=pointwise if phis.are_named else None,
    )


RULE = rule_for("tanh", "sigmoid")


def lstm_step(
    params: LSTMParams,
    state: LSTMState,
    x: Float[AnyArray, "*B I"],
    activation: AnyActivation = "tanh",
    recurrent_activation: AnyActivation = "sigmoid",
) -> tuple[LSTMState, Float[Array, "*B H"]]:
    """One step of a long short-term memory, in the variant that `params` describes.

    i = σ(a_i [+ p_i ⊙ c_{t-1}])     f = σ(a_f [+ p_f ⊙ c_{t-1}])     g = φ(a_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g        o = σ(a_o [+ p_o ⊙ c_t])
    h_t = (o ⊙ φ(c_t)) [W_p]         with a = x W_x + h_{t-1} W_h + b

    Args:
        params: `w_x (I, 4H)`, `w_h (H, 4H)`, `b (4H,)` or `None`, gates in the order i f g o. With `w_proj (H, P)`
            the output has P entries and `w_h` P rows. `peephole (3, H)` is p_i, p_f, p_o. With 3H columns the cell is
            coupled: f g o, i = 1 - f, and `peephole (2, H)` is p_f, p_o. `norm` holds the scales of layer
            normalisation. With N heads `w_h` is `(N, D, 4D)`, D = H/N, without a projection.
        state: `LSTMState(h, c)`, `(*B, H or P)` and `(*B, H)`; cast to the dtype of the result.
        x: x_t, `(*B, I)`, floating-point.
        activation, recurrent_activation: φ and σ, as in :func:`lstm`.

    Returns:
        `LSTMState(h_t, c_t)` and the output h_t, in the dtype of `params` and `x` together.

    Raises:
        TypeError, ValueError: for a wrong structure, dtype, shape or activation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(3)
        >>> params = cell.init(jax.random.key(0), 2)
        >>> state, y = jaxrnn.lstm_step(params, cell.initial_state(), jnp.ones(2))
        >>> state.c.shape
        (3,)

    References:
        Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (forget gate); Goodfellow et al. 2016,
        equations 10.40 to 10.44. Peephole: Gers, Schraudolph & Schmidhuber 2002. Projection: Sak, Senior & Beaufays
        2014, arXiv:1402.1128, equations 7 to 12. Coupled: Greff et al. 2017, arXiv:1503.04069, CIFG. Layer
        normalisation: Ba, Kiros & Hinton 2016, arXiv:1607.06450, equations 20 to 22.

    Differs from:
        1. PyTorch: one bias, where `torch.nn.LSTMCell` adds two; kernels are (in, out).
        2. PyTorch has projections, but no peepholes, coupled gates or normalisation.
        3. Flax, Haiku: the state is read by name; Flax carries the tuple (c, h), Haiku (h, c).
        4. Keras: its third gate is called c; the order is the same.
        5. ONNX: gates in the order i o f c, peepholes i o f. Its φ of g and of c may differ.
    """
    activations = checked_activations("lstm_step", activation, recurrent_activation)
    _checks.params_record("lstm_step", params, LSTMParams)
    hidden, heads = _checks.units("lstm_step", params, "w_h")
    output = hidden
    if params.w_proj is not None:
        hidden = _checks.rows("lstm_step", params, "w_proj")
    coupled = getattr(params.w_x, "shape", (0,))[-1] == 3 * hidden
    projection = None if params.w_proj is None else output
    _check_projection_without_heads("lstm_step", projection, heads)
    config = LSTMConfig(hidden, projection, peephole=True, coupled=coupled, layer_norm=True, num_heads=heads)
    return step_of("lstm_step", config, rule_for(**activations), params, state, x)


def _check_projection_without_heads(where: str, projection_size: int | None, num_heads: int) -> None:
    if projection_size is not None and num_heads > 1:
        raise ValueError(
            f"{where}: num_heads expected 1 with a projection, got {num_heads} and projection_size = "
            f"{projection_size}; W_p mixes the units of all heads, so that W_p W_h is not block-diagonal"
        )


def lstm(
    hidden_size: int,
    *,
    projection_size: int | None = None,
    use_bias: bool = True,
    peephole: bool = False,
    coupled: bool = False,
    layer_norm: bool = False,
    num_heads: int = 1,
    activation: AnyActivation = "tanh",
    recurrent_activation: AnyActivation = "sigmoid",
    kernel_init: Initializer = initializers.glorot_uniform(),
    recurrent_init: Initializer = initializers.orthogonal(),
    bias_init: BiasInitializer | Initializer = initializers.gate_bias(f=1.0),
) -> Cell:
    """A long short-term memory: a cell whose equations are those of :func:`lstm_step`.

    It has 4H(I + H/N + 1) parameters; with a projection 4H(I + P + 1) + HP; coupled, 3 in the place of 4.
    PyTorch's has 4H more, its second bias.

    Args:
        hidden_size: H, the number of units.
        projection_size: P < H, the entries of the output and of what is fed back; `None`
            is no projection.
        use_bias: whether there is a `b`.
        peephole: whether the gates see the memory c.
        coupled: whether the input gate is 1 - f, which leaves three gates.
        layer_norm: whether x W_x, h W_h and c are normalised, by head.
        num_heads: N, which divides H. The recurrent matrix is block-diagonal: `w_h (N, D, 4D)`, D = H/N,
            the gates of a head side by side. A unit reads the units of its own head alone. Not with a projection.
        activation: φ, by which g is made and c is read: a name or a :class:`jaxrnn.Activation`; or a callable,
            which is called with the vector `(H,)` of a sequence and may mix units.
        recurrent_activation: σ, the activation of the gates; likewise.
        kernel_init: draws each gate's block `(I, H)` of `w_x`.
        recurrent_init: draws each gate's block `(H or P, H)` of `w_h`, with heads `(D, D)`, and `w_proj (H, P)`.
        bias_init: draws `b`. By default the forget gate starts at 1 and the others at 0; `gate_bias(f=b)` of
            `initializers` sets another value, `chrono(T)` spreads the memories over 1 to T steps. Peepholes start
            at 0, scales at 1.

    Returns:
        A :class:`Cell` with :class:`LSTMParams`, whose state is an :class:`LSTMState`.

    Raises:
        TypeError, ValueError: for a size that is not a positive integer, a projection that is not smaller than H,
            heads that do not divide H, heads with a projection, an unknown activation, or an option that is no boolean.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.lstm(256, projection_size=64, peephole=True)
        >>> cell.init(jax.random.key(0), 28).w_h.shape
        (64, 1024)
    """
    hidden_size = _checks.size("lstm", "hidden_size", hidden_size)
    if projection_size is not None:
        projection_size = _checks.size("lstm", "projection_size", projection_size)
        if projection_size >= hidden_size:
            raise ValueError(
                f"lstm: projection_size expected less than hidden_size = {hidden_size}, got {projection_size}"
            )
    options = {"use_bias": use_bias, "peephole": peephole, "coupled": coupled, "layer_norm": layer_norm}
    variants = {name: _checks.boolean("lstm", name, value) for name, value in options.items()}
    num_heads = checked_heads("lstm", num_heads, hidden_size)
    _check_projection_without_heads("lstm", projection_size, num_heads)
    activations = checked_activations("lstm", activation, recurrent_activation)
    config = LSTMConfig(hidden_size, projection_size, **variants, num_heads=num_heads, **activations)
    draw = Initializers(kernel_init, recurrent_init, bias_init)
    return make_cell(config, Bound(lstm_step, **activations), rule_for(**activations), draw)
