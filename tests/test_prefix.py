"""What a prefix is, by equalities: a text's own keys and values stand in for it, in training,
decoding and peft.
"""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

import prefix as module
from adapters import Tuning
from attention import PackedAttention
from conftest import some_base
from generate import generate
from model import Config, Qwen2
from prefix import INSTRUCTION, Flags, Prefix, prefix_from_ids, read_prefix, start_prefix
from runtime import UsageError, UserError

P = 5
SHAPE = (2, 2, P, 2, 16)  # [L, 2, P, K, h] of the small model
A, B = [3, 14, 15, 92, 65], [35, 89, 79, 32, 38, 46, 26]


def make_models() -> tuple[Qwen2ForCausalLM, Qwen2]:
    """The same small random model (D 64, H 4, K 2, L 2, V 97) in transformers and in ours."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                 rms_norm_eps=1e-6)  # fmt: skip
    # Larger weights than usual, so that attention looks somewhere and a misplaced prefix shows.
    config = Qwen2Config(**sizes, initializer_range=0.1, tie_word_embeddings=False,
                         rope_parameters={"rope_theta": 1e4, "rope_type": "default"})  # fmt: skip
    theirs = Qwen2ForCausalLM(config).eval()
    for bias in (p for name, p in theirs.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(bias, std=0.1)
    ours = Qwen2(Config(**sizes, head_dim=16, rope_theta=1e4, tie_word_embeddings=False))
    ours.requires_grad_(False)  # frozen, as a prefix is trained
    ours.load_state_dict({name: tensor.clone() for name, tensor in theirs.state_dict().items()})
    return theirs, ours


@pytest.fixture
def model() -> Qwen2:
    return make_models()[1]


def random_prefix(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def logits(model: Qwen2, ids: list[int], prefix: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [T, V] of one document, every token fed at once (teacher forcing)."""
    attention = PackedAttention([len(ids)], prefix)
    return model.logits(model(torch.tensor(ids), attention.positions, attention))


def save_prefix(folder, prefix: torch.Tensor, base) -> None:
    module.save(folder, None, Tuning({}, lambda: prefix), base)


class Letters:
    """A tokenizer for the tests: one id per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 97 for letter in text]


# ---------------------------------------------------------------------- a text and its prefix agree


def test_the_keys_and_values_of_a_text_stand_in_for_the_text(model):
    prefix = prefix_from_ids(model, A)
    assert prefix.shape == SHAPE and prefix.dtype == torch.float32 and not prefix.requires_grad
    torch.testing.assert_close(logits(model, B, prefix),
                               logits(model, A + B)[len(A):], atol=1e-5, rtol=1e-5)
    assert (logits(model, B, prefix) - logits(model, B)).abs().max() > 0.1  # it does something


def test_every_packed_document_sees_the_prefix_and_no_other_document(model):
    prefix = random_prefix()
    attention = PackedAttention([len(B), len(A)], prefix)
    both = model.logits(model(torch.tensor(B + A), attention.positions, attention))
    alone = torch.cat((logits(model, B, prefix), logits(model, A, prefix)))
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)


def test_a_bf16_model_gives_and_takes_an_fp32_prefix(model):
    narrow = Qwen2(model.config, torch.bfloat16).to(torch.bfloat16)
    narrow.load_state_dict(model.state_dict())
    prefix = prefix_from_ids(narrow, A)
    assert prefix.dtype == torch.float32
    assert logits(narrow, B, prefix).dtype == torch.bfloat16


def test_cached_decoding_is_the_teacher_forced_pass(model):
    prefix = random_prefix()
    cache = [list(layer) for layer in prefix]  # per layer: keys [P + tokens, K, h] and values

    def attend(layer, query, key, value):  # one new token: [1, n, h]
        keys, values = cache[layer] = [torch.cat(pair) for pair in zip(cache[layer], (key, value))]
        q, k, v = (x.transpose(0, 1) for x in (query, keys, values))  # -> [n, tokens, h]
        return F.scaled_dot_product_attention(q[None], k[None], v[None],
                                              enable_gqa=True)[0].transpose(0, 1)

    ids, rows = list(B), []
    for index in range(len(B) + 20):
        rows.append(
            model.logits(model(torch.tensor([ids[index]]), torch.tensor([P + index]), attend)))
        if index + 1 >= len(ids):
            ids.append(int(rows[-1].argmax()))  # past the prompt, greedily on
    torch.testing.assert_close(torch.cat(rows), logits(model, ids[:-1], prefix), atol=1e-5,
                               rtol=1e-5)


def test_the_generator_decodes_behind_the_prefix(model):
    prefix, prompts = random_prefix(), [B, A]
    found = generate(model, prompts, stop_ids=(), vocab_size=97, max_new_tokens=15, prefix=prefix)
    for completion in found:
        prompt = prompts[completion.problem]
        rows = logits(model, prompt + completion.ids[:-1],
                      prefix)[len(prompt) - 1:]  # what predicts each new token
        assert rows.argmax(-1).tolist() == completion.ids
        best = rows.log_softmax(-1).max(-1).values
        assert completion.mean_log_prob == pytest.approx(best.mean().item(), abs=1e-5)


# ------------------------------------------------------------------------------------------- starts


def start(model, init: str, length: int = P, system: str = "Be exact.",
          seed: int = 0) -> torch.Tensor:
    return start_prefix(model, Letters(), init, length, system, seed)


def test_text_start_is_the_given_text_repeated_or_cut(model):
    assert torch.equal(start(model, "text:abc", 7),
                       prefix_from_ids(model,
                                       Letters().encode("abcabca")))
    assert torch.equal(start(model, "text:a:bc", 2), prefix_from_ids(model, Letters().encode("a:")))


def test_default_text_is_the_system_prompt_and_the_instruction(model):
    ids = Letters().encode(f"Be exact.\n{INSTRUCTION}\n")
    assert torch.equal(start(model, "text", 20), prefix_from_ids(model, ids[:20]))
    assert torch.equal(start(model, "text", len(ids) + 3), prefix_from_ids(model, ids + ids[:3]))


def test_zero_start(model):
    assert torch.equal(start(model, "zero"), torch.zeros(SHAPE))


def test_without_a_system_prompt_the_text_is_the_instruction_alone(model):
    assert torch.equal(start(model, "text", length=40, system="none"),
                       start(model, f"text:{INSTRUCTION}\n", length=40))


def test_random_start_follows_the_seed_alone(model):
    first = start(model, "random", seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, start(model, "random", seed=1))
    assert not torch.equal(first, start(model, "random", seed=2))
    assert first.shape == SHAPE and 0.015 < first.std() < 0.025


@pytest.mark.parametrize("init", ["texts", "ones", "", "zero:x", "text:"])
def test_an_unknown_start_is_a_usage_error(model, init):
    with pytest.raises(UsageError, match="--prefix-init"):
        start(model, init)


# ----------------------------------------------------------------------------------------- training


def make_optimizer(prefix: Prefix) -> torch.optim.Optimizer:
    return torch.optim.AdamW(prefix.parameters(), lr=1e-2, weight_decay=0.0)


def train(model: Qwen2, prefix: Prefix, optimizer: torch.optim.Optimizer,
          steps: int) -> list[float]:
    """Losses of some steps on one document."""
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(logits(model, B, prefix())[:-1], torch.tensor(B[1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("projection", [False, True])
def test_training_lowers_the_loss_and_leaves_the_model_untouched(model, projection):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prefix = Prefix(prefix_from_ids(model, A), projection)
    losses = train(model, prefix, make_optimizer(prefix), 10)
    assert losses[-1] < losses[0] - 0.2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("projection", [False, True])
def test_training_begins_at_the_start(projection):
    prefix = Prefix(random_prefix(), projection)
    assert torch.equal(prefix(), random_prefix())
    assert all(p.dtype == torch.float32 for p in prefix.parameters())


def test_training_does_not_write_into_the_tensor_it_starts_from(model):
    given = random_prefix()
    prefix = Prefix(given)
    train(model, prefix, make_optimizer(prefix), 1)
    assert torch.equal(given, random_prefix()) and not torch.equal(prefix(), given)


def test_the_projection_adds_an_mlp_of_the_embedding_to_the_start():
    prefix = Prefix(random_prefix(), projection=True, seed=1)
    assert {name for name, _ in prefix.named_parameters()} == {
        "embedding", "inner.weight", "inner.bias", "outer.weight", "outer.bias"}  # fmt: skip
    torch.nn.init.normal_(prefix.outer.weight)
    change = torch.tanh(
        prefix.embedding @ prefix.inner.weight.T) @ prefix.outer.weight.T  # [P, L·2·K·h]
    position, layer, kind, head = 3, 1, 0, 1  # layer 1's keys are slot 2; head 1 is its second half
    torch.testing.assert_close(
        (prefix() - random_prefix())[layer, kind, position, head],
        change[position].view(4, 2, 16)[2 * layer + kind, head],
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_projection_follows_the_seed_alone():
    torch.manual_seed(1)
    first = Prefix(random_prefix(), projection=True, seed=1).state_dict()
    torch.manual_seed(2)
    same, other = (Prefix(random_prefix(), projection=True, seed=seed).state_dict()
                   for seed in (1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embedding"], other["embedding"])
    assert not torch.equal(first["inner.weight"], other["inner.weight"])


@pytest.mark.parametrize("projection", [False, True])
def test_training_resumes_bit_for_bit(model, projection):
    whole = Prefix(random_prefix(), projection)
    losses = train(model, whole, make_optimizer(whole), 6)

    first = Prefix(random_prefix(), projection)
    optimizer = make_optimizer(first)
    start_of_losses = train(model, first, optimizer, 3)
    second = Prefix(torch.zeros(SHAPE), projection,
                    seed=9)  # whatever it began with, the state replaces it all
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    assert start_of_losses + train(model, second, resumed, 3) == losses
    assert torch.equal(second(), whole())


def test_training_goes_on_from_a_saved_prefix(tmp_path, model):
    """Peft cannot do this: what it saves opens for inference only.

    Ours needs no optimiser state to continue.
    """
    trained = Prefix(prefix_from_ids(model, A), projection=True)
    losses = train(model, trained, make_optimizer(trained), 5)
    save_prefix(tmp_path, trained(), some_base())
    opened = Prefix(read_prefix(tmp_path, model.config))
    assert train(model, opened, make_optimizer(opened), 1)[0] < losses[-1]


def test_what_is_loaded_trains_on(tmp_path, model):
    save_prefix(tmp_path, random_prefix(), some_base())
    tuning = module.load(tmp_path, model, Flags())
    assert torch.equal(tuning.prefix(), random_prefix())
    assert [p.requires_grad for p in tuning.trainable.values()] == [True]
    assert not any(p.requires_grad for p in model.parameters())


def test_a_prefix_cannot_be_merged(model):
    with pytest.raises(UserError, match="cannot be folded into the model's weights; go on with"):
        module.merge(model)


# -------------------------------------------------------------------------------------------- files


def test_saved_and_loaded_is_the_same(tmp_path, model):
    save_prefix(tmp_path, random_prefix(), some_base())
    assert torch.equal(read_prefix(tmp_path, model.config), random_prefix())


def test_the_layout_on_disk(tmp_path):
    save_prefix(tmp_path, random_prefix(), some_base())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["num_virtual_tokens"],
            settings["token_dim"]) == ("CAUSAL_LM", P, 32)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors.keys() == {"prompt_embeddings"
                              } and tensors["prompt_embeddings"].dtype == torch.float32
    slots = tensors["prompt_embeddings"].view(P, 4, 2, 16).permute(
        1, 2, 0, 3)  # [2L, K, P, h], as peft reads it
    assert torch.equal(slots[2], random_prefix()[1, 0].transpose(0, 1))  # the keys of layer 1
    assert torch.equal(slots[3], random_prefix()[1, 1].transpose(0, 1))  # and its values


@pytest.mark.parametrize("projection", [False, True])
def test_our_prefix_opens_in_peft(tmp_path, projection):
    theirs, ours = make_models()
    prefix = Prefix(prefix_from_ids(ours, A), projection)
    train(ours, prefix, make_optimizer(prefix), 3)
    save_prefix(tmp_path, prefix(), some_base())  # with a projection, the sum
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    mine = logits(ours, B, prefix()).detach()
    assert (mine - opened(torch.tensor([B])).logits[0]).abs().max() < 1e-5
    # Generating, peft builds positions of its own; the text must still be the argmax of our
    # teacher-forced pass.
    prompt = torch.tensor([B])
    text = opened.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt),
                           max_new_tokens=10, do_sample=False, eos_token_id=None,
                           pad_token_id=0)[0].tolist()  # fmt: skip
    assert logits(ours, text[:-1], prefix())[len(B) - 1 :].argmax(-1).tolist() == text[len(B) :]


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_of_peft_opens_here(tmp_path, projection):
    theirs, ours = make_models()
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P,
                                       prefix_projection=projection)
    made = peft.get_peft_model(theirs, settings).eval()
    made.save_pretrained(tmp_path)
    mine = logits(ours, B, read_prefix(tmp_path, ours.config))
    assert (mine - logits(ours, B)).abs().max() > 0.1
    assert (mine - made(torch.tensor([B])).logits[0]).abs().max() < 1e-5


BAD_SETTINGS = {
    "another kind": ({"peft_type": "LORA"}, "peft_type is 'LORA'"),
    "no length": ({"num_virtual_tokens": None}, "num_virtual_tokens is None"), "another length": ({
        "num_virtual_tokens": 4
    }, r"prompt_embeddings is \[5, 128\], not \[4, 128\]"), "more layers": ({
        "num_layers": 4
    }, "num_layers is 4; mathft needs 2 with this base model"), "more heads": ({
        "num_attention_heads": 4
    }, "num_attention_heads is 4"), "wider heads": ({"token_dim": 64}, "token_dim is 64"),
    "an encoder as well": ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
}


@pytest.mark.parametrize("change, message", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_do_not_fit_are_refused(tmp_path, model, change, message):
    save_prefix(tmp_path, random_prefix(), some_base())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuse(tmp_path, model, message)


def test_files_that_do_not_fit_are_refused(tmp_path, model):
    refuse(tmp_path, model, "adapter_config.json: no such file")
    save_prefix(tmp_path, random_prefix(), some_base())
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuse(tmp_path, model, "not a whole safetensors file")
    save_file({"another.name": torch.zeros(P, 128)}, path)
    refuse(tmp_path, model, "lacks prompt_embeddings")
    save_file({"prompt_embeddings": torch.zeros(P, 64)}, path)
    refuse(tmp_path, model, r"prompt_embeddings is \[5, 64\], not \[5, 128\]")
    path.unlink()
    refuse(tmp_path, model, "adapter_model.safetensors: no such file")


def refuse(folder, model: Qwen2, message: str) -> None:
    """Loading fails with one line that names the file."""
    with pytest.raises(UserError, match=message) as error:
        read_prefix(folder, model.config)
    assert str(error.value).startswith(f"{folder}/adapter_") and "\n" not in str(error.value)
