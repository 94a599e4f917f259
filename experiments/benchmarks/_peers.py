"""The same problem in other libraries, with our weights: `jaxrnn.interop` converts them, and the gradients back."""

import importlib
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks._contestants import Contestant, Model, of_model
from experiments.benchmarks._problem import FORMS, Problem
from experiments.benchmarks._turns import Program, cores
from jaxrnn import interop

Import = Callable[[str], Any]
load: Import = importlib.import_module  # by name, because none of them need be installed


class Peer(NamedTuple):
    """Another library."""

    package: str  # its name in a package index
    forms: tuple[str, ...]  # of `FORMS`, what it has
    build: Callable[[Problem], Contestant]


def installed_version(name: str) -> str | None:
    """The version of a peer, or `None` where it is not installed."""
    try:
        return metadata.version(PEERS[name].package)
    except metadata.PackageNotFoundError:
        return None


def linear(convert: Callable[[Any], Any], gradients: Any) -> Any:
    """A conversion of weights applied to gradients, less the constants that it adds, such as 1 to Haiku's forget bias.

    It computes in float64, so that the subtraction has no rounding.
    """
    with jax.enable_x64(True):
        gradients = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradients)
        zeros = jax.tree.map(np.zeros_like, gradients)
        return jax.tree.map(lambda found, offset: np.asarray(found - offset), convert(gradients), convert(zeros))


def once(kind: str, second: Any) -> np.ndarray:
    """The gradient of the second of two biases, without what the first has as well: a sum of both counts it once.

    A GRU's last third is a bias of its own.
    """
    second = np.array(second)
    second[: 2 * len(second) // 3 if kind == "gru" else len(second)] = 0
    return second


# Flax NNX


def flax_cell(problem: Problem, dtype: Any = None) -> Any:
    nnx = load("flax.nnx")
    kind, (_, _, features, hidden) = FORMS[problem.form].kind, problem.shape
    options: dict[str, Any] = {"activation_fn": jax.nn.relu} if problem.form == "rnn-relu" else {}
    options |= {} if dtype is None else {"dtype": dtype}
    make = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}[kind]
    cell = make(features, hidden, rngs=nnx.Rngs(0), **options)
    nnx.update(cell, interop.to_nnx(problem.params, optimized=True))
    return cell


def flax(problem: Problem, dtype: Any = None) -> Contestant:
    """`nnx.RNN`, time first, its products in `dtype`. The generator is what it asks for to make a state of zeros."""
    nnx = load("flax.nnx")
    graph, params = nnx.split(nnx.RNN(flax_cell(problem, dtype), time_major=True, rngs=False))

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(xs, rngs=nnx.Rngs(0))

    def as_jaxrnn(gradients: Any) -> Any:
        return linear(interop.from_nnx, nnx.to_pure_dict(gradients))

    without = ("b_hn",) if problem.form == "gru" else ()
    return of_model(problem, Model(outputs, params, as_jaxrnn, without))


# Haiku


def haiku(problem: Problem) -> Contestant:
    """`hk.dynamic_unroll`."""
    hk = load("haiku")
    kind, hidden = FORMS[problem.form].kind, problem.shape.hidden
    core = {"lstm": hk.LSTM, "gru": hk.GRU, "rnn": hk.VanillaRNN}[kind]

    def unrolled(xs: jax.Array) -> jax.Array:
        cell = core(hidden)
        return hk.dynamic_unroll(cell, xs, cell.initial_state(xs.shape[1]))[0]

    def as_jaxrnn(gradients: Any) -> Any:
        if kind == "rnn":
            first, second = (gradients[f"vanilla_rnn/{name}"] for name in ("linear", "linear_1"))
            gradients = {"vanilla_rnn/linear": first, "vanilla_rnn/linear_1": {**second, "b": once(kind, second["b"])}}
        return linear(interop.from_haiku, gradients)[0]

    apply = hk.without_apply_rng(hk.transform(unrolled)).apply
    return of_model(problem, Model(apply, interop.to_haiku(problem.params), as_jaxrnn))


# Keras


def keras(problem: Problem) -> Contestant:
    """A layer on the JAX backend, batch first, as a function of its weights."""
    os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
    layers = load("keras").layers
    kind, (steps, _, features, hidden) = FORMS[problem.form].kind, problem.shape
    options: dict[str, Any] = {
        "rnn-relu": {"activation": "relu"},
        "gru-before": {"reset_after": False},
    }.get(problem.form, {})
    make = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}[kind]
    layer = make(hidden, return_sequences=True, **options)
    layer.build((None, steps, features))
    fixed = [variable.value for variable in layer.non_trainable_variables]

    weights = interop.to_keras(problem.params)

    def outputs(params: Any, xs: jax.Array) -> jax.Array:
        return layer.stateless_call(params, fixed, xs)[0]

    def as_jaxrnn(gradients: Any) -> Any:
        arrays = {name: np.asarray(array) for name, array in zip(weights, gradients, strict=True)}
        if arrays["bias"].ndim == 2:
            arrays["bias"] = np.stack([arrays["bias"][0], once(kind, arrays["bias"][1])])
        return linear(interop.from_keras, arrays)

    params = [jnp.asarray(weight) for weight in weights.values()]
    return of_model(problem, Model(outputs, params, as_jaxrnn, batch_first=True))


# Equinox


def equinox_cell(problem: Problem) -> Any:
    nn = load("equinox").nn
    _, _, features, hidden = problem.shape
    make = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[problem.form]
    empty = make(features, hidden, key=jax.random.key(0))
    return with_fields(empty, interop.to_equinox(problem.params))


def with_fields(module: Any, arrays: Mapping[str, Any]) -> Any:
    """An Equinox module with other arrays in the fields named."""
    names = list(arrays)
    values = [jnp.asarray(arrays[name]) for name in names]
    return load("equinox").tree_at(lambda cell: [getattr(cell, name) for name in names], module, values)


def equinox(problem: Problem) -> Contestant:
    """A cell over the batch by `vmap`, over time by `lax.scan`."""
    names = list(interop.to_equinox(problem.params))
    batch, hidden = problem.shape.batch, problem.shape.hidden

    def outputs(cell: Any, xs: jax.Array) -> jax.Array:
        def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            state = jax.vmap(cell)(x, state)
            return state, state[0] if problem.form == "lstm" else state

        zeros = jnp.zeros((batch, hidden))
        return jax.lax.scan(step, (zeros, zeros) if problem.form == "lstm" else zeros, xs)[1]

    def as_jaxrnn(gradients: Any) -> Any:
        return linear(interop.from_equinox, {name: getattr(gradients, name) for name in names})

    return of_model(problem, Model(outputs, equinox_cell(problem), as_jaxrnn))


# PyTorch


def torch(problem: Problem, device: str = "cpu", dtype: str = "float32") -> Contestant:
    """`nn.LSTM`, `nn.GRU` or `nn.RNN`, on a CPU with all threads; gradients are returned, not accumulated.

    All of it is in `dtype`. A call returns when the device has finished.
    """
    pytorch = load("torch")
    pytorch.set_num_threads(cores())
    kind, (_, _, features, hidden) = FORMS[problem.form].kind, problem.shape
    options = {"nonlinearity": "relu"} if problem.form == "rnn-relu" else {}
    module = getattr(pytorch.nn, kind.upper())(features, hidden, **options)
    load_torch(module, interop.to_torch((problem.params,)))
    where = {"device": device, "dtype": getattr(pytorch, dtype)}
    module.to(**where)
    names, parameters = zip(*module.named_parameters(), strict=True)
    xs, target = (pytorch.from_numpy(np.array(a)).to(**where) for a in (problem.xs, problem.target))
    wait = pytorch.cuda.synchronize if device == "cuda" else lambda: None

    def forward() -> Any:
        with pytorch.inference_mode():
            ys = module(xs)[0]
            wait()
            return ys

    def train() -> Any:
        loss = pytorch.nn.functional.mse_loss(module(xs)[0], target)
        gradients = pytorch.autograd.grad(loss, parameters)
        wait()
        return loss.detach(), gradients

    def as_numpy(tensor: Any) -> np.ndarray:
        return tensor.float().cpu().numpy()

    def as_jaxrnn(gradients: Any) -> Any:
        arrays = {name: as_numpy(array) for name, array in zip(names, gradients, strict=True)}
        return linear(interop.from_torch, {**arrays, "bias_hh_l0": once(kind, arrays["bias_hh_l0"])})[0]

    return Contestant(lambda task: Program(forward if task == "forward" else train), as_numpy, as_jaxrnn)


def load_torch(module: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies weights into a PyTorch module."""
    module.load_state_dict({name: load("torch").from_numpy(array) for name, array in arrays.items()})


PEERS: dict[str, Peer] = {
    "flax": Peer("flax", ("lstm", "gru", "rnn", "rnn-relu"), flax),
    "haiku": Peer("dm-haiku", ("lstm", "gru-before", "rnn-relu"), haiku),
    "keras": Peer("keras", tuple(FORMS), keras),
    "equinox": Peer("equinox", ("lstm", "gru"), equinox),
    "torch": Peer("torch", ("lstm", "gru", "rnn", "rnn-relu"), torch),
}
