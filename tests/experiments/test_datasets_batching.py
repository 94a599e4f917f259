"""Batches as functions of a seed and a step, and padding."""

import numpy as np
import pytest

from experiments.datasets import (
    batching,
)


def test_epoch_contains_each_example_at_most_once():
    for epoch in range(3):
        seen = np.concatenate([batching.shuffled(11, 3, 7, 3 * epoch + k) for k in range(3)])
        assert len(seen) == len(set(seen.tolist())) == 9
        assert set(seen.tolist()) <= set(range(11))
    skipped = [
        set(range(11)) - {int(i) for k in range(3) for i in batching.shuffled(11, 3, 7, 3 * e + k)} for e in range(9)
    ]
    assert len(set(map(frozenset, skipped))) > 3  # other examples are skipped each time


def test_batch_depends_only_on_seed_and_step():
    expected = np.random.default_rng((7, 2)).permutation(11)[3:6]  # the second batch of the third epoch
    np.testing.assert_array_equal(batching.shuffled(11, 3, 7, 7), expected)
    for seed, step in ((8, 7), (7, 8), (7, 4), (7, 10), (0, 0)):
        assert batching.shuffled(11, 3, seed, step).tolist() != expected.tolist()
    batching._order.cache_clear()
    np.testing.assert_array_equal(batching.shuffled(11, 3, 7, 7), expected)
    with pytest.raises(ValueError, match="read-only"):
        batching.shuffled(11, 3, 7, 7)[0] = 1


LENGTHS = np.array([5, 1, 9, 3, 3, 7, 2, 8, 6, 4, 1])  # in order 1 1 2 3 | 3 4 5 6 | 7 8 9


def test_buckets_hold_similar_lengths_in_few_shapes():
    steps = batching.steps_per_epoch(11, 2, 3)
    assert steps == 5
    orders = []
    for epoch in range(4):
        batches = [batching.bucketed(LENGTHS, 2, 1, epoch * steps + k, 3) for k in range(steps)]
        seen = [int(i) for batch in batches for i in batch.indices]
        assert len(seen) == len(set(seen)) == 10
        assert sorted(batch.length for batch in batches) == [3, 3, 6, 6, 9]
        for batch in batches:
            assert batch.indices.shape == (2,)
            least = {3: 1, 6: 3, 9: 7}[batch.length]
            assert np.all((least <= LENGTHS[batch.indices]) & (LENGTHS[batch.indices] <= batch.length))
        orders.append(tuple(batch.length for batch in batches))
    assert len(set(orders)) > 1
    whole = [batching.bucketed(LENGTHS, 3, 1, k, 1) for k in range(3)]
    assert [batch.length for batch in whole] == [9, 9, 9]


def test_all_seeds_get_batches_of_the_same_shape():
    one, other = ([batching.bucketed(LENGTHS, 2, seed, k, 3) for k in range(20)] for seed in (1, 2))
    assert [batch.length for batch in one] == [batch.length for batch in other]
    assert [batch.indices.tolist() for batch in one] != [batch.indices.tolist() for batch in other]


def test_buckets_of_one_batch_equal_sorted_batches():
    lengths = np.random.default_rng(0).integers(7, 30, 270)
    batches = [batching.bucketed(lengths, 27, 0, k, 10) for k in range(batching.steps_per_epoch(270, 27, 10))]
    by_length = np.argsort(lengths, kind="stable").reshape(10, 27)
    assert sorted(sorted(batch.indices.tolist()) for batch in batches) == sorted(map(sorted, by_length.tolist()))


def test_padded_share_counts_padding():
    expected = [1 - 49 / (11 * 9), 1 - 49 / (4 * 3 + 4 * 6 + 3 * 9)]
    np.testing.assert_allclose([batching.padded_share(LENGTHS, k) for k in (1, 3)], expected, rtol=1e-12)


def test_sequences_are_padded_with_zeros():
    xs, lengths = batching.pad(
        [np.ones((2, 3), np.float32), np.full((0, 3), 5, np.float32), np.full((1, 3), 2, np.float32)]
    )
    assert (xs.shape, xs.dtype) == ((3, 2, 3), np.float32)
    np.testing.assert_array_equal(lengths, [2, 0, 1])
    np.testing.assert_array_equal(xs.sum(-1), [[3, 3], [0, 0], [6, 0]])
    assert batching.pad([np.ones(2)], 4)[0].tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: batching.shuffled(3, 4, 0, 0), "a batch of 4 is more than the 3 examples$"),
        (lambda: batching.shuffled(3, 0, 0, 0), "batch size 0"),
        (lambda: batching.shuffled(3, 1, 0, -1), "seed and step: expected numbers from 0, got -1"),
        (lambda: batching.shuffled(3, 1, -2, 0), "got -2"),
        (
            lambda: batching.bucketed(LENGTHS, 4, 0, 0, 3),
            "a batch of 4 is more than the 3 examples in each of 3 buckets",
        ),
        (lambda: batching.bucketed(LENGTHS, 4, 0, 0, 0), "0 buckets"),
        (lambda: batching.bucketed(LENGTHS, 2, 0, -3), "got -3"),
        (lambda: batching.bucketed(LENGTHS, 2, -1, 0), "got -1"),
        (lambda: batching.pad([]), "at least one sequence"),
        (lambda: batching.pad([np.ones(3)], 2), "length 2 is less than the 3 steps"),
        (lambda: batching.pad([np.ones((3, 2)), np.ones((3, 1))]), "alike but for their first axis"),
        (lambda: batching.pad([np.ones(3), np.ones(3, np.int32)]), "alike but for their first axis"),
    ],
)
def test_bad_arguments_are_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
