"""Values that several processes share: means over the mini-batch, and what rank 0 decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dp_basicsr.errors import UserError

import torch
from torch import Tensor, distributed

T = TypeVar("T")


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


def start_maximum(value: int) -> Callable[[], int]:
    """Begin to find the largest ``value`` of all processes.

    It takes the group that the gradients take: a gloo group beside NCCL would need a network interface of its own.

    Returns:
        What gives the largest: it waits for the other processes, and on GPUs for the work queued before, not after.
    """
    on_gpu = distributed.get_backend() == "nccl"
    largest = torch.full((), value, device="cuda" if on_gpu else "cpu")
    work = distributed.all_reduce(largest, distributed.ReduceOp.MAX, async_op=True)
    wait: Callable[[], object] = work.wait
    if on_gpu:
        work.wait()  # the stream waits, the program does not
        largest, ready = largest.to("cpu", non_blocking=True), torch.cuda.Event()
        ready.record()
        wait = ready.synchronize

    def finish() -> int:
        wait()
        return int(largest)

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


def agree_on(value: T) -> T:
    """Rank 0's value, on every process."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: T) -> list[T]:
    """The value of every process, by rank, on every process."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def on_rank_0(function: Callable[[], T]) -> T:
    """Call a function on rank 0 alone; every process gets what it returns, or its UserError."""
    outcome: tuple[Any, UserError | None] = (None, None)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        try:
            outcome = (function(), None)
        except UserError as error:
            outcome = (None, error)
    value, failure = agree_on(outcome)
    if failure is not None:
        raise failure
    return value
