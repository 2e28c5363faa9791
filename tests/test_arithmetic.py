"""The marks `<<a=b>>` of worked solutions: found, read, computed exactly, and never run."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from recipes.arithmetic import (Mark, apply, check, compute, contains, tree_value,  # fmt: skip
                                expression, marks, numerals, tokens, tree, write)


def only(text: str) -> Mark:
    (mark,) = marks(text)
    return mark


@pytest.mark.parametrize("expression, value", [("48/2", 24), ("2+3*4", 14), ("(2+3)*4", 20),
                                               ("10-3-2", 5), ("12/3/2", 2), ("-5+2", -3),
                                               ("2*-3", -6), (".5*60", 30), ("25%*80", 20),
                                               ("200+10%", Fraction(2001, 10)), ("1,200*2", 2400),
                                               ("$5+$7", 12), ("3 x 4", 12),
                                               ("6÷4", Fraction(3, 2)), ("2(3+4)", 14),
                                               ("[1+2]*3", 9), ("0.1+0.2", Fraction(3, 10)),
                                               ("7", 7), ("1/3", Fraction(1, 3)), ("5.", 5),
                                               ("--4", 4), ("2 − 5", -3), ])  # fmt: skip
def test_an_expression_has_its_exact_value(expression, value):
    assert compute(expression) == value


@pytest.mark.parametrize("expression", [
    "", "1+", "*2", "1/0", "2/(3-3)", "(1", "1)", "1 2", "1..2", ".", "2**3", "2^3", "a+1",
    "__import__('os')", "9//2", "1e9", "9" * 21, "1+" * 150 + "1", "(" * 60 + "1" + ")" * 60,
    "-" * 60 + "1", "()",
])  # fmt: skip
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(ValueError):
        compute(expression)


@pytest.mark.parametrize("text, verdict", [("<<48/2=24>>", True), ("<<48/2=25>>", False),
                                           ("<<10/3=3.333>>", True), ("<<10/3=3.33>>", False),
                                           ("<<2*3=6=6>>", True), ("<<2*3=7=6>>", False),
                                           ("<<x+1=3>>", None), ("<<3=y>>", None),
                                           ("<<100*20%=$20>>", True), ])  # fmt: skip
def test_a_mark_is_right_wrong_or_unreadable(text, verdict):
    assert check(only(text)) is verdict


@pytest.mark.parametrize(
    "expression, shape, operands", [("3*(4+5)", ("*", 0, ("+", 1, 2)), [3, 4, 5]),
                                    ("10-3-2", ("-", ("-", 0, 1), 2), [10, 3, 2]), ("7", 0, [7]),
                                    ("-5", ("-", Fraction(0), 0), [5]),
                                    ("25%*80", ("*", ("/", 0, Fraction(100)), 1), [25, 80]),
                                    ("2(3+4)", ("*", 0, ("+", 1, 2)), [2, 3, 4]),
                                    ("1/0", ("/", 0, 1), [1, 0]), ])  # fmt: skip
def test_an_expression_is_kept_as_a_tree(expression, shape, operands):
    assert tree(expression) == (shape, operands)


@pytest.mark.parametrize("expression", ["1+", "1 2", "a", "(" * 60 + "1"])
def test_what_is_no_expression_has_no_tree(expression):
    with pytest.raises(ValueError):
        tree(expression)


def test_one_operation():
    assert [apply(sign, Fraction(6), Fraction(4)) for sign in "+-*/"] == [10, 2, 24, Fraction(3, 2)]
    with pytest.raises(ValueError):
        apply("/", Fraction(6), Fraction(0))


def test_marks_are_found_in_order_and_with_their_places():
    text = "48/2 = <<48/2=24>>24, then 48+24 = <<48+24=72>>72."
    assert [(mark.left, mark.value) for mark in marks(text)] == [("48/2", "24"), ("48+24", "72")]
    assert [text[mark.start : mark.end] for mark in marks(text)] == ["<<48/2=24>>", "<<48+24=72>>"]


@pytest.mark.parametrize(
    "text",
    ["", "no mark", "<<no equals>>", "<<=5>>", "<<5=>>", "<<1+1=2", ">>1+1=2<<", "<" * 5000])
def test_what_is_no_mark_is_passed_over(text):
    assert marks(text) == []


def test_a_mark_that_is_never_closed_does_not_hide_the_next():
    assert only("<< broken <<1+1=2>>").left == "1+1"


def test_tokens_keep_a_number_as_it_is_written():
    assert tokens("12.50*(3 + 4%)") == ["12.50", "*", "(", "3", "+", "4", "%", ")"]


@pytest.mark.skipif(not os.environ.get("MATHFT_DATA"),
                    reason="MATHFT_DATA names no folder of real sets")
def test_all_published_marks_are_right_but_two_that_use_another_division():
    found = []
    for split in ("train", "test"):
        lines = (Path(os.environ["MATHFT_DATA"]) / "gsm8k" /
                 f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        found += [mark for line in lines for mark in marks(json.loads(line)["answer"])]
    assert len(found) == 27998
    assert [mark.left for mark in found if not check(mark)] == ["560//10", "180//3"]


@pytest.mark.parametrize(
    "text, found", [("48 clips, 1,200.50 of 5,30 and .5.", ["48", "1,200.50", "5", "30", ".5"]),
                    ("1,2345 at 5:30", ["1", "2345", "5", "30"]),
                    ("$5% -3 3/8 A4", ["5", "3", "3", "8", "4"]), ("1.2.3", ["1.2", ".3"]),
                    ("", []), (". , 5.", ["5"]), ("٣²", []), ])  # fmt: skip
def test_numbers_are_found_in_a_text(text, found):
    assert [n.text for n in numerals(text)] == found
    assert all(text[n.start:n.end] == n.text and n.value == Fraction(n.text.replace(",", ""))
               for n in numerals(text))


def test_a_number_of_a_text_may_be_too_long():
    with pytest.raises(ValueError):
        numerals("9" * 5000)


@pytest.mark.parametrize("value, like, text",
                         [(24, "7", "24"), (1200, "3,400", "1,200"), (900, "3,400", "900"),
                          (1200, "900", "1200"), (Fraction(5, 2), "1.25", "2.50"),
                          (3, "2.50", "3.00"), (3, "1.5", "3"), (Fraction(2, 5), ".20", ".40"),
                          (Fraction(2, 5), "0.2", "0.4"), (-3, "3", "-3"),
                          (Fraction(1, 8), "1", "0.125"), (0, "5", "0"), ])  # fmt: skip
def test_a_number_is_written_like_another(value, like, text):
    assert write(Fraction(value), like) == text


def test_what_has_no_short_decimal_is_not_written():
    with pytest.raises(ValueError):
        write(Fraction(1, 3), "1")


@pytest.mark.parametrize("text",
                         ["3*(4+5)", "(10-3)*2", "10-(3-2)", "12/3/2", "12/(3*2)", "5+4*3", "7"])
def test_a_tree_is_written_with_the_brackets_it_needs(text):
    shape, operands = tree(text)
    trail = []
    value = tree_value(shape, operands, trail)
    assert compute(expression(shape, operands)) == value == compute(text)
    assert trail[-1:] == [compute(text)][:len(operands) > 1] and contains(
        shape, 0) and not contains(shape, len(operands))
