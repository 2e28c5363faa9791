"""LoRA law by law: what an adapter may change, what it must leave alone, and what its files mean to
peft.
"""

import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import lora
from adapters import TARGETS, Tuning, adapted_maps, merge
from attention import PackedAttention
from conftest import model_pair, some_base
from lora import VARIANTS, Flags, LoRALinear, add_lora
from model import Config, Qwen2
from runtime import UserError
from train import TrainSettings, make_optimizer, update

FLAGS = Flags()


def save_lora(folder, model, base) -> None:
    """Write the adapter of a model, whatever trains of it."""
    names = ("lora_A", "lora_B", "lora_magnitude_vector")
    found = {name: p for name, p in model.named_parameters() if name.endswith(names)}
    lora.save(folder, model, Tuning(found), base)


def load_lora(folder, model) -> dict[str, torch.nn.Parameter]:
    return lora.load(folder, model, FLAGS).trainable


IDS = torch.arange(20) * 7 % 97  # one document of 20 tokens


def make_model(**settings) -> Qwen2:
    """Our small model with an adapter whose B is no longer zero, as after some training."""
    model = model_pair()[1]
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
    model = model_pair()[1]
    before = logits(model)
    add_lora(model, rank=4, alpha=8)
    assert torch.equal(logits(model), before)


def test_the_base_keeps_its_names_and_shares_its_storage():
    model = model_pair()[1]
    names, weight = set(model.state_dict()), model.model.layers[0].self_attn.q_proj.weight
    add_lora(model, rank=4, alpha=8)
    assert names < set(model.state_dict())
    assert model.model.layers[
        0].self_attn.q_proj.weight is weight  # no copy: a 7B base stands in memory once


def test_a_step_moves_the_adapter_and_leaves_the_base_untouched():
    model = model_pair()[1]
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_gives_plain_maps_and_the_same_logits(variant):
    model = make_model(variant=variant)
    before = logits(model)
    merge(model)
    assert not adapted_maps(model) and not any("lora" in name for name in model.state_dict())
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_merging_twice_is_merging_once():
    model = make_model()
    merge(model)
    once = base_weights(model)
    merge(model)
    assert equal(base_weights(model), once)


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once():
    model = model_pair()[1].to(torch.bfloat16)
    add_lora(model, rank=4, alpha=8)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == torch.bfloat16
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    torch.nn.init.normal_(layer.lora_B)
    expected = (layer.weight.float() + layer.scale * layer.lora_B @ layer.lora_A).bfloat16()
    merge(model)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, expected)


def test_what_trains_is_cast_when_used():
    layer = make_model().model.layers[0].mlp.up_proj
    y = layer(torch.randn(3, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32 and layer.weight.grad is None


def test_a_is_kaiming_uniform_from_the_seed_and_b_is_zero():
    first, same, other = model_pair()[1], model_pair()[1], model_pair()[1]
    for model, seed in ((first, 3), (same, 3), (other, 4)):
        torch.manual_seed(seed * 100)  # the global generator has no say
        add_lora(model, rank=64, alpha=8, seed=seed)
    a, b = (getattr(first.model.layers[0].mlp.down_proj, name) for name in ("lora_A", "lora_B"))
    assert a.shape == (64, 96) and b.shape == (64, 64) and not b.any()
    # Kaiming-uniform with a = √5: bound = √(6 / ((1 + 5) · in)) = 1/√in, of which a uniform fills
    # all.
    assert 0.99 / math.sqrt(96) < a.abs().max() <= 1 / math.sqrt(96)
    assert abs(a.mean()) < 0.01
    assert torch.equal(a, same.model.layers[0].mlp.down_proj.lora_A)
    assert not torch.equal(a, other.model.layers[0].mlp.down_proj.lora_A)
    assert not torch.equal(a, first.model.layers[1].mlp.down_proj.lora_A)


def test_rslora_scales_by_the_root_of_the_rank():
    assert make_model(rank=16, alpha=8).model.layers[0].mlp.up_proj.scale == 8 / 16
    assert make_model(rank=16, alpha=8, variant="rslora").model.layers[0].mlp.up_proj.scale == 8 / 4


# ----------------------------------------------------------------------------------- DoRA and LoRA+


def test_dora_keeps_directions_and_trains_lengths():
    """W' = m · (W + s B A) / ‖W + s B A‖, row by row; the lengths come without that matrix."""
    layer = make_model(variant="dora").model.layers[1].self_attn.q_proj  # with a bias
    torch.nn.init.uniform_(layer.lora_magnitude_vector, 0.5, 2.0)
    changed = layer.weight + layer.scale * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.lengths(), changed.norm(dim=1), atol=1e-5, rtol=1e-5)
    x = torch.randn(5, 64)
    expected = x @ (layer.lora_magnitude_vector[:, None] *
                    F.normalize(changed, dim=1)).T + layer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_dora_has_pefts_gradients(tmp_path):
    """The length is taken for a constant there too."""
    theirs, ours = model_pair()[0], make_model(variant="dora")
    save_lora(tmp_path, ours, some_base())
    settings = peft.PeftConfig.from_pretrained(tmp_path)
    settings.inference_mode = False
    made = peft.get_peft_model(theirs, settings)
    peft.set_peft_model_state_dict(made, peft.load_peft_weights(tmp_path, "cpu"))
    made(IDS[None]).logits[0].square().mean().backward()
    attention = PackedAttention([len(IDS)])
    model_logits = ours.logits(ours(IDS, attention.positions, attention))
    model_logits.square().mean().backward()
    found = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    layer = ours.model.layers[1].mlp.down_proj
    stem = "base_model.model.model.layers.1.mlp.down_proj."
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        expected = found[f"{stem}{part}.default.weight"]
        torch.testing.assert_close(getattr(layer, part).grad, expected, atol=1e-5, rtol=1e-4)


def test_lora_plus_is_a_factor_of_bs_learning_rate():
    model = model_pair()[1]
    tuning = lora.start(model, None, Flags(lora_rank=2, lora_plus=16.0), "", 0)
    assert {name.rpartition(".")[2] for name in tuning.rate_factors} == {"lora_B"}
    optimizer = make_optimizer(tuning.trainable, TrainSettings(1, 1e-3), tuning.rate_factors)
    before = {name: p.detach().clone() for name, p in tuning.trainable.items()}
    for p in tuning.trainable.values():
        p.grad = torch.ones_like(p)
    update(optimizer, 1e-3)  # the first step of AdamW is as long as the learning rate
    for name, p in tuning.trainable.items():
        moved = (p - before[name]).abs().mean().item()
        assert moved == pytest.approx(16e-3 if name.endswith("lora_B") else 1e-3, rel=1e-3)


# -------------------------------------------------------------------------------------- the targets


def test_blanks_between_the_names_of_the_targets_change_nothing():
    maps = {f"layers.0.self_attn.{name}": torch.nn.Linear(8, 4) for name in ("q_proj", "v_proj")}
    wanted = lora.extra_flop(maps, Flags(lora_targets="q_proj,v_proj"))
    assert wanted == 6 * Flags().lora_rank * 2 * (8 + 4)
    assert lora.extra_flop(maps, Flags(lora_targets=" q_proj, v_proj ")) == wanted


def test_targets_are_chosen_by_name():
    model = model_pair()[1]
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
    model = model_pair()[1]
    with pytest.raises(UserError, match=", ".join(TARGETS)):
        add_lora(model, rank=4, alpha=8, targets=targets)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "settings", [{}, {"targets": ["q_proj", "down_proj"]}, {"variant": "rslora", "rank": 8},
                 {"variant": "dora"}, {"targets": ["layers.1.mlp.up_proj"]}],
    ids=["all", "two", "rslora", "dora", "one layer"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_our_adapter_opens_in_peft(tmp_path, settings, tied):
    theirs, ours = model_pair(tied)
    add_lora(ours, **{"rank": 4, "alpha": 8, **settings})
    for name, parameter in ours.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(tmp_path, ours, some_base())
    before = theirs(IDS[None]).logits[0]
    assert (logits(ours) - before).abs().max() > 1e-2  # the adapter does something
    assert (logits(ours) - peft_logits(theirs, tmp_path)).abs().max() < 1e-5


def test_the_settings_on_disk(tmp_path):
    save_lora(tmp_path, make_model(), some_base())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(TARGETS)
    assert (settings["r"], settings["lora_alpha"],
            settings["base_model_name_or_path"]) == (4, 8, some_base().name)
    assert all(tensor.dtype == torch.float32
               for tensor in load_file(tmp_path / "adapter_model.safetensors").values())


def test_rslora_is_exported_as_plain_alpha_times_root_of_r(tmp_path):
    save_lora(tmp_path, make_model(rank=8, alpha=8, variant="rslora"), some_base())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["use_rslora"] is False
    assert settings["lora_alpha"] == pytest.approx(8 * math.sqrt(8))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_adapter_of_peft_opens_here(tmp_path, variant, targets):
    theirs, ours = model_pair()
    settings = peft.LoraConfig(r=8, lora_alpha=12, target_modules=targets,
                               use_rslora=variant == "rslora", use_dora=variant == "dora",
                               init_lora_weights=False)  # B random as well
    made = peft.get_peft_model(theirs, settings)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "magnitude" in name:  # as after some training
                p.mul_(1 + 0.3 * torch.rand_like(p))
    made.save_pretrained(tmp_path)
    load_lora(tmp_path, ours)
    assert (logits(ours) - logits(model_pair()[1])).abs().max() > 1e-2
    assert (logits(ours) - peft_logits(model_pair()[0], tmp_path)).abs().max() < 1e-5


WHERE = {
    "a pattern": {"target_modules": r".*\.self_attn\.(q|v)_proj"},
    "a pattern of one layer": {"target_modules": r"model\.layers\.1\..*(q|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "one layer": {"target_modules": ["k_proj"], "layers_to_transform": 0},
    "layers by their pattern": {"target_modules": ["k_proj"], "layers_to_transform": [1],
                                "layers_pattern": "layers"},
    "excluded": {"target_modules": ["q_proj", "up_proj"],
                 "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "excluded by a pattern": {"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"},
    "ranks and alphas": {"target_modules": ["q_proj", "v_proj", "up_proj"],
                         "rank_pattern": {"q_proj": 2, r"layers\.1.*up_proj": 6},
                         "alpha_pattern": {"layers.0.self_attn.v_proj": 3, "q_proj": 40.5}},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "MiCA": {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
def test_an_adapter_of_peft_opens_wherever_it_stands(tmp_path, where, rslora):
    theirs, ours = model_pair()
    settings = peft.LoraConfig(**{"r": 8, "lora_alpha": 12, "use_rslora": rslora, **where})
    made = peft.get_peft_model(theirs, settings)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_" in name:  # as after some training
                p.normal_(std=0.3)
    made.save_pretrained(tmp_path)
    load_lora(tmp_path, ours)
    assert (logits(ours) - logits(model_pair()[1])).abs().max() > 1e-2
    assert (logits(ours) - peft_logits(model_pair()[0], tmp_path)).abs().max() < 2e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_loaded_and_saved_again_is_the_same(tmp_path, variant):
    model, other = make_model(variant=variant), model_pair()[1]
    save_lora(tmp_path / "a", model, some_base())
    trainable = load_lora(tmp_path / "a", other)
    assert torch.equal(logits(model), logits(other))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trainable.values())
    save_lora(tmp_path / "b", other, some_base())
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


BAD_SETTINGS = {
    "another kind": ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING'"),
    "no rank": ({"r": None}, "r is None"),
    "another rank": ({"r": 8}, r"is \[4, 64\], not \[8, 64\]"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None"),
    "an endless alpha": ({"lora_alpha": math.inf}, "Infinity is no JSON"),
    "rsLoRA, or not": ({"use_rslora": "no"}, "use_rslora is 'no'"),
    "no targets": ({"target_modules": None}, "target_modules is None"),
    "no kind of targets": ({"target_modules": 5}, "target_modules is 5"),
    "targets that are no names": ({"target_modules": [5]}, "target_modules is"),
    "an unknown target": ({"target_modules": ["lm_head"]}, "unknown target lm_head"),
    "fewer targets than tensors": ({"target_modules": ["q_proj"]}, "also holds"),
    "DoRA, or not": ({"use_dora": 1.5}, "use_dora is 1.5"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
    "another rank by name": ({"r": 3, "rank_pattern": {"q_proj": 2}}, r"is \[4, 64\], not"),
    "no ranks by name": ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern is"),
    "alphas by a pattern": ({"alpha_pattern": {"(a+)+": 2}}, "alpha_pattern is"),
    "no alphas by name": ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern is"),
    "some layers, tensors of all": ({"layers_to_transform": [0]}, "also holds"),
    "layers that are no numbers": ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
    "excluded, and yet there": ({"exclude_modules": ["q_proj"]}, "also holds"),
    "no kind of excluded": ({"exclude_modules": 5}, "exclude_modules is 5"),
    "PiSSA, in steps": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_nit"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "what a later peft may bring": ({"use_something_new": True}, "sets use_something_new"),
}


@pytest.mark.parametrize("change, message", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_we_cannot_follow_are_refused(tmp_path, change, message):
    save_lora(tmp_path, make_model(), some_base())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuse(tmp_path, message)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    save_lora(tmp_path, make_model(), some_base())
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
    save_lora(tmp_path, make_model(), some_base())
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(tmp_path, "not a whole safetensors file")
    path.unlink()
    refuse(tmp_path, "adapter_model.safetensors: no such file")


def refuse(folder, message: str) -> None:
    """Loading fails with one line that names the file, and leaves the model as it was."""
    model = model_pair()[1]
    before = logits(model)
    with pytest.raises(UserError, match=message) as error:
        load_lora(folder, model)
    assert str(error.value).startswith(f"{folder}/adapter_") and "\n" not in str(error.value)
    assert torch.equal(logits(model), before)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
