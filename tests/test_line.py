"""line.py as tables: subsets of the real line that are equal, and that are not."""

import pytest

from grader.exact import Algebra
from grader.latex import parse
from grader.line import same_on_the_line
from grader.scanner import Budget

SETS = [
    (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{0\}", r"x<0 or x>0", r"x \ne 0"),
    (r"[1,3)", r"[1,2]\cup(2,3)", r"x\ge1 and x<3", r"(0,3)\setminus(0,1)"),
    (r"(1,3)", r"x>1, x<3"), (r"\{1\}\cup[2,\sqrt5]", r"[2,5^{1/2}]\cup\{1\}"),
    (r"\emptyset", r"x<1 and x>3", r"x<1 and x>1"), (r"\mathbb{R}", r"x\le1 or x\ge1"),
    (r"[1,2)\cup(2,3)",), (r"[1,3]",), (r"\{1,3\}",),
]  # fmt: skip


def equal(a: str, b: str) -> bool:
    from grader.compare import _without_names
    budget = Budget(20_000)
    trees = [_without_names(parse(text, budget))[1] for text in (a, b)]
    return same_on_the_line(*trees, Algebra(budget))


@pytest.mark.parametrize("a, b", [(a, b) for group in SETS for a in group
                                  for others in SETS for b in others])
def test_equal_in_a_group_and_nowhere_else(a, b):
    assert equal(a, b) == any(a in group and b in group for group in SETS)


@pytest.mark.parametrize("text", ["5", "(1,2,3)", "[1,x]", r"[0,\infty]", "1, 2", "(2,0)"])
def test_what_is_no_subset_of_the_line_equals_none(text):
    assert not any(equal(text, other) for other in ("[1,2]", r"\emptyset", text))
