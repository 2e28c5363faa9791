"""evaluate.py: statistics against known values; an evaluation from prompt to report, interrupted and resumed."""

import json
import math

import pytest
import torch

import evaluate as module
from checkpoint import load_model
from data import Problem
from evaluate import bootstrap, evaluate, mcnemar, split_gain, summarise, wilson
from flags import run_command
from generate import Completion
from runtime import UserError
from tokenizer import Tokenizer

# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("successes, n, low, high", [
    (81, 263, 0.2553, 0.3662),  # these four: Newcombe 1998, Statistics in Medicine 17, table I, method 3
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (20, 20, 1 - 0.1611, 1.0),
    (0, 0, 0.0, 1.0),
])
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_holds_the_proportion_and_is_symmetric():
    for n in (1, 7, 500):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def paired(gained: int, lost: int, same: int = 10) -> tuple[list[bool], list[bool]]:
    return [False] * gained + [True] * (lost + same), [True] * gained + [False] * lost + [True] * same


@pytest.mark.parametrize("gained, lost, p", [
    (0, 0, 1.0),  # nothing changed
    (3, 3, 1.0),
    (5, 1, 14 / 64),  # 2 · (C(6,0) + C(6,1)) / 2^6
    (1, 5, 14 / 64),
    (10, 0, 2 / 1024),
    (6, 2, 74 / 256),  # 2 · (1 + 8 + 28) / 2^8
])
def test_mcnemar(gained, lost, p):
    assert mcnemar(*paired(gained, lost)) == pytest.approx(p)


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])
    assert 0 < mcnemar(*paired(500, 300, same=10_000)) < 1e-10  # and does not overflow


def test_bootstrap_agrees_with_the_error_of_a_mean():
    values = [0.0] * 70 + [1.0] * 30
    error, (low, high) = bootstrap(values)
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.1)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.02) and high == pytest.approx(0.3 + 1.96 * error, abs=0.02)
    assert bootstrap(values) == bootstrap(values)  # seeded
    assert bootstrap([0.5] * 10) == (0.0, [0.5, 0.5])


def test_a_gain_is_more_answers_and_more_right_answers():
    before = {"accuracy": 0.2, "no_answer_rate": 0.5}  # half are answered, two fifths of those rightly
    after = {"accuracy": 0.72, "no_answer_rate": 0.1}  # nine tenths are answered, four fifths of those rightly
    assert split_gain(before, after) == pytest.approx({"more_answers": 0.4 * 0.4, "more_right_answers": 0.9 * 0.4})
    silent = {"accuracy": 0.0, "no_answer_rate": 1.0}
    for a, b in [(before, after), (after, before), (silent, after), (after, silent)]:
        assert sum(split_gain(a, b).values()) == pytest.approx(b["accuracy"] - a["accuracy"])


# ------------------------------------------------------------------------------------------------- grading and counting

PROBLEMS = [
    Problem("first", "What is 2 + 3?", "", "5", level="1"),
    Problem("second", "What is half of 7?", "", "3.5", level="2", subject="fractions"),
    Problem("third", "What is 2 · 50?", "", "100", level="2"),
]


def record(problem: int, sample: int, text: str, finish: str = "stop", mean_log_prob: float = -1.0) -> dict:
    return module.grade(PROBLEMS[problem], Completion(problem, sample, [0] * len(text), finish, mean_log_prob), text)


def test_a_record_holds_all_that_is_needed_to_audit_it():
    assert record(1, 4, "so #### 7/2") == {
        "id": "second", "problem": 1, "sample": 4, "question": "What is half of 7?", "gold": "3.5", "level": "2",
        "subject": "fractions", "text": "so #### 7/2", "tokens": 11, "finish": "stop", "mean_log_prob": -1.0,
        "answer": "7/2", "correct": True,
    }


def test_a_cut_completion_is_graded_only_by_a_marked_answer():
    assert record(0, 0, "it is 5")["correct"]
    assert record(0, 0, "it is 5", finish="length")["answer"] is None
    assert record(0, 0, r"\boxed{5} and so", finish="length")["correct"]


def test_the_figures_of_single_samples():
    records = [record(0, 0, "#### 5"), record(1, 0, "hm"), record(2, 0, "so 100 and", finish="length")]
    result = summarise(records, samples=1)
    assert result == {
        "n": 3, "samples": 1, "accuracy": 1 / 3, "ci95": list(wilson(1, 3)), "no_answer_rate": 2 / 3,
        "truncated_rate": 1 / 3, "ended_with_answer_rate": 1 / 3, "mean_tokens": (6 + 2 + 10) / 3,
        "by_level": {"1": {"n": 1, "accuracy": 1.0}, "2": {"n": 2, "accuracy": 0.0}},
    }


def test_the_figures_of_several_samples():
    texts = [
        ["#### 5", "#### 6", "#### 5.0", "none"],  # two equal values win: the vote is right, half of the samples are
        ["3", "4", "7/2", "4"],  # the vote is wrong
        ["hm", "hm", "hm", "#### 100"],  # one voter decides
    ]
    result = summarise([record(p, s, text) for p, row in enumerate(texts) for s, text in enumerate(row)], samples=4)
    assert result["accuracy"] == pytest.approx((2 + 1 + 1) / 12) == result["pass_at_k"]["1"]
    assert result["majority"] == pytest.approx(2 / 3)
    assert result["majority_gain"] == pytest.approx(2 / 3 - 1 / 3)
    assert list(result["pass_at_k"]) == ["1", "2", "4"] and result["pass_at_k"]["4"] == 1.0
    assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
    assert result["majority_gain_se"] > 0 and result["accuracy_se"] > 0
    assert result["by_level"]["2"] == {"n": 2, "accuracy": 0.25}
    json.dumps(result, allow_nan=False)


def test_a_tied_vote_goes_to_the_surer_answer():
    wrong, right = record(0, 0, "#### 6", mean_log_prob=-2.0), record(0, 1, "#### 5", mean_log_prob=-0.1)
    assert summarise([wrong, right], samples=2)["majority"] == 1.0


def test_votes_over_equal_samples_change_nothing():
    records = [record(p, s, f"#### {answer}") for p, answer in enumerate(["5", "0", "100"]) for s in range(3)]
    result = summarise(records, samples=3)
    assert result["accuracy"] == result["majority"] == result["pass_at_k"]["3"] == 2 / 3
    assert result["majority_gain"] == result["majority_gain_se"] == 0


# ----------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def tuned(tiny_folder):
    """A small random model and its tokenizer: its answers are nonsense, and good enough to be counted."""
    return load_model(tiny_folder, "cpu", torch.float32, torch.float32), Tokenizer(tiny_folder)


SAMPLING = dict(samples=2, temperature=1.0, top_p=0.9, max_new_tokens=12, seed=3, rows=4, system="Add.")


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def test_an_evaluation_leaves_its_settings_records_and_result(tuned, tmp_path):
    report = evaluate(*tuned, PROBLEMS, tmp_path / "e", about={"model": "small"}, **SAMPLING)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["args.json", "generations.jsonl", "result.json"]
    args = json.loads((tmp_path / "e" / "args.json").read_text())
    assert {"model": "small", "n": 3, "system": "Add.", "samples": 2, "seed": 3}.items() <= args.items()
    assert lines_of(tmp_path / "e") == report.records
    assert [(r["problem"], r["sample"]) for r in report.records] == [(p, s) for p in range(3) for s in range(2)]
    assert all(r["tokens"] <= 12 and r["mean_log_prob"] <= 0 for r in report.records)
    assert json.loads((tmp_path / "e" / "result.json").read_text()) == report.result
    assert report.result["eval_seconds"] > 0 and report.result["tokens_per_second"] > 0
    assert len(report.verdicts) == 3


def test_an_interrupted_evaluation_goes_on_to_the_same_records(tuned, tmp_path, monkeypatch):
    whole = evaluate(*tuned, PROBLEMS, tmp_path / "whole", **SAMPLING)
    original, asked = module.generate, []

    def interrupted(*args, **options):
        for count, completion in enumerate(original(*args, **options)):
            if count == 3:
                raise KeyboardInterrupt
            yield completion

    folder = tmp_path / "part"
    monkeypatch.setattr(module, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*tuned, PROBLEMS, folder, **SAMPLING)
    assert len(lines_of(folder)) == 3 and not (folder / "result.json").exists()
    with open(folder / "generations.jsonl", "ab") as file:  # a kill may leave half a line, and half a character
        file.write('{"id": "second", "text": "·'.encode()[:-1])

    def resumed(*args, **options):
        for completion in original(*args, **options):
            asked.append(completion)
            yield completion

    monkeypatch.setattr(module, "generate", resumed)
    report = evaluate(*tuned, PROBLEMS, folder, **SAMPLING)
    assert len(asked) == 3  # what was there is not made again
    for ours, theirs in zip(report.records, whole.records, strict=True):
        assert ours.pop("mean_log_prob") == pytest.approx(theirs.pop("mean_log_prob"), abs=1e-4)
        assert ours == theirs
    # A third time there is nothing left to do: the figures are read back.
    again = evaluate(*tuned, PROBLEMS, folder, **SAMPLING)
    assert again.result == report.result and len(asked) == 3


def test_other_settings_are_refused_and_destroy_nothing(tuned, tmp_path):
    evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=4)
    before = (tmp_path / "generations.jsonl").read_bytes()
    for changes, word in [({"max_new_tokens": 5}, "max_new_tokens 4, not 5"), ({"system": "x"}, "system")]:
        with pytest.raises(UserError, match=word):
            evaluate(*tuned, PROBLEMS, tmp_path, **{"max_new_tokens": 4, **changes})
    with pytest.raises(UserError, match="n 3, not 2"):
        evaluate(*tuned, PROBLEMS[:2], tmp_path, max_new_tokens=4)
    assert (tmp_path / "generations.jsonl").read_bytes() == before


def test_bad_input(tuned, tmp_path):
    with pytest.raises(UserError, match="no problems"):
        evaluate(*tuned, [], tmp_path)
    with pytest.raises(UserError, match="lost: .*no gold answer"):
        evaluate(*tuned, [Problem("lost", "Why?", "", "")], tmp_path)
    assert not list(tmp_path.iterdir())
    evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=2)
    (tmp_path / "generations.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match=r"generations.jsonl:2: not valid JSON"):
        evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=2)


def test_the_command(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sums = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "2 + 2?", "answer": "#### 4"}]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    command = ["--model", str(tiny_folder), "--dataset", "sums.jsonl", "--max-new-tokens", "8", "--dtype", "fp32"]
    assert run_command(module.main, command) == 0
    out, err = capsys.readouterr()
    assert "accuracy" in out and "of 2 problems" in out and "cut at the token limit" in out
    assert err == ""  # progress is for terminals
    assert (tmp_path / "runs/eval-sums-1/result.json").exists()
    sampled = command + ["--samples", "3", "--temperature", "1", "--output-dir", "here"]
    assert run_command(module.main, sampled) == 0
    assert "majority" in capsys.readouterr().out
    assert run_command(module.main, sampled) == 0  # finished: read back, not made again
    assert run_command(module.main, command + ["--output-dir", "here"]) == 1  # other settings
    assert "samples 3, not 1" in capsys.readouterr().err
    assert run_command(module.main, command + ["--samples", "3"]) == 2  # greedy samples are all the same
    assert run_command(module.main, command + ["--run", "runs/none"]) == 2
