"""From graded completions to figures: verdicts, accuracies with their intervals, votes, and two evaluations compared.

    python evaluate.py --regrade runs/eval-mini-gsm-1/generations.jsonl     # this module at work, without a model

A record is one completion with its problem: a line of generations.jsonl. Each figure can be counted again from records.

Three ways to score a completion stand side by side. *Flexible* is the accuracy meant everywhere: the answer in whatever
form it stands, compared by value. *Strict* takes only an answer that the completion marks itself (a box or `####`).
*Exact string* takes the flexible answer, and asks for the very characters of the gold one. Strict far below flexible:
the model does not keep to the form. Exact far below flexible: much hangs on the grader, whose verdicts deserve a look.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from answers import equivalent, extract_answer
from runtime import UserError, read_json
from stats import bootstrap, interval, mcnemar
from vote import choose, cluster, confidence, maj_at_k, pass_at_k

VOTES = {"majority": "majority of", "weighted": "weighted vote of",
         "best": "most confident of"}  # kinds, and in words
# What a record must hold to be graded and counted; None is what a server did not tell.
FIELDS = {
    "id": str, "problem": int, "sample": int, "question": str, "gold": str, "level": str,
    "subject": str, "text": str, "tokens": int | None, "finish": str, "mean_log_prob": float | None
}

# ------------------------------------------------------------------------------------------ records


@dataclass
class Report:
    """A finished evaluation: the figures of result.json, and the records in (problem, sample) order."""

    result: dict
    records: list[dict]

    @property
    def verdicts(self) -> list[bool]:
        """Whether each problem's answer is right, by majority where it has several samples."""
        spokesmen = map(_spokesman, by_problem(self.records))
        return [record is not None and record["correct"] for record in spokesmen]


def record_of(problem, number: int, sample: int, text: str, tokens: int | None, finish: str,
              mean_log_prob: float | None) -> dict:
    """The graded record of completion `sample` of `problem` (a data.Problem), which stands at `number` in its list."""
    return {
        "id": problem.id,
        "problem": number,
        "sample": sample,
        "question": problem.question,
        "gold": problem.answer,
        "level": problem.level,
        "subject": problem.subject,
        "text": text,
        "tokens": tokens,  # without the stop token, where they are ours
        "finish": finish,  # "stop", or "length" where it was cut
        "mean_log_prob": mean_log_prob,
        **verdict(problem.answer, text, finish),
    }


def verdict(gold: str, text: str, finish: str) -> dict:
    """What the grader says of a completion: the part of its record that grading again replaces.

    A completion that was cut is graded only by an answer it marked itself: the number that happens to stand last where
    it was cut is no answer.
    """
    marked = extract_answer(text, strict=True)
    answer = extract_answer(text) if finish == "stop" else marked
    return {
        "answer": answer,
        "correct": answer is not None and equivalent(gold, answer),
        "strict_answer": marked,
        "strict_correct": marked is not None and equivalent(gold, marked),
        "exact": answer is not None and answer.strip() == gold.strip(),
    }


def grade_again(records: list[dict]) -> tuple[list[dict], float]:
    """The records with new verdicts, and the seconds that 1,000 of them take."""
    start = time.perf_counter()
    graded = [
        record | verdict(record["gold"], record["text"], record["finish"]) for record in records
    ]
    return graded, 1000 * (time.perf_counter() - start) / len(records)


def read_records(path: Path) -> list[dict]:
    """The records of a generations.jsonl in (problem, sample) order, without a half line at its end.

    Raises UserError with file and line for what is no record.
    """
    try:
        # A half line may end inside a character. Every whole line ends in a newline, so the last piece is no line.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    records = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: not valid JSON ({error}); remove that line") from None
        kinds = record if isinstance(record, dict) else {}
        wrong = [
            key for key, kind in FIELDS.items()
            if key not in kinds or not isinstance(kinds[key], kind)
        ]
        if wrong or not -math.inf < (record["mean_log_prob"]
                                     or 0) < 1:  # at most 0, but for rounding
            what = ", ".join(wrong) or "mean_log_prob"
            raise UserError(
                f"{path}:{number}: no record of an evaluation ({what} missing or wrong); remove that line"
            )
        records.setdefault(place(record), record)
    return [records[at] for at in sorted(records)]


def place(record: dict) -> tuple[int, int]:
    """Where a record stands: (index of its problem, number of its sample)."""
    return record["problem"], record["sample"]


def by_problem(records: list[dict]) -> list[list[dict]]:
    """The records of each problem, from records in (problem, sample) order."""
    groups: dict[int, list[dict]] = {}
    for record in records:
        groups.setdefault(record["problem"], []).append(record)
    return list(groups.values())


def read_finished(path: Path) -> list[dict]:
    """The records of a finished evaluation, from its folder or its generations.jsonl.

    Raises UserError for an unfinished one: what ended first is short, and no fair sample of the problems. One that has
    lost replies of a server (result.json says so) is finished without these problems.
    """
    path = path / "generations.jsonl" if path.is_dir() else path
    records = read_records(path)
    result = path.parent / "result.json"
    unfinished = (path.parent / "args.json").exists() and not result.exists()
    places = [place(record) for record in records]
    samples = sum(problem == places[0][0] for problem, _ in places) if places else 0
    numbers = range(len(places) // max(1, samples))
    if result.exists() and read_json(result).get("lost"):
        numbers = dict.fromkeys(problem for problem, _ in places)
    whole = places == [(i, s) for i in numbers for s in range(samples)]
    if unfinished or not places or not whole:
        raise UserError(
            f"{path}: holds {len(places)} completions of an unfinished evaluation; let it end first"
        )
    return records


# ------------------------------------------------------------------------------------------ figures


def summarise(records: list[dict]) -> dict:
    """The figures of all records, which stand in (problem, sample) order. Rates are fractions, intervals 95 %.

    accuracy: the mean over problems and samples. ended_with_answer_rate: the share of completions that have an answer
    and were not cut. by_level and by_subject are empty where the data has none. With several samples also `votes` by
    each kind, each with its gain over a single sample, and pass_at_k and maj_at_k by kind and k: 1, 2, 4, ... and all.
    Where a server told no log-probabilities there is nothing to weigh votes by, and the majority stands alone.
    """
    groups = by_problem(records)
    samples = len(groups[0])
    ended = sum(record["answer"] is not None and record["finish"] == "stop" for record in records)
    tokens = [record["tokens"] for record in records]
    result = {
        "samples": samples,
        **score(groups),
        "ended_with_answer_rate": ended / len(records),
        "mean_tokens": sum(tokens) / len(tokens) if None not in tokens else None,
        "strict": score(groups, "strict_correct", "strict_answer"),
        "exact": score(groups, "exact"),
        "by_level": _score_by("level", groups),
        "by_subject": _score_by("subject", groups),
    }
    return result | _summarise_samples(groups, samples) if samples > 1 else result


def score(groups: list[list[dict]], right: str = "correct", answer: str = "answer") -> dict:
    """Accuracy of the records of some problems, by the field `right`, and what stands beside every accuracy.

    ci95: Wilson's with one sample a problem, else a bootstrap over problems (see stats.interval). no_answer_rate: no
    answer could be read off. truncated_rate: cut at the token limit. These two may overlap.
    """
    values = [sum(record[right] for record in group) / len(group) for group in groups]
    records = [record for group in groups for record in group]
    return {
        "n": len(groups),
        "accuracy": sum(values) / len(values),
        "ci95": interval(values),
        "no_answer_rate": sum(record[answer] is None for record in records) / len(records),
        "truncated_rate": sum(record["finish"] != "stop" for record in records) / len(records),
    }


def _score_by(field: str, groups: list[list[dict]]) -> dict[str, dict]:
    parts: dict[str, list[list[dict]]] = {}
    for group in groups:
        parts.setdefault(group[0][field], []).append(group)
    return {name: score(parts[name]) for name in sorted(parts)} if any(parts) else {}


def _summarise_samples(groups: list[list[dict]], samples: int) -> dict:
    """What several samples a problem show: votes beside the single sample, and how both grow with k."""
    n = len(groups)
    rights = [[record["correct"] for record in group] for group in groups]
    single = [sum(right) / samples for right in rights]
    ids = [cluster([record["answer"] for record in group]) for group in groups]
    weights = [_weights(group) for group in groups]
    kinds = list(VOTES) if None not in weights else ["majority"]
    votes = {}
    for kind in kinds:
        chosen = [choose(*ballot, kind) for ballot in zip(ids, weights)]
        verdicts = [index is not None and right[index] for index, right in zip(chosen, rights)]
        gains = [vote - mean for vote, mean in zip(verdicts, single)]
        votes[kind] = {
            "accuracy": sum(verdicts) / n,
            "ci95": interval(verdicts),
            "gain": sum(gains) / n,  # over the single sample, paired by problem
            "gain_se": bootstrap(gains)[0],
            "no_answer_rate": chosen.count(None) / n,
        }
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
    points = [(kind, k) for kind in kinds for k in ks]
    curves = [[maj_at_k(ids[i], rights[i], k, weights[i], kind, seed=i) for kind, k in points]
              for i in range(n)]
    maj: dict[str, dict] = {kind: {} for kind in kinds}
    for (kind, k), found in zip(points, zip(*curves)):
        # se: of drawing subsets where there are too many to count all, not of drawing other problems.
        error = math.sqrt(sum(error**2 for _, error in found)) / n
        maj[kind][str(k)] = {"accuracy": sum(value for value, _ in found) / n, "se": error}
    return {
        "accuracy_se": bootstrap(single)[0], "votes": votes, "pass_at_k": {
            str(k): sum(pass_at_k(samples, sum(right), k) for right in rights) / n
            for k in ks
        }, "maj_at_k": maj,
    }


def _weights(group: list[dict]) -> list[float] | None:
    """What the samples' votes weigh; None where it is not known of all."""
    log_probs = [record["mean_log_prob"] for record in group]
    return None if None in log_probs else [confidence(log_prob) for log_prob in log_probs]


# --------------------------------------------------------------------------------------- comparison


def _spokesman(group: list[dict]) -> dict | None:
    """The record that speaks for the majority of a problem's samples; None where none of them has an answer."""
    index = choose(cluster([record["answer"] for record in group]), _weights(group))
    return None if index is None else group[index]


def compare(before: list[dict], after: list[dict]) -> dict:
    """Two evaluations on the problems they share, told by question and gold answer: what changed, and was it chance?

    A problem's verdict is that of its sample, or of the majority of its samples. gained and lost count changed
    verdicts, p is McNemar's exact one, `changed` holds the problems. Raises UserError where the two share no problem.
    """
    there, here = ({(group[0]["question"], group[0]["gold"]): group
                    for group in by_problem(records)} for records in (before, after))
    shared = [key for key in here if key in there]
    if not shared:
        raise UserError("the two evaluations have no problem in common, and cannot be compared")
    verdicts, changed = [], []
    for key in shared:
        old, new = _spokesman(there[key]), _spokesman(here[key])
        was, now = (record is not None and record["correct"] for record in (old, new))
        verdicts.append((was, now))
        if was != now:
            changed.append({"id": here[key][0]["id"], "gold": key[1], "gained": now,
                            "before": old and old["answer"], "after": new and new["answer"]})
    was, now = zip(*verdicts)
    gained = sum(problem["gained"] for problem in changed)
    return {
        "n": len(shared), "n_before": len(there), "n_after": len(here),
        "accuracy_before": sum(was) / len(shared), "accuracy_after": sum(now) / len(shared),
        "gained": gained, "lost": len(changed) - gained, "p": mcnemar(was, now), "changed": changed,
    }


# ----------------------------------------------------------------------------------------- in words


def report_lines(result: dict) -> list[str]:
    """The figures of result.json, for people. The share that was cut stands beside every score."""
    samples, cut = result["samples"], result["truncated_rate"]
    lines = [_losses(result)] if result.get("lost") else []
    lines += [
        f"{'':24s}accuracy     95 % interval  no answer     cut",
        _row("flexible", result,
             f"of {result['n']} problems" + f", mean of {samples} samples" * (samples > 1)),
        _row("strict", result["strict"], "marked answers only: a box or ####"),
        _row("exact string", result["exact"], "the gold answer's very characters"),
    ]
    for kind, vote in result.get("votes", {}).items():
        note = f"{100 * vote['gain']:+.1f} points beside one sample (SE {100 * vote['gain_se']:.1f})"
        lines.append(_row(f"{VOTES[kind]} {samples}", vote | {"truncated_rate": cut},
                          note))  # cut: of all that vote
    if "greedy" in result:
        lost = result["greedy"].get("lost")
        note = f"of {result['greedy']['n']} problems, {lost} replies lost" if lost else ""
        lines.append(_row("greedy", result["greedy"], note))
        lines.append(f"{'majority beside greedy':24s}{_change(result['greedy']['majority'])}")
    for field in ("level", "subject"):
        parts = result[f"by_{field}"]
        for name, part in parts.items() if len(parts) > 1 else ():
            lines.append(
                _row(f"{field} {name or '(none)'}" if field == "level" else name or "(none)", part,
                     f"of {part['n']}"))
    if samples > 1:
        lines += _curve(result)
    told = "an untold number of" if result["mean_tokens"] is None else f"{result['mean_tokens']:.0f}"
    lines.append(f"{'length':24s}{told} tokens a completion{_budget(result)}")
    if "eval_seconds" in result:
        timed, total = result["timed_completions"], result["n"] * samples
        part = f" (of the last {timed} of {total} completions)" if timed < total else ""
        lines.append(
            f"{'speed':24s}{result['eval_seconds']:.1f} s, {result['tokens_per_second']:.0f} tokens/s{part}"
        )
    if "cost" in result:
        lines.append(f"{'cost':24s}{cost_line(result['cost'])}")
    lines.append(f"{'grading':24s}{result['grading_seconds_per_1000']:.3f} s for 1,000 answers")
    return lines


def _losses(result: dict) -> str:
    return (
        f"lost {result['lost']} of {result['wanted']} replies: {result['left_out']} problem(s) left out below; "
        "with --output-dir they are asked again")


def cost_line(cost: dict) -> str:
    """What a teacher was asked in this sitting, and what its replies have cost."""
    return (
        f"{cost['requests']} requests ({cost['retries']} of them again) in {cost['seconds']:.1f} s; in all "
        f"{cost['prompt_tokens']:,} prompt tokens, {cost['new_tokens']:,} new tokens")


def _row(name: str, part: dict, note: str) -> str:
    low, high = part["ci95"]
    return (
        f"{name:24s}{part['accuracy']:8.1%}{f'{low:.1%} to {high:.1%}':>18s}{part['no_answer_rate']:11.1%}"
        f"{part['truncated_rate']:8.1%}  {note}").rstrip()


def _budget(result: dict) -> str:
    most = result.get("max_new_tokens")
    least = result.get("least_new_tokens", most)  # a server does not tell its model's positions
    if most is None:  # graded again from records alone
        return ""
    sooner = f" (after the longest prompt at {least:,}: the model's positions end)" if least < most else ""
    return f", cut at {most:,}{sooner}"


def _curve(result: dict) -> list[str]:
    """Accuracy by the number k of samples, a column for each k."""
    ks = list(result["pass_at_k"])
    lines = [f"{'k samples':24s}" + "".join(f"{k:>8s}" for k in ks)]
    lines.append(f"{'pass@k, one is right':24s}" + "".join(f"{result['pass_at_k'][k]:8.1%}"
                                                           for k in ks))
    names = {"majority": "maj@k", "weighted": "weighted vote@k", "best": "most confident@k"}
    for kind in result["maj_at_k"]:
        name = names[kind]
        lines.append(f"{name:24s}" + "".join(f"{result['maj_at_k'][kind][k]['accuracy']:8.1%}"
                                             for k in ks))
    error = max(point["se"] for points in result["maj_at_k"].values() for point in points.values())
    if error:
        lines.append(
            f"{'':24s}(drawn subsets of k: standard error at most {100 * error:.2f} points)")
    return lines


def _change(change: dict) -> str:
    points = 100 * (change["accuracy_after"] - change["accuracy_before"])
    return f"{points:+.1f} points: {change['gained']} gained, {change['lost']} lost, McNemar p = {change['p']:.2g}"


def versus_lines(other: str, change: dict) -> list[str]:
    """A comparison for people: the test, then each problem whose verdict changed."""
    lines = [
        f"versus {other}: {change['n']} problems in common, of {change['n_before']} there and {change['n_after']} here",
        f"  {change['accuracy_before']:.1%} there, {change['accuracy_after']:.1%} here, {_change(change)}",
    ]
    for problem in sorted(change["changed"], key=lambda problem: problem["gained"]):
        answers = [_short(problem[key]) for key in ("gold", "before", "after")]
        lines.append(
            f"  {'gained' if problem['gained'] else 'lost  '} {problem['id']}: gold {answers[0]}, "
            f"there {answers[1]}, here {answers[2]}")
    return lines


def _short(answer: str | None, most: int = 40) -> str:
    """An answer on one line. It comes from a model, and may hold anything."""
    if answer is None:
        return "(none)"
    line = "".join(char if char.isprintable() else " " for char in answer[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"
