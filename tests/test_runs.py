"""runs.py: a table of runs, whole or not, and of what is none."""

import json
from pathlib import Path

import runs
from flags import run_command

ARGS = {"method": "lora", "objective": "supervised", "model": "tiny", "dataset": "mini-gsm"}


def run(folder: Path, args: dict, result: dict | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(args))
    if result:
        (folder / "result.json").write_text(json.dumps(result))


def test_a_row_for_each_run(tmp_path, capsys):
    run(tmp_path / "a", ARGS, {"steps": 100, "accuracy_before": 0.1, "accuracy_after": 0.925,
                               "train_seconds": 61.4, "peak_memory_mib": 1753.2})
    run(tmp_path / "b", ARGS)
    (tmp_path / "b" / "checkpoints" / "step-20").mkdir(parents=True)
    run(tmp_path / "c", ARGS | {"dataset": "x\x1b[2J"}, {"steps": 3, "accuracy_before": None})
    run(tmp_path / "eval-1", {"dataset": "mini-gsm", "n": 5})  # an evaluation
    (tmp_path / "empty").mkdir()
    assert runs.rows_of(tmp_path) == [
        ["a", "lora", "supervised", "tiny", "mini-gsm", "100", "10.0%", "92.5%", "61", "1,753"],
        ["b", "lora", "supervised", "tiny", "mini-gsm", "20 so far", "-", "-", "-", "-"],
        ["c", "lora", "supervised", "tiny", "x\x1b[2J", "3", "-", "-", "-", "-"]]
    assert run_command(runs.main, [str(tmp_path)]) == 0
    out = capsys.readouterr().out
    heading, first, *_ = out.splitlines()
    assert len(out.splitlines()) == 4 and "\x1b" not in out
    assert heading.index("after") == first.index("92.5%")


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    run(tmp_path / "a", ARGS)
    run(tmp_path / "b", ARGS)
    (tmp_path / "a" / "args.json").write_text("{")
    assert run_command(runs.main, [str(tmp_path)]) == 0
    _, broken, whole = capsys.readouterr().out.splitlines()
    assert "args.json:1: not valid JSON" in broken and whole.startswith("b")


def test_a_number_that_is_none_is_a_dash(tmp_path):
    result = {"train_seconds": 10**400, "peak_memory_mib": 1e300, "accuracy_after": True}
    run(tmp_path / "a", ARGS, result)
    assert runs.rows_of(tmp_path)[0][6:] == ["-", "-", "-", "-"]


def test_no_runs_are_one_line(tmp_path, capsys):
    assert run_command(runs.main, [str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: holds no run; make one: python mathft.py --method lora\n")
