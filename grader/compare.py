r"""Decide whether two answers are equal, by their kinds: values, tuples, lists, equations, ...

    python -m grader.compare '-2 \le x \le 7' '[-2, 7]'        # equal

1. Both answers are trees (latex.py). `x = 5` is 5 if the other answer names no variable.
2. Members of a list or a set have no order. Coordinates have one, and the brackets of an interval
   matter.
3. Equations are equal up to a factor, as `2x + 4y = 6` and `x + 2y = 3`; inequalities are equal
   up to a positive factor.
4. Expressions are compared by value (exact.py, identity.py), and units only if both have one.
5. A decimal of six significant digits or more equals an exact value if it is that value, cut or
   rounded.
"""

import sys
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

from grader.exact import Algebra, Evaluator, Value, number
from grader.expressions import MARKS
from grader.identity import PRECISION, real_value, same
from grader.latex import parse
from grader.scanner import Budget, Unreadable

SIGNIFICANT = 6  # a decimal of as many digits may stand for an exact value
SEVERAL = {"list", "set", "values"}  # the kinds of several answers in any order
TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


class Comparison:
    """Equality of two trees within a budget. A kind of answer has a method with its name."""

    def __init__(self, budget: Budget):
        self.budget, self.algebra = budget, Algebra(budget)

    def equal(self, a: tuple, b: tuple) -> bool:
        """Whether two answers are equal."""
        self.budget.take()
        if _has_relation(a) != _has_relation(b):
            a, b = (_without_name(tree, other) for tree, other in ((a, b), (b, a)))
        if a[0] in SEVERAL or b[0] in SEVERAL:
            return self._in_any_order(_each_answer(a), _each_answer(b), self.equal_single)
        return self.equal_single(a, b)

    def equal_single(self, a: tuple, b: tuple) -> bool:
        """Whether two single answers are equal."""
        self.budget.take()
        kinds = {a[0], b[0]}
        if kinds == {"based", "value"}:
            based, value = (a, b) if a[0] == "based" else (b, a)
            expression, unit = value[1:]
            integer = expression[0] == "number" and expression[2] is None
            return integer and expression[1] == int(based[1]) and not unit
        if len(kinds) > 1:
            return False
        return getattr(self, "_" + a[0])(a, b)

    def _in_any_order(self, left: list, right: list, equal: Callable) -> bool:
        """Whether the lists hold equal members, each equally often."""
        if len(left) != len(right):
            return False
        rest = list(right)
        for item in left:
            index = next((i for i, other in enumerate(rest) if equal(item, other)), None)
            if index is None:
                return False
            del rest[index]
        return True

    def _set(self, a: tuple, b: tuple) -> bool:  # a set inside a list or a set
        return self.equal(a, b)

    def _tuple(self, a: tuple, b: tuple) -> bool:
        return a[1] == b[1] and len(a[2]) == len(b[2]) and all(map(self.equal, a[2], b[2]))

    def _union(self, a: tuple, b: tuple) -> bool:
        return self._in_any_order(a[1], b[1], self.equal)

    def _minus(self, a: tuple, b: tuple) -> bool:
        return self.equal(a[1], b[1]) and self.equal(a[2], b[2])

    def _matrix(self, a: tuple, b: tuple) -> bool:
        shapes = [[len(row) for row in rows] for rows in (a[1], b[1])]
        cells = [[("value", cell, None) for row in rows for cell in row] for rows in (a[1], b[1])]
        return shapes[0] == shapes[1] and all(map(self._value, *cells))

    def _based(self, a: tuple, b: tuple) -> bool:
        return a[1:] == b[1:]

    def _words(self, a: tuple, b: tuple) -> bool:
        return a[1] == b[1]

    def _relation(self, a: tuple, b: tuple) -> bool:
        if (a[1] == ["in"]) != (b[1] == ["in"]):  # x in [1, 2] and 1 <= x <= 2, of the same x
            names = [_named(tree) for tree in (a, b)]
            a, b = (_without_name(tree, ()) for tree in (a, b))
            return (names[0] == names[1] and not _has_relation(a) and not _has_relation(b)
                    and self.equal(a, b))
        if len(a[1]) != len(b[1]) or len(a[1]) > 1 or "in" in a[1] + b[1]:
            return self._same_sides(a, b) or self._same_sides(a, _turned(b))
        (sign_a,), (sign_b,) = a[1], b[1]
        if sign_a in (">", ">="):
            a, sign_a = _turned(a), _turned(a)[1][0]
        if sign_b in (">", ">="):
            b, sign_b = _turned(b), _turned(b)[1][0]
        if sign_a != sign_b:
            return False
        if any(side[0] != "value" or side[2] for side in a[2] + b[2]):
            both_ways = sign_a in ("=", "!=")
            return self._same_sides(a, b) or both_ways and self._same_sides(a, _turned(b))
        factor = self._ratio(*(self._difference(tree) for tree in (a, b)))
        return factor is not None and (factor > 0 or sign_a in ("=", "!="))

    def _same_sides(self, a: tuple, b: tuple) -> bool:
        """Whether two relations have the same signs and equal sides."""
        return a[1] == b[1] and all(map(self.equal, a[2], b[2]))

    def _difference(self, relation: tuple) -> Value:
        """The left side minus the right side."""
        left, right = (Evaluator(self.algebra).value(side[1]) for side in relation[2])
        return self.algebra.add(left, self.algebra.negate(right))

    def _ratio(self, a: Value, b: Value) -> Fraction | None:
        """The number c with a = c b, or None if only zero is one."""
        left, right = self.algebra.multiply(a, Value(b.den)), self.algebra.multiply(b, Value(a.den))
        shared = next((mono for mono in left.num if mono in right.num), None)
        if shared is None:
            return Fraction(1) if not left.num and not right.num else None
        c = Fraction(left.num[shared]) / right.num[shared]
        return c if same(a, self.algebra.multiply(number(c), b), self.algebra) else None

    def _value(self, a: tuple, b: tuple) -> bool:
        unit_a, unit_b = a[2], b[2]
        if unit_a and unit_b and unit_a != unit_b:
            return False
        left, right = (Evaluator(self.algebra).value(tree[1]) for tree in (a, b))
        if (same(left, right, self.algebra) or self._rounded(a[1], right, b[1])
                or self._rounded(b[1], left, a[1])):
            return True
        if unit_a == unit_b or "%" not in (unit_a, unit_b):
            return False
        # If one side has a percent sign, 25% equals both 25 and 0.25.
        hundredth = number(Fraction(1, 100))
        left = self.algebra.multiply(left, hundredth) if unit_a == "%" else left
        right = self.algebra.multiply(right, hundredth) if unit_b == "%" else right
        return same(left, right, self.algebra)

    def _rounded(self, tree: tuple, value: Value, other: tuple) -> bool:
        """Whether `tree` is a decimal of six digits or more, and the other value cut or rounded."""
        decimal, exact = _decimal(tree), _decimal(other)
        if decimal is None or exact is not None or not SIGNIFICANT <= decimal[2] <= 40:
            return False
        rational = value.rational
        with localcontext(PRECISION):
            if rational is not None:
                real = Decimal(rational.numerator) / Decimal(rational.denominator)
            else:
                real = real_value(value, self.budget)
            if real is None or abs(real) > 10**30:
                return False
            step = Decimal(1).scaleb(-decimal[1])
            written = Decimal(decimal[0].numerator) / Decimal(decimal[0].denominator)
            ways = (ROUND_DOWN, ROUND_HALF_UP, ROUND_HALF_EVEN)
            return any(real.quantize(step, rounding=way) == written for way in ways)


def _decimal(tree: tuple) -> tuple[Fraction, int, int] | None:
    """(value, digits behind the point, significant digits) of a decimal; None for other trees."""
    if tree[0] == "negative":
        inner = _decimal(tree[1])
        return inner and (-inner[0], *inner[1:])
    return tree[1:] if tree[0] == "number" and tree[2] is not None else None


def _has_relation(tree: tuple) -> bool:
    items = tree[1] if tree[0] in ("list", "set") else [tree]
    return any(item[0] == "relation" for item in items)


def _without_name(tree: tuple, other: tuple) -> tuple:
    """The answer without the variable that names it, or the tree itself if that is no such answer.

    `x = 5` -> 5, `x in S` -> S, `a < x <= b` -> (a, b], `x = 1, x = 2` or `x = 1, 2` -> 1, 2
    """
    if tree[0] == "relation":
        signs, sides = tree[1], tree[2]
        if (signs == ["in"] or set(signs) == {"="}) and _is_name(sides[0]):
            return sides[-1]  # of x = 2 + 3 = 5 too
        return _interval(signs, sides) or tree
    if tree[0] in ("list", "set"):
        items = [_without_name(item, other) if item[0] == "relation" else item for item in tree[1]]
        names = {_named(item) for item in tree[1] if item[0] == "relation"}
        if len(names) > 1 or any(item[0] == "relation" for item in items):
            return tree
        if other[:1] == ("union",):  # x < 1 or x > 3
            return ("union", items)
        return ("list", items)
    return tree


def _named(relation: tuple) -> str:
    """The variable that a relation is about; x_1 and x_2 are two values of x."""
    side = next((side for side in relation[2] if _is_name(side)), relation)
    if side[0] == "value" and side[1][0] == "name":
        return side[1][1].partition("_")[0]
    return repr(side)


def _is_name(side: tuple) -> bool:
    """Whether a side of a relation is a variable, a word, or a function of a variable: f(x)."""
    if side[0] == "tuple":
        return all(map(_is_name, side[2]))
    if side[0] == "words":
        return True
    if side[0] != "value" or side[2]:
        return False
    tree = side[1]
    if tree[0] == "product":
        return len(tree[1]) == 2 and tree[1][0][0] == tree[1][1][0] == "name"
    return tree[0] == "name" or tree[0] == "call" and tree[1] in MARKS


def _interval(signs: list, sides: list) -> tuple | None:
    """The interval to which an inequality limits a variable, or None."""
    if not all(sign in ("<", "<=") for sign in signs):
        signs, sides = [TURNED.get(sign, sign) for sign in reversed(signs)], sides[::-1]
    if not all(sign in ("<", "<=") for sign in signs):
        return None
    infinity = ("name", "infty")
    low, high = ("value", ("negative", infinity), None), ("value", infinity, None)
    opening, closing = ("[" if signs[0] == "<=" else "("), ("]" if signs[-1] == "<=" else ")")
    if len(sides) == 3 and _is_name(sides[1]):
        return ("tuple", opening + closing, [sides[0], sides[2]])
    if len(sides) == 2 and _is_name(sides[0]):
        return ("tuple", "(" + closing, [low, sides[1]])
    if len(sides) == 2 and _is_name(sides[1]):
        return ("tuple", opening + ")", [sides[0], high])
    return None


def _turned(relation: tuple) -> tuple:
    """The relation read from right to left."""
    return ("relation", [TURNED.get(sign, sign) for sign in reversed(relation[1])],
            relation[2][::-1])


def _each_answer(tree: tuple) -> list[tuple]:
    r"""The answers that a tree stands for: members of a list or a set, both values of `1 \pm x`."""
    if tree[0] == "values":
        return [("value", _with_sign(tree[1], sign), tree[2]) for sign in (1, -1)]
    if tree[0] in SEVERAL:
        return [answer for item in tree[1]
                for answer in (_each_answer(item) if item[0] == "values" else [item])]
    return [tree]


def _with_sign(tree, sign: int):
    """The tree with the upper (sign = 1) or the lower sign (-1) for each plus or minus."""
    if isinstance(tree, tuple) and tree and tree[0] in ("either", "neither"):
        inner = _with_sign(tree[1], sign)
        return inner if (tree[0] == "either") == (sign > 0) else ("negative", inner)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_with_sign(part, sign) for part in tree)
    return tree


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m grader.compare ANSWER ANSWER")
    try:
        step_budget = Budget(10_000)
        trees = [parse(text, step_budget) for text in sys.argv[1:]]
        print("equal" if Comparison(step_budget).equal(*trees) else "not equal")
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
