"""stats.py: intervals and tests against published and hand-counted values, and their laws."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stats import bootstrap, interval, mcnemar, split_gain, wilson


@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        (81, 263, 0.2553,
         0.3662),  # these four: Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0),
        (0, 0, 0.0, 1.0),
    ])
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_holds_the_proportion_and_is_symmetric():
    for n in (1, 7, 500):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def paired(gained: int, lost: int, same: int = 10) -> tuple[list[bool], list[bool]]:
    return [False] * gained + [True] * (lost + same), [True] * gained + [False] * lost + [True
                                                                                          ] * same


@pytest.mark.parametrize("gained, lost, p", [
    (0, 0, 1.0),  # nothing changed
    (3, 3, 1.0),
    (5, 1, 14 / 64),  # 2 · (C(6,0) + C(6,1)) / 2^6
    (1, 5, 14 / 64),
    (10, 0, 2 / 1024),
    (6, 2, 74 / 256),  # 2 · (1 + 8 + 28) / 2^8
])
def test_mcnemar(gained, lost, p):
    assert mcnemar(*paired(gained, lost)) == pytest.approx(p)


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])
    assert 0 < mcnemar(*paired(500, 300, same=10_000)) < 1e-10  # and does not overflow


def test_bootstrap_agrees_with_the_error_of_a_mean():
    values = [0.0] * 70 + [1.0] * 30
    error, (low, high) = bootstrap(values)
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.1)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.02) and high == pytest.approx(
        0.3 + 1.96 * error, abs=0.02)
    assert bootstrap(values) == bootstrap(values)  # seeded
    assert bootstrap([0.5] * 10) == (0.0, [0.5, 0.5])


def test_a_gain_is_more_answers_and_more_right_answers():
    before = {"accuracy": 0.2,
              "no_answer_rate": 0.5}  # half are answered, two fifths of those rightly
    after = {"accuracy": 0.72,
             "no_answer_rate": 0.1}  # nine tenths are answered, four fifths of those rightly
    assert split_gain(before, after) == pytest.approx(
        {"more_answers": 0.4 * 0.4, "more_right_answers": 0.9 * 0.4})
    silent = {"accuracy": 0.0, "no_answer_rate": 1.0}
    for a, b in [(before, after), (after, before), (silent, after), (after, silent)]:
        assert sum(split_gain(a, b).values()) == pytest.approx(b["accuracy"] - a["accuracy"])


def test_verdicts_have_wilsons_interval_and_averages_a_bootstrapped_one():
    assert interval([1] * 15 + [0] * 133) == list(wilson(
        15, 148)) == interval([1.0] * 15 + [False] * 133)
    averages = [0.0, 0.25, 1.0, 0.5] * 25
    assert interval(averages) == bootstrap(averages)[1]


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    """Of many evaluations of a model of known accuracy, about 19 of 20 intervals hold it."""
    rng = np.random.default_rng(0)
    truth, held = 0.3, {"verdicts": 0, "averages": 0}
    for _ in range(400):
        held["verdicts"] += within(truth, interval((rng.random(100) < truth).tolist()))
        difficulty = rng.beta(3, 7, 100)  # mean 0.3; eight samples of each problem
        held["averages"] += within(truth, bootstrap(rng.binomial(8, difficulty) / 8, draws=300)[1])
    assert all(0.92 <= count / 400 <= 0.98 for count in held.values()), held


def within(value: float, bounds: list[float]) -> bool:
    return bounds[0] <= value <= bounds[1]


@pytest.mark.parametrize("words, code, said", [
    (["81", "263"], 0, "81 right of 263: 30.8%, 95 % interval 25.5% to 36.6%"),
    (["5", "4"], 1, "no share"),
    (["0", "0"], 1, "no share"),
    (["five", "6"], 1, "usage"),
])
def test_the_command(words, code, said):
    module = Path(__file__).resolve().parent.parent / "stats.py"
    done = subprocess.run([sys.executable, module, *words], capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr
