"""All that only a GPU can show, in one command and at most eight minutes.

    python -m tools.gpu_check                          # on a machine with a GPU
    python -m tools.gpu_check --device cpu --quick     # the same checks in small, on any machine

1. The tests that are marked `gpu`.
2. Every method, and GRPO, for a few steps on the embedded model.
3. Training at 32,768 tokens a step: the first step, later steps, and the ten kernels that take the
   longest (torch.profiler). Random weights, LoRA.
4. The benchmark beside transformers and peft, if they are installed: training and decoding.

Each check is a process of its own with a limit of time. A check that fails is a row that says why;
the others go on. It prints one Markdown table, and as the last line the same as JSON. It takes the
torch that is installed, and says which. Nothing is downloaded.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from checkpoint import read_config
from flags import flag, parse_flags, run_command
from methods import METHODS
from runtime import (UsageError, UserError, clock, describe_machine, one_line, peak_memory_mib,
                     pick_device, pick_dtype, read_json)
from tools import bench

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (2, 11)  # torch
WHOLE = 480  # seconds for all checks together
KERNELS = 10  # that a profile shows
LONGEST = 60  # characters of a kernel's name
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Seconds that a check may take.
LIMITS = {"tests": 90, "run": 45, "profile": 75, "bench": 120}
# What is done: flags of mathft.py, and flags of tools.bench by the name of a model. 212 problems of
# the embedded set have some 32,768 tokens.
FULL = {
    "run": "--steps 20 --eval-limit 100",
    "grpo": "--steps 3 --eval-limit 0",
    "profile": {
        "0.5B": "--shape 0.5B --case lora --steps 4 --batch-size 212 --micro-batch-tokens 32768",
        "1.5B": "--shape 1.5B --case lora --steps 3 --batch-size 212 --micro-batch-tokens 32768",
        "0.5B compiled": "--shape 0.5B --case lora --steps 4 --batch-size 212 "
                         "--micro-batch-tokens 32768 --compile"},
    "bench": {
        "0.5B": "--shape 0.5B --case lora,decode --steps 3 --batch-size 32",
        "1.5B": "--shape 1.5B --case lora --steps 3 --batch-size 32"},
}
QUICK = {
    "run": "--steps 2 --eval-limit 4 --batch-size 4 --max-new-tokens 32",
    "grpo": "--steps 1 --eval-limit 0 --batch-size 2 --group 2 --draws 1 --max-new-tokens 32",
    "profile": {"tiny": "--model tiny --case lora --steps 2 --batch-size 4"},
    "bench": {"tiny": "--model tiny --case lora,decode --steps 1 --batch-size 4"},
}
# Of result.json and of the last line of metrics.jsonl.
OF_RUN = ("accuracy_before", "accuracy_after", "train_seconds", "tokens_per_second",
          "peak_memory_mib")
OF_GRPO = ("reward", "generate_seconds", "train_seconds", "memory_mib")


@dataclass
class Flags:
    """The flags of `python -m tools.gpu_check`."""

    device: str = flag("cuda", "cuda, cuda:N or cpu")
    quick: bool = flag(False, "small models and few steps")
    debug: bool = flag(False, "show the traceback of an error")


@dataclass(frozen=True)
class Check:
    """A command that measures, and how its figures are read from its stdout."""

    name: str
    words: list[str]  # behind `python`
    limit: float  # seconds
    read: Callable[[str], dict]


# ------------------------------------------------------------------------------------------- checks


def checks_of(flags: Flags, folder: Path) -> list[Check]:
    """All checks, in order; the runs are written below `folder`."""
    size, device = QUICK if flags.quick else FULL, ["--device", flags.device]
    peer = ["--peer"] if bench.peer_is_installed() else []

    def run(name: str, words: str, read: Callable[[Path], dict]) -> Check:
        place = folder / name.replace(" ", "-")
        return Check(name, ["mathft.py", *words.split(), *device, "--output-dir", str(place)],
                     LIMITS["run"], lambda out: read(place))

    return [
        Check("tests", test_words(flags.device), LIMITS["tests"], read_tests),
        *(run(f"method {name}", f"--method {name} {size['run']}", read_run) for name in METHODS),
        run("grpo", f"--method lora --objective grpo {size['grpo']}", read_grpo),
        *(Check(f"training {name}", ["-m", "tools.gpu_check", "--profile", *words.split(), *device],
                LIMITS["profile"], read_profile) for name, words in size["profile"].items()),
        *(Check(f"bench {name}", ["-m", "tools.bench", *words.split(), *device, *peer],
                LIMITS["bench"], read_bench) for name, words in size["bench"].items())]


def test_words(device: str) -> list[str]:
    """The command of the tests that need a GPU; without one they are collected, and not run."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py"))
             if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]
    words = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    return words + ["--collect-only"] * (device == "cpu")


def read_tests(out: str) -> dict:
    """The counts in the last line of pytest: `25 passed, 3 failed in 9 s`, or of all tests
    `25/1425 tests collected`."""
    words = out.splitlines()[-1].replace(" tests", "").replace(",", "").split()
    counts = [word.partition("/")[0] for word in words]
    known = ("passed", "failed", "errors", "error", "skipped", "collected")
    return {word: int(count) for count, word in zip(counts, words[1:])
            if word in known and count.isdecimal()}


def read_run(folder: Path) -> dict:
    """The figures of a run."""
    result = read_json(folder / "result.json")
    return {name: result[name] for name in OF_RUN}


def read_grpo(folder: Path) -> dict:
    """The figures of its last step."""
    record = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {name: record[name] for name in OF_GRPO}


def read_profile(out: str) -> dict:
    """What `profile_training` has found."""
    return json.loads(out.splitlines()[-1])


def read_bench(out: str) -> dict:
    """Speed, memory and the first step of each case and side, and how the sides compare."""
    found, figures = json.loads(out.splitlines()[-1]), {}
    for record in found["processes"]:
        about = f"{record['case']} {record['side']}"
        if "failed" in record:
            figures[f"{about} failed"] = record["failed"]
            continue
        for name in ("first_step_seconds", "tokens_per_second", "peak_memory_mib",
                     "share_of_limit", "transformers", "peft"):
            if name in record:
                figures[f"{about} {name}"] = record[name]
        if "decode_seconds" in record:
            figures[f"{about} while decoding tokens_per_second"] = (
                record["decoded_tokens"] / min(record["decode_seconds"]))
    for case, about in found["cases"].items():
        for name in ("speed_ratio", "memory_ratio"):
            if name in about:
                figures[f"{case} ours / peer {name}"] = about[name]["median"]
    if not found["settings"]["peer"]:
        figures["peer"] = "left out: transformers and peft are not installed"
    return figures


# ------------------------------------------------------------------------------------------ profile


def profile_training(words: list[str]) -> dict:
    """The figures of training steps, and of the last of them its largest kernels.

    `words` are flags of tools.bench that name one method.
    """
    flags = bench.checked_flags(words)
    device = pick_device(flags.device)
    dtype = pick_dtype(flags.dtype, device)
    record: dict = {}
    with tempfile.TemporaryDirectory(prefix="mathft-check-") as folder:
        (task,) = bench.tasks_of(flags, Path(folder))
        step, tokens, targets = bench.prepared_training(task, bench, device, dtype, record)
        seconds = bench.timed(step, task.steps - 1, device)
        config = read_config(Path(task.model))
    rate = bench.product_rate(device, dtype)
    found = {"tokens_a_step": sum(tokens) / len(tokens),
             "first_step_seconds": record["first_step_seconds"],
             "step_seconds": seconds[-1], "tokens_per_second": tokens[-2] / seconds[-1]}
    flop = bench.flop_per_token(task.case, config, targets)
    found["share_of_limit"] = found["tokens_per_second"] * flop / rate
    found |= {"product_gflops": rate / 1e9, "peak_memory_mib": peak_memory_mib(device)}
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        step(task.steps - 1)
        clock(device)  # until the device has finished
    return found | largest_kernels(profiler.key_averages(), cuda)


def largest_kernels(events, cuda: bool) -> dict:
    """How long a profiled step kept the device busy, and where: kernels on CUDA, else operators."""
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    rows = [(event.self_device_time_total if cuda else event.self_cpu_time_total, event)
            for event in events if event.device_type == kind and not event.is_user_annotation]
    whole = sum(time for time, _ in rows)  # in µs
    found = {"busy_ms": whole / 1e3, "launches": sum(event.count for _, event in rows)}
    for number, (own, event) in enumerate(sorted(rows, key=lambda row: -row[0])[:KERNELS], 1):
        found[f"kernel {number}"] = (f"{own / 1e3:.1f} ms, {own / max(whole, 1e-9):.0%}, "
                                     f"{event.count} times: {event.key[:LONGEST]}")
    return found


# ------------------------------------------------------------------------------------- the commands


def done(check: Check, seconds_left: float) -> dict:
    """Run a check: its seconds, its figures, and `failed`, one line, if it has failed."""
    limit = min(check.limit, seconds_left)
    if limit <= 0:
        return {"seconds": 0.0, "figures": {}, "failed": "not begun: the time for all is over"}
    began = time.monotonic()
    process = subprocess.Popen(  # a group of its own, which ends as a whole
        [sys.executable, *check.words], cwd=ROOT, env=os.environ | OFFLINE, text=True,
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    failed, out, error = "", "", ""
    try:
        out, error = process.communicate(timeout=limit)
        if process.returncode:
            failed = reason(process.returncode, out, error)
    except subprocess.TimeoutExpired:
        failed = f"stopped after {limit:.0f} s, its limit"
    finally:  # also after Ctrl-C
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    record: dict = {"seconds": time.monotonic() - began, "figures": {}}
    try:  # what has failed in part has figures too
        record["figures"] = check.read(out)
    except (UserError, OSError, ValueError, LookupError) as fault:
        failed = failed or f"its figures cannot be read: {fault!r}"
    return record | ({"failed": one_line(failed)} if failed else {})


def reason(code: int, out: str, error: str) -> str:
    """Why a command has failed: failed tests, its own line, or the last line that it has left."""
    lines = [line for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    told = [line for line in error.splitlines() if line.startswith("error: ")]
    last = (error.strip() or out.strip()).splitlines()[-1:]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {'; '.join(lines or told[-1:] or last)}"


# -------------------------------------------------------------------------------------------- table


def table(machine: dict, records: dict[str, dict]) -> list[str]:
    """The Markdown table: a row for each figure and for each failure."""
    rows = [("machine", name, value) for name, value in machine.items()]
    for check, record in records.items():
        if "failed" in record:
            rows.append((check, "**failed**", record["failed"]))
        rows += [(check, name, value) for name, value in record["figures"].items()]
        rows.append((check, "seconds", record["seconds"]))
    cells = ([check, name.replace("_", " "), shown(value)] for check, name, value in rows)
    return ["| check | figure | value |", "|---|---|---|",
            *("| " + " | ".join(part.replace("|", "\\|") for part in row) + " |" for row in cells)]


def shown(value) -> str:
    """A figure for people: three digits or more of a decimal."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else one_line(str(value))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def checked_flags(argv: list[str]) -> Flags:
    """The flags. Raises UsageError without the device, UserError if torch is too old."""
    flags = parse_flags(Flags, argv, __doc__)
    if flags.device != "cpu" and not torch.cuda.is_available():
        raise UsageError("no GPU that torch can use is here (torch.cuda.is_available() is false); "
                         "--device cpu --quick runs the checks in small")
    if torch.__version__ < OLDEST:
        raise UserError(f"torch {torch.__version__}: the checks need 2.11 or later")
    return flags


def main(argv: list[str]) -> None:
    """Run all checks and report; with `--profile` be one of them."""
    if argv[:1] == ["--profile"]:
        print(json.dumps(profile_training(argv[1:])))
        return
    flags = checked_flags(argv)
    device = pick_device(flags.device)
    machine = describe_machine(device, pick_dtype("auto", device)) | {"cuda": torch.version.cuda}
    records: dict[str, dict] = {}
    end = time.monotonic() + WHOLE
    with tempfile.TemporaryDirectory(prefix="mathft-check-") as folder:
        checks = checks_of(flags, Path(folder))
        for number, check in enumerate(checks, 1):
            record = records[check.name] = done(check, end - time.monotonic())
            said = record.get("failed", "done")
            print(f"{number}/{len(checks)} {check.name}, {record['seconds']:.0f} s: {said}",
                  file=sys.stderr, flush=True)
    print(*table(machine, records), sep="\n")
    print(json.dumps({"machine": machine, "checks": records}))
    failed = [name for name, record in records.items() if "failed" in record]
    if failed:
        raise UserError(f"{len(failed)} of {len(records)} checks failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
