"""GRPO: its formulas on cases that are counted by hand, its gradient against the supervised one,
and a run that is interrupted between two updates of one batch.
"""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import grpo
import mathft
from adapters import Tuning
from attention import PackedAttention
from calculator import Calculator
from checkpoint import load_model
from conftest import Waits, small_model, some_examples
from data import Example, Problem, batch_indices
from flags import run_command
from generate import is_sampled
from grpo import Flags, Rollout, Rollouts, advantages, clipped_surrogate, divergence
from lora import add_lora
from prefix import Prefix
from tokenizer import Tokenizer
from train import accumulate_gradient, log_probs_of_targets, summed_loss

# ----------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("kind, wanted", [
    ("mean", [0.75, -0.25, -0.25, -0.25]),
    ("std", [math.sqrt(3), *[-1 / math.sqrt(3)] * 3]),  # the deviation is sqrt(3) / 4
    ("rloo", [1.0, *[-1 / 3] * 3]),  # beside the mean of the three others
])
def test_advantages_of_one_right_rollout_of_four(kind, wanted):
    assert advantages([1.0, 0.0, 0.0, 0.0], kind) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_equal_rewards_say_nothing_and_others_add_up_to_nothing(kind):
    assert advantages([1.0, 1.0, 1.0], kind) is None
    assert advantages([0.0, 0.0], kind) is None
    assert sum(advantages([1.0, 0.0, 1.0, 0.0, 0.0], kind)) == pytest.approx(0, abs=1e-12)


def test_clipping_beside_a_reference_in_plain_numbers():
    """Gain and gradient of each token, by cases: beyond its bound a ratio gains no more."""
    low, high = 0.2, 0.28
    for advantage in (1.5, -0.5):
        for value in (0.3, 0.79, 0.81, 1.0, 1.27, 1.29, 4.0):
            ratio = torch.tensor([value], requires_grad=True)
            gain = clipped_surrogate(ratio, torch.tensor([advantage]), low, high)
            gain.sum().backward()
            beyond = value > 1 + high if advantage > 0 else value < 1 - low
            bound = 1 + high if advantage > 0 else 1 - low
            assert gain.item() == pytest.approx((bound if beyond else value) * advantage)
            assert ratio.grad.item() == pytest.approx(0 if beyond else advantage)


def test_the_divergence_is_zero_only_where_nothing_moved():
    here = torch.tensor([-1.0, -2.0, -0.5])
    assert divergence(here, here).tolist() == [0, 0, 0]
    assert (divergence(here, here + torch.tensor([0.3, -0.3, 1.0])) > 0).all()
    # Over tokens sampled from p, its mean is KL(p, q).
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    assert (p * divergence(p.log(), q.log())).sum().item() == pytest.approx(exact.item())


@pytest.mark.parametrize("record, wanted", [
    ({"strict_correct": True, "finish": "stop"}, 1.0),
    ({"strict_correct": True, "finish": "length"}, 0.0),  # right, but it does not end
    ({"strict_correct": False, "finish": "stop"}, 0.0),  # wrong, or right without a mark
])
def test_a_reward_is_for_a_marked_right_answer_that_ends(record, wanted):
    assert grpo.reward(record) == wanted


# ------------------------------------------------------------------------------------- the gradient


def rollouts(old: bool = False) -> list[Rollout]:
    """Six documents with advantages of both signs."""
    made = []
    for number, e in enumerate(some_examples(6)):
        count = sum(e.is_target[1:])
        given = tuple(-0.1 * (n % 7) - 3 for n in range(count)) if old else ()
        made.append(Rollout([*e.ids], [False, *e.is_target[1:]], e.name, old=given,
                            advantage=(1.2, -0.4, 0.3)[number % 3]))
    return made


def worker(model, tmp_path, tuning=None, **flags) -> Rollouts:
    args = SimpleNamespace(seed=0, batch_size=4, max_new_tokens=12, micro_batch_tokens=64,
                           plain=True)
    return Rollouts(model, None, tuning or Tuning(dict(model.named_parameters())), [], args,
                    Flags(**flags), tmp_path)


def gradient(model, examples, loss, most: int = 10_000) -> list[torch.Tensor]:
    trainable = dict(model.named_parameters())
    for p in trainable.values():
        p.grad = None
    accumulate_gradient(model, trainable, examples, most, loss=loss)
    return [p.grad.clone() for p in trainable.values()]


def test_with_one_update_the_gradient_is_that_of_weighted_cross_entropy(tmp_path):
    model, made = small_model(), rollouts()
    weighted = [Example(r.ids, r.is_target, r.name, (r.advantage,) * sum(r.is_target))
                for r in made]
    ours = gradient(model, made, worker(model, tmp_path).loss)
    for a, b in zip(ours, gradient(model, weighted, summed_loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_reads_no_number_from_the_device(tmp_path):
    """Not even the figures for the log: they are read when a line is written."""
    model, made = small_model(), rollouts(old=True)
    at_work = worker(model, tmp_path)
    with Waits() as waits:
        gradient(model, made, at_work.loss, most=20)
    assert waits.count == 0 and at_work.figures()["clipped_share"] >= 0


def test_the_gradient_does_not_depend_on_the_micro_batches(tmp_path):
    model, made = small_model(), rollouts(old=True)
    loss = worker(model, tmp_path).loss
    for a, b in zip(gradient(model, made, loss), gradient(model, made, loss, most=20)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_beside_a_loop_over_tokens(tmp_path):
    """Clipped tokens, and the divergence from the model without its adapter, one by one."""
    model = small_model()
    base = [log_probs_of_targets(model, [r]).tolist() for r in rollouts()]
    trainable = add_lora(model, 4, 8.0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trainable.values():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    at_work = worker(model, tmp_path, Tuning(trainable), kl=0.1, clip_low=0.1, clip_high=0.4)
    with grpo.without_adapters(model):
        known = at_work._log_probs(at_work.model, rollouts(), None)
    assert sum(sum(known.values(), ())) == pytest.approx(sum(map(sum, base)), rel=1e-4)
    made = [grpo.replace(r, reference=tuple(b)) for r, b in zip(rollouts(old=True), base)]
    total, wanted, clipped = 0.0, 0.0, 0
    for r in made:
        total += at_work.loss(model, [r])[0].item()
        for now, old, ref in zip(log_probs_of_targets(model, [r]).tolist(), r.old, r.reference):
            ratio = math.exp(now - old)
            bounded = min(max(ratio, 0.9), 1.4)
            wanted -= min(ratio * r.advantage, bounded * r.advantage)
            clipped += bounded * r.advantage < ratio * r.advantage
            wanted += 0.1 * (math.exp(ref - now) - (ref - now) - 1)
    assert total == pytest.approx(wanted, rel=1e-4)
    figures, tokens = at_work.figures(), sum(sum(r.is_target) for r in made)
    assert 0 < clipped < tokens and figures["clipped_share"] == pytest.approx(clipped / tokens)
    assert figures["kl"] > 0 and at_work.figures()["clipped_share"] == 0  # of the next step: none


# ----------------------------------------------------------------------------------------- rollouts


@pytest.fixture
def sums(tmp_path) -> str:
    lines = [json.dumps({"question": f"What is {n} + {n}?", "answer": f"#### {n + n}"})
             for n in range(12)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "sums.jsonl")


@pytest.fixture
def rewarded(monkeypatch):
    """A model that has learnt nothing earns no reward: here an odd number of letters does."""
    monkeypatch.setattr(grpo, "reward", lambda record: float(len(record["text"]) % 2))


def command(*words: str) -> int:
    return run_command(mathft.main, list(words))


def flags(tiny_folder, sums, method, folder, *more) -> list[str]:
    return ["--objective", "grpo", "--method", method, "--model", str(tiny_folder), "--dataset",
            sums, "--eval-limit", "0", "--dtype", "fp32", "--device", "cpu", "--batch-size", "3",
            "--group", "4", "--max-new-tokens", "8", "--output-dir", str(folder), *more]


def records(folder, name="rollouts.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def without_seconds(found: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items()
             if not key.endswith("seconds") and "per_second" not in key and key != "memory_mib"}
            for record in found]


def test_a_run_keeps_every_rollout(tiny_folder, sums, rewarded, tmp_path, capsys):
    folder = tmp_path / "run"
    assert command(*flags(tiny_folder, sums, "lora", folder, "--steps", "2", "--kl", "0.01")) == 0
    found, steps = records(folder), records(folder, "metrics.jsonl")
    assert [step["rollouts"] for step in steps] == [
        sum(record["step"] == number for record in found) for number in (1, 2)]
    for start in range(0, len(found), 4):
        group = found[start : start + 4]
        assert len({(r["step"], r["id"]) for r in group}) == 1
        assert [r["sample"] for r in group] == [0, 1, 2, 3]
        assert [r["advantage"] for r in group] == (
            advantages([r["reward"] for r in group], "std") or [None] * 4)
    tokenizer = Tokenizer(tiny_folder)
    for record in found:
        ended = record["finish"] == "stop"
        assert (record["ids"][-1] in tokenizer.stop_ids) == ended
        assert len(record["ids"]) == record["tokens"] + ended
    assert {"reward", "reward_std", "equal_groups", "length", "cut_share", "entropy", "kl",
            "clipped_share", "generate_seconds", "train_seconds"} <= steps[0].keys()
    assert steps[0]["kl"] == 0 < steps[1]["kl"]  # LoRA starts at the model itself
    assert "reward 0." in capsys.readouterr().out


def test_an_epoch_asks_every_problem_once_whatever_its_updates(tiny_folder, sums, rewarded,
                                                               tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--epochs", "1", "--updates", "2", "--draws", "1", "--limit", "9"]
    assert command(*flags(tiny_folder, sums, "lora", folder, *more)) == 0
    out = capsys.readouterr().out
    assert "training   6 steps of 3 examples, 2 with each batch, 1 epochs" in out
    assert len(records(folder, "metrics.jsonl")) == 6
    asked = [record["index"] for record in records(folder) if record["sample"] == 0]
    assert sorted(asked) == list(range(9))


@pytest.mark.parametrize("size, updates", [(3, 1), (5, 2), (12, 1), (50, 3)])
def test_the_order_of_a_batch(size, updates):
    """First its part of the epoch, then all others, which replace groups; none comes twice."""
    made = SimpleNamespace(questions=range(12), flags=SimpleNamespace(updates=updates),
                           args=SimpleNamespace(batch_size=size, seed=4))
    asked = []
    for batch in range(12):
        order = Rollouts._order(made, batch * updates)
        assert sorted(order) == list(range(12))
        part = batch_indices(batch, size, 12, 4)
        assert order[: len(set(part))] == list(dict.fromkeys(part))
        asked += part
    counts = Counter(asked)
    assert len(set(counts.values())) == 1, "each as often as the others"


def test_groups_with_equal_rewards_are_replaced_until_the_draws_end(tiny_folder, sums, monkeypatch,
                                                                     tmp_path):
    """No reward at all: all draws are used, nothing is learnt, and the run goes on."""
    folder = tmp_path / "run"
    monkeypatch.setattr(grpo, "reward", lambda record: 0.0)
    assert command(*flags(tiny_folder, sums, "sft", folder, "--steps", "2", "--draws", "3")) == 0
    steps = records(folder, "metrics.jsonl")
    assert [step["rollouts"] for step in steps] == [3 * 3 * 4] * 2
    assert [step["equal_groups"] for step in steps] == [1.0, 1.0]
    assert [step["grad_norm"] for step in steps] == [0.0, 0.0]
    drawn = [record["index"] for record in records(folder) if record["step"] == 1][::4]
    assert len(set(drawn)) == 9  # no problem twice
    before = load_model(tiny_folder, "cpu", torch.float32, torch.float32).state_dict()
    after = load_model(folder / "model", "cpu", torch.float32, torch.float32).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_run_resumes_to_the_same_bits_between_two_updates(method, tiny_folder, sums, rewarded,
                                                            tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--steps", "5", "--updates", "2", "--save-every", "1", "--keep", "9"]
    assert command(*flags(tiny_folder, sums, method, whole, *more)) == 0
    assert command(*flags(tiny_folder, sums, method, cut, *more)) == 0
    for step in (4, 5):  # back to after step 3, the first update of the second batch
        for path in (cut / "checkpoints" / f"step-{step}").iterdir():
            path.unlink()
        (cut / "checkpoints" / f"step-{step}").rmdir()
    with open(cut / "rollouts.jsonl", "a") as file:
        file.write('{"step": 5, "cut')  # as a crash leaves it
    assert command("--resume", str(cut)) == 0
    assert without_seconds(records(cut)) == without_seconds(records(whole))
    logs = [without_seconds(records(folder, "metrics.jsonl")) for folder in (whole, cut)]
    assert logs[0] == logs[1]
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes()
               for folder in (whole, cut)]
    assert weights[0] == weights[1]
    steps = {record["step"] for record in records(whole)}
    assert steps == {1, 3, 5}  # the steps for which rollouts were sampled
    assert all("log_probs" in r for r in records(whole) if r["advantage"] is not None)


# ------------------------------------------------------------------------------------- a calculator


def test_tokens_that_are_put_in_get_no_gradient(tmp_path):
    """Only the sampled tokens of a rollout are targets: the gradient is theirs, weighted."""
    model = small_model()
    at_work = worker(model, tmp_path)
    at_work.questions = [Example([1, 2, 3], [False] * 3, "q")]
    new = [4, 5, 6, 7, 8, 9, 10, 11]
    record = {"index": 0, "ids": new, "id": "q", "advantage": 0.7, "put_in": [[1, 3], [5, 6]]}
    (made,) = at_work._rollouts([record])
    own = [True, False, False, True, True, False, True, True]
    assert made.is_target == [False] * 3 + own
    assert len(at_work._log_probs(model, [made], None)[id(made)]) == sum(own)
    # By hand: the log-probability of each sampled token behind all that stands before it.
    ids = torch.tensor([1, 2, 3, *new])
    attention = PackedAttention([len(ids)])
    model.zero_grad()
    logits = model.logits(model(ids, attention.positions, attention))[2:-1]
    logits.retain_grad()
    known = logits.log_softmax(-1).gather(1, ids[3:, None])[:, 0]
    loss = -(0.7 * known[torch.tensor(own)]).sum() / sum(own)
    loss.backward()
    assert [row.abs().max().item() > 0 for row in logits.grad] == own
    by_hand = [p.grad.clone() for p in model.parameters()]
    for a, b in zip(gradient(model, [made], at_work.loss), by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_run_with_a_calculator_keeps_what_is_put_in_and_resumes(tiny_folder, sums, rewarded,
                                                                  tmp_path, monkeypatch):
    """Untrained models write no marks: here every fifth token asks for a result."""
    monkeypatch.setattr(Calculator, "__call__", lambda self, ids: (
        self.tokenizer.encode("7>>") if ids[-1] % 5 == 0 else []))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--steps", "3", "--updates", "2", "--save-every", "1", "--keep", "9", "--calculator",
            "--max-new-tokens", "12"]
    for folder in (whole, cut):
        assert command(*flags(tiny_folder, sums, "lora", folder, *more)) == 0
    assert json.loads((whole / "args.json").read_text())["calculator"] is True
    found, tokenizer = records(whole), Tokenizer(tiny_folder)
    assert sum("put_in" in record for record in found) > len(found) / 4
    for record in found:
        spans = record.get("put_in", [])
        assert [tokenizer.decode(record["ids"][start:end]) for start, end in spans] == [
            "7>>"[: end - start] for start, end in spans]
        if record["advantage"] is not None:  # one for each sampled token, the end included
            assert len(record["log_probs"]) == sum(is_sampled(len(record["ids"]), spans))
            sampled = sum(record["log_probs"]) / len(record["log_probs"])
            assert sampled == pytest.approx(record["mean_log_prob"], abs=1e-4)
    shutil.rmtree(cut / "checkpoints" / "step-3")
    shutil.rmtree(cut / "checkpoints" / "step-2")  # back to between two updates of a batch
    assert command("--resume", str(cut)) == 0  # with the calculator of args.json
    assert without_seconds(records(cut)) == without_seconds(found)
    weights = [(folder / "adapter" / "adapter_model.safetensors").read_bytes()
               for folder in (whole, cut)]
    assert weights[0] == weights[1]


def test_the_entropy_is_that_of_sampled_tokens():
    record = {"index": 0, "id": "q", "reward": 1.0, "ids": [1, 2, 3, 4, 5], "tokens": 5,
              "finish": "length", "mean_log_prob": -0.5}
    other = record | {"put_in": [[1, 4]], "mean_log_prob": -2.0}
    assert grpo.figures_of([record, other])["entropy"] == pytest.approx((5 * 0.5 + 2 * 2.0) / 7)


# ------------------------------------------------------------------------------- what goes together


def test_a_line_that_is_no_rollout_is_refused():
    """Whatever is wrong with it: what is read back trains."""
    whole = {"id": "q", "problem": 0, "sample": 0, "question": "?", "gold": "1", "level": "",
             "subject": "", "text": "1", "tokens": 2, "finish": "stop", "mean_log_prob": -0.5,
             "index": 1, "ids": [5, 6, 7], "reward": 1.0, "advantage": -0.5}
    assert grpo.is_rollout(whole, 2, 8)
    assert grpo.is_rollout(whole | {"advantage": None, "put_in": [[0, 2]], "log_probs": [-1.0]}, 2,
                           8)
    for change in ({"index": 2}, {"index": True}, {"ids": []}, {"ids": [8]}, {"ids": [1.5]},
                   {"ids": 5}, {"reward": "1"}, {"advantage": [0.1]}, {"put_in": [[0, 4]]},
                   {"put_in": [3]}, {"put_in": [[2, 1]]}, {"log_probs": [-1.0]}, {"tokens": -1},
                   {"put_in": [[0.5, 1]]}, {"put_in": [[True, 2]]}, {"tokens": None},
                   {"mean_log_prob": None}, {"reward": 1e308}, {"advantage": -1e308},
                   {"put_in": [[0.5, 2]], "log_probs": [-1.0]}):
        assert not grpo.is_rollout(whole | change, 2, 8), change
    for name in ("id", "ids", "index", "reward", "advantage", "finish"):
        assert not grpo.is_rollout({k: v for k, v in whole.items() if k != name}, 2, 8)


def test_changed_gold_answers_are_refused(tiny_folder, sums, rewarded, tmp_path, capsys):
    """The prompts are the same, and the rewards would be others."""
    folder, data = tmp_path / "run", Path(sums)
    words = ["--steps", "1", "--keep", "1"]
    assert command(*flags(tiny_folder, sums, "lora", folder, *words)) == 0
    data.write_text(data.read_text().replace("#### 22", "#### 23"))
    assert command("--resume", str(folder), "--steps", "2") == 1
    assert ("gives the same training examples with other final answers or weights than when "
            f"{folder} began; give what it began with") in capsys.readouterr().err


def test_a_batch_that_is_gone_is_one_line(tiny_folder, sums, rewarded, tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--steps", "3", "--updates", "2", "--keep", "1"]
    assert command(*flags(tiny_folder, sums, "lora", folder, *more)) == 0
    (folder / "rollouts.jsonl").write_text("")
    assert command("--resume", str(folder), "--steps", "4") == 1
    assert "rollouts.jsonl: lacks the rollouts of step 3" in capsys.readouterr().err


def test_a_rollout_without_what_it_was_sampled_by_is_one_line(tiny_folder, sums, rewarded,
                                                              tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--steps", "1", "--updates", "2", "--keep", "1"]
    assert command(*flags(tiny_folder, sums, "lora", folder, *more)) == 0
    found = records(folder)
    del next(r for r in reversed(found) if r["advantage"] is not None)["log_probs"]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    assert command("--resume", str(folder), "--steps", "2") == 1
    assert "a line of step 1 is no rollout of this run" in capsys.readouterr().err


def test_another_seed_or_step_samples_other_rollouts(tiny_folder, sums, rewarded, tmp_path):
    texts = []
    for seed in ("0", "1"):
        folder = tmp_path / seed
        words = flags(tiny_folder, sums, "ia3", folder, "--steps", "2", "--seed", seed)
        assert command(*words) == 0
        texts += [[r["text"] for r in records(folder) if r["step"] == step] for step in (1, 2)]
    assert len({tuple(part) for part in texts}) == 4


@pytest.mark.parametrize("words, message", [
    (["--kl", "0.1"], "--kl: the untouched weights are needed"),
    (["--tokens", "1000"], "--tokens says nothing about --objective grpo"),
    (["--group", "1"], "1 is below 2"),
    (["--draws", "257"], "257 is above 256"),  # its random numbers would be those of the next step
])
def test_what_does_not_go_together_is_refused(words, message, tiny_folder, sums, tmp_path, capsys):
    assert command(*flags(tiny_folder, sums, "sft", tmp_path / "run", *words)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_flags_of_grpo_belong_to_grpo(capsys):
    assert command("--method", "lora", "--group", "4") == 2
    assert ("--group is a flag of --objective grpo, not of supervised; leave it out, or give "
            "--objective grpo") in capsys.readouterr().err
    assert command("--method", "lora", "--objective", "cpt", "--dataset", "grpo.jsonl",
                   "--group", "4") == 2
    assert "--group is a flag of --objective grpo, not of cpt" in capsys.readouterr().err


def test_problems_without_an_answer_are_no_questions(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    problems = [Problem("a", "What is 1 + 1?", "", "2"), Problem("b", "What is 2 + 2?", "so", ""),
                Problem("c", "What? " * 50, "", "1")]
    args = SimpleNamespace(system="Add.", max_length=60, method="lora")
    made, dropped = grpo.questions(tokenizer, problems, args, Flags())
    assert [q.name for q in made] == ["a"] and dropped == 1
    assert made[0].ids == tokenizer.prompt("What is 1 + 1?", "Add.") and not any(made[0].is_target)


def test_a_prefix_is_left_out_of_the_reference(tmp_path):
    """The model without its prefix is the reference, as it is without its adapter."""
    model = small_model().requires_grad_(False)
    front = Prefix(0.3 * torch.randn(2, 2, 3, 2, 8, generator=torch.Generator().manual_seed(0)))
    tuning = Tuning(dict(front.named_parameters()), front)
    at_work = worker(model, tmp_path, tuning, kl=1.0)
    at_work.questions = [Example([1, 2, 3], [False] * 3, "q")]
    record = {"index": 0, "ids": [4, 5, 6], "id": "q", "advantage": 1.0}
    (made,) = at_work._rollouts([record])
    assert made.reference == pytest.approx(log_probs_of_targets(model, [made]).tolist())
    now = log_probs_of_targets(model, [made], tuning.prefix())
    assert (now - torch.tensor(made.reference)).abs().max() > 1e-3
