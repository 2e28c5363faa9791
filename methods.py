"""The methods of tuning, and what a run of any of them leaves behind.

    python mathft.py --help             # the flags and defaults of every method
    python -m pytest tests/test_methods.py -v

A method is a module that says which parameters train and how the result is stored:

    Flags                                            a dataclass; its fields join the command's
    DEFAULTS                                         {"tiny": {...}, "real": {...}}, by flag
    PEFT_TYPE                                        the kind in PEFT's files; None: a whole model
    PASSES                                           over each linear map in training, 2 or 3
    extra_flop(maps, flags)                          operations a token of what it adds
    start(model, tokenizer, flags, system, seed)     freeze, add what trains -> adapters.Tuning
    save(folder, model, tuning, base)                write the result; base: adapters.Base
    load(folder, model, flags)                       put it on its base again -> adapters.Tuning
    merge(model)                                     fold it into plain weights, or UserError

To add a method, write such a module and add it to the table below. No other file names a method.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    print(__doc__)
    raise SystemExit

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import ia3
import lora
import prefix
import sft
from adapters import Tuning
from checkpoint import (checkpoints, find_model, fingerprint, last_checkpoint, load_model,
                        load_state, save_model, size_of, step_of)
from data import Problem, keep_data, short_name
from flags import check_stored, pick, spelled
from model import Qwen2
from runtime import (UsageError, UserError, check_regular, new_directory, pick_device, pick_dtype,
                     read_json, whole_folder, write_json)
from tokenizer import Tokenizer, find_default, read_template

METHODS: dict[str, ModuleType] = {"sft": sft, "lora": lora, "prefix": prefix, "ia3": ia3}


def find_method(name) -> ModuleType:
    """The module of a method. Raises UserError for an unknown name."""
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"method {name!r} is unknown; known are {', '.join(METHODS)}")
    return METHODS[name]


def result_folder(run: Path, method: ModuleType) -> Path:
    """Where a run keeps what was trained."""
    return Path(run) / ("model" if method.PEFT_TYPE is None else "adapter")


# ----------------------------------------------------------------------------------- a run's result


@dataclass(frozen=True)
class Run:
    """A model that is ready to answer: the result of a run, an adapter on its base, or a plain
    model.
    """

    model: Qwen2
    tokenizer: Tokenizer
    prefix: Tensor | None  # [L, 2, P, K, h]
    system: str | None  # None: the one in the tokenizer's template
    args: dict  # the run's settings; empty without a run


def read_run(folder: Path) -> tuple[dict, ModuleType]:
    """Settings and method of a run. Raises UserError if it has not ended, or if there is no run."""
    args, method = read_settings(folder)
    result = result_folder(folder, method)
    if not result.is_dir():
        last = last_checkpoint(folder)
        measure = f", or measure it as it is with --checkpoint {last.name}" if last else ""
        raise UserError(f"{result}: no such folder, the run has not ended; "
                        f"go on: python mathft.py --resume {folder}{measure}")
    return args, method


def read_settings(folder: Path) -> tuple[dict, ModuleType]:
    """Settings and method of a run that may not have ended. Raises UserError if there is no run."""
    path = Path(folder) / "args.json"
    if not path.exists():
        kind = next((f"; {flag} opens it" for flag, name in (
            ("--adapter", "adapter_config.json"), ("--model", "config.json"))
            if (folder / name).exists()), "")
        raise UserError(f"{folder}: no run directory of mathft.py (it has no args.json){kind}")
    args = read_json(path)
    return args, check_args(path, args)


def check_args(path: Path, args: dict) -> ModuleType:
    """The method of a run; its settings `args` were read from `path`.

    Raises UserError for a setting that is missing, or that the method's flags do not take.
    """
    name, system, history = args.get("model"), args.get("system"), args.get("history", [])
    if not isinstance(name, str) or not isinstance(system, str | None):
        raise UserError(f"{path}: model or system is missing or of the wrong kind")
    if not isinstance(history, list) or not all(
            isinstance(run, dict) and isinstance(run.get("model"), str) for run in history):
        raise UserError(f"{path}: history is no list of runs, each with its model")
    try:
        method = find_method(args.get("method"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    check_stored((method.Flags,), args, path)
    return method


def load_run(folder: Path, device: torch.device | str, dtype: torch.dtype, plain: bool = False,
             model: str | None = None, checkpoint: str | None = None) -> Run:
    """The result in a run directory, weights and products in `dtype`; or, also before the run has
    ended, what it had trained at a checkpoint such as step-40.

    `model` names the base of its adapter, if it is elsewhere now.
    """
    if checkpoint:
        return _load_checkpoint(folder, checkpoint, device, dtype, plain, model)
    args, method = read_run(folder)
    return _load(base_folder(folder, model), result_folder(folder, method), method, args, device,
                 dtype, plain)


def _load_checkpoint(folder: Path, name: str, device: torch.device | str, dtype: torch.dtype,
                     plain: bool, model_name: str | None) -> Run:
    args, method = read_settings(folder)
    there = {path.name: path for path in checkpoints(folder)}
    if name not in there:
        raise UserError(f"{folder}: has no checkpoint {name}; it has {', '.join(there) or 'none'}")
    base = base_of(folder, args, model_name)
    model, tokenizer = load_model(base, device, dtype, dtype, plain), Tokenizer(base)
    tuning = start_tuning(method, pick(method.Flags, args), args, model, tokenizer)
    tensors, _ = load_state(there[name], "param.")
    found = {key.removeprefix("param."): tensor.shape for key, tensor in tensors.items()}
    if found != {key: p.shape for key, p in tuning.trainable.items()}:
        raise UserError(f"{there[name]}: holds the state of other parameters than this method "
                        "trains; give another --checkpoint")
    with torch.no_grad():
        for key, p in tuning.trainable.items():
            p.copy_(tensors[f"param.{key}"])
    front = tuning.prefix().detach() if tuning.prefix else None
    return Run(model.requires_grad_(False), tokenizer, front, args["system"], args)


def start_tuning(method: ModuleType, own: object, args: dict, model: Qwen2,
                 tokenizer: Tokenizer) -> Tuning:
    """What trains: fresh, or what an earlier run of the same method has trained.

    `own` are the method's flags, `args` the run's settings.
    """
    if goes_on_training(args):
        return method.load(result_folder(Path(args["from_run"]), method), model, own)
    return method.start(model, tokenizer, own, args["system"], args["seed"])


def goes_on_training(args: dict) -> bool:
    """Whether a run with these settings starts from an adapter of its own method."""
    earlier = args.get("from_run")
    return bool(earlier) and read_run(Path(earlier))[0]["method"] == args["method"]


def base_folder(run: Path, model: str | None = None) -> Path:
    """The folder of a run's whole model, or of the base of its adapter, which `model` may name."""
    args, method = read_run(run)
    if method.PEFT_TYPE is not None:
        return base_of(run, args, model)
    if model is not None:
        raise UsageError(f"--model {model}: {run} holds a whole model and needs no base; leave "
                         "it out")
    return result_folder(run, method)


def result_hash(run: Path, base: Path | None = None) -> str:
    """What tells the result of a run from others: its model's weights, and its adapter's.

    `base` is where the model of its adapter is now, if that is known.
    """
    digest = hashlib.sha256(fingerprint(base or base_folder(run)).encode())
    adapter = Path(run) / "adapter" / "adapter_model.safetensors"
    if adapter.exists():
        check_regular(adapter)
        with open(adapter, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def base_name(run: Path, args: dict) -> str:
    """What names the model that a run started from: --model, or what --from has merged."""
    merged = Path(run) / "base"  # moves with the run
    return str(merged) if merged.is_dir() else args["model"]


def base_of(run: Path, args: dict, model: str | None = None) -> Path:
    """The folder of the model that a run started from, which `model` may name.

    Raises UserError if it has not the weights that the run was trained on.
    """
    name = base_name(run, args) if model is None else model
    try:
        base = find_model(name)
    except UserError as error:
        hint = "" if model is not None else (
            f"; {run} was trained on it: say where it is with --model, or for all commands with: "
            f"python checkpoint.py base {run} MODEL")
        raise UserError(f"{error}{hint}") from None
    if args.get("base", fingerprint(base)) != fingerprint(base):  # an older run does not say
        adapter = Path(run) / "adapter"
        raise UserError(f"{name}: its weights are not those that {run} was trained on; give these "
                        f"with --model, or put its adapter on others with --adapter {adapter}")
    return base


def load_adapter(folder: Path, model: str, device: torch.device | str, dtype: torch.dtype,
                 plain: bool = False) -> Run:
    """An adapter in PEFT's form, whoever made it, on the model of that name.

    Its system prompt is the default of the template beside it, if there is one. Raises UserError
    if no method here reads that kind of adapter.
    """
    if (folder / "args.json").exists() and not (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: a run; open it with --run {folder}")
    kind = read_json(folder / "adapter_config.json").get("peft_type")
    known = {method.PEFT_TYPE: method for method in METHODS.values() if method.PEFT_TYPE}
    if kind not in known:
        raise UserError(f"{folder}/adapter_config.json: peft_type is {kind!r}; "
                        f"mathft reads {', '.join(known)}")
    run = _load(find_model(model), folder, known[kind], {}, device, dtype, plain)
    template = read_template(folder)
    return replace(run, system=find_default(template) if template else None)


def _load(base: Path, result: Path, method: ModuleType, args: dict, device: torch.device | str,
          dtype: torch.dtype, plain: bool) -> Run:
    model, tokenizer = load_model(base, device, dtype, dtype, plain), Tokenizer(base)
    tuning = method.load(result, model, pick(method.Flags, args))
    front = tuning.prefix().detach() if tuning.prefix else None
    system = args.get("system")
    if args and system is None:  # an old run; of an adapter alone, the caller decides
        system = tokenizer.default_system
    return Run(model.requires_grad_(False), tokenizer, front, system, args)


# ------------------------------------------------------------------------------- the run's folder


def start_folder(args, data: dict, problems: list[Problem], tests: list[Problem],
                 *own: object) -> Path:
    """Make the folder of a new run with its args.json and its data, whole or not at all.

    `args` are its flags, `own` those of its method and objective. `data` is what tells the training
    data from others: `data.describe_examples`, and hashes of other models that it learns from. If
    the run starts from the adapter of another method, that adapter is merged, and the merged model
    is written to `base/`: it is this run's --model.
    """
    earlier = Path(args.from_run) if args.from_run else None
    merged = merged_run(earlier, find_method(args.method)) if earlier else None
    history = history_of(earlier) if earlier else []
    middle = "" if args.objective == "supervised" else f"{args.objective}-"
    folder = new_directory(args.output_dir, f"{args.method}-{middle}{short_name(args.dataset)}")
    try:
        with whole_folder(folder) as temporary:
            if merged:
                args.model = str(folder / "base")
                dtype = pick_dtype(args.dtype, pick_device(args.device))
                save_model(merged.model, temporary / "base", merged.tokenizer.folder, dtype,
                           merged.system)
            settings = {key: value for part in (args, *own) for key, value in vars(part).items()}
            base = temporary / "base" if merged else find_model(args.model)
            settings |= {"output_dir": str(folder), "history": history, "data": data,
                         "base": fingerprint(base)}
            keep_data(temporary, problems, tests, earlier)
            write_json(temporary / "args.json", settings)
    except BaseException:  # a full disk, Ctrl-C: no command could go on with such a folder
        with contextlib.suppress(OSError):  # what has been written stays
            folder.rmdir()
        raise
    return folder


def refuse_other_data(folder: Path, saved: dict, dataset: str, data: dict) -> None:
    """Raise UserError if the `data` of a run that goes on are not those that it began with.

    `saved` are the settings of the run in `folder`. What an older run does not say is not asked.
    """
    began = saved.get("data", {})
    if not isinstance(began, dict):
        raise UserError(f"{folder / 'args.json'}: data is no object; remove it there")
    for name in (name for name in data if began.get(name, data[name]) != data[name]):
        what, how = {
            "examples": (dataset, f"gives {data[name]} training examples, not "
                                  f"{str(began[name])[:40]} as"),
            "sha256": (dataset, "gives as many training examples, others as"),
            "aims": (dataset, "gives the same training examples with other final answers or "
                              "weights than"),
        }.get(name, (saved.get(name), "holds other weights than"))
        raise UserError(f"{what}: {how} when {folder} began; give what it began with, or start a "
                        "run with --from")


@contextlib.contextmanager
def going_on(folder: Path, changes: dict, data: dict, steps: int) -> Iterator[None]:
    """Store the settings that the command changes of the run in `folder`, so that the next --resume
    does it too.

    If an error ends the command before its first step, the run's settings stay as they were.

    Raises UserError if the training data is not what the run began with, or if more steps are done
    than are asked for.
    """
    path = folder / "args.json"
    saved = read_json(path)
    refuse_other_data(folder, saved, changes["dataset"], data)
    done = max(map(step_of, checkpoints(folder)), default=0)
    if not done and (folder / "result.json").exists():
        raise UsageError(f"the run in {folder} has ended and kept no checkpoint (--keep 1 keeps "
                         f"one); start a run at its end with --from {folder}")
    if steps < done:
        raise UsageError(f"the run in {folder} has {done} steps behind it, and {steps} are asked "
                         "for; give more --steps")
    changed = any(saved.get(name) != value for name, value in changes.items())
    if changed:
        write_json(path, saved | changes)
    try:
        yield
    except UserError:
        if changed and max(map(step_of, checkpoints(folder)), default=0) == done:
            write_json(path, saved)
        raise


def print_way_on(folder: Path) -> None:
    """What an interrupted run has saved, and the command that goes on."""
    last = last_checkpoint(folder)
    print(f"saved      {last}" if last else "saved      no step of the training yet")
    print(f"to go on:  python mathft.py --resume {folder}")


# -------------------------------------------------------------------------- going on from a result


def continued(words: dict) -> tuple[dict, str]:
    """The words of a run that starts at another's end, and the size of its model: tiny or real.

    With the same method its adapter goes on training, so that what shapes it is the earlier run's.
    """
    folder = words["from_run"]
    earlier, method = read_run(Path(folder))
    if "model" in words:
        raise UsageError("--from and --model exclude each other: a run names its own model; if it "
                         f"has moved: python checkpoint.py base {folder} MODEL")
    first = earlier["history"][0]["model"] if earlier.get("history") else earlier["model"]
    words = {"system": earlier["system"], "method": earlier["method"], **words}
    if words["method"] == earlier["method"]:
        for field in fields(method.Flags):
            if words.get(field.name, earlier.get(field.name)) != earlier.get(field.name):
                if not field.metadata["free"]:
                    raise UsageError(f"{spelled(field.name)} {words[field.name]}: the run in "
                                     f"{folder} has {earlier.get(field.name)}; leave it out")
            elif field.name in earlier:
                words[field.name] = earlier[field.name]
    if method.PEFT_TYPE is None:
        words["model"] = str(result_folder(Path(folder), method))
    else:  # of another method's adapter, `start_folder` makes the base
        base_of(Path(folder), earlier)
        words["model"] = base_name(Path(folder), earlier)
    return words, size_of(first)


def merged_run(folder: Path, method: ModuleType) -> Run | None:
    """The result of a run as one plain fp32 model, for another method to start from.

    None if `method` can go on with it as it stands: a whole model, or an adapter of its own. Raises
    UserError if the result cannot be merged.
    """
    earlier = read_run(folder)[1]
    if earlier is method or earlier.PEFT_TYPE is None:
        return None
    run = load_run(folder, "cpu", torch.float32)
    earlier.merge(run.model)
    return run


def history_of(folder: Path) -> list[dict]:
    """The runs that a run in `folder` goes on from and itself, the first first: what each did."""
    args, _ = read_run(folder)
    told = ("model", "method", "objective", "dataset", "steps", "epochs", "tokens", "seed")
    return [*args.get("history", []), {"run": str(folder), **{key: args.get(key) for key in told}}]
