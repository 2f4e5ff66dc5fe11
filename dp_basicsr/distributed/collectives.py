"""Collective operations: means over the mini-batch, and values decided by rank 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dp_basicsr.errors import UserError

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def process_count() -> int:
    """Return the number of processes of the group; 1 without one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def start_mean(values: Tensor) -> Callable[[], Tensor]:
    """Start averaging ``values`` (any shape, detached) over the processes; return a function that waits for the mean.

    Computation before it is called hides the communication.
    """
    if process_count() == 1:
        return lambda: values
    # A copy, because the collective writes into its argument while the caller goes on.
    total = values.detach().clone()
    work = distributed.all_reduce(total, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return total / distributed.get_world_size()

    return finish


def start_maximum(value: int) -> Callable[[], int]:
    """Start computing the maximum of ``value`` over the processes, and return a function that waits for it.

    On GPUs it waits only for work queued before this call.
    """
    # In the default group, because a gloo group beside NCCL would need a network interface of its own.
    on_gpu = distributed.get_backend() == "nccl"
    largest = torch.full((), value, device="cuda" if on_gpu else "cpu")
    work = distributed.all_reduce(largest, distributed.ReduceOp.MAX, async_op=True)
    wait: Callable[[], object] = work.wait
    if on_gpu:
        # Blocks the stream, not the program.
        work.wait()
        largest, ready = largest.to("cpu", non_blocking=True), torch.cuda.Event()
        ready.record()
        wait = ready.synchronize

    def finish() -> int:
        wait()
        return int(largest)

    return finish


class _Mean(torch.autograd.Function):
    # The gradient is the mean of the processes' gradients: DDP then averages them to those of the mean loss.
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return start_mean(values)()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return start_mean(gradient)()


def mean_over_processes(values: Tensor) -> Tensor:
    """Average ``values`` (any shape) over the processes, with a gradient; identity with one process."""
    return _Mean.apply(values) if process_count() > 1 else values  # type: ignore[no-any-return]


def agree_on(value: T) -> T:
    """Return rank 0's value on every process."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, ordered by rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def on_rank_0(function: Callable[[], T]) -> T:
    """Call a function on rank 0 only; every process gets its return value or its UserError."""
    # Errors travel as values: a rank that raised alone would leave the others waiting.
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
