"""Measure how long a verdict takes: median, 99 % and slowest.

    python tests/time_answers.py

The pairs are the labelled pairs, the hostile pairs and, if MATHFT_DATA names a folder of real sets,
each gold answer of MATH-500 with itself and fifty others. Each verdict reads its texts again,
without the cache. Times are processor time, so other work on the machine hardly counts. This is no
test.
"""

import itertools
import json
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import answers  # noqa: E402
from answer_pairs import HOSTILE, PAIRS  # noqa: E402
from grader.verdict import read  # noqa: E402


def measure(name: str, pairs: list[tuple[str, str]]) -> None:
    """Print the times of one verdict on each pair, in microseconds of processor time."""
    times = []
    for gold, answer in pairs:
        read.cache_clear()
        start = time.process_time_ns()
        answers.equivalent(gold, answer)
        times.append((time.process_time_ns() - start) / 1000)
    ranked = sorted(range(len(pairs)), key=times.__getitem__)
    at = [times[ranked[int(share * (len(pairs) - 1))]] for share in (0.5, 0.99, 1)]
    slowest = " | ".join(text[:40] for text in pairs[ranked[-1]])
    print(f"{name:20s} {len(pairs):6d} pairs: median {at[0]:7.1f} us, 99 % {at[1]:8.1f} us, "
          f"slowest {at[2]:8.1f} us: {slowest}")


if __name__ == "__main__":
    answers.equivalent("1/2", "0.5")  # imports the parser, which is no part of a verdict's time
    labelled = [pair for equal, unequal in PAIRS.values() for pair in equal + unequal]
    measure("labelled pairs", labelled)
    measure("hostile pairs", list(itertools.product(HOSTILE, HOSTILE)))
    if "MATHFT_DATA" in os.environ:
        path = Path(os.environ["MATHFT_DATA"]) / "math500/test.json"
        problems = json.loads(path.read_text(encoding="utf-8"))
        golds = sorted({problem["answer"] for problem in problems})
        rng = random.Random(0)
        measure("golds with others",
                [(gold, other) for gold in golds for other in [gold, *rng.sample(golds, 50)]])
