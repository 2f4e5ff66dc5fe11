"""Measure the images of any methods on any test sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.imresize import downsample, imresize, mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.matching import Method, TestSet
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.strict import read_image, size_text
from dp_basicsr.metrics import METRICS, Scores, measure, missing_metrics
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


@dataclass(frozen=True)
class Evaluation:
    """All results of an evaluation and its settings.

    Attributes:
        scale: HR size divided by LR size.
        metrics: Keys of ``METRICS``, in the order of the tables.
        missing: Metrics that could not be computed, with the reason.
        images: Results ordered by set, image, method.
    """

    scale: int
    metrics: tuple[str, ...]
    missing: dict[str, str]
    images: tuple[Measured, ...]

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(dict.fromkeys(image.set_name for image in self.images))

    @property
    def methods(self) -> list[str]:
        """Names of the methods."""
        return list(dict.fromkeys(image.method for image in self.images))

    def of(self, set_name: str, method: str) -> list[Measured]:
        """Return a method's images of a set."""
        return [image for image in self.images if (image.set_name, image.method) == (set_name, method)]

    def average(self, set_name: str, method: str) -> Scores:
        """Average each metric over a set, PSNR in decibels as usual. None if a value is missing."""
        images = self.of(set_name, method)
        return {name: _mean([image.scores[name] for image in images]) for name in self.metrics}


def evaluate(
    sets: Sequence[TestSet], methods: Sequence[Method], scale: int = 4, metrics: tuple[str, ...] = tuple(METRICS)
) -> Evaluation:
    """Measure the images of ``methods`` on ``sets``; originals are cropped to a multiple of ``scale``.

    Raises:
        UserError: Images are missing, unreadable or of the wrong size, or two sets or methods share a name.
    """
    _check_names("test set", [test_set.name for test_set in sets])
    _check_names("method", [method.name for method in methods])
    tasks = list(_tasks(sets, methods))  # match every name before reading the first image
    missing = missing_metrics(metrics)
    with ThreadPoolExecutor(available_cpus()) as pool:  # OpenCV, NumPy and torch release the GIL
        try:
            scored = pool.map(lambda task: _measure(task, scale, metrics), tasks)
            images = tuple(tqdm(scored, total=len(tasks), unit="image", disable=None))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Evaluation(scale, metrics, missing, images)


def read_pair(image: Measured, scale: int) -> tuple[Image, Image]:
    """Return the result and the original, cropped to the same size: ``(H, W[, 3])`` BGR uint8.

    Raises:
        UserError: A file cannot be read, or the result's size matches neither the original nor the cropped original.
    """
    whole = read_file(image.gt)
    gt = mod_crop(whole, scale)
    if image.result is None:
        return bicubic(gt, read_file(image.lr) if image.lr else None, scale, image.image), gt
    result = read_file(image.result)
    if result.shape[:2] == whole.shape[:2]:  # some methods publish uncropped results
        result = mod_crop(result, scale)
    if result.shape[:2] != gt.shape[:2]:
        raise UserError(
            f"{image.result}: expected {size_text(gt)} pixels (the original, cropped to a multiple of {scale}), "
            f"got {size_text(result)}"
        )
    return result, gt


def bicubic(gt: Image, lr: Image | None, scale: int, name: str) -> Image:
    """Upscale ``lr`` by bicubic to the size of ``gt``; without ``lr``, downsample ``gt`` like MATLAB first.

    Upscaling uses floating point and rounds once, like BasicSR; rounding between the two passes costs 0.003 dB.
    """
    small = downsample(gt, scale) if lr is None else lr
    if (small.shape[0] * scale, small.shape[1] * scale) != gt.shape[:2]:
        raise UserError(f"LR of {name}: expected 1/{scale} of the original's {size_text(gt)}, got {size_text(small)}")
    return np.clip(np.floor(imresize(small.astype(np.float64), scale) + 0.5), 0, 255).astype(np.uint8)


def _tasks(sets: Sequence[TestSet], methods: Sequence[Method]) -> Iterator[Measured]:
    for test_set in sets:
        results = {method.name: method.images(test_set) for method in methods}
        for image, gt in test_set.gt.items():
            for name, files in results.items():
                lr = test_set.lr[image] if test_set.lr else None
                yield Measured(test_set.name, image, name, gt, lr, files.get(image), {})


def _measure(image: Measured, scale: int, metrics: tuple[str, ...]) -> Measured:
    scores = measure(*read_pair(image, scale), scale, metrics)
    return Measured(image.set_name, image.image, image.method, image.gt, image.lr, image.result, scores)


def read_file(path: Path) -> Image:
    """Read an image of a test set, gray or colour; an unreadable file is a UserError with its path."""
    try:
        return read_image(path, gray=True)
    except BadImageError as error:
        raise UserError(f"{path} {error}") from error


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _check_names(what: str, names: Sequence[str]) -> None:
    if not names:
        raise UserError(f"expected at least one {what}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two of the {what}s are called {', '.join(twice)}: give them different names, NAME=DIR")
