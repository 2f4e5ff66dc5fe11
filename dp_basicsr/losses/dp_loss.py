"""Dual Perceptual Loss with the interface of BasicSR's perceptual loss."""

from __future__ import annotations

from dp_basicsr.losses.dual_perceptual_loss import DualPerceptualLoss
from dp_basicsr.registration import register

from torch import Tensor

# Prefixes of ``terms`` -> prefixes of their names in the log.
LOG_PREFIXES = (("l_", "l_g_"), ("weight", "dp_weight"), ("share", "dp_share"))


@register("loss")
class DPLoss(DualPerceptualLoss):
    """``DualPerceptualLoss`` for BasicSR's ``perceptual_opt``."""

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the loss, and None in place of the style loss of BasicSR's PerceptualLoss."""
        return super().forward(x, gt), None

    def log_terms(self) -> dict[str, Tensor]:
        """Return ``terms`` by their names in the log: ``l_g_vgg``, ``l_g_resnet``, ``dp_weight`` ..."""
        named = {}
        for name, value in self.terms.items():
            old, new = next(prefix for prefix in LOG_PREFIXES if name.startswith(prefix[0]))
            named[new + name.removeprefix(old)] = value
        return named
