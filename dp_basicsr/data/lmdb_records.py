"""LMDBs of images in two forms: BasicSR's, whose records are PNG files, and raw, whose records are the pixels.

Both have a line a record in ``meta_info.txt``, which tells the form; BasicSR takes the key, all before the first dot,
from either::

    0001_s001.png (480,480,3) 1         a PNG file, zlib level 1
    0001_s001.raw (480,480,3) planes    uint8, RGB, one whole plane after the other: shape (3, 480, 480), C order
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from dp_basicsr.errors import UserError

import lmdb
import numpy as np
from numpy.typing import NDArray

_LINE = re.compile(r"(?P<key>[^.]+)\.(?P<suffix>\w+) \((?P<height>\d+),(?P<width>\d+),(?P<channels>\d+)\)(?: .*)?")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class MetaInfo:
    """What ``meta_info.txt`` says of an LMDB.

    Attributes:
        shapes: key -> (height, width, channels), in the order of the lines.
        raw: whether the records are raw; none is where others are not.
        repeated: keys with more than one line.
    """

    shapes: dict[str, Shape]
    raw: bool
    repeated: tuple[str, ...] = ()


def read_meta_info(folder: str | Path) -> MetaInfo:
    """Read the ``meta_info.txt`` of an LMDB.

    Raises:
        UserError: it cannot be read, is empty, has a line of another form, or speaks of both forms.
    """
    path = Path(folder) / "meta_info.txt"
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): expected an LMDB of create_lmdb.py in {folder}") from error
    matches = [_LINE.fullmatch(line) for line in lines]
    if not all(matches) or not matches:
        wrong = next((number for number, match in enumerate(matches) if not match), 0)
        got = f"line {wrong + 1} is {lines[wrong]!r}" if lines else "it is empty"
        raise UserError(f"{path}: expected lines such as '0001_s001.png (480,480,3) 1', {got}")
    shapes: dict[str, Shape] = {}
    repeated, suffixes = [], set()
    for match in filter(None, matches):
        key, suffix, *sides = match.groups()
        suffixes.add(suffix == "raw")
        if key in shapes:
            repeated.append(key)
        shapes[key] = (int(sides[0]), int(sides[1]), int(sides[2]))
    if len(suffixes) > 1:
        raise UserError(f"{path}: expected raw records or image files, it has both: make the LMDB again")
    return MetaInfo(shapes, suffixes.pop(), tuple(repeated))


def is_raw(folder: str | Path) -> bool:
    """Whether the first line of an LMDB's ``meta_info.txt`` is that of a raw record; the rest is not looked at."""
    with (Path(folder) / "meta_info.txt").open(encoding="ascii", errors="replace") as file:
        return ".raw (" in file.readline()


def to_planes(image: NDArray[np.uint8]) -> bytes:
    """Make the raw record of ``(H, W, 3)`` BGR or ``(H, W)`` gray uint8."""
    planes = image[None] if image.ndim == 2 else image[:, :, ::-1].transpose(2, 0, 1)
    return planes.tobytes()


def view_planes(record: Any, shape: Shape) -> NDArray[np.uint8]:
    """View a raw record as ``(channels, H, W)`` RGB uint8; ``shape`` is (height, width, channels). Nothing is copied.

    Raises:
        UserError: the record has another length than its shape says.
    """
    height, width, channels = shape
    if len(record) != height * width * channels:
        raise UserError(f"has {len(record):,} bytes, which is not the {width} x {height} x {channels} of meta_info.txt")
    return np.frombuffer(record, np.uint8).reshape(channels, height, width)


def from_planes(record: Any, shape: Shape) -> NDArray[np.uint8]:
    """Copy a raw record as OpenCV has images: ``(H, W, 3)`` BGR or ``(H, W)``; see ``view_planes``."""
    planes = view_planes(record, shape)
    return planes[0].copy() if len(planes) == 1 else np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))


class LmdbReader:
    """An LMDB mapped into memory for reading; get it by ``lmdb_reader``.

    LMDB must be opened once a process and not be taken over a fork, so it opens itself at the first record and again
    in every process it finds itself in. Nothing is locked: what is read here is never written again. The system may
    read ahead: a crop lies on some fifty pages beside each other, fetched one by one without.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._env: Any = None
        self._process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return lmdb_reader, (self.folder,)

    @contextmanager
    def record(self, key: str) -> Iterator[memoryview]:
        """The record of a key, mapped: valid and unchangeable within the block.

        Raises:
            UserError: there is none, or the LMDB is damaged or cannot be opened.
        """
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
        """The keys of all records that are there, sorted.

        Raises:
            UserError: the LMDB is damaged or cannot be opened.
        """
        self.open()
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                return [key.decode("ascii", "backslashreplace") for key in cursor.iternext(values=False)]
        except lmdb.Error as error:
            raise UserError(f"the LMDB {self.folder} is damaged: {error}; copy or make it again") from error

    def open(self) -> None:
        """Open it, unless it is open in this process already.

        Raises:
            UserError: it is no LMDB, or shorter than it says: reading on would be a bus error, the end of the process.
        """
        if self._process == os.getpid():
            return
        if self._env is not None:
            self._env.close()  # the parent's: in this process only, and nothing is written at it
        path = Path(self.folder, "data.mdb")
        try:
            self._env = lmdb.open(self.folder, readonly=True, lock=False, readahead=True)
            expected = self._env.stat()["psize"] * (self._env.info()["last_pgno"] + 1)
            size = path.stat().st_size
        except (lmdb.Error, OSError) as error:
            raise UserError(f"the LMDB {self.folder} cannot be opened: {error}") from error
        if size < expected:
            raise UserError(f"{path} is cut off: it has {size:,} of {expected:,} bytes; copy or make it again")
        self._process = os.getpid()


_readers: WeakValueDictionary[str, LmdbReader] = WeakValueDictionary()


def lmdb_reader(folder: str | Path) -> LmdbReader:
    """The one reader of an LMDB in this process; it is closed when nobody has it any more."""
    path = os.path.realpath(folder)
    reader = _readers.get(path)
    if reader is None:
        reader = _readers[path] = LmdbReader(path)
    return reader


class LmdbClient:
    """BasicSR's file client for LMDBs, through the one reader of each LMDB in a process.

    BasicSR opens an LMDB for each dataset, and lmdb refuses to open one twice in a process: two validation sets, or
    training and validation, could not share one.

    Args:
        roots: LMDB folders.
        names: What the dataset calls them, in the same order: ``lq``, ``gt``.
    """

    def __init__(self, roots: str | Sequence[str], names: str | Sequence[str]) -> None:
        roots, names = ([value] if isinstance(value, str) else value for value in (roots, names))
        self._readers = {name: lmdb_reader(root) for name, root in zip(names, roots, strict=True)}

    def get(self, key: str, client_key: str = "default") -> bytes:
        """Return the record of a key.

        Raises:
            UserError: It is missing, or the LMDB is damaged.
        """
        with self._readers[client_key].record(key) as record:
            return bytes(record)
