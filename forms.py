r"""From a record, as others publish it, to a problem: one function for each form.

    python forms.py problems.jsonl         # what becomes of the rows of a file
    python forms.py problems.jsonl --columns question=Q,solution=S

The columns of a record tell the form (table FORMS): GSM8K, MATH, MetaMath, chats (`messages`),
ShareGPT, prompt and completion, Alpaca, OpenMathInstruct, SVAMP, DAPO, plain texts. `--columns`
names the columns of any other set.

1. Upper and lower case are one, and a null column is absent.
2. A column that changes the meaning is honoured (a system prompt, turns that are not learnt) or
   refused with file and line (calls of tools, pictures, hidden reasoning).
3. A gold answer is what a column or the text itself states as one. It is never guessed from the
   last number of a text. A problem without one, such as a proof, is trained on and not measured.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from answers import BOXES, LOWER, extract_answer
from data import Problem
from flags import flag, parse_flags, run_command
from runtime import UsageError, UserError
from tokenizer import MARKERS

NO_ANSWERS = ("proof", "notfound", "not found", "n/a")  # what sets write where there is no answer
GOLDS = ("expected_answer", "ground_truth", "answer")  # columns of a gold answer, the first wins
SYSTEMS = ("system", "system_prompt", "system_message")  # columns of a system prompt
MOST_WORDS = 10  # of an answer; a text with more is prose
# Columns that change the meaning of a record or a turn, if they hold anything.
REFUSED = ("tools", "functions", "tool_calls", "function_call", "tool_call_id", "reasoning_content",
           "thinking", "image", "images", "audio", "video", "videos", "chosen", "rejected")
REFUSED_IN_TURNS = (*REFUSED, "reasoning", "train_detail")
# What a reader of the question must see too. The forms know no place for it.
BESIDE_QUESTION = ("choices", "options", "context", "passage")
WRONG = ("is_correct", "correct", "label")  # of a row that is not to be learnt, if it says false
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
         "assistant": "assistant", "gpt": "assistant"}
# What --columns can name.
NAMES = ("question", "solution", "answer", "system", "text", "messages", "id", "level", "subject")


class LeftOut(Exception):
    """A record that is in order and marked as not to be used; its text is the reason."""


# ------------------------------------------------------------------------------------ from a record


def parse(record, where: str, columns: dict[str, str] | None = None) -> Problem:
    """The problem of a record; its columns tell the form apart.

    `where` stands in messages, and is the id of a record without one. `columns` gives the column of
    each of our names. Raises UserError if the form is unknown or holds what cannot be honoured, and
    LeftOut.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(record).__name__}")
    row = renamed(record, columns, where) if columns else plain_row(record)
    refuse_meanings(row, where)
    read = next((read for keys, read in FORMS if keys <= row.keys()), None)
    wrong = next((key for key in WRONG if row.get(key) is False), None)
    # Of an evaluation a better line is said; a text's label can mean anything.
    if wrong and read not in (evaluation, document):
        raise LeftOut(f"marked as wrong by {wrong}")
    if read:
        return read(row, where)
    found = ", ".join(map(str, list(record)[:6])) or "none"
    raise UserError(f"{where}: no known keys (found: {found}); expected question and answer, "
                    "problem and solution or answer, query and response, instruction and output, "
                    "prompt and completion, messages, conversations, or text; or name them: "
                    "--columns question=...,solution=...")


def plain_row(record: dict) -> dict:
    """The record with lower-case keys and without nulls; a key that is lower case already wins."""
    row = {str(key).strip().lower(): value for key, value in record.items() if value is not None}
    return row | {key: value for key, value in record.items()
                  if value is not None and key in row}


def renamed(record: dict, columns: dict[str, str], where: str) -> dict:
    """The record under our names, by --columns; a column that a record lacks is an error."""
    lacking = [column for column in columns.values() if column not in record]
    if lacking:
        found = ", ".join(map(str, list(record)[:12])) or "none"
        raise UserError(f"{where}: has no column {lacking[0]!r} (found: {found}); see --columns")
    row = {name: record[column] for name, column in columns.items() if record[column] is not None}
    if "question" in row:  # the form in which `answer` is the gold one
        row["problem"] = row.pop("question")
    return row


def read_columns(text: str) -> dict[str, str]:
    """`question=instruction,solution=output` as a dictionary. Raises UsageError."""
    parts = [part.partition("=") for part in text.split(",")]
    columns = {name.strip(): column.strip() for name, _, column in parts}
    wrong = [name for name, column in columns.items() if name not in NAMES or not column]
    if wrong or len(columns) < len(parts):
        raise UsageError(f"--columns {text}: expected NAME=COLUMN, with commas; names are "
                         f"{', '.join(NAMES)}")
    return columns


def refuse_meanings(row: dict, where: str, refused: tuple[str, ...] = REFUSED) -> None:
    """Raise UserError for a column that would change the meaning, and that nothing here honours."""
    for key in refused:
        if key in row and holds(row[key]):
            raise UserError(f"{where}: has {key}, which is not supported; remove that record, or "
                            "the column if it does not matter")


def holds(value) -> bool:
    """Whether a column says anything: tables fill up what is not there with blanks, empty lists and
    structures of these."""
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if isinstance(value, list) else [value]
    return any(part.strip() if isinstance(part, str) else part for part in parts)


def extras(row: dict, where: str) -> dict:
    """What a problem keeps besides its texts."""
    return {"id": str(_first(row, "id", "unique_id") or where), "level": str(_first(row, "level")),
            "subject": str(_first(row, "subject", "type")),
            "origin": row["origin"] if isinstance(row.get("origin"), dict) else {}}


def _first(row: dict, *keys: str):
    """The first of these columns that is there, else an empty text."""
    return next((row[key] for key in keys if key in row), "")


def text_of(row: dict, key: str, where: str) -> str:
    """A column as text; numbers are allowed, since some sets write answers so."""
    value = row[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not (number and abs(value) < float("inf")):  # nor NaN
        raise UserError(f"{where}: {key} is {type(value).__name__}, expected text")
    return str(value)


# ------------------------------------------------------------------------------------- gold answers


def stated_answer(solution: str) -> str | None:
    """The answer that a text marks or names as such; None if there is only a last number, or
    nothing."""
    marked = extract_answer(solution, strict=True)
    lower = solution.translate(LOWER)
    at = max(lower.rfind("answer is"), lower.rfind("answer:"), ("\n" + solution).rfind("\nA:"))
    # Something must follow these words: else the text was cut there. Half a box is no answer
    # either.
    named = at >= 0 and extract_answer(solution[at:])
    answer = marked or (extract_answer(solution) if named else None)
    return answer if answer and not any(mark in answer for mark in ("####", *BOXES)) else None


def gold_of(solution: str) -> str:
    """The gold answer that a solution states, or that is all of it; else an empty text."""
    text = without_markers(solution)
    stated = stated_answer(text)
    if stated is not None:
        return stated
    bare = text.strip()
    if not bare or "\n" in bare or len(bare) > 200:
        return ""
    words = count_words(bare)
    if words == 0:
        return bare
    # A number with its unit.
    return extract_answer(bare) or "" if words <= 2 and bare.lstrip("-+$")[:1].isdigit() else ""


def given_gold(answer: str) -> str:
    """The gold answer in a column that holds one; empty if it holds prose, or says that there is
    none."""
    text = without_markers(answer)
    if text.strip(" \n\t.$*").lower() in NO_ANSWERS:
        return ""
    return gold_of(text) if is_prose(text) else text


def is_prose(text: str) -> bool:
    """Whether a text is more than an answer: many words, several lines (but for a matrix), or an
    answer marked in it."""
    lines = "\n" in text.strip() and "\\begin" not in text
    return (lines or count_words(text) > MOST_WORDS
            or extract_answer(text, strict=True) is not None)


def count_words(text: str) -> int:
    r"""Words of two letters or more; a command such as \frac does not count."""
    count, at = 0, 0
    while at < len(text):
        end = at
        while end < len(text) and text[end].isalpha():
            end += 1
        count += end - at > 1 and text[at - 1 : at] != "\\"
        at = end + 1
    return count


def without_markers(text: str) -> str:
    """The text without what spells a marker of Qwen's chats: such letters are part of no answer."""
    for marker in MARKERS:
        text = text.replace(marker, "")
    return text


# ------------------------------------------------------------------------------------------- chats


def chat_of(turns: list[dict], row: dict, where: str, gold: str | None = None) -> Problem:
    """The problem of a chat: it is asked with all that stands before its last answer.

    A `gold` wins over one that is read from the text. Only a chat with a gold, if an empty one, may
    end with the user's turn.
    """
    column = system_column(row)
    if column:
        first = {"role": "system", "content": text_of(row, column, where)}
        if turns[0]["role"] != "system":
            turns = [first, *turns]
        elif turns[0] != first:
            raise UserError(f"{where}: has a system prompt in a column and another in its turns; "
                            "remove one of them")
    ends = turns[-1]["role"] == "assistant"
    if not ends and gold is None:
        raise UserError(f"{where}: messages must end with a turn of the assistant, which is "
                        "learnt, or have an answer beside them, by which one is graded")
    asked = turns[:-1] if ends else turns
    if not asked or asked[-1]["role"] != "user":
        raise UserError(f"{where}: the last answer follows no turn of the user; mend or remove "
                        "that record")
    if not asked[-1]["content"].strip():
        raise UserError(f"{where}: the last turn of the user is empty; mend or remove that record")
    plain = [turn for turn in asked if turn["role"] != "system"]
    question = plain[0]["content"] if len(plain) == 1 else "\n\n".join(
        f"{turn['role']}: {turn['content']}" for turn in plain)
    solution = turns[-1]["content"] if ends else ""
    return Problem(question=question, solution=solution, messages=tuple(turns),
                   answer=gold_of(solution) if gold is None else gold, **extras(row, where))


def system_column(row: dict) -> str | None:
    """The column that holds a system prompt, if one does."""
    return next((key for key in SYSTEMS if holds(row.get(key))), None)


def turns_of(messages, where: str) -> list[dict]:
    """The turns of a chat, checked: {"role", "content"}, and `train` false if one is not learnt.

    ShareGPT calls role and content from and value.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of turns")
    theirs = isinstance(messages[0], dict) and "from" in messages[0]
    role, content = ("from", "value") if theirs else ("role", "content")
    turns = []
    for turn in messages:
        if isinstance(turn, dict):
            refuse_meanings(turn, where, REFUSED_IN_TURNS)
        text = _content(turn.get(content), where) if isinstance(turn, dict) else None
        if text is None or not isinstance(turn.get(role), str):
            raise UserError(f"{where}: each turn of messages needs a {role} and a {content}, both "
                            "text")
        if turn[role] not in ROLES:
            raise UserError(f"{where}: unknown role {turn[role]!r} in messages; "
                            "expected system, user or assistant")
        turns.append({"role": ROLES[turn[role]], "content": text})
        empty = ROLES[turn[role]] == "assistant" and not text.strip()  # would teach to end at once
        if empty or not _is_learnt(turn, turns[-1]["role"], where):
            turns[-1]["train"] = False
    return turns


def _content(value, where: str) -> str | None:
    """The text of a turn, its parts joined; None if it has none."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(
                part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise UserError(f"{where}: a turn has a part that is no text ({str(kind)[:40]!r}); "
                            "remove that record")
    return "".join(part["text"] for part in value)


def _is_learnt(turn: dict, role: str, where: str) -> bool:
    """What `weight`, `train` or `loss` of a turn says; without them, all of the assistant's are."""
    for key in ("weight", "train", "loss"):
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1) or value and role != "assistant":
            raise UserError(f"{where}: a turn of the {role} has {key} {str(value)[:20]!r}; 0 or 1 "
                            "for the assistant, and 0 for others, are understood")
        return bool(value) or role != "assistant"
    return True


# ------------------------------------------------------------------------------------------- forms


def worked(row: dict, where: str, question: str, solution: str, gold: str | None = None) -> Problem:
    """A problem of one question; with a system prompt beside it, a chat."""
    if not question.strip():
        raise UserError(f"{where}: question is empty; mend or remove that record")
    beside = next((key for key in BESIDE_QUESTION if holds(row.get(key))), None)
    if beside:
        raise UserError(f"{where}: has {beside} beside its question, which would not be asked; "
                        "write it into the question, or remove the column if it does not matter")
    answer = gold_of(solution) if gold is None else gold
    if not system_column(row):
        return Problem(question=question, solution=solution, answer=answer, **extras(row, where))
    turns = [{"role": "user", "content": question}]
    if solution.strip():
        turns.append({"role": "assistant", "content": solution})
    return chat_of(turns, row, where, answer)


def gold_beside(row: dict, where: str, solution: str = "") -> str | None:
    """The gold answer in a column of its own; None if there is no such column but that of the
    `solution`."""
    model = row.get("reward_model")
    if isinstance(model, dict) and model.get("ground_truth") is not None:
        return given_gold(text_of(model, "ground_truth", where))
    key = next((key for key in GOLDS if key in row and key != solution), None)
    if key is None:
        return None
    one = row[key] if isinstance(row[key], list) and len(row[key]) == 1 else [row[key]]
    return given_gold(text_of({key: one[0]}, key, where))


def evaluation(row: dict, where: str) -> Problem:
    """A line of our own generations.jsonl: right or wrong, its text is no solution to learn."""
    raise UserError(f"{where}: is a completion of an evaluation; python augment.py make rft writes "
                    "the right ones as training rows, and --objective verifier reads it as it is")


def chat(row: dict, where: str) -> Problem:
    """`messages`, or `conversations` (ShareGPT): role and content, or from and value."""
    turns = row["messages"] if "messages" in row else row["conversations"]
    return chat_of(turns_of(turns, where), row, where, gold_beside(row, where))


def prompt_completion(row: dict, where: str) -> Problem:
    """`prompt` and `completion`, both text or both turns (TRL)."""
    if isinstance(row["prompt"], list):
        done = row["completion"]
        done = done if isinstance(done, list) else [{"role": "assistant", "content": done}]
        return chat_of(turns_of(row["prompt"] + done, where), row, where, gold_beside(row, where))
    return worked(row, where, text_of(row, "prompt", where), text_of(row, "completion", where),
                  gold_beside(row, where))


def alpaca(row: dict, where: str) -> Problem:
    """`instruction`, `input` (often empty) and `output`; LLaMA-Factory adds `history`."""
    question, solution = (text_of(row, key, where) for key in ("instruction", "output"))
    if str(row.get("input", "")).strip():
        question = f"{question}\n\n{text_of(row, 'input', where)}".lstrip()
    if not row.get("history"):
        return worked(row, where, question, solution, gold_beside(row, where))
    if not isinstance(row["history"], list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in row["history"]):
        raise UserError(f"{where}: history is no list of pairs of question and answer")
    texts = [text for pair in row["history"] for text in pair] + [question, solution]
    turns = [{"role": ("user", "assistant")[number % 2], "content": text}
             for number, text in enumerate(texts)]
    return chat_of(turns_of(turns, where), row, where, gold_beside(row, where))


def rewarded(row: dict, where: str) -> Problem:
    """`prompt` and `reward_model` (DAPO and what verl reads): a question and its gold answer."""
    gold = gold_beside(row, where)
    if gold is None:
        raise UserError(f"{where}: reward_model holds no ground_truth")
    if isinstance(row["prompt"], list):
        turns = turns_of(row["prompt"], where)
        if len(turns) > 1 or turns[0]["role"] != "user":
            return chat_of(turns, row, where, gold)
        return worked(row, where, turns[0]["content"], "", gold)
    return worked(row, where, text_of(row, "prompt", where), "", gold)


def math(row: dict, where: str) -> Problem:
    """`problem` or `question`, `solution`, and perhaps `answer`."""
    question = next(key for key in ("problem", "question", "prompt") if key in row)
    return worked(row, where, text_of(row, question, where), text_of(row, "solution", where),
                  gold_beside(row, where))


def generated(row: dict, where: str) -> Problem:
    """`generated_solution` and `expected_answer` (OpenMathInstruct)."""
    return math(row | {"solution": row["generated_solution"]}, where)


def graded(row: dict, where: str) -> Problem:
    """`problem` and `answer`: a question to be evaluated; or the answer is a whole solution."""
    text = text_of(row, "answer", where)
    question = text_of(row, "problem", where)
    if is_prose(text):
        return worked(row, where, question, text, gold_beside(row, where, "answer"))
    return worked(row, where, question, "", gold_beside(row, where))


def svamp(row: dict, where: str) -> Problem:
    """`Body`, `Question`, `Answer`: the story stands before the question."""
    question = " ".join(text_of(row, key, where).strip() for key in ("body", "question"))
    return worked(row, where, question, "", given_gold(text_of(row, "answer", where)))


def pair(question: str, solution: str) -> Callable[[dict, str], Problem]:
    """A question and a solution, which states its answer if no column does."""
    return lambda row, where: worked(row, where, text_of(row, question, where),
                                     text_of(row, solution, where),
                                     gold_beside(row, where, solution))


def document(row: dict, where: str) -> Problem:
    """`text`: a plain text."""
    text = text_of(row, "text", where)
    if not text.strip():
        raise UserError(f"{where}: text is empty; remove that record")
    return Problem(question="", solution="", answer="", text=text, **extras(row, where))


# A record has the first form of which it has the columns; `text` is last: many sets have it too.
FORMS: tuple[tuple[set[str], Callable[[dict, str], Problem]], ...] = (
    ({"gold", "finish", "text"}, evaluation),
    ({"messages"}, chat),
    ({"conversations"}, chat),
    ({"prompt", "completion"}, prompt_completion),
    ({"instruction", "output"}, alpaca),
    ({"problem", "generated_solution"}, generated),
    ({"question", "generated_solution"}, generated),
    ({"problem", "solution"}, math),
    ({"question", "solution"}, math),
    ({"prompt", "solution"}, math),
    ({"prompt", "reward_model"}, rewarded),
    ({"problem", "answer"}, graded),
    ({"body", "question", "answer"}, svamp),
    ({"question", "answer"}, pair("question", "answer")),
    ({"query", "response"}, pair("query", "response")),
    ({"question", "response"}, pair("question", "response")),
    ({"text"}, document),
)


@dataclass
class Flags:
    """The flags of `python forms.py`."""

    file: str = flag(MISSING, "a file of records", positional=True)
    columns: str | None = flag(None, "its columns, if they have other names: "
                               "question=prompt,solution=target")
    debug: bool = flag(False, "show the traceback of an error")


def main(argv: list[str]) -> None:
    """`python forms.py FILE`: what becomes of the rows of a file."""
    from records import read_records  # here: only this command reads files

    flags = parse_flags(Flags, argv, __doc__)
    columns = read_columns(flags.columns) if flags.columns else None
    if not Path(flags.file).is_file():
        raise UserError(f"{flags.file}: no such file")
    counts: Counter[str] = Counter()
    for where, record in read_records(Path(flags.file)):
        try:
            problem = parse(record, where, columns)
        except LeftOut as reason:
            counts[f"left out: {reason}"] += 1
            continue
        kind = "chat" if problem.messages else "text" if problem.text else "problem"
        counts[f"{kind}, {'with' if problem.answer else 'without'} a gold answer"] += 1
    print(*(f"{count:8d}  {what}" for what, count in counts.most_common()), sep="\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
