"""attention.py: a document in a row gets what it would get alone, however it is computed."""

import pytest
import torch
from torch.nn import functional as F

from attention import SHORT, FlexAttention, PackedAttention

H, K, h, P = 4, 2, 8, 3
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason="needs CUDA"))
]


def states(tokens: int) -> list[torch.Tensor]:
    """Random queries [T, H, h], keys and values [T, K, h]."""
    return [torch.randn(tokens, heads, h) for heads in (H, K, K)]


def alone(queries, keys, values, front=None):
    """One document by torch's own attention, with its triangle at the lower right."""
    if front is not None:
        keys, values = torch.cat((front[0], keys)), torch.cat((front[1], values))
    q, k, v = (x.transpose(0, 1) for x in (queries, keys, values))
    mask = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(0, 1)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("prefix", [None, torch.randn(1, 2, P, K, h)], ids=["plain", "prefix"])
@pytest.mark.parametrize("lengths",
                         [[5, 31, 2, 17], [1], [4, 4, 4], [SHORT + 9, 3], [400, 300, 20]])
def test_documents_in_a_row_do_not_see_each_other(lengths, prefix, grad):
    row = states(sum(lengths))
    with torch.set_grad_enabled(grad):
        together = PackedAttention(lengths, prefix)(0, *row).split(lengths)
    for found, *own in zip(together, *(x.split(lengths) for x in row), strict=True):
        torch.testing.assert_close(found, alone(*own, None if prefix is None else prefix[0]),
                                   atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", [None, torch.randn(1, 2, P, K, h)], ids=["plain", "prefix"])
def test_a_shared_head_is_the_beginning_of_every_document(prefix):
    """Positions, outputs and gradients are those of whole documents; the head's is their sum."""
    shared, lengths = 6, [5, 9, 1]
    head, rests = states(shared), [states(n) for n in lengths]
    for x in (*head, *(x for rest in rests for x in rest)):
        x.requires_grad_()
    inputs, weights = [*head, *sum(rests, [])], [torch.randn(n, H, h) for n in lengths]
    packed = PackedAttention(lengths, prefix, shared=shared)
    front = 0 if prefix is None else P
    whole = [
        range(front, front + shared), *(range(front + shared, front + shared + n) for n in lengths)
    ]
    assert packed.positions.tolist() == [p for part in whole for p in part]
    together = packed(0, *(torch.cat(parts) for parts in zip(head, *rests))).split(
        [shared, *lengths])[1:]
    apart = [
        alone(*(torch.cat(pair)
                for pair in zip(head, rest)), None if prefix is None else prefix[0])[shared:]
        for rest in rests
    ]
    for found, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # The head's own queries are attended once; here nothing is asked of their outputs.
    wanted = [x for x in inputs if x is not head[0]]
    gradients = [
        torch.autograd.grad(sum((y * w).sum()
                                for y, w in zip(outputs, weights)), wanted, retain_graph=True)
        for outputs in (together, apart)
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefix", [None, torch.randn(1, 2, P, K, h)], ids=["plain", "prefix"])
@pytest.mark.parametrize("shared", [0, 6])
def test_flex_attention_is_the_same(device, prefix, shared):
    """CUDA's way, compared with the groups of the CPU. It has a gradient only on CUDA."""
    lengths, front = [5, 9, 1, 130], 0 if prefix is None else P
    row = [x.requires_grad_(device == "cuda") for x in states(shared + sum(lengths))]
    expected = PackedAttention(lengths, prefix, shared=shared)(0, *row)
    flex = FlexAttention(lengths, front, shared, device)
    found = flex(*(x.to(device) for x in row), None if prefix is None else prefix[0].to(device))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3 if device == "cuda" else 1e-5,
                               rtol=0)
    if device == "cuda":
        weights = torch.randn_like(expected)
        gradients = [
            torch.autograd.grad((y.cpu() * weights).sum(), row, retain_graph=True)
            for y in (found, expected)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)
