"""Full tuning: everything trains, in fp32, and the result is a model that transformers opens."""

import torch
from transformers import AutoModelForCausalLM

import sft
from adapters import Base, Tuning
from checkpoint import load_model
from tokenizer import Tokenizer


def test_everything_trains_and_matrices_decay(tiny_folder):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    tuning = sft.start(model, None, sft.Flags(weight_decay=0.5), "", 0)
    assert tuning.trainable.keys() == dict(model.named_parameters()).keys()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in tuning.trainable.values())
    assert tuning.weight_decay == 0.5 and tuning.prefix is None and not tuning.rate_factors


def test_the_result_opens_in_transformers(tiny_folder, tmp_path):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    base = Base(str(tiny_folder), Tokenizer(tiny_folder), "Be exact.")
    sft.save(tmp_path / "model", model, Tuning({}), base)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ours = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, ours[name]), name


def test_merging_does_nothing(tiny_folder):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sft.merge(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
