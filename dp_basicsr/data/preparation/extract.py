"""Extract the training data from HR images: overlapping sub-images and their LR, as LMDBs or PNG folders.

The rule is BasicSR's (``scripts/data_preparation/extract_subimages.py``): one window every ``step`` pixels from the top
left corner, and one more flush with the far border if more than ``thresh`` pixels would be left over. On DIV2K's 800
images, 480 pixels every 240 make the 32,592 sub-images of the paper.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation.check import Pair, read_pair, turned_hint
from dp_basicsr.data.preparation.jobs import PrepJob, PrepReport, process_images
from dp_basicsr.data.preparation.writers import FolderWriter, LmdbWriter, Record, RecordForm, check_keys, make_record
from dp_basicsr.data.sources import ImageSource
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES, BadImageError, find_images, name_hint
from dp_basicsr.images.strict import read_image, size_text
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.atomic_io import longest_name
from dp_basicsr.utils.staging import refuse_alike, refuse_existing, refuse_input

DIV2K_HR = Path("datasets/DIV2K/DIV2K_train_HR")
_MAX_WINDOWS = 9999  # per image, limited by the length of the keys


@dataclass(frozen=True)
class Window:
    """The sliding window, in pixels of the HR image. The defaults are the paper's for DIV2K."""

    crop: int = 480
    step: int = 240
    thresh: int = 0

    def starts(self, size: int) -> list[int]:
        """Return the window starts along one dimension of ``size`` pixels; [] if it is smaller than the window."""
        if size < self.crop:
            return []
        starts = list(range(0, size - self.crop + 1, self.step))
        if size - (starts[-1] + self.crop) > self.thresh:
            starts.append(size - self.crop)
        return starts

    def corners(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the top left corners (y, x) of all windows of an ``(H, W, ...)`` image, row by row."""
        return [(y, x) for y in self.starts(shape[0]) for x in self.starts(shape[1])]


def subimage_key(stem: str, index: int) -> str:
    """Return BasicSR's name of the ``index``-th sub-image, counted from 0: ``0001_s001``."""
    return f"{stem}_s{index + 1:03d}"


@dataclass(frozen=True)
class Extraction:
    """What to extract and where to put it. The defaults are those for DIV2K."""

    hr: Path = DIV2K_HR  # folder of HR images (8 bit, gray or colour)
    output: Path | None = None  # None is the parent of ``hr``
    window: Window = Window()
    scales: tuple[int, ...] = (4,)  # of the LR images to make for each sub-image
    # Folders of existing LR images to cut instead of downsampling, one per scale in the same order. Their files are
    # named like the HR files or with DIV2K's suffix ``x<scale>`` (``0001x4.png``).
    lr: tuple[Path, ...] = ()
    form: Literal["lmdb", "png", "both"] = "lmdb"  # LMDBs, PNG folders or both
    lmdb: RecordForm = "png"  # record format of the LMDBs: PNG files or raw pixels

    def outputs(self) -> list[tuple[Path, int, RecordForm]]:
        """Return each output's path, its scale (1 is HR) and its record format.

        ``DIV2K_train_HR_sub.lmdb`` and ``DIV2K_train_LR_bicubic_X4_sub.lmdb`` for DIV2K.
        """
        hr = _named(self.hr)
        names = [f"{re.sub('HR$', 'LR', hr.name)}_bicubic_X{scale}" for scale in self.scales]
        for index, folder in enumerate(map(_named, self.lr)):
            # DIV2K has one subfolder per scale: DIV2K_train_LR_bicubic/X4
            is_scale = re.fullmatch("[xX][0-9]+", folder.name)
            names[index] = f"{_named(folder.parent).name}_{folder.name}" if is_scale else folder.name
        root = hr.parent if self.output is None else self.output
        forms: dict[str, RecordForm] = {".lmdb": self.lmdb, "": "png"}
        suffixes = {"lmdb": [".lmdb"], "png": [""], "both": [".lmdb", ""]}[self.form]
        return [
            (root / f"{name}_sub{suffix}", scale, forms[suffix])
            for name, scale in zip([hr.name, *names], [1, *self.scales], strict=True)
            for suffix in suffixes
        ]


def extract_subimages(what: Extraction, job: PrepJob) -> PrepReport:
    """Decode every image of ``what.hr`` once and write its sub-images in all formats and scales.

    The outputs appear only when all of them are complete. Inconsistent settings, outputs that exist (without
    ``job.overwrite``), colliding names and images that cannot be used (without ``job.skip_bad``) are a UserError.
    """
    if what.hr == DIV2K_HR and not what.hr.is_dir():
        raise UserError(f"no such folder: {what.hr}; run `{advise('data download', 'div2k')}`, or give --input")
    images, scales, window = find_images(what.hr), what.scales, what.window
    if not scales or len(set(scales)) != len(scales) or min(scales) < 2:
        raise UserError(f"expected different scales of at least 2, got {list(scales)}")
    if window.crop < 1 or window.step < 1 or window.thresh < 0:
        raise UserError(f"expected crop and step of at least 1 and a threshold of at least 0, got {window}")
    for scale in scales:
        # Or a window would not map to whole LR pixels.
        if window.crop % scale or window.step % scale:
            got = f"crop {window.crop}, step {window.step}, scale {scale}"
            raise UserError(f"expected a crop size and a step that are multiples of the scale, got {got}")
    if what.lr and len(what.lr) != len(scales):
        raise UserError(f"expected one LR folder for each scale, got {len(what.lr)} for scales {list(scales)}")
    for folder in what.lr:
        # Raises if there is no such folder, or no image in it.
        find_images(folder)
    destinations = [path for path, _, _ in what.outputs()]
    if len(set(destinations)) != len(destinations):
        names = ", ".join(map(str, destinations))
        raise UserError(f"HR and LR would have the same output path: {names}; rename a folder")
    stems, longest = dict[str, str](), longest_name(destinations[0] / "name")
    for path in images:
        if (first := stems.setdefault(path.stem, path.name)) != path.name:
            raise UserError(f"{first} and {path.name} would both be written as '{path.stem}': rename one of them")
        if len(os.fsencode(f"{subimage_key(path.stem, _MAX_WINDOWS - 1)}.png")) > longest and what.form != "lmdb":
            raise UserError(f"{path.name}: its sub-images' names would be longer than {longest} bytes: rename it")
    if what.form != "png":
        # With the longest suffix, because LMDB limits the length of keys.
        check_keys([path.name for path in images], suffix=subimage_key("", _MAX_WINDOWS - 1))
    refuse_input([what.hr, *what.lr], destinations)
    # Each writer checks its own; here all are checked before the first is opened.
    refuse_existing(destinations, overwrite=job.overwrite, empty=True)
    refuse_alike(destinations[-1] / path.stem for path in images if what.form != "lmdb")
    cut = partial(cut_image, what=what, compression=job.compression)
    outputs = {path: LmdbWriter if path.suffix == ".lmdb" else FolderWriter for path in destinations}
    return process_images(images, cut, outputs, job, what.hr)


def cut_image(path: Path, what: Extraction, compression: int = 1) -> list[list[Record]]:
    """Decode one HR image once and make its records for each of ``what.outputs()``, in the same order and keys."""
    crop, hr = what.window.crop, read_image(path)
    if min(hr.shape[:2]) < crop:
        raise BadImageError(f"is {size_text(hr)}, smaller than the crop of {crop}")
    lr_images = {}
    # The HR's own format first, in case a folder has several.
    suffixes = dict.fromkeys([path.suffix, *IMAGE_SUFFIXES])
    for folder, scale in zip(what.lr, what.scales, strict=False):
        candidates = [folder / f"{path.stem}{mark}{suffix}" for mark in (f"x{scale}", "") for suffix in suffixes]
        lr_path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
        try:
            lr = lr_images[scale] = read_image(lr_path)
        except BadImageError as error:
            names = [candidate.name for candidate in candidates]
            hint = "" if lr_path.is_file() else name_hint(names, os.listdir(folder))
            raise BadImageError(f"cannot be paired: its LR {lr_path} {error}{hint}") from error
        turned = turned_hint(pair := Pair(ImageSource(path, path.stem), ImageSource(lr_path, lr_path.stem)))
        if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
            raise BadImageError(
                f"is {size_text(hr)}, expected {scale} times its LR {lr_path} of {size_text(lr)}{turned}"
            )
        for problem in read_pair(pair, scale, None)[0] if turned else []:
            if problem.kind == "orientation":
                raise BadImageError(f"cannot be paired: {problem.text}")
    records: dict[tuple[int, RecordForm], list[Record]] = {(scale, form): [] for _, scale, form in what.outputs()}
    for index, (y, x) in enumerate(what.window.corners(hr.shape)):
        tiles = {1: hr[y : y + crop, x : x + crop]}
        for scale in what.scales:
            if scale in lr_images:
                # Whole pixels, also of the last window: step, crop and the HR's sides are multiples of the scale.
                tiles[scale] = lr_images[scale][y // scale : (y + crop) // scale, x // scale : (x + crop) // scale]
            else:
                # The kernel sees a mirror image at this border; with DIV2K's own LR (above) it saw the neighbourhood.
                tiles[scale] = downsample(tiles[1], scale)
        for (scale, form), made in records.items():
            made.append(make_record(form, subimage_key(path.stem, index), tiles[scale], compression))
    return [records[scale, form] for _, scale, form in what.outputs()]


def _named(folder: Path) -> Path:
    """Resolve ``.`` and ``..`` so that the path ends with the folder's name."""
    return folder if folder.name not in ("", "..") else folder.resolve()
