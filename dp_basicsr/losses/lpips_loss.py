"""LPIPS as a loss (Zhang et al., CVPR 2018)."""

from __future__ import annotations

from dp_basicsr.archs.perceptual_arch import AlwaysEval
from dp_basicsr.archs.pretrained import state_of
from dp_basicsr.errors import UserError
from dp_basicsr.losses.functional import refuse_range
from dp_basicsr.registration import register

import torch
from torch import Tensor


@register("loss")
class LPIPSLoss(AlwaysEval):
    """LPIPS version 0.1, with the ``lpips`` package's network and linear weights, frozen and without its dropout.

    Args:
        loss_weight: Factor of the loss.
        net: Backbone, ``alex`` or ``vgg``.
        weights: Weights of the backbone: ``imagenet``, the path of a torchvision state_dict, or ``random`` (seeded).

    Raises:
        UserError: The backbone is unknown, or its weights are not available or do not match.
    """

    def __init__(self, loss_weight: float = 1.0, net: str = "alex", weights: str = "imagenet") -> None:
        from dp_basicsr.metrics.lpips_metric import BACKBONES, build_network  # metrics need BasicSR, losses do not

        super().__init__()
        if net not in BACKBONES:
            raise UserError(f"LPIPSLoss: net: expected one of {', '.join(BACKBONES)}, got {net!r}")
        self.loss_weight = loss_weight
        self._has_seen_images = False
        self.network = build_network(net, state_of(BACKBONES[net], weights), weights)

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        """Return the mean distance, 0-d, of ``x`` and ``gt``, (N, 3, H, W), RGB in [0, 1].

        Other ranges are a UserError in the first call.
        """
        if not (self._has_seen_images or torch.compiler.is_compiling()):
            self._has_seen_images = True
            refuse_range("LPIPSLoss", gt, False, "give (x + 1) / 2")
        dtype = self.network.scaling_layer.shift.dtype
        return self.loss_weight * self.network(2 * x.to(dtype) - 1, 2 * gt.to(dtype) - 1).mean()
