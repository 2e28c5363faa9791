"""A verifier: a model that says whether a solution is right. Its scores choose among many.

    python evaluate.py --run GENERATOR --dataset mini-gsm --split train --samples 8 \\
        --temperature 0.9 --output-dir samples
    python mathft.py --objective verifier --method lora --dataset samples
    python evaluate.py --run GENERATOR --samples 16 --temperature 0.9 --verifier VERIFIER
    python -m pytest tests/test_verifier.py -v

1. The prompt holds a problem P and a candidate solution X (Liu et al. 2023, arXiv 2310.10047,
   section 3.2):

       Here is a math problem: P
       Here is a candidate solution: X
       The above candidate solution is   ->   correct | incorrect

   S = p(correct) / (p(correct) + p(incorrect)). The first token in which the two words differ
   stands for each.
2. Training takes pairs of a right and a wrong solution of one problem, so that the two verdicts are
   equally frequent within each problem. The loss of a pair is

       cross-entropy   - log p(correct | right one) - log p(incorrect | wrong one)
       margin          max(0, log S(wrong one) - log S(right one) + λ)

3. With --verifier-steps, a verdict is about one line. In training, the wrong solution ends with its
   first line whose mark <<a+b=c>> is wrong (with its last line if no mark is), and the right one
   has as many lines. S of a solution is then the least S of its beginnings that end with a line.
   (In Lightman et al. 2023, arXiv 2305.20050, people say which step is wrong; here arithmetic.)
4. Choosing among N samples of a problem; equal answers form a cluster:

       Maj1         the largest cluster
       RR.All       the sample of highest S
       RR.MajK      the same among the K largest clusters: fewer samples to read
       W.RR         the cluster of the highest sum of S
       W.RR.MajK    the same among the K largest clusters

Differs from the paper of Liu et al.: the verifier reads a plain document, not a chat.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data import Example, set_names, shared_beginning, split_by_tokens
from flags import flag
from methods import Run
from model import Qwen2
from records import read_records
from recipes.arithmetic import check, marks
from runtime import ALONE, Alone, UserError, clock, hash_of, read_json
from score import by_problem, place, read_finished
from stats import bootstrap, interval
from tokenizer import Tokenizer
from train import Objective, Steps, in_order, predict, summed_loss
from vote import choose, cluster, keep_largest

WORDS = (" correct", " incorrect")
LOSSES = ("cross-entropy", "margin")
TOKENS_AT_ONCE = 8192  # read without a gradient
BINS = 10  # of the calibration table
MOST_STEPS = 16  # lines of a solution that are judged one by one; further ones with the last


@dataclass
class Flags:
    """Flags of --objective verifier."""

    verifier_loss: str = flag("cross-entropy", "cross-entropy, or margin between the two of a pair",
                              choices=LOSSES)
    margin: float = flag(1.0, "what log S of the right one should be ahead by", least=0)
    pairs: int = flag(4, "most pairs of a right and a wrong solution of each problem", least=1)
    verifier_steps: bool = flag(False, "judge each line: S of a solution is the least of its lines")


@dataclass(frozen=True)
class Candidate:
    """A solution of a problem, and whether its answer is right."""

    id: str
    question: str
    solution: str
    correct: bool

    @property
    def key(self) -> str:
        """What tells problems apart, as of a data.Problem."""
        return self.question


@dataclass(frozen=True, kw_only=True)
class Pair(Example):
    """A right and a wrong solution of one problem; `ids` are those of both, for counting."""

    right: Example
    wrong: Example

    @property
    def longest(self) -> int:
        return max(self.right.longest, self.wrong.longest)


# ----------------------------------------------------------------------------------------- examples


def prompt(question: str, solution: str) -> str:
    """What the verifier reads before its verdict."""
    return (f"Here is a math problem: {question}\nHere is a candidate solution: {solution}\n"
            "The above candidate solution is")


def verdict_tokens(tokenizer: Tokenizer) -> tuple[list[int], tuple[int, int]]:
    """The tokens that both verdicts begin with (usually none), and the first token in which they
    differ, of each: (correct, incorrect).
    """
    right, wrong = map(tokenizer.encode, WORDS)
    common = shared_beginning([right, wrong])
    return right[:common], (right[common], wrong[common])


def judged(tokenizer: Tokenizer, candidate: Candidate) -> Example:
    """The prompt and its verdict, which alone is a target."""
    common, words = verdict_tokens(tokenizer)
    text = prompt(candidate.question, candidate.solution)
    ids = [*tokenizer.encode(text), *common, words[0 if candidate.correct else 1]]
    return Example(ids, [False] * (len(ids) - 1) + [True], candidate.id)


def read_candidates(name: str) -> list[Candidate]:
    """The graded completions of finished evaluations: folders, with commas between them."""
    return [Candidate(record["id"], record["question"], record["text"], record["correct"])
            for part in set_names(name) for record in read_finished(Path(part))]


def candidate_pairs(candidates: Iterable[Candidate],
                    most: int) -> list[tuple[Candidate, Candidate]]:
    """Pairs (right, wrong) of each problem that has both, at most so many, no solution twice."""
    groups: dict[str, tuple[dict, dict]] = {}
    for candidate in candidates:
        right, wrong = groups.setdefault(candidate.question, ({}, {}))
        (right if candidate.correct else wrong).setdefault(candidate.solution, candidate)
    pairs = []
    for group in groups.values():
        # in an order of their own, not that of sampling
        right, wrong = (sorted(part.values(), key=lambda c: hash_of(c.solution)) for part in group)
        pairs += list(zip(right, wrong))[:most]
    return pairs


def beginnings(solution: str) -> list[str]:
    """The solution up to each of its lines that is not empty; the last one is the whole."""
    lines = solution.split("\n")
    ends = [end for end, line in enumerate(lines, 1) if line.strip()][:-1]
    return [*("\n".join(lines[:end]) for end in ends[: MOST_STEPS - 1]), solution]


def up_to_first_error(right: Candidate, wrong: Candidate) -> tuple[Candidate, Candidate]:
    """The wrong solution up to its first wrong line, and the right one with as many lines."""
    parts, others = beginnings(wrong.solution), beginnings(right.solution)
    count = next((number for number, part in enumerate(parts, 1)
                  if any(check(mark) is False for mark in marks(part))), len(parts))
    return (replace(right, solution=others[min(count, len(others)) - 1]),
            replace(wrong, solution=parts[count - 1]))


def pair_examples(tokenizer: Tokenizer, candidates: list[Candidate], args,
                  flags: Flags) -> tuple[list[Example], int]:
    """The pairs of which both documents fit --max-length tokens, and how many do not."""
    made = []
    for right, wrong in candidate_pairs(candidates, flags.pairs):
        if flags.verifier_steps:
            right, wrong = up_to_first_error(right, wrong)
        first, second = judged(tokenizer, right), judged(tokenizer, wrong)
        both = [*first.ids, *second.ids]
        made.append(Pair(both, [*first.is_target, *second.is_target], right.id, right=first,
                         wrong=second))
    short = [pair for pair in made if pair.longest <= args.max_length]
    return short, len(made) - len(short)


# -------------------------------------------------------------------------------- scores and losses


def log_scores(model: Qwen2, documents: list[Example], words: tuple[int, int],
               prefix: Tensor | None = None) -> Tensor:
    """log S and log (1 - S) of each document [n, 2], from the two verdicts' logits alone."""
    batch, hidden = predict(model, documents, prefix)
    # In fp32: in bf16 many scores would be equal. [2, D]
    rows = torch.stack([model.head_weight[word] for word in words]).float()
    logits = F.linear(hidden[: len(batch.targets)].float(), rows)  # [n, 2]
    return logits.log_softmax(-1)


def cross_entropy(model: Qwen2, pairs: list[Pair],
                  prefix: Tensor | None = None) -> tuple[Tensor, int]:
    """Sum over the verdicts of both documents of each pair, and their number."""
    return summed_loss(model, [part for pair in pairs for part in (pair.right, pair.wrong)], prefix)


def margin_loss(model: Qwen2, pairs: list[Pair], prefix: Tensor | None, words: tuple[int, int],
                margin: float) -> tuple[Tensor, int]:
    """Sum over the pairs of max(0, log S(wrong) - log S(right) + margin), and their number."""
    documents = [part for pair in pairs for part in (pair.right, pair.wrong)]
    scores = log_scores(model, documents, words, prefix)[:, 0]  # [2 n]
    return F.relu(scores[1::2] - scores[0::2] + margin).sum(), len(pairs)


def begin(model: Qwen2, tokenizer: Tokenizer, tuning, pairs: list[Pair], args, flags: Flags,
          folder: Path, ranks: Alone = ALONE) -> Steps:
    """The objective at work: the pairs in a new order each epoch."""
    batch_at = in_order(model, tokenizer, tuning, pairs, args, flags, folder).batch_at
    if flags.verifier_loss == "cross-entropy":
        return Steps(batch_at, cross_entropy)
    words = verdict_tokens(tokenizer)[1]
    return Steps(batch_at, lambda model, part, prefix=None: margin_loss(model, part, prefix, words,
                                                                        flags.margin))


OBJECTIVE = Objective(
    examples=pair_examples, begin=begin, flags=Flags, read=read_candidates,
    defaults={"tiny": {"steps": 200, "batch_size": 16, "eval_limit": 0, "max_length": 1024},
              "real": {"epochs": 1.0, "batch_size": 16, "eval_limit": 0, "max_length": 2048}})


# ---------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def scores_of(run: Run, records: Sequence[dict]) -> tuple[list[float], list[int]]:
    """S of each record's text, and the tokens read for it.

    A text that the model's positions do not hold has S = 0 and costs nothing. Raises UserError if
    a score is not finite.
    """
    room = run.model.config.max_position_embeddings
    room -= 0 if run.prefix is None else run.prefix.shape[2]
    words = verdict_tokens(run.tokenizer)[1]
    scores, tokens, documents = [1.0] * len(records), [0] * len(records), []
    for number, record in enumerate(records):
        text = record["text"]
        own = [judged(run.tokenizer, Candidate(str(number), record["question"], part, True))
               for part in (beginnings(text) if run.args.get("verifier_steps") else [text])]
        if len(own[-1].ids) <= room:
            documents += own
            tokens[number] = sum(len(document.ids) for document in own)
        else:
            scores[number] = 0.0
    for part in split_by_tokens(documents, TOKENS_AT_ONCE):
        found = log_scores(run.model, part, words, run.prefix)[:, 0].exp().tolist()
        if not all(map(math.isfinite, found)):
            raise UserError("the verifier gives no finite scores; are its weights NaN or infinite?")
        for document, score in zip(part, found):
            scores[int(document.name)] = min(score, scores[int(document.name)])
    return scores, tokens


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """The probability that a right one has a higher score than a wrong one; ties count half.

    None if there are only right or only wrong ones. (Mann and Whitney 1947.)
    """
    ranked = sorted(zip(scores, right))
    below, total, start = 0, 0.0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        wins = sum(verdict for _, verdict in ranked[start:end])
        total += wins * (below + (end - start - wins) / 2)
        below += end - start - wins
        start = end
    good = sum(map(bool, right))
    return total / (good * below) if good and below else None


def calibration(scores: Sequence[float], right: Sequence[bool]) -> list[dict]:
    """For each bin of S: how many, their mean S, and the share of right ones. Empty bins are left
    out.
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for score, verdict in zip(scores, right):
        bins[min(BINS - 1, int(score * BINS))].append((score, verdict))
    return [{"from": number / BINS, "n": len(part),
             "score": statistics.fmean(score for score, _ in part),
             "right": sum(verdict for _, verdict in part) / len(part)}
            for number, part in enumerate(bins) if part]


def choices(answers: list[str | None], scores: list[float],
            most: int) -> dict[str, tuple[int | None, list[int]]]:
    """The sample that each way chooses, and the samples of which it needs the score."""
    ids = cluster(answers)
    few = keep_largest(ids, most)
    everyone, some = ([i for i, number in enumerate(part) if number is not None]
                      for part in (ids, few))
    return {
        "Maj1": (choose(ids), []),
        "RR.All": (choose(ids, scores, "best"), everyone),
        "RR.MajK": (choose(few, scores, "best"), some),
        "W.RR": (choose(ids, scores, "weighted"), everyone),
        "W.RR.MajK": (choose(few, scores, "weighted"), some),
    }


def measure(run: Run, records: list[dict], most: int) -> tuple[dict, list[dict]]:
    """The figures of a verifier on the graded samples of an evaluation, and the rows of
    scores.jsonl: of each sample its score, and the tokens that were read for it.
    """
    device = run.model.head_weight.device
    start = clock(device)
    scores, tokens = scores_of(run, records)
    seconds = clock(device) - start
    rows = [{"problem": record["problem"], "sample": record["sample"], "score": score, "tokens": n}
            for record, score, n in zip(records, scores, tokens)]
    return summarise_scores(records, rows, most, seconds), rows


def summarise_scores(records: list[dict], scored: list[dict], most: int, seconds: float) -> dict:
    """The figures of graded samples and the rows of their scores, in the same order.

    most: K. seconds: what reading all of them took.
    """
    scores, tokens = ([row[key] for row in scored] for key in ("score", "tokens"))
    groups, row_of = by_problem(records), {id(r): row for r, row in zip(records, scored)}
    rows: dict[str, list[float]] = {"pass@1": [], f"pass@{len(groups[0])}": []}
    read: dict[str, int] = {}
    within = []
    for group in groups:
        right = [record["correct"] for record in group]
        own = [row_of[id(record)]["score"] for record in group]
        rows["pass@1"].append(sum(right) / len(right))
        rows[f"pass@{len(groups[0])}"].append(float(any(right)))
        found = choices([record["answer"] for record in group], own, most)
        for name, (index, needed) in found.items():
            rows.setdefault(name, []).append(float(index is not None and right[index]))
            read[name] = read.get(name, 0) + sum(row_of[id(group[i])]["tokens"] for i in needed)
        within.append(auc(own, right))
    total, verdicts = sum(tokens), [record["correct"] for record in records]
    mixed = [value for value in within if value is not None]
    return {
        "rows": {name: _row(values, rows["Maj1"], read.get(name, 0), seconds / max(1, total))
                 for name, values in rows.items()},
        "auc": auc(scores, verdicts),
        "auc_within_problems": statistics.fmean(mixed) if mixed else None,
        "calibration": calibration(scores, verdicts),
        "largest_clusters": most, "tokens": total, "seconds": seconds,
    }


def count_again(folder: Path, records: list[dict]) -> tuple[dict, list[dict]]:
    """What `measure` gave, with the verdicts of `records`, from an evaluation's own files. Raises
    UserError if scores.jsonl and result.json do not hold what was written after `measure`.
    """
    path = folder / "scores.jsonl"
    stored = read_json(folder / "result.json").get("verifier")
    most, seconds = ((stored.get(key) if isinstance(stored, dict) else None)
                     for key in ("largest_clusters", "seconds"))
    if type(most) is not int or most < 1 or type(seconds) not in (int, float) or seconds < 0:
        raise UserError(f"{folder / 'result.json'}: verifier is not what was measured; remove "
                        f"{path}, and the report has no verifier")
    rows = [_scored(row) for _, row in read_records(path)]
    if [row and place(row) for row in rows] != list(map(place, records)):
        raise UserError(f"{path}: not the score and tokens of each sample in generations.jsonl; "
                        "remove it, and the report has no verifier")
    figures = summarise_scores(records, rows, most, seconds)
    return {"run": str(stored.get("run")), **figures}, rows


def _scored(row) -> dict | None:
    """A parsed row of scores.jsonl; None if it is none."""
    row = row if isinstance(row, dict) else {}
    whole = all(type(row.get(key)) is int and 0 <= row[key] < 2**53
                for key in ("problem", "sample", "tokens"))
    score = row.get("score")  # isinstance: records.py gives numbers that keep their spelling
    if not whole or isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return row | {"score": float(score)} if 0 <= score <= 1 else None


def _row(values: list[float], beside: list[float], tokens: int, seconds_a_token: float) -> dict:
    gains = [value - other for value, other in zip(values, beside)]
    return {"accuracy": statistics.fmean(values), "ci95": interval(values),
            "gain": statistics.fmean(gains), "gain_se": bootstrap(gains)[0],
            "verifier_tokens": tokens, "verifier_seconds": tokens * seconds_a_token}


def lines(figures: dict) -> list[str]:
    """The table for people."""
    k = figures["largest_clusters"]
    shown = [f"{'choice':12s}accuracy     95 % interval   beside Maj1 (SE)   verifier reads"]
    for name, row in figures["rows"].items():
        low, high = row["ci95"]
        shown.append(f"{name:12s}{row['accuracy']:8.1%}{f'{low:.1%} to {high:.1%}':>18s}"
                     f"{100 * row['gain']:+9.1f} ({100 * row['gain_se']:.1f})"
                     f"{row['verifier_tokens']:13,} tokens, {row['verifier_seconds']:.1f} s")
    over_all, within = _share(figures["auc"]), _share(figures["auc_within_problems"])
    shown.append(f"K is {k}; AUC {over_all} over all samples, {within} within problems that have "
                 "right and wrong ones")
    shown.append("S        samples   mean S   right")
    shown += [f"{part['from']:.1f} up{part['n']:10d}{part['score']:9.2f}{part['right']:8.1%}"
              for part in figures["calibration"]]
    return shown


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
