"""Each trick against the plain line that it replaces: outputs, gradients, and what stays in memory.
"""

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fast
from adapters import AdaptedLinear
from conftest import small_model, some_examples
from fast import (FEW_ROWS, REPLACED, ChunkedCrossEntropy, GatedProducts, Normalise, accelerate,
                  checkpoint_layers)
from lora import add_lora
from methods import METHODS
from model import MLP, Linear, cast_linear
from runtime import UsageError, UserError
from train import (TrainSettings, accumulate_gradient, log_probs_of_targets, make_optimizer,
                   summed_loss, update)

EIGHT = some_examples(8)


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    return found


def assert_close(a: dict, b: dict, tolerance: float) -> None:
    """Equal up to `tolerance` times each tensor's largest number."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] -
                b[name]).abs().max() <= tolerance * b[name].abs().max().clamp(min=1e-6), name


# ------------------------------------------------------------------------------------- whole models


class Letters:
    """A tokenizer for the tests: one id per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 64 for letter in text]


def tuned(name: str, quick: bool, recomputed: bool, tied: bool, device: str = "cpu"):
    """A small model under a method, what trains moved away from its start, as after some steps."""
    model = small_model(tie_word_embeddings=tied).to(device)
    if quick:
        accelerate(model)
    method = METHODS[name]
    tuning = method.start(model, Letters(), method.Flags(), "Be exact.", 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in tuning.trainable.values():
            p += 0.05 * torch.randn(p.shape, generator=generator).to(device)
    if recomputed:
        checkpoint_layers(model)
    return model, tuning


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_those_of_the_plain_model(name, tied):
    """In fp32, up to rounding: 1e-6 of the loss, 1e-5 of the largest number of each gradient."""
    found = []
    for quick, recomputed in ((False, False), (False, True), (True, False), (True, True)):
        model, tuning = tuned(name, quick, recomputed, tied)
        loss = accumulate_gradient(model, tuning.trainable, EIGHT, 60, tuning.prefix).item()
        found.append((loss, gradients(tuning.trainable)))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert_close(grads, found[0][1], 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_cuda_gives_the_loss_and_the_gradients_of_the_plain_model_on_a_cpu(name, tied):
    """In fp32, and the losses of three steps of AdamW."""
    found, losses = [], []
    for device in ("cpu", "cuda"):
        model, tuning = tuned(name, device == "cuda", False, tied, device)
        loss = accumulate_gradient(model, tuning.trainable, EIGHT, 60, tuning.prefix).item()
        found.append((loss, {key: grad.cpu() for key, grad in gradients(tuning.trainable).items()}))
        optimizer = make_optimizer(tuning.trainable, TrainSettings(3, 1e-3), tuning.rate_factors)
        losses.append([])
        for _ in range(3):
            loss = accumulate_gradient(model, tuning.trainable, EIGHT, 60, tuning.prefix).item()
            losses[-1].append(loss)
            update(optimizer, 1e-3)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert_close(found[1][1], found[0][1], 1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[0][2] < losses[0][0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_log_probabilities_and_their_gradients_are_the_plain_ones(name, tied, monkeypatch):
    """In chunks of a few targets, each computed again for the gradient; each weighs differently."""
    monkeypatch.setattr(fast, "LEAST_ROWS", 3)
    monkeypatch.setattr(fast, "LOGITS_AT_ONCE", 1)
    found = []
    for quick in (False, True):
        model, tuning = tuned(name, quick, False, tied)
        log_probs = log_probs_of_targets(model, EIGHT, tuning.prefix and tuning.prefix())
        (log_probs * torch.linspace(-1, 2, len(log_probs))).sum().backward()
        found.append((log_probs.detach(), gradients(tuning.trainable)))
    assert len(found[0][0]) > 20
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert_close(found[1][1], found[0][1], 1e-5)


@pytest.mark.parametrize("rows, count", [(40, 17), (40, 16), (40, 0), (0, 0)])
@pytest.mark.parametrize("trains", [(True, True), (True, False), (False, True), (False, False)])
def test_log_probabilities_of_fewer_targets_than_rows(rows, count, trains, monkeypatch):
    """In chunks of 16 rows, of which the first 17, 16 or none have a target; and no row at all."""
    monkeypatch.setattr(fast, "LEAST_ROWS", 16)
    monkeypatch.setattr(fast, "LOGITS_AT_ONCE", 1)
    arguments, targets = (torch.randn(rows, 6), torch.randn(50, 6)), torch.randint(50, (count,))
    found = []
    for function in (fast.ChunkedLogProbs.apply, plain_log_probs):
        hidden, weight = (x.clone().requires_grad_(needed) for x, needed in zip(arguments, trains))
        values = function(hidden, weight, targets)
        if any(trains):
            (values * torch.arange(1.0, count + 1)).sum().backward()
        found.append((values.detach(), hidden.grad, weight.grad))
    for ours, plain in zip(*found):
        assert (ours is None) == (plain is None)
        if ours is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def plain_log_probs(hidden: torch.Tensor, weight: torch.Tensor,
                    targets: torch.Tensor) -> torch.Tensor:
    logits = hidden[: len(targets)] @ weight.T
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def test_log_probabilities_keep_no_logits_and_hold_one_chunk_of_them(monkeypatch):
    """Of 40 rows of 50 logits, in chunks of 16: nothing as large as two chunks is ever made."""
    monkeypatch.setattr(fast, "LEAST_ROWS", 16)
    monkeypatch.setattr(fast, "LOGITS_AT_ONCE", 1)
    sizes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    hidden = torch.randn(40, 6, requires_grad=True)
    weight, targets = torch.randn(50, 6), torch.randint(50, (40,))
    with Watched(), torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x):
        fast.ChunkedLogProbs.apply(hidden, weight, targets).sum().backward()
    assert max(sizes) == 16 * 50


@pytest.mark.parametrize("tied", [True, False])
def test_fp32_weights_with_bf16_products(tied):
    """What trains is fp32 and multiplies in bf16: both sides round, and agree within bf16's digits.
    """
    found = []
    for quick in (False, True):
        model = small_model(torch.bfloat16, tie_word_embeddings=tied)
        trainable = dict((accelerate(model) if quick else model).named_parameters())
        make_optimizer(trainable, TrainSettings(1, 1e-3))
        loss = accumulate_gradient(model, trainable, EIGHT, 60).item()
        found.append((loss, gradients(trainable)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    assert all(grad.dtype == torch.float32 for grad in found[1][1].values())
    for name, grad in found[0][1].items():
        assert (found[1][1][name] - grad).norm() < 0.05 * grad.norm(), name


def test_gradients_of_bf16_products_add_up_in_fp32():
    """Whether a weight's gradient comes as bf16 or as fp32, micro-batches give the same bits."""
    found = []
    for narrow in (True, False):
        model = accelerate(small_model(torch.bfloat16))
        trainable = dict(model.named_parameters())
        if narrow:
            make_optimizer(trainable, TrainSettings(1, 1e-3))  # which allows it
        accumulate_gradient(model, trainable, EIGHT, 20)
        found.append(gradients(trainable))
    assert_close(*found, 0.0)


def test_accelerating_changes_no_parameter_and_twice_is_once():
    model = small_model()
    names, before = list(model.state_dict()), summed_loss(model, EIGHT)[0]
    accelerate(accelerate(model))
    assert list(model.state_dict()) == names
    assert summed_loss(copy.deepcopy(model), EIGHT)[0].item() == pytest.approx(
        before.item(), rel=1e-6)
    assert {kind.__name__ for kind in REPLACED} == {
        "RMSNorm", "Attention", "MLP", "Qwen2"}


@pytest.fixture
def compiled_passes(monkeypatch):
    """`--compile`, taken back at the end."""
    monkeypatch.setattr(fast.OnePass, "wanted", False)
    torch.compiler.reset()
    return fast.compile_passes


@pytest.mark.parametrize("backend, device", [
    ("aot_eager", "cpu"),  # what torch records and how it is differentiated, without a compiler
    pytest.param("inductor", "cpu", marks=pytest.mark.slow),
    pytest.param("inductor", "cuda", marks=pytest.mark.gpu)])
def test_compiled_passes_have_the_same_gradients(backend, device, compiled_passes, monkeypatch):
    """Whatever the number of tokens; weighted targets too."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    for once in (x for x in vars(fast).values() if isinstance(x, fast.OnePass)):
        vars(once).pop("compiled", None)
    found = []
    for compiled in (False, True):
        if compiled:
            compiled_passes(torch.device(device), False)
        model, tuning = tuned("sft", True, False, True, device)
        for count in (8, 3):
            examples = [dataclasses.replace(example, weights=(0.5,) * sum(example.is_target))
                        if count == 3 else example for example in some_examples(count)]
            total, _ = summed_loss(model, examples)
            total.backward()
            found.append({"loss": total.detach(), **gradients(tuning.trainable)})
    assert vars(fast.rows_once).keys() >= {"compiled"}
    for plain, once in zip(found[:2], found[2:]):
        assert_close(plain, once, 1e-5)


def test_without_a_compiler_one_line_says_so(compiled_passes, monkeypatch):
    def fail(*args):
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    with pytest.raises(UserError, match="--compile: torch cannot compile here .RuntimeError"):
        compiled_passes(torch.device("cpu"), False)
    assert not fast.OnePass.wanted


def test_what_is_left_out_cannot_be_compiled():
    with pytest.raises(UsageError, match="--plain leaves out what --compile compiles; give one"):
        fast.compile_passes(torch.device("cpu"), True)


# ------------------------------------------------------------------------------- a reader's changes


class Doubled(Linear):
    """A map whose author changes its input in place."""

    def forward(self, x):
        return super().forward(x.mul_(2))


class DoubledLoRA(AdaptedLinear):
    def __init__(self, base):
        super().__init__(base)
        self.lora_A = nn.Parameter(torch.ones(2, base.in_features) / 10)

    def combine(self, y, inner):
        return y + inner.sum(1, keepdim=True)


def hooked(down: Linear) -> Linear:
    down.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    return down


def instance(down: Linear) -> Linear:
    down.forward = lambda x: cast_linear(x.mul_(2), down.weight, None)
    return down


def subclass(down: Linear) -> Linear:
    changed = Doubled(down.in_features, down.out_features, bias=False)
    changed.weight = down.weight
    return changed


@pytest.mark.parametrize("change", [hooked, instance, subclass])
def test_an_in_place_change_before_the_down_map_has_right_gradients(change):
    """A product that is recognised by its address would get the gradient of its old numbers."""
    found = []
    for quick in (False, True):
        model = small_model()
        if quick:
            accelerate(model)
        mlp = model.model.layers[0].mlp
        mlp.down_proj = change(mlp.down_proj)
        if quick and isinstance(mlp.down_proj, Doubled):
            mlp.down_proj.product = fast.linear
        trainable = dict(model.named_parameters())
        summed_loss(model, EIGHT)[0].backward()
        found.append(gradients(trainable))
    assert_close(found[1], found[0], 1e-5)
    exact = doubled_by_hand()
    assert_close(found[1], exact, 1e-5)


def doubled_by_hand() -> dict[str, torch.Tensor]:
    """The same gradients from a model that doubles out of place."""
    model = small_model()
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(2 * (F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)))
    summed_loss(model, EIGHT)[0].backward()
    return gradients(dict(model.named_parameters()))


def test_an_mlp_of_a_readers_own_keeps_its_forward():
    class Squared(MLP):
        def forward(self, x):
            return self.down_proj(F.relu(self.gate_proj(x)).square() * self.up_proj(x))

    model = small_model()
    model.model.layers[0].mlp.__class__ = Squared
    expected = summed_loss(model, EIGHT)[0].item()
    assert summed_loss(accelerate(model), EIGHT)[0].item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind, plain, quick", [("trains", 4, 2), ("LoRA", 4, 2), ("frozen", 3, 2)])
def test_of_swiglu_only_gate_and_up_are_kept(kind, plain, quick):
    """How many tensors as wide as the inner MLP stay for the backward pass."""
    kept: list[int] = []
    hold = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t,
                                                    lambda t: t)
    wide, rows = 1000, 50
    counted = []
    for accelerated in (False, True):
        model = small_model(hidden_size=8, intermediate_size=wide, num_hidden_layers=1)
        if accelerated:
            accelerate(model)
        if kind == "LoRA":
            add_lora(model, 2, 4.0)
        if kind == "frozen":
            model.requires_grad_(False)
        sizes: dict[int, int] = {}
        hold = torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t)
        x = torch.randn(rows, 8, requires_grad=True)
        with hold:
            y = model.model.layers[0].mlp(x)
        counted.append(list(sizes.values()).count(rows * wide))
        y.sum().backward()
    assert counted == [plain, quick]


@pytest.mark.parametrize("tied", [True, False])
def test_hooks_on_the_embedding_see_its_whole_gradient(tied):
    """Of a tied one, the rows that were read and the head's part together, as a dense matrix."""
    found = []
    for quick in (False, True):
        model = small_model(tie_word_embeddings=tied)
        model = accelerate(model) if quick else model
        weight, seen = model.model.embed_tokens.weight, []
        weight.register_hook(lambda grad: seen.append(grad.clone()))
        for _ in range(2):  # a second backward pass adds to the first
            summed_loss(model, EIGHT)[0].backward()
        assert len(seen) == 2 and not weight.grad.is_sparse
        torch.testing.assert_close(seen[0] + seen[1], weight.grad, atol=1e-5, rtol=1e-5)
        found.append(weight.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_a_loss_without_the_head_has_a_dense_gradient_too():
    model = accelerate(small_model())
    model.model.embed_tokens(torch.tensor([3, 1, 3])).square().sum().backward()
    grad = model.model.embed_tokens.weight.grad
    assert not grad.is_sparse and grad.any(1).nonzero().flatten().tolist() == [1, 3]


# ------------------------------------------------------------------------------------ single tricks


@pytest.mark.parametrize("function", [
    lambda x, y: Normalise.apply(x, y[0], 1e-6),
    lambda x, y: GatedProducts.apply(x, y, torch.ones(2, 8).double(), torch.eye(8).double())])
def test_the_gradients_written_out_are_right(function):
    """Against differences of the function itself; norms compute in fp32, hence the wide steps."""
    x, y = (torch.randn(3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(function, (x, y), eps=1e-2, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("narrow", [True, False])
def test_a_weight_in_fp32_times_bf16(narrow):
    """As autograd has it by itself; the weight's gradient stays bf16 if that is allowed."""
    torch.manual_seed(0)
    linear, x = Linear(24, 40), torch.randn(100, 24).bfloat16().requires_grad_()
    weight, y = linear.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    factor = torch.randn(100, 40).bfloat16()
    if narrow:
        linear.weight.grad_dtype = None
    ours = fast.linear(x, linear.weight, linear.bias)
    (ours * factor).sum().backward()
    theirs = F.linear(y, weight.bfloat16()) + linear.bias.bfloat16()
    (theirs * factor).sum().backward()
    assert ours.equal(theirs) and x.grad.equal(y.grad)
    assert linear.weight.grad.dtype == (torch.bfloat16 if narrow else torch.float32)
    torch.testing.assert_close(linear.weight.grad.float(), weight.grad)


def test_few_rows_give_what_many_give():
    """The product that is turned round for decoding, with a bias and without."""
    for bias in (True, False):
        linear, x = Linear(24, 40, bias=bias), torch.randn(200, 24)
        with torch.no_grad():
            assert 32 in FEW_ROWS and 200 not in FEW_ROWS
            torch.testing.assert_close(fast.linear(x[:32], linear.weight, linear.bias),
                                       linear(x)[:32])


@pytest.mark.parametrize("filler", (0, 15, 300))
@pytest.mark.parametrize("rows", (1, 300, 700))
@pytest.mark.parametrize("chunk", (256, 299, 1000))
@pytest.mark.parametrize("weighted", (False, True))
def test_the_chunked_cross_entropy_is_torchs(rows, filler, chunk, weighted, monkeypatch):
    """Loss and both gradients: rows that fit one chunk, fill some exactly, or leave a rest; filler
    counts for nothing. With weights and without."""
    monkeypatch.setattr(fast, "LOGITS_AT_ONCE", chunk * 50)
    torch.manual_seed(0)
    hidden = torch.randn(rows + filler, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets, weights = torch.randint(50, (rows,)), torch.rand(rows) if weighted else None
    (ChunkedCrossEntropy.apply(hidden, weight, targets, weights) / 7).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    losses = F.cross_entropy(hidden[:rows] @ weight.T, targets, reduction="none")
    expected = (losses * weights).sum() if weighted else losses.sum()
    (expected / 7).backward()
    assert ChunkedCrossEntropy.apply(hidden, weight, targets, weights).item() == pytest.approx(
        expected.item(), rel=1e-6)
    for our, theirs in zip(ours, (hidden.grad, weight.grad)):
        assert (our - theirs).abs().max() <= 1e-6 * max(1.0, theirs.abs().max())


def test_no_gradient_is_made_for_what_does_not_train():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(20, 8)
    ChunkedCrossEntropy.apply(hidden, weight, torch.arange(5), None).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert ChunkedCrossEntropy.apply(hidden, weight, torch.arange(5), None) > 0


def test_the_cross_entropy_in_bf16_has_fp32_sums():
    """Products in bf16, weights and their gradient in fp32: within bf16's three digits of the exact
    one.
    """
    torch.manual_seed(0)
    wide, weight = torch.randn(600, 32), torch.randn(50, 32, requires_grad=True)
    hidden, targets = wide.bfloat16().requires_grad_(), torch.randint(50, (600,))
    loss = ChunkedCrossEntropy.apply(hidden, weight, targets, None)
    loss.backward()
    assert loss.dtype == weight.grad.dtype == torch.float32 and hidden.grad.dtype == torch.bfloat16
    exact = weight.detach().clone().requires_grad_()
    expected = F.cross_entropy(wide @ exact.T, targets, reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert (weight.grad - exact.grad).norm() < 0.02 * exact.grad.norm()
