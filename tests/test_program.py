"""program.py: where each number of a worked solution comes from, and the problems that are left
unexplained."""

from fractions import Fraction

import pytest

from conftest import BOOKS, worked
from data import Problem
from recipes.arithmetic import numerals
from recipes.program import Unfit, has_step_without_mark, is_fixed, is_percent, program

# -------------------------------------------------------------------------- where numbers come from


def test_the_program_of_a_problem():
    found = program(BOOKS)
    assert found.numbers == (6, 48) and found.ties == ()
    first, second = found.steps
    assert first.operands == (("number", 48), ("number", 6)) and first.shape == ("+", 0, 1)
    assert second.operands == (("result", 0), ("constant", 2))
    assert [(n.text, source) for n, source in found.places[1]][-4:] == [("27", ("result", 1)),
                                                                        ("27", ("result", 1)),
                                                                        ("54", ("result", 0)),
                                                                        ("27", ("result", 1))
                                                                        ]  # fmt: skip


def test_the_program_runs_with_other_numbers():
    assert program(BOOKS).run({})[0] == [54, 27]
    assert program(BOOKS).run({Fraction(48): Fraction(30), Fraction(6): Fraction(4)})[0] == [34, 17]


@pytest.mark.parametrize("question, lines, source", [
    ("A 20% discount on $50?", ["[50*.20=10]"], ("percent", 20, 0, 1)),
    ("A 20% discount on $50?", ["[50*0.8=40]"], ("percent", 20, 1, -1)),
    ("A 20% tip on $50?", ["[50*1.2=60]"], ("percent", 20, 1, 1)),
    ("He runs 5 miles a day. How far in a week?", ["[5*7=35]"], ("constant", 7)),
    ("He has 12 pens, 3/4 are red.", ["[12*3/4=9]"], ("constant", 4)),
])  # fmt: skip
def test_the_source_of_an_operand(question, lines, source):
    assert program(worked(question, *lines)).steps[0].operands[-1] == source


@pytest.mark.parametrize(
    "question, lines, reason",
    [("Ann has 4 pens and 3 cups.", [], "no marks"),
     ("Ann has 4 pens and 3 cups.", ["[4+3=8]"], "a mark is wrong"),
     ("Ann shares 10 pens among 3.", ["[10/3=3.333]"], "a mark is rounded"),
     ("Ann has 4 pens and 3 cups.", ["[4++=7]"], "a mark cannot be read"),
     ("Ann has 4 pens and 3 cups.", ["[4+5=9]"], "a number of the solution comes from nowhere"),
     ("Ann has 4 pens and 3 cups.", ["So 17 it is: [4+3=7]"
                                     ], "a number of the solution comes from nowhere"),
     ("Ann has 4 pens, 3 cups and 9 keys.", ["[4+3=7]"], "a number of the question is never used"),
     ("Ann has 4 pens and 8 cups.", ["So 8 cups - 4 pens = 4.", "[4+8=12]"], "a step has no mark"),
     ("Ann has 5 pens.", ["[5+" + "1" * 21 + "=6]"], "a number is too long"),
     ("Ann has 5 pens. " * 400, ["[5*2=10]"], "too long"), ])  # fmt: skip
def test_a_problem_that_is_not_explained_is_left_with_a_reason(question, lines, reason):
    with pytest.raises(Unfit, match=reason):
        program(worked(question, *lines))


def test_the_answer_must_be_the_last_mark_and_a_chat_is_left():
    with pytest.raises(Unfit, match="the last mark is not the answer"):
        program(Problem("p", "4 and 3?", "4+3 = <<4+3=7>>7\n#### 8", "8"))
    with pytest.raises(Unfit, match="no worked solution"):
        program(Problem("p", "4 and 3?", "", "7"))
    with pytest.raises(Unfit, match="no worked solution"):
        program(Problem("p", "", "7", "7", messages=({"role": "user", "content": ""},)))


@pytest.mark.parametrize("text, fixed", [("Ann is 5 years old", False), ("the 5th pen", True),
                                         ("at 5:30", True), ("at 5 pm", True), ("5 o'clock", True),
                                         ("3/8 of it", True), ("2 1/2 cups", True),
                                         ("2-1/2 cups", True), ("in 1999", True), ("$1999", False),
                                         ("1 pen", True), ("7 days a week", True),
                                         ("24 hours", True), ("24 pens", False), ("the 90s", True),
                                         ("2 million", True), ("A4", True), ("an 8 hour day", True),
                                         ("a 6 hour day", False), ("5kg", False),
                                         ("2.50 dollars", False), ("0 pens", True), ])  # fmt: skip
def test_some_numbers_of_a_question_keep_their_value(text, fixed):
    assert is_fixed(text, numerals(text)[0]) is fixed


def test_percent_is_a_sign_or_a_word():
    for text, verdict in (("20% off", True), ("20 percent off", True), ("20 off", False)):
        assert is_percent(text, numerals(text)[0]) is verdict


@pytest.mark.parametrize("text, verdict", [("4+5 = <<4+5=9>>9 pens", False),
                                           ("4 pens + 5 pens = $<<4+5=9>>9", False),
                                           ("4 + 5 = 9", True),
                                           ("She has 4 pens - 2 pens = 2 pens", True),
                                           ("x = 5", False), ("<<4+5=9>>9 = 9", False), ("", False),
                                           ("<<4+5=9>>9 and 9 * 2 = 18", True), ])  # fmt: skip
def test_a_step_without_a_mark_is_seen(text, verdict):
    assert has_step_without_mark(text) is verdict
