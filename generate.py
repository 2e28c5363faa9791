"""Completions from a key/value cache, many rows at a time, and the log-probabilities of given tokens.

    python generate.py "Tom has 3 boxes of 12 pens. How many pens has he?"          # the embedded model
    python generate.py --run runs/NAME --samples 4 --temperature 0.7 "..."          # a tuned one; `-` reads stdin

A prompt goes through the model once, packed with others (prefill), and leaves its keys and values in a cache; from then
on each step feeds one token per row. Rows are left-aligned: the token at position p lies in slot p, so that positions
are slot numbers, a prefix simply fills the slots 0..P-1, and rows of any length stand side by side. A row that ends
leaves, and a waiting one takes its place (continuous batching: Yu et al. 2022, Orca).

Sampling: temperature, then top-k, then top-p (nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751), then one
uniform number a step through the inverse of the cumulative distribution. The uniform numbers of sample s of problem i
come from (seed, i, s) alone, so that a sample does not depend on what else is in the batch. (What remains is rounding:
in bf16 a batch of another shape may decide a near-tie the other way.)

Shapes: B rows, S slots, V vocabulary, H heads, K key/value heads, h head size, L layers, P prefix, n prompt length.
"""

import math
import sys
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import MISSING, dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attention import PackedAttention
from checkpoint import find_model, load_model
from data import Example, pack, shared_beginning
from flags import flag, parse_flags, run_command
from methods import Run, load_run
from model import Config, Qwen2
from runtime import UsageError, keep_freed_memory, pick_device, pick_dtype, round_up, rows_in_cache
from tokenizer import Tokenizer

CACHE_BYTES = 1 << 30  # what keys and values of all rows may take, unless the number of rows is given
SLOTS = 64  # tokens by which the cache grows and shrinks
MOST_ROWS = 256  # more are hardly faster: attention then takes the time
MAX_NEW_TOKENS = 1024  # unless asked otherwise; the model's positions may leave less


@dataclass
class Completion:
    """What followed prompt `problem` in its sample `sample`."""

    problem: int
    sample: int
    ids: list[int]  # without the stop token
    finish: str  # "stop" (a stop token came) or "length"
    mean_log_prob: float  # nats per new token, by the untouched model, the stop token included; 0 if there is none


@dataclass
class _Row:
    """A completion on its way."""

    problem: int
    sample: int
    token: int  # read next, at `position`
    position: int
    limit: int  # most new tokens
    random: np.random.Generator
    past: list[
        Tensor] | None = None  # keys and values of the prompt, [2, K, P + n, h] per layer, until it has a place
    ids: list[int] = field(default_factory=list)  # new tokens, the stop token included
    log_prob: float = 0.0  # sum over `ids`
    stopped: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) == self.limit

    def add(self, token: int, log_prob: float, stops: bool) -> None:
        self.ids.append(token)
        self.log_prob += log_prob
        self.stopped = stops
        self.token, self.position = token, self.position + 1

    def completion(self) -> Completion:
        ids, finish = (self.ids[:-1], "stop") if self.stopped else (self.ids, "length")
        return Completion(self.problem, self.sample, ids, finish,
                          self.log_prob / max(1, len(self.ids)))


class KVCache:
    """Keys and values of the rows that are decoded, and the `attend` of a decoding step.

    One tensor [2, rows, K, S, h] per layer (0 = keys, 1 = values); the rows in use are the first ones. S follows the
    longest of them, up to `max_slots`.
    """

    def __init__(self, config: Config, rows: int, max_slots: int, dtype: torch.dtype,
                 device: torch.device):
        self.max_slots = max_slots
        empty = torch.zeros(2, rows, config.num_key_value_heads, 0, config.head_dim, dtype=dtype,
                            device=device)
        self.layers = [empty] * config.num_hidden_layers

    def fit(self, slots: int) -> None:
        """Make room for `slots` tokens a row and few more, since a step looks at all there are. Each change copies everything."""
        have = self.layers[0].shape[3]
        if have - 2 * SLOTS < slots <= have:
            return
        more = min(math.ceil(slots / SLOTS) * SLOTS, self.max_slots) - have
        for index, layer in enumerate(
                self.layers):  # with zeros: a hidden NaN would still poison the sum
            self.layers[index] = F.pad(
                layer, (0, 0, 0, more))  # [2, rows, K, S, h], longer or shorter in S

    def put(self, row: int, past: list[Tensor]) -> None:
        """Write the first tokens of a row: `past` holds [2, K, P + n, h] per layer."""
        slots = past[0].shape[2]
        self.fit(max(slots, self.layers[0].shape[3]))
        for layer, states in zip(self.layers, past):
            layer[:, row, :, :slots] = states

    def drop(self, live: list[_Row]) -> list[_Row]:
        """Remove the rows that have ended; the last ones move into their places. Returns the rows that are left."""
        count = sum(not row.ended for row in live)
        holes = [i for i in range(count) if live[i].ended]
        movers = [i for i in range(count, len(live)) if not live[i].ended]  # as many
        if holes:
            for layer in self.layers:
                layer[:, holes] = layer[:, movers]
        for hole, mover in zip(holes, movers):
            live[hole] = live[mover]
        return live[:count]

    def begin_step(self, positions: list[int]) -> Tensor:
        """Prepare for one new token in each of the first B rows; returns its positions [B] as a tensor."""
        self.fit(max(positions) + 1)
        slots, device, dtype = self.layers[0].shape[3], self.layers[0].device, self.layers[0].dtype
        self.positions = torch.tensor(positions, device=device)  # [B]
        self.rows = torch.arange(len(positions), device=device)  # [B]
        hidden = torch.arange(slots, device=device) > self.positions[:, None]  # [B, S]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(
            hidden, -torch.inf)
        self.mask = mask[:, None, None]  # [B, 1, 1, S], added to the scores of every layer
        return self.positions

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache = self.layers[layer]
        cache[0][self.rows, :, self.positions] = keys  # [B, K, h]
        cache[1][self.rows, :, self.positions] = values
        k, v = cache[:, :len(
            keys)]  # [B, K, S, h] each, without gaps: products would copy them first
        # The query heads of one key/value head stand in one product, and its larger factor on the left: no key is copied
        # or read twice. On a CPU, torch's fused attention takes more than twice as long.
        q = queries.unflatten(
            1, (keys.shape[1], -1)) * queries.shape[-1]**-0.5  # [B, H, h] -> [B, K, H/K, h]
        scores = (k @ q.transpose(2, 3)).transpose(2, 3).contiguous().add_(
            self.mask)  # [B, K, S, H/K] -> [B, K, H/K, S]
        return (scores.softmax(-1) @ v).flatten(1, 2)  # [B, K, H/K, h] -> [B, H, h]


def _prefill(model: Qwen2, prompts: list[list[int]], prefix: Tensor | None) -> list[list[Tensor]]:
    """Keys and values of each prompt behind the prefix: per prompt and layer [2, K, P + n, h]."""
    device = model.head_weight.device
    shared = shared_beginning(prompts)  # read once for all
    rest = [len(prompt) - shared for prompt in prompts]
    packed = PackedAttention(rest, prefix, device, shared)
    pasts = [[] for _ in prompts]

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        states = torch.stack((keys, values)).transpose(1, 2)  # [2, T, K, h] -> [2, K, T, h]
        front, *own = states.split([shared, *rest], dim=2)
        if prefix is not None:
            front = torch.cat((prefix[layer].to(states).transpose(1, 2), front),
                              dim=2)  # [2, K, P + shared, h]
        for past, part in zip(pasts, own):
            past.append(torch.cat((front, part), dim=2))  # [2, K, P + n, h]
        return packed(layer, queries, keys, values)

    ids = prompts[0][:shared] + [token for prompt in prompts for token in prompt[shared:]]
    model(torch.tensor(ids, device=device), packed.positions, attend,
          wanted=slice(0))  # keys and values are enough
    return pasts


def _queue(model: Qwen2, todo: deque[_Row], prompts: list[list[int]], prefix: Tensor | None,
           tokens: int, most: int) -> Iterator[_Row]:
    """Yield the rows with their `past`, which the samples of a prompt share.

    Prompts are read `most` at a time, and no more (though one at least) than fit into a rectangle of `tokens`.
    """
    while todo:
        problems = list(dict.fromkeys(row.problem for row in islice(todo, most)))
        problems = problems[:max(1, tokens //
                                 len(prompts[problems[0]]))]  # the first is the longest
        pasts = dict(zip(problems, _prefill(model, [prompts[i] for i in problems], prefix)))
        while todo and todo[0].problem in pasts:
            todo[0].past = pasts[todo[0].problem]
            yield todo.popleft()


def choose(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0,
           top_k: int = 0) -> Tensor:
    """Token ids [B] drawn from logits [B, V], with one uniform number of [0, 1) for each (`uniforms` [B], fp64).

    top_k keeps the k most probable tokens (0: all); top_p the smallest set of the most probable whose share of what
    top_k kept reaches it, and one token at least. The order is that of transformers.
    """
    scaled = logits / temperature
    if top_k == 0 and top_p >= 1:
        return _invert(scaled.softmax(-1), uniforms)
    # Sorting all of V is slow, and the mass lies on few tokens: look at more only where some row needs them.
    vocab_size = logits.shape[1]
    count = min(top_k or 256, vocab_size)
    total = None if top_k else scaled.logsumexp(-1, keepdim=True)  # [B, 1]
    while True:
        values, ids = scaled.topk(count)  # [B, count], falling
        probs = values.softmax(-1) if top_k else (values - total).exp()
        if top_k or count == vocab_size or probs.sum(-1).min() > top_p:
            break
        count = min(16 * count, vocab_size)
    before = probs.cumsum(-1) - probs  # [B, count]: mass of the more probable
    before[:, 0] = -1  # the first one stays, whatever top_p
    return ids.gather(1, _invert(probs.where(before < top_p, 0), uniforms)[:, None])[:, 0]


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The index [B] where the running sum of probs [B, n], of any total, first exceeds the share `uniforms` [B]."""
    sums = probs.double().cumsum(-1)  # in fp32, V small terms would blur the borders
    return torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:],
                              right=True)[:, 0].clamp(max=probs.shape[1] - 1)


def _step(model: Qwen2, cache: KVCache, live: list[_Row], vocab_size: int, temperature: float,
          top_p: float, top_k: int) -> tuple[list[int], list[float]]:
    """The next token of each row, and the log-probability that the untouched model gives it."""
    most = cache.layers[0].shape[1]  # rows
    free = [0] * (min(round_up(len(live), 8), most) - len(live)
                  )  # unused rows of the cache fill up the shape
    positions = cache.begin_step([row.position for row in live] + free)
    ids = torch.tensor([row.token for row in live] + free, device=positions.device)
    logits = model.logits(model(ids, positions, cache))[: len(live)]  # [B, V]
    real = logits[:, :
                  vocab_size]  # the tokenizer's ids; the rest are padding rows of the vocabulary
    if temperature == 0:
        # In fp32 a few rows at a time: of bf16 numbers, torch finds the largest three times as slowly on a CPU.
        tokens = torch.cat([part.float().argmax(-1) for part in real.split(rows_in_cache(logits))])
    else:
        uniforms = torch.tensor([row.random.random() for row in live], dtype=torch.float64,
                                device=logits.device)
        tokens = choose(real.float(), uniforms, temperature, top_p, top_k)
    return tokens.tolist(), _log_probs_of(tokens, logits).tolist()


def _log_probs_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities [n] in fp32 of tokens [n] under logits [n, V], a few rows at a time: they stay in the cache."""
    rows = rows_in_cache(logits)
    parts = zip(logits.split(rows), tokens[:, None].split(rows))
    return torch.cat([
        part.log_softmax(-1, dtype=torch.float32).gather(1, wanted)[:, 0] for part, wanted in parts
    ])


@torch.inference_mode()
def generate(model: Qwen2, prompts: list[list[int]], *, stop_ids: Container[int], vocab_size: int,
             max_new_tokens: int | list[int] = MAX_NEW_TOKENS, samples: int = 1,
             temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0,
             rows: int | None = None, prefix: Tensor | None = None,
             skip: Container[tuple[int,
                                   int]] = (), prefill_tokens: int = 8192) -> Iterator[Completion]:
    """Yield `samples` completions of each prompt, in the order in which they end.

    `temperature` 0 is greedy: the most probable token, without a penalty. Ids from `vocab_size` on, the size of the
    tokenizer, are never produced. `max_new_tokens`, one number or one for each prompt, is cut to what the model's
    positions leave; a prompt that leaves none gives an empty completion that ends by "length". `rows` are decoded at a
    time (by default as many as CACHE_BYTES hold), prompts are read `prefill_tokens` at a time; both bound memory. `prefix`
    [L, 2, P, K, h] stands before all. Pairs (problem, sample) in `skip` are left out, and the others come out as they
    would have. Raises ValueError for an empty prompt.
    """
    if not all(prompts):
        raise ValueError(f"prompt {prompts.index([])} is empty: there is no token to go on from")
    front = 0 if prefix is None else prefix.shape[2]
    limits = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    jobs = []
    # Long prompts first: neighbours are of like length, and memory runs out at once or never.
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        # The prompt's last token is read once more, so that every new token comes from a decoding step.
        start = front + len(prompts[i]) - 1
        limit = max(0, min(limits[i], model.config.max_position_embeddings - start - 1))
        for s in range(samples):
            if (i, s) not in skip:
                jobs.append(
                    _Row(i, s, prompts[i][-1], start, limit, np.random.default_rng((seed, i, s))))
    yield from (row.completion() for row in jobs if row.ended)  # no room for a single token
    jobs = deque(row for row in jobs if not row.ended)
    max_slots = max((row.position + row.limit for row in jobs), default=0)
    rows = min(rows or _rows_that_fit(model, max_slots), len(jobs))
    refill = max(1, rows // 8)  # a prefill for every single row that ends would be slow
    queue = _queue(model, jobs, prompts, prefix, prefill_tokens, refill)
    cache = KVCache(model.config, rows, max_slots, model.compute_dtype, model.head_weight.device)
    live: list[_Row] = []  # live[i] has row i of the cache
    while True:
        if rows - len(live) >= refill:
            for row in islice(queue, rows - len(live)):
                cache.put(len(live), row.past)
                row.past = None
                live.append(row)
        if not live:
            return
        for row, token, log_prob in zip(
                live, *_step(model, cache, live, vocab_size, temperature, top_p, top_k)):
            row.add(token, log_prob, token in stop_ids)
        yield from (row.completion() for row in live if row.ended)
        live = cache.drop(live)


def _rows_that_fit(model: Qwen2, slots: int) -> int:
    c = model.config
    row = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * model.compute_dtype.itemsize * max(
        1, slots)
    return max(1, min(MOST_ROWS, CACHE_BYTES // row))


@torch.no_grad()
def log_probs(model: Qwen2, documents: list[tuple[list[int],
                                                  list[bool]]], prefix: Tensor | None = None,
              chunk_tokens: int = 8192, chunk_logits: int = 2**24) -> list[Tensor]:
    """Log-probabilities of the target tokens of each document (ids, is_target), in their order: fp32, on the CPU.

    Documents are packed `chunk_tokens` at a time, and no more than `chunk_logits` logits are in memory at once (64 MiB
    in fp32). Raises ValueError where the first token is a target: nothing stands before it to predict it from.
    """
    device = model.head_weight.device
    for number, (ids, is_target) in enumerate(documents):
        if not ids or is_target[0]:
            raise ValueError(
                f"document {number}: its first token cannot be predicted, nothing stands before it")
    found = [torch.empty(0)] * len(documents)
    order = sorted((i for i, (_, flags) in enumerate(documents) if any(flags)),
                   key=lambda i: -len(documents[i][0]))
    while order:
        count = max(1, chunk_tokens // len(documents[order[0]][0]))  # the first is the longest
        chunk, order = order[:count], order[count:]
        batch = pack([Example(*documents[i]) for i in chunk], device)
        packed = PackedAttention(batch.lengths, prefix, device, batch.shared)
        hidden = model(batch.ids, packed.positions, packed,
                       batch.predictors)[:len(batch.targets)]  # [N, D]
        parts = []
        rows = max(1, chunk_logits // model.config.vocab_size)
        for part, targets in zip(hidden.split(rows), batch.targets.split(rows)):
            parts.append(_log_probs_of(targets, model.logits(part)))
        for i, part in zip(chunk,
                           torch.cat(parts).cpu().split([sum(documents[i][1]) for i in chunk])):
            found[i] = part
    return found


@dataclass(kw_only=True)
class DecodingFlags:
    """The flags of every command that lets a model answer, wherever the model comes from."""

    system: str | None = flag(
        None, "system prompt (default: the run's, else the checkpoint's own; to a server none)")
    samples: int = flag(1, "completions of each problem", least=1)
    temperature: float = flag(0.0, "sampling temperature; 0 is greedy", least=0)
    top_p: float = flag(1.0, "sample among the likeliest tokens of this summed probability",
                        least=0, most=1)
    top_k: int = flag(0, "sample among this many likeliest tokens; 0 is all", least=0)
    max_new_tokens: int = flag(
        MAX_NEW_TOKENS, "longest completion in tokens, or less where the model ends", least=1)
    seed: int = flag(0, "seed of the sampling", least=0)
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, bf16 or fp32")
    debug: bool = flag(False, "show the traceback of an error")


@dataclass(kw_only=True)
class ApiFlags:
    """The flags of every command that can ask a server."""

    api_model: str | None = flag(None,
                                 "ask this model of a server instead (its key: OPENAI_API_KEY)")
    api_base: str | None = flag(
        None, "the server's address, mostly ending in /v1 (default: OPENAI_BASE_URL)")
    api_concurrency: int = flag(8, "requests under way at a time", least=1, most=256)
    api_rate: float = flag(0.0, "most requests a minute; 0 is no bound", least=0)
    api_timeout: float = flag(
        600.0, "seconds of silence after which a request is given up and sent again", least=0.1,
        most=86400)
    api_stream: bool = flag(
        False, "let the server send its reply in pieces, where idle connections are cut")


@dataclass(kw_only=True)
class SamplingFlags(DecodingFlags):
    """The flags of every command that lets one of our own models answer."""

    run: str | None = flag(None, "run directory of mathft.py: its model, adapter and system prompt")
    model: str | None = flag(None,
                             "model without a run: tiny, a folder or a hub id (default: tiny)")


@dataclass(kw_only=True)
class Flags(SamplingFlags):
    """The flags of `python generate.py`."""

    question: str = flag(MISSING, "the question; - reads it from stdin", positional=True)


def check_samples(flags: DecodingFlags) -> None:
    """Raise UsageError for several samples that would all be the same."""
    if flags.samples > 1 and flags.temperature == 0:
        raise UsageError(
            f"--samples {flags.samples} needs a --temperature above 0: greedy samples are all the same"
        )


def load_asked(flags: SamplingFlags) -> Run:
    """The run or the untuned model that the flags name, with the system prompt that is to be used."""
    if flags.run and flags.model:
        raise UsageError("--run and --model exclude each other: a run names its own model")
    check_samples(flags)
    keep_freed_memory()
    device = pick_device(flags.device)
    dtype = pick_dtype(flags.dtype, device)
    if flags.run:
        run = load_run(Path(flags.run), device, dtype)
        return run if flags.system is None else replace(run, system=flags.system)
    folder = find_model(flags.model or "tiny")
    tokenizer = Tokenizer(folder)
    system = tokenizer.default_system if flags.system is None else flags.system
    return Run(load_model(folder, device, dtype, dtype), tokenizer, None, system, {})


def main(argv: list[str]) -> None:
    """`python generate.py`: print the completions of one question."""
    flags = parse_flags(Flags, argv, "Complete one question, by a model or the result of a run.")
    question = (sys.stdin.read() if flags.question == "-" else flags.question).strip()
    if not question:
        raise UsageError(
            "the question is empty; write it behind the flags, or - and give it on stdin")
    run = load_asked(flags)
    prompt = run.tokenizer.prompt(question, run.system)
    completions = generate(run.model, [prompt], stop_ids=run.tokenizer.stop_ids,
                           vocab_size=run.tokenizer.size, max_new_tokens=flags.max_new_tokens,
                           samples=flags.samples, temperature=flags.temperature, top_p=flags.top_p,
                           top_k=flags.top_k, seed=flags.seed, prefix=run.prefix)
    for completion in sorted(completions, key=lambda completion: completion.sample):
        if flags.samples > 1:
            print(f"--- sample {completion.sample + 1} of {flags.samples}")
        print(run.tokenizer.decode(completion.ids))
        if completion.finish == "length":
            print(f"(no end within {len(completion.ids)} tokens)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
