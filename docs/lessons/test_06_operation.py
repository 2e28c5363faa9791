"""Lesson 6: mini-gsm-plus knows a new operation, `double then lose`."""

import re

import synthetic
from synthetic import PLUS_EVENTS, story

KIND = "double then lose"


def stories() -> list:
    return [told for split in synthetic.SPLITS for index in range(400)
            if KIND in (told := story(split, index, dataset="mini-gsm-plus")).key]


def test_it_occurs_and_has_two_calculations():
    assert len(PLUS_EVENTS[KIND].lines) == 2 and len(PLUS_EVENTS[KIND].sentences) >= 2
    assert len(stories()) >= 40


def test_its_sentences_say_what_its_solution_calculates():
    """A sentence holds the number n that is lost: x becomes 2 x - n."""
    for told in stories():
        place = [part for part in told.key if isinstance(part, str)].index(KIND)
        doubled, lost = told.steps[place]
        assert doubled[1:] == ("x", "*", 2) and lost[1:3] == ("y", "-")
        assert str(lost[3]) in re.findall(r"\d+", told.sentences[place + 1])


def test_all_numbers_are_whole_and_within_bounds():
    for told in stories():
        for *_, value in synthetic.calculate(told.start, told.steps):
            assert 1 <= value <= told.largest
