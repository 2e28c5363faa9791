"""latex.py as a table: from text to tree, and what is no tree at all."""

from fractions import Fraction

import pytest

from grader.latex import DEEPEST, parse
from grader.scanner import Budget, Unreadable


def read(text: str) -> tuple:
    return parse(text, Budget(10_000))


def n(value) -> tuple:
    """A number as the tree has it, digits behind its point and significant digits left out."""
    return ("number", Fraction(value))


def plain(tree):
    """The tree without what a number says of its spelling."""
    if isinstance(tree, tuple) and tree[:1] == ("number",):
        return tree[:2]
    return type(tree)(map(plain, tree)) if isinstance(tree, (tuple, list)) else tree


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
    (r"\lfloor x \rfloor", ("call", "floor", [X])), (r"\gcd(4, 6)", ("call", "gcd", [n(4), n(6)])),
])  # fmt: skip
def test_expressions(text, expression):
    assert plain(read(text)) == ("value", expression, None)


@pytest.mark.parametrize("text, unit", [
    ("5 cm", "cm"), (r"5\text{ cm}", "cm"), (r"5\,\mathrm{cm}", "cm"),
    (r"5\mbox{ inches}^2", "inch^2"), ("5 square inches", "inch^2"), (r"\$5", "dollar"),
    ("5 dollars", "dollar"), (r"5^\circ", "degree"), ("5°", "degree"), ("5 degrees", "degree"),
    (r"5\%", "%"), ("5 apples", "apple"), (r"5^{\text{th}}", None), ("5th", None), ("5", None),
])  # fmt: skip
def test_units(text, unit):
    assert plain(read(text)) == ("value", n(5), unit)


def value(expression: tuple) -> tuple:
    return ("value", expression, None)


@pytest.mark.parametrize("text, tree", [
    ("(1, x)", ("tuple", "()", [value(n(1)), value(X)])),
    (r"\left[1, x\right)", ("tuple", "[)", [value(n(1)), value(X)])),
    (r"\{1, x\}", ("set", [value(n(1)), value(X)])), (r"\emptyset", ("set", [])),
    ("1, x", ("list", [value(n(1)), value(X)])), ("1 and x", ("list", [value(n(1)), value(X)])),
    (r"1 \text{ or } x", ("list", [value(n(1)), value(X)])),
    ("x = 1", ("relation", ["="], [value(X), value(n(1))])),
    (r"1 < x \le y", ("relation", ["<", "<="], [value(n(1)), value(X), value(Y)])),
    (r"x \in \{1\}", ("relation", ["in"], [value(X), ("set", [value(n(1))])])),
    ("12_5", ("based", "12", 5)), ("-12_{5}", ("based", "-12", 5)),
    (r"\{1\} \cup \{x\}", ("union", [("set", [value(n(1))]), ("set", [value(X)])])),
    (r"\begin{pmatrix} 1 & x \\ y & 1 \end{pmatrix}", ("matrix", [[n(1), X], [Y, n(1)]])),
    (r"\text{Evelyn}", ("words", "evelyn")), ("Evelyn", ("words", "evelyn")),
    (r"\text{(C)}", value(("name", "C"))), ("(C)", value(("name", "C"))),
    (r"x \pm 1", ("values", ("sum", [X, ("either", n(1))]), None)),
])  # fmt: skip
def test_answers(text, tree):
    assert plain(read(text)) == tree


@pytest.mark.parametrize("text", [
    "", "(", "1 +", "+ +", r"\frac{1}", r"\sqrt", r"x^", "1 2", "0x10", "1e5", "1_000", "2.0.1",
    r"\unknown{5}", "5 # 3", "4:30", "(1, 2", r"\gcd(\pm 4, 6)", r"\text{open",
    r"\begin{pmatrix} 1", r"\begin{cases} 1 \end{cases}", r"\sqrt12", "__import__('os')", "x2",
    "1" * 2000,
])  # fmt: skip
def test_unreadable(text):
    with pytest.raises(Unreadable):
        read(text)


def test_nesting_is_bounded():
    assert plain(read("(" * 10 + "x" + ")" * 10)) == value(X)
    with pytest.raises(Unreadable, match="deep"):
        read("-(" * DEEPEST + "x" + ")" * DEEPEST)
