"""The study's data: every table is whole, and every command is one that its program takes."""

import argparse

import pytest

import augment
import evaluate
import mathft
import study
import synthetic
from flags import given_flags, parse_flags
from methods import find_method
from show.experiments import EXPERIMENTS, RUNS
from show.jobs import UNKNOWN, Job, Jobs

FORMS = {"quick": study.Flags(quick=True), "full": study.Flags(),
         "another set": study.Flags(dataset="mini-math"),
         "a set that is new to it": study.Flags(dataset="mini-gsm-plus"),
         "real": study.Flags(model="Qwen/Qwen2.5-0.5B-Instruct")}


def check_mathft(words: list[str]) -> None:
    """As mathft.read_flags, but the run behind --from need not be there."""
    if "--from" not in words:
        mathft.read_flags(words)
        return
    given = given_flags(mathft.flag_kinds(mathft.OBJECTIVES), words)
    assert "model" not in given
    objective = mathft.objective_of(given)
    mathft.refuse_others(given | {"method": "sft"}, find_method("sft"), objective)
    lengths = [name for name in mathft.LENGTHS if name in given]
    assert len(lengths) <= 1 and set(lengths) <= set(objective.lengths)


def check_evaluate(words: list[str]) -> None:
    given = given_flags(evaluate.Flags, words)
    evaluate.refuse_idle(given)
    flags = evaluate.Flags(**given)
    assert not flags.verifier or flags.samples > 1 or flags.regrade


def check_augment(words: list[str]) -> None:
    assert words[0] == "make"
    augment._check_teachers(parse_flags(augment.MakeFlags, words[1:]))


def check_synthetic(words: list[str]) -> None:
    parse_flags(synthetic.Flags, words)


CHECKS = {"mathft.py": check_mathft, "evaluate.py": check_evaluate, "augment.py": check_augment,
          "synthetic.py": check_synthetic}


def all_jobs(flags: study.Flags, folder) -> list[Job]:
    jobs = Jobs(RUNS, study.settings_of(flags), folder)
    found = {job.folder: job for experiment in study.chosen(flags)
             for job in study.jobs_of(jobs, experiment, range(1))}
    return list(found.values())


@pytest.mark.parametrize("form", FORMS)
def test_every_command_is_one_that_its_program_takes(form, tmp_path):
    jobs = all_jobs(FORMS[form], tmp_path)
    assert len(jobs) > 40
    for job in jobs:
        words = ["7" if word == UNKNOWN else word for word in job.words[1:]]
        try:
            CHECKS[job.words[0]](words)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{job.run}: {job.command}: {error}") from error


def test_a_wrong_flag_would_be_seen():
    """The checks above can fail: they know each program's flags."""
    for check, words in ((check_mathft, ["--method", "sft", "--lora-rank", "4"]),
                         (check_mathft, ["--from", "runs/a", "--group", "4"]),
                         (check_evaluate, ["--sample", "4"]),
                         (check_augment, ["make", "responses"]),
                         (check_synthetic, ["mini-gsm", "--style", "long"])):
        with pytest.raises((Exception, SystemExit)) as seen:
            check(words)
        assert not isinstance(seen.value, (AssertionError, argparse.ArgumentTypeError))


def test_a_run_stands_behind_what_it_needs(tmp_path):
    for flags in FORMS.values():
        seen = set()
        for job in all_jobs(flags, tmp_path):
            names = {word for part in job.words for word in part.replace(",", "/").split("/")}
            own = job.folder.name
            assert {name for name in names if name[-11:-10] == "-" and name != own
                    and all(sign in "0123456789abcdef" for sign in name[-10:])} <= seen
            seen.add(own)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_a_table_is_whole(experiment):
    rows, columns = set(experiment.rows), set(experiment.columns)
    for row, run in experiment.rows.items():
        found = [study.run_of(run, column) for column in experiment.columns.values()]
        assert any(found), row
    for row, figures in experiment.paper.items():
        assert row in rows and set(figures) <= columns
    for claim in experiment.claims:
        assert {claim.above, claim.below} <= rows
        assert {claim.column, claim.other_column or claim.column} <= columns
        assert (claim.above, claim.column) != (claim.below, claim.other_column or claim.column)
    assert experiment.claims or experiment.ranked  # it says in a line what the paper does
    assert {column.kind for column in experiment.columns.values()} <= {
        "share", "seconds", "MiB", "count", "number"}


def test_names_are_unique_and_every_run_is_in_a_table(tmp_path):
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)
    used = {job.run for job in all_jobs(FORMS["full"], tmp_path)}
    # Every method has a run on the second set, and a pace of each way of distillation; the tables
    # show some of them.
    idle = {run.partition("-")[2] for run in RUNS.keys() - used}
    assert idle <= {"gold-second", "distill-weighted-pace", "distill-on-policy-pace"}


def test_the_papers_figures_are_those_of_the_papers():
    paper = {experiment.name: experiment.paper for experiment in EXPERIMENTS}
    first = {row: figures["first set"] for row, figures in paper["methods"].items()}
    assert first == {"SFT": "34.27", "LoRA": "28.54", "prefixes": "57.47", "augmented": "37.07",
                     "expert": "84.38"}
    second = [figures["second set"] for figures in paper["methods"].values()]
    assert second == ["7.00", "7.60", "11.40", "8.00", "51.80"]
    assert paper["votes"]["LoRA"] == {"1 sample": "28.73", "2 votes": "0", "3 votes": "0"}
