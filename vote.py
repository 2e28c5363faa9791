"""Choose among several answers to one problem: votes, pass@k and maj@k.

    python vote.py 1/2 0.5 3                              # the clusters, and what each vote chooses
    python vote.py 1/2 0.5 3 --weights 0.2 0.3 0.9

Votes are counted on values, not on strings: 1/2 and 0.5 vote together, as cluster 0. A sample
without an answer does not vote. Answers are compared once, by `cluster`; everything else works on
the numbers of the clusters. There are three kinds of vote:

    majority    the cluster of most samples; weights do not count
    weighted    the cluster of the highest sum of weights
    best        best of n: the one sample of highest weight

Neither the clusters nor the choice depend on the order of the samples. Of tied clusters, the one
with the shortest text wins; of two such texts, the first by alphabet. `choose` alone decides this,
for the votes of an evaluation and for those beside a verifier. So the majority is the same whether
there are weights or not (a server may give no probabilities).

Weights are, for example, the scores of a verifier, or `confidence`. They are at least 0, so that
one more vote never counts against an answer: with sums of log-probabilities the largest cluster
would lose.

Majority and weights by probability: self-consistency, Wang et al. 2022 (arXiv 2203.11171). Best of
n by score: Cobbe et al. 2021 (arXiv 2110.14168); votes weighted by score: Li et al. 2022 (arXiv
2206.02336). pass@k: Chen et al. 2021 (arXiv 2107.03374). The papers leave ties open; the order
above is this module's.
"""

import functools
import itertools
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out

import numpy as np

from answers import equivalent
from stats import bootstrap, interval

VOTE_KINDS = ("majority", "weighted", "best")
DRAWS = 2048  # most subsets of samples that maj@k looks at; the pairs of 64 samples are 2016
TIE = 1e-12  # relative: the same weights, added in another order, differ by rounding

# -------------------------------------------------------------------------------------------- votes


def cluster(answers: Sequence[str | None]) -> list[int | None]:
    """The number of each sample's cluster of equal answers; None stays None.

    Which answers make a cluster does not depend on the order of the samples. Equality need not be
    transitive: 0.333333 is 1/3, and so is 0.3333333, and the two are unlike. So the texts are
    taken from the shortest to the longest, and by alphabet among those of one length; a text joins
    the first cluster whose first text it equals, or begins a new one.

    Clusters are numbered from 0, in the order of their first texts.
    """
    firsts: list[str] = []
    clusters: dict[str, int] = {}  # by text: no text is compared twice
    for answer in sorted({answer for answer in answers if answer is not None}, key=_rank):
        equal = (number for number, first in enumerate(firsts) if equivalent(first, answer))
        clusters[answer] = next(equal, len(firsts))
        if clusters[answer] == len(firsts):
            firsts.append(answer)
    return [None if answer is None else clusters[answer] for answer in answers]


def _rank(answer: str) -> tuple[int, str]:
    return len(answer), answer


def confidence(mean_log_prob: float) -> float:
    """The weight of a sample, from 0 to 1: the geometric mean of its tokens' probabilities.

    The mean log-probability is in nats per token. Wang et al. 2022, equation 1: with the sum
    instead of the mean, short texts would win.
    """
    return math.exp(mean_log_prob)


def choose(ids: Sequence[int | None], weights: Sequence[float] | None = None,
           kind: str = "majority") -> int | None:
    """Index of the winning sample, the first of its cluster; None if no sample has an answer.

    `ids` are the numbers that `cluster` gives. Of tied clusters, that of the lowest number wins.
    Raises ValueError unless `weights` are finite numbers from 0 up, one a sample. Only a majority
    does without weights.
    """
    array = _checked_weights(len(ids), weights, kind)
    if kind == "best":
        return max((i for i, number in enumerate(ids) if number is not None),
                   key=lambda i: (array[i], -ids[i]), default=None)
    winners = np.flatnonzero(_winners(np.ones((1, len(ids))), ids, array, kind)[0])
    return int(min(winners, key=lambda i: ids[i])) if len(winners) else None


def keep_largest(ids: Sequence[int | None], most: int) -> list[int | None]:
    """The same numbers, but None for members of all but the `most` largest clusters.

    Of clusters of the same size, the one of the lower number counts as larger.
    """
    # most_common keeps the order among equals
    counts = Counter(sorted(number for number in ids if number is not None))
    kept = {number for number, _ in counts.most_common(most)}
    return [number if number in kept else None for number in ids]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that a right sample is among k, drawn without replacement.

    With n samples and c right ones it is 1 - C(n - c, k) / C(n, k), the unbiased estimate of Chen
    et al. 2021, equation 1. Raises ValueError unless 1 <= k <= samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples is not defined")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def maj_at_k(ids: Sequence[int | None], right: Sequence[bool], k: int,
             weights: Sequence[float] | None = None, kind: str = "majority",
             seed: int = 0) -> tuple[float, float]:
    """Probability that a vote of k of one problem's samples is right, and its standard error.

    The k samples are drawn without replacement; `right` holds one verdict a sample. If there are
    at most DRAWS subsets of k samples, the probability is a mean over all of them and its error is
    0. Otherwise it is a mean over DRAWS random ones, and the error is that of drawing subsets.
    (How far the figure would move with other problems is another question: a bootstrap over
    problems answers it.) If each problem has its own seed, the error of a mean over P problems is
    sqrt(sum of squared errors) / P.

    In a tie, a subset counts as the mean over all members of the tied clusters: `choose` must name
    one of them, an estimate need not favour the shortest text.
    Raises ValueError as `choose` does, and unless 1 <= k <= samples.
    """
    n = len(ids)
    if not 1 <= k <= n or len(right) != n:
        raise ValueError(f"maj@{k} of {n} samples with {len(right)} verdicts is not defined")
    array = _checked_weights(n, weights, kind)
    if kind == "best":
        return _best_at_k(ids, right, k, array), 0.0
    exact = math.comb(n, k) <= DRAWS
    subsets = _all_subsets(n, k) if exact else (_orders(n, seed) < k).astype(np.float64)  # [S, n]
    winners = _winners(subsets, ids, array, kind)
    rights, counts = (winners @ np.stack([right, np.ones(n)], axis=1)).T  # [S] each
    values = rights / np.maximum(counts, 1)  # 0 / 1 if none of the k samples has an answer
    return float(values.mean()), 0.0 if exact else float(values.std(ddof=1) / math.sqrt(DRAWS))


def _checked_weights(n: int, weights: Sequence[float] | None, kind: str) -> np.ndarray:
    if kind not in VOTE_KINDS or (weights is None and kind != "majority"):
        raise ValueError(f"a vote of kind {kind!r}: there are {', '.join(VOTE_KINDS)},"
                         " and all but a majority need weights")
    array = np.zeros(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if array.shape != (n,) or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError("weights are finite numbers from 0 up, one a sample;"
                         " see confidence() for log-probabilities")
    return array


def _winners(subsets: np.ndarray, ids: Sequence[int | None], weights: np.ndarray,
             kind: str) -> np.ndarray:
    """Which drawn samples are members of a winning cluster, of all of them in a tie: [S, n].

    subsets [S, n]: 1.0 for a drawn sample. One product of matrices counts the votes of all subsets.
    """
    numbers = np.array([-1 if number is None else number for number in ids], dtype=np.int64)
    clusters = np.arange(numbers.max(initial=0) + 1)  # C of them
    member = (numbers[:, None] == clusters).astype(np.float64)  # [n, C]
    if kind == "majority":  # one vote each
        weights = np.ones(len(ids))
    sums = subsets @ (member * weights[:, None])  # [S, C]
    # If all sums are 0, clusters without a drawn sample pass here; the product below removes them.
    tied = sums >= (1 - TIE) * sums.max(axis=1, keepdims=True)
    return tied.astype(np.float64) @ member.T * subsets


def _best_at_k(ids: Sequence[int | None], right: Sequence[bool], k: int,
               weights: np.ndarray) -> float:
    """Probability that the sample of highest weight among k is right, exactly.

    C(m, k) subsets hold only samples of the m lowest weights; the difference for two neighbouring
    m is the number of subsets whose best sample lies between. If the weights are the verdicts,
    this is pass@k.
    """
    ranked = sorted((weights[i], bool(right[i])) for i, number in enumerate(ids)
                    if number is not None)
    lower, total = len(ids) - len(ranked), 0.0  # a sample without an answer is below all others
    for _, level in itertools.groupby(ranked, key=lambda pair: pair[0]):
        # Of equal weights each counts the same.
        verdicts = [verdict for _, verdict in level]
        subsets = math.comb(lower + len(verdicts), k) - math.comb(lower, k)
        total += sum(verdicts) / len(verdicts) * (subsets / math.comb(len(ids), k))
        lower += len(verdicts)
    return total


@functools.lru_cache(maxsize=64)
def _all_subsets(n: int, k: int) -> np.ndarray:
    """Every choice of k of n samples [C(n, k), n]: 1.0 for a drawn sample."""
    chosen = np.array(list(itertools.combinations(range(n), k)))
    subsets = np.zeros((len(chosen), n))
    np.put_along_axis(subsets, chosen, 1.0, axis=1)
    return subsets


@functools.lru_cache(maxsize=1)  # the ks and kinds of one problem share its draws
def _orders(n: int, seed: int) -> np.ndarray:
    """Random orders of n samples [DRAWS, n]: the numbers below k are at k random places."""
    return np.random.default_rng(seed).random((DRAWS, n)).argsort(axis=1)


# -------------------------------------------------------------------------- an evaluation's samples


def majority(group: list[dict]) -> dict | None:
    """The record that wins the majority of a problem's records; None if none has an answer."""
    index = choose(cluster([record["answer"] for record in group]))
    return None if index is None else group[index]


def summarise_votes(groups: list[list[dict]]) -> dict:
    """The figures of several samples a problem: votes beside a single sample, and growth with k.

    groups: the graded records (see score.py) of each problem, equally many. With mean
    log-probabilities in all records there are three kinds of vote, otherwise the majority alone.
    """
    n, samples = len(groups), len(groups[0])
    ids = [cluster([record["answer"] for record in group]) for group in groups]
    rights = [[record["correct"] for record in group] for group in groups]
    weights = [_confidences(group) for group in groups]
    kinds = VOTE_KINDS if None not in weights else ("majority",)
    single = [sum(right) / samples for right in rights]
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples})  # 1, 2, 4, ..., all
    pass_curve = {str(k): sum(pass_at_k(samples, sum(right), k) for right in rights) / n
                  for k in ks}
    return {"accuracy_se": bootstrap(single)[0],
            "votes": {kind: _vote(ids, rights, weights, kind, single) for kind in kinds},
            "pass_at_k": pass_curve, "maj_at_k": _maj_curves(ids, rights, weights, kinds, ks)}


def _vote(ids: list, rights: list[list[bool]], weights: list, kind: str, single: list) -> dict:
    """The figures of one kind of vote over all samples; `single`: each problem's mean accuracy."""
    chosen = [choose(*ballot, kind) for ballot in zip(ids, weights)]
    verdicts = [index is not None and right[index] for index, right in zip(chosen, rights)]
    gains = [verdict - mean for verdict, mean in zip(verdicts, single)]  # paired by problem
    return {
        "accuracy": sum(verdicts) / len(ids), "ci95": interval(verdicts),
        "gain": sum(gains) / len(ids), "gain_se": bootstrap(gains)[0],
        "no_answer_rate": chosen.count(None) / len(ids),
    }


def _maj_curves(ids: list, rights: list[list[bool]], weights: list, kinds: Sequence[str],
                ks: list[int]) -> dict[str, dict]:
    """maj@k by kind and k. The error is that of drawing subsets, not that of other problems."""
    curves: dict[str, dict] = {kind: {} for kind in kinds}
    points = [(kind, k) for kind in kinds for k in ks]
    # Problems are the outer loop: all points of a problem share its drawn subsets.
    found = [[maj_at_k(ids[i], rights[i], k, weights[i], kind, seed=i) for kind, k in points]
             for i in range(len(ids))]
    for (kind, k), estimates in zip(points, zip(*found)):
        error = math.sqrt(sum(error**2 for _, error in estimates)) / len(ids)
        accuracy = sum(value for value, _ in estimates) / len(ids)
        curves[kind][str(k)] = {"accuracy": accuracy, "se": error}
    return curves


def _confidences(group: list[dict]) -> list[float] | None:
    """The weight of each sample's vote; None unless all records have a mean log-probability."""
    log_probs = [record["mean_log_prob"] for record in group]
    return None if None in log_probs else [confidence(log_prob) for log_prob in log_probs]


def main(words: list[str]) -> None:
    """`python vote.py`: count the votes of the answers, and choose."""
    split = words.index("--weights") if "--weights" in words else len(words)
    answers, weights = words[:split], [float(word) for word in words[split + 1 :]] or None
    ids = cluster(answers)
    for number, votes in Counter(ids).most_common():
        print(votes, answers[ids.index(number)])
    for kind in VOTE_KINDS if weights else VOTE_KINDS[:1]:
        print(f"{kind}: {answers[choose(ids, weights, kind)]}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("--"):
        sys.exit("usage: python vote.py ANSWER... [--weights WEIGHT...]")
    sys.stdout.reconfigure(errors="backslashreplace")  # for what the terminal cannot show
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
