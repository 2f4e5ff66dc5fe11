"""ESRGAN with Dual Perceptual Loss: the relativistic average discriminator (Eq. 3)."""

from __future__ import annotations

from dp_basicsr.distributed.collectives import mean_over_processes
from dp_basicsr.models.srgan_dp_model import SRGANDPModel

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor


@MODEL_REGISTRY.register()
class ESRGANDPModel(SRGANDPModel):
    """ESRGAN-DP: L_G = lambda * L1 + eta * L_Ra + gamma * L_DP (Eq. 2), D_Ra(a, b) = sigmoid(C(a) - mean C(b)) (Eq. 3).

    As in BasicSR's ESRGANModel, each loss is the mean of its real and its fake half, and in D's losses the mean of the
    other side's logits is detached. The means are over the mini-batch: with several processes over all of them,
    unless ``gan_opt: sync_mean`` is false (each process its own, as in BasicSR).
    """

    def init_training_settings(self) -> None:
        """Set up as SRGAN-DP; remove ``sync_mean`` from ``gan_opt``, which BasicSR's loss does not know."""
        gan_opt = self.opt["train"].get("gan_opt") or {}
        self.sync_mean = gan_opt.pop("sync_mean", True)
        super().init_training_settings()

    def generator_gan_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return eta * L_Ra of G: originals less real than the mean result, results more than the mean original."""
        mean_real, mean_fake = self.means(real, fake)
        l_g_real = self.cri_gan(real - mean_fake, False, is_disc=False)
        l_g_fake = self.cri_gan(fake - mean_real, True, is_disc=False)
        return (l_g_real + l_g_fake) / 2

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return L_Ra of D in halves: originals more real than the mean result, results less than the mean original."""
        mean_real, mean_fake = self.means(real.detach(), fake.detach())
        l_d_real = self.cri_gan(real - mean_fake, True, is_disc=True) / 2
        l_d_fake = self.cri_gan(fake - mean_real, False, is_disc=True) / 2
        return l_d_real, l_d_fake

    def means(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean logits of the mini-batch's originals and of its results, 0-d each."""
        own = torch.stack([real.mean(), fake.mean()])
        mean_real, mean_fake = mean_over_processes(own) if self.sync_mean else own
        return mean_real, mean_fake
