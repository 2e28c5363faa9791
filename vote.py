"""Choose among several answers to one problem: clusters of equal answers, the majority, and pass@k.

    python vote.py 1/2 0.5 3        # the votes, largest cluster first

Votes are counted on values, not on strings: 1/2 and 0.5 vote together. A sample without an answer does not vote.

Self-consistency, Wang et al. 2022 (arXiv 2203.11171); pass@k, Chen et al. 2021 (arXiv 2107.03374).
"""

import math
import sys
from collections.abc import Sequence

from answers import equivalent


def clusters(answers: Sequence[str | None]) -> list[list[int]]:
    """Indices of the samples with equal answers, in the order first seen; None stands in no cluster.

    Each answer is compared with the first member of each cluster.
    """
    found: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        home = next((members for members in found if equivalent(answers[members[0]], answer)), None)
        if home is None:
            found.append([index])
        else:
            home.append(index)
    return found


def majority(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> int | None:
    """Index of the sample that speaks for the largest cluster (its first member); None where nobody votes.

    Between clusters of one size the higher sum of `weights` wins (all equal where not given), then the first seen.
    """
    weights = weights or [1.0] * len(answers)

    def rank(members: list[int]) -> tuple[int, float]:
        return len(members), math.fsum(weights[i] for i in members)

    # max() returns the first of equals, and clusters come in the order first seen.
    best = max(clusters(answers), key=rank, default=None)
    return None if best is None else best[0]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    The unbiased estimate of Chen et al. 2021, equation 1. Raises ValueError unless 1 <= k <= samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples is not defined")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


if __name__ == "__main__":
    for members in sorted(clusters(sys.argv[1:]), key=len, reverse=True):
        print(len(members), sys.argv[1:][members[0]])
