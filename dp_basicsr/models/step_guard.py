"""Skip non-finite training steps, and report their cause."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp_basicsr.distributed.collectives import is_parallel
from dp_basicsr.errors import UserError
from dp_basicsr.training.signals import resume_advice

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, distributed, nn

# On a GPU a step's flag is read this many steps later, when it is available without waiting for the device.
LAG = 2


def not_finite(gradients: Sequence[Tensor], losses: Mapping[str, Tensor]) -> Tensor:
    """Return 1.0 if a gradient or a loss of any process is not finite, else 0.0: a 0-d float32 on the device."""
    norm = nn.utils.get_total_norm(gradients)
    sound = torch.isfinite(torch.stack([norm.float(), *(loss.detach().float() for loss in losses.values())])).all()
    flag = 1.0 - sound.float()
    if is_parallel():
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return flag


def step_unless(flag: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step unless ``flag`` is 1: on the device if the optimizer supports it (fused Adam), else by reading the flag."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not flag.item():
            optimizer.step()
        return
    optimizer.found_inf = flag  # type: ignore[attr-defined]  # as torch's GradScaler hands it over
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Step:
    """A step for the report: its losses by name, its flag, and the files of its batch."""

    iteration: int
    flag: Tensor
    losses: Mapping[str, Tensor]
    files: Sequence[str]
    ready: torch.cuda.Event | None


class StepGuard:
    """Reports skipped steps, and stops the run after too many in a row.

    Args:
        limit: Number of consecutive skipped steps that stops the run, at least 1.
        device: Device of the flags.

    Attributes:
        saved: The last iteration with a checkpoint, for the message.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.lag = LAG if device.type == "cuda" else 0
        self.in_a_row = 0
        self.saved: int | None = None
        self.steps: deque[Step] = deque()

    def watch(self, iteration: int, flag: Tensor, losses: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Record a step, and check the one that is ``lag`` steps old.

        Raises:
            UserError: ``limit`` consecutive steps were skipped. All processes raise it at the same step.
        """
        ready = None
        if self.lag:
            flag = flag.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self.steps.append(Step(iteration, flag, losses, files, ready))
        if len(self.steps) > self.lag:
            self._look(self.steps.popleft())

    def is_sound(self) -> bool:
        """Whether the last step was applied; waits for the device. The same on all processes.

        Raises:
            UserError: See ``watch``.
        """
        while self.steps:
            self._look(self.steps.popleft())
        return self.in_a_row == 0

    def _look(self, step: Step) -> None:
        if step.ready is not None:
            step.ready.synchronize()
        if not step.flag.item():
            self.in_a_row = 0
            return
        self.in_a_row += 1
        terms = [name for name, value in step.losses.items() if not math.isfinite(value.item())]
        if terms or get_dist_info()[0] == 0:
            # Log as an error, because BasicSR silences lower levels on ranks other than 0, whose files these may be.
            get_root_logger().error(
                f"iteration {step.iteration}: {', '.join(terms) or 'a gradient'} not finite, the step is skipped; "
                f"batch: {', '.join(step.files) or 'files unknown'}"
            )
        if self.in_a_row >= self.limit:
            raise UserError(
                f"iteration {step.iteration}: {self.limit} consecutive steps were not finite (train: max_nonfinite); "
                f"{self.advice()}"
            )

    def advice(self) -> str:
        """Explain how to continue after steps that were not finite."""
        return f"{resume_advice(self.saved)}; lower the learning rate or a loss weight"
