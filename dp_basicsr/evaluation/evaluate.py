"""Measure the images of any methods on any test sets."""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from logging import getLogger
from pathlib import Path

from dp_basicsr.data.imresize import downsample, imresize, mod_crop
from dp_basicsr.data.preparation.likeness import other_pictures, thumbnails_of
from dp_basicsr.errors import UserError, first_of, shorten
from dp_basicsr.evaluation.matching import Method, TestSet
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.opening import opened, read_bytes, webp_chunks
from dp_basicsr.images.strict import MAX_PIXELS, read_image, size_text
from dp_basicsr.metrics import Scores, measure, missing_metrics
from dp_basicsr.options.metrics import DEFAULT, METRICS
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.pool import available_cpus

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Measured:
    """One image of one method: its file (None if computed) and its metrics."""

    set_name: str
    image: str
    method: str
    gt: Path
    lr: Path | None
    result: Path | None
    scores: Scores
    checksum: int | None = None  # of the pixels of result and original, where they are files


@dataclass(frozen=True)
class Evaluation:
    """All results of an evaluation and its settings."""

    scale: int  # HR size divided by LR size
    metrics: tuple[str, ...]  # keys of ``METRICS``, in the order of the tables
    missing: dict[str, str]  # metrics that could not be computed, with the reason
    images: tuple[Measured, ...]  # ordered by set, image, method
    lossy: dict[str, str] = field(default_factory=dict)  # methods whose files are not what was computed, with formats

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(dict.fromkeys(image.set_name for image in self.images))

    @property
    def methods(self) -> list[str]:
        """Names of the methods."""
        return list(dict.fromkeys(image.method for image in self.images))

    @property
    def original(self) -> str:
        """What pictures call the original: the name of no method."""
        return next((name for name in ("Original", "GT") if name not in self.methods), "Original (GT)")

    def of(self, set_name: str, method: str) -> list[Measured]:
        """Return a method's images of a set."""
        return [image for image in self.images if (image.set_name, image.method) == (set_name, method)]

    def average(self, set_name: str, method: str) -> Scores:
        """Average each metric over a set, PSNR in decibels as usual, without the images of ``left_out``.

        If that leaves none: inf or None, where all values are.
        """
        scores: Scores = {}
        for name in self.metrics:
            out = {image.image for image in self.left_out(set_name, name)}
            values = {image.image: image.scores[name] for image in self.of(set_name, method)}
            used = [value for image, value in values.items() if image not in out and value is not None]
            # If every image is perfect, the mean is infinite, not missing.
            infinite = not used and set(values.values()) == {math.inf}
            scores[name] = math.inf if infinite else sum(used) / len(used) if used else None
        return scores

    def left_out(self, set_name: str, metric: str) -> list[Measured]:
        """Return what has no finite value of a metric: its images of the set are in no method's mean.

        So all means are over the same images, and one perfect image (infinite PSNR) does not hide the others.
        """
        values = [(image, image.scores[metric]) for image in self.images if image.set_name == set_name]
        return [image for image, value in values if value is None or not math.isfinite(value)]

    def title(self, set_name: str) -> str:
        """Return the name of a set with its number of images."""
        count = len(self.of(set_name, self.methods[0]))
        return f"{set_name} ({count} image{'' if count == 1 else 's'})"

    def notes(self) -> list[str]:
        """Return what a reader of the means must know: metrics and images that are not in them, and lossy files."""
        notes = [f"{METRICS[metric].label} is n/a: {reason}" for metric, reason in self.missing.items()]
        for name, metric in product(self.sets, self.metrics):
            info, lacking, count = METRICS[metric], self.left_out(name, metric), len(self.of(name, self.methods[0]))
            out = list(dict.fromkeys(image.image for image in lacking))
            methods = {image.method for image in lacking}
            who = "every method" if len(methods) == len(self.methods) else shorten(sorted(methods))
            averages = [self.average(name, method)[metric] for method in self.methods]
            # If all values are infinite, the cell says so itself.
            if not out or metric in self.missing or (len(out) == count and None not in averages):
                continue
            used = f"the mean over {count - len(out)} of {count} images" if len(out) < count else "n/a"
            needs = f" (it needs {info.enough} x {info.side} x {info.side} pixels)" if info.side > 1 else ""
            notes.append(f"{info.label} of {name} is {used}; without a finite value for {who}{needs}: {shorten(out)}.")
        # By their paths: the files may be gone.
        pairs = [(image.method, image.result, image.gt) for image in self.images if self.metrics != ("niqe",)]
        same = {method for method, result, gt in pairs if result and result.resolve() == gt.resolve()}
        notes += [f"{name} has files that are the originals, measured against themselves." for name in sorted(same)]
        return notes + [
            f"{method} is measured from lossy files ({kinds}), which are not what was computed."
            for method, kinds in self.lossy.items()
        ]


def evaluate(
    sets: Sequence[TestSet], methods: Sequence[Method], scale: int = 4, metrics: tuple[str, ...] = DEFAULT
) -> Evaluation:
    """Measure the images of ``methods`` on ``sets``; originals are cropped to a multiple of ``scale``.

    Missing or unreadable images, those of a wrong size, and two sets or methods of one name are a UserError.
    """
    if scale < 1:
        raise UserError(f"scale: expected a whole number from 1, got {scale}")
    for what, names in {"test set": [one.name for one in sets], "method": [one.name for one in methods]}.items():
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two of the {what}s are called {', '.join(twice)}: give them different names, NAME=DIR")
    # Match every name before reading the first image: measuring may take long.
    tasks = []
    for test_set in sets:
        results = {method.name: method.images(test_set) for method in methods}
        for image, gt in test_set.gt.items():
            lr = test_set.lr[image] if test_set.lr else None
            tasks += [
                Measured(test_set.name, image, name, gt, lr, files.get(image), {}) for name, files in results.items()
            ]
    missing = missing_metrics(metrics)
    colourless, failed = set[Path | None](), dict[str, UserError]()
    shown = defaultdict[tuple[str, str], dict[str, NDArray[np.float32]]](dict)

    def score(task: Measured) -> Measured:
        try:
            result, gt = read_pair(task, scale)
        except UserError as error:
            failed[str(error)] = error
        # The others are only read, so that all that fail are named.
        if failed:
            return task
        if is_coloured(gt) and not is_coloured(result):
            colourless.add(task.result)
        shown[task.method, task.set_name][task.image] = thumbnails_of(gt, result)
        # As many border pixels as the scale, as in the paper: 4 at x4.
        scores = measure(result, gt, scale, metrics)
        return replace(task, scores=scores, checksum=None if task.result is None else checksum_of(result, gt))

    # Threads, because OpenCV, NumPy and torch release the GIL.
    with ThreadPoolExecutor(available_cpus()) as pool:
        try:
            images = tuple(tqdm(pool.map(score, tasks), total=len(tasks), unit="image", disable=None))
        # Also Ctrl-C: without this, leaving the pool would wait for all images.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise UserError("\n".join(first_of(sorted(failed)))) from next(iter(failed.values())).__cause__
    for method, name in sorted(shown):
        pairs = sorted(shown[method, name].items())
        if others := [f"{image} shows what {other} does" for image, other in other_pictures(pairs) if other]:
            getLogger("basicsr").warning(f"{name}: images of {method} have the names of others: {shorten(others)}")
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for measured in images:
        if measured.result is not None:
            found = lossy_format(measured.result), "gray of coloured originals" * (measured.result in colourless)
            for kind in filter(None, found):
                kinds[measured.method][kind] += 1
    lossy = {name: ", ".join(f"{count} {kind}" for kind, count in sorted(kinds[name].items())) for name in kinds}
    return Evaluation(scale, metrics, missing, images, lossy)


def read_pair(image: Measured, scale: int) -> tuple[Image, Image]:
    """Return the result and the original, cropped to the same size: ``(H, W[, 3])`` BGR uint8.

    A file that cannot be read, has changed since it was measured, or has another size is a UserError.
    """
    whole = read_file(image.gt)
    gt = mod_crop(whole, scale)
    if image.result is None:
        return bicubic(gt, read_file(image.lr) if image.lr else None, scale, image.image), gt
    result = read_file(image.result)
    # Some methods publish uncropped results.
    if result.shape[:2] == whole.shape[:2]:
        result = mod_crop(result, scale)
    if result.shape[:2] != gt.shape[:2]:
        # Published results are often of originals that were cropped to multiples of 12.
        cut = "the original and the other results" if result.shape[:2] < gt.shape[:2] else "it"
        raise UserError(
            f"{image.result}: expected {size_text(gt)} pixels (the original, cropped to a multiple of {scale}), "
            f"got {size_text(result)}: upscale LR that `{advise('data lr')}` makes, or cut {cut} to the same size"
        )
    if image.checksum is not None and image.checksum != checksum_of(result, gt):
        again = f"`{advise('evaluate', '--overwrite')}` and test.py measure it again"
        raise UserError(f"{image.result}, or its original, has changed since it was measured; {again}")
    return result, gt


def is_coloured(image: Image) -> bool:
    """Return whether the colours of some pixel differ."""
    return image.ndim == 3 and bool((image != image[..., :1]).any())


def checksum_of(result: Image, gt: Image) -> int:
    """Return a number that tells an image and its original from others."""
    return zlib.crc32(gt.tobytes(), zlib.crc32(result.tobytes()))


def bicubic(gt: Image, lr: Image | None, scale: int, name: str) -> Image:
    """Upscale ``lr`` by bicubic to the size of ``gt``; without ``lr``, downsample ``gt`` like MATLAB first.

    Upscaling uses floating point and rounds once, like BasicSR; rounding between the two passes costs 0.003 dB.
    """
    small = downsample(gt, scale) if lr is None else lr
    if (small.shape[0] * scale, small.shape[1] * scale) != gt.shape[:2]:
        raise UserError(
            f"LR of {name}: expected 1/{scale} (--scale) of the original's {size_text(gt)}, got {size_text(small)}: "
            f"`{advise('data lr')}` makes it"
        )
    return np.clip(np.floor(imresize(small.astype(np.float64), scale) + 0.5), 0, 255).astype(np.uint8)


def read_file(path: Path) -> Image:
    """Read an image of a test set, gray or colour, 16 bits as validation does; an unreadable file is a UserError."""
    try:
        return read_image(path, of_16_bits=True)
    except BadImageError as error:
        raise UserError(f"{path} {error}") from error


def lossy_format(path: Path) -> str:
    """Return the format of a file that does not hold every pixel exactly, "" for a lossless file."""
    data = read_bytes(path)
    # By content, because a file's suffix may be wrong.
    with opened(data, MAX_PIXELS) as (image, _):
        kind, compression = str(image.format), str(image.info.get("compression"))
        palette = image.getpalette() if image.mode == "P" and kind != "GIF" else None
    # One of grays holds every gray exactly.
    if palette and (palette[::3] != palette[1::3] or palette[::3] != palette[2::3]):
        return f"{kind} of at most 256 colours"
    if kind == "TIFF":
        return "JPEG in TIFF" if "jpeg" in compression else ""
    if kind == "WEBP":
        return "" if b"VP8L" in webp_chunks(data) else "lossy WebP"
    return kind if kind in ("JPEG", "MPO", "GIF") else ""
