"""Extract the training data from HR images: sub-images and their LR, as LMDBs or PNG folders."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dp_basicsr.data.preparation.jobs import PrepJob, PrepReport, commit_all, process_images
from dp_basicsr.data.preparation.records import RecordForm, RecordSink, check_keys, check_stems
from dp_basicsr.data.preparation.subimages import CutImage, ImageTask, Window, cut_image, subimage_key
from dp_basicsr.data.preparation.writers import FolderWriter, LmdbWriter
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES, find_images, left_out
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.staging import refuse_existing, refuse_input

OutputForm = Literal["lmdb", "png", "both"]

DIV2K_HR = Path("datasets/DIV2K/DIV2K_train_HR")
_MAX_WINDOWS = 9999  # per image, limited by the length of the keys


@dataclass(frozen=True)
class Extraction:
    """What to extract and where to put it. The defaults are those for DIV2K.

    Attributes:
        hr: Folder of HR images (8-bit colour).
        output: Output folder; None is the parent of ``hr``.
        window: Crop size, step and threshold.
        scales: Scales of the LR images to make for each sub-image.
        lr: Folders of existing LR images to cut instead of downsampling, one per scale in the same order. Their files
            are named like the HR files or with DIV2K's suffix ``x<scale>`` (``0001x4.png``).
        form: LMDBs, PNG folders or both.
        lmdb: Record format of the LMDBs: PNG files or raw pixels.
    """

    hr: Path = DIV2K_HR
    output: Path | None = None
    window: Window = field(default_factory=Window)
    scales: tuple[int, ...] = (4,)
    lr: tuple[Path, ...] = ()
    form: OutputForm = "lmdb"
    lmdb: RecordForm = "png"

    def output_paths(self) -> dict[int, list[Path]]:
        """Return the output paths by scale; 1 is HR.

        ``DIV2K_train_HR_sub.lmdb`` and ``DIV2K_train_LR_bicubic_X4_sub.lmdb`` for DIV2K.
        """
        hr = _named(self.hr)
        folder = hr.parent if self.output is None else self.output
        suffixes = {"lmdb": [".lmdb"], "png": [""], "both": [".lmdb", ""]}[self.form]
        names = {1: hr.name} | {scale: self._lr_name(index) for index, scale in enumerate(self.scales)}
        return {scale: [folder / f"{name}_sub{suffix}" for suffix in suffixes] for scale, name in names.items()}

    def record_form(self, path: Path) -> RecordForm:
        """Return the record format of one of the ``output_paths``."""
        return self.lmdb if path.suffix == ".lmdb" else "png"

    def _lr_name(self, index: int) -> str:
        if not self.lr:
            return f"{re.sub('HR$', 'LR', _named(self.hr).name)}_bicubic_X{self.scales[index]}"
        folder = _named(self.lr[index])
        # DIV2K has one subfolder per scale: DIV2K_train_LR_bicubic/X4
        return f"{_named(folder.parent).name}_{folder.name}" if re.fullmatch("[xX][0-9]+", folder.name) else folder.name

    def check(self) -> None:
        """Raise a UserError if the settings are inconsistent."""
        self.window.check(self.scales)
        if not self.scales or len(set(self.scales)) != len(self.scales) or min(self.scales) < 2:
            raise UserError(f"expected different scales of at least 2, got {list(self.scales)}")
        if self.lr and len(self.lr) != len(self.scales):
            raise UserError(f"expected one LR folder for each scale, got {len(self.lr)} for scales {list(self.scales)}")
        paths = [path for group in self.output_paths().values() for path in group]
        if len(set(paths)) != len(paths):
            raise UserError(f"HR and LR would have the same output path: {', '.join(map(str, paths))}; rename a folder")
        for folder in self.lr:
            # Raises if there is no such folder, or no image in it.
            find_images(folder)


def extract_subimages(what: Extraction, job: PrepJob) -> PrepReport:
    """Decode every image of ``what.hr`` once and write its sub-images in all formats and scales.

    The outputs appear only when all of them are complete.

    Raises:
        UserError: The settings are inconsistent, outputs exist (without ``job.overwrite``), names collide, images
            cannot be used (without ``job.skip_bad``), a worker was killed, or the disk is full.
    """
    if what.hr == DIV2K_HR and not what.hr.is_dir():
        raise UserError(f"no such folder: {what.hr}; run `{advise('data download', 'div2k')}`, or give --input")
    images = find_images(what.hr)
    what.check()
    check_stems(path.name for path in images)
    if what.form != "png":
        # With the longest suffix, because LMDB limits the length of keys.
        check_keys([path.name for path in images], suffix=subimage_key("", _MAX_WINDOWS - 1))
    outputs = what.output_paths()
    destinations = [path for paths in outputs.values() for path in paths]
    refuse_input([what.hr, *what.lr], destinations)
    # Each writer checks its own; here all are checked before the first is opened.
    refuse_existing(destinations, overwrite=job.overwrite)
    forms = tuple(sorted({what.record_form(path) for path in destinations}))

    def task(path: Path, check_only: bool) -> ImageTask:
        return ImageTask(path, what.window, what.scales, _lr_paths(what, path), job.compression, check_only, forms)

    def write(cut: CutImage) -> None:
        for group, sink in sinks:
            sink.write(cut.records[group])

    with ExitStack() as stack:
        sinks = []
        for scale, path in ((scale, path) for scale, paths in outputs.items() for path in paths):
            kind = LmdbWriter if path.suffix == ".lmdb" else FolderWriter
            sink: RecordSink = kind(path, overwrite=job.overwrite)
            stack.callback(sink.discard)
            sinks.append(((scale, what.record_form(path)), sink))
        skipped = process_images(images, task, cut_image, write, job)
        return PrepReport(commit_all([sink for _, sink in sinks]), skipped, left_out(what.hr))


def _named(folder: Path) -> Path:
    """Resolve ``.`` and ``..`` so that the path ends with the folder's name."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def _lr_paths(what: Extraction, hr: Path) -> dict[int, Path]:
    """Return the existing LR image for each scale; a missing one by its expected name (the worker reports it)."""
    paths = {}
    # Not strict, because without LR folders there is nothing to pair.
    for folder, scale in zip(what.lr, what.scales, strict=False):
        # The HR's own format first, in case the folder has several.
        suffixes = dict.fromkeys([hr.suffix, *IMAGE_SUFFIXES])
        names = [folder / f"{hr.stem}{mark}{suffix}" for mark in (f"x{scale}", "") for suffix in suffixes]
        paths[scale] = next((path for path in names if path.is_file()), names[0])
    return paths
