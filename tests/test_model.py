"""The network against transformers' own, in fp32, and documents in one row against each alone."""

import pytest
import torch
from torch.nn import functional as F

from attention import PackedAttention
from checkpoint import load_model
from conftest import reference_model
from model import FEW_ROWS, MLP, Config, Embedding, Gated, Linear, Normalise, Qwen2

SHAPES = {
    "0.5B: tied, K = 2": dict(hidden_size=56, num_attention_heads=14,
                              num_key_value_heads=2), "7B: untied, K = 4": dict(
                                  hidden_size=56, num_attention_heads=28, num_key_value_heads=4,
                                  tie_word_embeddings=False), "K = H": dict(
                                      num_attention_heads=6, num_key_value_heads=6), "K = 1": dict(
                                          num_attention_heads=6, num_key_value_heads=1),
    "Math: theta 10000, larger eps": dict(
        rope_parameters={"rope_theta": 10000, "rope_type": "default"},
        rms_norm_eps=1e-5), "a head size of its own": dict(head_dim=16),
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


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_transformers(changes, tmp_path):
    theirs = reference_model(**changes)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, "cpu", torch.float32, torch.float32)
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
    """Parameters and tensors of the real checkpoints, counted on the meta device, where they take no memory."""
    config = Config(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner,
                    num_hidden_layers=layers, num_attention_heads=heads,
                    num_key_value_heads=kv_heads, head_dim=hidden // heads, rms_norm_eps=1e-6,
                    rope_theta=1e6, max_position_embeddings=32768, tie_word_embeddings=tied,
                    )  # fmt: skip
    with torch.device("meta"):
        state = Qwen2(config).state_dict()
    assert len(state) == tensors and sum(tensor.numel() for tensor in state.values()) == parameters


@pytest.mark.parametrize(
    "function", [lambda x, y: Normalise.apply(x, y[0], 1e-6), lambda x, y: Gated.apply(x, y)])
def test_the_gradients_written_out_are_right(function):
    """Against differences of the function itself; normalising computes in fp32, hence the wide steps."""
    x, y = (torch.randn(3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(function, (x, y), eps=1e-2, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("narrow", [True, False])
def test_a_weight_in_fp32_times_bf16(narrow):
    """As autograd has it by itself; the weight's gradient stays in bf16 if that is allowed, and is else what it is as fp32."""
    torch.manual_seed(0)
    linear, x = Linear(24, 40), torch.randn(100, 24).bfloat16().requires_grad_()
    weight, y = linear.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    factor = torch.randn(100, 40).bfloat16()
    if narrow:
        linear.weight.grad_dtype = None
    ((ours := linear(x)) * factor).sum().backward()
    ((theirs := F.linear(y, weight.bfloat16()) + linear.bias.bfloat16()) * factor).sum().backward()
    assert ours.equal(theirs) and x.grad.equal(y.grad)
    assert linear.weight.grad.dtype == (torch.bfloat16 if narrow else torch.float32)
    torch.testing.assert_close(linear.weight.grad.float(), weight.grad)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_rows_that_were_read(tied):
    """That of torch's own embedding, rows read twice and a tied head included; a second backward pass adds to it."""
    torch.manual_seed(0)
    ours, theirs = Embedding(9, 4), torch.nn.Embedding(9, 4)
    theirs.load_state_dict(ours.state_dict())
    ids, head = torch.tensor([3, 1, 3, 8]), torch.randn(9, 4)
    for embedding in (ours, theirs):
        for _ in range(2):
            rows = embedding(ids)
            (rows.square().sum() + (tied * embedding.weight * head).sum()).backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert not ours.requires_grad_(False)(ids).requires_grad


def test_the_product_of_gate_and_up_is_not_kept():
    """What stays in memory for the backward pass: x, gate and up, and not the product that the last map multiplies."""
    wide, mlp = 1000, MLP(Config(10, 8, 1000, 1, 1, 1, 8, 1e-6, 1e4, 64, True))
    kept: list[int] = []
    hold = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t,
                                                    lambda t: t)
    for recompute in (True, False):
        with hold:
            mlp(torch.randn(50, 8), recompute).sum()
        assert kept.count(50 * wide) == (2 if recompute else 3)
        kept.clear()
    x, gradients = torch.randn(50, 8), []
    for recompute in (True, False):
        mlp.zero_grad()
        mlp(x, recompute).square().sum().backward()
        gradients.append([parameter.grad for parameter in mlp.parameters()])
    assert all(ours.equal(theirs) for ours, theirs in zip(*gradients))


def test_the_last_layer_computes_what_is_wanted(tiny_folder):
    """The hidden states of some tokens are those among all, and so are the gradients; none at all is allowed."""
    docs = documents(5, 9)
    attention = PackedAttention([5, 9])
    wanted, gradients = torch.tensor([13, 2, 7]), []
    for grad_checkpoint in (False, True):
        model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
        some = model(torch.cat(docs), attention.positions, attention, wanted, grad_checkpoint)
        some.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    model.zero_grad()
    every = model(torch.cat(docs), attention.positions, attention)
    torch.testing.assert_close(some, every[wanted])
    every[wanted].square().sum().backward()
    for parameter, *found in zip(model.parameters(), *gradients):
        for gradient in found:
            torch.testing.assert_close(gradient, parameter.grad, rtol=0,
                                       atol=1e-5 * parameter.grad.abs().max().item())
    assert model(torch.cat(docs), attention.positions, attention,
                 slice(0)).shape == (0, model.config.hidden_size)


def test_few_rows_give_what_many_give():
    """The product that is turned round for decoding, with a bias and without."""
    for bias in (True, False):
        linear, x = Linear(24, 40, bias=bias), torch.randn(200, 24)
        with torch.no_grad():
            assert 32 in FEW_ROWS and 200 not in FEW_ROWS
            torch.testing.assert_close(linear(x[:32]), linear(x)[:32])


def test_a_token_sees_nothing_behind_it(tiny_folder):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    doc, changed = documents(20)[0], documents(20)[0].clone()
    changed[12:] = 7
    before, after = our_logits(model, [doc])[0], our_logits(model, [changed])[0]
    torch.testing.assert_close(before[:12], after[:12], atol=1e-5, rtol=0)
    assert not torch.allclose(before[12], after[12])


@pytest.mark.parametrize("prefix", [None, torch.randn(3, 2, 4, 2, 8)],
                         ids=["plain", "with a prefix"])
def test_gradients_with_checkpointing_are_the_same(tiny_folder, prefix):
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    docs = documents(9, 14)
    gradients = []
    for grad_checkpoint in (False, True):
        model.zero_grad()
        attention = PackedAttention([9, 14], prefix)
        model(torch.cat(docs), attention.positions, attention,
              grad_checkpoint=grad_checkpoint).pow(2).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for kept, recomputed in zip(*gradients):
        torch.testing.assert_close(kept, recomputed)


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
