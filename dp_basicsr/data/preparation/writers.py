"""Records of the data preparation, written into a folder or an LMDB that appears only when it is complete.

``X.lmdb/`` contains ``data.mdb`` and ``lock.mdb`` (key: image name without extension; value: a PNG file or pixels) and
``meta_info.txt`` with one line per record, in the order of writing; see ``dp_basicsr.data.lmdb_records``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dp_basicsr.data.lmdb_records import Shape, to_planes
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.images.strict import encode_png
from dp_basicsr.utils.atomic_io import free_space
from dp_basicsr.utils.staging import StagedFolder

import lmdb
import numpy as np
from numpy.typing import NDArray

RecordForm = Literal["png", "raw"]

LONGEST_KEY = 511  # bytes: MDB_MAXKEYSIZE of LMDB as it is built by default
_LMDB_FILES = ("data.mdb", "lock.mdb", "meta_info.txt")


@dataclass(frozen=True)
class Record:
    """One image."""

    key: str  # name without suffix
    data: bytes  # a file's content, or pixels (``dp_basicsr.data.lmdb_records``)
    shape: Shape  # (height, width, channels)
    compression: int | None = None  # level of a PNG file; None for pixels
    suffix: str = ".png"  # of the file

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

    ``suffix`` is what will be appended to the name without extension (``_s001``). Two names of one key, and a name
    that has an inner dot, is not printable ASCII or makes a key of more than 511 bytes are a UserError.
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


class FolderWriter(StagedFolder):
    """A folder of image files that appears at ``final`` only when it is complete.

    ``close`` does whatever can fail, so that several writers are committed together. ``images`` is the number of
    records written, ``size`` their bytes.
    """

    def __init__(self, final: Path, *, overwrite: bool = False) -> None:
        if overwrite and final.exists():
            # A mistyped output must not delete a folder of other work.
            for entry in final.iterdir() if final.is_dir() else [final]:
                is_data = entry.suffix.lower() in IMAGE_SUFFIXES or entry.name in _LMDB_FILES
                if not (is_data and entry.is_file() and entry != final):
                    raise UserError(f"--overwrite replaces only images and LMDBs, but {entry} is something else")
        super().__init__(final, overwrite=overwrite)
        self.images = self.size = 0

    def __str__(self) -> str:
        return f"{self.final}: {self.images:,} images, {self.size / 1e6:,.1f} MB"

    def write(self, records: Sequence[Record]) -> None:
        """Write the records. Raises UserError if there is such a name already, or the write fails."""
        for record in records:
            name = f"{record.key}{record.suffix}"
            with self._readable_errors(f"{name} into {self.final}"), (self.path / name).open("xb") as file:
                file.write(record.data)
        self.images += len(records)
        self.size += sum(len(record.data) for record in records)

    def close(self) -> None:
        """Do nothing: every file is closed after writing."""

    @contextmanager
    def _readable_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise UserError(f"cannot write {what}: {error} ({free_space(self.final.parent)})") from error


class LmdbWriter(FolderWriter):
    """An LMDB that appears at ``final`` only when it is complete; BasicSR's datasets recognise it by ``.lmdb``."""

    map_size = 64 << 20  # bytes; doubled whenever it is full, so the final size need not be known
    _env: Any = None

    def __init__(self, final: Path, *, overwrite: bool = False) -> None:
        if final.suffix != ".lmdb":
            raise UserError(f"expected an LMDB folder that ends with .lmdb, got {final}")
        super().__init__(final, overwrite=overwrite)
        self._lines: list[str] = []

    def write(self, records: Sequence[Record]) -> None:
        """Add records in one transaction: all of them or, on an error, none."""
        with self._readable_errors(str(self.final)):
            if self._env is None:
                # Nothing reads it before commit, so one flush in close() is as safe as one per transaction.
                # The umask decides who may write, as for other files; lmdb's own mode lets the owner alone.
                self._env = lmdb.open(str(self.path), map_size=self.map_size, sync=False, mode=0o777)
            while True:
                try:
                    with self._env.begin(write=True) as transaction:
                        for record in records:
                            if not transaction.put(record.key.encode("ascii"), record.data, overwrite=False):
                                # Raised within the transaction, which is thereby aborted.
                                raise UserError(f"two images have the LMDB key '{record.key}'")
                    break
                except lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._lines += [record.meta_line for record in records]
        self.images += len(records)
        self.size += sum(len(record.data) for record in records)

    def close(self) -> None:
        """Flush the database and write ``meta_info.txt``."""
        with self._readable_errors(str(self.final)):
            self._env.sync(True)
            self._env.close()
            (self.path / "meta_info.txt").write_text("".join(self._lines), encoding="ascii")

    def discard(self) -> None:
        """Delete everything that was not committed."""
        if self._env is not None:
            self._env.close()
        super().discard()
