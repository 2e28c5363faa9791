"""solve.py as a table: inequalities in one variable and the intervals that they say."""

import pytest

from grader.compare import Comparison
from grader.exact import Algebra
from grader.latex import parse
from grader.scanner import Budget
from grader.solve import solved


@pytest.mark.parametrize("inequality, interval", [
    ("2x > 6", r"(3,\infty)"), ("-2x > 6", r"(-\infty,-3)"), (r"3 - x \le 1", r"[2,\infty)"),
    (r"|x| < 3", "(-3,3)"), (r"|x| \ge 3", r"(-\infty,-3]\cup[3,\infty)"),
    (r"|2x - 1| \le 3", "[-1,2]"), ("2 > |x + 1|", "(-3,1)"), ("-1 < 2x + 1 < 5", "(-1,2)"),
    ("x^2 < 4", "(-2,2)"), (r"x^2 - x \ge 2", r"(-\infty,-1]\cup[2,\infty)"),
    ("4 - x^2 > 0", "(-2,2)"), ("x^2 < 2", r"(-\sqrt2,\sqrt2)"),
    (r"x^2 > 4 \text{ and } x > 0", r"(2,\infty)"), (r"\{x : x^2 < 4\}", "(-2,2)"),
])  # fmt: skip
def test_solved_inequalities_are_their_intervals(inequality, interval):
    budget = Budget(10_000)
    trees = [parse(text, budget) for text in (inequality, interval)]
    assert Comparison(budget).equal(*trees) and Comparison(budget).equal(*trees[::-1])


@pytest.mark.parametrize("text", [
    "x > 2", "x + y > 2", "x^3 > 8", r"\sin x < 1", "x^2 > -1", r"|x^2| > |x|", r"x^2 \ne 4",
    "2x = 10", "0 > 1",
])  # fmt: skip
def test_what_is_no_such_inequality_stays(text):
    tree = parse(text, Budget(10_000))
    assert solved(tree, Algebra(Budget(10_000))) is tree
