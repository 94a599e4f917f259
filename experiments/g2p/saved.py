"""A trained model in one file, which `jaxrnn.load` reads: networks, parameters and options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import jaxrnn
from experiments.command.devices import is_first, wait_for_all
from experiments.command.messages import one_line, shown
from experiments.command.report import whole_file
from experiments.g2p.model import OPTIONS, Model, Params, init, model_of

FILE = "model.safetensors"


def _networks_of(model: Model) -> dict[str, Any]:
    return {"encoder": model.encoder, "decoder": model.decoder, "read_out": model.read_out}


def save_model(folder: Path, options: Mapping[str, Any], params: Any) -> None:
    """Writes the parameters of the first seed. If there are several processes, the first writes and all wait."""
    about = {"script": "g2p", **{name: options[name] for name in OPTIONS}}
    if is_first():
        with whole_file(folder / FILE) as partial:
            own = jax.tree.map(lambda leaf: leaf[0], params)
            jaxrnn.save(partial, _networks_of(model_of(options)), own, about)
    wait_for_all("the model is saved")


def load_model(folder: Path) -> tuple[Model, Params]:
    """Reads a model that this script wrote into a folder.

    Raises:
        ValueError: in one line, if there is no model, or it is damaged or of another script.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"--model {shown(folder, 200)} holds no {FILE}; train one with: python -m experiments.g2p")
    try:
        networks, params, about = jaxrnn.load(path, return_metadata=True)
        if about["script"] != "g2p":
            raise ValueError(f"it is of {about['script']}")
        model = model_of(about)
        if _networks_of(model) != networks:
            raise ValueError("its networks are not those of its options")
        like = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
        if jax.tree.map(lambda leaf: leaf.shape, params) != jax.tree.map(lambda leaf: leaf.shape, like):
            raise ValueError("its parameters are not those of its options")
    except Exception as error:  # a damaged file can raise any error in the reader
        what = one_line(f"{type(error).__name__} {error}", 150)
        raise ValueError(f"--model {shown(path, 200)} is damaged, or not of this script: {what}") from error
    return model, params
