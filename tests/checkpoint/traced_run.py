"""A run whose every network says which steps made it: its buffer ``trace`` has the mark of each step's start."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.hit_run import event, train_and_be_hit

LONGEST = 64  # steps


def result_of(trace: Sequence[int]) -> float:
    """The gray of every result of a network with these steps, in (0, 1)."""
    return 0.1 + zlib.crc32(bytes(trace)) % 1000 / 1250


@ARCH_REGISTRY.register()
class TracedNet(nn.Module):
    """x4; all results have the gray that belongs to the network's steps.

    Args:
        mark: Number of this start, 1 to 255.
    """

    trace: Tensor
    count: Tensor

    def __init__(self, mark: int = 1) -> None:
        super().__init__()
        self.mark = mark
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("trace", torch.zeros(LONGEST, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            event("step")
            self.trace[self.count] = self.mark
            self.count += 1
        gray = result_of(self.trace[: self.count].tolist())
        return F.interpolate(0 * x, scale_factor=4) + gray + 0 * self.weight


@METRIC_REGISTRY.register()
def gray_of_result(img: Any, **settings: Any) -> float:
    return float(np.mean(img))


def train_traced(order: dict[str, Any]) -> NoReturn:
    train_and_be_hit(order, {})
