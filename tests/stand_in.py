"""A chat server on the loopback that errs as it is told to, for the tests of client.py and
teacher.py."""

import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recipes import client
from recipes.client import ApiTeacher

KEY = "sk-0123456789abcdef"


def chats_of(*questions: str) -> list[list[dict]]:
    return [[{"role": "user", "content": question}] for question in questions]


def body_of(text: str, **message) -> str:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})


def stream_of(text: str, end: str = "data: [DONE]\n\n", finish: str | None = "stop") -> str:
    events = [{"choices": [{"delta": {"content": part}, "finish_reason": None}]}
              for part in text.split("|")]
    events += [{"choices": [{"delta": {}, "finish_reason": finish}]}]
    events += [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}]
    return ": keep-alive\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end


# ------------------------------------------------------------------------------- a server that errs


class StandIn(ThreadingHTTPServer):
    """A chat server on the loopback: does what `behave(handler, question, attempt)` says, keeps
    what it was asked.

    attempt counts the requests for one (question, seed) from 1. `answered` counts the good answers
    that it gave.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.lock = behave, threading.Lock()
        self.bodies, self.headers, self.attempts, self.answered = [], [], Counter(), Counter()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):  # the client has hung up on a flood
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.attempts[question, body.get("seed")] += 1
            attempt = self.server.attempts[question, body.get("seed")]
        self.close_connection = True
        self.server.behave(self, question, attempt)

    def send(self, text: str, status: int = 200, kind: str = "application/json",
             length: int | None = None, **headers):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def good(self, question: str, text: str | None = None):
        with self.server.lock:
            self.server.answered[question] += 1
        self.send(body_of(text or answer_to(question)))

    def chunks(self, *pieces: str, kind: str = "text/event-stream", end: bool = True):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(f"{len(piece.encode()):x}\r\n{piece}\r\n".encode())
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n" if end else b"")

    def log_message(self, *args):
        pass


def answer_to(question: str) -> str:
    return f"It is #### {int(hashlib.sha256(question.encode()).hexdigest()[:6], 16)}"


def nasty(handler: Handler, question: str, attempt: int) -> None:
    """Something bad for most first requests, by a hash of question and attempt; nothing bad from
    the fourth on."""
    number = int(hashlib.sha256(f"{question} {attempt}".encode()).hexdigest(), 16)
    text = answer_to(question)
    good = [
        lambda: handler.send(body_of(text)),
        lambda: handler.send(" \n" * 40 + body_of(text) + "\n"
                             ),  # blanks that keep a slow connection alive
        lambda: handler.chunks(stream_of(text[:4] + "|" + text[4:])),
        lambda: handler.chunks(*stream_of(text, end="").splitlines(True)
                               ),  # ends without [DONE], but with a reason
        lambda: handler.send(
            stream_of(text).replace("\n", "\r\n"), kind="text/event-stream; charset=utf-8"),
        lambda: handler.chunks("\n\n", body_of(text), kind="application/json"),
    ]
    bad = [
        lambda: None,  # closes without a word
        lambda: time.sleep(2),  # silent for longer than anybody waits
        lambda: handler.send(body_of(text)[:-9], length=len(body_of(text))),  # cut in the middle
        lambda: handler.chunks(
            stream_of(text, end="", finish=None).partition('"usage')[0], end=False),
        lambda: handler.chunks(stream_of(text + "9", end="", finish=None)
                               ),  # a stream without an end
        lambda: handler.send(body_of("9" * 300_000)),  # a flood
        lambda: handler.chunks(*["data: {}\n\n" * 1000] * 30),
        lambda: handler.send("<html>Bad gateway</html>"),
        lambda: handler.send("[" * 50_000),
        lambda: handler.send('{"choices": []}'),
        lambda: handler.send('{"error": {"message": "overloaded"}}'),
        lambda: handler.chunks('data: {"error": "broken"}\n\n'),
        lambda: handler.send("slow down", 429, Retry_After="1"),
        lambda: handler.send("sorry", 500),
        lambda: handler.send("", 503),
        lambda: handler.send("", 408),
        lambda: handler.send(body_of("")),
        lambda: handler.send(body_of(" \n")),
        lambda: handler.send(body_of(None)),
        lambda: handler.send(body_of("", refusal="I will not")),
    ]
    chosen = good if attempt > 3 or number % 5 < 2 else bad
    with handler.server.lock:
        handler.server.answered[question] += chosen is good
    chosen[number // 5 % len(chosen)]()


@pytest.fixture
def serve():
    """A function that starts a StandIn; all are stopped at the end."""
    servers = []

    def start(behave=lambda handler, question, attempt: handler.good(question)) -> StandIn:
        servers.append(StandIn(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting between attempts, little for a silent server, and no flags from the
    environment."""
    monkeypatch.setattr(client, "sleep", lambda seconds: None)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def api(server: StandIn, **options) -> ApiTeacher:
    return ApiTeacher(**{"name": "m", "base": server.base, "key": KEY, "timeout": 20.0, **options})


def lines_of(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (folder / "replies.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
