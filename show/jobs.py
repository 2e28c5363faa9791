"""The study's commands as jobs: each runs once, in a folder that is named after its settings.

    python study.py --only votes         # runs what that table needs and is not there yet

1. A run of show/experiments.py becomes a command: its settings and the folders of other runs are
   put in.
2. The command's words name its folder, LABEL-HASH. So tables share a run, and a run with other
   settings is another run. Beside the folder stand LABEL-HASH.out and .log, which are the
   command's stdout and stderr, and LABEL-HASH.json, its record: command, seconds, memory, error.
3. Several commands run side by side, each with its part of the processor's threads, and each once
   the runs that it needs have ended. Programs of a small model gain by that: a good part of their
   time they use one thread, whatever they have.
4. A record without an error is never computed again. What was interrupted goes on: mathft.py by
   --resume, the others by the same command. What failed is tried again by the next study.

Every command is a process of its own: show/programs.py.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flags import Terminated, deferred_interrupts
from runtime import read_json, remove_leftovers, write_json
from show.programs import Program, start_program, stop, wait_for_any

UNKNOWN = "N"  # a number that another run will give
DATA = "data.jsonl"  # what the makers of data leave last
INTERRUPTED = "interrupted"
REGRADE = "--regrade"  # of evaluate.py: the samples are there, so that it draws none


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
class Work:
    """A job that is being computed."""

    job: Job
    record: dict
    program: Program
    start: float = field(default_factory=time.perf_counter)


@dataclass
class Jobs:
    """All runs of a study. `settings` are texts with {names}, or words that are taken as they are.
    `at_once` programs run side by side, with `threads` each (None: what the system says).
    """

    runs: Mapping[str, str]
    settings: Mapping[str, str | tuple[str, ...]]
    folder: Path
    tell: Callable[[str], None] = lambda line: None
    at_once: int = 1
    threads: int | None = None
    records: dict[Path, dict] = field(default_factory=dict)  # of this process, by folder

    # ------------------------------------------------------------------------------------- commands

    def job(self, run: str, seed: int) -> Job:
        """The command of a run. Raises KeyError for a name that is neither a run nor a setting."""
        needs: dict[str, None] = {}
        folder = self.folder / self.name(run, seed)
        words = self._fill(self.runs[run], seed, self.folder, needs)
        words += [] if REGRADE in words else ["--seed", str(seed)]
        if words[0] != "synthetic.py":
            words += ["--output-dir", str(folder)]
        return Job(run, seed, folder, tuple(words), tuple(needs))

    def name(self, run: str, seed: int) -> str:
        """LABEL-HASH: the hash is that of the command, in which other runs stand by their names."""
        words = self._fill(self.runs[run], seed, Path("runs"), {})
        plain = [word for word in words[1:] if word[:1].isalpha() and not set(word) & set("/,.")]
        label = "-".join([Path(words[0]).stem, *plain])[:60]
        if UNKNOWN in words:  # as yet it looks like other commands
            words.append(self.runs[run])
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
        """The record of a run, computed if it is not there."""
        for _ in self.work([(run, seed)]):
            pass
        return self.records[self.job(run, seed).folder]

    def all_known(self, wanted: Iterable[tuple[str, int]]) -> bool:
        """Whether all these runs have a record."""
        return all(self.job(run, seed).folder in self.records for run, seed in wanted)

    def work(self, wanted: Iterable[tuple[str, int]]) -> Iterator[None]:
        """Compute runs with their seeds, and what they need. Yields whenever a record is there.

        A run that fails, or whose need has failed, has an `error`. An interruption stops the
        programs, and is raised again when all have ended. Who may leave the loop early closes the
        generator (contextlib.closing), which is an interruption too.
        """
        waiting = self._in_order(wanted)
        running: list[Work] = []
        try:
            while waiting or running:
                while len(running) < self.at_once and (job := self._next(waiting, running)):
                    waiting.remove((job.run, job.seed))
                    record = (self.records.get(job.folder) or self.stored(job.folder)
                              or self._of_failed_need(job))
                    if record:
                        self.records[job.folder] = record
                        yield
                    else:
                        self._start(job, running)
                ended = wait_for_any([work.program for work in running])
                for work in [work for work in running if work.program in ended]:
                    running.remove(work)
                    self._end(work, work.program.error())
                    yield
        except BaseException:
            stop([work.program for work in running])
            for work in running:
                self._end(work, work.program.error() and INTERRUPTED)
            raise

    def _in_order(self, wanted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Runs with seeds and all that they need, each behind its needs, each once; not those whose
        record is there.
        """
        found = {(job.run, job.seed): job.folder for run, seed in wanted
                 for job in self.all_jobs(run, seed)}
        return [pair for pair, folder in found.items() if folder not in self.records]

    def _next(self, waiting: list[tuple[str, int]], running: list[Work]) -> Job | None:
        """The first job that can start: nothing that it needs waits or runs, and no run of another
        name computes the same.
        """
        ahead = {*waiting, *((work.job.run, work.job.seed) for work in running)}
        folders = [work.job.folder for work in running]
        for run, seed in waiting:
            job = self.job(run, seed)
            if job.folder not in folders and all((need, seed) not in ahead for need in job.needs):
                return job
        return None

    def _of_failed_need(self, job: Job) -> dict | None:
        """The record of a job that cannot be computed; None if it can."""
        for need in job.needs:
            if self.records[self.job(need, job.seed).folder]["error"]:
                return self._about(job) | {"error": f"needs {need}, which failed"}
        return None

    def _about(self, job: Job) -> dict:
        return {"run": job.run, "seed": job.seed, "command": job.command, "seconds": 0.0,
                "memory_mib": None}

    def _start(self, job: Job, running: list[Work]) -> None:
        """Begin to compute a job, and add it to those that run."""
        self.tell(f"run        {job.command}")
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        path = job.beside(".json")
        record = self._about(job) | {"error": INTERRUPTED}
        earlier = read_json(path) if path.exists() else {}
        if earlier.get("error") == INTERRUPTED:  # this attempt goes on from there
            record["seconds"] = earlier["seconds"]
        with deferred_interrupts() as received:  # else a program may begin that nobody stops
            program = start_program(words_now(job), job.beside(".out"), job.beside(".log"),
                                    self.threads)
            running.append(Work(job, record, program))
        if received:
            raise KeyboardInterrupt if signal.SIGINT in received else Terminated

    def _end(self, work: Work, error: str) -> None:
        """Write the record of a job whose program has ended."""
        job, record = work.job, work.record
        record |= {"error": error, "memory_mib": work.program.memory_mib,
                   "seconds": record["seconds"] + time.perf_counter() - work.start}
        if not error and job.prints:
            job.folder.mkdir(exist_ok=True)
            os.replace(job.beside(".out"), job.folder / DATA)
        write_json(job.beside(".json"), record)
        self.records[job.folder] = record
        memory = record["memory_mib"]
        how = {"": "done", INTERRUPTED: "stopped"}.get(error, "failed")
        self.tell(f"{how:11s}{record['seconds']:.0f} s"
                  + (f", {memory:.0f} MiB" if memory else "") + (f": {error}" if error else "")
                  + f"  {job.folder.name}")


def words_now(job: Job) -> list[str]:
    """The words to run now: those that go on with what an interrupted command has left."""
    program, folder = job.words[0], job.folder
    last = "result.json" if program == "mathft.py" else DATA
    ended = program != "evaluate.py" and (folder / last).exists()  # it ended, but not its record
    if ended or REGRADE in job.words and folder.exists():
        shutil.rmtree(folder)
    if program == "mathft.py" and (folder / "args.json").exists():
        return [program, "--resume", str(folder)]
    if folder.exists():
        remove_leftovers(folder)
    return list(job.words)


if __name__ == "__main__":
    print(__doc__)
