"""What the methods share: targets, swapping and merging maps, and the checks of PEFT's folders."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from adapters import (TARGETS, AdaptedLinear, adapted_maps, check_settings, check_tensors,
                      find_targets, merge, read_adapter, save_adapter, short_targets, swap,
                      without_adapters)
from conftest import small_model, some_base, some_examples
from fast import accelerate
from methods import METHODS
from runtime import UserError
from train import summed_loss


class Shifted(AdaptedLinear):
    """y = W x + b + shift."""

    def __init__(self, base):
        super().__init__(base)
        self.shift = nn.Parameter(torch.zeros(base.out_features))

    def forward(self, x):
        return super().forward(x) + self.shift.to(x.dtype)

    def merged(self):
        return self.weight, self.shift if self.bias is None else self.bias + self.shift


def test_targets_are_ends_of_names():
    model = small_model()
    assert len(find_targets(model, TARGETS)) == 14
    names = find_targets(model, ["layers.1.mlp.up_proj", "k_proj"]).keys()
    assert [name.removeprefix("model.layers.") for name in names] == [
        "0.self_attn.k_proj", "1.self_attn.k_proj", "1.mlp.up_proj"]
    assert short_targets(model, find_targets(model, ["k_proj", "up_proj"])) == ["k_proj", "up_proj"]
    (one,) = find_targets(model, ["layers.1.mlp.up_proj"])
    assert short_targets(model, [one]) == [one]


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["proj"], ["self_attn"], [""], []])
def test_unknown_targets_name_the_known(targets):
    with pytest.raises(UserError, match=", ".join(TARGETS)):
        find_targets(small_model(), targets)


@pytest.mark.parametrize("quick", [True, False])
def test_swapping_freezes_and_merging_gives_a_plain_model(quick):
    model = accelerate(small_model()) if quick else small_model()
    maps = find_targets(model, ["k_proj", "down_proj"])
    trainable = swap(model, maps, lambda name, base: Shifted(base))
    assert list(trainable) == [f"{name}.shift" for name in maps]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable.keys()
    assert all(adapted_maps(model)[name].weight is base.weight for name, base in maps.items())
    assert all(adapted_maps(model)[name].product is base.product for name, base in maps.items())
    with torch.no_grad():
        for shift in trainable.values():
            shift.uniform_()
    x, mlp = torch.randn(3, 32), model.model.layers[0].mlp
    before = mlp(x)
    merge(model)
    assert not adapted_maps(model) and mlp.down_proj.bias is not None
    torch.testing.assert_close(mlp(x), before)
    merge(model)  # there is nothing left to merge
    torch.testing.assert_close(mlp(x), before)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.PEFT_TYPE])
def test_without_adapters_the_model_is_the_base(name, quick):
    """Also in the middle of a training, and afterwards the adapters are there again."""
    base, model = (accelerate(small_model()) if quick else small_model() for _ in range(2))
    start = METHODS[name].start
    tuning = start(model, SimpleNamespace(encode=lambda text: [1, 2]), METHODS[name].Flags(), "", 0)
    with torch.no_grad():
        for p in tuning.trainable.values():
            p += 0.1
    examples = some_examples(3)
    with_them = summed_loss(model, examples)[0].item()
    with without_adapters(model):
        assert summed_loss(model, examples)[0].item() == pytest.approx(
            summed_loss(base, examples)[0].item(), rel=1e-6)
    assert summed_loss(model, examples)[0].item() == with_them


def test_a_folder_is_read_back_and_refused_if_it_sets_what_is_unknown(tmp_path):
    save_adapter(tmp_path / "a", {"peft_type": "X", "r": 2}, {"t": torch.ones(2)}, some_base())
    settings, tensors = read_adapter(tmp_path / "a", "X", {"r"})
    assert settings["base_model_name_or_path"] == some_base().name
    assert tensors["t"].tolist() == [1, 1]
    with pytest.raises(UserError, match="adapter_config.json: sets r, which mathft does not "
                                        "support"):
        read_adapter(tmp_path / "a", "X", set())
    with pytest.raises(UserError, match="peft_type is 'X', and 'Y' is expected"):
        read_adapter(tmp_path / "a", "Y", {"r"})
    with pytest.raises(UserError, match="exists and is not empty"):
        save_adapter(tmp_path / "a", {}, {}, some_base())
    path = tmp_path / "a" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_adapter(tmp_path / "a", "X", {"r"})
    path.unlink()
    with pytest.raises(UserError, match="only safetensors adapters are read"):
        read_adapter(tmp_path / "a", "X", {"r"})


def test_checks_name_file_setting_and_need(tmp_path):
    with pytest.raises(UserError, match="c.json: r is 'x'; mathft needs a number"):
        check_settings(tmp_path / "c.json", {"r": "x"}, {"r": (False, "a number")})
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    check_tensors(tmp_path, tensors, {"a": (2,), "b": (3,)})
    for shapes, said in (({"a": (2, )}, "also holds b"), ({"a": (2, ), "b": (3, ),
                                                           "c": (1, )}, "lacks c"), ({
                                                               "a": (2, ), "b": (4, )
                                                           }, r"b is \[3\], not \[4\]")):
        with pytest.raises(UserError, match=said):
            check_tensors(tmp_path, tensors, shapes)
