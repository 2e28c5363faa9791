"""LoRA: a frozen linear map learns a low-rank correction, y = x Wᵀ + (α/r) (x Aᵀ) Bᵀ.

    python mathft.py --method lora              # train one on the embedded model
    python -m pytest tests/test_lora.py -v      # the algebra, law by law

A [r, in] starts random and B [out, r] at zero, so that the first step starts from the untouched model. A and B are fp32
whatever the base is, and are cast when used. Files are PEFT's, so that an adapter goes to peft, vLLM or llama.cpp and
back. A model carries one adapter at a time.

Differs from the paper: all seven linear maps of a layer are adapted, not the attention's alone, and A is
Kaiming-uniform(√5), as in the authors' code, not Gaussian. There is no dropout.

Sources: LoRA, Hu et al. 2021 (arXiv 2106.09685), section 4.1; rsLoRA, Kalajdzievski 2023 (arXiv 2312.03732): α/√r.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from model import Linear
from runtime import UserError, read_json, whole_folder, write_json, write_tensors

# The linear maps of one layer, by the last part of their name.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# -------------------------------------------------------------------------------------- the algebra


class LoRALinear(Linear):
    """A linear map with its own weight and bias frozen, and a trainable correction scale · B A beside it.

    The base keeps its parameter names; `lora_A` [r, in] and `lora_B` [out, r] are new. `alpha` is the plain α, so that
    scale = alpha / r always. While merged, `original` holds the base weight and the correction is part of `weight`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        # On the meta device nothing is allocated: the weight is the base's own tensor, not a copy.
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None,
                         device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.alpha = alpha
        self.scale = alpha / rank
        # Drawn on the CPU, so that a seed gives the same A on every device.
        start = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(start.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        # A buffer follows the model to another device; not persistent, it stays out of every file.
        self.register_buffer("original", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.original is not None:
            return y
        inner = F.linear(x, self.lora_A.to(
            x.dtype)) * self.scale  # [T, in] -> [T, r]: the cheap place to scale
        return y.addmm_(inner, self.lora_B.T.to(
            x.dtype))  # [T, r] -> [T, out], added in the same pass

    @torch.no_grad()
    def merge(self) -> None:
        """Add scale · B A to the weight, in fp32 and rounded once. A second call does nothing."""
        if self.original is None:
            self.original = self.weight.data
            merged = self.original.float() + self.scale * (self.lora_B @ self.lora_A)  # [out, in]
            self.weight.data = merged.to(self.original.dtype)

    def unmerge(self) -> None:
        """Put the kept weight back: subtracting again would leave rounding errors behind."""
        if self.original is not None:
            self.weight.data, self.original = self.original, None


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Iterable[str] = TARGETS,
             rslora: bool = False, seed: int = 0) -> dict[str, nn.Parameter]:
    """Freeze the model, put a LoRALinear in the place of each target, and return what trains, by its full name.

    A target is the end of a module's name: `q_proj` is that map in every layer, `layers.0.self_attn.q_proj` in the
    first alone. `rslora` scales by α/√r instead of α/r. Raises UserError for a target that no layer has.
    """
    found = _find_targets(model, targets)
    model.requires_grad_(False)
    # α/√r is the plain rule with α·√r in the place of α; kept so, nothing later needs to know of rsLoRA.
    plain_alpha = alpha * math.sqrt(rank) if rslora else alpha
    generator = torch.Generator().manual_seed(seed)
    for name, base in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(base, rank, plain_alpha, generator))
    return {
        name: parameter
        for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def merge_lora(model: nn.Module) -> None:
    """Fold every correction into its weight: the model then costs what the untouched one costs."""
    for module in _adapted(model).values():
        module.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Give back the base weights, bit for bit."""
    for module in _adapted(model).values():
        module.unmerge()


def _find_targets(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear]:
    """The linear maps that the targets name, by their full names, in the model's order."""
    targets = list(targets)
    maps = {
        name: module
        for name, module in model.named_modules() if name.rpartition(".")[2] in TARGETS
    }
    # The dots keep whole parts of a name together: `proj` or `self_attn` is no target.
    chosen = {
        target: [name for name in maps if f".{name}".endswith(f".{target}")]
        for target in targets
    }
    unknown = [target for target, names in chosen.items() if not names]
    if unknown or not targets:
        what = f"unknown LoRA target {', '.join(unknown)}" if unknown else "no LoRA target is given"
        raise UserError(f"{what}; known are {', '.join(TARGETS)}")
    return {
        name: module
        for name, module in maps.items() if any(name in names for names in chosen.values())
    }


def _adapted(model: nn.Module) -> dict[str, LoRALinear]:
    return {
        name: module
        for name, module in model.named_modules() if isinstance(module, LoRALinear)
    }


# ------------------------------------------------------------------------------------- PEFT's files

# Settings that say nothing about how an adapter is applied. Any other that is set and that we do not know (now, or in
# a later peft) is refused: an adapter half understood gives wrong numbers without a word.
NEUTRAL = set(
    "peft_type peft_version task_type auto_mapping base_model_name_or_path revision inference_mode".
    split())
LORA_READ = {"r", "lora_alpha", "target_modules", "use_rslora", "bias", "init_lora_weights"}
LORA_NEUTRAL = {"lora_dropout", "megatron_core", "qalora_group_size"}


def save_lora(folder: Path, model: nn.Module, base_name: str) -> None:
    """Write the adapter into `folder` as peft, vLLM and llama.cpp open it. `base_name` is the model it belongs to.

    rsLoRA is written as the plain α·√r it amounts to, because llama.cpp passes over the flag.
    """
    modules = _adapted(model)
    first = next(iter(modules.values()))
    # Servers look for the short names; full ones are right only where some layers are left out.
    targets = {name.rpartition(".")[2] for name in modules}
    if _find_targets(model, targets).keys() != modules.keys():
        targets = set(modules)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "r": first.lora_A.shape[0],
        "lora_alpha": int(first.alpha) if first.alpha == int(first.alpha) else first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": sorted(targets),
    }
    parameters = model.named_parameters()
    tensors = {
        _peft_key(name): p
        for name, p in parameters if name.endswith((".lora_A", ".lora_B"))
    }
    with whole_folder(folder) as temporary:
        write_tensors(temporary / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(temporary / "adapter_config.json", settings)


def load_lora(folder: Path, model: nn.Module) -> dict[str, nn.Parameter]:
    """Add the adapter in `folder` (ours or peft's) to the model, and return what trains, as `add_lora` does.

    Raises UserError, before the model is touched, where the files are not whole, ask for what we do not do, or belong
    to another base model.
    """
    settings, tensors = read_adapter(folder, "LORA", LORA_READ | LORA_NEUTRAL)
    path = Path(folder) / "adapter_config.json"
    rank, alpha, targets = _lora_settings(path, settings)
    try:
        found = _find_targets(model, targets)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    shapes = {}
    for name, base in found.items():
        shapes[_peft_key(f"{name}.lora_A")] = (rank, base.in_features)
        shapes[_peft_key(f"{name}.lora_B")] = (base.out_features, rank)
    check_tensors(Path(folder) / "adapter_model.safetensors", tensors, shapes)
    trainable = add_lora(model, rank, alpha, targets, bool(settings.get("use_rslora")))
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[_peft_key(name)])
    return trainable


def _peft_key(parameter: str) -> str:
    """`model.layers.0.mlp.up_proj.lora_A` as PEFT calls it, where A and B are linear maps with a weight each."""
    return f"base_model.model.{parameter}.weight"


def _lora_settings(path: Path, settings: dict) -> tuple[int, float, list[str]]:
    """Rank, α and targets. All three must be there: peft would put other defaults in the place of a missing one."""
    rank, alpha, targets = (settings.get(name) for name in ("r", "lora_alpha", "target_modules"))
    listed = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    needs = {
        "r": (type(rank) is int and rank > 0, "a whole number above 0"),
        "lora_alpha": (type(alpha) in (int, float) and 0 < alpha < 1e9, "a number above 0"),
        "target_modules": (listed, "a list of module names, not a pattern"),
        "use_rslora": (settings.get("use_rslora") in (None, True, False), "true or false"),
        "bias": (settings.get("bias", "none") == "none", "none: trained biases are not read"),
        # PiSSA, OLoRA and their kin also change the base weights, which are not in the file.
        "init_lora_weights": (settings.get("init_lora_weights")
                              in (None, True, False, "gaussian"), "true; convert it"),
    }
    for name, (fits, need) in needs.items():
        if not fits:
            raise UserError(f"{path}: {name} is {settings.get(name)!r}, where mathft needs {need}")
    return rank, alpha, targets


def read_adapter(folder: Path, peft_type: str,
                 understood: set[str]) -> tuple[dict, dict[str, Tensor]]:
    """Settings and tensors of a PEFT folder; `understood` are the settings that the caller reads or may pass over."""
    path, weights = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    settings = read_json(path)
    if settings.get("peft_type") != peft_type:
        raise UserError(
            f"{path}: peft_type is {settings.get('peft_type')!r}, where {peft_type!r} was expected")
    unknown = sorted(
        name for name, value in settings.items() if value and name not in NEUTRAL | understood)
    if unknown:
        raise UserError(f"{path}: sets {', '.join(unknown)}, which mathft does not support")
    try:
        return settings, load_file(weights)
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file (only safetensors adapters are read)") from None
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{weights}: not a whole safetensors file ({error}); copy or save it again") from None


def check_tensors(path: Path, tensors: dict[str, Tensor], shapes: dict[str, tuple[int,
                                                                                  ...]]) -> None:
    """Raise UserError unless the file at `path` holds just the tensors named, each in its shape."""
    misfit = "it does not fit adapter_config.json and this base model"
    for verb, names in (("lacks", shapes.keys() - tensors.keys()),
                        ("also holds", tensors.keys() - shapes.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {verb} {min(names)}{more}; {misfit}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{path}: {name} is {list(tensors[name].shape)}, not {list(shape)}; {misfit}")
