"""Speed and memory of mathft, and with `--peer` of transformers and peft on the same work in the same run.

    python -m tools.bench                               # the embedded model and data, every case, ours alone; under a minute
    python -m tools.bench --shape 0.5B --tokenizer DIR --dataset train.jsonl --eval-dataset test.jsonl --peer --repeat 3
    python -m tools.bench --model DIR --case lora,decode --peer

`sft`, `lora` and `prefix` do one optimiser step after another through the training set, in its order; tokens are all of
the problems', also those that our side computes once for several.
`decode` continues prompts greedily, all by as many tokens. In `ending` each completion is as long as its problem's gold
solution, so that rows end at different times; `samples` is the same with several samples a prompt. There tokens are new
tokens, and the time includes the reading of the prompts.

Each measurement is a process of its own, so that its peak memory is its own (its libraries included). The sides take
turns and are compared turn by turn, so that a slow hour falls on both. Each process also measures the machine, by one
large product before and after: `of limit` is the speed as a share of what products at that rate would allow for the
linear maps alone, without attention, norms, sampling and the reading of prompts. The last line printed is JSON.
"""

import json
import math
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

import mathft
from checkpoint import find_model, load_model, read_config, save_model
from data import Example, chat_examples
from flags import flag, parse_flags, run_command
from generate import KVCache, generate
from model import Config, Linear, Qwen2
from prefix import save_prefix
from runtime import (UsageError, UserError, clock, describe_machine, keep_freed_memory,
                     peak_memory_mib, pick_device, pick_dtype, read_json, write_json)
from sources import test_set_of
from tokenizer import Tokenizer
from train import TrainSettings, accumulate_gradient, count_targets, make_optimizer

# Qwen2.5 as published, in the order of Config's fields.
SHAPES = {
    "0.5B": Config(151_936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32_768, tie_word_embeddings=True),
    "1.5B": Config(151_936, 1536, 8960, 28, 12, 2, 128, 1e-6, 1e6, 32_768,
                   tie_word_embeddings=True),
}
TRAINING = mathft.METHODS
# First test prompts, new tokens of each (None: its gold solution's and one for the end), samples, temperature.
GENERATING = {
    "decode": (64, 128, 1, 0.0),
    "ending": (256, None, 1, 0.0),
    "samples": (32, None, 8, 0.7),
}
CASES = (*TRAINING, *GENERATING)
LOSS_TOLERANCE = {"bf16": 1e-2, "fp32": 1e-3}  # relative
LEAST_EQUAL = 0.7  # share of first tokens: bf16 decides some near ties the other way, and random weights have many


@dataclass
class Flags:
    """The flags of `python -m tools.bench`."""

    model: str | None = flag(None, "tiny (embedded), a folder, or a hub id (default: tiny)")
    shape: str | None = flag(None, "random weights in this shape of Qwen2.5, instead of --model",
                             choices=tuple(SHAPES))
    tokenizer: str | None = flag(
        None, "tokenizer for --shape: folder or hub id of a model (default: the embedded one)")
    dataset: str = flag("mini-gsm",
                        "training problems: mini-gsm, mini-math, or a JSON or JSONL file")
    eval_dataset: str | None = flag(
        None, "problems to generate for (default: the set's own; of a file a tenth)")
    case: str = flag(",".join(CASES), "what to measure, with commas")
    peer: bool = flag(False, "also measure transformers with peft, in turn")
    repeat: int = flag(1, "processes of each case and side", least=1)
    steps: int | None = flag(
        None, "timed steps or passes of each process (default: 3 training steps, tiny 10; 1 pass)",
        least=1)
    batch_size: int = flag(8, "problems an optimiser step sees", least=1)
    micro_batch_tokens: int | None = flag(
        None, "tokens computed at once in training (default: mathft.py's; the peer: all)", least=1)
    grad_checkpoint: bool = flag(
        False, "in training compute each layer twice instead of keeping it, on both sides")
    seed: int = flag(0, "seed of weights, of sampling, and of an embedded set's problems", least=0)
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, bf16 or fp32")
    debug: bool = flag(False, "show the traceback of an error, also of a measuring process")


@dataclass(frozen=True)
class Task:
    """What one process measures; it is given it as JSON."""

    case: str
    side: str  # ours or peer
    model: str  # folder of the checkpoint
    work: str  # folder with work.json (ids) and prefix/ (the prefix that training starts from, for the peer)
    steps: int
    learning_rate: float
    micro_batch_tokens: int
    flags: Flags


# ----------------------------------------------------------------------------------------- our side


def prepare(case: str, folder: Path, device: torch.device, dtype: torch.dtype, seed: int) -> tuple:
    """The model, what trains by name, and the prefix or None, as `python mathft.py --method CASE` has them."""
    tokenizer = Tokenizer(folder)
    model = load_model(folder, device, dtype, torch.float32 if case == "sft" else dtype)
    usual = mathft.Flags(method=case, system=tokenizer.default_system, seed=seed)
    return model, *mathft.prepare(usual, model, tokenizer)


def training_step(task: Task, device: torch.device,
                  dtype: torch.dtype) -> Callable[[list[Example]], float]:
    """A function that does one turn of train.train's loop and returns the mean loss before it, in nats a target."""
    keep_freed_memory()
    model, trainable, prefix = prepare(task.case, Path(task.model), device, dtype, task.flags.seed)
    settings = TrainSettings(task.steps, task.learning_rate,
                             micro_batch_tokens=task.micro_batch_tokens,
                             grad_checkpoint=task.flags.grad_checkpoint)
    optimizer = make_optimizer(trainable, settings)

    def step(examples: list[Example]) -> float:
        loss = accumulate_gradient(model, examples, settings, prefix)
        nn.utils.clip_grad_norm_(list(trainable.values()), settings.clip).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def generator(task: Task, device: torch.device, dtype: torch.dtype) -> Callable:
    """A function (prompts, new tokens of each, samples, temperature) -> (first token of each prompt, decoded, start).

    `decoded` tokens came after `start`, the clock at the first decoding step: all of them, since the first new token
    comes from a decoding step too, in which the prompt's last token is read.
    """
    keep_freed_memory()
    model, vocab_size = load_model(Path(task.model), device, dtype, dtype), Tokenizer(
        Path(task.model)).size
    began: list[float] = []

    def note(module: nn.Module, args: tuple) -> None:
        if not began and isinstance(args[2],
                                    KVCache):  # `attend` of a decoding step; a prefill has another
            began.append(clock(device))

    model.register_forward_pre_hook(note)

    def run(prompts: list[list[int]], lengths: list[int], samples: int,
            temperature: float) -> tuple:
        began.clear()
        done = list(
            generate(model, prompts, stop_ids=(), vocab_size=vocab_size, max_new_tokens=lengths,
                     samples=samples, temperature=temperature, seed=task.flags.seed))
        count, wanted = sum(len(completion.ids) for completion in done), samples * sum(lengths)
        if count != wanted:
            raise UserError(
                f"{count} new tokens came, {wanted} were asked for: the model has too few positions"
            )
        first = {
            completion.problem: completion.ids[0]
            for completion in done if completion.sample == 0
        }
        return [first[i] for i in range(len(prompts))], count, began[0]

    return run


# -------------------------------------------------------------------------------------- one process


def timed(step: Callable[[int], object], count: int, device: torch.device) -> list[float]:
    """The seconds of each call, step(0) to step(count - 1)."""
    seconds = []
    for number in range(count):
        started = clock(device)
        step(number)
        seconds.append(clock(device) - started)
    return seconds


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product [2048, 2048] x [2048, 4096], the median of five: what the machine can do at this moment."""
    left, right = (torch.randn(2048, columns, device=device, dtype=dtype)
                   for columns in (2048, 4096))
    return 2 * 2048 * 2048 * 4096 / median(timed(lambda _: left @ right, 5, device))


def flop_per_token(case: str, config: Config, head_share: float = 1.0) -> float:
    """Operations a token needs in the linear maps: two an element and pass; the head counts for a share of the tokens.

    Passes are forward, backward to the input, and where the map trains backward to its weight.
    """
    with torch.device("meta"):
        maps = [
            module for module in Qwen2(config).model.layers.modules() if isinstance(module, Linear)
        ]
    layers, head = sum(
        module.weight.numel() for module in maps), config.vocab_size * config.hidden_size
    adapter = mathft.Flags().lora_rank * sum(module.in_features + module.out_features
                                             for module in maps)
    passes = {"sft": 3, "lora": 2, "prefix": 2}.get(case, 1)
    return 2 * passes * (layers + head * head_share) + (6 * adapter if case == "lora" else 0)


def measure(task: Task) -> dict:
    """The figures of one process."""
    device = pick_device(task.flags.device)
    dtype = pick_dtype(task.flags.dtype, device)
    make_step, make_generator, record = training_step, generator, {
        "case": task.case, "side": task.side
    }
    if task.side == "peer":
        from tools import peer  # here, so that our side does not pay for its imports

        make_step, make_generator = peer.training_step, peer.generator
        record |= peer.VERSIONS
    work, head_share = read_json(Path(task.work) / "work.json"), 1.0
    # Each side works before it is timed: one optimiser step, or a few tokens of a few prompts.
    if task.case in TRAINING:
        batches = [[Example(**fields) for fields in batch] for batch in work["batches"]]
        train_step = make_step(task, device, dtype)
        record["first_loss"] = train_step(batches[0])
        batches = batches[1 : task.steps + 1]
        tokens = [sum(len(example.ids) for example in batch) for batch in batches]
        record["target_tokens"] = sum(map(count_targets, batches))
        head_share = record["target_tokens"] / sum(tokens)

        def step(number: int) -> None:
            train_step(batches[number])
    else:
        count, new_tokens, *how = GENERATING[task.case]
        prompts = work["prompts"][:count]
        lengths = [new_tokens or length for length in work["lengths"][:count]]
        tokens, run = [how[0] * sum(lengths)] * task.steps, make_generator(task, device, dtype)
        run(prompts[:8], [4] * len(prompts[:8]), *how)

        def step(number: int) -> None:
            first, decoded, start = run(prompts, lengths, *how)
            if task.case == "decode":
                record.setdefault("decode_seconds", []).append(clock(device) - start)
                record.update(first_tokens=first, decoded_tokens=decoded)

    before = product_rate(device, dtype)
    seconds = timed(step, task.steps, device)
    memory = peak_memory_mib(device)
    rate = (before + product_rate(device, dtype)) / 2
    speed, flop = sum(tokens) / sum(seconds), flop_per_token(task.case, read_config(Path(
        task.model)), head_share)
    return record | {
        "seconds": seconds, "tokens": tokens, "tokens_per_second": speed, "peak_memory_mib": memory,
        "flop_per_token": flop, "product_gflops": rate / 1e9, "share_of_limit": speed * flop / rate
    }


def run_process(task: Task) -> dict:
    """Measure in a fresh process: its record, or one with `failed`, the last line that it has left."""
    words = [sys.executable, "-m", "tools.bench", "--worker", json.dumps(asdict(task))]
    words += ["--debug"] * task.flags.debug
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = process.communicate()
    finally:  # Ctrl-C ends the child too
        process.kill()
        process.wait()
    if process.returncode == 0:
        return json.loads(out.splitlines()[-1])
    if task.flags.debug:
        sys.stderr.write(error)
    lines = error.strip().splitlines() or [f"ended by signal {-process.returncode}; out of memory?"]
    return {"case": task.case, "side": task.side, "failed": lines[-1].removeprefix("error: ")}


# --------------------------------------------------------------------------------------------- work


def write_work(flags: Flags, tokenizer: Tokenizer, config: Config, folder: Path) -> None:
    """Write the ids that all processes work on: training examples, prompts, and the lengths of the gold solutions."""
    most = max(prompts for prompts, *_ in GENERATING.values())
    size, steps = flags.batch_size, steps_of(flags) + 1  # the first is for warming up
    asked = mathft.Flags(dataset=flags.dataset, eval_dataset=flags.eval_dataset
                         or test_set_of(flags.dataset), seed=flags.seed, eval_limit=most)
    train_problems, test_problems, _ = mathft.load_data(asked)
    examples, _ = chat_examples(tokenizer, train_problems, None,
                                config.max_position_embeddings - asked.prefix_length)
    if not examples:
        raise UserError(
            f"{flags.dataset}: no problem has a solution and fits the model's positions")
    batches = [
        [examples[i % len(examples)] for i in range(size * k, size * (k + 1))] for k in range(steps)
    ]
    write_json(folder / "work.json", {
        "batches": [[asdict(example) for example in batch] for batch in batches],
        "prompts": [tokenizer.prompt(problem.question) for problem in test_problems],
        "lengths": [len(tokenizer.encode(problem.solution)) + 1 for problem in test_problems]})


def write_random(config: Config, source: Path, folder: Path, seed: int) -> None:
    """Write random bf16 weights (matrices std 0.02, norms 1, biases 0) with the tokenizer of `source`."""
    rng = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Qwen2(config, torch.bfloat16).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for name, weight in model.state_dict().items():
        weight.normal_(std=0.02, generator=rng) if weight.ndim == 2 else weight.fill_(
            name.endswith("norm.weight"))
    save_model(model, folder, source)


# ------------------------------------------------------------------------------------------- report


def spread(values: list[float]) -> dict:
    """Median and range."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def figures(records: list[dict]) -> dict | None:
    """What the processes of one case and side have found; None where one has failed."""
    if any("failed" in record for record in records):
        return None
    rates = {
        "tokens_per_second": [r["tokens_per_second"] for r in records],
        "decoding": [r["decoded_tokens"] / s for r in records for s in r.get("decode_seconds", ())]
    }
    return {key: spread(values)
            for key, values in rates.items() if values} | {
                key: median(record[key] for record in records)
                for key in ("peak_memory_mib", "share_of_limit")
            }


def compare(pairs: list[tuple[dict, dict]], dtype: str) -> dict:
    """Ratios ours / peer turn by turn, and in `differs` what the sides ought to agree in and do not."""
    found: dict = {f"{name}_ratio": spread([ours[key] / peer[key] for ours, peer in pairs])
                   for name, key in (("speed", "tokens_per_second"), ("memory", "peak_memory_mib"))}
    found["differs"] = []
    for ours, peer in pairs:
        if "first_loss" in ours:
            losses = ours["first_loss"], peer["first_loss"]
            if not math.isclose(*losses, rel_tol=LOSS_TOLERANCE[dtype]):
                found["differs"].append("loss differs: ours {:.4f}, peer {:.4f}".format(*losses))
        if "first_tokens" in ours:
            equal = [
                a == b for a, b in zip(ours["first_tokens"], peer["first_tokens"], strict=True)
            ]
            found["equal_first_tokens"] = sum(equal) / len(equal)
            if found["equal_first_tokens"] < LEAST_EQUAL:
                found["differs"].append(
                    f"first tokens differ: {sum(equal)} of {len(equal)} are equal")
    return found


def summarise(records: list[dict], dtype: str) -> dict:
    """By case: the figures of each side and how the sides compare."""
    summary: dict = {}
    for case in dict.fromkeys(record["case"] for record in records):
        sides = {
            side: [r for r in records if (r["case"], r["side"]) == (case, side)]
            for side in ("ours", "peer")
        }
        pairs = [pair for pair in zip(*sides.values()) if "failed" not in pair[0] | pair[1]]
        summary[case] = {side: figures(done) for side, done in sides.items() if done}
        summary[case] |= compare(pairs, dtype) if pairs else {}
    return summary


def table(summary: dict) -> list[str]:
    """A line for each case and side, and behind both how they compare."""
    lines = [f"{'case':9s}{'side':6s}{'tokens/s (range)':>32s}{'peak MiB':>10s}{'of limit':>10s}"]
    for case, found in summary.items():
        for side in [side for side in ("ours", "peer") if side in found]:
            if (about := found[side]) is None:
                lines.append(f"{case:9s}{side:6s}{'failed':>32s}")
                continue
            lines.append(f"{case:9s}{side:6s}{written(about['tokens_per_second'], 0):>32s}"
                         f"{about['peak_memory_mib']:10.0f}{about['share_of_limit']:10.1%}")
            if "decoding" in about:
                lines.append(f"{written(about['decoding'], 0):>47s}  while decoding")
        if "speed_ratio" in found:
            same = f", first tokens {found['equal_first_tokens']:.0%} equal" if "equal_first_tokens" in found else ""
            ratios = f"speed {written(found['speed_ratio'], 2)}, memory {written(found['memory_ratio'], 2)}"
            lines += [
                f"{'':9s}ours / peer: {ratios}{same}",
                *(f"{'':9s}{line}" for line in found["differs"])
            ]
    return lines


def written(values: dict, digits: int) -> str:
    """A median and its range as text."""
    return "{median:.{digits}f} ({lowest:.{digits}f} to {highest:.{digits}f})".format(
        **values, digits=digits)


# --------------------------------------------------------------------------------------------- main


def read_flags(argv: list[str]) -> Flags:
    """The flags. Raises UsageError where they contradict, UserError where the peer is wanted and not installed."""
    flags = parse_flags(Flags, argv, __doc__)
    unknown = sorted({*flags.case.split(",")} - {*CASES})
    if unknown:
        raise UsageError(f"--case {','.join(unknown)}: unknown; known are {', '.join(CASES)}")
    if flags.shape and flags.model:
        raise UsageError("--shape and --model exclude each other: a shape has random weights")
    if flags.tokenizer and not flags.shape:
        raise UsageError("--tokenizer is for --shape; a model has its own")
    if flags.peer and not {"transformers", "peft"
                           } <= {module.name
                                 for module in pkgutil.iter_modules()}:
        raise UserError("--peer needs transformers and peft: pip install -r requirements-dev.txt")
    return flags


def is_tiny(flags: Flags) -> bool:
    """Whether the embedded model is measured."""
    return not flags.shape and flags.model in (None, "tiny")


def steps_of(flags: Flags) -> int:
    """Timed optimiser steps of each process."""
    return flags.steps or (10 if is_tiny(flags) else 3)


def tasks_of(flags: Flags, folder: Path) -> list[Task]:
    """Everything to be measured, in turn, with the files in `folder` that it needs."""
    cases = dict.fromkeys(flags.case.split(","))
    source = find_model(flags.tokenizer or flags.model or "tiny")
    config = SHAPES[flags.shape] if flags.shape else read_config(source)
    write_work(flags, Tokenizer(source), config, folder)
    if flags.shape:
        write_random(config, source, folder / "model", flags.seed)
        source = folder / "model"
    if flags.peer and "prefix" in cases:
        cpu = torch.device("cpu")
        *_, prefix = prepare("prefix", source, cpu, pick_dtype(flags.dtype, cpu), flags.seed)
        save_prefix(folder / "prefix", prefix(), str(source))
    size = "tiny" if is_tiny(flags) else "real"
    tasks = []
    for case in cases:
        usual = mathft.DEFAULTS[size][case if case in TRAINING else "lora"]
        most = flags.micro_batch_tokens or usual["micro_batch_tokens"]
        steps = steps_of(flags) if case in TRAINING else flags.steps or 1
        sides = ("ours", "peer") if flags.peer else ("ours",)
        tasks += [
            Task(case, side, str(source), str(folder), steps, usual["learning_rate"], most, flags)
            for side in sides
        ] * flags.repeat
    return tasks


def main(argv: list[str]) -> None:
    """Measure and report; with `--worker` be one of the measuring processes."""
    if argv[:1] == ["--worker"]:
        given = json.loads(argv[1])
        print(json.dumps(measure(Task(**given | {"flags": Flags(**given["flags"])}))))
        return
    flags = read_flags(argv)
    device = pick_device(flags.device)
    machine = describe_machine(device, pick_dtype(flags.dtype, device))
    print("machine  {machine}, {device}, {dtype}, {threads} threads".format(**machine), flush=True)
    records = []
    with tempfile.TemporaryDirectory(prefix="mathft-bench-") as folder:
        tasks = tasks_of(flags, Path(folder))
        for number, task in enumerate(tasks, 1):
            records.append(run_process(task))
            said = records[-1].get("failed") or f"{records[-1]['tokens_per_second']:.0f} tokens/s"
            print(f"{number}/{len(tasks)} {task.case} {task.side}: {said}", file=sys.stderr)
    summary = summarise(records, machine["dtype"])
    print(*table(summary), sep="\n")
    print(
        json.dumps(
            {"machine": machine, "settings": asdict(flags), "processes": records,
             "cases": summary}))
    wrong = [f"{r['case']} {r['side']} failed: {r['failed']}" for r in records if "failed" in r]
    wrong += [
        f"{case}: {line}" for case, found in summary.items() for line in found.get("differs", ())
    ]
    if wrong:
        raise UserError("; ".join(wrong))


if __name__ == "__main__":
    sys.exit(run_command(main))
