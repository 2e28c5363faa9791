"""Speed and memory of mathft, and with `--peer` of transformers and peft on the same work.

    python -m tools.bench                      # the embedded model and data, every case, ours alone
    python -m tools.bench --shape 0.5B --tokenizer DIR --dataset train.jsonl \\
        --eval-dataset test.jsonl --peer --repeat 3
    python -m tools.bench --model DIR --case lora,decode --peer

A case is a method, or a way to generate. A method does one optimiser step after another through the
training set, in its order; tokens are all of the problems', also those that our side computes once
for several. `decode` continues prompts greedily, all by as many tokens. In `ending` each completion
is as long as its problem's gold solution, so that rows end at different times; `samples` is the
same with several samples a prompt. There tokens are new tokens, and the time includes reading the
prompts.

Each measurement is a process of its own, so that its peak memory is its own (its libraries
included). The sides take turns and are compared turn by turn, so that a slow hour falls on both.
Each process also measures the machine, by one large product before and after. `of limit` is the
speed as a share of what products at that rate allow for the linear maps alone, without attention,
norms, sampling and reading of prompts. The last line printed is JSON.
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

if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch
from torch import nn

import fast
from adapters import Base, Tuning
from checkpoint import find_model, load_model, read_config, save_model, size_of
from data import Example, chat_examples, count_targets, usual_test_set, train_and_test
from flags import flag, parse_flags, run_command
from generate import KVCache, generate
from mathft import DEFAULTS
from methods import METHODS, find_method
from model import Config, Linear, Qwen2
from runtime import (UsageError, UserError, clock, describe_machine, peak_memory_mib,
                     pick_device, pick_dtype, read_json, use_little_memory, write_json)
from tokenizer import Tokenizer
from train import TrainSettings, accumulate_gradient, make_optimizer, update

# Qwen2.5 as published, in the order of Config's fields.
SHAPES = {
    "0.5B": Config(151_936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32_768, tie_word_embeddings=True),
    "1.5B": Config(151_936, 1536, 8960, 28, 12, 2, 128, 1e-6, 1e6, 32_768,
                   tie_word_embeddings=True),
}
TRAINING = tuple(METHODS)
# First test prompts, new tokens of each (None: its gold solution's and one for the end), samples,
# temperature.
GENERATING = {
    "decode": (64, 128, 1, 0.0),
    "ending": (256, None, 1, 0.0),
    "samples": (32, None, 8, 0.7),
}
ROOM_FOR_PREFIX = 64  # positions that examples leave free
CASES = (*TRAINING, *GENERATING)
LOSS_TOLERANCE = {"bf16": 1e-2, "fp32": 1e-3}  # relative
# share of first tokens: bf16 decides some near ties the other way, and random weights have many
LEAST_EQUAL = 0.7


@dataclass
class Flags:
    """The flags of `python -m tools.bench`."""

    model: str | None = flag(None, "tiny or tiny-large (embedded), a folder, or a hub id (default: "
                                   "tiny)")
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
    plain: bool = flag(False, "leave out the tricks of fast.py on our side")
    compile: bool = flag(False, "compile passes over memory on our side, in training")
    seed: int = flag(0, "seed of weights, of sampling, and of an embedded set's problems", least=0)
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, bf16 or fp32")
    debug: bool = flag(False, "show the traceback of an error, also of a measuring process")


@dataclass(frozen=True)
class Task:
    """What one process measures; it receives this as JSON."""

    case: str
    side: str  # ours or peer
    model: str  # folder of the checkpoint
    work: str  # folder with work.json (ids) and CASE/ (the adapter that the peer starts from)
    steps: int
    learning_rate: float
    micro_batch_tokens: int
    flags: Flags


# ----------------------------------------------------------------------------------------- our side


def fresh_tuning(case: str, model: Qwen2, tokenizer: Tokenizer, seed: int) -> Tuning:
    """What trains at the start of `python mathft.py --method CASE`."""
    method = find_method(case)
    return method.start(model, tokenizer, method.Flags(), tokenizer.default_system, seed)


def load_for(case: str, folder: Path, device: torch.device, dtype: torch.dtype,
             plain: bool = False) -> Qwen2:
    """The model, its weights in fp32 if they train."""
    whole = find_method(case).PEFT_TYPE is None
    return load_model(folder, device, dtype, torch.float32 if whole else dtype, plain)


def training_step(task: Task, device: torch.device,
                  dtype: torch.dtype) -> Callable[[list[Example]], float]:
    """A function that does one turn of train.train's loop; it returns the mean loss before it."""
    use_little_memory()
    folder = Path(task.model)
    if task.flags.compile:
        fast.compile_passes(device, task.flags.plain)
    model = load_for(task.case, folder, device, dtype, task.flags.plain)
    tuning = fresh_tuning(task.case, model, Tokenizer(folder), task.flags.seed)
    if task.flags.grad_checkpoint:
        fast.checkpoint_layers(model)
    settings = TrainSettings(task.steps, task.learning_rate)
    optimizer = make_optimizer(tuning.trainable, settings, tuning.rate_factors)

    def step(examples: list[Example]) -> float:
        loss = accumulate_gradient(model, tuning.trainable, examples, task.micro_batch_tokens,
                                   tuning.prefix)
        nn.utils.clip_grad_norm_(list(tuning.trainable.values()), settings.clip)
        mean = loss.item()  # one wait for the device, as in the loop
        update(optimizer, task.learning_rate)
        return mean

    return step


def generator(task: Task, device: torch.device, dtype: torch.dtype) -> Callable:
    """A function (prompts, new tokens of each, samples, temperature) -> (first token of each
    prompt, decoded, start).

    `decoded` tokens came after `start`, the clock at the first decoding step: all of them, since
    the first new token comes from a decoding step too, in which the prompt's last token is read.
    """
    use_little_memory()
    model = load_model(Path(task.model), device, dtype, dtype, task.flags.plain)
    vocab_size = Tokenizer(Path(task.model)).size
    began: list[float] = []

    def note(module: nn.Module, args: tuple) -> None:
        # `attend` of a decoding step is the cache; a prefill has another.
        if not began and isinstance(args[2], KVCache):
            began.append(clock(device))

    model.register_forward_pre_hook(note)

    def run(prompts: list[list[int]], lengths: list[int], samples: int,
            temperature: float) -> tuple:
        began.clear()
        done = list(generate(model, prompts, stop_ids=(), vocab_size=vocab_size,
                             max_new_tokens=lengths, samples=samples, temperature=temperature,
                             seed=task.flags.seed))
        count, wanted = sum(len(completion.ids) for completion in done), samples * sum(lengths)
        if count != wanted:
            raise UserError(f"{count} new tokens came, {wanted} were asked for: "
                            "the model has too few positions")
        first = {done.problem: done.ids[0] for done in done if done.sample == 0}
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
    """FLOP/s of a product [2048, 2048] x [2048, 4096], the median of five: what the machine can do
    at this moment.
    """
    left, right = (torch.randn(2048, columns, device=device, dtype=dtype)
                   for columns in (2048, 4096))
    return 2 * 2048 * 2048 * 4096 / median(timed(lambda _: left @ right, 5, device))


def flop_per_token(case: str, config: Config, head_share: float = 1.0) -> float:
    """Operations a token needs in the linear maps: two an element and pass.

    The passes over a map, and what its adapter adds, are the method's. The head counts for a share
    of the tokens. Generating is one pass.
    """
    with torch.device("meta"):
        model = Qwen2(config)
    layers = model.model.layers.named_modules()
    maps = {name: module for name, module in layers if isinstance(module, Linear)}
    layers = sum(m.weight.numel() for m in maps.values())
    head = config.vocab_size * config.hidden_size
    passes, extra = 1, 0
    if case in METHODS:
        method = find_method(case)
        passes, extra = method.PASSES, method.extra_flop(maps, method.Flags())
    return 2 * passes * (layers + head * head_share) + extra


def measure_process(task: Task) -> dict:
    """The figures of one process."""
    device = pick_device(task.flags.device)
    dtype = pick_dtype(task.flags.dtype, device)
    record = {"case": task.case, "side": task.side}
    side = sys.modules[__name__]
    if task.side == "peer":
        from tools import peer as side  # here, so that our side does not pay for its imports

        record |= side.VERSIONS
    prepare = prepared_training if task.case in METHODS else prepared_generating
    step, tokens, head_share = prepare(task, side, device, dtype, record)
    before = product_rate(device, dtype)
    seconds = timed(step, task.steps, device)
    memory = peak_memory_mib(device)
    rate = (before + product_rate(device, dtype)) / 2
    speed = sum(tokens) / sum(seconds)
    flop = flop_per_token(task.case, read_config(Path(task.model)), head_share)
    return record | {"seconds": seconds, "tokens": tokens, "tokens_per_second": speed,
                     "peak_memory_mib": memory, "flop_per_token": flop,
                     "product_gflops": rate / 1e9, "share_of_limit": speed * flop / rate}


def prepared_training(task: Task, side, device: torch.device, dtype: torch.dtype,
                      record: dict) -> tuple[Callable[[int], None], list[int], float]:
    """A function that does timed step n, the tokens of each, and the share of them that are
    targets.

    One optimiser step comes before, with all that is prepared once: it is timed apart.
    """
    work = read_json(Path(task.work) / "work.json")
    first, *batches = [[Example(**fields) for fields in batch] for batch in work["batches"]]
    batches = batches[: task.steps]
    train_step = side.training_step(task, device, dtype)
    started = clock(device)
    record["first_loss"] = train_step(first)
    record["first_step_seconds"] = clock(device) - started
    tokens = [sum(len(example.ids) for example in batch) for batch in batches]
    record["target_tokens"] = sum(map(count_targets, batches))
    return lambda n: train_step(batches[n]) and None, tokens, record["target_tokens"] / sum(tokens)


def prepared_generating(task: Task, side, device: torch.device, dtype: torch.dtype,
                        record: dict) -> tuple[Callable[[int], None], list[int], float]:
    """The same for generating; a few tokens of a few prompts come before."""
    work = read_json(Path(task.work) / "work.json")
    count, new_tokens, *how = GENERATING[task.case]
    prompts = work["prompts"][:count]
    lengths = [new_tokens or length for length in work["lengths"][:count]]
    run = side.generator(task, device, dtype)
    run(prompts[:8], [4] * len(prompts[:8]), *how)

    def step(number: int) -> None:
        first, decoded, start = run(prompts, lengths, *how)
        if task.case == "decode":
            record.setdefault("decode_seconds", []).append(clock(device) - start)
            record.update(first_tokens=first, decoded_tokens=decoded)

    return step, [how[0] * sum(lengths)] * task.steps, 1.0


def run_process(task: Task) -> dict:
    """Measure in a fresh process: its record, or one with `failed`, the last line that it has left.
    """
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
    """Write the ids that all processes work on: training examples, prompts, lengths of gold
    solutions.
    """
    most = max(prompts for prompts, *_ in GENERATING.values())
    size, steps = flags.batch_size, timed_steps(flags, TRAINING[0]) + 1  # one to warm up
    tested_on = flags.eval_dataset or usual_test_set(flags.dataset)
    problems, tests, repeated = train_and_test(flags.dataset, tested_on, flags.seed)
    problems, tests = [p for p in problems if p.key not in repeated], tests[:most]
    room = config.max_position_embeddings - ROOM_FOR_PREFIX
    examples, _ = chat_examples(tokenizer, problems, None, room)
    if not examples:
        raise UserError(f"{flags.dataset}: no problem has a solution and fits the model's "
                        f"positions")
    batches = [[examples[i % len(examples)] for i in range(size * k, size * (k + 1))]
               for k in range(steps)]
    write_json(folder / "work.json", {
        "batches": [[asdict(example) for example in batch] for batch in batches],
        "prompts": [tokenizer.prompt(problem.question) for problem in tests],
        "lengths": [len(tokenizer.encode(problem.solution)) + 1 for problem in tests]})


def write_random(config: Config, source: Path, folder: Path, seed: int) -> None:
    """Write random bf16 weights (matrices std 0.02, norms 1, biases 0) with the tokenizer of
    `source`.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Qwen2(config, torch.bfloat16).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:
            weight.normal_(std=0.02, generator=rng)
        else:
            weight.fill_(name.endswith("norm.weight"))
    save_model(model, folder, source)


# ------------------------------------------------------------------------------------------- report


def spread(values: list[float]) -> dict:
    """Median and range."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def figures(records: list[dict]) -> dict | None:
    """What the processes of one case and side have found; None if one has failed."""
    if any("failed" in record for record in records):
        return None
    decoding = [r["decoded_tokens"] / s for r in records for s in r.get("decode_seconds", ())]
    rates = {"tokens_per_second": [r["tokens_per_second"] for r in records], "decoding": decoding}
    spreads = {key: spread(values) for key, values in rates.items() if values}
    return spreads | {key: median(record[key] for record in records)
                      for key in ("peak_memory_mib", "share_of_limit")}


def compare_sides(pairs: list[tuple[dict, dict]], dtype: str) -> dict:
    """Ratios ours / peer turn by turn; `differs` lists what the sides should agree in and do not.
    """
    found: dict = {f"{name}_ratio": spread([ours[key] / peer[key] for ours, peer in pairs])
                   for name, key in (("speed", "tokens_per_second"), ("memory", "peak_memory_mib"))}
    found["differs"] = []
    for ours, peer in pairs:
        if "first_loss" in ours:
            losses = ours["first_loss"], peer["first_loss"]
            if not math.isclose(*losses, rel_tol=LOSS_TOLERANCE[dtype]):
                found["differs"].append("loss differs: ours {:.4f}, peer {:.4f}".format(*losses))
        if "first_tokens" in ours:
            both = zip(ours["first_tokens"], peer["first_tokens"], strict=True)
            equal = [a == b for a, b in both]
            found["equal_first_tokens"] = sum(equal) / len(equal)
            if found["equal_first_tokens"] < LEAST_EQUAL:
                found["differs"].append(f"first tokens differ: {sum(equal)} of {len(equal)} "
                                        "are equal")
    return found


def summarise_cases(records: list[dict], dtype: str) -> dict:
    """By case: the figures of each side and how the sides compare."""
    summary: dict = {}
    for case in dict.fromkeys(record["case"] for record in records):
        sides = {side: [r for r in records if (r["case"], r["side"]) == (case, side)]
                 for side in ("ours", "peer")}
        pairs = [pair for pair in zip(*sides.values()) if "failed" not in pair[0] | pair[1]]
        summary[case] = {side: figures(done) for side, done in sides.items() if done}
        summary[case] |= compare_sides(pairs, dtype) if pairs else {}
    return summary


def case_lines(summary: dict) -> list[str]:
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
            equal = found.get("equal_first_tokens")
            same = "" if equal is None else f", first tokens {equal:.0%} equal"
            ratios = (f"speed {written(found['speed_ratio'], 2)}, "
                      f"memory {written(found['memory_ratio'], 2)}")
            lines += [f"{'':9s}{line}" for line in (f"ours / peer: "
                                                    f"{ratios}{same}", *found["differs"])]
    return lines


def written(values: dict, digits: int) -> str:
    """A median and its range as text."""
    return "{median:.{digits}f} ({lowest:.{digits}f} to {highest:.{digits}f})".format(
        **values, digits=digits)


# --------------------------------------------------------------------------------------------- main


def checked_flags(argv: list[str]) -> Flags:
    """The flags. Raises UsageError if they contradict, UserError if the peer is not installed."""
    flags = parse_flags(Flags, argv, __doc__)
    unknown = sorted({*flags.case.split(",")} - {*CASES})
    if unknown:
        raise UsageError(f"--case {','.join(unknown)}: unknown; known are {', '.join(CASES)}")
    if flags.shape and flags.model:
        raise UsageError("--shape and --model exclude each other: a shape has random weights")
    if flags.tokenizer and not flags.shape:
        raise UsageError("--tokenizer is for --shape; a model has its own")
    if flags.peer and not peer_is_installed():
        raise UserError("--peer needs transformers and peft: pip install -r requirements-dev.txt")
    return flags


def peer_is_installed() -> bool:
    """Whether the packages of tools.peer are there; none of them is imported."""
    return {"transformers", "peft"} <= {module.name for module in pkgutil.iter_modules()}


def size_measured(flags: Flags) -> str:
    """tiny or real, as checkpoint.size_of says."""
    return "real" if flags.shape else size_of(flags.model or "tiny")


def timed_steps(flags: Flags, case: str) -> int:
    """Timed optimiser steps or passes of each process."""
    steps = {"tiny": 10, "real": 3}[size_measured(flags)]
    return flags.steps or (1 if case in GENERATING else steps)


def tasks_of(flags: Flags, folder: Path) -> list[Task]:
    """Everything to be measured, in turn, with the files in `folder` that it needs."""
    cases = dict.fromkeys(flags.case.split(","))
    source = find_model(flags.tokenizer or flags.model or "tiny")
    config = SHAPES[flags.shape] if flags.shape else read_config(source)
    write_work(flags, Tokenizer(source), config, folder)
    if flags.shape:
        write_random(config, source, folder / "model", flags.seed)
        source = folder / "model"
    size = size_measured(flags)
    tasks = []
    for case in cases:
        usual = DEFAULTS[size] | (METHODS[case].DEFAULTS[size] if case in METHODS else {})
        if flags.peer and case in METHODS:
            write_start(case, source, folder, flags)
        most = flags.micro_batch_tokens or usual["micro_batch_tokens"]
        steps, rate = timed_steps(flags, case), usual.get("learning_rate", 0.0)
        sides = ("ours", "peer") if flags.peer else ("ours",)
        tasks += [Task(case, side, str(source), str(folder), steps, rate, most, flags)
                  for side in sides] * flags.repeat
    return tasks


def write_start(case: str, source: Path, folder: Path, flags: Flags) -> None:
    """Write the adapter that both sides start from to `folder`/CASE; full tuning has none."""
    method, cpu = find_method(case), torch.device("cpu")
    if method.PEFT_TYPE is not None:
        model = load_for(case, source, cpu, pick_dtype(flags.dtype, cpu))
        tokenizer = Tokenizer(source)
        tuning = fresh_tuning(case, model, tokenizer, flags.seed)
        base = Base(str(source), tokenizer, tokenizer.default_system)
        method.save(folder / case, model, tuning, base)


def main(argv: list[str]) -> None:
    """Measure and report; with `--worker` be one of the measuring processes."""
    if argv[:1] == ["--worker"]:
        given = json.loads(argv[1])
        print(json.dumps(measure_process(Task(**given | {"flags": Flags(**given["flags"])}))))
        return
    flags = checked_flags(argv)
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
    summary = summarise_cases(records, machine["dtype"])
    print(*case_lines(summary), sep="\n")
    print(json.dumps({"machine": machine, "settings": asdict(flags), "processes": records,
                      "cases": summary}))
    wrong = [f"{r['case']} {r['side']} failed: {r['failed']}" for r in records if "failed" in r]
    wrong += [f"{case}: {line}" for case, about in summary.items()
              for line in about.get("differs", ())]
    if wrong:
        raise UserError("; ".join(wrong))


if __name__ == "__main__":
    sys.exit(run_command(main))
