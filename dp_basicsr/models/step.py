"""One training step, from top to bottom: the parts of a batch, the losses, their gradients, and their use or skip."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import reduce
from typing import Any

from dp_basicsr.distributed.collectives import process_count
from dp_basicsr.errors import UserError
from dp_basicsr.losses.balance import Balancer
from dp_basicsr.losses.dual_perceptual_loss import DPLoss
from dp_basicsr.losses.functional import at_least_float32, gradient_at
from dp_basicsr.losses.ldl_loss import ldl_loss
from dp_basicsr.losses.terms import sum_of_parts
from dp_basicsr.utils.signals import resume_advice

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Losses = dict[str, Tensor]
Shares = Mapping[str, float]  # of the losses to balance

# `train: amp` -> dtype of autocast.
AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# On a GPU a step's flag is read this many steps later, when it is available without waiting for the device.
LAG = 2


class TrainingStep:
    """The step of a model: it has the gradients of BasicSR's models, with fewer passes.

    D's weights do not change between G's loss and D's, so each image goes through D once, and both losses use the same
    logits. The super-resolved image is detached from G as a leaf: each loss adds its gradient to it and frees its graph
    before the next one starts, and one backward pass through G uses the sum. Without a D (``PSNRModel``) the image
    losses alone are left. ``balancer`` weights the losses of G by ``train: balance``; None: the options' weights.

    Attributes:
        scaler: Gradient scaler; enabled for fp16 alone, whose range is too small for gradients.
        guard: Counts the steps that were not finite.
        applied: 0-d; 0 after a skipped step.
        is_undone: Whether the last step raised before it changed weights, and has changed nothing.
    """

    def __init__(self, train: Mapping[str, Any], device: torch.device, balancer: Balancer | None = None) -> None:
        self.train = train
        self.device = device
        self.balancer = balancer
        if balancer is not None:
            balancer.moments = balancer.moments.to(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train["amp"] == "fp16")
        self.guard = StepGuard(train["max_nonfinite"], device)
        self.applied = torch.ones((), device=device)
        self.is_undone = False

    # The model is an argument, because a cycle of references would keep its process group alive at the end of a run.
    def __call__(self, model: Any, iteration: int) -> Losses:
        """Train G and D one step on the batch in ``model.lq``, ``model.gt`` ((N, 3, H, W), RGB in [0, 1]).

        With ``train: grad_accumulation: n``, the batch is processed in n parts, as even as possible, and their
        gradients are averaged. Each part has its own w, its own means of D's logits and its own batch-norm statistics.

        Args:
            model: Its networks, losses and optimizers have BasicSR's names; ``log_prefix`` begins those of G's losses.
            iteration: Number of this step, from 1.

        Returns:
            The batch's mean losses by their names in the log, 0-d.

        Raises:
            UserError: ``train: max_nonfinite`` consecutive steps were not finite.
        """
        self.is_undone = False
        net_d = getattr(model, "net_d", None)
        update_g, nets, optimizers = True, [model.net_g], [model.optimizer_g]
        shares: Shares = {}
        gan_weight = 1.0
        state = list(model.net_g.buffers())  # what the passes of a step change
        if net_d is not None:
            every, first = model.net_d_iters, model.net_d_init_iters
            update_g = iteration % every == 0 and iteration > first
            nets, optimizers = [model.net_g, net_d], [model.optimizer_d, *(optimizers if update_g else [])]
            state += net_d.buffers()
            gan_weight = min(1.0, (iteration // every - first // every) / (model.ramp or 1))
        if self.balancer is not None:
            state.append(self.balancer.moments)
            if iteration >= self.train["balance"]["start_iter"]:
                shares = self.balancer.multiplied("gan", gan_weight)
                gan_weight = 1.0 if "gan" in shares else gan_weight
        before = [tensor.clone() for tensor in state]
        for optimizer in model.optimizers:
            optimizer.zero_grad()

        n = self.train["grad_accumulation"]
        logs: list[tuple[float, Losses]] = []
        try:
            for lq, gt in zip(model.lq.tensor_split(n), model.gt.tensor_split(n), strict=True):
                part = len(lq) / len(model.lq)
                with ExitStack() as stack:
                    # Several processes average the gradients once, with the last part.
                    for net in nets:
                        if len(logs) < n - 1 and isinstance(net, DistributedDataParallel):
                            stack.enter_context(net.no_sync())
                    logs.append((part, self.accumulate(model, lq, gt, part, update_g, shares, gan_weight)))
        except Exception:
            # On a GPU that has failed this raises as well, and would hide the first error.
            with suppress(Exception):
                for tensor, old in zip(state, before, strict=True):
                    tensor.copy_(old)
                self.is_undone = True
            raise
        log: dict[str, Any] = {name: sum(part * losses[name].detach() for part, losses in logs) for name in logs[0][1]}

        self.apply(model, iteration, optimizers, log)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(torch.where(self.applied == 1, tensor, old))
        if model.ema_decay > 0:
            # BasicSR averages parameters alone; a batch-norm's statistics would stay at their start in the EMA.
            for average, buffer in zip(model.net_g_ema.buffers(), nets[0].buffers(), strict=True):
                average.copy_(buffer)
        return log

    def autocast(self) -> torch.autocast:
        """Return autocast for ``train: amp``; losses are still computed in float32."""
        return torch.autocast(self.device.type, AMP[self.train["amp"]], enabled=self.train["amp"] != "none")

    def accumulate(
        self, model: Any, lq: Tensor, gt: Tensor, part: float, update_g: bool, shares: Shares, gan_weight: float
    ) -> Losses:
        """Add the gradients of some pairs, ``part`` of the batch (0 to 1), to those of D and (``update_g``) of G.

        Returns the losses; ``gan_weight`` is a factor of G's adversarial one. The numbers are those of docs/method.md.
        """
        net_d = getattr(model, "net_d", None)
        log: Losses = {}
        log_d: Losses = {}
        values: Losses = {}  # of G's losses by name, and their gradients at SR
        gradients: Losses = {}

        def scale(loss: Tensor) -> Tensor:
            return self.scaler.scale(loss * part)

        # 1. SR = G(LR). SR is detached from G: a leaf at which each loss has its gradient.
        with self.autocast(), torch.set_grad_enabled(update_g):
            model.output = model.net_g(lq)
        sr = at_least_float32(model.output.detach())
        if not self.train["channels_last"]:
            sr = sr.contiguous()  # transformers' outputs are not, and BasicSR's discriminators use view
        sr = sr.requires_grad_(update_g)
        if net_d is not None:
            # 2. real = D(HR), fake = D(SR).
            with self.autocast():
                real, fake = at_least_float32(net_d(gt)), at_least_float32(net_d(sr))
            # 3. G's adversarial loss, backward to SR only. It comes before D's losses, because it needs the graph of
            #    D that their backward pass frees; D's parameters must not get its gradient.
            if update_g:
                l_g_gan = model.generator_gan_loss(real.detach(), fake) * gan_weight
                gradients["gan"] = gradient_at(scale(l_g_gan), sr, "gan", retain_graph=True)
                values["gan"] = l_g_gan.detach()
            # 4. D's losses, backward to D's parameters only, not to SR behind `fake`.
            l_d_real, l_d_fake = model.discriminator_losses(real, fake)
            torch.autograd.backward(scale(l_d_real + l_d_fake), inputs=list(net_d.parameters()))
            log_d = {"l_d_real": l_d_real, "l_d_fake": l_d_fake, "out_d_real": real.mean(), "out_d_fake": fake.mean()}
        if not update_g:
            return log_d

        # 5. Pixel loss and L_DP, backward to SR. D's graphs are freed by now; here each loss's graph is freed before
        #    the next one is built, and L_DP does the same with its terms.
        for name, loss, losses in self.image_losses(model, lq, sr, gt):
            gradients[name], values[name] = gradient_at(scale(loss), sr, name), loss.detach()
            log |= {f"{model.log_prefix}{part}": value for part, value in losses.items()}
        if isinstance(model.cri_perceptual, DPLoss):
            l_dp = model.cri_perceptual
            # The loss as a whole, or, if they have shares, its terms, those in `shares` without Eq. 9.
            apart = self.balancer is not None and not self.balancer.targets.keys().isdisjoint(l_dp.names)
            with self.autocast():
                results = l_dp.gradients(sr, gt, scale, shares.keys() if apart else None)
            values, gradients = values | results[0], gradients | results[1]
            percep = torch.stack(list(results[0].values())).sum()
            log |= l_dp.log_terms() | {f"{model.log_prefix}percep": percep}
        if net_d is not None:
            log["l_g_gan"] = values["gan"]
        if self.balancer is None:
            total = reduce(torch.add, gradients.values())
        else:
            total = self.balancer.combine(values, gradients, scale(torch.ones_like(sr[0, 0, 0, 0])), shares)
            # As float, because BasicSR's log takes one type.
            log |= {f"weight_{name}": value.float() for name, value in self.balancer.weights.items()}
            log |= {f"share_{name}": value.float() for name, value in self.balancer.shares.items()}
        # 6. One backward pass through G with the sum on SR.
        model.output.backward(total.to(model.output.dtype))
        return log | log_d

    def image_losses(self, model: Any, lq: Tensor, sr: Tensor, gt: Tensor) -> Iterator[tuple[str, Tensor, Losses]]:
        """Yield name, value and log of the losses on images, one graph at a time; a new loss is added here."""
        if model.cri_pix:
            yield "pix", *sum_of_parts(model.cri_pix(sr, gt), "pix")
        if getattr(model, "cri_ldl", None):
            with torch.no_grad(), self.autocast():
                ema = at_least_float32(model.net_g_ema(lq))
            yield "ldl", *sum_of_parts(ldl_loss(model.cri_ldl, sr, gt, ema), "ldl")
        if model.cri_perceptual and not isinstance(model.cri_perceptual, DPLoss):
            with self.autocast():
                returned = model.cri_perceptual(sr, gt)
            yield "percep", *sum_of_parts(returned, "percep")

    def apply(self, model: Any, iteration: int, optimizers: Sequence[torch.optim.Optimizer], log: Losses) -> None:
        """Step the optimizers and the EMA if all gradients and losses are finite; see ``StepGuard.watch`` if not.

        Each network's gradient is clipped to the norm ``train: grad_clip``, if given.
        """
        gradients = []
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if self.train.get("grad_clip"):
                nn.utils.clip_grad_norm_(parameters, self.train["grad_clip"])
            gradients += [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One flag for all processes, which stays on the device: 1.0 if a gradient or a loss is not finite, else 0.0.
        values = [nn.utils.get_total_norm(gradients).float(), *(loss.float() for loss in log.values())]
        flag = 1.0 - torch.isfinite(torch.stack(values)).all().float()
        if process_count() > 1:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        for optimizer in optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                # A fused optimizer reads the flag on the device, as torch's GradScaler hands it over.
                optimizer.found_inf = flag  # type: ignore[attr-defined]
                optimizer.step()
                del optimizer.found_inf  # type: ignore[attr-defined]
            elif not flag.item():
                optimizer.step()
        self.scaler.update()
        self.applied = 1.0 - flag
        if model.ema_decay > 0:  # ema += (1 - decay) * (weight - ema), unless the step is skipped
            ema = [parameter.data for parameter in model.net_g_ema.parameters()]
            weights = [parameter.data for parameter in model.get_bare_model(model.net_g).parameters()]
            difference = torch._foreach_sub(weights, ema)
            torch._foreach_mul_(difference, (1 - model.ema_decay) * self.applied.to(ema[0].dtype))
            torch._foreach_add_(ema, difference)
        self.guard.watch(iteration, flag, log, model.files)


class StepGuard:
    """Reports skipped steps, and stops the run after ``limit`` of them in a row, at least 1."""

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.lag = LAG if device.type == "cuda" else 0
        self.in_a_row = 0
        self.saved: int | None = None  # the last iteration with a checkpoint, for the message
        # Iteration; flag and losses; event behind which they can be read; names of the losses, and files.
        self.steps: deque[tuple[int, Tensor, torch.cuda.Event | None, Sequence[str], Sequence[str]]] = deque()

    def watch(self, iteration: int, flag: Tensor, losses: Losses, files: Sequence[str]) -> None:
        """Record a step, and check the one that is ``lag`` steps old.

        After ``limit`` skipped ones in a row, all processes raise a UserError at the same step.
        """
        ready = None
        numbers = torch.stack([flag, *(loss.float() for loss in losses.values())])
        if self.lag:  # read from pinned memory behind an event, so that no step waits for the device
            numbers = numbers.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self.steps.append((iteration, numbers, ready, list(losses), files))
        if len(self.steps) > self.lag:
            self._report_oldest()

    def last_step_applied(self) -> bool:
        """Whether the last step was applied; waits for the device, and raises as ``watch``. Alike on all processes."""
        while self.steps:
            self._report_oldest()
        return self.in_a_row == 0

    def _report_oldest(self) -> None:
        iteration, numbers, ready, names, files = self.steps.popleft()
        if ready is not None:
            ready.synchronize()
        flag, *losses = (number.item() for number in numbers)
        if not flag:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        terms = [name for name, value in zip(names, losses, strict=True) if not math.isfinite(value)]
        if terms or get_dist_info()[0] == 0:
            # Log as an error, because BasicSR silences lower levels on ranks other than 0, whose files these may be.
            get_root_logger().error(
                f"iteration {iteration}: {', '.join(terms) or 'a gradient'} not finite, the step is skipped; "
                f"batch: {', '.join(files) or 'files unknown'}"
            )
        if self.in_a_row >= self.limit:
            # The values are finite then, so only a term's share of the gradient can tell.
            way = "" if terms else "; train:perceptual_opt:log_gradient_shares=true names a DPLoss's term that does so"
            raise UserError(
                f"iteration {iteration}: {self.limit} consecutive steps were not finite (train: max_nonfinite); "
                f"{self.advice()}{way}"
            )

    def advice(self) -> str:
        """Explain how to continue after steps that were not finite."""
        return f"{resume_advice(self.saved)}; lower the learning rate or a loss weight"
