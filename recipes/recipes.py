"""Recipes that make data: each turns problems into new ones, and says where every one of them comes from.

    python augment.py make rft --teacher runs/lora-mini-gsm-1 --dataset mini-gsm --samples 8 --temperature 0.7

A recipe is a generator: it is given a `Kitchen` (problems, a teacher to ask, a seed) and yields `Problem`s whose `origin`
holds recipe, parent, teacher and seed; what it leaves out it counts, with the reason. `RECIPES` at the end is the table.

  responses   a teacher's worked answers, kept where the grader agrees
  rft         one's own model's right solutions, one for each list of equations, and the gold ones (Yuan et al. 2023, 2308.01825)
  queries     five ways to change a question, answered by majority (MuggleMath: Li et al. 2023, 2310.05506)
  perturb     new numbers with a recomputed answer, exactly and offline; simple or hard (MATH-Perturb: Huang et al. 2025)
  expand, diversify, retro, tutor      the four of Chen et al. 2025 (2501.14002): new questions, other solutions, a step
              too early that is taken back, a weak attempt that is corrected at its first wrong step

What differs from the papers: answers of new questions are a majority with its share kept as confidence, and a solution is
always graded by value, unless `check` is off.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from answers import extract_answer
from data import Problem
from recipes.arithmetic import check, marks
from recipes.client import ApiTeacher, Reply
from recipes.dedup import normalised_words
from recipes.perturb import perturb
from recipes.program import Unfit
from recipes.teacher import LocalTeacher, ask
from recipes.tutor import retro, tutor
from score import verdict
from vote import choose, cluster

Teacher = ApiTeacher | LocalTeacher
LONGEST_QUESTION = 4000  # characters; what is longer is no question but a model that does not end

# MuggleMath's five changes; the last brought most there.
CHANGES = {
    "numbers": "Change the specific numbers in it, and nothing else.",
    "fractions": "Bring fractions or percentages into it.",
    "concepts": "Combine it with another mathematical concept.",
    "condition": "Add a condition that makes a difference to the answer.",
    "complexity": "Make it more complex, so that it takes more steps to solve.",
}
EXPAND = {
    "same topic": "Write another problem on the same topic, with a different situation and different numbers.",
    "same method": "Write a problem about something else altogether that is solved by the same method.",
}
PERTURB = {
    False: {
        "simple": "Change its numbers so that the answer changes but the same way of solving it still works."
    }, True: {
        "hard": "Make a small change to it after which the old way of solving it no longer works and another is needed."
    },
}
NEW_QUESTION = """Here is a mathematics problem:

{question}

{change} The new problem must make sense and have a single answer. Write the new problem alone, without a solution."""
ANOTHER_WAY = """{question}

One way to solve this:

{solution}

Solve it in a different way, step by step, and end as this solution ends."""
CORRECT = """Here is a mathematics problem:

{question}

Its correct answer is {answer}. A student wrote:

{numbered}

Find the first wrong line. Write its number alone on your first line. Then say in a sentence what is wrong with it, correct
it, and go on from there to the end, step by step, without repeating the lines before it. End with the line "#### {answer}"."""


@dataclass
class Kitchen:
    """What a recipe works with, and where it counts what it left out."""

    recipe: str
    problems: list[Problem]
    folder: Path  # replies are stored here
    teacher: Teacher | None = None
    student: Teacher | None = None
    samples: int = 1  # of each problem
    seed: int = 0
    check: bool = True  # in responses and diversify, keep only what the grader agrees with
    hard: bool = False
    agreement: float = 0.5  # least share of the samples that a majority needs
    dropped: Counter = field(default_factory=Counter)  # reason -> how many
    cost: Counter = field(default_factory=Counter)  # as score.cost_line tells it

    def ask(self, chats: list[str], samples: int = 1,
            who: Teacher | None = None) -> list[list[Reply]]:
        """Replies to each of some questions; the lost and the cut ones are counted and left out."""
        answers = ask(who or self.teacher, [[{"role": "user", "content": text}] for text in chats],
                      self.folder, samples)
        self.cost.update(answers.cost)
        return [
            [reply for reply in replies if self._is_usable(reply)] for replies in answers.replies
        ]

    def _is_usable(self, reply: Reply | None) -> bool:
        reason = "lost" if reply is None else "cut at --max-new-tokens" if reply.finish != "stop" else ""
        if reason:
            self.dropped[reason] += 1
        return not reason

    def made(self, problem: Problem, kind: str, **changes) -> Problem:
        """A new problem from `problem`, with another id and its origin; `kind` tells it from its siblings."""
        origin = {"recipe": self.recipe, "parent": problem.id, "kind": kind, "seed": self.seed
                  } | changes.pop("origin", {})
        if "overlap" in problem.origin:
            origin["overlap"] = problem.origin["overlap"]
        if changes:  # the texts of a chat are no longer its own
            changes["messages"] = ()
        return replace(problem, id=f"{problem.id}/{self.recipe}/{kind}", origin=origin, **changes)

    def taught(self, problem: Problem, kind: str, **changes) -> Problem:
        """As `made`, of what the teacher said."""
        return self.made(
            problem, kind,
            **changes | {"origin": {"teacher": self.teacher.name} | changes.get("origin", {})})

    def ruled(self, parent: Problem, child: Problem, kind: str, **origin) -> Problem:
        """As `made`, of what a rule has made of `parent`; no teacher had a part in it."""
        return self.made(parent, kind, question=child.question, solution=child.solution,
                         answer=child.answer, origin=origin)

    def random(self, problem: Problem, copy: int = 0) -> random.Random:
        """Random numbers of one problem, whatever stands before it in the file."""
        return random.Random(f"{self.recipe}/{self.seed}/{problem.id}/{copy}")


Recipe = Callable[[Kitchen], Iterator[Problem]]


def _is_right(problem: Problem, text: str) -> bool:
    return verdict(problem.answer, text, "stop")["correct"]


def _solution_key(text: str) -> tuple:
    """What makes two solutions the same: their equations, or the words where they have none."""
    found = marks(text)
    return tuple("".join(mark.left.split()) for mark in found) if found else tuple(normalised_words(text))


# ----------------------------------------------------------------------- solutions to old questions


def responses(kitchen: Kitchen) -> Iterator[Problem]:
    """A teacher's answers to the training questions, each sample that the grader agrees with."""
    for problem, number, text in solutions(
            kitchen, [problem.question for problem in kitchen.problems], kitchen.check):
        yield kitchen.taught(problem, str(number), solution=text)


def rft(kitchen: Kitchen) -> Iterator[Problem]:
    """Gold solutions, and with each those of the model's own that are right and calculate in another way."""
    for problem in kitchen.problems:
        yield kitchen.made(problem, "gold")
    worked = {problem.id for problem in kitchen.problems if marks(problem.solution)}
    for made in new_solutions(kitchen, [problem.question for problem in kitchen.problems],
                              check_answer=True):
        if made.origin["parent"] in worked and not marks(made.solution):
            kitchen.dropped["a bare answer, where the gold solution calculates"] += 1
        else:
            yield made


def diversify(kitchen: Kitchen) -> Iterator[Problem]:
    """Other ways to solve the same question, shown the gold one."""
    chats = [
        ANOTHER_WAY.format(question=problem.question, solution=problem.solution)
        for problem in kitchen.problems
    ]
    yield from new_solutions(kitchen, chats, kitchen.check)


def solutions(kitchen: Kitchen, chats: list[str],
              check_answer: bool) -> Iterator[tuple[Problem, int, str]]:
    """(problem, number of the sample, text) of what the teacher says to each problem's chat; with `check_answer`, what
    the grader agrees with."""
    for problem, replies in zip(kitchen.problems, kitchen.ask(chats, kitchen.samples)):
        for number, reply in enumerate(replies):
            if check_answer and not _is_right(problem, reply.text):
                kitchen.dropped["another answer than the gold one"] += 1
            else:
                yield problem, number, reply.text


def new_solutions(kitchen: Kitchen, chats: list[str], check_answer: bool) -> Iterator[Problem]:
    """Solutions without wrong arithmetic, one for each list of equations (or of words, where there are none); the gold
    one's is taken."""
    seen = {(problem.id, _solution_key(problem.solution)) for problem in kitchen.problems}
    for problem, number, text in solutions(kitchen, chats, check_answer):
        key = (problem.id, _solution_key(text))
        if not all(map(check, marks(text))):
            kitchen.dropped["wrong arithmetic on the way"] += 1
        elif key in seen:
            kitchen.dropped["the same equations as another solution"] += 1
        else:
            seen.add(key)
            yield kitchen.taught(problem, str(number), solution=text)


# ------------------------------------------------------------------------------------ new questions


def changed_questions(kitchen: Kitchen, problems: list[Problem],
                      changes: dict[str, str]) -> Iterator[Problem]:
    """New questions that the teacher makes of old ones, one for each change, answered by majority.

    The solution is the first sample that gives the majority's answer; its share of all samples is the confidence.
    """
    asked = [(problem, kind) for problem in problems for kind in changes]
    chats = [
        NEW_QUESTION.format(question=problem.question, change=changes[kind])
        for problem, kind in asked
    ]
    fresh, seen = [], {tuple(normalised_words(problem.question)) for problem in kitchen.problems}
    for (problem, kind), texts in zip(asked, kitchen.ask(chats)):
        for reply in texts:
            question = reply.text.strip()
            if len(question) > LONGEST_QUESTION or not looks_asked(question):
                kitchen.dropped["no question"] += 1
            elif tuple(normalised_words(question)) in seen:
                kitchen.dropped["an old question again"] += 1
            else:
                seen.add(tuple(normalised_words(question)))
                fresh.append((problem, kind, question))
    for (problem, kind, question), texts in zip(fresh,
                                                kitchen.ask([f[2] for f in fresh],
                                                            kitchen.samples)):
        answers = [verdict("", reply.text, "stop")["answer"] for reply in texts]
        clusters = cluster(answers)
        best = choose(clusters, [1.0] * len(answers))
        share = 0.0 if best is None else clusters.count(clusters[best]) / kitchen.samples
        if best is None or share < kitchen.agreement:
            kitchen.dropped["no majority for an answer"] += 1
            continue
        yield kitchen.taught(problem, kind, question=question, solution=texts[best].text,
                             answer=answers[best], level="", origin={"confidence": share})


def looks_asked(text: str) -> bool:
    """Whether a text may be a question: some words, and no marked answer, which a model that solves instead gives."""
    return len(normalised_words(text)) >= 3 and extract_answer(text, strict=True) is None


def queries(kitchen: Kitchen) -> Iterator[Problem]:
    """MuggleMath's five changes of every question."""
    return changed_questions(kitchen, kitchen.problems, CHANGES)


def expand(kitchen: Kitchen) -> Iterator[Problem]:
    """New questions on the topic, and by the method, of every old one."""
    return changed_questions(kitchen, kitchen.problems, EXPAND)


def perturbed(kitchen: Kitchen) -> Iterator[Problem]:
    """`samples` problems with other numbers for each, exactly; by the teacher, if there is one, where that cannot be."""
    left = []
    for problem in kitchen.problems:
        seen = {problem.question}
        for copy in range(kitchen.samples):
            try:
                new = perturb(problem, kitchen.random(problem, copy), kitchen.hard)
            except Unfit as reason:
                kitchen.dropped[str(reason)] += 1
                if not left or left[-1] is not problem:
                    left.append(problem)
                continue
            if new.question in seen:
                kitchen.dropped["the same numbers again"] += 1
                continue
            seen.add(new.question)
            yield kitchen.ruled(problem, new, f"{'hard' if kitchen.hard else 'simple'} {copy}")
    if kitchen.teacher is not None:
        yield from changed_questions(kitchen, left, PERTURB[kitchen.hard])


# ------------------------------------------------------------------------------- mistakes made good


def too_early(kitchen: Kitchen) -> Iterator[Problem]:
    """`retro` by rule: `samples` solutions of each problem in which a later step comes too early and is taken back."""
    for problem in kitchen.problems:
        for copy in range(kitchen.samples):
            try:
                yield kitchen.ruled(problem, retro(problem, kitchen.random(problem, copy)),
                                    str(copy))
            except Unfit as reason:
                kitchen.dropped[str(reason)] += 1


def tutored(kitchen: Kitchen) -> Iterator[Problem]:
    """Weak attempts of a student, corrected at their first wrong step: by rule where solutions have marks, else, where
    there is a teacher, by the teacher, if the corrected attempt then ends in the gold answer."""
    replies = kitchen.ask([problem.question for problem in kitchen.problems], kitchen.samples,
                          kitchen.student)
    left = []
    for problem, texts in zip(kitchen.problems, replies):
        for number, text in enumerate(dict.fromkeys(reply.text for reply in texts)):
            if _is_right(problem, text):
                kitchen.dropped["the attempt is right"] += 1
                continue
            try:
                yield kitchen.ruled(problem, tutor(problem, text), str(number),
                                    student=kitchen.student.name)
            except Unfit as reason:
                kitchen.dropped[str(reason)] += 1
                left.append((problem, number, text))
    if kitchen.teacher is not None:
        yield from _tutored_by_teacher(kitchen, left)


def _tutored_by_teacher(kitchen: Kitchen, attempts: list[tuple[Problem, int,
                                                               str]]) -> Iterator[Problem]:
    chats = []
    for problem, _, text in attempts:
        numbered = "\n".join(
            f"{number}. {line}" for number, line in enumerate(text.splitlines(), 1))
        chats.append(
            CORRECT.format(question=problem.question, answer=problem.answer, numbered=numbered))
    for (problem, number, text), replies in zip(attempts, kitchen.ask(chats)):
        for reply in replies:
            first, _, rest = reply.text.strip().partition("\n")
            lines, said = text.splitlines(), first.strip().rstrip(".")
            if not (said.isascii() and said.isdigit() and 1 <= int(said[:9]) <= len(lines)):
                kitchen.dropped["the teacher names no line"] += 1
                continue
            if not _is_right(problem, rest):
                kitchen.dropped["the correction does not end in the gold answer"] += 1
                continue
            solution = "\n".join([*lines[: int(said)], rest.strip()])
            yield kitchen.taught(problem, f"{number} by teacher", solution=solution,
                                 origin={"student": kitchen.student.name})


RECIPES: dict[str, Recipe] = {
    "responses": responses, "rft": rft, "queries": queries, "perturb": perturbed, "expand": expand,
    "diversify": diversify, "retro": too_early, "tutor": tutored,
}  # fmt: skip
NEEDS_MAJORITY = ("queries", "expand", "perturb")  # of the teacher's samples, if one is asked
NEEDS_TEACHER = ("responses", "rft", "queries", "expand", "diversify")
