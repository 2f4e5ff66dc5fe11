"""Atomic creation of folders: filled under a temporary name, renamed when complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from dp_basicsr.errors import UserError
from dp_basicsr.utils.atomic_io import PARTIAL, beside
from dp_basicsr.utils.file_lock import lock_folder

Staged = TypeVar("Staged", bound="StagedFolder")


class StagedFolder:
    """A new folder ``final``, filled as ``<final>.partial`` in the same parent until ``commit``.

    As a context manager, it is discarded at the end of the block unless it was committed, also after an error or
    Ctrl-C. The partial folder is locked while its process lives; one left by a killed process is emptied and reused.

    The parents of ``final`` are created; ``overwrite`` replaces an existing one at ``commit``.

    Raises:
        UserError: ``final`` exists, is not empty, and ``overwrite`` is false; another process is writing it; or it
            cannot be created.
    """

    def __init__(self, final: Path, *, overwrite: bool = False) -> None:
        # What a link leads to is replaced, as by other programs: a folder cannot be renamed onto the link.
        self.final = final = Path(os.path.realpath(final)) if final.is_symlink() else final
        if final.name in ("", ".."):  # `.`: whoever works in it would be left in the old one
            raise UserError(f"the output {final} cannot be exchanged for another folder: choose one below it")
        self.path = beside(final, PARTIAL)
        self._overwrite = overwrite
        refuse_existing([final], overwrite=overwrite, empty=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock, locked = lock_folder(self.path, f"let no other process write {self.final}")
        except OSError as error:
            raise UserError(f"cannot create the folder {self.path}: {error.strerror}") from error
        # Between open and lock another process may have renamed the folder into place; then it must not be emptied.
        is_there = locked and self.path.exists() and os.path.samestat(os.fstat(self._lock), self.path.stat())
        if locked is not None and not is_there:
            os.close(self._lock)
            raise UserError(f"another process is writing {self.final}: wait for it, or choose another output")
        for entry in self.path.iterdir():
            # What a killed process has left may be incomplete.
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def commit(self) -> Path:
        """Move the folder to ``final``, replacing an old one, and return ``final``."""
        # Again, because it may have appeared while the folder was filled.
        refuse_existing([self.final], overwrite=self._overwrite, empty=True)
        old = beside(self.final, ".old")
        if self.final.exists():
            shutil.rmtree(old, ignore_errors=True)
            # Renamed, not deleted: a process that is killed here loses neither.
            self.final.rename(old)
        self.path.rename(self.final)
        shutil.rmtree(old, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1
        return self.final

    def discard(self) -> None:
        """Delete the partial folder; does nothing after ``commit``."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self: Staged) -> Staged:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()


def refuse_existing(paths: Sequence[Path], *, overwrite: bool, empty: bool = False) -> None:
    """Raise a UserError that lists the ``paths`` that already exist, unless ``overwrite``; ``empty`` folders may."""
    existing = [path for path in paths if path.exists()]
    if empty:
        # A folder that is mounted, as a container's volume, cannot be exchanged for another.
        existing = [path for path in existing if not path.is_dir() or os.path.ismount(path) or os.listdir(path)]
    if existing and not overwrite:
        names = ", ".join(map(str, existing))
        raise UserError(f"already exists: {names}; remove it, choose another output, or give --overwrite")


def refuse_alike(targets: Iterable[Path]) -> None:
    """Raise a UserError for files that would be one, as FAT, exFAT and Windows' shares ignore capital letters."""
    alike, tried = dict[str, Path](), set[Path]()
    for target in targets:
        twin = alike.setdefault(str(target).lower(), target)
        if str(twin) == str(target) or target.parent in tried:
            continue
        tried.add(target.parent)
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        # Where no file can be made, the writer says why.
        with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".case_") as file:
            if os.path.exists(os.path.join(folder, os.path.basename(file.name).upper())):
                text = f"{twin} and {target} are one file there, where capital letters do not count"
                raise UserError(f"{text}: rename one of the images, or choose another output for some")


def refuse_input(folders: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raise a UserError if an output equals, contains or is inside one of the input ``folders``."""
    for folder in (path.resolve() for path in folders):
        for output in outputs:
            target = output.resolve()
            if target == folder or target in folder.parents or folder in target.parents:
                raise UserError(f"the output {output} and the input {folder} overlap: choose another output")
