"""Scalars of the whole mini-batch, where it is spread over several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


def is_parallel() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def start_mean(values: Tensor) -> Callable[[], Tensor]:
    """Begin to average ``values`` (any shape, detached) over the processes.

    Returns:
        What gives the mean: it waits for the other processes, so what is computed before it is called hides them.
    """
    if not is_parallel():
        return lambda: values
    total = values.detach().clone()
    work = distributed.all_reduce(total, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return total / distributed.get_world_size()

    return finish


class _Mean(torch.autograd.Function):
    """The mean of a tensor over the processes; its gradient is the mean of their gradients.

    So the gradients that DistributedDataParallel averages are those of the mean of the processes' losses.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return start_mean(values)()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return start_mean(gradient)()


def mean_over_processes(values: Tensor) -> Tensor:
    """``values`` (any shape) averaged over the processes, with a gradient; themselves where there is one process."""
    return _Mean.apply(values) if is_parallel() else values  # type: ignore[no-any-return]
