"""Write records as files into a folder or as records into an LMDB, which appear only when they are complete.

``X.lmdb/`` contains ``data.mdb`` and ``lock.mdb`` (key: image name without extension; value: a PNG file or pixels) and
``meta_info.txt`` with one line per record, in the order of writing; see ``dp_basicsr.data.lmdb_records``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dp_basicsr.data.preparation.records import Record
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.utils.atomic_io import free_space
from dp_basicsr.utils.staging import StagedFolder

import lmdb

_LMDB_FILES = ("data.mdb", "lock.mdb", "meta_info.txt")
_FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full, so the final size need not be known


class FolderWriter(StagedFolder):
    """A folder of image files that appears at ``final`` only when it is complete.

    ``close`` does whatever can fail, so that several writers are committed together.

    Attributes:
        images: Number of records written.
        size: Their bytes.

    Raises:
        UserError: See ``StagedFolder``, or the folder to replace contains other files than data.
    """

    def __init__(self, final: Path, *, overwrite: bool = False) -> None:
        if overwrite and final.exists():
            # A mistyped output must not delete a folder of other work.
            foreign = [entry for entry in final.iterdir() if not _is_data(entry)] if final.is_dir() else [final]
            if foreign:
                raise UserError(f"--overwrite replaces only images and LMDBs, but {foreign[0]} is something else")
        super().__init__(final, overwrite=overwrite)
        self.images = self.size = 0

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
    """An LMDB that appears at ``final`` only when it is complete; BasicSR's datasets recognise it by ``.lmdb``.

    Args:
        final: Destination.
        overwrite: Replace an existing one on commit.
        map_size: Initial size of the memory map in bytes; it grows automatically.
    """

    _env: Any = None

    def __init__(self, final: Path, *, overwrite: bool = False, map_size: int = _FIRST_MAP_SIZE) -> None:
        if final.suffix != ".lmdb":
            raise UserError(f"expected an LMDB folder that ends with .lmdb, got {final}")
        super().__init__(final, overwrite=overwrite)
        self._map_size = map_size
        self._lines: list[str] = []

    def write(self, records: Sequence[Record]) -> None:
        """Add records in one transaction: all of them or, on an error, none."""
        with self._readable_errors(str(self.final)):
            if self._env is None:
                # Nothing reads it before commit, so one flush in close() is as safe as one per transaction.
                self._env = lmdb.open(str(self.path), map_size=self._map_size, sync=False)
            while not self._fits(records):
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._lines += [record.meta_line for record in records]
        self.images += len(records)
        self.size += sum(len(record.data) for record in records)

    def _fits(self, records: Sequence[Record]) -> bool:
        try:
            with self._env.begin(write=True) as transaction:
                for record in records:
                    if not transaction.put(record.key.encode("ascii"), record.data, overwrite=False):
                        # Raised within the transaction, which is thereby aborted.
                        raise UserError(f"two images have the LMDB key '{record.key}'")
        except lmdb.MapFullError:
            return False
        return True

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


def _is_data(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() in IMAGE_SUFFIXES or path.name in _LMDB_FILES)
