"""Names the published data sets, and fetches their files: each whole, checked, and once.

    python sources.py               # the sets, their splits and licences, and which are here
    python sources.py gsm8k         # fetches the files of a set and prints their paths
    python sources.py hub:HuggingFaceH4/MATH-500/test.jsonl

    1. look in `$HF_HOME/mathft/NAME/FILE`, so that a file put there by hand is used
    2. else download it: a file of GitHub to that place (tools/download.py), a file of the hub by
       the hub's own client into its cache

`hub:owner/name` alone lists the files of a data set on the hub that can be read.

The sets: Cobbe et al. 2021 (GSM8K, arXiv 2110.14168); Hendrycks et al. 2021 (MATH, 2103.03874);
Lightman et al. 2023 (MATH-500, 2305.20050); Li et al. 2023 (MuggleMath, 2310.05506); Huang et al.
2025 (MATH-Perturb, 2502.06453). The published files of MuggleMath are not the paper's own: their
queries are by qwen-max, their answers by DeepSeekMath-RL.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import logging

from flags import flag, parse_flags, run_command
from runtime import UserError
from synthetic import DATASETS
from tools.download import LARGEST_FILE, download, hub_error, sha256_of

# ---------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class File:
    """One file of a set."""

    name: str  # in the folder of the set
    place: str  # https://... or hub:owner/name/path
    sha256: str = ""  # if the published bytes are known


@dataclass(frozen=True)
class Source:
    """One set: its files by split, and what a user must know of them."""

    splits: dict[str, tuple[File, ...]]
    licence: str = "see its page"
    tested_on: str = ""  # the set with the test problems for a training on this one
    note: str = ""  # printed when it is loaded for training
    refusal: str = ""  # why nobody may train on it


READABLE = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")  # of the files of a data set
MOST_NAMED = 20  # files of a data set, in a message
GITHUB = "https://raw.githubusercontent.com"
GSM8K = f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data"
MUGGLEMATH = f"{GITHUB}/OFA-Sys/gsm8k-ScRel/main/data/MuggleMATH"
MATH_PERTURB = "hub:Kaffaljidhmah2/MATH-Perturb/math_perturb"
FOR_TESTS = ("is for testing only, its authors forbid training on it; name it with --eval-dataset, "
             "and train on math")


def _one_file(split: str, name: str, place: str, sha256: str = "") -> dict[str, tuple[File, ...]]:
    return {split: (File(name, place, sha256),)}


def _muggle(stem: str) -> dict[str, tuple[File, ...]]:
    names = [f"{stem}_part{part}.jsonl.zip" for part in (1, 2)]
    return {"train": tuple(File(name, f"{MUGGLEMATH}/{name}") for name in names)}


def _perturb(kind: str) -> Source:
    name = f"math_perturb_{kind}.jsonl"
    return Source(_one_file("test", name, f"{MATH_PERTURB}/{name}"), refusal=FOR_TESTS)


SETS = {
    "gsm8k": Source(
        _one_file("train", "train.jsonl", f"{GSM8K}/train.jsonl",
                  "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465")
        | _one_file("test", "test.jsonl", f"{GSM8K}/test.jsonl",
                    "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
        "MIT", tested_on="gsm8k"),
    "math": Source(
        _one_file("train", "math_full_minus_math500.json",
                  "hub:rasbt/math_full_minus_math500/math_full_minus_math500.json"),
        tested_on="math500",
        note="4,500 of its 12,000 problems stem from MATH's test half: none of them should be in "
        "math500, but figures on the rest of that half would not be clean"),
    "math500": Source(
        _one_file("test", "test.jsonl", "hub:HuggingFaceH4/MATH-500/test.jsonl"), "MIT"),
    "aug-gsm8k": Source(_muggle("AugGSM8K"), tested_on="gsm8k"),
    "aug-math": Source(_muggle("AugMATH"), tested_on="math500"),
    "math-perturb-simple": _perturb("simple"),
    "math-perturb-hard": _perturb("hard"),
}  # fmt: skip


def is_known(name: str) -> bool:
    """Whether `fetch` takes this name: a set of the table, or hub:owner/name/path."""
    return name in SETS or name.startswith("hub:")


def test_set_of(name: str) -> str | None:
    """The set that usually measures a training on this one; None if there is no such set."""
    return SETS[name].tested_on or None if name in SETS else None


def fetch(name: str, split: str) -> list[Path]:
    """The local files of a split, downloaded if they are not here. A `hub:` file is used as any
    split.

    Raises UserError for an unknown name or split, for training on a set for testing only, and, with
    what to do by hand, for a file that cannot be downloaded.
    """
    if name.startswith("hub:"):
        if name.count("/") == 1:
            raise _files_of(name)
        repo, path = _hub_parts(name)
        known = (source for source in SETS.values() for files in source.splits.values()
                 for file in files if file.place.lower() == f"hub:{repo}/{path}".lower())
        _refuse_training(name, next(known, None), split)
        return [_fetch_from_hub(name, None)]
    if name not in SETS:
        raise UserError(f"{name}: no such data set; known are {', '.join(SETS)}, and "
                        "hub:owner/name/path.jsonl")
    source = SETS[name]
    _refuse_training(name, source, split)
    if split not in source.splits:
        there = " and ".join(source.splits)
        usual = f"; a training on it is usually measured on {source.tested_on}"
        hint = usual if source.tested_on else ""
        raise UserError(f"{name}: has no {split} split, only {there}{hint}")
    if split == "train" and source.note:
        print(f"{name}: {source.note}", file=sys.stderr)
    return [_local_path(name, file) for file in source.splits[split]]


def _refuse_training(name: str, source: Source | None, split: str) -> None:
    if split == "train" and source and source.refusal:
        raise UserError(f"{name}: {source.refusal}")


def own_path(name: str, file: File) -> Path:
    """Where a file of a set lies, or can be put by hand."""
    return Path(constants.HF_HOME) / "mathft" / name / file.name


def _local_path(name: str, file: File) -> Path:
    path = own_path(name, file)
    if not path.exists():
        if file.place.startswith("hub:"):
            return _fetch_from_hub(file.place, path)
        download(file.place, path, file.sha256)
    elif file.sha256 and (found := sha256_of(path)) != file.sha256:
        raise UserError(f"{path}: has sha256 {found}, the published file {file.sha256}; remove it, "
                        "and it is fetched")
    return path


# ------------------------------------------------------------------------------------------ the hub


def _hub_parts(name: str) -> tuple[str, str]:
    """Repository and path of `hub:owner/name/path`. Raises UserError if it is no path of a file
    that is read."""
    owner, *parts = name.removeprefix("hub:").split("/")
    plain = all(part and part[0] not in ".~" and "\\" not in part and part.isprintable()
                for part in (owner, *parts))
    if not plain or len(parts) < 2 or not name.endswith(READABLE):
        raise UserError(
            f"{name}: no file of a data set; expected hub:owner/name/path.jsonl (or .json)")
    return f"{owner}/{parts[0]}", "/".join(parts[1:])


def _files_of(name: str) -> UserError:
    """What to say of `hub:owner/name`: the files of that data set that can be read."""
    _hub_parts(f"{name}/x.json")  # else it is not the name of a data set
    repo = name.removeprefix("hub:")
    page = f"https://huggingface.co/datasets/{repo}"
    try:
        files = HfApi().list_repo_files(repo, repo_type="dataset")
    except Exception as caught:  # the client's own errors, and those of its HTTP library
        return hub_error(name, caught, "data set", page, "no data set of that name",
                         f"name a file of {page}: {name}/FILE.jsonl")
    found = [f"{name}/{file}" for file in sorted(files) if file.endswith(READABLE)]
    if not found:
        return UserError(f"{name}: has no file that is read ({', '.join(READABLE)})")
    more = f", and {len(found) - MOST_NAMED} more at {page}/tree/main" * (len(found) > MOST_NAMED)
    return UserError(f"{name}: is a data set of several files; name one: "
                     f"{', '.join(found[:MOST_NAMED])}{more}")


def _fetch_from_hub(name: str, path: Path | None) -> Path:
    """A file of a data set on the hub, through its client and cache; `path` is where it can be put
    by hand."""
    repo, filename = _hub_parts(name)
    asked = {"repo_id": repo, "filename": filename, "repo_type": "dataset"}
    url = hf_hub_url(**asked)
    instead = (f"put the file of {url} at {path}" if path else
               f"get the file of {url} and give its path")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning on each try: the result is one line, below
    try:
        size = hf_hub_download(**asked, dry_run=True).file_size or 0
        if size <= LARGEST_FILE:
            return Path(hf_hub_download(**asked))
    except Exception as caught:  # the client's own errors, and those of its HTTP library
        page = f"https://huggingface.co/datasets/{repo}"
        raise hub_error(name, caught, "data set", page, "no data set of that name",
                        instead) from caught
    finally:
        logging.set_verbosity(verbosity)
    raise UserError(
        f"{name}: is {size:,} bytes, more than the {LARGEST_FILE:,} that are downloaded; {instead}")


# ------------------------------------------------------------------------------------------ command


def table() -> list[str]:
    """A line for each set: its splits (here or not), licence and source."""
    lines = [f"{name:20s} {'train, test':34s} {'':13s} made from a seed: python synthetic.py {name}"
             for name in DATASETS]
    for name, source in SETS.items():
        splits = ", ".join(
            f"{split} ({'here' if all(_is_here(name, file) for file in files) else 'not here'})"
            for split, files in source.splits.items())
        place = next(iter(source.splits.values()))[0].place
        lines.append(f"{name:20s} {splits:34s} {source.licence:13s} {place}")
        lines += [f"{'':20s} {name} {source.refusal}"] * bool(source.refusal)
        lines += [f"{'':20s} {source.note}"] * bool(source.note)
    return lines


def _is_here(name: str, file: File) -> bool:
    if own_path(name, file).exists():
        return True
    if not file.place.startswith("hub:"):
        return False
    return isinstance(try_to_load_from_cache(*_hub_parts(file.place), repo_type="dataset"), str)


@dataclass
class Flags:
    """The flags of `python sources.py`."""

    name: str | None = flag(None, "a data set to fetch; without it, the sets are listed",
                            positional=True)
    debug: bool = flag(False, "show the traceback of an error")


def main(argv: list[str]) -> None:
    """List the sets, or fetch one."""
    name = parse_flags(Flags, argv, __doc__).name
    if name is None:
        print(*table(), sep="\n")
        print(f"{'':20s} files put by hand: {Path(constants.HF_HOME) / 'mathft' / 'NAME' / 'FILE'}")
        return
    if name in DATASETS:
        raise UserError(f"{name}: is made from a seed, there is nothing to fetch; "
                        f"python synthetic.py {name} shows some of it")
    splits = SETS[name].splits if name in SETS else ["test"]
    print(*(path for split in splits for path in fetch(name, split)), sep="\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
