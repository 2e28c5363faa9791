r"""Curation: steps from problems to fewer or tidier problems, each telling what it dropped or changed, and why.

    python -m recipes.curate mini-gsm          # what the steps would keep of a set or file; nothing is written

A step is a function of a list of problems (and what it needs) that returns a `Step`; steps compose by passing on
`.problems`. None keeps state or orders rows anew. Of rows that repeat each other the first is kept; what is chosen by
chance is chosen by a hash of the seed and the row's own text, so that the order of the rows changes nothing there.

`mugglemath_15k` is paper A's recipe (*Empowering Reasoning through Efficient Fine-Tuning, Augmentation, and Multi-Round
Voting*) for the data of MuggleMath (Li et al. 2023, arXiv 2310.05506); what the paper leaves open is told there.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from string import ascii_letters

from tqdm import tqdm

from answers import BOXES, LOWER, extract_answer, normalise
from data import Problem, load_problems, overlap_with
from recipes.arithmetic import check, marks
from recipes.dedup import SYMBOLS, exact_duplicates, near_duplicates, normalised_duplicates, normalised_words
from runtime import UsageError, UserError, hash_of

ENDINGS = {"gsm8k": "#### {}", "boxed": r"The answer is $\boxed{{{}}}$."}  # by style
# With these words before "answer is", a sentence says nothing but the answer.
STOCK = {
    "",
    *"so thus therefore hence then finally consequently and the our final correct numerical".split(
    )
}
MOST_STATEMENTS = 8  # of one answer behind each other; a text with more is not written anew
KINDS = ("exact", "normalised", "near")  # of duplicates, each with those before it
STRATA: dict[str, Callable[[Problem], str]] = {
    "level": lambda problem: problem.level,
    "subject": lambda problem: problem.subject,
    # Marks <<a=b>>, or else lines.
    "steps": lambda problem: str(len(marks(problem.solution)) or len(problem.solution.split("\n"))),
    "recipe": lambda problem: str(problem.origin.get("recipe", "")),
}


@dataclass
class Step:
    """What a step made of the problems it was given: those kept, in their order, and the others counted by reason."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(
        default_factory=Counter)  # of those kept: what was changed, or should be known
    examples: dict[str, str] = field(
        default_factory=dict)  # of each reason, the id of the first problem it befell

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {len(self.problems)} of {len(self.problems) + self.dropped.total()} kept"
        ]
        for word, reasons in (("dropped", self.dropped), ("kept", self.noted)):
            for reason, count in reasons.most_common():
                lines.append(f"  {count:7d} {word}: {reason} (such as {self.examples[reason]})")
        return "\n".join(lines)


def _step(name: str, problems: list[Problem], outcomes: Iterable[tuple[Problem | None,
                                                                       str]]) -> Step:
    """A step from what became of each problem: the one kept or None, and why (empty where nothing befell it)."""
    step = Step(name)
    together = zip(problems, outcomes, strict=True)
    for problem, (kept, reason) in tqdm(together, name, len(problems),
                                        disable=not sys.stderr.isatty(), leave=False):
        if kept is not None:
            step.problems.append(kept)
        if reason:
            (step.dropped if kept is None else step.noted)[reason] += 1
            step.examples.setdefault(reason, problem.id)
    return step


def _filter(name: str, problems: list[Problem], reasons: Iterable[str]) -> Step:
    """A step that drops each problem that has a reason, and changes none."""
    return _step(
        name, problems,
        ((None if reason else p, reason) for p, reason in zip(problems, reasons, strict=True)))




# -------------------------------------------------------------------------------------------- forms


def unify(problems: list[Problem], style: str) -> Step:
    r"""Solutions that end in one form: `...\n#### 5` (style gsm8k) or `... The answer is $\boxed{5}$.` (style boxed).

    Boxes elsewhere are opened and their contents stay; sentences and lines at the end that say the answer alone are
    replaced; other text is kept as it is. Dropped is what states no answer (by a box, `####` or in words: a last number
    may be where a text was cut). What `extract_answer` finds is the same before and after, but for white space; the
    field `answer` is not touched. Twice is as good as once.
    """
    if style not in ENDINGS:
        raise UsageError(f"style {style!r} is unknown; known are {', '.join(ENDINGS)}")
    return _step(f"unify to {style}", problems, (_unified(problem, style) for problem in problems))


def _unified(problem: Problem, style: str) -> tuple[Problem | None, str]:
    if not problem.solution.strip():
        return None, "no solution"
    answer = stated_answer(problem.solution)
    if answer is None:
        return None, "states no answer"
    text = with_ending(problem.solution, answer, style)
    # Braces that are not balanced, half a box: then the new end would not be read as it was meant.
    if (extract_answer(text) or "").split() != answer.split() or with_ending(text, answer,
                                                                             style) != text:
        return None, f"its answer cannot be written in the form of {style}"
    if text == problem.solution:
        return problem, ""
    messages = (*problem.messages[:-1],
                {**problem.messages[-1], "content": text}) if problem.messages else ()
    return replace(problem, solution=text, messages=messages), "end rewritten"


def stated_answer(solution: str) -> str | None:
    """The answer that a text marks or calls so; None where there is but a last number, or nothing."""
    marked = extract_answer(solution, strict=True)
    lower = solution.translate(LOWER)
    at = max(lower.rfind("answer is"), lower.rfind("answer:"), ("\n" + solution).rfind("\nA:"))
    # Behind the words something must stand: else the text was cut there. Half a box is no answer either.
    answer = marked or (extract_answer(solution)
                        if at >= 0 and extract_answer(solution[at:]) else None)
    return answer if answer and not any(mark in answer for mark in ("####", *BOXES)) else None


def with_ending(solution: str, answer: str, style: str) -> str:
    """The solution without any form of an answer's end, and then the end of that style, once."""
    body = _without_statements(unbox(solution), answer)
    if "####" in body:  # amid the text, perhaps as a heading: the text stays
        lines = (line.replace("####", "").strip() if "####" in line else line
                 for line in body.split("\n"))
        body = _without_statements("\n".join(lines), answer)
    ending = ENDINGS[style].format(" ".join(answer.split()))
    if not body:
        return ending
    goes_on = style == "boxed" and "\n" not in body and body[
        -1] in ".!?"  # a sentence behind one line of sentences
    return body + ("\n", " ")[goes_on] + ending


def _without_statements(text: str, answer: str) -> str:
    """The text without what at its end says the answer and nothing else."""
    text = text.strip()
    for _ in range(MOST_STATEMENTS):
        shorter = _without_last_statement(text, answer).strip()
        if shorter == text:
            break
        text = shorter
    return text


def _without_last_statement(text: str, answer: str) -> str:
    """The text without a last line `#### 5`, or a last sentence that says no more than `so the answer is 5`."""
    ours = unbox(ENDINGS["boxed"].format(" ".join(answer.split())))
    if text.endswith(ours):  # also where no sentence ends before it
        return text.removesuffix(ours)
    before, newline, line = text.rpartition("\n")
    others, marked, said = line.partition("####")
    if marked and _says(said, answer):
        return before + newline + others
    lower = line.translate(LOWER)
    at, length = max((lower.rfind(marker), len(marker)) for marker in ("answer is", "answer:"))
    if at < 0 or not _says(line[at + length :], answer):
        return text
    begin = max(
        line.rfind(end, 0, at) + len(end) if end in line[:at] else 0 for end in (". ", "! ", "? "))
    stock = all(word.strip(",:*#") in STOCK for word in lower[begin:at].split())
    return before + newline + line[:begin] if stock else text


def _says(text: str, answer: str) -> bool:
    """Whether a text is the answer and nothing else but typography."""
    return normalise(text.strip(" :*").rstrip("*. ")) == normalise(answer)


def unbox(text: str) -> str:
    r"""The text with each `\boxed{5}`, `\boxed 5` and `\fbox{5}` replaced by what is in it, braces balanced."""
    begin = min((text.find(box) for box in BOXES if box in text), default=-1)
    if begin < 0:
        return text
    begin = len(text[:begin].rstrip("\\"))  # `\\boxed` is a new line and a word
    kept, opened, at, boxed = [
        text[:begin]
    ], [], begin, False  # opened: of each open brace, whether it is a box's
    while at < len(text):
        end = at + 1
        if text[at] == "\\":
            while end < len(text) and text[end].isascii() and text[end].isalpha():
                end += 1
            end = max(end, at + 2)
        token, at = text[at:end], end
        if token in BOXES:
            boxed = True
            before = kept[-1][-30:]
            name = before[len(before.rstrip(ascii_letters)) - 1 :]  # `\pi\boxed{x}` is no `\pix`
            kept += [" "] * (len(name) > 1 and name[0] == "\\")
            continue
        if boxed and token.isspace():
            continue
        if token == "{":
            opened.append(boxed)
        if not (boxed if token == "{" else token == "}" and opened and opened.pop()):
            kept.append(token)
        boxed = False
    return "".join(kept)


# ------------------------------------------------------------------------------------------ filters


def is_plain_number(answer: str) -> bool:
    """Whether an answer is an integer or a decimal, with a sign, dollar sign or commas perhaps. `3/4`, `25%`, `5 cm`
    and `2^3` are none: what stands beside the digits would have to be judged."""
    text = normalise(answer).removeprefix("-").removeprefix("+")
    whole, point, decimals = text.partition(".")
    return text.isascii() and (whole or "0" * len(decimals)).isdigit() and (not point
                                                                            or decimals.isdigit())


def keep_numeric(problems: list[Problem]) -> Step:
    """Problems whose answer is a plain number."""
    plain = (is_plain_number(problem.answer) for problem in problems)
    return _filter("plain numbers", problems,
                   ("" if good else "answer is no plain number" for good in plain))


def keep_right_arithmetic(problems: list[Problem]) -> Step:
    """Problems whose solution holds no `<<a=b>>` that is wrong or cannot be read. Those without any are kept, and
    counted."""

    def outcome(problem: Problem) -> tuple[Problem | None, str]:
        verdicts = [check(mark)
                    for mark in marks(problem.solution)] if "<<" in problem.solution else []
        if not verdicts or all(verdicts):
            return problem, "" if verdicts else "without any <<a=b>>"
        return None, "wrong arithmetic" if False in verdicts else "arithmetic that cannot be read"

    return _step("right arithmetic", problems, map(outcome, problems))


def drop_duplicates(problems: list[Problem], kind: str = "near",
                    questions_only: bool = False) -> Step:
    """The first of problems that repeat each other: `exact`, or also `normalised` (same words), or also `near`.

    Compared are question and solution together, since made data holds several solutions of one question; or with
    `questions_only` the questions, which leaves one row for each. But for exact ones, they have the same answer
    besides.
    """
    if kind not in KINDS:
        raise UsageError(f"kind of duplicates {kind!r} is unknown; known are {', '.join(KINDS)}")
    texts, reasons = [_text(problem, questions_only) for problem in problems], [""] * len(problems)
    answers = [normalise(problem.answer) for problem in problems]
    for name in KINDS[: KINDS.index(kind) + 1]:
        rest = [index for index, reason in enumerate(reasons) if not reason]
        some = [texts[index] for index in rest]
        if name == "near":
            firsts = near_duplicates(some, keys=[answers[index] for index in rest])
        else:
            find = exact_duplicates if name == "exact" else normalised_duplicates
            firsts = find(some if name == "exact" else (f"{text}\n{answers[index]}"
                                                        for text, index in zip(some, rest)))
        for index, first in zip(rest, firsts, strict=True):
            reasons[index] = f"{name} duplicate" if first >= 0 else ""
    return _filter(f"no {kind} duplicates{' of questions' * questions_only}", problems, reasons)


def _text(problem: Problem, question_only: bool = False) -> str:
    if problem.messages:
        return "\n".join(
            turn["content"] for turn in problem.messages[:-1 if question_only else None])
    return problem.question if question_only else f"{problem.question}\n{problem.solution}"


def drop_same_patterns(problems: list[Problem]) -> Step:
    """The first of problems whose questions have the same words once numbers in digits are masked."""

    def pattern(problem: Problem) -> str:
        found = normalised_words(_text(problem, True), SYMBOLS)
        return " ".join("0" if any(map(str.isdigit, word)) else word for word in found)

    firsts = exact_duplicates(map(pattern, problems))
    reasons = ("same question but for its numbers" if first >= 0 else "" for first in firsts)
    return _filter("one of a pattern", problems, reasons)


def drop_overlap(problems: list[Problem], tests: dict[str, list[str]], keep: bool = False) -> Step:
    """Problems whose question (of a chat, each turn of the user) repeats none of the test sets' (name -> questions),
    exactly or in 13 words in a row.

    With `keep` none is dropped: the names of the sets stand in `origin["overlap"]`, and are counted.
    """
    kinds_of = overlap_with(tests)

    def outcome(problem: Problem) -> tuple[Problem | None, str]:
        kinds = kinds_of(problem)
        reason = " and ".join(f"overlaps {name} ({kind})" for name, kind in kinds.items())
        if not kinds or not keep:
            return (None if kinds else problem), reason
        return replace(problem, origin={**problem.origin, "overlap": ", ".join(kinds)}), reason

    return _step(f"overlap with {', '.join(tests) or 'no test set'}", problems,
                 map(outcome, problems))


# ------------------------------------------------------------------------------------------ choices


def _rank(problem: Problem, seed: int) -> int:
    """A number below 2**64 by chance, a function of the seed and of what the row says."""
    return hash_of(f"{seed}\0{_text(problem)}")


def sample(problems: list[Problem], n: int, seed: int, by: str | None = None) -> Step:
    """n problems (all, where there are no more), in their order. With `by`, each value of that field (see STRATA) keeps
    its share, by largest remainders."""
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
    return _filter(f"sample of {n}{f' by {by}' if by else ''}, seed {seed}", problems, reasons)


def sample_by_probability(problems: list[Problem], p: float, seed: int) -> Step:
    """Each problem with probability p, whatever the others."""
    reasons = ("" if _rank(problem, seed) < p * 2**64 else "not in the sample"
               for problem in problems)
    return _filter(f"sample with probability {p}, seed {seed}", problems, reasons)


def split(problems: list[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(the rest, a `share` of the questions), rows in their order. All rows of one question (the same words) are on one
    side. Raises UserError where a side would be empty."""
    keys = [" ".join(normalised_words(_text(problem, True), SYMBOLS)) for problem in problems]
    ranked = sorted(set(keys), key=lambda key: hash_of(f"{seed}\0{key}"))
    chosen = set(ranked[: round(share * len(ranked))])
    if not 0 < len(chosen) < len(ranked):
        all_of = f"{share} of {len(ranked)} questions"
        raise UserError(
            f"a share of {all_of} leaves one side empty; give another share, or more problems")
    sides: tuple[list[Problem], list[Problem]] = [], []
    for problem, key in zip(problems, keys, strict=True):
        sides[key in chosen].append(problem)
    return sides


# ------------------------------------------------------------------------------------------ recipes


def mugglemath_15k(problems: list[Problem], seed: int,
                   tests: dict[str, list[str]]) -> tuple[list[Problem], list[Step]]:
    """Paper A's selection from one of MuggleMath's sets: at most 15,000 rows, and the steps that led there.

    The paper drops duplicates by pattern and samples by a probability to 15,000 rows a set. Of what it leaves open: a
    pattern is here a question without its numbers, since a change of numbers is the first of MuggleMath's
    augmentations, and rows that differ in nothing else teach the same; the probability 0.12, plain numbers as answers
    and the end `#### n` are those of scripts that seem to be theirs. The cut to 15,000 is one by chance, as the sample
    is. The check for overlap is ours: `tests` names the sets, and may be empty.
    """
    steps: list[Step] = []
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
        sys.exit(f"error: {str(error) or 'interrupted'}")
