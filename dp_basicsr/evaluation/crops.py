"""Figs. 5 to 9 of the paper: one crop of one image, for each method and the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.imresize import mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import Evaluation, Image, Measured, read_file, read_pair
from dp_basicsr.evaluation.figures import picture_format, save_figure
from dp_basicsr.images.files import name_hint
from dp_basicsr.images.strict import in_srgb, size_text
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.metrics.scores import in_colour


@dataclass(frozen=True)
class Crop:
    """A rectangle in pixels of the original: left, top, width, height."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Parse ``left,top,width,height``; anything else is a UserError."""
        try:
            left, top, width, height = (int(number) for number in text.split(","))
        except ValueError:
            raise UserError(f"crop: expected left,top,width,height in pixels, got {text!r}") from None
        return cls(left, top, width, height)

    def of(self, image: Image) -> Image:
        """Crop an image to the rectangle."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def check(self, image: Image) -> None:
        """Raise a UserError if the rectangle is not inside the image."""
        fits = self.left + self.width <= image.shape[1] and self.top + self.height <= image.shape[0]
        if not (fits and min(self.left, self.top) >= 0 and min(self.width, self.height) > 0):
            raise UserError(
                f"crop: {self.left},{self.top},{self.width},{self.height} is not inside the {size_text(image)} pixels"
            )


def images_of(evaluation: Evaluation, image: str, set_name: str = "") -> list[Measured]:
    """Return one image of every method; a UserError if there is no such image, or in several sets."""
    names = sorted({result.image for result in evaluation.images if set_name in ("", result.set_name)})
    name = image if image in names else Path(image).stem
    matching = [result for result in evaluation.images if result.image == name and set_name in ("", result.set_name)]
    sets = sorted({result.set_name for result in matching})
    if len(sets) != 1:
        missing = f"not found; expected {', '.join(names)}{name_hint([image], names)}"
        reason = f"is in {', '.join(sets)}: choose one by --set" if sets else missing
        raise UserError(f"image {image!r} {reason}")
    return matching


def compare_crops(images: Sequence[Measured], evaluation: Evaluation, crop: Crop, out: Path) -> None:
    """Draw an image with the crop marked, and the crop of each method, with its metrics, and of the original.

    ``images`` are the same image of every method, in the order of the figure.
    """
    gt = in_colour(in_srgb(mod_crop(read_file(images[0].gt), evaluation.scale), images[0].gt))
    crop.check(gt)
    # After the checks, because matplotlib takes a second to import, and is an extra.
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    picture_format(out)
    shown = {}
    for measured in images:
        result = in_srgb(read_pair(measured, evaluation.scale)[0], measured.result or measured.lr, measured.gt)
        shown[measured.method] = in_colour(result), measured.scores
    # Two rows of crops, the original's included; the division rounds up.
    columns = max(2, -(-(len(shown) + 1) // 2))
    width = min(2.3 * gt.shape[1] / gt.shape[0] * 2, 200)  # inches: matplotlib draws less than 65,536 pixels
    figure = Figure(figsize=(width + 2.3 * columns, 5.8), layout="constrained")
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[width, *[2.3] * columns])
    whole = figure.add_subplot(grid[:, 0])
    whole.imshow(gt[..., ::-1])
    whole.add_patch(Rectangle((crop.left, crop.top), crop.width, crop.height, fill=False, edgecolor="red", linewidth=2))
    # A name is no formula.
    whole.set_title(f"{images[0].image} ({images[0].set_name})", parse_math=False)
    # The original comes last, as in the paper's figures.
    panels: Mapping[str, tuple[Image, Scores]] = shown | {evaluation.original: (gt, {})}
    whole.axis("off")
    for number, (name, (image, scores)) in enumerate(panels.items()):
        panel = figure.add_subplot(grid[number // columns, 1 + number % columns])
        panel.imshow(crop.of(image)[..., ::-1], interpolation="nearest")
        panel.set_title("\n".join([name, *score_lines(scores)]), fontsize=9, parse_math=False)
        panel.axis("off")
    lossy = (f"{method} is of lossy files ({kinds})." for method, kinds in evaluation.lossy.items())
    figure.supxlabel("\n".join(["Metrics are for the full image.", *lossy]), fontsize=8, parse_math=False)
    save_figure(figure, out, dpi=150, bbox_inches="tight")


def score_lines(scores: Scores) -> list[str]:
    """Format the metrics, one per line, with their variants: ``PSNR 26.69 (RGB) 28.43 (Y)``."""
    lines: dict[str, str] = {}
    for name, value in scores.items():
        if value is not None:
            label = METRICS[name].label.partition(" [")[0]
            # Keys with a variant have an underscore: psnr_rgb and psnr_y share a line, gmsd has its own.
            kind, _, variant = label.partition(" ") if "_" in name else (label, "", "")
            lines[kind] = f"{lines.get(kind, kind)} {METRICS[name].text(value)}" + (f" ({variant})" if variant else "")
    return list(lines.values())
