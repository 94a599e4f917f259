"""The network: embeddings, an encoder that reads both ways, a decoder that attends to its outputs, and a read-out."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.datasets.cmudict import GRAPHEMES, PHONEMES
from experiments.g2p.examples import BEGIN, END, MOST_PHONEMES, Examples

CELLS = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
OPTIONS = ("cell", "hidden_size", "embedding", "dropout")
SYMBOLS = 1 + len(PHONEMES)  # the end among them
Params = dict[str, Any]


class Model(NamedTuple):
    """What does not depend on parameters."""

    encoder: jaxrnn.Network  # H/2 units each way
    decoder: jaxrnn.Network  # H units; it begins with the last states of both directions, joined
    read_out: Any
    hidden_size: int
    embedding: int
    dropout: float


class Read(NamedTuple):
    """What the decoder has of a batch of words."""

    decoder: Any  # its parameters, with the memory bound
    states: Any
    begin: jax.Array  # (B, E)


def model_of(options: Mapping[str, Any]) -> Model:
    """The model of these options; others are ignored. The attention is that of Luong 2015 with input feeding."""
    hidden, cell = options["hidden_size"], CELLS[options["cell"]]
    encoder = jaxrnn.stack([cell(hidden // 2)], bidirectional=True)
    decoder = jaxrnn.stack([jaxrnn.attend(cell(hidden), hidden, score="general")])
    return Model(encoder, decoder, jaxrnn.readout(SYMBOLS), hidden, options["embedding"], options["dropout"])


def init(model: Model, key: jax.Array) -> Params:
    """The initial parameters."""
    letters, phonemes, encoder, decoder, read_out = jax.random.split(key, 5)
    normal = jax.nn.initializers.normal(0.3)
    return {
        "letters": normal(letters, (len(GRAPHEMES), model.embedding)),
        "phonemes": normal(phonemes, (BEGIN + 1, model.embedding)),
        "encoder": model.encoder.init(encoder, model.embedding),
        "decoder": model.decoder.init(decoder, model.embedding),
        "read_out": model.read_out.init(read_out, model.hidden_size),
    }


def read(model: Model, params: Params, sources: jax.Array, lengths: jax.Array, key: jax.Array | None = None) -> Read:
    """Reads words `(B, T)`; with a key, dropout is applied."""
    keys = (None, None) if key is None else jax.random.split(key)
    xs = _dropped(model, params["letters"][sources.T], keys[0])
    ((forward, backward),), ys = model.encoder.unroll(params["encoder"], xs, lengths=lengths)
    memory = jnp.moveaxis(_dropped(model, ys, keys[1]), 0, 1)
    bound = jaxrnn.with_memory(model.decoder, params["decoder"], memory, lengths=lengths)
    (start,) = model.decoder.initial_state((len(lengths),))
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other], -1), forward, backward)
    begin = jnp.broadcast_to(params["phonemes"][BEGIN], (len(lengths), model.embedding))
    return Read(bound, (start._replace(cell=both),), begin)


def _dropped(model: Model, values: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is None or not model.dropout:
        return values
    kept = jax.random.bernoulli(key, 1 - model.dropout, values.shape)
    return jnp.where(kept, values / (1 - model.dropout), jnp.zeros_like(values))


def loss_of(model: Model, params: Params, examples: Examples, key: jax.Array | None = None) -> tuple[Any, Any]:
    """The nats of all phonemes and ends, each read before the next is asked for, and how many those are."""
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    begun = read(model, params, examples.sources, examples.lengths, keys[0])
    targets = examples.targets.T
    late = jnp.concatenate([begun.begin[None], params["phonemes"][targets[:-1]]])
    _, ys = model.decoder.unroll(begun.decoder, _dropped(model, late, keys[1]), begun.states)
    logits = model.read_out.logits(params["read_out"], _dropped(model, ys, keys[2]))
    each = jaxrnn.readout_loss(logits, targets)
    counted = jnp.arange(targets.shape[0])[:, None] < examples.target_lengths[None, :]
    return jnp.sum(jnp.where(counted, each, jnp.zeros_like(each))), jnp.sum(counted).astype(each.dtype)


def greedy(model: Model, params: Params, sources: jax.Array, lengths: jax.Array) -> jax.Array:
    """The likeliest symbol at each step, every one being read before the next is written: `(B, U)`."""
    begun = read(model, params, sources, lengths)
    choose = jaxrnn.next_token(*_symbols(model, params))
    return jnp.asarray(jaxrnn.generate(*_start(model, begun), choose, MOST_PHONEMES, end=END).tokens).T


def beams(
    model: Model, params: Params, sources: jax.Array, lengths: jax.Array, beam_size: int, length_penalty: float
) -> tuple[jax.Array, jax.Array]:
    """The likeliest sequences `(B, K, U)`, best first, and their log-probabilities `(B, K)`."""
    begun = read(model, params, sources, lengths)
    options = {"beam_size": beam_size, "end": END, "length_penalty": length_penalty}
    found = jaxrnn.beam_search(*_start(model, begun), *_symbols(model, params), MOST_PHONEMES, **options)
    return jnp.moveaxis(jnp.asarray(found.tokens), 0, -1), jnp.asarray(found.log_probs)


def _start(model: Model, begun: Read) -> tuple[Any, Any, Any, Any]:
    return model.decoder, begun.decoder, begun.states, begun.begin


def _symbols(model: Model, params: Params) -> tuple[Any, Any]:
    """The read-out and the embedding of what is written."""
    return functools.partial(model.read_out.logits, params["read_out"]), lambda token: params["phonemes"][token]


def weights(model: Model, params: Params, examples: Examples) -> jax.Array:
    """The attention weights `(B, U, T)` with which targets are written."""
    begun = read(model, params, examples.sources, examples.lengths)
    late = jnp.concatenate([begun.begin[None], params["phonemes"][examples.targets.T[:-1]]])
    (found,) = jaxrnn.attention_weights(model.decoder, begun.decoder, late, begun.states)  # of the one layer
    return jnp.moveaxis(found, 0, 1)
