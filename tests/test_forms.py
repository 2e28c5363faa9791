"""forms.py: records as others publish them, what changes their meaning, and golds that nobody
guesses."""

import json

import pytest

from data import Problem, chat_examples, load_problems, prompt_of, to_record, parse_record
from forms import LeftOut, gold_of, given_gold, parse, read_columns
from runtime import UsageError, UserError
from tokenizer import Tokenizer

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "so #### 4"}
SYSTEM = {"role": "system", "content": "Be short."}


def turns(*texts: str) -> list[dict]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


# -------------------------------------------------------------------------------- forms that exist

PLAIN = {
    "Alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "It is 3.\n#### 3"},
               "Add.\n\n1 and 2", "It is 3.\n#### 3", "3"),
    "Alpaca without input": ({"instruction": "1+2?", "input": "", "output": "#### 3"},
                             "1+2?", "#### 3", "3"),
    "prompt and completion": ({"prompt": "1+2?", "completion": "#### 3"}, "1+2?", "#### 3", "3"),
    "OpenMathInstruct-2": ({"problem": "1+2?", "generated_solution": "We add: $\\boxed{3}$.",
                            "expected_answer": "3", "problem_source": "augmented_gsm8k"},
                           "1+2?", "We add: $\\boxed{3}$.", "3"),
    "OpenMathInstruct-1": ({"question": "1+2?", "generated_solution": "\\boxed{3}",
                            "expected_answer": "3", "is_correct": True, "error_message": ""},
                           "1+2?", "\\boxed{3}", "3"),
    "AIME 2024": ({"ID": "2024-I-1", "Problem": "p", "Solution": "s \\boxed{204}", "Answer": 204},
                  "p", "s \\boxed{204}", "204"),
    "SVAMP": ({"ID": "chal-1", "Body": "Ann has 3 pens. ", "Question": "How many are 3 more?",
               "Equation": "( 3.0 + 3.0 )", "Answer": 6.0, "Type": "Addition"},
              "Ann has 3 pens. How many are 3 more?", "", "6.0"),
    "DAPO": ({"data_source": "math_dapo", "prompt": [{"role": "user", "content": "1+2?"}],
              "ability": "MATH", "reward_model": {"ground_truth": "3", "style": "rule"},
              "extra_info": {"index": "9"}}, "1+2?", "", "3"),
    "DAPO, processed": ({"prompt": "1+2?", "solution": "3", "data_source": "math_dapo",
                         "reward_model": {"ground_truth": "3"}}, "1+2?", "3", "3"),
    "MATH": ({"problem": "p", "solution": "so $\\boxed{7}$.", "type": "Algebra"}, "p",
             "so $\\boxed{7}$.", "7"),
    "NuminaMath 1.5": ({"problem": "p", "solution": "Suppose not.", "answer": "proof"}, "p",
                       "Suppose not.", ""),
    "nulls": ({"question": "q", "answer": "#### 1", "messages": None, "system": None}, "q",
              "#### 1", "1"),
    "question and response": ({"question": "q", "response": "The answer is: 8"}, "q",
                              "The answer is: 8", "8"),
    "a gold beside GSM8K's form": ({"question": "q", "answer": "so #### 4", "expected_answer": "5"},
                                   "q", "so #### 4", "5"),
    "a gold beside MetaMath's form": ({"response": "so 4", "query": "q", "answer": "4"}, "q",
                                      "so 4", "4"),
    "Alpaca, all in the input": ({"instruction": "", "input": "1+2?", "output": "#### 3"}, "1+2?",
                                 "#### 3", "3"),
    "an answer that is a solution": ({"problem": "p", "answer": "2 + 3 = 5\n#### 5"}, "p",
                                     "2 + 3 = 5\n#### 5", "5"),
}


@pytest.mark.parametrize("record, question, solution, answer", PLAIN.values(), ids=PLAIN)
def test_published_forms(record, question, solution, answer):
    found = parse(record, "f:1")
    assert (found.question, found.solution, found.answer) == (question, solution, answer)
    assert not found.messages and parse(to_record(found), "f:1") == found


CHATS = {
    "messages": ({"messages": [USER, ANSWER]}, [USER, ANSWER], "4"),
    "with a gold beside": ({"messages": [USER, ANSWER], "answer": "5"}, [USER, ANSWER], "5"),
    "without an answer": ({"messages": [SYSTEM, USER], "answer": "5"}, [SYSTEM, USER], "5"),
    "a column for the system prompt": ({"messages": [USER, ANSWER], "system": "Be short."},
                                       [SYSTEM, USER, ANSWER], "4"),
    "RLVR": ({"messages": [USER], "ground_truth": "4", "dataset": "gsm8k"}, [USER], "4"),
    "RLVR of many tasks": ({"messages": [USER], "ground_truth": ["4"]}, [USER], "4"),
    "OpenOrca": ({"system_prompt": "Be short.", "question": "q", "response": "so #### 4"},
                 [SYSTEM, USER, ANSWER], "4"),
    "from and value as messages": ({"messages": [{"from": "human", "value": "q"},
                                                 {"from": "gpt", "value": "so #### 4"}]},
                                   [USER, ANSWER], "4"),
    "developer, and parts": (
        {"messages": [{"role": "developer", "content": "Be short."},
                      {"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        [SYSTEM, USER, ANSWER], "4"),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"},
                                    {"from": "gpt", "value": "so #### 4"}], "system": "Be short."},
                 [SYSTEM, USER, ANSWER], "4"),
    "ShareGPT with roles": ({"conversations": [USER, ANSWER]}, [USER, ANSWER], "4"),
    "TRL": ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER], "4"),
    "Alpaca with a system prompt": ({"instruction": "q", "output": "so #### 4",
                                     "system": "Be short."}, [SYSTEM, USER, ANSWER], "4"),
    "Alpaca with a history": ({"instruction": "q", "output": "so #### 4",
                               "history": [["a", "b"]]}, [*turns("a", "b"), USER, ANSWER], "4"),
    "a question with a system prompt": ({"question": "q", "answer": "so #### 4",
                                         "system": "Be short."}, [SYSTEM, USER, ANSWER], "4"),
    "DAPO with a system prompt": ({"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": "4"}},
                                  [SYSTEM, USER], "4"),
}


@pytest.mark.parametrize("record, messages, answer", CHATS.values(), ids=CHATS)
def test_published_chats(record, messages, answer):
    found = parse(record, "f:1")
    assert (list(found.messages), found.answer, found.id) == (messages, answer, "f:1")
    assert found.asked == [turn for turn in messages if turn != ANSWER]
    assert parse(to_record(found), "f:1") == found


@pytest.mark.parametrize("record, said", [
    ({"messages": [USER, ANSWER | {"tool_calls": [{"id": 1}]}]}, "has tool_calls"),
    ({"messages": [USER, ANSWER | {"reasoning_content": "hm"}]}, "has reasoning_content"),
    ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "has tools"),
    ({"messages": [USER, ANSWER | {"reasoning": "hm"}]}, "has reasoning"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "has chosen"),
    ({"question": "q", "choices": ["a", "b"], "answer": 1}, "has choices beside its question"),
    ({"context": "c", "question": "q", "answer": "1"}, "has context beside its question"),
    ({"question": "q", "answer": float("nan")}, "answer is float, expected text"),
    ({"messages": [USER | {"content": " "}, ANSWER]}, "the last turn of the user is empty"),
    ({"question": "q", "answer": "1", "image": "a.png"}, "has image"),
    ({"messages": [USER | {"content": [{"type": "image_url"}]}, ANSWER]}, "is no text"),
    ({"messages": [SYSTEM, USER, ANSWER], "system": "Be long."}, "remove one of them"),
    ({"messages": [ANSWER]}, "follows no turn of the user"),
    ({"messages": [USER, ANSWER, ANSWER]}, "follows no turn of the user"),
    ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "has weight '0.5'"),
    ({"messages": [USER | {"train": True}, ANSWER]}, "a turn of the user has train 'True'"),
    ({"conversations": [{"from": "observation", "value": "x"}]}, "unknown role 'observation'"),
    ({"instruction": "q", "output": "a", "history": ["x"]}, "history is no list of pairs"),
    ({"prompt": "q", "reward_model": {"style": "rule"}}, "reward_model holds no ground_truth"),
    ({"question": "q", "answer": 1e999}, "answer is float, expected text"),
    ({"id": "x", "problem": 0, "sample": 0, "question": "q", "gold": "4", "text": "t",
      "finish": "stop", "answer": "5", "correct": False},
     "is a completion of an evaluation; python augment.py"),
])
def test_what_is_not_honoured_is_refused_with_its_place(record, said):
    with pytest.raises(UserError) as error:
        parse(record, "rows.jsonl:7")
    assert str(error.value).startswith("rows.jsonl:7: ") and said in str(error.value)


@pytest.mark.parametrize("empty", [
    {"tools": []}, {"tool_calls": None}, {"images": ""}, {"images": [""]},
    {"function_call": {"name": None, "arguments": None}}, {"choices": {"text": [], "label": []}},
    {"context": " \n"}, {"options": [""]}, {"system_prompt": " "}])
def test_empty_columns_change_nothing(empty):
    for row in ({"messages": [USER, ANSWER]}, {"question": "q", "answer": "so #### 4"}):
        assert parse(row | empty, "x") == parse(row, "x")


def test_the_same_system_prompt_in_a_column_and_in_the_turns_is_one():
    row = {"messages": [SYSTEM, USER, ANSWER]}
    assert parse(row | {"system_prompt": SYSTEM["content"]}, "x") == parse(row, "x")


@pytest.mark.parametrize("row", [
    {"question": "q", "generated_solution": "5", "expected_answer": "4", "is_correct": False},
    {"prompt": "q", "completion": "5", "label": False},
    {"messages": [USER, ANSWER], "correct": False}])
def test_a_row_that_is_marked_as_wrong_is_left_out(row):
    mark = list(row)[-1]
    with pytest.raises(LeftOut, match=f"marked as wrong by {mark}"):
        parse(row, "x")
    parse(row | {mark: True}, "x")
    assert parse({"text": "t", mark: False}, "x").text == "t"  # of a text it says something else


def test_an_empty_answer_is_not_learnt(tokenizer_folder):
    """It would teach to end at once."""
    rows = [{"messages": [USER, {"role": "assistant", "content": text}]} for text in ("", " \n")]
    rows += [{"question": "q", "answer": " "}, {"prompt": "q", "completion": "", "system": "S"}]
    problems = [parse(row, "x") for row in rows]
    assert chat_examples(Tokenizer(tokenizer_folder), problems, "S", 999) == ([], 0)
    assert not any(problem.answer for problem in problems)
    assert [parse(to_record(problem), "x") for problem in problems] == problems


# ------------------------------------------------------------------------------------ gold answers


@pytest.mark.parametrize("solution, gold", [
    ("2 + 3 = 5\n#### 5", "5"), ("so $\\boxed{\\frac12}$", "\\frac12"), ("The answer is 7.", "7"),
    ("5", "5"), ("-0.5", "-0.5"), ("$\\frac{3}{4}$", "$\\frac{3}{4}$"), ("12 cm", "12"),
    ("(1, 2)", "(1, 2)"), ("", ""),
    # The last number of a text is just its last number.
    ("She buys 3 apples and 4 pears.", ""), ("Because 2 is even, and so is 4.", ""),
    ("First 3.\nThen 4.", ""), ("I have 5", ""), ("yes", ""), ("We count to 10 and stop", ""),
    # What spells a marker is no part of it.
    ("#### 5<|im_end|>", "5"), ("\\boxed{5}<|im_end|>\n", "5"), ("5<|endoftext|>", "5")])
def test_a_gold_is_stated_or_it_is_none(solution, gold):
    assert gold_of(solution) == gold


@pytest.mark.parametrize("column, gold", [
    ("5", "5"), ("\\text{Friday}", "\\text{Friday}"), ("Evelyn", "Evelyn"), ("proof", ""),
    ("Proof", ""), ("Proof.", ""), ("$proof$", ""), ("not found", ""), ("\\boxed{5}", "5"),
    ("5<|im_end|>", "5"),
    ("\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}"),
    ("There are as many of them as there are primes below the number 12", "")])
def test_what_a_column_of_golds_says(column, gold):
    assert given_gold(column) == gold


# -------------------------------------------------------------------------------------- own columns


def test_columns_of_any_other_set():
    row = {"Instruction": "1+2?", "target": "so 3", "gold": "3", "note": None}
    columns = read_columns("question=Instruction, solution=target,answer=gold")
    assert parse(row, "f:2", columns) == Problem("f:2", "1+2?", "so 3", "3")
    graded = parse(row, "f:2", read_columns("question=Instruction,answer=gold"))
    assert (graded.solution, graded.answer) == ("", "3")
    assert parse(row, "f:2", read_columns("text=target")).text == "so 3"
    chat = {"dialogue": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "so #### 4"}]}
    assert parse(chat, "f:2", read_columns("messages=dialogue")).messages == (USER, ANSWER)
    chosen = {"prompt": "q", "chosen": "so #### 4", "rejected": "no"}  # the others are not read
    assert parse(chosen, "f:2", read_columns("question=prompt,solution=chosen")).answer == "4"
    with pytest.raises(UserError, match="f:2: has no column 'Target' .found: Instruction, target"):
        parse(row, "f:2", read_columns("question=Instruction,solution=Target"))


@pytest.mark.parametrize("text", ["", "question", "question=", "colour=x", "text=a,text=b"])
def test_columns_that_say_nothing(text):
    with pytest.raises(UsageError, match="expected NAME=COLUMN, with commas; names are question"):
        read_columns(text)


# ------------------------------------------------------------------------------------ whole chats


def test_a_chat_is_asked_with_its_own_system_prompt_and_earlier_turns(tokenizer_folder):
    """As it is trained: the prompt is the example up to its last answer."""
    tokenizer = Tokenizer(tokenizer_folder)
    whole = [SYSTEM, *turns("1+1?", "2", "and 2 more?", "#### 4")]
    problem = parse_record({"messages": whole}, "f:1")
    ids, is_target = tokenizer.chat(whole)
    prompt = prompt_of(tokenizer, problem, "this one is not used")
    assert ids[: len(prompt)] == prompt and all(is_target[len(prompt):])
    assert tokenizer.decode(ids[len(prompt):]) == "#### 4"
    shots = turns("0+0?", "0")
    asked = prompt_of(tokenizer, problem, None, shots)
    assert asked == tokenizer.prompt("and 2 more?", None, [SYSTEM, *shots, *whole[1:3]])
    plain = Problem("p", "q", "s", "1")
    assert prompt_of(tokenizer, plain, "Add.") == tokenizer.prompt("q", "Add.")


def test_chats_are_told_apart_by_all_that_is_asked(tmp_path):
    """Thirty chats with three different last turns are thirty problems."""
    rows = [{"messages": turns(f"Think of {n}.", "Yes.", f"What is it times {n % 3}?",
                               f"#### {n * (n % 3)}")} for n in range(30)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = load_problems(str(tmp_path / "chats.jsonl"))
    assert len({problem.key for problem in problems}) == 30
    other = parse_record({"messages": [SYSTEM, USER, ANSWER]}, "x")
    assert other.question == "q" and other.key != parse_record({"messages": [USER, ANSWER]},
                                                               "x").key


def test_a_command_shows_what_becomes_of_the_rows(tmp_path, capsys):
    import forms

    rows = [{"question": "q", "answer": "#### 1"}] * 2 + [{"messages": [USER, ANSWER]},
                                                          {"text": "a story"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    forms.main([str(tmp_path / "rows.jsonl")])
    assert capsys.readouterr().out.split("\n")[0] == "       2  problem, with a gold answer"
    (tmp_path / "mine.jsonl").write_text('{"q": "What is 1 + 1?", "s": "#### 2"}\n')
    forms.main([str(tmp_path / "mine.jsonl"), "--columns", "question=q,solution=s"])
    assert capsys.readouterr().out == "       1  problem, with a gold answer\n"
