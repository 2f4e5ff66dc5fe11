"""Write LMDBs in BasicSR's format and in the raw format.

``X.lmdb/`` contains ``data.mdb`` and ``lock.mdb`` (key: image name without extension; value: a PNG file or pixels) and
``meta_info.txt`` with one line per record, in the order of writing; see ``dp_basicsr.data.lmdb_records``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dp_basicsr.data.preparation.folder_writer import refuse_foreign
from dp_basicsr.data.preparation.records import Record, Written
from dp_basicsr.errors import UserError
from dp_basicsr.utils.staging import StagedFolder

import lmdb

_FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full, so the final size need not be known


class LmdbWriter:
    """An LMDB that appears at ``path`` only when it is complete.

    Args:
        path: Destination; must end with ``.lmdb``, by which BasicSR's datasets recognise it.
        overwrite: Replace an existing one on commit.
        map_size: Initial size of the memory map in bytes; it grows automatically.

    Raises:
        UserError: The name does not end with ``.lmdb``, or see ``StagedFolder``.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, map_size: int = _FIRST_MAP_SIZE) -> None:
        if path.suffix != ".lmdb":
            raise UserError(f"expected an LMDB folder that ends with .lmdb, got {path}")
        if overwrite:
            refuse_foreign(path)
        self._folder = StagedFolder(path, overwrite=overwrite)
        self._lines: list[str] = []
        self._size = 0
        with self._discarded_on_error():
            # Nothing reads the database before commit, so one flush in close() is as safe as one per transaction.
            self._env = lmdb.open(str(self._folder.path), map_size=map_size, sync=False)

    def write(self, records: Sequence[Record]) -> None:
        """Add records in one transaction: all of them or, on an error, none.

        Raises:
            UserError: A key already exists, or the write failed; the LMDB is discarded.
        """
        with self._discarded_on_error():
            while not self._fits(records):
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._lines += [record.meta_line for record in records]
        self._size += sum(len(record.data) for record in records)

    def _fits(self, records: Sequence[Record]) -> bool:
        try:
            with self._env.begin(write=True) as transaction:
                for record in records:
                    if not transaction.put(record.key.encode("ascii"), record.data, overwrite=False):
                        raise UserError(f"two images have the LMDB key '{record.key}'")
        except lmdb.MapFullError:
            return False
        return True

    def close(self) -> None:
        """Flush the database and write ``meta_info.txt``."""
        with self._discarded_on_error():
            self._env.sync(True)
            self._env.close()
            (self._folder.path / "meta_info.txt").write_text("".join(self._lines), encoding="ascii")

    def commit(self) -> Written:
        """Move the closed LMDB to its destination."""
        return Written(self._folder.commit(), len(self._lines), self._size)

    def discard(self) -> None:
        """Delete everything that was not committed."""
        if hasattr(self, "_env"):
            self._env.close()
        self._folder.discard()

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            self.discard()
            free = shutil.disk_usage(self._folder.final.parent).free
            raise UserError(f"cannot write {self._folder.final}: {error} ({free / 1e6:,.0f} MB free there)") from error
        except BaseException:
            self.discard()
            raise
