"""Count the cost of a training step: floating point operations, calls, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """Cost of one training step.

    Attributes:
        generator, discriminator, perceptual: Floating point operations of a forward pass of one pair (two per
            multiply-add); perceptual is both networks together, on one image.
        operations: Kernel launches per step, independent of the mini-batch.
        parameters_g, parameters_d: Number of weights.
    """

    generator: float
    discriminator: float
    perceptual: float
    operations: int
    parameters_g: int
    parameters_d: int

    @property
    def flop(self) -> float:
        """Floating point operations of a step for one pair.

        A backward pass costs a forward pass for the gradient to the weights, and one for the gradient to the input:
        G 1 + 2; D 2 + 2 * 2 for its own loss and 1 for G's; the perceptual networks 2 + 1.
        """
        return 3 * self.generator + 7 * self.discriminator + 3 * self.perceptual

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of G and D in float32, which every step averages over the processes."""
        return 4 * (self.parameters_g + self.parameters_d)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the networks and of Adam's two moments."""
        return 3 * self.gradient_bytes


class Counter(TorchDispatchMode):
    """Count floating point operations, two per multiply-add, and calls that are not just views.

    torch's FlopCounterMode also tracks modules, and its hooks fail on the step's ``autograd.grad``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop, self.calls = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.flop += count(*args, **(kwargs or {}), out_val=result) if count else 0
        aliases = [one.alias_info for one in func._schema.returns]
        self.calls += not any(alias is not None and not alias.is_write for alias in aliases)
        return result


def counted(call: Callable[[], Any]) -> Counter:
    """Count the operations of a call."""
    with Counter() as counter:
        call()
    return counter


def count_cost(model: Any) -> Cost:
    """Count the networks of an x4 model (on the CPU) for one pair of 128 x 128 HR pixels."""
    gt, lq = torch.rand(1, 3, 128, 128), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        generator, discriminator, perceptual = (
            counted(call).flop
            for call in (lambda: model.net_g(lq), lambda: model.net_d(gt), lambda: model.cri_perceptual(gt, gt))
        )
    model.feed_data({"lq": lq, "gt": gt})
    model.optimize_parameters(1)  # Adam creates its moments
    step = counted(lambda: model.optimize_parameters(2))
    sizes = [sum(weight.numel() for weight in net.parameters()) for net in (model.net_g, model.net_d)]
    return Cost(generator, discriminator, perceptual / 2, step.calls, *sizes)
