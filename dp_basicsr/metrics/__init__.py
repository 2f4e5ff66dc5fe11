"""Metrics, registered in BasicSR's METRIC_REGISTRY when this package is imported."""

from dp_basicsr.metrics.lpips_metric import calculate_lpips
from dp_basicsr.metrics.scores import METRICS, Metric, Scores, drop_unavailable, measure, missing_metrics
from dp_basicsr.metrics.sizes import refuse_small_images

__all__ = [
    "METRICS",
    "Metric",
    "Scores",
    "calculate_lpips",
    "drop_unavailable",
    "measure",
    "missing_metrics",
    "refuse_small_images",
]
