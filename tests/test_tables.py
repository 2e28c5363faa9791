"""tables.py: the tables hold what they say, and nothing twice."""

import pytest

from grader import tables


@pytest.mark.parametrize("spelling, name", [
    ("feet", "foot"), ("ft", "foot"), ("kg", "kg"), ("percent", "%"), ("L", "l"), ("h", "hour"),
])  # fmt: skip
def test_a_unit_has_one_name(spelling, name):
    assert tables.UNITS[spelling] == name


def test_no_spelling_stands_for_two_units():
    spellings = [word for name, others in tables.UNIT_NAMES.items()
                 for word in [name, *others.split()]]
    twice = {word for word in spellings if spellings.count(word) > 1}
    assert not twice - {"pound"}, "a pound of weight and one of money are compared by name"


def test_inverses_go_both_ways():
    assert all(inverse in tables.FUNCTIONS for inverse in tables.INVERSES.values())
    assert tables.INVERSES["ln"] == "exp" and tables.INVERSES["exp"] == "ln"


def test_every_character_becomes_ascii():
    assert all(spelling is None or spelling.isascii() for spelling in tables.UNICODE.values())


def test_words_that_change_a_value_are_no_units():
    assert not tables.NO_UNITS & (tables.UNITS.keys() | tables.IDLE_WORDS)
