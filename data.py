"""From problems to what the model is trained on: records, examples with marked targets, packed
rows.

    python data.py mini-gsm                 # shows one example, its targets in brackets
    python data.py gsm8k                    # or path/to/problems.jsonl

1. A record of any known form becomes a `Problem`.
2. A problem becomes `Example`s: token ids with a mark on those that the model learns to predict. In
   a chat, the answer and its end token are targets; in a plain document, every token but the first.
3. The examples of a micro-batch become a `PackedBatch`: one row of T tokens without padding.

Targets are positions, never ids.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import synthetic
from answers import extract_answer
from runtime import UserError, hash_of, round_up, write_text
from tokenizer import Tokenizer

HELD_OUT = 200  # at most so many problems of a file are kept for measuring
EMBEDDED_COUNTS = {"train": 4000, "test": 500}  # problems of an embedded set without a limit


@dataclass(frozen=True)
class Problem:
    """One problem, whatever file it came from; or a plain text."""

    id: str
    question: str
    solution: str  # the worked solution that training teaches; may be empty if it is only evaluated
    answer: str  # the gold answer alone
    level: str = ""
    subject: str = ""
    messages: tuple[dict, ...] = ()  # a whole chat, instead of question and solution
    text: str = ""  # a plain document, instead of all of these
    # of made data: recipe, parent id, teacher, seed, ...
    origin: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """Token ids of one document, and for each whether the model is trained to predict it."""

    ids: list[int]
    is_target: list[bool]
    name: str = ""  # the id of its problem, for messages
    weights: tuple[float, ...] = ()  # of the loss, one for each target; empty: 1 each


@dataclass(frozen=True)
class PackedBatch:
    """Documents in one row of T tokens, and the N places at which a target is predicted.

        | shared beginning | rest of document 1 | rest of document 2 | … |
    """

    ids: Tensor  # [T]; the last token of each document is left out: nothing is predicted from it
    shared: int  # tokens at the head of the row that stand there for all documents
    lengths: list[int]  # tokens of each document behind it
    predictors: Tensor  # [N or a few more] positions whose hidden states predict the targets
    targets: Tensor  # [N] the ids to be predicted there
    weights: Tensor | None  # [N] fp32; None: 1 each


# ----------------------------------------------------------------------------------------- problems


def load_problems(name: str, split: str = "train", limit: int | None = None,
                  seed: int = 0) -> list[Problem]:
    """Problems of an embedded set, of a published one, or of a JSON or JSONL file.

    An embedded set is unlimited: `limit` says how many. Of others it keeps the first. A file has no
    splits. Raises UserError that names file and line.
    """
    if name in synthetic.DATASETS:
        count = EMBEDDED_COUNTS[split] if limit is None else limit
        records = synthetic.problems(name, split, count, seed)
        return [parse_record(record, name) for record in records]
    import sources  # here: an embedded set needs none of it

    if not sources.is_known(name):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file, and no data set of that name; "
                            f"known are {known_names()}")
        return read_problems(Path(name))[:limit]
    problems = []
    # ids name set, file and line, the same on every machine
    for path in sources.fetch(name, split):
        label = name if name.startswith("hub:") else f"{name}/{path.name}"
        found = read_problems(path)
        problems += [replace(p, id=p.id.replace(str(path), label, 1)) for p in found]
    return problems[:limit]


def known_names() -> str:
    """What `load_problems` takes, for messages."""
    import sources

    return ", ".join((*synthetic.DATASETS, *sources.SETS, "hub:owner/name/path.jsonl",
                      "or a JSON or JSONL file"))


def has_split(name: str, split: str) -> bool:
    """Whether a set of that name has such a split; a file has none."""
    if name in synthetic.DATASETS:
        return True
    import sources

    return name in sources.SETS and split in sources.SETS[name].splits


def usual_test_set(name: str) -> str | None:
    """The other set that measures a training on this one, by custom; None if there is none."""
    if name in synthetic.DATASETS:
        return None
    import sources

    return sources.test_set_of(name)


def read_problems(path: Path) -> list[Problem]:
    """All problems of a JSONL file, a JSON list or a zip of JSONL files.

    Raises UserError with file:line.
    """
    problems = [parse_record(record, where) for where, record in _records(path)]
    if not problems:
        raise UserError(f"{path}: holds no problems; expected one JSON object a line, such as "
                        '{"question", "answer"}')
    return problems


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    """Records and their places. A list and lines differ in the first character."""
    if path.suffix == ".zip":
        from tools.download import zip_lines

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
            line = getattr(error, "lineno", 1)
            raise UserError(f"{path}:{line}: not valid JSON ({error})") from None
        yield from ((f"{path}, record {n}", record) for n, record in enumerate(records, 1))
        return
    # Not splitlines(): it also breaks at U+2028 and its like, which may stand inside a JSON string.
    yield from _json_lines((f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1))


def _json_lines(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict]]:
    """The records of lines that come with their place; blank lines are skipped."""
    for where, line in lines:
        if line.strip():
            try:
                yield where, _parse(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or str(error)
                raise UserError(f"{where}: not valid JSON ({reason}); "
                                "mend or remove that line") from None


def _parse(text: str) -> dict | list:
    """Parsed JSON. Its decimals keep their spelling: 0.00001 does not become 1e-05.

    Raises ValueError or RecursionError, also for valid JSON that is no usable text, and for NaN and
    Infinity, which are no JSON.
    """
    def no_number(name: str):
        raise json.JSONDecodeError(f"{name} is no number", text, _place_outside_texts(text, name))

    # A number of 5,000 digits is a plain ValueError.
    value = json.loads(text, parse_float=Written, parse_constant=no_number)
    # Half a surrogate pair (\ud800) could be written to no file.
    json.dumps(value, ensure_ascii=False).encode()
    return value


class Written(float):
    """A decimal of a JSON file, which as a text is spelled as it stands there."""

    def __new__(cls, text: str):
        value = super().__new__(cls, text)
        value.text = text
        return value

    def __str__(self) -> str:
        return self.text


def _place_outside_texts(text: str, word: str) -> int:
    """Where a word first stands in JSON outside of a text."""
    inside = escaped = False
    for at, character in enumerate(text):
        if not inside and text.startswith(word, at):
            return at
        if character == '"' and not escaped:
            inside = not inside
        escaped = character == "\\" and not escaped
    return 0


def parse_record(record: dict, where: str) -> Problem:
    """A problem from a record in the form of GSM8K, MATH, MuggleMath/MetaMath, a chat or a plain
    text.

    The keys tell the forms apart. `where` stands in messages, and is the id of a record without
    one.
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
        return _chat_problem(_check_messages(record["messages"], where), extras)
    if "question" in record and "solution" in record:  # MATH's form by another name
        record = {"problem": record["question"], **record}
    if "problem" in record and ("solution" in record or "answer" in record):
        solution = _field(record, "solution", where) if "solution" in record else ""
        stated = "answer" in record
        answer = _field(record, "answer", where) if stated else extract_answer(solution) or ""
        return Problem(question=_question(record, "problem", where), solution=solution,
                       answer=answer, **extras)
    for question_key, solution_key in (("question", "answer"), ("query", "response")):
        if question_key in record and solution_key in record:
            solution = _field(record, solution_key, where)
            return Problem(question=_question(record, question_key, where), solution=solution,
                           answer=extract_answer(solution) or "", **extras)
    if "text" in record:
        text = _field(record, "text", where)
        if not text.strip():
            raise UserError(f"{where}: text is empty; remove that record")
        return Problem(question="", solution="", answer="", text=text, **extras)
    found = ", ".join(map(str, list(record)[:6])) or "none"
    raise UserError(f"{where}: no known keys (found: {found}); expected question and answer, "
                    f"problem and solution or answer, query and response, messages, or text")


def _chat_problem(messages: tuple[dict, ...], extras: dict) -> Problem:
    asked = (turn["content"] for turn in reversed(messages) if turn["role"] == "user")
    solution = messages[-1]["content"]
    return Problem(question=next(asked, ""), solution=solution, messages=messages,
                   answer=extract_answer(solution) or "", **extras)


def _first(record: dict, *keys: str):
    """The first of these fields that is there and not null, else an empty text."""
    return next((record[key] for key in keys if record.get(key) is not None), "")


def _question(record: dict, key: str, where: str) -> str:
    """A question as text. Raises UserError for a blank one."""
    question = _field(record, key, where)
    if not question.strip():
        raise UserError(f"{where}: {key} is empty; mend or remove that record")
    return question


def _field(record: dict, key: str, where: str) -> str:
    """A field as text; numbers are allowed, since some sets write answers so."""
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {key} is {type(value).__name__}, expected text")
    return str(value)


def _check_messages(messages, where: str) -> tuple[dict, ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of turns")
    for turn in messages:
        keys = ("role", "content")
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in keys):
            raise UserError(f"{where}: each turn of messages needs a role and a content, both text")
        if turn["role"] not in ("system", "user", "assistant"):
            raise UserError(f"{where}: unknown role {turn['role']!r} in messages; "
                            "expected system, user or assistant")
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: messages must end with a turn of the assistant, which is learnt")
    return tuple(messages)


def to_record(problem: Problem) -> dict:
    """The record that `parse_record` reads back as this problem; empty fields are left out."""
    if problem.text:
        content = {"text": problem.text}
    elif problem.messages:
        content = {"messages": list(problem.messages)}
    else:
        content = {"problem": problem.question, "solution": problem.solution,
                   "answer": problem.answer}
    extras = {"level": problem.level, "subject": problem.subject, "origin": problem.origin}
    return {"id": problem.id, **content, **{key: value for key, value in extras.items() if value}}


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write a JSONL file of problems, whole or not at all."""
    lines = (json.dumps(to_record(problem), ensure_ascii=False) + "\n" for problem in problems)
    write_text(path, "".join(lines))


# ----------------------------------------------------------------------- training and test problems


def train_and_test(dataset: str, eval_dataset: str | None, seed: int,
                   measured: bool = True) -> tuple[list[Problem], list[Problem], set[str]]:
    """Training problems, test problems, and the ids of the former that repeat one of the latter.

    Without an `eval_dataset`, embedded sets have their own test split, and of a file a tenth is
    held out. Of an embedded test set, whose templates repeat, only the same question is a
    repetition.
    """
    tested_on = eval_dataset or dataset
    if eval_dataset or dataset in synthetic.DATASETS:
        problems = load_problems(dataset, "train", seed=seed)
        tests = load_problems(tested_on, "test")
    else:
        problems = load_problems(dataset)
        if not measured and all(problem.text for problem in problems):
            return problems, [], set()
        problems, tests = hold_out(problems)
    tested = {problem.question for problem in tests}
    if tested_on in synthetic.DATASETS:
        return problems, tests, {p.id for p in problems if p.question in tested}
    kinds_of = overlap_with({tested_on: tested})
    return problems, tests, {problem.id for problem in problems if kinds_of(problem)}


def overlap_with(tests: dict[str, Iterable[str]]) -> Callable[[Problem], dict[str, str]]:
    """A function that says which of the test sets (name -> questions) a problem repeats: name ->
    kind.

    The kinds are those of `Overlap.kind`. Each turn of the user of a chat is compared.
    """
    from recipes.dedup import Overlap  # here: the embedded sets do without

    overlaps = {name: Overlap(questions) for name, questions in tests.items()}

    def kinds_of(problem: Problem) -> dict[str, str]:
        turns = [turn["content"] for turn in problem.messages if turn["role"] == "user"]
        asked = turns or [problem.text or problem.question]
        found = {name: next(filter(None, map(overlap.kind, asked)), None)
                 for name, overlap in overlaps.items()}
        return {name: kind for name, kind in found.items() if kind}

    return kinds_of


def hold_out(problems: list[Problem], most: int = HELD_OUT) -> tuple[list[Problem], list[Problem]]:
    """Split into (train, test): about a tenth, at most `most`, chosen by a hash of the question
    alone.

    The same question always falls on the same side, also if it stands in the file twice. Raises
    UserError if there is only one.
    """
    # A problem without an answer cannot be graded.
    ranks = {p.question: hash_of(p.question) for p in problems if p.answer}
    if len(ranks) < 2:
        what = "one problem alone" if ranks else "texts without an answer"
        raise UserError(f"{what} cannot be held out and trained on; give more, or an "
                        f"--eval-dataset")
    test = set(sorted(ranks, key=ranks.get)[: min(most, max(1, len(ranks) // 10))])
    held = {p.question: p for p in reversed(problems) if p.question in test and p.answer}
    first = [p for p in problems if held.get(p.question) is p]
    return [p for p in problems if p.question not in test], first


# ----------------------------------------------------------------------------------------- examples


def chat_examples(tokenizer: Tokenizer, problems: list[Problem], system: str | None,
                  max_length: int) -> tuple[list[Example], int]:
    """Examples of all problems with a solution that fit `max_length` tokens, and how many do not.

    Too long examples are dropped, not cut: a solution without its end teaches the model not to
    stop.
    """
    solved = [problem for problem in problems if problem.solution or problem.messages]
    examples = [chat_example(tokenizer, problem, system) for problem in solved]
    short = [example for example in examples if len(example.ids) <= max_length]
    return short, len(examples) - len(short)


def chat_example(tokenizer: Tokenizer, problem: Problem, system: str | None) -> Example:
    """ChatML ids of a problem with its solution; the solution and its end token are the targets."""
    turns = list(problem.messages) or [{"role": "user", "content": problem.question},
                                       {"role": "assistant", "content": problem.solution}]
    ids, is_target = tokenizer.chat(turns, system)
    return Example(ids, is_target, problem.id)


def document_examples(tokenizer: Tokenizer, problems: list[Problem], system: str | None,
                      max_length: int) -> tuple[list[Example], int]:
    """Plain documents for continued pre-training: every token but the first is a target.

    A long document is cut into windows of nearly equal length, which do not overlap; none is
    dropped.
    """
    examples = []
    for problem in problems:
        ids = [*tokenizer.encode(document_text(problem)), tokenizer.end_of_text]
        windows = math.ceil(len(ids) / max_length)
        # two tokens at least, if max_length is 3 or more
        for window in np.array_split(ids, windows):
            is_target = [False] + [True] * (len(window) - 1)
            examples.append(Example(window.tolist(), is_target, problem.id))
    return examples, 0


def document_text(problem: Problem) -> str:
    """A problem as a plain text."""
    if problem.text:
        return problem.text
    if problem.messages:
        return "\n\n".join(turn["content"] for turn in problem.messages)
    return f"Question: {problem.question}\nAnswer: {problem.solution or problem.answer}"


def show(tokenizer: Tokenizer, example: Example) -> str:
    """The text of an example with its targets between ⟦ and ⟧, and a last line that counts them."""
    parts, marked = [], False
    for token, is_target in zip(example.ids, example.is_target, strict=True):
        if is_target != marked:
            parts.append("⟦" if is_target else "⟧")
            marked = is_target
        parts.append(tokenizer.show(token))
    parts.append("⟧" if marked else "")
    targets = sum(example.is_target)
    return f"{''.join(parts)}\n({len(example.ids)} tokens, {targets} of them targets)"


# ------------------------------------------------------------------------------------------ batches


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Which of `count` examples optimiser step `step` (from 0) sees.

    Each epoch has a new order, a function of (seed, epoch). Batches run on over the end of an
    epoch: every example is seen equally often, and nothing needs to be remembered to resume.
    """
    indices, first = [], step * batch_size
    for epoch in range(first // count, (first + batch_size - 1) // count + 1):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        start = max(0, first - epoch * count)
        stop = min(count, first + batch_size - epoch * count)
        indices += order[start:stop].tolist()
    return indices


def split_by_tokens(examples: list[Example], most: int) -> list[list[Example]]:
    """Micro-batches of at most `most` tokens (a longer example stands alone), of like lengths."""
    groups: list[list[Example]] = []
    tokens = 0
    for example in sorted(examples, key=lambda e: len(e.ids)):
        if not groups or tokens + len(example.ids) > most:
            groups.append([])
            tokens = 0
        groups[-1].append(example)
        tokens += len(example.ids)
    return groups


def count_targets(examples: list[Example]) -> int:
    """Target tokens of the examples; the first token cannot be one: nothing stands before it."""
    return sum(sum(example.is_target[1:]) for example in examples)


def shared_beginning(documents: list[list[int]]) -> int:
    """How many first tokens all documents have in common, at least one token of each left over."""
    if len(documents) == 1:
        return 0
    shortest = min(map(len, documents))
    # commonprefix takes any lists, not paths alone
    return max(0, min(len(os.path.commonprefix(documents)), shortest - 1))


def pack(examples: list[Example], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay documents end to end. Token t is predicted by the hidden state of token t-1 of its
    document.

    Their common beginning is computed once for all. Nothing may be predicted from it, so it ends
    before the first target. Fillers round up both numbers: tokens behind the last document, which
    nobody looks back at, and predictors without a target.
    """
    wanted = [[t for t in range(1, len(e.ids)) if e.is_target[t]] for e in examples]
    beginnings = [e.ids[: times[0] if times else -1] for e, times in zip(examples, wanted)]
    shared = shared_beginning(beginnings)
    ids, lengths, predictors, targets = examples[0].ids[:shared], [], [], []
    for example, times in zip(examples, wanted):
        start = len(ids) - shared  # of the whole document, if its beginning stood here
        ids += example.ids[shared:-1]
        lengths.append(len(example.ids) - 1 - shared)
        predictors += [start + t - 1 for t in times]
        targets += [example.ids[t] for t in times]
    filler = round_up(len(ids)) - len(ids)
    ids += [0] * filler
    lengths[-1] += filler
    predictors += [len(ids) - 1] * (round_up(len(predictors)) - len(predictors))
    tensors = (torch.tensor(n, dtype=torch.long, device=device) for n in (ids, predictors, targets))
    row, predicting, predicted = tensors
    weights = _weights(examples, wanted, device)
    return PackedBatch(row, shared, lengths, predicting, predicted, weights)


def _weights(examples: list[Example], wanted: list[list[int]],
             device: torch.device | str) -> Tensor | None:
    """The weight of each target [N]; None if all are 1."""
    if not any(example.weights for example in examples):
        return None
    weights: list[float] = []
    for example, times in zip(examples, wanted):
        own = example.weights or (1.0,) * len(times)
        if len(own) != len(times):
            raise ValueError(f"{example.name}: {len(own)} weights for {len(times)} targets")
        weights += own
    return torch.tensor(weights, dtype=torch.float32, device=device)


if __name__ == "__main__":
    try:
        first = load_problems(*sys.argv[1:2] or ["mini-gsm"], limit=1)[0]
        tokenizer = Tokenizer(Path(__file__).with_name("tiny"))
        make = document_examples if first.text else chat_examples
        made, _ = make(tokenizer, [first], None, 1024)
        print(*(show(tokenizer, example) for example in made), sep="\n")
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(f"error: {str(error) or 'interrupted'}")
