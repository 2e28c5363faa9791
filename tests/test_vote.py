"""vote.py: votes are counted on values, and obey the laws of voting."""

import itertools
import random

import pytest

from answers import equivalent
from vote import clusters, majority, pass_at_k


def test_clusters_are_of_values_in_the_order_first_seen():
    assert clusters(["1/2", "3", "0.5", None, r"\frac12", "3.0"]) == [[0, 2, 4], [1, 5]]
    assert clusters([None, None]) == []


@pytest.mark.parametrize("answers, weights, chosen", [
    (["7"], None, 0),
    ([None], None, None),
    ([], None, None),
    (["1", "2", "2.0"], None, 1),  # two equal values beat one
    ([None, None, "5"], None, 2),  # None never votes, however often it occurs
    (["1", "2"], None, 0),  # a tie goes to the first seen
    (["1", "2"], [0.1, 0.9], 1),  # but first to the higher sum of weights
    (["1", "2", "2"], [9.0, 0.1, 0.1], 1),  # which never outweighs a vote
    (["1", "2", "1", "2"], [0.5, 0.5, 0.5, 0.5], 0),
])
def test_majority(answers, weights, chosen):
    assert majority(answers, weights) == chosen


def random_votes(seed: int) -> list[str | None]:
    rng = random.Random(seed)
    return rng.choices(["1", "2", "3", None], k=rng.randint(1, 9))


@pytest.mark.parametrize("seed", range(50))
def test_laws(seed):
    answers = random_votes(seed)
    chosen = majority(answers)
    # Somebody is chosen just where somebody votes, and samples without an answer change nothing.
    assert (chosen is None) == (set(answers) == {None})
    voters = [answer for answer in answers if answer is not None]
    if voters:
        assert answers[chosen] == voters[majority(voters)]
    # One vote is one sample; equal samples vote for themselves.
    assert majority(answers[:1]) == (None if answers[0] is None else 0)
    assert majority(answers[:1] * 5) == majority(answers[:1])
    # The majority is right only where some sample is, and is right where all are.
    if chosen is not None and equivalent("1", answers[chosen]):
        assert pass_at_k(len(answers), sum(equivalent("1", answer) for answer in answers), len(answers)) == 1


def test_two_votes_with_first_seen_ties_are_one_sample_in_expectation():
    # Over all ordered pairs of three samples, the first of the pair is chosen whether the two agree or not.
    answers = ["1", "2", "1"]
    pairs = list(itertools.permutations(answers, 2))
    right = sum(equivalent("1", pair[majority(pair)]) for pair in pairs) / len(pairs)
    assert right == pytest.approx(2 / 3)


def test_pass_at_k_is_the_mean_over_all_subsets():
    verdicts = [True, False, False, True, False]
    for k in range(1, 6):
        subsets = list(itertools.combinations(verdicts, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(5, 0, 5) == 0 and pass_at_k(5, 5, 1) == 1
    with pytest.raises(ValueError):
        pass_at_k(5, 2, 6)
