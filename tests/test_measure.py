"""measure.py: an evaluation from prompt to figures, resumed, behind a server, and graded again."""

import hashlib
import json
import shutil

import pytest
import torch

import measure
from calculator import Calculator
from checkpoint import load_model
from conftest import assert_same_records, lines_of
from data import Problem, parse_record
from generate import Completion
from measure import beside_greedy, evaluate, evaluate_api, grade, regrade
from runtime import UserError, locked, read_json as read
from score import compare_evaluations, read_finished, record_of, report_lines
from tokenizer import Tokenizer

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


# ---------------------------------------------------------------------------------- what is written


def test_a_record_holds_all_that_is_needed_to_audit_it():
    completion = Completion(1, 4, [0] * 11, "stop", -1.0)
    assert grade(PROBLEMS[1], completion, "so 7/2") == {
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
    seen, finish = [], measure._finish

    def looked_at(folder, records, measured):
        seen.extend((line["problem"], line["sample"]) for line in lines_of(folder))
        return finish(folder, records, measured)

    monkeypatch.setattr(measure, "_finish", looked_at)
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
    generate = measure.generate
    monkeypatch.setattr(measure, "generate", None)
    again = evaluate(*tuned, PROBLEMS, tmp_path, **SAMPLING)
    assert again.result == whole.result and again.records == whole.records
    # Where lines were lost since, they are made again, and the figures with them.
    monkeypatch.setattr(measure, "generate", generate)
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
    measure._write_records(tmp_path, spoilt[:2])
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
    measure._write_records(folder, whole.records[:2])
    again = evaluate(*tuned, PROBLEMS, folder, **options)
    assert_same_records(again.records, whole.records)
    with pytest.raises(UserError, match="was begun with calculator True, not None"):
        evaluate(*tuned, PROBLEMS, folder, **options | {"calculator": False})
    without = evaluate(*tuned, PROBLEMS, tmp_path / "without", **options | {"calculator": False})
    assert not any("put_in" in record for record in without.records)
    assert "calculator" not in read(tmp_path / "without" / "args.json")


def test_bad_input(tuned, tmp_path):
    with pytest.raises(UserError, match="no problems"):
        evaluate(*tuned, [], tmp_path)
    with pytest.raises(UserError, match="lost: .*no gold answer"):
        evaluate(*tuned, [Problem("lost", "Why?", "", "")], tmp_path)
    with pytest.raises(UserError, match="page 1: a plain text asks nothing; give a --dataset"):
        evaluate(*tuned, [Problem("page 1", "", "", "", text="One and one are two.")], tmp_path)
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
    report = evaluate_api(teacher, PROBLEMS, tmp_path, dataset="sums")
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
    assert evaluate_api(teacher, PROBLEMS, tmp_path, dataset="sums").result == report.result
    assert len(teacher.asked) == 3
    with pytest.raises(UserError, match="was begun with temperature 0.0, not 0.5"):
        evaluate_api(Scripted(ANSWERS, temperature=0.5), PROBLEMS, tmp_path)


def test_what_is_lost_is_nobodys_mistake(tmp_path):
    """It is counted as lost and left out, asked again alone, and then counted like the others."""
    short = {question: text for question, text in ANSWERS.items() if "half" not in question}
    first = evaluate_api(Scripted(short), PROBLEMS, tmp_path)
    assert [record["id"]
            for record in first.records] == ["first", "third"] and first.result["accuracy"] == 0.5
    assert (first.result["lost"], first.result["wanted"], first.result["left_out"],
            first.result["n"]) == (1, 3, 1, 2)
    head, *_ = report_lines(first.result)
    assert head.startswith("lost 1 of 3 replies: 1 problem(s) left out below")
    # What is left is an evaluation like others: it can be graded again and compared.
    again = regrade(tmp_path, tmp_path / "regraded")
    assert again.records == first.records and again.result["lost"] == 1
    assert read_finished(tmp_path) == read_finished(
        tmp_path / "regraded") == first.records
    assert compare_evaluations(first.records, again.records)["n"] == 2

    well = Scripted(ANSWERS)
    second = evaluate_api(well, PROBLEMS, tmp_path)
    assert [chat[-1]["content"] for chat, _ in well.asked] == ["What is half of 7?"]
    assert (second.result["lost"],
            second.result["n"]) == (0, 3) and second.result["accuracy"] == pytest.approx(2 / 3)
    assert not report_lines(second.result)[0].startswith("lost")
    with pytest.raises(UserError, match="3 of 3 replies were lost and no problem is left"):
        evaluate_api(Scripted({}), PROBLEMS, tmp_path / "none")
    assert not (tmp_path / "none" / "result.json").exists()


def test_samples_of_a_server_vote_by_number_alone(tmp_path):
    """No votes that need log-probabilities; a problem with half of its votes is left out."""
    texts = {"What is 2 + 3?": ["5", "#### 5", "6"], "What is half of 7?": ["3", "7/2", "3.50"],
             "What is 2 · 50?": ["100", "", "100"]}
    report = evaluate_api(Scripted(texts, tokens=None, temperature=1.0), PROBLEMS, tmp_path,
                                 samples=3)
    assert (report.result["lost"], report.result["wanted"], report.result["left_out"]) == (1, 9, 1)
    assert list(report.result["votes"]) == list(report.result["maj_at_k"]) == ["majority"]
    assert report.result["votes"]["majority"]["accuracy"] == 1 and report.verdicts == [True, True]
    assert report.result["mean_tokens"] is None
    greedy = evaluate_api(Scripted({"What is 2 + 3?": "5"}), PROBLEMS, tmp_path / "greedy")
    text = "\n".join(report_lines(beside_greedy(report, greedy, tmp_path).result))
    assert "majority of 3" in text and "maj@k" in text
    assert "confident" not in text and "weighted" not in text
    assert "an unknown number of tokens a completion, cut at 99" in text
    assert "of 1 problems, 2 replies lost" in text
    assert "cost                    9 requests (0 of them again)" in text


def test_shots_are_earlier_turns_of_the_chat(tmp_path):
    shots = [Problem("s", "What is 1 + 1?", "It is 2. #### 2", "2")]
    teacher = Scripted(ANSWERS)
    evaluate_api(teacher, PROBLEMS[:1], tmp_path, shots=shots)
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
    measure._write_records(old, spoilt)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    for number, source in enumerate((old, old / "generations.jsonl")):
        new = tmp_path / f"new{number}"
        report = regrade(source, new)
        assert lines_of(new) == report.records == honest.records
        measured = {"eval_seconds", "tokens_per_second", "timed_completions", "machine"}
        assert set(report.result) == set(honest.result) - measured
        assert report.result["accuracy"] == honest.result["accuracy"]
        assert report.result["least_new_tokens"] == honest.result["least_new_tokens"]
        assert read(new / "args.json") == read(old / "args.json") | {"regraded_from": str(source)}
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_half_a_surrogate_pair_of_a_foreign_file_is_graded_again(tmp_path):
    record = record_of(PROBLEMS[0], 0, 0, "\ud800 #### 5", 4, "stop", -0.1)
    (tmp_path / "generations.jsonl").write_text(json.dumps(record) + "\n")
    report = regrade(tmp_path, tmp_path / "new")
    assert report.records == [record] == read_finished(tmp_path / "new")
