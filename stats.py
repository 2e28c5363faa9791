"""How sure a share is: intervals, the test of a change, and where a gain comes from.

    python stats.py 81 263        # 81 right of 263: 30.8 %, and the 95 % interval

The unit is always the problem. The samples of one problem resemble each other, so they are averaged
first; problems are independent draws.

Sources: Wilson's interval: Wilson 1927, as recommended by Brown, Cai and DasGupta 2001. The exact
test: McNemar 1947. The bootstrap: Efron 1979.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion.

    It is right also near 0 and 1, where the normal interval has no width.
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # the 97.5 % point of the normal distribution
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding, if p is 0 or 1


def bootstrap(values: Sequence[float], draws: int = 2000,
              seed: int = 0) -> tuple[float, list[float]]:
    """Standard error and 95 % interval [low, high] of the mean of one value a problem.

    They are those of the means of `draws` resamples. For a paired comparison the values are the
    differences.
    """
    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=np.float64)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(draws)]
    return float(np.std(means)), [float(bound) for bound in np.percentile(means, (2.5, 97.5))]


def interval(values: Sequence[float]) -> list[float]:
    """The 95 % interval [low, high] of the mean of one value a problem, each between 0 and 1.

    It is Wilson's if each value is a verdict, 0 or 1, and a bootstrap if some are averages over
    samples.
    """
    if all(value in (0, 1) for value in values):
        return list(wilson(int(sum(values)), len(values)))
    return bootstrap(values)[1]


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided p of the exact McNemar test on paired verdicts.

    Only problems with a changed verdict count. If the change were chance, each of them would be
    gained with probability 1/2.
    """
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    changed = lost + gained
    tail = sum(math.comb(changed, i) for i in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**changed)


def split_gain(before: dict, after: dict) -> dict[str, float]:
    """Split the gain in accuracy between two results into `more_answers` and `more_right_answers`.

    accuracy = a·r: the share a of completions with an answer, times the share r of right ones
    among them. The gain a1·r1 - a0·r0 is a sum of two parts: (a1 - a0)·r0, more answers of the
    old quality, and a1·(r1 - r0), better answers.
    """
    a0, a1 = 1 - before["no_answer_rate"], 1 - after["no_answer_rate"]
    r0 = before["accuracy"] / a0 if a0 else 0.0
    more_answers = (a1 - a0) * r0
    return {"more_answers": more_answers, "more_right_answers": after["accuracy"] - a1 * r0}


if __name__ == "__main__":
    if len(sys.argv) != 3 or not all(word.isascii() and word.isdigit() for word in sys.argv[1:]):
        sys.exit("usage: python stats.py RIGHT PROBLEMS")
    right, count = map(int, sys.argv[1:])
    if not right <= count > 0:
        sys.exit(f"error: {right} right of {count} is no share")
    low, high = wilson(right, count)
    print(f"{right} right of {count}: {right / count:.1%}, 95 % interval {low:.1%} to {high:.1%}")
