"""Flax NNX modules over the functional API, with PyTorch's names, arguments and shapes."""

from jaxrnn.modules.cells import GRUCell, LSTMCell, RNNCell
from jaxrnn.modules.layers import GRU, LSTM, RNN
from jaxrnn.modules.readout import Readout

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Readout"]
