"""Attention of a query over a memory: scores, weights and context, and their transposes by hand.

    e_s = score(q, k_s)    α = softmax(e) over the valid positions    c = Σ_s α_s m_s

    additive      score(q, k) = v · tanh(q W_q + k)         k = m W_k
    dot           score(q, k) = q · k                       k = m
    scaled dot    score(q, k) = q · k / √K                  k = m
    general       score(q, k) = q · k                       k = m W_k

A memory is `(*B, S, M)`, a query `(*L, *B, H)`: its leading axes L are steps, or batch axes that share
the memory.

Backward, with δv for ∂L/∂v and u = tanh(q W_q + k):

    δα_s = δc · m_s    δe = α ⊙ (δα - Σ α ⊙ δα)    δm_s = Σ_L α_s δc
    additive:  δa = v ⊙ Σ_s δe_s (1 - u_s²)    δq = δa W_qᵀ    δW_q = Σ qᵀ δa    δv = Σ δe_s u_s
               δk_s = Σ_L δe_s v ⊙ (1 - u_s²)
    dot:       δq = Σ_s δe_s k_s               δk_s = Σ_L δe_s q

u has S A numbers a step. It is computed again where it is read, and never kept for a step. δk is summed
over steps in a loop of its own, which holds one step at a time.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn._varying import vary_like
from jaxrnn.cells import _algebra as alg

SCORES = ("additive", "dot", "scaled_dot", "general")
MOST_AT_ONCE = 2**22  # numbers of u of steps that are computed together


class Memory(NamedTuple):
    """What a cell attends to in one call; made by :func:`jaxrnn.with_memory`."""

    values: Float[Array, "*B S M"]  # zeros at padding
    keys: Any  # (*B, S, K); None: the values
    mask: Float[Array, "*B S"] | None  # 0 at padding, else 1, so that all leaves are floating; None: no padding


class Scorer(NamedTuple):
    """A score and the parameters that it reads."""

    score: str
    w_q: Any  # additive: (H, A)
    v: Any  # additive: (A,)


class Deltas(NamedTuple):
    """What the cotangents of the memory and of the score's parameters are summed from, for each step."""

    context: Float[Array, "*L M"]  # δc
    scores: Float[Array, "*L S"]  # δe
    query: Any  # additive: δa, (*L, *B, A)


def memories(tree: Any) -> list[Memory]:
    """The memories in a tree of parameters."""
    is_memory = lambda part: isinstance(part, Memory)  # noqa: E731
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_memory) if is_memory(leaf)]


def has_memory_of_a_batch(params: Any) -> bool:
    """Whether parameters have a memory for each sequence of a batch."""
    return any(memory.values.ndim > 2 for memory in memories(params))


def over_features(x: Float[Array, "*L K"], m: Float[Array, "*B S K"]) -> Float[Array, "*L S"]:
    """x · m_s for every position s, in the dtype of x."""
    return _by_sequence(x, m, m.ndim - 1)


def over_positions(a: Float[Array, "*L S"], m: Float[Array, "*B S K"]) -> Float[Array, "*L K"]:
    """Σ_s a_s m_s, in the dtype of a."""
    return _by_sequence(a, m, m.ndim - 2)


def _by_sequence(x: Array, m: Array, axis: int) -> Array:
    """The products of the last axis of x with an axis of m, in each sequence of the batch."""
    batch, lead = m.ndim - 2, x.ndim - 1 - (m.ndim - 2)
    axes = (((x.ndim - 1,), (axis,)), (tuple(range(lead, lead + batch)), tuple(range(batch))))
    found = lax.dot_general(x.astype(m.dtype), m, axes, preferred_element_type=x.dtype)  # (*B, *L, ·)
    return jnp.moveaxis(found, range(batch), range(lead, lead + batch))


def summed(a: Float[Array, "*L S"], d: Float[Array, "*L K"], m: Float[Array, "*B S K"]) -> Float[Array, "..."]:
    """Σ_L a_s d: the cotangent of m in Σ_s a_s m_s, and in x · m_s; in the dtype of a."""
    batch, lead = m.ndim - 2, a.ndim - 1 - (m.ndim - 2)
    leading, batched = tuple(range(lead)), tuple(range(lead, lead + batch))
    axes = ((leading, leading), (batched, batched))
    return lax.dot_general(a.astype(m.dtype), d.astype(m.dtype), axes, preferred_element_type=a.dtype)


def _scale(scorer: Scorer, features: int) -> float:
    return features**-0.5 if scorer.score == "scaled_dot" else 1.0


def _activations(preactivation: Float[Array, "*L A"], keys: Float[Array, "*B S A"]) -> Float[Array, "*L S A"]:
    """u of every position."""
    shape = (*preactivation.shape[:-1], *keys.shape[-2:])
    return jnp.tanh(jnp.broadcast_to(preactivation[..., None, :], shape) + jnp.broadcast_to(keys, shape))


def _additive(
    w_q: alg.Weight, v: Float[Array, "A"], keys: Float[Array, "*B S A"], query: Float[Array, "*L H"]
) -> Float[Array, "*L S"]:
    """e. Where all steps together are many numbers, it is step by step."""
    preactivation = alg.dot(query, w_q)
    sizes = (*preactivation.shape, keys.shape[-2])
    if query.ndim > keys.ndim - 1 and not (all(isinstance(n, int) for n in sizes) and math.prod(sizes) <= MOST_AT_ONCE):
        return lax.map(lambda one: _against(_activations(one, keys), v), preactivation)
    return _against(_activations(preactivation, keys), v)


def _against(u: Float[Array, "*L S A"], v: Float[Array, "A"]) -> Float[Array, "*L S"]:
    return lax.dot_general(u.astype(v.dtype), v, (((u.ndim - 1,), (0,)), ((), ())), preferred_element_type=u.dtype)


def weights(scorer: Scorer, memory: Memory, query: Float[Array, "*L H"]) -> Float[Array, "*L S"]:
    """α; zeros at padding, and everywhere if all is padding."""
    keys = memory.values if memory.keys is None else memory.keys
    if scorer.score == "additive":
        scores = _additive(scorer.w_q, scorer.v, keys.astype(query.dtype), query)
    else:
        scores = over_features(query * _scale(scorer, query.shape[-1]), keys)
    return _softmax(scores, memory.mask)


def _softmax(scores: Float[Array, "*L S"], mask: Float[Array, "*B S"] | None) -> Float[Array, "*L S"]:
    if mask is None:
        top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
        shares = jnp.exp(scores - lax.stop_gradient(jnp.broadcast_to(top, scores.shape)))
        return shares / jnp.broadcast_to(shares.sum(-1, keepdims=True), shares.shape)
    valid = jnp.broadcast_to(mask > 0, scores.shape)
    lowest = jnp.asarray(jnp.finfo(scores.dtype).min, scores.dtype)
    scores = jnp.where(valid, scores, lowest)
    top = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=lowest))
    shares = jnp.where(valid, jnp.exp(scores - jnp.broadcast_to(top, scores.shape)), jnp.zeros_like(scores))
    total = shares.sum(-1, keepdims=True)
    total = jnp.where(total == 0, jnp.ones_like(total), total)  # 0 where all is padding, else 1 at least
    return shares / jnp.broadcast_to(total, shares.shape)


def context(memory: Memory, alpha: Float[Array, "*L S"]) -> Float[Array, "*L M"]:
    """c."""
    return over_positions(alpha, memory.values)


def backward(
    scorer: Scorer,
    memory: Memory,
    query: Float[Array, "*L H"],
    alpha: Float[Array, "*L S"],
    dcontext: Float[Array, "*L M"],
    transposed: Any,
) -> tuple[Float[Array, "*L H"], Deltas]:
    """δq, and what `accumulate` reads; `transposed` is W_q for products with its transpose."""
    keys = memory.values if memory.keys is None else memory.keys
    dalpha = over_features(dcontext, memory.values)
    mean = jnp.sum(alpha * dalpha, axis=-1, keepdims=True)
    dscores = alpha * (dalpha - jnp.broadcast_to(mean, dalpha.shape))
    if scorer.score != "additive":
        dquery = over_positions(dscores, keys) * _scale(scorer, query.shape[-1])
        return dquery, Deltas(dcontext, dscores, None)
    u = _activations(alg.dot(query, scorer.w_q), keys.astype(query.dtype))
    slopes = over_positions(dscores, alg.tanh_slope(u))
    da = alg.dot_transposed(slopes, scorer.v)
    return alg.dot_transposed(da, transposed), Deltas(dcontext, dscores, da)


def accumulate(
    scorer: Scorer, memory: Memory, query: Float[Array, "T *L H"], alpha: Float[Array, "T *L S"], deltas: Deltas
) -> tuple[Memory, Array | None, Array | None]:
    """The cotangents of the memory, W_q and v of many steps at once."""
    mask = None if memory.mask is None else jnp.zeros_like(memory.mask)
    dvalues = summed(alpha, deltas.context, memory.values)
    if scorer.score == "additive":
        dkeys, dv = _accumulate_additive(scorer.v, memory.keys, alg.dot(query, scorer.w_q), deltas.scores)
        return Memory(dvalues, dkeys, mask), alg.outer(query, deltas.query, scorer.w_q), dv
    query = query * _scale(scorer, query.shape[-1])
    if memory.keys is None:
        return Memory(dvalues + summed(deltas.scores, query, memory.values), None, mask), None, None
    return Memory(dvalues, summed(deltas.scores, query, memory.keys), mask), None, None


def _accumulate_additive(
    v: Float[Array, "A"],
    keys: Float[Array, "*B S A"],
    preactivations: Float[Array, "T *L A"],
    dscores: Float[Array, "T *L S"],
) -> tuple[Float[Array, "*B S A"], Float[Array, "A"]]:
    """The cotangents of the keys and of v, summed step by step."""
    own = keys.astype(dscores.dtype)

    def step(total: tuple[Array, Array], now: tuple[Array, Array]):
        preactivation, de = now
        u = _activations(preactivation, own)
        axes = tuple(range(de.ndim))
        of_v = lax.dot_general(de, u, ((axes, axes), ((), ())))
        of_keys = jnp.broadcast_to(de[..., None], u.shape) * alg.tanh_slope(u)
        of_keys = of_keys.sum(tuple(range(u.ndim - keys.ndim)))
        return jax.tree.map(jnp.add, total, (of_keys, of_v)), None

    start = vary_like((jnp.zeros_like(own), jnp.zeros(v.shape, own.dtype)), keys, v, preactivations, dscores)
    (of_keys, of_v), _ = lax.scan(step, start, (preactivations, dscores))
    return alg.dot_transposed(of_keys, v), of_v
