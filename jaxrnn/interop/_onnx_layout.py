"""Converts the weights of one direction from and to ONNX: gate order, two biases, forms of a cell.

=========  =====================  ===============  ==========================================
operator   rows of W, R and B     ours             besides
=========  =====================  ===============  ==========================================
`RNN`      h                      h
`GRU`      z r h                  r z n            `linear_before_reset` is reset-after
`LSTM`     i o f c                i f g o          P is i o f; `input_forget` is coupled
=========  =====================  ===============  ==========================================

W is `(GH, I)`, R `(GH, H)`, and B `(2GH,)` holds the biases of both, one after the other. A
coupled LSTM computes f = 1 - i there and i = 1 - f here. As 1 - σ(a) = σ(-a), its i is our
f with the sign of weights, bias and peephole changed; the rows of f are not read. That holds for
the sigmoid, and for a hard sigmoid with β = 1/2.

All have `activations`: φ of an RNN, σ and φ of a GRU, σ, φ and φ again of an LSTM, whose memory may be
read by another function there. The lists `activation_alpha` and `activation_beta` have a number for
each function that has an α or β, in the same order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn import heads
from jaxrnn._describe import cut, quote
from jaxrnn._types import AnyCell, Cell
from jaxrnn.cells import (
    Activation,
    GRUConfig,
    GRUParams,
    LSTMConfig,
    LSTMParams,
    RegularizeConfig,
    RNNConfig,
    RNNParams,
    gru,
    lstm,
    rnn,
)
from jaxrnn.cells._activation import AnyActivation
from jaxrnn.interop._sizes import Axis, Claim, fit

THEIRS = {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"}  # in our letters
OURS = {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"}
COUPLED = "fgo"
PEEPHOLES = (0, 2, 1)  # i o f to i f o, and back


class Theirs(NamedTuple):
    """An activation in ONNX: its name there, and the α and β that an operator without them has."""

    name: str
    alpha: float | None = None  # None: ONNX Runtime has 0 for the Affine and ScaledTanh of such an operator
    beta: float | None = None


ACTIVATIONS = {
    "tanh": Theirs("Tanh"),
    "relu": Theirs("Relu"),
    "sigmoid": Theirs("Sigmoid"),
    "hard_sigmoid": Theirs("HardSigmoid", 0.2, 0.5),
    "softsign": Theirs("Softsign"),
    "softplus": Theirs("Softplus"),
    "elu": Theirs("Elu", 1.0),
    "leaky_relu": Theirs("LeakyRelu", 0.01),
    "thresholded_relu": Theirs("ThresholdedRelu"),
    "scaled_tanh": Theirs("ScaledTanh"),
    "affine": Theirs("Affine"),
}

LSTM_CLIP = (
    "the LSTM of ONNX clips what i, o, f and g read, but not the memory that is read by the same activation as g"
)

COUPLED_SIGN = "the coupled LSTM of ONNX has f = 1 - i, that of jaxrnn i = 1 - f"

RECORDS: dict[str, Any] = {"RNN": RNNParams, "GRU": GRUParams, "LSTM": LSTMParams}

Fields = dict[str, np.ndarray]  # params by the names of our records; what is absent has no entry


class Form(NamedTuple):
    """What an operator computes, without its sizes and weights."""

    op: str  # "RNN", "LSTM" or "GRU"
    activation: Activation = Activation("tanh")  # without its clip
    recurrent_activation: Activation = Activation("sigmoid")  # of the gates
    clip: float | None = None  # of what all activations read
    reset_after: bool = True  # of the GRU
    coupled: bool = False  # of the LSTM


class Weights(NamedTuple):
    """The weights of one direction, in ONNX's layout and names."""

    W: np.ndarray  # (GH, I)
    R: np.ndarray  # (GH, H)
    B: np.ndarray | None = None  # (2GH,)
    P: np.ndarray | None = None  # (3H,)


def form_of(name: str, cell: AnyCell) -> Form:
    """The form of a cell, from its config; raises for a cell that no operator computes."""
    config, got = cell.config, cut(repr(cell), 100)
    if isinstance(config, RegularizeConfig):
        if config.has_zoneout:
            raise ValueError(f"{name} expected a cell without zoneout, got {got}; no operator of ONNX mixes states")
        config = config.cell  # dropout is off in evaluation
    if not isinstance(config, (RNNConfig, LSTMConfig, GRUConfig)):
        raise ValueError(f"{name} expected a cell of rnn, lstm or gru, got {got}; ONNX has no operator for it")
    if not isinstance(config, RNNConfig) and config.layer_norm:
        raise ValueError(f"{name} expected a cell without layer normalisation, got {got}; ONNX's operators have none")
    if isinstance(config, RNNConfig):
        return Form("RNN", **_phis_of(name, got, activation=config.activation))
    given = {"activation": config.activation, "recurrent_activation": config.recurrent_activation}
    if isinstance(config, GRUConfig):
        return Form("GRU", **_phis_of(name, got, **given), reset_after=config.reset_after)
    phis = _phis_of(name, got, **given)
    if phis["clip"] is not None:
        raise ValueError(f"{name} expected activations without clip, got {got}; {LSTM_CLIP}")
    if config.coupled and not is_symmetric(phis["recurrent_activation"]):
        raise ValueError(f"{name} expected a recurrent_activation with σ(-a) = 1 - σ(a), got {got}; {COUPLED_SIGN}")
    return Form("LSTM", **phis, coupled=config.coupled)


def is_symmetric(gate: Activation) -> bool:
    """Whether σ(-a) = 1 - σ(a)."""
    return gate.name == "sigmoid" or (gate.name in ("hard_sigmoid", "affine") and gate.beta == 0.5)


def _phis_of(name: str, got: str, **options: AnyActivation) -> dict[str, Any]:
    """The activations without their clip, and the clip that they share."""
    phis = {option: Activation(phi) if isinstance(phi, str) else phi for option, phi in options.items()}
    for option, phi in phis.items():
        if not isinstance(phi, Activation):
            names = ", ".join((*ACTIVATIONS, "identity"))
            raise ValueError(f"{name} expected {option} to be one of {names}, got {got}")
    clips = [phi.clip for phi in phis.values()]  # pyright: ignore[reportAttributeAccessIssue]
    if len(set(clips)) > 1:
        raise ValueError(f"{name} expected activations with one clip, got {got}; an operator of ONNX has one")
    return {option: dataclasses.replace(phi, clip=None) for option, phi in phis.items()} | {"clip": clips[0]}  # type: ignore


def cell_of(
    form: Form, hidden_size: int, use_bias: bool, peephole: bool, projection_size: int | None, num_heads: int = 1
) -> Cell:
    """The cell of a form: the inverse of `form_of`."""
    options: dict[str, Any] = {"use_bias": use_bias, "num_heads": num_heads}
    options["activation"] = dataclasses.replace(form.activation, clip=form.clip)
    if form.op == "RNN":
        return rnn(hidden_size, **options)
    options["recurrent_activation"] = dataclasses.replace(form.recurrent_activation, clip=form.clip)
    if form.op == "GRU":
        return gru(hidden_size, reset_after=form.reset_after, **options)
    return lstm(hidden_size, projection_size=projection_size, peephole=peephole, coupled=form.coupled, **options)


def attributes(forms: tuple[Form, ...]) -> dict[str, Any]:
    """The attributes of a node with these forms, one for each direction, which differ only in the activations."""
    form = forms[0]
    found: dict[str, Any] = {}
    if form.op == "GRU":
        found["linear_before_reset"] = int(form.reset_after)
    if form.coupled:
        found["input_forget"] = 1
    phis = [phi for form in forms for phi in _in_their_order(form)]
    if form.op == "RNN" or phis != [phi for form in forms for phi in _in_their_order(Form(form.op))]:
        found["activations"] = [ACTIVATIONS[phi.name].name for phi in phis]
        for parameter in ("alpha", "beta"):
            values = [shortest(value) for phi in phis if (value := getattr(phi, parameter)) is not None]
            if values:
                found[f"activation_{parameter}"] = values
    return found if form.clip is None else {**found, "clip": shortest(form.clip)}


def shortest(number: float) -> float:
    """The shortest decimal of the nearest float32, which attributes hold: 0.2, not 0.20000000298."""
    return float(str(np.float32(number)))


def without_activations(form: Form) -> Form:
    """What the directions of one operator have in common: the clip, but not the activations."""
    return form._replace(activation=Activation("tanh"), recurrent_activation=Activation("sigmoid"))


def _in_their_order(form: Form) -> list[Activation]:
    """The activations of one direction, as ONNX lists them."""
    unit, gate = form.activation, form.recurrent_activation
    unit, gate = (Activation("affine") if phi.name == "identity" else phi for phi in (unit, gate))
    return {"RNN": [unit], "GRU": [gate, unit], "LSTM": [gate, unit, unit]}[form.op]


def _blocks(gates: str, a: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(gates, np.split(a, len(gates), axis=-1), strict=True))


def _to_theirs(form: Form, a: np.ndarray) -> np.ndarray:
    """The blocks of the last axis in ONNX's order."""
    blocks = _blocks(COUPLED if form.coupled else OURS[form.op], a)
    if form.coupled:
        blocks |= {"i": -blocks["f"], "f": np.zeros_like(blocks["f"])}
    return np.concatenate([blocks[gate] for gate in THEIRS[form.op]], axis=-1)


def _to_ours(form: Form, a: np.ndarray) -> np.ndarray:
    """The blocks of the last axis in our order."""
    blocks = _blocks(THEIRS[form.op], a)
    if form.coupled:
        blocks["f"] = -blocks["i"]
    return np.concatenate([blocks[gate] for gate in (COUPLED if form.coupled else OURS[form.op])], axis=-1)


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b, and exactly a, to the sign of its zeros, where b is zero."""
    return np.where(b == 0, a, a + b)


def to_weights(form: Form, fields: Fields) -> Weights:
    """The weights of params without a projection; the blocks of heads become the block-diagonal R."""
    w, r = (_to_theirs(form, heads.dense(fields[name])).T for name in ("w_x", "w_h"))
    p = _peepholes_to_theirs(form, fields["peephole"]) if "peephole" in fields else None
    if "b" not in fields:
        return Weights(w, r, P=p)
    b, b_h = fields["b"], np.zeros_like(fields["b"])
    if "b_hn" in fields:
        b_h[2 * len(fields["b_hn"]) :] = fields["b_hn"]
    return Weights(w, r, np.concatenate([_to_theirs(form, b), _to_theirs(form, b_h)]), p)


def from_weights(form: Form, weights: Weights) -> Fields:
    """The inverse of `to_weights`, for arrays of the right shapes."""
    fields = {"w_x": _to_ours(form, weights.W.T), "w_h": _to_ours(form, weights.R.T)}
    if weights.P is not None:
        fields["peephole"] = _peepholes_to_ours(form, weights.P)
    if weights.B is None:
        return fields
    b, b_h = (_to_ours(form, half) for half in np.split(weights.B, 2))
    if form.op == "GRU" and form.reset_after:
        both = 2 * weights.R.shape[1]
        fields["b_hn"], b_h = b_h[both:], np.concatenate([b_h[:both], np.zeros_like(b_h[both:])])
    return {**fields, "b": _add(b, b_h)}


def _peepholes_to_theirs(form: Form, p: np.ndarray) -> np.ndarray:
    if form.coupled:
        f, o = p
        return np.concatenate([-f, o, np.zeros_like(f)])
    return p[list(PEEPHOLES)].ravel()


def _peepholes_to_ours(form: Form, p: np.ndarray) -> np.ndarray:
    i, f, o = p.reshape(3, -1)[list(PEEPHOLES)]
    return np.stack([-i, o] if form.coupled else [i, f, o])


def one_direction(weights: Weights, direction: int) -> Weights:
    """The weights of one direction, from arrays whose first axis is that of directions."""
    return Weights(*(None if array is None else array[direction] for array in weights))  # type: ignore


def check_shapes(where: str, form: Form, weights: Weights, tensors: Mapping[str, str], hidden_size: int | None) -> None:
    """Raises unless the arrays of one direction fit each other and the attribute `hidden_size`.

    `tensors` are the names of the arrays in the model.
    """
    rows = ("H", len(THEIRS[form.op]))
    axes: dict[str, tuple[Axis, ...]] = {
        "R": (rows, ("H", 1)), "W": (rows, ("I", 1)), "B": (("H", 2 * rows[1]),), "P": (("H", 3),)
    }  # fmt: skip
    claims = [
        Claim(f"input {role} ({quote(tensors[role], 60)})", array.shape, axes[role], "without the axis of directions")
        for role in axes
        if (array := getattr(weights, role)) is not None
    ]
    found = fit(where, {form.op: claims})
    if hidden_size not in (None, found.sizes["H"]):
        raise ValueError(f"{where} attribute hidden_size expected {found.sizes['H']}, that of R, got {hidden_size}")


# With a projection h = m W_p is fed back, and h W_h = m (W_p W_h): an operator whose R is that
# product has the state m, and a product with W_p after it gives h.


def fold(w_proj: np.ndarray, w_h: np.ndarray) -> np.ndarray:
    """W_p W_h, rounded once."""
    return (w_proj.astype(np.float64) @ w_h.astype(np.float64)).astype(w_h.dtype)


def unfold(w_proj: np.ndarray, folded: np.ndarray) -> np.ndarray | None:
    """The W_h of a folded product, up to rounding, or `None` if it is no product with W_p."""
    left, right = w_proj.astype(np.float64), folded.astype(np.float64)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return None
    w_h = np.linalg.lstsq(left, right, rcond=None)[0]
    rounding = 16 * float(jnp.finfo(folded.dtype).eps) * np.abs(right).max(initial=0.0)
    return w_h.astype(folded.dtype) if np.abs(left @ w_h - right).max(initial=0.0) <= rounding else None
