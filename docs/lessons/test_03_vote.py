"""Lesson 3: what every vote must keep to, whatever the model writes."""

import itertools

import pytest

import paper_vote
from answers import equivalent

TEXTS = ("18", "18.0", "20", "1/2")


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_when_all_agree_the_vote_is_what_they_say(rounds):
    for text in TEXTS:
        assert equivalent(text, paper_vote.vote([text] * rounds))


def test_two_rounds_elect_the_same_in_either_order():
    for pair in itertools.product(TEXTS, repeat=2):
        elected = paper_vote.vote(list(pair))
        assert any(equivalent(text, elected) for text in pair)
        assert equivalent(elected, paper_vote.vote(list(pair[::-1])))


def test_votes_are_counted_by_value():
    assert equivalent("18", paper_vote.vote(["20", "18", "18.0"]))
    assert equivalent("1/2", paper_vote.vote(["3", "0.5", "1/2"]))


def test_accuracies():
    assert [paper_vote.accuracy(rounds) for rounds in (1, 2, 3)] == [0.75, 0.75, 1.0]
