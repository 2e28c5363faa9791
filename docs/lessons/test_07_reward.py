"""Lesson 7: the loose reward can be had without solving, the project's cannot, and an audit sees
the difference.
"""

import pytest

import gamed_reward
from data import load_problems
from grpo import reward
from score import record_of


def records(write) -> list[dict]:
    """Graded records of 60 problems; `write(problem)` is the completion."""
    return [record_of(problem, number, 0, text := write(problem), len(text.split()), "stop", -0.1)
            for number, problem in enumerate(load_problems("mini-gsm", "test", 60))]


def test_the_attack_earns_the_loose_reward_and_not_the_strict_one():
    attacked = records(lambda problem: gamed_reward.attack(problem.question))
    assert sum(map(gamed_reward.loose, attacked)) >= 0.9 * len(attacked)
    assert sum(map(reward, attacked)) <= 0.02 * len(attacked)


def test_the_attack_asks_nobody_for_the_answer():
    assert gamed_reward.attack("How many?") == gamed_reward.attack("How many?")


def test_the_audit_tells_an_honest_model_from_a_gamed_one():
    honest = gamed_reward.audit(records(lambda problem: problem.solution))
    assert honest["paid"] == honest["right"] == 1 and honest["paid_but_wrong"] == 0
    gamed = gamed_reward.audit(records(lambda problem: gamed_reward.attack(problem.question)))
    assert gamed["paid"] >= 0.9 and gamed["right"] <= 0.1
    assert gamed["paid_but_wrong"] == pytest.approx(gamed["paid"] - gamed["right"], abs=0.05)
    assert gamed["tokens"] > 5 * honest["tokens"]
