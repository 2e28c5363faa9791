"""data.py: which tokens are learnt, what the reader takes and refuses, and who sees which example
when.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import data
import synthetic
from data import (Example, Problem, batch_indices, chat_example, chat_examples, document_examples,
                  hold_out, load_problems, pack, parse_record, read_problems, shared_beginning,
                  show, split_by_tokens, to_record)
from runtime import UserError
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer(tokenizer_folder)


def problem(question: str = "What is 12 + 34?", solution: str = "12 + 34 = 46\n#### 46",
            **more) -> Problem:
    return Problem("one", question, solution, "46", **more)


# ---------------------------------------------------------------------------- what the model learns


def test_the_exact_ids_of_a_known_example(tokenizer):
    """The prompt is masked; the answer and its end token are targets; no newline follows."""
    start, end, newline = 300, 301, 198
    system, user, assistant, hi, twelve = 296, 282, 273, [39, 72], [16, 17,
                                                                    30]  # "H" "i", "1" "2" "?"
    prompt = [
        *[start, system, newline, *hi, end, newline],
        *[start, user, newline, *twelve, end, newline],
        *[start, assistant, newline],
    ]
    example = chat_example(tokenizer, problem(question="12?", solution="46"), "Hi")
    assert example.ids == [*prompt, 19, 21, end]  # "4" "6"
    assert example.is_target == [False] * len(prompt) + [True, True, True]
    assert prompt == tokenizer.prompt("12?", "Hi")  # just what the model is given when it is asked


@pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                    reason="set MATHFT_DATA to a folder with qwen2.5/tokenizer.json")
def test_the_exact_ids_with_the_published_tokenizer():
    published = Tokenizer(Path(os.environ["MATHFT_DATA"]) / "qwen2.5")
    example = chat_example(published, problem(question="12?", solution="46"), "Hi")
    start, end, newline = 151644, 151645, 198
    prompt = [
        start,
        8948,
        newline,
        13048,
        end,
        newline,
        start,
        872,
        newline,
        16,
        17,
        30,
        end,
        newline,
        start,
        77091,
        newline,
    ]
    assert example.ids == [*prompt, 19, 21, end]
    assert [i for i, is_target in enumerate(example.is_target) if is_target] == [17, 18, 19]


def test_an_end_token_inside_the_text_is_no_end(tokenizer):
    """Targets are positions: a prompt that spells the end token, or repeats the answer, changes
    nothing.
    """
    example = chat_example(tokenizer, problem(question="<|im_end|> 46", solution="46"), "Hi")
    assert example.ids.count(tokenizer.end_id) == 3  # of system, user and assistant
    assert sum(example.is_target) == 3 and all(example.is_target[-3:])


def test_every_turn_of_the_assistant_is_learnt_in_a_chat(tokenizer):
    turns = [("system", "Hi"), ("user", "1?"), ("assistant", "2"), ("user", "3?"),
             ("assistant", "4")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    example = chat_example(tokenizer, parse_record(record, "file:1"),
                           "this system prompt is not used")
    assert show(tokenizer, example) == (
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n1?<|im_end|>\n"
        "<|im_start|>assistant\n⟦2<|im_end|>⟧\n"
        "<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n⟦4<|im_end|>⟧\n"
        f"({len(example.ids)} tokens, 4 of them targets)")


@pytest.mark.parametrize("weights, train_on, learnt", [
    ((None, None), "all", ["2<|im_end|>", "4<|im_end|>"]), ((0, 1), "all", ["4<|im_end|>"]),
    ((None, None), "last", ["4<|im_end|>"]), ((1, 0), "all", ["2<|im_end|>"]), ((1, 0), "last", []),
    ((0, 0), "all", [])])
def test_turns_that_are_not_learnt(weights, train_on, learnt, tokenizer):
    """By `weight` of a turn, or by --train-on."""
    turns = [("user", "1?"), ("assistant", "2"), ("user", "3?"), ("assistant", "4")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for turn, weight in zip(messages[1::2], weights):
        turn |= {} if weight is None else {"weight": weight}
    problem = parse_record({"messages": messages}, "f:1")
    shown = show(tokenizer, chat_example(tokenizer, problem, "Hi", train_on))
    assert [part.partition("⟧")[0] for part in shown.split("⟦")[1:]] == learnt
    assert parse_record(to_record(problem), "f:1") == problem
    kept, long = chat_examples(tokenizer, [problem], "Hi", 999, train_on)
    assert (len(kept), long) == (bool(learnt), 0)


def test_several_sets_at_once(tmp_path):
    for name in ("a", "b", "c,d"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": name, "answer": "#### 1"}))
    a, b, comma = (str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "c,d"))
    assert [p.question for p in load_problems(f"{a}, {b}")] == ["a", "b"]
    assert [p.question for p in load_problems(f"{a},{b}", limit=1)] == ["a"]
    assert [p.question for p in load_problems(comma)] == ["c,d"]  # a comma in its own name
    assert len(load_problems(f"mini-gsm,{a}")) == 4001
    assert data.short_name(f"{a},{b}") == "a+1" and data.short_name("x/y.json.gz") == "y"
    assert data.short_name("gsm8k") == "gsm8k" and data.short_name(comma) == "c,d"
    with pytest.raises(UserError, match="nowhere.jsonl: no such file"):
        load_problems(f"{a},nowhere.jsonl")


def test_copies_of_a_held_out_problem_are_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(10)] * 3
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out = Counter()
    train, test, _ = data.train_and_test(str(file), None, 0, left_out=left_out)
    assert (len(train), len(test)) == (27, 1)
    assert left_out == {"the same question as a held-out problem": 2}


def test_rows_of_the_test_set_that_are_left_out_are_counted_too(tmp_path):
    rows = [{"question": f"q{n}", "answer": f"#### {n}", "is_correct": n > 2} for n in range(10)]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out = Counter()
    _, tests, _ = data.train_and_test("mini-gsm", str(test), 0, left_out=left_out)
    assert len(tests) == 7
    assert left_out == {"of the test set, marked as wrong by is_correct": 3}


def test_an_example_is_named_after_its_problem(tokenizer):
    assert chat_example(tokenizer, problem(), None).name == "one"


def test_examples_that_are_too_long_are_dropped_and_counted(tokenizer):
    problems = [
        problem(),
        problem(solution="and so " * 50 + "#### 46"),
        problem(solution="#### 46")
    ]
    lengths = [len(chat_example(tokenizer, p, None).ids) for p in problems]
    kept, dropped = chat_examples(tokenizer, problems, None, max_length=max(lengths[0], lengths[2]))
    assert [len(example.ids) for example in kept] == [lengths[0], lengths[2]] and dropped == 1
    kept, dropped = chat_examples(tokenizer, problems, None, max_length=lengths[2] - 1)
    assert (kept, dropped) == ([], 3)


def test_a_problem_without_a_solution_is_not_trained_on(tokenizer):
    kept, dropped = chat_examples(tokenizer, [problem(solution=""), problem()], None, 1000)
    assert len(kept) == 1 and dropped == 0


# --------------------------------------------------------------------------------- forms of records


@pytest.mark.parametrize(
    "record, question, solution, answer",
    [({"question": "q", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"
       }, "q", "2 + 3 = <<2+3=5>>5\n#### 5", "5"),
     ({"problem": "q", "solution": "so $\\boxed{\\frac12}$.", "answer": "\\frac{1}{2}"
       }, "q", "so $\\boxed{\\frac12}$.", "\\frac{1}{2}",
      ), ({"problem": "q", "solution": "so $\\boxed{7}$."}, "q", "so $\\boxed{7}$.", "7"),
     ({"problem": "q", "answer": 7}, "q", "", "7"),
     ({"problem": "q", "answer": 0.5}, "q", "", "0.5"),
     ({"query": "q", "response": "The answer is: $8$"}, "q", "The answer is: $8$", "8"),
     ({"question": "q", "answer": 5}, "q", "5", "5"), ], ids=[
         "GSM8K", "MATH", "MATH without answer", "evaluated only", "a decimal", "MetaMath",
         "a bare number"
     ],
)
def test_records_are_told_apart_by_their_keys(record, question, solution, answer):
    found = parse_record(record, "file.jsonl:3")
    assert found == Problem("file.jsonl:3", question, solution, answer)


def test_what_else_a_record_says_is_kept():
    math500 = {
        "problem": "q", "solution": "s", "answer": "1", "subject": "Algebra", "level": 5,
        "unique_id": "test/9"
    }
    found = parse_record(math500, "file:1")
    assert (found.id, found.level, found.subject) == ("test/9", "5", "Algebra")
    published_math = {
        "problem": "q", "solution": "$\\boxed{1}$", "level": "Level 2", "type": "Geometry"
    }
    assert parse_record(published_math, "file:1").subject == "Geometry"
    assert parse_record({"id": 7, "query": "q", "response": "1"}, "file:1").id == "7"


def test_a_chat_is_asked_with_all_before_its_last_answer():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turns += [{"role": "user", "content": "c"}, {"role": "assistant", "content": "so #### 4"}]
    found = parse_record({"messages": turns}, "file:1")
    assert (found.question, found.solution, found.answer) == (
        "user: a\n\nassistant: b\n\nuser: c", "so #### 4", "4")
    assert found.asked == turns[:-1] and len(found.messages) == 4


GOOD = json.dumps({"question": "q", "answer": "#### 1"})


@pytest.mark.parametrize(
    "content, said",
    [(f"{GOOD}\n" * 6 + '{"question": "q", "answer"\n' + f"{GOOD}\n",
      ":7: not valid JSON (Expecting ':' delimiter)",
      ),
     (f"{GOOD}\n\n" + '{"q": 1, "a": 2}\n',
      ":3: no known keys (found: q, a); expected question and answer, problem and",
      ), (f"{GOOD}\n{{}}\n", ":2: no known keys (found: none)"),
     ('{"question": "alone"}\n', ":1: no known keys (found: question)"),
     ("", ": holds no problems"), ("\n \n", ": holds no problems"), ("[]", ": holds no problems"),
     (f"{GOOD}\n3\n", ":2: expected a JSON object, found int"),
     (f'{GOOD}\n"text"\n', ":2: expected a JSON object, found str"),
     ('{"question": ["q"], "answer": "1"}\n', ":1: question is list, expected text"),
     ('{"question": "q", "answer": null}\n', ":1: no known keys (found: question, answer)"),
     ('{"problem": "q", "answer": true}\n', ":1: answer is bool, expected text"),
     ('{"messages": "hi"}\n', ":1: messages must be a list of turns"),
     ('{"messages": []}\n', ":1: messages must be a list of turns"),
     ('{"messages": [{"role": "user"}]}\n', ":1: each turn of messages needs a role and a content"),
     ('{"messages": [{"role": "tool", "content": ""}]}\n', ":1: unknown role 'tool'"),
     ('{"messages": [{"role": "user", "content": "q"}]}\n',
      ":1: messages must end with a turn of the assistant"),
     (f"{GOOD}\n" + '{"question": ' * 100_000, ":2: not valid JSON"),
     ("[" * 100_000, ":1: not valid JSON"),
     (f"{GOOD}\n" + '{"question": ' + "9" * 5000 + "}", ":2: not valid JSON"),
     (f"{GOOD}\n" + '{"question": "half \\ud83d", "answer": "1"}', ":2: not valid JSON"),
     (f"[{GOOD},\n{GOOD}\n{GOOD}]", ":3: not valid JSON"),
     (f"[{GOOD}, 3]", ", record 2: expected a JSON object, found int"), ], ids=[
         *("broken on line 7", "unknown keys", "no keys", "a key too few", "empty", "blank",
           "empty list", "a number"), *("a string", "a list as text", "null", "true",
                                        "chat of text", "empty chat", "turn without content"),
         *("unknown role", "ends with a question", "deep", "deep list", "long number",
           "half a character"), *("broken list", "number in a list"),
     ],
)
def test_an_error_names_the_file_and_the_line(content, said, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        load_problems(str(file))
    assert f"{file}{said}" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError) as error:
        load_problems("gsm9k")
    for name in ("mini-math", "gsm8k", "math500", "aug-math", "math-perturb-hard",
                 "hub:owner/name/path.jsonl"):
        assert f" {name}," in str(error.value) and name in data.known_names()


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(
            UserError, match=
            "nowhere.jsonl: no such file, and no data set of that name; known are mini-gsm, mini"):
        load_problems("nowhere.jsonl")
    with pytest.raises(UserError, match="no such file"):
        load_problems(str(tmp_path))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(UserError, match="bytes.jsonl:1: cannot be read as UTF-8 text"):
        load_problems(str(tmp_path / "bytes.jsonl"))


def test_what_the_reader_takes(tmp_path):
    """A byte-order mark, blank lines, Windows' line ends, no last line end, and line separators
    inside a string.
    """
    file = tmp_path / "p.jsonl"
    records = [{"question": f"q\u2028{n}\u0085\x1c", "answer": f"#### {n}"} for n in range(3)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    assert "\u2028" in lines[0]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    found = read_problems(file)
    assert [p.question for p in found] == [record["question"] for record in records]
    assert [p.answer for p in found] == ["0", "1", "2"]
    assert [p.id for p in found] == [f"{file}:1", f"{file}:3", f"{file}:5"]
    assert [p.answer for p in load_problems(str(file), limit=2)] == ["0", "1"]


def test_a_json_list_is_the_same_as_lines(tmp_path):
    records = [{"query": f"q{n}", "response": f"#### {n}"} for n in range(3)]
    (tmp_path / "p.json").write_text("\n" + json.dumps(records, indent=2))
    found = read_problems(tmp_path / "p.json")
    assert [p.answer
            for p in found] == ["0", "1", "2"] and found[1].id == f"{tmp_path / 'p.json'}, record 2"


def test_embedded_sets_come_with_their_answers():
    train, test = load_problems("mini-gsm", limit=8), load_problems("mini-gsm", "test", limit=8)
    assert [p.level for p in train] == ["2", "3", "4", "5"] * 2
    assert all(p.solution.endswith(f"#### {p.answer}") for p in train + test)
    assert len(load_problems("mini-math", "test")) == data.EMBEDDED_COUNTS["test"] == 500
    assert load_problems("mini-math", seed=1, limit=5) != load_problems("mini-math", limit=5)
    assert [p.question for p in load_problems("mini-math", limit=3)] == [
        r["problem"] for r in synthetic.problems("mini-math", "train", 3)
    ]


# ------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("count, batch_size", [(12, 4), (10, 4), (7, 1), (5, 5), (3, 8), (1, 4)])
def test_every_example_once_an_epoch(count, batch_size):
    """Also where an epoch ends inside a batch, and where a batch is larger than the set."""
    epochs = 6
    order = [
        i for step in range(-(-epochs * count // batch_size))
        for i in batch_indices(step, batch_size, count, seed=3)
    ]
    for epoch in range(epochs):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_batch_is_a_function_of_seed_and_step():
    assert batch_indices(5, 4, 10, seed=0) == batch_indices(5, 4, 10, seed=0)
    epochs = [[i for step in range(n, n + 10) for i in batch_indices(step, 10, 100, seed)]
              for seed in (0, 1) for n in (0, 10)]
    assert len({tuple(order) for order in epochs}) == 4  # other seed, other epoch: another order
    assert all(Counter(order) == Counter(range(100)) for order in epochs)
    assert all(len(batch_indices(step, 8, 3, 0)) == 8 for step in range(20))


def document(length: int, targets: int = 1, first: int = 0) -> Example:
    return Example(list(range(first, first + length)),
                   [False] * (length - targets) + [True] * targets)


def test_micro_batches_keep_all_examples_within_the_limit():
    examples = [document(length) for length in (5, 30, 7, 12, 5, 100, 9)]
    groups = split_by_tokens(examples, 30)
    assert [[len(e.ids) for e in group] for group in groups] == [[5, 5, 7, 9], [12], [30],
                                                                 [100]]  # 100 stands alone
    assert sorted(id(e) for group in groups for e in group) == sorted(map(id, examples))
    assert split_by_tokens(examples, 10_000) == [sorted(examples, key=lambda e: len(e.ids))]


def test_a_packed_row_knows_who_predicts_what():
    """Three documents end to end, without their last tokens; a target is predicted from the token
    before it.

    Behind them stands filler, and among the predictors too: shapes come in steps of 16.
    """
    chat = Example([20, 21, 22, 23, 24], [False, True, True, False, True])  # targets in two places
    whole = Example([30, 31, 32], [True, True, True])  # its first token cannot be predicted
    batch = pack([document(4, targets=2, first=10), chat, whole])
    assert batch.ids.tolist() == [10, 11, 12, 20, 21, 22, 23, 30, 31] + [0] * 7
    assert batch.lengths == [3, 4, 2 + 7]
    assert batch.predictors.tolist() == [1, 2, 3, 4, 6, 7, 8] + [15] * 9
    assert batch.targets.tolist() == [12, 13, 21, 22, 24, 31, 32]
    assert batch.ids[batch.predictors][:7].tolist() == [11, 12, 20, 21, 23, 30, 31]
    full = pack([document(17, targets=16)])  # nothing needs to be filled up
    assert (len(full.ids), full.lengths, len(full.predictors)) == (16, [16], 16)


# -------------------------------------------------------------------------------------------- shown


def test_an_example_is_shown_with_its_targets_marked(tokenizer):
    text = show(tokenizer, chat_example(tokenizer, problem(), "Hi"))
    assert text.startswith(
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\nWhat is 12 + 34?<|im_end|>\n")
    assert "<|im_start|>assistant\n⟦12 + 34 = 46\n#### 46<|im_end|>⟧\n(" in text
    assert text.endswith("of them targets)")


def test_a_shown_question_cannot_steer_the_terminal(tokenizer):
    made = chat_example(tokenizer, Problem("a", "What is\x1b[2J\r 1?", "\x1b]0;2", "2"), "Hi")
    assert "user\nWhat is [2J  1?<|im_end|>" in show(tokenizer, made)
    assert "⟦ ]0;2<|im_end|>⟧" in show(tokenizer, made)


def test_a_common_beginning_stands_once():
    """Up to the first target of any document, and never the whole of one."""
    begin = [50, 51, 52, 53]
    one, two = (Example(begin + rest, [False] * 5 + [True] * (len(rest) - 1))
                for rest in ([1, 2, 3], [4, 5]))
    batch = pack([one, two])
    assert (batch.shared, batch.lengths) == (4, [2, 1 + 9])  # the last with the filler
    assert batch.ids.tolist() == [*begin, 1, 2, 4] + [0] * 9
    assert batch.ids[batch.predictors][:3].tolist() == [1, 2, 4
                                                        ] and batch.targets.tolist() == [2, 3, 5]
    early = Example(begin + [9],
                    [False] * 3 + [True] * 2)  # 53 is a target here: 52 must stand in each document
    batch = pack([one, early])
    assert (batch.shared, batch.lengths) == (2, [4, 2 + 8])
    assert batch.ids[batch.predictors][:4].tolist() == [1, 2, 52, 53]
    assert pack([one]).shared == 0  # alone there is nothing to share


@pytest.mark.parametrize("documents, shared",
                         [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1),
                          ([[1, 2], [1, 2]], 1), ([[1], [1]], 0), ([[], [1]], 0), ([[5], [6]], 0),
                          ([[1, 2, 3]], 0), ([[7, 8, 9]] * 3 + [[7, 1, 9]], 1)])  # fmt: skip
def test_the_shared_beginning_leaves_a_token_of_each(documents, shared):
    assert shared_beginning(documents) == shared


def test_a_question_with_a_solution_is_maths_form_and_null_is_nothing():
    problem = parse_record(
        {"id": None, "level": None, "question": "3+4?", "solution": "3+4 = 7", "answer": "7"},
        "f:1")
    assert (problem.id, problem.level, problem.solution, problem.answer) == ("f:1", "", "3+4 = 7",
                                                                             "7")


# ------------------------------------------------------------------------------ plain documents


def test_every_token_of_a_document_but_the_first_is_a_target(tokenizer_folder):
    tokenizer = Tokenizer(tokenizer_folder)
    problems = [Problem("t", "", "", "", text="Ana has 3 apples."),
                Problem("q", "What is 1 + 1?", "#### 2", "2")]
    (text, asked), dropped = document_examples(tokenizer, problems, None, 100)
    assert dropped == 0 and (text.name, asked.name) == ("t", "q")
    assert text.ids == [*tokenizer.encode("Ana has 3 apples."), tokenizer.end_of_text]
    assert tokenizer.decode(asked.ids) == "Question: What is 1 + 1?\nAnswer: #### 2"
    for example in (text, asked):
        assert example.is_target == [False] + [True] * (len(example.ids) - 1)


@pytest.mark.parametrize("longest", [3, 4, 7, 50, 1000])
def test_long_documents_are_cut_into_windows_and_none_is_dropped(tokenizer_folder, longest):
    """The windows follow each other without overlap, of nearly one length."""
    tokenizer = Tokenizer(tokenizer_folder)
    long = Problem("t", "", "", "", text="Ana has 3 apples and eats one. " * 5)
    windows, _ = document_examples(tokenizer, [long], None, longest)
    ids = [token for window in windows for token in window.ids]
    assert ids == [*tokenizer.encode(long.text), tokenizer.end_of_text]
    lengths = [len(window.ids) for window in windows]
    assert max(lengths) <= longest and max(lengths) - min(lengths) <= 1 and min(lengths) > 1
    assert pack(windows).targets.numel() == len(ids) - len(windows)


def test_plain_texts_are_read_and_written(tmp_path):
    read = parse_record({"text": "Ana has 3 apples.", "id": "a"}, "here")
    assert (read.text, read.question, read.answer) == ("Ana has 3 apples.", "", "")
    assert to_record(read) == {"id": "a", "text": "Ana has 3 apples."}
    for record, said in (({"text": " "}, "here: text is "
                                         "empty"), ({"text": None}, "no known keys")):
        with pytest.raises(UserError, match=said):
            parse_record(record, "here")
    with pytest.raises(UserError, match="texts without an answer cannot be held out"):
        hold_out([read, read])


def test_weights_stand_beside_their_targets():
    plain = Example([1, 2, 3, 4], [False, True, False, True])
    heavy = replace(plain, weights=(0.5, 2.0))
    assert pack([plain]).weights is None
    assert pack([plain, heavy]).weights.tolist() == [1.0, 1.0, 0.5, 2.0]


# ------------------------------------------------------------- hold-out, and records of problems


def numbered(count: int) -> list[Problem]:
    return [Problem(str(n), f"question {n}", "s", "1") for n in range(count)]


@pytest.mark.parametrize("count, held", [(2, 1), (9, 1), (100, 10), (1999, 199), (2000, 200),
                                         (5000, 200)])
def test_a_tenth_is_held_out_and_200_at_most(count, held):
    train, test = data.hold_out(numbered(count))
    assert len(test) == held and len(train) == count - held
    assert not {p.question for p in train} & {p.question for p in test}


def test_one_problem_cannot_be_on_both_sides():
    with pytest.raises(UserError, match="one problem alone cannot be held out and trained on"):
        data.hold_out(numbered(1) * 3)


def test_who_is_held_out_depends_on_the_question_alone():
    """Not on the order, and not on how often a question stands in the file: all its copies go, one
    is measured."""
    problems = numbered(300)
    _, test = data.hold_out(problems)
    chosen = {p.question for p in test}
    twice = [Problem(f"copy {p.id}", p.question, "another solution", "1") for p in problems]
    train, again = data.hold_out(list(reversed(problems)) + twice)
    assert {p.question for p in again} == chosen and len(again) == 30
    assert len(train) == 2 * 270 and not chosen & {p.question for p in train}
    # A file that grows keeps most of its test problems.
    assert len(chosen & {p.question for p in data.hold_out(numbered(320))[1]}) > 25


def test_what_cannot_be_graded_is_not_held_out():
    problems = [Problem(str(n), f"question {n}", "s", "1" if n % 2 else "") for n in range(200)]
    train, test = data.hold_out(problems)
    assert len(test) == 10 and all(p.answer for p in test) and len(train) == 190


@pytest.mark.parametrize("more", [{}, {"level": "3", "subject": "Algebra"},
                                  {"origin": {"recipe": "rft", "parent": "7", "seed": 0}}])
def test_a_problem_comes_back_from_its_record(tmp_path, more):
    problems = [
        Problem("one", "What is 12 + 34?", "12 + 34 = 46\n#### 46", "46", **more),
        Problem("two", "q", "", "5")
    ]
    data.write_problems(tmp_path / "made.jsonl", problems)
    assert read_problems(tmp_path / "made.jsonl") == problems


def test_a_chat_comes_back_from_its_record(tmp_path):
    record = {
        "id": "c", "messages": [{"role": "user", "content": "1+1?"},
                                {"role": "assistant", "content": "#### 2"}]
    }
    assert data.to_record(parse_record(record, "here")) == record


@pytest.mark.parametrize("number", ["0.00001", "1e22", "1.50", "12345678901234567890.5", "-0.0"])
def test_a_gold_number_keeps_its_spelling(number, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"problem": "a", "answer": ' + number + "}\n")
    assert read_problems(path)[0].answer == number
    data.write_problems(path, read_problems(path))
    assert read_problems(path)[0].answer == number


@pytest.mark.parametrize("text, said", [
    ('{"problem": "a", "answer": 1}\n{"problem": "NaN", "answer": NaN}', ":2: not valid JSON"),
    ('[{"problem": "a", "answer": 1},\n{"problem": "b", "answer": -Infinity}]', ":2: not valid"),
    ('{"problem": "a", "answer": 1}\n{"question": " ", "answer": "2"}', ":2: question is empty"),
    ('{"problem": "", "answer": 1}', ":1: question is empty"),
])
def test_no_numbers_and_blank_questions_are_errors_with_their_line(text, said, tmp_path):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(UserError, match="set.json" + said):
        read_problems(path)


def test_overlap_is_told_by_the_question_and_not_by_the_id(tmp_path):
    rows = [{"id": "1", "question": q, "answer": "#### 1"} for q in ("one?", "two?")]
    for name, row in zip("ab", rows):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    both = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"
    problems, _, repeated = data.train_and_test(both, str(tmp_path / "a.jsonl"), 0)
    assert [problem.key in repeated for problem in problems] == [True, False]


def test_what_describes_the_examples_of_a_training():
    """A hash of the texts, and one of what they are trained for; names are for messages alone."""
    class Asked(Example):
        gold = "7"

    plain = Example([1, 2], [False, True], "a")
    first = data.describe_examples([plain])
    assert first == data.describe_examples([replace(plain, name="b")])
    for other, changed in ((replace(plain, ids=[1, 3]), "sha256"),
                           (replace(plain, weights=(0.5, )), "aims"),
                           (Asked([1, 2], [False, True]), "aims")):
        found = data.describe_examples([other])
        assert [name for name in first if found[name] != first[name]] == [changed]
