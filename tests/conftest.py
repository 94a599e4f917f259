"""Strict settings for every test: shapes in signatures are checked, and JAX refuses to promote dtypes or ranks."""

import gc
from itertools import count
from pathlib import Path

import chex
import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

with install_import_hook("jaxrnn", "beartype.beartype"):
    import jaxrnn  # noqa: F401

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """`unroll` runs as in a process with one device, as most users call it, but in tests marked `devices`.

    Every process of the tests has 8 devices: JAX fixes their number once, and a process runs tests of all folders.
    """
    if request.node.get_closest_marker("devices") is None:
        monkeypatch.setattr("jaxrnn.sequence.arguments.may_be_sharded", lambda inputs: False)


@pytest.fixture(autouse=True)
def traces_counted_anew():
    """Chex counts the traces of a process by the name of the function."""
    chex.clear_trace_counter()


MAPS = Path("/proc/self/maps")  # where Linux lists the memory mappings of this process, a line each
tests_run = count(1)


@pytest.fixture(autouse=True)
def few_memory_mappings():
    """Frees JAX's compiled programs from time to time.

    Each program holds several memory mappings. Linux allows a process 65,530; the next one crashes XLA.
    """
    yield
    if next(tests_run) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Enables float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unhooked():
    """Disables the shape checks of the signatures, so that the test sees the library's own errors."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)
