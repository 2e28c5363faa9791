"""Completions from a key/value cache, many rows at a time.

    python generate.py "Tom has 3 boxes of 12 pens. How many pens has he?"      # the embedded model
    python generate.py --run runs/NAME --samples 4 --temperature 0.7 "..."    # a run; - reads stdin

1. Prefill: a prompt goes through the model once, packed with others. Its keys and values go into
   one row of the cache; attention.KVCache draws it.
2. Decoding step: the model reads one token of each row, and the row's next token is chosen.
3. A row that ends leaves the cache, and a prompt that waits takes its place (continuous batching:
   Yu et al. 2022, Orca).

With a calculator (calculator.py), a row may have tokens that are put in: each takes the place of
the token that a step has chosen. They are no choice of the model, and count in no log-probability.

Sampling: temperature, then top-k, then top-p (nucleus sampling: Holtzman et al. 2020, arXiv
1904.09751), then one uniform number a step through the inverse of the cumulative distribution. The
uniform numbers of sample s of problem i come from (seed, i, s) alone: a sample does not depend on
the rest of the batch. (Except by rounding: in bf16 a batch of another shape may decide a near-tie
the other way.)

Shapes: B rows, S slots, V vocabulary, H heads, K key/value heads, h head size, L layers, P prefix
length, n prompt length.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import MISSING, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

import numpy as np
import torch
from torch import Tensor

from attention import KVCache, PackedAttention
from checkpoint import TOY, find_model, load_model
from data import shared_beginning
from fast import RecordedSteps, log_probs_of
from flags import flag, parse_flags, run_command
from methods import Run, load_adapter, load_run, read_settings
from model import Qwen2
from runtime import (UsageError, UserError, pick_device, pick_dtype, printable, round_up,
                     rows_in_cache, use_little_memory, use_threads)
from tokenizer import Tokenizer

CACHE_BYTES = 1 << 30  # most memory of keys and values, unless the number of rows is given
MOST_ROWS = 256  # more rows are hardly faster: attention then takes most of the time
MAX_NEW_TOKENS = 1024  # the default


@dataclass
class Completion:
    """The new tokens of sample `sample` of prompt `problem`.

    mean_log_prob: nats per sampled token, the stop token included, at temperature 1; 0 without
    tokens. put_in: [start, end) of `ids`, for each result that a calculator has put in.
    """

    problem: int
    sample: int
    ids: list[int]  # without the stop token
    finish: str  # "stop" (a stop token came) or "length"
    mean_log_prob: float
    stop_id: int | None = None  # the stop token that came
    put_in: list[list[int]] = field(default_factory=list)


def check_finite(completion: Completion, problem: str = "") -> None:
    """Raise UserError, which begins with the problem's name, if the log-probability is no finite
    number: then the tokens mean nothing.
    """
    if not math.isfinite(completion.mean_log_prob):
        raise UserError(f"{problem and problem + ': '}the model gives no finite probabilities;"
                        " are its weights NaN or infinite?")


def is_sampled(count: int, put_in: list[list[int]]) -> list[bool]:
    """Of each of `count` new tokens: whether the model chose it."""
    found = [True] * count
    for start, end in put_in:
        found[start:end] = [False] * (end - start)
    return found


@dataclass
class _Row:
    """A completion that is being generated.

    past: keys and values of its prompt, [2, K, P + n, h] per layer, until the cache takes them.
    """

    problem: int
    sample: int
    token: int  # the next token that the model reads, at `position`
    position: int
    limit: int  # most new tokens
    random: np.random.Generator
    past: list[Tensor] | None = None
    ids: list[int] = field(default_factory=list)  # new tokens, the stop token included
    log_prob: float = 0.0  # sum over those of `ids` that the model chose
    stopped: bool = False
    waiting: deque[int] = field(default_factory=deque)  # tokens that are put in next
    put_in: list[list[int]] = field(default_factory=list)  # [start, end) of `ids`

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) == self.limit

    def add(self, token: int, log_prob: float, stops: bool) -> None:
        """Add the token that the model chose, or the waiting one in its place."""
        if self.waiting:
            token, log_prob, stops = self.waiting.popleft(), 0.0, False
            self.put_in[-1][1] += 1
        self.ids.append(token)
        self.log_prob += log_prob
        self.stopped = stops
        self.token, self.position = token, self.position + 1

    def let_compute(self, calculator: Callable[[list[int]], list[int]]) -> None:
        """Let what the calculator writes behind `ids`, if anything, be the next tokens."""
        if not self.waiting and not self.ended:
            self.waiting.extend(calculator(self.ids))
            if self.waiting:
                self.put_in.append([len(self.ids)] * 2)

    def completion(self) -> Completion:
        mean = self.log_prob / max(1, sum(is_sampled(len(self.ids), self.put_in)))
        ids, finish, stop_id = self.ids, "length", None
        if self.stopped:
            *ids, stop_id = self.ids
            finish = "stop"
        return Completion(self.problem, self.sample, ids, finish, mean, stop_id, self.put_in)


# ------------------------------------------------------------------------------------------ prefill


def _prefill(model: Qwen2, prompts: list[list[int]], prefix: Tensor | None) -> list[list[Tensor]]:
    """Keys and values of the prefix and each prompt: per prompt and layer [2, K, P + n, h]."""
    device = model.head_weight.device
    shared = shared_beginning(prompts)  # tokens that the model reads once for all prompts
    rest = [len(prompt) - shared for prompt in prompts]
    packed = PackedAttention(rest, prefix, device, shared)
    pasts = [[] for _ in prompts]

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        states = torch.stack((keys, values)).transpose(1, 2)  # [2, T, K, h] -> [2, K, T, h]
        front, *own = states.split([shared, *rest], dim=2)
        if prefix is not None:
            before = prefix[layer].to(states).transpose(1, 2)  # [2, P, K, h] -> [2, K, P, h]
            front = torch.cat((before, front), dim=2)  # [2, K, P + shared, h]
        for past, part in zip(pasts, own):
            past.append(torch.cat((front, part), dim=2))  # [2, K, P + n, h]
        return packed(layer, queries, keys, values)

    ids = prompts[0][:shared] + [token for prompt in prompts for token in prompt[shared:]]
    # No hidden state is wanted: keys and values are enough.
    model(torch.tensor(ids, device=device), packed.positions, attend, wanted=slice(0))
    return pasts


def _queue(model: Qwen2, todo: deque[_Row], prompts: list[list[int]], prefix: Tensor | None,
           tokens: int, most: int) -> Iterator[_Row]:
    """Yield the rows with their `past`; the samples of a prompt share it.

    At most `most` prompts are read at a time, and no more than fit into a rectangle of `tokens`,
    but at least one.
    """
    while todo:
        problems = list(dict.fromkeys(row.problem for row in islice(todo, most)))
        longest = len(prompts[problems[0]])
        problems = problems[:max(1, tokens // longest)]
        pasts = dict(zip(problems, _prefill(model, [prompts[i] for i in problems], prefix)))
        while todo and todo[0].problem in pasts:
            todo[0].past = pasts[todo[0].problem]
            yield todo.popleft()


# ----------------------------------------------------------------------------------------- sampling


def is_greedy(temperature: float) -> bool:
    """Whether a temperature is 0, or so near to it that fp32, in which logits are divided by it,
    has no normal number or no reciprocal for it.
    """
    return temperature < torch.finfo(torch.float32).tiny


def sample_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0,
                  top_k: int = 0) -> Tensor:
    """Token ids [B] from logits [B, V] and one uniform number of [0, 1) each: `uniforms` [B], fp64.

    top_k keeps the k most probable tokens (0: all). Of these, top_p keeps the most probable, as few
    as have together a share of top_p or more, and never fewer than one. The order of the two is
    that of transformers.

    However low the temperature, nothing overflows: the most probable token's quotient is 0, and
    another's at worst minus infinity, a probability of 0.
    """
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k == 0 and top_p >= 1:
        return _invert(scaled.softmax(-1), uniforms)
    # Sorting all of V is slow on a CPU, and few tokens have most of the mass: look at more only if
    # a row needs them.
    vocab_size = logits.shape[1]
    count = min(top_k or (vocab_size if logits.is_cuda else 256), vocab_size)
    total = None if top_k else scaled.logsumexp(-1, keepdim=True)  # [B, 1]
    while True:
        values, ids = scaled.topk(count)  # [B, count], largest first
        probs = values.softmax(-1) if top_k else (values - total).exp()
        if top_k or count == vocab_size or probs.sum(-1).min() > top_p:
            break
        count = min(16 * count, vocab_size)
    before = probs.cumsum(-1) - probs  # [B, count]: mass of the more probable tokens
    before[:, 0] = -1  # the first one always stays
    return ids.gather(1, _invert(probs.where(before < top_p, 0), uniforms)[:, None])[:, 0]


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The index [B] at which the cumulative sum of probs [B, n] first exceeds a share of the total.

    `uniforms` [B] are the shares.
    """
    sums = probs.double().cumsum(-1)  # fp32 would lose small terms among V
    found = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)[:, 0]
    return found.clamp(max=probs.shape[1] - 1)


# ----------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class _Sampling:
    """How tokens are chosen, which of them end a row, and which are put in; see `generate`."""

    vocab_size: int
    temperature: float
    top_p: float
    top_k: int
    stop_ids: Container[int]
    calculator: Callable[[list[int]], list[int]] | None


def _next_tokens(model: Qwen2, cache: KVCache, how: _Sampling, ids: Tensor, positions: Tensor,
                 uniforms: Tensor) -> Tensor:
    """The step on the device: the next token of each row, and its log-probability at temperature 1.

    ids and positions [B], uniforms [n] in fp64, of the first n rows -> [2, n] in fp64.
    """
    cache.begin_step(positions)
    logits = model.logits(model(ids, positions, cache))[: len(uniforms)]  # [n, V]
    real = logits[:, : how.vocab_size]  # the other rows of the vocabulary are padding
    if how.temperature == 0:
        # In fp32, a few rows at a time: argmax of bf16 numbers takes three times as long on a CPU.
        tokens = torch.cat([part.float().argmax(-1) for part in real.split(rows_in_cache(logits))])
    else:
        tokens = sample_tokens(real.float(), uniforms, how.temperature, how.top_p, how.top_k)
    return torch.stack((tokens.double(), log_probs_of(tokens, logits).double()))


def _decode_step(steps: RecordedSteps, cache: KVCache, live: list[_Row],
                 how: _Sampling) -> tuple[list[int], list[float]]:
    """The next token of each row, and its log-probability under the model at temperature 1."""
    most, device = cache.layers[0].shape[1], cache.layers[0].device  # rows of the cache
    cuda, count = device.type == "cuda", len(live)
    # Unused rows of the cache fill up the shape: each new shape is planned or recorded first.
    wanted = 1 << max(3, (count - 1).bit_length()) if cuda else round_up(count, 8)
    free = [0] * (min(wanted, most) - count)
    cache.fit(max(row.position for row in live) + 1)
    ids, positions = (torch.tensor(numbers + free, device=device) for numbers in
                      ([row.token for row in live], [row.position for row in live]))
    uniforms = [row.random.random() if how.temperature else 0.0 for row in live]
    if cuda:  # a recorded step has one shape: it chooses for unused rows too
        uniforms += free
    uniforms = torch.tensor(uniforms, dtype=torch.float64, device=device)
    tokens, log_probs = steps((cache.slots,), ids, positions, uniforms)[:, :count].tolist()
    return list(map(int, tokens)), log_probs


@torch.inference_mode()
def generate(model: Qwen2, prompts: list[list[int]], *, stop_ids: Container[int], vocab_size: int,
             max_new_tokens: int | list[int] = MAX_NEW_TOKENS, samples: int = 1,
             temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0,
             rows: int | None = None, prefix: Tensor | None = None,
             skip: Container[tuple[int, int]] = (),
             calculator: Callable[[list[int]], list[int]] | None = None,
             tell: Callable[[str], None] = lambda line: None,
             prefill_tokens: int = 8192) -> Iterator[Completion]:
    """Yield `samples` completions of each prompt, in the order in which they end.

    temperature: 0 (see `is_greedy`) is the most probable token, without a penalty.
    vocab_size: the size of the tokenizer; larger ids are never produced.
    max_new_tokens: one number, or one for each prompt. The model's positions may leave less; if
        they leave none, the completion is empty and ends by "length".
    rows, prefill_tokens: rows that are decoded, and tokens of prompts that are read, at a time.
        Both bound memory. Without `rows` there are as many as CACHE_BYTES holds.
    prefix [L, 2, P, K, h]: keys and values before every prompt.
    skip: pairs (problem, sample) that are left out; the other completions do not change.
    calculator: gives the tokens to put in behind the new tokens of a row, usually none; see
        `open_calculator`. They count in max_new_tokens.
    tell: gets a line about rows and memory, before decoding starts.

    Raises ValueError for an empty prompt.
    """
    if not all(prompts):
        raise ValueError(f"prompt {prompts.index([])} is empty: there is no token to go on from")
    limits = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    front = 0 if prefix is None else prefix.shape[2]
    pairs = [(i, s) for i in range(len(prompts)) for s in range(samples) if (i, s) not in skip]
    todo = _new_rows(prompts, pairs, limits, front, model.config.max_position_embeddings, seed)
    yield from (row.completion() for row in todo if row.ended)  # no position is left for a token
    todo = deque(row for row in todo if not row.ended)
    cache = _cache_for(model, todo, rows, tell)
    how = _Sampling(vocab_size, 0.0 if is_greedy(temperature) else temperature, top_p, top_k,
                    stop_ids, calculator)
    yield from _decode(model, cache, todo, prompts, prefix, prefill_tokens, how)


def _new_rows(prompts: list[list[int]], pairs: list[tuple[int, int]], limits: list[int],
              front: int, positions: int, seed: int) -> list[_Row]:
    """A row for each pair (problem, sample), the longest prompts first.

    So neighbours are of similar length, and memory runs out at the beginning or never. A row
    begins with the last token of its prompt, read a second time: every new token comes from a
    decoding step.
    """
    rows = []
    for i, s in sorted(pairs, key=lambda pair: -len(prompts[pair[0]])):
        start = front + len(prompts[i]) - 1
        limit = max(0, min(limits[i], positions - start - 1))
        rows.append(_Row(i, s, prompts[i][-1], start, limit, np.random.default_rng((seed, i, s))))
    return rows


def _cache_for(model: Qwen2, todo: deque[_Row], rows: int | None,
               tell: Callable[[str], None]) -> KVCache:
    """An empty cache of `rows` rows, or of as many as there is room for if each reaches its limit.

    That is CACHE_BYTES, and on CUDA a quarter of the memory that is free.
    """
    c, device = model.config, model.head_weight.device
    slots = max((row.position + row.limit for row in todo), default=0)
    numbers = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * max(1, slots)
    row_bytes = numbers * model.compute_dtype.itemsize
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CACHE_BYTES
    rows = min(rows or max(1, min(MOST_ROWS, room // row_bytes)), len(todo))
    if todo:
        tell(f"{len(todo)} completions, {rows} at a time, of up to {slots} slots: at most "
             f"{math.ceil(rows * row_bytes / 2**20)} MiB of keys and values")
    return KVCache(c, rows, slots, model.compute_dtype, device)


def _decode(model: Qwen2, cache: KVCache, todo: deque[_Row], prompts: list[list[int]],
            prefix: Tensor | None, prefill_tokens: int, how: _Sampling) -> Iterator[Completion]:
    """Decode all rows of `todo` and yield each completion when it ends."""
    rows = cache.layers[0].shape[1]
    refill = max(1, rows // 8)  # wait for so many free rows: a prefill for each would be slow
    queue = _queue(model, todo, prompts, prefix, prefill_tokens, refill)
    steps = RecordedSteps(partial(_next_tokens, model, cache, how))
    live: list[_Row] = []  # live[i] is row i of the cache
    while True:
        if rows - len(live) >= refill:
            for row in islice(queue, rows - len(live)):
                cache.put(len(live), row.past)
                row.past = None
                live.append(row)
        if not live:
            return
        for row, token, log_prob in zip(live, *_decode_step(steps, cache, live, how)):
            row.add(token, log_prob, token in how.stop_ids)
            if how.calculator:
                row.let_compute(how.calculator)
        yield from (row.completion() for row in live if row.ended)
        live = [live[i] for i in cache.drop([row.ended for row in live])]


# ------------------------------------------------------------------------------------------ command


@dataclass(kw_only=True)
class DecodingFlags:
    """The flags of every command in which a model answers, whether it is ours or a server's."""

    system: str | None = flag(
        None, "system prompt; none: no system turn (default: the run's, else the checkpoint's own; "
        "to a server none)", empty=True, group="answering")
    samples: int = flag(1, "completions of each problem", least=1)
    temperature: float = flag(0.0, "sampling temperature; 0 is greedy", least=0)
    top_p: float = flag(1.0, "sample among the likeliest tokens of this summed probability",
                        least=0, most=1)
    top_k: int = flag(0, "sample among this many likeliest tokens; 0 is all", least=0)
    max_new_tokens: int = flag(
        MAX_NEW_TOKENS, "longest completion in tokens; the model's positions may leave less",
        least=1)
    seed: int = flag(0, "seed of the sampling", least=0)
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group="machine")
    dtype: str = flag("auto", "auto, bf16 or fp32")
    threads: int | None = flag(None, "processor threads (default: OMP_NUM_THREADS, else all)",
                               least=1, most=1024)
    debug: bool = flag(False, "show the traceback of an error")


@dataclass(kw_only=True)
class ApiFlags:
    """The flags of every command that can ask a server."""

    api_model: str | None = flag(
        None, "ask this model of a server instead (its key: OPENAI_API_KEY)", group="a server")
    api_base: str | None = flag(
        None, "the server's address, mostly ending in /v1 (default: OPENAI_BASE_URL)")
    api_concurrency: int = flag(8, "requests under way at a time", least=1, most=256)
    api_rate: float = flag(0.0, "most requests a minute; 0 is no bound", least=0)
    api_timeout: float = flag(
        600.0, "seconds of silence after which a request is given up and sent again", least=0.1,
        most=86400)
    api_stream: bool = flag(
        False, "let the server send its reply in pieces, if idle connections are cut")
    api_max_tokens_name: str = flag(
        "max_tokens", "what the server calls the most tokens of a reply",
        choices=("max_tokens", "max_completion_tokens", "max_new_tokens"))
    api_extra: str | None = flag(
        None, "JSON object that joins every request, against settings that a server adds: "
        "{\"repetition_penalty\": 1.0}")


@dataclass(kw_only=True)
class SamplingFlags(DecodingFlags):
    """The flags of every command in which one of our own models answers."""

    run: str | None = flag(None, "run directory of mathft.py: its model, adapter and system prompt",
                           group="one of our own models")
    model: str | None = flag(
        None, "tiny, tiny-large, a folder or a hub id (default: tiny); with --run, where the base "
        "of its adapter is now")
    adapter: str | None = flag(
        None, "folder in peft's form, whoever made it; --model names its base")
    checkpoint: str | None = flag(
        None, "of --run, which may not have ended: what it had trained at step-N, a folder of its "
        "checkpoints/")
    calculator: bool = flag(False, "compute what the model writes as <<48/2= and put in the result")
    max_new_tokens: int | None = flag(
        None, "longest completion in tokens; the model's positions may leave less (default: the "
        f"run's, else {MAX_NEW_TOKENS})", least=1)


@dataclass(kw_only=True)
class Flags(SamplingFlags):
    """The flags of `python generate.py`."""

    question: str = flag(MISSING, "the question; - reads it from stdin", positional=True)


def check_samples(flags: DecodingFlags) -> None:
    """Raise UsageError for several samples at temperature 0: they would all be the same."""
    if flags.samples > 1 and is_greedy(flags.temperature):
        raise UsageError(f"--samples {flags.samples} needs a --temperature above 0:"
                         " greedy samples are all the same")


def open_calculator(tokenizer: Tokenizer,
                    wanted: bool) -> Callable[[list[int]], list[int]] | None:
    """The calculator of --calculator, for `generate`; None if it is not wanted."""
    if not wanted:
        return None
    from calculator import Calculator  # here: other runs need none of it

    return Calculator(tokenizer)


def check_named(flags: SamplingFlags) -> None:
    """Raise UsageError unless the flags name one model."""
    if flags.run and flags.adapter:
        raise UsageError("--run excludes --adapter: a run has its own")
    if flags.checkpoint and not flags.run:
        raise UsageError("--checkpoint is one of a run: give --run too")


def with_budget(flags: SamplingFlags) -> SamplingFlags:
    """The flags with the longest completion of the run, if none is given."""
    check_named(flags)
    if flags.max_new_tokens is not None:
        return flags
    saved = read_settings(Path(flags.run))[0].get("max_new_tokens") if flags.run else None
    whole = type(saved) is int and saved > 0
    return replace(flags, max_new_tokens=saved if whole else MAX_NEW_TOKENS)


def load_asked(flags: SamplingFlags) -> Run:
    """The run, adapter or model that the flags name, with its system prompt or that of --system."""
    check_named(flags)
    check_samples(flags)
    use_little_memory()
    use_threads(flags.threads)
    device = pick_device(flags.device)
    dtype = pick_dtype(flags.dtype, device)
    model = "tiny" if flags.model is None else flags.model
    if flags.run:
        run = load_run(Path(flags.run), device, dtype, model=flags.model,
                       checkpoint=flags.checkpoint)
    elif flags.adapter:
        run = load_adapter(Path(flags.adapter), model, device, dtype)
    else:
        folder = find_model(model)
        run = Run(load_model(folder, device, dtype, dtype), Tokenizer(folder), None, None, {})
    system = run.system if flags.system is None else flags.system
    return replace(run, system=run.tokenizer.default_system if system is None else system)


def main(argv: list[str]) -> None:
    """`python generate.py`: print the completions of one question."""
    flags = with_budget(parse_flags(
        Flags, argv, "Complete one question, by a model or the result of a run."))
    question = (sys.stdin.read() if flags.question == "-" else flags.question).strip()
    if not question:
        raise UsageError("the question is empty; write it after the flags,"
                         " or write - and give it on stdin")
    run = load_asked(flags)
    if not (flags.run or flags.model):
        print(f"note: {TOY}", file=sys.stderr)
    prompt = run.tokenizer.prompt(question, run.system)
    completions = generate(run.model, [prompt], stop_ids=run.tokenizer.stop_ids,
                           vocab_size=run.tokenizer.size, max_new_tokens=flags.max_new_tokens,
                           samples=flags.samples, temperature=flags.temperature, top_p=flags.top_p,
                           top_k=flags.top_k, seed=flags.seed, prefix=run.prefix,
                           calculator=open_calculator(run.tokenizer, flags.calculator))
    for completion in sorted(completions, key=lambda completion: completion.sample):
        check_finite(completion)
        if flags.samples > 1:
            print(f"--- sample {completion.sample + 1} of {flags.samples}")
        print(printable(run.tokenizer.decode(completion.ids)))
        if completion.finish == "length":
            print(f"(no end within {len(completion.ids)} tokens)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
