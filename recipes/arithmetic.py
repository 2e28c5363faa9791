"""Checks the arithmetic in a worked solution: reads GSM8K's marks `<<48/2=24>>` and computes them
exactly.

    python -m recipes.arithmetic "She sold 48/2 = <<48/2=24>>24 clips and <<48+24=73>>73 in all."

A mark is an expression, `=`, and its value:

    expression = product {("+" | "-") product}
    product    = factor {("*" | "/") factor | factor in brackets}
    factor     = (number | "(" expression ")" | ("-" | "+") factor) {"%"}

A small parser computes expressions in fractions, or keeps them as trees. Nothing is ever
run, and an expression that is longer or deeper than any real mark is not read. Numbers in a text
are found and written in its form: `1,200`, `2.50`.

Source of the marks: Cobbe et al. 2021 (GSM8K, arXiv 2110.14168); tolerance: Yuan et al. 2023 (RFT,
arXiv 2308.01825).
"""

import sys
from dataclasses import dataclass
from fractions import Fraction
from string import digits

TOLERANCE = Fraction(1, 1000)  # by which a value may be off, as 3.333 is from 10/3
LONGEST_EXPRESSION = 200  # characters; published marks stay far below
LONGEST_NUMBER = 20  # characters
DEEPEST_EXPRESSION = 20  # brackets and signs around each other
PLACES = 4  # decimal places of a number that is written
OPERATOR_FORMS = {"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", ":": "/", "−": "-",
                  "–": "-", "[": "(", "]": ")"}


@dataclass(frozen=True)
class Mark:
    """One `<<left=value>>` in a text."""

    left: str  # the expression before the last `=`
    value: str  # the text after it
    start: int  # of `<<`
    end: int  # after `>>`


def marks(text: str) -> list[Mark]:
    """All `<<...=...>>` of a text in their order. Without an `=` it is no mark."""
    found, at = [], text.find("<<")
    while at >= 0:
        end = text.find(">>", at)
        if end < 0:
            break
        inner = text.rfind("<<", at, end)  # of `<< <<`, the last one belongs to this `>>`
        left, equals, value = text[inner + 2 : end].rpartition("=")
        if equals and left.strip() and value.strip():
            found.append(Mark(left.strip(), value.strip(), inner, end + 2))
        at = text.find("<<", end)
    return found


def check(mark: Mark) -> bool | None:
    """Whether a mark is right, within TOLERANCE; in `a=b=c` all must be equal.

    None if it cannot be read.
    """
    try:
        *others, value = (compute(part) for part in (*mark.left.split("="), mark.value))
    except ValueError:
        return None
    return all(abs(other - value) <= TOLERANCE for other in others)


def tokens(expression: str) -> list[str]:
    """Numbers (as they are written, without commas), operators, brackets and percent signs of an
    expression.

    Raises ValueError for any other character; dollar signs and spaces are ignored.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"longer than {LONGEST_EXPRESSION} characters")
    found: list[str] = []
    number = ""
    for char in expression.replace(",", "").replace("$", "") + " ":
        if char in digits + ".":
            number += char
            continue
        if number:
            if len(number) > LONGEST_NUMBER or number.count(".") > 1 or number == ".":
                raise ValueError(f"{number!r} is no number")
            found.append(number)
            number = ""
        char = OPERATOR_FORMS.get(char, char)
        if char in "+-*/()%":
            found.append(char)
        elif not char.isspace():
            raise ValueError(f"{char!r} is no part of an expression")
    return found


def compute(expression: str) -> Fraction:
    """The exact value of an expression. Raises ValueError if it cannot be read, or divides by zero.

    `25%` is 1/4; a number before a bracket multiplies it.
    """
    parser = _ExpressionParser(tokens(expression))
    value = parser.sum(0)
    if parser.next:
        raise ValueError(f"{parser.next!r} is one too many in {expression!r}")
    return value


# The number of an operand, a value that stands for a sign, or (operator, left, right).
Tree = int | Fraction | tuple


def tree(expression: str) -> tuple[Tree, list[Fraction]]:
    """The tree of an expression, and its operands in order: `3*(4+5)` -> `("*", 0, ("+", 1, 2))`
    and [3, 4, 5].

    `-5` is 0-5 and `25%` is 25/100; that 0 and that 100 are no operands. Raises ValueError if it
    cannot be read.
    """
    parser = _TreeParser(tokens(expression))
    found = parser.sum(0)
    if parser.next:
        raise ValueError(f"{parser.next!r} is one too many in {expression!r}")
    return found, parser.operands


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """One of `+ - * /`. Raises ValueError for a division by zero."""
    if operator == "/":
        if right == 0:
            raise ValueError("divides by zero")
        return left / right
    return left * right if operator == "*" else left + right if operator == "+" else left - right


def tree_value(tree: Tree, operands: list[Fraction], trail: list[Fraction]) -> Fraction:
    """The value of a tree; appends the value of each operation to `trail`.

    Raises ValueError for a division by zero.
    """
    if isinstance(tree, tuple):
        operator, left, right = tree
        trail.append(apply(operator, tree_value(left, operands, trail),
                           tree_value(right, operands, trail)))
        return trail[-1]
    return operands[tree] if isinstance(tree, int) else tree


def contains(tree: Tree, operand: int) -> bool:
    """Whether the operand of this number stands anywhere in a tree."""
    if isinstance(tree, tuple):
        return contains(tree[1], operand) or contains(tree[2], operand)
    return isinstance(tree, int) and tree == operand


def expression(tree: Tree, operands: list[Fraction]) -> str:
    """A tree as text.

    Brackets stand around a tree on its right, and around a weaker one on its left.
    """
    if not isinstance(tree, tuple):
        return write(operands[tree] if isinstance(tree, int) else tree, "")
    operator, left, right = tree
    texts = [expression(left, operands), expression(right, operands)]
    if isinstance(right, tuple):
        texts[1] = f"({texts[1]})"
    if isinstance(left, tuple) and left[0] in "+-" and operator in "*/":
        texts[0] = f"({texts[0]})"
    return operator.join(texts)


class _ExpressionParser:
    """Recursive descent, one method for each rank of operators. Here it computes; `number` and
    `join` can be overridden."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at = tokens, 0

    number = staticmethod(lambda value: value)
    join = staticmethod(apply)

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next
        self.at += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.next in ("+", "-"):
            value = self.join(self.take(), value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.next in ("*", "/", "("):
            operator = self.take() if self.next != "(" else "*"
            value = self.join(operator, value, self.factor(depth))
        return value

    def factor(self, depth: int) -> Fraction:
        token = self.take()
        if depth > DEEPEST_EXPRESSION:
            raise ValueError("too deep")
        if token in ("-", "+"):
            value = self.factor(depth + 1)
            return self.join("-", Fraction(0), value) if token == "-" else value
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise ValueError("a bracket is not closed")
        elif token and token[0] in digits + ".":
            value = self.number(Fraction(token))
        else:
            raise ValueError(f"a number is missing before {token or 'the end'!r}")
        while self.next == "%":
            self.take()
            value = self.join("/", value, Fraction(100))
        return value


class _TreeParser(_ExpressionParser):
    """The same grammar, but it computes nothing and keeps the tree."""

    def __init__(self, tokens: list[str]):
        super().__init__(tokens)
        self.operands: list[Fraction] = []

    def number(self, value: Fraction) -> int:
        self.operands.append(value)
        return len(self.operands) - 1

    def join(self, operator: str, left: Tree, right: Tree) -> tuple:
        return operator, left, right


# -------------------------------------------------------------------------------- numbers in a text


@dataclass(frozen=True)
class Numeral:
    """A number as it is written in a text."""

    text: str
    value: Fraction
    start: int
    end: int


def numerals(text: str) -> list[Numeral]:
    """All numbers of a text: `12`, `1,200`, `2.50`, `.5`. A sign, `$` or `%` is no part of them.

    Raises ValueError for one of more than LONGEST_NUMBER characters.
    """
    found, at = [], 0
    while at < len(text):
        end = _digits(text, at)
        if 1 <= end - at <= 3:
            while text[end : end + 1] == "," and _digits(text, end + 1) == end + 4:
                end += 4
        if text[end : end + 1] == "." and _digits(text, end + 1) > end + 1:
            end = _digits(text, end + 1)
        if end - at > LONGEST_NUMBER:
            raise ValueError("a number is too long")
        if end > at:
            found.append(Numeral(text[at:end], Fraction(text[at:end].replace(",", "")), at, end))
        at = max(end, at + 1)
    return found


def _digits(text: str, at: int) -> int:
    """Where the digits that begin at `at` end."""
    while at < len(text) and text[at] in digits:
        at += 1
    return at


def write(value: Fraction, like: str) -> str:
    """A number in the form of another: with its commas, and with two decimal places if it has two
    (money).

    Raises ValueError if the number needs more than PLACES decimal places.
    """
    places = max(2 * (like[-3:-2] == "."), places_of(value))
    figures = str(int(abs(value) * 10**places)).zfill(places + 1)
    whole = figures[: len(figures) - places]
    if "," in like:
        whole = f"{int(whole):,}"
    if like.startswith(".") and whole == "0":
        whole = ""
    return "-" * (value < 0) + whole + ("." + figures[len(figures) - places :] if places else "")


def places_of(value: Fraction) -> int:
    """Decimal places that a value needs. Raises ValueError if PLACES are too few."""
    for places in range(PLACES + 1):
        if 10**places % value.denominator == 0:
            return places
    raise ValueError("a value is no short decimal")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m recipes.arithmetic TEXT")
    words = {True: "right", False: "wrong", None: "cannot be read"}
    for mark in marks(sys.argv[1]):
        print(f"{mark.left} = {mark.value}: {words[check(mark)]}")
