"""The arithmetic that a worked solution carries: GSM8K's marks `<<48/2=24>>`, read, computed and checked exactly.

    python arithmetic.py "She sold 48/2 = <<48/2=24>>24 clips and <<48+24=73>>73 in all."

A mark is an expression, `=`, and its value. Expressions have numbers, `+ - * /`, percent signs and brackets, and are computed
in fractions by a parser of thirty lines; nothing is ever run, and what is longer or deeper than any real mark is not read.

Source of the marks: Cobbe et al. 2021 (GSM8K, arXiv 2110.14168); the tolerance: Yuan et al. 2023 (RFT, arXiv 2308.01825).
"""

import sys
from dataclasses import dataclass
from fractions import Fraction

TOLERANCE = Fraction(1, 1000)  # by which a value may be off, as 3.333 is from 10/3
LONGEST = 200  # characters of an expression, and 20 of a number: published marks stay far below
DEEPEST = 20  # brackets and signs around each other
SAME = {"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", ":": "/", "−": "-", "–": "-", "[": "(", "]": ")"}


@dataclass(frozen=True)
class Mark:
    """One `<<left=value>>` in a text."""

    left: str  # the expression before the last `=`
    value: str  # what stands behind it
    start: int  # of `<<`
    end: int  # behind `>>`


def marks(text: str) -> list[Mark]:
    """All `<<...=...>>` of a text in their order; without an `=` it is no mark."""
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


def without_marks(text: str) -> str:
    """The text as a person would write it: `48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    for mark in reversed(marks(text)):
        text = text[: mark.start] + text[mark.end :]
    return text


def check(mark: Mark) -> bool | None:
    """Whether a mark is right, within TOLERANCE; of `a=b=c` all must be equal. None where it cannot be read."""
    try:
        *others, value = (compute(part) for part in (*mark.left.split("="), mark.value))
    except ValueError:
        return None
    return all(abs(other - value) <= TOLERANCE for other in others)


def tokens(expression: str) -> list[str]:
    """Numbers (as they are written, without commas), operators, brackets and percent signs of an expression.

    Raises ValueError for any other character; dollar signs and spaces are passed over.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters")
    found: list[str] = []
    number = ""
    for char in expression.replace(",", "").replace("$", "") + " ":
        if char in "0123456789.":
            number += char
            continue
        if number:
            if len(number) > 20 or number.count(".") > 1 or number == ".":
                raise ValueError(f"{number!r} is no number")
            found.append(number)
            number = ""
        char = SAME.get(char, char)
        if char in "+-*/()%":
            found.append(char)
        elif not char.isspace():
            raise ValueError(f"{char!r} is no part of an expression")
    return found


def compute(expression: str) -> Fraction:
    """The exact value of an expression. Raises ValueError where it cannot be read, or divides by zero.

    `25%` is 1/4; a number before a bracket multiplies it.
    """
    parser = _Parser(tokens(expression))
    value = parser.sum(0)
    if parser.next:
        raise ValueError(f"{parser.next!r} is one too many in {expression!r}")
    return value


class _Parser:
    """Recursive descent, a method for each rank of operators."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at = tokens, 0

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
            value = value + self.product(depth) if self.take() == "+" else value - self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.next in ("*", "/", "("):
            operator = self.take() if self.next != "(" else "*"
            right = self.factor(depth)
            if operator == "/" and right == 0:
                raise ValueError("divides by zero")
            value = value * right if operator == "*" else value / right
        return value

    def factor(self, depth: int) -> Fraction:
        token = self.take()
        if depth > DEEPEST:
            raise ValueError("too deep")
        if token in ("-", "+"):
            value = self.factor(depth + 1)
            return -value if token == "-" else value
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise ValueError("a bracket is not closed")
        elif token and token[0] in "0123456789.":
            value = Fraction(token)
        else:
            raise ValueError(f"{token or 'the end'!r} stands where a number should")
        while self.next == "%":
            self.take()
            value /= 100
        return value


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python arithmetic.py TEXT")
    for mark in marks(sys.argv[1]):
        print(f"{mark.left} = {mark.value}: { {True: 'right', False: 'wrong', None: 'cannot be read'}[check(mark)]}")
