"""Full tuning: every weight of the model trains, in fp32, and the result is a whole model.

    python mathft.py --method sft

The model's own weights are cast to the dtype of the activations when they multiply
(`model.Linear`). AdamW's two moments are fp32 too: 16 bytes a parameter with the gradient.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

from dataclasses import dataclass
from pathlib import Path

from adapters import (Base, Tuning, merge,  # merge: does nothing here
                      no_extra_flop as extra_flop)
from checkpoint import save_model
from flags import flag

PEFT_TYPE = None  # the result is a whole model, and its weights are loaded in fp32
DEFAULTS = {
    "tiny": {"learning_rate": 1e-3},
    # Gradients and moments lie between what the micro-batches need. Few micro-batches tear the heap
    # less.
    "real": {"learning_rate": 1e-5, "micro_batch_tokens": 4096},
}
PASSES = 3  # over each map: forward, backward to its input, backward to its weight


@dataclass
class Flags:
    """Flags of --method sft."""

    weight_decay: float = flag(0.01, "decay of the model's matrices", least=0, free=True)


def start(model, tokenizer, flags: Flags, system: str, seed: int) -> Tuning:
    """Everything trains."""
    return Tuning(dict(model.named_parameters()), weight_decay=flags.weight_decay)


def save(folder: Path, model, tuning: Tuning, base: Base) -> None:
    """Write the whole model, with the base's tokenizer and the run's system prompt."""
    save_model(model, folder, base.tokenizer.folder, model.compute_dtype, base.system)


def load(folder: Path, model, flags: Flags) -> Tuning:
    """All weights of a model that was read from `folder` already."""
    return start(model, None, flags, "", 0)
