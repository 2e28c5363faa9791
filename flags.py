"""The frame around every command: flags from a dataclass, and one line instead of a traceback.

    python flags.py --help       # a small command made of the pieces below
    python flags.py --times 2 hello

A command is a dataclass whose fields are its flags, and a `main(argv)` under `run_command`. A name with underscores
becomes a kebab-case flag, the default value is the dataclass's own, and what is not a flag is an error.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence

import torch

from runtime import UsageError, UserError


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C, so that whoever saves on the one saves on the other."""


def flag(default, help: str, *, alias: str | None = None, choices: Sequence | None = None,
         least: float | None = None, most: float | None = None, positional: bool = False,
         free: bool = False):
    """A dataclass field that is a flag.

    `least` and `most` are inclusive bounds of a number. A positional argument with a default may be
    left out; `default=dataclasses.MISSING` makes a flag required. `free` flags of a method may change
    when an earlier result is trained further.
    """
    names = dict(help=help, alias=alias, choices=choices, least=least, most=most,
                 positional=positional, free=free)
    return dataclasses.field(default=default, metadata=names)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}; --help lists the flags")


def _number(kind: type, least: float | None, most: float | None) -> Callable[[str], float]:
    """A reader of int or float that refuses NaN, infinity and what lies out of bounds."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a {'whole ' * (kind is int)}number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return value

    return read


def parse_flags(cls: type, argv: list[str], description: str | None = None):
    """An instance of the dataclass `cls` from command-line words, with its defaults where a flag is not given."""
    return cls(**given_flags(cls, argv, description))


def given_flags(cls: type | tuple[type, ...], argv: list[str], description: str | None = None) -> dict:
    """The flags of the dataclass `cls` (or of several) that stand on the command line, by field name.

    Types are str, int, float, bool (--name / --no-name) and each of them `| None`. Each dataclass
    after the first is a group of its own in --help, under the first line of its docstring. Raises
    UsageError for an unknown flag or a value that does not fit; `--help` prints and exits.
    """
    # Abbreviations are refused, or a flag added later would change what an old command means.
    parser = _Parser(description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    classes = cls if isinstance(cls, tuple) else (cls,)
    for number, kind in enumerate(classes):
        title = (kind.__doc__ or kind.__name__).split("\n")[0].rstrip(".")
        group = parser.add_argument_group(title) if number else parser
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            _add_flag(group, field, hints[field.name])
    return vars(parser.parse_args(argv))


def _add_flag(parser, field: dataclasses.Field, kind: type) -> None:
    """Add a field of type `kind` to a parser, or to a group of one."""
    about = field.metadata
    if isinstance(kind, types.UnionType):  # "int | None" reads as int
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    required = field.default is dataclasses.MISSING
    help = about["help"].replace("%", "%%")
    if not required and field.default not in (None, ""):
        shown = ("on" if field.default else "off") if kind is bool else field.default
        help += f" (default: {shown})"
    # SUPPRESS: what is not given is left to the dataclass.
    options = {"help": help, "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = str if kind is str else _number(kind, about["least"], about["most"])
        options["choices"] = about["choices"]
        if not about["choices"]:
            options["metavar"] = {str: "TEXT", int: "N", float: "X"}[kind]
    if about["positional"]:
        options.update(metavar=field.name.upper(), nargs=None if required else "?")
        parser.add_argument(field.name, **options)
    else:
        names = [f"--{field.name.replace('_', '-')}"] + [about["alias"]] * bool(about["alias"])
        parser.add_argument(*names, dest=field.name, required=required, **options)


def run_command(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code: 0 done, 1 failed, 2 usage, 130 Ctrl-C, 143 SIGTERM.

    What the user can mend becomes one line on stderr; `--debug` shows the traceback too. Anything else is a fault of
    the program and keeps its traceback.
    """
    argv = sys.argv[1:] if argv is None else argv

    def terminate(signum, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        main(argv)
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return 0
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY),
                sys.stdout.fileno())  # or the flush at exit would fail again
        return 1
    except (KeyboardInterrupt, UserError, MemoryError, OSError, RuntimeError) as error:
        code, line = _explain(error)
        if line is None:
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(line, file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, so that the loop can end its step and save; a second one ends the program at once."""
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
    """Exit code and line of an error; no line where the user could do nothing about it."""
    if isinstance(error, KeyboardInterrupt):
        return (143, "terminated") if isinstance(error, Terminated) else (130, "interrupted")
    if isinstance(error, UserError):
        return (2 if isinstance(error, UsageError) else
                1), "error: " + " ".join(str(error).split("\n"))
    # torch's CPU allocator has no exception class of its own.
    out = isinstance(error,
                     MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if out:
        return 1, "error: out of memory; use smaller batches, shorter texts, a smaller model or --dtype bf16"
    if isinstance(error, OSError):
        return 1, f"error: {error.filename or 'input/output'}: {error.strerror or error}"
    return 1, None


@dataclasses.dataclass
class Example:
    """The flags of the small command at the end of this file."""

    word: str = flag(dataclasses.MISSING, "what to say", positional=True)
    times: int = flag(1, "how often", alias="-n", least=1)
    loud: bool = flag(False, "say it in capitals")


def _main(argv: list[str]) -> None:
    args = parse_flags(Example, argv, "Say a word.")
    for _ in range(args.times):
        print(args.word.upper() if args.loud else args.word)


if __name__ == "__main__":
    sys.exit(run_command(_main))
