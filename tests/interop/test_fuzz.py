"""Random faults of weights, records, arguments and models are refused in words that name them.

`python -m tests.support.fuzzing SEED COUNT` tries many more.
"""

import contextlib

import numpy as np
import pytest

from tests.support.fuzzing.__main__ import KINDS
from tests.support.fuzzing.answers import Attempt, complaint
from tests.support.fuzzing.arguments import CALLS, attempt_with
from tests.support.fuzzing.values import ODD

pytestmark = pytest.mark.usefixtures("unhooked")


@pytest.mark.parametrize(("kind", "count"), {"weights": 400, "records": 400, "bytes": 80, "models": 60}.items())
def test_random_faults_are_refused_by_name(kind, count):
    attempts = (KINDS[kind](np.random.default_rng([0, k])) for k in range(count))
    assert not [f"{attempt.what}: {wrong}" for attempt in attempts if (wrong := complaint(attempt))]


@pytest.mark.parametrize("function", CALLS)
def test_odd_arguments_are_refused_by_name(function, tmp_path):
    names = list(CALLS[function][1])
    with contextlib.chdir(tmp_path):  # some of them are names of files
        attempts = [attempt_with(function, name, odd) for name in names for odd in ODD]
        assert not [f"{attempt.what}: {wrong}" for attempt in attempts if (wrong := complaint(attempt))]


def test_every_answer_that_is_wrong_is_complained_of():
    def raising(error):
        def call():
            raise error

        return call

    name = ("entry 'a'",)
    wrong = {
        "raised KeyError": raising(KeyError("f: entry 'a'")),
        "raised FileNotFoundError": raising(FileNotFoundError("f: entry 'a'")),
        "does not name the function": raising(ValueError("entry 'a' is wrong")),
        "600 characters": raising(ValueError("f: entry 'a'".ljust(600))),
        "several lines": raising(ValueError("f: entry 'a'\n")),
        "names none of": raising(TypeError("f: entry 'b' is wrong")),
        "was accepted, with another result": lambda: np.ones(2),
    }
    for text, call in wrong.items():
        found = complaint(Attempt("", "f", name, call, expected=np.zeros(2)))
        assert found is not None
        assert found.startswith(text)
    assert complaint(Attempt("", "f", name, lambda: 1, may_pass=False)) == "was accepted"
    assert complaint(Attempt("", "f", name, lambda: np.zeros(2), expected=np.zeros(2))) is None
    assert complaint(Attempt("", "f", name, raising(ValueError("f: entry 'a' is wrong")))) is None
