"""(IA)³: three vectors a layer, their algebra, and peft's files both ways."""

import json

import peft
import pytest
import torch

import ia3
from adapters import adapted_maps, merge
from attention import PackedAttention
from conftest import model_pair, some_base

IDS = torch.arange(20) * 7 % 97  # one document of 20 tokens


def logits(model) -> torch.Tensor:
    attention = PackedAttention([len(IDS)])
    with torch.no_grad():
        return model.logits(model(IDS, attention.positions, attention))


def trained():
    """Our small model and what trains, moved away from one."""
    model = model_pair()[1]
    tuning = ia3.start(model, None, ia3.Flags(), "", 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for vector in tuning.trainable.values():
            vector.uniform_(0.5, 1.5)
    return model, tuning


def test_it_starts_from_the_untouched_model_with_three_vectors_a_layer():
    model = model_pair()[1]
    before = logits(model)
    tuning = ia3.start(model, None, ia3.Flags(), "", 0)
    assert torch.equal(logits(model), before)
    assert sum(p.numel() for p in tuning.trainable.values()) == 2 * (32 + 32 + 96)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == tuning.trainable.keys() and len(trains) == 6


def test_the_algebra():
    layer = trained()[0].model.layers[1]
    key, down, x = layer.self_attn.k_proj, layer.mlp.down_proj, torch.randn(5, 64)
    torch.testing.assert_close(key(x), key.ia3_l[:, 0] * (x @ key.weight.T + key.bias))
    wide = torch.randn(5, 96)
    torch.testing.assert_close(down(wide), (wide * down.ia3_l[0]) @ down.weight.T)


def test_merging_leaves_plain_maps_and_the_same_logits():
    model, _ = trained()
    before = logits(model)
    merge(model)
    assert not adapted_maps(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_our_vectors_open_in_peft(tmp_path):
    model, tuning = trained()
    ia3.save(tmp_path, model, tuning, some_base())
    theirs = model_pair()[0]
    before = theirs(IDS[None]).logits[0]
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert (logits(model) - before).abs().max() > 1e-2
    assert (logits(model) - opened(IDS[None]).logits[0]).abs().max() < 1e-5


@pytest.mark.parametrize("targets, inner", [
    (None, None), (["k_proj", "q_proj"], []),
    (r".*\.1\..*(k|down)_proj", r".*\.1\..*down_proj")])
def test_vectors_of_peft_open_here(tmp_path, targets, inner):
    theirs, ours = model_pair()
    settings = peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets,
                              feedforward_modules=inner, init_ia3_weights=False)
    made = peft.get_peft_model(theirs, settings).eval()
    made.save_pretrained(tmp_path)
    expected = made(IDS[None]).logits[0]
    ia3.load(tmp_path, ours, ia3.Flags())
    assert (logits(ours) - logits(model_pair()[1])).abs().max() > 1e-2
    assert (logits(ours) - expected).abs().max() < 1e-5


def test_what_stands_on_disk(tmp_path):
    model, tuning = trained()
    ia3.save(tmp_path, model, tuning, some_base())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["down_proj", "k_proj", "v_proj"]
    assert settings["feedforward_modules"] == ["down_proj"]
