"""The last output of every sequence, and free-running generation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, AnyCell, Params, PyTree, State
from jaxrnn.layers import check_layers, directions
from jaxrnn.network import Network
from jaxrnn.sequence.arguments import check_cell
from jaxrnn.sequence.sharding import align_carry, align_result


def last_output(
    ys: Float[AnyArray, "T *B H"], lengths: Int[AnyArray, "*B"] | None = None, *, bidirectional: bool = False
) -> Float[Array, "*B H"]:
    """The output of each sequence's last step: many-to-one.

    A network that reads both ways ends at both ends: its forward direction at the last step, its
    backward direction at the first one, where `ys[length - 1]` has read a single step.

    Args:
        ys: `(T, *B, H)`, the outputs of an unroll.
        lengths: `(*B,)` integers in 0..T, as given to the unroll; `None` is T for all. A sequence
            of length 0 has no last step and gives zeros. Traced values are clamped.
        bidirectional: whether the last axis of `ys` is two halves, of a forward and a backward
            direction of the same size, as `stack(..., bidirectional=True)` gives them with
            `merge="concat"`. The first half is read at step length - 1, the second at step 0.

    Returns:
        `(*B, H)`.

    Raises:
        TypeError, ValueError: for wrong dtypes or shapes, lengths outside 0..T, or two directions
            on a last axis of an odd size.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> ys = jnp.arange(12.0).reshape(3, 2, 2)
        >>> jaxrnn.last_output(ys, jnp.array([3, 1])).tolist()
        [[8.0, 9.0], [2.0, 3.0]]
        >>> jaxrnn.last_output(ys, jnp.array([3, 1]), bidirectional=True).tolist()
        [[8.0, 1.0], [2.0, 3.0]]

    Differs from:
        1. PyTorch: `h_n[-1]` of a packed sequence is this for one direction, and
           `torch.cat([h_n[-2], h_n[-1]], -1)` is this with `bidirectional=True`; indexing
           `output[-1]` of a padded batch is neither.
        2. Keras: `Bidirectional(layer)` without `return_sequences` is this with
           `bidirectional=True`. For its `merge_mode` "sum", "mul" or "ave" run the network with
           `merge="concat"` and merge the halves: `jnp.split(last, 2, axis=-1)`. What a network
           with `merge="sum"` returns for its last step is another value.
    """
    where = "last_output"
    bidirectional = _checks.boolean(where, "bidirectional", bidirectional)
    ys = _checks.floating(where, "ys", ys)
    if ys.ndim < 2:
        raise ValueError(f"{where}: ys expected shape (T, *B, H), got {ys.shape}")
    time, zeros = ys.shape[0], jnp.zeros(ys.shape[1:], ys.dtype)
    if bidirectional and ys.shape[-1] % 2:
        raise ValueError(
            f"{where}: ys expected two halves on its last axis, of a forward and a backward direction, "
            f"got {ys.shape[-1]} entries; is it of one direction, or merged by another merge than 'concat'?"
        )
    if lengths is not None:
        lengths = jnp.clip(_checks.sequence_lengths(where, lengths, time, ys.shape[1:-1]), 0, time)
    if not time:
        return zeros
    if not bidirectional:
        return _at_end(ys, lengths)
    forward, backward = jnp.split(ys, 2, axis=-1)
    first = backward[0] if lengths is None else _of_nonempty(lengths, backward[0])
    return jnp.concatenate([_at_end(forward, lengths), first], axis=-1)


def _at_end(ys: Array, lengths: Array | None) -> Array:
    """The outputs at the last step of each sequence, zeros for one without steps."""
    if lengths is None:
        return ys[-1]
    at = jnp.broadcast_to(jnp.maximum(lengths - 1, 0)[None, ..., None], (1, *ys.shape[1:]))
    return _of_nonempty(lengths, jnp.take_along_axis(ys, at, axis=0)[0])


def _of_nonempty(lengths: Array, ys: Array) -> Array:
    return jnp.where((lengths > 0)[..., None], ys, jnp.zeros_like(ys))


class Generated(NamedTuple):
    """What :func:`generate` returns with tokens. N is its `length`."""

    states: State  # after the last step of each sequence
    ys: Float[AnyArray, "N *B H"]  # zeros after the end
    tokens: Int[AnyArray, "N *B"]  # `end` after the end
    log_probs: Float[AnyArray, "N *B"]  # of each token, as `next_input` gave it; 0 after the end
    lengths: Int[AnyArray, "*B"]  # how many tokens there are, the first `end` included
    inputs: PyTree  # (N, *B, I) with `return_inputs`, else None


def generate(
    net_or_cell: Network | AnyCell,
    params: Params,
    states: State,
    first_input: PyTree,
    next_input: Callable[[Array, Array | None], Any],
    length: int,
    key: Array | None = None,
    *,
    end: int | None = None,
    return_tokens: bool = False,
    return_inputs: bool = False,
) -> Any:
    """Free-running generation: each input is computed from the output before it. One-to-many.

    With `end`, a sequence ends with the first token that equals it. Every later step of it is a
    masked step: the state is held and the output is zero. When all sequences have ended, the
    steps that are left compute nothing; the result has `length` steps all the same, and can be
    differentiated.

    Args:
        net_or_cell: a network from :func:`stack`, unidirectional, or a cell.
        params: its parameters.
        states: the states to start from: `initial_state(batch_shape)`, or those after a prompt.
        first_input: x_0, `(*B, I)`.
        next_input: `(y, key_t) -> x`: the read-out, the sampling and the embedding of the
            sample. Its result has the shape and dtype of `first_input`. With tokens it returns
            `(x, token, log_prob)`, an integer and a real number for each sequence, both `(*B,)`;
            :func:`next_token` makes such a function.
        length: the number of steps; with `end`, the largest.
        key: split once for every step; with `None`, `next_input` gets `None` as its key.
        end: the token after which a sequence ends; `None` ends none.
        return_tokens: also return the tokens and their log-probabilities; `end` implies it.
        return_inputs: also return the generated inputs, x_1 to x_length, `(length, *B, I)`.

    Returns:
        `(states, ys)` after `length` steps, `ys` being `(length, *B, H)`; with
        `return_inputs` also the inputs. The last of them has not been read: give it and `states`
        to another call to continue the sequence. With tokens a :class:`Generated`.

    Raises:
        TypeError, ValueError: for a length that is not a positive integer, a `next_input`
            whose result is not like `first_input` or, with tokens, not three values as above, states
            without the batch axes of the tokens, or a bidirectional network.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(5)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> def sample(y, key):
        ...     return jax.nn.one_hot(jax.random.categorical(key, y), 5)
        >>> start = jnp.zeros((2, 5))
        >>> states, ys = jaxrnn.generate(cell, params, start, start, sample, 7, jax.random.key(1))
        >>> ys.shape
        (7, 2, 5)
        >>> choose = jaxrnn.next_token(lambda y: y, lambda token: jax.nn.one_hot(token, 5))
        >>> found = jaxrnn.generate(cell, params, start, start, choose, 7, jax.random.key(1), end=4)
        >>> found.tokens.shape, found.lengths.shape
        ((7, 2), (2,))

    Differs from:
        1. Hugging Face's `generate`: what is returned always has `length` steps; `lengths` says
           how many of them count.
    """
    where = "generate"
    length = _checks.size(where, "length", length)
    return_tokens = _checks.boolean(where, "return_tokens", return_tokens) or end is not None
    return_inputs = _checks.boolean(where, "return_inputs", return_inputs)
    end = None if end is None else _checks.token(where, "end", end)
    _checks.function(where, "next_input", next_input, "of (y, key)")
    key = None if key is None else _checks.key(where, "key", key)
    check_model(where, net_or_cell, params, states, first_input)

    def step(carry: tuple[State, PyTree, Array | None]) -> tuple[Any, Any]:
        states, x, key = carry
        key, key_t = (None, None) if key is None else jax.random.split(key)
        after, y = net_or_cell.step(params, states, x)
        x_next, token, log_prob = _chosen(where, next_input(y, key_t), x, return_tokens)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, states)
        return (after, x_next, key), (y, token, log_prob, x_next if return_inputs else None)

    start = jax.tree.map(jnp.asarray, (states, first_input, key))
    if end is not None:
        return _until_end(where, step, start, length, end)
    start = align_carry(lambda carry: step(carry)[0], start)
    (states, _, _), (ys, tokens, log_probs, inputs) = jax.lax.scan(lambda carry, _: step(carry), start, None, length)
    if return_tokens:
        lengths = jnp.full(tokens.shape[1:], length, jnp.int32)
        return Generated(states, ys, tokens, log_probs, lengths, inputs)
    return (states, ys, inputs) if return_inputs else (states, ys)


def next_token(
    logits: Callable[[Array], Array], embed: Callable[[Array], PyTree], temperature: float = 1.0
) -> Callable[[Array, Array | None], tuple[PyTree, Array, Array]]:
    """The `next_input` of :func:`generate` for tokens: drawn from the softmax of logits, or the likeliest one.

    Args:
        logits: `y (*B, H) -> (*B, V)`, the read-out.
        embed: `token (*B,) -> x (*B, I)`, the input that a token is read as.
        temperature: divides the logits before a token is drawn: below 1 likelier tokens, above 1
            more daring ones. Without a key it changes nothing but the log-probabilities.

    Returns:
        `(y, key) -> (x, token, log_prob)`. With a key the token is drawn, without one it is
        the first of the likeliest; `log_prob` is that of the softmax of the divided logits.

    Raises:
        TypeError, ValueError: for a temperature that is not a positive number, or what is no
            function.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> choose = jaxrnn.next_token(lambda y: y, lambda token: token[..., None] * 1.0)
        >>> x, token, log_prob = choose(jnp.log(jnp.array([[0.25, 0.75]])), None)
        >>> x.tolist(), token.tolist(), jnp.exp(log_prob).round(4).tolist()
        ([[1.0]], [1], [0.75])
    """
    where = "next_token"
    _checks.function(where, "logits", logits, "of y")
    _checks.function(where, "embed", embed, "of tokens")
    temperature = _checks.positive_float(where, "temperature", temperature)

    def choose(y: Array, key: Array | None) -> tuple[PyTree, Array, Array]:
        log_p = log_probabilities(where, logits(y), temperature)
        token = jnp.argmax(log_p, -1) if key is None else jax.random.categorical(key, log_p)
        token = token.astype(jnp.int32)
        return embed(token), token, jnp.take_along_axis(log_p, token[..., None], -1)[..., 0]

    return choose


def log_probabilities(where: str, logits: Any, temperature: float = 1.0) -> Array:
    """The log-softmax of what the function `logits` of a user returned, in float32 at least."""
    logits = _checks.floating(where, "logits(y)", logits)
    if not logits.ndim:
        raise ValueError(f"{where}: logits(y) expected shape (*B, V), got a scalar")
    wide = logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
    return jax.nn.log_softmax(wide / jnp.asarray(temperature, wide.dtype), -1)


def _chosen(where: str, found: Any, x: PyTree, with_tokens: bool) -> tuple[PyTree, Any, Any]:
    """What `next_input` returned, as (x, token, log_prob), the last two `None` without tokens."""
    name = "next_input(y, key)"
    if not with_tokens:
        check_same(where, name, found, x)
        return found, None, None
    if type(found) is not tuple or len(found) != 3:
        raise TypeError(f"{where}: {name} expected (x, token, log_prob) with tokens, got {_checks.describe(found)}")
    x_next, token, log_prob = found
    check_same(where, f"{name}[0]", x_next, x)
    token = _checks.integers(where, f"{name}[1]", token)
    log_prob = _checks.floating(where, f"{name}[2]", log_prob)
    if log_prob.shape != token.shape:
        got = f"tokens {token.shape} and log-probabilities {log_prob.shape}"
        raise ValueError(f"{where}: {name} expected one log-probability for each token, got {got}")
    return x_next, token, log_prob


def _until_end(where: str, step: Callable[[Any], Any], start: Any, length: int, end: int) -> Generated:
    """`length` steps, in each of which only the sequences that have not ended take part."""
    y, token, *_ = jax.eval_shape(step, start)[1]
    if end > jnp.iinfo(token.dtype).max:
        raise ValueError(f"{where}: end expected a number that the tokens' dtype {token.dtype} holds, got {end}")
    check_batched(where, "states", start[0], token.shape)
    check_batched(where, "first_input", start[1], token.shape)
    check_batched(where, "outputs", y, token.shape)

    def hold(ended: Array, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(
            lambda a, b: jnp.where(ended.reshape(ended.shape + (1,) * (b.ndim - ended.ndim)), a, b), old, new
        )

    def live(carry: tuple[Any, Array]) -> tuple[Any, Any]:
        (states, x, key), ended = carry
        (after, x_next, key), (y, token, log_prob, inputs) = step((states, x, key))
        token, last = jnp.where(ended, jnp.asarray(end, token.dtype), token), ended
        ended = ended | (token == end)
        kept = ((hold(last, states, after), hold(last, x, x_next), key), ended)
        zeros = jax.tree.map(jnp.zeros_like, (y, log_prob))
        y, log_prob = hold(last, zeros[0], y), jnp.where(last, zeros[1], log_prob)
        return kept, (y, token, log_prob, hold(last, x, inputs) if inputs is not None else None, last)

    def skip(carry: tuple[Any, Array]) -> tuple[Any, Any]:
        y, token, log_prob, inputs, last = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(live, carry)[1]
        )
        inputs = None if inputs is None else carry[0][1]
        out = y, jnp.full_like(token, end), log_prob, inputs, jnp.ones_like(last)
        return carry, align_result(lambda given: live(given)[1], carry, out)

    def either(carry: tuple[Any, Array]) -> tuple[Any, Any]:
        return jax.lax.cond(jnp.all(carry[1]), skip, live, carry)

    none = align_result(lambda given: step(given)[1][1] == end, start, jnp.zeros(token.shape, bool))
    begun = align_carry(lambda carry: live(carry)[0], (start, none))
    ((states, _, _), _), (ys, tokens, log_probs, inputs, over) = jax.lax.scan(
        lambda carry, _: either(carry), begun, None, length
    )
    return Generated(states, ys, tokens, log_probs, jnp.sum(~over, 0, dtype=jnp.int32), inputs)


def check_batched(where: str, name: str, tree: PyTree, batch: tuple[int, ...]) -> None:
    """Every leaf begins with the axes of the batch of tokens, so that it can be held or gathered by sequence."""
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[: len(batch)] != batch:
            raise ValueError(
                f"{where}: {name} expected arrays whose first axes are those of the tokens, {batch}, "
                f"got {_checks.describe(tree)}"
            )


def check_model(where: str, model: Any, params: Params, states: State, first_input: PyTree) -> None:
    """Raises unless it is a network or a cell, with states and a first input for it."""
    if isinstance(model, Network):
        if any(len(directions(layer)) == 2 for layer in model.layers):
            raise ValueError(
                f"{where}: net_or_cell expected a unidirectional network; a bidirectional one needs the whole sequence"
            )
        check_layers(where, "params", params, model.layers)
        check_layers(where, "states", states, model.layers)
        cell, own = directions(model.layers[0])[0], params[0]
    else:
        check_cell(where, model, "net_or_cell")
        cell, own = model, params
    if cell.check is None:  # a cell of one's own may read anything
        _checks.arrays(where, "first_input", first_input)
    else:
        first_input = _checks.floating(where, "first_input", first_input)
        cell.check(where, own, first_input.shape)
        expected = jax.eval_shape(lambda: model.initial_state(first_input.shape[:-1]))
        _checks.state_like(where, "states", states, expected, "first_input")
    _checks.arrays(where, "states", states)


def check_same(where: str, name: str, got: PyTree, wanted: PyTree) -> None:
    like = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)  # noqa: E731
    if like(got) != like(wanted):
        raise ValueError(
            f"{where}: {name} expected what first_input is, {_checks.describe(wanted)}; got {_checks.describe(got)}"
        )
