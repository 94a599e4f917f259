"""Every public function of `jaxrnn.interop` with an odd value for one of its arguments."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrnn import interop
from tests.support.fuzzing.answers import Attempt
from tests.support.fuzzing.values import ODD
from tests.support.fuzzing.weights import BASES, CELLS, RECORDS, H, I

# ---- arguments


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public function of `jaxrnn.interop` with arguments that it accepts, by their names."""
    weights = {
        name: BASES[name].weights
        for name in ("torch lstm", "keras gru", "nnx lstm", "linen gru", "haiku gru", "equinox gru")
    }
    flat_array = np.ones(interop.to_cudnn(RECORDS["layers"]).size, np.float32)
    model = interop.to_onnx(CELLS["gru"], RECORDS["gru"])
    record = {"params": RECORDS["lstm"]}
    return {
        "from_torch": (interop.from_torch, {"state_dict": weights["torch lstm"], "prefix": "", "kind": None}),
        "from_keras": (interop.from_keras, {"weights": weights["keras gru"], "prefix": "", "config": None}),
        "from_nnx": (interop.from_nnx, {"weights": weights["nnx lstm"], "prefix": ""}),
        "from_linen": (interop.from_linen, {"variables": weights["linen gru"], "prefix": ""}),
        "from_haiku": (interop.from_haiku, {"params": weights["haiku gru"], "prefix": ""}),
        "from_equinox": (interop.from_equinox, {"weights": weights["equinox gru"], "prefix": ""}),
        "from_cudnn": (interop.from_cudnn, {"flat": flat_array, "input_size": I, "hidden_size": H, "num_layers": 2, "bidirectional": False, "kind": "lstm"}),
        "from_onnx": (interop.from_onnx, {"model": model, "nodes": None, "weights": None, "reverse": False}),
        "onnx_recurrent": (interop.onnx_recurrent, {"model": model}),
        "to_torch": (interop.to_torch, {**record, "prefix": ""}),
        "to_keras": (interop.to_keras, {**record, "prefix": ""}),
        "to_nnx": (interop.to_nnx, {**record, "optimized": False}),
        "to_linen": (interop.to_linen, record),
        "to_haiku": (interop.to_haiku, {**record, "prefix": ""}),
        "to_equinox": (interop.to_equinox, {**record, "prefix": ""}),
        "to_cudnn": (interop.to_cudnn, record),
        "to_onnx": (interop.to_onnx, {
            "network": CELLS["gru"], "params": RECORDS["gru"], "path": None, "lengths": False, "initial_state": "zeros",
            "batch_first": False, "reverse": False, "names": None, "opset": 17,
        }),
        "to_onnx into": (interop.to_onnx, {
            "network": CELLS["gru"], "params": RECORDS["gru"], "path": None, "reverse": False, "into": model, "nodes": None,
        }),
        "read": (interop.read, {"path": "nowhere"}),
    }  # fmt: skip


CALLS = calls()


def odd_argument(rng: np.random.Generator) -> Attempt:
    """A call with one argument replaced by an odd value."""
    where = str(rng.choice(list(CALLS)))
    _, arguments = CALLS[where]
    name, odd = str(rng.choice(list(arguments))), str(rng.choice(list(ODD)))
    return attempt_with(where, name, odd)


def attempt_with(where: str, name: str, odd: str) -> Attempt:
    """The call of a function with the argument `name` replaced by an odd value."""
    function, arguments = CALLS[where]
    names: tuple[str, ...] = (name, "params") if name == "network" else (name,)  # those of another cell
    if name in ("path", "model", "into"):
        names = ("a path", "path", "model", "file")
    if name in ("state_dict", "weights", "variables", "params"):
        names = (name, "entry", "names", *(("a path", "path", "file") if where == "from_keras" else ()))
    return Attempt(
        f"{where}({name}={odd})", where.split()[0], names, lambda: function(**{**arguments, name: ODD[odd]()})
    )
