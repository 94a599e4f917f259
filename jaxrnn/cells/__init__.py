"""Cells: one family a file, its equations and their hand-written derivative side by side."""

from jaxrnn.cells.gru import GRUNorm, GRUParams, gru, gru_step
from jaxrnn.cells.lstm import LSTMNorm, LSTMParams, LSTMState, lstm, lstm_step
from jaxrnn.cells.rnn import RNNParams, rnn, rnn_step

__all__ = [
    "GRUNorm",
    "GRUParams",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "RNNParams",
    "gru",
    "gru_step",
    "lstm",
    "lstm_step",
    "rnn",
    "rnn_step",
]
