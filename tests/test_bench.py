"""The benchmark: both sides do the same work and begin at the same loss, and what fails is said."""

import json
from pathlib import Path

import pytest
import torch

import children
import synthetic
from checkpoint import load_model, read_config
from conftest import bench_record
from flags import run_command
from runtime import UsageError, UserError
from tokenizer import Tokenizer
from tools import bench
from tools.bench import (SHAPES, Flags, case_lines, flop_per_token, main, summarise_cases, tasks_of,
                         write_random)

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------- what is counted


def test_operations_of_the_half_billion_shape():
    """Counted by hand: 357.8 M elements in the layers' maps, 136.1 M in the head, 8.8 M in LoRA; 58
    % are targets.
    """
    share = 0.58
    counted = {case: flop_per_token(case, SHAPES["0.5B"], share) / 1e9 for case in bench.TRAINING}
    assert counted == pytest.approx(
        {"prefix": 1.75, "lora": 1.80, "sft": 2.62, "ia3": 1.75}, abs=0.005)
    for case in bench.GENERATING:
        assert flop_per_token(case, SHAPES["0.5B"]) / 1e9 == pytest.approx(0.99, abs=0.005)


def test_random_weights_are_a_whole_checkpoint(tmp_path):
    source = ROOT / "tiny"
    write_random(read_config(source), source, tmp_path / "model", seed=1)
    model = load_model(tmp_path / "model", CPU, torch.float32, torch.float32)
    assert Tokenizer(tmp_path / "model").size == Tokenizer(source).size
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (weight == float(name.endswith("norm.weight"))).all(), name


def test_sides_are_compared_turn_by_turn():
    fast, slow = {"tokens_per_second": 60.0}, {"tokens_per_second": 20.0, "peak_memory_mib": 1000.0}
    records = [
        bench_record("ours", **fast),
        bench_record("peer", **slow),
        bench_record("ours", **fast),
        bench_record("peer", **fast)
    ]
    found = summarise_cases(records, "bf16")["lora"]
    assert found["speed_ratio"] == {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    assert found["ours"]["tokens_per_second"] == {"median": 60.0, "lowest": 60.0, "highest": 60.0}
    assert found["memory_ratio"] == {"median": 0.75, "lowest": 0.5, "highest": 1.0}
    assert "2.00 (1.00 to 3.00)" in "\n".join(case_lines({"lora": found}))


@pytest.mark.parametrize(("case", "ours", "theirs", "said"), [
    ("lora", {"first_loss": 2.0}, {"first_loss": 2.019}, []),
    ("lora", {"first_loss": 2.0}, {"first_loss": 2.05}, ["loss differs: ours 2.0000, peer 2.0500"]),
    ("lora", {"first_loss": 2.0}, {"first_loss": float("nan")
                                   }, ["loss differs: ours 2.0000, peer nan"]),
    ("decode", {"first_tokens": [1, 2, 3, 4]}, {"first_tokens": [1, 2, 3, 0]}, []),
    ("decode", {"first_tokens": [1, 2, 3]}, {"first_tokens": [1, 2, 0]
                                             }, ["first tokens differ: 2 of 3 are equal"]),
])
def test_sides_that_do_not_agree_are_told(case, ours, theirs, said):
    records = [bench_record("ours", case, **ours), bench_record("peer", case, **theirs)]
    found = summarise_cases(records, "bf16")
    assert found[case]["differs"] == said
    assert all(any(line in row for row in case_lines(found)) for line in said)


# -------------------------------------------------------------------------------- the whole command


@pytest.fixture
def problems(tmp_path) -> list[str]:
    """Flags of forty problems to train on and ten to generate for."""
    words = []
    for name, split, count in (("dataset", "train", 40), ("eval-dataset", "test", 10)):
        path = tmp_path / f"{split}.jsonl"
        rows = synthetic.problems("mini-gsm", split, count)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"--{name}", str(path)]
    return words


def test_a_command_that_goes_well(problems, monkeypatch, capsys):
    """Its exit code, its table and its last line; the measurements are made up."""
    monkeypatch.setattr(bench, "run_process", lambda task: bench_record(task.side, task.case))
    assert run_command(main, ["--case", "lora", *problems]) == 0
    out, error = capsys.readouterr()
    *lines, last = out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["case", "side"], ["lora", "ours"]]
    found = json.loads(last)
    assert found["processes"] == [bench_record("ours")] and error == "1/1 lora ours: 50 tokens/s\n"
    assert found["settings"]["batch_size"] == 8 and found["machine"]["torch"] == torch.__version__


def test_the_sides_take_turns(tmp_path):
    flags = Flags(case="prefix,lora", peer=True, repeat=2, dtype="fp32")
    tasks = tasks_of(flags, tmp_path)
    assert [(task.case, task.side) for task in tasks] == [
        (case, side) for case in ("prefix", "lora") for _ in range(2) for side in ("ours", "peer")]
    assert (tmp_path / "prefix" / "adapter_config.json").exists()
    work = json.loads((tmp_path / "work.json").read_text())
    assert [len(batch)
            for batch in work["batches"]] == [8] * 11 and work["batches"][0] != work["batches"][1]
    assert len(work["prompts"]) == len(work["lengths"]) == 256


def test_a_process_that_fails_is_one_line_and_the_rest_goes_on(problems, tmp_path, capfd):
    """A model with few positions: training finds problems that fit, decoding has no room for its
    128 tokens. Both are processes of their own.
    """
    model = tmp_path / "model"
    model.mkdir()
    for file in (ROOT / "tiny").iterdir():
        if file.name != "config.json":
            (model / file.name).symlink_to(file)
    config = json.loads(
        (ROOT / "tiny" / "config.json").read_text()) | {"max_position_embeddings": 180}
    (model / "config.json").write_text(json.dumps(config))
    words = ["--model", str(model), "--case", "decode,lora", "--steps", "1", *problems]
    assert run_command(main, words) == 1
    out, error = capfd.readouterr()
    lines = out.splitlines()
    assert lines[1].split()[:2] == ["case", "side"]
    assert lines[2].split() == ["decode", "ours", "failed"
                                ] and lines[3].startswith("lora     ours ")
    found = json.loads(lines[-1])
    failed, done = found["processes"]
    assert failed.keys() == {"case", "side", "failed"}
    assert len(done["seconds"]) == 1 and sum(done["tokens"]) > done["target_tokens"] > 0
    assert 0 < done["share_of_limit"] < 1 and done["peak_memory_mib"] > 100
    assert found["settings"]["batch_size"] == 8 and found["machine"]["torch"] == torch.__version__
    assert error.splitlines()[0] == f"1/2 decode ours: {failed['failed']}"
    assert error.splitlines()[-1] == f"error: decode ours failed: {failed['failed']}"


@pytest.mark.parametrize(("words", "said"), [
    (["--case", "lora,speed"], "--case speed: unknown; known are"),
    (["--shape", "0.5B", "--model", "tiny"], "--shape and --model exclude each other"),
    (["--shape", "7B"], "invalid choice: '7B'"),
    (["--tokenizer", "tiny"], "--tokenizer is for --shape"),
    (["--repeat", "0"], "0 is below 1"),
])
def test_bad_flags(words, said):
    with pytest.raises(UsageError, match=said):
        main(words)


def test_a_missing_peer_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr(bench.pkgutil, "iter_modules", list)
    with pytest.raises(
            UserError,
            match="--peer needs transformers and peft: pip install -r requirements-dev.txt"):
        main(["--peer"])


def test_our_side_needs_neither_transformers_nor_peft():
    code = ("import sys, tools.bench; "
            "print(sorted({'transformers', 'peft', 'tools.peer'} & {*sys.modules}))")
    done = children.run(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
