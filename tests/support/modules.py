"""The NNX modules of the tests, their inputs and their states."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn import Bidirectional, LSTMState, SLSTMState
from jaxrnn.modules import GRU, LRU, LSTM, RGLRU, RNN, SLSTM, MinGRU, MinLSTM
from tests.support.registry import B, H, I, T, bits, random_like

SEED = 0
MASK, RESETS = bits(4, (T, B), 0.6), bits(5, (T, B), 0.4)


def rngs(seed=SEED):
    return nnx.Rngs(seed)


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


XS = numbers(1, T, B, I)

# Modules that use every argument once, each with its functional network.
MODULES = {
    "rnn": (lambda: RNN(I, H, rngs=rngs()), lambda: jaxrnn.stack([jaxrnn.rnn(H)])),
    "rnn-relu-two-layers": (
        lambda: RNN(I, H, 2, "relu", False, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.rnn(H, activation="relu", use_bias=False)] * 2),
    ),
    "lstm-bidirectional-projected": (
        lambda: LSTM(I, H, 2, True, False, 0.0, True, 2, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.lstm(H, projection_size=2)] * 2, bidirectional=True),
    ),
    "lstm-variants": (
        lambda: LSTM(I, H, peephole=True, coupled=True, layer_norm=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.lstm(H, peephole=True, coupled=True, layer_norm=True)]),
    ),
    "gru-bidirectional": (
        lambda: GRU(I, H, bidirectional=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.gru(H)], bidirectional=True),
    ),
    "gru-variants": (
        lambda: GRU(I, H, bias=False, reset_after=False, layer_norm=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.gru(H, use_bias=False, reset_after=False, layer_norm=True)]),
    ),
    "min_gru": (
        lambda: MinGRU(I, H, 2, bias=False, bidirectional=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.min_gru(H, use_bias=False)] * 2, bidirectional=True),
    ),
    "min_lstm": (
        lambda: MinLSTM(I, H, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.min_lstm(H)]),
    ),
    "rg_lru": (
        lambda: RGLRU(I, H, num_blocks=2, bidirectional=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.rg_lru(H, num_blocks=2)], bidirectional=True),
    ),
    "slstm": (
        lambda: SLSTM(I, H, 2, num_heads=2, forget_gate="exponential", bidirectional=True, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.slstm(H, num_heads=2, forget_gate="exponential")] * 2, bidirectional=True),
    ),
    "lru": (
        lambda: LRU(I, H, output_size=2, r_min=0.5, r_max=0.9, max_phase=1.0, rngs=rngs()),
        lambda: jaxrnn.stack([jaxrnn.lru(H, output_size=2, r_min=0.5, r_max=0.9, max_phase=1.0)]),
    ),
}
KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


def randomised(module):
    """The module with random numbers for every parameter, scales and peepholes included."""
    module.load(jax.tree.map(lambda p: 0.5 * p, random_like(7, module.params, jnp.float32)))
    return module


def initial(module, *batch, seed=2):
    """Random initial states in PyTorch's shapes."""
    rows = module.num_layers * (1 + module.bidirectional)
    h = numbers(seed, rows, *batch, getattr(module, "proj_size", 0) or module.hidden_size)
    if isinstance(module, LRU):
        return (h + 1j * numbers(seed + 1, *h.shape)).astype(np.complex64)
    if isinstance(module, SLSTM):
        return SLSTMState(h, *(np.abs(numbers(seed + k, *h.shape)) for k in (1, 2, 3)))
    return (h, numbers(seed + 1, rows, *batch, module.hidden_size)) if isinstance(module, LSTM) else h


def by_layer(module, hx):
    """Initial states in PyTorch's shapes, split as the functional API expects them."""
    kind = SLSTMState if isinstance(module, SLSTM) else LSTMState
    one = lambda n: kind(*(part[n] for part in hx)) if isinstance(hx, tuple) else hx[n]  # noqa: E731
    if module.bidirectional:
        return tuple(Bidirectional(one(2 * k), one(2 * k + 1)) for k in range(module.num_layers))
    return tuple(one(k) for k in range(module.num_layers))


def flat(states):
    """Final states of the functional API, joined in PyTorch's shapes."""
    rows = [s for layer in states for s in (layer if isinstance(layer, Bidirectional) else [layer])]
    joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return tuple(joined) if isinstance(joined, LSTMState) else joined
