"""Implementations beside the scan: that they compute the same, what they refuse, and why.

cuDNN runs on a GPU alone. `jax.experimental.rnn` says what it computes by a reference that runs anywhere; here that
takes the place of its one call, so that packing, lengths, directions and states are what is proved.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn as library
from jax.sharding import AxisType

import jaxrnn
from jaxrnn import backends
from jaxrnn.backends import cudnn
from jaxrnn.backends.calls import FEATURES, Device
from jaxrnn.backends.capability import TRANSFORMATIONS
from jaxrnn.sequence.plan import Inputs, Plan
from tests.registry import LENGTHS, B, H, I, T, assert_close, make, quick_jit, random_like, weighed

ROOT = Path(__file__).parent.parent
UNROLL = sys.modules["jaxrnn.sequence.unroll"]
VALID = np.arange(T)[:, None] < LENGTHS
CUDA = Device("cuda", "NVIDIA of a test")
BY_REFERENCE = functools.partial(cudnn.cudnn, kernel=cudnn.by_reference)


@pytest.fixture
def on_cuda(monkeypatch):
    """As if inputs lay on a GPU."""
    monkeypatch.setattr(UNROLL, "device_of", lambda xs: CUDA)


@pytest.fixture
def by_reference(monkeypatch, on_cuda, x64):
    """The library's reference for its call, in float64, which the call itself does not take."""
    wide = {feature: reason for feature, reason in cudnn.REFUSES.items() if feature != "float64"}
    row = backends.IMPLEMENTATIONS["cudnn"]._replace(run=BY_REFERENCE, refuses=wide)
    monkeypatch.setitem(backends.IMPLEMENTATIONS, "cudnn", row)


def with_gradients(f):
    """What f gives, and the gradients of a scalar that every entry of it takes part in."""

    def both(*operands):
        outcome, pullback = jax.vjp(f, *operands)
        (weights,) = jax.vjp(weighed, outcome)[1](jnp.ones((), outcome[1].dtype))
        return outcome, pullback(weights)

    return quick_jit(both)


def poisoned(xs):
    """NaN where no step takes part."""
    return jnp.where(VALID[..., None], xs, jnp.nan)


# That it computes the same


@pytest.mark.parametrize(("reverse", "given"), [(False, True), (True, True), (True, False)])
def test_a_layer_is_that_of_the_scan(reverse, given, by_reference):
    case = make("lstm")
    xs, lengths = (poisoned(case.xs), LENGTHS) if given else (case.xs, None)

    def outcome(implementation):
        options = {"lengths": lengths, "reverse": reverse, "implementation": implementation}
        return with_gradients(lambda *operands: jaxrnn.unroll(case.cell, *operands, **options))

    assert_close(*(outcome(name)(case.params, xs, case.state) for name in ("cudnn", "bptt")))


NETWORKS = {
    "both ways": {"cells": [jaxrnn.lstm(H), jaxrnn.lstm(H, use_bias=False)], "bidirectional": True},
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
def test_a_network_is_one_call(name, by_reference, monkeypatch):
    options = dict(NETWORKS[name])
    reverse = options.pop("reverse", False)
    net, params, xs, states = network(dtype=jnp.float64, **options)
    made = counted(monkeypatch)

    def outcome(implementation):
        given = {"lengths": LENGTHS, "reverse": reverse, "implementation": implementation}
        return with_gradients(lambda *operands: net.unroll(*operands, **given))

    assert_close(*(outcome(name)(params, poisoned(xs), states) for name in ("cudnn", "bptt")))
    assert made == [(len(net.layers), options.get("bidirectional", False))]


def counted(monkeypatch):
    """Of every call of the library: its layers, and whether it reads both ways."""
    made = []

    def kernel(*operands):
        made.append(operands[-1][2:])
        return cudnn.by_reference(*operands)

    row = backends.IMPLEMENTATIONS["cudnn"]._replace(run=functools.partial(cudnn.cudnn, kernel=kernel))
    monkeypatch.setitem(backends.IMPLEMENTATIONS, "cudnn", row)
    return made


@pytest.mark.parametrize(
    ("cells", "options", "calls_made"),
    [
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"dropout": 0.5}, 2),
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"residual": True}, 2),
        ([jaxrnn.lstm(H), jaxrnn.lstm(3)], {}, 2),
        ([jaxrnn.lstm(H), jaxrnn.Bidirectional(jaxrnn.lstm(H), jaxrnn.lstm(H))], {}, 3),
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"bidirectional": True, "merge": "average"}, 4),
        ([jaxrnn.lstm(H), jaxrnn.lstm(H)], {"bidirectional": True, "dropout": 0.5}, 4),
        ([jaxrnn.lstm(H)], {"dropout": 0.5}, 1),
    ],
)
def test_what_stands_between_layers_parts_the_calls(cells, options, calls_made, on_cuda, monkeypatch):
    made = counted(monkeypatch)
    net, params, xs, states = network(cells, jnp.float32, **options)
    f = lambda xs: net.unroll(params, xs, states, key=jax.random.key(0), implementation="cudnn")  # noqa: E731
    finals, ys = jax.eval_shape(f, xs)
    assert made == [(1, False)] * calls_made
    expected = jax.eval_shape(lambda xs: net.unroll(params, xs, states), xs)
    assert jax.tree.map(lambda leaf: leaf.shape, (finals, ys)) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_weights_are_packed_as_those_that_are_exported():
    _net, params, *_ = network([jaxrnn.lstm(H), jaxrnn.lstm(H)], jnp.float32, bidirectional=True)
    packed = cudnn.pack(cudnn._records(params))
    np.testing.assert_array_equal(packed, jaxrnn.interop.to_cudnn(params))
    assert packed.size == library.get_num_params_in_lstm(I, H, 2, True)


def test_padding_stays_where_it_is():
    xs = jnp.arange(12.0).reshape(4, 3, 1)
    turned = cudnn.turned(xs, jnp.array([3, 0, 4]))[..., 0]
    np.testing.assert_array_equal(turned.T, [[6, 3, 0, 9], [1, 4, 7, 10], [11, 8, 5, 2]])


def test_the_library_gets_no_empty_sequence():
    """Its reference would take it; of the call itself nobody says so."""
    case = make("lstm", dtype=jnp.float32)
    seen = []

    def kernel(xs, h, c, weights, lengths, sizes):
        seen.append(np.asarray(lengths))
        return jnp.zeros((B, T, H)), h + 1, c + 1

    plan = Plan(case.cell, False, False, None, None, True, T, True)
    final, _, _ = cudnn.cudnn(plan, Inputs(case.params, case.xs, case.state, VALID, None, None, None), kernel)
    np.testing.assert_array_equal(seen[0], [T, 1, 1, 4, T])
    kept = (LENGTHS == 0)[:, None]
    np.testing.assert_array_equal(final.h, np.where(kept, case.state.h, case.state.h + 1))
    np.testing.assert_array_equal(final.c, np.where(kept, case.state.c, case.state.c + 1))


def test_any_batch_and_no_steps(by_reference):
    case = make("lstm", ())
    run = lambda xs, state: jaxrnn.unroll(case.cell, case.params, xs, state, implementation="cudnn")  # noqa: E731
    alone = run(case.xs, case.state)
    assert_close(alone, jaxrnn.unroll(case.cell, case.params, case.xs, case.state, implementation="scan"))
    grid = lambda leaf, axis: jnp.expand_dims(leaf, (axis, axis + 1))  # noqa: E731
    final, ys = run(grid(case.xs, 1), jax.tree.map(lambda leaf: grid(leaf, 0), case.state))
    assert_close((jax.tree.map(lambda leaf: leaf[0, 0], final), ys[:, 0, 0]), alone)
    final, ys = run(case.xs[:0], case.state)
    assert_close(final, case.state)
    assert ys.shape == (0, H)
    assert run(jnp.zeros((T, 2, 0, I)), case.cell.initial_state((2, 0)))[1].shape == (T, 2, 0, H)


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [(None, True), ("tensorfloat32", True), ("bfloat16", True), ("highest", False), ("F32_F32_F32", False)],
)
def test_the_library_is_called_as_it_wants(precision, allowed, on_cuda, monkeypatch):
    """Its call is traced, which needs no GPU but for the size of a workspace."""
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
    """All equations, those of called functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from inner(getattr(value, "jaxpr", value))


# What is refused


def lstm_of(**options):
    return {"cell": jaxrnn.lstm(H, **options)}


OWN = jaxrnn.Cell(*jaxrnn.lstm(H)[:3], name="own")
WITHOUT_UNITS = jaxrnn.gru(H).rule._replace(units=None)
FLAGS = np.ones((T, B), bool)
ASKED = {
    "`gru`": {"cell": jaxrnn.gru(H)},
    "`rnn`": {"cell": jaxrnn.rnn(H)},
    "`gru` with `reset_after=False`": {"cell": jaxrnn.gru(H, reset_after=False)},
    "`rnn` with an activation of your own": {"cell": jaxrnn.rnn(H, activation=jnp.sin)},
    "`mgu`, `indrnn`": {"cell": jaxrnn.mgu(H)},
    "a projection": lstm_of(projection_size=2),
    "peepholes": lstm_of(peephole=True),
    "coupled gates": lstm_of(coupled=True),
    "layer normalisation": lstm_of(layer_norm=True),
    "`regularize`": {"cell": jaxrnn.regularize(jaxrnn.lstm(H), zoneout=0.1)},
    "a cell of your own with a rule": {"cell": jaxrnn.lstm(H)._replace(config=None)},
    "a rule of your own without `units`": {"cell": jaxrnn.gru(H)._replace(config=None, rule=WITHOUT_UNITS)},
    "a cell without a rule": {"cell": OWN},
    "a state that is not floating-point throughout": {
        "cell": OWN._replace(
            initial_state=lambda batch_shape=(): jnp.zeros((*batch_shape, H), int), rule=jaxrnn.lstm(H).rule
        ),
    },
    "`mask`": {"mask": FLAGS},
    "`resets`": {"resets": FLAGS},
    "`return_states`": {"return_states": True},
    '`checkpoint="gates"`': {"checkpoint": "gates"},
    "`checkpoint=K`": {"checkpoint": "sqrt"},
    "`compute_dtype`": {"compute_dtype": jnp.bfloat16},
    "`truncate`": {"truncate": 2},
    "`clip_gradient`": {"clip_gradient": 1.0},
    "`model_parallel`": {
        "cell": jaxrnn.model_parallel(jaxrnn.lstm(H), jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))),
    },
    "float64": {"dtype": jnp.float64},
    "bfloat16, float16": {"dtype": jnp.bfloat16},
    "a CPU": {"device": Device("cpu", "cpu")},
    "an AMD GPU": {"device": Device("rocm", "AMD")},
    "a TPU": {"device": Device("tpu", "TPU v9")},
}


def asked(monkeypatch, implementation, cell=None, dtype=jnp.float32, device=CUDA, **options):
    """A call of `unroll`, traced alone."""
    monkeypatch.setattr(UNROLL, "device_of", lambda xs: device)
    cell = jaxrnn.lstm(H) if cell is None else cell
    params = jax.eval_shape(lambda key: cell.init(key, I, dtype), jax.random.key(0))
    f = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation=implementation, **options)  # noqa: E731
    return jax.eval_shape(f, params, jax.ShapeDtypeStruct((T, B, I), dtype))


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("feature", ASKED)
def test_cudnn_says_what_it_does_not_serve(feature, monkeypatch, x64):
    reason = cudnn.REFUSES[feature]
    with pytest.raises(NotImplementedError) as error:
        asked(monkeypatch, "cudnn", **ASKED[feature])
    name = repr(ASKED[feature].get("cell", jaxrnn.lstm(H)))
    said = f"unroll: implementation 'cudnn' cannot serve this call of {name}; {feature.replace('`', '')}: {reason}"
    if feature != "a state that is not floating-point throughout":  # such a cell is one of your own, too
        assert str(error.value) == said


def test_cudnn_refuses_where_gradients_would_be_summed_wrongly(on_cuda, monkeypatch):
    """In `shard_map` with its checks; without them it is called as anywhere."""
    counted(monkeypatch)
    case = make("lstm", (4,), dtype=jnp.float32)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "batch")

    def trace(**options):
        f = lambda xs: jaxrnn.unroll(case.cell, case.params, xs, implementation="cudnn")[1]  # noqa: E731
        return jax.eval_shape(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, **options), case.xs)

    with pytest.raises(NotImplementedError, match="shard_map with its checks: jax.experimental.rnn does not say"):
        trace()
    assert trace(check_vma=False).shape == (T, 4, H)


@pytest.mark.usefixtures("unhooked")
def test_a_batch_on_an_explicit_mesh_is_refused_too(on_cuda):
    case = make("lstm", (4,), dtype=jnp.float32)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    xs = jax.device_put(case.xs, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch")))
    refused = pytest.raises(NotImplementedError, match="a batch on an explicit mesh: jax.experimental.rnn does not say")
    with refused, jax.set_mesh(mesh):
        jaxrnn.unroll(case.cell, case.params, xs, implementation="cudnn")


def test_every_refusal_was_asked_for():
    assert {*ASKED, "`shard_map` with its checks", "a batch on an explicit mesh"} == set(cudnn.REFUSES)
    for each in backends.IMPLEMENTATIONS.values():
        assert set(each.refuses) <= set(FEATURES)
        assert set(each.transformations) <= set(TRANSFORMATIONS)


def test_what_is_not_refused_is_served(monkeypatch):
    """Every feature of the table that cuDNN is said to have, through its reference."""
    made = counted(monkeypatch)
    served = {"`lstm`": {}, "`lengths`": {"lengths": LENGTHS}, "`reverse`": {"reverse": True}, "float32": {}}
    for options in served.values():
        _, ys = asked(monkeypatch, "cudnn", **options)
        assert ys.shape == (T, B, H)
    assert len(made) == len(served)
    assert {*served, "an NVIDIA GPU"} == set(FEATURES) - set(cudnn.REFUSES)


def test_a_rule_of_ones_own_is_not_taken_for_the_lstm(monkeypatch):
    cell = jaxrnn.lstm(H)
    other = cell._replace(rule=cell.rule._replace(prepare=None))
    with pytest.raises(NotImplementedError, match="a cell of your own with a rule"):
        asked(monkeypatch, "cudnn", cell=other)
    net, params, xs, _ = network([other, other], jnp.float32)
    with pytest.raises(NotImplementedError, match="a cell of your own with a rule"):
        net.unroll(params, xs, implementation="cudnn")


def test_a_network_refuses_as_its_cells_do(on_cuda):
    net, params, xs, states = network([jaxrnn.lstm(H, peephole=True)] * 2, jnp.float32)
    run = lambda **options: net.unroll(params, xs, states, implementation="cudnn", **options)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"this call of stack\(\[lstm.*peepholes: the LSTM"):
        run()
    net, params, xs, states = network([jaxrnn.lstm(H)] * 2, jnp.float32)
    with pytest.raises(NotImplementedError, match="resets: cuDNN runs the whole sequence"):
        run(resets=FLAGS)
    with pytest.raises(ValueError, match="has last axis 4, params.w_x expects 3"):
        net.unroll((params[0], params[1]._replace(w_x=params[0].w_x)), xs, states, implementation="cudnn")


def test_a_network_whose_units_are_shared_out_is_refused_as_its_cells_are(on_cuda):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    net, params, xs, _ = network([jaxrnn.lstm(H)] * 2, jnp.float32)
    with pytest.raises(NotImplementedError, match="model_parallel: jax.experimental.rnn does not say"):
        jaxrnn.model_parallel(net, mesh).unroll(params, xs, implementation="cudnn")


def test_on_this_machine_cudnn_is_refused():
    with pytest.raises(NotImplementedError, match="a CPU: cuDNN runs on NVIDIA's GPUs"):
        jaxrnn.unroll(*make("lstm", dtype=jnp.float32)[:3], implementation="cudnn")
