"""Flags from a dataclass, and how a command ends: exit codes, one-line errors, signals."""

import io
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest
import torch

import children
from flags import Terminated, _main, check_stored, flag, given_flags, parse_flags, run_command
from runtime import UsageError, UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Flags:
    question: str | None = flag(None, "the question", positional=True)
    method: str = flag("sft", "how to tune", choices=("sft", "lora"))
    learning_rate: float = flag(1e-3, "step size", alias="--lr", least=0)
    max_new_tokens: int | None = flag(None, "length in tokens; by default what the model leaves")
    top_p: float = flag(1.0, "share of the mass kept, 100% = all", least=0, most=1)
    save: bool = flag(True, "save the result")
    system: str | None = flag(None, "system prompt", empty=True)


@dataclass
class Required:
    model: str = flag(MISSING, "which model")


def test_a_field_is_a_flag():
    assert parse_flags(Flags, []) == Flags()
    words = [
        "--method", "lora", "--lr", "0.1", "--max-new-tokens", "5", "--top-p=0.5", "--no-save",
        "why?"
    ]
    assert parse_flags(Flags, words) == Flags("why?", "lora", 0.1, 5, 0.5, False)
    assert parse_flags(Flags, ["-"]).question == "-"  # the usual name of stdin
    assert parse_flags(Flags, ["-3 + 5 is what?"]).question == "-3 + 5 is what?"


@pytest.mark.parametrize("words, part", [
    (["--unknown", "1"], "--unknown"),
    (["--learning", "1"], "--learning"),  # no abbreviations
    (["--method", "grpo"], "invalid choice"),
    (["--lr", "nan"], "not a finite number"),
    (["--lr", "-1"], "below 0"),
    (["--top-p", "1.5"], "above 1"),
    (["--max-new-tokens", "2.5"], "not a whole number"),
    (["one", "two"], "two"),
    (["--max-new-tokens", "9" * 5000], "not a whole number"),
    (["--max-new-tokens", str(2**63)], "is beyond 64 bits"),
    (["--lr", "1e400"], "not a finite number"),
    ([""], "argument QUESTION: is empty; give a value, or leave the flag out"),
])
def test_what_does_not_fit_is_an_error(words, part):
    with pytest.raises(UsageError, match=part):
        parse_flags(Flags, words)


def test_several_words_before_or_behind_the_flags():
    @dataclass
    class Several:
        """Folders."""

        folders: list[str] = flag(MISSING, "which", positional=True)
        output: str | None = flag(None, "where")

    for words in (["a", "b", "--output", "c"], ["--output", "c", "a", "b"]):
        assert parse_flags(Several, words) == Several(["a", "b"], "c")
    with pytest.raises(UsageError, match="required: FOLDERS"):
        parse_flags(Several, ["--output", "c"])


def test_help_names_the_part_of_a_command(capsys, monkeypatch):
    """`python augment.py filter --help` begins with `usage: augment.py filter`."""
    for words, argv, shown in ((["filter", "--help"], ["--help"], "a.py filter"),
                               (["--help"], ["--help"], "a.py"), (["x", "y"], ["--help"], "a.py")):
        monkeypatch.setattr("sys.argv", ["/where/a.py", *words])
        with pytest.raises(SystemExit):
            parse_flags(Required, argv)
        assert capsys.readouterr().out.startswith(f"usage: {shown} [-h]")


def test_a_text_is_empty_only_where_that_means_something():
    """A shell puts nothing in the place of a variable that is not set: --model "$MODEL"."""
    assert parse_flags(Flags, ["--system", ""]).system == ""
    with pytest.raises(UsageError, match="argument --model: is empty"):
        parse_flags(Required, ["--model", ""])


def test_required_flag():
    with pytest.raises(UsageError, match="--model"):
        parse_flags(Required, [])


@dataclass
class Extra:
    """Numbers for 100% of it.

    A second paragraph, which --help does not show.
    """

    rank: int = flag(8, "how many", alias="-r", least=1)


@dataclass
class SameName:
    """A field that another class has too."""

    method: str = flag("x", "again")


@dataclass
class SameAlias:
    """An alias that another class has too."""

    rate: int = flag(1, "again", alias="--lr")


def test_several_classes_stand_on_one_command(capsys):
    assert given_flags((Flags, Extra), ["why?", "-r", "2", "--method", "lora"]) == {
        "question": "why?", "rank": 2, "method": "lora"}
    assert given_flags((Flags, Extra), []) == given_flags(Flags, []) == {}
    with pytest.raises(UsageError, match="--rank"):
        given_flags(Flags, ["--rank", "2"])
    with pytest.raises(UsageError, match="below 1"):
        given_flags((Flags, Extra), ["--rank", "0"])
    with pytest.raises(SystemExit):
        given_flags((Flags, Extra), ["--help"], "What it does.")
    options, extra = capsys.readouterr().out.split("\nNumbers for 100% of it:\n")
    assert "--top-p" in options and "--rank" not in options.partition("options:")[2]
    assert "--rank" in extra and "--top-p" not in extra and "second paragraph" not in extra


@pytest.mark.parametrize("other, part", [(SameName, "method: .*Flags and of SameName"),
                                         (SameAlias, "SameAlias: .*--lr"), (Flags, "question")])
def test_a_flag_that_two_classes_have_is_an_error(other, part):
    with pytest.raises(ValueError, match=part):
        given_flags((Flags, other), [])


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(Flags, ["--help"], "What it does.")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for part in ("What it does.", "--learning-rate", "--lr", "(default: 0.001)", "100% = all",
                 "--no-save"):
        assert part in text
    assert "None" not in text


@pytest.mark.parametrize(
    "error, code, line",
    [(UserError("a.json:3: broken"), 1, "error: a.json:3: broken\n"),
     (UsageError("--lr: wrong"), 2, "error: --lr: wrong\n"),
     (KeyboardInterrupt(), 130, "interrupted\n"), (Terminated(), 143, "terminated\n"),
     (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: out of memory; "),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1,
      "error: out of memory; "),
     (UserError("a\x1b[2J\n.json: broken"), 1, "error: a [2J .json: broken\n"),
     (FileNotFoundError(2, "No such file", "x.txt"), 1, "error: x.txt: No such file\n"),
     (FileNotFoundError(2, "No such file", "x\x1b\n"), 1, "error: x  : No such file\n"), ])
def test_exit_codes(error, code, line, capsys):
    def main(argv):
        raise error

    assert run_command(main, []) == code
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1
    assert run_command(main, ["--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback():
    def main(argv):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        run_command(main, [])


def test_done_is_zero():
    assert run_command(lambda argv: None, []) == 0


def test_sigterm_is_raised_where_the_program_stands():
    def main(argv):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(main, []) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp932"])
def test_output_never_fails_on_an_encoding(encoding, monkeypatch):
    """What the terminal cannot show is an escape; also in an error."""
    def said(*words: str) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr of the command at the end of flags.py."""
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        code = run_command(_main, list(words))
        for stream in streams:
            stream.flush()
        return code, *(stream.buffer.getvalue() for stream in streams)

    code, out, error = said("naïve…")
    assert code == 0 and b"ve" in out and error == b""
    code, _, error = said("a", "\u202f…")
    assert code == 2 and error.startswith(b"error: ")


@pytest.mark.parametrize("words", [("answers.py", "½", "It is ½"), ("vote.py", "½", "½"),
                                   ("tokenizer.py", "tiny", "½…")])
def test_nor_does_that_of_a_command_without_flags(words):
    strict = "import sys; sys.stdout.reconfigure(encoding='ascii', errors='strict')\n"
    done = children.run(strict + children.PROGRAM, *words)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("values, said", [
    ({"method": "grpo"}, 'method is "grpo", none of sft, lora'),
    ({"method": None}, "method is null, not text"),
    ({"learning_rate": -1}, "learning_rate is -1, below 0"),
    ({"learning_rate": float("inf")}, "learning_rate is Infinity, not a finite number"),
    ({"max_new_tokens": True}, "max_new_tokens is true, not a whole number"),
    ({"max_new_tokens": 10**30}, "beyond 64 bits"), ({"save": 1}, "save is 1, not true or false"),
    ({"question": ["x"] * 99}, '…, not text')])
def test_stored_settings_are_held_against_their_flags(values, said):
    with pytest.raises(UserError) as error:
        check_stored((Flags,), values, Path("args.json"))
    assert str(error.value).startswith("args.json: ") and said in str(error.value)


def test_stored_settings_that_fit():
    whole = {"question": None, "method": "lora", "learning_rate": 1, "max_new_tokens": 2**63 - 1,
             "top_p": 0.5, "save": False, "of another class": []}
    check_stored((Flags, Required), whole, Path("args.json"))
    check_stored((Flags,), {}, Path("args.json"))


def test_a_closed_pipe_is_quiet():
    command = [sys.executable, str(ROOT / "flags.py"), "word", "--times", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == "word\n"
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_slip_gets_the_word_that_was_meant():
    """Of flags and of choices; what is near to nothing gets no guess."""
    @dataclass
    class Command:
        """A command."""

        dataset: str = flag("x", "problems", group="data")
        limit: int = flag(1, "how many")
        method: str = flag("lora", "which", choices=("lora", "prefix"), group="what trains")

    for words, said in ((["--datset", "y"], "; did you mean --dataset?; --help lists the flags"),
                        (["--limt=3"], "did you mean --limit?"),
                        (["--method", "lra"], "did you mean lora?")):
        with pytest.raises(UsageError) as error:
            parse_flags(Command, words)
        assert said in str(error.value)
    for words in (["--colour", "red"], ["--method", "qqq"], ["--limit", "lora"]):
        with pytest.raises(UsageError) as error:
            parse_flags(Command, words)
        assert "did you mean" not in str(error.value)


def test_help_has_headings(capsys):
    @dataclass
    class Command:
        """A command."""

        first: int = flag(1, "one")
        dataset: str = flag("x", "problems", group="data")
        limit: int = flag(1, "how many")
        seed: int = flag(0, "seed", group="machine")

    with pytest.raises(SystemExit):
        parse_flags(Command, ["--help"])
    out = capsys.readouterr().out
    places = [out.index(part) for part in ("--first N ", "data:", "--dataset TEXT  ", "--limit N  ",
                                           "machine:", "--seed N  ")]
    assert places[1:] == sorted(places[1:])


def test_a_word_that_is_no_text_is_refused():
    """A file's name may be any bytes; a setting is stored as text."""
    with pytest.raises(UsageError, match="no text in UTF-8"):
        parse_flags(Flags, ["--method", "runs/\udcff"])


def test_a_command_works_with_closed_streams(tmp_path, monkeypatch):
    """As under `>&- 2>&-`: Python then has None for them."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def work(argv):
        assert sys.stdin.read() == ""
        print("done")
        raise UserError("a: mend it")

    assert run_command(work, []) == 1 and not sys.stderr.isatty()


def test_a_removed_working_directory_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(lambda argv: None, []) == 1
    assert capsys.readouterr().err == (
        "error: the working directory has been removed; change to another\n")
