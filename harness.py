"""Our problems and our grader as a task of lm-evaluation-harness.

    python checkpoint.py export runs/lora-mini-gsm-1 OUT
    python harness.py TASK --dataset mini-gsm
    pip install lm_eval
    lm_eval --model hf --model_args pretrained=OUT,dtype=float32 --include_path TASK \\
        --tasks mathft-mini-gsm --apply_chat_template --device cpu --batch_size 16

TASK then holds

    mathft-mini-gsm.yaml     what lm_eval asks, and when it stops
    problems.jsonl           id, question and gold answer of each problem
    grade.py                 reads the problems; gives each completion its three verdicts
    grader_of_mathft/        answers.py and grader/, copied: the folder needs no mathft beside it

lm_eval makes the prompt from the exported model's chat template, which holds the run's system
prompt, and decodes greedily by transformers. Its verdicts are ours: flexible, strict and exact
string (score.py). docs/evaluation.md says what may still differ, and why.
"""

import json
import sys
from collections import Counter
from dataclasses import MISSING, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from data import (Problem, left_out_line, load_problems, read_columns, set_names,
                  short_name)
from flags import flag, parse_flags, run_command
from generate import MAX_NEW_TOKENS
from measure import check_problems
from runtime import VERSION, UserError, whole_folder, write_text
from synthetic import DATASETS

HERE = Path(__file__).resolve().parent
GRADER = "grader_of_mathft"  # a name that shadows no other package in lm_eval's process

TASK = """# Written by mathft {version}: python harness.py
task: {name}
custom_dataset: !function grade.problems
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: gold
process_results: !function grade.verdicts
num_fewshot: 0
generation_kwargs:
  do_sample: false
  max_gen_toks: {most}
  until: {stops}
metric_list:
{metrics}metadata:
  version: 1
"""
METRIC = """  - metric: {name}
    aggregation: mean
    higher_is_better: true
"""
GRADE = '''"""What lm_eval calls: the problems of this folder, and mathft's verdicts."""

import json
import sys
from pathlib import Path

from datasets import Dataset

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "{grader}"))

from answers import equivalent, extract_answer  # noqa: E402


def problems(**_):
    """The split `test`: a row is a problem with its id, question and gold answer."""
    lines = (HERE / "problems.jsonl").read_text(encoding="utf-8").split("\\n")
    return {{"test": Dataset.from_list([json.loads(line) for line in lines if line])}}


def verdicts(problem, completions):
    """1 or 0 by metric, of the one completion of a problem.

    lm_eval does not say whether a completion was cut: each is read as if it ended by itself.
    """
    gold, text = problem["gold"], completions[0]
    marked = extract_answer(text, strict=True)
    answer = extract_answer(text) if marked is None else marked
    return {{
        "flexible": int(answer is not None and equivalent(gold, answer)),
        "strict": int(marked is not None and equivalent(gold, marked)),
        "exact_string": int(answer is not None and answer.strip() == gold.strip()),
    }}
'''
# Of a ChatML model; lm_eval adds the end token that the model names itself.
STOPS = ("<|im_end|>", "<|endoftext|>")
METRICS = ("flexible", "strict", "exact_string")


@dataclass
class Flags:
    """The flags of `python harness.py`."""

    folder: str = flag(MISSING, "new folder of the task", positional=True)
    dataset: str = flag("mini-gsm", "problems: a set's name (its test split), or a file")
    columns: str | None = flag(None, "columns of the file of --dataset, if they have other names")
    limit: int | None = flag(
        None, "number of problems (default: 500 of an embedded set, all of a file)", least=1)
    max_new_tokens: int | None = flag(
        None, "longest completion in tokens; it must leave a prompt room among the model's "
        "positions (default: 256 of an embedded set, else 1024)", least=1)
    debug: bool = flag(False, "show the traceback of an error")


def write_task(folder: Path, name: str, problems: list[Problem], max_new_tokens: int) -> None:
    """Write the task `name` to a new folder, whole or not at all.

    Raises UserError if a problem is a chat (lm_eval would show the model other turns than ours) or
    has no gold answer, or if the folder exists.
    """
    check_problems(problems)
    chat = next((problem for problem in problems if problem.messages), None)
    if chat:
        raise UserError(f"{chat.id}: is a chat of several turns, which a task for lm_eval cannot "
                        "hold; give problems of one question each")
    rows = [json.dumps({"id": p.id, "question": p.question, "gold": p.answer}, ensure_ascii=False)
            for p in problems]
    task = TASK.format(version=VERSION, name=name, most=max_new_tokens,
                       stops=json.dumps(list(STOPS)),
                       metrics="".join(METRIC.format(name=metric) for metric in METRICS))
    with whole_folder(folder) as place:
        write_text(place / f"{name}.yaml", task)
        write_text(place / "problems.jsonl", "".join(row + "\n" for row in rows))
        write_text(place / "grade.py", GRADE.format(grader=GRADER))
        for path in (HERE / "answers.py", *sorted((HERE / "grader").glob("*.py"))):
            write_text(place / GRADER / path.relative_to(HERE), path.read_text(encoding="utf-8"))


def main(argv: list[str]) -> None:
    """`python harness.py FOLDER`: write the task, and print the command that runs it."""
    flags = parse_flags(Flags, argv, __doc__)
    left_out: Counter[str] = Counter()
    problems = load_problems(flags.dataset, "test", flags.limit,
                             columns=read_columns(flags.columns), left_out=left_out)
    embedded = all(name in DATASETS for name in set_names(flags.dataset))
    most = flags.max_new_tokens or (256 if embedded else MAX_NEW_TOKENS)
    # The letters and digits of a file's name, or lm_eval would take it for a pattern.
    stem = "".join(char if char.isalnum() else "-" for char in short_name(flags.dataset))
    name = f"mathft-{stem}"
    write_task(Path(flags.folder), name, problems, most)
    print(f"written    {flags.folder}: {len(problems)} problems of {flags.dataset} as {name}")
    if left_out:
        print(left_out_line(left_out))
    print(f"next       lm_eval --model hf --model_args pretrained=OUT --include_path "
          f"{flags.folder} --tasks {name} --apply_chat_template")


if __name__ == "__main__":
    sys.exit(run_command(main))
