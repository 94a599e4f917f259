"""`implementation="associative"`, beyond the contract: long sequences, transformations, depth, what it refuses."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn.sequence import registry
from jaxrnn.sequence.request import Device
from tests.support.programs import (
    TOLERANCE_OF_SLOPE,
    by_hand,
    cotangents_of,
    differentiated,
    operands_of,
    program,
    slope,
    windowed,
)
from tests.support.registry import (
    AFFINE,
    CELLS,
    SCENARIOS,
    B,
    H,
    I,
    T,
    assert_close,
    cell_of,
    gap,
    make,
    narrowed,
    numpy_of,
    of_cell,
    quick_jit,
    random_like,
    run,
)
from tests.support.requests import CUDA, request_of, traced

affine = pytest.mark.parametrize("name", [of_cell(name) for name in AFFINE])
MASKED = SCENARIOS["mask-resets"]
LONG = 10_000


@affine
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", [{"checkpoint": "gates"}, {"checkpoint": 4}, {"truncate": 4}], ids=repr)
def test_checkpoint_and_windows_equal_those_of_autodiff(name, options, reverse, x64):
    """Six steps are a chunk of 4 and a rest of 2, with masks, resets and windows of 4."""
    operands, cotangents = operands_of(name), cotangents_of(name)
    compiled = differentiated(cell_of(name), "associative", reverse=reverse, **{"truncate": 4, **options})
    got = compiled(operands, *MASKED.values(), cotangents)
    assert_close(got, windowed(name, 4, operands, cotangents, **MASKED, reverse=reverse))


# Long sequences


def memory_step(params, state, x):
    after = params.a * state + x @ params.w_x
    return after, after


class MemoryParams(jaxrnn.MinGRUParams):
    """`b` is the vector a of the coefficients."""

    a = property(lambda self: self.b)


def memory_coefficients(params, xs):
    b = xs @ params.w_x
    return jnp.broadcast_to(params.a, b.shape), b, None


def memory_backward(params, xs, _, da, db):
    leading = tuple(range(xs.ndim - 1))
    dw = jnp.tensordot(xs, db, (leading, leading))
    return MemoryParams(dw, da.sum(leading)), db @ params.w_x.T


# s_t = a ⊙ s_{t-1} + x_t W, a cell of one's own with a form that the library does not have.
MEMORY = jaxrnn.Cell(
    lambda key, input_size, dtype=None: MemoryParams(jnp.ones((input_size, H), dtype), jnp.ones(H, dtype)),
    lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, H), dtype),
    memory_step,
    jaxrnn.affine_rule(jaxrnn.Affine(memory_coefficients, memory_backward), matrices=("w_x",)),
    name="memory",
)


def long_case(cell, params, size=1.0, dtype=jnp.float32):
    """A function of an implementation: values and gradients of 10,000 steps."""
    rng = np.random.default_rng(0)
    xs = jnp.asarray(size * rng.standard_normal((LONG, 2, I)), dtype)
    state = random_like(2, jax.eval_shape(lambda: cell.initial_state((2,))), dtype)
    output = jax.eval_shape(cell.step, params, state[0], xs[0, 0])[1]
    weights = jnp.asarray(rng.standard_normal((LONG, 2, *output.shape)), dtype)

    def values_and_gradients(implementation):
        def loss(params, xs, state):
            final, ys = jaxrnn.unroll(cell, params, xs, state, implementation=implementation)
            return jnp.sum(ys * weights) + jnp.sum(jax.tree.leaves(final)[0]).real, (final, ys)

        (_, outcome), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, xs, state)
        return outcome, gradients

    return values_and_gradients


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_long_float32_sequences_equal_the_loop(size):
    """|a| is 1, near 1 and small, and b is large: the largest state is above 100 times `size`.

    Both sum up to 10,000 numbers, in another order. Measured: at most 3e-6 of the largest entry of each array.
    """
    params = MemoryParams(jnp.eye(I, H) + 0.5, jnp.asarray([1.0, -1.0, 0.999, 0.3], jnp.float32))
    both = long_case(MEMORY, params, size)
    got, expected = both("associative"), both("bptt")
    assert np.abs(expected[0][1]).max() > 100 * size
    assert gap(got, expected) <= 2e-5


@affine
@pytest.mark.parametrize("scale", [0.6, 30.0], ids=["usual", "saturated"])
def test_long_float32_sequences_of_the_cells_are_finite_and_equal_the_loop(name, scale):
    """With weights times 50 the gates are 0 and 1 within rounding: `gap` asserts that all is finite.

    An LRU has |λ| of 1, 0.993, 0.37 and 2e-9 there. Its λ = 1 is exact.
    """
    cell = cell_of(name)
    shapes = jax.eval_shape(lambda key: cell.init(key, I, jnp.float32), jax.random.key(0))
    params = random_like(0, shapes, jnp.float32, 0.6 if name == "lru" else scale)
    if name == "lru" and scale > 1:
        params = params._replace(nu=jnp.asarray([-30.0, -5, 0, 3]), theta=jnp.asarray([-200.0, -1, 0, 1]))
    both = long_case(cell, params)
    assert gap(both("associative"), both("bptt")) <= 2e-5


def test_phases_on_the_unit_circle_keep_their_digits_as_long_as_the_loop(x64):
    """An LRU with |λ| = 1: λ in float32 is off by half a rounding, and λ^t by t times that, in either order.

    Measured at T = 10,000, relative to float64: the loop 3.5e-4, in parallel 3.7e-4, and 5.1e-5 from each other.
    """
    cell = cell_of("lru")
    shapes = jax.eval_shape(lambda key: cell.init(key, I, jnp.float32), jax.random.key(0))
    phases = {"nu": jnp.full(H, -30, jnp.float32), "theta": jnp.asarray([-3, -1, 0, 1], jnp.float32)}
    params = random_like(0, shapes, jnp.float32, 0.6)._replace(**phases)
    got, loop = (long_case(cell, params)(name) for name in ("associative", "bptt"))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    exact = narrowed(numpy_of(long_case(cell, wide, dtype=jnp.float64)("bptt")))
    assert gap(got, loop) <= 2e-4
    assert 1e-5 < gap(loop, exact) <= 1e-3
    assert gap(got, exact) <= 1e-3


def test_slope_of_the_root_is_bounded():
    """Where a is 1 the slope of √(1 - a²) is infinite. The bound holds by hand and by JAX, and nothing is NaN."""
    cell = jaxrnn.rg_lru(H)
    params = cell.init(jax.random.key(0), I, jnp.float32)
    params = params._replace(decay=jnp.asarray([-200.0, -30.0, -13.0, -4.0], jnp.float32))
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float32), jnp.float32)

    def gradients(implementation):
        value = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation=implementation)[1].sum()  # noqa: E731
        return jax.grad(value, (0, 1))(params, xs)

    chex.assert_tree_all_finite(gradients("associative"))
    for implementation in ("associative", "bptt"):
        chex.assert_trees_all_close(gradients(implementation), gradients("scan"), rtol=1e-4, atol=1e-6)


def test_nan_and_overflow_do_not_cross_a_reset():
    """A product with 0 would let them through. The gradients before the reset are those of zeros after it."""
    params = MemoryParams(jnp.ones((I, H)), jnp.asarray([1.0, 0.5, 2.0, 0.0], jnp.float32))
    xs = jnp.ones((T, B, I)).at[1].set(jnp.nan)
    resets = np.arange(T)[:, None] == np.full((1, B), 3)

    def outcome(xs, implementation):
        return jaxrnn.unroll(MEMORY, params, xs, resets=resets, implementation=implementation)[1][3:]

    chex.assert_trees_all_close(outcome(xs, "associative"), outcome(xs, "bptt"), rtol=1e-6)
    assert np.isfinite(outcome(xs, "associative")).all()
    gradient = jax.grad(lambda xs: outcome(xs, "associative").sum())(xs)
    assert not np.asarray(gradient)[:3].any()
    assert np.isfinite(gradient).all()


# Sequential depth


PLAIN = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy")


def depth(text: str) -> int:
    """The operations that an optimised HLO module runs one after another: those in a loop times its trips.

    It counts every operation, also those that could run side by side.
    """
    computations = {}
    for block in re.split(r"\n(?=[%E])", text):
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+)", block)
        if head:
            computations[head.group(1)] = block

    @functools.cache
    def operations(name: str) -> int:
        total = 0
        for line in computations[name].splitlines()[1:]:
            found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = .*?\s([a-z][\w\-]*)\(", line)
            if found is None or found.group(1) in PLAIN:
                continue
            total += 1
            if found.group(1) == "while":
                trips = int(re.search(r'known_trip_count":\{"n":"(\d+)"', line).group(1))
                total += trips * operations(re.search(r"body=%?([\w.\-]+)", line).group(1))
            elif found.group(1) == "call":
                total += operations(re.search(r"to_apply=%?([\w.\-]+)", line).group(1))
        return total

    return operations(re.search(r"ENTRY %?([\w.\-]+)", text).group(1))


def test_depth_of_a_loop_is_its_trips_times_what_it_holds():
    looped = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=100)[0]  # noqa: E731
    of_loop = depth(jax.jit(looped).lower(jnp.ones(3)).compile().as_text())
    assert 100 <= of_loop <= 500
    assert depth(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()) <= 3


@affine
def test_sequential_depth_is_logarithmic(name):
    """At T = 10,000 the programs of values and of gradients are at least 50 times less deep than the scan's."""
    cell = cell_of(name)
    params = jax.eval_shape(lambda key: cell.init(key, I, jnp.float32), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((LONG, 2, I), jnp.float32)

    def depths(implementation):
        value = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation=implementation)[1].sum()  # noqa: E731
        return [depth(jax.jit(f).lower(params, xs).compile().as_text()) for f in (value, jax.grad(value, (0, 1)))]

    for parallel, sequential in zip(depths("associative"), depths("scan"), strict=True):
        assert sequential > LONG
        assert 50 * parallel <= sequential


# Transformations


def of_gradient(name, cotangents):
    """The gradient by hand of a scalar function of all operands."""

    def gradient(operands):
        given = (operands, *MASKED.values(), cotangents)
        return differentiated(cell_of(name), "associative", jit=lambda f: f)(*given)[1]

    return gradient


@affine
def test_second_derivatives_equal_finite_differences(name, x64):
    """Forward over reverse, and reverse over reverse, in every operand."""
    operands, cotangents = numpy_of(operands_of(name)), cotangents_of(name)
    direction = numpy_of(random_like(5, operands, jnp.float64))
    gradient = of_gradient(name, cotangents)
    parts = lambda leaf: (np.real(leaf), np.imag(leaf)) if np.iscomplexobj(leaf) else (leaf,)  # noqa: E731
    flat = lambda tree: np.concatenate([np.ravel(v) for leaf in jax.tree.leaves(tree) for v in parts(leaf)])  # noqa: E731
    moved = lambda h: jax.tree.map(lambda a, v: a + h * v, operands, direction)  # noqa: E731
    asked = functools.partial(program(name, "associative"), mask=MASKED["mask"], resets=MASKED["resets"])
    expected = slope(lambda h: flat(asked(moved(h), cotangents=cotangents)[1]))
    forward = quick_jit(lambda at: jax.jvp(gradient, (at,), (direction,))[1])(operands)
    assert gap(flat(forward), expected) <= TOLERANCE_OF_SLOPE
    change = lambda d, v: jnp.sum(d * v).real  # noqa: E731
    along = lambda at: sum(map(change, jax.tree.leaves(gradient(at)), jax.tree.leaves(direction)))  # noqa: E731
    assert_close(quick_jit(jax.grad(along))(operands), forward)


@affine
def test_vmap_equals_one_call_for_each_member(name, x64):
    operands, cotangents = operands_of(name), cotangents_of(name)
    others = jax.tree.map(lambda leaf: 0.7 * np.asarray(leaf) + 0.1, operands)
    run_back = differentiated(cell_of(name), "associative", jit=lambda f: f)
    together = jax.vmap(lambda operands: run_back(operands, *MASKED.values(), cotangents))
    got = quick_jit(together)(jax.tree.map(lambda *leaves: np.stack(leaves), operands, others))
    for k, alone in enumerate((operands, others)):
        expected = by_hand(name, alone, cotangents, **MASKED)
        assert_close(jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], got), expected)


@pytest.mark.devices
@affine
@pytest.mark.parametrize("explicit", [False, True], ids=["shard_map", "explicit"])
def test_sharded_batches_equal_one_device(name, explicit, x64):
    """The batch is over two devices, in `shard_map` with its checks, and on a mesh with explicit axes."""
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,), devices=jax.devices()[:2])
    cell, (params, xs, _, _) = cell_of(name), numpy_of(operands_of(name))
    operands = (params, xs[:, :4], MASKED["mask"][:, :4], MASKED["resets"][:, :4])

    def gradients(params, xs, mask, resets, implementation="associative", mean=lambda v: v):
        def loss(params, xs):
            options = {"mask": mask, "resets": resets, "implementation": implementation}
            final, ys = jaxrnn.unroll(cell, params, xs, **options)
            return mean(jnp.sum(jnp.sin(ys)) + sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(final)))

        return jax.value_and_grad(loss, (0, 1))(params, xs)

    expected = quick_jit(functools.partial(gradients, implementation="bptt"))(*operands)
    specs = (P(), P(None, "d"), P(None, "d"), P(None, "d"))
    if explicit:
        placed = jax.device_put(operands, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
        with jax.set_mesh(mesh):
            assert_close(numpy_of(quick_jit(gradients)(*placed)), numpy_of(expected))
        return
    summed = functools.partial(gradients, mean=lambda v: jax.lax.psum(v, "d"))
    mapped = jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=(P(), (P(), P(None, "d"))))
    assert_close(quick_jit(mapped)(*operands), expected)


# The choice of it, and what it refuses


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_default_is_the_loop_on_a_cpu_and_parallel_on_an_accelerator(platform, monkeypatch):
    device = Device(platform, "a card")
    request = request_of(monkeypatch, cell=jaxrnn.min_gru(H), device=device)
    long = registry.PARALLEL_FROM

    def chosen(steps, asked=request):
        xs = jax.ShapeDtypeStruct((steps, B, I), jnp.float32)
        return registry.choose(asked._replace(inputs=asked.inputs._replace(xs=xs))).name

    assert chosen(long - 1) == "bptt"
    assert chosen(long) == ("bptt" if platform == "cpu" else "associative")
    assert chosen(long, request_of(monkeypatch, device=device)) == "bptt"  # an LSTM
    clipped = request_of(monkeypatch, cell=jaxrnn.min_gru(H), device=device, clip_gradient=1.0)
    assert chosen(long, clipped) == "bptt"


def test_it_refuses_in_words(monkeypatch):
    form = "'associative' does not support this call of .*; the step is not affine and diagonal in the state"
    others = [name for name in CELLS if name not in AFFINE]
    replaced = jaxrnn.min_gru(H)
    rule = replaced.rule
    replaced = replaced._replace(rule=rule._replace(forward=lambda *args: rule.forward(*args)))
    for cell in [*map(cell_of, others), replaced]:
        with pytest.raises(NotImplementedError, match=form):
            traced(monkeypatch, "associative", cell, device=CUDA)
    with pytest.raises(
        NotImplementedError, match="min_gru.4.; clip_gradient: clipping between two steps is not linear"
    ):
        traced(monkeypatch, "associative", jaxrnn.min_gru(H), clip_gradient=1.0)
    case = make("min_gru")
    with pytest.raises(TypeError, match="unroll: implementation expected 'scan'.*got 'associative'"):
        jax.jvp(lambda xs: run(case._replace(xs=xs), implementation="associative")[1], (case.xs,), (case.xs,))
    with pytest.raises(TypeError, match=r"affine_rule: affine expected a jaxrnn\.Affine, got Rule"):
        jaxrnn.affine_rule(rule)
    with pytest.raises(TypeError, match="affine_rule: affine expected read and read_backward both, or neither"):
        jaxrnn.affine_rule(rule.affine._replace(read=lambda params, states, xs: states))
    with pytest.raises(NotImplementedError, match="recurrent matrix, got MinGRUParams"):
        jaxrnn.analysis.recurrent_spectrum(case.params)
