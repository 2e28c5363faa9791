r"""Split the text of an answer into tokens: the first half of reading it.

    python -m grader.scanner '\left[\frac12, 10{,}080\right)'

    \left[\frac12, 10{,}080\right)
          │ scan
          ▼
    [   frac   1   2   ,   10080   )

1. Drop what only says how a value looks: `\left`, `\,`, dollar signs.
2. Spell one thing one way: `\dfrac` is `\frac`, U+2212 is `-`, `5²` is `5^{2}`.
3. Join groups of digits: `10{,}080` is one number.

The scanner, the parser and the algebra count their steps against one budget, so no text can hang
the reader.
"""

import sys
from string import ascii_letters, digits
from typing import NamedTuple

LONGEST_INTEGER = 1000  # digits
END = "end of text"

# Characters with a plain or a LaTeX spelling.
SPELLINGS = {
    "−": "-", "–": "-", "（": "(", "）": ")", "，": ",", "′": "'", "\u00a0": " ",
    "\u2009": " ", "\u202f": " ", "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ",
    "÷": r" \div ", "±": r" \pm ", "∓": r" \mp ", "√": r" \surd ", "π": r" \pi ",
    "θ": r" \theta ", "α": r" \alpha ", "β": r" \beta ", "∞": r" \infty ", "°": r"^\circ ",
    "∪": r" \cup ", "∩": r" \cap ", "∈": r" \in ", "≤": r" \le ", "≥": r" \ge ",
    "≈": r" \approx ", "≠": r" \ne ", "∅": r" \emptyset ", "½": r" \frac12 ",
    "¼": r" \frac14 ", "¾": r" \frac34 ", "⅓": r" \frac13 ", "⅔": r" \frac23 ",
    "ℝ": r" \mathbb{R} ", "⟨": r" \langle ", "⟩": r" \rangle ",
}  # fmt: skip
# Direction marks, zero-width spaces and invisible operators vanish; full-width digits become ASCII.
VANISHING = (0x200B, 0x200E, 0x200F, 0x202A, 0x202C, 0x2060, 0x2061, 0x2062, 0xFEFF)
UNICODE = {ord(character): spelling for character, spelling in SPELLINGS.items()}
UNICODE |= dict.fromkeys(VANISHING) | {0xFF10 + i: digit for i, digit in enumerate(digits)}
SUPERSCRIPTS = dict(zip(map(ord, "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"), digits + "-"))

# Commands, without their backslash.
INVISIBLE = set(
    "left right middle big Big bigl bigr Bigl Bigr bigg Bigg biggl biggr displaystyle textstyle "
    "limits boldsymbol mathbf bf rm it boxed fbox angle ( ) [ ]".split())
SPACE = {*", ! ; : > quad qquad hspace phantom".split(), " ", "\n"}
TEXT = set("text textbf textit textrm texttt mathrm mathit mbox hbox operatorname".split())
SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "leq": "le", "simeq": "approx", "geq": "ge", "leqslant": "le", "geqslant": "ge", "neq": "ne",
    "lt": "<", "gt": ">", "ast": "*", "times": "*", "cdot": "*", "div": "/",
    "backslash": "setminus", "varnothing": "emptyset", "lvert": "|", "rvert": "|", "vert": "|",
    "mid": "|", "degree": "circ", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lg": "log",
}  # fmt: skip
FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp "
                "gcd lcm min max".split())
GREEK = set("alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho "
            "sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell "
            "pi infty".split())
OPEN, CLOSE = {"(", "[", r"\{", "langle"}, {")", "]", r"\}", "rangle"}
# Names that models also type without a backslash. `sqrt12` is the root of 12, so it is a `surd`:
# TeX reads `\sqrt12` as the root of 1, followed by a 2.
TYPED_NAMES = {name: name for name in [*FUNCTIONS, "pi", "infty", "theta", "alpha", "beta", "and",
                                       "or"]}
TYPED_NAMES |= {"sqrt": "surd", "infinity": "infty"}
# Units whose name is more than the word without its plural s.
UNITS = {
    "feet": "foot", "ft": "foot", "in": "inch", "inches": "inch", "yd": "yard", "mi": "mile",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "hr": "hour", "hrs": "hour", "h": "hour",
    "min": "minute", "mins": "minute", "sec": "second", "secs": "second", "s": "second",
    "meter": "m", "meters": "m", "metre": "m", "metres": "m", "centimeter": "cm",
    "centimeters": "cm", "kilometers": "km", "gram": "g", "grams": "g", "kilograms": "kg",
    "liter": "l", "liters": "l", "litres": "l", "deg": "degree", "percent": "%", "sq": "square",
    "cm": "cm", "mm": "mm", "km": "km", "kg": "kg", "mg": "mg", "ml": "ml",
}  # fmt: skip


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

    kind: str  # number, letter, word, text, or the sign or command itself
    text: str = ""
    spaced: bool = False  # whether white space stands before it


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


def scan(text: str, budget: Budget) -> list[Token]:
    """The tokens of a text, with two of kind END behind the last. Raises Unreadable."""
    budget.take(len(text))
    if not text.isascii():
        text = _raise_superscripts(text).translate(UNICODE)
    tokens: list[Token] = []
    at, depth, spaced = 0, 0, False
    while at < len(text):
        character, start = text[at], at
        if character.isspace() or character in "$~":
            spaced, at = spaced or character != "$", at + 1
            continue
        if character in digits or character == "." and text[at + 1 : at + 2] in [*digits]:
            one = character != "." and _takes_one_digit(tokens)
            number, at = (character, at + 1) if one else _read_number(text, at, depth)
            tokens.append(Token("number", number, spaced))
        elif character.isascii() and character.isalpha():
            at = _end_of_run(text, at, ascii_letters)
            tokens += _read_letters(text[start:at], spaced, tokens, text[at : at + 1])
        elif character == "\\":
            kind, content, at = _read_command(text, at)
            if kind in ("", " "):
                spaced = spaced or kind == " "
                continue
            tokens.append(Token(kind, content, spaced))
        else:
            pair = text[at : at + 2]
            kind = pair if pair in ("<=", ">=", "!=", "**") else character
            at += len(kind)
            tokens.append(Token("^" if kind == "**" else kind, "", spaced))
        if tokens:
            depth += (tokens[-1].kind in OPEN) - (tokens[-1].kind in CLOSE)
        spaced = False
    # The parser looks one token ahead and never takes the second END.
    return [*tokens, Token(END), Token(END)]


def _raise_superscripts(text: str) -> str:
    """`5²` -> `5^{2}`."""
    pieces, inside = [], False
    for character in text:
        raised = ord(character) in SUPERSCRIPTS
        if raised != inside:
            pieces.append("^{" if raised else "}")
            inside = raised
        pieces.append(SUPERSCRIPTS[ord(character)] if raised else character)
    return "".join(pieces) + ("}" if inside else "")


def _takes_one_digit(tokens: list[Token]) -> bool:
    r"""Whether TeX takes only one digit here: `\frac12` is a half."""
    last = [token.kind for token in tokens[-2:]]
    if last[-1:] in (["frac"], ["binom"]):
        return True
    return last[:1] in (["frac"], ["binom"]) and last[-1] in ("number", "letter")


def _end_of_run(text: str, at: int, characters: str) -> int:
    """The end of the run of these characters that begins at `at`."""
    # Each call copies the rest of the text, which is short: at most LONGEST_ANSWER in answers.py.
    return len(text) - len(text[at:].lstrip(characters))


def _read_number(text: str, at: int, depth: int) -> tuple[str, int]:
    r"""The digits, without group commas, and the place behind them.

    `{,}` and `,\!` join groups of three digits everywhere. A bare comma joins them only outside of
    brackets, since inside it separates. Each group that follows must have three digits.
    """
    end = _end_of_run(text, at, digits)
    number, after = text[at:end], end
    follows_comma = text[at - 1 : at] == "," and text[at - 2 : at - 1] in [*digits] and depth == 0
    if 1 <= len(number) <= 3 and number[0] != "0" and not follows_comma:
        joined = number
        while True:
            comma = next((c for c in (r"{,}", r",\!", ",") if text.startswith(c, after)), None)
            begin = after + len(comma or "")
            while comma == r",\!" and text[begin : begin + 1] == " ":
                begin += 1
            finish = _end_of_run(text, begin, digits)
            if comma is None or finish == begin or comma == "," and depth > 0:
                number, end = joined, after
                break
            if finish != begin + 3:
                break
            joined, after = joined + text[begin:finish], finish
    if text[end : end + 1] == ".":
        finish = _end_of_run(text, end + 1, digits)
        if finish > end + 1:
            number, end = number + text[end:finish], finish
            if text[end : end + 1] == "." and text[end + 1 : end + 2] in [*digits]:
                raise Unreadable("a number with two points")
        elif text.startswith((r".\overline", r".\bar"), end):
            number, end = number + ".", end + 1  # the parser reads the digits under the bar
    if len(number) > LONGEST_INTEGER:
        raise Unreadable("too many digits")
    return number, end


def _read_letters(run: str, spaced: bool, before: list[Token], following: str) -> list[Token]:
    """A function, `and`, a word of three letters or more, a unit, or variables side by side."""
    last = before[-1] if before else Token(END)
    if run in TYPED_NAMES and last.kind != "_":
        return [Token(TYPED_NAMES[run], "", spaced)]
    if last.kind == "number" and not spaced and run in ("st", "nd", "rd", "th"):
        return []
    if following and following in digits and not (last.kind == "frac" and len(run) == 1):
        raise Unreadable("a digit directly after a letter")  # 0x10, 1e5, x2 are ambiguous
    if len(run) >= 3 or last.kind == "number" and run in UNITS and len(run) == 2:
        return [Token("word", run, spaced)]
    return [Token("letter", letter, spaced and index == 0) for index, letter in enumerate(run)]


def _read_command(text: str, at: int) -> tuple[str, str, int]:
    r"""Kind and text of the token that a command makes, and the place behind the command.

    A command that only sets space has the kind " ", one that shows nothing has the kind "".
    """
    # If no letter follows, the name is the one character behind the backslash.
    end = max(_end_of_run(text, at + 1, ascii_letters), at + 2)
    name = text[at + 1 : end]
    if name in SPACE or name in INVISIBLE:
        return " " if name in SPACE else "", "", end
    if name in TEXT:
        content, end = _read_braces(text, end)
        return "text", content.replace("~", " ").replace(r"\,", " ").replace(r"\ ", " "), end
    if name == "\\" and text[end : end + 1] == "[":  # a matrix row with more space below: \\[4pt]
        end = text.find("]", end) + 1 or len(text)
    if name in "{}$%|\\#&_":  # "" too
        return "\\" + name, "", end
    return SYNONYMS.get(name, name), "", end


def _read_braces(text: str, at: int) -> tuple[str, int]:
    """The text between the brace at `at` and its closing brace, and the place behind that."""
    while text[at : at + 1] == " ":
        at += 1
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


def unit_name(words: list[str]) -> str:
    """One name for each unit: `inches`, `square inch` and `inch^2` give `inch` and `inch^2`."""
    named = []
    for word in words:
        word, _, power = word.lower().partition("^")
        word = UNITS.get(word, word)
        word = word[:-1] if len(word) > 3 and word.endswith("s") else word
        named.append(f"{word}^{power}" if power else word)
    if len(named) > 1 and named[0] in ("square", "cubic"):
        return f"{' '.join(named[1:])}^{'2' if named[0] == 'square' else '3'}"
    return " ".join(named)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.scanner TEXT")
    try:
        for token in scan(sys.argv[1], Budget(10_000)):
            print(token.kind, token.text)
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
