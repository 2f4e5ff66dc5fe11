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
from dp_basicsr.evaluation.crops import Crop, images_of
from dp_basicsr.evaluation.evaluate import Evaluation, evaluate, read_file, read_pair
from dp_basicsr.evaluation.figures import save_figure
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.images.strict import read_image
from dp_basicsr.utils.arguments import ROOT

import cv2

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

CROPS = {"astronaut": Crop(176, 64, 96, 96), "chelsea": Crop(128, 88, 96, 96)}  # in the picture


def prepare_photographs() -> None:
    """Create the demo's data with the project's own scripts, replacing ``DATA``.

    The folder then has ``HR_sub.lmdb`` and ``LR_bicubic_X4_sub.lmdb`` for training, ``test/GT`` and ``test/LRbicx4``.
    """
    import skimage

    shutil.rmtree(DATA, ignore_errors=True)
    source = Path(skimage.__file__).parent / "data"
    for names, target in ((TRAINING, DATA / "HR"), (HELD_OUT, DATA / "test" / "GT")):
        target.mkdir(parents=True)
        for name in names:
            if not (source / name).is_file():
                raise UserError(f"expected the photograph {name} in {source}: install scikit-image's wheel from PyPI")
            # As the originals of the benchmarks, whose LR must have whole pixels.
            photograph = mod_crop(read_image(source / name), SCALE)
            cv2.imwrite(str(target / f"{Path(name).stem}.png"), photograph)
    run("scripts/extract_subimages.py", "--input", DATA / "HR", "--crop-size", 160, "--step", 80)
    run("scripts/make_lr.py", "--input", DATA / "test/GT", "--output", DATA / "test/LRbicx4", "--scale", SCALE)


def run(*command: object) -> None:
    """Run a command of ours in the current folder, printed as a user would type it; a failure is a UserError."""
    program, *words = map(str, command)
    # Relative, as a user would type it from here.
    words.insert(0, os.path.relpath(ROOT / program))
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # Waiting threads yield their core: spinning, the default, is many times slower on a shared machine.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if subprocess.run([sys.executable, *words], check=False, env=environment).returncode != 0:
        raise UserError(f"{words[0]} failed; see above")


def compare_results(folders: Mapping[str, Path], note: str, path: Path) -> Evaluation:
    """Measure bicubic and the results in each folder (by its label) on the held-out photographs, and draw them.

    The picture has each original with its crop marked, and the crop of LR, each method's result and the original.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Rectangle

    held_out = find_test_set(DATA / "test/GT", DATA / "test/LRbicx4", "held-out photographs")
    methods = [Method(BICUBIC, None), *(Method(label, folder) for label, folder in folders.items())]
    evaluation = evaluate([held_out], methods, SCALE, ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y"))
    columns = 3 + len(evaluation.methods)
    figure = Figure(figsize=(2.6 * columns, 3.1 * len(CROPS)), layout=ConstrainedLayoutEngine(hspace=0.06))
    for row, (name, crop) in zip(figure.subplots(len(CROPS), columns), CROPS.items(), strict=True):
        results = images_of(evaluation, name)
        original = read_pair(results[0], SCALE)[1]
        small = Crop(*(pixels // SCALE for pixels in (crop.left, crop.top, crop.width, crop.height)))
        panels = {name: original, "LR": small.of(read_file(DATA / "test/LRbicx4" / f"{name}.png"))}
        for result in results:
            title = f"{result.method}\n{result.scores['psnr_rgb']:.2f} dB (RGB)"
            panels[title] = crop.of(read_pair(result, SCALE)[0])
        panels["Original"] = crop.of(original)
        for axis, (title, image) in zip(row, panels.items(), strict=True):
            axis.imshow(image[..., ::-1], interpolation="nearest")
            axis.set_title(title)
            axis.axis("off")
        corner = crop.left, crop.top
        row[0].add_patch(Rectangle(corner, crop.width, crop.height, fill=False, edgecolor="red", linewidth=2))
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path, dpi=130, bbox_inches="tight", pad_inches=0.1)
    return evaluation
