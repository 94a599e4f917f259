"""A trained language model in one file, which `jaxrnn.load` reads: networks, parameters, options and alphabet.

    networks, params, about = jaxrnn.load("results/char_lm/model.safetensors", return_metadata=True)

`networks` holds "net" and "read_out", `params` their parameters and the "embedding" `(V, E)`, `about` the options
and the symbol of each token.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open

import jaxrnn
from experiments.command.devices import is_first, wait_for_all
from experiments.command.memory import check_fits
from experiments.command.messages import one_line, shown
from experiments.command.report import whole_file
from experiments.models.functional import Functional
from experiments.models.language import LanguageModel, language_model

FILE = "model.safetensors"
OPTIONS = ("cell", "embedding", "hidden_size", "layers", "dropout")
OPTIONAL = {"num_heads": 1}  # absent from files of earlier versions, and from the options of `poems`


class Saved(NamedTuple):
    """A trained model and its alphabet."""

    model: Functional[LanguageModel]
    params: Any
    symbols: tuple[str, ...]  # of each token


def model_of(symbols: int, options: Mapping[str, Any]) -> Functional[LanguageModel]:
    """The model of a vocabulary; options that are not of a model are ignored."""
    return language_model(symbols, **_of_model(options))


def save_model(folder: Path, script: str, options: Mapping[str, Any], symbols: tuple[str, ...], params: Any) -> None:
    """Writes the parameters of the first seed. If there are several processes, the first writes and all wait.

    Args:
        folder: of the file.
        script: that calls this.
        options: of the model; others are ignored.
        symbols: of each token.
        params: with a first axis of seeds.
    """
    module = model_of(len(symbols), options).bind(jax.tree.map(lambda leaf: leaf[0], params))
    about = {"script": script, "symbols": list(symbols), **_of_model(options)}
    if is_first():
        with whole_file(folder / FILE) as partial:
            jaxrnn.save(partial, _networks_of(module), _trained(module), about)
    wait_for_all("the model is saved")


def _networks_of(module: LanguageModel) -> dict[str, Any]:
    return {"net": module.layers.network, "read_out": module.readout.readout}


def _trained(module: LanguageModel) -> dict[str, Any]:
    embedding = module.embedding.embedding[...]
    return {"embedding": embedding, "net": module.layers.params, "read_out": module.readout.params}


def load_model(folder: Path, script: str) -> Saved:
    """Reads a model that a script wrote into a folder.

    Raises:
        ValueError: in one line, if there is no model, or it is damaged or of another script.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"--model {shown(folder, 200)} holds no {FILE}; train one with: python -m experiments.{script}"
        )
    try:
        return _read_older(path, script) or _read(path, script)
    except Exception as error:  # a damaged file can raise any error in the reader
        what = one_line(f"{type(error).__name__} {error}", 150)
        raise ValueError(f"--model {shown(path, 200)} is damaged, or not of this script: {what}") from error


def _read(path: Path, script: str) -> Saved:
    networks, trained, about = jaxrnn.load(path, return_metadata=True)
    if about["script"] != script:
        raise ValueError(f"it is of {about['script']}")
    model = model_of(len(about["symbols"]), about)
    module = model.bind(_zeros(model))
    if _networks_of(module) != networks:
        raise ValueError("its networks are not those of its options")
    module.embedding.embedding[...] = trained["embedding"]
    module.layers.load(trained["net"])
    module.readout.load(trained["read_out"])
    return Saved(model, nnx.state(module, nnx.Param), tuple(about["symbols"]))


def _zeros(model: Functional[LanguageModel]) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _read_older(path: Path, script: str) -> Saved | None:
    """Of a file as earlier versions wrote them, with a digest; `None` for another one."""
    with safe_open(path, framework="np") as file:
        if script not in (file.metadata() or {}):
            return None
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()[script])
    if about.pop("digest") != _digest(about, arrays):
        raise ValueError("it is not what was saved")
    model = model_of(len(about["symbols"]), about)
    like = jax.eval_shape(model.init, jax.random.key(0))
    leaves = [arrays[name].reshape(leaf.shape) for name, leaf in _named(like).items()]
    return Saved(model, jax.tree.unflatten(jax.tree.structure(like), leaves), tuple(about["symbols"]))


def check_writing(saved: Saved, steps: int, samples: int, options: Sequence[str]) -> None:
    """Raises a `ValueError` in one line if so many samples of so many symbols cannot fit the memory."""
    symbols, logits = 3 * 4 * steps * samples, 4 * len(saved.symbols) * samples  # given, drawn, and copied to NumPy
    check_fits({"symbols": symbols, "probabilities": logits}, options)


def _of_model(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model."""
    return {name: options[name] for name in OPTIONS} | {name: options.get(name, one) for name, one in OPTIONAL.items()}


def _digest(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def _named(params: Any) -> dict[str, Any]:
    """The leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
