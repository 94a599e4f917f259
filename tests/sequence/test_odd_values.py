"""Odd values of every argument of `unroll`: rightly accepted, or refused in words that name function and argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.odd_values import faults

pytestmark = pytest.mark.usefixtures("unhooked")

T, B, I, H = 4, 2, 2, 3  # noqa: E741
KEY, XS = jax.random.key(0), jnp.ones((T, B, I))
FORMS = {"traced", "in NumPy", "float16", "NaN"}
RIGHT = {
    "params": FORMS,
    "xs": FORMS,
    "state": FORMS | {"None"},
    "lengths": {"None", "a raw key", "traced", "in NumPy", "int8", "int32"},  # a raw key looks like two lengths
    "mask": {"None", "traced", "in NumPy", "booleans"},
    "resets": {"traced", "in NumPy", "booleans"},
    "reset_state": FORMS | {"None"},
    "reverse": {"True"},
    "return_states": {"True"},
    "checkpoint": {"None", "10**12", "10**400"},
    "compute_dtype": {"None"},
    "implementation": {"None"},
    "truncate": {"None", "10**12", "10**400"},
    "clip_gradient": {"None", "2.5", "inf", "10**12", "numbers"},
    "key": {"None", "a key", "a raw key", "traced", "in NumPy", "one axis less"},
}


def options_of(state, lengths):
    masks = {"lengths": lengths, "resets": np.ones((T, B), bool), "reset_state": state}
    rest = ("checkpoint", "compute_dtype", "implementation", "truncate", "clip_gradient")
    return {**masks, "reverse": False, "return_states": False, **dict.fromkeys(rest), "key": KEY}


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_odd_arguments_of_unroll_are_refused(name):
    cell = getattr(jaxrnn, name)(H)
    state = cell.initial_state((B,))
    good = {"cell": cell, "params": cell.init(KEY, I), "xs": XS, "state": state}
    good |= options_of(state, np.asarray([T, 2]))
    call = lambda **arguments: jax.eval_shape(lambda: jaxrnn.unroll(**arguments))  # noqa: E731
    words = {"cell": ("cell", "params"), "xs": ("xs", "state", "lengths", "resets")}
    right = dict(RIGHT)
    if name == "gru":  # whose state is one array
        right |= {key: {*RIGHT[key], "a traced array"} for key in ("state", "reset_state")} | {"cell": {"a cell"}}
    assert not faults("unroll", call, good, accepted=right, words=words)


def test_odd_masks_and_keys_of_a_cell_with_noise_are_refused():
    cell = jaxrnn.regularize(jaxrnn.gru(H), zoneout=0.5)
    params = cell.init(KEY, I)
    call = lambda **options: jax.eval_shape(lambda: jaxrnn.unroll(cell, params, XS, **options))  # noqa: E731
    assert not faults("unroll", call, {"mask": np.ones((T, B), bool), "key": KEY}, accepted=RIGHT)
