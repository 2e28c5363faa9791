"""Measure a model on problems: generate, grade, count. Every completion is kept for an audit.

    python evaluate.py                               # the embedded model on the embedded problems
    python evaluate.py --run runs/NAME               # a run on its own test problems
    python evaluate.py --run runs/NAME --dataset mini-math --samples 8 --temperature 0.7
    python evaluate.py --model Qwen/Qwen2.5-0.5B --dataset test.jsonl --shots 4 \\
        --shots-dataset train.jsonl
    python evaluate.py --read runs/NAME/evals/after --versus runs/NAME/evals/before # what changed
    python evaluate.py --regrade runs/NAME/evals/after       # grade its completions again
    python evaluate.py --api-base http://HOST:8000/v1 --api-model NAME    # a model behind a server

An evaluation is a folder (measure.py makes it):

    runs/eval-mini-gsm-1/
        args.json            the settings
        generations.jsonl    one record a completion, written when it ends
        replies.jsonl        the raw replies of a server
        result.json          the figures; score.py says how they are counted
        greedy/              beside several samples: an evaluation of one greedy completion each
        scores.jsonl         with --verifier: its score of each sample

Decoding is greedy unless a temperature is given. The greedy evaluation beside several samples shows
what they bring: a vote that does not beat it has gained nothing.

After Ctrl-C or a crash, the same command with --output-dir FOLDER goes on to the same texts; if a
setting differs, it refuses. --read grades the completions again, prints the report and writes
nothing. --regrade does the same into a new folder, and leaves the old one as it is; with --verifier
the new one has that verifier's scores. So several verifiers choose among the same samples.
"""

import contextlib
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import numpy as np

from checkpoint import TOY
from data import (Problem, has_split, is_embedded, left_out_line, load_problems, read_columns,
                  short_name, trained_on)
from flags import flag, given_flags, joined, run_command, spelled
from generate import ApiFlags, SamplingFlags, load_asked, with_budget
from measure import (as_line, beside_greedy, beside_records, check_problems, evaluate, evaluate_api,
                     greedy_part, regrade, with_more)
from methods import base_folder, load_run, read_settings
from runtime import (Alone, UsageError, UserError, dtype_name, hash_of, machine_line,
                     new_directory, one_line, pick_device, pick_dtype, use_threads, write_text)
from score import (Report, compare_evaluations, grade_again, read_finished, report_lines, summarise,
                   versus_lines)


@dataclass(kw_only=True)
class Flags(ApiFlags, SamplingFlags):
    """The flags of `python evaluate.py`."""

    dataset: str | None = flag(None, "problems: a set's name (its test split; python sources.py "
                               "lists them), or a file; several with commas (default: the run's "
                               "own test problems, else mini-gsm)", group="problems and results")
    columns: str | None = flag(None, "columns of the file of --dataset, if they have other names: "
                               "question=prompt,answer=target")
    split: str = flag("test", "part of a named set: test, or train (samples for a verifier)",
                      choices=("test", "train"))
    verifier: str | None = flag(
        None, "run directory of --objective verifier, whose scores choose among the --samples")
    most_clusters: int = flag(8, "K, the clusters of equal answers that RR.MajK and W.RR.MajK read",
                              least=1)
    limit: int | None = flag(
        None, "number of problems (default: 500 of an embedded set, all of a file)", least=1)
    shots: int = flag(0, "worked training examples, drawn by --seed, before each question as turns"
                      " of the chat; for base models", least=0)
    shots_dataset: str | None = flag(
        None, "the file or set of the --shots (default: the set's own training split)")
    read: str | None = flag(
        None, "a finished evaluation's folder, to print its report again; with --versus, to compare"
        " two without a model")
    versus: str | None = flag(
        None, "another evaluation's folder, to compare with problem by problem")
    regrade: str | None = flag(
        None, "a finished evaluation's folder or generations.jsonl, to grade and count again"
        " into a new folder beside it; with --verifier, to choose among its samples")
    output_dir: str | None = flag(
        None, "folder of the results; an unfinished evaluation there goes on"
        " (default: evals/DATASET-N in the run, else runs/eval-DATASET-N)")


def worked_examples(flags: Flags, problems: list[Problem]) -> list[Problem]:
    """The worked examples that --shots asks for: drawn by the seed, and none is in `problems`."""
    name = flags.shots_dataset or (flags.dataset if has_split(flags.dataset, "train") else None)
    if not flags.shots:
        if flags.shots_dataset:
            raise UsageError("--shots-dataset without --shots: say how many problems to show")
        return []
    if name is None:
        raise UsageError(f"--shots {flags.shots}: {flags.dataset} has no training split;"
                         " name a file of worked training problems with --shots-dataset")
    asked = {problem.key for problem in problems}
    pool = {problem.key: problem for problem in load_problems(name, "train")
            if problem.solution and problem.key not in asked}
    if len(pool) < flags.shots:
        raise UserError(f"{name}: has {len(pool)} worked problems that are not evaluated,"
                        f" --shots {flags.shots} needs more")
    chosen = np.random.default_rng(flags.seed).choice(len(pool), flags.shots, replace=False)
    return [list(pool.values())[index] for index in chosen]


def with_test_set(flags: Flags) -> tuple[Flags, Path | None]:
    """The flags with a name for --dataset; and, if none is given, the file in which the run keeps
    its test problems."""
    if flags.dataset:
        return flags, None
    if not flags.run:
        return replace(flags, dataset="mini-gsm"), None
    args, _ = read_settings(Path(flags.run))
    name = args.get("eval_dataset") or args.get("dataset")
    if not isinstance(name, str) or not name.isprintable():  # it names a folder, and is printed
        raise UserError(f"{flags.run}/args.json: dataset is no name; give --dataset")
    kept = Path(flags.run) / "data" / "test.jsonl"
    return replace(flags, dataset=name), kept if kept.exists() and flags.split == "test" else None


def print_notes(flags: Flags, problems: list[Problem], left_out: Counter[str]) -> None:
    """Rows that are left out, and a warning if the run was trained on some of the problems."""
    if left_out:
        print(left_out_line(left_out), flush=True)
    for name, folder in (("run", flags.run), ("verifier", flags.verifier)):
        hashes = trained_on(Path(folder)) if folder else set()
        known = sum(hash_of(problem.key) in hashes for problem in problems)
        if known:
            print(f"warning    {known} of the {len(problems)} problems were trained on by this "
                  f"{name}: the figures say little about new ones", flush=True)


def problems_asked(flags: Flags, own: Path | None) -> tuple[list[Problem], Counter[str]]:
    """The problems of --dataset or of the run's `own` file, checked before a model is loaded and a
    folder is made; and how many rows are left out, by reason."""
    check_verifier(flags, flags.samples)  # an error is better before hours of generation
    left_out: Counter[str] = Counter()
    if own:
        problems = load_problems(str(own), limit=flags.limit)
        check_problems(problems)
        return problems, left_out
    problems = load_problems(flags.dataset, flags.split, flags.limit,
                             columns=read_columns(flags.columns), left_out=left_out)
    check_problems(problems)
    return problems, left_out


def check_verifier(flags: Flags, samples: int) -> None:
    """Raise UserError for a --verifier that is no whole run or has one sample to choose among."""
    if flags.verifier and samples == 1:
        raise UsageError("--verifier chooses among several samples: give --samples, or --regrade "
                         "an evaluation that has several")
    if flags.verifier:
        base_folder(Path(flags.verifier))  # looks for its model too


def evaluate_asked(flags: Flags, argv: list[str], ranks: Alone) -> tuple[Report | None, Path]:
    """Evaluate the model, run or server that the flags name. Returns the report and its folder; of
    several processes the first alone has a report.
    """
    with ranks.in_turn():
        flags, own = with_test_set(with_budget(flags))
        problems, left_out = problems_asked(flags, own)
        shots = worked_examples(flags, problems)
        run, teacher = _open_asked(flags, ranks)
    folder = Path(ranks.agree(lambda: str(_output_folder(flags))))

    def once(part: Path, sampling: dict) -> Report | None:
        """One evaluation into `part`; without `sampling` it is greedy."""
        if teacher:
            asked = teacher if sampling else replace(teacher, temperature=0.0)
            return evaluate_api(asked, problems, part, dataset=flags.dataset, shots=shots,
                                samples=sampling.get("samples", 1))
        about = {"model": _name(flags), "dtype": dtype_name(run.model.compute_dtype)}
        return evaluate(run.model, run.tokenizer, problems, part, dataset=flags.dataset,
                        shots=shots, system=run.system, prefix=run.prefix, seed=flags.seed,
                        max_new_tokens=flags.max_new_tokens, calculator=flags.calculator,
                        about=about, ranks=ranks, **sampling)

    try:
        print(*_heading(flags, len(problems), len(shots), run, teacher), sep="\n", flush=True)
        print_notes(flags, problems, left_out)
        report = once(folder, {"samples": flags.samples, "temperature": flags.temperature,
                               "top_p": flags.top_p, "top_k": flags.top_k})
        greedy = once(folder / "greedy", {}) if flags.samples > 1 else None
        if greedy:
            report = beside_greedy(report, greedy, folder)
        if flags.verifier and ranks.first:
            report = beside_verifier(report, flags, folder)
        if left_out and report:
            report = with_more(report, folder, rows_left_out=dict(left_out.most_common()))
    except (KeyboardInterrupt, UserError) as error:
        if ranks.first:
            _leave(folder, flags, argv, bool(teacher) or isinstance(error, KeyboardInterrupt))
        raise
    return report, folder


def _open_asked(flags: Flags, ranks: Alone) -> tuple:
    """Our own model that the flags name, or else the server: a Run or None, a teacher or None."""
    from recipes.client import open_api  # here: our own model needs no HTTP client

    if flags.api_model and ranks.size > 1:
        raise UsageError("one process is enough to ask a server; start without torchrun")
    teacher = open_api(flags)
    if teacher and flags.calculator:
        raise UsageError("--calculator puts tokens into our own decoding, not into a server's;"
                         " leave it out")
    return (None, teacher) if teacher else (load_asked(flags), None)


def beside_verifier(report: Report, flags: Flags, folder: Path) -> Report:
    """The report of several samples with what a verifier's scores choose; writes scores.jsonl."""
    import verifier  # here: other evaluations need none of it

    use_threads(flags.threads)  # a server or a folder of samples comes here without
    device = pick_device(flags.device)
    run = load_run(Path(flags.verifier), device, pick_dtype(flags.dtype, device))
    figures, scores = verifier.measure(run, report.records, flags.most_clusters)
    return with_scores(report, folder, {"run": flags.verifier, **figures}, scores)


def with_scores(report: Report, folder: Path, figures: dict, scores: list[dict]) -> Report:
    """The report with a verifier's figures, also in result.json; writes scores.jsonl."""
    write_text(folder / "scores.jsonl", "".join(map(as_line, scores)))
    return with_more(report, folder, verifier=figures)


def _output_folder(flags: Flags) -> Path:
    """The folder of the results: a new one, or that of an evaluation that goes on."""
    if flags.output_dir and (Path(flags.output_dir) / "generations.jsonl").exists():
        return Path(flags.output_dir)
    name = short_name(flags.dataset)
    if flags.run:
        return new_directory(flags.output_dir, name, f"{flags.run}/evals")
    return new_directory(flags.output_dir, f"eval-{name}")


def _name(flags: Flags) -> str:
    at = f" at {flags.checkpoint}" if flags.checkpoint else ""
    return (flags.api_model or flags.run or flags.model or "tiny") + at


def _heading(flags: Flags, problems: int, shots: int, run, teacher) -> list[str]:
    """The first lines of the output: what is measured, and on what."""
    lines = []
    if run:
        lines.append(machine_line(run.model.head_weight.device, run.model.compute_dtype))
    lines.append(f"model      {_name(flags)}" + (f" at {teacher.base}" if teacher else ""))
    decoding = f"temperature {flags.temperature:g}" if flags.temperature else "greedy"
    decoding += ", with a calculator" if flags.calculator else ""
    greedy = ", and one greedy" if flags.samples > 1 else ""
    lines.append(f"data       {flags.dataset}, {problems} problems,"
                 f" {flags.samples} completion(s) each, {decoding}{greedy}")
    if run and not (flags.run or flags.model or is_embedded(flags.dataset)):
        lines.append(f"note       {TOY}")
    if teacher and not teacher.extra:
        lines += ["note       a server may add a repetition_penalty, and when sampling top_k and",
                  "           others, from the model's generation_config.json;",
                  "           --api-extra '{\"repetition_penalty\": 1.0}' says otherwise"]
    if shots:
        lines.append(f"shots      {shots} worked examples of {flags.shots_dataset or flags.dataset}"
                     " before each question")
    return list(map(one_line, lines))  # names may come from a stored file


def _leave(folder: Path, flags: Flags, argv: list[str], can_go_on: bool) -> None:
    """Remove the folder if it is empty, and print the command that goes on."""
    with contextlib.suppress(OSError):  # rmdir keeps what has been written
        folder.rmdir()
    if can_go_on:
        words = argv if flags.output_dir else [*argv, "--output-dir", str(folder)]
        print(f"to go on:  {shlex.join(['python', 'evaluate.py', *words])}")


def regrade_asked(flags: Flags) -> tuple[Report, Path]:
    """Grade again the evaluation that --regrade names, and the greedy one in it."""
    source = Path(flags.regrade)
    home = (source if source.is_dir() else source.parent).resolve()
    check_verifier(flags, len({record["sample"] for record in read_finished(source)}))
    beside_records(home)  # before a folder is made
    folder = new_directory(flags.output_dir, f"{home.name}-regraded", str(home.parent))
    report = regrade(source, folder)
    if (home / "greedy" / "result.json").exists():
        report = beside_greedy(report, regrade(home / "greedy", folder / "greedy"), folder)
    if flags.verifier:
        report = beside_verifier(report, flags, folder)
    elif scored := scores_in(home, report.records):
        report = with_scores(report, folder, *scored)
    print(f"graded     {source} again: {len(report.records)} completions"
          f" of {report.result['n']} problems")
    return report, folder


def read_asked(source: Path) -> tuple[Report, Path]:
    """The report of the evaluation that --read names, as the command that made it printed it:
    with the greedy evaluation and the verifier's table if it has them. Nothing is written.
    """
    home = source if source.is_dir() else source.parent
    report = _counted(source)
    if (home / "greedy" / "result.json").exists():
        report.result["greedy"] = greedy_part(report, _counted(home / "greedy"))
    if scored := scores_in(home, report.records):
        report.result["verifier"] = scored[0]
    return report, source


def _counted(source: Path) -> Report:
    """A finished evaluation, graded and counted again."""
    records, seconds = grade_again(read_finished(source))
    kept = beside_records(source if source.is_dir() else source.parent)
    return Report(summarise(records) | {"grading_seconds_per_1000": seconds} | kept, records)


def scores_in(home: Path, records: list[dict]) -> tuple[dict, list[dict]] | None:
    """A verifier's figures and scores of an evaluation's graded samples; None if it had none."""
    if not (home / "scores.jsonl").exists():
        return None
    import verifier  # as in beside_verifier

    return verifier.count_again(home, records)


def refuse_idle(words: dict) -> None:
    """Raise UsageError for flags that do nothing beside --regrade or --read."""
    scoring = {"verifier", "most_clusters", "device", "dtype", "threads"}
    scoring = scoring if words.get("verifier") else set()
    for name, useful in (("regrade", {"versus", "output_dir", *scoring}), ("read", {"versus"})):
        idle = words.keys() - useful - {name, "debug"}
        if words.get(name) and idle:
            raise UsageError(f"--{name} generates nothing: {', '.join(map(spelled, sorted(idle)))} "
                             "would have no effect; leave it out")


def main(argv: list[str]) -> None:
    """`python evaluate.py`: evaluate or grade again, and print the report."""
    words = given_flags(Flags, argv, __doc__)
    flags = Flags(**words)
    refuse_idle(words)
    # Read first: an error is better before hours of generation than after them.
    other = read_finished(Path(flags.versus)) if flags.versus else None
    if flags.read:
        print_asked(flags, *read_asked(Path(flags.read)), other)
        return
    if flags.regrade:
        print_asked(flags, *regrade_asked(flags), other)
        return
    with joined() as ranks:
        report, folder = evaluate_asked(flags, argv, ranks)
        if report:
            print_asked(flags, report, folder, other)


def print_asked(flags: Flags, report: Report, folder: Path, other: list[dict] | None) -> None:
    """The report for people, and how the evaluation differs from the records of another."""
    print(*report_lines(report.result), sep="\n")
    if "verifier" in report.result:
        import verifier

        print(*verifier.lines(report.result["verifier"]), sep="\n")
    if other:
        print(*versus_lines(flags.versus, compare_evaluations(other, report.records)), sep="\n")
    print(f"files      {folder}")
    print(f"next       python report.py {folder}    # a page with the figures and all answers")


if __name__ == "__main__":
    sys.exit(run_command(main))
