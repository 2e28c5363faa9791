"""Which keys a query may look at: in training and prefill, and in a decoding step.

    python -m pytest tests/test_attention.py -v     # documents in a row do not see each other

The model calls `attend(layer, queries, keys, values)`; here are the two functions that it is given.

1. `PackedAttention`, for training and prefill. Documents stand end to end in one row of T tokens.
   Each looks only at itself, causally, and gets what it would get alone.
2. `KVCache`, for decoding. Each row reads one new token, which looks at all earlier ones of its
   row.

Both are exact. The machine, and whether a gradient is needed, decide only how they are computed.

Shapes: T tokens, B documents or rows, S longest document or slots, H heads, K key/value heads, h
head size, L layers, P prefix length, n prompt length, F keys and values in front of every document
(the prefix, then the shared head).
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime import mapped_zeros, round_up, to_device

SHORT = 512  # most tokens of a document for which two plain products are the fastest attention
SLOTS = 64  # tokens by which the cache grows and shrinks; more of them for longer rows
LONG = 1024  # tokens of a row
SCORES = 1 << 17  # most scores of a head in a rectangle: they stay within a processor's cache
PADDING = 4096  # cells of a rectangle that may be empty on CUDA, besides as many as its tokens

# --------------------------------------------------------------------------------- packed documents


class PackedAttention:
    """Causal attention inside each of B documents that stand end to end in one row of T tokens.

    With a prefix, and documents that begin alike (with the system prompt, say):

                          prefix      head             document 1    document 2      document 3
                        |-----------|----------------|-------------|---------------|-------------|
        tokens of the row             shared           lengths[0]    lengths[1]      lengths[2]
        first position    0           P                P + shared    P + shared      P + shared
        document 2 sees   all         all              nothing       no later token  nothing

    The first `shared` tokens of all documents stand once, as the head of the row, and `lengths`
    counts the other tokens of each document. Every document sees the head as its own beginning; the
    gradient of the head is the sum over the documents.

    `prefix` [L, 2, P, K, h] holds keys and values that every document sees before its own. The keys
    are already rotated.

    Neighbouring documents of the row are laid out as a padded rectangle [b, S], a few at a time on
    a CPU and nearly all on CUDA, and only in here: the linear maps never see the padding. A padded
    key is after every real query of its document, so that the causal mask hides it. If neighbours
    are of similar length, little is wasted.
    """

    def __init__(self, lengths: list[int], prefix: Tensor | None = None,
                 device: torch.device | str = "cpu", shared: int = 0):
        self.prefix, self.shared = prefix, shared
        front = 0 if prefix is None else prefix.shape[2]
        starts = [(front, shared)] + [(front + shared, n) for n in lengths]
        positions = torch.cat([torch.arange(first, first + n) for first, n in starts])
        self.positions = to_device(positions, device)  # [T]
        self.groups = [_Group([shared], front, device)] if shared else []
        self.groups += [_Group(members, front + shared, device)
                        for members in _groups(lengths, front + shared, self.positions.is_cuda)]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        front = None if self.prefix is None else self.prefix[layer].to(keys.dtype)  # [2, P, K, h]
        counts = [group.tokens for group in self.groups]
        mixed = []
        for group, q, k, v in zip(self.groups, queries.split(counts), keys.split(counts),
                                  values.split(counts)):
            mixed.append(group.attend(q, k, v, front))
            if self.shared and len(mixed) == 1:  # the head stands before all documents
                head = torch.stack((k, v))  # [2, shared, K, h]
                front = head if front is None else torch.cat((front, head), dim=1)
        return torch.cat(mixed)  # [T, H, h]


class _Group:
    """Neighbouring documents of the row, t tokens, as a rectangle [b, S] after F common keys."""

    def __init__(self, lengths: list[int], front: int, device: torch.device | str):
        longest = round_up(max(lengths))
        self.tokens, self.shape = sum(lengths), (len(lengths), longest)
        offsets = torch.arange(longest)
        inside = offsets < torch.tensor(lengths)[:, None]  # [b, S]: not padding
        # The cell of each token [t], found on the CPU: CUDA would wait for their number.
        self.cells = to_device(inside.flatten().nonzero().squeeze(1), device)
        if self.cells.is_cuda:  # the fused kernel needs no mask
            return
        # A query sees all F keys, and in its document no later token: the causal triangle is at the
        # right of [S, F + S].
        hidden = torch.arange(front + longest) > front + offsets[:, None]
        self.bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, front: Tensor | None) -> Tensor:
        """queries [t, H, h], keys and values [t, K, h], front [2, F, K, h] -> [t, H, h]."""
        q, k, v = map(self._rectangle, (queries, keys, values))
        if front is not None:
            front = front[:, None].expand(-1, len(k), -1, -1, -1)  # [2, F, K, h] -> [2, b, F, K, h]
            k = torch.cat((front[0], k), dim=1)  # [b, F + S, K, h]
            v = torch.cat((front[1], v), dim=1)
        if q.is_cuda:
            mixed = fused_attention(q, k, v)
        else:
            self.bias = self.bias.to(q.dtype)  # the first layer casts it
            mixed = grouped_attention(q, k, v, self.bias)
        mixed = mixed.flatten(0, 1)  # [b, S, H, h] -> [b·S, H, h]
        if len(mixed) == self.tokens:
            return mixed
        return mixed.index_select(0, self.cells)  # [t, H, h]

    def _rectangle(self, x: Tensor) -> Tensor:
        """[t, n, h] -> [b, S, n, h], with zeros in the padding."""
        if len(x) == self.shape[0] * self.shape[1]:  # no padding: a view is enough
            return x.unflatten(0, self.shape)
        empty = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
        return empty.index_copy(0, self.cells, x).unflatten(0, self.shape)


def _groups(lengths: list[int], front: int, cuda: bool) -> list[list[int]]:
    """Cut a row of documents into groups of neighbours, one rectangle each.

    On a CPU the padded scores of a group, b · S · (F + S) a head, are few. CUDA's kernel holds no
    scores and wants few, large rectangles: there a group ends if half of it would be padding.
    """
    groups: list[list[int]] = []
    for length in lengths:
        members = [*groups[-1], length] if groups else [length]
        cells = len(members) * max(members)
        fits = (cells <= 2 * sum(members) + PADDING if cuda
                else cells * (front + max(members)) <= SCORES)
        if groups and fits:
            groups[-1] = members
        else:
            groups.append([length])
    return groups


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(h) + bias) v, in which H/K query heads share a key/value head.

    queries [B, S, H, h], keys and values [B, S', K, h], bias [S, S']: -inf if a query must not look
    at a key, else 0. Returns [B, S, H, h].

    On a CPU these are two batched products. For documents of a few hundred tokens in bf16 they take
    half the time of torch's fused attention, and a tenth of its backward pass. The queries of a
    group are further rows against their one key/value head, so that keys and values are not copied
    H/K times. Long documents without a gradient take the fused one, which never holds the scores.
    """
    if queries.shape[1] > SHORT and not torch.is_grad_enabled():
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))  # [B, n, S, h]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        return mixed.transpose(1, 2)  # [B, H, S, h] -> [B, S, H, h]
    batch, length, heads, size = queries.shape
    shared = keys.shape[2]
    q = queries.unflatten(2, (shared, -1)).transpose(1, 2)  # [B, S, H, h] -> [B, K, S, H/K, h]
    q = q.reshape(batch * shared, -1, size)  # [B·K, S·H/K, h]
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in (keys, values))  # [B·K, S', h]
    scores = torch.bmm(q * size**-0.5, k.transpose(1, 2))  # [B·K, S·H/K, S']
    by_query = scores.view(-1, length, heads // shared, keys.shape[1])  # [B·K, S, H/K, S']
    by_query.add_(bias[:, None])  # [S, 1, S']
    weights = scores.softmax(-1)
    mixed = (weights @ v).view(batch, shared, length, heads // shared, size)  # [B, K, S, H/K, h]
    return mixed.transpose(1, 2).reshape(batch, length, heads, size)  # [B, S, H, h]


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What grouped_attention computes, by torch's fused kernel.

    queries [B, S, H, h], keys and values [B, F + S, K, h] -> [B, S, H, h]. In bf16 this is
    FlashAttention-2 (Dao 2023, arXiv 2307.08691), which never holds the scores and lets heads share
    keys without a copy. In fp32, torch holds the scores.
    """
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))  # [B, n, tokens, h]
    from torch.nn.attention.bias import causal_lower_right  # here: it takes a second to import

    triangle = causal_lower_right(q.shape[2], k.shape[2])
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=triangle, enable_gqa=True)
    return mixed.transpose(1, 2)  # [B, H, S, h] -> [B, S, H, h]


# ----------------------------------------------------------------------------------- decoding steps


class KVCache:
    """Keys and values of the rows that are decoded, and the `attend` of a decoding step.

    The token at position p is in slot p, so that rows of any length stand side by side:

        slot     0 ... P-1   P ...                             S-1
        row 0    prefix      prompt    completion  .  .  .  .  .      . is an empty slot, which the
        row 1    prefix      a longer prompt    completion  .  .      mask hides
        row 2    prefix      prompt    a longer completion

    One tensor [2, rows, K, S, h] per layer (0 = keys, 1 = values) holds them. The rows in use are
    the first ones. A step reads the first `slots` slots, as the longest row needs, of `max_slots`.
    On a CPU no others exist. On CUDA all do: their addresses stand in recorded steps
    (fast.RecordedSteps). `config` is a model.Config.
    """

    def __init__(self, config, rows: int, max_slots: int, dtype: torch.dtype, device: torch.device):
        self.max_slots = max_slots
        self.slots = max_slots if device.type == "cuda" else 0
        empty = (2, rows, config.num_key_value_heads, self.slots, config.head_dim)
        self.layers = [torch.zeros(empty, dtype=dtype, device=device)
                       for _ in range(config.num_hidden_layers)]

    def fit(self, slots: int) -> None:
        """Make room for `slots` tokens a row, and few more: a step reads all slots that there are.

        On a CPU each change copies the whole cache, into memory of its own if rows are long. (In
        the heap, each size leaves a hole that is too small for the next one.) On CUDA a step reads
        a power of two of them, so that there are few shapes to record.
        """
        if self.layers[0].is_cuda:
            self.slots = min(max(SLOTS, 1 << (slots - 1).bit_length()), self.max_slots)
            return
        step = SLOTS * max(1, slots // LONG)
        if self.slots - 2 * step < slots <= self.slots:
            return
        kept, self.slots = self.slots, min(round_up(slots, step), self.max_slots)
        kept = min(kept, self.slots)
        make_zeros = mapped_zeros if self.slots > LONG else torch.zeros
        for index, layer in enumerate(self.layers):
            # Zeros behind what is kept: 0 · NaN is NaN, and so the mask does not hide a NaN.
            shape = (*layer.shape[:3], self.slots, layer.shape[4])  # [2, rows, K, S, h]
            self.layers[index] = make_zeros(shape, dtype=layer.dtype)
            self.layers[index][..., :kept, :] = layer[..., :kept, :]

    def put(self, row: int, past: list[Tensor]) -> None:
        """Write the first tokens of a row: `past` holds [2, K, P + n, h] per layer."""
        slots = past[0].shape[2]
        self.fit(max(slots, self.slots))
        for layer, states in zip(self.layers, past):
            layer[:, row, :, :slots] = states

    def drop(self, ended: list[bool]) -> list[int]:
        """Remove the rows that have ended, one flag for each row in use.

        The last rows fill the gaps. Returns the old number of each row that is left.
        """
        count = len(ended) - sum(ended)
        holes = [i for i in range(count) if ended[i]]
        movers = [i for i in range(count, len(ended)) if not ended[i]]  # as many as holes
        if holes:
            for layer in self.layers:
                layer[:, holes] = layer[:, movers]
        moved = dict(zip(holes, movers))
        return [moved.get(i, i) for i in range(count)]

    def begin_step(self, positions: Tensor) -> None:
        """Prepare for one new token in each of the first B rows, at `positions` [B].

        The caller has made room for them (`fit`). Nothing here waits for a number from the device,
        so that CUDA can record the step.
        """
        device, dtype = positions.device, self.layers[0].dtype
        self.positions = positions
        self.rows = torch.arange(len(positions), device=device)  # [B]
        hidden = torch.arange(self.slots, device=device) > positions[:, None]  # [B, S]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        mask.masked_fill_(hidden, -torch.inf)
        self.mask = mask[:, None, None]  # [B, 1, 1, S], added to the scores of every layer

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [B, H, h], keys and values [B, K, h] of the new tokens -> [B, H, h]."""
        cache = self.layers[layer]
        cache[0][self.rows, :, self.positions] = keys  # [B, K, h]
        cache[1][self.rows, :, self.positions] = values
        k, v = cache[:, :len(keys), :, :self.slots]  # [B, K, S, h] each; on a CPU without gaps
        # The H/K query heads of a key/value head are one factor of a product, and the keys are the
        # left one: no key is copied or read twice. Torch's fused attention takes twice as long on
        # a CPU.
        groups = keys.shape[1]
        q = queries.unflatten(1, (groups, -1))  # [B, H, h] -> [B, K, H/K, h]
        q = q * queries.shape[-1]**-0.5
        scores = k @ q.transpose(2, 3)  # [B, K, S, H/K]
        scores = scores.transpose(2, 3).contiguous().add_(self.mask)  # [B, K, H/K, S]
        weights = scores.softmax(-1)
        return (weights @ v).flatten(1, 2)  # [B, K, H/K, h] -> [B, H, h]
