"""The memory problems: sequences against brute force, losses and errors, and a small run."""

import dataclasses
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.memory_tasks import __main__ as memory_tasks
from experiments.memory_tasks.agreement import NOUNS, PAST, PREPOSITIONS, PRESENT, STEMS, WORDS, nearest_noun
from experiments.memory_tasks.batch import Batch
from experiments.memory_tasks.plan import CHANGES, Scale, change_of, grid
from experiments.memory_tasks.problems import PROBLEMS, held_out_batch, inputs, training_batch
from experiments.memory_tasks.reber import SYMBOLS
from experiments.memory_tasks.record import about, as_record, outcomes_of
from experiments.memory_tasks.runs import (
    Outcome,
    answers,
    first_solved,
    grouped,
    late_groups,
    until_all_solved,
)
from experiments.models.cells import CONTESTANTS
from experiments.models.readout import init_readout
from tests.support.training import optax_promotes

SHORTEST = {"adding": 2, "copy": 1, "order": 10, "reber": 9, "agreement": 1}
SHORTEST |= {"parity": 1, "s3": 1, "s5": 1, "selective_copying": 4}
TASKS = "adding, copy, order, reber, agreement, parity, selective_copying, state_tracking"


def draw(name, length, count=200):
    return held_out_batch(PROBLEMS[name], length, count)


# Sequences


@pytest.mark.parametrize("length", [2, 3, 25, 100])
def test_adding_sequences_mark_two_numbers_and_add_them(length):
    batch = draw("adding", length)
    assert batch.xs.shape == (200, length, 2)
    assert batch.xs[..., 0].min() >= 0
    assert batch.xs[..., 0].max() < 1
    places = []
    for sequence, target in zip(batch.xs, batch.targets, strict=True):
        first, second = (t for t in range(length) if sequence[t, 1] == 1)  # unpacking checks that there are two
        assert first < max(1, length / 10)
        assert length // 2 <= second < length
        assert set(sequence[:, 1]) <= {0, 1}
        np.testing.assert_allclose(target, sequence[first, 0] + sequence[second, 0], rtol=1e-6)
        places.append((first, second))
    firsts, seconds = zip(*places, strict=True)
    assert set(firsts) == set(range(max(1, length // 10)))  # every position occurs
    assert {length // 2, length - 1} <= set(seconds)


@pytest.mark.parametrize("blanks", [1, 5])
def test_copy_targets_repeat_the_first_symbols_at_the_end(blanks):
    batch = draw("copy", blanks)
    assert batch.xs.shape[1] == blanks + 20 == PROBLEMS["copy"].steps(blanks)
    for sequence, target in zip(batch.xs.tolist(), batch.targets.tolist(), strict=True):
        symbols = sequence[:10]
        assert set(symbols) <= set(range(1, 9))
        assert sequence[10:] == [0] * (blanks - 1) + [9] * 11
        assert target == [0] * (blanks + 10) + symbols
    assert set(batch.xs[:, :10].ravel().tolist()) == set(range(1, 9))


@pytest.mark.parametrize("length", [10, 25, 100])
def test_order_class_is_given_by_two_symbols(length):
    batch, tenth = draw("order", length), length // 10
    assert batch.xs.shape[1] == PROBLEMS["order"].steps(length)
    for sequence, size, target in zip(batch.xs.tolist(), batch.lengths, batch.targets, strict=True):
        assert length <= size <= length + tenth
        (first, a), (second, b) = ((t, s) for t, s in enumerate(sequence) if s >= 6)
        assert tenth <= first <= 2 * tenth
        assert 5 * tenth <= second <= 6 * tenth
        assert target == {(6, 6): 0, (6, 7): 1, (7, 6): 2, (7, 7): 3}[a, b]
        assert sequence[0] == 4
        assert sequence[size - 1] == 5
        assert set(sequence[1 : size - 1]) - {6, 7} <= {0, 1, 2, 3}
    assert set(batch.targets.tolist()) == {0, 1, 2, 3}
    assert set(batch.lengths.tolist()) == set(range(length, length + tenth + 1))


FROM_THREE = "T*V(?:PXT*V)*(?:V|PS)"  # paths from the third node of the grammar to its end
REBER = re.compile(f"B([TP])B(?:TS*X(?:S|X{FROM_THREE})|P{FROM_THREE})E\\1E")


def reber_strings(batch):
    return ["".join(SYMBOLS[s] for s in xs[:n]) for xs, n in zip(batch.xs, batch.lengths, strict=True)]


@pytest.mark.parametrize("longest", [9, 12, 40])
def test_reber_strings_follow_the_embedded_grammar(longest):
    strings = reber_strings(draw("reber", longest, 2000))
    assert all(REBER.fullmatch(string) for string in strings)
    assert max(map(len, strings)) <= longest
    assert {string[1] for string in strings} == {"T", "P"}
    if longest == 9:
        inner = ["BTXSE", "BPVVE"]
        assert set(strings) == {f"B{second}{string}{second}E" for second in "TP" for string in inner}
    if longest == 40:  # two inner strings of probability 1/8 each are shortest
        assert abs(np.mean([len(string) == 9 for string in strings]) - 0.25) < 0.04


def test_legal_symbols_are_those_that_continue_some_string():
    def from_three(room):
        """Paths from the third node to the end, of at most `room` symbols."""
        if room < 2:
            return
        yield from ("VV", "VPS")
        yield from ("T" + rest for rest in from_three(room - 1))
        yield from ("VPX" + rest for rest in from_three(room - 3))

    inner = [f"P{rest}" for rest in from_three(14)]
    inner += [f"T{'S' * n}X{rest}" for n in range(12) for rest in ("S", *(f"X{way}" for way in from_three(12 - n)))]
    strings = [f"B{second}B{middle}E{second}E" for second in "TP" for middle in inner]
    assert all(REBER.fullmatch(string) for string in strings)
    beginnings = {string[:n] for string in strings for n in range(len(string) + 1)}
    batch = draw("reber", 12, 300)
    for k, string in enumerate(reber_strings(batch)):
        for t in range(len(string) - 1):
            expected = [string[: t + 1] + symbol in beginnings for symbol in SYMBOLS]
            np.testing.assert_array_equal(batch.legal[k, t], expected, err_msg=f"{string[: t + 1]}")
            assert SYMBOLS[batch.targets[k, t]] == string[t + 1]
        assert batch.distance[k] == len(string) - 4  # from the second symbol to the last but two


ALTERNATIVES = {"N": NOUNS, "P": PREPOSITIONS, "D": PAST}
SENTENCE = re.compile(
    "(?P<place>P the N , )?the (?P<subject>N)(?P<tail>(?: P the N| that the (?:S \\w+s|L \\w+)| that D the N)*)"
    .replace("S", f"(?:{'|'.join(STEMS)})")
    .replace("L", f"(?:{'|'.join(stem + 's' for stem in STEMS)})")
    .replace("N", f"(?:{'|'.join(sorted(NOUNS, reverse=True))})")
    .replace("D", f"(?:{'|'.join(PAST)})")
    .replace("?P<", "?!<").replace("P", f"(?:{'|'.join(PREPOSITIONS)})").replace("?!<", "?P<")
)  # fmt: skip


def test_sentences_are_grammatical_and_their_subject_is_the_target():
    batch = draw("agreement", 5, 1000)
    places, modifiers = 0, []
    for xs, size, target, distance, attractors in zip(
        batch.xs, batch.lengths, batch.targets, batch.distance, batch.attractors, strict=True
    ):
        sentence = " ".join(WORDS[word] for word in xs[:size])
        parsed = SENTENCE.fullmatch(sentence)
        assert parsed, sentence
        assert target == parsed["subject"].endswith("s")
        after = parsed["tail"].split()
        assert distance == len(after)
        nouns = [word for word in after if word in NOUNS]
        assert attractors == sum(noun.endswith("s") != target for noun in nouns)
        for noun, verb in itertools.pairwise(after):
            if noun in NOUNS and verb.removesuffix("s") in PRESENT:  # the verb belongs to the relative clause
                assert noun.endswith("s") != verb.endswith("s")
        expected = ([None, parsed["subject"], *nouns])[-1].endswith("s")
        assert nearest_noun(Batch(xs[None], None, np.array([size])))[0] == expected
        places += parsed["place"] is not None
        modifiers.append(len(nouns))
    assert 430 < places < 570
    np.testing.assert_allclose(np.bincount(modifiers), 1000 / 6, rtol=0.3)
    assert len(set(batch.xs.ravel().tolist())) == len(WORDS)


def test_other_nouns_are_independent_of_the_subject():
    batch = draw("agreement", 6, 20_000)
    is_noun = np.isin(batch.xs, [WORDS.index(noun) for noun in NOUNS])
    is_noun &= np.arange(batch.xs.shape[1]) < batch.lengths[:, None]
    plural = is_noun & np.char.endswith(np.array(WORDS)[batch.xs], "s")
    others, plurals = is_noun.sum(1) - 1, plural.sum(1) - batch.targets
    assert abs(batch.targets.mean() - 0.5) < 0.02
    for share in (plurals == others, plurals == 0, 2 * plurals > others):
        assert abs(batch.targets[share & (others > 1)].mean() - 0.5) < 0.03  # three standard deviations
    right = nearest_noun(batch) == batch.targets
    assert right[batch.distance == 0].all()
    assert abs(right[batch.distance > 0].mean() - 0.5) < 0.02


@pytest.mark.parametrize("name", PROBLEMS)
def test_batches_depend_on_seed_and_step(name):
    problem = PROBLEMS[name]
    length = problem.lengths[0]
    batches = [training_batch(problem, length, 8, *given).xs for given in ((3, 7), (3, 7), (3, 8), (4, 7), (7, 3))]
    np.testing.assert_array_equal(batches[0], batches[1])
    others = [*batches[2:], held_out_batch(problem, length, 8).xs]
    assert not any(np.array_equal(batches[0], other) for other in others)


# Answers, losses and errors


def test_symbols_are_one_hot_and_padding_is_ignored():
    problem = PROBLEMS["order"]
    batch = draw("order", 20, 4)
    xs = np.asarray(inputs(problem, batch))
    np.testing.assert_array_equal(xs.argmax(-1), batch.xs)
    np.testing.assert_array_equal(xs.sum(-1), np.ones_like(batch.xs))
    cell = CONTESTANTS["rnn"].make(3, 20)
    model = init_readout(cell, 3, problem.inputs, problem.outputs, jax.random.key(0))
    after = np.arange(batch.xs.shape[1]) >= batch.lengths[:, None]
    assert after.any()
    found, other = (answers(problem, cell, model, batch._replace(xs=np.where(after, s, batch.xs))) for s in (1, 2))
    assert found.shape == (4, 4)
    np.testing.assert_array_equal(found, other)
    ends = np.where(np.arange(batch.xs.shape[1]) == batch.lengths[:, None] - 1, 0, batch.xs)
    assert not np.allclose(found, answers(problem, cell, model, batch._replace(xs=ends)))


def test_chance_is_the_loss_without_memory():
    blanks = 7
    batch = draw("copy", blanks, 50)
    certain = np.where(np.arange(9) == 0, 0.0, -100.0)
    symbols = np.where(np.arange(9) == 0, -100.0, 0.0)
    found = np.stack([certain if t < blanks + 10 else symbols for t in range(blanks + 20)])
    found = np.broadcast_to(found, (50, blanks + 20, 9))
    problem = PROBLEMS["copy"]
    np.testing.assert_allclose(problem.loss(jnp.float32(found), batch), problem.chance(blanks), rtol=1e-5)
    np.testing.assert_allclose(problem.chance(1000), 0.02039, atol=5e-6)  # as published
    batch = draw("adding", 30, 20_000)
    always_one = jnp.ones((20_000, 1))
    np.testing.assert_allclose(PROBLEMS["adding"].loss(always_one, batch), PROBLEMS["adding"].chance(30), rtol=0.03)
    np.testing.assert_allclose(PROBLEMS["adding"].solved_at, 1.67e-3, rtol=0.01)
    for name in ("order", "agreement"):
        problem, batch = PROBLEMS[name], draw(name, 10, 20)
        even = jnp.zeros((20, problem.outputs))
        np.testing.assert_allclose(problem.loss(even, batch), problem.chance(10), rtol=1e-6)


def test_errors_equal_hand_computation():
    adding = Batch(None, np.float32([1.0, 0.5]))
    np.testing.assert_allclose(PROBLEMS["adding"].errors(jnp.float32([[1.5], [0.4]]), adding), [0.25, 0.01], rtol=1e-5)

    targets = draw("copy", 3, 2).targets
    found = np.array(jax.nn.one_hot(targets, 9))
    found[:, :13] = 0  # answers in the blanks do not count
    found[1, [13, 17, 22]] = np.eye(9)[0]
    np.testing.assert_allclose(PROBLEMS["copy"].errors(found, Batch(None, targets)), [0, 0.3], rtol=1e-6)

    classes = Batch(None, np.int32([2, 0, 3]))
    found = jnp.float32([[0, 0, 1, 0], [0, 2, 1, 0], [0, 0, 1, 3]])
    np.testing.assert_array_equal(PROBLEMS["order"].errors(found, classes), [0, 1, 0])
    np.testing.assert_array_equal(PROBLEMS["agreement"].late(found[:, :2], Batch(None, np.int32([1, 1, 0]))), [1, 0, 0])


def test_string_is_right_if_legal_symbols_score_above_illegal_ones():
    problem, batch = PROBLEMS["reber"], draw("reber", 14, 6)
    ends = batch.lengths
    found = np.where(batch.legal, 1.0, 0.0).astype(np.float32)
    found[0] *= 0.1  # the size of the margin does not matter
    wrong_late, wrong_early, tied, after_the_end, only_one = range(1, 6)
    found[wrong_late, ends[wrong_late] - 3, [SYMBOLS.index("T"), SYMBOLS.index("P")]] = 0.9, 0.9
    found[wrong_early, 2, SYMBOLS.index("B")] = 2.0
    found[tied, 3] = 0.5
    found[after_the_end, ends[after_the_end] - 1 :] = np.nan
    found[only_one, 0, SYMBOLS.index("T")] = -1.0  # T and P are both legal
    np.testing.assert_array_equal(problem.errors(found, batch), [0, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(problem.late(found, batch), [0, 1, 0, 0, 0, 0])


def test_symbols_after_the_end_are_not_in_the_loss():
    problem, batch = PROBLEMS["reber"], draw("reber", 12, 5)
    found = np.random.default_rng(0).normal(size=(5, 12, 7)).astype(np.float32)
    losses = []
    for k, end in enumerate(batch.lengths):
        for t in range(end - 1):
            exps = np.exp(found[k, t])
            losses.append(-math.log(exps[SYMBOLS.index(reber_strings(batch)[k][t + 1])] / exps.sum()))
    np.testing.assert_allclose(problem.loss(found, batch), np.mean(losses), rtol=1e-5)


def test_seed_counts_as_solved_after_its_first_success():
    errors = np.array([[0.5, 0.01, np.nan], [0.2, 0.6, 0.3], [0.0, 0.005, 0.02], [0.3, 0.3, np.nan]])
    np.testing.assert_array_equal(first_solved([50, 100, 150, 160], errors, 0.01), [150, 50, 0])
    stop = until_all_solved(0.01)
    assert [stop({"error": now}) for now in errors] == [False] * 4
    assert stop({"error": np.array([0.3, 0.3, 0.01])})


def test_outcomes_count_sequences():
    run = grid("adding", ["gru"], [25], Scale((0, 1, 2), 40, 10, None, None))[0]
    outcome = Outcome(run, np.array([150, 0, 50]), np.zeros(3), np.zeros(3), 1, 1.0)
    np.testing.assert_array_equal(outcome.sequences, [6000, np.inf, 2000])
    assert (outcome.successes, outcome.median_sequences) == (2, 6000)
    assert outcome._replace(solved=np.array([150, 0, 0])).median_sequences == np.inf


def test_groups_are_means_over_their_members():
    rng = np.random.default_rng(1)
    right, values = rng.integers(0, 2, (3, 400)), rng.integers(0, 10, 400)
    values[values == 9] = 3
    values[:5] = 11
    groups = grouped(right, values, 4)
    members = [[k for k in range(400) if low <= values[k] <= high] for low, high in ((0, 0), (1, 4), (5, 8))]
    np.testing.assert_array_equal(
        groups.count, [len(m) for m in members]
    )  # the five values of 11 are too few for a group
    np.testing.assert_allclose(groups.value, [np.mean([values[k] for k in m]) for m in members])
    np.testing.assert_allclose(groups.right, [np.mean([right[:, k] for k in m]) for m in members])
    batch = draw("agreement", 3, 400)
    by_attractors = late_groups(right, batch)["attractors"]
    np.testing.assert_array_equal(by_attractors.value, np.arange(len(by_attractors.value)))


# The comparison


def test_quick_comparison_trains_the_shortest_lengths():
    config = memory_tasks.Config(quick=True)
    lengths = {task: memory_tasks.lengths_of(config, task) for task in PROBLEMS}
    first = {"adding": (25,), "copy": (5,), "order": (25,), "reber": (40,), "agreement": (4,)}
    assert lengths == first | {"parity": (40,), "s3": (40,), "s5": (40,), "selective_copying": (40,)}
    assert memory_tasks.tasks_of(config) == [*first, "parity", "selective_copying", "s3"]
    both = dataclasses.replace(config, tasks=("state_tracking", "copy", "copy"), groups=("s5", "s3"))
    assert memory_tasks.tasks_of(both) == ["s5", "s3", "copy"]
    assert memory_tasks.lengths_of(memory_tasks.Config(), "adding") == (25, 50, 100)
    chosen = memory_tasks.Config(lengths=(30, 10, 20, 30), quick=True)
    assert memory_tasks.lengths_of(chosen, "order") == (30, 10, 20)
    assert memory_tasks.middle(chosen, "order") == 20


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Runs the script, and returns its folder and its record."""
    out = tmp_path_factory.mktemp("run") / "results"
    arguments = "--tasks agreement --cells rnn --lengths 1 --comparisons agreement --steps 300 --tests 300"
    with optax_promotes():
        assert memory_tasks.main([*arguments.split(), "--seeds", "2", "--seed", "4", "--out", str(out)]) == 0
    return out, json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_small_run_solves_a_short_problem(small):
    _, record = small
    changes = [change_of(run) for run in outcomes_of(record)]
    assert changes == ["norm 1", *(change for change in CHANGES if change != "norm 1")]
    clipped, free, *_ = record["runs"]
    assert (clipped["clip_norm"], free["clip_norm"]) == (1.0, None)
    assert "clip_value" not in clipped
    for run in record["runs"]:
        assert run["seeds"] == [4, 5]
        assert run["solved"] == "2/2"
        assert set(run["steps_to_solve"]) <= {50, 100, 150, 200, 250, 300}
        assert run["median_sequences_to_solve"] == 32 * np.mean(run["steps_to_solve"])
        assert max(run["least_error"]) <= 0.01
        assert max(run["least_loss"]) < 0.3 * math.log(2)
        assert min(run["right_by_distance"]) > 0.9  # a guess is right half the time at a distance
        assert run["parameters"] == 32 * (len(WORDS) + 32 + 1) + 2 * 32 + 2
    assert len({tuple(run["least_loss"]) for run in record["runs"]}) == len(CHANGES)


def test_small_run_writes_its_problem_and_figures(small):
    out, record = small
    (problem,) = record["problems"]
    assert (problem["chance_loss"], problem["steps_in_a_sequence"], problem["solved_at"]) == (0.6931, 10, 0.01)
    assert problem["guess_by_distance"]["right"][0] == 1
    assert abs(problem["guess_by_distance"]["right"][1] - 0.5) < 0.02
    assert sum(problem["distance"]["test_sequences"]) == 300
    assert record["config"]["seed"] == 4
    stems = ("memory_tasks", "changed")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["results.json", *(f"{stem}.{end}" for stem in stems for end in ("png", "svg"))]
    )
    assert "Number agreement" in (out / "memory_tasks.svg").read_text(encoding="utf-8")


def test_record_shows_unsolved_seeds_and_their_best_errors():
    run = grid("copy", ["irnn"], [5], Scale((0, 1, 2), 32, 10, None, None))[0]
    outcome = Outcome(run, np.array([0, 50, 0]), np.array([0.5, 0.0, 0.87654]), np.array([0.4, 0.01, 0.83181]), 7, 1.26)
    record = as_record(outcome)
    assert record["solved"] == "1/3"
    assert record["steps_to_solve"] == [None, 50, None]
    assert record["median_sequences_to_solve"] == math.inf  # null in the file
    assert (record["least_error"], record["least_loss"]) == ([0.5, 0.0, 0.8765], [0.4, 0.01, 0.8318])
    assert memory_tasks.columns(outcome) == ("1/3", "> 64,000", "0.5", "0.4", "0.832")
    entry = about("copy", 5, outcome)
    assert (entry["chance_loss"], entry["steps_in_a_sequence"], entry["length_in"]) == (0.8318, 25, "blanks")


def test_runs_of_a_record_are_used_again(small, tmp_path, monkeypatch):
    out, record = small
    trained = []

    def no_training(jobs, **_):
        trained.extend(jobs)
        raise RuntimeError

    monkeypatch.setattr(memory_tasks, "side_by_side", no_training)
    arguments = "--tasks agreement --cells rnn --lengths 1 --comparisons agreement --steps 300 --tests 300 --seeds 2"
    again = [*arguments.split(), "--reuse", str(out / "results.json"), "--out", str(tmp_path)]
    assert memory_tasks.main([*again, "--seed", "4"]) == 0
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (found["runs"], trained) == (record["runs"], [])
    same = {key: value for key, value in record["problems"][0].items() if not key.startswith("guess")}
    assert {key: found["problems"][0][key] for key in same} == same
    with pytest.raises(RuntimeError):  # the seeds differ
        memory_tasks.main([*again, "--seed", "5"])
    assert trained == ["Number agreement, tanh RNN"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--hidden-size 0", "--hidden-size expected a positive number, got 0"),
        ("--batch-size 0", "--batch-size"),
        ("--steps 0", "--steps"),
        ("--tests 0", "--tests"),
        ("--seeds 0", "--seeds"),
        ("--seed -1", "--seed expected a number that is not negative, got -1"),
        ("--tasks adding sorting", f"--tasks expected {TASKS}; got sorting"),
        ("--tasks", f"--tasks expected {TASKS}; got nothing"),
        ("--cells lstm-chrono", "rnn-sigmoid, rnn-uniform, rnn, irnn, lstm-b0, lstm, gru, min_gru, min_lstm, rg_lru, lru; got lstm-chrono"),
        ("--cells", "got nothing"),
        ("--groups s4", "--groups expected s3, s5; got s4"),
        ("--groups", "--groups expected s3, s5; got nothing"),
        ("--comparisons parity", "--comparisons expected adding, copy, order, reber, agreement; got parity"),
        ("--comparisons sorting", "--comparisons expected adding"),
        ("--lengths 0", "--lengths expected a positive number, got 0"),
        *[
            (f"--tasks {name} --lengths {least - 1}", f"at least {least}")
            for name, least in SHORTEST.items()
            if least > 1
        ],
        ("--out file/results", "cannot write into file/results"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(memory_tasks, "side_by_side", lambda *_: pytest.fail("trained"))
    assert memory_tasks.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memory_tasks: ")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("name", "shortest"), SHORTEST.items())
def test_shortest_length_can_be_drawn(name, shortest):
    assert PROBLEMS[name].shortest == shortest
    assert draw(name, shortest, 3).xs.shape[1] == PROBLEMS[name].steps(shortest)
