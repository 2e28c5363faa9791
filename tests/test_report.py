"""report.py: one page that loads nothing, shows what a model wrote as text, and opens fast."""

import json
import re
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, opened_browser

from data import Problem
from flags import run_command
from report import Checked, by_confidence, label_of, main, page, read_subjects, write_page
from score import record_of, summarise

EVIL = '</script><script>document.title = "run"</script><img src=x onerror="document.title = 1">'


def problem(number: int) -> Problem:
    return Problem(f"p/{number}", f"What is {number} + 1?", "", str(number + 1),
                   str(number % 3 + 1), "sums" if number % 2 else "")


def some_records(count: int, wrong=lambda number: False, samples: int = 1, text: str = "") -> list:
    """Graded completions; those of `wrong` numbers say another value, each tenth is cut in its
    answer."""
    return [record_of(problem(n), n, s, f"{text}So it is\n#### {n + 1 + wrong(n)}", 9,
                      "length" if n % 10 == 9 else "stop", -0.01 * (n % 7))
            for n in range(count) for s in range(samples)]


def before_training() -> list[dict]:
    return some_records(60, lambda number: number % 3 == 0)


def after_training() -> list[dict]:
    return some_records(60, lambda number: number % 5 == 0)


def write_evaluation(folder, records: list, **more) -> None:
    folder.mkdir(parents=True)
    (folder / "generations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "args.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps(summarise(records) | more))


@pytest.fixture
def run(tmp_path):
    """A run: before training each third problem is wrong, and after it each fifth."""
    folder = tmp_path / "run-1"
    write_evaluation(folder / "evals" / "before", before_training())
    write_evaluation(folder / "evals" / "after", after_training())
    (folder / "args.json").write_text(json.dumps({"method": "any", "model": "tiny <b>", "seed": 3}))
    (folder / "result.json").write_text(json.dumps(
        {"accuracy_after": 0.8, "ci95_after": [0.7, 0.9], "train_seconds": 12.5,
         "peak_memory_mib": 99, "seed": 3}))
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5, "reward": 0.25}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    return folder


class Elements(HTMLParser):
    """The elements of a page with what they name, and the text in its data."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.names, self.data, self.inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.names += [name for name, _ in attributes]
        self.inside = ("id", "data") in attributes

    def handle_data(self, text):
        if self.inside:
            self.data, self.inside = text, False


def test_the_page_holds_what_the_run_has(run, capsys):
    assert run_command(main, [str(run)]) == 0
    assert "2 evaluations, 120 completions" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "80.0 % (70.0 to 90.0)" in text and "tiny &lt;b&gt;" in text and "12.5" in text
    for title in ("accuracy", "loss by step", "reward by step", "right by confidence",
                  "training time, seconds", "peak memory, MiB"):
        assert f"<h3>{title}</h3>" in text, title
    data = json.loads(Elements(text).data)
    assert [e["name"] for e in data["evaluations"]] == ["run-1 / before", "run-1 / after"]
    assert (data["shown"], data["beside"]) == (1, 0)
    assert data["problems"][4] == ["p/4", "What is 4 + 1?", "5", "2", ""]
    assert data["evaluations"][0]["records"][3] == [3, 0, "So it is\n#### 5", "5", False, False, 9,
                                                    0.9704]


def test_a_run_named_by_a_hash_is_shown_by_what_it_is(run, tmp_path):
    """study.py names a run LABEL-HASH: the hash stays, and the table has the folder's own name."""
    hashed = run.rename(tmp_path / "mathft-lora-0123abcdef")
    settings = {"method": "any", "objective": "grpo", "dataset": "study/made/data.jsonl",
                "steps": 24, "epochs": None, "seed": 3}
    (hashed / "args.json").write_text(json.dumps(settings))
    text = page(read_subjects([hashed]))
    names = [e["name"] for e in json.loads(Elements(text).data)["evaluations"]]
    shown = "any grpo made 24 steps seed 3 · 0123abcdef"
    assert names == [f"{shown} / before", f"{shown} / after"]
    assert ">mathft-lora-0123abcdef</td>" in text


@pytest.mark.parametrize("name, settings, shown", [
    ("lora-mini-gsm-1", {"method": "lora"}, "lora-mini-gsm-1"),
    ("evaluate-mini-gsm-0123abcdef", {"dataset": "mini-gsm"}, "evaluate-mini-gsm-0123abcdef"),
    ("x-0123abcdef", {"method": "sft", "dataset": "mini-gsm", "epochs": 2.0, "seed": 0},
     "sft mini-gsm 2.0 epochs seed 0 · 0123abcdef"),
    ("x-0123abcdef", {"method": "sft", "seed": 0, "dataset":
                      f"study/gold/data.jsonl,{'long-' * 20}/made/data.jsonl,rows.jsonl"},
     "sft gold+made+rows seed 0 · 0123abcdef"),
    ("x-0123abcdef", {"method": 7, "objective": ["a"], "dataset": None, "seed": 0},
     "7 ['a'] seed 0 · 0123abcdef"),
])
def test_labels(name, settings, shown):
    assert label_of(name, Checked("args.json", settings)) == shown


def test_the_page_loads_nothing(run):
    """Everything is in the file, and the page itself forbids what could be put into it."""
    text = page(read_subjects([run]))
    found = Elements(text)
    assert not {"src", "href", "style", "onclick", "onload"} & set(found.names)
    assert not re.search(r"https?:|@import|url\(", text)
    assert found.tags.count("script") == 2 and found.tags.count("style") == 1
    assert "default-src 'none'; style-src 'sha256-" in text


def test_what_a_model_writes_stays_text(run):
    plain = Elements(page(read_subjects([run]))).tags
    records = some_records(60, text=EVIL)
    records[5] |= {"question": EVIL, "gold": EVIL, "level": EVIL, "subject": EVIL, "id": EVIL,
                   "answer": EVIL}
    records[6]["text"] = "\ud800 \u2028 <!-- <script>"
    (run / "evals" / "after" / "generations.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records))
    found = Elements(page(read_subjects([run])))
    assert sorted(found.tags) == sorted(plain)
    written = json.loads(found.data)["evaluations"][1]["records"]
    assert written[5][2].startswith(EVIL) and written[6][2] == "\ud800 \u2028 <!-- <script>"


def test_several_samples_show_their_votes(tmp_path):
    folder = tmp_path / "eval"
    write_evaluation(folder, some_records(20, samples=4),
                     greedy={"accuracy": 0.5, "ci95": [0.25, 0.75]},
                     verifier={"calibration": [{"score": 0.2, "right": 0.3}]})
    write_evaluation(folder / "greedy", some_records(20))
    text = page(read_subjects([folder]))
    assert ">eval: pass@k<" in text and ">eval: majority<" in text
    assert "50.0 % (25.0 to 75.0)" in text and "right by the verifier" in text
    assert ">eval / greedy<" in text


def test_confidence_is_read_in_groups_of_equal_size():
    records = [{"mean_log_prob": -1.0 + n / 100, "correct": n >= 50} for n in range(100)]
    groups = by_confidence(records)
    assert [right for _, right in groups] == [0.0] * 5 + [1.0] * 5
    assert groups == sorted(groups) and len(groups) == 10
    assert by_confidence(records[:49]) == []
    assert by_confidence([{"mean_log_prob": None, "correct": True}] * 100) == []


def test_an_unfinished_evaluation_is_shown_as_such(run):
    (run / "evals" / "after" / "result.json").unlink()
    (run / "result.json").unlink()
    assert "unfinished: 60 completions so far" in page(read_subjects([run]))


def test_a_run_that_is_named_twice_is_shown_once(run, tmp_path):
    assert len(read_subjects([run, run / "." ])) == 1
    write_evaluation(tmp_path / "other" / "run-1", some_records(3))
    names = [s.name for s in read_subjects([run, tmp_path / "other" / "run-1"])]
    assert names == [str(run), str(tmp_path / "other" / "run-1")]


@pytest.mark.parametrize("file, text, said", [
    ("metrics.jsonl", '{"step": 1}\n{oops\n', "metrics.jsonl:2: not valid JSON"),
    ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl:1: no line of a log"),
    ("metrics.jsonl", "[" * 100_000 + "\n", "metrics.jsonl:1: not valid JSON (too deep)"),
    ("metrics.jsonl", '{"step": 1, "loss": 1e999}\n', "metrics.jsonl:1: not valid JSON (1e999"),
    ("metrics.jsonl", '{"step": 1, "loss": NaN}\n', "metrics.jsonl:1: not valid JSON"),
    ("metrics.jsonl", '{"step": "x", "loss": 2}\n', "metrics.jsonl:1: step is 'x'"),
    ("metrics.jsonl", b'{"step": 1, "x": "\xff"}\n', "metrics.jsonl:1: not valid JSON"),
    ("result.json", '{"train_seconds": ' + "9" * 400 + "}", "train_seconds is beyond 64 bits"),
    ("result.json", '{"train_seconds": true}', "result.json: train_seconds is True"),
    ("result.json", '{"ci95_before": [1], "accuracy_before": 1}', "not two numbers"),
    ("result.json", '{"ci95_before": [{}, 1], "accuracy_before": 1}', "low is {}"),
    ("result.json", "[]", "result.json: holds a list"),
    ("evals/after/result.json", '{"votes": 3}', "votes is 3, no JSON object"),
    ("evals/after/result.json", '{"pass_at_k": {"1": "x"}}', "1 is 'x'"),
    ("evals/after/result.json", '{"verifier": {"calibration": 7}}', "calibration is no list"),
    ("evals/after/generations.jsonl", "{}\n", "generations.jsonl:1: no record"),
    ("args.json", None, "neither a run nor an evaluation"),
])
def test_a_broken_file_is_one_line(run, capsys, file, text, said):
    path = run / file
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run_command(main, [str(run)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and str(run) in error and len(error) < 400
    assert not (run / "report.html").exists()


def test_a_record_without_a_verdict_says_how_to_grade_it(run, capsys):
    path = run / "evals" / "after" / "generations.jsonl"
    path.write_text(json.dumps(some_records(1)[0] | {"correct": "yes"}) + "\n")
    assert run_command(main, [str(run)]) == 1
    assert "evaluate.py --regrade" in capsys.readouterr().err


def test_only_a_report_is_written_over(run, capsys):
    (run / "mine.html").write_text("my own page")
    assert run_command(main, [str(run), "--output", str(run / "mine.html")]) == 1
    assert (run / "mine.html").read_text() == "my own page"
    for _ in range(2):
        assert run_command(main, [str(run), "--output", str(run / "new.html")]) == 0
    assert run_command(main, []) == 2 and run_command(main, ["--output", "x"]) == 2
    assert run_command(main, [str(run / "none")]) == 1
    assert "none: neither a run" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- in a browser

in_browser = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")]


def slow(test):
    for mark in in_browser:
        test = mark(test)
    return test


def count(opened) -> str:
    return opened.run("document.getElementById('count').textContent")


def choose(opened, name: str, value: str) -> str:
    opened.run(f"""(() => {{ const box = document.getElementById({json.dumps(name)});
        box.value = {json.dumps(value)}; box.dispatchEvent(new Event(
        box.tagName === "INPUT" ? "input" : "change")); }})()""")
    return count(opened)


@slow
def test_filters_side_by_side_and_keys(run, tmp_path):
    write_page([run], tmp_path / "page.html")
    with opened_browser() as opened:
        opened.open(tmp_path / "page.html")
        before, after = before_training(), after_training()
        right = sum(r["correct"] for r in after)
        assert count(opened) == (f"60 of 60 completions, {right} of them right "
                                 f"({100 * right / 60:.1f} %)")
        assert choose(opened, "verdict", "wrong").startswith(f"{60 - right} of 60")
        assert choose(opened, "verdict", "cut").startswith("6 of 60")
        assert choose(opened, "verdict", "none").startswith("6 of 60 completions, 0 of them")
        choose(opened, "verdict", "")
        pairs = [(was["correct"], now["correct"]) for was, now in zip(before, after)]
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        assert choose(opened, "change", "gained").startswith(
            f"{gained} of 60 completions, {gained}")
        assert choose(opened, "change", "lost").startswith(f"{lost} of 60 completions, 0")
        assert choose(opened, "change", "changed").startswith(f"{gained + lost} of 60")
        changed = sum(was != now for was, now in pairs[1::3])  # those of level 2
        assert choose(opened, "level", "2").startswith(f"{changed} of 60")
        choose(opened, "level", ""), choose(opened, "change", "")
        assert choose(opened, "subject", "sums").startswith("30 of 60")
        choose(opened, "subject", "")
        assert choose(opened, "word", "IS 17 +").startswith("1 of 60")
        choose(opened, "word", "")
        shown = "[...document.querySelectorAll('.side strong')].map((name) => name.textContent)"
        assert opened.run(shown) == ["run-1 / after", "run-1 / before"]
        question = "document.querySelector('.question').textContent"
        for key, expected in (("j", "What is 1 + 1?"), ("ArrowDown", "What is 2 + 1?"),
                              ("k", "What is 1 + 1?"), ("w", "What is 0 + 1?"),
                              ("j", "What is 5 + 1?"), ("w", "What is 0 + 1?")):
            opened.press(key)
            assert opened.run(question) == expected, key
        opened.press("s")
        assert opened.run(shown) == ["run-1 / before", "run-1 / after"]
        opened.press("/")
        assert opened.run("document.activeElement.id") == "word"
        opened.press("w")  # in a field it is a letter
        assert opened.run("document.getElementById('verdict').value") == ""
        assert opened.console == []


@slow
def test_a_script_in_a_completion_never_runs(run, tmp_path):
    records = some_records(12, text=EVIL)
    for record in records:
        record |= {"question": EVIL, "level": EVIL, "subject": EVIL, "answer": EVIL, "id": EVIL}
    write_evaluation(run / "evals" / EVIL.replace("/", "_"), records)
    write_page([run], tmp_path / "page.html")
    with opened_browser() as opened:
        opened.open(tmp_path / "page.html")
        title = opened.run("document.title")
        choose(opened, "shown", "1")
        for _ in range(11):
            opened.press("j")
        assert EVIL in opened.run("document.querySelector('.side .text').textContent")
        assert opened.run("document.title") == title == "mathft: run-1"
        assert opened.run("document.images.length") == 0
        assert opened.console == []
        # The page's policy stops a script that got in all the same, and anything it would load.
        opened.run("document.body.append(document.createRange().createContextualFragment("
                   "'<script>document.title = 1</script><img src=\"http://127.0.0.1:9/x\">'))")
        assert opened.run("document.title") == title
        assert any("Content Security Policy" in line for line in opened.console)


@slow
def test_ten_thousand_completions_open_within_two_seconds(tmp_path):
    records = some_records(10_000, lambda n: n % 4 == 0, text="one line of a long solution\n" * 20)
    write_evaluation(tmp_path / "big", records)
    write_page([tmp_path / "big"], tmp_path / "page.html")
    with opened_browser() as opened:
        # Of three: the first waits for the browser's own start, and others may be at work.
        seconds = min(opened.open(tmp_path / "page.html") for _ in range(3))
        assert count(opened).startswith("10000 of 10000 completions, 6500")  # cut ones are wrong
        assert seconds < 2, seconds
        assert opened.run("document.querySelectorAll('.row').length") < 60
        opened.run("document.getElementById('list').scrollTop = 5000 * 28")
        opened.run("new Promise((done) => setTimeout(done, 100))")
        assert "What is 5000 + 1?" in opened.run("document.getElementById('list').textContent")
        took = opened.run("""(() => { const start = performance.now();
            document.getElementById('word').value = 'is 99';
            filter(); return performance.now() - start; })()""")
        assert took < 1000 and "of 10000" in count(opened)
        assert opened.console == []
