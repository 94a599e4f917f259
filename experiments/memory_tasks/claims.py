"""Claims about networks that have to remember, each with the measured numbers that decide it, from a record alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from experiments.command.claims import Claim, share
from experiments.memory_tasks.plan import CHANGED, USUAL, change_of
from experiments.memory_tasks.problems import PROBLEMS
from experiments.memory_tasks.record import outcomes_of
from experiments.memory_tasks.runs import Outcome
from experiments.memory_tasks.tracking_claims import tracking_claims

SIGNIFICANT = 0.05
TANH, GATED = ("rnn-uniform", "rnn"), ("lstm", "gru")
SHORT = {"adding": "adding", "copy": "copying", "order": "order", "reber": "Reber", "agreement": "agreement"}
LETTERS = {"rnn": "tanh", "irnn": "IRNN", "lstm": "LSTM"}

Record = Mapping[str, Any]
Key = tuple[str, str, int, str]  # problem, cell, length, change


def by_settings(record: Record) -> dict[Key, Outcome]:
    return {(run.problem, run.cell, run.length, change_of(run)): found for run, found in outcomes_of(record).items()}


def ranks(outcome: Outcome) -> np.ndarray:
    """A number for each seed, lower for better: the steps to solve; behind them, for those that failed, the loss.

    Losses are told apart by hundredths of the loss of chance, or of a nat if it is not known. Above chance they are
    equal.
    """
    run, chance = outcome.run, PROBLEMS[outcome.run.problem].chance(outcome.run.length)
    losses = np.round(np.fmin(outcome.losses / chance, 1) if np.isfinite(chance) else outcome.losses, 2)
    return np.where(outcome.solved > 0, outcome.solved, run.steps + 1 + np.fmin(losses, run.steps))


def compare(one: Outcome, other: Outcome) -> int:
    """1 if one is better than the other, -1 if worse, 0 if their seeds do not tell (a two-sided rank test)."""
    a, b = ranks(one), ranks(other)
    if np.ptp(np.concatenate([a, b])) == 0 or mannwhitneyu(a, b).pvalue >= SIGNIFICANT:
        return 0
    return 1 if a.mean() < b.mean() else -1


def result(outcome: Outcome) -> str:
    """The seeds that solved it, and the median of sequences until then; of the loss if most failed."""
    solved = f"{outcome.successes}/{len(outcome.run.seeds)}"
    if np.isfinite(outcome.median_sequences):
        return f"{solved} after {outcome.median_sequences:,.0f}"
    return f"{solved}, loss {np.median(outcome.losses):.3g}"


def claims(record: Record) -> list[Claim]:
    """All that the record can decide."""
    found = by_settings(record)
    seeds = len(next(iter(found.values())).run.seeds)
    return [
        *_gates(found, seeds),
        *_sigmoid(found, seeds),
        *_biases(found, seeds),
        *_clipped(found, seeds),
        *_raised(found, seeds),
        *tracking_claims(found, seeds),
    ]


def _lengths(found: Mapping[Key, Outcome], cell: str) -> list[tuple[str, int]]:
    return [(problem, length) for problem, of, length, change in found if of == cell and change == USUAL]


def _gates(found: Mapping[Key, Outcome], seeds: int) -> list[Claim]:
    cells = (*TANH, *GATED, "irnn")
    far = [
        (problem, length)
        for problem, length in _lengths(found, "lstm")
        if length == max(PROBLEMS[problem].lengths) and all((problem, cell, length, USUAL) in found for cell in cells)
    ]
    if not far:
        return []
    lines, better, worse = [], 0, 0
    for problem, length in far:
        outcomes = {cell: found[problem, cell, length, USUAL] for cell in cells}
        best_tanh, best_gated = (
            min((outcomes[cell] for cell in kind), key=lambda o: float(np.median(ranks(o)))) for kind in (TANH, GATED)
        )
        told = compare(best_gated, best_tanh)
        better, worse = better + (told > 0), worse + (told < 0)
        lines.append(f"{SHORT[problem]} ({length}) {result(best_gated)} and {result(best_tanh)}")
    without = [
        (problem, length, found[problem, "irnn", length, USUAL], found[problem, cell, length, USUAL])
        for problem, length in far
        for cell in GATED
    ]
    irnn = [f"{SHORT[p]} ({length}) {result(found[p, 'irnn', length, USUAL])}" for p, length in far]
    as_good = sum(compare(one, other) >= 0 for _, _, one, other in without)
    return [
        Claim(
            "a tanh network does not learn far dependencies; gated networks do",
            "documents, S0, S3 and S4; Hochreiter & Schmidhuber 1997",
            True if better == len(far) else None if better else False,
            f"longest lengths, the better of LSTM and GRU and of the two tanh networks: {'; '.join(lines)}. "
            f"Gated better in {better} of {len(far)}, worse in {worse}",
            seeds,
        ),
        Claim(
            "an IRNN, without gates, learns far dependencies too",
            "Le, Jaitly & Hinton 2015",
            share(sum(found[p, "irnn", length, USUAL].successes > 0 for p, length in far), len(far)),
            f"{'; '.join(irnn)}. Not worse than the LSTM or the GRU in {as_good} of {len(without)} comparisons",
            seeds,
        ),
    ]


def _sigmoid(found: Mapping[Key, Outcome], seeds: int) -> list[Claim]:
    places = [
        (problem, length)
        for problem, length in _lengths(found, "rnn-sigmoid")
        if (problem, "rnn", length, USUAL) in found
    ]
    if not places:
        return []
    pairs = [
        Beside(f"{SHORT[p]} ({length})", *(found[p, cell, length, USUAL] for cell in ("rnn", "rnn-sigmoid")))
        for p, length in places
    ]
    claim, told = "tanh rather than σ for the state", [pair.told for pair in pairs]
    return [Claim(claim, "documents, S3", helps(told), f"tanh is {counted(pairs)}", seeds)]


class Beside(NamedTuple):
    """One outcome beside another, with a name for where."""

    where: str
    one: Outcome
    other: Outcome

    @property
    def told(self) -> int:
        return compare(self.one, self.other)


def counted(pairs: Sequence[Beside]) -> str:
    """How often one is better and worse, with both results where the seeds tell."""
    words = {1: "better", -1: "worse"}
    parts = []
    for sign, word in words.items():
        own = [pair for pair in pairs if pair.told == sign]
        shown = "; ".join(f"{pair.where} {result(pair.one)} beside {result(pair.other)}" for pair in own)
        parts.append(f"{word} in {len(own)} of {len(pairs)}" + (f" ({shown})" if own else ""))
    return ", ".join(parts) + f", not told apart in {sum(pair.told == 0 for pair in pairs)}"


def helps(told: Sequence[int]) -> bool | None:
    """For if it is better in most cases and worse in none, against if it is better in none."""
    if 1 not in told:
        return False
    return True if -1 not in told and 2 * told.count(1) > len(told) else None


def serves(told: Sequence[int]) -> bool | None:
    """For if it is worse in no case, against if it is worse in most."""
    if -1 not in told:
        return True
    return False if 2 * told.count(-1) > len(told) else None


def _compared(found: Mapping[Key, Outcome], one: tuple[str, str], other: tuple[str, str]) -> list[Beside]:
    """Cell and change beside cell and change, on every problem that has both."""
    pairs = []
    for (problem, cell, length, change), outcome in found.items():
        beside = found.get((problem, other[0], length, other[1]))
        if (cell, change) == one and beside is not None and _is_middle(found, problem, length):
            pairs.append(Beside(SHORT[problem], outcome, beside))
    return pairs


def _is_middle(found: Mapping[Key, Outcome], problem: str, length: int) -> bool:
    """Whether the comparisons were made at this length."""
    return (problem, "rnn", length, "none") in found or (problem, "lstm-chrono", length, USUAL) in found


def _biases(found: Mapping[Key, Outcome], seeds: int) -> list[Claim]:
    claims = []
    for claim, source, one, other in (
        ("a forget bias of 1 helps (beside both biases 0)", "Gers 2000; Jozefowicz 2015", "lstm", "lstm-b0"),
        ("an output bias of 1 helps (beside both biases 0)", "documents, S2", "lstm-o1", "lstm-b0"),
        ("an output bias of 1 helps beside a forget bias of 1", "documents, S2", "lstm-f1-o1", "lstm"),
        ("chrono biases help (beside a forget bias of 1)", "Tallec & Ollivier 2018", "lstm-chrono", "lstm"),
    ):
        pairs = _compared(found, (one, USUAL), (other, USUAL))
        if pairs:
            claims.append(Claim(claim, source, helps([pair.told for pair in pairs]), counted(pairs), seeds))
    return claims


def _changes(found: Mapping[Key, Outcome], one: str, other: str) -> list[Beside]:
    """A change of the gradient beside another, for every cell that has both."""
    return [
        pair._replace(where=f"{LETTERS[cell]}, {pair.where}")
        for cell in CHANGED
        for pair in _compared(found, (cell, one), (cell, other))
    ]


def _clipped(found: Mapping[Key, Outcome], seeds: int) -> list[Claim]:
    claims = []
    for claim, source, one, other in (
        ("clipping by norm (at 1) helps beside none", "documents, S2; Pascanu 2013", USUAL, "none"),
        ("clipping by value at the same θ serves as well as by norm", "documents, S2", "value 1", USUAL),
        ("clipping by value at 0.03 serves as well as by norm at 1", "Mikolov 2012", "value 0.03", USUAL),
        ("clipping what each step hands back serves as well as by norm", "Graves 2013", "each step", USUAL),
    ):
        pairs = _changes(found, one, other)
        if pairs:
            told = [pair.told for pair in pairs]
            holds = helps(told) if other == "none" else serves(told)
            claims.append(Claim(claim, source, holds, counted(pairs), seeds))
    return claims


def _raised(found: Mapping[Key, Outcome], seeds: int) -> list[Claim]:
    claims = []
    for claim, one in (
        ("raising small gradients harms memory: the norm, to 1", "norm raised to 1"),
        ("raising small gradients harms memory: the entries, to 0.01", "entries raised to 0.01"),
    ):
        pairs = _changes(found, one, USUAL)
        if pairs:
            holds = helps([-pair.told for pair in pairs])
            claims.append(Claim(claim, "documents, S2", holds, f"raised is {counted(pairs)}", seeds))
    return claims
