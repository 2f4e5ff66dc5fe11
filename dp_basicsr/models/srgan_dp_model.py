"""SRGAN with any perceptual loss, Dual Perceptual Loss above all, in one pass of each network per image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses.dp_loss import DPLoss
from dp_basicsr.losses.functional import at_least_float32
from dp_basicsr.models.plugin_model import PluginModel

import torch
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Losses = dict[str, Tensor]

# `train: amp`
AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

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

    def init_training_settings(self) -> None:
        """As BasicSR's, and ``train: amp``, the precision of the networks' forward passes.

        Raises:
            UserError: An ``amp`` that is not none, bf16 or fp16, or a ``grad_accumulation`` below 1.
        """
        train = self.opt["train"]
        self.amp, self.grad_accumulation = train.get("amp", "none"), train.get("grad_accumulation", 1)
        if self.amp not in AMP:
            raise UserError(f"train: amp: expected one of {', '.join(AMP)}, got {self.amp!r}")
        if not isinstance(self.grad_accumulation, int) or self.grad_accumulation < 1:
            raise UserError(f"train: grad_accumulation: expected a number from 1 on, got {self.grad_accumulation!r}")
        # fp16 alone has too small a range for gradients.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        super().init_training_settings()
        if self.cri_perceptual is not None and train.get("channels_last", False):
            self.cri_perceptual.to(memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        """Run networks in ``train: amp``; losses are computed in float32 all the same."""
        return torch.autocast(self.device.type, AMP[self.amp], enabled=self.amp != "none")

    def apply_gradients(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Step the optimizers, with gradients cut to the norm ``train: grad_clip`` (of each network) if it is given."""
        largest = self.opt["train"].get("grad_clip")
        for optimizer in optimizers:
            if largest:
                self.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], largest)
            self.scaler.step(optimizer)
        self.scaler.update()

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of G and D on the batch in ``self.lq``, ``self.gt`` ((N, 3, H, W), RGB in [0, 1]).

        With ``train: grad_accumulation: n`` the batch goes through in n parts, whose gradients are averaged. Each part
        then has its own w, its own means of D's logits and its own batch-norm, as the parts of several processes have.
        """
        update_g = current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters
        self.optimizer_g.zero_grad()
        self.optimizer_d.zero_grad()
        parts = self.grad_accumulation
        pairs = list(zip(self.lq.chunk(parts), self.gt.chunk(parts), strict=True))
        logs = []
        for number, (lq, gt) in enumerate(pairs, start=1):
            with ExitStack() as stack:
                for net in (self.net_g, self.net_d):
                    if number < len(pairs) and isinstance(net, DistributedDataParallel):
                        stack.enter_context(net.no_sync())  # the processes average once, with the last part
                logs.append(self.accumulate(lq, gt, update_g, len(lq) / len(self.lq)))
        self.apply_gradients([self.optimizer_d, self.optimizer_g] if update_g else [self.optimizer_d])
        self.log_dict = {name: sum(log[name].detach() for log in logs) / len(logs) for name in logs[0]}
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def accumulate(self, lq: Tensor, gt: Tensor, update_g: bool, share: float) -> Losses:
        """Add the gradients of some pairs, ``share`` times, to those of D and (``update_g``) of G."""
        with self.autocast(), torch.set_grad_enabled(update_g):
            self.output = self.net_g(lq)
        sr = at_least_float32(self.output.detach()).requires_grad_(update_g)
        with self.autocast():
            real, fake = at_least_float32(self.net_d(gt)), at_least_float32(self.net_d(sr))

        log: Losses = {}
        if update_g:
            l_g_gan = self.generator_gan_loss(real.detach(), fake)
            sr.grad = torch.autograd.grad(self.scaler.scale(l_g_gan * share), sr, retain_graph=True)[0]
        log_d = self.backward_discriminator(real, fake, share)
        if update_g:
            log = self.backward_generator(sr, gt, share)
            log["l_g_gan"] = l_g_gan
        return log | log_d

    def backward_discriminator(self, real: Tensor, fake: Tensor, share: float) -> Losses:
        """Add D's gradients from its logits on the originals and on the super-resolved images, both (N, 1)."""
        l_d_real, l_d_fake = self.discriminator_losses(real, fake)
        # Only D's own parameters: the leaf that `fake` comes from holds G's gradient.
        torch.autograd.backward(self.scaler.scale((l_d_real + l_d_fake) * share), inputs=list(self.net_d.parameters()))
        return {"l_d_real": l_d_real, "l_d_fake": l_d_fake, "out_d_real": real.mean(), "out_d_fake": fake.mean()}

    def backward_generator(self, sr: Tensor, gt: Tensor, share: float) -> Losses:
        """Add the image losses' gradient to the adversarial one on ``sr``, (N, 3, H, W), and send the sum through G."""
        with self.autocast():
            total, losses = self.image_losses(sr, gt)
        if losses:
            self.scaler.scale(total * share).backward()
        assert sr.grad is not None
        self.output.backward(sr.grad.to(self.output.dtype))
        return losses

    def image_losses(self, sr: Tensor, gt: Tensor) -> tuple[Tensor, Losses]:
        """Pixel and perceptual losses of ``sr`` against ``gt``: their sum, and each by its name in the log."""
        total, losses = sr.new_zeros(()), {}
        if self.cri_pix:
            losses["l_g_pix"] = self.cri_pix(sr, gt)
            total = total + losses["l_g_pix"]
        if self.cri_perceptual:
            l_g_percep, l_g_style = self.cri_perceptual(sr, gt)
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

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """As every model's, and the gradient scaler's."""
        return super().training_state(epoch, current_iter) | {"scaler": self.scaler.state_dict()}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """As BasicSR's, and the gradient scaler, which BasicSR's own states do not have."""
        super().resume_training(resume_state)
        self.scaler.load_state_dict(resume_state.get("scaler") or self.scaler.state_dict())

    def generator_gan_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """G's adversarial loss, eta times, from D's logits; ``real`` carries no gradient."""
        return self.cri_gan(fake, True, is_disc=False)

    def discriminator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """D's losses on real and on fake logits."""
        return self.cri_gan(real, True, is_disc=True), self.cri_gan(fake, False, is_disc=True)
