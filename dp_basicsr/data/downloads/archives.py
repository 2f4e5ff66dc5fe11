"""Unpack the images of one folder of a zip or tar archive, without trusting the archive."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from dp_basicsr.errors import UserError, first_line
from dp_basicsr.images.files import IMAGE_SUFFIXES
from dp_basicsr.utils.staging import StagedFolder

_BLOCK = 1 << 20
_LARGEST = 64 << 30  # bytes unpacked: well above DIV2K's 3.5 GB, well below a zip bomb
# zipfile raises NotImplementedError for unknown compression and RuntimeError for encrypted entries.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError, RuntimeError)

# Of an entry: its name, whether it is a regular file, whether it is a folder, and how to open it.
Entry = tuple[str, bool, bool, Callable[[], IO[bytes] | None]]


class DamagedArchiveError(UserError):
    """An archive cannot be read, so another download may help."""


def unpack_images(archive: Path, folder: str, target: Path, images: int) -> Path:
    """Unpack the image files directly in ``folder`` of ``archive`` into the new folder ``target``.

    All names are checked before anything is written. The archive is refused if any entry would leave its folder
    (``..``, an absolute path) or is neither a file nor a folder (links, devices).

    Raises:
        DamagedArchiveError: It is damaged, or no archive.
        UserError: An entry is dangerous, the number of images is not ``images``, or ``target`` exists. No partial
            output is left behind.
    """
    with StagedFolder(target) as staged:
        with _opened(archive) as source:
            wanted = list[tuple[str, Callable[[], IO[bytes] | None]]]()
            for name, is_file, is_folder, open_entry in _entries(source):
                # Also what Windows would take for separators and for a drive letter.
                parts = PurePosixPath(name.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
                    raise UserError(f"{archive} is refused: its entry {name!r} would be written outside the folder")
                if not (is_file or is_folder):
                    raise UserError(f"{archive} is refused: its entry {name!r} is neither file nor folder")
                path = PurePosixPath(name)
                # macOS packs files such as ._0001.png, which are no images.
                is_image = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
                if is_file and is_image and path.parent == PurePosixPath(folder):
                    wanted.append((path.name, open_entry))
            if len(wanted) != images:
                raise UserError(f"{archive} has {len(wanted)} images in its folder {folder}, expected {images}")
            # Counted here: the sizes in an archive's headers may be wrong.
            length = 0
            for name, open_entry in wanted:
                reader = open_entry()
                assert reader is not None, "a regular file can be read"
                # Exclusive, so that a second entry of the same name is refused and replaces nothing.
                with reader, (staged.path / name).open("xb") as writer:
                    while block := reader.read(_BLOCK):
                        length += len(block)
                        if length > _LARGEST:
                            raise UserError(f"{archive} is refused: it unpacks to more than {_LARGEST:,} bytes")
                        writer.write(block)
        return staged.commit()


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as source:
            yield source
    except _DAMAGED as error:
        with archive.open("rb") as file:
            what = f"{archive.stat().st_size:,} bytes that begin with {file.read(16)!r}"
        raise DamagedArchiveError(
            f"{archive} is damaged or not an archive ({first_line(error).rstrip(':')}; {what})"
        ) from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {error}") from error


def _entries(source: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Entry]:
    if isinstance(source, tarfile.TarFile):
        for member in source:
            yield member.name, member.isreg(), member.isdir(), partial(source.extractfile, member)
        return
    for info in source.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the zip was not made on Unix
        is_file = not info.is_dir() and kind in (0, stat.S_IFREG)
        yield info.filename, is_file, info.is_dir(), partial(source.open, info)
