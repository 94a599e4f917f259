"""Flax NNX modules over the functional API, with PyTorch's names, arguments and shapes."""

from jaxrnn.modules.affine_cells import LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
from jaxrnn.modules.affine_layers import LRU, RGLRU, MinGRU, MinLSTM
from jaxrnn.modules.cells import GRUCell, LSTMCell, RNNCell, SLSTMCell
from jaxrnn.modules.layers import GRU, LSTM, RNN, SLSTM
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
