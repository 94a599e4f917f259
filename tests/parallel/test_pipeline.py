"""Layers in a pipeline over chunks of time: values equal those of the stack, and a tick has one collective."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from experiments.benchmarks._collectives import collectives, compiled_text
from tests.support.registry import assert_close, bits, quick_jit, random_like

pytestmark = pytest.mark.devices

H, T, B, L = 3, 8, 4, 4
CELLS = {"lstm": jaxrnn.lstm(H), "gru": jaxrnn.gru(H), "lru": jaxrnn.lru(H + 1, output_size=H)}
LENGTHS = np.asarray([T, 0, 3, 7], np.int32)
RESETS = bits(5, (T, B), 0.3)


def mesh_of(*sizes, kind=AxisType.Auto):
    count = int(np.prod(sizes))
    types = (kind,) * len(sizes)
    return jax.make_mesh(sizes, ("layers", "data")[: len(sizes)], axis_types=types, devices=jax.devices()[:count])


def piped(cell, sizes=(L,), chunk=2, **options):
    return jaxrnn.pipeline(cell, mesh_of(*sizes), chunk=chunk, **options)


def operands(cell, dtype=jnp.float64):
    """Parameters and states with a first axis of layers."""
    params = jax.eval_shape(lambda: jax.vmap(lambda key: cell.init(key, H))(jax.random.split(jax.random.key(0), L)))
    states = jax.eval_shape(lambda: cell.initial_state((L, B)))
    xs = jax.ShapeDtypeStruct((T, B, H), dtype)
    return tuple(random_like(k, tree, dtype) for k, tree in enumerate((params, xs, states)))


def stacked(cell, **options):
    """The same layers in `stack`, as a function of the same operands."""
    net = jaxrnn.stack([cell] * L)

    def run(params, xs, states, **masks):
        layers = lambda tree: tuple(jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(L))  # noqa: E731
        states, ys = net.unroll(layers(params), xs, layers(states), **masks, **options)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), ys

    return run


def numbers(run, **masks):
    """A function of the operands that returns the results of `run` and all gradients."""

    def value(params, xs, states):
        found = run(params, xs, states, **masks)
        leaves = jax.tree.leaves(found)
        weights = (np.random.default_rng(k).standard_normal(leaf.shape) for k, leaf in enumerate(leaves))
        # Both parts of a complex leaf are in it.
        turned = [(1 + 0.5j) * leaf if jnp.iscomplexobj(leaf) else leaf for leaf in leaves]
        return sum(jnp.sum(jnp.asarray(w, v.dtype) * v).real for w, v in zip(weights, turned, strict=True)), found

    return quick_jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))


MASKS = {"plain": {}, "lengths": {"lengths": LENGTHS, "resets": RESETS}}


@functools.cache
def expected(name, masks):
    return numbers(stacked(CELLS[name]), **MASKS[masks])(*operands(CELLS[name]))


@pytest.mark.parametrize(("name", "masks", "sizes", "options"), [
    ("lstm", "plain", (4,), {"chunk": 2}),
    ("lstm", "plain", (2,), {"chunk": 5}),  # 5 does not divide the 8 steps
    ("lstm", "lengths", (4,), {"chunk": 3}),  # nor does 3
    ("lstm", "lengths", (2,), {"chunk": 8}),  # two layers a device, one chunk
    ("gru", "lengths", (4, 2), {"chunk": 2, "batch_axis": "data"}),
    ("lru", "lengths", (2,), {"chunk": 3}),  # its output is not as wide as its state
])  # fmt: skip
def test_pipeline_equals_the_stack(name, masks, sizes, options, x64):
    params, xs, states = operands(CELLS[name])
    mesh = mesh_of(*sizes)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("layers")))
    found = numbers(piped(CELLS[name], sizes, **options), **MASKS[masks])(params, xs, states)
    assert_close(found, expected(name, masks))
    for leaf in (*jax.tree.leaves(found[1][0]), *jax.tree.leaves(found[0][1][0])):
        assert leaf.addressable_shards[0].data.shape[0] == L // sizes[0]


@pytest.mark.parametrize("checkpoint", [2, "sqrt", "gates"])
def test_checkpoint_equals_the_stack(checkpoint, x64):
    run = functools.partial(piped(CELLS["lstm"], chunk=4), checkpoint=checkpoint)
    assert_close(numbers(run)(*operands(CELLS["lstm"])), expected("lstm", "plain"))


def test_autodiff_with_clipping_equals_the_stack(x64):
    run = functools.partial(piped(CELLS["gru"], chunk=4), implementation="scan", clip_gradient=0.1)
    clipped = numbers(stacked(CELLS["gru"], clip_gradient=0.1))(*operands(CELLS["gru"]))
    assert_close(numbers(run)(*operands(CELLS["gru"])), clipped)
    assert abs(np.asarray(clipped[1][0].w_h) - expected("gru", "plain")[1][0].w_h).max() > 1e-3


# Measured: values equal to the bit, gradients within 2e-7.
@pytest.mark.parametrize(("options", "dtype"), [({}, "float32"), ({"compute_dtype": jnp.bfloat16}, "bfloat16")])
def test_half_precision_inputs_equal_the_stack(options, dtype):
    """Parameters are in float32. Outputs are in float32, or with `compute_dtype` in the dtype of the inputs."""
    params, xs, states = operands(CELLS["lstm"], jnp.float32)
    asked = (params, xs.astype(jnp.bfloat16), states)
    with jax.numpy_dtype_promotion("standard"):
        found = numbers(functools.partial(piped(CELLS["lstm"]), **options), **MASKS["lengths"])(*asked)
        by_stack = numbers(stacked(CELLS["lstm"], **options), **MASKS["lengths"])(*asked)
        without_states = piped(CELLS["lstm"])(*asked[:2], **options)
    assert found[0][1][1].dtype == dtype
    chex.assert_type(jax.tree.leaves((found[0][1][0], without_states[0])), jnp.float32)
    assert_close((found[0][1], found[1]), (by_stack[0][1], by_stack[1]), "float32")


@pytest.mark.parametrize("options", [{}, {"lengths": np.zeros(B, np.int32), "checkpoint": "sqrt"}], ids=["", "lengths"])
def test_no_steps_return_the_states(options):
    params, xs, states = operands(CELLS["lstm"], jnp.float32)
    final, ys = quick_jit(functools.partial(piped(CELLS["lstm"]), **options))(params, xs[:0], states)
    assert_close(final, states, "float32")
    chex.assert_shape(ys, (0, B, H))
    assert ys.dtype == jnp.float32


def test_a_chunk_longer_than_the_sequence_is_one_chunk(x64):
    cell = CELLS["gru"]
    args = operands(cell)
    assert_close(quick_jit(piped(cell, chunk=10**12))(*args), quick_jit(stacked(cell))(*args))


def test_a_cell_with_noise_warns_that_it_is_off(x64):
    noisy = jaxrnn.regularize(CELLS["gru"], input_dropout=0.5)
    with pytest.warns(
        UserWarning, match=r"pipeline: the noise of regularize\(gru\(3\), .* is off: a pipeline draws none"
    ):
        run = piped(noisy)
    args = operands(CELLS["gru"])
    assert_close(quick_jit(run)(*args), quick_jit(stacked(CELLS["gru"]))(*args))


def test_pipeline_trains_as_the_stack(x64):
    optimizer = optax.adam(1e-2)

    def trained(run, params):
        @quick_jit
        def step(params, moments):
            gradients = jax.grad(lambda params: jnp.mean((run(params, xs, states)[1] - 1) ** 2))(params)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
                updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments

        moments = jax.jit(optimizer.init)(params)
        for _ in range(20):
            params, moments = step(params, moments)
        return params

    params, xs, states = operands(CELLS["gru"])
    found, by_stack = trained(piped(CELLS["gru"]), params), trained(stacked(CELLS["gru"]), params)
    chex.assert_trees_all_close(found, by_stack, rtol=0, atol=1e-12)


def test_each_tick_exchanges_the_outputs_of_one_chunk():
    """The forward and the backward pass exchange alike. Gradients of weights stay on their devices."""
    cell, chunk, time = CELLS["lstm"], 4, 32
    params, *_ = operands(cell, jnp.float32)
    run = piped(cell, chunk=chunk)
    f = quick_jit(
        jax.value_and_grad(lambda params, xs: jnp.mean(run(params, xs)[1] ** 2)),
        in_shardings=(NamedSharding(mesh_of(L), PartitionSpec("layers")), NamedSharding(mesh_of(L), PartitionSpec())),
    )
    found = collectives(compiled_text(f, params, jax.ShapeDtypeStruct((time, B, H), jnp.float32)))
    ticks = time // chunk + L - 1
    within = [(c.kind, c.times, c.bytes) for c in found if c.depth]
    assert within == [("collective-permute", ticks, 4 * chunk * B * H)] * 2
    assert sum(c.bytes for c in found if not c.depth) <= 3 * 4 * time * B * H  # outputs and their cotangents


def refused(call, error, message):
    return pytest.param(call, error, message, id=message[:40])


def _run(cell=CELLS["lstm"], shape=(T, B, H), layers=L, sizes=(L,), masks=None, **options):
    shapes = jax.eval_shape(
        lambda: jax.vmap(lambda key: cell.init(key, H))(jax.random.split(jax.random.key(0), layers))
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return piped(cell, sizes, **options)(params, jnp.ones(shape), **(masks or {}))


@pytest.mark.parametrize(("call", "error", "message"), [
    refused(lambda: piped(CELLS["gru"], chunk=0), ValueError, "pipeline: chunk expected a positive integer, got 0"),
    refused(lambda: jaxrnn.pipeline(CELLS["gru"], mesh_of(2, kind=AxisType.Explicit), chunk=2), ValueError, "pipeline: mesh expected axes of AxisType.Auto, got"),
    refused(lambda: piped("gru"), TypeError, "pipeline: cell expected a Cell, got str 'gru'"),
    refused(lambda: piped(CELLS["gru"], axis="data"), ValueError, "pipeline: axis expected an axis of the mesh, layers; got 'data'"),
    refused(lambda: piped(CELLS["gru"], batch_axis="data"), ValueError, "pipeline: batch_axis expected an axis of the mesh, layers; got 'data'"),
    refused(lambda: piped(CELLS["gru"], batch_axis="layers"), ValueError, "pipeline: batch_axis expected another axis than that of the layers"),
    refused(lambda: _run(layers=6), ValueError, r"pipeline: params expected leaves with a first axis of layers that the 4 devices .* got LSTMParams\(w_x=float32\[6, 3, 12\]"),
    refused(lambda: _run(shape=(T, B, 2)), ValueError, r"pipeline: xs expected shape \(T, \*B, 3\), as wide as the outputs of lstm\(3\), got \(8, 4, 2\)"),
    refused(lambda: _run(sizes=(2, 4), shape=(T, 6, H), batch_axis="data"), ValueError, r"pipeline: xs expected a batch axis 1 that the 4 devices of the mesh axis 'data' divide, got shape \(8, 6, 3\)"),
    refused(lambda: _run(masks={"lengths": LENGTHS, "mask": RESETS}), ValueError, "pipeline: lengths and mask were both given"),
    refused(lambda: _run(masks={"mask": RESETS[:3]}), ValueError, r"pipeline: mask expected shape \(T, \*B\) = \(8, 4\), got \(3, 4\)"),
])  # fmt: skip
def test_bad_arguments_are_refused(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call()
