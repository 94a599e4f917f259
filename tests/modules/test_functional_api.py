"""The modules equal the functional API, in PyTorch's shapes."""

import copy

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn.modules import GRU, LSTM
from tests.support.modules import KINDS, MASK, MODULES, RESETS, XS, by_layer, flat, initial, numbers, randomised, rngs
from tests.support.registry import LENGTHS, B, H, I, T, assert_close, assert_equal, gap


@pytest.mark.parametrize("name", MODULES)
def test_module_equals_the_functional_network(name):
    module = randomised(MODULES[name][0]())
    assert repr(module.network) == repr(MODULES[name][1]())  # which shows all options
    for hx, options in ((None, {"lengths": LENGTHS}), (initial(module, B), {"mask": MASK, "resets": RESETS})):
        states = None if hx is None else by_layer(module, hx)
        states, ys = module.network.unroll(module.params, XS, states, **options)
        assert_equal(module(XS, hx, **options), (ys, flat(states)))


@pytest.mark.parametrize("name", ["lstm-variants", "gru-bidirectional"])
def test_gradients_equal_those_of_the_functional_network(name):
    module = randomised(MODULES[name][0]())
    network = module.network
    weigh = lambda ys: jnp.sum(jnp.sin(ys))  # noqa: E731
    value, gradients = nnx.jit(nnx.value_and_grad(lambda m: weigh(m(XS, lengths=LENGTHS)[0])))(module)
    expected = jax.value_and_grad(lambda p: weigh(network.unroll(p, XS, lengths=LENGTHS)[1]))(module.params)
    assert isinstance(jax.tree.leaves(gradients, is_leaf=lambda v: isinstance(v, nnx.Param))[0], nnx.Param)
    graphdef, _ = nnx.split(module)
    assert_close((value, nnx.merge(graphdef, gradients).params), expected, "float32")


@pytest.mark.parametrize("name", ["lstm-bidirectional-projected", "gru-bidirectional"])
def test_batch_first_moves_time_and_keeps_states(name):
    module = randomised(MODULES[name][0]())
    hx = initial(module, B)
    ys, finals = module(XS, hx, mask=MASK, resets=RESETS)
    batch_first = copy.copy(module)
    batch_first.batch_first = True
    got = batch_first(XS.swapaxes(0, 1), hx, mask=MASK.T, resets=RESETS.T)
    assert_equal(got, (ys.swapaxes(0, 1), finals))
    by_length = batch_first(XS.swapaxes(0, 1), hx, lengths=LENGTHS)
    assert_equal(by_length[1], module(XS, hx, lengths=LENGTHS)[1])
    alone = jax.tree.map(lambda a: a[:, 0], hx)
    first = batch_first(XS[:, 0], alone, mask=MASK[:, 0], resets=RESETS[:, 0])  # time is first without a batch
    assert_close(first, (ys[:, 0], jax.tree.map(lambda a: a[:, 0], finals)), "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_batch_first_modules_begin_with_layers_and_directions(kind):
    """There are as many sequences as rows of a state, so that no shape tells the two axes apart."""
    module = randomised(KINDS[kind](I, H, 2, batch_first=True, bidirectional=True, rngs=rngs()))
    for batch, has_states, lengths in (((4,), False, LENGTHS[:4]), ((4,), True, None), ((4, 4), True, None)):
        xs, hx = numbers(3, *batch, T, I), initial(module, *batch) if has_states else None
        states = None if hx is None else by_layer(module, hx)
        states, ys = module.network.unroll(module.params, np.moveaxis(xs, -2, 0), states, lengths=lengths)
        assert_equal(module(xs, hx, lengths=lengths), (np.moveaxis(ys, 0, -2), flat(states)))


def test_several_batch_axes_equal_one():
    module = randomised(LSTM(I, H, 2, batch_first=True, rngs=rngs()))
    xs, hx = numbers(3, 2, B, T, I), initial(module, 2, B)
    ys, (h_n, c_n) = module(xs, hx, lengths=np.stack([LENGTHS, LENGTHS[::-1]]), resets=np.stack([RESETS.T] * 2))
    chex.assert_shape(ys, (2, B, T, H))
    second = tuple(a[:, 1] for a in hx)
    alone = module(xs[1], second, lengths=LENGTHS[::-1].copy(), resets=RESETS.T)
    assert_close((ys[1], (h_n[:, 1], c_n[:, 1])), alone, "float32")


def test_chunks_of_a_stream_equal_one_call():
    module = randomised(LSTM(I, H, 2, rngs=rngs()))
    whole = module(XS, initial(module, B))
    first, hx = module(XS[:2], initial(module, B))
    second, hx = module(XS[2:], hx)
    assert_close((jnp.concatenate([first, second]), hx), whole, "float32")


def test_options_of_unroll_are_passed_on(unhooked):
    build = lambda **options: randomised(LSTM(I, H, 2, rngs=rngs(), **options))  # noqa: E731
    exact = build()(XS)
    assert_close(build(implementation="scan")(XS), exact, "float32")
    assert_close(build(implementation="reference", checkpoint=2)(XS), exact, "float32")
    mixed = build(compute_dtype=jnp.bfloat16)(XS)
    assert 1e-4 < gap(mixed, exact) < 0.05
    with pytest.raises(ValueError, match="implementation expected one of"):
        build(implementation="fast")(XS)
    with pytest.raises(NotImplementedError, match='checkpoint="gates": only a rule knows'):
        build(implementation="scan", checkpoint="gates")(XS)


def test_modules_of_equal_options_share_compiled_programs():
    split = lambda seed, **options: nnx.split(GRU(I, H, 2, rngs=rngs(seed), **options))  # noqa: E731
    (first, state), (second, _), (other, _) = split(0), split(1), split(0, reset_after=False)
    assert first == second
    assert hash(first) == hash(second)
    assert first != other
    by_state = jax.jit(lambda state, xs: nnx.merge(first, state)(xs)[0])
    by_module = nnx.jit(chex.assert_max_traces(lambda module, xs: module(xs)[0], n=1))
    assert_close(by_module(GRU(I, H, 2, rngs=rngs(0)), XS), by_state(state, XS), "float32")
    by_module(GRU(I, H, 2, rngs=rngs(1)), XS)
