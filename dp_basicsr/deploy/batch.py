"""Find the images to upscale and name their results."""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.images.files import FORMATS, READ_SUFFIXES, is_file, missing_hint
from dp_basicsr.utils.staging import refuse_alike

from PIL import Image


@dataclass(frozen=True)
class UpscaleJob:
    """One image to upscale, and the file to write."""

    source: Path
    target: Path


def find_jobs(
    sources: Sequence[str], output: Path, *, recursive: bool = False, suffix: str = "", ext: str = "auto",
    overwrite: bool = False
) -> tuple[list[UpscaleJob], list[Path]]:  # fmt: skip
    """List the images behind ``sources``, each once, and the files that mirror them below ``output``.

    Args:
        sources: Images, folders, or globs (``photos/**/*.jpg``). Hidden files of a folder are ignored.
        output: A folder; for a single image also the file to write.
        suffix: Inserted between name and extension.
        overwrite: Results that are there are to be replaced. Otherwise those among the inputs are left out.
        ext: ``auto`` keeps the extension (PNG for formats that are only read); otherwise one of ``FORMATS``.

    Returns:
        The jobs, and what was left out: files of other types, and the subfolders without ``recursive``.

    Raises:
        UserError: A source has no image, two results have the same name, or a result would replace an input.
    """
    if ext != "auto" and f".{ext.lower().lstrip('.')}" not in FORMATS:
        raise UserError(f"--ext {ext}: expected auto or one of {', '.join(name[1:] for name in FORMATS)}")
    if "/" in suffix or "\0" in suffix:
        raise UserError(f"--suffix {suffix}: expected a part of a file name, without /")
    # Not Path's own expanduser, which raises an error where there is no home folder.
    output = Path(os.path.expanduser(output))
    if names_another_picture(output):
        text = f"expected a folder, or for one image a file that ends in {', '.join(FORMATS)}"
        raise UserError(f"--output {output}: {text}")
    jobs, left_out = list[UpscaleJob](), set[Path]()
    for name in (*sources, str(output)):
        is_there = os.path.exists(name)
        if (name == "-" and not is_there) or (is_there and not (os.path.isfile(name) or os.path.isdir(name))):
            raise UserError(f"{name}: expected a file or folder; save what comes through a pipe, and name the result")
    is_named = output.suffix.lower() in FORMATS and not output.is_dir()
    if is_named and ext != "auto" and FORMATS[f".{ext.lower().lstrip('.')}"] != FORMATS[output.suffix.lower()]:
        raise UserError(f"--output {output} and --ext {ext}: expected one format, got two: leave out --ext")
    needs_folder = f"--output {output}: expected a folder for several images, got the name of one"
    needs_folder += f"; --ext {output.suffix[1:]} gives them its format"
    for source in sources:
        path = Path(os.path.expanduser(source))
        if is_file(path):
            jobs.append(UpscaleJob(path, output if is_named else output / _rename(path, suffix, ext).name))
            continue
        root, images, others = _list(path, output, recursive)
        if not images and not others and not path.is_dir():
            pattern = re.sub(r"%\d*d", "*", source)
            frames = f"; give their folder, or a glob in quotes: '{pattern}'" if pattern != source else ""
            raise UserError(f"input {source}: no such file{frames or missing_hint(path)}")
        if is_named:
            raise UserError(needs_folder)
        if not images:
            also = f"; {describe_left_out(others)}" if others else ""
            if any(path.suffix.lower() in (".mp4", ".mov", ".mkv", ".avi", ".webm") for path in others):
                also += "; take the images of a video with `ffmpeg -i VIDEO %06d.png`"
            raise UserError(f"no image in {source}: expected files that end in {', '.join(READ_SUFFIXES)}{also}")
        jobs += [UpscaleJob(image, output / _rename(image.relative_to(root), suffix, ext)) for image in images]
        left_out.update(others)
    # One file may be given in several ways, also through a link to its folder.
    jobs = list({(os.path.realpath(job.source), job.target): job for job in jobs}.values())
    if is_named and len(jobs) > 1:
        raise UserError(needs_folder)
    if suffix and not overwrite:
        made_of = {os.path.realpath(job.target): job.source for job in jobs}
        earlier = {job for job in jobs if made_of.get(os.path.realpath(job.source), job.source) != job.source}
        jobs = [job for job in jobs if job not in earlier]
        left_out.update(job.source for job in earlier)
    _refuse_collisions(jobs, ext)
    return jobs, sorted(left_out)


def names_another_picture(output: Path) -> bool:
    """Whether ``output``, which would become a folder, is the name of a picture or video that is not written."""
    suffix = output.suffix.lower()
    if not suffix or suffix in FORMATS or output.is_dir():
        return False
    Image.init()
    kind = mimetypes.guess_type(f"picture{suffix}")[0] or ""
    return kind.startswith(("image/", "video/")) or suffix in (*Image.registered_extensions(), ".jxl", ".exr", ".dng")


def describe_left_out(paths: Sequence[Path]) -> str:
    """Describe what was left out: ``left out 3 files (2 .txt, 1 .heic) and 1 folder (--recursive includes it)``."""
    folders = sum(path.is_dir() for path in paths)
    kinds = Counter(path.suffix.lower() or "without suffix" for path in paths if not path.is_dir())
    parts = []
    if kinds:
        count = len(paths) - folders
        names = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5))
        parts.append(f"{count} file{'s' if count > 1 else ''} ({names}{', ...' if len(kinds) > 5 else ''})")
    if folders:
        names, pronoun = ("folders", "them") if folders > 1 else ("folder", "it")
        parts.append(f"{folders} {names} (--recursive includes {pronoun})")
    return f"left out {' and '.join(parts)}"


def _list(path: Path, output: Path, recursive: bool) -> tuple[Path, list[Path], list[Path]]:
    """Return the folder that results mirror, the images behind a folder or glob, and what else is there.

    Without ``recursive`` that includes subfolders.
    """
    if path.is_dir():
        root, below = path, path.rglob("*") if recursive else path.iterdir()
        files = [file for file in below if not _is_hidden(file, path)]
        files = [file for file in files if not (recursive and file.is_dir())]
    else:
        # As far as a path exists, brackets and stars in it are names.
        root = next((folder for folder in path.parents if folder.is_dir()), path.parent)
        parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in path.relative_to(root).parts]
        # Not by the module glob, whose `**` follows links, to a folder above them without end.
        found = root.glob("/".join([*parts, "*"] if parts[-1] == "**" else parts))
        is_asked = any(part.startswith(".") for part in parts)
        files = [file for file in found if not file.is_dir() and (is_asked or not _is_hidden(file, root))]
    images = sorted(file for file in files if file.suffix.lower() in READ_SUFFIXES and is_file(file))
    others = sorted(set(files) - set(images))
    results = Path(os.path.abspath(output))
    # The output may lie within the input. Only now, so that earlier results are not reported as left out.
    if Path(os.path.abspath(root)) in results.parents:
        images = [image for image in images if results not in Path(os.path.abspath(image)).parents]
    return root, images, others


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _rename(path: Path, suffix: str, ext: str) -> Path:
    extension = path.suffix if path.suffix.lower() in FORMATS else ".png"
    return path.with_name(path.stem + suffix + (extension if ext == "auto" else f".{ext.lower().lstrip('.')}"))


def refuse_unwritable(jobs: Sequence[UpscaleJob]) -> None:
    """Raise a UserError for a result that could not be written, before anything is computed."""
    for target in (Path(os.path.abspath(job.target)) for job in jobs):
        # Every part that is still to be created is tried as a name in the nearest folder that exists.
        folder, missing = target.parent, [target.name]
        while not os.path.exists(folder):
            if folder.is_symlink():
                raise UserError(f"{folder} is a link to {os.readlink(folder)}, which is missing: choose another output")
            missing.append(folder.name)
            folder = folder.parent
        try:
            for path in (target, *(folder / name for name in missing)):
                with contextlib.suppress(FileNotFoundError):
                    # The file system itself knows which names it takes.
                    path.lstat()
        except OSError as error:
            way_out = "another output" if error.errno == errno.ENOTDIR else "a shorter name, or --suffix"
            raise UserError(f"{target} cannot be written ({error.strerror}): choose {way_out}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written to: choose another output for {target.name}")
    refuse_alike(job.target for job in jobs)


def _refuse_collisions(jobs: list[UpscaleJob], ext: str) -> None:
    # Links are resolved, because two paths may lead to one file.
    sources = {os.path.realpath(job.source) for job in jobs}
    by_target = defaultdict(list)
    for job in jobs:
        by_target[os.path.realpath(job.target)].append(job)
        if os.path.realpath(job.target) in sources:
            raise UserError(f"{job.target} is an input and would be replaced: give --suffix, or another output")
    for same in by_target.values():
        if len(same) > 1:
            names = ", ".join(str(job.source) for job in same)
            way_out = "rename them" if ext == "auto" else "leave out --ext, or rename them"
            raise UserError(f"{names} would all become {same[0].target}: {way_out}, or choose another output for some")
