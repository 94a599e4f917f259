"""Audio like speech, drawn from a seed: vowels and fricatives with pauses between the phrases, and background noise."""

import numpy as np
from scipy import signal
from scipy.signal import windows

RATE = 16_000  # samples a second
VOWELS = np.array(  # formants of men in Hz: a, e, i, o, u; the first three by Peterson & Barney (1952)
    [
        (730, 1090, 2440, 3500),
        (530, 1840, 2480, 3500),
        (270, 2290, 3010, 3600),
        (570, 840, 2410, 3400),
        (300, 870, 2240, 3400),
    ]
)
WIDTHS = (60, 90, 120, 180)  # of the formants, in Hz


def speech(seconds: int, seed: int = 0) -> np.ndarray:
    """Phrases of syllables with pauses between them, `(seconds * RATE,)`, float32, between -0.5 and 0.5."""
    rng = np.random.default_rng(seed)
    parts, total = [np.zeros(RATE // 2)], RATE // 2
    while total < seconds * RATE:
        phrase = [_syllable(rng) for _ in range(rng.integers(4, 9))]
        parts += [*phrase, np.zeros(int(rng.uniform(0.5, 1.2) * RATE))]
        total += sum(map(len, phrase)) + len(parts[-1])
    clean = np.concatenate(parts)[: seconds * RATE]
    return (0.5 * clean / max(np.abs(clean).max(), 1e-6)).astype(np.float32)


def with_noise(samples: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """The samples with white noise of that standard deviation."""
    drawn = np.random.default_rng([seed, 1]).standard_normal(len(samples))
    return (samples + deviation * drawn).astype(np.float32)


def _syllable(rng: np.random.Generator) -> np.ndarray:
    """A fricative, then a vowel that glides to another one."""
    length = int(rng.uniform(0.14, 0.26) * RATE)
    pitch = rng.uniform(100, 150) * np.linspace(1.08, 0.92, length)
    phase = np.cumsum(pitch) / RATE
    pulses = np.diff(np.floor(phase), prepend=0.0) + 0.02 * rng.standard_normal(length)
    source = signal.lfilter([1.0], [1.0, -1.6, 0.64], pulses)  # falls by 12 dB an octave, as the glottis does
    begin, end = VOWELS[rng.integers(len(VOWELS), size=2)]
    vowel = np.zeros(length)
    pieces, states = np.array_split(np.arange(length), 8), [np.zeros(2) for _ in WIDTHS]
    for number, piece in enumerate(pieces):
        formants = begin + (end - begin) * number / len(pieces)
        sound = source[piece]
        for k, (frequency, width) in enumerate(zip(formants, WIDTHS, strict=True)):
            radius = np.exp(-np.pi * width / RATE)
            poles = [1.0, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2]
            sound, states[k] = signal.lfilter([sum(poles)], poles, sound, zi=states[k])
        vowel[piece] = sound
    vowel = np.diff(vowel, prepend=0.0) * windows.tukey(length, 0.4)
    vowel /= max(np.abs(vowel).max(), 1e-6)
    hiss = signal.lfilter([1.0, -0.9], [1.0], rng.standard_normal(int(0.06 * RATE)))
    hiss *= 0.08 * windows.hann(len(hiss)) / np.abs(hiss).max()
    return np.concatenate([hiss, vowel])
