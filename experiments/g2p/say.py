"""The command `say`: pronunciations of words by the saved model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.command.messages import complain, shown
from experiments.command.options import at_most, positive, read_options
from experiments.datasets.cmudict import GRAPHEMES
from experiments.g2p.examples import MOST_LETTERS, decoded, encoded_words
from experiments.g2p.model import SYMBOLS, beams
from experiments.g2p.saved import load_model

COMMAND = "g2p say WORD [WORD ...]"


@dataclasses.dataclass(frozen=True)
class SayConfig:
    """Writes words as phonemes, without stress, with a trained model. The words come before the options."""

    model: Path = Path("results/g2p")
    """The folder that a training wrote."""
    beam_size: int = 5
    """Hypotheses that the search keeps."""
    best: int = 1
    """How many pronunciations to write for each word, with their probabilities if they are several."""


def say(arguments: Sequence[str]) -> int:
    """Writes to stdout, a pronunciation a line."""
    given = next((k for k, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    config = read_options(COMMAND, SayConfig, arguments[given:])
    words = [word.lower().replace("’", "'") for word in arguments[:given]]
    try:
        positive(config, "beam_size", "best")
        at_most(config, "beam_size", SYMBOLS**2, "more hypotheses than two symbols have")
        at_most(config, "best", config.beam_size, "the hypotheses that are kept")
        if not words:
            raise ValueError("expected a word, got nothing; such as: python -m experiments.g2p say jaxrnn")
        for word in words:
            if not word or set(word) - set(GRAPHEMES):
                raise ValueError(f"expected words of letters a to z and apostrophes, got {shown(word)}")
            if len(word) > MOST_LETTERS:
                raise ValueError(f"expected words of at most {MOST_LETTERS} letters, got {shown(word)}")
        model, params = load_model(config.model)
    except (ValueError, OSError) as error:
        return complain("g2p", error)
    search = jax.jit(beams, static_argnums=(0, 4, 5))
    tokens, log_probs = search(model, params, *encoded_words(words), config.beam_size, 0.0)
    for word, own, values in zip(words, np.asarray(tokens).tolist(), np.asarray(log_probs).tolist(), strict=True):
        for sequence, value in list(zip(own, values, strict=True))[: config.best]:
            odds = f"  {np.exp(value):.3f}" if config.best > 1 else ""
            print(f"{word}  {' '.join(decoded(sequence))}{odds}")
    return 0
