"""Checkpoints in every spelling, what we save in transformers, what is broken in one line, and the
hub.
"""

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint
import children
import mathft
from attention import PackedAttention
from checkpoint import (checkpoints, find_model, fingerprint, load_model, load_state, read_config,
                        save_model, save_state)
from conftest import reference_model
from data import load_problems
from distill import teacher_folder
from evaluate import main as evaluate_main
from flags import run_command
from generate import generate, main as generate_main
from methods import METHODS, load_adapter, load_run
from runtime import UserError
from tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
IDS = torch.arange(3, 43) * 7 % 320


def load(folder: Path, dtype: torch.dtype = torch.float32):
    return load_model(folder, "cpu", dtype, dtype)


def our_logits(model, prefix=None) -> torch.Tensor:
    attention = PackedAttention([len(IDS)], prefix)
    with torch.no_grad():
        return model.logits(model(IDS, attention.positions, attention))


def their_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS[None]).logits[0]


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the small checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_json(path: Path, **changes) -> None:
    """Set keys of a JSON file; None takes a key away."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value
                                for name, value in values.items() if value is not None}))


def change_weights(folder: Path, **changes) -> None:
    """Put tensors into the single weights file under names with `__` for the dots; None takes one
    away.
    """
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    kept = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def old_spelling(folder: Path) -> None:
    """config.json as transformers 4 wrote it and as Qwen published it."""
    new = dict(rope_parameters=None, dtype=None, layer_types=None)
    change_json(folder / "config.json", **new, rope_theta=1e6, torch_dtype="float32")


# ------------------------------------------------------------------------------ reading and writing


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", ["5GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("spelling", ["transformers 5", "old"])
def test_all_layouts_give_the_logits_of_transformers(spelling, shards, tied, tmp_path):
    theirs = reference_model(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "20KB")
    if spelling == "old":
        old_spelling(tmp_path)
    assert (our_logits(load(tmp_path)) - their_logits(theirs)).abs().max() < 1e-4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_we_save_opens_in_transformers(tied, tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Unlike what transformers takes where it finds no setting: theta 10000, eps 1e-6.
    theirs = reference_model(tie_word_embeddings=tied, rms_norm_eps=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours", source=tokenizer_folder, dtype=torch.float32)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6  # both spellings
    assert config["dtype"] == config["torch_dtype"] == "float32"

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.float32
    torch.testing.assert_close(their_logits(again), their_logits(theirs), atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").eos_token_id == Tokenizer(
        tmp_path / "ours").end_id
    assert torch.equal(our_logits(load(tmp_path / "ours")), our_logits(ours))


def test_weights_are_published_in_bf16_unless_asked(tiny_folder, tmp_path):
    model = load(tiny_folder)
    save_model(model, tmp_path / "published", source=tiny_folder)
    stored = load_file(tmp_path / "published" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name], tensor.bfloat16())
    assert (tmp_path / "published" / "generation_config.json").exists()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
def test_weights_are_cast_to_the_wanted_dtype(stored, wanted, folder):
    tensors = {
        name: tensor.to(stored)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")
    model = load_model(folder, "cpu", torch.bfloat16, wanted)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == wanted and torch.equal(parameter, tensors[name].to(wanted))


def test_absent_settings_that_have_one_meaning(folder):
    """No head_dim is D / H; no tie_word_embeddings is transformers' false; no rope_type is plain
    positions.
    """
    before = read_config(folder)
    change_json(folder / "config.json", rope_parameters={"rope_theta": 1e6},
                rope_scaling={"type": "default"})
    assert read_config(folder) == before and before.head_dim == 48 // 6
    change_json(folder / "config.json", tie_word_embeddings=None)
    assert read_config(folder).tie_word_embeddings is False


# ---------------------------------------------------------------------------------------- bad input

BAD_SETTINGS = {
    "no rope_theta": (dict(rope_parameters=None), "has no rope_theta"),
    "a block without rope_theta": (dict(rope_parameters={"rope_type": "default"}),
                                   "has no rope_theta"), "another model": (dict(model_type="llama"),
                                                                           "model_type is 'llama'"),
    "a sliding window": (dict(use_sliding_window=True), "use_sliding_window is True"),
    "a sliding layer": (dict(layer_types=["full_attention", "sliding_attention"]),
                        "layer_types is"),
    "scaled positions": (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}),
                         "rope_parameters is"),
    "scaled positions, old": (dict(rope_scaling={"type": "dynamic", "factor": 2}),
                              "rope_scaling is"), "scaled by a list": (dict(rope_parameters=[1]),
                                                                       "rope_parameters is [1]"),
    "another activation": (dict(hidden_act="gelu"), "hidden_act is gelu"),
    "tied, not in the file": (dict(tie_word_embeddings=False),
                              "tie_word_embeddings is false, but the weights lack"),
    "tied maybe": (dict(tie_word_embeddings="yes"), "tie_word_embeddings is yes"),
    "a size as text": (dict(hidden_size="48"), "hidden_size is 48; a whole number in 0"),
    "a size that is true": (dict(num_hidden_layers=True), "num_hidden_layers is True"),
    "a size with a point": (dict(vocab_size=320.0), "vocab_size is 320.0"),
    "no layers": (dict(num_hidden_layers=0),
                  "num_hidden_layers is 0"), "no such size": (dict(num_key_value_heads=None),
                                                              "num_key_value_heads is None"),
    "a million layers": (dict(num_hidden_layers=10**6),
                         "num_hidden_layers is 1000000, but there are 38 tensors"),
    "a vast layer": (dict(intermediate_size=10**12), "intermediate_size is 1000000000000"),
    "a large layer": (dict(intermediate_size=10**6),
                      "is [48, 80], but config.json makes it [48, 1000000]"),
    "heads that share unequally": (dict(num_key_value_heads=4), "multiple of num_key_value_heads"),
    "heads that do not divide": (dict(num_attention_heads=7),
                                 "head_dim is no divisor of hidden_size"),
    "an odd head": (dict(head_dim=7),
                    "head size even"), "a negative eps": (dict(rms_norm_eps=-1e-6),
                                                          "rms_norm_eps is -1e-06"),
    "an infinite theta": (dict(rope_parameters={"rope_theta": float("inf")}),
                          "Infinity is no JSON"),
    "fewer layers than stored": (dict(num_hidden_layers=2),
                                 "also hold model.layers.2.input_layernorm.weight and 11"),
    "more layers than stored": (dict(num_hidden_layers=4),
                                "lack model.layers.3.input_layernorm.weight and 11 more"),
}


@pytest.mark.parametrize("changes, message", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings(changes, message, folder):
    change_json(folder / "config.json", **changes)
    expect_error(folder, message)


def expect_error(folder: Path, message: str) -> None:
    """Loading fails with one line that names a file (or the folder) and holds the message."""
    with pytest.raises(UserError) as error:
        load(folder)
    assert message in str(error.value)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


BAD_WEIGHTS = {
    "a missing tensor": (dict(model__norm__weight=None), "the weights lack model.norm.weight;"),
    "an extra tensor": (dict(model__norm__bias=torch.ones(48)),
                        "the weights also hold model.norm.bias;"),
    "tied, but in the file": (dict(lm_head__weight=torch.ones(320, 48)),
                              "tie_word_embeddings is true, but the"),
    "a wrong shape": (dict(model__norm__weight=torch.ones(1, 48)),
                      "model.norm.weight is [1, 48], but config.json"),
    "whole numbers": (dict(model__norm__weight=torch.ones(48).char()),
                      "model.norm.weight is stored as I8"),
}


@pytest.mark.parametrize("changes, message", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights(changes, message, folder):
    change_weights(folder, **changes)
    expect_error(folder, message)


def test_what_says_nothing_new_is_passed_over(folder):
    """As transformers does: a tied head that is written out, and rotary frequencies."""
    before = our_logits(load(folder))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(folder, **{"lm_head.weight": embedding.clone(),
                              "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(our_logits(load(folder)), before)
    assert "lm_head.weight" not in load(folder).state_dict()


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_folder_is_named(method, folder):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    expect_error(folder, f"config.json: quantised ({method}), not supported")
    (folder / "config.json").write_text(json.dumps(config))  # as older ones: the tensors say it
    name = "model.layers.0.mlp.up_proj" + {"gptq": ".qweight", "awq": ".qzeros"}.get(
        method, ".weight.absmax")
    change_weights(folder, **{name: torch.zeros(3)})
    expect_error(folder, "quantised, not supported")


def test_a_run_and_an_adapter_are_no_models(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(UserError, match=f"a run, not a model; --run {tmp_path} measures it"):
        find_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=f"an adapter, not a model; give --adapter {tmp_path}"):
        find_model(str(tmp_path))


def test_a_fingerprint_tells_weights_whatever_their_dtype(tiny_folder, folder, tmp_path):
    save_model(load(tiny_folder), tmp_path / "bf16", tiny_folder)
    save_model(load(tmp_path / "bf16"), tmp_path / "fp32", tiny_folder, torch.float32)
    assert fingerprint(tmp_path / "bf16") == fingerprint(tmp_path / "fp32")
    changed = load_file(folder / "model.safetensors")["model.norm.weight"] + 0.1
    change_weights(folder, **{"model.norm.weight": changed})
    assert fingerprint(folder) != fingerprint(tiny_folder)


def test_missing_and_cut_files(folder):
    weights = (folder / "model.safetensors").read_bytes()
    for kept in (0, 5, 1000, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:kept])
        expect_error(folder, "model.safetensors: not a whole safetensors file")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("never read")
    expect_error(folder,
                 "model.safetensors: no such file; a checkpoint needs its weights as safetensors")
    (folder / "config.json").write_text('{\n"model_type": "qwen2",\n\n\n\n\n"vocab_size": }')
    expect_error(folder, "config.json:7: not valid JSON")
    (folder / "config.json").unlink()
    expect_error(folder, "config.json: no such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are Unix's")
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_pipe_is_not_waited_for(file, folder):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    expect_error(folder, f"{file}: cannot be read (no regular file)")


def test_a_number_of_5000_digits_is_no_setting(folder):
    whole = (folder / "config.json").read_text()
    (folder / "config.json").write_text(whole.replace(": 48", ": " + "9" * 5000, 1))
    expect_error(folder, "config.json:1: not valid JSON (Exceeds the limit (4300 digits)")


def test_bad_shards(tmp_path):
    reference_model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    first, last = placed["model.embed_tokens.weight"], placed["model.norm.weight"]
    outside = tmp_path.parent / "outside.safetensors"
    shutil.copy(tmp_path / first, outside)
    for escape in ("../outside.safetensors", str(outside), "sub/x.safetensors", "..", "config.json",
                   7):
        change_json(index, weight_map={**placed, "model.embed_tokens.weight": escape})
        expect_error(tmp_path,
                     "index.json: weight_map must map tensors to safetensors files beside it")
    change_json(index, weight_map={**placed, "model.norm.weight": first})
    expect_error(tmp_path, "index.json: places model.norm.weight where it is not")
    change_json(
        index,
        weight_map={name: file
                    for name, file in placed.items() if name != "model.norm.weight"})
    expect_error(tmp_path, "model.norm.weight")
    change_json(index, weight_map=placed)
    (tmp_path / last).unlink()
    expect_error(tmp_path, f"{last}: no such file")


def test_a_misspelled_model_is_told_what_it_is_near_to(tmp_path):
    (tmp_path / "Qwen2.5-0.5B").mkdir()
    for name, near in (("tiny-larg", "tiny-large"), ("tinny", "tiny"),
                       (tmp_path / "Qwen2.5-0.5b", tmp_path / "Qwen2.5-0.5B")):
        with pytest.raises(UserError) as error:
            find_model(str(name))
        assert f"{name}: no such folder; did you mean {near}?; a model is" in str(error.value)


def test_find_model(tiny_folder, tmp_path, monkeypatch):
    assert find_model("tiny") == ROOT / "tiny"
    assert find_model(str(tiny_folder)) == tiny_folder
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("file", "nothing", "./no/folder", "../folder", "/no/folder", "~/folder", "a/b/c",
                 ""):
        with pytest.raises(UserError,
                           match="no such folder; a model is tiny, tiny-large, a folder, or "
                                 "OWNER/NAME"):
            find_model(name)


# ----------------------------------------------------------------------- saving whole or not at all


def test_nothing_that_exists_is_overwritten(tiny_folder, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for save in (lambda: save_model(load(tiny_folder), folder, tiny_folder),
                 lambda: save_state(folder, {}, {})):
        with pytest.raises(UserError, match="exists and is not empty"):
            save()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    empty = folder.parent / "empty"
    empty.mkdir()
    save_model(load(tiny_folder), empty, tiny_folder)
    assert load(empty).config == load(tiny_folder).config


def test_a_full_disk_leaves_what_was_there(tiny_folder, tmp_path):
    """A process that may write no file above 30 KB stands for a disk that fills up in the middle of
    the weights.
    """
    script = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\n"
        "from checkpoint import load_model, save_model, save_state\n"
        "from runtime import UserError, write_tensors\nsource, target = map(Path, sys.argv[1:])\n"
        "model = load_model(source, 'cpu', torch.float32, torch.float32)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "large = {'t': torch.zeros(10_000)}\n"
        "for save in (lambda: save_model(model, target / 'model', source),\n"
        "             lambda: save_state(target / 'step-5', large, {'step': 5}),\n"
        "             lambda: write_tensors(target / 'old.safetensors', large)):\n    try:\n"
        "        save()\n        print('saved?')\n    except UserError as error:\n"
        "        print(error)\n"
    )
    save_file({"t": torch.ones(3)}, tmp_path / "old.safetensors")
    done = children.run(script, tiny_folder, tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    for line, name in zip(
            lines, ("model/model.safetensors", "step-5/state.safetensors", "old.safetensors")):
        assert line.startswith(
            f"{tmp_path / name}: cannot be written (") and "File too large" in line
    assert [file.name for file in tmp_path.iterdir()] == ["old.safetensors"
                                                          ]  # no halves, no leavings
    assert torch.equal(load_file(tmp_path / "old.safetensors")["t"], torch.ones(3))


def test_a_save_that_is_interrupted_leaves_nothing(tiny_folder, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("checkpoint.write_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(load(tiny_folder), tmp_path / "model", tiny_folder)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="step-5: cannot be written"):
        save_state(tmp_path / "file" / "step-5", {}, {})


def test_training_state_comes_back_bit_for_bit(tmp_path):
    tensors = {
        "param.a": torch.randn(5, 3), "exp_avg.a": torch.randn(5, 3).bfloat16(),
        "rng": torch.get_rng_state()
    }
    info = {"step": 5, "epoch": 0.25, "names": ["é"], "best": None}
    save_state(tmp_path / "checkpoints" / "step-5", tensors, info)
    loaded, told = load_state(tmp_path / "checkpoints" / "step-5")
    assert told == info and loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step-5"]


def test_a_broken_training_state_is_named(tmp_path):
    state = tmp_path / "step-5"
    with pytest.raises(UserError, match="state.json: no such file"):
        load_state(state)
    save_state(state, {"t": torch.ones(100)}, {"step": 5})
    whole = (state / "state.safetensors").read_bytes()
    (state / "state.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="state.safetensors: not a whole safetensors file"):
        load_state(state)
    (state / "state.safetensors").unlink()
    with pytest.raises(UserError, match="state.safetensors: no such file"):
        load_state(state)


# ------------------------------------------------------------------------------------------ export


@pytest.fixture
def tuned(tmp_path) -> Path:
    """A run of LoRA on the embedded model, with a system prompt of its own."""
    folder = tmp_path / "run"
    words = [
        "--method", "lora", "--steps", "6", "--limit", "64", "--batch-size", "8", "--eval-limit",
        "0", "--system", "Say it's \"so\"\nin 数字.", "--dtype", "fp32", "--output-dir",
        str(folder)
    ]
    assert run_command(mathft.main, words) == 0
    return folder


MERGED = [name for name in METHODS if name != "prefix"]


@pytest.mark.parametrize("system", [[], ["--system", "Say it's \"so\"\nin 数字."],
                                    ["--system", "none"]], ids=["default", "own", "none"])
@pytest.mark.parametrize("method", MERGED)
def test_an_exported_run_opens_in_transformers_with_the_same_texts(method, system, penal, tmp_path,
                                                                   capsys):
    """Weights merged, system prompt, stops and no sampling: a plain chat gives what ours gives.

    The base has the penalty and the sampling of Qwen2.5-Instruct.
    """
    words = ["--method", method, "--model", str(penal), "--steps", "4", "--limit", "64",
             "--batch-size", "8", "--micro-batch-tokens", "2048", "--eval-limit", "0", "--dtype",
             "fp32", "--output-dir", str(tmp_path / "run")]
    assert run_command(mathft.main, [*words, *system]) == 0
    words = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "fp32"]
    assert run_command(checkpoint.main, words) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    run = load_run(tmp_path / "run", "cpu", torch.float32)
    assert (tmp_path / "out" / "Modelfile").read_text() == run.tokenizer.modelfile(run.system)
    same_texts(run, tmp_path / "out")
    if METHODS[method].PEFT_TYPE is None:  # its own folder leaves the house as it stands
        same_texts(run, tmp_path / "run" / "model")


@pytest.fixture
def penal(tmp_path) -> Path:
    """The embedded model with the generation settings of Qwen2.5-0.5B-Instruct."""
    folder = shutil.copytree(find_model("tiny"), tmp_path / "penal")
    change_json(folder / "generation_config.json", repetition_penalty=1.1, do_sample=True,
                temperature=0.7, top_p=0.8, top_k=20)
    return folder


def same_texts(run, out: Path) -> None:
    """transformers writes what we write, asked without a system prompt and without settings."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(
        out)
    settings = theirs.generation_config
    assert settings.eos_token_id == sorted(run.tokenizer.stop_ids)
    assert not settings.do_sample and settings.repetition_penalty in (None, 1.0)
    assert settings.temperature in (None, 1.0) and settings.top_p in (None, 1.0)
    questions = [problem.question for problem in load_problems("mini-gsm", "test", 4)]
    prompts = [run.tokenizer.prompt(question, run.system) for question in questions]
    ours = generate(run.model, prompts, stop_ids=run.tokenizer.stop_ids,
                    vocab_size=run.tokenizer.size, max_new_tokens=150)
    ours = {completion.problem: completion for completion in ours}
    for number, question in enumerate(questions):
        chat = [{"role": "user", "content": question}]  # no system prompt: it is the template's
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt",
                                            return_dict=False)
        assert ids[0].tolist() == prompts[number]
        with torch.no_grad():
            written = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=150)
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == run.tokenizer.decode(ours[number].ids)


def test_an_adapter_opens_from_any_folder(tmp_path, monkeypatch):
    """`AutoPeftModelForCausalLM`, `AutoTokenizer` and `pipeline`, though the base was given by a
    relative name; asked without a system prompt, it answers as the run does."""
    import peft
    from transformers import AutoTokenizer, GenerationConfig, pipeline

    shutil.copytree(find_model("tiny"), tmp_path / "here" / "base")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = ["--method", "lora", "--model", "base", "--steps", "6", "--limit", "64", "--batch-size",
             "8", "--eval-limit", "0", "--dtype", "fp32", "--system", "Be exact.", "--output-dir",
             "run"]
    assert run_command(mathft.main, words) == 0
    run = load_run(Path("run"), "cpu", torch.float32)
    adapter = tmp_path / "here" / "run" / "adapter"
    assert load_adapter(adapter, "base", "cpu", torch.float32).system == "Be exact."
    chat = [{"role": "user", "content": "Tom has 3 apples and buys 4. How many has he?"}]
    prompt = run.tokenizer.prompt(chat[0]["content"], "Be exact.")
    [ours] = generate(run.model, [prompt], stop_ids=run.tokenizer.stop_ids,
                      vocab_size=run.tokenizer.size, max_new_tokens=60)
    monkeypatch.chdir(tmp_path / "there")
    folder = "../here/run/adapter"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), (
        peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    assert ids["input_ids"][0].tolist() == prompt
    told = model.generate(**ids, max_new_tokens=60,
                          generation_config=GenerationConfig.from_pretrained(folder))
    text = run.tokenizer.decode(ours.ids)
    assert tokenizer.decode(told[0, len(prompt) :], skip_special_tokens=True) == text
    # Of an adapter, a pipeline takes the base's tokenizer and samples, unless it is told otherwise.
    pipe = pipeline("text-generation", model=folder, tokenizer=folder, dtype=torch.float32)
    told = pipe(chat, max_new_tokens=60, do_sample=False)
    assert told[0]["generated_text"][-1]["content"] == text
    card = (adapter / "README.md").read_text()
    assert f"`{tmp_path / 'here' / 'base'}`" in card and '"Be exact."' in card
    assert "base_model:" not in card  # the hub knows no folder


def test_a_base_that_moved_is_named_and_checked(tuned, tmp_path, capsys):
    """`--model` beside `--run` for every command; another model is refused."""
    shutil.copytree(find_model("tiny"), tmp_path / "moved")
    change_json(tuned / "args.json", model=str(tmp_path / "gone"))
    out = str(tmp_path / "out")
    expected = load_run(tuned, "cpu", torch.float32, model="tiny").model.state_dict()
    for main, words in ((checkpoint.main, ["export", str(tuned), out]),
                        (generate_main, ["--run", str(tuned), "--max-new-tokens", "2", "1 + 1?"]),
                        (evaluate_main, ["--run", str(tuned), "--max-new-tokens", "2", "--limit",
                                         "2"])):
        assert run_command(main, words) == 1
        assert f"{tuned} was trained on it: say where it is with --model" in capsys.readouterr().err
        assert run_command(main, [*words, "--model", str(tmp_path / "moved")]) == 0
        told = capsys.readouterr().out
        assert main is not checkpoint.main or f": {tmp_path / 'moved'} with lora of" in told
        for other, said in (("tiny-large", "its weights are not those"), ("?", "no such folder")):
            assert run_command(main, [*words, "--model", other]) == 1
            assert said in capsys.readouterr().err
    run = load_run(tuned, "cpu", torch.float32, model=str(tmp_path / "moved"))
    assert all(torch.equal(expected[n], t) for n, t in run.model.state_dict().items())
    change_json(tuned / "args.json", model="tiny", base="0" * 64)  # the name has another model now
    assert run_command(checkpoint.main, ["export", str(tuned), out]) == 1
    assert "its weights are not those" in capsys.readouterr().err


def test_a_run_is_told_where_its_base_is_now(tuned, tmp_path, capsys):
    """Once, for the commands that have no flag for it; other weights are refused by all."""
    moved = str(tmp_path / "moved")
    shutil.copytree(find_model("tiny"), moved)
    change_json(tuned / "args.json", model=str(tmp_path / "gone"))
    commands = (lambda: mathft.read_flags(["--from", str(tuned)]),
                lambda: mathft.read_flags(["--from", str(tuned), "--method", "ia3"]),
                lambda: mathft.read_flags(["--resume", str(tuned)]),
                lambda: teacher_folder(str(tuned)),
                lambda: load_run(tuned, "cpu", torch.float32))
    for asked in commands:
        with pytest.raises(UserError, match=f"python checkpoint.py base {tuned} MODEL"):
            asked()
    with pytest.raises(UserError, match="its weights are not those"):
        mathft.read_flags(["--resume", str(tuned), "--model", "tiny-large"])
    assert mathft.read_flags(["--resume", str(tuned), "--model", moved])[0].model == moved
    before = (tuned / "args.json").read_bytes()
    assert run_command(checkpoint.main, ["base", str(tuned), "tiny-large"]) == 1
    assert "its weights are not those" in capsys.readouterr().err
    assert (tuned / "args.json").read_bytes() == before
    assert run_command(checkpoint.main, ["base", str(tuned), moved]) == 0
    for asked in commands:
        asked()
    settings = json.loads((tuned / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (moved, None)
    # What --from has merged moves with the run.
    shutil.copytree(find_model("tiny"), tuned / "base")
    change_json(tuned / "args.json", model="runs/before/base")
    for words in (["--resume", str(tuned)], ["--from", str(tuned)]):
        assert mathft.read_flags(words)[0].model == str(tuned / "base")


def test_export_keeps_the_stored_dtype_and_refuses_what_it_cannot_do(tuned, tmp_path, capsys):
    assert run_command(checkpoint.main, ["export", str(tuned), str(tmp_path / "out")]) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(find_model("tiny") / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in weights.items()} == {
        name: (t.shape, t.dtype) for name, t in stored.items()}
    capsys.readouterr()
    for words, code, said in (
            (["export", str(tuned), str(tmp_path / "out")], 1, "exists and is not empty"),
            (["export", str(tmp_path), str(tmp_path / "x")], 1, "no run directory of mathft.py"),
            (["export", str(tuned)], 2, "required"), (["a", "b"], 2, "usage: python "
                                                                     "checkpoint.py")):
        assert run_command(checkpoint.main, words) == code
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_help_is_what_the_module_says(capsys):
    import data
    import records

    for module in (checkpoint, data, records):
        assert run_command(module.main, ["--help"]) == 0
        assert capsys.readouterr().out == f"{module.__doc__}\n"


def test_a_prefix_is_not_exported(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--method", "prefix", "--steps", "1", "--limit", "8", "--eval-limit", "0",
             "--output-dir", str(folder)]
    assert run_command(mathft.main, words) == 0
    assert run_command(checkpoint.main, ["export", str(folder), str(tmp_path / "out")]) == 1
    assert "cannot be folded into the model's weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------ the hub


class Hub(BaseHTTPRequestHandler):
    """A stand-in for huggingface.co on the loopback: the repository us/tiny at one commit, and some
    that fail.
    """

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    MISSING, GATED = (404, {"X-Error-Code": "RepoNotFound"}), (403, {"X-Error-Code": "GatedRepo"})
    BUSY = (429, {})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((path, self.headers.get("Authorization")))
        status, headers, body = self.find(path)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def find(self, path: str) -> tuple[int, dict, bytes]:
        """Status, headers and body of the answer."""
        if "missing" in path:
            return *self.MISSING, b""
        if self.server.busy or "busy" in path:
            return *self.BUSY, b""
        if "gated" in path and "/resolve/" in path:  # its list of files is public
            return *self.GATED, b""
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        *_, owner, name = path.partition("/revision/")[0].partition("/tree/")[0].split("/")
        if path == f"/api/models/{owner}/{name}/revision/main":
            return 200, {}, json.dumps({"id": f"{owner}/{name}", "sha": self.COMMIT}).encode()
        if path == f"/api/models/{owner}/{name}/tree/{self.COMMIT}":
            tree = [
                dict(type="file", path=name, size=len(body), oid=name)
                for name, body in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        file = path.rpartition("/")[2]
        if file not in files:
            return *self.MISSING, b""
        return 200, {"X-Repo-Commit": self.COMMIT, "ETag": f'"{file}"'}, files[file]

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(folder):
    for name in ("README.md", "pytorch_model.bin", "training_args.bin"):
        (folder / name).write_text("not needed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.busy, server.requests = folder, False, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def from_hub(hub, home: Path, *names: str, **environment: str) -> list[str]:
    """Load models by hub id in a process of its own (the client reads its settings at import); what
    came of each.
    """
    script = (
        "import sys, torch\nfrom checkpoint import find_model, load_model\n"
        "from runtime import UserError\nfor name in sys.argv[1:]:\n    try:\n"
        "        folder = find_model(name)\n"
        "        load_model(folder, 'cpu', torch.float32, torch.float32)\n"
        "        print(*sorted(file.name for file in folder.iterdir()))\n"
        "    except UserError as error:\n"
        "        print(str(error).replace(chr(10), 'SECOND LINE'))\n"
    )
    done = children.run_beside_hub(hub, home, script, *names, **environment)
    return done.stdout.splitlines()


def test_a_model_from_the_hub_and_then_from_its_cache(hub, tmp_path):
    home, needed = tmp_path / "home", {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }
    loaded, missing, gated, misspelt = from_hub(
        hub, home, "us/tiny", "us/missing", "us/gated", "us/-", HF_TOKEN="hf_secret"
    )
    assert set(loaded.split()) == needed | {"generation_config.json"}  # and no .bin, no README
    assert (home / "hub" / "models--us--tiny").is_dir()
    assert missing.startswith("us/missing: neither a folder here nor a model on the hub;")
    assert gated.startswith(
        "us/gated: this model is gated; accept its terms at https://huggingface.co/us/gated")
    assert misspelt.startswith("us/-: cannot be downloaded (Repo id must")
    assert {token for path, token in hub.requests if "us/tiny" in path} == {"Bearer hf_secret"}
    hub.requests.clear()
    assert from_hub(hub, home, "us/tiny", HF_HUB_OFFLINE="1") == [loaded] and not hub.requests
    hub.busy = True
    cached, refused = from_hub(hub, home, "us/tiny", "us/other")
    assert cached == loaded
    assert refused.startswith("us/other: the hub answers 429, too many requests; wait")


def test_a_hub_out_of_reach(hub, tmp_path):
    (line,) = from_hub(hub, tmp_path, "us/tiny", HF_HUB_OFFLINE="1")
    assert line == ("us/tiny: not (whole) in the cache, and HF_HUB_OFFLINE is set; unset it, or "
                    "give a folder")
    hub.server_close()
    (line,) = from_hub(hub, tmp_path, "us/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith(
        "us/tiny: cannot be downloaded (") and "check name and connection" in line


def test_checkpoints_are_ordered_by_number(tmp_path):
    for name in ("step-9", "step-10", "step-100", "step-x", ".step-11.77.tmp", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert checkpoints(tmp_path / "nowhere") == []
