"""The metrics of all tables: PSNR and SSIM on RGB and Y, LPIPS with both backbones."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import size_text
from dp_basicsr.metrics.lpips_metric import calculate_lpips, why_not

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import get_root_logger
from numpy.typing import NDArray

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Metric:
    """How a metric is formatted: its label, its decimal places, and whether higher is better."""

    label: str
    digits: int
    higher_is_better: bool

    def text(self, value: float | None, sign: bool = False) -> str:
        """Format ``value`` for a table; None is n/a."""
        return "n/a" if value is None else f"{value:{'+' if sign else ''}.{self.digits}f}"


METRICS = MappingProxyType(
    {
        "psnr_rgb": Metric("PSNR RGB [dB]", 2, True),
        "psnr_y": Metric("PSNR Y [dB]", 2, True),
        "ssim_rgb": Metric("SSIM RGB", 4, True),
        "ssim_y": Metric("SSIM Y", 4, True),
        "lpips_alex": Metric("LPIPS AlexNet", 4, False),
        "lpips_vgg": Metric("LPIPS VGG-16", 4, False),
    }
)


def measure(
    result: NDArray[np.uint8], gt: NDArray[np.uint8], crop_border: int, metrics: tuple[str, ...] = tuple(METRICS)
) -> Scores:
    """Measure one result image against its original.

    Args:
        result: ``(H, W, 3)`` BGR or ``(H, W)`` gray, uint8. Gray counts as three equal channels, as in BasicSR, which
            reads every file as colour.
        gt: Same height and width as ``result``.
        crop_border: Pixels cropped from every border (the paper: 4 at x4, the scale in general).
        metrics: Keys of ``METRICS``.

    Returns:
        Each metric's value; infinite PSNR for identical images; None for LPIPS if its backbone is not available.

    Raises:
        UserError: The sizes differ, or less than SSIM's window of 11 pixels is left inside the border.
    """
    if result.shape[:2] != gt.shape[:2]:
        raise UserError(f"expected a result of {size_text(gt)} pixels, the original's size; got {size_text(result)}")
    if min(gt.shape[:2]) < 2 * crop_border + 11:
        raise UserError(f"an image of {size_text(gt)} pixels has no 11 x 11 window inside a border of {crop_border}")
    pair = in_colour(result), in_colour(gt)
    return {name: _one(name, pair, crop_border) for name in metrics}


def missing_metrics(metrics: tuple[str, ...]) -> dict[str, str]:
    """Return the ``metrics`` that cannot be computed on this machine, with the reasons."""
    reasons = {name: why_not(name.removeprefix("lpips_"), "imagenet") for name in metrics if name.startswith("lpips_")}
    return {name: reason for name, reason in reasons.items() if reason}


def drop_unavailable(opt: dict[str, Any]) -> None:
    """Remove the metrics that cannot be computed here from ``val: metrics:`` and log the reason.

    BasicSR sums every metric over the images and keeps the best sum, so a missing value would look like a result. The
    images are split over the processes: a metric that one process cannot compute is dropped on all. Collective call.

    Raises:
        UserError: An LPIPS entry names an unknown backbone.
    """
    metrics = (opt.get("val") or {}).get("metrics") or {}
    for name, metric in list(metrics.items()):
        if metric["type"] != calculate_lpips.__name__:
            continue
        if any(all_gather(why_not(metric.get("net", "alex"), metric.get("weights", "imagenet")))):
            get_root_logger().warning(f"val: metrics: {name} is skipped")
            del metrics[name]


def in_colour(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a gray or colour image to ``(H, W, 3)``."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def _one(name: str, pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], crop_border: int) -> float | None:
    kind, variant = name.split("_")
    if kind == "lpips":
        return None if why_not(variant, "imagenet") else calculate_lpips(*pair, crop_border, net=variant)
    function = calculate_psnr if kind == "psnr" else calculate_ssim
    return float(function(*pair, crop_border, test_y_channel=variant == "y"))
