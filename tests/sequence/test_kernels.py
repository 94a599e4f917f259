"""The fused kernels of "pallas": shapes, options and transformations by interpretation, and lowering for CUDA.

The contract test compares their values and gradients with the oracles, as for every implementation.
"""

import contextlib
import functools
import inspect
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn.sequence.implementations.kernels import tiling
from jaxrnn.sequence.implementations.kernels.blocks import Block, Memory, Shape, Weights
from jaxrnn.sequence.request import Device
from tests.support import in_numpy
from tests.support.programs import by_hand, by_jax, cotangents_of, operands_of, program
from tests.support.registry import (
    SCENARIOS,
    assert_close,
    bits,
    gap,
    make,
    of_cell,
    quick_jit,
    random_like,
    weighed,
)
from tests.support.requests import ARGUMENTS

kinds = pytest.mark.parametrize("name", [of_cell(name) for name in ("rnn-tanh", "lstm", "gru")])
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])

MASKED = SCENARIOS["mask-resets"]


@kinds
def test_calls_without_masks_and_states_equal_bptt(name, x64):
    """Their kernels have no flags as inputs."""
    params, xs, state, _ = operands_of(name)
    cotangents = cotangents_of(name)

    def outcome(implementation):
        def values(*operands):
            return jaxrnn.unroll(make(name).cell, *operands, implementation=implementation)

        values, pullback = jax.vjp(values, params, xs, state)
        return values, pullback(cotangents[:2])

    got, expected = quick_jit(lambda: [outcome(k) for k in ("pallas_interpret", "bptt")])()
    assert_close(got, expected)


def test_float32_equals_float64_within_rounding():
    operands, cotangents = operands_of("lstm"), cotangents_of("lstm")
    got = program("lstm", "pallas_interpret")(operands, MASKED["mask"], MASKED["resets"], cotangents)
    with jax.enable_x64(True):
        exact = by_jax("lstm", *in_numpy.as_float64((operands, cotangents)), **MASKED)
    assert_close(in_numpy.as_float64(got), jax.tree.map(np.asarray, exact), "float32")


def test_kernels_call_a_user_defined_project(x64):
    """The rule here has its own `project`, twice the input product, and the `pointwise` of the library."""
    case = make("gru")
    rule = case.cell.rule
    twice = lambda params, xs: rule.project(params._replace(w_x=2 * params.w_x), xs)  # noqa: E731
    cell = case.cell._replace(rule=rule._replace(project=twice), config=None)
    given = (case.params, case.xs, case.state)
    got, expected, plain = (
        jaxrnn.unroll(each, *given, implementation=name)[1]
        for each, name in ((cell, "pallas_interpret"), (cell, "bptt"), (case.cell, "bptt"))
    )
    assert_close(got, expected)
    assert gap(got, plain) > 0.1


# Shapes


def compared(name, xs_shape, hidden, dtype=None, tolerance="float64", **options):
    """Values and gradients of the kernels, asserted to equal those of "bptt"."""
    makers = {"rnn": jaxrnn.rnn, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
    time, *batch, inputs = xs_shape
    cell = makers[name](hidden)
    dtype = jnp.result_type(float) if dtype is None else dtype
    params = random_like(0, jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0)), dtype, scale=0.3)
    xs = random_like(1, jax.ShapeDtypeStruct(xs_shape, dtype), dtype)
    state = random_like(2, jax.eval_shape(lambda: cell.initial_state(tuple(batch))), dtype)
    options = {"resets": bits(3, (time, *batch), 0.3), "mask": bits(4, (time, *batch), 0.7), **options}

    def gradients(implementation):
        def loss(*operands):
            outcome = jaxrnn.unroll(cell, *operands, return_states=True, implementation=implementation, **options)
            return weighed(outcome), outcome

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, xs, state)

    got, expected = quick_jit(lambda: [gradients(k) for k in ("pallas_interpret", "bptt")])()
    assert_close(got, expected, tolerance)
    return got


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("rnn", (3, 2), 3),  # no batch axis
        ("gru", (2, 1, 3), 5),  # one sequence
        ("lstm", (3, 17, 2), 7),  # one sequence more than a program runs
        ("rnn", (2, 2, 9, 2), 17),  # two batch axes, and units beyond a power of two
        ("gru", (1, 2, 3), 4),  # one step
    ],
)
def test_any_shape_equals_bptt(name, shape, hidden, x64):
    compared(name, shape, hidden)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
def test_no_steps_and_an_empty_batch_equal_bptt(shape, x64):
    (_, (final, ys, _)), _ = compared("rnn", shape, 4)
    chex.assert_shape([ys, final], [(*shape[:2], 4), (shape[1], 4)])


@pytest.mark.parametrize(("name", "hidden", "held"), [("lstm", 20, 3), ("gru", 20, 12), ("rnn", 33, 0)])
def test_several_blocks_of_units_equal_bptt(name, hidden, held, x64, monkeypatch):
    """Some, all or none of the weights are in shared memory. The last block of units is not full."""
    monkeypatch.setattr(tiling, "tiling", lambda *_: tiling.Tiling(16, -(-hidden // 16), held, 4))
    compared(name, (3, 17, 2), hidden)


# Options


@pytest.mark.parametrize(
    ("name", "checkpoint"), [of_cell("lstm", "gates"), of_cell("gru", "gates"), of_cell("rnn-tanh", 4)]
)
def test_checkpoint_equals_bptt(name, checkpoint, x64):
    f = program(name, "pallas_interpret", checkpoint=checkpoint)
    got = f(operands_of(name), MASKED["mask"], MASKED["resets"], cotangents_of(name))
    assert_close(got, by_hand(name, operands_of(name), cotangents_of(name), **MASKED))


@reverses
def test_truncate_and_clip_gradient_equal_bptt(reverse, x64):
    options = {"truncate": 2, "clip_gradient": 0.05, "reverse": reverse}
    asked = (operands_of("lstm"), MASKED["mask"], MASKED["resets"], cotangents_of("lstm"))
    got, expected = (program("lstm", k, **options)(*asked) for k in ("pallas_interpret", "bptt"))
    assert_close(got, expected)
    unclipped = by_hand("lstm", operands_of("lstm"), cotangents_of("lstm"), **MASKED, reverse=reverse)
    assert gap(got[1], unclipped[1]) > 1e-3


# Products rounded to 8 bits over six steps. Measured: values 0.002 to 0.013, gradients 0.004 to 0.011.
TOLERANCE_COMPUTE = 4e-2


@kinds
@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["", "without-input"])
def test_bfloat16_products_are_near_float64(name, scale):
    """States, gates and sums are in float32. At scale 0 only the recurrent product is rounded."""
    (params, xs, state, reset_state), cotangents = operands_of(name), cotangents_of(name)
    operands = (params, scale * xs, state, reset_state)
    with jax.enable_x64(True):
        exact = by_jax(name, *in_numpy.as_float64((operands, cotangents)))
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), exact)
    compiled = program(name, "pallas_interpret", compute_dtype=jnp.bfloat16)
    values, gradients = compiled((*operands[:3], None), None, None, cotangents)
    chex.assert_type(jax.tree.leaves((values, gradients)), jnp.float32)
    assert 1e-5 < gap(values, exact[0]) <= TOLERANCE_COMPUTE
    assert 1e-5 < gap(gradients[:3], exact[1][:3]) <= TOLERANCE_COMPUTE


# Transformations


def loss(name, implementation, params, xs, state, reset_state):
    given = {"reset_state": reset_state, **MASKED, "return_states": True, "implementation": implementation}
    return weighed(jaxrnn.unroll(make(name).cell, params, xs, state, **given))


@pytest.mark.parametrize("name", [of_cell("rnn-tanh"), of_cell("lstm")])
def test_second_derivatives_equal_bptt(name, x64):
    """The second derivatives are forward over reverse, and reverse over reverse."""
    params, xs, state, reset_state = operands_of(name)
    direction = random_like(5, params, jnp.float64)

    def products(implementation):
        value = lambda p: loss(name, implementation, p, xs, state, reset_state)  # noqa: E731
        along = lambda p: sum(map(jnp.vdot, *map(jax.tree.leaves, (jax.grad(value)(p), direction))))  # noqa: E731
        return jax.jvp(jax.grad(value), (params,), (direction,))[1], jax.grad(along)(params)

    got, expected = quick_jit(lambda: [products(k) for k in ("pallas_interpret", "bptt")])()
    assert_close(got, expected)


def test_vmap_over_parameters_equals_each_member(x64):
    params, xs, state, reset_state = operands_of("gru")
    pair = lambda tree, seed: jax.tree.map(lambda a, b: jnp.stack([a, b]), tree, random_like(seed, tree, xs.dtype))  # noqa: E731
    operands = (pair(params, 3), pair(xs, 4), pair(state, 5), pair(reset_state, 6))
    gradients = jax.value_and_grad(functools.partial(loss, "gru", "pallas_interpret"), (0, 1, 2, 3))
    together = quick_jit(jax.vmap(gradients))(*operands)
    one = quick_jit(jax.value_and_grad(functools.partial(loss, "gru", "bptt"), (0, 1, 2, 3)))
    for k in range(2):
        member = lambda tree, k=k: jax.tree.map(lambda leaf: leaf[k], tree)  # noqa: E731
        assert_close(member(together), one(*member(operands)))


# On a GPU


@pytest.fixture
def cuda(monkeypatch):
    """A function that lowers for CUDA, on any machine, and returns the program as text."""
    monkeypatch.setattr(ARGUMENTS, "device_of", lambda xs: Device("cuda", "NVIDIA H200"))

    def lowered(f, *arrays):
        with on_an_abstract_gpu():
            return jax.jit(f).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()

    return lowered


def abstract_gpu():
    """Options of a mesh that name a GPU; none in a JAX that does not need them."""
    if "abstract_device" not in inspect.signature(AbstractMesh).parameters:
        return {}
    return {"abstract_device": jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")}


def on_an_abstract_gpu():
    """A context that names the GPU, which newer versions of JAX need in order to lower a kernel without one."""
    options = abstract_gpu()
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), **options)) if options else contextlib.nullcontext()


def shapes_of(cell, xs_shape):
    """Shapes of parameters and inputs in float32."""
    make = lambda key: (cell.init(key, xs_shape[-1], jnp.float32), jnp.zeros(xs_shape, jnp.float32))  # noqa: E731
    return jax.eval_shape(make, jax.random.key(0))


def sum_of_outputs(cell, **options):
    """A scalar function of parameters and inputs."""
    return lambda params, xs: jnp.sum(jaxrnn.unroll(cell, params, xs, implementation="pallas", **options)[1])


@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("cell", [jaxrnn.rnn(100, activation="relu"), jaxrnn.lstm(128), jaxrnn.gru(256)], ids=repr)
def test_each_pass_lowers_to_one_kernel(cell, compute_dtype, cuda):
    """The kernel contains the loop over time, masks, resets and window borders."""
    options = {
        "resets": bits(0, (50, 20), 0.3),
        "lengths": np.arange(20, dtype=np.int32),
        "truncate": 7,
        "compute_dtype": compute_dtype,
    }
    f = sum_of_outputs(cell, **options)
    for gradient, kernels in ((False, ["rnn_forward"]), (True, ["rnn_forward", "rnn_backward"])):
        text = cuda(jax.grad(f, (0, 1)) if gradient else f, *shapes_of(cell, (50, 20, 8)))
        assert re.findall(r'name = "(rnn_\w+)"', text) == kernels
        assert "stablehlo.while" not in text
        assert "f64" not in text
        operand = "bf16" if compute_dtype else "f32"
        products = re.findall(r"stablehlo.dot_general .* : \(tensor<\w+x(\w+)>, tensor<\w+x(\w+)>\)", text)
        assert set(products) == {(operand, operand)}
        assert len(products) == (4 if gradient else 1)  # x W_x, and in the backward pass δW_x, δW_h and δx


def test_kernels_lower_with_x64_enabled(cuda, x64):
    """Python numbers are 64 bits wide then, but a kernel must use 32."""
    cell = jaxrnn.lstm(64)
    text = cuda(jax.grad(sum_of_outputs(cell)), *shapes_of(cell, (9, 20, 8)))
    assert re.findall(r'name = "(rnn_\w+)"', text) == ["rnn_forward", "rnn_backward"]


def test_shard_map_sums_gradients_once(cuda):
    """The batch is sharded, and shard_map has its default checks."""
    mesh = AbstractMesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), **abstract_gpu())
    cell = jaxrnn.gru(32)

    def gradients(params, xs):
        return jax.grad(lambda *given: jax.lax.psum(sum_of_outputs(cell)(*given), "d"))(params, xs)

    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P(None, "d")), out_specs=P())
    text = cuda(mapped, *shapes_of(cell, (5, 8, 3)))
    assert re.findall(r'name = "(rnn_\w+)"', text) == ["rnn_forward", "rnn_backward"]
    assert text.count("all_reduce") <= 5  # one for each array of the parameters


def test_vmap_adds_an_axis_to_the_grid(cuda):
    cell = jaxrnn.gru(32)
    several = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), shapes_of(cell, (5, 8, 3)))
    text = cuda(jax.vmap(jax.grad(sum_of_outputs(cell), (0, 1))), *several)
    assert re.findall(r'name = "(rnn_\w+)"', text) == ["rnn_forward", "rnn_backward"]
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("wanted", ["highest", None])
def test_interpreter_keeps_the_precision_of_the_caller(wanted):
    cell = jaxrnn.gru(4)
    f = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation="pallas_interpret")[1]  # noqa: E731
    with jax.default_matmul_precision(wanted):
        text = str(jax.make_jaxpr(f)(*shapes_of(cell, (2, 3, 5))))
    products = text.count("dot_general[")
    assert products == 1 + 3  # x W_x before the kernel, and one for each gate inside
    assert text.count("Precision.HIGHEST") == (2 * products if wanted else 0)


# Blocks


@pytest.mark.parametrize(("batch", "hidden", "width"), [(1, 1, 16), (16, 16, 16), (33, 40, 16), (5, 128, 128)])
def test_blocks_read_every_entry_once(batch, hidden, width):
    """The interpreter accepts an index out of bounds, a GPU does not."""
    shape = Shape(3, batch, hidden, 2, 16, width, 0, False, None, early=True)
    asked = []

    def load(ref, index, inside):
        asked.append(([np.broadcast_to(i, inside.shape)[inside] for i in index], inside.shape))
        return jnp.zeros(inside.shape)

    def entries(ref_shape, load, *given, **options):
        """The number of times that each entry of an array is read."""
        asked.clear()
        list(load("array", *given, **options))
        counts = np.zeros(ref_shape, int)
        for index, _ in asked:
            np.add.at(counts, tuple(index), 1)  # raises for an index out of bounds
        return counts

    memory = Memory(lambda: 0, load, lambda *_: None)
    blocks = [Block(shape, memory, n * 16, j) for n in range(shape.programs) for j in shape.blocks]
    steps = [entries((3, batch, 2 * hidden), b.load, t, gate=g) for b in blocks for t in range(3) for g in range(2)]
    assert (sum(steps) == 1).all()
    assert {size for _, size in asked} == {(16, width)}
    assert (sum(entries((hidden,), b.vector) for b in blocks) == shape.programs).all()
    assert (sum(entries((3, batch), b.flags, t) for b in blocks for t in range(3)) == len(shape.blocks)).all()
    assert (entries((hidden, 2 * hidden), lambda ref: Weights(shape, memory, ref).stream()) == 1).all()


# Tilings


HOPPER = 232448  # bytes of shared memory that a program may use
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@pytest.mark.parametrize(
    ("bytes_each", "largest"),
    [
        (2, {"rnn": 256, "gru": 192, "lstm": 128}),
        (4, {"rnn": 192, "gru": 128, "lstm": 96}),
        (8, {"rnn": 128, "gru": 64, "lstm": 64}),
    ],
)
def test_table_states_the_largest_sizes_whose_weights_are_resident(bytes_each, largest):
    for name, gates in GATES.items():
        for hidden in {*range(1, 257, 31), largest[name] - 1, largest[name], min(largest[name] + 1, 256)}:
            is_resident = tiling.tiling(gates, hidden, bytes_each, HOPPER).is_resident(gates)
            assert is_resident == (hidden <= largest[name])
        assert str(largest[name]) in tiling.__doc__


@pytest.mark.parametrize("memory", [HOPPER, tiling.LEAST_SHARED_MEMORY])
def test_tilings_cover_the_units_and_fit_into_memory(memory):
    for gates, bytes_each, hidden in itertools.product((1, 3, 4), (2, 4, 8), (1, 16, 17, 64, 100, 128, 200, 256)):
        found = tiling.tiling(gates, hidden, bytes_each, memory)
        assert hidden <= found.width * found.blocks < hidden + max(found.width, 16)
        assert found.width.bit_count() == 1
        assert found.blocks <= 4
        assert 0 <= found.resident <= gates * found.blocks**2
        assert found.resident * found.width**2 * bytes_each + 16 * found.width * (4 + bytes_each) <= memory
    assert tiling.tiling(1, 257, 2, memory) is None
