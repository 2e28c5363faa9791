"""Measure a model on problems: generate, grade, count. Every completion is kept for an audit.

    python evaluate.py                               # the embedded model on the embedded problems
    python evaluate.py --run runs/NAME               # a run on its own test problems
    python evaluate.py --run runs/NAME --dataset mini-math --samples 8 --temperature 0.7
    python evaluate.py --model Qwen/Qwen2.5-0.5B --dataset test.jsonl --shots 4 \\
        --shots-dataset train.jsonl
    python evaluate.py --read runs/NAME/evals/after --versus runs/NAME/evals/before # what changed
    python evaluate.py --regrade runs/NAME/evals/after       # grade its completions again
    python evaluate.py --api-base http://HOST:8000/v1 --api-model NAME    # a model behind a server

An evaluation is a folder:

    runs/eval-mini-gsm-1/
        args.json            the settings
        generations.jsonl    one record a completion, written when it ends
        replies.jsonl        the raw replies of a server
        result.json          the figures; score.py says how they are counted
        greedy/              beside several samples: an evaluation of one greedy completion each

Decoding is greedy unless a temperature is given. The greedy evaluation beside several samples shows
what they bring: a vote that does not beat it has gained nothing.

After Ctrl-C or a crash, the same command with --output-dir FOLDER goes on to the same texts; if a
setting differs, it refuses. --regrade makes a new folder and leaves the old one as it is.
"""

import contextlib
import functools
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from checkpoint import TOY
from data import (Problem, has_split, is_embedded, load_problems, prompt_of, read_columns,
                  short_name, trained_on)
from flags import flag, given_flags, joined, run_command, unread_output
from generate import (MAX_NEW_TOKENS, ApiFlags, Completion, SamplingFlags, generate, load_asked,
                      open_calculator, with_budget)
from methods import load_run, read_run, read_settings
from model import Qwen2
from runtime import (ALONE, Alone, UsageError, UserError, check_regular, clock, describe_machine,
                     dtype_name, hash_of, locked, new_directory, one_line, pick_device, pick_dtype,
                     read_json, remove_leftovers, text_sha256, write_json, write_text)
from score import (Report, by_problem, compare_evaluations, grade_again, place, read_finished,
                   read_records, record_of, report_lines, score, summarise, versus_lines)
from tokenizer import Tokenizer

TOLD_EVERY = 30.0  # seconds between lines of progress where no bar is shown

# recipes.client and recipes.teacher are imported only by the functions that ask a server: a
# training imports this module, and needs no HTTP client.

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
            return _read_back(folder, done)
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
            return _read_back(folder, done)
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
    if not math.isfinite(completion.mean_log_prob):
        raise UserError(f"{problem.id}: the model gives no finite probabilities;"
                        " are its weights NaN or infinite?")
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


# What result.json holds besides the figures that its records give: numbers, of our own model or of
# a server; and, at times, what else there is to say.
TIMED = ("grading_seconds_per_1000", "eval_seconds", "tokens_per_second", "timed_completions")
ASKED = ("grading_seconds_per_1000", "lost", "wanted", "left_out")
COST = ("requests", "retries", "seconds", "prompt_tokens", "new_tokens")
OTHERS = ("max_new_tokens", "least_new_tokens")


def _read_back(folder: Path, records: list[dict]) -> Report:
    """The report of a finished evaluation: its figures counted again, its times as they were."""
    path = folder / "result.json"
    stored = read_json(path)
    names = (*(ASKED if "cost" in stored else TIMED), *(key for key in OTHERS if key in stored))
    cost = stored.get("cost")
    numbers = {name: stored.get(name) for name in names}
    if "cost" in stored:
        numbers |= {f"cost {key}": cost.get(key) if isinstance(cost, dict) else None
                    for key in COST}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 <= value < 2**63:
            raise UserError(f"{path}: {name} is {_brief(value)}, not what was measured; remove "
                            "this file, and the same command counts again")
    records, _ = grade_again(records)
    kept = {key: stored[key] for key in (*names, "cost", "machine") if key in stored}
    return Report(summarise(records) | kept, records)


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
            file.write(_line(record))
            file.flush()
            bar.update()
            if bar.disable and time.monotonic() - told >= TOLD_EVERY:
                told = time.monotonic()
                with unread_output(sys.stderr):
                    print(f"evaluate   {done + len(written)} of {total} completions",
                          file=sys.stderr, flush=True)
    return written


def _write_records(folder: Path, records: list[dict]) -> None:
    write_text(folder / "generations.jsonl", "".join(map(_line, records)))


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _finish(folder: Path, records: list[dict], measured: dict) -> Report:
    """Grade all records once more, write and count them.

    So one version of the grader decides all verdicts of an interrupted evaluation, and is timed.
    """
    records, seconds = grade_again(records)
    _write_records(folder, records)
    result = summarise(records) | {"grading_seconds_per_1000": seconds} | measured
    write_json(folder / "result.json", result)
    return Report(result, records)


def regrade(source: Path, folder: Path) -> Report:
    """Grade and count again the completions of the evaluation `source`, a folder or its records.

    `folder` becomes an evaluation like any other, and `source` does not change. The times and the
    machine of the generation stay in the result.json of `source`.
    """
    records = read_finished(source)
    home = source if source.is_dir() else source.parent
    args = read_json(home / "args.json") if (home / "args.json").exists() else {}
    result = read_json(home / "result.json") if (home / "result.json").exists() else {}
    write_json(folder / "args.json", args | {"regraded_from": str(source)})
    kept = (*OTHERS, "lost", "wanted", "left_out", "rows_left_out")
    return _finish(folder, records, {key: result[key] for key in kept if key in result})


def beside_greedy(report: Report, greedy: Report, folder: Path) -> Report:
    """The report of several samples with a greedy one beside it, and what the majority changes."""
    change = compare_evaluations(greedy.records, report.records)
    del change["changed"]
    part = score(by_problem(greedy.records)) | {"majority": change}
    if greedy.result.get("lost"):
        part["lost"] = greedy.result["lost"]
    return _with(report, folder, greedy=part)


def beside_verifier(report: Report, flags: "Flags", folder: Path) -> Report:
    """The report of several samples with what a verifier's scores choose; writes scores.jsonl."""
    import verifier  # here: other evaluations need none of it

    device = pick_device(flags.device)
    run = load_run(Path(flags.verifier), device, pick_dtype(flags.dtype, device))
    figures, scores = verifier.measure(run, report.records, flags.most_clusters)
    rows = [{"problem": record["problem"], "sample": record["sample"], "score": score}
            for record, score in zip(report.records, scores)]
    write_text(folder / "scores.jsonl", "".join(map(_line, rows)))
    return _with(report, folder, verifier={"run": flags.verifier, **figures})


def _with(report: Report, folder: Path, **more) -> Report:
    """The report with more in its result, also in the folder's result.json."""
    result = report.result | more
    write_json(folder / "result.json", result)
    return Report(result, report.records)


# ------------------------------------------------------------------------------------------ command


@dataclass(kw_only=True)
class Flags(ApiFlags, SamplingFlags):
    """The flags of `python evaluate.py`."""

    dataset: str | None = flag(None, "problems: a set's name (its test split; python sources.py "
                               "lists them), or a file; several with commas (default: the run's "
                               "own test problems, else mini-gsm)", group="problems and results")
    columns: str | None = flag(None, "columns of the file of --dataset, if they have other names: "
                               "question=prompt,answer=target")
    split: str = flag("test", "part of a named set: test, or train (samples for a verifier)",
                      choices=("test", "train"))
    verifier: str | None = flag(
        None, "run directory of --objective verifier, whose scores choose among the --samples")
    most_clusters: int = flag(8, "K, the clusters of equal answers that RR.MajK and W.RR.MajK read",
                              least=1)
    limit: int | None = flag(
        None, "number of problems (default: 500 of an embedded set, all of a file)", least=1)
    shots: int = flag(0, "worked training examples, drawn by --seed, before each question as turns"
                      " of the chat; for base models", least=0)
    shots_dataset: str | None = flag(
        None, "the file or set of the --shots (default: the set's own training split)")
    read: str | None = flag(
        None, "a finished evaluation's folder, to print its report again; with --versus, to compare"
        " two without a model")
    versus: str | None = flag(
        None, "another evaluation's folder, to compare with problem by problem")
    regrade: str | None = flag(
        None, "a finished evaluation's folder or generations.jsonl, to grade and count again"
        " without a model, into a new folder beside it")
    output_dir: str | None = flag(
        None, "folder of the results; an unfinished evaluation there goes on"
        " (default: evals/DATASET-N in the run, else runs/eval-DATASET-N)")


def worked_examples(flags: Flags, problems: list[Problem]) -> list[Problem]:
    """The worked examples that --shots asks for: drawn by the seed, and none is in `problems`."""
    name = flags.shots_dataset or (flags.dataset if has_split(flags.dataset, "train") else None)
    if not flags.shots:
        if flags.shots_dataset:
            raise UsageError("--shots-dataset without --shots: say how many problems to show")
        return []
    if name is None:
        raise UsageError(f"--shots {flags.shots}: {flags.dataset} has no training split;"
                         " name a file of worked training problems with --shots-dataset")
    asked = {problem.key for problem in problems}
    pool = {problem.key: problem for problem in load_problems(name, "train")
            if problem.solution and problem.key not in asked}
    if len(pool) < flags.shots:
        raise UserError(f"{name}: has {len(pool)} worked problems that are not evaluated,"
                        f" --shots {flags.shots} needs more")
    chosen = np.random.default_rng(flags.seed).choice(len(pool), flags.shots, replace=False)
    return [list(pool.values())[index] for index in chosen]


def with_test_set(flags: Flags) -> tuple[Flags, Path | None]:
    """The flags with a name for --dataset; and, if none is given, the file in which the run keeps
    its test problems."""
    if flags.dataset:
        return flags, None
    if not flags.run:
        return replace(flags, dataset="mini-gsm"), None
    args, _ = read_settings(Path(flags.run))
    name = args.get("eval_dataset") or args.get("dataset")
    if not isinstance(name, str) or not name.isprintable():
        raise UserError(f"{flags.run}/args.json: dataset is no name; give --dataset")
    kept = Path(flags.run) / "data" / "test.jsonl"
    return replace(flags, dataset=name), kept if kept.exists() and flags.split == "test" else None


def print_notes(flags: Flags, problems: list[Problem], left_out: Counter[str]) -> None:
    """Rows that are left out, and a warning if the run was trained on some of the problems."""
    if left_out:
        reasons = ", ".join(f"{rows} {reason}" for reason, rows in left_out.most_common())
        print(f"left out   {left_out.total()} rows: {reasons}", flush=True)
    hashes = trained_on(Path(flags.run)) if flags.run else set()
    known = sum(hash_of(problem.key) in hashes for problem in problems)
    if known:
        print(f"warning    {known} of the {len(problems)} problems were trained on by this run: "
              "the figures say little about new ones", flush=True)


def problems_asked(flags: Flags, own: Path | None) -> tuple[list[Problem], Counter[str]]:
    """The problems of --dataset or of the run's `own` file, checked before a model is loaded and a
    folder is made; and how many rows are left out, by reason."""
    if flags.verifier and flags.samples == 1:
        raise UsageError("--verifier chooses among several samples: give --samples")
    if flags.verifier:
        read_run(Path(flags.verifier))  # an error is better before hours of generation
    left_out: Counter[str] = Counter()
    if own:
        problems = load_problems(str(own), limit=flags.limit)
        check_problems(problems)
        return problems, left_out
    problems = load_problems(flags.dataset, flags.split, flags.limit,
                             columns=read_columns(flags.columns), left_out=left_out)
    check_problems(problems)
    return problems, left_out


def evaluate_asked(flags: Flags, argv: list[str], ranks: Alone) -> tuple[Report | None, Path]:
    """Evaluate the model, run or server that the flags name. Returns the report and its folder; of
    several processes the first alone has a report.
    """
    with ranks.in_turn():
        flags, own = with_test_set(with_budget(flags))
        problems, left_out = problems_asked(flags, own)
        shots = worked_examples(flags, problems)
        run, teacher = _open_asked(flags, ranks)
    folder = Path(ranks.agree(lambda: str(_output_folder(flags))))
    print(*_heading(flags, len(problems), len(shots), run, teacher), sep="\n", flush=True)
    print_notes(flags, problems, left_out)

    def once(part: Path, sampling: dict) -> Report | None:
        """One evaluation into `part`; without `sampling` it is greedy."""
        if teacher:
            asked = teacher if sampling else replace(teacher, temperature=0.0)
            return evaluate_api(asked, problems, part, dataset=flags.dataset, shots=shots,
                                samples=sampling.get("samples", 1))
        about = {"model": _name(flags), "dtype": dtype_name(run.model.compute_dtype)}
        return evaluate(run.model, run.tokenizer, problems, part, dataset=flags.dataset,
                        shots=shots, system=run.system, prefix=run.prefix, seed=flags.seed,
                        max_new_tokens=flags.max_new_tokens, calculator=flags.calculator,
                        about=about, ranks=ranks, **sampling)

    try:
        report = once(folder, {"samples": flags.samples, "temperature": flags.temperature,
                               "top_p": flags.top_p, "top_k": flags.top_k})
        greedy = once(folder / "greedy", {}) if flags.samples > 1 else None
        if greedy:
            report = beside_greedy(report, greedy, folder)
        if flags.verifier and ranks.first:
            report = beside_verifier(report, flags, folder)
        if left_out and report:
            report = _with(report, folder, rows_left_out=dict(left_out.most_common()))
    except (KeyboardInterrupt, UserError) as error:
        if ranks.first:
            _leave(folder, flags, argv, bool(teacher) or isinstance(error, KeyboardInterrupt))
        raise
    return report, folder


def _open_asked(flags: Flags, ranks: Alone) -> tuple:
    """Our own model that the flags name, or else the server: a Run or None, a teacher or None."""
    from recipes.client import open_api  # here, see above

    if flags.api_model and ranks.size > 1:
        raise UsageError("one process is enough to ask a server; start without torchrun")
    teacher = open_api(flags)
    if teacher and flags.calculator:
        raise UsageError("--calculator puts tokens into our own decoding, not into a server's;"
                         " leave it out")
    return (None, teacher) if teacher else (load_asked(flags), None)


def _output_folder(flags: Flags) -> Path:
    """The folder of the results: a new one, or that of an evaluation that goes on."""
    if flags.output_dir and (Path(flags.output_dir) / "generations.jsonl").exists():
        return Path(flags.output_dir)
    name = short_name(flags.dataset)
    if flags.run:
        return new_directory(flags.output_dir, name, f"{flags.run}/evals")
    return new_directory(flags.output_dir, f"eval-{name}")


def _name(flags: Flags) -> str:
    at = f" at {flags.checkpoint}" if flags.checkpoint else ""
    return (flags.api_model or flags.run or flags.model or "tiny") + at


def _heading(flags: Flags, problems: int, shots: int, run, teacher) -> list[str]:
    """The first lines of the output: what is measured, and on what."""
    lines = []
    if run:
        machine = describe_machine(run.model.head_weight.device, run.model.compute_dtype)
        lines.append(f"machine    {machine['machine']}, {machine['device']}, {machine['dtype']},"
                     f" {machine['threads']} threads")
    lines.append(f"model      {_name(flags)}" + (f" at {teacher.base}" if teacher else ""))
    decoding = f"temperature {flags.temperature:g}" if flags.temperature else "greedy"
    decoding += ", with a calculator" if flags.calculator else ""
    greedy = ", and one greedy" if flags.samples > 1 else ""
    lines.append(f"data       {flags.dataset}, {problems} problems,"
                 f" {flags.samples} completion(s) each, {decoding}{greedy}")
    if run and not (flags.run or flags.model or is_embedded(flags.dataset)):
        lines.append(f"note       {TOY}")
    if teacher and not teacher.extra:
        lines += ["note       a server may add a repetition_penalty, and when sampling top_k and",
                  "           others, from the model's generation_config.json;",
                  "           --api-extra '{\"repetition_penalty\": 1.0}' says otherwise"]
    if shots:
        lines.append(f"shots      {shots} worked examples of {flags.shots_dataset or flags.dataset}"
                     " before each question")
    return list(map(one_line, lines))  # names may come from a stored file


def _leave(folder: Path, flags: Flags, argv: list[str], can_go_on: bool) -> None:
    """Remove the folder if it is empty, and print the command that goes on."""
    with contextlib.suppress(OSError):  # rmdir keeps what has been written
        folder.rmdir()
    if can_go_on:
        words = argv if flags.output_dir else [*argv, "--output-dir", str(folder)]
        print(f"to go on:  {shlex.join(['python', 'evaluate.py', *words])}")


def regrade_asked(flags: Flags) -> tuple[Report, Path]:
    """Grade again the evaluation that --regrade names, and the greedy one in it."""
    source = Path(flags.regrade)
    read_finished(source)  # before a folder is made
    home = (source if source.is_dir() else source.parent).resolve()
    folder = new_directory(flags.output_dir, f"{home.name}-regraded", str(home.parent))
    report = regrade(source, folder)
    if (home / "greedy" / "result.json").exists():
        report = beside_greedy(report, regrade(home / "greedy", folder / "greedy"), folder)
    print(f"graded     {source} again: {len(report.records)} completions"
          f" of {report.result['n']} problems")
    return report, folder


def refuse_idle(words: dict) -> None:
    """Raise UsageError for flags that do nothing beside --regrade or --read."""
    for name, useful in (("regrade", {"versus", "output_dir"}), ("read", {"versus"})):
        idle = words.keys() - useful - {name, "debug"}
        if words.get(name) and idle:
            spelled = ", ".join("--" + word.replace("_", "-") for word in sorted(idle))
            raise UsageError(f"--{name} generates nothing: {spelled} would have no effect; leave "
                             "it out")


def main(argv: list[str]) -> None:
    """`python evaluate.py`: evaluate or grade again, and print the report."""
    words = given_flags(Flags, argv, __doc__)
    flags = Flags(**words)
    refuse_idle(words)
    # Read first: an error is better before hours of generation than after them.
    other = read_finished(Path(flags.versus)) if flags.versus else None
    if flags.read:
        records, seconds = grade_again(read_finished(Path(flags.read)))
        report = Report(summarise(records) | {"grading_seconds_per_1000": seconds}, records)
        print_asked(flags, report, Path(flags.read), other)
        return
    if flags.regrade:
        print_asked(flags, *regrade_asked(flags), other)
        return
    with joined() as ranks:
        report, folder = evaluate_asked(flags, argv, ranks)
        if report:
            print_asked(flags, report, folder, other)


def print_asked(flags: Flags, report: Report, folder: Path, other: list[dict] | None) -> None:
    """The report for people, and how the evaluation differs from the records of another."""
    print(*report_lines(report.result), sep="\n")
    if "verifier" in report.result:
        import verifier

        print(*verifier.lines(report.result["verifier"]), sep="\n")
    if other:
        print(*versus_lines(flags.versus, compare_evaluations(other, report.records)), sep="\n")
    print(f"files      {folder}")
    print(f"next       python report.py {folder}    # a page with the figures and all answers")


if __name__ == "__main__":
    sys.exit(run_command(main))
