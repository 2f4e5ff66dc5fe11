"""The three models; their training step is ``step.py``."""

from __future__ import annotations

from typing import Any

from dp_basicsr.distributed.collectives import mean_over_processes
from dp_basicsr.models.base import PluginModel

import torch
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

# If D's losses stay below 1e-3 in ten consecutive logs (our choice), D has won and G gets no gradient from it.
COLLAPSED_LOSS, COLLAPSED_LOGS = 1e-3, 10


@MODEL_REGISTRY.register()
class PSNRModel(PluginModel, SRModel):
    """BasicSR's SRModel on any device, for the L1-trained ("PSNR-oriented") generator that ESRGAN starts from."""

    log_prefix = "l_"


@MODEL_REGISTRY.register()
class SRGANDPModel(PluginModel, SRGANModel):
    """SRGAN-DP: L_G = lambda * L1 + eta * L_GAN + gamma * L_DP (Eq. 2) with the vanilla adversarial loss."""

    log_prefix = "l_g_"
    collapsed_logs = 0

    def __init__(self, opt: dict[str, Any]) -> None:
        train = opt.get("train") or {}
        gan_opt = train.get("gan_opt") or {}
        self.sync_mean, self.ramp = gan_opt.get("sync_mean", True), gan_opt.get("ramp")
        # BasicSR's loss knows neither.
        theirs = {key: value for key, value in gan_opt.items() if key not in ("sync_mean", "ramp")}
        super().__init__(opt | {"train": train | {"gan_opt": theirs}} if theirs else opt)

    def generator_gan_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return eta times G's adversarial loss, 0-d, from D's logits on originals (detached) and results, (N, 1)."""
        return self.cri_gan(fake, True, is_disc=False)

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's losses on originals and on results, 0-d each; D is trained on their sum."""
        return self.cri_gan(real, True, is_disc=True), self.cri_gan(fake, False, is_disc=True)

    def get_current_log(self) -> dict[str, float]:
        """Return the losses as every model; warn if the discriminator has won."""
        log = super().get_current_log()
        # WGAN's are negative where D is right, and still teach G.
        losses = log["l_d_real"], log["l_d_fake"]
        won = min(losses) >= 0 and max(losses) < COLLAPSED_LOSS
        self.collapsed_logs = self.collapsed_logs + 1 if won else 0
        if self.collapsed_logs == COLLAPSED_LOGS:
            get_root_logger().warning(
                f"the discriminator has collapsed: its losses are below {COLLAPSED_LOSS} and G learns nothing from it; "
                "lower its learning rate (train: optim_d: lr) or resume from an earlier checkpoint"
            )
        return log


@MODEL_REGISTRY.register()
class ESRGANDPModel(SRGANDPModel):
    """ESRGAN-DP: L_G = lambda * L1 + eta * L_Ra + gamma * L_DP (Eq. 2), D_Ra(a, b) = sigmoid(C(a) - mean C(b)) (Eq. 3).

    As in BasicSR's ESRGANModel, each loss is the mean of its real and its fake half, and in D's losses the mean of the
    other side's logits is detached. The means are over the mini-batch: with several processes over all of them,
    unless ``gan_opt: sync_mean`` is false (each process its own, as in BasicSR).
    """

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
        local = torch.stack([real.mean(), fake.mean()])
        mean_real, mean_fake = mean_over_processes(local) if self.sync_mean else local
        return mean_real, mean_fake
