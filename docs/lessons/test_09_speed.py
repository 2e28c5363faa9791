"""Lesson 9: rotary positions with fewer passes over memory, and the same results."""

import pytest
import torch

import fast
from model import Attention, Config, Qwen2, rotary_table, rotate

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
             rope_theta=1e4, max_position_embeddings=64, tie_word_embeddings=True)


def turned(function, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the gradient of a rotation of [T 7, H 3, h 8]."""
    x = torch.randn(7, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.requires_grad_()
    y = function(x, rotary_table(torch.arange(7), 8, 1e4, dtype))
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_output_and_gradient_are_the_plain_ones(dtype, most):
    for found, plain in zip(turned(fast.turn, dtype), turned(rotate, dtype)):
        torch.testing.assert_close(found, plain, atol=most, rtol=most)


def test_only_an_accelerated_model_uses_it():
    assert Attention.rotate is rotate
    model = Qwen2(Config(**SIZES))
    assert model.model.layers[0].self_attn.rotate is rotate
    assert fast.accelerate(model).model.layers[0].self_attn.rotate is fast.turn


def test_it_allocates_its_output_alone():
    """The plain line makes four products, two sums and their join; this makes one tensor."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            given = {x.untyped_storage().data_ptr() for x in (*args, *(kwargs or {}).values())
                     if isinstance(x, torch.Tensor)}
            result = function(*args, **(kwargs or {}))
            if (isinstance(result, torch.Tensor)
                    and result.untyped_storage().data_ptr() not in given):
                self.made += 1
            return result

    x, table = torch.randn(7, 3, 8), rotary_table(torch.arange(7), 8, 1e4, torch.float32)
    with torch.no_grad(), Count() as plain:
        rotate(x, table)
    with torch.no_grad(), Count() as quick:
        fast.turn(x, table)
    assert quick.made == 1 < plain.made
