"""Lesson 8: a method that trains the biases alone (BitFit, arXiv 2106.10199)."""

import torch

from methods import METHODS
from model import Config, Qwen2

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
             rope_theta=1e4, max_position_embeddings=64, tie_word_embeddings=True)


def test_it_stands_in_the_table_with_a_learning_rate():
    method = METHODS["bitfit"]
    assert method.PEFT_TYPE is None  # peft has no such file: the result is a whole model
    assert all(method.DEFAULTS[size]["learning_rate"] > 0 for size in ("tiny", "real"))


def test_biases_train_and_nothing_else():
    method, model = METHODS["bitfit"], Qwen2(Config(**SIZES))
    tuning = method.start(model, None, method.Flags(), "", 0)
    assert tuning.trainable.keys() == {
        f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in (0, 1) for name in "qkv"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == (
        tuning.trainable.keys())
    assert all(p.dtype == torch.float32 for p in tuning.trainable.values())
