"""What data preparation produces: encoded images under a key, and the rules for keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dp_basicsr.data.images import encode_png
from dp_basicsr.errors import UserError

import numpy as np
from numpy.typing import NDArray

LONGEST_KEY = 511  # bytes: MDB_MAXKEYSIZE of LMDB as it is built by default


@dataclass(frozen=True)
class Record:
    """One encoded image: name without extension, bytes of the file, (height, width, channels), PNG compression."""

    key: str
    data: bytes
    shape: tuple[int, int, int]
    compression: int

    @property
    def meta_line(self) -> str:
        """The record's line in BasicSR's ``meta_info.txt``."""
        height, width, channels = self.shape
        return f"{self.key}.png ({height},{width},{channels}) {self.compression}\n"


@dataclass(frozen=True)
class Written:
    """What a sink has put in place: the folder, the number of images in it and their bytes."""

    path: Path
    images: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.images:,} images, {self.size / 1e6:,.1f} MB"


class RecordSink(Protocol):
    """What takes records. Nothing of them is seen before :meth:`commit`; :meth:`discard` after it does nothing."""

    def write(self, records: Sequence[Record]) -> None:
        """Add the records, all of them or none. Raises UserError when the disk refuses."""

    def close(self) -> None:
        """Finish the data on the disk. What may fail must fail here, so that several sinks are committed together."""

    def commit(self) -> Written:
        """Put the closed result in its place."""

    def discard(self) -> None:
        """Remove everything that was not committed."""


def png_record(key: str, image: NDArray[np.uint8], compression: int) -> Record:
    """Encode ``(H, W[, 3])`` BGR uint8 as the PNG record ``key``."""
    shape: tuple[Any, ...] = (*image.shape, 1)
    return Record(key, encode_png(image, compression), shape[:3], compression)


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
