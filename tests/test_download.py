"""download.py: every way a file gets here, or does not, against a server on this machine; and zips
that mean no good."""

import json
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import errors

from conftest import BODY, HASH
from data import load_problems, read_problems
from runtime import UserError
from tools import download
from tools.download import hub_error, zip_lines

# ----------------------------------------------------------------------------------------- download


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "place" / "train.jsonl"


def files_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


def ranges(server) -> list[str | None]:
    return [headers.get("Range") for headers in server.requests]


def fails(server, path, said: str, sha256: str = HASH) -> str:
    """The one line of a download that must fail, and that leaves nothing at `path`."""
    with pytest.raises(UserError) as error:
        download.download(server.url, path, sha256)
    line = str(error.value)
    assert said in line and "\n" not in line and not path.exists()
    return line


def test_a_whole_download(server, path):
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and files_in(path.parent) == {"train.jsonl"}
    assert ranges(server) == [None] and server.requests[0]["Accept-Encoding"] == "identity"


def test_a_cut_connection_goes_on_where_it_was(server, path):
    server.script = [{"cut": 1000}, {"cut": 500}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=1000-", "bytes=1500-"]
    assert [headers.get("If-Range") for headers in server.requests] == [None, '"v1"', '"v1"']
    assert server.pauses == [1, 2] and files_in(path.parent) == {"train.jsonl"}


def test_what_has_come_is_kept_for_the_next_command(server, path):
    server.script = [{"cut": 1000}] + [{"cut": 0}] * 4
    line = fails(server, path, "the connection was cut after 1,000 of")
    assert "(try 5); the same command later goes on where it was" in line and server.pauses == [
        1, 2, 4, 8
    ]
    assert line.startswith(f"{server.url}: ") and line.endswith(f"or put that file at {path}")
    assert files_in(path.parent) == {"train.jsonl.part", "train.jsonl.part.etag"}
    server.requests.clear()
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and ranges(server) == ["bytes=1000-"]
    assert files_in(path.parent) == {"train.jsonl"}


@pytest.mark.parametrize("then", [{"ignores_range": True}, {"etag": '"v2"'}],
                         ids=["a server without ranges", "a file that has changed"])  # fmt: skip
def test_a_server_that_sends_all_again_starts_over(then, server, path):
    server.script = [{"cut": 1000, "body": b"old" * 1000}, then]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and ranges(server) == [None, "bytes=1000-"]


@pytest.mark.parametrize("etag", ["", 'W/"v1"', "v1"])
def test_a_part_of_which_nobody_knows_the_version_is_dropped(etag, server, path):
    server.script = [{"cut": 1000, "etag": etag}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and ranges(server) == [None, None]


def test_a_range_that_was_not_asked_for_is_not_taken(server, path):
    server.script = [{"cut": 1000}, {"astray": 5}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and ranges(server) == [None, "bytes=1000-", None]


def test_a_part_longer_than_the_file_is_dropped(server, path):
    server.script = [{"cut": 1000}, {"status": 416}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and ranges(server) == [None, "bytes=1000-", None]


def test_a_part_that_was_whole_already_is_taken(server, path):
    server.script = [{"status": 416, "headers": {"Content-Range": f"bytes */{len(BODY)}"}}]
    path.parent.mkdir(parents=True)
    path.with_name("train.jsonl.part").write_bytes(BODY)
    path.with_name("train.jsonl.part.etag").write_text('"v1"')
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and ranges(server) == [f"bytes={len(BODY)}-"]


def test_a_server_that_is_busy_is_asked_when_it_says(server, path):
    server.script = [{"status": 429, "headers": {"Retry-After": "7"}}, {"status": 503}]
    server.script += [{"status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY and server.pauses == [7, 2, 4]


def test_a_server_that_is_busy_for_ever(server, path):
    server.script = [{"status": 429}] * 9
    fails(server, path, "the server answers 429 (try 5)")
    assert len(server.requests) == 5 and server.pauses == [1, 2, 4, 8]
    server.script = [{"status": 429, "headers": {"Retry-After": "86400"}}]
    fails(server, path, "the server answers 429, to be asked again after 86400 seconds (try 1)")
    assert server.pauses == [1, 2, 4, 8]  # nobody waits a day


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_not_there_is_not_asked_for_twice(status, server, path):
    server.script = [{"status": status}]
    line = fails(server, path, f"{server.url}: the server answers {status}; put that file")
    assert line.endswith(f"at {path}") and len(server.requests) == 1


def test_a_wrong_hash_leaves_nothing(server, path):
    line = fails(server, path, f"has sha256 {HASH}, expected {'0' * 64}, and is removed",
                 sha256="0" * 64)
    assert line.endswith(f"put that file at {path}") and files_in(path.parent) == set()


@pytest.mark.parametrize("length", [True, False], ids=["length said", "not said"])
def test_a_file_that_is_too_large(length, server, path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST_FILE", 50_000)
    server.script = [{"length": length}]
    fails(server, path, "more than 50,000 bytes; nothing was kept of it")
    assert files_in(path.parent) == set()


def test_a_server_that_drips_is_left(server, path, monkeypatch):
    """A byte now and then keeps a connection open for years."""
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.script = [{"drips": True}] * 5
    fails(server, path, "slower than 1000 bytes/s (try 5)")
    assert len(server.requests) == 5


def test_the_page_of_a_proxy_is_no_zip(server, tmp_path):
    fails(server, tmp_path / "x.jsonl.zip", "what was downloaded is no zip file, and is removed",
          sha256="")
    assert files_in(tmp_path) == set()


def test_a_body_without_its_length_is_taken_for_whole(server, path):
    server.script = [{"length": False}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    "target, said",
    [("http://example.org/x", "leads to 'http://example.org/x', and only https is downloaded from"),
     ("ftp://127.0.0.1/x", "leads to 'ftp://127.0.0.1/x', and only https is downloaded from"),
     ("file:///etc/passwd", "the server answers 302"), ("data:,hello", "the server answers 302"),
     ("//[x", "Invalid"), ("/train.jsonl", "the server answers 302")])  # fmt: skip
def test_a_redirect_leads_to_https_alone(target, said, server, path):
    server.script = [{"status": 302, "headers": {"Location": target}}] * 50
    fails(server, path, said)
    assert not (path.parent / "train.jsonl.part").exists() and len(server.requests) < 20


def test_a_redirect_within_this_machine_is_followed(server, path):
    server.script = [{"status": 302, "headers": {"Location": "/there"}}]
    download.download(server.url, path, HASH)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org/x", "http://example.org/x", "/etc/passwd"])
def test_only_https_is_asked(url, server, path):
    with pytest.raises(UserError, match="only https is downloaded from"):
        download.download(url, path)


def test_https_never_falls_back_to_http():
    assert download._is_safe("https://example.org/x", "https://example.org/y")
    assert not download._is_safe("http://127.0.0.1/x", "https://example.org/y")


def test_without_a_network(server, path, monkeypatch):
    server.shutdown()
    server.server_close()
    line = fails(server, path, "cannot be reached (")
    assert line.startswith(
        server.url) and line.endswith(f"put that file at {path}") and server.pauses == []
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    assert fails(server, path, "HF_HUB_OFFLINE is set") == (
        f"{server.url}: not here, and HF_HUB_OFFLINE is set; unset it, or put that file at {path}")


def test_two_at_once_download_once(server, path):
    threads = [
        threading.Thread(target=download.download, args=(server.url, path, HASH)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert path.read_bytes() == BODY and len(server.requests) == 1 and files_in(
        path.parent) == {"train.jsonl"}


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    fails(server, tmp_path / "file" / "x.jsonl", "x.jsonl: cannot be written (")


# --------------------------------------------------------------------------------------------- zips


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return path


LINE = json.dumps({"query": "What is 2 + 3?", "response": "The answer is: $5$"}).encode() + b"\n"


def test_a_zip_is_read_member_by_member(tmp_path):
    path = zipped(
        tmp_path / "aug.jsonl.zip", {
            "data/a.jsonl": b"\xef\xbb\xbf" + LINE + b"\r\n" + LINE.strip(),
            "__MACOSX/data/._a.jsonl": b"\x00\x05\x16\x07", "README.txt": b"\xff", "b.jsonl": LINE
        })  # fmt: skip
    problems = read_problems(path)
    assert [p.id for p in problems] == [
        f"{path}:data/a.jsonl:1", f"{path}:data/a.jsonl:3", f"{path}:b.jsonl:1"
    ]
    assert {(p.question, p.answer) for p in problems} == {("What is 2 + 3?", "5")}
    assert load_problems(str(path)) == problems and {file.name
                                                     for file in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize(
    "members, said",
    [({"a.jsonl": LINE + b"{broken\n"}, ":a.jsonl:2: not valid JSON ("),
     ({"a.jsonl": LINE, "b.jsonl": LINE * 2 + b"\xff\n"}, ":b.jsonl:3: not UTF-8 text"),
     ({"a.jsonl": LINE + b'{"q": 1}'}, ":a.jsonl:2: no known keys"),
     ({"a.jsonl": LINE, "../b.jsonl": LINE
       }, ": holds a file named '../b.jsonl', which leads elsewhere"),
     ({"/etc/b.jsonl": LINE}, ": holds a file named '/etc/b.jsonl'"),
     ({"a/..\\..\\b.jsonl": LINE}, ": holds a file named"),
     ({"C:/b.jsonl": LINE}, ": holds a file named"),
     ({"a\nb.jsonl": LINE}, ": holds a file named 'a\\nb.jsonl'"),
     ({"a.txt": LINE}, ": holds no .jsonl file"), ({}, ": holds no .jsonl file"),
     ({"a.jsonl": b""}, ": holds no problems"),
     ({f"{n}.jsonl": LINE
       for n in range(101)}, ": holds 101 files, more than the 100 that are read"),
     ({"a.jsonl": LINE + b" " * (2**20 + 1)}, ":a.jsonl:2: a line of more than 1,048,576 bytes"), ],
    ids=[
        "broken line", "bytes", "other keys", "..", "absolute", "backslash", "drive", "line end",
        "no jsonl", "nothing", "empty", "many", "long line"
    ])  # fmt: skip
def test_a_zip_that_is_not_taken(members, said, tmp_path):
    path = zipped(tmp_path / "x.zip", members)
    with pytest.raises(UserError) as error:
        read_problems(path)
    assert f"{path}{said}" in str(error.value) and "\n" not in str(error.value)


def test_a_bomb_is_left_as_soon_as_it_is_one(tmp_path, monkeypatch):
    """A thousand times as much text as bytes, with a header that says otherwise: what is read is
    counted."""
    monkeypatch.setattr(download, "UNPACKED", 3 * 2**20)
    path = zipped(tmp_path / "x.zip", {"a.jsonl": LINE * 200_000})
    size, lies = (200_000 * len(LINE)).to_bytes(4, "little"), len(LINE).to_bytes(4, "little")
    data = path.read_bytes()
    assert len(data) < 100_000 and data.count(size) == 2
    read = 0
    with pytest.raises(UserError, match="or more than 3,145,728 in all"):
        for _ in zip_lines(path):
            read += 1
    assert read * len(LINE) <= 3 * 2**20
    path.write_bytes(data.replace(
        size, lies))  # then zipfile itself stops there, and the checksum is wrong
    with pytest.raises(UserError, match="cannot be read as a zip"):
        list(zip_lines(path))


def test_other_compressions_are_not_begun(tmp_path):
    """LZMA may ask for gigabytes of dictionary in its first bytes."""
    path = zipped(tmp_path / "x.zip", {"a.jsonl": LINE}, zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="a.jsonl is compressed in another way than deflate"):
        list(zip_lines(path))


def test_a_list_of_contents_without_end_is_not_read(tmp_path):
    """Twenty thousand names of two hundred characters: more than a MiB, which zipfile would read at
    once."""
    path = zipped(tmp_path / "x.zip", {f"{n:0200d}": b"" for n in range(6000)})
    with pytest.raises(UserError, match="its list of contents is too long"):
        list(zip_lines(path))


def test_half_a_zip_and_bytes_that_changed(tmp_path):
    """Whatever byte is missing or wrong, the answer is one line or the right lines, never anything
    else."""
    rows = b"".join(
        json.dumps({"query": f"What is {n} + {n * n}?", "response": f"#### {n + n * n}"}).encode() +
        b"\n" for n in range(50))
    whole = zipped(tmp_path / "x.zip", {"a.jsonl": rows}).read_bytes()
    right = list(zip_lines(tmp_path / "x.zip"))
    for changed in [whole[: len(whole) // 2], whole[:-1], b"", b"PK", whole[30:]]:
        (tmp_path / "x.zip").write_bytes(changed)
        with pytest.raises(UserError, match="x.zip: cannot be read as a zip"):
            list(zip_lines(tmp_path / "x.zip"))
    errors = 0
    for at in range(0, len(whole)):
        (tmp_path / "x.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert [text for _, text in zip_lines(tmp_path / "x.zip")] == [
                text for _, text in right
            ]
        except UserError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 0.8 * len(whole)


def test_an_encrypted_zip(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.jsonl": LINE})
    data = bytearray(path.read_bytes())
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        data[data.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="cannot be read as a zip .*encrypted"):
        list(zip_lines(path))


def test_a_zip_costs_no_more_memory_than_its_lines(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.jsonl": LINE * 100_000})  # 7 MB of text
    tracemalloc.start()
    assert sum(len(text) for _, text in zip_lines(path)) == 100_000 * len(LINE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 2**20


# ------------------------------------------------------------------------------------------ the hub


def error_of(kind: type, status: int = 404) -> Exception:
    """An error of the hub's client, with the response that it keeps."""
    error = kind.__new__(kind)
    error.response = type("Response", (), {"status_code": status})()
    return error


@pytest.mark.parametrize("caught, said", [
    (error_of(errors.GatedRepoError), "this model is gated; accept its terms at PAGE and set"),
    (error_of(errors.RepositoryNotFoundError), "no model on the hub; check the spelling"),
    (error_of(errors.RemoteEntryNotFoundError),
     "the model has no such file; its files are listed at PAGE/tree/main"),
    (errors.OfflineModeIsEnabled("offline"),
     "not (whole) in the cache, and HF_HUB_OFFLINE is set; unset it, or DO THIS"),
    (error_of(errors.HfHubHTTPError, 429), "the hub answers 429, too many requests; wait"),
    (OSError("no route\nto host"),
     "cannot be downloaded (no route); check name and connection, or DO THIS"),
    (OSError(), "cannot be downloaded (OSError); check name and connection, or DO THIS"),
])  # fmt: skip
def test_an_error_of_the_hub_is_one_line(caught, said):
    error = hub_error("us/m", caught, "model", "PAGE", "no model", "DO THIS")
    assert str(error).startswith(f"us/m: {said}") and "\n" not in str(error)


def test_the_error_before_not_in_the_cache_either_counts():
    caught = errors.LocalEntryNotFoundError("not in the cache either")
    caught.__cause__ = errors.OfflineModeIsEnabled("offline")
    error = hub_error("us/m", caught, "model", "PAGE", "no model", "DO THIS")
    assert "HF_HUB_OFFLINE is set" in str(error)
    caught.__cause__ = None
    assert "cannot be downloaded (not in the cache either)" in str(
        hub_error("us/m", caught, "model", "PAGE", "no model", "DO THIS"))
