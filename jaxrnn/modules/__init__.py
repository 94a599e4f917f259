"""Flax NNX modules over the functional API, with PyTorch's names, arguments and shapes."""

from jaxrnn.modules.cells import GRUCell, LRUCell, LSTMCell, MinGRUCell, MinLSTMCell, RGLRUCell, RNNCell, SLSTMCell
from jaxrnn.modules.layers import GRU, LRU, LSTM, RGLRU, RNN, SLSTM, MinGRU, MinLSTM
from jaxrnn.modules.readout import Readout

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "RNN",
    "SLSTM",
    "GRUCell",
    "LRUCell",
    "LSTMCell",
    "MinGRU",
    "MinGRUCell",
    "MinLSTM",
    "MinLSTMCell",
    "RGLRUCell",
    "RNNCell",
    "Readout",
    "SLSTMCell",
]
