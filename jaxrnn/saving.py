"""Saving and loading: parameters and the configuration of their network in one file."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax

from jaxrnn import _checks, _files
from jaxrnn import _part_arrays as held
from jaxrnn import _parts as parts
from jaxrnn._describe import cut, describe, quote
from jaxrnn._types import CELL_TYPES, Params
from jaxrnn.network import Network

Networks = parts.Part | Mapping[str, Any]


def save(
    path: str | os.PathLike[str],
    network: Networks,
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
        network: a network from :func:`stack`, a cell, or a read-out from :func:`readout`; for a module of
            `jaxrnn.modules` its `network`. Of a larger model, a dictionary of them by name, which may hold
            dictionaries, lists and tuples of them. The options that they were made with are written, without
            initialisers, later changes by `_replace`, and the devices of `model_parallel`.
        params: its parameters, real numbers of 8 to 64 bits, whose dtypes are kept; for a module
            its `params`. For a dictionary of networks, a dictionary with the parameters of each by the same
            name, and beside them arrays, such as an embedding, in dictionaries, lists and tuples.
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
        >>> read = jaxrnn.readout(10, activation="softmax")
        >>> trained = {"net": params, "read": read.init(jax.random.key(1), 32), "embedding": jax.numpy.ones((5, 8))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     jaxrnn.save(path, {"net": net, "read": read}, trained)
        ...     model, trained = jaxrnn.load(path)
        >>> model["read"], sorted(trained)
        (readout(10, activation='softmax'), ['embedding', 'net', 'read'])

    Differs from:
        1. PyTorch: the file is no pickle, and it holds the configuration of the network.
        2. Keras: the file holds no optimiser state; use Orbax for that.
    """
    where, path = "save", _files.checked_path("save", path)
    tree, hint = parts.split(where, network, params), parts.hint_of_params(params)
    params_only = _checks.boolean(where, "params_only", params_only)
    arrays = held.arrays_in(where, params)
    tree = held.with_input_sizes(tree, arrays)
    wanted = held.expected(tree, arrays)
    held.compare(where, "params", network, arrays, wanted, hint)
    like = held.assemble(tree, wanted)
    if jax.tree.structure(params) != jax.tree.structure(like):
        raise TypeError(f"{where}: params expected {describe(like)}, got {describe(params)}{hint}")
    configured = parts.describe_node(tree, params_only)
    plain = {} if metadata is None else _plain(where, metadata)
    one = isinstance(network, (Network, *CELL_TYPES))
    layout = (1, configured["network"], tree.input_size) if one else (2, configured, None)
    _files.write(where, path, _files.Content(arrays, *layout, plain))


def load(
    path: str | os.PathLike[str], network: Networks | None = None, *, return_metadata: bool = False
) -> tuple[Any, ...]:
    """Reads what :func:`save` wrote: a network, built from its configuration, and its parameters.

    Everything is checked before anything is returned, and nothing in the file is executed.

    Args:
        path: the file.
        network: the network, cell or read-out to load into; `None` builds the one that was saved, with
            the default initialisers. A given one must have the equations of the file and its
            arrays by name and shape; its dropout may differ. Of several, a dictionary by name, as was
            saved; those that it lacks are built.
        return_metadata: also return the metadata.

    Returns:
        `(network, params)`, with `return_metadata` also the metadata, a dictionary. Of several networks, the
        dictionary of them, and that of the parameters and the arrays beside them, as they were saved. The
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
        parts.check_network(where, network)
    saved = _files.read(where, path)
    tree = parts.build(where, _files.shown(path), saved, network)
    network, wanted = parts.networks_in(tree), held.expected(tree, saved.arrays)
    held.compare(where, _files.shown(path), network, saved.arrays, wanted)
    params = held.assemble(tree, {name: held.to_jax(where, path, name, saved.arrays[name]) for name in wanted})
    return (network, params, saved.metadata) if return_metadata else (network, params)


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
