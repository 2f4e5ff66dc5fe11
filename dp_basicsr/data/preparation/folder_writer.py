"""Write records as PNG files into a folder that appears only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.data.preparation.records import Record, Written
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.utils.staging import StagedFolder

LMDB_FILES = ("data.mdb", "lock.mdb", "meta_info.txt")


class FolderWriter:
    """A folder of files that appears at ``path`` only when it is complete.

    Args:
        path: Destination.
        overwrite: Replace an existing folder on commit.

    Raises:
        UserError: See ``StagedFolder``, or the folder to replace contains other files than data.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        if overwrite:
            refuse_foreign(path)
        self._folder = StagedFolder(path, overwrite=overwrite)
        self._images = 0
        self._size = 0

    def write(self, records: Sequence[Record]) -> None:
        """Write each record as ``<key>.png``."""
        for record in records:
            self.write_file(f"{record.key}.png", record.data)

    def write_file(self, name: str, data: bytes) -> None:
        """Write one file.

        Raises:
            UserError: A file of that name exists, or the write failed; the folder is discarded.
        """
        try:
            with (self._folder.path / name).open("xb") as file:
                file.write(data)
        except OSError as error:
            self.discard()
            free = shutil.disk_usage(self._folder.final.parent).free
            raise UserError(
                f"cannot write {name} into {self._folder.final}: {error} ({free / 1e6:,.0f} MB free)"
            ) from error
        self._images += 1
        self._size += len(data)

    def close(self) -> None:
        """Do nothing: every file is closed after writing."""

    def commit(self) -> Written:
        """Move the folder to its destination."""
        return Written(self._folder.commit(), self._images, self._size)

    def discard(self) -> None:
        """Delete everything that was not committed."""
        self._folder.discard()


def refuse_foreign(path: Path) -> None:
    """Refuse to replace ``path`` if it contains anything but images and LMDB files.

    Raises:
        UserError: The path is a file, or an entry is something else.
    """
    if path.exists():
        foreign = [path] if not path.is_dir() else [entry for entry in path.iterdir() if not _is_data(entry)]
        if foreign:
            raise UserError(f"--overwrite replaces only images and LMDBs, but {foreign[0]} is something else")


def _is_data(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() in IMAGE_SUFFIXES or path.name in LMDB_FILES)
