"""Lesson 5: the study's first table has a row for rsLoRA."""

from show.experiments import EXPERIMENTS, RUNS

TABLE = next(experiment for experiment in EXPERIMENTS if experiment.name == "full-lora")


def test_the_row_is_there_and_its_run_is_a_command():
    run = TABLE.rows["rsLoRA"]
    words = RUNS[run].split()
    assert words[:3] == ["mathft.py", "--method", "lora"]
    assert words[words.index("--lora-variant") + 1] == "rslora"


def test_it_differs_from_lora_in_the_variant_alone():
    plain, scaled = (RUNS[TABLE.rows[row]].split() for row in ("LoRA", "rsLoRA"))
    assert [word for word in scaled if word not in ("--lora-variant", "rslora")] == plain
