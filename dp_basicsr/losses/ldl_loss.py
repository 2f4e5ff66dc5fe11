"""Locally discriminative learning: L1 where the generator creates artifacts (Liang et al., CVPR 2022)."""

from __future__ import annotations

from basicsr.losses.basic_loss import L1Loss
from basicsr.losses.loss_util import get_refined_artifact_map
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

KSIZE = 7  # window of the local variance, as in BasicSR's RealESRGANModel


@LOSS_REGISTRY.register()
class LDLLoss(L1Loss):
    """The loss of ``ldl_opt``: BasicSR's L1Loss with its arguments ``loss_weight`` and ``reduction``."""


def ldl_loss(criterion: nn.Module, sr: Tensor, gt: Tensor, ema: Tensor) -> Tensor:
    """Apply ``criterion`` to the images times the artifact map, as in BasicSR's RealESRGANModel.

    Args:
        criterion: A pixel loss.
        sr: Super-resolved images, (N, 3, H, W), in [0, 1].
        gt: Originals, the same shape.
        ema: Results of the EMA generator, the same shape, without gradient: if they are closer to the original than
            ``sr``, the map is the local variance of the residual; elsewhere it is 0.

    Returns:
        The loss, 0-d.
    """
    weight = get_refined_artifact_map(gt, sr, ema, KSIZE)
    return criterion(weight * sr, weight * gt)  # type: ignore[no-any-return]
