r"""Clean the text of an answer, so that one answer in two spellings is one text.

    python -m grader.cleaned '$\left( 3, \dfrac{1}{2} \right)$'        # (3,\frac{1}{2})

Equal cleaned texts are equal answers, and most pairs are decided here. Texts that are no
mathematics are compared here too.
"""

import sys
from collections.abc import Iterator
from string import ascii_letters, ascii_uppercase, digits

from grader.scanner import plain_spelling

LONGEST_ANSWER = 2000  # characters; longer answers are compared as text
LOWER = {ord(letter): letter.lower() for letter in ascii_uppercase}  # str.lower may change lengths
# LaTeX that says how a value looks, and not what it is.
TYPOGRAPHY = {"$", r"\$", r"\left", r"\right", r"\,", r"\!", r"\;", r"\:", r"\(", r"\)", r"\[",
              r"\]"}
RESPELLED = {r"\dfrac": r"\frac", r"\tfrac": r"\frac",
             "~": " ", r"\ ": " ", r"\quad": " ", r"\qquad": " "}
WRAPPERS = {r"\text", r"\textbf", r"\mathrm", r"\mathbf", r"\mbox"}  # only their content stays


def normalise(text: str) -> str:
    r"""The text without typography. Unequal values never become the same text.

    Dropped are dollar signs, `\left`, `\right`, thin spaces, the wrapper of `\text{...}`, commas
    between groups of three digits, a period at the end, and spaces (one space between two digits
    stays: `1 3/4`). `\dfrac` becomes `\frac`, and full-width digits and U+2212 become ASCII.
    A text of more than LONGEST_ANSWER characters loses only dollar signs and white space.
    """
    if text.isascii() and text.isdigit():
        return text
    spelled = plain_spelling(text[: LONGEST_ANSWER + 1])
    if len(spelled) > LONGEST_ANSWER:
        return "".join(text.replace("$", "").split())
    text = spelled
    plain = without_typography(text) if "\\" in text else text.replace("$", "").replace("~", " ")
    return _join_thousands(_without_spaces(without_period(plain.replace("{,}", ",").strip())))


def without_typography(text: str) -> str:
    """LaTeX without the commands that only say how a value looks."""
    kept, before = [], ""
    wrappers = []  # whether each open brace belongs to a dropped \text
    for token in _tokens(text):
        keep = token not in TYPOGRAPHY and token not in WRAPPERS
        if token == "{":
            wrappers.append(before in WRAPPERS)
            keep = not wrappers[-1]
        elif token == "}" and wrappers:
            keep = not wrappers.pop()
        if keep:
            kept.append(RESPELLED.get(token, token))
        before = token
    return "".join(kept)


def _without_spaces(text: str) -> str:
    """The text without white space, except one space between two digits and in `1, 234`."""
    words: list[str] = []
    for word in text.split():
        if words and words[-1][-1] in digits + "," and word[0] in digits:
            words.append(" ")
        words.append(word)
    return "".join(words)


def _join_thousands(text: str) -> str:
    """`10,080` -> `10080`. Inside brackets, a comma separates and stays."""
    if "," not in text:
        return text
    pieces = text.split(",")
    joined, depth, grouped = [pieces[0]], 0, False
    for before, after in zip(pieces, pieces[1:]):
        depth += sum(map(before.count, "([{")) - sum(map(before.count, ")]}"))
        bare = before.rstrip(digits)
        left = before[len(bare) :]  # the digits left of the comma
        right = len(after[:4]) - len(after[:4].lstrip(digits))  # how many digits follow, up to four
        begins = (1 <= len(left) <= 3 and left[0] != "0" and bare[-1:] != "."
                  and (bare != "" or len(joined) == 1))
        grouped = depth <= 0 and right == 3 and (begins or grouped and len(before) == 3)
        joined.append(after if grouped else "," + after)
    return "".join(joined)


def _tokens(text: str) -> Iterator[str]:
    r"""LaTeX from left to right: commands (`\frac`), escaped characters (`\{`) and characters."""
    plain, *rest = text.split("\\")
    yield from plain
    pieces = iter(rest)
    for piece in pieces:
        if piece:
            behind = piece.lstrip(ascii_letters)
            # without letters, the backslash takes one character
            name = piece[: len(piece) - len(behind) or 1]
            yield "\\" + name
            yield from piece[len(name) :]
        else:  # a backslash behind a backslash, or at the end
            following = next(pieces, None)
            yield "\\" if following is None else "\\\\"
            yield from following or ""


def without_period(text: str) -> str:
    """The text without a period at its end; three points are no period: 0.333..."""
    return text if text.endswith("...") else text.rstrip(".")


def same_words(a: str, b: str) -> bool:
    """Whether texts without mathematics, as `4:30 p.m.`, differ only in capitals and points."""
    if a != b and "{" in a + b and _without_braces(a) == _without_braces(b):
        return True
    a, b = (_without_points(text.translate(LOWER)) for text in (a, b))
    return a == b and not any(c in a for c in r"\^_={}()[]<>")


def _without_braces(text: str) -> str:
    """`_{1}^{n}` -> `_1^n`: an index or exponent of one sign needs no braces."""
    for mark in "_^":
        for sign in {*text} & {*ascii_letters, *digits}:
            text = text.replace(f"{mark}{{{sign}}}", mark + sign)
    return text


def _without_points(text: str) -> str:
    """`p.m.` -> `pm`; a point behind a digit stays."""
    return "".join(c for before, c in zip(" " + text, text) if c != "." or not before.isalpha())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grader.cleaned ANSWER")
    print(normalise(sys.argv[1]))
