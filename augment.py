r"""Makes and curates training data: one command for a paper's recipe, and every row says where it
comes from.

    python augment.py make perturb --dataset mini-gsm --limit 200 --samples 8
    python augment.py make rft --teacher tiny --limit 50 --samples 8 --temperature 0.7
    python augment.py make queries --api-base https://HOST/v1 --api-model NAME --dataset gsm8k \
        --samples 5 --temperature 0.7
    python augment.py filter rows.jsonl clean.jsonl --style gsm8k --numeric --dedup near
    python augment.py recipe mugglemath-15k muggle.jsonl --source aug-gsm8k
    python augment.py export rows.jsonl out.jsonl --form alpaca

`make` runs a recipe of recipes.py into a folder of its own: args.json, replies.jsonl (a teacher's
raw replies), data.jsonl and result.json. After Ctrl-C the same command with --output-dir FOLDER
goes on and asks nothing twice. `filter` takes a file through the steps of curate.py in a fixed
order. It says what each step dropped and why, and writes that beside its result. `recipe` is a
paper's selection of published data. `export` writes rows for other trainers.
"""

import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from tqdm import tqdm

from data import (Problem, left_out_line, load_problems, read_columns, short_name,
                  write_problems)
from flags import flag, parse_flags, run_command, spelled
from generate import ApiFlags
from recipes import recipes
from recipes.curate import (DUPLICATE_KINDS, STRATA, CurationStep, drop_duplicates, drop_overlap,
                            keep_numeric, keep_right_arithmetic, mugglemath_15k, sample, split,
                            unify)
from recipes.recipes import NEEDS_MAJORITY, NEEDS_TEACHER, RECIPES, RecipeContext
from recipes.teacher import TeacherFlags, open_teacher
from runtime import (UsageError, UserError, new_directory, one_line, printable, read_json,
                     write_json, write_text)
from score import cost_line
from sources import SETS

# --------------------------------------------------------------------------------------------- make


def _columns() -> str | None:
    """The flag --columns of each command that reads rows in whatever form."""
    return flag(None, "columns of the file, if they have other names: "
                "question=prompt,solution=target")


@dataclass(kw_only=True)
class MakeFlags(TeacherFlags):
    """The flags of `python augment.py make`."""

    recipe: str = flag(MISSING, "what to make", positional=True, choices=tuple(RECIPES))
    dataset: str = flag("mini-gsm", "problems to start from: a set's name, or a JSON or JSONL file")
    columns: str | None = _columns()
    limit: int | None = flag(None, "use at most so many of them", least=1)
    student: str | None = flag(None, "tutor: whose attempts are corrected: tiny, a run directory, "
                               "a folder or a hub id")
    check: bool = flag(True, "responses, diversify: keep only answers that the grader agrees with")
    hard: bool = flag(False, "perturb: changes after which the old way of solving fails")
    agreement: float = flag(0.5, "queries, expand: least share of the samples that a majority "
                            "needs", least=0, most=1)
    style: str | None = flag(None, "bring all solutions to one ending: #### n, or a box",
                             choices=("gsm8k", "boxed"))
    seed: int = flag(0, "seed of every random choice, and of the problems of an embedded set",
                     least=0)
    output_dir: str | None = flag(None, "folder of the result; an unfinished one goes on "
                                  "(default: runs/RECIPE-DATASET-N)")


# May differ when an interrupted recipe goes on: how a server is reached, not what is asked.
FREE = ("output_dir", "api_base", "api_concurrency", "api_rate", "api_timeout", "api_stream",
        "device", "debug")


def make(argv: list[str]) -> None:
    """`python augment.py make RECIPE`: run a recipe into its folder and print a summary."""
    flags = parse_flags(MakeFlags, argv, recipes.__doc__)
    _check_teachers(flags)
    left_out: Counter[str] = Counter()
    problems = load_problems(flags.dataset, "train", flags.limit, flags.seed,
                             read_columns(flags.columns), left_out)
    context = _open_recipe(flags, problems)
    start = perf_counter()
    try:
        made = _made(context, flags.style)
    except (KeyboardInterrupt, UserError) as error:  # no reply that is stored is asked for again
        if isinstance(error, KeyboardInterrupt) or (context.folder / "replies.jsonl").exists():
            again = argv if flags.output_dir else [*argv, "--output-dir", str(context.folder)]
            print(f"to go on:  {shlex.join(['python', 'augment.py', 'make', *again])}")
        raise
    context.dropped.update(left_out)  # rows that became no problem
    result = {"problems": len(problems),
              "parents": len({problem.origin["parent"] for problem in made}), "rows": len(made),
              "dropped": dict(context.dropped.most_common()), "cost": dict(context.cost),
              "seconds": perf_counter() - start}
    write_json(context.folder / "result.json", result)
    if not made:
        reasons = ", ".join(f"{count} {reason}" for reason, count in context.dropped.most_common(3))
        raise UserError(f"{flags.recipe}: made no row ({reasons}); {context.folder}/result.json "
                        "counts why")
    write_problems(context.folder / "data.jsonl", made)
    _report(result, made[0], context.folder)


def _check_teachers(flags: MakeFlags) -> None:
    """Raise UsageError unless the recipe has the teacher, the samples and the student that it
    needs."""
    has_teacher = bool(flags.teacher or flags.api_model)
    if flags.recipe in NEEDS_TEACHER and not has_teacher:
        raise UsageError(f"{flags.recipe} asks a teacher: name one of our own with --teacher, or a "
                         "server's with --api-model")
    if flags.recipe in NEEDS_MAJORITY and flags.samples < 2 and has_teacher:
        raise UsageError(f"{flags.recipe}: new questions are answered by majority; give --samples "
                         "3 or more, and --temperature")
    if (flags.recipe == "tutor") != bool(flags.student):
        raise UsageError("--student names whose attempts are corrected: it goes with tutor, and "
                         "tutor with it")


def _open_recipe(flags: MakeFlags, problems: list[Problem]) -> RecipeContext:
    """Open teacher, student and folder, and print what is used. Chats of several turns are left
    out."""
    teacher = open_teacher(flags) if flags.teacher or flags.api_model else None
    student = None
    if flags.student:  # always one of our own
        no_server = {part.name: part.default for part in dataclasses.fields(ApiFlags)}
        student = open_teacher(dataclasses.replace(flags, teacher=flags.student, **no_server))
    folder = _folder(flags)
    print(f"data       {flags.dataset}, {len(problems)} problems; recipe {flags.recipe}"
          + (f", teacher {teacher.name}" if teacher else "")
          + (f", student {student.name}" if student else ""), flush=True)
    single = [problem for problem in problems
              if sum(turn["role"] != "system" for turn in problem.asked) < 2]
    context = RecipeContext(flags.recipe, single, folder, teacher, student, flags.samples,
                            flags.seed, flags.check, flags.hard, flags.agreement)
    if len(single) < len(problems):
        context.dropped["a chat of several turns"] = len(problems) - len(single)
    return context


def _made(context: RecipeContext, style: str | None) -> list[Problem]:
    """All rows of the recipe, each once, with one ending if a style is asked for."""
    made, seen = [], set()
    for problem in tqdm(RECIPES[context.recipe](context), context.recipe, unit="rows", leave=False,
                        disable=not sys.stderr.isatty()):
        if (problem.question, problem.solution) in seen:
            context.dropped["the same row again"] += 1
        else:
            seen.add((problem.question, problem.solution))
            made.append(problem)
    if style:
        step = unify(made, style)
        context.dropped.update(step.dropped)
        made = step.problems
    return made


def _report(result: dict, first: Problem, folder: Path) -> None:
    print(f"made       {result['rows']} rows from {result['parents']} of {result['problems']} "
          f"problems in {result['seconds']:.1f} s")
    for reason, count in result["dropped"].items():
        print(f"  {count:7d} left out: {reason}")
    if result["cost"]:
        print(f"cost       {cost_line(result['cost'])}")
    print(printable(f"\nfirst row  {first.id}: {first.question}"))
    print(*(f"  | {printable(line)}" for line in first.solution.splitlines()), sep="\n")
    replies = ", replies.jsonl" if result["cost"] else ""
    print(f"\nfiles      {folder} (data.jsonl, result.json, args.json{replies})")
    print(f"next       python mathft.py --method lora --dataset {folder / 'data.jsonl'} "
          "--eval-dataset TEST")


def _folder(flags: MakeFlags) -> Path:
    """The folder of a recipe: a new one, or an unfinished one that was begun with the same
    settings."""
    settings = {name: value for name, value in dataclasses.asdict(flags).items()
                if name not in FREE}
    begun = Path(flags.output_dir) / "args.json" if flags.output_dir else None
    if begun is None or not begun.exists():
        folder = new_directory(flags.output_dir, f"{flags.recipe}-{short_name(flags.dataset)}")
        write_json(folder / "args.json", settings)
        return folder
    other = sorted(name for name, value in read_json(begun).items() if settings.get(name) != value)
    if other:
        names = ", ".join(map(spelled, other))
        raise UserError(
            f"{begun}: was begun with another {names}; give the same, or another --output-dir")
    if (begun.parent / "data.jsonl").exists():
        raise UserError(
            f"{begun.parent}: is finished (data.jsonl is there); give another --output-dir")
    return begun.parent


# -------------------------------------------------------------------------------- filter and recipe


@dataclass(kw_only=True)
class AgainstFlags:
    """What made data must not repeat."""

    against: str = flag("all", "test sets whose questions are left out of the rows, with commas: "
                        "names, files, all or none")
    seed: int = flag(0, "seed of every choice", least=0)
    debug: bool = flag(False, "show the traceback of an error")


@dataclass(kw_only=True)
class FilterFlags(AgainstFlags):
    """The flags of `python augment.py filter`; the steps run in the order of the flags."""

    source: str = flag(MISSING, "rows: a set's name, or a JSON or JSONL file", positional=True)
    target: str = flag(MISSING, "the JSONL file to write", positional=True)
    columns: str | None = _columns()
    style: str | None = flag(None, "bring all solutions to one ending: #### n, or a box",
                             choices=("gsm8k", "boxed"))
    numeric: bool = flag(False, "keep plain numbers as answers")
    arithmetic: bool = flag(True, "drop solutions with a wrong <<a=b>>")
    dedup: str = flag("near", "drop rows that repeat an earlier one",
                      choices=("none", *DUPLICATE_KINDS))
    questions_only: bool = flag(False, "compare questions alone, and so keep one row of each")
    keep_overlap: bool = flag(False,
                              "keep rows that overlap a test set, with its name in their origin")
    sample: int | None = flag(None, "keep so many rows, chosen by the seed", least=1)
    by: str | None = flag(None, "keep the shares of this when sampling", choices=tuple(STRATA))
    split: float | None = flag(None, "hold out this share of the questions, in NAME-held-out.jsonl",
                               least=0, most=1)


@dataclass(kw_only=True)
class RecipeFlags(AgainstFlags):
    """The flags of `python augment.py recipe`."""

    name: str = flag(MISSING, "a paper's recipe", positional=True, choices=("mugglemath-15k",))
    target: str = flag(MISSING, "the JSONL file to write", positional=True)
    source: str = flag("aug-gsm8k", "MuggleMath's set: aug-gsm8k, aug-math, or a file in its form")


def clean(argv: list[str]) -> None:
    """`python augment.py filter IN OUT`: the steps that the flags name, in their order."""
    flags = parse_flags(FilterFlags, argv, __doc__)
    if flags.by and not flags.sample:
        raise UsageError("--by says how --sample chooses; give --sample N too")
    held_out = Path(flags.target).with_name(f"{Path(flags.target).stem}-held-out.jsonl")
    _check_free(flags.target, *[held_out] * (flags.split is not None))
    tests = questions_of_tests(flags)
    rows, steps = _read(flags.source, flags.columns)
    print(f"read       {len(rows)} rows of {flags.source}", flush=True)
    for work in _steps_named(flags, tests):
        steps.append(work(rows))
        rows = steps[-1].problems
        print(steps[-1], flush=True)
    held: list[Problem] = []
    if flags.split is not None and rows:
        rows, held = split(rows, flags.split, flags.seed)
        # A row that differs from a held-out question only in numbers is no row to train on.
        questions = [problem.question for problem in held]
        steps.append(drop_overlap(rows, {"the held-out rows": questions}))
        rows = steps[-1].problems
        print(steps[-1])
    _write(flags, rows, steps, tests)
    if held:
        write_problems(held_out, held)
        print(f"held out   {len(held)} rows in {held_out}")


def _read(source: str, columns: str | None) -> tuple[list[Problem], list[CurationStep]]:
    """The rows of a set or a file; and, if some became no problem, a step that counts these."""
    left_out: Counter[str] = Counter()
    rows = load_problems(source, columns=read_columns(columns), left_out=left_out)
    if not left_out:
        return rows, []
    print(left_out_line(left_out), flush=True)
    return rows, [CurationStep("rows as they are read", rows, left_out)]


def _steps_named(flags: FilterFlags, tests: dict[str, list[str]]
                 ) -> list[Callable[[list[Problem]], CurationStep]]:
    """The steps that the flags name, in the order in which they run."""
    works: list[Callable[[list[Problem]], CurationStep]] = []
    if flags.style:
        works.append(lambda rows: unify(rows, flags.style))
    if flags.numeric:
        works.append(keep_numeric)
    if flags.arithmetic:
        works.append(keep_right_arithmetic)
    if flags.dedup != "none":
        works.append(lambda rows: drop_duplicates(rows, flags.dedup, flags.questions_only))
    works.append(lambda rows: drop_overlap(rows, tests, flags.keep_overlap))
    if flags.sample:
        works.append(lambda rows: sample(rows, flags.sample, flags.seed, flags.by))
    return works


def _check_free(target: str, *others: Path) -> None:
    for path in (Path(target), Path(target).with_suffix(".report.json"), *others):
        if path.exists():
            raise UserError(f"{path}: exists, and nothing is overwritten; give another name")


def questions_of_tests(flags: AgainstFlags) -> dict[str, list[str]]:
    """The questions of the test sets that --against names. Of `all`, those that cannot be loaded
    are named on stderr."""
    if flags.against == "none":
        return {}
    names = [name.strip() for name in flags.against.split(",")]
    if flags.against == "all":
        names = [name for name, source in SETS.items() if "test" in source.splits]
    tests = {}
    for name in names:
        try:
            tests[name] = [problem.question for problem in load_problems(name, "test")]
        except UserError as error:
            if flags.against != "all":
                raise
            print(one_line(f"not checked for overlap: {error}"), file=sys.stderr)
    return tests


def _write(flags: FilterFlags | RecipeFlags, rows: list[Problem], steps: list[CurationStep],
           tests: dict) -> None:
    """Write the rows, and beside them what each step dropped."""
    if not rows:
        raise UserError(
            f"{flags.source}: no row is left; the lines above say why, and nothing was written")
    target = Path(flags.target)
    report = target.with_suffix(".report.json")
    write_problems(target, rows)
    counts = [{"step": step.name, "kept": len(step.problems), "dropped": step.dropped,
               "noted": step.noted, "examples": step.examples} for step in steps]
    write_json(report, {**dataclasses.asdict(flags), "tests": sorted(tests), "rows": len(rows),
                        "steps": counts})
    print(f"written    {len(rows)} rows to {target}, the report to {report}")


def select(argv: list[str]) -> None:
    """`python augment.py recipe NAME OUT`: a paper's selection, end to end."""
    flags = parse_flags(RecipeFlags, argv, __doc__)
    _check_free(flags.target)
    tests = questions_of_tests(flags)
    rows, read = _read(flags.source, None)
    rows, steps = mugglemath_15k(rows, flags.seed, tests)
    print(*steps, sep="\n")
    _write(flags, rows, [*read, *steps], tests)


# ------------------------------------------------------------------------------------------- export


@dataclass(kw_only=True)
class ExportFlags:
    """The flags of `python augment.py export`."""

    source: str = flag(MISSING, "rows: a set's name, or a file", positional=True)
    target: str = flag(MISSING, "the JSONL file to write", positional=True)
    form: str = flag("messages", "what the rows look like: messages (TRL, most trainers), "
                     "prompt-completion (TRL), or alpaca (LLaMA-Factory)",
                     choices=("messages", "prompt-completion", "alpaca"))
    columns: str | None = _columns()
    debug: bool = flag(False, "show the traceback of an error")


def export(argv: list[str]) -> None:
    """`python augment.py export IN OUT`: rows in the form that other trainers read."""
    flags = parse_flags(ExportFlags, argv, export.__doc__)
    _check_free(flags.target)
    rows, _ = _read(flags.source, flags.columns)
    solved = [problem for problem in rows if problem.solution
              and not any("train" in turn for turn in problem.messages[-1:])]
    if not solved:
        raise UserError(f"{flags.source}: no row has a solution; nothing was written")
    lines = (json.dumps(exported(problem, flags.form), ensure_ascii=False) for problem in solved)
    write_text(Path(flags.target), "".join(f"{line}\n" for line in lines))
    left_out = f", {len(rows) - len(solved)} with nothing to learn left out" * (
        len(rows) > len(solved))
    print(f"written    {len(solved)} rows to {flags.target}{left_out}")


def exported(problem: Problem, form: str) -> dict:
    """A problem as a row of other trainers; forms.py reads it back as the same turns.

    A turn that is not learnt has no word in these forms: trainers learn the last one, or all.
    """
    asked = [{key: turn[key] for key in ("role", "content")} for turn in problem.asked]
    answer = [{"role": "assistant", "content": problem.solution}]
    if form == "messages":
        return {"messages": asked + answer}
    if form == "prompt-completion":
        return {"prompt": asked, "completion": answer}
    systems = [turn["content"] for turn in asked if turn["role"] == "system"]
    plain = [turn for turn in asked if turn["role"] != "system"]
    roles = [turn["role"] for turn in plain]
    if len(systems) > 1 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        raise UserError(f"{problem.id}: its turns do not alternate, which alpaca cannot say; give "
                        "another --form")
    *earlier, last = [turn["content"] for turn in plain]
    row = {"instruction": last, "input": "", "output": problem.solution}
    row |= {"system": systems[0]} if systems else {}
    pairs = [list(pair) for pair in zip(earlier[::2], earlier[1::2])]
    return row | ({"history": pairs} if pairs else {})


COMMANDS = {"make": make, "filter": clean, "recipe": select, "export": export}


def main(argv: list[str]) -> None:
    """`python augment.py make|filter|recipe|export`."""
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return
    if argv[:1] == [] or argv[0] not in COMMANDS:
        raise UsageError(
            f"say what to do: python augment.py {'|'.join(COMMANDS)} ...; each has its own --help")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
