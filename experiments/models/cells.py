"""The cells that experiments compare, by name: how they are made, called and drawn."""

from collections.abc import Callable
from typing import NamedTuple

import jaxrnn
from experiments.command.messages import listed
from experiments.command.options import check_positive
from jaxrnn import initializers


class Contestant(NamedTuple):
    """A cell with its initial values."""

    label: str
    make: Callable[..., jaxrnn.Cell]  # of H, the number of steps to remember, and `num_heads` for a cell with heads
    colour: str  # Okabe and Ito's, for colour-blind readers
    dashes: tuple[int, ...] = ()  # () for a solid line
    marker: str = "o"


def _plain(make: Callable[..., jaxrnn.Cell], **options: object) -> Callable[..., jaxrnn.Cell]:
    return lambda hidden_size, _, **heads: make(hidden_size, **options, **heads)


def _chrono(make: Callable[..., jaxrnn.Cell]) -> Callable[..., jaxrnn.Cell]:
    return lambda hidden_size, steps, **heads: make(hidden_size, bias_init=initializers.chrono(max(3, steps)), **heads)


RNN, RELU, SIGMOID, LSTM, GRU = "#D55E00", "#E69F00", "#CC79A7", "#0072B2", "#009E73"
LINEAR, BLACK = "#56B4E9", "#000000"

CONTESTANTS = {
    "rnn": Contestant("tanh RNN", _plain(jaxrnn.rnn), RNN),
    "rnn-uniform": Contestant(
        "tanh RNN, uniform", _plain(jaxrnn.rnn, recurrent_init=initializers.torch_uniform()), RNN, (2, 2), "v"
    ),
    "rnn-sigmoid": Contestant("sigmoid RNN", _plain(jaxrnn.rnn, activation="sigmoid"), SIGMOID, (), "^"),
    "relu": Contestant("ReLU RNN", _plain(jaxrnn.rnn, activation="relu"), RELU, (2, 2), "s"),
    "irnn": Contestant(
        "IRNN", _plain(jaxrnn.rnn, activation="relu", recurrent_init=initializers.identity()), RELU, (), "D"
    ),
    "lstm": Contestant("LSTM", _plain(jaxrnn.lstm), LSTM),
    "lstm-b0": Contestant(
        "LSTM, forget bias 0", _plain(jaxrnn.lstm, bias_init=initializers.gate_bias()), LSTM, (2, 2), "v"
    ),
    "lstm-o1": Contestant(
        "LSTM, output bias 1", _plain(jaxrnn.lstm, bias_init=initializers.gate_bias(o=1.0)), LSTM, (1, 2), "^"
    ),
    "lstm-f1-o1": Contestant(
        "LSTM, both biases 1",
        _plain(jaxrnn.lstm, bias_init=initializers.gate_bias(f=1.0, o=1.0)),
        LSTM,
        (4, 1, 1, 1),
        "D",
    ),
    "lstm-chrono": Contestant("LSTM, chrono", _chrono(jaxrnn.lstm), LSTM, (6, 2), "s"),
    "gru": Contestant("GRU", _plain(jaxrnn.gru), GRU),
    "slstm": Contestant("sLSTM", _plain(jaxrnn.slstm), LSTM, (1, 2), "^"),
    "gru-chrono": Contestant("GRU, chrono", _chrono(jaxrnn.gru), GRU, (6, 2), "s"),
    "min_gru": Contestant("minGRU", _plain(jaxrnn.min_gru), LINEAR, (2, 2), "v"),
    "min_lstm": Contestant("minLSTM", _plain(jaxrnn.min_lstm), LINEAR, (), "^"),
    "rg_lru": Contestant("RG-LRU", _plain(jaxrnn.rg_lru), BLACK, (1, 2), "s"),
    "lru": Contestant("LRU", _plain(jaxrnn.lru), BLACK, (4, 1, 1, 1), "D"),
}
AFFINE = ("min_gru", "min_lstm", "rg_lru", "lru")  # affine in the state, so without recurrent weights
HEADED = ("rnn", "lstm", "gru", "slstm")  # whose recurrent weights may be block-diagonal


def check_heads(cell: str, hidden_size: int, num_heads: int) -> None:
    """Raises a `ValueError` for a value of --num-heads that the cell cannot have."""
    check_positive("--num-heads", num_heads)
    if num_heads > 1 and cell not in HEADED:
        raise ValueError(
            f"--num-heads expected 1 with {cell}, which has no heads, got {num_heads}; "
            f"cells with heads: {listed(HEADED)}"
        )
    if hidden_size % num_heads:
        raise ValueError(f"--num-heads expected a number that divides --hidden-size {hidden_size}, got {num_heads}")


def label_of(cell: str, num_heads: int = 1) -> str:
    """The name of a cell in tables and figures."""
    label = CONTESTANTS[cell].label
    return label if num_heads == 1 else f"{label}, {num_heads} heads"
