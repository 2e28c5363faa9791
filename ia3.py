"""(IA)³: three learned vectors a layer rescale keys, values and the inner activations of the MLP.

    keys l_k ⊙ (W_k x + b_k)   values l_v ⊙ (W_v x + b_v)   MLP W_down (l_ff ⊙ silu(gate) ⊙ up)

    python mathft.py --method ia3       # README's "Add a method" explains this file

All vectors start at one. Source: Liu et al. 2022 (arXiv 2205.05638), section 3.3.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from adapters import (PLACES, AdaptedLinear, Base, NoFlags as Flags, Tuning, find_targets,
                      load_adapted, merge, no_extra_flop as extra_flop, peft_key, read_adapter,
                      save_adapted, swap, target_maps)

PEFT_TYPE = "IA3"
DEFAULTS = {"tiny": {"learning_rate": 5e-2}, "real": {"learning_rate": 5e-3}}
PASSES = 2  # over each frozen map: forward, and backward to its input
READ = {"feedforward_modules", "init_ia3_weights"} | PLACES
ON_INPUT = ("down_proj",)  # the vector of this map scales what goes in


class IA3Linear(AdaptedLinear):
    """y = l ⊙ (W x + b) with l [out, 1], or on the input y = W (l ⊙ x) + b with l [1, in]."""

    def __init__(self, base: nn.Linear, on_input: bool):
        super().__init__(base)
        self.on_input = on_input
        shape = (1, base.in_features) if on_input else (base.out_features, 1)  # as PEFT stores it
        self.ia3_l = nn.Parameter(torch.ones(shape, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten().to(x.dtype)
        return super().forward(x * scale) if self.on_input else super().forward(x) * scale

    def merged(self) -> tuple[Tensor, Tensor | None]:
        unscaled = self.bias is None or self.on_input
        return self.weight * self.ia3_l, self.bias if unscaled else self.bias * self.ia3_l[:, 0]


def start(model, tokenizer, flags: Flags, system: str, seed: int) -> Tuning:
    """A vector of ones on each of three maps a layer; the rest is frozen."""
    maps = find_targets(model, ("k_proj", "v_proj", *ON_INPUT))
    return Tuning(swap(model, maps, lambda name, base: IA3Linear(base, name.endswith(ON_INPUT))))


def save(folder: Path, model, tuning: Tuning, base: Base) -> None:
    """Write the vectors as peft opens them."""
    settings = {"peft_type": PEFT_TYPE, "feedforward_modules": list(ON_INPUT)}
    save_adapted(folder, model, tuning, base, settings)


def load(folder: Path, model, flags: Flags) -> Tuning:
    """Put the vectors in `folder` (ours or peft's) on the model, ready to train on."""
    settings, tensors = read_adapter(folder, PEFT_TYPE, READ)

    def adapt(name: str, base: nn.Linear) -> IA3Linear:
        vector = tensors.get(peft_key(f"{name}.ia3_l"))  # its shape says where it stands
        return IA3Linear(base, vector is not None and vector.shape == (1, base.in_features))

    maps = target_maps(folder, settings, tensors, model)
    return Tuning(load_adapted(model, folder, tensors, maps, adapt))


if __name__ == "__main__":
    print(__doc__)
