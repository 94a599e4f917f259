"""Cells: one family a file, its equations and their hand-written derivative side by side."""

from jaxrnn._types import Cell
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells._activation import Activation
from jaxrnn.cells._affine import affine_rule
from jaxrnn.cells._attend_rule import AttendParams, AttendState
from jaxrnn.cells._attention import Memory
from jaxrnn.cells._family import Family
from jaxrnn.cells.attend import AttendConfig, attend
from jaxrnn.cells.gru import GRUConfig, GRUNorm, GRUParams, gru, gru_step
from jaxrnn.cells.indrnn import IndRNNConfig, IndRNNParams, indrnn, indrnn_step
from jaxrnn.cells.lru import LRUConfig, LRUParams, lru, lru_step
from jaxrnn.cells.lstm import LSTMConfig, LSTMNorm, LSTMParams, LSTMState, lstm, lstm_step
from jaxrnn.cells.mgu import MGUConfig, MGUParams, mgu, mgu_step
from jaxrnn.cells.min_gru import MinGRUConfig, MinGRUParams, min_gru, min_gru_step
from jaxrnn.cells.min_lstm import MinLSTMConfig, MinLSTMParams, min_lstm, min_lstm_step
from jaxrnn.cells.regularize import RegularizeConfig, regularize
from jaxrnn.cells.rg_lru import RGLRUConfig, RGLRUParams, rg_lru, rg_lru_step
from jaxrnn.cells.rnn import RNNConfig, RNNParams, rnn, rnn_step
from jaxrnn.cells.slstm import SLSTMConfig, SLSTMParams, SLSTMState, slstm, slstm_step

__all__ = [
    "FAMILIES",
    "Activation",
    "AttendConfig",
    "AttendParams",
    "AttendState",
    "Family",
    "GRUConfig",
    "GRUNorm",
    "GRUParams",
    "IndRNNConfig",
    "IndRNNParams",
    "LRUConfig",
    "LRUParams",
    "LSTMConfig",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "MGUConfig",
    "MGUParams",
    "Memory",
    "MinGRUConfig",
    "MinGRUParams",
    "MinLSTMConfig",
    "MinLSTMParams",
    "RGLRUConfig",
    "RGLRUParams",
    "RNNConfig",
    "RNNParams",
    "RegularizeConfig",
    "SLSTMConfig",
    "SLSTMParams",
    "SLSTMState",
    "affine_rule",
    "attend",
    "gru",
    "gru_step",
    "indrnn",
    "indrnn_step",
    "lru",
    "lru_step",
    "lstm",
    "lstm_step",
    "mgu",
    "mgu_step",
    "min_gru",
    "min_gru_step",
    "min_lstm",
    "min_lstm_step",
    "regularize",
    "rg_lru",
    "rg_lru_step",
    "rnn",
    "rnn_step",
    "slstm",
    "slstm_step",
    "variants",
]

# A new cell is a row here. What saves cells, shards their units and lists them reads this table.
FAMILIES = (
    Family(rnn, RNNConfig, {"`rnn` with an activation of your own": {"activation": alg.identity}}),
    Family(
        lstm,
        LSTMConfig,
        {
            "a projection": {"projection_size": 1},
            "peepholes": {"peephole": True},
            "coupled gates": {"coupled": True},
            "layer normalisation": {"layer_norm": True},
            "heads": {"num_heads": 2},
            "other activations": {"recurrent_activation": "hard_sigmoid"},
        },
    ),
    Family(
        gru,
        GRUConfig,
        {
            "`gru` with `reset_after=False`": {"reset_after": False},
            "`gru` with an activation of your own": {"activation": alg.identity},
        },
    ),
    Family(mgu, MGUConfig),
    Family(slstm, SLSTMConfig),
    Family(indrnn, IndRNNConfig),
    Family(min_gru, MinGRUConfig),
    Family(min_lstm, MinLSTMConfig),
    Family(rg_lru, RGLRUConfig, by_units=False),
    Family(lru, LRUConfig, by_units=False),
)


def variants() -> dict[str, Cell]:
    """A small cell of each family and form, by what the table of implementations calls it."""
    cells = {
        title: family.factory(2, **options)
        for family in FAMILIES
        for title, options in {f"`{family.factory.__name__}`": {}, **family.forms}.items()
    }
    return {**cells, "`regularize`": regularize(lstm(2), zoneout=0.5), "`attend`": attend(gru(2), 2)}
