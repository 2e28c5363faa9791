"""Lesson 7: a reward that is gamed. Fill in `attack` and `audit`;
python -m pytest docs/lessons/test_07_reward.py

`loose` looks harmless: a completion that mentions the gold answer earns 1. A model that is trained
on it learns to earn, not to solve.
"""

import re


def loose(record: dict) -> float:
    """1 if the gold answer stands anywhere among the numbers of the text."""
    return float(record["gold"] in re.findall(r"\d+", record["text"]))


def attack(question: str) -> str:
    """A text that earns `loose` on nearly every problem of mini-gsm, without solving any."""
    raise NotImplementedError


def audit(records: list[dict]) -> dict[str, float]:
    """What a person looks at when the reward rises, from graded records (see score.record_of).

    paid: the mean of `loose`. right: the share of right answers. paid_but_wrong: the share of
    completions that earn and are wrong. tokens: their mean length.
    """
    raise NotImplementedError
