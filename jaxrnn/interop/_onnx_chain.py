"""Finds which recurrent operators of a graph are the layers of one stack, and how they are joined."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._describe import cut, quote
from jaxrnn.interop import _onnx_layout as layout
from jaxrnn.interop._onnx_files import Source
from jaxrnn.interop._onnx_graphs import reads
from jaxrnn.interop._onnx_reader import Node
from jaxrnn.interop._onnx_values import LARGEST, Values, ancestors

TIME, BATCH = 5, 3  # of the random numbers, where the model does not fix them
CLOSE = 1e-5  # far below the difference of two random numbers, far above the rounding of float32
CLOSE_HALF = 5e-2  # the same for float16 and bfloat16
LONGEST = 500  # characters of a message

MERGES: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "concat": lambda halves: np.concatenate(halves, axis=-1),
    "sum": lambda halves: halves[0] + halves[1],
    "mul": lambda halves: halves[0] * halves[1],
    "average": lambda halves: (halves[0] + halves[1]) / 2,
}


class Layer(NamedTuple):
    """One operator, or two that read the same input, each in its own direction."""

    nodes: tuple[Node, ...]
    weights: tuple[layout.Weights, ...]  # of each node, all with an axis of directions in front
    projections: tuple[np.ndarray | None, ...]  # (D, H, P)

    @property
    def name(self) -> str:
        return " and ".join(quote(node.name) for node in self.nodes)


class Joined(NamedTuple):
    """How a stack joins directions and layers; `None` where that is not known."""

    merge: str | None
    residual: bool | None


def read_layers(values: Values, nodes: dict[int, Node], weights_of: Callable[[Node], layout.Weights]) -> list[Layer]:
    """Reads the operators in the order of the graph, with random numbers in place of their outputs.

    `nodes` are the operators to read, by their place in the graph.
    """
    scope = values.source.scope
    needed = ancestors(scope.nodes(), (tensor for node in nodes.values() for tensor in node.inputs.values()))
    values.enter(needed)
    time, batch = values.sizes(next(iter(nodes.values())))
    sizes = (time or TIME, batch or BATCH)
    rng = np.random.default_rng(0)
    layers: list[Layer] = []
    for k, proto in enumerate(scope.graph.node):
        if k not in nodes:
            values.follow(proto, needed)
            continue
        node, weights = nodes[k], weights_of(nodes[k])
        if node.output:
            directions, _, hidden = weights.R.shape
            time, batch = sizes if math.prod(sizes) * directions * hidden <= LARGEST // 4 else (TIME, BATCH)
            ys = rng.standard_normal((time, batch, directions, hidden))
            ys = ys.transpose((1, 0, 2, 3) if node.batch_first else (0, 2, 1, 3))
            values.probe(node.output, ys.astype(weights.R.dtype))  # ONNX adds and multiplies equal types only
        layer = Layer((node,), (weights,), (_projection(values, node, weights),))
        if layers and _are_two_directions(layers[-1], node):
            layers[-1] = _with_backward(layers[-1], layer)
        else:
            layers.append(layer)
    return layers


def _are_two_directions(layer: Layer, node: Node) -> bool:
    first = layer.nodes[0]
    same_input = first.inputs["X"] == node.inputs["X"] and first.batch_first == node.batch_first
    return len(layer.nodes) == 1 and same_input and (first.direction, node.direction) == ("forward", "reverse")


def _with_backward(forward: Layer, backward: Layer) -> Layer:
    return Layer(
        nodes=forward.nodes + backward.nodes,
        weights=forward.weights + backward.weights,
        projections=forward.projections + backward.projections,
    )


def _projection(values: Values, node: Node, weights: layout.Weights) -> np.ndarray | None:
    """W_p (D, H, P) of the projection after an operator, if there is one."""
    found = projection_node(values, node, weights)
    return None if found is None else found[1]


def projection_node(values: Values, node: Node, weights: layout.Weights) -> tuple[Any, np.ndarray] | None:
    """The product of Y and W_p (D, H, P), and W_p, if Rᵀ is a product W_p W_h; else `None`."""
    directions, _, hidden = weights.R.shape
    for proto in values.source.graph.node:
        if node.forms[0].op != "LSTM" or proto.op_type != "MatMul" or list(proto.input[:1]) != [node.output]:
            continue
        w_proj = values.constant(proto.input[1]) if len(proto.input) == 2 else None
        if w_proj is None or w_proj.ndim != 3 or w_proj.shape[:2] != (directions, hidden) or w_proj.shape[2] >= hidden:
            continue
        if all(layout.unfold(w, r.T) is not None for w, r in zip(w_proj, weights.R, strict=True)):
            return proto, w_proj
    return None


# How layers are joined


def join(values: Values, layers: list[Layer]) -> Joined:
    """How all layers are joined; raises for operators that are no stack, or that are joined in several ways."""
    known, xs = Joined(None, None), None
    for below, layer in itertools.pairwise(layers):
        target = _input(values, layer)
        ways = [] if target is None else list(_ways(_halves(values, below), target, xs))
        if not ways:
            raise ValueError(_broken(values.source, below, layer))
        fitting = [way for way in ways if _fits(known, way)]
        if not fitting:
            raise ValueError(_different(values.source, layer, known))
        known, xs = _together(known, fitting), target
    ways = [way for array in _last_outputs(values) for way in _ways(_halves(values, layers[-1]), array, xs)]
    fitting = [way for way in ways if _fits(known, way)]
    # Without a residual or a merge the outputs are the operator's own, and later nodes are not part of the stack.
    if not fitting and (known.residual or known.merge not in (None, "concat")) and _is_used(values.source, layers[-1]):
        raise ValueError(_different(values.source, layers[-1], known))
    return _together(known, fitting)


def _input(values: Values, layer: Layer) -> np.ndarray | None:
    """The input of a layer, (T, B, F), if it is computed from outputs of other layers."""
    tensor = layer.nodes[0].inputs["X"]
    xs = values.arrays.get(tensor) if tensor in values.probed else None
    if xs is None or xs.ndim != 3:
        return None
    for node, weights in zip(layer.nodes, layer.weights, strict=True):
        if xs.shape[2] != weights.W.shape[2]:
            raise ValueError(
                f"{values.source.where}: node {quote(node.name)} input W ({quote(node.inputs['W'])}) expected "
                f"{xs.shape[2]} "
                f"columns, as many as features of its input; got {weights.W.shape[2]}"
            )
    return np.swapaxes(xs, 0, 1) if layer.nodes[0].batch_first else xs


def _last_outputs(values: Values) -> Iterator[np.ndarray]:
    """The tensors computed from outputs of operators, each also with T and B swapped, as their order is unknown."""
    for name in values.probed:
        array = values.arrays[name]
        if array.ndim == 3:
            yield array
            yield np.swapaxes(array, 0, 1)


def _is_used(source: Source, layer: Layer) -> bool:
    tensors = {node.output for node in layer.nodes}
    read = {tensor for node in source.graph.node for tensor in reads(node)}
    return bool(tensors & (read | {output.name for output in source.graph.output}))


def _halves(values: Values, layer: Layer) -> list[np.ndarray]:
    """The outputs of each direction, (T, B, ·); none if the model does not use them."""
    halves = []
    for node, w_proj in zip(layer.nodes, layer.projections, strict=True):
        if node.output is None:
            return []
        ys = values.arrays[node.output]
        ys = ys.transpose(2, 1, 0, 3) if node.batch_first else ys.swapaxes(0, 1)  # (D, T, B, H)
        halves += list(ys if w_proj is None else ys @ w_proj[:, None])
    return halves


def _ways(halves: list[np.ndarray], target: np.ndarray, xs: np.ndarray | None) -> Iterator[Joined]:
    """The ways in which `target` follows from a layer's outputs, with or without its input `xs` added to them."""
    if len(halves) == 2:
        equal = halves[0].shape == halves[1].shape
        merged = [(name, merge(halves)) for name, merge in MERGES.items() if equal or name == "concat"]
    else:
        merged = [(None, ys) for ys in halves]
    for name, ys in merged:
        if ys.shape != target.shape:
            continue
        if _close(ys, target):
            yield Joined(name, None if xs is None else False)
        if xs is not None and xs.shape == ys.shape and _close(ys + xs, target):
            yield Joined(name, True)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    tolerance = CLOSE_HALF if b.dtype.itemsize == 2 else CLOSE
    return np.allclose(a.astype(np.float32), b.astype(np.float32), tolerance, tolerance)


def _fits(known: Joined, way: Joined) -> bool:
    return all(None in pair or pair[0] == pair[1] for pair in zip(known, way, strict=True))


def _together(known: Joined, ways: list[Joined]) -> Joined:
    """`known`, completed by one of the ways: the last one with a residual, else the last one."""
    way = max(reversed(ways), key=lambda way: bool(way.residual), default=Joined(None, None))
    return Joined(
        merge=way.merge if known.merge is None else known.merge,
        residual=way.residual if known.residual is None else known.residual,
    )


def _different(source: Source, layer: Layer, known: Joined) -> str:
    text = (
        f"{source.where}: node {layer.name} expected merge={known.merge or 'concat'!r} and "
        f"residual={bool(known.residual)} around it, as in the layers below; a stack joins all "
        f"its layers in one way. Read it apart, by nodes={quote(layer.nodes[0].name)}"
    )
    return cut(text, LONGEST)


def _broken(source: Source, below: Layer, layer: Layer) -> str:
    tensor = layer.nodes[0].inputs["X"]
    makers = (node for node in source.graph.node if tensor in node.output)
    origin = next((f"{cut(node.op_type, 40)} {quote(node.name)}" for node in makers), "outside the graph")
    text = (
        f"{source.where}: node {layer.name} expected to read the outputs of {below.name}, as layers of a stack do; "
        f"its input {quote(tensor)} comes from {origin}. Read them apart, by nodes={quote(below.nodes[0].name)} "
        f"and nodes={quote(layer.nodes[0].name)}"
    )
    return cut(text, LONGEST)
