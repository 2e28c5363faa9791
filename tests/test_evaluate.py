"""evaluate.py: an evaluation from prompt to report, interrupted, resumed and graded again."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate as module
from calculator import Calculator
from checkpoint import load_model
from conftest import LAYOUTS, write_layout
from data import EMBEDDED_COUNTS, Problem, load_problems, parse_record
from evaluate import evaluate, worked_examples
from flags import run_command
from generate import Completion
from runtime import UsageError, UserError, locked
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [
    Problem("first", "What is 2 + 3?", "", "5", level="1"),
    Problem("second", "What is half of 7?", "", "3.5", level="2", subject="fractions"),
    Problem("third", "What is 2 · 50?", "", "100", level="2"),
]


@pytest.fixture(scope="module")
def tuned(tiny_folder):
    """A small random model and its tokenizer: its answers are nonsense, and can be counted."""
    return load_model(tiny_folder, "cpu", torch.float32, torch.float32), Tokenizer(tiny_folder)


SAMPLING = dict(samples=2, temperature=1.0, top_p=0.9, max_new_tokens=12, seed=3, rows=4,
                system="Add.")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def lines_of(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (folder / "generations.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]


def assert_same_records(ours: list[dict], theirs: list[dict]) -> None:
    """Equal, except for rounding of the log-probabilities in a batch of another shape."""
    for a, b in zip(ours, theirs, strict=True):
        assert a["mean_log_prob"] == pytest.approx(b["mean_log_prob"], abs=1e-4)
        assert a | {"mean_log_prob": 0} == b | {"mean_log_prob": 0}


# ---------------------------------------------------------------------------------- what is written


def test_a_record_holds_all_that_is_needed_to_audit_it():
    completion = Completion(1, 4, [0] * 11, "stop", -1.0)
    assert module.grade(PROBLEMS[1], completion, "so 7/2") == {
        "id": "second", "problem": 1, "sample": 4, "question": "What is half of 7?", "gold": "3.5",
        "level": "2", "subject": "fractions", "text": "so 7/2", "tokens": 11, "finish": "stop",
        "mean_log_prob": -1.0, "answer": "7/2", "correct": True, "strict_answer": None,
        "strict_correct": False, "exact": False,
    }


def test_an_evaluation_leaves_its_settings_records_and_result(tuned, tmp_path):
    report = evaluate(*tuned, PROBLEMS, tmp_path / "e", dataset="sums", about={"model": "small"},
                      **SAMPLING)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "args.json", "generations.jsonl", "result.json"
    ]
    args = read(tmp_path / "e" / "args.json")
    told = {
        "dataset": "sums", "model": "small", "n": 3, "system": "Add.", "shots": [], "samples": 2,
        "seed": 3
    }
    assert told.items() <= args.items()
    assert lines_of(tmp_path / "e") == report.records
    assert [(r["problem"], r["sample"]) for r in report.records
            ] == [(p, s) for p in range(3) for s in range(2)]
    assert all(r["tokens"] <= 12 and r["mean_log_prob"] <= 0 and r["dataset"] == "sums"
               for r in report.records)
    prompt = tuned[1].prompt("What is half of 7?", "Add.")
    assert report.records[2]["prompt_sha256"] == hashlib.sha256(
        json.dumps(prompt).encode()).hexdigest()
    result = read(tmp_path / "e" / "result.json")
    assert result == report.result
    assert result["eval_seconds"] > 0 and result["tokens_per_second"] > 0 and result[
        "timed_completions"] == 6
    assert result["grading_seconds_per_1000"] > 0 and result["machine"]["dtype"] == "fp32"
    assert len(report.verdicts) == 3


def test_records_are_in_order_though_they_end_in_another(tuned, tmp_path, monkeypatch):
    """While rows end, each is appended; at the end the file is in (problem, sample) order."""
    seen, finish = [], module._finish

    def looked_at(folder, records, measured):
        seen.extend((line["problem"], line["sample"]) for line in lines_of(folder))
        return finish(folder, records, measured)

    monkeypatch.setattr(module, "_finish", looked_at)
    lengths = [Problem(str(n), "Why" + "?" * n, "", "7") for n in (1, 30, 10)
               ]  # the longest prompt is read first
    report = evaluate(*tuned, lengths, tmp_path, **SAMPLING)
    assert len(seen) == 6 and seen != sorted(seen)
    assert [(r["problem"], r["sample"]) for r in report.records] == sorted(seen)


def test_the_budget_that_is_told_is_the_budget_there_is(tuned, tmp_path, monkeypatch):
    """A model of 256 positions: after the longer question there is less room than asked for."""
    monkeypatch.setattr(tuned[1], "stop_ids", frozenset())  # so that every completion is cut
    long = Problem("long", "why " * 20, "", "7")
    for asked, prefix in [(10_000, None), (10_000, torch.zeros(3, 2, 5, 2, 8)), (3, None)]:
        report = evaluate(*tuned, [PROBLEMS[0], long], tmp_path / f"{asked}{prefix is None}",
                          max_new_tokens=asked, prefix=prefix)
        left = 256 - (0 if prefix is None else 5) - len(tuned[1].prompt(long.question))
        assert report.result["max_new_tokens"] == asked
        assert report.result["least_new_tokens"] == report.records[1]["tokens"] == min(asked, left)
        assert report.result["truncated_rate"] == 1


# ---------------------------------------------------------------------------------- worked examples


def flags(**changes) -> module.Flags:
    return module.Flags(**changes)


def test_shots_are_drawn_by_the_seed_from_the_training_split(monkeypatch):
    monkeypatch.setitem(EMBEDDED_COUNTS, "train", 400)  # drawn four times below
    problems = load_problems("mini-gsm", "test", 50)
    four = worked_examples(flags(dataset="mini-gsm", shots=4, seed=1), problems)
    assert len({shot.question
                for shot in four}) == 4 and all("/train/" in shot.id and shot.solution
                                                for shot in four)
    less = worked_examples(flags(dataset="mini-gsm", shots=4, seed=1), problems[:3])
    assert less == four  # whatever is evaluated
    assert worked_examples(flags(dataset="mini-gsm", shots=4, seed=2), problems) != four
    assert worked_examples(flags(dataset="mini-gsm"), problems) == []


def write_problems(path: Path, count: int, first: int = 0) -> Path:
    records = [{"question": f"What is {n} + 1?", "answer": f"So. #### {n + 1}"}
               for n in range(first, first + count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_shots_are_never_what_is_evaluated(tmp_path):
    """Even where the training file holds the test problems too."""
    test, train = write_problems(tmp_path / "test.jsonl", 5), write_problems(
        tmp_path / "train.jsonl", 8)
    problems = load_problems(str(test))
    for seed in range(10):
        shots = worked_examples(
            flags(dataset=str(test), shots=3, shots_dataset=str(train), seed=seed), problems)
        assert {shot.question for shot in shots} == {f"What is {n} + 1?" for n in (5, 6, 7)}
    with pytest.raises(
            UserError,
            match=r"train.jsonl: has 3 worked problems that are not evaluated, --shots 4 needs"):
        worked_examples(flags(dataset=str(test), shots=4, shots_dataset=str(train)), problems)
    with pytest.raises(
            UsageError,
            match="test.jsonl has no training split; name a file .* with --shots-dataset"):
        worked_examples(flags(dataset=str(test), shots=1), problems)
    with pytest.raises(UsageError, match="--shots-dataset without --shots"):
        worked_examples(flags(shots_dataset=str(train)), problems)


def test_shots_stand_before_each_question_and_in_args(tuned, tmp_path):
    shot = Problem("shot", "1 + 1?", "#### 2", "2")
    report = evaluate(*tuned, PROBLEMS, tmp_path, shots=[shot], system="Add.", max_new_tokens=4)
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "#### 2"}]
    for problem, record in zip(PROBLEMS, report.records):
        prompt = tuned[1].prompt(problem.question, "Add.", turns)
        assert record["prompt_sha256"] == hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
    assert read(tmp_path / "args.json")["shots"] == [{
        "id": "shot", "question": "1 + 1?", "solution": "#### 2"
    }]
    with pytest.raises(
            UserError,
            match="was begun with shots .*'1 [+] 1[?]'.*, not \\[\\]; give another folder"):
        evaluate(*tuned, PROBLEMS, tmp_path, system="Add.", max_new_tokens=4)
    with pytest.raises(UserError,
                       match="20 worked examples fill the model's 256 positions and leave no room"):
        evaluate(*tuned, PROBLEMS, tmp_path / "none", shots=[shot] * 20)
    assert not (tmp_path / "none").exists()


# ----------------------------------------------------------------------------------------- going on


# Runs the command, and sends itself a real signal just before it would grade completion number N.
STRIKE = """
import os, signal, sys, evaluate
from flags import run_command

grade, graded = evaluate.grade, []

def struck(*args):
    graded.append(args)
    if len(graded) == {n}:
        os.kill(os.getpid(), signal.{name})
    return grade(*args)

evaluate.grade = struck
sys.exit(run_command(evaluate.main, sys.argv[1:]))
"""


def strike(name: str, n: int, argv: list[str]) -> subprocess.CompletedProcess:
    script = STRIKE.format(n=n, name=name)
    return subprocess.run([sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True,
                          text=True)


@pytest.fixture
def argv(tiny_folder, tmp_path) -> list[str]:
    """The flags of a short sampled evaluation in fp32: 5 problems, 4 samples each."""
    return [
        "--model",
        str(tiny_folder), "--dataset",
        str(write_problems(tmp_path / "sums.jsonl", 5)), "--samples", "4", "--temperature", "1",
        "--max-new-tokens", "16", "--dtype", "fp32", "--device", "cpu", "--system", "Add."
    ]


@pytest.mark.parametrize("name, n, code, said", [
    ("SIGKILL", 8, -signal.SIGKILL, None),  # nobody is asked, and nothing can be said
    ("SIGINT", 8, 130, "interrupted"),
    ("SIGTERM", 8, 143, "terminated"),
    ("SIGHUP", 8, 143, "terminated"),
    ("SIGINT", 23, 130, "interrupted"),  # 20 samples are done, and 2 of the 5 greedy completions
])
def test_a_process_that_is_stopped_leaves_what_can_go_on(name, n, code, said, argv, tmp_path,
                                                         capsys):
    assert run_command(module.main, [*argv, "--output-dir", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "part"
    done = strike(name, n, [*argv, "--output-dir", str(folder)])
    assert done.returncode == code
    if said:
        assert done.stderr.splitlines() == [said]
        *_, advice = done.stdout.splitlines()
        assert advice.startswith("to go on:  python evaluate.py --model") and advice.endswith(
            f"--output-dir {folder}")
    begun = lines_of(folder) if n < 20 else lines_of(folder / "greedy")
    assert len(begun) == (n - 1) % 20 and (folder / "result.json").exists() == (n > 20)

    capsys.readouterr()
    assert run_command(module.main, [*argv, "--output-dir", str(folder)]) == 0
    if n < 20:
        assert f"(of the last {20 - len(begun)} of 20 completions)" in capsys.readouterr().out
    for part in (".", "greedy"):
        assert_same_records(lines_of(folder / part), lines_of(tmp_path / "whole" / part))
    ours, theirs = read(folder / "result.json"), read(tmp_path / "whole" / "result.json")
    for key in ("accuracy", "ci95", "pass_at_k", "by_level", "truncated_rate", "mean_tokens",
                "strict"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize("name", ["base", "math base", "r1 distill"])
def test_long_answers_of_published_layouts_go_on(name, tmp_path, capsys, monkeypatch):
    """As long as a problem may be answered, cut by Ctrl-C in the middle."""
    folder = write_layout(tmp_path / "model", name, positions=9000)
    sums, grade, graded = write_problems(tmp_path / "sums.jsonl", 4), module.grade, []

    def struck(*args):
        graded.append(args)
        if len(graded) == 3:
            raise KeyboardInterrupt
        return grade(*args)

    argv = ["--model", str(folder), "--dataset", str(sums), "--temperature", "2", "--seed", "1",
            "--max-new-tokens", "8192", "--dtype", "fp32", "--device", "cpu", "--output-dir"]
    assert run_command(module.main, [*argv, str(tmp_path / "whole")]) == 0
    out = capsys.readouterr().out
    longest = max(len(Tokenizer(folder).prompt(f"What is {n} + 1?")) for n in range(4))
    slots = longest + 8192 - 1
    mib = math.ceil(4 * slots * 3 * 2 * 2 * 8 * 4 / 2**20)  # 3 layers, 2 heads of 8 numbers, fp32
    assert (f"decoding   4 completions, 4 at a time, of up to {slots} slots: at most {mib} MiB of"
            " keys and values\n") in out
    with monkeypatch.context() as patch:
        patch.setattr(module, "grade", struck)
        assert run_command(module.main, [*argv, str(tmp_path / "part")]) == 130
    assert len(lines_of(tmp_path / "part")) == 2
    assert run_command(module.main, [*argv, str(tmp_path / "part")]) == 0
    assert "decoding   2 completions, 2 at a time" in capsys.readouterr().out
    whole = lines_of(tmp_path / "whole")
    assert_same_records(lines_of(tmp_path / "part"), whole)
    assert read(tmp_path / "part" / "args.json")["system"] == LAYOUTS[name]["system"]
    assert {record["finish"] for record in whole} == {"stop"}  # by a stop of its own
    assert max(record["tokens"] for record in whole) > 100


def test_a_chat_is_measured_with_its_own_system_prompt_and_earlier_turns(tuned, tmp_path):
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2?"},
             {"role": "assistant", "content": "2"}, {"role": "user", "content": "+ 3?"},
             {"role": "assistant", "content": "#### 5"}]
    chat = parse_record({"messages": turns}, "chat")
    report = evaluate(*tuned, [chat], tmp_path, system="not used", max_new_tokens=4)
    prompt = tuned[1].prompt("+ 3?", earlier=turns[:3])
    (record,) = report.records
    assert record["prompt_sha256"] == hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
    assert record["gold"] == "5" and record["question"].startswith("user: 2?")


def test_two_evaluations_are_locked_out_of_one_folder(tuned, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is at work"):
        evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=4)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".result.json.4194300.tmp").write_text("{")  # left by a killed process
    evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=4)
    assert {path.name for path in tmp_path.iterdir()} == {"args.json", "generations.jsonl",
                                                          "result.json"}


def test_whatever_half_line_a_crash_leaves_the_same_records_follow(tuned, tmp_path):
    """The file is cut between lines, within one, and within a character of one."""
    problems = [*PROBLEMS[:2], Problem("third", "What is 2 · 50?", "", "100")]
    whole = evaluate(*tuned, problems, tmp_path / "whole", **SAMPLING)
    data = (tmp_path / "whole" / "generations.jsonl").read_bytes()
    inside = data.index("·".encode()) + 1
    ends = [at + 1 for at in range(len(data)) if data[at : at + 1] == b"\n"]
    for cut in [0, 1, inside, ends[2] - 1, ends[2], ends[2] + 1, ends[-1] - 1, ends[-1]]:
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "result.json").unlink()
        (folder / "generations.jsonl").write_bytes(data[:cut])
        report = evaluate(*tuned, problems, folder, **SAMPLING)
        assert_same_records(report.records, whole.records)
        assert lines_of(folder) == report.records
        assert report.result["timed_completions"] == 6 - sum(end <= cut for end in ends)


def test_what_is_finished_is_read_back(tuned, tmp_path, monkeypatch):
    whole = evaluate(*tuned, PROBLEMS, tmp_path, **SAMPLING)
    generate = module.generate
    monkeypatch.setattr(module, "generate", None)
    again = evaluate(*tuned, PROBLEMS, tmp_path, **SAMPLING)
    assert again.result == whole.result and again.records == whole.records
    # Where lines were lost since, they are made again, and the figures with them.
    monkeypatch.setattr(module, "generate", generate)
    kept = (tmp_path / "generations.jsonl").read_text(encoding="utf-8").split("\n")[1:]
    (tmp_path / "generations.jsonl").write_text("\n".join(kept), encoding="utf-8")
    mended = evaluate(*tuned, PROBLEMS, tmp_path, **SAMPLING)
    assert_same_records(mended.records, whole.records)
    assert mended.result["timed_completions"] == 1


def test_one_grader_stands_behind_all_verdicts(tuned, tmp_path):
    """Records from before the interruption, perhaps of an older version, are graded again."""
    whole = evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=4)
    spoilt = [
        record | {"answer": "old", "correct": not record["correct"]} for record in whole.records
    ]
    module._write_records(tmp_path, spoilt[:2])
    (tmp_path / "result.json").unlink()
    again = evaluate(*tuned, PROBLEMS, tmp_path, max_new_tokens=4)
    assert_same_records(again.records, whole.records)
    assert again.result["accuracy"] == whole.result["accuracy"]


def test_other_settings_are_refused_and_destroy_nothing(tuned, tmp_path):
    options = {"max_new_tokens": 4, "dataset": "a.jsonl", "about": {"model": "small"}}
    evaluate(*tuned, PROBLEMS, tmp_path, **options)
    before = (tmp_path / "generations.jsonl").read_bytes()
    for changes, word in [
        ({"max_new_tokens": 5}, "was begun with max_new_tokens 4, not 5; give another folder"),
        ({"system": "x"}, "system 'You are Qwen.*…, not 'x'"),
        ({"seed": 1, "temperature": 0.5}, "temperature 0.0, not 0.5; seed 0, not 1"),
        ({"about": {"model": "large"}}, "model 'small', not 'large'"),
    ]:
        with pytest.raises(UserError, match=word):
            evaluate(*tuned, PROBLEMS, tmp_path, **options | changes)
    with pytest.raises(UserError, match="n 3, not 2"):
        evaluate(*tuned, PROBLEMS[:2], tmp_path, **options)
    evaluate(*tuned, PROBLEMS, tmp_path,
             **options | {"dataset": "moved/a.jsonl"})  # the same problems, elsewhere
    assert (tmp_path / "generations.jsonl").read_bytes() == before


def test_what_a_calculator_puts_in_is_told_and_goes_on_after_a_crash(tuned, tmp_path, monkeypatch):
    """A model that has learnt nothing writes no marks: here every fifth token asks for a result."""
    monkeypatch.setattr(Calculator, "__call__", lambda self, ids: (
        self.tokenizer.encode("7>>") if ids[-1] % 5 == 0 else []))
    options = SAMPLING | {"calculator": True, "max_new_tokens": 30}
    whole = evaluate(*tuned, PROBLEMS, tmp_path / "whole", **options)
    assert read(tmp_path / "whole" / "args.json")["calculator"] is True
    results = [record["text"].count("7>>") for record in whole.records]
    spans = [record.get("put_in", []) for record in whole.records]
    assert sum(results) > 3 and [len(found) for found in spans] == pytest.approx(results, abs=1)
    assert all(0 < start < end <= record["tokens"] for record, found in zip(whole.records, spans)
               for start, end in found)

    folder = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "result.json").unlink()
    module._write_records(folder, whole.records[:2])
    again = evaluate(*tuned, PROBLEMS, folder, **options)
    assert_same_records(again.records, whole.records)
    with pytest.raises(UserError, match="was begun with calculator True, not None"):
        evaluate(*tuned, PROBLEMS, folder, **options | {"calculator": False})
    without = evaluate(*tuned, PROBLEMS, tmp_path / "without", **options | {"calculator": False})
    assert not any("put_in" in record for record in without.records)
    assert "calculator" not in read(tmp_path / "without" / "args.json")


def test_a_server_has_no_calculator(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert run_command(module.main, ["--api-model", "m", "--calculator", "--limit", "1"]) == 2
    assert "--calculator puts tokens into our own decoding" in capsys.readouterr().err


def test_bad_input(tuned, tmp_path):
    with pytest.raises(UserError, match="no problems"):
        evaluate(*tuned, [], tmp_path)
    with pytest.raises(UserError, match="lost: .*no gold answer"):
        evaluate(*tuned, [Problem("lost", "Why?", "", "")], tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "generations.jsonl").write_text("somebody's own\n")
    with pytest.raises(
            UserError,
            match="generations.jsonl: has no args.json beside it, and is left alone"):
        evaluate(*tuned, PROBLEMS, tmp_path)
    assert (tmp_path / "generations.jsonl").read_text() == "somebody's own\n"


# ---------------------------------------------------------------------------------- behind a server


class Scripted:
    """A teacher that gives `texts[question]` (a list: one a sample), else an empty text."""

    name, system = "scripted", None

    def __init__(self, texts: dict, tokens: int | None = 5, **settings):
        self.texts, self.tokens, self.asked = texts, tokens, []
        self.settings = {"temperature": 0.0, "max_new_tokens": 99} | settings
        self.max_new_tokens = 99

    def answer(self, chats, samples, skip):
        for place in ((i, s) for i in range(len(chats)) for s in range(samples)
                      if (i, s) not in skip):
            texts = self.texts.get(chats[place[0]][-1]["content"], "")
            text = texts if isinstance(texts, str) else texts[place[1]]
            self.asked.append((chats[place[0]], place[1]))
            raw = {
                "choices": [{"message": {"content": text}}],
                "usage": {"completion_tokens": self.tokens}
            }
            yield place, {
                "request": {}, "status": 200, "fault": "", "raw": json.dumps(raw), "attempt": 1
            }


ANSWERS = {"What is 2 + 3?": "#### 5", "What is half of 7?": "7/2", "What is 2 · 50?": "99"}


def test_a_server_is_measured_by_the_same_rules(tmp_path):
    teacher = Scripted(ANSWERS)
    report = module.evaluate_api(teacher, PROBLEMS, tmp_path, dataset="sums")
    told = [[record[key] for key in ("text", "correct", "tokens", "mean_log_prob")]
            for record in report.records]
    assert told == [["#### 5", True, 5, None], ["7/2", True, 5, None], ["99", False, 5, None]]
    assert report.records == lines_of(tmp_path) and report.result == read(tmp_path / "result.json")
    assert (report.result["lost"], report.result["wanted"], report.result["n"]) == (0, 3, 3)
    assert report.result["accuracy"] == pytest.approx(2 / 3) and report.result["mean_tokens"] == 5
    assert report.result["cost"]["requests"] == 3 and report.result["cost"]["new_tokens"] == 15
    told = {
        "dataset": "sums", "api_model": "scripted", "system": None, "samples": 1,
        "max_new_tokens": 99, "n": 3
    }
    assert told.items() <= read(tmp_path / "args.json").items()
    stored = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert [line["key"] for line in stored] == [record["reply_key"] for record in report.records]
    assert module.evaluate_api(teacher, PROBLEMS, tmp_path, dataset="sums").result == report.result
    assert len(teacher.asked) == 3
    with pytest.raises(UserError, match="was begun with temperature 0.0, not 0.5"):
        module.evaluate_api(Scripted(ANSWERS, temperature=0.5), PROBLEMS, tmp_path)


def test_what_is_lost_is_nobodys_mistake(tmp_path):
    """It is counted as lost and left out, asked again alone, and then counted like the others."""
    short = {question: text for question, text in ANSWERS.items() if "half" not in question}
    first = module.evaluate_api(Scripted(short), PROBLEMS, tmp_path)
    assert [record["id"]
            for record in first.records] == ["first", "third"] and first.result["accuracy"] == 0.5
    assert (first.result["lost"], first.result["wanted"], first.result["left_out"],
            first.result["n"]) == (1, 3, 1, 2)
    head, *_ = module.report_lines(first.result)
    assert head.startswith("lost 1 of 3 replies: 1 problem(s) left out below")
    # What is left is an evaluation like others: it can be graded again and compared.
    again = module.regrade(tmp_path, tmp_path / "regraded")
    assert again.records == first.records and again.result["lost"] == 1
    assert module.read_finished(tmp_path) == module.read_finished(
        tmp_path / "regraded") == first.records
    assert module.compare_evaluations(first.records, again.records)["n"] == 2

    well = Scripted(ANSWERS)
    second = module.evaluate_api(well, PROBLEMS, tmp_path)
    assert [chat[-1]["content"] for chat, _ in well.asked] == ["What is half of 7?"]
    assert (second.result["lost"],
            second.result["n"]) == (0, 3) and second.result["accuracy"] == pytest.approx(2 / 3)
    assert not module.report_lines(second.result)[0].startswith("lost")
    with pytest.raises(UserError, match="3 of 3 replies were lost and no problem is left"):
        module.evaluate_api(Scripted({}), PROBLEMS, tmp_path / "none")
    assert not (tmp_path / "none" / "result.json").exists()


def test_samples_of_a_server_vote_by_number_alone(tmp_path):
    """No votes that need log-probabilities; a problem with half of its votes is left out."""
    texts = {"What is 2 + 3?": ["5", "#### 5", "6"], "What is half of 7?": ["3", "7/2", "3.50"],
             "What is 2 · 50?": ["100", "", "100"]}
    report = module.evaluate_api(Scripted(texts, tokens=None, temperature=1.0), PROBLEMS, tmp_path,
                                 samples=3)
    assert (report.result["lost"], report.result["wanted"], report.result["left_out"]) == (1, 9, 1)
    assert list(report.result["votes"]) == list(report.result["maj_at_k"]) == ["majority"]
    assert report.result["votes"]["majority"]["accuracy"] == 1 and report.verdicts == [True, True]
    assert report.result["mean_tokens"] is None
    greedy = module.evaluate_api(Scripted({"What is 2 + 3?": "5"}), PROBLEMS, tmp_path / "greedy")
    text = "\n".join(module.report_lines(module.beside_greedy(report, greedy, tmp_path).result))
    assert "majority of 3" in text and "maj@k" in text
    assert "confident" not in text and "weighted" not in text
    assert "an unknown number of tokens a completion, cut at 99" in text
    assert "of 1 problems, 2 replies lost" in text
    assert "cost                    9 requests (0 of them again)" in text


def test_shots_are_earlier_turns_of_the_chat(tmp_path):
    shots = [Problem("s", "What is 1 + 1?", "It is 2. #### 2", "2")]
    teacher = Scripted(ANSWERS)
    module.evaluate_api(teacher, PROBLEMS[:1], tmp_path, shots=shots)
    assert teacher.asked[0][0] == [{"role": "user", "content": "What is 1 + 1?"}, {
        "role": "assistant", "content": "It is 2. #### 2"
    }, {"role": "user", "content": "What is 2 + 3?"}]
    assert read(tmp_path / "args.json")["shots"][0]["id"] == "s"


# ------------------------------------------------------------------------------------- graded again


def test_grading_again_makes_a_new_evaluation_and_changes_nothing_old(tuned, tmp_path):
    old = tmp_path / "old"
    honest = evaluate(*tuned, PROBLEMS, old, **SAMPLING)
    spoilt = [
        record | {"answer": "9", "correct": not record["correct"]} for record in honest.records
    ]  # another grader
    module._write_records(old, spoilt)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    for number, source in enumerate((old, old / "generations.jsonl")):
        new = tmp_path / f"new{number}"
        report = module.regrade(source, new)
        assert lines_of(new) == report.records == honest.records
        measured = {"eval_seconds", "tokens_per_second", "timed_completions", "machine"}
        assert set(report.result) == set(honest.result) - measured
        assert report.result["accuracy"] == honest.result["accuracy"]
        assert report.result["least_new_tokens"] == honest.result["least_new_tokens"]
        assert read(new / "args.json") == read(old / "args.json") | {"regraded_from": str(source)}
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_regrading_by_the_command(argv, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "evals" / "sums"
    assert run_command(module.main, [*argv, "--output-dir", str(folder)]) == 0
    monkeypatch.setattr(module, "load_asked", None)  # no model is loaded from here on
    capsys.readouterr()
    assert run_command(
        module.main,
        ["--regrade", str(folder / "generations.jsonl"), "--versus",
         str(folder)]) == 0
    out, err = capsys.readouterr()
    new = tmp_path / "evals" / "sums-regraded-1"
    assert err == ""
    assert f"graded     {folder / 'generations.jsonl'} again: 20 completions of 5 problems" in out
    assert "majority beside greedy" in out and "0 gained, 0 lost" in out and out.endswith(
        f"files      {new}\n"
        f"next       python report.py {new}    # a page with the figures and all answers\n")
    assert lines_of(new) == lines_of(folder) and lines_of(new / "greedy") == lines_of(
        folder / "greedy")
    assert read(new / "result.json")["votes"] == read(folder / "result.json")["votes"]

    assert run_command(module.main,
                       ["--regrade", str(folder), "--output-dir",
                        str(new)]) == 1  # taken
    assert "exists and is not empty" in capsys.readouterr().err
    assert run_command(module.main,
                       ["--regrade", str(folder), "--samples", "3", "--seed", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: --regrade generates nothing: --samples, --seed would have no effect; leave it out\n"
    )
    assert run_command(module.main, ["--regrade", str(tmp_path / "none")]) == 1
    assert "none: cannot be read" in capsys.readouterr().err
    (folder / "result.json").unlink()
    assert run_command(module.main, ["--regrade", str(folder)]) == 1
    assert "unfinished evaluation; let it end first" in capsys.readouterr().err
    assert sorted(
        path.name for path in (tmp_path / "evals").iterdir()) == ["sums", "sums-regraded-1"]


# -------------------------------------------------------------------------------------- the command


def test_the_command(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "sums.jsonl", 2)
    command = [
        "--model",
        str(tiny_folder), "--dataset", "sums.jsonl", "--max-new-tokens", "8", "--dtype", "fp32"
    ]
    assert run_command(module.main, command) == 0
    out, err = capsys.readouterr()
    assert "sums.jsonl, 2 problems, 1 completion(s) each, greedy\n" in out
    assert "flexible" in out and "of 2 problems" in out and "tokens a completion, cut at 8" in out
    assert err == ""  # progress is for terminals
    assert not (tmp_path / "runs/eval-sums-1/greedy").exists()
    sampled = command + ["--samples", "3", "--temperature", "1", "--output-dir", "here"]
    assert run_command(module.main, sampled) == 0
    out = capsys.readouterr().out
    assert "3 completion(s) each, temperature 1, and one greedy" in out and "majority of 3" in out
    # The greedy companion is the greedy evaluation.
    assert_same_records(lines_of(tmp_path / "here" / "greedy"),
                        lines_of(tmp_path / "runs/eval-sums-1"))
    greedy = read(tmp_path / "here" / "result.json")["greedy"]
    assert greedy["accuracy"] == read(tmp_path / "runs/eval-sums-1/result.json")["accuracy"]
    figures = out[out.index("accuracy") :]
    assert run_command(module.main, sampled) == 0  # finished: read back, not made again
    out = capsys.readouterr().out
    assert out[out.index("accuracy") :] == figures
    assert run_command(module.main, command + ["--output-dir", "here"]) == 1  # other settings
    assert "samples 3, not 1" in capsys.readouterr().err
    assert run_command(module.main,
                       command + ["--samples", "3"]) == 2  # greedy samples are all the same
    assert run_command(module.main, command + ["--run", "runs/none", "--adapter", "x"]) == 2


def test_a_run_is_measured_on_its_own_test_problems(tiny_folder, tmp_path, capsys, monkeypatch):
    """Without --dataset: the rows that the run keeps, also if the file is gone, with its budget.
    Rows that it was trained on are counted."""
    import mathft

    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "sums.jsonl", 30)
    words = ["--method", "lora", "--model", str(tiny_folder), "--dataset", "sums.jsonl", "--steps",
             "2", "--batch-size", "2", "--max-new-tokens", "5", "--output-dir", "run", "--dtype",
             "fp32", "--save-every", "1", "--keep", "2"]
    assert run_command(mathft.main, words) == 0
    assert "3 test problems" in capsys.readouterr().out
    after = lines_of(tmp_path / "run" / "evals" / "after")
    (tmp_path / "sums.jsonl").rename(tmp_path / "moved.jsonl")
    assert run_command(module.main, ["--run", "run", "--dtype", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "data       sums.jsonl, 3 problems" in out and "warning" not in out
    assert "tokens a completion, cut at 5" in out and f"files      {Path('run/evals/sums-1')}" in out
    again = lines_of(tmp_path / "run" / "evals" / "sums-1")
    assert [record["text"] for record in again] == [record["text"] for record in after]

    assert run_command(module.main, ["--run", "run", "--dataset", "moved.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "warning    27 of the 30 problems were trained on by this run" in out
    shutil.rmtree(tmp_path / "run" / "adapter")  # as if it had not ended
    assert run_command(module.main, ["--run", "run"]) == 1
    assert "or measure it as it is with --checkpoint step-2" in capsys.readouterr().err
    assert run_command(module.main, ["--run", "run", "--checkpoint", "step-1"]) == 0
    assert "model      run at step-1" in capsys.readouterr().out


def test_progress_is_told_where_no_bar_is_shown(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "TOLD_EVERY", 0.0)
    write_problems(tmp_path / "sums.jsonl", 3)
    words = ["--model", str(tiny_folder), "--dataset", str(tmp_path / "sums.jsonl"),
             "--max-new-tokens", "3", "--output-dir", str(tmp_path / "out")]
    assert run_command(module.main, words) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "evaluate" in line] == [
        f"evaluate   {done} of 3 completions" for done in (1, 2, 3)]


@pytest.mark.parametrize("dataset", ["a\0b", "\x1b[2J", 5, None])
def test_a_stored_name_that_cannot_be_shown_is_refused(dataset, tmp_path):
    """It would name a folder, and be printed."""
    settings = {"method": "lora", "model": "tiny", "system": "Add.", "dataset": dataset}
    (tmp_path / "args.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="args.json: dataset is no name; give --dataset"):
        module.with_test_set(flags(run=str(tmp_path)))


def test_rows_that_are_not_asked_are_counted_by_reason(tiny_folder, tmp_path, capsys):
    """On a line, and in the result.json also of an evaluation that is read back or graded again."""
    file = write_problems(tmp_path / "sums.jsonl", 2)
    wrong = {"question": "q", "generated_solution": "5", "answer": "4", "is_correct": False}
    file.write_text(file.read_text() + (json.dumps(wrong) + "\n") * 3)
    words = ["--model", str(tiny_folder), "--dataset", str(file), "--max-new-tokens", "3",
             "--output-dir", str(tmp_path / "out")]
    for _ in range(2):
        assert run_command(module.main, words) == 0
        assert "left out   3 rows: 3 marked as wrong by is_correct\n" in capsys.readouterr().out
        result = read(tmp_path / "out" / "result.json")
        assert result["rows_left_out"] == {"marked as wrong by is_correct": 3} and result["n"] == 2
    assert run_command(module.main, ["--regrade", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out-regraded-1" / "result.json")["rows_left_out"] == result[
        "rows_left_out"]


def test_two_evaluations_side_by_side(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "sums.jsonl", 3)
    command = [
        "--model",
        str(tiny_folder), "--dataset", "sums.jsonl", "--max-new-tokens", "8", "--dtype", "fp32"
    ]
    assert run_command(module.main, [*command, "--output-dir", "one"]) == 0
    one = lines_of(tmp_path / "one")
    right = [record | {"text": f"#### {record['gold']}", "finish": "stop"} for record in one]
    module._write_records(tmp_path / "one", right)
    assert run_command(module.main, ["--regrade", "one"]) == 0  # an evaluation that has all right
    capsys.readouterr()
    assert run_command(module.main, [*command, "--limit", "2", "--versus", "one-regraded-1"]) == 0
    out = capsys.readouterr().out
    assert "versus one-regraded-1: 2 problems in common, of 3 there and 2 here" in out
    assert "  100.0% there, 0.0% here, -100.0 points: 0 gained, 2 lost, McNemar p = 0.5" in out
    assert "  lost   sums.jsonl:1: gold 1, there 1, here " in out
    # Two finished ones are compared without a model.
    assert run_command(module.main, ["--read", "one-regraded-1", "--versus", "one"]) == 0
    out = capsys.readouterr().out
    assert "versus one: 3 problems in common, of 3 there and 3 here" in out
    assert "of 3 problems" in out and "100.0%" in out
    assert run_command(module.main, ["--read", "one", "--limit", "2"]) == 2
    assert "--read generates nothing: --limit would have no effect" in capsys.readouterr().err
    # One that is not there is told before anything is generated.
    monkeypatch.setattr(module, "load_asked", None)
    assert run_command(module.main, [*command, "--versus", "nowhere"]) == 1
    assert "nowhere: cannot be read" in capsys.readouterr().err


def test_shots_by_the_command(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "test.jsonl", 2), write_problems(tmp_path / "train.jsonl", 20,
                                                               first=10)
    command = [
        "--model",
        str(tiny_folder), "--dataset", "test.jsonl", "--max-new-tokens", "4", "--dtype", "fp32"
    ]
    shots = ["--shots", "2", "--shots-dataset", "train.jsonl", "--output-dir", "e"]
    assert run_command(module.main, [*command, *shots]) == 0
    out = capsys.readouterr().out
    assert "shots      2 worked examples of train.jsonl before each question\n" in out
    assert [shot["id"].split(":")[0] for shot in read(tmp_path / "e" / "args.json")["shots"]
            ] == ["train.jsonl"] * 2
    for wrong, code, said in [
        (["--shots", "2"], 2, "name a file of worked training problems with --shots-dataset"),
        (["--shots", "20", "--shots-dataset",
          "train.jsonl"], 1, "leave no room for an answer; give fewer --shots"),
        (["--shots", "21", "--shots-dataset",
          "train.jsonl"], 1, "has 20 worked problems that are not evaluated"),
    ]:
        assert run_command(module.main, [*command, *wrong]) == code
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*"))  # what could not begin leaves no folder


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for field in module.Flags.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in out
    for words in ("in tokens", "0 is greedy", "the run's, else 1024)", "else mini-gsm)",
                  "--regrade runs/"):
        assert words in out


@pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                    reason="MATHFT_DATA names no folder with the published files")
@pytest.mark.parametrize("file, levels", [("gsm8k/test.jsonl", False), ("math500/test.json", True)])
def test_the_published_files(file, levels, tmp_path, capsys):
    dataset = str(Path(os.environ["MATHFT_DATA"]) / file)
    argv = [
        "--dataset", dataset, "--limit", "5", "--max-new-tokens", "8", "--output-dir",
        str(tmp_path / "e")
    ]
    assert run_command(module.main, argv) == 0
    assert ("level " in capsys.readouterr().out) == levels
    assert len(lines_of(tmp_path / "e")) == 5
