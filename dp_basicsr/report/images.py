"""Images embedded in the report: LR, bicubic, every method's result and the original."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.imresize import downsample, mod_crop
from dp_basicsr.evaluation.evaluate import Evaluation, Image, Measured, bicubic, read_file, read_pair
from dp_basicsr.evaluation.matching import BICUBIC
from dp_basicsr.images.strict import encode, in_srgb
from dp_basicsr.images.write import LONGEST_SIDE
from dp_basicsr.metrics import METRICS
from dp_basicsr.report import LOSSLESS

import cv2

# Total pixels up to which lossless images give a file that a browser opens quickly (about 100 MB).
HANDY = 60e6
SMALLER = 90  # quality above that


@dataclass
class Panel:
    """One version of an image: its name, its metrics as text, and the picture as a data URI."""

    name: str
    scores: str
    uri: str
    nearest: bool = False


@dataclass
class Viewer:
    """All versions of an image; ``left`` and ``right`` are the ones compared first."""

    name: str
    width: int
    height: int
    sources: list[Panel]
    left: str
    right: str


def choose_quality(evaluation: Evaluation) -> int:
    """Choose lossless, unless the page would become too large to open quickly."""
    names = {(image.set_name, image.image): image.gt for image in evaluation.images}
    pixels = sum(math.prod(read_file(path).shape[:2]) for path in names.values())
    return LOSSLESS if pixels * (len(evaluation.methods) + 1) <= HANDY else SMALLER


def make_viewer(images: Sequence[Measured], evaluation: Evaluation, quality: int) -> Viewer:
    """Collect the versions of an image, which ``images`` has of every method, in WebP of a quality (101: lossless)."""
    scale, first = evaluation.scale, images[0]
    gt = mod_crop(read_file(first.gt), scale)
    lr = read_file(first.lr) if first.lr else downsample(gt, scale)
    sources = [Panel("LR (nearest)", "", data_uri(lr, quality, first.lr, first.gt), nearest=True)]
    # Something to compare with, though it was not measured.
    if BICUBIC not in evaluation.methods:
        large = bicubic(gt, lr, scale, first.image)
        sources.append(Panel(BICUBIC, "", data_uri(large, quality, first.lr, first.gt)))
    for image in images:
        texts = []
        for metric, value in image.scores.items():
            if value is not None:
                label, _, unit = METRICS[metric].label.partition(" [")
                words = [*label.split(), METRICS[metric].text(value), unit.rstrip("]")]
                # A metric's name, value and unit stay on one line.
                texts.append("\N{NO-BREAK SPACE}".join(filter(None, words)))
        uri = data_uri(read_pair(image, scale)[0], quality, image.result or image.lr, image.gt)
        sources.append(Panel(image.method, " · ".join(texts), uri))
    sources.append(Panel(evaluation.original, "", data_uri(gt, quality, first.gt)))
    # Without LR, the original and bicubic: the slider begins between bicubic and the last method.
    results = [source.name for source in sources[1:-1] if source.name != BICUBIC]
    return Viewer(first.image, gt.shape[1], gt.shape[0], sources, BICUBIC, (results or [evaluation.original])[-1])


def data_uri(image: Image, quality: int, *files: Path | None) -> str:
    """Encode ``(H, W[, 3])`` BGR uint8, see ``in_srgb``, as a WebP data URI, or as PNG what is too long for WebP."""
    kind = "webp" if max(image.shape[:2]) <= LONGEST_SIDE["WEBP"] else "png"
    data = encode(in_srgb(image, *files), f".{kind}", [cv2.IMWRITE_WEBP_QUALITY, quality] if kind == "webp" else None)
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
