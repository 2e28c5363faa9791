r"""Decide whether two exact values are equal by computing both at pseudo-random points.

    python -m grader.identity '2^{n+1}' '2 \cdot 2^n'        # equal

Equal values may have different forms, such as sin^2 x + cos^2 x and 1.

1. If the cross products of the two values are equal term by term, the values are equal. If all
   atoms are variables, constants and roots of small primes, the converse holds too (exact.py).
2. Otherwise, draw each variable from a hash of its name, the same on every machine. Variables are
   real and take both signs: the root of x^2 is |x| and not x. In a factorial or a binomial they
   are whole numbers from 1 to 12.
3. Compute both values in sixty digits, each number with a bound on its error.
4. If they differ by more than the bounds, they are unequal. If the bounds are far below the
   values, the point agrees. Three such points make the values equal.

A false identity that holds in thirty digits at three points is practically impossible.
Sources: identity testing, Schwartz 1980, Zippel 1979.
"""

import hashlib
import math
import sys
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction

from grader.exact import LARGEST_PRIME, ONE, Algebra, Evaluator, Value, from_key
from grader.latex import parse
from grader.scanner import Budget, Unreadable

PRECISION = Context(prec=60, Emax=10**6, Emin=-(10**6),
                    traps=[Overflow, DivisionByZero, InvalidOperation])
ROUNDING = Decimal("1e-55")  # relative error of one operation, with room to spare
AGREEING_POINTS = 3  # that make two values equal


def same(a: Value, b: Value, algebra: Algebra) -> bool:
    """Whether two values are equal, as functions of their variables."""
    left, right = algebra.times(a.num, b.den), algebra.times(b.num, a.den)
    if left == right:
        return True
    if not any(_may_hide(mono) for part in (left, right) for mono in part):
        return False
    return _same_at_points(a, b, algebra.budget)


def _may_hide(mono: frozenset) -> bool:
    """Whether a monomial has an atom with other forms: no variable, constant or small prime."""
    simple = ("name", "i", "pi", "e", "infinity")
    return any(name[0] not in simple
               and not (name[0] == "prime" and name[1] < LARGEST_PRIME**2) for name, _ in mono)


class Numeric:
    """A complex number in Decimal with a bound on its absolute error."""

    __slots__ = ("re", "im", "error")

    def __init__(self, re: Decimal, im: Decimal = Decimal(0), error: Decimal = Decimal(0)):
        self.re, self.im = re, im
        self.error = error + (abs(re) + abs(im)) * ROUNDING

    @property
    def size(self) -> Decimal:
        return abs(self.re) + abs(self.im)

    def __add__(self, other: "Numeric") -> "Numeric":
        return Numeric(self.re + other.re, self.im + other.im, self.error + other.error)

    def __sub__(self, other: "Numeric") -> "Numeric":
        return Numeric(self.re - other.re, self.im - other.im, self.error + other.error)

    def __mul__(self, other: "Numeric") -> "Numeric":
        error = self.size * other.error + other.size * self.error + self.error * other.error
        return Numeric(self.re * other.re - self.im * other.im,
                       self.re * other.im + self.im * other.re, error)

    def inverse(self) -> "Numeric":
        square = self.re * self.re + self.im * self.im
        if self.size <= 4 * self.error or not square:
            raise Unreadable("division by a number that may be zero")
        return Numeric(self.re / square, -self.im / square, 4 * self.error / square)


def _same_at_points(a: Value, b: Value, budget: Budget) -> bool:
    agreed = tried = 0
    whole = _whole_names(a) | _whole_names(b)
    with localcontext(PRECISION):
        while agreed < AGREEING_POINTS:
            tried += 1
            if tried > (6 if whole else 2) * AGREEING_POINTS:
                return False
            points = Points(tried, budget, whole)
            try:
                left = points.value(a)
                difference = left - points.value(b)
            except (Unreadable, ArithmeticError):
                if budget.left < 0:
                    raise Unreadable("over budget") from None
                continue
            if difference.size > difference.error:
                return False
            # With an error as large as the values, anything would agree. So would two binomials
            # that are zero, or two factorials that differ by less than their error.
            if difference.error > Decimal("1e-30") * max(Decimal(1), left.size):
                continue
            if whole and (difference.error > Decimal("1e-9") or not left.size):
                continue
            agreed += 1
            if not points.seen:
                return True
    return True


def _whole_names(value: Value) -> set[str]:
    """The variables that stand in factorials and binomials."""
    return {found for part in value.key() for mono, _ in part for atom, _ in mono
            for found in _names_in(atom, False)}


def _names_in(atom: tuple, whole: bool) -> set[str]:
    """The variables in an atom that stand in factorials and binomials; all, if `whole`."""
    if atom[0] == "name":
        return {atom[1]} if whole else set()
    whole = whole or atom[0] in ("factorial", "double factorial", "binomial")
    return {found for key in atom[1:] if isinstance(key, tuple) for part in key
            for mono, _ in part for inner, _ in mono for found in _names_in(inner, whole)}


class Points:
    """Values at one pseudo-random point, the same on every machine. Variables are real, and those
    in `whole` are whole numbers from 1 to 12."""

    def __init__(self, number: int, budget: Budget, whole: set[str] = frozenset()):
        self.number_of_point, self.budget, self.seen = number, budget, set()
        self.whole = whole

    def value(self, value: Value) -> Numeric:
        num, den = self._poly(value.num), self._poly(value.den)
        return num if value.den == ONE else num * den.inverse()

    def _poly(self, poly: dict) -> Numeric:
        total = Numeric(Decimal(0))
        for mono, c in poly.items():
            term = Numeric(Decimal(c.numerator) / Decimal(c.denominator))
            for name, e in mono:
                term = term * self._powered(self._atom(name), e)
            total = total + term
        return total

    def _powered(self, base: Numeric, e: Fraction) -> Numeric:
        if e.denominator == 1 and abs(e) <= 64:
            result = Numeric(Decimal(1))
            for _ in range(abs(int(e))):
                self.budget.take()
                result = result * base
            return result if e > 0 else result.inverse()
        return _exp(_ln(base) * Numeric(Decimal(e.numerator) / Decimal(e.denominator)))

    def _atom(self, name: tuple) -> Numeric:
        self.budget.take(40)
        kind, *rest = name
        if kind == "name":
            self.seen.add(rest[0])
            digest = hashlib.blake2b(f"{self.number_of_point}/{rest[0]}".encode(),
                                     digest_size=8).digest()
            drawn = int.from_bytes(digest, "big")
            if rest[0] in self.whole:
                return Numeric(Decimal(drawn % 12 + 1))
            return Numeric(Decimal(drawn % 10**15) / Decimal(10**15) * 3 - Decimal("1.45"))
        if kind == "prime":
            return Numeric(Decimal(rest[0]))
        if kind == "i":
            return Numeric(Decimal(0), Decimal(1))
        if kind == "pi":
            return Numeric(PI_DIGITS)
        if kind == "e":
            return Numeric(Decimal(1).exp())
        if kind == "root":
            n, inner = rest[0], self.value(from_key(rest[1]))
            if n % 2 and inner.re < 0 and abs(inner.im) <= inner.error:
                positive = Numeric(-inner.re, error=inner.error)
                return self._powered(positive, Fraction(1, n)) * Numeric(Decimal(-1))
            return self._powered(inner, Fraction(1, n))
        values = [self.value(from_key(key)) for key in rest]
        if kind == "power":
            return _exp(_ln(values[0]) * values[1])
        if kind == "binomial" and len(values) == 2:
            n, k = map(_whole, values)
            return Numeric(Decimal(math.comb(n, k) if 0 <= k else 0))
        function = NUMERIC.get(kind)
        if function is None or len(values) != 1:
            raise Unreadable(f"{kind} has no value")
        return function(values[0])


PI_DIGITS = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
HALF, ONE_POINT = Numeric(Decimal("0.5")), Numeric(Decimal(1))
IMAGINARY = Numeric(Decimal(0), Decimal(1))


def _exp(z: Numeric) -> Numeric:
    if abs(z.re) > 10**5:
        raise Unreadable("an exponent too large")
    radius, cos, sin = z.re.exp(), *_cos_sin(z.im)
    return Numeric(radius * cos, radius * sin, 4 * radius * (z.error + ROUNDING * (1 + abs(z.im))))


def _cos_sin(x: Decimal) -> tuple[Decimal, Decimal]:
    """Cosine and sine by their series, after whole turns are taken off."""
    x -= (x / (2 * PI_DIGITS)).to_integral_value() * 2 * PI_DIGITS
    cos, sin, term, n = Decimal(0), Decimal(0), Decimal(1), 0
    while abs(term) > Decimal("1e-65"):
        if n % 2:
            sin += -term if n % 4 == 3 else term
        else:
            cos += -term if n % 4 == 2 else term
        n += 1
        term = term * x / n
    return cos, sin


def _ln(z: Numeric) -> Numeric:
    if z.size <= 4 * z.error:
        raise Unreadable("the logarithm of a number that may be zero")
    if z.im and abs(z.im) <= z.error and z.re < 0:
        z = Numeric(z.re, Decimal(0), z.error)  # on the cut: the principal value
    radius = (z.re * z.re + z.im * z.im).sqrt()
    return Numeric(radius.ln(), _angle(z.re, z.im), 4 * z.error / radius)


def _angle(re: Decimal, im: Decimal) -> Decimal:
    """atan2 by Newton on the angle that floating point gives."""
    if not im:
        return Decimal(0) if re > 0 else PI_DIGITS
    radius = (re * re + im * im).sqrt()
    x, y = re / radius, im / radius
    angle = Decimal(math.atan2(float(y), float(x)))
    for _ in range(2):
        cos, sin = _cos_sin(angle)
        # The sine of the remaining difference; its arcsine by the first terms of the series.
        error = y * cos - x * sin
        angle += error + error**3 / 6 + 3 * error**5 / 40
    return angle


def _sin(z: Numeric) -> Numeric:
    up, down = _exp(IMAGINARY * z), _exp(Numeric(Decimal(0), Decimal(-1)) * z)
    return (up - down) * Numeric(Decimal(0), Decimal("-0.5"))


def _cos(z: Numeric) -> Numeric:
    return (_exp(IMAGINARY * z) + _exp(Numeric(Decimal(0), Decimal(-1)) * z)) * HALF


def _arcsin(z: Numeric) -> Numeric:
    inside = Numeric(Decimal(1)) - z * z
    if inside.size > 4 * inside.error:
        root = _exp(_ln(inside) * HALF)
    else:
        root = Numeric(Decimal(0), Decimal(0), inside.error)
    return Numeric(Decimal(0), Decimal(-1)) * _ln(IMAGINARY * z + root)


def _arctan(z: Numeric) -> Numeric:
    one, iz = Numeric(Decimal(1)), IMAGINARY * z
    return (_ln(one - iz) - _ln(one + iz)) * Numeric(Decimal(0), Decimal("0.5"))


def _real(z: Numeric) -> Decimal:
    if abs(z.im) > z.error:
        raise Unreadable("not a real number")
    return z.re


def _floor(z: Numeric, up: bool = False) -> Numeric:
    x, nearest = _real(z), _real(z).to_integral_value()
    if abs(x - nearest) <= z.error:
        return Numeric(nearest)
    return Numeric(Decimal(math.ceil(x) if up else math.floor(x)))


def _whole(z: Numeric) -> int:
    x = _real(z).to_integral_value()
    if (z - Numeric(x)).size > z.error or not -200 < x < 200:
        raise Unreadable("no whole number, or a large one")
    return int(x)


def _factorial(z: Numeric, step: int = 1) -> Numeric:
    n = _whole(z)
    if n < 0:
        raise Unreadable("the factorial of a negative number")
    return Numeric(Decimal(math.prod(range(n, 0, -step))))


def _arsinh(z: Numeric) -> Numeric:
    return _ln(z + _root(z * z + ONE_POINT))


def _arcosh(z: Numeric) -> Numeric:
    return _ln(z + _root(z * z - ONE_POINT))


def _artanh(z: Numeric) -> Numeric:
    return (_ln(ONE_POINT + z) - _ln(ONE_POINT - z)) * HALF


def _root(z: Numeric) -> Numeric:
    return _exp(_ln(z) * HALF)


NUMERIC = {
    "factorial": _factorial,
    "double factorial": lambda z: _factorial(z, step=2),
    "ln": _ln,
    "sin": _sin,
    "cos": _cos,
    "tan": lambda z: _sin(z) * _cos(z).inverse(),
    "cot": lambda z: _cos(z) * _sin(z).inverse(),
    "sec": lambda z: _cos(z).inverse(),
    "csc": lambda z: _sin(z).inverse(),
    "sinh": lambda z: (_exp(z) - _exp(Numeric(-z.re, -z.im, z.error))) * HALF,
    "cosh": lambda z: (_exp(z) + _exp(Numeric(-z.re, -z.im, z.error))) * HALF,
    "tanh": lambda z: NUMERIC["sinh"](z) * NUMERIC["cosh"](z).inverse(),
    "arcsin": _arcsin,
    "arccos": lambda z: Numeric(PI_DIGITS / 2) - _arcsin(z),
    "arctan": _arctan,
    "arccot": lambda z: Numeric(PI_DIGITS / 2) - _arctan(z),
    "arcsec": lambda z: Numeric(PI_DIGITS / 2) - _arcsin(z.inverse()),
    "arccsc": lambda z: _arcsin(z.inverse()),
    "coth": lambda z: NUMERIC["tanh"](z).inverse(),
    "sech": lambda z: NUMERIC["cosh"](z).inverse(),
    "csch": lambda z: NUMERIC["sinh"](z).inverse(),
    "arsinh": _arsinh,
    "arcosh": _arcosh,
    "artanh": _artanh,
    "arcoth": lambda z: _artanh(z.inverse()),
    "arsech": lambda z: _arcosh(z.inverse()),
    "arcsch": lambda z: _arsinh(z.inverse()),
    "abs": lambda z: Numeric((z.re * z.re + z.im * z.im).sqrt(), error=2 * z.error),
    "floor": _floor,
    "ceil": lambda z: _floor(z, up=True),
}


def real_value(value: Value, budget: Budget) -> Decimal | None:
    """The value as a real number in fifty digits, or None if it has variables or is not real."""
    with localcontext(PRECISION):
        points = Points(0, budget)
        try:
            found = points.value(value)
        except (Unreadable, ArithmeticError):
            return None
        inexact = found.error > ROUNDING * 10**20 * (1 + found.size)
        return None if points.seen or abs(found.im) > found.error or inexact else found.re


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m grader.identity EXPRESSION EXPRESSION")
    try:
        exact_algebra = Algebra(Budget(10_000))
        both = [Evaluator(exact_algebra).value(parse(text, exact_algebra.budget)[1])
                for text in sys.argv[1:]]
        print("equal" if same(*both, exact_algebra) else "not equal")
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
