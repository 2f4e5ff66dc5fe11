"""Model that pretrains ESRGAN's generator with a pixel loss."""

from __future__ import annotations

from dp_basicsr.models.training_step import Losses, TrainingStep

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor


@MODEL_REGISTRY.register()
class PSNRModel(TrainingStep, SRModel):
    """BasicSR's SRModel on any device, for the L1-trained ("PSNR-oriented") generator that ESRGAN starts from."""

    def optimize_parameters(self, current_iter: int) -> None:
        """Train one step on the batch in ``self.lq``, ``self.gt`` ((N, 3, H, W), RGB in [0, 1])."""
        self.optimizer_g.zero_grad()
        logs = []
        for lq, gt, share in self.parts(self.net_g):
            with self.autocast():
                self.output = self.net_g(lq)
                losses = self.losses(self.output, gt)
            self.scaler.scale(torch.stack(list(losses.values())).sum() * share).backward()
            logs.append((share, losses))
        self.apply_gradients(current_iter, [self.optimizer_g], logs)

    def losses(self, sr: Tensor, gt: Tensor) -> Losses:
        """Compute the losses of the option file, with BasicSR's names in the log."""
        losses: Losses = {}
        if self.cri_pix:
            losses["l_pix"] = self.cri_pix(sr.to(gt.dtype), gt)
        if self.cri_perceptual:
            l_percep, l_style = self.cri_perceptual(sr, gt)
            losses |= {name: loss for name, loss in (("l_percep", l_percep), ("l_style", l_style)) if loss is not None}
        return losses
