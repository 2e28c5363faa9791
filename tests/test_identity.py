"""identity.py: functions against the standard library, identities that hold and near misses."""

import cmath
import math

import pytest

from grader.exact import Algebra, Evaluator, Value
from grader.identity import PI_DIGITS, real_value, same
from grader.latex import parse
from grader.scanner import Budget


def value(text: str) -> Value:
    budget = Budget(10_000)
    return Evaluator(Algebra(budget)).value(parse(text, budget)[1])


def equal(a: str, b: str) -> bool:
    return same(value(a), value(b), Algebra(Budget(10_000)))


@pytest.mark.parametrize("text, number", [
    (r"\sqrt2", math.sqrt(2)), (r"\pi", math.pi), ("e", math.e), ("e^3", math.e**3),
    (r"\ln 5", math.log(5)), (r"\log 5", math.log10(5)), (r"\log_2 7", math.log2(7)),
    (r"\sin 2", math.sin(2)), (r"\cos 100", math.cos(100)), (r"\tan 1", math.tan(1)),
    (r"\cot 1", 1 / math.tan(1)), (r"\sec 1", 1 / math.cos(1)), (r"\csc 1", 1 / math.sin(1)),
    (r"\arcsin(1/3)", math.asin(1 / 3)), (r"\arccos(1/3)", math.acos(1 / 3)),
    (r"\arctan 5", math.atan(5)), (r"\sinh 2", math.sinh(2)), (r"\cosh 2", math.cosh(2)),
    (r"\tanh 2", math.tanh(2)), (r"2^{\sqrt2}", 2**2**0.5),
    (r"\sqrt{1 + \sqrt2}", math.sqrt(1 + math.sqrt(2))), (r"\sqrt[5]{1+e}", (1 + math.e)**0.2),
    (r"\sin 30^\circ", 0.5), (r"|1-\pi|", math.pi - 1), (r"\lfloor 10\pi \rfloor", 31),
    (r"\lceil \sqrt2 \rceil", 2), (r"(-1)^i", cmath.exp(-math.pi).real),
    (r"i^i", cmath.exp(-math.pi / 2).real),
])  # fmt: skip
def test_functions(text, number):
    found = real_value(value(text), Budget(10_000))
    assert float(found) == pytest.approx(number, rel=1e-14)


def test_digits_of_pi():
    """Machin: pi = 16 arctan(1/5) - 4 arctan(1/239), in integers of 70 digits."""
    unit = 10**70

    def arctan_of_inverse(x: int) -> int:
        total, term, n = 0, unit // x, 1
        while term:
            total += term // n if n % 4 == 1 else -(term // n)
            term, n = term // (x * x), n + 2
        return total

    machin = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
    assert abs(int(str(PI_DIGITS).replace(".", "")[:61]) - machin // 10**10) <= 1


@pytest.mark.parametrize("a, b", [
    (r"\sin^2 x + \cos^2 x", "1"), (r"\sin 2x", r"2 \sin x \cos x"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"), (r"2^{n+1}", r"2 \cdot 2^n"),
    (r"\sqrt{3 + 2\sqrt2}", r"1 + \sqrt2"), (r"\sqrt{x^2}", "|x|"), (r"e^{i\pi}", "-1"),
    (r"\cos \frac{\pi}{3}", r"\frac12"), (r"\ln(e^2)", "2"), (r"\log_2 8", "3"),
    (r"\ln 6", r"\ln 2 + \ln 3"), (r"\arctan 1", r"\frac{\pi}{4}"), (r"\sin \pi", "0"),
    (r"\frac{e^x - e^{-x}}{2}", r"\sinh x"), (r"\sqrt[3]{2 + \sqrt5} + \sqrt[3]{2 - \sqrt5}", "1"),
    (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"), (r"\sqrt{1018081}", "1009"),
    (r"\frac{1}{x+\sqrt{x^2+1}}", r"\sqrt{x^2+1} - x"), (r"(2^x)^2", r"4^x"),
])  # fmt: skip
def test_identities(a, b):
    assert equal(a, b) and equal(b, a)


@pytest.mark.parametrize("a, b", [
    (r"\sqrt{x^2}", "x"), (r"\sin x", "x"), (r"2^n", "3^n"), (r"e^{-100}", r"e^{-101}"),
    (r"e^{-1000}", "0"), (r"\ln x^2", r"2 \ln x"), (r"e^{\pi\sqrt{163}}", "262537412640768744"),
    (r"\sin(x)", r"\sin(x + 10^{-20})"), (r"2^{100n}", r"2^{100n} + 10^{-30}"),
    (r"\sqrt{1018081}", r"\sqrt{1018082}"), (r"\arcsin(\sin x)", "x + 1"),
    (r"\frac{\sin x}{\sin x - \sin x + 1}", r"\cos x"),
])  # fmt: skip
def test_near_identities(a, b):
    assert not equal(a, b) and not equal(b, a)


def test_what_cannot_be_computed_is_not_equal():
    assert not equal(r"\ln(\sin^2 x + \cos^2 x - 1)", "0")
    assert not equal(r"\overline{x}", r"\overline{y}")
    assert equal(r"\overline{x} + 1", r"1 + \overline{x}")


def test_a_value_with_a_variable_is_no_number():
    assert real_value(value(r"\sin x"), Budget(10_000)) is None
    assert real_value(value("1 + i"), Budget(10_000)) is None
