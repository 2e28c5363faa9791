"""Programs of the project that run side by side, each in a process of its own.

    python study.py                      # starts them

1. `start_program` begins one, from a list of words without a shell. What it prints goes to files.
2. On Linux it is a fork of a server that has torch in memory (multiprocessing's forkserver). To
   import torch, and what its optimisers load, takes six seconds of a processor: more than many a
   small training. A fork is safe here since the server has no threads, and has not touched a GPU.
   On a machine with a GPU, and on other systems, it is a fresh interpreter.
3. `wait_for_any` waits for the first that ends, and looks at how much memory each takes.
4. `stop` asks programs to save their state and to end, and waits until they have. One whose parent
   has been killed asks itself.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from flags import Terminated
from runtime import one_line

ROOT = Path(__file__).resolve().parent.parent
# Not huggingface_hub, which reads the environment when it is imported.
LIBRARIES = ["torch", "torch._dynamo", "tokenizers", "safetensors.torch"]
LONGEST_ERROR = 200  # characters
LOOK_EVERY = 0.2  # seconds between looks at the programs that run


@dataclass
class Program:
    """A program that runs: its process, and the largest memory seen so far."""

    process: BaseProcess
    log: Path
    memory_mib: float | None = None

    def ended(self) -> bool:
        """Whether it has ended, after a look at its memory."""
        self.memory_mib = high_water_mib(self.process.pid) or self.memory_mib
        return self.process.exitcode is not None

    def wait(self) -> None:
        """Return once it has ended."""
        self.process.join()

    def ask_to_end(self) -> None:
        """Send SIGTERM, at which it saves its state and ends."""
        self.process.terminate()

    def error(self) -> str:
        """Why it has failed, in one line; empty if it has not."""
        return error_of(self.process.exitcode, self.log)


def start_program(words: list[str], out: Path, log: Path, threads: int | None = None) -> Program:
    """Run a program of the project: stdout goes to `out`, stderr to `log`."""
    for path in (out, log):
        path.write_bytes(b"")
    forks = sys.platform == "linux" and not torch.cuda.is_available()
    if forks:
        start_server()
    process = multiprocessing.get_context("forkserver" if forks else "spawn").Process(
        target=become, daemon=True,
        args=([str(ROOT / words[0]), *words[1:]], out, log, dict(os.environ), threads))
    process.start()
    return Program(process, log)


def start_server() -> None:
    """Start the server of forks, if it does not run. It ends when this process has ended.

    A terminal that closes sends SIGHUP to all that began in it. The server must live on, for it
    tells how its forks end: it is born with the signals blocked.
    """
    from multiprocessing import forkserver  # not on Windows
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    try:
        multiprocessing.set_forkserver_preload(LIBRARIES)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def become(words: list[str], out: Path, log: Path, environment: dict[str, str],
           threads: int | None) -> None:
    """Be `python words`, from within the new process."""
    if hasattr(os, "setsid"):  # not on Windows
        os.setsid()  # else Ctrl-C would reach it twice: from the terminal, and from `stop`
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGTERM})
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((out, log), 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    if threads:
        torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv[:] = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


def end_with_parent() -> None:
    """End as `stop` would have it, once the parent is dead. Else what goes on in this program's
    folder would be in the way of the next study.
    """
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def stop(programs: list[Program]) -> None:
    """Ask programs to save their state and to end, and wait until all have ended.

    By SIGTERM: of a study in the background (`python study.py &`), they may ignore SIGINT. A Ctrl-C
    while they save asks again, and they end at once. SIGTERM or SIGHUP does not: of a terminal that
    closes, both the system and the shell send one.
    """
    asked = False
    while not all(program.ended() for program in programs):
        try:
            for program in [] if asked else programs:
                program.ask_to_end()
            asked = True
            for program in programs:
                program.wait()
        except KeyboardInterrupt as again:
            asked = asked and isinstance(again, Terminated)


def wait_for_any(programs: list[Program]) -> list[Program]:
    """Those that have ended, once there are some; none if nothing runs."""
    while programs:
        if ended := [program for program in programs if program.ended()]:
            return ended
        time.sleep(LOOK_EVERY)
    return []


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
