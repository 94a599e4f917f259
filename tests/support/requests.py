"""Calls of `unroll` that are traced as if on some device, and run nowhere."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn.sequence.request import Device
from tests.support.registry import B, H, I, T

ARGUMENTS = sys.modules["jaxrnn.sequence.arguments"]
UNROLL = sys.modules["jaxrnn.sequence.unroll"]
CUDA = Device("cuda", "NVIDIA of a test")
FLAGS = np.ones((T, B), bool)
OWN = jaxrnn.Cell(*jaxrnn.lstm(H)[:3], name="own")


def traced(monkeypatch, implementation, cell=None, dtype=jnp.float32, device=CUDA, **options):
    """The shapes that a call of `unroll` returns."""
    monkeypatch.setattr(ARGUMENTS, "device_of", lambda xs: device)
    cell = jaxrnn.lstm(H) if cell is None else cell
    params = jax.eval_shape(lambda key: cell.init(key, I, dtype), jax.random.key(0))
    f = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation=implementation, **{"key": None, **options})  # noqa: E731
    return jax.eval_shape(f, params, jax.ShapeDtypeStruct((T, B, I), dtype))


def requests_of(monkeypatch, call):
    """The requests that the calls of `unroll` inside `call(monkeypatch)` make."""
    seen, choose = [], UNROLL.choose
    with monkeypatch.context() as patch:
        patch.setattr(UNROLL, "choose", lambda request, name: seen.append(request) or choose(request, name))
        call(patch)
    return seen


def request_of(monkeypatch, **given):
    """The request that a call of `unroll` without an implementation makes."""
    return requests_of(monkeypatch, lambda patch: traced(patch, None, **given))[0]
