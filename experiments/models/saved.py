"""A trained language model in one file: its parameters, its options and its alphabet, in safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from experiments.command.devices import is_first, wait_for_all
from experiments.command.report import whole_file
from experiments.models.functional import Functional
from experiments.models.language import LanguageModel, language_model

FILE = "model.safetensors"
OPTIONS = ("cell", "embedding", "hidden_size", "layers", "dropout")


class Saved(NamedTuple):
    """A model that was trained, and what its numbers mean."""

    model: Functional[LanguageModel]
    params: Any
    symbols: tuple[str, ...]


def model_of(symbols: int, options: Mapping[str, Any]) -> Functional[LanguageModel]:
    """The model of a vocabulary; of the options, those that are not a model's are left out."""
    return language_model(symbols, **{name: options[name] for name in OPTIONS})


def save_model(folder: Path, script: str, options: Mapping[str, Any], symbols: tuple[str, ...], params: Any) -> None:
    """Writes the first of a population; of several processes the first writes, and all wait for it.

    Args:
        folder: where the file goes.
        script: which wrote it.
        options: those of the model, and others, which are left out.
        symbols: what each number stands for.
        params: with an axis of seeds.
    """
    # safetensors takes the bytes as they lie; a compiled function may hand out a transposed layout.
    arrays = {name: np.ascontiguousarray(leaf[0]) for name, leaf in _named(params).items()}
    about = {"symbols": list(symbols), **{name: options[name] for name in OPTIONS}}
    if is_first():
        with whole_file(folder / FILE) as partial:
            save_file(arrays, partial, {script: json.dumps(about)})
    wait_for_all("the model is saved")


def load_model(folder: Path, script: str) -> Saved:
    """Reads what a script wrote into a folder.

    Raises:
        ValueError: in one line, if there is none, it is damaged, or another script's.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"--model {folder} holds no {FILE}; train one with: python -m experiments.{script}")
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(file.metadata()[script])
        model = model_of(len(about["symbols"]), about)
        like = jax.eval_shape(model.init, jax.random.key(0))
        leaves = [arrays[name].reshape(leaf.shape) for name, leaf in _named(like).items()]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--model {path} is damaged, or not of this script: {type(error).__name__} {error}") from error
    return Saved(model, jax.tree.unflatten(jax.tree.structure(like), leaves), tuple(about["symbols"]))


def _named(params: Any) -> dict[str, Any]:
    """Leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
