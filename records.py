"""From files, as others publish them, to records: JSON, JSON lines, gzip, zips and parquet.

    python records.py problems.jsonl.gz        # how many records a file holds, and their columns

    .jsonl            one JSON object a line (also under any other name)
    .json             the same, or one list of objects, or {"data": [objects]}
    .jsonl.gz .json.gz     the same, packed by gzip
    .zip              all .jsonl files in it, which are not unpacked
    .parquet          if pyarrow is installed

The bytes of a line, the bytes that are unpacked and the number of lines are bounded: a file that
somebody made to fill the memory, or that is far too large to be held there, ends in one line.
"""

import contextlib
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves this folder out
if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from flags import run_command
from runtime import UsageError, UserError, Written, json_fault, one_line, parse_json
from tools.download import UNPACKED, zip_lines

LONGEST_LINE = 2**24  # bytes
LARGEST_WHOLE = 2**29  # bytes of a file that cannot be read line by line
MOST_COMMAS = 2**22  # in a value that is parsed at once: a number there takes 250 bytes of memory
MOST_ROWS = 10**6  # a problem takes about a kilobyte of memory
VALUES = json.JSONDecoder()
BLANK_LINES = 100  # at the beginning of a file that is one JSON value
SLOW = 2**26  # bytes; reading more takes more than a few seconds, so a line says it
SLOW_PACKED = 2**20  # what is packed may be up to a thousand times as large
READ = ".jsonl and .json (also .gz), .zip of .jsonl, and .parquet with pyarrow"
NOT_READ = {".csv", ".tsv", ".txt", ".md", ".xls", ".xlsx", ".arrow", ".feather", ".yaml", ".yml",
            ".xml", ".tar", ".tgz", ".zst", ".bz2", ".xz", ".7z", ".db", ".sqlite", ".pkl", ".pt",
            ".bin", ".npy", ".npz"}


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """The records of a file, each with its place for messages: `file:line`, or `file, record n`.

    A record is whatever JSON value stands there. Raises UserError, which names file and line, if
    the file cannot be read, is of another kind, or is larger than the bounds above.
    """
    path = Path(path)
    if path.suffix.lower() in NOT_READ:
        table = path.suffix.lower() in (".csv", ".tsv")
        hint = "; docs/data.md has a line that turns a table into JSONL" if table else ""
        raise UserError(f"{path}: a {path.suffix} file is not read; what is: {READ}{hint}")
    packed = path.suffix.lower() in (".gz", ".zip")
    if (size := path.stat().st_size) > (SLOW_PACKED if packed else SLOW):
        print(f"reading {path}, {size / 1e6:,.0f} MB" + packed * ", packed", file=sys.stderr)
    rows = 0
    for where, record in _all_records(path):
        rows += 1
        if rows > MOST_ROWS:
            raise UserError(f"{where}: {MOST_ROWS:,} rows are read at most; take a part of the "
                            "file")
        yield where, record


def _all_records(path: Path) -> Iterator[tuple[str, object]]:
    if path.suffix.lower() == ".zip":
        yield from _json_lines(zip_lines(path))
    elif path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
    elif _is_whole(path):
        yield from _whole(path)
    else:
        yield from _json_lines(_lines(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked if it is a .gz. Raises UserError for what it cannot read."""
    try:
        with open(path, "rb") as file:
            packed = _is_packed(path)
            with gzip.GzipFile(fileobj=file) if packed else file as stream:
                yield io.BufferedReader(stream) if packed else stream
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); get it again") from None


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


# ------------------------------------------------------------------------------------ line by line


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file with their places.

    Only a newline ends a line: U+2028 and its like may stand inside a JSON string.
    """
    unpacked = 0
    with _opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(LONGEST_LINE + 1)
            unpacked += len(line)
            where = f"{path}:{number}"
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise UserError(f"{where}: a line of more than {LONGEST_LINE:,} bytes; is this one "
                                "JSON object a line?")
            if _is_packed(path) and unpacked > UNPACKED:
                raise UserError(f"{where}: more than {UNPACKED:,} bytes unpacked; unpack the file, "
                                "and take a part of it")
            yield where, _text(where, line, first=number == 1)


def _text(where: str, data: bytes, first: bool) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: cannot be read as UTF-8 text ({error}); mend or remove that line"
                        ) from None


def _json_lines(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, object]]:
    """The records of lines that come with their place; blank lines are skipped."""
    for number, (where, line) in enumerate(lines, 1):
        if number > 2 * MOST_ROWS:  # blank ones too take their time
            raise UserError(f"{where}: {2 * MOST_ROWS:,} lines are read at most; take a part of "
                            "the file")
        if line.strip():
            try:
                yield where, parse_json(line, Written)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON ({json_fault(error)}); "
                                "mend or remove that line") from None


# ---------------------------------------------------------------------------------- files as wholes


def _is_whole(path: Path) -> bool:
    """Whether a file is one JSON value over several lines: a list, or an object in a .json file."""
    with _opened(path) as stream:
        lines = (stream.readline(LONGEST_LINE) for _ in range(BLANK_LINES))
        texts = (line.strip().removeprefix(b"\xef\xbb\xbf") for line in lines)
        first = next((text for text in texts if text), b"")
    if first.startswith(b"["):
        return True
    if not first or ".json" not in map(str.lower, path.suffixes):
        return False
    try:
        found = parse_json(first.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return True  # the object goes on in the next line
    return isinstance(found, dict) and isinstance(found.get("data"), list)


def _whole(path: Path) -> Iterator[tuple[str, object]]:
    """The records of a list, one by one, or of the list under `data`."""
    with _opened(path) as stream:
        data = stream.read(LARGEST_WHOLE + 1)
    text = _text(path, data, first=True) if len(data) <= LARGEST_WHOLE else ""
    begin = len(text) - len(text.lstrip())
    if text.startswith("[", begin):
        records = _elements(path, text, begin)
    elif len(data) > LARGEST_WHOLE or data.count(b",") > MOST_COMMAS:
        raise UserError(f"{path}: more than {LARGEST_WHOLE:,} bytes or {MOST_COMMAS:,} commas in "
                        "one JSON value; write one object a line (.jsonl)")
    else:
        value = _parsed(path, text, 0, len(text))
        records = value.get("data") if isinstance(value, dict) else None
        if not isinstance(records, list):
            raise UserError(f"{path}: expected a list of records, {{\"data\": [records]}}, or one "
                            "record a line")
    yield from ((f"{path}, record {n}", record) for n, record in enumerate(records, 1))


def _elements(path: Path, text: str, at: int) -> Iterator[object]:
    """The values of the list that begins at `at`, each read when it is asked for.

    `[1,1,1…` of 500 MB would fill many times its own size: who reads stops before.
    """
    behind_spaces = json.decoder.WHITESPACE.match
    at = behind_spaces(text, at + 1).end()
    more = not text.startswith("]", at)
    while more:
        end = _end(path, text, at)
        yield _parsed(path, text, at, end)
        at = behind_spaces(text, end).end()
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise _no_json(path, text, at, ValueError("neither a comma nor the end of the list"))
        at = behind_spaces(text, at + more).end()
    if behind_spaces(text, at + 1).end() < len(text):
        raise _no_json(path, text, at, ValueError("the file goes on behind the list"))


def _end(path: Path, text: str, at: int) -> int:
    """Where the JSON value at `at` ends: within LONGEST_LINE characters, or it could fill the
    memory by itself. Most end soon, and a part of the text is a copy: so short parts come first.
    """
    for part in (text[at : at + LONGEST_LINE // share] for share in (1024, 32, 1)):
        try:
            return at + VALUES.raw_decode(part)[1]
        except (ValueError, RecursionError) as error:  # it goes on behind the part, or is no JSON
            fault = error
    if len(part) == LONGEST_LINE:
        fault = ValueError(f"{json_fault(fault)}, or a record of more than {LONGEST_LINE:,} "
                           "characters")
    raise _no_json(path, text, at, fault)


def _parsed(path: Path, text: str, at: int, end: int) -> object:
    """The JSON value text[at:end]. Raises UserError with file and line."""
    try:
        return parse_json(text[at:end], Written)
    except (ValueError, RecursionError) as error:
        raise _no_json(path, text, at, error) from None


def _no_json(path: Path, text: str, at: int, error: ValueError | RecursionError) -> UserError:
    """The error of a JSON value that begins at `at`."""
    line = text.count("\n", 0, at) + getattr(error, "lineno", 1)
    return UserError(f"{path}:{line}: not valid JSON ({json_fault(error)})")


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet  # no requirement: few files need it
    except ImportError:
        raise UserError(
            f"{path}: parquet is read if pyarrow is installed (pip install pyarrow); or convert it "
            f"where pandas is: pandas.read_parquet({path.name!r}).to_json("
            f"{path.stem + '.jsonl'!r}, orient='records', lines=True)") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        line = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as parquet ({line}); get it again") from None


# ------------------------------------------------------------------------------------------ command


def main(argv: list[str]) -> None:
    """`python records.py FILE`: count the records, and show the columns of the first."""
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(argv) != 1:
        raise UsageError("usage: python records.py FILE")
    if not Path(argv[0]).is_file():
        raise UserError(f"{argv[0]}: no such file")
    records = [record for _, record in read_records(Path(argv[0]))]
    columns = ", ".join(records[0]) if records and isinstance(records[0], dict) else "none"
    print(one_line(f"{argv[0]}: {len(records)} records; columns of the first: {columns}"))


if __name__ == "__main__":
    sys.exit(run_command(main))
