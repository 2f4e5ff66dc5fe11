"""Figs. 5 to 9 of the paper: one crop of one image, each method beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.imresize import mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import Evaluation, Image, Measured, read_file, read_pair
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.metrics.scores import in_colour, size_text


@dataclass(frozen=True)
class Crop:
    """A rectangle in pixels of the original: left, top, width, height."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Read ``left,top,width,height``; UserError for anything else."""
        try:
            left, top, width, height = (int(number) for number in text.split(","))
        except ValueError:
            raise UserError(f"crop: expected left,top,width,height in pixels, got {text!r}") from None
        return cls(left, top, width, height)

    def of(self, image: Image) -> Image:
        """The rectangle out of an image."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def check(self, image: Image) -> None:
        """Refuse a rectangle that does not lie within the image (UserError)."""
        fits = self.left + self.width <= image.shape[1] and self.top + self.height <= image.shape[0]
        if not (fits and min(self.left, self.top) >= 0 and min(self.width, self.height) > 0):
            raise UserError(
                f"crop: {self.left},{self.top},{self.width},{self.height} does not lie within {size_text(image)} pixels"
            )


def images_of(evaluation: Evaluation, image: str, set_name: str = "") -> list[Measured]:
    """One image of every method.

    Raises:
        UserError: The evaluation has no such image, or in several sets.
    """
    found = [one for one in evaluation.images if one.image == image and set_name in ("", one.set_name)]
    sets = sorted({one.set_name for one in found})
    if len(sets) != 1:
        names = sorted({one.image for one in evaluation.images if set_name in ("", one.set_name)})
        where = f"is in {', '.join(sets)}: choose by --set" if sets else f"is missing; there are {', '.join(names)}"
        raise UserError(f"image {image!r} {where}")
    return found


def compare_crops(images: Sequence[Measured], evaluation: Evaluation, crop: Crop, out: Path) -> None:
    """Draw the whole image with the crop marked, each method's crop with its metrics, and the original's.

    Args:
        images: One image of every method, in the order of the figure.
        evaluation: Where they come from.
        crop: What is shown large.
        out: The picture to write.

    Raises:
        UserError: The crop does not lie within the image, or a file is no longer there.
    """
    gt = in_colour(mod_crop(read_file(images[0].gt), evaluation.scale))
    crop.check(gt)
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shown = {image.method: (in_colour(read_pair(image, evaluation.scale)[0]), image.scores) for image in images}
    columns = max(2, -(-(len(shown) + 1) // 2))
    width = 2.3 * gt.shape[1] / gt.shape[0] * 2
    figure = Figure(figsize=(width + 2.3 * columns, 5.8), layout="constrained")
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[width, *[2.3] * columns])
    whole = figure.add_subplot(grid[:, 0])
    whole.imshow(gt[..., ::-1])
    whole.add_patch(Rectangle((crop.left, crop.top), crop.width, crop.height, fill=False, edgecolor="red", linewidth=2))
    whole.set_title(f"{images[0].image} ({images[0].set_name})")
    panels: Mapping[str, tuple[Image, Scores]] = shown | {"Original": (gt, {})}
    axes = [whole]
    for number, (name, (image, scores)) in enumerate(panels.items()):
        axes.append(figure.add_subplot(grid[number // columns, 1 + number % columns]))
        axes[-1].imshow(crop.of(image)[..., ::-1], interpolation="nearest")
        axes[-1].set_title("\n".join([name, *score_lines(scores)]), fontsize=9)
    for axis in axes:
        axis.axis("off")
    figure.supxlabel("Metrics are those of the whole image.", fontsize=8)
    figure.savefig(out, dpi=150, bbox_inches="tight")


def score_lines(scores: Scores) -> list[str]:
    """PSNR, SSIM and LPIPS, a line each, with what they were measured on: ``PSNR 26.69 (RGB) 28.43 (Y)``."""
    lines: dict[str, str] = {}
    for name, value in scores.items():
        if value is not None:
            kind, variant = METRICS[name].label.partition(" [")[0].split()
            lines[kind] = f"{lines.get(kind, kind)} {METRICS[name].text(value)} ({variant})"
    return list(lines.values())
