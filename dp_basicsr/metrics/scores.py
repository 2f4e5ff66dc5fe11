"""Measure images with the metrics of the records, and find those that are not available here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import size_text
from dp_basicsr.metrics.library_metric import better_of as library_metric_better
from dp_basicsr.metrics.library_metric import library_metric
from dp_basicsr.options.metrics import DEFAULT, METRICS, record_of

import basicsr.metrics  # noqa: F401  (registers its metrics)
import numpy as np
from basicsr.utils import get_root_logger
from basicsr.utils.registry import METRIC_REGISTRY
from numpy.typing import NDArray

Scores = dict[str, float | None]


def function_of(kind: str) -> Callable[..., Any]:
    """Return the function of a ``type`` of ``val: metrics:``; one of a library enters BasicSR's registry."""
    if "/" in kind and kind not in METRIC_REGISTRY:
        # Not by register(), which refuses the second of two threads that come here together.
        METRIC_REGISTRY._obj_map.setdefault(kind, library_metric(kind))
    return METRIC_REGISTRY.get(kind)  # type: ignore[no-any-return]


def better_of(kind: str) -> str:
    """Return whether ``higher`` (BasicSR's default) or ``lower`` values of a ``type`` are better."""
    record = record_of(kind)
    if record is None and "/" in kind:
        return library_metric_better(kind)
    return record.better if record else "higher"


def why_not(kind: str, **keywords: Any) -> str | None:
    """Return why a metric of ``val: metrics:`` cannot be computed on this machine, or None if it can."""
    record = record_of(kind)
    module = "dp_basicsr.metrics.library_metric" if "/" in kind else record.module if record else ""
    return import_module(module).why_not(kind=kind, **keywords) if module else None


def measure(
    result: NDArray[np.uint8], gt: NDArray[np.uint8], crop_border: int, metrics: tuple[str, ...] = DEFAULT
) -> Scores:
    """Measure one result image against its original.

    Args:
        result: ``(H, W, 3)`` BGR or ``(H, W[, 1])`` gray, uint8. Gray counts as three equal channels, as in BasicSR,
            which reads every file as colour.
        gt: Same height and width as ``result``.
        crop_border: Pixels cropped from every border (the paper: 4 at x4, the scale in general).
        metrics: Keys of ``METRICS``.

    Returns:
        Each metric's value; infinite PSNR for identical images; None where a metric is not available or has no value,
        for example because the image is too small for it.

    Raises:
        UserError: The sizes differ, the border is negative, an image is of another shape or type, or a metric unknown.
    """
    if {result.dtype, gt.dtype} != {np.dtype(np.uint8)}:
        raise UserError(f"expected images of uint8, [0, 255], got {result.dtype} and {gt.dtype}: scale and round them")
    for image in (result, gt):
        if image.ndim not in (2, 3) or (*image.shape, 3)[2] not in (1, 3):
            raise UserError(f"expected images of (H, W, 3) or (H, W), got {tuple(image.shape)}")
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"expected metrics of {', '.join(METRICS)}, got {', '.join(unknown)}")
    if crop_border < 0:
        raise UserError(f"crop_border: expected a number of pixels from 0, got {crop_border}")
    if result.shape[:2] != gt.shape[:2]:
        raise UserError(f"expected a result of {size_text(gt)} pixels, the original's size; got {size_text(result)}")
    images = {"img": in_colour(result), "img2": in_colour(gt)}
    scores: Scores = dict.fromkeys(metrics)
    for name in metrics:
        metric = METRICS[name]
        if metric.blocks_in(gt.shape[:2], crop_border) < metric.enough or why_not(metric.type, **metric.keywords):
            continue
        function = function_of(metric.type)
        # NIQE and its like take no original.
        given = {key: image for key, image in images.items() if key in inspect.signature(function).parameters}
        try:
            value = float(function(**given, crop_border=crop_border, **metric.keywords))
        # NIQE's features of a flat image are NaN, of which there is no pseudo-inverse.
        except np.linalg.LinAlgError:
            continue
        # NaN is how a metric says that it is not available.
        scores[name] = None if math.isnan(value) else value
    return scores


def missing_metrics(metrics: tuple[str, ...]) -> dict[str, str]:
    """Return the ``metrics`` that cannot be computed on this machine, with the reasons."""
    reasons = {name: why_not(METRICS[name].type, **METRICS[name].keywords) for name in metrics}
    return {name: reason for name, reason in reasons.items() if reason}


def drop_unavailable(opt: dict[str, Any]) -> None:
    """Remove the metrics that cannot be computed here from ``val: metrics:`` and log the reason.

    BasicSR sums every metric over the images and keeps the best sum, so a missing value would look like a result. The
    images are split over the processes: a metric that one process cannot compute is dropped on all. Collective call.
    """
    metrics = (opt.get("val") or {}).get("metrics") or {}
    # A copy, because entries are deleted on the way.
    for name, metric in list(metrics.items()):
        keywords = {key: value for key, value in metric.items() if key != "type"}
        # Asked of all processes for every metric, because gathering is a collective call.
        if any(all_gather(why_not(metric["type"], **keywords))):
            get_root_logger().warning(f"val: metrics: {name} is skipped")
            del metrics[name]


def in_colour(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a gray or colour image to ``(H, W, 3)``."""
    channels = image.reshape(*image.shape[:2], -1)
    return np.repeat(channels, 3, axis=2) if channels.shape[2] == 1 else channels
