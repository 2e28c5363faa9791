"""One HTML page of a run, or of several: what they cost and brought, and every completion.

    python report.py runs/lora-mini-gsm-1                          # writes report.html in that run
    python report.py runs/A runs/B runs/eval-gsm8k-1 --output both.html

1. Read what the runs have left: args.json, metrics.jsonl, result.json, and of each evaluation its
   generations.jsonl. What should be a number and is not is an error that names its file.
2. Draw the figures (SVG) and the tables.
3. Put all completions beside them as data, and a script that filters them and steps through them.

The page is one file that loads nothing. Its style and its script stand in show/page/. A question
or a completion may hold anything, `<script>` too: it lies in the page as JSON in which every `<` is
escaped, and the script shows it as text. The page itself forbids every other script and all
loading (Content-Security-Policy).
"""

import base64
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from flags import flag, parse_flags, run_command
from runtime import (
    VERSION,
    UserError,
    check_regular,
    json_fault,
    parse_json,
    read_json,
    write_text,
)
from score import read_records
from show.charts import curves, escape, rows, shown
from vote import confidence

PAGE = Path(__file__).resolve().parent / "show" / "page"
BEGINS = "<!doctype html>\n<!-- a report of mathft -->"  # so that only a report is written over
LARGEST = 2**27  # bytes of all completions on one page, about 200,000 of them
MOST_NAMED = 3  # runs in the heading
HASHED = 10  # hexadecimal digits of a hash at the end of a run's name
GROUPS = 10  # of equally many completions, by confidence
MILLION_MILLION = 1e12  # a larger number is a fault, and would break the scales

# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Checked:
    """A JSON object from a file; its values are checked when they are asked for."""

    place: str  # of the file, and of a line in it
    values: dict

    def number(self, name: str) -> float | None:
        """A finite number; None if it is missing or null. Raises UserError for anything else."""
        value = self.values.get(name)
        fits = type(value) in (int, float) and abs(value) <= MILLION_MILLION
        if value is not None and not fits:
            raise UserError(f"{self.place}: {name} is {_brief(value)}, no number that can be shown;"
                            " mend or remove it")
        return value

    def part(self, name: str) -> "Checked":
        """The object under a name; an empty one if it is missing or null."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise UserError(f"{self.place}: {name} is {_brief(value)}, no JSON object; "
                            "mend or remove it")
        return Checked(self.place, value)

    def interval(self, name: str) -> tuple[float, float] | None:
        """The two bounds [low, high] under a name; None if it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{self.place}: {name} is {_brief(value)}, not two numbers; "
                            "mend or remove it")
        bounds = Checked(self.place, dict(zip(("low", "high"), value)))
        low, high = bounds.number("low"), bounds.number("high")
        return None if low is None or high is None else (low, high)

    def curve(self, name: str, inner: str | None = None) -> list[tuple[float, float]]:
        """The points of an object from whole numbers k to values, or to objects with `inner`."""
        part, points = self.part(name), []
        for k in part.values:
            value = part.part(k).number(inner) if inner else part.number(k)
            if k.isascii() and k.isdigit() and len(k) < 7 and value is not None:
                points.append((int(k), value))
        return sorted(points)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's figures (empty while it is unfinished) and its records."""

    name: str
    result: Checked
    records: list[dict]


@dataclass(frozen=True)
class Subject:
    """What one folder of the command holds: a run with its evaluations, or one evaluation."""

    name: str  # for people
    folder: str  # the folder's own
    args: Checked
    result: Checked
    log: list[Checked]  # the lines of metrics.jsonl
    evaluations: list[Evaluation]


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """What the folders hold, each once. Raises UserError with file and line for what is broken."""
    folders = list({folder.resolve(): folder for folder in folders}.values())
    short = [folder.resolve().name for folder in folders]
    subjects, room = [], LARGEST
    for folder, name in zip(folders, short):
        name = name if short.count(name) == 1 else str(folder)
        places = list(_evaluations_in(folder))
        room -= sum((place / "generations.jsonl").stat().st_size for place in places)
        if room < 0:
            raise UserError(f"{folder}: with these completions the page has more than {LARGEST:,} "
                            "bytes of them, too many for a browser; give fewer folders")
        subjects.append(_subject(folder, name, places))
    return subjects


def _evaluations_in(folder: Path) -> Iterator[Path]:
    """The folders of evaluations: this one, those of a run, and a greedy one beside samples."""
    inside = sorted(folder.glob("evals/*"), key=lambda place: (place.name != "before", place.name))
    for place in (folder, *inside):
        for inner in (place, place / "greedy"):
            if (inner / "generations.jsonl").exists():
                check_regular(inner / "generations.jsonl")
                yield inner


def _subject(folder: Path, name: str, places: list[Path]) -> Subject:
    if not (folder / "args.json").exists():
        raise UserError(f"{folder}: neither a run nor an evaluation (it has no args.json); give a "
                        "folder that mathft.py or evaluate.py has made")
    args = Checked(str(folder / "args.json"), read_json(folder / "args.json"))
    label = label_of(name, args) if name == folder.resolve().name else name
    evaluations = [
        Evaluation(" / ".join((label, *place.relative_to(folder).parts)).replace("/ evals ", ""),
                   _result(place), _records(place / "generations.jsonl")) for place in places]
    return Subject(label, name, args, _result(folder), _log(folder / "metrics.jsonl"), evaluations)


def label_of(name: str, args: Checked) -> str:
    """What stands for a run on the page: its folder's name, but if that ends in a hash (study.py
    names runs so), what its args.json says, and the hash, by which the folder is found.
    """
    digest, values = name.rpartition("-")[2], args.values
    hashed = len(digest) == HASHED and set(digest) <= set("0123456789abcdef")
    if not hashed or "method" not in values:
        return name
    lengths = [f"{_word(values[key])} {key}" for key in ("steps", "epochs", "tokens")
               if values.get(key) is not None]
    words = [_word(values.get("method")), _word(values.get("objective")), _data(values), *lengths,
             f"seed {_word(values.get('seed'))}"]
    return f"{' '.join(filter(None, words))} · {digest}"


def _data(values: dict) -> str:
    """The sets' names without folders; of a made one (FOLDER/data.jsonl) that of its folder."""
    name = values.get("dataset")
    paths = [Path(part) for part in name.split(",")] if isinstance(name, str) else []
    return _word("+".join(path.parent.name or path.stem if path.stem == "data" else path.stem
                          for path in paths))


def _result(folder: Path) -> Checked:
    path = folder / "result.json"
    return Checked(str(path), read_json(path) if path.exists() else {})


def _log(path: Path) -> list[Checked]:
    """The lines of a log, without a half last one. Raises UserError that names a broken line."""
    if not path.exists():
        return []
    check_regular(path)
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: has more than {LARGEST:,} bytes, too many for a log; take a part")
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            values = parse_json(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({json_fault(error)}); "
                            "remove that line") from None
        if not isinstance(values, dict) or values.get("step") is None:
            raise UserError(f"{path}:{number}: no line of a log (it has no step); remove that line")
        lines.append(Checked(f"{path}:{number}", values))
    return lines


def _records(path: Path) -> list[dict]:
    """The records of an evaluation. `read_records` checks them, all but the verdicts."""
    records = read_records(path)
    for record in records:
        answer = record.get("answer", 0)
        if not isinstance(answer, str | None) or not isinstance(record.get("correct"), bool):
            raise UserError(f"{path}: the record of {_brief(record['id'])} has no verdict; grade it"
                            f" again: python evaluate.py --regrade {path}")
    return records


def _brief(value) -> str:
    text = repr(value) if type(value) is not int or abs(value) < 2**63 else "beyond 64 bits"
    return text if len(text) <= 60 else text[:59] + "…"


# ----------------------------------------------------------------------------------- what they show


def all_figures(subjects: list[Subject]) -> str:
    """Every figure for which the folders hold something."""
    evaluations = [(e, number) for number, s in enumerate(subjects) for e in s.evaluations]
    accuracy = [(e.name, e.result.number("accuracy"), e.result.interval("ci95"), number)
                for e, number in evaluations if e.result.number("accuracy") is not None]
    votes = {f"{e.name}: {kind}": points for e, _ in evaluations for kind, points in _votes(e)}
    sure = {e.name: by_confidence(e.records) for e, _ in evaluations}
    verifiers = {e.name: _calibration(e.result.part("verifier")) for e, _ in evaluations}
    if any(verifiers.values()):
        verifiers["as often right as the score says"] = [(0.0, 0.0), (1.0, 1.0)]
    cost = [("training time, seconds", "train_seconds"), ("peak memory, MiB", "peak_memory_mib")]
    return "".join((
        rows("accuracy", "with its 95 % interval", accuracy, percent=True),
        curves("loss by step", "of a training batch; unlike objectives have unlike losses",
               {s.name: curve_of(s.log, "loss") for s in subjects}),
        curves("reward by step", "the mean of the rollouts of a step",
               {s.name: curve_of(s.log, "reward") for s in subjects}),
        curves("accuracy by samples k", "pass@k: one of k is right; the others: what is voted is "
               "right", votes, percent=True),
        curves("right by confidence", f"{GROUPS} groups of equally many completions; confidence is "
               "the mean probability of a token. A rising line: the model is surer if it is right",
               sure, percent=True),
        curves("right by the verifier's score", "each tenth of the score that has samples",
               verifiers, percent=True),
        *(rows(title, "of the whole run", [
            (s.name, s.result.number(name), None, number) for number, s in enumerate(subjects)
            if s.result.number(name) is not None]) for title, name in cost)))


def curve_of(log: list[Checked], name: str) -> list[tuple[float, float]]:
    """A figure of the log by step; steps that lack it are left out."""
    points = [(line.number("step"), line.number(name)) for line in log]
    return [(step, value) for step, value in points if value is not None]


def _votes(evaluation: Evaluation) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    yield "pass@k", evaluation.result.curve("pass_at_k")
    kinds = evaluation.result.part("maj_at_k")
    for kind in kinds.values:
        yield kind, kinds.curve(kind, "accuracy")


def by_confidence(records: list[dict]) -> list[tuple[float, float]]:
    """(mean confidence, share of right ones) of GROUPS groups of records, from unsure to sure.

    Empty if records lack a log-probability, or if there are fewer than five for each group.
    """
    pairs = [(record["mean_log_prob"], record["correct"]) for record in records]
    if len(pairs) < 5 * GROUPS or any(log_prob is None for log_prob, _ in pairs):
        return []
    pairs = sorted((confidence(log_prob), right) for log_prob, right in pairs)
    bounds = [len(pairs) * number // GROUPS for number in range(GROUPS + 1)]
    groups = [pairs[start:end] for start, end in itertools.pairwise(bounds)]
    return [tuple(sum(column) / len(group) for column in zip(*group)) for group in groups]


def _calibration(verifier: Checked) -> list[tuple[float, float]]:
    parts = verifier.values.get("calibration") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{verifier.place}: calibration is no list of objects; remove it")
    points = [(part.number("score"), part.number("right"))
              for part in (Checked(verifier.place, part) for part in parts)]
    return [(score, right) for score, right in points if score is not None and right is not None]


def table(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of texts; nothing if it has no lines."""
    # What is too long for its cell is whole under the pointer.
    cells = ["".join(f'<td title="{escape(cell)}">{escape(cell)}</td>' for cell in line)
             for line in lines]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{line}</tr>\n" for line in cells)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>' if cells else ""


def run_table(subjects: list[Subject]) -> str:
    """Each run with its settings, its cost and its gain."""
    words = ("method", "objective", "model", "dataset")
    numbers = ("seed", "steps", "trainable_params", "train_seconds", "peak_memory_mib")
    lines = [
        [s.folder, *(_word(s.args.values.get(name)) for name in words),
         *(_cell(s.result.number(name)) for name in numbers),
         *(_share(s.result, f"accuracy_{when}", f"ci95_{when}") for when in ("before", "after"))]
        for s in subjects if "method" in s.args.values]
    return table(("run", *words, "seed", "steps", "parameters", "seconds", "MiB", "before",
                  "after"), lines)


def evaluation_table(subjects: list[Subject]) -> str:
    """Each evaluation with its accuracies and rates."""
    lines = []
    for e in (e for s in subjects for e in s.evaluations):
        votes, r = e.result.part("votes").part("majority"), e.result
        lines.append([e.name, _cell(r.number("n")), _cell(r.number("samples")),
                      _share(r), _share(r.part("strict")), _share(votes), _share(r.part("greedy")),
                      _cell(r.number("no_answer_rate"), True),
                      _cell(r.number("truncated_rate"), True), _cell(r.number("mean_tokens"))]
                     if r.values else [e.name, f"unfinished: {len(e.records)} completions so far",
                                       *[""] * 8])
    return table(("evaluation", "problems", "samples", "accuracy", "strict", "majority", "greedy",
                  "no answer", "cut", "mean tokens"), lines)


def _share(result: Checked, accuracy: str = "accuracy", ci95: str = "ci95") -> str:
    value, interval = result.number(accuracy), result.interval(ci95)
    bounds = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return "" if value is None else f"{100 * value:.1f} %{bounds}"


def _cell(value: float | None, percent: bool = False) -> str:
    return "" if value is None else shown(value, percent)


def _word(value) -> str:
    return _brief(value) if value is not None and not isinstance(value, str) else (value or "")[:80]


# --------------------------------------------------------------------------------------------- page


def page(subjects: list[Subject]) -> str:
    """The whole page, as text."""
    style, script, browser = ((PAGE / name).read_text(encoding="utf-8")
                              for name in ("style.css", "script.js", "browser.html"))
    allowed = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    names = ", ".join(s.name for s in subjects[:MOST_NAMED])
    more = len(subjects) - MOST_NAMED
    names += f" and {more} more" if more > 0 else ""
    return (
        f'{BEGINS}\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>mathft: {escape(names)}</title><style>{style}</style></head><body>\n"
        f"<h1>mathft: {escape(names)}</h1>\n"
        f"{run_table(subjects)}\n<h2>Figures</h2><div class=\"figures\">{all_figures(subjects)}"
        f"</div>\n<h2>Evaluations</h2>{evaluation_table(subjects)}\n"
        '<p class="soft">Accuracy is the flexible one, with its 95 % interval; strict counts only '
        "marked answers. With several samples accuracy is the mean of single ones, majority is "
        "their vote, greedy the one completion beside them.</p>\n"
        f"{browser}\n<p class=\"soft\">Written by mathft {VERSION}: python report.py</p>\n"
        f'<script type="application/json" id="data">{browser_data(subjects)}</script>\n'
        f"<script>{script}</script></body></html>\n")


def _hash(text: str) -> str:
    """The name by which a page's policy allows one script or style, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def browser_data(subjects: list[Subject]) -> str:
    """What the page's script reads: all problems once, and of each evaluation its records as lists.

    A record is [problem, sample, text, answer, right, cut, tokens, confidence]. In the text of the
    JSON each `<` is written as an escape, so that nothing in it can end the element it stands in.
    """
    evaluations = [e for s in subjects for e in s.evaluations]
    problems: dict[tuple, list[str]] = {}  # what the page knows of each, by question and so on
    numbers: dict[tuple, int] = {}
    listed = []
    for e in evaluations:
        records = []
        for r in e.records:
            key = (r["question"], r["gold"], r["level"], r["subject"])
            problems.setdefault(key, [r["id"], *key])
            number, sure = numbers.setdefault(key, len(numbers)), r["mean_log_prob"]
            records.append([number, r["sample"], r["text"], r["answer"], r["correct"],
                            r["finish"] != "stop", r["tokens"],
                            None if sure is None else round(confidence(sure), 4)])
        listed.append({"name": e.name, "records": records})
    after, before = first_pair([e.name for e in evaluations])
    value = {"problems": list(problems.values()), "evaluations": listed,
             "shown": after, "beside": before}
    return json.dumps(value).replace("<", "\\u003c")


def first_pair(names: list[str]) -> tuple[int, int | str]:
    """The evaluation that the page shows first, and the one beside it: after training and before,
    if a run has both; else the first, beside nothing.
    """
    for number, name in enumerate(names):
        before = name.removesuffix(" / after") + " / before"
        if name.endswith(" / after") and before in names:
            return number, names.index(before)
    return 0, ""


# ------------------------------------------------------------------------------------------ command


@dataclass
class Flags:
    """The flags of `python report.py`."""

    folders: list[str] = flag(MISSING, "runs or evaluations, each a folder", positional=True)
    output: str | None = flag(None, "the page (default: report.html in the first folder)")
    debug: bool = flag(False, "show the traceback of an error")


def write_page(folders: Sequence[Path], path: Path) -> list[Subject]:
    """Write the page of these folders, and return what they hold. A report is written over.

    Raises UserError if there is another file at `path`, or if a folder holds what cannot be read.
    """
    if path.exists():
        check_regular(path)
        with open(path, "rb") as file:
            if file.read(len(BEGINS)) != BEGINS.encode():
                raise UserError(f"{path}: exists and is no report of mathft; give another --output")
    subjects = read_subjects(folders)
    write_text(path, page(subjects))
    return subjects


def main(argv: list[str]) -> None:
    """`python report.py FOLDER...`: read the folders and write the page."""
    flags = parse_flags(Flags, argv, __doc__)
    path = Path(flags.output) if flags.output else Path(flags.folders[0]) / "report.html"
    subjects = write_page([Path(folder) for folder in flags.folders], path)
    evaluations = [e for s in subjects for e in s.evaluations]
    print(f"read       {len(subjects)} folders, {len(evaluations)} evaluations, "
          f"{sum(len(e.records) for e in evaluations):,} completions")
    print(f"written    {path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    sys.exit(run_command(main))
