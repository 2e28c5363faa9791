r"""Find the final answer in a completion, and tell whether it equals the gold one.

    python answers.py '\dfrac{3}{4}' 'So the answer is $0.75$.'        # 0.75: equal

A completion gives its answer in a box (MATH's form), after `####` (GSM8K's form), in words ("the answer is"), or by
ending on a number. Two answers are equal when they are the same text once typography is gone, or when both can be read
as mathematics (latex.py) and are of one kind with equal values (compare.py). Nothing is rounded but where a decimal of
six digits or more stands for an exact value, nothing is ever run, no function raises, and each comparison has a fixed
budget of steps.

Forms as in GSM8K (arXiv 2110.14168) and MATH (arXiv 2103.03874).
"""

import sys
from collections.abc import Iterator
from functools import lru_cache

from grader.compare import Comparison
from grader.latex import parse
from grader.scanner import DIGITS, UNICODE, Budget, Unreadable

BUDGET = 10_000  # steps that one comparison may take, some 20 ms: a quarter to read either answer, half to compare
LONGEST = 2000  # characters; longer answers are compared as they stand
MOST_JOINED = 16  # boxes of one list: each is compared with the last, and a text may hold any number of them

LOWER = {ord(letter): letter.lower()
         for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}  # str.lower may change the length
# LaTeX that says how a value looks and not what it is.
TYPOGRAPHY = {
    "$", r"\$", r"\left", r"\right", r"\,", r"\!", r"\;", r"\:", r"\(", r"\)", r"\[", r"\]"
}
SPACES = {"~", r"\ ", r"\quad", r"\qquad"}
SAME = {r"\dfrac": r"\frac", r"\tfrac": r"\frac"} | {space: " " for space in SPACES}
WRAPPERS = {r"\text", r"\textbf", r"\mathrm", r"\mathbf",
            r"\mbox"}  # the braces after them go, what they hold stays
BOXES = {r"\boxed", r"\fbox"}


# --------------------------------------------------------------------------------------- extraction


def extract_answer(text: str, strict: bool = False) -> str | None:
    r"""The final answer a text gives, or None.

    The last `\boxed{...}` or `\fbox{...}` that is closed and not empty, with those joined to it by "and", "or" or a
    comma; else the rest of the line after the last `####`; else what follows the last "answer is", "answer:" or (where
    a line begins) "A:"; else the last number. `strict` takes the first two only: what the text itself marks.
    """
    box = _last_boxes(text)
    if box:
        return box
    end = text.rfind("####")
    marked = text[end + 4 :].partition("\n")[0].strip(" \t\r:*") if end >= 0 else ""
    if marked or strict:
        return marked or None
    return _after_words(text) or _last_number(text)


def _last_boxes(text: str) -> str:
    r"""The contents of the last box and of those that are joined to it; "" where there is none."""
    if not any(box in text for box in BOXES):
        return ""
    boxes = _boxes(text)[-MOST_JOINED:]
    joined = boxes[-1:]
    for box in reversed(boxes[:-1]):
        # "$x=\boxed{1}$ and $x=\boxed{2}$": between two boxes of a list stands a separator, and a name perhaps.
        between = normalise(text[box[1] : joined[0][0]])
        if between.endswith("="):
            between = between[:-1].rstrip("_" + DIGITS)[:-1]
        # "$\boxed{15\frac34}$, or $\boxed{\frac{63}{4}}$" says one thing twice.
        if between not in (",", "and", ",and", "or", ",or", ";") or equivalent(
                boxes[-1][2], box[2]):
            break
        joined.insert(0, box)
    return ", ".join(content for _, _, content in joined)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, content) of each box that is closed and holds something, in order; of nested ones the innermost."""
    found: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int]] = [
    ]  # of each open brace: where its box begins or -1, where its content begins
    at, before, box_at = 0, "", -1
    for token in _tokens(text):
        if token in BOXES:
            box_at = at
        elif token == "{":
            opened.append((box_at if before in BOXES else -1, at + 1))
        elif token == "}" and opened:
            begin, start = opened.pop()
            # A box inside a box closes first but was opened later: the inner one holds the bare value.
            inner = found and begin < found[-1][0]
            if begin >= 0 and not inner and text[start:at].strip():
                found.append((begin, at + 1, text[start:at].strip()))
        elif before in BOXES and not token.isspace() and token not in ("}", "$"):
            words = text[at : at + 100].replace("$", " ").split()
            found.append((box_at, at + len(words[0]), words[0].rstrip(".,")))
        if not (token.isspace() and before in BOXES):
            before = token
        at += len(token)
    return found


def _tokens(text: str) -> Iterator[str]:
    r"""LaTeX from left to right: a command (`\frac`), an escaped character (`\{`), or one character."""
    at = 0
    while at < len(text):
        end = at + 1
        if text[at] == "\\":
            while end < len(text) and text[end].isascii() and text[end].isalpha():
                end += 1
            end = max(end,
                      at + 2)  # no letter followed: the backslash takes the one character after it
        yield text[at:end]
        at = end


def _after_words(text: str) -> str:
    """What a sentence calls its answer: the mathematics between dollar signs if any, else the words up to its end."""
    lower = "\n" + text.translate(LOWER)  # one place further than in the text
    ends = [
        lower.rfind(marker) + len(marker) - 1 for marker in ("answer is", "answer:")
        if marker in lower
    ]
    line = ("\n" + text).rfind("\nA:")
    ends += [line + 2] if line >= 0 else []
    if not ends:
        return ""
    rest = text[max(ends) :].lstrip(" \t\r\n:*").partition("\n")[0]
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if rest.startswith(opening) and closing in rest[len(opening) :]:
            return _joined_formulas(rest, opening, closing)
    for end in (". ", "! ", " because ", " since "):
        rest = rest.partition(end)[0]
    rest = rest.strip(" \t\r:*").rstrip(".*")
    # "therefore 5", "that she has 5 left": the words are no part of the answer
    readable = _read(rest)[0] is not None if len(rest) <= LONGEST else False
    return rest if readable else _last_number(rest) or rest


def _joined_formulas(rest: str, opening: str, closing: str) -> str:
    """`$1$, $2$ and $3$ are ...`: the formulas at the beginning of a line with what joins them."""
    formulas = []
    while rest.startswith(opening) and closing in rest[len(opening) :]:
        formula, _, rest = rest[len(opening) :].partition(closing)
        formulas.append(formula.strip())
        begin = rest.find(opening)
        if begin < 0 or rest[:begin].strip() not in (",", "and", ", and", "or", ", or", ";"):
            break
        rest = rest[begin:]
    return ", ".join(formulas)


def _last_number(text: str) -> str | None:
    """The last number in a text, with its sign, decimals and fraction bar; None where there is no digit."""
    text = text.translate(UNICODE)
    end = max(text.rfind(digit) for digit in DIGITS) + 1
    if end == 0:
        return None
    start = len(text[:end].rstrip(DIGITS + ".,/"))
    run = text[start:end]
    # "1,234" is one number, "3, 4" and "3,4" are two, and of a date or a version the last part is as good as any.
    joined = _join_thousands(run)
    last = joined.rpartition(",")[2].lstrip("/")
    top, _, bottom = last.partition("/")
    if not all(part.replace(".", "", 1).isdigit() for part in (top, bottom or "1")):
        return run[len(run.rstrip(DIGITS)) :]
    # A minus after a letter, a digit or a bracket subtracts; elsewhere it is a sign.
    minus = last == joined and text[start - 1 : start] == "-"
    subtracts = start > 1 and (text[start - 2].isalnum() or text[start - 2] in ")]}")
    return "-" + last if minus and not subtracts else last


# ------------------------------------------------------------------------------------- cleaned text


def normalise(text: str) -> str:
    r"""The text without typography: equal values often, and unequal values never, become the same text.

    Dropped are dollar signs, `\left`, `\right`, thin spaces, the wrapper of `\text{...}`, commas between groups of
    three digits, a period at the end, and spaces (but one between two digits stays: `1 3/4`). `\dfrac` is `\frac`,
    full-width digits and U+2212 are ASCII. Of more than LONGEST characters only dollar signs and white space go.
    """
    if len(text) > LONGEST:
        return "".join(text.replace("$", "").split())
    text = text if text.isascii() else text.translate(UNICODE)
    plain = _without_typography(text) if "\\" in text else text.replace("$", "").replace("~", " ")
    return _join_thousands(_without_spaces(plain.replace("{,}", ",").strip().rstrip(".")))


def _without_typography(text: str) -> str:
    """LaTeX without the commands that only say how a value looks."""
    kept, wrappers, before = [], [], ""  # wrappers: of each open brace, whether it belongs to a dropped \text
    for token in _tokens(text):
        keep = token not in TYPOGRAPHY and token not in WRAPPERS
        if token == "{":
            wrappers.append(before in WRAPPERS)
            keep = not wrappers[-1]
        elif token == "}" and wrappers:
            keep = not wrappers.pop()
        if keep:
            kept.append(SAME.get(token, token))
        before = token
    return "".join(kept)


def _without_spaces(text: str) -> str:
    """Drop white space, but leave one space between two digits, and behind a comma: `1, 234` are two numbers."""
    words: list[str] = []
    for word in text.split():
        if words and words[-1][-1] in DIGITS + "," and word[0] in DIGITS:
            words.append(" ")
        words.append(word)
    return "".join(words)


def _join_thousands(text: str) -> str:
    """`10,080` -> `10080`. Inside brackets a comma stands between coordinates or members, and stays."""
    if "," not in text:
        return text
    pieces = text.split(",")
    joined, depth, grouped = [pieces[0]], 0, False
    for before, after in zip(pieces, pieces[1:]):
        depth += sum(before.count(mark)
                     for mark in "([{") - sum(before.count(mark) for mark in ")]}")
        bare = before.rstrip(DIGITS)
        first = before[len(bare) :]  # the digits left of the comma
        right = len(after[:4]) - len(
            after[:4].lstrip(DIGITS))  # how many of the next four characters are digits
        begins = 1 <= len(first) <= 3 and first[0] != "0" and bare[-1:] != "." and (
            bare != "" or len(joined) == 1)
        grouped = depth <= 0 and right == 3 and (begins or grouped and len(before) == 3)
        joined.append(after if grouped else "," + after)
    return "".join(joined)


# ----------------------------------------------------------------------------------------- equality


def equivalent(gold: str, answer: str | None) -> bool:
    """Whether an answer equals the gold one, as text or as mathematics. None equals nothing. Symmetric, never raises."""
    return _compare(gold, answer)[0]


def steps_of(gold: str, answer: str) -> int:
    """Steps that `equivalent` takes for this pair, at most BUDGET."""
    return _compare(gold, answer)[1]


def _compare(gold: str, answer: str | None) -> tuple[bool, int]:
    if answer is None:
        return False, 0
    if gold == answer:
        return True, 0
    if len(gold) < 16 and len(answer) < 16 and _plain_integer(gold) and _plain_integer(answer):
        return int(gold) == int(answer), 0
    plain_gold, plain_answer = normalise(gold), normalise(answer)
    if plain_gold == plain_answer:
        return True, 0
    if max(len(gold), len(answer)) > LONGEST:
        return False, 0
    (left, steps_left), (right, steps_right) = _read(gold), _read(answer)
    steps = steps_left + steps_right
    if left is None or right is None:
        return _same_words(plain_gold, plain_answer), steps
    budget = Budget(BUDGET // 2)
    try:
        return Comparison(budget).equal(left, right), min(steps + BUDGET // 2 - budget.left, BUDGET)
    except Unreadable:
        return False, min(steps + BUDGET // 2 - budget.left, BUDGET)


def _plain_integer(text: str) -> bool:
    digits = text[1:] if text[:1] == "-" else text
    return digits.isascii() and digits.isdigit()


def _same_words(a: str, b: str) -> bool:
    """Texts that are no mathematics, such as `4:30 p.m.`: capitals and points make no difference."""
    a, b = (_without_points(text.translate(LOWER)) for text in (a, b))
    return a == b and not any(c in a for c in r"\^_={}()[]<>")


def _without_points(text: str) -> str:
    """`p.m.` -> `pm`; a point behind a digit stays."""
    return "".join(c for before, c in zip(" " + text, text) if c != "." or not before.isalpha())


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[tuple | None, int]:
    """The tree of an answer, None where it is to be compared as text; and the steps that took."""
    budget = Budget(BUDGET // 4)
    try:
        tree = parse(text.strip().rstrip(".").strip(), budget)
    except Unreadable:
        tree = None
    return tree, BUDGET // 4 - max(budget.left, 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python answers.py GOLD COMPLETION")
    found = extract_answer(sys.argv[2])
    print(f"{found}: {'equal' if equivalent(sys.argv[1], found) else 'not equal'}")
