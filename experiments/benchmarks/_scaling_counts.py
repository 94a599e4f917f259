"""The train steps whose collectives are counted: each way to shard a model over 1, 2, 4, 8 devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from experiments.benchmarks._collectives import collectives, compiled_text
from experiments.benchmarks._problem import FORMS, Shape, mean_square

LAYERS = 8  # of the pipeline


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("shared",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def _data(form: str, shape: Shape, devices: int, way: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    cell, mesh = FORMS[form].cell(shape.hidden), mesh_of(devices)
    implementation = "scan" if way == "jit of a plain scan" else None

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return mean_square(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1], target)

    step = jax.value_and_grad(loss)
    if way == "data_parallel":
        return jax.jit(jaxrnn.data_parallel(step, (None, 1, 1), devices=jax.devices()[:devices])), _arrays(cell, shape)
    whole, by_batch = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, "shared")))
    return jax.jit(step, in_shardings=(whole, by_batch, by_batch)), _arrays(cell, shape)


def _model(form: str, shape: Shape, devices: int, way: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    mesh = mesh_of(devices)
    cell = jaxrnn.model_parallel(FORMS[form].cell(shape.hidden), mesh, "shared")

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return mean_square(jaxrnn.unroll(cell, params, xs)[1], target)

    arrays = _arrays(cell, shape)
    stored = jaxrnn.param_shardings(arrays[0], mesh, "shared")
    whole, by_unit = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, None, "shared")))
    return jax.jit(jax.value_and_grad(loss), in_shardings=(stored, whole, by_unit)), arrays


def _pipeline(form: str, shape: Shape, devices: int, way: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """`LAYERS` layers, or as many as the features say; in chunks of a sixteenth of the steps."""
    mesh, cell = mesh_of(devices), FORMS[form].cell(shape.hidden)
    run = jaxrnn.pipeline(cell, mesh, "shared", chunk=max(shape.steps // 16, 1))

    def loss(params: Any, xs: jax.Array, target: jax.Array) -> jax.Array:
        return mean_square(run(params, xs)[1], target)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape.features))
    params = jax.eval_shape(jax.vmap(lambda key: cell.init(key, shape.hidden)), keys)
    sequence = jax.ShapeDtypeStruct((shape.steps, shape.batch, shape.hidden), jnp.float32)
    by_layer, whole = NamedSharding(mesh, PartitionSpec("shared")), NamedSharding(mesh, PartitionSpec())
    return jax.jit(jax.value_and_grad(loss), in_shardings=(by_layer, whole, whole)), (params, sequence, sequence)


def _arrays(cell: Any, shape: Shape) -> tuple[Any, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), shape.features))
    sequence = lambda size: jax.ShapeDtypeStruct((shape.steps, shape.batch, size), jnp.float32)  # noqa: E731
    return params, sequence(shape.features), sequence(shape.hidden)


WAYS: dict[str, Callable[..., Any]] = {
    "data_parallel": _data,
    "jit": _data,
    "jit of a plain scan": _data,
    "model_parallel": _model,
    "pipeline": _pipeline,
}


def grown(way: str, shape: Shape, devices: int, weak: bool) -> Shape:
    """Strong: the same work on more devices. Weak: the sharded size grows with the number of devices."""
    if way == "pipeline":  # features are the layers here: those of a pipeline read what they put out
        return shape._replace(features=devices if weak else LAYERS)
    if not weak:
        return shape
    return (
        shape._replace(hidden=shape.hidden * devices)
        if way == "model_parallel"
        else shape._replace(batch=shape.batch * devices)
    )


def count(form: str, way: str, shape: Shape, devices: int) -> dict[str, Any]:
    """The collectives of one train step, executed by each device."""
    found = collectives(compiled_text(*_lowerable(form, way, shape, devices)))
    kinds: dict[str, int] = {}
    for one in found:
        kinds[one.kind] = kinds.get(one.kind, 0) + (one.times or 0)
    return {
        "cell": form,
        "way": way,
        "shape": str(shape),
        "devices": devices,
        "in_loops": sum(c.depth > 0 for c in found),
        "executed": kinds,
        "bytes": sum((c.times or 0) * c.bytes for c in found),
    }


def _lowerable(form: str, way: str, shape: Shape, devices: int) -> tuple[Any, ...]:
    function, arrays = WAYS[way](form, shape, devices, way)
    return function, *arrays
