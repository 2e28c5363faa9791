r"""From the text of an answer to a tree: LaTeX, plain typing and a model's habits, read as a mathematician would.

    python -m grader.latex '\left[\frac12, 3\sqrt2\right)'

Recursive descent over the tokens of scanner.py, one method a level of precedence. Nodes are tuples that begin with their
kind. Answers are

    ("list", items) in any order, ("set", items), ("tuple", brackets, items) of coordinates or the ends of an interval,
    ("union", parts), ("minus", left, right), ("relation", signs, sides), ("matrix", rows), ("based", digits, base),
    ("words", text), ("value", expression, unit or None), ("values", expression, unit or None) of an expression with plus or minus

and expressions

    ("number", int or Fraction, digits behind the point or None, significant digits), ("name", x), ("sum", terms),
    ("product", factors), ("quotient", a, b), ("power", a, b), ("root", n, a), ("negative", a), ("call", function, arguments),
    ("either", a) for plus or minus a, ("neither", a) for minus or plus a

Whatever is no such thing raises Unreadable, and is then compared as text. Work is counted, and nesting is limited.
"""

import sys
from fractions import Fraction

from grader.scanner import (CLOSE, DIGITS, END, FUNCTIONS, GREEK, OPEN, SPELLED, TEXT, UNITS,
                            Budget, Token, Unreadable, scan)

DEEPEST = 40  # levels of nesting
RELATIONS = {sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=", "in")}
RELATIONS |= {"le": "<=", "ge": ">=", "ne": "!=", "approx": "="}
MATHEMATICAL = {*"0123456789+*/=<>^_|&%[]"}  # not found in an answer of words
SIGNS = {"+": None, "-": "negative", "pm": "either", "mp": "neither"}
SUFFIXES = {"!", "^", "'", "%", r"\%"}
SEPARATORS = {",", ";", "and", "or"}
AGGREGATES = {"gcd", "lcm", "min", "max"}  # functions of several arguments
MARKS = {"mathbb", "overline", "vec", "hat", "bar",
         "overrightarrow"}  # set above or around a name, and a part of it
FACTOR_STARTS = {
    "number", "letter", "word", "(", "[", "{", "frac", "sqrt", "surd", "binom", "lfloor", "lceil",
    "begin"
}
FACTOR_STARTS |= FUNCTIONS | GREEK | MARKS
MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}


def parse(text: str, budget: Budget) -> tuple:
    """The tree of an answer. Raises Unreadable."""
    words = _only_words(text)
    if words:
        return ("words", words)
    reader = Reader(scan(text, budget), budget)
    tree = reader.items((END,))
    if len(tree) == 0:
        raise Unreadable("nothing there")
    return tree[0] if len(tree) == 1 else ("list", tree)


def _only_words(text: str) -> str:
    """The words of an answer that has no mathematics in it, in lower case; one letter is a variable, not a word."""
    if MATHEMATICAL & {*text} or text.count("{") != text.count("}"):
        return ""
    for command in TEXT:
        text = text.replace(f"\\{command}{{", "{")
    plain = "".join(" " if c in "{}()$~.!?'\"" or c.isspace() else c for c in text).split()
    joined = "".join(plain)
    if all(len(part) > 2 for part in joined.split("-")):
        joined = joined.replace("-", "")  # twenty-one, and not p-q
    if len(joined
           ) < 2 or not joined.isascii() or not joined.isalpha() or SPELLED.keys() & set(plain):
        return ""
    if all(len(word) < 3 for word in plain) and "{" not in text:
        return ""  # two letters side by side are a product, unless marked as text
    return " ".join(plain).lower()


class Reader:
    """Recursive descent over tokens. `unit` collects what stands beside the value that is being read."""

    def __init__(self, tokens: list[Token], budget: Budget):
        budget.take(4 * len(tokens))  # no token is read twice
        self.tokens, self.next = tokens, tokens[0]
        self.at = self.depth = self.angles = self.bars = 0
        self.unit: str | None = None
        self.two_values = False  # whether a plus or minus stands in it
        self.collections = _collections(tokens)

    # -- tokens

    def take(self) -> Token:
        token = self.next
        self.at += 1
        if self.at == len(self.tokens):
            raise Unreadable("cut")
        self.next = self.tokens[self.at]
        return token

    def accept(self, *kinds: str) -> str | None:
        """Take the next token if it is of one of these kinds."""
        return self.take().kind if self.next.kind in kinds else None

    def expect(self, *kinds: str) -> str:
        if self.next.kind not in kinds:
            raise Unreadable(f"{kinds} expected")
        return self.take().kind

    def descend(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")

    # -- answers

    def items(self, ends: tuple[str, ...]) -> list[tuple]:
        """Answers between separators, up to one of the end tokens, which is taken too."""
        self.descend()
        found: list[tuple] = []
        while not self.accept(*ends):
            while self._separator():
                pass
            if self.next.kind == "." and self.tokens[self.at + 1].kind == END:
                self.take()
            if self.next.kind not in ends:
                found.append(self.relation())
                if self.next.kind not in ends and not self._separator() and self.next.kind != ".":
                    raise Unreadable("neither an end nor a separator")
        self.depth -= 1
        return found

    def _separator(self) -> bool:
        token = self.next
        word = token.text.strip(" ,.").lower() if token.kind == "text" else token.kind
        if word in SEPARATORS or token.kind == "text" and word == "":
            self.take()
            return True
        return False

    def relation(self) -> tuple:
        """`a`, `a = b`, `a < b <= c`. What is only near the value before it is passed over."""
        sides, signs = [self.union()], []
        while self.next.kind in RELATIONS:
            named = sides[-1][0] == "value" and sides[-1][1][0] == "name"
            if self.next.kind == "approx" and not named:
                self.take()
                self.union()
                continue
            signs.append(RELATIONS[self.take().kind])
            sides.append(self.union())
        return ("relation", signs, sides) if signs else sides[0]

    def union(self) -> tuple:
        parts = [self.part()]
        while self.accept("cup") or parts[-1][0] in ("tuple", "set") and self._typed_union():
            parts.append(self.part())
        tree = parts[0] if len(parts) == 1 else ("union", parts)
        while self.accept("setminus"):
            tree = ("minus", tree, self.part())
        return tree

    def _typed_union(self) -> bool:
        """Take the U of `(1, 2) U (3, 4)`."""
        return self.next.kind == "letter" and self.next.text == "U" and bool(self.take())

    def part(self) -> tuple:
        """A bracketed collection, words, or a value with its unit."""
        kind = self.next.kind
        if kind == "emptyset":
            self.take()
            return ("set", [])
        if kind == r"\{":
            self.take()
            if self.tokens[self.at].kind == "letter" and self.tokens[self.at + 1].kind in ("|",
                                                                                           ":"):
                return self._set_of_all()
            return ("set", self.items((r"\}",)))
        if self.at in self.collections:
            return self._collection()
        if kind == "text" or kind == "word":
            return self._words()
        self.unit, self.two_values = None, False
        value = self.sum()
        if value[0] == "negative" and value[1][0] == "based":
            value = ("based", "-" + value[1][1], value[1][2])
        if value[0] in ("matrix", "based"):
            return value
        if self.next.kind == "text" and not self._is_separator_text():
            self._take_unit(self.take().text)
            if self.accept("^"):
                self._take_unit((self.unit or "") + "^" + str(self._exponent_of_unit()))
        return ("values" if self.two_values else "value", value, self.unit)

    def _is_separator_text(self) -> bool:
        return self.next.text.strip(" ,.").lower() in ("and", "or", "")

    def _collection(self) -> tuple:
        """A tuple or an interval; a set too where it stands in braces that TeX would not print."""
        opening = self.take().kind
        found = self.items(("}",) if opening == "{" else (")", "]", "rangle"))
        closing = self.tokens[self.at - 1].kind
        if opening == "{":
            return ("set", found)
        if (closing == "rangle") != (opening == "langle"):
            raise Unreadable("brackets of two kinds")
        return ("tuple", opening + closing, found)

    def _set_of_all(self) -> tuple:
        r"""`\{x \mid x > 2\}`: what is said of x."""
        self.take()
        self.take()
        said = self.relation()
        self.expect(r"\}")
        return said

    def _words(self) -> tuple:
        r"""Words: `\text{(C)}` is the letter in it, and any other text its words in lower case."""
        pieces = []
        while self.next.kind in ("text", "word") and not (pieces and self._is_separator_text()):
            pieces.append(self.take().text)
        text = " ".join("".join(" " if c in "(){}.~$" else c for c in " ".join(pieces)).split())
        if not text:
            raise Unreadable("an empty text")
        if len(text) == 1 and text.isalpha():
            return ("value", ("name", text), None)
        if any(c in DIGITS for c in text) or "\\" in text:
            raise Unreadable("digits in a text")
        return ("words", text.lower())

    def _exponent_of_unit(self) -> str:
        braced = self.accept("{")
        exponent = self.take()
        if exponent.kind != "number":
            raise Unreadable("a unit to no number")
        if braced:
            self.expect("}")
        return exponent.text

    def _take_unit(self, text: str) -> None:
        """Note the unit of the value; a value has one."""
        words = text.replace(".", " ").replace("(", " ").replace(")", " ").split()
        if not all(c.isalpha() or c in "/^-%,'" or c in DIGITS for word in words for c in word):
            raise Unreadable("no unit")
        if words in (["th"], ["st"], ["nd"], ["rd"]) or not words:
            return
        self.unit = unit_name(words)

    # -- expressions

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
        """Factors with or without a sign between them; `/` takes only the factor behind it: 11\\sqrt3/2, 1/2x = x/2."""
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
        """`1 3/4`: two numbers side by side mean something only as a mixed number."""
        top = self.factor()
        self.expect("/")
        bottom = self.factor()
        mixed = _maybe_mixed(whole, ("quotient", top, bottom))
        if mixed[0] != "sum":
            raise Unreadable("two numbers side by side")
        return mixed

    def _unit_words(self) -> bool:
        """Take `apples` of `5 apples`, if such words are next. A word that touches its number is a factor: 3xyz."""
        if not self.next.spaced and self.next.text not in UNITS:
            return False
        words = []
        while self.next.kind == "word" or words and self.next.kind == "letter":
            words.append(self.take().text)
        if self.accept("^"):
            words[-1] += "^" + self._exponent_of_unit()
        self._take_unit(" ".join(words))
        if self.next.kind not in (END, ".", ")", "]", r"\}", "}", *SEPARATORS, *RELATIONS):
            raise Unreadable("a unit amid a value")
        return True

    def _begins_factor(self) -> bool:
        return self.next.kind in FACTOR_STARTS or self.next.kind == "|" and self.bars == 0

    def factor(self) -> tuple:
        """A primary with what hangs on it: powers, factorials, degrees, percent."""
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
                    raise Unreadable("a prime on no name")
                value = ("name", value[1] + "'")
            else:
                self.unit = "%"
        self.depth -= 1
        return value

    def _raised(self, value: tuple) -> tuple:
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
        return ("power", value, self.argument())

    def argument(self) -> tuple:
        """What stands behind `^`, `_` or a command: a group in braces, or one token, perhaps with a sign."""
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
            return ("call", kind, [self.argument()])
        if kind in ("(", "[", "{"):
            bars, self.bars = self.bars, 0
            value = self.sum()
            self.bars = bars
            self.expect({"(": ")", "[": "]", "{": "}"}[kind])
            return value
        if kind in ("frac", "binom"):
            top, bottom = self.argument(), self.argument()
            return ("quotient", top, bottom) if kind == "frac" else ("call", "binomial",
                                                                     [top, bottom])
        if kind in ("sqrt", "surd"):
            degree = _integer(2)
            if kind == "sqrt" and self.next.kind == "number" and len(self.next.text) > 1:
                raise Unreadable("a root of one digit, as TeX has it, or of the number?")
            if self.accept("["):
                degree = self.sum()
                self.expect("]")
            return ("root", degree, self.argument())
        if kind == "|":
            self.bars += 1
            value = self.sum()
            self.bars -= 1
            self.expect("|")
            return ("call", "abs", [value])
        if kind in ("lfloor", "lceil"):
            value = self.sum()
            self.expect("rfloor" if kind == "lfloor" else "rceil")
            return ("call", "floor" if kind == "lfloor" else "ceil", [value])
        if kind in FUNCTIONS:
            return self._call(kind)
        if kind == "begin":
            return self._matrix()
        if kind == r"\$":
            self.unit = "dollar"
            return self.factor()
        if kind in ("-", "+"):  # behind \$ alone
            value = self.factor()
            return ("negative", value) if kind == "-" else value
        raise Unreadable(f"{kind} where a value should begin")

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
        r"""`0.1\overline{6}`: the digits under the bar come again and again."""
        self.take()
        self.expect("{")
        again = self.take().text
        self.expect("}")
        if not again.isdigit():
            raise Unreadable("no digits under the bar")
        repeated = int(whole + behind + again) - int(whole + behind or "0")
        return ("number", Fraction(repeated, (10 ** len(again) - 1) * 10 ** len(behind)), None, 0)

    def _based(self, digits: str) -> tuple:
        self.expect("_")
        base = self.argument()
        if base[0] != "number" or base[1] not in range(2, 37) or not digits.isdigit() or int(
                max(digits)) >= base[1]:
            raise Unreadable("a number with an index that is no base of it")
        return ("based", digits, int(base[1]))

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

    def _call(self, function: str) -> tuple:
        r"""`\sin x`, `\sin^2 2x`, `\log_2 8`, `\gcd(a, b)`. Without brackets the factors behind it belong to it."""
        power = base = None
        for _ in range(2):
            if self.accept("^"):
                power = self.argument()
            elif function == "log" and self.accept("_"):
                base = self.argument()
        self.angles += 1
        if function in AGGREGATES:
            self.expect("(", r"\{")
            unit, two_values = self.unit, self.two_values  # of the value this call stands in
            items = self.items((")", r"\}"))
            self.unit, self.two_values = unit, two_values
            if any(item[0] != "value" or item[2] for item in items):
                raise Unreadable("an argument that is no number")
            arguments = [item[1] for item in items]
        elif self.accept("("):
            arguments = [self.sum()]
            self.expect(")")
        else:
            value = self.factor()
            while self._begins_factor() and self.next.kind not in FUNCTIONS:
                value = _times(value, self.factor())
            arguments = [value]
        self.angles -= 1
        if function == "exp":
            value = ("power", ("name", "e"), arguments[0])
        elif base is not None:
            value = ("quotient", ("call", "ln", arguments), ("call", "ln", [base]))
        elif function == "log":
            value = ("quotient", ("call", "ln", arguments), ("call", "ln", [_integer(10)]))
        else:
            value = ("call", function, arguments)
        if power and power[0] == "negative" and power[1][:2] == ("number",
                                                                 1) and function in ("sin", "cos",
                                                                                     "tan"):
            return ("call", f"arc{function}", arguments)
        return ("power", value, power) if power else value

    def _matrix(self) -> tuple:
        r"""Rows of cells between `\begin` and `\end`; all brackets alike, but bars, which make a determinant."""
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
            raise Unreadable("another end than begin, or cells of two values")
        return ("matrix", rows)

    def _environment(self) -> str:
        self.expect("{")
        name = ""
        while not self.accept("}"):
            name += self.take().text
        return name


def _collections(tokens: list[Token]) -> set[int]:
    """Where the brackets stand that hold a separator of their own: a collection, not a group of factors."""
    opened: list[int] = []
    found = set()
    for at, token in enumerate(tokens):
        if token.kind in OPEN or token.kind == "{":
            opened.append(at)
        elif (token.kind in CLOSE or token.kind == "}") and opened:
            opened.pop()
        elif token.kind in SEPARATORS and opened:
            found.add(opened[-1])
    return found


def unit_name(words: list[str]) -> str:
    """One name for a unit however it is spelled: abbreviated, in the plural, squared in words or by an exponent."""
    named = []
    for word in words:
        word, _, power = word.lower().partition("^")
        word = UNITS.get(word, word)
        word = word[:-1] if len(word) > 3 and word.endswith("s") else word
        named.append(f"{word}^{power}" if power else word)
    if len(named) > 1 and named[0] in ("square", "cubic"):
        return f"{' '.join(named[1:])}^{'2' if named[0] == 'square' else '3'}"
    return " ".join(named)


def _integer(value: int) -> tuple:
    return ("number", value, None, 0)


def _times(left: tuple, right: tuple) -> tuple:
    factors = left[1] if left[0] == "product" else [left]
    return ("product", [*factors, right])


def _maybe_mixed(whole: tuple, part: tuple) -> tuple:
    r"""`1\frac34` is 1 + 3/4; `2\frac{x}{3}` is a product, and so is `2\frac{7}{3}`, whose fraction is not below 1."""
    if part[0] == "quotient" and part[1][0] == part[2][0] == "number":
        numbers = [value[1] for value in (whole, part[1], part[2])]
        if all(number.denominator == 1
               for number in numbers) and 0 < numbers[1] < numbers[2] and whole[2] is None:
            return ("sum", [whole, part])
    return _times(whole, part)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.latex ANSWER")
    try:
        print(parse(sys.argv[1], Budget(10_000)))
    except Unreadable as reason:
        print(f"compared as text: {reason}")
