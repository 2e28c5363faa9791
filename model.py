"""Qwen2.5 as one reads it in a diagram: embedding, L layers of attention and SwiGLU, norm, logits.

    python -m pytest tests/test_model.py -v     # equal to transformers, shape by shape

The model knows of no adapter, no file and no cache. It is given the token ids, their positions, and `attend`: a function
that says which keys and values each query may look at. Training passes `attention.PackedAttention`, where documents stand
end to end and do not see each other; generation passes one that reads and writes a key/value cache. Everything else of the
network works on each token alone, which is why a batch is one row of T tokens and needs no padding.

Shapes: T tokens, D hidden, H heads, K key/value heads, h head size, L layers, V vocabulary. Parameter names are Hugging Face's.

Sources: Qwen2.5 Technical Report (arXiv 2412.15115); rotary positions, Su et al. 2021 (arXiv 2104.09864); grouped-query
attention, Ainslie et al. 2023 (arXiv 2305.13245); SwiGLU, Shazeer 2020 (arXiv 2002.05202).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# attend(layer index, queries [T, H, h], keys [T, K, h], values [T, K, h]) -> [T, H, h]; queries and keys are rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

ALL = slice(None)  # tokens
FEW_ROWS = range(
    16,
    97)  # tokens: so many are decoded at a time, and a product is bound by how its weight is read


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


class Product(torch.autograd.Function):
    """x Wᵀ, where W trains in a wider dtype than that of x: cast when used, here and again for the gradient to x.

    The gradient to W stays in the dtype of x, half as large as W, if W allows it (`grad_dtype`; train.py widens it).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)  # and not the narrow copy
        y = x.new_empty(
            len(x), len(weight))  # before the copy, which then leaves no hole between what is kept
        return torch.mm(x, weight.to(x.dtype).T, out=y)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), grad.T @ x
        return torch.mm(grad, weight.to(grad.dtype), out=grad_x), grad_weight


class Linear(nn.Linear):
    product = staticmethod(lambda x, w, b: F.linear(x, w.to(x.dtype), None if b is None else b.to(x.dtype)))
    """A linear map that multiplies in the dtype of its input: fp32 weights that train are cast when used."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad and self.weight.dtype != x.dtype and torch.is_grad_enabled():
            y = Product.apply(x, self.weight)
            return y if self.bias is None else y + self.bias.to(x.dtype)
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if len(x) in FEW_ROWS and not torch.is_grad_enabled():
            # The right factor of a product is first brought into blocks; for few rows, that should not be the weight.
            y = (weight @ x.T
                 ).T  # [out, in] @ [in, T] -> [T, out], a view: the next map turns it round again
            return y if bias is None else y.add_(bias)
        return F.linear(x, weight, bias)


class Normalise(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) · w over the last axis, the mean taken in fp32.

    With y = x · s, s = 1 / sqrt(mean(x²) + eps) and h = g · w, the gradient is s · (h - y · mean(h · y)) to x and the sum
    of g · y to w. Written out, it keeps x in its own dtype and one s a token; autograd by itself would keep four copies
    of x, two of them in fp32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        y, h = (part.to(torch.float32, copy=True) for part in (x, grad))
        y.mul_(scale)
        grad_weight = (h * y).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        h.mul_(weight)
        h.addcmul_(y, (h * y).mean(-1, keepdim=True), value=-1).mul_(scale)
        return h.to(x.dtype), grad_weight, None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, the mean taken in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return Normalise.apply(x, self.weight, self.eps)


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

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend,
                wanted: Tensor | slice) -> Tensor:
        tokens = x.shape[0]
        queries = rotate(self.q_proj(x).view(tokens, -1, self.head_dim),
                         table)  # [T, H·h] -> [T, H, h]
        keys = rotate(self.k_proj(x).view(tokens, -1, self.head_dim),
                      table)  # [T, K·h] -> [T, K, h]
        values = self.v_proj(x).view(tokens, -1, self.head_dim)  # [T, K·h] -> [T, K, h]
        mixed = attend(self.layer, queries, keys, values)  # [T, H, h]
        return self.o_proj(mixed.reshape(tokens, -1)[wanted])  # [T, H, h] -> [N, H·h] -> [N, D]


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)


class Gated(torch.autograd.Function):
    """silu(gate) · up, the widest tensors of the network: only the two arguments are kept for the backward pass."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

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

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        """`recompute`: the product, which the gradient to down's own weights needs, is not kept but computed again.

        (Not under `checkpoint`, which hands out what it keeps but once, and computes the whole layer again anyway.)
        """
        product = Gated.apply(self.gate_proj(x), self.up_proj(x))  # [T, I]
        if not recompute:
            return self.down_proj(product)
        gated, place = product.grad_fn, product.data_ptr()  # the first holds gate and up

        def pack(tensor: Tensor) -> Tensor | None:
            return None if tensor.data_ptr() == place else tensor

        def unpack(packed: Tensor | None) -> Tensor:
            return _gated(*gated.saved_tensors) if packed is None else packed

        with saved_tensors_hooks(pack, unpack):
            return self.down_proj(product)


class Layer(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + MLP(norm(x)); [T, D] -> [N, D], the tokens `wanted`."""

    def __init__(self, config: Config, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend,
                wanted: Tensor | slice, recompute: bool) -> Tensor:
        x = x[wanted] + self.self_attn(self.input_layernorm(x), table, attend, wanted)
        return x + self.mlp(self.post_attention_layernorm(x), recompute)


class Embedding(nn.Embedding):
    """Rows of a matrix [V, D], by token id.

    The gradient is added to the rows that were read, where the head's already stands if the two are tied. Autograd would
    make another matrix of V rows for it, nearly all of them zero.
    """

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight.detach())  # [T, D]
        if self.weight.requires_grad and torch.is_grad_enabled():
            rows.requires_grad_().register_hook(lambda grad: self.add_gradient(ids, grad))
        return rows

    def add_gradient(self, ids: Tensor, grad: Tensor) -> None:
        """Add the gradient [T, D] of the rows `ids` [T]."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        self.weight.grad.index_add_(0, ids, grad)


class Decoder(nn.Module):
    """The parameters below `model.` in a Hugging Face checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, index) for index in range(config.num_hidden_layers))
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

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | slice = ALL,
                grad_checkpoint: bool = False) -> Tensor:
        """Final hidden states [N, D] of the tokens `wanted` (indices [N]; all T by default), of ids [T] at positions [T].

        The last layer computes for the others only what these look at: their keys and values.
        `grad_checkpoint` keeps only the layers' inputs for the backward pass and computes each layer again there.
        """
        x = self.model.embed_tokens(ids).to(self.compute_dtype)  # [T, D]
        table = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.model.layers:
            kept = wanted if layer is self.model.layers[-1] else ALL
            if grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, x, table, attend, kept, recompute=False, use_reentrant=False)
            else:
                x = layer(x, table, attend, kept, recompute=True)
        return self.model.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """The [V, D] matrix that turns hidden states into logits."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def summed_loss(self, hidden, targets, weights=None):
        losses = F.cross_entropy(self.logits(hidden[: len(targets)]).float(), targets, reduction="none")
        return (losses if weights is None else losses * weights).sum()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))
