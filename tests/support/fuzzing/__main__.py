"""Counts the answers to many faults: `python -m tests.support.fuzzing SEED COUNT [KIND ...]`."""

import collections
import sys
from collections.abc import Callable

import numpy as np

from tests.support.fuzzing.answers import Attempt, complaint
from tests.support.fuzzing.arguments import odd_argument
from tests.support.fuzzing.models import changed_model, damaged_bytes
from tests.support.fuzzing.weights import mutated_record, mutated_weights

KINDS: dict[str, Callable[[np.random.Generator], Attempt]] = {
    "weights": mutated_weights, "records": mutated_record, "arguments": odd_argument, "bytes": damaged_bytes, "models": changed_model,
}  # fmt: skip


def main() -> None:
    seed, count, *kinds = sys.argv[1:]
    for kind in kinds or KINDS:
        outcomes, faults = collections.Counter(), collections.Counter()
        examples: dict[str, str] = {}
        for k in range(int(count)):
            attempt = KINDS[kind](np.random.default_rng([int(seed), k]))
            wrong = complaint(attempt)
            outcomes["right" if wrong is None else "wrong"] += 1
            if wrong is not None:
                key = wrong.split("\n")[0][:70]
                faults[key] += 1
                examples.setdefault(key, f"[{kind} {k}] {attempt.what}: {wrong}")
        print(kind, dict(outcomes), flush=True)
        for key, number in faults.most_common(60):
            print(f"   {number} x {examples[key]}", flush=True)


if __name__ == "__main__":
    main()
