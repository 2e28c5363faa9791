"""From completions to figures: verdicts, accuracies with intervals, and two evaluations compared.

    python evaluate.py --regrade runs/eval-mini-gsm-1/generations.jsonl     # without a model

A record is one completion with its problem: a line of generations.jsonl. Every figure can be
counted again from the records. A completion is scored in three ways:

    flexible        the answer in any form, compared by value; this is what "accuracy" means
    strict          only an answer that the completion marks itself: a box or ####
    exact string    the flexible answer, which must be the gold answer character by character

If strict is far below flexible, the model does not keep to the form. If exact is far below
flexible, much depends on the grader, and its verdicts deserve a look.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from answers import equivalent, extract_answer
from runtime import (LONGEST_RECORD, UserError, check_regular, finite, json_fault, one_line,
                     printable, read_json)
from stats import interval, mcnemar, split_gain

# What a record must hold to be graded and counted. None: the server did not say it.
FIELDS = {
    "id": str, "problem": int, "sample": int, "question": str, "gold": str, "level": str,
    "subject": str, "text": str, "tokens": int | None, "finish": str, "mean_log_prob": float | None,
}
VOTES = {"majority": "majority of", "weighted": "weighted vote of", "best": "most confident of"}

# ------------------------------------------------------------------------------------------ records


@dataclass
class Report:
    """A finished evaluation: the figures of result.json, and records in (problem, sample) order."""

    result: dict
    records: list[dict]

    @property
    def verdicts(self) -> list[bool]:
        """Whether each problem's answer is right. Of several samples the majority decides."""
        chosen = map(_chosen, by_problem(self.records))
        return [record is not None and record["correct"] for record in chosen]


def record_of(problem, number: int, sample: int, text: str, tokens: int | None, finish: str,
              mean_log_prob: float | None) -> dict:
    """The graded record of completion `sample` of `problem`, a data.Problem.

    number: the problem's index in its list. tokens: without the stop token, if we count them.
    finish: "stop", or "length" if the completion was cut. mean_log_prob: nats per token.
    """
    return {
        "id": problem.id, "problem": number, "sample": sample, "question": problem.question,
        "gold": problem.answer, "level": problem.level, "subject": problem.subject,
        "text": text, "tokens": tokens, "finish": finish, "mean_log_prob": mean_log_prob,
        **verdict(problem.answer, text, finish),
    }


def verdict(gold: str, text: str, finish: str) -> dict:
    """What the grader says of a completion: the part of its record that `grade_again` replaces.

    A completion that was cut has an answer only if it marks one: the last number before a cut is
    not an answer, and a number that ends at the cut may be half of one.
    """
    cut = finish != "stop"
    marked = extract_answer(text, strict=True, cut=cut)
    answer = marked if cut or marked is not None else extract_answer(text)
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
    graded = [record | verdict(record["gold"], record["text"], record["finish"])
              for record in records]
    return graded, 1000 * (time.perf_counter() - start) / len(records)


def read_records(path: Path) -> list[dict]:
    """The records of a generations.jsonl in (problem, sample) order, without a half last line.

    Raises UserError with file and line for a line that is not a record.
    """
    if path.exists():
        check_regular(path)
    records = {}
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            record = json.loads(line, parse_float=finite, parse_constant=finite)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({json_fault(error)}); "
                            "remove that line") from None
        wrong = wrong_fields(record)
        if wrong:
            raise UserError(f"{path}:{number}: no record of an evaluation ({', '.join(wrong)}"
                            " missing or wrong); remove that line")
        records.setdefault(place(record), record)
    return [records[at] for at in sorted(records)]


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file that end in a newline: a crash may have cut the last, even inside a
    character. Raises UserError for one that is too long to be a record.
    """
    try:
        with open(path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(LONGEST_RECORD)
                if len(line) == LONGEST_RECORD:
                    raise UserError(f"{path}:{number}: a line of {LONGEST_RECORD:,} bytes or more "
                                    "is no record of an evaluation; remove that line")
                if not line.endswith(b"\n"):
                    return
                yield line.decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def wrong_fields(record) -> list[str]:
    """The fields that a parsed line lacks, or that hold another type or a value out of range."""
    if not isinstance(record, dict):
        return list(FIELDS)
    wrong = [name for name, kind in FIELDS.items()
             if name not in record or not isinstance(record[name], kind)
             or isinstance(record[name], int) and not _is_count(record[name])]
    # Below 1 and not below 0: rounding may lift it a little.
    if not wrong and not -math.inf < (record["mean_log_prob"] or 0) < 1:
        wrong = ["mean_log_prob"]
    return wrong


def _is_count(value: int) -> bool:
    """Whether a whole number can be a count or a place (True is an int too)."""
    return type(value) is int and 0 <= value < 2**53


def place(record: dict) -> tuple[int, int]:
    """The place of a record: (index of its problem, number of its sample)."""
    return record["problem"], record["sample"]


def by_problem(records: list[dict]) -> list[list[dict]]:
    """The records of each problem, from records in (problem, sample) order."""
    groups: dict[int, list[dict]] = {}
    for record in records:
        groups.setdefault(record["problem"], []).append(record)
    return list(groups.values())


def read_finished(path: Path) -> list[dict]:
    """The records of a finished evaluation, from its folder or its generations.jsonl.

    Raises UserError for an unfinished one: short completions end first, so they are not a fair
    sample. An evaluation that has lost replies of a server (its result.json says so) is finished
    without these problems.
    """
    if path.is_dir():
        inside = ", ".join(map(str, sorted(path.glob("evals/*"))))
        path = path / "generations.jsonl"
        if inside and not path.exists():
            raise UserError(f"{path.parent}: a run, not an evaluation; its evaluations are "
                            f"{inside}")
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
        raise UserError(f"{path}: holds {len(places)} completions of an unfinished evaluation;"
                        " let it end first")
    return records


# ------------------------------------------------------------------------------------------ figures


def summarise(records: list[dict]) -> dict:
    """The figures of all records in (problem, sample) order. Rates are fractions, intervals 95 %.

    accuracy: the mean over problems and samples. ended_with_answer_rate: the share of completions
    that have an answer and were not cut. by_level and by_subject are empty if the data has none.
    With several samples a problem there are also the figures of vote.summarise_votes.
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
    if samples > 1:
        # Imported here: with one sample a problem there is nothing to vote on.
        from vote import summarise_votes

        result |= summarise_votes(groups)
    return result


def score(groups: list[list[dict]], right: str = "correct", answer: str = "answer") -> dict:
    """Accuracy of the records of some problems, by the field `right`, and the rates beside it.

    ci95: Wilson's with one sample a problem, else a bootstrap over problems (see stats.interval).
    no_answer_rate: the completion has no answer. truncated_rate: it was cut at the token limit. A
    completion can count in both.
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


# --------------------------------------------------------------------------------------- comparison


def _chosen(group: list[dict]) -> dict | None:
    """The record that decides a problem, of several the majority's; None if none has an answer."""
    if len(group) == 1:
        return None if group[0]["answer"] is None else group[0]
    from vote import majority  # see summarise

    return majority(group)


def compare_evaluations(before: list[dict], after: list[dict]) -> dict:
    """Two evaluations on the problems that both have: what changed, and could it be chance?

    Problems are the same if question and gold answer are. A problem's verdict is that of its
    sample, or of the majority of its samples. gained and lost count the changed verdicts, p is
    McNemar's exact one, `changed` lists the problems. Raises UserError if there is no common
    problem.
    """
    there, here = ({(group[0]["question"], group[0]["gold"]): group
                    for group in by_problem(records)} for records in (before, after))
    shared = [key for key in here if key in there]
    if not shared:
        raise UserError("the two evaluations have no problem in common, and cannot be compared")
    verdicts, changed = [], []
    for key in shared:
        old, new = _chosen(there[key]), _chosen(here[key])
        was, now = (record is not None and record["correct"] for record in (old, new))
        verdicts.append((was, now))
        if was != now:
            changed.append({"id": here[key][0]["id"], "question": key[0], "gold": key[1],
                            "gained": now, "before": old and old["answer"],
                            "after": new and new["answer"]})
    was, now = zip(*verdicts)
    gained = sum(problem["gained"] for problem in changed)
    return {
        "n": len(shared), "n_before": len(there), "n_after": len(here),
        "accuracy_before": sum(was) / len(shared), "accuracy_after": sum(now) / len(shared),
        "gained": gained, "lost": len(changed) - gained, "p": mcnemar(was, now), "changed": changed,
    }


def before_and_after(before: Report | None, after: Report | None) -> dict:
    """The figures of the evaluations before and after a training, and what it has gained. All are
    null if nothing was measured.
    """
    names = ("accuracy", "ci95", "no_answer_rate", "truncated_rate", "ended_with_answer_rate")
    reports = {"before": before, "after": after}
    measured = before is not None and after is not None
    return {
        **{f"{name}_{when}": report and report.result[name]
           for name in names for when, report in reports.items()},
        "mcnemar_p": mcnemar(before.verdicts, after.verdicts) if measured else None,
        "gain": split_gain(before.result, after.result) if measured else None,
    }


# ----------------------------------------------------------------------------------------- in words


def report_lines(result: dict) -> list[str]:
    """The figures of result.json, for people. Beside every score is the share that was cut."""
    samples = result["samples"]
    lines = [_losses(result)] if result.get("lost") else []
    lines.append(f"{'':24s}accuracy     95 % interval  no answer     cut")
    lines += _three_scores(result) + _votes(result) + _rows_by_part(result)
    if samples > 1:
        lines += _curves(result)
    mean = result["mean_tokens"]
    tokens = "an unknown number of" if mean is None else f"{mean:.0f}"
    lines.append(f"{'length':24s}{tokens} tokens a completion{_budget(result)}")
    if "eval_seconds" in result:
        timed, total = result["timed_completions"], result["n"] * samples
        part = f" (of the last {timed} of {total} completions)" if timed < total else ""
        lines.append(f"{'speed':24s}{result['eval_seconds']:.1f} s,"
                     f" {result['tokens_per_second']:.0f} tokens/s{part}")
    if "cost" in result:
        lines.append(f"{'cost':24s}{cost_line(result['cost'])}")
    lines.append(f"{'grading':24s}{result['grading_seconds_per_1000']:.3f} s for 1,000 answers")
    return lines


def _losses(result: dict) -> str:
    return (f"lost {result['lost']} of {result['wanted']} replies: {result['left_out']} problem(s)"
            " left out below; with --output-dir they are asked again")


def _row(name: str, part: dict, note: str) -> str:
    low, high = part["ci95"]
    interval = f"{low:.1%} to {high:.1%}"
    return (f"{name:24s}{part['accuracy']:8.1%}{interval:>18s}{part['no_answer_rate']:11.1%}"
            f"{part['truncated_rate']:8.1%}  {note}").rstrip()


def _three_scores(result: dict) -> list[str]:
    samples = result["samples"]
    mean = f", mean of {samples} samples" if samples > 1 else ""
    return [_row("flexible", result, f"of {result['n']} problems{mean}"),
            _row("strict", result["strict"], "marked answers only: a box or ####"),
            _row("exact string", result["exact"], "the gold answer's very characters")]


def _votes(result: dict) -> list[str]:
    """Each kind of vote, and the greedy evaluation of the same problems."""
    lines = []
    for kind, vote in result.get("votes", {}).items():
        note = (f"{100 * vote['gain']:+.1f} points beside one sample"
                f" (SE {100 * vote['gain_se']:.1f})")
        part = vote | {"truncated_rate": result["truncated_rate"]}  # of all samples that vote
        lines.append(_row(f"{VOTES[kind]} {result['samples']}", part, note))
    if "greedy" in result:
        greedy = result["greedy"]
        lost = greedy.get("lost")
        note = f"of {greedy['n']} problems, {lost} replies lost" if lost else ""
        lines.append(_row("greedy", greedy, note))
        lines.append(f"{'majority beside greedy':24s}{_change(greedy['majority'])}")
    return lines


def _rows_by_part(result: dict) -> list[str]:
    """The score of each level and subject. Their names come from a file, and may hold anything."""
    lines = []
    for field, prefix in (("level", "level "), ("subject", "")):
        parts = result[f"by_{field}"]
        for name, part in parts.items() if len(parts) > 1 else ():
            shown = f"{prefix}{_short(name)}" if name else f"{prefix}(none)"
            lines.append(_row(shown, part, f"of {part['n']}"))
    return lines


def _curves(result: dict) -> list[str]:
    """Accuracy by the number k of samples, a column for each k."""
    rows = {"k samples": [f"{k:>8s}" for k in result["pass_at_k"]],
            "pass@k, one is right": [f"{share:8.1%}" for share in result["pass_at_k"].values()]}
    names = {"majority": "maj@k", "weighted": "weighted vote@k", "best": "most confident@k"}
    for kind, points in result["maj_at_k"].items():
        rows[names[kind]] = [f"{point['accuracy']:8.1%}" for point in points.values()]
    lines = [f"{name:24s}{''.join(cells)}" for name, cells in rows.items()]
    error = max(point["se"] for points in result["maj_at_k"].values() for point in points.values())
    if error:
        lines.append(f"{'':24s}(drawn subsets of k: standard error at most"
                     f" {100 * error:.2f} points)")
    return lines


def _budget(result: dict) -> str:
    most = result.get("max_new_tokens")
    least = result.get("least_new_tokens", most)  # a server does not say how many positions it has
    if most is None:  # graded again from records alone
        return ""
    sooner = (f" (after the longest prompt at {least:,}: the model's positions end)"
              if least < most else "")
    return f", cut at {most:,}{sooner}"


def cost_line(cost: dict) -> str:
    """What the teacher was asked in this run, and the tokens of all its replies so far."""
    return (f"{cost['requests']} requests ({cost['retries']} of them again)"
            f" in {cost['seconds']:.1f} s; in all {cost['prompt_tokens']:,} prompt tokens,"
            f" {cost['new_tokens']:,} new tokens")


def _change(change: dict) -> str:
    points = 100 * (change["accuracy_after"] - change["accuracy_before"])
    return (f"{points:+.1f} points: {change['gained']} gained, {change['lost']} lost,"
            f" McNemar p = {change['p']:.2g}")


def versus_lines(other: str, change: dict) -> list[str]:
    """A comparison for people: the test, then each problem with another verdict than before."""
    before, after = change["accuracy_before"], change["accuracy_after"]
    lines = [(f"versus {other}: {change['n']} problems in common,"
              f" of {change['n_before']} there and {change['n_after']} here"),
             f"  {before:.1%} there, {after:.1%} here, {_change(change)}"]
    for problem in sorted(change["changed"], key=lambda problem: problem["gained"]):
        gold, there, here = (_short(problem[key]) for key in ("gold", "before", "after"))
        name = "gained" if problem["gained"] else "lost  "
        lines.append(f"  {name} {one_line(problem['id'])}: gold {gold}, there {there}, here {here}")
        lines.append(f"         {_short(problem['question'], 90)}")
    return lines


def gain_line(result: dict) -> str:
    """What `before_and_after` has found, in words."""
    gain, points = result["gain"], 100 * (result["accuracy_after"] - result["accuracy_before"])
    return (f"gain       {points:+z.1f} points: {100 * gain['more_answers']:+z.1f} by more "
            f"answers, {100 * gain['more_right_answers']:+z.1f} by more right ones; "
            f"McNemar p = {result['mcnemar_p']:.2g}")


def wrong_lines(records: list[dict], most: int) -> list[str]:
    """The first wrong completions with their problems. Raw texts could move a terminal's cursor."""
    lines = []
    for record in [record for record in records if not record["correct"]][:most]:
        lines.append(printable(f"\nstill wrong: {record['question']}\n  gold {record['gold']}; "
                               "the model wrote:"))
        lines += [f"  | {printable(line)}" for line in record["text"].splitlines()] or [""]
    return lines


def _short(answer: str | None, most: int = 40) -> str:
    """An answer on one line. It comes from a model, and may hold anything."""
    if answer is None:
        return "(none)"
    line = one_line(answer)
    return line if len(line) <= most else line[: most - 1] + "…"
