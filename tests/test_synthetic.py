"""synthetic.py: the problems are right, unlimited, the same everywhere; train never meets test."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import synthetic
from answers import equivalent, extract_answer
from synthetic import (CLOSINGS, EVENTS, LARGEST_NUMBERS, OPENINGS, PLUS_CLOSINGS, PLUS_EVENTS,
                       TOPICS, problem, problems, split_of, story)

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (2, 3, 4, 5)


# ------------------------------------------------------------------------ what a problem looks like


def test_a_word_problem_in_the_form_of_gsm8k():
    record = problem("mini-gsm", "train", 1)
    assert set(record) == {"id", "question", "answer", "level"}
    assert record["id"] == "mini-gsm/train/0/1" and record["level"] == 3
    *lines, last = record["answer"].split("\n")
    assert len(lines) == 3 and re.fullmatch(r"#### \d+", last)
    assert all(re.search(r"(\d+[-+*/]\d+) = <<\1=(\d+)>>\2\b", line) for line in lines)


def test_a_latex_problem_in_the_form_of_math():
    record = problem("mini-math", "test", 4)
    assert set(record) == {"id", "problem", "solution", "answer", "subject"
                           } and record["subject"] == "gcd"
    assert record["solution"].endswith(f"The answer is $\\boxed{{{record['answer']}}}$.")
    assert record["solution"].count("\n") >= 1 and record["problem"].count("$") == 2 * (
        1 + ("and" in record["problem"])
    )


@pytest.mark.parametrize("dataset, question, answer", [("mini-gsm", "question", "answer"),
                                                       ("mini-math", "problem", "solution")])
def test_every_text_is_filled_in(dataset, question, answer):
    for difficulty in (1, 3, 5):
        for record in problems(dataset, "train", 300, difficulty=difficulty):
            assert "None" not in record[question] + record[answer]
            if dataset == "mini-gsm":
                assert not set("{}") & set(record[question] + record[answer])
            assert record[question].isascii() and record[answer].isascii()
            assert record[question].endswith((".", "?"))


# ------------------------------------------------------------------------------ a reader of its own

WORDS = {"half": 2, "a third": 3, "a quarter": 4, "a fifth": 5}
WORDS |= {"twice": 2, "three times": 3, "four times": 4, "five times": 5, "six times": 6}
# How a reader understands a sentence: the first that fits says what becomes of the amount x.
READINGS = (
    (r"^(?:There are|\w+ has|\w+ starts with) (\d+) \w+(?: at \w+'s home)?\.$", lambda x, n: n),
    (r"for \$(\d+) each|costs \$(\d+)", lambda x, n: x * n),
    (r"packs .* of (\d+)|^If (\d+)", lambda x, n: x // n),
    (r"^How many|^What are they worth", lambda x: x),
    (r"(twice|\w+ times) as many(?: \w+)? as", lambda x, k: x + k * x),
    (r"(twice|\w+ times) as many", lambda x, k: k * x),
    (r"(\d+) more(?: \w+)? than", lambda x, n: x + x + n),
    (r"(half|a third|a quarter|a fifth) of the", lambda x, p: x - x // p),
    (r"equally (?:into|among) (\d+)|(\d+) friends", lambda x, n: x // n),
    (r"(?:fills|sells|takes away) (\d+) \w+ (?:with|of) (\d+)", lambda x, a, b: x - a * b),
    (r"(\d+) \w+,? (?:with|of|each with) (\d+)", lambda x, a, b: x + a * b),
    (r"(?:loses|gives|sells) (\d+)", lambda x, n: x - n),
    (r"(?:buys|finds|gives \w+) (\d+)", lambda x, n: x + n),
)


def read(question: str) -> list[tuple[int, tuple[int, ...]]]:
    """A word problem read from its sentences alone: which pattern, and its numbers."""
    found = []
    for sentence in re.split(r"(?<=[.?]) ", question):
        matches = ((index, re.search(reading, sentence))
                   for index, (reading, _) in enumerate(READINGS))
        index, match = next((index, match) for index, match in matches if match)
        found.append(
            (index, tuple(WORDS.get(group) or int(group) for group in match.groups() if group)))
    return found


def retell(question: str) -> int:
    """The answer to a word problem, from its sentences alone."""
    amount = 0
    for index, numbers in read(question):
        amount = READINGS[index][1](amount, *numbers)
    return amount


# The same for what mini-gsm-plus adds. First how a problem may end, then single sentences.
PLUS_ENDINGS = (
    (r"\w+ has (\d+) \w+\. (?:How many .* on average|What is the average)",
     lambda x, n: (x + n) / 2),
    (r"\w+ has (\d+) \w+\. How many (?:more|fewer)", lambda x, n: x - n),
    (r"\w+ fills as many \w+ of (\d+) |How many \w+ remain if .* of (\d+)", lambda x, n: x % n),
    (r"(\d+) \w+ cost \$(\d+)\. At this price", lambda x, a, c: Fraction(c, a) * x),
    (r"\w+ sells them all at \$(\d+) for (\d+)", lambda x, c, a: Fraction(c, a) * x),
)
PLUS_READINGS = (
    (r"grows by (\d+) percent|(\d+) percent more", lambda x, c: x + Fraction(c, 100) * x),
    (r"(\d+) percent of", lambda x, c: x - Fraction(c, 100) * x),
    (r"(\d+) dozen", lambda x, n: x + 12 * n),
    (r"makes (\d+) \w+ an hour .* (\d+) hours|^For (\d+) hours \w+ finds (\d+)",
     lambda x, a, b: x + a * b),
    (r"^For every (\d+) \w+ of .* has (\d+)|ratio (\d+) to (\d+)",
     lambda x, a, b: x + Fraction(b, a) * x),
)


def retell_plus(question: str) -> Fraction:
    """The answer to a problem of mini-gsm-plus, from its sentences alone."""
    endings = ((re.search(f" ((?:{pattern})[^?]*\\?.*)$", question), rule)
               for pattern, rule in PLUS_ENDINGS)
    match, rule = next(((match, rule) for match, rule in endings if match), (None, None))
    amount = Fraction(0)
    for sentence in re.split(r"(?<=[.?]) ", question[: match.start()] if match else question):
        readings = ((re.search(pattern, sentence), apply)
                    for pattern, apply in PLUS_READINGS + READINGS)
        found, apply = next((found, apply) for found, apply in readings if found)
        amount = apply(amount, *(WORDS.get(g) or int(g) for g in found.groups() if g))
    return rule(amount, *(int(g) for g in match.groups()[1:] if g)) if match else amount


# -------------------------------------------------------------------------- unlimited, and the same


def test_a_problem_is_a_function_of_its_index():
    """No problem depends on those before it, so that a set has any number of them."""
    for dataset in synthetic.DATASETS:
        some = problems(dataset, "train", 12)
        assert some == problems(dataset, "train", 30)[:12]
        assert problem(dataset, "train", 11) == some[11]
        far = problem(dataset, "train", 10**12)
        assert far["id"].endswith("/1000000000000") and far != some[0]
        assert len({str(list(record.values())[1:])
                    for record in problems(dataset, "train", 500)}) > 480


def test_seed_split_and_difficulty_give_other_problems():
    for dataset in synthetic.DATASETS:
        one = problems(dataset, "train", 20)
        for other in (
            problems(dataset, "train", 20, seed=1),
            problems(dataset, "test", 20),
            problems(dataset, "train", 20, 0, 5),
        ):
            same = sum(list(a.values())[1:3] == list(b.values())[1:3] for a, b in zip(one, other))
            assert same <= 2


def test_every_process_makes_the_same_problems():
    """Python's own hash differs from process to process; nothing here may depend on it."""
    script = ("import synthetic; print(repr([synthetic.problems(d, s, 40, 3)"
              " for d in synthetic.DATASETS for s in synthetic.SPLITS]))")
    here = [synthetic.problems(d, s, 40, 3) for d in synthetic.DATASETS for s in synthetic.SPLITS]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # not that of this process
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONHASHSEED": seed})
    assert done.stdout == f"{here!r}\n"


# ----------------------------------------------------------------------------- train and test apart


def key_of_math(record: dict) -> tuple:
    """The key of a mini-math record, read from its text alone: topic, numbers, and signs."""
    signs = re.findall(r"\\cdot|\\le|\\ge|[-+<>]", record["problem"].partition("$")[2])
    return record["subject"], tuple(signs), tuple(re.findall(r"\d+", record["problem"]))


def test_train_and_test_share_no_key():
    """For every seed and difficulty, no pattern with the same numbers is in both."""
    keys = {split: set() for split in synthetic.SPLITS}
    for split in synthetic.SPLITS:
        for seed, difficulty in ((0, 1), (0, 3), (1, 3), (1_000_000, 1), (2, 5)):
            for index in range(300):
                drawn = story(split, index, seed, difficulty)
                assert split_of(drawn.key) == split
                # Read from the text: the generator may be wrong.
                keys[split].add(tuple(read(drawn.record()["question"])))
            for record in problems("mini-math", split, 350, seed, difficulty):
                keys[split].add(key_of_math(record))
    assert len(keys["train"]) > 2000 and len(keys["test"]) > 1500
    assert not keys["train"] & keys["test"]


def test_train_meets_every_small_key_of_its_own_and_none_of_the_tests():
    """Chance would mix small problems: among some thousands the same keys come repeatedly."""
    train = Counter(story("train", 4 * index, difficulty=1).key for index in range(6000))
    test = Counter(story("test", 4 * index, difficulty=1).key for index in range(2000))
    assert train.most_common(1)[0][1] > 1 and not train.keys() & test.keys()


def test_the_key_knows_numbers_and_pattern_but_no_words():
    for index in range(200):
        told = story("train", index)
        assert {part
                for part in told.key if isinstance(part, str)} <= EVENTS.keys() | CLOSINGS.keys()
        in_the_text = [
            number for _, numbers in read(" ".join(told.sentences)) for number in numbers
        ]
        assert [part for part in told.key if isinstance(part, int)] == in_the_text


def test_a_tenth_of_all_keys_is_test():
    shares = [split_of(("add", number)) == "test" for number in range(5000)]
    assert sum(shares) / 5000 == pytest.approx(0.1, abs=0.015)


# -------------------------------------------------------------------------- shares, sizes, patterns


def test_equal_shares_of_two_to_five_steps_and_of_the_topics():
    for split in synthetic.SPLITS:
        records = problems("mini-gsm", split, 500)
        assert Counter(record["level"] for record in records) == dict.fromkeys(LEVELS, 125)
        for record in records:
            assert record["answer"].count("<<") == record["level"]
        subjects = Counter(record["subject"] for record in problems("mini-math", split, 70))
        assert len(subjects) == len(TOPICS) == 7 and set(subjects.values()) == {10}


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("difficulty", range(1, len(LARGEST_NUMBERS) + 1))
def test_difficulty_is_the_size_of_the_numbers(difficulty):
    """No number of a word problem exceeds the size for its difficulty, and some come near."""
    records = problems("mini-gsm", "train", 300, difficulty=difficulty)
    largest = [max(numbers_in(record["question"] + record["answer"])) for record in records]
    assert 0.8 * LARGEST_NUMBERS[difficulty - 1] < max(largest) <= LARGEST_NUMBERS[difficulty - 1]
    assert all(min(numbers_in(record["answer"])) >= 1 for record in records)
    # The smaller sizes stay in the mixture.
    small = sum(number <= LARGEST_NUMBERS[0] for number in largest)
    assert small / len(largest) >= 0.8 / difficulty


def pattern(sentence: str) -> re.Pattern:
    """What a sentence may look like once its {names} are filled in."""
    return re.compile("".join(r"[\w' ]+?" if part[0] == "{" else re.escape(part)
                              for part in re.findall(r"{\w+}|[^{}]+", sentence)))


@pytest.mark.parametrize("split", synthetic.SPLITS)
def test_the_default_sets_show_every_sentence_and_every_size(split):
    """The 500 test problems hold what the training set holds: each pattern, level and size."""
    records = problems("mini-gsm", split, 500)
    questions = "\n".join(record["question"] for record in records)
    for kind, event in (EVENTS | CLOSINGS).items():
        for sentence in event.sentences:
            assert pattern(sentence).search(questions), (kind, sentence)
    for sentence in OPENINGS:
        assert pattern(sentence).search(questions), sentence
    for level in LEVELS:
        sizes = Counter()
        for record in records:
            if record["level"] == level:
                largest = max(numbers_in(record["answer"]))
                sizes[sum(largest > size for size in LARGEST_NUMBERS)] += 1
        assert set(sizes) == {0, 1, 2} and min(sizes.values()) >= 8


# ---------------------------------------------------------------------------- the answers are right


@pytest.mark.parametrize("difficulty", (1, 3, 5))
def test_every_calculation_in_a_solution_is_right(difficulty):
    """An independent reading: each `<<a op b=c>>` holds, and the last c is the answer."""
    compute = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: Fraction(a, b),
    }
    for split in synthetic.SPLITS:
        for record in problems("mini-gsm", split, 400, seed=5, difficulty=difficulty):
            steps = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", record["answer"])
            assert len(steps) == record["level"]
            for left, sign, right, result, shown in steps:
                assert compute[sign](int(left), int(right)) == int(result) == int(shown)
            assert extract_answer(record["answer"]) == steps[-1][3]


def test_the_sentences_say_what_the_solution_calculates():
    for record in problems("mini-gsm", "test", 500):
        assert str(retell(record["question"])) == extract_answer(
            record["answer"]), record["question"]


def test_the_sentences_of_the_plus_set_say_what_its_solutions_calculate():
    kinds = Counter()
    for split in synthetic.SPLITS:
        for index in range(500):
            told = story(split, index, dataset="mini-gsm-plus")
            record = told.record()
            assert retell_plus(record["question"]) == int(extract_answer(record["answer"])), record
            for left, sign, right, value in re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>",
                                                       record["answer"]):
                assert synthetic.OPERATIONS[sign](int(left), int(right)) == int(value)
                assert sign != "/" or int(left) % int(right) == 0
            kinds.update(part for part in told.key if isinstance(part, str))
    new = (PLUS_EVENTS | PLUS_CLOSINGS).keys()
    assert new <= kinds.keys() and min(kinds[kind] for kind in new) >= 15
    assert all(new & set(story("train", index, dataset="mini-gsm-plus").key)
               for index in range(200))  # each problem has something new


def test_no_word_problem_of_the_old_set_has_an_operation_of_the_plus_set():
    for index in range(300):
        assert not (PLUS_EVENTS | PLUS_CLOSINGS).keys() & set(story("train", index).key)


def test_a_story_has_numbers_and_no_question():
    for record in problems("mini-stories", "train", 200):
        assert set(record) == {"id", "text"}
        assert "?" not in record["text"] and numbers_in(record["text"])


def test_styles_calculate_the_same():
    """terse: the equations alone; fine: each sentence of the story stands before what it means."""
    for dataset in synthetic.WORD_PROBLEMS:
        for index in range(100):
            told = story("train", index, dataset=dataset)
            marks = [re.findall(r"<<.*?>>", told.solution(style=style))
                     for style in ("steps", "terse", "fine")]
            assert marks[0] == marks[1] == marks[2]
            *lines, last = told.solution(style="terse").split("\n")
            assert all(re.fullmatch(r"(\S+) = <<\1=(\d+)>>\2", line) for line in lines)
            fine = told.solution(style="fine")
            assert fine.endswith(last)
            assert all(sentence in fine for sentence in told.sentences[1:-1])
            assert told.sentences[-1] not in fine


def test_a_record_has_the_style_that_is_asked_for():
    for style in synthetic.STYLES:
        (record,) = synthetic.problems("mini-gsm", "test", 1, style=style)
        assert record["answer"] == story("test", 0).solution(style=style)


def test_a_corrected_solution_goes_on_from_the_right_value():
    for index in range(100):
        told = story("train", index)
        right = told.solution().split("\n")
        for line in range(len(right) - 1):
            lines = told.corrected(line, 3).split("\n")
            assert lines[:line] + lines[line + 2 :] == right[:line] + right[line + 1 :]
            assert lines[line] != right[line]
            mark = re.search(r"<<.*>>", right[line])[0]
            assert lines[line + 1].startswith("That is wrong: ") and mark in lines[line + 1]


def signed_terms(side: str) -> tuple[int, int]:
    """Coefficients (of x, constant) of a side like `-3x + 4`."""
    x = constant = 0
    for sign, number, letter in re.findall(r"([-+]?) ?(\d*)(x?)", side):
        if number or letter:
            value = int(number or 1) * (-1 if sign == "-" else 1)
            x, constant = (x + value, constant) if letter else (x, constant + value)
    return x, constant


def value_of(latex: str) -> Fraction:
    r"""The value of `\frac{a}{b}`, `-\frac{a}{b}` or an integer."""
    match = re.fullmatch(r"(-?)\\frac{(\d+)}{(\d+)}", latex)
    return Fraction(f"{match[1]}{match[2]}/{match[3]}") if match else Fraction(latex)


def check_fractions(question: str, answer: str) -> None:
    a, b, sign, c, d = re.search(r"\\frac{(\d+)}{(\d+)} ([-+]|\\cdot) \\frac{(\d+)}{(\d+)}",
                                 question).groups()
    left, right = Fraction(f"{a}/{b}"), Fraction(f"{c}/{d}")
    assert value_of(answer) == {"+": left + right, "-": left - right, "\\cdot": left * right}[sign]
    if "frac" in answer:
        numerator, denominator = numbers_in(answer)
        assert math.gcd(numerator, denominator) == 1 < denominator


def check_powers(question: str, answer: str) -> None:
    a, m, sign, b, n = re.search(r"(\d+)\^(\d) ([-+]) (\d+)\^(\d)", question).groups()
    assert int(answer) == pow(int(a), int(m)) + (1 if sign == "+" else -1) * pow(int(b), int(n))


def check_roots(question: str, answer: str) -> None:
    terms = re.findall(r"(\d*)\\sqrt{(\d+)}", question)
    ((front, inside),) = re.findall(r"(\d*)\\sqrt{(\d+)}", answer)
    assert len(terms) == 2 and all(int(inside) % (k * k)
                                   for k in range(2, int(inside)))  # nothing is left to draw out
    value = sum(int(p or 1) * math.sqrt(int(q)) for p, q in terms)
    assert int(front) * math.sqrt(int(inside)) == pytest.approx(value, rel=1e-12)


def check_linear(question: str, answer: str) -> None:
    left, right = re.search(r"\$([^$]+) = ([^$]+)\$", question).groups()
    (a, b), (c, d) = signed_terms(left), signed_terms(right)
    assert a * int(answer) + b == c * int(
        answer) + d and a != c  # it solves the equation, and nothing else does


def check_gcd(question: str, answer: str) -> None:
    assert math.gcd(*numbers_in(question)) == int(answer)


def check_modulus(question: str, answer: str) -> None:
    a, b, m = numbers_in(question)
    assert a * b % m == int(answer)


def check_intervals(question: str, answer: str) -> None:
    left, sign, right = re.search(r"(-?\d*x [-+] \d+) (<|>|\\le|\\ge) (-?\d+)", question).groups()
    holds = {
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
        "\\le": lambda a, b: a <= b,
        "\\ge": lambda a, b: a >= b,
    }[sign]
    a, b = signed_terms(left)
    low, high = (float(end.replace("\\infty", "inf")) for end in answer[1:-1].split(", "))
    for x in [Fraction(n, 4) for n in range(-100, 101)]:
        inside = (low < x or low == x and answer[0] == "[") and (x < high
                                                                 or x == high and answer[-1] == "]")
        assert inside == holds(a * x + b, int(right))


CHECKS = {
    "fractions": check_fractions, "powers": check_powers, "roots": check_roots,
    "linear equations": check_linear
}
CHECKS |= {"gcd": check_gcd, "modulus": check_modulus, "intervals": check_intervals}


@pytest.mark.parametrize("subject", CHECKS)
def test_mini_math_answers_are_right(subject):
    first = [problem("mini-math", "train", index)["subject"] for index in range(len(TOPICS))
             ].index(subject)
    for split in synthetic.SPLITS:
        for difficulty in (1, 3, 5):
            for index in range(first, first + 7 * 60, 7):
                record = problem("mini-math", split, index, 2, difficulty)
                assert record["subject"] == subject
                CHECKS[subject](record["problem"], record["answer"])
                assert equivalent(record["answer"], extract_answer(record["solution"]))


def test_mini_math_steps_are_right():
    """Each equation between plain numbers holds: `3 \\cdot 4 = 12` and `17 = 5 \\cdot 3 + 2`."""
    checked = 0
    for record in problems("mini-math", "train", 700):
        for formula in re.findall(r"\$([^$]*=[^$]*)\$", record["solution"]):
            plain = re.sub(r"\\frac{(-?\d+)}{(\d+)}", r"(\1/\2)", formula).replace("\\cdot",
                                                                                   "*").replace(
                                                                                       "^", "**")
            if re.search(r"[a-z\\]", plain):
                continue
            values = []
            for side in plain.split(" = "):
                total = Fraction(0)
                for sign, term in re.findall(r"(^-|^| [-+] )([^ ]+(?: \* [^ ]+)*)", side.strip()):
                    product = Fraction(1)
                    for factor in term.split(" * "):
                        base, _, power = factor.strip("()").partition("**")
                        product *= Fraction(base) ** int(power or 1)
                    total += -product if "-" in sign else product
                values.append(total)
            assert len(set(values)) == 1, formula
            checked += 1
    assert checked > 700


# -------------------------------------------------------------------------------------------- slips


def test_a_slip_is_one_wrong_line_and_what_follows_from_it():
    changed = 0
    for index in range(200):
        told = story("train", index)
        right = told.solution().split("\n")
        for line in range(len(right) - 1):
            wrong = told.solution(slip=(line, 3)).split("\n")
            assert len(wrong) == len(right)
            assert wrong[:line] == right[:line] and wrong[line] != right[line]
            value = int(re.search(r"=(-?\d+)>>", right[line])[1])
            assert f"={value + 3}>>{value + 3}" in wrong[line]
            assert wrong[-1].removeprefix("#### ") == re.search(r"=(-?\d+)>>", wrong[-2])[1]
            changed += wrong[-1] != right[-1]
    assert changed > 0.75 * 3.5 * 200  # a division may round the slip away again


# -------------------------------------------------------------------------------------- the command


def test_the_command_prints_json_lines(capsys):
    synthetic.main(["mini-math", "--split", "test", "--count", "3", "--seed", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == problems("mini-math", "test", 3, seed=4)
