"""Checkpoints: Hugging Face folder or hub id -> model, model -> folder, training state, a run's result.

    python checkpoint.py tiny       # what a checkpoint holds; also a folder or a hub id, Qwen/Qwen2.5-0.5B-Instruct

This is the edge where files of unknown origin come in. Settings are held against what `model.py` can do, and the names
and shapes of tensors against the settings, before a weight is read. The model is first built on torch's meta device,
where tensors have shapes and no memory, so that settings with absurd numbers cost nothing.

What is written appears whole or not at all: into a folder beside its place, which is then renamed.

Source: the layout of Qwen2.5's published checkpoints, as transformers 4 and 5 write it.
"""

import shutil
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora import load_lora
from model import Config, Qwen2
from prefix import load_prefix
from runtime import UserError, read_json, whole_folder, write_json, write_tensors
from tokenizer import Tokenizer

# All that is used of a repository on the hub. The first four are also what a saved model takes over from its source.
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
              "generation_config.json")
HUB_FILES = [*TEXT_FILES, "config.json", "model.safetensors.index.json", "*.safetensors"]
# No size of a Qwen2.5 comes near this, and products of three such numbers still fit into 64 bits.
LARGEST = 2**20


# ---------------------------------------------------------------------------------- finding a model


def find_model(name: str) -> Path:
    """The folder of a model: `tiny` is the embedded one, else a folder that exists, else a repository on the hub."""
    if name == "tiny":
        return Path(__file__).with_name("tiny")
    if name and Path(name).is_dir():
        return Path(name)
    parts = name.split("/")
    if Path(name).exists() or len(parts) != 2 or not all(part and part[0] not in ".~"
                                                         for part in parts):
        raise UserError(
            f"{name}: no such folder; a model is tiny, a folder, or OWNER/NAME on huggingface.co")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    """Download what is needed of a repository (HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold).

    Where the hub cannot be reached or refuses to answer, the client itself is content with a whole copy in its cache.
    """
    # Here: a model in a folder needs no network client.
    from huggingface_hub import snapshot_download

    from tools.download import hub_error

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as caught:  # the client's own, and those of the HTTP library below it
        page = f"https://huggingface.co/{name}"
        raise hub_error(name, caught, "model", page, "neither a folder here nor a model",
                        "give a folder") from caught


# ----------------------------------------------------------------------------------------- settings


def read_config(folder: Path) -> Config:
    """The settings in `folder/config.json`, in the old spelling or transformers 5's. No number has a silent default.

    Raises UserError for what is missing, of the wrong type, or asks for what `model.py` does not do.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != "qwen2":
        raise UserError(
            f"{path}: model_type is {raw.get('model_type')!r}; mathft runs 'qwen2' (Qwen2, Qwen2.5) alone"
        )
    not_ours = {
        "use_sliding_window": raw.get("use_sliding_window") not in (None, False),
        "layer_types": "sliding_attention" in str(raw.get("layer_types")),
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "tie_word_embeddings": type(raw.get("tie_word_embeddings", False)) is not bool,
        "rope_parameters": _is_scaled(raw.get("rope_parameters")),
        "rope_scaling": _is_scaled(raw.get("rope_scaling")),
    }
    for name, refused in not_ours.items():
        if refused:
            raise UserError(f"{path}: {name} is {str(raw[name])[:60]}, which mathft does not do")
    rope = raw | (raw.get("rope_parameters") or {}
                  )  # what transformers 5 writes, before the old place
    if rope.get("rope_theta") is None:
        raise UserError(
            f"{path}: has no rope_theta, at its top or in rope_parameters; take it from the original model"
        )
    sizes = {field.name: raw.get(field.name) for field in fields(Config) if field.type is int}
    if sizes["head_dim"] is None:  # as in all published files
        hidden, heads = (_number(path, sizes, name)
                         for name in ("hidden_size", "num_attention_heads"))
        sizes["head_dim"] = hidden // heads if hidden % heads == 0 else "no divisor of hidden_size"
    sizes = {name: _number(path, sizes, name) for name in sizes}
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"] or sizes["head_dim"] % 2:
        raise UserError(
            f"{path}: num_attention_heads must be a multiple of num_key_value_heads, the head size even"
        )
    reals = {name: _number(path, rope, name, float) for name in ("rms_norm_eps", "rope_theta")}
    return Config(**sizes, **reals, tie_word_embeddings=raw.get("tie_word_embeddings", False))


def _is_scaled(rope) -> bool:
    """Whether a block of rotary settings asks for anything but plain positions."""
    if not isinstance(rope, dict):
        return rope is not None
    return rope.get("rope_type", rope.get("type", "default")) != "default"


def _number(path: Path, values: dict, name: str, kind: type = int) -> float:
    """A number above 0 and not absurd, a whole one where `kind` is int. (`type`, not isinstance: true is an int.)"""
    value, most = values.get(name), LARGEST if kind is int else 1e30
    if type(value) not in (int, kind) or not 0 < value <= most:
        whole = "whole " if kind is int else ""
        raise UserError(
            f"{path}: {name} is {str(value)[:60]}, where a {whole}number in 0 < x <= {most} is needed"
        )
    return kind(value)


# ------------------------------------------------------------------------------------------ weights


def load_model(
    folder: Path, device: torch.device | str, compute_dtype: torch.dtype, weight_dtype: torch.dtype
) -> Qwen2:
    """The model in `folder`, its parameters in `weight_dtype` on `device`, its products in `compute_dtype`.

    Tensors are mapped, not read, and cast one at a time: where the file has `weight_dtype` already, no copy is made.
    Raises UserError where settings and tensors are not those of one whole Qwen2.5.
    """
    folder = Path(folder)
    config = read_config(folder)
    places = _find_tensors(folder)
    model = _empty_model(folder, config, places, compute_dtype)
    tensors = {}
    for file in sorted(set(places.values())):
        with _open(file) as weights:
            _check_tensors(file, weights, model.state_dict())
            for name in weights.keys():
                tensors[name] = weights.get_tensor(name).to(device, weight_dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def _find_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor: one file holds all, or shards do, named by an index."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    told = None
    if not single.exists():
        if not index.exists():
            raise UserError(
                f"{single}: no such file; a checkpoint needs its weights as safetensors (not .bin or .pt)"
            )
        told = read_json(index).get("weight_map")
        # A name with a path in it could read files from anywhere.
        if not isinstance(told, dict) or not all(_is_plain_name(name) for name in told.values()):
            raise UserError(
                f"{index}: weight_map must map tensors to safetensors files beside it; download it again"
            )
    found = {}
    for file in [single
                 ] if told is None else [folder / name for name in sorted(set(told.values()))]:
        with _open(file) as weights:
            found.update(dict.fromkeys(weights.keys(), file))
    if told is not None and told != {name: file.name for name, file in found.items()}:
        wrong = min(name for name in told.keys() | found
                    if name not in found or told.get(name) != found[name].name)
        raise UserError(
            f"{index}: places {wrong} where it is not, or not at all; download index and shards again"
        )
    return found


def _is_plain_name(name) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _open(file: Path):
    """A safetensors file, mapped into memory."""
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; download or copy it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({error}); download or copy it again") from None


def _empty_model(folder: Path, config: Config, places: dict[str, Path],
                 compute_dtype: torch.dtype) -> Qwen2:
    """A model without memory, once it is sure that its tensors are, by name, just those that the files hold."""
    path, head = folder / "config.json", "lm_head.weight" in places
    if config.tie_word_embeddings == head:
        holds = "hold" if head else "lack"
        raise UserError(
            f"{path}: tie_word_embeddings is {str(head).lower()}, but the weights {holds} lm_head.weight"
        )
    if config.num_hidden_layers > len(places):  # said before a million layers are built
        raise UserError(
            f"{path}: num_hidden_layers is {config.num_hidden_layers}, but there are {len(places)} tensors"
        )
    with torch.device("meta"):
        model = Qwen2(config, compute_dtype)
    expected = model.state_dict().keys()
    for verb, names in (("lack", expected - places.keys()), ("also hold",
                                                             places.keys() - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            hint = "they are not whole, or belong to another config.json; download them again"
            raise UserError(f"{folder}: the weights {verb} {min(names)}{more}; {hint}")
    return model


def _check_tensors(file: Path, weights, expected: dict[str, Tensor]) -> None:
    """Hold the shapes and dtypes in a file's head against the model's, before a weight is read."""
    for name in weights.keys():
        head = weights.get_slice(name)
        shape, needed = head.get_shape(), list(expected[name].shape)
        if shape != needed:
            raise UserError(
                f"{file}: {name} is {shape}, but config.json makes it {needed}; download both again"
            )
        if head.get_dtype() not in ("F32", "F16", "BF16"):
            raise UserError(
                f"{file}: {name} is stored as {head.get_dtype()}; quantised weights are not read")


# ------------------------------------------------------------------------------------------- saving


def save_model(model: Qwen2, folder: Path, source: Path,
               dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model as a folder that mathft and transformers (4 and 5) open; text files come from `source`.

    Only the model's own parameters are written, in `dtype`: merge a LoRA first. Raises UserError as `whole_folder`.
    """
    config, source = model.config, Path(source)
    spelled = str(dtype).removeprefix("torch.")
    settings = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **asdict(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "eos_token_id": Tokenizer(source).end_id,
        # transformers 5 reads the second spelling of each, everything older (and most servers) the first.
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "torch_dtype": spelled,
        "dtype": spelled,
    }
    tensors = {
        name: tensor.to(dtype)
        for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    with whole_folder(folder) as temporary:
        for name in TEXT_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, temporary / name)
        write_json(temporary / "config.json", settings)
        write_tensors(temporary / "model.safetensors", tensors, {"format": "pt"})


def as_saved(model: Qwen2) -> Qwen2:
    """The model with its weights in the dtype of its products, as it will be saved: wide weights would be cast anew for
    every token that is generated."""
    if model.head_weight.dtype == model.compute_dtype:
        return model
    with torch.device("meta"):
        copy = Qwen2(model.config, model.compute_dtype)
    weights = {
        name: tensor.detach().to(model.compute_dtype)
        for name, tensor in model.state_dict().items()
    }
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy


def save_state(folder: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write the state of a training as `state.safetensors` and `state.json` in a new folder."""
    with whole_folder(folder) as temporary:
        write_json(temporary / "state.json", info)
        write_tensors(temporary / "state.safetensors", tensors)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors (on the CPU) and info of a training state. Raises UserError where the folder is not whole."""
    info = read_json(Path(folder) / "state.json")
    with _open(Path(folder) / "state.safetensors") as file:
        # Copied out of the mapped file: torch aligns its own memory, and on a CPU the last bit of a product can hang
        # on that. A resumed run shall give the same bits.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, info


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if path.name.removeprefix("step-").isdigit()),
                  key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("step-"))


def drop_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints, now that the newest is whole."""
    for old in checkpoints(folder)[:-keep]:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()


# ----------------------------------------------------------------------------------- a run's result


@dataclass(frozen=True)
class Run:
    """What a run of mathft.py has made: model and adapter, and how it wants to be asked."""

    model: Qwen2
    tokenizer: Tokenizer
    prefix: Tensor | None  # [L, 2, P, K, h]
    system: str
    args: dict


def load_run(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Run:
    """The result in a run directory, ready to generate: weights and products in `dtype`.

    Raises UserError where the folder is no run directory, or its run has not come to its end.
    """
    folder = Path(folder)
    if not (folder / "args.json").exists():
        raise UserError(f"{folder}: no run directory of mathft.py (it has no args.json)")
    args = read_json(folder / "args.json")
    method, name, system = (args.get(key) for key in ("method", "model", "system"))
    if method not in ("sft", "lora",
                      "prefix") or not isinstance(name, str) or not isinstance(system, str | None):
        raise UserError(
            f"{folder / 'args.json'}: method, model or system is missing or of the wrong kind")
    result = folder / ("model" if method == "sft" else "adapter")
    if not result.is_dir():
        raise UserError(
            f"{result}: no such folder, the run has not ended; go on: python mathft.py --resume {folder}"
        )
    base = result if method == "sft" else find_model(name)
    model, tokenizer, prefix = load_model(base, device, dtype, dtype), Tokenizer(base), None
    if method == "lora":
        load_lora(result, model)
    if method == "prefix":
        prefix = load_prefix(result, model.config).to(device)
    return Run(model, tokenizer, prefix, tokenizer.default_system if system is None else system,
               args)


if __name__ == "__main__":
    try:
        place = find_model(sys.argv[1] if len(sys.argv) > 1 else "tiny")
        shown = load_model(place, "meta", torch.float32, torch.float32)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{place}: {sum(p.numel() for p in shown.parameters()):,} parameters\n{shown.config}")
