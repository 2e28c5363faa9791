"""The network against transformers' own, in fp32, and documents in one row against each alone."""

import pytest
import torch

from attention import PackedAttention
from checkpoint import load_model
from conftest import reference_model
from model import Config, Qwen2

SHAPES = {
    "0.5B: tied, K = 2": dict(hidden_size=56, num_attention_heads=14, num_key_value_heads=2),
    "7B: untied, K = 4": dict(hidden_size=56, num_attention_heads=28, num_key_value_heads=4,
                              tie_word_embeddings=False),
    "K = H": dict(num_attention_heads=6, num_key_value_heads=6),
    "K = 1": dict(num_attention_heads=6, num_key_value_heads=1),
    "Math: theta 10000, larger eps": dict(
        rope_parameters={"rope_theta": 10000, "rope_type": "default"}, rms_norm_eps=1e-5),
    "a head size of its own": dict(head_dim=16),
}


def documents(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(320, (length,), generator=generator) for length in lengths]


def our_logits(model, docs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each document, all of them computed in one row."""
    lengths = [len(doc) for doc in docs]
    attention = PackedAttention(lengths)
    with torch.no_grad():
        logits = model.logits(model(torch.cat(docs), attention.positions, attention))
    return list(logits.split(lengths))


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "fast"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_transformers(changes, plain, tmp_path):
    theirs = reference_model(**changes)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, "cpu", torch.float32, torch.float32, plain)
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    docs = documents(23, 1, 100)  # of three lengths, in one row here, alone there
    for doc, logits in zip(docs, our_logits(ours, docs)):
        with torch.no_grad():
            expected = theirs(doc[None]).logits[0]
        assert expected.std() > 0.5  # else equality would say little
        assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "layers, hidden, heads, kv_heads, inner, vocab, tied, parameters, tensors",
    [
        (24, 896, 14, 2, 4864, 151936, True, 494_032_768, 290),
        (28, 1536, 12, 2, 8960, 151936, True, 1_543_714_304, 338),
        (36, 2048, 16, 2, 11008, 151936, True, 3_085_938_688, 434),
        (28, 3584, 28, 4, 18944, 152064, False, 7_615_616_512, 339),
    ],
    ids=["0.5B", "1.5B", "3B", "7B"],
)
def test_the_published_sizes(layers, hidden, heads, kv_heads, inner, vocab, tied, parameters,
                             tensors):
    """Parameters and tensors of the real checkpoints, counted on the meta device, where they take
    no memory.
    """
    config = Config(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner,
                    num_hidden_layers=layers, num_attention_heads=heads,
                    num_key_value_heads=kv_heads, head_dim=hidden // heads, rms_norm_eps=1e-6,
                    rope_theta=1e6, max_position_embeddings=32768, tie_word_embeddings=tied,
                    )  # fmt: skip
    with torch.device("meta"):
        state = Qwen2(config).state_dict()
    assert len(state) == tensors and sum(tensor.numel() for tensor in state.values()) == parameters


def test_the_last_layer_computes_what_is_wanted(tiny_folder):
    """Hidden states of some tokens, and gradients, are those among all; none at all is allowed."""
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32, plain=True)
    row, attention = torch.cat(documents(5, 9)), PackedAttention([5, 9])
    wanted = torch.tensor([13, 2, 7])
    some = model(row, attention.positions, attention, wanted)
    some.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    every = model(row, attention.positions, attention)
    torch.testing.assert_close(some, every[wanted])
    every[wanted].square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0,
                                   atol=1e-5 * parameter.grad.abs().max().item())
    nothing = model(row, attention.positions, attention, slice(0))
    assert nothing.shape == (0, model.config.hidden_size)


def test_a_token_sees_nothing_behind_it(tiny_folder):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    doc, changed = documents(20)[0], documents(20)[0].clone()
    changed[12:] = 7
    before, after = our_logits(model, [doc])[0], our_logits(model, [changed])[0]
    torch.testing.assert_close(before[:12], after[:12], atol=1e-5, rtol=0)
    assert not torch.allclose(before[12], after[12])


def test_bf16_products_stay_near_fp32(tiny_folder):
    docs = documents(40)
    exact = our_logits(load_model(tiny_folder, "cpu", torch.float32, torch.float32), docs)[0]
    for weight_dtype in (torch.bfloat16, torch.float32):  # frozen weights, and weights that train
        model = load_model(tiny_folder, "cpu", torch.bfloat16, weight_dtype)
        rough = our_logits(model, docs)[0]
        assert rough.dtype == torch.bfloat16 and model.head_weight.dtype == weight_dtype
        assert (rough.float() - exact).abs().mean() < 0.05 * exact.std()


def test_a_tied_model_has_one_matrix_for_both_ends(tiny_folder):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    assert model.head_weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in model.state_dict()
