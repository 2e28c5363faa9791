"""The frame of every command: flags from a dataclass, exit codes, one line for an error.

    python flags.py --help       # a small command made of the pieces below
    python flags.py --times 2 hello

A command is a dataclass and a `main(argv)` under `run_command`. Each field of the dataclass is a
flag: `batch_size` is `--batch-size`, and its default is the field's. An unknown flag is an error.
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import inspect
import json
import math
import os
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch

from runtime import ALONE, Alone, UsageError, UserError, one_line, printable


NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
LARGEST_INT = 2**63 - 1  # what torch and numpy take


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised like Ctrl-C: code that saves its state on one saves on all."""


def flag(default, help: str, *, alias: str | None = None, choices: Sequence | None = None,
         least: float | None = None, most: float | None = None, positional: bool = False,
         free: bool = False, empty: bool = False, group: str | None = None):
    """A dataclass field that is a flag. `least` and `most` are inclusive bounds of a number.

    `default=dataclasses.MISSING` makes the flag required. A positional argument that has a default
    may be left out; one of type list[str] takes one word or more. A method's flag that is `free`
    may change when its result trains further. A text is not `empty` unless that means something: a
    shell puts nothing in the place of a variable that is not set. A `group` is a heading of --help,
    over this flag and those after it.
    """
    about = dict(help=help, alias=alias, choices=choices, least=least, most=most,
                 positional=positional, free=free, empty=empty, group=group)
    return dataclasses.field(default=default, metadata=about)


class _CommandParser(argparse.ArgumentParser):
    def error(self, message: str):
        """Raise UsageError, with the flag or the choice that a wrong word is near to."""
        said = message.partition(" (choose")[0]
        known = list(self._option_string_actions)
        if "invalid choice" in said:
            known += [choice for action in self._actions for choice in action.choices or ()]
        wrong = (word.strip("':").partition("=")[0] for word in said.split())
        near = next(filter(None, (did_you_mean(word, known) for word in wrong)), "")
        raise UsageError(f"{message}{near}; --help lists the flags")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Words for an error about an unknown name: which of `known` it is near to, if any."""
    known = list(known)
    near = [] if word in known else difflib.get_close_matches(word, known, 1, 0.7)
    return f"; did you mean {near[0]}?" if near else ""


def parse_flags(cls: type, argv: list[str], description: str | None = None):
    """An instance of the dataclass `cls` from the words of a command line."""
    return cls(**given_flags(cls, argv, description))


def given_flags(cls_or_classes: type | tuple[type, ...], argv: list[str],
                description: str | None = None) -> dict:
    """The values that a command line gives, by field name. A flag that is not given is left out.

    `cls_or_classes` is a dataclass, or a tuple of dataclasses for the flags of one command.
    `--help` lists each class after the first under its own heading, the first line of its
    docstring. Types are str, int, float, bool (--name / --no-name) and each of them `| None`.
    Raises UsageError for an unknown flag or a value that does not fit, and ValueError if two fields
    have the same name or alias. `--help` prints and exits.
    """
    classes = cls_or_classes if isinstance(cls_or_classes, tuple) else (cls_or_classes, )
    # No abbreviations: a flag that is added later would change what an old command means.
    parser = _CommandParser(prog=_called(argv), description=description, allow_abbrev=False,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    owners: dict[str, type] = {}  # the class of each field name
    for cls in classes:
        group = parser if cls is classes[0] else parser.add_argument_group(
            inspect.getdoc(cls).partition("\n")[0].rstrip("."))
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in owners:
                raise ValueError(f"{field.name}: a field of {owners[field.name].__name__}"
                                 f" and of {cls.__name__}")
            owners[field.name] = cls
            if field.metadata["group"]:
                group = parser.add_argument_group(field.metadata["group"])
            try:
                _add_flag(group, field, hints[field.name])
            except argparse.ArgumentError as error:  # two aliases, or an alias and a name
                raise ValueError(f"{cls.__name__}: {error}") from None
    _check_text(argv)
    return vars(parser.parse_args(argv))


def _check_text(argv: list[str]) -> None:
    """Raise UsageError for a word whose bytes are no text: Python keeps them as halves of surrogate
    pairs, which no file of settings can hold.
    """
    for word in argv:
        if any("\ud800" <= char <= "\udfff" for char in word):
            raise UsageError(f"{word}: no text in UTF-8; give the file or folder another name")


def spelled(name: str) -> str:
    """A field as the flag that a user types."""
    return "--" + name.replace("_", "-")


def _called(argv: list[str]) -> str:
    """What --help calls the command: `augment.py filter`, if `argv` are the words behind that."""
    program, *words = sys.argv
    before = words[: len(words) - len(argv)]
    return " ".join([Path(program).name, *before * (before + argv == words)])


def pick(kind: type, values: dict):
    """The flags of a dataclass, from settings that hold others too."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)
                   if field.name in values})


def _add_flag(group: argparse._ActionsContainer, field: dataclasses.Field, kind) -> None:
    """Add one dataclass field of type `kind` to a parser or to an argument group."""
    about = field.metadata
    kind, _ = _bare(kind)
    required = field.default is dataclasses.MISSING
    help = about["help"].replace("%", "%%")
    if not required and field.default not in (None, ""):
        shown = ("on" if field.default else "off") if kind is bool else field.default
        help += f" (default: {shown})"
    # SUPPRESS leaves out what is not given: the dataclass knows its own defaults.
    options = {"help": help, "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif kind == list[str]:
        options["nargs"] = "+"
    else:
        options["type"] = _text_reader(about) if kind is str else _number_reader(kind, about)
        options["choices"] = about["choices"]
        if not about["choices"]:
            options["metavar"] = {str: "TEXT", int: "N", float: "X"}[kind]
    if about["positional"]:
        options.setdefault("nargs", None if required else "?")
        options["metavar"] = field.name.upper()
        group.add_argument(field.name, **options)
    else:
        names = [spelled(field.name)] + [about["alias"]] * bool(about["alias"])
        group.add_argument(*names, dest=field.name, required=required, **options)


def _text_reader(about: Mapping) -> Callable[[str], str]:
    """A function that reads a text, and refuses an empty one that means nothing."""

    def read(text: str) -> str:
        if not text and not about["empty"]:
            raise argparse.ArgumentTypeError("is empty; give a value, or leave the flag out")
        return text

    return read


def _number_reader(kind: type, about: Mapping) -> Callable[[str], float]:
    """A function that reads an int or a float, and refuses NaN and values out of bounds."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:  # also an int of more than 4,300 digits
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not {NAMES[kind]}") from None
        fault = _fault(value, kind, about)
        if fault:
            raise argparse.ArgumentTypeError(f"{text[:60]} is {fault}")
        return value

    return read


def _fault(value, kind: type, about: Mapping) -> str | None:
    """Why a flag of this kind and these bounds does not take a value; None if it does."""
    # `type`, not isinstance: true is an int.
    if type(value) is not kind and not (kind is float and type(value) is int):
        return f"not {NAMES[kind]}"
    if kind is str and not value and not about["empty"]:
        return "empty"
    if kind is str or kind is bool:
        choices = about.get("choices")
        return f"none of {', '.join(choices)}" if choices and value not in choices else None
    if type(value) is int and not -LARGEST_INT <= value <= LARGEST_INT:
        return "beyond 64 bits"
    if not math.isfinite(value):
        return "not a finite number"
    if about.get("least") is not None and value < about["least"]:
        return f"below {about['least']}"
    if about.get("most") is not None and value > about["most"]:
        return f"above {about['most']}"
    return None


def check_stored(kinds: Iterable[type], values: dict, path: Path) -> None:
    """Hold settings from the file `path` against what their flags take: kind, bounds, choices.

    `kinds` are the dataclasses of the flags. What belongs to none of them is not looked at. Raises
    UserError that names the file and the setting.
    """
    for cls in kinds:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind, optional = _bare(hints[field.name])
            value = values.get(field.name)
            if field.name not in values or value is None and optional:
                continue
            fault = _fault(value, kind, field.metadata)
            if fault:
                shown = json.dumps(value)
                shown = shown if len(shown) <= 60 else shown[:59] + "…"
                raise UserError(f"{path}: {field.name} is {shown}, {fault}; "
                                "write there what the command was given")


def _bare(kind) -> tuple[type, bool]:
    """`int | None` is int, and optional."""
    if not isinstance(kind, types.UnionType):
        return kind, False
    return next(part for part in typing.get_args(kind) if part is not type(None)), True


def run_command(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code.

    Codes are 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM or SIGHUP. An error that the
    user can mend becomes one line on stderr, and `--debug` shows its traceback too. Any other error
    is a fault of the program and keeps its traceback.
    """
    argv = sys.argv[1:] if argv is None else argv

    def terminate(signum, frame):
        _leave_closed_terminal()
        raise Terminated

    _open_closed_streams()
    _never_fail_to_encode()
    if not _has_working_directory():
        _tell("error: the working directory has been removed; change to another")
        return 1
    before = {number: signal.signal(number, terminate) for number in _ends()}
    try:
        main(argv)
        sys.stdout.flush()  # while a closed pipe is caught
        return 0
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        _to_nowhere(sys.stdout)  # or the flush at exit would fail again
        return 1
    except (KeyboardInterrupt, UserError, MemoryError, OSError, RuntimeError) as error:
        code, line = _explain(error)
        if line is None:
            raise
        if "--debug" in argv:
            _tell(printable(traceback.format_exc()).rstrip())
        _tell(line)
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def joined() -> Iterator[Alone]:
    """The processes that do this command together: this one, or those that torchrun has started."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    import parallel  # here: one process needs none of it

    with parallel.joined(_explain) as ranks:
        yield ranks


def _ends() -> list[int]:
    """The signals, besides Ctrl-C, that ask a program to end. (nohup has a SIGHUP ignored: it stays
    so. Windows has none.)"""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
    return [signal.SIGTERM] + [hangup] * (not ignored)


def _open_closed_streams() -> None:
    """Put nothing in the place of a standard stream that the caller has closed (`2>&-`): else the
    next file that is opened would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def _never_fail_to_encode() -> None:
    """A character that the terminal's encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _tell(line: str) -> None:
    with unread_output(sys.stderr):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def unread_output(stream: TextIO) -> Iterator[None]:
    """Within the block, text for a terminal that is closed, or for a pipe that nobody reads, is
    dropped; so is all that goes there afterwards. Work that takes hours goes on without."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise
        _to_nowhere(stream)
        _leave_closed_terminal()


def _leave_closed_terminal() -> None:
    """Write no more to a terminal that is closed: it would be an error each time."""
    for stream in (sys.stdout, sys.stderr):
        try:
            os.write(stream.fileno(), b"")
        except OSError as error:  # also of a stream without a descriptor
            if error.errno == errno.EIO:
                _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Note Ctrl-C, SIGTERM and SIGHUP in the list that is given, so that a loop can end its step
    and save.

    A second signal ends the program at once. A second SIGHUP does not: of a terminal that closes,
    both the system and the shell send one.
    """
    received: list[int] = []

    def note(number: int, frame) -> None:
        if received and number == getattr(signal, "SIGHUP", None):
            return
        if received:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        received.append(number)
        _leave_closed_terminal()
        _tell("interrupted: ending this step, then saving; once more ends at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *_ends())}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: BaseException) -> tuple[int, str | None]:
    """Exit code and line of an error; the line is None if the user can do nothing about it."""
    if isinstance(error, KeyboardInterrupt):
        return (143, "terminated") if isinstance(error, Terminated) else (130, "interrupted")
    if isinstance(error, UserError):
        # Messages hold names of files and texts of models: none reaches the terminal raw.
        return 2 if isinstance(error, UsageError) else 1, one_line(f"error: {error}")
    if isinstance(error, OSError):
        place = error.filename or "input/output"
        return 1, one_line(f"error: {place}: {error.strerror or error}")
    # torch's CPU allocator has no exception class of its own.
    if (isinstance(error, MemoryError | torch.OutOfMemoryError)
            or "can't allocate memory" in str(error)):
        return 1, ("error: out of memory; use smaller batches, shorter texts, a smaller model"
                   " or --dtype bf16")
    return 1, None


@dataclasses.dataclass
class DemoFlags:
    """The flags of the small command at the end of this file."""

    word: str = flag(dataclasses.MISSING, "what to say", positional=True)
    times: int = flag(1, "how often", alias="-n", least=1)
    loud: bool = flag(False, "say it in capitals")


def _main(argv: list[str]) -> None:
    args = parse_flags(DemoFlags, argv, "Say a word.")
    for _ in range(args.times):
        print(args.word.upper() if args.loud else args.word)


if __name__ == "__main__":
    sys.exit(run_command(_main))
