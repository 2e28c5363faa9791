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

import contextlib
import hashlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import numpy as np
import torch
from torch import Tensor

import synthetic
from answers import extract_answer
from flags import did_you_mean, run_command
from runtime import (UsageError, UserError, check_regular, hash_of, printable, round_up, to_device,
                     write_text)
from tokenizer import MARKERS, Tokenizer

HELD_OUT = 200  # at most so many problems of a file are kept for measuring
EMBEDDED_COUNTS = {"train": 4000, "test": 500}  # problems of an embedded set without a limit


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, whatever file it came from; or a plain text."""

    id: str
    question: str  # of a chat: all that user and assistant said before the last answer
    solution: str  # the worked solution that training teaches; may be empty if it is only evaluated
    answer: str  # the gold answer alone
    level: str = ""
    subject: str = ""
    # A whole chat: {"role", "content"} each, and "train" false if a turn is not learnt.
    messages: tuple[dict, ...] = ()
    text: str = ""  # a plain document, instead of all of these
    # of made data: recipe, parent id, teacher, seed, ...
    origin: dict = field(default_factory=dict)

    @property
    def asked(self) -> list[dict]:
        """The turns before the last answer: what a model is given that is to answer."""
        if not self.messages:
            return [{"role": "user", "content": self.question}]
        ends = self.messages[-1]["role"] == "assistant"
        return list(self.messages[:-1] if ends else self.messages)

    @property
    def key(self) -> str:
        """What tells problems apart: all that is asked, the system prompt of a chat included."""
        systems = [turn["content"] for turn in self.messages if turn["role"] == "system"]
        return "\0".join((*systems, self.text or self.question))


@dataclass(frozen=True)
class Example:
    """Token ids of one document, and for each whether the model is trained to predict it."""

    ids: list[int]
    is_target: list[bool]
    name: str = ""  # the id of its problem, for messages
    weights: tuple[float, ...] = ()  # of the loss, one for each target; empty: 1 each

    @property
    def longest(self) -> int:
        """Tokens of its longest document; it has one, unless a subclass has more."""
        return len(self.ids)

    @property
    def gold(self) -> str | None:
        """The final answer that an objective compares with; None if it compares with none."""
        return None


@dataclass(frozen=True)
class PackedBatch:
    """Documents in one row of T tokens, and the N places at which a target is predicted.

        | shared beginning | rest of document 1 | rest of document 2 | … |
    """

    ids: Tensor  # [T]; the last token of each document is left out: nothing is predicted from it
    shared: int  # tokens at the head of the row that stand there for all documents
    lengths: list[int]  # tokens of each document behind it
    predictors: Tensor  # [N or a few more] the hidden states at these places predict the targets
    targets: Tensor  # [N] the ids to be predicted there
    weights: Tensor | None  # [N] fp32; None: 1 each


# ----------------------------------------------------------------------------------------- problems


def load_problems(name: str, split: str = "train", limit: int | None = None, seed: int = 0,
                  columns: dict[str, str] | None = None,
                  left_out: Counter[str] | None = None) -> list[Problem]:
    """Problems of an embedded set, of a published one, of a file, or of several, with commas.

    An embedded set is unlimited: `limit` says how many. Of others it keeps the first. A file has no
    splits. `columns` gives a file's column for each of our names (see forms.py). Rows that are
    marked as not to be used are counted in `left_out`, by reason. Raises UserError that names file
    and line.
    """
    names = set_names(name)
    if len(names) > 1:
        parts = (load_problems(part, split, limit, seed, columns, left_out) for part in names)
        return [problem for part in parts for problem in part][:limit]
    if name in synthetic.DATASETS:
        count = EMBEDDED_COUNTS[split] if limit is None else limit
        return [_embedded(record) for record in synthetic.problems(name, split, count, seed)]
    import sources  # here: an embedded set needs none of it

    if not sources.is_known(name):
        if not Path(name).is_file():
            files = map(str, Path(name).parent.glob("*.json*"))
            sets = (*synthetic.DATASETS, *sources.SETS, *files)
            raise UserError(f"{name}: no such file, and no data set of that name"
                            f"{did_you_mean(name, sets)}; known are {known_names()}")
        return read_problems(Path(name), limit, columns, left_out)
    problems = []
    # ids name set, file and line, the same on every machine
    for path in sources.fetch(name, split):
        label = name if name.startswith("hub:") else f"{name}/{path.name}"
        found = read_problems(path, limit, columns, left_out)
        problems += [replace(p, id=p.id.replace(str(path), label, 1)) for p in found]
    return problems[:limit]


def _embedded(record: dict) -> Problem:
    """The problem of a record that synthetic.py makes."""
    level, subject = str(record.get("level", "")), record.get("subject", "")
    if "text" in record:
        return Problem(record["id"], "", "", "", level, subject, text=record["text"])
    if "problem" in record:
        return Problem(record["id"], record["problem"], record["solution"], record["answer"], level,
                       subject)
    gold = extract_answer(record["answer"], strict=True)
    return Problem(record["id"], record["question"], record["answer"], gold, level, subject)


def set_names(name: str) -> list[str]:
    """The sets that a flag names, with commas. A file may have a comma in its own name."""
    parts = [part.strip() for part in name.split(",") if part.strip()]
    return parts if len(parts) > 1 and not Path(name).exists() else [name]


def short_name(name: str) -> str:
    """A set's name for a folder: `gsm8k`, `rows` of data/rows.jsonl.gz, `gsm8k+2` of three sets."""
    names = set_names(name)
    stem = Path(names[0]).name.removesuffix(".gz")
    stem = stem.rpartition(".")[0] or stem
    return stem + f"+{len(names) - 1}" * (len(names) > 1)


def is_embedded(name: str) -> bool:
    """Whether a flag names embedded sets alone: they are endless, and have a test split."""
    return all(part in synthetic.DATASETS for part in set_names(name))


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
    """The other set on which a training on this one is usually measured; None if there is none.

    For several sets, it is the one that they all have in common.
    """
    names = set_names(name)
    if any(part in synthetic.DATASETS for part in names):
        return None
    import sources

    usual = {sources.test_set_of(part) for part in names}
    return usual.pop() if len(usual) == 1 else None


def read_problems(path: Path, limit: int | None = None, columns: dict[str, str] | None = None,
                  left_out: Counter[str] | None = None) -> list[Problem]:
    """The first `limit` problems of a file, or all; see records.py and forms.py for what is read.

    Raises UserError with file:line.
    """
    import forms  # here: an embedded set needs neither
    import records

    problems: list[Problem] = []
    with contextlib.closing(records.read_records(path)) as rows:
        for where, record in rows:
            if limit is not None and len(problems) >= limit:
                break
            try:
                problems.append(forms.parse(record, where, columns))
            except forms.LeftOut as reason:
                if left_out is not None:
                    left_out[str(reason)] += 1
    if not problems:
        raise UserError(f"{path}: holds no problems; expected one JSON object a line, such as "
                        '{"question", "answer"}')
    return problems


def read_columns(text: str | None) -> dict[str, str] | None:
    """What --columns says: the column of each of our names. Raises UsageError."""
    if text is None:
        return None
    import forms

    return forms.read_columns(text)


def parse_record(record: dict, where: str) -> Problem:
    """The problem of a record of any known form; see forms.py."""
    import forms

    return forms.parse(record, where)


def spells_marker(problem: Problem) -> bool:
    """Whether a text of the problem spells a marker of Qwen's chats, such as <|im_end|>."""
    texts = [problem.question, problem.solution, problem.text,
             *(turn["content"] for turn in problem.messages)]
    return any(marker in text for text in texts for marker in MARKERS)


def to_record(problem: Problem) -> dict:
    """The record that `parse_record` reads back as this problem; empty fields are left out."""
    if problem.text:
        content = {"text": problem.text}
    elif problem.messages:
        from forms import gold_of  # here: an embedded set needs none of it

        content = {"messages": list(problem.messages)}
        if not problem.solution or problem.answer != gold_of(problem.solution):
            content["answer"] = problem.answer
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


def train_and_test(dataset: str, eval_dataset: str | None, seed: int, measured: bool = True,
                   columns: dict[str, str] | None = None,
                   test_columns: dict[str, str] | None = None,
                   left_out: Counter[str] | None = None
                   ) -> tuple[list[Problem], list[Problem], set[str]]:
    """Training problems, test problems, and the keys of the former that repeat one of the latter.

    Without an `eval_dataset`, embedded sets have their own test split, and of a file a tenth is
    held out. Embedded sets repeat their templates: there, only the same question is a repetition.
    `columns` are those of `dataset`, `test_columns` those of `eval_dataset`; `left_out` counts rows
    by reason.
    """
    left_out = Counter() if left_out is None else left_out
    tested_on = eval_dataset or dataset
    made = is_embedded(tested_on)
    problems = load_problems(dataset, "train", None, seed, columns, left_out)
    if eval_dataset or made:
        of_tests: Counter[str] = Counter()
        tests = load_problems(tested_on, "test", columns=test_columns, left_out=of_tests)
        left_out.update({f"of the test set, {reason}": of_tests[reason] for reason in of_tests})
    else:
        if not measured and all(problem.text for problem in problems):
            return problems, [], set()
        whole = len(problems)
        problems, tests = hold_out(problems)
        copies = whole - len(problems) - len(tests)
        count(left_out, "the same question as a held-out problem", copies)
    tested = {problem.key for problem in tests}
    if made:
        return problems, tests, {p.key for p in problems if p.key in tested}
    kinds_of = overlap_with({tested_on: [problem.question for problem in tests]})
    return problems, tests, {problem.key for problem in problems if kinds_of(problem)}


def count(left_out: Counter[str], reason: str, rows: int) -> None:
    """Add to the rows left out for that reason, if there are any."""
    if rows > 0:
        left_out[reason] += rows


def left_out_line(left_out: Counter[str]) -> str:
    """How many rows are left out, and why."""
    reasons = ", ".join(f"{rows} {reason}" for reason, rows in left_out.most_common())
    return f"left out   {left_out.total()} rows: {reasons}"


def overlap_with(tests: dict[str, Iterable[str]]) -> Callable[[Problem], dict[str, str]]:
    """A function that says which of the test sets (name -> questions) a problem repeats: name ->
    kind.

    The kinds are those of `Overlap.kind`. Of a chat, all that is asked and each turn of the user
    are compared.
    """
    from recipes.dedup import Overlap  # here: the embedded sets do without

    overlaps = {name: Overlap(questions) for name, questions in tests.items()}

    def kinds_of(problem: Problem) -> dict[str, str]:
        turns = [turn["content"] for turn in problem.messages if turn["role"] == "user"]
        asked = dict.fromkeys([problem.text or problem.question, *turns])
        found = {name: next(filter(None, map(overlap.kind, asked)), None)
                 for name, overlap in overlaps.items()}
        return {name: kind for name, kind in found.items() if kind}

    return kinds_of


def hold_out(problems: list[Problem], most: int = HELD_OUT) -> tuple[list[Problem], list[Problem]]:
    """Split into (train, test): about a tenth, at most `most`, chosen by a hash of what is asked.

    The same question always falls on the same side, also if it stands in the file twice. Raises
    UserError if there is only one.
    """
    # A problem without an answer cannot be graded.
    ranks = {p.key: hash_of(p.key) for p in problems if p.answer}
    if len(ranks) < 2:
        what = "one problem alone" if ranks else "texts without an answer"
        raise UserError(f"{what} cannot be held out and trained on; give more, or an "
                        f"--eval-dataset")
    test = set(sorted(ranks, key=ranks.get)[: min(most, max(1, len(ranks) // 10))])
    held = {p.key: p for p in reversed(problems) if p.key in test and p.answer}
    first = [p for p in problems if held.get(p.key) is p]
    return [p for p in problems if p.key not in test], first


# ------------------------------------------------------------------------- what a run keeps of them


def keep_data(folder: Path, problems: list[Problem], tests: list[Problem],
              earlier: Path | None = None) -> None:
    """Write `data/test.jsonl`, the test problems, and `data/trained.txt`, a hash a line of what
    each training problem asks. If this run starts at the end of the run `earlier`, the hashes of
    that one are added."""
    keys = trained_on(earlier) if earlier else set()
    keys |= {hash_of(problem.key) for problem in problems}
    write_text(folder / "data" / "trained.txt", "".join(f"{key:016x}\n" for key in sorted(keys)))
    if tests:
        write_problems(folder / "data" / "test.jsonl", tests)


def trained_on(run: Path) -> set[int]:
    """The hashes of what a run was trained on; none of a run that does not say it."""
    path = Path(run) / "data" / "trained.txt"
    if not path.exists():
        return set()
    check_regular(path)
    try:
        with open(path, encoding="ascii") as file:  # no line of ours is longer than 17
            return {int(line, 16) for line in iter(lambda: file.readline(64), "")}
    except ValueError:
        raise UserError(f"{path}: not a hash a line; remove this file (then no warning comes for "
                        "problems that were trained on)") from None


# ----------------------------------------------------------------------------------------- examples


def asked_turns(problem: Problem, shots: Sequence[dict] = ()) -> list[dict]:
    """The turns of a prompt: the chat's own system prompt, worked examples, and what is asked."""
    turns = problem.asked
    own = turns[0]["role"] == "system"
    return [*turns[:own], *shots, *turns[own:]]


def prompt_of(tokenizer: Tokenizer, problem: Problem, system: str | None,
              shots: Sequence[dict] = ()) -> list[int]:
    """The ids of a problem up to the start of its answer. A chat's own system prompt wins."""
    *earlier, last = asked_turns(problem, shots)
    return tokenizer.prompt(last["content"], system, earlier)


def chat_examples(tokenizer: Tokenizer, problems: list[Problem], system: str | None,
                  max_length: int, train_on: str = "all") -> tuple[list[Example], int]:
    """Examples of all problems that have something to learn and fit `max_length` tokens, and how
    many do not fit.

    Too long examples are dropped, not cut: a solution without its end teaches the model not to
    stop.
    """
    examples = [chat_example(tokenizer, problem, system, train_on) for problem in problems
                if problem.solution.strip() or problem.messages]
    taught = [example for example in examples if any(example.is_target)]
    short = [example for example in taught if len(example.ids) <= max_length]
    return short, len(taught) - len(short)


def chat_example(tokenizer: Tokenizer, problem: Problem, system: str | None,
                 train_on: str = "all") -> Example:
    """ChatML ids of a problem with its solution; the solution and its end token are the targets.

    In a chat, all turns of the assistant are targets, or with `train_on` "last" only the last one.
    Turns with "train" false are none.
    """
    turns = list(problem.messages) or [{"role": "user", "content": problem.question},
                                       {"role": "assistant", "content": problem.solution}]
    if train_on == "last":
        turns = [*({**turn, "train": False} for turn in turns[:-1]), turns[-1]]
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
    # a question may hold anything, and this goes to a terminal
    return printable(f"{''.join(parts)}\n({len(example.ids)} tokens, {targets} of them targets)")


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


def describe_examples(examples: list[Example]) -> dict:
    """How many training examples there are, a hash of their ids and targets, and one of what else
    they are trained for: their weights and final answers."""
    texts, aims = hashlib.sha256(), hashlib.sha256()
    for example in examples:
        for row in (example.ids, example.is_target):
            texts.update(np.array([len(row), *row], np.int64).tobytes())
        aims.update(json.dumps([example.gold, example.weights]).encode())
    return {"examples": len(examples), "sha256": texts.hexdigest(), "aims": aims.hexdigest()}


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

    Their common beginning is computed once for all. It ends before the first target, since nothing
    is predicted from it. Fillers round up both numbers: tokens behind the last document, which no
    other token sees, and predictors without a target.
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
    row, predicting, predicted = (to_device(torch.tensor(n, dtype=torch.long), device)
                                  for n in (ids, predictors, targets))
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
    return to_device(torch.tensor(weights, dtype=torch.float32), device)


def main(argv: list[str]) -> None:
    """`python data.py SET`: show the first example."""
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(argv) > 1:
        raise UsageError("usage: python data.py [SET_OR_FILE]")
    first = load_problems(*argv or ["mini-gsm"], limit=1)[0]
    tokenizer = Tokenizer(Path(__file__).with_name("tiny"))
    make = document_examples if first.text else chat_examples
    made, _ = make(tokenizer, [first], None, 1024)
    print(*(show(tokenizer, example) for example in made), sep="\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
