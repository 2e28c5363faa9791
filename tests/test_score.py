"""score.py: verdicts, figures over many completions, and two evaluations side by side."""

import json
import os
import random
from pathlib import Path

import pytest

from data import load_problems
from runtime import UserError
from score import (FIELDS, Report, by_problem, compare_evaluations, grade_again, read_finished,
                   read_records, report_lines, summarise, verdict, versus_lines)
from stats import bootstrap, mcnemar, wilson

GOLDS = ["5", "3.5", "100"]
LEVELS, SUBJECTS = ["1", "2", "2"], ["sums", "fractions", "sums"]


def record(problem: int, sample: int, text: str, finish: str = "stop",
           mean_log_prob: float = -1.0) -> dict:
    return {
        "id": f"p{problem}", "problem": problem, "sample": sample,
        "question": f"question {problem}", "gold": GOLDS[problem], "level": LEVELS[problem],
        "subject": SUBJECTS[problem], "text": text, "tokens": len(text), "finish": finish,
        "mean_log_prob": mean_log_prob, **verdict(GOLDS[problem], text, finish),
    }


def records_of(texts: list[list[str]], **options) -> list[dict]:
    return [
        record(p, s, text, **options) for p, row in enumerate(texts) for s, text in enumerate(row)
    ]


# ----------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    "gold, text, finish, answer, correct, strict_correct, exact",
    [
        ("72", "so #### 72", "stop", "72", True, True, True),
        ("72", r"thus \boxed{72}.", "stop", "72", True, True, True),
        ("72", "The answer is 72", "stop", "72", True, False, True),  # right, and not marked
        ("72", "She has 72 left", "stop", "72", True, False, True),
        ("3.5", r"so \boxed{\frac{7}{2}}", "stop", r"\frac{7}{2}", True, True,
         False),  # right by value, another string
        ("1000", "#### 1,000", "stop", "1,000", True, True, False),
        (" 72 ", "#### 72", "stop", "72", True, True,
         True),  # space around a gold answer is no part of it
        ("72", "#### 71", "stop", "71", False, False, False),
        ("72", "I do not know", "stop", None, False, False, False),
        ("72", "", "stop", None, False, False, False),
        ("72", "and then 72", "length", None, False, False,
         False),  # where it was cut there happened to stand a number
        ("72", "the answer is 72", "length", None, False, False, False),  # of 720, perhaps
        ("72", r"\boxed{72} and so", "length", "72", True, True,
         True),  # what it marked itself counts all the same
    ])
def test_verdicts(gold, text, finish, answer, correct, strict_correct, exact):
    said = verdict(gold, text, finish)
    assert (said["answer"], said["correct"]) == (answer, correct)
    assert (said["strict_correct"], said["exact"]) == (strict_correct, exact)


def assert_right(problems) -> None:
    """Every worked solution, graded like a completion, is right, also by the strict reading."""
    wrong = [problem.id for problem in problems
             for said in [verdict(problem.answer, problem.solution, "stop")]
             if not (said["correct"] and said["strict_correct"])]
    assert wrong == []


@pytest.mark.parametrize("dataset", ["mini-gsm", "mini-math"])
def test_every_worked_solution_is_right(dataset):
    problems = load_problems(dataset, "test")
    assert len(problems) == 500
    assert_right(problems)


@pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                    reason="MATHFT_DATA names no folder with the published files")
@pytest.mark.parametrize("file, count", [("gsm8k/test.jsonl", 1319), ("math500/test.json", 500)])
def test_every_published_solution_is_right(file, count):
    problems = load_problems(str(Path(os.environ["MATHFT_DATA"]) / file))
    assert len(problems) == count
    assert_right(problems)


def test_grading_again_replaces_the_verdict_alone():
    honest = records_of([["#### 5"], ["the answer is 7/2"], ["hm"]])
    spoilt = [entry | verdict("x", "y", "stop") | {"note": "kept"} for entry in honest]
    graded, seconds = grade_again(spoilt)
    assert graded == [entry | {"note": "kept"} for entry in honest]
    assert seconds > 0


# ------------------------------------------------------------------------------------------ figures


def test_the_figures_of_single_samples():
    records = [
        record(0, 0, "#### 5"),
        record(1, 0, "7/2 it is"),
        record(2, 0, "so 100 and", finish="length")
    ]
    third = list(wilson(1, 3))
    assert summarise(records) == {
        "samples": 1, "n": 3, "accuracy": 2 / 3, "ci95": list(wilson(
            2, 3)), "no_answer_rate": 1 / 3, "truncated_rate": 1 / 3,
        "ended_with_answer_rate": 2 / 3, "mean_tokens": (6 + 9 + 10) / 3, "strict": {
            "n": 3, "accuracy": 1 / 3, "ci95": third, "no_answer_rate": 2 / 3,
            "truncated_rate": 1 / 3
        }, "exact": {
            "n": 3, "accuracy": 1 / 3, "ci95": third, "no_answer_rate": 1 / 3,
            "truncated_rate": 1 / 3
        }, "by_level": {
            "1": {
                "n": 1, "accuracy": 1.0, "ci95": list(wilson(1, 1)), "no_answer_rate": 0.0,
                "truncated_rate": 0.0
            }, "2": {
                "n": 2, "accuracy": 0.5, "ci95": list(wilson(1, 2)), "no_answer_rate": 0.5,
                "truncated_rate": 0.5
            },
        }, "by_subject": {
            "fractions": {
                "n": 1, "accuracy": 1.0, "ci95": list(wilson(1, 1)), "no_answer_rate": 0.0,
                "truncated_rate": 0.0
            }, "sums": {
                "n": 2, "accuracy": 0.5, "ci95": list(wilson(1, 2)), "no_answer_rate": 0.5,
                "truncated_rate": 0.5
            },
        },
    }


def test_levels_and_subjects_only_where_the_data_has_them():
    plain = [
        entry | {"level": "", "subject": ""} for entry in records_of([["#### 5"], ["1"], ["2"]])
    ]
    result = summarise(plain)
    assert result["by_level"] == result["by_subject"] == {}


VOTES = [
    ["#### 5", "#### 6", "#### 5.0",
     "none"],  # two equal values win: the vote is right, half of the samples are
    ["3", "4", "7/2", "4"],  # the vote is wrong
    ["hm", "hm", "hm", "#### 100"],  # one voter decides
]


def test_the_figures_of_several_samples():
    result = summarise(records_of(VOTES))
    single = [0.5, 0.25, 0.25]
    assert result["samples"] == 4 and result["n"] == 3
    assert result["accuracy"] == pytest.approx(1 / 3) == result["pass_at_k"]["1"]
    assert result["ci95"] == bootstrap(single)[1] and result["accuracy_se"] == bootstrap(single)[0]
    majority = result["votes"]["majority"]
    assert majority["accuracy"] == pytest.approx(2 / 3) and majority["ci95"] == list(wilson(2, 3))
    assert majority["gain"] == pytest.approx(2 / 3 - 1 / 3)
    assert majority["gain_se"] == bootstrap([0.5, -0.25, 0.75])[0]
    assert list(result["pass_at_k"]) == ["1", "2", "4"] and result["pass_at_k"]["4"] == 1.0
    for kind in ("majority", "weighted", "best"):
        points = result["maj_at_k"][kind]
        assert list(points) == ["1", "2", "4"]
        assert points["1"]["accuracy"] == pytest.approx(1 / 3)  # one vote is one sample
        assert points["4"]["accuracy"] == pytest.approx(
            result["votes"][kind]["accuracy"]) or kind == "best"  # no ties
        assert all(
            point["accuracy"] <= result["pass_at_k"][k] + 1e-12 for k, point in points.items())
        assert all(point["se"] == 0 for point in points.values())  # all subsets of four are counted
    json.dumps(result, allow_nan=False)


def test_each_kind_of_vote_has_its_own_winner():
    """Two unsure votes for 6, one surer one for 5, the surest for 7."""
    sure = {"#### 6": -2.0, "#### 5": -0.1, "#### 7": -0.05}
    texts = ["#### 6", "#### 6", "#### 5", "#### 5.0", "#### 6", "#### 7"]
    log_probs = [sure.get(text, -0.1) for text in texts]
    for gold, right in [("6", "majority"), ("5", "weighted"), ("7", "best")]:
        records = [record(0, s, text, mean_log_prob=log_prob) | {"gold": gold}
                   for s, (text, log_prob) in enumerate(zip(texts, log_probs))]
        votes = summarise(grade_again(records)[0])["votes"]
        assert {kind: vote["accuracy"] for kind, vote in votes.items()} == {
            kind: float(kind == right) for kind in ("majority", "weighted", "best")
        }


def test_a_tied_vote_goes_to_the_surer_answer():
    records = [
        record(0, 0, "#### 6", mean_log_prob=-2.0),
        record(0, 1, "#### 5", mean_log_prob=-0.1)
    ]
    assert summarise(records)["votes"]["majority"]["accuracy"] == 1.0


def test_where_nobody_answers_nobody_is_chosen():
    result = summarise(records_of([["hm", "hm"], ["#### 3.5", "hm"]]))
    for vote in result["votes"].values():
        assert vote["accuracy"] == vote["no_answer_rate"] == 0.5
    assert result["no_answer_rate"] == 0.75


def random_records(seed: int, problems: int = 3, samples: int = 5) -> list[dict]:
    rng = random.Random(seed)
    texts = [[
        rng.choice(["#### 5", "#### 3.5", "so 100", "hm", "#### 7/2"]) for _ in range(samples)
    ] for _ in range(problems)]
    return [entry | {"mean_log_prob": -rng.random()} for entry in records_of(texts)]


@pytest.mark.parametrize("seed", range(20))
def test_laws(seed):
    records = random_records(seed)
    result = summarise(records)
    # A vote is right only where some sample is, and never wrong where all are.
    rights = [[entry["correct"] for entry in group] for group in by_problem(records)]
    all_right, some_right = sum(map(all, rights)) / 3, sum(map(any, rights)) / 3
    assert result["pass_at_k"]["5"] == pytest.approx(some_right)
    for vote in result["votes"].values():
        assert all_right - 1e-12 <= vote["accuracy"] <= some_right + 1e-12
        assert vote["gain"] == pytest.approx(vote["accuracy"] - result["accuracy"])
    # A marked answer is an answer, and the very string is equal by value.
    assert result["strict"]["accuracy"] <= result["accuracy"] and result["exact"][
        "accuracy"] <= result["accuracy"]
    # The parts add up to the whole.
    for parts in (result["by_level"], result["by_subject"]):
        assert sum(part["n"] for part in parts.values()) == result["n"]
        assert sum(part["n"] * part["accuracy"] for part in parts.values()) / 3 == pytest.approx(
            result["accuracy"])
    # More samples cannot lower the chance that one of them is right.
    curve = list(result["pass_at_k"].values())
    assert curve == sorted(curve)


def test_votes_over_equal_samples_change_nothing():
    records = records_of([["#### 5"] * 3, ["#### 0"] * 3, ["#### 100"] * 3])
    result = summarise(records)
    assert result["accuracy"] == result["votes"]["majority"]["accuracy"] == result["pass_at_k"][
        "3"] == 2 / 3
    assert result["votes"]["majority"]["gain"] == result["votes"]["majority"]["gain_se"] == 0
    assert {point["accuracy"]
            for curve in result["maj_at_k"].values()
            for point in curve.values()} == {2 / 3}


def test_a_single_samples_vote_is_its_verdict():
    records = records_of([["#### 5"], ["hm"], ["#### 99"]])
    assert Report({}, records).verdicts == [True, False, False]
    assert Report({}, records_of(VOTES)).verdicts == [True, False, True]


# --------------------------------------------------------------------------------------- comparison


def test_two_evaluations_are_paired_by_problem():
    before = records_of([["#### 5"], ["hm"], ["#### 99"]])
    after = records_of([["#### 6"], ["so 7/2"], ["#### 100"]])
    change = compare_evaluations(before, after)
    assert (change["gained"], change["lost"]) == (2, 1)
    assert change["p"] == mcnemar([True, False, False], [False, True, True])
    assert (change["accuracy_before"], change["accuracy_after"]) == (1 / 3, 2 / 3)
    assert change["changed"] == [
        {"id": "p0", "question": before[0]["question"], "gold": "5", "gained": False,
         "before": "5", "after": "6"},
        {"id": "p1", "question": before[1]["question"], "gold": "3.5", "gained": True,
         "before": None, "after": "7/2"},
        {"id": "p2", "question": before[2]["question"], "gold": "100", "gained": True,
         "before": "99", "after": "100"},
    ]
    lines = versus_lines("runs/x", change)
    assert lines == [
        "versus runs/x: 3 problems in common, of 3 there and 3 here",
        "  33.3% there, 66.7% here, +33.3 points: 2 gained, 1 lost, McNemar p = 1",
        "  lost   p0: gold 5, there 5, here 6",
        f"         {before[0]['question']}",
        "  gained p1: gold 3.5, there (none), here 7/2",
        f"         {before[1]['question']}",
        "  gained p2: gold 100, there 99, here 100",
        f"         {before[2]['question']}",
    ]


def test_several_samples_are_paired_by_their_majority():
    greedy = records_of([["#### 6"], ["#### 3.5"], ["hm"]])
    change = compare_evaluations(greedy, records_of(VOTES))
    assert (change["gained"], change["lost"]) == (2, 1)
    answers = [(entry["before"], entry["after"]) for entry in change["changed"]]
    assert answers == [("6", "5"), ("3.5", "4"), (None, "100")]


def test_only_shared_problems_are_paired_whatever_their_order_and_file():
    before = records_of([["#### 5"], ["hm"], ["hm"]])
    # The other file has two of the problems, in another order, under other names, one with another
    # gold answer.
    moved = [
        before[1] | {"problem": 0, "id": "new"},
        before[0] | {"problem": 1, "gold": "55", "correct": False}
    ]
    change = compare_evaluations(before, moved)
    assert (change["n"], change["n_before"], change["n_after"]) == (1, 3, 2)
    assert (change["gained"], change["lost"], change["p"]) == (0, 0, 1.0)
    with pytest.raises(UserError, match="no problem in common"):
        compare_evaluations(before, moved[1:])


def test_an_answer_cannot_spoil_the_page():
    nasty = "7\n\x1b[31m" + "9" * 100
    after = [record(0, 0, "#### 5") | {"answer": nasty, "correct": False}]
    *_, line, _ = versus_lines("x", compare_evaluations([record(0, 0, "#### 5")], after))
    assert "\n" not in line and "\x1b" not in line and line.endswith("…") and len(line) < 90
    hidden = [entry | {"id": "p\x1b[2J\n\u202e"} for entry in after]
    *_, line, _ = versus_lines("x", compare_evaluations([record(0, 0, "#### 5")], hidden))
    assert line.startswith("  lost   p [2J  : gold 5, there 5, here ")


def test_a_subject_cannot_spoil_the_page():
    records = [entry | {"subject": f"\x1b[31m{number}\n"}
               for number, entry in enumerate(records_of([["#### 5"], ["hm"]]))]
    text = "\n".join(report_lines(summarise(records) | {"grading_seconds_per_1000": 0.1}))
    assert "\x1b" not in text and "\n [31m0  " in text and "\n [31m1  " in text


# ------------------------------------------------------------------------------------------- report


def test_the_report_says_it_in_words():
    result = summarise(records_of(VOTES)) | {"grading_seconds_per_1000": 0.25}
    change = compare_evaluations(records_of([["#### 6"], ["#### 3.5"], ["hm"]]), records_of(VOTES))
    result["greedy"] = summarise(records_of([["#### 6"], ["#### 3.5"], ["hm"]
                                             ])) | {"majority": change}
    timed = {
        "eval_seconds": 2.0, "tokens_per_second": 50.0, "timed_completions": 9,
        "max_new_tokens": 2048, "least_new_tokens": 100
    }
    text = "\n".join(report_lines(result | timed))
    for words in [
            "flexible                   33.3%", "of 3 problems, mean of 4 samples",
            "majority of 4              66.7%    20.8% to 93.9%       0.0%    0.0%"
            "  +33.3 points beside one sample",
            "greedy                     33.3%",
            "majority beside greedy  +33.3 points: 2 gained, 1 lost, McNemar p = 1",
            "k samples                      1       2       4",
            "pass@k, one is right       33.3%   61.1%  100.0%", "level 1 ", "level 2 ",
            "fractions ",
            "tokens a completion, cut at 2,048 (after the longest prompt at 100:"
            " the model's positions end)",
            "2.0 s, 50 tokens/s (of the last 9 of 12 completions)", "0.250 s for 1,000 answers",
    ]:
        assert words in text, words
    assert all(len(line) <= 120 for line in text.split("\n"))


def test_every_score_has_the_truncated_share_beside_it():
    cut = [
        record(0, 0, r"\boxed{5} and", finish="length"),
        record(1, 0, "hm"),
        record(2, 0, "1", finish="length")
    ]
    lines = report_lines(summarise(cut) | {"grading_seconds_per_1000": 0.1})
    header, rows = lines[0], lines[1:8]
    end = header.index("cut") + len("cut")
    assert "95 % interval" in header and "no answer" in header and header.endswith("cut")
    names = ["flexible", "strict", "exact string", "level 1", "level 2", "fractions", "sums"]
    assert [row[:24].strip() for row in rows] == names
    shares = [row[end - 7 : end].strip() for row in rows]
    assert shares == ["66.7%", "66.7%", "66.7%", "100.0%", "50.0%", "0.0%", "100.0%"]
    assert not any("majority" in line or "speed" in line for line in lines)


# ---------------------------------------------------------------------- what a server does not tell


def test_without_log_probabilities_the_majority_stands_alone():
    """Also where one of them is missing: a vote is weighted by all or by none."""
    records = records_of(VOTES)
    full = summarise(records)
    for missing in (records, records[2:3]):
        bare = [entry | {"mean_log_prob": None} if entry in missing else entry for entry in records]
        result = summarise(bare)
        assert list(result["votes"]) == list(result["maj_at_k"]) == ["majority"]
        assert result["votes"]["majority"] == full["votes"]["majority"] and result[
            "pass_at_k"] == full["pass_at_k"]
        assert Report(result, bare).verdicts == Report(full, records).verdicts
        assert "weighted" not in "\n".join(report_lines(result | {"grading_seconds_per_1000": 0.1}))


def test_unknown_lengths_are_not_made_up(tmp_path):
    records = [
        record(0, 0, "#### 5") | {"tokens": None, "mean_log_prob": None},
        record(1, 0, "3.5")
    ]
    assert summarise(records)["mean_tokens"] is None
    assert read_finished(write(tmp_path / "generations.jsonl", records)) == records


def test_lost_replies_leave_a_gap_that_is_told(tmp_path):
    """Without the word of its result.json, a gap is what an interruption leaves."""
    records = [entry for entry in records_of(VOTES) if entry["problem"] != 1]
    write(tmp_path / "generations.jsonl", records)
    for result in ({}, {"lost": 0}):
        (tmp_path / "result.json").write_text(json.dumps(result))
        with pytest.raises(UserError, match="unfinished"):
            read_finished(tmp_path)
    (tmp_path / "result.json").write_text('{"lost": 3}')
    assert read_finished(tmp_path) == records
    write(tmp_path / "generations.jsonl", records[:-1])  # half of a problem's samples is never left
    with pytest.raises(UserError, match="unfinished"):
        read_finished(tmp_path)


# -------------------------------------------------------------------------------------------- files


def write(path: Path, records: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records) + tail, encoding="utf-8")
    return path


def test_records_are_read_in_order_each_once_without_a_half_line(tmp_path):
    records = records_of(VOTES)
    shuffled = random.Random(0).sample(records, len(records))
    file = write(tmp_path / "generations.jsonl", [*shuffled, records[3]], tail='{"id": "p0", "tex')
    assert read_records(file) == records
    assert read_records(write(tmp_path / "empty.jsonl", [])) == []


@pytest.mark.parametrize("line, said", [
    ("nonsense", "generations.jsonl:2: not valid JSON"),
    ("[" * 100_000, "generations.jsonl:2: not valid JSON"),
    ("[1]", "generations.jsonl:2: no record of an evaluation (id, problem"),
    ("{}", "generations.jsonl:2: no record of an evaluation (id, problem"),
    (json.dumps(record(0, 0, "x") | {"text": 5}),
     "generations.jsonl:2: no record of an evaluation (text missing"),
    (json.dumps(record(0, 0, "x") | {"mean_log_prob": float("nan")}), "(NaN is no finite number)"),
    (json.dumps(record(0, 0, "x") | {"mean_log_prob": 1e300}), "(mean_log_prob missing or wrong)"),
    (json.dumps(record(0, 0, "x") | {"tokens": 10**400}), "(tokens missing or wrong)"),
    (json.dumps(record(0, 0, "x") | {"tokens": -1}), "(tokens missing or wrong)"),
    (json.dumps(record(0, 0, "x") | {"sample": True}), "(sample missing or wrong)"),
    # What could not be written again.
    (json.dumps(record(0, 0, "x") | {"more": float("nan")}),
     "generations.jsonl:2: not valid JSON (NaN is no finite number)"),
    (json.dumps(record(0, 0, "x"))[:-1] + ', "more": 1e999}',
     "generations.jsonl:2: not valid JSON (1e999 is no finite number)"),
])
def test_what_is_no_record_is_named_by_file_and_line(line, said, tmp_path):
    file = write(tmp_path / "generations.jsonl", [record(1, 0, "x")], tail=line + "\n")
    with pytest.raises(UserError) as error:
        read_records(file)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "generations.jsonl")
    with pytest.raises(UserError, match="no regular file"):
        read_finished(tmp_path)


def test_a_line_without_an_end_is_read_in_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("score.LONGEST_RECORD", 1000)
    long = record(1, 0, "x" * 1000)
    for tail in ("y" * 5000, json.dumps(long) + "\n"):
        file = write(tmp_path / "generations.jsonl", [record(0, 0, "x")], tail=tail)
        with pytest.raises(UserError, match="generations.jsonl:2: a line of 1,000 bytes or more"):
            read_records(file)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_asked_for(field, tmp_path):
    entry = record(0, 0, "x")
    del entry[field]
    with pytest.raises(UserError, match=f"{field} missing or wrong"):
        read_records(write(tmp_path / "generations.jsonl", [entry]))


def test_only_a_finished_evaluation_is_scored(tmp_path):
    """What ends first is short: the completions of an unfinished one are no fair sample."""
    whole = records_of(VOTES)
    file = write(tmp_path / "generations.jsonl", whole)
    assert read_finished(file) == read_finished(
        tmp_path) == whole  # records alone, from wherever they come
    for part in (whole[:-1], whole[1:], whole[4:], []):
        with pytest.raises(UserError,
                           match=f"holds {len(part)} completions of an unfinished evaluation"):
            read_finished(write(tmp_path / "part.jsonl", part))
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(UserError, match="unfinished"):  # whole problems, but are they all?
        read_finished(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert read_finished(tmp_path) == whole
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        read_finished(tmp_path / "nowhere")
    (tmp_path / "run" / "evals" / "after").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run: a run, not an evaluation; .*/run/evals/after$"):
        read_finished(tmp_path / "run")
