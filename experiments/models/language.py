"""A recurrent language model, with its task on a long text, its loss, and sampling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from experiments.models.functional import Functional, functional
from experiments.models.readout import readout_module
from experiments.training.loop import Task
from experiments.training.seeds import population

MOST_LAYERS = 100  # each is traced and compiled by itself
LAYERS = {
    "rnn": jaxrnn.modules.RNN,
    "lstm": jaxrnn.modules.LSTM,
    "gru": jaxrnn.modules.GRU,
    "min_gru": jaxrnn.modules.MinGRU,
    "min_lstm": jaxrnn.modules.MinLSTM,
    "rg_lru": jaxrnn.modules.RGLRU,
    "lru": jaxrnn.modules.LRU,
    "slstm": jaxrnn.modules.SLSTM,
}
ORTHOGONAL = {"recurrent_init": jaxrnn.initializers.orthogonal()}
DRAWN = {  # where it is not as the module draws
    "rnn": ORTHOGONAL,
    "lstm": ORTHOGONAL | {"bias_init": jaxrnn.initializers.gate_bias(f=1.0)},
    "gru": ORTHOGONAL,
}


class LanguageModel(nnx.Module):
    """Predicts the next token: an embedding, recurrent layers and a linear layer, with dropout between them."""

    def __init__(
        self,
        vocabulary: int,
        cell: str,
        embedding: int,
        hidden_size: int,
        layers: int,
        dropout: float,
        num_heads: int,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(DRAWN.get(cell, {}))
        if num_heads > 1:
            options["num_heads"] = num_heads
        self.embedding = nnx.Embed(vocabulary, embedding, rngs=rngs)
        self.layers = LAYERS[cell](
            embedding,
            hidden_size,
            layers,
            dropout=dropout if layers > 1 else 0.0,
            rngs=rngs,
            **options,
        )
        self.readout = readout_module(hidden_size, vocabulary, "softmax", rngs)
        self.dropout = dropout

    def __call__(self, tokens: jax.Array, states: Any = None, key: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """Maps `(T, B)` integers to logits `(T, B, V)` and the last states; with a key, dropout is applied."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        xs = self._dropped(self.embedding(tokens), keys[0])
        ys, states = self.layers(xs, states, deterministic=key is None, rngs=keys[1])
        return self.readout.logits(self._dropped(ys, keys[2])), states

    def _dropped(self, values: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or self.dropout == 0:
            return values
        kept = jax.random.bernoulli(key, 1 - self.dropout, values.shape)
        return jnp.where(kept, values / (1 - self.dropout), jnp.zeros_like(values))

    def start(self, batch_size: int) -> Any:
        """The initial states of a batch."""
        one = jnp.zeros((1, batch_size), jnp.int32)
        shapes = jax.eval_shape(lambda: self(one)[1])
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def language_model(
    vocabulary: int, *, cell: str, embedding: int, hidden_size: int, layers: int, dropout: float, num_heads: int = 1
) -> Functional[LanguageModel]:
    """The model as pure functions."""
    sizes = (embedding, hidden_size, layers, dropout, num_heads)
    return functional(lambda rngs: LanguageModel(vocabulary, cell, *sizes, rngs))


def as_streams(tokens: np.ndarray, count: int) -> np.ndarray:
    """Cuts one long text `(N,)` into `count` texts of equal length, `(N // count, count)`."""
    return tokens[: len(tokens) // count * count].reshape(count, -1).T


def text_task(model: Functional[LanguageModel], tokens: np.ndarray, batch_size: int, window: int) -> Task:
    """Truncated back-propagation through time: consecutive windows of a text, with states carried from one to the next.

    Each epoch begins at another place in the text, so that its windows differ.
    """
    streams = as_streams(tokens, batch_size)
    windows = (len(streams) - 1) // window

    def batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, place = divmod(step, windows)
        spare = len(streams) - 1 - windows * window
        first = place * window + int(np.random.default_rng((seed, epoch)).integers(spare + 1))
        part = streams[first : first + window + 1].astype(np.int32)
        return part[:-1].T, part[1:].T, np.full(batch_size, place == 0)

    def loss(params: Any, states: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        inputs, targets, fresh = batch
        states = jax.tree.map(lambda leaf: jnp.where(fresh[:, None], jnp.zeros_like(leaf), leaf), states)
        logits, states = model.bind(params)(inputs.T, states, key)
        return jaxrnn.readout_loss(logits, targets.T).mean(), states

    start = jax.eval_shape(lambda key: model.bind(model.init(key)).start(batch_size), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), start)  # no memory
    return Task(model.init, loss, batch, batch_size, carry=zeros, carry_axis=1)


def steps_an_epoch(tokens: np.ndarray, batch_size: int, window: int) -> int:
    return (len(tokens) // batch_size - 1) // window


def text_loss(
    model: Functional[LanguageModel], tokens: np.ndarray, streams: int, window: int, platform: str
) -> Callable[[Any], jax.Array]:
    """Nats per token of a text that is cut into streams; each stream begins with zero states."""
    text = as_streams(tokens, streams).astype(np.int32)
    count = len(text) - 1
    padded = np.concatenate([text, np.zeros((-count % window, streams), np.int32)])
    pieces = [padded[k : k + (len(padded) - 1) // window * window].reshape(-1, window, streams) for k in (0, 1)]
    counted = (np.arange(pieces[0].shape[0] * window) < count).reshape(-1, window)

    @functools.partial(population, platform=platform)
    def measured(params: Any, inputs: jax.Array, targets: jax.Array, counted: jax.Array) -> jax.Array:
        bound = model.bind(params)

        def piece(states: Any, operands: Any) -> tuple[Any, jax.Array]:
            inputs, targets, counted = operands
            logits, states = bound(inputs, states)
            each = jaxrnn.readout_loss(logits, targets)
            return states, jnp.sum(jnp.where(counted[:, None], each, jnp.zeros_like(each)))

        _, sums = jax.lax.scan(piece, bound.start(streams), (inputs, targets, counted))
        return jnp.sum(sums) / (count * streams)

    operands = (*map(jnp.asarray, pieces), jnp.asarray(counted))
    return lambda params: measured(params, *operands)


@functools.partial(jax.jit, static_argnums=0, static_argnames="banned")
def write(
    model: Functional[LanguageModel],
    params: Any,
    prompt: jax.Array,
    forced: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
    banned: tuple[int, ...] = (),
) -> jax.Array:
    """Samples a continuation of a prompt.

    Args:
        model, params: the model, of one seed.
        prompt: `(P, B)` tokens, P at least 1.
        forced: `(N, B)`, the token to write at each place, or -1 to sample it from the model.
        temperature: divides the logits; near 0, the most likely token is chosen.
        key: of the samples.
        banned: tokens that are never sampled.

    Returns:
        `(N, B)` tokens.
    """
    bound = model.bind(params)
    logits, states = bound(prompt, bound.start(prompt.shape[1]))

    def step(carry: Any, place: Any) -> tuple[Any, jax.Array]:
        logits, states = carry
        forced, key = place
        logits = logits.at[:, jnp.asarray(banned, int)].set(-jnp.inf)
        chosen = jax.random.categorical(key, logits / temperature)
        token = jnp.where(forced < 0, chosen.astype(forced.dtype), forced)
        after, states = bound(token[None], states)
        return (after[0], states), token

    keys = jax.random.split(key, forced.shape[0])
    return jax.lax.scan(step, (logits[-1], states), (forced, keys))[1]
