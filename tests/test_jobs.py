"""The study's commands as jobs. The programs here are stand-ins of a few lines that write down
how they are called, so that every law takes milliseconds.
"""

import contextlib
import json
import signal
import time

import pytest

from flags import Terminated
from show import jobs, programs
from show.jobs import Jobs

PROGRAM = """import json, os, pathlib, signal, sys
words = sys.argv[1:]
with open(CALLS, "a") as file:
    file.write(json.dumps([NAME, *words]) + "\\n")
folder = pathlib.Path(words[words.index("--output-dir") + 1] if "--output-dir" in words
                      else words[words.index("--resume") + 1])
folder.mkdir(exist_ok=True)
(folder / "args.json").write_text("{}")
if "--broken" in words:
    print("error: this flag breaks | it", file=sys.stderr)
    sys.exit(1)
if "--slow" in words and "--resume" not in words:
    def save(number, frame):
        with open(CALLS, "a") as file:
            file.write(json.dumps(["signal", number]) + "\\n")
        (folder / "saving").touch()
        if "--long-save" not in words:
            sys.exit(130)
        signal.signal(number, lambda *_: sys.exit(130))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a study in the background
    signal.signal(signal.SIGTERM, save)
    (folder / "ready").touch()
    while True:
        signal.pause()
steps = int(words[words.index("--steps") + 1]) if "--steps" in words else 10
(folder / "result.json").write_text(json.dumps(
    {"steps": steps, "train_seconds": steps * 2.0, "train_tokens": 77 * steps,
     "threads": sys.modules["torch"].get_num_threads()}))
"""
RUNS = {
    "gold": "synthetic.py mini-gsm --count {count}",
    "one": "mathft.py --method sft --dataset {gold}/data.jsonl",
    "same": "mathft.py --method sft --dataset {gold}/data.jsonl",
    "two": "mathft.py --method lora --dataset {gold}/data.jsonl {model}",
    "measured": "evaluate.py --run {one}",
    "again": "evaluate.py --regrade {measured}",
    "broken": "mathft.py --method sft --broken",
    "after": "evaluate.py --run {broken}",
    "slow": "mathft.py --slow",
    "slower": "mathft.py --slow --broad",
    "saves-long": "mathft.py --slow --long-save",
    "long": "mathft.py --method sft --steps 15",
    "paced": "mathft.py --steps {steps:one@long}",
    "as-long": "mathft.py --steps {steps:one@paced}",
    "as-much": "mathft.py --tokens {tokens:one}",
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Jobs over the stand-ins; `study.calls()` lists the words of every call."""
    calls = tmp_path / "calls"
    head = f"CALLS = {str(calls)!r}\n"
    for name in ("mathft.py", "evaluate.py"):
        (tmp_path / name).write_text(f"{head}NAME = {name!r}\n{PROGRAM}")
    (tmp_path / "synthetic.py").write_text(
        f"{head}open(CALLS, 'a').write('[\"synthetic.py\"]\\n'); print('{{\"question\": 1}}')\n")
    monkeypatch.setattr(programs, "ROOT", tmp_path)

    def begin(at_once=1, **settings) -> Jobs:
        made = Jobs(RUNS, {"count": "3", "model": "", **settings}, tmp_path / "study",
                    at_once=at_once)
        made.calls = lambda: [json.loads(line) for line in
                              (calls.read_text().splitlines() if calls.exists() else [])]
        return made

    return begin


def test_a_run_and_what_it_needs_are_computed_once(study):
    first = study()
    assert first.do("measured", 0)["error"] == ""
    assert [call[0] for call in first.calls()] == ["synthetic.py", "mathft.py", "evaluate.py"]
    assert first.do("one", 0)["error"] == first.do("same", 0)["error"] == ""  # shared by two names
    second = study()  # another process
    second.do("measured", 0)
    second.do("same", 0)
    assert len(second.calls()) == 3
    second.do("one", 1)  # another seed: its own data, its own run
    assert len(second.calls()) == 5


def test_a_folder_is_named_after_the_settings(study):
    plain, larger = study(), study(count="4")
    assert plain.name("one", 0) == plain.name("same", 0)
    assert plain.name("one", 0).startswith("mathft-sft-")
    names = {jobs_.name(run, seed) for jobs_ in (plain, larger) for run in ("gold", "one")
             for seed in (0, 1)}
    assert len(names) == 8  # also that of a run whose need alone has other settings


def test_a_record_says_what_a_run_took(study):
    record = study().do("one", 0)
    assert record["command"].startswith("python mathft.py --method sft --dataset ")
    assert record["seconds"] > 0 and record["seed"] == 0


def test_what_fails_stops_nothing_else_and_is_tried_again(study):
    first = study()
    assert first.do("broken", 0)["error"] == "exit code 1: error: this flag breaks | it"
    assert first.do("after", 0)["error"] == "needs broken, which failed"
    assert first.do("one", 0)["error"] == ""
    first.do("broken", 0)
    assert sum("--broken" in call for call in first.calls()) == 1  # once in one study
    study().do("broken", 0)
    assert first.calls()[-1][:2] == ["mathft.py", "--resume"]  # what it has left is gone on with


def pressed(monkeypatch, folders, reason=KeyboardInterrupt):
    """Ctrl-C, or another reason, once the programs of these folders are there."""
    def press(running):
        while not all((folder / "ready").exists() for folder in folders):
            time.sleep(0.01)
        raise reason

    monkeypatch.setattr(jobs, "wait_for_any", press)


@pytest.mark.parametrize("at_once, runs", [(1, ["slow"]), (2, ["slow", "slower"])])
def test_an_interruption_reaches_each_program_once_and_the_next_study_goes_on(
        study, monkeypatch, at_once, runs):
    first, wait = study(at_once), jobs.wait_for_any
    folders = [first.job(run, 0).folder for run in runs]
    pressed(monkeypatch, folders)
    with pytest.raises(KeyboardInterrupt):
        list(first.work([(run, 0) for run in runs]))
    assert first.calls()[at_once:] == [["signal", signal.SIGTERM]] * at_once
    for folder in folders:
        record = json.loads((folder.parent / f"{folder.name}.json").read_text())
        assert record["error"] == "interrupted"
    monkeypatch.setattr(jobs, "wait_for_any", wait)
    second = study()
    list(second.work([(run, 0) for run in runs]))
    assert [record["error"] for record in second.records.values()] == [""] * at_once
    assert first.calls()[-at_once:] == [["mathft.py", "--resume", str(folder)]
                                        for folder in folders]


def interrupted_again(monkeypatch, folder, reason):
    """While a study waits for the end of a program that saves, this interruption comes too."""
    wait, left = programs.Program.wait, [reason]

    def interrupted(program):
        while left and not (folder / "saving").exists():
            time.sleep(0.01)
        if left:
            raise left.pop()
        return wait(program)

    monkeypatch.setattr(programs.Program, "wait", interrupted)


def test_a_second_interruption_ends_the_programs_at_once(study, monkeypatch):
    first, lines = study(), []
    first.tell, folder = lines.append, first.job("saves-long", 0).folder
    pressed(monkeypatch, [folder])
    interrupted_again(monkeypatch, folder, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        first.do("saves-long", 0)
    assert first.records[folder]["error"] == "interrupted"  # it has ended, and has its record
    assert lines[-1].startswith("stopped    ")


def test_a_terminal_that_closes_lets_programs_save(study, monkeypatch):
    """It sends SIGHUP twice: from the system and from the shell. A program gets one signal."""
    first, sent, send = study(), [], programs.Program.ask_to_end
    folder = first.job("slow", 0).folder
    pressed(monkeypatch, [folder], Terminated)
    interrupted_again(monkeypatch, folder, Terminated)
    monkeypatch.setattr(programs.Program, "ask_to_end",
                        lambda program: sent.append(program) or send(program))
    with pytest.raises(Terminated):
        first.do("slow", 0)
    assert len(sent) == 1 and first.records[folder]["error"] == "interrupted"


def test_who_leaves_the_loop_early_stops_the_programs(study):
    """An error while a table is written, for one: the data are made, and `slow` still runs."""
    first = study(2)
    with pytest.raises(OSError), contextlib.closing(first.work([("slow", 0), ("one", 0)])) as work:
        for _ in work:
            raise OSError
    ended = {record["run"]: record["error"] for record in first.records.values()}
    assert ended == {"gold": "", "slow": "interrupted"}


def test_an_interruption_while_a_program_starts_reaches_it(study, monkeypatch):
    first, started, start = study(), [], jobs.start_program

    def interrupted(*args):
        started.append(start(*args))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(jobs, "start_program", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.do("slow", 0)
    assert started[0].ended()
    assert first.records[first.job("slow", 0).folder]["error"] == "interrupted"


def test_commands_run_side_by_side_and_each_behind_what_it_needs(study):
    """`one` and `two` need `gold`; `measured` needs `one`; `same` is `one` by another name."""
    first = study(2)
    order = [("measured", 0), ("same", 0), ("two", 0), ("two", 1)]
    known = [len(first.records) for _ in first.work(order)]
    assert known == sorted(known) and all(not record["error"] for record in first.records.values())
    started = [call[0] for call in first.calls()]
    assert sorted(started) == ["evaluate.py", *3 * ["mathft.py"], *2 * ["synthetic.py"]]
    assert started.index("evaluate.py") > started.index("mathft.py") > started.index("synthetic.py")
    assert first.all_known(order) and not first.all_known([("long", 0)])


def test_each_command_has_its_part_of_the_threads(study):
    first = study(2)
    first.threads = 3
    first.do("long", 0)
    assert first.result("long", 0)["threads"] == 3


def test_at_most_so_many_run_at_once(study, monkeypatch):
    first, seen, wait = study(2), [], jobs.wait_for_any
    monkeypatch.setattr(jobs, "wait_for_any",
                        lambda running: seen.append(len(running)) or wait(running))
    list(first.work([("one", seed) for seed in range(3)]))
    assert max(seen) == 2


def test_half_of_the_made_data_is_not_taken_for_all_of_it(study):
    first = study()
    folder = first.job("gold", 0).folder
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("half")
    first.do("gold", 0)
    assert (folder / "data.jsonl").read_text() == '{"question": 1}\n'


def test_a_training_that_ended_without_its_record_is_done_again(study):
    """It has kept no checkpoint, and --resume would be an error each time."""
    first = study()
    first.do("paced", 0)
    folder = first.job("paced", 0).folder
    folder.with_name(folder.name + ".json").unlink()
    assert study().do("paced", 0)["error"] == ""
    assert "--resume" not in first.calls()[-1] and first.calls()[-1] == first.calls()[-2]


def test_what_grades_again_draws_nothing_and_begins_anew(study):
    """So it has no seed of its own; a half of its folder does not stay."""
    first = study()
    job = first.job("again", 3)
    assert "--seed" not in job.words and job.needs == ("measured",)
    job.folder.mkdir(parents=True)
    (job.folder / "half").touch()
    first.do("again", 3)
    assert first.records[job.folder]["error"] == "" and not (job.folder / "half").exists()


def test_numbers_come_from_runs_that_have_ended(study):
    """Run `one` takes 2 seconds a step, and 770 tokens; run `long` takes 30 seconds: 15 steps."""
    first = study()
    assert "N" in first.job("paced", 0).words
    assert first.name("paced", 0) != first.name("as-long", 0)  # as yet, "--steps N" both
    for run, words in (("paced", ["--steps", "15"]), ("as-long", ["--steps", "15"]),
                       ("as-much", ["--tokens", "770"])):
        first.do(run, 0)
        assert first.calls()[-1][1:3] == words
    assert first.name("paced", 0) == first.name("as-long", 0)  # one command, as it turns out


def test_a_number_that_fails_is_not_that_of_a_command_that_looks_the_same(study):
    """Before the numbers are known, both are `mathft.py --steps N`. One number never comes; the
    other command, and what needs it, are computed all the same.
    """
    first = study(2)
    first.runs = RUNS | {"unpaced": "mathft.py --steps {steps:broken@long}",
                         "on-paced": "evaluate.py --run {paced}"}
    list(first.work([("unpaced", 0), ("on-paced", 0)]))
    ended = {record["run"]: record["error"] for record in first.records.values()}
    assert ended["unpaced"] == "needs broken, which failed"
    assert ended["paced"] == ended["on-paced"] == ""


def test_a_users_words_stay_words(study):
    name = "a {gold}; rm -rf $HOME"
    job = study(model=("--model", name)).job("two", 0)
    assert name in job.words and len(job.needs) == 1


def test_an_unknown_name_is_an_error_of_the_table():
    with pytest.raises(KeyError):
        Jobs({"one": "mathft.py {nothing}"}, {}, programs.ROOT / "study").job("one", 0)
