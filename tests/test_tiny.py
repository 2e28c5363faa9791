"""The embedded model: it opens in transformers, is small, and answers, though seldom rightly."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attention import PackedAttention
from checkpoint import EMBEDDED, TOKENIZER_FILES, find_model, load_model
from data import load_problems
from measure import evaluate
from tokenizer import Tokenizer
from tools.make_tiny import SPECIAL_TOKENS

TINY = find_model("tiny")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY)


@pytest.fixture(scope="module")
def model():
    return load_model(TINY, "cpu", torch.float32, torch.float32)


@pytest.mark.parametrize("name", EMBEDDED)
def test_it_is_below_12_megabytes(name):
    assert sum(file.stat().st_size for file in find_model(name).iterdir()) < 12e6


def test_the_larger_one_has_the_same_tokenizer_and_two_to_three_times_the_parameters(model):
    large = find_model("tiny-large")
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        here, there = TINY / name, large / name
        assert here.exists() == there.exists()
        assert not here.exists() or here.read_bytes() == there.read_bytes()
    sizes = [sum(p.numel() for p in one.parameters())
             for one in (model, load_model(large, "cpu", torch.float32, torch.float32))]
    assert 2 < sizes[1] / sizes[0] < 3


def test_transformers_opens_it_and_computes_the_same(model, tokenizer):
    theirs = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = torch.tensor(tokenizer.prompt(load_problems("mini-gsm", "test", 1)[0].question))
    attention = PackedAttention([len(ids)])
    with torch.no_grad():
        ours = model.logits(model(ids, attention.positions, attention))
        assert torch.allclose(ours, theirs(ids[None]).logits[0], atol=1e-4)


def test_transformers_renders_and_tokenises_the_same_chat(tokenizer):
    theirs = AutoTokenizer.from_pretrained(TINY)
    for problem in load_problems("mini-gsm", "test", 20) + load_problems("mini-math", "test", 20):
        chat = [{"role": "user", "content": problem.question}]
        expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert tokenizer.prompt(problem.question) == expected
        assert theirs.decode(tokenizer.encode(problem.solution)) == problem.solution


def test_digits_stand_alone_and_qwens_special_tokens_are_there(tokenizer):
    assert [tokenizer.show(token) for token in tokenizer.encode("1234")] == list("1234")
    vocabulary = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {token["content"] for token in vocabulary} >= set(SPECIAL_TOKENS)
    assert tokenizer.show(tokenizer.end_id) == "<|im_end|>"


@pytest.mark.parametrize("dataset", ["mini-gsm", "mini-math"])
def test_untouched_it_answers_and_is_seldom_right(model, tokenizer, dataset, tmp_path):
    """What tuning has to bring out is right answers: the form is there already."""
    problems = load_problems(dataset, "test", 100)
    result = evaluate(model, tokenizer, problems, tmp_path, max_new_tokens=256).result
    assert result["ended_with_answer_rate"] >= 0.8
    assert 0.0 < result["accuracy"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method, points", [("sft", 40), ("lora", 40), ("prefix", 30)])
def test_each_method_brings_out_what_it_can_do(method, points, tmp_path):
    """The default runs, one seed each; three seeds stand in the README."""
    from mathft import main

    main(["--method", method, "--output-dir", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 100 * (result["accuracy_after"] - result["accuracy_before"]) >= points
