"""The read-out, and its losses, whose derivative by the logits is ŷ - y."""

import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import special

import jaxrnn
from tests.support.odd_values import ODD, faults
from tests.support.peers import peer

H, O, B = 4, 3, 5  # noqa: E741
KINDS = ("identity", "sigmoid", "softmax")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def problem(kind, rng):
    """Parameters, outputs of a network and targets, in NumPy."""
    params = jaxrnn.ReadoutParams(rng.normal(size=(H, O)), rng.normal(size=O))
    h, y = rng.normal(size=(2, B, H)), rng.random((2, B, O))
    return params, h, y / y.sum(-1, keepdims=True) if kind == "softmax" else y


PREDICTED = {"identity": lambda a: a, "sigmoid": special.expit, "softmax": lambda a: special.softmax(a, -1)}
LOSSES = {
    "identity": lambda p, y: 0.5 * ((p - y) ** 2).sum(-1),
    "sigmoid": lambda p, y: -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(-1),
    "softmax": lambda p, y: -(y * np.log(p)).sum(-1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_equations_in_numpy(kind, rng, x64):
    """δa = ŷ - y, δh = δa Vᵀ, δV = Σ hᵀ δa, δc = Σ δa."""
    params, h, y = problem(kind, rng)
    read = jaxrnn.readout(O, activation=kind)
    arrays = jax.tree.map(jnp.asarray, params)
    logits = h @ params.v + params.c
    predicted = PREDICTED[kind](logits)
    chex.assert_trees_all_close(read.logits(arrays, h), logits, rtol=1e-13)
    chex.assert_trees_all_close(read.predict(arrays, h), predicted, rtol=1e-13)
    chex.assert_trees_all_close(read.loss(arrays, h, y), LOSSES[kind](predicted, y), rtol=1e-12)
    chex.assert_trees_all_close(
        jaxrnn.readout_loss(jnp.asarray(logits), y, kind), LOSSES[kind](predicted, y), rtol=1e-12
    )
    total = lambda params, h: read.loss(params, h, y).sum()  # noqa: E731
    dparams, dh = jax.grad(total, (0, 1))(arrays, jnp.asarray(h))
    da = predicted - y
    chex.assert_trees_all_close(dh, da @ params.v.T, rtol=1e-12)
    chex.assert_trees_all_close(dparams.v, np.einsum("tbh,tbo->ho", h, da), rtol=1e-12)
    chex.assert_trees_all_close(dparams.c, da.sum((0, 1)), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_every_mode_equal_those_of_plain_formulas(kind, rng, x64):
    """By logits and by targets, forward and reverse, and of second order; probabilities need not add up to 1."""
    a, y = jnp.asarray(rng.normal(size=O)), jnp.asarray(rng.random(O))
    plain = {
        "identity": lambda a, y: 0.5 * jnp.sum((a - y) ** 2),
        "sigmoid": lambda a, y: -jnp.sum(y * jnp.log(jax.nn.sigmoid(a)) + (1 - y) * jnp.log(1 - jax.nn.sigmoid(a))),
        "softmax": lambda a, y: -jnp.sum(y * jnp.log(jax.nn.softmax(a))),
    }[kind]
    fused = lambda a, y: jaxrnn.readout_loss(a, y, kind)  # noqa: E731
    for derivative in (jax.grad, jax.jacfwd, jax.jacrev, jax.hessian):
        wanted, found = derivative(plain, (0, 1))(a, y), derivative(fused, (0, 1))(a, y)
        chex.assert_trees_all_close(found, wanted, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(jax.jit(jax.vmap(fused))(a[None], y[None]), plain(a, y)[None], rtol=1e-12)


def test_losses_equal_those_of_optax(rng):
    a = jnp.asarray(rng.normal(size=(B, O)), jnp.float32)
    labels, y = jnp.asarray(rng.integers(0, O, B)), jnp.asarray(rng.random((B, O)), jnp.float32)
    by_classes = optax.softmax_cross_entropy_with_integer_labels(a, labels)
    chex.assert_trees_all_close(jaxrnn.readout_loss(a, labels), by_classes, rtol=1e-6)
    one_hot = jax.nn.one_hot(labels, O, dtype=jnp.int32)
    chex.assert_trees_all_close(jaxrnn.readout_loss(a, one_hot), by_classes, rtol=1e-6)
    chex.assert_trees_all_close(jaxrnn.readout_loss(a, y), optax.softmax_cross_entropy(a, y), rtol=1e-6)
    events = optax.sigmoid_binary_cross_entropy(a, y).sum(-1)
    chex.assert_trees_all_close(jaxrnn.readout_loss(a, y, "sigmoid"), events, rtol=1e-6)
    whether = jaxrnn.readout_loss(a, y > 0.5, "sigmoid")
    chex.assert_trees_all_close(
        whether, optax.sigmoid_binary_cross_entropy(a, (y > 0.5).astype(jnp.float32)).sum(-1), rtol=1e-6
    )


def test_classes_have_the_gradient_of_their_one_hot_code(rng):
    a, labels = jnp.asarray(rng.normal(size=(B, O)), jnp.float32), jnp.asarray([0, 2, 1, 1, 0])
    by_classes = jax.grad(lambda a: jaxrnn.readout_loss(a, labels).sum())(a)
    wanted = jax.nn.softmax(a) - jax.nn.one_hot(labels, O)
    chex.assert_trees_all_close(by_classes, wanted, rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_large_logits_neither_overflow_nor_lose_the_gradient(kind, size):
    a, y = jnp.asarray([size, 0.0, 1.0]), jnp.asarray([1.0, 0.0, 0.0])
    loss, gradient = jax.value_and_grad(lambda a: jaxrnn.readout_loss(a, y, kind))(a)
    by_numpy = PREDICTED[kind](np.asarray(a, np.float64)) - np.asarray(y)
    chex.assert_trees_all_close(gradient, by_numpy.astype(np.float32), atol=1e-6)
    wanted = max(-size, 0) + (0 if kind == "softmax" else np.log(2) + np.log1p(np.e))
    wanted += np.log(1 + np.e) if kind == "softmax" and size < 0 else 0
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_a_class_outside_is_refused_or_gives_nan_that_can_be_masked():
    a, labels = jnp.zeros((2, O)), jnp.asarray([1, -1])
    with pytest.raises(ValueError, match=r"^readout_loss: targets expected classes in 0..2, got -1..1; give padded"):
        jaxrnn.readout_loss(a, labels)
    traced = jax.jit(jaxrnn.readout_loss)(a, labels)
    assert np.isnan(traced[1])
    np.testing.assert_allclose(traced[0], np.log(3), rtol=1e-6)
    closed_over = jax.jit(lambda a: jaxrnn.readout_loss(a, jnp.asarray([1, 2])))  # concrete, while logits are traced
    np.testing.assert_allclose(closed_over(a), np.log([3, 3]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"^readout_loss: targets expected classes in 0..2, got 1..3"):
        jax.jit(lambda a: jaxrnn.readout_loss(a, np.asarray([1, 3])))(a)
    masked = lambda a, labels: jnp.where(labels >= 0, jaxrnn.readout_loss(a, labels), 0).sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(masked))(a, labels)
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1 / 3, -2 / 3, 1 / 3], [0, 0, 0]], rtol=1e-6)


def test_readouts_of_equal_options_are_equal_and_share_a_program():
    first, second = jaxrnn.readout(O, activation="softmax"), jaxrnn.readout(O, activation="softmax")
    assert first == second
    assert hash(first) == hash(second)
    assert first != jaxrnn.readout(O)
    assert pickle.loads(pickle.dumps(first)) == first
    assert copy.deepcopy(first) is first
    assert repr(first) == "readout(3, activation='softmax')"
    params, h = first.init(jax.random.key(0), H), jnp.ones((B, H))

    @chex.assert_max_traces(n=1)
    def run(read, params, h):
        return read.predict(params, h)

    jitted = jax.jit(run, static_argnums=0)
    jitted(first, params, h)
    jitted(second, params, h)


def test_init_draws_both_parameters_from_keys_of_their_own():
    normal = jax.nn.initializers.normal(1.0)
    read = jaxrnn.readout(O, kernel_init=normal, bias_init=normal)
    v, c = read.init(jax.random.key(0), H)
    assert len(set(np.concatenate([np.ravel(v), c]).tolist())) == O * (H + 1)
    half = read.init(jax.random.key(0), H, jnp.bfloat16)
    chex.assert_type(half, jnp.bfloat16)
    assert jaxrnn.readout(O, use_bias=False).init(jax.random.key(0), H).c is None
    assert not np.asarray(jaxrnn.readout(O).init(jax.random.key(0), H).c).any()


def test_dtypes_are_promoted_together():
    read = jaxrnn.readout(O)
    params = read.init(jax.random.key(0), H, jnp.bfloat16)
    assert read.logits(params, jnp.ones((B, H), jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.numpy_dtype_promotion("standard"):
        assert read.logits(params, jnp.ones((B, H), jnp.float32)).dtype == jnp.float32


@pytest.mark.usefixtures("unhooked")
def test_odd_arguments_are_refused_by_name():
    good = {"output_size": O, "activation": "softmax", "use_bias": True}
    right = {"use_bias": {"True"}}
    assert not faults("readout", lambda **options: jaxrnn.readout(**options), good, accepted=right)
    read = jaxrnn.readout(O, activation="softmax")
    params = read.init(jax.random.key(0), H)
    init = {"key": jax.random.key(0), "input_size": H, "dtype": jnp.float32}
    keys = {"a raw key", "traced", "in NumPy", "a key", "one axis less"}
    right = {"key": keys, "dtype": {"None"}, "input_size": set()}
    assert not faults("readout.init", lambda **given: read.init(**given), init, accepted=right, words={"key": ("key",)})
    given = {"params": params, "h": jnp.ones((B, H))}
    forms = {"traced", "in NumPy", "float16", "NaN"}
    right = {"params": {"traced", "in NumPy", "float16", "NaN"}, "h": forms | {"one axis more", "one axis less"}}
    words = {"params": ("params", "v", "c")}
    assert not faults("readout.logits", read.logits, given, accepted=right, words=words)
    loss = {"logits": jnp.ones((B, O)), "targets": jnp.ones((B, O)) / O}
    words = {"logits": ("logits",), "targets": ("targets",)}
    forms = {"traced", "in NumPy", "float16", "NaN", "booleans", "int8", "int32"}
    right = {"logits": {"traced", "in NumPy", "float16", "NaN"}, "targets": forms}
    assert not faults("readout_loss", jaxrnn.readout_loss, loss, accepted=right, words=words)


def test_messages_say_what_is_likely_wrong():
    read = jaxrnn.readout(O, activation="softmax")
    with pytest.raises(ValueError, match=r"^readout: softmax expected at least 2 classes, got 1, .*'sigmoid'"):
        jaxrnn.readout(1, activation="softmax")
    with pytest.raises(ValueError, match=r"^readout_loss: softmax expected at least 2 classes"):
        jaxrnn.readout_loss(jnp.zeros((B, 1)), jnp.zeros(B, int))
    with pytest.raises(ValueError, match=r"^readout_loss: targets .*classes \(5,\), which are integers, .*float32"):
        jaxrnn.readout_loss(jnp.zeros((B, O)), jnp.zeros(B))
    with pytest.raises(TypeError, match=r"a read-out is not called; use its logits, predict or loss"):
        read(jnp.ones((B, H)))


# ---- the module


def test_module_equals_the_functional_readout(rng):
    module = jaxrnn.modules.Readout(H, O, "softmax", rngs=nnx.Rngs(0))
    h, labels = jnp.asarray(rng.normal(size=(B, H)), jnp.float32), jnp.asarray([0, 2, 1, 1, 0])
    read = jaxrnn.readout(O, activation="softmax")
    assert module.readout == read
    chex.assert_trees_all_equal(module(h), read.predict(module.params, h))
    chex.assert_trees_all_equal(module.logits(h), read.logits(module.params, h))
    chex.assert_trees_all_equal(module.loss(h, labels), read.loss(module.params, h, labels))
    gradient = nnx.grad(lambda module: module.loss(h, labels).sum())(module)
    wanted = jax.grad(lambda params: read.loss(params, h, labels).sum())(module.params)
    chex.assert_trees_all_close(gradient["v"][...], wanted.v, rtol=1e-6)
    assert jaxrnn.modules.Readout(H, O, bias=False, rngs=nnx.Rngs(0)).c is None


def test_module_draws_as_torch_does():
    module = jaxrnn.modules.Readout(400, 300, rngs=nnx.Rngs(0))
    for leaf in module.params:
        assert np.abs(leaf).max() <= 1 / 20
        assert np.abs(leaf).max() > 0.99 / 20
    other = jaxrnn.modules.Readout(H, O, kernel_init=nnx.initializers.ones_init(), rngs=nnx.Rngs(0))
    assert (np.asarray(other.v[...]) == 1).all()


@pytest.mark.peers
@pytest.mark.parametrize("bias", [True, False])
def test_module_exchanges_weights_with_torch(bias, rng):
    peer("torch")
    import torch

    linear = torch.nn.Linear(H, O, bias=bias)
    h = rng.normal(size=(B, H)).astype(np.float32)
    module = jaxrnn.modules.Readout(H, O, bias=bias, rngs=nnx.Rngs(0))
    module.load_torch({f"head.{name}": value for name, value in linear.state_dict().items()}, "head")
    np.testing.assert_allclose(module(h), linear(torch.tensor(h)).detach(), rtol=1e-5, atol=1e-6)
    back = {name: torch.tensor(value) for name, value in module.to_torch().items()}
    assert all(torch.equal(back[name], value) for name, value in linear.state_dict().items())
    with pytest.raises(ValueError, match=r"^Readout.load_torch: entry .*weight.* expected shape \(3, 4\), got"):
        jaxrnn.modules.Readout(H, O, bias=bias, rngs=nnx.Rngs(0)).load_torch(
            {name: value[:2] for name, value in linear.state_dict().items()}
        )


@pytest.mark.usefixtures("unhooked")
def test_odd_arguments_of_the_module_are_refused_by_name():
    def make(**options):
        rngs = nnx.Rngs(0) if isinstance(options["rngs"], nnx.Rngs) else options["rngs"]
        jaxrnn.modules.Readout(**{**options, "rngs": rngs})

    nones = ("kernel_init", "bias_init", "kernel_metadata", "bias_metadata")
    good = {"input_size": H, "output_size": O, "activation": "sigmoid", "bias": True}
    good |= {"param_dtype": jnp.float32, "rngs": nnx.Rngs(0), **dict.fromkeys(nones)}
    right = {"bias": {"True"}, "param_dtype": {"None"}} | {name: {"None"} for name in nones}
    right["kernel_metadata"] = right["bias_metadata"] = {"None", "an empty dict"}
    assert not faults("Readout", make, good, accepted=right)
    module = jaxrnn.modules.Readout(H, O, rngs=nnx.Rngs(0))
    odd = {key: value for key, value in ODD.items() if "traced" not in key}  # NNX refuses those itself
    assert not faults("Readout.load", module.load, {"params": module.params}, odd, words={"params": ("params",)})
    state = {"state_dict": module.to_torch(), "prefix": ""}
    assert not faults(
        "Readout.load_torch", module.load_torch, state, odd, words={"state_dict": ("state_dict", "entry")}
    )
