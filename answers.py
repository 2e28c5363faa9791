r"""Find the final answer in a completion, and decide whether it equals the gold answer.

    python answers.py '\dfrac{3}{4}' 'So the answer is $0.75$.'        # 0.75: equal

Find: take the first of these that the completion has.

1. The last box, as in MATH: `\boxed{...}`.
2. The rest of the line after the last `####`, as in GSM8K.
3. What follows the last "answer is" or "answer:".
4. The last number.

Compare:

    text -> equal cleaned texts, or two integers? -> verdict
      |  otherwise, the modules of grader/:
      +-- scanner -> tokens -- latex, expressions -> tree -- exact -> value -- compare -> verdict

Answers are equal if they are of one kind and have
equal values. An answer that is no mathematics is compared as text. Nothing is rounded, except that
a decimal of six digits or more may stand for an exact value. Nothing is ever executed, no function
raises, and a comparison takes at most BUDGET steps.

Formats: GSM8K (arXiv 2110.14168), MATH (arXiv 2103.03874).
"""

import sys
from collections.abc import Iterator
from functools import lru_cache
from string import ascii_uppercase, digits

# Steps of one comparison, about 20 ms: a quarter to read each answer, and half to compare them.
BUDGET = 10_000
LONGEST_ANSWER = 2000  # characters; longer answers are compared as text
LONGEST_PLAIN = 20  # characters of an integer that is read without the parser
MOST_JOINED = 16  # boxes of one list; each is compared with the last one

LOWER = {ord(letter): letter.lower() for letter in ascii_uppercase}  # str.lower may change lengths
# LaTeX that says how a value looks, and not what it is.
TYPOGRAPHY = {"$", r"\$", r"\left", r"\right", r"\,", r"\!", r"\;", r"\:", r"\(", r"\)", r"\[",
              r"\]"}
RESPELLED = {r"\dfrac": r"\frac", r"\tfrac": r"\frac",
             "~": " ", r"\ ": " ", r"\quad": " ", r"\qquad": " "}
WRAPPERS = {r"\text", r"\textbf", r"\mathrm", r"\mathbf", r"\mbox"}  # only their content stays
BOXES = {r"\boxed", r"\fbox"}


# --------------------------------------------------------------------------------------- extraction


def extract_answer(text: str, strict: bool = False) -> str | None:
    r"""The final answer that a text gives, or None.

    The last `\boxed{...}` or `\fbox{...}` that is closed and not empty, with the boxes joined to it
    by "and", "or" or a comma; else the rest of the line after the last `####`; else what follows
    the last "answer is", "answer:" or (at the beginning of a line) "A:"; else the last number.
    With `strict`, only the first two count: the text itself marks its answer.
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
    r"""The contents of the last box and of the boxes joined to it, or "" if there is no box."""
    if not any(box in text for box in BOXES):
        return ""
    boxes = _boxes(text)[-MOST_JOINED:]
    joined = boxes[-1:]
    for box in reversed(boxes[:-1]):
        # "$x=\boxed{1}$ and $x=\boxed{2}$": a separator stands between two boxes, perhaps a name.
        between = normalise(text[box[1] : joined[0][0]])
        if between.endswith("="):
            between = between[:-1].rstrip("_" + digits)[:-1]
        if between not in (",", "and", ",and", "or", ",or", ";"):
            break
        # "$\boxed{15\frac34}$, or $\boxed{\frac{63}{4}}$" gives one answer in two forms.
        if equivalent(boxes[-1][2], box[2]):
            break
        joined.insert(0, box)
    return ", ".join(content for _, _, content in joined)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, content) of each closed box that is not empty; of nested boxes the inner one."""
    found: list[tuple[int, int, str]] = []
    # Of each open brace: the beginning of its box (-1 if it has none) and of its content.
    opened: list[tuple[int, int]] = []
    at, before, box_at = 0, "", -1
    for token in _tokens(text):
        if token in BOXES:
            box_at = at
        elif token == "{":
            opened.append((box_at if before in BOXES else -1, at + 1))
        elif token == "}" and opened:
            begin, start = opened.pop()
            # Of nested boxes, the inner one closes first. It holds the bare value.
            holds_box = found and begin < found[-1][0]
            if begin >= 0 and not holds_box and text[start:at].strip():
                found.append((begin, at + 1, text[start:at].strip()))
        elif before in BOXES and not token.isspace() and token not in ("}", "$"):
            words = text[at : at + 100].replace("$", " ").split()
            found.append((box_at, at + len(words[0]), words[0].rstrip(".,")))
        if not (token.isspace() and before in BOXES):
            before = token
        at += len(token)
    return found


def _tokens(text: str) -> Iterator[str]:
    r"""LaTeX from left to right: commands (`\frac`), escaped characters (`\{`) and characters."""
    at = 0
    while at < len(text):
        end = at + 1
        if text[at] == "\\":
            while end < len(text) and text[end].isascii() and text[end].isalpha():
                end += 1
            end = max(end, at + 2)  # without letters, the backslash takes one character
        yield text[at:end]
        at = end


def _after_words(text: str) -> str:
    """What follows the last "answer is": formulas in dollar signs, else words up to an end."""
    lower = "\n" + text.translate(LOWER)  # each place is one further than in the text
    ends = [lower.rfind(marker) + len(marker) - 1 for marker in ("answer is", "answer:")
            if marker in lower]
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
    if _plain_integer(rest) is not None:
        return rest
    # "therefore 5", "that she has 5 left": the words are no part of the answer.
    readable = len(rest) <= LONGEST_ANSWER and _read(rest)[0] is not None
    return rest if readable else _last_number(rest) or rest


def _joined_formulas(rest: str, opening: str, closing: str) -> str:
    """`$1$, $2$ and $3$ are ...`: the formulas at the beginning of a line that are joined."""
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
    """The last number in a text, with its sign, decimals and fraction bar; None without a digit."""
    text = _ascii_spelling(text)
    end = max(text.rfind(digit) for digit in digits) + 1
    if end == 0:
        return None
    start = len(text[:end].rstrip(digits + ".,/"))
    run = text[start:end]
    # "1,234" is one number; "3, 4" and "3,4" are two. Of a date or a version, take the last part.
    joined = _join_thousands(run)
    last = joined.rpartition(",")[2].lstrip("/")
    top, _, bottom = last.partition("/")
    if not all(part.replace(".", "", 1).isdigit() for part in (top, bottom or "1")):
        return run[len(run.rstrip(digits)) :]
    # A minus subtracts after a letter, a digit or a bracket. Elsewhere it is a sign.
    minus = last == joined and text[start - 1 : start] == "-"
    subtracts = start > 1 and (text[start - 2].isalnum() or text[start - 2] in ")]}")
    return "-" + last if minus and not subtracts else last


# ------------------------------------------------------------------------------------- cleaned text


def normalise(text: str) -> str:
    r"""The text without typography. Unequal values never become the same text.

    Dropped are dollar signs, `\left`, `\right`, thin spaces, the wrapper of `\text{...}`, commas
    between groups of three digits, a period at the end, and spaces (one space between two digits
    stays: `1 3/4`). `\dfrac` becomes `\frac`, and full-width digits and U+2212 become ASCII.
    A text of more than LONGEST_ANSWER characters loses only dollar signs and white space.
    """
    if len(text) > LONGEST_ANSWER:
        return "".join(text.replace("$", "").split())
    text = _ascii_spelling(text)
    plain = _without_typography(text) if "\\" in text else text.replace("$", "").replace("~", " ")
    return _join_thousands(_without_spaces(plain.replace("{,}", ",").strip().rstrip(".")))


def _ascii_spelling(text: str) -> str:
    """The text with ASCII or LaTeX for the Unicode characters that have such a spelling."""
    if text.isascii():
        return text
    from grader.scanner import UNICODE  # only now: see _verdict_of_trees
    return text.translate(UNICODE)


def _without_typography(text: str) -> str:
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


# ----------------------------------------------------------------------------------------- equality


def equivalent(gold: str, answer: str | None) -> bool:
    """Whether an answer equals the gold answer. None equals nothing. Symmetric, never raises."""
    return _verdict(gold, answer)[0]


def steps_of(gold: str, answer: str) -> int:
    """Steps that `equivalent` takes for this pair, at most BUDGET."""
    return _verdict(gold, answer)[1]


def _verdict(gold: str, answer: str | None) -> tuple[bool, int]:
    """Whether both are equal, and the steps of the comparison."""
    if answer is None:
        return False, 0
    if gold == answer:
        return True, 0
    gold_integer, answer_integer = _plain_integer(gold), _plain_integer(answer)
    if gold_integer is not None and answer_integer is not None:
        return gold_integer == answer_integer, 0
    texts = normalise(gold), normalise(answer)
    if texts[0] == texts[1]:
        return True, 0
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        return False, 0
    return _verdict_of_trees(gold, answer, texts)


def _plain_integer(text: str) -> int | None:
    """The value of `72`, `-5`, `1,072` or `$18.`; None for any text that needs the parser."""
    if len(text) > LONGEST_PLAIN:
        return None
    written = _bare(text).strip("$")
    number = _join_thousands(written.removeprefix("-"))
    if not (number.isascii() and number.isdigit()):
        return None
    return -int(number) if written[0] == "-" else int(number)


def _bare(text: str) -> str:
    """The text without white space around it and points at its end."""
    return text.strip().rstrip(".").strip()


def _verdict_of_trees(gold: str, answer: str, texts: tuple[str, str]) -> tuple[bool, int]:
    """The verdict on two answers read as mathematics, or as words if one is no mathematics."""
    # Imports of grader/ stand inside functions: a run on word problems compares only integers, and
    # never needs a parser.
    from grader.compare import Comparison
    from grader.scanner import Budget, Unreadable
    (left, steps_left), (right, steps_right) = _read(gold), _read(answer)
    steps = steps_left + steps_right
    if left is None or right is None:
        return _same_words(*texts), steps
    budget = Budget(BUDGET // 2)
    try:
        equal = Comparison(budget).equal(left, right)
    except Unreadable:
        equal = False
    return equal, min(steps + BUDGET // 2 - budget.left, BUDGET)


def _same_words(a: str, b: str) -> bool:
    """Whether texts without mathematics, as `4:30 p.m.`, differ only in capitals and points."""
    a, b = (_without_points(text.translate(LOWER)) for text in (a, b))
    return a == b and not any(c in a for c in r"\^_={}()[]<>")


def _without_points(text: str) -> str:
    """`p.m.` -> `pm`; a point behind a digit stays."""
    return "".join(c for before, c in zip(" " + text, text) if c != "." or not before.isalpha())


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[tuple | None, int]:
    """The tree of an answer, or None if it is compared as text; and the steps of reading it."""
    from grader.latex import parse
    from grader.scanner import Budget, Unreadable
    budget = Budget(BUDGET // 4)
    try:
        tree = parse(_bare(text), budget)
    except Unreadable:
        tree = None
    return tree, BUDGET // 4 - max(budget.left, 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python answers.py GOLD COMPLETION")
    extracted = extract_answer(sys.argv[2])
    verdict = "equal" if equivalent(sys.argv[1], extracted) else "not equal"
    print(f"{extracted}: {verdict}")
