"""Noise and generation with a batch that is sharded by type, in `shard_map`, and by `data_parallel`: equal to one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from tests.support.registry import assert_close

pytestmark = pytest.mark.devices

DEVICES, T, B, F = 4, 5, 8, 3
KEY = jax.random.key(1)
RATES = {
    "dropout": {},
    "input": {"input_dropout": 0.3},
    "recurrent": {"recurrent_dropout": 0.3},
    "dropconnect": {"dropconnect": 0.3},
    "zoneout": {"zoneout": 0.3},
}


def mesh_of(kind):
    return jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,), devices=jax.devices()[:DEVICES])


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("noise", RATES)
def test_noise_follows_an_explicitly_sharded_batch(noise, jit):
    rates = RATES[noise]
    cell = jaxrnn.regularize(jaxrnn.lstm(F), **rates) if rates else jaxrnn.lstm(F)
    net = jaxrnn.stack([cell, jaxrnn.gru(F)], dropout=0.0 if rates else 0.4)
    params, xs = net.init(jax.random.key(0), F), jax.random.normal(jax.random.key(2), (T, B, F))

    def loss(params, xs):
        ys = net.unroll(params, xs, key=KEY)[1]
        return jnp.sum(jnp.sin(ys)), ys

    run = jax.value_and_grad(loss, has_aux=True)
    (_, plain), gradient = run(params, xs)
    with jax.set_mesh(mesh_of(AxisType.Explicit)) as _:
        mesh = jax.sharding.get_mesh()
        sharded = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "batch")))
        (_, ys), got = jit(run)(params, sharded)
        assert tuple(ys.sharding.spec)[:2] == (None, "batch")
    assert_close(np.asarray(ys), np.asarray(plain), "float32")
    assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, gradient), "float32")
    silent = np.asarray(net.unroll(params, xs, key=None)[1])
    assert np.abs(silent - np.asarray(ys)).max() > 1e-3


def test_the_axis_of_a_vmap_may_be_sharded():
    cell = jaxrnn.gru(F)
    params, xs = cell.init(jax.random.key(0), F), jax.random.normal(jax.random.key(2), (DEVICES, T, B, F))
    run = jax.grad(lambda p, xs: jnp.sin(jax.vmap(lambda x: jaxrnn.unroll(cell, p, x)[1])(xs)).sum(), (0, 1))
    expected = run(params, xs)
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        sharded = jax.device_put(xs, NamedSharding(jax.sharding.get_mesh(), PartitionSpec("batch")))
        found = jax.jit(run)(params, sharded)
        assert tuple(found[1].sharding.spec)[:1] == ("batch",)
    assert_close(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected), "float32")


def test_masks_of_an_explicitly_sharded_batch_differ_in_time():
    identity = jaxrnn.rnn(1, activation=lambda a: a, use_bias=False)
    own = jaxrnn.RNNParams(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    net = jaxrnn.stack([identity, identity], dropout=0.5)
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        mesh = jax.sharding.get_mesh()
        xs = jax.device_put(jnp.ones((T, 400, 1)), NamedSharding(mesh, PartitionSpec(None, "batch")))
        kept = np.asarray(net.unroll((own, own), xs, key=KEY)[1])[..., 0] > 0
    assert np.abs(np.corrcoef(kept) - np.eye(T)).max() < 0.2  # steps draw anew
    assert np.abs(kept.reshape(T, DEVICES, -1).mean((0, 2)) - 0.5).max() < 0.1


NET = jaxrnn.stack([jaxrnn.lstm(F), jaxrnn.gru(F)])


def generated(params, start, key=None):
    def sample(y, key):
        return y if key is None else jax.nn.one_hot(jax.random.categorical(key, 5 * y), F)

    return jaxrnn.generate(NET, params, NET.initial_state(start.shape[:1]), start, sample, 6, key)


@pytest.mark.parametrize("key", [None, KEY], ids=["outputs", "samples"])
def test_generation_on_several_devices_equals_one_device(key):
    params, start = NET.init(jax.random.key(0), F), jax.random.normal(jax.random.key(2), (B, F))
    expected = jax.tree.map(np.asarray, generated(params, start, key))
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        mesh = jax.sharding.get_mesh()
        sharded = jax.device_put(start, NamedSharding(mesh, PartitionSpec("batch")))
        for run in (generated, jax.jit(generated)):
            assert_close(jax.tree.map(np.asarray, run(params, sharded, key)), expected, "float32")
    if key is None:  # a key is the same on all devices
        parallel = jaxrnn.data_parallel(generated, (None, 0), (0, 1), devices=jax.devices()[:DEVICES])
        for run in (parallel, jax.jit(parallel)):
            assert_close(jax.tree.map(np.asarray, run(params, start)), expected, "float32")
        by_name = parallel(params, start=start)
        assert_close(jax.tree.map(np.asarray, by_name), expected, "float32")


def drawn_and_best(params, start, with_beams=True):
    """Tokens until an end, and the best hypotheses."""
    logits, embed = lambda y: 5 * y, lambda token: jax.nn.one_hot(token, F)
    states = NET.initial_state(start.shape[:1])
    drawn = jaxrnn.generate(NET, params, states, start, jaxrnn.next_token(logits, embed), 6, end=1)
    if not with_beams:
        return drawn.tokens, drawn.log_probs
    best = jaxrnn.beam_search(NET, params, states, start, logits, embed, 6, beam_size=3, end=1)
    return (drawn.tokens, drawn.log_probs, best.tokens), (drawn.lengths, best.scores)


def test_tokens_and_beams_on_several_devices_equal_one_device():
    params, start = NET.init(jax.random.key(0), F), jax.random.normal(jax.random.key(2), (B, F))
    one = jax.tree.map(np.asarray, drawn_and_best(params, start))
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        mesh = jax.sharding.get_mesh()
        sharded = jax.device_put(start, NamedSharding(mesh, PartitionSpec("batch")))
        own = jax.jit(drawn_and_best, static_argnums=2)(params, sharded, False)
        assert_close(jax.tree.map(np.asarray, own), one[0][:2], "float32")
    parallel = jax.jit(jaxrnn.data_parallel(drawn_and_best, (None, 0), (1, 0), devices=jax.devices()[:DEVICES]))
    assert_close(jax.tree.map(np.asarray, parallel(params, start)), one, "float32")


def test_arguments_by_name_go_to_their_axes():
    def f(scale, xs, shift=0.0):
        return jnp.sum(scale * xs + shift, 0)

    xs = jnp.arange(16.0).reshape(2, 8)
    run = jaxrnn.data_parallel(f, (None, 1, None), 0)
    expected = 2 * xs.sum(0) + 2 * 3
    for got in (run(2.0, xs, 3.0), run(2.0, xs, shift=3.0), run(shift=3.0, xs=xs, scale=2.0)):
        np.testing.assert_allclose(got, expected)
    with pytest.raises(TypeError, match="data_parallel: the arguments do not fit those of f: .*'other'"):
        run(2.0, xs, other=1)
    keyword_only = jaxrnn.data_parallel(lambda xs, *, scale: xs * scale, (0,), 0)
    with pytest.raises(
        TypeError, match="data_parallel: expected arguments that f takes by position too.* got scale by name"
    ):
        keyword_only(jnp.ones(8), scale=2.0)
