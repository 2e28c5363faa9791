"""What several tests share: a small tokenizer of Qwen's kind, and small random models made by transformers."""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes in: small products only wait for a second thread

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# The template as Qwen2.5-Instruct renders a chat without tools; SYSTEM stands for the checkpoint's default.
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first)"
    " or (message.role == 'assistant') %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# How Qwen2.5 cuts text before byte-pair encoding: words, single digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["system\nYou are a helpful assistant.", "user\nWhat is 12 + 34?", "assistant\nThe answer is 46.\n\n#### 46"]


def write_tokenizer(folder: Path, template: str = TEMPLATE.replace("SYSTEM", DEFAULT_SYSTEM)) -> Path:
    """A byte-pair tokenizer with Qwen's cuts, normal form and special tokens, trained on three lines of text."""
    fast = Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(TEXTS * 3, trainer)
    fast.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def reference_model(**changes):
    """A Qwen2 of transformers in fp32, small, every number of it random; `changes` are settings of its config."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = dict(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(Qwen2Config(**{**settings, **changes})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1, where a mistake would not show
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A folder with the small tokenizer alone. Shared by all tests: read it, do not write there."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A whole checkpoint, small and random, as transformers 5 saves it. Shared by all tests: read only."""
    folder = write_tokenizer(tmp_path_factory.mktemp("checkpoint"))
    reference_model().save_pretrained(folder)
    return folder
