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
    regularize,
    rnn,
    rnn_step,
)
from jaxrnn.modes import generate, last_output
from jaxrnn.network import Bidirectional, Network, count_params, stack
from jaxrnn.sequence import unroll

__version__ = "0.1.0"

__all__ = [
    "Bidirectional",
    "Cell",
    "GRUNorm",
    "GRUParams",
    "IndRNNParams",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "MGUParams",
    "Network",
    "RNNParams",
    "Rule",
    "Tape",
    "count_params",
    "generate",
    "gru",
    "gru_step",
    "indrnn",
    "indrnn_step",
    "initializers",
    "last_output",
    "lstm",
    "lstm_step",
    "mgu",
    "mgu_step",
    "regularize",
    "rnn",
    "rnn_step",
    "stack",
    "unroll",
]
