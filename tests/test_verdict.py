"""verdict.py: text, trees and words, in this order."""

import pytest

from grader.verdict import BUDGET, read, verdict


@pytest.mark.parametrize("gold, answer, equal", [
    ("$5$", "5.", True),  # by text
    (r"\frac12", "0.5", True), (r"\frac12", "0.6", False),  # by trees
    ("4:30 p.m.", "4:30 PM", True), ("4:05 p.m.", "4:5 PM", False),  # by words
])  # fmt: skip
def test_verdict(gold, answer, equal):
    assert verdict(gold, answer)[0] is verdict(answer, gold)[0] is equal


def test_steps_are_bounded_and_equal_texts_cost_none():
    assert verdict("x+y", "x + y") == (True, 0)
    assert verdict("(x+y+z)^{200}", "x") == (False, BUDGET)
    assert 0 < verdict("(x+y)^9", "x")[1] < BUDGET


def test_reading_is_kept_but_not_without_bound():
    assert read("x+1") is read("x+1") and read.cache_info().maxsize is not None
    assert read("4:05")[0] is None
