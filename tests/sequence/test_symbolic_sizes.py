"""Programs with symbolic sizes, exported by `jax.export`: any number of steps and sequences, equal to the direct call."""

import functools
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxrnn
from jaxrnn import _records
from jaxrnn.cells._attention import Memory
from tests.support.registry import CELLS, assert_close, of_cell, quick_jit, random_like

pytestmark = pytest.mark.usefixtures("unhooked")  # jaxtyping does not compare symbols

I, H = 3, 4  # noqa: E741
SIZES = ((1, 1), (7, 5), (40, 2))  # steps and sequences at which an artifact is called
DIMENSIONS = ("t, b", "t, 2", "7, b")


def spec(dimensions, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(export.symbolic_shape(dimensions), dtype)


def at(dimensions, steps, sequences):
    """The sizes in the place of the symbols t and b."""
    return tuple({"t": steps, "b": sequences}.get(word) or int(word) for word in dimensions.split(", "))


def operands(cell, dimensions, steps, sequences, dtype=jnp.float32):
    params = random_like(0, jax.eval_shape(lambda: cell.init(jax.random.key(0), I)), dtype, scale=0.5)
    xs = random_like(1, jax.ShapeDtypeStruct((*at(dimensions, steps, sequences), I), dtype), dtype)
    return params, xs


def assert_exported_equals_direct_call(f, specs, calls, dtype=jnp.float32):
    artifact = export.export(quick_jit(f))(*specs)
    for args in calls:
        assert_close(artifact.call(*args), quick_jit(f)(*args), jnp.dtype(dtype).name)


def value_and_gradients(cell, **options):
    def loss(params, xs):
        found = jaxrnn.unroll(cell, params, xs, key=None, **options)
        return jnp.sum(found[1] ** 2), found

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


def check(cell, dimensions, sizes=SIZES[1:], dtype=jnp.float32, **options):
    calls = [operands(cell, dimensions, *size, dtype) for size in sizes]
    specs = (jax.eval_shape(lambda: calls[0][0]), spec(f"{dimensions}, {I}", dtype))
    assert_exported_equals_direct_call(value_and_gradients(cell, **options), specs, calls, dtype)


@pytest.mark.parametrize("name", [of_cell(name) for name in CELLS])
def test_every_cell_at_any_number_of_steps_and_sequences(name, x64):
    check(CELLS[name](), "t, b", SIZES[1:2], jnp.float64)


OPTIONS = [
    {"checkpoint": "sqrt"}, {"checkpoint": 5}, {"checkpoint": "gates"}, {"truncate": 5}, {"clip_gradient": 0.1},
    {"reverse": True, "return_states": True, "checkpoint": 4}, {"reverse": True, "truncate": 3},
    {"implementation": "scan", "checkpoint": 3, "return_states": True},
]  # fmt: skip


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_unroll(options, dimensions):
    check(jaxrnn.gru(H), dimensions, **options)


@pytest.mark.parametrize("options", [{}, {"checkpoint": 3}, {"reverse": True, "checkpoint": 2}], ids=str)
def test_lengths_resets_and_states_are_inputs(options):
    """The last segment is padded where T is a symbol: neither the state nor an episode reaches the steps added."""
    cell = jaxrnn.lstm(H)

    def f(params, xs, state, lengths, resets):
        def loss(params, xs, state):
            found = jaxrnn.unroll(
                cell, params, xs, state, lengths=lengths, resets=resets, return_states=True, **options
            )
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found))

        return jax.value_and_grad(loss, (0, 1, 2))(params, xs, state)

    def call(steps, sequences):
        rng = np.random.default_rng(0)
        state = random_like(2, jax.eval_shape(lambda: cell.initial_state((sequences,))), jnp.float32)
        lengths = rng.integers(0, steps + 1, sequences).astype(np.int32)
        return *operands(cell, "t, b", steps, sequences), state, lengths, rng.random((steps, sequences)) < 0.3

    t, b = export.symbolic_shape("t, b")
    calls = [call(*size) for size in SIZES]
    shapes = jax.eval_shape(lambda: (calls[0][0], cell.initial_state((1,))))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((b, H), leaf.dtype), shapes[1])
    specs = (
        shapes[0], jax.ShapeDtypeStruct((t, b, I), jnp.float32), state,
        jax.ShapeDtypeStruct((b,), jnp.int32), jax.ShapeDtypeStruct((t, b), bool),
    )  # fmt: skip
    assert_exported_equals_direct_call(f, specs, calls)


def test_network_with_lengths_and_its_last_output():
    net = jaxrnn.stack([jaxrnn.lstm(H), jaxrnn.gru(H)], bidirectional=True)
    params = net.init(jax.random.key(0), I)
    t, b = export.symbolic_shape("t, b")

    def f(params, xs, lengths):
        states, ys = net.unroll(params, xs, lengths=lengths)
        return states, jaxrnn.last_output(ys, lengths, bidirectional=True)

    specs = (
        jax.eval_shape(lambda: params),
        jax.ShapeDtypeStruct((t, b, I), jnp.float32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )
    xs = random_like(1, jax.ShapeDtypeStruct((7, 3, I), jnp.float32), jnp.float32)
    assert_exported_equals_direct_call(f, specs, [(params, xs, np.asarray([7, 0, 3], np.int32))])


def test_modules():
    module = jaxrnn.modules.GRU(I, H, 2, batch_first=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    xs = random_like(1, jax.ShapeDtypeStruct((2, 7, I), jnp.float32), jnp.float32)
    f = lambda state, xs: nnx.merge(graph, state)(xs)  # noqa: E731
    specs = (jax.eval_shape(lambda: state), spec(f"b, t, {I}"))
    assert_exported_equals_direct_call(f, specs, [(state, xs)])


def test_noise_and_generation_with_any_number_of_sequences():
    cell = jaxrnn.regularize(jaxrnn.lstm(H), recurrent_dropout=0.3, zoneout=0.2, input_dropout=0.2)
    f = functools.partial(jaxrnn.unroll, cell, key=jax.random.key(1))
    params, xs = operands(cell, "t, b", 7, 5)
    assert_exported_equals_direct_call(f, (jax.eval_shape(lambda: params), spec(f"t, b, {I}")), [(params, xs)])

    gru = jaxrnn.gru(I)
    params, xs = operands(gru, "t, b", 1, 5)

    def generated(params, x):
        return jaxrnn.generate(gru, params, gru.initial_state(x.shape[:-1]), x, lambda y, key: y, 6)

    assert_exported_equals_direct_call(generated, (jax.eval_shape(lambda: params), spec(f"b, {I}")), [(params, xs[0])])


@pytest.mark.parametrize(("name", "factory", "dimensions", "feature"), [
    ("associative", jaxrnn.min_gru, "t, 2", "a symbolic number of steps"),
    ("reference", jaxrnn.gru, "t, 2", "a symbolic number of steps"),
    ("newton", jaxrnn.gru, "7, b", "a symbolic batch"),
    ("pallas_interpret", jaxrnn.gru, "7, b", "a symbolic batch"),
])  # fmt: skip
def test_implementations_that_need_a_number_refuse_a_symbol(name, factory, dimensions, feature):
    with pytest.raises(NotImplementedError, match=f"{name!r} does not support this call of .*{feature}: .*'scan'"):
        check(factory(H), dimensions, implementation=name)


@pytest.mark.parametrize(("name", "factory"), [("associative", jaxrnn.min_gru), ("reference", jaxrnn.gru)])
def test_implementations_with_any_number_of_sequences(name, factory):
    check(factory(H), "7, b", implementation=name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_program_for_another_platform(platform):
    cell = jaxrnn.lstm(H)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I))
    f = jax.jit(functools.partial(jaxrnn.unroll, cell))
    artifact = export.export(f, platforms=[platform])(params, spec(f"t, b, {I}"))
    assert artifact.platforms == (platform,)
    assert "stablehlo.while" in artifact.mlir_module()


# Artifacts in files

WITHOUT_JAXRNN = """
    import sys
    sys.modules["jaxrnn"] = None  # an import raises
    import numpy as np
    from jax import export
    artifact = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
    for name in sys.argv[2:]:
        given = np.load(name)
        leaves = [given[key] for key in ("w_x", "w_h", "b")]
        state, ys = artifact.call(leaves, given["xs"], given["lengths"])
        np.testing.assert_allclose(ys, given["ys"], atol=2e-6)
        np.testing.assert_allclose(state, given["state"], atol=2e-6)
        gradient = artifact.vjp().call(*leaves, given["xs"], given["lengths"], np.zeros_like(state), np.ones_like(ys))
        np.testing.assert_allclose(gradient[1], given["dw_h"], atol=2e-5)
    print("equal")
"""


def test_artifact_runs_where_jaxrnn_cannot_be_imported(tmp_path):
    """A process without jaxrnn runs values and gradients at three sizes. Parameters are a list there."""
    cell = jaxrnn.rnn(H)

    def f(leaves, xs, lengths):
        return jaxrnn.unroll(cell, jaxrnn.RNNParams(*leaves), xs, lengths=lengths)

    params, _ = operands(cell, "t, b", 1, 1)
    t, b = export.symbolic_shape("t, b")
    specs = [jax.ShapeDtypeStruct((t, b, I), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.int32)]
    artifact = export.export(jax.jit(f))(jax.eval_shape(lambda: list(params)), *specs)
    (tmp_path / "artifact").write_bytes(artifact.serialize(vjp_order=1))
    files = []
    for steps, sequences in SIZES:
        _, xs = operands(cell, "t, b", steps, sequences)
        lengths = np.random.default_rng(1).integers(0, steps + 1, sequences).astype(np.int32)
        state, ys = f(list(params), xs, lengths)
        dw_h = jax.grad(lambda w_h, xs=xs, n=lengths: f([params.w_x, w_h, params.b], xs, n)[1].sum())(params.w_h)
        files.append(tmp_path / f"{steps}.npz")
        np.savez(files[-1], xs=xs, lengths=lengths, state=state, ys=ys, dw_h=dw_h, **params._asdict())
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_JAXRNN), tmp_path / "artifact", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def records_in(tree):
    if not isinstance(tree, tuple):
        return set()
    return ({type(tree)} if hasattr(tree, "_fields") else set()).union(*map(records_in, tree))


def test_every_record_of_parameters_and_states_is_registered():
    """Those of every cell of the registry, of cells that attend, and of networks and read-outs."""
    found = {jaxrnn.Bidirectional, jaxrnn.ReadoutParams, Memory}
    for make in (*CELLS.values(), lambda: jaxrnn.attend(jaxrnn.gru(H), 2)):
        cell = make()
        shapes = jax.eval_shape(lambda cell=cell: (cell.init(jax.random.key(0), I), cell.initial_state()))
        found |= set().union(*map(records_in, shapes))
    assert found == set(_records.RECORDS)


def test_records_go_through_an_artifact():
    net = jaxrnn.stack([jaxrnn.lstm(H, layer_norm=True)], bidirectional=True)
    params = net.init(jax.random.key(0), I)
    artifact = export.export(quick_jit(net.unroll))(jax.eval_shape(lambda: params), spec(f"t, b, {I}"))
    again = export.deserialize(artifact.serialize())
    xs = random_like(1, jax.ShapeDtypeStruct((7, 5, I), jnp.float32), jnp.float32)
    assert_close(again.call(params, xs), quick_jit(net.unroll)(params, xs), "float32")
