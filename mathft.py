"""Fine-tune Qwen2.5 on mathematics and say what it cost and brought.

    python mathft.py --method prefix                 # embedded model and data, minutes on a laptop
    python mathft.py --method lora --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k
    python mathft.py --method lora --objective cpt --dataset texts.jsonl --eval-dataset mini-gsm
    python mathft.py --from runs/lora-mini-gsm-1     # a new run starts at that run's end
    python mathft.py --resume runs/lora-gsm8k-1      # goes on after Ctrl-C

1. Measure the model. 2. Train what the method says on what the objective says. 3. Measure again.
4. Save and report.

All that a run does is in its folder: settings, machine, loss by step, every completion before and
after, the result.
"""

import dataclasses
import math
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch
from tqdm import tqdm

import fast
from adapters import Base, Tuning, without_adapters
from checkpoint import (TOY, as_saved, drop_old_checkpoints, find_model, last_checkpoint,
                        load_model, size_of, step_of)
from data import (Example, Problem, count, describe_examples, is_embedded, left_out_line,
                  prompt_of, read_columns, show, spells_marker, train_and_test, usual_test_set)
from flags import (Terminated, check_stored, deferred_interrupts, flag, given_flags, joined, pick,
                   run_command, spelled, unread_output)
from measure import check_problems, evaluate
from methods import (METHODS, base_name, base_of, check_args, continued, find_method,
                     goes_on_training, going_on, print_way_on, result_folder, result_hash,
                     start_folder, start_tuning)
from model import Qwen2
from runtime import (ALONE, VERSION, Alone, UsageError, UserError, append_metrics, describe_machine,
                     dtype_name, free_memory_mib, give_back_freed_memory, locked, machine_line,
                     memory_in_use_mib, one_line, peak_memory_mib, pick_device, pick_dtype,
                     read_json, remove_leftovers, trim_metrics, use_little_memory, use_threads,
                     write_json)
from score import Report, before_and_after, gain_line, report_lines, wrong_lines
from tokenizer import Tokenizer
from train import (Objective, TrainSettings, TrainTotals, best_step, cpt, estimate, in_order,
                   log_line, mean_loss, needed_disk, supervised, train)


def grpo() -> Objective:
    """The model's own completions, rewarded by the grader."""
    import grpo  # here: a plain run needs no objective but its own

    return grpo.OBJECTIVE


def distill() -> Objective:
    """What a teacher says of every next token."""
    import distill

    return distill.OBJECTIVE


def verifier() -> Objective:
    """Verdicts on candidate solutions."""
    import verifier

    return verifier.OBJECTIVE


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "supervised": supervised, "cpt": cpt, "grpo": grpo, "verifier": verifier,
    "distill": distill}
# What a flag that is not given means, for the embedded model and for real ones. A method's own
# defaults come on top: a model of 2.5 M parameters takes far larger learning rates.
DEFAULTS = {
    "tiny": {"steps": 100, "batch_size": 32, "micro_batch_tokens": 4096, "max_length": 512,
             "max_new_tokens": 256},
    "real": {"epochs": 2.0, "batch_size": 16, "micro_batch_tokens": 2048, "max_length": 1024,
             "max_new_tokens": 1024},
}
LENGTHS = ("steps", "epochs", "tokens")  # of which one holds
OWN_EPOCHS = 5.0  # of an embedded model on data that are no embedded set, instead of its steps
# What may differ if a run goes on, and is then the run's own; and what is not stored.
STORED_ON_RESUME = (*LENGTHS, "learning_rate", "model", "dataset", "columns", "eval_dataset",
                    "eval_columns", "keep", "save_every", "save_minutes", "log_every")
FREE_ON_RESUME = (*STORED_ON_RESUME, "resume", "device", "threads", "plain", "compile", "debug")
WRONG_SHOWN = 3
FEW = 100  # test problems; an accuracy on fewer comes with a warning
MOST_HELD_OUT = 200  # test problems of which --eval-every measures the loss
MOST_STEPS = 10**7  # of a run; a larger number is a mistake


@dataclasses.dataclass
class Flags:
    """The flags of every method."""

    method: str | None = flag(None, "which parameters train", choices=tuple(METHODS),
                              group="what trains")
    objective: str = flag("supervised", "what they learn: the answers of problems; every token of "
                          "plain texts (cpt, continued pre-training); from rewards of the model's "
                          "own answers (grpo); to judge solutions (verifier); from a teacher "
                          "(distill)", choices=tuple(OBJECTIVES))
    model: str = flag("tiny", "tiny or tiny-large (embedded), a folder, or a hub id such as "
                      "Qwen/Qwen2.5-0.5B-Instruct")
    from_run: str | None = flag(None, "start at the end of the run in this folder, with the same "
                                "method or another", alias="--from")
    dataset: str = flag("mini-gsm", "training problems: a set's name (python sources.py lists "
                                    "them), hub:owner/name/path.jsonl, or a file; several with "
                                    "commas", group="data")
    columns: str | None = flag(None, "columns of the file of --dataset, if they have other names: "
                               "question=prompt,solution=target")
    eval_dataset: str | None = flag(None, "test problems (default: the set's own; math500 for math "
                                    "and aug-math, gsm8k for aug-gsm8k; of a file a tenth is held "
                                    "out)")
    eval_columns: str | None = flag(None, "columns of the file of --eval-dataset, as --columns")
    train_on_overlap: bool = flag(False, "keep training problems that repeat a test problem, "
                                         "wholly or in 13 words")
    train_on: str = flag("all", "of a chat, which turns of the assistant are learnt",
                         choices=("all", "last"))
    limit: int | None = flag(None, "use at most so many training problems", least=1)
    eval_limit: int | None = flag(None, "use at most so many test problems; 0: do not measure",
                                  least=0)
    steps: int | None = flag(None, "optimiser steps (instead of --epochs or --tokens)", least=1,
                             most=MOST_STEPS, group="training")
    epochs: float | None = flag(None, "passes over the training problems (instead of --steps); "
                                "with grpo each is asked once, and serves --updates steps",
                                least=0.001, most=1e6)
    tokens: int | None = flag(None, "about so many training tokens (instead of --steps), to "
                                    "compare sets", least=1)
    batch_size: int | None = flag(None, "examples an optimiser step sees", least=1, most=2**20)
    micro_batch_tokens: int | None = flag(None, "tokens computed at once; bounds memory, changes "
                                                "no result", least=1)
    learning_rate: float | None = flag(None, "peak learning rate", alias="--lr", least=0)
    warmup: float = flag(0.03, "share of the steps that raise the learning rate", least=0, most=1)
    clip: float = flag(1.0, "largest norm of the gradient", least=1e-6)
    max_length: int | None = flag(None, "longest example in tokens: longer chats are dropped, "
                                        "longer texts are cut into windows", least=3)
    max_new_tokens: int | None = flag(None, "longest completion when measuring, in tokens", least=1,
                                      group="measuring and answering")
    calculator: bool = flag(False, "compute what the model writes as <<48/2= and put in the "
                                   "result: when measuring, and in what it writes to learn from")
    system: str | None = flag(None, "system prompt; none: no system turn (default: the one in the "
                                    "checkpoint's template)", empty=True)
    seed: int = flag(0, "seed of the order, of fresh weights, and of the problems of an embedded "
                        "set", least=0)
    output_dir: str | None = flag(None, "folder of the run (default: runs/METHOD-DATASET-N)",
                                  group="the run")
    resume: str | None = flag(None, "go on with the run in this folder, with its settings")
    keep: int = flag(0, "checkpoints kept when the run has ended; before, the last one is always "
                        "there", least=0)
    save_minutes: float = flag(5.0, "minutes between checkpoints; 0: none by the clock", least=0)
    save_every: int = flag(0, "steps between checkpoints, besides; 0: none", least=0)
    log_every: int = flag(10, "steps between lines of the log", least=1)
    eval_every: int = flag(0, "steps between measurements of the loss on the test problems (at "
                              f"most {MOST_HELD_OUT}); the checkpoint of the lowest is kept",
                           least=0)
    dtype: str = flag("auto", "precision of products and frozen weights: auto, bf16 or fp32",
                      group="machine")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = flag(None, "processor threads (default: OMP_NUM_THREADS, else all)",
                               least=1, most=1024)
    grad_checkpoint: bool = flag(False, "compute each layer twice instead of keeping it: less "
                                        "memory, a third slower")
    plain: bool = flag(False, "leave out the tricks of fast.py: the same results, slower and with "
                       "more memory")
    compile: bool = flag(False, "let torch compile rotation, SwiGLU and loss into one pass each, "
                         "for CUDA: the same results, some seconds at the beginning")
    show_example: bool = flag(False, "print one training example with its targets marked, and exit")
    debug: bool = flag(False, "show the traceback of an error")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: the settings and everything that is read before the model."""

    args: Flags
    own: object  # the method's flags
    objective: Objective
    goals: object  # the objective's flags
    folder: Path
    device: torch.device
    machine: dict
    tokenizer: Tokenizer  # in the model's folder
    examples: list[Example]
    left_out: Counter[str]  # rows that are not trained on, by reason
    test_problems: list[Problem]
    overlap: int  # training problems that repeat a test problem
    with_markers: int = 0  # training problems that spell a marker such as <|im_end|>
    ranks: Alone = ALONE  # the processes that do this run together
    program_mib: float = 0.0  # memory of the program, before the model was loaded

    @property
    def method(self) -> ModuleType:
        """The module of --method."""
        return find_method(self.args.method)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return steps_of(self.args, self.examples, self.objective.serves(self.goals))


# ----------------------------------------------------------------------------------------- settings


def defaults_table() -> str:
    """What a flag that is not given means, as text for --help."""
    def row(size: str, name: str, values: dict) -> str:
        return f"  {size:5s}{name}" + "  ".join(f"{spelled(k)} {v}" for k, v in values.items())

    lines = ["Defaults by model and method (--objective supervised; tiny on other than embedded "
             f"sets: --epochs {OWN_EPOCHS:g}):"]
    lines += [row(size, f"{name:7s}", DEFAULTS[size] | method.DEFAULTS[size])
              for size in DEFAULTS for name, method in METHODS.items()]
    lines.append("An objective may have others (its --lr is a multiple of the method's):")
    for size in DEFAULTS:
        for name, objective in ((name, make()) for name, make in OBJECTIVES.items()):
            if objective.defaults[size]:
                rate = {"learning_rate": f"x {objective.rate[size]}"}
                lines.append(row(size, f"{name:11s}", objective.defaults[size] | rate))
    return "\n".join(lines)


def read_flags(argv: list[str]) -> tuple[Flags, object, object]:
    """The flags, the method's and the objective's own, with defaults filled in; with --resume those
    of the run.

    Raises UsageError if they contradict, or one belongs to another method or objective.
    """
    words = given_words(argv)
    lengths = [name for name in LENGTHS if name in words]
    if len(lengths) > 1:
        raise UsageError(f"--{lengths[0]} and --{lengths[1]} exclude each other")
    if words.get("resume"):
        return resumed(words, lengths)
    size = size_of(words.get("model", "tiny"))
    if words.get("from_run"):
        words, size = continued(words)
    if words.get("method") is None:
        raise UsageError(f"--method is missing: one of {', '.join(METHODS)}; --help lists the "
                         f"flags")
    method, objective = find_method(words["method"]), objective_of(words)
    refuse_others(words, method, objective)
    if lengths and lengths[0] not in objective.lengths:
        raise UsageError(f"--{lengths[0]} says nothing about --objective {words['objective']}; "
                         f"give --{' or --'.join(objective.lengths)}")
    usual = usual_values(size, method, objective)
    own_data = not is_embedded(words.get("dataset", Flags.dataset))
    if own_data and size == "tiny" and "steps" not in objective.defaults[size]:
        usual = usual | {"steps": None, "epochs": OWN_EPOCHS}
    usual["eval_dataset"] = usual_test_set(words.get("dataset", Flags.dataset))
    if lengths:
        usual = {name: value for name, value in usual.items() if name not in LENGTHS}
    return tuple(pick(kind, usual | words) for kind in (Flags, method.Flags, objective.flags))


def given_words(argv: list[str]) -> dict:
    """The values that a command line gives, by flag. Only the objectives that it names are
    imported, unless it asks for --help or holds a flag that none of these has.
    """
    if {"-h", "--help"} & set(argv):
        return given_flags(flag_kinds(OBJECTIVES), argv, f"{__doc__}\n{defaults_table()}")
    try:
        return given_flags(flag_kinds(named_objectives(argv)), argv)
    except UsageError:
        return given_flags(flag_kinds(OBJECTIVES), argv)


def usual_values(size: str, method: ModuleType, objective: Objective) -> dict:
    """What flags mean that are not given, for a model of this size: tiny or real."""
    usual = DEFAULTS[size] | method.DEFAULTS[size]
    rate = usual["learning_rate"] * objective.rate[size]
    return usual | objective.defaults[size] | {"learning_rate": rate}


def objective_of(words: dict) -> Objective:
    """The objective that settings name."""
    return OBJECTIVES[words.get("objective", Flags.objective)]()


def named_objectives(argv: list[str]) -> list[str]:
    """The objectives with flags that the command may hold; the others are not imported."""
    return [name for name in OBJECTIVES if any(name in word for word in argv)]


def flag_kinds(objectives: Iterable[str]) -> tuple[type, ...]:
    """The dataclasses of all flags: of every run, of each method, and of these objectives."""
    goals = (OBJECTIVES[name]().flags for name in objectives)
    return (Flags, *(method.Flags for method in METHODS.values()),
            *(kind for kind in goals if dataclasses.fields(kind)))


def refuse_others(words: dict, method: ModuleType, objective: Objective) -> None:
    """Raise UsageError for a flag that belongs to another method or objective."""
    def names(kind: type) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    own = names(Flags) | names(method.Flags) | names(objective.flags)
    for name in sorted(words.keys() - own):
        which, has = "--method", words["method"]
        owners = [other for other, module in METHODS.items() if name in names(module.Flags)]
        if not owners:
            which, has = "--objective", words.get("objective", Flags.objective)
            owners = [other for other, make in OBJECTIVES.items() if name in names(make().flags)]
        owner = f"{which} {' or '.join(owners)}"
        raise UsageError(f"{spelled(name)} is a flag of {owner}, not of {has}; leave it out, or "
                         f"give {owner}")


def resumed(words: dict, lengths: list[str]) -> tuple[Flags, object, object]:
    """The settings of the run that goes on, with what may differ taken from the command.

    Raises UserError if its model has other weights than when it began.
    """
    folder = Path(words["resume"])
    path = folder / "args.json"
    saved = read_json(path)
    check_stored((Flags,), saved, path)
    kinds = flag_kinds([saved.get("objective", Flags.objective)])
    check_stored(kinds, saved, path)
    others = saved.keys() - {field.name for kind in kinds for field in dataclasses.fields(kind)}
    others -= {"history", "data", "base"}
    lacking = [] if others else lacking_in(saved, check_args(path, saved))
    if others or lacking:
        odd = f"it lacks {lacking[0]}" if lacking else f"it also holds {min(others)}"
        raise UserError(f"{path}: not the settings of a run of this version: {odd}")
    method, objective = find_method(saved["method"]), objective_of(saved)
    refuse_others(words | {"method": saved["method"]}, method, objective)
    for name, value in words.items():
        if name not in FREE_ON_RESUME and value != saved.get(name):
            raise UsageError(f"{spelled(name)} {value}: the run in {words['resume']} has "
                             f"{saved.get(name)}; leave it out")
    if lengths:
        saved |= dict.fromkeys(LENGTHS)
    free = {name: value for name, value in words.items() if name in FREE_ON_RESUME}
    base_of(folder, saved, words.get("model"))
    saved["model"] = base_name(folder, saved)
    return tuple(pick(kind, saved | free) for kind in (Flags, method.Flags, objective.flags))


def lacking_in(saved: dict, method: ModuleType) -> list[str]:
    """The settings that every run has, and these lack."""
    filled = usual_values("tiny", method, objective_of(saved)).keys() - set(LENGTHS)
    lacking = sorted(name for name in filled if saved.get(name) is None)
    return lacking if any(saved.get(name) for name in LENGTHS) else [*lacking, LENGTHS[0]]


# ----------------------------------------------------------------------------------------- training


def steps_of(args: Flags, examples: list[Example], serves: int = 1) -> int:
    """Optimiser steps of a whole run, `serves` with each batch of examples. Raises UsageError if
    they are absurdly many.
    """
    epochs = args.epochs or (args.tokens or 0) / sum(len(example.ids) for example in examples)
    steps = args.steps or serves * max(1, round(epochs * len(examples) / args.batch_size))
    if steps > MOST_STEPS:
        raise UsageError(f"{steps:,} steps are more than the {MOST_STEPS:,} of the longest run; "
                         "give fewer --epochs or --tokens")
    return steps


def run_training(job: Job, model: Qwen2, tuning: Tuning) -> TrainTotals:
    """Train as the flags say. Raises KeyboardInterrupt once a checkpoint is written."""
    args, steps, last = job.args, job.steps, last_checkpoint(job.folder)
    settings = pick(TrainSettings, vars(args) | {
        "steps": steps, "weight_decay": tuning.weight_decay, "keep": max(1, args.keep)})
    done = step_of(last) if last else 0
    if job.ranks.first:
        trim_metrics(job.folder / "metrics.jsonl", done)
        if done < steps:  # then a second measurement that is there belongs to a shorter run
            shutil.rmtree(job.folder / "evals" / "after", ignore_errors=True)

    held_out = held_out_examples(job.tokenizer, job.test_problems, args,
                                 job.goals) if args.eval_every else []

    def held_out_loss() -> float:
        front = tuning.prefix() if tuning.prefix else None
        return mean_loss(whole_model(job, model), held_out, front, args.micro_batch_tokens)

    at_work = job.objective.begin(model, job.tokenizer, tuning, job.examples, args, job.goals,
                                  job.folder, job.ranks)
    bar = tqdm(total=steps, desc="train", unit="step", leave=False, disable=not sys.stderr.isatty())
    with deferred_interrupts() as received, bar:
        totals = train(
            model, tuning.trainable, at_work.batch_at, settings, job.folder,
            loss=at_work.loss, prefix=tuning.prefix, held_out_loss=held_out_loss,
            rate_factors=tuning.rate_factors, resume_from=last, stop=lambda: bool(received),
            ranks=job.ranks, on_log=lambda record: log(job, record | at_work.figures()),
            on_step=progress(job, bar))
    if totals.interrupted:  # by a signal to this process, or to another
        print(f"stopped after step {totals.steps} of {steps}")
        raise Terminated if received and signal.SIGINT not in received else KeyboardInterrupt
    return totals


def whole_model(job: Job, model: Qwen2) -> Qwen2:
    """The model; if its weights are divided over the processes, a copy with all of them."""
    return as_saved(model, job.args.plain, job.ranks) if job.ranks.divided else model


def progress(job: Job, bar: tqdm) -> Callable[[int], None]:
    """A function for `on_step`, which gets the number of each step that has ended. It moves the
    bar, and prints after the second step how long the rest will take: the first one is slower.
    """
    ends: list[float] = []

    def after_step(step: int) -> None:
        bar.update(step - bar.n)
        ends.append(perf_counter())
        if len(ends) == 2:
            print_pace(job, step, ends[1] - ends[0])

    return after_step


def print_pace(job: Job, step: int, seconds: float) -> None:
    """How long the steps after this one will take, at so many seconds each."""
    left = job.steps - step
    minutes = round(seconds * left / 60)
    if job.ranks.first and minutes:
        with unread_output(sys.stdout):
            tqdm.write(f"time       about {minutes:,} {'minutes' if minutes > 1 else 'minute'} for "
                       f"the {left:,} steps that are left, at {seconds:.2g} s each")


def log(job: Job, record: dict) -> None:
    """Write a logged step to metrics.jsonl and to stdout."""
    if not job.ranks.first:
        return
    append_metrics(job.folder / "metrics.jsonl", record)
    with unread_output(sys.stdout):
        tqdm.write(log_line(record, job.steps, job.objective.line))
        sys.stdout.flush()  # a pipe (`| tee`) would otherwise keep the lines back to the end


def held_out_examples(tokenizer: Tokenizer, tests: list[Problem], args: Flags,
                      goals: object) -> list[Example]:
    """The test problems as examples, for a loss. Raises UsageError if there are none."""
    objective = objective_of(vars(args))
    if objective.begin is not in_order:
        raise UsageError(f"--eval-every measures the loss of solutions or texts, which --objective "
                         f"{args.objective} does not learn; leave it out")
    examples, _ = objective.examples(tokenizer, tests[:MOST_HELD_OUT], args, goals)
    if not examples:
        raise UsageError("--eval-every: no test problem has a solution, so there is no loss; give "
                         "another --eval-dataset")
    return examples


# ------------------------------------------------------------------------------------------- report


def result_of(job: Job, sizes: dict[str, int], totals: TrainTotals, before: Report | None,
              after: Report | None) -> dict:
    """The figures of result.json; null if nothing was measured."""
    args, measured = job.args, before is not None and after is not None
    return {
        "method": args.method, "objective": args.objective, "model": args.model,
        "dataset": args.dataset, "eval_dataset": args.eval_dataset or args.dataset,
        "n": len(job.test_problems) if measured else None, "train_overlap": job.overlap,
        "left_out": dict(job.left_out.most_common()), "rows_with_markers": job.with_markers,
        **before_and_after(before, after), **sizes,
        "train_seconds": totals.seconds,
        "eval_seconds": before.result["eval_seconds"] + after.result["eval_seconds"]
        if measured else None,
        "steps": totals.steps, "train_tokens": totals.tokens, "target_tokens": totals.target_tokens,
        "tokens_per_second": totals.tokens / totals.seconds,
        "target_tokens_per_second": totals.target_tokens / totals.seconds,
        "peak_memory_mib": peak_memory_mib(job.device),
        "device": job.machine["device"], "dtype": job.machine["dtype"], "seed": args.seed,
        "version": VERSION,
    }


def print_report(job: Job, result: dict, after: Report | None, place: Path) -> None:
    """What a person wants to know at the end, the most important first."""
    if after is not None:
        print("after training", *report_lines(after.result), sep="\n  ")
        print(gain_line(result))
    trained, total = result["trainable_params"], result["total_params"]
    print(f"trained    {trained:,} parameters, {trained / total:.2%} of the model's {total:,}")
    print(f"cost       {result['train_seconds']:.1f} s for {result['steps']} steps, "
          f"{result['target_tokens_per_second']:.0f} target tokens/s, "
          f"peak memory {result['peak_memory_mib']:.0f} MiB")
    best = best_step(job.folder)
    if best is not None:
        print(f"held out   the lowest loss is that of step {best}: python evaluate.py --run "
              f"{job.folder} --checkpoint step-{best}")
    for line in wrong_lines(after.records if after else [], WRONG_SHOWN):
        print(line)
    print(f"\nfiles      {job.folder} ({place.name}/, result.json, metrics.jsonl, data/, evals/)")
    calculator = " --calculator" if job.args.calculator else ""
    dataset = "" if job.test_problems else " --dataset NAME"
    asked = f"RUN --verifier {job.folder}" if job.objective.read else f"{job.folder}{dataset}"
    print(f"next       python evaluate.py --run {asked} --samples 8 --temperature 0.7{calculator}")
    print(f"           python report.py {job.folder}    # a page with the figures and all answers")


# --------------------------------------------------------------------------------------------- main


def load_data(args: Flags, left_out: Counter[str] | None = None
              ) -> tuple[list, list[Problem], int]:
    """Training and test problems, and how many training problems repeat a test problem.

    These are left out, unless --train-on-overlap keeps them. `left_out` counts all rows that are
    not trained on, by reason. Raises UsageError if test problems are asked for and there are none.
    """
    left_out = Counter() if left_out is None else left_out
    if read := objective_of(vars(args)).read:
        if args.eval_limit != 0 or args.eval_dataset:
            raise UsageError(f"--objective {args.objective} reads samples, and has no test "
                             "problems: leave --eval-limit and --eval-dataset out, and measure the "
                             "run by python evaluate.py --run FOLDER --dataset NAME")
        return read(args.dataset)[: args.limit], [], 0
    if args.eval_columns and not args.eval_dataset:
        raise UsageError("--eval-columns without --eval-dataset: held-out rows have the --columns "
                         "of --dataset; leave it out")
    problems, tests, repeated = train_and_test(
        args.dataset, args.eval_dataset, args.seed, args.eval_limit != 0,
        read_columns(args.columns), read_columns(args.eval_columns), left_out)
    clean = [problem for problem in problems if problem.key not in repeated]
    if repeated and not clean and not args.train_on_overlap:
        raise UserError(f"{args.dataset}: all {len(problems)} problems repeat test problems; "
                        "--train-on-overlap keeps them")
    chosen = problems if args.train_on_overlap else clean
    count(left_out, "overlap the test problems", len(problems) - len(chosen))
    count(left_out, "beyond --limit", max(0, len(chosen) - (args.limit or len(chosen))))
    measured = tests[: args.eval_limit or None]
    if not args.eval_dataset and not is_embedded(args.dataset):
        count(left_out, "held out, beyond --eval-limit", len(tests) - len(measured))
    return chosen[: args.limit], measured, len(problems) - len(clean)


def make_examples(tokenizer: Tokenizer, problems: list, args: Flags, goals: object,
                  left_out: Counter[str]) -> list[Example]:
    """The examples of the run's objective; problems that make none are counted in `left_out`."""
    objective = objective_of(vars(args))
    examples, too_long = objective.examples(tokenizer, problems, args, goals)
    count(left_out, f"longer than {args.max_length} tokens", too_long)
    if not objective.read:  # then a row makes an example or more
        count(left_out, "with nothing to learn", len(problems) - too_long - len(examples))
    if not examples:
        raise UserError(f"{args.dataset}: nothing to learn by --objective {args.objective} fits "
                        f"into --max-length {args.max_length} tokens; plain texts need "
                        "--objective cpt")
    return examples


def check_start(args: Flags, goals: object, model: Qwen2, tuning: Tuning, tokenizer: Tokenizer,
                examples: list[Example], tests: list[Problem]) -> None:
    """Raise UserError for what cannot be measured or learnt, before a folder is made: problems
    without a gold answer, a held-out loss of nothing, texts that the model has no positions for.
    If only some test problems are too long, a note says so: published sets have a few.
    """
    measured = tests if args.eval_limit != 0 else []
    if args.eval_limit != 0:
        check_problems(measured)
    held_out = held_out_examples(tokenizer, tests, args, goals) if args.eval_every else []
    front = tuning.prefix().shape[2] if tuning.prefix else 0
    room = model.config.max_position_embeddings - front
    behind = f" behind a prefix of {front:,}" if front else ""
    left = f"the model has {room:,} positions for it{behind}"
    example = max([*examples, *held_out], key=lambda example: example.longest)
    if example.longest > room:
        mend = f"give --max-length {room}" if room > front else "give a shorter prefix"
        raise UsageError(f"{example.name}: has {example.longest:,} tokens, and {left}; {mend}")
    long = sum(len(prompt_of(tokenizer, problem, args.system)) >= room for problem in measured)
    if long and long == len(measured):
        raise UsageError(f"no test problem is short enough to be answered: the model has {room:,} "
                         f"positions{behind}; give another --eval-dataset")
    if long:
        print(f"note       {long} of {len(measured)} test problems count as wrong: they leave no "
              f"room for an answer in the model's {room:,} positions{behind}")


def print_start(job: Job, model: Qwen2, total: int) -> None:
    """Machine, model and data, before anything is computed."""
    args = job.args
    print(machine_line(job.device, model.compute_dtype, job.ranks.size))
    start = f", from {args.from_run}" if args.from_run else ""
    print(one_line(f"model      {args.model}, {total:,} parameters; method {args.method}, "
                   f"objective {args.objective}{start}"))
    measured = 0 if args.eval_limit == 0 else len(job.test_problems)
    overlap = (f" ({job.overlap} overlap the test problems and are trained on all the same)"
               if job.overlap and args.train_on_overlap else "")
    print(one_line(f"data       {args.dataset}: {len(job.examples)} training examples, "
                   f"{measured} test problems{overlap}"), flush=True)
    if job.left_out:
        print(left_out_line(job.left_out), flush=True)
    if job.with_markers:
        print(f"note       {job.with_markers} rows spell a marker such as <|im_end|>: it stays "
              "text, and ends no turn", flush=True)
    print_plan(job)


def print_plan(job: Job) -> None:
    """How long it trains, and what to think of the figures that come."""
    args, measured = job.args, 0 if job.args.eval_limit == 0 else len(job.test_problems)
    serves = job.objective.serves(job.goals)
    seen = -(-job.steps // serves) * args.batch_size  # a batch that serves a part of its steps too
    epochs = seen / len(job.examples)
    tokens = epochs * sum(len(example.ids) for example in job.examples)
    print(f"training   {job.steps} steps of {args.batch_size} examples, "
          + (f"{serves} with each batch, " if serves > 1 else "") + f"{epochs:.3g} epochs, "
          + (f"about {tokens:,.0f} tokens" if any(job.examples[0].is_target) else
             f"about {tokens:,.0f} tokens of prompts, and what the model writes"), flush=True)
    if 0 < measured < FEW:
        print(f"note       {measured} test problems are few: an accuracy is known to about "
              f"±{100 / measured ** 0.5:.0f} points; give an --eval-dataset, or more problems")
    if job.tokenizer.folder == find_model("tiny") and not is_embedded(args.dataset):
        print(f"note       {TOY}")


def print_memory(job: Job, model: Qwen2, tuning: Tuning) -> None:
    """What training will take of memory, and what helps if that is more than is free."""
    give_back_freed_memory()
    args, free, held = job.args, free_memory_mib(job.device), memory_in_use_mib(job.device)
    if free is not None:  # what this process holds, training takes again
        free += held
    prompts = not any(job.examples[0].is_target)  # the model writes the rest
    ranks = job.ranks.size
    expected = estimate(model, tuning, job.examples, math.ceil(args.batch_size / ranks),
                        args.micro_batch_tokens, args.grad_checkpoint, job.program_mib, held,
                        new_tokens=prompts * args.max_new_tokens,
                        beside=job.objective.beside(model, job.goals),
                        parts=ranks if job.method.PEFT_TYPE is None else 1)
    give_back_freed_memory()  # of the pass that has told it
    each = f"in each of {ranks} processes, " if ranks > 1 else ""
    print(f"memory     {each}{expected.line(free)}", flush=True)
    if mend := expected.mend(free, args.grad_checkpoint):
        print(f"note       {mend}", flush=True)


def print_disk(job: Job, model: Qwen2, tuning: Tuning) -> None:
    """What the run's folder will take, and what helps if that is more than is free."""
    args = job.args
    most, last = needed_disk(model, tuning, job.method.PEFT_TYPE is None, args.keep,
                             best=args.eval_every > 0)
    room = shutil.disk_usage(job.folder).free / 2**20
    print(f"disk       {most:,.1f} MiB of checkpoints while it trains, {last:,.1f} MiB for what is "
          f"kept; {room:,.0f} MiB are free", flush=True)
    if max(most, last) > room:
        print("note       more than is free: give an --output-dir on another disk", flush=True)


def measure(job: Job, model: Qwen2, label: str, tuning: Tuning | None) -> Report | None:
    """The accuracy on the test problems, in the run's folder evals/LABEL. None if there is nothing
    to measure, and in all processes but the first."""
    args = job.args
    if args.eval_limit == 0:
        return None
    prefix = tuning.prefix().detach() if tuning and tuning.prefix else None
    folder = job.folder / "evals" / label
    begun = folder / "args.json"  # the model's folder may have moved since
    model_name = read_json(begun).get("model") if begun.exists() else args.model
    return evaluate(as_saved(model, args.plain), job.tokenizer, job.test_problems, folder,
                    dataset=args.eval_dataset or args.dataset, system=args.system, prefix=prefix,
                    max_new_tokens=args.max_new_tokens, seed=args.seed, ranks=job.ranks,
                    calculator=args.calculator,
                    about={"model": model_name, "dtype": job.machine["dtype"]})


def measure_before(job: Job, model: Qwen2, tuning: Tuning) -> Report | None:
    """The accuracy of what the run starts from: the plain model, or the adapter of --from."""
    if goes_on_training(vars(job.args)):
        return measure(job, model, "before", tuning)
    with without_adapters(model):
        return measure(job, model, "before", None)


def run(job: Job, model: Qwen2, tuning: Tuning) -> None:
    """Measure, train, measure again, save, report, in a folder that may hold a part of this."""
    args = job.args
    base = model.parameters() if job.method.PEFT_TYPE is None else (
        parameter for parameter in model.parameters() if not parameter.requires_grad)
    total = sum(parameter.numel() for parameter in base)
    print_start(job, model, total)
    print_disk(job, model, tuning)
    before = measure_before(job, model, tuning)
    if before:
        print("before training", *report_lines(before.result), sep="\n  ", flush=True)
    print_memory(job, model, tuning)
    if args.grad_checkpoint:
        fast.checkpoint_layers(model)
    if job.method.PEFT_TYPE is None:
        job.ranks.divide(model)
        tuning.trainable = dict(model.named_parameters())
    totals = run_training(job, model, tuning)
    give_back_freed_memory()  # of training: it would stand beside what follows
    model = whole_model(job, model)
    place = result_folder(job.folder, job.method)
    if job.ranks.first:
        shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted behind this point
        job.method.save(place, model, tuning, Base(args.model, job.tokenizer, args.system))
    after = measure(job, model, "after", tuning)
    if not job.ranks.first:
        return
    trained = sum(p.numel() for p in tuning.trainable.values())
    sizes = {"trainable_params": trained, "total_params": total}
    result = result_of(job, sizes, totals, before, after)
    write_json(job.folder / "result.json", result)
    drop_old_checkpoints(job.folder, args.keep, best_step(job.folder))
    print_report(job, result, after, place)


def begin_run(argv: list[str], ranks: Alone) -> None:
    """Read the flags and the data, make the run's folder, and run."""
    with ranks.in_turn():
        args, own, goals = read_flags(argv)
        use_little_memory()
        use_threads(args.threads)
        device = pick_device(args.device)
        dtype = pick_dtype(args.dtype, device)
        args.dtype = dtype_name(dtype)  # a run that goes on elsewhere keeps it
        source = find_model(args.model)
        tokenizer = Tokenizer(source)
        args.system = tokenizer.system_to_train(args.system)
        left_out: Counter[str] = Counter()
        problems, tests, overlap = load_data(args, left_out)
        examples = make_examples(tokenizer, problems, args, goals, left_out)
        objective = objective_of(vars(args))
        steps_of(args, examples, objective.serves(goals))  # an error is better before loading
    if args.show_example:
        print(show(tokenizer, examples[0]))
        return
    if args.compile:
        fast.compile_passes(device, args.plain)
    program = memory_in_use_mib(device)
    model, tuning = open_model(args, own, tokenizer, device, dtype)
    check_start(args, goals, model, tuning, tokenizer, examples, tests)
    # Only now, so that what cannot start leaves no folder behind.
    data = describe_examples(examples) | objective.sources(goals)
    if goes_on_training(vars(args)):
        data["from_run"] = result_hash(Path(args.from_run), source)
    known = [] if objective.read else problems  # others are no problems, but have a key too
    folder, args.model = ranks.agree(lambda: [
        args.resume or str(start_folder(args, data, problems, tests, own, goals)), args.model])
    if find_model(args.model) != source:  # an earlier adapter was merged
        tokenizer = Tokenizer(find_model(args.model))
        model, tuning = open_model(args, own, tokenizer, device, dtype)
    machine = describe_machine(device, dtype) | {"processes": ranks.size}
    job = Job(args, own, objective, goals, Path(folder), device, machine, tokenizer, examples,
              left_out, tests, overlap, sum(map(spells_marker, known)), ranks, program)
    run_in_folder(job, model, tuning, data)


def open_model(args: Flags, own: object, tokenizer: Tokenizer, device: torch.device,
               dtype: torch.dtype) -> tuple[Qwen2, Tuning]:
    """The model in the tokenizer's folder, and what trains of it. Raises UserError for flags of the
    method that this model does not take."""
    method = find_method(args.method)
    # What trains is fp32; frozen weights stand in the dtype they are multiplied in.
    weight_dtype = torch.float32 if method.PEFT_TYPE is None else dtype
    model = load_model(tokenizer.folder, device, dtype, weight_dtype, args.plain)
    return model, start_tuning(method, own, vars(args), model, tokenizer)


def run_in_folder(job: Job, model: Qwen2, tuning: Tuning, data: dict) -> None:
    """Run, with the folder locked and cleaned by the first process."""
    if not job.ranks.first:
        run(job, model, tuning)
        return
    folder = job.folder
    try:
        with locked(folder):
            remove_leftovers(folder)
            remove_leftovers(folder / "checkpoints")
            changes = {name: getattr(job.args, name) for name in STORED_ON_RESUME}
            with going_on(folder, changes, data, job.steps):
                write_json(folder / "env.json", job.machine)
                run(job, model, tuning)
    except KeyboardInterrupt:
        print_way_on(folder)
        raise


def main(argv: list[str]) -> None:
    """`python mathft.py`: one run, by this process or by all that torchrun has started."""
    with joined() as ranks:
        begin_run(argv, ranks)


if __name__ == "__main__":
    sys.exit(run_command(main))
