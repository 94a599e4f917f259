"""The units of a layer sharded over devices: numbers equal those of one device, collectives those of the documentation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from experiments.benchmarks._collectives import collectives, compiled_text
from jaxrnn.cells import FAMILIES
from tests.support.own_gru import own_gru
from tests.support.registry import assert_close, quick_jit, random_like
from tests.testing import own

pytestmark = pytest.mark.devices

I, H, T, B = 4, 8, 6, 4  # noqa: E741
N = 4  # devices along the axis of the units

CELLS = {family.factory.__name__: family.factory(H) for family in FAMILIES if family.by_units} | {
    "lstm-projection": jaxrnn.lstm(H, projection_size=4, peephole=True),
    "lstm-coupled": jaxrnn.lstm(H, coupled=True, use_bias=False),
    "gru-before": jaxrnn.gru(H, reset_after=False),
    "indrnn": jaxrnn.indrnn(H, activation="tanh"),
    "lstm-heads": jaxrnn.lstm(H, num_heads=4, peephole=True, layer_norm=True),
    "gru-heads": jaxrnn.gru(H, num_heads=8),
    "mgu-heads": jaxrnn.mgu(H, num_heads=4),
    "own": own_gru(H),
}


def mesh_of(*sizes, names=("model", "data"), types=AxisType.Auto):
    count = int(np.prod(sizes))
    return jax.make_mesh(sizes, names[: len(sizes)], axis_types=(types,) * len(sizes), devices=jax.devices()[:count])


def placed(model, mesh=None, **options):
    return jaxrnn.model_parallel(model, mesh_of(N) if mesh is None else mesh, **options)


def stored(params, mesh=None):
    return jax.device_put(params, jaxrnn.param_shardings(params, mesh_of(N) if mesh is None else mesh))


def weigh(tree):
    """A sum over all entries with random weights."""
    leaves = jax.tree.leaves(tree)
    weights = (np.random.default_rng(k).standard_normal(leaf.shape) for k, leaf in enumerate(leaves))
    return sum(jnp.sum(jnp.asarray(w, leaf.dtype) * leaf) for w, leaf in zip(weights, leaves, strict=True))


def operands(cell, dtype=jnp.float64):
    params = random_like(0, jax.eval_shape(lambda: cell.init(jax.random.key(0), I)), dtype, scale=0.5)
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), dtype), dtype)
    state = random_like(2, jax.eval_shape(lambda: cell.initial_state((B,))), dtype)
    return params, xs, state


LENGTHS = np.asarray([T, 0, 3, 5], np.int32)


@functools.cache
def _alone(name, options):
    """Values and gradients on one device."""
    return numbers(CELLS[name], **dict(options))(*operands(CELLS[name]))


def alone(name, **options):
    return _alone(name, tuple(options.items()))


def numbers(cell, **options):
    """A function of parameters, inputs and states that returns the values of `unroll` and all gradients."""

    def value(params, xs, state):
        found = jaxrnn.unroll(cell, params, xs, state, return_states=True, lengths=LENGTHS, **options)
        return weigh(found), found

    return quick_jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_equal_one_device(name, x64):
    params, xs, state = operands(CELLS[name])
    found = numbers(placed(CELLS[name]))(stored(params), xs, state)
    assert_close(found, alone(name))
    by_rows = NamedSharding(mesh_of(N), PartitionSpec("model"))
    matrices = [leaf for leaf in jax.tree.leaves(found[1][0]) if leaf.ndim == 2 and leaf.shape[0] % N == 0]
    assert matrices
    assert all(leaf.sharding.is_equivalent_to(by_rows, 2) for leaf in matrices)


@pytest.mark.parametrize("options", [
    {"checkpoint": 4}, {"checkpoint": "gates"}, {"implementation": "scan"}, {"reverse": True, "truncate": 3, "clip_gradient": 0.3},
], ids=str)  # fmt: skip
def test_options_of_unroll_equal_one_device(options, x64):
    params, xs, state = operands(CELLS["lstm"])
    assert_close(numbers(placed(CELLS["lstm"]), **options)(stored(params), xs, state), alone("lstm", **options))


@pytest.mark.parametrize("options", [{}, {"checkpoint": "sqrt"}], ids=str)
def test_batch_sharded_over_another_axis_equals_one_device(options, x64):
    """The mesh has four by two devices. Gradients of weights are summed over the second axis."""
    mesh = mesh_of(4, 2)
    params, xs, state = operands(CELLS["gru"])
    found = numbers(placed(CELLS["gru"], mesh, batch_axis="data"), **options)(stored(params, mesh), xs, state)
    assert_close(found, alone("gru"))
    assert len(found[0][1][1].sharding.device_set) == 8
    assert found[0][1][1].addressable_shards[0].data.shape == (T, B // 2, H // 4)


def test_half_precision_products_accumulate_in_float32():
    cell, mesh = CELLS["lstm"], mesh_of(N)
    params, xs, state = operands(cell, jnp.float32)
    run = lambda cell: quick_jit(functools.partial(jaxrnn.unroll, cell, compute_dtype=jnp.bfloat16))  # noqa: E731
    expected, found = run(cell)(params, xs, state)[1], run(placed(cell, mesh))(stored(params, mesh), xs, state)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


NET = jaxrnn.stack([jaxrnn.lstm(H), jaxrnn.gru(4)], bidirectional=True, dropout=0.3)


def test_network_trains_as_on_one_device(x64):
    """Twenty steps of Adam, bidirectional, with lengths and dropout. Moments are sharded as parameters are."""
    mesh = mesh_of(4, 2)
    optimizer = optax.adam(1e-2)

    def trained(net, params):
        def loss(params, key):
            ys = net.unroll(params, xs, lengths=LENGTHS, key=key)[1]
            return jnp.mean((ys - 1) ** 2)

        @quick_jit
        def step(params, moments, key):
            gradients = jax.grad(loss)(params, key)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
                updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments

        moments = jax.jit(optimizer.init)(params)
        for key in jax.random.split(jax.random.key(3), 20):
            params, moments = step(params, moments, key)
        return params, moments

    params = random_like(0, jax.eval_shape(lambda: NET.init(jax.random.key(0), I)), jnp.float64, scale=0.5)
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    expected, _ = trained(NET, params)
    found, moments = trained(placed(NET, mesh, batch_axis="data"), stored(params, mesh))
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)
    for tree in (found, moments[0].mu):
        w_h = tree[0].forward.w_h
        assert {shard.data.shape for shard in w_h.addressable_shards} == {(H // 4, 4 * H)}


def counts(cell, differentiate, time):
    """The collectives in loops over time, each with its kind, executions and bytes, and those outside loops."""
    mesh, batch = mesh_of(N), 128  # segments of eight steps

    def loss(params, xs):
        return jnp.mean(jaxrnn.unroll(cell, params, xs)[1] ** 2)

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    f = jax.value_and_grad(loss) if differentiate else loss
    f = quick_jit(f, in_shardings=(jaxrnn.param_shardings(params, mesh), NamedSharding(mesh, PartitionSpec())))
    found = collectives(compiled_text(f, params, jax.ShapeDtypeStruct((time, batch, I), jnp.float32)))
    within = [(c.kind, c.times, c.bytes) for c in found if c.depth]
    return sorted(within), [c for c in found if not c.depth]


@pytest.mark.parametrize(
    ("name", "a_step"), [("lstm", 1), ("gru-before", 2), ("indrnn", 0), ("gru-heads", 0), ("lstm-heads", 0)]
)
def test_steps_exchange_the_documented_collectives(name, a_step):
    """The numbers of the table of `model_parallel`, in the compiled program."""
    time, rows, word = 32, 128, 4
    cell = placed(CELLS[name])
    gathers = [("all-gather", time, rows * H * word)] * a_step
    within, _ = counts(cell, False, time)
    assert within == gathers
    within, outside = counts(cell, True, time)
    segments = [("all-gather", time // 8, 8 * rows * H * word)] * a_step
    scatters = [("reduce-scatter", time, rows * H * word // N)] * a_step
    assert within == sorted(gathers + segments + scatters)
    whole = I * H + (0 if a_step == 0 else H * H)
    assert sum(c.bytes for c in outside if c.kind == "all-to-all") == 2 * word * _gates(name) * whole // N
    assert not [c for c in outside if c.kind == "all-gather" and c.bytes > word * H * 4]  # biases alone


def _gates(name):
    return {"lstm": 4, "gru": 3, "indrnn": 1}[name.split("-")[0]]


def test_whole_heads_are_on_a_device():
    """The blocks, their moments and their gradients are sharded by head."""
    params, xs, state = operands(CELLS["gru-heads"], jnp.float32)
    gradient = numbers(placed(CELLS["gru-heads"]))(stored(params), xs, state)[1][0].w_h
    for w_h in (stored(params).w_h, gradient):
        assert [shard.data.shape for shard in w_h.addressable_shards] == [(8 // N, 1, 3)] * N


def test_heads_that_the_devices_do_not_divide_raise():
    with pytest.raises(ValueError, match=r"heads that the 4 devices of the mesh axis 'model' divide, got 2 in gru"):
        placed(jaxrnn.gru(H, num_heads=2))


def test_columns_sharded_by_the_compiler_exchange_gates_every_step():
    """These exchanges are why `model_parallel` does not leave the sharding to the compiler."""
    cell, mesh = CELLS["lstm"], mesh_of(N)
    params, xs, _ = operands(cell, jnp.float32)
    columns = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model")), params)
    f = quick_jit(lambda params, xs: jaxrnn.unroll(cell, params, xs)[1], in_shardings=(columns, None))
    assert sum(c.depth > 0 for c in collectives(compiled_text(f, params, xs))) == 13


def test_modules_shard_their_parameters():
    mesh, rows = mesh_of(N), {"out_sharding": ("model", None)}
    with jax.set_mesh(mesh):
        module = jaxrnn.modules.LSTM(I, H, kernel_metadata=rows, recurrent_metadata=rows, rngs=nnx.Rngs(0))
    assert nnx.get_partition_spec(nnx.state(module))["layers"][0]["w_h"].get_value() == PartitionSpec("model", None)
    expected = jax.tree.leaves(jaxrnn.param_shardings(module.params, mesh))[:2]
    for leaf, sharding in zip(jax.tree.leaves(module.params)[:2], expected, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, 2)
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float32), jnp.float32)
    ys = quick_jit(placed(module.network, mesh).unroll)(module.params, xs)[1]
    host = jax.tree.map(np.asarray, module.params)
    assert_close(ys, quick_jit(module.network.unroll)(host, xs)[1], "float32")


def test_saved_cell_loads_without_its_placement(tmp_path):
    cell, mesh = CELLS["gru"], mesh_of(N)
    params = stored(operands(cell, jnp.float32)[0], mesh)
    jaxrnn.save(tmp_path / "gru.safetensors", placed(cell, mesh), params)
    again, values = jaxrnn.load(tmp_path / "gru.safetensors")
    assert again == cell._replace(
        init=again.init, initial_state=again.initial_state, step=again.step, check=again.check
    )
    chex.assert_trees_all_equal(values, params)


# Explicit meshes, which jax.make_mesh makes by default


@pytest.mark.parametrize("options", [{}, {"checkpoint": 4}, {"implementation": "scan"}], ids=str)
def test_batch_on_an_explicit_mesh_equals_one_device_and_stays_sharded(options, x64):
    mesh = mesh_of(2, 2, names=("data", "other"), types=AxisType.Explicit)
    put = lambda tree, *spec: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    params, xs, state = operands(CELLS["lstm"])
    (_, found), gradients = _explicit(CELLS["lstm"], options)(put(params), put(xs, None, "data"), state, LENGTHS)
    (_, expected), expected_gradients = alone("lstm")
    assert_close((found, gradients), (expected, expected_gradients))
    assert found[1].sharding.spec == PartitionSpec(None, "data", None)
    found = collectives(_explicit.text)
    assert found
    assert all(c.depth == 0 for c in found) or "implementation" in options


def test_noise_on_an_explicit_mesh_equals_one_device(x64):
    """Every sequence has its own noise, on the device of the sequence."""
    cell = jaxrnn.regularize(CELLS["rnn"], recurrent_dropout=0.4, zoneout=0.2)
    mesh = mesh_of(2, names=("data",), types=AxisType.Explicit)
    params, xs, _ = operands(cell)
    run = quick_jit(functools.partial(jaxrnn.unroll, cell, key=jax.random.key(5)))
    expected = run(params, xs)
    assert_close(run(params, jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "data")))), expected)
    assert abs(np.asarray(expected[1]) - np.asarray(jaxrnn.unroll(cell, params, xs, key=None)[1])).max() > 0.1


def _explicit(cell, options):
    def value(params, xs, state, lengths):
        found = jaxrnn.unroll(cell, params, xs, state, return_states=True, lengths=lengths, **options)
        return weigh(jax.sharding.reshard(found, NamedSharding(jax.typeof(xs).sharding.mesh, PartitionSpec()))), found

    def run(*args):
        f = quick_jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))
        _explicit.text = compiled_text(f, *args)
        return f(*args)

    return run


# Refusals


def mixing():
    """A cell of one's own whose units read the mean of all units, which a device does not have."""
    cell = own_gru(H)

    def forward(params, h, a):
        after, y, kept = cell.rule.forward(params, h, a)
        return after * h.mean(), y, kept

    return cell._replace(rule=cell.rule._replace(forward=forward))


def refused(call, error, message):
    return pytest.param(call, error, message, id=message[:40])


@pytest.mark.parametrize(("call", "error", "message"), [
    refused(lambda: placed(CELLS["rnn"], mesh="model"), TypeError, "model_parallel: mesh expected a Mesh, .*, got str 'model'"),
    refused(lambda: placed(CELLS["rnn"], axis="units"), ValueError, "model_parallel: axis expected an axis of the mesh, model; got 'units'"),
    refused(lambda: placed(CELLS["rnn"], batch_axis="data"), ValueError, "model_parallel: batch_axis expected an axis of the mesh, model; got 'data'"),
    refused(lambda: placed(CELLS["rnn"], batch_axis="model"), ValueError, "model_parallel: batch_axis expected another axis than that of the units"),
    refused(lambda: placed(CELLS["rnn"], mesh_of(2, types=AxisType.Explicit)), ValueError, "model_parallel: mesh expected axes of AxisType.Auto, got"),
    refused(lambda: placed(jaxrnn.rnn(6)), ValueError, r"model_parallel: model expected units that the 4 devices of the mesh axis 'model' divide, got 6 in rnn\(6\)"),
    refused(lambda: placed(jaxrnn.stack([jaxrnn.rnn(8), jaxrnn.lstm(8, projection_size=3)], bidirectional=True)), ValueError, r"model_parallel: layers\[1\].forward expected units .* got 3 in lstm"),
    refused(lambda: placed(jaxrnn.lstm(8, layer_norm=True)), NotImplementedError, "model_parallel: model expected a cell of rnn, lstm, gru, mgu, slstm, indrnn, min_gru, min_lstm without layer normalisation"),
    refused(lambda: placed(jaxrnn.regularize(jaxrnn.rnn(8), zoneout=0.1)), NotImplementedError, "model_parallel: model expected a cell of"),
    refused(lambda: placed(own.CELL), NotImplementedError, "model expected a rule whose units read each other by jaxrnn.dot .*got own, whose rule raises ValueError on a device's share"),
    refused(lambda: placed(mixing()), NotImplementedError, "got own_gru, of which the state differs between 4 devices and one"),
    refused(lambda: placed(own_gru(8)._replace(rule=None)), NotImplementedError, "got own_gru, which has no rule, or noise"),
    refused(lambda: placed(jaxrnn.rnn(8, activation=jax.nn.softmax)), NotImplementedError, "model_parallel: model expected an activation that does the same to every unit by itself, .*, got rnn"),
    refused(lambda: placed(jaxrnn.rnn(8, activation=lambda a: jnp.arange(a.shape[-1]) * a)), NotImplementedError, "model_parallel: model expected an activation that does the same to every unit"),
    refused(lambda: jax.jit(lambda _: placed(jaxrnn.indrnn(8, activation=lambda a: jnp.arange(a.shape[-1]) * a)).init(jax.random.key(0), 2))(0), NotImplementedError, "that does the same to every unit"),
    refused(lambda: placed(jaxrnn.stack([jaxrnn.rnn(8, activation=lambda a: jnp.ones(8) * a)])), NotImplementedError, r"model_parallel: layers\[0\] expected an activation .* which raises mul got incompatible shapes"),
    refused(lambda: placed("lstm"), TypeError, "model_parallel: model expected a Cell or a Network, got str 'lstm'"),
    refused(lambda: jaxrnn.param_shardings((), mesh_of(2), "units"), ValueError, "param_shardings: axis expected an axis of the mesh, model; got 'units'"),
    refused(lambda: _run(placed(CELLS["rnn"], mesh_of(1, 4), batch_axis="data"), (T, 6, I)), ValueError, r"unroll: xs expected a batch axis 1 that the 4 devices of the mesh axis 'data' divide, got shape \(6, 6, 4\)"),
    refused(lambda: _run(jaxrnn.regularize(placed(CELLS["rnn"]), zoneout=0.1), (T, 2, I)), NotImplementedError, "regularize: cell rnn.* is sharded by units"),
    refused(lambda: _sharded_twice(), ValueError, "unroll: cell .* is sharded by `unroll` itself, expected a call outside of shard_map"),
])  # fmt: skip
def test_bad_arguments_are_refused(call, error, message, unhooked):
    with pytest.raises(error, match=message):
        call()


def _run(cell, shape):
    return jaxrnn.unroll(cell, operands(cell, jnp.float32)[0], np.ones(shape, np.float32))


def _sharded_twice():
    cell = placed(CELLS["rnn"])
    f = lambda params, xs: jnp.mean(jaxrnn.unroll(cell, params, xs)[1])  # noqa: E731
    jaxrnn.data_parallel(f, (None, 1))(operands(cell, jnp.float32)[0], np.ones((T, 8, I), np.float32))
