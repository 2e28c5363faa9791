"""The check of a GPU: its commands are right, and what fails or hangs is a row that says why.

(Here it runs on the CPU and in small; what it measures on a GPU, only a GPU shows.)
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mathft
from conftest import bench_record
from flags import run_command
from runtime import UsageError, UserError
from tools import bench, gpu_check
from tools.gpu_check import (FULL, QUICK, Check, Flags, checks_of, done, largest_kernels, main,
                             profile_training, read_bench, read_tests, reason, table)

ROOT = Path(__file__).resolve().parent.parent


def check(code: str, limit: float = 20, read=json.loads) -> Check:
    """A check that runs a few lines of Python."""
    return Check("small", ["-c", code], limit, read)


# ----------------------------------------------------------------------------------- what it asks


@pytest.mark.parametrize("quick", [False, True])
def test_every_command_is_one_that_its_program_takes(quick, tmp_path):
    names = []
    for made in checks_of(Flags(device="cpu", quick=quick), tmp_path):
        names.append(made.name)
        if made.words[0] == "mathft.py":
            args, *_ = mathft.read_flags(made.words[1:])
            assert args.device == "cpu" and args.output_dir.startswith(str(tmp_path))
        elif made.words[1] == "tools.bench":
            assert bench.checked_flags(made.words[2:]).device == "cpu"
        elif made.words[1] == "tools.gpu_check":
            flags = bench.checked_flags(made.words[3:])
            assert flags.case in bench.TRAINING and bench.timed_steps(flags, flags.case) > 1
    size = QUICK if quick else FULL
    assert names == ["tests", *(f"method {name}" for name in mathft.METHODS), "grpo",
                     *(f"training {name}" for name in size["profile"]),
                     *(f"bench {name}" for name in size["bench"])]


def test_only_tests_that_are_marked_are_collected():
    words = gpu_check.test_words("cuda")
    files = [Path(word) for word in words if word.endswith(".py")]
    assert ROOT / "tests/test_attention.py" in files and "--collect-only" not in words
    assert "--collect-only" in gpu_check.test_words("cpu")


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU that torch can use .*--device cpu --quick"):
        main([])


def test_an_older_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.10.1+cu128"))
    with pytest.raises(UserError, match="torch 2.10.1.cu128: the checks need 2.11 or later"):
        main(["--device", "cpu"])


# ----------------------------------------------------------------------------------- what it reads


@pytest.mark.parametrize(("line", "counts"), [
    ("25 passed, 1400 deselected in 31.20s", {"passed": 25}),
    ("1 failed, 24 passed, 3 skipped, 2 errors in 9s",
     {"failed": 1, "passed": 24, "skipped": 3, "errors": 2}),
    ("25/1425 tests collected (1400 deselected) in 4.05s", {"collected": 25}),
    ("25 tests collected in 4.05s", {"collected": 25}),
])
def test_the_counts_of_pytest(line, counts):
    assert read_tests(f"........\n{line}\n") == counts


def test_the_figures_of_the_benchmark():
    records = [bench_record("ours", first_loss=2.0, first_step_seconds=3.5),
               bench_record("peer", first_loss=2.0, tokens_per_second=25.0, peft="0.21"),
               {"case": "decode", "side": "peer", "failed": "out of memory"}]
    found = {"processes": records, "cases": bench.summarise_cases(records, "bf16"),
             "settings": {"peer": True}}
    figures = read_bench("a table\n" + json.dumps(found))
    assert figures["lora ours first_step_seconds"] == 3.5
    assert figures["lora peer peft"] == "0.21"
    assert figures["lora ours / peer speed_ratio"] == 2.0
    assert figures["decode peer failed"] == "out of memory"
    alone = json.dumps({"processes": [], "cases": {}, "settings": {"peer": False}})
    assert read_bench(alone) == {"peer": "left out: transformers and peft are not installed"}


def test_the_largest_operators_of_a_cpu():
    left = torch.randn(400, 400)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            left @ left + 1
    found = largest_kernels(profiler.key_averages(), cuda=False)
    assert any("3 times: aten::mm" in str(figure) for figure in found.values())
    assert found["busy_ms"] > 0 and found["launches"] >= 6


def test_the_largest_kernels_of_a_gpu():
    """Not the operators that launch them, nor the spans that torch names; at most ten."""
    def event(name: str, time: float, kind: DeviceType, marked: bool = False):
        return SimpleNamespace(key=name, self_device_time_total=time, count=2, device_type=kind,
                               is_user_annotation=marked)

    events = [event(f"kernel_{n}", 100.0 * n, DeviceType.CUDA) for n in range(1, 13)]
    events += [event("aten::mm", 1e6, DeviceType.CPU),
               event("Optimizer.step", 1e6, DeviceType.CUDA, True)]
    found = largest_kernels(events, cuda=True)
    assert found["busy_ms"] == 7.8 and found["launches"] == 24
    assert found["kernel 1"] == "1.2 ms, 15%, 2 times: kernel_12"
    assert found["kernel 10"].endswith("kernel_3") and "kernel 11" not in found


def test_training_is_profiled(tiny_folder, tmp_path, monkeypatch):
    """On a small random model; the rate of the machine is given."""
    monkeypatch.setattr(bench, "product_rate", lambda device, dtype: 1e12)
    for name in ("train", "test"):
        rows = ({"question": f"{n} + {len(name)}?", "answer": f"#### {n}"} for n in range(6))
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = profile_training(
        f"--model {tiny_folder} --dataset {tmp_path / 'train'} --eval-dataset {tmp_path / 'test'} "
        "--case lora --steps 2 --batch-size 2 --device cpu".split())
    assert found["tokens_a_step"] > 50 and 0 < found["share_of_limit"] < 1
    assert found["first_step_seconds"] > 0 and "kernel 10" in found
    assert any("aten::" in str(figure) for figure in found.values())


# ------------------------------------------------------------------------------------ what can fail


def test_a_check_gives_its_figures():
    found = done(check("print('{\"n\": 3}')"), 20)
    assert found["figures"] == {"n": 3} and "failed" not in found


def test_a_check_that_fails_says_why_and_keeps_its_figures():
    failing = "import sys; print('{\"n\": 3}'); sys.exit('error: no such model')"
    found = done(check(failing), 20)
    assert found["failed"] == "exit code 1: error: no such model" and found["figures"] == {"n": 3}
    assert "cannot be read" in done(check("print(1 / 3, 'x')"), 20)["failed"]
    assert reason(-9, "", "") == "signal 9: "
    assert reason(1, "F.\nFAILED tests/a.py::b - 1\n1 failed", "") == (
        "exit code 1: FAILED tests/a.py::b - 1")


def test_a_check_that_hangs_is_ended_with_its_children():
    """The child of the check holds its stdout open: only the end of both lets it go on."""
    hangs = ("import subprocess, sys; "
             "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])")
    began = time.monotonic()
    found = done(check(hangs, limit=0.5), 20)
    assert found["failed"] == "stopped after 0 s, its limit" and time.monotonic() - began < 10
    assert done(check("", limit=20), -1)["failed"].startswith("not begun")


def test_the_command_prints_a_table_and_json_and_goes_on_after_a_failure(monkeypatch, capsys):
    steps = [check("raise SystemExit('error: a | b')"), Check("next", ["-c", "print('[12345.6]')"],
                                                              20, lambda out: {"x": 12345.6})]
    monkeypatch.setattr(gpu_check, "checks_of", lambda flags, folder: steps)
    assert run_command(main, ["--device", "cpu", "--quick"]) == 1
    out, error = capsys.readouterr()
    *lines, last = out.splitlines()
    assert lines[:2] == ["| check | figure | value |", "|---|---|---|"]
    assert f"| machine | torch | {torch.__version__} |" in lines
    assert "| small | **failed** | exit code 1: error: a \\| b |" in lines
    assert "| next | x | 12,346 |" in lines
    found = json.loads(last)
    assert found["machine"]["torch"] == torch.__version__ and found["checks"]["next"]["figures"]
    assert error.splitlines()[-1] == "error: 1 of 2 checks failed: small"


def test_a_cell_is_one_line_of_a_table():
    rows = table({}, {"a": {"seconds": 1.234, "figures": {"b_c": "x|y\nz", "n": 1234}}})
    assert rows[2:] == ["| a | b c | x\\|y z |", "| a | n | 1,234 |", "| a | seconds | 1.23 |"]


@pytest.mark.slow
def test_all_checks_on_a_cpu():
    words = [sys.executable, "-m", "tools.gpu_check", "--device", "cpu", "--quick"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])["checks"]
    assert found["tests"]["figures"]["collected"] > 20
    assert all(record["figures"] and "failed" not in record for record in found.values())
