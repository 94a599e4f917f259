"""Odd values of every argument of cells: rightly accepted, or refused in words that name function and argument."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from jaxrnn import _checks
from jaxrnn.cells import FAMILIES
from tests.support.odd_values import faults

pytestmark = pytest.mark.usefixtures("unhooked")

H, I, B = 3, 2, 2  # noqa: E741
KEY = jax.random.key(0)
FACTORIES = {family.factory.__name__: family.factory for family in FAMILIES}
STEPS = {f"{name}_step": getattr(jaxrnn, f"{name}_step") for name in FACTORIES}

# What is right for an argument. `FORMS` are the good value in another form.
FORMS = {"traced", "in NumPy", "float16", "NaN"}
KEYS = {"a key", "a raw key", "traced", "in NumPy", "one axis less"}


# Numbers that are right for an option that is one.
NUMBERS = {"r_min": {"0"}, "r_max": {"numbers"}, "max_phase": {"numbers", "2.5"}}


def traced(f):
    """The function, which is traced and not compiled. Arguments stay as they are."""
    return lambda **arguments: jax.eval_shape(lambda: f(**arguments))


@pytest.mark.parametrize("name", FACTORIES)
def test_odd_options_of_a_factory_are_refused(name):
    def call(**options):
        cell = FACTORIES[name](**options)
        return jaxrnn.unroll(cell, cell.init(KEY, I), jnp.ones((2, I)))

    parameters = inspect.signature(FACTORIES[name]).parameters.values()
    good = {"hidden_size": H} | {p.name: p.default for p in parameters if p.name != "hidden_size"}
    right = {option: {str(value)} for option, value in good.items() if value is None or isinstance(value, bool)}
    right |= {option: {"True"} for option, value in good.items() if value is False} | NUMBERS
    assert not faults((name, f"{name}.init", f"{name}_step"), traced(call), good, accepted=right)


@pytest.mark.parametrize("name", FACTORIES)
def test_odd_arguments_of_init_and_initial_state_are_refused(name):
    cell = FACTORIES[name](H)
    good = {"key": KEY, "input_size": I, "dtype": None}
    right = {"key": KEYS, "dtype": {"None"}}
    assert not faults(f"{name}.init", traced(cell.init), good, accepted=right)
    right = {"batch_shape": {"an empty list", "an empty tuple"}, "dtype": {"None"}}
    good = {"batch_shape": (B,), "dtype": None}
    assert not faults(f"{name}.initial_state", traced(cell.initial_state), good, accepted=right)


@pytest.mark.parametrize("name", STEPS)
def test_odd_arguments_of_a_step_are_refused(name):
    cell = FACTORIES[name.removesuffix("_step")](H)
    good = {"params": cell.init(KEY, I), "state": cell.initial_state((B,)), "x": jnp.ones((B, I))}
    arrays = {"a traced array"} if name not in ("lstm_step", "slstm_step") else set()  # it has the shape of a state
    right = {"params": FORMS, "state": FORMS | arrays, "x": FORMS}
    if jnp.iscomplexobj(good["state"]):
        right["state"] = {"traced", "in NumPy", "complex64"}
    if name == "mgu_step":
        right["params"] = FORMS | {"params of another cell"}  # they are an MGU's
    for step in (STEPS[name], lambda params, state, x: cell.step(params, state, x)):
        assert not faults(name, traced(step), good, accepted=right)


def test_odd_arguments_of_regularize_are_refused():
    def call(**options):
        cell = jaxrnn.regularize(**options)
        return jaxrnn.unroll(cell, cell.init(KEY, I), jnp.ones((2, I)), key=KEY)

    rates = dict.fromkeys(("input_dropout", "recurrent_dropout", "dropconnect", "zoneout"), 0.1)
    right = {"cell": {"a cell"}, **{name: {"0"} for name in rates}}
    assert not faults("regularize", traced(call), {"cell": jaxrnn.lstm(H), **rates}, accepted=right)


def test_symbolic_sizes_are_axes_of_a_batch():
    (size,) = jax.export.symbolic_shape("b")
    assert _checks.batch_shape("lstm.initial_state", (size, 3)) == (size, 3)
