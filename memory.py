"""What a training will take of the memory, before it takes it.

    python mathft.py --method lora              # the line `memory`, before the first step
    python -m pytest tests/test_memory.py -v    # beside what is kept and what is measured

1. What is exact by counting: the weights as they stand, and for each number that trains a gradient
   and two moments in fp32.
2. What is kept for the backward pass: a forward pass over a few hundred tokens of the run's own
   examples is made, and autograd tells what it keeps. It grows with the tokens at once. (Of
   attention, with their square within a document: the sample's documents are whole.)
3. What the backward pass holds for a moment: the widest tensors of one layer, and a chunk of logits.
4. The program itself, as measured before the model was loaded.

The sum is that of what stands at the worst moment, and leaves out the holes of the heap.
"""

from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from adapters import Tuning
from data import Example
from fast import LEAST_ROWS, LOGITS_AT_ONCE
from model import Qwen2
from train import summed_loss

SAMPLE = 512  # tokens whose forward pass is made
WIDE = 4  # tensors [T, I] that the backward pass of SwiGLU holds at a time
MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """Parts of the memory at its peak, in MiB."""

    weights: float
    optimiser: float  # gradients and moments
    activations: float
    program: float
    tokens: int  # at once

    @property
    def total(self) -> float:
        return self.weights + self.optimiser + self.activations + self.program

    def line(self, free: float | None) -> str:
        """For people; `free` is what the run may take, in MiB, if that is known."""
        room = "" if free is None else f"; {free:,.0f} MiB are free for it"
        return (f"about {self.total:,.0f} MiB: weights {self.weights:,.0f}, gradients and moments "
                f"{self.optimiser:,.0f}, activations of {self.tokens:,} tokens at once "
                f"{self.activations:,.0f}, program {self.program:,.0f}{room}")

    def mend(self, free: float | None, checkpointed: bool) -> str | None:
        """What lowers it, if it is more than is free."""
        if free is None or self.total <= free:
            return None
        if self.activations < self.optimiser + self.weights:
            return "more than is free: a --method that trains less, --dtype bf16 or a smaller model"
        lower = f"--micro-batch-tokens {max(1, self.tokens // 4)}"
        return f"more than is free: give {lower}" + ("" if checkpointed else " or --grad-checkpoint")


def estimate(model: Qwen2, tuning: Tuning, examples: list[Example], batch_size: int, most: int,
             checkpointed: bool, program: float) -> Estimate:
    """The memory of training with at most `most` tokens at once. The layers keep what they need
    (`fast.checkpoint_layers` comes later, if `checkpointed`); `program` in MiB.
    """
    lengths = [len(example.ids) for example in examples]
    whole = round(batch_size * sum(lengths) / len(lengths))  # tokens of a step
    tokens = max(*lengths, min(most, whole)) if lengths[1:] else max(lengths[0], min(most, whole))
    config, size = model.config, model.compute_dtype.itemsize
    kept = tokens * kept_bytes(model, tuning, examples)
    if checkpointed:
        layers = config.num_hidden_layers
        kept = kept / layers + layers * tokens * config.hidden_size * size
    rows = max(LEAST_ROWS, LOGITS_AT_ONCE // config.vocab_size)
    moment = WIDE * tokens * config.intermediate_size * size
    moment += min(rows, tokens) * config.vocab_size * size
    standing = {id(p): p for p in (*model.parameters(), *tuning.trainable.values())}
    return Estimate(
        weights=sum(p.numel() * p.element_size() for p in standing.values()) / MIB,
        optimiser=sum(12 * p.numel() for p in tuning.trainable.values()) / MIB,
        activations=(kept + moment) / MIB, program=program, tokens=tokens)


def kept_bytes(model: Qwen2, tuning: Tuning, examples: list[Example]) -> float:
    """Bytes a token that a forward pass keeps for the backward pass, besides what stands anyway."""
    sample: list[Example] = []
    for example in examples:
        if sample and sum(len(e.ids) for e in sample) + len(example.ids) > SAMPLE:
            break
        sample.append(Example(example.ids, [True] * len(example.ids)))
    kept: dict[int, int] = {}  # by address: of several views of a tensor, its memory counts once

    def note(x: torch.Tensor) -> torch.Tensor:
        memory = x.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes()
        return x

    prefix = tuning.prefix() if tuning.prefix else None
    with saved_tensors_hooks(note, lambda x: x):
        total, _ = summed_loss(model, sample, prefix)
    for p in (*model.parameters(), *tuning.trainable.values()):
        kept.pop(p.untyped_storage().data_ptr(), None)
    del total
    return sum(kept.values()) / sum(len(e.ids) for e in sample)
