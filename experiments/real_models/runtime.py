"""ONNX models: their weights, and ONNX Runtime on one core. Both packages are imported on first use."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

PACKAGES = ("onnx", "onnxruntime")


def check_installed() -> None:
    """Raises a `ValueError` that says how to install what is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"needs {' and '.join(missing)}, the models' own engine: pip install {' '.join(missing)}")


def session_of(content: bytes) -> Any:
    """A session of a model that runs on the CPU, by one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def constants_of(content: bytes, prefix: str = "") -> dict[str, np.ndarray]:
    """The initialisers and constants of a model by the names of their tensors, those of inner graphs included.

    Args:
        content: of the file.
        prefix: of the names that are wanted; it is left out.
    """
    import onnx
    from onnx import numpy_helper

    def walk(graph: Any) -> Iterator[tuple[str, Any]]:
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from walk(attribute.g)
                elif node.op_type == "Constant" and attribute.name == "value":
                    yield node.output[0], attribute.t

    found = walk(onnx.load_model_from_string(content).graph)
    return {
        name.removeprefix(prefix): numpy_helper.to_array(tensor) for name, tensor in found if name.startswith(prefix)
    }
