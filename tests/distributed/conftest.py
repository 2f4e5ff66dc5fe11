"""Shared fixtures of the tests with several processes."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Iterator
from functools import partial

import pytest
from torch.distributed.launcher.api import LaunchConfig


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[LaunchConfig]:
    """torchrun with one restart on two processes, in this process; its signal handlers are removed after the test."""
    monkeypatch.setattr(inspect, "stack", partial(inspect.stack, 0))  # as in preload.py
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    yield LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, monitor_interval=0.05, start_method="forkserver",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test", local_addr="localhost",
    )  # fmt: skip
    for number, handler in handlers.items():
        signal.signal(number, handler)
