"""Qwen2.5 as one reads it in a diagram: embedding, L layers of attention and SwiGLU, norm, logits.

    python -m pytest tests/test_model.py -v     # equal to transformers, shape by shape

The model knows of no adapter, no file and no cache. It is given the token ids, their positions, and `attend`: a function
that says which keys and values each query may look at. Training passes `PackedAttention` below, where documents stand end
to end and do not see each other; generation passes one that reads and writes a key/value cache. Everything else of the
network works on each token alone, which is why a batch is one row of T tokens and needs no padding.

Shapes: T tokens, B documents, S longest document, D hidden, H heads, K key/value heads, h head size, L layers,
V vocabulary, P prefix length. Parameter names are Hugging Face's.

Sources: Qwen2.5 Technical Report (arXiv 2412.15115); rotary positions, Su et al. 2021 (arXiv 2104.09864); grouped-query
attention, Ainslie et al. 2023 (arXiv 2305.13245); SwiGLU, Shazeer 2020 (arXiv 2002.05202).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# attend(layer index, queries [T, H, h], keys [T, K, h], values [T, K, h]) -> [T, H, h]; queries and keys are rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """The numbers that make one Qwen2.5 differ from another; names as in config.json."""

    vocab_size: int  # V, padding rows included
    hidden_size: int  # D
    intermediate_size: int
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    num_key_value_heads: int  # K, a divisor of H
    head_dim: int  # h
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool


class Linear(nn.Linear):
    """A linear map that multiplies in the dtype of its input: fp32 weights that train are cast when used."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Normalise(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) over the last axis, computed in fp32.

    With y = x · s and s = 1 / sqrt(mean(x²) + eps), the gradient is s · (g - y · mean(g · y)). Written out, it keeps x
    in its own dtype and one s a token; autograd by itself would keep three copies of x, two of them in fp32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale)
        return (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        y, grad = x.float() * scale, grad.float()
        return (scale * (grad - y * (grad * y).mean(-1, keepdim=True))).to(x.dtype), None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, the mean taken in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.to(x.dtype) * Normalise.apply(x, self.eps)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, h/2] of the angles position · theta^(-2i/h), in fp32."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None].float() * theta ** (-pairs / head_dim)  # [T, h/2]
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x_i, x_{i+h/2}) of each head by their token's angles; x [T, H, h]."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)  # [T, H, h/2] each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query self-attention: H query heads share K key/value heads. Who sees whom is `attend`'s affair."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.hidden_size, width, bias=True)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=True)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=True)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        tokens = x.shape[0]
        queries = rotate(self.q_proj(x).view(tokens, -1, self.head_dim), table)  # [T, H·h] -> [T, H, h]
        keys = rotate(self.k_proj(x).view(tokens, -1, self.head_dim), table)  # [T, K·h] -> [T, K, h]
        values = self.v_proj(x).view(tokens, -1, self.head_dim)  # [T, K·h] -> [T, K, h]
        mixed = attend(self.layer, queries, keys, values)  # [T, H, h]
        return self.o_proj(mixed.reshape(tokens, -1))  # [T, H, h] -> [T, H·h] -> [T, D]


class Gated(torch.autograd.Function):
    """silu(gate) · up, the widest tensors of the network: only the two arguments are kept for the backward pass."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(Gated.apply(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: Config, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), table, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The parameters below `model.` in a Hugging Face checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen2(nn.Module):
    """Qwen2.5 with its language-model head.

    `compute_dtype` is the dtype of activations and products; the parameters' own dtype may be wider (fp32 when they
    train). A tied model has no `lm_head` parameter at all: its logits use the embedding.
    """

    def __init__(self, config: Config, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, grad_checkpoint: bool = False) -> Tensor:
        """Final hidden states [T, D] of ids [T] at positions [T].

        `grad_checkpoint` keeps only the layers' inputs for the backward pass and computes each layer again there.
        """
        x = self.model.embed_tokens(ids).to(self.compute_dtype)  # [T, D]
        table = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.model.layers:
            if grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, x, table, attend, use_reentrant=False)
            else:
                x = layer(x, table, attend)
        return self.model.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """The [V, D] matrix that turns hidden states into logits."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))


class PackedAttention:
    """Causal attention inside each of B documents that stand end to end in one row of T tokens.

    Documents are taken a few at a time, next to each other in the row, and only here laid out as a padded rectangle
    [b, S]; the linear maps never see the padding. A padded key lies behind every real query of its document, so that the
    causal mask hides it. Neighbours of like length waste little.

    `prefix` [L, 2, P, K, h] holds keys and values that every document sees in front of its own; its tokens then begin
    at position P. They are taken as they are: keys already rotated.
    """

    def __init__(self, lengths: list[int], prefix: Tensor | None = None, device: torch.device | str = "cpu"):
        self.prefix = prefix
        front = 0 if prefix is None else prefix.shape[2]
        self.positions = torch.cat([torch.arange(front, front + n) for n in lengths]).to(device)  # [T]
        self.groups = []  # for each: tokens t, rectangle [b, S], the tokens' cells in it [t], mask [S, P + S]
        for members in _groups(lengths):
            longest = max(members)
            offsets = torch.arange(longest, device=device)
            inside = offsets < torch.tensor(members, device=device)[:, None]  # [b, S]: is there a token?
            # A query sees the whole prefix and no later token: the triangle stands at the lower right of [S, P + S].
            hidden = torch.arange(front + longest, device=device) > front + offsets[:, None]
            self.groups.append((sum(members), inside.shape, inside.flatten().nonzero().squeeze(1), hidden))

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        counts = [group[0] for group in self.groups]
        parts = zip(self.groups, queries.split(counts), keys.split(counts), values.split(counts))
        return torch.cat([self._attend(layer, group, *qkv) for group, *qkv in parts])  # [T, H, h]

    def _attend(self, layer: int, group: tuple, *qkv: Tensor) -> Tensor:
        _, (batch, longest), cells, hidden = group
        # [t, n, h] -> [b·S, n, h] -> [b, S, n, h], zeros where there is no token
        q, k, v = (
            x.new_zeros(batch * longest, *x.shape[1:]).index_copy(0, cells, x).unflatten(0, (batch, longest)) for x in qkv
        )
        if self.prefix is not None:
            front = self.prefix[layer].to(k.dtype)[:, None].expand(-1, batch, -1, -1, -1)  # [2, P, K, h] -> [2, b, P, K, h]
            k, v = torch.cat((front[0], k), dim=1), torch.cat((front[1], v), dim=1)  # [b, P + S, K, h]
        return grouped_attention(q, k, v, hidden).flatten(0, 1)[cells]  # [b, S, H, h] -> [b·S, H, h] -> [t, H, h]


def _groups(lengths: list[int], most_scores: int = 1 << 17) -> list[list[int]]:
    """Cut a row of documents into groups whose padded scores, b · S² a head, stay small enough for a processor's cache."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and (len(groups[-1]) + 1) * max(*groups[-1], length) ** 2 <= most_scores:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(h)) v, where H/K query heads share a key/value head; [B, S, H, h] like the queries.

    queries [B, S, H, h], keys and values [B, S', K, h], hidden [S, S'] true where a query must not look.

    Without a gradient this is torch's fused attention, which never holds the scores. With one, on a CPU, it is written as
    two batched products: the backward pass is then about ten times faster than the fused one in bf16, for documents of a
    few hundred tokens. The queries of a group stand as further rows against their one key/value head, so that
    keys and values are not copied H/K times.
    """
    if queries.is_cuda or not torch.is_grad_enabled():
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))  # [B, S, n, h] -> [B, n, S, h]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden, enable_gqa=True)
        return mixed.transpose(1, 2)  # [B, H, S, h] -> [B, S, H, h]
    batch, length, heads, size = queries.shape
    shared = keys.shape[2]
    q = queries.unflatten(2, (shared, -1)).transpose(1, 2)  # [B, S, H, h] -> [B, K, S, H/K, h]
    q = q.reshape(batch * shared, -1, size)  # [B·K, S·H/K, h]
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in (keys, values))  # [B, S', K, h] -> [B·K, S', h]
    bias = torch.zeros_like(hidden, dtype=q.dtype).masked_fill_(hidden, float("-inf"))
    bias = bias.repeat_interleave(heads // shared, dim=0).expand(len(q), -1, -1)  # [S, S'] -> [B·K, S·H/K, S']
    weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=size**-0.5).softmax(-1)  # [B·K, S·H/K, S']
    mixed = (weights @ v).view(batch, shared, length, heads // shared, size)  # [B, K, S, H/K, h]
    return mixed.transpose(1, 2).reshape(batch, length, heads, size)  # [B, S, H, h]
