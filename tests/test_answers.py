"""answers.py as tables: what is read off a text, what counts as the same, and what must not."""

import json
import os
import time
from pathlib import Path

import pytest

import synthetic
from answers import equivalent, extract_answer, normalise


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
    # GSM8K's mark, then words, then whatever number stands last.
    ("48/2 = <<48/2=24>>24\n#### 24", "24"),
    ("#### 1\n#### 2\nBye 3", "2"),
    ("#### 6\nThe answer is 7.", "6"),
    ("The answer is 7.\nThank you, 8 times!", "7."),
    ("answer is 1. Answer: $2$", "$2$"),
    ("**Answer:** 12", "12"),
    ("Answer:\n12", "12"),
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
    ("no number here", None),
    ("", None),
])
def test_extract(text, answer):
    assert extract_answer(text) == answer


def test_strict_takes_only_what_is_marked():
    assert extract_answer(r"\boxed{5}", strict=True) == "5"
    assert extract_answer("#### 5", strict=True) == "5"
    assert extract_answer("The answer is 5", strict=True) is None
    assert extract_answer("5", strict=True) is None


@pytest.mark.parametrize("text, plain", [
    (r"$\left( 3, \dfrac{\pi}{2} \right)$", r"(3,\frac{\pi}{2})"),
    (r"10{,}080", "10080"),
    (r"10,\!080", "10080"),
    (r"1,234,567.5", "1234567.5"),
    (r"(1,234)", "(1,234)"),
    (r"1,2,345", "1,2,345"),
    (r"0,100", "0,100"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"1 3/4", "1 3/4"),
    (r"２０２５", "2025"),
    ("−7.", "-7"),
    (r"\leftarrow", r"\leftarrow"),
])
def test_normalise(text, plain):
    assert normalise(text) == plain
    assert normalise(plain) == plain


EQUAL = [
    ("24", "24"), ("24", "24.0"), ("24", "$24$"), ("24", r"\$24"), ("24", "24."), ("24", "024"), ("-3", "−3"),
    ("5", "+5"), ("1234", "1,234"), ("10080", r"10,\!080"), ("1234567", "1,234,567.00"),
    ("0.5", ".5"), ("0.5", r"\frac{1}{2}"), ("0.5", r"\frac12"), ("0.5", r"\dfrac{2}{4}"), ("0.5", "1/2"),
    ("-0.5", r"-\frac{1}{2}"), ("-0.5", r"\frac{-1}{2}"), ("-0.5", "-1/2"), ("-0.5", r"\frac{1}{-2}"),
    ("1.75", r"1\frac{3}{4}"), ("1.75", "1 3/4"), ("-1.75", r"-1\frac34"), ("7/4", "1 3/4"),
    (r"5\sqrt{2}", r"5 \sqrt{2}"), (r"(-\infty, 3]", r"\left(-\infty,3\right]"), (r"(2, \infty)", r"(2,\infty)"),
    ("3", "x=3"), ("3", "x = 3"), ("x=3", "3"), (r"\text{(C)}", "(C)"),
]
UNEQUAL = [
    ("24", "25"), ("24", "-24"), ("24", "2.4"), ("24", "24 1/2"), ("24", ""), ("24", None), ("0", None),
    ("0.5", "0.50001"), ("0.3333333333", r"\frac{1}{3}"), ("1/2", "2"), (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("3", "1/0"), ("3", r"\frac{3}{0}"), ("1000", "1_000"), ("16", "0x10"), ("1e400", "2e400"),
    ("100000", "1e5"), ("25", "5²"),
    ("1.75", r"1\frac{-3}{4}"), (r"5\sqrt{2}", r"2\sqrt{5}"), (r"5\sqrt{2}", "7"),
    (r"(-\infty, 3]", r"(-\infty, 3)"), ("[2,3)", "(2,3]"), ("(1,2)", "(2,1)"), ("(1,234)", "1234"),
    ("1,2,345", "1,2345"),
    ("x=3", "y=3"), ("3", "x=-3"), ("3", "x>3"), ("__import__('os')", "0"), ("12", "1 2"),
]


@pytest.mark.parametrize("gold, answer", EQUAL)
def test_equal(gold, answer):
    assert equivalent(gold, answer) and equivalent(answer, gold)


@pytest.mark.parametrize("gold, answer", UNEQUAL)
def test_unequal(gold, answer):
    assert not equivalent(gold, answer)
    assert answer is None or not equivalent(answer, gold)


@pytest.mark.parametrize("name", synthetic.DATASETS)
def test_embedded_sets_grade_rightly(name):
    """Every solution gives its gold answer, and no problem accepts a constant or the gold answer with a digit more."""
    records = list(synthetic.problems(name, "test", 300, 0))
    solutions = [record.get("solution", record["answer"]) for record in records]  # GSM8K's form keeps both in one field
    golds = [record["answer"] if "solution" in record else extract_answer(record["answer"]) for record in records]
    assert all(equivalent(gold, extract_answer(solution)) for gold, solution in zip(golds, solutions))
    assert not any(equivalent(gold, "-12345") or equivalent(gold, gold + "7") for gold in golds)


HOSTILE = [
    "{" * 10_000, "}" * 10_000, r"\boxed{" * 10_000, r"\boxed{" * 5_000 + "1" + "}" * 5_000, "1" * 100_000,
    "9^" * 10_000, "\0" * 100_000, "\\" * 99_999, r"\frac{" * 2_000, r"\text{" * 10_000, "1,111" * 20_000,
    "1/" * 50_000, "#" * 100_000, "answer is" * 10_000, "-" * 100_000, "\ud800", "İ" * 50_000 + "answer is 5",
    "1 " * 50_000, "(" * 10_000 + "1,000",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_harmless(text):
    start = time.perf_counter()
    extract_answer(text)
    assert equivalent(text, text) and not equivalent(text, "-17")
    # Quadratic work on such lengths would take minutes.
    assert time.perf_counter() - start < 3


@pytest.mark.skipif("MATHFT_DATA" not in os.environ, reason="needs the published data sets (MATHFT_DATA)")
def test_published_solutions_give_their_gold_answers():
    folder = Path(os.environ["MATHFT_DATA"])
    math500 = json.loads((folder / "math500/test.json").read_text(encoding="utf-8"))
    assert all(equivalent(record["answer"], extract_answer(record["solution"])) for record in math500)
    lines = (folder / "gsm8k/test.jsonl").read_text(encoding="utf-8").strip().split("\n")
    for solution in (json.loads(line)["answer"] for line in lines):
        assert equivalent(solution.rpartition("####")[2], extract_answer(solution))
