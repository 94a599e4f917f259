"""Sentences of a small English whose verb agrees with a noun far before it, across nouns of either number.

"beside the doors , the key near the boxes that the boy moves" asks for "is": only the subject
counts, and the numbers of the other nouns are independent of it.
"""

import numpy as np

from experiments.memory_tasks.batch import Batch

STEMS = ("key", "cat", "dog", "boy", "girl", "king", "door", "chair", "car", "tree")
NOUNS = tuple(stem + ending for ending in ("", "s") for stem in STEMS)  # singular, then plural
PREPOSITIONS = ("near", "behind", "beside", "above")
PRESENT = ("see", "like", "move", "draw")
VERBS = tuple(stem + ending for ending in ("s", "") for stem in PRESENT)  # singular, then plural
PAST = ("saw", "liked", "moved", "drew")
WORDS = ("the", "that", ",", *NOUNS, *PREPOSITIONS, *VERBS, *PAST)
THE, THAT, COMMA = range(3)
FIRST_NOUN = 3
FIRST_PREPOSITION = FIRST_NOUN + len(NOUNS)
FIRST_VERB = FIRST_PREPOSITION + len(PREPOSITIONS)
FIRST_PAST = FIRST_VERB + len(VERBS)
NOTHING = -1


def draw_sentences(rng: np.random.Generator, modifiers: int, count: int) -> Batch:
    """Sentences up to their verb, whose number (0 singular, 1 plural) is the target.

    Half of them begin with a place, "near the keys ,". The subject has 0 to `modifiers` modifiers, as many
    as drawn with equal probability, each of them "near the keys", "that the keys move" (the verb
    agrees with its own noun) or "that moved the keys". Every noun is singular or plural with equal probability.
    `distance` counts the words after the subject, `attractors` the nouns of the other number there.
    """
    subject = rng.integers(0, 2, count)
    fronted = rng.integers(0, 2, (1, count))
    numbers = rng.integers(0, 2, (modifiers, count))
    the, comma = np.full((1, count), THE), np.full((1, count), COMMA)
    place = np.concatenate([_word(rng, FIRST_PREPOSITION, (1, count)), the, _noun(rng, fronted), comma])
    head = np.concatenate([the, _noun(rng, subject[None])])
    there = np.arange(modifiers)[:, None] < rng.integers(0, modifiers + 1, count)
    tail = np.where(there[:, None], _modifiers(rng, numbers), NOTHING).reshape(-1, count)
    place[:, rng.random(count) < 0.5] = NOTHING
    slots = np.concatenate([place, head, tail]).T
    order = np.argsort(slots == NOTHING, axis=1, kind="stable")  # words first, in their order
    words = np.take_along_axis(slots, order, 1)
    return Batch(
        xs=np.where(words == NOTHING, THE, words).astype(np.int32),
        targets=subject.astype(np.int32),
        lengths=(slots != NOTHING).sum(1, dtype=np.int32),
        distance=(tail != NOTHING).sum(0, dtype=np.int32),
        attractors=(there & (numbers != subject)).sum(0, dtype=np.int32),
    )


def _word(rng: np.random.Generator, first: int, shape: tuple[int, ...]) -> np.ndarray:
    """One of four words of a kind."""
    return first + rng.integers(0, 4, shape)


def _noun(rng: np.random.Generator, number: np.ndarray) -> np.ndarray:
    return FIRST_NOUN + rng.integers(0, len(STEMS), number.shape) + number * len(STEMS)


def _modifiers(rng: np.random.Generator, number: np.ndarray) -> np.ndarray:
    """`(N, 4, B)` words, around nouns of those numbers `(N, B)`."""
    noun, kind = _noun(rng, number), rng.integers(0, 3, number.shape)
    preposition, verb, past = (_word(rng, first, number.shape) for first in (FIRST_PREPOSITION, FIRST_VERB, FIRST_PAST))
    verb += number * len(PRESENT)
    words = [
        (preposition, THAT, THAT),
        (THE, THE, past),
        (noun, noun, THE),
        (NOTHING, verb, noun),
    ]
    return np.stack([np.choose(kind, slot) for slot in words], 1)


def nearest_noun(batch: Batch) -> np.ndarray:
    """The number of each sentence's last noun, `(B,)`: the best guess of a reader that remembers one noun only."""
    is_noun = (batch.xs >= FIRST_NOUN) & (batch.xs < FIRST_PREPOSITION)  # padding is no noun
    last = batch.xs.shape[1] - 1 - np.argmax(is_noun[:, ::-1], axis=1)
    return (batch.xs[np.arange(len(batch.xs)), last] - FIRST_NOUN) // len(STEMS)
