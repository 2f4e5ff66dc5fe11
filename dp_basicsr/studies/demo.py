"""Photographs, table and picture of the demo (``scripts/demo.py``); needs no download."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dp_basicsr.data.imresize import mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import bicubic
from dp_basicsr.evaluation.figures import save_figure
from dp_basicsr.images.strict import read_image
from dp_basicsr.metrics import METRICS, measure
from dp_basicsr.utils.arguments import ROOT

import cv2
import numpy as np
from basicsr.metrics import calculate_psnr
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3), BGR, 0 to 255

DATA = Path("datasets/demo")
OUTPUT = Path("results/demo")
SCALE = 4

# Colour photographs in the scikit-image wheel (a dependency of BasicSR); the held-out ones are not trained on.
TRAINING = (
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
HELD_OUT = ("astronaut.png", "chelsea.png")

# The crops in the picture: (top, left) of 96 x 96 pixels of the original.
CROP = 96
CROPS = {"astronaut": (64, 176), "chelsea": (88, 128)}

# The columns of the table, names of dp_basicsr.metrics.METRICS.
MEASURED = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")


def write_photographs(folder: Path = DATA) -> None:
    """Write the photographs as PNG, cropped to a multiple of 4: ``folder/HR`` to train on, ``folder/test/GT`` held out.

    Raises:
        UserError: The installed scikit-image does not contain them.
    """
    import skimage

    source = Path(skimage.__file__).parent / "data"
    for names, target in ((TRAINING, folder / "HR"), (HELD_OUT, folder / "test" / "GT")):
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (source / name).is_file():
                raise UserError(f"expected the photograph {name} in {source}: install scikit-image's wheel from PyPI")
            # As the originals of the benchmarks, whose LR must have whole pixels.
            photograph = mod_crop(read_image(source / name), SCALE)
            cv2.imwrite(str(target / f"{Path(name).stem}.png"), photograph)


def prepare_photographs() -> None:
    """Create the demo's data with the project's own scripts, replacing ``DATA``.

    The folder then has ``HR_sub.lmdb`` and ``LR_bicubic_X4_sub.lmdb`` for training, ``test/GT`` and ``test/LRbicx4``.
    """
    shutil.rmtree(DATA, ignore_errors=True)
    write_photographs()
    run("scripts/extract_subimages.py", "--input", DATA / "HR", "--crop-size", 160, "--step", 80)
    run("scripts/make_lr.py", "--input", DATA / "test/GT", "--output", DATA / "test/LRbicx4", "--scale", SCALE)


def run(*command: object) -> None:
    """Print a command as a user would type it, and run it in the current folder; its program is relative to ours.

    Raises:
        UserError: The command failed; it has printed its own message.
    """
    program, *words = map(str, command)
    # Relative, as a user would type it from here.
    words.insert(0, os.path.relpath(ROOT / program))
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # Waiting threads yield their core: spinning, the default, is many times slower on a shared machine.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if subprocess.run([sys.executable, *words], check=False, env=environment).returncode != 0:
        raise UserError(f"{words[0]} failed; see above")


def read_results(folders: Mapping[str, Path]) -> dict[str, dict[str, Image]]:
    """Read each held-out image: LR, bicubic, one result from each folder (by its label), and the original."""
    images = {}
    for path in sorted((DATA / "test/GT").glob("*.png")):
        gt, lr = read_image(path), read_image(DATA / "test/LRbicx4" / path.name)
        results = {label: read_image(next(folder.glob(f"{path.stem}_*.png"))) for label, folder in folders.items()}
        images[path.stem] = {"LR": lr, "Bicubic": bicubic(gt, lr, SCALE, path.name), **results, "Original": gt}
    return images


def metrics_table(images: Mapping[str, Mapping[str, Image]]) -> str:
    """Format PSNR and SSIM of each method, on RGB and on Y, per image and on average, 4 border pixels cropped."""
    methods = [name for name in next(iter(images.values())) if name not in ("LR", "Original")]
    scores = {
        (image, method): measure(shown[method], shown["Original"], SCALE, MEASURED)
        for image, shown in images.items()
        for method in methods
    }
    for method in methods:
        lines = [scores[image, method] for image in images]
        scores["average", method] = {name: float(np.mean([line[name] for line in lines])) for name in MEASURED}
    head = f"{'image':<12}{'method':<24}" + "".join(f"{METRICS[name].label:>15}" for name in MEASURED)
    rows = [
        f"{image:<12}{method:<24}" + "".join(f"{METRICS[name].text(line[name]):>15}" for name in MEASURED)
        for (image, method), line in scores.items()
    ]
    return "\n".join([head, *rows])


def draw_comparison(images: Mapping[str, Mapping[str, Image]], note: str, path: Path) -> None:
    """Draw each original with its crop marked, and the crop of LR, bicubic, each result and the original."""
    import matplotlib

    # A backend that needs no display.
    matplotlib.use("Agg")
    from matplotlib import patches, pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = 1 + len(next(iter(images.values())))
    size = (2.6 * columns, 3.1 * len(images))
    layout = ConstrainedLayoutEngine(hspace=0.06)
    figure, axes = pyplot.subplots(len(images), columns, figsize=size, squeeze=False, layout=layout)
    for row, (name, shown) in zip(axes, images.items(), strict=True):
        top, left = CROPS[name]
        row[0].imshow(shown["Original"][..., ::-1])
        row[0].add_patch(patches.Rectangle((left, top), CROP, CROP, fill=False, edgecolor="red", linewidth=2))
        row[0].set_title(name)
        for axis, (label, image) in zip(row[1:], shown.items(), strict=True):
            # The crop is given in pixels of the original.
            step = SCALE if label == "LR" else 1
            crop = image[top // step : (top + CROP) // step, left // step : (left + CROP) // step]
            axis.imshow(crop[..., ::-1], interpolation="nearest")
            axis.set_title(label)
            if label not in ("LR", "Original"):
                psnr = calculate_psnr(image, shown["Original"], crop_border=SCALE)
                axis.set_title(f"{label}\n{psnr:.2f} dB (RGB)")
        for axis in row:
            axis.axis("off")
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path, dpi=130, bbox_inches="tight", pad_inches=0.1)
    pyplot.close(figure)
