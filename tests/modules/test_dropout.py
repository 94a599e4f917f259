"""Dropout of the modules: training and evaluation, streams and keys."""

import jax
import pytest
from flax import nnx

from jaxrnn.modules import GRU, LSTM
from tests.support.modules import XS, randomised, rngs
from tests.support.registry import H, I, assert_equal, gap


def test_train_and_eval_switch_dropout():
    module = randomised(LSTM(I, H, 2, dropout=0.5, rngs=rngs()))
    quiet = module.network.unroll(module.params, XS, key=None)[1]
    assert gap(module(XS)[0], quiet) > 1e-2  # a new module trains, as in PyTorch
    module.eval()
    assert module.deterministic is True
    assert_equal(module(XS)[0], quiet)
    assert gap(module(XS, deterministic=False)[0], quiet) > 1e-2
    module.train()
    assert_equal(module(XS, deterministic=True)[0], quiet)
    assert_equal(nnx.view(module, deterministic=True)(XS)[0], quiet)
    assert gap(module(XS)[0], module(XS)[0]) > 1e-2  # every call draws anew
    assert gap(LSTM(I, H, 2, dropout=0.5, deterministic=True, rngs=rngs())(XS)[0], quiet) > 0  # other weights
    assert_equal(LSTM(I, H, 2, dropout=0.5, deterministic=True, rngs=rngs())(XS), LSTM(I, H, 2, rngs=rngs())(XS))


def test_dropout_draws_from_the_given_stream_or_key():
    module = randomised(LSTM(I, H, 2, dropout=0.5, rngs=rngs()))
    key = jax.random.key(3)
    ys = module(XS, rngs=key)[0]
    assert_equal(ys, module.network.unroll(module.params, XS, key=key)[1])
    count = int(module.rngs.count[...])
    drawn = [module(XS, rngs=source)[0] for source in (nnx.Rngs(dropout=5), nnx.Rngs(5).default, nnx.Rngs(default=5))]
    assert_equal(*drawn)
    assert int(module.rngs.count[...]) == count
    assert gap(module(XS)[0], drawn[0]) > 1e-2
    twins = [LSTM(I, H, 2, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=seed))(XS)[0] for seed in (1, 1, 2)]
    assert_equal(twins[0], twins[1])
    assert gap(twins[0], twins[2]) > 1e-2
    stepped = nnx.jit(lambda module, xs: module(xs)[0])
    assert gap(stepped(module, XS), stepped(module, XS)) > 1e-2  # the stream advances under jit


def test_modules_without_dropout_have_no_stream():
    for module in (GRU(I, H, 2, rngs=rngs()), GRU(I, H, 2, dropout=0.5, rngs=nnx.Rngs(params=0))):
        assert module.rngs is None
        assert not jax.tree.leaves(nnx.state(module, nnx.RngState))
    with pytest.warns(UserWarning, match="GRU: dropout = 0.5 does nothing with num_layers = 1"):
        single = GRU(I, H, dropout=0.5, rngs=rngs())
    assert single.rngs is None
    assert_equal(single(XS), GRU(I, H, rngs=rngs())(XS))
