"""Cells: one family a file, its equations and their hand-written derivative side by side."""

from jaxrnn.cells.gru import GRUNorm, GRUParams, gru, gru_step
from jaxrnn.cells.indrnn import IndRNNParams, indrnn, indrnn_step
from jaxrnn.cells.lstm import LSTMNorm, LSTMParams, LSTMState, lstm, lstm_step
from jaxrnn.cells.mgu import MGUParams, mgu, mgu_step
from jaxrnn.cells.regularize import regularize
from jaxrnn.cells.rnn import RNNParams, rnn, rnn_step

__all__ = [
    "GRUNorm",
    "GRUParams",
    "IndRNNParams",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "MGUParams",
    "RNNParams",
    "gru",
    "gru_step",
    "indrnn",
    "indrnn_step",
    "lstm",
    "lstm_step",
    "mgu",
    "mgu_step",
    "regularize",
    "rnn",
    "rnn_step",
]
