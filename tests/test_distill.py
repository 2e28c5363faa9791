"""Distillation: divergences beside plain sums, weights of tokens, and a student that comes near its
teacher, off policy and on policy.
"""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

import distill
import mathft
from checkpoint import load_model, save_model
from conftest import Waits, small_model, some_examples
from data import Example, Problem
from distill import Flags, distillation_loss, divergences, weighted
from fast import accelerate
from flags import run_command
from methods import Run
from tokenizer import Tokenizer
from train import accumulate_gradient, mean_loss, predict, summed_loss

EIGHT = some_examples(8)


def other_model(seed: int = 7):
    """A teacher: the small model with its weights moved."""
    model, generator = small_model(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.requires_grad_(False)


def distribution(model, example) -> list[list[float]]:
    """The next-token distributions over the first 60 tokens at an example's targets."""
    batch, hidden = predict(model, [example])
    return model.logits(hidden[: len(batch.targets)])[:, :60].softmax(-1).tolist()


# ------------------------------------------------------------------------------------- divergences


@pytest.mark.parametrize("reverse", [False, True])
def test_divergences_beside_plain_sums(reverse, monkeypatch):
    """In chunks of five; the last four rows of the vocabulary are padding."""
    monkeypatch.setattr(distill, "ROWS_AT_ONCE", 5)
    student, teacher = small_model(), other_model()
    for example in EIGHT[:3]:
        batch, hidden = predict(student, [example])
        _, known = predict(teacher, [example])
        n = len(batch.targets)
        found = divergences(student, hidden[:n], teacher, known[:n], 60, reverse).tolist()
        pairs = zip(distribution(teacher, example), distribution(student, example))
        wanted = [sum(a * math.log(a / b) for a, b in zip(*((q, p) if reverse else (p, q))))
                  for p, q in pairs]
        assert found == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(reverse):
    model, teacher = small_model(), small_model().requires_grad_(False)
    loss = distillation_loss(Run(teacher, None, None, None, {}), 64, 1.0, reverse)
    trainable = dict(model.named_parameters())
    found = accumulate_gradient(model, trainable, EIGHT, 50, loss=loss).item()
    assert found == pytest.approx(0, abs=1e-6)
    assert max(p.grad.abs().max().item() for p in trainable.values()) < 1e-5


def test_the_loss_reads_no_number_from_the_device():
    model = accelerate(small_model())
    loss = distillation_loss(Run(other_model(), None, None, None, {}), 64, 0.5, False)
    with Waits() as waits:
        accumulate_gradient(model, dict(model.named_parameters()), EIGHT, 40, loss=loss)
    assert waits.count == 0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("quick", [False, True])
def test_alpha_mixes_divergence_and_supervised_loss(alpha, quick):
    """Also in micro-batches, and by the tricks of fast.py."""
    def model():
        return accelerate(small_model()) if quick else small_model()

    teacher = Run(other_model(), None, None, None, {})

    def gradient(loss, most=10_000):
        own = model()
        trainable = dict(own.named_parameters())
        mean = accumulate_gradient(own, trainable, EIGHT, most, loss=loss).item()
        return mean, torch.cat([p.grad.flatten() for p in trainable.values()])

    supervised, divergence = gradient(summed_loss), gradient(distillation_loss(teacher, 64, 1.0,
                                                                               False))
    for most in (10_000, 40):
        mean, grad = gradient(distillation_loss(teacher, 64, alpha, False), most)
        assert mean == pytest.approx(alpha * divergence[0] + (1 - alpha) * supervised[0], rel=1e-4)
        torch.testing.assert_close(grad, alpha * divergence[1] + (1 - alpha) * supervised[1],
                                   rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------------------------------- examples


def test_the_answers_line_is_that_of_the_last_turn(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    turns = [("user", "q"), ("assistant", "one two three"), ("user", "r"), ("assistant", "s\nA: 4")]
    ids, targets = tokenizer.chat([{"role": role, "content": text} for role, text in turns])
    example = weighted(tokenizer, Example(ids, targets, "chat"), "s\nA: 4", 1.0, 5.0)
    heavy = [token for token, weight in
             zip([t for t, wanted in zip(ids, targets) if wanted], example.weights) if weight == 5]
    assert tokenizer.decode(heavy[:-1]) == "A: 4" and heavy[-1] == tokenizer.end_id


def test_weights_of_the_answers_line_and_of_wrong_solutions(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    args = SimpleNamespace(system="Add.", max_length=500, train_on="all")
    teacher = str(tiny_folder)
    problems = [Problem("right", "1 + 1?", "It is 2.\n#### 2", "2"),
                Problem("wrong", "1 + 1?", "It is 3.\n#### 3", "2")]
    found, dropped = distill.examples(tokenizer, problems, args, Flags(teacher))
    assert [e.name for e in found] == ["right"] and found[0].weights == () and dropped == 0
    flags = Flags(teacher, answer_weight=3.0, wrong_weight=0.5)
    found, _ = distill.examples(tokenizer, problems, args, flags)
    last = len(tokenizer.encode("#### 2")) + 1  # and the end token
    for example, share in zip(found, (1.0, 0.5)):
        first = sum(example.is_target) - last
        assert example.weights == (share,) * first + (3 * share,) * last


# ------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def world(tiny_folder, tmp_path):
    """A teacher's folder and a file of problems."""
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    save_model(model, tmp_path / "teacher", tiny_folder)
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {n} + {n}?", "answer":
                                        f"#### {n + n}"}) + "\n" for n in range(12)))
    return ["--objective", "distill", "--method", "sft", "--model", str(tiny_folder), "--dataset",
            str(data), "--eval-limit", "0", "--dtype", "fp32", "--device", "cpu", "--batch-size",
            "4", "--max-new-tokens", "8", "--lr", "3e-3"], tmp_path


def test_the_memory_told_before_counts_the_teacher(world):
    _, folder = world
    student = load_model(folder / "teacher", "cpu", torch.float32, torch.bfloat16)
    needs = distill.beside(student, Flags(str(folder / "teacher")))
    config, weights = student.config, sum(p.numel() for p in student.parameters())
    assert needs.weights == 4 * weights  # in the dtype of the student's products
    # Few tokens: the logits of a chunk. Many: a layer of the teacher.
    assert needs.passing(8) >= 4 * 8 * config.vocab_size
    assert needs.passing(2000) - needs.passing(1000) >= 4 * 1000 * config.hidden_size
    # A folder that claims a million layers is refused when it is loaded; counting builds one.
    path = folder / "teacher" / "config.json"
    path.write_text(path.read_text().replace(f'"num_hidden_layers": {config.num_hidden_layers}',
                                             '"num_hidden_layers": 1000000'))
    deep = distill.beside(student, Flags(str(folder / "teacher"))).weights
    assert deep > 1000 * needs.weights


def test_the_line_before_a_run_names_the_teacher(world, capsys):
    words, folder = world
    words = [*words, "--teacher", str(folder / "teacher"), "--steps", "1", "--output-dir",
             str(folder / "run")]
    assert run_command(mathft.main, words) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory "))
    assert ", the teacher's " in line


@pytest.mark.parametrize("more", [["--alpha", "1"], ["--on-policy"]])
def test_a_student_comes_near_its_teacher(more, world):
    words, folder = world
    run = folder / "run"
    words = [*words, "--teacher", str(folder / "teacher"), "--steps", "25", "--log-every", "1",
             "--output-dir", str(run), *more]
    assert run_command(mathft.main, words) == 0
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]
    assert all(loss >= 0 for loss in losses) and sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_a_run_on_policy_resumes_to_the_same_bits(world, capsys):
    """What the student writes is a function of its weights, the seed and the step. Another teacher
    of the same name is refused.
    """
    words, folder = world
    words += ["--teacher", str(folder / "teacher"), "--on-policy", "--steps", "4",
              "--save-every", "2", "--keep", "2"]
    for run in ("whole", "cut"):
        assert run_command(mathft.main, [*words, "--output-dir", str(folder / run)]) == 0
    shutil.rmtree(folder / "cut" / "checkpoints" / "step-4")
    assert run_command(mathft.main, ["--resume", str(folder / "cut")]) == 0
    whole, cut = ((folder / run / "model" / "model.safetensors").read_bytes()
                  for run in ("whole", "cut"))
    assert whole == cut
    args = json.loads((folder / "cut" / "args.json").read_text())
    assert args["data"]["teacher"] == distill.sources(Flags(str(folder / "teacher")))["teacher"]
    shutil.copy(folder / "whole" / "model" / "model.safetensors", folder / "teacher")
    assert run_command(mathft.main, ["--resume", str(folder / "cut"), "--steps", "5"]) == 1
    said = f"{folder / 'teacher'}: holds other weights than when {folder / 'cut'} began"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("idle", [["--alpha", "0.3"], ["--answer-weight", "2"],
                                  ["--wrong-weight", "1"], ["--tokens", "1000"]])
def test_on_policy_refuses_flags_without_effect(idle, world, capsys):
    words, folder = world
    words = [*words, "--teacher", str(folder / "teacher"), "--on-policy", *idle]
    assert run_command(mathft.main, words) == 2
    assert f"{idle[0]} says nothing about --on-policy" in capsys.readouterr().err


def test_a_teacher_is_needed_and_reads_the_same_tokens(world, tmp_path, capsys):
    words, folder = world
    assert run_command(mathft.main, [*words, "--output-dir", str(folder / "a")]) == 2
    assert "--teacher is missing" in capsys.readouterr().err
    path = folder / "teacher" / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["added_tokens"].append(settings["added_tokens"][-1] | {"content": "<|another|>", "id":
                                    1 + settings["added_tokens"][-1]["id"]})
    path.write_text(json.dumps(settings))
    assert run_command(mathft.main, [*words, "--teacher", str(folder / "teacher"), "--output-dir",
                                     str(folder / "b")]) == 1
    assert "has another tokenizer than the student" in capsys.readouterr().err
    assert not (folder / "a").exists() and not (folder / "b").exists()


def test_divergence_falls_where_the_teacher_is_right_about_the_data():
    """mean_loss of the student on the teacher's own preferred tokens falls too."""
    student, teacher = small_model(), other_model()
    trainable = dict(student.named_parameters())
    loss = distillation_loss(Run(teacher, None, None, None, {}), 64, 1.0, False)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.05)
    before = accumulate_gradient(student, trainable, EIGHT, 1000, loss=loss)
    gap = abs(mean_loss(student, EIGHT) - mean_loss(teacher, EIGHT))
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad()
        after = accumulate_gradient(student, trainable, EIGHT, 1000, loss=loss)
    assert after < 0.5 * before
    assert abs(mean_loss(student, EIGHT) - mean_loss(teacher, EIGHT)) < gap
