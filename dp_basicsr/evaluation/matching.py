"""Pair originals, LR and results by name, allowing for a prefix or suffix around the name."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dp_basicsr.errors import UserError, shorten
from dp_basicsr.images.files import IMAGE_SUFFIXES, find_images, left_out, name_hint

BICUBIC = "Bicubic"  # the method that is computed here


# For these folder names, the set's name is one level up: datasets/Set5/GT.
_GENERIC_FOLDER = re.compile(r"(gt|hr|original|originals)(_?mod_?\d+)?|image_srf_\d", re.IGNORECASE)


@dataclass(frozen=True)
class TestSet:
    """A test set: name, originals by image name, and their LR images if a folder was given."""

    __test__ = False  # not a pytest class

    name: str
    gt: Mapping[str, Path]
    lr: Mapping[str, Path] | None = None


@dataclass(frozen=True)
class Method:
    """A method's result images."""

    name: str  # in tables
    # Of its images, or of one folder per test set; ``{set}`` stands for the set's name. None: bicubic, computed here.
    folder: Path | None
    pattern: str = ""  # of its file names; detected if empty

    def images(self, test_set: TestSet) -> dict[str, Path]:
        """Return the method's file for every image of a set, {} for bicubic; missing or extra files are a UserError."""
        if self.folder is None:
            return {}
        folder = Path(str(self.folder).replace("{set}", test_set.name))
        inner = folder / test_set.name
        # DIR holds one folder for each set, or the images themselves.
        return match_images(inner if inner.is_dir() else folder, test_set.gt, self.pattern)


def find_test_set(
    gt: Path, lr: Path | None = None, name: str = "", gt_pattern: str = "", lr_pattern: str = ""
) -> TestSet:
    """Find the images of a test set, in a folder of originals and one of their LR images.

    Args:
        name: Name of the set; taken from the folder if empty (``datasets/Set5/GT`` is Set5).
        gt_pattern: See ``compile_pattern``; if empty, all files by their full names.
        lr_pattern: The same for the LR images; detected from the names if empty.

    Raises:
        UserError: A folder is missing or empty, two files have the same name, or originals lack their LR.
    """
    originals = names_in(gt, gt_pattern or "{}")
    if others := left_out(gt):
        logging.getLogger("basicsr").warning(others)
    resolved = gt.resolve()
    name = name or (resolved.parent.name if _GENERIC_FOLDER.fullmatch(resolved.name) else resolved.name)
    return TestSet(name, originals, match_images(lr, originals, lr_pattern) if lr else None)


def match_images(folder: Path, names: Collection[str], pattern: str = "") -> dict[str, Path]:
    """Return the file in ``folder`` of each of the originals' ``names``, in their order.

    Files that do not match ``pattern`` (see ``compile_pattern``) are ignored. If it is empty, the common prefix and
    suffix (``baby_RCAN_x4`` for ``baby``) are detected. Missing images, which are listed, and several patterns that
    match are a UserError; further images are logged, or are one too if names are detected within longer numbers.
    """
    used = pattern or detect_pattern([path.stem for path in find_images(folder)], names, folder)
    found = names_in(folder, used)
    missing = [name for name in names if name not in found]
    # A pattern that was given selects some files of a folder, and the others need no word.
    files = found.values() if pattern else find_images(folder)
    extra = sorted(path.name for path in set(files) - set(map(found.get, names)))
    others = f"without an original: {shorten(extra)}"
    # Of 11, 12 and 14 the first two may be other images than 1 and 2.
    numbers = not pattern and any(re.search(r"\d/\d", used.replace("{}", f"/{name}/")) for name in names)
    if missing or (extra and numbers):
        problems = [*([f"missing: {shorten(missing)}"] if missing else []), *([others] if extra else [])]
        raise UserError(
            f"{folder}: expected one image for each of {len(names)} originals, named {used!r}; {'; '.join(problems)}. "
            f"For another naming give --pattern NAME=PATTERN, for example '{{}}_RCAN_x4'{name_hint(missing, found)}"
        )
    if extra:
        logging.getLogger("basicsr").warning(f"{folder}: not measured, {others}")
    return {name: found[name] for name in names}


def names_in(folder: Path, pattern: str) -> dict[str, Path]:
    """Map image names to the files of ``folder`` that match ``pattern``, sorted; none or two are a UserError."""
    regex = compile_pattern(pattern)
    found: dict[str, Path] = {}
    for path in find_images(folder):
        if not (fit := regex.fullmatch(path.stem)):
            continue
        if fit[1] in found:
            raise UserError(f"{folder}: {found[fit[1]].name} and {path.name} are both the image {fit[1]!r}")
        found[fit[1]] = path
    if not found:
        some = shorten([path.name for path in find_images(folder)])
        raise UserError(f"{folder}: no file matches the pattern {pattern!r}; found: {some}")
    return found


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a file name pattern without extension: ``{}`` for the image's name, or a regex with one group."""
    # Users write {}_x4.png, but names are matched without extension.
    for suffix in IMAGE_SUFFIXES:
        pattern = pattern.removesuffix(suffix)
    try:
        # A name may have line breaks.
        regex = re.compile("(.+)".join(map(re.escape, pattern.split("{}"))) if "{}" in pattern else pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: not a regular expression ({error})") from error
    if regex.groups != 1:
        raise UserError(f"pattern {pattern!r}: expected one {{}} for the image's name, or a regex with one group")
    return regex


def detect_pattern(stems: Collection[str], names: Collection[str], folder: Path) -> str:
    """Detect the prefix and suffix that fit the most names; none, or several that fit all, are a UserError."""
    # Exact names come first: no prefix or suffix has to be guessed then.
    if set(names) <= (files := set(stems)):
        return "{}"
    candidates = {
        (stem[:start], stem[start + len(name) :])
        for name, stem in product(names, stems)
        for start in range(len(stem))
        if stem.startswith(name, start)
    }
    fits = {split: sum(f"{split[0]}{name}{split[1]}" in files for name in names) for split in candidates}
    most = max(fits.values(), default=0)
    if most == 0:
        raise UserError(
            f"{folder}: no file is named like an original; found: {shorten(stems)}; originals: {shorten(names)}. "
            f"Give --pattern NAME=PATTERN{name_hint(names, stems)}"
        )
    best = sorted(f"{before}{{}}{after}" for (before, after), count in fits.items() if count == most)
    # If names are missing as well, those are reported instead.
    if len(best) > 1 and most == len(names):
        raise UserError(
            f"{folder}: the files match several patterns: {shorten(best)}; choose one with --pattern NAME=PATTERN"
        )
    return best[0]
