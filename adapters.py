"""What the methods share: what a method trains, linear maps that are adapted, and PEFT's folders.

    python -m pytest tests/test_adapters.py -v      # swapped, merged, written and read again

An adapted map is an `AdaptedLinear`: it stands in the place of a linear map, keeps that map's
frozen weight and adds something that trains. `merge` folds every adapted map into a plain one
again:

    base map  --swap-->  adapted map (base weight frozen, new parameters)  --merge-->  plain map

A folder in PEFT's form is `adapter_config.json` beside `adapter_model.safetensors`. A setting that
is unknown here is refused: an adapter half understood gives wrong numbers without a word.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from checkpoint import name_of, save_text_files
from model import Linear
from runtime import (UserError, check_regular, read_json, whole_folder, write_json,
                     write_tensors, write_text)
from tokenizer import NO_SYSTEM, Tokenizer

# The linear maps of one layer, by the last part of their name.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Tuning:
    """What a method trains on a model."""

    trainable: dict[str, nn.Parameter]  # by name
    # gives what stands before each document: [L, 2, P, K, h]
    prefix: Callable[[], Tensor] | None = None
    weight_decay: float = 0.0  # of the matrices among them
    # learning rate = factor · --lr, by name
    rate_factors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """The model that was tuned, as its result names it to other programs."""

    name: str  # as --model gives it
    tokenizer: Tokenizer  # in the model's folder
    system: str


@dataclass
class NoFlags:
    """The flags of a method that has none."""


def no_extra_flop(maps: dict[str, nn.Linear], flags) -> int:
    """Operations a token of what a method adds, if it multiplies no matrices."""
    return 0


# ------------------------------------------------------------------------------------ adapted maps


class AdaptedLinear(Linear):
    """A linear map with the weight and bias of `base`, which stay frozen.

    Subclasses add what trains.
    """

    def __init__(self, base: Linear):
        # On the meta device nothing is allocated: the weight is the base's own tensor, not a copy.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.product = base.product  # plain or fast, as the model has it

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight [out, in] and bias [out] in fp32 of the plain map that computes the same."""
        raise NotImplementedError


def find_targets(model: nn.Module, targets: Iterable[str]) -> dict[str, Linear]:
    """The linear maps that the targets name, by their full names, in the model's order.

    A target is the end of a module's name: `q_proj` is that map in every layer,
    `layers.0.self_attn.q_proj` in the first alone. Raises UserError for a target that no layer has.
    """
    targets = list(targets)
    maps = {name: m for name, m in model.named_modules() if name.rpartition(".")[2] in TARGETS}
    # The dots keep whole parts of a name together: `proj` or `self_attn` is no target.
    chosen = {end: [name for name in maps if f".{name}".endswith(f".{end}")] for end in targets}
    unknown = [target for target, names in chosen.items() if not names]
    if unknown or not targets:
        what = f"unknown target {', '.join(unknown)}" if unknown else "no target is given"
        raise UserError(f"{what}; known are {', '.join(TARGETS)}")
    return {name: m for name, m in maps.items() if any(name in names for names in chosen.values())}


def short_targets(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The shortest targets that name just these maps, sorted: servers look for short names."""
    short = {name.rpartition(".")[2] for name in names}
    return sorted(short if find_targets(model, short).keys() == set(names) else names)


def swap(model: nn.Module, maps: dict[str, Linear],
         adapt: Callable[[str, Linear], AdaptedLinear]) -> dict[str, nn.Parameter]:
    """Freeze the model, put `adapt(name, map)` in the place of each map; returns what trains, by
    name.
    """
    model.requires_grad_(False)
    for name, base in maps.items():
        model.set_submodule(name, adapt(name, base))
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapted_maps(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted maps of a model, by their full names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLinear)}


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within the block, the model computes as if nothing had been adapted."""
    maps = adapted_maps(model).values()
    for adapted in maps:
        adapted.forward = functools.partial(Linear.forward, adapted)
    try:
        yield
    finally:
        for adapted in maps:
            del adapted.forward  # then the class's own


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put a plain map in the place of each adapted one: summed in fp32, cast once to the base's
    dtype.
    """
    for name, adapted in adapted_maps(model).items():
        weight, bias = adapted.merged()
        plain = Linear(adapted.in_features, adapted.out_features, bias is not None, device="meta")
        plain.weight = nn.Parameter(weight.to(adapted.weight.dtype), requires_grad=False)
        if bias is not None:
            plain.bias = nn.Parameter(bias.to(adapted.weight.dtype), requires_grad=False)
        plain.product = adapted.product
        model.set_submodule(name, plain)


# ------------------------------------------------------------------------------------ PEFT's files

# Settings that say which maps are adapted, beside `target_modules`.
PLACES = {"layers_to_transform", "layers_pattern", "exclude_modules"}
# Settings that say nothing about how an adapter is applied.
NEUTRAL = set("peft_type peft_version task_type auto_mapping base_model_name_or_path revision "
              "inference_mode target_modules".split())


def save_adapter(folder: Path, settings: dict, tensors: dict[str, Tensor], base: Base) -> None:
    """Write an adapter of the model `base` as peft opens it, from any folder.

    Beside it stand the tokenizer, with the run's system prompt in its template, and a short card.
    """
    name, revision = name_of(base.name, base.tokenizer.folder)
    settings = {"task_type": "CAUSAL_LM", "base_model_name_or_path": name, "revision": revision,
                "inference_mode": True, **settings}
    with whole_folder(folder) as temporary:
        write_tensors(temporary / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(temporary / "adapter_config.json", settings)
        save_text_files(temporary, base.tokenizer, base.system)
        write_text(temporary / "README.md", _card(settings, base))


def _card(settings: dict, base: Base) -> str:
    """The model card of an adapter, in the hub's form. A folder is no base that the hub knows."""
    name = settings["base_model_name_or_path"]
    known = f"base_model: {name}\n" if settings["revision"] else ""
    if base.system == NO_SYSTEM:
        system = "no system turn"
    else:
        system = "the system prompt " + json.dumps(base.system, ensure_ascii=False)
    return f"""---
library_name: peft
pipeline_tag: text-generation
{known}---
A {settings["peft_type"]} adapter of `{name}`, trained by mathft on mathematics, with {system}.
The template in this folder has it as its default. Answers were measured greedily, without a
repetition penalty; `generation_config.json` says so.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig

folder = "."  # this folder
model = AutoPeftModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{{"role": "user", "content": "What is 2 + 3?"}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
told = model.generate(**ids, generation_config=GenerationConfig.from_pretrained(folder),
                      max_new_tokens=256)
print(tokenizer.decode(told[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
```

A `pipeline` takes the base's tokenizer and settings, if nothing else is given:
`pipeline("text-generation", model=folder, tokenizer=folder)(chat, do_sample=False,
repetition_penalty=1.0)`.
"""


def peft_key(name: str) -> str:
    """What PEFT calls a parameter of ours."""
    return f"base_model.model.{name}"


def save_adapted(folder: Path, model: nn.Module, tuning: Tuning, base: Base, peft_type: str,
                 key_of: Callable[[str], str] = peft_key, **settings) -> None:
    """Write what trains of a model's adapted maps; `settings` are the method's own."""
    settings |= {"peft_type": peft_type,
                 "target_modules": short_targets(model, adapted_maps(model))}
    tensors = {key_of(name): p for name, p in tuning.trainable.items()}
    save_adapter(folder, settings, tensors, base)


def read_adapter(folder: Path, peft_type: str,
                 understood: set[str]) -> tuple[dict, dict[str, Tensor]]:
    """Settings and tensors of a PEFT folder; `understood` are the settings that the caller knows.

    Raises UserError for another kind of adapter, an unknown setting that is not empty, or a file
    that is missing or not whole.
    """
    path = Path(folder) / "adapter_config.json"
    weights = Path(folder) / "adapter_model.safetensors"
    settings = read_json(path)
    found = settings.get("peft_type")
    if found != peft_type:
        raise UserError(f"{path}: peft_type is {found!r}, and {peft_type!r} is expected")
    known = NEUTRAL | understood
    unknown = sorted(key for key, value in settings.items() if value and key not in known)
    if unknown:
        raise UserError(f"{path}: sets {', '.join(unknown)}, which mathft does not support")
    if not weights.exists():
        raise UserError(f"{weights}: no such file (only safetensors adapters are read)")
    check_regular(weights)
    try:
        return settings, load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: not a whole safetensors file ({error}); "
                        "copy or save it again") from None


def check_settings(path: Path, settings: dict, needs: dict[str, tuple[bool, str]]) -> None:
    """Raise UserError for the first setting that does not fit; needs: name -> (fits, what is
    needed).
    """
    for name, (fits, need) in needs.items():
        if not fits:
            raise UserError(f"{path}: {name} is {settings.get(name)!r}; mathft needs {need}")


def target_maps(folder: Path, settings: dict, tensors: dict[str, Tensor],
                model: nn.Module) -> dict[str, Linear]:
    """The maps that an adapter is for.

    They are those that the settings name in lists, or, if one of the settings is a pattern, those
    that the tensors name: a pattern of unknown origin could take forever to match.

    Raises UserError if the settings are of the wrong kind or fit no layer.
    """
    path, targets = Path(folder) / "adapter_config.json", settings.get("target_modules")
    layers, left_out = settings.get("layers_to_transform"), settings.get("exclude_modules")
    layers = [layers] if type(layers) is int else layers or []
    check_settings(path, settings, {
        "target_modules": (isinstance(targets, str) or _is_list(targets, str),
                           "a list of module names, or a pattern"),
        "layers_to_transform": (_is_list(layers, int), "numbers of layers"),
        "exclude_modules": (isinstance(left_out, str | None) or _is_list(left_out, str),
                            "a list of module names, or a pattern")})
    patterns = any(isinstance(value, str) and value for value in (targets, left_out))
    try:
        maps = find_targets(model, TARGETS if isinstance(targets, str) else targets)
        if patterns:
            named = {key.removeprefix(peft_key("")).partition("_proj.")[0] + "_proj"
                     for key in tensors}
            maps = {name: m for name, m in maps.items() if name in named}
        outside = find_targets(model, left_out) if left_out and not patterns else ()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not maps:
        raise UserError(f"{path}: no tensor of it is for a linear map of this base model")
    # A pattern holds for all layers: layers_to_transform goes with lists alone, as in peft.
    return {name: m for name, m in maps.items() if name not in outside
            and (not layers or isinstance(targets, str) or int(name.split(".")[2]) in layers)}


def _is_list(value, kind: type) -> bool:
    return isinstance(value, list) and all(type(part) is kind for part in value)


def check_tensors(folder: Path, tensors: dict[str, Tensor],
                  shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError unless a PEFT folder holds just the tensors named, each in its shape."""
    path = Path(folder) / "adapter_model.safetensors"
    misfit = "it does not fit adapter_config.json and this base model"
    lacking, extra = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    for verb, names in (("lacks", lacking), ("also holds", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {verb} {min(names)}{more}; {misfit}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise UserError(f"{path}: {name} is {found}, not {list(shape)}; {misfit}")


def load_adapted(model: nn.Module, folder: Path, settings: dict, tensors: dict[str, Tensor],
                 adapt: Callable[[str, Linear], AdaptedLinear],
                 key_of: Callable[[str], str] = peft_key) -> dict[str, nn.Parameter]:
    """Swap the maps that the adapter is for, and fill what trains from the tensors, which PEFT
    calls `key_of(name)`.

    `adapt(name, map)` gives the adapted map; it checks itself if it can adapt that kind of map.

    Raises UserError, with the model untouched, if names or shapes differ.
    """
    maps = target_maps(folder, settings, tensors, model)
    made = {name: adapt(name, base) for name, base in maps.items()}
    frozen = {id(p) for base in maps.values() for p in base.parameters()}
    check_tensors(folder, tensors, {
        key_of(f"{name}.{part}"): tuple(p.shape) for name, adapted in made.items()
        for part, p in adapted.named_parameters() if id(p) not in frozen})
    trainable = swap(model, maps, lambda name, base: made[name])
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[key_of(name)])
    return trainable
