"""The frame of every command: flags from a dataclass, exit codes, one line for an error.

    python flags.py --help       # a small command made of the pieces below
    python flags.py --times 2 hello

A command is a dataclass whose fields are its flags, and a `main(argv)` under `run_command`. The
field `batch_size` is the flag `--batch-size`; its default value is the dataclass's own; an unknown
flag is an error.
"""

import argparse
import contextlib
import dataclasses
import inspect
import math
import os
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence

import torch

from runtime import UsageError, UserError, one_line, printable


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C: code that saves its state on one of them saves on both."""


def flag(default, help: str, *, alias: str | None = None, choices: Sequence | None = None,
         least: float | None = None, most: float | None = None, positional: bool = False,
         free: bool = False):
    """A dataclass field that is a flag. `least` and `most` are inclusive bounds of a number.

    `default=dataclasses.MISSING` makes the flag required. A positional argument that has a default
    may be left out. A method's flag that is `free` may change when its result trains further.
    """
    about = dict(help=help, alias=alias, choices=choices, least=least, most=most,
                 positional=positional, free=free)
    return dataclasses.field(default=default, metadata=about)


class _CommandParser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}; --help lists the flags")


def parse_flags(cls: type, argv: list[str], description: str | None = None):
    """An instance of the dataclass `cls` from the words of a command line."""
    return cls(**given_flags(cls, argv, description))


def given_flags(cls_or_classes: type | tuple[type, ...], argv: list[str],
                description: str | None = None) -> dict:
    """The values that a command line gives, by field name. A flag that is not given is left out.

    `cls_or_classes` is a dataclass, or a tuple of dataclasses whose fields stand on one command.
    `--help` lists each class after the first under its own heading, the first line of its
    docstring. Types are str, int, float, bool (--name / --no-name) and each of them `| None`.
    Raises UsageError for an unknown flag or a value that does not fit, and ValueError if two fields
    have the same name or alias. `--help` prints and exits.
    """
    classes = cls_or_classes if isinstance(cls_or_classes, tuple) else (cls_or_classes, )
    # No abbreviations: a flag that is added later would change what an old command means.
    parser = _CommandParser(description=description, allow_abbrev=False,
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
            try:
                _add_flag(group, field, hints[field.name])
            except argparse.ArgumentError as error:  # two aliases, or an alias and a name
                raise ValueError(f"{cls.__name__}: {error}") from None
    return vars(parser.parse_args(argv))


def pick(kind: type, values: dict):
    """The flags of a dataclass, from settings that hold others too."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)
                   if field.name in values})


def _add_flag(group: argparse._ActionsContainer, field: dataclasses.Field, kind) -> None:
    """Add one dataclass field of type `kind` to a parser or to an argument group."""
    about = field.metadata
    if isinstance(kind, types.UnionType):  # "int | None" reads as int
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    required = field.default is dataclasses.MISSING
    help = about["help"].replace("%", "%%")
    if not required and field.default not in (None, ""):
        shown = ("on" if field.default else "off") if kind is bool else field.default
        help += f" (default: {shown})"
    # SUPPRESS leaves out what is not given: the dataclass knows its own defaults.
    options = {"help": help, "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        number = _number_reader(kind, about["least"], about["most"])
        options["type"] = str if kind is str else number
        options["choices"] = about["choices"]
        if not about["choices"]:
            options["metavar"] = {str: "TEXT", int: "N", float: "X"}[kind]
    if about["positional"]:
        options.update(metavar=field.name.upper(), nargs=None if required else "?")
        group.add_argument(field.name, **options)
    else:
        names = [f"--{field.name.replace('_', '-')}"] + [about["alias"]] * bool(about["alias"])
        group.add_argument(*names, dest=field.name, required=required, **options)


def _number_reader(kind: type, least: float | None, most: float | None) -> Callable[[str], float]:
    """A function that reads an int or a float, and refuses NaN and values out of bounds."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return value

    return read


def run_command(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code.

    Codes are 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM. An error that the user can
    mend becomes one line on stderr, and `--debug` shows its traceback too. Any other error is a
    fault of the program and keeps its traceback.
    """
    argv = sys.argv[1:] if argv is None else argv

    def terminate(signum, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        main(argv)
        sys.stdout.flush()  # while a closed pipe is caught
        return 0
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        # Without this the flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, UserError, MemoryError, OSError, RuntimeError) as error:
        code, line = _explain(error)
        if line is None:
            raise
        if "--debug" in argv:
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        print(line, file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM in the list that is given, so that a loop can end its step and save.

    A second signal ends the program at once.
    """
    received: list[int] = []

    def note(number: int, frame) -> None:
        if received:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        received.append(number)
        print("interrupted: ending this step, then saving; once more ends at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
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
    # torch's CPU allocator has no exception class of its own.
    if (isinstance(error, MemoryError | torch.OutOfMemoryError)
            or "can't allocate memory" in str(error)):
        return 1, ("error: out of memory; use smaller batches, shorter texts, a smaller model"
                   " or --dtype bf16")
    if isinstance(error, OSError):
        place = error.filename or "input/output"
        return 1, one_line(f"error: {place}: {error.strerror or error}")
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
