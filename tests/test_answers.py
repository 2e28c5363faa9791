"""answers.py as tables: what answer a text gives, which answers are equal, and which are not."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import answers
import synthetic
from answer_pairs import HOSTILE, PAIRS
from answers import equivalent, extract_answer, steps_of
from grader.cleaned import normalise
from grader.verdict import BUDGET, verdict
from reported_pairs import REPORTED, TEXTS, VERDICTS
from score import verdict as verdict_of_text


@pytest.mark.parametrize("text, answer", [
    # A box: the last that is closed and holds something.
    (r"So $\boxed{5}$.", "5"),
    (r"First \boxed{1}, then \boxed{2}.", "2"),
    (r"\boxed{\frac{1}{2}} and \boxed{unfinished", r"\frac{1}{2}"),
    (r"an open { brace, then \boxed{7}", "7"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{4} or \boxed{ }", "4"),
    (r"\boxed{5} #### 6. The answer is 7. 8", "5"),
    (r"\fbox{7}", "7"),
    (r"\boxed 5", "5"),
    (r"$\boxed 12$ is it", "12"),
    # Boxes that one sentence joins are one list, unless they say the same.
    (r"$x=\boxed{1}$ and $x=\boxed{2}$.", "1, 2"),
    (r"Thus $\boxed{3}$, $\boxed{4}$, and $\boxed{5}$.", "3, 4, 5"),
    (r"\boxed{15\frac{3}{4}}, or \boxed{\frac{63}{4}}", r"\frac{63}{4}"),
    (r"\boxed{1} is wrong, so \boxed{2}", "2"),
    (r"$x_1=\boxed{a} \quad \text{and} \quad x_2=\boxed{b}$", "a, b"),
    # GSM8K's mark, then words, then the last number.
    ("48/2 = <<48/2=24>>24\n#### 24", "24"),
    ("#### 1\n#### 2\nBye 3", "2"),
    ("#### 6\nThe answer is 7.", "6"),
    ("#### 1,234 dollars", "1,234 dollars"),
    ("The answer is 7.\nThank you, 8 times!", "7"),
    (r"The answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
    (r"The answers: the answer is $2$ and $3$.", "2, 3"),
    ("She has $18 left.\nThe answer is $18 per day.", "$18 per day"),
    ("The answer is **42**.", "42"),
    ("The answer is therefore 5.", "5"),
    ("The answer is (C) because it fits 3 times", "(C)"),
    ("answer is 1. Answer: $2$", "2"),
    ("**Answer:** 12", "12"),
    ("Answer:\n\n12", "12"),
    ("the answer is\n$$7$$", "7"),
    ("Q: how many?\nA: 5 apples", "5 apples"),
    ("####", None),
    ("16 - 3 - 4 = 9", "9"),
    ("She pays $1,234.50.", "1234.50"),
    ("It is 3,4", "4"),
    ("It is 3/4 of it", "3/4"),
    ("on 1/2/2020", "2020"),
    ("it fell to -5 degrees", "-5"),
    ("so x = −5", "-5"),
    ("10-5", "5"),
    ("about .5", ".5"),
    ("the ５ of them", "5"),
    # The formula that the last number stands in, or that "is" announces.
    ("Therefore, the probability is $\\frac{3}{4}$.", "\\frac{3}{4}"),
    ("So the root is $6 - 5i$.", "6 - 5i"),
    ("The set is $\\{1, 2, 3\\}$.", "\\{1, 2, 3\\}"),
    ("Hence $a + b = \\frac72$.", "\\frac72"),
    ("the plane is $x + 2y - 4 = 0$.", "x + 2y - 4 = 0"),
    ("3 steps later, the value is \\(\\pi\\).", "\\pi"),
    ("so the fastest is $\\text{Evelyn}$.", "\\text{Evelyn}"),
    ("There are 12 values of $n$.", "12"),
    ("He pays $5 and she pays $6", "6"),
    ("The final answer is $\\$36$.", "\\$36"),
    ("Answer: \\(\\$18.90\\)", "\\$18.90"),
    ("### Answer\n$\\frac{3}{4}$", "\\frac{3}{4}"),
    ("**Final Answer**\n\n\\[\\frac{3}{4}\\]", "\\frac{3}{4}"),
    ("The answer is $\\frac{3}{4}$, or $0.75$.", "\\frac{3}{4}"),
    ("The answer is 18 (10 + 8).", "18"),
    ("The answer to the question is 42, that is 6 times 7.", "42"),
    ("The correct option is B because 5 > 3.", "B"),
    # What stands in the last tag.
    ("<answer>12</answer> I hope 3 people read it.", "12"),
    ("<answer>$x=5$</answer>", "x=5"),
    ("3 ways: <answer>\\frac{1}{2}</answer>", "\\frac{1}{2}"),
    ("<answer>5</answer>. No: <answer>6</answer><answer></answer>", "6"),
    ("<answer>\\boxed{6}</answer>", "6"),
    ("<answer>The answer is 6 of 7</answer>", "6"),
    ("no number here", None),
    ("", None),
])  # fmt: skip
def test_extract(text, answer):
    assert extract_answer(text) == answer


def test_strict_takes_only_what_is_marked():
    assert extract_answer(r"\boxed{5}", strict=True) == "5"
    assert extract_answer("#### 5", strict=True) == "5"
    assert extract_answer("The answer is 5", strict=True) is None
    assert extract_answer("5", strict=True) is None


@pytest.mark.parametrize("rule", PAIRS)
def test_equal_by_rule(rule):
    for gold, answer in PAIRS[rule][0]:
        assert equivalent(gold, answer) and equivalent(answer, gold), (gold, answer)


@pytest.mark.parametrize("rule", PAIRS)
def test_unequal_by_rule(rule):
    for gold, answer in PAIRS[rule][1]:
        assert not equivalent(gold, answer) and not equivalent(answer, gold), (gold, answer)


@pytest.mark.parametrize("rule", REPORTED)
def test_reported_pairs_by_rule(rule):
    for equal, pairs in zip((True, False), REPORTED[rule]):
        for gold, answer in pairs:
            said = equivalent(gold, answer), equivalent(answer, gold)
            assert said == (equal, equal), (gold, answer)


def test_reported_texts_give_their_answers():
    """Of a text that was cut, only what it has marked counts, and no number at the cut."""
    for text, finish, expected in TEXTS:
        answer = verdict_of_text("?", text, finish)["answer"]
        right = answer is None if expected is None else equivalent(expected, answer)
        assert right, (text, answer, expected)
    for text, finish, gold, right in VERDICTS:
        assert verdict_of_text(gold, text, finish)["correct"] is right, (text, gold)


def test_the_table_of_rules_in_the_docs_is_true():
    """Every `A ~ B` and `A ≁ B` of docs/evaluation.md."""
    docs = Path(answers.__file__).parent / "docs/evaluation.md"
    rows = [line.replace(r"\|", "\0").split("|") for line in docs.read_text("utf-8").splitlines()
            if line.startswith("|")]
    pairs = [piece.replace("\0", "|") for row in rows for cell in row for piece in cell.split("`")
             if " ~ " in piece or " ≁ " in piece]
    assert len(pairs) > 60
    for pair in pairs:
        sign = " ~ " if " ~ " in pair else " ≁ "
        assert equivalent(*pair.split(sign)) == (sign == " ~ "), pair


def test_verdicts_are_symmetric():
    """On all pairs of a pool of the reported answers."""
    pool = sorted({text for equal, unequal in REPORTED.values() for pair in equal + unequal
                   for text in pair})
    rng = random.Random(0)
    for gold, answer in (rng.sample(pool, 2) for _ in range(3000)):
        assert equivalent(gold, answer) == equivalent(answer, gold), (gold, answer)


def test_the_tables_are_what_they_claim():
    """There are enough pairs of each kind, and no pair twice."""
    pairs = [frozenset(pair) for equal, unequal in (PAIRS | REPORTED).values()
             for pair in equal + unequal]
    assert all(len(equal) >= 20 and len(unequal) >= 20 for equal, unequal in PAIRS.values())
    assert len(pairs) == len(set(pairs)) >= 600


# Choices between several possible readings.
@pytest.mark.parametrize("gold, answer, equal", [
    (r"\{1, 2\}", "1, 2", True),  # a set and a bare list
    ("{1,2,3}", r"\{3,2,1\}", True),  # braces that TeX would not print
    (r"[2,\infty)", r"x \ge 2", True),
    ("(3, 5)", "(x, y) = (3, 5)", True),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}^\circ", True),
    (r"0.1\overline{6}", r"\frac16", True),
    (r"\sin 30^\circ", "1/2", True),
    ("x = 2 + 3 = 5", "5", True),
    (r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}", r"\left(\begin{array}{c}1\\2\end{array}\right)",
     True),
    ("6:00 PM", "6:00 p.m.", True),
    ("p - q", "-q+p", True),
    ("twenty-one", r"\text{Twenty-one}", True),
    ("(1,2) U (3,4)", r"(1,2) \cup (3,4)", True),
    ("1/3 cup", "1/3", True),
    (r"\frac13 \approx 0.333", r"\frac13", True),
    (r"\frac13 \approx 0.333", "0.333", False),
    (r"\angle ABC = 60^\circ", "60", True),
    (r"x_1 = 1,\quad x_2 = 2", r"1 \text{ and } 2", True),
    (r"\{x \mid -1 < x \le 2\}", "(-1, 2]", True),
    (r"102 \mathrm{~cm}", "102", True),
    (r"x \le -1 \text{ or } x \ge 2", r"(-\infty, -1] \cup [2, +\infty)", True),
    (r"\pm 2 + \gcd(4, 6)", "4, 0", True),
    (r"\pm 2 + \gcd(4, 6)", "4", False),
    (r"x \le -1 \text{ or } y \ge 2", r"(-\infty, -1] \cup [2, +\infty)", False),
    (r"\sqrt{x^2}", "x", False),  # not for negative x
    (r"\sqrt{x^2}", "|x|", True),
    (r"\sqrt12", r"\sqrt{12}", False),  # TeX prints the root of 1 beside a 2
    ("100000", "1e5", True),
    ("x = 5", "y = 5", False),
    ("(1, 2, 3)", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", False),
    (r"1,2", r"1,1,2", False),
    ("3.14159", "3.141593", False),  # each is pi cut or rounded; they are still two numbers
    ("0", None, False),
])  # fmt: skip
def test_choices_between_readings(gold, answer, equal):
    assert equivalent(gold, answer) is equal


def test_equal_normal_forms_are_equivalent():
    """And the normal form of a normal form is itself."""
    texts = {text for equal, unequal in PAIRS.values() for pair in equal + unequal for text in pair}
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(normalise(text), []).append(text)
        assert normalise(normalise(text)) == normalise(text)
        assert equivalent(text, text)
    for group in groups.values():
        assert all(equivalent(a, b) for a, b in itertools.combinations(group, 2))


@pytest.mark.parametrize("name", [name for name in synthetic.DATASETS if name != "mini-stories"])
def test_embedded_sets_grade_rightly(name):
    """Each solution gives its gold answer; a constant or one more digit is always wrong."""
    records = list(synthetic.problems(name, "test", 300, 0))
    # GSM8K's form keeps the solution and the answer in one field.
    solutions = [record.get("solution", record["answer"]) for record in records]
    golds = [record["answer"] if "solution" in record else extract_answer(record["answer"])
             for record in records]
    assert all(equivalent(gold, extract_answer(solution))
               for gold, solution in zip(golds, solutions))
    assert not any(equivalent(gold, "-12345") or equivalent(gold, gold + "7") for gold in golds)


def test_hostile_text_costs_no_more_than_the_budget():
    """No text raises or equals another text, and no pair takes more steps than the budget."""
    for text in HOSTILE:
        assert isinstance(normalise(text), str)
        extract_answer(text)
    for gold, answer in itertools.product(HOSTILE, [*HOSTILE, "x^2+1", "0", r"\sin 1"]):
        assert equivalent(gold, answer) == (gold == answer), (gold[:40], answer[:40])
        assert steps_of(gold, answer) <= BUDGET


def test_no_text_raises_and_equality_is_symmetric():
    """Random pieces of answers joined together, as a confused model may write them."""
    rng = random.Random(0)
    texts = [text for equal, unequal in PAIRS.values() for pair in equal + unequal
             for text in pair if len(text) < 300]
    for _ in range(2000):
        gold, answer = rng.choice(texts), rng.choice(texts)
        cut, paste = rng.randrange(len(gold) + 1), rng.randrange(len(answer) + 1)
        broken = gold[:cut] + answer[paste:]
        assert equivalent(broken, answer) == equivalent(answer, broken)
        assert equivalent(broken, broken)
        # Exponents are no answer.
        found = extract_answer(broken) is not None
        assert found or "^" in broken or not any(c.isdigit() for c in broken)


def by_trees(gold: str, answer: str) -> bool:
    """The verdict without the short way for integers."""
    return verdict(gold, answer)[0]


def test_integers_have_the_same_verdict_without_the_parser():
    rng = random.Random(0)
    texts = ["".join(letters) for size in (1, 2, 3, 4)
             for letters in itertools.product("017,-.$ ", repeat=size)]
    texts += ["1,072", "$1,072", "-1,072.", "1072", "01072", "10,72", "1,0720", "1 ,072", "1, 072",
              "12,345,678", "12345678", "1234,567", "0,123", "$18.", "$18$", "1$8", "- 5", "-5"]
    values = {text: answers._plain_integer(text) for text in texts}
    integers = [text for text in texts if values[text] is not None]
    assert {"-5", "$18.", "1,072", "12,345,678"} <= {*integers} and "1 ,072" not in integers
    for gold in integers:
        same_value = rng.choice([text for text in integers if values[text] == values[gold]])
        for answer in (same_value, *rng.choices(integers, k=3), rng.choice(texts)):
            assert equivalent(gold, answer) == by_trees(gold, answer), (gold, answer)


@pytest.mark.parametrize("call, needs_parser", [
    ("equivalent('72', '72')", False), ("equivalent('72', '1,072')", False),
    ("equivalent('1072', '$1,072.')", False), ("equivalent('-5', '-6')", False),
    ("equivalent('72', extract_answer('48 + 24 = 72\\n#### 72'))", False),
    ("equivalent('72', extract_answer('The answer is 71.'))", False),
    ("equivalent('72', extract_answer('no answer'))", False),
    ("equivalent('1/2', '0.5')", True), ("equivalent('72', '72.0')", True),
])  # fmt: skip
def test_the_parser_is_imported_on_demand(call, needs_parser):
    code = (f"import sys; from answers import *; {call};"
            "print(any(name.startswith('grader.') for name in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(answers.__file__).parent)
    assert done.stdout.strip() == str(needs_parser)


def test_a_crowd_of_boxes_is_read_from_its_end():
    boxes = [rf"\boxed{{(x+y+z)^{{200}}+{i}}}" for i in range(5000)]
    assert extract_answer(", ".join(boxes)).count("200") == answers.MOST_JOINED


DATA = Path(os.environ.get("MATHFT_DATA", ""))
needs_data = pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                                reason="MATHFT_DATA names no folder of real sets")


def math500() -> list[dict]:
    return json.loads((DATA / "math500/test.json").read_text(encoding="utf-8"))


@needs_data
def test_math500_solutions_give_their_gold_answers():
    problems = math500()
    right = [equivalent(problem["answer"], extract_answer(problem["solution"]))
             for problem in problems]
    assert sum(right) == len(problems) == 500
    for problem in problems:
        assert equivalent(problem["answer"], problem["answer"] + " ")
        assert not equivalent(problem["answer"], "-12345")
        assert not equivalent(problem["answer"], problem["answer"] + "7")


@needs_data
@pytest.mark.parametrize("form", [
    "The final answer is ${}$.", "Answer: \\({}\\)", "Therefore, the value of it is ${}$.",
    "3 + 4 = 7\n\n### Answer\n${}$", "3 + 4 = 7\n\n**Final Answer**\n\n${}$\n",
    "3 + 4 = 7\n\n**Final Answer**\n\\[{}\\]", "3 + 4 = 7\n<answer>{}</answer>",
    "Thus it equals\n\\[{}.\\]", "3 + 4 = 7\n#### {}",
])
def test_all_golds_of_math500_come_out_of_the_forms_of_a_final_answer(form):
    golds = [problem["answer"] for problem in math500()]
    wrong = [gold for gold in golds
             if not equivalent(gold, extract_answer(form.replace("{}", gold)))]
    assert wrong == []


@needs_data
def test_only_these_different_golds_of_math500_are_equal():
    golds = sorted({problem["answer"] for problem in math500()})
    equal = {(a, b) for a, b in itertools.combinations(golds, 2) if equivalent(a, b)}
    assert equal == {
        ("-2,1", "1,-2"),  # a bare list has no order
        ("10,\\!080", "10080"),
        ("120", "120^\\circ"), ("30", "30^\\circ"), ("36", "36^\\circ"), ("90", "90^\\circ"),
        ("15", "15\\mbox{ cm}^2"),
        ("2 \\sqrt{5}", "2\\sqrt{5}"),
        ("36", "\\$36"),
        ("40", "40_9"),
        ("5", "x=5"),
        ("\\frac14", "\\frac{1}{4}"),
    }  # fmt: skip


@needs_data
@pytest.mark.parametrize("split, count", [("train", 7473), ("test", 1319)])
def test_gsm8k_answers_are_read(split, count):
    lines = (DATA / f"gsm8k/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    golds = [solution.rpartition("####")[2].strip() for solution in solutions]
    right = [equivalent(gold, extract_answer(text)) for gold, text in zip(golds, solutions)]
    assert sum(right) == count
    assert not any(equivalent(gold, gold + "7") or equivalent(gold, "-12345") for gold in golds)


@pytest.mark.parametrize("gold, text, said", [
    ("1/2", "\\frac{1}{2}", "\\frac{1}{2}: equal"), ("(1, 2)", "(1,2)", "(1,2): equal"),
    ("18", "It is 18 eggs.", "18: equal"), ("18", "So 17.", "17: not equal")])
def test_the_command_takes_a_bare_answer_too(gold, text, said):
    done = subprocess.run([sys.executable, answers.__file__, gold, text],
                          capture_output=True, text=True)
    assert done.stdout == said + "\n"
