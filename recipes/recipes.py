"""Makes training data: each recipe turns problems into new ones, and says where every one of them
comes from.

    python augment.py make perturb --dataset mini-gsm --limit 200 --samples 2

A recipe is a generator. It takes a `RecipeContext` (problems, a teacher to ask, a seed) and yields
`Problem`s with recipe, parent, teacher and seed in their `origin`. What it leaves out it counts by
reason. `RECIPES` at the end is the table.

  responses   a teacher's worked answers, kept if the grader agrees
  rft         a model's own right solutions, one for each list of equations, and the gold ones
              (Yuan et al. 2023, 2308.01825)
  queries     five ways to change a question, answered by majority (MuggleMath: Li et al. 2023,
              2310.05506)
  perturb     new numbers with a recomputed answer, exactly and offline; simple or hard
              (MATH-Perturb: Huang et al. 2025, 2502.06453)
  expand      new questions on the topic, or by the method, of an old one
  diversify   other solutions to the same question
  retro       a step that comes too early and is taken back
  tutor       a weak attempt, corrected at its first wrong step (expand, diversify, retro and tutor:
              Chen et al. 2025, 2501.14002)

What differs from the papers: the answer of a new question is the majority's, with its share kept as
confidence; and a solution is always graded by value, unless `check` is off.
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
LONGEST_QUESTION = 4000  # characters; a longer text is no question but a model that does not end

# MuggleMath's five changes; the last brought most there.
CHANGES = {
    "numbers": "Change the specific numbers in it, and nothing else.",
    "fractions": "Bring fractions or percentages into it.",
    "concepts": "Combine it with another mathematical concept.",
    "condition": "Add a condition that makes a difference to the answer.",
    "complexity": "Make it more complex, so that it takes more steps to solve.",
}
EXPAND = {
    "same topic": "Write another problem on the same topic, with a different situation and "
                  "different numbers.",
    "same method": "Write a problem about something else altogether that is solved by the same "
                   "method.",
}
# By `hard`.
PERTURB_CHANGES = {
    False: {"simple": "Change its numbers so that the answer changes but the same way of solving "
                      "it still works."},
    True: {"hard": "Make a small change to it after which the old way of solving it no longer "
                   "works and another is needed."},
}
NEW_QUESTION = """Here is a mathematics problem:

{question}

{change} The new problem must make sense and have a single answer. Write the new problem alone, \
without a solution."""
ANOTHER_WAY = """{question}

One way to solve this:

{solution}

Solve it in a different way, step by step, and end as this solution ends."""
CORRECT = """Here is a mathematics problem:

{question}

Its correct answer is {answer}. A student wrote:

{numbered}

Find the first wrong line. Write its number alone on your first line. Then say in a sentence \
what is wrong with it, correct
it, and go on from there to the end, step by step, without repeating the lines before it. End with \
the line "#### {answer}"."""


@dataclass
class RecipeContext:
    """What a recipe works with, and its counts of what it left out."""

    recipe: str
    problems: list[Problem]
    folder: Path  # replies are stored here
    teacher: Teacher | None = None
    student: Teacher | None = None
    samples: int = 1  # of each problem
    seed: int = 0
    check: bool = True  # responses, diversify: keep only answers that the grader agrees with
    hard: bool = False
    agreement: float = 0.5  # least share of the samples that a majority needs
    dropped: Counter = field(default_factory=Counter)  # reason -> how many
    cost: Counter = field(default_factory=Counter)  # what score.cost_line prints

    def ask(self, chats: list[str], samples: int = 1,
            who: Teacher | None = None) -> list[list[Reply]]:
        """Replies to each question; lost ones and ones cut at the token limit are counted and left
        out."""
        messages = [[{"role": "user", "content": text}] for text in chats]
        answers = ask(who or self.teacher, messages, self.folder, samples)
        self.cost.update(answers.cost)
        return [[reply for reply in replies if self._is_usable(reply)]
                for replies in answers.replies]

    def _is_usable(self, reply: Reply | None) -> bool:
        if reply is not None and reply.finish == "stop":
            return True
        self.dropped["lost" if reply is None else "cut at --max-new-tokens"] += 1
        return False

    def made(self, problem: Problem, kind: str, **changes) -> Problem:
        """A new problem from `problem`, with another id and its origin; each of a parent has
        another `kind`."""
        origin = {"recipe": self.recipe, "parent": problem.id, "kind": kind, "seed": self.seed}
        origin |= changes.pop("origin", {})
        if "overlap" in problem.origin:
            origin["overlap"] = problem.origin["overlap"]
        if changes:  # the texts are no longer those of its chat
            changes["messages"] = ()
        return replace(problem, id=f"{problem.id}/{self.recipe}/{kind}", origin=origin, **changes)

    def taught(self, problem: Problem, kind: str, **changes) -> Problem:
        """As `made`, for texts of the teacher."""
        origin = {"teacher": self.teacher.name} | changes.pop("origin", {})
        return self.made(problem, kind, origin=origin, **changes)

    def ruled(self, parent: Problem, child: Problem, kind: str, **origin) -> Problem:
        """As `made`, for the `child` that a rule makes of `parent` without a teacher."""
        return self.made(parent, kind, question=child.question, solution=child.solution,
                         answer=child.answer, origin=origin)

    def random(self, problem: Problem, copy: int = 0) -> random.Random:
        """Random numbers for one problem, whatever problems stand before it in the file."""
        return random.Random(f"{self.recipe}/{self.seed}/{problem.id}/{copy}")


Recipe = Callable[[RecipeContext], Iterator[Problem]]


def _is_right(problem: Problem, text: str) -> bool:
    return verdict(problem.answer, text, "stop")["correct"]


def _solution_key(text: str) -> tuple:
    """What two equal solutions have in common: their equations, or their words if they have
    none."""
    equations = tuple("".join(mark.left.split()) for mark in marks(text))
    return equations or tuple(normalised_words(text))


# ----------------------------------------------------------------------- solutions to old questions


def responses(context: RecipeContext) -> Iterator[Problem]:
    """A teacher's answers to the training questions: each sample that the grader agrees with."""
    questions = [problem.question for problem in context.problems]
    for problem, number, text in solutions(context, questions, context.check):
        yield context.taught(problem, str(number), solution=text)


def rft(context: RecipeContext) -> Iterator[Problem]:
    """Gold solutions, and the model's own ones that are right and calculate in another way."""
    for problem in context.problems:
        yield context.made(problem, "gold")
    worked = {problem.id for problem in context.problems if marks(problem.solution)}
    questions = [problem.question for problem in context.problems]
    for made in new_solutions(context, questions, check_answer=True):
        if made.origin["parent"] in worked and not marks(made.solution):
            context.dropped["a bare answer, but the gold solution calculates"] += 1
        else:
            yield made


def diversify(context: RecipeContext) -> Iterator[Problem]:
    """Other ways to solve the same question; the teacher sees the gold one."""
    chats = [ANOTHER_WAY.format(question=problem.question, solution=problem.solution)
             for problem in context.problems]
    yield from new_solutions(context, chats, context.check)


def solutions(context: RecipeContext, chats: list[str],
              check_answer: bool) -> Iterator[tuple[Problem, int, str]]:
    """(problem, number of the sample, text) of the teacher's replies to each problem's chat; with
    `check_answer`, only of those that the grader agrees with."""
    for problem, replies in zip(context.problems, context.ask(chats, context.samples)):
        for number, reply in enumerate(replies):
            if check_answer and not _is_right(problem, reply.text):
                context.dropped["another answer than the gold one"] += 1
            else:
                yield problem, number, reply.text


def new_solutions(context: RecipeContext, chats: list[str],
                  check_answer: bool) -> Iterator[Problem]:
    """Solutions without wrong arithmetic, one for each list of equations (or of words, if there are
    none). The list of the gold solution counts as seen."""
    seen = {(problem.id, _solution_key(problem.solution)) for problem in context.problems}
    for problem, number, text in solutions(context, chats, check_answer):
        key = (problem.id, _solution_key(text))
        if not all(map(check, marks(text))):
            context.dropped["wrong arithmetic on the way"] += 1
        elif key in seen:
            context.dropped["the same equations as another solution"] += 1
        else:
            seen.add(key)
            yield context.taught(problem, str(number), solution=text)


# ------------------------------------------------------------------------------------ new questions


def changed_questions(context: RecipeContext, problems: list[Problem],
                      changes: dict[str, str]) -> Iterator[Problem]:
    """New questions that the teacher makes of old ones, one for each change, answered by majority.

    The solution is the first sample that gives the majority's answer; its share of all samples is
    the confidence.
    """
    fresh = list(_fresh_questions(context, problems, changes))
    replies = context.ask([question for _, _, question in fresh], context.samples)
    for (problem, kind, question), texts in zip(fresh, replies):
        answers = [verdict("", reply.text, "stop")["answer"] for reply in texts]
        clusters = cluster(answers)
        best = choose(clusters, [1.0] * len(answers))
        share = 0.0 if best is None else clusters.count(clusters[best]) / context.samples
        if best is None or share < context.agreement:
            context.dropped["no majority for an answer"] += 1
            continue
        yield context.taught(problem, kind, question=question, solution=texts[best].text,
                             answer=answers[best], level="", origin={"confidence": share})


def _fresh_questions(context: RecipeContext, problems: list[Problem],
                     changes: dict[str, str]) -> Iterator[tuple[Problem, str, str]]:
    """(old problem, kind of change, new question): what the teacher writes, if it is a question and
    no old one."""
    asked = [(problem, kind) for problem in problems for kind in changes]
    chats = [NEW_QUESTION.format(question=problem.question, change=changes[kind])
             for problem, kind in asked]
    seen = {tuple(normalised_words(problem.question)) for problem in context.problems}
    for (problem, kind), texts in zip(asked, context.ask(chats)):
        for reply in texts:
            question = reply.text.strip()
            words = tuple(normalised_words(question))
            if len(question) > LONGEST_QUESTION or not looks_asked(question):
                context.dropped["no question"] += 1
            elif words in seen:
                context.dropped["an old question again"] += 1
            else:
                seen.add(words)
                yield problem, kind, question


def looks_asked(text: str) -> bool:
    """Whether a text may be a question: some words, and no marked answer (a model that solves
    instead gives one)."""
    return len(normalised_words(text)) >= 3 and extract_answer(text, strict=True) is None


def queries(context: RecipeContext) -> Iterator[Problem]:
    """MuggleMath's five changes of every question."""
    return changed_questions(context, context.problems, CHANGES)


def expand(context: RecipeContext) -> Iterator[Problem]:
    """New questions on the topic, and by the method, of every old question."""
    return changed_questions(context, context.problems, EXPAND)


def perturbed(context: RecipeContext) -> Iterator[Problem]:
    """`samples` problems with other numbers for each, exactly. If a rule cannot do it, the teacher
    does, if there is one."""
    left = []
    for problem in context.problems:
        seen = {problem.question}
        for copy in range(context.samples):
            try:
                new = perturb(problem, context.random(problem, copy), context.hard)
            except Unfit as reason:
                context.dropped[str(reason)] += 1
                if not left or left[-1] is not problem:
                    left.append(problem)
                continue
            if new.question in seen:
                context.dropped["the same numbers again"] += 1
                continue
            seen.add(new.question)
            yield context.ruled(problem, new, f"{'hard' if context.hard else 'simple'} {copy}")
    if context.teacher is not None:
        yield from changed_questions(context, left, PERTURB_CHANGES[context.hard])


# ------------------------------------------------------------------------------- mistakes made good


def too_early(context: RecipeContext) -> Iterator[Problem]:
    """`retro` by rule: `samples` solutions of each problem, in which a later step comes too early
    and is taken back."""
    for problem in context.problems:
        for copy in range(context.samples):
            try:
                yield context.ruled(problem, retro(problem, context.random(problem, copy)),
                                    str(copy))
            except Unfit as reason:
                context.dropped[str(reason)] += 1


def tutored(context: RecipeContext) -> Iterator[Problem]:
    """Weak attempts of a student, corrected at their first wrong step.

    By rule, if the solutions have marks; else by the teacher, if there is one and its correction
    ends in the gold answer.
    """
    questions = [problem.question for problem in context.problems]
    replies = context.ask(questions, context.samples, context.student)
    left = []
    for problem, texts in zip(context.problems, replies):
        for number, text in enumerate(dict.fromkeys(reply.text for reply in texts)):
            if _is_right(problem, text):
                context.dropped["the attempt is right"] += 1
                continue
            try:
                yield context.ruled(problem, tutor(problem, text), str(number),
                                    student=context.student.name)
            except Unfit as reason:
                context.dropped[str(reason)] += 1
                left.append((problem, number, text))
    if context.teacher is not None:
        yield from _tutored_by_teacher(context, left)


def _tutored_by_teacher(context: RecipeContext,
                        attempts: list[tuple[Problem, int, str]]) -> Iterator[Problem]:
    chats = []
    for problem, _, text in attempts:
        lines = enumerate(text.splitlines(), 1)
        numbered = "\n".join(f"{number}. {line}" for number, line in lines)
        chats.append(CORRECT.format(question=problem.question, answer=problem.answer,
                                    numbered=numbered))
    for (problem, number, text), replies in zip(attempts, context.ask(chats)):
        for reply in replies:
            first, _, rest = reply.text.strip().partition("\n")
            lines, said = text.splitlines(), first.strip().rstrip(".")
            last = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 0
            if not 1 <= last <= len(lines):
                context.dropped["the teacher names no line"] += 1
                continue
            if not _is_right(problem, rest):
                context.dropped["the correction does not end in the gold answer"] += 1
                continue
            solution = "\n".join([*lines[:last], rest.strip()])
            yield context.taught(problem, f"{number} by teacher", solution=solution,
                                 origin={"student": context.student.name})


RECIPES: dict[str, Recipe] = {
    "responses": responses, "rft": rft, "queries": queries, "perturb": perturbed, "expand": expand,
    "diversify": diversify, "retro": too_early, "tutor": tutored,
}  # fmt: skip
NEEDS_MAJORITY = ("queries", "expand", "perturb")  # of the teacher's samples, if one is asked
NEEDS_TEACHER = ("responses", "rft", "queries", "expand", "diversify")


if __name__ == "__main__":
    print(__doc__)
