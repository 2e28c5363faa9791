"""evaluate.py: the command, stopped and going on, its worked examples, and two evaluations side by
side.
"""

import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import children
import evaluate as module
import measure
from conftest import LAYOUTS, assert_same_records, lines_of, write_layout
from data import EMBEDDED_COUNTS, Problem, load_problems
from evaluate import worked_examples
from flags import run_command
from runtime import UsageError, UserError, read_json as read
from score import record_of
from tokenizer import Tokenizer


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


# ----------------------------------------------------------------------------------------- going on


# Runs the command, and sends itself a real signal just before it would grade completion number N.
STRIKE = """
import os, signal, sys, evaluate, measure
from flags import run_command

grade, graded = measure.grade, []

def struck(*args):
    graded.append(args)
    if len(graded) == {n}:
        os.kill(os.getpid(), signal.{name})
    return grade(*args)

measure.grade = struck
sys.exit(run_command(evaluate.main, sys.argv[1:]))
"""


def strike(name: str, n: int, argv: list[str]) -> subprocess.CompletedProcess:
    return children.run(STRIKE.format(n=n, name=name), *argv)


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
    sums, grade, graded = write_problems(tmp_path / "sums.jsonl", 4), measure.grade, []

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
        patch.setattr(measure, "grade", struck)
        assert run_command(module.main, [*argv, str(tmp_path / "part")]) == 130
    assert len(lines_of(tmp_path / "part")) == 2
    assert run_command(module.main, [*argv, str(tmp_path / "part")]) == 0
    assert "decoding   2 completions, 2 at a time" in capsys.readouterr().out
    whole = lines_of(tmp_path / "whole")
    assert_same_records(lines_of(tmp_path / "part"), whole)
    assert read(tmp_path / "part" / "args.json")["system"] == LAYOUTS[name]["system"]
    assert {record["finish"] for record in whole} == {"stop"}  # by a stop of its own
    assert max(record["tokens"] for record in whole) > 100


def test_the_way_on_is_printed_as_soon_as_there_is_a_folder(argv, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "print_notes", interrupted)
    assert run_command(module.main, argv) == 130
    assert "\nto go on:  python evaluate.py --model " in capsys.readouterr().out


def test_a_server_has_no_calculator(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert run_command(module.main, ["--api-model", "m", "--calculator", "--limit", "1"]) == 2
    assert "--calculator puts tokens into our own decoding" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- graded again


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
    assert "tokens a completion, cut at 5" in out
    assert f"files      {Path('run/evals/sums-1')}" in out
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
    monkeypatch.setattr(measure, "TOLD_EVERY", 0.0)
    write_problems(tmp_path / "sums.jsonl", 3)
    words = ["--model", str(tiny_folder), "--dataset", str(tmp_path / "sums.jsonl"),
             "--max-new-tokens", "3", "--output-dir", str(tmp_path / "out")]
    assert run_command(module.main, words) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "evaluate" in line] == [
        f"evaluate   {done} of 3 completions" for done in (1, 2, 3)]


def test_the_data_set_that_a_foreign_run_names_is_a_plain_name(tmp_path, capsys):
    for name in ("x\x1b[2J", "a\0b", 5):
        (tmp_path / "args.json").write_text(json.dumps(
            {"model": "tiny", "system": "S", "method": "sft", "dataset": name}))
        assert run_command(module.main, ["--run", str(tmp_path)]) == 1
        assert "dataset is no name; give --dataset" in capsys.readouterr().err


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
    measure._write_records(tmp_path / "one", right)
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


@pytest.fixture
def of_a_server(tmp_path) -> Path:
    """An evaluation of two problems, of which the first is lost."""
    record = record_of(Problem("p1", "1 + 1?", "", "2"), 1, 0, "#### 2", 4, "stop", None)
    folder = tmp_path / "asked"
    folder.mkdir()
    (folder / "generations.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "result.json").write_text(json.dumps(
        {"lost": 1, "wanted": 2, "left_out": 1, "max_new_tokens": 8}))
    return folder


def test_what_a_server_has_lost_is_told_again(of_a_server, capsys):
    for way in ("--read", "--regrade"):
        assert run_command(module.main, [way, str(of_a_server)]) == 0
        out = capsys.readouterr().out
        assert "lost 1 of 2 replies: 1 problem(s) left out" in out and "cut at 8" in out


@pytest.mark.parametrize("name, value", [("lost", "\x1b[2J"), ("wanted", None), ("left_out", -1),
                                         ("max_new_tokens", "8"), ("max_new_tokens", True)])
@pytest.mark.parametrize("way", ["--read", "--regrade"])
def test_what_a_result_says_is_checked_before_it_is_printed(way, name, value, of_a_server, capsys):
    path = of_a_server / "result.json"
    path.write_text(json.dumps(read(path) | {name: value}))
    assert run_command(module.main, [way, str(of_a_server)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {path}: {name} is ") and "\x1b" not in err
    assert "not what was measured" in err and list(of_a_server.parent.iterdir()) == [of_a_server]


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
