"""latex.py as tables: texts and their trees, and texts that have none."""

import pytest

from conftest import n, plain
from grader.expressions import DEEPEST_NESTING
from grader.latex import parse
from grader.scanner import Budget, Unreadable


def read(text: str) -> tuple:
    return parse(text, Budget(10_000))


X, Y = ("name", "x"), ("name", "y")


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
    (r"\text{Evelyn}", ("words", "evelyn", "")), ("Evelyn", ("words", "evelyn", "Evelyn")),
    (r"\text{(C)}", value(("name", "C"))), ("(C)", value(("name", "C"))),
    (r"x \pm 1", ("list", [value(("sum", [X, n(1)])), value(("sum", [X, ("negative", n(1))]))])),
    ("x > 1 and x < y", ("all", [("relation", [">"], [value(X), value(n(1))]),
                                 ("relation", ["<"], [value(X), value(Y)])])),
    ("x < 1 or x > y", ("any", [("relation", ["<"], [value(X), value(n(1))]),
                                ("relation", [">"], [value(X), value(Y)])])),
    ("f(2) = x", ("relation", ["="], [value(("name", "f(2)")), value(X)])),
    ("1 : x", ("ratio", [value(n(1)), value(X)])), ("5 R 2", ("remainder", [value(n(5)),
                                                                           value(n(2))])),
    (r"\text{The answer is } 1", value(n(1))), ("x where x > 1", value(X)),
    (r"\begin{cases} 1 & x \\ 2 & \text{if } y \end{cases}",
     ("cases", [("row", [value(n(1)), value(X)]), ("row", [value(n(2)), value(Y)])])),
])  # fmt: skip
def test_answers(text, tree):
    assert plain(read(text)) == tree


@pytest.mark.parametrize("text", [
    "", "(", "1 +", "+ +", r"\frac{1}", r"\sqrt", r"x^", "1 2", "0x10", "1_000", "2.0.1",
    r"\unknown{5}", "5 # 3", "4:05", "2 if even", "5 below zero", "5 or x and y > 1", "(1, 2",
    r"\gcd(\pm 4, 6)", r"\text{open",
    r"\begin{pmatrix} 1", r"\begin{cases} 1", r"\sqrt12", "__import__('os')", "x2",
    "1" * 2000,
])  # fmt: skip
def test_unreadable(text):
    with pytest.raises(Unreadable):
        read(text)


def test_nesting_is_bounded():
    assert plain(read("(" * 10 + "x" + ")" * 10)) == value(X)
    with pytest.raises(Unreadable, match="deep"):
        read("-(" * DEEPEST_NESTING + "x" + ")" * DEEPEST_NESTING)
