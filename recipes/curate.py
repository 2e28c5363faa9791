r"""Selects and tidies training data in steps, each of which reports what it dropped or changed, and
why.

    python -m recipes.curate mini-gsm      # what the steps keep of a set or file; writes nothing

A step is a function of a list of problems (and what it needs) that returns a `CurationStep`; steps
compose by passing on `.problems`. None keeps state or changes the order of rows. Of rows that
repeat each other the first is kept. A random choice is made by a hash of the seed and the row's own
text, so it does not depend on the order of the rows.

    forms       unify: every solution ends in one form
    filters     keep_numeric, keep_right_arithmetic, drop_duplicates, drop_same_patterns,
                drop_overlap
    choices     sample, sample_by_probability, split

`mugglemath_15k` is the recipe of *Empowering Reasoning through Efficient Fine-Tuning, Augmentation,
and Multi-Round Voting* for the data of MuggleMath (Li et al. 2023, arXiv 2310.05506). Its docstring
says what the paper leaves open.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from string import ascii_letters

from tqdm import tqdm

from answers import BOXES, LOWER, extract_answer
from grader.cleaned import normalise
from data import Problem, load_problems, overlap_with
from forms import stated_answer
from recipes.arithmetic import check, marks
from recipes.dedup import (SYMBOLS, exact_duplicates, near_duplicates, normalised_duplicates,
                           normalised_words)
from runtime import UsageError, UserError, hash_of, one_line

ANSWER_ENDINGS = {"gsm8k": "#### {}", "boxed": r"The answer is $\boxed{{{}}}$."}  # by style
# A sentence with these words before "answer is" says nothing but the answer.
STOCK = set("so thus therefore hence then finally consequently and the our final correct numerical"
            .split()) | {""}
MOST_STATEMENTS = 8  # of one answer, one after another; a text with more is not rewritten
DUPLICATE_KINDS = ("exact", "normalised", "near")  # each kind includes those before it
STRATA: dict[str, Callable[[Problem], str]] = {
    "level": lambda problem: problem.level,
    "subject": lambda problem: problem.subject,
    # Marks <<a=b>>, or else lines.
    "steps": lambda problem: str(len(marks(problem.solution)) or len(problem.solution.split("\n"))),
    "recipe": lambda problem: str(problem.origin.get("recipe", "")),
}  # fmt: skip


@dataclass
class CurationStep:
    """The result of a step: the problems that it keeps, in their order, and counts by reason."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # of kept ones: what is changed or special
    examples: dict[str, str] = field(default_factory=dict)  # reason -> id of the first such problem

    def __str__(self) -> str:
        before = len(self.problems) + self.dropped.total()
        lines = [f"{self.name}: {len(self.problems)} of {before} kept"]
        for word, reasons in (("dropped", self.dropped), ("kept", self.noted)):
            for reason, count in reasons.most_common():
                lines.append(f"  {count:7d} {word}: "
                             + one_line(f"{reason} (such as {self.examples[reason]})"))
        return "\n".join(lines)


def _collect(name: str, problems: list[Problem],
             outcomes: Iterable[tuple[Problem | None, str]]) -> CurationStep:
    """A step from the outcome for each problem: the problem to keep or None, and the reason ("":
    unchanged)."""
    step = CurationStep(name)
    together = zip(problems, outcomes, strict=True)
    for problem, (kept, reason) in tqdm(together, name, len(problems),
                                        disable=not sys.stderr.isatty(), leave=False):
        if kept is not None:
            step.problems.append(kept)
        if reason:
            (step.dropped if kept is None else step.noted)[reason] += 1
            step.examples.setdefault(reason, problem.id)
    return step


def _drop(name: str, problems: list[Problem], reasons: Iterable[str]) -> CurationStep:
    """A step that drops each problem that has a reason, and changes none."""
    outcomes = ((None if reason else problem, reason)
                for problem, reason in zip(problems, reasons, strict=True))
    return _collect(name, problems, outcomes)


# -------------------------------------------------------------------------------------------- forms


def unify(problems: list[Problem], style: str) -> CurationStep:
    r"""Solutions that end in one form: `...\n#### 5` (style gsm8k) or `... The answer is
    $\boxed{5}$.` (style boxed).

    Boxes elsewhere are opened and their contents stay. Sentences and lines at the end that only
    state the answer are replaced. Other text is kept as it is. A solution is dropped if it states
    no answer by a box, by `####` or in words: a last number may be where a text was cut.
    `extract_answer` finds the same before and after, but for white space, and the field `answer`
    does not change. A second call changes nothing.
    """
    if style not in ANSWER_ENDINGS:
        raise UsageError(f"style {style!r} is unknown; known are {', '.join(ANSWER_ENDINGS)}")
    outcomes = (_unified(problem, style) for problem in problems)
    return _collect(f"unify to {style}", problems, outcomes)


def _unified(problem: Problem, style: str) -> tuple[Problem | None, str]:
    if not problem.solution.strip():
        return None, "no solution"
    answer = stated_answer(problem.solution)
    if answer is None:
        return None, "states no answer"
    text = with_ending(problem.solution, answer, style)
    # With braces that are not balanced, or half a box, the new end would not be read as the answer.
    same = (extract_answer(text) or "").split() == answer.split()
    if not same or with_ending(text, answer, style) != text:
        return None, f"its answer cannot be written in the form of {style}"
    if text == problem.solution:
        return problem, ""
    messages = problem.messages
    if messages:
        messages = (*messages[:-1], {**messages[-1], "content": text})
    return replace(problem, solution=text, messages=messages), "end rewritten"


def with_ending(solution: str, answer: str, style: str) -> str:
    """The solution without any statement of the answer at its end, and then the ending of that
    style, once."""
    body = _without_statements(unbox(solution), answer)
    if "####" in body:  # within the text, perhaps as a heading: the text stays
        lines = (line.replace("####", "").strip() if "####" in line else line
                 for line in body.split("\n"))
        body = _without_statements("\n".join(lines), answer)
    ending = ANSWER_ENDINGS[style].format(" ".join(answer.split()))
    if not body:
        return ending
    # After one line of sentences, the boxed style adds a sentence to it.
    same_line = style == "boxed" and "\n" not in body and body[-1] in ".!?"
    return body + (" " if same_line else "\n") + ending


def _without_statements(text: str, answer: str) -> str:
    """The text without the lines and sentences at its end that only state the answer."""
    text = text.strip()
    for _ in range(MOST_STATEMENTS):
        shorter = _without_last_statement(text, answer).strip()
        if shorter == text:
            break
        text = shorter
    return text


def _without_last_statement(text: str, answer: str) -> str:
    """The text without a last line `#### 5`, or a last sentence such as `so the answer is 5`."""
    ours = unbox(ANSWER_ENDINGS["boxed"].format(" ".join(answer.split())))
    if text.endswith(ours):  # even if no sentence ends before it
        return text.removesuffix(ours)
    before, newline, line = text.rpartition("\n")
    others, marked, said = line.partition("####")
    if marked and _says(said, answer):
        return before + newline + others
    lower = line.translate(LOWER)
    at, length = max((lower.rfind(marker), len(marker)) for marker in ("answer is", "answer:"))
    if at < 0 or not _says(line[at + length :], answer):
        return text
    begin = max(line.rfind(end, 0, at) + len(end) if end in line[:at] else 0
                for end in (". ", "! ", "? "))
    stock = all(word.strip(",:*#") in STOCK for word in lower[begin:at].split())
    return before + newline + line[:begin] if stock else text


def _says(text: str, answer: str) -> bool:
    """Whether a text is the answer and, besides it, only typography."""
    return normalise(text.strip(" :*").rstrip("*. ")) == normalise(answer)


def unbox(text: str) -> str:
    r"""The text with each `\boxed{5}`, `\boxed 5` and `\fbox{5}` replaced by its content, braces
    balanced."""
    begin = min((text.find(box) for box in BOXES if box in text), default=-1)
    if begin < 0:
        return text
    begin = len(text[:begin].rstrip("\\"))  # `\\boxed` is a new line and a word
    kept, after_box = [text[:begin]], False
    is_box: list[bool] = []  # of each open brace
    for token in _latex_tokens(text, begin):
        if token in BOXES:
            kept += [" "] * _ends_in_command(kept[-1])
            after_box = True
        elif not (after_box and token.isspace()):
            if token == "{":
                is_box.append(after_box)
                goes = after_box
            else:
                goes = token == "}" and is_box and is_box.pop()
            if not goes:
                kept.append(token)
            after_box = False
    return "".join(kept)


def _latex_tokens(text: str, at: int) -> Iterator[str]:
    r"""From `at` on: commands such as `\frac`, a backslash with the next character, and single
    characters."""
    while at < len(text):
        end = at + 1
        if text[at] == "\\":
            while end < len(text) and text[end].isascii() and text[end].isalpha():
                end += 1
            end = max(end, at + 2)
        yield text[at:end]
        at = end


def _ends_in_command(text: str) -> bool:
    r"""Whether a text ends in a command such as `\pi`, which a letter behind it would change."""
    tail = text[-30:]
    name = tail[len(tail.rstrip(ascii_letters)) - 1 :]
    return len(name) > 1 and name[0] == "\\"


# ------------------------------------------------------------------------------------------ filters


def is_plain_number(answer: str) -> bool:
    """Whether an answer is an integer or a decimal, perhaps with a sign, a dollar sign or commas.
    `3/4`, `25%`, `5 cm` and `2^3` are not: the other characters would have to be understood."""
    text = normalise(answer).removeprefix("-").removeprefix("+")
    whole, point, decimals = text.partition(".")
    return (text.isascii() and (whole or "0" * len(decimals)).isdigit()
            and (not point or decimals.isdigit()))


def keep_numeric(problems: list[Problem]) -> CurationStep:
    """The problems with a plain number as their answer."""
    plain = (is_plain_number(problem.answer) for problem in problems)
    return _drop("plain numbers", problems,
                   ("" if good else "answer is no plain number" for good in plain))


def keep_right_arithmetic(problems: list[Problem]) -> CurationStep:
    """Problems whose solution has no `<<a=b>>` that is wrong or cannot be read. Those without any
    are kept and counted."""

    def outcome(problem: Problem) -> tuple[Problem | None, str]:
        verdicts = list(map(check, marks(problem.solution)))
        if not verdicts or all(verdicts):
            return problem, "" if verdicts else "without any <<a=b>>"
        return None, "wrong arithmetic" if False in verdicts else "arithmetic that cannot be read"

    return _collect("right arithmetic", problems, map(outcome, problems))


def drop_duplicates(problems: list[Problem], kind: str = "near",
                    questions_only: bool = False) -> CurationStep:
    """The first of problems that repeat each other: `exact`, or also `normalised` (same words), or
    also `near`.

    Question and solution are compared together, since made data holds several solutions of one
    question; with `questions_only` the questions alone, which leaves one row of each. Normalised
    and near duplicates also have the same answer.
    """
    if kind not in DUPLICATE_KINDS:
        raise UsageError(f"kind of duplicates {kind!r} is unknown; known are "
                         f"{', '.join(DUPLICATE_KINDS)}")
    texts = [_row_text(problem, questions_only) for problem in problems]
    answers, reasons = [normalise(problem.answer) for problem in problems], [""] * len(problems)
    for name in DUPLICATE_KINDS[: DUPLICATE_KINDS.index(kind) + 1]:
        rest = [index for index, reason in enumerate(reasons) if not reason]
        some = [texts[index] for index in rest]
        if name == "near":
            firsts = near_duplicates(some, keys=[answers[index] for index in rest])
        elif name == "normalised":
            firsts = normalised_duplicates(f"{text}\n{answers[index]}"
                                           for text, index in zip(some, rest))
        else:
            firsts = exact_duplicates(some)
        for index, first in zip(rest, firsts, strict=True):
            reasons[index] = f"{name} duplicate" if first >= 0 else ""
    return _drop(f"no {kind} duplicates{' of questions' * questions_only}", problems, reasons)


def _row_text(problem: Problem, question_only: bool = False) -> str:
    if problem.text:
        return problem.text
    if problem.messages:
        turns = problem.asked if question_only else problem.messages
        return "\n".join(turn["content"] for turn in turns)
    return problem.question if question_only else f"{problem.question}\n{problem.solution}"


def drop_same_patterns(problems: list[Problem]) -> CurationStep:
    """Of problems with the same words in their questions, numbers aside, the first."""

    def pattern(problem: Problem) -> str:
        found = normalised_words(_row_text(problem, True), SYMBOLS)
        return " ".join("0" if any(map(str.isdigit, word)) else word for word in found)

    firsts = exact_duplicates(map(pattern, problems))
    reasons = ("same question but for its numbers" if first >= 0 else "" for first in firsts)
    return _drop("one of a pattern", problems, reasons)


def drop_overlap(problems: list[Problem], tests: dict[str, list[str]],
                 keep: bool = False) -> CurationStep:
    """Problems whose question repeats none of the test sets' (name -> questions), exactly or in 13
    words in a row.

    Of a chat, each turn of the user is compared. With `keep` none is dropped: the names of the sets
    stand in `origin["overlap"]` and are counted.
    """
    kinds_of = overlap_with(tests)

    def outcome(problem: Problem) -> tuple[Problem | None, str]:
        kinds = kinds_of(problem)
        reason = " and ".join(f"overlaps {name} ({kind})" for name, kind in kinds.items())
        if not kinds or not keep:
            return (None if kinds else problem), reason
        return replace(problem, origin={**problem.origin, "overlap": ", ".join(kinds)}), reason

    return _collect(f"overlap with {', '.join(tests) or 'no test set'}", problems,
                 map(outcome, problems))


# ------------------------------------------------------------------------------------------ choices


def _rank(problem: Problem, seed: int) -> int:
    """A random number below 2**64, a function of the seed and of the row's text."""
    return hash_of(f"{seed}\0{_row_text(problem)}")


def sample(problems: list[Problem], n: int, seed: int, by: str | None = None) -> CurationStep:
    """n problems (all, if there are no more), in their order. With `by`, each value of that field
    (see STRATA) keeps its share, by largest remainders."""
    if by is not None and by not in STRATA:
        raise UsageError(f"cannot sample by {by!r}; known are {', '.join(STRATA)}")
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(STRATA[by](problem) if by else "", []).append(index)
    n = min(n, len(problems))
    shares = {value: divmod(n * len(group), len(problems)) for value, group in groups.items()}
    left = n - sum(whole for whole, _ in shares.values())
    favoured = sorted(shares, key=lambda value: (-shares[value][1], value))[:left]
    chosen: set[int] = set()
    for value, group in groups.items():
        count = shares[value][0] + (value in favoured)
        chosen.update(sorted(group, key=lambda index: _rank(problems[index], seed))[:count])
    reasons = ("" if index in chosen else "not in the sample" for index in range(len(problems)))
    return _drop(f"sample of {n}{f' by {by}' if by else ''}, seed {seed}", problems, reasons)


def sample_by_probability(problems: list[Problem], p: float, seed: int) -> CurationStep:
    """Each problem with probability p, independently."""
    reasons = ("" if _rank(problem, seed) < p * 2**64 else "not in the sample"
               for problem in problems)
    return _drop(f"sample with probability {p}, seed {seed}", problems, reasons)


def split(problems: list[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(the rest, a `share` of the questions), rows in their order. All rows of one question (the
    same words) are on one side. Raises UserError if a side is empty."""
    keys = [" ".join(normalised_words(_row_text(problem, True), SYMBOLS)) for problem in problems]
    ranked = sorted(set(keys), key=lambda key: hash_of(f"{seed}\0{key}"))
    chosen = set(ranked[: round(share * len(ranked))])
    if not 0 < len(chosen) < len(ranked):
        raise UserError(f"a share of {share} of {len(ranked)} questions leaves one side empty; "
                        "give another share, or more problems")
    sides: tuple[list[Problem], list[Problem]] = [], []
    for problem, key in zip(problems, keys, strict=True):
        sides[key in chosen].append(problem)
    return sides


# ------------------------------------------------------------------------------------------ recipes


def mugglemath_15k(problems: list[Problem], seed: int,
                   tests: dict[str, list[str]]) -> tuple[list[Problem], list[CurationStep]]:
    """The paper's selection from one of MuggleMath's sets: at most 15,000 rows, and the steps that
    led there.

    The paper drops duplicates by pattern and samples by a probability to 15,000 rows a set. It
    leaves open:

    - The pattern. Here it is a question without its numbers: a change of numbers is the first of
    MuggleMath's
      augmentations, and rows that differ in nothing else teach the same.
    - The probability 0.12, plain numbers as answers and the end `#### n`. They come from scripts
    that seem to be the
      authors'.
    - The cut to 15,000. Here it is random, as the sample is.

    The check for overlap is ours: `tests` holds the sets, and may be empty.
    """
    steps: list[CurationStep] = []
    for work in (
        lambda rows: unify(rows, "gsm8k"),
        keep_numeric,
        drop_same_patterns,
        lambda rows: drop_overlap(rows, tests),
        lambda rows: sample_by_probability(rows, 0.12, seed),
        lambda rows: sample(rows, 15_000, seed),
    ):
        steps.append(work(steps[-1].problems if steps else problems))
    return steps[-1].problems, steps


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise UsageError("usage: python -m recipes.curate SET_OR_FILE")
        rows = load_problems(sys.argv[1])
        for work in (lambda rows: unify(rows, "gsm8k"), keep_right_arithmetic, drop_duplicates,
                     keep_numeric):
            step = work(rows)
            print(step)
            rows = step.problems
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(one_line(f"error: {str(error) or 'interrupted'}"))
