"""harness.py: a task folder that stands alone, and whose verdicts are ours."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from answer_pairs import PAIRS

from data import load_problems
from flags import run_command
from harness import METRICS, main
from score import verdict

# A virtual environment's command with `pip install lm_eval`; other machines name their own.
LM_EVAL = os.environ.get("LM_EVAL") or shutil.which("lm_eval")
ASK = """import json, sys
sys.modules["datasets"] = type(sys)("datasets")  # lm_eval brings it
sys.modules["datasets"].Dataset = type("Dataset", (), {"from_list": staticmethod(list)})
sys.path.insert(0, sys.argv[1])
import grade
rows = grade.problems()["test"]
pairs = json.load(sys.stdin)
print(json.dumps([rows, [grade.verdicts({"gold": gold}, [text]) for gold, text in pairs]]))
assert not {"torch", "runtime"} & sys.modules.keys()
"""


def asked(folder: Path, pairs: list) -> tuple[list, list]:
    """The problems of a task folder and its verdicts on (gold, text), in a process of its own that
    sees no module of ours."""
    done = subprocess.run([sys.executable, "-I", "-c", ASK, str(folder)], input=json.dumps(pairs),
                          capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout)


def test_the_folder_holds_the_problems_and_the_settings(tmp_path, capsys):
    assert run_command(main, [str(tmp_path / "task"), "--limit", "7"]) == 0
    assert "7 problems of mini-gsm as mathft-mini-gsm" in capsys.readouterr().out
    rows, _ = asked(tmp_path / "task", [])
    expected = load_problems("mini-gsm", "test", 7)
    assert rows == [{"id": p.id, "question": p.question, "gold": p.answer} for p in expected]
    task = (tmp_path / "task" / "mathft-mini-gsm.yaml").read_text()
    assert "max_gen_toks: 256\n" in task and "do_sample: false\n" in task
    assert all(f"- metric: {name}\n" in task for name in METRICS)
    assert run_command(main, [str(tmp_path / "task")]) == 1  # nothing is written over
    assert "not empty" in capsys.readouterr().err


def test_rows_that_are_left_out_are_told(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text(
        '{"question": "1+1?", "answer": "#### 2"}\n'
        '{"question": "1+2?", "answer": "#### 4", "correct": false}\n')
    assert run_command(main, [str(tmp_path / "task"), "--dataset",
                              str(tmp_path / "mine.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "1 problems of" in said and "left out   1 rows: 1 marked as wrong by correct" in said


def test_its_verdicts_are_ours(tmp_path):
    """Of every pair of the grader's specification, in a box, behind ####, and as bare text."""
    main([str(tmp_path / "task"), "--limit", "1"])
    both = [pair for rule in PAIRS.values() for kind in rule for pair in kind]
    pairs = [(gold, form.format(answer)) for gold, answer in both[::5] for form in
             ("so \\boxed{{{}}}", "#### {}", "{}")] + [("1", ""), ("1", "none")]
    _, verdicts = asked(tmp_path / "task", pairs)
    for (gold, text), found in zip(pairs, verdicts, strict=True):
        ours = verdict(gold, text, "stop")
        assert found == {"flexible": ours["correct"], "strict": ours["strict_correct"],
                         "exact_string": ours["exact"]}, (gold, text)
    assert {found["flexible"] for found in verdicts} == {0, 1}


@pytest.mark.parametrize("row, said", [
    ({"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"},
                   {"role": "user", "content": "and 1?"},
                   {"role": "assistant", "content": "#### 3"}]},
     "several turns"),
    ({"question": "1 + 1?", "answer": ""}, "answer"),
])
def test_what_a_task_cannot_hold_is_refused(tmp_path, capsys, row, said):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    words = [str(tmp_path / "task"), "--dataset", str(tmp_path / "rows.jsonl")]
    assert run_command(main, words) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "task").exists()


@pytest.mark.slow
@pytest.mark.skipif(not LM_EVAL, reason="lm_eval is not installed; LM_EVAL=PATH names it")
def test_lm_eval_counts_what_we_count(tmp_path):
    """The embedded model without training, 500 problems of mini-gsm, fp32, greedy: within two."""
    tiny = Path(__file__).parent.parent / "tiny"
    main([str(tmp_path / "task")])
    subprocess.run(
        [LM_EVAL, "--model", "hf", "--model_args", f"pretrained={tiny},dtype=float32",
         "--include_path", str(tmp_path / "task"), "--tasks", "mathft-mini-gsm",
         "--apply_chat_template", "--device", "cpu", "--batch_size", "32",
         "--output_path", str(tmp_path / "out")],
        check=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
    theirs = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())
    from evaluate import main as evaluate

    evaluate(["--dtype", "fp32", "--max-new-tokens", "256", "--output-dir", str(tmp_path / "ours")])
    ours = json.loads((tmp_path / "ours" / "result.json").read_text())
    flexible = theirs["results"]["mathft-mini-gsm"]["flexible,none"]
    assert abs(flexible - ours["accuracy"]) * 500 <= 2
