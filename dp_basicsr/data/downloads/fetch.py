"""Download one file over HTTP: resumable, verified, and renamed into place only when complete."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.utils.file_lock import try_lock

from tqdm import tqdm

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 4  # consecutive attempts without new data
_BUSY = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)


class _IncompleteError(Exception):
    """The connection ended early; the bytes received so far are kept."""


_TRANSIENT = (
    _IncompleteError,
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
)


def fetch(url: str, path: Path, *, size: int | None = None, checksum: str | None = None, pause: float = 1.0) -> Path:
    """Download ``url`` to ``path`` via ``<path>.part``, which a later call resumes.

    Args:
        url: http or https.
        path: Destination; if it exists, it is only verified.
        size: Length in bytes, if known.
        checksum: ``sha256:<hex>`` or ``md5:<hex>``, if known.
        pause: Seconds before the second attempt, doubled for each further one.

    Raises:
        UserError: The server refuses or does not answer (the partial file is kept), length or checksum differ (the
            partial file is deleted, a file that was there before is not), another process downloads it, or the disk is
            full.
    """
    if path.exists():
        if wrong := _what_is_wrong(path, size, checksum):
            raise UserError(f"{path} is {wrong}: wait if it is still being downloaded, otherwise delete it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _reserved(part):
        _fetch_part(url, part, size, pause)
        if wrong := _what_is_wrong(part, size, checksum):
            part.unlink()
            raise UserError(f"the file from {url} is {wrong}; it was deleted, run the same command again")
        part.rename(path)
    return path


@contextlib.contextmanager
def _reserved(part: Path) -> Iterator[None]:
    """Keep other processes from writing the partial file (UserError); remove it if it stays empty."""
    try:
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from error
    try:
        # Between open and lock, another process may have completed or deleted the part that was opened.
        locked = try_lock(handle, part, "flock", "let no other process download it")
        if locked is False or not part.exists() or not os.path.samestat(os.fstat(handle), part.stat()):
            raise UserError(f"another process is downloading {part}: wait for it")
        try:
            yield
        finally:
            if part.exists() and _length(part) == 0:
                part.unlink()
    finally:
        os.close(handle)


def _fetch_part(url: str, part: Path, size: int | None, pause: float) -> None:
    failures = 0
    while True:
        before = _length(part)
        try:
            _receive(url, part, size)
            return
        except urllib.error.HTTPError as error:
            # A refusal stays one; a busy server and its own errors may pass.
            if error.code < 500 and error.code not in _BUSY:
                raise UserError(f"{url} answered {error.code} {error.reason}") from error
            reason: Exception = error
        except _TRANSIENT as error:
            reason = error
        except OSError as error:
            # After _TRANSIENT, most of which are OSErrors, too: what remains comes from the disk.
            raise UserError(f"cannot write {part}: {error.strerror}") from error
        # A long download may break off many times, as long as each attempt brings something.
        failures = 0 if _length(part) > before else failures + 1
        if failures == _ATTEMPTS:
            note = f"; {_length(part):,} bytes are kept, run the same command again to resume" if _length(part) else ""
            raise UserError(f"could not download {url}: {getattr(reason, 'reason', reason)}{note}")
        time.sleep(pause * 2 ** (failures - 1) if failures else 0)


def _receive(url: str, part: Path, size: int | None) -> None:
    """Request the missing bytes once and append them to ``part``."""
    offset = _length(part)
    if size is not None and offset == size:
        return
    if size is not None and offset > size:
        # Longer than the file: it belongs to something else.
        offset = 0
    # Compressed in transit, offsets and lengths would not be those of the file.
    headers = {"User-Agent": "dp_basicsr", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # 416: no bytes after ours. The part is complete, or it is longer than the file.
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{offset}":
            return
        if error.code == 416 and offset:
            # Not deleted: the lock is this file's, and a new one would have none.
            os.truncate(part, 0)
            raise _IncompleteError("the part was longer than the file; starting again") from error
        raise
    with response:
        received, total = _position(url, response, offset, size)
        with (
            # Not appended: the server may ignore the range and start from 0.
            part.open("r+b") as file,
            tqdm(total=total, initial=received, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            file.seek(received)
            file.truncate()
            while block := response.read(_BLOCK):
                file.write(block)
                received += len(block)
                bar.update(len(block))
        if total is not None and received < total:
            raise _IncompleteError(f"the connection ended after {received:,} of {total:,} bytes")


def _position(url: str, response: http.client.HTTPResponse, offset: int, size: int | None) -> tuple[int, int | None]:
    """Return the offset of the response's bytes, and the length of the complete file if known."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset:
            raise UserError(
                f"{url} answered a request for bytes from {offset} with {response.headers.get('Content-Range')}"
            )
        total = int(match[2]) if match[2] != "*" else None
    else:
        # The server does not support ranges and starts from 0.
        offset, length = 0, response.headers.get("Content-Length")
        total = int(length) if length else None
    if size is not None and total is not None and total != size:
        raise UserError(f"{url} is {total:,} bytes long, expected {size:,}: it is not the file that was published")
    return offset, total if total is not None else size


def _what_is_wrong(path: Path, size: int | None, checksum: str | None) -> str:
    """Compare a file with its published length and checksum; empty where they agree."""
    if size is not None and _length(path) != size:
        return f"{_length(path):,} bytes long, expected {size:,}"
    if checksum is not None:
        name = checksum.split(":")[0]
        # Some data sets publish an MD5 alone, which OpenSSL under FIPS refuses for security.
        digest = hashlib.new(name, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if (actual := f"{name}:{digest.hexdigest()}") != checksum:
            return f"{actual}, expected {checksum}"
    return ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
