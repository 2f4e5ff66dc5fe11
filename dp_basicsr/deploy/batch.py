"""Which files are upscaled and where the results go."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.images import IMAGE_SUFFIXES
from dp_basicsr.deploy.choices import FORMATS
from dp_basicsr.errors import UserError


@dataclass(frozen=True)
class UpscaleJob:
    """One image to upscale, and the file to write."""

    source: Path
    target: Path


def find_jobs(
    source: str, output: Path, *, recursive: bool = False, suffix: str = "", ext: str = "auto"
) -> list[UpscaleJob]:
    """List the images behind ``source`` and the files that mirror them below ``output``.

    Args:
        source: An image, a folder, or a glob (``photos/**/*.jpg``); a folder's hidden files and files that are no
            images are left out.
        output: A folder; with a single image also the file to write.
        recursive: Take the folders in a folder as well.
        suffix: Goes between name and extension.
        ext: ``auto`` keeps the extension (PNG where the format is only read), else png, jpg, webp, tif, bmp.

    Raises:
        UserError: Nothing there, or two results with one name, or a result on the place of an image.
    """
    if ext != "auto" and f".{ext.lower().lstrip('.')}" not in FORMATS:
        raise UserError(f"--ext {ext}: expected auto or one of {', '.join(name[1:] for name in FORMATS)}")
    path = Path(source).expanduser()
    if path.is_file():
        jobs = [
            UpscaleJob(path, output if output.suffix.lower() in FORMATS else output / _rename(path, suffix, ext).name)
        ]
    else:
        root = path if path.is_dir() else _root_of_glob(path)
        images = [image for image in _list(path, recursive) if not _is_below(image, output, root)]
        jobs = [UpscaleJob(image, output / _rename(image.relative_to(root), suffix, ext)) for image in images]
    if not jobs:
        ending = f"expected files that end in {', '.join(IMAGE_SUFFIXES)}"
        more = "" if recursive or not path.is_dir() else "; --recursive takes the folders in it as well"
        raise UserError(f"no image in {source}: {ending}{more}" if path.is_dir() else f"input {source}: no such file")
    _refuse_collisions(jobs)
    return jobs


def _list(path: Path, recursive: bool) -> list[Path]:
    if path.is_dir():
        below = path.rglob("*") if recursive else path.iterdir()
        found = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    return sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def _root_of_glob(pattern: Path) -> Path:
    """The folder before the first part with a wildcard: results mirror what comes after it."""
    plain = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)


def _rename(path: Path, suffix: str, ext: str) -> Path:
    kept = path.suffix if path.suffix.lower() in FORMATS else ".png"
    return path.with_name(path.stem + suffix + (kept if ext == "auto" else f".{ext.lower().lstrip('.')}"))


def _is_below(image: Path, output: Path, root: Path) -> bool:
    """Whether an image is an earlier result: the output folder may lie within the input folder."""
    folder = Path(os.path.abspath(output))
    return folder != Path(os.path.abspath(root)) and folder in Path(os.path.abspath(image)).parents


def _refuse_collisions(jobs: list[UpscaleJob]) -> None:
    sources = {os.path.realpath(job.source) for job in jobs}
    by_target = defaultdict(list)
    for job in jobs:
        by_target[os.path.realpath(job.target)].append(job)
        if os.path.realpath(job.target) in sources:
            raise UserError(f"{job.target} is an input and would be replaced: give --suffix, or another output")
    for same in by_target.values():
        if len(same) > 1:
            names = ", ".join(str(job.source) for job in same)
            raise UserError(f"{names} would all become {same[0].target}: leave out --ext, or give them other names")
