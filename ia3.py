"""(IA)³: vectors rescale keys, values and the inner activations of the MLP.

Source: Liu et al. 2022 (arXiv 2205.05638), section 3.3. To see it at work:
    python mathft.py --method ia3
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

from pathlib import Path

from torch import Tensor, nn

from adapters import (PLACES, AdaptedLinear, Base, NoFlags as Flags, Tuning, find_targets,
                      load_adapted, merge, no_extra_flop as extra_flop, peft_key, read_adapter,
                      save_adapted, swap)

PEFT_TYPE = "IA3"
DEFAULTS = {"tiny": {"learning_rate": 5e-2}, "real": {"learning_rate": 5e-3}}
PASSES = 2  # over each frozen map: forward, and backward to its input
READ = {"feedforward_modules", "init_ia3_weights"} | PLACES


class IA3Linear(AdaptedLinear):
    """Keys and values: l ⊙ (W x + b), l [out, 1]. The MLP's last map: W (l ⊙ x) + b, l [1, in]."""

    def __init__(self, base: nn.Linear, on_input: bool):
        super().__init__(base)
        self.on_input = on_input
        shape = (1, base.in_features) if on_input else (base.out_features, 1)  # as in PEFT's file
        self.ia3_l = nn.Parameter(base.weight.new_ones(shape).float())

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten().to(x.dtype)
        return super().forward(x * scale) if self.on_input else super().forward(x) * scale

    def merged(self) -> tuple[Tensor, Tensor | None]:
        unscaled = self.bias is None or self.on_input
        return self.weight * self.ia3_l, self.bias if unscaled else self.bias * self.ia3_l[:, 0]


def start(model, tokenizer, flags: Flags, system: str, seed: int) -> Tuning:
    """A vector of ones on each of three maps a layer; the rest is frozen."""
    maps = find_targets(model, ("k_proj", "v_proj", "down_proj"))
    return Tuning(swap(model, maps, lambda name, base: IA3Linear(base, "down_proj" in name)))


def save(folder: Path, model, tuning: Tuning, base: Base) -> None:
    """Write the vectors as peft opens them."""
    save_adapted(folder, model, tuning, base, PEFT_TYPE, feedforward_modules=["down_proj"])


def load(folder: Path, model, flags: Flags) -> Tuning:
    """Put the vectors in `folder` (ours or peft's) on the model, ready to train on."""
    settings, tensors = read_adapter(folder, PEFT_TYPE, READ)
    on_input = {key for key, vector in tensors.items() if vector.shape[:1] == (1,)}  # shapes say it
    return Tuning(load_adapted(model, folder, settings, tensors, lambda name, base: IA3Linear(
        base, on_input=peft_key(f"{name}.ia3_l") in on_input)))
