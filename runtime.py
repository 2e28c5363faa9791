"""What every program needs of its machine: device, precision, clock, memory, files, text.

    python runtime.py            # prints what mathft sees of this machine

Nothing here knows of models. Two rules hold for every file that the project writes. It appears
whole or not at all: it is written beside its place, then renamed. And nothing that exists is
overwritten unless the caller asks for it.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

VERSION = "0.1.0"
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
    except (OSError, AttributeError):
        pass


def rows_in_cache(x: torch.Tensor) -> int:
    """How many rows of x [n, V] to hold in fp32 at a time.

    On a CPU they are few, and equally many for each thread; on a GPU all.
    """
    if x.device.type != "cpu":
        return max(1, len(x))
    threads = torch.get_num_threads()
    return max(1, WIDE_AT_ONCE // (x.shape[1] * threads)) * threads


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


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip()
                        for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# --------------------------------------------------------------------------------- clock and memory


def clock(device: torch.device) -> float:
    """Seconds on a wall clock, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory_mib(device: torch.device) -> float:
    """High-water mark in MiB: CUDA's allocations, or on a CPU the process's resident set.

    It reads VmHWM and not getrusage's ru_maxrss, which survives exec: a child would report the peak
    of its parent.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return kib / 2**10
    except (OSError, StopIteration):
        import resource  # not on Windows; macOS counts bytes

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error});"
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
        # A killed process may have had the same number.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, folder)
    except UserError as error:  # of a file inside it: name the place where it would have been
        raise UserError(str(error).replace(str(temporary), str(folder))) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error});"
                        " nothing was kept of it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises UserError with file and line if it is missing, broken or not an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        reason = getattr(error, "msg", "too deep")
        raise UserError(f"{path}:{line}: not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def append_metrics(path: Path, record: dict) -> None:
    """Add one line to metrics.jsonl."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror});"
                        " free some space, then --resume") from error


def trim_metrics(path: Path, step: int) -> None:
    """Remove the lines after `step`: a run that goes on from there writes them again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line that a crash has cut is after the checkpoint too: the log is written first.
        kept = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
        write_text(path, "".join(kept))


def new_directory(wanted: str | None, stem: str, root: str = "runs") -> Path:
    """Make and return the folder of a new run: `wanted`, else `root/STEM-N` with the first free N.

    Raises UserError if `wanted` exists and is not empty.
    """
    if wanted:
        path = Path(wanted)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists and is not empty;"
                            f" give another --output-dir, or --resume {path}")
        path.mkdir(parents=True, exist_ok=True)
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
