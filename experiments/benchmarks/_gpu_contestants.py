"""The contestants on a GPU in each dtype, and the reasons why others do not run."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.benchmarks import _peers
from experiments.benchmarks._contestants import Contestant, Model, of_model, unrolled
from experiments.benchmarks._problem import Problem

# float32 products are float32, tf32 products may be TF32; bf16 is operands of products for jaxrnn, whose states stay
# in float32, and everything for PyTorch, as its users have it.
PRECISIONS: dict[str, str | None] = {"float32": "highest", "tf32": "tensorfloat32", "bf16": None}
OWN = ("bptt", "cudnn", "pallas")
PEERS = ("flax", "torch")


class Field(NamedTuple):
    """The implementations that are compared, and the reasons why others are not."""

    contestants: dict[str, Contestant]
    absent: dict[str, str]


@contextlib.contextmanager
def precision(dtype: str, peers: Sequence[str]) -> Iterator[None]:
    """The precision of all contestants' products for a dtype."""
    if "torch" in peers:
        pytorch = _peers.load("torch")
        pytorch.backends.cudnn.allow_tf32 = pytorch.backends.cuda.matmul.allow_tf32 = dtype != "float32"
    with jax.default_matmul_precision(PRECISIONS[dtype]):
        yield


def own_options(name: str, dtype: str) -> dict[str, Any]:
    """The options of `unroll`."""
    return {"implementation": name} | ({"compute_dtype": jnp.bfloat16} if dtype == "bf16" else {})


def why_not(problem: Problem, options: dict[str, Any]) -> str | None:
    """The reason why `unroll` does not support these options here, found without running it."""
    try:
        jax.eval_shape(lambda p, xs: jaxrnn.unroll(problem.cell, p, xs, **options), problem.params, problem.xs)
    except ValueError as error:
        if "implementation expected" not in str(error):
            raise
        return f"jaxrnn {jaxrnn.__version__} has no implementation of this name"
    except NotImplementedError as error:
        return str(error).partition("; ")[2] or str(error)
    return None


def scanned(problem: Problem, steps: int) -> Contestant:
    """`jax.lax.scan` over the cell's step under plain autodiff, with so many steps in one iteration of XLA's loop."""
    cell, batch = problem.cell, problem.shape.batch

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        step = lambda state, x: cell.step(params, state, x)  # noqa: E731
        return jax.lax.scan(step, cell.initial_state((batch,)), xs, unroll=steps)[1]

    return of_model(problem, Model(outputs, problem.params))


def _torch(problem: Problem, dtype: str, device: str) -> Contestant:
    where = "cpu" if device == "cpu" else "cuda"
    if where == "cuda" and not _peers.load("torch").cuda.is_available():
        raise NotImplementedError("this PyTorch sees no GPU")
    return _peers.torch(problem, where, "bfloat16" if dtype == "bf16" else "float32")


def field_of(problem: Problem, dtype: str, device: str, unrolls: Sequence[int], peers: Sequence[str]) -> Field:
    """All contestants that support the problem."""
    makers: dict[str, Callable[[], Contestant]] = {}
    absent: dict[str, str] = {}
    for name in OWN:
        options = own_options(name, dtype)
        reason = why_not(problem, options)
        if reason is None:
            makers[name] = partial(unrolled, problem, **options)
        else:
            absent[name] = reason
    for steps in unrolls:
        if dtype == "bf16":
            absent[f"scan x{steps}"] = "the plain scan has no products in bf16"
        else:
            makers[f"scan x{steps}"] = partial(scanned, problem, steps)
    makers |= {
        name: maker
        for name, maker in {
            "flax": partial(_peers.flax, problem, jnp.bfloat16 if dtype == "bf16" else None),
            "torch": partial(_torch, problem, dtype, device),
        }.items()
        if name in peers and problem.form in _peers.PEERS[name].forms
    }
    contestants = {}
    for name, make in makers.items():
        try:
            contestants[name] = make()
        except NotImplementedError as error:
            absent[name] = str(error)
    return Field(contestants, absent)
