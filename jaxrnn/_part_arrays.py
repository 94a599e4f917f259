"""The arrays of a tree of networks, by the names that they have in a file."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn import _checks, _files
from jaxrnn._describe import cut, describe, listed, quote
from jaxrnn._parts import Node, hint_of_params
from jaxrnn._types import Params

KINDS = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.bool_)


def walk(node: Node) -> Iterator[Node]:
    """All nodes that hold no others."""
    if node.children is None:
        yield node
    for child in (node.children or {}).values():
        yield from walk(child)


def with_input_sizes(node: Node, arrays: Mapping[str, np.ndarray]) -> Node:
    """The tree with the input sizes of its networks, which the shapes of their parameters tell."""
    if node.kind == "network":
        return node._replace(input_size=_input_size(node, arrays))
    if node.children is None:
        return node
    return node._replace(children={name: with_input_sizes(child, arrays) for name, child in node.children.items()})


def expected(node: Node, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The shapes of all arrays by their names; those beside the networks have any."""
    found: dict[str, Any] = {}
    for leaf in walk(node):
        if leaf.kind == "network":
            found |= _named_of(leaf, leaf.input_size)
        elif leaf.kind == "array":
            name = leaf.path or "params"
            found[name] = arrays.get(name, jax.ShapeDtypeStruct((), jnp.float32))
    return found


def assemble(node: Node, leaves: Mapping[str, Any]) -> Any:
    """The tree of params from arrays by their names."""
    if node.kind == "network":
        abstract = _abstract(node.network, node.input_size)
        own = [leaves[name] for name in _named_of(node, node.input_size)]
        return jax.tree.unflatten(jax.tree.structure(abstract), own)
    if node.children is None:
        return None if node.kind == "none" else leaves[node.path or "params"]
    inner = {name: assemble(child, leaves) for name, child in node.children.items()}
    return inner if node.kind == "dict" else (list if node.kind == "list" else tuple)(inner.values())


def _name(at: str, path: Any) -> str:
    """The name of an array at a path below a place, such as `0.forward.w_x`; a bare array is `params`."""
    return ".".join(filter(None, (at, jax.tree_util.keystr(path, simple=True, separator=".")))) or "params"


def _named_of(node: Node, input_size: int) -> dict[str, Any]:
    """The shapes of a network's parameters by their names."""
    leaves = jax.tree.leaves_with_path(_abstract(node.network, input_size))
    return {_name(node.path, path): leaf for path, leaf in leaves}


def _abstract(network: Any, input_size: int) -> Params:
    return jax.eval_shape(lambda key: network.init(key, input_size), jax.random.key(0))


def _input_size(node: Node, arrays: Mapping[str, np.ndarray]) -> int:
    """The input size of params, read from the first axis whose size depends on it, in any cell."""
    one, two = (_named_of(node, size) for size in (1, 2))
    for name, first_shape in one.items():
        array = arrays.get(name)
        if array is None or array.ndim != len(first_shape.shape):
            continue
        for got, first, second in zip(array.shape, first_shape.shape, two[name].shape, strict=True):
            if first != second:
                return max(1, 1 + (got - first) // (second - first))
    return 1


def arrays_in(where: str, params: Params) -> dict[str, np.ndarray]:
    """The leaves of params by their paths, which are their names in the file."""
    hint = hint_of_params(params)
    leaves = _checks.leaves_with_path(where, "params", params)
    found = {_name("", path): leaf for path, leaf in leaves}
    if len(found) != len(leaves):
        raise ValueError(f"{where}: params expected leaves with paths of their own, got {describe(params)}")
    for name in found:
        if name == "__metadata__" or name != name.encode("utf-8", "replace").decode():
            raise ValueError(f"{where}: params expected names that safetensors can hold, got {quote(name)}")
    return {name: _numbers(f"{where}: params: {cut(name, 80)}", leaf, hint) for name, leaf in found.items()}


def _numbers(where: str, leaf: Any, hint: str) -> np.ndarray:
    """A leaf of params as a row-major NumPy array."""
    if isinstance(leaf, Tracer):
        raise TypeError(f"{where} expected numbers, got a traced array; save outside of jit and grad")
    if not _checks.is_array(leaf):
        raise TypeError(f"{where} expected an array, got {describe(leaf)}{hint}")
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{where} expected an array, got a masked one; fill it first")
    if not any(leaf.dtype == dtype for dtype in _files.DTYPES.values()):
        raise TypeError(f"{where} expected real numbers of 8 to 64 bits, got {describe(leaf)}{hint}")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(f"{where} expected numbers, got a deleted array; was it donated to a compiled function?")
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(
            f"{where} expected an array on devices of this process, got one on those of several; "
            "gather it with jax.experimental.multihost_utils.process_allgather"
        )
    return np.asarray(leaf, order="C")


def compare(
    where: str,
    what: str,
    network: Any,
    given: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    hint: str = "",
) -> None:
    """Raises unless `given` has the names and shapes of `expected`, and numbers of the same kind."""
    where = f"{where}: {what}"
    remedy = hint or f"; is it of another network than {cut(repr(network), 100)}?"
    missing = [name for name in expected if name not in given]
    if missing:
        raise ValueError(f"{where}: expected arrays {cut(listed(missing))}, got none{remedy}")
    extra = [name for name in given if name not in expected]
    if extra:
        raise ValueError(f"{where}: expected no arrays {cut(listed(extra))}, got them{remedy}")
    for name, want in expected.items():
        got, name = given[name], cut(name, 80)
        if tuple(got.shape) != tuple(want.shape):
            raise ValueError(f"{where}: {name} expected shape {tuple(want.shape)}, got {tuple(got.shape)}{remedy}")
        if not any(jnp.issubdtype(got.dtype, kind) and jnp.issubdtype(want.dtype, kind) for kind in KINDS):
            raise ValueError(f"{where}: {name} expected numbers like {want.dtype}, got {got.dtype}")


def to_jax(where: str, path: os.PathLike[str], name: str, array: np.ndarray) -> jax.Array:
    """An array of the file in JAX, in the same dtype."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{where}: {_files.shown(path)}: {cut(name, 80)} is {array.dtype}, "
            "which needs jax.config.update('jax_enable_x64', True)"
        )
    return jnp.array(array)
