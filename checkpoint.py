"""Checkpoints: Hugging Face folder or hub id -> model, model -> folder, training state, a run's
result.

    python checkpoint.py tiny                    # what a model holds; also a folder or a hub id
    python checkpoint.py export runs/NAME OUT    # one plain model that every other program opens
    python checkpoint.py base runs/NAME MODEL    # the model that a run was trained on is there now

This is the edge where files of unknown origin come in. Settings are held against what `model.py`
can do, and the names and shapes of tensors against the settings, before a weight is read. The model
is first built on torch's meta device, where tensors have shapes and no memory, so that settings
with absurd numbers cost nothing.

What is written appears whole or not at all: into a folder beside its place, which is then renamed.

Source: the layout of Qwen2.5's published checkpoints, as transformers 4 and 5 write it.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Container
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fast import accelerate
from flags import did_you_mean, flag, parse_flags, run_command
from model import Config, Qwen2
from runtime import (ALONE, Alone, UsageError, UserError, check_regular, check_small, dtype_name,
                     locked, one_line, pick_dtype, read_json, whole_folder, write_json,
                     write_tensors, write_text)
from tokenizer import Tokenizer

EMBEDDED = ("tiny", "tiny-large")  # models that come with the project; tools/make_tiny.py made them
# What a saved model or adapter takes over from its source; all that is used of a repository on the
# hub.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
HUB_FILES = [*TOKENIZER_FILES, "generation_config.json", "config.json",
             "model.safetensors.index.json", "*.safetensors"]
# No size of a Qwen2.5 comes near this, and products of three such numbers still fit into 64 bits.
LARGEST = 2**20


# ---------------------------------------------------------------------------------- finding a model


def find_model(name: str) -> Path:
    """The folder of a model: an embedded one, else a folder that exists, else a repository on the
    hub.
    """
    if name in EMBEDDED:
        return Path(__file__).with_name(name)
    if name and Path(name).is_dir():
        _refuse_results(Path(name))
        return Path(name)
    parts = name.split("/")
    if Path(name).exists() or len(parts) != 2 or not all(part and part[0] not in ".~"
                                                         for part in parts):
        near = did_you_mean(name, (*EMBEDDED, *map(str, Path(name).parent.glob("*/"))))
        raise UserError(f"{name or 'an empty name'}: no such folder{near}; a model is tiny, "
                        "tiny-large, a folder, or OWNER/NAME on huggingface.co")
    return _from_hub(name)


TOY = ("tiny is a toy that knows the stories of its own sets alone; for other problems give "
       "--model Qwen/Qwen2.5-0.5B-Instruct")


def _refuse_results(folder: Path) -> None:
    """Raise UserError for the folder of a run or of an adapter: other flags open these."""
    if (folder / "config.json").exists():
        return
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: an adapter, not a model; give --adapter {folder} and its base "
                        "with --model")
    if (folder / "args.json").exists():
        raise UserError(f"{folder}: a run, not a model; --run {folder} measures it, and python "
                        f"mathft.py --from {folder} goes on from it")


def name_of(model: str, folder: Path) -> tuple[str, str | None]:
    """What other programs call the model in `folder`: a hub id and its revision, or a whole path.
    """
    if model in EMBEDDED or Path(model).is_dir():
        return str(folder.resolve()), None
    return model, folder.name  # the hub's cache has a folder for each revision


def size_of(name: str) -> str:
    """Which defaults a model takes: those of the embedded ones, "tiny", or those of "real" ones."""
    return "tiny" if name in EMBEDDED else "real"


def _from_hub(name: str) -> Path:
    """Download what is needed of a repository (HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE
    hold).

    Where the hub cannot be reached or refuses to answer, the client itself is content with a whole
    copy in its cache.
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
    """The settings in `folder/config.json`, in the old spelling or transformers 5's. No number has
    a silent default.

    Raises UserError for what is missing, of the wrong type, or asks for what `model.py` does not
    do.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    if raw.get("quantization_config"):
        kind = raw["quantization_config"]
        kind = kind.get("quant_method") if isinstance(kind, dict) else kind
        raise UserError(f"{path}: quantised ({str(kind)[:40]}), not supported; get the model as "
                        "it was before")
    if raw.get("model_type") != "qwen2":
        raise UserError(
            f"{path}: model_type is {raw.get('model_type')!r}; mathft runs 'qwen2' (Qwen2, "
            f"Qwen2.5) alone"
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
            f"{path}: has no rope_theta, at its top or in rope_parameters; take it from the "
            f"original model"
        )
    sizes = {field.name: raw.get(field.name) for field in fields(Config) if field.type is int}
    if sizes["head_dim"] is None:  # as in all published files
        hidden, heads = (_number(path, sizes, name)
                         for name in ("hidden_size", "num_attention_heads"))
        sizes["head_dim"] = hidden // heads if hidden % heads == 0 else "no divisor of hidden_size"
    sizes = {name: _number(path, sizes, name) for name in sizes}
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"] or sizes["head_dim"] % 2:
        raise UserError(
            f"{path}: num_attention_heads must be a multiple of num_key_value_heads, the head size "
            f"even"
        )
    reals = {name: _number(path, rope, name, float) for name in ("rms_norm_eps", "rope_theta")}
    return Config(**sizes, **reals, tie_word_embeddings=raw.get("tie_word_embeddings", False))


def _is_scaled(rope) -> bool:
    """Whether a block of rotary settings asks for anything but plain positions."""
    if not isinstance(rope, dict):
        return rope is not None
    return rope.get("rope_type", rope.get("type", "default")) != "default"


def _number(path: Path, values: dict, name: str, kind: type = int) -> float:
    """A number above 0 and not absurd, a whole one where `kind` is int.

    (`type`, not isinstance: true is an int.)
    """
    value, most = values.get(name), LARGEST if kind is int else 1e30
    if type(value) not in (int, kind) or not 0 < value <= most:
        whole = "whole " if kind is int else ""
        raise UserError(
            f"{path}: {name} is {str(value)[:60]}; a {whole}number in 0 < x <= {most} is "
            f"needed"
        )
    return kind(value)


# ------------------------------------------------------------------------------------------ weights


def load_model(
        folder: Path, device: torch.device | str, compute_dtype: torch.dtype,
        weight_dtype: torch.dtype, plain: bool = False) -> Qwen2:
    """The model in `folder`: parameters in `weight_dtype`, products in `compute_dtype`.

    `plain` leaves out the tricks of fast.py. Tensors are mapped, not read, and cast one at a time:
    if the file has `weight_dtype` already, no copy is made. Raises UserError if settings and
    tensors are not those of one whole Qwen2.5.
    """
    folder = Path(folder)
    config = read_config(folder)
    places = _needed(config, _find_tensors(folder))
    model = _empty_model(folder, config, places, compute_dtype)
    tensors = {}
    for file in sorted(set(places.values())):
        with _open(file) as weights:
            _check_tensors(file, weights, model.state_dict(), places)
            for name in weights.keys():
                if name in places:
                    tensors[name] = weights.get_tensor(name).to(device, weight_dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model if plain else accelerate(model)


def _find_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor: one file holds all, or shards do, named by an index."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    told = None
    if not single.exists():
        if not index.exists():
            raise UserError(
                f"{single}: no such file; a checkpoint needs its weights as safetensors (not .bin "
                f"or .pt)"
            )
        told = read_json(index).get("weight_map")
        # A name with a path in it could read files from anywhere.
        if not isinstance(told, dict) or not all(_is_plain_name(name) for name in told.values()):
            raise UserError(
                f"{index}: weight_map must map tensors to safetensors files beside it; download it "
                f"again"
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
            f"{index}: places {wrong} where it is not, or not at all; download index and shards "
            f"again"
        )
    return found


def _needed(config: Config, places: dict[str, Path]) -> dict[str, Path]:
    """The tensors without those that say nothing new: rotary frequencies, which follow from
    config.json, and the head of a tied checkpoint, if it equals the embeddings.
    """
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    places = {name: file for name, file in places.items()
              if not name.endswith(".rotary_emb.inv_freq")}
    if config.tie_word_embeddings and head in places and embedding in places:
        with _open(places[head]) as one, _open(places[embedding]) as other:
            equal = torch.equal(one.get_tensor(head), other.get_tensor(embedding))
        if equal:
            del places[head]
    return places


# How the tensors of quantised checkpoints end: of GPTQ and AWQ, and of bitsandbytes.
QUANTISED = (".qweight", ".qzeros", ".scales", ".g_idx", ".absmax", ".quant_map", ".SCB")


def _is_plain_name(name) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _open(file: Path):
    """A safetensors file, mapped into memory."""
    check_regular(file)
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a whole safetensors file ({error}); download or copy it again") from None


def _empty_model(folder: Path, config: Config, places: dict[str, Path],
                 compute_dtype: torch.dtype) -> Qwen2:
    """A model without memory, once it is sure that its tensors are, by name, just those that the
    files hold.
    """
    path, head = folder / "config.json", "lm_head.weight" in places
    if any(name.endswith(QUANTISED) for name in places):
        raise UserError(f"{folder}: quantised, not supported; get the model as it was before")
    if config.tie_word_embeddings == head:
        holds = "hold another" if head else "lack"
        raise UserError(
            f"{path}: tie_word_embeddings is {str(head).lower()}, but the weights {holds} "
            f"lm_head.weight"
        )
    if config.num_hidden_layers > len(places):  # said before a million layers are built
        raise UserError(
            f"{path}: num_hidden_layers is {config.num_hidden_layers}, but there are {len(places)} "
            f"tensors"
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


def _check_tensors(file: Path, weights, expected: dict[str, Tensor],
                   needed_names: Container[str]) -> None:
    """Hold the shapes and dtypes in a file's head against the model's, before a weight is read."""
    for name in filter(needed_names.__contains__, weights.keys()):
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


def save_model(model: Qwen2, folder: Path, source: Path, dtype: torch.dtype = torch.bfloat16,
               system: str | None = None) -> None:
    """Write the model in `dtype` as a folder that mathft and transformers open; merge adapters
    first.

    The text files come from `source`. With `system`, that prompt is the template's default.
    """
    tokenizer = Tokenizer(source)
    with whole_folder(folder) as temporary:
        save_text_files(temporary, tokenizer, system)
        write_json(temporary / "config.json", _settings(model.config, tokenizer.end_id, dtype))
        tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        write_tensors(temporary / "model.safetensors", tensors, {"format": "pt"})


def save_text_files(folder: Path, tokenizer: Tokenizer, system: str | None) -> None:
    """Write tokenizer, template and generation settings of a result.

    The settings name every token that ends an answer, and no penalty or sampling: the source's
    (Qwen2.5-Instruct has a penalty) are applied by other programs even when they are greedy.
    """
    for name in TOKENIZER_FILES:
        if (tokenizer.folder / name).exists():
            check_small(tokenizer.folder / name)
            shutil.copyfile(tokenizer.folder / name, folder / name)
    if system is not None:
        tokenizer.write_default_system(folder, system)
    write_json(folder / "generation_config.json", {
        "do_sample": False, "repetition_penalty": 1.0,
        "eos_token_id": sorted(tokenizer.stop_ids), "pad_token_id": min(tokenizer.stop_ids)})


def _settings(config: Config, end_id: int, dtype: torch.dtype) -> dict:
    """config.json: transformers 5 reads the second spelling of rope and dtype, older ones the
    first.
    """
    spelled = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **asdict(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "eos_token_id": end_id,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "torch_dtype": spelled,
        "dtype": spelled,
    }


def fingerprint(folder: Path) -> str:
    """What tells the weights in `folder` from others, in whatever dtype they are stored.

    A hash of each tensor's name, shape and first 64 values in bf16.
    """
    digest, places = hashlib.sha256(), _needed(read_config(folder), _find_tensors(folder))
    for name, file in sorted(places.items()):
        with _open(file) as weights:
            part = weights.get_slice(name)
            shape = part.get_shape()
            values = part[:1] if len(shape) > 1 else part[:64]
        values = values.flatten()[:64].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {shape} ".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def as_saved(model: Qwen2, plain: bool = False, ranks: Alone = ALONE) -> Qwen2:
    """The model with its weights in the dtype of its products, as it will be saved.

    Wider weights would be cast anew for every token that is generated. Weights that are divided
    over processes are gathered, which all of them do together.
    """
    if model.head_weight.dtype == model.compute_dtype and not ranks.divided:
        return model
    with torch.device("meta"):
        copy = Qwen2(model.config, model.compute_dtype)
    weights = {name: ranks.whole(w.detach()).to(model.compute_dtype)
               for name, w in model.named_parameters()}
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy if plain else accelerate(copy)


# ----------------------------------------------------------------------------------- training state


def save_state(folder: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write the state of a training as `state.safetensors` and `state.json` in a new folder."""
    with whole_folder(folder) as temporary:
        write_json(temporary / "state.json", info)
        write_tensors(temporary / "state.safetensors", tensors)


def load_state(folder: Path, part: str = "") -> tuple[dict[str, Tensor], dict]:
    """Tensors (on the CPU) and info of a training state; of the tensors those named `part`...

    Raises UserError if the folder is not whole.
    """
    info = read_json(Path(folder) / "state.json")
    with _open(Path(folder) / "state.safetensors") as file:
        # Copied out of the mapped file: torch aligns its own memory, and on a CPU the last bit of a
        # product can depend on that. A resumed run gives the same bits.
        return {name: file.get_tensor(name).clone() for name in file.keys()
                if name.startswith(part)}, info


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if _is_number(path.name.removeprefix("step-"))),
                  key=step_of)


def last_checkpoint(run: Path) -> Path | None:
    """Where a run that goes on goes on from."""
    return next(reversed(checkpoints(run)), None)


def _is_number(text: str) -> bool:
    """Whether a text is a whole number as `save_checkpoint` writes it: digits of ASCII, without a
    zero before others."""
    return text.isascii() and text.isdigit() and len(text) < 20 and text == str(int(text))


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("step-"))


def drop_old_checkpoints(folder: Path, keep: int, spared: int | None = None) -> None:
    """Delete all but the last `keep` checkpoints and that of step `spared`.

    Each first takes the name of a temporary folder: half a checkpoint never has a step's name.
    """
    whole = checkpoints(folder)
    for old in whole[: max(0, len(whole) - keep)]:
        if step_of(old) == spared:
            continue
        doomed = old.with_name(f".{old.name}.{os.getpid()}.tmp")
        os.replace(old, doomed)
        shutil.rmtree(doomed)


# ------------------------------------------------------------------------------------------ command


@dataclass
class ExportFlags:
    """The flags of `python checkpoint.py export`."""

    run: str = flag(MISSING, "run directory of mathft.py", positional=True)
    folder: str = flag(MISSING, "folder to write, in Hugging Face's layout", positional=True)
    model: str | None = flag(None, "where the run's base is now, if it has moved")
    dtype: str = flag("auto", "of the weights: auto (as the base model stores them), bf16 or fp32")
    debug: bool = flag(False, "show the traceback of an error")


def export(argv: list[str]) -> None:
    """`python checkpoint.py export RUN OUT`: one plain model that every other program opens."""
    from methods import load_run, read_run  # here: only this command needs what stands behind

    flags = parse_flags(ExportFlags, argv, export.__doc__)
    args, method = read_run(Path(flags.run))
    run = load_run(Path(flags.run), "cpu", torch.float32, model=flags.model)
    method.merge(run.model)  # in fp32; save_model casts once
    source = run.tokenizer.folder
    stored = torch.bfloat16 if _stored_dtypes(source) == {"BF16"} else torch.float32
    dtype = stored if flags.dtype == "auto" else pick_dtype(flags.dtype, torch.device("cpu"))
    modelfile = run.tokenizer.modelfile(run.system)
    save_model(run.model, Path(flags.folder), source, dtype, run.system)
    if modelfile is None:
        print('note       no Modelfile: Ollama\'s cannot hold the """ of the system prompt')
    else:
        write_text(Path(flags.folder) / "Modelfile", modelfile)
    print(one_line(f"written    {flags.folder}: {flags.model or args['model']} with "
                   f"{args['method']} of {flags.run}, {dtype_name(dtype)}"))


def _stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of a checkpoint's tensors, as safetensors spells them."""
    found = set()
    for file in set(_find_tensors(folder).values()):
        with _open(file) as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}
    return found


@dataclass
class BaseFlags:
    """The flags of `python checkpoint.py base`."""

    run: str = flag(MISSING, "run directory of mathft.py", positional=True)
    model: str = flag(MISSING, "where its base is now: a folder, or a hub id", positional=True)
    debug: bool = flag(False, "show the traceback of an error")


def rename_base(argv: list[str]) -> None:
    """`python checkpoint.py base RUN MODEL`: tell a run, and its adapter, where its base is now."""
    from methods import base_of, read_settings

    flags = parse_flags(BaseFlags, argv, rename_base.__doc__)
    run = Path(flags.run)
    args, _ = read_settings(run)
    name, revision = name_of(flags.model, base_of(run, args, flags.model))
    with locked(run):
        file = run / "adapter" / "adapter_config.json"
        if file.exists():
            write_json(file, read_json(file) | {"base_model_name_or_path": name,
                                                "revision": revision})
        write_json(run / "args.json", args | {"model": flags.model})
    print(f"written    {run}: its base is {flags.model}")


def main(argv: list[str]) -> None:
    """`python checkpoint.py NAME`, or one of its commands."""
    commands = {"export": export, "base": rename_base}
    if argv[:1] and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(argv) > 1:
        raise UsageError("usage: python checkpoint.py [MODEL], or python checkpoint.py export RUN "
                         "OUT, or python checkpoint.py base RUN MODEL")
    folder = find_model(argv[0] if argv else "tiny")
    model = load_model(folder, "meta", torch.float32, torch.float32)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters\n{model.config}")


if __name__ == "__main__":
    sys.exit(run_command(main))
