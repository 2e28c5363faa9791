"""The table: what each method promises, and what a run of it leaves behind."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import mathft
from adapters import Base, Tuning
from checkpoint import load_model, save_model
from conftest import DEFAULT_SYSTEM
from data import Problem
from flags import pick
from generate import generate
from mathft import OBJECTIVES, Objective
from methods import METHODS, find_method, load_adapter, load_run, read_run, refuse_other_data
from runtime import UserError
from train import TrainSettings, train
from verifier import Candidate

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [Problem(f"p{n}", f"What is {n} + 1?", f"It is {n + 1}.\n#### {n + 1}", f"{n + 1}")
            for n in range(4)]


def weighted(tokenizer, problems, args, flags):
    """Supervised tuning, every second target counting twice."""
    examples, dropped = OBJECTIVES["supervised"]().examples(tokenizer, problems, args, flags)
    return [dataclasses.replace(e, weights=tuple(1.0 + n % 2 for n in range(sum(e.is_target))))
            for e in examples], dropped


ALL_OBJECTIVES = OBJECTIVES | {"weighted": lambda: Objective(weighted)}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_whole(name):
    method = METHODS[name]
    for part in ("start", "save", "load", "merge", "extra_flop"):
        assert callable(getattr(method, part)), part
    assert dataclasses.is_dataclass(method.Flags) and method.PASSES in (2, 3)
    assert method.PEFT_TYPE is None or isinstance(method.PEFT_TYPE, str)
    common = {field.name for field in dataclasses.fields(mathft.Flags)}
    assert not common & {field.name for field in dataclasses.fields(method.Flags)}
    for size in ("tiny", "real"):
        assert method.DEFAULTS[size]["learning_rate"] > 0
        assert method.DEFAULTS[size].keys() <= common


def test_no_two_methods_share_a_flag_or_a_kind_of_file():
    names = [
        field.name for method in METHODS.values() for field in dataclasses.fields(method.Flags)
    ]
    assert len(names) == len(set(names))
    kinds = [method.PEFT_TYPE for method in METHODS.values() if method.PEFT_TYPE]
    assert len(kinds) == len(set(kinds))


@pytest.fixture(scope="module")
def teacher_folder(tiny_folder, tmp_path_factory) -> Path:
    """The small checkpoint with its weights moved: a teacher that says other things."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    save_model(model, folder, tiny_folder)
    return folder


@pytest.mark.parametrize("objective", ALL_OBJECTIVES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_by_every_objective(name, objective, tiny_folder, teacher_folder,
                                                tmp_path, monkeypatch):
    """Three steps on four problems: the loss falls, and what does not train stays as it is."""
    from tokenizer import Tokenizer

    # A model that has learnt nothing earns no reward: an odd number of letters does here.
    monkeypatch.setattr("grpo.reward", lambda record: float(len(record["text"]) % 2))
    method, tokenizer = METHODS[name], Tokenizer(tiny_folder)
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    tuning = method.start(model, tokenizer, method.Flags(), "Be exact.", 0)
    goal = ALL_OBJECTIVES[objective]()
    args = mathft.Flags(method=name, batch_size=4, max_new_tokens=8, micro_batch_tokens=4096,
                        max_length=250 if goal.read else 64, system="Be exact.")
    problems = [Candidate(p.id, p.question, f"{p.solution}{end}", not end)
                for p in PROBLEMS for end in ("", "1")] if goal.read else PROBLEMS
    flags = goal.flags()
    if objective == "distill":
        flags.teacher = str(teacher_folder)
    examples, _ = goal.examples(tokenizer, problems, args, flags)
    assert examples
    steps = goal.begin(model, tokenizer, tuning, examples, args, flags, tmp_path)
    before = [p.detach().clone() for p in tuning.trainable.values()]
    trained = {id(p) for p in tuning.trainable.values()}
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if id(p) not in trained}
    losses, rate = [], method.DEFAULTS["tiny"]["learning_rate"]
    train(model, tuning.trainable, steps.batch_at, TrainSettings(3, rate, warmup=0, log_every=1),
          tmp_path, loss=steps.loss, prefix=tuning.prefix, rate_factors=tuning.rate_factors,
          on_log=lambda record: losses.append(record["loss"]))
    if objective != "grpo":  # whose loss says nothing about how well it learns
        assert losses[2] < losses[0]
    assert any(not torch.equal(p, was) for p, was in zip(tuning.trainable.values(), before))
    now = dict(model.named_parameters())
    assert all(torch.equal(frozen[n], now[n]) for n in frozen)


def texts(run) -> list[list[int]]:
    """What a run writes behind two prompts."""
    prompts = [run.tokenizer.prompt(p.question, run.system) for p in PROBLEMS[:2]]
    done = generate(run.model, prompts, stop_ids=(), vocab_size=run.tokenizer.size,
                    max_new_tokens=8, prefix=run.prefix)
    return [c.ids for c in sorted(done, key=lambda c: c.problem)]


def make_run(name: str, tiny_folder: Path, folder: Path) -> tuple[Path, Tuning]:
    """A run directory of a method with something trained in it, made without training."""
    from tokenizer import Tokenizer

    method, tokenizer = METHODS[name], Tokenizer(tiny_folder)
    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    tuning = method.start(model, tokenizer, method.Flags(), "Be exact.", 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tuning.trainable.values():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    folder.mkdir()
    args = {"method": name, "model": str(tiny_folder), "system": "Be exact.",
            **dataclasses.asdict(method.Flags())}
    (folder / "args.json").write_text(json.dumps(args))
    place = folder / ("model" if method.PEFT_TYPE is None else "adapter")
    method.save(place, model, tuning, Base(str(tiny_folder), tokenizer, "Be exact."))
    return folder, tuning


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_is_loaded_and_trains_on(name, tiny_folder, tmp_path):
    folder, tuning = make_run(name, tiny_folder, tmp_path / "run")
    run = load_run(folder, "cpu", torch.float32)
    assert run.system == "Be exact." and texts(run) != texts(plain_run(tiny_folder))
    method = METHODS[name]
    model = load_model(tiny_folder if method.PEFT_TYPE else folder / "model", "cpu", torch.float32,
                       torch.float32)
    place = folder / ("model" if method.PEFT_TYPE is None else "adapter")
    again = method.load(place, model, method.Flags())
    assert again.trainable.keys() == tuning.trainable.keys()
    for key, parameter in again.trainable.items():
        assert parameter.requires_grad
        torch.testing.assert_close(parameter, tuning.trainable[key])


def plain_run(tiny_folder: Path):
    from methods import Run
    from tokenizer import Tokenizer

    model = load_model(tiny_folder, "cpu", torch.float32, torch.float32)
    return Run(model, Tokenizer(tiny_folder), None, "Be exact.", {})


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.PEFT_TYPE])
def test_an_adapter_is_read_without_its_run(name, tiny_folder, tmp_path):
    folder, _ = make_run(name, tiny_folder, tmp_path / "run")
    adapter = load_adapter(folder / "adapter", str(tiny_folder), "cpu", torch.float32)
    run = load_run(folder, "cpu", torch.float32)
    assert [a for a in texts(dataclasses.replace(adapter, system="Be exact."))] == texts(run)


def test_hints_name_the_flag_that_opens_a_folder(tiny_folder, tmp_path):
    folder, _ = make_run("lora", tiny_folder, tmp_path / "run")
    whole, _ = make_run("sft", tiny_folder, tmp_path / "whole")
    for call, said in (
            (lambda: load_adapter(folder, "tiny", "cpu", torch.float32),
             "a run; open it with --run"),
            (lambda: read_run(folder / "adapter"), "--adapter opens it"),
            (lambda: read_run(tiny_folder), "--model opens it"),
            (lambda: load_run(whole, "cpu", torch.float32, model="tiny"), "needs no base")):
        with pytest.raises(UserError, match=said):
            call()


@pytest.mark.parametrize("name", METHODS)
def test_merging_gives_the_same_texts_or_says_why_not(name, tiny_folder, tmp_path):
    folder, _ = make_run(name, tiny_folder, tmp_path / "run")
    run = load_run(folder, "cpu", torch.float32)
    before = texts(run)
    try:
        METHODS[name].merge(run.model)
    except UserError as error:
        assert "cannot be folded" in str(error) and run.prefix is not None
        return
    assert run.prefix is None and texts(run) == before
    names = load_model(tiny_folder, "cpu", torch.float32, torch.float32).state_dict().keys()
    assert run.model.state_dict().keys() == names


def test_unknown_names_are_errors(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="method 'nothing' is unknown; known are sft, lora"):
        find_method("nothing")
    folder, _ = make_run("lora", tiny_folder, tmp_path / "run")
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(args | {"method": "nothing"}))
    with pytest.raises(UserError, match="args.json: method 'nothing' is unknown"):
        read_run(folder)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "LOHA"}))
    with pytest.raises(UserError, match="peft_type is 'LOHA'; mathft reads LORA"):
        load_adapter(folder / "adapter", str(tiny_folder), "cpu", torch.float32)


def test_a_methods_flags_are_taken_out_of_others():
    flags = pick(METHODS["lora"].Flags, {"lora_rank": 4, "prefix_length": 2, "steps": 3})
    assert flags.lora_rank == 4 and flags.lora_alpha == 32.0


def test_runs_without_a_result(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="no run directory of mathft.py"):
        load_run(tmp_path, "cpu", torch.float32)
    path = tmp_path / "args.json"
    for name in METHODS:
        path.write_text(json.dumps({"method": name, "model": str(tiny_folder)}))
        with pytest.raises(UserError, match="the run has not ended; "
                           f"go on: python mathft.py --resume {tmp_path}"):
            load_run(tmp_path, "cpu", torch.float32)
    for broken in ({"method": "dpo"}, {"model": None}, {"system": 3}):
        path.write_text(json.dumps({"method": "sft", "model": "tiny"} | broken))
        with pytest.raises(UserError, match="args.json: (method 'dpo' is unknown|model or system "
                                            "is)"):
            load_run(tmp_path, "cpu", torch.float32)


def test_a_run_without_a_system_prompt_has_the_checkpoints(tiny_folder, tmp_path):
    folder, _ = make_run("lora", tiny_folder, tmp_path / "run")
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(args | {"system": None}))
    assert load_run(folder, "cpu", torch.float32).system == DEFAULT_SYSTEM


BEGAN = {"examples": 3, "sha256": "a", "aims": "b", "from_run": "c"}


@pytest.mark.parametrize("changes, said", [
    ({"examples": 4, "sha256": "x"}, "sums: gives 4 training examples, not 3 as when run began"),
    ({"sha256": "x", "aims": "x"}, "sums: gives as many training examples, others as when"),
    ({"aims": "x"}, "sums: gives the same training examples with other final answers or weights"),
    ({"from_run": "x"}, "runs/first: holds other weights than when run began; give what it")])
def test_what_differs_of_the_training_data_is_named(changes, said):
    saved = {"data": BEGAN, "from_run": "runs/first"}
    with pytest.raises(UserError) as error:
        refuse_other_data(Path("run"), saved, "sums", BEGAN | changes)
    assert str(error.value).startswith(said)


def test_a_run_of_an_older_version_is_asked_what_it_says():
    for saved in ({}, {"data": {}}, {"data": {"examples": 3, "sha256": "a"}}, {"data": BEGAN}):
        refuse_other_data(Path("run"), saved, "sums", BEGAN)
    with pytest.raises(UserError, match="args.json: data is no object"):
        refuse_other_data(Path("run"), {"data": []}, "sums", BEGAN)
