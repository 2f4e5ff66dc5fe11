"""Downloads from a local server that misbehaves like real ones."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dp_basicsr.data.downloads.catalogue import download_dataset
from dp_basicsr.data.downloads.fetch import fetch
from dp_basicsr.errors import UserError

import pytest

BODY = bytes(range(256)) * 4000
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()


@dataclass
class Behaviour:
    """Behaviour of the server; ``requests`` collects the Range header of each request."""

    body: bytes = BODY
    cut_after: int | None = None  # bytes of each response after which the connection is closed
    knows_ranges: bool = True
    sends_length: bool = True
    kind: str = "application/zip"
    status: int | None = None  # answer every request with this
    failures: int = 0  # number of initial requests answered with `answer`
    answer: int = 503
    requests: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        server = self.behaviour
        server.requests.append(self.headers.get("Range"))
        if server.status or len(server.requests) <= server.failures:
            return self.send_error(server.status or server.answer)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if server.knows_ranges else None
        start = int(wanted[1]) if wanted else 0
        if wanted and start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            return self.end_headers()
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", server.kind)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.sends_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = len(server.body) if server.cut_after is None else start + server.cut_after
        self.wfile.write(server.body[start:end])
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    handler = type("TestHandler", (Handler,), {"behaviour": Behaviour()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}/file.zip", handler.behaviour  # type: ignore[attr-defined]
        http_server.shutdown()


Server = tuple[str, Behaviour]


def get(server: Server, folder: Path, **expected: Any) -> Path:
    return fetch(server[0], folder / "file.zip", pause=0, **expected)


def test_a_file_is_downloaded_and_verified(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "new", size=len(BODY), checksum=SHA256)
    assert path.read_bytes() == BODY
    assert [entry.name for entry in path.parent.iterdir()] == ["file.zip"]
    get(server, tmp_path / "new", size=len(BODY), checksum=SHA256)
    assert server[1].requests == [None]  # the second call only verified the file


def test_an_interrupted_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server[1].cut_after = 300_000
    assert get(server, tmp_path, checksum=SHA256).read_bytes() == BODY
    assert server[1].requests == [None, "bytes=299999-", "bytes=599998-", "bytes=899997-"]


@pytest.mark.parametrize("known", [{}, {"size": len(BODY)}])
@pytest.mark.parametrize("part", [b"", BODY[:1000], BODY, BODY + b"more", b"x" * 2_000_000])
@pytest.mark.parametrize(
    "server_is",
    [{}, {"knows_ranges": False}, {"sends_length": False}, *({"failures": 2, "answer": n} for n in (408, 429, 503))],
)
def test_any_partial_file_and_any_server_end_with_the_file(
    server: Server, tmp_path: Path, known: dict[str, int], part: bytes, server_is: dict[str, Any]
) -> None:
    vars(server[1]).update(server_is)
    (tmp_path / "file.zip.part").write_bytes(part)
    assert get(server, tmp_path, checksum=SHA256, **known).read_bytes() == BODY
    if part == BODY[:1000] and server[1].knows_ranges:
        assert server[1].requests[-1] == "bytes=999-"


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * len(BODY)])
def test_a_part_of_another_file_is_not_continued_without_a_checksum(
    server: Server, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "file.zip.part").write_bytes(part)
    assert get(server, tmp_path, size=len(BODY)).read_bytes() == BODY
    assert server[1].requests == [None]


def test_repeated_failures_stop_the_download_and_keep_the_partial_file(server: Server, tmp_path: Path) -> None:
    server[1].cut_after = 0
    (tmp_path / "file.zip.part").write_bytes(BODY[:1000])
    with pytest.raises(UserError, match=r"could not download http.*1,000 bytes are kept, run the same command again"):
        get(server, tmp_path, checksum=SHA256)
    assert (tmp_path / "file.zip.part").read_bytes() == BODY[:1000]


@pytest.mark.parametrize(
    ("status", "expected", "message"),
    [
        (None, {"size": 5}, r"is 1,024,000 bytes long, expected 5"),
        (None, {"checksum": "md5:0"}, r"is md5:[0-9a-f]{32}, expected md5:0.*was deleted"),
        (404, {}, r"http://127.*file\.zip answered 404 Not Found"),
    ],
)
def test_what_is_not_the_published_file_leaves_nothing_and_is_not_retried(
    server: Server, tmp_path: Path, status: int | None, expected: dict[str, Any], message: str
) -> None:
    server[1].status = status
    with pytest.raises(UserError, match=message):
        get(server, tmp_path, **expected)
    assert list(tmp_path.iterdir()) == []
    assert len(server[1].requests) == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/html; charset=utf-8", BODY), ("application/zip", b"\n<!DOCTYPE html><title>Quota exceeded")],
)
def test_a_web_page_in_place_of_the_file_is_named(server: Server, kind: str, body: bytes, tmp_path: Path) -> None:
    server[1].kind, server[1].body = kind, body
    with pytest.raises(UserError, match=r"http.*file\.zip answered with a web page, not with the file"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_is_fetched_again_unless_it_was_there(server: Server, tmp_path: Path) -> None:
    base_url, archive = server[0].rpartition("/")[0], tmp_path / "Set5_HR.tar.gz"
    server[1].body = b"Quota exceeded"
    said = r"damaged or not an archive .*; 14 bytes that begin with b'Quota exceeded'.: it was deleted, run the same "
    with pytest.raises(UserError, match=said + r"command again, or\nBy hand: .*; put the 5 images into .*Set5/GT"):
        download_dataset("set5", tmp_path, base_url=base_url)
    assert not archive.exists()
    archive.write_bytes(b"put here by hand")
    with pytest.raises(UserError, match=r"damaged or not an archive.*delete it and download it again"):
        download_dataset("set5", tmp_path, base_url=base_url)
    assert archive.exists()


def test_an_existing_file_is_never_deleted(tmp_path: Path) -> None:
    """It may be another process's download in progress."""
    (tmp_path / "file.zip").write_bytes(BODY[:1000])
    for expected in ({"size": len(BODY)}, {"checksum": SHA256}):
        with pytest.raises(UserError, match="file.zip is .*, expected .*: wait if it is still being downloaded"):
            fetch("http://127.0.0.1:1/file.zip", tmp_path / "file.zip", **expected)
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_an_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not download"):
        fetch("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", pause=0)
