r"""Split the text of an answer into tokens: the first half of reading it.

    python -m grader.scanner '\left[\frac12, 10{,}080\right)'

    \left[\frac12, 10{,}080\right)
          │ scan
          ▼
    [   frac   1   2   ,   10080   )

1. Drop what only says how a value looks: `\left`, `\,`, dollar signs.
2. Spell one thing one way: `\dfrac` is `\frac`, U+2212 is `-`, `5²` is `5^{2}`.
3. Join what is one numeral: `10{,}080`, `1 000`, `1.5e-3`, `0.333\ldots`.
4. Read letters: a function, a word, a unit, or variables side by side. Letters in `\text` and
   `\mathrm` are upright: they make words and units, and one such letter is a variable.

The scanner, the parser and the algebra count their steps against one budget, so no text can hang
the reader.
"""

import sys
from string import ascii_letters, digits
from typing import NamedTuple

from grader.tables import (AMBIGUOUS_UNITS, ARGUMENT_DROPPED, FUNCTIONS, GREEK, INVISIBLE, LOWERED,
                           NO_UNITS, RAISED, SPACE, SYNONYMS, TEXT, TYPED_NAMES, UNICODE, UNITS)

LONGEST_INTEGER = 1000  # digits, and the largest exponent of 1e1000
DEEPEST_TEXT = 8  # levels of \text in \text
END = "end of text"
OPEN, CLOSE = {"(", "[", r"\{", "langle"}, {")", "]", r"\}", "rangle"}
DIGITS, LETTERS = {*digits}, {*ascii_letters}
SINGLE_SIGNS = {*"-=()[]{},;:^_|/&"}  # which begin no longer sign
VALUE_ENDS = {"number", "letter", "!", "%", "pi", *CLOSE, "}"}  # a unit may follow these
# What separates groups of three digits. The last ones do so only if the whole numeral is grouped.
GROUP_SIGNS = {*"{,\\~ "}  # how they begin
NUMERAL_SIGNS = GROUP_SIGNS | {".", "e", "E"}  # a numeral may go on with these
SHORT = {"frac", "binom"}  # \frac12: each argument is one digit, if it has no braces
COMMAS, GAPS = (r"{,}", r",\!", ","), (r"\,", r"\ ", "~", " ")


class Unreadable(Exception):
    """The text is no mathematics that the grader reads, or it costs more than the budget."""


class Budget:
    """The steps that are left to one comparison. Raises Unreadable when they are used up."""

    def __init__(self, steps: int):
        self.left = steps

    def take(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise Unreadable("over budget")


class Token(NamedTuple):
    """The unit that the parser reads."""

    kind: str  # number, letter, word, or the sign or command itself
    text: str = ""
    spaced: bool = False  # whether white space stands before it
    upright: bool = False  # whether it stands in \text or \mathrm


NO_TOKEN = Token(END)
_new_tuple = tuple.__new__  # which is twice as fast as Token(...)


class Cursor:
    """A place in a list of tokens: `next` is the token that is read next."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.at, self.next = tokens, 0, tokens[0]

    def take(self) -> Token:
        token = self.next
        self.at += 1
        if self.at == len(self.tokens):
            raise Unreadable("the text ends too early")
        self.next = self.tokens[self.at]
        return token

    def accept(self, *kinds: str) -> str | None:
        """Take the next token if it is of one of these kinds."""
        return self.take().kind if self.next.kind in kinds else None

    def expect(self, *kinds: str) -> str:
        """Take the next token. Raises Unreadable if it is of none of these kinds."""
        if self.next.kind not in kinds:
            raise Unreadable(f"{self.next.kind} instead of {' or '.join(kinds)}")
        return self.take().kind

    def go_to(self, at: int) -> None:
        """Read on from another place."""
        self.at, self.next = at, self.tokens[at]


def scan(text: str, budget: Budget) -> list[Token]:
    """The tokens of a text, with two of kind END behind the last. Raises Unreadable."""
    text = _priced(plain_spelling(text))
    budget.take(len(text))
    scanner = Scanner()
    scanner.read(text, 0)
    # The parser looks one token ahead and never takes the second END.
    return [*_split_products(scanner.tokens), NO_TOKEN, NO_TOKEN]


def plain_spelling(text: str) -> str:
    """The text in ASCII and LaTeX: `5²` -> `5^{2}`, `x₁` -> `x_{1}`, `½` -> `\\frac12`."""
    if text.isascii():
        return text
    if "‘" in text:  # a pair of quotes, and no prime
        text = text.replace("‘", "").replace("’", "")
    pieces, inside = [], ""
    for character in text.replace("’", "'"):
        mark = "^" if character in RAISED else "_" if character in LOWERED else ""
        if mark != inside:
            pieces.append(("}" if inside else "") + (mark and mark + "{"))
            inside = mark
        pieces.append(RAISED.get(character) or LOWERED.get(character) or character)
    return "".join([*pieces, "}" if inside else ""]).translate(UNICODE)


def _priced(text: str) -> str:
    r"""The text with a lone dollar sign as the currency that it is: `$5` is `\$5`."""
    at = text.find("$")
    if at < 0 or text.find("$", at + 1) >= 0 or text[at - 1 : at] == "\\":
        return text
    price = text[at + 1 :].lstrip("-. ")[:1] in DIGITS or text[at - 1 : at] in DIGITS
    return f"{text[:at]}\\{text[at:]}" if price else text


class Scanner:
    """Reads a text from left to right into `tokens`."""

    def __init__(self):
        self.tokens: list[Token] = []
        self.depth = 0  # open brackets: in them, a comma separates
        self.spaced = False  # whether white space stands before the next token

    @property
    def last(self) -> Token:
        return self.tokens[-1] if self.tokens else NO_TOKEN

    def add(self, kind: str, text: str = "", upright: bool = False) -> None:
        self.tokens.append(_new_tuple(Token, (kind, text, self.spaced, upright)))
        self.spaced = False
        if kind in OPEN:
            self.depth += 1
        elif kind in CLOSE:
            self.depth -= 1

    def read(self, text: str, inside: int) -> None:
        """Read a text that stands inside of so many commands such as \\text."""
        at, end = 0, len(text)
        while at < end:
            character = text[at]
            if character in DIGITS or character == "." and text[at + 1 : at + 2] in DIGITS:
                at = self.number(text, at)
            elif character in LETTERS:
                at = self.letters(text, at, inside > 0)
            elif character in SINGLE_SIGNS:
                self.add(character)
                at += 1
            elif character == "\\":
                at = self.command(text, at, inside)
            elif character.isspace() or character in "$~\"":
                self.spaced, at = self.spaced or character not in "$\"", at + 1
            elif character == "." and text.startswith("...", at):
                self.add("dots")
                at += 3
            elif character == "." and self.last.kind == "word" and text[at + 1 : end].strip(" .}"):
                at += 1  # sq. units
            elif text.startswith("+/-", at):
                self.add("pm")
                at += 3
            else:
                pair = text[at : at + 2]
                kind = pair if pair in ("<=", ">=", "!=", "**") else character
                if kind == "!=" and self.last.kind == "number" and not self.spaced:
                    kind = character  # 5!=120
                self.add("^" if kind == "**" else kind)
                at += len(kind)

    # -- numbers

    def number(self, text: str, at: int) -> int:
        """Read a numeral. Returns the place behind it."""
        if text[at] != "." and self._takes_one_digit():
            self.add("number", text[at])
            return at + 1
        end = _end_of_run(text, at, digits)
        if end > at and text[end : end + 1] not in NUMERAL_SIGNS and end - at <= LONGEST_INTEGER:
            self.add("number", text[at:end])
            return end
        number, at = _read_number(text, at, self.depth)
        number, at = _read_power_of_ten(number, text, at)
        if len(number) > LONGEST_INTEGER:
            raise Unreadable("too many digits")
        self.add("number", number)
        return at

    def _takes_one_digit(self) -> bool:
        r"""Whether TeX takes only one digit here: `\frac12` is a half."""
        if not self.tokens:
            return False
        last, second = self.tokens[-1].kind, self.tokens[-2:][0].kind
        return last in SHORT or second in SHORT and last in ("number", "letter")

    # -- letters

    def letters(self, text: str, at: int, upright: bool) -> int:
        """Read a run of letters. Returns the place behind it."""
        end = _end_of_run(text, at, ascii_letters)
        run, last, following = text[at:end], self.last, text[end : end + 1]
        if self._is_unit(run, upright, text[end:].lstrip(" ")[:1]):
            self.add("word", run, upright=True)
            return end
        if run in TYPED_NAMES and last.kind != "_" and not (upright and len(run) == 1):
            self.add(TYPED_NAMES[run])
        elif last.kind == "number" and not self.spaced and run in ("st", "nd", "rd", "th"):
            pass
        elif run in ("x", "X") and last.kind == "number" and text[end:].lstrip().startswith("10^"):
            self.add("*")  # 1.5 x 10^3
        elif following and following in digits and not (last.kind in SHORT and len(run) == 1):
            raise Unreadable("a digit directly after a letter")  # 0x10 and x2 are ambiguous
        elif len(run) >= 3 or len(run) == 2 and (
                upright or self._behind_word() or self.spaced and run.lower() in NO_UNITS):
            self.add("word", run, upright)
        else:
            for letter in run:
                self.add("letter", letter, upright)
        return end

    def _is_unit(self, run: str, upright: bool, following: str) -> bool:
        """Whether two letters or more are a unit behind a value: 5cm, 3 min, and not 2 sec x."""
        last = self.last
        if len(run) < 2 or run not in UNITS or last.kind not in VALUE_ENDS:
            return False
        if run in TYPED_NAMES:
            return (upright or self.spaced) and not following.isalnum()
        if run in AMBIGUOUS_UNITS and not upright and (last.kind == "pi" or not self.spaced):
            return False
        return upright or self.spaced or last.kind == "number" and len(run) == 2

    def _behind_word(self) -> bool:
        """Whether a word stands before, or a word with a bar: kg/cm."""
        kinds = [token.kind for token in self.tokens[-2:]]
        return kinds[-1:] == ["word"] and self.spaced or kinds == ["word", "/"]

    # -- commands

    def command(self, text: str, at: int, inside: int) -> int:
        """Read a command with the braces of `\\text`. Returns the place behind it."""
        # If no letter follows, the name is the one character behind the backslash.
        end = max(_end_of_run(text, at + 1, ascii_letters), at + 2)
        name = text[at + 1 : end]
        if name in SPACE:
            self.spaced = True
        elif name in TEXT:
            return self._text(text, end, inside)
        elif name in INVISIBLE:
            if name == "mathbf" and text[end : end + 3] == "{R}":
                return self._blackboard(text, end)
        elif name in ("angle", "measuredangle"):
            if self.last.text == "m":  # the measure of an angle
                self.tokens.pop()
        elif name == "mathbb":
            return self._blackboard(text, end)
        elif name in ARGUMENT_DROPPED:
            self.spaced = self.spaced or name.endswith("space")
            return _read_braces(text, end)[1]
        elif name in ("mathbin", "mathrel", "mathop", "mathord"):
            content, end = _read_braces(text, end)
            self.read(content, inside)
        else:
            if name == "\\" and text[end : end + 1] == "[":  # a matrix row with more space: \\[4pt]
                end = text.find("]", end) + 1 or len(text)
            if name in "{}$%|\\#&_":  # "" too
                name = "\\" + name
            self.add(SYNONYMS.get(name, name))
        return end

    def _text(self, text: str, at: int, inside: int) -> int:
        """Read the content of `\\text{...}`: an answer, a word, a unit or a letter."""
        content, at = _read_braces(text, at + (text[at : at + 1] == "*"))
        if inside == DEEPEST_TEXT:
            raise Unreadable("nested too deep")
        if content.strip() in ("th", "st", "nd", "rd"):  # 5\text{th}, 5^{\text{th}}
            if self.last.kind == "^" or self.last.kind == "{" and self.tokens[-2:][0].kind == "^":
                self.add("ordinal")
            return at
        if content[:1] in (" ", "~"):
            self.spaced = True
        self.read(content, inside + 1)
        return at

    def _blackboard(self, text: str, at: int) -> int:
        r"""Read the letter of `\mathbb{R}`. The real numbers have a token of their own."""
        while text[at : at + 1] == " ":
            at += 1
        letter, at = (text[at], at + 1) if text[at : at + 1].isalpha() else _read_braces(text, at)
        self.add("reals" if letter == "R" else "letter", letter.strip())
        if len(letter.strip()) != 1:
            raise Unreadable("no letter in blackboard")
        return at


def _end_of_run(text: str, at: int, characters: str) -> int:
    """The end of the run of these characters that begins at `at`."""
    # Each call copies the rest of the text, which is short: at most LONGEST_ANSWER in answers.py.
    return len(text) - len(text[at:].lstrip(characters))


def _read_number(text: str, at: int, depth: int) -> tuple[str, int]:
    r"""The digits of a decimal, without what groups them, and the place behind them.

    Digits that repeat without end stand in round brackets: `0.1\overline{6}` is 0.1(6).
    """
    end = _end_of_run(text, at, digits)
    number, end = _grouped(text, at, end, depth)
    if text[end : end + 1] == ".":
        finish = _end_of_run(text, end + 1, digits)
        fraction = text[end + 1 : finish]
        second = text[finish : finish + 1] == "." and text[finish + 1 : finish + 2] in DIGITS
        if fraction and second:
            raise Unreadable("a number with two points")
        repeating, finish = _read_repeating(text, finish, fraction)
        if fraction or repeating:
            number, end = f"{number}.{fraction}", finish
            if repeating.startswith("="):  # the digits that repeat are the last ones read
                number, repeating = number[: len(number) - len(repeating) + 1], repeating[1:]
            number += f"({repeating})" if repeating else ""
    return number, end


def _grouped(text: str, at: int, end: int, depth: int) -> tuple[str, int]:
    r"""The digits from `at` to `end` with the groups of three that follow, and the place behind.

    `{,}` and `,\!` join groups everywhere. A bare comma joins them only outside of brackets, since
    inside it separates. A gap joins them if no fraction follows: `1 234/5` is a mixed number.
    """
    number, after = text[at:end], end
    if text[end : end + 1] not in GROUP_SIGNS or not 1 <= len(number) <= 3 or number[0] == "0":
        return number, end
    follows_comma = text[at - 1 : at] == "," and text[at - 2 : at - 1] in DIGITS and depth == 0
    if follows_comma:
        return number, end
    joined, gap = number, False
    while True:
        comma = next((c for c in COMMAS if text.startswith(c, after)), "")
        if not comma and (gap or after == end):
            comma = next((c for c in GAPS if text.startswith(c, after)), "")
        begin = after + len(comma)
        while comma == r",\!" and text[begin : begin + 1] == " ":
            begin += 1
        finish = _end_of_run(text, begin, digits) if comma else begin
        if finish == begin or comma == "," and depth > 0:
            break
        if finish != begin + 3:
            return number, end
        gap = gap or comma in GAPS
        joined, after = joined + text[begin:finish], finish
    if gap and text[after:].lstrip()[:1] == "/":
        return number, end
    return joined, after


def _read_repeating(text: str, at: int, fraction: str) -> tuple[str, int]:
    r"""The digits that repeat behind a decimal's other digits, and the place behind them.

    `\overline{6}`, `\bar6`, `\dot{1}4\dot{2}`. Of `333\ldots`, they are among the digits read
    already, and begin with "=".
    """
    for command in (r"\overline", r"\bar", r"\dot{", r"\dot "):
        if text.startswith(command, at):
            break
    else:
        if text.startswith((r"\ldots", r"\dots", r"\cdots", "...", r" \ldots "), at):
            period = _period(fraction)
            if period:
                end = at + 3 if text[at] == "." else _end_of_run(
                    text, text.index("\\", at) + 1, ascii_letters)
                return "=" + period, end
        elif text.startswith(r"\dot", at) and text[at + 4 : at + 5] in DIGITS:
            return _dotted(text, at)
        return "", at
    if command.startswith(r"\dot"):
        return _dotted(text, at)
    content, end = _read_braces(text, at + len(command))
    if not (content.isascii() and content.isdigit()):
        raise Unreadable("no digits under the bar")
    return content, end


def _dotted(text: str, at: int) -> tuple[str, int]:
    r"""`\dot{1}4\dot{2}`: the digits from one dot to the other, or the one below a dot."""
    found, dots = "", 0
    while dots < 2 and text.startswith(r"\dot", at) and not text.startswith(r"\dots", at):
        braces, end = _read_braces(text, at + 4)
        rest = _end_of_run(text, end, digits)
        dots += 1
        found, at = found + braces.strip(), end
        if dots == 1 and text.startswith(r"\dot", rest) and not text.startswith(r"\dots", rest):
            found, at = found + text[end:rest], rest
    if not (found.isascii() and found.isdigit()):
        raise Unreadable("no digits under the dot")
    return found, at


def _period(fraction: str) -> str:
    """The digits at the end of a decimal that repeat, seen at least three times, or twice in all
    of it; "" if there are none."""
    for size in range(1, len(fraction) // 2 + 1):
        period = fraction[-size:]
        if fraction.endswith(3 * period) or fraction == 2 * period or (
                size > 2 and fraction.endswith(2 * period)):
            return period
    return ""


def _read_power_of_ten(number: str, text: str, at: int) -> tuple[str, int]:
    """`e-5` of `1.5e-5` joined to its number, and the place behind it."""
    if text[at : at + 1] not in ("e", "E") or "(" in number:
        return number, at
    begin = at + 1 + (text[at + 1 : at + 2] in ("+", "-"))
    end = _end_of_run(text, begin, digits)
    if end == begin:
        return number, at
    if end - begin > 4 or int(text[begin:end]) > LONGEST_INTEGER:
        raise Unreadable("too large a power of ten")
    return f"{number}e{text[at + 1 : end]}", end


def _read_braces(text: str, at: int) -> tuple[str, int]:
    """The text between the brace at `at` and its closing brace, and the place behind that; without
    a brace, the one digit or letter at `at`."""
    while text[at : at + 1] == " ":
        at += 1
    if text[at : at + 1].isalnum():
        return text[at], at + 1
    if text[at : at + 1] != "{":
        raise Unreadable("no brace after a command")
    depth, start = 0, at + 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return text[start:at], at + 1
        at += 1
    raise Unreadable("a brace that is not closed")


# ------------------------------------------------------------------------------- words and products


def is_like_a_product(run: str) -> bool:
    """Whether letters side by side look like a product of variables and not like a word.

    They are three or more, and have no vowel, as qvB and pqr, or are neighbours in the alphabet, as
    abc and bca. Capitals alone name things: HHT, ABC.
    """
    if len(run) < 3 or run.isupper() or not run.isascii() or not run.isalpha():
        return False
    ranks = sorted(map(ord, run))
    if ranks == [*range(ranks[0], ranks[0] + len(ranks))]:
        return True
    return not {*"aeiou"} & {*run.lower()} and run not in UNITS


def _split_products(tokens: list[Token]) -> list[Token]:
    """The tokens, with each word that is a product of variables as its letters: 6abc, nRT/V."""
    if "word" not in {token.kind for token in tokens}:
        return tokens
    found = []
    padded = [NO_TOKEN, NO_TOKEN, *tokens, NO_TOKEN]
    for at, token in enumerate(tokens, 2):
        if token.kind == "word" and not token.upright and _is_product(
                token, *padded[at - 2 : at], padded[at + 1]):
            found += [Token("letter", letter, token.spaced and index == 0)
                      for index, letter in enumerate(token.text)]
        else:
            found.append(token)
    return found


def _is_product(token: Token, second: Token, before: Token, after: Token) -> bool:
    """Whether a word is a product: it looks like one, or algebra touches it."""
    if token.text.lower() in NO_UNITS:
        return False
    if is_like_a_product(token.text):
        return before.kind != END or after.kind != END
    if before.kind in VALUE_ENDS or before.kind in GREEK:
        return not token.spaced and token.text not in UNITS
    if before.kind == "/" and second.kind not in ("{", "letter", "number", ")", "}"):
        return False  # miles/hour
    inside = before.kind == "{" and after.kind == "}" and second.kind in (
        "sqrt", "frac", "^", "}", "]", "surd", *FUNCTIONS)
    return (inside or after.kind == "^" or before.kind in ("+", "-", "*")
            or after.kind in ("+", "-", "*", "/") and before.kind not in ("word", "/"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.scanner TEXT")
    try:
        for token in scan(sys.argv[1], Budget(10_000)):
            print(token.kind, token.text)
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
