"""teacher.py: raw replies that outlive everything, asked of a server or of models of our own."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from checkpoint import load_model
from children import Child
from flags import run_command
from methods import Run
from recipes import client
from recipes import teacher as module
from recipes.teacher import LocalTeacher, ask
from runtime import UsageError, UserError
from stand_in import (KEY, answer_to, api, body_of, chats_of,  # noqa: F401 (two are fixtures)
                      lines_of, nasty, quick, serve)
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def test_a_thousand_questions_none_lost_none_asked_twice(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "MOST_BYTES", 200_000)
    server = serve(nasty)
    questions = [f"What is {n} + {n}?" for n in range(1000)]
    teacher = api(server, concurrency=32, timeout=1.5)
    answers = ask(teacher, chats_of(*questions), tmp_path)
    assert [replies[0].text for replies in answers.replies] == [
        answer_to(question) for question in questions
    ]
    assert (answers.asked, answers.stored, answers.lost) == (1000, 0, 0) and answers.retries > 300
    assert all(server.answered[question] == 1
               for question in questions)  # none was asked again once it had answered
    requests = len(server.bodies)
    assert requests == 1000 + answers.retries == len(lines_of(tmp_path))
    assert answers.new_tokens >= 5000 and answers.prompt_tokens >= 7000
    assert {line["status"] for line in lines_of(tmp_path)} == {0, 200, 408, 429, 500, 503}
    assert (tmp_path /
            "replies.jsonl").stat().st_size < 30e6  # of a flood only its beginning is kept

    again = ask(teacher, chats_of(*questions), tmp_path)
    assert again.replies == answers.replies and len(server.bodies) == requests
    assert (again.asked, again.stored, again.retries) == (0, 1000, 0)
    assert (again.prompt_tokens, again.new_tokens) == (answers.prompt_tokens, answers.new_tokens)


ASKER = """
import sys
from pathlib import Path
from recipes import client, teacher
client.sleep = lambda seconds: None
asker = client.ApiTeacher(name="m", base=sys.argv[1], timeout=20.0, concurrency=8)
questions = [f"What is {n} + {n}?" for n in range(300)]
chats = [[{"role": "user", "content": question}] for question in questions]
teacher.ask(asker, chats, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(number, serve, tmp_path):
    def behave(handler, question, attempt):
        time.sleep(0.01)
        handler.good(question)

    server = serve(behave)
    child = Child(ASKER, server.base, tmp_path)
    while sum(server.answered.values()) < 100 and child.process.is_alive():
        time.sleep(0.005)
    os.kill(child.pid, number)
    start = time.perf_counter()
    done = child.end(timeout=20)
    assert done.returncode == -number and time.perf_counter() - start < 5
    if number == signal.SIGINT:
        assert re.search(
            r"\d+ of 300 replies are in .*replies.jsonl; the same into this folder goes on",
            done.stderr)
    time.sleep(0.1)  # what is under way ends
    before = sum(server.answered.values())
    with open(tmp_path / "replies.jsonl", "ab") as file:
        file.write(b'{"key": "half a li')
    answers = ask(api(server, key=""), chats_of(*(f"What is {n} + {n}?" for n in range(300))),
                  tmp_path)
    assert [replies[0].text for replies in answers.replies] == [
        answer_to(f"What is {n} + {n}?") for n in range(300)
    ]
    assert answers.stored >= 60 and answers.asked == 300 - answers.stored
    twice = sum(count - 1 for count in server.answered.values())
    assert twice == before - answers.stored <= 16  # only what was under way when it was struck
    assert len(lines_of(tmp_path)) == 300  # the half line is gone


# ------------------------------------------------------------------------------------ what is asked


def test_a_request_holds_what_is_meant_and_no_more(serve, tmp_path):
    server = serve()
    ask(api(server, system="Add.", max_new_tokens=9), chats_of("1 + 1"), tmp_path)
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}]
    body = {
        "model": "m", "messages": messages, "max_tokens": 9, "temperature": 0.0
    }  # no key that says nothing: a server may refuse it
    assert server.bodies == [body]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    ask(api(server, key=""), chats_of("1 + 1"), tmp_path)
    assert "Authorization" not in server.headers[1] and server.bodies[1]["messages"] == messages[1:]


def test_each_sample_is_a_request_with_a_seed_of_its_own(serve, tmp_path):
    server = serve(lambda handler, question, attempt: handler.good(
        question, f"by {handler.server.bodies[-1]['seed']}"))
    teacher = api(server, temperature=0.7, top_p=0.9, seed=5, concurrency=1, stream=True)
    answers = ask(teacher, chats_of("a", "b"), tmp_path, samples=3)
    assert [[reply.text for reply in replies] for replies in answers.replies
            ] == [["by 5", "by 6", "by 7"]] * 2
    assert {(body["temperature"], body["top_p"], body["stream"])
            for body in server.bodies} == {(0.7, 0.9, True)}
    assert ask(teacher, chats_of("a", "b"), tmp_path,
               samples=4).asked == 2  # more samples: the new ones alone


def test_the_store_answers_what_was_asked_and_nothing_else(serve, tmp_path):
    server = serve()
    ask(api(server), chats_of("a", "b", "a"), tmp_path)
    assert len(server.bodies) == 2  # equal chats share their replies
    for change, asked in [({}, 0),
                          ({"base": server.base + "/", "key": "", "concurrency": 1,
                            "stream": True}, 0), ({"name": "other"}, 1), ({"temperature": 0.5}, 1),
                          ({"seed": 1}, 1), ({"system": "x"}, 1), ({"max_new_tokens": 3}, 1),
                          ({"top_p": 0.5}, 1)]:
        assert ask(api(server, **change), chats_of("a"), tmp_path).asked == asked, change
    lines = lines_of(tmp_path)
    assert all(line["request"]["messages"][-1]["content"] in "ab"
               for line in lines)  # what each line answers


@pytest.mark.parametrize("line", [
    "nonsense", "[1]", '{"key": "x"}', "[" * 100_000,
    '{"key": "x", "sample": 0, "status": 200, "fault": "", "raw": {}}'
])
def test_what_is_no_stored_reply_is_named(line, serve, tmp_path):
    (tmp_path / "replies.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="replies.jsonl:1: no stored reply; remove that line"):
        ask(api(serve()), chats_of("a"), tmp_path)


def test_no_chats_no_questions(serve, tmp_path):
    assert ask(api(serve()), [], tmp_path).replies == []


# --------------------------------------------------------------------------------------- of our own


@pytest.fixture(scope="module")
def run(tiny_folder) -> Run:
    return Run(load_model(tiny_folder, "cpu", torch.float32, torch.float32), Tokenizer(tiny_folder),
               None, "Add.", {})


def test_a_checkpoint_of_our_own_is_asked_in_the_same_way(run, tmp_path, monkeypatch):
    local = LocalTeacher(name="small", run=run, temperature=1.0, max_new_tokens=8)
    chats = chats_of("a", "b", "c") + [
        chats_of("d")[0] + [{"role": "assistant", "content": "e"}] + chats_of("f")[0]
    ]
    whole = ask(local, chats, tmp_path / "whole", samples=2)
    assert (whole.asked, whole.retries, len(lines_of(tmp_path / "whole"))) == (8, 0, 8)
    replies = [reply for group in whole.replies for reply in group if reply]
    assert len(replies) + whole.lost == 8 and len({reply.text for reply in replies}) > 4
    assert all(reply.new_tokens <= 8 and reply.mean_log_prob < 0 for reply in replies)
    sent = lines_of(tmp_path / "whole")[0]["request"]["messages"]
    assert sent[0] == {"role": "system", "content": "Add."} and sent[-1]["role"] == "user"
    # A run that was cut short goes on to the same texts, in batches of any size.
    (tmp_path / "part").mkdir()
    lines = (tmp_path / "whole" / "replies.jsonl").read_text().split("\n")
    (tmp_path / "part" / "replies.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[4][:50])
    rest = ask(local, chats, tmp_path / "part", samples=2)
    assert rest.asked >= 5
    texts = [[[reply and reply.text for reply in group] for group in answers.replies]
             for answers in (rest, whole)]
    assert texts[0] == texts[1]
    monkeypatch.setattr(module, "generate", None)  # nothing is left to generate
    if not whole.lost:
        assert ask(local, chats, tmp_path / "part", samples=2).replies == rest.replies


def test_batches_do_not_share_their_chance(run, tmp_path, monkeypatch):
    """The same question at the same place of two batches: another sample."""
    monkeypatch.setattr(module, "LOCAL_BATCH", 1)
    local = LocalTeacher(name="small", run=run, temperature=1.0, max_new_tokens=12)
    texts = [
        ask(local, chats_of(*q), tmp_path / str(n)).replies
        for n, q in enumerate([("x", "a"), ("a", "x")])
    ]
    assert texts[0][1][0] != texts[1][0][0]


# -------------------------------------------------------------------------------------- the command


def test_the_command_with_a_server(serve, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda handler, question, attempt: handler.good(question, "\x1b[2J4"))
    monkeypatch.setenv("OPENAI_BASE_URL", server.base)
    words = ["2 + 2", "--api-model", "m", "--output-dir", str(tmp_path / "t")]
    for requests in (1, 0):
        assert run_command(module.main, words) == 0
        out, err = capsys.readouterr()
        assert out.startswith(
            " [2J4\ncost       ") and f"{requests} requests (0 of them again)" in out and err == ""
        assert "7 prompt tokens, 5 new tokens" in out
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    dead = serve(lambda handler, question, attempt: handler.send(body_of("")))
    assert run_command(module.main, [*words, "--api-base", dead.base, "--seed", "1"]) == 1
    out, err = capsys.readouterr()
    assert "(lost)" in out
    assert f"1 of 1 replies were lost; --output-dir {tmp_path / 't'} asks again" in err


def test_the_command_with_a_checkpoint(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "2 + 2", "--teacher",
        str(tiny_folder), "--temperature", "1", "--samples", "2", "--max-new-tokens", "8"
    ]
    assert run_command(module.main, words) in (0, 1)  # a random model may say nothing
    out = capsys.readouterr().out
    assert "--- sample 2 of 2\n" in out
    assert f"files      {Path('runs/teacher-1/replies.jsonl')}\n" in out


@pytest.mark.parametrize(
    "words, said",
    [(["q", "--api-base", "http://h/v1"
       ], "--api-base without --api-model: say which model of the server"),
     (["q", "--api-stream", "--teacher", "tiny"], "--api-stream without --api-model"),
     (["q"], "no teacher: name one of our own with --teacher, or a server's with --api-model"),
     (["q", "--api-model", "m"], "--api-model needs the server's address"),
     (["q", "--api-model", "m", "--api-base", "localhost:8000"
       ], "is no address such as https://HOST:PORT/v1"),
     (["q", "--api-model", "m", "--api-base", "https://me:pw@h/v1"], "without user or query"),
     (["q", "--api-model", "m", "--api-base", "http://h:99999/v1"], "is no address"),
     (["q", "--api-model", "m", "--api-base", "http://[/v1"], "is no address"),
     (["q", "--api-model", "m", "--api-base", "http://h/v 1"], "is no address"),
     (["q", "--api-model", "m", "--api-base", "http://h", "--teacher", "tiny"
       ], "--teacher means nothing to a server"),
     (["q", "--api-model", "m", "--api-base", "http://h", "--top-k", "3"
       ], "--top-k means nothing to a server"),
     (["q", "--api-model", "m", "--api-base", "http://h", "--dtype", "fp32"
       ], "--dtype means nothing to a server"),
     (["q", "--api-model", "m", "--api-base", "http://h", "--samples", "3"
       ], "needs a --temperature above 0"),
     (["q", "--api-concurrency", "0", "--teacher", "tiny"], "0 is below 1"),
     ([" ", "--teacher", "tiny"], "the question is empty"), ])
def test_wrong_flags(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(module.main, words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "pw" not in err
    assert not list(tmp_path.iterdir())


def test_a_key_that_no_header_can_hold_is_not_shown(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123\nX: y")
    assert run_command(module.main,
                       ["q", "--api-model", "m", "--api-base", "http://h/v1", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "OPENAI_API_KEY holds characters that no key has" in err and "sk-123" not in err


def test_neither_kind_is_named_twice(serve):
    with pytest.raises(UsageError, match="--run means nothing to a server"):
        from evaluate import Flags
        client.open_api(Flags(api_model="m", api_base=serve().base, run="runs/x"))


def test_a_server_is_evaluated_by_the_command(serve, tmp_path, capsys, monkeypatch):
    """Some replies are lost at first; the same command with the folder asks for these alone."""
    import evaluate

    monkeypatch.setattr(client, "ATTEMPTS", 2)
    well = []
    problems = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(
        json.dumps(problem) + "\n" for problem in problems))

    def behave(handler, question, attempt):
        number = int(question.split()[2])
        if number < 2 and not well:
            return handler.send("", 500)
        handler.good(question, f"#### {number + (number < 5)}")

    server = serve(behave)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    words = [
        "--api-base", server.base, "--api-model", "m", "--dataset",
        str(tmp_path / "sums.jsonl"), "--samples", "3", "--temperature", "0.5", "--output-dir",
        str(tmp_path / "e")
    ]
    assert run_command(evaluate.main, words) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"model      m at {server.base}\n" in out and "machine " not in out
    assert "lost 6 of 18 replies: 2 problem(s) left out below" in out
    assert "of 4 problems, mean of 3 samples" in out and "75.0%" in out and "majority of 3" in out
    assert "2 replies lost" in out and "weighted" not in out
    before = len(server.bodies)
    well.append(True)
    assert run_command(evaluate.main, words) == 0
    out = capsys.readouterr().out
    assert "lost" not in out.replace(
        "0 lost", "") and "of 6 problems, mean of 3 samples" in out and "83.3%" in out
    assert len(server.bodies) - before == 2 * 3 + 2
    assert run_command(evaluate.main, words) == 0 and len(server.bodies) - before == 2 * 3 + 2
    files = [path for path in (tmp_path / "e").rglob("*") if path.is_file()]
    assert len(files) == 8 and all(KEY not in path.read_text() for path in files)
    capsys.readouterr()
    assert run_command(
        evaluate.main,
        ["--regrade", str(tmp_path / "e"), "--versus",
         str(tmp_path / "e")]) == 0
    assert "0 gained, 0 lost" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ a real server


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    """transformers' own server with the embedded model, where its parts are installed: (address,
    name of the model)."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")):
        pytest.skip('needs pip install "transformers[serving]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(ROOT / "tiny")
    command = [
        sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve",
        folder, "--host", "127.0.0.1", "--port",
        str(port), "--dtype", "float32", "--device", "cpu"
    ]
    log = tmp_path_factory.mktemp("serve") / "log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment,
                                   cwd=log.parent)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [[], ["--api-stream"]])
def test_a_real_server_gives_the_answers_that_we_generate(stream, real_server, tmp_path, capsys):
    """Twenty problems, greedy, fp32: the same texts through the server and through generate.py."""
    import evaluate

    base, name = real_server
    common = ["--dataset", "mini-gsm", "--limit", "20", "--max-new-tokens", "256"]
    remote = [
        "--api-base", base, "--api-model", name, "--output-dir",
        str(tmp_path / "remote"), *stream
    ]
    assert run_command(evaluate.main, [*common, *remote]) == 0
    local = ["--dtype", "fp32", "--device", "cpu", "--output-dir", str(tmp_path / "local")]
    assert run_command(evaluate.main, [*common, *local, "--versus", str(tmp_path / "remote")]) == 0
    assert "0 gained, 0 lost" in capsys.readouterr().out
    ours, theirs = ([
        json.loads(line)
        for line in (tmp_path / part / "generations.jsonl").read_text().splitlines()
    ] for part in ("local", "remote"))
    for here, there in zip(ours, theirs, strict=True):
        same = ("id", "text", "finish", "answer", "correct")
        assert {key: here[key] for key in same} == {key: there[key] for key in same}
        assert there["tokens"] - here["tokens"] in (0, 1)  # the stop token is counted there
