"""Lesson 1: the numbers on paper are those of lora.py, and gradients are those of autograd."""

import pytest
import torch

import lora_by_hand as paper
from lora import LoRALinear
from model import Linear


def adapted(b: list) -> LoRALinear:
    base = Linear(3, 2, bias=False)
    base.weight = torch.nn.Parameter(torch.tensor(paper.W), requires_grad=False)
    made = LoRALinear(base, rank=1, alpha=2.0, generator=None)
    made.lora_A.data, made.lora_B.data = torch.tensor(paper.A), torch.tensor(b)
    return made


X = torch.tensor([paper.X])


@pytest.mark.parametrize("b, name", [(paper.B_START, "Y_START"), (paper.B_TRAINED, "Y_TRAINED")])
def test_outputs(b, name):
    assert getattr(paper, name) == pytest.approx(adapted(b)(X)[0].tolist())


def test_the_merged_map():
    assert torch.tensor(paper.W_MERGED).tolist() == adapted(paper.B_TRAINED).merged()[0].tolist()


def test_gradients_at_the_start():
    made = adapted(paper.B_START)
    made(X).backward(torch.tensor([paper.GRAD_Y]))
    assert torch.tensor(paper.GRAD_B_START).tolist() == made.lora_B.grad.tolist()
    assert torch.tensor(paper.GRAD_A_START).tolist() == made.lora_A.grad.tolist()


def test_the_number_of_parameters():
    made = LoRALinear(Linear(896, 4864, bias=False), 16, 32.0, None)
    assert paper.PARAMETERS == made.lora_A.numel() + made.lora_B.numel()
