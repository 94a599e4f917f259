"""g2p-en: English words to phonemes, by a GRU that reads letters and a GRU that writes phonemes.

Its own engine is a loop in NumPy over one word at a time. That loop is written anew here, as the published file
implies it: PyTorch's GRU, a symbol for the end of the word, the decoder started by another one, and at most
20 phonemes, each the one with the largest logit. jaxrnn reads all words at once, with their lengths.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import jaxrnn
from experiments.datasets.batching import pad
from experiments.real_models.compare import Answer, Model, difference

Weights = Mapping[str, np.ndarray]

LONGEST = 20  # phonemes of a word
GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
BEGIN, END = 2, 3  # among the phonemes
SYMBOLS = """
<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 EH2
ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2
UW UW0 UW1 UW2 V W Y Z ZH
"""
PHONEMES = tuple(SYMBOLS.split())
PUBLISHED = {"activationist": "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"}  # on the page of the package, by its network
WORDS = (
    *PUBLISHED,
    *("tokenizer", "softmax", "backpropagation", "kubernetes", "podcaster", "cryptocurrency", "selfie", "blogosphere"),
    *("chatbot", "hashtag", "emoji", "unfriend", "biohacking", "vaporware", "phablet", "mansplain", "staycation"),
    *("crowdfund", "photobomb", "geocaching", "webinar", "freemium", "glamping", "infodemic", "doomscrolling"),
    *("upcycle", "listicle", "vlogger", "cyberpunk", "q", "don't", "antidisestablishmentarianism"),
)


class Parameters(NamedTuple):
    """What jaxrnn reads."""

    letters: jax.Array  # (G, I), embeddings
    phonemes: jax.Array  # (P, I), embeddings
    encoder: Any
    decoder: Any
    read_out: jaxrnn.ReadoutParams  # (H, P) and (P,)


def converted(weights: Weights) -> Parameters:
    """The parameters in the published arrays, whose GRUs are PyTorch's.

    Raises:
        ValueError, TypeError: naming the array that is missing or of a wrong shape.
    """
    missing = {"enc_emb", "dec_emb", "fc_w", "fc_b"} - set(weights)
    if missing:
        raise ValueError(f"g2p-en: expected the array {min(missing)}, got {', '.join(sorted(weights)) or 'none'}")

    def cell(part: str) -> Any:
        names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
        given = {theirs: weights[f"{part}_{name}"] for theirs, name in names.items() if f"{part}_{name}" in weights}
        return jaxrnn.interop.from_torch(given, kind="gru")

    return Parameters(
        jnp.asarray(weights["enc_emb"]),
        jnp.asarray(weights["dec_emb"]),
        cell("enc"),
        cell("dec"),
        jaxrnn.ReadoutParams(jnp.asarray(weights["fc_w"]).T, jnp.asarray(weights["fc_b"])),
    )


def spelled(words: Sequence[str]) -> list[np.ndarray]:
    """Words as places in the alphabet, each with the symbol of the end."""
    place = {grapheme: k for k, grapheme in enumerate(GRAPHEMES)}
    return [np.array([*(place.get(letter, 1) for letter in word), 2], np.int32) for word in words]


def answer_of(logits: Sequence[np.ndarray]) -> Answer:
    """The phonemes of every word and all probabilities, from its logits `(n, P)` up to the first end."""
    said = [" ".join(PHONEMES[k] for k in each.argmax(-1) if k != END) for each in logits]
    return Answer(said, np.concatenate([special.softmax(each, -1).ravel() for each in logits]))


# ---- jaxrnn


@jax.jit
def logits_of(params: Parameters, letters: jax.Array, lengths: jax.Array) -> jax.Array:
    """Greedy decoding of all words at once: `(LONGEST, B, P)` from letters `(T, B)`."""
    cell, read_out = jaxrnn.gru(params.read_out.v.shape[0]), jaxrnn.readout(len(PHONEMES))
    meaning, _ = jaxrnn.unroll(cell, params.encoder, params.letters[letters], lengths=lengths)

    def following(h: jax.Array, key: jax.Array | None) -> jax.Array:
        return params.phonemes[read_out.logits(params.read_out, h).argmax(-1)]

    first = jnp.broadcast_to(params.phonemes[BEGIN], (letters.shape[1], params.phonemes.shape[1]))
    _, hs = jaxrnn.generate(cell, params.decoder, meaning, first, following, LONGEST)
    return read_out.logits(params.read_out, hs)


def logits_by_jaxrnn(params: Parameters, words: Sequence[str]) -> list[np.ndarray]:
    """Of every word, up to the first end, `(n, P)`."""
    sequences = spelled(words)
    letters, lengths = pad(sequences, max(map(len, sequences)))
    logits = np.asarray(logits_of(params, letters.T, lengths))
    return [cut(logits[:, k]) for k in range(len(words))]


def cut(logits: np.ndarray) -> np.ndarray:
    """The logits of one word up to the first end, `(n, P)`."""
    ends = np.flatnonzero(logits.argmax(-1) == END)
    return logits[: ends[0] + 1] if len(ends) else logits


# ---- the engine: NumPy, in float32, one word at a time


def logits_by_numpy(weights: Weights, words: Sequence[str]) -> list[np.ndarray]:
    """Of every word, up to the first end, `(n, P)`, in the dtype of the weights."""
    return [_logits(weights, letters) for letters in spelled(words)]


def _logits(weights: Weights, letters: np.ndarray) -> np.ndarray:
    h = np.zeros(weights["enc_w_hh"].shape[1], weights["enc_w_hh"].dtype)
    for letter in letters:
        h = _step(weights, "enc", weights["enc_emb"][letter], h)
    logits, phoneme = [], BEGIN
    while len(logits) < LONGEST and phoneme != END:
        h = _step(weights, "dec", weights["dec_emb"][phoneme], h)
        logits.append(weights["fc_w"] @ h + weights["fc_b"])
        phoneme = int(logits[-1].argmax())
    return np.array(logits)


def _step(weights: Weights, part: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """PyTorch's GRU, whose gates are reset, update, new."""
    w_ih, w_hh, b_ih, b_hh = (weights[f"{part}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
    r_x, z_x, n_x = np.split(w_ih @ x + b_ih, 3)
    r_h, z_h, n_h = np.split(w_hh @ h + b_hh, 3)
    r, z = 1 / (1 + np.exp(-(r_x + r_h))), 1 / (1 + np.exp(-(z_x + z_h)))
    return (1 - z) * np.tanh(n_x + r * n_h) + z * h


def rounding(weights: Weights, words: Sequence[str]) -> dict[str, float]:
    """How far the logits of the two are apart, and each from the same loop in float64.

    The largest logits are about 30, where a float32 has steps of 2e-6. After a phoneme that differs, words differ in
    length, and the distance is infinite.
    """
    exact = logits_by_numpy({name: array.astype(np.float64) for name, array in weights.items()}, words)
    engine, ours = logits_by_numpy(weights, words), logits_by_jaxrnn(converted(weights), words)

    def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return max(difference(x, y) for x, y in zip(a, b, strict=True))

    return {
        "logits": apart(engine, ours),
        "engine_from_float64": apart(engine, exact),
        "ours_from_float64": apart(ours, exact),
        "largest": max(float(np.abs(each).max()) for each in exact),
    }


def model_of(weights: Weights, words: Sequence[str] = WORDS) -> Model:
    """Both forms, with words to read."""
    params = converted(weights)
    return Model(
        name="g2p-en",
        engine="NumPy",
        cells="GRU encoder, GRU decoder",
        decides="words",
        values="probabilities of phonemes",
        timed="word",
        units=len(words),
        by_engine=lambda: answer_of(logits_by_numpy(weights, words)),
        by_jaxrnn=lambda: answer_of(logits_by_jaxrnn(params, words)),
    )
