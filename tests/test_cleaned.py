"""cleaned.py as tables: answers whose spelling differs have one cleaned text, others keep apart."""

import pytest

from grader.cleaned import normalise, same_words, without_period


@pytest.mark.parametrize("text, plain", [
    (r"$\left( 3, \dfrac{\pi}{2} \right)$", r"(3,\frac{\pi}{2})"),
    (r"10{,}080", "10080"), (r"10,\!080", "10080"), (r"1,234,567.5", "1234567.5"),
    (r"1, 234", "1, 234"), (r"(1,234)", "(1,234)"), (r"1,2,345", "1,2,345"), (r"0,100", "0,100"),
    (r"\text{Evelyn}", "Evelyn"), (r"1 3/4", "1 3/4"), (r"２０２５", "2025"), ("−7.", "-7"),
    (r"\leftarrow", r"\leftarrow"),
])  # fmt: skip
def test_normalise(text, plain):
    assert normalise(text) == plain
    assert normalise(plain) == plain


def test_three_points_are_no_period():
    assert without_period("5.") == "5" and without_period("0.333...") == "0.333..."


def test_words_differ_in_capitals_and_points_alone():
    assert same_words("4:30 p.m.", "4:30 PM") and not same_words("4:30 p.m.", "4:30 a.m.")
    assert not same_words("{x}", "{x}"), "mathematics is not compared as words"
