"""jaxrnn: recurrent networks for JAX, as pure functions."""

from jaxrnn import initializers
from jaxrnn._types import Cell, Rule, Tape
from jaxrnn.cells import (
    GRUNorm,
    GRUParams,
    IndRNNParams,
    LSTMNorm,
    LSTMParams,
    LSTMState,
    MGUParams,
    RNNParams,
    gru,
    gru_step,
    indrnn,
    indrnn_step,
    lstm,
    lstm_step,
    mgu,
    mgu_step,
    rnn,
    rnn_step,
)
from jaxrnn.sequence import unroll

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "GRUNorm",
    "GRUParams",
    "IndRNNParams",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "MGUParams",
    "RNNParams",
    "Rule",
    "Tape",
    "gru",
    "gru_step",
    "indrnn",
    "indrnn_step",
    "initializers",
    "lstm",
    "lstm_step",
    "mgu",
    "mgu_step",
    "rnn",
    "rnn_step",
    "unroll",
]
