"""Losses, registered in BasicSR's LOSS_REGISTRY when this package is imported."""

from dp_basicsr.losses.dp_loss import DPLoss

__all__ = ["DPLoss"]
