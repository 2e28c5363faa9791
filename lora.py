"""LoRA: a frozen linear map learns a low-rank correction, y = x Wᵀ + s (x Aᵀ) Bᵀ.

           ┌────────── W [out, in], frozen ──────────┐
    x [T, in]                                        (+)── y [T, out]
           └── A [r, in] ── [T, r] ── · s ── B [out, r] ┘

    python mathft.py --method lora                              # on the embedded model
    python mathft.py --method lora --lora-variant dora
    python -m pytest tests/test_lora.py -v                      # the algebra, law by law

A starts random and B at zero, so that the first step starts from the untouched model. A and B are
fp32 whatever the base is, and are cast when used. The variants differ in few lines:

    plain    s = α / r          (Hu et al. 2021, arXiv 2106.09685, section 4.1)
    rslora   s = α / √r         (Kalajdzievski 2023, arXiv 2312.03732)
    dora     rows of W + s B A keep their direction, and a trained magnitude m [out] sets their
             length:  W' = m · (W + s B A) / ‖W + s B A‖   (Liu et al. 2024, arXiv 2402.09353)

LoRA+ (Hayou et al. 2024, arXiv 2402.12354) lets B learn faster: its learning rate is `--lora-plus`
times --lr. Differs from the paper of LoRA: all seven linear maps of a layer are adapted, not the
attention's alone, and A is Kaiming-uniform(√5), as in the authors' code. There is no dropout.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import (PLACES, TARGETS, AdaptedLinear, Base, Tuning, adapted_maps, check_settings,
                      find_targets, load_adapted, merge, peft_key, read_adapter, save_adapted, swap)
from flags import flag
from model import Linear

PEFT_TYPE = "LORA"
DEFAULTS = {"tiny": {"learning_rate": 3e-3}, "real": {"learning_rate": 2e-4}}
PASSES = 2  # over each frozen map: forward, and backward to its input
VARIANTS = ("plain", "rslora", "dora")


@dataclass
class Flags:
    """Flags of --method lora."""

    lora_rank: int = flag(16, "rank r of the matrices", least=1, most=2**16)
    lora_alpha: float = flag(32.0, "scale of the correction: alpha / r", least=1e-6, most=1e6)
    lora_targets: str = flag(",".join(TARGETS), "linear maps to adapt, by name, with commas")
    lora_variant: str = flag("plain", "plain, rslora (scale alpha / sqrt(r)) or dora (rows keep a "
                             "trained length)", choices=VARIANTS)
    lora_plus: float = flag(1.0, "learning rate of B, as a multiple of --lr (LoRA+ advises 16)",
                            least=0.001, free=True)


# ------------------------------------------------------------------------------------- the algebra


class LoRALinear(AdaptedLinear):
    """A linear map with a trained correction beside it: `lora_A` [r, in] and `lora_B` [out, r].

    `alpha` is the plain α: the scale is alpha / r always.
    """

    def __init__(self, base: Linear, rank: int, alpha: float, generator: torch.Generator | None):
        super().__init__(base)
        self.alpha, self.scale = alpha, alpha / rank
        # Drawn on the CPU, so that a seed gives the same A on every device.
        start = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(start.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, self.weight, self.bias)  # [T, in] -> [T, out]
        return self.combine(y, F.linear(x, self.lora_A.to(x.dtype)))  # inner: [T, in] -> [T, r]

    def combine(self, y: Tensor, inner: Tensor) -> Tensor:
        """y [T, out] of the base and inner = x Aᵀ [T, r] -> [T, out].

        Adds into `y`, in one pass.
        """
        return y.addmm_(inner * self.scale, self.lora_B.T.to(y.dtype))

    def merged(self) -> tuple[Tensor, Tensor | None]:
        return self.weight.float() + self.scale * (self.lora_B @ self.lora_A), self.bias


class DoRALinear(LoRALinear):
    """LoRA with a trained length for each row, `lora_magnitude_vector` [out]. It starts as the
    length of W's row.
    """

    def __init__(self, base: Linear, rank: int, alpha: float, generator: torch.Generator | None):
        super().__init__(base, rank, alpha, generator)
        squares = base.weight.detach().float().square().sum(1)  # [out]
        self.register_buffer("squares", squares, persistent=False)
        self.lora_magnitude_vector = nn.Parameter(squares.sqrt())

    @torch.no_grad()  # section 4.3: the length counts as a constant, which saves memory
    def lengths(self) -> Tensor:
        """‖W + s B A‖ of each row, [out], without that matrix: ‖w‖² + 2 s b·(A w) + s² b·(A Aᵀ b).
        """
        a, b, s = self.lora_A, self.lora_B, self.scale
        cross = (self.weight @ a.T.to(self.weight.dtype)).float()  # [out, in] @ [in, r] -> [out, r]
        return (self.squares + (b * (2 * s * cross + s * s * (b @ (a @ a.T)))).sum(1)).sqrt()

    def combine(self, y: Tensor, inner: Tensor) -> Tensor:
        ratio = (self.lora_magnitude_vector / self.lengths()).to(y.dtype)  # [out]
        y = super().combine(y, inner) * ratio
        return y if self.bias is None else y + (1 - ratio) * self.bias.to(y.dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().merged()
        return weight * (self.lora_magnitude_vector / weight.norm(dim=1))[:, None], bias


def _adapt(rank: int, alpha: float, variant: str,
           seed: int = 0) -> Callable[[str, Linear], LoRALinear]:
    """A function that makes the adapted map of a base map; α/√r is the plain rule with α·√r for α.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    alpha = alpha * math.sqrt(rank) if variant == "rslora" else alpha
    kind = DoRALinear if variant == "dora" else LoRALinear
    generator = torch.Generator().manual_seed(seed)
    return lambda name, base: kind(base, rank, alpha, generator)


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Iterable[str] = TARGETS,
             variant: str = "plain", seed: int = 0) -> dict[str, nn.Parameter]:
    """Freeze the model, adapt each target, and return what trains, by its full name.

    Raises UserError for a target that no layer has.
    """
    return swap(model, find_targets(model, targets), _adapt(rank, alpha, variant, seed))


# -------------------------------------------------------------------------------------- the method


def _tuning(trainable: dict[str, nn.Parameter], flags: Flags) -> Tuning:
    factors = {name: flags.lora_plus for name in trainable if name.endswith(".lora_B")}
    return Tuning(trainable, rate_factors=factors)


def start(model, tokenizer, flags: Flags, system: str, seed: int) -> Tuning:
    """A and B beside each target; the rest is frozen."""
    trainable = add_lora(model, flags.lora_rank, flags.lora_alpha, _targets(flags),
                         flags.lora_variant, seed)
    return _tuning(trainable, flags)


def _targets(flags: Flags) -> list[str]:
    """The names in --lora-targets."""
    return [name.strip() for name in flags.lora_targets.split(",")]


def extra_flop(maps: dict[str, nn.Linear], flags: Flags) -> int:
    """Operations a token in training: three passes over A and B, two for each of their elements."""
    adapted = [m for name, m in maps.items() if name.endswith(tuple(_targets(flags)))]
    return 6 * flags.lora_rank * sum(m.in_features + m.out_features for m in adapted)


# PiSSA, OLoRA and similar starts also change the base weights, which are not in the file.
STARTS = (None, True, False, "gaussian", "eva", "mica", "orthogonal")
READ = {"r", "lora_alpha", "use_rslora", "use_dora", "bias", "init_lora_weights", "rank_pattern",
        "alpha_pattern"} | PLACES
PASSED_OVER = {"lora_dropout", "megatron_core", "qalora_group_size", "eva_config"}


def _key(name: str) -> str:
    """What PEFT calls a parameter of ours: there A and B are maps with a weight each."""
    return peft_key(name) + ".weight" * name.endswith((".lora_A", ".lora_B"))


def save(folder: Path, model, tuning: Tuning, base: Base) -> None:
    """Write the adapter as peft, vLLM and llama.cpp open it.

    rsLoRA is written as the plain α·√r that it is, because llama.cpp ignores its flag.
    """
    first = next(iter(adapted_maps(model).values()))
    alpha = int(first.alpha) if first.alpha == int(first.alpha) else first.alpha
    save_adapted(folder, model, tuning, base, PEFT_TYPE, _key, r=first.lora_A.shape[0],
                 lora_alpha=alpha, lora_dropout=0.0, bias="none", fan_in_fan_out=False,
                 use_rslora=False, use_dora=isinstance(first, DoRALinear), modules_to_save=None)


def load(folder: Path, model, flags: Flags) -> Tuning:
    """Put the adapter in `folder` (ours or peft's) on the model, ready to train on.

    Raises UserError, before the model is touched, if the files are not whole, ask for what mathft
    does not do, or belong to another base model.
    """
    settings, tensors = read_adapter(folder, PEFT_TYPE, READ | PASSED_OVER)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    # Rank and α must be there: peft has other defaults for a missing one.
    check_settings(Path(folder) / "adapter_config.json", settings, {
        "r": (_is_rank(rank), "a whole number above 0"),
        "lora_alpha": (_is_alpha(alpha), "a number above 0"),
        "use_rslora": (settings.get("use_rslora") in (None, True, False), "true or false"),
        "use_dora": (settings.get("use_dora") in (None, True, False), "true or false"),
        "bias": (settings.get("bias", "none") == "none", "none: trained biases are not read"),
        "init_lora_weights": (settings.get("init_lora_weights") in STARTS, "true; convert it"),
        "rank_pattern": (_fits(settings.get("rank_pattern"), _is_rank), "ranks above 0 by name"),
        "alpha_pattern": (_fits(settings.get("alpha_pattern"), _is_alpha) and all(
            map(_is_plain, settings.get("alpha_pattern") or {})), "numbers above 0 by plain names"),
    })
    kind = DoRALinear if settings.get("use_dora") else LoRALinear
    power = 0.5 if settings.get("use_rslora") else 0.0
    ranks = {rank, *(settings.get("rank_pattern") or {}).values()}

    def adapt(name: str, base: Linear) -> LoRALinear:
        a = tensors.get(_key(f"{name}.lora_A"))
        own = a.shape[0] if a is not None and a.ndim == 2 and a.shape[0] in ranks else rank
        scale = _alpha_of(name, settings.get("alpha_pattern") or {}, alpha)
        return kind(base, own, scale * own**power, torch.Generator())

    return _tuning(load_adapted(model, folder, settings, tensors, adapt, _key), flags)


def _is_rank(value) -> bool:
    return type(value) is int and 0 < value <= 2**16


def _is_alpha(value) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _fits(pattern, fits: Callable) -> bool:
    """Whether a setting by name is missing, or all its values fit."""
    return pattern is None or isinstance(pattern, dict) and all(map(fits, pattern.values()))


def _is_plain(name: str) -> bool:
    """Whether a name has letters, digits, _ and dots alone. (A pattern could match forever.)"""
    return name.replace(".", "").replace("_", "").isalnum()


def _alpha_of(name: str, by_name: dict[str, float], alpha: float) -> float:
    """The α of a map: that of the first name that the map's ends with, as in peft."""
    return next((own for end, own in by_name.items() if f".{name}".endswith(f".{end}")), alpha)
