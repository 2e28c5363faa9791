"""The study's commands as jobs: each runs once, in a folder that is named after its settings.

    python study.py --only votes         # runs what that table needs and is not there yet

1. A run of show/experiments.py becomes a command: its settings and the folders of other runs are
   put in.
2. The command's words name its folder, LABEL-HASH. So tables share a run, and a run with other
   settings is another run. Beside the folder stand LABEL-HASH.out and .log, which are the
   command's stdout and stderr, and LABEL-HASH.json, its record: command, seconds, memory, error.
3. A record without an error is never computed again. What was interrupted goes on: mathft.py by
   --resume, the others by the same command. What failed is tried again by the next study.

Every command is a process of its own, started from a list of words without a shell.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flags import Terminated
from runtime import one_line, read_json, remove_leftovers, write_json

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "N"  # a number that another run will give
DATA = "data.jsonl"  # what the makers of data leave last
INTERRUPTED = "interrupted"
LONGEST_ERROR = 200  # characters
LOOK_EVERY = 0.2  # seconds between looks at a program's memory


@dataclass(frozen=True)
class Job:
    """A run with one seed as a command. `words` begin with the program; `needs` are runs."""

    run: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a person types."""
        target = f" > {self.folder / DATA}" if self.prints else ""
        return shlex.join(["python", *self.words]) + target

    @property
    def prints(self) -> bool:
        """Whether the command's result is what it prints."""
        return self.words[0] == "synthetic.py"

    def beside(self, suffix: str) -> Path:
        """A file beside the folder."""
        return self.folder.with_name(self.folder.name + suffix)


@dataclass
class Jobs:
    """All runs of a study. `settings` are texts with {names}, or words that are taken as they are.
    """

    runs: Mapping[str, str]
    settings: Mapping[str, str | tuple[str, ...]]
    folder: Path
    tell: Callable[[str], None] = lambda line: None
    records: dict[Path, dict] = field(default_factory=dict)  # of this process, by folder

    # ------------------------------------------------------------------------------------- commands

    def job(self, run: str, seed: int) -> Job:
        """The command of a run. Raises KeyError for a name that is neither a run nor a setting."""
        needs: dict[str, None] = {}
        folder = self.folder / self.name(run, seed)
        words = self._fill(self.runs[run], seed, self.folder, needs) + ["--seed", str(seed)]
        if words[0] != "synthetic.py":
            words += ["--output-dir", str(folder)]
        return Job(run, seed, folder, tuple(words), tuple(needs))

    def name(self, run: str, seed: int) -> str:
        """LABEL-HASH: the hash is that of the command, in which other runs stand by their names."""
        words = self._fill(self.runs[run], seed, Path("runs"), {})
        plain = [word for word in words[1:] if word[:1].isalpha() and not set(word) & set("/,.")]
        label = "-".join([Path(words[0]).stem, *plain])[:60]
        digest = hashlib.sha256(json.dumps([*words, seed]).encode()).hexdigest()
        return f"{label}-{digest[:10]}"

    def _fill(self, text: str, seed: int, place: Path, needs: dict[str, None]) -> list[str]:
        """The words of a text, with settings and other runs put in; their names go to `needs`."""
        words = []
        for word in text.split():
            before, brace, rest = word.partition("{")
            if not brace:
                words.append(word)
                continue
            name, _, after = rest.partition("}")
            value = self.settings.get(name)
            if value is None:
                value = (self._of_run(name, seed, place, needs),)
            found = list(value) if isinstance(value, tuple) else self._fill(value, seed, place,
                                                                           needs)
            if before or after:
                behind = self._fill(after, seed, place, needs) if after else [""]
                found = [before + found[0] + behind[0]]
            words += found
        return words

    def _of_run(self, name: str, seed: int, place: Path, needs: dict[str, None]) -> str:
        """What {name} means that is no setting: another run's folder, or a number from it."""
        kind, colon, about = name.partition(":")
        if not colon:
            needs[name] = None
            return str(place / self.name(name, seed))
        run, _, other = about.partition("@")
        needs[run] = None
        result = self.result(run, seed)
        if kind == "tokens":
            return str(result["train_tokens"]) if result else UNKNOWN
        needs[other] = None
        seconds = self.result(other, seed).get("train_seconds")
        if not result or not seconds:
            return UNKNOWN
        return str(max(1, round(seconds * result["steps"] / result["train_seconds"])))

    def result(self, run: str, seed: int) -> dict:
        """The result.json of a run that has ended; empty if it has not."""
        folder = self.folder / self.name(run, seed)
        if self.stored(folder) is None:
            return {}
        return read_json(folder / "result.json")

    def all_jobs(self, run: str, seed: int) -> list[Job]:
        """The jobs that a run needs, and its own as the last; each stands behind what it needs."""
        job, found = self.job(run, seed), {}
        for need in job.needs:
            found |= {part.folder: part for part in self.all_jobs(need, seed)}
        return [*found.values(), job]

    # ------------------------------------------------------------------------------------ computing

    def stored(self, folder: Path) -> dict | None:
        """The record of a job that has ended well."""
        path = folder.with_name(folder.name + ".json")
        record = read_json(path) if path.exists() else {"error": "not run"}
        return None if record["error"] else record

    def do(self, run: str, seed: int) -> dict:
        """The record of a run, computed if it is not there. One that fails, or whose need has
        failed, has an `error`.
        """
        failed = [need for need in self.job(run, seed).needs if self.do(need, seed)["error"]]
        job = self.job(run, seed)  # again: a pace is known now
        if job.folder not in self.records:
            record = self.stored(job.folder)
            if record is None and failed:
                record = self._about(job) | {"error": f"needs {failed[0]}, which failed"}
            self.records[job.folder] = record or self._compute(job)
        return self.records[job.folder]

    def _about(self, job: Job) -> dict:
        return {"run": job.run, "seed": job.seed, "command": job.command, "seconds": 0.0,
                "memory_mib": None}

    def _compute(self, job: Job) -> dict:
        """Run a job to its end, and write its record."""
        self.tell(f"run        {job.command}")
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        path = job.beside(".json")
        record = self._about(job) | {"error": INTERRUPTED}
        earlier = read_json(path) if path.exists() else {}
        if earlier.get("error") == INTERRUPTED:  # this attempt goes on from there
            record["seconds"] = earlier["seconds"]
        start = time.perf_counter()
        try:
            out, log = job.beside(".out"), job.beside(".log")
            code, record["memory_mib"] = run_child(words_now(job), out, log)
            record["error"] = error_of(code, log)
            if not record["error"] and job.prints:
                job.folder.mkdir(exist_ok=True)
                os.replace(out, job.folder / DATA)
        finally:
            record["seconds"] += time.perf_counter() - start
            write_json(path, record)
        memory = record["memory_mib"]
        self.tell(f"{'failed' if record['error'] else 'done':11s}{record['seconds']:.0f} s"
                  + (f", {memory:.0f} MiB" if memory else "")
                  + (f": {record['error']}" if record["error"] else ""))
        return record


def words_now(job: Job) -> list[str]:
    """The words to run now: those that go on with what an interrupted command has left."""
    program, folder = job.words[0], job.folder
    last = "result.json" if program == "mathft.py" else DATA
    if program != "evaluate.py" and (folder / last).exists():  # it ended, but not its record
        shutil.rmtree(folder)
    if program == "mathft.py" and (folder / "args.json").exists():
        return [program, "--resume", str(folder)]
    if folder.exists():
        remove_leftovers(folder)
    return list(job.words)


def run_child(words: list[str], out: Path, log: Path) -> tuple[int, float | None]:
    """Run a program of the project: stdout goes to `out`, stderr to `log`. Returns its exit code
    and its peak memory in MiB, None where the system does not say it.

    An interruption is passed on to the program once, which saves its state, and raised again.
    """
    with open(out, "wb") as stdout, open(log, "wb") as stderr:
        child = subprocess.Popen(  # a session of its own: Ctrl-C would reach it twice
            [sys.executable, str(ROOT / words[0]), *words[1:]], stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            return wait_for(child)
        except KeyboardInterrupt as stop:
            child.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
            child.wait()
            raise


def wait_for(child: subprocess.Popen) -> tuple[int, float | None]:
    """Exit code and peak memory in MiB of a process, once it has ended."""
    peak = None
    while True:
        peak = high_water_mib(child.pid) or peak
        try:
            return child.wait(timeout=LOOK_EVERY), peak
        except subprocess.TimeoutExpired:
            pass


def high_water_mib(process: int) -> float | None:
    """Largest resident set of a running process so far; None where there is no /proc.

    What the system says at its end (ru_maxrss) would not do: it counts the parent's memory too.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        return None


def error_of(code: int, log: Path) -> str:
    """Why a program has failed, in one line; empty if it has not."""
    if code == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = next((line for line in reversed(lines) if line.startswith("error: ")),
                lines[-1] if lines else "")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return one_line(f"{how}: {told}")[:LONGEST_ERROR]


if __name__ == "__main__":
    print(__doc__)
