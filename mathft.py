"""Fine-tune Qwen2.5 on mathematics and say what it cost and brought: measure, train, measure again, save, report.

    python mathft.py --method prefix                                  # embedded model and data, minutes on a laptop
    python mathft.py --method lora --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k
    python mathft.py --resume runs/lora-gsm8k-1                       # goes on after Ctrl-C

The three methods differ in `prepare` alone: which parameters train, and whether a prefix stands before every document.
All that a run does is in its folder: settings, machine, loss by step, every completion before and after, the result.
"""

import dataclasses
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import sources
import synthetic
from checkpoint import as_saved, checkpoints, find_model, load_model, save_model, step_of
from data import (Example, Problem, batch_indices, chat_examples, hold_out, known_names,
                  load_problems, show)
from evaluate import evaluate
from flags import Terminated, deferred_interrupts, flag, given_flags, run_command
from lora import TARGETS, add_lora, save_lora
from model import Qwen2
from prefix import Prefix, save_prefix, start_prefix
from recipes.curate import drop_overlap
from runtime import (VERSION, UsageError, UserError, append_metrics, describe_machine,
                     keep_freed_memory, new_directory, peak_memory_mib, pick_device, pick_dtype,
                     read_json, trim_metrics, write_json)
from score import Report, report_lines
from stats import mcnemar, split_gain
from tokenizer import Tokenizer
from train import TrainSettings, TrainTotals, train

# What a flag that is not given means, by method: for the embedded model and for real ones (learning rates: full tuning
# 1e-5 to 2e-5, LoRA ten times that, prefixes from a real text 5e-3; a model of 2.5 M parameters takes far larger ones).
TINY = {
    "steps": 100, "batch_size": 32, "micro_batch_tokens": 4096, "max_length": 512,
    "max_new_tokens": 256
}
REAL = {
    "epochs": 2.0, "batch_size": 16, "micro_batch_tokens": 2048, "max_length": 1024,
    "max_new_tokens": 1024
}
DEFAULTS = {
    "tiny": {
        "sft": {"learning_rate": 1e-3, **TINY},
        "lora": {"learning_rate": 3e-3, **TINY},
        "prefix": {"learning_rate": 2e-2, **TINY},
    },
    "real": {
        # Gradients and moments stand between what each micro-batch needs: in pieces the heap tears, and takes more.
        "sft": {"learning_rate": 1e-5, **REAL, "micro_batch_tokens": 4096},
        "lora": {"learning_rate": 2e-4, **REAL},
        "prefix": {"learning_rate": 5e-3, **REAL},
    },
}
METHODS = tuple(DEFAULTS["real"])
LENGTHS = ("steps", "epochs", "tokens")  # of which one holds
# What may differ when a run goes on; every other setting is the run's own.
FREE_ON_RESUME = (*LENGTHS, "resume", "device", "model", "dataset", "eval_dataset", "debug")
WRONG_SHOWN = 3


@dataclasses.dataclass
class Flags:
    """The flags of `python mathft.py`."""

    method: str | None = flag(
        None, "what trains: all weights, LoRA matrices, or a key/value prefix", choices=METHODS)
    model: str = flag("tiny",
                      "tiny (embedded), a folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct")
    dataset: str = flag("mini-gsm", f"training problems: one of {known_names()}")
    eval_dataset: str | None = flag(
        None, "test problems (default: the set's own; math500 for math and aug-math, gsm8k "
        "for aug-gsm8k; of a file a tenth is held out)")
    train_on_overlap: bool = flag(
        False, "keep training problems that repeat a test problem, wholly or in 13 words")
    limit: int | None = flag(None, "use at most so many training problems", least=1)
    eval_limit: int | None = flag(None, "use at most so many test problems; 0: do not measure",
                                  least=0)
    steps: int | None = flag(None, "optimiser steps (instead of --epochs or --tokens)", least=1)
    epochs: float | None = flag(None, "passes over the training problems (instead of --steps)",
                                least=0.001)
    tokens: int | None = flag(
        None, "about so many training tokens (instead of --steps), to compare sets", least=1)
    batch_size: int | None = flag(None, "problems an optimiser step sees", least=1)
    micro_batch_tokens: int | None = flag(
        None, "tokens computed at once; bounds memory, changes no result", least=1)
    learning_rate: float | None = flag(None, "peak learning rate", alias="--lr", least=0)
    warmup: float = flag(0.03, "share of the steps that raise the learning rate", least=0, most=1)
    weight_decay: float = flag(
        0.01, "of the model's matrices under sft; LoRA and prefixes have none", least=0)
    clip: float = flag(1.0, "largest norm of the gradient", least=1e-6)
    max_length: int | None = flag(None, "longer examples are dropped, in tokens", least=2)
    max_new_tokens: int | None = flag(None, "longest completion when measuring, in tokens", least=1)
    grad_checkpoint: bool = flag(
        False, "compute each layer twice instead of keeping it: less memory, a third slower")
    lora_rank: int = flag(16, "rank r of the LoRA matrices", least=1)
    lora_alpha: float = flag(32.0, "LoRA's scale is alpha / r", least=0)
    lora_targets: str = flag(",".join(TARGETS),
                             "linear maps that LoRA adapts, by name, with commas")
    prefix_length: int = flag(16, "positions P of the prefix", least=1)
    prefix_init: str = flag("text", "start of the prefix: text, text:STRING, zero or random")
    prefix_projection: bool = flag(False, "train an MLP that makes the prefix (Li & Liang 2021)")
    system: str | None = flag(None, "system prompt (default: the one in the checkpoint's template)")
    seed: int = flag(
        0, "seed of the order, of fresh weights, and of the problems of an embedded set", least=0)
    output_dir: str | None = flag(None, "folder of the run (default: runs/METHOD-DATASET-N)")
    resume: str | None = flag(None, "go on with the run in this folder, with its settings")
    keep: int = flag(1, "checkpoints kept", least=1)
    save_every: int = flag(0, "steps between checkpoints; 0: at the end and when interrupted",
                           least=0)
    log_every: int = flag(10, "steps between lines of the log", least=1)
    dtype: str = flag("auto", "precision of products and frozen weights: auto, bf16 or fp32")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    show_example: bool = flag(False, "print one training example with its targets marked, and exit")
    debug: bool = flag(False, "show the traceback of an error")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: the settings and everything that was read before the model."""

    args: Flags
    folder: Path
    device: torch.device
    machine: dict
    source: Path  # the model's folder
    tokenizer: Tokenizer
    examples: list[Example]
    dropped: int  # examples longer than --max-length
    test_problems: list[Problem]
    overlap: int  # training problems that repeat a test problem

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        args, count = self.args, len(self.examples)
        epochs = args.epochs or (args.tokens or 0) / sum(
            len(example.ids) for example in self.examples)
        return args.steps or max(1, round(epochs * count / args.batch_size))

    @property
    def last_checkpoint(self) -> Path | None:
        """Where a run that goes on goes on from."""
        return next(reversed(checkpoints(self.folder)), None)


# ----------------------------------------------------------------------------------------- settings


def defaults_table() -> str:
    """The table above as text, for --help."""
    lines = ["Defaults by model and method:"]
    for model, methods in DEFAULTS.items():
        for method, values in methods.items():
            flags = "  ".join(
                f"--{name.replace('_', '-')} {value}" for name, value in values.items())
            lines.append(f"  {model:5s}{method:7s}{flags}")
    return "\n".join(lines)


def read_flags(argv: list[str]) -> Flags:
    """The flags with defaults filled in, or with --resume those of the run. Raises UsageError where they contradict."""
    words = given_flags(Flags, argv, __doc__ + "\n" + defaults_table())
    given, lengths = Flags(**words), [name for name in LENGTHS if name in words]
    if len(lengths) > 1:
        raise UsageError(f"--{lengths[0]} and --{lengths[1]} exclude each other")
    if given.resume:
        saved = read_json(Path(given.resume) / "args.json")
        try:
            run = Flags(**saved)
        except TypeError:
            raise UserError(
                f"{given.resume}/args.json: not the settings of a run of this version") from None
        for name, value in words.items():
            if name not in FREE_ON_RESUME and value != getattr(run, name):
                spelled = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{spelled} {value}: the run in {given.resume} has {getattr(run, name)}; leave it out"
                )
        if lengths:
            run = dataclasses.replace(run, **dict.fromkeys(LENGTHS))
        return dataclasses.replace(
            run, **{name: value
                    for name, value in words.items() if name in FREE_ON_RESUME})
    if given.method is None:
        raise UsageError(
            f"--method is missing: one of {', '.join(METHODS)}; --help lists the flags")
    chosen = DEFAULTS["tiny" if given.model == "tiny" else "real"][given.method]
    chosen = chosen | {"eval_dataset": sources.test_set_of(given.dataset)}
    fill = {
        name: value
        for name, value in chosen.items()
        if getattr(given, name) is None and not (lengths and name in LENGTHS)
    }
    return dataclasses.replace(given, **fill)


# --------------------------------------------------------------------------------------------- data


def load_data(args: Flags) -> tuple[list[Problem], list[Problem], int]:
    """Training and test problems, and how many training problems repeat a test problem: these are left out, but with
    --train-on-overlap. Of an embedded test set, whose templates repeat, only the same question is a repetition."""
    tested_on = args.eval_dataset or args.dataset
    if args.eval_dataset or args.dataset in synthetic.DATASETS:
        train_problems = load_problems(args.dataset, "train", seed=args.seed)
        test_problems = load_problems(tested_on, "test")
    else:
        train_problems, test_problems = hold_out(load_problems(args.dataset))
    tested = {problem.question for problem in test_problems}
    if tested_on in synthetic.DATASETS:
        clean = [problem for problem in train_problems if problem.question not in tested]
    else:
        clean = drop_overlap(train_problems, {tested_on: tested}).problems
    overlap = len(train_problems) - len(clean)
    if overlap and not clean and not args.train_on_overlap:
        raise UserError(
            f"{args.dataset}: all {overlap} problems repeat test problems; --train-on-overlap keeps them"
        )
    return (train_problems if args.train_on_overlap else
            clean)[:args.limit], test_problems[:args.eval_limit], overlap


# ------------------------------------------------------------------------------------------ methods


def prepare(args: Flags, model: Qwen2,
            tokenizer: Tokenizer) -> tuple[dict[str, nn.Parameter], Callable | None]:
    """What trains, by name, and the prefix as a function of it (None where the method has none)."""
    if args.method == "sft":
        return dict(model.named_parameters()), None
    model.requires_grad_(False)
    if args.method == "lora":
        targets = [name.strip() for name in args.lora_targets.split(",")]
        return add_lora(model, args.lora_rank, args.lora_alpha, targets, seed=args.seed), None
    start = start_prefix(model, tokenizer, args.prefix_init, args.prefix_length, args.system,
                         args.seed)
    prefix = Prefix(start, args.prefix_projection, args.seed)
    return dict(prefix.named_parameters()), prefix


def save_result(job: Job, model: Qwen2, prefix: Callable[[], Tensor] | None) -> Path:
    """Write what was trained where `load_run` finds it, and return that folder."""
    method, base_name = job.args.method, job.args.model
    place = job.folder / ("model" if method == "sft" else "adapter")
    shutil.rmtree(
        place, ignore_errors=True)  # a run that was interrupted behind this point has left the same
    if method == "sft":
        save_model(model, place, job.source, model.compute_dtype)
    elif method == "lora":
        save_lora(place, model, base_name)
    else:
        save_prefix(place, prefix().detach(), base_name)
    return place


# ----------------------------------------------------------------------------------------- training


def run_training(job: Job, model: Qwen2, trainable: dict[str, nn.Parameter],
                 prefix: Callable[[], Tensor] | None) -> TrainTotals:
    """Train as the flags say, with a line for each logged step. Raises KeyboardInterrupt once a checkpoint is written."""
    args, count, steps, last = job.args, len(job.examples), job.steps, job.last_checkpoint
    settings = TrainSettings(
        steps=steps, learning_rate=args.learning_rate, warmup=args.warmup, clip=args.clip,
        weight_decay=args.weight_decay if args.method == "sft" else 0.0,
        micro_batch_tokens=args.micro_batch_tokens, grad_checkpoint=args.grad_checkpoint,
        log_every=args.log_every, save_every=args.save_every, keep=args.keep)
    done = step_of(last) if last else 0
    trim_metrics(job.folder / "metrics.jsonl", done)
    if done < steps:  # then a second measurement that is there belongs to a shorter run
        shutil.rmtree(job.folder / "evals" / "after", ignore_errors=True)

    def batch_at(step: int) -> list[Example]:
        return [job.examples[i] for i in batch_indices(step, args.batch_size, count, args.seed)]

    def log(record: dict) -> None:
        append_metrics(job.folder / "metrics.jsonl", record)
        tqdm.write(
            f"step {record['step']:4d}/{steps}  loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  "
            f"grad norm {record['grad_norm']:.3f}  {record['target_tokens_per_second']:.0f} target tokens/s  "
            f"{record['memory_mib']:.0f} MiB")
        sys.stdout.flush()  # a pipe (`| tee`) would otherwise keep the lines back to the end

    bar = tqdm(total=steps, desc="train", unit="step", leave=False, disable=not sys.stderr.isatty())
    with deferred_interrupts() as received, bar:
        totals = train(model, trainable, batch_at, settings, job.folder, prefix=prefix,
                       resume_from=last, stop=lambda: bool(received), on_log=log,
                       on_step=lambda step: bar.update(step - bar.n))
    if received:
        print(
            f"stopped after step {totals.steps} of {steps}; the checkpoint is in {job.folder / 'checkpoints'}"
        )
        raise Terminated if signal.SIGTERM in received else KeyboardInterrupt
    return totals


# ------------------------------------------------------------------------------------------- report


def result_of(job: Job, sizes: dict[str, int], totals: TrainTotals, before: Report | None,
              after: Report | None) -> dict:
    """The figures of result.json; null where nothing was measured."""

    def pair(name: str) -> dict:
        reports = (("before", before), ("after", after))
        return {f"{name}_{when}": report and report.result[name] for when, report in reports}

    args, measured = job.args, before is not None and after is not None
    return {
        "method": args.method, "model": args.model, "dataset": args.dataset,
        "eval_dataset": args.eval_dataset or args.dataset,
        "n": len(job.test_problems) if measured else None, "train_overlap": job.overlap,
        **pair("accuracy"), **pair("ci95"), **pair("no_answer_rate"),
        **pair("truncated_rate"), **pair("ended_with_answer_rate"), "mcnemar_p": mcnemar(
            before.verdicts, after.verdicts) if measured else None,
        "gain": split_gain(before.result, after.result) if measured else None,
        **sizes, "train_seconds": totals.seconds, "eval_seconds": before.result["eval_seconds"] +
        after.result["eval_seconds"] if measured else None, "steps": totals.steps,
        "train_tokens": totals.tokens, "target_tokens": totals.target_tokens,
        "tokens_per_second": totals.tokens / totals.seconds,
        "target_tokens_per_second": totals.target_tokens / totals.seconds,
        "peak_memory_mib": peak_memory_mib(job.device), "device": job.machine["device"],
        "dtype": job.machine["dtype"], "seed": args.seed, "version": VERSION,
    }


def print_report(job: Job, result: dict, after: Report | None, place: Path) -> None:
    """What a person wants to know at the end, the most important first."""
    if after is not None:
        print("after training", *report_lines(after.result), sep="\n  ")
        gain, points = result["gain"], 100 * (result["accuracy_after"] - result["accuracy_before"])
        print(
            f"gain       {points:+.1f} points: {100 * gain['more_answers']:+.1f} by more answers, "
            f"{100 * gain['more_right_answers']:+.1f} by more right ones; McNemar p = {result['mcnemar_p']:.2g}"
        )
    trained, total = result["trainable_params"], result["total_params"]
    print(f"trained    {trained:,} parameters, {trained / total:.2%} of the model's {total:,}")
    print(
        f"cost       {result['train_seconds']:.1f} s for {result['steps']} steps, "
        f"{result['target_tokens_per_second']:.0f} target tokens/s, peak memory {result['peak_memory_mib']:.0f} MiB"
    )
    wrong = [record for record in after.records if not record["correct"]] if after else []
    for record in wrong[:WRONG_SHOWN]:
        print(f"\nstill wrong: {record['question']}\n  gold {record['gold']}; the model wrote:")
        print(*(f"  | {line}" for line in record["text"].splitlines()), sep="\n")
    print(f"\nfiles      {job.folder} ({place.name}/, result.json, metrics.jsonl, evals/)")
    print(f"next       python evaluate.py --run {job.folder} --samples 8 --temperature 0.7")


# --------------------------------------------------------------------------------------------- main


def run(job: Job, model: Qwen2) -> None:
    """Measure, train, measure again, save, report, in a folder that may hold a part of this already."""
    args = job.args
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"model      {args.model}, {total:,} parameters; method {args.method}")
    dropped = f" ({job.dropped} longer than {args.max_length} tokens dropped)" if job.dropped else ""
    what = "are trained on all the same" if args.train_on_overlap else "are left out"
    overlap = f" ({job.overlap} overlap the test problems and {what})" if job.overlap else ""
    print(f"data       {args.dataset}: {len(job.examples)} training examples{dropped}, "
          f"{len(job.test_problems)} test problems{overlap}", flush=True)

    def measure(label: str, prefix: Tensor | None = None) -> Report | None:
        if args.eval_limit == 0:
            return None
        begun_with = read_json(
            job.folder / "args.json")["model"]  # the model's folder may have moved since
        return evaluate(as_saved(model), job.tokenizer, job.test_problems,
                        job.folder / "evals" / label, dataset=args.eval_dataset or args.dataset,
                        system=args.system, prefix=prefix, max_new_tokens=args.max_new_tokens,
                        seed=args.seed, about={"model": begun_with, "dtype": job.machine["dtype"]})

    before = measure("before")
    if before:
        print("before training", *report_lines(before.result), sep="\n  ", flush=True)
    trainable, prefix = prepare(args, model, job.tokenizer)
    totals = run_training(job, model, trainable, prefix)
    place = save_result(job, model, prefix)
    after = measure("after", prefix().detach() if prefix else None)
    sizes = {"trainable_params": sum(p.numel() for p in trainable.values()), "total_params": total}
    result = result_of(job, sizes, totals, before, after)
    write_json(job.folder / "result.json", result)
    print_report(job, result, after, place)


def main(argv: list[str]) -> None:
    """Read the flags and the data, make the run's folder, and run."""
    args = read_flags(argv)
    keep_freed_memory()
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    source = find_model(args.model)
    tokenizer = Tokenizer(source)
    args.system = tokenizer.default_system if args.system is None else args.system
    train_problems, test_problems, overlap = load_data(args)
    examples, dropped = chat_examples(tokenizer, train_problems, args.system, args.max_length)
    if not examples:
        raise UserError(
            f"{args.dataset}: no problem with a solution fits into --max-length {args.max_length} tokens"
        )
    if args.show_example:
        print(show(tokenizer, examples[0]))
        return
    # What trains is fp32; frozen weights stand in the dtype they are multiplied in.
    model = load_model(source, device, dtype, torch.float32 if args.method == "sft" else dtype)
    if args.resume:
        folder = Path(args.resume)
    else:  # only now, so that a model that cannot be loaded leaves no folder behind
        folder = new_directory(args.output_dir, f"{args.method}-{Path(args.dataset).stem}")
        write_json(folder / "args.json", {**dataclasses.asdict(args), "output_dir": str(folder)})
    machine = describe_machine(device, dtype)
    write_json(folder / "env.json", machine)
    print(
        f"machine    {machine['machine']}, {machine['device']}, {machine['dtype']}, {machine['threads']} threads"
    )
    try:
        run(
            Job(args, folder, device, machine, source, tokenizer, examples, dropped, test_problems,
                overlap), model)
    except KeyboardInterrupt:
        print(f"to go on:  python mathft.py --resume {folder}")
        raise


if __name__ == "__main__":
    sys.exit(run_command(main))
