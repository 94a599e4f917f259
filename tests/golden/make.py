"""What PyTorch, ONNX Runtime and Keras compute, written down: `python -m tests.golden.make`.

A case is a plain dict: `config` (what was built, the sizes, the seed), `inputs` (weights,
sequence, initial states, all drawn by NumPy), `outputs`, and for PyTorch `gradients`, of a
random weighted sum of all outputs, by every input. Arrays are in the peer's own layout and
order, but always time-major. Each function takes a config and returns a case, so that the
tests can put new questions to an installed peer. Peers are imported where they are used.
"""

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

# Before Keras is first imported, or it looks for TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "jax")

HERE = Path(__file__).parent
DTYPES = {"torch": "float64", "onnx": "float32", "keras": "float32"}
SIZES = {"time": 5, "batch": 3, "input_size": 3, "hidden_size": 4}
LENGTHS = [2, 5, 1]

Case = dict[str, Any]


def _draw(config: dict, shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """Random numbers of three decimals, which are short in a file: scaled down where they are weights."""
    rng = np.random.default_rng(config["seed"])
    scale = lambda name: 1.0 if name in ("xs", "h_0", "c_0") or name.startswith("cotangent") else 0.6  # noqa: E731
    return {
        name: (scale(name) * rng.standard_normal(shape)).round(3).astype(dtype)
        for name, shape in shapes.items()
    }  # fmt: skip


# PyTorch

TORCH_DEFAULTS = {
    **SIZES, "num_layers": 1, "bidirectional": False, "bias": True, "proj_size": 0, "nonlinearity": "tanh",
    "lengths": None, "initial": True,
}  # fmt: skip

TORCH = [
    {"kind": "RNN"},
    {"kind": "RNN", "nonlinearity": "relu", "num_layers": 2, "bidirectional": True, "hidden_size": 3},
    {"kind": "RNN", "lengths": LENGTHS, "bias": False},
    {"kind": "LSTM"},
    {"kind": "LSTM", "num_layers": 2, "lengths": LENGTHS, "initial": False, "hidden_size": 3},
    {"kind": "LSTM", "num_layers": 2, "bidirectional": True, "proj_size": 2, "lengths": LENGTHS, "hidden_size": 3},
    {"kind": "LSTM", "bidirectional": True, "bias": False, "hidden_size": 3},
    {"kind": "GRU"},
    {"kind": "GRU", "num_layers": 2, "bidirectional": True, "lengths": LENGTHS, "hidden_size": 3},
    {"kind": "GRU", "num_layers": 2, "bias": False, "initial": False, "hidden_size": 3},
]
TORCH = [{**TORCH_DEFAULTS, **config, "seed": seed} for seed, config in enumerate(TORCH)]


def torch_config(seed: int) -> dict:
    """Twelve seeds in a row have every kind, depth and direction; the rest is random, of two sets of sizes."""
    rng = np.random.default_rng(1000 + seed)
    choose = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    sizes = choose(SIZES, {"time": 7, "batch": 4, "input_size": 2, "hidden_size": 3})
    kind = ("RNN", "LSTM", "GRU")[seed % 3]
    lengths = [int(n) for n in rng.integers(1, sizes["time"] + 1, sizes["batch"])]
    return {
        **sizes, "kind": kind, "num_layers": 1 + seed // 3 % 2, "bidirectional": seed // 6 % 2 == 1,
        "bias": choose(True, True, False), "proj_size": choose(0, 2) if kind == "LSTM" else 0,
        "nonlinearity": choose("tanh", "relu") if kind == "RNN" else "tanh",
        "lengths": choose(None, lengths, sorted(lengths, reverse=True)), "initial": choose(True, True, False),
        "seed": seed,
    }  # fmt: skip


def torch_case(config: dict) -> Case:
    """`torch.nn.RNN`, `LSTM` or `GRU` in float64; with lengths, over a packed sequence."""
    import torch

    kind, time, batch = config["kind"], config["time"], config["batch"]
    names = ["num_layers", "bidirectional", "bias", *{"LSTM": ["proj_size"], "RNN": ["nonlinearity"]}.get(kind, [])]
    module = getattr(torch.nn, kind)(
        config["input_size"], config["hidden_size"], dtype=torch.float64, **{name: config[name] for name in names}
    )
    weights = dict(module.named_parameters())

    directions = 1 + config["bidirectional"]
    rows, hidden = config["num_layers"] * directions, config["hidden_size"]
    output = config["proj_size"] or hidden
    finals = (
        {"h": (rows, batch, output), "c": (rows, batch, hidden)} if kind == "LSTM" else {"h": (rows, batch, hidden)}
    )
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    shapes["xs"] = (time, batch, config["input_size"])
    shapes |= {f"{name}_0": shape for name, shape in finals.items() if config["initial"]}
    shapes["cotangent_ys"] = (time, batch, directions * output)
    shapes |= {f"cotangent_{name}_n": shape for name, shape in finals.items()}
    inputs = _draw(config, shapes, "float64")

    with torch.no_grad():
        for name, w in weights.items():
            w.copy_(torch.from_numpy(inputs[name]))
    given = {name: torch.tensor(inputs[name], requires_grad=True) for name in ("xs", "h_0", "c_0") if name in inputs}
    states = tuple(given[name] for name in ("h_0", "c_0") if name in given)
    xs = given["xs"]
    if config["lengths"] is not None:
        in_order = config["lengths"] == sorted(config["lengths"], reverse=True)
        xs = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(config["lengths"]), enforce_sorted=in_order)
    ys, after = module(xs, (states if kind == "LSTM" else states[0]) if states else None)
    if config["lengths"] is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=time)

    after = after if kind == "LSTM" else (after,)
    outputs = {"ys": ys, **{f"{name}_n": value for name, value in zip(finals, after, strict=True)}}
    sum((torch.from_numpy(inputs[f"cotangent_{name}"]) * value).sum() for name, value in outputs.items()).backward()
    return {
        "config": config,
        "parameter_count": sum(w.numel() for w in weights.values()),
        "inputs": inputs,
        "outputs": {name: value.detach().numpy() for name, value in outputs.items()},
        "gradients": {name: leaf.grad.numpy() for name, leaf in {**weights, **given}.items()},
    }


# ONNX Runtime

ONNX_DEFAULTS = {
    **SIZES, "direction": "forward", "peephole": False, "input_forget": 0, "linear_before_reset": 0,
    "lengths": LENGTHS,
}  # fmt: skip

ONNX = [
    {"op": "LSTM", "direction": "bidirectional"},
    {"op": "LSTM", "direction": "bidirectional", "peephole": True},
    {"op": "LSTM", "peephole": True, "input_forget": 1},
    {"op": "LSTM", "direction": "reverse", "input_forget": 1},
    {"op": "GRU", "direction": "bidirectional", "linear_before_reset": 0},
    {"op": "GRU", "direction": "bidirectional", "linear_before_reset": 1},
    {"op": "RNN", "direction": "bidirectional"},
]
ONNX = [{**ONNX_DEFAULTS, **config, "seed": 100 + seed} for seed, config in enumerate(ONNX)]
ONNX_INPUTS = ("xs", "W", "R", "B", "lengths", "h_0", "c_0", "P")


def onnx_case(config: dict) -> Case:
    """The operator `LSTM`, `GRU` or `RNN`, run by ONNX Runtime, the oracle for its variants."""
    import onnxruntime
    from onnx import TensorProto, helper

    op, hidden = config["op"], config["hidden_size"]
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    directions = 2 if config["direction"] == "bidirectional" else 1
    state = (directions, config["batch"], hidden)
    shapes = {
        "W": (directions, rows, config["input_size"]),
        "R": (directions, rows, hidden),
        "B": (directions, 2 * rows),
        "P": (directions, 3 * hidden),
        "xs": (config["time"], config["batch"], config["input_size"]),
        "h_0": state,
        "c_0": state,
    }
    absent = {"P": not config["peephole"], "c_0": op != "LSTM"}
    inputs = _draw(config, {name: shape for name, shape in shapes.items() if not absent.get(name)}, "float32")

    fed = {**inputs, "lengths": np.asarray(config["lengths"], np.int32)}
    settings = {"LSTM": ["input_forget"], "GRU": ["linear_before_reset"], "RNN": []}[op]
    results = ["ys", "h_n", *(["c_n"] if op == "LSTM" else [])]
    node = helper.make_node(
        op, [name if name in fed else "" for name in ONNX_INPUTS[: 8 if op == "LSTM" else 6]], results,
        hidden_size=hidden, direction=config["direction"], **{name: config[name] for name in settings},
    )  # fmt: skip
    kinds = {"lengths": TensorProto.INT32}
    graph = helper.make_graph(
        [node], op,
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), a.shape) for name, a in fed.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
    )  # fmt: skip
    # An old operator set and format, which any runtime reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = dict(zip(results, session.run(results, fed), strict=True))
    return {"config": config, "inputs": inputs, "outputs": outputs}


# Keras

KERAS_DEFAULTS = {**SIZES, "use_bias": True, "reset_after": True, "go_backwards": False, "mask": None}

# A mask with holes, by time and then batch; the last sequence has no step at all.
MASK = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]]

KERAS = [
    {"layer": "SimpleRNN"},
    {"layer": "LSTM", "mask": MASK},
    {"layer": "LSTM", "go_backwards": True},
    {"layer": "GRU", "reset_after": False},
    {"layer": "GRU", "reset_after": True, "mask": MASK},
    {"layer": "GRU", "reset_after": False, "use_bias": False, "go_backwards": True},
]
KERAS = [{**KERAS_DEFAULTS, **config, "seed": 200 + seed} for seed, config in enumerate(KERAS)]


def keras_case(config: dict) -> Case:
    """`keras.layers.SimpleRNN`, `LSTM` or `GRU`; outputs zero where the mask is, and in the order of the input."""
    import keras

    kind, hidden, batch = config["layer"], config["hidden_size"], config["batch"]
    columns = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}[kind] * hidden
    bias = (2, columns) if kind == "GRU" and config["reset_after"] else (columns,)
    shapes = {
        "kernel": (config["input_size"], columns),
        "recurrent_kernel": (hidden, columns),
        "bias": bias,
        "xs": (config["time"], batch, config["input_size"]),
        "h_0": (batch, hidden),
        "c_0": (batch, hidden),
    }
    absent = {"bias": not config["use_bias"], "c_0": kind != "LSTM"}
    inputs = _draw(config, {name: shape for name, shape in shapes.items() if not absent.get(name)}, "float32")

    layer = getattr(keras.layers, kind)(
        hidden, use_bias=config["use_bias"], go_backwards=config["go_backwards"], dtype="float32",
        return_sequences=True, return_state=True, zero_output_for_mask=True,
        **({"reset_after": config["reset_after"]} if kind == "GRU" else {}),
    )  # fmt: skip
    xs = np.swapaxes(inputs["xs"], 0, 1)
    layer.build(xs.shape)
    layer.set_weights([inputs[name] for name in ("kernel", "recurrent_kernel", "bias") if name in inputs])
    mask = None if config["mask"] is None else np.asarray(config["mask"], bool).T
    states = [inputs[name] for name in ("h_0", "c_0") if name in inputs]
    ys, *after = (np.asarray(value) for value in layer(xs, initial_state=states, mask=mask))
    ys = np.swapaxes(ys, 0, 1)
    # Keras gives the outputs of a layer that goes backwards in the order it made them.
    outputs = {"ys": ys[::-1] if config["go_backwards"] else ys, **dict(zip(("h_n", "c_n"), after, strict=False))}
    return {"config": config, "inputs": inputs, "outputs": outputs}


# Files

MAKERS = {"torch": (torch_case, TORCH), "onnx": (onnx_case, ONNX), "keras": (keras_case, KERAS)}
PACKAGES = {"torch": ("torch",), "onnx": ("onnx", "onnxruntime"), "keras": ("keras", "jax")}


def _text(value: Any, indent: int = 0) -> str:
    """JSON with an array on a line."""
    if isinstance(value, np.ndarray):
        # Through its shortest text, which reads back as the same float32.
        value = (value.astype(str).astype(np.float64) if value.dtype == np.float32 else value).tolist()
    if isinstance(value, dict) and indent < 4:
        lines = (f"{' ' * (indent + 1)}{json.dumps(key)}: {_text(v, indent + 1)}" for key, v in value.items())
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    return json.dumps(value)


def write(peer: str) -> Path:
    """The golden file of a peer."""
    maker, configs = MAKERS[peer]
    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES[peer], "numpy")}
    cases = {label(config): maker(config) for config in configs}
    path = HERE / f"{peer}.json"
    path.write_text(_text({"versions": versions, "dtype": DTYPES[peer], "cases": cases}) + "\n")
    return path


def read(peer: str) -> dict[str, Case]:
    """The cases of a golden file by their labels, with NumPy arrays."""
    content = json.loads((HERE / f"{peer}.json").read_text())
    for case in content["cases"].values():
        for part in ("inputs", "outputs", "gradients"):
            if part in case:
                case[part] = {name: np.asarray(value, content["dtype"]) for name, value in case[part].items()}
    return content["cases"]


def label(config: dict) -> str:
    """What a config is, short enough for the name of a test."""
    defaults = {**TORCH_DEFAULTS, **ONNX_DEFAULTS, **KERAS_DEFAULTS}
    kind = next(config[name] for name in ("kind", "op", "layer") if name in config)
    rest = {name: value for name, value in config.items() if name in defaults and value != defaults[name]}
    plain = "-".join(name if name == "mask" else f"{name}={value}" for name, value in rest.items()).replace(" ", "")
    return f"{kind}-{plain}" if plain else kind


if __name__ == "__main__":
    for peer in MAKERS:
        path = write(peer)
        print(f"{path.name}: {path.stat().st_size} bytes")
