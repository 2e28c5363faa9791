"""Prefix tuning: P trained keys and values per layer stand before every document, and the model stays frozen.

    python mathft.py --method prefix              # train one on the embedded model
    python -m pytest tests/test_prefix.py -v      # what a prefix is, shown by equalities

A prefix is one tensor [L, 2, P, K, h] (0 = keys, 1 = values) in fp32. Its keys are kept as they are after rotation and
are never rotated again; real tokens begin at position P. `attention.PackedAttention` and the generator take it as an
argument, so that the model itself knows nothing of it: freezing is `model.requires_grad_(False)`, and what trains is
`Prefix.parameters()`.

A prefix need not start from noise. The keys and values of a real text at positions 0..P-1 make the model behave as if
that text stood before the prompt, and training goes on from there; random starts train badly.

Differs from the papers: the start from a text is Li & Liang's for few data (section 7.4), here the default. With the
MLP the prefix is start + MLP(embedding), not the MLP alone, so that both ideas go together.

Sources: Li and Liang 2021 (arXiv 2101.00190); P-Tuning v2, Liu et al. 2021 (arXiv 2110.07602).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from attention import PackedAttention
from lora import check_tensors, read_adapter
from model import Config, Qwen2
from runtime import UsageError, UserError, whole_folder, write_json, write_tensors

# Follows the system prompt in the default text to start from.
INSTRUCTION = "Solve the problem step by step, check every calculation, and end with the final answer."
RANDOM_STD = 0.02  # as the weights of a fresh Qwen2


# ------------------------------------------------------------------------------------------- starts


def start_prefix(model: Qwen2, tokenizer, init: str, length: int, system: str,
                 seed: int = 0) -> Tensor:
    """The tensor [L, 2, P, K, h] that `--prefix-init` asks for, in fp32 on the model's device; P is `length`.

    `text` takes the system prompt and INSTRUCTION, `text:STRING` the string, each repeated or cut to P tokens; `zero`
    and `random` (normal, std RANDOM_STD, from the seed) take no text. Raises UsageError for anything else.
    """
    kind, colon, text = init.partition(":")
    device = model.head_weight.device
    if init == "zero":
        return torch.zeros(_shape(model.config, length), device=device)
    if init == "random":
        generator = torch.Generator().manual_seed(
            seed)  # on the CPU: one seed, one start on every device
        return (RANDOM_STD *
                torch.randn(_shape(model.config, length), generator=generator)).to(device)
    if kind != "text":
        raise UsageError(f"--prefix-init {init}: unknown; use text, text:STRING, zero or random")
    ids = tokenizer.encode(text if colon else f"{system}\n{INSTRUCTION}\n")
    if not ids:
        raise UsageError(
            "--prefix-init text: has no text; give one after the colon, or text alone for the default"
        )
    repeats = -(-length // len(ids))  # rounded up
    return prefix_from_ids(model, (ids * repeats)[:length])


@torch.no_grad()
def prefix_from_ids(model: Qwen2, ids: list[int]) -> Tensor:
    """Keys and values [L, 2, P, K, h] in fp32 that the model computes for the P ids at positions 0..P-1."""
    device = model.head_weight.device
    attention = PackedAttention([len(ids)], device=device)
    kept = []

    def listen(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        kept.append(torch.stack((keys, values)).float())  # [2, P, K, h]; the keys arrive rotated
        return attention(layer, queries, keys, values)

    model(torch.tensor(ids, device=device), attention.positions, listen)
    return torch.stack(kept)  # L × [2, P, K, h] -> [L, 2, P, K, h]


def _shape(config: Config, length: int) -> tuple[int, ...]:
    return config.num_hidden_layers, 2, length, config.num_key_value_heads, config.head_dim


# -------------------------------------------------------------------------------------- what trains


class Prefix(nn.Module):
    """The trainable prefix: calling it gives the tensor [L, 2, P, K, h] in fp32.

    Plain, the tensor itself trains. With `projection` the start stays as it is, and a small vector per position goes
    through an MLP with one Tanh to a correction of all layers at once. The MLP's last layer begins at zero, and so
    training begins at `start` either way. After training only the sum is kept (Li and Liang 2021, section 4.3).
    """

    def __init__(self, start: Tensor, projection: bool = False, seed: int = 0):
        super().__init__()
        start = start.detach().clone().float()
        self.projection = projection
        if not projection:
            self.start = nn.Parameter(start)
            return
        self.register_buffer("start", start)  # saved with the state, not trained
        layers, _, length, heads, head_dim = start.shape
        width = heads * head_dim  # as wide as peft makes it by default
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(length, width, generator=generator))
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, layers * 2 * width)
        nn.init.normal_(self.inner.weight, std=width**-0.5,
                        generator=generator)  # keeps the Tanh out of saturation
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)
        self.to(start.device)

    def forward(self) -> Tensor:
        if not self.projection:
            return self.start
        layers, _, length, heads, head_dim = self.start.shape
        change = self.outer(torch.tanh(self.inner(self.embedding)))  # [P, K·h] -> [P, L·2·K·h]
        change = change.view(length, layers, 2, heads, head_dim).permute(1, 2, 0, 3,
                                                                         4)  # -> [L, 2, P, K, h]
        return self.start + change


# ------------------------------------------------------------------------------------- PEFT's files

PREFIX_READ = {
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    "num_transformer_submodules"
}
# About training alone: what is stored is always the plain prefix, whatever MLP made it.
PREFIX_NEUTRAL = {"encoder_hidden_size", "prefix_projection", "init_weights"}


def save_prefix(folder: Path, prefix: Tensor, base_name: str) -> None:
    """Write a prefix [L, 2, P, K, h] into `folder` as peft opens it. `base_name` is the model it belongs to."""
    layers, _, length, heads, head_dim = prefix.shape
    flat = prefix.float().permute(2, 0, 1, 3, 4).reshape(length,
                                                         -1)  # [P, L, 2, K, h] -> [P, L·2·K·h]
    settings = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",  # without it peft passes over the prefix, and says nothing
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": heads * head_dim,
        "num_attention_heads": heads,  # the key/value heads
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * head_dim,
        "prefix_projection": False,
    }
    with whole_folder(folder) as temporary:
        write_tensors(temporary / "adapter_model.safetensors", {"prompt_embeddings": flat},
                      {"format": "pt"})
        write_json(temporary / "adapter_config.json", settings)


def load_prefix(folder: Path, config: Config) -> Tensor:
    """The prefix [L, 2, P, K, h] in `folder` (ours or peft's), fp32 on the CPU.

    Raises UserError where the files are not whole, ask for what we do not do, or belong to a model of another shape.
    """
    settings, tensors = read_adapter(folder, "PREFIX_TUNING", PREFIX_READ | PREFIX_NEUTRAL)
    path = Path(folder) / "adapter_config.json"
    length = settings.get("num_virtual_tokens")
    if type(length) is not int or length < 1:
        raise UserError(
            f"{path}: num_virtual_tokens is {length!r}; a whole number above 0 is needed")
    layers, _, _, heads, head_dim = _shape(config, length)
    # Each by itself: 12 layers of 4 heads and 24 of 2 make a row of the same width.
    needed = {
        "num_layers": layers,
        "num_attention_heads": heads,
        "token_dim": heads * head_dim,
        "num_transformer_submodules": 1,
    }
    for name, value in needed.items():
        if settings.get(name) != value:
            raise UserError(
                f"{path}: {name} is {settings.get(name)!r}, where this base model needs {value}")
    width = layers * 2 * heads * head_dim
    check_tensors(
        Path(folder) / "adapter_model.safetensors", tensors, {"prompt_embeddings": (length, width)})
    rows = tensors["prompt_embeddings"].float().view(length, layers, 2, heads,
                                                     head_dim)  # [P, L·2·K·h] -> split
    return rows.permute(1, 2, 0, 3, 4).contiguous()  # [P, L, 2, K, h] -> [L, 2, P, K, h]
