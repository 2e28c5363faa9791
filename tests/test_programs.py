"""Programs that run side by side: as forks of a server that has torch, and as fresh interpreters.

The programs here are stand-ins of a few lines.
"""

import json
import multiprocessing.forkserver
import os
import signal
import sys
import time

import pytest
import torch

from show import programs
from show.programs import error_of, start_program, stop, wait_for_any

needs_forks = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")


@pytest.fixture(params=[pytest.param("fork", marks=needs_forks), "fresh"])
def kind(request, monkeypatch):
    """How a program is started: the second way is that of a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param == "fresh")
    return request.param


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(code, word, …, threads=): a stand-in of this code, with its folder as the root."""
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)

    def begin(code, *words, threads=None):
        (tmp_path / "stand_in.py").write_text(code)
        return start_program(["stand_in.py", *words], tmp_path / "out", tmp_path / "log", threads)

    return begin


def until(path):
    """Wait for a file, for at most half a minute."""
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


def test_a_program_is_what_a_typed_command_is(start, tmp_path, monkeypatch, kind):
    """Name, words, folder, environment, first folder of imports, a session of its own. It has its
    part of the threads.
    """
    monkeypatch.setenv("MATHFT_TEST", "ä")
    program = start("import json, os, sys, torch; print(json.dumps([__name__, sys.argv, "
                    "os.getcwd(), os.environ['MATHFT_TEST'], sys.path[0], torch.get_num_threads(), "
                    "os.getsid(0) == os.getpid()])); print('told', file=sys.stderr)",
                    "--a", "b c", threads=1)
    assert wait_for_any([program]) == [program] and program.error() == ""
    name, words, *others = json.loads((tmp_path / "out").read_text())
    assert (name, words) == ("__main__", [str(tmp_path / "stand_in.py"), "--a", "b c"])
    assert others == [str(tmp_path), "ä", str(tmp_path), 1, True]
    assert (tmp_path / "log").read_text() == "told\n"


@pytest.mark.parametrize(("code", "told"), [
    ("import sys; sys.exit(3)", "exit code 3: "),
    ("import sys; sys.exit('error: a word')", "exit code 1: error: a word"),
    ("1 / 0", "exit code 1: ZeroDivisionError: division by zero"),
    ("import os; os.kill(os.getpid(), 9)", "signal 9: "),
])
def test_how_a_program_has_ended(start, code, told):
    program = start(code)
    program.wait()
    assert program.ended() and program.error() == told


def test_one_that_is_asked_to_end_saves_first(start, tmp_path, kind):
    program = start("import pathlib, signal, sys, time\n"
                    "signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved'))\n"
                    "pathlib.Path('ready').touch(); time.sleep(60)")
    until(tmp_path / "ready")
    assert not program.ended()
    stop([program])
    assert program.error() == "exit code 1: saved"


def die_beside_a_program(folder, with_gpu):
    """Be a study that is killed while a program of it runs."""
    torch.cuda.is_available = lambda: with_gpu
    programs.ROOT, programs.LIBRARIES = folder, []
    start_program(["stand_in.py"], folder / "out", folder / "log")
    until(folder / "ready")
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_whose_parent_is_killed_saves_and_ends(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stand_in.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path('saved').touch()))\n"
        "pathlib.Path('ready').touch(); time.sleep(60)")
    context = multiprocessing.get_context("forkserver")
    parent = context.Process(target=die_beside_a_program, args=(tmp_path, kind == "fresh"))
    parent.start()
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    until(tmp_path / "saved")


@needs_forks
def test_a_terminal_that_closes_does_not_take_the_server(start, tmp_path):
    """Its SIGHUP reaches the server of forks too, which must tell how they end."""
    multiprocessing.forkserver._forkserver._stop()  # one that an earlier test has started
    program = start("import pathlib, time; pathlib.Path('ready').touch(); time.sleep(1)")
    until(tmp_path / "ready")
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGHUP)
    program.wait()
    assert program.error() == "" and start("pass").process.is_alive()


def test_memory_is_that_of_the_program_and_not_of_its_parent(start):
    """This process holds 600 MiB more than they do."""
    here = bytearray(600 << 20)
    here[::4096] = b"1" * len(here[::4096])
    highest = []
    for mib in (300, 0):
        program = start(f"x = bytearray({mib} << 20); x[::4096] = b'1' * len(x[::4096]); "
                        "import time; time.sleep(1)")
        wait_for_any([program])
        highest.append(program.memory_mib)
    assert len(here) and (highest[0] is None or (250 < highest[0] - highest[1] < 350
                                                 and highest[1] < 600))


@pytest.mark.parametrize("code, text, told", [
    (0, "error: none", ""),
    (1, "warm\nerror: a file: mend it\nbye", "exit code 1: error: a file: mend it"),
    (-9, "", "signal 9: "),
    (1, "\x1b[2Jred", "exit code 1:  [2Jred"),
])
def test_why_a_program_has_failed(tmp_path, code, text, told):
    (tmp_path / "log").write_text(text)
    assert error_of(code, tmp_path / "log") == told
