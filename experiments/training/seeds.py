"""Functions of one seed's model, applied to the models of all seeds of a run."""

from collections.abc import Callable
from typing import Any

import jax


def over_seeds(f: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """Maps `f` over the first axis of its arguments, which is that of the seeds.

    On a CPU the seeds run one after another, by `jax.lax.map`. There the products of small matrices that
    `jax.vmap` batches are slower than single ones from about 32 units (measured: 5 to 35 %), and the rounding of
    one seed does not depend on the other seeds. On an accelerator the seeds run side by side, by `jax.vmap`: the
    products of one seed are too small to fill it.

    Args:
        f: a function of one seed.
        platform: of the devices that run it: "cpu", "gpu" or "tpu", see `platform_of`.
    """
    if platform == "cpu":
        return lambda *arguments: jax.lax.map(lambda own: f(*own), arguments)
    return jax.vmap(f)


def population(f: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """Compiles `f(params, *data)` for parameters with a first axis of seeds; all seeds share the data."""

    @jax.jit
    def mapped(params: Any, *data: Any) -> Any:
        return over_seeds(lambda own: f(own, *data), platform)(params)

    return mapped
