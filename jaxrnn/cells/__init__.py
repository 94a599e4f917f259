"""Cells: one family a file, its equations and their hand-written derivative side by side."""

from jaxrnn._types import Cell
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells.gru import GRUConfig, GRUNorm, GRUParams, gru, gru_step
from jaxrnn.cells.indrnn import IndRNNConfig, IndRNNParams, indrnn, indrnn_step
from jaxrnn.cells.lstm import LSTMConfig, LSTMNorm, LSTMParams, LSTMState, lstm, lstm_step
from jaxrnn.cells.mgu import MGUConfig, MGUParams, mgu, mgu_step
from jaxrnn.cells.regularize import RegularizeConfig, regularize
from jaxrnn.cells.rnn import RNNConfig, RNNParams, rnn, rnn_step

__all__ = [
    "GRUConfig",
    "GRUNorm",
    "GRUParams",
    "IndRNNConfig",
    "IndRNNParams",
    "LSTMConfig",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "MGUConfig",
    "MGUParams",
    "RNNConfig",
    "RNNParams",
    "RegularizeConfig",
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
    "variants",
]


def variants() -> dict[str, Cell]:
    """A small cell of each family and form, by what the table of implementations calls it."""
    return {
        "`lstm`": lstm(2),
        "`gru`": gru(2),
        "`rnn`": rnn(2),
        "`gru` with `reset_after=False`": gru(2, reset_after=False),
        "`rnn` with an activation of your own": rnn(2, activation=alg.identity),
        "`mgu`": mgu(2),
        "`indrnn`": indrnn(2),
        "a projection": lstm(2, projection_size=1),
        "peepholes": lstm(2, peephole=True),
        "coupled gates": lstm(2, coupled=True),
        "layer normalisation": lstm(2, layer_norm=True),
        "`regularize`": regularize(lstm(2), zoneout=0.5),
    }
