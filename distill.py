"""Distillation: a student learns from what a teacher says of every next token.

    python mathft.py --objective distill --teacher runs/sft-mini-gsm-1 --method lora
    python mathft.py --objective distill --teacher RUN --method sft --on-policy
    python -m pytest tests/test_distill.py -v

p is the teacher's distribution over the next token, q the student's. The loss of a target is

    off policy    α · Σ p log (p / q)  +  (1 - α) · (- log q(target))      on given solutions
    on policy     Σ q log (q / p)                                          on the student's own

1. Off policy, the two are mixed by `--alpha` (Hinton et al. 2015, arXiv 1503.02531, without a
   temperature). The tokens of the final answer's line weigh `--answer-weight`, and solutions with a
   wrong answer `--wrong-weight`, so that a teacher's solutions can be used as they are.
2. On policy, the student samples one completion of each problem of a step at temperature 1, and the
   teacher scores every token of it (Agarwal et al. 2023, arXiv 2306.13649, reverse divergence).
   The completions are a function of the weights, the seed and the step.

Logits are computed for some targets at a time, of both models, and again for the gradient: they are
never whole in memory. Both models need the same tokenizer; with another teacher, let it write
solutions (`python augment.py make responses --teacher ...`) and train on them.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from answers import equivalent, extract_answer
from checkpoint import as_saved, find_model, fingerprint, load_model, read_config
from data import Example, Problem, chat_examples
from flags import flag
from generate import generate, is_sampled, open_calculator
from grpo import prompts
from methods import Run, base_folder, load_run, result_hash
from model import Qwen2
from runtime import ALONE, Alone, UsageError, UserError
from tokenizer import Tokenizer
from train import WIDE, Beside, Objective, Steps, in_order, predict

ROWS_AT_ONCE = 256  # targets that have their logits in memory, of both models
# fp32 tensors [rows, V] at the end of a chunk's backward pass: log p and log q, the logits of both
# before them, p, their difference, and a gradient.
CHUNK = 7


@dataclass
class Flags:
    """Flags of --objective distill."""

    teacher: str | None = flag(None, "run directory, folder or name of the teacher's model")
    alpha: float = flag(0.5, "share of the divergence in the loss; the rest is the supervised loss",
                        least=0, most=1)
    answer_weight: float = flag(1.0, "weight of the last line's tokens, which hold the answer",
                                least=0)
    wrong_weight: float = flag(0.0, "weight of solutions with another answer than the gold one; 0 "
                                    "leaves them out", least=0)
    on_policy: bool = flag(False, "the student writes the solutions, and the teacher scores them")


# ----------------------------------------------------------------------------------------- examples


def examples(tokenizer: Tokenizer, problems: list[Problem], args,
             flags: Flags) -> tuple[list[Example], int]:
    """Solutions with the weights of their tokens; with --on-policy the prompts alone.

    Raises UsageError without a teacher or for a flag without effect, and UserError for a teacher
    with another tokenizer.
    """
    if flags.teacher is None:
        raise UsageError("--teacher is missing: the run or the model that the student learns from")
    if Tokenizer(teacher_folder(flags.teacher)).vocabulary != tokenizer.vocabulary:
        raise UserError(f"{flags.teacher}: has another tokenizer than the student; let it write "
                        "solutions (python augment.py make responses) and train on them")
    if flags.on_policy:
        refuse_idle(args, flags)
        return prompts(tokenizer, problems, args)
    made, dropped = [], 0
    for problem in problems:
        unknown = not problem.solution or not problem.answer
        right = unknown or equivalent(problem.answer, extract_answer(problem.solution) or "")
        share = 1.0 if right else flags.wrong_weight
        if share:
            found, long = chat_examples(tokenizer, [problem], args.system, args.max_length,
                                        args.train_on)
            made += [weighted(tokenizer, example, problem.solution, share, flags.answer_weight)
                     for example in found]
            dropped += long
    return made, dropped


def refuse_idle(args, flags: Flags) -> None:
    """Raise UsageError for flags of given solutions: on policy there are none, nor their tokens."""
    given = [name for name in ("alpha", "answer_weight", "wrong_weight")
             if getattr(flags, name) != getattr(Flags, name)] + ["tokens"] * bool(args.tokens)
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} says nothing about --on-policy, where "
                         "the student writes the solutions; leave it out")


def weighted(tokenizer: Tokenizer, example: Example, solution: str, share: float,
             answer_weight: float) -> Example:
    """The example with weights: `share` for each target, times `answer_weight` in the last line.

    `solution` is the last answer of a chat; if it is no target, no line is the last.
    """
    if share == answer_weight == 1.0:
        return example
    targets, last = sum(example.is_target), solution.rstrip().rfind("\n") + 1
    ids = len(tokenizer.encode(solution)) + 1  # and the token that ends it
    line = ids - len(tokenizer.encode(solution[:last])) if example.is_target[-1] else 0
    line = min(line, targets)
    weights = [share] * (targets - line) + [share * answer_weight] * line
    return replace(example, weights=tuple(weights))


# --------------------------------------------------------------------------------------------- loss


def divergences(student: Qwen2, hidden: Tensor, teacher: Qwen2, known: Tensor, tokens: int,
                reverse: bool) -> Tensor:
    """Of the next-token distributions at N places, in nats: [N].

    hidden [N, D] of the student, known [N, D'] of the teacher; the first `tokens` rows of both
    vocabularies count. KL(teacher, student), or with `reverse` KL(student, teacher).
    """
    def of_chunk(part: Tensor, other: Tensor) -> Tensor:
        log_q = student.logits(part)[:, :tokens].float().log_softmax(-1)  # [rows, tokens]
        with torch.no_grad():
            log_p = teacher.logits(other)[:, :tokens].float().log_softmax(-1)
        log_p, log_q = (log_q, log_p) if reverse else (log_p, log_q)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    chunks = zip(hidden.split(ROWS_AT_ONCE), known.split(ROWS_AT_ONCE))
    return torch.cat([checkpoint(of_chunk, *pair, use_reentrant=False, preserve_rng_state=False)
                      for pair in chunks])


def distillation_loss(teacher: Run, tokens: int, alpha: float, reverse: bool) -> Callable:
    """loss(model, examples, prefix) -> (sum over the targets, their number)."""
    def loss(model: Qwen2, part: list[Example],
             prefix: Tensor | None = None) -> tuple[Tensor, int]:
        batch, hidden = predict(model, part, prefix)
        count = len(batch.targets)
        total = hidden.new_zeros((), dtype=torch.float32)
        if alpha < 1:
            total = (1 - alpha) * model.summed_loss(hidden, batch.targets, batch.weights)
        if alpha > 0:
            with torch.no_grad():
                _, known = predict(teacher.model, part, teacher.prefix)
            each = divergences(model, hidden[:count], teacher.model, known[:count], tokens, reverse)
            total = total + alpha * (each if batch.weights is None else each * batch.weights).sum()
        return total, count

    return loss


# ------------------------------------------------------------------------------------ the objective


def is_run(name: str) -> bool:
    """Whether a teacher's name is a run directory."""
    return (Path(name) / "args.json").exists()


def teacher_folder(name: str) -> Path:
    """The folder of the teacher's model, or of the base of its adapter."""
    return base_folder(Path(name)) if is_run(name) else find_model(name)


def load_teacher(name: str, model: Qwen2) -> Run:
    """The teacher: a run directory, or a model without one, in the dtype of the student's products.
    """
    device, dtype = model.head_weight.device, model.compute_dtype
    if is_run(name):
        return load_run(Path(name), device, dtype)
    folder = find_model(name)
    loaded = load_model(folder, device, dtype, dtype).requires_grad_(False)
    return Run(loaded, Tokenizer(folder), None, None, {})


def beside(model: Qwen2, flags: Flags) -> Beside:
    """The teacher's weights in memory, and its passes: a layer's widest tensors and what the loss
    reads of it, then a chunk of logits of both models.
    """
    config, size = read_config(teacher_folder(flags.teacher)), model.compute_dtype.itemsize
    with torch.device("meta"):  # shapes without memory, and one layer for all
        one = Qwen2(replace(config, num_hidden_layers=1))
    numbers, layer = (sum(p.numel() for p in part.parameters())
                      for part in (one, one.model.layers[0]))
    numbers += (config.num_hidden_layers - 1) * layer

    def passing(tokens: int) -> float:
        chunk = 4 * CHUNK * min(ROWS_AT_ONCE, tokens) * config.vocab_size
        layer = WIDE * tokens * config.intermediate_size * size
        return tokens * config.hidden_size * size + max(layer, chunk)

    return Beside(numbers * size, passing)


def begin(model: Qwen2, tokenizer: Tokenizer, tuning, made: list[Example], args, flags: Flags,
          folder: Path, ranks: Alone = ALONE) -> Steps:
    """The objective at work."""
    teacher = load_teacher(flags.teacher, model)
    in_turn = in_order(model, tokenizer, tuning, made, args, flags, folder).batch_at
    if not flags.on_policy:
        return Steps(in_turn, distillation_loss(teacher, tokenizer.size, flags.alpha, False))

    def batch_at(step: int) -> list[Example]:
        asked = in_turn(step)
        prefix = tuning.prefix().detach() if tuning.prefix else None
        completions = generate(
            as_saved(model, args.plain, ranks), [question.ids for question in asked],
            stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.size, temperature=1.0,
            max_new_tokens=args.max_new_tokens, seed=(args.seed << 40) + step, prefix=prefix,
            skip=ranks.left_to_others(len(asked), 1),
            calculator=open_calculator(tokenizer, args.calculator))
        mine = [[done.problem, vars(written(asked[done.problem], done))] for done in completions]
        return [Example(**fields) for _, fields in sorted(ranks.gather(mine), key=lambda m: m[0])]

    return Steps(batch_at, distillation_loss(teacher, tokenizer.size, 1.0, True))


def written(question: Example, done) -> Example:
    """A prompt and its completion; the completion's tokens are the targets, except those put in."""
    new = done.ids + ([] if done.stop_id is None else [done.stop_id])
    ids = question.ids + new
    is_target = [False] * len(question.ids) + is_sampled(len(new), done.put_in)
    return Example(ids, is_target, question.name)


def sources(flags: Flags) -> dict[str, str]:
    """What tells the teacher from others."""
    name = flags.teacher
    return {"teacher": result_hash(Path(name)) if is_run(name) else fingerprint(find_model(name))}


OBJECTIVE = Objective(examples=examples, begin=begin, flags=Flags, beside=beside,
                      sources=sources)
