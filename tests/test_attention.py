"""attention.py: a document in a row gets what it would get alone, however it is computed."""

import pytest
import torch
from torch.nn import functional as F

from attention import (PADDING, SHORT, PackedAttention, _groups, fused_attention,
                       grouped_attention)

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
@pytest.mark.parametrize("front", [0, 3, 70])
def test_fused_attention_is_the_same(device, front):
    """CUDA's way beside the CPU's: outputs and gradients, after F common keys."""
    q, k, v = (torch.randn(3, n, heads, 16, requires_grad=True)
               for n, heads in ((20, H), (front + 20, K), (front + 20, K)))
    hidden = torch.ones(20, front + 20, dtype=torch.bool).triu(front + 1)
    bias = torch.zeros(20, front + 20).masked_fill(hidden, -torch.inf)
    expected = grouped_attention(q, k, v, bias)
    found = fused_attention(*(x.to(device) for x in (q, k, v))).cpu()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("prefix", [None, torch.randn(1, 2, P, K, 16)], ids=["plain", "prefix"])
@pytest.mark.parametrize("shared", [0, 6])
def test_cuda_gives_what_the_cpu_gives(dtype, most, prefix, shared):
    """The whole row on both devices, the CPU in fp32: outputs and gradients, in relative size."""
    lengths = [5, 9, 1, 130, 300]
    row = [torch.randn(shared + sum(lengths), heads, 16, requires_grad=True) for heads in (H, K, K)]
    weights = torch.randn(shared + sum(lengths), H, 16)
    front = None if prefix is None else prefix.clone().requires_grad_()
    wanted = row if front is None else [*row, front]
    results = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float32)):
        there = None if front is None else front.to(device)
        packed = PackedAttention(lengths, there, device, shared)
        mixed = packed(0, *(x.to(device, kind) for x in row)).cpu().float()
        results.append([mixed, *torch.autograd.grad((mixed * weights).sum(), wanted)])
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= most * other.norm()


def test_a_rectangle_on_cuda_is_at_most_half_padding():
    assert _groups([10] * 1000, 0, cuda=True) == [[10] * 1000]
    assert _groups([PADDING, 1, 1, 1], 0, cuda=True) == [[PADDING, 1, 1], [1]]
    assert [sum(group) for group in _groups([10, 20, 30], 50, cuda=False)] == [60]
