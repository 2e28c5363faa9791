"""What several tests share: a small tokenizer of Qwen's kind, small random models made by
transformers, a worked problem in short form, and a server of files."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS",
                      "1")  # before torch comes in: small products only wait for a second thread

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import Base
from checkpoint import save_model
from data import Example, Problem
from model import Config, Qwen2
from recipes.arithmetic import marks
from tokenizer import Tokenizer as SavedTokenizer
from tools import download

# The template as Qwen2.5-Instruct renders a chat without tools; SYSTEM stands for the checkpoint's
# default.
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n"
    "    {{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first)"
    " or (message.role == 'assistant') %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' "
    "}}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n")
DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# How Qwen2.5 cuts text before byte-pair encoding: words, single digits, punctuation, line ends,
# spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = [
    "system\nYou are a helpful assistant.", "user\nWhat is 12 + 34?",
    "assistant\nThe answer is 46.\n\n#### 46"
]


def write_tokenizer(folder: Path, template: str = TEMPLATE.replace("SYSTEM", DEFAULT_SYSTEM),
                    markers: tuple = MARKERS, words: tuple = (), **changes) -> Path:
    """A byte-pair tokenizer with Qwen's cuts, normal form and special tokens, trained on three
    lines of text. `words` are whole tokens that text can spell; `changes` are settings.
    """
    fast = Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(TEXTS * 3, trainer)
    fast.add_special_tokens(list(markers))
    fast.add_tokens(list(words))
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changes))
    return folder


def reference_model(**changes):
    """A Qwen2 of transformers in fp32, small, every number of it random; `changes` are settings of
    its config.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = dict(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(Qwen2Config(**{**settings, **changes})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(
    ):  # transformers starts biases at 0 and norms at 1, where a mistake would not show
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
    return model


MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
# As R1-Distill-Qwen's renders a chat without tools.
THINKING_TEMPLATE = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
    "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}")
THINKING_MARKERS = (
    "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>")


def _layout(system: str, eos: str, stops: tuple, theta: float = 1e6, tied: bool = True,
            template: str = TEMPLATE, **tokenizer) -> dict:
    template = template.replace("SYSTEM", system.replace("\\", "\\\\"))
    return {"system": system, "stops": stops, "theta": theta, "tied": tied,
            "tokenizer": {"template": template, "eos_token": eos, **tokenizer}}


# What differs between published models: prompt, end of a target, declared stops, rope, tied heads.
LAYOUTS = {
    "base": _layout("You are a helpful assistant.", "<|endoftext|>", ("<|endoftext|>",)),
    "instruct": _layout(DEFAULT_SYSTEM, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "math base": _layout(MATH_SYSTEM, "<|endoftext|>", ("<|endoftext|>",), 10000),
    "math instruct": _layout(MATH_SYSTEM, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), 10000),
    "r1 distill": _layout(
        "", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",), 10000, tied=False,
        template=THINKING_TEMPLATE, markers=THINKING_MARKERS, words=("<think>", "</think>"),
        tokenizer_class="PreTrainedTokenizerFast", bos_token="<｜begin▁of▁sentence｜>"),
}


def write_layout(folder: Path, name: str, positions: int = 256) -> Path:
    """A small random checkpoint in the layout of a published model, with config.json as it was
    published: without rope_parameters, and with a sliding window that is switched off.
    """
    layout = LAYOUTS[name]
    write_tokenizer(folder, **layout["tokenizer"])
    rope = {"rope_theta": float(layout["theta"]), "rope_type": "default"}
    reference_model(max_position_embeddings=positions, rope_parameters=rope,
                    tie_word_embeddings=layout["tied"]).save_pretrained(folder)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stops = [ids.token_to_id(token) for token in layout["stops"]]
    config = json.loads((folder / "config.json").read_text())
    for newer in ("rope_parameters", "dtype", "layer_types", "head_dim"):
        config.pop(newer, None)
    config |= {"rope_theta": layout["theta"], "torch_dtype": "bfloat16", "sliding_window": 4096,
               "use_sliding_window": False, "max_window_layers": 3, "use_mrope": False,
               "eos_token_id": stops[0]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": stops if len(stops) > 1 else stops[0], "do_sample": True,
         "temperature": 0.6, "top_p": 0.95}))
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """With `-n 2` each process goes through neighbouring tests, which share fixtures; one that has
    none left takes over half of another's.
    """
    if config.getoption("dist", "no") == "load":  # the default of -n
        config.option.dist = "worksteal"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A folder with the small tokenizer alone. Shared by all tests: read it, do not write there."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A whole checkpoint, small and random, as transformers 5 saves it.

    Shared by all tests: read only.
    """
    folder = write_tokenizer(tmp_path_factory.mktemp("checkpoint"))
    reference_model().save_pretrained(folder)
    return folder


@functools.cache
def some_base() -> Base:
    """A base for adapters that tests save: a small random checkpoint. Read only."""
    folder = write_tokenizer(Path(tempfile.mkdtemp(prefix="mathft-base-")))
    atexit.register(shutil.rmtree, folder)
    save_model(small_model(vocab_size=320), folder / "model", folder)
    return Base(str(folder / "model"), SavedTokenizer(folder / "model"), "Be exact.")


def model_pair(tied: bool = True) -> tuple:
    """The same small random model (D 64, H 4, K 2, L 2, V 97) in transformers and in ours."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                 rms_norm_eps=1e-6, tie_word_embeddings=tied)  # fmt: skip
    theirs = Qwen2ForCausalLM(
        Qwen2Config(**sizes, rope_parameters={"rope_theta": 1e4, "rope_type": "default"})).eval()
    for bias in (p for name, p in theirs.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(
            bias, std=0.1)  # transformers starts them at zero, where a mistake would hide
    ours = Qwen2(Config(**sizes, head_dim=16, rope_theta=1e4))
    state = {
        name: tensor.clone()
        for name, tensor in theirs.state_dict().items() if not (tied and "lm_head" in name)
    }
    ours.load_state_dict(state)
    return theirs, ours


def small_model(dtype: torch.dtype = torch.float32, **changes) -> Qwen2:
    """A small model of fixed random weights."""
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
                 rope_theta=1e4, max_position_embeddings=256, tie_word_embeddings=True)  # fmt: skip
    model = Qwen2(Config(**sizes | changes), dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if parameter.dim() == 1 else 0.15 * noise
    return model


class Waits(TorchDispatchMode):
    """Counts within its block how often a number is read out of a tensor: `item`, `if x`, `tolist`.

    On CUDA the program waits there for the device.
    """

    def __enter__(self):
        self.count, self.tolist = 0, torch.Tensor.tolist
        torch.Tensor.tolist = self._counted
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self.tolist
        return super().__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*args, **kwargs or {})

    @property
    def _counted(self):
        def tolist(x: torch.Tensor) -> list:
            self.count += 1
            return self.tolist(x)

        return tolist


def some_examples(count: int, seed: int = 0) -> list[Example]:
    """Documents of 6 to 25 tokens; about the last half of each are targets."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number in range(count):
        length = 6 + (7 * number + seed) % 20
        ids = torch.randint(64, (length,), generator=generator).tolist()
        examples.append(Example(ids, [i > length // 2 for i in range(length)], f"problem {number}"))
    return examples


def lines_of(folder: Path) -> list[dict]:
    """The records of an evaluation."""
    text = (folder / "generations.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def assert_same_records(ours: list[dict], theirs: list[dict]) -> None:
    """Equal, except for rounding of the log-probabilities in a batch of another shape."""
    for a, b in zip(ours, theirs, strict=True):
        assert a["mean_log_prob"] == pytest.approx(b["mean_log_prob"], abs=1e-4)
        assert a | {"mean_log_prob": 0} == b | {"mean_log_prob": 0}


def n(value) -> tuple:
    """A number in the tree of an answer, without its digits behind the point and its significant
    digits.
    """
    return ("number", Fraction(value))


def plain(tree):
    """The tree of an answer without how its numbers are written."""
    if isinstance(tree, tuple) and tree[:1] == ("number",):
        return tree[:2]
    return type(tree)(map(plain, tree)) if isinstance(tree, (tuple, list)) else tree


def worked(question: str, *lines: str) -> Problem:
    """A problem from lines in which `[48/2=24]` stands for `48/2 = <<48/2=24>>24`; the last mark is
    the answer.
    """
    solution = re.sub(r"\[([^=\]]+)=([^\]]+)\]", r"\1 = <<\1=\2>>\2", "\n".join(lines))
    answer = marks(solution)[-1].value if marks(solution) else "0"
    return Problem("p", question, f"{solution}\n#### {answer}", answer)


BOOKS = worked("Ann has 48 books and buys 6 more. She gives half of them away. How many are left?",
               "Ann has [48+6=54] books.", "She keeps [54/2=27] of the 54 books.")  # fmt: skip


# What the server of files below has: 5,000 problems.
BODY = "".join(
    json.dumps({"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"}) + "\n"
    for n in range(5000)).encode()
HASH = hashlib.sha256(BODY).hexdigest()


class Files(BaseHTTPRequestHandler):
    """Answers with server.body, whole or the range asked for; server.script says what goes wrong,
    by request.
    """

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        act = server.script.pop(0) if server.script else {}
        if "status" in act:
            self.answer(act["status"], act.get("headers", {}), b"no")
            return
        body, first = act.get("body", server.body), 0
        headers = {"ETag": act.get("etag", '"v1"')}
        same = self.headers.get("If-Range") == headers["ETag"]
        if "Range" in self.headers and same and not act.get("ignores_range"):
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            start, end = first + act.get("astray", 0), len(body) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        if act.get("drips"):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            with contextlib.suppress(OSError):  # where the other side has left
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.01)
        self.answer(206 if first else 200, headers, body[first:], act.get("cut"),
                    act.get("length", True))

    def answer(self, status: int, headers: dict, body: bytes, cut: int | None = None,
               length: bool = True) -> None:
        self.send_response(status)
        if length:
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on the loopback, a home for files, and pauses that are noted and not slept."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.body, server.script, server.requests, server.pauses = BODY, [], [], []
    server.url = f"http://127.0.0.1:{server.server_port}/train.jsonl"
    monkeypatch.setattr(download, "sleep", server.pauses.append)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def bench_record(side: str, case: str = "lora", **changes) -> dict:
    """What a process of the benchmark hands over."""
    return {
        "case": case, "side": side, "seconds": [1.0, 2.0], "tokens": [50, 100],
        "tokens_per_second": 50.0, "peak_memory_mib": 500.0, "share_of_limit": 0.25, **changes
    }
