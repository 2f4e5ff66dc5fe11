"""Unpack the images of one folder of a zip or tar archive, without trusting the archive."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.utils.staging import StagedFolder

_BLOCK = 1 << 20
_LARGEST = 64 << 30  # bytes unpacked: well above DIV2K's 3.5 GB, well below a zip bomb
# zipfile raises NotImplementedError for unknown compression and RuntimeError for encrypted entries.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class _Member:
    """An archive entry: its name, whether it is a regular file or a folder, and the library's own handle."""

    name: str
    is_file: bool
    is_folder: bool
    entry: zipfile.ZipInfo | tarfile.TarInfo


def unpack_images(archive: Path, folder: str, target: Path, images: int) -> Path:
    """Unpack the image files directly in ``folder`` of ``archive`` into the new folder ``target``.

    All names are checked before anything is written. The archive is refused if any entry would leave its folder
    (``..``, an absolute path) or is neither a file nor a folder (links, devices).

    Raises:
        UserError: An entry is dangerous, the archive is damaged, the number of images is not ``images``, or ``target``
            exists. No partial output is left behind.
    """
    with StagedFolder(target) as staged:
        with _opened(archive) as source:
            members = [_checked(member, archive) for member in _members(source)]
            wanted = []
            for member in members:
                path = PurePosixPath(member.name)
                # macOS packs files such as ._0001.png, which are no images.
                is_image = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
                if member.is_file and is_image and path.parent == PurePosixPath(folder):
                    wanted.append(member)
            if len(wanted) != images:
                raise UserError(f"{archive} has {len(wanted)} images in its folder {folder}, expected {images}")
            # One limit for all files, on the bytes that come out: the sizes in an archive's headers may be wrong.
            left = _LARGEST
            for member in wanted:
                left -= _copy(source, member, staged.path / PurePosixPath(member.name).name, left, archive)
        return staged.commit()


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as source:
            yield source
    except _DAMAGED as error:
        raise UserError(f"{archive} is damaged or not an archive ({error}): delete it and download it again") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {error}") from error


def _members(source: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(source, tarfile.TarFile):
        for entry in source:
            yield _Member(entry.name, entry.isreg(), entry.isdir(), entry)
        return
    for info in source.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the zip was not made on Unix
        yield _Member(info.filename, not info.is_dir() and kind in (0, stat.S_IFREG), info.is_dir(), info)


def _checked(member: _Member, archive: Path) -> _Member:
    # Also what Windows would take for separators and for a drive letter.
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise UserError(f"{archive} is refused: its entry {member.name!r} would be written outside the folder")
    if not (member.is_file or member.is_folder):
        raise UserError(f"{archive} is refused: its entry {member.name!r} is neither file nor folder")
    return member


def _copy(source: zipfile.ZipFile | tarfile.TarFile, member: _Member, path: Path, most: int, archive: Path) -> int:
    """Copy one entry to the new file ``path`` and return its length, counting the bytes actually unpacked."""
    length = 0
    if isinstance(source, zipfile.ZipFile):
        opened: IO[bytes] | None = source.open(member.entry)  # type: ignore[arg-type]
    else:
        opened = source.extractfile(member.entry)  # type: ignore[arg-type]
    assert opened is not None  # None only for entries that are not regular files
    # Exclusive, so that a second entry of the same name is refused and replaces nothing.
    with opened as reader, path.open("xb") as writer:
        while block := reader.read(_BLOCK):
            length += len(block)
            if length > most:
                raise UserError(f"{archive} is refused: it unpacks to more than {_LARGEST:,} bytes")
            writer.write(block)
    return length
