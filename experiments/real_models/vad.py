"""silero-vad: whether somebody speaks, one frame of 32 ms at a time, by an LSTM whose state is carried.

A frame is read with the last 64 samples of the frame before. A convolution computes a short-time Fourier transform,
four more with ReLU make one vector of its magnitudes, the LSTM takes one step, and an affine read-out with a
sigmoid gives the probability of speech. ONNX Runtime runs the published model.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.real_models.audio import RATE
from experiments.real_models.compare import Answer, Model
from experiments.real_models.runtime import constants_of, session_of

FRAME, CONTEXT = 512, 64  # samples
HOP, REFLECTED = 128, 64  # of the transform, and how many samples are mirrored at the end
THRESHOLD = 0.5
BRANCH, PREFIX = "If_0.then_branch/", "If_0_then_branch__Inline_0__"  # taken at 16 kHz; the other one is for 8 kHz


class Convolution(NamedTuple):
    w: jax.Array  # (channels, channels before, width)
    b: jax.Array  # (channels,)


class Parameters(NamedTuple):
    """What jaxrnn reads."""

    transform: jax.Array  # (2 bins, 1, window): cosines, then sines
    convolutions: tuple[Convolution, ...]
    lstm: Any
    w: jax.Array  # (H,), of the read-out
    b: jax.Array  # ()


class Carry(NamedTuple):
    """What one frame hands to the next."""

    context: jax.Array  # (CONTEXT,), the last samples
    state: Any


STRIDES = (1, 2, 2, 1)  # of the convolutions


def lstm_of(content: bytes) -> tuple[jaxrnn.Network, Any]:
    """The LSTM in the branch of 16 kHz, where two operators have the same weights: for a state that is given, or not.

    Raises:
        ValueError: if there is none.
    """
    import onnx

    model = onnx.load_model_from_string(content)
    paths = [found.path for found in jaxrnn.interop.onnx_recurrent(model)]
    chosen = [path for path in paths if path.startswith(BRANCH)]
    if not chosen:
        raise ValueError(f"silero-vad: expected an operator in {BRANCH}, got {', '.join(paths) or 'none'}")
    return jaxrnn.interop.from_onnx(model, nodes=chosen[0])


def converted(weights: Mapping[str, np.ndarray], lstm: Any) -> Parameters:
    """The parameters in the published arrays, around those of the LSTM.

    Raises:
        ValueError: naming the array that is missing.
    """
    names = ["stft.forward_basis_buffer", "decoder.decoder.2.weight", "decoder.decoder.2.bias"]
    names += [f"encoder.{k}.reparam_conv.{part}" for k in range(len(STRIDES)) for part in ("weight", "bias")]
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"silero-vad: expected the array {missing[0]}, got {', '.join(sorted(weights)) or 'none'}")
    return Parameters(
        jnp.asarray(weights["stft.forward_basis_buffer"]),
        tuple(
            Convolution(*(jnp.asarray(weights[f"encoder.{k}.reparam_conv.{part}"]) for part in ("weight", "bias")))
            for k in range(len(STRIDES))
        ),
        lstm,
        jnp.asarray(weights["decoder.decoder.2.weight"])[0, :, 0],
        jnp.asarray(weights["decoder.decoder.2.bias"])[0],
    )


def convolved(xs: jax.Array, w: jax.Array, stride: int, padding: int) -> jax.Array:
    """`(channels, T')` from `(channels before, T)`, as one product: XLA's convolution takes longer on a few steps."""
    padded = jnp.pad(xs, ((0, 0), (padding, padding)))
    width = w.shape[-1]
    places = np.arange(0, padded.shape[1] - width + 1, stride) + np.arange(width)[:, None]  # (width, T')
    return jnp.tensordot(w, padded[:, places], 2)


def step(network: jaxrnn.Network, params: Parameters, carry: Carry, frame: jax.Array) -> tuple[Carry, jax.Array]:
    """Reads one frame `(FRAME,)`; returns what the next one needs, and the probability."""
    samples = jnp.concatenate([carry.context, frame])
    padded = jnp.pad(samples, (0, REFLECTED), mode="reflect")
    real, imaginary = jnp.split(convolved(padded[None], params.transform, HOP, 0), 2)
    features = jnp.sqrt(real**2 + imaginary**2)
    for convolution, stride in zip(params.convolutions, STRIDES, strict=True):
        features = jax.nn.relu(convolved(features, convolution.w, stride, 1) + convolution.b[:, None])
    (vector,) = features.T  # one time step is left
    state, h = network.step(params.lstm, carry.state, vector)
    return Carry(samples[-CONTEXT:], state), jax.nn.sigmoid(jax.nn.relu(h) @ params.w + params.b)


def compiled(network: jaxrnn.Network) -> Callable[..., tuple[Carry, jax.Array]]:
    """The step of a network, which reuses the memory of what it is handed.

    The network is bound: as a static argument it would be hashed in every call, which takes as long as the step.
    """
    return jax.jit(functools.partial(step, network), donate_argnums=1)


def begin(network: jaxrnn.Network) -> Carry:
    """Silence."""
    return Carry(jnp.zeros(CONTEXT), network.initial_state())


def framed(samples: np.ndarray) -> np.ndarray:
    """All whole frames, `(frames, FRAME)`."""
    return samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)


def answer_of(probabilities: list[float]) -> Answer:
    values = np.array(probabilities, np.float32)
    return Answer((values > THRESHOLD).tolist(), values)


def by_jaxrnn(
    next_of: Callable[..., tuple[Carry, jax.Array]], carry: Carry, params: Parameters, frames: np.ndarray
) -> Answer:
    """One frame after the other: each probability is waited for, as in a conversation."""
    found = []
    for frame in frames:
        carry, probability = next_of(params, carry, frame)
        found.append(float(probability))
    return answer_of(found)


def by_onnx_runtime(session: Any, frames: np.ndarray) -> Answer:
    """The same by the published model, which takes and returns its state, and is given the context too."""
    context, state, found = np.zeros((1, CONTEXT), np.float32), np.zeros((2, 1, 128), np.float32), []
    rate = np.array(RATE)
    for frame in frames:
        samples = np.concatenate([context, frame[None]], 1)
        probability, state = session.run(None, {"input": samples, "state": state, "sr": rate})
        found.append(float(probability[0, 0]))
        context = samples[:, -CONTEXT:]
    return answer_of(found)


def stretches(decisions: Sequence[bool]) -> list[tuple[float, float]]:
    """Begin and end of each stretch of speech, in seconds.

    Example:
        >>> stretches([False] * 125 + [True] * 250 + [False])
        [(4.0, 12.0)]
    """
    steps = np.flatnonzero(np.diff([False, *decisions, False])) * FRAME / RATE
    return [(a, b) for a, b in steps.reshape(-1, 2).tolist()]


def model_of(content: bytes, samples: np.ndarray) -> Model:
    """Both forms, with audio to hear."""
    network, lstm = lstm_of(content)
    params = converted(constants_of(content, PREFIX), lstm)
    session, frames, next_of = session_of(content), framed(samples), compiled(network)
    return Model(
        name="silero-vad",
        engine="ONNX Runtime",
        cells="convolutions, LSTM",
        decides="frames",
        values="probabilities of speech",
        timed="frame of 32 ms",
        units=len(frames),
        by_engine=lambda: by_onnx_runtime(session, frames),
        by_jaxrnn=lambda: by_jaxrnn(next_of, begin(network), params, frames),
    )
