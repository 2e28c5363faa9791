"""Lesson 3: a vote with a fault. python docs/lessons/paper_vote.py

Paper A reports 28.73, 0 and 0 % for votes of one, two and three rounds. Its program is not public.
This one has a row of the same kind. Find out why, and mend it with what vote.py offers.
"""

from collections import Counter

SAMPLES = {  # gold answer -> the answers of three rounds
    "18": ["18", "18.0", "20"],
    "3/4": ["0.75", "3/4", "1/4"],
    "7": ["5", "7", "7"],
    "540": ["540", "540", "540"],
}


def vote(answers: list[str]) -> str:
    """The answer that most of the rounds have given."""
    if len(answers) == 1:
        return answers[0]
    return Counter(answers).most_common(1)[0]


def accuracy(rounds: int) -> float:
    """The share of problems whose vote is the gold answer."""
    right = sum(vote(answers[:rounds]) == gold for gold, answers in SAMPLES.items())
    return right / len(SAMPLES)


if __name__ == "__main__":
    for rounds in (1, 2, 3):
        print(f"{rounds} rounds: {accuracy(rounds):.0%}")
