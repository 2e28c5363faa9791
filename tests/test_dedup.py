"""Words, overlap with a test set, and duplicates: beside what a plain loop over all pairs finds."""

import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes import dedup
from recipes.dedup import (OPERATORS, SYMBOLS, Overlap, exact_duplicates, near_duplicates,
                           normalised_duplicates, normalised_words)
from runtime import peak_memory_mib

needs_data = pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                                reason="MATHFT_DATA names no folder of real sets")
SENTENCE = ("mia walks along the quiet river and counts all boats that pass her before the sun "
            "goes down behind hills")


def questions(name: str) -> list[str]:
    text = (Path(os.environ["MATHFT_DATA"]) / name).read_text(encoding="utf-8")
    records = json.loads(text) if name.endswith(".json") else [
        json.loads(line) for line in text.splitlines()
    ]
    return [record.get("question", record.get("problem")) for record in records]


# -------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("text, plain",
                         [("Tom's 10-year-old cat.", "toms 10 year old cat"),
                          ("It costs $1,234.50, all told!", "it costs 1234.50 all told"),
                          ("(1,2) and 3, 4", "1 2 and 3 4"), (".5 of 5.", "0.5 of 5"),
                          ("at 5 p.m. on U.S. ground", "at 5 p m on u s ground"),
                          (r"\left(\dfrac{1}{2}\right)^2", "frac 1 2 2"),
                          (r"how many are left, \$5 or 5\%?", "how many are left 5 or 5"),
                          ("1,2,3", "1 2 3"), ("12,345,678", "12345678"), ("1234,567", "1234 567"),
                          ("1.2.3", "1 2 3"), ("Straße 5²", "straße 5²"), ("x≤3", "x 3"),
                          ("--- , . ' -", ""), ("", ""), (" \n\t", ""), ("\\", ""),
                          ("\ud800", ""), ])  # fmt: skip
def test_words_are_what_is_left_without_punctuation(text, plain):
    assert normalised_words(text) == plain.split()


@pytest.mark.parametrize("text, kept", [("2+3*4", "2 + 3 * 4"), ("x-3", "x - 3"), ("-5", "- 5"),
                                        ("twenty-five", "twenty five"), ("2 × 3 − 1", "2 * 3 - 1"),
                                        (r"2 \times 3 \le 7", r"2 * 3 \le 7"), ("25%", "25 %"),
                                        ("x ≤ 3", "x ≤ 3"), (r"x^{10}", "x ^ { 10 }"),
                                        ("f(x)=|x|", "f ( x ) = | x |"),
                                        (r"\frac{1}{2}.", r"\frac { 1 } { 2 }"),
                                        (r"\left[1,2\right)", "[ 1 2 )"), ])  # fmt: skip
def test_symbols_are_words_where_asked_for(text, kept):
    assert normalised_words(text, SYMBOLS) == kept.split()
    operators = [word for word in kept.split() if word in set(OPERATORS)]
    assert [word for word in normalised_words(text, OPERATORS) if word in set(SYMBOLS)] == operators


@pytest.mark.parametrize(
    "unit", ["a", ".", ",", "-", "1,", "1-", "a-", "1.", "\\", "{", "é", "≤", "a ", " "])
def test_hostile_texts_take_no_longer_than_their_length(unit):
    text = unit * 200_000
    begin = time.perf_counter()
    assert Overlap([text, SENTENCE]).kind(SENTENCE) == "exact"
    assert near_duplicates([text, SENTENCE,
                            text + "!"]) == [-1, -1, 0 if normalised_words(text, SYMBOLS) else -1]
    assert time.perf_counter() - begin < 20  # a second or two; were it quadratic, hours


def test_a_word_of_a_megabyte_is_a_word():
    assert near_duplicates(["a" * 10**6, "a" * 10**6 + "b", "A" * 10**6]) == [-1, -1, 0]


# ------------------------------------------------------------------------------------------ overlap


def test_overlap_is_exact_or_a_run_of_thirteen_words():
    overlap = Overlap([SENTENCE.title() + ".", "What is 2+3?"])
    assert overlap.kind("  " + SENTENCE.replace(" and", ", and")) == "exact"
    thirteen = " ".join(SENTENCE.split()[4:17])
    assert overlap.kind(f"Yesterday {thirteen}, Ben said.") == "13-gram"
    assert overlap.kind(f"Yesterday {thirteen.replace('boats', 'ships')}, Ben said.") is None
    assert overlap.kind(" ".join(SENTENCE.split()[4:16])) is None
    assert overlap.kind("what is 2 + 3") == "exact"
    assert overlap.kind("What is 2*3?") is None  # too short: its words alone may stand anywhere
    assert Overlap([SENTENCE], n=5).kind("Tom walks along the quiet river now") == "5-gram"


@pytest.mark.parametrize("text", ["", "?!", "one"])
def test_what_has_next_to_no_words_overlaps_nothing(text):
    assert Overlap([]).kind(text) is None
    assert Overlap(["", "..."]).kind(text) is None


def test_overlap_agrees_with_a_plain_search_for_runs():
    draw = random.Random(0)
    tests = [" ".join(draw.choices("abcd", k=30)) for _ in range(20)]
    runs = {tuple(text.split()[i : i + 7]) for text in tests for i in range(24)}
    overlap, found = Overlap(tests, n=7), 0
    for _ in range(500):
        row = draw.choices("abcd", k=12)
        shared = any(tuple(row[i : i + 7]) in runs for i in range(6))
        assert (overlap.kind(" ".join(row)) == "7-gram") == shared
        found += shared
    assert 0 < found < 500


@needs_data
def test_gsm8k_overlaps_itself_and_math_500_does_not():
    train, test = questions("gsm8k/train.jsonl"), questions("gsm8k/test.jsonl")
    overlap = Overlap(test)
    assert {overlap.kind(text) for text in test} == {"exact"}
    kinds = [overlap.kind(text) for text in train]
    assert kinds.count("exact") == 0 and 0 < kinds.count("13-gram") < 20
    assert not any(map(overlap.kind, questions("math500/test.json")))


# --------------------------------------------------------------------------------------- duplicates


def test_the_three_kinds_of_duplicates():
    first = ("Mia has 3 red apples and buys 4 more red apples at the shop. How many red apples "
             "does Mia have in the end?")
    same_words = first.upper().replace(". ", "  --  ")
    nearly = first.replace("in the end", "at the end")
    assert near_duplicates([first, "What is 2 + 2?", nearly], threshold=0.7) == [-1, -1, 0]
    texts = [first, first + "\n", same_words, nearly]
    assert exact_duplicates(texts) == [-1, 0, -1, -1]
    assert normalised_duplicates(texts) == [-1, 0, 0, -1]
    assert near_duplicates(texts, threshold=0.7) == [-1, 0, 0, 0]


@pytest.mark.parametrize("old, new", [("has 3 ", "has 5 "), ("two boats", "four boats"),
                                      ("more", "fewer"), ("of x", "of y"), ("2+7", "2-7"),
                                      ("40%", "40"), (r"\le", r"\ge"), ("x^2", "x_2"),
                                      ("1,234", "1,235"), ("largest", "smallest"),
                                      ("half", "twice"), ])  # fmt: skip
def test_a_changed_number_makes_another_problem(old, new):
    """However long the text: augmented data is made of such changes."""
    numbers = ("She has 3 cats, two boats and more, half of x, 2+7 = 9, 40% off, $a \\le 5$, x^2, "
               "1,234, the largest.")
    text = f"{SENTENCE}. {numbers} {SENTENCE}."
    other = text.replace(old, new)
    assert other != text and near_duplicates([text, other], threshold=0.5) == [-1, -1]
    assert near_duplicates([text, text.replace("quiet", "noisy")], threshold=0.5) == [-1, 0]


def test_one_word_in_thirty_may_change_and_three_may_not():
    text = [f"word{'abcdefghijklmnopqrstuvwxyz'[i % 26]}{'xyz'[i // 26]}" for i in range(30)]
    one, three = list(text), list(text)
    one[10] = "changed"
    three[5] = three[15] = three[25] = "changed"
    assert near_duplicates([" ".join(text), " ".join(one), " ".join(three)]) == [-1, 0, -1]


def test_texts_with_different_keys_are_no_duplicates():
    """The keys are the answers: the same words with another answer are another problem, or a
    mistake to look at."""
    assert near_duplicates([SENTENCE, SENTENCE, SENTENCE + "!"], keys=["1", "2",
                                                                       "1"]) == [-1, -1, 0]


def shingles(text: str) -> set[tuple[str, ...]]:
    found = normalised_words(text)
    return {tuple(found[i : i + 3]) for i in range(len(found))}


def brute_force(texts: list[str], threshold: float) -> list[int]:
    """Each text beside all kept ones before it; of texts that stand for numbers there are none
    here."""
    sets = list(map(shingles, texts))
    first: list[int] = []
    for i, own in enumerate(sets):
        like = [
            j for j in range(i)
            if first[j] < 0 and own and len(own & sets[j]) / len(own | sets[j]) >= threshold
        ]
        first.append(min(like, default=-1))
    return first


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_those_of_a_plain_loop_over_all_pairs(seed):
    """All that is found is true; what is overlooked is near the threshold."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("bcdfghjklmnpqrstvwxyz", k=4)) for _ in range(200)]
    texts = []
    for _ in range(60):
        base = draw.choices(vocabulary, k=draw.randint(1, 80))
        for _ in range(draw.randint(1, 4)):
            changed = [draw.choice(vocabulary) if draw.random() < 0.02 else word for word in base]
            texts.append(" ".join(changed))
    texts += ["", "...", ""]
    draw.shuffle(texts)
    expected, found = brute_force(texts, 0.8), near_duplicates(texts)
    assert sum(a >= 0 for a in expected) > 20
    assert sum(a != b for a, b in zip(
        expected, found, strict=True)) <= 1  # 0.2 % of the pairs at 0.8 share no bucket
    for i, first in enumerate(found):
        if first >= 0:
            a, b = shingles(texts[i]), shingles(texts[first])
            assert found[first] < 0 and first < i and len(a & b) / len(a | b) >= 0.8


def test_a_bucket_that_holds_thousands_costs_a_bounded_number_of_comparisons(monkeypatch):
    """A template with free names: all fall into each other's buckets, and none is a duplicate."""
    draw, compared, candidates = random.Random(0), [], []
    base = [f"{a}{b}" for a in "bcdfghjk" for b in ("ana", "olo", "iri", "ene", "utu")]
    texts = []
    for _ in range(600):
        row = list(base)
        for place in draw.sample(range(40), 3):
            row[place] = "".join(draw.choices("bcdfghjk", k=8))
        texts.append(" ".join(row))
    true_jaccard = dedup.jaccard
    monkeypatch.setattr(dedup, "jaccard", lambda a, b: compared.append(1) or true_jaccard(a, b))
    monkeypatch.setattr(dedup, "Counter",
                        lambda others: candidates.append(Counter(others)) or candidates[-1])
    found = near_duplicates([*texts, texts[-1].upper()], threshold=0.95)
    assert found == [-1] * 600 + [599]  # the same words are found, however full the buckets
    assert 600 < len(compared) <= 600 * dedup.MOST_COMPARED
    assert max(counts.total() for counts in candidates) <= dedup.BANDS * dedup.MOST_KEPT


def test_signatures_agree_as_often_as_the_jaccard_index_says():
    """The law of MinHash: of pairs with index J, a band of five rows agrees in J ** 5."""
    draw, found, expected = random.Random(3), 0, 0.0
    for _ in range(150):
        base = ["".join(draw.choices("bcdfghjk", k=6)) for _ in range(40)]
        other = base[:30] + ["".join(draw.choices("bcdfghjk", k=6)) for _ in range(4)]
        a, b = shingles(" ".join(base)), shingles(" ".join(other))
        expected += (len(a & b) / len(a | b)) ** dedup.ROWS * dedup.BANDS
        _, keys = dedup._digests_and_bands([" ".join(base), " ".join(other)], ["", ""])
        found += int((keys[0] == keys[1]).sum())
    assert abs(found - expected) < 4 * np.sqrt(expected) + 5


def test_the_command_counts_and_names_the_broken_line(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": SENTENCE}, {"problem": SENTENCE}, {"query": SENTENCE.upper()},
            {"question": "other"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    dedup.main(str(path))
    assert capsys.readouterr().out.split("\n")[:4] == [
        "4 questions; that repeat an earlier one:",
        "  exactly            1",
        "  in the same words  2",
        "  nearly             2",
    ]
    for broken in ("{", "[1]", '{"question": 5}', "[" * 100_000, "5"):
        path.write_text('{"question": "a"}\n' + broken)
        with pytest.raises(SystemExit, match="rows.jsonl:2: "):
            dedup.main(str(path))
    with pytest.raises(SystemExit, match="cannot be read"):
        dedup.main(str(tmp_path))


@pytest.mark.slow
def test_half_a_million_rows_in_minutes(capsys):
    """Each of 60 + 100 words, a tenth of them a planted near duplicate; under 4 GiB in all."""
    draw, count = np.random.default_rng(0), 500_000
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(
        ["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(20_000)])
    share = 1 / np.arange(1, len(vocabulary) + 1)
    steps = np.cumsum(share / share.sum())
    texts = []
    for _ in range(count * 9 // 10):
        texts.append(" ".join(vocabulary[np.searchsorted(steps,
                                                         draw.random(160) * steps[-1])].tolist()))
    parents = draw.choice(len(texts), count - len(texts), replace=False).tolist()
    for parent in parents:
        row = texts[parent].split()
        free = [
            place for place, word in enumerate(row)
            if len(word) > 1 and word not in dedup.NUMBER_WORDS
        ]
        row[draw.choice(free)] = "planted"
        texts.append(", ".join(row))
    begin = time.perf_counter()
    found = near_duplicates(texts)
    seconds, memory = time.perf_counter() - begin, peak_memory_mib(torch.device("cpu"))
    with capsys.disabled():
        print(f"\n{count} rows: near duplicates in {seconds:.0f} s, peak memory {memory:.0f} MiB")
    assert found[-len(parents) :] == parents and set(found[: -len(parents)]) == {-1}
    assert seconds < 240 * 2 and memory < 4096  # twice the aim: other work may share the machine


@pytest.mark.parametrize("one, other", [("What is 5?", "What is 5!?"),
                                        ("Find f(3).", "Find f'(3)."), ("sin 30", "sin 30°")])
def test_signs_that_make_another_problem_are_words(one, other):
    assert normalised_duplicates([one, other]) == [-1, -1] and Overlap([one]).kind(other) is None


def test_a_short_test_text_is_found_amid_others_from_eight_words_on():
    eight, seven = "compute the sum of the first nine primes", "compute the sum of nine odd primes"
    overlap = Overlap([eight, seven, "a longer text " * 9])
    assert overlap.kind(f"{eight}. Reason step by step.") == "8-gram" and overlap.kind(
        f"{seven}. Reason step by step.") is None
    assert overlap.kind(eight) == overlap.kind(seven) == "exact"


def test_a_common_beginning_of_all_texts_of_a_set_is_no_overlap():
    begin = "Solve the following problem step by step and write the answer into a box at the end"
    overlap = Overlap([f"{begin}: what is {n} and {n}?" for n in range(30)])
    assert overlap.kind(f"{begin}: who is there?") is None and overlap.kind(
        f"{begin}: what is 7 and 7?") == "exact"
