"""recipes.py: what each recipe keeps, what it leaves out and why, and that every row tells where it
comes from."""

import json
from dataclasses import replace

import pytest

from answers import equivalent, extract_answer
from data import Problem, load_problems
from recipes.arithmetic import check, marks
from recipes.recipes import CHANGES, EXPAND, NEEDS_TEACHER, RECIPES, RecipeContext

CLIPS = Problem("clips",
                "Natalia sold clips to 48 friends, and half as many in May. How many in all?",
                "48/2 = <<48/2=24>>24 in May.\n48+24 = <<48+24=72>>72 in all.\n#### 72", "72")


class Scripted:
    """A teacher who says what `say(question, sample)` says; None is a reply that never comes."""

    name, system, settings = "scripted", None, {}

    def __init__(self, say):
        self.say, self.heard = say, []

    def answer(self, chats, samples, skip):
        for number, chat in enumerate(chats):
            for sample in range(samples):
                if (number, sample) in skip:
                    continue
                self.heard.append(chat[-1]["content"])
                text = self.say(chat[-1]["content"], sample)
                choice = {"message": {"content": text or ""}, "finish_reason": "stop"}
                body = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
                yield (number, sample), {
                    "request": {}, "status": 200, "fault": "", "raw": json.dumps(body),
                    "attempt": 1, "mean_log_prob": None
                }


def cook(recipe, tmp_path, say=None, problems=(CLIPS,), student=None, **more):
    teacher = Scripted(say) if say else None
    context = RecipeContext(recipe, list(problems), tmp_path, teacher,
                            student and Scripted(student),
                      **more)
    return list(RECIPES[recipe](context)), context


def listed(*texts):
    return lambda question, sample: texts[sample]


# ------------------------------------------------------------------------------------ old questions


def test_responses_keep_the_answers_that_the_grader_agrees_with(tmp_path):
    said = listed(r"Half is 24, so \boxed{72}.", "I think 70.", "", "It is 72.")
    made, context = cook("responses", tmp_path, said, samples=4)
    assert [problem.solution for problem in made] == [r"Half is 24, so \boxed{72}.", "It is 72."]
    assert context.dropped == {"another answer than the gold one": 1, "lost": 1}
    assert context.cost["requests"] == 4 and context.cost["new_tokens"] == 20


def test_responses_without_the_check_keep_wrong_answers_too_as_the_paper_did(tmp_path):
    made, _ = cook("responses", tmp_path, listed("It is 72.", "It is 70."), samples=2, check=False)
    assert [problem.solution for problem in made] == ["It is 72.", "It is 70."]


def test_a_chat_is_answered_anew_and_keeps_its_gold_answer(tmp_path):
    turns = ({"role": "user", "content": "48 and 24?"}, {"role": "assistant", "content": "#### 72"})
    chat = Problem("chat", "48 and 24?", "#### 72", "72", messages=turns)
    made, _ = cook("rft", tmp_path, listed("<<48+24=72>>72\n#### 72"), problems=[chat])
    assert [(problem.messages, problem.solution) for problem in made
            ] == [(turns, "#### 72"), ((), "<<48+24=72>>72\n#### 72")]


def test_rft_keeps_one_right_solution_for_each_list_of_equations_and_the_gold_one(tmp_path):
    said = listed(
        # the gold equations, written in another way
        "48 / 2 = <<48/2=24>>24\n48 + 24 = <<48+24=72>>72\n#### 72",
        "<<48*2=96>>96 <<96-24=72>>72\n#### 72",  # another way
        "<<48*2=96>>96, and <<96-24=72>>72.\n#### 72",  # the same other way
        "<<48+24=73>>73\n#### 72",  # right by chance
        "<<48/2=24>>24\n#### 24",
        "#### 72",
    )
    made, context = cook("rft", tmp_path, said, samples=6,
                         check=False)  # which is for other recipes
    assert [problem.origin["kind"] for problem in made] == ["gold", "1"]
    assert context.dropped == {
        "the same equations as another solution": 2, "wrong arithmetic on the way": 1,
        "another answer than the gold one": 1,
        "a bare answer, but the gold solution calculates": 1
    }


def test_other_ways_are_asked_for_with_the_gold_one_in_sight_and_must_be_other_and_right(tmp_path):
    said = listed(CLIPS.solution, "48*1.5 = <<48*1.5=72>>72\n#### 72", "#### 5")
    made, context = cook("diversify", tmp_path, said, samples=3)
    assert [problem.solution for problem in made] == ["48*1.5 = <<48*1.5=72>>72\n#### 72"]
    assert set(context.dropped) == {
        "the same equations as another solution", "another answer than the gold one"
    }
    assert all(
        CLIPS.question in heard and CLIPS.solution in heard for heard in context.teacher.heard)


# ------------------------------------------------------------------------------------ new questions


def test_new_questions_are_answered_by_majority_with_its_share_as_confidence(tmp_path):
    def say(text, sample):
        if "new problem" in text:
            return f"New question {sum(map(ord, text))}?"
        return ["So #### 5", "Hm, #### 6", "Thus 10/2 = \\boxed{5.0}"][sample]

    made, context = cook("queries", tmp_path, say, samples=3)
    assert [problem.origin["kind"] for problem in made] == list(CHANGES)
    assert {(problem.answer, problem.solution, problem.origin["confidence"])
            for problem in made} == {("5", "So #### 5", 2 / 3)}
    assert len({problem.question for problem in made}) == len(CHANGES) and context.dropped == {}


@pytest.mark.parametrize(
    "new, answers, reason",
    [
        (CLIPS.question.upper(), ["#### 5"] * 2, "an old question again"),
        ("x" * 5000, ["#### 5"] * 2, "no question"),
        ("5 + 5 = 10\n#### 10", ["#### 5"] * 2, "no question"),  # it solves where it should ask
        ("What now?", ["#### 5"] * 2, "no question"),
        ("A new question?", ["#### 5", None
                             ], "no majority for an answer"),  # one vote of two, and one lost
        ("A new question?", ["I do not know.", "Nor do I."], "no majority for an answer"),
    ])  # fmt: skip
def test_a_new_question_that_is_none_or_has_no_answer_is_left_out(tmp_path, new, answers, reason):
    made, context = cook("expand", tmp_path, lambda text, sample: new
                         if "Here is" in text else answers[sample], samples=2, agreement=0.6)
    assert made == [] and context.dropped[reason] >= 1 and sum(
        context.dropped.values()) >= len(EXPAND)


# ------------------------------------------------------------------------------------------ by rule


@pytest.mark.parametrize("recipe, hard", [("perturb", False), ("perturb", True), ("retro", False)])
def test_rules_need_no_teacher_and_make_right_rows(tmp_path, recipe, hard):
    problems = load_problems("mini-gsm", limit=40)
    made, context = cook(recipe, tmp_path, problems=problems, samples=3, hard=hard)
    assert len(made) + sum(context.dropped.values()) == 120 and len(made) > 40
    for problem in made:
        assert equivalent(problem.answer, extract_answer(problem.solution)) and all(
            map(check, marks(problem.solution)))
    assert len({problem.id for problem in made}) == len(made)
    assert list(tmp_path.iterdir()) == []  # nothing was asked


def test_what_a_rule_makes_does_not_depend_on_the_other_problems(tmp_path):
    problems = load_problems("mini-gsm", limit=6)
    alone = [cook("perturb", tmp_path, problems=[problem])[0] for problem in problems]
    together, _ = cook("perturb", tmp_path, problems=problems)
    assert [problem for made in alone for problem in made] == together
    assert cook("perturb", tmp_path, problems=problems, seed=1)[0] != together


def test_what_the_rule_cannot_do_is_the_teachers(tmp_path):
    unmarked = Problem("bare", "What is 2 + 2?", "It is 4.\n#### 4", "4")
    made, context = cook("perturb", tmp_path, lambda text, sample: "What is 3 + 3?"
                         if "Here is" in text else "#### 6", problems=[unmarked])
    assert [(problem.question, problem.answer, problem.origin["kind"]) for problem in made
            ] == [("What is 3 + 3?", "6", "simple")]
    assert sum(context.dropped.values()) == 1  # the reason why the rule could not


# ----------------------------------------------------------------------------------------- tutoring

SLIP = "48/2 = <<48/2=26>>26 in May.\n48+26 = <<48+26=74>>74 in all.\n#### 74"


def test_a_weak_attempt_is_corrected_at_its_first_wrong_step_by_rule(tmp_path):
    made, context = cook("tutor", tmp_path, student=listed(SLIP, CLIPS.solution, SLIP), samples=3)
    (problem,) = made  # the same attempt again gives no second row
    assert problem.solution.startswith(SLIP.splitlines()[0]) and "74" not in problem.solution
    assert extract_answer(problem.solution) == "72" and problem.origin["student"] == "scripted"
    assert context.dropped == {"the attempt is right": 1}


def test_an_attempt_that_no_rule_can_judge_is_the_teachers(tmp_path):
    attempt = "Half of 48 is 26.\nSo 74.\n#### 74"
    replies = {
        "good": "1.\nHalf of 48 is 24, not 26.\nIn all 72.\n#### 72", "wrong": "1\n#### 74",
        "bare": "1", "lineless": "All of it.", "endless": f"{'0' * 8}1{'1' * 5000}\n#### 72"
    }
    for kind, kept in (("good", 1), ("wrong", 0), ("bare", 0), ("lineless", 0), ("endless", 0)):
        made, context = cook("tutor", tmp_path / kind, lambda text, sample: replies[kind],
                             student=listed(attempt))
        assert len(made) == kept, context.dropped
        if made:
            assert made[
                0].solution == "Half of 48 is 26.\nHalf of 48 is 24, not 26.\nIn all 72.\n#### 72"
            assert "1. Half of 48 is 26." in context.teacher.heard[0]


# --------------------------------------------------------------------------------------------- laws


def test_what_is_known_of_a_row_stays_with_those_made_of_it(tmp_path):
    marked = replace(CLIPS, origin={"overlap": "gsm8k", "recipe": "older"})
    (made,), _ = cook("retro", tmp_path, problems=[marked])
    assert made.origin == {
        "recipe": "retro", "parent": "clips", "kind": "0", "seed": 0, "overlap": "gsm8k"
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_row_says_recipe_parent_seed_and_teacher(tmp_path, recipe):
    problems = load_problems("mini-gsm", limit=4)

    def say(text, sample):
        answer = problems[0].answer
        if "Here is" in text:
            return f"Another one, {len(text)}?"
        return f"1*{answer} = <<1*{answer}={answer}>>{answer}\n#### {answer}"

    asked = recipe in NEEDS_TEACHER
    student = (lambda text, sample: "1+1 = <<1+1=3>>3\n#### 3") if recipe == "tutor" else None
    made, _ = cook(recipe, tmp_path, say if asked else None, problems=problems, student=student,
                   seed=7)
    assert made
    for problem in made:
        assert problem.origin["recipe"] == recipe and problem.origin["seed"] == 7
        assert problem.origin["parent"] in {parent.id for parent in problems}
        assert problem.origin.get("teacher") == ("scripted" if asked
                                                 and problem.origin["kind"] != "gold" else None)


def test_nothing_is_asked_twice(tmp_path):
    first, context = cook("responses", tmp_path, listed("It is 72.", "So 72."), samples=2)
    again, later = cook("responses", tmp_path, listed("never", "said"), samples=2)
    assert again == first and len(context.teacher.heard) == 2 and later.teacher.heard == []
