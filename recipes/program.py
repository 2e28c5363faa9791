"""Finds the program of a worked solution: where each number of its marks `<<48/2=24>>` comes from.

    python -m recipes.program            # the program of an embedded problem

    question   48 clips, half as many in May, together?      numbers    48      constants  1/2, 2, 1
    solution   48/2 = <<48/2=24>>24                          step 0     number 48 / constant 2
               48+24 = <<48+24=72>>72                        step 1     number 48 + result 0

A number of a mark comes from the question, from an earlier mark, or is a constant that no change of
the story moves (half, a week, 3/8 ...). Only its value says which. If a value has two possible
sources, they are tied: both must stay equal, so that it never matters which was meant. If that is
impossible, or any number stays unexplained, `Unfit` says why.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import synthetic
from answers import equivalent
from data import Problem, parse_record
from recipes.arithmetic import Mark, Numeral, Tree, check, marks, numerals, tree, tree_value

SMALL = 12  # numbers up to here are often not given in digits
LONGEST_TEXT = 5000  # characters of a question or a solution: published ones stay below 2,000
CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen").split()
# A value in words is a constant: the cardinals (they are not changed), parts and multiples, units.
SAID = {
    2: "half halve halved twice double doubled pair couple both weekend",
    3: "thrice triple tripled third yard feet", 4: "quarter fourth square",
    5: "fifth nickel weekday", 6: "sixth", 7: "seventh week weekly day daily", 8: "eighth",
    9: "ninth", 10: "tenth dime decade",
    12: "dozen month monthly year yearly annual inch inches foot feet", 16: "pound ounce",
    20: "twenty", 24: "hour day", 25: "quarter", 30: "thirty", 40: "forty", 50: "fifty",
    70: "seventy", 80: "eighty", 90: "ninety", 52: "week weekly year",
    60: "sixty second minute hour", 365: "day year",
    100: "hundred percent cent penny dollar century meter centimeter cm",
    1000: "thousand meter kilometer km gram kilogram kg liter milliliter",
    Fraction(1, 2): "half",
    Fraction(1, 4): "quarter",
    Fraction(1, 100): "percent",
}  # fmt: skip
CONSTANTS: dict[str, set[Fraction]] = {
    word: {
        Fraction(value)
        for value, said in (*SAID.items(), *enumerate(CARDINALS)) if word in said.split()
    }
    for word in " ".join((*SAID.values(), *CARDINALS)).split()
}
FACTS = {("7", "day"), ("24", "hour"), ("60", "minute"), ("60", "second"), ("12", "month"),
         ("52", "week")}
ORDINAL_SUFFIXES = ("st", "nd", "rd", "th", "s")  # 1st, the 90s
FOLLOWING = ("am", "pm", "o", "hundred", "thousand", "million")  # 5 pm, 5 o'clock, 2 million

# Where a value comes from: ("number", value in the question), ("result", number of the mark),
# ("constant", value), or ("percent", value, base, sign) for base + sign*p/100 of a percentage p.
ValueSource = tuple


class Unfit(ValueError):
    """A rule cannot be applied to this problem. The text is the reason, one of a few, so that it
    can be counted."""


@dataclass(frozen=True)
class Calculation:
    """One mark as a step of the program: its tree, and the sources of its operands."""

    shape: Tree
    operands: tuple[ValueSource, ...]


@dataclass(frozen=True)
class Program:
    """A problem with an explanation for every number."""

    problem: Problem
    numbers: tuple[Fraction, ...]  # values of the question that may change
    steps: tuple[Calculation, ...]
    # Sources that have one value and must stay equal.
    ties: tuple[tuple[ValueSource, ...], ...]
    constants: frozenset[Fraction]  # values that stay, and that no changed number may take
    # The numbers of the question, and those of the solution.
    places: tuple[tuple[tuple[Numeral, ValueSource], ...], ...]

    def run(self, numbers: dict[Fraction, Fraction]) -> tuple[list[Fraction], list[Fraction]]:
        """The results of all steps, and the value of every operation in them.

        numbers: new values for numbers of the question, by their old ones. Raises ValueError for a
        division by zero.
        """
        results: list[Fraction] = []
        trail: list[Fraction] = []
        for step in self.steps:
            operands = [value_of(source, numbers, results) for source in step.operands]
            results.append(tree_value(step.shape, operands, trail))
        return results, trail


def value_of(source: ValueSource, numbers: dict[Fraction, Fraction],
             results: list[Fraction]) -> Fraction:
    """The value of a source, with new values for numbers of the question (by their old ones) and
    the results so far."""
    kind, what, *rest = source
    if kind == "result":
        return results[what]
    value = what if kind == "constant" else numbers.get(what, what)
    return value if not rest else rest[0] + rest[1] * value / 100


# ----------------------------------------------------------------------------- what a question says


def singular_words(text: str) -> list[str]:
    """Words in small letters; units and parts without the s of a plural."""
    text = text.lower().replace("%", " percent ")
    found = "".join(char if char.isalpha() else " " for char in text).split()
    return [word[:-1] if word.endswith("s") and word[:-1] in CONSTANTS else word for word in found]


def is_percent(text: str, n: Numeral) -> bool:
    """Whether `%` or the word percent follows a number."""
    return singular_words(text[n.end : n.end + 12])[:1] == ["percent"]


def article(text: str, n: Numeral) -> str:
    """`a` or `an` if it stands before a number, else "" (or another short word)."""
    return (singular_words(text[max(0, n.start - 4) : n.start]) or [""])[-1]


def is_fixed(text: str, n: Numeral) -> bool:
    """Whether a number of the question keeps its value: 0, 1, a fraction, a time, a year, `5th`,
    `an 8`, 7 days."""
    before, after = text[max(0, n.start - 2) : n.start], text[n.end : n.end + 20]
    nearest, following = after[1:].split(" ")[0], (singular_words(after) or [""])[0]
    return (
        n.value in (0, 1)
        or before[-1:].isalpha()
        or (before[-1:] in ("/", ":") and before[:1].isdigit())
        or (after[:1] in ("/", ":") and after[1:2].isdigit())  # 3/8, 5:30
        or (after[:1] in (" ", "-") and nearest[:1].isdigit() and "/" in nearest)  # 2 1/2
        or (after[:1].isalpha() and following in ORDINAL_SUFFIXES)
        or following in FOLLOWING
        or after.lstrip().startswith(("a.m", "p.m"))
        or (len(n.text) == 4 and 1900 <= n.value < 2100 and before[-1:] != "$")
        or (n.text, following) in FACTS
        or article(text, n) == "an"
    )


def has_step_without_mark(solution: str) -> bool:
    """Whether `4 + 5 = 9` stands somewhere without a mark: its value could be confused with an
    equal one."""
    for mark in reversed(marks(solution)):
        solution = solution[: mark.start] + "@" + solution[mark.end :]
    for line in solution.split("\n"):
        parts = line.split("=")
        for left, right in zip(parts, parts[1:]):
            found = numerals(left := left.rpartition("@")[2])
            calculates = any(set(left[a.end : b.start]) & set("+-*/x×–−÷")
                             for a, b in zip(found, found[1:]))
            if calculates and not right.lstrip(" $").startswith("@"):
                return True
    return False


# -------------------------------------------------------------------------------------- the program


def program(problem: Problem) -> Program:
    """The program of a worked solution, and where its numbers stand. Raises Unfit with the
    reason."""
    if problem.messages or not problem.solution:
        raise Unfit("no worked solution")
    if max(len(problem.question), len(problem.solution)) > LONGEST_TEXT:
        raise Unfit("too long")
    try:
        return _Linker(problem).link()
    except Unfit:
        raise
    except ValueError as error:  # of arithmetic.py: a number is too long, or no short decimal
        raise Unfit(str(error)) from None


class _Linker:
    """Finds the source of every number of a problem."""

    def __init__(self, problem: Problem):
        self.problem, self.solution = problem, problem.solution
        self.asked = numerals(problem.question)
        fixed = {n.value for n in self.asked if is_fixed(problem.question, n)}
        self.numbers = {n.value for n in self.asked} - fixed
        self.percents = self.numbers & {n.value for n in self.asked
                                        if is_percent(problem.question, n)}
        question, solution = singular_words(problem.question), singular_words(self.solution)
        # A cardinal that only the solution has may be a result in words. A unit there counts.
        said = {*question, *(word for word in solution if word not in CARDINALS)} & CONSTANTS.keys()
        self.constants = fixed.union({Fraction(1)}, *(CONSTANTS[word] for word in said))
        cardinals = {*question, *solution} & {*CARDINALS[2:]}
        self.cardinals = set().union(*(CONSTANTS[word] for word in cardinals))
        self.marks = marks(self.solution)
        self.values: list[Fraction] = []  # of the marks that have been read
        self.operands: list[list[Fraction]] = []  # of these marks
        self.steps: list[Calculation] = []
        self.ties: set[tuple[ValueSource, ...]] = set()
        self.used: set[ValueSource] = set()  # what may be the source of an operand

    def link(self) -> Program:
        """The program. Raises Unfit with the reason, or ValueError of arithmetic.py."""
        if not self.marks:
            raise Unfit("no marks")
        if has_step_without_mark(self.solution):
            raise Unfit("a step has no mark")
        places, outside = self._read_marks()
        self._check_end(outside)
        places += [(n, self._in_prose(n)) for n in outside]
        for value in self.cardinals:  # "five apples" and "5 apples" may be the same
            self._source({("constant", value)} | self._known(value))
        needed = {source[1] for source in self.used if source[0] in ("number", "percent")}
        if not self.numbers <= needed:
            raise Unfit("a number of the question is never used")
        pinned = self._pinned()
        asked = ((n, ("number" if n.value in self.numbers else "constant", n.value))
                 for n in self.asked)
        return Program(self.problem, tuple(sorted(self.numbers - pinned)), tuple(self.steps),
                       tuple(sorted(self.ties)), frozenset(self.constants | pinned),
                       (tuple(asked), tuple(sorted(places, key=lambda place: place[0].start))))

    def _read_marks(self) -> tuple[list[tuple[Numeral, ValueSource]], list[Numeral]]:
        """Make a step of each mark. Returns the numbers in marks with their sources, and the
        numbers outside."""
        places, outside = [], numerals(self.solution)
        for index, mark in enumerate(self.marks):
            own = [n for n in outside if mark.start <= n.start < mark.end]
            outside = [n for n in outside if not mark.start <= n.start < mark.end]
            self._add_step(mark, own)
            places += zip(own, (*self.steps[index].operands, ("result", index)), strict=True)
        return places, outside

    def _pinned(self) -> set[Fraction]:
        """Numbers of the question that must keep their values."""
        tied = {source[1] for tie in self.ties if tie[0][0] == "constant"
                for source in tie if source[0] == "number"}
        # A small number that is given once and read twice may be two numbers, of which one is not
        # given: "two parents".
        given = Counter(n.value for n in self.asked)
        read = Counter(source for step in self.steps for source in step.operands)
        return tied | {n for n in self.numbers
                       if n <= SMALL and given[n] == 1 and read["number", n] > 1}

    def _add_step(self, mark: Mark, own: list[Numeral]) -> None:
        """Append the step of a mark. own: the numbers in the mark."""
        try:
            shape, operands = tree(mark.left)
            value = tree_value(shape, operands, [])
        except ValueError:
            raise Unfit("a mark cannot be read") from None
        if [n.value for n in own[:-1]] != operands or len(own) != len(operands) + 1:
            raise Unfit("a mark cannot be read")
        if value != own[-1].value:
            raise Unfit("a mark is rounded" if check(mark) else "a mark is wrong")
        known = [self._known(operand) for operand in operands]
        self.used = self.used.union(*known)
        self.steps.append(Calculation(shape, tuple(map(self._source, known))))
        self.values.append(value)
        self.operands.append(operands)

    def _known(self, value: Fraction, results: int | None = None) -> set[ValueSource]:
        """All sources of a value: constants, the question, its percentages, and the results so far
        (or the first ones, `results` of them)."""
        found = {("constant", value)} if value in self.constants else set()
        found |= {("number", value)} if value in self.numbers else set()
        found |= {("result", k) for k, result in enumerate(self.values[:results])
                  if result == value}
        return found | {("percent", p, base, sign) for p in self.percents
                        for base, sign in ((0, 1), (1, -1), (1, 1))
                        if base + sign * p / 100 == value}

    def _source(self, candidates: set[ValueSource]) -> ValueSource:
        """One of the candidates, a result before all others. Several candidates become a tie."""
        if not candidates:
            raise Unfit("a number of the solution comes from nowhere")
        if len(candidates) > 1:
            self.ties.add(tuple(sorted(candidates)))
        return max(candidates)

    def _check_end(self, outside: list[Numeral]) -> None:
        """Raise Unfit unless the last mark gives the answer, and the last line repeats it."""
        end = self.solution.rfind("####")
        last = [n.value for n in outside if n.start > end]
        repeated = end >= self.marks[-1].end and last == self.values[-1:]
        if not repeated or not equivalent(self.problem.answer, str(last[0])):
            raise Unfit("the last mark is not the answer")

    def _in_prose(self, n: Numeral) -> ValueSource:
        """The source of a number outside the marks: by its place if that is clear, else by its
        value."""
        start, end = self.solution.rfind("\n", 0, n.start) + 1, self.solution.find("\n", n.end)
        here = [k for k, mark in enumerate(self.marks)
                if start <= mark.start and (mark.start < end or end < 0)]
        before = [k for k in here if self.marks[k].end <= n.start]
        if before:
            start = self.marks[before[-1]].end
            if self.values[before[-1]] == n.value and not self.solution[start:n.start].strip(" $"):
                return "result", before[-1]  # <<48/2=24>>24
        if n.start > self.solution.rfind("####"):
            return "result", len(self.steps) - 1
        after = [k for k in here if self.marks[k].start >= n.end]
        if after:  # 48/2 = <<48/2=24>>, also with words between
            operands = self.operands[after[0]]
            copies = numerals(self.solution[start : self.marks[after[0]].start])[-len(operands) :]
            places = [start + copy.start for copy in copies]
            if n.start in places and [copy.value for copy in copies] == operands:
                return self.steps[after[0]].operands[places.index(n.start)]
        near = {("result", k) for k in here if self.values[k] == n.value}
        near |= {source for k in here
                 for source, value in zip(self.steps[k].operands, self.operands[k], strict=True)
                 if value == n.value}
        results = sum(mark.start < n.start for mark in self.marks)
        return self._source(near or self._known(n.value, results))


if __name__ == "__main__":
    if len(sys.argv) > 2 or not all(argument.isdecimal() for argument in sys.argv[1:]):
        sys.exit("usage: python -m recipes.program [NUMBER OF AN EMBEDDED PROBLEM]")
    number = int((*sys.argv[1:], "1")[0])
    record = synthetic.problem("mini-gsm", "train", number)
    shown = program(parse_record(record, f"mini-gsm/train/0/{number}"))
    print(f"{shown.problem.question}\n{shown.problem.solution}")
    for number, step in enumerate(shown.steps):
        sources = ", ".join(f"{kind} {value}" for kind, value, *_ in step.operands)
        print(f"step {number}     {step.shape}: {sources}")
