"""Data sets that need no download: word problems like GSM8K's, LaTeX problems like MATH's, stories.

    python synthetic.py mini-gsm --count 3
    python synthetic.py mini-math --split test --count 500 > test.jsonl
    python synthetic.py mini-gsm --style terse --count 4000 > terse.jsonl

    mini-gsm         chains of two to five calculations, each in one of several wordings
    mini-gsm-plus    the same with operations that the embedded model has never met: percentages,
                     averages, remainders, unit prices, ratios, dozens, hourly rates, differences
    mini-math        seven topics in LaTeX
    mini-stories     plain texts: what happens in a word problem, told without a question

Problem number `index` of a split is a function of (data set, split, seed, index) alone. So the sets
are unlimited, need no memory, and are the same on every machine.

A problem's *key* is its operations and numbers, without names, things and sentences. A hash of the
key puts one tenth of all keys into `test` and the others into `train`. So the two splits have no
key in common, for every seed and difficulty.

The records have the fields of the published files (`question`/`answer`, and
`problem`/`solution`/`answer`), so that one reader reads both.
"""

import json
import math
import operator
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from flags import flag, parse_flags, run_command
from runtime import hash_of

DATASETS = ("mini-gsm", "mini-gsm-plus", "mini-math", "mini-stories")
WORD_PROBLEMS = ("mini-gsm", "mini-gsm-plus")
STYLES = ("steps", "terse", "fine")  # of a word problem's solution
SPLITS = ("train", "test")
MIN_STEPS, MAX_STEPS = 2, 5
# Each problem draws one of the first `difficulty` of these. In mini-gsm it is the largest number of
# the problem; in mini-math it sets the size of powers, roots, fractions and divisors.
LARGEST_NUMBERS = (99, 299, 999, 2999, 9999)
DEFAULT_DIFFICULTY = 3


def problems(dataset: str, split: str, count: int, seed: int = 0,
             difficulty: int = DEFAULT_DIFFICULTY, style: str = "steps") -> list[dict]:
    """The first `count` records of a split; mini-gsm has equal shares of two to five steps."""
    return [problem(dataset, split, index, seed, difficulty, style) for index in range(count)]


def problem(dataset: str, split: str, index: int, seed: int = 0,
            difficulty: int = DEFAULT_DIFFICULTY, style: str = "steps") -> dict:
    """Record `index` of a split: drawn from its own random numbers until its key is in the split.

    `style` is that of a word problem's solution.
    """
    name = f"{dataset}/{split}/{seed}/{index}"
    if dataset in WORD_PROBLEMS:
        return {"id": name, **story(split, index, seed, difficulty, dataset).record(style)}
    if dataset == "mini-stories":
        told = story(split, index, seed, difficulty, dataset)
        return {"id": name, "text": " ".join(told.sentences[:-1])}  # the last one is a question
    rng = random.Random(f"{name}/{difficulty}")
    while True:
        key, record = TOPICS[index % len(TOPICS)](rng, rng.choice(LARGEST_NUMBERS[:difficulty]))
        if split_of(key) == split:
            return {"id": name, **record}


def story(split: str, index: int, seed: int = 0, difficulty: int = DEFAULT_DIFFICULTY,
          dataset: str = "mini-gsm") -> "Story":
    """The word problem of a record, which can also be solved in other styles, and with a slip."""
    rng = random.Random(f"{dataset}/{split}/{seed}/{index}/{difficulty}")
    steps = MIN_STEPS + index % (MAX_STEPS - MIN_STEPS + 1)
    plus = dataset == "mini-gsm-plus"
    while True:
        drawn = draw_story(rng, steps, rng.choice(LARGEST_NUMBERS[:difficulty]), plus)
        if plus and not (PLUS_EVENTS | PLUS_CLOSINGS).keys() & set(drawn.key):
            continue  # nothing in it is new
        if split_of(drawn.key) == split:
            return drawn


def split_of(key: tuple) -> str:
    """`test` for one tenth of all keys, chosen by a hash, else `train`."""
    return "test" if hash_of(repr(key)) % 10 == 0 else "train"


# ----------------------------------------------------------------------------------------- mini-gsm

NAMES = ("Mia", "Ben", "Lena", "Omar", "Ana", "Tom", "Nora", "Ivan", "Sara", "Paul", "Rosa", "Max",
         "Ella", "Hugo")
THINGS = ("shells", "stamps", "cards", "apples", "books", "coins", "beads", "pens", "eggs",
          "stones", "cakes", "toys")
CONTAINERS = ("boxes", "bags", "jars", "baskets")
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
OPENINGS = ("{P} has {start} {things}.", "{P} starts with {start} {things}.",
            "There are {start} {things} at {P}'s home.")


@dataclass(frozen=True)
class Event:
    """Something that happens to an amount of things: sentences for it, and lines that calculate it.

    A line is (text, left, operator, right). An operand is "x", the amount before the event; "y",
    the result of the line before; or the name of a number that `draw(rng, amount, largest)` gives.
    The result of the last line is the new amount.
    """

    sentences: tuple[str, ...]
    lines: tuple[tuple[str, str, str, str], ...]
    draw: Callable[[random.Random, int, int], dict[str, int]]


def _divisor(name: str, most: int) -> Callable:
    """Draws a number of 2..most that divides the amount. If none does it is 2: `add` refuses
    it."""
    return lambda rng, x, top: {
        name: rng.choice([n for n in range(2, most + 1) if x % n == 0] or [2])}


EVENTS = {
    "add": Event(
        ("{P} buys {n} more {things}.",
         "{P} finds {n} more {things}.",
         "Then {Q} gives {P} {n} {things}."),
        (("{P} then has {} {things}.", "x", "+", "n"),),
        lambda rng, x, top: {"n": rng.randint(3, top // 3)}),
    "subtract": Event(
        ("{P} loses {n} {things}.",
         "{P} gives {n} {things} to {Q}.",
         "{P} sells {n} of the {things}."),
        (("{P} has {} {things} left.", "x", "-", "n"),),
        lambda rng, x, top: {"n": rng.randint(2, max(2, x - 1))}),
    "multiply": Event(
        ("A month later {P} has {times} as many {things}.",
         "The number of {things} then grows to {times} as many.",
         "{P} collects {things} until there are {times} as many."),
        (("{P} then has {} {things}.", "x", "*", "k"),),
        lambda rng, x, top: {"k": rng.choice(list(TIMES))}),
    "share": Event(
        ("{P} splits the {things} equally into {n} {boxes} and keeps one of them.",
         "{P} shares the {things} equally among {n} children, and is one of them.",
         "Then {n} friends, one of them {P}, divide the {things} evenly."),
        (("{P} keeps {} {things}.", "x", "/", "n"),),
        _divisor("n", 9)),
    "add boxes": Event(
        ("{P} buys {a} {boxes} with {b} {things} in each.",
         "Then {a} {boxes} of {b} {things} each arrive for {P}.",
         "{Q} brings {P} {a} {boxes}, each with {b} {things}."),
        (("The {boxes} hold {} {things}.", "a", "*", "b"),
         ("{P} then has {} {things}.", "x", "+", "y")),
        lambda rng, x, top: {"a": rng.randint(2, 9), "b": rng.randint(3, max(6, top // 20))}),
    "remove boxes": Event(
        ("{P} fills {a} {boxes} with {b} {things} each and gives them to {Q}.",
         "{P} sells {a} {boxes} with {b} {things} in each.",
         "{Q} takes away {a} {boxes} of {b} {things} each."),
        (("The {boxes} hold {} {things}.", "a", "*", "b"),
         ("{P} has {} {things} left.", "x", "-", "y")),
        lambda rng, x, top: {"a": (a := rng.randint(2, 9)),
                             "b": rng.randint(2, max(2, min(x // a, top // 20)))}),
    "part": Event(
        ("{P} gives {part} of the {things} to {Q}.",
         "{P} sells {part} of the {things}.",
         "Rain ruins {part} of the {things}."),
        (("That takes away {} {things}.", "x", "/", "p"),
         ("{P} has {} {things} left.", "x", "-", "y")),
        _divisor("p", 5)),
    "join more": Event(
        ("{Q} has {n} more {things} than {P}, and they put all of them together.",
         "{Q}, who has {n} more {things} than {P}, gives all of them to {P}.",
         "{P} wins all the {things} of {Q}, who had {n} more than {P}."),
        (("{Q} has {} {things}.", "x", "+", "n"),
         ("Together that makes {} {things}.", "x", "+", "y")),
        lambda rng, x, top: {"n": rng.randint(2, top // 5)}),
    "join times": Event(
        ("{Q} has {times} as many {things} as {P}, and they put all of them together.",
         "{Q}, who has {times} as many {things} as {P}, gives all of them to {P}.",
         "{P} wins all the {things} of {Q}, who had {times} as many as {P}."),
        (("{Q} has {} {things}.", "x", "*", "k"),
         ("Together that makes {} {things}.", "x", "+", "y")),
        lambda rng, x, top: {"k": rng.choice(list(TIMES))}),
}

# The question at the end; two of the three need one more calculation.
CLOSINGS = {
    "amount": Event(
        ("How many {things} does {P} have now?",
         "How many {things} does {P} have in the end?"),
        (),
        lambda rng, x, top: {}),
    "price": Event(
        ("{P} sells all the {things} for ${n} each. How many dollars does {P} get?",
         "Each of the {things} costs ${n}. What are they worth together, in dollars?"),
        (("The money is ${}.", "x", "*", "n"),),
        lambda rng, x, top: {"n": rng.randint(2, 9)}),
    "packing": Event(
        ("{P} packs the {things} into {boxes} of {n}. How many {boxes} does {P} need?",
         "If {n} {things} go into each of the {boxes}, how many {boxes} does {P} fill?"),
        (("That makes {} {boxes}.", "x", "/", "n"),),
        _divisor("n", 9)),
}

# What `mini-gsm-plus` adds. A percentage is calculated as a division by a number of parts.
PERCENTAGES = {50: 2, 25: 4, 20: 5, 10: 10}


def _percentage(rng: random.Random, x: int, top: int) -> dict[str, int]:
    fitting = [c for c, parts in PERCENTAGES.items() if x % parts == 0] or [50]
    return {"c": (c := rng.choice(fitting)), "d": PERCENTAGES[c]}


def _average(rng: random.Random, x: int, top: int) -> dict[str, int]:
    return {"n": 2 * rng.randint(1, max(1, top // 4)) + x % 2, "two": 2}  # the sum is even


def _remainder(rng: random.Random, x: int, top: int) -> dict[str, int]:
    return {"n": (n := rng.randint(3, 12)), "q": x // n}


def _unit_price(rng: random.Random, x: int, top: int) -> dict[str, int]:
    return {"a": (a := rng.randint(2, 9)), "c": a * rng.randint(2, 9)}


PLUS_EVENTS = {
    "percent less": Event(
        ("{P} sells {c} percent of the {things}.",
         "{c} percent of the {things} break.",
         "{P} gives {c} percent of the {things} to {Q}."),
        (("{c} percent of the {things} are {} {things}.", "x", "/", "d"),
         ("{P} has {} {things} left.", "x", "-", "y")),
        _percentage),
    "percent more": Event(
        ("The number of {things} grows by {c} percent.",
         "{P} collects {c} percent more {things}."),
        (("{c} percent of the {things} are {} {things}.", "x", "/", "d"),
         ("{P} then has {} {things}.", "x", "+", "y")),
        _percentage),
    "dozens": Event(
        ("{P} buys {n} dozen {things}.",
         "{Q} brings {P} {n} dozen {things}."),
        (("{n} dozen are {} {things}.", "n", "*", "dozen"),
         ("{P} then has {} {things}.", "x", "+", "y")),
        lambda rng, x, top: {"n": rng.randint(2, max(2, min(9, top // 24))), "dozen": 12}),
    "rate": Event(
        ("{P} makes {n} {things} an hour and works for {h} hours.",
         "For {h} hours {P} finds {n} {things} each hour."),
        (("In {h} hours that makes {} {things}.", "n", "*", "h"),
         ("{P} then has {} {things}.", "x", "+", "y")),
        lambda rng, x, top: {"n": rng.randint(3, max(6, top // 20)), "h": rng.randint(2, 9)}),
    "ratio": Event(
        ("For every {a} {things} of {P}, {Q} has {b}, and they put all of them together.",
         "{P} and {Q} have {things} in the ratio {a} to {b}, and {Q} gives all of them to {P}."),
        (("{a} fit {} times.", "x", "/", "a"),
         ("{Q} has {} {things}.", "y", "*", "b"),
         ("Together that makes {} {things}.", "x", "+", "y")),
        lambda rng, x, top: {**_divisor("a", 9)(rng, x, top), "b": rng.randint(2, 9)}),
}
PLUS_CLOSINGS = {
    "average": Event(
        ("{Q} has {n} {things}. How many {things} do {P} and {Q} have on average?",
         "{Q} has {n} {things}. What is the average number of {things} of the two?"),
        (("Together they have {} {things}.", "x", "+", "n"),
         ("On average that is {} {things}.", "y", "/", "two")),
        _average),
    "remainder": Event(
        ("{P} fills as many {boxes} of {n} {things} as possible. How many {things} are left over?",
         "How many {things} remain if {P} packs them into full {boxes} of {n}?"),
        (("The full {boxes} hold {} {things}.", "n", "*", "q"),
         ("Then {} {things} are left over.", "x", "-", "y")),
        _remainder),
    "unit price": Event(
        ("{a} {things} cost ${c}. At this price, what are all of them worth, in dollars?",
         "{P} sells them all at ${c} for {a} {things}. How many dollars does {P} get?"),
        (("One costs ${}.", "c", "/", "a"),
         ("The money is ${}.", "x", "*", "y")),
        _unit_price),
    "difference": Event(
        ("{Q} has {n} {things}. How many more {things} does {P} have than {Q}?",
         "{Q} has {n} {things}. How many fewer {things} does {Q} have than {P}?"),
        (("The difference is {} {things}.", "x", "-", "n"),),
        lambda rng, x, top: {"n": rng.randint(2, max(2, x - 1))}),
}


class Story:
    """A word problem that grows event by event: its sentences, and the program that solves it."""

    def __init__(self, rng: random.Random, largest: int):
        self.rng, self.largest = rng, largest
        names = rng.sample(NAMES, 2)
        self.words = {"P": names[0], "Q": names[1], "things": rng.choice(THINGS),
                      "boxes": rng.choice(CONTAINERS)}
        self.start = self.amount = rng.randint(6, largest // 2)
        self.sentences = [rng.choice(OPENINGS).format(start=self.start, **self.words)]
        self.steps: list[list[tuple]] = []  # the lines of each event, with numbers for their names
        self.key: tuple = (self.start,)  # then kinds of events, and their numbers

    def add(self, kind: str, event: Event) -> bool:
        """Let the event happen. If a result is not whole or not in 1..largest, return False."""
        numbers = event.draw(self.rng, self.amount, self.largest)
        spoken = {"times": TIMES.get(numbers.get("k")), "part": PARTS.get(numbers.get("p"))}
        words = {**self.words, **numbers, **spoken}
        lines = [(text.format("{}", **words), numbers.get(left, left), sign,
                  numbers.get(right, right)) for text, left, sign, right in event.lines]
        results = list(calculate(self.amount, [lines]))
        if any(not 1 <= value <= self.largest or (sign == "/" and left % right)
               for _, left, sign, right, value in results):
            return False
        self.sentences.append(self.rng.choice(event.sentences).format(**words))
        self.key += (kind, *numbers.values())
        if lines:
            self.steps.append(lines)
            self.amount = results[-1][-1]
        return True

    def solution(self, slip: tuple[int, int] | None = None, style: str = "steps") -> str:
        """The worked solution: `48/2 = <<48/2=24>>24` in each line, `#### answer` in the last.

        `slip` is that of `calculate`. Styles: `steps`; `terse`, the equations alone; `fine`, each
        sentence of the story before what it means.
        """
        told = {sum(map(len, self.steps[:n])): sentence
                for n, sentence in enumerate(self.sentences[1:-1])}  # the last one is a question
        lines, value = [], self.start
        for number, step in enumerate(calculate(self.start, self.steps, slip)):
            text, left, sign, right, value = step
            if style == "fine" and number in told:
                lines.append(told[number])
            shown = equation(left, sign, right, value)
            lines.append(shown if style == "terse" else text.format(shown))
        return "\n".join([*lines, f"#### {value}"])

    def corrected(self, line: int, error: int) -> str:
        """The worked solution with a slip in a line, which the next line notices and mends."""
        right, wrong = self.solution().split("\n"), self.solution((line, error)).split("\n")
        *_, (_, left, sign, other, value) = islice(calculate(self.start, self.steps), line + 1)
        mend = f"That is wrong: {equation(left, sign, other, value)}."
        return "\n".join([*right[:line], wrong[line], mend, *right[line + 1 :]])

    def record(self, style: str = "steps") -> dict:
        level = sum(len(lines) for lines in self.steps)
        return {"question": " ".join(self.sentences), "answer": self.solution(style=style),
                "level": level}


def calculate(start: int, steps: list[list[tuple]],
              slip: tuple[int, int] | None = None) -> Iterator[tuple]:
    """Run the program of a story: (text, left, operator, right, value) for each line.

    With `slip` (line, error), the value of that line is wrong by the error, and the next lines go
    on from the wrong value.
    """
    amount, number = start, 0
    for lines in steps:
        value = amount
        for text, left, sign, right in lines:
            known = {"x": amount, "y": value}
            left, right = known.get(left, left), known.get(right, right)
            value = OPERATIONS[sign](left, right)
            if slip is not None and slip[0] == number:
                value += slip[1]
            yield text, left, sign, right, value
            number += 1
        amount = value


def equation(left: int, sign: str, right: int, value: int) -> str:
    """A calculation with its mark: `48/2 = <<48/2=24>>24`."""
    term = f"{left}{sign}{right}"
    return f"{term} = <<{term}={value}>>{value}"


def draw_story(rng: random.Random, steps: int, largest: int, plus: bool = False) -> Story:
    """A story of `steps` calculations, all of whose results are whole and in 1..largest."""
    events = EVENTS | PLUS_EVENTS if plus else EVENTS
    closings = CLOSINGS | PLUS_CLOSINGS if plus else CLOSINGS
    while True:  # begin a new story if no event fits in a few tries
        story = Story(rng, largest)
        closing = rng.choice(list(closings)) if steps > MIN_STEPS else "amount"
        left = steps - len(closings[closing].lines)
        for _ in range(4 * steps):
            kind = rng.choice([kind for kind, event in events.items() if len(event.lines) <= left])
            if story.add(kind, events[kind]):
                left -= len(events[kind].lines)
            if left == 0:
                break
        if left == 0 and story.add(closing, closings[closing]):
            return story


# ---------------------------------------------------------------------------------------- mini-math


def _record(topic: str, numbers: tuple, question: str, lines: list[str],
            answer: str) -> tuple[tuple, dict]:
    """The key and the MATH-style record of one problem."""
    solution = "\n".join([*lines, f"The answer is $\\boxed{{{answer}}}$."])
    record = {"problem": question, "solution": solution, "answer": answer, "subject": topic}
    return (topic, *numbers), record


def latex_fraction(value: Fraction) -> str:
    """`\\frac{3}{4}`, `-\\frac{3}{4}`, or `3` for a whole value."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _fractions(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    top = min(15, largest // 8)
    b, d = rng.randint(2, top), rng.randint(2, top)
    a, c = rng.randint(1, top), rng.randint(1, top)
    sign = rng.choice("+-*")
    first, second = f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{c}}}{{{d}}}"
    if sign == "*":
        shown, numerator, denominator = f"{first} \\cdot {second}", a * c, b * d
        lines = [f"${a} \\cdot {c} = {numerator}$ and ${b} \\cdot {d} = {denominator}$."]
    else:
        shown, denominator = f"{first} {sign} {second}", math.lcm(b, d)
        left, right = a * denominator // b, c * denominator // d
        numerator = left + right if sign == "+" else left - right
        lines = [f"${shown} = \\frac{{{left}}}{{{denominator}}}"
                 f" {sign} \\frac{{{right}}}{{{denominator}}}$.",
                 f"${left} {sign} {right} = {numerator}$."]
    answer = latex_fraction(Fraction(numerator, denominator))
    lines.append(f"$\\frac{{{numerator}}}{{{denominator}}} = {answer}$,"
                 f" divided by {math.gcd(numerator, denominator)}.")
    question = rng.choice(("Compute ${}$.", "What is ${}$? Give a fraction in lowest terms."))
    return _record("fractions", (sign, a, b, c, d), question.format(shown), lines, answer)


def _powers(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    small = [(base, power) for power in (2, 3, 4) for base in range(2, 31)
             if base**power <= largest]
    (a, m), (b, n) = rng.choice(small), rng.choice(small)
    sign = rng.choice("+-")
    value = a**m + b**n if sign == "+" else a**m - b**n
    lines = [f"${a}^{m} = {a**m}$ and ${b}^{n} = {b**n}$.", f"${a**m} {sign} {b**n} = {value}$."]
    question = rng.choice(("Compute ${}$.", "Evaluate ${}$.")).format(f"{a}^{m} {sign} {b}^{n}")
    return _record("powers", (sign, a, m, b, n), question, lines, str(value))


def _roots(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    b = rng.choice((2, 3, 5, 6, 7, 10))
    a = rng.randint(2, max(2, math.isqrt(largest // b)))
    p, q = rng.randint(1, 9), rng.randint(1, 9)
    front = "" if p == 1 else str(p)
    other = "" if q == 1 else str(q)
    lines = [f"${a * a * b} = {a * a} \\cdot {b}$, so $\\sqrt{{{a * a * b}}} = {a}\\sqrt{{{b}}}$."]
    lines.append(f"${p} \\cdot {a} = {p * a}$ and ${p * a} + {q} = {p * a + q}$.")
    question = rng.choice(("Simplify ${}$.", "Write ${}$ in simplest form."))
    question = question.format(f"{front}\\sqrt{{{a * a * b}}} + {other}\\sqrt{{{b}}}")
    return _record("roots", (p, a, b, q), question, lines, f"{p * a + q}\\sqrt{{{b}}}")


def _plus(number: int) -> str:
    """`+ 3` or `- 3`."""
    return f"{'-' if number < 0 else '+'} {abs(number)}"


def _times_x(factor: int) -> str:
    """`x`, `-x` or `3x`."""
    return {1: "x", -1: "-x"}.get(factor, f"{factor}x")


def _linear(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    a, c = rng.sample(range(1, 16), 2)
    x = rng.choice([n for n in range(-20, 21) if n])
    b = rng.choice([n for n in range(-60, 61) if n])
    d = (a - c) * x + b
    if d == 0:
        return _linear(rng, largest)
    lines = [f"${a} - {c} = {a - c}$ and ${d} {_plus(-b)} = {d - b}$."]
    lines.append(f"So ${_times_x(a - c)} = {d - b}$ and $x = {x}$.")
    question = rng.choice(("Solve ${}$ for $x$.", "Find $x$ if ${}$."))
    question = question.format(f"{_times_x(a)} {_plus(b)} = {_times_x(c)} {_plus(d)}")
    return _record("linear equations", (a, b, c, d), question, lines, str(x))


def _gcd(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    common = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15))
    a, b = sorted(rng.sample(range(2, max(5, largest // 3 // common)), 2), reverse=True)
    a, b = a * common, b * common
    lines, high, low = [], a, b
    while low:
        lines.append(f"${high} = {high // low} \\cdot {low} + {high % low}$.")
        high, low = low, high % low
    question = rng.choice(("What is $\\gcd({a}, {b})$?",
                           "Find the greatest common divisor of ${a}$ and ${b}$."))
    return _record("gcd", (a, b), question.format(a=a, b=b), lines, str(high))


def _modulus(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    m = rng.randint(3, 12)
    top = max(m + 2, largest // 5)
    a, b = rng.randint(m + 1, top), rng.randint(m + 1, top)
    lines = [f"${a} = {a // m} \\cdot {m} + {a % m}$ and ${b} = {b // m} \\cdot {m} + {b % m}$."]
    product = (a % m) * (b % m)
    lines.append(f"${a % m} \\cdot {b % m} = {product}"
                 f" = {product // m} \\cdot {m} + {product % m}$.")
    question = rng.choice(("What is ${a} \\cdot {b} \\bmod {m}$?",
                           "Find the remainder when ${a} \\cdot {b}$ is divided by ${m}$."))
    return _record("modulus", (a, b, m), question.format(a=a, b=b, m=m), lines, str(product % m))


def _intervals(rng: random.Random, largest: int) -> tuple[tuple, dict]:
    a, b = rng.choice([n for n in range(-9, 10) if n]), rng.choice([n for n in range(-40, 41) if n])
    bound = rng.randint(-20, 20)
    sign = rng.choice(("<", "\\le", ">", "\\ge"))
    right = a * bound + b
    flipped = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le"}[sign] if a < 0 else sign
    open_bracket, close_bracket = ("(", ")") if flipped in "<>" else ("[", "]")
    below = flipped in ("<", "\\le")
    answer = f"(-\\infty, {bound}{close_bracket}" if below else f"{open_bracket}{bound}, \\infty)"
    lines = [f"${right} {_plus(-b)} = {right - b}$, so ${_times_x(a)} {sign} {right - b}$."]
    lines.append(f"Dividing by ${a}$ gives $x {flipped} {bound}$.")
    question = rng.choice(("Solve ${}$. Give an interval.",
                           "For which $x$ is ${}$? Write the answer as an interval."))
    question = question.format(f"{_times_x(a)} {_plus(b)} {sign} {right}")
    return _record("intervals", (a, b, sign, right), question, lines, answer)


TOPICS = (_fractions, _powers, _roots, _linear, _gcd, _modulus, _intervals)


@dataclass
class Flags:
    """The flags of `python synthetic.py`."""

    dataset: str = flag(MISSING, "the data set", positional=True, choices=DATASETS)
    split: str = flag("train", "its part", choices=SPLITS)
    count: int = flag(5, "number of problems", least=0)
    seed: int = flag(0, "another seed gives other problems", least=0)
    difficulty: int = flag(DEFAULT_DIFFICULTY, f"how many of the sizes {LARGEST_NUMBERS} of "
                           "numbers occur", least=1, most=len(LARGEST_NUMBERS))
    style: str = flag("steps", "of a word problem's solution: its steps, the equations alone, or "
                      "each sentence before what it means", choices=STYLES)
    debug: bool = flag(False, "show the traceback of an error")


def main(argv: list[str]) -> None:
    """`python synthetic.py SET`: print some of its problems as JSON lines."""
    flags = parse_flags(Flags, argv, __doc__)
    for record in problems(flags.dataset, flags.split, flags.count, flags.seed, flags.difficulty,
                           flags.style):
        print(json.dumps(record, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
