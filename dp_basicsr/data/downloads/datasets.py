"""Download a data set by name and put its images where the option files expect them."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.data.downloads.archives import unpack_images
from dp_basicsr.data.downloads.catalogue import SOURCES, DatasetSource
from dp_basicsr.data.downloads.fetch import fetch
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import find_images
from dp_basicsr.utils.arguments import advise


def download_dataset(name: str, root: Path, *, base_url: str | None = None, keep_archive: bool = False) -> str:
    """Download the data set ``name`` to its place below ``root``; return a summary and the next command.

    Args:
        name: A key of ``dp_basicsr.data.downloads.catalogue.SOURCES``.
        root: Root folder of the data sets.
        base_url: Download the archive of the same file name from this URL instead (a mirror).
        keep_archive: Keep the archive in ``root`` after unpacking.

    Raises:
        UserError: The name is unknown, the download failed (the message explains the manual download), the archive is
            wrong or dangerous, or the target folder has other content.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}', expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    target = root / source.target
    next_step = f"\nnext: {advise(*source.next_step).format(root=root)}" if source.next_step else ""
    if target.exists():
        _check_existing(target, source)
        return f"{target}: already exists, {source.images} images{next_step}"
    url = f"{base_url.rstrip('/')}/{source.file_name}" if base_url else source.url
    try:
        archive = fetch(url, root / source.file_name, size=source.size, checksum=source.checksum)
    except UserError as error:
        raise UserError(f"{error}\n{source.by_hand}; put the {source.images} images into {target}") from error
    unpack_images(archive, source.folder, target, source.images)
    if not keep_archive:
        archive.unlink()
    return f"{target}: {source.images} images{next_step}"


def _check_existing(target: Path, source: DatasetSource) -> None:
    found = len(find_images(target))
    if found != source.images:
        raise UserError(f"{target} already exists with {found} images, expected {source.images}: move it away first")
