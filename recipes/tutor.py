"""Makes solutions that go wrong and are corrected, by rule: a step too early and back, or a tutor
in a weak attempt.

    python -m recipes.tutor              # both, on an embedded problem

    retro    a later step is written too early, then `[back]`, then the solution as it is
    tutor    a weak attempt up to its first wrong step, a sentence that corrects it, and the gold
             steps that are not yet done

Both need no model: a solution in GSM8K's form has its steps as marks `<<48/2=24>>`, so the first
wrong step of an attempt can be found exactly. A step is wrong

    1. if its arithmetic is wrong; or
    2. if the attempt has a wrong answer, and neither the step's equation nor its value is among
       those of the gold solution, in any order.

The limit: a right step of quite another plan counts as wrong if the attempt fails later. No
arithmetic can see this.

Retrospective enhancement and tutorship amplification: Chen et al. 2025 (arXiv 2501.14002). There a
model writes the early step and is the tutor; `[back]` is theirs.
"""

import random
import sys
from dataclasses import dataclass
from fractions import Fraction

import synthetic
from answers import equivalent, extract_answer
from data import Problem, parse_record
from recipes.arithmetic import Mark, Tree, check, compute, marks, numerals, tree, tree_value, write
from recipes.perturb import child
from recipes.program import Unfit

# Characters and lines of an attempt: a longer one has lost its way.
LONGEST_ATTEMPT, MOST_LINES = 4000, 40


@dataclass(frozen=True)
class Verdict:
    """What is known of an attempt: its first wrong line, or None; why; and the mark that is wrong
    there.
    """

    line: int | None
    # "wrong arithmetic", "not in the plan"; without a line: "right", "no marks", "no wrong step
    # found"
    reason: str
    mark: Mark | None = None


def steps(solution: str) -> list[str]:
    """The lines before the last one that begins with `####`; all lines if there is none."""
    lines = solution.split("\n")
    ends = [number for number, line in enumerate(lines) if line.lstrip().startswith("####")]
    return lines[: ends[-1]] if ends else lines


# -------------------------------------------------------------------------------------------- retro


def retro(problem: Problem, rng: random.Random) -> Problem:
    """The solution with a step written before one whose result it uses, and taken back.

    Raises Unfit (the reason).
    """
    lines = steps(problem.solution)
    if problem.messages:
        raise Unfit("a chat")
    if sum(bool(marks(line)) for line in lines) < 2:
        raise Unfit("fewer than two steps with marks")
    if not all(check(mark) for mark in marks(problem.solution)):
        raise Unfit("a mark is wrong")
    known = {numeral.value for numeral in numerals(problem.question)}
    pairs = ((at, early) for early in range(len(lines)) for at in range(early))
    choices = [(at, early) for at, early in pairs
               if _needs(lines[early], lines[at], known.union(*map(_values, lines[:at])))]
    if not choices:
        raise Unfit("no step needs an earlier one")
    at, early = rng.choice(choices)
    end = problem.solution.split("\n")[len(lines) :]
    detour = [*lines[:at], lines[early], "[back]", *lines[at:], *end]
    return child(problem, "retro", problem.question, "\n".join(detour))


def _needs(line: str, earlier: str, known: set[Fraction]) -> bool:
    """Whether a mark of a line has an operand that only the earlier line gives: not in `known`."""
    given = _values(earlier) - known
    return any(given.intersection(_operands(mark)) for mark in marks(line))


def _values(line: str) -> set[Fraction | None]:
    return {_value(mark) for mark in marks(line)}


def _value(mark: Mark) -> Fraction | None:
    try:
        return compute(mark.value)
    except ValueError:
        return None


# ----------------------------------------------------------------------------- the first wrong step


def judge(attempt: str, problem: Problem) -> Verdict:
    """The first wrong line of an attempt: a mark (or the number after it) that is false, or is no
    gold step.
    """
    is_right = equivalent(problem.answer, extract_answer(attempt))
    known, seen = Plan(problem.solution), False
    for number, line in enumerate(steps(attempt)):
        for mark in marks(line):
            seen = True
            if not check(mark) or not _is_repeated(line, mark):
                return Verdict(number, "wrong arithmetic", mark)
            if not is_right and known.marks and not known.explains(mark):
                return Verdict(number, "not in the plan", mark)
    return Verdict(None, "right" if is_right else "no wrong step found" if seen else "no marks")


def _is_repeated(line: str, mark: Mark) -> bool:
    """Whether the number directly after `>>`, if there is one, is the mark's value."""
    try:
        first = next(iter(numerals(line[mark.end : mark.end + 40].lstrip(" $"))), None)
    except ValueError:
        return False
    return first is None or first.start > 0 or "/" in mark.value or first.value == _value(mark)


class Plan:
    """The steps of the gold solution, and which of them an attempt has done."""

    def __init__(self, solution: str):
        self.lines = steps(solution)
        self.marks = [(number, mark) for number, line in enumerate(self.lines)
                      for mark in marks(line)]
        self.done = [False] * len(self.marks)
        self.keys = [key_of(mark) for _, mark in self.marks]
        self.values = [_value(mark) for _, mark in self.marks]
        self.parts = {value for _, mark in self.marks for value in _parts(mark)}

    def explains(self, mark: Mark) -> bool:
        """Whether a right mark is a gold step, has the value of one, or is a part of one: 5+4 of
        5+4+3.
        """
        value = _value(mark)
        return key_of(mark) in self.keys or value in self.values or value in self.parts

    def mark_done(self, mark: Mark) -> None:
        """Mark the gold step of this equation as done, or else the one of this value. The last step
        is marked by its equation alone: a value that is equal by chance would leave nothing to say.
        """
        for wanted, kinds in ((key_of(mark), self.keys), (_value(mark), self.values[:-1])):
            for k, kind in enumerate(kinds):
                if not self.done[k] and kind == wanted:
                    self.done[k] = True
                    return

    def rest(self) -> list[str]:
        """The gold lines with a step that is still to do.

        A step is not, if all steps that use its result are done.
        """
        done = self.done.copy()
        for k in reversed(range(len(done))):
            users = [j for j in range(k + 1, len(done))
                     if self.values[k] in _operands(self.marks[j][1])]
            done[k] = done[k] or (bool(users) and all(done[j] for j in users))
        wanted = {number for (number, _), is_done in zip(self.marks, done, strict=True)
                  if not is_done}
        first = min(wanted, default=len(self.lines))
        with_marks = {number for number, _ in self.marks}
        return [line for number, line in enumerate(self.lines)
                if number in wanted or (number > first and number not in with_marks)]


def key_of(mark: Mark) -> tuple | None:
    """An equation without the order of its terms and factors: 3+4 and 4+3 have one key.

    None if it cannot be read.
    """
    try:
        shape, operands = tree(mark.left)
    except ValueError:
        return None
    return _tree_key(shape, operands)


def _tree_key(shape: Tree, operands: list[Fraction]) -> tuple:
    if not isinstance(shape, tuple):
        return ("", operands[shape] if isinstance(shape, int) else shape)
    sides = [_tree_key(shape[1], operands), _tree_key(shape[2], operands)]
    return (shape[0], *(sorted(sides, key=repr) if shape[0] in "+*" else sides))


def _operands(mark: Mark) -> list[Fraction]:
    try:
        return tree(mark.left)[1]
    except ValueError:
        return []


def _parts(mark: Mark) -> list[Fraction]:
    """The values of the operations within a mark."""
    trail: list[Fraction] = []
    try:
        tree_value(*tree(mark.left), trail)
    except ValueError:
        return []
    return trail


# -------------------------------------------------------------------------------------------- tutor


def tutor(problem: Problem, attempt: str) -> Problem:
    """The attempt up to its first wrong step, the tutor's sentence, and the gold steps to the end.

    Raises Unfit.
    """
    if problem.messages:
        raise Unfit("a chat")
    if len(attempt) > LONGEST_ATTEMPT or attempt.count("\n") >= MOST_LINES:
        raise Unfit("the attempt is too long")
    verdict = judge(attempt, problem)
    if verdict.line is None:
        named = {"right": "the attempt is right", "no marks": "the attempt has no marks"}
        raise Unfit(named.get(verdict.reason, verdict.reason))
    if not marks(problem.solution):
        raise Unfit("the gold solution has no marks")
    plan, kept = Plan(problem.solution), steps(attempt)[: verdict.line + 1]
    for line in kept:
        for mark in marks(line):
            if check(mark) and (line is not kept[-1] or mark.start < verdict.mark.start):
                plan.mark_done(mark)
    said = [_correction(verdict, plan), *plan.rest(), f"#### {problem.answer}"]
    whole = "\n".join([*kept, *said])
    if not all(check(mark) for mark in marks("\n".join(said))):
        raise Unfit("a mark of the gold solution is wrong")
    if not equivalent(problem.answer, extract_answer(whole)):
        raise Unfit("the attempt hides the answer")  # a box in it, or the like
    return child(problem, "tutor", problem.question, whole)


def _correction(verdict: Verdict, plan: Plan) -> str:
    """The tutor's sentence.

    If only the arithmetic of a step is wrong, the sentence completes that step.
    """
    wrong = verdict.mark
    try:
        shown = write(value := compute(wrong.left), "")
    except ValueError:  # cannot be read, is a chain, or has no short value
        return "Wait, that step does not follow."
    repaired = Mark(wrong.left, shown, 0, 0)
    if verdict.reason != "wrong arithmetic" or not plan.explains(repaired):
        return "Wait, that step does not follow."
    plan.mark_done(repaired)
    claim = "" if _value(wrong) == value else f"{wrong.left} is not {wrong.value}: "
    return f"Wait, {claim}{wrong.left} = <<{wrong.left}={shown}>>{shown}."


def main(number: str = "1") -> None:
    """Print both kinds of corrected solution of an embedded problem."""
    story = synthetic.story("train", int(number))
    problem = parse_record(story.record(), f"mini-gsm/train/0/{number}")
    print(f"{problem.question}\n\nretro:\n{retro(problem, random.Random(0)).solution}")
    print(f"\ntutor:\n{tutor(problem, story.solution(slip=(0, 10))).solution}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or not all(argument.isdecimal() for argument in sys.argv[1:]):
        sys.exit("usage: python -m recipes.tutor [NUMBER OF AN EMBEDDED PROBLEM]")
    main(*sys.argv[1:])
