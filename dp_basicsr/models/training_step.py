"""The parts of a training step that all models share: precision, accumulation, clipping, skipping non-finite steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses.dual_perceptual_loss import DualPerceptualLoss
from dp_basicsr.models.plugin_model import PluginModel
from dp_basicsr.models.step_guard import StepGuard, not_finite, step_unless

import torch
from basicsr.archs.rrdbnet_arch import RRDB
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

Losses = dict[str, Tensor]

# `train: amp` -> dtype of autocast.
AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingStep(PluginModel):
    """A model whose ``optimize_parameters`` iterates over ``parts`` and ends with ``apply_gradients``."""

    def init_training_settings(self) -> None:
        """Set up as BasicSR, with ``train:`` ``amp``, ``checkpointing``, ``grad_accumulation`` and ``max_nonfinite``.

        Raises:
            UserError: The generator does not support checkpointing.
        """
        train = self.opt["train"]
        self.amp = train["amp"]
        self.grad_accumulation = train["grad_accumulation"]
        self.guard = StepGuard(train["max_nonfinite"], self.device)
        # Only fp16 has too small a range for gradients.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        self.applied = torch.ones((), device=self.device)  # 0 after a skipped step
        if train["checkpointing"]:
            checkpoint_blocks(self.get_bare_model(self.net_g))
        super().init_training_settings()
        if self.cri_perceptual is not None and train["channels_last"]:
            self.cri_perceptual.to(memory_format=torch.channels_last)
        if isinstance(self.cri_perceptual, DualPerceptualLoss) and train["compile"]:
            self.cri_perceptual.compile_networks()

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """Add the gradient scaler's state to the training state."""
        return super().training_state(epoch, current_iter) | {"scaler": self.scaler.state_dict()}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restore BasicSR's state and the gradient scaler, which BasicSR's own states do not have."""
        super().resume_training(resume_state)
        self.scaler.load_state_dict(resume_state.get("scaler") or self.scaler.state_dict())

    def autocast(self) -> torch.autocast:
        """Return autocast for ``train: amp``; losses are still computed in float32."""
        return torch.autocast(self.device.type, AMP[self.amp], enabled=self.amp != "none")

    def parts(self, *nets: nn.Module) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield the batch in ``train: grad_accumulation`` parts, as even as possible: lq, gt and the part's share.

        Several processes average the gradients of ``nets`` once, with the last part.
        """
        n = self.grad_accumulation
        pairs = list(zip(self.lq.tensor_split(n), self.gt.tensor_split(n), strict=True))
        for number, (lq, gt) in enumerate(pairs, start=1):
            with ExitStack() as stack:
                for net in nets:
                    if number < len(pairs) and isinstance(net, DistributedDataParallel):
                        stack.enter_context(net.no_sync())
                yield lq, gt, len(lq) / len(self.lq)

    def apply_gradients(
        self, iteration: int, optimizers: Sequence[torch.optim.Optimizer], logs: Sequence[tuple[float, Losses]]
    ) -> None:
        """Step the optimizers if all gradients and losses are finite, and log the batch's mean losses.

        ``logs`` has each part's share of the batch and its losses. Each network's gradient is clipped to the norm
        ``train: grad_clip``, if given.

        Raises:
            UserError: ``train: max_nonfinite`` consecutive steps were not finite.
        """
        self.log_dict = {name: sum(share * log[name].detach() for share, log in logs) for name in logs[0][1]}
        gradients = []
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if self.opt["train"].get("grad_clip"):
                nn.utils.clip_grad_norm_(parameters, self.opt["train"]["grad_clip"])
            gradients += [parameter.grad for parameter in parameters if parameter.grad is not None]
        flag = not_finite(gradients, self.log_dict)
        for optimizer in optimizers:
            step_unless(flag, optimizer)
        self.scaler.update()
        self.applied = 1.0 - flag
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)
        self.guard.watch(iteration, flag, self.log_dict, self.files)

    def model_ema(self, decay: float = 0.999) -> None:
        """Update the EMA, ``ema += (1 - decay) * (weight - ema)``, unless the step was skipped."""
        if decay == 0:  # BasicSR's way to copy the weights
            super().model_ema(decay)
            return
        ema = [parameter.data for parameter in self.net_g_ema.parameters()]
        weights = [parameter.data for parameter in self.get_bare_model(self.net_g).parameters()]
        difference = torch._foreach_sub(weights, ema)
        torch._foreach_mul_(difference, (1 - decay) * self.applied.to(ema[0].dtype))
        torch._foreach_add_(ema, difference)


def checkpoint_blocks(net: nn.Module) -> None:
    """Recompute the inside of each RRDB in the backward pass instead of keeping its activations.

    The results are unchanged. RRDBs use no random numbers, so no random state is kept for the recomputation.

    Raises:
        UserError: ``net`` has no RRDBs.
    """
    blocks = [module for module in net.modules() if isinstance(module, RRDB)]
    if not blocks:
        raise UserError(
            f"train: checkpointing: expected a network of RRDBs such as RRDBNetDP, got {type(net).__name__}"
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
