"""Rerun the tables and figures of the papers, and say whether the directions are the same.

    python study.py --quick              # one seed, small evaluations: the shape of every table
    python study.py                      # three seeds, more samples, steps and test problems
    python study.py --only votes,methods
    python study.py --list               # every table with its commands, and what is done already
    python study.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k --only methods

1. show/experiments.py lists the tables: which runs, which rows and columns, what the papers say.
2. show/jobs.py computes each run that is not in study/ yet, once for all tables, several side by
   side.
3. Each table is printed as Markdown when its runs are there, and study/tables.md and
   study/tables.json hold all that have been made so far, with the command of every cell.

After Ctrl-C or a crash the same command goes on. A run that fails is a cell that says so, and the
next study tries it again.

A cell shows the mean over seeds. In brackets stands the 95 % interval of one seed over problems, or
the range of several seeds. The seeds say how much a training differs from another one; three seeds
are too few for an interval. Seconds are those of commands that run side by side, each with its part
of the threads; with --jobs 1 a command has the machine for itself. On Linux without a GPU the
seconds of importing torch are left out (show/programs.py).
"""

import contextlib
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch

from checkpoint import size_of
from data import has_split, usual_test_set
from flags import flag, parse_flags, run_command
from runtime import UsageError, UserError, locked, parse_json, read_json, write_json, write_text
from show.experiments import (EXPERIMENTS, FOR_ALL, NEW_SET, NEW_TO_IT, RUNS, SEEDS, SETTINGS,
                              Claim, Column, Experiment)
from show.jobs import Jobs
from show.programs import ROOT, start_program, stop
from stats import wilson

SECOND_SETS = {"tiny": ("mini-math", "mini-math"), "real": ("math", "math500")}
WORD_SETS = ("mini-gsm", NEW_SET)  # of which the study takes a few gold problems
MOST_JOBS = 4  # if --jobs does not say how many: each takes up to a GiB
LARGER = "Qwen/Qwen2.5-Math-1.5B"


@dataclass
class Flags:
    """The flags of `python study.py`."""

    quick: bool = flag(False, "one seed, fewer steps, small evaluations")
    list: bool = flag(False, "print every table with its commands; compute nothing")
    only: str | None = flag(None, "names of tables, with commas (--list prints them)")
    model: str = flag("tiny", "tiny, a folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct")
    larger: str | None = flag(None, "the larger model, which is teacher and expert (default: "
                                    f"tiny-large; of a real --model {LARGER})")
    dataset: str | None = flag(None, "a named set with training and test problems (default: "
                                     "mini-gsm; of a real --model gsm8k)")
    output_dir: str = flag("study", "folder of runs and tables")
    jobs: int | None = flag(None, "commands side by side, each with its part of the threads "
                                  f"(default: one a thread, at most {MOST_JOBS}; of a real --model "
                                  "1)", least=1, most=64)
    debug: bool = flag(False, "show the traceback of an error")


# ----------------------------------------------------------------------------------------- settings


def settings_of(flags: Flags) -> dict[str, str | tuple[str, ...]]:
    """What the {names} in commands mean. Raises UsageError for a set without test problems."""
    size = size_of(flags.model)
    kind = "real" if size == "real" else "quick" if flags.quick else "full"
    if flags.quick and kind == "real":
        raise UsageError("--quick is about the embedded model; leave it out, or choose with --only")
    name = flags.dataset or ("gsm8k" if kind == "real" else "mini-gsm")
    test = usual_test_set(name) or name
    if not has_split(name, "train") or not has_split(test, "test"):
        raise UsageError(f"--dataset {name}: the study needs a named set with training and test "
                         "problems; python sources.py lists them")
    settings = FOR_ALL | SETTINGS[kind] | (NEW_TO_IT if (kind, name) == ("full", NEW_SET) else {})
    if kind != "real" and name not in WORD_SETS:
        settings["train"] = "{data}"
    second, second_test = SECOND_SETS[size]
    named = {"data": name, "test": test, "second": second, "second_test": second_test}
    settings |= {key: (value,) for key, value in named.items()}  # taken as they are
    if flags.model != "tiny":
        settings["model"] = ("--model", flags.model)
    if kind == "real" or flags.larger:
        method = "--method lora --model" if kind == "real" else "--method sft --model"
        settings["larger_model"] = (*method.split(), flags.larger or LARGER)
    return settings


def chosen(flags: Flags) -> list[Experiment]:
    """The experiments that --only names, or all that the model and the data allow."""
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    names = [name.strip() for name in flags.only.split(",")] if flags.only else list(known)
    embedded = size_of(flags.model) == "tiny"
    for name in names:
        if name not in known:
            raise UsageError(f"--only {name}: no such table; known are {', '.join(known)}")
        if flags.only and known[name].embedded and not embedded:
            raise UsageError(f"--only {name}: this table needs the embedded model and sets")
    return [known[name] for name in names if embedded or not known[name].embedded]


# -------------------------------------------------------------------------------------------- cells


def run_of(row: str, column: Column) -> str | None:
    """The run of a cell; None if there is none of that kind."""
    run = column.run.replace("*", row)
    return run if run in RUNS else None


def seed_cell(jobs: Jobs, run: str, seed: int, column: Column) -> dict:
    """A figure of one run: value, interval, and what it took. Its `error` says why there is none.
    """
    record = jobs.do(run, seed)
    cell = {"run": run, "seed": seed, "command": record["command"], "value": None,
            "interval": None, "minutes": record["seconds"] / 60,
            "memory_mib": record["memory_mib"], "error": record["error"]}
    if record["error"]:
        return cell
    folder = jobs.folder / jobs.name(run, seed)
    try:
        result = read_json(folder / "result.json")
        cell["memory_mib"] = result.get("peak_memory_mib", cell["memory_mib"])
        figures = result if column.file == "result.json" else read_figures(folder / column.file)
        many = jobs.settings.get("many", "")
        *parents, last = column.path.replace("{many}", str(many)).split("/")
        for key in parents:
            figures = figures[key]
        cell["value"] = float(figures[last])
        if column.kind == "share":
            cell["interval"] = interval_of(figures, last)
    except (LookupError, TypeError, ValueError, OverflowError, OSError, UserError) as error:
        cell["error"] = f"{column.file} has no {column.path} ({error})"
    return cell


def read_figures(path: Path) -> dict:
    """The JSON of a file; of a log its first, its middle and its last line."""
    if path.suffix != ".jsonl":
        return read_json(path)
    rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {"first": rows[0], "middle": rows[len(rows) // 2], "last": rows[-1]}


def interval_of(figures: dict, name: str) -> list[float] | None:
    """The 95 % interval beside a rate, or Wilson's where each problem has one verdict."""
    stored = figures.get(name.replace("accuracy", "ci95"))
    if isinstance(stored, list):
        return stored
    if figures.get("samples") == 1:
        return list(wilson(round(figures[name] * figures["n"]), figures["n"]))
    return None


def cell_of(jobs: Jobs, experiment: Experiment, row: str, name: str, seeds: Iterable[int]) -> dict:
    """A cell of a table: the mean over seeds with the range, the paper's figure, every seed."""
    column = experiment.columns[name]
    run = run_of(experiment.rows[row], column)
    parts = [seed_cell(jobs, run, seed, column) for seed in seeds] if run else []
    values = [part["value"] for part in parts if part["value"] is not None]
    return {"value": sum(values) / len(values) if values else None,
            "range": [min(values), max(values)] if len(values) > 1 else None,
            "interval": parts[0]["interval"] if len(values) == len(parts) == 1 else None,
            "paper": experiment.paper.get(row, {}).get(name), "kind": column.kind, "seeds": parts}


def table_of(jobs: Jobs, experiment: Experiment, seeds: Iterable[int]) -> dict:
    """All cells of an experiment and what becomes of the paper's claims, ready for tables.json."""
    rows = {row: {name: cell_of(jobs, experiment, row, name, seeds) for name in experiment.columns}
            for row in experiment.rows}
    if experiment.ranked:
        first = next(iter(experiment.columns))
        rows = dict(sorted(rows.items(), key=lambda item: -(item[1][first]["value"] or 0)))
    return {"name": experiment.name, "source": experiment.source, "title": experiment.title,
            "note": experiment.note, "rows": rows,
            "directions": [direction(rows, claim) for claim in experiment.claims]}


def direction(rows: dict, claim: Claim) -> str:
    """What the paper says of two cells, what we have, and whether the direction is the same."""
    other = claim.other_column or claim.column
    above, below = rows[claim.above][claim.column], rows[claim.below][other]
    names = ((claim.column, other) if claim.above == claim.below else (claim.above, claim.below))
    said = f"{names[0]} above {names[1]}"
    said += f" in {claim.column}" if claim.above != claim.below else f" of {claim.above}"
    figures = (above["paper"], below["paper"])
    paper = f"paper {figures[0]} and {figures[1]}" if all(figures) else "the paper without figures"
    if above["value"] is None or below["value"] is None:
        return f"{said}: {paper}; not measured here"
    ours = f"here {shown(above)} and {shown(below)}"
    if above["value"] == below["value"]:
        return f"{said}: {paper}; {ours}: no difference"
    same = "the same direction" if above["value"] > below["value"] else "the other direction"
    return f"{said}: {paper}; {ours}: {same}{doubt(above, below)}"


def doubt(above: dict, below: dict) -> str:
    """Whether the spans in brackets overlap, so that chance may have made the difference."""
    first, second = (cell["range"] or cell["interval"] for cell in (above, below))
    if not first or not second:
        return ""
    apart = first[0] > second[1] or second[0] > first[1]
    return "" if apart else ", and the brackets overlap: it may be chance"


# ----------------------------------------------------------------------------------------- Markdown


def number(value: float, kind: str) -> str:
    """A figure as people read it."""
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind in ("MiB", "count"):
        return f"{value:,.0f}" + (" MiB" if kind == "MiB" else "")
    return f"{value:.1f} s" if kind == "seconds" else f"{value:.3f}"


def shown(cell: dict) -> str:
    """A cell of a table, with its interval or range; `failed` where there is no figure."""
    if cell["value"] is None:
        return "failed" if cell["seeds"] else "–"
    span = cell["range"] or cell["interval"]
    brackets = ""
    if span and span[0] < span[1]:
        low, high = (number(bound, cell["kind"]).split()[0] for bound in span)  # without the unit
        brackets = f" ({low} to {high})"
    lost = sum(part["value"] is None for part in cell["seeds"])
    missing = f", {lost} seed(s) failed" if lost else ""
    return number(cell["value"], cell["kind"]) + brackets + missing


def table_lines(table: dict) -> list[str]:
    """A table as Markdown: the figures, the directions, and the command of every run."""
    rows = table["rows"]
    columns = list(next(iter(rows.values())))
    with_paper = {name for cells in rows.values() for name in columns if cells[name]["paper"]}
    heads = [head for name in columns
             for head in ([name, f"{name}, paper"] if name in with_paper else [name])]
    lines = [f"## {table['name']}: {table['title']} ({table['source']})", "",
             "| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row, cells in rows.items():
        words = [word for name in columns for word in
                 ([shown(cells[name]), cells[name]["paper"] or ""] if name in with_paper
                  else [shown(cells[name])])]
        lines.append(f"| {row} | " + " | ".join(words) + " |")
    lines += ["", table["note"]] if table["note"] else []
    lines += ["", *(f"- {line}" for line in table["directions"])] if table["directions"] else []
    return [*lines, "", *run_lines(rows), ""]


def run_lines(rows: dict) -> list[str]:
    """Each run of a table: its command, seed, minutes and memory, or why it has failed."""
    parts = {part["command"]: part for cells in rows.values() for cell in cells.values()
             for part in cell["seeds"]}
    parts |= {part["command"]: part for cells in rows.values() for cell in cells.values()
              for part in cell["seeds"] if part["error"]}
    lines = []
    for command, part in parts.items():
        memory = f", {part['memory_mib']:.0f} MiB" if part["memory_mib"] else ""
        end = f"; **failed**: {escaped(part['error'])}" if part["error"] else ""
        lines.append(f"- `{command}`: seed {part['seed']}, {part['minutes']:.1f} min{memory}{end}")
    return lines


def escaped(text: str) -> str:
    """A program's words, which Markdown must not read as its own marks."""
    return "".join(f"\\{sign}" if sign in "\\`*_|<>[]" else sign for sign in text)


# --------------------------------------------------------------------------------------------- main


def list_lines(jobs: Jobs, experiments: list[Experiment], seeds: range) -> list[str]:
    """Every table with the commands that it needs; a command that is named before is left out."""
    lines, seen = [], set()
    for experiment in experiments:
        lines += [f"{experiment.name}  {experiment.title} ({experiment.source})"]
        for job in jobs_of(jobs, experiment, seeds):
            if job.folder not in seen:
                seen.add(job.folder)
                done = "done" if jobs.stored(job.folder) else "    "
                lines.append(f"  {done}  {job.command}")
    return [*lines, f"{len(seen)} commands"]


def runs_of(experiment: Experiment, seeds: Iterable[int]) -> list[tuple[str, int]]:
    """The runs that a table shows, with their seeds."""
    runs = {run_of(row, column): None for row in experiment.rows.values()
            for column in experiment.columns.values()}
    return [(run, seed) for run in runs if run for seed in seeds]


def jobs_of(jobs: Jobs, experiment: Experiment, seeds: Iterable[int]) -> list:
    """All jobs of a table, each behind what it needs."""
    found = {job.folder: job for run, seed in runs_of(experiment, seeds)
             for job in jobs.all_jobs(run, seed)}
    return list(found.values())


def write_page(jobs: Jobs) -> None:
    """report.py's page of all trainings of the study, where that program is."""
    runs = [str(folder) for folder in jobs.records
            if jobs.stored(folder) and (folder / "metrics.jsonl").exists()]
    if not runs or not (ROOT / "report.py").exists():
        return
    page, log = jobs.folder / "report.html", jobs.folder / "report.log"
    program = start_program(["report.py", *runs, "--output", str(page)],
                            jobs.folder / "report.out", log)
    try:
        program.wait()
    except BaseException:
        stop([program])
        raise
    jobs.tell(f"page       {program.error() or page}")


def make_tables(jobs: Jobs, experiments: list[Experiment], seeds: range, kind: str) -> None:
    """Print each table as its runs are there, and write all that have been made so far."""
    tables, wanted = [], [pair for experiment in experiments for pair in runs_of(experiment, seeds)]
    with contextlib.closing(jobs.work(wanted)) as progress:
        for _ in progress:
            for experiment in experiments[len(tables):]:
                if not jobs.all_known(runs_of(experiment, seeds)):
                    break
                tables.append(table_of(jobs, experiment, seeds))
                print(*table_lines(tables[-1]), sep="\n", flush=True)
                write_json(jobs.folder / "tables.json", {"form": kind, "tables": tables})
                write_text(jobs.folder / "tables.md",
                           "\n".join(line for table in tables for line in table_lines(table)))


def main(argv: list[str]) -> None:
    """Compute what is missing, and print and write the tables."""
    flags = parse_flags(Flags, argv, __doc__)
    settings, experiments = settings_of(flags), chosen(flags)
    kind = "real" if size_of(flags.model) == "real" else "quick" if flags.quick else "full"
    seeds, folder = range(SEEDS[kind]), Path(flags.output_dir)
    threads = torch.get_num_threads()
    at_once = flags.jobs or (1 if kind == "real" else min(threads, MOST_JOBS))
    jobs = Jobs(RUNS, settings, folder, at_once=at_once, threads=max(1, threads // at_once),
                tell=lambda line: print(line, file=sys.stderr, flush=True))
    if flags.list:
        print(*list_lines(jobs, experiments, seeds), sep="\n")
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            make_tables(jobs, experiments, seeds, kind)
            write_page(jobs)
    except KeyboardInterrupt:
        jobs.tell(f"to go on:  {shlex.join(['python', 'study.py', *argv])}")
        raise


if __name__ == "__main__":
    sys.exit(run_command(main))
