"""Weights of other libraries and records of ours with a fault in them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrnn
from jaxrnn import Bidirectional, GRUParams, LSTMParams, RNNParams, interop
from tests.support.fuzzing.answers import Attempt
from tests.support.fuzzing.values import ERRORS, KEYS, REFUSED, ROWS, SAME, LazyMapping, itself, nested

I, H, P = 7, 5, 2  # noqa: E741  # all different, so that no changed axis makes weights of another kind

# ---- weights


class Base(NamedTuple):
    """Weights that a converter reads."""

    read: Callable[..., Any]
    weights: dict[str, np.ndarray]
    free: tuple[str, ...] = ()  # entries with an axis of a size that no other entry has
    prefix: str = ""


def _array(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _record(rng: np.random.Generator, kind: str, features: int, projection: bool = False) -> Any:
    new = lambda *shape: _array(rng, *shape)  # noqa: E731
    if kind == "lstm" and projection:
        return LSTMParams(new(features, 4 * H), new(P, 4 * H), new(4 * H), w_proj=new(H, P))
    if kind == "lstm":
        return LSTMParams(new(features, 4 * H), new(H, 4 * H), new(4 * H))
    if kind == "gru":
        return GRUParams(new(features, 3 * H), new(H, 3 * H), new(3 * H), new(H))
    return RNNParams(new(features, H), new(H, H), new(H))


def flat(tree: Any, separator: str) -> dict[str, np.ndarray]:
    """The leaves of nested dicts by joined names."""
    found = {}
    for key, value in tree.items():
        below = (
            {f"{key}{separator}{k}": v for k, v in flat(value, separator).items()}
            if isinstance(value, dict)
            else {str(key): np.asarray(value)}
        )
        found |= below
    return found


def bases(seed: int = 0) -> dict[str, Base]:
    """Weights for every converter that reads a mapping, in several forms."""
    rng = np.random.default_rng(seed)
    lstm, gru, rnn = (_record(rng, kind, I) for kind in ("lstm", "gru", "rnn"))
    gru_before, gru_nnx = gru._replace(b_hn=None), gru._replace(b_hn=np.zeros(H, np.float32))
    above = {kind: _record(rng, kind, H) for kind in ("lstm", "gru", "rnn")}
    both = (
        Bidirectional(lstm, _record(rng, "lstm", I)),
        Bidirectional(*(_record(rng, "lstm", 2 * H) for _ in range(2))),
    )
    projected = (_record(rng, "lstm", I, True), _record(rng, "lstm", P, True))
    torch, keras, equinox = interop.from_torch, interop.from_keras, interop.from_equinox
    return {
        "torch lstm": Base(torch, interop.to_torch((lstm,)), ("weight_ih_l0",)),
        "torch gru 2": Base(torch, interop.to_torch((gru, above["gru"]), "a.b"), ("a.b.weight_ih_l0",), "a.b"),
        "torch rnn": Base(torch, interop.to_torch((rnn,)), ("weight_ih_l0",)),
        "torch both ways": Base(torch, interop.to_torch(both), ()),
        "torch projected": Base(torch, interop.to_torch(projected), ("weight_ih_l0",)),
        "torch projected 1": Base(torch, interop.to_torch(projected[:1]), ("weight_ih_l0",)),
        "torch cell": Base(torch, interop.to_torch(gru), ("weight_ih",)),
        "torch no bias": Base(torch, interop.to_torch((lstm._replace(b=None),)), ("weight_ih_l0",)),
        "keras lstm 2": Base(keras, interop.to_keras((lstm, above["lstm"])), ("lstm/lstm_cell/kernel", "lstm_1/lstm_cell/kernel")),
        "keras gru": Base(keras, interop.to_keras(gru), ("kernel",)),
        "keras gru before": Base(keras, interop.to_keras(gru_before), ("kernel",)),
        "keras rnn": Base(keras, interop.to_keras(rnn), ("kernel",)),
        "keras both ways": Base(keras, interop.to_keras(both[:1]), tuple(f"bidirectional/{way}_lstm/lstm_cell/kernel" for way in ("forward", "backward"))),
        "nnx lstm": Base(interop.from_nnx, flat(interop.to_nnx(lstm), "."), ()),
        "nnx optimized": Base(interop.from_nnx, flat(interop.to_nnx(lstm, optimized=True), "."), ("dense_i.kernel",)),
        "nnx gru 2": Base(interop.from_nnx, flat(interop.to_nnx((gru_nnx, above["gru"]._replace(b_hn=None, b=None))), "."), ("layers.0.cell.dense_i.kernel", "layers.1.cell.dense_i.kernel")),
        "nnx rnn": Base(interop.from_nnx, flat(interop.to_nnx(rnn), "."), ("dense_i.kernel",)),
        "linen lstm": Base(interop.from_linen, flat(interop.to_linen(lstm), "."), ()),
        "linen gru": Base(interop.from_linen, flat(interop.to_linen(gru)["params"], "."), ()),
        "linen rnn": Base(interop.from_linen, flat(interop.to_linen(rnn)["params"], "."), ("i.kernel",)),
        "linen both ways": Base(interop.from_linen, flat(interop.to_linen(both[0]), "."), ()),
        "haiku lstm 2": Base(interop.from_haiku, flat(interop.to_haiku((lstm, above["lstm"])), "/"), ("lstm/linear/w", "lstm_1/linear/w")),
        "haiku gru": Base(interop.from_haiku, flat(interop.to_haiku(gru_before), "/"), ("gru/w_i",)),
        "haiku rnn": Base(interop.from_haiku, flat(interop.to_haiku(rnn), "/"), ("vanilla_rnn/linear/w",)),
        "equinox lstm": Base(equinox, dict(flat(interop.to_equinox(lstm), "/"), input_size=I, hidden_size=H, use_bias=True), ("weight_ih",)),
        "equinox gru": Base(equinox, flat(interop.to_equinox(gru), "/"), ("weight_ih",)),
    }  # fmt: skip


BASES = bases()


def mutated_weights(rng: np.random.Generator) -> Attempt:
    """Weights with one entry or name that is wrong."""
    name = str(rng.choice(list(BASES)))
    base = BASES[name]
    where, weights = base.read.__name__, dict(base.weights)
    entry = str(rng.choice([k for k, v in weights.items() if isinstance(v, np.ndarray)]))
    array = weights[entry]
    call = lambda w, **options: lambda: base.read(w, base.prefix, **options)  # noqa: E731
    kinds = [
        "value",
        "value",
        "value",
        "rows",
        "same",
        "missing",
        "key",
        "lazy entry",
        "lazy",
        "None",
        "renamed",
        "two",
    ]
    kind = str(rng.choice(kinds))
    label = f"{name}: {kind} {entry!r}"
    if kind in ("value", "rows", "same"):
        table = {"value": REFUSED, "rows": ROWS, "same": SAME}[kind]
        fault = str(rng.choice(list(table)))
        changed = table[fault](array)
        weights[entry] = changed
        unchanged = isinstance(changed, np.ndarray) and changed.shape == array.shape and fault in ROWS
        free = entry in base.free and (
            fault in ROWS or base.read is interop.from_torch or base.read is interop.from_equinox
        )
        may_pass = kind == "same" or free or unchanged
        return Attempt(f"{label} {fault}", where, (entry,), call(weights), may_pass=may_pass,
                       expected=base.read(base.weights, base.prefix) if kind == "same" else None)  # fmt: skip
    if kind == "missing":
        del weights[entry]
        return Attempt(label, where, (entry,), call(weights), may_pass="bias" in entry or entry.endswith("/b"))
    if kind == "None":
        weights[entry] = None
        return Attempt(label, where, (entry,), call(weights), may_pass="equinox" in name)
    if kind == "lazy entry":
        error = ERRORS[rng.integers(len(ERRORS))]
        return Attempt(
            f"{label} {error!r:.40}", where, (entry,), call(LazyMapping(weights, entry, error)), may_pass=False
        )
    if kind == "lazy":
        error = ERRORS[rng.integers(len(ERRORS))]
        return Attempt(f"{label} {error!r:.40}", where, (), call(LazyMapping(weights, None, error)), may_pass=False)
    if kind == "renamed":
        other = KEYS[rng.integers(len(KEYS))]
        weights = {other if k == entry else k: v for k, v in weights.items()}
        return Attempt(f"{label} as {repr_of(other)}", where, (), call(weights))
    if kind == "key":
        other = KEYS[rng.integers(len(KEYS))]
        value = [array, None, 3, {}, {"a": array}, itself(), nested(3000)][rng.integers(7)]
        return Attempt(f"{label} {repr_of(other)}: {type(value)}", where, (), call({**weights, other: value}))
    second = str(rng.choice(list(weights)))
    for which in (entry, second):
        weights[which] = list(REFUSED.values())[rng.integers(len(REFUSED))](array)
    return Attempt(f"{label} and {second!r}", where, (entry, second), call(weights))


def repr_of(value: Any) -> str:
    try:
        return repr(value)[:40]
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__}>"


# ---- records


WRITERS: dict[str, tuple[Callable[..., Any], str]] = {
    "to_torch": (interop.to_torch, "lstm gru rnn projected both layers"),
    "to_keras": (interop.to_keras, "lstm gru rnn both layers before"),
    "to_nnx": (interop.to_nnx, "lstm rnn both layers"),
    "to_linen": (interop.to_linen, "lstm gru rnn both layers"),
    "to_haiku": (interop.to_haiku, "lstm rnn before layers"),
    "to_equinox": (interop.to_equinox, "lstm gru"),
    "to_cudnn": (interop.to_cudnn, "lstm gru rnn both layers"),
    "to_onnx": (lambda params: interop.to_onnx(NETWORKS[_kind_of(params)], params), "lstm gru rnn both layers projected"),
}  # fmt: skip
CELLS = {
    "lstm": jaxrnn.lstm(H),
    "gru": jaxrnn.gru(H),
    "rnn": jaxrnn.rnn(H),
    "projected": jaxrnn.lstm(H, projection_size=P),
}
NETWORKS = {
    "lstm": CELLS["lstm"], "gru": CELLS["gru"], "rnn": CELLS["rnn"], "projected": jaxrnn.stack([CELLS["projected"]]),
    "both": jaxrnn.stack([CELLS["lstm"]], bidirectional=True), "layers": jaxrnn.stack([CELLS["lstm"]] * 2),
}  # fmt: skip


def records(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    lstm = _record(rng, "lstm", I)
    return {
        "lstm": lstm, "gru": _record(rng, "gru", I), "rnn": _record(rng, "rnn", I),
        "projected": (_record(rng, "lstm", I, True),), "both": (Bidirectional(lstm, _record(rng, "lstm", I)),),
        "layers": (lstm, _record(rng, "lstm", H)), "before": _record(rng, "gru", I)._replace(b_hn=None),
    }  # fmt: skip


RECORDS = records()


def _kind_of(params: Any) -> str:
    """The network that the records of a form are for; odd params are tried with an LSTM."""
    for kind, record in RECORDS.items():
        if (
            jax.tree.structure(params, is_leaf=lambda leaf: leaf is None)
            == jax.tree.structure(record, is_leaf=lambda leaf: leaf is None)
            and kind in NETWORKS
        ):
            return kind
    return "lstm"


def mutated_record(rng: np.random.Generator) -> Attempt:
    """Params with one field that is wrong, for every converter that writes."""
    where = str(rng.choice(list(WRITERS)))
    write, kinds = WRITERS[where]
    kind = str(rng.choice(kinds.split()))
    paths, structure = jax.tree_util.tree_flatten_with_path(RECORDS[kind])
    leaves = [leaf for _, leaf in paths]
    k = int(rng.integers(len(leaves)))
    field = paths[k][0][-1].name
    table = {"value": REFUSED, "rows": ROWS, "same": SAME, "none": {"None": lambda _: None}}
    group = str(rng.choice(["value", "value", "value", "rows", "same", "none"]))
    group = "value" if group == "same" and where == "to_onnx" else group
    fault = str(rng.choice(list(table[group])))
    expected = write(RECORDS[kind]) if group == "same" else None
    original = leaves[k]
    if fault == "boxed":
        return Attempt("", where, (), lambda: None)
    leaves[k] = table[group][fault](original)
    broken = jax.tree.unflatten(structure, leaves)
    unchanged = fault in ROWS and isinstance(leaves[k], np.ndarray) and leaves[k].shape == original.shape
    free = field == "w_x" and fault in ROWS and kind != "both"
    may_pass = group == "same" or unchanged or free or (group == "none" and field.startswith("b"))

    def call() -> Any:
        return interop.to_onnx(NETWORKS[kind], broken) if where == "to_onnx" else write(broken)

    return Attempt(f"{where} {kind}: {field} {fault}", where, (field,), call, expected, may_pass)
