"""Files as Keras writes them, made without Keras: of Keras 2 (`.h5`) and of Keras 3 (`.keras`)."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

GATES = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}


def options(kind: str, name: str = "", units: int = 4, **given: Any) -> dict[str, Any]:
    """The options of a layer that its outputs depend on."""
    own: dict[str, Any] = {"name": name or kind.lower(), "units": units, "activation": "tanh", "use_bias": True}
    own |= {"return_sequences": True, "go_backwards": False}
    if kind != "SimpleRNN":
        own["recurrent_activation"] = "sigmoid"
    if kind == "LSTM":
        own["unit_forget_bias"] = True
    if kind == "GRU":
        own["reset_after"] = True
    return own | given


def layer(kind: str, name: str = "", **given: Any) -> dict[str, Any]:
    """A recurrent layer, or another one, in the configuration of a model."""
    own = options(kind, name, **given) if kind in GATES else {"name": name or kind.lower(), **given}
    return {"class_name": kind, "config": own}


def sequential(*layers: Mapping[str, Any], name: str = "model") -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": name, "layers": list(layers)}}


def arrays_of(kind: str, input_size: int = 3, units: int = 4, seed: int = 0, biases: bool = True) -> dict[str, Any]:
    """The weights of a cell by the last parts of their names."""
    columns, rng = GATES[kind] * units, np.random.default_rng(seed)
    shapes = {"kernel": (input_size, columns), "recurrent_kernel": (units, columns)}
    shapes |= {"bias": (2, columns) if kind == "GRU" else (columns,)} if biases else {}
    return {name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()}


def old_file(path: Path, config: Any, weights: Mapping[str, Mapping[str, Any]], version: str = "2.4.0") -> Path:
    """An `.h5` of Keras 2: by layer, arrays by their full names."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, own in weights.items():
            below = group.create_group(name)
            below.attrs["weight_names"] = [path.encode() for path in own]
            for path_of, array in own.items():
                below.create_dataset(path_of, data=array)
    return path


def new_file(path: Path, config: Any, places: Mapping[str, Mapping[str, Any]], version: str = "3.8.0") -> Path:
    """A `.keras` of Keras 3: by the place of a cell, its arrays in order."""
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        for place, own in places.items():
            group = file.create_group(f"{place}/vars")
            for k, array in enumerate(own.values()):
                group.create_dataset(str(k), data=array)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("model.weights.h5", held.getvalue())
    return path


def lstm_file(path: Path) -> Path:
    """A small file of either kind, of one LSTM."""
    config, arrays = sequential(layer("LSTM")), arrays_of("LSTM")
    if path.suffix == ".h5":
        return old_file(path, config, {"lstm": {f"lstm/lstm_cell/{name}:0": a for name, a in arrays.items()}})
    return new_file(path, config, {"layers/lstm/cell": arrays})
