"""Beam search: the likeliest sequences of tokens that a network writes.

At step n every sequence of the batch has K **open** hypotheses, each n tokens without an end and the
state after them, and K **ended** ones. The K·V continuations of the open ones are scored by

    log p(w_1 … w_n) = Σ_t log p(w_t | w_1 … w_{t-1})

The best K that do not end stay open, and every open hypothesis also competes with its end
for a place among the ended ones, which are ranked by

    score = log p / ((5 + n) / 6)^α        (Wu 2016, eq. 14), n being the number of tokens, the end included.

Since log p only falls and the divisor only grows, no continuation of an open hypothesis scores above
log p / ((5 + N) / 6)^α, N being the most steps. When all ended hypotheses of all sequences score at least that,
the loop stops: what is left cannot change the result.

The beam is the first axis of every state, over which `step` is mapped by `jax.vmap`. What a cell reads from its
parameters, such as the memory of an attending cell, is then shared by the hypotheses of a sequence, not copied.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, AnyCell, Params, PyTree, State
from jaxrnn.generation import check_batched, check_model, check_same, log_probabilities
from jaxrnn.network import Network
from jaxrnn.sequence.sharding import align_carry

WHERE = "beam_search"


class Beams(NamedTuple):
    """The K best hypotheses of every sequence, best first. N is the `length` of the search."""

    tokens: Int[AnyArray, "N *B K"]  # `end` after the end
    lengths: Int[AnyArray, "*B K"]  # how many tokens there are, the first `end` included; 0 of an empty place
    log_probs: Float[AnyArray, "*B K"]  # log p of the tokens; -inf of an empty place
    scores: Float[AnyArray, "*B K"]  # what they are ranked by: log p divided by the length penalty


class _Hypotheses(NamedTuple):
    """K of every sequence, with the beam as the first axis."""

    tokens: Array  # (K, *B, N)
    log_probs: Array  # (K, *B)
    lengths: Array  # (K, *B)


class _Search(NamedTuple):
    """All that a step changes."""

    n: Array  # tokens of an open hypothesis
    states: State  # (K, *B, ·)
    xs: PyTree  # (K, *B, I), what is read next
    open: _Hypotheses
    ended: _Hypotheses


def beam_search(
    net_or_cell: Network | AnyCell,
    params: Params,
    states: State,
    first_input: PyTree,
    logits: Callable[[Array], Array],
    embed: Callable[[Array], PyTree],
    length: int,
    *,
    beam_size: int,
    end: int,
    length_penalty: float = 0.0,
) -> Beams:
    """The likeliest sequences of tokens, by beam search with length normalisation (Wu 2016).

    A hypothesis is a sequence of tokens whose last one is the first `end` in it, or one of `length` tokens
    without an `end`. Hypotheses are ranked by log p / ((5 + n) / 6)^α, n being the number of their
    tokens and α `length_penalty`. A hypothesis that has ended keeps its place until a better one
    has ended. With K at least (V - 1)^(length - 1) nothing is pruned:
    the result is that of a search of all sequences.

    Args:
        net_or_cell: a network from :func:`stack`, unidirectional, or a cell. One that attends has its memory
            bound in `params`, with the batch `*B`; the hypotheses of a sequence share it.
        params: its parameters.
        states: the states to start from, `(*B, ·)`: `initial_state(batch_shape)`, or those of an encoder.
        first_input: x_0, `(*B, I)`, such as the vector of a symbol for the begin.
        logits: `y (*B, H) -> (*B, V)`, the read-out, before a softmax. -inf forbids a token.
        embed: `token (*B,) int32 -> x (*B, I)`, the input that a token is read as; it has the shape and dtype
            of `first_input`.
        length: the most tokens of a hypothesis, its `end` included.
        beam_size: K, how many hypotheses are kept, and returned. It may be more than V.
        end: the token that ends a hypothesis, 0 to V - 1.
        length_penalty: α, 0 to 10. 0 ranks by log p alone; more of it favours longer sequences.

    Returns:
        A :class:`Beams`, best first along its last axis: `tokens[..., 0]` is the best sequence. Of equal
        scores the hypothesis that ended first comes first, then that of the better parent, then that of the
        smaller token. Where there are fewer hypotheses than K, the last places are empty. log p is in float32, in
        float64 if the logits are. If logits of a hypothesis are NaN, or all of one step are -inf, its log p is NaN: it
        comes first, and other sequences of the batch are not touched. The search has no gradient; run the tokens that
        it found by `unroll` for that.

    Raises:
        TypeError, ValueError: naming the argument: for sizes that are not positive integers, an `end` outside the
            logits' last axis, a `length_penalty` outside 0 to 10, functions whose results are not as above,
            states without the batch axes of the logits, or a bidirectional network.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(5)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> embed = lambda token: jax.nn.one_hot(token, 5)
        >>> state, start = cell.initial_state((2,)), embed(jnp.zeros(2, int))
        >>> found = jaxrnn.beam_search(cell, params, state, start, lambda y: 9 * y, embed, 7, beam_size=3, end=4)
        >>> found.tokens.shape, found.log_probs.shape
        ((7, 2, 3), (2, 3))
        >>> bool(jnp.all(found.scores[:, 0] >= found.scores[:, 1]))
        True

    References:
        Wu et al. 2016, arXiv:1609.08144, section 7, eq. 14, without its coverage penalty.

    Differs from:
        1. Hugging Face and fairseq: they divide by n^α; here and in GNMT the divisor is 1 for one token. A
           sequence that is cut off at `length` competes with those that have ended; they drop it, or end it by force.
        2. Searches that give up the place of a hypothesis that has ended: here ended and open ones have K places each.
    """
    length = _checks.size(WHERE, "length", length)
    beam_size = _checks.size(WHERE, "beam_size", beam_size)
    end = _checks.token(WHERE, "end", end)
    alpha = _checks.number(WHERE, "length_penalty", length_penalty)
    if not 0 <= alpha <= 10:
        raise ValueError(f"{WHERE}: length_penalty expected a number from 0 to 10, got {alpha}")
    _checks.function(WHERE, "logits", logits, "of y")
    _checks.function(WHERE, "embed", embed, "of tokens")
    check_model(WHERE, net_or_cell, params, states, first_input)
    states, first_input = jax.tree.map(jnp.asarray, (states, first_input))

    def advance(state: State, x: PyTree) -> tuple[State, Array]:
        after, y = net_or_cell.step(params, state, x)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), log_probabilities(WHERE, logits(y))

    log_p = jax.eval_shape(advance, states, first_input)[1]
    batch, tokens = log_p.shape[:-1], log_p.shape[-1]
    if end >= tokens:
        raise ValueError(f"{WHERE}: end expected a token of the logits, 0 to {tokens - 1}, got {end}")
    check_batched(WHERE, "states", states, batch)
    check_same(WHERE, "embed(tokens)", jax.eval_shape(embed, jax.ShapeDtypeStruct(batch, jnp.int32)), first_input)

    def penalty(n: Any) -> Array:
        return ((5 + jnp.asarray(n, log_p.dtype)) / 6) ** alpha

    def step(search: _Search) -> _Search:
        after, log_p = jax.vmap(advance)(search.states, search.xs)
        before = search.open.log_probs[..., None]
        total = jnp.where(before == -jnp.inf, before, before + log_p)  # (K, *B, V); an empty place reads anything
        n = search.n + 1
        ended = _best(_joined(search.ended, _with_token(search.open, end, total[..., end], n)), beam_size, penalty)
        going = jnp.where(jnp.arange(tokens) == end, -jnp.inf, total)
        flat = jnp.moveaxis(going, 0, -2).reshape(*batch, beam_size * tokens)
        values, places = jax.lax.top_k(_ranked(flat), beam_size)
        places = jnp.moveaxis(places, -1, 0)  # (K, *B), into beams times tokens
        parents, chosen = places // tokens, (places % tokens).astype(jnp.int32)
        values = jnp.take_along_axis(_by_beam(going, parents), chosen[..., None], -1)[..., 0]
        kept = jax.tree.map(lambda leaf: _by_beam(leaf, parents), (after, search.open))
        return _Search(n, kept[0], jax.vmap(embed)(chosen), _with_token(kept[1], chosen, values, n), ended)

    def goes_on(search: _Search) -> Array:
        bound = jnp.max(search.open.log_probs, 0) / penalty(length)
        worst = jnp.min(search.ended.log_probs / penalty(search.ended.lengths), 0)
        return (search.n < length) & ~jnp.all(worst >= bound)  # NaN goes on

    start = _start(beam_size, length, end, batch, log_p.dtype, states, first_input)
    search = jax.lax.while_loop(goes_on, step, align_carry(step, start))
    cut_off = search.open._replace(log_probs=jnp.where(search.n == length, search.open.log_probs, -jnp.inf))
    found = _best(_joined(search.ended, cut_off), beam_size, penalty)
    return _result(found, penalty, end)


def _start(k: int, length: int, end: int, batch: tuple[int, ...], dtype: Any, states: State, x: PyTree) -> _Search:
    """One open hypothesis without tokens, the other places empty."""
    empty = _Hypotheses(
        jnp.full((k, *batch, length), end, jnp.int32),
        jnp.full((k, *batch), -jnp.inf, dtype),
        jnp.zeros((k, *batch), jnp.int32),
    )
    one = empty._replace(log_probs=empty.log_probs.at[0].set(0))
    states, x = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k, *leaf.shape)), (states, x))
    return _Search(jnp.zeros((), jnp.int32), states, x, one, empty)


def _by_beam(leaf: Array, parents: Array) -> Array:
    """The entries `(K, *B, ·)` of the parents `(K, *B)` of each beam."""
    return jnp.take_along_axis(leaf, parents.reshape(parents.shape + (1,) * (leaf.ndim - parents.ndim)), 0)


def _with_token(old: _Hypotheses, token: Any, log_probs: Array, n: Array) -> _Hypotheses:
    """The hypotheses with an n-th token."""
    at = jnp.arange(old.tokens.shape[-1], dtype=n.dtype) == n - 1
    tokens = jnp.where(at, jnp.asarray(token, jnp.int32)[..., None], old.tokens)
    return _Hypotheses(tokens, log_probs, jnp.broadcast_to(n, old.lengths.shape))


def _joined(first: _Hypotheses, second: _Hypotheses) -> _Hypotheses:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _best(found: _Hypotheses, k: int, penalty: Callable[[Any], Array]) -> _Hypotheses:
    """The K with the best scores, best first; of equals the first."""
    scores = found.log_probs / penalty(found.lengths)
    places = jnp.moveaxis(jax.lax.top_k(_ranked(jnp.moveaxis(scores, 0, -1)), k)[1], -1, 0)
    return jax.tree.map(lambda leaf: _by_beam(leaf, places), found)


def _ranked(scores: Array) -> Array:
    """What scores are sorted by: NaN comes first, so that it is not lost."""
    return jnp.where(jnp.isnan(scores), jnp.inf, scores)


def _result(found: _Hypotheses, penalty: Callable[[Any], Array], end: int) -> Beams:
    empty = found.log_probs == -jnp.inf
    lengths = jnp.where(empty, 0, found.lengths)
    scores = found.log_probs / penalty(lengths)
    tokens = jnp.where(empty[..., None], end, found.tokens)
    last = lambda leaf: jnp.moveaxis(leaf, 0, -1)  # noqa: E731
    return Beams(jnp.moveaxis(last(tokens), -2, 0), last(lengths), last(found.log_probs), last(scores))
