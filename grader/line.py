r"""Decide whether two subsets of the real line are equal, however they are written.

    python -m grader.line '(-\infty,0)\cup(0,\infty)' '\mathbb{R}\setminus\{0\}'        # equal

1. Collect the ends of all intervals and the members of all finite sets, and sort them.
2. They cut the line into points and gaps: (-inf, p1), {p1}, (p1, p2), {p2}, ..., (pn, inf).
3. A set that is made of these intervals and members holds each point and each gap as a whole or
   not at all. Two sets are equal if they hold the same ones.

Ends are compared in fifty digits, and must be exactly equal if they are that close.
"""

import sys
from decimal import Decimal

from grader.exact import Algebra, Evaluator, Value
from grader.identity import real_value, same
from grader.latex import INFINITY, parse
from grader.scanner import Budget, Unreadable

MOST_ENDS = 60
CLOSE = Decimal("1e-40")
KINDS = {"tuple", "set", "union", "all", "any", "minus"}  # trees that may be subsets of the line


class Line:
    """The points and gaps that the ends of some sets make. Raises Unreadable for other trees."""

    def __init__(self, trees: list[tuple], algebra: Algebra):
        self.algebra = algebra
        self.ends: list[tuple[Decimal, Value]] = []
        for tree in trees:
            self._collect(tree)
        self.ends.sort(key=lambda end: end[0])

    def _collect(self, tree: tuple) -> None:
        """Add the ends of a tree, each once."""
        kind = tree[0]
        if kind == "tuple":
            if len(tree[2]) != 2 or tree[1][0] not in "([" or tree[1][1] not in ")]":
                raise Unreadable("no interval")
            if tree[1][0] == "[" and self._sign(tree[2][0]) or (
                    tree[1][1] == "]" and self._sign(tree[2][1])):
                raise Unreadable("an interval that holds infinity")
        elif kind not in KINDS:
            raise Unreadable("no subset of the line")
        for part in tree[1:] if kind == "minus" else tree[-1]:
            if kind not in ("tuple", "set"):
                self._collect(part)
            elif not self._sign(part):
                self._add(part)

    def _sign(self, part: tuple) -> int:
        """1 for infinity, -1 for minus infinity, else 0."""
        if part[:1] != ("value",):
            raise Unreadable("an end that is no number")
        return 1 if part[1] == INFINITY else -1 if part[1] == ("negative", INFINITY) else 0

    def _add(self, part: tuple) -> None:
        real, value = self._number(part)
        if self._place_of(real, value) is None:
            if len(self.ends) == MOST_ENDS:
                raise Unreadable("too many ends")
            self.ends.append((real, value))

    def _number(self, part: tuple) -> tuple[Decimal, Value]:
        value = Evaluator(self.algebra).value(part[1])
        real = real_value(value, self.algebra.budget)
        if real is None or part[2]:
            raise Unreadable("an end that is no real number")
        return real, value

    def _place_of(self, real: Decimal, value: Value) -> int | None:
        for place, (other, exact) in enumerate(self.ends):
            if abs(real - other) < CLOSE:
                if not same(value, exact, self.algebra):
                    raise Unreadable("ends that are too close")
                return place
        return None

    def places(self, tree: tuple) -> list[bool]:
        """Whether the tree holds each gap (even places) and each point (odd places)."""
        count = 2 * len(self.ends) + 1
        self.algebra.budget.take(count)
        kind = tree[0]
        if kind == "tuple":
            low, high = (self._place(end) for end in tree[2])
            # A square bracket takes the end itself, a round one begins behind it.
            low, high = low + (tree[1][0] == "("), high - (tree[1][1] == ")")
            if low > high:  # (2, 0) is a point
                raise Unreadable("an interval without a number")
            return [low <= place <= high for place in range(count)]
        if kind == "set":
            members = {self._place(member) for member in tree[1]}
            return [place in members for place in range(count)]
        parts = [self.places(part) for part in (tree[1:] if kind == "minus" else tree[1])]
        if kind == "minus":
            return [held and not left_out for held, left_out in zip(*parts)]
        return [all(held) if kind == "all" else any(held) for held in zip(*parts)]

    def _place(self, end: tuple) -> int:
        """The place of an end among points and gaps; of infinity, the one beyond the last gap."""
        sign = self._sign(end)
        if sign:
            return -1 if sign < 0 else 2 * len(self.ends) + 1
        return 2 * self._place_of(*self._number(end)) + 1


def same_on_the_line(a: tuple, b: tuple, algebra: Algebra) -> bool:
    """Whether two trees are the same subset of the line; False if one is no such subset."""
    try:
        line = Line([a, b], algebra)
        return line.places(a) == line.places(b)
    except Unreadable:
        if algebra.budget.left < 0:
            raise
        return False


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m grader.line SET SET")
    try:
        exact_algebra = Algebra(Budget(10_000))
        both = [parse(text, exact_algebra.budget) for text in sys.argv[1:]]
        print("equal" if same_on_the_line(*both, exact_algebra) else "not equal")
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
