"""The graphs of a model: the outermost one, those inside `If`, `Loop` and `Scan`, and those of functions.

A path names an operator inside them: "If_0.then_branch/lstm" is the operator `lstm` of the graph that the operator
`If_0` holds as its attribute `then_branch`. An operator of the outermost graph has its name as its path. One without
a name is called by its first output.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxrnn._describe import quote

if TYPE_CHECKING:
    import onnx

Step = tuple[int, int, int]  # from a graph to one inside it: the node, its attribute, and the graph there


class Scope(NamedTuple):
    """A graph with those around it, whose tensors it reads."""

    graphs: tuple[Any, ...]  # from the outermost one to this one
    paths: tuple[str, ...]  # of each of them, in front of the names of its operators
    steps: tuple[Step, ...]  # from each of them to the next
    function: str = ""  # the name of the function that it is in

    @property
    def graph(self) -> Any:
        return self.graphs[-1]

    @property
    def path(self) -> str:
        return self.paths[-1]

    def name(self, place: int) -> str:
        """The path of the operator at this place in the graph."""
        return self.path + name_of(self.graph.node[place], place)

    def nodes(self) -> "Iterator[onnx.NodeProto]":
        """The nodes that run before or in the graph, in their order."""
        for graph, (place, *_) in zip(self.graphs, self.steps, strict=False):
            yield from graph.node[:place]
        yield from self.graph.node


def outermost(model: "onnx.ModelProto") -> Scope:
    return Scope((model.graph,), ("",), ())


def scopes(model: "onnx.ModelProto") -> Iterator[Scope]:
    """Every graph of a model, each before those inside it, and then those of its functions."""
    yield from _below(outermost(model))
    for function in model.functions:
        path = f"{function.domain}.{function.name}".strip(".") or "function"
        yield from _below(Scope((function,), (f"{path}/",), (), path))


def _below(scope: Scope) -> Iterator[Scope]:
    yield scope
    for place, node in enumerate(scope.graph.node):
        for step, graph in graphs_of(node):
            attribute = node.attribute[step[0]]
            number = "" if attribute.HasField("g") else f"[{step[1]}]"
            path = f"{scope.name(place)}.{attribute.name}{number}/"
            inner = Scope((*scope.graphs, graph), (*scope.paths, path), (*scope.steps, (place, *step)), scope.function)
            yield from _below(inner)


def graphs_of(node: "onnx.NodeProto") -> Iterator[tuple[tuple[int, int], Any]]:
    """The graphs inside a node, each with the places of its attribute and of itself in it."""
    for k, attribute in enumerate(node.attribute):
        if attribute.HasField("g"):
            yield (k, 0), attribute.g
        else:
            for j, graph in enumerate(attribute.graphs):
                yield (k, j), graph


def follow_steps(graph: Any, steps: Iterable[Step]) -> Iterator[Any]:
    """A graph, and those that the steps lead to, one inside another."""
    yield graph
    for place, k, j in steps:
        attribute = graph.node[place].attribute[k]
        graph = attribute.g if attribute.HasField("g") else attribute.graphs[j]
        yield graph


def name_of(node: "onnx.NodeProto", place: int) -> str:
    """The name of a node, or that of its first output if it has none."""
    return node.name or next(filter(None, node.output), f"{node.op_type} {place}")


def reads(node: "onnx.NodeProto") -> Iterator[str]:
    """The tensors that a node reads, those that graphs inside it read of the graphs around them included."""
    yield from node.input
    for _, graph in graphs_of(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (value.name for value in graph.output)


def listed_paths(paths: Iterable[str], room: int = 230) -> str:
    """Paths in a message, in full as long as there is room, so that they can be given to `nodes`."""
    paths = list(paths)
    words: list[str] = []
    for path in paths:
        word = quote(path, 160)
        if words and sum(map(len, words)) + len(word) > room:
            break
        words.append(word)
    more = len(paths) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")
