"""Download one file over HTTP: resumable, verified, and renamed into place only when complete."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from dp_basicsr.errors import UserError

from tqdm import tqdm

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 4  # consecutive attempts without new data
_BUSY = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)
# Errors of the network; an OSError that is none of them comes from the disk.
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError)


def fetch(url: str, path: Path, *, size: int | None = None, checksum: str | None = None, pause: float = 1.0) -> Path:
    """Download ``url`` to ``path`` via ``<path>.part``, which a later call with a checksum resumes.

    A file that exists is only verified, by ``size`` in bytes and ``checksum`` (``sha256:<hex>`` or ``md5:<hex>``) where
    known. ``pause`` is the time before the second attempt in seconds, doubled for each further one. Whatever fails is a
    UserError. The partial file is kept, but deleted if length or checksum differ; one that was there before never is.
    """
    if path.exists():
        if wrong := _what_is_wrong(path, size, checksum):
            raise UserError(f"{path} is {wrong}: wait if it is still being downloaded, otherwise delete it")
        return path
    part = path.with_name(path.name + ".part")
    if checksum is None:
        # Nothing would tell that an earlier run's part is of another file.
        part.unlink(missing_ok=True)
    failures = 0
    while True:
        before = _length(part)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _receive(url, part, size)
            break
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                # The part is longer than the file, so it belongs to something else.
                part.unlink()
                continue
            # A refusal stays one; a busy server and its own errors may pass.
            if error.code < 500 and error.code not in _BUSY:
                raise UserError(f"{url} answered {error.code} {error.reason}") from error
            reason: Exception = error
        except _TRANSIENT as error:
            reason = error
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror}") from error
        # A long download may break off many times, as long as each attempt brings something.
        failures = 0 if _length(part) > before else failures + 1
        if failures == _ATTEMPTS:
            note = f"; {_length(part):,} bytes are kept, run the same command again to resume"
            why = f"{getattr(reason, 'reason', reason)}{note if before and checksum else ''}"
            raise UserError(f"could not download {url}: {why}")
        time.sleep(pause * 2 ** (failures - 1) if failures else 0)
    if wrong := _what_is_wrong(part, size, checksum):
        part.unlink()
        raise UserError(f"the file from {url} is {wrong}; it was deleted, run the same command again")
    part.rename(path)
    return path


def _receive(url: str, part: Path, size: int | None) -> None:
    """Request the missing bytes once and append them to ``part``."""
    # Compressed in transit, offsets and lengths would not be those of the file.
    headers = {"User-Agent": "dp_basicsr", "Accept-Encoding": "identity"}
    # The last byte once more, because a server refuses to send none of a complete file.
    if offset := max(_length(part) - 1, 0):
        headers["Range"] = f"bytes={offset}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        # Of a login, a quota, a proxy: with code 200 all the same, and from mirrors of another type.
        is_page = response.status == 200 and response.peek(9).lstrip().startswith(b"<")
        if is_page or response.headers.get_content_type() == "text/html":
            raise UserError(f"{url} answered with a web page, not with the file: look at it in a browser")
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != offset:
                got = response.headers.get("Content-Range")
                raise UserError(f"{url} answered a request for bytes from {offset} with {got}")
            total = size if match[2] == "*" else int(match[2])
        else:
            # The server does not support ranges and starts from 0.
            offset, declared = 0, response.headers.get("Content-Length")
            total = int(declared) if declared else size
        if size is not None and total != size:
            raise UserError(f"{url} is {total:,} bytes long, expected {size:,}: it is not the file that was published")
        with (
            part.open("r+b" if offset else "wb") as file,
            tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            file.seek(offset)
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
            received = file.tell()
    if total is not None and received < total:
        raise http.client.HTTPException(f"the connection ended after {received:,} of {total:,} bytes")


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
