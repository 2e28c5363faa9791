"""Asks a teacher: any server that speaks OpenAI's chat completions, or one of our own checkpoints.

    python -m recipes.teacher "Tom has 3 boxes of 12 pens. How many pens has he?" --teacher tiny
    python -m recipes.teacher "..." --api-base https://HOST/v1 --api-model NAME    # a server's

`ask(teacher, chats, folder, samples)` gives every chat its replies:

    1. read FOLDER/replies.jsonl: a reply that is there is never asked for again
    2. ask for the others (client.py asks a server, generate.py a checkpoint of our own)
    3. write each raw reply, usable or not, as a line of that file before it is read, with its
       request and the key sha256(teacher, messages, settings)

So a killed run goes on, and all can be audited.
A reply that never came in a usable form is lost: None, never an empty text.
"""

import contextlib
import json
import math
import sys
from collections.abc import Container, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from time import perf_counter

if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from tqdm import tqdm

from methods import Run
from data import Problem, asked_turns
from flags import flag, parse_flags, run_command
from generate import ApiFlags, DecodingFlags, SamplingFlags, generate, load_asked
from recipes.client import ApiTeacher, Reply, open_api, read_reply
from runtime import UsageError, UserError, check_regular, new_directory, printable, text_sha256
from score import cost_line, record_of
from tokenizer import NO_SYSTEM

LOCAL_BATCH = 4096  # completions that a checkpoint of our own generates at a time


@dataclass
class Answers:
    """The samples' replies of each chat, None if lost, and their cost."""

    replies: list[list[Reply | None]]
    keys: list[str]  # of each chat in the store
    asked: int  # replies that had to be asked for in this run
    stored: int  # replies that were there
    lost: int
    retries: int  # requests of this run beyond the first for a reply
    prompt_tokens: int  # of all replies in the store to these chats, useless ones included
    new_tokens: int  # likewise
    seconds: float

    @property
    def cost(self) -> dict:
        """The part of them that score.cost_line puts into words."""
        return {"requests": self.asked + self.retries, "retries": self.retries,
                "seconds": self.seconds, "prompt_tokens": self.prompt_tokens,
                "new_tokens": self.new_tokens}


# -------------------------------------------------------------------------------------------- store


def ask(teacher: "ApiTeacher | LocalTeacher", chats: list[list[dict]], folder: Path,
        samples: int = 1) -> Answers:
    """The replies of `teacher` to each chat, `samples` of them, from `folder`/replies.jsonl or
    asked for now.

    chats: `{"role", "content"}` each, the last by the user. Equal chats are asked once and share
    their replies. Raises UserError if the server is not there or refuses for good, and if the store
    holds a line that it did not write.
    """
    start = perf_counter()
    unsaid = teacher.system in (None, NO_SYSTEM)
    system = [] if unsaid else [{"role": "system", "content": teacher.system}]
    chats = [chat if chat[0]["role"] == "system" else system + chat for chat in chats]
    keys = [_chat_key(teacher, chat) for chat in chats]
    distinct = dict(zip(keys, chats))
    store = _Store(Path(folder) / "replies.jsonl", list(distinct), samples)
    stored = len(store.found)
    retries = _ask_missing(teacher, list(distinct.values()), store)
    replies = [store.replies_of(key) for key in keys]
    lost = sum(reply is None for group in replies for reply in group)
    return Answers(replies, keys, len(distinct) * samples - stored, stored, lost, retries,
                   store.prompt_tokens, store.new_tokens, perf_counter() - start)


def _ask_missing(teacher, chats: list[list[dict]], store: "_Store") -> int:
    """Ask for the replies that the store lacks. Returns how many requests were second or later
    attempts."""
    total, retries = len(chats) * store.samples, 0
    lines = teacher.answer(chats, store.samples, frozenset(store.found))
    bar = tqdm(total=total, initial=len(store.found), desc=f"ask {teacher.name}", leave=False,
               disable=not sys.stderr.isatty())
    with bar, open(store.path, "ab") as file, contextlib.closing(lines):
        try:
            for (number, sample), line in lines:
                head = {"key": store.keys[number], "sample": sample, "teacher": teacher.name}
                file.write(json.dumps(head | line, allow_nan=False).encode() + b"\n")
                file.flush()  # before it is read
                bar.update(store.take((number, sample), line))
                retries += line["attempt"] > 1
                bar.set_postfix(retries=retries, refresh=False)
        except KeyboardInterrupt:
            print(f"{len(store.found)} of {total} replies are in {store.path}; the same into this "
                  "folder goes on", file=sys.stderr)
            raise
    return retries


class _Store:
    """The replies in a file to some chats: of each place (number of the chat, sample) the first
    usable one."""

    def __init__(self, path: Path, keys: list[str], samples: int):
        self.path, self.keys, self.samples = path, keys, samples
        self.numbers = {key: number for number, key in enumerate(keys)}
        self.found: dict[tuple[int, int], Reply] = {}
        self.prompt_tokens = self.new_tokens = 0  # of all replies, useless ones included
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in _stored(path):
            if line["key"] in self.numbers and 0 <= line["sample"] < samples:
                self.take((self.numbers[line["key"]], line["sample"]), line)

    def take(self, place: tuple[int, int], line: dict) -> bool:
        """Read the reply in a line; whether it is usable."""
        reply = read_reply(line)
        self.prompt_tokens += reply.prompt_tokens or 0
        self.new_tokens += reply.new_tokens or 0
        if not reply.fault:
            self.found.setdefault(place, reply)
        return not reply.fault

    def replies_of(self, key: str) -> list[Reply | None]:
        number = self.numbers[key]
        return [self.found.get((number, sample)) for sample in range(self.samples)]


def _chat_key(teacher, messages: list[dict]) -> str:
    text = json.dumps([teacher.name, messages, teacher.settings], sort_keys=True)
    return text_sha256(text)


def _stored(path: Path) -> Iterator[dict]:
    """The lines of a store, one at a time. Half a last line, which a crash left, is removed."""
    if not path.exists():
        return
    check_regular(path)
    whole = 0
    with open(path, "r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                value = json.loads(line)
                kinds = {"key": str, "sample": int, "status": int, "fault": str, "raw": str}
                right = all(isinstance(value[name], kind) for name, kind in kinds.items())
                right = right and math.isfinite(value.get("mean_log_prob") or 0)
            except (ValueError, RecursionError, KeyError, TypeError):
                right = False
            if not right:
                raise UserError(f"{path}:{number}: no stored reply; remove that line")
            yield value
        file.truncate(whole)


def completions(teacher, problems: list[Problem], turns: list[dict], folder: Path,
                samples: int) -> tuple[list[dict], dict]:
    """Graded records of the problems, asked after the `turns` of worked examples, and what was lost
    and spent.

    A problem with a lost reply is left out: else it would count as wrong, or votes would be
    missing. Raises UserError if nothing is left.
    """
    chats = [asked_turns(problem, turns) for problem in problems]
    answers = ask(teacher, chats, folder, samples)
    records = []
    for number, (problem, replies) in enumerate(zip(problems, answers.replies)):
        if None not in replies:
            records += [record_of(problem, number, sample, reply.text, reply.new_tokens,
                                  reply.finish, reply.mean_log_prob)
                        | {"reply_key": answers.keys[number]}
                        for sample, reply in enumerate(replies)]
    wanted = len(problems) * samples
    if not records:
        raise UserError(
            f"{answers.lost} of {wanted} replies were lost and no problem is left to count; "
            f"{Path(folder) / 'replies.jsonl'} holds what came instead")
    left_out = len(problems) - len(records) // samples
    return records, {"lost": answers.lost, "wanted": wanted, "left_out": left_out,
                     "cost": answers.cost}


# --------------------------------------------------------------------------------------- of our own


@dataclass(kw_only=True)
class LocalTeacher:
    """A checkpoint or the result of a run. The caller makes sure that `name` still has the weights
    it had."""

    name: str
    run: Run = field(repr=False)
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int = 0

    @property
    def system(self) -> str:
        return self.run.system

    @property
    def settings(self) -> dict:
        names = ("temperature", "top_p", "top_k", "max_new_tokens", "seed")
        return {name: getattr(self, name) for name in names}

    def answer(self, chats: list[list[dict]], samples: int,
               skip: Container[tuple[int, int]]) -> Iterator[tuple]:
        """Yield ((chat, sample), line) as the completions end, in a server's form. There is one
        attempt: a second would give the same."""
        tokenizer, step = self.run.tokenizer, max(1, LOCAL_BATCH // samples)
        for start in range(0, len(chats), step):
            batch = chats[start : start + step]
            places = [(i, s) for i in range(len(batch)) for s in range(samples)]
            known = {(i, s) for i, s in places if (start + i, s) in skip}
            if len(known) == len(places):
                continue
            prompts = [tokenizer.prompt(chat[-1]["content"], self.system, chat[:-1])
                       for chat in batch]
            # A sample depends on its place among the chats, in whichever batch that is.
            settings = self.settings | {"seed": self.seed + (start << 32)}
            for done in generate(self.run.model, prompts, stop_ids=tokenizer.stop_ids,
                                 vocab_size=tokenizer.size, prefix=self.run.prefix,
                                 samples=samples, skip=known, **settings):
                if not math.isfinite(done.mean_log_prob):
                    raise UserError(f"{self.name}: gives no finite probabilities; are its weights "
                                    "NaN or infinite?")
                choice = {"message": {"content": tokenizer.decode(done.ids)},
                          "finish_reason": done.finish}
                usage = {"prompt_tokens": len(prompts[done.problem]),
                         "completion_tokens": len(done.ids)}
                yield (start + done.problem, done.sample), {
                    "request": {"messages": batch[done.problem], **self.settings}, "status": 200,
                    "fault": "", "raw": json.dumps({"choices": [choice], "usage": usage}),
                    "attempt": 1, "mean_log_prob": done.mean_log_prob}


# ------------------------------------------------------------------------------------------ command


@dataclass(kw_only=True)
class TeacherFlags(ApiFlags, DecodingFlags):
    """The flags of every command that asks a teacher, of either kind."""

    teacher: str | None = flag(
        None, "one of our own: tiny, a run directory, a checkpoint's folder or a hub id")


@dataclass(kw_only=True)
class Flags(TeacherFlags):
    """The flags of `python -m recipes.teacher`."""

    question: str = flag(MISSING, "the question; - reads it from stdin", positional=True)
    output_dir: str | None = flag(None, "folder of the raw replies; those that are there are not "
                                  "asked for again (default: runs/teacher-N)")


def open_teacher(flags: TeacherFlags) -> ApiTeacher | LocalTeacher:
    """The one teacher that the flags name."""
    server = open_api(flags)
    if server:
        return server
    if not flags.teacher:
        raise UsageError(
            "no teacher: name one of our own with --teacher, or a server's with --api-model")
    is_run = (Path(flags.teacher) / "args.json").exists()
    named = {"run" if is_run else "model": flags.teacher}
    decoding = {part.name: getattr(flags, part.name) for part in fields(DecodingFlags)}
    run = load_asked(SamplingFlags(**decoding, **named))
    return LocalTeacher(name=flags.teacher, run=run, temperature=flags.temperature,
                        top_p=flags.top_p, top_k=flags.top_k, max_new_tokens=flags.max_new_tokens,
                        seed=flags.seed)


def main(argv: list[str]) -> None:
    """`python -m recipes.teacher`: ask one question, print the replies and what they cost."""
    flags = parse_flags(Flags, argv, __doc__)
    question = (sys.stdin.read() if flags.question == "-" else flags.question).strip()
    if not question:
        raise UsageError(
            "the question is empty; write it behind the flags, or - and give it on stdin")
    teacher = open_teacher(flags)
    begun = flags.output_dir and (Path(flags.output_dir) / "replies.jsonl").exists()
    folder = Path(flags.output_dir) if begun else new_directory(flags.output_dir, "teacher")
    answers = ask(teacher, [[{"role": "user", "content": question}]], folder, flags.samples)
    for number, reply in enumerate(answers.replies[0], 1):
        if flags.samples > 1:
            print(f"--- sample {number} of {flags.samples}")
        print(printable(reply.text) if reply else "(lost)")
        if reply and reply.finish == "length":
            print("(no end within --max-new-tokens)", file=sys.stderr)
    print(f"cost       {cost_line(answers.cost)}")
    print(f"files      {folder / 'replies.jsonl'}")
    if answers.lost:
        raise UserError(f"{answers.lost} of {flags.samples} replies were lost; --output-dir "
                        f"{folder} asks again")


if __name__ == "__main__":
    sys.exit(run_command(main))
