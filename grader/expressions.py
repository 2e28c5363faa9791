r"""Read tokens into the tree of an expression, as a mathematician reads `2\sqrt3` and `\sin^2 2x`.

    python -m grader.expressions '2\sqrt{3} + 1/x'

Recursive descent over the tokens of scanner.py. Each level of precedence is a method and calls the
next level:

    sum        product + product - product
    product    factor factor * factor / factor
    factor     a primary with what follows it: x^2, 5!, x', 30^\circ, 25\%
    primary    a number, a name, (sum), |sum|, \frac, \sqrt, \sin, \begin{pmatrix}

A node of the tree is a tuple that begins with its kind:

    ("number", value, decimals, significant)    value is an int or a Fraction. A number with a point
                                                has digits behind it, else decimals is None
    ("name", x)   ("negative", a)   ("sum", terms)   ("product", factors)   ("quotient", a, b)
    ("power", a, b)   ("root", n, a)   ("call", function, arguments)
    ("either", k, a) is plus or minus a, ("neither", k, a) is minus or plus a: the k-th such sign
    ("matrix", rows)   ("based", digits, base)

Any other text raises Unreadable. Steps are counted, and nesting is limited.
"""

import sys
from fractions import Fraction

from grader.scanner import END, Budget, Token, Unreadable, scan
from grader.tables import (AGGREGATES, ANGLES, CURRENCIES, FUNCTIONS, GREEK, INVERSES, NO_UNITS,
                           TEMPERATURES, UNIT_COMMANDS)
from grader.units import UnitReader

DEEPEST_NESTING = 40  # levels
RELATIONS = {sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=", "in")}
RELATIONS |= {"le": "<=", "ge": ">=", "ne": "!=", "approx": "="}
SIGNS = {"+": None, "-": "negative", "pm": "either", "mp": "neither"}
SUFFIXES = {"!", "^", "'", "%", r"\%", "degree", "ordinal"}
SEPARATORS = {",", ";", "and", "or"}
# Marks of a name, which are a part of it.
MARKS = {"overline", "vec", "hat", "bar", "overrightarrow", "tilde", "dot", "det", "deg", "dim"}
CLOSED_BY = {"(": ")", "[": "]", "{": "}", "|": "|", "lfloor": "rfloor", "lceil": "rceil"}
MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}
FACTOR_STARTS = {"number", "letter", "(", "[", "{", "frac", "sqrt", "surd", "binom", "reals",
                 "lfloor", "lceil", "begin", "dots"} | FUNCTIONS | GREEK | MARKS
UNIT_STARTS = {"word", "letter", "/", "(", "mu", *UNIT_COMMANDS, *CURRENCIES}
# A function without brackets takes no factor that begins so, unless it is the first one.
ARGUMENT_ENDS = {"(", "[", "{", "|", "sqrt", "surd", "lfloor", "lceil", "begin"} | FUNCTIONS


class ExpressionReader(UnitReader):
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[Token], budget: Budget):
        super().__init__(tokens, budget)
        budget.take(4 * len(tokens))  # each token is read once
        self.depth = 0
        self.angles = 0  # functions around this place: in \sin 30^\circ, the degrees are an angle
        self.bars = 0  # open bars: in |x|, the second one closes
        self.signs = 0  # plus or minus signs so far

    def descend(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST_NESTING:
            raise Unreadable("nested too deep")

    # -- several values

    def items(self, ends: tuple[str, ...]) -> list[tuple]:
        """Values between separators, up to one of the end tokens, which is taken too."""
        self.descend()
        found: list[tuple] = []
        while not self.accept(*ends):
            while self.separator():
                pass
            if self.next.kind == "." and self.tokens[self.at + 1].kind == END:
                self.take()
            if self.next.kind not in ends:
                found.append(self.item())
                if self.next.kind not in ends and not self.separator() and self.next.kind != ".":
                    raise Unreadable("neither an end nor a separator")
        self.depth -= 1
        return found

    def item(self) -> tuple:
        """One of several values: here an expression. AnswerReader reads any kind of answer."""
        return ("value", self.sum(), None)

    def separator(self) -> str | None:
        """Take a separator, if one is next."""
        return self.accept(*SEPARATORS)

    # -- sums and products

    def sum(self) -> tuple:
        self.descend()
        terms: list[tuple] = []
        while not terms or self.next.kind in SIGNS:
            signed = SIGNS[self.take().kind] if self.next.kind in SIGNS else None
            index = self.signs
            self.signs += signed in ("either", "neither")
            term = self.product()
            if signed == "negative":
                term = (signed, term)
            elif signed:
                term = (signed, index, term)
            terms.append(term)
        self.depth -= 1
        value = terms[0] if len(terms) == 1 else ("sum", terms)
        if self.next.kind in ("over", "choose"):  # {1 \over 2}
            over, below = self.take().kind == "over", self.sum()
            return ("quotient", value, below) if over else ("call", "binomial", [value, below])
        return value

    def product(self) -> tuple:
        r"""Factors with or without a sign between them.

        `/` takes only the factor behind it: `11\sqrt3/2` is 11 sqrt(3) / 2, and `1/2x` is x/2.
        """
        value = self.factor()
        while True:
            kind = self.next.kind
            if kind in UNIT_STARTS and self.unit_begins(value):
                scaled = self._scaled(value)
                if scaled is not None:
                    return scaled
            if kind == "*" or kind == "/":
                self.take()
                negative = self.accept("-")
                right = self.factor()
                right = ("negative", right) if negative else right
                value = ("quotient", value, right) if kind == "/" else _times(value, right)
            elif self._begins_factor() and not self._is_remainder():
                if value[0] == "number" and self.next.kind == "number":
                    value = self._mixed(value)
                elif value[0] == "number" and self.next.kind == "frac":
                    value = _maybe_mixed(value, self.factor())
                elif self.next.kind == "number" and self.tokens[self.at - 1].kind == "letter":
                    raise Unreadable("a letter before a number")
                else:
                    value = _times(value, self.factor())
            else:
                return value

    def _scaled(self, value: tuple) -> tuple | None:
        """The value times the scale words of the unit that is next; None if it is no unit."""
        letter = self.next.kind in ("letter", "/", "mu", *UNIT_COMMANDS)
        begin, unit = self.at, self.unit
        try:
            factor = self.read_unit()
        except Unreadable:
            if not letter:
                raise
            self.go_to(begin)  # a variable after all: 5 m + 2
            self.unit = unit
            return None
        return value if factor == 1 else ("product", [value, ("number", factor, None, 0)])

    def _is_remainder(self) -> bool:
        """Whether `R 2` of `5 R 2` is next."""
        return (self.next.kind == "letter" and self.next.text in ("R", "r")
                and self.tokens[self.at + 1].kind == "number")

    def _mixed(self, whole: tuple) -> tuple:
        """`1 3/4`: two numbers side by side have a meaning only as a mixed number."""
        top = self.factor()
        self.expect("/")
        bottom = self.factor()
        mixed = _maybe_mixed(whole, ("quotient", top, bottom))
        if mixed[0] != "sum":
            raise Unreadable("two numbers side by side")
        return mixed

    def _begins_factor(self) -> bool:
        return self.next.kind in FACTOR_STARTS or self.next.kind == "|" and self.bars == 0

    # -- factors

    def factor(self) -> tuple:
        """A primary with what follows it: powers, factorials, degrees, percent."""
        self.descend()
        value = self.primary()
        while self.next.kind in SUFFIXES:
            kind = self.take().kind
            if kind == "!":
                double = self.next.kind == "!" and not self.next.spaced and bool(self.take())
                value = ("call", "double factorial" if double else "factorial", [value])
            elif kind == "^":
                value = self._raised(value)
            elif kind == "'":
                value = _marked(value, "'")
            elif kind == "degree":
                value = self._degrees(value)
            elif kind != "ordinal":
                self.unit = "%"
        self.depth -= 1
        return value

    def _raised(self, value: tuple) -> tuple:
        r"""What stands behind `^`: `\circ`, a mark as in `x^*`, or an exponent."""
        braced, inside = self.next.kind == "{", self.next
        if braced:
            inside = self.tokens[self.at + 1]
            after = self.tokens[self.at + 2].kind
        letter_o = inside.text == "o" and value[0] != "name" and (not braced or after == "}")
        if not letter_o and inside.kind not in ("circ", "ordinal", "*", "'"):
            return ("power", value, self._argument())
        if braced:
            self.take()
        self.take()
        if inside.kind in ("*", "'"):
            value = _marked(value, inside.kind)
        elif inside.kind != "ordinal":
            value = self._degrees(value)
        if braced:
            self.expect("}")
            self._temperature()
        return value

    def _degrees(self, value: tuple) -> tuple:
        """A value in degrees: an angle inside of a function, and a unit elsewhere."""
        if self.angles:
            return ("product", [value, ("quotient", ("name", "pi"), _integer(180))])
        self.unit = "degree"
        self._temperature()
        return value

    def _temperature(self) -> None:
        """Take the C or F behind degrees."""
        if self.unit == "degree" and self.next.kind == "letter" and self.next.text in TEMPERATURES:
            self.unit = f"{TEMPERATURES[self.take().text]} degree"

    def _argument(self) -> tuple:
        """A group in braces or one token, perhaps with a sign, behind `^`, `_` or a command."""
        if self.accept("{"):
            value = self.sum()
            self.expect("}")
            return value
        if self.accept("-"):
            return ("negative", self.primary())
        return self.primary()

    def primary(self) -> tuple:
        token = self.take()
        kind = token.kind
        if kind == "number":
            return self._number(token.text)
        if kind == "word" and token.text.lower() in NO_UNITS:
            raise Unreadable("words behind a sign")
        if kind in ("letter", "word") or kind in GREEK:
            return ("name", self._subscripted(token.text or kind))
        if kind in MARKS:
            return ("call", kind, [self._argument()])
        if kind in CLOSED_BY:
            return self._bracketed(kind)
        if kind == "frac":
            return ("quotient", self._argument(), self._argument())
        if kind == "binom":
            return ("call", "binomial", [self._argument(), self._argument()])
        if kind in ("sqrt", "surd"):
            return self._root(kind)
        if kind in FUNCTIONS:
            return self._call(kind)
        if kind == "begin":
            return self._matrix()
        if kind in CURRENCIES:
            self.unit = CURRENCIES[kind]
            return self.factor()
        if kind in ("-", "+"):  # only behind \$
            value = self.factor()
            return ("negative", value) if kind == "-" else value
        if kind in ("reals", "dots"):
            return ("name", "R" if kind == "reals" else "...")
        raise Unreadable(f"no value begins with {kind}")

    def _bracketed(self, opening: str) -> tuple:
        """A sum in brackets, the absolute value of `|x|`, or a value rounded down or up."""
        bars = self.bars
        if opening == "|":
            self.bars += 1
        elif opening in ("(", "[", "{"):
            self.bars = 0  # inside brackets, a bar opens again
        value = self.sum()
        self.bars = bars
        self.expect(CLOSED_BY[opening])
        function = {"|": "abs", "lfloor": "floor", "lceil": "ceil"}.get(opening)
        return ("call", function, [value]) if function else value

    def _root(self, kind: str) -> tuple:
        degree = _integer(2)
        if kind == "sqrt" and self.next.kind == "number" and len(self.next.text) > 1:
            # TeX takes the root of the first digit, a person means the root of the number.
            raise Unreadable("a root of several digits without braces")
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        return ("root", degree, self._argument())

    # -- numbers and names

    def _number(self, text: str) -> tuple:
        if self.next.kind == "_":
            return self._based(text)
        if text.isdigit():
            return _integer(int(text))
        return _decimal(text)

    def _based(self, numeral: str) -> tuple:
        """`12_5`: the numeral 12 in base 5."""
        self.expect("_")
        base = self._argument()
        if (base[0] != "number" or base[1] not in range(2, 37) or not numeral.isdigit()
                or int(max(numeral)) >= base[1]):
            raise Unreadable("the index of a number is not its base")
        return ("based", numeral, int(base[1]))

    def _subscripted(self, name: str) -> str:
        """`x_1`, `a_{n+1}`: the index is a part of the name."""
        if not self.accept("_"):
            return name
        if not self.accept("{"):
            token = self.take()
            return f"{name}_{token.text or token.kind}"
        pieces = []
        while self.next.kind not in ("}", END):
            token = self.take()
            pieces.append(token.text or token.kind)
        self.expect("}")
        return f"{name}_{''.join(pieces)}"

    # -- functions and matrices

    def _call(self, function: str) -> tuple:
        r"""`\sin x`, `\sin^2 2x`, `\sin^{-1} x`, `\log_2 8`, `\gcd(a, b)`."""
        power = base = None
        for _ in range(2):
            if self.accept("^"):
                power = self._argument()
            elif function == "log" and self.accept("_"):
                base = self._argument()
        if power and power[0] == "negative" and power[1][:2] == ("number", 1):
            function, power = self._inverse(function), None
        self.angles += 1
        arguments = self._arguments(function)
        self.angles -= 1
        if function == "exp":
            value = ("power", base or ("name", "e"), arguments[0])
        elif function == "log":
            base = _integer(10) if base is None else base
            value = ("quotient", ("call", "ln", arguments), ("call", "ln", [base]))
        else:
            value = ("call", function, arguments)
        return ("power", value, power) if power else value

    def _inverse(self, function: str) -> str:
        """The function that `^{-1}` on a function's name says. It is never the reciprocal."""
        if function not in INVERSES:
            raise Unreadable(f"the inverse of {function}")
        return INVERSES[function]

    def _arguments(self, function: str) -> list[tuple]:
        r"""What a function is applied to.

        Without brackets, all factors up to the next function, bracket or sum: `\sin x(1-x)` is
        (1-x) sin x. So is a power of e: `\sin x\,e^x`. `\cos 2\pi/3` is the cosine of an angle.
        """
        if function in AGGREGATES:
            return self._several_arguments()
        if self.next.kind in ("(", "{"):
            return [self.primary()]
        value = self.factor()
        while self._begins_factor() and self.next.kind not in ARGUMENT_ENDS and not (
                self.next.text == "e" and self.tokens[self.at + 1].kind == "^"):
            if self.next.kind == "frac":
                value = _maybe_mixed(value, self.factor())
            else:
                value = _times(value, self.factor())
        angle = function in ANGLES and self.tokens[self.at - 1].kind == "pi"
        if angle and self.next.kind == "/" and self.tokens[self.at + 1].kind == "number":
            self.take()
            value = ("quotient", value, self.factor())
        return [value]

    def _several_arguments(self) -> list[tuple]:
        """`(a, b)` behind a function such as gcd."""
        self.expect("(", r"\{")
        unit, signs = self.unit, self.signs  # of the value around this call
        items = self.items((")", r"\}"))
        if self.signs > signs or any(item[0] != "value" or item[2] for item in items):
            raise Unreadable("an argument that is no number")
        self.unit = unit
        return [item[1] for item in items]

    def _matrix(self) -> tuple:
        r"""Rows of cells between `\begin` and `\end`, in any brackets but those of `vmatrix`."""
        name = self._environment()
        if name not in MATRICES:
            raise Unreadable(f"environment {name}")
        if name == "array":
            self._columns()
        rows: list[list[tuple]] = [[]]
        signs = self.signs
        while not self.accept("end"):
            rows[-1].append(self.sum())
            if self.accept("\\\\"):
                if self.next.kind != "end":
                    rows.append([])
            elif not self.accept("&") and self.next.kind != "end":
                raise Unreadable("a cell that does not end")
        if self._environment() != name or self.signs > signs:
            raise Unreadable("the end is not that of its begin, or a cell has two values")
        return ("matrix", rows)

    def _columns(self) -> None:
        """Take the columns `{cc}` of an array."""
        if self.accept("{"):
            while not self.accept("}"):
                self.take()

    def _environment(self) -> str:
        self.expect("{")
        name = ""
        while not self.accept("}"):
            name += self.take().text
        return name


def _integer(value: int) -> tuple:
    return ("number", value, None, 0)


def _decimal(text: str) -> tuple:
    """The node of `0.50`, of `1.5e-3`, or of `0.1(6)`, whose last digits repeat without end."""
    numeral, _, exponent = text.partition("e")
    whole, _, behind = numeral.partition(".")
    behind, _, again = behind.rstrip(")").partition("(")
    written, power = int(whole + behind or "0"), int(exponent or "0")
    if again:
        repeated = int(whole + behind + again) - written
        return ("number", Fraction(repeated, (10 ** len(again) - 1) * 10 ** len(behind)), None, 0)
    decimals, significant = len(behind) - power, len((whole + behind).lstrip("0"))
    value = Fraction(written) * Fraction(10) ** -decimals
    if decimals <= 0:
        return _integer(int(value))
    return ("number", value, decimals, significant)


def _marked(value: tuple, mark: str) -> tuple:
    """The name with a mark: x', x^*."""
    if value[0] != "name":
        raise Unreadable("a mark that follows no name")
    return ("name", value[1] + mark)


def _times(left: tuple, right: tuple) -> tuple:
    factors = left[1] if left[0] == "product" else [left]
    return ("product", [*factors, right])


def _maybe_mixed(whole: tuple, part: tuple) -> tuple:
    r"""`1\frac34` is 1 + 3/4. `2\frac{x}{3}` is a product, and so is `2\frac{7}{3}`: 7/3 > 1."""
    if part[0] == "quotient" and part[1][0] == part[2][0] == "number":
        numbers = [value[1] for value in (whole, part[1], part[2])]
        integers = whole[2] is None and all(number.denominator == 1 for number in numbers)
        if integers and 0 < numbers[1] < numbers[2]:
            return ("sum", [whole, part])
    return _times(whole, part)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.expressions EXPRESSION")
    try:
        step_budget = Budget(10_000)
        reader = ExpressionReader(scan(sys.argv[1], step_budget), step_budget)
        print(reader.sum())
        reader.expect(END)
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
