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
    (r"$\displaystyle 5\,\text{ cm}$", ["5", " cm"]),
    (r"\frac12", ["frac", "1", "2"]),
    (r"\frac123", ["frac", "1", "2", "3"]),
    ("x²", ["x", "^", "{", "2", "}"]),
    ("−３", ["-", "3"]),
    ("3 × 5 ≤ 7π", ["3", "*", "5", "le", "7", "pi"]),
    ("5\u200e", ["5"]),
    ("listen xy", ["listen", "x", "y"]),
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
])  # fmt: skip
def test_tokens(text, tokens):
    assert kinds(text) == tokens


@pytest.mark.parametrize("text", ["0x10", "1e5", "1.2.3", r"\text{open", r"\text", "7" * 2000])
def test_unreadable(text):
    with pytest.raises(Unreadable):
        scan(text, Budget(10_000))


def test_work_is_counted():
    budget = Budget(50)
    with pytest.raises(Unreadable, match="budget"):
        scan("x + " * 100, budget)
    assert budget.left < 0
