"""The recurrent layers in a configuration of Keras: plain data, of which nothing is executed."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrnn._describe import cut, describe, listed, quote
from jaxrnn.interop._keras_activations import is_of_keras
from jaxrnn.interop._mappings import DEEPEST, said

LAYERS = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
CELLS = {"SimpleRNNCell": "rnn", "LSTMCell": "lstm", "GRUCell": "gru"}
RECURRENT = (*LAYERS, *CELLS, "RNN", "Bidirectional", "StackedRNNCells")
MODELS = ("Sequential", "Functional", "Model")
# What computes nothing in inference, or only a mask, which `unroll` is given.
PASSIVE = ("InputLayer", "Masking", "Dropout", "SpatialDropout1D", "GaussianNoise", "ActivityRegularization")


class Entry(NamedTuple):
    """A layer in a configuration, models opened."""

    names: tuple[str, ...]  # of the models around it below the outermost, and its own
    kind: str  # Keras's name of its class
    options: Mapping[str, Any]
    stored: str  # its path in a file of weights of Keras 3, below the outermost model
    parents: tuple[str, ...]  # the kinds of the models around it, the outermost first
    inbound: Any  # of a functional model, what calls the layer

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{cut(self.kind, 40)} {quote(self.path, 60)}" if self.names else cut(self.kind, 40)

    @property
    def path(self) -> str:
        return "/".join(self.names)


class Configuration(NamedTuple):
    """A configuration of a layer or a model."""

    where: str  # the function, for messages
    name: str  # of the layer or the model
    is_model: bool
    entries: tuple[Entry, ...]
    major: int | None  # the first number of Keras's version, if it tells


def read_config(where: str, config: Any, kind: str | None = None, version: str | None = None) -> Configuration:
    """A configuration: `get_config()` of a layer, a cell or a model, or with `class_name` around it.

    Args:
        where: the function, for messages.
        config: the configuration.
        kind: the class of which it is, if that is known.
        version: of Keras, if that is known.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: config expected a configuration of Keras, a dictionary, got {describe(config)}")
    try:
        config = _plain(config)
    except Exception as error:  # mappings of the user's own may raise anything
        raise ValueError(f"{where}: config expected a dictionary that can be read, got {said(error)}") from error
    version = config.get("keras_version", version)
    if "class_name" in config and "config" in config:
        _check_own(where, config)
        kind, config = config["class_name"], config["config"]
    if isinstance(config, Mapping):
        version = config.get("keras_version", version)
        kind = kind or _kind_of(where, config)
    options: Any = config if isinstance(config, Mapping) else {}
    name = options.get("name")
    is_model = kind in MODELS
    if is_model:
        entries = tuple(_walk(where, (str(kind),), config, (), ""))
    else:
        entries = (Entry((), _text(where, "class_name", kind), options, "", (), None),)
    if version is not None and not (isinstance(version, str) and re.match(r"\d{1,4}\.", version)):
        raise ValueError(f"{where}: keras_version expected a text such as '2.15.0', got {describe(version)}")
    major = int(version.split(".")[0]) if version else _major_of([entry.options for entry in entries])
    return Configuration(where, name if isinstance(name, str) else "", is_model, entries, major)


def _plain(value: Any) -> Any:
    """A copy in dictionaries and lists."""
    if isinstance(value, Mapping):
        return {name: _plain(value[name]) for name in value}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _kind_of(where: str, options: Mapping[str, Any]) -> str:
    """The class of what `get_config()` returned, by its entries."""
    if "layers" in options:
        return "Functional" if "input_layers" in options else "Sequential"
    if "layer" in options and "merge_mode" in options:
        return "Bidirectional"
    if "cells" in options:
        return "StackedRNNCells"
    if "cell" in options:
        return "RNN"
    end = "" if "return_sequences" in options or "go_backwards" in options else "Cell"
    if "units" in options and "activation" in options:
        if "reset_after" in options:
            return "GRU" + end
        if "unit_forget_bias" in options:
            return "LSTM" + end
        if "recurrent_activation" not in options and "recurrent_initializer" in options:
            return "SimpleRNN" + end
    raise ValueError(
        f"{where}: config expected the configuration of a recurrent layer or of a model, got one with the entries "
        f"{cut(listed(options), 160)}; of an older GRU give {{'class_name': 'GRU', 'config': ...}}"
    )


def _major_of(configs: Sequence[Mapping[str, Any]]) -> int | None:
    """The first number of Keras's version by the entries that its layers have."""
    pending = list(configs)
    for options in pending:
        if "time_major" in options or "implementation" in options:
            return 2
        dtype = options.get("dtype")
        is_policy = isinstance(dtype, Mapping) and dtype.get("class_name") == "DTypePolicy"
        if is_policy or "zero_output_for_mask" in options or "seed" in options:
            return 3
        inner = [options.get("layer"), options.get("cell")]
        inner += options["cells"] if isinstance(options.get("cells"), list) else []
        if len(pending) < 1000:
            pending += [part["config"] for part in inner if isinstance(part, Mapping) and _has_config(part)]
    return None


def _has_config(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("config"), Mapping)


def _check_own(where: str, entry: Mapping[str, Any]) -> None:
    """Raises for a class that is not Keras's, whatever it is called."""
    kind, registered = entry["class_name"], entry.get("registered_name")
    if kind in (*RECURRENT, *MODELS) and not (is_of_keras(entry) and registered in (None, kind)):
        name = registered if registered not in (None, kind) else entry["module"]
        raise ValueError(
            f"{where}: {kind} expected Keras's own class, got {quote(name, 80)}; its equations are not in the file"
        )


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} expected a text, got {describe(value)}; is the configuration damaged?")
    return value


def part(where: str, name: str, value: Any) -> tuple[str, Mapping[str, Any]]:
    """The class and the options of an entry with `class_name` and `config`."""
    if not (isinstance(value, Mapping) and isinstance(value.get("class_name"), str) and "config" in value):
        raise ValueError(
            f"{where}: {name} expected a class_name and a config, got {describe(value)}; is the configuration damaged?"
        )
    _check_own(where, value)
    options = value["config"]
    return value["class_name"], options if isinstance(options, Mapping) else {"layers": options}


def snake_case(name: str) -> str:
    """A class in Keras's paths: "simple_rnn" of "SimpleRNN"."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def numbered(names: Sequence[str]) -> list[str]:
    """Names with `_1`, `_2` after those that were there before."""
    counts: dict[str, int] = {}
    made = []
    for name in names:
        count = counts.get(name, 0)
        counts[name] = count + 1
        made.append(f"{name}_{count}" if count else name)
    return made


def _walk(where: str, parents: tuple[str, ...], config: Any, names: tuple[str, ...], stored: str) -> Iterator[Entry]:
    """The layers of a model, those of models in it too; before Keras 2.2.3 a Sequential was a list."""
    layers = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(layers, list):
        raise ValueError(f"{where}: layers expected a list, got {describe(layers)}; is the configuration damaged?")
    if len(names) >= DEEPEST:
        raise ValueError(f"{where}: config expected at most {DEEPEST} models in each other, got more")
    parts = [part(where, f"layers[{k}]", layer) for k, layer in enumerate(layers)]
    places = numbered([snake_case(kind) for kind, _ in parts])
    for layer, place, (kind, options) in zip(layers, places, parts, strict=True):
        name = options.get("name", layer.get("name", place))
        own = (*names, _text(where, "the name of a layer", name))
        path = f"{stored}layers/{place}"
        if kind in MODELS:
            yield from _walk(where, (*parents, kind), options, own, f"{path}/")
        else:
            yield Entry(own, kind, options, path, parents, layer.get("inbound_nodes"))


# What is chosen


def choose(config: Configuration, prefix: str | Sequence[str]) -> list[Entry]:
    """The recurrent layers that `prefix` names, in the model's order; each reads the outputs of the one before.

    Raises:
        ValueError: naming layers of other kinds around them or between, and those that do not
            follow each other.
    """
    if not config.is_model:
        return list(config.entries)
    where, entries = config.where, config.entries
    if not any(entry.kind in RECURRENT for entry in entries):
        got = listed([entry.label for entry in entries], 4) or "no layers"
        raise ValueError(f"{where}: config expected a model with recurrent layers, got {cut(got, 200)}")
    wanted = [_below(config, name) for name in ([prefix] if isinstance(prefix, str) else prefix)]
    chosen = [entry for entry in entries if any(entry in found for found in wanted)]
    active = [entry for entry in chosen if entry.kind not in PASSIVE]
    found = [entry for entry in active if entry.kind in RECURRENT]
    others = [entry for entry in active if entry.kind not in RECURRENT]
    if not found:
        got = listed([entry.label for entry in active], 4)
        raise ValueError(f"{where}: prefix expected to lead to recurrent layers, got {got}{_choices(config)}")
    if others:
        raise ValueError(
            f"{where}: expected recurrent layers alone, got {cut(listed([o.label for o in others], 4), 160)} beside "
            f"them{_choices(config)}"
        )
    if not prefix:
        _check_calls(config, found)
    first, last = entries.index(found[0]), entries.index(found[-1])
    for entry in entries[first:last]:
        if entry not in found and entry.kind not in PASSIVE:
            raise ValueError(
                f"{where}: expected recurrent layers that follow each other, got {entry.label} between "
                f"{found[0].label} and {found[-1].label}{_choices(config)}"
            )
    _check_chain(config, found, entries[first : last + 1])
    return found


def _check_calls(config: Configuration, found: Sequence[Entry]) -> None:
    """Raises for a layer that a functional model calls several times, so that it is no one layer of a stack."""
    for entry in found:
        calls = len(entry.inbound) if isinstance(entry.inbound, list) else 1
        if calls > 1:
            raise ValueError(
                f"{config.where}: expected layers that are called once, got {entry.label}, which is called {calls} "
                f"times{_choices(config)}"
            )


def _below(config: Configuration, prefix: str) -> list[Entry]:
    """The layers at or below a path of names; the outermost model's name may begin it."""
    parts = tuple(prefix.removesuffix("/").split("/")) if prefix.removesuffix("/") else ()
    for names in (parts, parts[1:] if parts[:1] == (config.name,) else parts):
        found = [entry for entry in config.entries if entry.names[: len(names)] == names]
        if found:
            return found
    raise ValueError(f"{config.where}: prefix expected the name of a layer, got {quote(prefix)}{_choices(config)}")


def _choices(config: Configuration) -> str:
    """What `prefix` may be, at the end of a message."""
    names = [entry.path for entry in config.entries if entry.kind in RECURRENT]
    return (
        f"; prefix= names one, or a list of those that follow each other, of {cut(listed(map(quote, names), 5), 150)}"
    )


def _check_chain(config: Configuration, found: Sequence[Entry], between: Sequence[Entry]) -> None:
    """Raises for layers of a functional model of which one does not read the outputs of the one before."""
    models = {entry.names[:-1]: entry.parents for entry in found}
    if len(models) == 1:  # what stands around their one model does not matter
        models = {names: parents[-1:] for names, parents in models.items()}
    if len(found) == 1 or {kind for parents in models.values() for kind in parents} == {"Sequential"}:
        return
    chain = [entry for entry in between if entry in found or entry.kind != "InputLayer"]
    for below, above in itertools.pairwise(chain):
        if below.names[:-1] != above.names[:-1] or _inputs(above.inbound) != [below.names[-1]]:
            raise ValueError(
                f"{config.where}: expected recurrent layers that follow each other, got {above.label}, which does "
                f"not read {below.label} alone{_choices(config)}"
            )


def _inputs(inbound: Any) -> list[str] | None:
    """The layers whose outputs one reads; `None` if it is called several times, or what is written is not known."""
    if not isinstance(inbound, list) or len(inbound) != 1:
        return None
    names, pending = [], [inbound[0]]
    while pending and len(pending) < 1000:
        item = pending.pop()
        if isinstance(item, Mapping):
            history = item.get("keras_history")
            names += [history[0]] if isinstance(history, list) and history else []
            pending += [value for key, value in item.items() if key != "keras_history"]
        elif isinstance(item, list):  # Keras 2: [name, node, tensor, options]
            is_tensor = len(item) >= 3 and isinstance(item[0], str) and isinstance(item[1], int)
            names += [item[0]] if is_tensor else []
            pending += item[3:] if is_tensor else item
    return names
