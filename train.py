"""The loss and the one loop that trains everything: all weights, LoRA's matrices, a prefix, and the embedded model itself.

    python mathft.py --method lora              # the loop at work, with a line for every tenth step
    python -m pytest tests/test_train.py -v     # what it promises, one by one

What differs between methods is which parameters train and whether a prefix stands before every document; both are arguments.

The loss is a sum over target tokens divided by all target tokens of the optimiser step. However the step's examples are cut
into micro-batches, the gradient is the same. (A mean of micro-batch means would give the tokens of a short answer more weight.)

Sources: AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); cosine schedule with warm-up, Loshchilov & Hutter 2017
(arXiv 1608.03983); chunked cross-entropy with its gradient in the forward pass, after Wijmans et al. 2024 (arXiv 2411.09009).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attention import PackedAttention
from checkpoint import drop_old_checkpoints, load_state, save_state
from data import Example, pack, split_by_tokens
from model import Qwen2
from runtime import UserError, clock, peak_memory_mib, round_up, rows_in_cache

BETAS = (
    0.9, 0.95
)  # a shorter memory of squared gradients than 0.999: runs of a hundred steps never fill the longer one
LOGITS_AT_ONCE = 1 << 25  # elements of logits in one product: 64 MiB in bf16
TOKENS_AT_ONCE = 1 << 14  # rows of the head whose gradient is computed in one product


@dataclass(frozen=True)
class TrainSettings:
    """What the loop needs to know besides the model and the data."""

    steps: int
    learning_rate: float
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of the gradient
    micro_batch_tokens: int = 4096
    grad_checkpoint: bool = False
    log_every: int = 10  # steps
    save_every: int = 0  # steps; 0: only where the run ends or is interrupted
    keep: int = 1  # checkpoints


@dataclass
class TrainTotals:
    """What a run has done so far; saved with each checkpoint."""

    steps: int = 0
    seconds: float = 0.0  # in the loop alone, without saving and logging
    tokens: int = 0
    target_tokens: int = 0
    interrupted: bool = False


# --------------------------------------------------------------------------------------------- loss


class SummedCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden · weightᵀ)[target], the logits never whole in memory.

    For each chunk of rows the forward pass computes the logits, their loss and at once, in the same memory, their
    gradient; backward only scales it. hidden [N or more, D], of which the first N count, weight [V, D], targets [N] ->
    a scalar in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        chunks = math.ceil(len(hidden) / max(256, LOGITS_AT_ONCE // len(weight)))
        rows = round_up(math.ceil(
            len(hidden) / max(1, chunks)))  # alike in all: few rows left over are slow
        buffer = hidden.new_empty(rows, len(weight))
        for start in range(0, len(hidden), max(1, rows)):
            part, wanted = hidden[start : start + rows], targets[start : start + rows]
            logits = torch.mm(part, matrix.T, out=buffer[: len(part)])  # [rows, V]
            total += _loss_then_gradient(logits[: len(wanted)], wanted)
            logits[len(wanted) :] = 0
            if wants_hidden:
                torch.mm(logits, matrix, out=grad_hidden[start : start + rows])
            if wants_weight:
                # In place and some rows at a time: this matrix is the largest there is, and its product as large again.
                for sums, columns in zip(grad_weight.split(TOKENS_AT_ONCE),
                                         logits.split(TOKENS_AT_ONCE, dim=1)):
                    sums.add_(columns.T @ part)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        return *(None if grad is None else grad.mul_(grad_output)
                 for grad in ctx.saved_tensors), None


def _loss_then_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of logits [n, V] and targets [n]; the logits become its gradient, softmax - one-hot."""
    total = torch.zeros((), device=logits.device, dtype=torch.float32)
    rows = rows_in_cache(logits)
    for part, wanted in zip(logits.split(rows), targets[:, None].split(rows)):
        log_probs = part.log_softmax(-1, dtype=torch.float32)
        total -= log_probs.gather(1, wanted).sum()
        part.copy_(log_probs.exp_().scatter_add_(1, wanted,
                                                 -torch.ones_like(wanted, dtype=torch.float32)))
    return total


def summed_loss(model: Qwen2, examples: list[Example], prefix: Tensor | None = None,
                grad_checkpoint: bool = False) -> Tensor:
    """Sum of the cross-entropy, in nats, over all target tokens of the examples, packed into one row."""
    device = model.head_weight.device
    batch = pack(examples, device)
    attention = PackedAttention(batch.lengths, prefix, device, batch.shared)
    hidden = model(batch.ids, attention.positions, attention, batch.predictors,
                   grad_checkpoint)  # [N, D]
    return SummedCrossEntropy.apply(hidden, model.head_weight, batch.targets)


def accumulate_gradient(model: Qwen2, examples: list[Example], settings: TrainSettings,
                        prefix: Callable[[], Tensor] | None = None) -> float:
    """Add the gradient of the mean loss a target to what trains, one micro-batch at a time; returns this loss."""
    targets = count_targets(examples)
    loss = 0.0
    for part in split_by_tokens(examples, settings.micro_batch_tokens):
        part_loss = summed_loss(model, part,
                                prefix() if prefix else None, settings.grad_checkpoint) / targets
        part_loss.backward()
        loss += part_loss.item()
        del part_loss  # and what it holds of the graph
        for p in model.parameters(
        ):  # only now, with the activations gone; further parts are added to it in p's dtype
            if p.grad is not None and p.grad.dtype != p.dtype:
                p.grad = p.grad.to(p.dtype)
    return loss


def mean_loss(model: Qwen2, examples: list[Example], prefix: Tensor | None = None,
              micro_batch_tokens: int = 4096) -> float:
    """Mean cross-entropy a target token, in nats, without a gradient."""
    with torch.no_grad():
        total = sum(
            summed_loss(model, part, prefix).item()
            for part in split_by_tokens(examples, micro_batch_tokens))
    return total / count_targets(examples)


def count_targets(examples: list[Example]) -> int:
    """Target tokens of the examples; a document's first token cannot be one, since nothing stands before it."""
    return sum(sum(example.is_target[1:]) for example in examples)


# ---------------------------------------------------------------------------------------- optimiser


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Linear warm-up to the peak, then half a cosine down to zero. `step` counts from 0."""
    warmup = math.ceil(settings.warmup * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(trainable: dict[str, nn.Parameter],
                   settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: a norm's scale or a bias has no reason to be drawn to zero."""
    matrices = [p for p in trainable.values() if p.ndim >= 2]
    vectors = [p for p in trainable.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)
    for p in trainable.values(
    ):  # now: made in the first step, they would lie among the blocks that steps take and free
        p.grad_dtype = None  # any: model.Product's is as narrow as its input, until accumulate_gradient widens it
        zero = torch.zeros((), device=p.device)
        optimizer.state[p] = {
            "step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)
        }
    return optimizer


def save_checkpoint(folder: Path, trainable: dict[str, nn.Parameter], optimizer: torch.optim.AdamW,
                    totals: TrainTotals) -> None:
    """Everything that the rest of the run depends on, to the last bit: the order of the data follows from the step."""
    tensors = {f"param.{name}": p for name, p in trainable.items()}
    for name, p in trainable.items():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[p].items()}
    save_state(folder, tensors, vars(totals))


def load_checkpoint(folder: Path, trainable: dict[str, nn.Parameter],
                    optimizer: torch.optim.AdamW) -> TrainTotals:
    """Put a saved state back in place. Raises UserError where it belongs to other parameters."""
    tensors, info = load_state(folder)
    if {n.removeprefix("param.") for n in tensors if n.startswith("param.")} != set(trainable):
        raise UserError(
            f"{folder}: holds the state of other parameters than this method trains; give another --resume"
        )
    with torch.no_grad():
        for name, p in trainable.items():
            p.copy_(tensors[f"param.{name}"])
            optimizer.state[p] = {
                key: tensors[f"{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    for p in trainable.values(
    ):  # moments live where their parameter does; fused AdamW wants its counter there too
        optimizer.state[p] = {key: value.to(p.device) for key, value in optimizer.state[p].items()}
    return TrainTotals(**info)


# --------------------------------------------------------------------------------------------- loop


def train(
    model: Qwen2,
    trainable: dict[str, nn.Parameter],
    batch_at: Callable[[int], list[Example]],
    settings: TrainSettings,
    folder: Path,
    *,
    prefix: Callable[[], Tensor] | None = None,
    resume_from: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_log: Callable[[dict], None] = lambda record: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> TrainTotals:
    """Train for `settings.steps` optimiser steps, or until `stop()`; writes checkpoints below `folder`/checkpoints.

    `batch_at(step)` gives the examples of a step, as a function of the step alone. `prefix()` gives [L, 2, P, K, h].
    `on_log` receives a record every `log_every` steps, `on_step` the number of finished steps after each.
    Raises UserError where the loss or the gradient is no finite number, naming the step; the parameters are then those
    of the step before.
    """
    device = model.head_weight.device
    parameters = list(trainable.values())
    optimizer = make_optimizer(trainable, settings)
    totals = load_checkpoint(resume_from, trainable, optimizer) if resume_from else TrainTotals()
    totals.interrupted = False
    since_log = TrainTotals()

    while totals.steps < settings.steps and not totals.interrupted:
        started = clock(device)
        step = totals.steps
        rate = learning_rate_at(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate

        examples = batch_at(step)
        loss = accumulate_gradient(model, examples, settings, prefix)
        grad_norm = nn.utils.clip_grad_norm_(parameters, settings.clip).item()
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            names = ", ".join(example.name for example in examples)
            raise UserError(
                f"step {step + 1}: the loss is {loss}, the gradient's norm {grad_norm}; lower --lr, or look at the "
                f"problems of this batch: {names}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        for count in (totals, since_log):
            count.steps += 1
            count.seconds += clock(device) - started
            count.tokens += sum(len(example.ids) for example in examples)
            count.target_tokens += count_targets(examples)
        totals.interrupted = stop()
        if totals.steps % settings.log_every == 0 or totals.steps == settings.steps:
            on_log({
                "step": totals.steps, "loss": loss, "learning_rate": rate, "grad_norm": grad_norm,
                "tokens_per_second": since_log.tokens / since_log.seconds,
                "target_tokens_per_second": since_log.target_tokens / since_log.seconds,
                "memory_mib": peak_memory_mib(device),
            })
            since_log = TrainTotals()
        on_step(totals.steps)
        due = settings.save_every and totals.steps % settings.save_every == 0
        if due or totals.interrupted or totals.steps == settings.steps:
            save_checkpoint(folder / "checkpoints" / f"step-{totals.steps}", trainable, optimizer,
                            totals)
            drop_old_checkpoints(folder, settings.keep)
    return totals
