"""From problems to what the model is trained on: records, chat examples with marked targets, batches, packed rows.

    python data.py mini-gsm                 # shows one example, its targets in brackets
    python data.py gsm8k                    # or path/to/problems.jsonl

Three steps, each a function: a record of any known form becomes a `Problem`; a problem becomes an `Example`, the token ids
of a chat with a mark on those the model must learn to predict; the examples of a micro-batch become a `PackedBatch`, one row
of T tokens without padding. Targets are positions, never ids: the prompt is masked, the answer and its end token are targets.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sources
import synthetic
from answers import extract_answer
from runtime import UserError, hash_of, round_up, write_text
from tokenizer import Tokenizer
from tools.download import zip_lines

HELD_OUT = 200  # at most so many problems of a file without an evaluation file are kept for measuring
EMBEDDED_COUNTS = {"train": 4000,
                   "test": 500}  # problems of an embedded set, where no limit is given


@dataclass(frozen=True)
class Problem:
    """One problem, whatever file it came from."""

    id: str
    question: str
    solution: str  # the worked solution that training teaches; may be empty where a problem is only evaluated
    answer: str  # the gold answer alone
    level: str = ""
    subject: str = ""
    messages: tuple[dict, ...] = ()  # a whole chat, instead of question and solution
    origin: dict = field(
        default_factory=dict)  # of made data: recipe, parent id, teacher, seed, ...


@dataclass(frozen=True)
class Example:
    """Token ids of one document, and for each whether the model is trained to predict it."""

    ids: list[int]
    is_target: list[bool]
    name: str = ""  # the id of its problem, to be named in a message


@dataclass(frozen=True)
class PackedBatch:
    """What all documents begin with, then the rest of each, end to end in one row of T tokens, and the N places at
    which a target is predicted."""

    ids: Tensor  # [T] the last token of each document is left out: nothing is predicted from it
    shared: int  # tokens at the head of the row that stand there for all documents
    lengths: list[int]  # tokens of each document behind it
    predictors: Tensor  # [N or a few more] positions in the row whose hidden states predict the targets
    targets: Tensor  # [N] the ids to be predicted there


# ----------------------------------------------------------------------------------------- problems


def load_problems(name: str, split: str = "train", limit: int | None = None,
                  seed: int = 0) -> list[Problem]:
    """Problems of an embedded set (`mini-gsm`, `mini-math`), of a published one, or of a JSON or JSONL file.

    An embedded set is unlimited, so `limit` says how many; what is read gives at most its first `limit`. A file has no
    splits. Raises UserError that names file and line.
    """
    if name in synthetic.DATASETS:
        count = EMBEDDED_COUNTS[split] if limit is None else limit
        return [
            parse_record(record, name) for record in synthetic.problems(name, split, count, seed)
        ]
    if not sources.is_known(name) and not Path(name).is_file():
        raise UserError(
            f"{name}: no such file, and no data set of that name; known are {known_names()}")
    if not sources.is_known(name):
        return read_problems(Path(name))[:limit]
    problems = []
    for path in sources.fetch(name, split):  # ids tell set, file and line, on every machine alike
        label = name if name.startswith("hub:") else f"{name}/{path.name}"
        problems += [
            replace(problem, id=problem.id.replace(str(path), label, 1))
            for problem in read_problems(path)
        ]
    return problems[:limit]


def known_names() -> str:
    """What `load_problems` takes, for messages."""
    return ", ".join((*synthetic.DATASETS, *sources.SETS, "hub:owner/name/path.jsonl",
                      "or a JSON or JSONL file"))


def has_split(name: str, split: str) -> bool:
    """Whether a set of that name has such a split; a file has none."""
    return name in synthetic.DATASETS or (name in sources.SETS
                                          and split in sources.SETS[name].splits)


def read_problems(path: Path) -> list[Problem]:
    """All problems of a JSONL file, a JSON list or a zip of JSONL files. Raises UserError with file:line."""
    problems = [parse_record(record, where) for where, record in _records(path)]
    if not problems:
        raise UserError(
            f"{path}: holds no problems; expected one JSON object a line, such as {{\"question\", \"answer\"}}"
        )
    return problems


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    """Records and their places. A list and lines are told apart by the first character."""
    if path.suffix == ".zip":
        yield from _json_lines(zip_lines(path))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if text.lstrip().startswith("["):
        try:
            records = _parse(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{getattr(error, 'lineno', 1)}: not valid JSON ({error})") from None
        yield from ((f"{path}, record {number}", record)
                    for number, record in enumerate(records, 1))
        return
    # Not splitlines(): it also breaks at U+2028 and its like, which may stand inside a JSON string.
    yield from _json_lines(
        (f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1))


def _json_lines(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict]]:
    """The records of lines that come with their place, blank ones aside."""
    for where, line in lines:
        if line.strip():
            try:
                yield where, _parse(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or str(error)
                raise UserError(
                    f"{where}: not valid JSON ({reason}); mend or remove that line") from None


def _parse(text: str) -> dict | list:
    """Parsed JSON. Raises ValueError or RecursionError, also for what is valid JSON but no usable text or number."""
    value = json.loads(text)  # a number of 5,000 digits is a plain ValueError
    json.dumps(
        value,
        ensure_ascii=False).encode()  # half a surrogate pair (\ud800) could be written to no file
    return value


def parse_record(record: dict, where: str) -> Problem:
    """A problem from a record in the form of GSM8K, MATH, MuggleMath/MetaMath or a chat, told apart by its keys.

    `where` stands in the error message, and is the id of a record that has none.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(record).__name__}")
    extras = {
        "id": str(_first(record, "id", "unique_id") or where),
        "level": str(_first(record, "level")),
        "subject": str(_first(record, "subject", "type")),
        "origin": record["origin"] if isinstance(record.get("origin"), dict) else {},
    }
    if "messages" in record:
        messages = _check_messages(record["messages"], where)
        question = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        solution = messages[-1]["content"]
        return Problem(question=question, solution=solution, answer=extract_answer(solution) or "",
                       messages=messages, **extras)
    if "question" in record and "solution" in record:  # MATH's form by another name; its `answer` is no solution
        record = {"problem": record["question"], **record}
    if "problem" in record and ("solution" in record or "answer" in record):
        solution = _text(record, "solution", where) if "solution" in record else ""
        answer = _text(record, "answer",
                       where) if "answer" in record else extract_answer(solution) or ""
        return Problem(question=_text(record, "problem", where), solution=solution, answer=answer,
                       **extras)
    for question_key, solution_key in (("question", "answer"), ("query", "response")):
        if question_key in record and solution_key in record:
            solution = _text(record, solution_key, where)
            answer = extract_answer(solution) or ""
            return Problem(question=_text(record, question_key, where), solution=solution,
                           answer=answer, **extras)
    found = ", ".join(map(str, list(record)[:6])) or "none"
    raise UserError(
        f"{where}: no known keys (found: {found}); expected question and answer, problem and solution or answer, "
        "query and response, or messages")


def _first(record: dict, *keys: str):
    """The first of these fields that is there and not null, else an empty text."""
    return next((record[key] for key in keys if record.get(key) is not None), "")


def _text(record: dict, key: str, where: str) -> str:
    """A field as text; numbers are allowed, since some sets write answers so."""
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {key} is {type(value).__name__}, expected text")
    return str(value)


def _check_messages(messages, where: str) -> tuple[dict, ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of turns")
    for turn in messages:
        if not isinstance(turn, dict) or not all(
                isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(f"{where}: each turn of messages needs a role and a content, both text")
        if turn["role"] not in ("system", "user", "assistant"):
            raise UserError(
                f"{where}: unknown role {turn['role']!r} in messages; expected system, user or assistant"
            )
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: messages must end with a turn of the assistant, which is what is learnt")
    return tuple(messages)


def to_record(problem: Problem) -> dict:
    """The record that `parse_record` reads back as this problem: MATH's keys, or `messages`; empty fields left out."""
    text = {"messages": list(problem.messages)} if problem.messages else {
        "problem": problem.question, "solution": problem.solution, "answer": problem.answer}
    extras = {"level": problem.level, "subject": problem.subject, "origin": problem.origin}
    return {"id": problem.id, **text, **{key: value for key, value in extras.items() if value}}


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write a JSONL file of problems, whole or not at all."""
    write_text(
        path, "".join(
            json.dumps(to_record(problem), ensure_ascii=False) + "\n" for problem in problems))


# ----------------------------------------------------------------------------- overlap and hold-out


def overlap_with(tests: dict[str, list[str]]) -> Callable[[Problem], dict[str, str]]:
    """A function that says which of the test sets (name -> questions) a problem repeats, and how: name -> kind.

    The kinds are those of `Overlap.kind`. Of a chat, each turn of the user is compared.
    """
    from recipes.dedup import Overlap  # here: the embedded sets do without

    overlaps = {name: Overlap(questions) for name, questions in tests.items()}

    def kinds_of(problem: Problem) -> dict[str, str]:
        turns = [turn["content"] for turn in problem.messages if turn["role"] == "user"]
        asked = turns or [problem.question]
        found = {
            name: next(filter(None, map(overlap.kind, asked)), None)
            for name, overlap in overlaps.items()
        }
        return {name: kind for name, kind in found.items() if kind}

    return kinds_of


def hold_out(problems: list[Problem], most: int = HELD_OUT) -> tuple[list[Problem], list[Problem]]:
    """Split into (train, test): about a tenth, at most `most`, chosen by a hash of the question alone.

    The same question always falls on the same side, also when it stands in the file twice. Raises UserError where there
    is but one.
    """
    ranks = {p.question: hash_of(p.question)
             for p in problems if p.answer}  # one without an answer cannot be graded
    if len(ranks) < 2:
        raise UserError(
            "one problem alone cannot be held out and trained on; give more, or an --eval-dataset")
    chosen = sorted(ranks, key=ranks.get)[: min(most, max(1, len(ranks) // 10))]
    test = set(chosen)
    seen: set[str] = set()
    held = [
        p for p in problems
        if p.question in test and p.answer and not (p.question in seen or seen.add(p.question))
    ]
    return [p for p in problems if p.question not in test], held


# ----------------------------------------------------------------------------------------- examples


def chat_example(tokenizer: Tokenizer, problem: Problem, system: str | None) -> Example:
    """ChatML ids of a problem with its solution; the solution and its end token are the targets."""
    turns = list(problem.messages)
    if not turns:
        turns = [{"role": "user", "content": problem.question},
                 {"role": "assistant", "content": problem.solution}]
    ids, is_target = tokenizer.chat(turns, system)
    return Example(ids, is_target, problem.id)


def chat_examples(
    tokenizer: Tokenizer, problems: list[Problem], system: str | None, max_length: int
) -> tuple[list[Example], int]:
    """Examples of all problems that have a solution and fit into `max_length` tokens, and how many were too long.

    Too long examples are dropped, not cut: a solution without its end teaches the model not to stop.
    """
    examples = [
        chat_example(tokenizer, problem, system) for problem in problems
        if problem.solution or problem.messages
    ]
    short = [example for example in examples if len(example.ids) <= max_length]
    return short, len(examples) - len(short)


def show(tokenizer: Tokenizer, example: Example) -> str:
    """The text of an example with its targets between ⟦ and ⟧, and a last line that counts them."""
    parts, marked = [], False
    for token, is_target in zip(example.ids, example.is_target, strict=True):
        if is_target != marked:
            parts.append("⟦" if is_target else "⟧")
            marked = is_target
        parts.append(tokenizer.show(token))
    parts.append("⟧" if marked else "")
    return f"{''.join(parts)}\n({len(example.ids)} tokens, {sum(example.is_target)} of them targets)"


# ------------------------------------------------------------------------------------------ batches


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Which of `count` examples optimiser step `step` (from 0) sees: a new order each epoch, a function of (seed, epoch).

    Batches run on over the end of an epoch, so that every example is seen equally often; nothing needs to be remembered
    to resume.
    """
    indices, first = [], step * batch_size
    for epoch in range(first // count, (first + batch_size - 1) // count + 1):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        start, stop = max(0, first - epoch * count), min(count, first + batch_size - epoch * count)
        indices += order[start:stop].tolist()
    return indices


def split_by_tokens(examples: list[Example], most: int) -> list[list[Example]]:
    """Micro-batches of at most `most` tokens each (a longer example stands alone), documents of like length together."""
    groups: list[list[Example]] = []
    tokens = 0
    for example in sorted(examples, key=lambda e: len(e.ids)):
        if not groups or tokens + len(example.ids) > most:
            groups.append([])
            tokens = 0
        groups[-1].append(example)
        tokens += len(example.ids)
    return groups


def shared_beginning(documents: list[list[int]]) -> int:
    """How many first tokens the documents have in common, so that at least one token of each is left."""
    if len(documents) == 1:
        return 0
    shortest = min(map(len, documents))
    return max(0, min(len(os.path.commonprefix(documents)),
                      shortest - 1))  # which takes any lists, not paths alone


def pack(examples: list[Example], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay documents end to end. Token t is predicted by the hidden state of token t-1 of the same document.

    Their common beginning is computed once for all: nothing may be predicted from it, so it ends before the first target.
    Tokens behind the last document, which nobody looks back at, and predictors without a target round both numbers up.
    """
    wanted = [
        [t for t in range(1, len(example.ids)) if example.is_target[t]] for example in examples
    ]
    shared = shared_beginning(
        [example.ids[:times[0] if times else -1] for example, times in zip(examples, wanted)])
    ids, lengths, predictors, targets = examples[0].ids[:shared], [], [], []
    for example, times in zip(examples, wanted):
        start = len(ids) - shared  # of the whole document, were its beginning to stand here
        ids += example.ids[shared:-1]
        lengths.append(len(example.ids) - 1 - shared)
        predictors += [start + t - 1 for t in times]
        targets += [example.ids[t] for t in times]
    filler = round_up(len(ids)) - len(ids)
    ids += [0] * filler
    lengths[-1] += filler
    predictors += [len(ids) - 1] * (round_up(len(predictors)) - len(predictors))
    ids, predictors, targets = (torch.tensor(n, dtype=torch.long, device=device)
                                for n in (ids, predictors, targets))
    return PackedBatch(ids, shared, lengths, predictors, targets)


if __name__ == "__main__":
    try:
        tokenizer = Tokenizer(Path(__file__).parent / "tiny")
        print(
            show(
                tokenizer,
                chat_example(tokenizer,
                             load_problems(*sys.argv[1:2] or ["mini-gsm"], limit=1)[0], None)))
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(f"error: {str(error) or 'interrupted'}")
