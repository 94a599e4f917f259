"""A batch sharded over devices: values and gradients equal those of one device, and loops contain no collective."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from experiments.benchmarks._collectives import compiled_text, counted
from tests.support.registry import assert_close, quick_jit, random_like

pytestmark = pytest.mark.devices

NET = jaxrnn.stack([jaxrnn.lstm(3), jaxrnn.gru(3)], bidirectional=True)
STREAM = jaxrnn.stack([jaxrnn.lstm(3), jaxrnn.gru(3)])
DEVICES, BATCH = 8, 16  # two sequences for each of the devices
OPTIMIZER = optax.adam(1e-2)


def loss(params, xs, lengths, target):
    _, ys = NET.unroll(params, xs, lengths=lengths)
    return jnp.mean((ys - target) ** 2)


def operands(net=NET, time=5, dtype=jnp.float64):
    params = jax.eval_shape(lambda key: net.init(key, 2, dtype), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((time, BATCH, 2), dtype)
    target = jax.eval_shape(lambda p, xs: net.unroll(p, xs)[1], params, xs)
    lengths = np.arange(BATCH, dtype=np.int32) % (time + 1)
    return random_like(0, params, dtype), random_like(1, xs, dtype), lengths, random_like(2, target, dtype)


def parallel(f=loss, in_axes=(None, 1, 0, 1), out_axes=None, **options):
    return jaxrnn.data_parallel(f, in_axes, out_axes, **options)


def shardings(*axes):
    """Shardings over all devices along the batch axes of the arguments. None is replicated."""
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    specs = [PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "batch") for axis in axes]
    return tuple(NamedSharding(mesh, spec) for spec in specs)


def test_value_and_gradient_equal_those_of_the_whole_batch(x64):
    args = operands()
    alone = quick_jit(jax.value_and_grad(loss, (0, 1)))(*args)
    sharded = quick_jit(parallel(jax.value_and_grad(loss)))(*args)
    assert_close(sharded, (alone[0], alone[1][0]))
    assert_close(quick_jit(jax.grad(parallel()))(*args), alone[1][0])
    two = quick_jit(parallel(jax.value_and_grad(loss), devices=jax.devices()[:2]))(*args)
    assert_close(two, sharded)


def stream_loss(params, states, xs, lengths, target):
    """The loss of one chunk of a stream, and the initial states of the next."""
    states, ys = STREAM.unroll(params, xs, states, lengths=lengths)
    return jnp.mean((ys - target) ** 2), states


def trained(method, dtype):
    """Parameters, states and losses after twenty chunks of a stream."""
    params, xs, lengths, target = operands(STREAM, 4, dtype)
    states = STREAM.initial_state((BATCH,), dtype)
    differentiate = jax.value_and_grad(stream_loss, has_aux=True)
    if method == "data_parallel":
        differentiate = parallel(differentiate, (None, 0, 1, 0, 1), ((None, 0), None))
    if method == "jit":
        whole, first, second = shardings(None, 0, 1)
        params = jax.device_put(params, whole)
        states, xs, lengths, target = jax.device_put((states, xs, lengths, target), (first, second, first, second))

    @quick_jit
    def step(params, momentum, states, xs):
        (value, states), gradients = differentiate(params, states, xs, lengths, target)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            updates, momentum = OPTIMIZER.update(gradients, momentum, params)
        return optax.apply_updates(params, updates), momentum, states, value

    momentum = jax.jit(OPTIMIZER.init)(params)
    losses = []
    for _ in range(20):
        params, momentum, states, value = step(params, momentum, states, xs)
        losses.append(float(value))
    if method != "alone":
        assert len(jax.tree.leaves(states)[0].sharding.device_set) == DEVICES
        assert {s.data.shape[0] for s in jax.tree.leaves(states)[0].addressable_shards} == {BATCH // DEVICES}
    return params, states, losses


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_twenty_training_steps_equal_those_on_one_device(dtype, tolerance, x64):
    expected = trained("alone", jnp.dtype(dtype))
    assert expected[2][-1] < expected[2][0] - 0.02
    for method in ("jit", "data_parallel"):
        found = trained(method, jnp.dtype(dtype))
        chex.assert_trees_all_close(found, expected, rtol=0, atol=tolerance)  # measured 6e-7 and 1e-15


def test_every_device_draws_its_own_noise():
    draw = parallel(lambda key: jax.random.normal(key[0], (4,)), in_axes=(0,))
    keys = jax.random.split(jax.random.key(0), DEVICES)
    expected = np.mean([jax.random.normal(key, (4,)) for key in keys], axis=0)
    np.testing.assert_allclose(jax.jit(draw)(keys), expected, rtol=1e-6)


def test_results_are_averaged_or_joined_along_out_axes():
    def f(x, by):
        number = jax.lax.axis_index("batch")
        return {"mean": x.sum(), "rows": (x * by, jnp.full(2, number))}

    joined = jax.jit(parallel(f, (1, None), {"mean": None, "rows": (1, 0)}))
    x = np.arange(48, dtype=np.float32).reshape(3, 16)
    found = joined(x, jnp.float32(2))
    np.testing.assert_array_equal(found["rows"][0], 2 * x)
    np.testing.assert_array_equal(found["rows"][1], np.arange(16) // 2)
    np.testing.assert_allclose(found["mean"], x.sum() / DEVICES)


NETWORKS = {
    "rnn": jaxrnn.stack([jaxrnn.rnn(4)]),
    "lstm": jaxrnn.stack([jaxrnn.lstm(4)]),
    "gru": jaxrnn.stack([jaxrnn.gru(4)]),
    "bidirectional": jaxrnn.stack([jaxrnn.lstm(4), jaxrnn.lstm(4)], bidirectional=True),
}


def counts_of(net, method, time, **options):
    """The collectives of a training step. 64 sequences make several segments of 256 steps on each device."""

    def mean_square(params, xs, lengths):
        return jnp.mean(net.unroll(params, xs, lengths=lengths, **options)[1] ** 2)

    differentiate = jax.value_and_grad(mean_square)
    if method == "jit":
        step = quick_jit(differentiate, in_shardings=shardings(None, 1, 0))
    else:
        step = quick_jit(parallel(differentiate, (None, 1, 0)))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), 3))
    xs, lengths = jax.ShapeDtypeStruct((time, 64, 3), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32)
    return counted(compiled_text(step, params, xs, lengths)), jaxrnn.count_params(params)


@pytest.mark.parametrize("method", ["jit", "data_parallel"])
@pytest.mark.parametrize("name", NETWORKS)
def test_loops_contain_no_collective(name, method):
    """Sequences of 16 and of 256 steps exchange the same: all gradients and the loss, once."""
    (short, size), (long, _) = (counts_of(NETWORKS[name], method, time) for time in (16, 256))
    assert short == long
    assert long.inside == 0
    assert 1 <= long.outside <= 3  # the compiler may join them
    assert long.bytes == 4 * (size + 1)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batch_sharded_along_its_second_axis_equals_one_device(kind, x64):
    """Plain `jit` shards it, with one sum outside the loops."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(kind,))
    cell = jaxrnn.gru(3)
    params = random_like(0, jax.eval_shape(lambda: cell.init(jax.random.key(0), 2)), jnp.float64)
    xs = random_like(1, jax.ShapeDtypeStruct((16, 2, BATCH, 2), jnp.float64), jnp.float64)
    mask = random_like(2, jax.ShapeDtypeStruct(xs.shape[:3], jnp.float64), jnp.float64) > 0
    f = quick_jit(
        jax.value_and_grad(lambda params, xs, mask: jnp.mean(jaxrnn.unroll(cell, params, xs, mask=mask)[1] ** 2))
    )
    by_second = NamedSharding(mesh, PartitionSpec(None, None, "d"))
    args = jax.device_put(params, NamedSharding(mesh, PartitionSpec())), *jax.device_put((xs, mask), by_second)
    assert_close(f(*args), f(params, xs, mask))
    counts = counted(compiled_text(f, *args))
    assert (counts.inside, counts.outside) == (0, 1)


def test_autodiff_has_a_collective_in_its_loop():
    """The counts of the other tests would show such a collective."""
    counts, _ = counts_of(NETWORKS["rnn"], "jit", 16, implementation="scan")
    assert counts.inside >= 1
    assert counts.executed > 16
    assert counts.bytes > 16 * 4 * 4 * 4  # w_h alone, every step


def test_recomputed_segments_add_no_collective():
    counts, size = counts_of(NETWORKS["lstm"], "data_parallel", 256, checkpoint="sqrt")
    assert counts.inside == 0
    assert counts.bytes == 4 * (size + 1)


@pytest.mark.parametrize("method", ["jit", "data_parallel"])
def test_checkpoint_keeps_value_and_gradient(method, x64):
    def recomputed(params, xs, lengths, target):
        _, ys = NET.unroll(params, xs, lengths=lengths, checkpoint=2)
        return jnp.mean((ys - target) ** 2)

    args, f = operands(), jax.value_and_grad(recomputed)
    f = quick_jit(f, in_shardings=shardings(None, 1, 0, 1)) if method == "jit" else quick_jit(parallel(f))
    assert_close(f(*args), _whole())


@functools.cache
def _whole():
    """Value and gradient of all sequences on one device, in float64."""
    return quick_jit(jax.value_and_grad(loss))(*operands())


def test_lengths_of_another_shard_are_refused():
    """On a square mesh all shards have equal shapes, but these lengths belong to other sequences."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    cell = jaxrnn.rnn(3)
    params, xs = cell.init(jax.random.key(0), 2), jnp.ones((3, 4, 2))

    def run(lengths_axis, **options):
        def f(params, xs, steps):
            return jaxrnn.unroll(cell, params, xs, **dict.fromkeys(options, steps))[1]

        (steps, axis) = next(iter(options.values())), [None] * (next(iter(options.values())).ndim - 1)
        specs = (PartitionSpec(), PartitionSpec(None, "a"), PartitionSpec(*axis, lengths_axis))
        out = PartitionSpec(None, "a")
        return jax.eval_shape(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out), params, xs, steps)

    lengths, mask = jnp.ones(4, jnp.int32), jnp.ones((3, 4), bool)
    assert run("a", lengths=lengths).shape == run("a", mask=mask).shape == (3, 4, 3)
    for name, value in {"lengths": lengths, "mask": mask, "resets": mask}.items():
        with pytest.raises(ValueError, match=rf"unroll: {name} expected the share .* \('a',\), got .* \('b',\)"):
            run("b", **{name: value})


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: parallel(in_axes=1), TypeError, "data_parallel: in_axes expected a sequence, one entry an argument, got int"),
    (lambda: parallel(in_axes=(None, -1)), ValueError, "data_parallel: in_axes expected None or the number of an axis for each argument, got -1"),
    (lambda: parallel(in_axes=(None, True)), ValueError, "data_parallel: in_axes expected .*, got True"),
    (lambda: parallel(out_axes=((None, -1), 0)), ValueError, "data_parallel: out_axes expected None or the number of an axis for each result, got -1"),
    (lambda: parallel(out_axes="batch"), ValueError, "data_parallel: out_axes expected .*, got 'batch'"),
    (lambda: parallel(devices=[]), ValueError, "data_parallel: devices expected at least one, got none"),
    (lambda: parallel()(1, 2), TypeError, "data_parallel: expected 4 arguments, one for each of in_axes, got 2"),
    (lambda: parallel(in_axes=(1,))(jnp.ones(4)), ValueError, r"argument 0 expected arrays with an axis 1, got shape \(4,\)"),
    (lambda: parallel(in_axes=(1,))(jnp.ones((4, 6))), ValueError, r"argument 0 expected a batch axis 1 that 8 devices divide, got shape \(4, 6\)"),
    (lambda: parallel(lambda x: x, (0,), (0, None))(jnp.ones(8)), ValueError, r"data_parallel: out_axes expected one entry, or a tuple as f returns them, for float32\[1\]; got \(0, None\)"),
    (lambda: parallel(lambda x: x, (0,), 1)(jnp.ones(8)), ValueError, r"data_parallel: out_axes has axis 1 for a result of shape \(1,\) on each device"),
    (lambda: parallel(lambda x: x, (0,))(jnp.arange(8)), TypeError, r"data_parallel: out_axes expected the batch axis of a result that is not floating-point, which has no mean; got None for int32\[1\]"),
    (lambda: parallel(loss, (None, 1, None, 1))(*operands(dtype=jnp.float32)), ValueError, r"unroll: lengths expected the batch shape \(2,\), got \(16,\).* shard them as xs"),
])  # fmt: skip
def test_bad_arguments_are_refused(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call()


def scanned_loss(params, xs, start):
    """A program that scans `STREAM.step`, as an agent's does, from a state that is made in it."""
    _, ys = jax.lax.scan(functools.partial(STREAM.step, params), start(xs), xs)
    return jnp.mean(ys**2)


def test_a_scan_of_steps_from_a_fresh_state_equals_that_of_the_whole_batch(x64):
    params, xs, *_ = operands(STREAM)
    fresh = functools.partial(scanned_loss, start=lambda xs: STREAM.initial_state(xs.shape[1:-1], xs.dtype))
    alone = quick_jit(jax.value_and_grad(fresh))(params, xs)
    assert_close(quick_jit(parallel(jax.value_and_grad(fresh), (None, 1)))(params, xs), alone)
    assert_close(quick_jit(jax.grad(parallel(fresh, (None, 1))))(params, xs), alone[1])


def test_a_fresh_state_of_a_cell_that_attends_may_be_made_in_f():
    cell = jaxrnn.attend(jaxrnn.gru(3), 2, attention_size=2)
    params, xs = cell.init(jax.random.key(0), 2), jax.random.normal(jax.random.key(1), (3, BATCH, 2))
    memory = jax.random.normal(jax.random.key(2), (BATCH, 4, 2))

    def outputs(params, memory, xs):
        step = functools.partial(cell.step, jaxrnn.with_memory(cell, params, memory))
        return jax.lax.scan(step, cell.initial_state(xs.shape[1:-1]), xs)[1]

    expected = outputs(params, memory, xs)
    assert_close(jax.jit(parallel(outputs, (None, 0, 1), 1))(params, memory, xs), expected, "float32")


def test_a_shard_map_of_the_users_with_an_axis_of_that_name_keeps_replicated_states():
    cell, spec = jaxrnn.gru(3), PartitionSpec()
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    params, x = cell.init(jax.random.key(0), 2), jnp.ones((4, 2))
    step = lambda params, x: cell.step(params, cell.initial_state((4,)), x)[1]  # noqa: E731
    run = jax.shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    assert_close(jax.jit(run)(params, x), step(params, x), "float32")


def test_other_fresh_values_in_a_loop_are_refused_with_the_remedy(x64):
    params, xs, *_ = operands(STREAM)
    like = lambda xs: jax.eval_shape(lambda: STREAM.initial_state(xs.shape[1:-1], xs.dtype))  # noqa: E731
    zeros = lambda xs: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like(xs))  # noqa: E731
    with pytest.raises(TypeError, match=r"data_parallel: a loop in f carries .*pcast\(zeros, 'batch', to='varying'\)"):
        parallel(functools.partial(scanned_loss, start=zeros), (None, 1))(params, xs)
    mended = lambda xs: jax.lax.pcast(zeros(xs), "batch", to="varying")  # noqa: E731
    quick_jit(parallel(functools.partial(scanned_loss, start=mended), (None, 1)))(params, xs)
