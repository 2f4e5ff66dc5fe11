"""LMDBs of images in two formats: BasicSR's (records are PNG files) and raw (records are pixels).

Both have one line per record in ``meta_info.txt``, whose suffix gives the format; BasicSR reads the key, everything
before the first dot, from either::

    0001_s001.png (480,480,3) 1         a PNG file, zlib level 1
    0001_s001.raw (480,480,3) planes    uint8, RGB, planar: shape (3, 480, 480), C order
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from dp_basicsr.errors import UserError
from dp_basicsr.utils.arguments import advise

import lmdb
import numpy as np
from numpy.typing import NDArray

_LINE = re.compile(r"(?P<key>[^.]+)\.(?P<suffix>\w+) \((?P<height>\d+),(?P<width>\d+),(?P<channels>\d+)\)(?: .*)?")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class MetaInfo:
    """Content of an LMDB's ``meta_info.txt``."""

    shapes: dict[str, Shape]  # key -> (height, width, channels), in the order of the lines
    raw: bool  # whether the records are raw; formats cannot be mixed
    repeated: tuple[str, ...] = ()  # keys with more than one line


def meta_info_lines(folder: str | Path, errors: str = "strict") -> list[str]:
    """Return the lines of an LMDB's ``meta_info.txt``, of which BasicSR would take an empty one for a record's."""
    path = Path(folder) / "meta_info.txt"
    try:
        lines = path.read_text(encoding="ascii", errors=errors).splitlines()
        if not lines:
            raise OSError("it is empty")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        again = advise("data lmdb", ["-i", "IMAGES", "-o", str(folder), "--overwrite"])
        raise UserError(f"{path} cannot be read ({reason}): make the LMDB from its images, `{again}`") from error
    if "" in lines:
        raise UserError(f"{path}: line {lines.index('') + 1} is empty: take it out")
    return lines


def read_meta_info(folder: str | Path) -> MetaInfo:
    """Read the ``meta_info.txt`` of an LMDB; an unreadable, empty, malformed or mixed one is a UserError."""
    path = Path(folder) / "meta_info.txt"
    lines = meta_info_lines(folder)
    shapes: dict[str, Shape] = {}
    repeated, is_raw = [], set()
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}: expected lines such as '0001_s001.png (480,480,3) 1', line {number} is {line!r}")
        key, suffix, height, width, channels = match.groups()
        is_raw.add(suffix == "raw")
        if key in shapes:
            repeated.append(key)
        shapes[key] = (int(height), int(width), int(channels))
    if len(is_raw) > 1:
        raise UserError(f"{path}: expected either raw records or image files, got both: create the LMDB again")
    return MetaInfo(shapes, is_raw.pop(), tuple(repeated))


def to_planes(image: NDArray[np.uint8]) -> bytes:
    """Convert ``(H, W, 3)`` BGR or ``(H, W)`` gray uint8 to a raw record."""
    planes = image[None] if image.ndim == 2 else image[:, :, ::-1].transpose(2, 0, 1)
    return planes.tobytes()


def view_planes(record: Any, shape: Shape) -> NDArray[np.uint8]:
    """View a raw record as ``(channels, H, W)`` RGB uint8 without copying; one not of this ``shape`` is a UserError."""
    height, width, channels = shape
    if len(record) != height * width * channels:
        raise UserError(f"has {len(record):,} bytes, but meta_info.txt says {width} x {height} x {channels}")
    return np.frombuffer(record, np.uint8).reshape(channels, height, width)


def from_planes(record: Any, shape: Shape) -> NDArray[np.uint8]:
    """Copy a raw record to OpenCV's layout: ``(H, W, 3)`` BGR or ``(H, W)``; see ``view_planes``."""
    planes = view_planes(record, shape)
    return planes[0].copy() if len(planes) == 1 else np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))


class LmdbReader:
    """A memory-mapped LMDB opened for reading; create it with ``lmdb_reader``.

    An LMDB must be opened once per process and must not be inherited over a fork, so it is opened at the first record
    and again in each new process. Nothing is locked, because the files never change. Read-ahead stays on: a crop spans
    about fifty adjacent pages.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._env: Any = None
        self._process = 0

    # An lmdb environment cannot be pickled: a spawned worker opens its own.
    def __reduce__(self) -> tuple[Any, ...]:
        return lmdb_reader, (self.folder,)

    @contextmanager
    def record(self, key: str) -> Iterator[memoryview]:
        """Yield a record as a read-only view, valid within the block; a missing or damaged one is a UserError."""
        self.open()
        with self._env.begin(buffers=True) as transaction:
            try:
                record = transaction.get(key.encode("ascii"))
            except lmdb.Error as error:
                raise UserError(f"cannot be read from {self.folder}: {error}") from error
            if record is None:
                raise UserError(f"is not in {self.folder}, though its meta_info.txt names it")
            yield record

    def stored_keys(self) -> list[str]:
        """Return the keys of all stored records, sorted. Raises UserError if the LMDB is damaged."""
        self.open()
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                return [key.decode("ascii", "backslashreplace") for key in cursor.iternext(values=False)]
        except lmdb.Error as error:
            raise UserError(f"the LMDB {self.folder} is damaged: {error}; copy or create it again") from error

    def open(self) -> None:
        """Open the LMDB unless this process has it open. Raises UserError if it is not an LMDB, or truncated."""
        if self._process == os.getpid():
            return
        if self._env is not None:
            # The parent's, inherited over a fork: closed in this process only, and nothing is written.
            self._env.close()
        path = Path(self.folder, "data.mdb")
        if os.path.isdir(self.folder) and not (path.is_file() and path.stat().st_size):
            raise UserError(f"{self.folder} is no LMDB, though its name ends in .lmdb: data.mdb is missing or empty")
        try:
            self._env = lmdb.open(self.folder, readonly=True, lock=False, readahead=True)
            expected = self._env.stat()["psize"] * (self._env.info()["last_pgno"] + 1)
            size = path.stat().st_size
        except (lmdb.Error, OSError) as error:
            way = "copy or create it again, on a local disk if its file system maps no files, or use folders of PNGs"
            raise UserError(f"the LMDB {self.folder} cannot be opened: {error}: {way}") from error
        # Reading past the end of the map would be a bus error, which no exception handler sees.
        if size < expected:
            raise UserError(f"{path} is truncated: it has {size:,} of {expected:,} bytes; copy or create it again")
        self._process = os.getpid()


_readers: WeakValueDictionary[str, LmdbReader] = WeakValueDictionary()


def lmdb_reader(folder: str | Path) -> LmdbReader:
    """Return this process's only reader of an LMDB; it is closed when no longer referenced."""
    # One reader for all spellings of a path, because lmdb refuses to open a folder twice.
    path = os.path.realpath(folder)
    reader = _readers.get(path)
    if reader is None:
        reader = _readers[path] = LmdbReader(path)
    return reader


class LmdbClient:
    """BasicSR's file client for LMDBs, sharing one reader per LMDB and process.

    BasicSR opens an LMDB once per dataset, but lmdb refuses to open one twice in a process, so two validation sets, or
    training and validation, could not share one.

    ``names`` are the dataset's names for the folders ``roots``, in the same order: ``lq``, ``gt``.
    """

    def __init__(self, roots: str | Sequence[str], names: str | Sequence[str]) -> None:
        roots, names = ([value] if isinstance(value, str) else value for value in (roots, names))
        self._readers = {name: lmdb_reader(root) for name, root in zip(names, roots, strict=True)}

    def get(self, key: str, client_key: str = "default") -> bytes:
        """Return the record of a key. Raises UserError if it is missing, or the LMDB is damaged."""
        with self._readers[client_key].record(key) as record:
            # A copy, because the view ends with the block.
            return bytes(record)


# Without read-ahead, because only the first and the last page of each record are touched.
_WALK = """
import sys, lmdb
environment = lmdb.open(sys.argv[1], readonly=True, lock=False, readahead=False)
with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
    for key, value in cursor:
        bytes(value[:1]), bytes(value[-1:])
"""


def refuse_damaged(folder: str) -> None:
    """Read both ends of every record (a second for 30,000 of them); raise a UserError if the LMDB is damaged."""
    # In a process of its own: a damaged page is a bus error, which kills whoever reads it.
    command = [sys.executable, "-c", _WALK, folder]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        # A negative code is the signal that ended the process.
        reason = lines[-1] if lines and done.returncode > 0 else f"reading it raises signal {-done.returncode}"
        raise UserError(f"the LMDB {folder} is damaged ({reason}): copy or create it again")
