"""generate.py: a batch gives the texts that its rows give alone, and so does transformers."""

import io
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from attention import KVCache, PackedAttention
from checkpoint import load_model
from conftest import LAYOUTS, reference_model, write_layout
from flags import parse_flags, run_command
from generate import (SamplingFlags, _cache_for, _new_rows, generate, is_greedy, is_sampled,
                      load_asked, main, open_calculator, sample_tokens)
from model import Config, Qwen2
from prefix import prefix_from_ids
from runtime import UsageError
from tokenizer import Tokenizer

V, REAL = 97, 90  # vocabulary with and without its padding rows
STOPS = {7, 8, 9, 10, 11}


def make_model(positions: int = 128, **changes) -> Qwen2:
    """A small model with large random weights: its texts differ, and no loop ends them at once."""
    sizes = dict(vocab_size=V, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=6, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6,
                 rope_theta=1e4, tie_word_embeddings=False)
    model = Qwen2(Config(**sizes | changes, max_position_embeddings=positions))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if parameter.dim() == 1 else 0.3 * noise
    return model


@pytest.fixture(scope="module")
def model() -> Qwen2:
    return make_model()


def some_prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(REAL, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = some_prompts([3, 40, 1, 17, 2, 25, 60, 8, 1, 33])


def run(model: Qwen2, prompts: list[list[int]],
        **options) -> dict[tuple[int, int], tuple[list[int], str]]:
    """Ids and finish of each (problem, sample)."""
    options = dict(stop_ids=STOPS, vocab_size=REAL, max_new_tokens=30) | options
    completions = list(generate(model, prompts, **options))
    found = {(c.problem, c.sample): (c.ids, c.finish) for c in completions}
    assert len(found) == len(completions)
    return found


@torch.no_grad()
def greedy_without_cache(model: Qwen2, prompt: list[int], limit: int,
                         stop_ids=STOPS) -> tuple[list[int], str]:
    """The plain way: the whole text goes through the model for every new token."""
    new = []
    while len(new) < limit:
        ids = prompt + new
        attention = PackedAttention([len(ids)])
        hidden = model(torch.tensor(ids), attention.positions, attention)
        token = model.logits(hidden[-1])[:REAL].argmax().item()
        if token in stop_ids:
            return new, "stop"
        new.append(token)
    return new, "length"


# ------------------------------------------------------------------------------------- greedy texts


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_a_batch_gives_the_texts_that_its_rows_give_alone(model, rows):
    alone = {(i, 0): greedy_without_cache(model, prompt, 30) for i, prompt in enumerate(PROMPTS)}
    assert {finish
            for _, finish in alone.values()} == {"stop", "length"}  # rows leave at different times
    assert len({len(ids) for ids, _ in alone.values()}) > 4
    assert run(model, PROMPTS, rows=rows) == alone
    assert run(model, PROMPTS, rows=rows, prefill_tokens=50) == alone  # prompts read in small packs


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_greedy_texts_are_those_of_transformers(kv_heads):
    from transformers import GenerationConfig

    theirs = reference_model(num_attention_heads=4, num_key_value_heads=kv_heads)
    config = theirs.config
    ours = Qwen2(
        Config(config.vocab_size, config.hidden_size, config.intermediate_size,
               config.num_hidden_layers, 4, kv_heads, 12, config.rms_norm_eps, 1e6, 256,
               tie_word_embeddings=True))
    state = {
        name: tensor
        for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"
    }
    ours.load_state_dict(state, strict=True)
    prompts, real, stops = some_prompts([1, 5, 30, 12, 50, 2]), 300, list(range(60))
    settings = GenerationConfig(do_sample=False, repetition_penalty=1.0, max_new_tokens=40,
                                eos_token_id=stops, pad_token_id=0, suppress_tokens=list(
                                    range(real, 320)))
    expected = {}
    for number, prompt in enumerate(prompts):
        new = theirs.generate(torch.tensor([prompt]),
                              generation_config=settings)[0, len(prompt):].tolist()
        expected[number, 0] = (new[:-1], "stop") if new[-1] in stops else (new, "length")
    assert len({finish for _, finish in expected.values()}) == 2
    assert run(ours, prompts, stop_ids=stops, vocab_size=real, max_new_tokens=40,
               rows=4) == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_completions_of_each_published_layout_are_those_of_transformers(name, tmp_path):
    """Its own prompt, rotary base, head and stops, from the files as they are published."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    folder = write_layout(tmp_path, name)
    tokenizer, theirs = Tokenizer(folder), AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32)
    ours = load_model(folder, "cpu", torch.float32, torch.float32)
    assert ours.config.rope_theta == LAYOUTS[name]["theta"]
    assert ours.config.tie_word_embeddings == LAYOUTS[name]["tied"]
    # A random model seldom stops: digits end its texts here too.
    stops = sorted({*tokenizer.stop_ids, *range(40)})
    settings = GenerationConfig(do_sample=False, repetition_penalty=1.0, max_new_tokens=30,
                                eos_token_id=stops, pad_token_id=0,
                                suppress_tokens=list(range(tokenizer.size, 320)))
    prompts = [tokenizer.prompt(f"What is {n} + {n}?") for n in range(6)]
    expected = {}
    for number, prompt in enumerate(prompts):
        new = theirs.generate(torch.tensor([prompt]),
                              generation_config=settings)[0, len(prompt):].tolist()
        expected[number, 0] = (new[:-1], "stop") if new[-1] in stops else (new, "length")
    assert run(ours, prompts, stop_ids=stops, vocab_size=tokenizer.size, rows=4) == expected


def test_padding_rows_of_the_vocabulary_are_never_chosen(model):
    everything = run(model, PROMPTS, vocab_size=V, stop_ids=())
    assert max(token for ids, _ in everything.values() for token in ids) >= REAL  # they would be
    for options in ({}, {"temperature": 2.0}, {"temperature": 2.0,
                                               "top_p": 0.9}, {"temperature": 2.0, "top_k": 80}):
        real = run(model, PROMPTS, stop_ids=(), samples=1 + 4 * bool(options), **options)
        assert max(token for ids, _ in real.values() for token in ids) < REAL


def test_bf16_runs(model):
    small = make_model().to(torch.bfloat16)
    small.compute_dtype = torch.bfloat16
    found = run(small, PROMPTS, samples=2, temperature=0.7, rows=4)
    assert len(found) == 2 * len(PROMPTS)


# ------------------------------------------------------------------------------------------- limits


def test_each_prompt_may_have_its_own_limit(model):
    limits = [3, 1, 9, 0, 5, 7, 2, 2, 4, 1]
    found = run(model, PROMPTS, stop_ids=(), max_new_tokens=limits, rows=2)
    longest = run(model, PROMPTS, stop_ids=(), max_new_tokens=9, rows=2)
    for (problem, _), (ids, finish) in found.items():
        assert (len(ids), finish) == (limits[problem], "length")
        assert ids == longest[problem, 0][0][: limits[problem]]


def test_a_full_cache_ends_by_length():
    """16 positions: prompt and completion together hold no more, whatever was asked."""
    model = make_model(positions=16)
    prompts = some_prompts([1, 10, 15, 16, 17, 40])
    found = run(model, prompts, stop_ids=(), max_new_tokens=100)
    assert [len(found[i, 0][0]) for i in range(6)] == [15, 6, 1, 0, 0, 0]
    assert {finish for _, finish in found.values()} == {"length"}
    assert all(found[i, 0] == greedy_without_cache(model, prompts[i], 16 - len(prompts[i]), ())
               for i in range(3))
    assert run(model, prompts[3:], samples=2) == {(i, s): ([], "length")
                                                  for i in range(3)
                                                  for s in range(2)}
    prefix = torch.zeros(2, 2, 4, 2, 8)  # a prefix takes its share of the positions
    found = run(model, prompts, stop_ids=(), max_new_tokens=100, prefix=prefix)
    assert [len(found[i, 0][0]) for i in range(6)] == [11, 2, 0, 0, 0, 0]


def test_an_empty_prompt_is_an_error_and_no_prompt_is_none(model):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        run(model, [[1], []])
    assert run(model, []) == {}


# ----------------------------------------------------------------------------------------- sampling


def test_a_sample_follows_seed_problem_and_sample_alone(model):
    sampling = dict(samples=3, temperature=1.0, seed=5)
    whole = run(model, PROMPTS, rows=64, **sampling)
    assert len({tuple(ids) for ids, _ in whole.values()}) > 2 * len(PROMPTS)  # they do differ
    assert run(model, PROMPTS, rows=4, **sampling) == whole  # other neighbours
    assert run(model, PROMPTS, rows=1, prefill_tokens=1, **sampling) == whole
    first_two = run(model, PROMPTS, **sampling | {"samples": 2})  # fewer samples
    assert first_two == {pair: text for pair, text in whole.items() if pair[1] < 2}
    some = run(model, PROMPTS[:4], **sampling)  # fewer problems
    assert some == {pair: text for pair, text in whole.items() if pair[0] < 4}
    done = {pair for pair in whole if sum(pair) % 3}  # what an interrupted run has not done yet
    assert run(model, PROMPTS, skip=done, rows=5,
               **sampling) == {p: text
                               for p, text in whole.items() if p not in done}
    assert run(model, PROMPTS, **sampling | {"seed": 6}) != whole


def reference_distribution(logits: torch.Tensor, temperature: float, top_p: float,
                           top_k: int) -> torch.Tensor:
    """Temperature, then top-k, then top-p, for one row and one token at a time."""
    probs = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    kept = order[:top_k] if top_k else order
    mass, total, chosen = 0.0, sum(probs[token] for token in kept), []
    for token in kept:
        if mass / total < top_p or not chosen:
            chosen.append(token)
            mass += probs[token]
    result = torch.zeros_like(probs)
    result[chosen] = probs[chosen] / probs[chosen].sum()
    return result


@pytest.mark.parametrize("temperature, top_p, top_k", [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.0, 0.8, 0),
                                                       (0.7, 0.8, 20), (1.5, 1.0, 3), (1.0, 0.0, 0),
                                                       (1.0, 1.0, 1), (2.0, 0.95, 0),
                                                       (1.0, 0.5, 5000), ])  # fmt: skip
def test_temperature_top_k_and_top_p_against_a_small_reference(temperature, top_p, top_k):
    """With uniforms spread evenly over [0, 1), the shares drawn are the probabilities."""
    draws = 4000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    # 1000 nearly equal tokens: more than the few that are looked at first. The mass of the other
    # rows lies on few tokens.
    flat, steep = 0.1 * torch.randn(1000,
                                    generator=torch.Generator().manual_seed(3)), torch.linspace(
                                        0, 30, 1000)
    steep = steep[torch.randperm(1000, generator=torch.Generator().manual_seed(4))]
    for logits in (flat, steep):
        tokens = sample_tokens(logits.expand(draws, -1), uniforms, temperature, top_p, top_k)
        expected = reference_distribution(logits, temperature, top_p, top_k)
        shares = torch.bincount(tokens, minlength=1000) / draws
        assert (shares - expected).abs().max() <= 1.01 / draws
        assert not shares[expected == 0].any()
    # Rows do not see each other, also where only one of them needs more tokens looked at.
    both = sample_tokens(torch.stack((flat, steep)), uniforms[[1234, 2345]], temperature, top_p,
                         top_k)
    assert both[0] == sample_tokens(flat[None], uniforms[[1234]], temperature, top_p, top_k)[0]
    assert both[1] == sample_tokens(steep[None], uniforms[[2345]], temperature, top_p, top_k)[0]


@pytest.mark.parametrize("temperature, top_p, top_k", [(0.7, 0.8, 20), (1.3, 0.6, 0),
                                                       (0.9, 1.0, 7)])
def test_the_kept_tokens_are_those_of_transformers(temperature, top_p, top_k):
    from transformers import (LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper,
                              TopPLogitsWarper)

    logits = 2 * torch.randn(1, 400, generator=torch.Generator().manual_seed(5))
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = LogitsProcessorList(warpers)(None, logits)[0].softmax(-1)
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    tokens = sample_tokens(logits.expand(20000, -1), uniforms, temperature, top_p, top_k)
    assert (torch.bincount(tokens, minlength=400) / 20000 - expected).abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1.2e-38, 1e-38, 1e-40, 5e-324])
def test_a_steep_temperature_is_greedy(model, temperature):
    """Also one that fp32 holds only with few bits (1e-40), or not at all."""
    assert run(model, PROMPTS[:2], temperature=temperature) == run(model, PROMPTS[:2])


@pytest.mark.parametrize("kept", [{}, {"top_p": 0.9}, {"top_k": 3}, {"top_p": 0.9, "top_k": 3}])
def test_no_temperature_that_samples_overflows(kept):
    """Down to the least normal number of fp32; logits may be large, and differ by little."""
    least = torch.finfo(torch.float32).tiny
    assert not is_greedy(least) and is_greedy(math.nextafter(least, 0)) and is_greedy(0.0)
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1e30, -1e31, -1e32], [3e38, 0.0, -3e38],
                           [1e-30, 0.0, 2e-30]])
    for shares in (0.0, 0.5, 1 - 2**-53):
        uniforms = torch.full((4,), shares, dtype=torch.float64)
        assert sample_tokens(logits, uniforms, least, **kept).tolist() == [1, 0, 0, 2]


# ----------------------------------------------------------------- prefix and teacher-forced passes


def test_a_prefix_of_real_keys_and_values_stands_for_its_text(model):
    front = [5, 60, 33, 2, 71, 44]
    with torch.no_grad():
        prefix = prefix_from_ids(model, front)
    assert prefix.shape == (2, 2, len(front), 2, 8)
    whole = run(model, [front + prompt for prompt in PROMPTS])
    assert run(model, PROMPTS, prefix=prefix, rows=4) == whole
    assert whole != run(model, PROMPTS)


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_cached_decoding_equals_the_teacher_forced_pass(model, with_prefix, temperature):
    """mean_log_prob comes from the cache step by step; here one pass reads the whole text."""
    prefix = torch.randn(2, 2, 5, 2, 8,
                         generator=torch.Generator().manual_seed(6)) if with_prefix else None
    options = dict(vocab_size=V, max_new_tokens=30, samples=2, temperature=temperature, top_k=20,
                   rows=6, prefix=prefix)
    stop = min(generate(model, PROMPTS, stop_ids=(), **options), key=lambda c:
               (c.problem, c.sample)).ids[9]
    completions = list(generate(model, PROMPTS, stop_ids={stop}, **options))
    assert "stop" in {completion.finish for completion in completions}
    for completion in completions:
        prompt = PROMPTS[completion.problem]
        new = completion.ids + [stop] * (completion.finish == "stop")
        ids = torch.tensor(prompt + new)
        attention = PackedAttention([len(ids)], prefix)
        with torch.no_grad():
            logits = model.logits(model(ids, attention.positions, attention))
        found = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[len(prompt):, None])
        assert completion.mean_log_prob == pytest.approx(found.mean().item(), abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("how", [{}, {"temperature": 0.9, "samples": 3},
                                 {"temperature": 0.9, "samples": 3, "top_p": 0.8, "top_k": 20}])
@pytest.mark.parametrize("rows", [1, 4, None])
def test_recorded_steps_give_the_texts_of_steps_that_are_not(rows, how, monkeypatch):
    """And those of the CPU, in fp32."""
    expected = run(make_model(), PROMPTS, rows=rows, **how)
    model = make_model().to("cuda")
    recorded = run(model, PROMPTS, rows=rows, **how)
    monkeypatch.setattr("fast.RecordedSteps.__call__", lambda self, key, *given: self.step(*given))
    assert recorded == run(model, PROMPTS, rows=rows, **how) == expected


def test_between_two_completions_gradients_are_on(model):
    """Generation computes none, but leaves them on for its caller, who reads one text at a time."""
    completions = generate(model, PROMPTS, stop_ids=STOPS, vocab_size=REAL, max_new_tokens=5)
    next(completions)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_memory_is_bounded_by_the_rows_and_their_length(model):
    """The cache is little larger than the longest text needs, and shrinks when that has left."""
    cache = KVCache(model.config, 4, 300, torch.float32, torch.device("cpu"))
    slots = []
    for positions in ([3, 9], [63], [64], [299], [200], [170], [9]):
        cache.fit(max(positions) + 1)
        cache.begin_step(torch.tensor(positions))
        slots.append(cache.layers[0].shape[3])
    assert slots == [64, 64, 128, 300, 300, 192, 64]


@pytest.mark.parametrize("layers, heads, size, positions, rows, slots, mib", [
    (24, 2, 64, 32768, 10, 8292, 972),  # 0.5B: 12 KiB a slot
    (28, 2, 128, 4096, 9, 4095, 1008),  # Math-1.5B: 28 KiB a slot, and no more positions
    (28, 2, 128, 131072, 4, 8292, 907),  # R1-Distill-1.5B
    (28, 4, 128, 131072, 2, 8292, 907),  # 7B
])  # fmt: skip
def test_long_answers_of_published_shapes_in_a_gibibyte(layers, heads, size, positions, rows, slots,
                                                        mib):
    """8,192 new tokens behind a prompt of 101: what is told beside the rule by hand, in bf16."""
    shape = SimpleNamespace(num_hidden_layers=layers, num_key_value_heads=heads, head_dim=size)
    model = SimpleNamespace(config=shape, compute_dtype=torch.bfloat16,
                            head_weight=torch.empty(0))
    todo = _new_rows([[1] * 101] * 20, [(i, 0) for i in range(20)], [8192] * 20, 0, positions, 0)
    told = []
    cache = _cache_for(model, todo, None, told.append)
    assert cache.layers[0].shape == (2, rows, heads, 0, size) and cache.max_slots == slots
    exact = rows * slots * layers * heads * size * 2 * 2 / 2**20
    assert mib - 1 < exact <= mib <= 1024
    line = f"20 completions, {rows} at a time, of up to {slots} slots: at most {mib} MiB"
    assert told == [f"{line} of keys and values"]
    _cache_for(model, todo, 3, told.append)  # rows that are given
    assert ", 3 at a time," in told[1]


def test_the_cache_never_takes_more_than_was_told(model, monkeypatch):
    """A bound of 64 KiB: rows wait, and the texts are the same."""
    expected, told, sizes = run(model, PROMPTS), [], []
    monkeypatch.setattr("generate.CACHE_BYTES", 1 << 16)
    begin_step = KVCache.begin_step

    def measured(self, positions):
        found = begin_step(self, positions)
        sizes.append(sum(layer.nbytes for layer in self.layers))
        return found

    monkeypatch.setattr(KVCache, "begin_step", measured)
    assert run(model, PROMPTS, tell=told.append) == expected
    slots = max(map(len, PROMPTS)) + 30 - 1
    line = f"10 completions, 2 at a time, of up to {slots} slots: at most 1 MiB"
    assert told == [f"{line} of keys and values"]
    assert max(sizes) <= 2 * slots * 2 * 2 * 2 * 8 * 4 <= 1 << 16
    assert run(model, PROMPTS, skip={(i, 0) for i in range(10)}, tell=told.append) == {}
    assert len(told) == 1  # nothing is left to decode


def test_a_cache_that_grows_and_shrinks_keeps_its_tokens(model, monkeypatch):
    expected = run(model, PROMPTS)
    for slots, long in ((1, 1024), (3, 1024), (16, 1024), (2, 8)):
        monkeypatch.setattr("attention.SLOTS", slots)
        monkeypatch.setattr("attention.LONG", long)
        assert run(model, PROMPTS) == run(model, PROMPTS, rows=2) == expected


def test_a_cache_of_long_rows_changes_its_size_seldom():
    """And a step reads few slots in vain."""
    cache = KVCache(make_model().config, 1, 10_000, torch.float32, torch.device("cpu"))
    sizes = []
    for tokens in range(1, 8000, 7):
        cache.fit(tokens)
        assert tokens <= cache.slots <= tokens + max(64, tokens // 16)
        sizes.append(cache.slots)
    assert len(set(sizes)) < 60
    cache.fit(100)
    assert cache.slots == 128


# ------------------------------------------------------------------------------------- a calculator


class Writer(Qwen2):
    """A model that wants to write `script`, behind a prompt of one token."""

    script: list[int]

    def forward(self, ids, positions, *args, **options):
        self.positions = positions.tolist()
        return super().forward(ids, positions, *args, **options)

    def logits(self, hidden):
        logits = super().logits(hidden)
        for row, position in enumerate(self.positions):
            logits[row, self.script[position % len(self.script)]] = 100.0
        return logits


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer(tokenizer_folder)


def written(tokenizer: Tokenizer, script: list[int], limit: int = 99, calculator: bool = True):
    """What is left of a script."""
    model = make_model(vocab_size=round(tokenizer.size, -1) + 10)
    model.__class__ = Writer
    model.script = [*script, tokenizer.end_id]
    [done] = generate(model, [[1]], stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.size,
                      max_new_tokens=limit, calculator=open_calculator(tokenizer, calculator))
    return done


@pytest.mark.parametrize("script, text", [
    ("48/2 = <<48/2=99>>24.", "48/2 = <<48/2=24>>24."),  # a wrong result does not come about
    ("<<2*3=0>>, <<6+6=00>> so 12", "<<2*3=6>>, <<6+6=12>> so 12"),
    ("<<1/0=8>> <<10/3=3.3>>", "<<1/0=8>> <<10/3=3.3>>"),  # nothing is put in
    ("so 3+4=8", "so 3+4=8"),  # no mark
])  # fmt: skip
def test_results_take_the_place_of_what_the_model_writes(tokenizer, script, text):
    done = written(tokenizer, tokenizer.encode(script))
    assert (tokenizer.decode(done.ids), done.finish, done.stop_id) == (
        text, "stop", tokenizer.end_id)
    results = [tokenizer.decode(done.ids[start:end]) for start, end in done.put_in]
    assert results == [part + ">>" for part in ("24", "6", "12") if f"={part}>>" in text]
    assert is_sampled(len(done.ids), done.put_in).count(False) == sum(
        end - start for start, end in done.put_in)
    # Its own tokens have all the probability, and those of others do not count.
    assert done.mean_log_prob == pytest.approx(0, abs=1e-4)
    without = written(tokenizer, tokenizer.encode(script), calculator=False)
    assert (tokenizer.decode(without.ids), without.put_in) == (script, [])


def test_stops_and_limits_hold(tokenizer):
    mark = tokenizer.encode("<<48/2=")
    end = [tokenizer.end_id]
    # The model would stop where the result is put in; it stops behind it.
    early = written(tokenizer, mark + end * 20)
    assert (tokenizer.decode(early.ids), early.finish) == ("<<48/2=24>>", "stop")
    stopped = written(tokenizer, mark[:-1] + end)
    assert (stopped.ids, stopped.put_in, stopped.finish) == (mark[:-1], [], "stop")
    for more in range(3):  # the limit comes before the result, or within it
        cut = written(tokenizer, mark + [5] * 20, limit=len(mark) + more)
        assert (len(cut.ids), cut.finish) == (len(mark) + more, "length")
        assert cut.put_in == ([[len(mark), len(mark) + more]] if more else [])
        assert tokenizer.decode(cut.ids) == "<<48/2=" + "24"[:more]


def put_behind_even(ids: list[int]) -> list[int]:
    """In the place of a calculator: two tokens behind every even one."""
    return [31, 33] if ids[-1] % 2 == 0 else []


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_put_in_tokens_are_read_and_count_in_no_log_prob(model, temperature):
    """Against one pass over the whole text."""
    sampled = 0
    for done in generate(model, PROMPTS, stop_ids=STOPS, vocab_size=REAL, max_new_tokens=20,
                         temperature=temperature, samples=2, calculator=put_behind_even):
        new = done.ids + [done.stop_id] * (done.finish == "stop")
        ids = torch.tensor(PROMPTS[done.problem] + new)
        attention = PackedAttention([len(ids)])
        with torch.no_grad():
            logits = model.logits(model(ids, attention.positions, attention))[-len(new) - 1 : -1]
        known = logits.log_softmax(-1).gather(1, ids[-len(new):, None])[:, 0]
        own = torch.tensor(is_sampled(len(new), done.put_in))
        assert done.mean_log_prob == pytest.approx(known[own].mean().item(), abs=1e-5)
        if temperature == 0:  # the model has seen what was put in
            assert torch.equal(logits[own, :REAL].argmax(-1), ids[-len(new):][own])
        for start, end in done.put_in:
            assert done.ids[start:end] == [31, 33][: end - start] and done.ids[start - 1] % 2 == 0
        sampled += len(own) - own.sum().item()
    assert sampled > 40


def test_with_a_calculator_a_sample_follows_seed_problem_and_sample_alone(model):
    sampling = dict(samples=3, temperature=1.0, seed=5, calculator=put_behind_even)
    whole = run(model, PROMPTS, rows=64, **sampling)
    assert run(model, PROMPTS, rows=3, prefill_tokens=1, **sampling) == whole
    done = {pair for pair in whole if sum(pair) % 3}  # what an interrupted run has not done yet
    assert run(model, PROMPTS, skip=done, rows=5, **sampling) == {
        pair: text for pair, text in whole.items() if pair not in done}


# -------------------------------------------------------------------------------------- the command


def test_the_command_prints_the_completion(tiny_folder, capsys, monkeypatch):
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    settings = dict(stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.size, max_new_tokens=9)
    [expected] = generate(model, [tokenizer.prompt("What is 1 + 2?", "Be brief.")], **settings)
    words = ["--model", str(tiny_folder), "--system", "Be brief.", "--max-new-tokens", "9"]
    words += ["--dtype", "fp32", "--device", "cpu"]
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1 + 2?\n"))
    assert run_command(main, [*words, "-"]) == 0
    assert capsys.readouterr().out == tokenizer.decode(expected.ids) + "\n"
    assert run_command(main,
                       [*words, "--samples", "2", "--temperature", "1", "What is 1 + 2?"]) == 0
    told = capsys.readouterr().out
    assert "--- sample 1 of 2\n" in told and "--- sample 2 of 2\n" in told


def test_a_model_whose_numbers_are_nan_says_so(tiny_folder, tmp_path, capsys):
    """Its tokens would look like an answer."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    words = ["--model", str(folder), "--max-new-tokens", "3", "--dtype", "fp32", "--device", "cpu"]
    for more in ([], ["--temperature", "1"],
                 ["--samples", "2", "--temperature", "1", "--top-p", "0.9"]):
        assert run_command(main, [*words, *more, "why?"]) == 1
        told = capsys.readouterr()
        assert told.out == "" and told.err == (
            "error: the model gives no finite probabilities; are its weights NaN or infinite?\n")


@pytest.mark.parametrize("words, code, part", [
    (["--adapter", "m", "--run", "r", "why?"], 2, "--run excludes --adapter"),
    (["--samples", "2", "why?"], 2, "--temperature"),
    ([" "], 2, "question is empty"),
    (["--top-p", "2", "why?"], 2, "above 1"),
    (["--run", "no/such/run", "why?"], 1, "no/such/run"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(words, code, part, capsys):
    assert run_command(main, words) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(
        "error: ") and part in told.err and told.err.count("\n") == 1


def test_an_adapter_without_a_run(tiny_folder, tmp_path):
    """`--adapter DIR --model BASE`: peft's own file, and the model's system prompt."""
    import peft
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder)
    settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(theirs, settings).save_pretrained(tmp_path / "adapter")
    common = ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "fp32"]
    run = load_asked(parse_flags(SamplingFlags, [*common, "--adapter", str(tmp_path / "adapter")]))
    plain = load_asked(parse_flags(SamplingFlags, common))
    assert run.system == plain.system == run.tokenizer.default_system
    attention = PackedAttention([9])
    ids = torch.arange(9)
    ours, base = (r.model.logits(r.model(ids, attention.positions, attention))
                  for r in (run, plain))
    expected = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder),
                                              tmp_path / "adapter")(ids[None]).logits[0]
    assert (ours - base).abs().max() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_run_and_an_adapter_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="--run excludes --adapter"):
        load_asked(parse_flags(SamplingFlags, ["--run", "x", "--adapter", "y"]))
