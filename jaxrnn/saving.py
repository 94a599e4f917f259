"""Saving and loading: parameters and the configuration of their network in one file."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn import _checks, _files, configuration
from jaxrnn._describe import cut, describe, listed, quote
from jaxrnn._types import CELL_TYPES, AnyCell, Params
from jaxrnn.network import Network

KINDS = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.bool_)


def save(
    path: str | os.PathLike[str],
    network: Network | AnyCell,
    params: Params,
    metadata: Mapping[str, Any] | None = None,
    *,
    params_only: bool = False,
) -> None:
    """Writes parameters and the configuration of their network to one file.

    The file is written beside `path` and moved there when it is complete: if anything fails, an
    existing file stays unchanged.

    Args:
        path: the file, usually `*.safetensors`; an existing one is replaced.
        network: a network from :func:`stack`, or a cell; for a module of `jaxrnn.modules` its
            `network`. The options that it was made with are written, without its initialisers,
            later changes by `_replace`, and the devices of `model_parallel`.
        params: its parameters, real numbers of 8 to 64 bits, whose dtypes are kept; for a module
            its `params`.
        metadata: any other data that JSON can hold: dictionaries with strings for keys, lists,
            strings, finite numbers, booleans, `None`.
        params_only: leaves the configuration out, for a network that cannot be written: one
            with a cell of your own, or a callable activation or merge. :func:`load` then
            needs the network.

    Raises:
        TypeError, ValueError: for params that are not the network's, a network that cannot be
            written, or metadata that JSON would change.
        OSError: if the file cannot be written: a folder, no permission, no space.
        ImportError: without safetensors; `pip install "jaxrnn[interop]"` installs it.

    Example:
        >>> import jax, jaxrnn, os, tempfile
        >>> net = jaxrnn.stack([jaxrnn.lstm(32), jaxrnn.gru(16)], bidirectional=True, dropout=0.1)
        >>> params = net.init(jax.random.key(0), 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "net.safetensors")
        ...     jaxrnn.save(path, net, params, {"epoch": 3})
        ...     net, params, metadata = jaxrnn.load(path, return_metadata=True)
        >>> net.dropout, params[0].forward.w_x.shape, metadata
        (0.1, (8, 128), {'epoch': 3})

    Differs from:
        1. PyTorch: the file is no pickle, and it holds the configuration of the network.
        2. Keras: the file holds no optimiser state; use Orbax for that.
    """
    where, path = "save", _files.checked_path("save", path)
    _check_network(where, network)
    params_only = _checks.boolean(where, "params_only", params_only)
    arrays = _arrays(where, params)
    input_size = _input_size(network, arrays)
    expected = _abstract(network, input_size)
    _compare(where, "params", network, arrays, _named(expected), _hint_of_params(params))
    if jax.tree.structure(params) != jax.tree.structure(expected):
        raise TypeError(
            f"{where}: params expected {describe(expected)}, got {describe(params)}{_hint_of_params(params)}"
        )
    configured = None if params_only else _describe(network)
    plain = {} if metadata is None else _plain(where, metadata)
    _files.write(where, path, _files.Content(arrays, configured, input_size, plain))


def load(
    path: str | os.PathLike[str], network: Network | AnyCell | None = None, *, return_metadata: bool = False
) -> tuple[Any, ...]:
    """Reads what :func:`save` wrote: a network, built from its configuration, and its parameters.

    Everything is checked before anything is returned, and nothing in the file is executed.

    Args:
        path: the file.
        network: the network or cell to load into; `None` builds the one that was saved, with
            the default initialisers. A given one must have the equations of the file and its
            arrays by name and shape; its dropout may differ.
        return_metadata: also return the metadata.

    Returns:
        `(network, params)`, with `return_metadata` also the metadata, a dictionary. The
        params have the dtypes that were saved, and are on the default device.

    Raises:
        ValueError: naming the file and the array or the option: for a file of another kind,
            truncated, corrupted or of a newer version; for arrays or checksums that are missing
            or unexpected, and arrays of a wrong shape or dtype; for unknown cells and options,
            and more layers than the file has arrays; for a file without configuration when no
            network is given, and a network that does not fit.
        TypeError: for something that is not a path, or not a network.
        OSError: if the file cannot be read.
        ImportError: without safetensors; `pip install "jaxrnn[interop]"` installs it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, os, tempfile
        >>> cell = jaxrnn.gru(16, reset_after=False)
        >>> params = cell.init(jax.random.key(0), 8, jnp.bfloat16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "cell.safetensors")
        ...     jaxrnn.save(path, cell, params)
        ...     loaded, params = jaxrnn.load(path)
        >>> loaded, params.w_h.dtype
        (gru(16, reset_after=False), dtype(bfloat16))
    """
    where, path = "load", _files.checked_path("load", path)
    return_metadata = _checks.boolean(where, "return_metadata", return_metadata)
    if network is not None:
        _check_network(where, network)
    saved = _files.read(where, path)
    network = _choose(where, path, saved, network)
    expected = _abstract(network, saved.input_size)
    _compare(where, _files.shown(path), network, saved.arrays, _named(expected))
    leaves = [_to_jax(where, path, name, saved.arrays[name]) for name in _named(expected)]
    params = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    return (network, params, saved.metadata) if return_metadata else (network, params)


# Networks and their parameters


def _named(params: Params) -> dict[str, Any]:
    """The leaves by their paths, such as `0.forward.w_x`; a bare array is `params`."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "params"


def _abstract(network: Network | AnyCell, input_size: int) -> Params:
    return jax.eval_shape(lambda key: network.init(key, input_size), jax.random.key(0))


def _input_size(network: Network | AnyCell, arrays: Mapping[str, np.ndarray]) -> int:
    """The input size of params, read from the first axis whose size depends on it, in any cell."""
    one, two = (_named(_abstract(network, size)) for size in (1, 2))
    for name, array in arrays.items():
        if name not in one or array.ndim != len(one[name].shape):
            continue
        for got, first, second in zip(array.shape, one[name].shape, two[name].shape, strict=True):
            if first != second:
                return max(1, 1 + (got - first) // (second - first))
    return 1


def _compare(
    where: str,
    what: str,
    network: Any,
    given: Mapping[str, np.ndarray],
    expected: Mapping[str, jax.ShapeDtypeStruct],
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


def _arrays(where: str, params: Params) -> dict[str, np.ndarray]:
    """The leaves of params by their paths, which are their names in the file."""
    hint = _hint_of_params(params)
    leaves = _checks.leaves_with_path(where, "params", params)
    named = {_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError(f"{where}: params expected leaves with paths of their own, got {describe(params)}")
    for name in named:
        if name == "__metadata__" or name != name.encode("utf-8", "replace").decode():
            raise ValueError(f"{where}: params expected names that safetensors can hold, got {quote(name)}")
    return {name: _numbers(f"{where}: params: {cut(name, 80)}", leaf, hint) for name, leaf in named.items()}


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


def _to_jax(where: str, path: os.PathLike[str], name: str, array: np.ndarray) -> jax.Array:
    """An array of the file in JAX, in the same dtype."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{where}: {_files.shown(path)}: {cut(name, 80)} is {array.dtype}, "
            "which needs jax.config.update('jax_enable_x64', True)"
        )
    return jnp.array(array)


def _check_network(where: str, network: Any) -> None:
    if not isinstance(network, (Network, *CELL_TYPES)):
        expected = f"{where}: network expected one from jaxrnn.stack, or a cell"
        raise TypeError(f"{expected}, got {describe(network)}{_hint_of_network(where, network)}")
    if not callable(network.init):
        raise TypeError(f"{where}: network expected one with a function init, got {describe(network.init)}")


def _hint_of_network(where: str, given: Any) -> str:
    """What to give instead of what is no network."""
    parts = [name for name in ("network", "cell") if isinstance(_checks.attribute(given, name), (Network, *CELL_TYPES))]
    if parts and _is_of_flax(given):
        return f"; give its `.{parts[0]}`" + (
            " and its `.params`" if where == "save" else ", then call its `load(params)`"
        )
    if any(given is factory for factory in configuration.FACTORIES.values()):
        return f"; call it to make a cell: {given.__name__}(...)"
    return "; make one of the cells with jaxrnn.stack" if isinstance(given, (list, tuple)) else ""


def _hint_of_params(given: Any) -> str:
    return "; of a module give its `.params`" if _is_of_flax(given) else ""


def _is_of_flax(value: Any) -> bool:
    """Whether it is a module or a state of Flax, which is not imported for the question."""
    return any(str(kind.__module__).startswith("flax.") for kind in type(value).__mro__)


def _describe(network: Network | AnyCell) -> Any:
    try:
        return configuration.describe(network)
    except (TypeError, ValueError) as error:
        remedy = "params_only=True saves without it, and load is then given the network"
        raise type(error)(f"save: network: {cut(str(error), 300)}; {remedy}") from error


def _choose(
    where: str, path: os.PathLike[str], saved: _files.Content, network: Network | AnyCell | None
) -> Network | AnyCell:
    """The network of the file, or the given one if it has the same equations."""
    shown = _files.shown(path)
    if saved.configuration is None:
        if network is None:
            raise ValueError(f"{where}: network expected one, got None; {shown} was saved with params_only")
        return network
    try:
        built = configuration.build(saved.configuration, most_layers=len(saved.arrays))  # a layer has an array or more
    except (ValueError, RecursionError) as error:
        remedy = "is it corrupted, or of a newer version of jaxrnn?"
        raise ValueError(f"{where}: {shown}: {cut(str(error), 280)}; {remedy}") from error
    if network is None:
        return built
    given = _equations(network)
    if given is not None and given != _equations(built):
        raise ValueError(
            f"{where}: network expected the equations of {shown}, {cut(repr(built), 100)}, "
            f"got {cut(repr(network), 100)}; load without a network gives params that can go with any"
        )
    return network


def _equations(network: Network | AnyCell) -> Any:
    """The equations of a network as data, or `None` if it cannot be described."""
    try:
        return configuration.equations(configuration.describe(network))
    except (TypeError, ValueError):
        return None


def _plain(where: str, metadata: Any) -> dict[str, Any]:
    """The metadata; raises unless JSON reproduces it unchanged."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"{where}: metadata expected a dictionary, got {describe(metadata)}")
    try:
        plain = dict(metadata)
        again = json.loads(json.dumps(plain, allow_nan=False))
        changed = _changed("metadata", plain, again)
    except Exception as error:  # mappings and values of the user's own may raise anything
        raise TypeError(f"{where}: metadata expected what JSON can hold: {cut(str(error))}") from error
    if changed:
        raise TypeError(f"{where}: {changed}; write tuples as lists, and keys as strings")
    return plain


def _changed(at: str, given: Any, again: Any) -> str | None:
    """The first part of the metadata that JSON gives back as another value."""
    if again == given:
        return None
    if isinstance(given, dict) and isinstance(again, dict) and given.keys() == again.keys():
        parts = [(f"{at}[{quote(name, 40)}]", given[name], again[name]) for name in given]
    elif isinstance(given, list) and isinstance(again, list) and len(given) == len(again):
        parts = [(f"{at}[{k}]", *pair) for k, pair in enumerate(zip(given, again, strict=True))]
    else:
        got = f"{describe(given)}, which it would give back as {describe(again)}"
        return f"{cut(at, 80)} expected what JSON can hold, got {got}"
    return next(filter(None, (_changed(*part) for part in parts)), None)
