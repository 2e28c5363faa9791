"""`--help` without torch. A command that is asked for help imports this first, before torch.

    python mathft.py --help        # answers in half a second; importing torch alone takes 2 to 4
    python -m pytest tests/test_quick_help.py -v

A help text needs the flags alone. But flags stand beside the code that they belong to, and when
that code is imported, its classes derive from torch's and torch's decorators are called. So, if the
command line asks for help:

1. What is imported of torch is a stand-in, which computes nothing.
2. Each attribute, call and subscript of it is the stand-in again; a class derived from it derives
   from nothing.
3. The command finds --help among its words. It prints the help and ends, or ends with an error.

The texts are the same as with torch: a test compares them. (Programs that make documentation of
code import it in the same way: Sphinx's autodoc_mock_imports.)
"""

import os
import sys
from types import ModuleType


class StandIn(ModuleType):
    """In the place of torch, or of a module within it."""

    __path__ = ()  # it has modules within it

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):  # what Python and its libraries ask any object for
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs) -> "StandIn":
        return self

    __getitem__ = __or__ = __ror__ = __call__  # Callable[..., Tensor], Tensor | None

    def __mro_entries__(self, bases: tuple) -> tuple:
        """The bases of a class, in the place of this one."""
        return ()


class Finder:
    """What Python asks for a module that is not imported yet; see sys.meta_path."""

    @classmethod
    def find_spec(cls, name: str, path, target=None):
        """How to import torch and the modules within it; None for others."""
        kind = type(sys.__spec__)
        return kind(name, cls) if name.partition(".")[0] == "torch" else None

    @staticmethod
    def create_module(spec) -> StandIn:
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module: StandIn) -> None:
        """Nothing is run: the module is made."""


def asks_for_help(words: list[str]) -> bool:
    """Whether a command line has --help or -h among its flags: before `--`, if that is there."""
    flags = words[: words.index("--")] if "--" in words else words
    return "--help" in flags or "-h" in flags


# Under torchrun, the processes of a command find each other first, and need torch for it.
if asks_for_help(sys.argv[1:]) and "torch" not in sys.modules and "WORLD_SIZE" not in os.environ:
    sys.meta_path.insert(0, Finder)


if __name__ == "__main__":
    print(__doc__)
