"""All runs in one table: what each trained, on what, what it brought and what it cost.

    python runs.py               # the runs in runs/
    python runs.py FOLDER        # those in another folder

A run is a folder with an args.json that names a method. Its figures are those of its result.json;
one that has not ended shows the steps of its last checkpoint.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from checkpoint import checkpoints, step_of
from flags import flag, parse_flags, run_command
from runtime import UserError, one_line, read_json

COLUMNS = ("run", "method", "objective", "model", "data", "steps", "before", "after", "seconds",
           "MiB")


@dataclass
class Flags:
    """The flags of `python runs.py`."""

    folder: str = flag("runs", "the folder that holds the runs", positional=True)
    debug: bool = flag(False, "show the traceback of an error")


def rows_of(root: Path) -> list[list[str]]:
    """A row of COLUMNS for each run in the folder `root`, in the order of their names.

    If the files of a run cannot be read, its row has two cells: its name, and what is wrong.
    """
    rows = []
    for path in sorted(root.glob("*/args.json")):
        try:
            args = read_json(path)
            result = path.with_name("result.json")
            if "method" in args:  # an evaluation has none
                rows.append(_row(path.parent, args, read_json(result) if result.exists() else {}))
        except UserError as error:
            rows.append([path.parent.name, str(error)])
    return rows


def _row(folder: Path, args: dict, result: dict) -> list[str]:
    last = max(map(step_of, checkpoints(folder)), default=0)
    steps = _number(result["steps"], "") if "steps" in result else f"{last} so far"
    names = [args.get(key) for key in ("method", "objective", "model", "dataset")]
    rates = [result.get(f"accuracy_{when}") for when in ("before", "after")]
    costs = [result.get(key) for key in ("train_seconds", "peak_memory_mib")]
    return [folder.name, *map(str, names), str(steps), *(_number(rate, "%") for rate in rates),
            *(_number(cost, "") for cost in costs)]


def _number(value, unit: str) -> str:
    """A share in percent, or a whole number; - if it is none, or none that a run can have."""
    if type(value) not in (int, float) or not abs(value) < 1e12:
        return "-"
    return f"{value:.1%}" if unit else f"{value:,.0f}"


def lines_of(rows: list[list[str]]) -> list[str]:
    """The rows under their headings, each column as wide as its widest cell."""
    whole = [list(COLUMNS), *(row for row in rows if len(row) == len(COLUMNS))]
    widths = [max(len(row[i]) for row in whole) for i in range(len(COLUMNS))]
    return [one_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths))
                     if len(row) == len(COLUMNS) else "  ".join(row)).rstrip()
            for row in (list(COLUMNS), *rows)]


def main(argv: list[str]) -> None:
    """`python runs.py`: print the table."""
    root = Path(parse_flags(Flags, argv, __doc__).folder)
    rows = rows_of(root)
    if not rows:
        raise UserError(f"{root}: holds no run; make one: python mathft.py --method lora")
    print(*lines_of(rows), sep="\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
