"""Odd values of every argument of the functions for several devices: rightly accepted, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxrnn
from tests.support.odd_values import faults

T, B, H, L = 4, 8, 4, 2
CELL = jaxrnn.gru(H)
NET = jaxrnn.stack([CELL, jaxrnn.lstm(H)])
XS = jax.random.normal(jax.random.key(1), (T, B, H))
LENGTHS, MASK = np.asarray([T, 1, 0, 2, 3, 4, 0, 1], np.int32), np.tri(T, B, dtype=bool)


def mesh_of(*names):
    count = 2 ** len(names)
    return jax.make_mesh((2,) * len(names), names, (AxisType.Auto,) * len(names), devices=jax.devices()[:count])


def pipelined(cell, mesh, axis, chunk, batch_axis, **arguments):
    return jaxrnn.pipeline(cell, mesh, axis, chunk=chunk, batch_axis=batch_axis)(**arguments)


def piped(**options):
    params = jax.vmap(lambda key: CELL.init(key, H))(jax.random.split(jax.random.key(0), L))
    given = {"params": params, "xs": XS, "states": jnp.ones((L, B, H)), **options}
    return {
        "cell": CELL,
        "mesh": mesh_of("layers", "data"),
        "axis": "layers",
        "chunk": 2,
        "batch_axis": "data",
        **given,
    }


def in_parallel(f, in_axes, out_axes, devices, params, xs):
    return jaxrnn.data_parallel(f, in_axes, out_axes, devices=devices)(params, xs)


def outputs(params, xs):
    return jnp.mean(jaxrnn.unroll(CELL, params, xs)[1])


PARAMS = CELL.init(jax.random.key(0), H)

# What is right for an argument. `FORMS` are the good value in another form.
FORMS = {"traced", "in NumPy", "float16", "NaN"}
ANY_ARRAYS = FORMS | {
    "booleans", "int8", "int32", "complex64", "float8", "one axis more", "one axis less", "its shapes", "variables",
    "params of another cell", "a key", "keys", "a raw key", "a 0-d array", "six axes", "no entries", "a shape",
    "a traced number", "a traced integer", "a traced array", "in a list",
    "None", "an empty list", "an empty tuple", "an empty dict",
}  # fmt: skip
RIGHT = {
    "params": FORMS,
    "xs": FORMS,
    "states": FORMS | {"None"},
    "batch_axis": {"None"},
    "chunk": {"10**12", "10**400"},
    "lengths": {"None", "traced", "in NumPy", "int8", "int32"},
    "mask": {"None", "traced", "in NumPy", "booleans"},
    "resets": {"None", "traced", "in NumPy", "booleans"},
    "checkpoint": {"None", "10**12", "10**400"},
    "compute_dtype": {"None"},
    "implementation": {"None"},
    "clip_gradient": {"None", "2.5", "inf", "10**12", "numbers"},
}
WORDS = {"cell": ("cell", "params", "xs"), "xs": ("xs", "states", "lengths", "mask")}

# The function, arguments of a good call, what is right there and is not in `RIGHT`, and other words that name arguments
CALLS = {
    "model_parallel": (
        jaxrnn.model_parallel,
        {"model": CELL, "mesh": mesh_of("model", "data"), "axis": "model", "batch_axis": "data"},
        {},
        {},
    ),
    "model_parallel, network": (
        jaxrnn.model_parallel,
        {"model": NET, "mesh": mesh_of("model"), "axis": "model", "batch_axis": None},
        {},
        {},
    ),
    "param_shardings": (
        jaxrnn.param_shardings,
        {"params": PARAMS, "mesh": mesh_of("model"), "axis": "model"},
        {"params": ANY_ARRAYS},
        {},
    ),
    "pipeline": (pipelined, piped(lengths=LENGTHS, checkpoint=2), {}, WORDS),
    "pipeline, options": (
        pipelined,
        piped(mask=MASK, resets=MASK, compute_dtype=jnp.bfloat16, implementation="scan", clip_gradient=1.0),
        {},
        WORDS,
    ),
    "data_parallel": (  # what f is given it may refuse itself
        in_parallel,
        {
            "f": outputs,
            "in_axes": (None, 1),
            "out_axes": None,
            "devices": jax.devices()[:2],
            "params": PARAMS,
            "xs": XS,
        },
        {"out_axes": {"None"}, "devices": {"None"}, "f": {"a lambda"}, "xs": FORMS | {"one axis more"}},
        {"params": ("argument 0", "params"), "xs": ("argument 1", "xs")},
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_odd_values_are_refused_by_name(what, unhooked):
    call, good, right, words = CALLS[what]
    names = ["data_parallel", "unroll"] if what == "data_parallel" else what.split(",")[0]
    found = faults(names, call, good, accepted={**RIGHT, **right}, words=words, only_traced=True)
    assert not found, "\n".join(found)
