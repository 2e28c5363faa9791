"""Choose among several answers to one problem, and say how often k samples would be right: votes, pass@k and maj@k.

    python vote.py 1/2 0.5 3                              # the clusters, and which sample each vote chooses
    python vote.py 1/2 0.5 3 --weights 0.2 0.3 0.9

Votes are counted on values, not on strings: 1/2 and 0.5 vote together, as cluster 0. A sample without an answer does
not vote. Answers are compared once (`cluster`); all else works on the cluster numbers. Three kinds of vote:

    majority    the cluster of most samples; where several are as large, the highest sum of weights among them
    weighted    the cluster of the highest sum of weights
    best        best of n: the one sample of highest weight

What is still tied goes to the first seen. Weights are scores such as a verifier's, or `confidence`. They are at least
0, so that one more vote never counts against an answer: sums of log-probabilities would punish the large cluster.

Majority and weights by probability: self-consistency, Wang et al. 2022 (arXiv 2203.11171). Best of n by score: Cobbe et
al. 2021 (arXiv 2110.14168); votes weighted by score: Li et al. 2022 (arXiv 2206.02336). pass@k: Chen et al. 2021 (arXiv
2107.03374). The papers leave ties open; the order above is this module's.
"""

import functools
import itertools
import math
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from answers import equivalent

KINDS = ("majority", "weighted", "best")
DRAWS = 2048  # subsets drawn for maj@k where there are more; enough that pairs of 64 samples are still counted exactly
TIE = 1e-12  # relative: sums this close are equal, for the same weights added in another order differ by rounding


def cluster(answers: Sequence[str | None]) -> list[int | None]:
    """The number of each sample's cluster of equal answers, counted from 0 in the order first seen; None stays None.

    Each answer is compared with the first member of each cluster.
    """
    firsts: list[str] = []
    homes: dict[str, int] = {}  # by text: what was compared once is not compared again
    for answer in answers:
        if answer is not None and answer not in homes:
            home = next(
                (number for number, first in enumerate(firsts) if equivalent(first, answer)),
                len(firsts))
            if home == len(firsts):
                firsts.append(answer)
            homes[answer] = home
    return [homes.get(answer) for answer in answers]


def confidence(mean_log_prob: float) -> float:
    """The weight of a sample from its mean log-probability in nats per token: the geometric mean of its tokens'
    probabilities, from 0 to 1. Wang et al. 2022, equation 1; by the mean and not the sum, or short texts would win."""
    return math.exp(mean_log_prob)


def choose(ids: Sequence[int | None], weights: Sequence[float] | None = None,
           kind: str = "majority") -> int | None:
    """Index of the sample that speaks for the winner (the first of its cluster); None where nobody has an answer.

    `ids` as from `cluster`. Raises ValueError for weights that are no finite numbers from 0 up, one a sample; only a
    majority goes without.
    """
    array = _weights(len(ids), weights, kind)
    if kind == "best":
        return max((i for i, number in enumerate(ids) if number is not None),
                   key=lambda i: array[i], default=None)
    winners = _winners(np.ones((1, len(ids))), ids, array, kind)[0]
    return int(winners.argmax()) if winners.any() else None  # argmax: the first of equals


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    The unbiased estimate of Chen et al. 2021, equation 1. Raises ValueError unless 1 <= k <= samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples is not defined")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def maj_at_k(ids: Sequence[int | None], right: Sequence[bool], k: int,
             weights: Sequence[float] | None = None, kind: str = "majority", seed: int = 0,
             ) -> tuple[float, float]:
    """Probability that `choose` is right on k of one problem's samples, drawn without replacement; its standard error.

    right: one verdict a sample. A mean over all C(n, k) subsets where these are at most DRAWS, with error 0; else over
    DRAWS drawn ones, and the error is that of the drawing alone. How far the figure would move with other problems is
    another question: a bootstrap over problems answers it. With a seed of its own for each problem, the drawing's error
    in a mean over P problems is sqrt(sum of squared errors) / P.

    A subset counts as the mean over all orders of its samples, or the first sample drawn would win every tie: in random
    order each member of the tied clusters is as likely as any other to be the first seen.
    Raises ValueError as `choose`, and unless 1 <= k <= samples.
    """
    n = len(ids)
    if not 1 <= k <= n or len(right) != n:
        raise ValueError(f"maj@{k} of {n} samples with {len(right)} verdicts is not defined")
    array = _weights(n, weights, kind)
    if kind == "best":
        return _best_at_k(ids, right, k, array), 0.0
    exact = math.comb(n, k) <= DRAWS
    subsets = _all_subsets(n, k) if exact else (_orders(n, seed) < k).astype(np.float64)  # [S, n]
    winners = _winners(subsets, ids, array, kind)
    # Where none of the k has an answer there is no winner, and nothing right: 0 / 1.
    rights, stood = (winners @ np.stack([right, np.ones(n)], axis=1)).T  # [S] each
    values = rights / np.maximum(stood, 1)
    return float(values.mean()), 0.0 if exact else float(values.std(ddof=1) / math.sqrt(DRAWS))


def _weights(n: int, weights: Sequence[float] | None, kind: str) -> np.ndarray:
    if kind not in KINDS or (weights is None and kind != "majority"):
        raise ValueError(
            f"a vote of kind {kind!r}: there are {', '.join(KINDS)}, and all but a majority need weights"
        )
    array = np.zeros(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if array.shape != (n,) or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(
            "weights are finite numbers from 0 up, one a sample; see confidence() for log-probabilities"
        )
    return array


def _winners(subsets: np.ndarray, ids: Sequence[int | None], weights: np.ndarray,
             kind: str) -> np.ndarray:
    """The drawn samples that stand in a winning cluster, in all of them where several are tied [S, n].

    subsets [S, n]: 1.0 where a sample is drawn, so that a product of matrices counts the votes of all subsets at once.
    """
    numbers = np.array([-1 if number is None else number for number in ids], dtype=np.int64)
    member = (numbers[:, None] == np.arange(numbers.max(initial=0) + 1)).astype(
        np.float64)  # [n, C]
    if kind == "majority":  # one each, and a share of the weights that all together never makes up for one vote
        weights = 1 + weights / (2 * weights.sum() or 1)
    sums = subsets @ (member * weights[:, None])  # [S, C]
    # Where all sums are 0, clusters nobody was drawn from pass here, and are gone in the product with `subsets`.
    tied = sums >= (1 - TIE) * sums.max(axis=1, keepdims=True)
    return tied.astype(np.float64) @ member.T * subsets


def _best_at_k(ids: Sequence[int | None], right: Sequence[bool], k: int,
               weights: np.ndarray) -> float:
    """Probability that the sample of highest weight among k is right, exactly: from C(m, k), the number of subsets that
    hold none but the m lowest. With the verdicts as weights this is pass@k."""
    ranked = sorted(
        (weights[i], bool(right[i])) for i, number in enumerate(ids) if number is not None)
    lower, total = len(ids) - len(ranked), 0.0  # a sample without an answer is below all others
    for _, level in itertools.groupby(ranked, key=lambda pair: pair[0]):
        verdicts = [verdict for _, verdict in level
                    ]  # of equal weight, each as likely as any other to be first seen
        subsets = math.comb(lower + len(verdicts), k) - math.comb(
            lower, k)  # whose best stand on this level
        total += sum(verdicts) / len(verdicts) * (subsets / math.comb(len(ids), k))
        lower += len(verdicts)
    return total


@functools.lru_cache(maxsize=64)
def _all_subsets(n: int, k: int) -> np.ndarray:
    """Every choice of k of n samples [C(n, k), n]: 1.0 where drawn."""
    chosen = np.array(list(itertools.combinations(range(n), k)))
    subsets = np.zeros((len(chosen), n))
    np.put_along_axis(subsets, chosen, 1.0, axis=1)
    return subsets


@functools.lru_cache(maxsize=1)  # the ks and kinds of one problem share its draws
def _orders(n: int, seed: int) -> np.ndarray:
    """Random orders of n samples [DRAWS, n]: the numbers below k stand at k random places."""
    return np.random.default_rng(seed).random((DRAWS, n)).argsort(axis=1)


def main(words: list[str]) -> None:
    """`python vote.py`: count the votes of the answers, and choose."""
    split = words.index("--weights") if "--weights" in words else len(words)
    answers, weights = words[:split], [float(word) for word in words[split + 1 :]] or None
    ids = cluster(answers)
    for number, votes in Counter(ids).most_common():
        print(votes, answers[ids.index(number)])
    for kind in KINDS if weights else KINDS[:1]:
        print(f"{kind}: {answers[choose(ids, weights, kind)]}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("--"):
        sys.exit("usage: python vote.py ANSWER... [--weights WEIGHT...]")
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
