"""train.py: the loss of packed documents, the optimiser step, and a run that goes on to the same
bits.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import train as module
from attention import PackedAttention
from checkpoint import checkpoints
from conftest import Waits, small_model, some_examples
from data import Example, count_targets, pack
from lora import add_lora
from model import Qwen2
from prefix import Prefix, prefix_from_ids
from runtime import UserError, append_metrics
from train import (TrainSettings, accumulate_gradient, best_step, learning_rate_at, make_optimizer,
                   mean_loss, summed_loss, train)

METHODS = ("full", "lora", "prefix", "projected prefix")


def prepare(method: str) -> tuple[Qwen2, dict[str, nn.Parameter], Callable[[], Tensor] | None]:
    """A fresh model, what trains of it, and its prefix."""
    model = small_model()
    if method == "full":
        return model, dict(model.named_parameters()), None
    if method == "lora":
        return model, add_lora(model, rank=4, alpha=8.0), None
    model.requires_grad_(False)
    prefix = Prefix(prefix_from_ids(model, [5, 6, 7]), projection=method != "prefix")
    return model, dict(prefix.named_parameters()), prefix


EIGHT = some_examples(8)


def settings(steps: int, **changes) -> TrainSettings:
    return TrainSettings(steps, **{"learning_rate": 3e-3, "warmup": 0.2, "log_every": 1} | changes)


def run(method: str, folder: Path, steps: int = 10,
        **options) -> tuple[dict[str, Tensor], list[dict]]:
    """Train on batches of three; the trained tensors afterwards, and the records of the log."""
    model, trainable, prefix = prepare(method)
    examples, records = some_examples(12), []

    def batch_at(step: int) -> list[Example]:
        return [examples[(3 * step + i) % 12] for i in range(3)]

    changes = {
        name: options.pop(name)
        for name in ("save_every", "save_minutes", "eval_every", "keep", "clip",
                     "micro_batch_tokens") if name in options
    }
    train(model, trainable, batch_at, settings(steps, **changes), folder, prefix=prefix,
          **{"on_log": records.append} | options)
    return {name: p.detach().clone() for name, p in trainable.items()}, records


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    return found


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance, name


# --------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("with_prefix", (False, True))
def test_the_packed_loss_is_the_loss_of_each_document_alone(with_prefix):
    """Documents in one row do not see each other: their losses add up.

    Alone means: no packing at all, plain torch.
    """
    model = small_model()
    prefix = prefix_from_ids(model, [9, 3, 4, 1]) if with_prefix else None
    with torch.no_grad():
        alone = []
        for example in EIGHT:
            attention = PackedAttention([len(example.ids)], prefix)
            log_probs = model.logits(
                model(torch.tensor(example.ids), attention.positions, attention)).log_softmax(-1)
            wanted = [t for t in range(1, len(example.ids)) if example.is_target[t]]
            alone.append(-sum(log_probs[t - 1, example.ids[t]] for t in wanted).item())
            assert summed_loss(model, [example], prefix)[0].item() == pytest.approx(
                alone[-1], rel=1e-6)
        total, count = summed_loss(model, EIGHT, prefix)
        assert total.item() == pytest.approx(sum(alone), rel=1e-6)
        assert count == count_targets(EIGHT)
    assert mean_loss(model, EIGHT, prefix, micro_batch_tokens=40) == pytest.approx(
        sum(alone) / count_targets(EIGHT), rel=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_cutting_a_batch_changes_nothing(method):
    """One batch of 8 = 2 x 4 = 8 x 1, loss and gradients: the sum is divided by the targets of the
    whole step.
    """
    model, trainable, prefix = prepare(method)
    found = []
    for most in (10_000, 60, 1):  # tokens at once
        loss = accumulate_gradient(model, trainable, EIGHT, most, prefix).item()
        found.append((loss, gradients(trainable)))
    assert sum(grad.abs().sum() for grad in found[0][1].values()) > 0.1
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert_close(grads, found[0][1], 1e-6)


def test_the_loop_cuts_by_tokens_and_logs_the_same_figures(tmp_path):
    """The same through `train`: --micro-batch-tokens changes neither loss nor gradient norm."""
    logs = [
        run("full", tmp_path / str(most), steps=2, micro_batch_tokens=most)[1]
        for most in (1, 30, 10_000)
    ]
    for log in logs[1:]:
        for record, first in zip(log, logs[0], strict=True):
            assert record["loss"] == pytest.approx(first["loss"], abs=1e-6)
            assert record["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_common_beginning_changes_nothing(method):
    """Documents that begin alike share those tokens in a batch, and give the loss and gradients
    that they give alone.
    """
    model, trainable, prefix = prepare(method)
    begin = list(range(10, 19))
    alike = [Example(begin + e.ids, [False] * len(begin) + e.is_target) for e in EIGHT]
    assert pack(alike).shared >= len(begin)
    found = []
    for parts in ([alike], [[example] for example in alike]):
        losses = [summed_loss(model, part, prefix() if prefix else None)[0] for part in parts]
        sum(losses).backward()
        found.append((sum(losses).item(), gradients(trainable)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_close(found[0][1], found[1][1], 2e-5)


def test_reads_are_counted():
    """By every way to read a number; a tensor that stays one is none."""
    x = torch.tensor([1.0, 2.0])
    with Waits() as waits:
        x.sum() + x
        assert waits.count == 0
        x[0].item(), float(x[1]), x.tolist(), bool(x[0] > 0)
    assert waits.count == 4


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_the_device_once(method, tmp_path):
    """In micro-batches too: loss and gradient's norm are read together, and nothing else is."""
    found = []
    for steps in (1, 4):
        with Waits() as waits:
            run(method, tmp_path / str(steps), steps=steps, micro_batch_tokens=20)
        found.append(waits.count)
    assert found[1] - found[0] == 3


def weighted(example: Example, weights) -> Example:
    return replace(example, weights=tuple(weights))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", (10_000, 1))
def test_weights_of_one_change_nothing_and_others_scale_each_token(method, most):
    model, trainable, prefix = prepare(method)
    plain = accumulate_gradient(model, trainable, EIGHT, most, prefix).item(), gradients(trainable)
    ones = [weighted(e, [1.0] * count_targets([e])) for e in EIGHT]
    same = accumulate_gradient(model, trainable, ones, most, prefix).item(), gradients(trainable)
    assert plain[0] == pytest.approx(same[0], rel=1e-6)
    assert_close(plain[1], same[1], 1e-6)

    # Of one document, the weights (1, 0, 0, …), (0, 1, 0, …), … add up to weights of one.
    one, count = EIGHT[7], count_targets([EIGHT[7]])
    whole = accumulate_gradient(model, trainable, [one], most, prefix).item(), gradients(trainable)
    total, sums = 0.0, {name: torch.zeros_like(p) for name, p in trainable.items()}
    for target in range(count):
        part = weighted(one, [2.0 * (i == target) for i in range(count)])
        total += accumulate_gradient(model, trainable, [part], most, prefix).item() / 2
        for name, grad in gradients(trainable).items():
            sums[name] += grad / 2
    assert total == pytest.approx(whole[0], rel=1e-5)
    assert_close(sums, whole[1], 1e-5)


def test_too_few_weights_are_an_error():
    with pytest.raises(ValueError, match="problem 0: 1 weights for 2 targets"):
        pack([weighted(EIGHT[0], [1.0])])


def test_the_loop_takes_any_loss(tmp_path):
    """Half of the supervised loss of each token has half its gradient, and the same count."""
    model, trainable, _ = prepare("lora")

    def half(model, examples, prefix):
        total, count = summed_loss(model, examples, prefix)
        return total / 2, count

    logs = []
    for loss in (summed_loss, half):
        model, trainable, _ = prepare("lora")
        train(model, trainable, lambda step: EIGHT, settings(1), tmp_path / loss.__name__,
              loss=loss, on_log=logs.append)
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"] / 2)
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"] / 2)


def test_targets_are_counted_without_the_first_token():
    assert count_targets([Example([1, 2, 3], [True, True, True]),
                          Example([1, 2], [False, False])]) == 2


# ---------------------------------------------------------------------------------------- optimiser


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    plan = TrainSettings(100, learning_rate=2.0, warmup=0.1)
    rates = [learning_rate_at(step, plan) for step in range(100)]
    assert rates[:10] == pytest.approx(
        [0.2 * (step + 1) for step in range(10)])  # reaches the peak at the tenth
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0)  # half-way down at half of the rest
    assert rates[32] == pytest.approx(1 + math.cos(math.pi * 22 / 90))
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[99] < 0.001
    assert learning_rate_at(0, TrainSettings(1, learning_rate=2.0)) == 2.0
    assert learning_rate_at(0, TrainSettings(50, learning_rate=2.0, warmup=0.0)) == 2.0
    assert [learning_rate_at(step, TrainSettings(4, 2.0, warmup=1.0)) for step in range(4)] == [
        0.5, 1.0, 1.5, 2.0
    ]


def test_the_loop_uses_that_rate(tmp_path):
    _, records = run("lora", tmp_path, steps=6)
    assert [record["learning_rate"] for record in records] == [
        learning_rate_at(step, settings(6)) for step in range(6)
    ]


def test_weight_decay_is_on_matrices_only():
    """Without any gradient a matrix still shrinks by lr · decay, and a norm's scale or a bias does
    not.
    """
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(dict(model.named_parameters()),
                               settings(10, learning_rate=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        shrunk = before[name] * (1 - 0.1 * 0.5) if p.ndim == 2 else before[name]
        assert (p - shrunk).abs().max() < 1e-7, name
    assert {p.ndim for p in model.parameters()} == {1, 2}


def test_the_optimiser_is_adamw():
    """Three steps against the paper's own lines (Loshchilov & Hutter 2019, algorithm 2)."""
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(3, 4))
    optimizer = make_optimizer({"matrix": matrix}, settings(3, learning_rate=0.1, weight_decay=0.2))
    x, m, v = matrix.detach().clone().double(), 0.0, 0.0
    for t in range(1, 4):
        gradient = torch.randn(3, 4)
        matrix.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        x = x - 0.1 * (m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8) + 0.2 * x)
        assert (matrix - x).abs().max() < 1e-6


@pytest.mark.parametrize("clip", (0.01, 1e6))
def test_the_gradient_is_clipped_to_its_norm(clip, tmp_path, monkeypatch):
    """What the optimiser gets is no longer than `clip`, in the same direction; what is logged is
    the norm before.
    """
    norms = []

    def watched(trainable, plan, factors):
        optimizer = make_optimizer(trainable, plan, factors)
        optimizer.register_step_pre_hook(lambda *_: norms.append(
            torch.stack([p.grad.norm() for p in trainable.values()]).norm().item()))
        return optimizer

    monkeypatch.setattr(module, "make_optimizer", watched)
    _, records = run("full", tmp_path, steps=3, clip=clip)
    logged = [record["grad_norm"] for record in records]
    assert min(logged) > 0.01
    assert norms == pytest.approx([clip] * 3 if clip < 1 else logged, rel=1e-3)


# ----------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_are_five_a_kill_and_five_more_bit_for_bit(method, tmp_path):
    """The run dies in step 7, two steps behind its checkpoint; it goes on from step 5 to the same
    bits.
    """
    whole, log = run(method, tmp_path / "whole")

    class Killed(Exception):
        pass

    def die(step: int) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        run(method, tmp_path / "cut", save_every=5, on_step=die)
    (last,) = checkpoints(tmp_path / "cut")
    assert last.name == "step-5"
    resumed, log_behind = run(method, tmp_path / "cut", resume_from=last)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    exact = ("step", "loss", "learning_rate", "grad_norm")
    assert [[r[key] for key in exact] for r in log_behind
            ] == [[r[key] for key in exact] for r in log[5:]]


def test_an_interrupted_run_ends_its_step_saves_and_goes_on(tmp_path):
    whole, _ = run("lora", tmp_path / "whole")
    model, trainable, _ = prepare("lora")
    asked = iter([False, False, True])
    examples = some_examples(12)

    def batch_at(step: int) -> list[Example]:
        return [examples[(3 * step + i) % 12] for i in range(3)]

    totals = train(model, trainable, batch_at, settings(10), tmp_path / "cut",
                   stop=lambda: next(asked))
    assert (totals.steps, totals.interrupted) == (3, True)
    (last,) = checkpoints(tmp_path / "cut")
    assert last.name == "step-3"
    resumed, _ = run("lora", tmp_path / "cut", resume_from=last)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_totals_go_on_too(tmp_path):
    model, trainable, _ = prepare("lora")
    plan, folder = settings(2), tmp_path
    train(model, trainable, lambda step: EIGHT, settings(4), folder, stop=lambda: True)
    totals = train(model, trainable, lambda step: EIGHT, plan, folder,
                   resume_from=checkpoints(folder)[0])
    assert totals.steps == 2 and not totals.interrupted and totals.seconds > 0
    assert totals.tokens == 2 * sum(len(example.ids) for example in EIGHT)
    assert totals.target_tokens == 2 * count_targets(EIGHT)


def test_a_run_that_is_done_does_nothing_more(tmp_path):
    before, _ = run("lora", tmp_path, steps=3)
    after, log = run("lora", tmp_path, steps=3, resume_from=checkpoints(tmp_path)[0])
    assert log == [] and all(torch.equal(before[name], after[name]) for name in before)


def test_the_state_of_another_method_is_refused(tmp_path):
    run("lora", tmp_path, steps=1)
    with pytest.raises(UserError,
                       match="step-1: holds the state of other parameters than this method trains"):
        run("prefix", tmp_path, steps=2, resume_from=checkpoints(tmp_path)[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_on_one_batch_falls_and_the_frozen_rest_stays(method, tmp_path):
    model, trainable, prefix = prepare(method)
    ids = {id(p) for p in trainable.values()}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in ids}
    rate = {"full": 3e-3, "lora": 1e-2}.get(method, 0.1)
    start = mean_loss(model, EIGHT, prefix() if prefix else None)
    losses = []
    train(model, trainable, lambda step: EIGHT, settings(30, learning_rate=rate), tmp_path,
          prefix=prefix, on_log=lambda record: losses.append(record["loss"]))  # fmt: skip
    assert losses[0] == pytest.approx(start, abs=1e-5)
    assert mean_loss(model, EIGHT, prefix() if prefix else None) < losses[-1] < 0.93 * losses[0]
    now = dict(model.named_parameters())
    assert (method == "full") == (not frozen)
    assert all(torch.equal(frozen[name], now[name]) for name in frozen)


def test_a_loss_that_is_no_number_stops_and_names_step_and_batch(tmp_path):
    """The third batch meets a broken weight: no parameter is touched in that step, and what is
    saved is the state before it.
    """
    model, trainable, _ = prepare("lora")
    kept = {}

    def batch_at(step: int) -> list[Example]:
        if step == 2:
            kept.update({name: p.detach().clone() for name, p in trainable.items()})
            model.model.norm.weight.data[0] = float("nan")
        return EIGHT[2 * step : 2 * step + 2]

    with pytest.raises(UserError) as error:
        train(model, trainable, batch_at, settings(5), tmp_path)
    assert str(error.value).startswith("step 3: the loss is nan")
    assert str(error.value).endswith("this batch: problem 4, problem 5")
    assert all(torch.equal(kept[name], p) for name, p in trainable.items())
    (saved,) = checkpoints(tmp_path)
    state = load_file(saved / "state.safetensors")
    assert saved.name == "step-2"
    assert all(torch.equal(kept[name], state[f"param.{name}"]) for name in trainable)


def test_a_gradient_that_overflows_stops_too(tmp_path):
    model, trainable, _ = prepare("full")
    trainable["model.norm.weight"].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(UserError,
                       match="step 1: the loss is [0-9.]+, the gradient's norm (nan|inf)"):
        train(model, trainable, lambda step: EIGHT, settings(2), tmp_path)


@pytest.mark.parametrize("keep, left", [(1, [7]), (2, [6, 7]), (10, [2, 4, 6, 7])])
def test_only_the_last_checkpoints_are_kept(keep, left, tmp_path):
    run("lora", tmp_path, steps=7, save_every=2, keep=keep)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step}" for step in left]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == sorted(
        f"step-{step}" for step in left)


# ------------------------------------------------------------------------------------------ the log


def test_what_a_line_of_the_log_holds(tmp_path):
    model, trainable, _ = prepare("lora")
    records, steps = [], []
    train(
        model,
        trainable,
        lambda step: EIGHT,
        settings(7, log_every=3),
        tmp_path,
        on_log=records.append,
        on_step=steps.append,
    )
    assert [record["step"] for record in records] == [3, 6, 7] and steps == list(range(1, 8))
    assert list(records[0]) == [
        *("step", "loss", "learning_rate", "grad_norm", "tokens_per_second",
          "target_tokens_per_second", "memory_mib")
    ]
    tokens = sum(len(example.ids) for example in EIGHT)
    for record in records:
        ratio = record["target_tokens_per_second"] / record["tokens_per_second"]
        assert ratio == pytest.approx(count_targets(EIGHT) / tokens)
    json.dumps(records, allow_nan=False)


def test_a_checkpoint_every_few_minutes_by_the_clock(tmp_path, monkeypatch):
    """Of a clock that goes 30 s a reading, three readings a step: every second step is saved."""
    ticks = iter(range(0, 10**6, 30))
    monkeypatch.setattr("train.perf_counter", lambda: float(next(ticks)))
    saved = []
    monkeypatch.setattr("train.save_checkpoint", lambda path, *rest: saved.append(path.name))
    run("lora", tmp_path, steps=6, save_minutes=3)
    assert saved == ["step-2", "step-4", "step-6"]
    run("lora", tmp_path, steps=3)  # without the clock: at the end alone
    assert saved[3:] == ["step-3"]


def test_the_lowest_held_out_loss_keeps_its_checkpoint(tmp_path):
    """Also when later ones are dropped; the losses stand in the log."""
    losses = iter([3.0, 1.0, 2.0])
    run("lora", tmp_path, steps=6, eval_every=2, keep=1, held_out_loss=lambda: next(losses),
        on_log=lambda record: append_metrics(tmp_path / "metrics.jsonl", record))
    assert best_step(tmp_path) == 4
    assert [path.name for path in checkpoints(tmp_path)] == ["step-4", "step-6"]
    assert best_step(tmp_path / "nowhere") is None
    # What a text or a stranger says is none of these losses.
    for record in ({"step": 8, "eval_loss": "0"}, {"step": 9, "eval_loss": None}, {"step": 10}):
        append_metrics(tmp_path / "metrics.jsonl", record | {"note": '"eval_loss"'})
    assert best_step(tmp_path) == 4
