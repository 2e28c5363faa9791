r"""From characters to tokens: the first half of reading an answer.

    python -m grader.scanner '\left[\frac12, 10{,}080\right)'

The scanner drops what only says how a value looks (`\left`, `\,`, dollar signs), spells one thing one way (`\dfrac` is
`\frac`, U+2212 is `-`, `5²` is `5^{2}`), and joins digit groups: `10{,}080` is one number. Work is counted against a
budget that the parser and the algebra take from too, so that no text can hang the reader.
"""

import sys
from string import ascii_letters
from typing import NamedTuple

DIGITS = "0123456789"
LONGEST_INTEGER = 1000  # digits
END = "end of text"

# Characters that have a plain or a LaTeX spelling; full-width digits; direction marks and zero-width ones vanish.
SPELLINGS = {
    "−": "-", "–": "-", "（": "(", "）": ")", "，": ",", "′": "'", "\u00a0": " ", "\u2009": " ",
    "\u202f": " ", "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "÷": r" \div ",
    "±": r" \pm ", "∓": r" \mp ", "√": r" \surd ", "π": r" \pi ", "θ": r" \theta ",
    "α": r" \alpha ", "β": r" \beta ", "∞": r" \infty ", "°": r"^\circ ", "∪": r" \cup ",
    "∩": r" \cap ", "∈": r" \in ", "≤": r" \le ", "≥": r" \ge ", "≈": r" \approx ", "≠": r" \ne ",
    "∅": r" \emptyset ", "½": r" \frac12 ", "¼": r" \frac14 ", "¾": r" \frac34 ", "⅓": r" \frac13 ",
    "⅔": r" \frac23 ", "ℝ": r" \mathbb{R} ", "⟨": r" \langle ", "⟩": r" \rangle ",
}  # fmt: skip
VANISHING = (0x200B, 0x200E, 0x200F, 0x202A, 0x202C, 0x2060, 0x2061, 0x2062, 0xFEFF)
UNICODE = {ord(character): spelling
           for character, spelling in SPELLINGS.items()} | dict.fromkeys(VANISHING)
UNICODE |= {0xFF10 + i: digit for i, digit in enumerate(DIGITS)}
SUPERSCRIPTS = {ord(mark): digit for mark, digit in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")}

# Commands, without their backslash.
INVISIBLE = set(
    "left right middle big Big bigl bigr Bigl Bigr bigg Bigg biggl biggr displaystyle textstyle limits boldsymbol mathbf "
    "bf rm it boxed fbox angle ( ) [ ]".split())
SPACE = {*", ! ; : > quad qquad hspace phantom".split(), " ", "\n"}
TEXT = set("text textbf textit textrm texttt mathrm mathit mbox hbox operatorname".split())
SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "leq": "le", "simeq": "approx", "geq": "ge", "leqslant": "le", "geqslant": "ge", "neq": "ne",
    "lt": "<", "gt": ">", "ast": "*", "times": "*", "cdot": "*", "div": "/",
    "backslash": "setminus", "varnothing": "emptyset", "lvert": "|", "rvert": "|", "vert": "|",
    "mid": "|", "degree": "circ", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lg": "log",
}  # fmt: skip
FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp gcd lcm min max".split(
    ))
GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega "
    "Gamma Delta Theta Lambda Sigma Phi Psi Omega ell pi infty".split())
OPEN, CLOSE = {"(", "[", r"\{", "langle"}, {")", "]", r"\}", "rangle"}
# What models also type without a backslash. `sqrt12` is the root of 12; TeX's `\sqrt12` would be that of 1, beside a 2.
SPELLED = {
    name: name
    for name in [*FUNCTIONS, "pi", "infty", "theta", "alpha", "beta", "and", "or"]
}
SPELLED |= {"sqrt": "surd", "infinity": "infty"}
# Units whose name is not simply the word without its plural s.
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
    """The text is not mathematics as this module reads it, or costs more than the budget."""


class Budget:
    """Steps left to one comparison. Scanner, parser and algebra all take from it, so that any pair ends soon."""

    def __init__(self, steps: int):
        self.left = steps

    def take(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise Unreadable("over budget")


class Token(NamedTuple):
    """What the parser reads at a time."""

    kind: str  # number, letter, word, text, or the sign or command itself
    text: str = ""
    spaced: bool = False  # white space stands before it


def scan(text: str, budget: Budget) -> list[Token]:
    """The tokens of a text, with one of kind END behind the last. Raises Unreadable."""
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
        if character in DIGITS or character == "." and text[at + 1:at +
                                                            2].isdigit() and text[at + 1] in DIGITS:
            one = character != "." and _takes_one_digit(tokens)
            number, at = (character, at + 1) if one else _read_number(text, at, depth)
            tokens.append(Token("number", number, spaced))
        elif character.isascii() and character.isalpha():
            at = _end_of_run(text, at, ascii_letters)
            tokens += _read_letters(text[start:at], spaced, tokens, text[at : at + 1])
        elif character == "\\":
            name, at = _read_command(text, at)
            if name == "\\" and text[at:at +
                                     1] == "[":  # a matrix row with more space below: \\[4pt]
                at = text.find("]", at) + 1 or len(text)
            if name in SPACE or name in INVISIBLE:
                spaced = spaced or name in SPACE
                continue
            if name in TEXT:
                content, at = _read_braces(text, at)
                tokens.append(
                    Token("text",
                          content.replace("~", " ").replace(r"\,", " ").replace(r"\ ", " "),
                          spaced))
            elif name in "{}$%|\\#&_" or name == "":
                tokens.append(Token("\\" + name, "", spaced))
            else:
                tokens.append(Token(SAME.get(name, name), "", spaced))
        else:
            pair = text[at : at + 2]
            kind = pair if pair in ("<=", ">=", "!=", "**") else character
            at += len(kind)
            tokens.append(Token("^" if kind == "**" else kind, "", spaced))
        if tokens:
            depth += (tokens[-1].kind in OPEN) - (tokens[-1].kind in CLOSE)
        spaced = False
    return [*tokens, Token(END),
            Token(END)]  # the second is never taken: one may always look at what is next


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
    r"""Whether TeX would take but one digit here: `\frac12` is a half."""
    last = [token.kind for token in tokens[-2:]]
    return last[-1:] in (["frac"], [
        "binom"
    ]) or last[:1] in (["frac"], ["binom"]) and last[-1] in ("number", "letter")


def _end_of_run(text: str, at: int, characters: str) -> int:
    """Where the run of these characters ends that begins at `at`. Texts are short: LONGEST in answers.py."""
    return len(text) - len(text[at:].lstrip(characters))


def _read_number(text: str, at: int, depth: int) -> tuple[str, int]:
    r"""The digits, without group commas, and the place behind them.

    `{,}` and `,\!` always join groups of three; a bare comma only outside of brackets, where it separates; and only if
    every group that follows has three digits.
    """
    end = _end_of_run(text, at, DIGITS)
    number, after = text[at:end], end
    follows_comma = text[at - 1 : at] == "," and text[at - 2 : at - 1] in [*DIGITS] and depth == 0
    if 1 <= len(number) <= 3 and number[0] != "0" and not follows_comma:
        joined = number
        while True:
            comma = next((c for c in (r"{,}", r",\!", ",") if text.startswith(c, after)), None)
            begin = after + len(comma or "")
            while comma == r",\!" and text[begin : begin + 1] == " ":
                begin += 1
            finish = _end_of_run(text, begin, DIGITS)
            if comma is None or finish == begin or comma == "," and depth > 0:
                number, end = joined, after
                break
            if finish != begin + 3:
                break
            joined, after = joined + text[begin:finish], finish
    if text[end : end + 1] == ".":
        finish = _end_of_run(text, end + 1, DIGITS)
        if finish > end + 1:
            number, end = number + text[end:finish], finish
            if text[end : end + 1] == "." and text[end + 1 : end + 2] in [*DIGITS]:
                raise Unreadable("a number with two points")
        elif text.startswith((r".\overline", r".\bar"),
                             end):  # 0.333...: the parser reads what stands under the bar
            number, end = number + ".", end + 1
    if len(number) > LONGEST_INTEGER:
        raise Unreadable("a number too long")
    return number, end


def _read_letters(run: str, spaced: bool, before: list[Token], following: str) -> list[Token]:
    """A function, `and`, a word of three letters or more, a unit, or variables standing side by side."""
    last = before[-1] if before else Token(END)
    if run in SPELLED and last.kind != "_":
        return [Token(SPELLED[run], "", spaced)]
    if last.kind == "number" and not spaced and run in ("st", "nd", "rd", "th"):
        return []
    if following and following in DIGITS and not (last.kind == "frac" and len(run) == 1):
        raise Unreadable("a letter with a digit at its heels")  # 0x10, 1e5, x2: who can say?
    if len(run) >= 3 or last.kind == "number" and run in UNITS and len(run) == 2:
        return [Token("word", run, spaced)]
    return [Token("letter", letter, spaced and index == 0) for index, letter in enumerate(run)]


def _read_command(text: str, at: int) -> tuple[str, int]:
    end = max(_end_of_run(text, at + 1, ascii_letters),
              at + 2)  # no letter: the one character behind the backslash
    return text[at + 1 : end], end


def _read_braces(text: str, at: int) -> tuple[str, int]:
    """What stands between the brace at `at` and the one that closes it."""
    while text[at : at + 1] == " ":
        at += 1
    if text[at : at + 1] != "{":
        raise Unreadable("no brace")
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
    raise Unreadable("an open brace")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.scanner TEXT")
    try:
        for token in scan(sys.argv[1], Budget(10_000)):
            print(token.kind, token.text)
    except Unreadable as reason:
        sys.exit(f"error: {reason}")
