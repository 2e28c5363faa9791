"""vote.py: votes on values, the laws of voting, and what k samples bring."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

import synthetic
import vote
from vote import VOTE_KINDS, choose, cluster, confidence, main, maj_at_k, pass_at_k

N = None  # a sample without an answer


# ----------------------------------------------------------------------------------------- clusters


@pytest.mark.parametrize(
    "answers, ids",
    [
        ([], []),
        ([N, N], [N, N]),
        # by value, numbered by the shortest text, 3 before 0.5
        (["1/2", "3", "0.5", N, r"\frac12", "3.0"], [1, 0, 1, N, 1, 0]),
        (["2", "1", "2", "1"], [1, 0, 1, 0]),
        (["", "0"], [0, 1]),  # an empty answer is an answer
    ])
def test_clusters(answers, ids):
    assert cluster(answers) == ids


@pytest.mark.parametrize("answers, ids", [
    (["0", "1", "2"], [0, 0, 1]),  # 2 is near 1, but 0 speaks for the cluster
    (["1", "0", "2"], [0, 0, 1]),
    (["2", "1", "0"], [1, 0, 0]),
    (["0", "2", "1", "2"], [0, 1, 0, 1]),  # near both: to the first cluster
    (["10", "9", "8"], [1, 0, 0]),  # 8 and 9 are shorter than 10
])
def test_an_answer_is_compared_with_the_first_member(answers, ids, monkeypatch):
    """Of the shortest text, then the first by alphabet: in whatever order the samples come."""
    monkeypatch.setattr(vote, "equivalent", lambda a, b: abs(int(a) - int(b)) <= 1)
    assert cluster(answers) == ids


def test_clusters_do_not_depend_on_the_order_of_the_samples():
    """Equality need not be transitive: two decimals may both stand for one third."""
    answers = ["0.333333", "1/3", "0.3333333", "1/3", "0.333333", "2", "2.0", N]
    groups = set()
    for turned in itertools.islice(itertools.permutations(range(8)), 0, None, 97):
        ids = cluster([answers[i] for i in turned])
        groups.add(frozenset(frozenset(answers[i] for i, number in zip(turned, ids)
                                       if number == wanted) for wanted in set(ids) - {N}))
        if len(groups) > 1:
            break
    assert groups == {frozenset({frozenset({"0.333333", "1/3", "0.3333333"}),
                                 frozenset({"2", "2.0"})})}
    assert cluster(["1/2", "x", "0.5"]) == [1, 0, 1], "numbered by their first texts"


def test_a_vote_elects_the_same_whatever_the_order_of_the_samples():
    """Also of tied clusters, and with weights."""
    samples = [("0.5", 0.2), ("1/2", 0.3), ("7", 0.3), ("7.0", 0.2), ("10", 0.3), (N, 0.9)]
    for kind in VOTE_KINDS:
        elected = set()
        for turned in itertools.permutations(samples):
            answers, weights = zip(*turned)
            elected.add(answers[choose(cluster(answers), weights, kind)].removesuffix(".0"))
        assert elected == {"7"}, kind


def test_one_text_is_compared_once(monkeypatch):
    compared = []
    monkeypatch.setattr(vote, "equivalent", lambda *pair: compared.append(pair))  # never equal
    assert cluster(["1", "2", "1", "2", "1"]) == [0, 1, 0, 1, 0]
    assert compared == [("1", "2")]


def test_two_spellings_of_a_synthetic_answer_outvote_a_wrong_one():
    for problem in synthetic.problems("mini-gsm", "test", 200):
        gold = problem["answer"].rpartition("#### ")[2]
        assert choose(cluster([N, gold + "1", gold, gold + ".0"])) == 2


# -------------------------------------------------------------------------------------------- votes


@pytest.mark.parametrize("ids, weights, majority, weighted, best", [
    ([], [], N, N, N),
    ([N], [0.9], N, N, N),
    ([0], [0.0], 0, 0, 0),  # one vote wins, even of weight 0
    ([N, N, 0], [0.9, 0.9, 0.1], 2, 2, 2),  # no answer is no vote, however often and sure
    ([0, 1, 1], [0.9, 0.2, 0.3], 1, 0, 0),
    ([0, 1, 1], [0.5, 0.3, 0.4], 1, 1, 0),
    ([0, 1, 1, 2], [0.5, 0.1, 0.45, 0.6], 1, 3, 3),  # 2, and 0.6 > 0.55
    ([0, 1, 1], [9.0, 0.0, 0.0], 1, 0, 0),  # in a majority no weight outweighs a vote
    ([0, 1, 0, 1], [0.1, 0.2, 0.5, 0.3], 0, 0, 2),  # two votes each; 0.6 > 0.5
    ([0, 1, 0, 1], [0.1, 0.4, 0.3, 0.1], 0, 1, 1),  # a tie, and a majority asks no weight
    ([0, 1], [0.5, 0.500001], 0, 1, 1),
    ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], 0, 0, 0),  # all tied: the lowest number
    ([0, 1, 1, 0], [0.3, 0.1, 0.2, 0.0], 0, 0, 0),  # 0.1 + 0.2 is 0.3, whatever the rounding
    ([0, 1, 1, 0], [0.0, 0.0, 0.0, 0.0], 0, 0, 0),
    ([7, 3, 3], [0.9, 0.1, 0.1], 1, 0, 0),  # the numbers of some of the samples are enough
])
def test_choose(ids, weights, majority, weighted, best):
    assert [choose(ids, weights, kind) for kind in VOTE_KINDS] == [majority, weighted, best]


@pytest.mark.parametrize("ids, chosen", [([], N), ([N], N), ([0], 0), ([0, 1], 0), ([0, 1, 1], 1),
                                         ([N, 0, 1], 1)])
def test_majority_without_weights(ids, chosen):
    assert choose(ids) == chosen


def test_confidence_is_the_geometric_mean_of_the_probabilities():
    log_probs = [math.log(p) for p in (0.9, 0.4, 0.6)]
    assert confidence(sum(log_probs) / 3) == pytest.approx((0.9 * 0.4 * 0.6) ** (1 / 3))
    assert confidence(0.0) == 1
    # Why not the log-probability itself: all the negative numbers of a cluster add up against it.
    ids, means = [0, 0, 0, 1], [-0.2, -0.2, -0.2, -0.5]
    assert sum(means[:3]) < means[3]
    assert choose(ids, [confidence(mean) for mean in means], "weighted") == 0


def case(seed: int) -> tuple[list[int | None], list[bool], list[float]]:
    """Random clusters, verdicts and weights of one to five samples, with many ties.

    A verdict is drawn for each sample and not for each cluster: equality with the gold answer need
    not be transitive.
    """
    rng = random.Random(seed)
    answers = rng.choices(["1", "2", "3", N], k=rng.randint(1, 5))
    right = [answer is not None and rng.random() < 0.5 for answer in answers]
    return cluster(answers), right, rng.choices([0.0, 0.1, 0.2, 0.3, 0.7], k=len(answers))


def by_definition(ids: list[int | None], weights: list[float], kind: str) -> int | None:
    """What `choose` says, by sorting, in exact numbers."""
    groups: dict = {}
    for sample, number in enumerate(ids):
        if number is not None:
            groups.setdefault((number, sample) if kind == "best" else number, []).append(sample)

    def rank(members: list[int]) -> tuple:
        if kind == "majority":
            return len(members), -ids[members[0]]
        return sum(Fraction(str(weights[sample])) for sample in members), -ids[members[0]]

    return min(max(groups.values(), key=rank), default=None) if groups else None


@pytest.mark.parametrize("kind", VOTE_KINDS)
def test_choose_is_as_defined(kind):
    for seed in range(300):
        ids, _, weights = case(seed)
        assert choose(ids, weights, kind) == by_definition(ids, weights, kind)


@pytest.mark.parametrize("kind", VOTE_KINDS)
@pytest.mark.parametrize("seed", range(40))
def test_laws_of_a_vote(kind, seed):
    ids, right, weights = case(seed)
    chosen = choose(ids, weights, kind)
    voters = [sample for sample, number in enumerate(ids) if number is not None]
    # A voter is chosen where there is one. Samples without an answer change nothing.
    assert chosen in voters if voters else chosen is None
    if voters:
        alone = choose([ids[i] for i in voters], [weights[i] for i in voters], kind)
        assert chosen == voters[alone]
    # One vote is one sample, and a vote of equal samples is the first of them.
    assert choose(ids[:1], weights[:1], kind) == (None if ids[0] is None else 0)
    assert choose(ids[:1] * 5, weights[:1] * 5, kind) == (None if ids[0] is None else 0)
    # Weights have no unit; where all are the same, a weighted vote is a majority.
    assert choose(ids, [1000 * weight for weight in weights], kind) == chosen
    assert choose(ids, [0.1] * len(ids), "weighted") == choose(ids)
    # A majority is the same with and without weights.
    assert choose(ids, weights) == choose(ids)


@pytest.mark.parametrize("weights, kind", [
    (None, "weighted"),
    (None, "best"),
    ([0.1, 0.2], "median"),
    ([0.1], "majority"),
    ([0.1, 0.2, 0.3], "best"),
    ([-0.1, 0.2], "weighted"),  # log-probabilities are no weights
    ([math.nan, 0.2], "weighted"),
    ([math.inf, 0.2], "majority"),
])
def test_weights_that_are_none(weights, kind):
    with pytest.raises(ValueError):
        choose([0, 1], weights, kind)
    with pytest.raises(ValueError):
        maj_at_k([0, 1], [True, False], 1, weights, kind)


# --------------------------------------------------------------------------------- pass@k and maj@k


def test_pass_at_k_is_the_mean_over_all_subsets():
    verdicts = [True, False, False, True, False]
    for k in range(1, 6):
        subsets = list(itertools.combinations(verdicts, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(5, 0, 5) == 0 and pass_at_k(5, 5, 1) == 1


def test_pass_at_k_is_unbiased():
    """If each of n samples is right with probability p, its mean is 1 - (1 - p)^k."""
    n, p = 6, 0.3
    for k in range(1, n + 1):
        mean = sum(
            math.comb(n, c) * p**c * (1 - p)**(n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize("ids, right, k, expected", [
    ([0, 0, 1], [1, 1, 0], 1, 2 / 3),
    ([0, 0, 1], [1, 1, 0], 2, 2 / 3),  # of three pairs one is right, two are tied
    ([0, 0, 1], [1, 1, 0], 3, 1),
    ([0, 0, 1, 1], [1, 1, 0, 0], 4, 1 / 2),  # tied: right in half of all orders
    ([0, 1, 2], [1, 0, 0], 3, 1 / 3),
    ([0, 0, 0, 1, 2], [0, 0, 0, 1, 1], 5, 0),  # a vote may lose what samples know
    ([0, N], [1, 0], 1, 1 / 2),
    ([0, N], [1, 0], 2, 1),  # who has no answer does not vote
    ([N, N], [0, 0], 2, 0),
])
def test_small_cases(ids, right, k, expected):
    assert maj_at_k(ids, right, k) == (pytest.approx(expected), 0.0)


@pytest.mark.parametrize("kind", VOTE_KINDS)
def test_maj_at_k_is_the_mean_vote_over_all_orders_of_all_subsets(kind):
    for seed in range(25):
        ids, right, weights = case(seed)
        for k in range(1, len(ids) + 1):
            outcomes = []
            for drawn in itertools.permutations(range(len(ids)), k):
                # Numbered as first seen, each tied cluster wins in its share of the orders.
                numbers: dict = {}
                seen = [N if ids[i] is N else numbers.setdefault(ids[i], len(numbers))
                        for i in drawn]
                chosen = choose(seen, [weights[i] for i in drawn], kind)
                outcomes.append(chosen is not None and right[drawn[chosen]])
            assert maj_at_k(ids, right, k, weights, kind) == (pytest.approx(np.mean(outcomes)), 0.0)


@pytest.mark.parametrize("kind", VOTE_KINDS)
@pytest.mark.parametrize("seed", range(40))
def test_laws_of_maj_at_k(kind, seed):
    ids, right, weights = case(seed)
    n = len(ids)
    for k in range(1, n + 1):
        value = maj_at_k(ids, right, k, weights, kind)[0]
        # A vote is right only where one of its samples is, and right where all that vote are.
        assert 0 <= value <= pass_at_k(n, sum(right), k) + 1e-12
        voters = sum(number is not None for number in ids)
        all_right = maj_at_k(ids, [number is not None for number in ids], k, weights, kind)[0]
        assert all_right == pytest.approx(pass_at_k(n, voters, k))
        assert maj_at_k(range(n), [True] * n, k, weights, kind)[0] == pytest.approx(1)
        # The order in which the samples came is chance.
        turned = maj_at_k(ids[::-1], right[::-1], k, weights[::-1], kind)[0]
        assert turned == pytest.approx(value)
        # Voting over equal samples changes nothing.
        assert maj_at_k([0] * n, right, k, [0.1] * n, kind)[0] == pytest.approx(sum(right) / n)
    # One vote is one sample.
    assert maj_at_k(ids, right, 1, weights, kind)[0] == pytest.approx(sum(right) / n)


@pytest.mark.parametrize("n", [2, 5, 16, 64])
def test_two_unweighted_votes_are_one_sample(n):
    """With two samples, both answering, each counts by half whether they agree or not."""
    rng = random.Random(n)
    answers = rng.choices("12345", k=n)
    right = [answer == "1" for answer in answers]
    assert maj_at_k(cluster(answers), right, 2) == (pytest.approx(sum(right) / n), 0.0)
    assert maj_at_k([0, N, 1], [True, False, False],
                    2)[0] == 1 / 2  # not so where one may have none: 1/3 are right


def test_the_best_by_verdict_is_pass_at_k():
    """A perfect verifier finds the right sample if there is one."""
    for n, k in itertools.product([64, 2000], [1, 2, 8, 32, 64]):
        right = [True] * 5 + [False] * (n - 5)
        assert maj_at_k(range(n), right, k, right, "best") == (pytest.approx(pass_at_k(n, 5,
                                                                                       k)), 0.0)
    # Numbers of subsets that no float holds.
    assert maj_at_k(range(2000), right, 1000, right, "best")[0] == pytest.approx(
        pass_at_k(2000, 5, 1000))


# Sixteen samples, and 12,870 ways to choose eight of them.
MANY = [0] * 6 + [1] * 5 + [2] * 3 + [N] * 2
MANY_RIGHT = [number == 0 for number in MANY]
MANY_WEIGHTS = [0.3 + 0.04 * (7 * sample % 16) for sample in range(16)]


@pytest.mark.parametrize("kind", ["majority", "weighted"])
def test_drawn_subsets_estimate_the_mean_over_all_within_the_error_they_give(kind, monkeypatch):
    drawn = [maj_at_k(MANY, MANY_RIGHT, 8, MANY_WEIGHTS, kind, seed) for seed in range(100)]
    monkeypatch.setattr(vote, "DRAWS", math.comb(16, 8))
    exact, error = maj_at_k(MANY, MANY_RIGHT, 8, MANY_WEIGHTS, kind)
    assert error == 0 and 0.1 < exact < 0.9
    # In units of their errors, the deviations of 100 seeds have mean 0 and spread 1: bounds are
    # three of their errors.
    deviations = [(value - exact) / error for value, error in drawn]
    assert abs(np.mean(deviations)) < 0.3
    assert abs(np.std(deviations) - 1) < 0.22


def test_draws_depend_on_the_seed_alone():
    def at(k: int, seed: int) -> tuple[float, float]:
        return maj_at_k(MANY, MANY_RIGHT, k, seed=seed)

    first = [at(k, seed) for k in (5, 8) for seed in (0, 1)]
    assert first == [at(k, seed) for k in (5, 8) for seed in (0, 1)]
    assert len(set(first)) == 4 and all(error > 0 for _, error in first)


def test_laws_hold_where_subsets_are_drawn():
    # Each law holds in every subset, and so in any number of drawn ones.
    rng = random.Random(0)
    weights = [rng.random() for _ in range(64)]
    for kind in ("majority", "weighted"):
        assert maj_at_k([0] * 64, [True] * 64, 8, weights,
                        kind) == (pytest.approx(1), pytest.approx(0))
        assert maj_at_k(range(64), [True] * 64, 8, weights,
                        kind) == (pytest.approx(1), pytest.approx(0))
        assert maj_at_k(range(64), [False] * 64, 8, weights, kind) == (0, 0)
        assert maj_at_k([N] * 64, [False] * 64, 8, weights, kind) == (0, 0)


@pytest.mark.parametrize("call", [
    lambda: pass_at_k(5, 2, 6),
    lambda: pass_at_k(5, 2, 0),
    lambda: maj_at_k([0, 1], [True, False], 3),
    lambda: maj_at_k([0, 1], [True, False], 0),
    lambda: maj_at_k([0, 1], [True], 1),
    lambda: maj_at_k([], [], 1),
])
def test_what_is_not_defined(call):
    with pytest.raises(ValueError, match="not defined"):
        call()


@pytest.mark.parametrize("line, printed", [
    ("3 1/2 0.5", "2 1/2\n1 3\nmajority: 1/2\n"),
    ("3 1/2 0.5 --weights 0.9 0.2 0.3", "2 1/2\n1 3\nmajority: 1/2\nweighted: 3\nbest: 3\n"),
])
def test_the_command(line, printed, capsys):
    main(line.split())
    assert capsys.readouterr().out == printed
