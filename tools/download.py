"""Downloads files from the web, whole and checked or not at all, and reads zips without unpacking
them.

    python -m tools.download https://HOST/rows.jsonl.zip rows.jsonl.zip   # goes on if cut

Whatever a server or a zip says, the size, the time and the number of tries are bounded. (The hub
client's own http_get bounds neither size nor time, and its resume does not ask whether the file has
changed.)
"""

import contextlib
import hashlib
import io
import os
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock, tqdm

from runtime import VERSION, UserError

LARGEST_FILE = 500 * 10**6  # bytes of a download: the largest published file is far below
CHUNK = 2**20
TRIES = 5
LONGEST_WAIT = 60  # seconds between tries; if a server asks for more, the download ends
PASSING = (408, 429, 500, 502, 503, 504)  # answers that may change a little later
TIMEOUT = 60  # seconds without a byte; and of any download before the rate below counts
SLOWEST = 1000  # bytes/s
# Most files of a zip, bytes of a line, and bytes of all lines together.
MEMBERS, LONGEST_LINE, UNPACKED = 100, 2**20, 2**30


# ----------------------------------------------------------------------------------------- download


def download(url: str, path: Path, sha256: str = "") -> None:
    """Download `url` to `path`: whole, with the right hash, or not at all.

    An interrupted download stays in `path`.part, and the next call goes on there. Of several
    processes one downloads and the others wait for it. Raises UserError, which says what to do by
    hand.
    """
    by_hand = f"put that file at {path}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{url}: not here, and HF_HUB_OFFLINE is set; unset it, or {by_hand}")
    if not _is_safe(url):
        raise UserError(f"{url}: only https is downloaded from")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():  # another process was faster
                return
            part = path.with_name(f"{path.name}.part")
            _fetch_part(url, part, by_hand)
            wrong = None
            if sha256 and (found := sha256_of(part)) != sha256:
                wrong = f"has sha256 {found}, expected {sha256}"
            elif path.suffix == ".zip" and not zipfile.is_zipfile(part):  # the page of a proxy, say
                wrong = "is no zip file"
            if wrong:
                _forget(part)
                raise UserError(f"{url}: what was downloaded {wrong}, and is removed; "
                                f"try again later, or {by_hand}")
            os.replace(part, path)
            _forget(part)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _fetch_part(url: str, part: Path, by_hand: str) -> None:
    """Fill `part` with the whole file, in at most TRIES tries. Raises UserError, or OSError of the
    disk."""
    for attempt in range(1, TRIES + 1):
        wait = 2.0 ** (attempt - 1)
        try:
            _download_once(url, part)
            return
        except urllib.error.HTTPError as error:
            error.close()
            why, asked = f"the server answers {error.code}", error.headers.get("Retry-After", "")
            if error.code == 416:  # no such range: the part is whole, or not of this file
                whole = f"bytes */{part.stat().st_size}" if part.exists() else None
                if whole and error.headers.get("Content-Range") == whole:
                    return
                _forget(part)
            elif error.code not in PASSING:
                raise UserError(f"{url}: {why}; {by_hand}") from error
            if asked.isdecimal():  # if it is a date, our own pace stays
                wait = float(asked)
                why += f", to be asked again after {wait:g} seconds"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError,
                ValueError) as error:
            why = _network_fault(url, error, by_hand)
        if attempt == TRIES or wait > LONGEST_WAIT:
            raise UserError(f"{url}: {why} (try {attempt}); the same command later goes on where "
                            f"it was, or {by_hand}")
        sleep(wait)


def _network_fault(url: str, error: Exception, by_hand: str) -> str:
    """What went wrong, in words. Raises UserError if another try would not change it."""
    reason = getattr(error, "reason", error)
    why = " ".join(str(reason).split()) or type(reason).__name__
    final = socket.gaierror | ConnectionRefusedError | ssl.SSLCertVerificationError
    if isinstance(reason, final):
        raise UserError(f"{url}: cannot be reached ({why}); check the connection, or {by_hand}"
                        ) from error
    return why


def _download_once(url: str, part: Path) -> None:
    """One request for the rest of `part`. Raises what urllib raises, and ConnectionError if the
    body is cut."""
    have, etag = _begun(part)
    headers = {"User-Agent": f"mathft/{VERSION}", "Accept-Encoding": "identity"}
    if have:  # If-Range: if the file has changed since, the server sends all of it
        headers |= {"Range": f"bytes={have}-", "If-Range": etag}
    opener = urllib.request.build_opener(_SafeRedirects)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        got = response.headers.get("Content-Range", "")
        if response.status == 206 and not got.startswith(f"bytes {have}-"):
            _forget(part)
            raise ConnectionError("the server sends another range than it was asked for")
        at = have if response.status == 206 else 0
        if not at:
            _forget(part)
            _etag_file(part).write_text(response.headers.get("ETag", ""), encoding="utf-8")
        _append_body(url, response, part, at)


def _append_body(url: str, response: HTTPResponse, part: Path, at: int) -> None:
    """Write the body to the end of `part`, which has `at` bytes, within the bounds of size and
    time."""
    total = None if response.length is None else at + response.length
    bar = tqdm(desc=part.stem, total=total, initial=at, unit="B", unit_scale=True, leave=False,
               disable=not sys.stderr.isatty())
    start, first = monotonic(), at
    with bar, open(part, "ab") as file:
        while total is None or at < total:
            if max(at, total or 0) > LARGEST_FILE:
                file.close()
                _forget(part)
                raise UserError(f"{url}: more than {LARGEST_FILE:,} bytes; nothing was kept of it")
            chunk = response.read1(CHUNK if total is None else min(CHUNK, total - at))
            if not chunk:
                break
            file.write(chunk)
            at += len(chunk)
            bar.update(len(chunk))
            if monotonic() - start > TIMEOUT + (at - first) / SLOWEST:
                raise TimeoutError(f"slower than {SLOWEST} bytes/s")
        file.flush()
        os.fsync(file.fileno())
    if total is not None and at < total:
        raise ConnectionError(f"the connection was cut after {at:,} of {total:,} bytes")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _etag_file(part: Path) -> Path:
    """Beside a part: the server's name for the version of the file that it is a part of."""
    return part.with_name(f"{part.name}.etag")


def _begun(part: Path) -> tuple[int, str]:
    """Bytes that are here already and their version; 0 if no strong ETag names the version byte for
    byte."""
    try:
        etag = _etag_file(part).read_text(encoding="utf-8")
        quoted = len(etag) > 2 and etag[0] == etag[-1] == '"'
        strong = quoted and etag.isascii() and etag.isprintable()
        return (part.stat().st_size, etag) if strong else (0, "")
    except (OSError, UnicodeDecodeError):
        return 0, ""


def _forget(part: Path) -> None:
    for file in (part, _etag_file(part)):
        with contextlib.suppress(FileNotFoundError):
            file.unlink()


def _is_safe(url: str, before: str = "") -> bool:
    """https, or plain http within this machine (unless https came `before` it)."""
    try:
        parts = urlsplit(url)
    except ValueError:  # half a bracket, say
        return False
    at_home = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    return parts.scheme == "https" or (at_home and urlsplit(before).scheme != "https")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, url):
        if not _is_safe(url, request.full_url):
            raise UserError(
                f"{request.full_url}: leads to {url[:200]!r}, and only https is downloaded from")
        return super().redirect_request(request, response, code, message, headers, url)


# --------------------------------------------------------------------------------------------- zips


class _BoundedReads(io.FileIO):
    """A file that is read in pieces: zipfile would read a list of contents of any length at
    once."""

    def read(self, size: int = -1) -> bytes:
        data = super().read(CHUNK + 1 if size < 0 else min(size, CHUNK + 1))
        if len(data) > CHUNK:
            raise zipfile.BadZipFile("its list of contents is too long")
        return data


def zip_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of all .jsonl files in a zip, each with `zip:member:line` for messages.

    Nothing is unpacked to the disk, and no header is believed: the bytes that are read are counted.
    Raises UserError for a name that leads elsewhere, for more members, longer lines or more text
    than any published set has, and for a broken zip.
    """
    unpacked = 0
    try:
        with _BoundedReads(path) as file, zipfile.ZipFile(file) as archive:
            for member in _jsonl_members(path, archive):
                with io.BufferedReader(archive.open(member), CHUNK) as lines:
                    number = 0
                    while line := lines.readline(LONGEST_LINE + 1):
                        number, unpacked = number + 1, unpacked + len(line)
                        where = f"{path}:{member.filename}:{number}"
                        if len(line) > LONGEST_LINE or unpacked > UNPACKED:
                            raise UserError(
                                f"{where}: a line of more than {LONGEST_LINE:,} bytes, or more "
                                f"than {UNPACKED:,} in all; no published set is like that")
                        try:
                            yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
                        except UnicodeDecodeError:
                            raise UserError(
                                f"{where}: not UTF-8 text; mend or remove that line") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError,
            OSError) as error:
        raise UserError(
            f"{path}: cannot be read as a zip ({error}); put a whole one there") from None


def _jsonl_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The .jsonl files of a zip. (macOS adds a file beside each, under `__MACOSX/` and with the
    same ending.)"""
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise UserError(
            f"{path}: holds {len(members)} files, more than the {MEMBERS} that are read")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if not parts[0] or ".." in parts or ":" in parts[0] or not member.filename.isprintable():
            raise UserError(f"{path}: holds a file named {member.filename[:200]!r}, which leads "
                            "elsewhere; remove the zip")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: {member.filename} is compressed in another way than deflate; "
                            "pack it again")
    found = [member for member in members if member.filename.endswith(".jsonl")
             and not member.filename.startswith("__MACOSX/")]
    if not found:
        raise UserError(f"{path}: holds no .jsonl file")
    return found


# ------------------------------------------------------------------------------------------ the hub


def hub_error(name: str, caught: Exception, kind: str, page: str, unknown: str,
              instead: str) -> UserError:
    """An error of the hub's client, as one line.

    kind: what was asked for. page: its address. unknown: what `name` is if the hub does not know
    it. instead: what to do without the hub.
    """
    from huggingface_hub import errors

    # "Not in the cache either" is raised from the error that came first.
    first = isinstance(caught, errors.LocalEntryNotFoundError) and caught.__cause__
    error = first or caught
    if isinstance(error, errors.GatedRepoError):
        why = f"this {kind} is gated; accept its terms at {page} and set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"{unknown} on the hub; check the spelling; a private one needs HF_TOKEN"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        why = f"the {kind} has no such file; its files are listed at {page}/tree/main"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        why = f"not (whole) in the cache, and HF_HUB_OFFLINE is set; unset it, or {instead}"
    elif getattr(getattr(error, "response", None), "status_code", None) == 429:
        why = ("the hub answers 429, too many requests; wait some minutes, or set HF_TOKEN for a "
               "higher limit")
    else:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"cannot be downloaded ({line}); check name and connection, or {instead}"
    return UserError(f"{name}: {why}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.download https://... FILE")
    try:
        download(sys.argv[1], Path(sys.argv[2]))
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(f"error: {error or 'interrupted; the same command goes on'}")
