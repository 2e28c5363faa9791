"""The memory that train.py tells beforehand, beside what autograd keeps; and what is said if it is
too much.
"""

import gc
import weakref

import pytest
import torch

from adapters import Tuning
from conftest import small_model, some_examples
from data import Example
from fast import accelerate
from lora import add_lora
from model import Qwen2
from runtime import write_tensors
from train import (HOLES, Beside, Estimate, TrainSettings, TrainTotals, estimate, kept_bytes,
                   make_optimizer, needed_disk, save_checkpoint)


def full(model: Qwen2) -> Tuning:
    return Tuning(dict(model.named_parameters()))


def test_weights_and_moments_are_counted_exactly():
    model = small_model()
    numbers = sum(p.numel() for p in model.parameters())
    found = estimate(model, full(model), some_examples(8), 4, 20, False, 7.0)
    assert found.weights == 4 * numbers / 2**20
    assert found.optimiser == 12 * numbers / 2**20  # a gradient and two moments, in fp32
    assert found.total == found.weights + found.optimiser + found.activations + 7

    held = found.weights + 20  # by the process: more than the program and the weights
    assert estimate(model, full(model), some_examples(8), 4, 20, False, 7.0, held).program == 20
    assert estimate(model, full(model), some_examples(8), 4, 20, False, 7.0, 1.0).program == 7

    tuning = Tuning(add_lora(model, rank=4, alpha=8.0))  # its numbers stand beside the weights
    trained = sum(p.numel() for p in tuning.trainable.values())
    found = estimate(model, tuning, some_examples(8), 4, 20, False, 7.0)
    assert found.weights == pytest.approx(4 * (numbers + trained) / 2**20)
    assert found.optimiser == 12 * trained / 2**20


def test_gradients_of_a_single_micro_batch_stand_in_the_place_of_its_activations():
    """They come as the activations go; of several micro-batches, they stand beside the next one."""
    model = small_model()
    numbers = sum(p.numel() for p in model.parameters())
    several, single = (estimate(model, full(model), some_examples(8), 4, most, False, 0.0)
                       for most in (20, 1000))
    assert several.optimiser - single.optimiser == pytest.approx(4 * numbers / 2**20)
    few = [Example([1, 2], [True, True])]
    assert estimate(model, full(model), few, 1, 1000, False, 0.0).activations >= (
        4 * numbers / 2**20)


def test_another_model_and_its_passes_are_counted():
    """Its weights stand beside ours; its pass is over before our backward pass begins, so that the
    larger of the two moments counts.
    """
    model = small_model()

    def told(beside: Beside) -> Estimate:
        return estimate(model, full(model), some_examples(8), 4, 100, False, 7.0, beside=beside)

    alone, found = told(Beside()), told(Beside(3 * 2**20, lambda tokens: tokens))
    assert (alone.teacher, found.teacher) == (0, 3) and found.activations == alone.activations
    assert found.total == pytest.approx(alone.total + 3)
    assert "teacher" not in alone.line(None) and ", the teacher's 3, " in found.line(None)
    wide = told(Beside(0, lambda tokens: tokens * 2**20)).activations - alone.activations
    assert HOLES[False] * (alone.tokens - 1) < wide < HOLES[False] * alone.tokens


def test_tokens_at_once_are_bounded_by_the_flag_the_batch_and_the_longest_example():
    model, examples = small_model(), some_examples(8)
    lengths = [len(example.ids) for example in examples]
    mean, longest = sum(lengths) / 8, max(lengths)

    def tokens(batch_size: int, most: int) -> int:
        return estimate(model, full(model), examples, batch_size, most, False, 0.0).tokens

    assert tokens(4, 10_000) == round(4 * mean)
    assert tokens(4, 40) == 40 and tokens(4, 1) == longest


def test_prompts_grow_by_what_the_model_writes():
    """GRPO and distillation on policy have the prompts alone as examples: how many completions
    a step learns from is not known, but the flag bounds the tokens at once, or the longest does.
    """
    model = small_model()
    prompts = [Example(e.ids, [False] * len(e.ids)) for e in some_examples(8)]
    longest = max(len(e.ids) for e in prompts)

    def tokens(most: int) -> int:
        return estimate(model, full(model), prompts, 2, most, False, 0.0, new_tokens=100).tokens

    assert tokens(5000) == 5000 and tokens(50) == longest + 100


def test_what_is_kept_is_known_for_a_plain_layer_of_each_kind():
    """Twice the layers keep twice as much, apart from the embedding's end and the loss."""
    kept = [kept_bytes(model, full(model), some_examples(8))[0]
            for model in (small_model(num_hidden_layers=n) for n in (2, 4, 6))]
    assert kept[1] - kept[0] == pytest.approx(kept[2] - kept[1], rel=0.01) and kept[0] > 0
    # At least the two inputs of the norms, gate, up and their product, the three of attention.
    assert kept[1] - kept[0] > 2 * 4 * (2 * 32 + 3 * 48 + 3 * 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_found_out_leaves_nothing_behind(dtype):
    """A graph that holds itself would keep the activations, and the weights too."""
    model = small_model(dtype)
    weights = [weakref.ref(p) for p in model.parameters()]
    kept_bytes(model, full(model), some_examples(8))
    del model
    gc.collect()
    assert not any(weight() is not None for weight in weights)


def test_what_the_loss_keeps_of_the_head_counts_once_and_not_for_each_token():
    """A gradient of the head, if it trains; an adapter has none."""
    model = accelerate(small_model())
    for count in (2, 8):
        _, once = kept_bytes(model, full(model), some_examples(count))
        assert once == 4 * model.head_weight.numel()
    model.requires_grad_(False)
    front = torch.zeros(2, 2, 3, 2, 8, requires_grad=True)
    adapter = Tuning({"front": front}, prefix=lambda: front)
    assert kept_bytes(model, adapter, some_examples(8))[1] == 0


def test_divided_weights_are_told_for_one_of_the_processes():
    model = small_model(num_hidden_layers=6)
    one, two = (estimate(model, full(model), some_examples(8), 8, 1000, False, 0.0, parts=parts)
                for parts in (1, 2))
    assert two.optimiser == one.optimiser / 2
    assert two.activations / HOLES[True] == pytest.approx(one.activations / HOLES[False])
    rest = sum(p.numel() for name, p in model.named_parameters() if ".layers." not in name)
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    whole = 2 * 4 * (rest + layers / 3)  # embedding, head and two of six layers; with gradients
    assert two.weights == pytest.approx(one.weights / 2 + whole / 2**20)


def test_the_estimate_leaves_no_gradient_and_no_weight_changed():
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    estimate(model, full(model), some_examples(4), 4, 100, True, 0.0)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_computing_layers_twice_keeps_less():
    model = small_model(num_hidden_layers=6)
    kept = [estimate(model, full(model), some_examples(8), 8, 10_000, twice, 0.0).activations
            for twice in (False, True)]
    assert kept[1] < kept[0]


@pytest.mark.parametrize("again", [False, True])
def test_the_holes_of_the_heap_are_a_share_of_the_activations(again, monkeypatch):
    model = small_model()
    with_holes = estimate(model, full(model), some_examples(8), 4, 100, again, 0.0).activations
    share = HOLES[again]
    monkeypatch.setitem(HOLES, again, 1.0)
    found = estimate(model, full(model), some_examples(8), 4, 100, again, 0.0).activations
    assert with_holes == pytest.approx(share * found) and share > 1


@pytest.mark.parametrize(("whole", "keep", "best"), [(True, 0, False), (True, 2, True),
                                                      (False, 0, True)])
def test_the_disk_is_what_the_files_take(whole, keep, best, tmp_path):
    """Beside the files themselves: the last checkpoint, a new one, the best, and the result."""
    model = small_model(torch.bfloat16)
    tuning = full(model) if whole else Tuning(add_lora(model, rank=4, alpha=8.0))
    optimizer = make_optimizer(tuning.trainable, TrainSettings(1, 1e-3))
    save_checkpoint(tmp_path / "step-1", tuning.trainable, optimizer, TrainTotals(steps=1))
    checkpoint = (tmp_path / "step-1/state.safetensors").stat().st_size / 2**20
    tensors = ({n: p.to(torch.bfloat16) for n, p in model.named_parameters()} if whole
               else tuning.trainable)
    write_tensors(tmp_path / "result", tensors)
    result = (tmp_path / "result").stat().st_size / 2**20
    most, last = needed_disk(model, tuning, whole, keep, best)
    training, ended = max(1, keep) + best + 1, keep + best
    # The names that stand in a file are no small part of one as small as these.
    assert 0.75 * training * checkpoint < most <= training * checkpoint
    assert 0.75 * (ended * checkpoint + result) < last <= ended * checkpoint + result


def test_the_flag_that_lowers_it_is_named():
    wide = Estimate(weights=10, optimiser=10, activations=300, program=50, tokens=4096)
    assert wide.mend(400, False) is None and wide.mend(None, False) is None
    assert wide.mend(300, False) == ("more than is free: give --micro-batch-tokens 1024 or "
                                     "--grad-checkpoint")
    assert wide.mend(300, True) == "more than is free: give --micro-batch-tokens 1024"
    heavy = Estimate(weights=100, optimiser=300, activations=30, program=50, tokens=4096)
    assert "--method" in heavy.mend(300, False)
    assert wide.line(None).startswith("about 370 MiB: weights 10, gradients and moments 10, ")
    assert wide.line(1000).endswith("; 1,000 MiB are free for it")
