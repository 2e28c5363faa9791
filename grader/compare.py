r"""Decide whether two answers are equal, by their kinds: values, tuples, lists, equations, ...

    python -m grader.compare '-2 \le x \le 7' '[-2, 7]'        # equal

1. Both answers are trees (latex.py). An equation of numbers, as `2 + 3 = 5`, is their value.
2. Members of a list or a set have no order. Coordinates have one, and the brackets of an interval
   matter.
3. Equations are equal up to a factor, as `2x + 4y = 6` and `x + 2y = 3`; inequalities are equal
   up to a positive factor.
4. Then the names before the answers are left out: `x = 5` is 5, and is not `y = 5`.
5. Then inequalities are solved (solve.py), and subsets of the line are compared as sets (line.py).
6. Expressions are compared by value (exact.py, identity.py), and units only if both have one.
7. A decimal of six significant digits or more equals an exact value if it is that value, cut or
   rounded.
"""

import sys
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

from grader.exact import Algebra, Evaluator, Value, number
from grader.identity import PRECISION, real_value, same
from grader.latex import INFINITY, REALS, is_name, parse
from grader.line import KINDS, same_on_the_line
from grader.scanner import Budget, Unreadable, is_like_a_product
from grader.solve import solved
from grader.units import has_names, same_units, singular

SIGNIFICANT = 6  # a decimal of as many digits may stand for an exact value
SEVERAL = {"list", "set"}  # the kinds of several answers in any order
TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


class Comparison:
    """Equality of two trees within a budget. A kind of answer has a method with its name."""

    def __init__(self, budget: Budget):
        self.budget, self.algebra = budget, Algebra(budget)

    def equal(self, a: tuple, b: tuple) -> bool:
        """Whether two answers are equal."""
        self.budget.take()
        if a == b:
            return True
        a, b = self._plain(a), self._plain(b)
        if self._alike(a, b):
            return True
        (names, bare), (others, other) = _without_names(a), _without_names(b)
        if not names and not others:
            return self._same_sets(a, b)
        if len(names or others) > 1:  # AB = 4, CD = 5 and 4, 5: named values have an order
            return not (names and others) and bare[0] == other[0] == "list" and len(
                bare[1]) == len(other[1]) and all(map(self.equal, bare[1], other[1]))
        if names and others and names != others:
            return False
        return self._alike(bare, other) or self._same_sets(bare, other)

    def _same_sets(self, a: tuple, b: tuple) -> bool:
        """Whether two trees are one subset of the line. Two pairs may be points: (1, 2)."""
        pairs = a[0] == b[0] == "tuple" or a[0] in SEVERAL and b[0] in SEVERAL
        return (not pairs and a[0] in KINDS and b[0] in KINDS
                and same_on_the_line(a, b, self.algebra))

    def _alike(self, a: tuple, b: tuple) -> bool:
        """Whether two answers are of one kind and have equal parts."""
        if a[0] in SEVERAL or b[0] in SEVERAL:
            left, right = _each_answer(a), _each_answer(b)
            if ("dots",) in left + right:  # 1, 2, ..., n
                return self._in_order(left, right)
            return self._in_any_order(left, right, self.equal_single)
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
        if kinds == {"words", "value"}:
            words, value = (a, b) if a[0] == "words" else (b, a)
            return _may_be_product(words) and self._value(_as_product(words), value)
        if len(kinds) > 1:
            return False
        return getattr(self, "_" + a[0])(a, b)

    def _plain(self, tree: tuple) -> tuple:
        r"""The tree with equations of numbers as their value: `\frac12 = 0.5`, `x = 2 + 3 = 5`.

        Their sides must agree. Raises Unreadable if they do not. Inequalities are solved.
        """
        if tree[0] == "all" and tree[1][0][:2] == ("relation", ["!="]):  # x != 0, 1
            name = tree[1][0][2][0]
            tree = ("all", [("relation", ["!="], [name, item]) if item[0] == "value" else item
                            for item in tree[1]])
        if tree[0] in ("list", "set", "all", "any"):
            return (tree[0], [self._plain(item) for item in tree[1]])
        if tree[0] != "relation":
            return tree
        if {*tree[1]} != {"="}:
            return solved(tree, self.algebra)
        sides = tree[2]
        known = [side for side in sides if side[0] == "value" and not has_names(side[1])]
        if any(not self._value(known[0], side) for side in known[1:]):
            raise Unreadable("an equation of numbers that is wrong")
        if len(known) == len(sides):
            return known[0]
        if len(sides) > 2 and is_name(sides[0]):
            return ("relation", ["="], [sides[0], known[0] if known else sides[-1]])
        return tree

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

    def _in_order(self, left: list, right: list) -> bool:
        return len(left) == len(right) and all(map(self.equal, left, right))

    def _set(self, a: tuple, b: tuple) -> bool:  # a set inside a list or a set
        return self.equal(a, b)

    _list = _set

    def _tuple(self, a: tuple, b: tuple) -> bool:
        return a[1] == b[1] and self._in_order(a[2], b[2])

    def _union(self, a: tuple, b: tuple) -> bool:
        return self._in_any_order(a[1], b[1], self.equal)

    _all = _any = _cases = _union

    def _ratio(self, a: tuple, b: tuple) -> bool:
        return self._in_order(a[1], b[1])

    _remainder = _row = _ratio

    def _dots(self, a: tuple, b: tuple) -> bool:
        return True

    def _minus(self, a: tuple, b: tuple) -> bool:
        return self.equal(a[1], b[1]) and self.equal(a[2], b[2])

    def _matrix(self, a: tuple, b: tuple) -> bool:
        shapes = [[len(row) for row in rows] for rows in (a[1], b[1])]
        cells = [[("value", cell, None) for row in rows for cell in row] for rows in (a[1], b[1])]
        return shapes[0] == shapes[1] and all(map(self._value, *cells))

    def _based(self, a: tuple, b: tuple) -> bool:
        return a[1:] == b[1:]

    def _words(self, a: tuple, b: tuple) -> bool:
        """Case and the plural do not matter, but of products the letters do: xyz, ABC."""
        if _may_be_product(a) and _may_be_product(b) and (
                is_like_a_product(a[2]) or is_like_a_product(b[2])):
            return self._value(_as_product(a), _as_product(b))
        return [*map(singular, a[1].split())] == [*map(singular, b[1].split())]

    def _relation(self, a: tuple, b: tuple) -> bool:
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
        factor = self._factor(*(self._difference(tree) for tree in (a, b)))
        return factor is not None and (factor > 0 or sign_a in ("=", "!="))

    def _same_sides(self, a: tuple, b: tuple) -> bool:
        """Whether two relations have the same signs and equal sides."""
        return a[1] == b[1] and all(map(self.equal, a[2], b[2]))

    def _difference(self, relation: tuple) -> Value:
        """The left side minus the right side."""
        left, right = (Evaluator(self.algebra).value(side[1]) for side in relation[2])
        return self.algebra.add(left, self.algebra.negate(right))

    def _factor(self, a: Value, b: Value) -> Fraction | None:
        """The number c with a = c b, or None if only zero is one."""
        left, right = self.algebra.multiply(a, Value(b.den)), self.algebra.multiply(b, Value(a.den))
        shared = next((mono for mono in left.num if mono in right.num), None)
        if shared is None:
            return Fraction(1) if not left.num and not right.num else None
        c = Fraction(left.num[shared]) / right.num[shared]
        return c if same(a, self.algebra.multiply(number(c), b), self.algebra) else None

    def _value(self, a: tuple, b: tuple) -> bool:
        unit_a, unit_b = a[2], b[2]
        if not same_units(unit_a, unit_b):
            return False
        if a[1] == b[1]:
            return True
        try:
            left, right = (Evaluator(self.algebra).value(tree[1]) for tree in (a, b))
        except Unreadable:  # too large to compute: 2 \cdot 3000! and 3000! \cdot 2
            if self.budget.left < 0:
                raise
            return _sorted(a[1]) == _sorted(b[1])
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


def _without_names(tree: tuple) -> tuple[tuple[str, ...], tuple]:
    """The names that an answer gives to its values, and the answer without them.

    `x = 5` -> x: 5. `x in S` -> x: S. `a < x <= b` -> x: (a, b]. `x = 1, x = 2`, `x = 1, 2` and
    `x_1 = 1, x_2 = 2` -> x: 1, 2. `AB = 4, CD = 5` -> AB, CD: 4, 5. Without a name: (): the tree.
    """
    if tree[0] == "relation":
        signs, sides = tree[1], tree[2]
        if (signs == ["in"] or {*signs} == {"="}) and is_name(sides[0]):
            return (_text_of(sides[0]),), sides[-1]
        if signs == ["="] and is_name(sides[1]):
            return (_text_of(sides[1]),), sides[0]
        if signs == ["!="] and is_name(sides[0]):
            return (_text_of(sides[0]),), ("minus", REALS, ("set", [sides[1]]))
        named = _interval(signs, sides)
        return ((_text_of(named[0]),), named[1]) if named else ((), tree)
    if tree[0] not in ("list", "set", "all", "any"):
        return (), tree
    parts = [_without_names(item) for item in tree[1]]
    items = [item for _, item in parts]
    if any(len(names) > 1 for names, _ in parts):
        return (), tree
    names = tuple(dict.fromkeys(name for names, _ in parts for name in names))
    bare = [not names for names, _ in parts]
    if not names or bare[0] or any(bare) and len(names) > 1:
        return (), tree
    if tree[0] in ("all", "any"):
        equation = [item[0] == "relation" and item[1] == ["="] for item in tree[1]]
        items = [("set", [item]) if single else item for item, single in zip(items, equation)]
        return (names, (tree[0], items)) if len(names) == 1 and not any(bare) else ((), tree)
    return names, ("list", items)


def _text_of(side: tuple) -> str:
    """The name that a side of a relation is; x_1 and x_2 are two values of x."""
    if side[0] == "value" and side[1][0] == "name":
        return side[1][1].partition("_")[0]
    return repr(side)


def _interval(signs: list, sides: list) -> tuple[tuple, tuple] | None:
    """The variable that an inequality limits, and its interval; or None."""
    if not all(sign in ("<", "<=") for sign in signs):
        signs, sides = [TURNED.get(sign, sign) for sign in reversed(signs)], sides[::-1]
    if not all(sign in ("<", "<=") for sign in signs):
        return None
    low, high = ("value", ("negative", INFINITY), None), ("value", INFINITY, None)
    opening, closing = ("[" if signs[0] == "<=" else "("), ("]" if signs[-1] == "<=" else ")")
    if len(sides) == 3 and is_name(sides[1]):
        return sides[1], ("tuple", opening + closing, [sides[0], sides[2]])
    if len(sides) == 2 and is_name(sides[0]):
        return sides[0], ("tuple", "(" + closing, [low, sides[1]])
    if len(sides) == 2 and is_name(sides[1]):
        return sides[1], ("tuple", opening + ")", [sides[0], high])
    return None


def _turned(relation: tuple) -> tuple:
    """The relation read from right to left."""
    return ("relation", [TURNED.get(sign, sign) for sign in reversed(relation[1])],
            relation[2][::-1])


def _each_answer(tree: tuple) -> list[tuple]:
    """The answers that a tree stands for: members of a list or a set, else the tree itself."""
    return tree[1] if tree[0] in SEVERAL else [tree]


def _sorted(tree):
    """The tree with terms and factors in a fixed order."""
    if isinstance(tree, (tuple, list)):
        parts = [_sorted(part) for part in tree]
        return tuple(sorted(parts, key=repr) if isinstance(tree, list) else parts)
    return tree


def _may_be_product(words: tuple) -> bool:
    """Whether words are plain letters side by side, which may be a product of variables."""
    return len(words[2]) > 1


def _as_product(words: tuple) -> tuple:
    return ("value", ("product", [("name", letter) for letter in words[2]]), None)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m grader.compare ANSWER ANSWER")
    try:
        step_budget = Budget(10_000)
        trees = [parse(text, step_budget) for text in sys.argv[1:]]
        print("equal" if Comparison(step_budget).equal(*trees) else "not equal")
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
