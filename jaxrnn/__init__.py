"""jaxrnn: recurrent networks for JAX, as pure functions."""

from jaxrnn import initializers
from jaxrnn._types import Cell, Rule, Tape
from jaxrnn.cells import (
    GRUNorm,
    GRUParams,
    LSTMNorm,
    LSTMParams,
    LSTMState,
    RNNParams,
    gru,
    gru_step,
    lstm,
    lstm_step,
    rnn,
    rnn_step,
)
from jaxrnn.sequence import unroll

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "GRUNorm",
    "GRUParams",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "RNNParams",
    "Rule",
    "Tape",
    "gru",
    "gru_step",
    "initializers",
    "lstm",
    "lstm_step",
    "rnn",
    "rnn_step",
    "unroll",
]
