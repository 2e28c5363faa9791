"""make_tiny.py: what the embedded model reads, its tokenizer, its first weights, three steps."""

import json
import math
import random
from collections import Counter
from functools import partial

import pytest
import torch

import synthetic
from checkpoint import load_model
from flags import run_command
from tokenizer import Tokenizer
from tools import make_tiny
from tools.make_tiny import STYLES, document, make_tokenizer, new_model

COUNT = 400


@pytest.fixture(autouse=True)
def same_threads():
    """--threads holds for the whole process, and later tests compare bits."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tokenizer's files, made from fewer problems than the real one's."""
    folder = tmp_path_factory.mktemp("tiny") / "tokenizer"
    make_tokenizer(folder, seed=0, documents=300)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def documents(tokenizer) -> list:
    return [document(tokenizer, index, seed=0) for index in range(COUNT)]


def text_of(tokenizer: Tokenizer, example) -> str:
    return "".join(tokenizer.show(token) for token in example.ids)


# ---------------------------------------------------------------------------------------- documents


def test_a_document_is_a_function_of_seed_and_index(tokenizer, documents):
    again = [document(tokenizer, index, seed=0) for index in (7, 3)]
    assert [again[0].ids, again[1].ids] == [documents[7].ids, documents[3].ids]
    other = [document(tokenizer, index, seed=1) for index in range(20)]
    assert all(a.ids != b.ids for a, b in zip(other, documents))


def test_all_tokens_but_the_first_are_targets(documents):
    for example in documents:
        assert example.is_target == [False] + [True] * (len(example.ids) - 1)


def test_a_document_ends_on_an_end_token_and_has_no_other(tokenizer, documents):
    """As ids, not as letters: plain texts on <|endoftext|>, all turns of a chat on <|im_end|>."""
    (end_of_text,) = tokenizer.stop_ids - {tokenizer.end_id}
    assert (tokenizer.show(end_of_text), tokenizer.show(
        tokenizer.end_id)) == ("<|endoftext|>", "<|im_end|>")
    seen = Counter()
    for example in documents:
        last, ends = example.ids[-1], [
            token for token in example.ids if token in tokenizer.stop_ids
        ]
        assert ends == ([end_of_text] if last == end_of_text else [tokenizer.end_id] * 3)
        seen[last] += 1
    assert set(seen) == tokenizer.stop_ids


def style_of(text: str) -> str:
    """Which way of writing a document this is, told from the text."""
    chat = text.startswith("<|im_start|>")
    if text.startswith("Here is a math problem: "):
        return "verdict"
    if "\nAnswer: " not in text and not chat:
        return "story"
    solution = text.partition("assistant\n" if chat else "\nAnswer: ")[2]
    steps = "\n" in solution
    if chat:
        return "chat with steps" if steps else "chat"
    if not steps:
        return "answer"
    if "That is wrong: " in solution:
        return "corrected"
    *lines, _ = solution.split("\n")
    marks = [line.partition("<<")[2].partition(">>")[0].split("=") for line in lines
             if "<<" in line]
    if any(calculate(left) != int(value) for left, value in marks):
        return "slip"
    if "boxed" in solution:
        return "steps"
    if len(marks) < len(lines):
        return "fine"
    return "terse" if all(line.split(" = ")[0][0].isdigit() and line.endswith(marks[n][1])
                          for n, line in enumerate(lines)) else "steps"


def calculate(text: str) -> float:
    for sign, operation in (("*", lambda a, b: a * b), ("/", lambda a, b: a / b),
                            ("+", lambda a, b: a + b)):
        if sign in text:
            return operation(*map(int, text.split(sign)))
    left, _, right = text[1:].partition("-")  # the left one may be below zero, behind a slip
    return int(text[0] + left) - int(right)


def test_the_mixture_of_styles_is_as_promised(tokenizer, documents):
    """Most solutions show their steps, and most chats only answer."""
    shares = Counter(style_of(text_of(tokenizer, example)) for example in documents)
    told = 1 - make_tiny.MINI_MATH  # LaTeX problems are no stories
    expected = {style: STYLES[style] * told for style in make_tiny.OF_STORIES}
    expected |= {
        "steps": STYLES["steps"] + (1 - told) * sum(STYLES[s] for s in make_tiny.OF_STORIES),
        "answer": STYLES["answer"],
        "chat": STYLES["chat"] * (1 - make_tiny.CHAT_STEPS),
        "chat with steps": STYLES["chat"] * make_tiny.CHAT_STEPS,
    }
    assert sum(STYLES.values()) == pytest.approx(1) and set(shares) == set(expected)
    for style, share in expected.items():
        assert shares[style] / COUNT == pytest.approx(share,
                                                      abs=4 * math.sqrt(share / COUNT)), style
    latex = sum("boxed" in text_of(tokenizer, example) for example in documents)
    assert latex / COUNT == pytest.approx(make_tiny.MINI_MATH, abs=0.1)


def test_a_style_can_be_asked_for(tokenizer):
    for style in STYLES:
        texts = [
            text_of(tokenizer, document(tokenizer, index, 0, "test", style)) for index in range(60)
        ]
        seen = {style_of(text) for text in texts}
        steps = {"steps"} if style in make_tiny.OF_STORIES else set()
        assert seen == ({"chat", "chat with steps"} if style == "chat" else {style} | steps)


def test_a_verdict_is_true(tokenizer):
    """`correct` stands behind a solution with the right answer, and only there."""
    found = Counter()
    for index in range(80):
        text = text_of(tokenizer, document(tokenizer, index, 0, style="verdict"))
        if style_of(text) == "verdict":
            answer = text.partition("#### ")[2].partition("\n")[0]
            rng = random.Random(f"document/train/0/{index}")
            assert rng.random() >= make_tiny.MINI_MATH
            gold = synthetic.story("train", index, make_tiny.DATA_SEED).solution()
            said = text.removesuffix("<|endoftext|>").rpartition(" ")[2]
            assert said == ("correct" if gold.endswith(f"#### {answer}") else "incorrect")
            found[said] += 1
    assert min(found.values()) > 10 and len(found) == 2


def test_it_reads_nothing_of_the_set_that_is_left_to_learn(tokenizer, documents):
    new = ("percent", "average", "dozen", "left over", "ratio", "an hour", "At this price")
    texts = [text_of(tokenizer, example) for example in documents]
    assert not [word for word in new if any(word in text for text in texts)]


def test_a_chat_reads_as_it_will_be_asked(tokenizer):
    """The prompt of an evaluation, to the letter, stands in front of the answer."""
    example = document(tokenizer, 0, 0, style="chat")
    question = text_of(tokenizer, example).partition("user\n")[2].partition("<|im_end|>")[0]
    prompt = tokenizer.prompt(question)
    assert example.ids[: len(prompt)] == prompt


# ---------------------------------------------------------------------------------------- tokenizer


def test_digits_stand_alone_and_texts_come_back(tokenizer):
    ids = tokenizer.encode("Mia has 1234 shells, $\\frac{12}{345}$.")
    assert [tokenizer.show(token) for token in ids if tokenizer.show(token).strip().isdigit()
            ] == list("123412345")
    for text in ("12+34 = <<12+34=46>>46", "größer\u2028 ∞ 数学 🙂\t\r\n  x", "#### 7",
                 "'s I'LL"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_it_has_qwens_special_tokens_and_system_prompt(tokenizer, folder):
    known = {
        token["content"]: token
        for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    assert list(known) == [*make_tiny.SPECIAL_TOKENS, *make_tiny.OTHER_TOKENS
                           ] and len(known) == 22  # as Qwen2.5's
    assert all(known[token]["special"] == (token in make_tiny.SPECIAL_TOKENS) for token in known)
    assert tokenizer.default_system == make_tiny.SYSTEM
    assert tokenizer.show(tokenizer.end_id) == "<|im_end|>"
    assert tokenizer.size < 1100 and 256 + 22 < tokenizer.size


def test_transformers_gives_the_same_ids(tokenizer, folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("Mia has 1234 shells.", "$\\sqrt{50} + 3\\sqrt{2}$\n\n ", "größer 数学",
                 "<<1+2=3>>3\n#### 3"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    rendered = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert theirs(rendered,
                  add_special_tokens=False)["input_ids"] == tokenizer.prompt("What is 2 + 3?")
    assert theirs.eos_token == "<|im_end|>"


def test_the_same_seed_gives_the_same_tokenizer(folder, tmp_path):
    make_tokenizer(tmp_path, seed=0, documents=300)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


# -------------------------------------------------------------------------------------------- model


def test_fresh_weights():
    """Normal with std 0.02, less if a map adds to the residual stream; norms at 1, biases at 0."""
    model = new_model(500, hidden_size=128, layers=2, seed=3, compute_dtype=torch.float32)
    config = model.config
    assert (config.vocab_size, config.num_attention_heads, config.num_key_value_heads,
            config.head_dim) == (512, 4, 2, 32,
                                 )
    assert config.tie_word_embeddings and config.intermediate_size % 64 == 0
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        if parameter.ndim == 1:
            assert torch.equal(parameter,
                               torch.full_like(parameter, float(
                                   name.endswith("norm.weight")))), name
        else:
            std = 0.02 / math.sqrt(4) if "o_proj" in name or "down_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.1 * std
    again = new_model(500, 128, 2, 3, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    other = new_model(500, 128, 2, 4, torch.float32)
    assert not torch.equal(model.head_weight, other.head_weight)


def test_both_sizes_are_under_12_megabytes():
    """In bf16, with a vocabulary as the real tokenizer's; the large one has two to three times the
    parameters.
    """
    sizes = {}
    for size, (width, layers) in make_tiny.SIZES.items():
        model = new_model(650, width, layers, 0, torch.float32)
        sizes[size] = 2 * sum(p.numel() for p in model.parameters())
    assert max(sizes.values()) < 12e6 and 2 < sizes["large"] / sizes["tiny"] < 3


# -------------------------------------------------------------------------------------- the command


def test_three_steps_from_nothing_to_a_model_and_on(tmp_path, monkeypatch, capsys):
    """The whole command, made small."""
    monkeypatch.setattr(make_tiny, "make_tokenizer", partial(make_tokenizer, documents=100))
    monkeypatch.setattr(make_tiny, "held_out_losses", partial(make_tiny.held_out_losses, count=4))
    flags = [
        "--steps", "3", "--documents", "4", "--hidden-size", "64", "--layers", "1", "--dtype",
        "fp32"
    ]
    flags += ["--log-every", "1", "--save-every", "2", "--threads", "1"]
    assert run_command(make_tiny.main, [*flags, "--output-dir", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert out.count("loss") == 4 and "held-out losses" in out

    folder = tmp_path / "new" / "model"
    model = load_model(folder, "cpu", torch.float32, torch.float32)
    assert Tokenizer(folder).size <= model.config.vocab_size
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["steps"] == 3 and result["parameters"] == sum(p.numel()
                                                                for p in model.parameters())
    assert set(result["held_out_losses"]) == set(STYLES)
    metrics = [
        json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"]
            for record in metrics] == [1, 2, 3] and metrics[-1]["loss"] < metrics[0]["loss"]

    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.num_parameters() == result["parameters"]


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch, capsys):
    """Killed behind step 2, with a line of step 3 in the log already."""
    monkeypatch.setattr(make_tiny, "make_tokenizer", partial(make_tokenizer, documents=100))
    monkeypatch.setattr(make_tiny, "held_out_losses", partial(make_tiny.held_out_losses, count=2))
    flags = [
        "--steps", "4", "--documents", "2", "--hidden-size", "64", "--layers", "1", "--dtype",
        "fp32"
    ]
    flags += ["--log-every", "1", "--save-every", "2", "--threads", "1"]
    assert run_command(make_tiny.main, [*flags, "--output-dir", str(tmp_path / "whole")]) == 0

    append = make_tiny.append_metrics

    def killed(path, record):
        append(path, record)
        if record["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(make_tiny, "append_metrics", killed)
    assert run_command(make_tiny.main, [*flags, "--output-dir", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(make_tiny, "append_metrics", append)
    assert run_command(make_tiny.main, ["--output-dir", str(tmp_path / "cut"), "--resume"]) == 0
    losses = [[
        json.loads(line)["loss"]
        for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
    ] for run in ("whole", "cut")]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    whole, cut = (load_model(tmp_path / run / "model", "cpu", torch.float32, torch.float32)
                  for run in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters()))


def test_a_command_that_is_killed_at_once_can_be_given_again(tmp_path, monkeypatch, capsys):
    """Nothing is in the folder before all that --resume needs is; settings read back are checked.
    """
    folder = tmp_path / "new"
    words = ["--steps", "1", "--documents", "1", "--hidden-size", "64", "--layers", "1", "--dtype",
             "fp32", "--threads", "1", "--output-dir", str(folder)]
    made = partial(make_tokenizer, documents=100)

    def killed(*args):
        made(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(make_tiny, "make_tokenizer", killed)
    assert run_command(make_tiny.main, words) == 130 and list(folder.iterdir()) == []
    (folder / ".new.1.tmp").mkdir()  # what SIGKILL leaves
    monkeypatch.setattr(make_tiny, "make_tokenizer", made)
    monkeypatch.setattr(make_tiny, "held_out_losses", lambda *args: {})
    assert run_command(make_tiny.main, words) == 0
    assert run_command(make_tiny.main, [*words[-2:], "--resume"]) == 0  # and once more at the end
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(args | {"layers": "many"}))
    capsys.readouterr()
    assert run_command(make_tiny.main, [*words[-2:], "--resume"]) == 1
    assert 'layers is "many", not a whole number' in capsys.readouterr().err


def test_a_width_that_heads_cannot_share_is_refused(tmp_path, capsys):
    assert run_command(make_tiny.main,
                       ["--hidden-size", "96", "--output-dir",
                        str(tmp_path / "new")]) == 2
    assert "--hidden-size 96 is no multiple of 64" in capsys.readouterr().err and not (
        tmp_path / "new").exists()
