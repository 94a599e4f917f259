"""ONNX models whose bytes or fields are damaged."""

import copy
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

import jaxrnn
from jaxrnn import interop
from tests.support.fuzzing.answers import Attempt
from tests.support.fuzzing.weights import H, I, P

# ---- ONNX


def models(seed: int = 0) -> list[onnx.ModelProto]:
    """Models with all that is read of one: states, lengths, projections, merges, quantised weights."""
    new = lambda network: jax.tree.map(np.asarray, network.init(jax.random.key(seed), I))  # noqa: E731
    lstm, gru, rnn = jaxrnn.lstm(H, peephole=True), jaxrnn.gru(H), jaxrnn.rnn(H, activation="relu")
    networks = [
        jaxrnn.stack([lstm, gru]), jaxrnn.stack([gru], bidirectional=True), jaxrnn.stack([rnn] * 3, residual=True),
        jaxrnn.stack([jaxrnn.lstm(H, projection_size=P)]), jaxrnn.stack([gru, gru], bidirectional=True, merge="sum"),
    ]  # fmt: skip
    made = [interop.to_onnx(net, new(net)) for net in networks]
    made.append(interop.to_onnx(networks[0], new(networks[0]), lengths=True, initial_state="inputs", batch_first=True))
    return [*made, quantised(made[1]), with_constants(made[0]), inside_graphs(made[3]), of_runtime()]


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with W behind a `DequantizeLinear`."""
    model = copy.deepcopy(model)
    graph = model.graph
    tensor = next(t for t in graph.initializer if t.name.endswith(".W"))
    array, name = numpy_helper.to_array(tensor), tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.clip(np.round(array * 100), -128, 127).astype(np.int8), "q"))
    graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "scale"))
    graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], [name]))
    return model


def with_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its initialisers as `Constant` nodes, and constant lengths."""
    model = copy.deepcopy(model)
    graph = model.graph
    held = list(graph.initializer)
    del graph.initializer[:]
    for tensor in held:
        graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return model


def inside_graphs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its nodes in a branch of an `If` in the body of a `Loop`; its weights stay where they are."""
    model = copy.deepcopy(model)
    graph = model.graph
    for op, name, inputs in (("If", "then_branch", ["c"]), ("Loop", "body", ["n", ""])):
        inner = onnx.GraphProto(name="inner", node=graph.node, output=graph.output)
        graph.ClearField("node")
        outputs = [value.name for value in graph.output]
        graph.node.append(helper.make_node(op, inputs, outputs, name=f"{op}_0", **{name: inner}))
    return model


def of_runtime() -> onnx.ModelProto:
    """A `DynamicQuantizeLSTM`."""
    arrays = {"W": np.ones((1, I, 4 * H), np.int8), "R": np.ones((1, H, 4 * H), np.int8)}
    arrays |= {
        f"{name}_{part}": np.ones((1, 4 * H), kind)
        for name in "WR"
        for part, kind in (("s", np.float32), ("z", np.int8))
    }
    inputs = ["x", "W", "R", "", "", "", "", "", "W_s", "W_z", "R_s", "R_z"]
    made = helper.make_node("DynamicQuantizeLSTM", inputs, ["Y"], name="a", domain="com.microsoft", hidden_size=H)
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    value = helper.make_empty_tensor_value_info
    return helper.make_model(helper.make_graph([made], "graph", [value("x")], [value("Y")], held))


MODELS = models()
READ = [interop.from_onnx(model) for model in MODELS]


def damaged_bytes(rng: np.random.Generator) -> Attempt:
    """A file of a model with some bytes changed, left out, repeated or put in."""
    content = bytearray(MODELS[rng.integers(len(MODELS))].SerializeToString())
    kind = str(rng.choice(["flip", "flips", "cut", "drop", "insert", "repeat", "zero"]))
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 20))
    if kind == "cut":
        del content[at:]
    elif kind == "drop":
        del content[at : at + length]
    elif kind == "insert":
        content[at:at] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    elif kind == "repeat":
        content[at:at] = content[at : at + length]
    elif kind == "zero":
        content[at : at + length] = bytes(length)
    else:
        for _ in range(1 if kind == "flip" else length):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return Attempt(f"{kind} at {at}, {length}", "from_onnx", (), lambda: _read_file(bytes(content)))


def _read_file(content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        path.write_bytes(content)
        return interop.from_onnx(path)


NUMBERS = (0, 1, -1, 2, 3, 4, 5, 7, 2**31 - 1, -(2**31), 2**20)
TEXTS = (
    "",
    "x",
    "W",
    "LSTM",
    "GRU",
    "If",
    "layer_0.W",
    "layer_0.run",
    "layer_1.R",
    "forward",
    "bidirectional",
    "com.microsoft",
    "a\nb",
    "z" * 2000,
    "Tanh",
)


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _messages(part)


def changed_model(rng: np.random.Generator) -> Attempt:
    """A model with a few fields changed, cleared, repeated or exchanged."""
    chosen = int(rng.integers(len(MODELS)))
    model, done = copy.deepcopy(MODELS[chosen]), []
    for _ in range(int(rng.integers(1, 4))):
        every = list(_messages(model))
        message = every[rng.integers(len(every))]
        fields = list(message.DESCRIPTOR.fields)
        used = [field for field, _ in message.ListFields()]
        pool = used if used and rng.random() < 0.8 else fields
        field = pool[rng.integers(len(pool))]
        try:
            _change(rng, message, field)
        except (TypeError, ValueError, AttributeError, KeyError):
            continue
        done.append(f"{message.DESCRIPTOR.name}.{field.name}")
    calls: dict[str, Callable[[], Any]] = {
        "from_onnx": lambda: interop.from_onnx(model),
        "onnx_recurrent": lambda: interop.onnx_recurrent(model),
        "to_onnx": lambda: interop.to_onnx(*READ[chosen], into=model),
    }
    where = str(rng.choice(list(calls), p=[0.6, 0.2, 0.2]))
    return Attempt(f"{where} of {chosen} with changed {', '.join(done)}", where, (), calls[where])


def _change(rng: np.random.Generator, message: Any, field: Any) -> None:
    value = getattr(message, field.name)
    new: Callable[[], Any] = {
        "int": lambda: NUMBERS[rng.integers(len(NUMBERS))], "float": lambda: float(rng.choice([0, 1, np.nan, np.inf, -2.5])),
        "str": lambda: TEXTS[rng.integers(len(TEXTS))], "bytes": lambda: TEXTS[rng.integers(len(TEXTS))].encode() + bytes(int(rng.integers(3))),
    }[field.default_value.__class__.__name__ if not field.is_repeated else _kind(field)] if field.message_type is None else (lambda: None)  # fmt: skip
    action = str(rng.choice(["clear", "set", "set", "repeat", "swap", "drop"]))
    if action == "clear" or (field.message_type is not None and not field.is_repeated):
        message.ClearField(field.name)
    elif not field.is_repeated:
        setattr(message, field.name, new())
    elif action == "set" and field.message_type is None and len(value):
        value[int(rng.integers(len(value)))] = new()
    elif action == "set" and field.message_type is None:
        value.append(new())
    elif action == "repeat" and len(value):
        value.extend([value[int(rng.integers(len(value)))]])
    elif action == "swap" and len(value) > 1:
        a, b = rng.choice(len(value), 2, replace=False)
        parts = [copy.deepcopy(part) for part in value]
        parts[a], parts[b] = parts[b], parts[a]
        message.ClearField(field.name)
        getattr(message, field.name).extend(parts)
    elif len(value):
        del value[int(rng.integers(len(value)))]
    elif field.message_type is not None:
        value.add()


def _kind(field: Any) -> str:
    kinds = {field.CPPTYPE_FLOAT: "float", field.CPPTYPE_DOUBLE: "float"}
    if field.type == field.TYPE_BYTES:
        return "bytes"
    return "str" if field.cpp_type == field.CPPTYPE_STRING else kinds.get(field.cpp_type, "int")
