"""Problems whose answer depends on distant steps: how sequences are drawn, and when a problem is solved.

A batch is drawn with a random generator, for a length and a number of sequences. Each problem defines what its
length counts.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.memory_tasks.agreement import WORDS, draw_sentences, nearest_noun
from experiments.memory_tasks.batch import Batch
from experiments.memory_tasks.reber import SHORTEST, SYMBOLS, draw_reber
from experiments.memory_tasks.sequences import ALPHABET, COPIED, GO, Y, draw_adding, draw_copy, draw_order
from experiments.memory_tasks.tracking import GROUPS, KINDS, SELECTED, WRITE, draw_parity, draw_selective, draw_words


class Problem(NamedTuple):
    """What is drawn, learned and scored; the read-out's answers are `(B, O)`, or `(B, T, O)` if every step answers."""

    label: str
    draw: Callable[[np.random.Generator, int, int], Batch]  # of a generator, the length, and how many
    inputs: int  # I: numbers a step, or the symbols there are
    outputs: int  # O
    every_step: bool  # whether every step answers, or the last alone
    loss: Callable[[jax.Array, Batch], jax.Array]  # of answers: what is minimised
    errors: Callable[
        [jax.Array, Batch], jax.Array
    ]  # of answers: (B,); their mean decides whether the problem is solved
    error: str  # the name of that mean
    solved_at: float  # the largest mean that counts as solved
    chance: Callable[[int], float]  # the loss of the best answer that remembers nothing, of the length
    steps: Callable[[int], int]  # T, of the length
    length: str  # what the length counts
    lengths: tuple[int, ...]  # by default
    shortest: int = 1  # length that can be drawn
    hidden_size: int = 32  # by default
    late: Callable[[jax.Array, Batch], jax.Array] | None = (
        None  # of answers: (B,), whether the answer after the distance is wrong
    )
    guess: Callable[[Batch], np.ndarray] | None = None  # (B,): whether a guess without memory is right there
    beyond: tuple[
        float, ...
    ] = ()  # what the length is multiplied by for the sequences that a trained network is tested on


def _squared_errors(answers: jax.Array, batch: Batch) -> jax.Array:
    return (answers[:, 0] - batch.targets) ** 2


def _mean_squared_error(answers: jax.Array, batch: Batch) -> jax.Array:
    return _squared_errors(answers, batch).mean()


def _cross_entropies(answers: jax.Array, batch: Batch) -> jax.Array:
    return jaxrnn.readout_loss(answers, batch.targets)


def _cross_entropy(answers: jax.Array, batch: Batch) -> jax.Array:
    return _cross_entropies(answers, batch).mean()


def _wrong_class(answers: jax.Array, batch: Batch) -> jax.Array:
    return (answers.argmax(-1) != batch.targets).astype(jnp.float32)


def _wrong_copies(answers: jax.Array, batch: Batch) -> jax.Array:
    """The share of the ten symbols that are wrong, of each sequence."""
    return _wrong_class(answers, batch)[:, -COPIED:].mean(1)


def _wrong_selected(answers: jax.Array, batch: Batch) -> jax.Array:
    """The share of the four symbols that are wrong, of each sequence."""
    return _wrong_class(answers, batch)[:, -SELECTED:].mean(1)


def _selected_loss(answers: jax.Array, batch: Batch) -> jax.Array:
    """Of the steps at which symbols are written."""
    return _cross_entropies(answers, batch)[:, -SELECTED:].mean()


def _wrong_anywhere(answers: jax.Array, batch: Batch) -> jax.Array:
    return _wrong_class(answers, batch).max(1)


def _wrong_last(answers: jax.Array, batch: Batch) -> jax.Array:
    return _wrong_class(answers, batch)[:, -1]


def _has_next(batch: Batch) -> jax.Array:
    """The steps that are followed by another symbol of the string, `(B, T)`."""
    return _steps(batch) < batch.lengths[:, None] - 1


def _steps(batch: Batch) -> jax.Array:
    """The numbers of the steps, `(1, T)`."""
    return jnp.arange(batch.xs.shape[1], dtype=jnp.int32)[None]


def _next_symbol_loss(answers: jax.Array, batch: Batch) -> jax.Array:
    counted = _has_next(batch).astype(jnp.float32)
    return (_cross_entropies(answers, batch) * counted).sum() / counted.sum()


def _illegal_steps(answers: jax.Array, batch: Batch) -> jax.Array:
    """The steps at which an illegal symbol is not below every legal one, `(B, T)`."""
    least_legal = jnp.where(batch.legal, answers, jnp.inf).min(-1)
    most_illegal = jnp.where(batch.legal, -jnp.inf, answers).max(-1)
    return ~(least_legal > most_illegal) & _has_next(batch)


def _wrong_strings(answers: jax.Array, batch: Batch) -> jax.Array:
    return _illegal_steps(answers, batch).any(1).astype(jnp.float32)


def _wrong_last_but_one(answers: jax.Array, batch: Batch) -> jax.Array:
    """Whether the repetition of the second symbol is predicted wrongly, `(B,)`."""
    before = batch.lengths[:, None] - 3
    return (_illegal_steps(answers, batch) & (_steps(batch) == before)).any(1).astype(jnp.float32)


def _tracking(
    label: str, draw: Callable[[np.random.Generator, int, int], Batch], inputs: int, outputs: int, **options: Any
) -> Problem:
    """A problem whose state is asked for at every step."""
    return Problem(
        label=label,
        draw=draw,
        inputs=inputs,
        outputs=outputs,
        every_step=True,
        loss=_cross_entropy,
        errors=_wrong_anywhere,
        error="share of sequences wrong",
        solved_at=0.0,
        chance=lambda _: math.log(outputs),
        steps=lambda length: length,
        length="steps",
        lengths=(40,),
        late=_wrong_last,
        beyond=BEYOND,
        **options,
    )


BEYOND = (1, 2.5, 5, 10)
PROBLEMS = {
    "adding": Problem(
        label="Adding",
        draw=draw_adding,
        inputs=2,
        outputs=1,
        every_step=False,
        loss=_mean_squared_error,
        errors=_squared_errors,
        error="mean squared error",
        solved_at=1 / 600,  # a hundredth of the variance
        chance=lambda _: 1 / 6,
        steps=lambda length: length,
        length="steps",
        lengths=(25, 50, 100),
        shortest=2,
    ),
    "copy": Problem(
        label="Copy memory",
        draw=draw_copy,
        inputs=GO + 1,
        outputs=ALPHABET + 1,
        every_step=True,
        loss=_cross_entropy,
        errors=_wrong_copies,
        error="share of symbols wrong",
        solved_at=0.01,
        chance=lambda blanks: COPIED * math.log(ALPHABET) / (blanks + 2 * COPIED),
        steps=lambda blanks: blanks + 2 * COPIED,
        length="blanks",
        lengths=(5, 20),
        hidden_size=64,
    ),
    "order": Problem(
        label="Temporal order",
        draw=draw_order,
        inputs=Y + 1,
        outputs=4,
        every_step=False,
        loss=_cross_entropy,
        errors=_wrong_class,
        error="share of sequences wrong",
        solved_at=0.01,
        chance=lambda _: math.log(4),
        steps=lambda length: length + length // 10,
        length="steps",
        lengths=(25, 50, 100),
        shortest=10,
    ),
    "reber": Problem(
        label="Embedded Reber grammar",
        draw=draw_reber,
        inputs=len(SYMBOLS),
        outputs=len(SYMBOLS),
        every_step=True,
        loss=_next_symbol_loss,
        errors=_wrong_strings,
        error="share of strings wrong",
        solved_at=0.0,
        chance=lambda _: math.nan,  # most of a string can be foreseen without remembering
        steps=lambda longest: longest,
        length="symbols at most",
        lengths=(40,),
        shortest=SHORTEST,
        late=_wrong_last_but_one,
    ),
    "agreement": Problem(
        label="Number agreement",
        draw=draw_sentences,
        inputs=len(WORDS),
        outputs=2,
        every_step=False,
        loss=_cross_entropy,
        errors=_wrong_class,
        error="share of sentences wrong",
        solved_at=0.01,
        chance=lambda _: math.log(2),
        steps=lambda modifiers: 6 + 4 * modifiers,
        length="modifiers at most",
        lengths=(4, 16),
        late=_wrong_class,
        guess=lambda batch: nearest_noun(batch) == batch.targets,
    ),
    "parity": _tracking("Parity", draw_parity, 2, 2),
    **{
        name: _tracking(
            f"Words of {name.upper()}", functools.partial(draw_words, group), len(group.symbols), group.size, **options
        )
        for name, group, options in (("s3", GROUPS["s3"], {}), ("s5", GROUPS["s5"], {"hidden_size": 64}))
    },
    "selective_copying": Problem(
        label="Selective copying",
        draw=draw_selective,
        inputs=WRITE + 1,
        outputs=KINDS,
        every_step=True,
        loss=_selected_loss,
        errors=_wrong_selected,
        error="share of symbols wrong",
        solved_at=0.01,
        chance=lambda _: math.log(KINDS),
        steps=lambda length: length + SELECTED,
        length="steps before the answer",
        lengths=(40,),
        shortest=SELECTED,
        beyond=BEYOND,
    ),
}


def held_out_batch(problem: Problem, length: int, count: int) -> Batch:
    """Test sequences, from a random stream that no training uses."""
    return problem.draw(np.random.default_rng((length, count, 2)), length, count)


def training_batch(problem: Problem, length: int, count: int, seed: int, step: int) -> Batch:
    return problem.draw(np.random.default_rng((seed, step, 1)), length, count)


def inputs(problem: Problem, batch: Batch) -> Any:
    """What the cell reads, `(B, T, I)`: symbols one-hot, numbers as they are."""
    return jax.nn.one_hot(batch.xs, problem.inputs) if batch.xs.ndim == 2 else batch.xs
