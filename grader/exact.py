r"""Evaluate the tree of an expression to an exact value.

    python -m grader.exact '\frac{6}{\sqrt{12}}'        # 1 * prime 3^(1/2)

A value is a quotient of two polynomials with rational coefficients:

    value  = sum of terms / sum of terms        term = coefficient * atom^exponent * atom^exponent
    atom   = a variable, pi, e, i, a prime, or anything without a simpler form (sin x, 2^n)

1. Terms with the same atoms are one term.
2. A root of a number is a product of powers of primes: sqrt 12 = 2 * 3^(1/2). Whole powers of
   primes are numbers, and i^2 is -1.
3. A denominator of one term moves into the numerator: 1 / sqrt 3 = 1/3 * 3^(1/2).
4. Two values are equal if their cross products are equal term by term. The converse holds for
   variables, constants and roots of primes, since different roots of primes are linearly
   independent over the rationals (Besicovitch 1940). With other atoms, identity.py decides.

Integers and the number of terms are bounded, and each operation counts its steps.
"""

import math
import sys
from fractions import Fraction

from grader.latex import parse
from grader.scanner import Budget, Unreadable

LARGEST_BITS = 1 << 13  # of any integer in a value
LARGEST_PRIME = 1000  # the largest factor that is taken out of a root
MOST_TERMS = 400  # of a polynomial

Number = int | Fraction  # whole numbers are int, which is many times faster
ONE: dict = {frozenset(): 1}
I, PI, E, INFINITY = ("i",), ("pi",), ("e",), ("infinity",)  # noqa: E741 (the imaginary unit)
POSITIVE = {PI, E}


class Value:
    """num / den, both {monomial: coefficient}. A monomial is a frozenset of (atom, exponent)."""

    __slots__ = ("num", "den")

    def __init__(self, num: dict, den: dict = ONE):
        self.num, self.den = num, den

    @property
    def rational(self) -> Number | None:
        """The value as a number, or None if it is not rational."""
        if self.den is ONE or self.den == ONE:
            if not self.num:
                return 0
            if len(self.num) == 1 and frozenset() in self.num:
                return self.num[frozenset()]
        return None

    @property
    def single(self) -> tuple | None:
        """(monomial, coefficient) of a value with one term, else None."""
        return next(iter(self.num.items())) if len(self.num) == 1 and self.den == ONE else None

    def key(self) -> tuple:
        """A hashable form. Equal keys mean equal values; equal values may have different keys."""
        return frozenset(self.num.items()), frozenset(self.den.items())


def from_key(key: tuple) -> Value:
    """The value with this `Value.key`."""
    return Value(dict(key[0]), dict(key[1]))


def number(value: Number) -> Value:
    """A rational number as a value; zero has no terms."""
    return Value({frozenset(): value} if value else {})


def atom(name: tuple, exponent: Number = 1) -> Value:
    """A power of an atom as a value: ("name", "x"), ("prime", 2), ("sin", key of argument), ..."""
    mono, c = _merge(frozenset(), frozenset({(name, exponent)}))
    return Value({mono: c})


# ------------------------------------------------------------------------------------------ algebra


class Algebra:
    """Arithmetic on values. Raises Unreadable if a result does not exist or costs too much."""

    def __init__(self, budget: Budget):
        self.budget = budget

    def add(self, a: Value, b: Value) -> Value:
        if a.den == b.den:
            return Value(self._sum(a.num, b.num), a.den)
        num = self._sum(self.times(a.num, b.den), self.times(b.num, a.den))
        return Value(num, self.times(a.den, b.den))

    def multiply(self, a: Value, b: Value) -> Value:
        return self._reduced(self.times(a.num, b.num), self.times(a.den, b.den))

    def divide(self, a: Value, b: Value) -> Value:
        if not b.num:
            raise Unreadable("division by zero")
        return self._reduced(self.times(a.num, b.den), self.times(a.den, b.num))

    def negate(self, a: Value) -> Value:
        return Value({mono: -c for mono, c in a.num.items()}, a.den)

    def _reduced(self, num: dict, den: dict) -> Value:
        """num / den, with a denominator of one term moved into the numerator."""
        if len(den) == 1 and den != ONE:
            ((mono, c),) = den.items()
            inverse = {frozenset((a, -e) for a, e in mono): Fraction(1) / c}
            return Value(self.times(num, inverse), ONE)
        return Value(num, den)

    def _sum(self, a: dict, b: dict) -> dict:
        self.budget.take(1 + len(b))
        total = dict(a)
        for mono, c in b.items():
            c = total.get(mono, 0) + c
            if c:
                total[mono] = self._checked(c)
            else:
                total.pop(mono, None)
        return total

    def times(self, a: dict, b: dict) -> dict:
        if a is ONE:
            return b
        if b is ONE:
            return a
        self.budget.take(1 + 2 * len(a) * len(b))
        product: dict = {}
        for mono_a, c_a in a.items():
            for mono_b, c_b in b.items():
                mono, c = _merge(mono_a, mono_b) if mono_a or mono_b else (mono_a, 1)
                c = product.get(mono, 0) + c * c_a * c_b
                if c:
                    product[mono] = self._checked(c)
                else:
                    product.pop(mono, None)
        if len(product) > MOST_TERMS:
            raise Unreadable("too many terms")
        return product

    def _checked(self, c: Number) -> Number:
        """The coefficient, as int if it is whole. Raises Unreadable if it is too large."""
        if type(c) is Fraction and c.denominator == 1:
            c = c.numerator
        bits = c.numerator.bit_length() + c.denominator.bit_length()
        if bits > LARGEST_BITS:
            raise Unreadable("a number too large")
        self.budget.take(bits >> 9)
        return c

    def power(self, base: Value, exponent: Value) -> Value:
        n = exponent.rational
        if n is None:
            if base.rational == 1:
                return base
            return atom(("power", base.key(), exponent.key()))
        if n.denominator == 1:
            return self._whole_power(base, int(n))
        return self._whole_power(self.root(base, n.denominator), n.numerator)

    def _whole_power(self, base: Value, n: int) -> Value:
        if n < 0:
            return self._whole_power(self.divide(number(1), base), -n)
        if n == 0 and not base.num:
            raise Unreadable("0^0")
        if base.rational in (0, 1, -1):
            return number(base.rational ** (n % 2 or 2)) if n else number(1)
        if n > LARGEST_BITS:
            raise Unreadable("a power too large")
        result = number(1)
        for bit in bin(n)[2:]:
            result = self.multiply(result, result)
            if bit == "1":
                result = self.multiply(result, base)
        return result

    def root(self, value: Value, n: int) -> Value:
        """The principal n-th root; of a negative number, if n is odd, the real root.

        The root of a product is the product of the roots only if the factors are positive. So a
        variable has a root of its own only if it stands alone and to the first power. The root of
        any other value is an atom.
        """
        if not value.num:
            return value
        mono, c = value.single or (frozenset(), 0)
        variables = [e for a, e in mono if a not in POSITIVE and a[0] != "prime"]
        mixed = variables and (len(mono) > 1 or variables != [1] or c < 0)
        if not c or n > 1000 or mixed or c < 0 and n % 2 == 0 and n > 2:
            return atom(("root", n, value.key()))
        result = number(1)
        for a, e in [*mono, *self._factors(abs(c))]:
            result = self.multiply(result, atom(a, e * Fraction(1, n)))
        if c > 0:
            return result
        return self.negate(result) if n % 2 else self.multiply(result, atom(I))

    def _factors(self, c: Number) -> list[tuple[tuple, int]]:
        """Primes up to LARGEST_PRIME as atoms, with exponents; the rest is one more factor."""
        found = []
        for rest, sign in ((c.numerator, 1), (c.denominator, -1)):
            prime = 2
            while rest > 1 and prime <= LARGEST_PRIME and prime * prime <= rest:
                e = 0
                while rest % prime == 0:
                    rest, e = rest // prime, e + 1
                if e:
                    found.append((("prime", prime), sign * e))
                prime += 1 if prime == 2 else 2
            self.budget.take(1 + prime // 8)
            if rest > 1:
                side = math.isqrt(rest)
                square = side * side == rest
                found.append((("prime", side), 2 * sign) if square else (("prime", rest), sign))
        return found


def _merge(a: frozenset, b: frozenset) -> tuple[frozenset, Number]:
    """The product of two monomials, and the number that whole powers of primes and of i give."""
    exponents = dict(a)
    for name, e in b:
        exponents[name] = exponents.get(name, 0) + e
    c: Number = 1
    for name, e in list(exponents.items()):
        if name[0] == "prime":
            whole = e.numerator // e.denominator
            if whole:
                if abs(whole) * name[1].bit_length() > LARGEST_BITS:
                    raise Unreadable("a power too large")
                c *= Fraction(name[1]) ** whole
                e = exponents[name] = e - whole
        elif name == I and e.denominator == 1:
            if e % 4 in (2, 3):
                c = -c
            e = exponents[name] = e % 2
        if e == 0:
            del exponents[name]
    return frozenset(exponents.items()), c


# ------------------------------------------------------------------------------------ from the tree


class Evaluator:
    """Tree to value, one method per kind of node."""

    def __init__(self, algebra: Algebra):
        self.algebra = algebra

    def value(self, tree: tuple) -> Value:
        self.algebra.budget.take()
        return getattr(self, tree[0], self._unknown)(*tree[1:])

    def _unknown(self, *rest) -> Value:
        raise Unreadable("no expression")

    def number(self, value: Number, places, significant) -> Value:
        return number(value)

    def exact(self, value: Value) -> Value:
        return value  # of solve.py

    def name(self, name: str) -> Value:
        known = {"i": I, "pi": PI, "e": E, "infty": INFINITY}
        return atom(known.get(name, ("name", name)))

    def sum(self, terms: list) -> Value:
        total = self.value(terms[0])
        for term in terms[1:]:
            total = self.algebra.add(total, self.value(term))
        return total

    def product(self, factors: list) -> Value:
        total = self.value(factors[0])
        for factor in factors[1:]:
            total = self.algebra.multiply(total, self.value(factor))
        return total

    def quotient(self, top: tuple, bottom: tuple) -> Value:
        return self.algebra.divide(self.value(top), self.value(bottom))

    def power(self, base: tuple, exponent: tuple) -> Value:
        return self.algebra.power(self.value(base), self.value(exponent))

    def root(self, degree: tuple, radicand: tuple) -> Value:
        n = self.value(degree).rational
        if n is None or n.denominator != 1 or n < 2:
            return self.algebra.power(self.value(radicand),
                                      self.algebra.divide(number(1), self.value(degree)))
        return self.algebra.root(self.value(radicand), int(n))

    def negative(self, inner: tuple) -> Value:
        return self.algebra.negate(self.value(inner))

    def call(self, function: str, arguments: list) -> Value:
        values = [self.value(argument) for argument in arguments]
        numbers = [value.rational for value in values]
        if None not in numbers:
            exact = self._of_numbers(function, numbers)
            if exact is not None:
                return number(exact)
        return atom((function, *(value.key() for value in values)))

    def _of_numbers(self, function: str, numbers: list[Number]) -> Number | None:
        """The rational value of a function of rational numbers, or None if it has none here."""
        whole = [int(n) for n in numbers if n.denominator == 1]
        if function == "abs":
            return abs(numbers[0])
        if function == "floor":
            return math.floor(numbers[0])
        if function == "ceil":
            return math.ceil(numbers[0])
        if function in ("min", "max") and numbers:
            return (min if function == "min" else max)(numbers)
        if function in ("gcd", "lcm") and numbers and len(whole) == len(numbers):
            return (math.gcd if function == "gcd" else math.lcm)(*whole)
        if function == "factorial" and whole and 0 <= whole[0]:
            if whole[0] > 500:
                raise Unreadable("a factorial too large")
            self.algebra.budget.take(whole[0])
            return math.factorial(whole[0])
        if function == "double factorial" and whole and 0 <= whole[0] <= 500:
            self.algebra.budget.take(whole[0])
            return math.prod(range(whole[0], 0, -2))
        if function == "binomial" and len(whole) == 2 and 0 <= whole[1]:
            if not 0 <= whole[0] <= 1000:
                raise Unreadable("a binomial too large")
            self.algebra.budget.take(whole[1] if whole[1] < whole[0] else 1)
            return math.comb(*whole)
        if function == "ln" and numbers[0] == 1:
            return 0
        return None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.exact EXPRESSION")
    try:
        step_budget = Budget(10_000)
        parsed = parse(sys.argv[1], step_budget)
        evaluated = Evaluator(Algebra(step_budget)).value(
            parsed[1] if parsed[0] == "value" else parsed)
    except Unreadable as reason:
        sys.exit(f"error: no exact value ({reason})")
    for monomial, coefficient in evaluated.num.items():
        print(coefficient, *(f"* {' '.join(map(str, name))}^({e})" for name, e in monomial))
    if evaluated.den != ONE:
        print("divided by", dict(evaluated.den))
