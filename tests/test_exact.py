"""exact.py: values have one form, roots of primes are independent, and every size is bounded."""

from fractions import Fraction

import pytest

from grader.exact import Algebra, Evaluator, Value
from grader.latex import parse
from grader.scanner import Budget, Unreadable


def value(text: str, steps: int = 10_000) -> Value:
    budget = Budget(steps)
    return Evaluator(Algebra(budget)).value(parse(text, budget)[1])


@pytest.mark.parametrize("text, rational", [
    ("2 + 3 \\cdot 4", 14), ("1/3 + 1/6", "1/2"), (r"2^{10}", 1024), (r"2^{-3}", "1/8"),
    (r"\sqrt{49}", 7), (r"8^{2/3}", 4), (r"\sqrt[3]{-27}", -3), (r"\sqrt{2} \cdot \sqrt{8}", 4),
    (r"(\sqrt{3})^4", 9), ("i^2", -1), (r"\sqrt{-4} \cdot i", -2), ("5!", 120),
    (r"\binom{6}{2}", 15), (r"\gcd(12, 18)", 6), (r"\max(2, 5/2)", "5/2"),
    (r"\lfloor -5/2 \rfloor", -3), ("|-3|", 3), ("x - x", 0), (r"\frac{\sqrt{12}}{2\sqrt{3}}", 1),
    (r"\ln 1", 0), ("1^{1000000}", 1), (r"(-1)^{1000001}", -1), ("0^5", 0),
])  # fmt: skip
def test_rational_values(text, rational):
    assert value(text).rational == Fraction(rational)


@pytest.mark.parametrize("texts", [
    (r"\frac{1}{\sqrt3}", r"\frac{\sqrt3}{3}", r"3^{-1/2}", r"\sqrt{1/3}"),
    (r"\sqrt{12}", r"2\sqrt{3}", r"\sqrt{2}\sqrt{6}", r"12^{1/2}"),
    (r"\sqrt[4]{4}", r"\sqrt2", r"2^{0.5}"), ("(x+1)(x+2)", "x^2 + 3x + 2", "(x+1)^2 + x + 1"),
    (r"x\sqrt{x}", "x^{3/2}"), (r"\frac{2}{1+i} \cdot (1+i)", "2"), (r"\sqrt{\pi^2}", r"\pi"),
    (r"\sin(x + x)", r"\sin 2x"),
])  # fmt: skip
def test_equal_values_have_equal_cross_products(texts):
    algebra = Algebra(Budget(10_000))
    first, *others = map(value, texts)
    for other in others:
        assert algebra.times(first.num, other.den) == algebra.times(other.num, first.den)


def test_roots_of_primes_are_independent():
    """2^(1/2), 3^(1/2), 2^(1/3) and their products stay apart: none is a sum of the others."""
    total = value(r"\sqrt2 + \sqrt3 + \sqrt6 + \sqrt[3]{2} + 1")
    assert len(total.num) == 5


def test_a_root_of_a_variable_squared_stays():
    assert value(r"\sqrt{x^2}").key() != value("x").key()


@pytest.mark.parametrize("text", [
    "1/0", "0^0", "0^{-1}", r"\frac{x}{x-x}", "1000!", r"\binom{100000}{5}", r"10^{100000}",
    r"2^{2^{2^{2^{2^2}}}}", r"(x+y+z)^{200}", "x^{9999999}y" + "(x+1)" * 200,
])  # fmt: skip
def test_what_has_no_value_or_too_large_a_one(text):
    with pytest.raises(Unreadable):
        value(text)


def test_work_is_counted():
    with pytest.raises(Unreadable, match="budget"):
        value("(x+1)^{30}", steps=300)
