"""The metrics that tables know by name: one record each, read by command lines, checks, tables and reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """What the programs know of a metric."""

    label: str  # head of its column
    digits: int  # decimal places
    higher_is_better: bool
    type: str  # in ``val: metrics:``: a function in BasicSR's registry, or ``<library>/<class>``
    keywords: Mapping[str, Any] = field(default_factory=dict)  # arguments beside the images and the border
    side: int = 1  # in pixels, of the blocks that it needs inside the border
    blocks: int = 1  # without which it has no value
    enough: int = 1  # blocks from which tables show its value
    module: str = ""  # whose ``why_not`` says whether it is available; empty for one that always is
    default: bool = False  # whether tables have it unless others are asked for

    @property
    def better(self) -> str:
        """Return ``better`` of ``val: metrics:``."""
        return "higher" if self.higher_is_better else "lower"

    def text(self, value: float | None, sign: bool = False) -> str:
        """Format ``value`` for a table; None is n/a."""
        return "n/a" if value is None else f"{value:{'+' if sign else ''}.{self.digits}f}"

    def blocks_in(self, size: tuple[int, ...], border: int) -> int:
        """Return how many of its blocks fit into an image inside the border."""
        return math.prod(max(length - 2 * border, 0) // self.side for length in size)


_PSNR, _SSIM, _LPIPS = "calculate_psnr", "calculate_ssim", "calculate_lpips"
_NETWORKS = "dp_basicsr.metrics."  # modules of metrics that need files or packages

METRICS: Mapping[str, Metric] = {
    "psnr_rgb": Metric("PSNR RGB [dB]", 2, True, _PSNR, {"test_y_channel": False}, default=True),
    "psnr_y": Metric("PSNR Y [dB]", 2, True, _PSNR, {"test_y_channel": True}, default=True),
    # SSIM's window has 11 pixels a side.
    "ssim_rgb": Metric("SSIM RGB", 4, True, _SSIM, {"test_y_channel": False}, 11, default=True),
    "ssim_y": Metric("SSIM Y", 4, True, _SSIM, {"test_y_channel": True}, 11, default=True),
    # Smaller images vanish in AlexNet's pooling; VGG allows less, but one limit serves both.
    "lpips_alex": Metric(
        "LPIPS AlexNet", 4, False, _LPIPS, {"net": "alex"}, 32, module=f"{_NETWORKS}lpips_metric", default=True
    ),
    "lpips_vgg": Metric(
        "LPIPS VGG-16", 4, False, _LPIPS, {"net": "vgg"}, 32, module=f"{_NETWORKS}lpips_metric", default=True
    ),
    "deep": Metric("Deep distance", 4, False, "calculate_deep_distance", side=32, module=f"{_NETWORKS}deep_metric"),
    "gmsd": Metric("GMSD", 4, False, "piq/GMSDLoss", side=8, module=f"{_NETWORKS}library_metric"),
    # NIQE takes a covariance of its blocks: two give a number, but only a dozen one that says something.
    "niqe": Metric("NIQE", 2, False, "calculate_niqe", side=96, blocks=2, enough=12),
}

DEFAULT = tuple(name for name, metric in METRICS.items() if metric.default)


def record_of(kind: str) -> Metric | None:
    """Return the first record of a ``type`` of ``val: metrics:``, which holds for all its keywords."""
    return next((metric for metric in METRICS.values() if metric.type == kind), None)
