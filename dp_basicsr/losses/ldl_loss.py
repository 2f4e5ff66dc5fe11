"""Locally discriminative learning: L1 where the generator creates artifacts (Liang et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal

from dp_basicsr.registration import register

from torch import Tensor, nn
from torch.nn import functional as F

KSIZE = 7  # window of the local variance, as in BasicSR's RealESRGANModel


@register("loss")
class LDLLoss(nn.Module):
    """The loss of ``ldl_opt``: BasicSR's L1Loss.

    Args:
        loss_weight: Factor of the loss.
        reduction: Over the elements of both images.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.reduction = reduction

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        """Return the distance, 0-d, of ``x`` and ``gt``, of one shape."""
        difference = F.l1_loss(x, gt, reduction="none")  # reduced as in BasicSR, to the last bit
        return self.loss_weight * (difference.sum() if self.reduction == "sum" else difference.mean())


def ldl_loss(criterion: nn.Module, sr: Tensor, gt: Tensor, ema: Tensor) -> Tensor:
    """Apply a pixel loss to the images times the artifact map, as in BasicSR's RealESRGANModel; 0-d.

    ``sr`` and ``gt`` are (N, 3, H, W) in [0, 1], and so is ``ema``, the EMA generator's result, without gradient: where
    it is closer to the original than ``sr``, the map is the local variance of the residual; elsewhere it is 0.
    """
    weight = artifact_map(sr, gt, ema)
    return criterion(weight * sr, weight * gt)  # type: ignore[no-any-return]


def artifact_map(sr: Tensor, gt: Tensor, ema: Tensor) -> Tensor:
    """Return the weight of each pixel, (N, 1, H, W), with a gradient: BasicSR's ``get_refined_artifact_map``.

    Its global factor is the fifth root of the residual's variance, whose slope is infinite at 0: on a flat or perfect
    image the gradient would be NaN. There the factor is 0 and has no gradient.
    """
    residual = (gt - sr).abs().sum(1, keepdim=True)
    variance = residual.var(dim=(-1, -2, -3), keepdim=True)
    is_flat = ~(variance > 0)
    # Masked before the root, because 0 times the infinite slope is NaN, too.
    factor = variance.masked_fill(is_flat, 1).pow(1 / 5).masked_fill(is_flat, 0)
    windows = F.pad(residual, [KSIZE // 2] * 4, mode="reflect").unfold(2, KSIZE, 1).unfold(3, KSIZE, 1)
    weight = factor * windows.var(dim=(-1, -2))
    return weight.masked_fill(~(residual >= (gt - ema).abs().sum(1, keepdim=True)), 0)
