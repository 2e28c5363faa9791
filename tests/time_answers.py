"""How long a verdict takes: median, 99 % and slowest, over the labelled pairs, hostile pairs, and real gold answers.

    python tests/time_answers.py

With MATHFT_DATA also each of MATH-500's gold answers against itself and fifty others. Texts are read anew for each
verdict (no cache), in processor time, so that other work on the machine does not count. No test, and nothing is asserted.
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


def measure(name: str, pairs: list[tuple[str, str]]) -> None:
    """Print the times of one verdict on each pair, in microseconds of processor time."""
    times = []
    for gold, answer in pairs:
        answers._read.cache_clear()
        start = time.process_time_ns()
        answers.equivalent(gold, answer)
        times.append((time.process_time_ns() - start) / 1000)
    ranked = sorted(range(len(pairs)), key=times.__getitem__)
    at = [times[ranked[int(share * (len(pairs) - 1))]] for share in (0.5, 0.99, 1)]
    slowest = " | ".join(text[:40] for text in pairs[ranked[-1]])
    print(
        f"{name:20s} {len(pairs):6d} pairs: median {at[0]:7.1f} us, 99 % {at[1]:8.1f} us, slowest {at[2]:8.1f} us: {slowest}"
    )


if __name__ == "__main__":
    labelled = [pair for equal, unequal in PAIRS.values() for pair in equal + unequal]
    measure("labelled pairs", labelled)
    measure("hostile pairs", list(itertools.product(HOSTILE, HOSTILE)))
    if "MATHFT_DATA" in os.environ:
        path = Path(os.environ["MATHFT_DATA"]) / "math500/test.json"
        golds = sorted(
            {problem["answer"]
             for problem in json.loads(path.read_text(encoding="utf-8"))})
        rng = random.Random(0)
        measure("golds with others",
                [(gold, other) for gold in golds for other in [gold, *rng.sample(golds, 50)]])
