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
    ("either", a) is plus or minus a   ("neither", a) is minus or plus a
    ("matrix", rows)   ("based", digits, base)

Any other text raises Unreadable. Steps are counted, and nesting is limited.
"""

import sys
from fractions import Fraction
from string import digits

from grader.scanner import (END, FUNCTIONS, GREEK, UNITS, Budget, Cursor, Token, Unreadable, scan,
                            unit_name)

DEEPEST_NESTING = 40  # levels
RELATIONS = {sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=", "in")}
RELATIONS |= {"le": "<=", "ge": ">=", "ne": "!=", "approx": "="}
SIGNS = {"+": None, "-": "negative", "pm": "either", "mp": "neither"}
SUFFIXES = {"!", "^", "'", "%", r"\%"}
SEPARATORS = {",", ";", "and", "or"}
AGGREGATES = {"gcd", "lcm", "min", "max"}  # functions of several arguments
# Marks above or around a name, which are a part of it.
MARKS = {"mathbb", "overline", "vec", "hat", "bar", "overrightarrow"}
CLOSED_BY = {"(": ")", "[": "]", "{": "}", "|": "|", "lfloor": "rfloor", "lceil": "rceil"}
MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}
FACTOR_STARTS = {"number", "letter", "word", "(", "[", "{", "frac", "sqrt", "surd", "binom",
                 "lfloor", "lceil", "begin"} | FUNCTIONS | GREEK | MARKS


class ExpressionReader(Cursor):
    """Recursive descent over tokens. `unit` holds the unit that stands beside the value."""

    def __init__(self, tokens: list[Token], budget: Budget):
        super().__init__(tokens)
        budget.take(4 * len(tokens))  # each token is read once
        self.depth = 0
        self.angles = 0  # functions around this place: in \sin 30^\circ, the degrees are an angle
        self.bars = 0  # open bars: in |x|, the second one closes
        self.unit: str | None = None
        self.two_values = False  # whether a plus or minus stands in the value

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
            while self._separator():
                pass
            if self.next.kind == "." and self.tokens[self.at + 1].kind == END:
                self.take()
            if self.next.kind not in ends:
                found.append(self.item())
                if self.next.kind not in ends and not self._separator() and self.next.kind != ".":
                    raise Unreadable("neither an end nor a separator")
        self.depth -= 1
        return found

    def item(self) -> tuple:
        """One of several values: here an expression. AnswerReader reads any kind of answer."""
        return ("value", self.sum(), None)

    def _separator(self) -> bool:
        token = self.next
        word = token.text.strip(" ,.").lower() if token.kind == "text" else token.kind
        if word in SEPARATORS or token.kind == "text" and word == "":
            self.take()
            return True
        return False

    # -- sums and products

    def sum(self) -> tuple:
        self.descend()
        terms: list[tuple] = []
        while not terms or self.next.kind in SIGNS:
            signed = SIGNS[self.take().kind] if self.next.kind in SIGNS else None
            term = self.product()
            terms.append((signed, term) if signed else term)
            self.two_values |= signed in ("either", "neither")
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("sum", terms)

    def product(self) -> tuple:
        r"""Factors with or without a sign between them.

        `/` takes only the factor behind it: `11\sqrt3/2` is 11 sqrt(3) / 2, and `1/2x` is x/2.
        """
        value = self.factor()
        while True:
            kind = self.next.kind
            if kind == "*" or kind == "/":
                self.take()
                negative = self.accept("-")
                right = self.factor()
                right = ("negative", right) if negative else right
                value = ("quotient", value, right) if kind == "/" else _times(value, right)
            elif kind == "word" and self._unit_words():
                return value
            elif self._begins_factor():
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

    # -- units

    def _unit_words(self) -> bool:
        """Take `apples` of `5 apples`, if such words are next."""
        # A word that touches its number is a factor, as in 3xyz.
        if not self.next.spaced and self.next.text not in UNITS:
            return False
        words = []
        while self.next.kind == "word" or words and self.next.kind == "letter":
            words.append(self.take().text)
        if self.accept("^"):
            words[-1] += "^" + self.exponent_of_unit()
        self.take_unit(" ".join(words))
        if self.next.kind not in (END, ".", ")", "]", r"\}", "}", *SEPARATORS, *RELATIONS):
            raise Unreadable("a unit inside a value")
        return True

    def exponent_of_unit(self) -> str:
        """The 2 of `cm^2` or `cm^{2}`, behind the `^`."""
        braced = self.accept("{")
        exponent = self.take()
        if exponent.kind != "number":
            raise Unreadable("the exponent of a unit is no number")
        if braced:
            self.expect("}")
        return exponent.text

    def take_unit(self, text: str) -> None:
        """Keep the unit of the value. A value has one."""
        words = text.replace(".", " ").replace("(", " ").replace(")", " ").split()
        if not all(c.isalpha() or c in "/^-%,'" or c in digits for word in words for c in word):
            raise Unreadable("no unit")
        if words in (["th"], ["st"], ["nd"], ["rd"]) or not words:
            return
        self.unit = unit_name(words)

    # -- factors

    def factor(self) -> tuple:
        """A primary with what follows it: powers, factorials, degrees, percent."""
        self.descend()
        value = self.primary()
        while self.next.kind in SUFFIXES:
            kind = self.take().kind
            if kind == "!":
                value = ("call", "factorial", [value])
            elif kind == "^":
                value = self._raised(value)
            elif kind == "'":
                if value[0] != "name":
                    raise Unreadable("a prime that follows no name")
                value = ("name", value[1] + "'")
            else:
                self.unit = "%"
        self.depth -= 1
        return value

    def _raised(self, value: tuple) -> tuple:
        r"""What stands behind `^`: `\circ`, the text of `5^{\text{th}}`, or an exponent."""
        braced = self.next.kind == "{" and self.tokens[self.at + 1].kind in ("circ", "text")
        if braced:
            self.take()
        if self.accept("circ"):
            if self.angles:
                value = ("product", [value, ("quotient", ("name", "pi"), _integer(180))])
            else:
                self.unit = "degree"
            if braced:
                self.accept("text")  # C or F
                self.expect("}")
            return value
        if self.next.kind == "text":
            if self.take().text.strip() not in ("th", "st", "nd", "rd"):
                raise Unreadable("a text as an exponent")
            if braced:
                self.expect("}")
            return value
        return ("power", value, self._argument())

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
        if kind == r"\$":
            self.unit = "dollar"
            return self.factor()
        if kind in ("-", "+"):  # only behind \$
            value = self.factor()
            return ("negative", value) if kind == "-" else value
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
        whole, _, behind = text.partition(".")
        if self.next.kind in ("overline", "bar") and "." in text:
            return self._repeating(whole, behind)
        if self.next.kind == "_":
            return self._based(text)
        if not behind:
            return _integer(int(whole))
        significant = len((whole + behind).lstrip("0"))
        return ("number", Fraction(int(whole + behind), 10**len(behind)), len(behind), significant)

    def _repeating(self, whole: str, behind: str) -> tuple:
        r"""`0.1\overline{6}`: the digits under the bar repeat without end."""
        self.take()
        self.expect("{")
        again = self.take().text
        self.expect("}")
        if not again.isdigit():
            raise Unreadable("no digits under the bar")
        repeated = int(whole + behind + again) - int(whole + behind or "0")
        return ("number", Fraction(repeated, (10 ** len(again) - 1) * 10 ** len(behind)), None, 0)

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
        r"""`\sin x`, `\sin^2 2x`, `\log_2 8`, `\gcd(a, b)`."""
        power = base = None
        for _ in range(2):
            if self.accept("^"):
                power = self._argument()
            elif function == "log" and self.accept("_"):
                base = self._argument()
        self.angles += 1
        arguments = self._arguments(function)
        self.angles -= 1
        if function == "exp":
            value = ("power", ("name", "e"), arguments[0])
        elif function == "log":
            base = _integer(10) if base is None else base
            value = ("quotient", ("call", "ln", arguments), ("call", "ln", [base]))
        else:
            value = ("call", function, arguments)
        inverse = power and power[0] == "negative" and power[1][:2] == ("number", 1)
        if inverse and function in ("sin", "cos", "tan"):
            return ("call", f"arc{function}", arguments)
        return ("power", value, power) if power else value

    def _arguments(self, function: str) -> list[tuple]:
        """What a function is applied to: without brackets, all factors up to the next function."""
        if function in AGGREGATES:
            self.expect("(", r"\{")
            unit, two_values = self.unit, self.two_values  # of the value around this call
            items = self.items((")", r"\}"))
            self.unit, self.two_values = unit, two_values
            if any(item[0] != "value" or item[2] for item in items):
                raise Unreadable("an argument that is no number")
            return [item[1] for item in items]
        if self.accept("("):
            value = self.sum()
            self.expect(")")
            return [value]
        value = self.factor()
        while self._begins_factor() and self.next.kind not in FUNCTIONS:
            value = _times(value, self.factor())
        return [value]

    def _matrix(self) -> tuple:
        r"""Rows of cells between `\begin` and `\end`, in any brackets but those of `vmatrix`."""
        name = self._environment()
        if name not in MATRICES:
            raise Unreadable(f"environment {name}")
        if name == "array" and self.accept("{"):
            while not self.accept("}"):
                self.take()
        rows: list[list[tuple]] = [[]]
        while not self.accept("end"):
            rows[-1].append(self.sum())
            if self.accept("\\\\"):
                if self.next.kind != "end":
                    rows.append([])
            elif not self.accept("&") and self.next.kind != "end":
                raise Unreadable("a cell that does not end")
        if self._environment() != name or self.two_values:
            raise Unreadable("the end is not that of its begin, or a cell has two values")
        return ("matrix", rows)

    def _environment(self) -> str:
        self.expect("{")
        name = ""
        while not self.accept("}"):
            name += self.take().text
        return name


def _integer(value: int) -> tuple:
    return ("number", value, None, 0)


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
