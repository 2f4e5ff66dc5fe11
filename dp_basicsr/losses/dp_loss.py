"""Dual Perceptual Loss as BasicSR builds and calls a perceptual loss."""

from __future__ import annotations

from dp_basicsr.losses.dual_perceptual_loss import DualPerceptualLoss

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor


@LOSS_REGISTRY.register()
class DPLoss(DualPerceptualLoss):
    """:class:`~dp_basicsr.losses.DualPerceptualLoss` in the place of any ``perceptual_opt`` of BasicSR."""

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The loss, and None for the style loss that BasicSR's PerceptualLoss has there."""
        return super().forward(x, gt), None
