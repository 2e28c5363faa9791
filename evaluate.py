"""Measure a model on problems: generate, grade, count, and keep every completion so that any figure can be audited.

    python evaluate.py                                              # the embedded model on the embedded problems
    python evaluate.py --run runs/NAME --dataset mini-math --samples 8 --temperature 0.7

Decoding is greedy unless a temperature is given. Beside an accuracy stand its 95 % interval and the two things that
most often lower it without any mathematics being wrong: completions without an answer, and completions that were cut.

Wilson's interval: Wilson 1927, as recommended by Brown, Cai and DasGupta 2001; McNemar 1947 in its exact form; the
bootstrap: Efron 1979; majority and pass@k: see vote.py.
"""

import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub.utils import tqdm
from torch import Tensor

from answers import equivalent, extract_answer
from data import Problem, load_problems
from flags import flag, parse_flags, run_command
from generate import MAX_NEW_TOKENS, Completion, SamplingFlags, generate, load_asked
from model import Qwen2
from runtime import UserError, clock, describe_machine, new_directory, read_json, write_json, write_text
from tokenizer import Tokenizer
from vote import majority, pass_at_k

# ---------------------------------------------------------------------------------------------------------- statistics


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; honest also near 0 and 1, where the normal interval has no width."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # the 97.5 % point of the normal distribution
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # against rounding, where p is 0 or 1


def mcnemar(before: list[bool], after: list[bool]) -> float:
    """Two-sided p of the exact McNemar test on paired verdicts.

    Only problems whose verdict changed say anything; were the change chance, each would be gained or lost with 1/2.
    """
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    changed = lost + gained
    tail = sum(math.comb(changed, i) for i in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**changed)


def bootstrap(values: list[float], draws: int = 2000, seed: int = 0) -> tuple[float, list[float]]:
    """Standard error and 95 % interval [low, high] of the mean, from means of `draws` resamples of the values.

    One value a problem: the samples of one problem are not independent, the problems are. A paired difference is
    resampled as the list of its differences.
    """
    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=np.float64)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(draws)]
    return float(np.std(means)), [float(bound) for bound in np.percentile(means, (2.5, 97.5))]


def split_gain(before: dict, after: dict) -> dict[str, float]:
    """Split the gain in accuracy between two results into `more_answers` and `more_right_answers`, which add up to it.

    accuracy = answered · right, the share of completions with an answer times the share of right ones among those. So
    a1·r1 - a0·r0 = (a1 - a0)·r0 + a1·(r1 - r0): what answering more often brings at the old quality, and the rest.
    """
    a0, a1 = 1 - before["no_answer_rate"], 1 - after["no_answer_rate"]
    r0 = before["accuracy"] / a0 if a0 else 0.0
    more_answers = (a1 - a0) * r0
    return {"more_answers": more_answers, "more_right_answers": after["accuracy"] - a1 * r0}


# ---------------------------------------------------------------------------------------------------------- evaluation


@dataclass
class Report:
    """A finished evaluation: the figures of result.json, and the records in (problem, sample) order."""

    result: dict
    records: list[dict]

    @property
    def verdicts(self) -> list[bool]:
        """Whether each problem's first sample is right: what two greedy evaluations are paired by."""
        return [record["correct"] for record in self.records if record["sample"] == 0]


def evaluate(
    model: Qwen2, tokenizer: Tokenizer, problems: list[Problem], folder: Path, *, system: str | None = None,
    prefix: Tensor | None = None, samples: int = 1, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS, seed: int = 0, rows: int | None = None, about: dict | None = None,
) -> Report:
    """Generate `samples` completions of each problem, grade them, and write all of it to `folder`.

    `folder` gets args.json (the settings, and `about`: what the caller knows of model and data), generations.jsonl (one
    record a completion, appended as it ends, sorted at the end) and result.json (see `summarise`). An interrupted
    evaluation goes on where it was, a finished one is read back; that the weights are the same is the caller's affair.
    prefix [L, 2, P, K, h]. Raises UserError where there are no problems, one has no gold answer, or `folder` holds an
    evaluation with other settings.
    """
    folder = Path(folder)
    sampling = {"samples": samples, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed,
                "max_new_tokens": max_new_tokens}
    system = tokenizer.default_system if system is None else system
    settings = (about or {}) | {"system": system} | sampling | _fingerprint(problems)
    records = _records_so_far(folder, settings)
    if (folder / "result.json").exists():
        return Report(read_json(folder / "result.json"), records)
    write_json(folder / "args.json", settings)
    _write_records(folder, records)  # without the half line that an interruption may have left

    device = next(model.parameters()).device
    done = len(records)
    start = clock(device)
    completions = generate(
        model, [tokenizer.prompt(problem.question, system) for problem in problems], stop_ids=tokenizer.stop_ids,
        vocab_size=tokenizer.size, rows=rows, prefix=prefix, skip=set(map(_place, records)), **sampling
    )
    total, hidden = len(problems) * samples, not sys.stderr.isatty()
    bar = tqdm(total=total, initial=done, desc="evaluate", leave=False, disable=hidden)
    with bar, open(folder / "generations.jsonl", "a", encoding="utf-8") as file:
        for completion in completions:
            records.append(grade(problems[completion.problem], completion, tokenizer.decode(completion.ids)))
            file.write(_line(records[-1]))
            file.flush()
            bar.update()
    seconds = clock(device) - start
    tokens = sum(record["tokens"] for record in records[done:])  # of this sitting, as the seconds are

    records.sort(key=_place)
    _write_records(folder, records)
    result = summarise(records, samples) | {"eval_seconds": seconds, "tokens_per_second": tokens / seconds}
    write_json(folder / "result.json", result)
    return Report(result, records)


def _place(record: dict) -> tuple[int, int]:
    return record["problem"], record["sample"]


def _fingerprint(problems: list[Problem]) -> dict:
    """What tells this list of problems from another. Raises UserError where there is nothing to grade, or grade by."""
    if not problems:
        raise UserError("there are no problems to evaluate; give another --dataset or a higher --limit")
    for problem in problems:
        if not problem.answer:
            raise UserError(f"{problem.id}: this problem has no gold answer to grade by; add one or remove the problem")
    text = json.dumps([(problem.question, problem.answer) for problem in problems])
    return {"n": len(problems), "problems_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _records_so_far(folder: Path, settings: dict) -> list[dict]:
    """What an earlier evaluation with the same settings has written to `folder`, but for a half line at the end."""
    if not (folder / "args.json").exists():
        return []
    earlier = read_json(folder / "args.json")
    for key in sorted(earlier.keys() | settings):
        if earlier.get(key) != settings.get(key):
            was, now = earlier.get(key), settings.get(key)
            raise UserError(f"{folder / 'args.json'}: was begun with {key} {was!r}, not {now!r}; give another folder")
    path, records = folder / "generations.jsonl", []
    # A half line may end inside a character. Every whole line ends in a newline, so the last piece is no line.
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); remove it, and it is made again") from None
    return records


def _write_records(folder: Path, records: list[dict]) -> None:
    write_text(folder / "generations.jsonl", "".join(map(_line, records)))


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def grade(problem: Problem, completion: Completion, text: str) -> dict:
    """The record of one completion: what generations.jsonl holds a line of.

    A completion that was cut is graded only by an answer it marked itself (a box, `####`): the number that happens to
    stand last where it was cut is no answer. Raises UserError where the log-probability is no finite number.
    """
    if not math.isfinite(completion.mean_log_prob):
        raise UserError(f"{problem.id}: the model gives no finite probabilities; are its weights NaN or infinite?")
    answer = extract_answer(text, strict=completion.finish != "stop")
    return {
        "id": problem.id,
        "problem": completion.problem,  # index in the list of problems
        "sample": completion.sample,
        "question": problem.question,
        "gold": problem.answer,
        "level": problem.level,
        "subject": problem.subject,
        "text": text,
        "tokens": len(completion.ids),
        "finish": completion.finish,
        "mean_log_prob": completion.mean_log_prob,
        "answer": answer,
        "correct": equivalent(problem.answer, answer),
    }


def summarise(records: list[dict], samples: int) -> dict:
    """The figures of all records, which stand in (problem, sample) order. Rates are fractions.

    accuracy: the mean over problems and samples, which is pass@1. ci95: Wilson's with one sample a problem, else a
    bootstrap over problems. no_answer_rate: no answer could be read off. truncated_rate: cut at the token limit. These
    two overlap; ended_with_answer_rate is the share with neither.
    """
    problems = [records[i : i + samples] for i in range(0, len(records), samples)]
    n = len(problems)

    def mean(of) -> float:
        return sum(map(of, records)) / len(records)

    levels: dict[str, list[bool]] = {}
    for record in records:
        levels.setdefault(record["level"], []).append(record["correct"])
    result = {
        "n": n,
        "samples": samples,
        "accuracy": mean(lambda record: record["correct"]),
        "ci95": list(wilson(sum(record["correct"] for record in records), n)) if samples == 1 else None,
        "no_answer_rate": mean(lambda record: record["answer"] is None),
        "truncated_rate": mean(lambda record: record["finish"] != "stop"),
        "ended_with_answer_rate": mean(lambda record: record["answer"] is not None and record["finish"] == "stop"),
        "mean_tokens": mean(lambda record: record["tokens"]),
        "by_level": {
            level: {"n": len(right) // samples, "accuracy": sum(right) / len(right)}
            for level, right in sorted(levels.items())
        },
    }
    return result | _summarise_samples(problems, samples) if samples > 1 else result


def _summarise_samples(problems: list[list[dict]], samples: int) -> dict:
    """What several samples a problem show: the single sample with its error, the majority beside it, pass@k."""
    n = len(problems)
    rights = [sum(record["correct"] for record in group) for group in problems]
    single = [right / samples for right in rights]
    voted = []
    for group in problems:
        # Between clusters of one size, the one the model was surer of wins.
        chosen = majority([record["answer"] for record in group], [record["mean_log_prob"] for record in group])
        voted.append(chosen is not None and group[chosen]["correct"])
    gains = [vote - mean for vote, mean in zip(voted, single)]
    error, interval = bootstrap(single)
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples})  # 1, 2, 4, ... and all
    return {
        "ci95": interval,
        "accuracy_se": error,
        "majority": sum(voted) / n,
        "majority_gain": sum(gains) / n,  # over the single sample, paired by problem
        "majority_gain_se": bootstrap(gains)[0],
        "pass_at_k": {str(k): sum(pass_at_k(samples, right, k) for right in rights) / n for k in ks},
    }


# ------------------------------------------------------------------------------------------------------------- command


def report_lines(result: dict) -> list[str]:
    """The figures of result.json, for people."""
    low, high = result["ci95"]
    lines = [
        f"accuracy   {result['accuracy']:.1%} of {result['n']} problems, 95 % interval {low:.1%} to {high:.1%}",
        f"no answer  {result['no_answer_rate']:.1%}; cut at the token limit {result['truncated_rate']:.1%}; "
        f"ended with an answer {result['ended_with_answer_rate']:.1%}",
    ]
    if len(result["by_level"]) > 1:
        for level, part in result["by_level"].items():
            lines.append(f"level {level:4s} {part['accuracy']:.1%} of {part['n']}")
    if result["samples"] > 1:
        gain, error = 100 * result["majority_gain"], 100 * result["majority_gain_se"]
        lines.append(f"majority   {result['majority']:.1%} with {result['samples']} votes, {gain:+.1f} points beside a "
                     f"single sample (standard error {error:.1f})")
        lines.append("pass@k     " + ", ".join(f"{k}: {value:.1%}" for k, value in result["pass_at_k"].items()))
    lines.append(f"speed      {result['eval_seconds']:.1f} s, {result['tokens_per_second']:.0f} tokens/s, "
                 f"{result['mean_tokens']:.0f} tokens a completion")
    return lines


@dataclass(kw_only=True)
class Flags(SamplingFlags):
    """The flags of `python evaluate.py`."""

    dataset: str = flag("mini-gsm", "mini-gsm, mini-math, or a JSON or JSONL file")
    limit: int | None = flag(None, "number of problems (default: 500 of an embedded set, all of a file)", least=1)
    output_dir: str | None = flag(None, "folder of the results; an unfinished evaluation there goes on "
                                  "(default: evals/DATASET-N in the run, else runs/eval-DATASET-N)")


def main(argv: list[str]) -> None:
    """`python evaluate.py`: load, evaluate, print the report."""
    flags = parse_flags(Flags, argv, "Measure a model's accuracy on a data set.")
    problems = load_problems(flags.dataset, split="test", limit=flags.limit)
    run = load_asked(flags)

    stem = Path(flags.dataset).stem
    if flags.output_dir and (Path(flags.output_dir) / "generations.jsonl").exists():
        folder = Path(flags.output_dir)  # an evaluation that was begun goes on
    elif flags.run:
        folder = new_directory(flags.output_dir, stem, f"{flags.run}/evals")
    else:
        folder = new_directory(flags.output_dir, f"eval-{stem}")
    machine = describe_machine(run.model.head_weight.device, run.model.compute_dtype)
    name = flags.run or flags.model or "tiny"
    print(f"machine    {machine['machine']}, {machine['device']}, {machine['dtype']}, {machine['threads']} threads")
    print(f"model      {name}")
    print(f"data       {flags.dataset}, {len(problems)} problems, {flags.samples} completion(s) each, "
          + (f"temperature {flags.temperature}" if flags.temperature else "greedy"), flush=True)
    report = evaluate(run.model, run.tokenizer, problems, folder, system=run.system, prefix=run.prefix,
                      samples=flags.samples, temperature=flags.temperature, top_p=flags.top_p, top_k=flags.top_k,
                      max_new_tokens=flags.max_new_tokens, seed=flags.seed,
                      about={"model": name, "dataset": flags.dataset, "dtype": machine["dtype"]})
    print("\n".join(report_lines(report.result)))
    print(f"files      {folder}")


if __name__ == "__main__":
    sys.exit(run_command(main))
