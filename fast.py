"""The same operations with less memory and time, each beside the plain line of model.py it
replaces.

    python mathft.py --method lora --plain       # a run without them
    python -m pytest tests/test_fast.py -v       # outputs and gradients are the plain ones

`accelerate(model)` puts them in place, as a literal table says (REPLACED); the parameters and their
names stay. A trick with a gradient of its own is a `torch.autograd.Function`: it keeps its
arguments and computes the rest again. No gradient is written behind autograd's back.

    kept for the backward pass of one layer      plain                      here
    RMSNorm                                      four copies of x           x, one number a token
    SwiGLU                                       gate, up, silu, product    gate, up
    a weight that trains in fp32                 its bf16 copy              nothing
    the loss                                     logits [N, V], twice       its gradient [N, D]
    log-probabilities                            logits [N, V], twice       nothing

Sources: chunked cross-entropy with its gradient in the forward pass, after Wijmans et al. 2024
(arXiv 2411.09009); recomputation, Chen et al. 2016 (arXiv 1604.06174).
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model import MLP, Attention, Linear, Qwen2, RMSNorm, cast_linear, rotate
from runtime import UsageError, UserError, round_up, rows_in_cache

FEW_ROWS = range(16, 97)  # tokens decoded at a time: the product then waits for its weight
LOGITS_AT_ONCE = 1 << 25  # elements of logits in one product: 64 MiB in bf16
LEAST_ROWS = 256  # of them, however large the vocabulary is
TOKENS_AT_ONCE = 1 << 14  # rows of the head that get their gradient in one product


# ------------------------------------------------------------------------- passes over memory


class OnePass:
    """A function that torch compiles into one pass over memory, if `--compile` asks for it.

    Plain: the function, in which each operation is a pass, and on CUDA a launch. (RMSNorm is not
    among them: on CUDA torch has it in one kernel.)
    """

    wanted = False  # of all of them

    def __init__(self, function: Callable):
        self.function = function

    @functools.cached_property
    def compiled(self) -> Callable:
        return torch.compile(self.function, dynamic=True)  # for lengths of all kinds at once

    def __call__(self, *args):
        return (self.compiled if OnePass.wanted else self.function)(*args)


def compile_passes(device: torch.device, plain: bool) -> None:
    """`--compile`. Raises UsageError beside `--plain`, UserError if torch finds no compiler."""
    if plain:
        raise UsageError("--plain leaves out what --compile compiles; give one of them")
    try:
        torch.compile(gated)(torch.ones(2, device=device), torch.ones(2, device=device))
    except Exception as error:  # torch names no common class of what can go wrong
        raise UserError(f"--compile: torch cannot compile here ({type(error).__name__}: it needs "
                        "a C++ compiler, and Triton on CUDA); leave it out") from error
    OnePass.wanted = True


# -------------------------------------------------------------------------------------- linear maps


class CastProduct(torch.autograd.Function):
    """x Wᵀ, W wider than x. Plain: F.linear(x, W.to(x.dtype)), which keeps the narrow copy of W.

    W is cast again for the gradient to x. The gradient to W stays in the dtype of x, half as large
    as W, if W allows it (`grad_dtype`); train.accumulate_gradient widens it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # before the copy: no hole is left between what is kept
        y = x.new_empty(len(x), len(weight))
        return torch.mm(x, weight.to(x.dtype).T, out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), grad.T @ x
        return torch.mm(grad, weight.to(grad.dtype), out=grad_x), grad_weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Plain: cast_linear(x, weight, bias)."""
    if weight.requires_grad and weight.dtype != x.dtype and torch.is_grad_enabled():
        y = CastProduct.apply(x, weight)
        return y if bias is None else y + bias.to(x.dtype)
    if len(x) in FEW_ROWS and not x.is_cuda and not torch.is_grad_enabled():
        # The right factor is first brought into blocks: for few rows, that should not be the
        # weight.
        y = (weight.to(x.dtype) @ x.T).T  # [out, in] @ [in, T] -> [T, out], a view
        return y if bias is None else y.add_(bias.to(x.dtype))
    return cast_linear(x, weight, bias)


# ------------------------------------------------------------------------------------------ RMSNorm


class Normalise(torch.autograd.Function):
    """x · s · w with s = 1 / sqrt(mean(x²) + eps), s in fp32. Plain: RMSNorm.forward.

    With y = x · s and h = g · w, the gradient is s · (h - y · mean(h · y)) to x, and the sum of
    g · y to w.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        y, h = (part.to(torch.float32, copy=True) for part in (x, grad))
        y.mul_(scale)
        grad_weight = (h * y).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        h.mul_(weight)
        h.addcmul_(y, (h * y).mean(-1, keepdim=True), value=-1).mul_(scale)
        return h.to(x.dtype), grad_weight, None


def rms_norm(self: RMSNorm, x: Tensor) -> Tensor:
    """Plain: RMSNorm.forward. On CUDA torch has it in one kernel."""
    if x.is_cuda:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
    return Normalise.apply(x, self.weight, self.eps)


# ------------------------------------------------------------------------------------------- SwiGLU


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Plain: F.silu(gate) * up."""
    return F.silu(gate).mul_(up)


def gated_gradients(flow: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients to gate and up, from that to their gated product."""
    return torch.ops.aten.silu_backward(flow * up, gate), F.silu(gate).mul_(flow)


gated_once, gated_gradients_once = OnePass(gated), OnePass(gated_gradients)


class GatedProducts(torch.autograd.Function):
    """p = silu(gate) · up, and p Wᵀ for each weight W. Plain: F.silu(gate) * up, then F.linear.

    The two arguments [T, I] are kept, the widest tensors of the network; p is computed again for
    the gradient to a weight that trains.
    """

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gate, up, *weights)
        product = gated_once(gate, up)
        outputs = [product.new_empty(len(product), len(weight)) for weight in weights]
        return tuple(torch.mm(product, w.to(product.dtype).T, out=y)
                     for w, y in zip(weights, outputs))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *weights = ctx.saved_tensors
        flow = None  # the gradient to p
        for grad, weight in zip(grads, weights):
            weight = weight.to(grad.dtype)
            flow = grad @ weight if flow is None else flow.addmm_(grad, weight)
        grad_weights: list[Tensor | None] = [None] * len(weights)
        if any(ctx.needs_input_grad[2:]):
            product = gated_once(gate, up)
            grad_weights = [grad.T @ product if needed else None
                            for grad, needed in zip(grads, ctx.needs_input_grad[2:])]
            del product
        return *gated_gradients_once(flow, gate, up), *grad_weights


def mlp(self: MLP, x: Tensor) -> Tensor:
    """Plain: MLP.forward. A down map that is not as this project writes it gets the plain line."""
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if not torch.is_grad_enabled():
        return down(gated(gate, up))
    if _is_untouched(down) and type(down) is Linear:
        return GatedProducts.apply(gate, up, down.weight)[0]
    if _is_untouched(down) and hasattr(down, "combine"):  # it puts x Wᵀ and x Aᵀ together itself
        return down.combine(*GatedProducts.apply(gate, up, down.weight, down.lora_A))
    return down(F.silu(gate) * up)


def _is_untouched(down: nn.Module) -> bool:
    """Whether a map only multiplies: no hook, no bias, and no forward that a reader has changed."""
    hooks = down._forward_hooks or down._forward_pre_hooks or down._backward_hooks
    owner = next(kind for kind in type(down).__mro__ if "forward" in vars(kind))
    changed = "forward" in vars(down) or not (owner is Linear or "combine" in vars(owner))
    return not hooks and not changed and down.bias is None and down.product is linear


# ------------------------------------------------------------------------------- embedding and loss


class TiedRows(torch.autograd.Function):
    """Rows of W [V, D] by token id, and W itself for the head: ids [T] -> [T, D], [V, D].

    Plain: F.embedding(ids, W), and W again in the head: autograd makes a gradient [V, D] for each,
    that of the rows nearly all zero. Here W enters the graph once, and both gradients meet: that of
    the rows is added into the head's, which nobody else holds.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, ids)
        ctx.set_materialize_grads(False)
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows: Tensor | None, grad_head: Tensor | None) -> tuple[Tensor, None]:
        weight, ids = ctx.saved_tensors
        grad = torch.zeros_like(weight) if grad_head is None else grad_head
        return grad if grad_rows is None else grad.index_add_(0, ids, grad_rows), None


def embed_tied(self: nn.Embedding, ids: Tensor) -> Tensor:
    """Plain: nn.Embedding.forward. Leaves W as the head takes it in `head`, for `forward_tied`."""
    if not (self.weight.requires_grad and torch.is_grad_enabled()):
        return F.embedding(ids, self.weight)
    rows, self.head = TiedRows.apply(self.weight, ids)
    return rows


def forward_tied(self: Qwen2, *args, **options) -> Tensor:
    """Plain: Qwen2.forward. The hidden states bring the head of their own graph along."""
    hidden = Qwen2.forward(self, *args, **options)
    hidden.head = vars(self.model.embed_tokens).pop("head", None)
    return hidden


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -w log softmax(hidden · weightᵀ)[target]. Plain: Qwen2.summed_loss.

    The logits are never whole in memory: for each chunk of rows the forward pass computes the
    logits, their loss and at once, in the same memory, their gradient. The backward pass only
    scales it. hidden [N or more, D], of which the first N count, weight [V, D], targets [N],
    weights [N] or None -> a scalar in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor,
                weights: Tensor | None) -> Tensor:
        total, *grads = _loss_and_gradients(hidden, weight, targets, weights,
                                            *ctx.needs_input_grad[:2])
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad.mul_(grad_output) for grad in ctx.saved_tensors)
        return *grads, None, None


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(hidden · weightᵀ)[target] of each row. Plain: Qwen2.log_probs.

    The logits are never whole in memory: the backward pass computes those of each chunk again.
    With g from above, its gradient is that of a cross-entropy with weights -g. hidden [N or more,
    D], of which the first N count, weight [V, D], targets [N] -> [N] in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        log_probs = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
        for start, logits in _logits_by_chunk(hidden, weight.to(hidden.dtype)):
            wanted = targets[start : start + len(logits)]
            log_probs[start : start + len(wanted)] = log_probs_of(wanted, logits[: len(wanted)])
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        _, *grads = _loss_and_gradients(hidden, weight, targets, -grad_output,
                                        *ctx.needs_input_grad[:2])
        return *grads, None


def log_probs_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities [n] in fp32 of tokens [n] under logits [n, V].

    A few rows at a time, which stay in the processor's cache.
    """
    rows = rows_in_cache(logits)
    parts = zip(logits.split(rows), tokens[:, None].split(rows))
    return torch.cat([part.log_softmax(-1, dtype=torch.float32).gather(1, wanted)[:, 0]
                      for part, wanted in parts])


def _logits_by_chunk(hidden: Tensor, matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The logits of some rows of hidden [N, D] after the others, with the number of their first
    row. All are in one memory: they are valid until the next ones.
    """
    chunks = math.ceil(len(hidden) / max(LEAST_ROWS, LOGITS_AT_ONCE // len(matrix)))
    rows = round_up(math.ceil(len(hidden) / max(1, chunks)))  # alike: few rows left over are slow
    buffer = hidden.new_empty(rows, len(matrix))
    for start in range(0, len(hidden), max(1, rows)):
        part = hidden[start : start + rows]
        yield start, torch.mm(part, matrix.T, out=buffer[: len(part)])  # [rows, V]


def _loss_and_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None,
                        wants_hidden: bool, wants_weight: bool) -> tuple[Tensor | None, ...]:
    """The sum of -w log softmax(hidden · weightᵀ)[target], and those of its gradients for hidden
    and weight that are wanted.
    """
    matrix = weight.to(hidden.dtype)
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    grad_weight = torch.zeros_like(weight) if wants_weight else None
    total = torch.zeros((), device=hidden.device, dtype=torch.float32)
    for start, logits in _logits_by_chunk(hidden, matrix):
        wanted = targets[start : start + len(logits)]
        scale = None if weights is None else weights[start : start + len(logits), None]
        total += _loss_then_gradient(logits[: len(wanted)], wanted, scale)
        logits[len(wanted) :] = 0
        if wants_hidden:
            torch.mm(logits, matrix, out=grad_hidden[start : start + len(logits)])
        if wants_weight:
            _add_product(grad_weight, logits, hidden[start : start + len(logits)])
    return total, grad_hidden, grad_weight


def _add_product(sums: Tensor, logits: Tensor, hidden: Tensor) -> None:
    """sums [V, D] += logitsᵀ hidden, some rows at a time: the product is as large as the matrix."""
    parts = zip(sums.split(TOKENS_AT_ONCE), logits.split(TOKENS_AT_ONCE, dim=1))
    for rows, columns in parts:
        rows.add_(columns.T @ hidden)


def _loss_then_gradient(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Summed loss of logits [n, V], targets [n] and weights [n, 1]; the logits become its gradient.

    The gradient is w · (softmax - one-hot). A few rows at a time: they stay in the cache.
    """
    total = torch.zeros((), device=logits.device, dtype=torch.float32)
    rows = rows_in_cache(logits)
    scales = [None] * len(logits) if weights is None else weights.split(rows)
    for part, wanted, scale in zip(logits.split(rows), targets[:, None].split(rows), scales):
        total += rows_once(part, wanted, scale)
    return total


def _rows_then_gradient(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """As `_loss_then_gradient`, of rows that fit into the cache; targets [n, 1]."""
    log_probs = logits.log_softmax(-1, dtype=torch.float32)
    losses = -log_probs.gather(1, targets)  # [n, 1]
    one_hot = torch.ones_like(targets, dtype=torch.float32)
    gradient = log_probs.exp_().scatter_add_(1, targets, -one_hot)
    logits.copy_(gradient if weights is None else gradient.mul_(weights))
    return (losses if weights is None else losses * weights).sum()


rows_once = OnePass(_rows_then_gradient)


def chunked_loss(self: Qwen2, hidden: Tensor, targets: Tensor,
                weights: Tensor | None = None) -> Tensor:
    """Plain: Qwen2.summed_loss."""
    return ChunkedCrossEntropy.apply(hidden, _head_of(self, hidden), targets, weights)


def chunked_log_probs(self: Qwen2, hidden: Tensor, targets: Tensor) -> Tensor:
    """Plain: Qwen2.log_probs."""
    return ChunkedLogProbs.apply(hidden, _head_of(self, hidden), targets)


def _head_of(model: Qwen2, hidden: Tensor) -> Tensor:
    """The head [V, D] in the graph of these hidden states."""
    head = getattr(hidden, "head", None)
    return model.head_weight if head is None else head


# ----------------------------------------------------------------------------- steps of one shape


class RecordedSteps:
    """A function of tensors that CUDA records once for each shape, and replays: a CUDA graph.

    Plain: step(*inputs). A decoding step of the 0.5B shape launches some two thousand small
    kernels, one after the other, which takes longer than they run; a replay is one launch. `step`
    must be the same work each time: nothing in it may wait for a number from the device, and all
    other tensors that it reads keep their addresses.

    A shape is recorded when it comes for the second time; `key` says what else tells shapes apart.
    The outputs are valid until the next call.
    """

    def __init__(self, step):
        self.step, self.recorded, self.pool = step, {}, None

    def __call__(self, key: tuple, *inputs: Tensor) -> Tensor:
        if not inputs[0].is_cuda:
            return self.step(*inputs)
        key = (key, *(x.shape for x in inputs))
        if key not in self.recorded:
            self.recorded[key] = None
            return self.step(*inputs)  # the first time: what torch prepares cannot be recorded
        if self.recorded[key] is None:
            self.recorded[key] = self._record(inputs)
        graph, own, output = self.recorded[key]
        for mine, given in zip(own, inputs):
            mine.copy_(given)
        graph.replay()
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple:
        self.pool = self.pool or torch.cuda.graph_pool_handle()  # one memory for all shapes
        own, graph = tuple(x.clone() for x in inputs), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = self.step(*own)
        return graph, own, output


# ------------------------------------------------------------------------------------- all together


class FastRMSNorm(RMSNorm):
    """RMSNorm by `Normalise`."""

    forward = rms_norm


rotated = OnePass(rotate)


def rotate_once(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Plain: model.rotate. Compiled in training alone: a recorded step compiles nothing."""
    return rotated(x, table) if torch.is_grad_enabled() else rotate(x, table)


class FastAttention(Attention):
    """Attention whose rotation is one pass."""

    rotate = staticmethod(rotate_once)


class FastMLP(MLP):
    """SwiGLU by `GatedProducts`."""

    forward = mlp


class TiedEmbedding(nn.Embedding):
    """An embedding by `TiedRows`."""

    forward = embed_tied


class FastQwen2(Qwen2):
    """Qwen2.5 that never has all logits in memory."""

    forward = forward_tied
    log_probs = chunked_log_probs
    summed_loss = chunked_loss


# By exact class: a class of a reader's own stays as it is.
REPLACED = {RMSNorm: FastRMSNorm, Attention: FastAttention, MLP: FastMLP, Qwen2: FastQwen2}


def accelerate(model: Qwen2) -> Qwen2:
    """Put every trick in its place, and return the model. A second call changes nothing."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.product = linear
        module.__class__ = REPLACED.get(type(module), type(module))
    if model.config.tie_word_embeddings and type(model.model.embed_tokens) is nn.Embedding:
        model.model.embed_tokens.__class__ = TiedEmbedding
    return model


def checkpoint_layers(model: Qwen2) -> None:
    """Keep only the layers' inputs for the backward pass and compute each layer again there."""
    def recompute(forward, *args):
        if not torch.is_grad_enabled():
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=False)

    for layer in model.model.layers:
        layer.forward = functools.partial(recompute, layer.forward)
