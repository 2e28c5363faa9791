"""expressions.py as a table: texts and the trees of their expressions."""

import pytest

from conftest import n, plain
from grader.expressions import ExpressionReader
from grader.latex import parse
from grader.scanner import END, Budget, Unreadable, scan


def read(text: str) -> tuple:
    budget = Budget(10_000)
    reader = ExpressionReader(scan(text, budget), budget)
    tree = reader.sum()
    reader.expect(END)
    return tree


X, Y = ("name", "x"), ("name", "y")


@pytest.mark.parametrize("text, expression", [
    ("5", n(5)), ("-5", ("negative", n(5))), (".5", n("1/2")), ("1,234,567.5", n("1234567.5")),
    (r"10{,}080", n(10080)), (r"11,\! 111,\! 100", n(11111100)), ("２５", n(25)), ("$7$", n(7)),
    (r"0.1\overline{6}", n("1/6")), ("1/2", ("quotient", n(1), n(2))),
    (r"\frac12", ("quotient", n(1), n(2))), (r"\frac 3{45}", ("quotient", n(3), n(45))),
    (r"(\frac12)x", ("product", [("quotient", n(1), n(2)), X])),
    (r"\dfrac{x}y", ("quotient", X, Y)), ("x/2y", ("product", [("quotient", X, n(2)), Y])),
    ("1 3/4", ("sum", [n(1), ("quotient", n(3), n(4))])),
    (r"1\frac34", ("sum", [n(1), ("quotient", n(3), n(4))])),
    (r"2\frac73", ("product", [n(2), ("quotient", n(7), n(3))])),
    (r"2\frac{x}3", ("product", [n(2), ("quotient", X, n(3))])), ("xy", ("product", [X, Y])),
    ("2x", ("product", [n(2), X])), (r"2 \cdot x", ("product", [n(2), X])),
    ("x^2", ("power", X, n(2))), ("x²", ("power", X, n(2))),
    ("x^{-2}", ("power", X, ("negative", n(2)))), ("-x^2", ("negative", ("power", X, n(2)))),
    ("2^10", ("power", n(2), n(10))), (r"\sqrt2", ("root", n(2), n(2))),
    (r"\sqrt[3]{x}", ("root", n(3), X)), ("√12", ("root", n(2), n(12))),
    (r"3\sqrt{2}/2", ("quotient", ("product", [n(3), ("root", n(2), n(2))]), n(2))),
    ("|x|", ("call", "abs", [X])), ("5!", ("call", "factorial", [n(5)])),
    (r"\sin x", ("call", "sin", [X])), (r"\sin^2 x", ("power", ("call", "sin", [X]), n(2))),
    (r"\sin^{-1} x", ("call", "arcsin", [X])), (r"\sin xy", ("call", "sin", [("product", [X, Y])])),
    (r"\log_2 x", ("quotient", ("call", "ln", [X]), ("call", "ln", [n(2)]))),
    ("x_1", ("name", "x_1")), (r"x_{12}", ("name", "x_12")),
    (r"\binom52", ("call", "binomial", [n(5), n(2)])), ("e^{x}", ("power", ("name", "e"), X)),
    # A function takes the factors up to the next function, bracket or sum.
    (r"\sin x(1-x)", ("product", [("call", "sin", [X]), ("sum", [n(1), ("negative", X)])])),
    (r"\sin xe^y", ("product", [("call", "sin", [X]), ("power", ("name", "e"), Y)])),
    (r"\sin{x}y", ("product", [("call", "sin", [X]), Y])),
    (r"\cos 2\pi/3", ("call", "cos", [("quotient", ("product", [n(2), ("name", "pi")]), n(3))])),
    (r"\sin x/3", ("quotient", ("call", "sin", [X]), n(3))),
    (r"\coth^{-1} x", ("call", "arcoth", [X])), (r"\ln^{-1} x", ("power", ("name", "e"), X)),
    (r"{1 \over x}", ("quotient", n(1), X)), (r"{x \choose 2}", ("call", "binomial", [X, n(2)])),
    ("x'", ("name", "x'")), ("x^*", ("name", "x*")), ("5 million", ("product", [n(5), n(10**6)])),
    ("1.5e3", n(1500)), (r"\lfloor x \rfloor", ("call", "floor", [X])),
    (r"\gcd(4, 6)", ("call", "gcd", [n(4), n(6)])),
])  # fmt: skip
def test_expressions(text, expression):
    assert plain(read(text)) == expression
    assert plain(parse(text, Budget(10_000))) == ("value", expression, None)


@pytest.mark.parametrize("text, decimals, significant", [
    ("5", None, 0), ("0.050", 3, 2), ("1,234.5", 1, 5), (r"0.\overline{3}", None, 0),
])  # fmt: skip
def test_a_number_keeps_how_it_is_written(text, decimals, significant):
    assert read(text)[2:] == (decimals, significant)


def test_each_plus_or_minus_has_a_number():
    assert plain(read(r"x \pm 1")) == ("sum", [X, ("either", 0, n(1))])
    assert plain(read(r"x \mp 1")) == ("sum", [X, ("neither", 0, n(1))])


def test_degrees_are_an_angle_inside_a_function_and_a_unit_elsewhere():
    angle = ("product", [n(30), ("quotient", ("name", "pi"), n(180))])
    assert plain(read(r"\sin 30^\circ")) == ("call", "sin", [angle])
    assert plain(read(r"30^\circ")) == n(30)


@pytest.mark.parametrize("text", ["", "x = 1", "1, 2", "1 2", r"7 - \text{that}", r"\gcd(4"])
def test_what_is_no_expression(text):
    with pytest.raises(Unreadable):
        read(text)
