"""Asks a server that speaks OpenAI's chat completions: requests, retries, and what a reply says.

    python -m recipes.client '{"choices": [{"message": {"content": "4"}}]}'

A reply that cannot be used (cut, garbled, empty, refused, an error of the server) is asked for
again, up to ATTEMPTS times in a run. A text that reached the token limit is usable, since the model
wrote it; so is the empty text of a model that spent its whole budget on reasoning. A question that
the server refuses while it answers others is lost, even if it is the first one. A reply that the
server itself broke off is asked for again, and never counts as the model's cut answer.

The client is the standard library's, since no library bounds the time and the size of a whole
reply. It sends one request a sample (many servers ignore `n`), the budget as `max_tokens` (the
older name, which most servers know; --api-max-tokens-name gives another), and no setting that has
no effect, since a server may refuse it. What is not sent, a server may add: vLLM takes
repetition_penalty, top_p and top_k from the model's generation_config.json, and the penalty changes
greedy texts too; --api-extra sends other values.

The client uses no proxy and follows no redirect: the key would go with it. The key comes from
OPENAI_API_KEY alone and goes into the header alone. It is cut out of what the server sends back,
unless a stream spells it in pieces. Plain http is allowed, since local servers speak it; to a
distant http address the key goes in the clear.

Protocol: https://platform.openai.com/docs/api-reference/chat, and server-sent events (WHATWG HTML,
section 9.2).
"""

import contextlib
import http.client
import json
import os
import queue
import random
import socket
import sys
import threading
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from time import monotonic, sleep
from urllib.parse import urlsplit

from generate import ApiFlags, DecodingFlags, check_samples
from runtime import UsageError, UserError, json_fault, parse_json, printable
from tokenizer import NO_SYSTEM

ATTEMPTS = 8  # requests for one reply in one run
MOST_WAIT = 120.0  # seconds between two of them, whatever Retry-After says
MOST_BYTES = 16 << 20  # of a reply; a longer one is cut, and asked for again
KEPT_BYTES = 1 << 16  # of a reply that is known to be useless
PATIENCE = 12  # a whole reply may take so many times the longest silence
LEAST_SECRET = 8  # shorter keys are placeholders for local servers ("none"), and stand in any text
# Too long, or filtered: if other questions are answered, this one is lost.
OF_THE_QUESTION = (400, 413, 422)
MOST_REFUSED = 3  # questions before the first answer; then the request itself must be wrong
# Why a reply ended, in the words of common servers, in lower case.
FINISHES = {name: finish for finish, names in {
    "stop": "stop eos eos_token end_turn stop_sequence stop_token complete completed end done",
    "length": "length model_length max_tokens max_length token_limit",
    "refused": "content_filter refusal safety recitation sensitive blocklist prohibited_content",
    "aborted": "abort aborted cancelled canceled error network_error timeout preempted "
               "insufficient_system_resource engine_overloaded"}.items() for name in names.split()}
# Wrong from the start: a wrong address.
NOT_THERE = ("ConnectionRefusedError", "gaierror", "SSLCertVerificationError")
# What --api-extra may not say.
OWN_FLAGS = {"model": "--api-model", "messages": "--dataset", "n": "--samples", "seed": "--seed",
             "temperature": "--temperature", "top_p": "--top-p", "stream": "--api-stream",
             "stream_options": "--api-stream", "max_tokens": "--max-new-tokens",
             "max_completion_tokens": "--max-new-tokens", "max_new_tokens": "--max-new-tokens"}
FINAL_HINTS = {401: "; is OPENAI_API_KEY right?", 403: "; is OPENAI_API_KEY right?",
               404: "; does --api-base end in /v1, as most do, and does it serve this --api-model?"}

# ------------------------------------------------------------------------------------------ replies


@dataclass(frozen=True)
class Reply:
    """What a teacher said to a chat in one sample."""

    text: str
    reasoning: str = ""  # if the server keeps it apart from the text
    finish: str = "stop"  # "length" if it was cut at the token limit
    prompt_tokens: int | None = None  # None: the server does not say
    new_tokens: int | None = None  # reasoning included
    mean_log_prob: float | None = None  # of a checkpoint of our own
    fault: str = ""  # why it cannot be used


def read_reply(line: dict) -> Reply:
    """The reply in a stored line. Never raises: a reply that cannot be used has a `fault`."""
    if line["fault"] or line["status"] != 200:
        return Reply("", fault=line["fault"] or f"status {line['status']}")
    try:
        raw = line["raw"]
        body = json.loads(raw) if raw.startswith("{") else _joined(raw)
        choice, usage = body["choices"][0], body.get("usage") or {}
        message, said = choice["message"], choice.get("finish_reason") or "stop"
        text = _string(_content(message.get("content")))
        reasoning = _string(message.get("reasoning_content") or message.get("reasoning"))
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        finish = FINISHES.get(_string(said).lower(), said)
        refused = _string(message.get("refusal")) or finish == "refused"
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return Reply("", fault="garbled")
    if refused:
        fault = "refused"
    elif finish not in ("stop", "length"):
        fault = "aborted" if finish == "aborted" else f"ended by {printable(finish)[:40]}"
    else:
        fault = "" if text.strip() or finish == "length" else "empty"
    return Reply(text, reasoning, said if fault else finish, *counts, line.get("mean_log_prob"),
                 fault)


def _content(content):
    """The text of a message; of a list of parts, the texts in it joined."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part.get("type", "text") == "text")


def _joined(raw: str) -> dict:
    """The body that a stream of server-sent events gives in pieces. Raises ValueError if it has no
    end."""
    pieces: dict[str, list[str]] = {}
    finish, usage, done = None, None, False
    for line in raw.split("\n"):  # not splitlines(): U+2028 may stand within a line
        name, _, data = line.strip().partition(":")
        data = data.strip()
        if name != "data" or not data:  # a blank line, or a comment to keep the connection alive
            continue
        if data == "[DONE]":
            done = True
            break
        event = json.loads(data)
        if event.get("error"):
            raise ValueError("the server broke off")
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            for key, piece in (choice.get("delta") or {}).items():
                piece = _content(piece) if key == "content" else piece
                if isinstance(piece, str):
                    pieces.setdefault(key, []).append(piece)
            finish = choice.get("finish_reason") or finish
    if not done and not finish:
        raise ValueError("cut off")
    message = {key: "".join(parts) for key, parts in pieces.items()}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _string(value) -> str:
    """A text that can be written to a file: JSON's escapes can spell half a surrogate pair. Raises
    TypeError for other values."""
    return "".join([value or ""]).encode("utf-8", "replace").decode()


def _count(value) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


# ---------------------------------------------------------------------------------------- questions


@dataclass(kw_only=True)
class ApiTeacher:
    """A model behind `base`/chat/completions. A reply depends on all fields but `base` and
    `key`."""

    name: str
    base: str
    key: str = field(default="", repr=False)
    system: str | None = None  # None: none is sent, and the server's template decides
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    seed: int = 0
    concurrency: int = 8
    rate: float = 0.0  # requests a minute, 0: no bound
    timeout: float = 600.0  # seconds of silence
    stream: bool = False
    max_tokens_name: str = "max_tokens"
    extra: dict = field(default_factory=dict)  # joins every request
    _turn: float = field(default=0.0, init=False, repr=False)  # when the next request may leave
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def settings(self) -> dict:
        names = ("temperature", "top_p", "max_new_tokens", "seed")
        settings = {name: getattr(self, name) for name in names}
        return settings | ({"api_extra": self.extra} if self.extra else {})

    def request(self, messages: list[dict], sample: int) -> dict:
        """The body of a request. It asks for no `logprobs`: few servers give them, and each in its
        own form. A key whose value means nothing is left out, since a server may refuse it."""
        body = {"model": self.name, "messages": messages, self.max_tokens_name: self.max_new_tokens,
                "temperature": self.temperature}
        if self.temperature:
            body |= {"seed": self.seed + sample} | ({"top_p": self.top_p} if self.top_p < 1 else {})
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body | self.extra

    def answer(self, chats: list[list[dict]], samples: int,
               skip: Container[tuple[int, int]]) -> Iterator[tuple]:
        """Yield ((chat, sample), line) for every attempt as it ends; the last one of a place is its
        result.

        `concurrency` threads send and receive; the caller's thread does all else. They are daemons,
        and nobody waits for a request under way when the iteration ends. At most two places a
        thread are in hand at a time.

            places -> jobs -> [thread: wait, send, receive] -> done -> usable, lost, or a job again
        """
        jobs, done, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        places = ((i, s) for i in range(len(chats)) for s in range(samples) if (i, s) not in skip)
        health, in_hand = _Health(self, answered=bool(skip)), 0
        try:
            for _ in range(min(self.concurrency, len(chats) * samples)):
                threading.Thread(target=self._work, args=(chats, jobs, done, stop),
                                 daemon=True).start()
            while True:
                for place in islice(places, max(0, health.most_in_hand() - in_hand)):
                    jobs.put((place, 1, 0.0))
                    in_hand += 1
                if not in_hand:
                    health.check_end()
                    return
                place, attempt, line = done.get()
                if isinstance(line, BaseException):
                    raise line
                after = line.pop("retry_after")
                yield place, line | {"attempt": attempt}
                if health.needs_another(place, line, attempt):
                    jobs.put((place, attempt + 1, seconds_to_wait(attempt, after)))
                else:
                    in_hand -= 1
        finally:
            stop.set()
            for _ in range(self.concurrency):
                jobs.put(None)

    def _work(self, chats: list[list[dict]], jobs: queue.SimpleQueue, done: queue.SimpleQueue,
              stop: threading.Event) -> None:
        """One thread: send the jobs as they come, until there is none or `stop` is set."""
        while (job := jobs.get()) and not stop.is_set():
            place, attempt, wait = job
            sleep(wait)
            sleep(self._until_my_turn())
            if stop.is_set():
                return
            try:
                done.put((place, attempt, self._post(self.request(chats[place[0]], place[1]))))
            except BaseException as error:  # a fault of this program: raised in the caller's thread
                done.put((place, attempt, error))

    def _until_my_turn(self) -> float:
        """Seconds until one more request keeps to the rate."""
        with self._lock:
            now = monotonic()
            turn = max(now, self._turn)
            self._turn = turn + (60 / self.rate if self.rate else 0)
        return turn - now

    def _post(self, body: dict) -> dict:
        """One request, and all that came of it, as part of a line. Faults of network and server
        raise nothing."""
        url = urlsplit(self.base)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname, url.port, timeout=self.timeout)  # of each wait, not of all
        watch, status, after, data = None, 0, "", bytearray()
        try:
            connection.connect()
            watch = threading.Timer(PATIENCE * self.timeout, _hang_up, [connection.sock])
            watch.daemon = True
            watch.start()
            connection.request("POST", f"{url.path}/chat/completions", json.dumps(body).encode(),
                               headers)
            response = connection.getresponse()
            status, after = response.status, response.headers.get("Retry-After", "")
            fault = _receive(response, data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        finally:
            if watch:
                watch.cancel()
            connection.close()
        # strip(): blanks keep slow connections alive
        raw = self._without_key(data.decode("utf-8", "replace").strip())
        if fault or status != 200:
            raw = raw[:KEPT_BYTES]
        fault = self._without_key(fault)[:300]
        return {"request": body, "status": status, "fault": fault, "raw": raw, "retry_after": after}

    def _without_key(self, text: str) -> str:
        if len(self.key) < LEAST_SECRET:
            return text
        for form in (self.key, json.dumps(self.key)[1:-1], self.key.replace("/", "\\/")):
            text = text.replace(form, "[OPENAI_API_KEY]")
        return text


def _hang_up(connected: socket.socket) -> None:
    """End a connection that another thread waits on."""
    with contextlib.suppress(OSError):  # it has just ended
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # TLS's own shutdown would wait too


def _receive(response: http.client.HTTPResponse, data: bytearray) -> str:
    """Read a body into `data`; returns what is wrong with it, else ""."""
    whole = response.length  # None if the server does not say
    while whole is None or len(data) < whole:
        piece = response.read1(1 << 16)
        data += piece
        if len(data) > MOST_BYTES:
            return f"more than {MOST_BYTES >> 20} MiB"
        # Some servers leave the connection open after [DONE].
        if not piece or b"\ndata:[DONE]" in data[-32:].replace(b" ", b""):
            break
    return "cut off" if whole is not None and len(data) < whole else ""


def seconds_to_wait(attempt: int, after: str) -> float:
    """Before the next attempt: 1, 2, 4, ... 60 with jitter, or longer if Retry-After (seconds or a
    date) says so."""
    try:
        asked = float(after)
    except ValueError:
        try:
            date = parsedate_to_datetime(after)
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            asked = (date - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, IndexError, OverflowError):
            asked = 0.0
    # Half of it by chance, or all threads that failed together would come back together.
    return min(MOST_WAIT, max(min(60, 2 ** (attempt - 1)) * (1 + random.random()) / 2, asked))


# -------------------------------------------------------------------------------- a server's health


class _Health:
    """Decides after each attempt: ask again, leave the question, or give the server up
    (UserError)."""

    def __init__(self, teacher: ApiTeacher, answered: bool):
        self.teacher = teacher
        self.heard = False  # there has been an answer of any kind
        self.answered = answered  # there has been a usable one; before, all questions may be wrong
        self.refused: dict[int, dict] = {}  # chats refused before, with the server's last word
        self.mute = 0  # requests without any answer since the start
        self.silent = 0  # questions in a row without a reply

    def most_in_hand(self) -> int:
        """How many places may be under way: one at a time while the server has only refused."""
        return 1 if self.refused and not self.answered else 2 * self.teacher.concurrency

    def check_end(self) -> None:
        """Raise UserError if the server has refused questions and answered none."""
        if self.refused and not self.answered:
            self._refuse_final(next(reversed(self.refused.values())))

    def needs_another(self, place: tuple[int, int], line: dict, attempt: int) -> bool:
        """Whether this place needs another attempt. Raises UserError if no more attempts help any
        question."""
        base, concurrency = self.teacher.base, self.teacher.concurrency
        usable = not read_reply(line).fault
        self.heard = self.heard or line["status"] > 0
        self.answered = self.answered or usable
        refused = line["status"] in OF_THE_QUESTION
        if refused and not self.answered:
            self.refused[place[0]] = line
        if not refused or not self.answered and len(self.refused) >= MOST_REFUSED:
            self._refuse_final(line)
        self.mute = 0 if self.heard else self.mute + 1
        if self.mute >= max(ATTEMPTS, concurrency):
            raise UserError(f"{base}: {self.mute} requests and no answer ({error_text(line)}); "
                            "is this its address?")
        if not usable and not refused and attempt < ATTEMPTS:
            return True
        failed = not refused and (line["fault"] or line["status"] != 200)
        self.silent = self.silent + 1 if failed else 0
        if self.silent >= 2 * concurrency:
            raise UserError(
                f"{base}: {self.silent} questions in a row got no reply in {ATTEMPTS} attempts "
                f"(the last: {error_text(line)}); what came before is kept, go on when it is back")
        return False

    def _refuse_final(self, line: dict) -> None:
        """Raise UserError for an answer that no second request would change."""
        base, status = self.teacher.base, line["status"]
        if not self.heard and line["fault"].startswith(NOT_THERE):
            raise UserError(
                f"{base}: {error_text(line)}; does the server run, and is this its address?")
        if 300 <= status < 400:
            raise UserError(
                f"{base}: answers {status}, a redirect, which is not followed (the key would go "
                "with it); give the address it leads to as --api-base")
        if 400 <= status < 500 and status not in (408, 409, 425, 429):
            raise UserError(f"{base}: {error_text(line)}{FINAL_HINTS.get(status, '')}")


def error_text(line: dict) -> str:
    """The fault of a stored line, on one line: a server's text may hold anything."""
    said = line["fault"] or line["raw"]
    try:
        error = json.loads(line["raw"])["error"]
        said = error if isinstance(error, str) else error["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    said = " ".join(printable(str(said)[:1000]).split())
    status = f"{line['status']} " if line["status"] else ""
    return status + (said if len(said) <= 200 else said[:199] + "…")


# -------------------------------------------------------------------------------------------- flags


def open_api(flags: "ApiFlags | DecodingFlags") -> ApiTeacher | None:
    """The server that --api-model and the other --api flags name, if any. Raises UsageError for
    flags without effect."""
    given = [part.name for part in fields(ApiFlags) if getattr(flags, part.name) != part.default]
    if not flags.api_model:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} without --api-model: say which model "
                             "of the server")
        return None
    ours = {"run": None, "model": None, "teacher": None, "top_k": 0, "device": "auto",
            "dtype": "auto"}
    idle = [name for name, default in ours.items() if getattr(flags, name, default) != default]
    if idle:
        raise UsageError(f"--{idle[0].replace('_', '-')} means nothing to a server; leave it out, "
                         "or --api-model")
    check_samples(flags)
    base = _address((flags.api_base or os.environ.get("OPENAI_BASE_URL") or "").strip())
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("OPENAI_API_KEY holds characters that no key has; copy it again")
    system = None if flags.system == NO_SYSTEM else flags.system
    return ApiTeacher(name=flags.api_model, base=base, key=key, system=system,
                      seed=flags.seed, temperature=flags.temperature, top_p=flags.top_p,
                      max_new_tokens=flags.max_new_tokens, concurrency=flags.api_concurrency,
                      rate=flags.api_rate, timeout=flags.api_timeout, stream=flags.api_stream,
                      max_tokens_name=flags.api_max_tokens_name, extra=_extra(flags.api_extra))


def _extra(text: str | None) -> dict:
    """What --api-extra adds to every request. Raises UsageError for what has a flag of its own."""
    try:
        extra = parse_json(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--api-extra: not valid JSON ({json_fault(error)}); such as "
                         "'{\"repetition_penalty\": 1.0}'") from None
    if not isinstance(extra, dict):
        raise UsageError("--api-extra: no JSON object; such as '{\"repetition_penalty\": 1.0}'")
    for name in extra.keys() & OWN_FLAGS.keys():
        raise UsageError(f"--api-extra: {name} is given by {OWN_FLAGS[name]}")
    return extra


def _address(base: str) -> str:
    """`base` without its last slash. Raises UsageError if it is no http(s) address, or holds a
    user, a query or blanks."""
    if not base:
        raise UsageError("--api-model needs the server's address: --api-base https://HOST/v1, or "
                         "OPENAI_BASE_URL")
    try:
        url = urlsplit(base)
        right = url.scheme in ("http", "https") and url.hostname and url.port != 0
        right = right and not url.query + url.fragment and "@" not in url.netloc
    except ValueError:
        right = False
    if not right or not base.isascii() or not base.isprintable() or " " in base:
        raise UsageError("--api-base (or OPENAI_BASE_URL) is no address such as "
                         "https://HOST:PORT/v1, without user or query")
    return base.rstrip("/")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m recipes.client BODY, the JSON or the event stream of a reply")
    print(read_reply({"status": 200, "fault": "", "raw": sys.argv[1]}))
