"""Who may look at whom: causal attention inside each of the documents that stand end to end in one row.

    python -m pytest tests/test_attention.py -v     # documents in a row do not see each other

`PackedAttention` is the `attend` that training, prefill and log-probabilities give to the model. It is exact: a document
in a row gets what it would get alone. What varies is how it is computed, by the machine and by whether a gradient is needed.

Shapes: T tokens, B documents, S longest document, H heads, K key/value heads, h head size, L layers, P prefix length,
F keys and values in front of every document (the prefix, then what all documents begin with).
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime import round_up

SHORT = 512  # tokens of a document whose attention is fastest as two plain products


class PackedAttention:
    """Causal attention inside each of B documents that stand end to end in one row of T tokens.

    The documents of a batch often begin alike, with the system prompt at least. Their `shared` first tokens then stand
    once, at the head of the row, and `lengths` counts what follows in each document: every document sees the head as
    if it were its own beginning, and the head's gradient is the sum over them.

    `prefix` [L, 2, P, K, h] holds keys and values that every document sees in front of its own; its tokens then begin
    at position P. They are taken as they are: keys already rotated.

    Documents are taken a few at a time, next to each other in the row, and only here laid out as a padded rectangle
    [b, S]; the linear maps never see the padding. A padded key lies behind every real query of its document, so that the
    causal mask hides it. Neighbours of like length waste little. On CUDA the row stays whole: see FlexAttention.
    """

    def __init__(self, lengths: list[int], prefix: Tensor | None = None,
                 device: torch.device | str = "cpu", shared: int = 0):
        self.prefix, self.shared = prefix, shared
        front = 0 if prefix is None else prefix.shape[2]
        starts = [(front, shared)] + [(front + shared, n) for n in lengths]
        self.positions = torch.cat([torch.arange(first, first + n) for first, n in starts]).to(
            device)  # [T]
        if self.positions.is_cuda:
            self.flex = FlexAttention(lengths, front, shared, device)
            return
        self.groups = [_Group([shared], front, device)] if shared else []
        self.groups += [
            _Group(members, front + shared, device) for members in _groups(lengths, front + shared)
        ]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        front = None if self.prefix is None else self.prefix[layer].to(keys.dtype)  # [2, P, K, h]
        if queries.is_cuda:
            return self.flex(queries, keys, values, front)
        counts = [group.tokens for group in self.groups]
        mixed = []
        for group, q, k, v in zip(self.groups, queries.split(counts), keys.split(counts),
                                  values.split(counts)):
            mixed.append(group.attend(q, k, v, front))
            if self.shared and len(
                    mixed) == 1:  # what the head has computed stands in front of all that follows
                head = torch.stack((k, v))  # [2, shared, K, h]
                front = head if front is None else torch.cat(
                    (front, head), dim=1)  # [2, P + shared, K, h]
        return torch.cat(mixed)  # [T, H, h]


class _Group:
    """Neighbouring documents of the row, t tokens in all, as a rectangle [b, S] behind F common keys and values."""

    def __init__(self, lengths: list[int], front: int, device: torch.device | str):
        longest = round_up(max(lengths))
        self.tokens, self.shape = sum(lengths), (len(lengths), longest)
        offsets = torch.arange(longest, device=device)
        inside = offsets < torch.tensor(lengths, device=device)[:,
                                                                None]  # [b, S]: is there a token?
        self.cells = inside.flatten().nonzero().squeeze(
            1)  # [t]: where each token stands in the rectangle
        # A query sees all F and no later token: the triangle stands at the lower right of [S, F + S].
        hidden = torch.arange(front + longest, device=device) > front + offsets[:, None]
        self.bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, front: Tensor | None) -> Tensor:
        """queries [t, H, h], keys and values [t, K, h], front [2, F, K, h] -> [t, H, h]."""
        q, k, v = map(self._rectangle, (queries, keys, values))
        if front is not None:
            front = front[:, None].expand(-1, len(k), -1, -1, -1)  # [2, F, K, h] -> [2, b, F, K, h]
            k, v = torch.cat((front[0], k), dim=1), torch.cat((front[1], v),
                                                              dim=1)  # [b, F + S, K, h]
        self.bias = self.bias.to(q.dtype)  # in the first layer; the others find it so
        mixed = grouped_attention(q, k, v, self.bias)
        mixed = mixed.flatten(0, 1)  # [b, S, H, h] -> [b·S, H, h]
        return mixed if len(mixed) == self.tokens else mixed.index_select(0,
                                                                          self.cells)  # [t, H, h]

    def _rectangle(self, x: Tensor) -> Tensor:
        """[t, n, h] -> [b, S, n, h], zeros where there is no token."""
        if len(x) == self.shape[0] * self.shape[1]:  # without padding it is but another view
            return x.unflatten(0, self.shape)
        empty = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
        return empty.index_copy(0, self.cells, x).unflatten(0, self.shape)


def _groups(lengths: list[int], front: int, most_scores: int = 1 << 17) -> list[list[int]]:
    """Cut a row of documents into groups whose padded scores, b · S · (F + S) a head, stay within a processor's cache."""
    groups: list[list[int]] = []
    for length in lengths:
        longest = max([length, *groups[-1]]) if groups else length
        if groups and (len(groups[-1]) + 1) * longest * (front + longest) <= most_scores:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(h) + bias) v, where H/K query heads share a key/value head; [B, S, H, h] like the queries.

    queries [B, S, H, h], keys and values [B, S', K, h], bias [S, S'] -inf where a query must not look, else 0.

    On a CPU this is two batched products: for documents of a few hundred tokens in bf16 they take half the time of
    torch's fused attention, and a tenth of its backward pass. The queries of a group stand as further rows against their
    one key/value head, so that keys and values are not copied H/K times. Long documents without a gradient take the fused
    one, which never holds the scores.
    """
    if queries.shape[1] > SHORT and not torch.is_grad_enabled():
        q, k, v = (
            x.transpose(1, 2) for x in (queries, keys, values))  # [B, S, n, h] -> [B, n, S, h]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        return mixed.transpose(1, 2)  # [B, H, S, h] -> [B, S, H, h]
    batch, length, heads, size = queries.shape
    shared = keys.shape[2]
    q = queries.unflatten(2, (shared, -1)).transpose(1, 2)  # [B, S, H, h] -> [B, K, S, H/K, h]
    q = q.reshape(batch * shared, -1, size)  # [B·K, S·H/K, h]
    k, v = (
        x.transpose(1, 2).flatten(0, 1) for x in (keys, values))  # [B, S', K, h] -> [B·K, S', h]
    scores = torch.bmm(q * size**-0.5, k.transpose(1, 2))  # [B·K, S·H/K, S']
    scores.view(-1, length, heads // shared, keys.shape[1]).add_(
        bias[:, None])  # [B·K, S, H/K, S'] + [S, 1, S']
    weights = scores.softmax(-1)
    mixed = (weights @ v).view(batch, shared, length, heads // shared, size)  # [B, K, S, H/K, h]
    return mixed.transpose(1, 2).reshape(batch, length, heads, size)  # [B, S, H, h]


class FlexAttention:
    """The same as the groups above by torch's flex_attention: one fused kernel that skips the blocks nobody looks at.

    It needs no rectangles and no copies of the keys, and is compiled for CUDA with its rule (Dong et al. 2024, arXiv
    2412.05496). On a CPU it runs uncompiled and without a gradient, which is how the tests hold it against the groups.
    """

    def __init__(self, lengths: list[int], front: int, shared: int, device: torch.device | str):
        counts = torch.tensor([shared, *lengths], device=device)
        documents = torch.arange(len(counts), device=device).repeat_interleave(
            counts)  # [T], 0 being the head

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            token = key - front  # below 0: a key of the prefix
            own = documents[token.clamp(min=0)] == documents[query]
            return (token <= query) & (own | (token < shared))

        create_block_mask, self.flex_attention = _flex(compiled=documents.is_cuda)
        self.mask = create_block_mask(sees, None, None, len(documents), front + len(documents),
                                      device=device)

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor,
                 front: Tensor | None) -> Tensor:
        """queries [T, H, h], keys and values [T, K, h], front [2, P, K, h] -> [T, H, h]."""
        if front is not None:
            keys, values = torch.cat((front[0], keys)), torch.cat(
                (front[1], values))  # [P + T, K, h]
        q, k, v = (x.transpose(0, 1)[None] for x in (queries, keys, values))  # [1, n, tokens, h]
        return self.flex_attention(q, k, v, block_mask=self.mask, enable_gqa=True)[0].transpose(
            0, 1)


@functools.cache
def _flex(compiled: bool) -> tuple:
    """create_block_mask and flex_attention; imported here because the import alone takes a second."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    functions = create_block_mask, flex_attention
    return tuple(map(torch.compile, functions)) if compiled else functions
