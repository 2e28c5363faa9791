"""sources.py: the sets by name, from a server on this machine, from a stand-in of the hub, and put
there by hand.

The hub's part runs its real client in a process of its own, since the client reads its settings at
import.
"""

import hashlib
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import children
import sources
from conftest import BODY, HASH
from data import load_problems
from runtime import UserError
from sources import SETS, File, Source, fetch
from synthetic import DATASETS



# ----------------------------------------------------------------------------------------- the sets


def one_set(monkeypatch, server, **more) -> Path:
    """A set `here` with one training file on the server; returns where that file belongs."""
    file = File("train.jsonl", server.url, HASH)
    monkeypatch.setitem(SETS, "here", Source({"train": (file,)}, **more))
    return sources.own_path("here", file)


def test_a_set_is_fetched_once_and_read(server, monkeypatch):
    place = one_set(monkeypatch, server)
    assert fetch("here", "train") == fetch("here", "train") == [place] and len(server.requests) == 1
    assert place.parts[-3:] == ("mathft", "here", "train.jsonl")
    problems = load_problems("here")
    assert len(
        problems) == 5000 and problems[2].id == "here/train.jsonl:3" and problems[2].answer == "3"
    assert len(load_problems("here", limit=7)) == 7


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(server, monkeypatch):
    place = one_set(monkeypatch, server)
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    assert fetch("here", "train") == [place]
    place.write_bytes(BODY + b"\n")
    other = hashlib.sha256(BODY + b"\n").hexdigest()
    with pytest.raises(UserError,
                       match=f"{place}: has sha256 {other}, the published file {HASH}; remove it"):
        fetch("here", "train")
    assert server.requests == [] and place.exists()  # a user's file is not removed for him


def test_a_split_that_does_not_exist(server, monkeypatch):
    one_set(monkeypatch, server, tested_on="math500")
    with pytest.raises(UserError) as error:
        fetch("here", "test")
    measured = "a training on it is usually measured on math500"
    assert str(error.value) == f"here: has no test split, only train; {measured}"
    with pytest.raises(UserError, match="math500: has no train split, only test$"):
        load_problems("math500")
    with pytest.raises(UserError, match="gsm9k: no such data set; known are gsm8k, math, "):
        fetch("gsm9k", "train")


@pytest.mark.parametrize("name", [
    "math-perturb-simple", "math-perturb-hard",
    "hub:Kaffaljidhmah2/MATH-Perturb/math_perturb/math_perturb_hard.jsonl",
    "hub:kaffaljidhmah2/math-perturb/math_perturb/math_perturb_simple.jsonl"
])  # fmt: skip
def test_what_is_for_testing_only_is_not_trained_on(name, server):
    with pytest.raises(UserError, match="is for testing only, its authors forbid training on it"):
        load_problems(name, "train")


def test_what_must_be_known_is_printed_when_it_is_loaded(server, monkeypatch, capsys):
    one_set(monkeypatch, server, note=SETS["math"].note)
    load_problems("here")
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("here: 4,500 of its 12,000 problems stem from MATH's test half")


def test_the_table_is_sound(server, capsys):
    """Every file has a place on GitHub or the hub, and every training set names a test set."""
    for name, source in SETS.items():
        assert source.splits and set(source.splits) <= {"train", "test"}
        assert bool(source.tested_on) == ("train" in source.splits)
        assert not (source.refusal and "train" in source.splits)
        assert not source.tested_on or "test" in SETS[source.tested_on].splits
        assert sources.test_set_of(name) == (source.tested_on or None) and sources.is_known(name)
        for file in (file for files in source.splits.values() for file in files):
            assert file.place.startswith(
                "https://raw.githubusercontent.com/") or sources._hub_parts(file.place)
            assert Path(file.name).name == file.name and file.place.endswith(file.name) and len(
                file.sha256) in (0, 64)
    assert sources.test_set_of("mini-gsm") is None and not sources.is_known("mini-gsm")
    sources.main([])
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}"
               for name in (*SETS, *DATASETS)) and "train (not here), test (not here)" in out
    with pytest.raises(UserError, match="made from a seed, there is nothing to fetch"):
        sources.main(["mini-gsm"])
    assert server.requests == []


def test_the_command_fetches_all_files_of_a_set(server, monkeypatch, capsys):
    place = one_set(monkeypatch, server)
    sources.main(["here"])
    assert capsys.readouterr().out == f"{place}\n"
    sources.main([])
    assert f"{'here':20s} train (here)" in capsys.readouterr().out


@pytest.mark.skipif("MATHFT_DATA" not in os.environ,
                    reason="set MATHFT_DATA to a folder with gsm8k/ and math500/")
def test_the_published_files_put_there_by_hand(server, capsys):
    real = Path(os.environ["MATHFT_DATA"])
    for file in ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math500/test.json"):
        name, split = Path(file).parent.name, Path(file).stem
        place = sources.own_path(name, SETS[name].splits[split][0])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((real / file).read_bytes())
    assert [len(load_problems("gsm8k", split)) for split in ("train", "test")] == [7473, 1319]
    assert len(load_problems("math500", "test")) == 500 and server.requests == []


def test_the_parts_of_a_set_are_one_set(server, monkeypatch):
    files = tuple(File(name, server.url) for name in ("one.jsonl.zip", "two.jsonl.zip"))
    monkeypatch.setitem(SETS, "aug", Source({"train": files}))
    for number, file in enumerate(files):
        place = sources.own_path("aug", file)
        place.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr(f"{number}.jsonl", b"".join(BODY.splitlines(True)[:3]))
    assert [p.id.rpartition("/")[2] for p in load_problems("aug")] == [
        f"{name}.jsonl.zip:{number}.jsonl:{line}" for number, name in enumerate(("one", "two"))
        for line in (1, 2, 3)
    ]


# ------------------------------------------------------------------------------------------ the hub


class Hub(BaseHTTPRequestHandler):
    """A stand-in for huggingface.co: a data set us/sums with one file, and names that fail."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    FAILS = {
        "missing": (404, {"X-Error-Code": "RepoNotFound"}), "gated": (403, {
            "X-Error-Code": "GatedRepo"
        }), "busy": (429, {"Retry-After": "0"}), "nofile": (404, {"X-Error-Code": "EntryNotFound"})
    }

    def do_GET(self) -> None:
        if self.path.startswith("/api/datasets/us/sums/tree/"):
            names = ["README.md", "b/test.jsonl", "a.parquet", "train.csv", "z.json.gz"]
            self.send_json([{"type": "file", "path": name, "size": 1, "oid": "0" * 40}
                            for name in names])
            return
        if not self.path.startswith("/datasets/"):  # what the client likes to know besides
            self.send_error(404)
            return
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        status, headers = next((answer for word, answer in self.FAILS.items() if word in self.path),
                               (200, {}))
        body = self.server.body if status == 200 else b""
        length = 10**12 if "huge" in self.path else len(body)
        self.send_response(status)
        headers = {
            "X-Repo-Commit": self.COMMIT, "ETag": f'"{HASH}"', **headers, "Content-Length": length
        }
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_json(self, value) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.body, server.requests = BODY, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def from_hub(hub, home: Path, *names: str, **environment: str) -> list[str]:
    """Load the test split of each name in a process of its own; what came of each, and then its
    lines on stderr."""
    script = (
        "import sys\n"
        "from data import load_problems\n"
        "from runtime import UserError\n"
        "for name in sys.argv[1:]:\n"
        "    name, _, split = name.partition('@')\n"
        "    try:\n"
        "        problems = load_problems(name, split or 'test')\n"
        "        print(len(problems), problems[1].id)\n"
        "    except UserError as error:\n"
        "        print(str(error).replace(chr(10), 'SECOND LINE'))\n"
    )
    done = children.run_beside_hub(hub, home, script, *names, **environment)
    return done.stdout.splitlines() + [
        line for line in done.stderr.splitlines() if line.startswith("math")
    ]


SUMS = "hub:us/sums/deep/er/test.jsonl"


def test_a_file_of_the_hub_and_then_from_its_cache(hub, tmp_path):
    (line,) = from_hub(hub, tmp_path, SUMS, HF_TOKEN="hf_secret")
    assert line.startswith("5000 ") and line.endswith("deep/er/test.jsonl:2")
    assert {path
            for _, path, _ in hub.requests} == {
                "/datasets/us/sums/resolve/main/deep/er/test.jsonl"
            }
    assert {token for _, _, token in hub.requests} == {"Bearer hf_secret"}
    assert [method for method, _, _ in hub.requests].count("GET") == 1
    hub.requests.clear()
    assert from_hub(hub, tmp_path, SUMS, HF_HUB_OFFLINE="1") == [line] and not hub.requests
    assert from_hub(hub, tmp_path, SUMS) == [line]
    assert "GET" not in {method
                         for method, _, _ in hub.requests}  # only asked whether it has changed


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    names = [f"hub:us/{name}/test.jsonl" for name in ("missing", "gated", "busy", "huge")]
    missing, gated, busy, huge, nofile = from_hub(hub, tmp_path, *names, "hub:us/sums/nofile.json")
    assert missing == (
        "hub:us/missing/test.jsonl: no data set of that name on the hub; check the spelling; a "
        "private one needs HF_TOKEN")
    assert gated == ("hub:us/gated/test.jsonl: this data set is gated; accept its terms at "
                     "https://huggingface.co/datasets/us/gated and set HF_TOKEN")
    assert busy.startswith("hub:us/busy/test.jsonl: the hub answers 429, too many requests; wait")
    assert huge.startswith(
        "hub:us/huge/test.jsonl: is 1,000,000,000,000 bytes, more than the 500,000,000")
    assert nofile.startswith(
        "hub:us/sums/nofile.json: the data set has no such file; its files are listed at https://")
    assert "GET" not in {method for method, path, _ in hub.requests if "huge" in path}


def test_a_data_set_of_the_hub_lists_its_files_that_are_read(hub, tmp_path):
    listed, missing = from_hub(hub, tmp_path, "hub:us/sums", "hub:us/missing")
    assert listed == ("hub:us/sums: is a data set of several files; name one: "
                      "hub:us/sums/a.parquet, hub:us/sums/b/test.jsonl, hub:us/sums/z.json.gz")
    assert missing.startswith("hub:us/missing: ")


def test_a_hub_out_of_reach_says_which_file_to_put_where(hub, tmp_path):
    place = tmp_path / "mathft" / "math500" / "test.jsonl"
    url = (f"http://127.0.0.1:{hub.server_port}/datasets/HuggingFaceH4/MATH-500/resolve/main/"
           "test.jsonl")
    (line,) = from_hub(hub, tmp_path, "math500", HF_HUB_OFFLINE="1")
    assert line == (
        "hub:HuggingFaceH4/MATH-500/test.jsonl: not (whole) in the cache, and HF_HUB_OFFLINE is "
        f"set; unset it, or put the file of {url} at {place}")
    (line,) = from_hub(hub, tmp_path, SUMS, HF_HUB_OFFLINE="1")
    assert line.endswith("/datasets/us/sums/resolve/main/deep/er/test.jsonl and give its path")
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    assert from_hub(hub, tmp_path, "math500", HF_HUB_OFFLINE="1") == ["5000 math500/test.jsonl:2"]


def test_a_hub_that_does_not_answer(server, monkeypatch):
    """As the client says it after half a minute of tries."""

    def unreachable(**asked):
        raise LocalEntryNotFoundError("nothing in the cache either") from OSError(
            "Name or service not known\n")

    monkeypatch.setattr(sources, "hf_hub_download", unreachable)
    with pytest.raises(UserError) as error:
        load_problems("math500", "test")
    said, _, mend = str(error.value).partition("; check name and connection, or ")
    assert said == ("hub:HuggingFaceH4/MATH-500/test.jsonl: cannot be downloaded "
                    "(Name or service not known)")
    place = sources.own_path("math500", SETS["math500"].splits["test"][0])
    assert mend.endswith(f"/datasets/HuggingFaceH4/MATH-500/resolve/main/test.jsonl at {place}")


def test_a_set_of_the_hub_by_its_name(hub, tmp_path):
    """MATH is loaded with a note on the source of its problems."""
    problems, math, note = from_hub(hub, tmp_path, "math-perturb-hard", "math@train")
    assert problems.startswith("5000 ") and math.startswith("5000 ")
    assert note.startswith("math: 4,500 of its 12,000")


@pytest.mark.parametrize("name", [
    "hub:", "hub:us", "hub:/sums", "hub:us/sums/", "hub:us/sums/x.csv",
    "hub:us/sums/../x.json", "hub:/us/sums/x.json", "hub:us/sums/~/x.json", "hub:us//x.json",
    "hub:us/su\\ms/x.json", "hub:us/sums/a\nb.json"
])  # fmt: skip
def test_what_is_no_file_of_a_data_set(name, server):
    with pytest.raises(UserError,
                       match="no file of a data set; expected hub:owner/name/path.jsonl"):
        load_problems(name, "test")
