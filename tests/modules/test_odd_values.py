"""Odd values of every argument of the modules: rightly accepted, or refused in words that name class and argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from tests.support.odd_values import ODD, faults

pytestmark = pytest.mark.usefixtures("unhooked")

T, B, I, H = 4, 2, 2, 3  # noqa: E741
XS = jnp.ones((T, B, I))
FORMS = {"traced", "in NumPy", "float16", "NaN", "variables"}
FLAG = {"True"}
EXTRA = {"LSTM": {"proj_size": 0, "layer_norm": False}, "GRU": {"reset_after": True}, "RNN": {"nonlinearity": "tanh"}}


def traced(f):
    return lambda **arguments: jax.eval_shape(lambda: f(**arguments))


@pytest.mark.parametrize("name", EXTRA)
def test_odd_options_of_a_module_are_refused(name):
    cls, cell = getattr(jaxrnn.modules, name), name.lower()

    def make(**options):  # the stream of keys belongs to the call
        rngs = nnx.Rngs(0) if isinstance(options["rngs"], nnx.Rngs) else options["rngs"]
        cls(**{**options, "rngs": rngs}, deterministic=True)

    sizes = {"input_size": I, "hidden_size": H, "num_layers": 2}
    flags = {"bias": True, "batch_first": False, "bidirectional": False, **EXTRA[name]}
    nones = ("checkpoint", "implementation", "compute_dtype", "kernel_init", "bias_init", "kernel_metadata")
    good = {**sizes, **flags, "dropout": 0.1, **dict.fromkeys(nones), "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    right = {"dropout": {"0"}, "proj_size": {"0"}, "param_dtype": {"None"}}
    right |= dict.fromkeys(("bias", "batch_first", "bidirectional", "layer_norm", "reset_after"), FLAG)
    right |= {key: {"None"} for key in nones}
    right["checkpoint"] = {"None", "10**12", "10**400"}
    right["kernel_metadata"] = {"None", "an empty dict"}
    names = (name, cell, f"{cell}.init", "stack.init")
    words = {"nonlinearity": ("nonlinearity", "activation")}
    arguments = good if name == "GRU" else EXTRA[name]  # the others are those of the base class
    assert not faults(names, traced(make), good, accepted=right, words=words, arguments=arguments)


@pytest.mark.parametrize("name", EXTRA)
def test_odd_arguments_of_a_call_are_refused(name):
    module = getattr(jaxrnn.modules, name)(I, H, 2, rngs=nnx.Rngs(0))
    rows = jnp.zeros((2, B, H))
    good = {"xs": XS, "hx": (rows, rows) if name == "LSTM" else rows, "lengths": np.asarray([T, 2])}
    good |= {"resets": np.ones((T, B), bool), "deterministic": True}
    right = {"xs": FORMS, "hx": {*FORMS, "None"}, "resets": {"None", "traced", "in NumPy", "booleans", "variables"}}
    right["lengths"] = {"None", "a raw key", "traced", "in NumPy", "int8", "int32", "variables"}
    right["deterministic"] = {"None", "True"}
    words = {"hx": ("hx", "h_0", "c_0"), "xs": ("xs", "hx", "h_0", "lengths", "resets")}
    assert not faults((name, "unroll"), traced(module), good, accepted=right, words=words)


@pytest.mark.parametrize("name", EXTRA)
def test_odd_arguments_of_a_cell_are_refused(name):
    module = getattr(jaxrnn.modules, f"{name}Cell")(I, H, rngs=nnx.Rngs(0))
    good = {"carry": module.initialize_carry((B, I)), "inputs": jnp.ones((B, I))}
    right = {"carry": FORMS if name == "LSTM" else {*FORMS, "a traced array"}, "inputs": FORMS}
    words = {"carry": ("carry", "state"), "inputs": ("inputs", "x", "state")}
    names = (f"{name}Cell", f"{name.lower()}_step")
    assert not faults(names, traced(module), good, accepted=right, words=words)
    good = {"input_shape": (B, I), "carry_init": None}
    right = {"carry_init": {"None"}, "input_shape": set()}
    where = f"{name}Cell.initialize_carry"
    assert not faults(where, traced(module.initialize_carry), good, accepted=right)


@pytest.mark.parametrize("name", EXTRA)
def test_odd_parameters_are_not_loaded(name):
    module = getattr(jaxrnn.modules, name)(I, H, 2, rngs=nnx.Rngs(0))
    odd = {key: make for key, make in ODD.items() if "traced" not in key}  # NNX refuses those itself
    good, right = {"params": module.params}, {"params": FORMS}
    assert not faults(f"{name}.load", module.load, good, odd, accepted=right)
    good = {"state_dict": module.to_torch(), "prefix": ""}
    words = {"state_dict": ("state_dict", "entry", "params"), "prefix": ("prefix", "state_dict")}
    names = (f"{name}.load_torch", f"{name}.load", "from_torch")
    assert not faults(names, module.load_torch, good, odd, words=words)
    assert not faults((f"{name}.to_torch", "to_torch"), module.to_torch, {"prefix": ""}, odd)
