"""The calculator: exact values, what it leaves alone, and the tokens that it sees and writes."""

import time
from pathlib import Path

import pytest

import children
from calculator import Calculator, completed
from recipes.arithmetic import marks
from synthetic import problems
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("text, written", [
    ("She sold 48/2 = <<48/2=", "24>>"),
    ("<<(3+4)*5=", "35>>"),
    ("<<2+3*4=", "14>>"),
    ("<<10-2-3=", "5>>"),  # from the left
    ("<<0.1+0.2=", "0.3>>"),  # fractions, not binary numbers
    ("<<5*.5=", "2.5>>"),
    ("<<1/8=", "0.125>>"),
    ("<<3-5=", "-2>>"),
    ("<<-4*-6=", "24>>"),
    ("<< 1,200 * $3 =", "3600>>"),  # as published marks spell numbers
    ("<<25%*80=", "20>>"),
    ("<<48/2=24>>24 and then\n<<24+1=", "25>>"),
    ("1 << <<2+2=", "4>>"),  # the last mark counts
    ("<<123456789012*12345=", f"{123456789012 * 12345}>>"),
])  # fmt: skip
def test_exact_values(text, written):
    assert completed(text) == written


@pytest.mark.parametrize("text", [
    "", "48/2=", "<<48/2", "<<48/2 =24", "<<48/2=24>>24=", "<<=", "<< =", "<<+=",
    "<<48/0=", "<<1/(2-2)=", "<<10/3=", "<<1/32=",  # no value, or no short decimal
    "<<x+1=", "<<2**3=", "<<2^3=", "<<1e9+1=", "<<len(3)=", "<<__import__('os')=", "<<1.2.3=",
    "<<(1+2=", "<<1+2)=", "<<1+=", "<<3+4=7=", "<<\x1b[2J1+1=",
    "<<" + "9" * 21 + "+1=",  # longer than a number may be
    "<<" + "*".join(["9999999999"] * 3) + "=",  # so is the result
])  # fmt: skip
def test_what_is_left_to_the_model(text):
    assert completed(text) is None


@pytest.mark.parametrize("text", [
    "<<" * 100_000, "<<" + "(" * 100_000 + "=", "<<" + "-" * 100_000 + "1=",
    "<<" + "9*" * 100_000 + "9=", "<<" + "9" * 100_000 + "=",
    "<<" + "(" * 99 + "1" + ")" * 99 + "=",
])  # fmt: skip
def test_nothing_hangs(text):
    start = time.perf_counter()
    assert completed(text) is None
    assert time.perf_counter() - start < 1


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer(ROOT / "tiny")


@pytest.mark.parametrize("dataset", ["mini-gsm", "mini-gsm-plus"])
def test_it_writes_the_very_tokens_of_the_embedded_solutions(tiny, dataset):
    """After each `=` of a mark the result of the solution follows, and nowhere else anything."""
    calculator = Calculator(tiny)
    for problem in problems(dataset, "train", 12):
        ids, at, found = tiny.encode(problem["answer"]), 1, []
        while at < len(ids):
            new = calculator(ids[:at])
            assert ids[at : at + len(new)] == new
            found += [tiny.decode(new)] if new else []
            at += len(new) or 1
        assert found == [f"{mark.value}>>" for mark in marks(problem["answer"])]


class Joined:
    """A tokenizer of a few tokens, some of which join `=` with its neighbours."""

    def __init__(self):
        self.tokens = ["<<", "3", "(", "+", ")=", "%=", "=", "=-", "=$", "6", ">>", "-", "0"]
        self.vocabulary = {token: number for number, token in enumerate(self.tokens)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tokens[number] for number in ids)

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary[part] for part in (*text.removesuffix(">>"), ">>")]


@pytest.mark.parametrize("pieces, written", [
    (["<<", "3", "+", "3", "="], "6>>"),
    (["<<", "(", "3", "+", "3", ")="], "6>>"),  # GSM8K has many
    (["<<", "3", "+", "3", "0", "0", "%="], "6>>"),
    (["<<", "3", "-", "6", "=-"], None),  # the model has begun the result
    (["<<", "3", "+", "3", "=$"], None),
    (["<<", "3", "+", "3"], None),
])  # fmt: skip
def test_tokens_that_join_the_sign_with_its_neighbours(pieces, written):
    tokenizer = Joined()
    found = Calculator(tokenizer)([tokenizer.vocabulary[piece] for piece in pieces])
    assert tokenizer.decode(found) == (written or "")


def test_only_the_end_of_a_long_row_is_read(tiny):
    calculator = Calculator(tiny)
    ids = tiny.encode("so " * 5000 + "<<" + "1+" * 20 + "1=")
    assert tiny.decode(calculator(ids)) == "21>>"


def test_the_command():
    for text, said in (("<<48/2=", "24>>\n"), ("<<1/0=", "(nothing)\n")):
        done = children.run_program("calculator.py", text)
        assert (done.returncode, done.stdout) == (0, said)
