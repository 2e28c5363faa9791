"""Measure a model on problems: generate, grade, count, and keep every completion so that any figure can be audited.

    python evaluate.py                                              # the embedded model on the embedded problems
    python evaluate.py --run runs/NAME --dataset mini-math --samples 8 --temperature 0.7
    python evaluate.py --model Qwen/Qwen2.5-0.5B --dataset test.jsonl --shots 4 --shots-dataset train.jsonl
    python evaluate.py --run runs/NAME --versus runs/NAME/evals/before      # what has changed, problem by problem
    python evaluate.py --regrade runs/NAME/evals/after                      # grade again what was generated then
    python evaluate.py --api-base http://HOST:8000/v1 --api-model NAME      # a model behind a server, see client.py

Decoding is greedy unless a temperature is given. With several samples a problem, a greedy evaluation of the same
problems follows (in the folder `greedy`): votes that do not beat it have gained nothing.

An evaluation is a folder: args.json (the settings), generations.jsonl (one record a completion, written as it ends; of a
server, replies.jsonl comes first) and result.json (the figures; score.py says how they are counted). After Ctrl-C or a
crash the same command with --output-dir FOLDER goes on to the same texts, and refuses to where a setting differs.
--regrade leaves the old evaluation as it is, and makes a new one of its texts.
"""

import contextlib
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from data import Problem, has_split, known_names, load_problems
from flags import flag, given_flags, run_command
from generate import MAX_NEW_TOKENS, ApiFlags, Completion, SamplingFlags, generate, load_asked
from model import Qwen2
from recipes.client import ApiTeacher, open_api
from recipes.teacher import completions
from runtime import (UsageError, UserError, clock, describe_machine, new_directory, read_json,
                     write_json, write_text)
from score import (Report, by_problem, compare, grade_again, place, read_finished, read_records,
                   record_of, report_lines, score, summarise, versus_lines)
from tokenizer import Tokenizer

# --------------------------------------------------------------------------------------- evaluation


def evaluate(
    model: Qwen2, tokenizer: Tokenizer, problems: list[Problem], folder: Path, *, dataset: str = "",
    system: str | None = None, shots: Sequence[Problem] = (), prefix: Tensor | None = None,
    samples: int = 1, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS, seed: int = 0, rows: int | None = None,
    about: dict | None = None,
) -> Report:
    """Generate `samples` completions of each problem, grade them, and write all of it to `folder`.

    `dataset` is the name that the records carry; `shots` are worked examples that stand as earlier turns of the chat
    before every question; `about` is what the caller knows of the model. prefix [L, 2, P, K, h].

    Each completion is appended to generations.jsonl as it ends. An interrupted evaluation goes on where it was, a
    finished one is read back; that the weights are the same is the caller's affair. Raises UserError where there
    are no problems, one has no gold answer, or `folder` holds an evaluation with other settings.
    """
    folder = Path(folder)
    sampling = {
        "samples": samples, "temperature": temperature, "top_p": top_p, "top_k": top_k,
        "seed": seed, "max_new_tokens": max_new_tokens
    }
    system = tokenizer.default_system if system is None else system
    settings = {
        "dataset": dataset, **(about or {}), "system": system, "shots": _told(shots), **sampling,
        **check_problems(problems)
    }
    records = _records_so_far(folder, settings)
    if (folder / "result.json").exists() and len(records) == samples * len(problems):
        return Report(read_json(folder / "result.json"), records)
    prompts = [tokenizer.prompt(problem.question, system, _turns(shots)) for problem in problems]
    front = 0 if prefix is None else prefix.shape[2]
    room = max(0, model.config.max_position_embeddings - front -
               max(map(len, prompts)))  # behind the longest prompt
    if shots and not room:
        positions = model.config.max_position_embeddings
        raise UserError(
            f"{len(shots)} worked examples fill the model's {positions} positions and leave no room for an "
            "answer; give fewer --shots")
    _write_records(folder, records)  # without the half line that an interruption may have left
    write_json(folder / "args.json", settings)

    hashes = [hashlib.sha256(json.dumps(prompt).encode()).hexdigest() for prompt in prompts]
    device = next(model.parameters()).device
    done = len(records)
    start = clock(device)
    completions = generate(model, prompts, stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.size,
                           rows=rows, prefix=prefix, skip=set(map(place, records)), **sampling)
    total, hidden = len(problems) * samples, not sys.stderr.isatty()
    bar = tqdm(total=total, initial=done, desc="evaluate", leave=False, disable=hidden)
    with bar, open(folder / "generations.jsonl", "a", encoding="utf-8") as file:
        for completion in completions:
            record = grade(problems[completion.problem], completion, tokenizer.decode(
                completion.ids))
            records.append(
                {"dataset": dataset, **record, "prompt_sha256": hashes[completion.problem]})
            file.write(_line(records[-1]))
            file.flush()
            bar.update()
    seconds = clock(device) - start
    tokens = sum(
        record["tokens"] for record in records[done:])  # of this sitting, as the seconds are
    return _finish(folder, sorted(records, key=place), {
        "eval_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "timed_completions": len(records) - done,
        "max_new_tokens": max_new_tokens,
        "least_new_tokens": min(max_new_tokens, room),
        "machine": describe_machine(device, model.compute_dtype),
    })


def evaluate_api(teacher: ApiTeacher, problems: list[Problem], folder: Path, *, dataset: str = "",
                 shots: Sequence[Problem] = (), samples: int = 1) -> Report:
    """As `evaluate`, of a model behind a server. What it never answered is left out and told as `lost`; the next call
    asks for that alone. Raises UserError also where all is lost."""
    settings = {
        "dataset": dataset, "api_model": teacher.name, "system": teacher.system,
        "shots": _told(shots), "samples": samples, **teacher.settings, **check_problems(problems)
    }
    records = _records_so_far(folder, settings)
    if not (folder / "result.json").exists() or len(records) < samples * len(problems):
        _write_records(folder, records)
        write_json(folder / "args.json", settings)
        records, measured = completions(teacher, problems, _turns(shots), folder, samples)
        records = [{"dataset": dataset, **record} for record in records]
        return _finish(folder, records, {"max_new_tokens": teacher.max_new_tokens, **measured})
    return Report(read_json(folder / "result.json"), records)


def _told(shots: Sequence[Problem]) -> list[dict]:
    return [{"id": shot.id, "question": shot.question, "solution": shot.solution} for shot in shots]


def _turns(shots: Sequence[Problem]) -> list[dict]:
    """Worked examples as turns of a chat: each question by the user, each solution by the assistant."""
    pairs = [(shot.question, shot.solution) for shot in shots]
    return [{"role": role, "content": text} for pair in pairs
            for role, text in zip(("user", "assistant"), pair)]


def check_problems(problems: list[Problem]) -> dict:
    """What tells this list of problems from another. Raises UserError where there is nothing to grade, or grade by."""
    if not problems:
        raise UserError(
            "there are no problems to evaluate; give another --dataset or a higher --limit")
    for problem in problems:
        if not problem.answer:
            raise UserError(
                f"{problem.id}: this problem has no gold answer to grade by; add one or remove the problem"
            )
    text = json.dumps([(problem.question, problem.answer) for problem in problems])
    return {"n": len(problems), "problems_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _records_so_far(folder: Path, settings: dict) -> list[dict]:
    """What an earlier evaluation with the same settings has written to `folder`."""
    path = folder / "generations.jsonl"
    if not (folder / "args.json").exists():
        if path.exists() and path.stat().st_size:
            raise UserError(
                f"{path}: stands there without its args.json, and is left alone; give another folder"
            )
        return []
    earlier = read_json(folder / "args.json")
    # The data set's name is but a path; the problems themselves are told by their hash.
    other = [
        key for key in settings | earlier
        if key != "dataset" and earlier.get(key) != settings.get(key)
    ]
    if other:
        differences = "; ".join(
            f"{key} {_brief(earlier.get(key))}, not {_brief(settings.get(key))}" for key in other)
        raise UserError(
            f"{folder / 'args.json'}: was begun with {differences}; give another folder")
    return read_records(path) if path.exists() else []


def _brief(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _write_records(folder: Path, records: list[dict]) -> None:
    write_text(folder / "generations.jsonl", "".join(map(_line, records)))


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def grade(problem: Problem, completion: Completion, text: str) -> dict:
    """The record of one completion. Raises UserError where the log-probability is no finite number."""
    if not math.isfinite(completion.mean_log_prob):
        raise UserError(
            f"{problem.id}: the model gives no finite probabilities; are its weights NaN or infinite?"
        )
    return record_of(problem, completion.problem, completion.sample, text, len(completion.ids),
                     completion.finish, completion.mean_log_prob)


def _finish(folder: Path, records: list[dict], measured: dict) -> Report:
    """Grade all records once more, so that one grader stands behind all and is timed; write and count them."""
    records, seconds = grade_again(records)
    _write_records(folder, records)
    result = summarise(records) | {"grading_seconds_per_1000": seconds} | measured
    write_json(folder / "result.json", result)
    return Report(result, records)


def regrade(source: Path, folder: Path) -> Report:
    """Grade, vote and count again what the evaluation `source` (a folder or its generations.jsonl) has generated.

    `folder` becomes an evaluation like any other; nothing is changed in `source`. Times and machine of the generating
    stay in the source's result.json.
    """
    records = read_finished(source)
    settings = source if source.is_dir() else source.parent
    args = read_json(settings / "args.json") if (settings / "args.json").exists() else {}
    result = read_json(settings / "result.json") if (settings / "result.json").exists() else {}
    write_json(folder / "args.json", args | {"regraded_from": str(source)})
    kept = ("max_new_tokens", "least_new_tokens", "lost", "wanted", "left_out")
    return _finish(folder, records, {key: result[key] for key in kept if key in result})


def beside_greedy(report: Report, greedy: Report, folder: Path) -> Report:
    """The report of several samples with `greedy` in its result: that accuracy, and what the majority changes."""
    change = compare(greedy.records, report.records)
    del change["changed"]
    lost = {"lost": greedy.result["lost"]} if greedy.result.get("lost") else {}
    result = report.result | {
        "greedy": score(by_problem(greedy.records)) | {"majority": change} | lost
    }
    write_json(folder / "result.json", result)
    return Report(result, report.records)


# ------------------------------------------------------------------------------------------ command


@dataclass(kw_only=True)
class Flags(ApiFlags, SamplingFlags):
    """The flags of `python evaluate.py`."""

    dataset: str = flag("mini-gsm", f"problems, of sets their test split: one of {known_names()}")
    limit: int | None = flag(
        None, "number of problems (default: 500 of an embedded set, all of a file)", least=1)
    shots: int = flag(
        0, "worked training examples, drawn by --seed, before each question as turns of "
        "the chat; for base models", least=0)
    shots_dataset: str | None = flag(
        None, "where --shots come from (default: the set's own training split)")
    versus: str | None = flag(None,
                              "another evaluation's folder, to compare with problem by problem")
    regrade: str | None = flag(
        None, "a finished evaluation's folder or generations.jsonl, to grade and count again "
        "without a model, into a new folder beside it")
    output_dir: str | None = flag(
        None, "folder of the results; an unfinished evaluation there goes on "
        "(default: evals/DATASET-N in the run, else runs/eval-DATASET-N)")


def worked_examples(flags: Flags, problems: list[Problem]) -> list[Problem]:
    """The problems that --shots asks for: drawn by the seed from a training set, none of them to be evaluated."""
    name = flags.shots_dataset or (flags.dataset if has_split(flags.dataset, "train") else None)
    if not flags.shots:
        if flags.shots_dataset:
            raise UsageError(
                "--shots-dataset without --shots: say how many of its problems to show")
        return []
    if name is None:
        raise UsageError(
            f"--shots {flags.shots}: {flags.dataset} has no training split; name a file of worked "
            "training problems with --shots-dataset")
    asked = {problem.question for problem in problems}
    pool = {problem.question: problem for problem in load_problems(name, "train")
            if problem.solution and problem.question not in asked}
    if len(pool) < flags.shots:
        raise UserError(
            f"{name}: has {len(pool)} worked problems that are not evaluated, --shots {flags.shots} needs more"
        )
    chosen = np.random.default_rng(flags.seed).choice(len(pool), flags.shots, replace=False)
    return [list(pool.values())[index] for index in chosen]


def measure(flags: Flags, argv: list[str]) -> tuple[Report, Path]:
    """Load what the flags name and evaluate it. Returns the report and its folder."""
    problems = load_problems(flags.dataset, split="test", limit=flags.limit)
    check_problems(problems)  # before a model is loaded, and a folder made
    shots = worked_examples(flags, problems)
    teacher = open_api(flags)
    run = None if teacher else load_asked(flags)
    if flags.output_dir and (Path(flags.output_dir) / "generations.jsonl").exists():
        folder = Path(flags.output_dir)  # an evaluation that was begun goes on
    elif flags.run:
        folder = new_directory(flags.output_dir, Path(flags.dataset).stem, f"{flags.run}/evals")
    else:
        folder = new_directory(flags.output_dir, f"eval-{Path(flags.dataset).stem}")

    name = flags.api_model or flags.run or flags.model or "tiny"
    decoding = f"temperature {flags.temperature:g}" if flags.temperature else "greedy"
    if run:
        machine = describe_machine(run.model.head_weight.device, run.model.compute_dtype)
        print(
            f"machine    {machine['machine']}, {machine['device']}, {machine['dtype']}, {machine['threads']} threads"
        )
    print(f"model      {name}" + (f" at {teacher.base}" if teacher else ""))
    print(
        f"data       {flags.dataset}, {len(problems)} problems, {flags.samples} completion(s) each, {decoding}"
        + ", and one greedy" * (flags.samples > 1))
    if shots:
        print(
            f"shots      {len(shots)} worked examples of {flags.shots_dataset or flags.dataset} before each question"
        )
    sys.stdout.flush()

    common = dict(dataset=flags.dataset, shots=shots)
    if run:
        common |= dict(system=run.system, prefix=run.prefix, seed=flags.seed,
                       max_new_tokens=flags.max_new_tokens,
                       about={"model": name, "dtype": machine["dtype"]})
    sampling = dict(samples=flags.samples, temperature=flags.temperature, top_p=flags.top_p,
                    top_k=flags.top_k)
    try:
        report = (evaluate_api(
            teacher, problems, folder, samples=flags.samples, **common) if teacher else evaluate(
                run.model, run.tokenizer, problems, folder, **common, **sampling))
        if flags.samples > 1:
            again = folder / "greedy"
            greedy = (evaluate_api(replace(teacher, temperature=0.0), problems, again, **common)
                      if teacher else evaluate(run.model, run.tokenizer, problems, again, **common))
            report = beside_greedy(report, greedy, folder)
    except (KeyboardInterrupt, UserError) as error:
        with contextlib.suppress(
                OSError):  # what was begun stays; what could not begin leaves no folder
            folder.rmdir()
        if teacher or isinstance(error, KeyboardInterrupt):
            words = argv if flags.output_dir else [*argv, "--output-dir", str(folder)]
            print(f"to go on:  {shlex.join(['python', 'evaluate.py', *words])}")
        raise
    return report, folder


def measure_again(flags: Flags) -> tuple[Report, Path]:
    """Grade again what --regrade names, and its greedy companion. Returns the report and its folder."""
    source = Path(flags.regrade)
    read_finished(source)  # before a folder is made
    home = (source if source.is_dir() else source.parent).resolve()
    folder = new_directory(flags.output_dir, f"{home.name}-regraded", str(home.parent))
    report = regrade(source, folder)
    if (home / "greedy" / "result.json").exists():
        report = beside_greedy(report, regrade(home / "greedy", folder / "greedy"), folder)
    print(
        f"graded     {source} again: {len(report.records)} completions of {report.result['n']} problems"
    )
    return report, folder


def main(argv: list[str]) -> None:
    """`python evaluate.py`: evaluate, or grade again; print the report."""
    words = given_flags(Flags, argv, __doc__)
    flags = Flags(**words)
    idle = words.keys() - {"regrade", "versus", "output_dir", "debug"}
    if flags.regrade and idle:
        spelled = ", ".join("--" + name.replace("_", "-") for name in sorted(idle))
        raise UsageError(
            f"--regrade generates nothing: {spelled} would have no effect; leave it out")
    other = read_finished(Path(
        flags.versus)) if flags.versus else None  # before hours of generating
    report, folder = measure_again(flags) if flags.regrade else measure(flags, argv)
    print(*report_lines(report.result), sep="\n")
    if other:
        print(*versus_lines(flags.versus, compare(other, report.records)), sep="\n")
    print(f"files      {folder}")


if __name__ == "__main__":
    sys.exit(run_command(main))
