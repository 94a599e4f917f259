"""NSNet2: how much of each frequency of noisy speech to keep, by two GRUs between affine layers.

The model reads the logarithm of the power spectrum, 161 bins of a frame of 20 ms every 10 ms, and returns a gain
between 0 and 1 for each. ONNX Runtime runs the published model.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.real_models.compare import Answer, Model
from experiments.real_models.runtime import constants_of, session_of

WINDOW, HOP = 320, 160  # samples
LEAST = 1e-12  # power
KEPT = 0.5  # the gain above which a frequency is kept rather than suppressed

# Products and biases of the affine layers, as the file calls them: one before the GRUs, three after them
AFFINE = (("172", "fc_in.0.bias"), ("215", "fc_out.0.bias"), ("216", "fc_out.2.bias"), ("217", "fc_out.4.bias"))


class Parameters(NamedTuple):
    """What jaxrnn reads."""

    before: jaxrnn.ReadoutParams
    grus: Any
    after: tuple[jaxrnn.ReadoutParams, ...]


def converted(content: bytes) -> tuple[jaxrnn.Network, Parameters]:
    """The GRUs as a network, and all parameters.

    Raises:
        ValueError, TypeError: naming the tensor that is missing or of a wrong shape.
    """
    import onnx

    network, grus = jaxrnn.interop.from_onnx(onnx.load_model_from_string(content))
    weights = constants_of(content)
    missing = [name for names in AFFINE for name in names if name not in weights]
    if missing:
        raise ValueError(f"nsnet2: expected the tensor {missing[0]}, got {', '.join(sorted(weights)) or 'none'}")
    before, *after = (jaxrnn.ReadoutParams(*(jnp.asarray(weights[name]) for name in names)) for names in AFFINE)
    return network, Parameters(before, grus, tuple(after))


@functools.partial(jax.jit, static_argnums=0)
def gains_of(network: jaxrnn.Network, params: Parameters, features: jax.Array) -> jax.Array:
    """`(T, bins)` from `(T, bins)`."""
    _, ys = network.unroll(params.grus, jax.nn.relu(affine(params.before, features)))
    for layer in params.after[:-1]:
        ys = jax.nn.relu(affine(layer, ys))
    return jax.nn.sigmoid(affine(params.after[-1], ys))


def affine(params: jaxrnn.ReadoutParams, xs: jax.Array) -> jax.Array:
    return jaxrnn.readout(params.v.shape[1]).logits(params, xs)


def answer_of(gains: np.ndarray) -> Answer:
    """Whether any frequency of a frame is kept, and all gains."""
    return Answer((gains.max(-1) > KEPT).tolist(), gains)


# ---- spectra


def window() -> np.ndarray:
    return np.sqrt(np.hanning(WINDOW))


def spectra(samples: np.ndarray) -> np.ndarray:
    """The Fourier transform of every whole frame, `(T, WINDOW // 2 + 1)`."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    return np.fft.rfft(window() * frames)


def features_of(spectrum: np.ndarray) -> np.ndarray:
    """What the model reads."""
    return np.log10(np.maximum(np.abs(spectrum) ** 2, LEAST)).astype(np.float32)


def audible(spectrum: np.ndarray) -> np.ndarray:
    """Samples of the frames, which overlap."""
    frames = window() * np.fft.irfft(spectrum, WINDOW)
    found = np.zeros((len(frames) - 1) * HOP + WINDOW)
    for number, frame in enumerate(frames):
        found[number * HOP : number * HOP + WINDOW] += frame
    return found


def noise_ratio(samples: np.ndarray, clean: np.ndarray) -> float:
    """The power of clean audio over that of what differs from it, in dB."""
    size = min(len(samples), len(clean))
    error = samples[:size] - clean[:size]
    return float(10 * np.log10(np.sum(clean[:size] ** 2) / np.sum(error**2)))


def improvement(gains: np.ndarray, clean: np.ndarray, noisy: np.ndarray) -> tuple[float, float]:
    """The ratio of signal to noise in dB, of noisy audio and of what the gains leave of it."""
    spectrum = spectra(noisy)
    return noise_ratio(audible(spectrum), clean), noise_ratio(audible(gains * spectrum), clean)


def model_of(content: bytes, noisy: np.ndarray) -> Model:
    """Both forms, with audio to clean."""
    (network, params), session, features = converted(content), session_of(content), features_of(spectra(noisy))
    (name,) = (given.name for given in session.get_inputs())

    def by_engine() -> Answer:
        return answer_of(session.run(None, {name: features[None]})[0][0])

    return Model(
        name="nsnet2",
        engine="ONNX Runtime",
        cells="two GRUs, affine layers",
        decides="frames",
        values="gains",
        timed="frame of 10 ms",
        units=len(features),
        by_engine=by_engine,
        by_jaxrnn=lambda: answer_of(np.asarray(gains_of(network, params, features))),
    )
