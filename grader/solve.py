r"""Solve an inequality in one variable, if it is linear, quadratic or in a linear absolute value.

    python -m grader.solve '|2x - 1| \le 3'        # all: x <= 2, x >= -1

    a x + b < 0              x < -b/a, or x > -b/a if a is negative
    a x^2 + b x + c < 0      r < x < s between the roots, or x < r or x > s outside of them
    |f| < c                  f < c and f > -c
    |f| > c                  f > c or f < -c

Other inequalities are compared as they stand. Equations are never solved: `2x = 10` is not 5.
"""

import sys

from grader.exact import ONE, Algebra, Evaluator, Value, number
from grader.identity import real_value
from grader.latex import parse
from grader.scanner import Budget, Unreadable
from grader.units import names_in

OPPOSITE = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def solved(tree: tuple, algebra: Algebra) -> tuple:
    """The inequality as relations `x < number` joined by "all" or "any"; else the tree itself."""
    signs, sides = tree[1], tree[2]
    names = {name for side in sides for name in names_in(side)}
    bare = any(side[:1] == ("value",) and side[1][0] == "name" for side in sides)
    if bare or len(names) != 1 or not {*signs} <= OPPOSITE.keys() or any(
            side[0] != "value" or side[2] for side in sides):
        return tree
    try:
        parts = [_one(sign, left[1], right[1], *names, algebra)
                 for sign, left, right in zip(signs, sides, sides[1:])]
    except Unreadable:
        if algebra.budget.left < 0:
            raise
        return tree
    return parts[0] if len(parts) == 1 else ("all", parts)


def _one(sign: str, left: tuple, right: tuple, name: str, algebra: Algebra) -> tuple:
    """`left sign right`, solved for the name. Raises Unreadable if it is of no known form."""
    if right[:2] == ("call", "abs"):
        sign, left, right = OPPOSITE[sign], right, left
    if left[:2] == ("call", "abs") and not names_in(right):
        inside = left[2][0]
        return ("all" if sign[0] == "<" else "any", [
            _one(sign, inside, right, name, algebra),
            _one(OPPOSITE[sign], inside, ("negative", right), name, algebra)])
    difference = Evaluator(algebra).value(("sum", [left, ("negative", right)]))
    a, b, c = _coefficients(difference, name)
    if not a.num:
        end = algebra.divide(algebra.negate(c), b)
        return _limit(name, sign if _sign_of(b, algebra) > 0 else OPPOSITE[sign], end)
    sign = sign if _sign_of(a, algebra) > 0 else OPPOSITE[sign]
    four, two = number(4), algebra.multiply(number(2), a)
    square = algebra.add(algebra.multiply(b, b), algebra.negate(
        algebra.multiply(four, algebra.multiply(a, c))))
    if _sign_of(square, algebra) < 0:
        raise Unreadable("no roots")
    root = algebra.divide(algebra.root(square, 2), two)
    middle = algebra.divide(algebra.negate(b), two)
    ends = [algebra.add(middle, root), algebra.add(middle, algebra.negate(root))]
    if _sign_of(a, algebra) < 0:
        ends.reverse()
    return ("all" if sign[0] == "<" else "any", [
        _limit(name, sign, ends[0]), _limit(name, OPPOSITE[sign], ends[1])])


def _coefficients(value: Value, name: str) -> tuple[Value, Value, Value]:
    """a, b and c of a x^2 + b x + c. Raises Unreadable for any other value."""
    by_power: list[dict] = [{}, {}, {}]
    if value.den != ONE:
        raise Unreadable("no polynomial")
    for mono, c in value.num.items():
        power, rest = 0, []
        for atom, exponent in mono:
            if atom == ("name", name):
                power = exponent
            elif atom[0] in ("prime", "pi", "e"):
                rest.append((atom, exponent))
            else:
                raise Unreadable("no polynomial")
        if power not in (0, 1, 2):
            raise Unreadable("no polynomial of degree two")
        by_power[int(power)][frozenset(rest)] = c
    c, b, a = map(Value, by_power)
    return a, b, c


def _sign_of(value: Value, algebra: Algebra) -> int:
    """1 or -1. Raises Unreadable for zero, which limits nothing."""
    real = value.rational if value.rational is not None else real_value(value, algebra.budget)
    if not real:
        raise Unreadable("no positive and no negative number")
    return 1 if real > 0 else -1


def _limit(name: str, sign: str, end: Value) -> tuple:
    return ("relation", [sign], [("value", ("name", name), None), ("value", ("exact", end), None)])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.solve INEQUALITY")
    try:
        exact_algebra = Algebra(Budget(10_000))
        answer = solved(parse(sys.argv[1], exact_algebra.budget), exact_algebra)
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
    relations = answer[1] if answer[0] in ("all", "any") else [answer]
    print(answer[0] + ":", ", ".join(
        f"{left[1][1]} {sign[0]} {real_value(right[1][1], exact_algebra.budget):.6g}"
        for _, sign, (left, right) in relations if right[1][0] == "exact"))
