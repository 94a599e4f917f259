"""`implementation="cudnn"`: it equals "bptt", and refuses what it does not support.

cuDNN runs on a GPU alone. The reference of `jax.experimental.rnn` computes the same anywhere. The tests call the
reference instead, which proves packing, lengths, directions and states.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn as library
from jax.sharding import AxisType

import jaxrnn
from jaxrnn.sequence.implementations import cudnn
from jaxrnn.sequence.implementations.cudnn import Cudnn
from jaxrnn.sequence.implementations.protocol import HEADS, REASONS
from jaxrnn.sequence.request import CLOSURES, FEATURES, Device, Inputs, Options
from tests.support.registry import LENGTHS, B, H, I, T, assert_close, make, quick_jit, random_like, weighed
from tests.support.requests import ARGUMENTS, CUDA, FLAGS, OWN, traced

VALID = np.arange(T)[:, None] < LENGTHS


@dataclasses.dataclass(frozen=True)
class ByReference(Cudnn):
    """The implementation with the reference of JAX in place of cuDNN, and with float64."""

    supports = Cudnn.supports | {"float64"}
    kernel: cudnn.Kernel = cudnn.by_reference


@pytest.fixture
def on_cuda(monkeypatch):
    """Makes `unroll` believe that inputs are on a GPU."""
    monkeypatch.setattr(ARGUMENTS, "device_of", lambda xs: CUDA)


BY_REFERENCE = ByReference()


def with_gradients(f):
    """A function that returns the result of f, and the gradients of a scalar function of all its entries."""

    def both(*operands):
        outcome, pullback = jax.vjp(f, *operands)
        (weights,) = jax.vjp(weighed, outcome)[1](jnp.ones((), outcome[1].dtype))
        return outcome, pullback(weights)

    return quick_jit(both)


def with_nan_in_padding(xs):
    """Inputs with NaN at masked steps."""
    return jnp.where(VALID[..., None], xs, jnp.nan)


# Values and gradients


@pytest.mark.parametrize(("reverse", "given"), [(False, True), (True, True), (True, False)])
def test_one_layer_equals_bptt(reverse, given, on_cuda, x64):
    case = make("lstm")
    xs, lengths = (with_nan_in_padding(case.xs), LENGTHS) if given else (case.xs, None)

    def outcome(implementation):
        options = {"lengths": lengths, "reverse": reverse, "implementation": implementation}
        return with_gradients(lambda *operands: jaxrnn.unroll(case.cell, *operands, **options))

    assert_close(*(outcome(name)(case.params, xs, case.state) for name in (BY_REFERENCE, "bptt")))


NETWORKS = {
    "bidirectional": {"cells": [jaxrnn.lstm(H), jaxrnn.lstm(H, use_bias=False)], "bidirectional": True},
    "one layer, summed": {"cells": [jaxrnn.lstm(H)], "bidirectional": True, "merge": "sum"},
    "in reverse": {"cells": [jaxrnn.lstm(H), jaxrnn.lstm(H)], "reverse": True},
}


def network(cells, dtype, **options):
    net = jaxrnn.stack(cells, **options)
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = random_like(0, shapes, dtype, scale=0.6)
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), dtype), dtype)
    states = random_like(2, jax.eval_shape(lambda: net.initial_state((B,))), dtype)
    return net, params, xs, states


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_bptt_in_one_call(name, on_cuda, x64):
    options = dict(NETWORKS[name])
    reverse = options.pop("reverse", False)
    net, params, xs, states = network(dtype=jnp.float64, **options)
    made, counting = counted()

    def outcome(implementation):
        given = {"lengths": LENGTHS, "reverse": reverse, "implementation": implementation}
        return with_gradients(lambda *operands: net.unroll(*operands, **{"key": None, **given}))

    assert_close(*(outcome(name)(params, with_nan_in_padding(xs), states) for name in (counting, "bptt")))
    assert made == [(len(net.layers), options.get("bidirectional", False))]


def counted():
    """An implementation that records its calls, and the record: layers and directions of every call."""
    made = []

    def kernel(*operands):
        made.append(operands[-1][2:])
        return cudnn.by_reference(*operands)

    return made, ByReference(kernel)


@pytest.mark.parametrize(
    ("cells", "options", "calls_made"),
    [
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"dropout": 0.5}, 2),
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"residual": True}, 2),
        ([jaxrnn.lstm(H), jaxrnn.lstm(3)], {}, 2),
        ([jaxrnn.lstm(H), jaxrnn.Bidirectional(jaxrnn.lstm(H), jaxrnn.lstm(H))], {}, 3),
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"bidirectional": True, "merge": "average"}, 4),
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"bidirectional": True, "dropout": 0.5}, 4),
    ],
)
def test_dropout_residual_and_unequal_sizes_make_a_call_for_each_layer(cells, options, calls_made, on_cuda):
    made, counting = counted()
    net, params, xs, states = network(cells, jnp.float32, **options)
    f = lambda xs: net.unroll(params, xs, states, key=jax.random.key(0), implementation=counting)  # noqa: E731
    finals, ys = jax.eval_shape(f, xs)
    assert made == [(1, False)] * calls_made
    expected = jax.eval_shape(lambda xs: net.unroll(params, xs, states, key=None), xs)
    chex.assert_trees_all_equal_shapes_and_dtypes((finals, ys), expected)


def test_dropout_of_a_single_layer_leaves_its_two_directions_in_one_call(on_cuda):
    made, counting = counted()
    with pytest.warns(UserWarning, match="stack: dropout = 0.5 does nothing with one layer"):
        net, params, xs, states = network([jaxrnn.lstm(H)], jnp.float32, bidirectional=True, dropout=0.5)
    f = lambda xs: net.unroll(params, xs, states, key=jax.random.key(0), implementation=counting)  # noqa: E731
    jax.eval_shape(f, xs)
    assert made == [(1, True)]


def test_packed_weights_equal_those_of_to_cudnn():
    _net, params, *_ = network([jaxrnn.lstm(H), jaxrnn.lstm(H)], jnp.float32, bidirectional=True)
    packed = cudnn.pack(cudnn._records(params))
    np.testing.assert_array_equal(packed, jaxrnn.interop.to_cudnn(params))
    assert packed.size == library.get_num_params_in_lstm(I, H, 2, True)


def test_reversal_keeps_padding_in_place():
    xs = jnp.arange(12.0).reshape(4, 3, 1)
    reversed_ = cudnn.reverse_valid(xs, jnp.array([3, 0, 4]))[..., 0]
    np.testing.assert_array_equal(reversed_.T, [[6, 3, 0, 9], [1, 4, 7, 10], [11, 8, 5, 2]])


def test_empty_sequences_are_called_with_length_1():
    """JAX documents length 0 for its reference, but not for its call of cuDNN."""
    case = make("lstm", dtype=jnp.float32)
    seen = []

    def kernel(xs, h, c, weights, lengths, sizes):
        seen.append(np.asarray(lengths))
        return jnp.zeros((B, T, H)), h + 1, c + 1

    inputs = Inputs(case.params, case.xs, case.state, None, VALID, None, None)
    final, _, _ = Cudnn(kernel).run(Options(case.cell.equations), inputs)
    np.testing.assert_array_equal(seen[0], [T, 1, 1, 4, T])
    kept = (LENGTHS == 0)[:, None]
    np.testing.assert_array_equal(final.h, np.where(kept, case.state.h, case.state.h + 1))
    np.testing.assert_array_equal(final.c, np.where(kept, case.state.c, case.state.c + 1))


def test_any_batch_shape_and_no_steps_are_supported(on_cuda, x64):
    case = make("lstm", ())
    run = lambda xs, state: jaxrnn.unroll(case.cell, case.params, xs, state, implementation=BY_REFERENCE)  # noqa: E731
    alone = run(case.xs, case.state)
    assert_close(alone, jaxrnn.unroll(case.cell, case.params, case.xs, case.state, implementation="scan"))
    grid = lambda leaf, axis: jnp.expand_dims(leaf, (axis, axis + 1))  # noqa: E731
    final, ys = run(grid(case.xs, 1), jax.tree.map(lambda leaf: grid(leaf, 0), case.state))
    assert_close((jax.tree.map(lambda leaf: leaf[0, 0], final), ys[:, 0, 0]), alone)
    final, ys = run(case.xs[:0], case.state)
    assert_close(final, case.state)
    chex.assert_shape(ys, (0, H))
    chex.assert_shape(run(jnp.zeros((T, 2, 0, I)), case.cell.initial_state((2, 0)))[1], (T, 2, 0, H))


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [(None, True), ("tensorfloat32", True), ("bfloat16", True), ("highest", False), ("F32_F32_F32", False)],
)
def test_library_receives_sizes_lengths_and_precision(precision, allowed, on_cuda, monkeypatch):
    """Tracing the call needs a GPU only for the size of a workspace. The test replaces that size."""
    workspace = lambda *sizes: (8, 8)  # noqa: E731
    monkeypatch.setattr(library.gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", workspace, raising=False)
    net, params, xs, states = network([jaxrnn.lstm(H), jaxrnn.lstm(H)], jnp.float32, bidirectional=True)

    def loss(params, xs, states):
        return weighed(net.unroll(params, xs, states, lengths=LENGTHS, implementation="cudnn"))

    with jax.default_matmul_precision(precision):
        equations = {e.primitive.name: e for e in inner(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(params, xs, states))}
    for name in ("rnn_fwd", "rnn_bwd"):
        asked = equations[name].params
        assert asked.pop("cudnn_allow_tf32") is allowed
        assert asked == {"input_size": I, "hidden_size": H, "num_layers": 2, "bidirectional": True, "dropout": 0.0}
    shapes = [(v.aval.shape, str(v.aval.dtype)) for v in equations["rnn_fwd"].invars]
    size = library.get_num_params_in_lstm(I, H, 2, True)
    assert shapes == [((B, T, I), "float32"), *[((4, B, H), "float32")] * 2, ((size,), "float32"), ((B,), "int32")]


def inner(jaxpr):
    """All equations of a program, called functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from inner(getattr(value, "jaxpr", value))


# Refusals


NO_CELL = "jax.experimental.rnn has no cell but cuDNN's LSTM"
NO_VARIANT = "the LSTM of jax.experimental.rnn has no projection, peepholes, coupled gates or normalisation"
OTHER_CELLS = {
    NO_CELL: [
        jaxrnn.gru(H),
        jaxrnn.gru(H, reset_after=False),
        jaxrnn.rnn(H),
        jaxrnn.rnn(H, activation=jnp.sin),
        jaxrnn.mgu(H),
        jaxrnn.regularize(jaxrnn.lstm(H), zoneout=0.1),
        jaxrnn.lstm(H)._replace(rule=jaxrnn.lstm(H).rule._replace(prepare=None)),
        OWN,
    ],
    NO_VARIANT: [
        jaxrnn.lstm(H, projection_size=2),
        jaxrnn.lstm(H, peephole=True),
        jaxrnn.lstm(H, coupled=True),
        jaxrnn.lstm(H, layer_norm=True),
    ],
    HEADS: [jaxrnn.lstm(16, num_heads=2)],  # D = 4N: the blocks (2, 8, 32) have four times as many rows as heads
}


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("cell", "reason"), [(cell, reason) for reason, cells in OTHER_CELLS.items() for cell in cells], ids=repr
)
def test_other_cells_are_refused(cell, reason, monkeypatch):
    with pytest.raises(NotImplementedError) as error:
        traced(monkeypatch, "cudnn", cell=cell)
    assert str(error.value) == f"unroll: implementation 'cudnn' does not support this call of {cell!r}; {reason}"


REQUESTS = {
    "mask": {"mask": FLAGS},
    "resets": {"resets": FLAGS},
    "return_states": {"return_states": True},
    'checkpoint="gates"': {"checkpoint": "gates"},
    "checkpoint=K": {"checkpoint": "sqrt"},
    "compute_dtype": {"compute_dtype": jnp.bfloat16},
    "truncate": {"truncate": 2},
    "clip_gradient": {"clip_gradient": 1.0},
    "model_parallel": {
        "cell": jaxrnn.model_parallel(jaxrnn.lstm(H), jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))),
    },
    "float64": {"dtype": jnp.float64},
    "bfloat16, float16": {"dtype": jnp.bfloat16},
    "a CPU": {"device": Device("cpu", "cpu")},
    "an AMD GPU": {"device": Device("rocm", "AMD")},
    "a TPU": {"device": Device("tpu", "TPU v9")},
}
SUPPORTED = {"lengths": {"lengths": LENGTHS}, "reverse": {"reverse": True}, "float32": {}, "an NVIDIA GPU": {}}


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("feature", REQUESTS)
def test_unsupported_features_are_refused(feature, monkeypatch, x64):
    with pytest.raises(NotImplementedError) as error:
        traced(monkeypatch, "cudnn", **REQUESTS[feature])
    reason = f"{feature}: {Cudnn.reasons[feature]}"
    assert str(error.value) == f"unroll: implementation 'cudnn' does not support this call of lstm({H}); {reason}"


@pytest.mark.parametrize("feature", SUPPORTED)
def test_supported_features_run(feature, monkeypatch):
    made, counting = counted()
    _, ys = traced(monkeypatch, counting, **SUPPORTED[feature])
    assert ys.shape == (T, B, H)
    assert len(made) == 1


def test_every_feature_is_tested():
    assert {*REQUESTS, CLOSURES, "shard_map with its checks", "a batch on an explicit mesh"} == set(Cudnn.reasons)
    assert {*SUPPORTED, *Cudnn.reasons, *REASONS} == set(FEATURES)
    assert set(SUPPORTED) == Cudnn.supports


@pytest.mark.devices
def test_shard_map_with_checks_is_refused(on_cuda):
    """Gradients inside such a shard_map would be wrong."""
    _, counting = counted()
    case = make("lstm", (4,), dtype=jnp.float32)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "batch")

    def trace(**options):
        f = lambda xs: jaxrnn.unroll(case.cell, case.params, xs, implementation=counting)[1]  # noqa: E731
        return jax.eval_shape(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, **options), case.xs)

    with pytest.raises(NotImplementedError, match="shard_map with its checks: jax.experimental.rnn does not say"):
        trace()
    assert trace(check_vma=False).shape == (T, 4, H)


@pytest.mark.devices
@pytest.mark.usefixtures("unhooked")
def test_batch_on_an_explicit_mesh_is_refused(on_cuda):
    case = make("lstm", (4,), dtype=jnp.float32)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    xs = jax.device_put(case.xs, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch")))
    refused = pytest.raises(NotImplementedError, match="a batch on an explicit mesh: jax.experimental.rnn does not say")
    with refused, jax.set_mesh(mesh):
        jaxrnn.unroll(case.cell, case.params, xs, implementation="cudnn", key=None)


def test_integer_states_are_refused(monkeypatch):
    counter = lambda batch_shape=(): jax.tree.map(jnp.int32, jaxrnn.lstm(H).initial_state(batch_shape))  # noqa: E731
    with pytest.raises(NotImplementedError, match="supports float32"):
        traced(monkeypatch, "cudnn", cell=jaxrnn.lstm(H)._replace(initial_state=counter))


def test_network_with_another_rule_is_refused(on_cuda):
    cell = jaxrnn.lstm(H)
    other = cell._replace(rule=cell.rule._replace(prepare=None))
    net, params, xs, _ = network([other, other], jnp.float32)
    with pytest.raises(NotImplementedError, match=NO_CELL):
        net.unroll(params, xs, implementation="cudnn")


def test_network_is_refused_for_the_reasons_of_its_cells(on_cuda):
    net, params, xs, states = network([jaxrnn.lstm(H, peephole=True)] * 2, jnp.float32)
    run = lambda **options: net.unroll(params, xs, states, implementation="cudnn", **options)  # noqa: E731
    with pytest.raises(NotImplementedError, match=rf"this call of stack\(\[lstm.*; {NO_VARIANT}"):
        run()
    net, params, xs, states = network([jaxrnn.lstm(H)] * 2, jnp.float32)
    with pytest.raises(NotImplementedError, match="resets: cuDNN runs the whole sequence"):
        run(resets=FLAGS)
    with pytest.raises(ValueError, match="has last axis 4, params.w_x expects 3"):
        net.unroll((params[0], params[1]._replace(w_x=params[0].w_x)), xs, states, implementation="cudnn")


def test_model_parallel_network_is_refused(on_cuda):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    net, params, xs, _ = network([jaxrnn.lstm(H)] * 2, jnp.float32)
    with pytest.raises(NotImplementedError, match="model_parallel: jax.experimental.rnn does not say"):
        jaxrnn.model_parallel(net, mesh).unroll(params, xs, implementation="cudnn")


def test_cpu_is_refused():
    with pytest.raises(NotImplementedError, match="a CPU: cuDNN runs on NVIDIA's GPUs"):
        jaxrnn.unroll(*make("lstm", dtype=jnp.float32)[:3], implementation="cudnn")
