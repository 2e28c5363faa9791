r"""Find the final answer in a completion, and tell whether it equals the gold one.

    python answers.py '\dfrac{3}{4}' 'So the answer is $0.75$.'        # 0.75: equal

A completion gives its answer in a box (MATH's form), after `####` (GSM8K's form), in words ("the answer is"), or by
ending on a number. Two answers are equal when they are the same text once typography is gone, or the same rational
number, exactly: nothing here is rounded, and nothing is ever run. Texts come from a model and may be anything, so each
function works in time linear in the length of its text, and raises nothing.

Forms as in GSM8K (arXiv 2110.14168) and MATH (arXiv 2103.03874).
"""

import sys
from collections.abc import Iterator
from fractions import Fraction

DIGITS = "0123456789"
LONGEST_NUMBER = 1000  # characters; longer ones are compared as text (Python itself refuses integers of 4,300 digits)

# One character for one: full-width digits and the typographic minus become ASCII; direction marks vanish.
PLAIN = {0xFF10 + i: digit for i, digit in enumerate(DIGITS)} | {0x2212: "-", 0x200E: None, 0x200F: None}
LOWER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}  # str.lower may change the length

# LaTeX that says how a value looks and not what it is.
TYPOGRAPHY = {"$", r"\$", r"\left", r"\right", r"\,", r"\!", r"\;", r"\:", r"\(", r"\)", r"\[", r"\]"}
SPACES = {"~", r"\ ", r"\quad", r"\qquad"}
SAME = {r"\dfrac": r"\frac", r"\tfrac": r"\frac"} | {space: " " for space in SPACES}
WRAPPERS = {r"\text", r"\textbf", r"\mathrm", r"\mathbf", r"\mbox"}  # the braces after them go, what they hold stays


def extract_answer(text: str, strict: bool = False) -> str | None:
    r"""The final answer a text gives, or None.

    The last `\boxed{...}` that is closed and not empty; else the rest of the line after the last `####`; else after the
    last "answer is" or "answer:"; else the last number. `strict` takes the first two only: what the text itself marks.
    """
    box = _last_box(text)
    if box:
        return box
    markers = [["####"]] if strict else [["####"], ["answer is", "answer:"]]
    lower = text.translate(LOWER)
    for same_rank in markers:
        end = max(lower.rfind(marker) + len(marker) if marker in lower else -1 for marker in same_rank)
        rest = text[end:].partition("\n")[0].strip(" \t\r:*") if end >= 0 else ""
        if rest:
            return rest
    return None if strict else _last_number(text)


def _last_box(text: str) -> str:
    r"""What stands in the last-opened `\boxed{...}` that is closed and holds something; "" where there is none."""
    if r"\boxed{" not in text:
        return ""
    found, found_at = "", -1
    opened, at, before = [], 0, ""  # opened: (where the content begins, whether it is a box's) of each open brace
    for token in _tokens(text):
        if token == "{":
            opened.append((at + 1, before == r"\boxed"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            # A box inside a box closes first but was opened later: the inner one holds the bare value.
            if is_box and start > found_at and text[start:at].strip():
                found, found_at = text[start:at].strip(), start
        at, before = at + len(token), token
    return found


def _tokens(text: str) -> Iterator[str]:
    r"""LaTeX from left to right: a command (`\frac`), an escaped character (`\{`), or one character."""
    at = 0
    while at < len(text):
        end = at + 1
        if text[at] == "\\":
            while end < len(text) and text[end].isascii() and text[end].isalpha():
                end += 1
            end = max(end, at + 2)  # no letter followed: the backslash takes the one character after it
        yield text[at:end]
        at = end


def _last_number(text: str) -> str | None:
    """The last number in a text, with its sign, decimals and fraction bar; None where there is no digit."""
    text = text.translate(PLAIN)
    end = max(text.rfind(digit) for digit in DIGITS) + 1
    if end == 0:
        return None
    start = len(text[:end].rstrip(DIGITS + ".,/"))
    run = text[start:end]
    # "1,234" is one number, "3, 4" and "3,4" are two, and of a date or a version the last part is as good as any.
    joined = _join_thousands(run)
    number = joined.rpartition(",")[2].lstrip("/")
    if _rational(number) is None:
        return run[len(run.rstrip(DIGITS)) :]
    # A minus after a letter, a digit or a bracket subtracts; elsewhere it is a sign.
    minus = number == joined and text[start - 1 : start] == "-"
    subtracts = start > 1 and (text[start - 2].isalnum() or text[start - 2] in ")]}")
    return "-" + number if minus and not subtracts else number


def normalise(text: str) -> str:
    r"""The text without typography: equal values often, and unequal values never, become the same text.

    Dropped are dollar signs, `\left`, `\right`, thin spaces, the wrapper of `\text{...}`, commas between groups of
    three digits, a period at the end, and spaces (but one between two digits stays: `1 3/4`). `\dfrac` is `\frac`,
    full-width digits and U+2212 are ASCII.
    """
    kept, wrappers, before = [], [], ""  # wrappers: of each open brace, whether it belongs to a dropped \text
    for token in _tokens(text.translate(PLAIN)):
        keep = token not in TYPOGRAPHY and token not in WRAPPERS
        if token == "{":
            wrappers.append(before in WRAPPERS)
            keep = not wrappers[-1]
        elif token == "}" and wrappers:
            keep = not wrappers.pop()
        if keep:
            kept.append(SAME.get(token, token))
        before = token
    plain = "".join(kept).replace("{,}", ",").strip().rstrip(".")
    return _join_thousands(_without_spaces(plain))


def _without_spaces(text: str) -> str:
    """Drop white space, but leave one space between two digits."""
    words: list[str] = []
    for word in text.split():
        if words and words[-1][-1] in DIGITS and word[0] in DIGITS:
            words.append(" ")
        words.append(word)
    return "".join(words)


def _join_thousands(text: str) -> str:
    """`10,080` -> `10080`. Inside brackets a comma stands between coordinates or members, and stays."""
    pieces = text.split(",")
    joined, depth, grouped = [pieces[0]], 0, False
    for before, after in zip(pieces, pieces[1:]):
        depth += sum(before.count(mark) for mark in "([{") - sum(before.count(mark) for mark in ")]}")
        bare = before.rstrip(DIGITS)
        first = before[len(bare) :]  # the digits left of the comma
        right = len(after[:4]) - len(after[:4].lstrip(DIGITS))  # how many of the next four characters are digits
        begins = 1 <= len(first) <= 3 and first[0] != "0" and bare[-1:] != "." and (bare != "" or len(joined) == 1)
        grouped = depth <= 0 and right == 3 and (begins or grouped and len(before) == 3)
        joined.append(after if grouped else "," + after)
    return "".join(joined)


def _rational(text: str) -> Fraction | None:
    r"""The exact value of `-12`, `.5`, `3/4`, `\frac{3}{4}`, `\frac34`, `1\frac{3}{4}`, `1 3/4`; of all else None."""
    if len(text) > LONGEST_NUMBER:
        return None
    sign = -1 if text.startswith("-") else 1
    text = text[1:] if text.startswith(("-", "+")) else text
    if r"\frac" in text:
        whole, _, rest = text.partition(r"\frac")
        braced = rest.startswith("{") and rest.endswith("}")
        top, _, bottom = rest[1:-1].partition("}{") if braced else (rest[:1], "", rest[1:])
    elif "/" in text:
        whole, _, rest = text.rpartition(" ")
        top, _, bottom = rest.partition("/")
    else:
        whole, top, bottom = "", text, "1"
    # In a mixed number only the whole may carry a sign, and it is an integer.
    if whole and not _only_digits(whole + top + bottom):
        return None
    parts = [_decimal(part) for part in (whole or "0", top, bottom)]
    if None in parts or parts[2] == 0:
        return None
    return sign * (parts[0] + parts[1] / parts[2])


def _decimal(text: str) -> Fraction | None:
    """The value of an integer or a decimal, perhaps with a minus. Python's own readers also take `1_0` and `1e9`."""
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    left, _, right = text.partition(".")
    if not _only_digits(left + right):
        return None
    return sign * Fraction(int(left + right), 10 ** len(right))


def _only_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def equivalent(gold: str, answer: str | None) -> bool:
    """Whether an answer equals the gold one: the same normal form, or the same rational number. None equals nothing."""
    if answer is None:
        return False
    gold, answer = normalise(gold), normalise(answer)
    # "x=5" answers what "5" asks for; between two equations the letter matters.
    if ("=" in gold) != ("=" in answer):
        gold, answer = (text[2:] if text[:1].isalpha() and text[1:2] == "=" else text for text in (gold, answer))
    value = _rational(gold)
    return gold == answer or (value is not None and value == _rational(answer))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python answers.py GOLD COMPLETION")
    found = extract_answer(sys.argv[2])
    print(f"{found}: {'equal' if equivalent(sys.argv[1], found) else 'not equal'}")
