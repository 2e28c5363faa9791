"""A teacher: any server that speaks OpenAI's chat completions, or one of our own checkpoints, behind one `ask`.

    python -m recipes.teacher "Tom has 3 boxes of 12 pens. How many pens has he?" --teacher tiny
    OPENAI_API_KEY=... python -m recipes.teacher --api-base https://HOST/v1 --api-model NAME "..."   # HOST, NAME: your server's

`ask(teacher, chats, folder, samples)` gives every chat its replies. Each raw reply, usable or not, is a line of
FOLDER/replies.jsonl before anything is read out of it, with the request that it answers and the key
sha256(teacher, messages, settings). What is there is never asked for again, a killed run goes on, all can be audited.

A reply that never came in a form that can be used is lost: None, never an empty text. client.py says how a server is
asked; a checkpoint of our own is asked through generate.py.
"""

import contextlib
import json
import math
import sys
from collections.abc import Container, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

from methods import Run
from data import Problem
from flags import flag, parse_flags, run_command
from generate import ApiFlags, DecodingFlags, SamplingFlags, generate, load_asked
from recipes.client import ApiTeacher, Reply, open_api, read_reply
from runtime import UsageError, UserError, new_directory, printable, text_sha256
from score import cost_line, record_of

LOCAL_BATCH = 4096  # completions that a checkpoint of our own has in hand at a time


@dataclass
class Answers:
    """The samples' replies of each chat, None where lost, and what they took."""

    replies: list[list[Reply | None]]
    keys: list[str]  # of each chat in the store
    asked: int  # replies that had to be asked for in this sitting
    stored: int  # replies that were there
    lost: int
    retries: int  # requests of this sitting beyond the first for a reply
    prompt_tokens: int  # of all replies in the store to these chats, useless ones included: what they have cost
    new_tokens: int
    seconds: float

    @property
    def cost(self) -> dict:
        """The part of them that score.cost_line puts into words."""
        return {
            "requests": self.asked + self.retries, "retries": self.retries, "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens, "new_tokens": self.new_tokens
        }


# -------------------------------------------------------------------------------------------- store


def ask(teacher: "ApiTeacher | LocalTeacher", chats: list[list[dict]], folder: Path,
        samples: int = 1) -> Answers:
    """The replies of `teacher` to each chat, `samples` of them, from `folder`/replies.jsonl or asked for now.

    chats: `{"role", "content"}` each, the last by the user. Equal chats are asked once and share their replies. Raises
    UserError where the server refuses for good or is not there, and where the store holds what it did not write.
    """
    start = perf_counter()
    system = [] if teacher.system is None else [{"role": "system", "content": teacher.system}]
    chats = [chat if chat[0]["role"] == "system" else system + chat for chat in chats]
    keys = [_key(teacher, chat) for chat in chats]
    names, distinct = zip(*dict(zip(keys, chats)).items()) if chats else ((), ())
    places = {key: number for number, key in enumerate(names)}
    found: dict[tuple[int, int], Reply] = {}
    spent = [0, 0]

    def take(place: tuple[int, int], line: dict) -> bool:
        reply = read_reply(line)
        spent[0] += reply.prompt_tokens or 0
        spent[1] += reply.new_tokens or 0
        if not reply.fault:
            found.setdefault(place, reply)
        return not reply.fault

    store = Path(folder) / "replies.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    for line in _stored(store):
        if line["key"] in places and 0 <= line["sample"] < samples:
            take((places[line["key"]], line["sample"]), line)
    stored, total, retries = len(found), len(distinct) * samples, 0
    bar = tqdm(total=total, initial=stored, desc=f"ask {teacher.name}", leave=False,
               disable=not sys.stderr.isatty())
    lines = teacher.answer(distinct, samples, frozenset(found))
    with bar, open(store, "ab") as file, contextlib.closing(lines):
        try:
            for (number, sample), line in lines:
                head = {"key": names[number], "sample": sample, "teacher": teacher.name}
                file.write(json.dumps(head | line, allow_nan=False).encode() + b"\n")
                file.flush()  # before it is read
                bar.update(take((number, sample), line))
                retries += line["attempt"] > 1
                bar.set_postfix(retries=retries, refresh=False)
        except KeyboardInterrupt:
            print(
                f"{len(found)} of {total} replies are in {store}; the same into this folder goes on",
                file=sys.stderr)
            raise
    replies = [[found.get((places[key], sample)) for sample in range(samples)] for key in keys]
    lost = sum(reply is None for group in replies for reply in group)
    return Answers(replies, keys, total - stored, stored, lost, retries, *spent,
                   perf_counter() - start)


def _key(teacher, messages: list[dict]) -> str:
    text = json.dumps([teacher.name, messages, teacher.settings], sort_keys=True)
    return text_sha256(text)


def _stored(path: Path) -> Iterator[dict]:
    """The lines of a store, one at a time. Half a last line, which a crash left, is removed."""
    if not path.exists():
        return
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
    """Graded records of the problems, asked behind the `turns` of worked examples, and what was lost and spent.

    A problem with a lost reply is left out, for it would be counted wrong or votes be missing. Raises UserError where
    nothing is left.
    """
    chats = [[*turns, {"role": "user", "content": problem.question}] for problem in problems]
    answers = ask(teacher, chats, folder, samples)
    records = []
    for number, (problem, replies) in enumerate(zip(problems, answers.replies)):
        if None not in replies:
            records += [
                record_of(problem, number, sample, reply.text, reply.new_tokens, reply.finish,
                          reply.mean_log_prob)
                | {"reply_key": answers.keys[number]} for sample, reply in enumerate(replies)
            ]
    wanted = len(problems) * samples
    if not records:
        raise UserError(
            f"{answers.lost} of {wanted} replies were lost and no problem is left to count; "
            f"{Path(folder) / 'replies.jsonl'} holds what came instead")
    left_out = len(problems) - len(records) // samples
    return records, {
        "lost": answers.lost, "wanted": wanted, "left_out": left_out, "cost": answers.cost
    }


# --------------------------------------------------------------------------------------- of our own


@dataclass(kw_only=True)
class LocalTeacher:
    """A checkpoint or the result of a run. That `name` still has the weights it had is the caller's affair."""

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
        """Yield ((chat, sample), line) as the completions end, in the words of a server. A second attempt would say the
        same."""
        tokenizer, step = self.run.tokenizer, max(1, LOCAL_BATCH // samples)
        for start in range(0, len(chats), step):
            batch = chats[start : start + step]
            places = [(i, s) for i in range(len(batch)) for s in range(samples)]
            known = {(i, s) for i, s in places if (start + i, s) in skip}
            if len(known) == len(places):
                continue
            prompts = [tokenizer.prompt(chat[-1]["content"], earlier=chat[:-1]) for chat in batch]
            for done in generate(
                    self.run.model,
                    prompts,
                    stop_ids=tokenizer.stop_ids,
                    vocab_size=tokenizer.size,
                    prefix=self.run.prefix,
                    samples=samples,
                    skip=known,
                    # A sample depends on its place among the chats, in whichever batch that lies.
                    **self.settings | {"seed": self.seed + (start << 32)}):
                if not math.isfinite(done.mean_log_prob):
                    raise UserError(
                        f"{self.name}: gives no finite probabilities; are its weights NaN or infinite?"
                    )
                raw = {
                    "choices": [{
                        "message": {"content": tokenizer.decode(done.ids)},
                        "finish_reason": done.finish
                    }], "usage": {
                        "prompt_tokens": len(prompts[done.problem]), "completion_tokens": len(
                            done.ids)
                    }
                }
                request = {"messages": batch[done.problem], **self.settings}
                yield (start + done.problem, done.sample), {
                    "request": request, "status": 200, "fault": "", "raw": json.dumps(raw),
                    "attempt": 1, "mean_log_prob": done.mean_log_prob
                }


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
    output_dir: str | None = flag(
        None, "folder of the raw replies; what one holds is not asked again "
        "(default: runs/teacher-N)")


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
    run = load_asked(
        SamplingFlags(**{part.name: getattr(flags, part.name)
                         for part in fields(DecodingFlags)}, **named))
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
        raise UserError(
            f"{answers.lost} of {flags.samples} replies were lost; --output-dir {folder} asks again"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
