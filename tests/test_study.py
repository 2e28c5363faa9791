"""The tables of the study: what a cell shows, what a failed run does to it, and one tiny study with
the real programs from end to end.
"""

import json

import pytest

import study
from runtime import UsageError
from show import jobs, programs
from show.experiments import Claim, Column, Experiment
from show.jobs import Jobs

TABLE = Experiment(
    "small", "paper A, table 9", "Two and a broken one",
    {"one": "one", "two": "two", "broken": "broken"},
    {"accuracy": Column(), "answers cut": Column("truncated_rate", file="evals/after/result.json"),
     "training": Column("train_seconds", "seconds"), "second": Column(run="*-second")},
    {"one": {"accuracy": "30"}, "two": {"accuracy": "20"}},
    (Claim("one", "two", "accuracy"), Claim("two", "one", "accuracy"),
     Claim("one", "broken", "accuracy")), "A note.")


def filled(cells: dict[str, dict[int, float]], monkeypatch, tmp_path) -> Jobs:
    """Jobs whose runs have ended: `cells` is the accuracy by run and seed; no entry has failed."""
    made = Jobs({run: f"mathft.py --steps {number}" for number, run in enumerate(cells, 1)},
                {"many": "8"}, tmp_path)
    monkeypatch.setattr(study, "RUNS", made.runs)
    for run, seeds in cells.items():
        for seed in range(2):
            folder = made.job(run, seed).folder
            after = folder / "evals" / "after"
            after.mkdir(parents=True)
            value = seeds.get(seed)
            error = "" if value is not None else "exit code 1: error: a | b"
            folder.with_name(folder.name + ".json").write_text(json.dumps(
                {"command": f"python mathft.py {run} {seed}", "seconds": 90.0, "memory_mib": 500.0,
                 "error": error}))
            (folder / "result.json").write_text(json.dumps(
                {"accuracy_after": value, "ci95_after": [0.5, 0.7], "train_seconds": 12.0,
                 "peak_memory_mib": 444.0}))
            (after / "result.json").write_text(json.dumps(
                {"truncated_rate": 0.25, "n": 100, "samples": 1}))
            if error:
                made.records[folder] = json.loads(
                    folder.with_name(folder.name + ".json").read_text())
    return made


ENDED = {"one": {0: 0.6, 1: 0.62}, "two": {0: 0.5, 1: 0.55}, "broken": {}}


def test_a_cell_holds_all_that_a_reader_needs(monkeypatch, tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path)
    cell = study.cell_of(made, TABLE, "one", "accuracy", range(1))
    assert study.shown(cell) == "60.0 % (50.0 to 70.0)" and cell["paper"] == "30"
    assert cell["seeds"] == [
        {"run": "one", "seed": 0, "command": "python mathft.py one 0", "value": 0.6,
         "interval": [0.5, 0.7], "minutes": 1.5, "memory_mib": 444.0, "error": ""}]
    seeds = study.cell_of(made, TABLE, "one", "accuracy", range(2))
    assert study.shown(seeds) == "61.0 % (60.0 to 62.0)"  # their range, no interval
    rate = study.cell_of(made, TABLE, "one", "answers cut", range(1))
    assert study.shown(rate) == "25.0 % (17.5 to 34.3)"  # Wilson's, of 25 in 100
    assert study.shown(study.cell_of(made, TABLE, "one", "training", range(1))) == "12.0 s"
    assert study.shown(study.cell_of(made, TABLE, "one", "training", range(2))) == "12.0 s"  # both
    assert study.shown({"value": 700.0, "range": [690.0, 711.2], "interval": None, "kind": "MiB",
                        "seeds": []}) == "700 MiB (690 to 711)"
    assert study.shown(study.cell_of(made, TABLE, "one", "second", range(1))) == "–"


def test_a_failed_run_is_a_cell_that_says_so(monkeypatch, tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path)
    table = study.table_of(made, TABLE, range(2))
    text = "\n".join(study.table_lines(table))
    assert "| broken | failed |" in text
    assert "**failed**: exit code 1: error: a \\| b" in text
    assert "| one | 61.0 % (60.0 to 62.0) | 30 |" in text  # and the rest of the table is there
    half = study.cell_of(filled({"one": {0: 0.6}}, monkeypatch, tmp_path / "half"), TABLE, "one",
                         "accuracy", range(2))
    assert study.shown(half) == "60.0 %, 1 seed(s) failed"


def test_a_figure_that_is_missing_is_a_failed_cell(monkeypatch, tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path)
    (made.job("one", 0).folder / "result.json").write_text('{"accuracy_after": null}')
    cell = study.seed_cell(made, "one", 0, Column())
    assert cell["value"] is None and cell["error"].startswith("result.json has no accuracy_after")
    (made.job("one", 0).folder / "result.json").write_text('{"accuracy_after": 1%s}' % ("0" * 400))
    assert study.seed_cell(made, "one", 0, Column())["value"] is None
    (made.job("one", 0).folder / "metrics.jsonl").write_text("")
    cell = study.seed_cell(made, "one", 0, Column(file="metrics.jsonl", path="last/loss"))
    assert cell["error"].startswith("metrics.jsonl has no last/loss")


@pytest.mark.parametrize("file, text", [
    ("metrics.jsonl", ""), ("metrics.jsonl", None),
    ("result.json", json.dumps({"first": {"loss": 10**400}})),
])
def test_a_file_without_its_figures_is_a_failed_cell(file, text, monkeypatch, tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path)
    if text is not None:
        (made.job("one", 0).folder / file).write_text(text)
    cell = study.seed_cell(made, "one", 0, Column("first/loss", "number", file))
    assert cell["value"] is None and cell["error"].startswith(f"{file} has no first/loss")


def test_each_table_says_whether_the_direction_is_the_papers(monkeypatch, tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path)
    same, other, none = study.table_of(made, TABLE, range(2))["directions"]
    assert same == ("one above two in accuracy: paper 30 and 20; here 61.0 % (60.0 to 62.0) and "
                    "52.5 % (50.0 to 55.0): the same direction")
    assert other.endswith(": the other direction")
    assert none == "one above broken in accuracy: the paper without figures; not measured here"
    single = study.table_of(made, TABLE, range(1))["directions"][0]
    assert single.endswith("the same direction, and the brackets overlap: it may be chance")


def test_a_leaderboard_is_in_order(monkeypatch, tmp_path):
    made = filled(ENDED | {"three": {0: 0.9, 1: 0.9}}, monkeypatch, tmp_path)
    board = Experiment("board", "none", "All", {run: run for run in ENDED | {"three": 1}},
                       {"accuracy": Column()}, ranked=True)
    assert list(study.table_of(made, board, range(2))["rows"]) == ["three", "one", "two", "broken"]


@pytest.mark.parametrize("flags, told", [
    ({"only": "none-such"}, "--only none-such: no such table; known are full-lora"),
    ({"only": "styles", "model": "Qwen/X"}, "needs the embedded model"),
    ({"dataset": "rows.jsonl"}, "--dataset rows.jsonl: the study needs a named set"),
    ({"quick": True, "model": "Qwen/X"}, "--quick is about the embedded model"),
])
def test_flags_that_make_no_study(flags, told):
    with pytest.raises(UsageError, match=told):
        study.settings_of(study.Flags(**flags))
        study.chosen(study.Flags(**flags))


def test_the_list_names_each_command_once_and_computes_nothing(tmp_path, capsys):
    folder = tmp_path / "study"
    study.main(["--quick", "--list", "--output-dir", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if " python " in line]
    assert len(commands) == len(set(commands)) == int(lines[-1].removesuffix(" commands"))
    assert not folder.exists()


def test_a_tiny_study_from_end_to_end(tmp_path, monkeypatch, capsys):
    """Four programs run: data, two trainings on it, and one that fails. The second table and the
    second study run none.
    """
    runs = {"gold": "synthetic.py mini-gsm --count 4",
            "one": "mathft.py --method sft --dataset {gold}/data.jsonl --eval-dataset mini-gsm "
                   "--steps 1 --batch-size 1 --eval-limit 2 --max-new-tokens 16",
            "read": "mathft.py --method ia3 --dataset {gold}/data.jsonl --eval-limit 0 "
                    "--batch-size 1 --tokens {tokens:one}",
            "broken": "mathft.py --method sft --dataset no-such-file.jsonl"}
    first = Experiment("first", "paper A", "First", {"one": "one", "broken": "broken"},
                       {"accuracy": Column(), "memory": Column("peak_memory_mib", "MiB")})
    second = Experiment("second", "paper B", "Second", {"one": "one", "read": "read"},
                        {"training": Column("train_seconds", "seconds"),
                         "loss": Column("last/loss", "number", "metrics.jsonl")})
    monkeypatch.setattr(study, "RUNS", runs)
    monkeypatch.setattr(study, "EXPERIMENTS", (first, second))
    monkeypatch.setattr(study, "write_page", lambda made: None)
    started = []
    real = jobs.start_program
    monkeypatch.setattr(jobs, "start_program",
                        lambda *args: started.append(args[0][0]) or real(*args))
    monkeypatch.chdir(tmp_path)
    study.main(["--quick"])
    assert started == ["synthetic.py", "mathft.py", "mathft.py", "mathft.py"]
    printed = capsys.readouterr().out
    assert "| broken | failed | failed |" in printed
    assert "no-such-file.jsonl" in printed and "| read | " in printed
    assert (tmp_path / "study" / "tables.md").read_text().strip() == printed.strip()
    tables = json.loads((tmp_path / "study" / "tables.json").read_text())["tables"]
    cell = tables[0]["rows"]["one"]["accuracy"]["seeds"][0]
    assert cell["minutes"] > 0 and cell["memory_mib"] > 50 and len(cell["interval"]) == 2
    assert cell["command"].startswith("python mathft.py --method sft --dataset study/synthetic-")
    study.main(["--quick", "--only", "second"])
    assert len(started) == 4


def test_a_study_ends_with_a_page_of_its_trainings_where_there_is_such_a_program(monkeypatch,
                                                                                tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path / "study")
    for run in ("one", "two"):
        made.do(run, 0)
    (made.job("one", 0).folder / "metrics.jsonl").write_text("{}\n")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    study.write_page(made)
    assert not (tmp_path / "study" / "report.out").exists()
    (tmp_path / "report.py").write_text("import sys; print(*sys.argv[1:])")
    study.write_page(made)
    said = (tmp_path / "study" / "report.out").read_text()
    assert said.split() == [str(made.job("one", 0).folder),  # of `two` there is no training
                            "--output", str(tmp_path / "study" / "report.html")]


def test_an_interrupted_page_leaves_no_program_behind(monkeypatch, tmp_path):
    made = filled(ENDED, monkeypatch, tmp_path / "study")
    made.do("one", 0)
    (made.job("one", 0).folder / "metrics.jsonl").write_text("{}\n")
    for module in (study, programs):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "report.py").write_text("import time; time.sleep(60)")
    started, wait, left = [], programs.Program.wait, [KeyboardInterrupt]
    monkeypatch.setattr(study, "start_program",
                        lambda *args: started.append(programs.start_program(*args)) or started[0])

    def interrupted(program):
        if left:
            raise left.pop()
        return wait(program)

    monkeypatch.setattr(programs.Program, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.write_page(made)
    assert started[0].ended()
