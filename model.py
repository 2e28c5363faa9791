"""Qwen2.5 as one reads it in a diagram: embedding, L layers of attention and SwiGLU, norm, logits.

    ids ─ embed ─┬─ norm ─ attention ─(+)─┬─ norm ─ SwiGLU ─(+)─ … L layers … ─ norm ─ head ─ logits
                 └────────────────────┘   └─────────────────┘

    python -m pytest tests/test_model.py -v     # equal to transformers, shape by shape

The model knows of no adapter, no file and no cache. It receives the token ids, their positions, and
`attend`: a function that says which keys and values each query looks at. Training passes
`attention.PackedAttention`, in which documents stand end to end and do not see each other;
generation passes one that reads and writes a key/value cache. All else in the network works on each
token alone, which is why a batch is one row of T tokens and needs no padding.

Everything here is plain autograd. What makes it fast and small stands in fast.py, beside the lines
of this file that it replaces.

Shapes: T tokens, N wanted tokens, D hidden, H heads, K key/value heads, h head size, L layers,
V vocabulary. Parameter names are Hugging Face's.

Sources: Qwen2.5 Technical Report (arXiv 2412.15115); rotary positions, Su et al. 2021 (arXiv
2104.09864); grouped-query attention, Ainslie et al. 2023 (arXiv 2305.13245); SwiGLU, Shazeer 2020
(arXiv 2002.05202).
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# attend(layer index, queries [T, H, h], keys [T, K, h], values [T, K, h]) -> [T, H, h]; queries and
# keys are rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

ALL = slice(None)  # tokens


@dataclass(frozen=True)
class Config:
    """The numbers that make one Qwen2.5 differ from another; names as in config.json."""

    vocab_size: int  # V, padding rows included
    hidden_size: int  # D
    intermediate_size: int  # I
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    num_key_value_heads: int  # K, a divisor of H
    head_dim: int  # h
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool


def cast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in the dtype of x: [T, in] -> [T, out]."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Linear(nn.Linear):
    """A linear map that multiplies in the dtype of its input: weights that train may be fp32."""

    product = staticmethod(cast_linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis, the mean taken in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).to(x.dtype) * self.weight.to(x.dtype)


def rotary_table(positions: Tensor, head_dim: int, theta: float,
                 dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, 1, h/2] of the angles position · theta^(-2i/h), computed in fp32."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None].float() * theta ** (-pairs / head_dim)  # [T, h/2]
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x_i, x_{i+h/2}) of each head by their token's angles; x [T, H, h]."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)  # [T, H, h/2] each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query self-attention: H query heads share K key/value heads. `attend` says which keys
    a query sees."""

    rotate = staticmethod(rotate)

    def __init__(self, config: Config, layer: int):
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.hidden_size, width, bias=True)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=True)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=True)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend,
                wanted: Tensor | slice = ALL) -> Tensor:
        tokens = x.shape[0]
        # [T, H·h] -> [T, H, h]
        queries = self.rotate(self.q_proj(x).view(tokens, -1, self.head_dim), table)
        # [T, K·h] -> [T, K, h]
        keys = self.rotate(self.k_proj(x).view(tokens, -1, self.head_dim), table)
        values = self.v_proj(x).view(tokens, -1, self.head_dim)  # [T, K·h] -> [T, K, h]
        mixed = attend(self.layer, queries, keys, values)  # [T, H, h]
        return self.o_proj(mixed.reshape(tokens, -1)[wanted])  # [T, H, h] -> [N, H·h] -> [N, D]


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # [T, D] -> [T, I] -> [T, D]
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + MLP(norm(x)); [T, D] -> [N, D]."""

    def __init__(self, config: Config, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend,
                wanted: Tensor | slice = ALL) -> Tensor:
        x = x[wanted] + self.self_attn(self.input_layernorm(x), table, attend, wanted)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The parameters below `model.` in a Hugging Face checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen2(nn.Module):
    """Qwen2.5 with its language-model head.

    `compute_dtype` is the dtype of activations and products; the parameters' own dtype may be wider
    (fp32 if they train). A tied model has no `lm_head` parameter: its logits use the embedding.
    """

    def __init__(self, config: Config, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend,
                wanted: Tensor | slice = ALL) -> Tensor:
        """Final hidden states [N, D] of the tokens `wanted` (indices; all T by default).

        ids [T] at positions [T]. The last layer needs the others only for their keys and values.
        """
        x = self.model.embed_tokens(ids).to(self.compute_dtype)  # [T, D]
        table = rotary_table(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        *layers, last = self.model.layers
        for layer in layers:
            x = layer(x, table, attend)
        return self.model.norm(last(x, table, attend, wanted))

    @property
    def head_weight(self) -> Tensor:
        """The [V, D] matrix that turns hidden states into logits."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities [N] of the targets [N], in nats and fp32.

        hidden [N or more, D], of which the first N count.
        """
        logits = self.logits(hidden[: len(targets)]).float()  # [N, V]
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def summed_loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum of the cross-entropy in nats, each target's times its weight: a scalar in fp32.

        hidden [N or more, D], of which the first N count; targets [N]; weights [N] or None (all 1).
        """
        losses = -self.log_probs(hidden, targets)  # [N]
        return (losses if weights is None else losses * weights).sum()
