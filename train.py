"""The loss and the one loop that trains everything: a method's parameters on an objective's
examples.

    python mathft.py --method lora              # the loop at work, with a line for every tenth step
    python -m pytest tests/test_train.py -v     # what it promises, one by one

1. `batch_at(step)` gives the examples of a step, a function of the step alone.
2. The examples are cut into micro-batches, each a packed row. `loss(model, examples, prefix)` gives
   the sum over a micro-batch's targets, and their count; the gradients of the sums are added up.
3. The gradient is divided by the count of the whole step, clipped, and AdamW takes its step.

However the step's examples are cut into micro-batches, the gradient is the same. (A mean of
micro-batch means would give the tokens of a short answer more weight.) For the same reason several
processes may share the examples of a step: their sums and counts are added up (parallel.py).

Sources: AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); cosine schedule with warm-up,
Loshchilov & Hutter 2017 (arXiv 1608.03983).
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adapters import NoFlags, Tuning
from attention import PackedAttention
from checkpoint import drop_old_checkpoints, load_state, save_state, step_of
from data import (Example, PackedBatch, batch_indices, chat_examples, count_targets,
                  document_examples, pack, split_by_tokens)
from fast import LEAST_ROWS, LOGITS_AT_ONCE
from model import Qwen2
from runtime import ALONE, Alone, UserError, peak_memory_mib, read_log

# A shorter memory of squared gradients than 0.999: runs of a hundred steps never fill the longer
# one.
BETAS = (0.9, 0.95)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, as torch names it

SAMPLE = 256  # tokens of a forward pass, made to see what it keeps
WIDE = 4  # tensors [T, I] that the backward pass of SwiGLU holds at a time
# On a CPU: what activations take of the heap, for each MiB of them (measured). True: if layers are
# computed again, or gathered, for then most of what comes and goes leaves holes.
HOLES = {False: 1.2, True: 2.5}
ROOM = 1.25  # how much longer than the mean a step may be
MIB = 2**20

# loss(model, examples of a micro-batch, prefix [L, 2, P, K, h] or None) -> (sum over targets,
# count)
Loss = Callable[[Qwen2, list[Example], Tensor | None], tuple[Tensor, int]]


@dataclass(frozen=True)
class TrainSettings:
    """What the loop needs to know besides the model and the data."""

    steps: int
    learning_rate: float
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0  # of matrices
    clip: float = 1.0  # largest norm of the gradient
    micro_batch_tokens: int = 4096
    log_every: int = 10  # steps
    save_every: int = 0  # steps; 0: none by steps
    save_minutes: float = 0.0  # 0: none by the clock
    eval_every: int = 0  # steps; 0: no loss on held-out examples
    keep: int = 1  # checkpoints, besides that of the lowest held-out loss


@dataclass
class TrainTotals:
    """What a run has done so far; saved with each checkpoint."""

    steps: int = 0
    seconds: float = 0.0  # in the loop alone, without saving and logging
    tokens: int = 0
    target_tokens: int = 0
    interrupted: bool = False

    def add(self, examples: list[Example], seconds: float) -> None:
        """Count one more step."""
        self.steps += 1
        self.seconds += seconds
        self.tokens += sum(len(example.ids) for example in examples)
        self.target_tokens += count_targets(examples)


# --------------------------------------------------------------------------------------------- loss


def summed_loss(model: Qwen2, examples: list[Example],
                prefix: Tensor | None = None) -> tuple[Tensor, int]:
    """The loss of supervised tuning and of continued pre-training, for a micro-batch in one row.

    Sum of the cross-entropy in nats over all targets, each times its weight; and how many they are.
    """
    batch, hidden = predict(model, examples, prefix)
    return model.summed_loss(hidden, batch.targets, batch.weights), len(batch.targets)


def log_probs_of_targets(model: Qwen2, examples: list[Example],
                         prefix: Tensor | None = None) -> Tensor:
    """Log-probabilities [N] of all targets of a micro-batch, in the order of its examples."""
    batch, hidden = predict(model, examples, prefix)
    return model.log_probs(hidden, batch.targets)


def predict(model: Qwen2, examples: list[Example],
            prefix: Tensor | None = None) -> tuple[PackedBatch, Tensor]:
    """A micro-batch in one row, and the hidden states [N or more, D] that predict its N targets."""
    device = model.head_weight.device
    batch = pack(examples, device)
    attention = PackedAttention(batch.lengths, prefix, device, batch.shared)
    return batch, model(batch.ids, attention.positions, attention, batch.predictors)


def accumulate_gradient(model: Qwen2, trainable: dict[str, nn.Parameter], examples: list[Example],
                        micro_batch_tokens: int, prefix: Callable[[], Tensor] | None = None,
                        loss: Loss = summed_loss, ranks: Alone = ALONE,
                        idle: Sequence[Example] = ()) -> Tensor:
    """Give what trains the gradient of the mean loss a target; returns this loss [].

    The mean is over the examples of all processes; `examples` are those of this one. The loss
    stays on its device: who reads it waits until the device has computed all that is above.
    idle: what this process computes in vain, if others have more micro-batches and gather layers.
    """
    total, count = torch.zeros((), dtype=torch.float64, device=model.head_weight.device), 0
    parts = list(split_by_tokens(examples, micro_batch_tokens))
    for number in range(ranks.passes(len(parts))):
        if number < len(parts):
            part_sum, part_count = loss(model, parts[number], prefix() if prefix else None)
        else:
            part_sum, part_count = 0 * summed_loss(model, list(idle))[0], 0
        part_sum.backward()
        total, count = total + part_sum.detach(), count + part_count
        del part_sum  # and what it holds of the graph
        for p in trainable.values():  # only now, with the activations gone: narrow gradients widen
            if p.grad is not None and p.grad.dtype != p.dtype:
                p.grad = p.grad.to(p.dtype)
    total, count = ranks.add_gradients(list(trainable.values()), total, count)
    gradients = [p.grad for p in trainable.values() if p.grad is not None]
    if gradients:  # one kernel for all of them
        torch._foreach_div_(gradients, max(1, count))
    return total / max(1, count)


def mean_loss(model: Qwen2, examples: list[Example], prefix: Tensor | None = None,
              micro_batch_tokens: int = 4096) -> float:
    """Mean cross-entropy a target token, in nats, without a gradient."""
    with torch.no_grad():
        parts = [summed_loss(model, part, prefix)
                 for part in split_by_tokens(examples, micro_batch_tokens)]
    return sum(total.item() for total, _ in parts) / sum(count for _, count in parts)


# --------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True)
class Steps:
    """An objective at work: the examples of a step, the loss over them, and figures for the log."""

    batch_at: Callable[[int], list[Example]]
    loss: Loss
    figures: Callable[[], dict] = dict  # of the step that has ended


def in_order(model: Qwen2, tokenizer, tuning, examples: list[Example], args, flags,
             folder: Path, ranks: Alone = ALONE) -> Steps:
    """The examples in a new order each epoch, each with the plain loss."""
    def batch_at(step: int) -> list[Example]:
        indices = batch_indices(step, args.batch_size, len(examples), args.seed)
        return [examples[i] for i in indices]

    return Steps(batch_at, summed_loss)


@dataclass(frozen=True)
class Beside:
    """What an objective needs of memory besides the model that trains, in bytes: another model.

    passing: what is held for a moment while so many tokens are computed at once.
    """

    weights: int = 0
    passing: Callable[[int], float] = lambda tokens: 0.0


@dataclass(frozen=True)
class Objective:
    """What a run learns: the examples that a step sees, and the loss.

    examples(tokenizer, problems, args, flags) gives the examples, and how many were too long.
    begin(model, tokenizer, tuning, examples, args, flags, folder, ranks) gives what the loop needs.
    `args` are the flags of mathft.py, `flags` the objective's own.
    """

    examples: Callable[..., tuple[list[Example], int]]
    begin: Callable[..., Steps] = in_order
    flags: type = NoFlags
    # What a flag that is not given means, for the embedded and for real models.
    defaults: dict[str, dict] = field(default_factory=lambda: {"tiny": {}, "real": {}})
    # The learning rate by default, as a multiple of the method's.
    rate: dict[str, float] = field(default_factory=lambda: {"tiny": 1.0, "real": 1.0})
    # Reads --dataset, if it is no set of problems; then there is no test set either.
    read: Callable[[str], list] | None = None
    lengths: tuple[str, ...] = ("steps", "epochs", "tokens")  # how a run's length may be given
    line: str = ""  # of figures, in the log
    # serves(flags): optimiser steps that a batch of examples serves.
    serves: Callable[..., int] = lambda flags: 1
    # beside(model, flags): memory besides that of the model that trains.
    beside: Callable[..., Beside] = lambda model, flags: Beside()
    # Hashes of what it trains from besides the examples, by the flag that names it.
    sources: Callable[[object], dict[str, str]] = lambda flags: {}


def supervised() -> Objective:
    """Chats, of which the answers are the targets."""
    return Objective(lambda tokenizer, problems, args, flags: chat_examples(
        tokenizer, problems, args.system, args.max_length, args.train_on))


def cpt() -> Objective:
    """Continued pre-training: plain documents, of which every token is a target."""
    return Objective(lambda tokenizer, problems, args, flags: document_examples(
        tokenizer, problems, args.system, args.max_length))


# ---------------------------------------------------------------------------------------- optimiser


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Linear warm-up to the peak, then half a cosine down to zero. `step` counts from 0."""
    warmup = math.ceil(settings.warmup * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(trainable: dict[str, nn.Parameter], settings: TrainSettings,
                   rate_factors: dict[str, float] | None = None) -> torch.optim.AdamW:
    """AdamW in groups of parameters that share weight decay and learning-rate factor.

    Only matrices decay: pulling a norm's scale or a bias to zero has no use.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trainable.items():
        decay = settings.weight_decay if p.ndim >= 2 else 0.0
        groups.setdefault((decay, (rate_factors or {}).get(name, 1.0)), []).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": ps, "weight_decay": decay, "factor": factor}
         for (decay, factor), ps in groups.items()],
        lr=settings.learning_rate, betas=BETAS, fused=True)
    for p in trainable.values():  # allocate the moments now, so that they do not fragment the heap
        p.grad_dtype = None  # a gradient may be narrower than p until accumulate_gradient widens it
        optimizer.state[p] = {"step": torch.zeros((), device=p.device),
                              "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def save_checkpoint(folder: Path, trainable: dict[str, nn.Parameter],
                    optimizer: torch.optim.AdamW, totals: TrainTotals,
                    ranks: Alone = ALONE) -> None:
    """Write all that the rest of the run depends on; the order of the data follows from the step.

    The first process writes. What is divided, the others help to gather, one tensor at a time.
    """
    tensors = {f"param.{name}": p for name, p in trainable.items()}
    for name, p in trainable.items():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[p].items()}
    for name, x in tensors.items() if ranks.divided else ():
        x = ranks.whole(x.detach())
        tensors[name] = x.cpu() if ranks.first else None
    if ranks.first:
        save_state(folder, tensors, vars(totals))


def load_checkpoint(folder: Path, trainable: dict[str, nn.Parameter],
                    optimizer: torch.optim.AdamW, ranks: Alone = ALONE) -> TrainTotals:
    """Put a saved state back in place, or this process's part of it.

    Raises UserError, before anything is changed, if it is damaged or belongs to other parameters.
    """
    tensors, info = load_state(folder)
    totals = _checked_totals(folder, info)
    _check_state(folder, tensors, trainable)
    with torch.no_grad():
        for name, p in trainable.items():
            # Moments live where their parameter does; fused AdamW wants its counter there too.
            values = {key: tensors[f"{key}.{name}"].to(p.device) for key in ("param", *MOMENTS)}
            p.copy_(ranks.part(values.pop("param"), p))
            optimizer.state[p] = {key: ranks.part(value, p) if value.ndim else value
                                  for key, value in values.items()}
    return totals


def _checked_totals(folder: Path, info: dict) -> TrainTotals:
    """The totals in state.json. Raises UserError if it does not hold what `save_checkpoint` writes.
    """
    kinds = {"steps": int, "seconds": float, "tokens": int, "target_tokens": int,
             "interrupted": bool}
    right = info.keys() == kinds.keys() and all(
        type(info[name]) in (kind, int if kind is float else kind) and 0 <= info[name] < 2**63
        for name, kind in kinds.items()) and info["seconds"] > 1e-9  # speeds are divided by them
    if not right or info["steps"] != step_of(folder):
        raise UserError(f"{folder / 'state.json'}: not the state after {step_of(folder)} steps; "
                        f"remove {folder}, and the run goes on from what is before it")
    return TrainTotals(**info)


def _check_state(folder: Path, tensors: dict[str, Tensor],
                 trainable: dict[str, nn.Parameter]) -> None:
    """Raise UserError unless the tensors are, by name, shape and dtype, the state of `trainable`.

    (The kernel of AdamW trusts them: with moments of another shape it reads beyond their end.)
    """
    file = folder / "state.safetensors"
    needed = {f"{key}.{name}": p for name, p in trainable.items() for key in ("param", *MOMENTS)}
    if needed.keys() != tensors.keys():
        odd = min(needed.keys() ^ tensors.keys())
        verb = "also holds" if odd in tensors else "lacks"
        raise UserError(f"{folder}: holds the state of other parameters than this method trains "
                        f"({file.name} {verb} {odd}); give another --resume")
    for name, p in needed.items():
        shape, dtype = ((), torch.float32) if name.startswith("step.") else (p.shape, p.dtype)
        found = tensors[name]
        if found.shape != shape or found.dtype != dtype:
            raise UserError(
                f"{file}: {name} is {list(found.shape)} in {found.dtype}, and what trains is "
                f"{list(shape)} in {dtype}; args.json or the state is not this run's own")


# ------------------------------------------------------------------------------------------- memory
# What training will take, before it takes it. Weights, gradients and moments are counted. What is
# kept for the backward pass is what autograd keeps of a forward pass over a few hundred tokens of
# the run's own examples, times the tokens at once. Added is what the backward pass holds for a
# moment, the widest tensors of a layer and a chunk of logits (or what a teacher's pass holds, if
# that is more); and for the holes of the heap, which grow for some twenty steps, a share that was
# measured (docs/performance.md).


@dataclass(frozen=True)
class Estimate:
    """Parts of the memory at its peak, in MiB."""

    weights: float
    optimiser: float  # gradients and moments
    activations: float  # or gradients, if they come in their place
    program: float
    tokens: int  # at once
    teacher: float = 0.0  # weights of another model

    @property
    def total(self) -> float:
        return self.weights + self.teacher + self.optimiser + self.activations + self.program

    def line(self, free: float | None) -> str:
        """For people; `free` is what the run may take, in MiB, if that is known."""
        room = "" if free is None else f"; {free:,.0f} MiB are free for it"
        teacher = f", the teacher's {self.teacher:,.0f}" if self.teacher else ""
        return (f"about {self.total:,.0f} MiB: weights {self.weights:,.0f}{teacher}, gradients and "
                f"moments {self.optimiser:,.0f}, activations of {self.tokens:,} tokens at once "
                f"{self.activations:,.0f}, program {self.program:,.0f}{room}")

    def mend(self, free: float | None, checkpointed: bool) -> str | None:
        """What lowers it, if it is more than is free."""
        if free is None or self.total <= free:
            return None
        if self.activations < self.optimiser + self.weights + self.teacher:
            return "more than is free: a --method that trains less, --dtype bf16 or a smaller model"
        lower = f"--micro-batch-tokens {max(1, self.tokens // 4)}"
        other = "" if checkpointed else " or --grad-checkpoint"
        return f"more than is free: give {lower}{other}"


def estimate(model: Qwen2, tuning: Tuning, examples: list[Example], batch_size: int, most: int,
             checkpointed: bool, program: float, held: float = 0.0,
             new_tokens: int = 0, beside: Beside = Beside(), parts: int = 1) -> Estimate:
    """The memory of training with at most `most` tokens at once. The layers keep what they need
    (`fast.checkpoint_layers` comes later, if `checkpointed`).

    In MiB: `program` without the model, and what the process has `held` so far, the model and what
    came with it included. (A mapped weight counts there only once it has been read.)
    new_tokens: how many the model may write behind each example, if these are prompts alone.
    beside: what the objective needs besides; its moment is over when the backward pass begins.
    parts: processes that the weights are divided over, of which each gathers layers.
    """
    lengths = [len(example.ids) + new_tokens for example in examples]
    # Tokens of a step. How many completions of each prompt it has is not known here.
    whole_step = 2 * most if new_tokens else round(batch_size * sum(lengths) / len(lengths))
    tokens = max(*lengths, min(most, whole_step)) if lengths[1:] else max(
        lengths[0], min(most, whole_step))
    kept, moment = computed_bytes(model, tuning, examples, tokens, checkpointed)
    holes = HOLES[checkpointed or parts > 1] if model.head_weight.device.type == "cpu" else 1.0
    activations = holes * (kept + max(moment, beside.passing(tokens)))
    standing = {id(p): p for p in (*model.parameters(), *tuning.trainable.values())}
    whole = sum(p.numel() * p.element_size() for p in standing.values()) / MIB
    weights = whole if parts == 1 else whole / parts + gathered(model) / MIB
    trained = sum(p.numel() for p in tuning.trainable.values()) / parts
    optimiser = 12 * trained
    if ROOM * whole_step <= most:  # gradients come as the activations of the only micro-batch go
        activations, optimiser = max(activations, 4 * trained), 8 * trained
    return Estimate(weights=weights, optimiser=optimiser / MIB, activations=activations / MIB,
                    program=max(program, held - whole), tokens=tokens,
                    teacher=beside.weights / MIB)


def computed_bytes(model: Qwen2, tuning: Tuning, examples: list[Example], tokens: int,
                   checkpointed: bool) -> tuple[float, float]:
    """Bytes of so many tokens at once: kept for the backward pass, and held for a moment in it."""
    config, size = model.config, model.compute_dtype.itemsize
    of_token, once = kept_bytes(model, tuning, examples)
    if checkpointed:
        layers = config.num_hidden_layers
        of_token = of_token / layers + layers * config.hidden_size * size
    rows = max(LEAST_ROWS, LOGITS_AT_ONCE // config.vocab_size)
    moment = WIDE * tokens * config.intermediate_size * size
    moment += min(rows, tokens) * config.vocab_size * size
    return tokens * of_token + once, moment


def gathered(model: Qwen2) -> int:
    """Bytes of the divided weights that a process has whole at a time, with their gradients: the
    embedding, the head and two layers, in the dtype of the products.
    """
    layers = model.model.layers
    in_layers = sum(p.numel() for p in layers.parameters())
    others = sum(p.numel() for p in model.parameters()) - in_layers
    return 2 * model.compute_dtype.itemsize * (others + 2 * in_layers // len(layers))


def needed_disk(model: Qwen2, tuning: Tuning, whole: bool, keep: int,
                best: bool) -> tuple[float, float]:
    """MiB that a run's folder takes: at most while it trains, and when it has ended.

    A checkpoint holds each trained number and its two moments in fp32. A new one is written before
    an old one goes. `best`: that of the lowest held-out loss stays too. `whole`: the result is a
    whole model, in the dtype of its products, and not what was trained, in fp32. Completions and
    logs, a few MiB, are left out.
    """
    trained = sum(p.numel() for p in tuning.trainable.values())
    result = 4 * trained
    if whole:
        result = model.compute_dtype.itemsize * sum(p.numel() for p in model.parameters())
    checkpoint = 12 * trained
    return ((max(1, keep) + best + 1) * checkpoint / MIB,
            ((keep + best) * checkpoint + result) / MIB)


def kept_bytes(model: Qwen2, tuning: Tuning, examples: list[Example]) -> tuple[float, int]:
    """Bytes that a forward pass keeps for the backward pass, besides what stands anyway: for each
    token, and once (a gradient of the head, which the loss makes if the head trains).
    """
    sample: list[Example] = []
    for example in examples:
        if sample and sum(len(e.ids) for e in sample) + len(example.ids) > SAMPLE:
            break
        sample.append(Example(example.ids, [True] * len(example.ids)))
    # By address: of several views of a tensor, its memory counts once. It is held here, so that no
    # address serves twice, and not in the graph: a tensor in there would hold the graph in turn.
    kept: dict[int, torch.UntypedStorage] = {}
    once: dict[int, torch.UntypedStorage] = {}

    def note(x: torch.Tensor) -> None:
        memory = x.untyped_storage()
        found = once if x.shape == model.head_weight.shape else kept
        found[memory.data_ptr()] = memory

    prefix = tuning.prefix() if tuning.prefix else None
    with saved_tensors_hooks(note, lambda x: x):
        total, _ = summed_loss(model, sample, prefix)
    for p in (*model.parameters(), *tuning.trainable.values()):
        for found in (kept, once):
            found.pop(p.untyped_storage().data_ptr(), None)
    del total
    of_all, of_once = (sum(memory.nbytes() for memory in found.values()) for found in (kept, once))
    return of_all / sum(len(e.ids) for e in sample), of_once


# --------------------------------------------------------------------------------------------- loop


def train(model: Qwen2, trainable: dict[str, nn.Parameter],
          batch_at: Callable[[int], list[Example]], settings: TrainSettings, folder: Path, *,
          loss: Loss = summed_loss, prefix: Callable[[], Tensor] | None = None,
          rate_factors: dict[str, float] | None = None, resume_from: Path | None = None,
          stop: Callable[[], bool] = lambda: False, ranks: Alone = ALONE,
          held_out_loss: Callable[[], float] = lambda: 0.0,
          on_log: Callable[[dict], None] = lambda record: None,
          on_step: Callable[[int], None] = lambda step: None) -> TrainTotals:
    """Train for `settings.steps` steps, or until `stop()`; writes checkpoints below `folder`.

    `batch_at(step)` gives the examples of a step, a function of the step alone; `prefix()` gives
    [L, 2, P, K, h]. `on_log` receives a record every `log_every` steps, `on_step` the number of
    finished steps after each. Every `eval_every` steps the record holds `held_out_loss()`. A
    checkpoint is saved at the end, by the clock, by steps, and if this loss is the lowest. Raises
    UserError that names the step if loss or gradient is no finite number; the parameters are then
    those of the step before, and a checkpoint of them is there.

    Of several processes (`ranks`) each calls this with the same arguments; all stop after the same
    step, and the first alone writes. It alone measures the held-out loss, unless weights are
    divided.
    """
    device = model.head_weight.device
    optimizer = make_optimizer(trainable, settings, rate_factors)
    totals = (load_checkpoint(resume_from, trainable, optimizer, ranks) if resume_from
              else TrainTotals())
    totals.interrupted, since_log, saved_at = False, TrainTotals(), perf_counter()
    ranks.align(list(trainable.values()))

    def save(step: int, wanted: bool = True) -> None:
        path = folder / "checkpoints" / f"step-{step}"
        wanted = wanted and step > 0 and not path.exists()
        if ranks.divided:  # each has its own clock
            wanted = ranks.agree(lambda: wanted)
        if wanted and (ranks.first or ranks.divided):
            save_checkpoint(path, trainable, optimizer, totals, ranks)
        if wanted and ranks.first:
            drop_old_checkpoints(folder, settings.keep, best_step(folder))

    while totals.steps < settings.steps and not totals.interrupted:
        started = perf_counter()
        rate = learning_rate_at(totals.steps, settings)
        try:
            examples = batch_at(totals.steps)
            own = ranks.share(sorted(examples, key=lambda example: len(example.ids)))
            both = (accumulate_gradient(model, trainable, own, settings.micro_batch_tokens, prefix,
                                        loss, ranks, idle=examples[:1]),
                    nn.utils.clip_grad_norm_(list(trainable.values()), settings.clip))
            # Here, and nowhere else in a step, the program waits for the device.
            mean, grad_norm = torch.stack([ranks.whole(x).double().to(device)
                                           for x in both]).tolist()
            check_finite(mean, grad_norm, totals.steps + 1, examples)
        except UserError as error:  # nothing has been updated: the state is that of the step before
            if isinstance(error, NotFinite) or not ranks.divided:  # all know of it, or none is
                save(totals.steps)  # needed to write it
            raise
        update(optimizer, rate)

        seconds = perf_counter() - started  # the device may still be at work on AdamW's step
        totals.add(examples, seconds)
        since_log.add(examples, seconds)
        totals.interrupted = any(ranks.gather([stop()]))
        ended = totals.interrupted or totals.steps == settings.steps
        measure = ((ranks.first or ranks.divided)
                   and is_due(totals.steps, settings.eval_every))
        if is_due(totals.steps, settings.log_every) or totals.steps == settings.steps or measure:
            record = log_record(totals.steps, mean, rate, grad_norm, since_log, device)
            on_log(record | {"eval_loss": held_out_loss()} if measure else record)
            since_log = TrainTotals()
        on_step(totals.steps)
        late = 0 < settings.save_minutes * 60 <= perf_counter() - saved_at
        best = measure and best_step(folder) == totals.steps
        due = ended or late or best or is_due(totals.steps, settings.save_every)
        save(totals.steps, due)
        saved_at = perf_counter() if due else saved_at
    return totals


def is_due(step: int, every: int) -> bool:
    """Whether something happens after this step that happens every so many steps; 0: never."""
    return every > 0 and step % every == 0


def best_step(folder: Path) -> int | None:
    """The step of the lowest held-out loss in a run's metrics.jsonl; None if it has none."""
    path = folder / "metrics.jsonl"
    records = (record for _, record in read_log(path)) if path.exists() else ()
    losses = [(record["eval_loss"], record["step"]) for record in records
              if type(record.get("eval_loss")) is float]
    return min(losses)[1] if losses else None


class NotFinite(UserError):
    """Loss or gradient is no finite number, for every process alike."""


def check_finite(loss: float, grad_norm: float, step: int, examples: list[Example]) -> None:
    """Raise NotFinite that names the step and its problems if one of the two is not finite."""
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        names = ", ".join(example.name for example in examples)
        kept = f"; the state after step {step - 1} is kept" if step > 1 else ""
        raise NotFinite(f"step {step}: the loss is {loss}, the gradient's norm {grad_norm}{kept}; "
                        f"lower --lr, or look at the problems of this batch: {names}")


def update(optimizer: torch.optim.AdamW, rate: float) -> None:
    """One step of AdamW; each group's learning rate is its factor times `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def log_record(step: int, loss: float, rate: float, grad_norm: float, since: TrainTotals,
               device: torch.device) -> dict:
    """A line of metrics.jsonl; speeds are those `since` the line before."""
    return {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": grad_norm,
            "tokens_per_second": since.tokens / since.seconds,
            "target_tokens_per_second": since.target_tokens / since.seconds,
            "memory_mib": peak_memory_mib(device)}


def log_line(record: dict, steps: int, figures: str) -> str:
    """The same for people. `figures` is the objective's own part of it, a form to be filled in."""
    figures = figures or "{target_tokens_per_second:.0f} target tokens/s"
    held_out = "  held out {eval_loss:.4f}" if "eval_loss" in record else ""
    line = ("step {step:4d}/{steps}  loss {loss:.4f}  lr {learning_rate:.2e}  "
            f"grad norm {{grad_norm:.3f}}  {figures}  {{memory_mib:.0f}} MiB{held_out}")
    return line.format(steps=steps, **record)
