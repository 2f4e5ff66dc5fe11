"""Fetching a data set by name and putting its images where the option files expect them."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.data.downloads.archives import unpack_images
from dp_basicsr.data.downloads.catalogue import SOURCES, DatasetSource
from dp_basicsr.data.downloads.fetch import fetch
from dp_basicsr.data.images import find_images
from dp_basicsr.errors import UserError


def download_dataset(name: str, root: Path, *, base_url: str | None = None, keep_archive: bool = False) -> str:
    """Fetch the data set ``name`` into its place below ``root``; returns what was done and what comes next.

    Args:
        name: a key of ``dp_basicsr.data.downloads.catalogue.SOURCES``.
        root: folder of the data sets.
        base_url: take the archive of the same file name from here instead (a mirror).
        keep_archive: leave the archive in ``root`` after it was unpacked.

    Raises:
        UserError: unknown name, nothing to be had (with the way by hand), a wrong or dangerous archive, or a folder
            in the place that holds something else.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}', expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    target = root / source.target
    next_step = f"\nnext: {source.next_step.format(root=root)}" if source.next_step else ""
    if target.exists():
        _check_existing(target, source)
        return f"{target}: there already, {source.images} images{next_step}"
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
        raise UserError(f"{target} is there with {found} images, expected {source.images}: move it away first")
