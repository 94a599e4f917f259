"""jaxrnn: recurrent networks for JAX, as pure functions."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from jaxrnn import _records as _records
from jaxrnn import initializers
from jaxrnn._types import Affine, Cell, Gates, Rule, Tape
from jaxrnn.attention import attention_weights, with_memory
from jaxrnn.beams import Beams, beam_search
from jaxrnn.cells import (
    Activation,
    AttendParams,
    AttendState,
    GRUNorm,
    GRUParams,
    IndRNNParams,
    LRUParams,
    LSTMNorm,
    LSTMParams,
    LSTMState,
    MGUParams,
    MinGRUParams,
    MinLSTMParams,
    RGLRUParams,
    RNNParams,
    SLSTMParams,
    SLSTMState,
    affine_rule,
    attend,
    dot,
    dot_transposed,
    gru,
    gru_step,
    indrnn,
    indrnn_step,
    lru,
    lru_step,
    lstm,
    lstm_step,
    mgu,
    mgu_step,
    min_gru,
    min_gru_step,
    min_lstm,
    min_lstm_step,
    prepare_transposed,
    regularize,
    rg_lru,
    rg_lru_step,
    rnn,
    rnn_step,
    slstm,
    slstm_step,
    weight_columns,
    weight_gradient,
)
from jaxrnn.counting import count_params
from jaxrnn.episodes import reset_state, truncate
from jaxrnn.generation import Generated, generate, last_output, next_token
from jaxrnn.heads import merge_heads, split_heads
from jaxrnn.layers import Bidirectional
from jaxrnn.network import Network, stack
from jaxrnn.parallel import data_parallel, model_parallel, param_shardings, pipeline
from jaxrnn.readouts import Readout, ReadoutParams, readout, readout_loss
from jaxrnn.saving import load, save
from jaxrnn.sequence.implementations.newton import Newton
from jaxrnn.sequence.unroll import unroll

if TYPE_CHECKING:
    from jaxrnn import analysis, interop, modules, testing

__version__ = "0.1.0"

_ON_FIRST_USE = ("analysis", "interop", "modules", "testing")

__all__ = [
    "Activation",
    "Affine",
    "AttendParams",
    "AttendState",
    "Beams",
    "Bidirectional",
    "Cell",
    "GRUNorm",
    "GRUParams",
    "Gates",
    "Generated",
    "IndRNNParams",
    "LRUParams",
    "LSTMNorm",
    "LSTMParams",
    "LSTMState",
    "MGUParams",
    "MinGRUParams",
    "MinLSTMParams",
    "Network",
    "Newton",
    "RGLRUParams",
    "RNNParams",
    "Readout",
    "ReadoutParams",
    "Rule",
    "SLSTMParams",
    "SLSTMState",
    "Tape",
    "affine_rule",
    "analysis",
    "attend",
    "attention_weights",
    "beam_search",
    "count_params",
    "data_parallel",
    "dot",
    "dot_transposed",
    "generate",
    "gru",
    "gru_step",
    "indrnn",
    "indrnn_step",
    "initializers",
    "interop",
    "last_output",
    "load",
    "lru",
    "lru_step",
    "lstm",
    "lstm_step",
    "merge_heads",
    "mgu",
    "mgu_step",
    "min_gru",
    "min_gru_step",
    "min_lstm",
    "min_lstm_step",
    "model_parallel",
    "modules",
    "next_token",
    "param_shardings",
    "pipeline",
    "prepare_transposed",
    "readout",
    "readout_loss",
    "regularize",
    "reset_state",
    "rg_lru",
    "rg_lru_step",
    "rnn",
    "rnn_step",
    "save",
    "slstm",
    "slstm_step",
    "split_heads",
    "stack",
    "testing",
    "truncate",
    "unroll",
    "weight_columns",
    "weight_gradient",
    "with_memory",
]


def __getattr__(name: str) -> ModuleType:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"jaxrnn.{name}")
    raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
