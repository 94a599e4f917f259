"""Refusals of the modules. A message has module, argument, expected, got, likely cause."""

import jax
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.modules import GRU, LRU, LSTM, RGLRU, RNN, GRUCell, LRUCell, LSTMCell, MinGRU, MinLSTMCell, RNNCell
from tests.support.modules import MASK, RESETS, XS, rngs
from tests.support.registry import LENGTHS, B, H, I, T


def call(*args, make=lambda: GRU(I, H, 2, rngs=rngs()), **options):
    return make()(*args, **options)


def lstm(**options):
    return lambda: LSTM(I, H, rngs=rngs(), **options)


H0, C0 = np.zeros((1, B, H), np.float32), np.zeros((1, B, H), np.float32)
FIRST = XS.swapaxes(0, 1).copy()

REFUSED = {
    # arguments
    "input_size": (lambda: LSTM(0, H, rngs=rngs()), ValueError, "LSTM: input_size expected a positive integer, got 0"),
    "hidden_size": (lambda: GRU(I, 4.0, rngs=rngs()), TypeError, "GRU: hidden_size expected a positive integer, got float"),
    "hidden_size of a projection": (lambda: LSTM(I, "4", proj_size=2, rngs=rngs()), TypeError, "LSTM: hidden_size expected a pos"),
    "num_layers": (lambda: RNN(I, H, 0, rngs=rngs()), ValueError, "RNN: num_layers expected a positive integer, got 0"),
    "nonlinearity": (lambda: RNN(I, H, nonlinearity="gelu", rngs=rngs()), ValueError, "RNN: nonlinearity expected one of 'tanh'"),
    "bias": (lambda: RNN(I, H, bias=1, rngs=rngs()), TypeError, "RNN: bias expected True or False, got int 1"),
    "bias in the place of nonlinearity": (lambda: RNN(I, H, 1, True, rngs=rngs()), ValueError, "RNN: nonlinearity expected"),
    "batch_first": (lambda: GRU(I, H, batch_first="yes", rngs=rngs()), TypeError, "GRU: batch_first expected True or False"),
    "bidirectional": (lambda: GRU(I, H, bidirectional=2, rngs=rngs()), TypeError, "GRU: bidirectional expected True or False"),
    "dropout": (lambda: GRU(I, H, 2, dropout=1.0, rngs=rngs()), ValueError, r"GRU: dropout expected a rate in \[0, 1\), got 1.0"),
    "proj_size of H": (lstm(proj_size=H), ValueError, "LSTM: proj_size expected less than hidden_size = 4, got 4; 0 is no"),
    "proj_size below 0": (lstm(proj_size=-1), ValueError, "LSTM: proj_size expected a positive integer, got -1"),
    "proj_size False": (lstm(proj_size=False), TypeError, "LSTM: proj_size expected a positive integer, got bool"),
    "peephole": (lstm(peephole=None), TypeError, "LSTM: peephole expected True or False"),
    "reset_after": (lambda: GRUCell(I, H, reset_after=0, rngs=rngs()), TypeError, "GRUCell: reset_after expected True"),
    "deterministic": (lstm(deterministic=0), TypeError, "LSTM: deterministic expected True or False"),
    "rngs": (lambda: LSTM(I, H, rngs=jax.random.key(0)), TypeError, "LSTM: rngs expected flax.nnx.Rngs, such as nnx.Rngs"),
    "recurrent_init without a recurrent weight": (
        lambda: MinGRU(I, H, recurrent_init=nnx.initializers.zeros, rngs=rngs()), TypeError,
        "MinGRU: recurrent_init expected None, got .*; the cell has no recurrent weight"),
    "recurrent_metadata without a recurrent weight": (
        lambda: MinLSTMCell(I, H, recurrent_metadata={"a": 1}, rngs=rngs()), TypeError,
        "MinLSTMCell: recurrent_metadata expected None, got .*; the cell has no recurrent weight"),
    "num_blocks": (lambda: RGLRU(I, H, num_blocks=3, rngs=rngs()), ValueError, "rg_lru: num_blocks expected a divisor of hidden_size"),
    "r_max": (lambda: LRU(I, H, r_max=1.5, rngs=rngs()), ValueError, "lru: r_max expected a number above 0, from .* got 1.5"),
    "bias_init without a bias": (lambda: LRUCell(I, H, bias_init=nnx.initializers.zeros, rngs=rngs()), TypeError,
                                 "LRUCell: bias_init expected None, got .*; the cell has no bias"),
    "param_dtype of a complex state": (lambda: LRU(I, H, param_dtype=jax.numpy.bfloat16, rngs=rngs()), TypeError,
                                       "lru.init: dtype expected float32 or float64 for a complex state, got bfloat16"),
    "a real hx of a complex state": (lambda: call(XS, H0, make=lambda: LRU(I, H, rngs=rngs())), TypeError,
                                     r"LRU: hx expected a complex array, got float32\[1, 5, 4\]; add 0j"),
    "a complex hx of a real state": (lambda: call(XS, H0 + 0j, make=lambda: RGLRU(I, H, rngs=rngs())), TypeError,
                                     "RGLRU: hx expected a floating-point array, got complex64"),
    "load of PyTorch's into a cell that it lacks": (
        lambda: MinGRU(I, H, rngs=rngs()).load_torch(GRU(I, H, rngs=rngs()).to_torch()), TypeError,
        "MinGRU.load: params.0. expected MinGRUParams, got GRUParams"),
    "to_torch of a cell that it lacks": (
        lambda: MinGRU(I, H, rngs=rngs()).to_torch(), TypeError, "to_torch: params.* MinGRUParams"),
    "rngs of a cell": (lambda: RNNCell(I, H, rngs=0), TypeError, "RNNCell: rngs expected flax.nnx.Rngs, .* got int 0"),
    # sequences
    "rank": (lambda: call(XS[0, 0]), ValueError, r"GRU: xs expected shape \(T, \*B, I\), got \(3,\)"),
    "features": (lambda: call(XS[..., :2]), ValueError, r"GRU: xs expected .* input_size = 3, got \(6, 5, 2\); features are the"),
    "features first": (lambda: call(FIRST[..., :2], make=lstm(batch_first=True)), ValueError, r"LSTM: xs expected shape \(\*B, T, I\)"),
    "integers": (lambda: call(np.zeros((T, B, I), int)), TypeError, "GRU: xs expected a floating-point array, got int32"),
    "a list": (lambda: call([[1.0]]), TypeError, "GRU: xs expected an array, got list"),
    # states
    "hx without c": (lambda: call(XS, H0, make=lstm()), TypeError, r"LSTM: hx expected the tuple \(h_0, c_0\), got float32\[1, 5, 4\]"),
    "hx of three": (lambda: call(XS, (H0, C0, C0), make=lstm()), TypeError, r"LSTM: hx expected the tuple \(h_0, c_0\), got tuple"),
    "hx with c": (lambda: call(XS, (H0, C0)), TypeError, "GRU: hx expected the array h_0, got tuple .* only an LSTM"),
    "hx swapped": (lambda: call(XS, (C0, H0[..., :2]), make=lstm(proj_size=2)), ValueError,
                   r"LSTM: h_0 expected shape .* = \(1, 5, 2\), got \(1, 5, 4\); the order is \(h_0, c_0\)"),
    "c_0 projected": (lambda: call(XS, (H0[..., :2], C0[..., :2]), make=lstm(proj_size=2)), ValueError,
                      r"LSTM: c_0 expected shape .* = \(1, 5, 4\), got \(1, 5, 2\)"),
    "hx of one layer": (lambda: call(XS, H0), ValueError, r"GRU: hx expected shape \(L\*D, \*B, ·\) = \(2, 5, 4\), got \(1, 5, 4\)"),
    "hx of one direction": (lambda: call(XS, H0, make=lambda: GRU(I, H, bidirectional=True, rngs=rngs())), ValueError,
                            r"= \(2, 5, 4\), got \(1, 5, 4\)"),
    "hx batch-first": (lambda: call(FIRST, (H0.swapaxes(0, 1), C0), make=lstm(batch_first=True)), ValueError,
                       r"LSTM: h_0 expected .* = \(1, 5, 4\), got \(5, 1, 4\); the order is .*; batch_first does not touch it"),
    "hx of a batch for none": (lambda: call(XS[:, 0], H0), ValueError, r"= \(2, 4\), got \(1, 5, 4\)"),
    "hx of integers": (lambda: call(XS, np.zeros((2, B, H), int)), TypeError, "GRU: hx expected a floating-point array"),
    "xs batch-first with hx": (lambda: call(FIRST, np.zeros((2, B, H), np.float32)), ValueError,
                               r"= \(2, 6, 4\), got \(2, 5, 4\); is xs batch-major"),
    # lengths, masks, resets
    "lengths batch-first": (lambda: call(XS, lengths=LENGTHS, make=lstm(batch_first=True)), ValueError,
                            r"LSTM: lengths expected the batch shape \(6,\), got \(5,\)"),
    "lengths beyond": (lambda: call(XS, lengths=LENGTHS + 1), ValueError, "GRU: lengths expected values from 0 to T = 6, got 7"),
    "lengths of a list": (lambda: call(XS, lengths=[1] * B), TypeError, "GRU: lengths expected an array, got list"),
    "mask time-first": (lambda: call(FIRST, mask=MASK, make=lstm(batch_first=True)), ValueError,
                        r"LSTM: mask expected shape \(\*B, T\) = \(5, 6\), got \(6, 5\); batch_first is True"),
    "mask batch-first": (lambda: call(XS, mask=MASK.T), ValueError, r"GRU: mask expected shape \(T, \*B\) = \(6, 5\), got \(5, 6\)"),
    "resets of integers": (lambda: call(FIRST, resets=RESETS.T.astype(int), make=lstm(batch_first=True)), TypeError,
                           "LSTM: resets expected booleans, got int32"),
    "both": (lambda: call(XS, lengths=LENGTHS, mask=MASK), ValueError, "lengths and mask were both given"),
    # dropout
    "no stream": (lambda: call(XS, make=lambda: GRU(I, H, 2, dropout=0.5, rngs=nnx.Rngs(params=0))), TypeError,
                  "GRU: rngs expected nnx.Rngs, an nnx.RngStream or a key, for dropout, got None; without dropout: eval"),
    "a seed": (lambda: call(XS, rngs=0, make=lambda: GRU(I, H, 2, dropout=0.5, rngs=rngs())), TypeError, "rngs expected .* got int 0"),
    # parameters
    "load of a record": (lambda: GRU(I, H, rngs=rngs()).load(GRUCell(I, H, rngs=rngs()).params), TypeError,
                         "GRU.load: params expected a tuple over 1 layers, got GRUParams"),
    "load of two layers": (lambda: GRU(I, H, 2, rngs=rngs()).load(GRU(I, H, rngs=rngs()).params), TypeError,
                           "GRU.load: params expected a tuple over 2 layers"),
    "load of another kind": (lambda: GRU(I, H, rngs=rngs()).load(LSTM(I, H, rngs=rngs()).params), TypeError,
                             r"GRU.load: params\[0\] expected GRUParams, got LSTMParams"),
    "load of one direction": (lambda: GRU(I, H, bidirectional=True, rngs=rngs()).load(GRU(I, H, rngs=rngs()).params), TypeError,
                              r"GRU.load: params\[0\] expected Bidirectional, got GRUParams"),
    "load of another size": (lambda: GRUCell(I, H, rngs=rngs()).load(GRUCell(2, H, rngs=rngs()).params), ValueError,
                             r"GRUCell.load: params.w_x expected shape \(3, 12\), got \(2, 12\)"),
    "load of another form": (lambda: LSTM(I, H, rngs=rngs()).load(LSTM(I, H, layer_norm=True, rngs=rngs()).params), ValueError,
                             r"LSTM.load: params\[0\].norm expected None, got LSTMNorm"),
    "load of integers": (lambda: RNNCell(I, H, rngs=rngs()).load(jaxrnn.RNNParams(*(np.zeros(s, int) for s in ((I, H), (H, H), H)))),
                         TypeError, "RNNCell.load: params.w_x expected a floating-point array"),
    "load_torch of another depth": (lambda: LSTM(I, H, 2, rngs=rngs()).load_torch(LSTM(I, H, rngs=rngs()).to_torch()), TypeError,
                                    "LSTM.load: params expected a tuple over 2 layers"),
    "load_torch before": (lambda: GRU(I, H, reset_after=False, rngs=rngs()).load_torch({}), ValueError,
                          "GRU.load_torch: reset_after expected True, got False; PyTorch's GRU"),
    "to_torch before": (lambda: GRUCell(I, H, False, reset_after=False, rngs=rngs()).to_torch(), ValueError,
                        "GRUCell.to_torch: reset_after expected True"),
    "to_torch sigmoid": (lambda: RNN(I, H, bidirectional=True, nonlinearity="sigmoid", rngs=rngs()).to_torch(), ValueError,
                         "RNN.to_torch: nonlinearity expected 'tanh' or 'relu', got 'sigmoid'"),
    "to_torch peephole": (lambda: LSTM(I, H, peephole=True, rngs=rngs()).to_torch(), ValueError, "to_torch: .*peephole"),
    # cells
    "carry of flax": (lambda: LSTMCell(I, H, rngs=rngs())((H0[0], C0[0]), XS[0]), TypeError, "lstm_step: state expected LSTMState"),
    "carry_init": (lambda: GRUCell(I, H, rngs=rngs()).initialize_carry((B, I), carry_init=jax.nn.initializers.ones), TypeError,
                   "GRUCell.initialize_carry: rngs expected nnx.Rngs or an nnx.RngStream, as there is a carry_init"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case, unhooked):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()
