"""Write records as files into a folder or as records into an LMDB, which appear only when they are complete.

``X.lmdb/`` contains ``data.mdb`` and ``lock.mdb`` (key: image name without extension; value: a PNG file or pixels) and
``meta_info.txt`` with one line per record, in the order of writing; see ``dp_basicsr.data.lmdb_records``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dp_basicsr.data.preparation.records import Record, Written
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.utils.atomic_io import free_space
from dp_basicsr.utils.staging import StagedFolder

import lmdb

_LMDB_FILES = ("data.mdb", "lock.mdb", "meta_info.txt")
_FIRST_MAP_SIZE = 64 << 20  # bytes; doubled whenever it is full, so the final size need not be known


class _Writer:
    """What both writers share: a staged folder that is discarded if writing fails.

    Args:
        path: Destination.
        overwrite: Replace an existing one on commit.

    Raises:
        UserError: See ``StagedFolder``, or the folder to replace contains other files than data.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        if overwrite and path.exists():
            # A mistyped output must not delete a folder of other work.
            foreign = [path] if not path.is_dir() else [entry for entry in path.iterdir() if not _is_data(entry)]
            if foreign:
                raise UserError(f"--overwrite replaces only images and LMDBs, but {foreign[0]} is something else")
        self._folder = StagedFolder(path, overwrite=overwrite)
        self._images, self._size = 0, 0

    def commit(self) -> Written:
        """Move the closed result to its destination."""
        return Written(self._folder.commit(), self._images, self._size)

    def discard(self) -> None:
        """Delete everything that was not committed."""
        self._folder.discard()

    @contextmanager
    def _discarded_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            # Before the discard, which may free what filled the disk.
            free = free_space(self._folder.final.parent)
            self.discard()
            raise UserError(f"cannot write {name}: {error} ({free})") from error
        except BaseException:
            # Ctrl-C, too.
            self.discard()
            raise


class FolderWriter(_Writer):
    """A folder of files that appears at ``path`` only when it is complete."""

    def write(self, records: Sequence[Record]) -> None:
        """Write each record as ``<key>.png``."""
        for record in records:
            self.write_file(f"{record.key}.png", record.data)

    def write_file(self, name: str, data: bytes) -> None:
        """Write one file.

        Raises:
            UserError: A file of that name exists, or the write failed; the folder is discarded.
        """
        with (
            self._discarded_on_error(f"{name} into {self._folder.final}"),
            (self._folder.path / name).open("xb") as file,
        ):
            file.write(data)
        self._images += 1
        self._size += len(data)

    def close(self) -> None:
        """Do nothing: every file is closed after writing."""


class LmdbWriter(_Writer):
    """An LMDB that appears at ``path`` only when it is complete.

    Args:
        path: Destination; must end with ``.lmdb``, by which BasicSR's datasets recognise it.
        overwrite: Replace an existing one on commit.
        map_size: Initial size of the memory map in bytes; it grows automatically.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, map_size: int = _FIRST_MAP_SIZE) -> None:
        if path.suffix != ".lmdb":
            raise UserError(f"expected an LMDB folder that ends with .lmdb, got {path}")
        super().__init__(path, overwrite=overwrite)
        self._lines: list[str] = []
        with self._discarded_on_error(str(path)):
            # Nothing reads the database before commit, so one flush in close() is as safe as one per transaction.
            self._env = lmdb.open(str(self._folder.path), map_size=map_size, sync=False)

    def write(self, records: Sequence[Record]) -> None:
        """Add records in one transaction: all of them or, on an error, none.

        Raises:
            UserError: A key already exists, or the write failed; the LMDB is discarded.
        """
        with self._discarded_on_error(str(self._folder.final)):
            while not self._fits(records):
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._lines += [record.meta_line for record in records]
        self._images += len(records)
        self._size += sum(len(record.data) for record in records)

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
        with self._discarded_on_error(str(self._folder.final)):
            self._env.sync(True)
            self._env.close()
            (self._folder.path / "meta_info.txt").write_text("".join(self._lines), encoding="ascii")

    def discard(self) -> None:
        """Delete everything that was not committed."""
        if hasattr(self, "_env"):
            # Opening it may itself have failed.
            self._env.close()
        super().discard()


def _is_data(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() in IMAGE_SUFFIXES or path.name in _LMDB_FILES)
