"""scanner.py: one spelling for each thing, digit groups joined, only Unreadable is raised."""

import pytest

from grader.scanner import END, Budget, Unreadable, scan


def kinds(text: str) -> list[str]:
    """Token kinds, with the text of those that have one."""
    *tokens, end, never_taken = scan(text, Budget(10_000))
    assert end.kind == never_taken.kind == END
    return [token.text or token.kind for token in tokens]


@pytest.mark.parametrize("text, tokens", [
    ("x+10", ["x", "+", "10"]),
    (r"\left( \dfrac{1}{2} \right)", ["(", "frac", "{", "1", "}", "{", "2", "}", ")"]),
    (r"$\displaystyle 5\,\text{ cm}$", ["5", "cm"]),
    (r"\frac12", ["frac", "1", "2"]),
    (r"\frac123", ["frac", "1", "2", "3"]),
    ("x²", ["x", "^", "{", "2", "}"]),
    ("−３", ["-", "3"]),
    ("3 × 5 ≤ 7π", ["3", "*", "5", "le", "7", "pi"]),
    ("5\u200e", ["5"]),
    ("listen xy", ["listen", "xy"]),
    ("5cm", ["5", "cm"]),
    ("1st 2nd", ["1", "2"]),
    ("sin x", ["sin", "x"]),
    (r"\\[4pt] 1", ["\\\\", "1"]),
    # Digit groups are joined outside of brackets, or if their comma is written as a group's.
    ("1,234,567", ["1234567"]),
    ("(1,234)", ["(", "1", ",", "234", ")"]),
    (r"(10{,}080)", ["(", "10080", ")"]),
    (r"11,\! 111,\! 100", ["11111100"]),
    ("1,2,345", ["1", ",", "2", ",", "345"]),
    ("1, 234", ["1", ",", "234"]),
    ("0,123", ["0", ",", "123"]),
    ("1234,567", ["1234", ",", "567"]),
    ("1,234.5", ["1234.5"]),
    (r"1 000, 1\,234\,567", ["1000", ",", "1234567"]),
    ("1 234/5, 12 34", ["1", "234", "/", "5", ",", "12", "34"]),
    # Powers of ten, and digits that repeat.
    ("1.5e-3, 2E10", ["1.5e-3", ",", "2e10"]),
    ("e-5", ["e", "-", "5"]),
    (r"1.5 x 10^3", ["1.5", "*", "10", "^", "3"]),
    (r"0.1\overline{6}, 0.\dot3, 0.\dot{1}4\dot{2}", ["0.1(6)", ",", "0.(3)", ",", "0.(142)"]),
    (r"0.1666\ldots, 0.27...", ["0.166(6)", ",", "0.27", "dots"]),
    # Letters in a text are upright: a word, a unit, a function, or one variable.
    (r"\text{12 cm}, 3\mathrm{i}", ["12", "cm", ",", "3", "i"]),
    (r"\text{ or }\operatorname{arccot}", ["or", "arccot"]),
    # Three letters are a product beside other algebra.
    ("6abc", ["6", "a", "b", "c"]), ("nRT/V", ["n", "R", "T", "/", "V"]),
    (r"\sqrt{xyz}", ["sqrt", "{", "x", "y", "z", "}"]),
    ("5 apples", ["5", "apples"]), ("3 cm/min", ["3", "cm", "/", "min"]),
    (r"\textcolor{red}{5}\hspace{1mm}", ["{", "5", "}"]),
    ("x₁ + 2¼ ％", ["x", "_", "{", "1", "}", "+", "2", "frac", "1", "4", "%"]),
])  # fmt: skip
def test_tokens(text, tokens):
    assert kinds(text) == tokens


@pytest.mark.parametrize("text", ["0x10", "x2", "1.2.3", "1e99999", r"\text{open", r"\text",
                                  "7" * 2000])
def test_unreadable(text):
    with pytest.raises(Unreadable):
        scan(text, Budget(10_000))


def test_work_is_counted():
    budget = Budget(50)
    with pytest.raises(Unreadable, match="budget"):
        scan("x + " * 100, budget)
    assert budget.left < 0
