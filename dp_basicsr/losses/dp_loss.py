"""Dual Perceptual Loss as BasicSR builds and calls a perceptual loss."""

from __future__ import annotations

from dp_basicsr.losses.dual_perceptual_loss import DualPerceptualLoss

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

# Prefixes of ``terms``, and those of their names in the log.
LOG_PREFIXES = (("l_", "l_g_"), ("weight", "dp_weight"), ("share", "dp_share"))


@LOSS_REGISTRY.register()
class DPLoss(DualPerceptualLoss):
    """:class:`~dp_basicsr.losses.DualPerceptualLoss` in the place of any ``perceptual_opt`` of BasicSR."""

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The loss, and None for the style loss that BasicSR's PerceptualLoss has there."""
        return super().forward(x, gt), None

    def log_terms(self) -> dict[str, Tensor]:
        """``terms`` by their names in the log: ``l_g_vgg``, ``l_g_resnet``, ``dp_weight`` ..."""
        named = {}
        for name, value in self.terms.items():
            old, new = next(prefix for prefix in LOG_PREFIXES if name.startswith(prefix[0]))
            named[new + name.removeprefix(old)] = value
        return named
