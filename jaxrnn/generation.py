"""The last output of every sequence, and free-running generation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrnn import _checks
from jaxrnn._types import AnyArray, AnyCell, Params, PyTree, State
from jaxrnn.layers import check_layers, directions
from jaxrnn.network import Network
from jaxrnn.sequence.arguments import check_cell
from jaxrnn.sequence.sharding import align_carry


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


def generate(
    net_or_cell: Network | AnyCell,
    params: Params,
    states: State,
    first_input: PyTree,
    next_input: Callable[[Array, Array | None], PyTree],
    length: int,
    key: Array | None = None,
    *,
    return_inputs: bool = False,
) -> tuple[Any, ...]:
    """Free-running generation: each input is computed from the output before it. One-to-many.

    Args:
        net_or_cell: a network from :func:`stack`, unidirectional, or a cell.
        params: its parameters.
        states: the states to start from: `initial_state(batch_shape)`, or those after a prompt.
        first_input: x_0, `(*B, I)`.
        next_input: `(y, key_t) -> x`: the read-out, the sampling and the embedding of the
            sample. Its result has the shape and dtype of `first_input`.
        length: the number of steps.
        key: split once for every step; with `None`, `next_input` gets `None` as its key.
        return_inputs: also return the generated inputs, x_1 to x_length, `(length, *B, I)`.

    Returns:
        `(states, ys)` after `length` steps, `ys` being `(length, *B, H)`; with
        `return_inputs` also the inputs. The last of them has not been read: give it and `states`
        to another call to continue the sequence.

    Raises:
        TypeError, ValueError: for a length that is not a positive integer, a `next_input`
            whose result is not like `first_input`, or a bidirectional network.

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
    """
    where = "generate"
    length = _checks.size(where, "length", length)
    return_inputs = _checks.boolean(where, "return_inputs", return_inputs)
    _checks.function(where, "next_input", next_input, "of (y, key)")
    key = None if key is None else _checks.key(where, "key", key)
    _check_model(where, net_or_cell, params, states, first_input)

    def step(carry: tuple[State, PyTree, Array | None]) -> tuple[Any, Any]:
        states, x, key = carry
        key, key_t = (None, None) if key is None else jax.random.split(key)
        after, y = net_or_cell.step(params, states, x)
        x_next = next_input(y, key_t)
        _same(where, "next_input(y, key)", x_next, x)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, states)
        return (after, x_next, key), (y, x_next if return_inputs else None)

    start = jax.tree.map(jnp.asarray, (states, first_input, key))
    start = align_carry(lambda carry: step(carry)[0], start)
    (states, _, _), (ys, inputs) = jax.lax.scan(lambda carry, _: step(carry), start, None, length=length)
    return (states, ys, inputs) if return_inputs else (states, ys)


def _check_model(where: str, model: Any, params: Params, states: State, first_input: PyTree) -> None:
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


def _same(where: str, name: str, got: PyTree, wanted: PyTree) -> None:
    like = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)  # noqa: E731
    if like(got) != like(wanted):
        raise ValueError(
            f"{where}: {name} expected what first_input is, {_checks.describe(wanted)}; got {_checks.describe(got)}"
        )
