"""records.py: files of every kind that is read, and files that were made to do harm."""

import gzip
import itertools
import json
import os
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import pytest

import records
from records import read_records
from runtime import UserError

ROWS = [{"n": n, "text": "a\u2028b"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(path: Path) -> list:
    return [record for _, record in read_records(path)]


CONTENTS = {
    "a.jsonl": LINES.encode(),
    "b.json": json.dumps(ROWS).encode(),
    "c.json": LINES.encode(),
    "d.json": json.dumps({"data": ROWS}).encode(),
    "e.json": json.dumps({"version": 1, "data": ROWS}, indent=2).encode(),
    "f.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "g.json.gz": gzip.compress(json.dumps(ROWS, indent=1).encode(), mtime=0),
    "F.JSONL.GZ": gzip.compress(LINES.encode(), mtime=0),
    "D.JSON": json.dumps({"data": ROWS}).encode(),
    "h": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode(),
    "i.jsonl": b"\n \n[\n" + json.dumps(ROWS)[1:].encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_of_every_kind_hold_the_same_records(name, tmp_path):
    (tmp_path / name).write_bytes(CONTENTS[name])
    assert values(tmp_path / name) == ROWS


def test_places_name_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n', mtime=0))
    (tmp_path / "b.json").write_text('[{"a": 1}]')
    places = [where for name in ("a.jsonl", "a.jsonl.gz", "b.json")
              for where, _ in read_records(tmp_path / name)]
    assert places == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4", f"{tmp_path}/a.jsonl.gz:1",
                      f"{tmp_path}/b.json, record 1"]


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", b"question,answer\n", "a.csv: a .csv file is not read; what is: .jsonl and .json"),
    ("a.tsv", b"question\tanswer\n", "docs/data.md has a line that turns a table into JSONL"),
    ("a.xlsx", b"PK", "a .xlsx file is not read"),
    ("a.json", b'{"rows": 3,\n"x": 1}', 'expected a list of records, {"data": [records]}, or one'),
    ("a.json", b'{"data": [}\n', "a.json:1: not valid JSON"),
    ("a.jsonl", b'{"a": NaN}\n', "a.jsonl:1: not valid JSON (NaN is no JSON)"),
    ("a.jsonl", b'{"a": 1}\n{"a": -Infinity}\n', "a.jsonl:2: not valid JSON (-Infinity is no JSON"),
    # It would be kept in data/test.jsonl as Infinity, which no command reads again.
    ("a.jsonl", b'{"a": 1}\n{"a": -1e999}\n',
     "a.jsonl:2: not valid JSON (-1e999 is no finite number)"),
    ("a.jsonl", b'{"a": 1}\n\xff\n', "a.jsonl:2: cannot be read as UTF-8 text"),
    ("a.jsonl.gz", b"plain", "a.jsonl.gz: cannot be read (Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "a.jsonl.gz: cannot be read"),
])
def test_what_is_not_read_is_one_line(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        values(tmp_path / name)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_rows_lines_and_bytes_are_bounded(tmp_path, monkeypatch, capsys):
    """Whatever a file holds, the time and the memory that it takes have an end."""
    monkeypatch.setattr(records, "MOST_ROWS", 10)
    monkeypatch.setattr(records, "LONGEST_LINE", 1000)
    monkeypatch.setattr(records, "LARGEST_WHOLE", 2000)
    monkeypatch.setattr(records, "UNPACKED", 5000)
    monkeypatch.setattr(records, "SLOW_PACKED", 100)
    with zipfile.ZipFile(tmp_path / "newlines.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", "\n" * 10**6)
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", "1\n" * 11)
    files = {"rows.jsonl": b"1\n" * 11, "list.json": json.dumps([1] * 11).encode(),
             "newlines.jsonl": b"\n" * 21, "line.jsonl": b"1" * 1001,
             "whole.json": b"[" + b" " * 3000 + b"]",
             "bomb.jsonl.gz": gzip.compress((b" " * 900 + b"\n") * 10**4, mtime=0)}
    said = {"rows": "10 rows are read at most", "list": "10 rows are read at most",
            "newlines": "20 lines are read at most", "line": "a line of more than 1,000 bytes",
            "whole": "more than 2,000 bytes or 4,194,304 commas in one JSON value",
            "bomb": "more than 5,000 bytes unpacked"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in (*files, "newlines.zip", "rows.zip"):
        with pytest.raises(UserError) as error:
            values(tmp_path / name)
        assert said[name.partition(".")[0]] in str(error.value)
    assert f"reading {tmp_path / 'newlines.zip'}, 0 MB, packed" in capsys.readouterr().err


def test_a_list_is_read_value_by_value(tmp_path, monkeypatch):
    """The first of them come out whatever follows; places are those of the whole file."""
    path = tmp_path / "a.json"
    path.write_text(' \n[{"a": 1},\n {"b": [2, "]"]} , 3.50,\n"x"]\n')
    assert values(path) == [{"a": 1}, {"b": [2, "]"]}, 3.5, "x"]
    for content, line, said in [
            ('[{"a": 1},\n{"a" 2}]', 2, "Expecting ':' delimiter"),
            ("[1,\n]", 2, "Expecting value"),
            ("[1\n2]", 2, "neither a comma nor the end"), ("[1,\n2", 2, "neither a comma nor the"),
            ("[1]\n[2]", 1, "the file goes on"), ("[", 1, "Expecting value"),
            ('[1,\n"\\ud800"]', 2, "half a surrogate pair"), ("[1,\n\nNaN]", 3, "NaN is no JSON"),
            ("[1, " + "9" * 5000 + "]", 1, "Exceeds the limit"), ("[1,\n" + "[" * 9999, 2, "")]:
        path.write_text(content)
        rows = read_records(path)
        with pytest.raises(UserError) as error:
            list(rows)
        assert str(error.value).startswith(f"{path}:{line}: not valid JSON ({said}"), content
    path.write_text("[" + "7," * 200 + "]")
    monkeypatch.setattr(records, "MOST_ROWS", 100)
    with pytest.raises(UserError, match="record 101: 100 rows are read at most"):
        list(read_records(path))
    path.write_text("[1, [" + "7, " * 200 + "7]]")
    monkeypatch.setattr(records, "LONGEST_LINE", 100)
    with pytest.raises(UserError, match="a.json:1: .*, or a record of more than 100 characters"):
        list(read_records(path))


def test_a_list_under_data_may_be_long_but_not_of_too_many_values(tmp_path, monkeypatch):
    path, rows = tmp_path / "a.json", [{"a": "x" * 90}] * 3
    path.write_text(json.dumps({"data": rows}))
    monkeypatch.setattr(records, "LONGEST_LINE", 200)  # of a file that is read line by line
    assert values(path) == rows
    monkeypatch.setattr(records, "MOST_COMMAS", 1)
    with pytest.raises(UserError, match="or 1 commas in one JSON value; write one object a line"):
        values(path)


def test_a_short_file_of_a_great_many_values_fills_no_memory(tmp_path, monkeypatch):
    """A little gzip, 21 MB of list, would be 7 million objects."""
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b"{}," * 7_000_000 + b"{}]", 1, mtime=0))
    monkeypatch.setattr(records, "LARGEST_WHOLE", 2**25)  # as much is set aside at once
    tracemalloc.start()
    for _, _ in itertools.islice(read_records(path), 1000):
        pass
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 150e6  # the text, in bytes and in letters


def test_blank_lines_at_the_beginning_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_ROWS", 100)
    path = tmp_path / "blank.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 10**6 + b"{}\n", mtime=0))
    with pytest.raises(UserError, match="200 lines are read at most"):
        list(read_records(path))


def test_a_part_of_a_large_file_is_read_alone(tmp_path, monkeypatch):
    from data import read_problems

    monkeypatch.setattr(records, "MOST_ROWS", 3)
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n' * 9)
    assert len(read_problems(tmp_path / "a.jsonl", limit=2)) == 2


def test_parquet_without_pyarrow_is_one_line_with_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install pyarrow.; or .*\.to_json.'a.jsonl', orient"):
        values(tmp_path / "a.parquet")


def test_parquet_with_pyarrow(tmp_path, monkeypatch):
    """With a stand-in that has the few calls that are used."""
    class File:
        def __init__(self, path):
            if path.read_bytes() != b"PAR1":
                raise stand_in.ArrowException("Parquet magic bytes not found\nin footer")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def iter_batches(self, rows):
            return [types.SimpleNamespace(to_pylist=lambda: ROWS)]

    stand_in = types.ModuleType("pyarrow")
    stand_in.ArrowException = type("ArrowException", (Exception,), {})
    stand_in.parquet = types.SimpleNamespace(ParquetFile=File)
    monkeypatch.setitem(sys.modules, "pyarrow", stand_in)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.parquet").write_bytes(b"other")
    assert [*read_records(tmp_path / "a.parquet")][0] == (f"{tmp_path}/a.parquet, row 1", ROWS[0])
    with pytest.raises(UserError,
                       match="cannot be read as parquet .Parquet magic bytes not found."):
        values(tmp_path / "b.parquet")


def test_a_device_is_no_file(capsys):
    from flags import run_command

    assert run_command(records.main, [os.devnull]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_column_cannot_steer_the_terminal(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"\\u001b[2Jx": 1}\n')
    records.main([str(tmp_path / "a.jsonl")])
    assert capsys.readouterr().out == (
        f"{tmp_path}/a.jsonl: 1 records; columns of the first:  [2Jx\n")
