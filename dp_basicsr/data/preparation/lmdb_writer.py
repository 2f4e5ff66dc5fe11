"""Writing LMDBs in BasicSR's form and in ours.

``X.lmdb/`` holds ``data.mdb`` and ``lock.mdb`` (key: the image name without extension; value: a PNG file or pixels) and
``meta_info.txt`` with a line for each record, in the order of writing; ``dp_basicsr.data.lmdb_records`` has the forms.
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

_FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full, so that no one has to guess the size of the whole


class LmdbWriter:
    """An LMDB that appears at ``path`` only when it is whole.

    Args:
        path: where it shall be; must end with ``.lmdb``, by which BasicSR's datasets know it.
        overwrite: replace an existing one, at the end.
        map_size: size of the memory map to start with, in bytes; it grows by itself.

    Raises:
        UserError: the name does not end with ``.lmdb``, or as
            ``StagedFolder``.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, map_size: int = _FIRST_MAP_SIZE) -> None:
        if path.suffix != ".lmdb":
            raise UserError(f"an LMDB folder must end with .lmdb, got {path}")
        if overwrite:
            refuse_foreign(path)
        self._folder = StagedFolder(path, overwrite=overwrite)
        self._lines: list[str] = []
        self._size = 0
        with self._discarded_on_error():
            # Nothing reads the database before commit, so one flush in close() is as safe as one a transaction.
            self._env = lmdb.open(str(self._folder.path), map_size=map_size, sync=False)

    def write(self, records: Sequence[Record]) -> None:
        """Add records in one transaction: all of them or, after an error, none.

        Raises:
            UserError: a key is there already, or the disk refuses; the whole LMDB is discarded.
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
        """Put the closed LMDB in its place."""
        return Written(self._folder.commit(), len(self._lines), self._size)

    def discard(self) -> None:
        """Remove everything, unless it was committed."""
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
