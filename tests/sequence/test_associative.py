"""`implementation="associative"`, beyond the contract: long sequences, transformations, depth, what it refuses."""

import functools
import re
from typing import NamedTuple

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


def long_case(cell, params, size=1.0):
    """A function of an implementation: values and gradients of 10,000 steps in float32."""
    rng = np.random.default_rng(0)
    xs = jnp.asarray(size * rng.standard_normal((LONG, 2, I)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((LONG, 2, H)), jnp.float32)
    state = jnp.asarray(rng.standard_normal((2, H)), jnp.float32)

    def values_and_gradients(implementation):
        def loss(params, xs, state):
            final, ys = jaxrnn.unroll(cell, params, xs, state, implementation=implementation)
            return jnp.sum(ys * weights) + jnp.sum(jnp.real(jax.tree.leaves(final)[0])), (final, ys)

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
    """With weights times 50 the gates are 0 and 1 within rounding: `gap` asserts that all is finite."""
    cell = cell_of(name)
    shapes = jax.eval_shape(lambda key: cell.init(key, I, jnp.float32), jax.random.key(0))
    both = long_case(cell, random_like(0, shapes, jnp.float32, scale))
    assert gap(both("associative"), both("bptt")) <= 2e-5


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


# Complex states, and outputs that are read from them


class DiagonalParams(NamedTuple):
    """Real parameters of a complex diagonal recurrence."""

    w_x: jax.Array  # (I, 2H): the real part of a complex matrix and the imaginary one
    decay: jax.Array  # (2, H): -log |λ| and the phase
    w_y: jax.Array  # (2H, 2)
    d: jax.Array  # (I, 2)


def as_complex(pair):
    return jax.lax.complex(*jnp.split(pair, 2, -1))


def diagonal_coefficients(params, xs):
    b = as_complex(xs @ params.w_x)
    a = jnp.exp(jax.lax.complex(-(params.decay[0] ** 2), params.decay[1]))
    a = jnp.broadcast_to(a, b.shape)
    return a, b, a


def diagonal_backward(params, xs, a, da, db):
    """In JAX's convention a real loss changes by Re(Σ δb db), so Re b has the cotangent Re δb, and Im b has -Im δb."""
    leading = tuple(range(xs.ndim - 1))
    flat = jnp.concatenate([db.real, -db.imag], -1)
    log_a = jnp.sum(da * a, leading)
    decay = jnp.stack([-2 * params.decay[0] * log_a.real, -log_a.imag])
    dparams = DiagonalParams(jnp.tensordot(xs, flat, (leading, leading)), decay, *map(jnp.zeros_like, params[2:]))
    return dparams, flat @ params.w_x.T


def diagonal_read(params, states, xs):
    return jnp.concatenate([states.real, states.imag], -1) @ params.w_y + xs @ params.d


def diagonal_read_backward(params, states, xs, dys):
    leading = tuple(range(xs.ndim - 1))
    real, imag = jnp.split(dys @ params.w_y.T, 2, -1)
    flat = jnp.concatenate([states.real, states.imag], -1)
    dw, dd = (jnp.tensordot(v, dys, (leading, leading)) for v in (flat, xs))
    dparams = DiagonalParams(*map(jnp.zeros_like, params[:2]), dw, dd)
    return jax.lax.complex(real, -imag), dparams, dys @ params.d.T


def diagonal_step(params, state, x):
    a, b, _ = diagonal_coefficients(params, x)
    state = a * state + b
    return state, diagonal_read(params, state, x)


DIAGONAL = jaxrnn.Cell(
    lambda key, input_size, dtype=None: None,
    lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, H), jnp.result_type(complex)),
    diagonal_step,
    jaxrnn.affine_rule(jaxrnn.Affine(diagonal_coefficients, diagonal_backward, diagonal_read, diagonal_read_backward)),
    name="diagonal",
)


def complex_operands():
    shapes = DiagonalParams(*map(np.empty, ((I, 2 * H), (2, H), (2 * H, 2), (I, 2))))
    params = random_like(0, shapes, jnp.float64, 0.6)
    xs = random_like(1, np.empty((T, B, I)), jnp.float64)
    states = (as_complex(random_like(k, np.empty((B, 2 * H)), jnp.float64)) for k in (2, 3))
    return params, xs, *states


def complex_loss(implementation, params, xs, state, reset_state, **options):
    """A loss that reads every output, and both parts of all states."""
    options = {**MASKED, "return_states": True, "implementation": implementation, **options}
    outcome = jaxrnn.unroll(DIAGONAL, params, xs, state, reset_state=reset_state, **options)
    total = 0.0
    for k, leaf in enumerate(outcome):
        for part, v in enumerate((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)):
            total += jnp.sum(jnp.sin(v) * random_like(10 + 2 * k + part, v, jnp.float64))
    return total


@pytest.mark.parametrize("implementation", ["associative", "bptt"])
@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"truncate": 4}, {"checkpoint": 4, "reverse": True}, {"checkpoint": "gates"}],
    ids=repr,
)  # fmt: skip
def test_gradients_of_complex_states_equal_autodiff(implementation, options, x64):
    operands = complex_operands()
    by_scan = {name: value for name, value in options.items() if name != "checkpoint"}
    gradients = lambda name, given: quick_jit(  # noqa: E731
        jax.value_and_grad(functools.partial(complex_loss, name, **given), (0, 1, 2, 3))
    )(*operands)
    got, expected = gradients(implementation, options), gradients("scan", by_scan)
    parts = lambda tree: jax.tree.map(lambda leaf: np.stack([np.real(leaf), np.imag(leaf)]), tree)  # noqa: E731
    assert_close(parts(got), parts(expected))


def direction_like(unit, v, leaf):
    """A direction of a real leaf, or of a complex one along `unit`."""
    return v * (np.asarray(unit, np.complex128) if jnp.iscomplexobj(leaf) else 1.0)


def moved_loss(loss, operands, steps, h):
    return np.asarray(loss(*jax.tree.map(lambda a, v: np.asarray(a) + h * v, operands, steps)))


def test_gradients_of_complex_states_equal_finite_differences(x64):
    """JAX's gradient by a complex number z is ∂L/∂(Re z) - i ∂L/∂(Im z)."""
    operands = complex_operands()
    loss = quick_jit(functools.partial(complex_loss, "associative"))
    gradients = quick_jit(jax.grad(functools.partial(complex_loss, "associative"), (0, 1, 2, 3)))(*operands)
    shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape), operands)
    for seed, unit in ((20, 1.0), (21, 1.0j)):
        of_leaf = functools.partial(direction_like, unit)
        steps = jax.tree.map(of_leaf, numpy_of(random_like(seed, shapes, jnp.float64)), operands)
        expected = slope(functools.partial(moved_loss, loss, operands, steps))
        along = jax.tree.map(lambda d, v: np.real(np.sum(np.asarray(d) * v)), gradients, steps)
        np.testing.assert_allclose(sum(jax.tree.leaves(along)), expected, rtol=1e-9)


def test_clipping_of_a_complex_state_is_refused(x64):
    for name in ("bptt", "associative"):
        with pytest.raises(NotImplementedError, match=f"{name!r} does not support this call of diagonal; .*clip"):
            complex_loss(name, *complex_operands(), clip_gradient=1.0)


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
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    moved = lambda h: jax.tree.map(lambda a, v: a + h * v, operands, direction)  # noqa: E731
    asked = functools.partial(program(name, "associative"), mask=MASKED["mask"], resets=MASKED["resets"])
    expected = slope(lambda h: flat(asked(moved(h), cotangents=cotangents)[1]))
    forward = quick_jit(lambda at: jax.jvp(gradient, (at,), (direction,))[1])(operands)
    assert gap(flat(forward), expected) <= TOLERANCE_OF_SLOPE
    along = lambda at: sum(map(jnp.vdot, jax.tree.leaves(gradient(at)), jax.tree.leaves(direction)))  # noqa: E731
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
