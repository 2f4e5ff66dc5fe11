"""SRGAN with any perceptual loss, such as Dual Perceptual Loss, with one pass of each network per image."""

from __future__ import annotations

from dp_basicsr.errors import UserError
from dp_basicsr.losses.dp_loss import DPLoss
from dp_basicsr.losses.functional import at_least_float32
from dp_basicsr.losses.ldl_loss import ldl_loss
from dp_basicsr.models.training_step import Losses, TrainingStep

import torch
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

# If D's losses stay below 1e-3 in ten consecutive logs (our choice), D has won and G gets no gradient from it.
COLLAPSED_LOSS, COLLAPSED_LOOKS = 1e-3, 10


@MODEL_REGISTRY.register()
class SRGANDPModel(TrainingStep, SRGANModel):
    """SRGAN-DP: L_G = lambda * L1 + eta * L_GAN + gamma * L_DP (Eq. 2) with the vanilla adversarial loss.

    The step computes the gradients of BasicSR's SRGANModel with fewer passes. D's weights do not change between G's
    loss and D's, so each image goes through D once, and both losses use the same logits. The super-resolved image is
    detached from G as a leaf: each loss adds its gradient to it and frees its graph before the next one starts, and one
    backward pass through G uses the sum.
    """

    collapsed_looks = 0

    def init_training_settings(self) -> None:
        """Set up as BasicSR; raise a UserError if ``ldl_opt`` is used without the EMA generator."""
        train = self.opt["train"]
        if train.get("ldl_opt") and not train["ema_decay"] > 0:
            raise UserError(
                "train: ldl_opt: expected ema_decay > 0, because it compares with the EMA generator, got none"
            )
        super().init_training_settings()

    def optimize_parameters(self, current_iter: int) -> None:
        """Train G and D one step on the batch in ``self.lq``, ``self.gt`` ((N, 3, H, W), RGB in [0, 1]).

        With ``train: grad_accumulation: n``, the batch is processed in n parts and their gradients are averaged. Each
        part then has its own w, its own means of D's logits and its own batch-norm statistics.
        """
        update_g = current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters
        self.optimizer_g.zero_grad()
        self.optimizer_d.zero_grad()
        statistics = [buffer.clone() for buffer in self.net_d.buffers()]
        parts = self.parts(self.net_g, self.net_d)
        logs = [(share, self.accumulate(lq, gt, share, update_g)) for lq, gt, share in parts]
        optimizers = [self.optimizer_d, self.optimizer_g] if update_g else [self.optimizer_d]
        self.apply_gradients(current_iter, optimizers, logs)
        for buffer, before in zip(self.net_d.buffers(), statistics, strict=True):
            buffer.copy_(torch.where(self.applied == 1, buffer, before))  # D's statistics belong to the step

    def accumulate(self, lq: Tensor, gt: Tensor, share: float, update_g: bool) -> Losses:
        """Add the gradients of some pairs, scaled by ``share``, to those of D and (``update_g``) of G."""
        with self.autocast(), torch.set_grad_enabled(update_g):
            self.output = self.net_g(lq)
        sr = at_least_float32(self.output.detach())
        if not self.opt["train"].get("channels_last", False):
            sr = sr.contiguous()  # transformers' outputs are not, and BasicSR's discriminators use view
        sr = sr.requires_grad_(update_g)
        with self.autocast():
            real, fake = at_least_float32(self.net_d(gt)), at_least_float32(self.net_d(sr))

        log: Losses = {}
        if update_g:
            l_g_gan = self.generator_gan_loss(real.detach(), fake)
            sr.grad = torch.autograd.grad(self.scaler.scale(l_g_gan * share), sr, retain_graph=True)[0]
        log_d = self.backward_discriminator(real, fake, share)
        if update_g:
            log = self.backward_generator(lq, sr, gt, share)
            log["l_g_gan"] = l_g_gan
        return log | log_d

    def backward_discriminator(self, real: Tensor, fake: Tensor, share: float) -> Losses:
        """Add D's gradients from its logits on the originals and on the super-resolved images, both (N, 1)."""
        l_d_real, l_d_fake = self.discriminator_losses(real, fake)
        # Only D's own parameters: the leaf behind `fake` accumulates G's gradient.
        torch.autograd.backward(self.scaler.scale((l_d_real + l_d_fake) * share), inputs=list(self.net_d.parameters()))
        return {"l_d_real": l_d_real, "l_d_fake": l_d_fake, "out_d_real": real.mean(), "out_d_fake": fake.mean()}

    def backward_generator(self, lq: Tensor, sr: Tensor, gt: Tensor, share: float) -> Losses:
        """Add the image losses' gradients to the adversarial one on ``sr``, (N, 3, H, W); backpropagate to G."""

        def scale(loss: Tensor) -> Tensor:
            return self.scaler.scale(loss * share)

        losses: Losses = {}
        if self.cri_pix:
            losses["l_g_pix"] = self.cri_pix(sr, gt)
            scale(losses["l_g_pix"]).backward()
        if self.cri_ldl:
            with torch.no_grad(), self.autocast():
                ema = at_least_float32(self.net_g_ema(lq))
            losses["l_g_ldl"] = ldl_loss(self.cri_ldl, sr, gt, ema)
            scale(losses["l_g_ldl"]).backward()
        with self.autocast():
            if isinstance(self.cri_perceptual, DPLoss):
                l_g_percep = self.cri_perceptual.backward(sr, gt, scale)
                losses |= self.cri_perceptual.log_terms() | {"l_g_percep": l_g_percep}
            elif self.cri_perceptual:
                named = zip(("l_g_percep", "l_g_style"), self.cri_perceptual(sr, gt), strict=True)
                losses |= (others := {name: loss for name, loss in named if loss is not None})
                scale(torch.stack(list(others.values())).sum()).backward()
        assert sr.grad is not None
        self.output.backward(sr.grad.to(self.output.dtype))
        return losses

    def generator_gan_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return eta times G's adversarial loss, 0-d, from D's logits on originals (detached) and results, (N, 1)."""
        return self.cri_gan(fake, True, is_disc=False)

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's losses on originals and on results, 0-d each; D is trained on their sum."""
        return self.cri_gan(real, True, is_disc=True), self.cri_gan(fake, False, is_disc=True)

    def get_current_log(self) -> dict[str, float]:
        """Return the losses as every model; warn if the discriminator has won."""
        log = super().get_current_log()
        won = max(log["l_d_real"], log["l_d_fake"]) < COLLAPSED_LOSS
        self.collapsed_looks = self.collapsed_looks + 1 if won else 0
        if self.collapsed_looks == COLLAPSED_LOOKS:
            get_root_logger().warning(
                f"the discriminator has collapsed: its losses are below {COLLAPSED_LOSS} and G learns nothing from it; "
                "lower its learning rate (train: optim_d: lr) or resume from an earlier checkpoint"
            )
        return log
