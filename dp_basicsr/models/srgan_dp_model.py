"""SRGAN with any perceptual loss, Dual Perceptual Loss above all, in one pass of each network per image."""

from __future__ import annotations

from dp_basicsr.losses.dp_loss import DPLoss
from dp_basicsr.models.plugin_model import PluginModel

import torch
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

Losses = dict[str, Tensor]

# Names of DPLoss's terms in the log; those of extra networks get the same prefixes.
LOG_PREFIXES = (("l_", "l_g_"), ("weight", "dp_weight"))


@MODEL_REGISTRY.register()
class SRGANDPModel(PluginModel, SRGANModel):
    """SRGAN-DP: L_G = lambda * L1 + eta * L_GAN + gamma * L_DP (Eq. 2) with the vanilla adversarial loss.

    The step computes the gradients of BasicSR's SRGANModel with fewer passes. D's weights do not change between G's
    loss and D's, so each image goes through D once, and both losses read the same logits. The super-resolved image is
    cut off from G as a leaf: each loss leaves its gradient on it and frees its graph before the next one starts, and
    one backward through G takes the sum.
    """

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of G and D on the batch in ``self.lq``, ``self.gt`` ((N, 3, H, W), RGB in [0, 1])."""
        update_g = current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters
        with torch.set_grad_enabled(update_g):
            self.output = self.net_g(self.lq)
        sr = self.output.detach().requires_grad_(update_g)
        real, fake = self.net_d(self.gt), self.net_d(sr)

        log: Losses = {}
        if update_g:
            l_g_gan = self.generator_gan_loss(real.detach(), fake)
            sr.grad = torch.autograd.grad(l_g_gan, sr, retain_graph=True)[0]
        l_d = self.step_discriminator(real, fake)
        if update_g:
            log |= self.step_generator(sr)
            log["l_g_gan"] = l_g_gan
        self.log_dict = {name: value.detach() for name, value in (log | l_d).items()}

        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def step_discriminator(self, real: Tensor, fake: Tensor) -> Losses:
        """Update D from its logits on the originals and on the super-resolved images, both (N, 1)."""
        l_d_real, l_d_fake = self.discriminator_losses(real, fake)
        self.optimizer_d.zero_grad()
        # Only D's own parameters: the leaf that `fake` comes from holds G's gradient.
        torch.autograd.backward(l_d_real + l_d_fake, inputs=list(self.net_d.parameters()))
        self.optimizer_d.step()
        return {"l_d_real": l_d_real, "l_d_fake": l_d_fake, "out_d_real": real.mean(), "out_d_fake": fake.mean()}

    def step_generator(self, sr: Tensor) -> Losses:
        """Add the image losses' gradient to the adversarial one on ``sr``, (N, 3, H, W), and update G."""
        total, losses = self.image_losses(sr)
        if losses:
            total.backward()
        self.optimizer_g.zero_grad()
        self.output.backward(sr.grad)
        self.optimizer_g.step()
        return losses

    def image_losses(self, sr: Tensor) -> tuple[Tensor, Losses]:
        """Pixel and perceptual losses of ``sr`` against ``self.gt``: their sum, and each by its name in the log."""
        total, losses = sr.new_zeros(()), {}
        if self.cri_pix:
            losses["l_g_pix"] = self.cri_pix(sr, self.gt)
            total = total + losses["l_g_pix"]
        if self.cri_perceptual:
            l_g_percep, l_g_style = self.cri_perceptual(sr, self.gt)
            losses |= self.dual_perceptual_terms()
            for name, value in (("l_g_percep", l_g_percep), ("l_g_style", l_g_style)):
                if value is not None:
                    losses[name] = value
                    total = total + value
        return total, losses

    def dual_perceptual_terms(self) -> Losses:
        """``l_g_vgg``, ``l_g_resnet`` and ``dp_weight`` of the last call, where the perceptual loss is a DPLoss."""
        if not isinstance(self.cri_perceptual, DPLoss):
            return {}
        terms = {}
        for name, value in self.cri_perceptual.terms.items():
            old, new = next(prefix for prefix in LOG_PREFIXES if name.startswith(prefix[0]))
            terms[new + name.removeprefix(old)] = value
        return terms

    def generator_gan_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """G's adversarial loss, eta times, from D's logits; ``real`` carries no gradient."""
        return self.cri_gan(fake, True, is_disc=False)

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """D's losses on real and on fake logits."""
        return self.cri_gan(real, True, is_disc=True), self.cri_gan(fake, False, is_disc=True)
