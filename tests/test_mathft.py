"""mathft.py: a run from the flags to the report, interrupted and resumed, with each method, on a
small random model.

The problems ask for sums but are all answered "7", which even this model learns in some dozen
steps.
"""

import dataclasses
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import children
import evaluate
import mathft
import measure
import train
from checkpoint import load_model, step_of
from data import Example, load_problems, trained_on
from flags import run_command
from mathft import load_data, main, read_flags
from methods import METHODS, load_run
from runtime import ALONE, UsageError, UserError, hash_of, locked

ROOT = Path(__file__).resolve().parent.parent
RESULT_KEYS = """method model dataset eval_dataset n accuracy_before accuracy_after ci95_before
    ci95_after mcnemar_p no_answer_rate_before no_answer_rate_after truncated_rate_before
    truncated_rate_after trainable_params total_params train_seconds eval_seconds steps train_tokens
    target_tokens tokens_per_second target_tokens_per_second
    peak_memory_mib device dtype seed version""".split()
RATES = {"sft": "0.01", "lora": "0.03", "prefix": "0.3", "ia3": "0.3"}


def write_problems(path: Path, count: int, first: int = 0) -> str:
    records = [{"question": f"What is {n} + {n + 1}?", "answer": "#### 7"}
               for n in range(first, first + count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def common(tiny_folder, tmp_path) -> list[str]:
    """The flags of a short run of this model on these problems, measured on eight others."""
    data, test = write_problems(tmp_path / "sums.jsonl", 40), write_problems(
        tmp_path / "test.jsonl", 9, first=100)
    return [
        *("--model", str(tiny_folder), "--dataset", data, "--eval-dataset", test, "--eval-limit",
          "8", "--dtype", "fp32",
          ), *("--device", "cpu", "--batch-size", "4", "--max-new-tokens", "8", "--log-every", "2",
               "--keep", "1", "--system", "Add."),
    ]


def lora(common: list[str], folder: Path, *more: str) -> list[str]:
    return ["--method", "lora", *common, "--lr", "0.03", "--output-dir", str(folder), *more]


def command(argv: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    capsys.readouterr()
    code = run_command(main, argv)
    return code, *capsys.readouterr()


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def generations(folder: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for line in (folder / "generations.jsonl").read_text().splitlines()
    ]


def assert_same_adapter(a: Path, b: Path) -> None:
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors")
                    for folder in (a, b))
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours)


# --------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("method", METHODS)
def test_a_run_from_start_to_end(method, common, tmp_path, capsys):
    """Measure, train, measure again, save, report; and the evaluation command finds the model as it
    was measured.
    """
    folder = tmp_path / "run"
    argv = [
        "--method", method, *common, "--steps", "30", "--lr", RATES[method], "--output-dir",
        str(folder)
    ]
    code, out, _ = command(argv, capsys)
    assert code == 0

    # What a person sees, in this order.
    seen = [
        "machine ", "model ", "data ", "before training", "step   10/30", "step   30/30",
        "after training"
    ]
    seen += [
        "accuracy ", "95 % interval", "McNemar p =", "trained ", "peak memory",
        f"files      {folder}"
    ]
    seen += [f"next       python evaluate.py --run {folder}", f"python report.py {folder}"]
    places, start = [], 0
    for text in seen:
        start = out.index(text, start)
        places.append(start)
    assert "40 training examples, 8 test problems" in out
    assert out.count("\nstep ") == 15 and "grad norm" in out and "target tokens/s" in out

    # What the run directory holds.
    result, args = read(folder / "result.json"), read(folder / "args.json")
    assert set(RESULT_KEYS) <= set(result)
    assert (result["method"], result["n"], result["steps"], result["dtype"]) == (method, 8, 30,
                                                                                 "fp32")
    assert (args["method"], args["system"], args["seed"]) == (method, "Add.", 0)
    assert result["total_params"] == sum(p.numel() for p in load_model(
        Path(args["model"]), "cpu", torch.float32, torch.float32).parameters())  # no adapter in it
    assert result[
        "accuracy_before"] == 0 and result["ci95_before"][0] == 0 < result["ci95_before"][1] < 0.5
    gain = result["accuracy_after"] - result["accuracy_before"]
    assert gain == pytest.approx(sum(result["gain"].values()))
    if method in ("sft", "lora"):  # the others can only bring out what a random model does not have
        assert result["accuracy_after"] == 1.0 and result["mcnemar_p"] == pytest.approx(2 / 2**8)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(2, 31, 2))
    assert metrics[-1]["loss"] < (1.0 if method == "ia3" else 0.8) * metrics[0]["loss"]
    assert read(folder / "env.json")["device"] == "cpu"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-30"]
    before, after = folder / "evals" / "before", folder / "evals" / "after"
    assert generations(before) != generations(after) and read(after / "result.json")["n"] == 8
    assert out.count("still wrong") == min(3, 8 - round(8 * result["accuracy_after"]))

    # What was trained is found again, and gives the same texts.
    run = load_run(folder, "cpu", torch.float32)
    assert (run.prefix is not None) == (method == "prefix") and run.system == "Add."
    flags = [
        "--run",
        str(folder), "--dataset",
        str(tmp_path / "test.jsonl"), "--limit", "8", "--max-new-tokens", "8"
    ]
    assert run_command(evaluate.main, [*flags, "--dtype", "fp32", "--device", "cpu"]) == 0
    assert generations(folder / "evals" / "test-1") == generations(after)
    assert read(folder / "evals" / "test-1" / "result.json")["accuracy"] == result["accuracy_after"]


def test_without_measuring_and_with_a_held_out_tenth(common, tmp_path, capsys, monkeypatch):
    """--eval-limit 0 trains alone; the test problems of a file are its own, and never trained on.
    """
    monkeypatch.chdir(tmp_path)
    at = common.index("--eval-dataset")
    argv = [
        "--method", "prefix", *common[:at], *common[at + 2:], "--epochs", "0.5", "--prefix-length",
        "3"
    ]
    code, out, _ = command([*argv, "--eval-limit", "0"], capsys)
    assert code == 0 and "36 training examples, 0 test problems" in out
    result = read(tmp_path / "runs" / "prefix-sums-1" / "result.json")  # the default folder
    assert result["steps"] == 4  # half of 36 problems in fours, rounded
    assert [
        result[key]
        for key in ("n", "accuracy_before", "ci95_after", "mcnemar_p", "gain", "eval_seconds")
    ] == [None] * 6
    assert not (tmp_path / "runs" / "prefix-sums-1" / "evals").exists()
    assert "still wrong" not in out and "after training" not in out

    train_problems, test_problems, _ = load_data(read_flags(argv)[0])
    assert len(train_problems) == 36 and len(test_problems) == 4
    assert not {p.question for p in train_problems} & {p.question for p in test_problems}


def test_a_question_of_the_test_file_is_not_trained_on(tmp_path):
    """Whoever gives the same problems twice measures honestly all the same."""
    data, test = write_problems(tmp_path / "a.jsonl", 30), write_problems(
        tmp_path / "b.jsonl", 10, first=25)
    argv = ["--method", "sft", "--dataset", data, "--eval-dataset", test]
    train_problems, test_problems, overlap = load_data(read_flags(argv)[0])
    assert overlap == 5 and len(train_problems) == 25 and len(test_problems) == 10
    assert len(load_data(read_flags([*argv, "--limit", "20"])[0])[0]) == 20
    assert not {p.question for p in train_problems} & {p.question for p in test_problems}


LONG = ("Ana has {} red apples and four green ones in the basket that she bought on the market "
        "last {} morning.")


def overlapping(tmp_path: Path) -> list[str]:
    """Flags of ten training problems: eight new ones, a test problem in other spelling, one with
    another number.
    """
    asked = [f"What is {n} + {n + 1}?" for n in range(8)
             ] + ["what is: 100 + 101", LONG.format(7, "Monday")]
    tested = ["What is 100 + 101?", LONG.format(3, "Monday"), "What is 200 + 201?"]
    for name, questions in (("train", asked), ("test", tested)):
        rows = [
            json.dumps({"question": question, "answer": "#### 7"}) + "\n" for question in questions
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return [
        "--dataset",
        str(tmp_path / "train.jsonl"), "--eval-dataset",
        str(tmp_path / "test.jsonl")
    ]


def test_what_repeats_a_test_problem_is_left_out_and_told(common, tmp_path, capsys):
    """Another spelling, or thirteen words in a row: the model would be measured on what it has
    seen.
    """
    more = [*overlapping(tmp_path), "--steps", "1", "--eval-limit", "1"]
    code, out, _ = command(lora(common, tmp_path / "clean", *more), capsys)
    assert code == 0 and "train.jsonl: 8 training examples, 1 test problems" in out
    assert "test problems\nleft out   2 rows: 2 overlap the test problems\n" in out
    assert read(tmp_path / "clean" / "result.json")["train_overlap"] == 2
    code, out, _ = command(lora(common, tmp_path / "all", *more, "--train-on-overlap"), capsys)
    assert code == 0 and "train.jsonl: 10 training examples, 1 test problems" in out
    assert "test problems (2 overlap the test problems and are trained on all the same)\n" in out
    assert read(tmp_path / "all" / "args.json")["train_on_overlap"] is True


def test_a_chat_is_held_against_the_test_problems_turn_by_turn(tmp_path):
    argv = ["--method", "sft", *overlapping(tmp_path)]
    turns = [("user", "What is 100 + 101?"), ("assistant", "7"), ("user", "And one more?"),
             ("assistant", "8")]
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write(
            json.dumps({"messages": [{"role": role, "content": text}
                                     for role, text in turns]}) + "\n")
    assert load_data(read_flags(argv)[0])[2] == 3


def test_training_on_the_test_problems_alone_is_refused(common, tmp_path, capsys):
    same = ["--dataset", str(tmp_path / "test.jsonl")]  # which is the --eval-dataset, too
    code, _, err = command(lora(common, tmp_path / "run", *same), capsys)
    assert code == 1
    assert "test.jsonl: all 9 problems repeat test problems; --train-on-overlap keeps them" in err
    assert not (tmp_path / "run").exists()


def test_a_twin_of_a_held_out_problem_is_not_trained_on(tmp_path):
    """The tenth is chosen by the question's letters; what is nearly the same question goes with it.
    """
    days = ("Monday", "Friday")
    text = ("House {0}: Ana has {0} red apples, {0} green ones, {0} eggs and {0} pears; "
            "how many on {1}?")
    rows = [{"question": text.format(n, day), "answer": "#### 7"} for n in range(30) for day in days
            ]
    (tmp_path / "twins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--method", "sft", "--dataset", str(tmp_path / "twins.jsonl")]
    (train_problems, test_problems, overlap), (everything, same, counted) = (
        load_data(read_flags([*argv, *more])[0]) for more in ([], ["--train-on-overlap"]))
    houses = [{problem.question.split()[1]
               for problem in problems} for problems in (train_problems, test_problems)]
    assert len(test_problems) == 6 and not houses[0] & houses[1] and overlap > 0
    assert same == test_problems and counted == overlap and len(
        everything) == 54 == len(train_problems) + overlap


@pytest.mark.parametrize("dataset, tested_on", [("gsm8k", "gsm8k"), ("aug-gsm8k", "gsm8k"),
                                                ("math", "math500"), ("aug-math", "math500"),
                                                ("mini-gsm", None), ("my.jsonl", None),
                                                ("hub:us/sums/x.jsonl", None)])  # fmt: skip
def test_a_published_set_is_measured_where_it_is_by_custom(dataset, tested_on):
    assert read_flags(["--method", "sft", "--dataset", dataset])[0].eval_dataset == tested_on
    assert read_flags(["--method", "sft", "--dataset", dataset, "--eval-dataset",
                       "math500"])[0].eval_dataset == "math500"


def test_math_perturb_is_for_measuring_alone(common, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(["--method", "lora", *common, "--dataset", "math-perturb-hard"], capsys)
    assert code == 1
    assert "math-perturb-hard: is for testing only, its authors forbid training on it" in err
    assert err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                    reason="set MATHFT_DATA to a folder with gsm8k/")
def test_gsm8k_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("sources.constants.HF_HOME", str(tmp_path))
    shutil.copytree(Path(os.environ["MATHFT_DATA"]) / "gsm8k", tmp_path / "mathft" / "gsm8k")
    train_problems, test_problems, overlap = load_data(
        read_flags(["--method", "lora", "--dataset", "gsm8k"])[0])
    assert len(train_problems) + overlap == 7473 and len(test_problems) == 1319 and overlap < 100


def test_embedded_problems_differ_by_seed_and_are_measured_on_the_same(tmp_path):
    (train_0, test_0,
     _), (train_1, test_1,
          _) = (load_data(read_flags(["--method", "sft", "--seed", seed])[0]) for seed in "01")
    assert test_0 == test_1 and len(test_0) == 500 and train_0 != train_1 and len(train_0) > 3900
    assert not {p.question for p in train_0 + train_1} & {p.question for p in test_0}


# -------------------------------------------------------------------------- interrupted and resumed

# Runs the command, and sends it a real signal in the middle of its fourth step.
STRIKE = """
import os, signal, sys, mathft, train
from flags import run_command

plan = train.learning_rate_at

def strike(step, settings):
    if step == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return plan(step, settings)

train.learning_rate_at = strike
sys.exit(run_command(mathft.main, sys.argv[2:]))
"""


def strike(name: str, argv: list[str]) -> subprocess.CompletedProcess:
    return children.run(STRIKE, name, *argv)


def test_two_ctrl_c_end_at_once_and_name_what_is_saved(common, tmp_path):
    """The step is not ended and nothing more is saved: the checkpoint before it is the last."""
    once = "        os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
    twice = STRIKE.replace(once, 2 * once)
    for more, saved in ((), "no step of the training yet"), (("--save-every", "1"), "step-3"):
        folder = tmp_path / saved
        done = children.run(twice, "SIGINT", *lora(common, folder, "--steps", "8", *more))
        assert done.returncode == 130 and "Traceback" not in done.stderr
        assert done.stdout.splitlines()[-2].endswith(saved)
        assert done.stdout.endswith(f"to go on:  python mathft.py --resume {folder}\n")


def test_after_ctrl_c_a_run_goes_on_to_the_same_result(common, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(lora(common, whole, "--steps", "8"), capsys)[0] == 0
    done = strike("SIGINT", lora(common, cut, "--steps", "8"))
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert "interrupted: ending this step, then saving" in done.stderr
    assert f"stopped after step 4 of 8\nsaved      {cut / 'checkpoints' / 'step-4'}" in done.stdout
    assert done.stdout.endswith(f"to go on:  python mathft.py --resume {cut}\n")
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["step-4"]
    assert not (cut / "adapter").exists() and not (cut / "result.json").exists()

    code, out, _ = command(["--resume", str(cut)], capsys)
    assert code == 0 and "step    6/8" in out and "step    4/8" not in out
    assert_same_adapter(whole, cut)
    same = [key for key in RESULT_KEYS if "second" not in key and key != "peak_memory_mib"]
    results = read(whole / "result.json"), read(cut / "result.json")
    assert [results[0][key] for key in same] == [results[1][key] for key in same]
    steps = [[
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] for run in (whole, cut)]
    assert steps == [[2, 4, 6, 8]] * 2
    assert generations(whole / "evals" / "after") == generations(cut / "evals" / "after")


def test_after_a_kill_a_run_goes_on_from_its_last_checkpoint(common, tmp_path, capsys):
    """SIGKILL leaves no time to save: step 3, and its line in the log, are done again."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ("--eval-limit", "0", "--steps", "6", "--save-every", "2", "--log-every", "1")
    assert command(lora(common, whole, *more), capsys)[0] == 0
    done = strike("SIGKILL", lora(common, cut, *more))
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["step-2"]
    assert command(["--resume", str(cut)], capsys)[0] == 0
    assert_same_adapter(whole, cut)
    losses = [[
        json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] for run in (whole, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize("step, steps", [(1, 5), (4, 5)], ids=["in the middle", "in the last step"])
def test_sigterm_saves_too(step, steps, common, tmp_path, capsys, monkeypatch):
    plan = train.learning_rate_at
    monkeypatch.setattr(
        train, "learning_rate_at", lambda at, settings:
        (at == step and os.kill(os.getpid(), signal.SIGTERM), plan(at, settings))[1],
    )
    code, out, err = command(lora(common, tmp_path / "run", "--steps", str(steps)), capsys)
    assert code == 143 and err.splitlines()[-1] == "terminated"
    assert f"stopped after step {step + 1} of {steps}" in out and "after training" not in out
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
        f"step-{step + 1}"
    ]
    monkeypatch.undo()
    assert command(["--resume", str(tmp_path / "run")], capsys)[0] == 0
    assert read(tmp_path / "run" / "result.json")["steps"] == steps


# Makes its stdin the terminal that controls it, and becomes the command that it is given.
AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of Unix")
def test_a_terminal_that_closes_is_like_sigterm(common, tmp_path, capsys):
    """The step ends, the checkpoint is written although nothing can be printed any more."""
    folder = tmp_path / "run"
    argv = lora(common, folder, "--steps", "400", "--eval-limit", "0", "--log-every", "1")
    leader, terminal = pty.openpty()
    run = subprocess.Popen([sys.executable, "-c", AT_TERMINAL, sys.executable, "mathft.py", *argv],
                           cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal,
                           start_new_session=True)
    os.close(terminal)
    seen = b""
    while b"step    3/400" not in seen:
        assert select.select([leader], [], [], 60)[0], seen
        seen += os.read(leader, 4096)
    os.close(leader)  # the window is closed
    assert run.wait(60) == 143
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert 3 <= step_of(checkpoint) < 400
    code, _, err = command(["--resume", str(folder), "--steps", str(step_of(checkpoint) + 1)],
                           capsys)
    assert code == 0, err


def test_a_log_that_nobody_reads_ends_no_training(common, tmp_path):
    """As `| head` and a `tee` that was killed leave it."""
    argv = lora(common, tmp_path / "run", "--steps", "30", "--eval-limit", "0", "--log-every", "1")
    with subprocess.Popen([sys.executable, "mathft.py", *argv], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        while not run.stdout.readline().startswith("step    3/30"):
            pass
        run.stdout.close()
        assert run.wait(60) == 0 and run.stderr.read() == ""
    assert read(tmp_path / "run" / "result.json")["steps"] == 30


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of Unix")
def test_nohup_is_heeded(common, tmp_path):
    """A program that was started to survive its terminal does."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + STRIKE
    argv = lora(common, tmp_path / "run", "--steps", "5", "--eval-limit", "0")
    done = children.run(code, "SIGHUP", *argv)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_measuring_keeps_what_is_measured(common, tmp_path, capsys, monkeypatch):
    folder, grade = tmp_path / "run", measure.grade
    graded = []

    def interrupted(problem, completion, text):
        graded.append(problem.id)
        if len(graded) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return grade(problem, completion, text)

    monkeypatch.setattr(measure, "grade", interrupted)
    code, out, _ = command(lora(common, folder, "--steps", "2"), capsys)
    assert code == 130 and out.endswith(f"to go on:  python mathft.py --resume {folder}\n")
    kept = len(generations(folder / "evals" / "before"))
    assert 2 <= kept < 8
    monkeypatch.undo()
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert len(generations(folder / "evals" / "before")) == 8


def test_a_run_that_had_ended_can_go_on_with_more_steps(common, tmp_path, capsys):
    """Then adapter, second measurement and result are those of the longer run, and the first
    measurement stays.
    """
    folder = tmp_path / "run"
    assert command(lora(common, folder, "--steps", "2"), capsys)[0] == 0
    shutil.copytree(folder, tmp_path / "short")
    code, out, _ = command(["--resume", str(folder), "--steps", "30"], capsys)
    assert code == 0
    with pytest.raises(AssertionError):
        assert_same_adapter(folder, tmp_path / "short")
    assert generations(folder / "evals" / "before") == generations(
        tmp_path / "short" / "evals" / "before")
    result = read(folder / "result.json")
    assert result["steps"] == 30 and result["accuracy_after"] == 1.0
    assert result["accuracy_after"] == read(folder / "evals" / "after" / "result.json")["accuracy"]

    # And a run that has nothing left to do gives the same again.
    shutil.rmtree(tmp_path / "short")
    shutil.copytree(folder, tmp_path / "short")
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert_same_adapter(folder, tmp_path / "short")


@pytest.mark.parametrize(("seconds", "said"), [
    (2.0, "time       about 3 minutes for the 98 steps that are left, at 2 s each\n"),
    (0.5, "time       about 1 minute for the 98 steps that are left, at 0.5 s each\n"),
    (0.1, ""),
])
def test_the_second_step_tells_how_long_the_rest_takes(seconds, said, capsys, monkeypatch):
    """Nothing if that is less than half a minute; and a bar moves by the steps that have ended."""
    clock = iter([10.0, 10.0 + seconds, 1e9])
    monkeypatch.setattr("mathft.perf_counter", lambda: next(clock))
    bar = SimpleNamespace(n=0, update=lambda steps: setattr(bar, "n", bar.n + steps))
    after_step = mathft.progress(SimpleNamespace(steps=100, ranks=ALONE), bar)
    for step in (1, 2, 3):
        after_step(step)
    assert capsys.readouterr().out == said and bar.n == 3


def test_a_finished_run_keeps_no_checkpoint_unless_asked(common, tmp_path, capsys):
    """And says so to who would go on with it."""
    folder, words = tmp_path / "run", ["--steps", "2", "--eval-limit", "0", "--save-every", "1"]
    assert command(lora(common, folder, *words, "--keep", "0"), capsys)[0] == 0
    assert list((folder / "checkpoints").iterdir()) == []
    code, _, err = command(["--resume", str(folder), "--steps", "3"], capsys)
    assert code == 2 and err.count("\n") == 1
    assert f"has ended and kept no checkpoint (--keep 1 keeps one); start a run at its end with " \
        f"--from {folder}" in err


def test_the_held_out_loss_is_told_and_its_best_checkpoint_kept(common, tmp_path, capsys):
    """At a rate that is far too high the loss gets worse: the best step is not the last."""
    folder = tmp_path / "run"
    words = ["--steps", "6", "--eval-limit", "0", "--eval-every", "2", "--keep", "0", "--warmup",
             "0", "--lr", "9"]
    code, out, _ = command(lora(common, folder, *words), capsys)
    assert code == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in rows}
    assert list(losses) == [2, 4, 6] and f"held out {losses[2]:.4f}" in out
    best = min(losses, key=losses.get)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{best}"]
    assert f"the lowest loss is that of step {best}: python evaluate.py --run {folder} " \
        f"--checkpoint step-{best}" in out


def test_a_held_out_loss_of_rewards_is_refused(common, tmp_path, capsys):
    code, _, err = command(lora(common, tmp_path / "run", "--objective", "grpo", "--eval-every",
                                "2", "--eval-limit", "0"), capsys)
    assert code == 2 and "--objective grpo does not learn; leave it out" in err


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_what_the_result_holds(method, common, tiny_folder, tmp_path, capsys):
    """--run R --checkpoint step-N: of the last step, it is the model that the run has saved."""
    folder = tmp_path / "run"
    words = ["--method", method, *common, "--lr", RATES[method], "--steps", "2", "--eval-limit",
             "0", "--output-dir", str(folder)]
    assert command(words, capsys)[0] == 0
    end, then = (load_run(folder, "cpu", torch.float32, checkpoint=name)
                 for name in (None, "step-2"))
    for ours, theirs in zip(end.model.state_dict().values(), then.model.state_dict().values()):
        assert torch.allclose(ours, theirs, atol=1e-2 if method == "sft" else 0)
    assert (end.prefix is None) == (then.prefix is None)
    if end.prefix is not None:
        assert torch.allclose(end.prefix, then.prefix, atol=1e-6)
    with pytest.raises(UserError, match="has no checkpoint step-7; it has step-2"):
        load_run(folder, "cpu", torch.float32, checkpoint="step-7")


def test_a_run_keeps_what_it_was_measured_and_trained_on(common, tmp_path, capsys):
    """The rows of the test set are in the run, equal to those it read; so is a hash of each
    question that was trained on, also of the run before."""
    first, second = tmp_path / "first", tmp_path / "second"
    words = lora(common, first, "--steps", "1", "--eval-limit", "3", "--limit", "5")
    assert command(words, capsys)[0] == 0
    trained, tests, _ = load_data(read_flags(words)[0])
    assert load_problems(str(first / "data" / "test.jsonl")) == tests and len(tests) == 3
    assert trained_on(first) == {hash_of(problem.key) for problem in trained}
    other = write_problems(tmp_path / "other.jsonl", 4, 200)
    assert command(["--from", str(first), "--dataset", other, *words[words.index("--eval-dataset"):
                                                                   ][:4],
                    "--steps", "1", "--batch-size", "2", "--max-new-tokens", "4",
                    "--output-dir", str(second)], capsys)[0] == 0
    assert len(trained_on(second)) == 9 and trained_on(first) < trained_on(second)


def test_own_data_get_epochs_and_few_test_problems_are_told(common, tmp_path, capsys):
    assert (read_flags(["--method", "lora", "--dataset", "mine.jsonl"])[0].epochs,
            read_flags(["--method", "lora", "--dataset", "mine.jsonl"])[0].steps) == (5.0, None)
    assert read_flags(["--method", "lora", "--objective", "grpo", "--dataset", "mine.jsonl"]
                      )[0].steps == 24
    code, out, _ = command(lora(common, tmp_path / "run", "--epochs", "0.2"), capsys)
    assert code == 0 and "training   2 steps of 4 examples, 0.2 epochs, about " in out
    assert "\nmemory     about " in out and " MiB of checkpoints while it trains, " in out
    assert "note       8 test problems are few: an accuracy is known to about ±35 points" in out
    assert "is a toy" not in out
    assert f"next       python evaluate.py --run {tmp_path / 'run'} --samples 8" in out


def test_a_run_goes_on_where_its_files_have_moved(common, tiny_folder, tmp_path, capsys):
    """Model and data in other places are the same model and data: what was measured is read back.
    """
    shutil.copytree(tiny_folder, tmp_path / "there")
    at = common.index(str(tiny_folder))
    argv = lora([*common[:at], str(tmp_path / "there"), *common[at + 1:]], tmp_path / "run",
                "--steps", "2")
    assert command(argv, capsys)[0] == 0
    (tmp_path / "there").rename(tmp_path / "here")
    (tmp_path / "test.jsonl").rename(tmp_path / "moved.jsonl")
    before = (tmp_path / "run" / "evals" / "before" / "result.json").read_bytes()
    moved = ["--model", str(tmp_path / "here"), "--eval-dataset", str(tmp_path / "moved.jsonl")]
    assert command(["--resume", str(tmp_path / "run"), *moved, "--steps", "3"], capsys)[0] == 0
    assert (tmp_path / "run" / "evals" / "before" / "result.json").read_bytes() == before


def test_half_a_saved_adapter_is_not_taken_for_a_whole_one(common, tmp_path, capsys, monkeypatch):
    """The disk fills up just while the adapter is written: the run fails, and saves it whole when
    it goes on.
    """
    folder = tmp_path / "run"

    def full(path, _):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("adapters.write_json", full)  # the second of its two files
    code, _, err = command(lora(common, folder, "--steps", "2", "--eval-limit", "0"), capsys)
    assert code == 1
    assert f"error: {folder / 'adapter' / 'adapter_config.json'}: cannot be written" in err
    assert sorted(path.name for path in folder.iterdir()) == [
        "args.json", "checkpoints", "data", "env.json", "metrics.jsonl"
    ]
    monkeypatch.undo()
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert load_run(folder, "cpu", torch.float32).model is not None


# Runs the command on a disk where no file may grow beyond 100 kB: too little for a checkpoint.
FULL_DISK = """
import resource, sys, mathft
from flags import run_command

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
sys.exit(run_command(mathft.main, sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on files are Unix's")
def test_a_full_disk_while_saving(common, tmp_path, capsys):
    """One line, nothing half written; with room again, the run goes on."""
    folder = tmp_path / "run"
    argv = lora(common, folder, "--steps", "2", "--eval-limit", "0")
    done = children.run(FULL_DISK, *argv)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: {folder / 'checkpoints' / 'step-2'}") and "cannot be written" in line
    assert list((folder / "checkpoints").iterdir()) == [] and not (folder / "adapter").exists()
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert read(folder / "result.json")["steps"] == 2


# ------------------------------------------------------------------- files that were tampered with


@pytest.fixture(scope="module")
def ended(tiny_folder, tmp_path_factory) -> Path:
    """A folder with a LoRA run of two steps and its data, to be copied."""
    home = tmp_path_factory.mktemp("ended")
    data, test = write_problems(home / "a.jsonl", 12), write_problems(home / "b.jsonl", 3, 50)
    words = ["--method", "lora", "--model", str(tiny_folder), "--dataset", data, "--eval-dataset",
             test, "--dtype", "fp32", "--device", "cpu", "--batch-size", "2", "--max-new-tokens",
             "4", "--system", "Add.", "--steps", "2", "--log-every", "1", "--lr", "0.01",
             "--keep", "1", "--output-dir", str(home / "run")]
    assert run_command(main, words) == 0
    return home / "run"


def changed(file: str, **values):
    """What sets fields of a JSON file; a value `...` removes the field."""
    def change(run: Path) -> None:
        whole = read(run / file) | values
        kept = {key: value for key, value in whole.items() if value is not ...}
        (run / file).write_text(json.dumps(kept))
    return change


def written(file: str, content: bytes):
    return lambda run: (run / file).write_bytes(content)


def tensor(change):
    """What changes the tensors of the checkpoint."""
    def apply(run: Path) -> None:
        path = run / "checkpoints" / "step-2" / "state.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    return apply


def each(part: str, new):
    """What replaces every tensor whose name begins so."""
    def change(tensors: dict) -> None:
        for name in list(tensors):
            if name.startswith(part):
                tensors[name] = new(tensors[name])
    return tensor(change)


STATE = "checkpoints/step-2/state.json"
ATTACKS = [
    *((changed("args.json", **{name: value}), f"args.json: {name}") for name, value in [
        ("steps", 10**18), ("steps", 0), ("steps", "4"), ("steps", True), ("steps", 2.5),
        ("steps", 10**40), ("batch_size", 10**9), ("batch_size", -1), ("epochs", 1e300),
        ("learning_rate", "high"), ("learning_rate", -1), ("clip", 0), ("seed", 2**64),
        ("seed", -1), ("method", ["lora"]), ("objective", {}), ("objective", "chat"),
        ("dataset", 5), ("dataset", ""), ("system", ["x"]), ("max_length", 1), ("lora_rank", 0),
        ("lora_rank", 10**7), ("lora_rank", None), ("lora_variant", "x"), ("history", 3),
        ("history", [{}]), ("dtype", 16), ("model", None), ("log_every", 0), ("plain", "yes"),
        ("warmup", 2)]),
    (changed("args.json", method="qlora"), "args.json: method is"),
    (changed("args.json", learning_rate=...), "it lacks learning_rate"),
    (changed("args.json", steps=None), "it lacks steps"),
    (written("args.json", b"[]"), "args.json: holds a list"),
    (written("args.json", b'{"steps": ' + b"9" * 5000 + b"}"), "args.json:1: not valid JSON"),
    (written("args.json", b'{"system": "\\ud800"}'), "args.json:1: not valid JSON (half a surr"),
    (written("args.json", b"\xff\xfe"), "args.json: cannot be read"),
    # Settings that are in order, and not this run's own.
    (changed("args.json", lora_rank=3), "what trains is [3, "),
    (changed("args.json", lora_targets="q_proj"), "holds the state of other parameters"),
    (changed("args.json", lora_targets="nose"), "unknown target nose"),
    *((changed(STATE, **values), f"{STATE}: not the state after 2 steps") for values in [
        {"steps": 3}, {"steps": "2"}, {"steps": True}, {"steps": -2}, {"seconds": None},
        {"seconds": -1}, {"tokens": 1e9}, {"target_tokens": ...}, {"colour": 1},
        {"interrupted": 0}, {"seconds": 0}, {"seconds": 1e-320}]),
    (written(STATE, b"{"), "state.json:1: not valid JSON"),
    (changed(STATE, seconds=float("nan")), "state.json:1: not valid JSON (NaN is no JSON)"),
    (each("exp_avg.", lambda t: t.flatten()[:1]), "exp_avg.model.layers.0"),
    (each("exp_avg_sq.", lambda t: t.double()), "in torch.float64"),
    (each("param.", lambda t: t.T.contiguous()), "param.model.layers.0"),
    (each("param.", lambda t: t.int()), "in torch.int32"),
    (each("step.", lambda t: t.repeat(3)), "step.model.layers.0"),
    (tensor(lambda tensors: tensors.pop(min(tensors))), "lacks exp_avg.model"),
    (tensor(lambda tensors: tensors.update(odd=torch.ones(1))), "also holds odd"),
    (written("checkpoints/step-2/state.safetensors", b"\x08"), "not a whole safetensors file"),
    *((written("metrics.jsonl", line + b"\n"), "metrics.jsonl:1: no line of a log")
      for line in (b"", b"\x00" * 9, b'{"step": "1"}', b"3")),
    *((changed("evals/before/result.json", **values), "evals/before/result.json: ")
      for values in ({"eval_seconds": ...}, {"eval_seconds": "1"}, {"tokens_per_second": None},
                     {"cost": 3}, {"timed_completions": -1},
                     {"cost": dict.fromkeys(measure.COST, 1), "lost": 0, "wanted": 3,
                      "left_out": 0})),
    (written("evals/before/generations.jsonl", b"x\n"), "generations.jsonl:1: not valid JSON"),
    (changed("evals/before/args.json", seed=5), "evals/before/args.json: was begun with seed 5"),
]


@pytest.mark.parametrize("attack, said", ATTACKS, ids=[said for _, said in ATTACKS])
def test_what_is_read_back_is_checked_like_a_foreign_file(attack, said, ended, tmp_path, capsys):
    """One line that names the file; the run stays as it is, and no process crashes."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    attack(folder)
    checkpoint = folder / "checkpoints" / "step-2"
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    code, _, err = command(["--resume", str(folder)], capsys)
    assert code in (1, 2) and err.startswith("error: ") and err.count("\n") == 1, err
    assert said in err
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_figures_of_a_finished_evaluation_are_counted_from_its_records(ended, tmp_path, capsys):
    """What result.json says of them is not believed."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    changed("evals/after/result.json", accuracy=2.0, ci95=None)(folder)
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert read(folder / "result.json")["accuracy_after"] == read(ended / "result.json")[
        "accuracy_after"]


@pytest.mark.parametrize("record, said", [({"problem": 9}, "problem 9, sample 0"),
                                          ({"sample": 1}, "problem 0, sample 1"),
                                          ({"gold": "8"}, "problem 0, sample 0"),
                                          ({"question": "?"}, "problem 0, sample 0")])
def test_a_record_of_another_evaluation_is_refused(record, said, ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    path = folder / "evals" / "before" / "generations.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(first) | record) + "\n" + "".join(rest))
    code, _, err = command(["--resume", str(folder)], capsys)
    assert code == 1 and said in err and "is none of this evaluation; remove its line" in err


def test_a_record_with_a_place_below_zero_is_refused(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    path = folder / "evals" / "before" / "generations.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(first) | {"problem": -1}) + "\n" + "".join(rest))
    code, _, err = command(["--resume", str(folder)], capsys)
    assert code == 1 and err.endswith("generations.jsonl:1: no record of an evaluation (problem "
                                      "missing or wrong); remove that line\n")


def test_checkpoints_have_plain_numbers(ended, tmp_path, capsys):
    """A folder `step-²` is none, nor is one `step-007`."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    for name in ("step-²", "step-007", "step-٣", "step-" + "9" * 200, "step--1", "step-"):
        (folder / "checkpoints" / name).mkdir()
    assert command(["--resume", str(folder)], capsys)[0] == 0


def test_a_kill_before_args_leaves_a_folder_that_the_same_command_takes(common, tmp_path, capsys):
    """And what a killed process was writing in a run's folder goes with the next process there."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / ".run.4194300.tmp").mkdir()  # the folder in the making
    (folder / ".args.json.4194300.tmp").write_text("{")
    argv = lora(common, folder, "--steps", "2", "--eval-limit", "0")
    assert command(argv, capsys)[0] == 0
    assert not (tmp_path / ".run.4194300.tmp").exists()
    (folder / "checkpoints" / ".step-1.4194300.tmp").mkdir()  # half deleted
    (folder / "evals" / "after").mkdir(parents=True)
    (folder / ".result.json.4194300.tmp").write_text("{")
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert [str(path) for path in folder.rglob(".*.tmp")] == []


def test_a_run_that_another_process_works_on_is_left_alone(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    with locked(folder):
        code, _, err = command(["--resume", str(folder), "--steps", "3"], capsys)
    assert code == 1 and f"{folder}: another process is at work in this folder" in err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]


# ----------------------------------------------------------------------------- wrong flags and data


@pytest.mark.parametrize(
    "argv, said",
    [([], "--method is missing: one of sft, lora, prefix"),
     (["--method", "qlora"], "invalid choice: 'qlora'"),
     (["--method", "lora", "--lora-rang", "3"], "unrecognized arguments: --lora-rang 3"),
     (["--method", "lora", "--steps", "5", "--epochs", "1"
       ], "--steps and --epochs exclude each other"),
     (["--method", "lora", "--tokens", "5", "--epochs", "1"
       ], "--epochs and --tokens exclude each other"),
     (["--method", "lora", "--steps", "0"], "0 is below 1"),
     (["--method", "lora", "--lr", "nan"], "nan is not a finite number"),
     (["--method", "lora", "--dtype", "fp16"], "--dtype fp16 is not supported: fp16 overflows"),
     (["--method", "lora", "--lora-alpha", "0"], "0 is below 1e-06"),
     (["--method", "lora", "--seed", "1" + "0" * 20], "is beyond 64 bits"),
     (["--method", "lora", "--model", ""], "argument --model: is empty; give a value, or leave"),
     (["--method", "lora", "--resume", ""], "argument --resume: is empty; give a value"), ],
)
def test_wrong_usage_is_code_2_and_one_line(argv, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(argv, capsys)
    assert code == 2 and out == "" and err.startswith("error: ") and said in err and err.count(
        "\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_what_makes_no_run_leaves_no_folder(common, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    broken = tmp_path / "sums.jsonl"
    for more, said in [(("--max-length", "20"),
                        "sums.jsonl: nothing to learn by --objective supervised fits into "
                        "--max-length 20 tokens"),
                       (("--dataset", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
                       (("--model", "nowhere"), "nowhere: no such folder"),
                       (("--lora-alpha", "0"), "0 is below 1e-06"),
                       (("--seed", str(2**63)), "beyond 64 bits"),
                       (("--method", "prefix", "--prefix-length", "256"),
                        "--prefix-length 256: the model has 256 positions")]:
        code, out, err = command(["--method", "lora", *common, *more], capsys)
        assert "before training" not in out
        assert code in (1, 2) and err.startswith("error: ") and said in err and err.count("\n") == 1
    broken.write_text(broken.read_text().replace('"question": "What is 6', '"question" "What is 6'))
    code, _, err = command(["--method", "lora", *common], capsys)
    assert code == 1 and f"{broken}:7: not valid JSON" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == files


@pytest.mark.parametrize("words, said", [
    (["lora", "--lora-targets", "q_prj"], "unknown target q_prj; known are q_proj, k_proj"),
    (["prefix", "--prefix-init", "nonsense"], "--prefix-init nonsense: unknown; use text"),
    (["prefix", "--prefix-init", "text:"], "--prefix-init text: has no text; give one"),
    (["prefix", "--prefix-length", "250"],
     "tokens, and the model has 6 positions for it behind a prefix of 250; give a shorter prefix"),
    (["lora", "--eval-every", "1", "--objective", "grpo"], "which --objective grpo does not learn"),
    (["lora", "--eval-dataset", "no-gold.jsonl"], "no-gold.jsonl:1: this problem has no gold"),
])
def test_what_cannot_start_is_told_before_anything_is_measured(words, said, common, tmp_path,
                                                               capsys, monkeypatch):
    """In one line, and no folder is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-gold.jsonl").write_text('{"question": "Why?", "answer": "Because it is."}\n')
    folder = tmp_path / "run"
    code, out, err = command(["--method", words[0], *common, *words[1:], "--output-dir",
                              str(folder)], capsys)
    assert code in (1, 2) and out == "" and said in err and err.count("\n") == 1
    assert not folder.exists()


def test_texts_that_the_model_has_no_positions_for(common, tmp_path, capsys):
    """Of 256: an example that is longer is told with the flag that leaves it out. A test problem
    that leaves no room for an answer counts as wrong, and is told: of a published set nobody can
    take it away.
    """
    folder = tmp_path / "run"
    for name, word in (("sums.jsonl", "so "), ("test.jsonl", "no ")):
        with open(tmp_path / name, "a") as file:
            file.write(json.dumps({"question": word * 140 + "?", "answer": "#### 7"}) + "\n")
    code, _, err = command(lora(common, folder, "--steps", "1"), capsys)
    assert code == 2 and err.count("\n") == 1 and not folder.exists()
    assert "sums.jsonl:41: has " in err and "256 positions for it; give --max-length 256" in err
    argv = lora(common, folder, "--steps", "1", "--max-length", "256", "--eval-limit", "10")
    code, out, _ = command(argv, capsys)
    before, _, _ = out.partition("before training")
    assert code == 0 and "note       1 of 10 test problems count as wrong: they leave no " in before
    assert read(folder / "result.json")["n"] == 10
    (tmp_path / "test.jsonl").write_text((tmp_path / "test.jsonl").read_text().splitlines()[-1])
    code, _, err = command([*argv, "--output-dir", str(tmp_path / "other")], capsys)
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "other").exists()
    assert "no test problem is short enough to be answered: the model has 256 positions;" in err


@pytest.mark.parametrize("features, said", [
    ({"amx_bf16"}, ", cpu, fp32, "),
    (set(), ", cpu, fp32 (this machine has no fast bf16), ")])
def test_what_a_run_will_take_is_told_before_it_measures(features, said, common, tmp_path, capsys,
                                                         monkeypatch):
    """Steps, epochs, tokens, disk; and why it may be slow. Memory is told behind the measurement,
    which leaves some that training takes again.
    """
    monkeypatch.setattr("runtime._cpu_flags", lambda: features)
    code, out, _ = command(lora(common, tmp_path / "run", "--steps", "3"), capsys)
    told, _, rest = out.partition("before training")
    tokens = read(tmp_path / "run" / "result.json")["train_tokens"]
    about = int(told.partition("epochs, about ")[2].split()[0].replace(",", ""))
    assert code == 0 and said in told and about == pytest.approx(tokens, rel=0.05)
    assert "\ndisk       " in told and "\nmemory     about " in rest


def test_the_next_command_is_one_that_can_be_given(common, tmp_path, capsys):
    """A run on texts keeps no test problems: a set must be named."""
    texts, folder = tmp_path / "texts.jsonl", tmp_path / "run"
    texts.write_text('{"text": "One and one are two."}\n' * 4)
    argv = lora(common, folder, "--objective", "cpt", "--dataset", str(texts), "--steps", "1",
                "--eval-limit", "0")
    at = argv.index("--eval-dataset")
    code, out, err = command([*argv[:at], *argv[at + 2:]], capsys)
    assert code == 0, err
    assert f"next       python evaluate.py --run {folder} --dataset NAME --samples 8" in out


def test_long_examples_are_dropped_and_told(common, tmp_path, capsys):
    with open(tmp_path / "sums.jsonl", "a") as file:
        file.write(json.dumps({"question": "q", "answer": "so " * 500 + "#### 7"}) + "\n")
    code, out, _ = command(
        lora(common, tmp_path / "run", "--steps", "1", "--eval-limit", "0", "--max-length", "200"),
        capsys)
    assert code == 0
    assert "40 training examples, 0 test problems\nleft out   1 rows: 1 longer than 200 to" in out
    assert read(tmp_path / "run" / "result.json")["left_out"] == {"longer than 200 tokens": 1}


def test_rows_left_out_are_counted_by_reason(common, tmp_path, capsys):
    """All rows of a file are trained on, measured, or counted with a reason."""
    rows = [{"question": f"{n}?", "generated_solution": f"#### {n}", "expected_answer": str(n)}
            for n in range(20)]
    rows += [{"question": "not learnt", "answer": "", "solution": ""},
             {"question": "wrong", "generated_solution": "4", "is_correct": False},
             {"question": "spelt", "answer": "<|im_end|> #### 7"},
             {"question": "What is 100 + 101?", "answer": "#### 7"},
             {"question": "long", "answer": "so " * 500 + "#### 7"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("--dataset", str(file), "--max-length", "200", "--limit", "23", "--steps", "1")
    code, out, err = command(lora(common, tmp_path / "run", *more), capsys)
    assert code == 0, err
    assert "left out   4 rows: 1 marked as wrong by is_correct, 1 overlap the test problems" in out
    assert "note       1 rows spell a marker such as <|im_end|>" in out
    result = read(tmp_path / "run" / "result.json")
    assert result["left_out"] == {
        "marked as wrong by is_correct": 1, "overlap the test problems": 1,
        "longer than 200 tokens": 1, "with nothing to learn": 1}
    assert result["rows_with_markers"] == 1 and "21 training examples" in out


def test_columns_and_several_sets_by_the_command(common, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"Q": f"{name} {n}?", "A": f"#### {n}"}) + "\n" for n in range(4)))
    sets = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"
    more = ("--dataset", sets, "--columns", "question=Q,solution=A", "--steps", "1")
    code, out, err = command(lora(common, tmp_path / "run", *more), capsys)
    assert code == 0 and "8 training examples" in out, err
    resume = ["--resume", str(tmp_path / "run")]
    assert command([*resume, "--steps", "2"], capsys)[0] == 0
    # The same rows in other tables.
    whole, tests = tmp_path / "c.jsonl", tmp_path / "d.jsonl"
    whole.write_text("".join((tmp_path / f"{name}.jsonl").read_text() for name in "ab")
                     .replace('"Q"', '"F"'))
    tests.write_text((tmp_path / "test.jsonl").read_text().replace('"question"', '"F"'))
    argv = [*resume, "--steps", "3", "--dataset", str(whole), "--columns", "question=F,solution=A",
            "--eval-dataset", str(tests), "--eval-columns", "question=F,solution=answer"]
    code, _, err = command(argv, capsys)
    assert code == 0, err


def test_held_out_rows_that_are_not_measured_are_counted_too(tmp_path):
    argv = ["--method", "sft", "--dataset", write_problems(tmp_path / "rows.jsonl", 40)]
    for limit, counted in (("1", {"held out, beyond --eval-limit": 3}), ("4", {}), ("0", {})):
        left_out = Counter()
        train, tests, _ = load_data(read_flags([*argv, "--eval-limit", limit])[0], left_out)
        assert left_out == counted and len(train) + len(tests) + left_out.total() == 40


def test_a_test_file_has_columns_of_its_own(tmp_path):
    odd, plain = tmp_path / "odd.jsonl", write_problems(tmp_path / "plain.jsonl", 3)
    odd.write_text('{"Q": "1+1?", "A": "#### 2"}\n')
    argv = ["--method", "sft", "--dataset", plain, "--eval-columns", "question=Q,solution=A"]
    tests = load_data(read_flags([*argv, "--eval-dataset", str(odd)])[0])[1]
    assert [(test.question, test.answer) for test in tests] == [("1+1?", "2")]
    with pytest.raises(UsageError, match="--eval-columns without --eval-dataset"):
        load_data(read_flags(argv)[0])


def test_show_example_prints_one_and_exits(common, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(["--method", "sft", *common, "--show-example"], capsys)
    assert code == 0 and "of them targets" in out
    assert "system\nAdd.<|im_end|>" in out and "⟦#### 7<|im_end|>⟧" in out
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_taken_stays_as_it_is(common, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    code, _, err = command(lora(common, tmp_path / "run", "--steps", "1"), capsys)
    assert code == 1 and f"{tmp_path / 'run'}: exists and is not empty" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("method, measured, said", [
    ("sft", False,
     "error: step 1: the loss is nan, the gradient's norm nan; lower --lr, or look at the "),
    ("prefix", True, "the model gives no finite probabilities; are its weights NaN or infinite?"),
])  # fmt: skip
def test_a_model_that_is_broken_is_told_in_one_line(method, measured, said, common, tiny_folder,
                                                    tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    argv = [
        "--method", method, *common, "--model",
        str(folder), "--output-dir",
        str(tmp_path / "run"), "--steps", "2"
    ]
    code, _, err = command([*argv, "--eval-limit", "8" if measured else "0"], capsys)
    assert code == 1 and said in err and err.count("\n") == 1
    if not measured:  # the batch is named by file and line
        assert err.count(f"{tmp_path / 'sums.jsonl'}:") == 4
    assert not (tmp_path / "run" / "model").exists()


def test_a_resumed_run_keeps_its_settings(common, tmp_path, capsys):
    folder = tmp_path / "run"
    assert command(lora(common, folder, "--steps", "2", "--eval-limit", "0"), capsys)[0] == 0
    before = (folder / "args.json").read_text()
    for more, said in [(("--warmup", "0.5"),
                        f"error: --warmup 0.5: the run in {folder} has 0.03; leave it out"),
                       (("--method", "sft"), "--method sft: the run in"),
                       (("--seed", "7"), "--seed 7: the run in"), ]:
        code, _, err = command(["--resume", str(folder), *more], capsys)
        assert code == 2 and said in err and err.count("\n") == 1
    words = ["--resume", str(folder), "--lr", "0.03", "--steps", "4", "--device", "cpu"]
    same, own, _ = read_flags(words)
    assert (same.method, same.learning_rate, same.steps, own.lora_rank) == ("lora", 0.03, 4, 16)
    assert (folder / "args.json").read_text() == before


def test_what_a_resume_changes_is_kept_for_the_next_one(ended, tmp_path, capsys):
    """The printed way on is the whole way on."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(read(folder / "args.json")["dataset"], moved)
    more = ["--steps", "3", "--lr", "0.02", "--dataset", str(moved)]
    assert command(["--resume", str(folder), *more], capsys)[0] == 0
    args = read(folder / "args.json")
    assert (args["steps"], args["epochs"], args["dataset"]) == (3, None, str(moved))
    assert args["learning_rate"] == 0.02 and args["dtype"] == "fp32" and args["history"] == []
    assert command(["--resume", str(folder)], capsys)[0] == 0
    assert read(folder / "result.json")["steps"] == 3


def test_fewer_steps_than_are_done_is_one_line(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    before = (folder / "args.json").read_bytes()
    code, _, err = command(["--resume", str(folder), "--steps", "1"], capsys)
    assert code == 2 and "has 2 steps behind it, and 1 are asked for; give more --steps" in err
    assert err.count("\n") == 1 and (folder / "args.json").read_bytes() == before


@pytest.mark.parametrize("count, said", [
    (11, "gives 11 training examples, not 12 as when"),
    (12, "gives as many training examples, ot")])
def test_training_data_that_changed_is_refused(count, said, ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    other = write_problems(tmp_path / "other.jsonl", count, first=1)
    code, _, err = command(["--resume", str(folder), "--dataset", other, "--steps", "3"], capsys)
    assert code == 1 and said in err and err.count("\n") == 1
    assert read(folder / "args.json") == read(ended / "args.json")


def test_what_a_resume_asks_in_vain_does_not_become_the_runs(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    code, _, err = command(["--resume", str(folder), "--model", "tiny-large", "--steps", "9"],
                           capsys)
    assert code == 1 and err.count("\n") == 1
    assert read(folder / "args.json") == read(ended / "args.json")


def test_after_a_nan_the_last_good_state_goes_on_with_another_rate(common, tmp_path, capsys,
                                                                   monkeypatch):
    folder = tmp_path / "run"
    check = train.check_finite
    monkeypatch.setattr(train, "check_finite", lambda loss, norm, step, examples: check(
        float("nan") if step == 4 else loss, norm, step, examples))
    argv = lora(common, folder, "--steps", "6", "--eval-limit", "0")
    code, _, err = command(argv, capsys)
    assert code == 1 and "step 4: the loss is nan" in err and "state after step 3 is kept" in err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-3"]
    monkeypatch.undo()
    assert command(["--resume", str(folder), "--lr", "0.001"], capsys)[0] == 0
    assert read(folder / "args.json")["learning_rate"] == 0.001
    assert read(folder / "result.json")["steps"] == 6


def test_resuming_what_is_no_run(tmp_path, capsys):
    code, _, err = command(["--resume", str(tmp_path)], capsys)
    assert code == 1 and f"{tmp_path / 'args.json'}: no such file" in err
    (tmp_path / "args.json").write_text('{"method": "lora", "colour": "blue"}')
    code, _, err = command(["--resume", str(tmp_path)], capsys)
    assert code == 1 and "args.json: not the settings of a run of this version" in err


def test_help_shows_every_flag_and_the_defaults_of_each_method(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for kind in (mathft.Flags, *(method.Flags for method in METHODS.values())):
        for field in dataclasses.fields(kind):
            assert f"--{field.name.replace('_', '-')}" in out
    for size, common in mathft.DEFAULTS.items():
        for name, method in METHODS.items():
            (line,) = [line for line in out.splitlines() if line.split()[:2] == [size, name]]
            words = line.split()
            assert str(method.DEFAULTS[size]["learning_rate"]) in words
            assert str(common["batch_size"]) in words


def test_defaults_hang_on_model_and_method():
    tiny, *_ = read_flags(["--method", "lora"])
    real, *_ = read_flags(["--method", "lora", "--model", "Qwen/Qwen2.5-0.5B"])
    assert tiny.steps is not None and tiny.epochs is None
    assert real.epochs is not None and real.steps is None
    assert real.learning_rate < tiny.learning_rate
    given, *_ = read_flags(["--method", "lora", "--epochs", "3", "--lr", "0.5"])
    assert (given.epochs, given.steps, given.learning_rate, given.batch_size) == (3.0, None, 0.5,
                                                                                  tiny.batch_size)


@pytest.mark.parametrize("argv, said", [
    (["--method", "prefix", "--lora-rank", "4"], "--lora-rank is a flag of --method lora, not of "
                                                 "prefix"),
    (["--method", "ia3", "--prefix-init", "zero"], "--prefix-init is a flag of --method prefix"),
    (["--method", "lora", "--weight-decay", "0"], "--weight-decay is a flag of --method sft"),
])
def test_a_flag_of_another_method_is_a_usage_error(argv, said, capsys):
    code, _, err = command(argv, capsys)
    assert code == 2 and said in err and err.count("\n") == 1


def test_the_settings_of_an_older_run_still_hold(common, tmp_path, capsys):
    """They carry the flags of every method, and know of no objective."""
    folder = tmp_path / "run"
    assert command(lora(common, folder, "--steps", "2", "--eval-limit", "0"), capsys)[0] == 0
    args = read(folder / "args.json")
    for name in ("objective", "from_run", "history", "plain", "lora_variant", "lora_plus"):
        del args[name]
    args |= {"prefix_length": 16, "prefix_init": "text", "prefix_projection": False,
             "weight_decay": 0.01}
    (folder / "args.json").write_text(json.dumps(args))
    code, out, err = command(["--resume", str(folder), "--steps", "3"], capsys)
    assert code == 0, err
    assert read(folder / "result.json")["steps"] == 3
    assert load_run(folder, "cpu", torch.float32).args["lora_rank"] == 16


# ------------------------------------------------------------------------- going on from a result


@pytest.fixture
def first(common, tmp_path, capsys) -> Path:
    """A LoRA run of three steps."""
    folder = tmp_path / "first"
    more = ("--steps", "3", "--eval-limit", "2", "--lora-rank", "2", "--seed", "3")
    assert command(lora(common, folder, *more), capsys)[0] == 0
    return folder


def onward(first: Path, common: list[str], folder: Path, *more: str) -> list[str]:
    """The words of a run that starts at the end of another."""
    data = [*common[:common.index("--model")], *common[common.index("--model") + 2 :]]
    return ["--from", str(first), *data, "--steps", "2", "--eval-limit", "2", "--output-dir",
            str(folder), *more]


def test_the_same_method_goes_on_with_its_adapter(first, common, tmp_path, capsys):
    folder = tmp_path / "second"
    code, out, err = command(onward(first, common, folder), capsys)
    assert code == 0, err
    args = read(folder / "args.json")
    assert args["method"] == "lora" and args["lora_rank"] == 2  # the adapter's shape is kept
    assert args["model"] == read(first / "args.json")["model"] and not (folder / "base").exists()
    (earlier,) = args["history"]
    assert (earlier["run"], earlier["method"], earlier["seed"]) == (str(first), "lora", 3)
    # It begins with what the first run has left.
    assert generations(folder / "evals" / "before") == generations(first / "evals" / "after")
    assert read(folder / "result.json")["steps"] == 2
    third = tmp_path / "third"
    assert command(onward(folder, common, third), capsys)[0] == 0
    assert [run["run"] for run in read(third / "args.json")["history"]] == [str(first), str(folder)]


def test_another_method_starts_from_the_merged_model(first, common, tmp_path, capsys):
    folder = tmp_path / "second"
    code, out, err = command(onward(first, common, folder, "--method", "prefix"), capsys)
    assert code == 0, err
    assert read(folder / "args.json")["model"] == str(folder / "base")
    before = read(folder / "evals" / "before" / "result.json")
    assert before["accuracy"] == read(first / "evals" / "after" / "result.json")["accuracy"]
    run = load_run(folder, "cpu", torch.float32)
    assert run.prefix is not None
    third = tmp_path / "third"
    code, _, err = command(onward(folder, common, third, "--method", "lora"), capsys)
    assert code == 1 and "cannot be folded into the model's weights" in err
    assert not third.exists()


def test_a_base_that_cannot_be_written_leaves_no_folder(first, common, tmp_path, capsys,
                                                        monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "base")

    monkeypatch.setattr("methods.save_model", full)
    code, _, err = command(onward(first, common, tmp_path / "second", "--method", "ia3"), capsys)
    assert code == 1 and "No space left on device" in err and not (tmp_path / "second").exists()


def test_a_tuned_model_is_the_next_ones_base(common, tmp_path, capsys):
    first, folder = tmp_path / "first", tmp_path / "second"
    words = ["--method", "sft", *common, "--steps", "2", "--lr", "1e-3", "--eval-limit", "0"]
    assert command([*words, "--output-dir", str(first)], capsys)[0] == 0
    assert command(onward(first, common, folder, "--method", "ia3"), capsys)[0] == 0
    assert read(folder / "args.json")["model"] == str(first / "model")
    load_run(folder, "cpu", torch.float32)


@pytest.mark.parametrize("more, said", [
    (["--lora-rank", "4"], "--lora-rank 4: the run in"),
    (["--model", "tiny"], "--from and --model exclude each other"),
])
def test_what_a_result_fixes_cannot_be_given(more, said, first, common, tmp_path, capsys):
    code, _, err = command(onward(first, common, tmp_path / "second", *more), capsys)
    assert code == 2 and said in err and not (tmp_path / "second").exists()


def test_a_run_from_a_result_resumes_to_the_same_bits(first, common, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(onward(first, common, whole, "--steps", "6"), capsys)[0] == 0
    done = strike("SIGINT", onward(first, common, cut, "--steps", "6"))
    assert done.returncode == 130, done.stderr
    assert command(["--resume", str(cut)], capsys)[0] == 0
    assert_same_adapter(whole, cut)


def test_a_run_from_a_result_goes_on_where_their_base_has_moved(common, tiny_folder, tmp_path,
                                                                capsys):
    """--model says where it is: the earlier run, whose adapter alone is read, is not asked."""
    there, here = tmp_path / "there", tmp_path / "here"
    first, folder = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_folder, there)
    at = common.index(str(tiny_folder))
    words = [*common[:at], str(there), *common[at + 1:]]
    short = ["--steps", "1", "--eval-limit", "0"]
    assert command(lora(words, first, *short), capsys)[0] == 0
    assert command(onward(first, common, folder, "--keep", "1", *short), capsys)[0] == 0
    there.rename(here)
    more = ["--resume", str(folder), "--model", str(here), "--steps", "2"]
    assert command(more, capsys)[0] == 0
    shutil.copytree(folder / "adapter", first / "adapter", dirs_exist_ok=True)
    code, _, err = command([*more[:-1], "3"], capsys)
    assert code == 1 and f"{first}: holds other weights than when {folder} began" in err


# ------------------------------------------------------------------------------------- objectives


def test_continued_pre_training_reads_plain_texts(common, tmp_path, capsys):
    rows = [{"text": f"Ana has {n} apples. " * 30} for n in range(8)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--method", "lora", *common, "--objective", "cpt", "--dataset",
             str(tmp_path / "texts.jsonl"), "--max-length", "64", "--steps", "8", "--lr", "0.03",
             "--eval-limit", "2", "--output-dir", str(tmp_path / "run")]
    code, out, err = command(words, capsys)
    assert code == 0, err
    assert "objective cpt" in out and "long" not in out
    metrics = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    words.remove("--objective"), words.remove("cpt")
    code, _, err = command([*words[:-1], str(tmp_path / "other")], capsys)
    assert code == 1 and "plain texts need --objective cpt" in err


def test_so_many_training_tokens_whatever_the_length_of_the_examples(tmp_path):
    job = mathft.Job(mathft.Flags(tokens=1000, batch_size=4), None, mathft.supervised(), None,
                     tmp_path, None, {}, None, [], 0, [], 0)
    short = dataclasses.replace(job, examples=[Example([0] * 10, [True] * 10)] * 7)
    long = dataclasses.replace(job, examples=[Example([0] * 50, [True] * 50)] * 7)
    assert (short.steps, long.steps) == (25, 5)
