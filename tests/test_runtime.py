"""Device and precision, clock and memory, and files that appear whole or not at all."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import runtime
from children import Child
from runtime import UsageError, UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


# ----------------------------------------------------------------------------- device and precision


def test_rows_in_cache_are_alike_for_each_thread(monkeypatch):
    for threads in (1, 2, 6):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        for columns, most in ((152_000, 3), (1_000, 524), (10**9, 0)):
            rows = runtime.rows_in_cache(torch.empty(0, columns))
            assert rows % threads == 0 and (rows == threads or rows <= most)


def test_shapes_come_in_steps():
    assert [runtime.round_up(n) for n in (0, 1, 15, 16, 17, 160)] == [0, 16, 16, 16, 32, 160]


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        assert runtime.pick_device("auto").type == device
    assert runtime.pick_device("cpu") == CPU
    with pytest.raises(UsageError, match="--device cuda: .* has no CUDA; use --device cpu"):
        runtime.pick_device("cuda")
    with pytest.raises(UsageError, match="--device toaster: torch knows no such device"):
        runtime.pick_device("toaster")


def test_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch):
    for flags, dtype in (
        ({"avx2", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx2", "avx512f"}, torch.float32),
        (set(), torch.float32),  # no /proc/cpuinfo
    ):
        monkeypatch.setattr(runtime, "_cpu_flags", lambda: flags)
        assert runtime.pick_dtype("auto", CPU) == dtype


def test_dtypes_by_name():
    for name in ("bf16", "bfloat16"):
        assert runtime.pick_dtype(name, CPU) == torch.bfloat16
    for name in ("fp32", "float32"):
        assert runtime.pick_dtype(name, CPU) == torch.float32
    for dtype in (torch.bfloat16, torch.float32):
        assert runtime.pick_dtype(runtime.dtype_name(dtype), CPU) == dtype
    for name in ("fp16", "float16", "half"):
        with pytest.raises(UsageError, match="overflows in Qwen2"):
            runtime.pick_dtype(name, CPU)
    with pytest.raises(UsageError, match="--dtype fp8 is not supported; use auto, bf16 or fp32"):
        runtime.pick_dtype("fp8", CPU)


def test_the_machine_is_described_in_json():
    described = runtime.describe_machine(CPU, torch.float32)
    assert described["device"] == "cpu" and described["dtype"] == "fp32" and described[
        "torch"] == torch.__version__
    assert json.loads(json.dumps(described)) == described


def test_cuda_copies_from_pinned_memory_and_waits_for_nothing():
    """(Written down on a CPU: what is asked of torch.)"""
    asked = []

    class Host:
        def pin_memory(self):
            asked.append("pinned")
            return self

        def to(self, device, **how):
            asked.append((device, how))

    for device in ("cuda:1", "cpu"):
        runtime.to_device(Host(), device)
    assert asked == ["pinned", ("cuda:1", {"non_blocking": True}), ("cpu", {})]


# --------------------------------------------------------------------------------- clock and memory


def test_clock_runs_forward():
    before = runtime.clock(CPU)
    assert runtime.clock(CPU) >= before


def test_peak_memory_stays_after_the_memory_is_given_back():
    before = runtime.peak_memory_mib(CPU)
    size = int(before) * 2**20 + 2**28  # surely above all that was held before, in bytes
    large = torch.ones(size, dtype=torch.uint8)
    with_it = runtime.peak_memory_mib(CPU)
    del large
    assert with_it > before + 100
    assert runtime.peak_memory_mib(
        CPU) > with_it - 5  # the kernel's own count is not exact to the page


@pytest.mark.skipif(not Path("/proc/self/status").exists(),
                    reason="read from /proc, which Linux has")
def test_peak_memory_is_not_the_parents():
    """ru_maxrss of getrusage survives exec: a small child would report the peak of its parent."""
    ballast = torch.ones(2**29, dtype=torch.uint8)
    script = "import runtime, torch; print(runtime.peak_memory_mib(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                           check=True)
    assert float(child.stdout) < runtime.peak_memory_mib(CPU) - 100
    del ballast


def test_few_plans_of_products_are_remembered_unless_the_user_says_otherwise(monkeypatch):
    """torch reads the first name, oneDNN the second, when a product is planned for the first time.
    (docs/performance.md has what it brings.)"""
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")  # so that it is restored
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    runtime.keep_few_plans()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(runtime.PLANS)


def test_use_of_little_memory_is_harmless_anywhere(monkeypatch):
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "1024")  # for this test alone
    runtime.use_little_memory()
    monkeypatch.setattr(runtime.ctypes, "CDLL",
                        lambda name: object())  # a C library without mallopt
    runtime.use_little_memory()


# -------------------------------------------------------------------------------------------- files


def test_files_are_written_with_their_folders(tmp_path):
    runtime.write_text(tmp_path / "a" / "b" / "text", "é\n")
    runtime.write_json(tmp_path / "a" / "x.json", {"name": "é", "n": [1, None]})
    runtime.write_tensors(tmp_path / "a" / "t.safetensors", {"t": torch.arange(6).view(2, 3).T})
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "é\n".encode()
    assert runtime.read_json(tmp_path / "a" / "x.json") == {"name": "é", "n": [1, None]}
    assert load_file(tmp_path / "a" / "t.safetensors")["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert sorted(
        file.name for file in (tmp_path / "a").iterdir()) == ["b", "t.safetensors", "x.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    runtime.write_json(path, {"n": 1})

    def half(temporary: Path) -> None:
        temporary.write_text("half a fi")
        raise OSError(28, "No space left on device")

    with pytest.raises(
            UserError,
            match=r"result.json: cannot be written \(No space left on device\); nothing was"):
        runtime.write_whole(path, half)
    with pytest.raises(ValueError):  # JSON has no NaN: a mistake of ours, not of the user's
        runtime.write_json(path, {"n": float("nan")})
    assert runtime.read_json(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("line", [b"", b"null", b"[1]", b'{"loss": 1}', b'{"step": "2"}',
                                  b'{"step": true}', b"\x00\xff", b'{"step": 2', b"[" * 99999,
                                  b'{"step": ' + b"9" * 5000 + b"}", b'{"step": 2, "loss": 1e999}'])
def test_a_line_that_is_none_of_a_log_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics.jsonl:2: no line of a log; remove that line"):
        runtime.trim_metrics(path, 5)
    assert path.read_bytes() == content


def test_a_log_without_line_ends_fills_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "LONGEST_RECORD", 100)
    (tmp_path / "log").write_bytes(b'{"step": 1}\n' + b"\0" * 300)
    with pytest.raises(UserError, match="log:2: no line of a log"):
        list(runtime.read_log(tmp_path / "log"))


def test_a_path_that_is_no_utf8_is_one_line(tmp_path):
    """As a text in a file: the system keeps its bytes as halves of surrogate pairs."""
    with pytest.raises(UserError, match="x.json: cannot be written .*surrogates not allowed"):
        runtime.write_json(tmp_path / "x.json", {"output_dir": "runs/\udcff"})
    assert os.listdir(tmp_path) == []


def test_json_is_read_from_regular_files_of_a_bounded_size(tmp_path, monkeypatch):
    """A pipe would be waited for, and a device has no end."""
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(UserError, match="cannot be read .no regular file.; put a file there"):
            runtime.read_json(path)
    (tmp_path / "long.json").write_text('{"a": 1}' + " " * 100)
    monkeypatch.setattr(runtime, "LARGEST_JSON", 100)
    with pytest.raises(UserError, match="long.json: has more than 100 bytes"):
        runtime.read_json(tmp_path / "long.json")


# ------------------------------------------------------------------- what killed processes leave

LOCKING = """import sys, time, runtime
with runtime.locked(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(600)
"""


def holding(folder: Path) -> Child:
    """A process that has locked the folder."""
    other = Child(LOCKING, folder)
    while other.texts()[0] != "mine\n":
        assert other.process.is_alive(), other.texts()
        time.sleep(0.01)
    return other


def test_two_processes_are_locked_out_of_one_folder(tmp_path):
    other = holding(tmp_path)
    with pytest.raises(UserError, match="another process is at work in this folder"):
        with runtime.locked(tmp_path):
            pass
    other.kill()  # a killed process holds nothing
    with runtime.locked(tmp_path):
        pass
    with runtime.locked(tmp_path):  # nor does one that has ended
        pass


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    keep = [".bashrc", ".x.tmp", ".x.12a.tmp", "x.12.tmp", ".tmp", "data.jsonl", ".1.tmp"]
    for name in (*keep, ".args.json.123.tmp", ".other.json.7.tmp"):
        (tmp_path / name).write_text("x")
    for name in (".base.5.tmp", ".busy.6.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("x")
    other = holding(tmp_path / ".busy.6.tmp")
    runtime.remove_leftovers(tmp_path, "args.json")
    assert not (tmp_path / ".args.json.123.tmp").exists()
    assert (tmp_path / ".other.json.7.tmp").exists()
    runtime.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*keep, ".busy.6.tmp"}
    other.kill()
    with runtime.whole_folder(tmp_path / "busy") as temporary:  # whoever writes it next
        (temporary / "weights").write_text("y")
    assert {path.name for path in tmp_path.iterdir()} == {*keep, "busy"}


def test_a_folder_that_holds_only_leftovers_is_free(tmp_path):
    (tmp_path / ".args.json.123.tmp").write_text("{")
    assert runtime.new_directory(str(tmp_path), "stem") == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(),
                    reason="/dev/full is a disk without room, on Linux")
def test_a_full_disk_is_a_user_error(tmp_path):
    def fill(temporary: Path) -> None:
        with open("/dev/full", "w") as full:
            full.write("x" * 10_000)

    with pytest.raises(UserError, match="No space left on device"):
        runtime.write_whole(tmp_path / "text", fill)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/below: cannot be written"):
        runtime.write_text(tmp_path / "file" / "below", "x")
    (tmp_path / "folder").mkdir()
    for write in (runtime.write_text,
                  lambda path, _: runtime.write_tensors(path, {"t": torch.ones(2)})):
        with pytest.raises(UserError, match="folder: cannot be written"):
            write(tmp_path / "folder", "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": 1,\n "b": 2,\n}', "x.json:3: not valid JSON"),
        (b'{\n\n\n\n\n\n"a" 1}', "x.json:7: not valid JSON"),
        (b"", "x.json:1: not valid JSON"),
        (b"[1, 2]", "x.json: holds a list, not a JSON object"),
        (b'{"a": "\xff"}', "x.json: cannot be read"),
        (b"[" * 100_000, "x.json:1: not valid JSON (too deep)"),
        (b'{"a": "1e999",\n "b": 1e999}', "x.json:2: not valid JSON (1e999 is no finite number)"),
        (b'{"a": -Infinity}', "x.json:1: not valid JSON (-Infinity is no JSON)"),
    ],
    ids=["comma", "line 7", "empty", "list", "not UTF-8", "deep", "too large", "infinite"],
)
def test_broken_json_is_named_with_its_line(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        runtime.read_json(tmp_path / "x.json")
    assert str(error.value).startswith(str(tmp_path)) and message in str(error.value)


def test_json_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="x.json: no such file"):
        runtime.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot be read"):
        runtime.read_json(tmp_path)


def test_a_run_takes_the_first_free_number(tmp_path):
    root = str(tmp_path / "runs")
    made = [runtime.new_directory(None, "lora-mini-gsm", root) for _ in range(2)]
    assert [path.name for path in made] == ["lora-mini-gsm-1", "lora-mini-gsm-2"]
    made[0].rmdir()
    assert runtime.new_directory(None, "lora-mini-gsm", root) == made[0]


def test_a_given_directory_must_be_new_or_empty(tmp_path):
    wanted = tmp_path / "a" / "mine"
    assert runtime.new_directory(str(wanted), "stem") == wanted and wanted.is_dir()
    assert runtime.new_directory(str(wanted), "stem") == wanted  # still empty
    (wanted / "args.json").write_text("{}")
    for taken in (wanted, wanted / "args.json"):
        with pytest.raises(UserError,
                           match="exists and is not empty; give another --output-dir, or --resume"):
            runtime.new_directory(str(taken), "stem")
    assert (wanted / "args.json").read_text() == "{}"


def test_metrics_behind_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    runtime.trim_metrics(path, 5)  # nothing there yet
    for step in range(1, 8):
        runtime.append_metrics(path, {"step": step, "loss": 1.0})
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')  # the line in which the run was killed
    runtime.trim_metrics(path, 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_log_is_trimmed_line_by_line(tmp_path):
    """A run's rollouts.jsonl may be larger than memory."""
    path = tmp_path / "rollouts.jsonl"
    line = json.dumps({"step": 1, "text": "x" * 50_000}) + "\n"
    path.write_text(line * 200)
    tracemalloc.start()
    runtime.trim_metrics(path, 5)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.read_text() == line * 200 and most < path.stat().st_size / 10


@pytest.mark.skipif(not Path("/dev/full").exists(),
                    reason="/dev/full is a disk without room, on Linux")
def test_a_log_that_cannot_be_written_is_named():
    with pytest.raises(
            UserError,
            match="/dev/full: cannot be written .No space left on device.; free some space"):
        runtime.append_metrics(Path("/dev/full"), {"step": 1})


# --------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("text, shown", [
    ("½ · 3 ≤ π, 数学, ÿ, ✓, 🙂\tend\n", None),  # text as it is
    ("\x1b[2J\x1b]0;title\x07", " [2J ]0;title "),  # ESC and BEL: clear, set the title
    ("wrong\rright", "wrong right"),  # a carriage return would overwrite what stands there
    ("a\bb\x7fc\x00d\x0be\x0cf", "a b c d e f"),
    ("\x9b2J \x85", " 2J  "),  # the one-byte forms of ESC [ and of a new line
    ("\u202e95 \u2066\u2069\u200f\u061c", " 95     "),  # marks that turn the direction of writing
    ("1\u20282\u20293", "1 2 3"),  # other ends of a line
    ("4\u200b2\ufeff\u00ad", "4 2  "),  # invisible
    ("\ud800 \udfff", "   "),  # halves of a pair, which print cannot encode
])
def test_no_text_steers_the_terminal(text, shown):
    assert runtime.printable(text) == (text if shown is None else shown)
    runtime.printable(text).encode()


def test_hashes_are_the_same_everywhere():
    assert runtime.hash_of("½") == runtime.hash_of("½") != runtime.hash_of("1/2")
    assert runtime.hash_of("") == 0xE4A6A0577479B2B4
    assert runtime.text_sha256("abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


# -------------------------------------------------------------------- other systems, as they differ


def test_no_proc_and_no_resource(monkeypatch):
    """macOS has no /proc, Windows no `resource` either: the peak is then 0, and bf16 is not fast.
    """
    def refuse(path, *args, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr("builtins.open", refuse)
    assert runtime.peak_memory_mib(CPU) > 1
    assert not runtime.multiplies_bf16_fast(CPU)
    assert isinstance(runtime.describe_machine(CPU, torch.float32)["machine"], str)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runtime.peak_memory_mib(CPU) == 0


def test_no_library_without_a_name(monkeypatch):
    def refuse(name):
        raise TypeError("argument of type 'NoneType' is not iterable")  # as Windows says

    monkeypatch.setattr(runtime.ctypes, "CDLL", refuse)
    runtime.use_little_memory()


def test_a_file_that_is_open_to_read_is_not_synced(tmp_path, monkeypatch):
    """Windows refuses it."""
    import fcntl

    def sync(descriptor):
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    monkeypatch.setattr(os, "fsync", sync)
    runtime.write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"


def test_a_folder_is_not_moved_onto_an_empty_one(tmp_path, monkeypatch):
    """Windows refuses it; and it has no locks."""
    move = os.replace

    def replace(old, new):
        if Path(new).is_dir():
            raise PermissionError(13, "Access is denied", str(new))
        move(old, new)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / "run").mkdir()
    with runtime.whole_folder(tmp_path / "run") as temporary:
        (temporary / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "a").read_text() == "a"


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_other_devices_are_refused_by_name(name):
    with pytest.raises(UsageError, match=f"never tried on {name}; use --device cpu"):
        runtime.pick_device(name)


def test_threads():
    before = torch.get_num_threads()
    runtime.use_threads(None)
    assert torch.get_num_threads() == before
    runtime.use_threads(1)
    assert torch.get_num_threads() == 1
    runtime.use_threads(before)


def test_an_old_python_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit) as stop:
        exec(compile((ROOT / "runtime.py").read_text(), "runtime.py", "exec"), {"__name__": "x"})
    assert str(stop.value) == ("error: Python 3.11 or newer is needed, and this is 3.10; "
                               "see README.md")


def test_memory_of_its_own_goes_back_as_soon_as_its_tensor_goes():
    def held() -> float:
        return runtime.memory_in_use_mib(torch.device("cpu"))

    zeros = runtime.mapped_zeros((3, 5), torch.bfloat16)
    assert zeros.shape == (3, 5) and zeros.dtype == torch.bfloat16 and not zeros.any()
    before = held()
    wide = runtime.mapped_zeros((64, 1 << 18), torch.float32)
    wide += 1
    assert held() - before > 60
    del wide
    assert abs(held() - before) < 4
