"""Group relative policy optimisation (GRPO): the model solves problems, the grader rewards it, and
what scored above the rest of its group becomes more probable.

    python mathft.py --objective grpo --method lora
    python -m pytest tests/test_grpo.py -v          # the formulas, one by one

1. Sample a group of G completions (rollouts) for each problem, at temperature 1.
2. Reward: 1 if the rollout ends by itself and the answer that it marks is right, else 0.
3. Advantage of a rollout, from the rewards r of its group:

       std    A = (r - mean) / std              DeepSeekMath, arXiv 2402.03300, section 4.1.2
       mean   A = r - mean                      Dr. GRPO, arXiv 2503.20783, section 3.2
       rloo   A = r - mean of the others        Ahmadian et al. 2024, arXiv 2402.14740

   A group with equal rewards says nothing: it is left out, and another problem is drawn (DAPO,
   arXiv 2503.14476, section 3.2).
4. Loss, a sum over all tokens of the step, divided by their number (DAPO, section 3.3), with the
   ratio ρ = p(token) / p(token when it was sampled):

       - min(ρ A, clip(ρ, 1 - low, 1 + high) A)  +  β · KL to the model without what trains

   In the first update after sampling ρ is 1, and the gradient is that of the cross-entropy with
   the weight A. Clipping has an effect if a batch of rollouts serves several updates.

The rollouts of a step are a function of the weights, the seed and the step: a run resumes to the
same bits. `rollouts.jsonl` keeps every one, with its reward and advantage.

Differs from the papers: no reward for the form alone, and no model that is trained as a reward.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adapters import Tuning, adapted_maps, without_adapters
from checkpoint import as_saved
from data import Example, Problem, batch_indices, prompt_of, split_by_tokens
from flags import flag
from generate import generate, is_sampled, open_calculator
from measure import grade
from methods import find_method
from model import Qwen2
from runtime import (ALONE, Alone, UsageError, UserError, append_metrics, clock,
                     give_back_freed_memory, read_log, to_device, trim_metrics)
from score import wrong_fields
from tokenizer import Tokenizer
from train import Objective, Steps, log_probs_of_targets

ADVANTAGES = ("std", "mean", "rloo")
LARGEST_REAL = 1e9  # of a reward, an advantage or a log-probability that is read back
NO_REFERENCE = ("--kl: the untouched weights are needed beside those that train; use a method that "
                "keeps them, or leave --kl out")


@dataclass
class Flags:
    """Flags of --objective grpo."""

    group: int = flag(8, "rollouts of each problem", least=2)
    advantage: str = flag("std", "what a reward counts within its group: std, mean or rloo",
                          choices=ADVANTAGES)
    updates: int = flag(1, "optimiser steps that a batch of rollouts serves; an epoch has so many "
                           "times more steps", least=1)
    clip_low: float = flag(0.2, "a ratio counts down to 1 minus this", least=0, most=1)
    clip_high: float = flag(0.28, "a ratio counts up to 1 plus this", least=0)
    kl: float = flag(0.0, "weight of the divergence from the model without its adapter or prefix",
                     least=0)
    draws: int = flag(4, "times that problems are drawn to replace groups with equal rewards; 1: "
                         "never", least=1, most=256)


@dataclass(frozen=True, kw_only=True)
class Question(Example):
    """A prompt, and the problem that it asks."""

    problem: Problem

    @property
    def gold(self) -> str | None:
        return self.problem.answer


@dataclass(frozen=True, kw_only=True)
class Rollout(Example):
    """A prompt and a sampled completion. The tokens of the completion are the targets, except those
    that a calculator has put in: the model did not choose them.

    old: their log-probabilities when they were sampled; empty: those of now.
    reference: their log-probabilities without what trains; empty if no KL is asked for.
    """

    advantage: float
    old: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()


def questions(tokenizer: Tokenizer, problems: list[Problem], args,
              flags: Flags) -> tuple[list[Question], int]:
    """As `prompts`. Raises UsageError for a KL to weights that the method does not keep."""
    if flags.kl and find_method(args.method).PEFT_TYPE is None:
        raise UsageError(NO_REFERENCE)
    return prompts(tokenizer, problems, args)


def prompts(tokenizer: Tokenizer, problems: list[Problem], args) -> tuple[list[Question], int]:
    """The prompts of all problems with an answer that fit --max-length tokens, and how many do not.
    """
    made = []
    for problem in problems:
        if problem.answer and problem.question:
            ids = prompt_of(tokenizer, problem, args.system)
            made.append(Question(ids, [False] * len(ids), problem.id, problem=problem))
    short = [question for question in made if len(question.ids) <= args.max_length]
    return short, len(made) - len(short)


# ----------------------------------------------------------------------------------------- formulas


def reward(record: dict) -> float:
    """1 for a completion that ends by itself with a marked answer that is right, else 0."""
    return float(record["strict_correct"] and record["finish"] == "stop")


def advantages(rewards: list[float], kind: str) -> list[float] | None:
    """The advantage of each rollout of a group; None if all rewards are equal."""
    if len(set(rewards)) == 1:
        return None
    mean = statistics.fmean(rewards)
    n = len(rewards)
    # r - mean of the others = n / (n - 1) · (r - mean of all)
    scale = {"std": 1 / statistics.pstdev(rewards), "mean": 1.0, "rloo": n / (n - 1)}[kind]
    return [scale * (r - mean) for r in rewards]


def clipped_surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 - low, 1 + high) A) of each token (Schulman et al. 2017, arXiv 1707.06347,
    eq. 7); all [N].
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """An estimate of the KL divergence from the reference for each sampled token [N], never below 0
    (DeepSeekMath, eq. 4).
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


# ----------------------------------------------------------------------------------------- rollouts


class Rollouts:
    """The examples of each step, the loss over them, and the figures of the step."""

    def __init__(self, model: Qwen2, tokenizer: Tokenizer, tuning: Tuning,
                 asked: list[Question], args, flags: Flags, folder: Path, ranks: Alone = ALONE):
        self.model, self.tokenizer, self.tuning, self.ranks = model, tokenizer, tuning, ranks
        self.questions, self.args, self.flags = asked, args, flags
        self.path = folder / "rollouts.jsonl"
        self.device = model.head_weight.device
        self.first = -1  # the step for which the batch was sampled
        self.batch: list[Rollout] = []
        self.sampled: dict = {}  # figures of the batch
        # Of the step; tensors, which nobody waits for until they are logged.
        self.tokens, self.clipped, self.divergence = 0, torch.zeros(()), torch.zeros(())
        self.ready = 0.0  # when sampling ended

    def prefix(self) -> Tensor | None:
        """What stands before each document now: [L, 2, P, K, h]."""
        return self.tuning.prefix().detach() if self.tuning.prefix else None

    def batch_at(self, step: int) -> list[Rollout]:
        """The rollouts that optimiser step `step` (from 0) learns from, in the order of sampling.

        A batch that was sampled before the run was interrupted is read back.
        """
        first = step - step % self.flags.updates
        started = clock(self.device)
        if first != self.first:
            # Records of steps after the checkpoint go: these steps are sampled again.
            if self.first < 0 and self.ranks.first:
                trim_metrics(self.path, step)
            groups = (self._sample(first) if first == step
                      else self.ranks.agree(lambda: self._read(first)))
            self.first, self.batch, self.sampled = first, self._rollouts(groups), figures_of(groups)
            give_back_freed_memory()  # what sampling has left would stand beside the training
        self.ready = clock(self.device)
        self.sampled["generate_seconds"] = self.ready - started
        return self.batch

    # --- sampling

    def _sample(self, first: int) -> list[dict]:
        """Sample and keep the records of a batch."""
        order = self._order(first)
        model = as_saved(self.model, self.args.plain, self.ranks)
        records, drawn, used = [], 0, 0
        for draw in range(self.flags.draws):
            chosen = order[drawn : drawn + self.args.batch_size - used]
            if not len(chosen):  # enough groups, or no problem is left
                break
            drawn += len(chosen)
            for group in self._groups(model, chosen, first, draw):
                used += group[0]["advantage"] is not None
                records += group
        if self.flags.updates > 1:
            used_records = [record for record in records if record["advantage"] is not None]
            made = self._rollouts(used_records)
            known = self._log_probs(model, made, self.prefix())
            for record, rollout in zip(used_records, made):
                record["log_probs"] = known[id(rollout)]
        for record in records if self.ranks.first else ():
            append_metrics(self.path, {"step": first + 1, **record})
        return records

    def _order(self, first: int) -> list[int]:
        """The problems in the order in which a batch asks them: first its own part of the epoch,
        then the others at random, to replace groups with equal rewards.

        So an epoch asks every problem once, and replacements come on top.
        """
        count, batch = len(self.questions), first // self.flags.updates
        own = batch_indices(batch, self.args.batch_size, count, self.args.seed)
        others = np.random.default_rng([self.args.seed, first, 1]).permutation(count).tolist()
        return list(dict.fromkeys([*own, *others]))  # at the end of an epoch, none is asked twice

    def _groups(self, model: Qwen2, chosen: list[int], first: int,
                draw: int) -> Iterator[list[dict]]:
        """The records of each chosen problem's group, with rewards and advantages.

        Several processes share out the problems.
        """
        asked = [self.questions[index] for index in chosen]
        mine: list[list] = []  # number of the problem, of the sample, and its record
        completions = generate(
            model, [question.ids for question in asked],
            stop_ids=self.tokenizer.stop_ids, vocab_size=self.tokenizer.size,
            max_new_tokens=self.args.max_new_tokens, samples=self.flags.group, temperature=1.0,
            # another stream of random numbers for each (seed, step, draw)
            seed=(self.args.seed << 40) + (first << 8) + draw, prefix=self.prefix(),
            skip=self.ranks.left_to_others(len(asked), self.flags.group),
            calculator=open_calculator(self.tokenizer, self.args.calculator))
        for completion in completions:
            number = completion.problem
            graded = grade(asked[number].problem, completion, self.tokenizer.decode(completion.ids))
            end = [] if completion.stop_id is None else [completion.stop_id]
            record = graded | {"index": chosen[number], "ids": completion.ids + end,
                               "reward": reward(graded)}
            mine.append([number, completion.sample, record])
        found: list[list[dict]] = [[] for _ in asked]
        for number, _, record in sorted(self.ranks.gather(mine), key=lambda row: row[:2]):
            found[number].append(record)
        for group in found:
            scored = advantages([record["reward"] for record in group], self.flags.advantage)
            for record, value in zip(group, scored or [None] * len(group)):
                record["advantage"] = value
            yield group

    def _read(self, first: int) -> list[dict]:
        """The records of a batch that was sampled before the run was interrupted."""
        records = [record for _, record in read_log(self.path) if record["step"] == first + 1]
        size = self.tokenizer.size
        if not all(is_rollout(record, len(self.questions), size) and (
                record["advantage"] is None or record.get("log_probs") is not None)
                   for record in records):  # the log-probabilities are of all that are learnt from
            raise UserError(f"{self.path}: a line of step {first + 1} is no rollout of this run; "
                            "start a new run")
        if not records:
            raise UserError(f"{self.path}: lacks the rollouts of step {first + 1}, from which the "
                            "run goes on; start a new run")
        return records

    def _rollouts(self, records: list[dict]) -> list[Rollout]:
        """What the loss needs of each record that has an advantage."""
        made = []
        for record in records:
            prompt, new = self.questions[record["index"]].ids, record["ids"]
            if record["advantage"] is not None:
                is_target = [False] * len(prompt) + is_sampled(len(new), record.get("put_in", []))
                made.append(Rollout(prompt + new, is_target, record["id"],
                                    advantage=record["advantage"],
                                    old=tuple(record.get("log_probs", ()))))
        if not self.flags.kl:
            return made
        with without_adapters(self.model):
            known = self._log_probs(self.model, made, None)
        return [replace(rollout, reference=known[id(rollout)]) for rollout in made]

    @torch.no_grad()
    def _log_probs(self, model: Qwen2, rollouts: list[Rollout],
                   prefix: Tensor | None) -> dict[int, tuple[float, ...]]:
        """What a model says of the tokens of each rollout, by its identity."""
        numbers, mine = {id(rollout): n for n, rollout in enumerate(rollouts)}, []
        for part in split_by_tokens(self.ranks.share(rollouts), self.args.micro_batch_tokens):
            values = log_probs_of_targets(model, part, prefix)  # [N]
            lengths = [sum(rollout.is_target) for rollout in part]
            for rollout, own in zip(part, values.split(lengths)):
                mine.append([numbers[id(rollout)], own.tolist()])
        return {id(rollouts[n]): tuple(own) for n, own in self.ranks.gather(mine)}

    # --- the loss

    def loss(self, model: Qwen2, batch: list[Rollout],
             prefix: Tensor | None = None) -> tuple[Tensor, int]:
        """Sum over the tokens of a micro-batch, and their number."""
        log_probs = log_probs_of_targets(model, batch, prefix)  # [N]
        old = _flat([r.old for r in batch], log_probs) if batch[0].old else log_probs.detach()
        advantage = _flat([(r.advantage,) * sum(r.is_target) for r in batch], log_probs)
        ratio = (log_probs - old).exp()
        gained = clipped_surrogate(ratio, advantage, self.flags.clip_low, self.flags.clip_high)
        self.tokens += len(log_probs)
        self.clipped = self.clipped + (gained < ratio * advantage).sum()
        total = -gained.sum()
        if self.flags.kl:
            moved = divergence(log_probs, _flat([r.reference for r in batch], log_probs)).sum()
            self.divergence = self.divergence + moved.detach()
            total = total + self.flags.kl * moved
        return total, len(log_probs)

    def figures(self) -> dict:
        """The figures of the step that has ended, for the log."""
        own = [self.tokens, float(self.clipped), float(self.divergence)]
        rows = self.ranks.gather([own])
        tokens, clipped, moved = map(sum, zip(*rows))
        found = {**self.sampled, "train_seconds": clock(self.device) - self.ready,
                 "clipped_share": clipped / max(1, tokens),
                 "kl": moved / max(1, tokens) if self.flags.kl else None}
        self.tokens, self.clipped, self.divergence = 0, torch.zeros(()), torch.zeros(())
        return found


def is_rollout(record: dict, questions: int, size: int) -> bool:
    """Whether a record that was read back has what is used of it; ids are below `size`."""
    try:
        ids, spans, known = record["ids"], record.get("put_in", []), record.get("log_probs")
        bounds = [place for start, end in spans if 0 <= start <= end for place in (start, end)]
        whole = [record["index"], record["tokens"], *ids, *bounds]
        reals = [record["reward"], record["mean_log_prob"], record["advantage"] or 0.0,
                 *(known or [])]
    except (KeyError, TypeError, ValueError):
        return False
    kinds = {*map(type, whole)} == {int} and {*map(type, reals)} == {float}
    if wrong_fields(record) or not kinds or min(whole) < 0 or record["index"] >= questions:
        return False
    inside = max(ids, default=size) < size and max(bounds, default=0) <= len(ids)
    return inside and len(bounds) == 2 * len(spans) and max(map(abs, reals)) < LARGEST_REAL and (
        known is None or len(known) == sum(is_sampled(len(ids), spans)))


def figures_of(records: list[dict]) -> dict:
    """The figures of a batch of rollouts, those of left-out groups included.

    entropy: nats a token, estimated by the mean of -log p over the sampled tokens.
    """
    groups: dict[tuple, list[float]] = {}
    for record in records:
        groups.setdefault((record["index"], record["id"]), []).append(record["reward"])
    tokens = [sum(is_sampled(len(record["ids"]), record.get("put_in", []))) for record in records]
    surprise = -sum(n * record["mean_log_prob"] for n, record in zip(tokens, records))
    return {
        "reward": statistics.fmean(record["reward"] for record in records),
        "reward_std": statistics.fmean(map(statistics.pstdev, groups.values())),
        "equal_groups": sum(len(set(g)) == 1 for g in groups.values()) / len(groups),
        "rollouts": len(records),
        "length": statistics.fmean(record["tokens"] for record in records),
        "cut_share": sum(record["finish"] == "length" for record in records) / len(records),
        "entropy": surprise / max(1, sum(tokens)),
    }


def begin(model: Qwen2, tokenizer: Tokenizer, tuning: Tuning, asked: list[Question], args,
          flags: Flags, folder: Path, ranks: Alone = ALONE) -> Steps:
    """The objective at work. Raises UsageError for a KL to a start that is no longer there."""
    if flags.kl and not tuning.prefix and not adapted_maps(model):
        raise UsageError(NO_REFERENCE)
    made = Rollouts(model, tokenizer, tuning, asked, args, flags, folder, ranks)
    return Steps(made.batch_at, made.loss, made.figures)


OBJECTIVE = Objective(
    examples=questions, begin=begin, flags=Flags, lengths=("steps", "epochs"),
    serves=lambda flags: flags.updates,
    defaults={"tiny": {"steps": 24, "batch_size": 16, "log_every": 1, "max_new_tokens": 256},
              "real": {"epochs": 0.5, "batch_size": 16, "log_every": 1, "max_new_tokens": 512}},
    rate={"tiny": 0.5, "real": 0.1},
    line="reward {reward:.3f}  length {length:.0f}  entropy {entropy:.2f}  "
         "{generate_seconds:.1f} + {train_seconds:.1f} s")


def _flat(rows: list[tuple[float, ...]], like: Tensor) -> Tensor:
    """The numbers of all rollouts, one for each target: [N]."""
    return to_device(torch.tensor([number for row in rows for number in row]), like.device)
