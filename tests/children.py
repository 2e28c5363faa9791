"""Child processes that have torch in memory from the start.

To import torch, and what its optimisers load, takes five seconds of processor time. A server
(multiprocessing's forkserver, one for each process of pytest) does so once. A child is a fork of
it: a process of its own, with its own id, signals, environment, folder and streams. None of our
modules is in it before its code imports them.

A test of what a process imports, of its memory, of its terminal or of its pipes starts a real one.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Not huggingface_hub, which reads the environment when it is imported.
LIBRARIES = ["torch", "torch._dynamo", "tokenizers", "safetensors.torch"]
PROGRAM = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


class Child:
    """A process that does what `python -c code words` does. The environment is this process's, or
    `env`.
    """

    def __init__(self, code: str, *words: str | Path, env: dict | None = None,
                 cwd: Path = ROOT) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mathft-child-")
        self.streams = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        for path in self.streams:
            path.touch()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        self.process = context.Process(
            target=become, daemon=True, args=(code, [str(word) for word in words],
                                              {**(env or os.environ)}, cwd, self.streams))
        self.process.start()
        self.pid = self.process.pid

    def texts(self) -> tuple[str, str]:
        """stdout and stderr so far."""
        out, error = (path.read_text(encoding="utf-8") for path in self.streams)
        return out, error

    def end(self, timeout: float = 120) -> subprocess.CompletedProcess:
        """What it has left, once it has ended. Kills one that takes longer: TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.texts(), timeout)
        return subprocess.CompletedProcess((), self.process.exitcode, *self.texts())

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def run(code: str, *words: str | Path, **how) -> subprocess.CompletedProcess:
    """`python -c code words`, to its end."""
    return Child(code, *words, **how).end()


def run_program(*words: str | Path, **how) -> subprocess.CompletedProcess:
    """`python file words`, to its end."""
    return run(PROGRAM, *words, **how)


def run_beside_hub(hub, home: Path, code: str, *words: str,
                   **environment: str) -> subprocess.CompletedProcess:
    """`python -c code words`, which must go well. A server on the loopback is its hub, and `home`
    holds its cache. (The hub's client reads both when it is imported.)
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1"}
    done = run(code, *words, env={**clean, **ours, **environment})
    assert done.returncode == 0, done.stderr
    return done


def become(code: str, words: list[str], environment: dict[str, str], folder: Path,
           streams: list[Path]) -> None:
    """Be `python -c code words` in a folder, from within the fork."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-c", *words]
    own = {str(ROOT), str(ROOT / "tests"), ""}
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in own)]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except KeyboardInterrupt:  # then the interpreter ends by the signal itself
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
