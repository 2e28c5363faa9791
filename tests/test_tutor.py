"""tutor.py: a step too early and back; the first wrong step of an attempt, corrected, and on to the
end."""

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

import synthetic
from answers import equivalent, extract_answer
from data import Problem, parse_record, read_problems
from recipes.arithmetic import check, compute, marks
from recipes.program import Unfit
from recipes.tutor import LONGEST_ATTEMPT, Plan, judge, retro, steps, tutor

GOLD = """She sold 48/2 = <<48/2=24>>24 clips in May.
That makes 48+24 = <<48+24=72>>72 clips.
She gets 72*3 = <<72*3=216>>216 dollars.
#### 216"""
CLIPS = Problem("clips", "Natalia sold 48 clips for $3 each, and half as many in May. How much?",
                GOLD, "216")
MAY, SUM, MONEY = steps(GOLD)


def text(*lines: str) -> str:
    return "\n".join(lines)


def stories(count: int):
    for index in range(count):
        story = synthetic.story("train", index)
        yield story, parse_record(story.record(), f"mini/{index}")


def test_the_steps_of_a_solution():
    assert steps(GOLD) == GOLD.split("\n")[:3] and steps("no end") == ["no end"
                                                                       ] and steps("#### 3") == []
    assert steps("a\n#### 1\nb\n #### 2\nc") == ["a", "#### 1", "b"]


# -------------------------------------------------------------------------------------------- retro


def test_a_later_step_comes_too_early_and_is_taken_back():
    seen = {retro(CLIPS, random.Random(seed)).solution for seed in range(20)}
    assert seen == {
        text(SUM, "[back]", MAY, SUM, MONEY, "#### 216"),  # the sum needs May
        text(MAY, MONEY, "[back]", SUM, MONEY,
             "#### 216"),  # the money needs the sum; of May alone it needs nothing
    }
    made = retro(CLIPS, random.Random(0))
    assert made.question == CLIPS.question and made.answer == "216" and made.id.startswith(
        "clips/retro-")
    assert made.origin == {"recipe": "retro", "parent": "clips"} and made == retro(
        CLIPS, random.Random(0))


def test_every_retro_solution_is_the_old_one_and_one_right_step_more():
    left = 0
    for _, problem in stories(300):
        try:
            made = retro(problem, random.Random(problem.id))
        except Unfit:  # each result is by chance a number of the question
            left += 1
            continue
        before, _, behind = made.solution.partition("\n[back]\n")
        *first, early = before.split("\n")
        assert text(*first, behind) == problem.solution
        assert early in behind and not behind.startswith(early) and all(
            check(mark) for mark in marks(before))
    assert left < 10


@pytest.mark.parametrize("solution, reason",
                         [("", "fewer than two steps"), ("#### 3", "fewer than two steps"),
                          ("1+2 = <<1+2=3>>3\n#### 3", "fewer than two steps"),
                          ("<<1+2=3>>\n<<3+3=7>>\n#### 7", "a mark is wrong"),
                          ("<<1+2=3>>\n<<5+6=11>>\n#### 11", "no step needs"), ])  # fmt: skip
def test_a_solution_without_two_steps_is_left(solution, reason):
    with pytest.raises(Unfit, match=reason):
        retro(Problem("p", "?", solution, "3"), random.Random(0))


# ----------------------------------------------------------------------------- the first wrong step


@pytest.mark.parametrize(
    "attempt, line, reason",
    [
        (GOLD, None, "right"),
        (text(MAY, MONEY, "#### 216"), None, "right"),
        ("#### 216", None, "right"),
        (text("Half of 48 is 24.", "48*4.5 = <<48*4.5=216>>216",
              "#### 216"), None, "right"),  # another way
        (text(MAY, "48+24 = <<48+24=71>>71", "#### 71"), 1, "wrong arithmetic"),
        (text(MAY, "48+24 = <<48+24=71>>71", "#### 216"), 1, "wrong arithmetic"),  # right by luck
        (text(MAY, "48+24 = <<48+24=72>>73",
              "#### 73"), 1, "wrong arithmetic"),  # the number behind the mark
        (text(MAY, "<<48+=72>>72", "#### 73"), 1, "wrong arithmetic"),
        (text(MAY, "48+42 = <<48+42=90>>90", "#### 90"), 1, "not in the plan"),
        (text(MAY, "48*24 = <<48*24=1152>>1152", "#### 1152"), 1, "not in the plan"),
        (text("24+48 = <<24+48=72>>72", MAY, "72*4 = <<72*4=288>>",
              "#### 288"), 2, "not in the plan"),  # in another order
        (text("48/2+48 = <<48/2+48=72>>72", "72*3 = <<72*3=210>>210",
              "#### 210"), 1, "wrong arithmetic"),  # two in one
        (text(MAY, "and so on", "#### 24"), None, "no wrong step found"),
        ("#### 3", None, "no marks"),
        ("", None, "no marks"),
        ("so it is 5", None, "no marks"),
    ])  # fmt: skip
def test_the_first_wrong_step(attempt, line, reason):
    verdict = judge(attempt, CLIPS)
    assert (verdict.line, verdict.reason) == (line, reason)


def test_a_part_of_a_gold_step_is_no_mistake():
    problem = Problem("p", "?", "5+4+3 = <<5+4+3=12>>12\n#### 12", "12")
    assert judge("<<5+4=9>>9\n<<9+3=13>>13\n#### 13", problem).line == 1


def test_a_slip_is_found_at_its_line_whatever_follows_from_it():
    for story, problem in stories(200):
        count = len(steps(problem.solution))
        assert judge(problem.solution, problem).reason == "right"
        for line in range(count):
            attempt = story.solution((line, random.Random(f"{problem.id}/{line}").choice(
                (-3, -1, 1, 10))))
            assert judge(attempt, problem).line == line


# -------------------------------------------------------------------------------------------- tutor


@pytest.mark.parametrize(
    "attempt, solution",
    [
        (text(MAY, "48+24 = <<48+24=71>>71 clips", "71*3 = <<71*3=213>>213", "#### 213"),
         text(MAY, "48+24 = <<48+24=71>>71 clips", "Wait, 48+24 is not 71: 48+24 = <<48+24=72>>72.",
              MONEY, "#### 216")),
        (text(MAY, SUM, "72*3 = <<72*3=226>>226", "#### 226"),
         text(MAY, SUM, "72*3 = <<72*3=226>>226", "Wait, 72*3 is not 226: 72*3 = <<72*3=216>>216.",
              "#### 216")),
        (
            text(MAY, "48-42 = <<48-42=5>>5", "#### 5"),  # wrong twice: right it would not help
            text(MAY, "48-42 = <<48-42=5>>5", "Wait, that step does not follow.", SUM, MONEY,
                 "#### 216")),
        (text("48*3 = <<48*3=144>>144", "#### 144"),
         text("48*3 = <<48*3=144>>144", "Wait, that step does not follow.", MAY, SUM, MONEY,
              "#### 216")),
        (
            text("24+48 = <<24+48=72>>72", "72*3 = <<72*3=6>>6",
                 "#### 6"),  # May is used by nothing that is left
            text("24+48 = <<24+48=72>>72", "72*3 = <<72*3=6>>6",
                 "Wait, 72*3 is not 6: 72*3 = <<72*3=216>>216.", "#### 216")),
        (text(MAY, "48+24 = <<48+24=72>>73", "#### 73"),
         text(MAY, "48+24 = <<48+24=72>>73", "Wait, 48+24 = <<48+24=72>>72.", MONEY, "#### 216")),
        (text("<<48/=24>>24", "#### 24"),
         text("<<48/=24>>24", "Wait, that step does not follow.", MAY, SUM, MONEY, "#### 216")),
    ])  # fmt: skip
def test_a_tutor_corrects_the_first_wrong_step_and_goes_on(attempt, solution):
    made = tutor(CLIPS, attempt)
    assert made.solution == solution and made.answer == "216" and made.question == CLIPS.question
    assert made.origin == {"recipe": "tutor", "parent": "clips"
                           } and made.id.startswith("clips/tutor-")


def test_every_tutored_mini_gsm_attempt_ends_right():
    for story, problem in stories(200):
        count = len(steps(problem.solution))
        for line in range(count):
            attempt = story.solution((line, 1))
            made = tutor(problem, attempt).solution
            kept, said, *rest = made.split("\n")[line:]
            assert made.startswith(
                text(*steps(attempt)[:line + 1])) and kept == steps(attempt)[line]
            assert said.startswith("Wait, ") and all(
                check(mark) for mark in marks(text(said, *rest)))
            assert text(*rest) == text(
                *problem.solution.split("\n")[line + 1:])  # exactly the steps that were to do
            assert extract_answer(made, strict=True) == problem.answer


def test_a_wrong_operand_is_a_step_that_does_not_follow():
    """As small models slip most: a number copied wrongly, the arithmetic right."""
    for _, problem in stories(200):
        mark = marks(problem.solution)[0]
        left = mark.left.replace(mark.left[0], "9" if mark.left[0] != "9" else "7", 1)
        value = compute(left)
        if value.denominator > 1 or value in Plan(problem.solution).values:
            continue
        attempt = f"So {left} = <<{left}={value}>>{value}\n#### {value}"
        if not equivalent(problem.answer, str(value)):
            made = tutor(problem, attempt).solution
            assert made == text(
                attempt.split("\n")[0], "Wait, that step does not follow.", problem.solution)


@pytest.mark.parametrize("attempt, reason", [
    (GOLD, "attempt is right"), ("", "no marks"), ("#### 5", "no marks"), ("words", "no marks"),
    (text(MAY, "#### 24"), "no wrong step"),
    ("<<1+1=3>>" * LONGEST_ATTEMPT, "too long"), ("\n" * 50, "too long"),
    ("x" * 100_000, "too long"),
    (r"\boxed{7} <<1+1=3>>", "hides the answer"),
])  # fmt: skip
def test_an_attempt_that_cannot_be_tutored_is_left(attempt, reason):
    with pytest.raises(Unfit, match=reason):
        tutor(CLIPS, attempt)


@pytest.mark.parametrize("solution, reason", [
    ("so 5\n#### 5", "gold solution has no marks"), ("<<2+2=5>>\n#### 5", "gold solution is wrong"),
])  # fmt: skip
def test_a_gold_solution_must_have_right_marks(solution, reason):
    with pytest.raises(Unfit, match=reason):
        tutor(Problem("p", "?", solution, "5"), "1+1 = <<1+1=3>>3\n#### 3")


@pytest.mark.parametrize("attempt", [
    "<<" * 50_000, "<<1=1>>" * 14_000, "<<" + "(" * 100_000 + "=1>>", "=" * 100_000,
    "####" * 25_000, "<<1/0=1>>", "<<9=" + "9" * 5000 + ">>", "<<a=b>>", "\0\ud800",
    "<<1=1>>" + "9" * 90_000,
])  # fmt: skip
def test_garbage_is_judged_in_no_time(attempt):
    start = time.perf_counter()
    verdict = judge(attempt, CLIPS)
    assert verdict.line in (None, 0) and time.perf_counter() - start < 5


@pytest.mark.skipif(not os.environ.get("MATHFT_DATA"),
                    reason="MATHFT_DATA names no folder of real sets")
def test_published_solutions_are_judged_right():
    problems = read_problems(Path(os.environ["MATHFT_DATA"]) / "gsm8k" / "test.jsonl")
    assert [
        problem.id for problem in problems if judge(problem.solution, problem).reason != "right"
    ] == []


def test_a_step_that_needs_nothing_unknown_is_not_called_too_early():
    question = "Ann has 16 pens and 32 caps, and 8 bags of 2 buns. How many of all, and twice that?"
    lines = [
        "2*8 = <<2*8=16>>16 buns.", "32+16 = <<32+16=48>>48 pens and caps.",
        "48+16 = <<48+16=64>>64.", "#### 64"
    ]
    for seed in range(20):
        made = retro(Problem("p", question, text(*lines), "64"), random.Random(seed))
        assert made.solution.split("\n")[made.solution.split("\n").index("[back]") - 1] == lines[2]


def test_a_value_that_is_the_answer_by_chance_does_not_end_the_solution():
    gold = text("10+5 = <<10+5=15>>15", "15*2 = <<15*2=30>>30", "30-20 = <<30-20=10>>10", "#### 10")
    problem = Problem("p", "From 10, 5, 2 and 20?", gold, "10")
    attempt = text("20-10 = <<20-10=10>>10", "10+20 = <<10+20=30>>30", "30*5 = <<30*5=150>>150",
                   "#### 150")
    assert tutor(problem, attempt).solution.endswith("30-20 = <<30-20=10>>10\n#### 10")


def test_a_chat_is_left():
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": CLIPS.solution})
    chat = replace(CLIPS, messages=turns)
    for made in (lambda: retro(chat, random.Random(0)), lambda: tutor(chat, "1+1 = <<1+1=3>>3")):
        with pytest.raises(Unfit, match="a chat"):
            made()
