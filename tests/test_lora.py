"""LoRA law by law: what an adapter may change, what it must leave alone, and what its files mean to peft."""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from attention import PackedAttention
from lora import TARGETS, LoRALinear, add_lora, load_lora, merge_lora, save_lora, unmerge_lora
from model import Config, Qwen2
from runtime import UserError

IDS = torch.arange(20) * 7 % 97  # one document of 20 tokens


def make_models(tied: bool = True) -> tuple[Qwen2ForCausalLM, Qwen2]:
    """The same small random model (D 64, H 4, K 2, L 2, V 97) in transformers and in ours."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                 rms_norm_eps=1e-6, tie_word_embeddings=tied)  # fmt: skip
    theirs = Qwen2ForCausalLM(
        Qwen2Config(**sizes, rope_parameters={"rope_theta": 1e4, "rope_type": "default"})).eval()
    for bias in (p for name, p in theirs.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(
            bias, std=0.1)  # transformers starts them at zero, where a mistake would hide
    ours = Qwen2(Config(**sizes, head_dim=16, rope_theta=1e4))
    state = {
        name: tensor.clone()
        for name, tensor in theirs.state_dict().items() if not (tied and "lm_head" in name)
    }
    ours.load_state_dict(state)
    return theirs, ours


def make_model(**settings) -> Qwen2:
    """Our small model with an adapter whose B is no longer zero, as after some training."""
    model = make_models()[1]
    add_lora(model, **{"rank": 4, "alpha": 8, **settings})
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B, std=0.1)
    return model


def logits(model: Qwen2) -> torch.Tensor:
    attention = PackedAttention([len(IDS)])
    with torch.no_grad():
        return model.logits(model(IDS, attention.positions, attention))


def peft_logits(theirs, folder) -> torch.Tensor:
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(theirs, folder).eval()(IDS[None]).logits[0]


def base_weights(model: Qwen2) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items() if "lora_" not in name
    }


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -------------------------------------------------------------------------------------- the algebra


def test_no_effect_at_the_start():
    model = make_models()[1]
    before = logits(model)
    add_lora(model, rank=4, alpha=8)
    assert torch.equal(logits(model), before)


def test_the_base_keeps_its_names_and_shares_its_storage():
    model = make_models()[1]
    names, weight = set(model.state_dict()), model.model.layers[0].self_attn.q_proj.weight
    add_lora(model, rank=4, alpha=8)
    assert names < set(model.state_dict())
    assert model.model.layers[
        0].self_attn.q_proj.weight is weight  # no copy: a 7B base stands in memory once


def test_a_step_moves_the_adapter_and_leaves_the_base_untouched():
    model = make_models()[1]
    trainable = add_lora(model, rank=4, alpha=8)
    assert set(trainable) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    before, start = base_weights(model), {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    attention = PackedAttention([len(IDS)])
    for _ in range(2):  # B is zero at first, and so A has no gradient before the second step
        loss = torch.nn.functional.cross_entropy(
            model.logits(model(IDS, attention.positions, attention))[:-1], IDS[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert equal(base_weights(model), before)
    assert not any(torch.equal(p, start[name]) for name, p in trainable.items())


def test_a_trained_linear_map_is_w_plus_delta_w():
    layer = make_model().model.layers[1].mlp.up_proj
    x = torch.randn(5, 64)
    delta = (8 / 4) * layer.lora_B @ layer.lora_A  # ΔW = (α/r) B A
    torch.testing.assert_close(layer(x), x @ (layer.weight + delta).T, atol=1e-5, rtol=1e-5)


def test_merging_changes_the_weights_and_not_the_logits():
    model = make_model()
    before, layer = logits(model), model.model.layers[0].self_attn.q_proj
    expected = layer.weight + layer.scale * layer.lora_B @ layer.lora_A
    merge_lora(model)
    assert torch.equal(layer.weight, expected)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_merging_twice_is_merging_once():
    model = make_model()
    merge_lora(model)
    once = base_weights(model)
    merge_lora(model)
    assert equal(base_weights(model), once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_restores_bit_for_bit(dtype):
    model = make_model()
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data.to(dtype)
    weights, before = base_weights(model), logits(model)
    for _ in range(3):
        merge_lora(model)
        assert not equal(base_weights(model), weights)
        unmerge_lora(model)
    assert equal(base_weights(model), weights)
    assert torch.equal(logits(model), before)
    unmerge_lora(model)  # nothing is merged, nothing happens
    assert equal(base_weights(model), weights)


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once():
    model = make_models()[1].to(torch.bfloat16)
    add_lora(model, rank=4, alpha=8)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == torch.bfloat16 and layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    torch.nn.init.normal_(layer.lora_B)
    expected = (layer.weight.float() + layer.scale * layer.lora_B @ layer.lora_A).to(torch.bfloat16)
    merge_lora(model)
    assert torch.equal(layer.weight, expected)


def test_what_trains_is_cast_when_used():
    layer = make_model().model.layers[0].mlp.up_proj
    y = layer(torch.randn(3, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32 and layer.weight.grad is None


def test_a_is_kaiming_uniform_from_the_seed_and_b_is_zero():
    first, same, other = make_models()[1], make_models()[1], make_models()[1]
    for model, seed in ((first, 3), (same, 3), (other, 4)):
        torch.manual_seed(seed * 100)  # the global generator has no say
        add_lora(model, rank=64, alpha=8, seed=seed)
    a, b = (getattr(first.model.layers[0].mlp.down_proj, name) for name in ("lora_A", "lora_B"))
    assert a.shape == (64, 96) and b.shape == (64, 64) and not b.any()
    # Kaiming-uniform with a = √5: bound = √(6 / ((1 + 5) · in)) = 1/√in, of which a uniform fills all.
    assert 0.99 / math.sqrt(96) < a.abs().max() <= 1 / math.sqrt(96)
    assert abs(a.mean()) < 0.01
    assert torch.equal(a, same.model.layers[0].mlp.down_proj.lora_A)
    assert not torch.equal(a, other.model.layers[0].mlp.down_proj.lora_A)
    assert not torch.equal(a, first.model.layers[1].mlp.down_proj.lora_A)


def test_rslora_scales_by_the_root_of_the_rank():
    assert make_model(rank=16, alpha=8).model.layers[0].mlp.up_proj.scale == 8 / 16
    assert make_model(rank=16, alpha=8, rslora=True).model.layers[0].mlp.up_proj.scale == 8 / 4


# -------------------------------------------------------------------------------------- the targets


def test_targets_are_chosen_by_name():
    model = make_models()[1]
    trainable = add_lora(model, rank=2, alpha=4, targets=["v_proj", "layers.1.mlp.up_proj"])
    modules = {name.removeprefix("model.layers.").rpartition(".")[0] for name in trainable}
    assert modules == {"0.self_attn.v_proj", "1.self_attn.v_proj", "1.mlp.up_proj"}


def test_all_seven_maps_by_default_count_as_published():
    config = Config(151936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32768,
                    True)  # the 0.5B shape, without its memory
    with torch.device("meta"):
        model = Qwen2(config)
    assert sum(p.numel() for p in add_lora(model, rank=16, alpha=32).values()) == 8_798_208


@pytest.mark.parametrize(
    "targets", [["q_proj", "lm_head"], ["proj"], ["self_attn"], ["embed_tokens"], [""], []])
def test_an_unknown_target_is_an_error_that_names_the_known(targets):
    model = make_models()[1]
    with pytest.raises(UserError, match=", ".join(TARGETS)):
        add_lora(model, rank=4, alpha=8, targets=targets)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "settings", [{}, {"targets": ["q_proj", "down_proj"]}, {"rslora": True, "rank": 8},
                 {"targets": ["layers.1.mlp.up_proj"]}], ids=["all", "two", "rslora", "one layer"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_our_adapter_opens_in_peft(tmp_path, settings, tied):
    theirs, ours = make_models(tied)
    add_lora(ours, **{"rank": 4, "alpha": 8, **settings})
    for name, parameter in ours.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(tmp_path, ours, "some/base")
    before = theirs(IDS[None]).logits[0]
    assert (logits(ours) - before).abs().max() > 1e-2  # the adapter does something
    assert (logits(ours) - peft_logits(theirs, tmp_path)).abs().max() < 1e-5


def test_the_settings_on_disk(tmp_path):
    save_lora(tmp_path, make_model(), "some/base")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(TARGETS)
    assert (settings["r"], settings["lora_alpha"],
            settings["base_model_name_or_path"]) == (4, 8, "some/base")
    assert all(tensor.dtype == torch.float32
               for tensor in load_file(tmp_path / "adapter_model.safetensors").values())


def test_rslora_is_exported_as_plain_alpha_times_root_of_r(tmp_path):
    save_lora(tmp_path, make_model(rank=8, alpha=8, rslora=True), "some/base")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["use_rslora"] is False
    assert settings["lora_alpha"] == pytest.approx(8 * math.sqrt(8))


@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_adapter_of_peft_opens_here(tmp_path, rslora, targets):
    theirs, ours = make_models()
    settings = peft.LoraConfig(r=8, lora_alpha=12, target_modules=targets, use_rslora=rslora,
                               init_lora_weights=False)
    peft.get_peft_model(theirs, settings).save_pretrained(tmp_path)  # init False: B random as well
    load_lora(tmp_path, ours)
    assert (logits(ours) - logits(make_models()[1])).abs().max() > 1e-2
    assert (logits(ours) - peft_logits(make_models()[0], tmp_path)).abs().max() < 1e-5


def test_saved_loaded_and_saved_again_is_the_same(tmp_path):
    model, other = make_model(rslora=True), make_models()[1]
    save_lora(tmp_path / "a", model, "some/base")
    trainable = load_lora(tmp_path / "a", other)
    assert torch.equal(logits(model), logits(other))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trainable.values())
    merge_lora(other)  # a merged model still knows its adapter
    save_lora(tmp_path / "b", other, "some/base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


BAD_SETTINGS = {
    "another kind": ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING'"),
    "no rank": ({"r": None}, "r is None"),
    "another rank": ({"r": 8}, r"is \[4, 64\], not \[8, 64\]"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None"),
    "an endless alpha": ({"lora_alpha": math.inf}, "lora_alpha is inf"),
    "rsLoRA, or not": ({"use_rslora": "no"}, "use_rslora is 'no'"),
    "no targets": ({"target_modules": None}, "target_modules is None"),
    "a pattern": ({"target_modules": ".*q_proj"}, "target_modules is"),
    "an unknown target": ({"target_modules": ["lm_head"]}, "unknown LoRA target lm_head"),
    "fewer targets than tensors": ({"target_modules": ["q_proj"]}, "also holds"),
    "DoRA": ({"use_dora": True}, "sets use_dora"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
    "ranks by name": ({"rank_pattern": {"q_proj": 2}}, "sets rank_pattern"),
    "alphas by name": ({"alpha_pattern": {"q_proj": 2}}, "sets alpha_pattern"),
    "some layers": ({"layers_to_transform": [0]}, "sets layers_to_transform"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "what a later peft may bring": ({"use_something_new": True}, "sets use_something_new"),
}


@pytest.mark.parametrize("change, message", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_we_cannot_follow_are_refused(tmp_path, change, message):
    save_lora(tmp_path, make_model(), "some/base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuse(tmp_path, message)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    save_lora(tmp_path, make_model(), "some/base")
    path = tmp_path / "adapter_model.safetensors"
    whole, key = load_file(path), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: tensor for name, tensor in whole.items() if name != key}, path)
    refuse(tmp_path, f"lacks {key}")
    save_file({**whole, "lm_head.weight": torch.zeros(1)}, path)
    refuse(tmp_path, "also holds lm_head.weight")
    save_file({**whole, key: torch.zeros(4, 128)}, path)  # made for a wider base
    refuse(tmp_path, r"q_proj.lora_A.weight is \[4, 128\], not \[4, 64\]")


def test_missing_and_cut_files_are_refused(tmp_path):
    refuse(tmp_path, "adapter_config.json: no such file")
    save_lora(tmp_path, make_model(), "some/base")
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(tmp_path, "not a whole safetensors file")
    path.unlink()
    refuse(tmp_path, "adapter_model.safetensors: no such file")


def refuse(folder, message: str) -> None:
    """Loading fails with one line that names the file, and leaves the model as it was."""
    model = make_models()[1]
    before = logits(model)
    with pytest.raises(UserError, match=message) as error:
        load_lora(folder, model)
    assert str(error.value).startswith(f"{folder}/adapter_") and "\n" not in str(error.value)
    assert torch.equal(logits(model), before)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
