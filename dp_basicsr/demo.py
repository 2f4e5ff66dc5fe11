"""The demo: the whole path in small, on photographs that need no download. ``scripts/demo.py`` runs it step by step."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.data.images import read_image
from dp_basicsr.data.imresize import imresize, mod_crop
from dp_basicsr.errors import UserError

import cv2
import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3), BGR, 0 to 255

DATA = Path("datasets/demo")
OUTPUT = Path("results/demo")
SCALE = 4

# Colour photographs in the scikit-image wheel (which BasicSR needs); the held-out ones are never trained on.
TRAINING = (
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
HELD_OUT = ("astronaut.png", "chelsea.png")

# Where the picture's crops are: (top, left) of 96 x 96 pixels of the original.
CROP = 96
CROPS = {"astronaut": (64, 176), "chelsea": (88, 128)}

# One row of the table: name, and the function of (result, original).
METRICS: Mapping[str, Any] = {
    "PSNR RGB": lambda sr, gt: calculate_psnr(sr, gt, crop_border=SCALE),
    "PSNR Y": lambda sr, gt: calculate_psnr(sr, gt, crop_border=SCALE, test_y_channel=True),
    "SSIM RGB": lambda sr, gt: calculate_ssim(sr, gt, crop_border=SCALE),
    "SSIM Y": lambda sr, gt: calculate_ssim(sr, gt, crop_border=SCALE, test_y_channel=True),
}


def write_photographs(folder: Path = DATA) -> None:
    """Copy the photographs as PNG: ``folder/HR`` to train on, ``folder/test/GT`` (cropped to a multiple of 4) held out.

    Raises:
        UserError: This scikit-image does not carry them.
    """
    import skimage

    source = Path(skimage.__file__).parent / "data"
    for names, target in ((TRAINING, folder / "HR"), (HELD_OUT, folder / "test" / "GT")):
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (source / name).is_file():
                raise UserError(f"expected the photograph {name} in {source}: install scikit-image's wheel from PyPI")
            photograph = mod_crop(read_image(source / name), SCALE)
            cv2.imwrite(str(target / f"{Path(name).stem}.png"), photograph)


def prepare_photographs(folder: Path = DATA) -> None:
    """Make the demo's data by the real scripts, anew.

    ``folder`` then has ``HR_sub.lmdb`` and ``LR_bicubic_X4_sub.lmdb`` to train on, ``test/GT`` and ``test/LRbicx4``.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_photographs(folder)
    run("scripts/extract_subimages.py", "--input", folder / "HR", "--crop-size", 160, "--step", 80)
    run("scripts/make_lr.py", "--input", folder / "test/GT", "--output", folder / "test/LRbicx4", "--scale", SCALE)


def run(*command: object) -> None:
    """Show a command as its user would type it, and run it from the current folder.

    Raises:
        UserError: It failed; its own message is on the screen already.
    """
    words = [str(word) for word in command]
    print(f"\n$ python {' '.join(words)}", flush=True)
    if subprocess.run([sys.executable, *words], check=False).returncode != 0:
        raise UserError(f"{words[0]} failed; see above")


def read_results(folders: Mapping[str, Path]) -> dict[str, dict[str, Image]]:
    """Each held-out image by name: LR, bicubic, one result for each folder (by its label), and the original."""
    images = {}
    for path in sorted((DATA / "test/GT").glob("*.png")):
        lr = read_image(DATA / "test/LRbicx4" / path.name)
        results = {label: read_image(next(folder.glob(f"{path.stem}_*.png"))) for label, folder in folders.items()}
        images[path.stem] = {"LR": lr, "Bicubic": imresize(lr, SCALE), **results, "Original": read_image(path)}
    return images


def metrics_table(images: Mapping[str, Mapping[str, Image]]) -> str:
    """PSNR and SSIM of each method on each image and on average, on RGB and on Y, 4 pixels cropped."""
    methods = [name for name in next(iter(images.values())) if name not in ("LR", "Original")]
    rows = [f"{'image':<12}{'method':<12}" + "".join(f"{name:>10}" for name in METRICS)]
    values = []
    for name, shown in images.items():
        values.append([[metric(shown[method], shown["Original"]) for metric in METRICS.values()] for method in methods])
        rows += [_row(name, method, line) for method, line in zip(methods, values[-1], strict=True)]
    rows += [_row("average", method, line) for method, line in zip(methods, np.mean(values, axis=0), strict=True)]
    return "\n".join(rows)


def _row(image: str, method: str, values: Sequence[float]) -> str:
    return f"{image:<12}{method:<12}" + "".join(
        f"{value:>10.{2 if name.startswith('PSNR') else 4}f}" for name, value in zip(METRICS, values, strict=True)
    )


def draw_comparison(images: Mapping[str, Mapping[str, Image]], note: str, path: Path) -> None:
    """One picture: each original with its crop marked, and that crop of LR, bicubic, each result and the original."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    columns = 1 + len(next(iter(images.values())))
    size = (2.6 * columns, 3.1 * len(images))
    figure, axes = pyplot.subplots(len(images), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (name, shown) in zip(axes, images.items(), strict=True):
        top, left = CROPS[name]
        row[0].imshow(shown["Original"][..., ::-1])
        row[0].add_patch(patches.Rectangle((left, top), CROP, CROP, fill=False, edgecolor="red", linewidth=2))
        row[0].set_title(name)
        for axis, (label, image) in zip(row[1:], shown.items(), strict=True):
            step = SCALE if label == "LR" else 1
            crop = image[top // step : (top + CROP) // step, left // step : (left + CROP) // step]
            axis.imshow(crop[..., ::-1], interpolation="nearest")
            axis.set_title(label)
            if label not in ("LR", "Original"):
                axis.set_title(f"{label}\n{METRICS['PSNR RGB'](image, shown['Original']):.2f} dB (RGB)")
        for axis in row:
            axis.axis("off")
    figure.supxlabel(note, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
