"""What a model without recurrent operators has instead, for the message that refuses it."""

import re
from collections.abc import Iterator
from typing import Any

from jaxrnn._describe import cut, quote
from jaxrnn.interop._onnx_files import Source
from jaxrnn.interop._onnx_graphs import Scope, scopes
from jaxrnn.interop._onnx_reader import recurrent_nodes

LONGEST = 500  # characters of a message
OF_TORCH = re.compile(r"(.*?)\.?weight_(?:ih|hh)(?:_l\d+(?:_reverse)?)?")
RECURRENT = re.compile("LSTM|GRU|RNN")


def without_operators(source: Source) -> str:
    """Says that there is no operator to read, what is there instead, and what to do."""
    every = list(scopes(source.model))
    count = sum(len(scope.graph.node) for scope in every)
    text = f"{source.where}: {source.label} expected an operator RNN, LSTM or GRU, got none among {count} nodes"
    for hint in _hints(source, every):
        if len(text) + len(hint) + 2 <= LONGEST:
            text += f"; {hint}"
    return text


def _hints(source: Source, every: list[Scope]) -> Iterator[str]:
    inside = [one for one in recurrent_nodes(source.model) if one.scope.function]
    if inside:
        yield (
            f"{inside[0].proto.op_type} {quote(inside[0].path, 60)} is in a function: read "
            "onnx.inliner.inline_local_functions(model), in which it is a node of the graph"
        )
    yield from _foreign(every)
    yield from _torch_weights(every)
    yield from _written_out(every)


def _foreign(every: list[Scope]) -> Iterator[str]:
    """Operators with such a name in another domain."""
    for scope in every:
        for place, node in enumerate(scope.graph.node):
            if RECURRENT.search(node.op_type) and node.domain not in ("", "ai.onnx"):
                name, domain = quote(scope.name(place), 60), quote(node.domain, 40)
                yield f"{cut(node.op_type, 40)} {name} of the domain {domain} is not one that is read"
                return


def _torch_weights(every: list[Scope]) -> Iterator[str]:
    """Initialisers with the names that PyTorch gives weights."""
    found: dict[str, str] = {}
    for scope in every:
        graph: Any = scope.graph
        for name in [tensor.name for tensor in graph.initializer] if hasattr(graph, "initializer") else []:
            match = OF_TORCH.fullmatch(name)
            if match:
                found.setdefault(match[1], name)
    if found:
        prefix, *others = (quote(prefix, 60) for prefix in list(found)[:2])
        other = f", or prefix={others[0]}" if others else ""
        yield (
            f"its initialisers, such as {quote(next(iter(found.values())), 60)}, have PyTorch's names: try from_torch("
            f"{{t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}}, prefix={prefix}){other}"
        )


def _written_out(every: list[Scope]) -> Iterator[str]:
    """Cells written as products and activations."""
    for scope in every:
        ops = [node.op_type for node in scope.graph.node]
        product = next((op for op in ("Gemm", "MatMul") if op in ops), None)
        if product is None or "Tanh" not in ops:
            continue
        words = f"{product}{', Sigmoid' if 'Sigmoid' in ops else ''} and Tanh"
        outer = _loop(scope)
        if outer:
            yield f"{outer} over {words} is not converted: export with RNN, LSTM or GRU, or give a cell its weights"
            return
        if ops.count("Sigmoid") >= 2 and "Mul" in ops:
            at = f"in {quote(scope.path.rstrip('/'), 60)}" if scope.path else "of the model"
            yield f"{words} {at} may be a cell written out, which is not converted"
            return


def _loop(scope: Scope) -> str:
    """The `Loop` or `Scan` around a graph, with its path."""
    for k in reversed(range(len(scope.steps))):
        place = scope.steps[k][0]
        node = scope.graphs[k].node[place]
        if node.op_type in ("Loop", "Scan"):
            outer = scope._replace(graphs=scope.graphs[: k + 1], paths=scope.paths[: k + 1])
            return f"{node.op_type} {quote(outer.name(place), 60)}"
    return ""
