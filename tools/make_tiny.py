"""Make the embedded models: small Qwen2.5 of our own, trained on the embedded data sets.

    python -m tools.make_tiny --output-dir tiny-new                  # tokenizer, then the model
    python -m tools.make_tiny --output-dir tiny-new --resume         # from the last checkpoint
    python -m tools.make_tiny --size large --output-dir large-new    # twice as large

tiny/README.md names the time that it takes. The result is a *base* model: it has read stories,
problems with worked solutions in several styles, with bare answers, with slips in the arithmetic,
with slips that are noticed and corrected, a few verdicts, and some chats, most of which give the
bare answer. So it can reason, but in chat form it seldom does. Fine-tuning brings that out. It has
read nothing of `mini-gsm-plus`.
"""

import math
import random
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import torch
from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from tqdm import tqdm

import synthetic
import verifier
from checkpoint import checkpoints, save_model, step_of
from data import Example, Problem, parse_record
from flags import check_stored, flag, parse_flags, pick, run_command
from model import Config, Qwen2
from runtime import (UsageError, append_metrics, describe_machine, locked, new_directory,
                     pick_device, pick_dtype, read_json, remove_leftovers, trim_metrics,
                     use_little_memory, whole_folder, write_json, write_text)
from tokenizer import Tokenizer
from train import TrainSettings, mean_loss, train

# Shares of the documents: a solution with its steps, its equations alone, each step in words; with
# a slip that is corrected, or not; the bare answer; a chat; a story without a question; a solution
# with a verdict.
STYLES = {"steps": 0.28, "terse": 0.06, "fine": 0.08, "corrected": 0.05, "slip": 0.05,
          "answer": 0.20, "chat": 0.20, "story": 0.04, "verdict": 0.04}
# mini-math is not told as a story: there these styles have right steps.
OF_STORIES = ("terse", "fine", "corrected", "slip", "story", "verdict")
ERRORS = (-100, -10, -2, -1, 1, 2, 10, 100)  # of a slip
SIZES = {"tiny": (192, 6), "large": (256, 8)}  # hidden size, layers
READ = ("mini-gsm", "mini-math", "mini-stories")  # what the tokenizer is made from
CHAT_STEPS = 0.3  # share of the chats that work the solution out
MINI_MATH = 0.3  # share of LaTeX problems
SYSTEM = "You are a helpful assistant."
DATA_SEED = 1_000_000  # the seeds of training documents begin here, far from those of fine-tuning

# Qwen's pattern for cutting text before byte pairs are merged, from its published tokenizer.json;
# each digit stands alone.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
OTHER_TOKENS = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


@dataclass
class Flags:
    """The flags of `python -m tools.make_tiny`."""

    output_dir: str = flag(
        "tiny-new", "folder for tokenizer/, checkpoints/, metrics.jsonl and the finished model/")
    steps: int = flag(4500, "optimiser steps", least=1)
    documents: int = flag(80, "documents a step, about 100 tokens each", least=1)
    learning_rate: float = flag(3e-3, "peak learning rate", alias="--lr", least=0)
    size: str = flag("tiny", "shape of the model, if it is not given: tiny or large",
                     choices=tuple(SIZES))
    hidden_size: int | None = flag(None, "width of the model, a multiple of 64", least=64)
    layers: int | None = flag(None, "layers of the model", least=1)
    micro_batch_tokens: int = flag(8192, "tokens computed at once", least=1)
    save_every: int = flag(200, "steps between checkpoints", least=1)
    log_every: int = flag(50, "steps between lines of the log", least=1)
    threads: int = flag(0, "processor threads; 0 takes all", least=0)
    seed: int = flag(0, "seed of weights and documents", least=0)
    resume: bool = flag(False, "go on from the last checkpoint in --output-dir")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "precision of products: auto, bf16 or fp32")
    debug: bool = flag(False, "show the traceback of an error")


# ---------------------------------------------------------------------------------------- documents


def document(tokenizer: Tokenizer, index: int, seed: int, split: str = "train",
             style: str | None = None) -> Example:
    """Document `index` of the training mixture; every token but the first is a target."""
    rng = random.Random(f"document/{split}/{seed}/{index}")
    dataset = "mini-math" if rng.random() < MINI_MATH else "mini-gsm"
    style = style or rng.choices(list(STYLES), list(STYLES.values()))[0]
    record = synthetic.problem(dataset, split, index, DATA_SEED + seed)
    problem = parse_record(record, record["id"])
    if style == "chat":
        answer = problem.solution if rng.random() < CHAT_STEPS else bare_answer(problem, dataset)
        ids, _ = tokenizer.chat([{"role": "user", "content": problem.question},
                                 {"role": "assistant", "content": answer}])
        return Example(ids, [False] + [True] * (len(ids) - 1), problem.id)
    if dataset == "mini-gsm" and style in OF_STORIES:
        text = story_text(synthetic.story(split, index, DATA_SEED + seed), style, rng)
    else:
        solution = bare_answer(problem, dataset) if style == "answer" else problem.solution
        text = f"Question: {problem.question}\nAnswer: {solution}"
    # Appended as an id: in a text, the letters of a marker are only letters. (A chat ends with
    # end_id, the other stop token.)
    ids = [*tokenizer.encode(text), tokenizer.end_of_text]
    return Example(ids, [False] + [True] * (len(ids) - 1), problem.id)


def bare_answer(problem: Problem, dataset: str) -> str:
    """The answer without its solution, marked as in that set."""
    return (f"#### {problem.answer}" if dataset == "mini-gsm"
            else f"$\\boxed{{{problem.answer}}}$")


def story_text(story: synthetic.Story, style: str, rng: random.Random) -> str:
    """A document of a word problem in one of the styles OF_STORIES."""
    question = " ".join(story.sentences)
    slip = (rng.randrange(sum(map(len, story.steps))), rng.choice(ERRORS))
    if style == "story":
        return " ".join(story.sentences[:-1])  # the last one is a question
    if style == "verdict":
        right, solution = story.solution(), story.solution(slip if rng.random() < 0.5 else None)
        same = right.rpartition("\n")[2] == solution.rpartition("\n")[2]
        return verifier.prompt(question, solution) + verifier.WORDS[0 if same else 1]
    if style == "corrected":
        solution = story.corrected(*slip)
    else:
        solution = story.solution(slip) if style == "slip" else story.solution(style=style)
    return f"Question: {question}\nAnswer: {solution}"


def held_out_losses(model: Qwen2, tokenizer: Tokenizer, count: int = 300) -> dict[str, float]:
    """Mean loss, in nats a token, on documents of each style made from test problems."""
    losses = {}
    for style in STYLES:
        documents = [document(tokenizer, index, 0, "test", style) for index in range(count)]
        losses[style] = mean_loss(model, documents)
    return losses


# ---------------------------------------------------------------------------------------- tokenizer


def make_tokenizer(folder: Path, seed: int, documents: int = 20_000) -> Tokenizer:
    """Train byte pairs on `documents` problems of each data set, and write the tokenizer's
    files."""
    fast = train_byte_pairs(seed, documents)
    end, turn_end = fast.token_to_id("<|endoftext|>"), fast.token_to_id("<|im_end|>")
    write_text(folder / "tokenizer.json", fast.to_str(pretty=False))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    })
    write_json(folder / "generation_config.json",
               {"eos_token_id": [turn_end, end], "pad_token_id": end})
    return Tokenizer(folder)


def train_byte_pairs(seed: int, documents: int) -> FastTokenizer:
    """A byte-pair tokenizer of Qwen's form: its normal form, its cuts, and its special tokens."""
    fast = FastTokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    problems = [parse_record(record, record["id"])
                for dataset in READ
                for record in synthetic.problems(dataset, "train", documents, DATA_SEED + seed)]
    frame = [SYSTEM, "Question: ", "\nAnswer: ", "system\n", "user\n", "assistant\n"] * 1000
    frame += [verifier.prompt(" ", " ") + word for word in verifier.WORDS] * 1000
    texts = [problem.text or f"{problem.question}\n{problem.solution}" for problem in problems]
    texts += frame
    # The model would hardly learn a pair that is rare here: min_frequency ends the vocabulary.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, min_frequency=100,
                                  show_progress=False)
    fast.train_from_iterator(texts, trainer)
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False)
                             for token in SPECIAL_TOKENS])
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in OTHER_TOKENS])
    return fast


# -------------------------------------------------------------------------------------------- model


def new_model(vocab_size: int, hidden_size: int, layers: int, seed: int,
              compute_dtype: torch.dtype) -> Qwen2:
    """A Qwen2.5 with new fp32 weights: normal, std 0.02, less in a layer's last maps.

    The maps that add to the residual stream, `o_proj` and `down_proj`, have 0.02 / sqrt(2 L): so
    the sum over L layers stays near the size of one layer (Radford et al. 2019, 2.3).
    """
    config = Config(
        vocab_size=math.ceil(vocab_size / 64) * 64,  # a round number; the rest is padding
        hidden_size=hidden_size,
        intermediate_size=math.ceil(hidden_size * 8 / 3 / 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_theta=10_000.0,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2(config, compute_dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if into_residual else 0.02)
    return model


# ------------------------------------------------------------------------------------------ command


def main(argv: list[str]) -> None:
    """Make the tokenizer, train the model, measure it, save it."""
    args = read_args(argv)
    use_little_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    folder = open_folder(args, device, dtype)
    tokenizer = Tokenizer(folder / "tokenizer")
    with locked(folder):
        remove_leftovers(folder)
        remove_leftovers(folder / "checkpoints")
        make_model(tokenizer, args, folder, device, dtype)


def make_model(tokenizer: Tokenizer, args: Flags, folder: Path, device: torch.device,
               dtype: torch.dtype) -> None:
    """Train the model, measure it, and save it in `folder`."""
    model = new_model(tokenizer.size, args.hidden_size, args.layers, args.seed, dtype).to(device)
    totals = train_model(model, tokenizer, args, folder)
    losses = held_out_losses(model, tokenizer)
    shutil.rmtree(folder / "model", ignore_errors=True)  # of a command that was killed behind this
    save_model(model, folder / "model", folder / "tokenizer")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write_json(folder / "result.json",
               {**vars(totals), "parameters": parameters, "held_out_losses": losses})
    print(f"{totals.tokens / 1e6:.1f} M tokens in {totals.seconds / 60:.0f} minutes;"
          f" held-out losses: {losses}")


def read_args(argv: list[str]) -> Flags:
    """The flags; with --resume, those of the training that goes on."""
    args = parse_flags(Flags, argv, __doc__)
    if args.resume:
        path = Path(args.output_dir) / "args.json"
        saved = read_json(path)
        check_stored((Flags,), saved, path)
        args = replace(pick(Flags, saved), resume=True, threads=args.threads,
                       output_dir=args.output_dir)
    width, layers = SIZES[args.size]
    args.hidden_size, args.layers = args.hidden_size or width, args.layers or layers
    if args.hidden_size % 64:  # heads have 32, and at least two of them share a key/value head
        raise UsageError(f"--hidden-size {args.hidden_size} is no multiple of 64")
    return args


def open_folder(args: Flags, device: torch.device, dtype: torch.dtype) -> Path:
    """The folder of the training, with its settings and tokenizer: that of --resume, or a new one.

    A new one gets them all at once: a command that is killed before leaves it empty, for the next.
    """
    if args.resume:
        return Path(args.output_dir)
    folder = new_directory(args.output_dir, "tiny")
    with whole_folder(folder) as temporary:
        write_json(temporary / "args.json", asdict(args))
        write_json(temporary / "env.json", describe_machine(device, dtype))
        make_tokenizer(temporary / "tokenizer", args.seed)
    return folder


def train_model(model: Qwen2, tokenizer: Tokenizer, args: Flags, folder: Path):
    """Train the model on the mixture, from the last checkpoint in `folder` if there is one.

    Returns what train.train returns.
    """
    settings = TrainSettings(
        steps=args.steps, learning_rate=args.learning_rate, warmup=0.1, weight_decay=0.1,
        micro_batch_tokens=args.micro_batch_tokens, log_every=args.log_every,
        save_every=args.save_every)

    def batch_at(step: int) -> list[Example]:
        first = step * args.documents
        return [document(tokenizer, index, args.seed)
                for index in range(first, first + args.documents)]

    def log(record: dict) -> None:
        append_metrics(folder / "metrics.jsonl", record)
        print(f"step {record['step']:5d}  loss {record['loss']:.4f}"
              f"  lr {record['learning_rate']:.2e}"
              f"  {record['tokens_per_second']:6.0f} tokens/s", flush=True)

    found = checkpoints(folder)[-1:]
    trim_metrics(folder / "metrics.jsonl", step_of(found[0]) if found else 0)
    with tqdm(total=args.steps, unit="step", disable=None) as bar:
        return train(model, dict(model.named_parameters()), batch_at, settings, folder,
                     resume_from=found[0] if found else None, on_log=log,
                     on_step=lambda step: bar.update(step - bar.n))


if __name__ == "__main__":
    sys.exit(run_command(main))
