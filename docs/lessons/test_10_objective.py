"""Lesson 10: an objective that learns which of two solutions is better (DPO, arXiv 2305.18290)."""

import math
from types import SimpleNamespace

import pytest
import torch

import mathft
from model import Config, Qwen2
from runtime import ALONE
from train import log_probs_of_targets

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
             rope_theta=1e4, max_position_embeddings=64, tie_word_embeddings=True)


@pytest.fixture
def dpo():
    import dpo

    return dpo


def small() -> Qwen2:
    model = Qwen2(Config(**SIZES))
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = 0.15 * torch.randn(p.shape, generator=generator) + (p.dim() == 1)
    return model


def pair(dpo, reference: float = 0.0):
    """A right and a wrong document of unlike lengths; the last tokens are targets."""
    from data import Example

    right = Example([5, 9, 11, 3, 8], [False, False, False, True, True])
    wrong = Example([5, 9, 11, 7, 2, 6, 1], [False] * 3 + [True] * 4)
    return dpo.Pair([*right.ids, *wrong.ids], [*right.is_target, *wrong.is_target], right=right,
                    wrong=wrong, reference=reference)


def test_the_loss_is_the_papers(dpo):
    """- log σ(β ((log π(right) - log π(wrong)) - reference)), summed over pairs."""
    model, one = small(), pair(dpo, 0.7)
    with torch.no_grad():
        right, wrong = (log_probs_of_targets(model, [part]).sum().item()
                        for part in (one.right, one.wrong))
        total, count = dpo.preference_loss(model, [one, pair(dpo)], None, beta=0.5)
    expected = sum(math.log1p(math.exp(-0.5 * (right - wrong - r))) for r in (0.7, 0.0))
    assert count == 2 and total.item() == pytest.approx(expected, rel=1e-5)


def test_at_the_start_the_loss_is_that_of_a_coin(dpo, tmp_path):
    """The reference is the model as the run begins, also for one that goes on."""
    model = small()
    args = SimpleNamespace(batch_size=1, seed=0, micro_batch_tokens=64)
    tuning = SimpleNamespace(prefix=None)
    steps = dpo.OBJECTIVE.begin(model, None, tuning, [pair(dpo)], args, dpo.Flags(), tmp_path,
                                ALONE)
    total, count = steps.loss(model, steps.batch_at(0), None)
    assert total.item() / count == pytest.approx(math.log(2), rel=1e-5)
    total.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_it_is_an_objective_like_the_others(dpo):
    assert mathft.OBJECTIVES["dpo"]() is dpo.OBJECTIVE
    assert dpo.Flags().beta > 0 and dpo.OBJECTIVE.read is not None
