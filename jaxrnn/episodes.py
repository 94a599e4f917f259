"""The state of a network between episodes, and between what is learned from and what is not."""

import jax
from jaxtyping import Bool

from jaxrnn import _checks
from jaxrnn._types import CELL_TYPES, AnyArray, AnyCell, State
from jaxrnn.network import Network
from jaxrnn.sequence.masking import select


def reset_state(
    model: AnyCell | Network, state: State, resets: Bool[AnyArray, "*B"], new_state: State | None = None
) -> State:
    """The state with which a step begins: a new one where an episode begins.

    A step with it, `model.step(params, jaxrnn.reset_state(model, state, resets), x)`, is what `unroll` computes of one
    step with `resets`. Neither value nor gradient crosses from one episode to the next.

    Args:
        model: a cell, or a network from :func:`jaxrnn.stack`.
        state: after the step before, with the batch axes of `resets`.
        resets: booleans `(*B,)`, true where the next observation begins an episode: `done` of the step before.
        new_state: with which an episode begins, shaped as `state`; by default the model's initial state, zeros.

    Returns:
        A state of the structure, shapes and dtypes of `state`.

    Raises:
        TypeError, ValueError: for a state of a wrong structure or shape, or `resets` that are not booleans.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(2)
        >>> jaxrnn.reset_state(cell, jnp.ones((3, 2)), jnp.array([False, True, False])).tolist()
        [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]

    Differs from:
        1. PyTorch, Keras, Flax have none; a state is multiplied by 1 - done there, which passes NaN on.
    """
    where = "reset_state"
    if not isinstance(model, (*CELL_TYPES, Network)):
        raise TypeError(f"{where}: model expected a cell or a network, got {_checks.describe(model)}")
    resets = _checks.array(where, "resets", resets)
    if resets.dtype != bool:
        raise TypeError(f"{where}: resets expected booleans, got {_checks.describe(resets)}; compare with > 0")
    expected = jax.eval_shape(lambda: model.initial_state(resets.shape))
    _checks.state_like(where, "state", state, expected, "resets")
    if new_state is None:
        new_state = model.initial_state(resets.shape)
    else:
        _checks.state_like(where, "new_state", new_state, expected, "resets")
    state = jax.tree.map(jax.numpy.asarray, state)
    new_state = jax.tree.map(lambda new, old: jax.numpy.asarray(new).astype(old.dtype), new_state, state)
    return select(resets, new_state, state)


def truncate(state: State) -> State:
    """The same state, through which no gradient flows: for burn-in, and for chunks of a stream.

    Args:
        state: of a cell, a network or a module: any pytree of arrays.

    Returns:
        It, as `jax.lax.stop_gradient` returns it.

    Raises:
        TypeError: for what is no pytree of arrays.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> jax.grad(lambda h: (h * jaxrnn.truncate(h)).sum())(jnp.array([2.0, 3.0])).tolist()
        [2.0, 3.0]

    Differs from:
        1. PyTorch: `detach` of every array of the state.
        2. The option `truncate` of :func:`jaxrnn.unroll` cuts a gradient inside of one call, every K steps.
    """
    _checks.numeric_leaves("truncate", "state", state)
    return jax.lax.stop_gradient(state)


__all__ = ["reset_state", "truncate"]
