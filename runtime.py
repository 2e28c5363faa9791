"""What every program needs of its machine: device, precision, clock, memory, files, text.

    python runtime.py            # prints what mathft sees of this machine

Nothing here knows of models. Two rules hold for every file that the project writes. It appears
whole or not at all: it is written beside its place, then renamed. And nothing that exists is
overwritten unless the caller asks for it.
"""

import sys

if sys.version_info < (3, 11):  # before an import of what Python 3.10 lacks
    sys.exit("error: Python 3.11 or newer is needed, and this is "
             f"{sys.version_info[0]}.{sys.version_info[1]}; see README.md")

import contextlib
import ctypes
import hashlib
import itertools
import json
import math
import mmap
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

VERSION = "0.1.0"
LARGEST_JSON = 2**26  # bytes of a file of settings; the index of the largest model is far below
LONGEST_RECORD = 2**24  # bytes of a line of a log
PLANS = 128  # of products, to remember
WIDE_AT_ONCE = 1 << 19  # numbers in fp32, 2 MiB: a processor's cache keeps them between two passes


class UserError(Exception):
    """An error that the user can mend: one line that names file, line and mend. Exit code 1."""


class UsageError(UserError):
    """Wrong or contradictory flags. Exit code 2."""


# ----------------------------------------------------------------------------- device and precision


def pick_device(name: str = "auto") -> torch.device:
    """The device that a flag names: `auto` is CUDA if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device {name}: torch knows no such device; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: mathft computes on a CPU or with CUDA, and was never "
                         f"tried on {device.type}; use --device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine (or this build of torch) has no CUDA;"
                         " use --device cpu")
    return device


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 fast: its features decide, never a timing."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()
    return False


def _cpu_flags() -> set[str]:
    """Feature flags of the first processor as Linux names them; empty if there is no /proc."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(flags.partition(":")[2].split())


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of products: `auto` is bf16 if the device multiplies it fast, else fp32.

    fp16 is refused, since Qwen2's activations overflow in it.
    """
    known = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
             "fp32": torch.float32, "float32": torch.float32}
    if name == "auto":
        return torch.bfloat16 if multiplies_bf16_fast(device) else torch.float32
    if name not in known:
        half = name in ("fp16", "float16", "half")
        hint = ": fp16 overflows in Qwen2's activations" if half else ""
        raise UsageError(f"--dtype {name} is not supported{hint}; use auto, bf16 or fp32")
    return known[name]


def dtype_name(dtype: torch.dtype) -> str:
    """`bf16` or `fp32`, as the flags spell them."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def use_little_memory() -> None:
    """What a program does first: keep freed blocks, and few plans of products."""
    keep_few_plans()
    keep_freed_memory()


def keep_few_plans() -> None:
    """Ask torch and oneDNN to remember so few plans of products in bf16 on a CPU.

    Each shape of a product is planned, which takes 0.3 to 2 ms, and a plan takes half a MiB in the
    midst of the heap. Of the 1,024 that are remembered otherwise, a layer and its backward pass use
    less than a hundred; the other layers have the same shapes, and the next micro-batch has others.
    Both read their setting when they plan for the first time.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PLANS))


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of giving them back to the kernel.

    On other systems nothing happens. Without it every large tensor is mapped anew, and the kernel
    clears its pages on first touch: the step of a small model spends most of its time there.
    """
    try:
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from glibc's malloc.h
        for option, value in ((mmap_threshold, 1 << 30), (trim_threshold, -1), (top_pad, 64 << 20)):
            libc.mallopt(option, value)
    except (OSError, AttributeError, TypeError):  # macOS has no mallopt, Windows no library None
        pass


def give_back_freed_memory() -> None:
    """Ask glibc to give the kernel what it keeps of freed blocks; `keep_freed_memory` still holds.

    Between two parts of a run: what an evaluation or the sampling of rollouts has left would stand
    beside what training takes.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # as above
        pass


def mapped_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in memory of their own, which goes back to the kernel as soon as the tensor goes."""
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    count = math.prod(shape)
    memory = mmap.mmap(-1, count * dtype.itemsize, **private)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def use_threads(count: int | None) -> None:
    """Compute with so many threads of the processor; None: with as many as torch has chosen."""
    if count is not None:
        torch.set_num_threads(count)


def rows_in_cache(x: torch.Tensor) -> int:
    """How many rows of x [n, V] to hold in fp32 at a time.

    On a CPU they are few, and equally many for each thread; on a GPU all.
    """
    if x.device.type != "cpu":
        return max(1, len(x))
    threads = torch.get_num_threads()
    return max(1, WIDE_AT_ONCE // (x.shape[1] * threads)) * threads


def to_device(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU on a device. The program does not wait for the device's earlier work.

    (CUDA copies pinned memory when its turn comes; a plain copy stops the program until then.)
    """
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def round_up(count: int, multiple: int = 16) -> int:
    """The next multiple of `multiple`, for sizes of tensors.

    On a CPU each new shape of a product is planned first, which takes 0.3 to 2 ms.
    """
    return -(-count // multiple) * multiple


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict:
    """What a reader needs to judge the figures of a run; env.json holds it."""
    return {
        "version": VERSION,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "device": str(device),
        "dtype": dtype_name(dtype),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def machine_line(device: torch.device, dtype: torch.dtype, processes: int = 1) -> str:
    """A program's first line: where it computes, in what, and why that may be slow."""
    about = describe_machine(device, dtype)
    slow = "" if multiplies_bf16_fast(device) else " (this machine has no fast bf16)"
    several = f", {processes} processes" if processes > 1 else ""
    return "machine    {machine}, {device}, {dtype}{slow}, {threads} threads{several}".format(
        slow=slow, several=several, **about)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip()
                        for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# -------------------------------------------------------------------------------- several processes


class Alone:
    """The processes that do one command together: here one. parallel.Ranks is one of several.

    What is gathered and agreed on are values of JSON.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, items: list) -> list:
        """This process's part of the items."""
        return items

    def left_to_others(self, problems: int, samples: int) -> set[tuple[int, int]]:
        """The (problem, sample) that other processes generate, of `samples` each of `problems`."""
        mine = set(self.share(list(range(problems))))
        return {(i, s) for i in range(problems) if i not in mine for s in range(samples)}

    def gather(self, items: list) -> list:
        """The items of all processes, in each of them."""
        return items

    def agree(self, find: Callable[[], object]):
        """What `find` gives in the first process, for all; the others do not call it."""
        return self.gather([find()] if self.first else [])[0]

    def in_turn(self) -> contextlib.AbstractContextManager:
        """The first process does the block before the others begin with it."""
        return contextlib.nullcontext()

    def align(self, parameters: list[torch.nn.Parameter]) -> None:
        """Give all processes the numbers of the first."""

    def add_gradients(self, parameters: list[torch.nn.Parameter], total: torch.Tensor,
                      count: int) -> tuple[torch.Tensor, int]:
        """Add up over all processes: the gradients in their place, and what else is given.

        total [] stays on its device.
        """
        return total, count

    # Weights that are divided: each process holds a part of every one. What follows is then done by
    # all processes together.
    divided = False

    def divide(self, model: torch.nn.Module) -> None:
        """Divide the weights of a model that trains as a whole over the processes."""

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """Of a tensor that is divided all of it, in each process."""
        return x

    def part(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Of a whole tensor, what this process holds of it if it is divided as `like` is."""
        return x

    def passes(self, own: int) -> int:
        """How many forward passes a step takes of which this process needs `own`: as many as the
        others, if layers are gathered in each.
        """
        return own


ALONE = Alone()


# --------------------------------------------------------------------------------- clock and memory


def clock(device: torch.device) -> float:
    """Seconds on a wall clock, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory_mib(device: torch.device) -> float:
    """High-water mark in MiB: CUDA's allocations, or on a CPU the process's resident set.

    It reads VmHWM and not getrusage's ru_maxrss, which survives exec: a child would report the peak
    of its parent. Where neither is there (Windows) it is 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return kib / 2**10
    except (OSError, StopIteration):
        try:
            import resource  # not on Windows
        except ImportError:
            return 0.0
        # macOS counts bytes
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_in_use_mib(device: torch.device) -> float:
    """MiB that this process holds now; 0 if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return (_kib_in("/proc/self/status", "VmRSS") or 0) / 2**10


def free_memory_mib(device: torch.device) -> float | None:
    """MiB that nobody holds; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    kib = _kib_in("/proc/meminfo", "MemAvailable")
    return kib and kib / 2**10


def _kib_in(path: str, name: str) -> int | None:
    """A number of KiB that Linux tells under that name."""
    try:
        with open(path, encoding="utf-8") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
    except (OSError, StopIteration):
        return None


# -------------------------------------------------------------------------------------------- files


def write_whole(path: Path, write) -> None:
    """Call `write(temporary_path)` and move the result to `path`: a reader never sees half a file.

    If it fails (a full disk), the old file at `path` stays, the temporary file goes, and UserError
    names the path and the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "r+b") as file:  # Windows syncs no file that is open to read
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, UnicodeEncodeError) as error:  # the latter of a path that is no UTF-8
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error});"
                        " nothing was changed there") from error
    finally:
        with contextlib.suppress(OSError):  # it is not there if it was moved, or never made
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`. At the end it takes that name; on failure it is removed.

    Raises UserError if `folder` exists and is not empty, or if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty, nothing was written;"
                        " give another name")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        remove_leftovers(folder.parent, folder.name)
        temporary.mkdir(parents=True)
        with locked(temporary):
            yield temporary
            _move_onto(temporary, folder)
    except UserError as error:  # of a file inside it: name the place where it would have been
        raise UserError(str(error).replace(str(temporary), str(folder))) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error});"
                        " nothing was kept of it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_onto(temporary: Path, folder: Path) -> None:
    """Give a folder the name of another that is empty or not there."""
    try:
        os.replace(temporary, folder)
    except PermissionError:  # Windows moves no folder onto an empty one
        folder.rmdir()
        os.replace(temporary, folder)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders that a killed process has left in `folder`.

    With `name` only those that were to become that one. The caller makes sure that no other process
    writes such files there; a folder that is being written is locked, and stays.
    """
    for left in Path(folder).glob(".*.tmp"):
        meant = final_name(left)
        if meant is None or name not in (None, meant):
            continue
        if left.is_dir() and not left.is_symlink():
            with contextlib.suppress(UserError), locked(left):
                shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def final_name(temporary: Path) -> str | None:
    """NAME, if a path is called `.NAME.PROCESS.tmp` as temporary files and folders are."""
    name, _, process = temporary.name.removesuffix(".tmp").rpartition(".")
    ours = temporary.name.endswith(".tmp") and name[:1] == "." and process.isdecimal()
    return name[1:] if ours else None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, no other process of this machine can lock the folder; a killed one lets go.

    Raises UserError if another process has it. Where there are no such locks (Windows, some network
    disks) nothing is locked.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is at work in this folder; let it end, "
                            "or give another folder") from None
        except OSError:
            pass  # a disk without locks
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value) -> None:
    """Write a value as indented JSON, whole or not at all. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor],
                  metadata: dict[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def save(temporary: Path) -> None:
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()},
                      temporary, metadata)
        except SafetensorError as error:  # it wraps errors of the system, as of a full disk
            raise OSError(str(error)) from error
        # safetensors makes its files private; these get the rights of the user's other files.
        umask = os.umask(0)  # it can only be read by setting it
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)

    write_whole(path, save)


def finite(text: str) -> float:
    """A decimal of a JSON text. Raises ValueError for NaN, and for one like 1e999: it would be
    written back as Infinity, which is no JSON.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


class Written(float):
    """A decimal of a JSON text, which as a text is spelled as it stands there."""

    def __new__(cls, text: str):
        value = super().__new__(cls, text)
        value.text = text
        return value

    def __str__(self) -> str:
        return self.text


def parse_json(text: str, decimals: Callable[[str], float] = float):
    """The value of a JSON text; `decimals=Written` keeps the spelling of 0.00001.

    Raises ValueError or RecursionError, also for valid JSON that is no usable text, and for NaN and
    infinity (1e999 too).
    """
    def no_number(name: str, why: str = "is no JSON"):
        place = _place_outside_texts(text, name)
        raise json.JSONDecodeError(f"{name[:20]} {why}", text, place)

    def number(spelled: str) -> float:
        if math.isinf(float(spelled)):
            no_number(spelled, "is no finite number")
        return decimals(spelled)

    # A number of 5,000 digits is a plain ValueError.
    value = json.loads(text, parse_float=number, parse_constant=no_number)
    # Half a surrogate pair (\ud800) could be written to no file.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _place_outside_texts(text: str, word: str) -> int:
    """Where a word first stands in JSON outside of a text."""
    inside = escaped = False
    for at, character in enumerate(text):
        if not inside and text.startswith(word, at):
            return at
        if character == '"' and not escaped:
            inside = not inside
        escaped = character == "\\" and not escaped
    return 0


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises UserError with file and line if it is missing, broken, too large or not an object.
    """
    check_small(path)
    try:
        value = parse_json(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: not valid JSON ({json_fault(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def json_fault(error: ValueError | RecursionError) -> str:
    """Why a text is no JSON, in few words."""
    if isinstance(error, RecursionError):
        return "too deep"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair"
    # Python's own words for a long number go on with how to allow it.
    return getattr(error, "msg", None) or str(error).partition(";")[0]


def check_regular(path: Path) -> None:
    """Raise UserError unless `path` is a regular file: a pipe would be waited for, a device has no
    end."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file")
    if not Path(path).is_file():
        raise UserError(f"{path}: cannot be read (no regular file); put a file there")


def check_small(path: Path) -> None:
    """Raise UserError unless `path` is a regular file of a size that settings have: it is read
    whole."""
    check_regular(path)
    if Path(path).stat().st_size > LARGEST_JSON:
        raise UserError(f"{path}: has more than {LARGEST_JSON:,} bytes, too many for settings; "
                        "get the right file")


def append_metrics(path: Path, record: dict) -> None:
    """Add one line to metrics.jsonl."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror});"
                        " free some space, then --resume") from error


def trim_metrics(path: Path, step: int) -> None:
    """Remove the lines after `step`: a run that goes on from there writes them again.

    Raises UserError that names a line that is not of a log.
    """
    def write_kept(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # line by line: rollouts.jsonl may fill memory
            file.writelines(line for line, record in read_log(path) if record["step"] <= step)

    if path.exists():
        write_whole(path, write_kept)


def read_log(path: Path) -> Iterator[tuple[bytes, dict]]:
    """The whole lines of a log, each with its record: an object with a whole number `step`.

    Half a last line is left out: a crash has cut it. The log is written before the checkpoint, so
    it belongs to a step after that. Raises UserError that names a line which is none of a log.
    """
    check_regular(path)
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_RECORD)
            if not line.endswith(b"\n") and len(line) < LONGEST_RECORD:
                return
            try:
                record = parse_json(line.decode("utf-8"))
                right = type(record["step"]) is int
            except (ValueError, RecursionError, KeyError, TypeError):
                right = False
            if not right:
                raise UserError(f"{path}:{number}: no line of a log; remove that line")
            yield line, record


def new_directory(wanted: str | None, stem: str, root: str = "runs") -> Path:
    """Make and return the folder of a new run: `wanted`, else `root/STEM-N` with the first free N.

    Raises UserError if `wanted` exists and holds more than what a killed process has left.
    """
    if wanted:
        path = Path(wanted)
        if path.exists() and (not path.is_dir() or not all(map(final_name, path.iterdir()))):
            raise UserError(f"{path}: exists and is not empty;"
                            f" give another --output-dir, or --resume {path}")
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        return path
    number = 1
    while True:
        path = Path(root) / f"{stem}-{number}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


# --------------------------------------------------------------------------------------------- text


def printable(text: str) -> str:
    """The text with a space for each character that could steer a terminal or hide what it shows.

    Those are control characters other than newline and tab (ESC, carriage return), marks of writing
    direction (U+202E), invisible characters, line separators, and halves of surrogate pairs.
    """
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def one_line(text: str) -> str:
    """The text as `printable` gives it, with a space for each newline and tab."""
    return "".join(char if char.isprintable() else " " for char in text)


def hash_of(text: str) -> int:
    """A 64-bit hash of a text, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def text_sha256(text: str) -> str:
    """The SHA-256 of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    device = pick_device()
    for key, value in describe_machine(device, pick_dtype("auto", device)).items():
        print(f"{key:10s} {value}")
