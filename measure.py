"""One evaluation: generate, grade, count, in a folder that goes on after an interruption.

    python evaluate.py                             # the embedded model on the embedded problems
    python -m pytest tests/test_measure.py -v      # what an evaluation promises, one by one

1. The folder is opened and locked, and the records that are in it are read.
2. Each completion that is missing is generated, or asked of a server; its record is written when it
   ends.
3. Once all are there, the grader reads all of them again, and the figures are counted.

Its files are those that evaluate.py lists. A training measures by the same functions.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from data import Problem, prompt_of
from flags import unread_output
from generate import MAX_NEW_TOKENS, Completion, check_finite, generate, open_calculator
from model import Qwen2
from runtime import (ALONE, Alone, UserError, check_regular, clock, describe_machine, locked,
                     read_json, remove_leftovers, text_sha256, write_json, write_text)
from score import (Report, by_problem, compare_evaluations, grade_again, place, read_finished,
                   read_records, record_of, score, summarise)
from tokenizer import Tokenizer

TOLD_EVERY = 30.0  # seconds between lines of progress where no bar is shown

# recipes.teacher is imported only by the function that asks a server: a training imports this
# module, and needs no HTTP client.

# --------------------------------------------------------------------------------------- evaluation


def evaluate(model: Qwen2, tokenizer: Tokenizer, problems: list[Problem], folder: Path, *,
             dataset: str = "", system: str | None = None, shots: Sequence[Problem] = (),
             prefix: Tensor | None = None, samples: int = 1, temperature: float = 0.0,
             top_p: float = 1.0, top_k: int = 0, max_new_tokens: int = MAX_NEW_TOKENS,
             seed: int = 0, rows: int | None = None, calculator: bool = False,
             about: dict | None = None, ranks: Alone = ALONE) -> Report | None:
    """Generate `samples` completions of each problem, grade them, and write everything to `folder`.

    The records carry the name `dataset`. `shots` are worked examples: earlier turns of the chat
    before every question. `about` is what the caller knows of the model. prefix [L, 2, P, K, h].
    calculator: put in results (calculator.py); a record's `put_in` lists their [start, end) tokens.
    ranks: processes that share out the problems. The first writes, and the others return None.

    An interrupted evaluation goes on, a finished one is read back. The caller makes sure that the
    weights are the same. Raises UserError if there are no problems, if one has no gold answer, or
    if `folder` holds an evaluation with other settings.
    """
    system = tokenizer.default_system if system is None else system
    sampling = {"samples": samples, "temperature": temperature, "top_p": top_p, "top_k": top_k,
                "seed": seed, "max_new_tokens": max_new_tokens}
    settings = {"dataset": dataset, **(about or {}), "system": system, "shots": _as_settings(shots),
                **sampling, **_if_on("calculator", calculator), **check_problems(problems)}
    folder, total = Path(folder), samples * len(problems)
    prompts = [prompt_of(tokenizer, problem, system, _turns(shots)) for problem in problems]
    room = _room(model, prompts, prefix, len(shots))
    new_records = functools.partial(
        _new_records, model, tokenizer, problems, prompts, ranks, dataset=dataset, rows=rows,
        prefix=prefix, calculator=open_calculator(tokenizer, calculator), **sampling)
    if not ranks.first:
        return _help(new_records, ranks)
    with _opened(folder, settings, problems) as done:
        if (folder / "result.json").exists() and len(done) == total:
            ranks.agree(lambda: None)
            return _read_back(folder, done, TIMED)
        _begin(folder, settings, done)
        start = clock(model.head_weight.device)
        there = ranks.agree(lambda: list(map(place, done)))
        new = ranks.gather(_append(folder, new_records(there), len(done), total))
        return _finish(folder, sorted(done + new, key=place),
                       _measured(model, new, start, max_new_tokens, room))


def _new_records(model: Qwen2, tokenizer: Tokenizer, problems: list[Problem],
                 prompts: list[list[int]], ranks: Alone, there: list, *, dataset: str,
                 samples: int, **options) -> Iterator[dict]:
    """Yield the records of this process's part of the problems, without those at the places `there`
    ([problem, sample]).
    """
    skip = ranks.left_to_others(len(problems), samples)
    completions = generate(model, prompts, stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.size,
                           samples=samples, skip=skip | set(map(tuple, there)), tell=_tell,
                           **options)
    return _graded(completions, tokenizer, problems, prompts, dataset)


def _help(new_records: Callable[[list], Iterator[dict]], ranks: Alone) -> None:
    """What a process does that is not the first: its part of the records, which the first writes.
    """
    there = ranks.agree(list)  # as the first says; None: the evaluation has ended before
    if there is not None:
        ranks.gather(list(new_records(there)))


def evaluate_api(teacher, problems: list[Problem], folder: Path, *, dataset: str = "",
                 shots: Sequence[Problem] = (), samples: int = 1) -> Report:
    """As `evaluate`, of a model behind a server; `teacher` is a recipes.client.ApiTeacher.

    A problem that the server never answers is left out, and result.json counts its replies as
    `lost`. The next call asks for these alone. Raises UserError also if all replies are lost.
    """
    from recipes.teacher import completions  # here, see above

    settings = {"dataset": dataset, "api_model": teacher.name, "system": teacher.system,
                "shots": _as_settings(shots), "samples": samples, **teacher.settings,
                **check_problems(problems)}
    with _opened(folder, settings, problems) as done:
        if (folder / "result.json").exists() and len(done) == samples * len(problems):
            return _read_back(folder, done, ASKED)
        _begin(folder, settings, done)
        records, measured = completions(teacher, problems, _turns(shots), folder, samples)
        records = [{"dataset": dataset, **record} for record in records]
        return _finish(folder, records, {"max_new_tokens": teacher.max_new_tokens, **measured})


def check_problems(problems: list[Problem]) -> dict:
    """What identifies this list of problems: how many, and a hash of their questions and answers.

    Raises UserError if there are none, or if one has no gold answer.
    """
    if not problems:
        raise UserError("there are no problems to evaluate; give another --dataset"
                        " or a higher --limit")
    for problem in problems:
        if problem.text:
            raise UserError(f"{problem.id}: a plain text asks nothing; give a --dataset of "
                            "problems")
        if not problem.answer:
            raise UserError(f"{problem.id}: this problem has no gold answer to grade by;"
                            " add one or remove the problem")
    text = json.dumps([(problem.key, problem.answer) for problem in problems])
    return {"n": len(problems), "problems_sha256": text_sha256(text)}


def _if_on(name: str, on: bool) -> dict:
    """A setting that is named only if it is on: evaluations from before there was one go on."""
    return {name: True} if on else {}


def _tell(line: str) -> None:
    print(f"decoding   {line}", flush=True)


def _measured(model: Qwen2, new: list[dict], start: float, most: int, room: int) -> dict:
    """Limits, machine, and the time that new completions took since `start`; those of before an
    interruption are not in it."""
    device = model.head_weight.device
    seconds = clock(device) - start
    return {"eval_seconds": seconds, "tokens_per_second": sum(r["tokens"] for r in new) / seconds,
            "timed_completions": len(new), "max_new_tokens": most,
            "least_new_tokens": min(most, room),
            "machine": describe_machine(device, model.compute_dtype)}


def _as_settings(shots: Sequence[Problem]) -> list[dict]:
    return [{"id": shot.id, "question": shot.question, "solution": shot.solution} for shot in shots]


def _turns(shots: Sequence[Problem]) -> list[dict]:
    """Worked examples as turns of a chat: the user asks each question, the assistant solves it."""
    turns = []
    for shot in shots:  # a system prompt of its own would stand within the chat
        turns += [turn for turn in shot.asked if turn["role"] != "system"]
        turns.append({"role": "assistant", "content": shot.solution})
    return turns


def _room(model: Qwen2, prompts: list[list[int]], prefix: Tensor | None, shots: int) -> int:
    """The number of new tokens for which the model has positions after the longest prompt."""
    positions = model.config.max_position_embeddings
    front = 0 if prefix is None else prefix.shape[2]
    room = max(0, positions - front - max(map(len, prompts)))
    if shots and not room:
        raise UserError(f"{shots} worked examples fill the model's {positions} positions"
                        " and leave no room for an answer; give fewer --shots")
    return room


def _graded(completions: Iterable[Completion], tokenizer: Tokenizer, problems: list[Problem],
            prompts: list[list[int]], dataset: str) -> Iterator[dict]:
    """Yield the record of each completion as it ends."""
    hashes = [text_sha256(json.dumps(prompt)) for prompt in prompts]
    for completion in completions:
        text = tokenizer.decode(completion.ids)
        yield {"dataset": dataset, **grade(problems[completion.problem], completion, text),
               "prompt_sha256": hashes[completion.problem]}


def grade(problem: Problem, completion: Completion, text: str) -> dict:
    """The record of one completion. Raises UserError if its log-probability is not finite."""
    check_finite(completion, problem.id)
    record = record_of(problem, completion.problem, completion.sample, text, len(completion.ids),
                       completion.finish, completion.mean_log_prob)
    return record | {"put_in": completion.put_in} if completion.put_in else record


# ------------------------------------------------------------------------------------- the folder


@contextlib.contextmanager
def _opened(folder: Path, settings: dict, problems: list[Problem]) -> Iterator[list[dict]]:
    """The folder of an evaluation, locked; gives the records that are in it already.

    Raises UserError if another process has it, or if an evaluation with other settings is in it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            done = _records_so_far(folder, settings, problems)
            remove_leftovers(folder)
            yield done
    finally:
        if made:
            with contextlib.suppress(OSError):  # rmdir keeps what has been written
                folder.rmdir()


def _records_so_far(folder: Path, settings: dict, problems: list[Problem]) -> list[dict]:
    """The records that an earlier evaluation with the same settings has written to `folder`."""
    path = folder / "generations.jsonl"
    if not (folder / "args.json").exists():
        if path.exists() and path.stat().st_size:
            raise UserError(f"{path}: has no args.json beside it, and is left alone;"
                            " give another folder")
        return []
    earlier = read_json(folder / "args.json")
    # The name of the data set is only a path: the hash identifies the problems.
    other = [key for key in settings | earlier
             if key != "dataset" and earlier.get(key) != settings.get(key)]
    if other:
        differences = "; ".join(f"{key} {_brief(earlier.get(key))}, not {_brief(settings.get(key))}"
                                for key in other)
        raise UserError(f"{folder / 'args.json'}: was begun with {differences};"
                        " give another folder")
    if not path.exists():
        return []
    check_regular(path)
    done = read_records(path)
    for record in done:
        number, sample = place(record)
        fits = 0 <= number < len(problems) and 0 <= sample < settings["samples"]
        asked = (record["question"], record["gold"])
        if not fits or asked != (problems[number].question, problems[number].answer):
            raise UserError(f"{path}: the record of problem {number}, sample {sample} "
                            f"({_brief(record['id'])}) is none of this evaluation; remove its line")
    return done


# What result.json holds besides the figures that its records give: of our own model, of a server,
# of a server's cost, and what only some evaluations have.
TIMED = ("grading_seconds_per_1000", "eval_seconds", "tokens_per_second", "timed_completions")
LOSSES = ("lost", "wanted", "left_out")
ASKED = ("grading_seconds_per_1000", *LOSSES)
COST = ("requests", "retries", "seconds", "prompt_tokens", "new_tokens")
OTHERS = ("max_new_tokens", "least_new_tokens")


def _read_back(folder: Path, records: list[dict], measured: tuple[str, ...]) -> Report:
    """The report of a finished evaluation: its figures counted again, its times as they were.

    measured: TIMED of our own model, ASKED of a server, which also has a cost.
    """
    path = folder / "result.json"
    stored = read_json(path)
    names = (*measured, *(key for key in OTHERS if key in stored))
    cost = stored.get("cost")
    numbers = {name: stored.get(name) for name in names}
    if measured is ASKED:
        numbers |= {f"cost {key}": cost.get(key) if isinstance(cost, dict) else None
                    for key in COST}
    elif "cost" in stored:  # our own model has none
        numbers["cost"] = None
    _check_measured(path, numbers)
    records, _ = grade_again(records)
    kept = {key: stored[key] for key in (*names, "cost", "machine") if key in stored}
    return Report(summarise(records) | kept, records)


def _check_measured(path: Path, numbers: dict) -> None:
    """Raise UserError for a value of result.json that is no count and no time: it is printed."""
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 <= value < 2**63:
            raise UserError(f"{path}: {name} is {_brief(value)}, not what was measured; remove "
                            "this file, and the command that made it counts again")


def _brief(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _begin(folder: Path, settings: dict, done: list[dict]) -> None:
    """Write the settings, and the records so far without a half line that a crash has left."""
    _write_records(folder, done)
    write_json(folder / "args.json", settings)


def _append(folder: Path, records: Iterable[dict], done: int, total: int) -> list[dict]:
    """Append each record to generations.jsonl as it comes; returns all of them."""
    written, told = [], time.monotonic()
    bar = tqdm(total=total, initial=done, desc="evaluate", leave=False,
               disable=not sys.stderr.isatty())
    with bar, open(folder / "generations.jsonl", "a", encoding="utf-8") as file:
        for record in records:
            written.append(record)
            file.write(as_line(record))
            file.flush()
            bar.update()
            if bar.disable and time.monotonic() - told >= TOLD_EVERY:
                told = time.monotonic()
                with unread_output(sys.stderr):
                    print(f"evaluate   {done + len(written)} of {total} completions",
                          file=sys.stderr, flush=True)
    return written


def _write_records(folder: Path, records: list[dict]) -> None:
    write_text(folder / "generations.jsonl", "".join(map(as_line, records)))


def as_line(record: dict) -> str:
    """A record as a line of JSON."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, of a foreign file: it stays an escape
        line = json.dumps(record, allow_nan=False)
    return line + "\n"


def _finish(folder: Path, records: list[dict], measured: dict) -> Report:
    """Grade all records once more, write and count them.

    So one version of the grader decides all verdicts of an interrupted evaluation, and is timed.
    """
    records, seconds = grade_again(records)
    _write_records(folder, records)
    result = summarise(records) | {"grading_seconds_per_1000": seconds} | measured
    write_json(folder / "result.json", result)
    return Report(result, records)


def beside_records(home: Path) -> dict:
    """What the result.json of an evaluation says of its completions, and they do not: how long they
    may be, the replies that a server has lost, and the rows that are left out. Empty without one.
    """
    path = home / "result.json"
    stored = read_json(path) if path.exists() else {}
    names = [key for key in OTHERS if key in stored] + [*LOSSES] * ("lost" in stored)
    _check_measured(path, {name: stored.get(name) for name in names})
    return {key: stored[key] for key in (*names, "rows_left_out") if key in stored}


def regrade(source: Path, folder: Path) -> Report:
    """Grade and count again the completions of the evaluation `source`, a folder or its records.

    `folder` becomes an evaluation like any other, and `source` does not change. The times and the
    machine of the generation stay in the result.json of `source`.
    """
    records = read_finished(source)
    home = source if source.is_dir() else source.parent
    args = read_json(home / "args.json") if (home / "args.json").exists() else {}
    kept = beside_records(home)
    write_json(folder / "args.json", args | {"regraded_from": str(source)})
    return _finish(folder, records, kept)


def beside_greedy(report: Report, greedy: Report, folder: Path) -> Report:
    """The report of several samples with a greedy one beside it, also in result.json."""
    return with_more(report, folder, greedy=greedy_part(report, greedy))


def greedy_part(report: Report, greedy: Report) -> dict:
    """The figures of a greedy evaluation beside several samples, and what their majority changes.
    """
    change = compare_evaluations(greedy.records, report.records)
    del change["changed"]
    part = score(by_problem(greedy.records)) | {"majority": change}
    if greedy.result.get("lost"):
        part["lost"] = greedy.result["lost"]
    return part


def with_more(report: Report, folder: Path, **more) -> Report:
    """The report with more in its result, also in the folder's result.json."""
    result = report.result | more
    write_json(folder / "result.json", result)
    return Report(result, report.records)
