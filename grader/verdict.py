r"""Decide whether two answers are equal: by their cleaned texts, else by their trees.

    python -m grader.verdict '\frac12' '0.5'        # equal, after ... steps

1. Equal cleaned texts are equal answers (cleaned.py).
2. Two answers that are mathematics are compared by their trees (latex.py, compare.py).
3. Otherwise they are words, and their texts decide.

All reading and comparing counts its steps, so no pair of texts takes more than BUDGET of them.
"""

import sys
from functools import lru_cache

from grader.cleaned import LONGEST_ANSWER, normalise, same_words, without_period
from grader.compare import Comparison
from grader.latex import parse
from grader.scanner import Budget, Unreadable

# Steps of one comparison, about 20 ms: a quarter to read each answer, and half to compare them.
BUDGET = 10_000
LONGEST_PLAIN = 20  # digits of a number that is read without the parser


def verdict(gold: str, answer: str) -> tuple[bool, int]:
    """Whether two answers are equal, and the steps that it took."""
    texts = normalise(gold), normalise(answer)
    if texts[0] == texts[1]:
        return True, 0
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        return False, 0
    (left, steps_left), (right, steps_right) = read(gold), read(answer)
    steps = steps_left + steps_right
    if left is None or right is None:
        return same_words(*texts), steps
    budget = Budget(BUDGET // 2)
    try:
        equal = Comparison(budget).equal(left, right)
    except Unreadable:
        equal = False
    return equal, min(steps + BUDGET // 2 - budget.left, BUDGET)


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[tuple | None, int]:
    """The tree of an answer, or None if it is compared as text; and the steps of reading it."""
    if len(text) < LONGEST_PLAIN and text.isascii() and text.isdigit():
        return ("value", ("number", int(text), None, 0), None), len(text)  # as parse would
    budget = Budget(BUDGET // 4)
    try:
        tree = parse(without_period(text.strip()).strip(), budget)
    except Unreadable:
        tree = None
    return tree, BUDGET // 4 - max(budget.left, 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m grader.verdict ANSWER ANSWER")
    same, counted = verdict(*sys.argv[1:])
    print(f"{'equal' if same else 'not equal'}, after {counted} steps")
