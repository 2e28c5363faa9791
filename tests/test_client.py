"""client.py: no server can confuse it, and what it must not do with a key it does not."""

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from flags import parse_flags
from recipes import client
from recipes.client import ApiTeacher, Reply, read_reply, seconds_to_wait
from recipes.teacher import TeacherFlags, ask
from runtime import UsageError, UserError
from stand_in import (KEY, answer_to, api, body_of, chats_of,  # noqa: F401 (two are fixtures)
                      lines_of, quick, serve, stream_of)

# ---------------------------------------------------------------------------------- what is replied


@pytest.mark.parametrize(
    "raw, reply",
    [
        (body_of("4"), Reply("4", "", "stop", 7, 5)),
        (body_of("4", reasoning_content="2 + 2"), Reply("4", "2 + 2", "stop", 7, 5)),
        (body_of("4", reasoning="2 + 2"), Reply("4", "2 + 2", "stop", 7, 5)),
        (stream_of("so| |4"), Reply("so 4", "", "stop", 7, 5)),
        (stream_of("4", finish=None), Reply("4", "", "stop", 7, 5)),  # [DONE] alone is an end
        (stream_of("4", end=""), Reply("4", "", "stop", 7, 5)),  # and so is a reason
        ('data:{"choices":[{"delta":{"reasoning_content":"hm","content":null}}]}\n'
         'data: {"choices":[{"delta":{"content":"\u20284"},"finish_reason":"length"}]}',
         Reply("\u20284", "hm", "length")),
        ('{"choices": [{"message": {"content": "4"}}]}', Reply("4")),  # nothing more is said
        ('{"choices": [{"message": {"content": "4 \\ud800"}, "finish_reason": "eos"}]}',
         Reply("4 ?")),
        ('{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}',
         Reply("", "", "length")),  # all reasoned
        ('{"choices": [{"message": {"content": "4"}}], '
         '"usage": {"prompt_tokens": -1, "completion_tokens": true}}',
         Reply("4")),
        # A list of parts is joined, here and in a stream.
        ('{"choices": [{"message": {"content": [{"type": "text", "text": "so "}, '
         '{"type": "thinking", "thinking": "hm"}, {"text": "4"}]}}]}', Reply("so 4")),
        ('data: {"choices": [{"delta": {"content": [{"type": "text", "text": "so "}]}}]}\n'
         'data: {"choices": [{"delta": {"content": "4"}}]}\ndata: [DONE]', Reply("so 4")),
        (body_of(" "), Reply(" ", "", "stop", 7, 5, fault="empty")),
        (body_of("No.", refusal="No."), Reply("No.", "", "stop", 7, 5, fault="refused")),
        ('{"choices": [{"message": {"content": "4"}, "finish_reason": "content_filter"}]}',
         Reply("4", "", "content_filter", fault="refused")),
        ('{"choices": [{"message": {"content": ["4"]}}]}', Reply("", fault="garbled")),
        ('{"choices": [{"message": {"content": 4}}]}', Reply("", fault="garbled")),
        ('{"choices": "4"}', Reply("", fault="garbled")),
        ("[1]", Reply("", fault="garbled")),
        ("", Reply("", fault="garbled")),
        ("data: [1]\n\ndata: [DONE]", Reply("", fault="garbled")),
        (stream_of("4", end="", finish=None), Reply("", fault="garbled")),
    ])
def test_replies(raw, reply):
    assert read_reply({"status": 200, "fault": "", "raw": raw}) == reply


@pytest.mark.parametrize("said, finish, fault", [
    (None, "stop", ""), ("stop", "stop", ""), ("end_turn", "stop", ""), ("EOS_TOKEN", "stop", ""),
    ("stop_sequence", "stop", ""), ("COMPLETE", "stop", ""), ("length", "length", ""),
    ("MAX_TOKENS", "length", ""), ("model_length", "length", ""),
    ("SAFETY", "SAFETY", "refused"), ("refusal", "refusal", "refused"),
    ("abort", "abort", "aborted"), ("cancelled", "cancelled", "aborted"),
    ("error", "error", "aborted"), ("insufficient_system_resource",) * 2 + ("aborted",),
    ("tool_calls", "tool_calls", "ended by tool_calls"),
])
def test_finish_reasons(said, finish, fault):
    """Of all common servers. What is neither an end nor the token limit is no answer."""
    choice = {"message": {"content": "4"}, "finish_reason": said}
    line = {"status": 200, "fault": "", "raw": json.dumps({"choices": [choice]})}
    assert read_reply(line) == Reply("4", "", finish, fault=fault)


def test_an_abort_is_asked_again(serve, tmp_path):
    """A reply that the server broke off never counts as one that the model's limit cut."""
    server = serve(lambda handler, question, attempt: handler.good(question) if attempt > 2 else
                   handler.send(body_of("#### 1").replace('"stop"', '"abort"')))
    answers = ask(api(server), chats_of("a"), tmp_path)
    assert answers.replies[0][0].text == answer_to("a") and answers.retries == 2


def test_the_token_limit_has_the_name_that_is_asked_for(serve, tmp_path):
    server = serve()
    ask(api(server, max_new_tokens=9, max_tokens_name="max_completion_tokens"), chats_of("a"),
        tmp_path)
    assert server.bodies[0]["max_completion_tokens"] == 9 and "max_tokens" not in server.bodies[0]


def asked(server, *words: str) -> ApiTeacher:
    return client.open_api(parse_flags(TeacherFlags, [
        "--api-base", server.base, "--api-model", "m", *words]))


def test_what_a_server_would_add_is_said_otherwise(serve, tmp_path):
    """Such as the penalty in Qwen's generation_config.json, which changes greedy texts too."""
    server = serve()
    teacher = asked(server, "--api-extra", '{"repetition_penalty": 1.0, "top_k": -1}')
    ask(teacher, chats_of("a"), tmp_path)
    assert server.bodies[0]["repetition_penalty"] == 1.0 and server.bodies[0]["top_k"] == -1
    assert teacher.settings["api_extra"] == {"repetition_penalty": 1.0, "top_k": -1}
    ask(asked(server), chats_of("a"), tmp_path)  # other settings, another reply
    assert len(server.bodies) == 2 and "repetition_penalty" not in server.bodies[1]
    assert "api_extra" not in asked(server).settings


@pytest.mark.parametrize("extra, said", [
    ("{", "not valid JSON"), ("[1]", "no JSON object"), ('{"seed": 1}', "seed is given by --seed"),
    ('{"x": NaN}', "NaN is no JSON"), ('{"model": "x"}', "model is given by --api-model")])
def test_an_extra_that_cannot_be_sent_is_refused(extra, said, serve):
    with pytest.raises(UsageError, match=said):
        asked(serve(), "--api-extra", extra)


def test_none_sends_no_system_prompt(serve, tmp_path):
    server = serve()
    for words in (["--system", "none"], ["--system", "Be exact."]):
        ask(asked(server, *words), chats_of("a"), tmp_path)
    assert [[turn["role"] for turn in body["messages"]] for body in server.bodies] == [
        ["user"], ["system", "user"]]


def test_only_a_whole_reply_of_status_200_counts():
    assert read_reply({"status": 500, "fault": "", "raw": body_of("4")}).fault == "status 500"
    assert read_reply({"status": 200, "fault": "cut off", "raw": body_of("4")}).fault == "cut off"


def test_a_body_shorter_than_announced_is_cut_whatever_it_holds(serve, tmp_path):
    server = serve(lambda handler, question, attempt: handler.good(question) if attempt > 1 else
                   handler.send(body_of("4"), length=1000))
    assert ask(api(server), chats_of("a"), tmp_path).replies[0][0].text == answer_to("a")
    assert [line["fault"] for line in lines_of(tmp_path)] == ["cut off", ""]


def test_a_reply_is_on_the_disk_before_it_is_read(serve, tmp_path, monkeypatch):
    def looking(line):
        found = lines_of(tmp_path)[-1]
        assert {key: found[key] for key in line} == line
        return read_reply(line)

    monkeypatch.setattr(client, "read_reply", looking)
    assert ask(api(serve(), concurrency=1), chats_of("a", "b"), tmp_path).lost == 0


def test_a_stream_ends_at_done_though_the_connection_stays_open(serve, tmp_path):
    def behave(handler, question, attempt):
        handler.chunks(stream_of("4"), end=False)
        handler.wfile.flush()
        time.sleep(5)

    start = time.perf_counter()
    assert ask(api(serve(behave)), chats_of("a"), tmp_path).replies[0][0].text == "4"
    assert time.perf_counter() - start < 3


def test_what_never_comes_is_lost_and_asked_again_next_time(serve, tmp_path):
    well = []
    server = serve(lambda handler, question, attempt:
                   handler.good(question) if well or question != "b" else handler.send(body_of("")))
    answers = ask(api(server), chats_of("a", "b", "c"), tmp_path)
    assert [replies[0] is None for replies in answers.replies] == [False, True, False]
    assert (answers.lost, answers.retries) == (1, client.ATTEMPTS - 1)
    assert answers.new_tokens == 5 * (2 + client.ATTEMPTS)  # an empty reply costs too
    well.append(True)
    mended = ask(api(server), chats_of("a", "b", "c"), tmp_path)
    assert (mended.asked, mended.stored, mended.lost) == (1, 2, 0)
    assert server.attempts == {("a", None): 1, ("b", None): client.ATTEMPTS + 1, ("c", None): 1}


@pytest.mark.parametrize("head, drop", [
    (b"", b"H"),  # not even the status line ends
    (b"HTTP/1.1 ", b"100 Continue\r\n\r\nHTTP/1.1 "),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"\n"),
])
def test_a_drip_is_ended(head, drop, serve, tmp_path, monkeypatch):
    """Each byte comes in time, and the whole never does."""
    monkeypatch.setattr(client, "PATIENCE", 2), monkeypatch.setattr(client, "ATTEMPTS", 1)

    def behave(handler, question, attempt):
        handler.wfile.write(head)
        for _ in range(100):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.05)

    start = time.perf_counter()
    assert ask(api(serve(behave), timeout=0.2), chats_of("a"), tmp_path).lost == 1
    assert time.perf_counter() - start < 3


# ------------------------------------------------------------------------------------------ waiting


def test_retry_after_is_honoured(serve, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(client, "sleep", slept.append)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    waits = {1: "7", 2: date, 3: "86400", 4: "soon", 5: "-3"}
    server = serve(lambda handler, question, attempt: handler.good(question) if attempt not in waits
                   else handler.send("", 429 if attempt % 2 else 503, Retry_After=waits[attempt]))
    ask(api(server), chats_of("a"), tmp_path)
    seven, ninety, capped, eight, sixteen = [seconds for seconds in slept if seconds]
    assert seven == 7 and 80 < ninety <= 90 and capped == client.MOST_WAIT
    assert 4 <= eight <= 8 and 8 <= sixteen <= 16


def test_backoff_grows_and_is_bounded():
    for attempt, most in enumerate([1, 2, 4, 8, 16, 32, 60, 60], 1):
        waits = {seconds_to_wait(attempt, "") for _ in range(50)}
        assert len(waits) > 1 and most / 2 <= min(waits) and max(waits) <= most
    for odd in ("nan", "inf", "1e999", "²", "Wed, 99 Foo 2026", "\n", "9" * 5000):
        assert 0.5 <= seconds_to_wait(1, odd) <= client.MOST_WAIT


def test_the_rate_is_kept(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "sleep", time.sleep)
    start = time.perf_counter()
    ask(api(serve(), rate=1200), chats_of(*"abcdefghijk"), tmp_path)
    assert 0.45 < time.perf_counter(
    ) - start < 5  # eleven requests, a twentieth of a second between two


def test_no_more_than_the_asked_requests_are_under_way(serve, tmp_path):
    under_way, most = [], []

    def behave(handler, question, attempt):
        under_way.append(question)
        most.append(len(under_way))
        time.sleep(0.01)
        under_way.remove(question)
        handler.good(question)

    ask(api(serve(behave), concurrency=3), chats_of(*map(str, range(40))), tmp_path)
    assert 1 < max(most) <= 3


def test_questions_are_taken_as_they_are_needed(serve):
    """A hundred thousand chats are not all in hand at once."""
    seen = []

    class Places:
        def __contains__(self, place):
            seen.append(place)
            return False

    lines = api(serve(), concurrency=4).answer(chats_of("a") * 100_000, 1, Places())
    next(lines)
    lines.close()
    assert len(seen) <= 9


# ----------------------------------------------------------------------------------------- for good


@pytest.mark.parametrize("status, said", [(400, "400 bad"), (401, "is OPENAI_API_KEY right?"),
                                          (403, "OPENAI_API_KEY"),
                                          (404, "does --api-base end in /v1"), (422, "422 bad"),
                                          (413, "413 bad")])
def test_a_refusal_ends_it_at_once_and_shows_no_key(status, said, serve, tmp_path):
    message = f"bad \x1b[31m\nkey {KEY}, sent as 'Bearer {KEY}' " + "x" * 5000
    error = json.dumps({"error": {"message": message, "key": KEY}})
    server = serve(lambda handler, question, attempt: handler.send(error, status))
    with pytest.raises(UserError) as caught:
        ask(api(server, concurrency=2), chats_of(*map(str, range(50))), tmp_path)
    text = str(caught.value)
    assert said in text and len(
        text) < 400 and text.isprintable() and KEY not in text and KEY not in repr(api(server))
    assert len(server.bodies) <= 4
    assert KEY not in (tmp_path / "replies.jsonl").read_text() and len(lines_of(tmp_path)) >= 1


def test_a_key_that_is_echoed_is_cut_out(serve, tmp_path):
    server = serve(lambda handler, question, attempt: handler.good(question, f"your key is {KEY}"))
    assert ask(api(server), chats_of("a"),
               tmp_path).replies[0][0].text == "your key is [OPENAI_API_KEY]"
    assert KEY not in (tmp_path / "replies.jsonl").read_text()
    slashed = serve(
        lambda handler, question, attempt: handler.send(body_of("sk/12345678").replace("/", "\\/")))
    assert ask(api(slashed, key="sk/12345678"), chats_of("b"),
               tmp_path).replies[0][0].text == "[OPENAI_API_KEY]"
    placeholder = serve(
        lambda handler, question, attempt: handler.good(question, "x = 1"))  # "x" is no secret
    assert ask(api(placeholder, key="x"), chats_of("c"), tmp_path).replies[0][0].text == "x = 1"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused(status, serve, tmp_path):
    thief = serve()
    there = thief.base + "/chat/completions"
    server = serve(lambda handler, question, attempt: handler.send("", status, Location=there))
    with pytest.raises(UserError, match=f"answers {status}, a redirect, which is not followed"):
        ask(api(server), chats_of("a"), tmp_path)
    assert thief.bodies == []


def test_a_server_that_was_never_there_ends_it_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    gone = ApiTeacher(name="m", base=base, timeout=1.0, concurrency=2)
    with pytest.raises(UserError,
                       match="Connection refused; does the server run, and is this its address?"):
        ask(gone, chats_of(*map(str, range(100))), tmp_path)
    assert len(lines_of(tmp_path)) == 1


def test_a_server_that_falls_silent_ends_it_later(serve, tmp_path):
    """Not for a few lost questions, but for many in a row; what came before is kept."""
    server = serve(lambda handler, question, attempt:
                   handler.good(question) if int(question) < 20 or question == "22" else None)
    with pytest.raises(
            UserError,
            match="4 questions in a row got no reply in 8 attempts .*; what came before is kept"):
        ask(api(server, concurrency=2), chats_of(*map(str, range(100))), tmp_path)
    assert 21 <= sum(line["status"] == 200
                     for line in lines_of(tmp_path)) and len(lines_of(tmp_path)) < 21 + 8 * 10


def test_a_question_that_is_refused_is_lost_alone(serve, tmp_path):
    server = serve(lambda handler, question, attempt: handler.send(
        '{"error": "filtered"}', status=400) if question in "bd" else handler.good(question))
    for number, asked in enumerate(["bac", "bdac", "abc"]):  # also if it is the first one
        answers = ask(api(server, concurrency=1), chats_of(*asked), tmp_path / str(number))
        assert [reply and reply.text for (reply, ) in answers.replies] == [
            None if question in "bd" else answer_to(question) for question in asked]
        assert (answers.lost, answers.retries) == (sum(map("bd".count, asked)), 0)
    with pytest.raises(UserError, match="400 filtered"):  # none is answered
        ask(api(server, concurrency=1), chats_of("b", "d"), tmp_path / "last")


def test_a_server_that_never_answers_is_given_up_before_all_is_asked(serve, tmp_path):
    server = serve(lambda handler, question, attempt: time.sleep(1))
    with pytest.raises(UserError, match="requests and no answer .*; is this its address"):
        ask(api(server, concurrency=8, timeout=0.1), chats_of(*map(str, range(100))), tmp_path)
    assert len(lines_of(tmp_path)) == 8
