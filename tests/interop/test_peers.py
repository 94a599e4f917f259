"""Other libraries compute the same as we do, with our weights and with theirs.

Tests of a library that is not installed are skipped, unless JAXRNN_REQUIRE_PEERS is 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import interop
from tests.support.peers import peer
from tests.support.registry import gap, random_like

pytestmark = pytest.mark.peers

T, B, I, H = 4, 2, 3, 4  # noqa: E741

# Relative to the largest output: float64 was measured at 9e-16, float32 at 5e-7. Keras runs in float32:
# its SimpleRNN does not support float64 on the JAX backend.
TOLERANCE = {"float64": 1e-13, "float32": 5e-6}


@pytest.fixture(autouse=True)
def default_promotion(x64):
    """Other libraries do not run under the strict settings of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


CELLS: dict[str, Callable[[], jaxrnn.Cell]] = {
    "rnn": lambda: jaxrnn.rnn(H),
    "rnn-relu": lambda: jaxrnn.rnn(H, activation="relu"),
    "lstm": lambda: jaxrnn.lstm(H),
    "lstm-projection": lambda: jaxrnn.lstm(H, projection_size=2),
    "gru": lambda: jaxrnn.gru(H),
    "gru-before": lambda: jaxrnn.gru(H, reset_after=False),
    "rnn-no-bias": lambda: jaxrnn.rnn(H, use_bias=False),
    "lstm-no-bias": lambda: jaxrnn.lstm(H, use_bias=False),
    "gru-no-bias": lambda: jaxrnn.gru(H, use_bias=False),
}


@functools.cache
def network(*names: str, bidirectional: bool = False) -> jaxrnn.Network:
    """One network for the same names, so that tests share what they compile."""
    return jaxrnn.stack([CELLS[name]() for name in names], bidirectional=bidirectional)


def scaled(tree: Any, seed: int, dtype: Any = jnp.float64) -> Any:
    """Draws random numbers in the shapes of `tree`, biases too."""
    return jax.tree.map(lambda leaf: 0.6 * leaf, random_like(seed, tree, dtype))


def params_of(net: jaxrnn.Network, seed: int = 0, dtype: Any = jnp.float64) -> Any:
    return scaled(jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0)), seed, dtype)


def inputs(dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((T, B, I)).astype(dtype)


def assert_answers(net: jaxrnn.Network, params: Any, theirs: Any) -> None:
    """Checks that `theirs`, `(T, B, ·)`, equals our outputs."""
    theirs = np.asarray(theirs)
    # The Python loop compiles small steps, which all tests share.
    ours = np.asarray(net.unroll(params, inputs(theirs.dtype), implementation="reference")[1])
    assert gap(ours, theirs) <= TOLERANCE[str(theirs.dtype)]


def batch_first(xs: Any) -> Any:
    return np.swapaxes(np.asarray(xs), 0, 1)


# PyTorch

TORCH = {
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm-projection": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
    "gru-no-bias": ("GRU", {"bias": False}),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_layers_compute_the_same(name):
    peer("torch")
    import torch

    kind, options = TORCH[name]
    bidirectional = name in ("rnn", "lstm-projection", "gru")
    net = network(name, name, bidirectional=bidirectional)
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(I, H, 2, bidirectional=bidirectional, dtype=torch.float64, **options)
    xs = torch.from_numpy(inputs())
    assert_answers(net, interop.from_torch(dict(module.named_parameters())), module(xs)[0].detach())

    params = params_of(net)
    model = torch.nn.ModuleDict({"below": module})
    weights = {path: torch.from_numpy(a) for path, a in interop.to_torch(params, prefix="below").items()}
    model.load_state_dict(weights, strict=True)
    assert list(weights) == list(model.state_dict())
    assert_answers(net, params, module(xs)[0].detach())
    again = interop.from_torch(model.state_dict(), prefix="below")
    chex.assert_trees_all_equal(again, params, strict=True)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_torch_cells_compute_the_same(name):
    peer("torch")
    import torch

    cell, (kind, _) = CELLS[name](), TORCH[name]
    module = getattr(torch.nn, f"{kind}Cell")(I, H, dtype=torch.float64)
    x = inputs()[0]
    for params in (interop.from_torch(module.state_dict()), params_of(network(name))[0]):
        module.load_state_dict({path: torch.from_numpy(a) for path, a in interop.to_torch(params).items()})
        theirs = module(torch.from_numpy(x))
        theirs = theirs[0] if name == "lstm" else theirs
        _, ours = cell.step(params, cell.initial_state((B,)), x)
        assert gap(np.asarray(ours), theirs.detach().numpy()) <= TOLERANCE["float64"]


def test_torch_bfloat16_weights_survive_a_round_trip():
    peer("torch")
    import torch

    module = torch.nn.GRU(I, H, bias=False).bfloat16()
    with torch.no_grad():
        module.weight_ih_l0[0, :2] = torch.tensor([1e30, 1e-30])  # within the range of bfloat16, but not of float16
    (params,) = interop.from_torch(dict(module.named_parameters()))
    assert params.w_x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(params.w_x.astype(jnp.float32), module.weight_ih_l0.detach().float().numpy().T)
    back = {path: torch.from_numpy(a.astype("float32")) for path, a in interop.to_torch((params,)).items()}
    assert all(torch.equal(back[path].bfloat16(), w) for path, w in module.state_dict().items())


# Keras


def test_keras_layers_compute_the_same():
    peer("keras")
    import keras

    layers, sequences = keras.layers, {"return_sequences": True}
    net = network("lstm", "gru", "gru-before", "rnn", bidirectional=True)
    model = keras.Sequential([
        layers.Bidirectional(layers.LSTM(H, **sequences)),
        layers.Bidirectional(layers.GRU(H, **sequences)),
        layers.Bidirectional(layers.GRU(H, reset_after=False, **sequences)),
        layers.Bidirectional(layers.SimpleRNN(H, **sequences)),
    ])  # fmt: skip
    model.build((None, T, I))
    run = lambda: batch_first(model(batch_first(inputs(np.float32))))  # noqa: E731
    # Keras starts biases at zero, so random ones replace them.
    model.set_weights([np.asarray(w) for w in scaled([np.asarray(w) for w in model.weights], 1, jnp.float32)])
    own = interop.from_keras({w.path: w for w in model.weights})
    assert_answers(net, own, run())

    params = params_of(net, seed=2, dtype=jnp.float32)
    model.set_weights(list(interop.to_keras(params).values()))
    assert_answers(net, params, run())
    again = interop.from_keras({w.path: w for w in model.weights}, prefix=model.name)
    chex.assert_trees_all_equal(again, params, strict=True)


def test_keras_weight_paths_are_read():
    """Paths of a layer, of a cell, of a backward layer with its own name, and of a stack of cells."""
    peer("keras")
    import keras

    layer = keras.layers.LSTM(H)
    layer.build((None, T, I))
    (params,) = interop.from_keras({w.path: w for w in layer.weights})
    np.testing.assert_array_equal(params.w_x, layer.weights[0])
    cell = keras.layers.GRUCell(H, use_bias=False)
    cell.build((None, I))
    (params,) = interop.from_keras({w.path: w for w in cell.weights})
    assert (type(params), params.b, params.b_hn) == (jaxrnn.GRUParams, None, None)
    mixed = keras.layers.Bidirectional(keras.layers.LSTM(H), backward_layer=keras.layers.GRU(H, go_backwards=True))
    mixed.build((None, T, I))
    with pytest.raises(ValueError, match="expected one cell below '.*/forward_' and one below '.*/backward_', got "):
        interop.from_keras({w.path: w for w in mixed.weights})
    stacked = keras.layers.RNN([keras.layers.LSTMCell(H), keras.layers.SimpleRNNCell(2)])
    stacked.build((None, T, I))
    weights = {w.path: w for w in stacked.weights}
    assert [type(p) for p in interop.from_keras(weights)] == [jaxrnn.LSTMParams, jaxrnn.RNNParams]


# Flax


def stepped(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any) -> np.ndarray:
    """Outputs of a loop over time."""
    ys = []
    for x in inputs():
        carry, y = step(carry, jnp.asarray(x))
        ys.append(y)
    return np.stack(ys)


def zeros(lstm: bool) -> Any:
    return (jnp.zeros((B, H)),) * 2 if lstm else jnp.zeros((B, H))


# An nnx.SimpleCell computes in float32 by default.
NNX_DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_nnx_cells_compute_the_same(cell):
    from flax import nnx

    name = {"GRUCell": "gru", "SimpleCell": "rnn"}.get(cell, "lstm")
    net = network(name)
    module = getattr(nnx, cell)(I, H, **NNX_DOUBLE, rngs=nnx.Rngs(0))
    nnx.update(module, scaled(nnx.to_pure_dict(nnx.state(module, nnx.Param)), 1))
    run = lambda: stepped(module, zeros(name == "lstm"))  # noqa: E731
    assert_answers(net, (interop.from_nnx(nnx.state(module, nnx.Param)),), run())

    (params,) = params_of(net, seed=2)
    params = params._replace(b_hn=jnp.zeros(H)) if name == "gru" else params
    nnx.update(module, interop.to_nnx(params, optimized=cell.startswith("Opt")))
    assert_answers(net, (params,), run())


def test_nnx_networks_compute_the_same():
    from flax import nnx

    net = network("lstm", "rnn", bidirectional=True)
    rngs = nnx.Rngs(0)

    def both(make: Any, features: int) -> Any:
        rnn = lambda: nnx.RNN(make(features, H, rngs=rngs, **NNX_DOUBLE), time_major=True)  # noqa: E731
        return nnx.Bidirectional(rnn(), rnn(), time_major=True)

    model = nnx.Sequential(both(nnx.LSTMCell, I), both(nnx.SimpleCell, 2 * H))
    params = params_of(net)
    nnx.update(model, interop.to_nnx(params))
    assert_answers(net, params, model(jnp.asarray(inputs())))
    again = interop.from_nnx(nnx.state(model, nnx.Param))
    chex.assert_trees_all_equal(again, params, strict=True)
    (below, above), outer = again, nnx.state({"net": model}, nnx.Param)
    assert jax.tree.structure(interop.from_nnx(outer, "net.layers.1")) == jax.tree.structure(above)
    np.testing.assert_array_equal(interop.from_nnx(outer, "net.layers.0.backward_rnn").b, below.backward.b)


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_linen_cells_compute_the_same(cell):
    from flax import linen

    name = {"GRUCell": "gru", "SimpleCell": "rnn"}.get(cell, "lstm")
    net, carry = network(name), zeros(name == "lstm")
    module = getattr(linen, cell)(H, param_dtype=jnp.float64)
    shapes = jax.eval_shape(module.init, jax.random.key(0), carry, inputs()[0])
    apply = jax.jit(module.apply)
    run = lambda variables: stepped(functools.partial(apply, variables), carry)  # noqa: E731
    variables = scaled(shapes, 1)
    assert_answers(net, (interop.from_linen(variables),), run(variables))

    (params,) = params_of(net, seed=2)
    written = interop.to_linen(params)
    assert jax.tree.structure(written) == jax.tree.structure(shapes)
    assert_answers(net, (params,), run(written))


def test_linen_networks_compute_the_same():
    from flax import linen

    net = network("lstm", "gru", bidirectional=True)

    def both(make: Any) -> Any:
        rnn = lambda: linen.RNN(make(H, param_dtype=jnp.float64), time_major=True)  # noqa: E731
        return linen.Bidirectional(rnn(), rnn(), time_major=True)

    model = linen.Sequential([both(linen.LSTMCell), both(linen.GRUCell)])
    params = params_of(net)
    variables = interop.to_linen(params)
    assert_answers(net, params, model.apply(variables, jnp.asarray(inputs())))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(inputs()))
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)


# Haiku


def haiku_run(make_core: Callable[[Any], Any]) -> Any:
    import haiku as hk

    def run(xs: Any) -> Any:
        core = make_core(hk)
        return hk.static_unroll(core, xs, core.initial_state(B))[0]

    return hk.without_apply_rng(hk.transform(run))


HAIKU: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "lstm": (("lstm", "lstm"), lambda hk: hk.DeepRNN([hk.LSTM(H), hk.LSTM(H)])),
    "gru": (("gru-before",), lambda hk: hk.GRU(H)),
    "rnn": (("rnn-relu",), lambda hk: hk.VanillaRNN(H)),
    "rnn-one-bias": (("rnn-relu",), lambda hk: hk.VanillaRNN(H, double_bias=False)),
}


@pytest.mark.parametrize("name", HAIKU)
def test_haiku_cores_compute_the_same(name):
    peer("haiku")
    names, make_core = HAIKU[name]
    net, transformed, xs = network(*names), haiku_run(make_core), jnp.asarray(inputs())
    own = scaled(jax.eval_shape(transformed.init, jax.random.key(0), xs), 1)
    assert_answers(net, interop.from_haiku(own), transformed.apply(own, xs))
    if name != "rnn-one-bias":
        params = params_of(net, seed=2)
        written = interop.to_haiku(params)
        assert jax.tree.structure(written) == jax.tree.structure(own)
        assert_answers(net, params, transformed.apply(written, xs))


# Equinox


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm-no-bias", "gru-no-bias"])
def test_equinox_cells_compute_the_same(name):
    peer("equinox")
    import equinox as eqx

    make = eqx.nn.LSTMCell if name.startswith("lstm") else eqx.nn.GRUCell
    net, use_bias = network(name), not name.endswith("no-bias")
    # Equinox starts with random biases.
    cell = make(I, H, use_bias=use_bias, dtype=jnp.float64, key=jax.random.key(0))

    def run(cell: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            carry = jax.vmap(cell)(x, carry)
            return carry, carry[0] if name.startswith("lstm") else carry

        return stepped(step, zeros(name.startswith("lstm")))

    assert_answers(net, (interop.from_equinox(vars(cell)),), run(cell))
    (params,) = params_of(net)
    weights = interop.to_equinox(params)
    cell = eqx.tree_at(lambda cell: [getattr(cell, path) for path in weights], cell, list(weights.values()))
    assert_answers(net, (params,), run(cell))


# cuDNN: the layout as JAX unpacks it, and the reference of JAX on a CPU


@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_layout_matches_jax(bidirectional):
    from jax.experimental import rnn

    net, directions = network("lstm", "lstm", bidirectional=bidirectional), 1 + bidirectional
    params = params_of(net)
    flat = interop.to_cudnn(params)
    assert flat.size == rnn.get_num_params_in_lstm(I, H, 2, bidirectional)
    weights = rnn.unpack_lstm_weights(flat, I, H, 2, bidirectional)
    start = jnp.zeros((2 * directions, B, H))
    xs, lengths = jnp.asarray(batch_first(inputs())), jnp.full((B,), T, jnp.int32)
    theirs = rnn.lstm_ref(xs, start, start, *weights, lengths, I, H, 2, 0.0, bidirectional)[0]
    assert_answers(net, params, batch_first(theirs))

    own = scaled(flat, 1)
    weights = rnn.unpack_lstm_weights(own, I, H, 2, bidirectional)
    theirs = rnn.lstm_ref(xs, start, start, *weights, lengths, I, H, 2, 0.0, bidirectional)[0]
    read = interop.from_cudnn(own, I, H, num_layers=2, bidirectional=bidirectional)
    assert_answers(net, read, batch_first(theirs))


@pytest.mark.parametrize("name", ["rnn", "gru"])
def test_cudnn_layout_matches_torch(name):
    """PyTorch flattens its parameters for cuDNN: first all matrices, then all biases."""
    peer("torch")
    import torch

    module = getattr(torch.nn, TORCH[name][0])(I, H, 2, bidirectional=True, dtype=torch.float64)
    arrays = {path: w.detach().numpy() for path, w in module.named_parameters()}
    order = sorted(arrays, key=lambda path: path.startswith("bias"))
    flat = np.concatenate([arrays[path].ravel() for path in order])
    kind = "rnn_tanh" if name == "rnn" else name
    params = interop.from_cudnn(flat, I, H, num_layers=2, bidirectional=True, kind=kind)
    chex.assert_trees_all_equal(params, interop.from_torch(arrays), strict=True)
    assert_answers(network(name, name, bidirectional=True), params, module(torch.from_numpy(inputs()))[0].detach())
