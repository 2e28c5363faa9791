r"""Find the final answer in a completion, and decide whether it equals the gold answer.

    python answers.py '\dfrac{3}{4}' 'So the answer is $0.75$.'        # 0.75: equal

Find: take the first of these that the completion has. What a model thinks in <think>...</think>
counts only if nothing follows. Of a completion with <answer>...</answer>, only what stands there.

1. The last box, as in MATH: `\boxed{...}`.
2. The rest of the line after the last `####`, as in GSM8K. A heading `#### Step 2` does not count.
3. The first value after the last "answer is" or "answer:".
4. The last number, or the formula that it stands in.

Compare:

    text -> two integers? -> verdict
      |  otherwise, the modules of grader/:
      +-- cleaned -> equal texts? -> verdict
      +-- scanner -> tokens -- latex, expressions -> tree -- exact -> value -- compare -> verdict

Answers are equal if they are of one kind and have equal values. An answer that is no mathematics is
compared as text. Nothing is rounded, except that a decimal of six digits or more may stand for an
exact value. Nothing is ever executed, no function raises, and a comparison takes at most
grader.verdict.BUDGET steps.

Formats: GSM8K (arXiv 2110.14168), MATH (arXiv 2103.03874).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase, digits

LONGEST_ANSWER = 2000  # characters; longer answers are compared as text
LONGEST_PLAIN = 20  # characters of an integer that is read without the parser
MOST_JOINED = 16  # boxes of one list; each is compared with the last one

LOWER = {ord(letter): letter.lower() for letter in ascii_uppercase}  # str.lower may change lengths
MOST_BOXES = 4 * MOST_JOINED  # that are looked for, from the end
BOXES = (r"\boxed", r"\fbox", r"\framebox")
SEPARATORS = {",", ";", "and", "or"}
FORMULAS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
# Words that name the answer, and what must follow them.
NAMES_OF_ANSWER = {"answer": ("is", "are", ":", "=", "|"),
                   "correct option": ("is", ":"), "correct choice": ("is", ":"),
                   "答案": ("是", "为", "為", ":", "=")}
HEADINGS = {"answer", "final answer", "the answer", "the final answer"}
# What may end the value in a sentence that goes on.
BREAKS = (" (", ", ", " - ", " – ", " — ", ": ", " for ", " as ", " which ", " when ", " in ",
          " and ", " or ", " out of ", " of ", " is ", " are ", " was ", " = ", "，")
# Words before a formula that is the value of what they speak about.
VALUE_FOLLOWS = ("is", "are", "be", "equals", "to", "get", "have", "gives", "yields", "as", "=")
FRACTIONS = (r"\frac", r"\dfrac", r"\tfrac")
LINES_WITH_DIGITS = 8  # at the end, in which the last number is looked for
NUMERAL_WINDOW = 300  # characters before the last digit in which its numeral begins


# --------------------------------------------------------------------------------------- extraction


def extract_answer(text: str, strict: bool = False, cut: bool = False) -> str | None:
    r"""The final answer that a text gives, or None.

    The last `\boxed{...}` that is closed and not empty, with the boxes joined to it by "and", "or"
    or a comma; else the rest of the line after the last `####`; else the first value after the last
    "answer is", "answer:" or (at the beginning of a line) "A:"; else the last number.
    With `strict`, only the first two count: the text itself marks its answer. With `cut`, the text
    was cut, perhaps within a number: a number at its very end does not count.
    """
    _, _, rest = text.rpartition("</think>")
    text = rest if rest.strip() else text
    tagged = _in_tags(text)
    if tagged:
        text, cut = tagged, False
    box = _last_boxes(text, cut)
    if box:
        return box
    marked = _after_mark(text, cut)
    if tagged and not marked:
        marked = _bare_formula(tagged) or (tagged if _is_readable(tagged) else "")
    if marked or strict:
        return marked or None
    return _after_words(text) or _last_number(text)


def _in_tags(text: str) -> str:
    """What stands in the last <answer>...</answer> that is not empty, or ""."""
    end = len(text)
    for _ in range(MOST_JOINED):
        end = text.rfind("</answer>", 0, end)
        begin = text.rfind("<answer>", 0, max(end, 0))
        if begin < 0:
            return ""
        content = text[begin + len("<answer>") : end].strip()
        if content:
            return content
        end = begin
    return ""


def _bare_formula(text: str) -> str:
    """The formula that a text is, without its dollar signs, or ""."""
    for opening, closing in FORMULAS:
        if text.startswith(opening) and _end_of_formula(text, closing, len(opening)) == len(
                text) - len(closing):
            return _formula(text, opening, closing)
    return ""


# -- boxes


def _last_boxes(text: str, cut: bool) -> str:
    r"""The contents of the last box and of the boxes joined to it, or "" if there is no box."""
    if not any(box in text for box in BOXES):
        return ""
    boxes = _boxes(text, cut)[-MOST_JOINED:]
    joined = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if not _joins(text[box[1] : joined[0][0]]):
            break
        # "$\boxed{15\frac34}$, or $\boxed{\frac{63}{4}}$" gives one answer in two forms.
        if equivalent(boxes[-1][2], box[2]):
            break
        joined.insert(0, box)
    return ", ".join(content for _, _, content in joined)


def _joins(between: str) -> bool:
    """Whether what stands between two boxes makes them one list: `and`, `apples, and x =`."""
    if len(between) > 100:
        return False
    from grader.cleaned import without_typography
    words = without_typography(between).replace("$", " ")
    for sign in (",", ";", "="):
        words = words.replace(sign, f" {sign} ")
    before, after = words.split(), []
    if before and before[0] not in SEPARATORS and before[0].isalpha():
        before = before[1:]  # a noun
    while before and before[0] in SEPARATORS:
        after, before = [*after, before[0]], before[1:]
    named = len(before) == 2 and (before[1] == "=" or before[1] == "is" and len(before[0]) == 1)
    return bool(after) and (not before or named)


def _boxes(text: str, cut: bool) -> list[tuple[int, int, str]]:
    """(begin, end, content) of each closed box that is not empty; of nested boxes the inner one."""
    found: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int]] = []  # of each open brace: the box's begin or -1, and its own
    begins: dict[int, int] = {}  # the place of a box's brace -> the begin of the box
    after = _begin_of_boxes(text)  # and then behind the last escaped character
    for at in range(after, len(text)):
        character = text[at]
        if at < after or character not in "\\{}":
            continue
        if character == "\\":
            box = next((box for box in BOXES if text.startswith(box, at)), "")
            # `\\boxed`: the text is escaped once too often
            after = at + 1 + (not text.startswith(BOXES, at + 1))
            end = at + len(box)
            if box and not text[end : end + 1].isalpha():
                near = text[end : end + 100]
                end += len(near) - len(near.lstrip())
                if text[end : end + 1] == "{":
                    begins[end] = at
                else:
                    found += _bare_box(text, at, end, cut)
        elif character == "{":
            opened.append((begins.pop(at, -1), at + 1))
        elif opened:
            begin, start = opened.pop()
            content = text[start:at].strip() if begin >= 0 else ""
            # Of nested boxes, the inner one closes first. It holds the bare value.
            if content and not (found and begin < found[-1][0]):
                if text[begin - 1 : begin] == "\\":
                    content = content.replace("\\\\", "\\")
                found.append((begin, at + 1, content))
    return found


def _begin_of_boxes(text: str) -> int:
    """Where the last boxes begin, MOST_BOXES of them: a text may have very many."""
    at = len(text)
    for _ in range(MOST_BOXES):
        before = max(text.rfind(box, 0, at) for box in BOXES)
        if before < 0:
            break
        at = before
    return at


def _bare_box(text: str, begin: int, at: int, cut: bool) -> list[tuple[int, int, str]]:
    r"""`\boxed 5` and `\boxed\frac12` without braces; none if prose goes on: the \boxed way."""
    words = text[at : at + 100].replace("$", " ").split()
    if not words or text[at] in "}$" or cut and at + len(words[0]) == len(text):
        return []
    word = words[0].rstrip(".,")
    command = word[:1] == "\\" and word[1:2].isalpha()
    if command or any(c in digits for c in word) or len(word) == 1 and word in ascii_uppercase:
        return [(begin, at + len(words[0]), word)]
    return []


# -- marks and words


def _after_mark(text: str, cut: bool) -> str:
    """What the last line that begins with #### says, unless it is a heading of what follows."""
    end = len(text)
    for _ in range(MOST_JOINED):
        at = text.rfind("####", 0, end)
        if at < 0:
            return ""
        line, ended, rest = text[at + 4 : end].partition("\n")
        if cut and not ended and end == len(text):
            line = line.rpartition(" ")[0]  # the last word may be half a number
        content = line.strip(" \t\r:*#").rstrip("!")
        label, colon, value = content.rpartition(":")
        if colon and label.replace(" ", "").replace("*", "").isalpha():
            content = value.strip(" *")
        last_line = end == len(text) and not rest.strip()
        if content and (last_line or _is_value(content)):
            return content
        end = at
    return ""


def _is_value(text: str) -> bool:
    """Whether a text is mathematics, and not words."""
    return _is_readable(text, words=False)


def _is_readable(text: str, words: bool = True) -> bool:
    """Whether a text is mathematics or, if `words`, words alone."""
    if _plain_integer(text) is not None:
        return True
    from grader.verdict import read  # only now: see _verdict
    tree = read(text)[0] if len(text) <= LONGEST_ANSWER else None
    return tree is not None and (words or not (tree[0] == "words" or tree[0] == "list" and any(
        item[0] == "words" for item in tree[1])))


def _after_words(text: str) -> str:
    """The first value behind the last "answer is": formulas, or words up to the end of a sentence.
    """
    begin = _place_after_words(text)
    if begin < 0:
        return ""
    rest = text[begin:].lstrip(" \t\r\n:：*_")
    for opening, closing in FORMULAS:
        if rest.startswith(opening) and _formula(rest, opening, closing):
            return _joined_formulas(rest, opening, closing)
    line = rest.partition("\n")[0].replace("**", "").replace("`", "").replace(r"\! ", r"\!")
    for end in (". ", "! ", "? ", "; ", "。", " because ", " since ", "|"):
        line = line.partition(end)[0] or line
    return _first_value(line.strip(" \t\r:*").rstrip(".*!,"))


def _place_after_words(text: str) -> int:
    """The place behind the last words that announce an answer, or -1."""
    lower = text.translate(LOWER)
    line = ("\n" + text).rfind("\nA:")
    best = line + 2 if line >= 0 else -1
    for name, followers in NAMES_OF_ANSWER.items():
        end = len(text)
        for _ in range(MOST_JOINED):
            at = lower.rfind(name, max(best, 0), end)
            if at < 0:
                break
            begin = at + len(name) + lower.startswith("s", at + len(name))
            behind = lower[begin : begin + 40].replace("：", ":")
            blank = len(behind) - len(behind.lstrip(" \t*_"))
            if behind.startswith((" to ", " for ")):  # the answer to the question is
                verb = lower.find(" is", begin, begin + 60)
                if verb >= 0 and not {*"\n.:"} & {*lower[begin:verb]}:
                    begin, blank, behind = verb, 1, lower[verb : verb + 40]
            said = next((word for word in followers if behind.startswith(word, blank)), "")
            heading = lower[lower.rfind("\n", 0, at) + 1 : begin].strip(" *#_>") in HEADINGS
            if said or heading and behind.lstrip(" *#_").startswith("\n"):
                best = max(best, begin + blank + len(said))
                break
            end = at
    return best


def _first_value(line: str) -> str:
    """The first value of a sentence: all of it if it can be read, else what stands before a break,
    else its first number, else the words."""
    if _plain_integer(line) is not None or len(line) > LONGEST_ANSWER:
        return line
    option, _, rest = line.lstrip("(").partition(")")
    if rest and len(option) == 1 and option in ascii_uppercase:
        return option  # B) 12
    parts = sorted({line.partition(mark)[0].strip() for mark in BREAKS}, key=len)
    from grader.verdict import read
    tree = read(line)[0]
    number, bracket, inside = line.partition(" (")
    if bracket and inside.endswith(")") and equivalent(number, inside[:-1]):
        return number  # 18 (10 + 8)
    if tree is not None and (tree[0] == "words" or _is_value(line)):
        # "3/4, or 0.75" says one value twice.
        twice = len(parts[0]) < len(line) and tree[0] == "list" and equivalent(
            parts[0], line[len(parts[0]) :].lstrip(" ,").removeprefix("or "))
        return parts[0] if twice else line
    for part in reversed(parts):
        if _is_value(part):
            return part
    return next(_numerals(_plain_spelling(line)), "") or line


def _formula(rest: str, opening: str, closing: str) -> str:
    """The formula at the beginning of a text, or "": `$18 and $20` are two amounts of money."""
    end = _end_of_formula(rest, closing, len(opening))
    content = rest[len(opening) : max(end, 0)]
    money = opening == "$" and (content[:1] == " ") != (content[-1:] == " ")
    if end < 0 or money or len(content) > LONGEST_ANSWER or content[-1:] in [*"-+(,"]:
        return ""
    return content.strip()


def _end_of_formula(text: str, closing: str, begin: int) -> int:
    r"""The place of the sign that closes a formula, or -1; `\$` closes none."""
    end = text.find(closing, begin)
    for _ in range(MOST_JOINED):
        if end < 0 or closing[0] != "$" or text[end - 1 : end] != "\\":
            return end
        end = text.find(closing, end + 1)
    return -1


def _joined_formulas(rest: str, opening: str, closing: str) -> str:
    """`$1$, $2$ and $3$ are ...`: the formulas at the beginning of a line that are joined.

    `$\\frac12$, or $0.5$` says one value twice.
    """
    formulas: list[str] = []
    sign = ""
    while rest.startswith(opening) and (formula := _formula(rest, opening, closing)):
        if not (sign.endswith("or") and equivalent(formulas[-1], formula)):
            formulas.append(formula)
        end = _end_of_formula(rest, closing, len(opening)) + len(closing)
        rest = rest[end:].partition("\n")[0]
        begin = rest.find(opening)
        sign = rest[: max(begin, 0)].strip()
        if begin < 0 or sign not in (",", "and", ", and", "or", ", or", ";"):
            break
        rest = rest[begin:]
    return ", ".join(formulas)


# -- numbers


def _last_number(text: str) -> str | None:
    """The last number in a text, or the formula that ends with it; None without one.

    An exponent is no number of its own: `12 cm^2` says 12. Only the last lines with a digit count.
    """
    if not text.isascii():
        text = _plain_spelling(text[-LONGEST_ANSWER:])
    closing_formula = _closing_formula(text)
    if closing_formula:
        return closing_formula
    for _ in range(LINES_WITH_DIGITS):
        end = max(text.rfind(digit) for digit in digits) + 1
        if end == 0:
            return None
        formula = _formula_around(text, end)
        if formula:
            return formula
        begin = text.rfind("\n", 0, end) + 1
        found = list(_numerals(text[max(begin, end - NUMERAL_WINDOW) : end + 40]))
        if found:
            return found[-1]
        text = text[:begin]
    return None


def _closing_formula(text: str) -> str:
    """The formula that ends a text, if "is" or a word like it says that it is the value."""
    text = text[-LONGEST_ANSWER:].rstrip(" \n.!*")
    for opening, closing in FORMULAS:
        if text.endswith(closing):
            begin = text.rfind(opening, 0, len(text) - len(closing))
            while opening == "$" and text[begin - 1 : begin] == "\\" and begin > 0:
                begin = text.rfind(opening, 0, begin)
            before = text[:begin].rstrip(" \n*") if begin >= 0 else ""
            said = before.endswith(":") or before.rpartition(" ")[2].lower() in VALUE_FOLLOWS
            if begin >= 0 and (said or "=" in text[begin:]):
                return _side(_bare_formula(text[begin:]))
    return ""


def _formula_around(text: str, at: int) -> str:
    """The right side of the formula that a place stands in, if it can be read."""
    for opening, closing in FORMULAS:
        end = _end_of_formula(text, closing, at)
        begin = text.rfind(opening, max(0, at - NUMERAL_WINDOW), at)
        content = text[begin + len(opening) : end] if 0 <= begin < end < at + NUMERAL_WINDOW else ""
        money = opening == "$" and (content[:1] == " " or content[-1:] in (" ", "-", "+", "("))
        if content and not money and closing not in content.replace(r"\$", ""):
            value = _side(content)
            if value:
                return value
    return ""


def _side(formula: str) -> str:
    """What a formula says about its left side, or "" if it cannot be read: of `a + b = 7`, 7.

    An equation whose right side is zero is itself the answer, as that of a plane.
    """
    formula = formula.strip().rstrip(" \n.,")
    at, depth = len(formula), 0
    for place, character in enumerate(formula):
        depth += (character in "([{") - (character in ")]}")
        if character == "=" and depth == 0 and formula[place - 1 : place] not in [*"<>!"]:
            at = place
    right = formula[at + 1 :].strip()
    for value in (right, formula) if right not in ("", "0") else (formula,):
        if _is_readable(value, words=value.startswith(r"\text{")):
            return value
    return ""


def _numerals(text: str) -> Iterator[str]:
    r"""The numerals of a text with signs, decimals, fractions and powers of ten: `-1,234.5`,
    `5 1/2`, `\frac34`, `1.5 \times 10^3`, `2^5`, `50%`, `3:4`. Of a date or a version, each part is
    one; the exponent of a letter is none.
    """
    at = 0
    while at < len(text):
        end = _end_of_exponent(text, at)
        if end > at:
            at = end
            continue
        end = _end_of_numeral(text, at)
        if end == at:
            at += 1
            continue
        yield _sign(text, at) + text[at:end].rstrip().replace(",", "")
        at = end


def _plain_spelling(text: str) -> str:
    """The text in ASCII and LaTeX, as grader.scanner reads it."""
    if text.isascii():
        return text
    from grader.scanner import plain_spelling  # only now: see _verdict
    return plain_spelling(text)


def _end_of_numeral(text: str, at: int) -> int:
    """The end of the numeral that begins at a place; the place itself if none does."""
    end = _end_of_fraction(text, at) or _end_of_decimal(text, at)
    if end == at:
        return at
    bar = _end_of_decimal(text, end + 1) if text[end : end + 1] in ("/", ":") else end + 1
    date = text[at - 1 : at] == "/" or text[bar : bar + 1] == "/"
    if bar > end + 1 and not date:
        end = bar
    elif text[end : end + 1] == " " and text[at:end].isdigit():  # 5 1/2
        top = _end_of_decimal(text, end + 1)
        bottom = _end_of_decimal(text, top + 1) if text[top : top + 1] == "/" else top + 1
        end = bottom if top > end + 1 and bottom > top + 1 else end
    elif text.startswith(FRACTIONS, end):
        end = _end_of_fraction(text, end) or end
    return _end_of_exponent(text, end) if text[end : end + 1] == "^" else _end_of_power(text, end)


def _end_of_exponent(text: str, at: int) -> int:
    """The end of `^5` or `^{-5}` at a place; the place itself if none stands there."""
    if text[at : at + 1] != "^":
        return at
    begin = at + 1 + text.startswith("{", at + 1)
    end = begin + text.startswith("-", begin)
    while text[end : end + 1] in [*digits]:
        end += 1
    return end + text.startswith("}", end) if end > begin else at


def _end_of_decimal(text: str, at: int) -> int:
    """The end of digits with groups of three and a decimal part."""
    end = at
    while text[end : end + 1] in [*digits]:
        end += 1
    size = end - at
    while 1 <= size <= 3 and text[end : end + 1] == "," and text[end + 1 : end + 4].isdigit() and (
            len(text[end + 1 : end + 4]) == 3 and text[end + 4 : end + 5] not in [*digits]):
        end += 4
    point = end + 1
    if text[end : end + 1] == "." and text[end - 1 : end] != ".":
        while text[point : point + 1] in [*digits]:
            point += 1
    return point if point > end + 1 else end


def _end_of_fraction(text: str, at: int) -> int:
    r"""The end of `\frac{1}{2}` or `\frac12`; 0 for another text."""
    name = next((name for name in FRACTIONS if text.startswith(name, at)), "")
    end = at + len(name)
    for _ in range(2 if name else 0):
        close = text.find("}", end, end + 40) if text[end : end + 1] == "{" else end
        if close < 0 or not any(c in digits for c in text[end : close + 1]):
            return 0
        end = close + 1
    return end if name else 0


def _end_of_power(text: str, at: int) -> int:
    """The end of a numeral with the power of ten or the percent sign behind it."""
    rest = text[at : at + 30].lstrip()
    sign = next((sign for sign in (r"\times", r"\cdot", "x", "*") if rest.startswith(sign)), "")
    power = rest[len(sign) :].lstrip()
    if sign and power.startswith("10^"):
        return _end_of_exponent(text, at + len(text[at : at + 30]) - len(power) + 2)
    percent = next((sign for sign in ("%", r"\%") if text.startswith(sign, at)), "")
    return at + len(percent)


def _sign(text: str, at: int) -> str:
    """The minus before a numeral. It subtracts behind a letter, a digit or a bracket."""
    before = text[max(0, at - 4) : at].rstrip("$\\ ") if text[at - 1 : at] == "$" else text[
        max(0, at - 2) : at]
    if not before.endswith("-"):
        return ""
    subtracts = before[-2:-1].isalnum() or before[-2:-1] in [*")]}"]
    return "" if subtracts else "-"


# ----------------------------------------------------------------------------------------- equality


def equivalent(gold: str, answer: str | None) -> bool:
    """Whether an answer equals the gold answer. None equals nothing. Symmetric, never raises."""
    return _verdict(gold, answer)[0]


def steps_of(gold: str, answer: str) -> int:
    """Steps that `equivalent` takes for this pair, at most grader.verdict.BUDGET."""
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
    # Imports of grader/ stand inside functions: a run on word problems compares only integers, and
    # never needs a parser.
    from grader.verdict import verdict
    return verdict(gold, answer)


def _plain_integer(text: str) -> int | None:
    """The value of `72`, `-5`, `1,072` or `$18.`; None for any text that needs the parser."""
    if len(text) > LONGEST_PLAIN or "\\" in text:
        return None
    written = text.strip()
    if written.endswith("..."):  # 333... has no end
        return None
    written = written.rstrip(".").strip().strip("$")
    first, *groups = written.removeprefix("-").split(",")
    number = "".join([first, *groups])
    grouped = all(len(group) == 3 for group in groups) and len(first) <= 3 and first[:1] != "0"
    if not (number.isascii() and number.isdigit() and first) or groups and not grouped:
        return None
    return -int(number) if written[0] == "-" else int(number)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python answers.py GOLD COMPLETION")
    sys.stdout.reconfigure(errors="backslashreplace")  # for what the terminal cannot show
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
    bare = equivalent(sys.argv[1], sys.argv[2])  # an answer alone, such as \frac{1}{2}
    extracted = sys.argv[2] if bare else extract_answer(sys.argv[2])
    verdict = "equal" if equivalent(sys.argv[1], extracted) else "not equal"
    print(f"{extracted}: {verdict}")
