"""The steps of curation: what each keeps, drops and changes, as tables; and the laws that hold for
any rows."""

import os
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import synthetic
from answers import extract_answer
from data import Problem, load_problems, parse_record, read_problems, to_record
from recipes.curate import (drop_duplicates, drop_overlap, drop_same_patterns, is_plain_number,
                            keep_numeric, keep_right_arithmetic, mugglemath_15k, sample,
                            sample_by_probability, split, stated_answer, unbox, unify)
from runtime import UsageError, UserError, peak_memory_mib

needs_data = pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                                reason="MATHFT_DATA names no folder of real sets")


def row(question: str, solution: str = "", answer: str | None = None, **more) -> Problem:
    answer = extract_answer(solution) or "" if answer is None else answer
    return Problem(more.pop("id", question), question, solution, answer, **more)


def unified(solution: str, style: str) -> str | None:
    """The solution in that style; None if it is dropped."""
    problems = unify([row("q", solution)], style).problems
    return problems[0].solution if problems else None


# -------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    "solution, gsm8k, boxed",
    [("2+3 = <<2+3=5>>5.\n#### 5", "2+3 = <<2+3=5>>5.\n#### 5",
      r"2+3 = <<2+3=5>>5. The answer is $\boxed{5}$."),
     ("One.\nTwo.\n#### 1,234", "One.\nTwo.\n#### 1,234",
      "One.\nTwo.\nThe answer is $\\boxed{1,234}$."),
     ("We add. The answer is: $5$", "We add.\n#### 5", r"We add. The answer is $\boxed{5}$."),
     ("We add.\nThe answer is: $5$.", "We add.\n#### 5", r"We add. The answer is $\boxed{5}$."),
     ("We add. So, the final answer is 5.", "We add.\n#### 5",
      r"We add. The answer is $\boxed{5}$."),
     ("#### 5\nThe answer is: 5", "#### 5", r"The answer is $\boxed{5}$."),
     (r"Hence $x=\boxed{5}$.", "Hence $x=5$.\n#### 5", r"Hence $x=5$. The answer is $\boxed{5}$."),
     (r"So $\boxed{\frac{1}{2}}$ it is.", "So $\\frac{1}{2}$ it is.\n#### \\frac{1}{2}",
      r"So $\frac{1}{2}$ it is. The answer is $\boxed{\frac{1}{2}}$."),
     (r"For $n=5$ the answer is $5$.", "For $n=5$ the answer is $5$.\n#### 5",
      r"For $n=5$ the answer is $5$. The answer is $\boxed{5}$."),
     ("The answer is 5 because of it.", "The answer is 5 because of it.\n#### 5",
      r"The answer is 5 because of it. The answer is $\boxed{5}$."),
     ("#### Step 1\nAdd.\n#### 5", "Step 1\nAdd.\n#### 5",
      "Step 1\nAdd.\nThe answer is $\\boxed{5}$."),
     ("#### The answer is 5\n#### 5", "#### 5", r"The answer is $\boxed{5}$."),
     ("#### 5", "#### 5", r"The answer is $\boxed{5}$."),
     (r"$\boxed{1}$ and $\boxed{2}$", "$1$ and $2$\n#### 1, 2",
      "$1$ and $2$\nThe answer is $\\boxed{1, 2}$."),
     ("Answer: 7", "#### 7", r"The answer is $\boxed{7}$."), ])  # fmt: skip
def test_every_end_becomes_the_one_of_the_style(solution, gsm8k, boxed):
    assert unified(solution, "gsm8k") == gsm8k
    assert unified(solution, "boxed") == boxed


@pytest.mark.parametrize(
    "solution, reason", [("", "no solution"), (" \n", "no solution"),
                         ("She has 3 and then 4", "states no answer"),
                         ("So the answer is", "states no answer"),
                         ("7 and so the answer is ", "states no answer"),
                         ("The answer is a{b", "its answer cannot be written in the form of boxed"),
                         (r"A: \boxed{", "states no answer"), ])  # fmt: skip
def test_what_states_no_answer_is_dropped_with_the_reason(solution, reason):
    step = unify([row("q", solution), row("r", "#### 1")], "boxed")
    assert step.dropped == Counter({reason: 1}) and step.examples[reason] == "q"
    assert [problem.id for problem in step.problems] == ["r"]


@pytest.mark.parametrize(
    "unit", ["#### 5\n", "The answer is 5. ", r"\boxed{5} ", r"\boxed{", "answer: ", "####"])
def test_hostile_solutions_take_no_longer_than_their_length(unit):
    begin = time.perf_counter()
    unify([row("q", unit * 20_000 + "\n#### 5", answer="5")], "gsm8k")
    assert time.perf_counter() - begin < 20  # a second or two; were it quadratic, hours


@pytest.mark.parametrize("text, opened",
                         [(r"$\boxed{5}$", "$5$"),
                          (r"a \boxed{\frac{1}{\sqrt{2}}} b", r"a \frac{1}{\sqrt{2}} b"),
                          (r"\boxed 5", "5"), (r"\fbox{x}", "x"), (r"{\boxed{\boxed{5}}}", "{5}"),
                          (r"\boxed{\{1\}}", r"\{1\}"), (r"\pi\boxed{x}", r"\pi x"),
                          (r"\boxed{5", "5"), ("no box", "no box"), (r"\\boxed{5}", r"\\boxed{5}"),
                          (r"\boxed{1}+\boxed{2}", "1+2"), (r"\boxed {5}}", "5}"), ("\\boxed", ""),
                          ("a" * 10**5 + "\\boxed" * 10**5, "a" * 10**5), ])  # fmt: skip
def test_a_box_is_opened_and_its_content_stays(text, opened):
    assert unbox(text) == opened


def assert_law(problems: list[Problem]) -> Counter:
    """One form, the same answer, and twice is as good as once. Returns how many were kept in each
    style."""
    kept, answers = Counter(), {problem.id: stated_answer(problem.solution) for problem in problems}
    for style, other in (("gsm8k", "boxed"), ("boxed", "gsm8k")):
        once = unify(problems, style)
        twice = unify(once.problems, style)
        assert twice.problems == once.problems and not twice.noted
        for problem in once.problems:
            text = problem.solution
            assert (extract_answer(text) or "").split() == answers[problem.id].split()
            assert (text.count("####"), text.count(r"\boxed")) == ((1, 0) if style == "gsm8k" else
                                                                   (0, 1))
        back = {
            problem.id: problem
            for problem in unify(unify(once.problems, other).problems, style).problems
        }
        assert all(back.get(problem.id, problem) == problem for problem in once.problems)
        kept[style] = len(once.problems)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_the_law_of_forms_holds_for_any_text_made_of_their_pieces(seed):
    draw = random.Random(seed)
    pieces = [
        r"\boxed{", "}", "{", "$", "5", "1,234", " ", "\n", "#### ", "####", "The answer is",
        "answer: ", "so ", "the answer is: ", ". ", r"\frac{1}{2}", "x = ", "A: ", r"\boxed", "\\",
        "**", "\n#### 5", "-3", "The answer is $5$."
    ]  # fmt: skip
    texts = {"".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(3000)}
    rows = [row(text, text) for text in sorted(texts) if "\\boxed" not in unbox(text)]
    assert assert_law(rows)["gsm8k"] > 500


@needs_data
@pytest.mark.parametrize("name, count", [("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319),
                                         ("math500/test.json", 500)])  # fmt: skip
def test_the_law_of_forms_holds_for_the_published_sets(name, count):
    problems = read_problems(Path(os.environ["MATHFT_DATA"]) / name)
    assert assert_law(problems) == Counter(gsm8k=count, boxed=count) and len(problems) == count
    if name.startswith("gsm8k"):
        assert unify(problems, "gsm8k").problems == problems


def test_a_chat_is_rewritten_where_its_last_turn_stands():
    turns = [{"role": "user", "content": "1+1?"},
             {"role": "assistant", "content": r"It is $\boxed{2}$."}]
    kept = unify([parse_record({"messages": turns}, "here")], "gsm8k").problems[0]
    assert kept.messages[0] == turns[
        0] and kept.messages[1]["content"] == kept.solution == "It is $2$.\n#### 2"
    assert turns[1]["content"] == r"It is $\boxed{2}$."


def test_an_unknown_choice_is_one_line():
    wrongs = lambda: unify([], "latex"), lambda: drop_duplicates([], "fuzzy"), lambda: sample([
    ], 1, 0, by="colour")
    for wrong in wrongs:
        with pytest.raises(UsageError, match="known are"):
            wrong()


# ------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    "answer", ["5", "-5", "+5", "1,234", "0.5", ".5", "-1,234.50", "$5", r"\$5", " 7 ", "５"])
def test_plain_numbers(answer):
    assert is_plain_number(answer)


@pytest.mark.parametrize("answer", [
    "", "3/4", "25%", "5 cm", "x", r"\frac{1}{2}", "1, 2", "1,23", "--5", "1.2.3", "1e5", "five",
    "2^3", ".", "-", "²", "5-3"
])  # fmt: skip
def test_what_is_no_plain_number(answer):
    assert not is_plain_number(answer)
    assert keep_numeric([row("q", answer=answer)]).problems == []


def test_wrong_and_unreadable_arithmetic_is_dropped():
    solutions = {
        "right": "<<1+1=2>> <<10/3=3.333>>", "wrong": "<<1+1=2>> <<2*3=7>>", "odd": "<<x+1=2>>"
    }
    solutions["none"] = "1+1=3"
    step = keep_right_arithmetic([row(name, solution) for name, solution in solutions.items()])
    assert [problem.id for problem in step.problems] == ["right", "none"]
    assert step.dropped == Counter({"wrong arithmetic": 1, "arithmetic that cannot be read": 1})
    assert step.noted == Counter({"without any <<a=b>>": 1
                                  }) and step.examples["wrong arithmetic"] == "wrong"
    assert str(step).split("\n")[0] == "right arithmetic: 2 of 4 kept"
    assert "      1 dropped: wrong arithmetic (such as wrong)" in str(step)


def test_an_id_of_a_file_cannot_steer_the_terminal():
    step = keep_numeric([row("\x1b[2J\nid", answer="none")])
    assert str(step) == ("plain numbers: 0 of 1 kept\n"
                         "        1 dropped: answer is no plain number (such as  [2J id)")


LONG = ("Mia walks to the old market with 12 red apples in her bag and sells most of the apples to "
        "some kind neighbours")


def test_duplicates_are_those_of_question_and_solution():
    rows = [
        row(LONG, "#### 5", id="a"),
        row(LONG, "#### 5", id="b"),
        row(LONG.upper(), "#### 5", id="c"),
        row(LONG, "In other words\n#### 5", id="d"),
        row(LONG.replace("old", "new"), "#### 5", id="e"),
        row(LONG.replace("12", "13"), "#### 5", id="f"),
        row(LONG.replace("old", "new"), "#### 6", id="g")
    ]  # fmt: skip

    def kept(**how) -> str:
        return "".join(problem.id for problem in drop_duplicates(rows, **how).problems)

    assert kept(kind="exact") == "acdefg"
    assert kept(kind="normalised") == "adefg"
    # e differs in one word of 26, which leaves a Jaccard index of 0.79; d and f in more; g in its
    # answer.
    assert kept(kind="near") == "adefg"
    assert kept(kind="exact", questions_only=True) == "acef"
    assert kept(kind="normalised", questions_only=True) == "aef"
    longer = [
        replace(problem, question=problem.question + " on a long and sunny day in spring")
        for problem in rows
    ]
    longer.append(
        replace(longer[0], id="h", question=longer[0].question.replace("kind", "good"), answer="6"))
    step = drop_duplicates(longer, questions_only=True)
    assert step.dropped == Counter(
        {"exact duplicate": 3, "normalised duplicate": 1, "near duplicate": 1})
    assert "".join(problem.id
                   for problem in step.problems) == "afh"  # h is near a, but has another answer


def test_of_a_pattern_one_is_kept():
    rows = [
        row("Mia has 3 cats."),
        row("Mia has 1,250 cats"),
        row("Mia has 3 dogs."),
        row("Mia has 3% cats.")
    ]
    step = drop_same_patterns(rows)
    assert step.problems == [rows[0], rows[2], rows[3]
                             ] and step.dropped["same question but for its numbers"] == 1


def test_overlap_is_counted_by_set_and_dropped_or_marked():
    rows = [
        row("free"),
        row(LONG),
        row(LONG + " at noon"),
        row("What is 2+2?", origin={"recipe": "rft"})
    ]
    tests = {"one": [LONG], "two": ["what is 2 + 2", LONG], "three": ["nothing of it"]}
    step = drop_overlap(rows, tests)
    assert [problem.id for problem in step.problems] == ["free"]
    assert step.dropped == Counter({
        "overlaps one (exact) and overlaps two (exact)": 1, "overlaps two (exact)": 1,
        "overlaps one (13-gram) and overlaps two (13-gram)": 1
    })  # fmt: skip
    marked = drop_overlap(rows, tests, keep=True)
    assert not marked.dropped and marked.noted == step.dropped
    assert [problem.origin.get("overlap") for problem in marked.problems] == [
        None, "one, two", "one, two", "two"
    ]
    assert marked.problems[3].origin["recipe"] == "rft" and rows[3].origin == {"recipe": "rft"}
    assert parse_record(to_record(marked.problems[1]), "x") == marked.problems[1]
    chat = [{"role": role, "content": text}
            for role, text in zip(["user", "assistant"] * 2, [LONG, "1", "Sure?", "1"])]
    assert not drop_overlap([parse_record({"messages": chat}, "chat")], tests).problems
    assert drop_overlap(rows, {}).problems == rows


@needs_data
def test_gsm8k_against_itself_and_math_500():
    folder = Path(os.environ["MATHFT_DATA"])
    train, test = read_problems(folder / "gsm8k/train.jsonl"), read_problems(
        folder / "gsm8k/test.jsonl")
    tests = {"gsm8k": [problem.question for problem in test]}
    assert drop_overlap(test, tests).dropped == Counter({"overlaps gsm8k (exact)": 1319})
    assert drop_overlap(train, tests).dropped == Counter({"overlaps gsm8k (13-gram)": 4})
    assert drop_overlap(read_problems(folder / "math500/test.json"), tests).dropped == Counter()


# ------------------------------------------------------------------------------------------ choices


def many(count: int = 1000) -> list[Problem]:
    return [
        row(f"question {i}", f"#### {i}", level=str(i % 10 // 6), subject="xyz"[i % 3])
        for i in range(count)
    ]


CHOICES = [
    lambda rows: sample(rows, 100, 0), lambda rows: sample(rows, 101, 0, by="level"),
    lambda rows: sample_by_probability(rows, 0.1, 0)]  # fmt: skip


@pytest.mark.parametrize("choose", CHOICES)
def test_a_choice_does_not_depend_on_the_order_of_the_rows(choose):
    rows = many()
    shuffled = random.Random(0).sample(rows, len(rows))
    chosen = choose(rows).problems
    assert sorted(problem.id for problem in choose(shuffled).problems) == sorted(
        problem.id for problem in chosen)
    assert chosen == [problem for problem in rows if problem in chosen]  # their own order stays


def test_a_sample_is_seeded_and_of_the_size_asked_for():
    rows = many()
    first, second = (sample(rows, 100, seed).problems for seed in (0, 1))
    assert len(first) == len(second) == 100 and 1 <= len({p.id
                                                          for p in first} & {p.id
                                                                             for p in second}) < 40
    assert sample(rows, 2000, 0).problems == rows and sample([], 5, 0, by="level").problems == []
    step = sample(rows, 0, 0)
    assert step.problems == [] and step.dropped == Counter({"not in the sample": 1000})


@pytest.mark.parametrize("n", [1, 7, 10, 99, 500, 1000])
def test_a_stratified_sample_keeps_the_shares(n):
    rows = many()
    counts = Counter(problem.level for problem in sample(rows, n, 3, by="level").problems)
    assert counts.total() == n and all(
        abs(counts[level] - n * share) < 1 for level, share in (("0", 0.6), ("1", 0.4)))


def test_steps_are_marks_or_lines():
    rows = [row("a", "<<1+1=2>> <<2+2=4>>"), row("b", "one\ntwo"), row("c", "one"), row("d", "uno")]
    assert len({problem.id
                for problem in sample(rows, 2, 0, by="steps").problems} & {"a", "b"}) == 1


def test_a_probability_is_kept_on_average():
    rows = many(4000)
    assert abs(len(sample_by_probability(rows, 0.12, 0).problems) -
               480) < 4 * (4000 * 0.12 * 0.88)**0.5
    assert sample_by_probability(rows, 1.0, 0).problems == rows and sample_by_probability(
        rows, 0.0, 0).problems == []


def test_a_split_keeps_the_rows_of_a_question_together():
    rows = [
        row(f"Question {i % 50}{'?' * (i // 50)}", f"solution {i}", id=str(i)) for i in range(200)
    ]
    train, test = split(rows, 0.1, 0)
    assert len(train) == 180 and len(test) == 20 and [p for p in rows if p in test] == test
    assert not {p.question.rstrip("!") for p in train} & {p.question.rstrip("!") for p in test}
    again = split(rows[::-1], 0.1, 0)[1]
    assert sorted(p.id for p in again) == sorted(p.id for p in test) != sorted(
        p.id for p in split(rows, 0.1, 1)[1])
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(UserError, match="one side empty"):
            split(rows, share, 0)


# ------------------------------------------------------------------------------------------ recipes


def test_mugglemath_15k_from_beginning_to_end():
    names = [
        f"{a}{b}{c}" for a in "BCDFGHJKLM" for b in ("an", "er", "il", "ol")
        for c in ("a", "o", "us", "ix", "y")
    ]
    rows = [row(f"{name} has {i} {thing}. How many are left?", f"It is {i}. The answer is: ${i}$")
            for name in names for thing in synthetic.THINGS for i in range(3)]  # fmt: skip
    rows += [
        row("half", r"The answer is: $\frac{1}{2}$"),
        row("cut", "It is 5 and"),
        row("leak", "The answer is: 7")
    ]
    problems, steps = mugglemath_15k(rows, 0, {"set": ["Leak?"]})
    count = len(names) * len(synthetic.THINGS)
    assert [step.dropped.total() for step in steps[:4]] == [1, 1, 2 * count, 1]
    assert abs(len(problems) - 0.12 * count) < 4 * (count * 0.12 * 0.88) ** 0.5
    assert all(problem.solution == f"It is {problem.answer}.\n#### {problem.answer}"
               for problem in problems)
    assert mugglemath_15k(rows, 0, {"set": ["Leak?"]})[0] == problems != mugglemath_15k(
        rows, 1, {})[0]
    for step, following in zip(steps, steps[1:]):
        assert len(step.problems) == len(following.problems) + following.dropped.total()


def test_the_steps_leave_the_embedded_sets_as_they_are():
    rows = load_problems("mini-gsm", limit=300)
    for step in (unify(
            rows, "gsm8k"), keep_right_arithmetic(rows), keep_numeric(rows), drop_duplicates(rows)):
        assert step.problems == rows and not step.noted and not step.dropped


@pytest.mark.slow
def test_half_a_million_rows_take_minutes(capsys):
    """Every step on rows of GSM8K's length; the tenth of them that is planted goes."""
    base = load_problems("mini-gsm", limit=4000)
    filler = " ".join(
        f"{a}{b}" for a in "bcdfg" for b in ("ana", "olo", "iri", "ene", "utu", "asa"))
    rows = [
        replace(base[i % 4000], id=str(i),
                question=f"{base[i % 4000].question} {filler} {i % 448_000}")
        for i in range(500_000)
    ]  # fmt: skip
    begin = time.perf_counter()
    tests = {"test": [f"{LONG} {i}" for i in range(500)]}
    steps = [unify(rows, "boxed")]
    for work in (keep_right_arithmetic, keep_numeric, lambda rows: drop_overlap(rows, tests),
                 drop_duplicates, lambda rows: sample(rows, 1000, 0)):  # fmt: skip
        now = time.perf_counter()
        steps.append(work(steps[-1].problems))
        with capsys.disabled():
            print(f"\n{steps[-1]}\n{time.perf_counter() - now:.0f} s", end="")
    seconds, memory = time.perf_counter() - begin, peak_memory_mib(torch.device("cpu"))
    with capsys.disabled():
        print(f"\n{seconds:.0f} s in all, peak memory {memory:.0f} MiB")
    assert len(steps[-3].problems) == 500_000 and len(steps[-2].problems) == 448_000 and len(
        steps[-1].problems) == 1000
    assert memory < 4096
