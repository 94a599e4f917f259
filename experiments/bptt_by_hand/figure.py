"""How far δh and δC reach: along the highway Π f, and along the other paths."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from experiments.command.figures import COLOURS, GREY, STYLE, save_figure
from jaxrnn import analysis

HIDDEN, INPUTS = 32, 8
BIASES: dict[str, Any] = {
    "forget bias 1": jaxrnn.initializers.gate_bias(f=1.0),
    "chrono biases": None,  # of as many steps as there are
}


class Paths(NamedTuple):
    """Norms at every step of the gradient of the last output, `(T,)`; those of C are of δC_t."""

    h: np.ndarray
    memory: np.ndarray
    highway: np.ndarray  # (Π f_k over k > t) ⊙ δC_T
    others: np.ndarray  # δC_t less the highway
    simple: np.ndarray  # δh of a simple network on the same inputs


def paths(bias: str, steps: int, seed: int) -> Paths:
    """Measures one LSTM at its initial values, in float64."""
    with jax.enable_x64(True):
        init = BIASES[bias] or jaxrnn.initializers.chrono(max(3, steps))
        cell, simple = jaxrnn.lstm(HIDDEN, bias_init=init), jaxrnn.rnn(HIDDEN)
        return jax.device_get(jax.jit(functools.partial(_paths, cell, simple, steps))(jax.random.key(seed)))


def _paths(cell: jaxrnn.Cell, simple: jaxrnn.Cell, steps: int, key: jax.Array) -> Paths:
    key_lstm, key_rnn, key_x, key_v = jax.random.split(key, 4)
    xs, v = jax.random.normal(key_x, (steps, INPUTS)), jax.random.normal(key_v, (HIDDEN,))
    params = cell.init(key_lstm, INPUTS)
    read = lambda final, ys: jnp.dot(ys[-1], v)  # noqa: E731
    found = analysis.backward_pass(cell, params, xs, read)
    of_rnn = analysis.backward_pass(simple, simple.init(key_rnn, INPUTS), xs, read)
    forget = analysis.gate_values(cell, params, xs)["f"]
    ahead = jnp.concatenate([forget[1:], jnp.ones_like(forget[:1])])
    memory = found.cell_state
    assert memory is not None
    highway = jnp.cumprod(ahead[::-1], 0)[::-1] * jnp.broadcast_to(memory[-1], ahead.shape)  # Π f_k over k > t
    norm = lambda values: jnp.linalg.norm(values, axis=-1)  # noqa: E731
    return Paths(*map(norm, (found.states.h, memory, highway, memory - highway, of_rnn.states)))


def draw(stem: Path, found: dict[str, Paths]) -> None:
    """A panel for each choice of biases."""
    lines = {
        "memory": ("δC", COLOURS[0], "-"),
        "h": ("δh", COLOURS[1], "-"),
        "highway": ("δC along the highway Π f", COLOURS[2], (0, (6, 2))),
        "others": ("δC along the other paths", COLOURS[3], (0, (2, 2))),
        "simple": ("δh of a tanh network", GREY, (0, (1, 1))),
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 4.6 * len(found), 4.2), layout="constrained")
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axis, (title, one) in zip(panels, found.items(), strict=True):
            steps = len(one.h)
            for field, (label, colour, dashes) in lines.items():
                values = getattr(one, field)
                back = np.arange(steps)[::-1]
                shown = np.where(values > 0, values, np.nan)
                axis.plot(back, shown, color=colour, linestyle=dashes, linewidth=1.8, label=label)
            axis.set_yscale("log")
            axis.set_xlim(0, max(1, steps - 1))
            axis.set_xlabel("steps back from the loss, T - t")
            axis.set_title(f"LSTM, {title}")
        panels[0].set_ylabel("norm at initialisation")
        panels[-1].legend(frameon=False, loc="lower left")
        save_figure(figure, stem)
