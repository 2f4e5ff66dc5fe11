"""Which file is which image: originals, LR and results are paired by name, whatever was put around the name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.images import IMAGE_SUFFIXES, find_images
from dp_basicsr.errors import UserError

BICUBIC = "Bicubic"  # the method that is computed here

_MAX_NAMED = 5  # files named in one message; the rest is counted

# A folder of originals that is called like this carries its set's name one level up: datasets/Set5/GT.
_GENERIC_FOLDER = re.compile(r"(gt|hr|original|originals)(_?mod_?\d+)?|image_srf_\d", re.IGNORECASE)


@dataclass(frozen=True)
class TestSet:
    """A test set: name, originals by image name, and their LR where a folder of them was given."""

    __test__ = False  # no test class, whatever pytest makes of its name

    name: str
    gt: Mapping[str, Path]
    lr: Mapping[str, Path] | None = None


@dataclass(frozen=True)
class Method:
    """A method's result images.

    Attributes:
        name: In tables.
        folder: Of its images, or of one folder for each test set; ``{set}`` in it stands for the set's name. None is
            bicubic enlargement, computed here.
        pattern: Of its file names; found by itself when empty.
    """

    name: str
    folder: Path | None
    pattern: str = ""

    def images(self, test_set: TestSet) -> dict[str, Path]:
        """The method's file of every image of a set; empty for bicubic. UserError where some are missing or extra."""
        if self.folder is None:
            return {}
        folder = Path(str(self.folder).replace("{set}", test_set.name))
        inner = folder / test_set.name
        return match_images(inner if inner.is_dir() else folder, test_set.gt, self.pattern)


def find_test_set(
    gt: Path, lr: Path | None = None, name: str = "", gt_pattern: str = "", lr_pattern: str = ""
) -> TestSet:
    """Find the images of a test set.

    Args:
        gt: Folder of originals.
        lr: Folder of their LR.
        name: Of the set; taken from the folder when empty (``datasets/Set5/GT`` is Set5).
        gt_pattern: Which files are originals and what in them is the image's name, see ``compile_pattern``; all
            files, by their whole names, when empty.
        lr_pattern: The same for the LR; found from the names when empty.

    Raises:
        UserError: A folder is missing or empty, two files have one name, or originals lack their LR.
    """
    originals = names_in(gt, gt_pattern or "{}")
    resolved = gt.resolve()
    name = name or (resolved.parent.name if _GENERIC_FOLDER.fullmatch(resolved.name) else resolved.name)
    return TestSet(name, originals, match_images(lr, originals, lr_pattern) if lr else None)


def match_images(folder: Path, names: Collection[str], pattern: str = "") -> dict[str, Path]:
    """Find the image of every name in a folder.

    Args:
        folder: Of images.
        names: Of the originals.
        pattern: See ``compile_pattern``; files that do not fit it are left alone. When empty, what all files have
            around the names (``baby_RCAN_x4`` for ``baby``) is found, and every file must fit.

    Returns:
        The file of each name, in the order of ``names``.

    Raises:
        UserError: Images are missing or there are more than names (both named), or several patterns would fit.
    """
    used = pattern or detect_pattern([path.stem for path in find_images(folder)], names, folder)
    found = names_in(folder, used)
    missing = [name for name in names if name not in found]
    extra = [path.name for name, path in found.items() if name not in names]
    if not pattern:
        extra += [path.name for path in find_images(folder) if path not in found.values()]
    problems = [f"missing: {_some(missing)}"] if missing else []
    problems += [f"without an original: {_some(extra)}"] if extra else []
    if problems:
        raise UserError(
            f"{folder}: expected one image for each of {len(names)} originals, named {used!r}; {'; '.join(problems)}. "
            "Another naming is given with --pattern NAME=PATTERN, for example '{}_RCAN_x4'"
        )
    return {name: found[name] for name in names}


def names_in(folder: Path, pattern: str) -> dict[str, Path]:
    """The files of ``folder`` that fit ``pattern``, by the image name in theirs, sorted by file name.

    Raises:
        UserError: No file fits, or two carry the same name.
    """
    regex = compile_pattern(pattern)
    found: dict[str, Path] = {}
    for path in find_images(folder):
        if not (fit := regex.fullmatch(path.stem)):
            continue
        if fit[1] in found:
            raise UserError(f"{folder}: {found[fit[1]].name} and {path.name} are both the image {fit[1]!r}")
        found[fit[1]] = path
    if not found:
        some = _some([path.name for path in find_images(folder)])
        raise UserError(f"{folder}: no file fits the pattern {pattern!r}; there are: {some}")
    return found


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of file names, without extension: ``{}`` stands for the image's name, or a regex whose one group is it.

    Raises:
        UserError: Neither of the two.
    """
    for suffix in IMAGE_SUFFIXES:
        pattern = pattern.removesuffix(suffix)
    try:
        regex = re.compile("(.+)".join(map(re.escape, pattern.split("{}"))) if "{}" in pattern else pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: no regular expression ({error})") from error
    if regex.groups != 1:
        raise UserError(f"pattern {pattern!r}: expected one {{}} for the image's name, or a regex with one group")
    return regex


def detect_pattern(stems: Collection[str], names: Collection[str], folder: Path) -> str:
    """What the files of a folder have around the names: the pattern that fits the most names.

    Raises:
        UserError: None fits any, or several fit all.
    """
    there = set(stems)
    if set(names) <= there:
        return "{}"
    candidates = {(before, after) for name in names for stem in stems for before, after in _splits(stem, name)}
    fits = {split: sum(f"{split[0]}{name}{split[1]}" in there for name in names) for split in candidates}
    most = max(fits.values(), default=0)
    if most == 0:
        raise UserError(
            f"{folder}: no file is named like an original; there are: {_some(stems)}; originals: {_some(names)}. "
            "Give --pattern NAME=PATTERN"
        )
    best = sorted(f"{before}{{}}{after}" for (before, after), count in fits.items() if count == most)
    if len(best) > 1 and most == len(names):
        raise UserError(
            f"{folder}: the files fit several patterns: {_some(best)}; choose one by --pattern NAME=PATTERN"
        )
    return best[0]


def _splits(stem: str, name: str) -> Iterable[tuple[str, str]]:
    """Every ``(before, after)`` with ``stem == before + name + after``."""
    place = stem.find(name)
    while place >= 0:
        yield stem[:place], stem[place + len(name) :]
        place = stem.find(name, place + 1)


def _some(names: Collection[str]) -> str:
    listed = ", ".join(list(names)[:_MAX_NAMED])
    return listed + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
