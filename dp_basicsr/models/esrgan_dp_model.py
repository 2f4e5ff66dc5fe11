"""ESRGAN with Dual Perceptual Loss: the relativistic average discriminator (Eq. 3)."""

from __future__ import annotations

from dp_basicsr.models.srgan_dp_model import SRGANDPModel

from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor


@MODEL_REGISTRY.register()
class ESRGANDPModel(SRGANDPModel):
    """ESRGAN-DP: L_G = lambda * L1 + eta * L_Ra + gamma * L_DP (Eq. 2), D_Ra(a, b) = sigmoid(C(a) - mean C(b)) (Eq. 3).

    As in BasicSR's ESRGANModel, each loss is the mean of its real and its fake half, and in D's losses the mean of
    the other side's logits is detached.
    """

    def generator_gan_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """eta * L_Ra of G: originals less real than the mean result, results more real than the mean original."""
        l_g_real = self.cri_gan(real - fake.mean(), False, is_disc=False)
        l_g_fake = self.cri_gan(fake - real.mean(), True, is_disc=False)
        return (l_g_real + l_g_fake) / 2

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """L_Ra of D, in halves: originals more real than the mean result, results less than the mean original."""
        l_d_real = self.cri_gan(real - fake.detach().mean(), True, is_disc=True) / 2
        l_d_fake = self.cri_gan(fake - real.detach().mean(), False, is_disc=True) / 2
        return l_d_real, l_d_fake
