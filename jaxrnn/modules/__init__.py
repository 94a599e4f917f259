"""Flax NNX modules over the functional API, with PyTorch's names, arguments and shapes."""

from jaxrnn.modules.cells import GRUCell, LSTMCell, MinGRUCell, MinLSTMCell, RNNCell
from jaxrnn.modules.layers import GRU, LSTM, RNN, MinGRU, MinLSTM
from jaxrnn.modules.readout import Readout

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "MinGRU",
    "MinGRUCell",
    "MinLSTM",
    "MinLSTMCell",
    "RNNCell",
    "Readout",
]
