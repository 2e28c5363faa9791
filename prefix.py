"""Prefix tuning: P trained keys and values a layer stand before every document; the model is
frozen.

    layer l:   [ k_1 … k_P | keys of the document ]      a query of the document sees both
               [ v_1 … v_P | values ………………………… ]
    positions    0 … P-1     P, P+1, …

    python mathft.py --method prefix              # train one on the embedded model
    python -m pytest tests/test_prefix.py -v      # what a prefix is, shown by equalities

A prefix is one tensor [L, 2, P, K, h] (0 = keys, 1 = values) in fp32. Its keys are stored after
rotation and are never rotated again. `attention.PackedAttention` and the generator take it as an
argument, and the model itself does not know of it.

1. Start: the keys and values that the model computes for a real text at positions 0 … P-1. The
   model then behaves as if that text stood before the prompt. (Random starts train badly.)
2. Train the tensor itself; or, with --prefix-projection, an MLP: its output is added to the start.
3. Store the plain tensor in PEFT's form. It cannot be folded into the weights.

Differs from the papers: the start from a text is Li & Liang's for few data (section 7.4), here the
default. The prefix is start + MLP(embedding), not the MLP alone, so that both ideas go together.

Sources: Li and Liang 2021 (arXiv 2101.00190); P-Tuning v2, Liu et al. 2021 (arXiv 2110.07602).
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters import (Base, Tuning, check_settings, check_tensors, no_extra_flop as extra_flop,
                      read_adapter, save_adapter)
from attention import PackedAttention
from flags import flag
from model import Config, Qwen2
from runtime import UsageError, UserError
from tokenizer import NO_SYSTEM

# Follows the system prompt in the default text to start from.
INSTRUCTION = ("Solve the problem step by step, check every calculation, "
               "and end with the final answer.")
RANDOM_STD = 0.02  # as the weights of a fresh Qwen2

PEFT_TYPE = "PREFIX_TUNING"
DEFAULTS = {"tiny": {"learning_rate": 2e-2}, "real": {"learning_rate": 5e-3}}
PASSES = 2  # over each map: forward, and backward to its input


@dataclass
class Flags:
    """Flags of --method prefix."""

    prefix_length: int = flag(16, "positions P of the prefix", least=1, most=2**16)
    prefix_init: str = flag("text", "start of the prefix: text, text:STRING, zero or random")
    prefix_projection: bool = flag(False, "train an MLP that makes the prefix (Li & Liang 2021)")


# ------------------------------------------------------------------------------------------- starts


def start_prefix(model: Qwen2, tokenizer, init: str, length: int, system: str,
                 seed: int = 0) -> Tensor:
    """The tensor [L, 2, P, K, h] that `--prefix-init` asks for, in fp32 on the model's device; P is
    `length`.

    `text` takes the system prompt and INSTRUCTION, `text:STRING` the string, each repeated or cut
    to P tokens; `zero` and `random` (normal, std RANDOM_STD, from the seed) take no text. Raises
    UsageError for anything else.
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
    if not colon:
        text = f"{INSTRUCTION}\n" if system == NO_SYSTEM else f"{system}\n{INSTRUCTION}\n"
    ids = tokenizer.encode(text)
    if not ids:
        raise UsageError(
            "--prefix-init text: has no text; give one after the colon, or text alone for the "
            "default"
        )
    repeats = -(-length // len(ids))  # rounded up
    return prefix_from_ids(model, (ids * repeats)[:length])


@torch.no_grad()
def prefix_from_ids(model: Qwen2, ids: list[int]) -> Tensor:
    """Keys and values [L, 2, P, K, h] in fp32 that the model computes for the P ids at positions
    0..P-1.
    """
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

    Plain, the tensor itself trains. With `projection` the start stays as it is, and a small vector
    per position goes through an MLP with one Tanh to a correction of all layers at once. The MLP's
    last layer begins at zero, and so training begins at `start` either way. After training only the
    sum is kept (Li and Liang 2021, section 4.3).
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


# -------------------------------------------------------------------------------------- the method

READ = {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
        "num_transformer_submodules"}
# About training alone: what is stored is always the plain prefix, whatever MLP made it.
PASSED_OVER = {"encoder_hidden_size", "prefix_projection", "init_weights"}


def _tuning(model: Qwen2, prefix: Prefix) -> Tuning:
    model.requires_grad_(False)
    return Tuning(dict(prefix.named_parameters()), prefix)


def start(model: Qwen2, tokenizer, flags: Flags, system: str, seed: int) -> Tuning:
    """A prefix before every document; the model is frozen."""
    positions = model.config.max_position_embeddings
    if flags.prefix_length >= positions:
        raise UsageError(f"--prefix-length {flags.prefix_length}: the model has {positions} "
                         "positions, and this leaves none for a text; give a smaller one")
    first = start_prefix(model, tokenizer, flags.prefix_init, flags.prefix_length, system, seed)
    return _tuning(model, Prefix(first, flags.prefix_projection, seed))


def save(folder: Path, model: Qwen2, tuning: Tuning, base: Base) -> None:
    """Write the prefix as peft opens it."""
    prefix = tuning.prefix().detach()
    layers, _, length, heads, head_dim = prefix.shape
    # [L, 2, P, K, h] -> [P, L, 2, K, h] -> [P, L·2·K·h]
    flat = prefix.float().permute(2, 0, 1, 3, 4).reshape(length, -1)
    save_adapter(folder, {
        # with task_type: without it, peft ignores the prefix and says nothing
        "peft_type": PEFT_TYPE,
        "num_virtual_tokens": length,
        "token_dim": heads * head_dim,
        "num_attention_heads": heads,  # the key/value heads
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * head_dim,
        "prefix_projection": False,
    }, {"prompt_embeddings": flat}, base)


def load(folder: Path, model: Qwen2, flags: Flags) -> Tuning:
    """The prefix in `folder` (ours or peft's), ready to train on."""
    return _tuning(model, Prefix(read_prefix(folder, model.config).to(model.head_weight.device)))


def merge(model: Qwen2) -> None:
    """Raise UserError: a prefix is no part of the weights."""
    raise UserError("a prefix stands before the documents and cannot be folded into the model's "
                    "weights; go on with --method prefix, train a LoRA instead, or let peft open "
                    "the run's adapter/")


def read_prefix(folder: Path, config: Config) -> Tensor:
    """The prefix [L, 2, P, K, h] in `folder`, fp32 on the CPU.

    Raises UserError if the files are not whole, ask for what mathft does not do, or belong to a
    model of another shape.
    """
    settings, tensors = read_adapter(folder, PEFT_TYPE, READ | PASSED_OVER)
    length = settings.get("num_virtual_tokens")
    layers, _, _, heads, head_dim = _shape(config, 0)
    # Each by itself: 12 layers of 4 heads and 24 of 2 make a row of the same width.
    needed = {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * head_dim,
              "num_transformer_submodules": 1}
    check_settings(Path(folder) / "adapter_config.json", settings, {
        "num_virtual_tokens": (type(length) is int and length > 0, "a whole number above 0")
    } | {name: (settings.get(name) == n, f"{n} with this base "
                                         f"model") for name, n in needed.items()})
    width = layers * 2 * heads * head_dim
    check_tensors(folder, tensors, {"prompt_embeddings": (length, width)})
    # [P, L·2·K·h] -> [P, L, 2, K, h] -> [L, 2, P, K, h]
    rows = tensors["prompt_embeddings"].float().view(length, layers, 2, heads, head_dim)
    return rows.permute(1, 2, 0, 3, 4).contiguous()
