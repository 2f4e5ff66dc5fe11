"""What data preparation produces: encoded images under a key, and the rules for keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dp_basicsr.data.images import encode_png
from dp_basicsr.data.lmdb_records import to_planes
from dp_basicsr.errors import UserError

import numpy as np
from numpy.typing import NDArray

RecordForm = Literal["png", "raw"]

LONGEST_KEY = 511  # bytes: MDB_MAXKEYSIZE of LMDB as it is built by default


@dataclass(frozen=True)
class Record:
    """One image: name without extension, content, (height, width, channels), and how it is kept.

    ``compression`` is that of the PNG file which ``data`` is; None where it is raw (``dp_basicsr.data.lmdb_records``).
    """

    key: str
    data: bytes
    shape: tuple[int, int, int]
    compression: int | None

    @property
    def meta_line(self) -> str:
        """The record's line in ``meta_info.txt``: BasicSR's for PNG."""
        height, width, channels = self.shape
        suffix, how = ("raw", "planes") if self.compression is None else ("png", str(self.compression))
        return f"{self.key}.{suffix} ({height},{width},{channels}) {how}\n"


@dataclass(frozen=True)
class Written:
    """What a sink has put in place: the folder, the number of images in it and their bytes."""

    path: Path
    images: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.images:,} images, {self.size / 1e6:,.1f} MB"


class RecordSink(Protocol):
    """What takes records. Nothing of them is seen before ``commit``; ``discard`` after it does nothing."""

    def write(self, records: Sequence[Record]) -> None:
        """Add the records, all of them or none. Raises UserError when the disk refuses."""

    def close(self) -> None:
        """Finish the data on the disk. What may fail must fail here, so that several sinks are committed together."""

    def commit(self) -> Written:
        """Put the closed result in its place."""

    def discard(self) -> None:
        """Remove everything that was not committed."""


def make_record(form: RecordForm, key: str, image: NDArray[np.uint8], compression: int) -> Record:
    """Make the record ``key`` of ``(H, W[, 3])`` BGR uint8; ``compression`` is PNG's."""
    return raw_record(key, image) if form == "raw" else png_record(key, image, compression)


def png_record(key: str, image: NDArray[np.uint8], compression: int) -> Record:
    """Encode ``(H, W[, 3])`` BGR uint8 as the PNG record ``key``."""
    return Record(key, encode_png(image, compression), _shape(image), compression)


def raw_record(key: str, image: NDArray[np.uint8]) -> Record:
    """Lay ``(H, W[, 3])`` BGR uint8 out as the raw record ``key``."""
    return Record(key, to_planes(image), _shape(image), None)


def _shape(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    shape: tuple[Any, ...] = (*image.shape, 1)
    return shape[:3]


def check_keys(names: Iterable[str], *, suffix: str = "") -> None:
    """Refuse image file names that cannot become LMDB keys, before any work is done.

    BasicSR reads a key from ``meta_info.txt`` as everything before the *first* dot, so ``a.b.png`` is looked up as
    ``a``, and so is ``a.c.png``.

    Args:
        names: file names with extension.
        suffix: what will be put behind the name without extension (``_s001``).

    Raises:
        UserError: two names share a key (both are named); a name has a further dot, is not printable ASCII, or makes
            a key of more than 511 bytes.
    """
    names = list(names)
    seen: dict[str, str] = {}
    for name in names:
        key = _key_as_read(name)
        if key in seen:
            raise UserError(f"{seen[key]} and {name} would both have the LMDB key '{key}': rename one of them")
        seen[key] = name
    for name in names:
        _check_key(name, suffix)


def check_stems(names: Iterable[str]) -> None:
    """Refuse image file names that differ in their extension alone: their results would share a name.

    Raises:
        UserError: Two names have one stem; both are named.
    """
    seen: dict[str, str] = {}
    for name in names:
        stem = Path(name).stem
        if stem in seen:
            raise UserError(f"{seen[stem]} and {name} would both be written as '{stem}': rename one of them")
        seen[stem] = name


def _key_as_read(name: str) -> str:
    return name.split(".")[0]


def _check_key(name: str, suffix: str) -> None:
    key = Path(name).stem
    if key != _key_as_read(name):
        raise UserError(
            f"{name} would be looked up as '{_key_as_read(name)}' in an LMDB: rename it without the inner dot"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{name!r} cannot be an LMDB key: rename it with printable ASCII characters only")
    if len(key + suffix) > LONGEST_KEY:
        raise UserError(f"{name} makes a key of {len(key + suffix)} bytes, LMDB takes {LONGEST_KEY}: shorten it")
