"""Metrics, registered in BasicSR's METRIC_REGISTRY when this package is imported."""

from dp_basicsr.metrics.deep_metric import calculate_deep_distance
from dp_basicsr.metrics.lpips_metric import calculate_lpips
from dp_basicsr.metrics.scores import Scores, drop_unavailable, measure, missing_metrics
from dp_basicsr.metrics.sizes import refuse_small_images
from dp_basicsr.options.metrics import METRICS, Metric

__all__ = [
    "METRICS",
    "Metric",
    "Scores",
    "calculate_deep_distance",
    "calculate_lpips",
    "drop_unavailable",
    "measure",
    "missing_metrics",
    "refuse_small_images",
]
