"""All cells and their variants. A row here brings a new cell under the contract test."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Cell

I, H, T, B = 3, 4, 6, 5  # noqa: E741

HARD_SIGMOID = jaxrnn.Activation("hard_sigmoid", alpha=0.2, beta=0.5, clip=3.0)

CELLS: dict[str, Callable[[], Cell]] = {
    "rnn-tanh": lambda: jaxrnn.rnn(H),
    "rnn-relu": lambda: jaxrnn.rnn(H, activation="relu", recurrent_init=jaxrnn.initializers.identity()),
    "rnn-sigmoid": lambda: jaxrnn.rnn(H, activation="sigmoid", use_bias=False),
    "rnn-callable": lambda: jaxrnn.rnn(H, activation=jnp.sin),
    "lstm": lambda: jaxrnn.lstm(H),
    "lstm-projection": lambda: jaxrnn.lstm(H, projection_size=2),
    "lstm-peephole": lambda: jaxrnn.lstm(H, peephole=True),
    "lstm-coupled": lambda: jaxrnn.lstm(H, coupled=True, use_bias=False),
    "lstm-layer-norm": lambda: jaxrnn.lstm(H, layer_norm=True),
    "lstm-all": lambda: jaxrnn.lstm(H, projection_size=3, peephole=True, coupled=True, layer_norm=True),
    "gru": lambda: jaxrnn.gru(H),
    "gru-reset-before": lambda: jaxrnn.gru(H, reset_after=False),
    "gru-layer-norm": lambda: jaxrnn.gru(H, layer_norm=True, use_bias=False),
    "gru-reset-before-layer-norm": lambda: jaxrnn.gru(H, reset_after=False, layer_norm=True),
    "lstm-regularized": lambda: jaxrnn.regularize(jaxrnn.lstm(H), recurrent_dropout=0.2, zoneout=0.3),
    "lstm-activations": lambda: jaxrnn.lstm(
        H, projection_size=3, peephole=True, activation="softsign", recurrent_activation=HARD_SIGMOID
    ),
    "lstm-callables": lambda: jaxrnn.lstm(H, coupled=True, activation=jnp.sin, recurrent_activation=jax.nn.softmax),
    "gru-activations": lambda: jaxrnn.gru(H, activation="softsign", recurrent_activation=HARD_SIGMOID),
    "gru-reset-before-callables": lambda: jaxrnn.gru(
        H, reset_after=False, activation=jnp.sin, recurrent_activation=jax.nn.softmax
    ),
    "rnn-heads": lambda: jaxrnn.rnn(H, num_heads=2),
    "lstm-heads": lambda: jaxrnn.lstm(H, num_heads=2),
    "lstm-heads-all": lambda: jaxrnn.lstm(H, num_heads=2, peephole=True, coupled=True, layer_norm=True),
    "gru-heads": lambda: jaxrnn.gru(H, num_heads=H),
    "gru-reset-before-heads": lambda: jaxrnn.gru(H, num_heads=2, reset_after=False, layer_norm=True),
    "mgu-heads": lambda: jaxrnn.mgu(H, num_heads=2),
    "mgu": lambda: jaxrnn.mgu(H),
    "slstm": lambda: jaxrnn.slstm(H),
    "slstm-exponential-heads": lambda: jaxrnn.slstm(H, num_heads=2, forget_gate="exponential", use_bias=False),
    "indrnn": lambda: jaxrnn.indrnn(H, activation="tanh"),
    "min_gru": lambda: jaxrnn.min_gru(H),
    "min_lstm": lambda: jaxrnn.min_lstm(H),
    "rg_lru": lambda: jaxrnn.rg_lru(H, num_blocks=2),
    "lru": lambda: jaxrnn.lru(H, output_size=2),
}

# Those whose step is affine and diagonal in the state, which "associative" runs.
AFFINE = ("min_gru", "min_lstm", "rg_lru", "lru")

# Those whose gradients are at a constant stabiliser m, so that a loss that reads parts of the state other than h
# has another derivative.
STABILISED = ("slstm", "slstm-exponential-heads")

# Those whose state is complex. There is no complex dtype for 16 bits.
COMPLEX = ("lru",)


def of_cell(name: str, *more: Any) -> Any:
    """A parameter of a test. All tests of one cell run in one process and share its compiled programs."""
    return pytest.param(name, *more, marks=pytest.mark.xdist_group(name))


# One cell for each path through the driver, for tests that need no variants.
FAMILIES = ("rnn-tanh", "lstm", "gru", "gru-reset-before")

# Relative to the largest entry of each array. bfloat16 was measured at 0.002 to 0.033 over the registry.
TOLERANCE: dict[str, float] = {"float64": 1e-11, "float32": 5e-6, "bfloat16": 4e-2}


class Case(NamedTuple):
    """A cell, and the arguments of `unroll`."""

    cell: Cell
    params: Any
    xs: jax.Array
    state: Any
    options: Mapping[str, Any]


def random_like(seed: int, tree: Any, dtype: Any, scale: float = 1.0) -> Any:
    """Normal random numbers by NumPy, in both parts of a complex leaf. JAX would compile a generator in every test.

    The n of an sLSTM, by which it divides, is positive.
    """
    rng = np.random.default_rng(seed)
    normaliser = jax.tree_util.GetAttrKey("n")

    def drawn(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        value = scale * rng.standard_normal(leaf.shape)
        value = scale + np.abs(value) if path[-1:] == (normaliser,) else value
        if not np.issubdtype(leaf.dtype, np.complexfloating):
            return jnp.asarray(value, dtype)
        return jnp.asarray(value + 1j * scale * rng.standard_normal(leaf.shape), np.result_type(dtype, np.complex64))

    return jax.tree_util.tree_map_with_path(drawn, tree)


def narrowed(tree: Any) -> Any:
    """NumPy arrays in float32, complex ones in complex64."""
    return jax.tree.map(lambda leaf: leaf.astype(np.complex64 if np.iscomplexobj(leaf) else np.float32), tree)


def output_of(case: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of the output of one step."""
    state, x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (case.state, case.xs))
    return jax.eval_shape(case.cell.step, case.params, state, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))[1]


def numpy_of(tree: Any) -> Any:
    """The tree as NumPy arrays, which are sliced and added without compilation."""
    return jax.tree.map(np.asarray, tree)


def quick_jit(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` that compiles small programs about five times faster, to slower machine code.

    It is for oracles, and for variants of programs that another test compiles by plain `jax.jit`.
    """
    return jax.jit(f, compiler_options=_quick_options(), **options)


@functools.cache
def _quick_options() -> dict[str, Any]:
    """The options of `quick_jit` that this version of XLA knows."""
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }

    def is_known(option: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={option: wanted[option]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {option: value for option, value in wanted.items() if is_known(option)}


@functools.cache
def cell_of(name: str) -> Cell:
    """One cell for all tests of a process, so that they share its compiled programs."""
    return CELLS[name]()


@functools.cache
def params_of(name: str) -> Any:
    """The shapes of the parameters of a cell."""
    return jax.eval_shape(lambda key: cell_of(name).init(key, I, jnp.float32), jax.random.key(0))


def make(name: str, batch_shape: tuple[int, ...] = (B,), time: int = T, dtype: Any = None, seed: int = 0) -> Case:
    """A cell with random parameters, biases included, random inputs and a random initial state."""
    cell = cell_of(name)
    dtype = jnp.result_type(float) if dtype is None else dtype
    params = random_like(seed, params_of(name), dtype, scale=0.6)
    xs = random_like(seed + 1, jax.ShapeDtypeStruct((time, *batch_shape, I), dtype), dtype)
    state = random_like(seed + 2, jax.eval_shape(lambda: cell.initial_state(batch_shape)), dtype)
    return Case(cell, params, xs, state, {})


def bits(seed: int, shape: tuple[int, ...], p: float) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < p


LENGTHS = np.asarray([T, 0, 1, 4, T], dtype=np.int32)

# Lengths are 0, 1, T and between. The mask has holes. Resets are at any step, masked steps included.
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "mask-resets": {"mask": bits(4, (T, B), 0.6), "resets": bits(5, (T, B), 0.4)},
}


def run(case: Case, **options: Any) -> tuple[Any, ...]:
    return jaxrnn.unroll(case.cell, case.params, case.xs, case.state, **{"key": None, **case.options, **options})


def weighed(outcome: Any, emphasis: Any = (1.0, 1.0, 1.0)) -> jax.Array:
    """A sum over the entries of final state, outputs and states, each with a random weight of its own.

    `emphasis` multiplies the three parts, so that a test can select one.
    """
    total = jnp.zeros((), jax.tree.leaves(outcome)[0].real.dtype)
    for k, part in enumerate(outcome):
        for w, leaf in zip(jax.tree.leaves(random_like(9 + k, part, total.dtype)), jax.tree.leaves(part), strict=True):
            total += jnp.asarray(emphasis[k], total.dtype) * jnp.sum(w * jnp.sin(leaf)).real
    return total


def loss_of(case: Case, implementation: str | None, emphasis: Any = (1.0, 1.0, 1.0), **options: Any):
    """A scalar function of params, xs, initial state and reset state, whose every cotangent is nonzero."""
    options = {"key": None, **case.options, **options, "return_states": True, "implementation": implementation}

    def loss(params: Any, xs: jax.Array, state: Any, reset_state: Any = None) -> jax.Array:
        return weighed(jaxrnn.unroll(case.cell, params, xs, state, reset_state=reset_state, **options), emphasis)

    return loss


def gap(a: Any, b: Any) -> float:
    """The largest difference between two pytrees, for each leaf relative to its largest entry in `b`.

    Asserts that structures, shapes and dtypes are equal and that all entries are finite.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_tree_all_finite((a, b))
    worst = 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        wide = np.complex128 if np.iscomplexobj(x) else np.float64
        x, y = np.asarray(x, wide), np.asarray(y, wide)
        if x.size:
            worst = max(worst, float(np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-30)))
    return worst


def assert_close(a: Any, b: Any, dtype: str = "float64") -> None:
    """Asserts that `gap` is within the tolerance of a dtype."""
    assert gap(a, b) <= TOLERANCE[dtype]


def assert_equal(*trees: Any) -> None:
    """Asserts that pytrees have equal structures, shapes, dtypes and values, and that all values are finite."""
    chex.assert_trees_all_equal_shapes_and_dtypes(*trees)
    chex.assert_trees_all_equal(*trees)
    chex.assert_tree_all_finite(trees)
