"""augment.py: the three commands as a user types them, what they leave in their folders, and what
they refuse."""

import json
from pathlib import Path

import pytest

import augment
from data import Problem, read_problems, write_problems
from flags import run_command


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sources.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tools.download.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sources.hf_hub_download", refuse)


def refuse(*args, **options):
    raise OSError("no network in a test")


def run(*words: str) -> int:
    return run_command(augment.main, list(words))


def read(path: str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------- make


def test_make_leaves_data_that_the_trainer_reads_and_says_what_was_left_out(capsys):
    assert run("make", "perturb", "--limit", "10", "--samples", "3", "--style", "boxed", "--seed",
               "5") == 0
    folder = "runs/perturb-mini-gsm-1"
    made, result = read_problems(Path(folder) / "data.jsonl"), read(f"{folder}/result.json")
    assert result["problems"] == 10 and result["rows"] == len(made) > 20
    assert result["rows"] + sum(result["dropped"].values()) == 30 and result["cost"] == {}
    assert all(problem.solution.endswith("}$.") and problem.origin["seed"] == 5 for problem in made)
    shown = capsys.readouterr().out
    assert f"made       {len(made)} rows from {result['parents']} of 10 problems" in shown
    assert f"--dataset {folder}/data.jsonl" in shown


def test_a_model_of_our_own_is_the_teacher_and_an_interrupted_recipe_goes_on(capsys, monkeypatch):
    words = [
        "make", "rft", "--teacher", "tiny", "--limit", "6", "--samples", "4", "--temperature", "1",
        "--output-dir", "out"
    ]

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(augment, "write_problems", interrupted)
        assert run(*words) == 130
    lines = Path("out/replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 24 and not Path("out/data.jsonl").exists()
    assert run(*words, "--seed",
               "3") == 1 and "was begun with another --seed" in capsys.readouterr().err
    assert run(*words) == 0
    assert Path("out/replies.jsonl").read_text(
        encoding="utf-8").splitlines() == lines  # nothing was asked again
    assert read("out/result.json")["cost"]["requests"] == 0
    assert [p.origin["kind"] for p in read_problems(Path("out/data.jsonl"))].count("gold") == 6
    assert run(*words) == 1 and "is finished" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(context):
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(augment.RECIPES, "retro", interrupted)
    assert run("make", "retro", "--limit", "3") == 130
    again = "python augment.py make retro --limit 3 --output-dir runs/retro-mini-gsm-1"
    assert f"to go on:  {again}" in capsys.readouterr().out


def test_a_row_is_made_once_and_what_a_style_drops_is_counted():
    line = json.dumps(
        {"question": "What is 1 + 1?", "answer": "1+1 = <<1+1=2>>2, and 2*3 = <<2*3=6>>6"}) + "\n"
    Path("two.jsonl").write_text(line * 2, encoding="utf-8")
    assert run("make", "rft", "--teacher", "tiny", "--dataset", "two.jsonl", "--output-dir",
               "rft") == 0
    assert read("rft/result.json")["dropped"]["the same row again"] == 1
    assert run("make", "rft", "--teacher", "tiny", "--dataset", "two.jsonl", "--style", "boxed",
               "--output-dir", "styled") == 1
    assert read("styled/result.json")["dropped"]["states no answer"] == 1


def test_what_comes_to_nothing_is_an_error_with_its_reasons(capsys):
    write_problems(Path("bare.jsonl"), [Problem("a", "What is 1 + 1?", "#### 2", "2")])
    assert run("make", "perturb", "--dataset", "bare.jsonl", "--output-dir", "out") == 1
    assert "perturb: made no row (1 " in capsys.readouterr().err
    assert sum(
        read("out/result.json")["dropped"].values()) == 1 and not Path("out/data.jsonl").exists()


@pytest.mark.parametrize(
    "words, said",
    [([], "say what to do"), (["bake"], "make|filter|recipe"),
     (["make"], "the following arguments are required"), (["make", "bread"], "invalid choice"),
     (["make", "rft"], "rft asks a teacher"), (["make", "tutor"], "--student names whose attempts"),
     (["make", "retro", "--student", "tiny"], "--student names whose attempts"),
     (["make", "rft", "--teacher", "tiny", "--api-model", "m"
       ], "--teacher means nothing to a server"),
     (["make", "queries", "--teacher", "tiny"], "by majority"),
     (["make", "perturb", "--teacher", "tiny"], "by majority"),
     (["make", "rft", "--teacher", "tiny", "--samples", "2"], "needs a --temperature"),
     (["make", "rft", "--api-model", "m"], "--api-base"), (["filter", "a.jsonl"], "TARGET"),
     (["filter", "a.jsonl", "b.jsonl", "--by", "level"], "--by says how --sample chooses"),
     (["recipe", "cake", "b.jsonl"], "invalid choice"), ])  # fmt: skip
def test_wrong_words_are_a_usage_error_and_leave_nothing(words, said, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert run(*words) == 2 and said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_help_of_each_command(capsys):
    assert run("--help") == 0 and "make rft" in capsys.readouterr().out
    for words, shown in (("make", "--agreement"), ("filter", "--dedup"), ("recipe",
                                                                          "mugglemath-15k")):
        with pytest.raises(SystemExit):
            augment.main([words, "--help"])
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize("command", [
    ["make", "perturb", "--limit", "1", "--dataset", "odd.jsonl"],
    ["filter", "odd.jsonl", "out.jsonl", "--against", "none"],
    ["export", "odd.jsonl", "out.jsonl"]], ids=lambda words: words[0])
def test_columns_of_other_names_are_read_by_each_command(command, capsys):
    row = {"instruction": "Tom has 3 apples and buys 4 more. How many apples are there?",
           "target": "3 + 4 = <<3+4=7>>7\n#### 7"}
    Path("odd.jsonl").write_text(json.dumps(row) + "\n")
    assert run(*command) != 0
    assert "columns" in capsys.readouterr().err
    assert run(*command, "--columns", "question=instruction,solution=target") == 0
    made = next(Path(".").glob("runs/*/data.jsonl"), Path("out.jsonl"))
    found = made.read_text()
    assert "apples" in found and ("<<3+4=7>>7" in found or command[0] == "make")


def test_rows_that_become_no_problem_are_counted_by_each_command(capsys):
    row = {"question": "Tom has 3 apples and buys 4 more. How many apples are there?",
           "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    rows = [row, row | {"is_correct": False}, row | {"label": False}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"marked as wrong by is_correct": 1, "marked as wrong by label": 1}
    assert run("make", "perturb", "--dataset", "in.jsonl", "--output-dir", "made") == 0
    dropped = read("made/result.json")["dropped"]
    assert counts.items() <= dropped.items() and "1 left out: marked" in capsys.readouterr().out
    assert run("filter", "in.jsonl", "out.jsonl", "--against", "none") == 0
    assert read("out.report.json")["steps"][0]["dropped"] == counts
    assert run("export", "in.jsonl", "rows.jsonl") == 0
    line = "left out   2 rows: 1 marked as wrong by is_correct, 1 marked as wrong by label\n"
    assert capsys.readouterr().out.count(line) == 2


# ------------------------------------------------------------------------------------------- filter


def rows() -> list[Problem]:
    texts = [("What is 1 + 1 today?", "The answer is: $2$", "2"),
             ("What is 1 + 1  today?", "The answer is: $2$", "2"),
             ("What is 5 - 1?", "5-1 = <<5-1=3>>3\n#### 3", "3"),
             ("Solve for x.", r"So \boxed{\frac12}", r"\frac12"),
             ("A question of the test.", "#### 7", "7"), ("Say something.", "No.", ""),
             ("What is 2 + 2?", "#### 4", "4")]
    return [Problem(f"row {number}", *text) for number, text in enumerate(texts)]


def test_filter_drops_what_each_step_is_for_and_says_so(capsys):
    write_problems(Path("in.jsonl"), rows())
    write_problems(Path("test.jsonl"), [Problem("t", "A question of the test.", "", "7")])
    assert run("filter", "in.jsonl", "out.jsonl", "--style", "gsm8k", "--numeric", "--against",
               "test.jsonl") == 0
    kept = read_problems(Path("out.jsonl"))
    assert [(problem.id, problem.solution) for problem in kept] == [("row 0", "#### 2"),
                                                                    ("row 6", "#### 4")]
    report = read("out.report.json")
    assert report["rows"] == 2 and report["tests"] == ["test.jsonl"]
    reasons = {
        reason: count
        for step in report["steps"]
        for reason, count in step["dropped"].items()
    }
    assert sum(reasons.values()) == 5 and all(count == 1 for count in reasons.values())
    shown = capsys.readouterr().out
    assert all(reason in shown for reason in reasons)


def test_rows_that_overlap_a_test_are_kept_only_on_request_and_marked():
    write_problems(Path("in.jsonl"), rows()[4:5])
    write_problems(Path("test.jsonl"), [Problem("t", "A question of the test.", "", "7")])
    assert run("filter", "in.jsonl", "out.jsonl", "--against", "test.jsonl") == 1  # nothing is left
    assert not Path("out.jsonl").exists()
    assert run("filter", "in.jsonl", "out.jsonl", "--against", "test.jsonl", "--keep-overlap") == 0
    assert read_problems(Path("out.jsonl"))[0].origin == {"overlap": "test.jsonl"}


def test_test_sets_that_are_not_here_are_named_and_not_said_to_be_checked(capsys):
    write_problems(Path("in.jsonl"), rows())
    assert run("filter", "in.jsonl", "out.jsonl") == 0
    assert capsys.readouterr().err.count("not checked for overlap") == 4 and read(
        "out.report.json")["tests"] == []
    assert run("filter", "in.jsonl", "again.jsonl", "--against",
               "gsm8k") == 1  # asked for by name it must be there


def test_a_held_out_question_has_no_twin_among_the_rows():
    rows = [
        Problem(f"{n}", " ".join(f"word{n}of{k}" for k in range(15)), f"#### {n}", f"{n}")
        for n in range(20)
    ]
    twins = [Problem(f"twin {p.id}", f"{p.question} or not", p.solution, p.answer) for p in rows]
    write_problems(Path("in.jsonl"), rows + twins)
    assert run("filter", "in.jsonl", "out.jsonl", "--against", "none", "--dedup", "none", "--split",
               "0.2") == 0
    held, kept = ([p.id.removeprefix("twin ") for p in read_problems(Path(name))]
                  for name in ("out-held-out.jsonl", "out.jsonl"))
    assert len(held) == 8 and kept and not set(held) & set(kept)


def test_nothing_is_overwritten_and_a_split_has_two_files(capsys):
    write_problems(
        Path("in.jsonl"),
        [Problem(f"{n}", f"What is {n} + 1?", f"#### {n + 1}", f"{n + 1}") for n in range(40)])
    assert run("filter", "in.jsonl", "out.jsonl", "--against", "none", "--sample", "20", "--split",
               "0.25") == 0
    both = [read_problems(Path(name)) for name in ("out.jsonl", "out-held-out.jsonl")]
    assert [len(side)
            for side in both] == [15, 5] and not {p.id
                                                  for p in both[0]} & {p.id
                                                                       for p in both[1]}
    for name in ("out.jsonl", "out.report.json", "out-held-out.jsonl"):
        before = Path(name).read_bytes()
        assert run("filter", "in.jsonl", "out.jsonl", "--against", "none", "--split", "0.25") == 1
        assert "nothing is overwritten" in capsys.readouterr().err and Path(
            name).read_bytes() == before
        Path(name).unlink()


# ------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("form, keys", [("messages", {"messages"}),
                                        ("prompt-completion", {"prompt", "completion"}),
                                        ("alpaca", {"instruction", "input", "output", "system",
                                                    "history"})])
def test_rows_for_other_trainers_read_back_as_the_same_turns(form, keys, capsys):
    chat = [{"role": role, "content": text} for role, text in [
        ("system", "Add."), ("user", "1+1?"), ("assistant", "2"), ("user", "and 2?"),
        ("assistant", "#### 4")]]
    rows = [{"messages": chat}, {"question": "q", "answer": "so #### 1"},
            {"problem": "only asked", "answer": "5"},
            {"messages": [*chat[:-1], chat[-1] | {"weight": 0}]}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("export", "in.jsonl", "out.jsonl", "--form", form) == 0
    assert "2 rows to out.jsonl, 2 with nothing to learn left out" in capsys.readouterr().out
    first, second = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert first.keys() == keys and second.keys() == keys - {"system", "history"}
    problems = read_problems(Path("out.jsonl"))
    assert list(problems[0].messages) == chat and problems[0].answer == "4"
    assert (problems[1].question, problems[1].solution) == ("q", "so #### 1")
    assert run("export", "in.jsonl", "out.jsonl") == 1  # nothing is overwritten
    assert "exists, and nothing is overwritten" in capsys.readouterr().err


def test_a_form_that_cannot_say_a_chat_is_refused(capsys):
    chat = [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"}]
    Path("in.jsonl").write_text(json.dumps({"messages": chat}))
    assert run("export", "in.jsonl", "out.jsonl", "--form", "alpaca") == 1
    assert "in.jsonl:1: its turns do not alternate" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


# ------------------------------------------------------------------------------------------- recipe


def test_the_papers_recipe_end_to_end(capsys):
    lines = [{
        "query": f"What is {n} + {n}, thing {'abcdefghij'[n % 10] * (n // 10 + 1)}?",
        "response": f"It is.\nThe answer is: ${2 * n}$"
    } for n in range(400)]
    Path("aug.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines),
                                 encoding="utf-8")
    assert run("recipe", "mugglemath-15k", "out.jsonl", "--source", "aug.jsonl", "--against",
               "none") == 0
    kept = read_problems(Path("out.jsonl"))
    assert 20 < len(kept) < 80 and all(problem.solution == f"It is.\n#### {problem.answer}"
                                       for problem in kept)
    assert run("recipe", "mugglemath-15k", "again.jsonl", "--source", "aug.jsonl", "--against",
               "none") == 0
    assert Path("again.jsonl").read_text() == Path("out.jsonl").read_text()
    assert "sample with probability 0.12" in capsys.readouterr().out
