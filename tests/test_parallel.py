"""parallel.py: two processes find what one finds, by every method and from rewards; a run goes on
with another number of them; and one that dies ends the others.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import grpo
import mathft
import parallel
from checkpoint import load_model, save_model
from children import Child
from flags import joined, run_command
from methods import METHODS
from runtime import ALONE, UsageError

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10
WHOLE = next(name for name in METHODS if METHODS[name].PEFT_TYPE is None)  # trains every weight
# Both processes do all the runs of a list, one after the other. An untrained model earns no reward:
# an odd number of letters does here. A run that ends by Ctrl-C is followed by the next.
SCRIPT = """
import json, os, signal, sys
import evaluate, flags, grpo, mathft, train

plan, doom = train.learning_rate_at, json.loads(sys.argv[1])
grpo.reward = lambda record: float(len(record["text"]) % 2)

def at_step(step, settings):
    if doom and step == doom["step"] and os.environ["RANK"] == doom["rank"]:
        os.kill(os.getpid(), doom["signal"])
    return plan(step, settings)

def work(runs):
    with flags.joined() as ranks:
        for kind, argv in runs:
            ranks.divided = False  # a process that a user starts does one run
            try:
                if kind == "run":
                    mathft.begin_run(argv, ranks)
                else:
                    evaluate.evaluate_asked(flags.parse_flags(evaluate.Flags, argv), argv, ranks)
            except KeyboardInterrupt:
                pass

train.learning_rate_at = at_step
sys.exit(flags.run_command(work, json.loads(sys.argv[2])))
"""


def odd_reward(record: dict) -> float:
    return float(len(record["text"]) % 2)


def start(runs: list, doom: dict | None = None, size: int = 2,
          script: str = SCRIPT) -> list[Child]:
    """The processes, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [Child(script, json.dumps(doom), json.dumps(runs), env=common | {"RANK": str(rank)})
            for rank in range(size)]


def end(processes: list[Child]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        ended = [process.end() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(done.returncode, done.stdout, done.stderr) for done in ended]


def problems(path: Path, count: int, first: int) -> str:
    rows = [{"question": f"{n} + {n % 7} = ?", "answer": f"It is {n + n % 7}.\n#### {n + n % 7}"}
            for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def teacher(tiny_folder, tmp_path_factory) -> str:
    """The model with its weights moved: it says other things."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    save_model(model, folder, tiny_folder)
    return str(folder)


@pytest.fixture(scope="module")
def common(tiny_folder, tmp_path_factory) -> list[str]:
    """The flags of a short run, measured on five other problems: five examples have no half.

    AdamW divides each gradient by its own size. Gradients of the size of rounding errors then move
    their parameters by as much as others do, so that the learning rate bounds how equal they are.
    """
    folder = tmp_path_factory.mktemp("data")
    return ["--model", str(tiny_folder), "--dataset", problems(folder / "train.jsonl", 30, 10),
            "--eval-dataset", problems(folder / "test.jsonl", 5, 100), "--dtype", "fp32",
            "--device", "cpu", "--batch-size", "5", "--max-new-tokens", "8", "--log-every", "1",
            "--system", "Add.", "--lr", "5e-5", "--keep", "1", "--steps", str(STEPS)]


def runs_of(common: list[str], root: Path, teacher: str = "") -> dict[str, list[str]]:
    """Every method; rewards that serve two steps, with a reference; a student's own solutions.

    The `divided` runs train the whole model, whose weights two processes divide. A micro-batch of
    theirs is one example: of five, one process has three and the other two.
    """
    runs = {name: ["--method", name] for name in METHODS}
    adapter = next(name for name in METHODS if METHODS[name].PEFT_TYPE)
    divided = ["--method", WHOLE, "--micro-batch-tokens", "1"]
    runs["divided"] = [*divided, "--eval-every", "4", "--grad-checkpoint"]
    runs["divided rewards"] = [*divided, "--objective", "grpo", "--group", "3", "--updates", "2"]
    runs["divided own solutions"] = [*divided, "--objective", "distill", "--on-policy",
                                     "--teacher", teacher]
    runs["rewards"] = ["--objective", "grpo", "--method", adapter, "--group", "3", "--updates", "2",
                       "--kl", "0.1"]
    runs["own solutions"] = ["--objective", "distill", "--method", adapter, "--on-policy",
                             "--teacher", teacher]
    measured = {"lora": "5", "divided": "5"}
    return {name: [*words, *common, "--eval-limit", measured.get(name, "0"), "--output-dir",
                   str(root / name)] for name, words in runs.items()}


ALL_RUNS = (*METHODS, "rewards", "own solutions", "divided", "divided rewards",
            "divided own solutions")


@pytest.fixture(scope="module")
def both(common, teacher, tmp_path_factory) -> tuple[Path, Path]:
    """The folders of all runs by one process, and by two; and of an evaluation."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    asked = ["--model", common[1], "--dataset", common[5], "--samples", "3", "--temperature", "1",
             "--max-new-tokens", "8", "--dtype", "fp32", "--device", "cpu", "--output-dir"]
    runs = [("run", argv) for argv in runs_of(common, two, teacher).values()]
    processes = start([*runs, ("evaluate", [*asked, str(two / "evaluation")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "reward", odd_reward)
        for argv in runs_of(common, one, teacher).values():
            assert run_command(mathft.main, argv) == 0
    assert run_command(evaluate.main, [*asked, str(one / "evaluation")]) == 0
    first, second = end(processes)
    assert first[0] == second[0] == 0, (first[2], second[2])
    assert "2 processes" in first[1] and second[1] == second[2] == ""  # rank 0 alone prints
    return one, two


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def assert_same_tensors(a: Path, b: Path, tolerance: float = 1e-6) -> None:
    a, b = load_file(a), load_file(b)
    assert a.keys() == b.keys()
    assert max((a[name].float() - b[name].float()).abs().max().item() for name in a) <= tolerance


def assert_same_state(a: Path, b: Path) -> None:
    last = f"checkpoints/step-{STEPS}/state.safetensors"
    assert_same_tensors(a / last, b / last)
    for before, after in zip(lines(a / "metrics.jsonl"), lines(b / "metrics.jsonl"), strict=True):
        assert before["step"] == after["step"]
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------------------------- two beside one


@pytest.mark.parametrize("name", ALL_RUNS)
def test_two_processes_find_what_one_finds(name, both):
    """Loss and parameters after ten steps, AdamW's moments, and the same files."""
    one, two = (folder / name for folder in both)
    assert files(one) == files(two)
    assert_same_state(one, two)
    totals = [json.loads((f / f"checkpoints/step-{STEPS}/state.json").read_text())
              for f in (one, two)]
    assert totals[0]["target_tokens"] == totals[1]["target_tokens"] > 0


def test_a_divided_model_is_saved_and_measured_whole(both):
    """The model after training, and the held-out loss on the way."""
    one, two = (folder / "divided" for folder in both)
    assert_same_tensors(one / "model/model.safetensors", two / "model/model.safetensors")
    held_out = [[line["eval_loss"] for line in lines(folder / "metrics.jsonl")
                 if "eval_loss" in line] for folder in (one, two)]
    assert len(held_out[0]) == 2 and held_out[1] == pytest.approx(held_out[0], rel=1e-6)


def test_each_process_holds_its_part_of_divided_weights_and_moments(common):
    """A half of every weight, by rows; gathered, they are the weights of the file again."""
    code = """
import json, sys, torch, flags
from checkpoint import as_saved, load_model
from train import TrainSettings, make_optimizer
model = load_model(json.loads(sys.argv[2]), "cpu", torch.float32, torch.float32)
whole = {name: p.detach().clone() for name, p in model.named_parameters()}
with flags.joined() as ranks:
    ranks.divide(model)
    trainable = dict(model.named_parameters())
    optimizer = make_optimizer(trainable, TrainSettings(1, 1.0))
    assert trainable.keys() == whole.keys()
    for name, p in trainable.items():
        part = whole[name].chunk(2)[ranks.rank]
        assert torch.equal(p.to_local(), part)
        assert torch.equal(ranks.part(whole[name], p).to_local(), part)
        assert torch.equal(ranks.whole(p), whole[name])
        assert optimizer.state[p]["exp_avg"].to_local().shape == part.shape
    copy = as_saved(model, ranks=ranks)
    assert all(torch.equal(p, whole[name]) for name, p in copy.named_parameters())
    assert ranks.passes(3 + ranks.rank) == 4
"""
    ended = end([*start(common[1], script=code)])
    assert [done[0] for done in ended] == [0, 0], ended


def numbers_apart(record: dict) -> dict:
    """A record without what differs by rounding."""
    return {key: value for key, value in record.items()
            if key not in ("mean_log_prob", "log_probs")}


def test_rollouts_are_shared_out_and_gathered(both):
    one, two = (lines(folder / "rewards" / "rollouts.jsonl") for folder in both)
    assert list(map(numbers_apart, one)) == list(map(numbers_apart, two))
    assert len({record["index"] for record in one}) > 2
    logs = [lines(folder / "rewards" / "metrics.jsonl") for folder in both]
    for before, after in zip(*logs, strict=True):  # figures of all, not of the first process's part
        assert before["reward"] == after["reward"]
        assert after["kl"] == pytest.approx(before["kl"], abs=1e-6)


@pytest.mark.parametrize("place", ["lora/evals/before", "evaluation", "evaluation/greedy"])
def test_an_evaluation_is_shared_out_and_gathered(place, both):
    one, two = (lines(folder / place / "generations.jsonl") for folder in both)
    assert list(map(numbers_apart, one)) == list(map(numbers_apart, two))
    results = [json.loads((folder / place / "result.json").read_text()) for folder in both]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["timed_completions"] == results[1]["timed_completions"] == len(one)


# -------------------------------------------------------------------------- another number of them


@pytest.mark.parametrize("name", ["lora", "divided"])
def test_a_run_goes_on_with_another_number_of_processes(name, common, both, tmp_path, monkeypatch):
    """Two processes, Ctrl-C in the second; one process, Ctrl-C; two to the end."""
    argv = runs_of(common, tmp_path)[name]
    going_on = ["--resume", str(tmp_path / name)]
    struck = {"step": 2, "rank": "1", "signal": int(signal.SIGINT)}
    first, second = end(start([("run", argv)], struck))
    assert first[0] == 0 and "stopped after step 3 of 10" in first[1], first
    assert (tmp_path / name / "checkpoints/step-3").is_dir() and second[1:] == ("", "")

    plan = mathft.train.__globals__["learning_rate_at"]
    monkeypatch.setitem(mathft.train.__globals__, "learning_rate_at", lambda step, settings: (
        step == 5 and os.kill(os.getpid(), signal.SIGINT), plan(step, settings))[1])
    assert run_command(mathft.main, going_on) == 130
    left = {p.name for p in (tmp_path / name / "checkpoints").iterdir()}
    assert left - {"step-4"} == {"step-6"}  # and that of the lowest held-out loss

    first, second = end(start([("run", going_on)]))
    assert first[0] == second[0] == 0, (first[2], second[2], second[0])
    assert files(tmp_path / name) == files(both[0] / name)
    assert_same_state(tmp_path / name, both[0] / name)


# ---------------------------------------------------------------------------------------- one ends


def test_a_process_that_dies_ends_the_others_with_one_line(common, tmp_path):
    killed = {"step": 3, "rank": "1", "signal": int(signal.SIGKILL)}
    began = time.monotonic()
    first, second = end(start([("run", runs_of(common, tmp_path)["lora"])], killed))
    assert second[0] == -signal.SIGKILL and first[0] == 1
    assert time.monotonic() - began < 60
    assert first[2].startswith("error: another of the 2 processes has ended, or cannot be reached")
    assert first[2].count("\n") == 1
    # The state of the last whole step is kept.
    assert [p.name for p in (tmp_path / "lora/checkpoints").iterdir()] == ["step-3"]


def test_divided_weights_go_on_from_the_last_checkpoint(common, tmp_path):
    """The part of the process that dies is lost."""
    killed = {"step": 3, "rank": "1", "signal": int(signal.SIGKILL)}
    argv = [*runs_of(common, tmp_path)["divided"], "--save-every", "2"]
    first, second = end(start([("run", argv)], killed))
    assert second[0] == -signal.SIGKILL and first[0] == 1
    assert first[2].startswith("error: another of the 2 processes has ended, or cannot be reached")
    assert first[2].count("\n") == 1
    assert [p.name for p in (tmp_path / "divided/checkpoints").iterdir()] == ["step-2"]


def test_the_error_of_another_process_is_told_by_the_first():
    code = """
import flags, os, sys, runtime
def work(argv):
    with flags.joined() as ranks:
        if os.environ["RANK"] == "1":
            raise runtime.UserError("model.safetensors: no such file")
        ranks.gather([])
sys.exit(flags.run_command(work, []))
"""
    first, second = end(start([], script=code))
    assert first[0] == second[0] == 1 and second[2] == ""
    assert first[2] == "error: process 1 of 0 to 1: model.safetensors: no such file\n"


def test_the_environment_must_be_whole(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start with torchrun, or unset WORLD_SIZE"), joined():
        pass


def test_one_process_exchanges_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks is ALONE and ranks.first
        assert ranks.share([1, 2]) == ranks.gather([1, 2]) == [1, 2]
        assert ranks.agree(lambda: "x") == "x" and ranks.left_to_others(3, 2) == set()


def test_buckets_bound_what_is_copied_and_keep_the_order(monkeypatch):
    monkeypatch.setattr(parallel, "BUCKET", 10)
    tensors = [torch.zeros(n) for n in (2, 3, 5, 1, 20, 4)]
    groups = parallel.buckets(tensors)
    assert [[len(x) for x in group] for group in groups] == [[2, 3, 5], [1], [20], [4]]


@pytest.mark.slow
def test_torchrun_ctrl_c_writes_one_checkpoint(common, tmp_path):
    """As a user types it. (torchrun adds lines of its own.)"""
    argv = [*runs_of(common, tmp_path)["lora"], "--steps", "5000"]
    argv.remove(str(STEPS)), argv.remove("--steps")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*words, "mathft.py", *argv], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for line in process.stdout:
            if line.startswith("step    5/"):
                break
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "to go on:  python mathft.py --resume" in out
    assert len(list((tmp_path / "lora/checkpoints").iterdir())) == 1
