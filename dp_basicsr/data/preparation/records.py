"""Records of the data preparation: encoded images under a key, and the rules for keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dp_basicsr.data.lmdb_records import Shape, to_planes
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import encode_png

import numpy as np
from numpy.typing import NDArray

RecordForm = Literal["png", "raw"]

LONGEST_KEY = 511  # bytes: MDB_MAXKEYSIZE of LMDB as it is built by default


@dataclass(frozen=True)
class Record:
    """One image.

    Attributes:
        key: Its name without suffix.
        data: A file's content, or pixels (``dp_basicsr.data.lmdb_records``).
        shape: (height, width, channels).
        compression: Level of a PNG file; None for pixels.
        suffix: Of the file.
    """

    key: str
    data: bytes
    shape: Shape
    compression: int | None = None
    suffix: str = ".png"

    @property
    def meta_line(self) -> str:
        """Return the record's line in ``meta_info.txt``; for PNG, in BasicSR's format."""
        height, width, channels = self.shape
        suffix, how = ("raw", "planes") if self.compression is None else ("png", str(self.compression))
        return f"{self.key}.{suffix} ({height},{width},{channels}) {how}\n"


def make_record(form: RecordForm, key: str, image: NDArray[np.uint8], compression: int = 1) -> Record:
    """Make the record ``key`` of ``(H, W[, 3])`` BGR uint8; ``compression`` is the PNG level."""
    # A gray image has no third axis, and one channel.
    height, width, channels = (*image.shape, 1)[:3]
    if form == "raw":
        return Record(key, to_planes(image), (height, width, channels))
    return Record(key, encode_png(image, compression), (height, width, channels), compression)


def check_keys(names: Iterable[str], *, suffix: str = "") -> None:
    """Refuse image file names that cannot become LMDB keys, before any work is done.

    BasicSR reads a key from ``meta_info.txt`` as everything before the *first* dot, so both ``a.b.png`` and ``a.c.png``
    are looked up as ``a``.

    Args:
        names: File names with extension.
        suffix: Suffix to be appended to the name without extension (``_s001``).

    Raises:
        UserError: Two names share a key (both are reported), or a name has an inner dot, is not printable ASCII, or
            makes a key of more than 511 bytes.
    """
    seen: dict[str, str] = {}
    for name in names:
        # As BasicSR reads it, which is not the stem.
        key = name.split(".")[0]
        if key in seen:
            raise UserError(f"{seen[key]} and {name} would both have the LMDB key '{key}': rename one of them")
        seen[key] = name
    # Only then: where two names collide, both are worth more than the inner dot of one.
    for as_read, name in seen.items():
        key = Path(name).stem
        if key != as_read:
            raise UserError(f"{name} would be looked up as '{as_read}' in an LMDB: rename it without the inner dot")
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{name!r} cannot be an LMDB key: rename it with printable ASCII characters only")
        if len(key + suffix) > LONGEST_KEY:
            raise UserError(f"{name} makes a key of {len(key + suffix)} bytes, LMDB allows {LONGEST_KEY}: shorten it")
